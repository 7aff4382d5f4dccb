"""Tables of the folds: single ones, predictions, choices; the mean of every method, and every proxy alone."""

import logging
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import polars as pl
from scipy.stats import rankdata

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.bootstrap import bootstrap_weights, percentile_interval, sure_interval
from proxycast.experiments.model_selection.folds import Fold, Scores, mean_over_folds, training_tasks
from proxycast.experiments.model_selection.known_models import KnownModels, Method, schema_of
from proxycast.experiments.rank_statistics import mean_of_known, spearman_samples
from proxycast.experiments.reliability import ABOVE_CEILING
from proxycast.proxy_formulas import WEIGHTINGS

log = logging.getLogger(__name__)

TIED = "all models tie in the truth"
ORDERS_NOTHING = "orders nothing, counts 0"
ONE_TASK = "one training task: settings are the middle of their grids"
NOTHING_TO_LEARN = "all training models tie in every training task"
FOLDS_SCHEMA = schema_of("split", "fold", "held_out", "task", "method", "kind", "tail", "models", "spearman", "note")
SUMMARY_SCHEMA = schema_of(
    *("split", "method", "kind", "tail", "folds", "spearman", "fold_sd", "low", "high"),
    *("best_baseline", "difference", "difference_low", "difference_high", "note"),
)
PREDICTIONS_SCHEMA = schema_of(
    *("split", "fold", "task", "model", "family", "method", "kind", "tail"),
    *("score", "predicted_rank", "truth", "true_rank"),
)


def folds_table(known: KnownModels, folds: Sequence[Fold], scores: Sequence[Scores]) -> pl.DataFrame:
    """A row for every fold, test task and method: FOLDS_SCHEMA. `spearman` is null where the truth ties.

    A note says which rho are 0 by definition, and where a scorer had too little to learn from.
    """
    rows = []
    for fold, found in zip(folds, scores, strict=True):
        learned_from = len(training_tasks(known, fold))
        for place, task in enumerate(fold.tasks):
            truth = known.truth[task, fold.test]
            values = np.stack([both[place] for both in found.values()])
            rho = spearman_samples(values, truth, np.ones((1, len(truth))))[:, 0]
            for method, own, value in zip(found, values, rho, strict=True):
                notes = [TIED] if np.ptp(truth) == 0 else [ORDERS_NOTHING] if np.ptp(own) == 0 else []
                if method.kind == "scorer" and learned_from == 0:
                    notes.append(NOTHING_TO_LEARN)
                elif method.kind == "scorer" and learned_from == 1 and method.name != "univariate":
                    notes.append(ONE_TASK)
                place_of_row = (fold.split, fold.number, fold.held_out, known.tasks[task])
                value = None if np.isnan(value) else float(value)
                rows.append((*place_of_row, method.name, method.kind, method.tail, len(truth), value, "; ".join(notes)))
    return pl.DataFrame(rows, FOLDS_SCHEMA, orient="row")


def predictions_table(known: KnownModels, folds: Sequence[Fold], scores: Sequence[Scores]) -> pl.DataFrame:
    """Every score of every test model: PREDICTIONS_SCHEMA. Ranks (midranks, 1 is best) are among the test models."""
    rows = []
    for fold, found in zip(folds, scores, strict=True):
        names = [(known.models[m], known.families[m]) for m in fold.test]
        for place, task in enumerate(fold.tasks):
            truth = known.truth[task, fold.test]
            true_ranks, given = rankdata(-truth), known.sign * truth
            for method, both in found.items():
                columns = zip(names, both[place], rankdata(-both[place]), given, true_ranks, strict=True)
                rows += [(fold.split, fold.number, known.tasks[task], *who, *method, *rest) for who, *rest in columns]
    return pl.DataFrame(rows, PREDICTIONS_SCHEMA, orient="row")


def stability_table(chosen: pl.DataFrame, folds: Sequence[Fold]) -> pl.DataFrame:
    """How steadily the scorers choose (`chosen` of `score_folds`), a row for every proxy that a fold chose.

    Columns: split, scorer, tail, statistic, weighting, share (of the split's folds that chose it), same_sign (share of
    those in which it has the sign that it has in most), jaccard (of the scorer: size of the intersection over that of
    the union of two folds' proxies, mean over all pairs of folds; null for a single fold).
    """
    proxy, scorer = ["statistic", "weighting"], ["split", "scorer", "tail"]
    number = pl.col("split").replace_strict({s: sum(f.split == s for f in folds) for s in {f.split for f in folds}})
    positive = (pl.col("coefficient") >= 0).mean()
    shares = chosen.group_by(*scorer, *proxy, maintain_order=True).agg(
        (pl.len() / number.first()).alias("share"), pl.max_horizontal(positive, 1 - positive).alias("same_sign")
    )
    overlaps = [
        (
            *names,
            _mean_jaccard(
                [set(fold.select(proxy).iter_rows()) for _, fold in rows.group_by("fold", maintain_order=True)]
            ),
        )
        for names, rows in chosen.group_by(scorer, maintain_order=True)
    ]
    overlap = pl.DataFrame(overlaps, dict.fromkeys(scorer, pl.String) | {"jaccard": pl.Float64}, orient="row")
    table = shares.join(overlap, on=scorer, maintain_order="left")
    splits = list(dict.fromkeys(fold.split for fold in folds))
    by = pl.col("split").cast(pl.Enum(splits)), pl.col("scorer").rank("dense")  # keeps a scorer's rows together
    return table.sort(*by, "tail", "share", descending=[False, False, True, True], maintain_order=True)


def _mean_jaccard(sets: Sequence[set]) -> float | None:
    overlaps = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
    return float(np.mean(overlaps)) if overlaps else None


def method_summary(
    known: KnownModels,
    folds: Sequence[Fold],
    scores: Sequence[Scores],
    options: SelectionOptions,
    note: str = "",
    ceiling: float | None = None,
) -> pl.DataFrame:
    """A row for every method of one split, best first: SUMMARY_SCHEMA.

    `spearman`: mean over folds of the mean over a fold's tasks. `fold_sd`: its standard deviation over folds, which
    share tasks and models, so it is no standard error. `low`, `high`: percentile bootstrap over the models, the same
    draws for all methods and folds. Differences are paired with the best baseline, which is chosen on the same data and
    so if anything too good. The bootstrap holds predictions fixed: it leaves out that other models would have trained
    the scorers otherwise, and that a study might have other tasks. A sample counts the folds in which it holds models
    that differ. An interval that would be too certain is null (`bootstrap.sure_interval`). `note` stands in every
    row. To it a row adds why it has no interval, and that it exceeds the `ceiling` of `mean_ceiling`. Baselines that
    are left out come last, with the reason.
    """
    methods, split = list(scores[0]), folds[0].split
    by_fold, samples = mean_over_folds(known, folds, scores, _models_and_samples(known, options))
    means, samples = np.round(samples[:, 0], DECIMALS), samples[:, 1:]
    low, high, vague = sure_interval(means, samples, len(known.models), options)
    best = max((m for m, method in enumerate(methods) if method.kind == "baseline"), key=lambda m: means[m])
    best_name, unsure = _method_label(methods[best]), (vague != "") | (vague[best] != "")
    unsure[best] = False  # it differs from itself by nothing
    ends = percentile_interval(samples - samples[best], options.confidence)
    difference_low, difference_high = (np.where(unsure, np.nan, end) for end in ends)
    count = np.isfinite(by_fold).sum(0)
    sd = [float(np.std(own[np.isfinite(own)], ddof=1)) if n > 1 else None for own, n in zip(by_fold.T, count)]
    rows = [
        {"split": split, **method._asdict(), "folds": int(count[m]), "spearman": means[m], "fold_sd": sd[m]}
        | {"low": low[m], "high": high[m], "best_baseline": best_name, "difference": means[m] - means[best]}
        | {"difference_low": difference_low[m], "difference_high": difference_high[m]}
        | {"note": _join_notes(note, vague[m], _above(means[m], ceiling)) if count[m] else TIED}
        for m, method in enumerate(methods)
    ]
    for told in sorted({row["note"] for row in rows} - {"", note, TIED}):
        names = [_method_label(method) for method, row in zip(methods, rows) if row["note"] == told]
        which = "every method" if len(names) == len(methods) else ", ".join(names)
        log.warning("%s, %s: %s", split, which, told.removeprefix(note).removeprefix("; "))
    rows += [
        {"split": split, **method._asdict(), "folds": 0, "note": f"left out: {why}"}
        for method, why in known.left_out.items()
    ]
    table = pl.DataFrame([{"method": row.pop("name"), **row} for row in rows], SUMMARY_SCHEMA)
    table = table.with_columns(pl.selectors.float().fill_nan(None))
    return table.sort("spearman", descending=True, nulls_last=True, maintain_order=True)


def _models_and_samples(known: KnownModels, options: SelectionOptions) -> Array:
    """How often each model is drawn (1 + B, n): first each once, then in the samples of the bootstrap."""
    draws = bootstrap_weights(len(known.models), options.bootstrap_replicates, options.seed)
    return np.concatenate([np.ones((1, len(known.models))), draws])


def _above(value: float, ceiling: float | None) -> str:
    return ABOVE_CEILING if ceiling is not None and value > ceiling else ""


def _join_notes(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _method_label(method: Method) -> str:
    return f"{method.name} ({method.tail})" if method.tail else method.name


def proxies_table(known: KnownModels, options: SelectionOptions) -> pl.DataFrame:
    """Every proxy and baseline on its own: a row for each of them and task, and for "all", the mean over tasks.

    Columns: tail, statistic, weighting ("none": a baseline), kind, depends_on_candidate, task, models, spearman with
    the proxy's own sign, low, high (percentile bootstrap over the models) and a note that says why they are missing.
    Null where all models tie in the truth. The best of many in this table is the best in hindsight.
    """
    dependent = {name: weighting.depends_on_candidate for name, weighting in WEIGHTINGS.items()}
    labels, scores = [], []
    for tail, features in known.features.items():
        read = [n for n, (_, weighting) in enumerate(known.proxies) if weighting != "none"]  # the others are baselines
        labels += [(tail, *known.proxies[n], "proxy", dependent[known.proxies[n][1]]) for n in read]
        scores += list(np.moveaxis(features[..., read], -1, 0))
    labels += [(method.tail, method.name, "none", "baseline", False) for method in known.baselines]
    scores = np.round([*scores, *known.baselines.values()], DECIMALS)  # (M, T, n)
    weights = _models_and_samples(known, options)
    samples = np.stack([spearman_samples(scores[:, t], truth, weights) for t, truth in enumerate(known.truth)])
    samples = np.concatenate([mean_of_known(samples)[None], samples])  # (1 + T, M, 1 + B)
    low, high, vague = sure_interval(samples[..., 0], samples[..., 1:], len(known.models), options)
    columns = ["tail", "statistic", "weighting", "kind", "depends_on_candidate"]
    frame = pl.DataFrame(labels, columns, orient="row")
    return pl.concat(
        frame.with_columns(
            pl.lit(task).alias("task"),
            pl.lit(len(known.models)).cast(pl.Int64).alias("models"),
            pl.Series("spearman", samples[t, :, 0], nan_to_null=True),
            pl.Series("low", low[t], nan_to_null=True),
            pl.Series("high", high[t], nan_to_null=True),
            pl.Series("note", vague[t].tolist(), dtype=pl.String),
        )
        for t, task in enumerate(["all", *known.tasks])
    )
