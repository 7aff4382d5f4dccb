"""Forecast where training runs end, by every proxy and baseline, and write the tables of the forecasts."""

from pathlib import Path

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.forecasting.protocol import forecast
from proxycast.jobs import job
from proxycast.solutions.rows import read_problems
from proxycast.tables import fingerprint, read_table, scan_tables, table_fingerprint, write_table
from proxycast.truth.targets import chance_by_task
from proxycast.truth.training_log import read_wide_curve

with job(snakemake.log[0]):
    study, tasks, inputs = snakemake.params.study, snakemake.params.tasks, snakemake.input
    options, metric = ForecastingOptions(**study["forecasting"]), study["target"]["metric"]
    of_solutions, chance = None, {}
    if options.curve:  # logged by others
        read, sources = read_wide_curve(options.curve, metric), options.curve.files
    else:
        read = {name: read_table(inputs[name]) for name in ("checkpoints", "targets", "proxies")}
        sources = [table_fingerprint(Path(inputs[name])) for name in ("targets", "proxies")]
        if inputs.get("solution_proxies"):
            of_solutions = scan_tables(inputs.solution_proxies).collect()
        chance = chance_by_task(metric, {Path(path).stem: read_problems(Path(path)) for path in inputs.problems})
    tables = forecast(
        *(read["checkpoints"], read["targets"], read["proxies"], metric, tasks, options, of_solutions),
        higher_is_better=study["target"]["higher_is_better"],
        chance=chance,
    )
    made_from = fingerprint(sources, study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
