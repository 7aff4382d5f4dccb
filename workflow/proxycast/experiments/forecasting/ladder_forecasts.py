"""Forecasts by the two-step law over N and D (`laws.two_step`), learnt from the other runs of a study.

For a run, step 1 is fitted to the ends of all other runs and to what was observed of this one last; step 2 to their
checkpoints and to those of this run up to its cut. Any statistic of the study stands in the place of the ladder's task
loss. The method `two_step` is the median over the proxies, as `pooled` is; a single statistic is it alone. As with
`other_runs` no rehearsal can choose it: a rehearsal hides what lies beyond all cuts, and the ends of other runs are
what the law is made of. For a model that was not run (`forecasting.models`) both steps have all runs, whole.

Intervals are those of CV+ (Barber, Candes, Ramdas and Tibshirani, 2021, Annals of Statistics 49, section 3): the runs
are left out in `FOLDS` parts, so that of them is known what is known of the run that is forecast, and each is forecast
at its own horizon; how far these forecasts miss is laid around the forecast of the same law. They need 9 other runs
for 90 %.

The protocol of docs/measured/ladder.md was written down before its first number was seen. Of OLMo's ladder each of the
16 runs is forecast from its first quarter (config/published_ladder.yaml), and the errors at 4x over 8 tasks compared:
`two_step` on the task's bits per byte against `other_runs`, the method chosen in advance, and the last value, with the
paired interval of the best baseline. Then OLMo-2 7B's end from all 16 runs, on three losses: the task's bits per byte,
their mean over the eight tasks, and the accuracy itself (taken from 1). A method wins if the interval of the difference
leaves out 0. Neither the recipe nor its constants were changed afterwards, only the number of starts of the search.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import polars as pl
from tqdm import tqdm

from proxycast.config.experiments.forecasting_options import BASELINE_SERIES, ForecastingOptions
from proxycast.experiments.arrays import Array
from proxycast.experiments.forecasting import cautions
from proxycast.experiments.forecasting.forecasts import (
    FORECASTS_SCHEMA,
    PATH_POINTS,
    PATHS_SCHEMA,
    AtHorizon,
    at_horizons,
    forecast_row,
)
from proxycast.experiments.forecasting.methods import TWO_STEP, bounded
from proxycast.experiments.forecasting.observed import TRUTH, TaskRun, task_runs
from proxycast.experiments.forecasting.run_end import End
from proxycast.experiments.laws.two_step import LadderRun, TwoStepLaw, as_loss, fit_two_step, lacking
from proxycast.jobs import PROGRESS_SECONDS
from proxycast.options import InputError
from proxycast.proxy_formulas import SIGNS

log = logging.getLogger(__name__)

FOLDS = 5
NO_INTERVAL = "no interval: too few other runs"
EXTRAPOLATED = "the law goes beyond its runs"
COEFFICIENTS = (
    *("log_a", "alpha", "log_b", "beta", "floor"),
    *("height", "midpoint", "slope", "greatest"),
)
TWO_STEP_SCHEMA = {
    **dict.fromkeys(("kind", "run", "task", "method"), pl.String),
    **dict.fromkeys(("parameters", "tokens", "predicted", "low", "high", "truth", "error"), pl.Float64),
    **dict.fromkeys(COEFFICIENTS, pl.Float64),
    **dict.fromkeys(("runs", "sizes"), pl.Int64),
    # N, D and N D that are forecast, as multiples of the largest that were fitted.
    **dict.fromkeys(("parameters_beyond", "tokens_beyond", "flops_beyond"), pl.Float64),
    "note": pl.String,
}


@dataclass(frozen=True)
class Model:
    """A model that is forecast from all runs."""

    name: str
    parameters: float
    tokens: float
    truth: Mapping[str, float]  # task -> what it scored, where that is known


@dataclass(frozen=True)
class Member:
    """One run of a ladder, for one task and statistic."""

    data: TaskRun
    wanted: Sequence[AtHorizon]
    whole: LadderRun
    observed: LadderRun  # up to the cut

    def accuracy(self, values: Array) -> Array:
        """From the truth's unit to accuracy, or back: 1 less an error rate."""
        return values if self.data.higher_is_better else 1 - values

    def forecast(self, law: TwoStepLaw) -> Array:
        """The truth at each horizon (H,), as `law` has it."""
        points = [law(self.whole.parameters, at.tokens).mean() for at in self.wanted]
        return self.accuracy(np.array(points))


@dataclass(frozen=True)
class Forecast:
    """A forecast at H points, and those of the laws that were fitted without the fold of each other run."""

    point: Array  # (H,)
    of_others: dict[str, tuple[Array, Array]]  # run -> the forecast without its fold, its own error, NaN: not known
    laws: tuple[TwoStepLaw, ...]  # several: `point` is their median


def parameters_of(checkpoints: pl.DataFrame) -> dict[str, float]:
    """Run -> N, by its training compute 6 N D; runs without a known compute are left out."""
    if "flops" not in checkpoints.columns:
        return {}
    known = checkpoints.filter(pl.col("tokens") > 0, pl.col("flops") > 0)
    ratios = known.group_by("run").agg((pl.col("flops") / 6 / pl.col("tokens")).median())
    return {run: float(f"{ratio:.9g}") for run, ratio in ratios.iter_rows()}  # N is whole, the ratio is nearly so


def models_to_forecast(
    checkpoints: pl.DataFrame, targets: pl.DataFrame, metric: str, options: ForecastingOptions
) -> list[Model]:
    """`options.models`, those that are runs with their N, D and truth; `InputError` for one without N or D."""
    found, sizes = [], parameters_of(checkpoints)
    for name, given in options.models.items():
        truths = checkpoints.filter(run=name).join(targets.filter(metric=metric), on="checkpoint").sort("step")
        is_run = len(truths) > 0
        if is_run and given.tokens:
            raise InputError(
                f"forecasting.models.{name}.tokens: found {given.tokens:g}, but {name} is a run whose last checkpoint "
                f"has {truths['tokens'][-1]:g}; leave the key out, or give the model another name"
            )
        tokens = truths["tokens"][-1] if is_run else given.tokens
        for key, value in (("parameters", given.parameters or sizes.get(name)), ("tokens", tokens)):
            if not value:
                runs = ", ".join(checkpoints["run"].unique().sort().to_list())
                raise InputError(
                    f"forecasting.models.{name}.{key}: missing; give it, or the name of a run of known N: {runs}"
                )
        at_end = truths.filter(pl.col("tokens") == tokens)  # a task may have been measured last before the end
        last = at_end.group_by("task", maintain_order=True).agg(pl.col("value").last())
        parameters = given.parameters or sizes[name]
        found.append(Model(name, parameters, float(tokens), dict(last.iter_rows())))
    return found


def lacks(checkpoints: pl.DataFrame) -> str:
    """What the runs lack for a law, in words; "" for nothing."""
    sizes = parameters_of(checkpoints)
    ends = checkpoints.group_by("run", maintain_order=True).agg(pl.col("tokens").max()).iter_rows()
    return lacking([(sizes[run], float(tokens)) for run, tokens in ends if run in sizes])


def forecasts_by_two_step(
    observed: pl.DataFrame,
    checkpoints: pl.DataFrame,
    models: Sequence[Model],
    options: ForecastingOptions,
    of_truth: dict,
    end: End | None = None,
) -> dict[str, pl.DataFrame]:
    """The tables forecasts and paths of the runs, and two_step: every law, with the forecast at the last horizon.

    `observed`, `of_truth`: as for `forecast_all`. `checkpoints`: those of the runs, without those of `models`. Empty
    where the runs are too few or too much alike, which one line of the log says.
    """
    reason, sizes = lacks(checkpoints), parameters_of(checkpoints)
    if reason:
        # A study of one run has no ladder in mind.
        log.log(logging.WARNING if observed["run"].n_unique() > 1 else logging.INFO, "no %s: %s", TWO_STEP, reason)
    of_tasks: dict[str, list[TaskRun]] = {}
    for data in [] if reason else task_runs(observed, {}, **of_truth):
        of_tasks.setdefault(data.task, []).append(data)
    forecasts, paths, laws = [], [], []
    for task, members in tqdm(of_tasks.items(), "two-step laws", mininterval=PROGRESS_SECONDS):
        wanted = {data.run: at_horizons(data, options, end) for data in members}
        ladders = {}
        for name in dict.fromkeys([*options.proxies_of(task), *BASELINE_SERIES]):
            ladder = _ladder(name, observed.filter(task=task), members, wanted, sizes, options)
            if isinstance(ladder, str):
                log.warning("no %s of %s on %s: %s", TWO_STEP, task, name, ladder)
            elif ladder:
                ladders[name] = ladder
        for method, kind, ladder, of_runs, of_models in _methods(
            ladders, models, options.proxies_of(task), options.proxies
        ):
            for run, found in of_runs.items():
                rows = _rows_of_run(found, ladder[run], options)
                key = {"run": run, "task": task, "method": method}
                forecasts += [key | {"kind": kind} | row for row in rows]
                paths.append(_path(found, ladder[run], key))
                laws.append(_law_row(found, key | {"kind": "run"} | _of_run(ladder[run], rows[-1])))
            laws += _rows_of_models(of_models, models, ladder, {"task": task, "method": method}, options)
    table = pl.DataFrame(laws, schema=TWO_STEP_SCHEMA)
    _tell(table)
    return {
        "forecasts": pl.DataFrame(forecasts, schema=FORECASTS_SCHEMA),
        "paths": pl.concat(paths) if paths else pl.DataFrame(schema=PATHS_SCHEMA),
        "two_step": table,
    }


def _ladder(
    name: str,
    observed: pl.DataFrame,
    members: Sequence[TaskRun],
    wanted: Mapping[str, Sequence[AtHorizon]],
    sizes: Mapping[str, float],
    options: ForecastingOptions,
) -> dict[str, Member] | str:
    """Run -> the run with the statistic `name` as its loss; in words, why there is no law. `observed`: of one task."""
    of_name = observed.filter(series=name).select("run", "step", loss="value")
    rows = observed.filter(series=TRUTH).join(of_name, on=["run", "step"], maintain_order="left")
    rows = rows.filter(pl.col("step") >= options.fit_from_step, pl.col("tokens") > 0, pl.col("run").is_in(list(sizes)))
    rows = rows.filter(pl.col("in_fit").any().over("run"))
    if rows.is_empty():
        return {}
    if not all(data.is_share for data in members):
        return "the truth is no share of problems, which the second step ends in"
    changes = rows.filter("in_fit").group_by("run").agg(pl.col("loss").last() - pl.col("loss").first())["loss"]
    sign = SIGNS.get(name.partition("/")[0], 1 if changes.sum() > 0 else -1)
    loss = as_loss(rows["loss"].to_numpy(), sign)
    if isinstance(loss, str):
        return loss
    parts = rows.with_columns(loss=pl.Series(loss)).partition_by("run", as_dict=True)
    found = {}
    for data in members:
        if (data.run,) in parts:
            part = parts[data.run,]
            whole, known = (_ladder_run(some, data, sizes[data.run]) for some in (part, part.filter("in_fit")))
            found[data.run] = Member(data, wanted[data.run], whole, known)
    return lacking([(member.whole.parameters, member.whole.tokens[-1]) for member in found.values()]) or found


def _ladder_run(rows: pl.DataFrame, data: TaskRun, parameters: float) -> LadderRun:
    tokens, loss, truth = (rows[column].to_numpy() for column in ("tokens", "loss", "value"))
    return LadderRun(data.run, parameters, tokens.astype(float), loss, truth if data.higher_is_better else 1 - truth)


def _methods(
    ladders: Mapping[str, dict[str, Member]],
    models: Sequence[Model],
    proxies: Sequence[str],
    of_all_tasks: Sequence[str],
) -> Iterator[tuple[str, str, dict[str, Member], dict[str, Forecast], Forecast]]:
    """Method, kind, ladder, run -> forecast, and the forecast of all models, of every statistic and of their pool."""
    of_runs = {name: {run: _forecast_run(run, ladder) for run in ladder} for name, ladder in ladders.items()}
    of_models = {name: _forecast_models(models, ladder) for name, ladder in ladders.items()}
    pool = [name for name in proxies if name in ladders] or list(ladders)[:1]
    if pool:
        # The same in every task, also where some have other statistics.
        kind = "baseline" if {*of_all_tasks} <= {*BASELINE_SERIES} else "proxy"
        runs = [run for run in ladders[pool[0]] if all(run in ladders[name] for name in pool)]
        made = {run: _median([of_runs[name][run] for name in pool]) for run in runs}
        yield TWO_STEP, kind, ladders[pool[0]], made, _median([of_models[name] for name in pool])
    for name, ladder in ladders.items() if len(ladders) > 1 else ():
        kind = "baseline" if name in BASELINE_SERIES else "proxy"
        yield f"{TWO_STEP}, {name}", kind, ladder, of_runs[name], of_models[name]


def _forecast_run(run: str, ladder: Mapping[str, Member]) -> Forecast:
    """The forecast of a run by the law of the other runs and of what was observed of it."""
    own, others = ladder[run], [member for name, member in ladder.items() if name != run]
    law = fit_two_step([*(other.whole for other in others), own.observed], own.data.chance or 0)
    of_others = {}
    for fold in _folds(others):
        names = {member.data.run for member in fold}
        known = [other.observed if other.data.run in names else other.whole for other in others]
        again = fit_two_step([*known, own.observed], own.data.chance or 0, law)
        for member in fold:
            truths = np.array([np.nan if at.truth is None else at.truth for at in member.wanted])
            of_others[member.data.run] = own.forecast(again), truths - member.forecast(again)
    return Forecast(own.forecast(law), of_others, (law,))


def _forecast_models(models: Sequence[Model], ladder: Mapping[str, Member]) -> Forecast:
    """The forecast of all models (H,) by the law of all runs; each other run is forecast at its end."""
    members = list(ladder.values())
    first = members[0]
    n, d = (np.array([getattr(model, key) for model in models]) for key in ("parameters", "tokens"))
    law = fit_two_step([member.whole for member in members], first.data.chance or 0)
    of_others = {}
    for fold in _folds(members) if models else ():
        names = {member.data.run for member in fold}
        kept = [member.whole for member in members if member.data.run not in names]
        again = fit_two_step(kept, first.data.chance or 0, law)
        for run in (member.whole for member in fold):
            error = run.accuracy[-1] - again(run.parameters, run.tokens[-1])
            of_others[run.name] = first.accuracy(again(n, d)), np.full(len(models), error)
    return Forecast(first.accuracy(law(n, d)), of_others, (law,))


def _folds(members: Sequence[Member]) -> list[list[Member]]:
    """The runs in `FOLDS` parts, or each alone."""
    ordered = sorted(members, key=lambda member: member.data.run)
    return [part for place in range(FOLDS) if (part := ordered[place::FOLDS])]


def _median(made: Sequence[Forecast]) -> Forecast:
    if len(made) == 1:
        return made[0]
    runs = [run for run in made[0].of_others if all(run in other.of_others for other in made)]
    of_others = {run: tuple(np.median([m.of_others[run] for m in made], axis=0)) for run in runs}
    return Forecast(np.median([m.point for m in made], axis=0), of_others, sum((m.laws for m in made), ()))


def _bounds(found: Forecast, confidence: float) -> tuple[Array, Array]:
    """Ends (H,) of the intervals of CV+; NaN where too few errors of other runs are known."""
    low, high = np.full_like(found.point, np.nan), np.full_like(found.point, np.nan)
    for place in range(len(found.point)):
        of_place = np.array([(here[place], abs(error[place])) for here, error in found.of_others.values()])
        known = of_place[np.isfinite(of_place[:, 1])] if len(of_place) else of_place
        below = floor((1 - confidence) * (len(known) + 1) + 1e-9)
        if below:
            low[place] = np.sort(known[:, 0] - known[:, 1])[below - 1]
            high[place] = np.sort(known[:, 0] + known[:, 1])[ceil(confidence * (len(known) + 1) - 1e-9) - 1]
    return low, high


def _rows_of_run(found: Forecast, member: Member, options: ForecastingOptions) -> list[dict]:
    """The rows of a run's forecasts, but for method and kind."""
    data = member.data
    reliability, about = cautions.about_truth(data)
    ends = (bounded(values, data, options) for values in (found.point, *_bounds(found, options.confidence)))
    rows = []
    for at, predicted, low, high in zip(member.wanted, *ends, strict=True):
        told = [*about, *([] if np.isfinite(low) else [NO_INTERVAL])]
        beyond = _extrapolation(found, member.whole.parameters, float(at.tokens.max()))
        told += [EXTRAPOLATED] if max(beyond) > 1 else []
        row = forecast_row(at, float(predicted), float(low), float(high))
        rows.append(row | {"fallback": "", "reliability": reliability, "caution": "; ".join(told)})
    return rows


def _extrapolation(found: Forecast, parameters: float, tokens: float) -> tuple[float, ...]:
    return tuple(round(float(factor), 6) for factor in found.laws[0].extrapolation(parameters, tokens))


def _path(found: Forecast, member: Member, key: dict) -> pl.DataFrame:
    last = max(member.whole.tokens[-1], *(at.tokens.max() for at in member.wanted))
    grid = np.geomspace(member.observed.tokens[0], last, PATH_POINTS)
    lines = [member.accuracy(law(member.whole.parameters, grid)) for law in found.laws]
    none = pl.lit(None, pl.Float64)
    columns = {**{name: pl.lit(text) for name, text in key.items()}, "low": none, "high": none}
    path = pl.DataFrame({"tokens": grid, "predicted": np.median(lines, axis=0)})
    return path.with_columns(**columns).select(list(PATHS_SCHEMA))


def _of_run(member: Member, last: dict) -> dict:
    """What the table of laws takes from a run's last forecast."""
    keys = ("tokens", "predicted", "low", "high", "truth", "error")
    return {"parameters": member.whole.parameters} | {key: last[key] for key in keys}


def _rows_of_models(
    found: Forecast, models: Sequence[Model], ladder: Mapping[str, Member], key: dict, options: ForecastingOptions
) -> list[dict]:
    """The law of all runs, and each model that it forecasts."""
    data = next(iter(ladder.values())).data
    points, low, high = (
        bounded(values, data, options) for values in (found.point, *_bounds(found, options.confidence))
    )
    rows = [_law_row(found, key | {"kind": "ladder"})]
    for place, model in enumerate(models):
        truth, known = model.truth.get(key["task"]), bool(np.isfinite(low[place]))
        of_model = {"run": model.name, "parameters": model.parameters, "tokens": model.tokens, "truth": truth}
        of_model |= {"predicted": float(points[place]), "error": None if truth is None else points[place] - truth}
        of_model |= {"low": float(low[place]) if known else None, "high": float(high[place]) if known else None}
        rows.append(_law_row(found, key | {"kind": "model"} | of_model))
    return rows


def _law_row(found: Forecast, of_row: dict) -> dict:
    """A row of TWO_STEP_SCHEMA: a law and what it forecasts; the coefficients of a median are those of none."""
    law = found.laws[0]
    row = dict.fromkeys(TWO_STEP_SCHEMA) | of_row
    row |= {"runs": len(law.parameters), "sizes": len({*law.parameters})}
    if row["parameters"]:
        beyond = _extrapolation(found, row["parameters"], row["tokens"])
        row |= dict(zip(("parameters_beyond", "tokens_beyond", "flops_beyond"), beyond, strict=True))
    if len(found.laws) > 1:
        return row | {"note": f"the median of {len(found.laws)} laws"}
    coefficients = dict(
        zip(COEFFICIENTS, (law.loss.log_a, law.loss.alpha, law.loss.log_b, law.loss.beta), strict=False)
    )
    coefficients |= {"floor": law.loss.floor} | {name: getattr(law.sigmoid, name) for name in COEFFICIENTS[5:]}
    note = f"at its bound: {', '.join(law.at_bounds)}" if law.at_bounds else ""
    return row | coefficients | {"note": note}


def _tell(laws: pl.DataFrame) -> None:
    """The log's lines on bounds and extrapolation."""
    single = laws.filter(pl.col("log_a").is_not_null())
    bounds = single["note"].str.strip_prefix("at its bound: ").str.split(", ").explode().drop_nulls()
    counts = bounds.filter(bounds != "").value_counts(sort=True)
    if len(counts):
        parts = [f"{name} ({count} of {len(single)} laws)" for name, count in counts.iter_rows()]
        log.warning("%s: coefficients at their bounds: %s", TWO_STEP, ", ".join(parts))
    far = laws.filter(pl.col("flops_beyond") > 1).sort("flops_beyond", descending=True).head(1)
    for row in far.iter_rows(named=True):
        log.warning(
            "%s: %s, at most for %s: %.3g times the largest N, %.3g times the longest D, %.3g times the most compute",
            *(TWO_STEP, EXTRAPOLATED, row["run"]),
            *(row["parameters_beyond"], row["tokens_beyond"], row["flops_beyond"]),
        )
