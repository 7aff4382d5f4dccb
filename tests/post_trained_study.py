"""Made-up bases, each post-trained by several recipes: the truth follows some proxies and not the cross-entropy."""

from itertools import product

import numpy as np
import polars as pl
from proxycast.experiments.model_selection.known_models import known_models
from proxycast.proxy_formulas import SIGNS
from proxycast.solutions.rows import GENERIC_TEXT

TASKS = ["chains", "dates", "sums", "units"]
RECIPES = ["none", "distillation", "dpo", "overtrained_mild", "overtrained_strong", "rl", "sft", "sft_styles"]
EFFECTS = dict(zip(RECIPES, (0.0, 0.25, 0.12, 0.05, -0.05, 0.2, 0.15, 0.18)))  # on the truth
SHARPER = dict(zip(RECIPES, (0.0, 0.1, 0.3, 0.5, 1.0, 0.6, 0.1, 0.05)))  # what ruins the loss and leaves ranks alone
STATISTICS = ["normalized_entropy", "margin", "expert_rank", "top1_accuracy", "cross_entropy"]
PROXIES = [(statistic, "uniform") for statistic in STATISTICS]


def checkpoints_of(bases=6, recipes=RECIPES) -> pl.DataFrame:
    """Two corpora of three architectures each, and so on; all of one size and seed a base."""
    rows = []
    for base, recipe in product(range(bases), recipes):
        family = ("llama", "gpt2", "gpt_neox")[base % 3]
        corpus, size = f"corpus{base // 3}", f"{family}-1M"
        run = f"{corpus}-{size}-seed0" if recipe == "none" else f"{corpus}-{size}-{recipe}-seed0"
        rows.append(
            {"checkpoint": f"{run}-step9", "run": run, "corpus": corpus, "family": family, "recipe": recipe}
            | {"size": size, "seed": 0, "step": 9, "parameters": 10**6 + base, "flops": 1e15, "role": "candidate"}
            | {"base": base}
        )
    return pl.DataFrame(rows)


def measured_of(checkpoints: pl.DataFrame, seed=0, tails=("tokens",), noise=0.03) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables of proxies and of the truth."""
    rng, proxies, targets = np.random.default_rng(seed), [], []
    for row in checkpoints.iter_rows(named=True):
        sharper = SHARPER.get(row["recipe"], 0.0)
        for task in TASKS:
            good = 0.2 + 0.06 * row["base"] + EFFECTS.get(row["recipe"], 0.0) + noise * rng.normal()
            targets.append((row["checkpoint"], task, "accuracy", float(np.clip(good, 0, 1)), 80))
            for tail in tails:
                for statistic in (*STATISTICS, "bits_per_byte", "expert_cross_entropy"):
                    ruined = statistic in ("cross_entropy", "bits_per_byte", "expert_cross_entropy")
                    value = good - 0.6 * sharper * ruined + noise * rng.normal()
                    value = (
                        noise * rng.normal() - sharper
                        if statistic == "normalized_entropy"
                        else SIGNS[statistic] * value
                    )
                    weighting = "uniform" if statistic in STATISTICS else "none"
                    proxies.append((row["checkpoint"], task, tail, statistic, weighting, 2 + value))
        for tail in tails:
            for statistic in ("bits_per_byte", "expert_cross_entropy"):
                proxies.append((row["checkpoint"], GENERIC_TEXT, tail, statistic, "none", 3 + rng.normal()))
    columns = ["checkpoint", "task", "tail", "statistic", "weighting", "value"]
    truth = ["checkpoint", "task", "metric", "value", "n"]
    return pl.DataFrame(proxies, columns, orient="row"), pl.DataFrame(targets, truth, orient="row")


def gather(checkpoints=None, **how):
    checkpoints = checkpoints_of() if checkpoints is None else checkpoints
    proxies, targets = measured_of(checkpoints, **how)
    return known_models(checkpoints, proxies, targets, TASKS, "accuracy")
