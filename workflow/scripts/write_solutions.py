"""Let one writer solve the problems of all its tasks; keep its right solutions and the probabilities it gives them."""

from pathlib import Path

import polars as pl
import torch
from proxycast.config import load_plan
from proxycast.jobs import job
from proxycast.resources import asked_gpus, own_gpus, with_gpus
from proxycast.solutions import read_problems, write_solutions
from proxycast.tables import write_json, write_table
from proxycast.writers import load_writer, settings, write_task


def write(snakemake) -> None:
    # Beside a GPU; without one, one thread: more would add up in another order.
    torch.set_num_threads(snakemake.threads if torch.cuda.is_available() else 1)
    params, output = snakemake.params, snakemake.output
    study, name = load_plan(snakemake.config, where="the study").study, snakemake.wildcards.writer
    writer, parts = study.writers[name], Path(params.parts)
    options = with_gpus(study.extraction.over(writer.model), snakemake.resources)
    loaded = load_writer(name, writer, options, Path(params.folder), params.code)
    tokens, tasks = [], []
    for problems, solutions in zip(map(Path, snakemake.input.problems), map(Path, output.solutions), strict=True):
        task = problems.stem
        found = write_task(loaded, task, read_problems(problems), params.answer_patterns[task], parts / task)
        write_solutions(found[0], solutions)
        tokens.append(found[1])
        tasks.append(found[2])
    loaded.engine.close()
    write_table(pl.concat(tokens), Path(output.experts), loaded.mark)
    write_json(settings(loaded) | {"tasks": tasks}, Path(output.summary))


if __name__ == "__main__":  # vLLM's processes import this file again
    with job(snakemake.log[0]), own_gpus(asked_gpus(snakemake.resources)):
        write(snakemake)
