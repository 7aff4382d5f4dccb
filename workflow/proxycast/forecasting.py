"""Forecast where training runs end, and judge the forecasts: fit up to a cut, predict at multiples of its compute.

A statistic of the model (a proxy, a loss) follows a curve over the run, and a link turns it into the truth (accuracy);
both are fitted to the same early checkpoints (`forecast_methods`). What is forecast at a horizon is the truth at the
checkpoint there. An interval tells of noise, not of a curve that is the wrong one: how often intervals cover is in the
table of errors.

The rule chosen in advance: a rehearsal fits every method up to a share of the cut and forecasts the checkpoints from
there to the cut; the best one there is the method "chosen". It has seen nothing beyond the cut. Only what was really
fitted is chosen: the share is widened where it holds too few checkpoints, and where a method fell back to a constant it
is given the error of the last value.

What a forecast must not be trusted for stands beside it (`caution`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import polars as pl

from proxycast.curves import CURVES, LINK_PARAMETERS
from proxycast.forecast_cautions import (
    FEW_UNITS,
    NO_INTERVAL,
    NO_INTERVAL_OF_RUNS,
    TRUTH_IS_CONSTANT,
    TRUTH_IS_NOISE,
    about_forecast,
    about_truth,
    compared_without_first,
    has_caution,
    tell_cautions,
    worth_comparing,
)
from proxycast.forecast_methods import (
    BASELINE_SERIES,
    FITS_SCHEMA,
    GENERIC_CROSS_ENTROPY,
    LAST_VALUE,
    Array,
    Forecaster,
    ForecastingOptions,
    Series,
    TaskRun,
    bounded,
    from_other_runs,
    interval,
    methods,
    tail_samples,
    without_first,
)
from proxycast.jobs import PROGRESS_SECONDS
from proxycast.options import InputError
from proxycast.ranking import bootstrap_weights
from proxycast.ranking import interval as percentiles
from proxycast.solutions import GENERIC_TEXT

log = logging.getLogger(__name__)

TRUTH = "truth"
CHOSEN, OTHER_RUNS = "chosen", "other_runs"
PATH_POINTS = 60
COMPARED_REPLICATES = 100  # of the forecasts without the first checkpoints, whose intervals are but a measure


def forecast(
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    proxies: pl.DataFrame,
    metric: str,
    tasks: Sequence[str],
    options: ForecastingOptions,
    solution_proxies: pl.DataFrame | None = None,
    *,
    higher_is_better: bool = True,
    chance: Mapping[str, float] | None = None,
) -> dict[str, pl.DataFrame]:
    """The tables forecasts, errors, fits, paths, observed and rehearsal, with the columns of their schemas.

    `checkpoints`: checkpoint, run, step, tokens. `targets`: checkpoint, task, metric, value, n. `proxies`: checkpoint,
    task, statistic, weighting, value, standard_error. `solution_proxies`: checkpoint, task, solution, statistic,
    weighting, value. Where a tail is told, that in tokens counts. `higher_is_better`: false for a truth that is an
    error or a loss. `chance`: task -> what guessing gets, where that is known. A forecast has a null truth where the
    run has no checkpoint near the horizon. `InputError` where nothing can be fitted.
    """
    of_truth = {"higher_is_better": higher_is_better, "chance": chance or {}}
    observed = observed_series(checkpoints, targets, proxies, metric, tasks, options)
    of_solutions = _of_solutions(checkpoints, solution_proxies)
    if "logistic" in options.links and not observed.filter("in_fit", series=TRUTH)["value"].is_between(0, 1).all():
        raise InputError(f"forecasting.links: logistic needs a truth between 0 and 1, which {metric} is not")
    forecasts, fits, paths = _forecast_all(observed, of_solutions, options, of_truth)
    forecasts = pl.concat([forecasts, _other_runs(observed, options, of_truth)])
    rehearsal = rehearse(observed, options, higher_is_better=higher_is_better)
    chosen = rehearsal.filter("chosen")["method"].to_list()
    for method in chosen:  # one or none
        as_chosen = pl.lit(CHOSEN).alias("method")
        forecasts = pl.concat([forecasts, forecasts.filter(method=method).with_columns(as_chosen)])
        paths = pl.concat([paths, paths.filter(method=method).with_columns(as_chosen)])
    for (method, text), rows in forecasts.filter(pl.col("fallback") != "", pl.col("method") != CHOSEN).group_by(
        "method", "fallback", maintain_order=True
    ):
        where = rows.select(pl.format("{}/{}", "run", "task")).to_series().unique().sort()
        log.warning("%s of %d run/task (%s ...): %s", method, len(where), where[0], text)
    tell_cautions(forecasts.filter(pl.col("method") != CHOSEN), fits)
    errors = _with_noisy_truths(errors_table(forecasts, options), forecasts)
    few = errors.filter(has_caution(FEW_UNITS))["horizon"].unique().sort().to_list()
    if few:
        log.warning("%s of the errors at %s", FEW_UNITS, ", ".join(f"{horizon:g}x" for horizon in few))
    return {
        "forecasts": forecasts,
        "errors": errors,
        "fits": fits,
        "paths": paths,
        "observed": observed.drop("checkpoint", "n"),
        "rehearsal": rehearsal,
    }


# --- what was observed ---


# "statistic/weighting", or the statistic alone where it has no weighting.
_SERIES = (
    pl.when(pl.col("weighting") == "none").then("statistic").otherwise(pl.format("{}/{}", "statistic", "weighting"))
)


def observed_series(
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    proxies: pl.DataFrame,
    metric: str,
    tasks: Sequence[str],
    options: ForecastingOptions,
) -> pl.DataFrame:
    """run, task, series, step, tokens, value, standard_error, in_fit, checkpoint, n: the truth and all statistics.

    The cross-entropy on generic text stands under every task. Runs without any truth are left out.
    """
    if "tail" in proxies.columns:
        proxies = proxies.filter(tail="tokens")
    truth = targets.filter(pl.col("metric") == metric, pl.col("task").is_in(list(tasks)))
    if truth.is_empty():
        raise InputError(f"targets: no {metric} of {', '.join(tasks)}; found {sorted(targets['metric'].unique())}")
    columns = ["checkpoint", "task", "series", "value", "standard_error", "n"]
    null = pl.lit(None, pl.Float64)
    truth = truth.with_columns(series=pl.lit(TRUTH), standard_error=null, n=pl.col("n").cast(pl.Float64))
    proxies = proxies.with_columns(series=_SERIES, n=null)
    generic = proxies.filter(task=GENERIC_TEXT, series="expert_cross_entropy").drop("task")
    generic = generic.with_columns(series=pl.lit(GENERIC_CROSS_ENTROPY)).join(
        pl.DataFrame({"task": tasks}), how="cross"
    )
    wanted = dict.fromkeys([*options.proxies, *BASELINE_SERIES])
    own = proxies.filter(pl.col("series").is_in(list(wanted)), pl.col("task").is_in(list(tasks)))
    everything = pl.concat([part.select(columns) for part in (truth, generic, own)])
    observed = checkpoints.select("checkpoint", "run", "step", "tokens").join(everything, on="checkpoint")
    observed = observed.filter((pl.col("series") == TRUTH).any().over("run")).select(
        *("run", "task", "series", "step", "tokens", "value", "standard_error"),
        pl.col("step").is_between(options.fit_from_step, options.fit_up_to_step).alias("in_fit"),
        *("checkpoint", "n"),
    )
    _check(observed, metric, tasks, options, proxies)
    return observed.sort("run", "task", "series", "step", maintain_order=True)


def _check(
    observed: pl.DataFrame, metric: str, tasks: Sequence[str], options: ForecastingOptions, proxies: pl.DataFrame
) -> None:
    for row in observed.filter(~pl.col("value").is_finite().fill_null(False)).iter_rows(named=True):
        raise InputError(f"{_place(row)}: found {row['value']}; it must be a finite number")
    for row in observed.filter(pl.struct("run", "task", "series", "step").is_duplicated()).iter_rows(named=True):
        raise InputError(f"{_place(row)}: two checkpoints of one step; a run has one at each step")
    pairs = observed.select("run").unique().join(pl.DataFrame({"task": tasks}), how="cross").sort("run", "task")
    for series, what in ((TRUTH, metric), *((name, name) for name in options.proxies)):
        there = observed.filter(series=series)
        for run, task in pairs.join(there, on=["run", "task"], how="anti").iter_rows():
            found = sorted(proxies.filter(pl.col("task") == task)["series"].unique()) if series != TRUTH else []
            raise InputError(f"run {run}, task {task}: no {what}{f'; found {found}' if found else ''}")
    fitted = observed.filter("in_fit", series=TRUTH)
    for run, task in pairs.join(fitted, on=["run", "task"], how="anti").iter_rows():
        steps = observed.filter(run=run, task=task, series=TRUTH)["step"].sort().to_list()
        raise InputError(
            f"run {run}, task {task}: no {metric} at the steps {options.fit_from_step} to {options.fit_up_to_step} "
            f"(forecasting.fit_from_step, fit_up_to_step), so there is nothing to fit; it has those of {steps}"
        )


def _place(row: Mapping[str, object]) -> str:
    return f"run {row['run']}, task {row['task']}, {row['series']}, step {row['step']}"


def _of_solutions(checkpoints: pl.DataFrame, solution_proxies: pl.DataFrame | None) -> dict[tuple, pl.DataFrame]:
    """(run, task, series) -> step, solution, value."""
    if solution_proxies is None:
        return {}
    if "tail" in solution_proxies.columns:
        solution_proxies = solution_proxies.filter(tail="tokens")
    values = solution_proxies.join(checkpoints.select("checkpoint", "run", "step"), on="checkpoint")
    values = values.select("run", "task", _SERIES.alias("series"), "step", "solution", "value")
    return values.partition_by("run", "task", "series", as_dict=True, include_key=False)


def task_runs(
    observed: pl.DataFrame,
    of_solutions: Mapping[tuple, pl.DataFrame],
    *,
    higher_is_better: bool,
    chance: Mapping[str, float],
) -> Iterator[TaskRun]:
    """Every task of every run. Times are multiples of the tokens at the run's last fitted checkpoint."""
    for (run, task), rows in observed.group_by("run", "task", maintain_order=True):
        truth = rows.filter(series=TRUTH)
        last = truth.filter("in_fit")[-1]
        tokens = float(last["tokens"].item())
        parts = rows.filter("in_fit").partition_by("series", as_dict=True)
        yield TaskRun(
            run=run,
            task=task,
            tokens_at_cut=tokens,
            step_at_cut=last["step"].item(),
            truth=_series(parts[TRUTH,], tokens),
            statistics={
                name: _series(part, tokens, of_solutions.get((run, task, name)))
                for (name,), part in parts.items()
                if name != TRUTH
            },
            after=truth.filter(pl.col("step") > last["step"].item()),
            problems=last["n"].item(),
            higher_is_better=higher_is_better,
            chance=chance.get(task),
        )


def _series(rows: pl.DataFrame, tokens_at_cut: float, of_solutions: pl.DataFrame | None = None) -> Series:
    matrix = None
    if of_solutions is not None:
        wide = of_solutions.pivot(on="solution", index="step", values="value")
        wide = rows.select("step").join(wide, on="step", how="left", maintain_order="left").drop("step")
        if wide.null_count().sum_horizontal().item() == 0:
            matrix = wide.select(sorted(wide.columns)).to_numpy()
        else:
            log.warning(
                "%s: not every checkpoint has all solutions; standard errors are used", _place(rows.row(0, named=True))
            )
    return Series(
        t=rows["tokens"].to_numpy() / tokens_at_cut,
        value=rows["value"].to_numpy(),
        standard_error=rows["standard_error"].fill_null(0).to_numpy(),
        by_solution=matrix,
    )


# --- the protocol ---

FORECASTS_SCHEMA = {
    **dict.fromkeys(("run", "task", "method", "kind"), pl.String),
    **{"horizon": pl.Float64, "step": pl.Int64, "tokens": pl.Float64},
    **dict.fromkeys(("predicted", "low", "high", "truth", "error"), pl.Float64),
    **{"covered": pl.Boolean, "fallback": pl.String},
    # Without the first checkpoints, and of the truth: how much of its variance is no noise.
    **dict.fromkeys(("without_first", "reliability"), pl.Float64),
    **{"caution": pl.String},
}
PATHS_SCHEMA = {
    **dict.fromkeys(("run", "task", "method"), pl.String),
    **dict.fromkeys(("tokens", "predicted", "low", "high"), pl.Float64),
}


@dataclass(frozen=True)
class At:
    """What is forecast: the truth at a checkpoint, or its mean over several."""

    horizon: float
    step: int
    tokens: Array  # of the checkpoints
    truth: float | None


def at_horizons(data: TaskRun, options: ForecastingOptions) -> list[At]:
    """One for each horizon; without a checkpoint near it, the horizon itself and no truth."""
    found = []
    for horizon in options.horizons:
        tokens = horizon * data.tokens_at_cut
        distance = (pl.col("tokens") / tokens - 1).abs()
        near = data.after.filter(distance <= options.horizon_tolerance + 1e-9).sort(distance)
        near = near.head(1) if options.at_horizon == "nearest" else near
        if near.is_empty():
            found.append(At(horizon, round(horizon * data.step_at_cut), np.array([tokens]), None))
        else:
            found.append(At(horizon, near["step"][0], near["tokens"].to_numpy().astype(float), near["value"].mean()))
    return found


def _forecast_all(
    observed: pl.DataFrame, of_solutions: Mapping[tuple, pl.DataFrame], options: ForecastingOptions, of_truth: dict
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The tables forecasts, fits and paths."""
    from tqdm import tqdm

    forecasts, fits, paths = [], [], []
    quick = options.model_copy(update={"bootstrap_replicates": min(options.bootstrap_replicates, COMPARED_REPLICATES)})
    pairs = list(task_runs(observed, of_solutions, **of_truth))
    unchecked = [f"{data.run}/{data.task}" for data in pairs if without_first(data) is None]
    if unchecked:
        log.warning(
            "%d of %d run/task (%s ...) have too few checkpoints to try their forecasts without the first ones",
            *(len(unchecked), len(pairs), unchecked[0]),
        )
    to_forecast = {f"{data.run}/{data.task}": at_horizons(data, options) for data in pairs}
    _tell_unjudged(to_forecast, options)
    for data, wanted in tqdm(zip(pairs, to_forecast.values()), "forecasts", len(pairs), mininterval=PROGRESS_SECONDS):
        if all(at.truth is None for at in wanted):
            log.warning(
                "run %s, task %s: no checkpoint near any horizon; its forecasts are not judged", data.run, data.task
            )
        reliability, about = about_truth(data)
        later = without_first(data)
        again = {} if later is None else worth_comparing(methods(later, quick))
        last = max(float(data.after["tokens"].max() or 0), *(at.tokens.max() for at in wanted))
        grid = np.geomspace(data.truth.t[0] * data.tokens_at_cut, last, PATH_POINTS)
        for (method, kind), made in methods(data, options).items():
            key = {"run": data.run, "task": data.task, "method": method}
            rows = list(_judge(made, data, wanted, options))
            if (method, kind) in again:
                other = interval(again[method, kind], later, *_times(wanted), quick, of_curve=True)
                rows = compared_without_first(rows, other, data)
            of_method = {"kind": kind, "fallback": made.fallback, "reliability": reliability}
            forecasts += [key | of_method | row | {"caution": "; ".join(about + row["caution"])} for row in rows]
            fits += made.fits
            point, low, high = interval(made, data, grid, [np.array([i]) for i in range(len(grid))], options)
            paths.append(
                pl.DataFrame({"tokens": grid, "predicted": point, "low": low, "high": high})
                .with_columns(**{name: pl.lit(text) for name, text in key.items()})
                .select(list(PATHS_SCHEMA))
            )
    return (
        pl.DataFrame(forecasts, schema=FORECASTS_SCHEMA),
        pl.DataFrame(fits, schema=FITS_SCHEMA),
        pl.concat(paths),
    )


def _judge(made: Forecaster, data: TaskRun, wanted: Sequence[At], options: ForecastingOptions) -> Iterator[dict]:
    """The rows of a method's forecasts; `caution` is a list here."""
    tokens, groups = _times(wanted)
    free = made.point(tokens / data.tokens_at_cut)
    for at, group, predicted, low, high in zip(wanted, groups, *interval(made, data, tokens, groups, options)):
        cautions = about_forecast(made, data, free[group].mean(), (low, high), options)
        if NO_INTERVAL in cautions:
            low, high = np.nan, np.nan
        yield _judged(at, predicted, low, high) | {"caution": cautions}


def _times(wanted: Sequence[At]) -> tuple[Array, list[Array]]:
    """All tokens of what is forecast (T,), and which of them belong to each."""
    ends = np.cumsum([len(at.tokens) for at in wanted])
    groups = [np.arange(end - len(at.tokens), end) for end, at in zip(ends, wanted)]
    return np.concatenate([at.tokens for at in wanted]), groups


def _judged(at: At, predicted: float, low: float, high: float) -> dict:
    """One forecast; `low` and `high` are NaN where nothing is known of them, and null in the table."""
    judged, known = at.truth is not None, bool(np.isfinite(low))
    return {
        **{"horizon": at.horizon, "step": at.step, "tokens": float(at.tokens.mean()), "truth": at.truth},
        **{"predicted": predicted, "low": low if known else None, "high": high if known else None},
        "error": predicted - at.truth if judged else None,
        "covered": low <= at.truth <= high if judged and known else None,
    }


def _tell_unjudged(wanted: Mapping[str, Sequence[At]], options: ForecastingOptions) -> None:
    """Horizons at which some or all truths are missing. `wanted`: run/task -> what is forecast."""
    for number, horizon in enumerate(options.horizons):
        without = [where for where, found in wanted.items() if found[number].truth is None]
        if without:
            log.warning(
                "horizon %gx: %d of %d run/task (%s ...) have no truth within %g %% of it; their forecasts there are "
                "not judged, and errors do not cover them",
                *(horizon, len(without), len(wanted), without[0], 100 * options.horizon_tolerance),
            )


def _other_runs(observed: pl.DataFrame, options: ForecastingOptions, of_truth: dict) -> pl.DataFrame:
    """The forecast from finished runs: their truth at a horizon, regressed on their truth at the cut."""
    rows = []
    values = {
        (data.task, data.run, at.horizon): (data, at)
        for data in task_runs(observed, {}, **of_truth)
        for at in at_horizons(data, options)
    }
    for (task, run, horizon), (data, at) in values.items():
        others = [
            (other.truth.value[-1], end.truth)
            for (its_task, its_run, its_horizon), (other, end) in values.items()
            if (its_task, its_horizon) == (task, horizon) and its_run != run and end.truth is not None
        ]
        if others:
            key = {"run": run, "task": task, "method": OTHER_RUNS, "kind": "baseline"}
            predicted, low, high, fallback = from_other_runs(np.array(others), data, options)
            found, about = about_truth(data)
            about = about if np.isfinite(low) else [*about, NO_INTERVAL_OF_RUNS]
            rows.append(
                key
                | _judged(at, predicted, low, high)
                | {"fallback": fallback, "reliability": found, "caution": "; ".join(about)}
            )
    return pl.DataFrame(rows, schema=FORECASTS_SCHEMA)


def rehearse(observed: pl.DataFrame, options: ForecastingOptions, *, higher_is_better: bool = True) -> pl.DataFrame:
    """REHEARSAL_SCHEMA: forecasts of the truth up to the cut from a share of it; best first.

    Every task of every run is fitted up to `rehearsal` times the cut, or further, up to where every method that can be
    fitted has the checkpoints for it (`_rehearsal_step`). `rmse` is the root mean square error over the checkpoints
    between there and the cut, tasks and runs where some method was really fitted. Where another one fell back to a
    constant, the error of the last value counts for it, so that a fallback wins nothing. Chosen is the least `rmse` of
    proxies and baselines that were fitted somewhere: none, if the last value alone was. Controls are not chosen.
    """
    if options.rehearsal is None:
        return pl.DataFrame(schema=REHEARSAL_SCHEMA)
    known, share = observed.filter("in_fit"), options.rehearsal
    quick = options.model_copy(update={"bootstrap_replicates": 0})
    rows, shares, left_out = [], {}, []
    for (run, task), part in known.group_by("run", "task", maintain_order=True):
        where, early = f"{run}/{task}", _rehearsal_step(part, options)
        if early is None:
            left_out.append(where)
            continue
        shares[where] = max(share, early / options.fit_up_to_step)
        part = part.with_columns(in_fit=pl.col("step") <= early)
        [data] = task_runs(part, {}, higher_is_better=higher_is_better, chance={})
        t, truth = data.after["tokens"].to_numpy() / data.tokens_at_cut, data.after["value"].to_numpy()
        for (method, kind), made in methods(data, quick).items():
            squares = (bounded(made.point(t), data, options) - truth) ** 2
            of_method = {"method": method, "kind": kind, "where": where, "fitted": made.fitted, "why": made.fallback}
            rows += [of_method | {"at": number, "square": square} for number, square in enumerate(squares)]
    if left_out:
        log.warning(
            "no rehearsal of %d of %d run/task (%s ...): up to step %d they have fewer than %d checkpoints for a fit "
            "and one to be forecast (forecasting.rehearsal)",
            *(len(left_out), len(left_out) + len(shares), left_out[0], options.fit_up_to_step),
            CURVES["power"].parameters + 1,
        )
    if not rows:
        log.warning("no method is chosen: there is no rehearsal")
        return pl.DataFrame(schema=REHEARSAL_SCHEMA)
    wider = {where: found for where, found in shares.items() if found > share}
    if wider:
        log.warning(
            "rehearsal: %d of %d run/task (%s ...) are fitted up to %.2f of the cut, not %g: their checkpoints up to "
            "there are too few for every method",
            *(len(wider), len(shares), next(iter(wider)), max(wider.values()), share),
        )
    table = _rehearsed(pl.DataFrame(rows, infer_schema_length=None)).with_columns(share=pl.lit(max(shares.values())))
    for method, note in table.filter(pl.col("note") != "", pl.col("kind") != "control").select("method", "note").rows():
        log.warning("rehearsal: %s %s", method, note)
    chosen = table.filter("chosen")
    if chosen.is_empty():
        log.warning("no method is chosen: in the rehearsal all but the last value fell back to a constant")
    for method, rmse, forecasts in chosen.select("method", "rmse", "forecasts").iter_rows():
        log.info("chosen in the rehearsal: %s, with an error of %.4f over %d forecasts", method, rmse, forecasts)
    return table.select(list(REHEARSAL_SCHEMA))


def _rehearsal_step(rows: pl.DataFrame, options: ForecastingOptions) -> int | None:
    """The last step that the rehearsal of one task of a run fits: `rehearsal` times the cut, or further if need be.

    So far that every method has the checkpoints that its curve and link need, of those methods that have them before
    the last truth. None if there is no such method, or no truth left to forecast.
    """
    of_series = {name: part["step"].sort().to_list() for (name,), part in rows.group_by("series")}
    truth, curve, link = of_series.pop(TRUTH), CURVES["power"].parameters, LINK_PARAMETERS
    needed = truth[curve : curve + 1]
    for steps in of_series.values():
        common = sorted({*steps} & {*truth})
        if len(steps) > curve and len(common) > link:
            needed.append(max(steps[curve], common[link]))
    possible = [step for step in needed if step < truth[-1]]
    step = max([int(options.fit_up_to_step * options.rehearsal + 1e-9), *possible])
    return step if possible and step < truth[-1] else None


def _rehearsed(rows: pl.DataFrame) -> pl.DataFrame:
    """The table of the rehearsal but for its share. `rows`: method, kind, where, fitted, why, at, square."""
    competes = (pl.col("kind") != "control") & (pl.col("method") != LAST_VALUE)
    judged = rows.filter((competes & pl.col("fitted")).any().over("where"))
    nothing = judged.is_empty()
    judged = rows if nothing else judged
    names = rows.select("method", "kind").unique(maintain_order=True)
    last = judged.filter(method=LAST_VALUE).select("where", "at", last="square")
    judged = names.join(last, how="cross").join(
        judged.drop("kind"), on=["method", "where", "at"], how="left", maintain_order="left"
    )
    own = pl.col("fitted") | (pl.col("kind") == "control") | nothing
    judged = judged.with_columns(square=pl.when(own).then("square").otherwise("last"))
    table = judged.group_by("method", "kind", maintain_order=True).agg(
        rmse=pl.col("square").mean().sqrt(),
        forecasts=pl.len().cast(pl.Int64),
        fitted=pl.col("where").filter("fitted").n_unique().cast(pl.Int64),
        pairs=pl.col("where").n_unique().cast(pl.Int64),
    )
    table = table.join(_fallbacks(rows), on="method", how="left", maintain_order="left")
    can_win = (pl.col("kind") != "control") & (pl.col("fitted") > 0)
    best = [] if nothing else table.filter(can_win).sort("rmse", maintain_order=True)["method"].to_list()[:1]
    return table.sort("rmse", maintain_order=True).with_columns(
        pl.col("note").fill_null(""), chosen=pl.col("method").is_in(best)
    )


def _fallbacks(rows: pl.DataFrame) -> pl.DataFrame:
    """method, note: where a method fell back in the rehearsal, and why."""
    fell = rows.filter(~pl.col("fitted")).unique(["method", "where"], keep="first", maintain_order=True)
    return fell.group_by("method", maintain_order=True).agg(
        note=pl.format(
            "fell back in {} of {} run/task ({} ...): {}",
            *(pl.len(), pl.lit(rows["where"].n_unique()), pl.col("where").first()),
            pl.col("why").unique(maintain_order=True).head(3).str.join("; "),
        )
    )


REHEARSAL_SCHEMA = {
    **dict.fromkeys(("method", "kind"), pl.String),
    **{"rmse": pl.Float64, "forecasts": pl.Int64},
    # Run/task in which the method was really fitted, of those that are counted; the largest share of the cut fitted.
    **{"fitted": pl.Int64, "pairs": pl.Int64, "share": pl.Float64, "note": pl.String, "chosen": pl.Boolean},
}


def about_choice(rehearsal: pl.DataFrame, options: ForecastingOptions) -> str:
    """What a figure says of the method chosen in advance; "" where the rehearsal went as it was ordered."""
    if options.rehearsal is None:
        return ""
    if rehearsal.is_empty():
        return "No method was chosen in advance: the checkpoints up to the cut are too few for a rehearsal."
    if not rehearsal["chosen"].any():
        return "No method was chosen in advance: in the rehearsal every method fell back to a constant."
    share, forecasts = rehearsal.filter("chosen").select("share", "forecasts").row(0)
    if share <= options.rehearsal:
        return ""
    return f"Chosen by a rehearsal up to {share:.2g} of the cut ({options.rehearsal:g} holds too few checkpoints), " + (
        f"over {forecasts} forecast{'s' if forecasts > 1 else ''}."
    )


# --- errors ---

ERRORS_SCHEMA = {
    **dict.fromkeys(("method", "kind", "task"), pl.String),
    **dict.fromkeys(("horizon", "rmse", "mae", "task_rmse", "rmse_low", "rmse_high", "coverage"), pl.Float64),
    **{"forecasts": pl.Int64, "unjudged": pl.Int64, "best_baseline": pl.String},
    **dict.fromkeys(("difference", "difference_low", "difference_high"), pl.Float64),
    "caution": pl.String,
}


def errors_table(forecasts: pl.DataFrame, options: ForecastingOptions) -> pl.DataFrame:
    """RMSE, MAE and coverage of every method at every horizon, of each task and of all; best first within a horizon.

    `task_rmse` is the mean over tasks of their RMSE. Intervals are percentiles of a bootstrap that draws tasks and runs
    apart, since errors of one task, or of one run, are alike; null where there is but one of both. The difference, for
    all tasks, is the RMSE less that of the best baseline of the horizon, over the forecasts that both made. `forecasts`
    were judged, `unjudged` have no truth; at a horizon where none has, nothing but their number is known.
    """
    judged = forecasts.filter(pl.col("error").is_not_null())
    key = ["method", "kind", "horizon"]
    error = pl.col("error")
    summary = [(error**2).mean().sqrt().alias("rmse"), error.abs().mean().alias("mae")]
    summary += [pl.col("covered").cast(pl.Float64).mean().alias("coverage"), pl.len().cast(pl.Int64).alias("forecasts")]
    of_tasks = judged.group_by(*key, "task", maintain_order=True).agg(summary).with_columns(task_rmse="rmse")
    mean = of_tasks.group_by(key).agg(task_rmse=pl.col("rmse").mean())
    of_all = judged.group_by(key, maintain_order=True).agg(summary).join(mean, on=key).with_columns(task=pl.lit("all"))
    compared = [
        _compared(horizon, rows, options) for (horizon,), rows in judged.group_by("horizon", maintain_order=True)
    ]
    intervals = pl.DataFrame(sum(compared, []), schema=COMPARED_SCHEMA)
    table = pl.concat([of_all.join(intervals, on=["method", "horizon"]), of_tasks], how="diagonal")
    made = pl.concat([forecasts.with_columns(task=pl.lit("all")), forecasts], how="diagonal")
    made = made.group_by(*key, "task", maintain_order=True).agg(unjudged=error.null_count().cast(pl.Int64))
    table = made.join(table, on=[*key, "task"], how="left", maintain_order="left")
    table = table.with_columns(pl.col("forecasts").fill_null(0), pl.col("caution").fill_null(""))
    table = table.sort(pl.col("task") != "all", "task", "horizon", "rmse", nulls_last=True, maintain_order=True)
    return table.select(pl.col(name).cast(kind) for name, kind in ERRORS_SCHEMA.items())


def _with_noisy_truths(errors: pl.DataFrame, forecasts: pl.DataFrame) -> pl.DataFrame:
    """The errors with a caution of those truths that are noise, or do not vary."""
    judged = forecasts.filter(pl.col("error").is_not_null())
    judged = pl.concat([judged.with_columns(task=pl.lit("all")), judged])
    key = ["method", "horizon", "task"]
    noisy = judged.filter(has_caution(TRUTH_IS_NOISE) | has_caution(TRUTH_IS_CONSTANT)).group_by(key).agg(n=pl.len())
    text = pl.format("{} of {} truths are noise or constant", "n", "forecasts")
    caution = pl.concat_str(pl.when(pl.col("caution") != "").then("caution"), text, separator="; ", ignore_nulls=True)
    return errors.join(noisy, on=key, how="left", maintain_order="left").with_columns(caution).drop("n")


COMPARED_SCHEMA = (
    dict.fromkeys(("method", "best_baseline", "caution"), pl.String)
    | {"horizon": pl.Float64}
    | dict.fromkeys(("rmse_low", "rmse_high", "difference", "difference_low", "difference_high"), pl.Float64)
)


def _compared(horizon: float, rows: pl.DataFrame, options: ForecastingOptions) -> list[dict]:
    """Of every method at one horizon: the interval of its RMSE, and its difference to the best baseline."""
    tables = _error_tables(rows)
    shape = next(iter(tables.values())).shape
    samples = min(np.prod([float(comb(2 * n - 1, n)) for n in shape]), options.bootstrap_replicates)
    caution = FEW_UNITS if 1 < samples < tail_samples(options.confidence) else ""
    weights, once = _two_way_weights(shape, options), np.ones((1, *shape))
    baselines = rows.filter(kind="baseline")["method"].unique(maintain_order=True)
    best = min(baselines, key=lambda method: _rmse(tables[method], once).item())
    found = []
    for method, errors in tables.items():
        row = dict.fromkeys(COMPARED_SCHEMA) | {"method": method, "horizon": horizon, "best_baseline": best}
        row["caution"] = caution
        found.append(row | _intervals(errors, tables[best], weights, options))
    return found


def _error_tables(rows: pl.DataFrame) -> dict[str, Array]:
    """Method -> its errors (tasks, runs), NaN where it made no forecast."""
    tasks, runs = rows["task"].unique().sort().to_list(), rows["run"].unique().sort().to_list()
    tables = {}
    for (method,), made in rows.group_by("method", maintain_order=True):
        tables[method] = np.full((len(tasks), len(runs)), np.nan)
        for task, run, error in made.select("task", "run", "error").iter_rows():
            tables[method][tasks.index(task), runs.index(run)] = error
    return tables


def _two_way_weights(shape: tuple[int, int], options: ForecastingOptions) -> Array:
    """How often every task and run is drawn -> (B, tasks, runs), both from a stream of random numbers of their own.

    From one stream as many tasks as runs would be drawn in the very same way.
    """
    streams = np.random.SeedSequence(options.seed).spawn(len(shape))
    of_tasks, of_runs = (
        bootstrap_weights(n, options.bootstrap_replicates, np.random.default_rng(stream))
        for n, stream in zip(shape, streams, strict=True)
    )
    return of_tasks[:, :, None] * of_runs[:, None]


def _rmse(errors: Array, weights: Array) -> Array:
    """errors (tasks, runs), weights (B, tasks, runs) -> (B,); NaN in a sample without a forecast."""
    there = ~np.isnan(errors)
    count = weights[:, there].sum(1)
    squares = weights[:, there] @ errors[there] ** 2
    return np.sqrt(np.divide(squares, count, out=np.full(len(weights), np.nan), where=count > 0))


def _intervals(errors: Array, baseline: Array, weights: Array, options: ForecastingOptions) -> dict:
    both = np.where(np.isnan(baseline), np.nan, errors), np.where(np.isnan(errors), np.nan, baseline)
    once = np.ones((1, *errors.shape))
    row = {}
    if not np.isnan(both[0]).all():
        row["difference"] = float((_rmse(both[0], once) - _rmse(both[1], once)).item())
    if errors.size > 1:
        row["rmse_low"], row["rmse_high"] = map(float, percentiles(_rmse(errors, weights), options.confidence))
    if errors.size > 1 and not np.isnan(both[0]).all():
        samples = _rmse(both[0], weights) - _rmse(both[1], weights)
        row["difference_low"], row["difference_high"] = map(float, percentiles(samples, options.confidence))
    return row
