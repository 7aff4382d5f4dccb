"""Made-up training curves whose forecasts are known, for the tests of forecasting."""

import numpy as np
import polars as pl
from proxycast.config.experiments.forecasting_options import FitOptions, ForecastingOptions
from proxycast.experiments.forecasting.protocol import forecast

TOKENS_PER_STEP = 1000
STEPS = [*range(0, 201, 20), 400, 800, 1800, 3600]
CUT = 200
TASKS = ["algebra", "logic"]
PROXIES = ("cross_entropy/uniform", "top1_accuracy/uniform", "margin/uniform")


def options(**changes) -> ForecastingOptions:
    values = {"fit_up_to_step": CUT, "proxies": PROXIES, "bootstrap_replicates": 100, "rehearsal": None}
    values |= {"fit": FitOptions(loss="least_squares"), "intervals": "noise"}
    return ForecastingOptions(**(values | changes))


def law(step, floor, gain, exponent):
    """Infinite at step 0, where no curve of the study looks."""
    with np.errstate(divide="ignore"):
        return floor + gain * (np.asarray(step, float) / CUT) ** -exponent


def study(runs=1, sd=0.0, n=500, steps=STEPS, seed=0, shift=0.0):
    """checkpoints, targets, proxies: cross-entropy by a power law, accuracy linear in it, everything else of both."""
    rng = np.random.default_rng(seed)
    checkpoints, targets, proxies = [], [], []
    for run, step in ((run, step) for run in range(runs) for step in steps):
        name, shown = f"r{run}-{step}", max(step, 1)
        checkpoints.append((name, f"r{run}", step, step * TOKENS_PER_STEP))
        for number, task in enumerate(TASKS):
            loss = float(law(shown, 1.5 + 0.1 * run, 0.4 + 0.05 * number, 0.5))
            accuracy = 0.9 + shift - 0.2 * loss + sd * rng.standard_normal()
            targets.append((name, task, "accuracy", accuracy, n))
            values = {
                ("cross_entropy", "uniform"): loss,
                ("top1_accuracy", "uniform"): 1 - 0.3 * loss,
                ("margin", "uniform"): float(law(shown, 0.2, 0.1, 0.5)),
                ("expert_cross_entropy", "none"): loss,
                ("bits_per_byte", "none"): loss / 3,
                ("rbridge", "none"): 9.0,
            }
            for key, value in values.items():
                proxies.append((name, task, "tokens", *key, value + sd * rng.standard_normal(), 0.01))
            proxies.append((name, task, "bytes", "cross_entropy", "uniform", 77.0, 0.01))
        generic = float(law(shown, 2.5, 0.3, 0.4))
        proxies.append((name, "generic_text", "tokens", "expert_cross_entropy", "none", generic, 0.01))
    of_proxies = ["checkpoint", "task", "tail", "statistic", "weighting", "value", "standard_error"]
    return (
        pl.DataFrame(checkpoints, schema=["checkpoint", "run", "step", "tokens"], orient="row"),
        pl.DataFrame(targets, schema=["checkpoint", "task", "metric", "value", "n"], orient="row"),
        pl.DataFrame(proxies, schema=of_proxies, orient="row"),
    )


ONE = ("cross_entropy/uniform",)


def small(tables, task=None):
    """The tables with one proxy and no baseline, and of one task if need be: what is quick to forecast."""
    checkpoints, targets, proxies = tables
    proxies = proxies.filter(statistic="cross_entropy", tail="tokens")
    return checkpoints, targets.filter(pl.col("task").is_in([task] if task else TASKS)), proxies


def run(tables=None, tasks=TASKS, solution_proxies=None, higher_is_better=True, chance=None, **changes):
    of_truth = {"higher_is_better": higher_is_better, "chance": chance}
    return forecast(*(tables or study()), "accuracy", tasks, options(**changes), solution_proxies, **of_truth)


def with_values(tables, values, statistic=None):
    """The tables with `values` (a function of step) for the truth or a statistic."""
    checkpoints, targets, proxies = tables
    steps = pl.col("checkpoint").replace_strict(dict(checkpoints.select("checkpoint", "step").iter_rows()))
    new = steps.replace_strict({step: float(values(step)) for step in checkpoints["step"]})
    if statistic is None:
        return checkpoints, targets.with_columns(value=new), proxies
    chosen = pl.when(pl.col("statistic") == statistic).then(new).otherwise("value")
    return checkpoints, targets, proxies.with_columns(value=chosen)


def chosen_of(tables):
    return tables["rehearsal"].filter("chosen")["method"].to_list()
