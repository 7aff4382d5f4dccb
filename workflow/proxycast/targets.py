"""Downstream truth: multiple choice by likelihood and exact match, measured here, or a table from elsewhere."""

import csv
import io
import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from proxycast.config import Task, closest
from proxycast.engines import Engine, ExtractionOptions
from proxycast.extraction import TokenizedTexts, walk
from proxycast.metrics import about_share, is_share, is_unbounded, mixed_units, outside_share
from proxycast.options import InputError, require_regular, told_names, told_reason, told_value
from proxycast.patterns import first_groups
from proxycast.solutions import Problem, ScoredSequence, once_each, tokenize
from proxycast.tables import LARGEST_WHOLE, UNREADABLE, fingerprint, is_whole_parquet

log = logging.getLogger(__name__)

MULTIPLE_CHOICE_ACCURACY = "multiple_choice_accuracy"  # share of problems, 0 to 1
CHOICE_LOG_LIKELIHOOD = "choice_log_likelihood"  # nats per problem
EXACT_MATCH = "exact_match"  # share of problems, 0 to 1

# `n`: problems behind the value; null where it is unknown.
TARGETS_SCHEMA = {"checkpoint": pl.String, "task": pl.String, "metric": pl.String, "value": pl.Float64, "n": pl.Int64}
KEY = ["checkpoint", "task", "metric"]
NUMBERS = ("value", "n")
TEXT = (pl.String, pl.Categorical, pl.Enum, pl.Binary, pl.Null)  # types of a parquet file that may hold text


def evaluate(
    engine: Engine,
    checkpoint: str,
    folder: Path,
    task: str,
    solutions: Sequence[Problem],
    answer_pattern: str | None = None,
    max_new_tokens: int = 64,
    choices: Sequence[ScoredSequence] | None = None,
) -> pl.DataFrame:
    """One row (TARGETS_SCHEMA) for each metric that the problems allow.

    Multiple choice: over the problems with choices. Exact match: when `answer_pattern` is given, over the problems with
    an answer. A problem with several solutions counts once. `choices`: the `choice_texts` of the problems (`once_each`)
    in the engine's tokens, if they are there already.
    """
    problems = once_each(solutions)
    with_choices = [problem for problem in problems if problem.choices is not None]
    with_answer = [problem for problem in problems if problem.answer is not None and answer_pattern is not None]
    if not with_choices and not with_answer:
        raise InputError(
            f"task {task}: nothing can be measured; give solutions with choices, or an answer_pattern and answers"
        )
    engine.load(folder)
    values = []
    if with_choices:
        measured = multiple_choice(engine, task, with_choices, choices)
        values += [(metric, value, len(with_choices)) for metric, value in measured.items()]
    if with_answer:
        share = exact_match(engine, task, with_answer, answer_pattern, max_new_tokens)
        values.append((EXACT_MATCH, share, len(with_answer)))
    rows = [(checkpoint, task, metric, value, n) for metric, value, n in values]
    return pl.DataFrame(rows, schema=TARGETS_SCHEMA, orient="row")


def evaluate_checkpoints(
    engine: Engine,
    checkpoints: Sequence[tuple[str, Path]],
    tasks: Sequence[Task],
    solutions: Mapping[str, Sequence[Problem]],
    options: ExtractionOptions,
    generate: Collection[str],
    parts_dir: Path,
    *,
    code: str,
) -> dict[str, str]:
    """`evaluate` each (checkpoint, folder) over each task, into files of `parts_dir` that are kept as `extract`'s are.

    Exact match, which needs generation, is measured only for the checkpoints in `generate`. `code`: a fingerprint of
    the code that measures.
    """
    problems = {task.name: once_each(solutions[task.name]) for task in tasks}
    texts = {name: choice_texts(name, found) for name, found in problems.items()}
    choices = TokenizedTexts(texts, **options.reading())
    by_name = {task.name: task for task in tasks}

    def measure(checkpoint: str, folder: Path, to_measure: Sequence[str]) -> Iterator[pl.DataFrame]:
        engine.load(folder)
        for name, tokens in choices.for_engine(engine, to_measure).items():
            task, pattern = by_name[name], by_name[name].answer_pattern if checkpoint in generate else None
            yield evaluate(engine, checkpoint, folder, name, problems[name], pattern, task.max_new_tokens, tokens)

    # Choices have no tail, and the settings of generation count only for a checkpoint that generates.
    tail = {"tail_tokens", "tail_bytes"}
    reading = {key: value for key, value in options.that_change_results().items() if key not in tail}
    judged = {name: fingerprint(found, reading) for name, found in problems.items()}
    generated = {
        task.name: fingerprint(judged[task.name], task.answer_pattern, task.max_new_tokens)
        for task in tasks
        if task.answer_pattern is not None
    }
    made_from = {name: judged | (generated if name in generate else {}) for name, _ in checkpoints}
    return walk(checkpoints, made_from, measure, parts_dir, code=code)


def chance_accuracy(solutions: Mapping[str, Sequence[Problem]]) -> float | None:
    """What guessing gets in multiple choice: the mean over tasks of the mean of 1 / choices; None without choices."""
    tasks = [[1 / len(s.choices) for s in once_each(problems) if s.choices] for problems in solutions.values()]
    means = [math.fsum(task) / len(task) for task in tasks if task]
    return math.fsum(means) / len(means) if means else None


def multiple_choice(
    engine: Engine, task: str, solutions: Sequence[Problem], choices: Sequence[ScoredSequence] | None = None
) -> dict[str, float]:
    """Accuracy and log-likelihood of the correct choice. A choice's score: its log-probability after the prompt.

    A problem whose best score is shared by k choices, the correct one among them, counts 1/k. The log-likelihood is the
    mean over problems of log softmax over the scores of the problem's choices, at the correct one.
    """
    if choices is None:
        choices = tokenize(choice_texts(task, solutions), engine.tokenizer, engine.context)
    sums = iter(_log_probabilities(engine, choices))
    hits, log_likelihoods = [], []
    for solution in solutions:
        scores = np.array([next(sums) for _ in solution.choices])
        correct, largest = scores[solution.correct_choice], scores.max()
        hits.append((correct == largest) / np.count_nonzero(scores == largest))
        log_likelihoods.append(correct - largest - np.log(np.exp(scores - largest).sum()))
    return {
        MULTIPLE_CHOICE_ACCURACY: math.fsum(hits) / len(hits),
        CHOICE_LOG_LIKELIHOOD: math.fsum(log_likelihoods) / len(hits),
    }


def choice_texts(task: str, solutions: Sequence[Problem]) -> list[tuple[str, str, str]]:
    """(key, prompt, choice) of every choice of every problem, in order, as `solutions.tokenize` takes them."""
    return [
        (f"{task}/{solution.id}, choice {number}", solution.prompt, choice)
        for solution in solutions
        for number, choice in enumerate(solution.choices or [], start=1)
    ]


def _log_probabilities(engine: Engine, sequences: Sequence[ScoredSequence]) -> list[float]:
    """Log-probability (nats) of the scored tokens of every text, in order; a long text has several sequences."""
    stats = engine.token_stats(sequences)
    return stats.group_by("key", maintain_order=True).agg(pl.col("logprob").cast(pl.Float64).sum())["logprob"].to_list()


def exact_match(
    engine: Engine, task: str, solutions: Sequence[Problem], answer_pattern: str, max_new_tokens: int
) -> float:
    """Share of problems with group 1 of the pattern's first match in the greedy continuation equal to the answer.

    White space around either does not count.
    """
    pattern = re.compile(answer_pattern)
    texts = engine.generate([solution.prompt for solution in solutions], max_new_tokens)
    found = [first_groups(pattern, text)[:1] for text in texts]
    hits = [
        any((group or "").strip() == solution.answer.strip() for group in groups)
        for groups, solution in zip(found, solutions)
    ]
    return sum(hits) / len(hits)


def read_target_table(path: Path) -> pl.DataFrame:
    """Read checkpoint, task, metric, value, n from a .csv or .parquet: `read_target_tables` of one file."""
    return read_target_tables([path])


def read_target_tables(paths: Sequence[Path]) -> pl.DataFrame:
    """Read checkpoint, task, metric, value, n from .csv or .parquet files as one table (TARGETS_SCHEMA).

    `n` is null where it is unknown: an empty cell, NaN, or a file without that column. Other columns are dropped.
    `InputError` names the file, and the row as an editor shows it: in a .csv the first one after the header is 2, in a
    .parquet 1. It is raised for a column that is missing, stands twice or holds another type, a name that is empty or
    has white space around it, a value that is no number, a share beyond 0 to 1 (`metrics.is_share`), fractions beside
    percent, and a key that stands twice, also in two files or in another spelling (case, white space).
    """
    tables = [_read_typed(path) for path in paths]
    everything = pl.concat(table.with_columns(file=pl.lit(str(path))) for path, table in zip(paths, tables))
    _require_one_unit(everything)
    _require_distinct(everything)
    return everything.select(pl.col(name).cast(kind) for name, kind in TARGETS_SCHEMA.items())


def _read_typed(path: Path) -> pl.DataFrame:
    """The columns of TARGETS_SCHEMA, `n` as a float, and `row`, the number of each row."""
    table = _read_any_table(path)
    # n as a float: a cast to integer would cut 1.5 to 1 in silence.
    schema = TARGETS_SCHEMA | {"n": pl.Float64}
    typed = table.select("row", *(pl.col(name).cast(kind, strict=False) for name, kind in schema.items()))
    typed = typed.with_columns(pl.col("n").fill_nan(None))
    found_n = table["n"].cast(pl.String).str.to_lowercase().is_in(["nan"]).fill_null(True)
    wanted = {
        "value": (pl.col("value").is_finite(), "a finite number such as 0.431, without a percent sign"),
        "n": (
            (pl.col("n").is_between(1, LARGEST_WHOLE) & (pl.col("n") == pl.col("n").floor())) | found_n,
            "a count of at least 1, or empty where it is unknown",
        ),
    }
    for name in TARGETS_SCHEMA:
        bare = pl.col(name) == pl.col(name).str.strip_chars()
        rule, description = wanted.get(name, ((pl.col(name) != "") & bare, "a name, without white space around it"))
        for row in typed.select((~rule.fill_null(False)).arg_true()).to_series()[:1]:
            found = told_value(table[name][row])
            raise InputError(f"{path}, row {typed['row'][row]}, column {name}: found {found}; it must be {description}")
    return typed


def _require_one_unit(table: pl.DataFrame) -> None:
    """`InputError` for a share that is none, and for a metric whose values look like fractions beside percent.

    `table`: of all files, with `file` and `row`.
    """
    for (metric,), rows in table.group_by("metric", maintain_order=True):
        if is_share(metric):
            wrong = rows.filter(outside_share(pl.col("value")))
            for file, row, value in wrong.select("file", "row", "value").head(1).iter_rows():
                others = f"; so do {len(wrong) - 1} more rows" if len(wrong) > 1 else ""
                raise InputError(
                    f"{file}, row {row}, column value: found {value!r}; {about_share(metric, value)}{others}"
                )
        if is_unbounded(metric):
            continue
        for (task,), values in [*rows.group_by("task", maintain_order=True), ((None,), rows)]:
            if mixed := mixed_units(values["value"]):
                fraction, percent = mixed
                file, row = values.filter(value=percent).select("file", "row").row(0)
                where = f"task {task}" if task is not None else "all tasks"
                raise InputError(
                    f"{file}, row {row}, column value: found {percent!r}, but at most {fraction!r} in other rows of "
                    f"{metric}, {where}: percent beside fractions; give every value in the same unit, 0 to 1"
                )


def _require_distinct(table: pl.DataFrame) -> None:
    """`InputError` for a key that stands twice, if need be in another spelling. `table`: with `file` and `row`."""
    plain = {
        f"plain {name}": pl.col(name)
        .str.normalize("NFKC")
        .str.to_lowercase()
        .str.replace_all(r"\p{Cf}", "")  # characters without a width
        .str.replace_all(r"\s+", " ")
        for name in KEY
    }
    spelled = table.with_columns(**plain)
    for second in spelled.filter(~pl.struct(list(plain)).is_first_distinct()).head(1).iter_rows(named=True):
        first = spelled.filter(pl.col(name) == second[name] for name in plain).row(0, named=True)
        own, other = (tuple(row[name] for name in KEY) for row in (second, first))
        there = f"row {first['row']}" + (f" of {first['file']}" if first["file"] != second["file"] else "")
        spelling = "" if own == other else f" as {other}"
        raise InputError(
            f"{second['file']}, row {second['row']}, columns {KEY}: {own} stands in {there} already{spelling}; "
            "give it once"
        )


def _read_any_table(path: Path) -> pl.DataFrame:
    """The columns of TARGETS_SCHEMA as they stand (of a .csv: as text), and `row`, the number of each row."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: found the suffix {path.suffix!r}; targets are read from .csv or .parquet")
    if not path.is_file():
        raise InputError(f"{path}: no such file; it should hold targets: {', '.join(TARGETS_SCHEMA)}")
    table = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    if table.is_empty():
        raise InputError(f"{path}: found a header without any row; there must be one for each checkpoint and task")
    return table if "n" in table.columns else table.with_columns(n=pl.lit(None, pl.String))


def _read_csv(path: Path) -> pl.DataFrame:
    require_regular(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read (byte {error.start + 1} is not UTF-8); save it as UTF-8") from None
    reader, line, rows = csv.reader(io.StringIO(text, newline=""), strict=True), 1, []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, row {line}: cannot be read ({error}); quotes must come in pairs") from None
    if not rows:
        raise InputError(f"{path}: cannot be read (it is empty); it must begin with the columns {list(TARGETS_SCHEMA)}")
    (_, header), *rows = rows
    if len(header) == 1 and (found := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise InputError(
            f"{path}, row 1: found columns separated by {found!r}; they must be separated by commas, and decimals "
            "have a point"
        )
    _require_columns(path, header)
    for row, cells in rows:
        if len(cells) > len(header):
            raise InputError(
                f"{path}, row {row}: found {len(cells)} fields, but {len(header)} columns; decimals must have a point, "
                "and a field that holds a comma must stand in quotes"
            )
    columns = {
        name: [_cell(cells, place, strip=name in NUMBERS) for _, cells in rows]
        for place, name in enumerate(header)
        if name in TARGETS_SCHEMA
    }
    numbers = pl.Series("row", [row for row, _ in rows], pl.Int64)
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)).with_columns(numbers)


def _cell(cells: Sequence[str], place: int, strip: bool) -> str | None:
    """A field of a row, which may lack its last ones; None where it is empty."""
    text = cells[place] if place < len(cells) else ""
    return (text.strip() if strip else text) or None


def _read_parquet(path: Path) -> pl.DataFrame:
    if not is_whole_parquet(path):
        raise InputError(f"{path}: found a truncated file or no parquet at all; copy or write it again")
    try:
        schema = pl.read_parquet_schema(path)
        _require_columns(path, list(schema))
        table = pl.read_parquet(path, glob=False, columns=[name for name in TARGETS_SCHEMA if name in schema])
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read ({told_reason(error)}); write it again") from None
    for name, found in table.schema.items():
        is_name = TARGETS_SCHEMA[name] == pl.String
        text = found in TEXT
        if not (text or found.is_integer() or (found.is_numeric() and not is_name)):
            raise InputError(
                f"{path}, column {name}: found the type {found}; it must hold {'text' if is_name else 'numbers'}"
            )
    texts = {name: pl.col(name).cast(pl.String, strict=False) for name, found in table.schema.items() if found in TEXT}
    numbers = {name: text.str.strip_chars().replace("", None) for name, text in texts.items() if name in NUMBERS}
    try:
        return table.with_columns(**texts | numbers, row=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    except pl.exceptions.PolarsError as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}, columns of text: found bytes that are not UTF-8 ({why})") from None


def _require_columns(path: Path, found: list[str]) -> None:
    """`InputError` for a column that is missing or stands twice; `n` may be missing."""
    for name in TARGETS_SCHEMA:
        alike = [other for other in found if other.strip().lower() == name]
        if len(alike) > 1:
            raise InputError(f"{path}, column {name}: stands there {len(alike)} times, as {alike}; give it once")
        if alike and alike != [name]:
            raise InputError(f"{path}, column {name}: found {alike[0]!r}; it must be spelled {name!r}")
        if not alike and name != "n":
            raise InputError(
                f"{path}, column {name}: missing; found {told_names(found)}; there must be {list(TARGETS_SCHEMA)}"
            )


def log_unknown(table: pl.DataFrame, checkpoints: Collection[str], tasks: Collection[str]) -> None:
    """Tell of rows whose checkpoint or task is none of the study's: they count for nothing, and may be misspelled."""
    for name, known in (("checkpoint", checkpoints), ("task", tasks)):
        rows = table.filter(~pl.col(name).is_in(list(known)))
        if len(rows):
            names = rows[name].unique(maintain_order=True)
            some = ", ".join(map(repr, names[:3])) + f" and {len(names) - 3} more" * (len(names) > 3)
            log.warning(
                "%d rows of the truth count for nothing, as their %s is none of the study's: %s%s",
                *(len(rows), name, some, closest(names[0], known)),
            )


def require_targets(
    table: pl.DataFrame, checkpoints: Iterable[str], tasks: Iterable[str], metric: str, path: Path
) -> None:
    """Raise InputError naming the first missing of checkpoints x tasks, and how many are missing, for `metric`."""
    there = set(table.filter(metric=metric).select("checkpoint", "task").iter_rows())
    tasks = list(tasks)
    missing = [(checkpoint, task) for checkpoint in checkpoints for task in tasks if (checkpoint, task) not in there]
    if missing:
        first = ", ".join(f"{checkpoint}/{task}" for checkpoint, task in missing[:3])
        known = [set(table[name]) for name in ("checkpoint", "task")]
        alike = "".join(closest(name, names) for name, names in zip(missing[0], known) if name not in names)
        raise InputError(
            f"{path}: {metric} missing for {len(missing)} of checkpoint/task: {first}{', ...' * (len(missing) > 3)}; "
            f"found metrics {sorted(table['metric'].unique())}{alike}"
        )
