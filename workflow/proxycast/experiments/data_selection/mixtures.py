"""Which mixture next? A regression over corpora that are mixtures of the same sources, and their export.

What is looked at, fixed before the first look:

1. Mixtures are compared where each of their sources occurs in another one, too (`sharing_sources`). What a source does
   that only one corpus has, no regression can tell.
2. The law is log-linear, one for each task: value = floor + exp(a + sum of t_j r_j), with r_j the ratio of source j
   (data mixing laws, arXiv 2403.16952; Olmix, arXiv 2602.12237). The prediction is the mean over tasks, whose optimum
   may lie between the mixtures seen; that of a single law never does. The ridge on t and the floor are chosen by
   leave-one-out within the mixtures that are fitted.
3. It is judged on mixtures held out (one by one up to 50 of them, else three times in ten parts), by Spearman's rho
   with a bootstrap over mixtures, beside gradient-boosted trees (RegMix, arXiv 2407.01492), the value of the nearest
   mixture, and the mean. Next mixtures are proposed by the law alone, whichever does best: no choice is made in
   hindsight.
4. A law that knows nothing falls below a rho of 0 where one is held out: the mean of the others is low where the one is
   high. So an interval above 0 is no accident, but one below 0 need not be.

Values are such that lower is better, as mixture optimisers take them. Shapes: n mixtures, K sources, T tasks, m
mixtures to predict.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.config.truth import Target
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.data_selection import corpus_scores, corpus_truth
from proxycast.experiments.laws.mixture_law import (
    LAW,
    MEAN,
    METHODS,
    NEAREST,
    TREES,
    Fitted,
    distances,
    fewest_for_interval,
    fit_log_linear,
    held_out,
    prediction_interval,
    proposals,
)
from proxycast.experiments.rank_statistics import rank_correlations
from proxycast.metrics import is_share
from proxycast.proxy_formulas import SIGNS
from proxycast.truth.mixture_ratios import RUN, ratio_table
from proxycast.truth.targets import TARGETS_SCHEMA

log = logging.getLogger(__name__)

FEWEST = 5  # mixtures: with fewer a bootstrap has no interval

METRICS_SCHEMA = {
    **dict.fromkeys((RUN, "task", "metric", "statistic", "weighting", "kind", "size"), pl.String),
    **{"step": pl.Int64, "value": pl.Float64},
}
REGRESSION_SCHEMA = {
    **{"metric": pl.String, "kind": pl.String, "method": pl.String, "mixtures": pl.Int64, "sources": pl.Int64},
    **dict.fromkeys(("spearman", "low", "high", "rmse", "difference", "difference_low"), pl.Float64),
    **{"difference_high": pl.Float64, "note": pl.String},
}
PREDICTIONS_SCHEMA = {
    **{"metric": pl.String, "method": pl.String, RUN: pl.String, "value": pl.Float64, "predicted": pl.Float64}
}
NEXT_SCHEMA = {
    **{"metric": pl.String, RUN: pl.String},
    **dict.fromkeys(("predicted", "low", "high"), pl.Float64),
    **{"best_seen": pl.String, "best_value": pl.Float64},
    **dict.fromkeys(("gain", "gain_low", "gain_high"), pl.Float64),
    **{"nearest": pl.String, "distance": pl.Float64, "inside": pl.Boolean, "caution": pl.String},
    **{"source": pl.String, "ratio": pl.Float64},
}


LEARNED = {
    "mixture_regression": REGRESSION_SCHEMA,
    "mixture_predictions": PREDICTIONS_SCHEMA,
    "next_mixtures": NEXT_SCHEMA,
}


def mixture_metrics(
    checkpoints: pl.DataFrame,
    proxies: pl.LazyFrame | None,
    targets: pl.DataFrame | None,
    tasks: Sequence[str],
    budgets: Sequence[Budget],
    highlighted: Sequence[Proxy],
    target: Target | None,
    outside: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """What is known of every corpus, lower is better: highlighted proxies and bits per byte at the budgets, the truth.

    Means over seeds, of each task and, first, of all (METRICS_SCHEMA); the budget of most compute comes first. A share
    of which more is better stands as 1 - value, another such value as its negative, and `metric` says so:
    "1-top5_accuracy/token_frequency/43k-step256".
    """
    at = pl.DataFrame([(budget.size, budget.step) for budget in budgets], ["size", "step"], orient="row")
    small = checkpoints.filter(role="proxy").join(at, ["size", "step"], "semi", maintain_order="left")
    at = small.group_by("size", "step").agg(pl.col("flops").max()).sort("flops", descending=True).drop("flops")
    pairs = dict.fromkeys([*((proxy.statistic, proxy.weighting) for proxy in highlighted), ("bits_per_byte", "none")])
    wanted = pl.DataFrame(list(pairs), NAME, orient="row")
    scored = pl.DataFrame(schema=SCORED_SCHEMA)
    if proxies is not None:
        of_small = proxies.filter(pl.col("checkpoint").is_in(small["checkpoint"].to_list()), tail="tokens")
        of_small = of_small.join(wanted.lazy(), on=NAME, how="semi").select(list(SCORED_SCHEMA))
        scored = of_small.collect(engine="streaming")
    signs = dict(SIGNS)
    if outside is not None:
        signs |= {name: 1 if higher else -1 for name, higher in outside[["statistic", "higher_is_better"]].iter_rows()}
    nothing = pl.DataFrame(schema=TARGETS_SCHEMA)
    predicted = corpus_scores.predictions(small, scored, nothing, tasks, outside=outside)
    predicted = wanted.join(at, how="cross").join(predicted, on=[*NAME, *at.columns], maintain_order="left_right")
    parts = [
        _lower_is_better(cell, signs[name]) for (name,), cell in predicted.group_by("statistic", maintain_order=True)
    ]
    if target and targets is not None:
        of_tasks = targets.filter(pl.col("task").is_in(list(tasks)))
        for metric in (target.metric, *target.other_metrics):
            truth = corpus_truth.truth_by_seed(checkpoints, of_tasks, metric)
            sign = target.sign(metric)
            told = {"statistic": metric, "weighting": "none", "kind": "truth", "size": target.size}
            truth = truth.select(
                "corpus", "task", score=pl.col("value") * sign, **{k: pl.lit(v) for k, v in told.items()}
            )
            parts.append(_lower_is_better(truth.with_columns(step=pl.lit(None, pl.Int64)), sign))
    keys = [name for name in METRICS_SCHEMA if name not in ("task", "value")]
    means = pl.concat(parts).group_by(*keys, "task", maintain_order=True).agg(pl.col("value").mean())
    of_all = means.group_by(*keys, maintain_order=True).agg(pl.col("value").mean()).with_columns(task=pl.lit("all"))
    return pl.concat([table.select(list(METRICS_SCHEMA)) for table in (of_all, means)]).cast(METRICS_SCHEMA)


NAME = ["statistic", "weighting"]
SCORED_SCHEMA = dict.fromkeys(("checkpoint", "task", *NAME), pl.String) | {"value": pl.Float64}


def _lower_is_better(scores: pl.DataFrame, sign: int) -> pl.DataFrame:
    """Scores (higher is better) of one statistic as METRICS_SCHEMA has them; `sign` is 1 if more of it is better."""
    name = scores["statistic"][0]
    share = sign > 0 and is_share(name)
    prefix = "1-" if share else "-" if sign > 0 else ""
    weighting = pl.when(pl.col("weighting") != "none").then("weighting")
    place = pl.concat_str("size", pl.format("step{}", "step"), separator="-", ignore_nulls=True)
    metric = pl.concat_str(pl.lit(prefix + name), weighting, place, separator="/", ignore_nulls=True)
    value = int(share) - pl.col("score")
    return scores.select(pl.col("corpus").alias(RUN), "task", *NAME, "kind", "size", "step", metric=metric, value=value)


def mixture_tables(
    mixtures: Mapping[str, Mapping[str, float]], metrics: pl.DataFrame, options: SelectionOptions
) -> dict[str, pl.DataFrame]:
    """The tables ratios, metrics, mixture_regression, mixture_predictions and next_mixtures.

    `mixtures`: corpus -> source -> ratio (`mixture_ratios.known_mixtures`). `metrics`: `mixture_metrics`. The first two
    hold the mixtures that share their sources (`sharing_sources`), or all if none do, as far as there are values.
    """
    measured = set(metrics.filter(kind="proxy").get_column(RUN)) or set(metrics[RUN])
    known = {run: shares for run, shares in mixtures.items() if run in measured}
    shared = sharing_sources(known)
    if alone := sorted(known.keys() - shared.keys()):
        log.info("%d of %d mixtures have a source that no other one has: %s", len(alone), len(known), ", ".join(alone))
    exported = shared or known
    found = {name: [pl.DataFrame(schema=schema)] for name, schema in LEARNED.items()}
    for metric in metrics["metric"].unique(maintain_order=True):
        rows = metrics.filter(pl.col("task") != "all", metric=metric)
        compared = sharing_sources({run: known[run] for run in known if run in set(rows[RUN])})
        if why := too_few(compared):
            log.warning("%s: no regression: %s", metric, why)
            continue
        values = rows.pivot(on="task", index=RUN, values="value", sort_columns=True)
        values = pl.DataFrame({RUN: list(compared)}).join(values, on=RUN, how="left", maintain_order="left")
        for name, table in _regression(metric, rows["kind"][0], compared, values, options).items():
            found[name].append(table)
    own = pl.DataFrame({RUN: list(exported)}, {RUN: pl.String})
    of_own = own.join(metrics, on=RUN, maintain_order="left")  # in the order of the ratios
    return {"ratios": ratio_table(exported), "metrics": of_own.select(list(METRICS_SCHEMA))} | {
        name: pl.concat(tables) for name, tables in found.items()
    }


def sharing_sources(mixtures: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """The largest part of the mixtures in which every source occurs in at least two of them."""
    kept = dict(mixtures)
    while True:
        count = Counter(source for shares in kept.values() for source in shares)
        fewer = {run: shares for run, shares in kept.items() if all(count[source] > 1 for source in shares)}
        if len(fewer) == len(kept):
            return kept
        kept = fewer


def too_few(mixtures: Mapping[str, Mapping[str, float]]) -> str:
    """Why nothing can be learned of so few mixtures, and how many it takes; empty if something can.

    The law has a coefficient for each source, so it takes as many mixtures as sources. Sources that are always mixed in
    one proportion count once.
    """
    if not mixtures:
        return f"found no two mixtures that share all their sources with others; at least {FEWEST} are needed"
    ratios = ratio_matrix(mixtures)[1]
    sources = np.unique(np.round(ratios / ratios.sum(0), 6), axis=1).shape[1]
    needed = max(FEWEST, sources)
    distinct = len({tuple(sorted(shares.items())) for shares in mixtures.values()})
    if distinct >= needed:
        return ""
    return f"found {distinct} mixtures of {sources} sources; at least {needed} different ones are needed"


def ratio_matrix(mixtures: Mapping[str, Mapping[str, float]]) -> tuple[list[str], Array]:
    """The sources, sorted, and the ratios (n, K)."""
    sources = sorted({source for shares in mixtures.values() for source in shares})
    return sources, np.array([[shares.get(source, 0) for source in sources] for shares in mixtures.values()])


def _regression(
    metric: str, kind: str, mixtures: Mapping[str, Mapping[str, float]], values: pl.DataFrame, options: SelectionOptions
) -> dict[str, pl.DataFrame]:
    """The rows of one metric in the three tables. `values`: run and a column for each task, in their order."""
    sources, ratios = ratio_matrix(mixtures)
    of_tasks = values.drop(RUN).to_numpy()
    found = {method: held_out(method, ratios, of_tasks, options.seed) for method in METHODS}
    measured = values.select(RUN, value=pl.mean_horizontal(pl.exclude(RUN)), metric=pl.lit(metric))
    predictions = [
        measured.with_columns(method=pl.lit(method), predicted=pl.Series(predicted, dtype=pl.Float64))
        for method, (predicted, _) in found.items()
    ]
    told = {"metric": metric, "kind": kind, "mixtures": len(ratios), "sources": len(sources)}
    rows = _judged({method: predicted for method, (predicted, _) in found.items()}, of_tasks.mean(1), options)
    of_law = next(row for row in rows if row["method"] == LAW)
    log.info("%s: %d mixtures of %d sources: %s", metric, len(ratios), len(sources), _in_words(of_law))
    proposed = _proposed(ratios, of_tasks, measured, *found[LAW], options)
    proposed = proposed.with_columns(
        metric=pl.lit(metric),
        caution=pl.concat_str(pl.lit(of_law["note"] or None, pl.String), "caution", separator="; ", ignore_nulls=True),
    )
    return {
        "mixture_regression": pl.DataFrame([told | row for row in rows], REGRESSION_SCHEMA),
        "mixture_predictions": pl.concat(predictions).select(list(PREDICTIONS_SCHEMA)),
        "next_mixtures": proposed.explode("ratio")
        .with_columns(source=pl.Series(sources * len(proposed)))
        .select(list(NEXT_SCHEMA)),
    }


def _judged(predicted: Mapping[str, Array], values: Array, options: SelectionOptions) -> list[dict]:
    """A row for each method: how its predictions (n,) of held-out mixtures agree with their `values` (n,).

    The mean orders nothing, so its rho is 0; without what it knows of the one that is held out, it would be -1.
    """
    orders = np.round([np.zeros_like(found) if name == MEAN else found for name, found in predicted.items()], DECIMALS)
    values = np.round(values, DECIMALS)
    drawn = np.random.default_rng(options.seed).integers(len(values), size=(options.bootstrap_replicates, len(values)))
    points = np.array([_rank_correlation(order[None], values[None]).item() for order in orders])
    samples = np.array([_rank_correlation(order[drawn], values[drawn]) for order in orders])
    low, high, why = bootstrap.sure_interval(points, samples, len(values), options)
    differences = samples - samples[list(predicted).index(NEAREST)]
    rows = []
    for n, (name, found) in enumerate(predicted.items()):
        row = {"method": name, "spearman": points[n], "rmse": np.sqrt(np.mean((found - values) ** 2))}
        row["low"], row["high"] = (None if why[n] else float(end[n]) for end in (low, high))
        row["note"] = str(why[n]).replace("models", "mixtures")
        row["difference"] = points[n] - points[list(predicted).index(NEAREST)]
        ends = bootstrap.percentile_interval(differences[n], options.confidence)
        unsure = name != NEAREST and (why[n] or why[list(predicted).index(NEAREST)])
        row["difference_low"], row["difference_high"] = (None if unsure else float(end) for end in ends)
        rows.append(row)
    mean = next(row for row in rows if row["method"] == MEAN)
    return [row | {"note": "; ".join([*_doubts(row, mean["rmse"]), *filter(None, [row["note"]])])} for row in rows]


def _rank_correlation(predicted: Array, values: Array) -> Array:
    """Spearman's rho of the rows of two arrays (B, n) -> (B,); 0 where either orders nothing.

    `rank_statistics.spearman` compares all pairs instead, which are too many among hundreds of mixtures.
    """
    return np.nan_to_num(rank_correlations(predicted.T, values.T))


def _doubts(row: Mapping[str, object], rmse_of_mean: float) -> list[str]:
    """Why a method that learns from ratios must not be trusted."""
    if row["method"] not in (LAW, TREES):
        return []
    lowest = row["spearman"] if row["low"] is None else row["low"]
    doubts = [] if lowest > 0 else ["the held-out order is not better than chance"]
    gain = 0 if row["difference_low"] is None else row["difference_low"]
    doubts += [] if gain > 0 else ["the held-out order is not better than that of the nearest mixture"]
    return doubts + ([] if row["rmse"] < rmse_of_mean else ["held-out values are missed by more than by their mean"])


def _in_words(row: Mapping[str, object]) -> str:
    ends = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    told = f"held-out rank correlation {row['spearman']:.2f}{ends}"
    return f"{told}; {row['note']}" if row["note"] else told


def _proposed(
    ratios: Array, values: Array, measured: pl.DataFrame, held_out: Array, fits: list[Fitted], options: SelectionOptions
) -> pl.DataFrame:
    """A row for each mixture to try next, best first: NEXT_SCHEMA without metric and source; `ratio` is a list.

    `values` (n, T) and `measured` (run, value) are those seen, `held_out` (n,) what `fits` predicted of them.
    """
    law = fit_log_linear(ratios, values)
    chosen = proposals(law, ratios, options.seed)
    predicted, apart = law.predict(chosen.ratios), distances(chosen.ratios, ratios)
    ends = prediction_interval(fits, measured["value"].to_numpy() - held_out, chosen.ratios, options.confidence)
    low, high = (None, None) if ends is None else ends
    best, best_value = measured.sort("value").select(RUN, "value").row(0)
    rows = []
    for n, ratio in enumerate(chosen.ratios):
        cautions = [] if chosen.inside[n] else ["outside of the mixtures seen"]
        if ends is None:
            cautions.append(f"no interval: it takes {fewest_for_interval(options.confidence)} mixtures")
        if predicted[n] >= best_value:
            cautions.append("not predicted to be better than the best one seen")
        row = {"run": f"next_{n + 1}", "predicted": predicted[n], "best_seen": best, "best_value": best_value}
        row |= {"low": None, "high": None} if ends is None else {"low": low[n], "high": high[n]}
        row |= {"gain": best_value - predicted[n], "nearest": measured[RUN][int(apart[n].argmin())]}
        row |= {"distance": apart[n].min(), "inside": bool(chosen.inside[n]), "ratio": ratio.tolist()}
        rows.append(row | {"caution": "; ".join(cautions) or None})
    table = pl.DataFrame(rows, infer_schema_length=None).cast(
        {"low": pl.Float64, "high": pl.Float64, "caution": pl.String}
    )
    return table.with_columns(
        gain_low=pl.col("best_value") - pl.col("high"), gain_high=pl.col("best_value") - pl.col("low")
    )


def as_csv(name: str, table: pl.DataFrame) -> pl.DataFrame:
    """A table of `mixture_tables` as its csv has it: ratios, metrics and next_mixtures with a row for each mixture.

    ratios and metrics are as Olmix and RegMix read them: first the name of the run, then only numbers, in every row.
    Of metrics, columns that some mixture lacks are left out.
    """
    match name:
        case "ratios":
            return table.pivot(on="source", index=RUN, values="ratio")
        case "metrics":
            named = table.with_columns(column=pl.format("{}/{}", "task", "metric"))
            wide = named.pivot(on="column", index=RUN, values="value")
            return wide.select(column.name for column in wide if not column.null_count())
        case "next_mixtures" if len(table):
            index = [column for column in NEXT_SCHEMA if column not in ("source", "ratio")]
            return table.pivot(on="source", index=index, values="ratio").with_columns(pl.exclude(index).fill_null(0))
        case _:
            return table
