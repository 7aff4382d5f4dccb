"""Walk the checkpoints of one job: token statistics and, unless a table gives the truth, downstream results."""

import shutil
from pathlib import Path

import polars as pl
import torch
from proxycast.config import Target, Task
from proxycast.engines import ExtractionOptions, make_engine
from proxycast.extraction import extract
from proxycast.jobs import job
from proxycast.solutions import read_solutions
from proxycast.tables import fingerprint, write_table
from proxycast.targets import EXACT_MATCH, TARGETS_SCHEMA, evaluate_checkpoints

with job(snakemake.log[0]):
    torch.set_num_threads(snakemake.threads)
    options, target = ExtractionOptions(**snakemake.params.extraction), Target(**snakemake.params.target)
    solutions = {Path(path).stem: read_solutions(Path(path)) for path in snakemake.input.solutions}
    checkpoints, parts = snakemake.params.checkpoints, Path(snakemake.params.parts)
    folders = {c["checkpoint"]: Path(c["source"]) for c in checkpoints}
    proxies = {c["checkpoint"] for c in checkpoints if c["role"] == "proxy"}
    engine = make_engine(options)

    small = [(name, folder) for name, folder in folders.items() if name in proxies]
    token_stats = extract(engine, small, solutions, options, parts / "token_stats")
    targets = pl.DataFrame(schema=TARGETS_SCHEMA)
    if target.table is None:
        # Generation is the dearest measurement: small models are spared it unless it is the truth.
        generate = set(folders) - (set() if target.metric == EXACT_MATCH else proxies)
        tasks = [Task(**task) for task in snakemake.params.tasks]
        targets = evaluate_checkpoints(engine, list(folders.items()), tasks, solutions, generate, parts / "targets")

    made_from = fingerprint(
        sorted(path.name for path in folders.values()), [Path(path) for path in snakemake.input.weights]
    )
    write_table(token_stats, Path(snakemake.output.token_stats), made_from)
    write_table(targets, Path(snakemake.output.targets), made_from)
    shutil.rmtree(parts)
