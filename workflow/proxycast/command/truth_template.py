"""The table of the truth that a study needs, to be filled in: `proxycast check --template`."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import polars as pl

from proxycast.config.truth import Target
from proxycast.options import InputError
from proxycast.study.checkpoint_plan import corpus_checkpoints
from proxycast.study.checkpoints import runs
from proxycast.study.loader import load_plan
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import read_yaml
from proxycast.tables import atomic
from proxycast.truth.targets import TARGETS_SCHEMA

WITHOUT_TARGET = Target(metric="accuracy")  # as in the comments of a new study


def write_truth_template(study: Path, path: Path) -> str:
    """Write a .csv with a row for each checkpoint, task and metric whose value is needed; say what to do with it.

    `value` and `n` (problems behind it; may stay empty) are empty. The table that the study names need not exist.
    `InputError` if the file exists, or if the study does not say which models have the truth.
    """
    if path.suffix != ".csv":
        raise InputError(f"{path}: found the suffix {path.suffix!r}; the template is a .csv")
    if path.exists():
        raise InputError(f"{path}: is there already, and is not overwritten; name another file")
    plan = load_plan(read_yaml(study), str(study))
    if not plan.runs_models:
        raise InputError(f"{study}: runs no model; its truth stands in the tables that it names already")
    target = plan.study.target or WITHOUT_TARGET
    metrics = [target.metric, *target.other_metrics]
    rows = product(needed_checkpoints(plan), plan.task_names, metrics, [None], [None])
    table = pl.DataFrame(list(rows), schema=TARGETS_SCHEMA, orient="row")
    with atomic(path) as temporary:
        table.write_csv(temporary)
    then = f"; then set target: {{metric: {target.metric}, table: {path}}} and model_selection: {{}} in {study}"
    if plan.study.target:
        then = "" if target.table else f"; then set target.table: {path} in {study}"
    return f"{path}: {len(table):,} rows; fill in value, and n where you know the number of problems{then}"


def needed_checkpoints(plan: Plan) -> list[str]:
    """The last checkpoint of each run whose truth is needed; of runs that are forecast, all checkpoints."""
    checkpoints = [c for corpus in plan.corpora for c in corpus_checkpoints(plan, corpus.name)]
    if plan.study.forecasting:
        return [c.checkpoint for c in checkpoints]
    found = [max(run, key=lambda c: c.step).checkpoint for run in runs(checkpoints).values() if run[0].role != "proxy"]
    return found or list(_outside(plan))


def _outside(plan: Plan) -> Iterator[str]:
    """Names of large models that are in no file of the study, one for each corpus."""
    if plan.target_size is None:
        raise InputError(
            f"{plan.where}: target.size: missing; the truth of corpora is how models of one size do, as in target: "
            "{size: 1B, parameters: 1000000000, tokens: 100000000000, metric: accuracy, table: truth.csv}"
        )
    return (f"{corpus.name}-{plan.target_size}-seed0-step0" for corpus in plan.corpora)
