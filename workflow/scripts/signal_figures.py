"""Draw signal to noise by statistic and task, against decision accuracy, and what repeats buy."""

from pathlib import Path

from proxycast.config.study import Budget
from proxycast.jobs import job
from proxycast.report.comparisons import signal_figures as plots
from proxycast.report.style import save
from proxycast.tables import read_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    confidence = study["selection"]["confidence"]
    highlighted = [(proxy["statistic"], proxy["weighting"]) for proxy in study["highlighted"]]
    signal = read_table(inputs.signal_to_noise)
    figures = {}
    for budget in (Budget(**budget) for budget in study["budgets"]):
        name = f"signal_to_noise_{budget.size}_step{budget.step}"
        figures[name] = plots.signal_to_noise(signal, budget.size, budget.step, highlighted, confidence)
    if study["target"]:
        shown = [*highlighted, *plots.COMPARED, (study["target"]["metric"], "none")]
        foresight, repeats = read_table(inputs.snr_and_accuracy), read_table(inputs.repeats)
        figures["snr_against_decision_accuracy"] = plots.snr_against_decision_accuracy(
            signal, foresight, highlighted, confidence
        )
        figures["repeats_over_compute"] = plots.repeats_over_compute(repeats, shown, confidence)
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
