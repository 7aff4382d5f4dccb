"""Made-up ladders of runs that follow a two-step law, as runs and as the tables of a study."""

import numpy as np
import polars as pl
from proxycast.config.experiments.forecasting_options import FitOptions, ForecastingOptions
from proxycast.experiments.forecasting.ladder_forecasts import forecasts_by_two_step, models_to_forecast
from proxycast.experiments.forecasting.protocol import forecast, series_to_forecast
from proxycast.experiments.laws.two_step import LadderRun, LossLaw, Sigmoid

LAW = LossLaw(log_a=4.0, log_b=5.0, alpha=0.25, beta=0.22, floor=0.4)
LINK = Sigmoid(height=-0.7, midpoint=0.8, slope=5.0, greatest=0.98)
SIZES, LENGTHS = (2e8, 5e8, 1.3e9), (20, 50, 200)
CUT, HORIZONS = 100, (2, 4)
TASK = "algebra"
PROXIES = ("cross_entropy/uniform", "top1_accuracy/uniform")


def ladder(law=LAW, link=LINK, sizes=SIZES, lengths=LENGTHS, unit=1.0):
    """Runs of N = `unit` x size and tokens = N x length, 44 checkpoints, of which the last five are one.

    So the means of the last five are exact.
    """
    runs = []
    for size in sizes:
        for length in lengths:
            tokens = unit * size * length * np.minimum(np.linspace(0.1, 1.1, 44), 1)
            loss = law(unit * size, tokens)
            runs.append(LadderRun(f"{size / 1e6:g}M-{length}", unit * size, tokens, loss, link(loss)))
    return runs


def study(runs=None, sd=0.0, seed=0):
    """checkpoints, targets, proxies of the runs at the steps 10, 20, ...: two proxies and two tables of one task."""
    rng = np.random.default_rng(seed)
    checkpoints, targets, proxies = [], [], []
    for run in runs or ladder(lengths=LENGTHS[:2]):
        for number in range(40):
            name, tokens = f"{run.name}-{number}", int(run.tokens[number])
            checkpoints.append((name, run.name, 10 * (number + 1), tokens, 6 * run.parameters * tokens))
            accuracy = run.accuracy[number] + sd * rng.standard_normal()
            targets.append((name, TASK, "accuracy", accuracy, 1000))
            for statistic, value in (
                ("cross_entropy", run.loss[number]),
                ("top1_accuracy", 1 - 0.3 * run.loss[number]),
            ):
                value *= 1 + sd * rng.standard_normal()
                proxies.append((name, TASK, "tokens", statistic, "uniform", value, 0.01))
    names = ["checkpoint", "task", "tail", "statistic", "weighting", "value", "standard_error"]
    return (
        pl.DataFrame(checkpoints, schema=["checkpoint", "run", "step", "tokens", "flops"], orient="row"),
        pl.DataFrame(targets, schema=["checkpoint", "task", "metric", "value", "n"], orient="row"),
        pl.DataFrame(proxies, schema=names, orient="row"),
    )


def options(**changes) -> ForecastingOptions:
    """Six runs are enough for intervals of 80 %."""
    values = {"fit_up_to_step": CUT, "horizons": HORIZONS, "proxies": PROXIES, "rehearsal": None, "confidence": 0.8}
    values |= {"bootstrap_replicates": 100, "fit": FitOptions(loss="least_squares"), "horizon_tolerance": 0.2}
    return ForecastingOptions(**(values | changes))


def run(tables, higher_is_better=True, **changes):
    return forecast(*tables, "accuracy", [TASK], options(**changes), higher_is_better=higher_is_better)


def laws(tables, higher_is_better=True, **changes):
    """The tables forecasts, paths and two_step of the two-step law alone."""
    wanted, end, observed = series_to_forecast(*tables, "accuracy", [TASK], options(**changes))
    models = models_to_forecast(tables[0], tables[1], "accuracy", wanted)
    checkpoints = tables[0].filter(~pl.col("run").is_in(list(wanted.models)))
    of_truth = {"higher_is_better": higher_is_better, "chance": {}}
    return forecasts_by_two_step(observed, checkpoints, models, wanted, of_truth, end)
