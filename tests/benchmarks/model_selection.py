"""How long the scorers of the model selection take, on one core: model_selection.py

    taskset -c 0 env OMP_NUM_THREADS=1 python tests/benchmarks/model_selection.py

Prints two tables and writes nothing. Processor time counts, because other work on the machine changes it little.

The study: 18 models, 6 tasks and 80 proxies, 15 folds that leave two tasks out, all settings chosen inside the training
tasks. Each scorer alone, and all together with baselines, oracle and bootstrap.

`sparse3` against the naive loop: one search over all triples of 40 and of 80 proxies, for 4 tasks of 18 models. The
loop asks numpy's `lstsq` for one triple after the other, all of them; both must find the same one.
"""

import argparse
import sys
import time
from itertools import combinations

import numpy as np
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.model_selection import scorers
from proxycast.experiments.model_selection.fold_tables import method_summary
from proxycast.experiments.model_selection.folds import leave_two_tasks_out, score_folds
from proxycast.experiments.model_selection.known_models import KnownModels, Method
from proxycast.experiments.model_selection.scorers import SCORERS, Sparse3, standardise
from proxycast.proxy_formulas import STATISTICS, WEIGHTINGS
from scipy.stats import rankdata, zscore
from tqdm import tqdm

MODELS, TASKS = 18, 6
LIMITS = {"seconds": 60, "ratio": 50}


def study(seed: int) -> KnownModels:
    """Random models: one ability, a direction of its own for every family, noise of tasks and of proxies."""
    rng, proxies = np.random.default_rng(seed), [(s, w) for s in STATISTICS for w in WEIGHTINGS]
    ability, family = rng.normal(size=MODELS), np.arange(MODELS) % 6
    features = ability[:, None] * rng.normal(0.7, 0.7, len(proxies)) + rng.normal(size=(6, len(proxies)))[family]
    features = features + rng.normal(size=(TASKS, MODELS, 1)) + rng.normal(size=(TASKS, MODELS, len(proxies))) / 2
    truth = ability + rng.normal(size=(TASKS, MODELS)) / 2
    chance = {Method("chance", "baseline", ""): np.zeros(truth.shape)}
    names = [f"model{number:02}" for number in range(MODELS)]
    tasks = [f"task{number}" for number in range(TASKS)]
    families = [f"family{number}" for number in family]
    problems = np.full(truth.shape, 100.0)
    return KnownModels(names, families, tasks, truth, problems, proxies, {"tokens": features}, chance, {})


def processor_seconds(work, *arguments) -> tuple[float, object]:
    scorers._KEPT.clear()  # what an earlier round learned
    start = time.process_time()
    result = work(*arguments)
    return time.process_time() - start, result


def protocol(known: KnownModels, names: list[str]) -> float:
    """Mean Spearman over folds and the named scorers."""
    folds = leave_two_tasks_out(known)
    scores, _ = score_folds(known, folds, {name: SCORERS[name]() for name in names})
    table = method_summary(known, folds, scores, SelectionOptions())
    return table.filter(kind="scorer")["spearman"].mean()


def naive_search(X: np.ndarray, y: np.ndarray, tasks: np.ndarray, alpha: float) -> tuple[int, ...]:
    """`Sparse3`'s objective by least squares on stacked rows, for one triple after the other."""
    standardised = standardise(X, tasks) / np.sqrt(len(y))
    ranks = np.concatenate([zscore(rankdata(y[tasks == task])) for task in np.unique(tasks)]) / np.sqrt(len(y))
    penalty, target = np.sqrt(alpha) * np.eye(3), np.concatenate([ranks, np.zeros(3)])
    best, lowest = None, np.inf
    triples = list(combinations(range(X.shape[1]), 3))
    for triple in tqdm(triples, desc="naive", mininterval=5):
        rows = np.concatenate([standardised[:, triple], penalty])
        weights = np.linalg.lstsq(rows, target)[0]
        loss = np.sum((rows @ weights - target) ** 2)
        if loss < lowest:
            best, lowest = triple, loss
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    known, fine = study(seed=0), True
    protocol(known, ["sparse3"])  # imports, and the list of triples
    print(f"{MODELS} models, {TASKS} tasks, 80 proxies, 15 folds; best of {options.rounds} rounds:\n")
    print("| scorers | processor seconds | mean Spearman |\n|---|---|---|")
    for names in [*([name] for name in SCORERS), list(SCORERS)]:
        seconds, rho = min(processor_seconds(protocol, known, names) for _ in range(options.rounds))
        print(f"| {names[0] if len(names) == 1 else 'all four'} | {seconds:.2f} | {rho:.3f} |", flush=True)
    fine &= seconds < LIMITS["seconds"]

    print("\nOne search over all triples, alpha = 0.1; `sparse3`: best of rounds, the loop once:\n")
    print("| proxies | triples | naive loop, s | sparse3, s | ratio |\n|---|---|---|---|---|")
    tasks = np.repeat(np.arange(4), MODELS)
    for proxies in (40, 80):
        rows = known.features["tokens"][:4, :, :proxies].reshape(-1, proxies), known.truth[:4].ravel(), tasks
        slow, triple = processor_seconds(naive_search, *rows, 0.1)
        searches = [processor_seconds(Sparse3(alphas=[0.1]).fit, *rows) for _ in range(options.rounds)]
        fast = min(seconds for seconds, _ in searches)
        if tuple(searches[0][1].proxies_) != triple:
            sys.exit(f"the naive loop found {triple}, sparse3 {searches[0][1].proxies_}")
        count = len(list(combinations(range(proxies), 3)))
        print(f"| {proxies} | {count:,} | {slow:.2f} | {fast:.4f} | {slow / fast:.0f} |", flush=True)
        fine &= slow / fast > LIMITS["ratio"]
    sys.exit(0 if fine else f"above {LIMITS['seconds']} s or below {LIMITS['ratio']} times the naive loop")


if __name__ == "__main__":
    main()
