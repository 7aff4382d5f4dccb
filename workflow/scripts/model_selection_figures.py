"""Draw every figure of the model selection."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.model_selection import ModelSelectionOptions
from proxycast.plots import model_selection as plots
from proxycast.plots.style import save
from proxycast.tables import read_table

FIXED_IN_ADVANCE = "rank_svm_linear"

with job(snakemake.log[0]):
    scorers = ModelSelectionOptions(**snakemake.params.study["model_selection"]).scorers
    method = FIXED_IN_ADVANCE if FIXED_IN_ADVANCE in scorers else scorers[0]
    tables = {name: read_table(path) for name, path in snakemake.input.items()}
    folds = tables["folds"]
    figures = {
        "methods": plots.methods(tables["summary"], folds, tables["truth"]),
        "predicted_against_true_rank": plots.predicted_against_true_rank(
            tables["predictions"], folds, method, tables["truth"]
        ),
        "proxies_chosen": plots.proxies_chosen(tables["stability"]),
        "solutions_and_writers": plots.solutions_and_writers(tables["writers"]),
        "model_selection_heatmap": plots.model_selection_heatmap(tables["proxies"]),
    }
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
