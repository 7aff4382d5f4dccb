"""Let one writer solve the problems of all its tasks; keep its correct solutions and their token probabilities."""

from pathlib import Path

import polars as pl
import torch
from proxycast.cluster.gpu_locks import asked_gpus, own_gpus, with_gpus
from proxycast.extraction.writers import load_writer, settings, write_task
from proxycast.jobs import job
from proxycast.solutions.rows import read_problems, write_solutions
from proxycast.study.loader import load_plan
from proxycast.tables import write_json, write_table


def write(snakemake) -> None:
    # One thread without a GPU: more threads would sum in another order and round differently.
    torch.set_num_threads(snakemake.threads if torch.cuda.is_available() else 1)
    params, output = snakemake.params, snakemake.output
    study, name = load_plan(snakemake.config, where="the study").study, snakemake.wildcards.writer
    writer, parts = study.writers[name], Path(params.parts)
    options = with_gpus(study.extraction.with_overrides(writer.model), snakemake.resources)
    loaded = load_writer(name, writer, options, Path(params.folder), params.code)
    tokens, tasks = [], []
    for problems, solutions in zip(map(Path, snakemake.input.problems), map(Path, output.solutions), strict=True):
        task = problems.stem
        found = write_task(loaded, task, read_problems(problems), params.answer_patterns[task], parts / task)
        write_solutions(found[0], solutions)
        tokens.append(found[1])
        tasks.append(found[2])
    loaded.engine.close()
    write_table(pl.concat(tokens), Path(output.experts), loaded.fingerprint)
    write_json(settings(loaded) | {"tasks": tasks}, Path(output.summary))


if __name__ == "__main__":  # vLLM's worker processes import this file
    with job(snakemake.log[0]), own_gpus(asked_gpus(snakemake.resources)):
        write(snakemake)
