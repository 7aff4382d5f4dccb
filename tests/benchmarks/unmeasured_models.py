"""How well models and tasks without a truth are ordered by what the others teach: unmeasured_models.py RESULTS

    python tests/benchmarks/unmeasured_models.py results/miniature_model_selection

RESULTS is the folder of a finished model selection in which all is measured. In each of 24 splits the truth of one task
and of a third of the models is taken away. Scorers learn from the rest. The mean of Spearman's rho with the truth that
was taken away is printed, beside that of bits per byte, which learns nothing.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
from proxycast.experiments.model_selection.known_models import Method, known_models, measured
from proxycast.experiments.model_selection.model_ranking import learn
from proxycast.experiments.rank_statistics import spearman

SPLITS, SCORERS, METRIC, TAIL = 24, ("univariate", "sparse3", "rank_svm_linear"), "multiple_choice_accuracy", "tokens"
BASELINE = Method("bits_per_byte", "baseline", TAIL)


def main(results: Path) -> None:
    checkpoints, proxies, targets = (
        pl.read_parquet(results / f"{name}.parquet") for name in ("checkpoints", "proxies", "targets")
    )
    tasks = sorted(targets["task"].unique())
    full = known_models(checkpoints, proxies, targets, tasks, METRIC)
    random, rho = np.random.default_rng(0), defaultdict(list)
    for split in range(SPLITS):
        new_task = split % len(tasks)
        new = np.zeros(len(full.models), bool)
        new[random.choice(len(new), len(new) // 3, replace=False)] = True
        gone = [model for model, is_new in zip(full.models, new) if is_new]
        part = targets.filter(~pl.col("checkpoint").is_in(gone), pl.col("task") != tasks[new_task])
        own, own_tasks = measured(checkpoints, part, tasks, METRIC)
        scorers = learn(known_models(own, proxies, part, own_tasks, METRIC), SCORERS, {}).scorers
        orders = {name: scorers[Method(name, "scorer", TAIL)].predict for name in SCORERS}
        for t in range(len(tasks)):
            scores = {name: predict(full.features[TAIL][t]) for name, predict in orders.items()}
            for name, found in {**scores, BASELINE.name: full.baselines[BASELINE][t]}.items():
                where = "new models, new task" if t == new_task else "new models, known task"
                rho[where, name].append(spearman(found[new], full.truth[t][new]))
                if t == new_task:
                    rho["all models, new task", name].append(spearman(found, full.truth[t]))
    for (where, name), values in sorted(rho.items()):
        print(f"{where:24} {name:16} {np.nanmean(values):.2f}, sd over splits and tasks {np.nanstd(values):.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
