"""Where a run will end, and what it is forecast to score there: the answer of a forecast in short.

A run that has not ended has no truth to judge its forecasts by. Its end is one more horizon, the last one, at which
every method makes a forecast. `summary_table` has those that were settled in advance: of the method that the rehearsal
chose, and the one from other runs, which no rehearsal can choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.forecasting.methods import CHOSEN, COMPUTE_ONLY, LAST_VALUE, OTHER_RUNS, POOLED, TWO_STEP
from proxycast.experiments.forecasting.observed import cut_of
from proxycast.options import InputError

SUMMARY_SCHEMA = {
    **dict.fromkeys(("run", "task"), pl.String),
    **{"horizon": pl.Float64, "is_end": pl.Boolean, "step": pl.Int64},
    **dict.fromkeys(("tokens", "flops"), pl.Float64),
    "method": pl.String,
    **dict.fromkeys(("last_value", "predicted", "low", "high", "truth", "rehearsal_coverage"), pl.Float64),
    "caution": pl.String,
}


@dataclass(frozen=True)
class End:
    """Where a run ends."""

    run: str
    step: int
    tokens: float
    horizon: float  # as a multiple of the tokens at the cut


def with_end(options: ForecastingOptions, checkpoints: pl.DataFrame) -> tuple[ForecastingOptions, End | None]:
    """The options with the end as their last horizon and, where they name none, its run's last step as the cut.

    `checkpoints`: run, step, tokens and, for an end in FLOPs, flops, of all checkpoints with a truth. Beyond the last
    of them the tokens a step are those between the last two. `InputError` for an unknown run, one that has passed its
    end, and FLOPs of a run without parameters.
    """
    if options.end is None or checkpoints.is_empty():
        return options, None
    run = _run_that_ends(options, checkpoints["run"].unique().sort().to_list())
    known = checkpoints.filter(run=run).unique("step").sort("step")
    cut = cut_of(run, options) or known["step"][-1]
    fitted = known.filter(pl.col("step").is_between(options.fit_from_step, cut))
    if fitted.is_empty():
        raise InputError(
            f"forecasting.end: run {run} has no truth at the steps {options.fit_from_step} to {cut}, so there is "
            f"nothing to fit; it has those of {known['step'].to_list()}"
        )
    step, tokens = _step_and_tokens(options, run, known)
    horizon = round(tokens / fitted["tokens"][-1], 4)
    if horizon <= 1:
        raise InputError(
            f"forecasting.end: found step {step} ({tokens:.4g} tokens), but run {run} is fitted up to step "
            f"{fitted['step'][-1]} ({fitted['tokens'][-1]:.4g} tokens); the end must lie beyond"
        )
    before = [other for other in options.horizons if other < horizon]
    changes = {"horizons": (*before, horizon), "fit_up_to_step": options.fit_up_to_step or cut}
    return options.model_copy(update=changes), End(run, step, tokens, horizon)


def _run_that_ends(options: ForecastingOptions, runs: Sequence[str]) -> str:
    run = options.end.run
    if run is None and len(runs) != 1:
        raise InputError(f"forecasting.end.run: missing; say which run ends there: {', '.join(runs)}")
    if run is not None and run not in runs:
        raise InputError(f"forecasting.end.run: no run {run!r} has a truth; found {', '.join(runs)}")
    return run or runs[0]


def _step_and_tokens(options: ForecastingOptions, run: str, known: pl.DataFrame) -> tuple[int, float]:
    """Step and tokens of the end, of which one is given. `known`: its checkpoints, in order."""
    end, last = options.end, known.row(-1, named=True)
    if end.flops is not None and last.get("flops") is None:
        raise InputError(
            f"forecasting.end.flops: the parameters of run {run} are not known; give them "
            f"(forecasting.curve.runs.{run}.parameters, or the column forecasting.curve.parameters), or the end as a "
            "step or tokens"
        )
    steps, tokens = (known[name].to_numpy().astype(float) for name in ("step", "tokens"))
    first = (0.0, 0.0) if len(known) == 1 else (steps[-2], tokens[-2])
    pace = (tokens[-1] - first[1]) / (steps[-1] - first[0])
    if end.step is not None:
        beyond = tokens[-1] + (end.step - steps[-1]) * pace
        return end.step, float(np.interp(end.step, steps, tokens)) if end.step < steps[-1] else beyond
    wanted = end.tokens if end.flops is None else end.flops / last["flops"] * last["tokens"]
    beyond = steps[-1] + (wanted - tokens[-1]) / pace if pace > 0 else steps[-1]
    return round(float(np.interp(wanted, tokens, steps)) if wanted < tokens[-1] else beyond), wanted


def summary_table(
    forecasts: pl.DataFrame,
    chosen: str | None,
    checkpoints: pl.DataFrame,
    options: ForecastingOptions,
    end: End | None,
    intervals: pl.DataFrame,
) -> pl.DataFrame:
    """SUMMARY_SCHEMA: of every run, task and horizon the forecast of one method, and those from other runs, if any.

    The method is the one that the rehearsal has chosen; without one, the pooled proxies, or else the first proxy, or
    else the power law of the truth. `flops` is null where the run's parameters are not known, `truth` where it is yet
    to come, `rehearsal_coverage` where `intervals` (the table of that name) does not know it.
    """
    order = dict.fromkeys([CHOSEN, POOLED, *(f"{POOLED}, {link} link" for link in options.links), *options.proxies])
    places = {method: place for place, method in enumerate([*order, COMPUTE_ONLY])}
    key = ["run", "task", "horizon"]
    one = forecasts.filter(pl.col("method").is_in(list(places)))
    one = one.sort(pl.col("method").replace_strict(places), maintain_order=True).unique(key, keep="first")
    of_others = [OTHER_RUNS, TWO_STEP]
    one = pl.concat([one, forecasts.filter(pl.col("method").is_in(of_others))])
    now = forecasts.filter(method=LAST_VALUE).select(*key, last_value="predicted")
    if "flops" not in checkpoints.columns:
        checkpoints = checkpoints.with_columns(flops=pl.lit(None, pl.Float64))
    a_token = checkpoints.filter(pl.col("tokens") > 0).group_by("run").agg((pl.col("flops") / pl.col("tokens")).last())
    table = (
        one.join(now, on=key)
        .join(a_token, on="run", how="left")
        .join(intervals.select("run", "method", "rehearsal_coverage"), on=["run", "method"], how="left")
        .with_columns(
            is_end=pl.lit(end is not None)
            & (pl.col("run") == (end.run if end else ""))
            & (pl.col("horizon") == options.horizons[-1]),
            flops=pl.col("flops") * pl.col("tokens"),
            method=pl.col("method").replace({CHOSEN: chosen or CHOSEN}),
            caution=pl.concat_list(pl.col("fallback", "caution").replace("", None)).list.drop_nulls().list.join("; "),
        )
    )
    rank = pl.col("method").replace_strict(dict(zip(of_others, (1, 2))), default=0, return_dtype=pl.Int64)
    return table.sort(*key, rank).select(pl.col(name).cast(kind) for name, kind in SUMMARY_SCHEMA.items())
