"""Scaling laws as predictions of the target's order of corpora: fits, decision accuracies, and whether a law helps.

A law is fitted to each corpus, task and seed by itself, from the sizes of one set, and predicted at the target's N, D
and C. Its prediction is judged like a proxy's. It costs all runs that it is fitted to, so its compute is the sum over
its sizes. Two comparisons are made, both paired over the same samples of corpora: with the best baseline of the largest
size or of the laws (`decision_accuracy`), and with the law's own source at its largest size alone (`law_gains`), which
says whether the extrapolation helps.

A law needs a loss: what it extrapolates is the negative score of a loss (its score is never positive) and what a share
lacks to 1.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import ScalingLawOptions, SelectionOptions
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.data_selection.ranking import agreement_figures, decision_accuracy_table
from proxycast.experiments.laws.scaling_laws import LAWS, DataDecideFits, Fit, Runs, fit_plain_laws
from proxycast.experiments.rank_statistics import ResampledTruth

log = logging.getLogger(__name__)

SERIES = ["corpus", "task", "seed"]
TOLD = 10  # notes in the log; the table has all of them
_SOURCE = ["statistic", "weighting", "kind", "depends_on_candidate"]
_PARAMETERS = ["A", "alpha", "B", "beta", "E", "link_a", "link_x0", "link_k", "link_b"]
LAWS_SCHEMA = {
    **dict.fromkeys(("law", "statistic", "weighting", "kind", "sizes", "corpus", "task"), pl.String),
    **dict.fromkeys(("seed", "points"), pl.Int64),
    **dict.fromkeys(("flops", "compute_fraction", "extrapolation", *_PARAMETERS, "residual", "predicted"), pl.Float64),
    "note": pl.String,
}
POINTS_SCHEMA = {
    **dict.fromkeys(("statistic", "weighting", "sizes", "corpus", "task", "size"), pl.String),
    **dict.fromkeys(("seed", "step", "tokens"), pl.Int64),
    **dict.fromkeys(("flops", "compute_fraction", "score"), pl.Float64),
}
GAINS_SCHEMA = {
    **dict.fromkeys(("law", "statistic", "weighting", "kind", "sizes", "seed"), pl.String),
    **dict.fromkeys(("compute_fraction", "decision_accuracy", "low", "high"), pl.Float64),
    "single_size": pl.String,
    **dict.fromkeys(("single_compute_fraction", "single_decision_accuracy"), pl.Float64),
    **dict.fromkeys(("difference", "difference_low", "difference_high"), pl.Float64),
    **dict.fromkeys(("corpora", "fits", "fits_noted"), pl.Int64),
    "note": pl.String,
}


def law_rows(predicted: pl.DataFrame, options: ScalingLawOptions, metric: str) -> pl.DataFrame:
    """What laws need of predictions: sources, metric and baselines at the end of each run.

    For laws that end in a metric sources and metric are there at all steps.
    """
    sources = pl.any_horizontal(
        (pl.col("statistic") == name) & (pl.col("weighting") == weighting)
        for name, weighting in [*((s.statistic, s.weighting) for s in options.sources), (metric, "none")]
    )
    ends = pl.col("step") == pl.col("step").max().over("size", "seed")
    if all(LAWS[name].steps == 0 for name in options.laws):
        return predicted.filter(ends, sources | (pl.col("kind") == "baseline"))
    return predicted.filter(sources | (ends & (pl.col("kind") == "baseline")))


class SizeSet:
    """The runs of one set of sizes: what each seed cost, and at which step each run ended."""

    def __init__(self, rows: pl.DataFrame, checkpoints: pl.DataFrame, sizes: Sequence[str]):
        """`rows`: `law_rows` of all sizes; `checkpoints` has the target, and the order of sizes."""
        ladder = size_order(checkpoints)
        self.sizes = [size for size in ladder if size in sizes]
        self.name = size_name(self.sizes, ladder)
        target = checkpoints.filter(role="target").sort("flops").row(-1, named=True)
        self.target = np.array([target["active_parameters"], target["tokens"]], float)
        self.target_flops = float(target["flops"])
        runs = rows.filter(pl.col("size").is_in(self.sizes)).select("size", "seed", "step", "tokens", "flops").unique()
        ends = runs.filter(pl.col("step") == pl.col("step").max().over("size", "seed"))
        everywhere = pl.col("size").n_unique().over("seed") == len(self.sizes)
        self.ends = ends.filter(everywhere).sort("seed", "flops")
        self.largest = self.ends.filter(size=self.sizes[-1])

    @property
    def costs(self) -> pl.DataFrame:
        """seed, and the sums over its runs: tokens, flops, compute_fraction."""
        sums = self.ends.group_by("seed", maintain_order=True).agg(pl.col("tokens", "flops").sum())
        return sums.with_columns(compute_fraction=pl.col("flops") / self.target_flops)

    def at_ends(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.join(self.ends.select("size", "seed", "step"), on=["size", "seed", "step"], how="semi")


def size_order(checkpoints: pl.DataFrame) -> list[str]:
    """The sizes of the small models by the compute of their longest run."""
    small = checkpoints.filter(role="proxy").group_by("size").agg(pl.col("flops").max())
    return small.sort("flops", "size")["size"].to_list()


def size_name(sizes: Sequence[str], ladder: Sequence[str]) -> str:
    """`150M to 750M` for sizes that follow each other in `ladder`; else all of them."""
    first = ladder.index(sizes[0])
    follow = list(ladder[first : first + len(sizes)]) == list(sizes)
    return f"{sizes[0]} to {sizes[-1]}" if follow else ", ".join(sizes)


def size_sets(rows: pl.DataFrame, checkpoints: pl.DataFrame, options: ScalingLawOptions) -> list[SizeSet]:
    return [SizeSet(rows, checkpoints, sizes) for sizes in options.sizes or [_below_target(checkpoints)]]


def _below_target(checkpoints: pl.DataFrame) -> list[str]:
    """All sizes of no more compute than the target. Its own early checkpoints may be proxies, but are no size below."""
    target = checkpoints.filter(role="target")
    below = checkpoints.filter(pl.col("flops").max().over("size") <= target["flops"].max())
    return size_order(below.filter(pl.col("size") != target["size"][0]))


# Fits


def law_fits(
    rows: pl.DataFrame, sets: Sequence[SizeSet], options: ScalingLawOptions, metric: str
) -> dict[str, pl.DataFrame]:
    """The tables `scaling_laws` (LAWS_SCHEMA) and `law_points` (POINTS_SCHEMA): every fit, and the ends of runs.

    `rows`: `law_rows` of all sizes. `predicted` is a score, higher is better: of a loss its negative, else the share.
    What cannot be fitted has one row without a corpus, or without a prediction, and `note` says why.
    """
    parts, points = [], []
    for source in options.sources:
        of_source = rows.filter(statistic=source.statistic, weighting=source.weighting)
        key = {"statistic": source.statistic, "weighting": source.weighting}
        for size_set in sets:
            ends = size_set.at_ends(of_source)
            fraction = pl.col("flops") / size_set.target_flops
            points.append(ends.with_columns(sizes=pl.lit(size_set.name), compute_fraction=fraction))
            why = _unfit(of_source, ends, size_set)
            for name in options.laws:
                head = {"law": name, **key, "sizes": size_set.name}
                few = f"not fitted: {LAWS[name].sizes} sizes are needed, found {len(size_set.sizes)}"
                told = why or (few if len(size_set.sizes) < LAWS[name].sizes else "")
                if told:
                    log.warning("scaling laws: %s of %s, %s: %s", name, source.statistic, size_set.name, told)
                    parts.append(pl.DataFrame([head | {"note": told}], LAWS_SCHEMA))
            laws = [name for name in options.laws if len(size_set.sizes) >= LAWS[name].sizes and not why]
            if laws:
                parts.append(_fits_of_source(rows, of_source, ends, size_set, laws, metric))
    return {
        "scaling_laws": pl.concat(parts),
        "law_points": pl.concat(points).select(pl.col(name).cast(kind) for name, kind in POINTS_SCHEMA.items()),
    }


def _unfit(of_source: pl.DataFrame, ends: pl.DataFrame, size_set: SizeSet) -> str:
    """Why nothing can be fitted to a source; empty if it can."""
    present = set(of_source["size"])
    if lacking := [size for size in size_set.sizes if size not in present]:
        return f"not fitted: no values at {', '.join(lacking)}"
    if size_set.ends.is_empty():
        return f"not fitted: no seed was trained at all of {', '.join(size_set.sizes)}"
    per_run = ends.group_by("size", "seed").len()
    if len(per_run) < len(size_set.ends) or per_run["len"].n_unique() > 1:
        return "not fitted: the ends of some runs have no value"
    low, high = of_source["score"].min(), of_source["score"].max()
    if high > 0 and not (low >= 0 and high <= 1):
        return (
            f"not fitted: a law needs a loss, or a share of which more is better; found scores {low:.3g} to {high:.3g}"
        )
    return ""


def _fits_of_source(
    rows: pl.DataFrame, of_source: pl.DataFrame, ends: pl.DataFrame, size_set: SizeSet, laws: Sequence[str], metric: str
) -> pl.DataFrame:
    """The rows of `scaling_laws` of one source and set of sizes."""
    best = 1.0 if of_source["score"].min() >= 0 else 0.0  # score of a perfect model
    series = ends.select(SERIES).unique().sort(SERIES)
    plain = [name for name in laws if LAWS[name].steps == 0]
    fits = {}
    if plain:
        axes = [series, pl.DataFrame({"size": size_set.sizes})]
        scores, flops = (dense(ends, column, column, axes) for column in ("score", "flops"))
        for name in plain:
            found = fit_plain_laws(LAWS[name], flops, best - scores, size_set.target_flops)
            fits[name] = [fit._replace(predicted=best - fit.predicted) for fit in found]
    if others := [name for name in laws if name not in plain]:
        fits |= _datadecide_fits(rows, of_source, best, series, size_set, others, metric)
    largest = size_set.largest.select("seed", extrapolation=size_set.target_flops / pl.col("flops"))
    labels = series.join(size_set.costs, on="seed", how="left", maintain_order="left")
    labels = labels.join(largest, on="seed", how="left", maintain_order="left")
    first = of_source.row(0, named=True)
    constant = {name: pl.lit(first[name]) for name in ("statistic", "weighting", "kind")}
    parts = []
    for name in laws:
        values = [fit.parameters | {"residual": fit.residual, "predicted": fit.predicted} for fit in fits[name]]
        columns = {n: [v.get(n) for v in values] for n in (*_PARAMETERS, "residual", "predicted")}
        own = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Float64)).fill_nan(None)
        told = pl.DataFrame([(fit.points, fit.note) for fit in fits[name]], ["points", "note"], orient="row")
        table = pl.concat([labels, own, told], how="horizontal").with_columns(
            law=pl.lit(name), sizes=pl.lit(size_set.name), **constant
        )
        parts.append(table.select(pl.col(name).cast(kind) for name, kind in LAWS_SCHEMA.items()))
    return pl.concat(parts)


def _datadecide_fits(
    rows: pl.DataFrame,
    of_source: pl.DataFrame,
    best: float,
    series: pl.DataFrame,
    size_set: SizeSet,
    laws: Sequence[str],
    metric: str,
) -> dict[str, list[Fit]]:
    """Law -> its fit to each row of `series`."""
    of_metric = rows.filter(statistic=metric, weighting="none").select(*SERIES, "size", "step", metric="score")
    share = of_metric["metric"].is_between(0, 1).all()
    columns = [*SERIES, "size", "step", "tokens", "flops", "score"]
    both = of_source.filter(pl.col("size").is_in(size_set.sizes)).select(columns)
    both = both.join(of_metric, on=[*SERIES, "size", "step"], how="left").sort(*SERIES, "step")
    groups = {key: group for key, group in both.group_by(SERIES, maintain_order=True)}
    fits = {name: [] for name in laws}
    for key in series.iter_rows():
        fitted = DataDecideFits(_runs(groups[key], best, size_set.sizes, share), size_set.target)
        for name in laws:
            fits[name].append(fitted.fit(LAWS[name]))
    return fits


def _runs(group: pl.DataFrame, best: float, sizes: Sequence[str], share: bool) -> Runs:
    of_sizes = [group.filter(size=size) for size in sizes]
    ends = [of_size.row(-1, named=True) for of_size in of_sizes]
    tokens = np.array([end["tokens"] for end in ends], float)
    parameters = np.array([end["flops"] for end in ends]) / 6 / tokens
    measured = [of_size.drop_nulls("metric") for of_size in of_sizes]  # it may be known at fewer steps
    known = share and all(len(of_size) for of_size in measured)
    used = measured if known else of_sizes
    loss = [best - of_size["score"].to_numpy() for of_size in used]
    return Runs(parameters, tokens, loss, [of_size["metric"].to_numpy() for of_size in used] if known else None)


# Judged


def law_predictions(fits: pl.DataFrame, rows: pl.DataFrame, sets: Sequence[SizeSet]) -> Iterator[pl.DataFrame]:
    """For each set of sizes the predictions of its laws as `decision_accuracy_table` takes them.

    A law that predicts nothing for a corpus, task or seed orders nothing and is left out; the log says so.
    """
    depends = rows.select(_SOURCE).unique()
    for size_set in sets:
        of_set = fits.filter(sizes=size_set.name).drop_nulls("corpus")
        whole = pl.col("predicted").is_finite().fill_null(False).all().over("law", "statistic", "weighting")
        for law, statistic in of_set.filter(~whole).select("law", "statistic").unique().sort("law").iter_rows():
            lost = of_set.filter(law=law, statistic=statistic).filter(~pl.col("predicted").is_finite().fill_null(False))
            log.warning(
                "scaling laws: %s of %s, %s, is not judged: %d fits predict nothing, as %s (%s)",
                *(law, statistic, size_set.name, len(lost), lost["corpus"][0], lost["note"][0]),
            )
        judged = of_set.filter(whole).join(depends, on=["statistic", "weighting", "kind"], maintain_order="left")
        yield judged.join(size_set.costs.select("seed", "tokens"), on="seed", maintain_order="left").select(
            *("corpus", "task", "weighting", "kind", "depends_on_candidate", "seed", "tokens", "flops"),
            statistic=pl.format("{} of {}", "law", "statistic"),
            size="sizes",
            step=pl.lit(size_set.largest["step"].max(), pl.Int64),
            score="predicted",
        )


def law_decision_accuracy(
    predicted: pl.DataFrame,
    rows: pl.DataFrame,
    size_set: SizeSet,
    truth: pl.DataFrame,
    options: SelectionOptions,
    threads: int = 1,
) -> pl.DataFrame:
    """`decision_accuracy_table` of the laws of a set of sizes (`predicted`: of `law_predictions`).

    The best baseline is that of the laws on baselines and of the baselines of the largest size alone, at the end of its
    runs. Tokens and compute are sums over the sizes: of a seed its own, of "mean" and "single" the mean over seeds.
    """
    at_largest = size_set.at_ends(rows.filter(size=size_set.sizes[-1], kind="baseline"))
    wanted = truth.height * size_set.ends["seed"].n_unique()
    complete = at_largest.filter(pl.len().over("statistic", "weighting") == wanted)
    same = {"size": pl.lit(size_set.name), "step": pl.lit(size_set.largest["step"].max(), pl.Int64)}
    compared = pl.concat([predicted, complete.with_columns(**same).select(predicted.columns)])
    table = decision_accuracy_table(compared, truth, size_set.target_flops, options, threads)
    costs = size_set.costs.with_columns(pl.col("seed").cast(pl.String))
    means = costs.select(pl.col("tokens").mean().round().cast(pl.Int64), pl.col("flops", "compute_fraction").mean())
    costs = pl.concat([costs, *(means.select(pl.lit(name).alias("seed"), pl.all()) for name in ("mean", "single"))])
    own = table.filter(pl.col("statistic").is_in(predicted["statistic"].unique().implode()))
    return (
        own.drop("tokens", "flops", "compute_fraction")
        .join(costs, on="seed", maintain_order="left")
        .select(table.columns)
    )


def law_gains(
    predicted: pl.DataFrame,
    fits: pl.DataFrame,
    rows: pl.DataFrame,
    size_set: SizeSet,
    truth: pl.DataFrame,
    options: SelectionOptions,
) -> pl.DataFrame:
    """Whether a law orders corpora better than its source at the largest size alone (GAINS_SCHEMA), over all tasks.

    `difference` is the law's decision accuracy less the source's, paired over the same samples of corpora; `seed` is
    "single" or "mean" as in `decision_accuracy_table`.
    """
    corpora, tasks = (truth.select(name).unique().sort(name) for name in ("corpus", "task"))
    seeds = size_set.ends.select("seed").unique().sort("seed")
    true = np.round(dense(truth, "value", "true value", [tasks, corpora]).mean(0), DECIMALS)
    weights = bootstrap.bootstrap_weights(len(corpora), options.bootstrap_replicates, options.seed)
    resampled, axes = ResampledTruth(true, weights), [seeds, tasks, corpora]
    at_largest = size_set.at_ends(rows.filter(size=size_set.sizes[-1]))
    single_cost = (size_set.largest["flops"] / size_set.target_flops).mean()
    pair = pl.DataFrame({"statistic": ["alone", "law"], "kind": ["baseline", "proxy"]})
    found = []
    keys = ["law", "statistic", "weighting", "kind"]
    for key, own in fits.filter(sizes=size_set.name).drop_nulls("corpus").group_by(keys, maintain_order=True):
        row = dict(zip(keys, key, strict=True)) | {"sizes": size_set.name, "single_size": size_set.sizes[-1]}
        name = f"{row['law']} of {row['statistic']}"
        judged = predicted.filter(statistic=name, weighting=row["weighting"])
        if judged.is_empty():
            continue
        source = at_largest.filter(statistic=row["statistic"], weighting=row["weighting"])
        scores = np.stack([dense(table, "score", name, axes).mean(1) for table in (source, judged)])  # (2, K, n)
        figures = _figures(scores, resampled, pair, options.confidence, len(seeds))
        row |= {"compute_fraction": size_set.costs["compute_fraction"].mean(), "corpora": len(corpora)}
        row |= {"single_compute_fraction": single_cost, "fits": len(own)}
        row |= {"fits_noted": own.filter(pl.col("note") != "").height}
        found += [row | {"seed": seed} | values for seed, values in figures.items()]
    return pl.DataFrame(found, GAINS_SCHEMA)


def _figures(
    scores: Array, truth: ResampledTruth, pair: pl.DataFrame, confidence: float, seeds: int
) -> Mapping[str, dict]:
    """Seed "single" and "mean" -> figures of the law, the second of `scores` (2, K, n), beside the first."""
    table = pl.DataFrame(agreement_figures(scores, truth, pair, confidence))
    alone, law = table.head(seeds + 2), table.tail(seeds + 2)
    rows = {}
    for seed, at in (("single", seeds + 1), ("mean", seeds)):
        names = ["decision_accuracy", "low", "high", "difference", "difference_low", "difference_high", "note"]
        values = law.select(names).row(at, named=True)
        rows[seed] = values | {"single_decision_accuracy": alone["decision_accuracy"][at]}
    return rows


# All together


class LawCell(NamedTuple):
    """Where the rows of a set of sizes stand in the tables, named as a budget is."""

    name: str
    size: str
    step: int
    sizes: Sequence[str]


def law_tables(
    rows: pl.DataFrame,
    checkpoints: pl.DataFrame,
    truths: Mapping[str, pl.DataFrame],
    metric: str,
    options: SelectionOptions,
    threads: int = 1,
) -> tuple[dict[str, pl.DataFrame], dict[str, pl.DataFrame], list[LawCell]]:
    """Tables of the laws by name, their decision accuracies by the metric of `truths`, and where these stand.

    `rows`: `law_rows` of every size, `truths`: metric -> corpus, task, value (higher is better), that of `metric` too.
    """
    sets = size_sets(rows, checkpoints, options.scaling_laws)
    tables, judged, cells, gains = law_fits(rows, sets, options.scaling_laws, metric), {}, [], []
    fits = tables["scaling_laws"]
    for size_set, predicted in zip(sets, law_predictions(fits, rows, sets), strict=True):
        if predicted.is_empty():
            continue
        for name, truth in truths.items():
            table = law_decision_accuracy(predicted, rows, size_set, truth, options, threads)
            judged.setdefault(name, []).append(table)
        gains.append(law_gains(predicted, fits, rows, size_set, truths[metric], options))
        cells.append(LawCell(size_set.name, size_set.name, predicted["step"][0], size_set.sizes))
        reach = fits.filter(sizes=size_set.name)["extrapolation"]
        log.info(
            "scaling laws, %s: the target has %.3g to %.3g times the largest compute that was fitted",
            size_set.name,
            reach.min(),
            reach.max(),
        )
    told = fits.filter(pl.col("note") != "").group_by("law", "note").len().sort("len", descending=True)
    for law, note, count in told.head(TOLD).iter_rows():
        log.warning("scaling laws: %s: %d fits: %s", law, count, note)
    tables["law_gains"] = pl.concat([pl.DataFrame(schema=GAINS_SCHEMA), *gains])
    return tables, {name: pl.concat(parts) for name, parts in judged.items()}, cells
