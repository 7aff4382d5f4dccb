"""Draw every figure of the model selection."""

from pathlib import Path

from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.jobs import job
from proxycast.report import model_ranking_figures as ranked
from proxycast.report import model_selection_figures as plots
from proxycast.report.style import save
from proxycast.tables import read_table

FIXED_IN_ADVANCE = "rank_svm_linear"

with job(snakemake.log[0]):
    study = snakemake.params.study
    tables = {name: read_table(path) for name, path in snakemake.input.items()}
    ranking = tables["ranking"]
    figures = {
        "models_ranked": ranked.models_ranked(ranking),
        "model_pairs": ranked.model_pairs(tables["pairs"], ranking),
        "model_agreement": ranked.model_agreement(tables["agreement"], ranking),
    }
    if study["target"]:
        scorers, folds = ModelSelectionOptions(**study["model_selection"]).scorers, tables["folds"]
        method = FIXED_IN_ADVANCE if FIXED_IN_ADVANCE in scorers else scorers[0]
        figures |= {
            "methods": plots.methods_compared(tables["summary"], folds, tables["truth"]),
            "predicted_against_true_rank": plots.predicted_against_true_rank(
                tables["predictions"], folds, method, tables["truth"]
            ),
            "proxies_chosen": plots.proxies_chosen(tables["stability"]),
        }
    if "writers" in tables:  # of models that were run
        figures["solutions_and_writers"] = plots.solutions_and_writers(tables["writers"])
        figures["model_selection_heatmap"] = plots.model_selection_heatmap(tables["proxies"])
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
