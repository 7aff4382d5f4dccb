"""A small data selection whose scores have signal and noise."""

import numpy as np
import polars as pl
from proxycast.config.study import Budget

TASKS = ("dates", "sums", "words", "years")
BUDGETS = [Budget(name="early", size="1M", step=10), Budget(name="late", size="2M", step=20)]


def study_of(seeds=2, corpora=6, steps=(10, 20), scored=(("cross_entropy", "uniform"), ("bits_per_byte", "none"))):
    """Checkpoints, proxies and targets of small and large models, as a study has them."""
    rng = np.random.default_rng(0)
    runs = [("1M", 1, k, step) for k in range(seeds) for step in steps]
    runs += [("2M", 2, k, step) for k in range(seeds) for step in steps]
    runs = [(*run, "proxy") for run in runs] + [("9M", 9, k, 40, "target") for k in range(seeds)]
    checkpoints, proxies, targets = [], [], []
    for c in range(corpora):
        for size, n, k, step, role in runs:
            name = f"c{c}-{size}-{k}-{step}"
            checkpoints.append(
                {"checkpoint": name, "run": f"c{c}-{size}-{k}", "corpus": f"c{c}", "size": size, "parameters": n}
                | {"active_parameters": n, "step": step, "tokens": step, "flops": 6 * n * step, "seed": k, "role": role}
            )
            for task in TASKS:
                key = {"checkpoint": name, "task": task}
                targets.append(key | {"metric": "accuracy", "value": 0.3 + 0.05 * c + 0.02 * rng.random(), "n": 50})
                for statistic, weighting in scored:
                    value = 3 - 0.1 * c + 0.1 * rng.normal()
                    proxies.append(key | {"statistic": statistic, "weighting": weighting, "value": value})
    proxies = pl.DataFrame(proxies).with_columns(tail=pl.lit("tokens"))
    return pl.DataFrame(checkpoints), proxies.lazy(), pl.DataFrame(targets)
