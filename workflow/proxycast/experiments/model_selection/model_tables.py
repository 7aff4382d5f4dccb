"""Model selection: which of several models is best at a task that nobody has measured them on?

`model_ranking` orders the models, with or without a truth. With one, everything below judges what orders them.

Scorers (`scorers.py`) are trained on models and tasks whose downstream scores are known, and tested by Spearman's rho
on models and tasks that were held out. There are up to three splits:

- `two_tasks`: every pair of tasks is held out once. The models are the same in training and test, so a scorer may learn
  *which models* are good and recognise them by their proxies; where all tasks rank the models alike, it is right to.
- `family`: the pair of tasks is held out, and with it all models of a family. Nothing is known of the models to be
  ordered. This is the harder test, and rho of a few models is a coarse number.
- `recipe`: the same with all models of one kind of post-training, where that is known of the models.

The features of a test task are standardised with the proxies of all its models, of training and test families, and
with no downstream score (`scorers`). Baselines, which learn nothing, are tested on the same folds.

Shapes: T tasks, n models, m test models, P proxies, M methods, B bootstrap samples. Scores are compared to
`arrays.DECIMALS` decimals.
"""

import logging
import sys
from collections.abc import Mapping, Sequence

import polars as pl
from tqdm import tqdm

from proxycast.config.experiments.selection_options import ModelSelectionOptions, SelectionOptions
from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments.model_selection.fold_tables import (
    folds_table,
    method_summary,
    predictions_table,
    proxies_table,
    stability_table,
)
from proxycast.experiments.model_selection.folds import (
    LABELS,
    leave_one_label_out,
    leave_two_tasks_out,
    score_folds,
)
from proxycast.experiments.model_selection.known_models import (
    KnownModels,
    candidates,
    known_models,
    models_with_truth,
    tells_post_training,
)
from proxycast.experiments.model_selection.model_ranking import learn, ranking_tables
from proxycast.experiments.model_selection.scorers import SCORERS, Scorer
from proxycast.experiments.model_selection.task_truth import mean_ceiling, task_truth_table
from proxycast.experiments.model_selection.writer_comparison import cheap_scorers, writers_table
from proxycast.experiments.post_trained.post_training_tables import OF_POST_TRAINING, post_trained_tables
from proxycast.jobs import PROGRESS_SECONDS
from proxycast.solutions.rows import Problem
from proxycast.truth.targets import chance_by_task, log_unknown

log = logging.getLogger(__name__)


def model_selection_tables(
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame | None,
    proxies: pl.DataFrame | None,
    tasks: Sequence[str],
    target: Target | None,
    selection: SelectionOptions,
    options: ModelSelectionOptions,
    of_solutions: pl.LazyFrame,
    named: Sequence[Proxy],
    *,
    outside: pl.DataFrame | None = None,
    subsets: pl.DataFrame | None = None,
    problems: Mapping[str, Sequence[Problem]] | None = None,
    processes: int = 1,
) -> dict[str, pl.DataFrame]:
    """The tables ranking, pairs and agreement; with a truth (`target`, `targets`) also those of `judged_tables`.

    `of_solutions`: values per solution of the proxies `named` in advance, with a truth of all proxies. Models and tasks
    without a truth are ranked with the others, and judge nothing. `proxies`: None where no model was run; `outside`:
    what others measured (`known_models`).
    """
    if target is None:
        everyone = known_models(checkpoints, proxies, None, tasks, outside=outside)
        return ranking_tables(everyone, of_solutions, named, selection)
    if target.table:
        log_unknown(targets, checkpoints["checkpoint"].to_list(), tasks)
    known = models_with_truth(checkpoints, proxies, targets, tasks, target, outside)
    judged = judged_tables(known, target, selection, options, subsets, problems or {}, processes, named)
    if "recipe" in checkpoints.columns and tells_post_training(candidates(checkpoints)["recipe"]):
        judged = {name: pl.DataFrame(schema=schema) for name, schema in OF_POST_TRAINING.items()} | judged
    learned = learn(known, list(_scorers(known, options)), _held_out_spearman(judged))
    everyone = known_models(checkpoints, proxies, None, tasks, outside=outside)
    return ranking_tables(everyone, of_solutions, named, selection, learned) | judged


def _held_out_spearman(judged: Mapping[str, pl.DataFrame]) -> dict[tuple[str, str], float]:
    """(method, tail) -> mean rho where two tasks are held out; of a proxy, which learns nothing, over all tasks."""
    summary = judged["summary"].filter(pl.col("kind") != "oracle", split="two_tasks")
    alone = judged["proxies"].filter(kind="proxy", task="all")
    alone = alone.select(pl.concat_str("statistic", "weighting", separator="/").alias("method"), "tail", "spearman")
    rows = pl.concat([alone, summary.select(alone.columns)]).drop_nulls("spearman")
    return {(method, tail): rho for method, tail, rho in rows.iter_rows()}


def judged_tables(
    known: KnownModels,
    target: Target,
    selection: SelectionOptions,
    options: ModelSelectionOptions,
    subsets: pl.DataFrame | None,
    problems: Mapping[str, Sequence[Problem]],
    processes: int,
    named: Sequence[Proxy] = (),
) -> dict[str, pl.DataFrame]:
    """The tables summary, folds, chosen, stability, predictions, proxies and truth; of `subsets` also writers.

    With a claim, and where some models are bases and others are post-trained, also those of `post_trained_tables`.
    """
    two_tasks = leave_two_tasks_out(known)
    by_label = [leave_one_label_out(known, split) for split in LABELS]
    folds = [*two_tasks, *(fold for of_label, _ in by_label for fold in of_label)]
    bar = tqdm(folds, unit="fold", mininterval=PROGRESS_SECONDS, file=sys.stderr)
    scorers = _scorers(known, options)
    scores, chosen = score_folds(known, bar, scorers, processes)
    chance = dict.fromkeys(known.tasks, 0.0) if target.is_generated else chance_by_task(target.metric, problems)
    truth = task_truth_table(known, chance, selection)
    # The ceiling is that of all models together; within a family or recipe they differ less.
    summaries = [method_summary(known, two_tasks, scores[: len(two_tasks)], selection, ceiling=mean_ceiling(truth))]
    for of_label, left_out in by_label:
        if of_label:
            own = [found for fold, found in zip(folds, scores, strict=True) if fold.split == of_label[0].split]
            summaries.append(method_summary(known, of_label, own, selection, left_out))
    tables = {
        "summary": pl.concat(summaries),
        "folds": folds_table(known, folds, scores),
        "chosen": chosen,
        "stability": stability_table(chosen, folds),
        "predictions": predictions_table(known, folds, scores),
        "proxies": proxies_table(known, selection),
        "truth": truth,
    }
    if subsets is not None:
        tables["writers"] = writers_table(known.without_outside(), subsets, two_tasks, cheap_scorers(), processes)
    of_all = dict(folds=two_tasks, scores=scores[: len(two_tasks)])
    return tables | post_trained_tables(known, scorers, named, selection, options.claim, processes, **of_all)


def _scorers(known: KnownModels, options: ModelSelectionOptions) -> dict[str, Scorer]:
    """The scorers that have enough to learn from."""
    found = {name: SCORERS[name]() for name in options.scorers}
    if len(known.proxies) < 3 and found.pop("sparse3", None):
        log.warning("sparse3 is left out: it combines three statistics, and there are %d", len(known.proxies))
    return found
