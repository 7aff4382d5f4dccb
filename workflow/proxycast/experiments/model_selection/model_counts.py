"""How many solutions are enough to order the models of a model selection.

What is looked at, fixed before the first look: as in `data_selection.solution_counts`, but that models are ordered
within each task, by Spearman's rho, averaged over tasks, and that solutions are drawn at random only. Proxies are
fixed: what learns from them is refitted to fewer solutions in the table writers (`writer_comparison`).

Shapes: T tasks, n models, R draws, G numbers, B bootstrap samples.
"""

import logging
from collections.abc import Sequence
from itertools import product

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Proxy
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.data_selection.solution_counts import (
    ALL,
    COUNTS,
    FLOATS,
    RANDOM,
    TRUTH,
    Judge,
    numbers_up_to,
    random_scores,
    scores_of_all,
    task_values,
    wanted_proxies,
)
from proxycast.experiments.model_selection.known_models import KnownModels
from proxycast.experiments.rank_statistics import mean_of_known
from proxycast.proxy_formulas import SIGNS, proxy_name

log = logging.getLogger(__name__)

DRAWS, REPLICATES = 50, 500  # rho of every draw is resampled by itself, which takes time
MODEL_COUNT_COLUMNS = {
    **dict.fromkeys(("statistic", "weighting", "tail", "reference"), pl.String),
    **{"number": pl.Int64, **dict.fromkeys(("spearman", *FLOATS), pl.Float64)},
    **dict.fromkeys((*COUNTS, "models"), pl.Int64),
    "note": pl.String,
}


def model_count_table(
    known: KnownModels, of_solutions: pl.LazyFrame, highlighted: Sequence[Proxy], options: SelectionOptions
) -> pl.DataFrame:
    """Spearman's rho over the number of solutions: MODEL_COUNT_COLUMNS. `known`: the models; their truth may be NaN.

    `of_solutions`: as in `solution_tables`, of each tail.
    """
    models, rows = pl.DataFrame({"checkpoint": known.models}), []
    replicates = min(options.bootstrap_replicates, REPLICATES)
    options = options.model_copy(update={"bootstrap_replicates": replicates})
    truths = {task: row for task, row in zip(known.tasks, known.truth) if np.isfinite(row).all() and np.ptp(row) > 0}
    for tail, proxy in product(known.features, wanted_proxies(highlighted)):
        key = proxy.model_dump() | {"tail": tail}
        scores = of_solutions.filter(pl.col("task").is_in(known.tasks), pl.col("denominator") > 0, **key).collect()
        scores = scores.join(models, on="checkpoint", how="semi")
        if scores.is_empty():
            log.warning("%s has no values per solution, and is left out", proxy_name(**proxy.model_dump()))
            continue
        scores = scores.with_columns(score=SIGNS[proxy.statistic] * pl.col("value"))
        tasks = task_values(scores, models, pl.DataFrame({"tail": [tail]}))
        most, n = max(task.number for task in tasks), len(models)
        note = "" if bootstrap.enough_to_resample(n, options.confidence) else bootstrap.too_few("models", n)
        common = key | {"solutions": most, "tasks": len(tasks), "models": n, "note": note}
        drawn = random_scores(tasks, numbers_up_to(most), DRAWS, options.seed)
        drawn = np.concatenate(drawn, axis=2)  # (R, G, T, n)
        every = {task.task: scores_of_all(task)[0] for task in tasks}
        for reference, orders in ((TRUTH, truths), (ALL, every)):
            if which := [t for t, task in enumerate(every) if task in orders]:
                order = np.stack([orders[tasks[t].task] for t in which])
                judge = SpearmanJudge(order, numbers_up_to(most), options)
                found = judge.rows({(RANDOM, "mean"): (drawn[:, :, which], None)})
                rows += [common | {"reference": reference} | row for row in found]
    return pl.DataFrame([{name: row[name] for name in MODEL_COUNT_COLUMNS} for row in rows], MODEL_COUNT_COLUMNS)


class SpearmanJudge(Judge):
    """The same by Spearman's rho, mean over rankings; for draws alone. A constant score orders nothing: rho is 0."""

    figure = "spearman"

    def curve(self, scores: Array, judged: None) -> tuple[Array, Array]:
        means, draws = [], []
        for k, reference in enumerate(self.references):
            ordered = np.isfinite(reference.spearman(reference.truth[None]))  # (1, B)
            samples = [reference.spearman(np.round(rows, DECIMALS)) for rows in np.moveaxis(scores[:, :, k], 1, 0)]
            rho = [np.where(ordered & np.isnan(of_number), 0, of_number) for of_number in samples]  # (R, B) each
            means.append([of_number.mean(0) for of_number in rho])
            draws.append([of_number[:, 0] for of_number in rho])
        return mean_of_known(np.array(means)), mean_of_known(np.array(draws))
