"""Downstream results of one job's checkpoints by lm-eval."""

from pathlib import Path

import polars as pl
import torch
from proxycast.checkpoints import job_options
from proxycast.config import load_plan
from proxycast.consent import is_trusted, programs
from proxycast.harness import LM_EVAL, Harness, HarnessTask, harness_rows
from proxycast.jobs import job
from proxycast.resources import asked_gpus, own_gpus, with_gpus
from proxycast.tables import fingerprint, write_table
from proxycast.targets import TARGETS_SCHEMA


def evaluate(snakemake) -> None:
    # Beside a GPU; without one, one thread: more would add up in another order.
    torch.set_num_threads(snakemake.threads if torch.cuda.is_available() else 1)
    params = snakemake.params
    wanted = job_options(load_plan(snakemake.config, where="the study"), params.corpus, params.checkpoints)
    rows = harness_rows(
        [(name, Path(folder)) for name, folder, _ in params.checkpoints],
        [with_gpus(options, snakemake.resources) for options in wanted],
        {name: HarnessTask(**task) for name, task in params.tasks.items()},
        Harness(**params.harness),
        params.metric,
        Path(params.results),
        code=params.code,
        programs=programs(),
        trusts=is_trusted,
    )
    table = pl.DataFrame(rows, schema=TARGETS_SCHEMA, orient="row")
    write_table(table, Path(snakemake.output.targets), fingerprint(LM_EVAL, rows))


if __name__ == "__main__":  # vLLM's processes import this file again
    with job(snakemake.log[0]), own_gpus(asked_gpus(snakemake.resources)):
        evaluate(snakemake)
