"""One temperature a checkpoint: the T at which softmax(logits / T) has the least cross-entropy on the expert solutions.

A model that was post-trained may rank its tokens well and still be too sure of them; its loss is then large. One fitted
temperature takes that away and changes no rank (Guo et al., On Calibration of Modern Neural Networks, 2017, section
4.2). No downstream score is read, and generic text has no part in the fit.

Token statistics hold the log-probability of every token at each T of a grid. Between them the mean cross-entropy is the
polynomial in ln T through the five that are nearest to the lowest one. Its value at the fitted T is a sum of the five
with fixed weights, so it is the same sum for a task, a solution or a token.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.optimize import minimize_scalar

from proxycast.config.extraction import FEWEST_TEMPERATURES
from proxycast.extraction.schema import temperatures_of, tempered_schema
from proxycast.options import InputError
from proxycast.proxy_formulas import TEMPERED_LOGPROB
from proxycast.solutions.rows import GENERIC_TEXT

log = logging.getLogger(__name__)

# `cross_entropy`: of all scored tokens of the expert solutions, at T = 1, and `tempered_cross_entropy` at the fitted T,
# nats. `at_end`: no temperature of the grid lies beyond.
TEMPERATURES_SCHEMA = {
    "checkpoint": pl.String,
    "temperature": pl.Float64,
    "cross_entropy": pl.Float64,
    "tempered_cross_entropy": pl.Float64,
    "tokens": pl.Int64,
    "at_end": pl.Boolean,
}
_WEIGHTS = "temperature weights"


class Fit(NamedTuple):
    """`weights` (K,): sum to 1; their sum of the losses of the grid is the loss at `temperature`."""

    temperature: float
    weights: np.ndarray
    at_end: bool


def fit_temperature(temperatures: Sequence[float], losses: Sequence[float]) -> Fit:
    """The minimum over T of `losses` (K,), which are known at `temperatures` (K,), ascending.

    Where the least loss is at an end of the grid, it is that end: nothing is extrapolated.
    """
    lowest, weights = int(np.argmin(losses)), np.zeros(len(temperatures))
    if lowest in (0, len(temperatures) - 1):
        weights[lowest] = 1.0
        return Fit(float(temperatures[lowest]), weights, at_end=True)
    first = min(max(lowest - FEWEST_TEMPERATURES // 2, 0), len(temperatures) - FEWEST_TEMPERATURES)
    near = slice(first, first + FEWEST_TEMPERATURES)
    x, values = np.log(temperatures), np.asarray(losses, float)[near]
    found = minimize_scalar(
        lambda at: _lagrange(at, x[near]) @ values,
        bounds=(x[lowest - 1], x[lowest + 1]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    weights[near] = _lagrange(found.x, x[near])
    return Fit(float(np.exp(found.x)), weights, at_end=False)


def _lagrange(at: float, points: np.ndarray) -> np.ndarray:
    """Weights of the values at `points` in the polynomial through them, at `at`."""
    others = ~np.eye(len(points), dtype=bool)
    gaps = points[:, None] - points
    return np.array([np.prod((at - points[own]) / gaps[i][own]) for i, own in enumerate(others)])


def with_tempered(token_stats: pl.LazyFrame) -> tuple[pl.LazyFrame, pl.DataFrame]:
    """`token_stats` with the column `TEMPERED_LOGPROB` (nats, Float64), and the fits: TEMPERATURES_SCHEMA.

    The statistics must hold all scored tokens of a checkpoint, of all its tasks. Without temperatures they come back as
    they are, with no fit. The log tells a minimum at an end of the grid.

    Raises InputError for a checkpoint with no token of an expert solution, and for a value that is not finite.
    """
    temperatures = temperatures_of(token_stats.collect_schema().names())
    if not temperatures:
        return token_stats, pl.DataFrame(schema=TEMPERATURES_SCHEMA)
    rows = []
    for checkpoint, tokens, losses in _mean_losses(token_stats, temperatures):
        fit = fit_temperature(temperatures, losses[1:])
        if fit.at_end:
            log.warning(
                "%s: its cross-entropy is least at temperature %g, an end of extraction.temperatures; give more beyond",
                *(checkpoint, fit.temperature),
            )
        found = checkpoint, fit.temperature, losses[0], float(fit.weights @ losses[1:]), tokens, fit.at_end
        rows.append((*found, fit.weights.tolist()))
    fits = pl.DataFrame(rows, TEMPERATURES_SCHEMA | {_WEIGHTS: pl.List(pl.Float64)}, orient="row")
    weighted = [
        pl.col(name).cast(pl.Float64) * pl.col(_WEIGHTS).list.get(place)
        for place, name in enumerate(tempered_schema(temperatures))
    ]
    joined = token_stats.join(
        fits.lazy().select("checkpoint", _WEIGHTS), on="checkpoint", how="left", maintain_order="left"
    )
    tempered = joined.with_columns(pl.sum_horizontal(weighted).alias(TEMPERED_LOGPROB)).drop(_WEIGHTS)
    return tempered, fits.drop(_WEIGHTS)


def _mean_losses(token_stats: pl.LazyFrame, temperatures: Sequence[float]) -> list[tuple[str, int, np.ndarray]]:
    """Checkpoint, tokens, mean cross-entropy (1 + K,): as it is, and at each temperature. Sorted by checkpoint."""
    columns = ["logprob", *tempered_schema(temperatures)]
    names = token_stats.select("checkpoint").unique().collect()["checkpoint"]
    sums = (  # of solutions, in their order: so a sum is the same in every run
        token_stats.filter(pl.col("task") != GENERIC_TEXT)
        .group_by("checkpoint", "task", "solution")
        .agg(
            pl.len().alias("tokens"),
            *(-pl.col(name).cast(pl.Float64).fill_null(float("nan")).sum() for name in columns),
        )
        .sort("checkpoint", "task", "solution")
        .collect()
    )
    found = {name: part for (name,), part in sums.partition_by("checkpoint", as_dict=True, maintain_order=True).items()}
    rows = []
    for name in sorted(names):
        if name not in found:
            raise InputError(
                f"token statistics: checkpoint {name}: no expert solution, so no temperature can be fitted"
            )
        tokens = int(found[name]["tokens"].sum())
        losses = found[name].select(columns).to_numpy().sum(0) / tokens
        if not np.isfinite(losses).all():
            bad = columns[int(np.flatnonzero(~np.isfinite(losses))[0])]
            raise InputError(f"token statistics: checkpoint {name}: {bad}: found values that are not finite")
        rows.append((name, tokens, losses))
    return rows
