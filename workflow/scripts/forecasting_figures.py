"""Draw every figure of the forecasts."""

from pathlib import Path

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.forecasting.conformal import about_rehearsals
from proxycast.experiments.forecasting.rehearsal import about_choice
from proxycast.jobs import job
from proxycast.report import forecasting_figures as plots
from proxycast.report.comparisons import ladder_figures
from proxycast.report.style import save
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
        "forecast_coverage": plots.forecast_coverage(
            tables["errors"], chosen, options.confidence, about_rehearsals(tables["intervals"], chosen)
        ),
    }
    if "two_step_law" in snakemake.output.keys():
        laws, higher_is_better = tables["two_step"], study["target"]["higher_is_better"]
        figures["two_step_predictions"] = ladder_figures.two_step_predictions(laws, metric)
        figures["two_step_law"] = ladder_figures.two_step_law(laws, observed, metric, higher_is_better=higher_is_better)
    for run in (name.removeprefix(OF_A_RUN) for name in snakemake.output.keys() if name.startswith(OF_A_RUN)):
        figures[OF_A_RUN + run] = plots.forecast_curves(
            observed, tables["paths"], run, metric, chosen, tables["forecasts"]
        )
        figures[f"proxy_curves_{run}"] = plots.proxy_curves(observed, tables["fits"], run)
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
