"""What a choice of a model costs on held-out tasks: regret, undecided pairs, calibration of gaps, of every method.

Figures are those of a fold's two test tasks, averaged as rho is in the table summary: over a fold's tasks, then over
folds.

Shapes: n models, T tasks, M methods, P pairs, B bootstrap samples.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments import bootstrap, choices, margins
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.choosing.choice_rows import (
    CHOICE_COLUMNS,
    DECISION_COLUMNS,
    MARGIN_COLUMNS,
    Resampled,
    choice_columns,
    decision_columns,
    margin_table,
)
from proxycast.experiments.choosing.corpus_choices import ALL, TOLD_APART, signs_of
from proxycast.experiments.rank_statistics import bootstrap_decision_accuracy, mean_of_known

METHOD = ["method", "kind", "tail"]
MODEL_CHOICES = ["split", *METHOD, "folds", "models", "decision_accuracy", *CHOICE_COLUMNS]
MODEL_DECISIONS = [*METHOD, "rule", *DECISION_COLUMNS]
MODEL_MARGINS = ["split", *METHOD, *MARGIN_COLUMNS]
NOTHING_LEARNED = "nothing learned"


class Test(NamedTuple):
    """A task of a fold: scores (M, m) and truth (m,) of the models at the places `models`, higher is better."""

    fold: int
    models: Array
    scores: Array
    truth: Array


def model_choice_tables(
    predictions: pl.DataFrame, ranking: pl.DataFrame, pairs: pl.DataFrame, sign: int, options: SelectionOptions
) -> dict[str, pl.DataFrame]:
    """The tables choices, decisions and margins of a model selection.

    `predictions`, `ranking`, `pairs`: its tables of these names. `sign` is -1 where less of the metric is better.
    choices: a row for every split and method; a regret is in the unit of the metric. margins: of the split by tasks,
    where every model is tested in every fold. decisions: the pairs that the table pairs tells apart, over all tasks, of
    methods that learn nothing; what a scorer has learned from the same truth would judge itself.
    """
    models = predictions["model"].unique().sort().to_list()
    weights = bootstrap.bootstrap_weights(len(models), options.bootstrap_replicates, options.seed)
    resampled, parts, gaps = Resampled("models", weights, options), [], []
    for (split,), rows in predictions.group_by("split", maintain_order=True):
        methods = rows.select(METHOD).unique(maintain_order=True)
        tests = list(_tests(rows, methods, models, sign))
        parts.append(_choices(split, methods, tests, resampled))
        if all(len(test.models) == len(models) for test in tests):
            gaps.append(_margins(split, methods, tests, resampled))
    return {
        "choices": pl.concat(parts),
        "decisions": _decisions(ranking, pairs, sign, options),
        "margins": pl.concat(gaps) if gaps else _empty_margins(),
    }


def _tests(rows: pl.DataFrame, methods: pl.DataFrame, models: list[str], sign: int) -> Iterator[Test]:
    place = {model: number for number, model in enumerate(models)}
    for (fold, task), test in rows.group_by("fold", "task", maintain_order=True):
        known = test.select("model").unique().sort("model")
        axes = [methods, known]
        scores, truth = (dense(test, name, f"fold {fold}, task {task}: {name}", axes) for name in ("score", "truth"))
        yield Test(fold, np.array([place[model] for model in known["model"]]), scores, sign * truth[0])


def _choices(split: str, methods: pl.DataFrame, tests: list[Test], resampled: Resampled) -> pl.DataFrame:
    weights = np.concatenate([np.ones((1, resampled.weights.shape[1])), resampled.weights])
    figures = _mean_over_folds(tests, [_figures(test, weights[:, test.models]) for test in tests])
    constant = [test._replace(scores=np.zeros((1, len(test.models)))) for test in tests]
    random = _mean_over_folds(constant, [_figures(test, np.ones((1, len(test.models)))) for test in constant])
    accuracy, shares = (figures.pop(name)[:, 0] for name in ("decision_accuracy", "regret_share"))
    baselines = np.flatnonzero(methods["kind"] == "baseline")
    baseline = int(baselines[np.nan_to_num(accuracy[baselines], nan=-1).argmax()]) if len(baselines) else None
    columns = choice_columns(
        {name: values[:, 0] for name, values in figures.items()},
        {name: values[:, 1:] for name, values in figures.items()},
        {name: values.item() for name, values in random.items()},
        shares,
        baseline,
        resampled,
        max(np.ptp(test.truth) for test in tests),
    )
    best = None if baseline is None else " ".join(filter(None, _label(methods.row(baseline))))
    return methods.with_columns(
        pl.lit(split).alias("split"),
        pl.lit(len({test.fold for test in tests}), pl.Int64).alias("folds"),
        pl.lit(resampled.weights.shape[1], pl.Int64).alias("models"),
        pl.Series("decision_accuracy", accuracy, pl.Float64, nan_to_null=True),
        pl.lit(best, pl.String).alias("best_baseline"),
        *columns,
    ).select(MODEL_CHOICES)


def _label(method: tuple[str, str, str]) -> tuple[str, str]:
    name, _, tail = method
    return name, f"({tail})" if tail else ""


def _figures(test: Test, weights: Array) -> dict[str, Array]:
    """Figure -> (M, B) of `choices.FIGURES`; decision accuracy and regret over that of chance of all models -> (M, 1).

    The last two are NaN where the truth of all is the same.
    """
    found = choices.choice_figures(test.scores, test.truth, weights=weights)
    alone, random = choices.choice_figures(test.scores, test.truth)["regret"], choices.at_random(test.truth)["regret"]
    found["regret_share"] = alone / random if random > 0 else np.full(alone.shape, np.nan)
    compared = np.round(test.scores, DECIMALS), np.round(test.truth, DECIMALS)
    found["decision_accuracy"] = bootstrap_decision_accuracy(*compared, weights[:1])
    return found


def _mean_over_folds(tests: list[Test], figures: list[dict[str, Array]]) -> dict[str, Array]:
    """The mean over a fold's tasks, then over folds, of what is known."""
    found = {}
    for name in figures[0]:
        by_fold: dict[int, list[Array]] = {}
        for test, values in zip(tests, figures, strict=True):
            by_fold.setdefault(test.fold, []).append(values[name])
        found[name] = mean_of_known(np.stack([mean_of_known(np.stack(values)) for values in by_fold.values()]))
    return found


def _margins(split: str, methods: pl.DataFrame, tests: list[Test], resampled: Resampled) -> pl.DataFrame:
    """All models are in every test, so a pair of models is the same pair in all of them."""
    scores, truth = np.stack([test.scores for test in tests], axis=1), np.stack([test.truth for test in tests])
    sizes = scores.std(-1, ddof=1)  # (M, Q)
    pairs = margins.pairs_of(scores, truth, sizes)
    table = margin_table(methods, pairs, margins.SPREAD, sizes.mean(1), resampled)
    return table.with_columns(pl.lit(split).alias("split")).select(MODEL_MARGINS)


def _empty_margins() -> pl.DataFrame:
    text, counts = {"split", *METHOD, "unit", "note"}, {"pairs"}
    return pl.DataFrame(
        schema={c: pl.String if c in text else pl.Int64 if c in counts else pl.Float64 for c in MODEL_MARGINS}
    )


def _decisions(ranking: pl.DataFrame, pairs: pl.DataFrame, sign: int, options: SelectionOptions) -> pl.DataFrame:
    """A row for each method that learns nothing, over all tasks, among the models that have a truth."""
    own = ranking.filter(pl.col("task") == ALL, pl.col("rests_on") == NOTHING_LEARNED, pl.col("truth").is_not_null())
    parts = []
    for key, rows in own.group_by(METHOD, maintain_order=True):
        rows = rows.sort("model")
        here = pairs.filter(pl.col("task") == ALL).filter(**dict(zip(METHOD, key, strict=True)))
        signs = signs_of(here, rows["model"].to_list())
        if signs is None:
            continue
        weights = bootstrap.bootstrap_weights(len(rows), options.bootstrap_replicates, options.seed)
        columns = decision_columns(signs[None], sign * rows["truth"].to_numpy(), Resampled("models", weights, options))
        rule = pl.lit(TOLD_APART).alias("rule")
        parts.append(rows.select(METHOD).head(1).with_columns(rule, *columns).select(MODEL_DECISIONS))
    if parts:
        return pl.concat(parts)
    text, counts = {*METHOD, "rule", "note"}, {"pairs"}
    return pl.DataFrame(
        schema={c: pl.String if c in text else pl.Int64 if c in counts else pl.Float64 for c in MODEL_DECISIONS}
    )
