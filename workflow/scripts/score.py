"""Walk the checkpoints of one job: token statistics and, unless a table gives the truth, downstream results."""

import shutil
from pathlib import Path

import polars as pl
import torch
from proxycast.config import Target, Task
from proxycast.engines import ExtractionOptions, choose_engine, make_engine
from proxycast.extraction import extract
from proxycast.jobs import job
from proxycast.solutions import read_solutions
from proxycast.tables import fingerprint, write_table
from proxycast.targets import EXACT_MATCH, TARGETS_SCHEMA, evaluate_checkpoints

with job(snakemake.log[0]):
    torch.set_num_threads(snakemake.threads)
    target = Target(**snakemake.params.target)
    tasks = [Task(**task) for task in snakemake.params.tasks]
    solutions = {Path(path).stem: read_solutions(Path(path)) for path in snakemake.input.solutions}
    checkpoints, parts = snakemake.params.checkpoints, Path(snakemake.params.parts)
    proxies = {c["checkpoint"] for c in checkpoints if c["role"] == "proxy"}

    groups: dict[ExtractionOptions, list[tuple[str, Path]]] = {}
    for checkpoint, options in zip(checkpoints, snakemake.params.extraction):
        folder = Path(checkpoint["source"])
        chosen = choose_engine(ExtractionOptions(**options), folder)
        groups.setdefault(chosen, []).append((checkpoint["checkpoint"], folder))
    engines = {options: make_engine(options) for options in groups}
    for options, group in groups.items():
        for _, folder in group:
            engines[options].check(folder)

    token_stats, targets = [], [pl.DataFrame(schema=TARGETS_SCHEMA)]
    for options, group in groups.items():
        engine = engines[options]
        small = [(name, folder) for name, folder in group if name in proxies]
        if small:
            token_stats.append(extract(engine, small, solutions, options, parts / "token_stats"))
        if target.table is None:
            # Generation is the dearest measurement: small models are spared it unless it is the truth.
            generate = {name for name, _ in group} - (set() if target.metric == EXACT_MATCH else proxies)
            targets.append(evaluate_checkpoints(engine, group, tasks, solutions, options, generate, parts / "targets"))
        engine.close()

    names = sorted(Path(checkpoint["source"]).name for checkpoint in checkpoints)
    made_from = fingerprint(names, [Path(path) for path in snakemake.input.weights])
    write_table(pl.concat(token_stats), Path(snakemake.output.token_stats), made_from)
    write_table(pl.concat(targets), Path(snakemake.output.targets), made_from)
    shutil.rmtree(parts)
