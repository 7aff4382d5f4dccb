"""Downstream results of one job's checkpoints by lm-eval."""

from pathlib import Path

import polars as pl
import torch
from proxycast.cluster.gpu_locks import asked_gpus, own_gpus, with_gpus
from proxycast.config.tasks import HarnessTask
from proxycast.config.truth import Harness
from proxycast.jobs import job
from proxycast.study.checkpoint_plan import job_options
from proxycast.study.consent import is_trusted, programs
from proxycast.study.loader import load_plan
from proxycast.tables import fingerprint, write_table
from proxycast.truth.harness import LM_EVAL, harness_rows
from proxycast.truth.targets import TARGETS_SCHEMA


def evaluate(snakemake) -> None:
    # One thread without a GPU: more threads would sum in another order and round differently.
    torch.set_num_threads(snakemake.threads if torch.cuda.is_available() else 1)
    params = snakemake.params
    wanted = job_options(load_plan(snakemake.config, where="the study"), params.corpus, params.checkpoints)
    wanted = [options.model_copy(update={"data_parallel_size": 1}) for options in wanted]  # lm-eval has one engine
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


if __name__ == "__main__":  # vLLM's worker processes import this file
    with job(snakemake.log[0]), own_gpus(asked_gpus(snakemake.resources)):
        evaluate(snakemake)
