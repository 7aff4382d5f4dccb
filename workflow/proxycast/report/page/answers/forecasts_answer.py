"""What runs will score: the forecast that was settled in advance, and how far such forecasts are off."""

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from proxycast.experiments.forecasting.methods import CHOSEN, LAST_VALUE, OTHER_RUNS, TWO_STEP
from proxycast.report.page.answers.wording import (
    Answer,
    Fact,
    Row,
    brackets,
    cost,
    counted,
    first_row,
    known_rows,
    listed,
    percent,
    power_of_ten,
    sentence,
)
from proxycast.report.page.formats import with_interval
from proxycast.report.page.study_results import StudyResults

MOST_TASKS = 4  # whose forecasts a sentence tells
HOW = ".3f"


class Forecasts(NamedTuple):
    """What is forecast at the run's end, or else at the last horizon: rows of the table summary."""

    method: str
    horizon: float
    is_end: bool
    rows: pl.DataFrame  # of the method that was settled in advance
    of_others: pl.DataFrame  # learned from the other runs


def forecast_answer(results: StudyResults) -> Answer | None:
    """The answer of a study with forecasts; None without their summary."""
    summary = results.table("forecasting/summary")
    at = None if summary is None else _at_the_end(summary)
    if at is None:
        return None
    metric = results.study.target.metric if results.study.target else "the truth"
    errors = results.table("forecasting/errors")
    judged = _judged(errors, at)
    clauses = [_forecast(at, metric)]
    facts = [Fact("Forecast by", _forecast_by(at)), *_from_where_to_where(at), *_other_forecasts(at)]
    if judged:
        clauses.append(_error(judged, errors, metric, at))
        facts += _facts_of_errors(judged, errors, metric, at.method)
    facts += _rehearsals(at)
    facts.append(brackets(results.study.forecasting.confidence, results.study.target, clauses, facts))
    return Answer(sentence(clauses), facts, list(_missing(at, judged)))


def _at_the_end(summary: pl.DataFrame) -> Forecasts | None:
    """The end of the run that the study asks for, or the last horizon of all runs."""
    others = pl.col("method").is_in([OTHER_RUNS, TWO_STEP])
    own = summary.filter(~others)
    if own.is_empty():
        return None
    is_end = own["is_end"].any()
    at = pl.col("is_end") if is_end else pl.col("horizon") == own["horizon"].max()
    rows = own.filter(at)
    return Forecasts(rows["method"][0], rows["horizon"][0], is_end, rows, summary.filter(others, at))


def _forecast(at: Forecasts, metric: str) -> str:
    """What is forecast of the first run, task by task, and what it scored where that is known."""
    run, step = at.rows.select("run", "step").row(0)
    scores = _scores(at.rows.filter(run=run))
    when = "its end" if at.is_end else f"{at.horizon:g} times the compute of the cut"
    if not scores:
        return f"Run {run} has no forecast at {when} (step {step:,})"
    return f"Run {run} is forecast to score {listed(scores, MOST_TASKS)} in {metric} at {when} (step {step:,})"


def _scores(forecasts: pl.DataFrame) -> list[str]:
    """The forecast of each task, with what became of it where that is known."""
    said = []
    for row in known_rows(forecasts):
        scored = "" if row["truth"] is None else f" (it scored {row['truth']:{HOW}})"
        if row["predicted"] is not None:
            said.append(f"{with_interval(row, 'predicted', HOW, 'low', 'high')} on {row['task']}{scored}")
    return said


def _forecast_by(at: Forecasts) -> str:
    runs = at.rows["run"].unique(maintain_order=True).to_list()
    others = f"; {counted(len(runs) - 1, 'other run')} too: {listed(runs[1:])}" if len(runs) > 1 else ""
    return f"{at.method}, settled before the truth was seen{others}"


def _from_where_to_where(at: Forecasts) -> Iterator[Fact]:
    """The truth at the cut, and the compute of what is forecast, of the first run."""
    rows = at.rows.filter(run=at.rows["run"][0])
    known = rows.filter(pl.col("last_value").is_finite()).select("task", "last_value")
    now = [f"{value:{HOW}} on {task}" for task, value in known.iter_rows()]
    if now:
        yield Fact("At the cut", listed(now, MOST_TASKS))
    row = first_row(rows)
    units = {"tokens": "tokens", "flops": "FLOPs"}
    compute = [power_of_ten(row[name], unit) for name, unit in units.items() if row[name]]
    if compute:
        yield Fact("Forecast for", ", ".join(compute))


def _other_forecasts(at: Forecasts) -> Iterator[Fact]:
    """What methods say that learn from the other runs, of the same run."""
    for (method,), rows in at.of_others.filter(run=at.rows["run"][0]).group_by("method", maintain_order=True):
        if scores := _scores(rows.with_columns(truth=pl.lit(None, pl.Float64))):
            yield Fact(f"By {method}", listed(scores, MOST_TASKS))


def _judged(errors: pl.DataFrame | None, at: Forecasts) -> Row | None:
    """The method's errors over all tasks and runs: at the horizon of the forecast, else the largest that is judged."""
    if errors is None:
        return None
    own = errors.filter(pl.col("method").is_in([CHOSEN, at.method]), pl.col("rmse").is_finite(), task="all")
    return first_row(own.sort(pl.col("horizon") == at.horizon, "horizon", pl.col("method") == CHOSEN, descending=True))


def _error(judged: Row, errors: pl.DataFrame, metric: str, at: Forecasts) -> str:
    price = cost(judged, "rmse", metric, "rmse_low", "rmse_high")
    last = first_row(errors, method=LAST_VALUE, task="all", horizon=judged["horizon"])
    of_last = f", that of the last value {cost(last, 'rmse', metric)}" if last and last["rmse"] is not None else ""
    there = "there" if judged["horizon"] == at.horizon else f"at {judged['horizon']:g} times that compute"
    forecasts = f"{counted(judged['forecasts'], 'forecast')} {there}"
    return f"the root mean square error of {forecasts} is {price}{of_last}"


def _facts_of_errors(judged: Row, errors: pl.DataFrame, metric: str, own: str) -> Iterator[Fact]:
    """Beside the best of the others in hindsight, and how many truths the intervals hold."""
    here = errors.filter(pl.col("rmse").is_finite(), task="all", horizon=judged["horizon"])
    if (name := judged["best_baseline"]) and judged["difference"] is not None:
        price = cost(judged, "difference", metric, "difference_low", "difference_high")
        yield Fact("Best baseline", f"in hindsight {name}; the error less that of it is {price} (below 0 is better)")
    best = first_row(here.filter(pl.col("kind") == "proxy", ~pl.col("method").is_in([CHOSEN, own])).sort("rmse"))
    if best:
        yield Fact("Best other", f"in hindsight {best['method']}, whose error is {cost(best, 'rmse', metric)}")
    if judged["coverage"] is not None:
        truths = counted(judged["forecasts"], "truth")
        yield Fact("Coverage", f"the intervals hold {percent(judged['coverage'])} of {truths}")


def _rehearsals(at: Forecasts) -> Iterator[Fact]:
    row = first_row(at.rows.filter(pl.col("rehearsal_coverage").is_finite()))
    if row:
        held = f"such intervals of {at.method} held {percent(row['rehearsal_coverage'])} of the truths"
        yield Fact("In rehearsals", f"{held}, before the cut")


def _missing(at: Forecasts, judged: Row | None) -> Iterator[str]:
    if at.rows["truth"].null_count() == len(at.rows):
        where = "its end" if at.is_end else "this horizon"
        yield f"How right this forecast is: no run has reached {where}, so nothing judges it yet."
    elif judged is None:
        yield "How far such forecasts are off: the tables do not have it."
    if at.rows["low"].null_count():
        yield "Some intervals: too little is known to tell how far these forecasts may be off."
    cautions = at.rows.filter(pl.col("caution") != "")
    for (caution,), rows in cautions.group_by("caution", maintain_order=True):
        tasks = rows["task"].unique(maintain_order=True).to_list()
        yield f"Whether the forecast on {listed(tasks)} can be trusted: {caution}."
