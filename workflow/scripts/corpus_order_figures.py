"""Draw the order of corpora that nobody has measured."""

from pathlib import Path

from proxycast.config.study import Budget
from proxycast.jobs import job
from proxycast.report import corpus_order_figures as plots
from proxycast.report.style import save
from proxycast.tables import read_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    first, confidence = study["highlighted"][0], study["selection"]["confidence"]
    ranking, pairs = read_table(inputs.ranking), read_table(inputs.pairs)
    figures = {"agreement_of_proxies": plots.agreement_of_proxies(read_table(inputs.agreement), ranking)}
    for budget in (Budget(**budget) for budget in study["budgets"]):
        proxy = (first["statistic"], first["weighting"], budget.size, budget.step)
        name = f"order_of_corpora_{budget.size}_step{budget.step}"
        figures[name] = plots.order_of_corpora(ranking, pairs, proxy, confidence)
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
