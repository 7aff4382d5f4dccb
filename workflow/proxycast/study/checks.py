"""Checks before the first model is trained or scored: recipes, solutions, model folders, a table of truth.

`check_inputs` runs when a study is opened, before any job is planned, on all inputs that exist, and once more when the
miniature suite has been built. It is not a job: all others would have to wait for it, and so run again whenever
anything that it checks has changed.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, product
from pathlib import Path

import polars as pl

from proxycast.config.corpora import Corpus
from proxycast.config.errors import closest
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.tasks import Task
from proxycast.config.training import CONTEXT
from proxycast.experiments.data_selection.corpus_scores import comparable
from proxycast.experiments.data_selection.published_curve import read_decision_accuracies
from proxycast.experiments.forecasting.protocol import series_to_forecast
from proxycast.files import Files
from proxycast.metrics import EXACT_MATCH, SAMPLED_EXACT_MATCH
from proxycast.options import InputError
from proxycast.solutions.rows import Problem, Solution, read_problems, read_solutions
from proxycast.solutions.tokenisation import prompt_tokens, tokenize
from proxycast.study.checkpoints import (
    Checkpoint,
    budgets_of,
    checkpoints_table,
    extraction_options,
    scored_checkpoints,
    short_names,
)
from proxycast.study.consent import require_consent
from proxycast.study.cross_checks import check_truth_of_models
from proxycast.study.study_plan import Plan
from proxycast.tables import fingerprint, read_json, read_table, stat_of, table_fingerprint, write_json
from proxycast.training.miniature.recipes import pool_fingerprint, require_documents
from proxycast.truth.outside_statistics import compared_rows, require_at, require_complete, statistics_and_truth
from proxycast.truth.targets import (
    CHOICE_LOG_LIKELIHOOD,
    MULTIPLE_CHOICE_ACCURACY,
    read_target_table,
    require_targets,
    with_full_names,
)
from proxycast.truth.training_log import read_wide_curve
from proxycast.weights.conversion import needs_conversion
from proxycast.weights.model_config import context_of, require_readable, vocabulary_of
from proxycast.weights.model_files import stays_in_folder, tokenizer_files
from proxycast.weights.model_folder import check_folder
from proxycast.weights.tokenizer import load_tokenizer, tokens_fingerprint

CLOCK_SECONDS = 60.0  # that the clocks of two machines may differ
LINKS_VARIABLE = "PROXYCAST_LINKED_RESULTS"  # folders that links in results may lead to, with colons between them
RUNNING = "inputs"  # key of a study's record: what its input files were when a run began that has not ended


def check_inputs(plan: Plan, checkpoints: list[Checkpoint], record: bool = True) -> None:
    """Check every input that exists; `InputError` for the first that is bad.

    With `record` what was found is written to <results>/checked.json with a fingerprint of the inputs (size and times
    of files). The same inputs are not checked again.
    """
    study, suite = plan.study, plan.study.miniature
    # Before any model's own code could be read. Writers may run where nothing else does.
    require_consent(plan, checkpoints, record)
    if plan.curve:
        check_logs(plan)
    if study.statistics:
        check_statistics(plan, checkpoints)
    if not plan.runs_models:
        return
    for name, files in plan.file_sets().items():
        check_files(plan.file_set_origin(name), files)
    require_past([path for files in plan.file_sets().values() if not files.hub for path in files.paths()])
    sources = {name: plan.solutions_source(name) for name in plan.solution_names}
    solutions = {name: path for name, path in sources.items() if path.exists() or plan.results not in path.parents}
    pool, tokenizer = plan.results / "suite" / "pool.parquet", plan.results / "suite" / "tokenizer"
    suite_is_built = suite is not None and table_fingerprint(pool) == pool_fingerprint(suite)
    corpora = {corpus.name: corpus for corpus in plan.corpora}
    given = [c for c in scored_checkpoints(plan, checkpoints) if corpora[c.corpus].checkpoints and c.folder == c.source]
    folders = {Path(c.folder): options for c, options in zip(given, extraction_options(plan, given))}
    table = study.target.table if study.target else None

    # What the study has made depends on the study alone: only the users' files can change by themselves.
    own = [path for path in (*solutions.values(), table) if path and plan.results not in path.parents and path.exists()]
    own += [file for folder in folders for file in sorted(folder.glob("*"))]
    require_past(own)
    stats = [(file, file.stat()) for file in own]
    states = [(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in stats]
    settings = study.target, study.extraction, plan.ladder, list(folders.values()), suite and suite.settings_of_pool()
    inputs_fingerprint = fingerprint(*settings, plan.corpora, plan.tasks, suite_is_built, states)
    done = plan.results / "checked.json"
    if read_json(done).get("fingerprint") == inputs_fingerprint:
        return
    paths, found = list(solutions.values()), {"fingerprint": inputs_fingerprint}
    read = read_problems if study.writers else read_solutions
    if suite_is_built:
        recipes = {plan.corpus_files[corpus.name]: corpus for corpus in plan.corpora}
        found["documents"] = check_recipes(read_table(pool), recipes)
        found["scored_tokens"] = count_scored_tokens(tokenizer, CONTEXT, paths, study.extraction, read=read)
    here = suite_is_built or (plan.ladder and plan.ladder.tokenizer.folder)
    if plan.selects_data:
        require_one_tokenizer([*([plan.tokenizer_folder] if here else []), *folders])
    found["folders"] = check_folders(folders, paths, read)
    metrics = study.target.metrics if study.target else []
    problems = {name: read(path) for name, path in solutions.items()}
    if table and plan.selects_models and not study.forecasting:
        check_truth_of_models(table, checkpoints, plan.task_names, metrics)
    elif table:
        check_target_table(table, checkpoints, plan.task_names, metrics, every_step=study.forecasting is not None)
    elif plan.measured_tasks:
        check_measurable(plan.measured_tasks, problems, metrics, study.target.sampling is not None)
    if record:
        write_json(found, done)


def require_plain_results(results: Path) -> None:
    """`InputError` for a link out of the results: jobs read, replace and remove files below them.

    And for a pipe or device, which reading may not end: results may be somebody else's. Allowed are links to folders
    that `LINKS_VARIABLE` names, a link in place of the folder of all results, and links of files to the hub cache.
    """
    named = [Path(folder).resolve() for folder in filter(None, os.environ.get(LINKS_VARIABLE, "").split(":"))]
    allowed = [results.parent.resolve() / results.name, *named]
    links = [results] if results.is_symlink() else []
    for path in chain(links, _unplain(results)):
        if not path.is_symlink() and path.exists():  # not one that was just removed
            raise InputError(f"{path}: a pipe or device among the results; remove it")
        if path.is_file() and stays_in_folder(path):
            continue
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise InputError(f"{path}: a link that leads to itself; remove it")
        if not any(target.is_relative_to(folder) for folder in allowed):
            raise InputError(
                f"{path}: a link out of the results, to {target}, where jobs would replace and remove files; remove "
                f"it, or, if it is yours, set {LINKS_VARIABLE}={target if target.is_dir() else target.parent} "
                "(several: colons between them)"
            )


def _unplain(folder: Path) -> Iterator[Path]:
    """Everything below that is neither a file nor a folder, as listings tell, without asking for each file's state.

    `InputError` if a folder cannot be listed: its links can still be followed.
    """
    folders = [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False):
                        yield Path(entry.path)
        except (FileNotFoundError, NotADirectoryError):  # not there yet, or just removed
            continue
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); chmod u+rwx it") from None


def require_same_disk(results: Path, record: Path, write: bool) -> None:
    """`InputError` if the results are gone and their place is on another disk than in the last run: a lost mount.

    `record` holds the device of the last run. With `write` it is updated.
    """
    there = next(path for path in (results, *results.parents) if path.exists())
    device = there.stat().st_dev
    if not results.exists() and read_json(record).get("device", device) != device:
        raise InputError(
            f"{results}: gone, and {there.resolve()} is on another disk than the results were: mount that; to make "
            f"all of them anew, remove {record}"
        )
    for path in (results, *results.parents):
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path}: a link to {path.readlink()}, which is not there: mount it, or remove the link")
    if write:
        results.mkdir(parents=True, exist_ok=True)
        write_json(read_json(record) | {"device": results.stat().st_dev}, record)


def edits_of(record: Path, write: bool) -> dict[str, int]:
    """When files were edited while a study ran, by path: some jobs have read the old content, others the new one, and
    no file tells it if the edit is undone.

    After a kill `record` has a `begin_edits` without an end. What has changed since then counts too.
    """
    found = read_json(record)
    noted = _noted(found, "edits", int)
    began = {Path(path): stat and tuple(stat) for path, stat in _noted(found, RUNNING, list | None).items()}
    edits = noted | dict.fromkeys(map(str, changed_since(began)), time.time_ns())
    if write and edits != noted:
        write_json(found | {"edits": edits}, record)
    return edits


def begin_edits(stats: Mapping[Path, tuple[int, ...] | None], record: Path) -> None:
    """Keep the `stat_of` of files, None if absent, to learn whether they change while the study runs."""
    write_json(read_json(record) | {RUNNING: {str(path): stat for path, stat in stats.items()}}, record)


def end_edits(edited: Iterable[Path], record: Path) -> None:
    """Keep which files were edited while the study ran, for `edits_of` at the next start."""
    found = read_json(record)
    edits = _noted(found, "edits", int) | dict.fromkeys(map(str, edited), time.time_ns())
    write_json({key: value for key, value in found.items() if key != RUNNING} | {"edits": edits}, record)


def _noted(record: dict, key: str, kind: type) -> dict[str, object]:
    """What was kept by file under `key`, without values of another type."""
    found = record.get(key)
    return {path: value for path, value in found.items() if isinstance(value, kind)} if isinstance(found, dict) else {}


def changed_since(stats: Mapping[Path, tuple[int, ...] | None]) -> list[Path]:
    """The files whose `stat_of` is not as in `stats`."""
    return [path for path, stat in stats.items() if (stat_of(path) if path.exists() else None) != stat]


def check_logs(plan: Plan) -> None:
    """`InputError` for logs of training runs that cannot be read or forecast."""
    metric = plan.study.target.metric
    tables = read_wide_curve(plan.curve, metric)
    try:
        series_to_forecast(*tables.values(), metric, plan.task_names, plan.study.forecasting)
    except InputError as error:
        raise InputError(f"{plan.where}: {error}") from None
    require_past(plan.curve.files)


def check_statistics(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """`InputError` for statistics from outside that are not there for every model that is compared, or lack a truth."""
    target, tasks, path = plan.study.target, plan.task_names, plan.study.statistics.table
    table = plan.outside if plan.runs_models else compared_rows(plan.outside, path, target)
    models = checkpoints_table(checkpoints, {})
    found, truth = statistics_and_truth(table, path, plan.study.statistics, target, models, tasks)
    if plan.selects_data:
        wanted = comparable(models).select("checkpoint", cell=pl.format("{} at step {}", "size", "step"))
        named = [proxy.statistic for proxy in plan.study.highlighted if proxy.weighting == "none"]
        cells = [f"{budget.size} at step {budget.step}" for budget in budgets_of(plan, checkpoints)]
        ranking = product([name for name in named if name in plan.outside["statistic"]], cells)
        require_at(found.join(wanted, on="checkpoint"), ranking, path)
    else:
        last = models.filter(pl.col("step") == pl.col("step").max().over("run"))
        wanted = last.select("checkpoint", cell=pl.lit("every model"))
    require_complete(found, wanted, tasks, path)
    if target and not plan.runs_models:
        metrics = [target.metric, *target.other_metrics]
        if target.table:
            check_target_table(target.table, checkpoints, tasks, metrics)
        elif target.measured_here:
            require_truth(truth, path, checkpoints, tasks, metrics)
    if plan.study.statistics.decision_accuracies:
        read_decision_accuracies(plan.study.statistics.decision_accuracies, plan.ladder)
    require_past(plan.study.statistics.paths())


def require_past(paths: Iterable[Path]) -> None:
    """`InputError` for a file with a time in the future: Snakemake would discard what is made from it."""
    for path in paths:
        if (changed := path.stat().st_mtime) > time.time() + CLOCK_SECONDS:
            raise InputError(
                f"{path}: was changed on {datetime.fromtimestamp(changed):%Y-%m-%d %H:%M}, which is in the future; "
                f"set the clock of whichever machine wrote it, and run: touch {shlex.quote(str(path))}"
            )


def check_files(where: str, files: Files) -> None:
    """`InputError` for a glob of this machine that finds no file."""
    if files.hub is None:
        try:
            files.paths()
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def require_one_tokenizer(folders: Iterable[Path]) -> None:
    """`InputError` unless all model folders split text into the same tokens, so that corpora can be compared."""
    first: dict[tuple[str, str], Path] = {}
    for folder in folders:
        path = folder / "tokenizer.json"
        if not path.is_file():
            continue  # what is missing or broken is told by the check of the folder
        first.setdefault(tokens_fingerprint(path), folder)
        if len(first) > 1:
            (vocabulary, _), (others, _) = first
            one, other = first.values()
            what = "splits text otherwise" if vocabulary == others else "has another vocabulary"
            raise InputError(
                f"{other}: its tokenizer {what} than that of {one}; corpora are compared token by token, so all models "
                "of a study need the same one"
            )


def require_vocabulary(folders: Iterable[Path], vocabulary: int | None) -> None:
    """`InputError` for a model whose vocabulary is not that of the study's ladder or suite, if it has one."""
    for folder in folders:
        if vocabulary is not None and (found := vocabulary_of(folder)) != vocabulary:
            raise InputError(
                f"{folder / 'config.json'}, key vocab_size: found {found}, but {vocabulary} in the ladder or suite of "
                "the study; corpora are compared token by token, so all models of a study need the same vocabulary"
            )


def check_recipes(pool: pl.DataFrame, corpora: dict[Path, Corpus]) -> dict[str, list[int]]:
    """Corpus -> documents that each component of its recipe keeps. `InputError` names one that keeps none."""
    return {c.name: require_documents(pool, c.recipe, str(file)) for file, c in corpora.items() if c.recipe}


def check_folders(
    folders: Mapping[Path, ExtractionOptions],
    solutions: list[Path],
    read: Callable[[Path], Sequence[Problem]] = read_solutions,
) -> dict[str, int]:
    """Model folder -> tokens that it will score, with the options that it is read with.

    `InputError` names a folder that is not whole or whose tokenizer does not fit, and a solution that cannot be scored
    with it. The solutions are tokenised once for each distinct tokenizer, context and way to read them.
    """
    scored: dict[str, int] = {}
    found = {}
    for folder, options in folders.items():
        if folder.is_dir() and needs_conversion(folder):
            raise InputError(
                f"{folder}: found a checkpoint of hf_olmo, which no engine reads; give its entry in the corpus file "
                "`convert_from: hf_olmo`"
            )
        check_folder(folder)
        architecture = options.trust_remote_code, options.architecture
        require_readable(folder, *architecture)
        context = min(context_of(folder, *architecture), options.max_model_len or sys.maxsize)
        vocabulary = vocabulary_of(folder)
        reading = options.reading(), options.tail_tokens, options.tail_bytes
        files = {path.name: path for path in tokenizer_files(folder)}
        key = fingerprint(files, context, vocabulary, reading)
        if key not in scored:
            scored[key] = count_scored_tokens(folder, context, solutions, options, vocabulary, read)
        found[str(folder)] = scored[key]
    return found


def count_scored_tokens(
    tokenizer: Path,
    context: int,
    solutions: list[Path],
    options: ExtractionOptions,
    vocabulary: int | None = None,
    read: Callable[[Path], Sequence[Problem]] = read_solutions,
) -> int:
    """Tokens that will be scored with the tokenizer in a folder, by a model of this context and vocabulary.

    `InputError` names a solution, or a choice, that cannot be scored: `solutions.tokenize` says when. `read` is
    `read_problems` where rows may have no solution yet.
    """
    fast = load_tokenizer(tokenizer)
    count = 0
    for path in solutions:
        rows = [(f"{path}: {s.id}", s) for s in read(path)]
        texts = [(where, s.prompt, s.solution) for where, s in rows if isinstance(s, Solution)]
        choices = [(f"{where}, choice {n}", s.prompt, c) for where, s in rows for n, c in enumerate(s.choices or [], 1)]
        reading = options.reading() | {"vocabulary": vocabulary}
        reading["chat_template"] &= any(s.prompt for _, s in rows)
        unsolved = [s.prompt for _, s in rows if not isinstance(s, Solution)]
        prompt_tokens(unsolved, fast, reading["chat_template"], vocabulary)
        tokenize(choices, fast, context, **reading)
        scored = tokenize(texts, fast, context, options.tail_tokens, tail_bytes=options.tail_bytes, **reading)
        count += sum(sequence.stop - sequence.start for sequence in scored)
    return count


def check_measurable(
    tasks: list[Task], solutions: dict[str, list[Problem]], metrics: Sequence[str], draws: bool = False
) -> None:
    """`InputError` names the first task and metric that its solutions and settings do not allow to be measured here."""
    if SAMPLED_EXACT_MATCH in metrics and not draws:
        raise InputError(f"target: {SAMPLED_EXACT_MATCH} needs sampling: {{samples: 4, temperature: 1.0, seed: 0}}")
    for task in tasks:
        found = solutions.get(task.name)  # None: what is not made yet; a family's problems will have everything
        rendered = task.rows is None or task.rows.choices is not None
        choices = rendered if found is None else _has_field(task, "choices", [s.choices for s in found])
        answers = rendered if found is None else any(s.answer for s in found)
        possible = {
            MULTIPLE_CHOICE_ACCURACY: choices,
            CHOICE_LOG_LIKELIHOOD: choices,
            **dict.fromkeys((EXACT_MATCH, SAMPLED_EXACT_MATCH), task.answer_pattern is not None and answers),
        }
        for metric in metrics:
            if metric not in possible:
                known = ", ".join(possible)
                raise InputError(
                    f"target: metric {metric!r} is not measured here; give target.table, or one of {known}"
                )
            if not possible[metric]:
                needs = "an answer_pattern and answers" if "exact_match" in metric else "solutions with choices"
                raise InputError(f"task {task.name}: {metric} needs {needs}")


def _has_field(task: Task, field: str, values: list) -> bool:
    """Whether the rows have the field. `InputError` if only some have: the truth would silently miss the others."""
    there = sum(value is not None for value in values)
    if 0 < there < len(values):
        raise InputError(
            f"task {task.name} ({task.solutions}): {field} in {there} of {len(values)} rows; give all or none"
        )
    return there > 0


def check_target_table(
    path: Path, checkpoints: list[Checkpoint], tasks: list[str], metrics: list[str], every_step: bool = False
) -> None:
    """`InputError` names the corpora whose target checkpoints the table of the truth lacks, and then any other gap.

    The truth is needed of each run's last checkpoint, or with `every_step`, for forecasts, of all.
    """
    table = with_full_names(read_target_table(path), short_names(checkpoints), path)
    require_truth(table, path, checkpoints, tasks, metrics, every_step)


def require_truth(
    table: pl.DataFrame,
    path: Path,
    checkpoints: list[Checkpoint],
    tasks: list[str],
    metrics: list[str],
    every_step: bool = False,
) -> None:
    """`check_target_table` of a table that has been read."""
    targets = [c for c in checkpoints if c.role != "proxy"]
    there = set(table["checkpoint"])
    lacking = sorted({c.corpus for c in targets} - {c.corpus for c in targets if c.checkpoint in there})
    if lacking:
        example = next(c.checkpoint for c in targets if c.corpus == lacking[0])
        raise InputError(
            f"{path}: no row for corpus {', '.join(lacking)}; the column checkpoint should hold, for one, {example!r}"
            f"{closest(example, there)}"
        )
    last = {c.run: c.checkpoint for c in sorted(targets, key=lambda c: c.step)}
    needed = [c.checkpoint for c in targets] if every_step else last.values()
    for metric in metrics:
        require_targets(table, needed, tasks, metric, path)
