"""Downstream truth by EleutherAI's lm-evaluation-harness: each task of a checkpoint becomes one JSON, its figure a row.

The harness is called in this process, not by its command line: a model is loaded once for all tasks, its arguments are
values and not a string to be parsed, and a result is a file of ours, whole or absent. Such a file is kept as long as
the model, the task and the settings are the same, so that a rerun starts behind the last task that was finished.

The harness fetches its data sets itself, with `datasets`, from the hub or (HF_HUB_OFFLINE=1) from what lies in HF_HOME.
A task that it does not have is a YAML file of its own format in a folder that `include_path` names.
"""

import difflib
import gc
import importlib.metadata
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest.mock import patch

from tqdm import tqdm

from proxycast.config.extraction import ExtractionOptions
from proxycast.config.tasks import HarnessTask
from proxycast.config.truth import Harness
from proxycast.extraction.engines.base import KV_CACHE_BYTES
from proxycast.jobs import PROGRESS_SECONDS
from proxycast.options import InputError
from proxycast.tables import fingerprint, read_json, write_json
from proxycast.weights.model_config import read_config, renamed_config
from proxycast.weights.model_folder import check_folder, model_fingerprint
from proxycast.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

LM_EVAL = "0.4.13"  # tasks change from one version to the next, and figures with them
KEPT = ("results", "n-samples", "n-shot", "versions", "lm_eval_version", "transformers_version", "chat_template_sha")
# Folders of lm-eval's tasks that run what models write (`exec`, `eval`, SymPy's `parse_expr`) and do not say so, as
# those with `unsafe_code` do. Of LM_EVAL: a test looks whether there are others.
RUN_ANSWERS = ("cruxeval", "longproc", "score/math")
TargetRow = tuple[str, str, str, float, int]  # checkpoint, task, metric, value, n: a row of TARGETS_SCHEMA


def harness_rows(
    checkpoints: Sequence[tuple[str, Path]],
    options: Sequence[ExtractionOptions],
    tasks: Mapping[str, HarnessTask],
    harness: Harness,
    metric: str,
    results: Path,
    *,
    code: str,
    programs: Collection[str] | None = None,
    trusts: Callable[[str], bool] = lambda name: True,
) -> list[TargetRow]:
    """A row, named `metric`, for each (checkpoint, folder) and task, with the checkpoint's own of the `options`.

    `results/<checkpoint>/<task>.json` is what the harness found; one that was made from the same model, task, settings
    and `code` (a fingerprint of the code) is not made again. Every folder and every task's name is checked before the
    first model is loaded. `programs`: tasks of lm-eval for which `run_unsafe_code` counts; without it for all.
    `trusts`: whether the code of a metric, a repository of the hub, may be loaded by other tasks.
    """
    require_harness()
    for (_, folder), own in zip(checkpoints, options):
        check_folder(folder)
        read_config(folder, own.trust_remote_code, own.architecture)
    manager = _task_manager(tasks, harness)

    def may_run(task: str) -> bool:
        return harness.run_unsafe_code and (programs is None or tasks[task].task in programs)

    for task, wanted in tasks.items():
        if runs_answers(manager, wanted.task) and not may_run(task):
            raise _runs_programs(wanted.task)
    rows = []

    # A function of its own: a name in the loop below would keep each model while the next one is loaded.
    def measure(checkpoint: str, folder: Path, own: ExtractionOptions, to_do: Mapping[str, tuple[Path, str]]) -> None:
        with loaded_model(harness, folder, own) as model:
            for task, (file, made_from) in to_do.items():
                allowed = harness.model_copy(update={"run_unsafe_code": may_run(task)})
                with _metrics_asked_for(tasks[task].task, lambda name, task=task: may_run(task) or trusts(name)):
                    found = _run_task(model, tasks[task], allowed, own, manager)
                write_json({"made_from": made_from, "checkpoint": checkpoint, **found}, file)
                bar.update()

    with tqdm(total=len(checkpoints) * len(tasks), unit="task", mininterval=PROGRESS_SECONDS, file=sys.stderr) as bar:
        for (checkpoint, folder), own in zip(checkpoints, options):
            bar.set_description(checkpoint, refresh=False)
            files = {task: results / checkpoint / f"{task}.json" for task in tasks}
            fingerprints = _fingerprints(folder, own, tasks, harness, code)
            to_do = [task for task in tasks if read_json(files[task]).get("made_from") != fingerprints[task]]
            bar.update(len(tasks) - len(to_do))
            if to_do:
                measure(checkpoint, folder, own, {task: (files[task], fingerprints[task]) for task in to_do})
            for task, wanted in tasks.items():
                rows.append((checkpoint, task, metric, *read_score(files[task], wanted)))
    return rows


def require_harness() -> None:
    """Raise InputError unless the version of lm-eval that figures are recorded with is the one installed."""
    try:
        found = importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        found = "no lm-eval"
    if found != LM_EVAL:
        raise InputError(
            f"target.lm_eval: found {found} installed; figures of two versions do not compare; take {LM_EVAL}: "
            f"pip install lm-eval=={LM_EVAL}"
        )


def read_score(path: Path, wanted: HarnessTask) -> tuple[float, int]:
    """Value and number of problems of the wanted task and metric in a JSON of the harness.

    Raises InputError naming what is there, for a task, group or metric that is not, and for a figure that is none.
    """
    results = read_json(path).get("results")
    if not isinstance(results, dict) or not results:
        raise InputError(f"{path}: no results of lm-eval; remove the file, it is made again")
    figures = results.get(wanted.task)
    if figures is None:
        raise InputError(f"{path}: no results of the task {wanted.task!r}; found {sorted(results)}")
    value, n = figures.get(wanted.metric), figures.get("sample_len")
    if value is None:
        there = [key for key in figures if "," in key and "_stderr" not in key]
        why = f"{wanted.task!r} is a group without a mean of its own" if not there else "take one of those"
        raise InputError(f"{path}: {wanted.task} has no metric {wanted.metric!r}; found {there}; {why}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{path}: {wanted.task}, {wanted.metric}: found {value!r}; it must be a finite number")
    if not isinstance(n, int) or n < 1:
        raise InputError(f"{path}: {wanted.task}, sample_len: found {n!r}; it must be a count of at least 1")
    return float(value), n


def _fingerprints(
    folder: Path, own: ExtractionOptions, tasks: Mapping[str, HarnessTask], harness: Harness, code: str
) -> dict[str, str]:
    """Task -> fingerprint of all that the harness's figures depend on."""
    included = sorted(harness.include_path.rglob("*")) if harness.include_path else []
    included = {str(path): path for path in included if path.is_file() and "__pycache__" not in path.parts}
    settings = harness.model_dump(exclude={"batch_size", "include_path"})
    model = own.model_dump(
        include={"dtype", "chat_template", "trust_remote_code", "architecture", "max_model_len", "quantization"}
    )
    made_from = code, model_fingerprint(folder), LM_EVAL, settings, included, model
    return {task: fingerprint(*made_from, wanted.model_dump(exclude={"metric"})) for task, wanted in tasks.items()}


@cache  # it reads thousands of files
def _index(include_path: Path | None) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(include_path) if include_path else None)


def _task_manager(tasks: Mapping[str, HarnessTask], harness: Harness) -> "TaskManager":
    """The harness's index of tasks. Raises InputError for a name that it does not have."""
    where = harness.include_path
    if where is not None and not where.is_dir():
        raise InputError(f"target.lm_eval.include_path: no folder {where} (paths start where snakemake is run)")
    manager = _index(where)
    for task, wanted in tasks.items():
        if wanted.task not in manager.all_tasks:
            close = difflib.get_close_matches(wanted.task, manager.all_tasks, n=5)
            raise InputError(
                f"task {task}: lm_eval.task: lm-eval {LM_EVAL} has no task or group {wanted.task!r}"
                f"{f' and {where} neither' if where else ''}; close to it: {close}"
            )
    return manager


def runs_answers(manager: "TaskManager", name: str) -> bool:
    """Whether a task of lm-eval, or one of a group, is among those that run what models write and do not say so."""
    entry = manager.task_index[name]
    if entry.yaml_path is None:  # a tag
        return any(runs_answers(manager, e.name) for e in manager.task_index.values() if e.yaml_path and name in e.tags)
    _, is_theirs, folder = entry.yaml_path.parent.as_posix().rpartition("/lm_eval/tasks/")
    pairs = [(f"{folder}/", f"{place}/") for place in RUN_ANSWERS]  # a group lies above the folders of its tasks
    return bool(is_theirs) and any(one.startswith(other) or other.startswith(one) for one, other in pairs)


def _runs_programs(task: str) -> InputError:
    return InputError(
        f"lm_eval.task {task}: it runs code that models write, with the rights of the job; "
        f"allow it with target.lm_eval.run_unsafe_code: true and PROXYCAST_RUN_PROGRAMS={task} in the "
        "environment, in a container or on a machine that may break"
    )


@contextmanager
def loaded_model(harness: Harness, folder: Path, own: ExtractionOptions) -> "Iterator[LM]":
    """The model in `folder` as the harness runs it. The memory of the one before is freed first.

    It is freed here and not at the end: until then the caller, or the traceback of its error, has a name for the model.
    """
    import torch
    from lm_eval.api.registry import get_model

    gc.collect()
    torch.cuda.empty_cache()  # nothing, without a GPU
    tokenizer = load_tokenizer(folder)  # lm-eval would ask its class
    with _runnable(folder, own.architecture) as runnable, TemporaryDirectory(prefix="proxycast_") as saved:
        arguments = {"tokenizer": tokenizer} | backend_arguments(harness, runnable, own)
        settings = {"batch_size": harness.batch_size, "device": "cuda" if torch.cuda.is_available() else "cpu"}
        if harness.backend == "vllm":
            from proxycast.extraction.engines.vllm_support import prepare_environment

            prepare_environment()
            settings.pop("device")
            if arguments["tokenizer"] is tokenizer:
                tokenizer.save_pretrained(saved)
                arguments["tokenizer"] = saved  # it takes no object
        model = get_model(harness.backend).create_from_arg_obj(arguments, settings)
        try:
            if arguments["tokenizer"] == saved:
                _require_tokenizer(model, tokenizer, folder)
            yield model
        finally:
            if harness.backend == "vllm":
                from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

                model.model.llm_engine.engine_core.shutdown()
                cleanup_dist_env_and_memory()


def _require_tokenizer(model: "LM", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Raise InputError unless the model reads by `tokenizer`; a token for padding may have been added to it."""
    found, wanted = (json.loads(own.backend_tokenizer.to_str()) for own in (model.tokenizer, tokenizer))
    del found["added_tokens"][len(wanted["added_tokens"]) :]
    if different := [part for part in wanted if found[part] != wanted[part]]:
        raise InputError(
            f"{folder}: lm-eval's backend vllm reads with another tokenizer than tokenizer.json, of which it changes "
            f"{', '.join(different)}; give target.lm_eval.backend: hf"
        )


def backend_arguments(harness: Harness, folder: Path, own: ExtractionOptions) -> dict[str, object]:
    """What the harness's class for the backend is made with; `model_args` of the harness come last."""
    import torch

    arguments = {"pretrained": str(folder), "dtype": own.dtype, "trust_remote_code": own.trust_remote_code}
    if harness.backend == "hf":
        return arguments | ({"max_length": own.max_model_len} if own.max_model_len else {}) | harness.model_args
    sizes = {"tensor_parallel_size": own.tensor_parallel_size, "pipeline_parallel_size": own.pipeline_parallel_size}
    memory = {"gpu_memory_utilization": own.gpu_memory_fraction}
    if not torch.cuda.is_available():
        memory = {"kv_cache_memory_bytes": KV_CACHE_BYTES, "enforce_eager": True}
    given = {"max_model_len": own.max_model_len, "quantization": own.quantization}
    given = {key: value for key, value in given.items() if value is not None}
    return arguments | sizes | memory | given | {"seed": harness.seed} | harness.model_args


@contextmanager
def _runnable(folder: Path, architecture: str | None) -> Iterator[Path]:
    """`folder`, or where its architecture must be renamed a folder of links to its files with another config.json."""
    renamed = renamed_config(folder, architecture)
    if renamed is None:
        yield folder
        return
    with TemporaryDirectory(prefix="proxycast_") as name:
        for path in folder.iterdir():
            (Path(name) / path.name).symlink_to(path.resolve())
        write_json(renamed, Path(name) / "config.json")  # takes the place of the link
        yield Path(name)


@contextmanager
def _metrics_asked_for(task: str, trusts: Callable[[str], bool]) -> Iterator[None]:
    """Raise InputError when a task loads the code of a metric that nobody has allowed: `evaluate` asks nobody."""
    import evaluate

    load, refused = evaluate.load, []

    def asked(path: str, *arguments: object, **options: object) -> object:
        is_here = os.path.exists(path)  # which `evaluate` looks for before it asks the hub
        name = os.path.join(".", path) if is_here else path if "/" in path else f"evaluate-metric/{path}"
        if trusts(name):
            return load(path, *arguments, **options)
        refused.append(name)
        raise _loads_metric(task, name)

    try:
        with patch("evaluate.load", asked):
            yield
    except Exception:  # lm-eval goes on without the metric, and ends of that
        if refused:
            raise _loads_metric(task, refused[0]) from None
        raise
    if refused:
        raise _loads_metric(task, refused[0])


def _loads_metric(task: str, name: str) -> InputError:
    return InputError(
        f"lm_eval.task {task}: it loads the metric {name}, which is code of others, with all rights of the job; if "
        f"you trust it, add it to PROXYCAST_TRUST_CODE ({name}; several: colons between them)"
    )


def _run_task(
    model: "LM", wanted: HarnessTask, harness: Harness, own: ExtractionOptions, manager: "TaskManager"
) -> dict[str, object]:
    """What the harness finds for one task, without the model's answers."""
    from lm_eval import simple_evaluate

    chat = own.chat_template if wanted.apply_chat_template is None else wanted.apply_chat_template
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    options = dict(
        num_fewshot=wanted.num_fewshot,
        limit=harness.limit,
        apply_chat_template=chat,
        gen_kwargs=dict(harness.generation) or None,
        task_manager=manager,
        confirm_run_unsafe_code=harness.run_unsafe_code,
        log_samples=False,
        bootstrap_iters=0,
        **dict.fromkeys(seeds, harness.seed),
    )
    try:
        # For each task it would ask pip, CMake and others what is installed: a second for what is not kept.
        with patch("torch.utils.collect_env.get_pretty_env_info", return_value=""):
            found = simple_evaluate(model, tasks=[wanted.task], **options)
    except ValueError as error:
        if harness.run_unsafe_code or "unsafe" not in str(error):
            raise
        raise _runs_programs(wanted.task) from None
    for task in found["n-samples"]:
        examples = found["n-shot"][task]
        if wanted.num_fewshot not in (None, examples):
            raise InputError(
                f"lm_eval.num_fewshot: found {wanted.num_fewshot}, but lm-eval fixes {task} at {examples} examples; "
                "leave the key out"
            )
    return {key: found[key] for key in KEPT if key in found}
