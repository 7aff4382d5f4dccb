"""Downstream truth: multiple choice by likelihood and exact match, measured here, or a table from elsewhere."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from proxycast.config import Task
from proxycast.engines import Engine, ExtractionOptions
from proxycast.extraction import TokenizedTexts, walk
from proxycast.options import InputError
from proxycast.solutions import Problem, ScoredSequence, once_each, tokenize
from proxycast.tables import fingerprint, is_whole_parquet

MULTIPLE_CHOICE_ACCURACY = "multiple_choice_accuracy"  # share of problems, 0 to 1
CHOICE_LOG_LIKELIHOOD = "choice_log_likelihood"  # nats per problem
EXACT_MATCH = "exact_match"  # share of problems, 0 to 1

# `n`: problems behind the value.
TARGETS_SCHEMA = {"checkpoint": pl.String, "task": pl.String, "metric": pl.String, "value": pl.Float64, "n": pl.Int64}
KEY = ["checkpoint", "task", "metric"]


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
    found = [pattern.search(text) for text in texts]
    hits = [
        match is not None and (match[1] or "").strip() == solution.answer.strip()
        for match, solution in zip(found, solutions)
    ]
    return sum(hits) / len(hits)


def read_target_table(path: Path) -> pl.DataFrame:
    """Read checkpoint, task, metric, value, n from a .csv or .parquet. Raises InputError naming file, row and column.

    A row is counted as an editor shows it: in a .csv the first one after the header is 2, in a .parquet 1. Other
    columns are dropped.
    """
    table, first_row = _read_any_table(path)
    missing = [name for name in TARGETS_SCHEMA if name not in table.columns]
    if missing:
        raise InputError(
            f"{path}, column {missing[0]}: missing; found {table.columns}; there must be {list(TARGETS_SCHEMA)}"
        )
    # n as a float first: a cast to integer would cut 1.5 to 1 in silence.
    schema = TARGETS_SCHEMA | {"n": pl.Float64}
    typed = table.select(pl.col(name).cast(kind, strict=False) for name, kind in schema.items())
    wanted = {
        "value": (pl.col("value").is_finite(), "a finite number"),
        "n": (
            pl.col("n").is_finite() & (pl.col("n") >= 1) & (pl.col("n") == pl.col("n").floor()),
            "a count of at least 1",
        ),
    }
    for name in TARGETS_SCHEMA:
        rule, description = wanted.get(name, (pl.col(name).str.len_chars() > 0, "a name"))
        for row in typed.select((~rule.fill_null(False)).arg_true()).to_series()[:1]:
            raise InputError(
                f"{path}, row {row + first_row}, column {name}: found {table[name][row]!r}; it must be {description}"
            )
    for row in typed.select((~pl.struct(KEY).is_first_distinct()).arg_true()).to_series()[:1]:
        key = typed.select(KEY).row(row)
        raise InputError(
            f"{path}, row {row + first_row}, columns {KEY}: {key} stands in an earlier row already; give it once"
        )
    return typed.cast(TARGETS_SCHEMA)


def _read_any_table(path: Path) -> tuple[pl.DataFrame, int]:
    """The table as it stands (a .csv: as text) and the number of its first row."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: found the suffix {path.suffix!r}; targets are read from .csv or .parquet")
    if not path.is_file():
        raise InputError(f"{path}: no such file; it should hold targets: {', '.join(TARGETS_SCHEMA)}")
    if path.suffix == ".parquet" and not is_whole_parquet(path):
        raise InputError(f"{path}: found a truncated file or no parquet at all; copy or write it again")
    try:
        if path.suffix == ".csv":
            return pl.read_csv(path, infer_schema=False, glob=False), 2
        return pl.read_parquet(path, glob=False), 1
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write it again") from None


def require_targets(
    table: pl.DataFrame, checkpoints: Iterable[str], tasks: Iterable[str], metric: str, path: Path
) -> None:
    """Raise InputError naming the first missing of checkpoints x tasks, and how many are missing, for `metric`."""
    there = set(table.filter(metric=metric).select("checkpoint", "task").iter_rows())
    tasks = list(tasks)
    missing = [(checkpoint, task) for checkpoint in checkpoints for task in tasks if (checkpoint, task) not in there]
    if missing:
        first = ", ".join(f"{checkpoint}/{task}" for checkpoint, task in missing[:3])
        raise InputError(
            f"{path}: {metric} missing for {len(missing)} of checkpoint/task: {first}{', ...' * (len(missing) > 3)}; "
            f"found metrics {sorted(table['metric'].unique())}"
        )
