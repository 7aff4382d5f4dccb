"""What a study knows of its models: their truth, their proxies and their baselines, as arrays."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from proxycast.config.truth import Target
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.metrics import SAMPLED_EXACT_MATCH
from proxycast.options import InputError
from proxycast.proxy_formulas import BASELINE_SIGNS, STATISTICS, WEIGHTINGS
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.truth.targets import HALVES

log = logging.getLogger(__name__)

Tail = Literal["tokens", "bytes", ""]
FEWEST_TASKS, FEWEST_MODELS, FEWEST_OF_A_LABEL = 3, 4, 3  # of a study that judges; of a family or recipe
FEWEST_RANKED = 2  # models
BASE = "none"  # recipe of a model that was not post-trained
BASE_TRUTH = "base_truth"  # baseline: a model is as good as the base that it was made from


class Method(NamedTuple):
    """Something that scores models: one row of the summary."""

    name: str  # of a proxy: "statistic/weighting"
    kind: Literal["scorer", "proxy", "baseline", "oracle"]
    tail: Tail  # "" where no text is read


@dataclass(frozen=True)
class KnownModels:
    """All that is known of the models. Higher is better in all of it: signs are applied.

    `sign`: that of the truth, -1 where less of its metric is better; tables show its values as they were given.
    `truth` is NaN throughout where none is asked for. `problems` is NaN where their number is unknown. `left_out`:
    baselines that are not known for all models and tasks, and why. `recipes`: how each model was post-trained, "" where
    nobody tells it. `bases`: what each was made from (`base_labels`); none at all where no base is told apart.
    """

    models: list[str]
    families: list[str]
    tasks: list[str]
    truth: Array  # (T, n)
    problems: Array  # (T, n), behind each value of the truth
    proxies: list[tuple[str, str]]  # statistic, weighting; statistics of others come last, with the weighting "none"
    features: dict[Tail, Array]  # (T, n, P)
    baselines: dict[Method, Array]  # (T, n)
    left_out: dict[Method, str]
    sign: int = 1
    names: list[str] = field(default_factory=list)  # of the models, as people know them
    recipes: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    halves: Array | None = None  # (2, T, n), the truth over either half of the problems, where it was measured so

    def without_outside(self) -> "KnownModels":
        """The same without the statistics of others."""
        own = [proxy for proxy in self.proxies if proxy[1] != "none"]
        features = {tail: values[..., : len(own)] for tail, values in self.features.items()}
        return replace(self, proxies=own, features=features)

    def part(self, models: NDArray[np.intp]) -> "KnownModels":
        """The same of these models only."""

        def chosen(labels: list[str]) -> list[str]:
            return [labels[model] for model in models] if labels else []

        return replace(
            self,
            **{name: chosen(getattr(self, name)) for name in ("models", "families", "names", "recipes", "bases")},
            truth=self.truth[:, models],
            problems=self.problems[:, models],
            halves=None if self.halves is None else self.halves[:, :, models],
            features={tail: values[:, models] for tail, values in self.features.items()},
            baselines={method: values[:, models] for method, values in self.baselines.items()},
        )


def known_models(
    checkpoints: pl.DataFrame,
    proxies: pl.DataFrame | None,
    targets: pl.DataFrame | None,
    tasks: Sequence[str],
    metric: str = "",
    sign: int = 1,
    outside: pl.DataFrame | None = None,
) -> KnownModels:
    """Gather the models of the role "candidate" from the tables of a study: the last checkpoint of each run.

    `proxies`: None where no model was run. `targets`: the truth of all of them in all `tasks` (`measured` tells which
    have one); None: they are ranked only. `sign`: -1 where less of the metric is better. `outside`: what others
    measured (`outside_statistics.statistics_and_truth`); each statistic is a feature and a baseline.
    `InputError` for fewer than two models; with a truth for fewer than three tasks or four models, and where fewer than
    three tasks order the models at all; for a value that is missing, doubled or not finite.
    """
    models = candidates(checkpoints)
    if targets is None and len(models) < FEWEST_RANKED:
        raise InputError(
            f"checkpoints.parquet: found {len(models)} models of the role candidate; a ranking needs at least "
            f"{FEWEST_RANKED}"
        )
    if targets is not None:
        _require_enough(models, tasks)
    names = models.select("checkpoint")
    truth = problems = np.full((len(tasks), len(models)), np.nan)
    halves = None
    if targets is not None:
        truth, problems = _true_scores(targets, names, tasks, metric)
        halves = _halves(targets, names, tasks) if metric == SAMPLED_EXACT_MATCH else None
    known, features, of_models = [], {}, NO_PROXIES
    if proxies is not None:
        of_models = proxies.join(names, on="checkpoint", how="semi")
        known, features = _proxies_of_texts(of_models, names, tasks)
    others, of_others = _statistics_of_others(outside, names, tasks)
    every = features or {"": np.empty((len(tasks), len(names), 0))}
    baselines, left_out = _baselines(models, of_models, tasks, dict(zip(others, np.moveaxis(of_others, -1, 0))))
    recipes = models["recipe"].to_list() if "recipe" in models.columns else []
    for method, why in left_out.items() if targets is not None else ():
        log.warning("%s is not among the baselines: %s", method.name, why)
    return KnownModels(
        models["checkpoint"].to_list(),
        models["family"].to_list(),
        list(tasks),
        sign * truth,
        problems,
        known + [(statistic, "none") for statistic in others],
        {tail: np.concatenate([values, of_others], axis=-1) for tail, values in every.items()},
        baselines,
        left_out,
        sign,
        models["name"].to_list(),
        recipes,
        base_labels(models) if tells_post_training(recipes) else [],
        None if halves is None else sign * halves,
    )


def models_with_truth(
    checkpoints: pl.DataFrame,
    proxies: pl.DataFrame | None,
    targets: pl.DataFrame | None,
    tasks: Sequence[str],
    target: Target | None,
    outside: pl.DataFrame | None = None,
) -> KnownModels:
    """`known_models` of the models and tasks that have a truth (`measured`); without a `target` of all of them."""
    if target is None:
        return known_models(checkpoints, proxies, None, tasks, outside=outside)
    own, own_tasks = measured(checkpoints, targets, tasks, target.metric)
    return known_models(own, proxies, targets, own_tasks, target.metric, target.sign(target.metric), outside)


NO_PROXIES = pl.DataFrame(
    schema=dict.fromkeys(("checkpoint", "task", "tail", "statistic", "weighting"), pl.String) | {"value": pl.Float64}
)


def _proxies_of_texts(
    of_models: pl.DataFrame, names: pl.DataFrame, tasks: Sequence[str]
) -> tuple[list[tuple[str, str]], dict[Tail, Array]]:
    """The proxies (P) of models that were run, and by tail their signed values (T, n, P)."""
    expert = of_models.filter(pl.col("task").is_in(list(tasks)), pl.col("weighting") != "none")
    if expert.is_empty():
        raise InputError(f"proxies.parquet: holds no proxy of {names['checkpoint'][0]} in task {tasks[0]}; score it")
    found = set(expert.select("statistic", "weighting").iter_rows())
    known = [proxy for proxy in product(STATISTICS, WEIGHTINGS) if proxy in found]
    return known, {
        tail: proxy_features(expert.filter(tail=tail), names, tasks, known, f"proxies.parquet, tail {tail}")
        for tail in ("tokens", "bytes")
        if tail in expert["tail"]
    }


def _statistics_of_others(
    outside: pl.DataFrame | None, names: pl.DataFrame, tasks: Sequence[str]
) -> tuple[list[str], Array]:
    """The statistics (S) that others measured, and their signed values (T, n, S)."""
    if outside is None:
        return [], np.empty((len(tasks), len(names), 0))
    wanted = pl.DataFrame({"task": tasks})
    rows = outside.join(names, on="checkpoint", how="semi").join(wanted, on="task", how="semi")
    # In the order of the whole table: what was learned from some models is applied to others.
    statistics = outside.select("statistic").unique(maintain_order=True)
    statistics = statistics.join(rows, on="statistic", how="semi", maintain_order="left")
    signed = rows.with_columns(value=pl.when("higher_is_better").then(pl.col("value")).otherwise(-pl.col("value")))
    name = "statistics.parquet (every candidate needs every statistic in every task): value"
    return statistics["statistic"].to_list(), dense(signed, "value", name, [wanted, names, statistics])


def candidates(checkpoints: pl.DataFrame) -> pl.DataFrame:
    """The models that are compared: the last checkpoint of each run of the role "candidate".

    `name` is added: the corpus, which for a released model is its name, or where one has several models the run.
    """
    last = pl.col("step") == pl.col("step").max().over("run")
    models = checkpoints.filter(last, role="candidate").sort("checkpoint")
    return models.with_columns(name="corpus" if models["corpus"].is_unique().all() else "run")


def base_labels(models: pl.DataFrame) -> list[str]:
    """What each of the `candidates` was made from: models of one base share corpus, family, size and seed.

    Where every model has its own corpus, as released models do, those of one family have one base.
    """
    if models["corpus"].is_unique().all():
        return models["family"].to_list()
    return models.select(pl.format("{}-{}-seed{} ({})", "corpus", "size", "seed", "family")).to_series().to_list()


def tells_post_training(recipes: Iterable[str]) -> bool:
    """Whether some models of these recipes are bases, and others are post-trained."""
    found = set(recipes)
    return BASE in found and bool(found - {BASE, ""})


def only_bases(known: KnownModels) -> dict[str, int]:
    """What models were made from -> the place of its base; without what has several models of the recipe `none`.

    Released bases of two sizes share a family: nobody tells which of them a model was made from.
    """
    found: dict[str, list[int]] = {}
    for place, (recipe, base) in enumerate(zip(known.recipes, known.bases)):
        if recipe == BASE:
            found.setdefault(base, []).append(place)
    return {base: places[0] for base, places in found.items() if len(places) == 1}


def measured(
    checkpoints: pl.DataFrame, targets: pl.DataFrame, tasks: Sequence[str], metric: str
) -> tuple[pl.DataFrame, list[str]]:
    """The part of `checkpoints`, and of `tasks`, that has a row in `targets`; the log tells what has none.

    A model that has a truth in some of these tasks only is found by `known_models`.
    """
    models = candidates(checkpoints)
    rows = targets.filter(pl.col("task").is_in(list(tasks)), metric=metric).join(models, on="checkpoint", how="semi")
    if rows.is_empty():  # `known_models` tells what is there instead
        return checkpoints, list(tasks)
    there = models.join(rows, on="checkpoint", how="semi", maintain_order="left")
    with_truth = [task for task in tasks if task in set(rows["task"])]
    for what, every, found in (("models", models["checkpoint"], there["checkpoint"]), ("tasks", tasks, with_truth)):
        if missing := [name for name in every if name not in set(found)]:
            log.warning("%s without a truth are ranked by what the others teach: %s", what, ", ".join(missing))
    return checkpoints.join(there, on="run", how="semi", maintain_order="left"), with_truth


def _require_enough(models: pl.DataFrame, tasks: Sequence[str]) -> None:
    if len(tasks) < FEWEST_TASKS:
        raise InputError(
            f"tasks: found {len(tasks)} with a truth ({', '.join(tasks)}); two are held out together, so at least "
            f"{FEWEST_TASKS} are needed to judge; without `target` the models are ranked and nothing is judged"
        )
    if len(models) < FEWEST_MODELS:
        raise InputError(
            f"checkpoints.parquet: found {len(models)} models of the role candidate with a truth "
            f"({', '.join(models['checkpoint'])}); at least {FEWEST_MODELS} are needed to judge; without `target` the "
            "models are ranked and nothing is judged"
        )


def _true_scores(targets: pl.DataFrame, names: pl.DataFrame, tasks: Sequence[str], metric: str) -> tuple[Array, Array]:
    """Values and numbers of problems, (T, n) each; NaN where a number is unknown."""
    wanted = pl.DataFrame({"task": tasks})
    rows = targets.filter(metric=metric).join(names, on="checkpoint", how="semi").join(wanted, on="task", how="semi")
    if rows.is_empty():
        known = sorted(targets["metric"].unique())
        raise InputError(
            f"targets.parquet: holds no {metric} of a candidate in the study's tasks; found metrics {known}"
        )
    name = (
        f"targets.parquet (every candidate needs {metric} in every task, or no row at all, to be ranked without a "
        "truth): value"
    )
    truth = np.round(dense(rows, "value", name, [wanted, names]), DECIMALS)
    tied = np.ptp(truth, axis=1) == 0
    if (~tied).sum() < FEWEST_TASKS:
        raise InputError(
            f"targets.parquet: {metric} orders the models in {(~tied).sum()} of {len(tasks)} tasks; all models tie in "
            f"{', '.join(np.array(tasks)[tied])}; at least {FEWEST_TASKS} tasks with differences are needed: give more "
            "problems, more models or a finer metric"
        )
    for task in np.array(tasks)[tied]:
        log.warning(
            "all models have the same %s in task %s: nothing is learned from it, nor tested on it", metric, task
        )
    counts = rows.with_columns(n=pl.col("n").cast(pl.Float64).fill_null(0))
    problems = dense(counts, "n", "targets.parquet: n", [wanted, names])
    return truth, np.where(problems > 0, problems, np.nan)


def _halves(targets: pl.DataFrame, names: pl.DataFrame, tasks: Sequence[str]) -> Array | None:
    """(2, T, n) of the metrics HALVES; None where one is missing: in a table of others, and of a single problem."""
    axes = [pl.DataFrame({"metric": HALVES}), pl.DataFrame({"task": tasks}), names]
    rows = targets
    for axis in axes:
        rows = rows.join(axis, on=axis.columns, how="semi")
    whole = len(rows) == len(HALVES) * len(tasks) * len(names)
    return np.round(dense(rows, "value", "targets.parquet: value", axes), DECIMALS) if whole else None


def proxy_features(
    rows: pl.DataFrame, names: pl.DataFrame, tasks: Sequence[str], proxies: list[tuple[str, str]], where: str
) -> Array:
    """Signed proxies (T, n, P)."""
    axes = [
        pl.DataFrame({"task": tasks}),
        names,
        pl.DataFrame(proxies, schema={"statistic": pl.String, "weighting": pl.String}, orient="row"),
    ]
    name = f"{where} (every candidate needs every proxy in every task): value"
    return dense(rows, "value", name, axes) * [STATISTICS[statistic].sign for statistic, _ in proxies]


def _baselines(
    models: pl.DataFrame, proxies: pl.DataFrame, tasks: Sequence[str], others: Mapping[str, Array]
) -> tuple[dict[Method, Array], dict[Method, str]]:
    """Scores (T, n) of what is known without learning, such as those of `others`; of the rest, why it is left out."""
    ratios, found = proxies.filter(weighting="none"), {}
    order = {"by": ["tail", "statistic"], "descending": [True, False]}  # tokens before bytes
    for statistic, tail in ratios.select("statistic", "tail").unique().sort(**order).iter_rows():
        own = {(c, t): v for c, t, v in ratios.filter(statistic=statistic, tail=tail).select(_CELL).iter_rows()}
        texts = {statistic: tasks}
        if statistic in _GENERIC:
            texts[_GENERIC[statistic]] = [GENERIC_TEXT] * len(tasks)
        for name, read in texts.items():
            values = [[own.get((model, text)) for model in models["checkpoint"]] for text in read]
            found[Method(name, "baseline", tail)] = BASELINE_SIGNS[statistic] * np.array(values, float)
    found |= {Method(name, "baseline", ""): values for name, values in others.items()}
    for name, column in (("parameters", "parameters"), ("training_compute", "flops")):
        values = models[column].cast(pl.Float64).fill_null(0).replace(0, np.nan).to_numpy()
        found[Method(name, "baseline", "")] = np.tile(values, (len(tasks), 1))
    found[Method("chance", "baseline", "")] = np.zeros((len(tasks), len(models)))
    known = {method: np.isfinite(values).all(0).sum() for method, values in found.items()}
    left_out = {
        method: f"known for {known[method]} of {len(models)} models in every task"
        for method, values in found.items()
        if known[method] < len(models) and (method.tail == "" or np.isfinite(values).any())
    }
    return {method: values for method, values in found.items() if known[method] == len(models)}, left_out


_CELL = ["checkpoint", "task", "value"]
_GENERIC = {"expert_cross_entropy": "generic_cross_entropy", "bits_per_byte": "generic_bits_per_byte"}

_TEXT = {"split", "held_out", "task", "method", "kind", "tail", "note", "scorer", "statistic", "weighting"}
_TEXT |= {"model", "checkpoint", "family", "best_baseline", "writer", "verdict"}
_TEXT |= {"population", "baseline", "baseline_tail", "recipe", "base"}
_COUNTS = {"fold", "folds", "models", "bases", "number", "draw", "at_chance", "at_ceiling"}


def schema_of(*columns: str) -> dict[str, pl.DataType]:
    """Types of the columns of the experiment's tables, by their names."""
    return {c: pl.String if c in _TEXT else pl.Int64 if c in _COUNTS else pl.Float64 for c in columns}
