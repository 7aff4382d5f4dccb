"""Draw how many solutions are enough to order the corpora, at each budget."""

from pathlib import Path

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget
from proxycast.jobs import job
from proxycast.report.comparisons.solution_count_figures import figure_over_number
from proxycast.report.style import save
from proxycast.tables import read_table

with job(snakemake.log[0]):
    study, counts = snakemake.params.study, read_table(snakemake.input.solution_counts)
    confidence = SelectionOptions(**study["selection"]).confidence
    for budget in (Budget(**budget) for budget in study["budgets"]):
        of_budget = counts.filter(size=budget.size, step=budget.step)
        at = f": {budget.size} models at step {budget.step:,}"
        figure = figure_over_number(of_budget, "decision_accuracy", "corpora", confidence, at)
        output = snakemake.output[f"solution_counts_{budget.size}_step{budget.step}"]
        save(figure, Path(output).with_suffix(""))
