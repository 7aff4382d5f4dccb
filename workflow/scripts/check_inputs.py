"""Check every input of the study before anything is trained or scored, and write what was found."""

from pathlib import Path

import polars as pl
from proxycast.checks import (
    check_folders,
    check_measurable,
    check_recipes,
    check_target_table,
    count_scored_tokens,
)
from proxycast.config import Corpus, Target, Task, read_yaml
from proxycast.engines import ExtractionOptions
from proxycast.jobs import job
from proxycast.miniature.suite import CONTEXT
from proxycast.solutions import read_solutions
from proxycast.tables import write_json

with job(snakemake.log[0]):
    inputs, study = snakemake.input, snakemake.params.study
    solutions = [Path(path) for path in inputs.solutions]
    target, tail_tokens = Target(**study["target"]), ExtractionOptions(**study["extraction"]).tail_tokens
    corpora = {Path(path): Corpus(**read_yaml(Path(path))) for path in inputs.corpora}
    found = {}
    if inputs.pool:
        found["documents"] = check_recipes(pl.read_parquet(inputs.pool), corpora)
        found["scored_tokens"] = count_scored_tokens(Path(inputs.tokenizer).parent, CONTEXT, solutions, tail_tokens)
    folders = [entry.folder for corpus in corpora.values() for entry in corpus.checkpoints or []]
    found["folders"] = check_folders(folders, solutions, tail_tokens)
    metrics = [target.metric, *target.other_metrics]
    if target.table:
        check_target_table(target.table, snakemake.params.checkpoints, solutions, metrics)
    else:
        tasks = [Task(**task) for task in snakemake.params.tasks]
        problems = {path.stem: read_solutions(path) for path in solutions}
        check_measurable(tasks, problems, metrics)
    write_json(found, Path(snakemake.output[0]))
