"""Learn on some tasks and models which model is best at others, and write the tables of the model selection."""

import sys
from pathlib import Path

import polars as pl
from proxycast.config import Target
from proxycast.jobs import PROGRESS_SECONDS, job
from proxycast.model_selection import (
    ModelSelectionOptions,
    cheap_scorers,
    folds_table,
    leave_one_family_out,
    leave_two_tasks_out,
    mean_ceiling,
    measured,
    predictions_table,
    proxies_table,
    score_folds,
    stability_table,
    summary_table,
    truth_table,
    writers_table,
)
from proxycast.ranking import SelectionOptions
from proxycast.scorers import SCORERS
from proxycast.solutions import read_problems
from proxycast.tables import fingerprint, read_table, scan_tables, table_fingerprint, write_table
from proxycast.targets import MULTIPLE_CHOICE_ACCURACY, chance_accuracy, log_unknown
from tqdm import tqdm

with job(snakemake.log[0]):
    study, tasks, inputs = snakemake.params.study, snakemake.params.tasks, snakemake.input
    target, selection = Target(**study["target"]), SelectionOptions(**study["selection"])
    options = ModelSelectionOptions(**study["model_selection"])
    checkpoints, targets = read_table(inputs.checkpoints), read_table(inputs.targets)
    if target.table:
        log_unknown(targets, checkpoints["checkpoint"].to_list(), tasks)
    known = measured(checkpoints, read_table(inputs.proxies), targets, tasks, target.metric, target.sign(target.metric))
    two_tasks = leave_two_tasks_out(known)
    families, left_out = leave_one_family_out(known)
    folds = [*two_tasks, *families]
    bar = tqdm(folds, unit="fold", mininterval=PROGRESS_SECONDS, file=sys.stderr)
    scores, chosen = score_folds(known, bar, {name: SCORERS[name]() for name in options.scorers}, snakemake.threads)

    chance = {}
    if target.metric == MULTIPLE_CHOICE_ACCURACY:
        problems = {Path(path).stem: read_problems(Path(path)) for path in inputs.problems}
        chance = {task: chance_accuracy({task: problems[task]}) for task in tasks if task in problems}
    truth = truth_table(known, chance, selection)
    # The ceiling is that of all models together; within a family they differ less.
    summaries = [
        summary_table(known, two_tasks, scores[: len(two_tasks)], selection, ceiling=mean_ceiling(truth)),
    ]
    if families:
        summaries.append(summary_table(known, families, scores[len(two_tasks) :], selection, left_out))
    tables = {
        "summary": pl.concat(summaries),
        "folds": folds_table(known, folds, scores),
        "chosen": chosen,
        "stability": stability_table(chosen, folds),
        "predictions": predictions_table(known, folds, scores),
        "proxies": proxies_table(known, selection),
        "truth": truth,
    }
    sources = [inputs.checkpoints, inputs.proxies, inputs.targets]
    if inputs.get("subsets"):
        subsets = [inputs.subsets] if isinstance(inputs.subsets, str) else list(inputs.subsets)
        tables["writers"] = writers_table(
            known, scan_tables(subsets).collect(), two_tasks, cheap_scorers(), snakemake.threads
        )
        sources += subsets
    made_from = fingerprint([table_fingerprint(Path(path)) for path in sources], study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
