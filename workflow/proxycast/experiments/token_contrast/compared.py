"""The two candidates that are compared token by token, their checkpoints, and the files that hold them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from proxycast.config.errors import closest
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import DEFAULT_PROXIES, Budget, Proxy
from proxycast.options import InputError
from proxycast.proxy_formulas import BASELINES, STATISTICS, proxy_name
from proxycast.tables import MANIFEST, manifest_parts

MOST_STEPS = 8  # checkpoints over training that are shown of a candidate
Steps = Mapping[int, str]  # step -> checkpoint


@dataclass(frozen=True)
class Compared:
    """One of the two. `name`: corpus, model, or checkpoint of a single run; `run`: the run that is shown.

    `weights`: checkpoint -> its weight in the mean that stands for the candidate, as its ranking has it. `end`: the
    checkpoint shown first; `steps`: those shown over training, `end` among them.
    """

    name: str
    run: str
    end: str
    weights: Mapping[str, float]
    steps: Steps


@dataclass(frozen=True)
class Comparison:
    """`candidates`: the leader, and the last if there are two; `proxy` decides between them, over the tail `tail`."""

    candidates: Sequence[Compared]
    proxy: Proxy
    tail: str = "tokens"


def first_proxy(highlighted: Sequence[Proxy]) -> Proxy:
    """The first highlighted proxy, or ratio of sums, that is made of tokens; without one the default."""
    known = [p for p in highlighted if p.statistic in (STATISTICS if p.weighting != "none" else BASELINES)]
    return [*known, DEFAULT_PROXIES[0]][0]


def comparison_of(
    checkpoints: pl.DataFrame,
    scored: Iterable[str],
    highlighted: Sequence[Proxy],
    options: SelectionOptions,
    *,
    budgets: Sequence[Budget] = (),
    corpora: pl.DataFrame | None = None,
    models: pl.DataFrame | None = None,
    names: Sequence[str] = (),
) -> Comparison:
    """What a study compares: corpora at its last budget, models, or the two ends of a training run.

    `scored`: checkpoints that have token statistics; `corpora`, `models`: the ranking of either selection, if the study
    has it. `names`: one or two candidates instead of the first and the last. `InputError` for unknown ones.
    """
    known = checkpoints.filter(pl.col("checkpoint").is_in(list(scored)))
    if corpora is not None and budgets:
        return compared_corpora(known, corpora, budgets[-1], highlighted, options, names)
    if models is not None:
        return compared_models(known, models, highlighted, options, names)
    return compared_steps(known, highlighted, names)


def compared_corpora(
    checkpoints: pl.DataFrame,
    ranking: pl.DataFrame,
    budget: Budget,
    highlighted: Sequence[Proxy],
    options: SelectionOptions,
    names: Sequence[str] = (),
) -> Comparison:
    """Corpora of a data selection: the first and the last at `budget`, or those of `names`.

    `ranking`: the table data_selection/ranking. What stands for a corpus is the mean over the seeds that all corpora
    have, and over the last checkpoints of each (`selection.last_checkpoints`); its first seed is shown.
    """
    proxy, small = first_proxy(highlighted), checkpoints.filter(role="proxy", size=budget.size)
    at_budget = small.filter(step=budget.step)
    orders = ranking.filter(size=budget.size, step=budget.step)
    own = orders.filter(statistic=proxy.statistic, weighting=proxy.weighting)
    if own.is_empty():  # another order of the table, and of one method alone
        own = orders.join(orders.head(1), on=["statistic", "weighting"], how="semi", maintain_order="left")
    ranked = own.sort("place", "corpus")
    ranked = ranked.join(at_budget, on="corpus", how="semi", maintain_order="left")
    order = ranked["corpus"].unique(maintain_order=True).to_list()
    everyone = at_budget.filter(pl.col("corpus").is_in(order))
    seeds = [seed for (seed,), rows in everyone.group_by("seed") if rows["corpus"].n_unique() == len(order)]
    alike = small.filter(pl.col("seed").is_in(seeds))
    runs_of = {}
    for corpus in _chosen(order, names, "corpus"):
        of_corpus = (small if alike.is_empty() else alike).filter(corpus=corpus).sort("seed", "step")
        runs = [of_run for _, of_run in of_corpus.group_by("run", maintain_order=True)]
        runs_of[corpus] = [of_run for of_run in runs if budget.step in of_run["step"]]
    common = set.intersection(*(set(runs[0]["step"]) for runs in runs_of.values()))
    number = options.last_checkpoints
    return Comparison([_compared(name, runs, budget.step, number, common) for name, runs in runs_of.items()], proxy)


def compared_models(
    checkpoints: pl.DataFrame,
    ranking: pl.DataFrame,
    highlighted: Sequence[Proxy],
    options: SelectionOptions,
    names: Sequence[str] = (),
) -> Comparison:
    """Models of a model selection: the first and the last over all tasks, or those of `names`.

    `ranking`: the table model_selection/ranking. Where the proxy ranks nothing there, its first method does.
    """
    proxy = first_proxy(highlighted)
    of_all = ranking.filter(task="all")
    own = of_all.filter(method=proxy_name(proxy.statistic, proxy.weighting))
    rows = of_all if own.is_empty() else own
    rows = rows.filter(method=rows["method"][0], tail=rows["tail"][0]).sort("place", "model")
    rows = rows.join(checkpoints, on="checkpoint", how="semi", maintain_order="left")
    ends = dict(rows.select("model", "checkpoint").iter_rows())
    found = []
    for model in _chosen(ends, names, "model"):
        end = checkpoints.filter(checkpoint=ends[model])
        of_run = checkpoints.filter(run=end["run"][0]).sort("step")
        found.append(_compared(model, [of_run], end["step"][0], options.last_checkpoints, set(of_run["step"])))
    return Comparison(found, proxy, rows["tail"][0] or "tokens")


def compared_steps(checkpoints: pl.DataFrame, highlighted: Sequence[Proxy], names: Sequence[str] = ()) -> Comparison:
    """The last and the first checkpoint of a training run, as of a forecast: the longest run, or those of `names`.

    The first of the two is shown as it ended, the second over training.
    """
    rows = checkpoints.sort("run", "step")
    if rows.is_empty():
        raise InputError("no checkpoint has token statistics here; run the study to make them")
    if names:
        known = rows["checkpoint"].to_list()
        ends = [rows.row(known.index(name), named=True) for name in _chosen(known, names)]
    else:
        counts = rows.group_by("run", maintain_order=True).len().sort("len", descending=True, maintain_order=True)
        of_run = rows.filter(run=counts["run"][0])
        ends = [of_run.row(n, named=True) for n in ([-1, 0] if len(of_run) > 1 else [0])]
    found = []
    for number, end in enumerate(ends):
        of_run = rows.filter(run=end["run"])
        steps = _evenly(of_run, end["step"]) if number else {end["step"]: end["checkpoint"]}
        found.append(Compared(end["checkpoint"], end["run"], end["checkpoint"], {end["checkpoint"]: 1.0}, steps))
    return Comparison(found, first_proxy(highlighted))


def stat_files(token_stats: Iterable[Path]) -> dict[str, Path]:
    """Checkpoint -> the file of its token statistics, by the manifests of the jobs; no table is opened."""
    return {part.stem: part for manifest in token_stats for part in manifest_parts(manifest)}


def manifests_below(results: Path) -> list[Path]:
    return sorted((results / "token_stats").glob(f"*/{MANIFEST}"))


def _compared(name: str, runs: Sequence[pl.DataFrame], step: int, number: int, shown: Collection[int]) -> Compared:
    """A candidate whose value is the mean over `runs` of the mean of their `number` checkpoints up to `step`."""
    weights: dict[str, float] = {}
    for of_run in runs:
        last = of_run.filter(pl.col("step") <= step)["checkpoint"].to_list()[-number:]
        weights |= dict.fromkeys(last, 1 / len(last) / len(runs))
    first = runs[0]
    end = first.filter(step=step)["checkpoint"][0]
    return Compared(name, first["run"][0], end, weights, _evenly(first.filter(pl.col("step").is_in(shown)), step))


def _evenly(of_run: pl.DataFrame, step: int, most: int = MOST_STEPS) -> dict[int, str]:
    """Up to `most` checkpoints of a run, evenly spaced among those it has, with that of `step` among them."""
    steps = sorted(set(of_run["step"]))
    places = {round(place) for place in np.linspace(0, len(steps) - 1, min(most, len(steps)))}
    at = steps.index(step)
    if at not in places:
        places.remove(min(places, key=lambda place: (abs(place - at), place)))
    names = dict(of_run.select("step", "checkpoint").iter_rows())
    return {steps[place]: names[steps[place]] for place in sorted(places | {at})}


def _chosen(known: Iterable[str], names: Sequence[str], what: str = "checkpoint") -> list[str]:
    """`names`, or the first and the last of `known`. `InputError` for a name that is not known."""
    known = list(known)
    if not known:
        raise InputError(f"no {what} of the ranking has token statistics here; run the study to make them")
    for name in names:
        if name not in known:
            raise InputError(f"no {what} {name!r} here{closest(name, known)}; there are {', '.join(known)}")
    return list(dict.fromkeys(names or [known[0], known[-1]]))
