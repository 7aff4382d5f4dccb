"""Corpus, training run, checkpoint: which models a study looks at, their size and training, where their weights lie."""

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl
from snakemake.target_jobs import TargetSpec, parse_target_jobs_cli_args

from proxycast.compute import training_flops
from proxycast.config import Budget, Plan, closest
from proxycast.corpora import CheckpointEntry, CheckpointSpec, Corpus
from proxycast.curves import CURVES
from proxycast.engines import ExtractionOptions, ModelOptions
from proxycast.engines.model_folder import FINGERPRINT_FILE, safetensors_header, weight_files
from proxycast.experts import inactive_parameters
from proxycast.ladder import MOST_CHECKPOINTS, require_countable
from proxycast.model_selection import FEWEST_MODELS
from proxycast.options import InputError
from proxycast.tables import (
    MANIFEST,
    NAME,
    input_states,
    is_unchanged,
    is_whole_csv,
    is_whole_parquet,
    names_parts,
    read_json,
    remove_tree,
    sealed_by,
    set_aside,
)
from proxycast.targets import read_target_table
from proxycast.text.corpus import lost_parts

INPUT_EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight"),
    "backbone.embeddings.weight",  # Mamba and its kin
)
OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")
# A run of the ladder that came so far is finished: restarts cut or added a few steps, early stops three quarters.
FINISHED = 0.99
# Wildcards of a job whose value is a corpus, or a training run, which begins with the name of its corpus.
OWNERS = ("corpus", "job", "run")
AS_THE_STUDY = ModelOptions()
TRAINED_CHECKPOINT = re.compile(f"{NAME.pattern}[/-]step[0-9]{{1,20}}")  # a folder of models that were trained here
# Options of Snakemake's command line with which it runs no job (snakemake.cli.args_to_api).
WITHOUT_JOBS = (
    "dryrun touch lint list_target_rules list_rules print_compilation dag rulegraph filegraph d3dag unlock "
    "cleanup_metadata cleanup_shadow conda_cleanup_envs conda_create_envs_only container_cleanup_images "
    "list_conda_envs list_changes list_input_changes list_params_changes list_untracked summary detailed_summary "
    "archive delete_all_output delete_temp_output containerize generate_unit_tests"
).split()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model at one step of one training run. A run is one corpus, one size and one seed."""

    checkpoint: str  # "<run>-step<step>"
    run: str  # "<corpus>-<size>-seed<seed>"
    corpus: str
    family: str
    size: str
    parameters: int  # all of them, without the input embedding
    active_parameters: int  # N: of them those that a token meets; fewer in a mixture of experts
    step: int
    tokens: int  # D
    flops: int  # 6 N D
    seed: int
    role: str  # "proxy" or "target" of a data selection; else "candidate"
    source: str  # folder of the weights, or repository of the hub; empty where the study does not read them
    revision: str  # branch, tag or commit of the hub; empty for a folder
    # Not in the table of checkpoints:
    folder: str  # where the weights lie when they are scored
    convert_from: str  # format of the weights at their source, if they must be converted; else empty
    model: ModelOptions  # how it is run, where that differs from its corpus and the study

    def row(self) -> dict[str, str | int]:
        """The checkpoint as a row of the table."""
        return {name: getattr(self, name) for name in self.__slots__[:-3]}


def plan_checkpoints(plan: Plan) -> list[Checkpoint]:
    """Every checkpoint of the study, corpus by corpus. `InputError` names a corpus that lacks one or has one twice."""
    if plan.study.published:
        checkpoints = _published(plan)
    else:
        every = (checkpoint for corpus in plan.corpora for checkpoint in _of_corpus(plan, corpus))
        checkpoints = list(islice(every, MOST_CHECKPOINTS + 1))
        require_countable(len(checkpoints), f"{plan.where}: corpora")
        sizes = {checkpoint.size: None for checkpoint in checkpoints}
        if plan.selects_data and plan.study.target.size not in sizes:
            checkpoints += _targets_of_table(plan, sizes)
    _require_distinct_names(plan, checkpoints)
    _require_writers(plan, checkpoints)
    if plan.selects_data:
        _require_sizes(plan, checkpoints)
        _require_comparable(plan, checkpoints)
    if plan.study.model_selection and len(runs(checkpoints)) < FEWEST_MODELS:
        raise InputError(
            f"{plan.where}: models, corpora: found {len(runs(checkpoints))} models; model_selection needs at least "
            f"{FEWEST_MODELS} to order"
        )
    if plan.study.forecasting and not plan.curve:
        _require_curves(plan, checkpoints)
    return checkpoints


def checkpoints_table(checkpoints: list[Checkpoint], commits: Mapping[str, str]) -> pl.DataFrame:
    """One row a checkpoint: the first fields of `Checkpoint`, and the commit that its revision was, by its name.

    FLOPs are floating-point numbers: those of a model of 1B are more than 64 bits hold.
    """
    rows = [_row(checkpoint, commits.get(checkpoint.checkpoint, "")) for checkpoint in checkpoints]
    return pl.DataFrame(rows, infer_schema_length=None)


def _row(checkpoint: Checkpoint, commit: str) -> dict[str, object]:
    return checkpoint.row() | {"flops": float(checkpoint.flops), "commit": commit}


def checkpoints_fingerprint(checkpoints: list[Checkpoint]) -> str:
    """16 hexadecimal digits that change with any row; one row at a time, as there can be tens of thousands."""
    digest = hashlib.sha256()
    for checkpoint in checkpoints:
        digest.update(repr(_row(checkpoint, "")).encode())
    return digest.hexdigest()[:16]


def checkpoints_of_command(plan: Plan, arguments: Sequence[str]) -> list[Checkpoint]:
    """What the jobs in a command line of Snakemake's own (`--target-jobs`) need of `plan_checkpoints`, without checks.

    Each job starts a Snakemake for itself, on a cluster two, which would plan tens of thousands of checkpoints for the
    few that it scores. A job that is named by a corpus or a training run needs those of its corpus; where the names of
    two corpora begin alike, it gets both.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--target-jobs", nargs="+")
    jobs = parse_target_jobs_cli_args(parser.parse_known_args(arguments)[0].target_jobs) or [TargetSpec("all", {})]
    names = [next((job.wildcards_dict[key] for key in OWNERS if key in job.wildcards_dict), None) for job in jobs]
    if None in names:
        return plan_checkpoints(plan)
    owners = [c for c in plan.corpora if any(f"{name}-".startswith(f"{c.name}-") for name in names)]
    return [checkpoint for corpus in owners for checkpoint in _of_corpus(plan, corpus)]


def runs_jobs(arguments: Sequence[str]) -> bool:
    """Whether Snakemake, called with these arguments and their profile, runs jobs; else it may change no file.

    A Snakefile cannot ask for it: Snakemake reads it before it knows what to do.
    """
    from snakemake.cli import parse_args  # slow, and no job needs it

    with contextlib.redirect_stderr(io.StringIO()):  # it tells of the profile a second time
        given = parse_args(arguments)[1]
    only_a_report = given.report and not given.report_after_run
    return not (only_a_report or any(getattr(given, option) for option in WITHOUT_JOBS))


def corpus_checkpoints(plan: Plan, name: str) -> list[Checkpoint]:
    """Every checkpoint of one corpus, as `plan_checkpoints` has them, without the checks of all corpora together."""
    return list(_of_corpus(plan, plan.corpus(name)))


def scored_checkpoints(plan: Plan, checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Those that an engine runs: all, but targets that a table or published evaluations tell of."""
    if not plan.runs_models:
        return []
    return [c for c in checkpoints if c.role != "target" or plan.study.target.measured_here]


def scoring_jobs(plan: Plan, checkpoints: list[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """Job -> its checkpoints: a job is a run, or with `jobs: corpus` all runs of a corpus."""
    jobs: dict[str, list[Checkpoint]] = {}
    for checkpoint in scored_checkpoints(plan, checkpoints):
        jobs.setdefault(checkpoint.run if plan.study.jobs == "run" else checkpoint.corpus, []).append(checkpoint)
    return jobs


def job_with_a_proxy(jobs: Mapping[str, list[Checkpoint]]) -> list[str]:
    """The first job that scores a small model, wherever among its checkpoints; none where none does."""
    return [job for job, checkpoints in jobs.items() if any(c.role == "proxy" for c in checkpoints)][:1]


def runs(checkpoints: list[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """Training run -> its checkpoints."""
    found: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        found.setdefault(checkpoint.run, []).append(checkpoint)
    return found


def extraction_options(plan: Plan, checkpoints: list[Checkpoint]) -> list[ExtractionOptions]:
    """How each checkpoint is run: the study's options, then what its corpus and what its own entry set over them."""
    corpora = {corpus.name: corpus for corpus in plan.corpora}
    found: dict[tuple[str, int], ExtractionOptions] = {}  # by identity: models share one object, and hashing it is slow
    for c in checkpoints:
        if (c.corpus, id(c.model)) not in found:
            found[c.corpus, id(c.model)] = plan.study.extraction.over(corpora[c.corpus].model, c.model)
    return [found[c.corpus, id(c.model)] for c in checkpoints]


def distinct_options(plan: Plan, checkpoints: list[Checkpoint]) -> tuple[list[ExtractionOptions], list[int]]:
    """The different `extraction_options` of checkpoints, and for each checkpoint the place of its own among them."""
    options = extraction_options(plan, checkpoints)
    objects = {id(chosen): chosen for chosen in options}
    distinct = list(dict.fromkeys(objects.values()))
    places = {key: distinct.index(chosen) for key, chosen in objects.items()}
    return distinct, [places[id(chosen)] for chosen in options]


def job_options(plan: Plan, corpus: str, checkpoints: Collection[tuple]) -> list[ExtractionOptions]:
    """The `extraction_options` of a job's checkpoints of one corpus, named by the first entry of each.

    A job asks for them itself: what changes no results (memory, batches) is no part of its plan, and may change after
    it is done.
    """
    found = {checkpoint.checkpoint: checkpoint for checkpoint in corpus_checkpoints(plan, corpus)}
    return extraction_options(plan, [found[name] for name, *_ in checkpoints])


def require_active_parameters(plan: Plan, corpus: str, checkpoints: Collection[tuple]) -> None:
    """`InputError` for a mixture of experts of the hub whose file takes all of its parameters for active.

    Whether it is one is known only when its weights are there. `checkpoints` as for `job_options`.
    """
    named = {name for name, *_ in checkpoints}
    for c in corpus_checkpoints(plan, corpus):
        if c.checkpoint not in named or not c.revision or c.active_parameters < c.parameters:
            continue
        if inactive := inactive_parameters(Path(c.folder)):
            raise InputError(
                f"{plan.corpus_files[corpus]}: {c.checkpoint} is a mixture of experts, of whose {c.parameters} "
                f"parameters a token meets {c.parameters - inactive}, and 6 N D counts those; give active_parameters"
            )


def weight_inputs(plan: Plan, checkpoints: list[Checkpoint]) -> list[str]:
    """What a scoring job waits for: manifests of models trained here, converted or downloaded runs, given weights."""
    if plan.study.replay:
        return []
    corpora = {corpus.name: corpus for corpus in plan.corpora}
    inputs = {}  # an ordered set
    for checkpoint in checkpoints:
        if corpora[checkpoint.corpus].checkpoints is None:
            inputs[str(trained_manifest(plan, checkpoint))] = None
        elif checkpoint.convert_from or checkpoint.revision:
            inputs[checkpoint.folder.rpartition("/")[0]] = None
        else:
            inputs |= dict.fromkeys(map(str, weight_files(Path(checkpoint.source))))
    return list(inputs)


def weight_states(plan: Plan, checkpoints: list[Checkpoint]) -> str:
    """A fingerprint that changes when a file in a given model folder does, by what `stat` tells: weights are large.

    A job that it starts reads the weights, and scores only those whose content is another one.
    """
    corpora = {corpus.name: corpus for corpus in plan.corpora}
    given = [c for c in checkpoints if corpora[c.corpus].checkpoints and not c.revision and c.source]
    folders = dict.fromkeys(Path(c.source) for c in given)
    return input_states([file for folder in folders for file in folder.iterdir() if file.is_file()], most_bytes=-1)


def trained_manifest(plan: Plan, checkpoint: Checkpoint) -> Path:
    """What a training job writes last: the suite trains all runs of a corpus in one job, a ladder each in its own."""
    if plan.study.miniature:
        return plan.results / "suite" / "trained" / f"{checkpoint.corpus}.json"
    return plan.results / "text" / "trained" / f"{checkpoint.run}.json"


def _of_corpus(plan: Plan, corpus: Corpus) -> Iterator[Checkpoint]:
    if corpus.checkpoints:
        for number, entry in enumerate(corpus.checkpoints):
            try:
                yield from _of_entry(plan, corpus, entry)
            except (ValueError, OSError) as error:
                where = f"{plan.corpus_files[corpus.name]}: checkpoints[{number}]"
                raise InputError(f"{where}: {error}") from None
    elif plan.study.miniature:
        yield from _of_suite(plan, corpus)
    else:
        yield from _of_text(plan, corpus)


def _of_entry(plan: Plan, corpus: Corpus, entry: CheckpointEntry) -> Iterator[Checkpoint]:
    ladder, choice, target = plan.ladder, plan.study.ladder, plan.study.target.size
    sizes = [s for s in ladder.sizes if choice.sizes == "all" or s in choice.sizes or s == target] if ladder else []
    seeds = None if choice is None or choice.seeds == "all" else choice.seeds
    chosen: dict[tuple[str, int], Collection[int]] = {}
    origins: dict[tuple, CheckpointSpec] = {}
    for spec in entry.expand(ladder, sizes, seeds):
        shape = ladder.sizes.get(spec.size) if ladder else None
        if shape and entry.step is None:
            run = spec.size, spec.seed
            if run not in chosen:
                chosen[run] = _chosen_steps(plan, *run)
            if chosen[run] is not None and spec.step not in chosen[run]:
                continue
        if spec.folder is not None and not spec.folder.is_dir():
            raise ValueError(f"{spec.folder}: no such folder")
        _require_own_weights(spec, origins.setdefault((spec.folder, spec.hub, spec.revision), spec))
        tokens = entry.tokens
        if tokens is None and (entry.tokens_per_step or shape):
            tokens = spec.step * (entry.tokens_per_step or shape.batch_sequences * ladder.sequence_length)
        if tokens is None:
            raise ValueError(
                f"tokens: missing; give tokens or tokens_per_step, as no ladder tells them of {spec.size!r}"
            )
        parameters = entry.parameters or (shape and shape.parameters(ladder.vocabulary))
        if parameters is None:
            if spec.folder is None or entry.convert_from:
                raise ValueError(f"parameters: missing; N of {spec.size!r} is not known before its weights are there")
            parameters = count_parameters(spec.folder)
        active = entry.active_parameters or parameters - _inactive(spec, entry, dense=shape is not None)
        if not 0 < active <= parameters:
            raise ValueError(f"active_parameters: found {active}; they are a part of the {parameters} parameters")
        unfinished = shape is not None and spec.step < FINISHED * shape.steps
        yield _checkpoint(
            plan,
            corpus,
            size=spec.size,
            parameters=parameters,
            active_parameters=active,
            step=spec.step,
            tokens=tokens,
            seed=spec.seed,
            role="proxy" if unfinished and plan.selects_data else _role(plan, spec.size),
            spec=spec,
            entry=entry,
        )


def _inactive(spec: CheckpointSpec, entry: CheckpointEntry, dense: bool) -> int:
    """Parameters that a token does not meet; 0 for weights that are not there yet (`require_active_parameters`)."""
    if dense or spec.folder is None or entry.convert_from or not any(spec.folder.glob("*.safetensors")):
        return 0
    return inactive_parameters(spec.folder)


def _require_own_weights(spec: CheckpointSpec, first: CheckpointSpec) -> None:
    """A pattern that lacks a placeholder would give the same weights to several checkpoints. `first` has those."""
    for name in ("size", "seed", "step"):
        one, other = getattr(first, name), getattr(spec, name)
        if one != other:
            origin = spec.folder or f"{spec.hub}, revision {spec.revision}"
            raise ValueError(f"{name}: {one} and {other} would have the same weights, {origin}; {{{name}}} is missing")


def _chosen_steps(plan: Plan, size: str, seed: int) -> Collection[int] | None:
    """The steps of a run that the study's choice of the ladder holds; None: all there are.

    Of the target it is always the last of a finished run, and no other unless the choice names its size, too.
    """
    ladder, choice = plan.ladder, plan.study.ladder
    by_rule = [step for step in ladder.steps_of(size, seed) if step >= choice.first_step]
    steps: set[int] = set()
    if choice.sizes == "all" or size in choice.sizes:
        match choice.checkpoints:
            case "all":
                return None if choice.first_step == 0 else range(choice.first_step, sys.maxsize)
            case "last":
                steps.update(by_rule[-1:])
            case every:
                steps.update(by_rule[::-1][::every])
    if size == plan.study.target.size and by_rule[-1:] >= [FINISHED * ladder.sizes[size].steps]:
        steps.add(by_rule[-1])
    return steps


def _of_suite(plan: Plan, corpus: Corpus) -> Iterator[Checkpoint]:
    suite = plan.study.miniature
    for name, size in suite.sizes.items():
        if corpus.text and not _is_trained(plan, corpus, name):
            continue
        for seed in corpus.seeds or size.seeds:
            for step in size.all_checkpoints:
                yield _trained(plan, corpus, name, suite.parameters(name), seed, step, suite.training.batch_tokens)


def _of_text(plan: Plan, corpus: Corpus) -> Iterator[Checkpoint]:
    """A run stops where those that it is compared with stopped."""
    ladder, choice = plan.ladder, plan.study.ladder
    for name, size in ladder.sizes.items():
        if not _is_trained(plan, corpus, name):
            continue
        seeds = [s for s in ladder.seeds_of(name) if choice.seeds == "all" or s in choice.seeds]
        for seed in corpus.seeds or seeds:
            steps = _chosen_steps(plan, name, seed)
            for step in ladder.steps_of(name, seed):
                if steps is None or step in steps:
                    n = size.parameters(ladder.vocabulary)
                    yield _trained(plan, corpus, name, n, seed, step, ladder.batch_tokens(name))


def _is_trained(plan: Plan, corpus: Corpus, size: str) -> bool:
    """Whether models of this size are trained on a corpus of text: those it names, or all that are proxies."""
    if corpus.sizes is not None:
        return size in corpus.sizes
    choice = plan.study.ladder
    return size != plan.study.target.size and (choice is None or choice.sizes == "all" or size in choice.sizes)


def _trained(
    plan: Plan, corpus: Corpus, size: str, parameters: int, seed: int, step: int, batch_tokens: int
) -> Checkpoint:
    keys = {"step": step, "tokens": step * batch_tokens, "seed": seed, "role": _role(plan, size)}
    return _checkpoint(plan, corpus, size=size, parameters=parameters, **keys)


def _role(plan: Plan, size: str) -> str:
    if not plan.selects_data:
        return "candidate"
    return "target" if size == plan.study.target.size else "proxy"


def _targets_of_table(plan: Plan, sizes: dict[str, None]) -> list[Checkpoint]:
    """Targets that only the table of the truth names, as <corpus>-<size>-seed<seed>-step<step>."""
    target, where = plan.study.target, plan.where
    if target.table is None or target.parameters is None or target.tokens is None:
        known = f"{closest(target.size, sizes)}; known are {', '.join(sizes)}"
        raise InputError(
            f"{where}: target.size: {target.size!r} is no size of this study{known}; a truth without models needs "
            "target.table, target.parameters and target.tokens"
        )
    corpora = {corpus.name: corpus for corpus in plan.corpora}
    name = re.compile(
        rf"({'|'.join(map(re.escape, corpora))})-{re.escape(target.size)}-seed(\d{{1,18}})-step(\d{{1,18}})"
    )
    keys = {"parameters": target.parameters, "tokens": target.tokens, "role": "target"}
    found = []
    for checkpoint in read_target_table(target.table)["checkpoint"].unique(maintain_order=True):
        if match := name.fullmatch(checkpoint):
            corpus, seed, step = corpora[match[1]], int(match[2]), int(match[3])
            found.append(_checkpoint(plan, corpus, size=target.size, seed=seed, step=step, source="", **keys))
    return found


def _published(plan: Plan) -> list[Checkpoint]:
    """What the published measurements are of: the last step of each run of the ladder."""
    ladder, found = plan.ladder, []
    for corpus in plan.corpora:
        for name, size in ladder.sizes.items():
            is_target = name == plan.study.target.size
            # Of the target the mean over the seeds is published, which stands under the first.
            for seed in list(ladder.seeds)[:1] if is_target else ladder.seeds:
                n, step = size.parameters(ladder.vocabulary), ladder.last_step(name, seed)
                tokens = step * ladder.batch_tokens(name)
                keys = {"step": step, "tokens": tokens, "role": "target" if is_target else "proxy"}
                found.append(_checkpoint(plan, corpus, size=name, parameters=n, seed=seed, source="", **keys))
    return found


def _checkpoint(
    plan: Plan,
    corpus: Corpus,
    size: str,
    parameters: int,
    step: int,
    tokens: int,
    seed: int,
    role: str,
    spec: CheckpointSpec | None = None,
    entry: CheckpointEntry | None = None,
    source: str | None = None,
    active_parameters: int | None = None,
) -> Checkpoint:
    """A checkpoint from the values of its row; without `spec` and `source` it is trained by this study.

    Without `active_parameters` a token meets all of its parameters.
    """
    active_parameters = active_parameters or parameters
    run = sys.intern(f"{corpus.name}-{size}-seed{seed}")  # one string for all checkpoints of a run
    convert_from = (entry and entry.convert_from) or ""
    if spec is None:
        folder = f"{plan.results}/{'suite' if plan.study.miniature else 'text'}/models/{run}/step{step}"
    else:
        source = spec.hub or str(spec.folder)
        made = "weights" if spec.hub else "converted" if convert_from else None
        folder = f"{plan.results}/{made}/{run}/step{step}" if made else source
    return Checkpoint(
        checkpoint=f"{run}-step{step}",
        run=run,
        corpus=corpus.name,
        family=corpus.family or _architecture(plan, size),
        size=size,
        parameters=parameters,
        active_parameters=active_parameters,
        step=step,
        tokens=tokens,
        flops=training_flops(active_parameters, tokens),
        seed=seed,
        role=role,
        source=folder if source is None else source,
        revision=spec.revision if spec else "",
        folder=folder if source != "" else "",
        convert_from=convert_from,
        model=entry.model if entry else AS_THE_STUDY,
    )


def _architecture(plan: Plan, size: str) -> str:
    """The family of models that name none: the architecture that the suite gives them; a ladder's are all Llamas."""
    suite = plan.study.miniature
    return suite.sizes[size].architecture if suite and size in suite.sizes else "llama"


def _require_distinct_names(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """Two entries of a corpus can be of one model; hyphens can make the names of two corpora meet ('a-b' + 'c')."""
    owners: dict[str, str] = {}
    for entry in checkpoints:
        if entry.checkpoint in owners:
            files = plan.corpus_files[entry.corpus], plan.corpus_files[owners[entry.checkpoint]]
            raise InputError(
                f"{files[0]}: checkpoint {entry.checkpoint} stands in {files[1]} already; "
                "corpus, size, seed and step together must name one model"
            )
        owners[entry.checkpoint] = entry.corpus


def _require_curves(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """Every run that is forecast needs more early checkpoints than a curve has parameters."""
    options = plan.study.forecasting
    for run, found in runs(checkpoints).items():
        steps = sorted(checkpoint.step for checkpoint in found)
        fitted = [step for step in steps if options.fit_from_step <= step <= options.fit_up_to_step]
        if len(fitted) <= CURVES["power"].parameters:
            raise InputError(
                f"{plan.where}: forecasting.fit_up_to_step: {options.fit_up_to_step} leaves {len(fitted)} checkpoints "
                f"of run {run} to fit, from step {options.fit_from_step}; a curve needs at least "
                f"{CURVES['power'].parameters + 1}; its steps are {steps}"
            )


def _require_writers(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    known = {entry.checkpoint for entry in checkpoints}
    for name, writer in plan.study.writers.items():
        if writer.folder and not writer.folder.is_dir():
            raise InputError(f"{plan.where}: writers.{name}.folder: {writer.folder}: no such folder")
        if writer.checkpoint and writer.checkpoint not in known:
            close = closest(writer.checkpoint, known)
            raise InputError(
                f"{plan.where}: writers.{name}.checkpoint: {writer.checkpoint!r} is no checkpoint of the study{close}"
            )


def _require_sizes(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """The target must be there, something smaller than it, and every budget that the study names."""
    proxies: dict[str, set[int]] = {}
    for entry in checkpoints:
        if entry.role == "proxy":
            proxies.setdefault(entry.size, set()).add(entry.step)
    size = plan.study.target.size
    if not proxies:
        raise InputError(f"{plan.where}: target.size: {size!r} is the only size; a proxy must be smaller")
    if not any(entry.role == "target" for entry in checkpoints):
        raise InputError(f"{plan.where}: target: no finished run of size {size!r} in any corpus")
    for number, budget in enumerate(plan.study.budgets):
        if budget.size == size or budget.step not in proxies.get(budget.size, ()):
            there = {size: sorted(steps) for size, steps in proxies.items()}
            raise InputError(
                f"{plan.where}: budgets[{number}]: no checkpoint {budget.size} at step {budget.step}; there are {there}"
            )


def _require_comparable(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """Corpora are compared model by model: what bears one name must be one size, trained equally long, everywhere.

    Corpora with a target need the same targets, and without a ladder the same proxies. A corpus without one, whose
    place is to be predicted, needs those of the budgets.
    """
    first: dict[tuple[str, int], Checkpoint] = {}
    models: dict[str, set[str]] = {corpus.name: set() for corpus in plan.corpora}
    for entry in checkpoints:
        other = first.setdefault((entry.size, entry.step), entry)
        for key in ("parameters", "active_parameters", "tokens"):
            found, expected = getattr(entry, key), getattr(other, key)
            if found != expected:
                raise InputError(
                    f"{plan.corpus_files[entry.corpus]}: checkpoints: {key} of {entry.size} at step {entry.step}: "
                    f"found {found}, but {expected} in {plan.corpus_files[other.corpus]}; corpora are compared at "
                    "equal sizes and training"
                )
        models[entry.corpus].add(_model(plan, entry))
    judged = {entry.corpus for entry in checkpoints if entry.role == "target"}
    if len(judged) < 2:
        raise InputError(
            f"{plan.where}: target: found models of size {plan.study.target.size} for {len(judged)} corpora; "
            "a truth needs at least two"
        )
    everything = set().union(*(models[corpus] for corpus in judged))
    strict = plan.ladder is None
    for corpus, found in models.items():
        needed = {name for name in everything if strict or name.endswith("target")} if corpus in judged else set()
        if missing := sorted(needed - found):
            raise InputError(
                f"{plan.corpus_files[corpus]}: checkpoints: found no {missing[0].removesuffix(', the target')}, which "
                f"another corpus has; all corpora need the same models ({len(missing)} missing)"
            )
    for budget in plan.study.budgets:
        _require_budget(plan, budget, checkpoints)


def _model(plan: Plan, entry: Checkpoint) -> str:
    if entry.role == "target":
        return f"{entry.size} of seed {entry.seed}, the target"
    return f"{entry.size} of seed {entry.seed} at step {entry.step}"


def _require_budget(plan: Plan, budget: Budget, checkpoints: list[Checkpoint]) -> None:
    """Every corpus needs the model of a budget, with at least one seed that all corpora have."""
    seeds: dict[str, set[int]] = {corpus.name: set() for corpus in plan.corpora}
    for entry in checkpoints:
        if (entry.size, entry.step) == (budget.size, budget.step):
            seeds[entry.corpus].add(entry.seed)
    known = next(found for found in seeds.values() if found)
    for corpus, found in seeds.items():
        if not known & found:
            raise InputError(
                f"{plan.corpus_files[corpus]}: checkpoints: found no {budget.size} at step {budget.step} "
                f"of seed {' or '.join(map(str, sorted(known)))}, which the budget {budget.name!r} compares"
            )
        known &= found


def count_parameters(folder: Path) -> int:
    """All parameters of the model in `folder` but the input embedding, read from the headers of its weights.

    A tied embedding is the output head as well and so counts once. Of a mixture of experts a token meets fewer
    (`experts.inactive_parameters`).
    """
    shapes = {name: shape for file in weight_files(folder) for name, shape in safetensors_header(file).items()}
    untied = any(name.endswith(OUTPUT_HEADS) for name in shapes)
    counted = {name: math.prod(s) for name, s in shapes.items() if not (untied and name.endswith(INPUT_EMBEDDINGS))}
    if untied and len(counted) == len(shapes):
        raise InputError(
            f"{folder}: found no input embedding (a name that ends with {', '.join(INPUT_EMBEDDINGS)}); "
            "give `parameters` in the corpus file"
        )
    return sum(counted.values())


def broken_results(results: Path) -> tuple[list[Path], list[Path]]:
    """Every truncated file and checkpoint below `results`, and all files that have to be made again for them.

    A job whose checkpoint or table is broken loses its manifest with it; when it runs again it keeps the whole ones.
    A hidden file is one that a running job is writing just now.
    """
    broken: list[Path] = []
    to_make: list[Path] = []
    # Faster than rglob: there can be tens of thousands of tables. Parts of the results may be linked to another disk.
    root = os.path.realpath(results)
    seen = {root}
    for folder, folders, files in os.walk(results, followlinks=True):
        is_linked = not Path(os.path.realpath(folder)).is_relative_to(root)
        # A link may lead anywhere: to jobs of scoring is looked, <kind>/<job>, and no further.
        folders[:] = [] if is_linked and len(Path(folder).relative_to(results).parts) > 1 else folders
        folders[:] = [name for name in folders if os.path.realpath(f"{folder}/{name}") not in seen]
        seen.update(os.path.realpath(f"{folder}/{name}") for name in folders)
        manifest = Path(folder, MANIFEST)
        # Of what is not in the results only tables are ours that a manifest beside them names.
        ours = {f"{name}.parquet" for name in _parts(manifest)} & set(files) if is_linked else files
        tables = [f"{folder}/{name}" for name in files if name.endswith(".parquet") and not name.startswith(".")]
        truncated = [Path(table) for table in tables if not is_whole_parquet(table) and os.path.basename(table) in ours]
        copies = (
            [] if is_linked else [path for table in tables if (path := Path(table).with_suffix(".csv")).name in files]
        )
        truncated += [path for path in copies if not is_whole_csv(path)]
        is_whole = (is_linked and not ours) or _is_whole_manifest(manifest, files)
        if MANIFEST in files and (truncated or not is_whole):
            to_make.append(manifest)
            broken += [] if truncated else [manifest]
        seals = [] if is_linked else [path for name in files if (path := sealed_by(Path(folder, name)))]
        changed = [path for path in seals if not is_unchanged(path)]
        broken += truncated + changed
        to_make += truncated + changed
    for manifest in results.glob("text/*/manifest.json"):
        if manifest not in to_make and _is_below(manifest, root) and (lost := lost_parts(manifest)):
            broken += [path for path in lost if path not in broken]
            to_make.append(manifest)
    records = [path for path in results.glob("revisions/**/*.json") if not _is_record(read_json(path))]
    records = [path for path in records if _is_below(path, root)]
    broken += records
    to_make += records
    for manifest in [*results.glob("suite/trained/*.json"), *results.glob("text/trained/*.json")]:
        folders = _trained_folders(manifest)
        damaged = [folder for folder in folders if not _is_whole(folder)]
        broken += damaged if folders else [manifest]
        models = os.path.realpath(manifest.parent.with_name("models"))
        own = [folder for folder in damaged if _is_below(folder, models) and not folder.is_symlink()]
        to_make += [folder for folder in own if _is_below(folder, root) or (folder / FINGERPRINT_FILE).is_file()]
        to_make += [manifest] if damaged or (not folders and _is_below(manifest, root)) else []
    return broken, to_make


def remove(paths: Iterable[Path]) -> None:
    """Files and folders, those that are there. A table gets another name: it may be somebody's own."""
    for path in paths:
        if path.suffix in (".parquet", ".csv") and path.exists():
            set_aside(path)
        else:
            remove_tree(path)


def _is_below(path: Path, root: str) -> bool:
    """Whether the folder that `path` lies in is, links followed, `root` or one below it."""
    return path.parent.resolve().is_relative_to(root)


def _parts(manifest: Path) -> Iterable[str]:
    """The tables that a manifest of scoring names; none where it is not one."""
    parts = read_json(manifest)
    return parts if names_parts(parts) else ()


def _is_whole_manifest(manifest: Path, files: list[str]) -> bool:
    """Whether a manifest can be read and, if it is a scoring job's, the tables that it names are among the `files`."""
    if manifest.parts[-3] in ("token_stats", "targets"):
        parts = _parts(manifest)
        return bool(parts) and {f"{name}.parquet" for name in parts}.issubset(files)
    try:
        found = json.loads(manifest.read_text()) if manifest.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    is_of_text = manifest.parts[-3] == "text"
    return not is_of_text or (isinstance(found, list) and all(isinstance(s, dict) and "content" in s for s in found))


def _is_record(found: Mapping[str, object]) -> bool:
    """Whether this is the record of a download, or that of each checkpoint of a run."""
    records = [found] if "commit" in found else [*found.values()]
    return bool(records) and all(
        isinstance(record, dict) and isinstance(record.get("commit"), str) for record in records
    )


def _trained_folders(manifest: Path) -> list[Path]:
    """The checkpoints that a manifest of training names; none where it names anything else."""
    models, names = manifest.parent.with_name("models"), list(read_json(manifest))
    folders = [models / name for name in names if TRAINED_CHECKPOINT.fullmatch(name)]
    return folders if len(folders) == len(names) else []


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint that was trained here has its files, and all bytes of its weights."""
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return False
    try:
        return all(safetensors_header(file) is not None for file in weight_files(folder))
    except (InputError, OSError):
        return False
