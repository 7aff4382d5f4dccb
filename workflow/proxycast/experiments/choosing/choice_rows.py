"""Rows of the tables choices, decisions and margins: figures with their intervals, and why there is none.

Shapes: R rows, B bootstrap samples, P pairs.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.choices import DECISIONS, FIGURES, TOP_K, decision_figures
from proxycast.experiments.margins import (
    BINS,
    ENDLESS,
    Pairs,
    binned,
    gap_to_be_sure,
    slope_samples,
    slopes,
)
from proxycast.experiments.rank_statistics import pair_weights

ELSEWHERE = "no interval: it is computed at the study's budgets and at the last step of each size"


class Resampled(NamedTuple):
    """The candidates of a table, and the samples of them that every interval of it uses."""

    units: str  # "corpora" or "models"
    weights: Array  # (B, n)
    options: SelectionOptions

    @property
    def pair_weights(self) -> Array:
        return pair_weights(self.weights).T

    def ends(
        self, values: Array, samples: Array, worst: ArrayLike = 0.0, best: ArrayLike = 1.0
    ) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Ends of the intervals of `values` (...), `samples` (..., B), NaN where there is none, and where that is."""
        low, high = bootstrap.percentile_interval(samples, self.options.confidence)
        vague = np.full(np.shape(values), not self.enough)
        vague |= bootstrap.is_degenerate(values, low, high, worst, best)
        return np.where(vague, np.nan, low), np.where(vague, np.nan, high), vague

    @property
    def enough(self) -> bool:
        return bootstrap.enough_to_resample(self.weights.shape[1], self.options.confidence)

    def notes(self, vague: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.str_]:
        """Why each row has no interval: of each figure, whether it has none (R,)."""
        shape = next(iter(vague.values())).shape
        if not self.enough:
            return np.full(shape, bootstrap.too_few(self.units, self.weights.shape[1]))
        names = np.full(shape, "", dtype=object)
        for name, where in vague.items():
            names[where] = [f"{before}, {name}" if before else name for before in names[where]]
        told = bootstrap.all_alike(self.units)
        return np.array([f"{text}: {told}" if text else "" for text in names], dtype=object)


def choice_columns(
    points: Mapping[str, Array],
    samples: Mapping[str, Array] | None,
    random: Mapping[str, float],
    shares: Array,
    baseline: int | None,
    resampled: Resampled,
    greatest_regret: float,
) -> list[pl.Series]:
    """CHOICE_COLUMNS of R rows, from the figures `points` (R,) and their `samples` (R, B), if they were resampled.

    `random`: what chance is expected to get; `shares` (R,): regret over that of chance. `baseline`: the row that all
    regrets are compared with.
    """
    rows = len(points["regret"])
    columns, vague = {}, {}
    for name in FIGURES:
        columns[name] = points[name]
        low, high = np.full(rows, np.nan), np.full(rows, np.nan)
        if samples is not None:
            worst, best = (greatest_regret, 0) if name.startswith("regret") else (0, 1)
            low, high, vague[name] = resampled.ends(points[name], samples[name], worst, best)
        columns[f"{name}_low"], columns[f"{name}_high"] = low, high
        columns[f"random_{name}"] = np.full(rows, random[name])
    columns["regret_share"] = shares
    columns |= dict.fromkeys(("difference", "difference_low", "difference_high"), np.full(rows, np.nan))
    if baseline is not None:
        columns["difference"] = points["regret"] - points["regret"][baseline]
    if baseline is not None and samples is not None:
        ends = bootstrap.percentile_interval(
            samples["regret"] - samples["regret"][baseline], resampled.options.confidence
        )
        unsure = (vague["regret"] | vague["regret"][baseline]) & (np.arange(rows) != baseline)
        columns["difference_low"], columns["difference_high"] = (np.where(unsure, np.nan, end) for end in ends)
    notes = resampled.notes(vague) if samples is not None else np.full(rows, ELSEWHERE)
    found = [pl.Series(name, values, pl.Float64, nan_to_null=True) for name, values in columns.items()]
    return [*found, pl.Series("top_k", [TOP_K] * rows, pl.Int64), pl.Series("note", list(notes), pl.String)]


CHOICE_COLUMNS = [
    *("regret", "regret_low", "regret_high", "random_regret", "regret_share"),
    *("best_baseline", "difference", "difference_low", "difference_high"),
    *("top_k", "regret_top", "regret_top_low", "regret_top_high", "random_regret_top"),
    *("recall", "recall_low", "recall_high", "random_recall", "ndcg", "ndcg_low", "ndcg_high", "random_ndcg", "note"),
]


def decision_columns(signs: Array, truth: Array, resampled: Resampled) -> list[pl.Series]:
    """DECISION_COLUMNS of the decisions `signs` (R, P) by `truth` (n,) (`choices.decision_figures`)."""
    points = decision_figures(signs, truth)
    samples = decision_figures(signs, truth, resampled.pair_weights)
    columns, vague = {}, {}
    for name in DECISIONS:
        columns[name] = value = points[name][:, 0]
        low, high, vague[name] = resampled.ends(value, samples[name])
        columns[f"{name}_low"], columns[f"{name}_high"] = low, high
    i, j = np.triu_indices(len(truth), 1)
    truth = np.round(truth, DECIMALS)
    found = [pl.Series(name, values, pl.Float64, nan_to_null=True) for name, values in columns.items()]
    pairs = pl.Series("pairs", [int((truth[i] != truth[j]).sum())] * len(signs), pl.Int64)
    return [pairs, *found, pl.Series("note", list(resampled.notes(vague)), pl.String)]


DECISION_COLUMNS = ["pairs", *(f"{name}{end}" for name in DECISIONS for end in ("", "_low", "_high")), "note"]


def margin_table(labels: pl.DataFrame, pairs: Pairs, unit: str, sizes: Array, resampled: Resampled) -> pl.DataFrame:
    """A row for each of R `labels` and bin of the `unit`: `labels` and MARGIN_COLUMNS; empty bins are left out.

    `sizes` (R,): one unit, in the unit of the scores.
    """
    edges, drawn = BINS[unit], resampled.pair_weights
    number, mean, right = (values[..., 0] if n == 2 else values for n, values in enumerate(binned(pairs, edges)))
    low, high, vague = resampled.ends(right, binned(pairs, edges, drawn)[2])
    slope = slopes(pairs)
    slope_low, slope_high, _ = resampled.ends(slope, slope_samples(pairs, drawn), -np.inf, np.inf)
    endless = ~np.isfinite(slope)  # all right or all wrong: neither a slope nor its interval
    ends = {"slope": slope, "slope_low": slope_low, "slope_high": slope_high}
    ends = {name: np.where(endless, np.nan, values) for name, values in ends.items()}
    sure = {"gap_85": "slope", "gap_85_low": "slope_high", "gap_85_high": "slope_low"}
    ends["slope_high"] = np.where(ends["slope_high"] >= ENDLESS, np.inf, ends["slope_high"])
    ends |= {name: gap_to_be_sure(ends[of]) for name, of in sure.items()}
    ends["slope_high"] = np.where(np.isinf(ends["slope_high"]), np.nan, ends["slope_high"])
    columns = {"unit_size": np.repeat(sizes, len(edges)), "gap_from": np.tile(edges, len(labels))}
    columns |= {"gap_to": np.tile([*edges[1:], np.nan], len(labels)), "pairs": number.ravel(), "gap": mean.ravel()}
    columns |= {"right": right.ravel(), "right_low": low.ravel(), "right_high": high.ravel()}
    with np.errstate(invalid="ignore", over="ignore"):
        columns["fitted"] = 1 / (1 + np.exp(-ends["slope"][:, None] * mean)).ravel()
    columns |= {name: np.repeat(values, len(edges)) for name, values in ends.items()}
    table = pl.DataFrame([pl.Series(n, values, pl.Float64, nan_to_null=True) for n, values in columns.items()])
    where = np.repeat(np.arange(len(labels)), len(edges))
    notes = pl.Series("note", list(resampled.notes({"right": vague.ravel()})), pl.String)
    table = labels[where].with_columns(pl.lit(unit).alias("unit"), *table, notes)
    return table.with_columns(pl.col("pairs").cast(pl.Int64)).filter(pl.col("pairs") > 0)


MARGIN_COLUMNS = [
    *("unit", "unit_size", "gap_from", "gap_to", "pairs", "gap", "right", "right_low", "right_high", "fitted"),
    *("slope", "slope_low", "slope_high", "gap_85", "gap_85_low", "gap_85_high", "note"),
]
