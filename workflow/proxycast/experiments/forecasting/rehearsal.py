"""The method that is chosen in advance: the one that forecasts best up to the cut."""

import logging

import polars as pl

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.forecasting.methods import LAST_VALUE, bounded, fit_methods
from proxycast.experiments.forecasting.observed import TRUTH, cut_of, task_runs
from proxycast.experiments.laws.curves import CURVES, LINK_PARAMETERS

log = logging.getLogger(__name__)


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
        cut = cut_of(run, options)
        where, early = f"{run}/{task}", _rehearsal_step(part, int(cut * share + 1e-9))
        if early is None:
            left_out.append(where)
            continue
        shares[where] = max(share, early / cut)
        part = part.with_columns(in_fit=pl.col("step") <= early)
        [data] = task_runs(part, {}, higher_is_better=higher_is_better, chance={})
        t, truth = data.after["tokens"].to_numpy() / data.tokens_at_cut, data.after["value"].to_numpy()
        for (method, kind), made in fit_methods(data, quick).items():
            squares = (bounded(made.point(t), data, options) - truth) ** 2
            of_method = {"method": method, "kind": kind, "where": where, "fitted": made.fitted, "why": made.fallback}
            rows += [of_method | {"at": number, "square": square} for number, square in enumerate(squares)]
    if left_out:
        log.warning(
            "no rehearsal of %d of %d run/task (%s ...): up to the cut they have fewer than %d checkpoints for a fit "
            "and one to be forecast (forecasting.rehearsal)",
            *(len(left_out), len(left_out) + len(shares), left_out[0], CURVES["power"].parameters + 1),
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


def _rehearsal_step(rows: pl.DataFrame, wanted: int) -> int | None:
    """The last step that the rehearsal of one task of a run fits: `wanted`, or further if need be.

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
    step = max([wanted, *possible])
    return step if possible and step < truth[-1] else None


def _rehearsed(rows: pl.DataFrame) -> pl.DataFrame:
    """The table of the rehearsal but for its share. `rows`: method, kind, where, fitted, why, at, square."""
    competes = (pl.col("kind") != "control") & (pl.col("method") != LAST_VALUE)
    counted = rows.filter((competes & pl.col("fitted")).any().over("where"))
    nothing = counted.is_empty()
    counted = rows if nothing else counted
    names = rows.select("method", "kind").unique(maintain_order=True)
    last = counted.filter(method=LAST_VALUE).select("where", "at", last="square")
    counted = names.join(last, how="cross").join(
        counted.drop("kind"), on=["method", "where", "at"], how="left", maintain_order="left"
    )
    own = pl.col("fitted") | (pl.col("kind") == "control") | nothing
    counted = counted.with_columns(square=pl.when(own).then("square").otherwise("last"))
    table = counted.group_by("method", "kind", maintain_order=True).agg(
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
