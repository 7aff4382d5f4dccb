"""A judge learned from the tables of a data selection: each proxy named in advance, at every size and step."""

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import polars as pl

from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments.data_selection import corpus_scores, corpus_truth
from proxycast.experiments.judges.judge_file import FORMAT, CorpusProxy, Judge, Metric, Origin, Reading, Share, TaskSeen
from proxycast.experiments.judges.judge_links import fit_link
from proxycast.metrics import is_share
from proxycast.proxy_formulas import BASELINE_SIGNS, SIGNS

log = logging.getLogger(__name__)

_CELL = ["statistic", "weighting", "size", "step"]


def corpus_judge(
    study: str,
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    tasks: Sequence[str],
    target: Target,
    highlighted: Sequence[Proxy],
    tables: Mapping[str, pl.DataFrame],
    *,
    proxies: pl.LazyFrame | None = None,
    reading: Reading | None = None,
    tokenizers: Sequence[str] = (),
    made_from: Mapping[str, str] | None = None,
) -> Judge:
    """What a finished data selection learned of its `highlighted` proxies.

    `tables`: "decision_accuracy" and "truth" of `data_selection_tables`, which was given the same `checkpoints`,
    `targets` and `proxies`. `reading` and `tokenizers` say how models read; `made_from`: table -> fingerprint.
    """
    truth = corpus_truth.truth_by_seed(checkpoints, targets.filter(pl.col("task").is_in(tasks)), target.metric)
    metric = truth.group_by("corpus").agg(metric=pl.col("value").mean())
    signs = corpus_scores.metric_signs(targets, target)
    scored = None if proxies is None else proxies.filter(tail="tokens")
    scores = _scores(checkpoints, scored, targets, tasks, signs, highlighted).join(metric, on="corpus")
    found = set(scores.select("statistic", "weighting").iter_rows())
    if left := [proxy.statistic for proxy in highlighted if (proxy.statistic, proxy.weighting) not in found]:
        log.warning("the judge leaves out %s, which no other study can compute", ", ".join(left))
    accuracies = tables["decision_accuracy"].filter(truth=target.metric, task="all")
    large = checkpoints.filter(role="target")
    return Judge(
        format=FORMAT,
        study=study,
        kind="data_selection",
        metric=_metric(metric["metric"], target, tables["truth"]),
        target_size=large["size"][0],
        target_flops=large["flops"].max(),
        candidates=metric["corpus"].sort().to_list(),
        tasks=tasks_seen(tasks, scored),
        reading=reading,
        tokenizers=list(tokenizers),
        corpus_proxies=_known(scores, checkpoints, accuracies, signs, is_share(target.metric)),
        scorers=[],
        origin=origin(made_from or {}),
    )


_FIGURES = ["decision_accuracy", "low", "high", "compute_fraction", "tokens", "corpora"]


def _known(
    scores: pl.DataFrame,
    checkpoints: pl.DataFrame,
    accuracies: pl.DataFrame,
    signs: corpus_scores.Signs,
    share: bool,
) -> list[CorpusProxy]:
    """What is known of every proxy at every size and step. `scores`: those of `_scores`, and the metric."""
    sizes = (
        checkpoints.filter(role="proxy")
        .group_by("size")
        .agg(pl.col("active_parameters").first(), last=pl.col("step").max())
    )
    by_size = {size: (parameters, last) for size, parameters, last in sizes.iter_rows()}
    found = accuracies.filter(pl.col("seed").is_in(["single", "mean"]))
    figures = {tuple(row[:5]): row[5:] for row in found.select(*_CELL, "seed", *_FIGURES).iter_rows()}
    known = []
    for names, cell in scores.group_by(_CELL, maintain_order=True):
        statistic, weighting, size, step = names
        parameters, last = by_size[size]
        compute, tokens, corpora = figures[(*names, "mean")][3:]
        known.append(
            CorpusProxy(
                **{"statistic": statistic, "weighting": weighting, "size": size, "step": step, "tokens": tokens},
                **{"parameters": parameters, "step_fraction": step / last if last else 1.0},
                **{"compute_fraction": compute, "corpora": corpora, "seeds": cell["seeds"].max()},
                sign=SIGNS.get(statistic, signs.get(statistic, 1)),
                single=_share(*figures[(*names, "single")][:3]),
                mean=_share(*figures[(*names, "mean")][:3]),
                link=fit_link(cell["score"], cell["metric"], share),
            )
        )
    return known


def _scores(
    checkpoints: pl.DataFrame,
    proxies: pl.LazyFrame | None,
    targets: pl.DataFrame,
    tasks: Sequence[str],
    signs: corpus_scores.Signs,
    highlighted: Sequence[Proxy],
) -> pl.DataFrame:
    """statistic, weighting, size, step, corpus, score (mean over tasks and seeds), seeds."""
    names = pl.LazyFrame([proxy.model_dump() for proxy in highlighted]).unique()
    if proxies is None:
        text = dict.fromkeys(("checkpoint", "task", "statistic", "weighting"), pl.String)
        proxies = pl.LazyFrame(schema=text | {"value": pl.Float64})
    # Beside the highlighted, baselines: that of generic text is made from one of another name.
    wanted = pl.concat([names, pl.LazyFrame([{"statistic": name, "weighting": "none"} for name in BASELINE_SIGNS])])
    kept = proxies.join(wanted.unique(), on=["statistic", "weighting"], how="semi", maintain_order="left")
    predicted = pl.concat(corpus_scores.predictions_by_size(checkpoints, kept, targets, tasks, signs))
    predicted = predicted.join(names.collect(), on=["statistic", "weighting"], how="semi", maintain_order="left")
    means = predicted.group_by(*_CELL, "corpus").agg(pl.col("score").mean(), seeds=pl.col("seed").n_unique())
    return means.sort("statistic", "weighting", "size", "step", "corpus")


def _share(value: float | None, low: float | None, high: float | None) -> Share:
    return Share(value=value, low=low, high=high)


def _metric(values: pl.Series, target: Target, truth: pl.DataFrame) -> Metric:
    """`values`: of the candidates, as given; `truth`: table of the experiment."""
    row = truth.filter(metric=target.metric).row(0, named=True)
    ceiling = [row[f"ceiling_decision_accuracy{end}"] for end in ("", "_low", "_high")]
    return metric_seen(values, target, _share(*ceiling), row["verdict"])


def metric_seen(values: pl.Series, target: Target, ceiling: Share, verdict: str) -> Metric:
    """The metric of a truth. `values`: one for each candidate, as given."""
    return Metric(
        name=target.metric,
        higher_is_better=target.sign(target.metric) > 0,
        bounds=[0.0, 1.0] if is_share(target.metric) else None,
        lowest=values.min(),
        highest=values.max(),
        ceiling=ceiling,
        verdict=verdict,
    )


def tasks_seen(tasks: Sequence[str], proxies: pl.LazyFrame | None) -> list[TaskSeen]:
    """Solutions and scored tokens of each task: the most that a model read, as tokenizers may differ."""
    counts: dict[str, tuple[int, int]] = {}
    if proxies is not None:
        rows = proxies.group_by("task").agg(pl.col("solutions").max(), pl.col("tokens").max()).collect()
        counts = {task: (solutions, tokens) for task, solutions, tokens in rows.iter_rows()}
    none = (None, None)
    return [TaskSeen(name=task, **dict(zip(("solutions", "tokens"), counts.get(task, none)))) for task in tasks]


def origin(made_from: Mapping[str, str]) -> Origin:
    """Version, day, and `made_from`: table -> fingerprint."""
    version = importlib.metadata.version("proxycast")
    return Origin(proxycast=version, date=f"{datetime.now(UTC):%Y-%m-%d}", tables=dict(made_from))
