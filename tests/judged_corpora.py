"""A made-up data selection whose corpora have known qualities, for the tests of judges."""

import numpy as np
import polars as pl
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.config.truth import Target
from proxycast.experiments.data_selection.data_tables import data_selection_tables
from proxycast.experiments.judges.judge_file import Judge, reading_of
from proxycast.experiments.judges.judge_learning import corpus_judge
from proxycast.proxy_formulas import ProxyOptions

FAST = SelectionOptions(bootstrap_replicates=100)
TASKS, SOLUTIONS = ["homes", "sums"], 5
HIGHLIGHTED = [Proxy(statistic="cross_entropy"), Proxy(statistic="bits_per_byte", weighting="none")]
READING = reading_of(ProxyOptions(), ExtractionOptions())
TARGET = Target(size="large", metric="accuracy", table="truth.csv")
SIZES = {"small": 100, "middle": 300, "large": 1000}


def made_study(qualities, seed=0, noise=0.02, truth_noise=0.1, seeds=(0, 1), steps=(2, 4), target=True, tasks=TASKS):
    """checkpoints, targets, proxies of tasks, those of solutions: cross-entropy falls and accuracy grows by quality."""
    rng, rows, of_solutions = np.random.default_rng(seed), [], []
    names = [f"c{n:02}" for n in range(len(qualities))]
    for name, quality in zip(names, qualities, strict=True):
        for size in ("small", "middle", *(["large"] if target else [])):
            role = "target" if size == "large" else "proxy"
            for k in seeds:
                for step in steps if role == "proxy" else steps[-1:]:
                    run = f"{name}-{size}-seed{k}"
                    row = {"checkpoint": f"{run}-step{step}", "run": run, "corpus": name, "size": size, "role": role}
                    row |= {"parameters": SIZES[size], "active_parameters": SIZES[size], "step": step, "seed": k}
                    rows.append(row | {"tokens": 32 * step, "flops": 6.0 * SIZES[size] * 32 * step})
                    if role == "target":
                        continue
                    for task in tasks:
                        for number in range(SOLUTIONS):
                            value = 2 - quality * step / steps[-1] + number / 10 + noise * rng.normal()
                            of_solutions.append((rows[-1]["checkpoint"], task, f"s{number}", value))
    checkpoints = pl.DataFrame(rows)
    table = pl.DataFrame(of_solutions, ["checkpoint", "task", "solution", "value"], orient="row")
    table = table.with_columns(statistic=pl.lit("cross_entropy"), weighting=pl.lit("uniform"), tail=pl.lit("tokens"))
    table = table.with_columns(tokens=pl.lit(7, pl.UInt32), denominator=pl.lit(1.0))
    keys = ["checkpoint", "task", "statistic", "weighting", "tail"]
    of_tasks = table.group_by(keys, maintain_order=True).agg(
        pl.col("value").mean(), solutions=pl.len(), tokens=pl.col("tokens").sum()
    )
    bits = of_tasks.with_columns(pl.col("value") / 3, statistic=pl.lit("bits_per_byte"), weighting=pl.lit("none"))
    quality = dict(zip(names, qualities))
    large = checkpoints.filter(role="target")
    targets = [
        (c, task, "accuracy", float(1 / (1 + np.exp(-2 * quality[corpus] - truth_noise * rng.normal()))), 50)
        for c, corpus in large.select("checkpoint", "corpus").iter_rows()
        for task in tasks
    ]
    schema = {"checkpoint": pl.String, "task": pl.String, "metric": pl.String, "value": pl.Float64, "n": pl.Int64}
    return checkpoints, pl.DataFrame(targets, schema, orient="row"), pl.concat([of_tasks, bits]), table


def learned(qualities, highlighted=HIGHLIGHTED, **options) -> Judge:
    """The judge of such a study."""
    checkpoints, targets, proxies, of_solutions = made_study(qualities, **options)
    budgets = [Budget(name="last", size="small", step=4)]
    inputs = checkpoints, targets, options.get("tasks", TASKS), TARGET
    tables = data_selection_tables(
        *inputs, FAST, budgets, HIGHLIGHTED, proxies=proxies.lazy(), of_solutions=of_solutions.lazy()
    )
    return corpus_judge(
        "judged", *inputs, highlighted, tables, proxies=proxies.lazy(), reading=READING, tokenizers=["ours"]
    )
