"""Whose code may run. Only the environment of whoever starts a study can allow it, by name; no file of a study can.

PROXYCAST_TRUST_CODE names models whose own code may run (`trust_remote_code`), folders of tasks for lm-eval, which
have Python functions, and metrics that its tasks load. An entry is a repository of the hub, or, if it begins with / or
., a folder with its content; colons separate entries. PROXYCAST_RUN_PROGRAMS names the tasks of lm-eval that may run
programs written by models (`run_unsafe_code`), separated by commas. Jobs inherit both. What was allowed is kept with
the results, in consent.json.
"""

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from proxycast.options import InputError
from proxycast.study.checkpoints import Checkpoint, extraction_options
from proxycast.study.study_plan import Plan
from proxycast.tables import read_json, write_json

TRUST_VARIABLE = "PROXYCAST_TRUST_CODE"
PROGRAMS_VARIABLE = "PROXYCAST_RUN_PROGRAMS"


class Code(NamedTuple):
    """Code of others that a study would run."""

    variable: str  # of the environment, that may allow it
    name: str  # a folder, a repository or a task of lm-eval
    asked_by: str  # the key of the study
    is_read_in_planning: bool = False


def require_consent(plan: Plan, checkpoints: list[Checkpoint], runs_jobs: bool) -> None:
    """`InputError` for code of others that the environment does not allow. What it allows is recorded.

    In a dry run (`runs_jobs` false) only the code of models that planning itself would run needs it.
    """
    asked = [code for code in foreign_code(plan, checkpoints) if runs_jobs or code.is_read_in_planning]
    missing = [code for code in asked if allowing(code) is None]
    if missing:
        raise InputError(f"{plan.where}: {_what_to_set(missing)}")
    allowed = {f"{code.asked_by}: {code.name}": {"variable": code.variable, "entry": allowing(code)} for code in asked}
    if allowed and runs_jobs:
        record = plan.results / "consent.json"
        known = read_json(record)
        new = {key: value | {"since": f"{datetime.now():%Y-%m-%dT%H:%M:%S}"} for key, value in allowed.items()}
        if new.keys() - known.keys():
            write_json(new | known, record)


def _what_to_set(missing: list[Code]) -> str:
    """All variables at once, each with what it allows already: a variable is set as a whole."""
    sets = []
    for variable, separator in ((TRUST_VARIABLE, ":"), (PROGRAMS_VARIABLE, ",")):
        if names := dict.fromkeys(code.name for code in missing if code.variable == variable):
            sets.append(f"{variable}={separator.join([*filter(None, [os.environ.get(variable)]), *names])!r}")
    keys = ", ".join(dict.fromkeys(code.asked_by for code in missing))
    return (
        f"{keys}: asks to run code with all rights that you have: of models, of tasks, or programs that models write; "
        f"set {' and '.join(sets)}, or less, by what of it you trust"
    )


def foreign_code(plan: Plan, checkpoints: list[Checkpoint]) -> Iterator[Code]:
    """Every such code, each once."""
    found: list[Code] = []
    run = checkpoints if plan.runs_models else []
    for checkpoint, options in zip(run, extraction_options(plan, run)):
        if options.trust_remote_code:
            is_here = not checkpoint.revision and checkpoint.folder == checkpoint.source
            asked_by = f"{checkpoint.corpus}: trust_remote_code"
            found.append(Code(TRUST_VARIABLE, _model_name(checkpoint), asked_by, is_here))
    by_name = {checkpoint.checkpoint: checkpoint for checkpoint in checkpoints}
    for name, writer in plan.study.writers.items():
        options = plan.study.extraction.with_overrides(writer.model)  # not those that its checkpoint is scored with
        if options.trust_remote_code:
            of_study = writer.checkpoint and _model_name(by_name[writer.checkpoint])
            model = of_study or writer.hub or _folder_name(writer.folder)
            found.append(Code(TRUST_VARIABLE, model, f"writers.{name}: trust_remote_code"))
    harness = plan.study.target.lm_eval if plan.harness_tasks else None
    if harness and harness.include_path:
        found.append(Code(TRUST_VARIABLE, _folder_name(harness.include_path), "target.lm_eval.include_path"))
    if harness and harness.run_unsafe_code:  # of its tasks those that are named; the harness refuses the others
        tasks = list(dict.fromkeys(task.lm_eval.task for task in plan.harness_tasks))
        for name in [task for task in tasks if task in programs()] or [",".join(tasks)]:
            found.append(Code(PROGRAMS_VARIABLE, name, "target.lm_eval.run_unsafe_code"))
    yield from dict.fromkeys(found)


def allowing(code: Code) -> str | None:
    """The entry of the environment that allows some code, if there is one."""
    if code.variable == PROGRAMS_VARIABLE:
        return code.name if code.name in programs() else None
    for entry in filter(None, os.environ.get(TRUST_VARIABLE, "").split(":")):
        if entry == code.name:
            return entry
        if entry.startswith((".", "/")) and code.name.startswith((".", "/")):
            folder = Path(code.name).resolve()
            if Path(entry).resolve() in (folder, *folder.parents):
                return entry
    return None


def is_trusted(name: str) -> bool:
    """Whether the environment allows the code of a folder or of a repository of the hub."""
    return allowing(Code(TRUST_VARIABLE, name, "")) is not None


def programs() -> frozenset[str]:
    """The tasks of lm-eval for which programs that models wrote may run."""
    return frozenset(filter(None, map(str.strip, os.environ.get(PROGRAMS_VARIABLE, "").split(","))))


def _model_name(checkpoint: Checkpoint) -> str:
    """Its repository or its folder. The folder counts for models that the study makes too: results may be others'."""
    return checkpoint.source if checkpoint.revision else _folder_name(Path(checkpoint.source or checkpoint.folder))


def _folder_name(folder: Path) -> str:
    """A folder as the environment names it: no repository of the hub begins with a dot or a slash."""
    return str(folder) if folder.is_absolute() or str(folder).startswith(".") else f"./{folder}"
