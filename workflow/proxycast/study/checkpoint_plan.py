"""Which checkpoints a study has.

Their models lie in folders or on the hub, are trained by the study, or are only in a table of the truth or of
statistics that others measured.
"""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

from snakemake.target_jobs import TargetSpec, parse_target_jobs_cli_args

from proxycast.compute import training_flops
from proxycast.config.corpora import CheckpointEntry, CheckpointSpec, Corpus
from proxycast.config.errors import closest
from proxycast.config.extraction import ExtractionOptions, ModelOptions
from proxycast.config.ladder import MOST_CHECKPOINTS, require_countable
from proxycast.config.post_training_options import BASE
from proxycast.options import InputError
from proxycast.study.checkpoints import Checkpoint, count_parameters, extraction_options
from proxycast.study.cross_checks import check_checkpoints
from proxycast.study.study_plan import Plan
from proxycast.truth.outside_statistics import compared_rows, models_of_table
from proxycast.truth.targets import read_target_table
from proxycast.weights.experts import inactive_parameters

# A run of the ladder that came so far is finished: restarts cut or added a few steps, early stops three quarters.
FINISHED = 0.99
# Wildcards of a job whose value is a corpus, or a training run, which begins with the name of its corpus.
OWNERS = ("corpus", "job", "run")
AS_THE_STUDY = ModelOptions()
UNKNOWN_FAMILY = "unknown"  # of models in a table that names none; it is never held out
# Options of Snakemake's command line with which it runs no job (snakemake.cli.args_to_api).
WITHOUT_JOBS = (
    "dryrun touch lint list_target_rules list_rules print_compilation dag rulegraph filegraph d3dag unlock "
    "cleanup_metadata cleanup_shadow conda_cleanup_envs conda_create_envs_only container_cleanup_images "
    "list_conda_envs list_changes list_input_changes list_params_changes list_untracked summary detailed_summary "
    "archive delete_all_output delete_temp_output containerize generate_unit_tests"
).split()


def plan_checkpoints(plan: Plan) -> list[Checkpoint]:
    """Every checkpoint of the study, corpus by corpus. `InputError` names a corpus that lacks one or has one twice."""
    if plan.study.statistics and not plan.runs_models:
        checkpoints = _measured_outside(plan)
    else:
        every = (checkpoint for corpus in plan.corpora for checkpoint in _of_corpus(plan, corpus))
        checkpoints = list(islice(every, MOST_CHECKPOINTS + 1))
        require_countable(len(checkpoints), f"{plan.where}: corpora")
    sizes = {checkpoint.size: None for checkpoint in checkpoints}
    if plan.target_size and plan.target_size not in sizes:
        checkpoints += _targets_of_table(plan, sizes)
    check_checkpoints(plan, checkpoints)
    return checkpoints


def checkpoints_of_command(plan: Plan, arguments: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints that the jobs in a command line of Snakemake's own (`--target-jobs`) need, without checks.

    Each job starts a Snakemake of its own, on a cluster two. Planning all checkpoints there would take seconds, for the
    few that the job scores. A job that is named by a corpus or a training run needs the checkpoints of its corpus. If
    the name of one corpus begins with that of another, it gets both.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--target-jobs", nargs="+")
    jobs = parse_target_jobs_cli_args(parser.parse_known_args(arguments)[0].target_jobs) or [TargetSpec("all", {})]
    names = [next((job.wildcards_dict[key] for key in OWNERS if key in job.wildcards_dict), None) for job in jobs]
    # Which budget is the default shows only in all of them, and so does the last step that two rates are compared at.
    from_all = not plan.study.budgets or (plan.study.ladder and plan.study.ladder.rate_check)
    if None in names or (plan.selects_data and from_all):
        return plan_checkpoints(plan)
    owners = [c for c in plan.corpora if any(f"{name}-".startswith(f"{c.name}-") for name in names)]
    return [checkpoint for corpus in owners for checkpoint in _of_corpus(plan, corpus)]


def runs_jobs(arguments: Sequence[str]) -> bool:
    """Whether Snakemake, called with these arguments and their profile, runs jobs. If not, no file may be changed.

    Snakemake does not tell a Snakefile: it reads it before it evaluates these options.
    """
    from snakemake.cli import parse_args  # slow, and no job needs it

    with contextlib.redirect_stderr(io.StringIO()):  # it tells of the profile a second time
        given = parse_args(arguments)[1]
    only_a_report = given.report and not given.report_after_run
    return not (only_a_report or any(getattr(given, option) for option in WITHOUT_JOBS))


def corpus_checkpoints(plan: Plan, name: str) -> list[Checkpoint]:
    """Every checkpoint of one corpus, as in `plan_checkpoints`, without the checks of all corpora together."""
    return list(_of_corpus(plan, plan.corpus(name)))


def job_options(plan: Plan, corpus: str, checkpoints: Collection[tuple]) -> list[ExtractionOptions]:
    """The `extraction_options` of a job's checkpoints of one corpus, named by the first entry of each.

    A job asks for them itself: options that change no results (memory, batches) are not among its parameters.
    """
    found = {checkpoint.checkpoint: checkpoint for checkpoint in corpus_checkpoints(plan, corpus)}
    return extraction_options(plan, [found[name] for name, *_ in checkpoints])


def require_active_parameters(plan: Plan, corpus: str, checkpoints: Collection[tuple]) -> None:
    """`InputError` for a mixture of experts of the hub whose corpus file counts all parameters as active.

    Only the downloaded weights tell whether a model is one. `checkpoints` as for `job_options`.
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
    ladder, choice, target = plan.ladder, plan.study.ladder, plan.target_size
    sizes = [s for s in ladder.sizes if choice.sizes == "all" or s in choice.sizes or s == target] if ladder else []
    sizes = [s for s in sizes if plan.size_in_choices(s) == s]
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
        yield _make_checkpoint(
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
    """The steps of a run that the study's choice of the ladder includes; None: all there are.

    The target's last step of a finished run is always included; its others only if the choice names its size.
    """
    ladder, choice = plan.ladder, plan.study.ladder
    by_rule = [step for step in ladder.steps_of(size, seed) if step >= choice.first_step]
    steps: set[int] = set()
    if choice.sizes == "all" or plan.size_in_choices(size) in choice.sizes:
        match choice.checkpoints:
            case "all":
                return None if choice.first_step == 0 else range(choice.first_step, sys.maxsize)
            case "last":
                steps.update(by_rule[-1:])
            case every:
                steps.update(by_rule[::-1][::every])
    if size == plan.target_size and by_rule[-1:] >= [FINISHED * ladder.sizes[size].steps]:
        steps.add(by_rule[-1])
    return steps


def _of_suite(plan: Plan, corpus: Corpus) -> Iterator[Checkpoint]:
    suite = plan.study.miniature
    for name, size in suite.sizes.items():
        if corpus.text and not _is_trained(plan, corpus, name):
            continue
        for seed in corpus.seeds or size.seeds:
            model = corpus, name, suite.parameters(name), seed
            for step in size.all_checkpoints:
                yield _trained(plan, *model, step, suite.training.batch_tokens)
            for recipe in plan.recipes_of(corpus.name):
                yield _trained(plan, *model, size.steps, suite.training.batch_tokens, recipe)


def _of_text(plan: Plan, corpus: Corpus) -> Iterator[Checkpoint]:
    """Each run stops where the runs that it is compared with stopped."""
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
    size = plan.size_in_choices(size)
    if corpus.sizes is not None:
        return size in corpus.sizes
    choice = plan.study.ladder
    return size != plan.target_size and (choice is None or choice.sizes == "all" or size in choice.sizes)


def _trained(
    plan: Plan, corpus: Corpus, size: str, parameters: int, seed: int, step: int, batch_tokens: int, recipe: str = ""
) -> Checkpoint:
    keys = {"step": step, "tokens": step * batch_tokens, "seed": seed, "role": _role(plan, size)}
    return _make_checkpoint(plan, corpus, size=size, parameters=parameters, recipe=recipe, **keys)


def _role(plan: Plan, size: str) -> str:
    if not plan.selects_data:
        return "candidate"
    return "target" if size == plan.target_size else "proxy"


def _targets_of_table(plan: Plan, sizes: dict[str, None]) -> list[Checkpoint]:
    """Targets that only the table of the truth names, as <corpus>-<size>-seed<seed>-step<step> or <corpus>."""
    target, where, ladder = plan.study.target, plan.where, plan.ladder
    shape = ladder.sizes.get(target.size) if ladder else None
    parameters = target.parameters or (shape and shape.parameters(ladder.vocabulary))
    if target.table is None or parameters is None or (target.tokens is None and shape is None):
        known = f"{closest(target.size, sizes)}; known are {', '.join(sizes)}"
        raise InputError(
            f"{where}: target.size: {target.size!r} is no size of this study{known}; a truth without models needs "
            "target.table, target.parameters and target.tokens"
        )
    name = re.compile(
        rf"({'|'.join(map(re.escape, plan.corpus_names))})-{re.escape(target.size)}-seed(\d{{1,18}})-step(\d{{1,18}})"
    )
    found = []
    for checkpoint in read_target_table(target.table)["checkpoint"].unique(maintain_order=True):
        match = name.fullmatch(checkpoint)
        if match or checkpoint in plan.corpus_names:
            corpus, seed, step = match.groups() if match else (checkpoint, 0, 0)
            seed, step = int(seed), int(step)
            if not match and shape:  # a corpus alone stands for its finished run
                seed = min(ladder.seeds_of(target.size))
                step = ladder.last_step(target.size, seed)
            tokens = target.tokens or step * ladder.batch_tokens(target.size)
            run = f"{corpus}-{target.size}-seed{seed}"
            found.append(
                _without_weights(plan, run, f"{run}-step{step}", corpus, target.size, parameters, step, tokens, seed)
            )
    return found


def _measured_outside(plan: Plan) -> list[Checkpoint]:
    """The checkpoints of a study that runs no model: those that its table of statistics has values of."""
    study, path, table = plan.study, plan.study.statistics.table, plan.outside
    models = models_of_table(compared_rows(table, path, study.target), path, plan.ladder)
    for corpus in plan.corpus_names:
        if corpus not in models["unit"]:
            raise InputError(f"{path}, column unit: no row of {corpus!r}, which {plan.origin(corpus)} names")
    # A model that is named by itself keeps its name.
    told = {name: plan.selects_data or table[name].is_not_null().any() for name in ("seed", "step")}
    some_families, found = models["family"].is_not_null().any(), []
    for row in models.iter_rows(named=True):
        where = f"{path}, row {row['row']}"
        if plan.selects_data and row["size"] is None:
            tells = (
                "the target's models"
                if study.target
                else "the small models; `model_selection: {}` ranks models as such"
            )
            raise InputError(f"{where}, column size: empty in all rows of {row['unit']!r}; it tells {tells}")
        flops, parameters, tokens = row["flops"], row["parameters"], row["tokens"]
        if plan.selects_data and (parameters is None or tokens is None):
            name = "parameters" if parameters is None else "tokens"
            raise InputError(
                f"{where}, column {name}: not known of {row['unit']!r}, size {row['size']!r}, and no ladder tells it; "
                "small models are compared by what their training cost"
            )
        size, seed, step = row["size"], row["seed"], row["step"]
        run = row["unit"] + (f"-{size}" if size else "") + (f"-seed{seed}" if told["seed"] else "")
        names = run, run + (f"-step{step}" if told["step"] else "")
        family = row["family"] or (row["unit"] if some_families else None)
        keys = {"family": family, "flops": None if flops is None else round(flops)}
        found.append(
            _without_weights(plan, *names, row["unit"], size or "", parameters or 0, step, tokens or 0, seed, **keys)
        )
    sizes = dict.fromkeys([*(plan.ladder.sizes if plan.ladder else ()), *(c.size for c in found)])
    by_size = {name: place for place, name in enumerate(sizes)}
    by_corpus = {name: place for place, name in enumerate(plan.corpus_names)}
    return sorted(found, key=lambda c: (by_corpus[c.corpus], by_size[c.size], c.seed, c.step))


def _without_weights(
    plan: Plan,
    run: str,
    name: str,
    corpus: str,
    size: str,
    parameters: int,
    step: int,
    tokens: int,
    seed: int,
    family: str | None = None,
    flops: int | None = None,
) -> Checkpoint:
    """A checkpoint that only tables of others know."""
    own = next((found.family for found in plan.corpora if found.name == corpus), None)
    return Checkpoint(
        checkpoint=name,
        run=run,
        corpus=corpus,
        family=family or own or ("llama" if plan.selects_data else UNKNOWN_FAMILY),
        recipe=next((found.post_training for found in plan.corpora if found.name == corpus), None) or "",
        size=size,
        parameters=parameters,
        active_parameters=parameters,
        step=step,
        tokens=tokens,
        flops=training_flops(parameters, tokens) if flops is None else flops,
        seed=seed,
        role=_role(plan, size),
        source="",
        revision="",
        folder="",
        convert_from="",
        model=AS_THE_STUDY,
    )


def _make_checkpoint(
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
    active_parameters: int | None = None,
    recipe: str = "",
) -> Checkpoint:
    """A checkpoint from the values of its row; without `spec` it is trained by this study.

    Without `active_parameters` a token meets all of its parameters; with `recipe` it is post-trained here.
    """
    active_parameters = active_parameters or parameters
    made_by = f"-{recipe}" if recipe else ""
    run = sys.intern(f"{corpus.name}-{size}{made_by}-seed{seed}")  # one string for all checkpoints of a run
    convert_from = (entry and entry.convert_from) or ""
    if spec is None:
        source = folder = f"{plan.results}/{'suite' if plan.study.miniature else 'text'}/models/{run}/step{step}"
    else:
        source = spec.hub or str(spec.folder)
        made = "weights" if spec.hub else "converted" if convert_from else None
        folder = f"{plan.results}/{made}/{run}/step{step}" if made else source
    return Checkpoint(
        checkpoint=f"{run}-step{step}",
        run=run,
        corpus=corpus.name,
        family=corpus.family or _architecture(plan, size),
        recipe=recipe or corpus.post_training or (BASE if spec is None and plan.post_trains else ""),
        size=size,
        parameters=parameters,
        active_parameters=active_parameters,
        step=step,
        tokens=tokens,
        flops=training_flops(active_parameters, tokens),
        seed=seed,
        role=role,
        source=source,
        revision=spec.revision if spec else "",
        folder=folder,
        convert_from=convert_from,
        model=entry.model if entry else AS_THE_STUDY,
    )


def _architecture(plan: Plan, size: str) -> str:
    """The family of models that name none: their architecture in the suite; a ladder's are all Llamas."""
    suite = plan.study.miniature
    return suite.sizes[size].architecture if suite and size in suite.sizes else "llama"
