"""What makes a forecast unreliable, said beside it in the tables and in the log.

Texts without numbers, so that they can be counted; the numbers stand in other columns of the forecasts.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.arrays import Array
from proxycast.experiments.forecasting.methods import LAST_VALUE, Forecaster, resamples, tail_samples
from proxycast.experiments.forecasting.observed import TaskRun

log = logging.getLogger(__name__)

TOO_FEW = "too few checkpoints or bootstrap samples for its interval"
NO_INTERVAL = "no interval: its checkpoints show no noise"
NO_INTERVAL_OF_RUNS = "no interval: one other run"
NO_REHEARSAL = "its interval tells of noise alone: too few checkpoints for a rehearsal"
GOES = "the curve goes"  # above 1, below 0, below chance
SWAYED = "it changes much without the first checkpoints"
FEW_UNITS = "too few tasks and runs for an interval"  # of an error
TRUTH_IS_NOISE, TRUTH_IS_CONSTANT = "the truth is noise", "the truth does not vary"
NO_WIDTH = 1e-12  # of an interval
MUCH = 0.25  # of what is forecast to come after the cut
# The log names the first checkpoints if they sway more than the share OF_RUN of a run's curves, or OF_METHOD of all
# curves of a method.
OF_RUN, OF_METHOD, FEWEST_OF_METHOD = 0.25, 0.5, 3
NOISE_QUANTILE = 1.645  # of the normal distribution: what 5 % of white noise exceeds
FEWEST_VALUES = 4  # to tell noise from a curve


def about_forecast(
    made: Forecaster, data: TaskRun, value: float, bounds: tuple[float, float], options: ForecastingOptions
) -> list[str]:
    """The cautions of a forecast whose curve comes to `value`, with an interval between these bounds."""
    cautions = [TOO_FEW] if resamples(made, options) < tail_samples(options.confidence) else []
    beyond = data.beyond(value)
    cautions += [f"{GOES} {beyond}"] if beyond else []
    # An interval that was cut off at 1 is right to be narrow.
    if bounds[1] - bounds[0] <= NO_WIDTH and not (options.clip and beyond):
        cautions.append(NO_INTERVAL)
    return cautions


def about_truth(data: TaskRun) -> tuple[float | None, list[str]]:
    """Reliability of a truth over all checkpoints from the first fitted one on, and its cautions."""
    values = np.concatenate([data.truth.value, data.after["value"].to_numpy()])
    if len(values) >= FEWEST_VALUES and np.ptp(values) <= NO_WIDTH:
        return None, [TRUTH_IS_CONSTANT]
    found = curve_reliability(values)
    return found, [TRUTH_IS_NOISE] if found is not None and is_noise(values) else []


def curve_reliability(values: Array) -> float | None:
    """1 less the noise's share of the variance of a curve's `values` (n,), in order; around 0 for noise alone.

    The noise by differences of neighbours, of which a smooth curve adds little: half their mean square (von Neumann,
    1941). None for fewer than `FEWEST_VALUES` or equal ones.
    """
    if len(values) < FEWEST_VALUES or np.ptp(values) <= NO_WIDTH:
        return None
    return float(1 - (np.diff(values) ** 2).mean() / 2 / values.var(ddof=1))


def is_noise(values: Array) -> bool:
    """Whether neither the reliability of `values` nor their rank correlation with time is more than chance gives.

    Under white noise the reliability has the standard deviation sqrt((n - 2) / (n^2 - 1)), the correlation that of
    1 / sqrt(n - 1); one side of 5 % of each.
    """
    # Imported here: it takes a second.
    from scipy.stats import rankdata

    n = len(values)
    order, ranks = np.arange(n) - (n - 1) / 2, rankdata(values) - (n + 1) / 2
    spearman = (order * ranks).sum() / np.sqrt((order**2).sum() * (ranks**2).sum())
    alike = curve_reliability(values) > NOISE_QUANTILE * np.sqrt((n - 2) / (n**2 - 1))
    return not alike and abs(spearman) <= NOISE_QUANTILE / np.sqrt(n - 1)


def worth_comparing(made: Mapping[tuple[str, str], Forecaster]) -> dict[tuple[str, str], Forecaster]:
    """Those forecasters without the first checkpoints that can differ for another reason than too few of them."""
    return {
        (method, kind): found
        for (method, kind), found in made.items()
        if found.enough and method != LAST_VALUE and kind != "control"
    }


def compared_without_first(rows: Sequence[dict], others: tuple[Array, Array, Array], data: TaskRun) -> list[dict]:
    """The rows with what the same method forecasts without the first checkpoints, and a caution where that is another.

    `others`: those forecasts, low and high, of the curve. The curve is another if at some horizon the two differ by
    more than the whole width of that interval, more than noise lets them but in few cases; a forecast is, if they also
    differ by more than `MUCH` of the change that is forecast since the cut.
    """
    predicted, (other, low, high) = np.array([row["predicted"] for row in rows]), others
    change, gain = np.abs(predicted - other), np.abs(predicted - data.truth.value[-1])
    much = (change > high - low).any() & (change > MUCH * gain)
    return [
        row | {"without_first": float(value), "caution": row["caution"] + [SWAYED] if swayed else row["caution"]}
        for row, value, swayed in zip(rows, other, much, strict=True)
    ]


def has_caution(caution: str) -> pl.Expr:
    return pl.col("caution").str.contains(caution, literal=True)


def tell_cautions(forecasts: pl.DataFrame, fits: pl.DataFrame) -> None:
    """Every kind of caution in one line of the log."""
    pair = pl.format("{}/{}", "run", "task")
    forecasts = forecasts.with_columns(pair.alias("where"))
    for text in (TRUTH_IS_NOISE, TRUTH_IS_CONSTANT):
        noisy = forecasts.filter(has_caution(text))
        if len(noisy):
            log.warning(
                "%s of %d of %d run/task (%s ...): errors there tell nothing of a method",
                *(text, noisy["where"].n_unique(), forecasts["where"].n_unique(), noisy["where"][0]),
            )
    beyond = forecasts["caution"].str.extract(f"({GOES} [^;]*)").drop_nulls().unique(maintain_order=True)
    for text in (TOO_FEW, NO_INTERVAL, NO_REHEARSAL, *beyond):
        rows = forecasts.filter(has_caution(text))
        if len(rows):
            first = rows.row(0, named=True)
            log.warning(
                "%s: %d of %d forecasts, of %s (%s at %gx ...)",
                *(text, len(rows), len(forecasts), _of_methods(rows, forecasts), first["where"], first["horizon"]),
            )
    compared = forecasts.filter(pl.col("without_first").is_not_null())
    # Of a power law with noise some 3 in 100 are swayed, which is no news.
    curves = compared.group_by("run", "where", "method", maintain_order=True).agg(swayed=has_caution(SWAYED).any())
    share, many = pl.col("swayed").mean(), pl.len() >= FEWEST_OF_METHOD
    news = (share.over("run") > OF_RUN) | ((share >= OF_METHOD) & many).over("method")
    swayed = compared.filter(has_caution(SWAYED)).join(curves.filter(news), on=["where", "method"], how="semi")
    if len(swayed):
        first = swayed.row(0, named=True)
        log.warning(
            "%s: %s (%s at %gx: %.3f with them, %.3f without); look at the figure proxy_curves, and set "
            "forecasting.fit_from_step behind what is no part of the curve",
            *(SWAYED, _of_methods(swayed, compared), first["where"], first["horizon"]),
            *(first["predicted"], first["without_first"]),
        )
    fits = fits.filter(pl.col("curve") != "constant").with_columns(pair.alias("where"))
    for (text,), rows in fits.filter(pl.col("beyond") != "").group_by("beyond", maintain_order=True):
        log.warning("the asymptote lies %s: %s", text, _of_methods(rows, fits))


def _of_methods(rows: pl.DataFrame, among: pl.DataFrame) -> str:
    """Such as "pooled (3 of 8 run/task), compute_only (1 of 8 run/task)"."""
    of = dict(among.group_by("method").agg(pl.col("where").n_unique()).iter_rows())
    counts = rows.group_by("method", maintain_order=True).agg(pl.col("where").n_unique())
    return ", ".join(f"{method} ({count} of {of[method]} run/task)" for method, count in counts.iter_rows())
