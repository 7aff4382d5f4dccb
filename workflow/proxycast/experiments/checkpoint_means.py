"""The mean of a run's last checkpoints as the value of its last one.

The value of a single checkpoint has the noise of where training stood. The mean of the last n has less of it (Signal
and Noise, arXiv 2508.13144).
"""

import polars as pl

RUN_OF = ["checkpoint", "run", "step"]
# What tells values of one checkpoint apart, in any of a study's tables.
KEYS = frozenset("task solution tail statistic weighting metric writer number draw".split())


def checkpoint_means(values: pl.LazyFrame, checkpoints: pl.DataFrame, number: int) -> pl.LazyFrame:
    """`values` where each is the mean of a checkpoint and the `number` - 1 before it in its run.

    `values`: checkpoint, value and any of `KEYS`; a checkpoint that `checkpoints` (checkpoint, run, step) lacks is left
    as it is. At the beginning of a run, where there are fewer checkpoints, the
    mean is over those. Every other number of `values` (n, a standard error) stays that of the checkpoint itself.
    """
    if number == 1:
        return values
    keys = [name for name in values.collect_schema() if name in KEYS]
    of_run = checkpoints.lazy().select(RUN_OF)
    mean = pl.col("value").rolling_mean(number, min_samples=1).over(["run", *keys], order_by="step")
    in_runs = values.join(of_run, on="checkpoint", how="left", maintain_order="left")
    averaged = pl.when(pl.col("run").is_null()).then(pl.col("value")).otherwise(mean)
    return in_runs.with_columns(value=averaged).drop("run", "step")
