"""Draw every figure of the forecasts."""

from pathlib import Path

from proxycast.forecasting import ForecastingOptions, about_choice
from proxycast.jobs import job
from proxycast.plots import forecasting as plots
from proxycast.plots.style import save
from proxycast.tables import read_table

OF_A_RUN = "forecast_curves_"

with job(snakemake.log[0]):
    study = snakemake.params.study
    options, metric = ForecastingOptions(**study["forecasting"]), study["target"]["metric"]
    tables = {name: read_table(path) for name, path in snakemake.input.items()}
    observed, rehearsed = tables["observed"], tables["rehearsal"].filter("chosen")["method"]
    chosen = rehearsed[0] if len(rehearsed) else None
    figures = {
        "error_over_horizon": plots.error_over_horizon(
            tables["errors"], chosen, about_choice(tables["rehearsal"], options)
        ),
        "forecast_coverage": plots.forecast_coverage(tables["errors"], chosen, options.confidence),
    }
    for run in (name.removeprefix(OF_A_RUN) for name in snakemake.output.keys() if name.startswith(OF_A_RUN)):
        figures[OF_A_RUN + run] = plots.forecast_curves(
            observed, tables["paths"], run, metric, chosen, tables["forecasts"]
        )
        figures[f"proxy_curves_{run}"] = plots.proxy_curves(observed, tables["fits"], run)
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
