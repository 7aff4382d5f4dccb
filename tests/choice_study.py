"""A made-up data selection whose scores are known, for the tests of what choices cost."""

import numpy as np
import polars as pl
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget
from proxycast.config.truth import Target
from proxycast.experiments.choosing.corpus_choices import corpus_choice_tables
from proxycast.proxy_formulas import STATISTICS
from proxycast.solutions.rows import GENERIC_TEXT

FAST = SelectionOptions(bootstrap_replicates=100)
TASKS = ["homes", "sums"]
PROXIES = [("cross_entropy", "uniform"), ("top5_accuracy", "token_frequency"), ("margin", "entropy")]
HIGHLIGHTED = PROXIES[:2]
SIZES = {"10M": (1e7, [2, 4, 6]), "40M": (4e7, [4, 8])}  # parameters, steps
BUDGETS = [Budget(name="early", size="10M", step=4), Budget(name="late", size="40M", step=8)]
TARGET = Target(size="1B", metric="accuracy", other_metrics=["loss"], lower_is_better=["loss"])


def study(corpora=7, seeds=2, noise=0.6, seed=0):
    """checkpoints, proxies and targets; corpora of a higher number are better, up to noise."""
    rng, names = np.random.default_rng(seed), [f"corpus{n}" for n in range(corpora)]
    checkpoints, proxies, targets = [], [], []
    for size, (parameters, steps) in [*SIZES.items(), ("1B", (1e9, [10]))]:
        role = "target" if size == "1B" else "proxy"
        for good, corpus in enumerate(names):
            for k in range(seeds):
                for step in steps:
                    run = f"{corpus}-{size}-seed{k}"
                    name = f"{run}-step{step}"
                    row = {"checkpoint": name, "run": run, "corpus": corpus, "family": "llama", "size": size}
                    row |= {"parameters": int(parameters), "step": step, "tokens": 1000 * step, "seed": k, "role": role}
                    checkpoints.append(row | {"flops": 6e3 * parameters * step})
                    for task in TASKS:
                        value = 0.3 + 0.05 * good + 0.05 * noise * rng.normal()
                        targets += [(name, task, "accuracy", round(value, 2), 100), (name, task, "loss", -value, 100)]
                    for task in [*TASKS, GENERIC_TEXT] if role == "proxy" else []:
                        for s, w in PROXIES:
                            value = STATISTICS[s].sign * (good + 2 * noise * rng.normal())
                            proxies.append((name, task, s, w, value, "tokens"))
                        for s in ("expert_cross_entropy", "bits_per_byte"):
                            proxies.append((name, task, s, "none", -good + 2 * noise * rng.normal(), "tokens"))
    columns = ["checkpoint", "task", "statistic", "weighting", "value", "tail"]
    return (
        pl.DataFrame(checkpoints),
        pl.DataFrame(proxies, columns, orient="row"),
        pl.DataFrame(targets, ["checkpoint", "task", "metric", "value", "n"], orient="row"),
    )


def choice_tables(made, options=FAST, target=TARGET, **more):
    checkpoints, proxies, targets = made
    return corpus_choice_tables(checkpoints, targets, TASKS, target, options, BUDGETS, proxies=proxies.lazy(), **more)
