"""What is checked before the first model is trained or scored: recipes, solutions, model folders, a table of truth.

`check_inputs` runs in the Snakefile, before any job is planned, on all that exists by then, and once more when the
miniature suite has been built. It is no job of its own: every job would have to wait for it, and so would run again
whenever anything that it checks has changed.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path

import polars as pl

from proxycast.checkpoints import Checkpoint, extraction_options, scored_checkpoints
from proxycast.config import Plan, Task, closest
from proxycast.consent import require_consent
from proxycast.conversion import needs_conversion
from proxycast.corpora import Corpus
from proxycast.engines import ExtractionOptions
from proxycast.engines.model_folder import (
    check_folder,
    context_of,
    read_config,
    stays_in_folder,
    tokenizer_files,
    vocabulary_of,
)
from proxycast.engines.tokenizer import load_tokenizer, tokens_fingerprint
from proxycast.files import Files
from proxycast.miniature.recipes import pool_fingerprint, require_documents
from proxycast.miniature.suite import CONTEXT
from proxycast.options import InputError
from proxycast.published import FILES as PUBLISHED_FILES
from proxycast.solutions import Problem, Solution, prompt_tokens, read_problems, read_solutions, tokenize
from proxycast.tables import fingerprint, read_json, read_table, stat_of, table_fingerprint, write_json
from proxycast.targets import (
    CHOICE_LOG_LIKELIHOOD,
    EXACT_MATCH,
    MULTIPLE_CHOICE_ACCURACY,
    read_target_table,
    require_targets,
)
from proxycast.wide_curve import read_wide_curve

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
    if not plan.runs_models:
        require_published(plan)
        require_past([plan.curve.path] if plan.curve else sorted(study.published.glob("*.csv")))
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
    table = study.target.table

    # What the study has made depends on the study alone: only the users' files can change by themselves.
    own = [path for path in (*solutions.values(), table) if path and plan.results not in path.parents and path.exists()]
    own += [file for folder in folders for file in sorted(folder.glob("*"))]
    require_past(own)
    stats = [(file, file.stat()) for file in own]
    states = [(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in stats]
    settings = study.target, study.extraction, plan.ladder, list(folders.values()), suite and suite.settings_of_pool()
    mark = fingerprint(*settings, plan.corpora, plan.tasks, suite_is_built, states)
    done = plan.results / "checked.json"
    if read_json(done).get("fingerprint") == mark:
        return
    paths, found = list(solutions.values()), {"fingerprint": mark}
    read = read_problems if study.writers else read_solutions
    if suite_is_built:
        recipes = {plan.corpus_files[corpus.name]: corpus for corpus in plan.corpora}
        found["documents"] = check_recipes(read_table(pool), recipes)
        found["scored_tokens"] = count_scored_tokens(tokenizer, CONTEXT, paths, study.extraction, read=read)
    here = suite_is_built or (plan.ladder and plan.ladder.tokenizer.folder)
    if plan.selects_data:
        require_one_tokenizer([*([plan.tokenizer_folder] if here else []), *folders])
    found["folders"] = check_folders(folders, paths, read)
    metrics = [study.target.metric, *study.target.other_metrics]
    problems = {name: read(path) for name, path in solutions.items()}
    if table:
        check_target_table(table, checkpoints, plan.task_names, metrics, every_step=study.forecasting is not None)
    elif plan.measured_tasks:
        check_measurable(plan.measured_tasks, problems, metrics)
    if record:
        write_json(found, done)


def require_plain_results(results: Path) -> None:
    """`InputError` for a link that leads out of the results: jobs read, replace and remove what has a name below them.

    And for a pipe or device among them, of which there may be no end: results of somebody else may have any. Links of
    one's own lead to what `LINKS_VARIABLE` names; the folder of all results, which is no study's, may be one, and a
    file may be one to the hub cache.
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
    """What is below that is neither a file nor a folder. A listing tells that: the state of no file is asked for.

    `InputError` where names cannot be listed: a link may be followed all the same by who knows its name.
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
    """`InputError` where results are gone and their place lies on another disk than in the last run: a lost mount.

    `record` holds the device of the last run; with `write` it is written anew.
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
    """When files were edited while a study ran, by path: some jobs may have read what stands there now, others what
    stood there before, and nobody knows it if the file becomes what it was.

    The last run was killed where `begin_edits` stands in `record` without an end: what changed since then counts, too.
    """
    found = read_json(record)
    noted = _noted(found, "edits", int)
    began = {Path(path): stat and tuple(stat) for path, stat in _noted(found, RUNNING, list | None).items()}
    edits = noted | dict.fromkeys(map(str, changed_since(began)), time.time_ns())
    if write and edits != noted:
        write_json(found | {"edits": edits}, record)
    return edits


def begin_edits(stats: Mapping[Path, tuple[int, ...] | None], record: Path) -> None:
    """Keep what tells whether files change while the study runs: their `stat_of`, None if absent."""
    write_json(read_json(record) | {RUNNING: {str(path): stat for path, stat in stats.items()}}, record)


def end_edits(edited: Iterable[Path], record: Path) -> None:
    """Keep which files were edited while the study ran, for `edits_of` at the next start."""
    found = read_json(record)
    edits = _noted(found, "edits", int) | dict.fromkeys(map(str, edited), time.time_ns())
    write_json({key: value for key, value in found.items() if key != RUNNING} | {"edits": edits}, record)


def _noted(record: dict, key: str, kind: type) -> dict[str, object]:
    """What was kept by file under `key`. What else stands there is nothing of ours."""
    found = record.get(key)
    return {path: value for path, value in found.items() if isinstance(value, kind)} if isinstance(found, dict) else {}


def changed_since(stats: Mapping[Path, tuple[int, ...] | None]) -> list[Path]:
    """The files whose `stat_of` is not as in `stats`."""
    return [path for path, stat in stats.items() if (stat_of(path) if path.exists() else None) != stat]


def require_published(plan: Plan) -> None:
    """`InputError` unless the published measurements are there, and hold what is read."""
    if plan.curve:
        read_wide_curve(plan.curve, plan.study.target.metric)
        return
    folder = plan.study.published
    missing = [name for name in PUBLISHED_FILES if not (folder / name).is_file()]
    if missing:
        found = f"found no {', '.join(missing)}" if folder.is_dir() else "no such folder"
        raise InputError(
            f"{plan.where}: published: {folder}: {found} (paths start where snakemake is run); it should hold "
            f"{', '.join(PUBLISHED_FILES)}; set it with --config published=<folder>"
        )


def require_past(paths: Iterable[Path]) -> None:
    """`InputError` for a file whose time is in the future: Snakemake throws away what is made from it."""
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
    """`InputError` unless all model folders split text into the same tokens: else corpora cannot be compared."""
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
    """`InputError` for a model whose embedding is not that of the study's ladder or suite, where it has one."""
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
        read_config(folder, *architecture)
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


def check_measurable(tasks: list[Task], solutions: dict[str, list[Problem]], metrics: Iterable[str]) -> None:
    """`InputError` names the first task and metric that its solutions and settings do not allow to be measured here."""
    for task in tasks:
        found = solutions.get(task.name)  # None: what is not made yet; a family's problems will have everything
        rendered = task.rows is None or task.rows.choices is not None
        choices = rendered if found is None else _all_or_none(task, "choices", [s.choices for s in found])
        answers = rendered if found is None else any(s.answer for s in found)
        possible = {
            MULTIPLE_CHOICE_ACCURACY: choices,
            CHOICE_LOG_LIKELIHOOD: choices,
            EXACT_MATCH: task.answer_pattern is not None and answers,
        }
        for metric in metrics:
            if metric not in possible:
                known = ", ".join(possible)
                raise InputError(
                    f"target: metric {metric!r} is not measured here; give target.table, or one of {known}"
                )
            if not possible[metric]:
                needs = "an answer_pattern and answers" if metric == EXACT_MATCH else "solutions with choices"
                raise InputError(f"task {task.name}: {metric} needs {needs}")


def _all_or_none(task: Task, field: str, values: list) -> bool:
    """Whether the rows have the field. Some with and some without would be left out of the truth in silence."""
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

    The truth is that of each run's last checkpoint, or with `every_step`, where runs are forecast, of all.
    """
    table = read_target_table(path)
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
