"""The models in their predicted order: by every scorer, named proxy and baseline, with or without a truth.

Without a truth nothing is learned: proxies that were named in advance, and baselines on the expert solutions, order the
models by their own sign. In a judged study every scorer is also fitted to all models and tasks with a truth (`Learned`)
and orders all models in all tasks. Where a scorer has learned from a model's truth in a task, its place there is no
prediction, and `rests_on` says so; the folds tell how well the scorer does on what it has not seen.

What is resampled is the solutions of each task, the same ones for all models. What a scorer has learned is held fixed:
its intervals leave out that other models or tasks would have taught it otherwise.

Over all tasks, a model's score is the mean over tasks of its score there, less the mean over models, in units of the
standard deviation over models (divisor n). Raw scores of two tasks have no common scale (bits per byte of code and of
prose), and those of scorers none at all; a mean of places would count a hair's breadth as much as a gulf. In a sample
the mean is the sample's, so that what is hard for all models cancels; the deviation is that of all solutions, so that a
pair that can be told apart in a study's only task can be told apart over all.

Shapes: T tasks, n models, M solutions of a task, P proxies, B bootstrap samples.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Proxy
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.candidate_order import SOLUTIONS, ResampledScores, agreement_table, pair_table, place_table
from proxycast.experiments.model_selection.folds import fit_scorer
from proxycast.experiments.model_selection.known_models import KnownModels, Method, Tail, schema_of
from proxycast.experiments.model_selection.scorers import SCORERS, Scorer
from proxycast.proxy_formulas import RBRIDGE, SIGNS, TEMPERED

log = logging.getLogger(__name__)

ALL_TASKS = "all"
BITS_PER_BYTE = "bits_per_byte"
# Baselines that read the expert solutions. Those that know no task (generic text, parameters, compute) rank if named.
OF_SOLUTIONS = (BITS_PER_BYTE, "expert_cross_entropy", *TEMPERED, RBRIDGE)
PER_BYTE = (BITS_PER_BYTE, "tempered_bits_per_byte")  # these compare models whose tokenizers differ
SOLUTIONS_ALONE, SCORER_FIXED = "solutions", "solutions, with the fitted scorer"  # what intervals are over
# What the place of a model in a task rests on.
NOTHING_LEARNED, IN_SAMPLE, PARTLY = "nothing learned", "in sample", "partly in sample"
OTHER_MODELS, OTHER_TASKS, OTHER_BOTH = "other models", "other tasks", "other models and tasks"
NO_SOLUTIONS = pl.LazyFrame(  # of a study that runs no model
    schema=dict.fromkeys(("checkpoint", "task", "tail", "solution", "statistic", "weighting"), pl.String)
    | {"value": pl.Float64, "denominator": pl.Float64, "tokens": pl.Int64}
)
TRUTH_OF_MODELS = schema_of("task", "checkpoint", "truth")


@dataclass(frozen=True)
class Learned:
    """The scorers, fitted to every model and task with a truth; how well each method did where two tasks are held out.

    `truth`: task ("all": the mean over tasks), checkpoint, truth as it was given. `spearman`: (method, tail) -> rho.
    """

    scorers: Mapping[Method, Scorer] = field(default_factory=dict)
    models: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    truth: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=TRUTH_OF_MODELS))
    spearman: Mapping[tuple[str, str], float] = field(default_factory=dict)


def learn(known: KnownModels, scorers: Sequence[str], spearman: Mapping[tuple[str, str], float]) -> Learned:
    """Fit the named scorers to all of `known`, in every tail. Tasks in which all models tie teach nothing."""
    tasks, everyone = np.flatnonzero(np.ptp(known.truth, axis=1) > 0), np.arange(len(known.models))
    fitted = {
        Method(name, "scorer", tail): fit_scorer(SCORERS[name](), known, features, tasks.tolist(), everyone)
        for name in scorers
        for tail, features in known.features.items()
    }
    given = {**dict(zip(known.tasks, known.truth)), ALL_TASKS: known.truth.mean(0)}
    rows = [(t, model, known.sign * v) for t, values in given.items() for model, v in zip(known.models, values)]
    truth = pl.DataFrame(rows, TRUTH_OF_MODELS, orient="row")
    return Learned(fitted, frozenset(known.models), frozenset(known.tasks), truth, spearman)


def ranking_tables(
    known: KnownModels,
    of_solutions: pl.LazyFrame,
    named: Sequence[Proxy],
    options: SelectionOptions,
    learned: Learned = Learned(),
) -> dict[str, pl.DataFrame]:
    """The tables `ranking`, `pairs` and `agreement`: of "all" tasks together, then of each.

    `known`: all models and tasks; a truth is not needed. `of_solutions`: values per solution and tail
    (`proxy_formulas.solution_proxies`, `solution_ratios`): of the proxies `named` in advance, and for scorers of all.
    The method of `leading_method` comes first, so the first row is the best model.
    """
    baselines, scorers = _ranking_baselines(known, named), learned.scorers
    by_task = {
        task: task_scores(known, of_solutions, t, named, baselines, options, scorers)
        for t, task in enumerate(known.tasks)
    }
    methods = list(by_task[known.tasks[0]])
    first = leading_method(methods, named, learned.spearman, read_alike(of_solutions, known))
    methods.sort(key=lambda method: method != first)
    over_all = {method: mean_over_tasks([found[method] for found in by_task.values()]) for method in methods}
    names = pl.DataFrame({"model": known.names, "family": known.families, "checkpoint": known.models})
    labels = pl.DataFrame([{"method": m.name, "kind": m.kind, "tail": m.tail} for m in methods])
    ranking, pairs, agreement = [], [], []
    for task, scores in {ALL_TASKS: over_all, **by_task}.items():
        of_task = labels.select(pl.lit(task).alias("task"), pl.all())
        for n, method in enumerate(methods):
            places = place_table(names, scores[method], options.confidence)
            ranking.append(of_task[n].join(places, how="cross"))
            pairs.append(of_task[n].join(pair_table(known.names, scores[method], options.confidence), how="cross"))
        found = agreement_table(labels, np.stack([scores[method].points for method in methods]))
        agreement.append(found.select(pl.lit(task).alias("task"), pl.all()))
    return {
        "ranking": _with_evidence(pl.concat(ranking), known, learned),
        "pairs": pl.concat(pairs),
        "agreement": pl.concat(agreement),
    }


def task_scores(
    known: KnownModels,
    of_solutions: pl.LazyFrame,
    t: int,
    named: Sequence[Proxy],
    baselines: Sequence[Method],
    options: SelectionOptions,
    scorers: Mapping[Method, Scorer],
) -> dict[Method, ResampledScores]:
    """Scores of every named proxy, baseline and scorer in task number `t`: of all its solutions, and of samples."""
    wanted = [(proxy.statistic, proxy.weighting) for proxy in named if proxy.weighting != "none"]
    wanted = [proxy for proxy in wanted if proxy in known.proxies]  # none of them where no model was run
    proxies = known.proxies if scorers else [proxy for proxy in known.proxies if proxy in wanted]
    found: dict[Method, ResampledScores] = {}
    samples: dict[Tail, dict[tuple[str, str], Array]] = {}
    for tail, features in known.features.items():
        others = [proxy for proxy in proxies if proxy[1] == "none"]
        own = [proxy for proxy in proxies if proxy[1] != "none"]
        columns = [*own, *((method.name, "none") for method in baselines if method.tail == tail != "")]
        samples[tail], resampled = signed_samples(of_solutions, known, t, tail, columns, options)
        for other in others:  # what others measured has no solutions to draw
            points = features[t][:, known.proxies.index(other)]
            samples[tail][other] = np.broadcast_to(points, (options.bootstrap_replicates, len(points)))
        for proxy in wanted:
            points = features[t][:, known.proxies.index(proxy)]
            found[Method("/".join(proxy), "proxy", tail)] = ResampledScores(points, samples[tail][proxy], resampled)
        for method, scorer in scorers.items():
            if method.tail == tail:
                drawn = scorer.predict_samples(np.stack([samples[tail][proxy] for proxy in proxies], axis=-1))
                found[method] = ResampledScores(scorer.predict(features[t]), drawn, resampled)
    for method in baselines:
        points, drawn = known.baselines[method][t], samples.get(method.tail or None, {}).get((method.name, "none"))
        fixed = np.broadcast_to(points, (options.bootstrap_replicates, len(points)))
        found[method] = ResampledScores(points, fixed if drawn is None else drawn, drawn is not None and resampled)
    return found


def _ranking_baselines(known: KnownModels, named: Sequence[Proxy]) -> list[Method]:
    names = [proxy.statistic for proxy in named if proxy.weighting == "none"]
    others = [statistic for statistic, weighting in known.proxies if weighting == "none"]  # measured by others
    for name in names:
        if name not in {method.name for method in known.baselines}:
            log.warning("highlighted: %s is not known for all models in every task, and ranks nothing", name)
    return [method for method in known.baselines if method.name in (*names, *others, *OF_SOLUTIONS)]


def signed_samples(
    of_solutions: pl.LazyFrame,
    known: KnownModels,
    t: int,
    tail: Tail,
    columns: Sequence[tuple[str, str]],
    options: SelectionOptions,
) -> tuple[dict[tuple[str, str], Array], bool]:
    """Signed values (B, n) of each proxy and ratio in samples of the solutions of a task; whether there are several.

    A value is sum(value) / sum(denominator) over the sample, where a proxy's denominator is 1: its mean. Baselines
    without values per solution are left out.
    """
    if not columns:
        return {}, False
    task, models = known.tasks[t], pl.DataFrame({"checkpoint": known.models})
    wanted = pl.DataFrame(columns, ["statistic", "weighting"], orient="row")
    rows = of_solutions.filter(task=task, tail=tail).join(wanted.lazy(), on=wanted.columns, how="semi")
    rows = rows.collect().join(models, on="checkpoint", how="semi")
    # Proxies must be there; a ratio may have no values per solution.
    there = wanted.join(rows, on=wanted.columns, how="semi", maintain_order="left").rows()
    there = [proxy for proxy in columns if proxy[1] != "none" or proxy in there]
    if not there:
        return {}, False
    solutions = rows.select("solution").unique().sort("solution")
    draws = bootstrap.bootstrap_weights(
        len(solutions), options.bootstrap_replicates, bootstrap.stream(options.seed, SOLUTIONS, t)
    )
    axes = [pl.DataFrame(there, wanted.schema, orient="row"), models, solutions]
    where = f"solution_proxies, task {task}, tail {tail}"
    values, denominators = (dense(rows, name, f"{where}: {name}", axes) for name in ("value", "denominator"))
    found = {}
    for proxy, value, denominator in zip(there, values, denominators, strict=True):
        sums, weights = draws @ value.T, draws @ denominator.T
        found[proxy] = SIGNS[proxy[0]] * np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)
    return found, len(solutions) > 1


def mean_over_tasks(scores: Sequence[ResampledScores]) -> ResampledScores:
    """The mean over tasks of the standardised scores; a task in which all models tie adds 0."""
    points, samples = 0.0, 0.0
    for found in scores:
        tied = np.ptp(np.round(found.points, DECIMALS)) == 0
        scale = 0.0 if tied else 1 / (len(scores) * found.points.std())
        points = points + scale * (found.points - found.points.mean())
        samples = samples + scale * (found.samples - found.samples.mean(-1, keepdims=True))
    return ResampledScores(points, samples, any(found.resampled for found in scores))


def read_alike(of_solutions: pl.LazyFrame, known: KnownModels) -> bool:
    """Whether all models read every solution in as many tokens, and as many bytes in these: with one tokenizer."""
    ratios = of_solutions.filter(pl.col("checkpoint").is_in(known.models), tail="tokens", statistic=BITS_PER_BYTE)
    counts = ratios.group_by("task", "solution").agg(pl.struct("tokens", "denominator").n_unique().alias("counts"))
    return (counts.select(pl.col("counts").max()).collect().item() or 1) == 1


def leading_method(
    methods: Sequence[Method], named: Sequence[Proxy], spearman: Mapping[tuple[str, str], float], alike: bool
) -> Method:
    """The method whose order is told first.

    With a truth: the one that did best on tasks that were held out. Without: the first that was named in advance. Where
    the tokenizers differ a proxy per token does not compare the models, so there it is bits per byte, if that was
    named, and the tail in bytes, if there is one.
    """
    judged = [method for method in methods if (method.name, method.tail) in spearman]
    if judged:
        return max(judged, key=lambda method: round(spearman[method.name, method.tail], DECIMALS))
    order = [p.statistic if p.weighting == "none" else f"{p.statistic}/{p.weighting}" for p in named]
    if not alike:
        log.warning(
            "the models' tokenizers differ: of the proxies only bits per byte compares such models; set "
            "extraction.tail_bytes to have all of them score the same text"
        )
        order.sort(key=lambda name: name not in PER_BYTE)
    order = list(dict.fromkeys([*order, *OF_SOLUTIONS, *(method.name for method in methods)]))
    tails = ("tokens", "bytes", "") if alike else ("bytes", "tokens", "")
    methods = [method for method in methods if method.name in order]
    return min(methods, key=lambda method: (order.index(method.name), tails.index(method.tail)))


def _with_evidence(ranking: pl.DataFrame, known: KnownModels, learned: Learned) -> pl.DataFrame:
    """Add what the intervals are over, what each row rests on, how well its method did, and the truth."""
    everywhere = set(known.tasks) <= learned.tasks
    of_all, seen = pl.col("task") == ALL_TASKS, pl.col("checkpoint").is_in(list(learned.models))
    task_seen = pl.when(of_all).then(pl.lit(everywhere)).otherwise(pl.col("task").is_in(list(learned.tasks)))
    rests_on = (
        pl.when(pl.col("kind") != "scorer")
        .then(pl.lit(NOTHING_LEARNED))
        .when(seen & of_all & ~task_seen)
        .then(pl.lit(PARTLY))
        .when(seen & task_seen)
        .then(pl.lit(IN_SAMPLE))
        .when(task_seen)
        .then(pl.lit(OTHER_MODELS))
        .when(seen)
        .then(pl.lit(OTHER_TASKS))
        .otherwise(pl.lit(OTHER_BOTH))
    )
    rows = [(name, tail, rho) for (name, tail), rho in learned.spearman.items()]
    rho = pl.DataFrame(rows, schema_of("method", "tail", "held_out_spearman"), orient="row")
    over = pl.when(pl.col("kind") == "scorer").then(pl.lit(SCORER_FIXED)).otherwise(pl.lit(SOLUTIONS_ALONE))
    interval_over = pl.when(pl.col("score_low").is_null()).then(pl.lit("")).otherwise(over)
    return (
        ranking.with_columns(interval_over=interval_over, rests_on=rests_on)
        .join(rho, on=["method", "tail"], how="left", maintain_order="left")
        .join(learned.truth, on=["task", "checkpoint"], how="left", maintain_order="left")
    )
