"""Intervals that hold: those of noise, widened by how far forecasts from earlier cuts of the run have missed.

A bootstrap tells of noise and not of a curve that is the wrong one, which is most of the error far from the cut. What
such curves miss is seen before the cut: every method is fitted up to earlier cuts, half an octave of compute apart, and
forecasts the truths from there to the cut. The score of such a forecast is what its error exceeds its noise by, for
each unit of the logarithm of its horizon: a curve with a slope that is wrong misses in proportion to that logarithm.
The interval of noise is widened on either side by the conformal quantile of the scores times the logarithm of its own
horizon (split conformal prediction of scaled scores: Lei et al., 2018, arXiv 1604.04173; of an interval: Romano et al.,
2019, arXiv 1905.03222).

A method's scores are those of all tasks of the run together. Where other runs have gone on beyond their cut, the scores
of their forecasts there are among them. A run that is too short to fit anything earlier has the scores of its last
value. Without any score an interval tells of noise alone, and a caution says so.

How much the intervals hold is measured before the cut as well: the forecasts from each earlier cut get intervals from
the scores that were known there, and count as covered or not.

Scores are not exchangeable: they come from earlier in the run, many from the same curves, and from shorter horizons. So
the coverage is no theorem here; docs/measured/intervals.md has what was measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.arrays import Array
from proxycast.experiments.forecasting.cautions import NO_REHEARSAL
from proxycast.experiments.forecasting.methods import CHOSEN, LAST_VALUE, bounded, fit_methods
from proxycast.experiments.forecasting.observed import Series, TaskRun
from proxycast.experiments.laws.curves import CURVES

OCTAVE = 0.5  # between two cuts, and between two horizons
REHEARSED_SCHEMA = {
    **dict.fromkeys(("run", "task", "method"), pl.String),
    "place": pl.Int64,  # of the earlier cut, counted back from the cut in steps of OCTAVE
    # As multiples of the tokens at the cut: the earlier cut, and what is forecast from it.
    **dict.fromkeys(("cut", "end"), pl.Float64),
    **dict.fromkeys(("horizon", "predicted", "truth", "noise", "score"), pl.Float64),
    "fitted": pl.Boolean,  # the checkpoints up to the earlier cut are enough for a curve
}
INTERVALS_SCHEMA = {
    **dict.fromkeys(("run", "method"), pl.String),
    # What an interval is widened by on either side, for each unit of the logarithm of its horizon.
    "growth": pl.Float64,
    **dict.fromkeys(("scores", "of_other_runs", "rehearsals"), pl.Int64),
    "rehearsal_coverage": pl.Float64,
}


def conformity_score(error: Array, noise: Array, horizon: Array) -> Array:
    """What errors exceed their noise by (both in the unit of the truth), for each unit of log horizon; 0 if nothing."""
    return np.maximum(np.abs(error) - noise, 0) / np.log(horizon)


def conformal_quantile(scores: Array, confidence: float) -> float:
    """What the next of `scores` (n,) stays below with this probability, were all exchangeable; NaN for none.

    The ceil((n + 1) confidence)-th smallest (Vovk, Gammerman and Shafer, 2005). Where n is too small for that one to
    exist (below 9 at 90 %), the largest score, or Student's interval of normal scores with mean 0 where that is wider.
    """
    # Imported here: it takes a second.
    from scipy.special import stdtrit

    n = len(scores)
    if not n:
        return np.nan
    rank = int(np.ceil((n + 1) * confidence - 1e-9))
    if rank <= n:
        return float(np.sort(scores)[rank - 1])
    return float(max(np.max(scores), stdtrit(n, (1 + confidence) / 2) * np.sqrt(np.mean(np.square(scores)))))


def with_conformal_intervals(
    forecasts: pl.DataFrame, paths: pl.DataFrame, pairs: Sequence[TaskRun], options: ForecastingOptions
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The forecasts and paths with wider intervals, and the table INTERVALS_SCHEMA of what they were widened by."""
    rehearsed = pl.DataFrame([row for data in pairs for row in _rehearsed(data, options)], schema=REHEARSED_SCHEMA)
    limits = [data.bounds if options.clip else (-np.inf, np.inf) for data in pairs]
    of_pairs = pl.DataFrame(
        [(data.run, data.task, data.tokens_at_cut, *limit) for data, limit in zip(pairs, limits)],
        schema=["run", "task", "tokens_at_cut", "least", "greatest"],
        orient="row",
    )
    made = forecasts.select("run", "method").unique(maintain_order=True).rows()
    intervals = _intervals(made, rehearsed, _scores_beyond(forecasts, of_pairs), options)
    truth, columns = pl.col("truth"), forecasts.columns
    forecasts = _widened(forecasts, intervals, of_pairs)
    alone = pl.col("growth").is_null() & pl.col("low").is_not_null()
    caution = (
        pl.when(pl.col("caution") == "").then(pl.lit(NO_REHEARSAL)).otherwise(pl.col("caution") + f"; {NO_REHEARSAL}")
    )
    forecasts = forecasts.with_columns(
        covered=(pl.col("low") <= truth) & (truth <= pl.col("high")),
        caution=pl.when(alone).then(caution).otherwise("caution"),
    )
    return forecasts.select(columns), _widened(paths, intervals, of_pairs).select(paths.columns), intervals


def about_rehearsals(intervals: pl.DataFrame, chosen: str | None) -> str:
    """How many truths the intervals held in rehearsals, of the method `chosen` or else of all; "" for none."""
    known = intervals.drop_nulls("rehearsal_coverage").filter(pl.col("method") != CHOSEN)
    known = known.filter(method=chosen) if chosen else known
    if known.is_empty():
        return ""
    count = known["rehearsals"].sum()
    held = (known["rehearsal_coverage"] * known["rehearsals"]).sum() / count
    whose = f"the intervals of {chosen}" if chosen else "the intervals"
    return f"In rehearsals before the cut, {whose} held {held:.0%} of {count} truths."


def _widened(table: pl.DataFrame, intervals: pl.DataFrame, of_pairs: pl.DataFrame) -> pl.DataFrame:
    """`table`: run, task, method, tokens, low, high. Up to the cut nothing is forecast, and nothing widened."""
    table = table.join(of_pairs, on=["run", "task"], how="left", maintain_order="left")
    table = table.join(intervals, on=["run", "method"], how="left", maintain_order="left")
    beyond = (pl.col("tokens") / pl.col("tokens_at_cut")).log().clip(0)
    reach = pl.col("growth").fill_null(0) * beyond
    return table.with_columns(
        low=(pl.col("low") - reach).clip("least", "greatest"), high=(pl.col("high") + reach).clip("least", "greatest")
    )


def _earlier_cuts(data: TaskRun) -> Iterator[tuple[int, TaskRun, Array, Array]]:
    """Place of an earlier cut, what was known there, and the truths between it and the cut: t, as multiples, and value.

    Steps of half an octave back from the cut, as far as there are checkpoints; one truth at each such step onwards.
    """
    t, value = data.truth.t, data.truth.value
    before = len(t)
    for place in range(1, 1 + int(np.floor(-np.log2(t[0]) / OCTAVE + 1e-9))):
        known = int(np.searchsorted(t, 2 ** (-OCTAVE * place) * (1 + 1e-9), side="right"))
        if known == before or not known:  # no checkpoint less than at the last place
            continue
        before, cut = known, t[known - 1]
        steps = np.log2(t[known:] / cut) / OCTAVE
        wanted = np.arange(1, 1 + int(np.floor(-np.log2(cut) / OCTAVE + 0.5)))
        nearest = np.abs(steps[None] - wanted[:, None]).argmin(1)
        nearest = np.unique(nearest[np.abs(steps[nearest] - wanted) < 0.5])
        if len(nearest):
            yield place, _up_to(data, cut), t[known:][nearest] / cut, value[known:][nearest]


def _up_to(data: TaskRun, cut: float) -> TaskRun:
    """What was known of `data` at `cut` times its cut, in multiples of that."""

    def known(series: Series) -> Series:
        early = series.t <= cut * (1 + 1e-9)
        return Series(series.t[early] / cut, series.value[early], series.standard_error[early])

    return replace(
        data,
        tokens_at_cut=data.tokens_at_cut * cut,
        step_at_cut=round(data.step_at_cut * cut),
        truth=known(data.truth),
        statistics={name: known(series) for name, series in data.statistics.items()},
        after=data.after.clear(),
    )


def _rehearsed(data: TaskRun, options: ForecastingOptions) -> Iterator[dict]:
    """Rows of REHEARSED_SCHEMA: of every method; where the checkpoints are too few for a curve, of the last value."""
    # Imported here: it takes a second.
    from scipy.special import ndtri

    quick = options.model_copy(update={"bootstrap_replicates": 0})
    normal = ndtri((1 + options.confidence) / 2)
    for place, early, horizon, truth in _earlier_cuts(data):
        fitted = len(early.truth.t) > CURVES["power"].parameters
        if fitted:
            found = {
                method: (bounded(made.point(horizon), early, options), normal * made.residuals.std())
                for (method, _), made in fit_methods(early, quick).items()
            }
        else:
            found = {LAST_VALUE: (np.full(len(horizon), early.truth.value[-1]), 0.0)}
        cut = early.tokens_at_cut / data.tokens_at_cut
        key = {"run": data.run, "task": data.task, "place": place, "cut": cut, "fitted": fitted}
        for method, (predicted, noise) in found.items():
            scores = conformity_score(predicted - truth, noise, horizon)
            for at, forecast, value, score in zip(horizon, predicted, truth, scores):
                row = {"method": method, "end": cut * at, "horizon": at, "predicted": forecast, "truth": value}
                yield key | row | {"noise": noise, "score": score}


def _scores_beyond(forecasts: pl.DataFrame, of_pairs: pl.DataFrame) -> pl.DataFrame:
    """run, method, score of the forecasts beyond the cut whose truth is known, but for those right behind it."""
    known = forecasts.filter(pl.col("error").is_not_null()).join(of_pairs, on=["run", "task"])
    horizon = pl.col("tokens") / pl.col("tokens_at_cut")
    low, high = pl.col("low").fill_null(pl.col("predicted")), pl.col("high").fill_null(pl.col("predicted"))
    excess = pl.max_horizontal(low - pl.col("truth"), pl.col("truth") - high, pl.lit(0.0))
    return known.filter(horizon > 2 ** (OCTAVE / 2)).select("run", "method", score=excess / horizon.log())


Scores = Mapping[tuple[str, str], dict[str, Array]]


def _intervals(
    made: Sequence[tuple[str, str]], rehearsed: pl.DataFrame, beyond: pl.DataFrame, options: ForecastingOptions
) -> pl.DataFrame:
    """INTERVALS_SCHEMA of every run and method that is `made`."""
    by_run = {
        key: {name: rows[name].to_numpy() for name in ("place", "cut", "end", "score", "fitted")}
        for key, rows in rehearsed.partition_by("run", "method", as_dict=True, maintain_order=True).items()
    }
    later = {key: rows["score"].to_numpy() for key, rows in beyond.partition_by("run", "method", as_dict=True).items()}
    runs, rows = list(dict.fromkeys(run for run, _ in made)), []
    for run, method in made:
        gone_on = [other for other in runs if other != run and (other, method) in later]
        others = [later[other, method] for other in gone_on]
        scores = [_own_scores(by_run, run, method, np.inf, 0), *others]
        growth = conformal_quantile(np.concatenate(scores), options.confidence)
        held = _held(by_run, run, method, gone_on, options)
        rows.append(
            {
                **{"run": run, "method": method, "growth": None if np.isnan(growth) else growth},
                **{"scores": sum(map(len, scores)), "of_other_runs": sum(map(len, others)), "rehearsals": len(held)},
                "rehearsal_coverage": float(held.mean()) if len(held) else None,
            }
        )
    return pl.DataFrame(rows, schema=INTERVALS_SCHEMA)


def _own_scores(by_run: Scores, run: str, method: str, end: float, place: int) -> Array:
    """The scores of a run's forecasts from cuts before `place`, of truths up to `end`; else those of its last value."""
    for name in (method, LAST_VALUE):
        if (found := by_run.get((run, name))) is not None:
            counts = (found["place"] > place) & (found["end"] <= end * (1 + 1e-9))
            counts &= found["fitted"] if (counts & found["fitted"]).any() else True
            if counts.any():
                return found["score"][counts]
    return np.empty(0)


def _held(by_run: Scores, run: str, method: str, gone_on: Sequence[str], options: ForecastingOptions) -> Array:
    """Whether the intervals of the forecasts from earlier cuts held, each made of the scores that were known there.

    `gone_on`: other runs that have scores beyond their cut, as the interval itself takes them.
    """
    own, held = by_run.get((run, method)), [np.empty(0, bool)]
    if own is None:
        return held[0]
    for place in np.unique(own["place"][own["fitted"]]):
        now = (own["place"] == place) & own["fitted"]
        known = [_own_scores(by_run, run, method, own["cut"][now].min(), place)]
        for other in gone_on:
            if (found := by_run.get((other, method))) is not None:
                known.append(found["score"][(found["place"] == place) & found["fitted"]])
        growth = np.nan_to_num(conformal_quantile(np.concatenate(known), options.confidence))
        held.append(own["score"][now] <= growth)
    return np.concatenate(held)
