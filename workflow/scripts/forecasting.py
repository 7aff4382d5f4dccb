"""Forecast where training runs end, by every proxy and baseline, and write the tables of the forecasts."""

from pathlib import Path

from proxycast.forecasting import ForecastingOptions, forecast
from proxycast.jobs import job
from proxycast.solutions import read_problems
from proxycast.tables import fingerprint, read_table, scan_tables, table_fingerprint, write_table
from proxycast.targets import MULTIPLE_CHOICE_ACCURACY, chance_accuracy
from proxycast.wide_curve import read_wide_curve

with job(snakemake.log[0]):
    study, tasks, inputs = snakemake.params.study, snakemake.params.tasks, snakemake.input
    options, metric = ForecastingOptions(**study["forecasting"]), study["target"]["metric"]
    of_solutions, chance = None, {}
    if options.curve:  # logged by others
        read = read_wide_curve(options.curve.model_copy(update={"path": Path(inputs.curve)}), metric)
        sources = [Path(inputs.curve)]
    else:
        read = {name: read_table(inputs[name]) for name in ("checkpoints", "targets", "proxies")}
        sources = [table_fingerprint(Path(inputs[name])) for name in ("targets", "proxies")]
        if inputs.get("solution_proxies"):
            of_solutions = scan_tables(inputs.solution_proxies).collect()
        if metric == MULTIPLE_CHOICE_ACCURACY:
            chance = {Path(path).stem: chance_accuracy({"": read_problems(Path(path))}) for path in inputs.problems}
    tables = forecast(
        *(read["checkpoints"], read["targets"], read["proxies"], metric, tasks, options, of_solutions),
        higher_is_better=study["target"]["higher_is_better"],
        chance=chance,
    )
    made_from = fingerprint(sources, study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
