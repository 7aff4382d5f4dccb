"""Expert solutions from a strong model: it writes a text for every problem, and the first right one is kept.

A text is right if it ended by itself and its answer is the problem's: group 1 of the task's answer pattern at the
*last* match, because a worked solution ends with its answer. (The exact match of `targets` takes the first match,
because a small model goes on after its answer.)

The writer then reads each kept text as a candidate would: rBridge needs the probabilities of the text's own tokens at
temperature 1, and their bytes.
"""

import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from tqdm import tqdm

from proxycast.config.extraction import ExtractionOptions, ModelOptions, Writer
from proxycast.extraction.engines.base import Engine, draw_seed
from proxycast.extraction.engines.factory import choose_engine, make_engine
from proxycast.jobs import PROGRESS_SECONDS
from proxycast.options import InputError
from proxycast.sandbox import first_groups
from proxycast.solutions.rows import Problem, Solution, once_each
from proxycast.solutions.tokenisation import ScoredSequence, tokenize
from proxycast.tables import fingerprint, read_table, table_fingerprint, write_table
from proxycast.weights.model_folder import model_fingerprint

log = logging.getLogger(__name__)

CHUNK = 256  # problems whose texts are written together; a job that is killed loses one chunk
SHOWN = 200  # last characters of a text, kept for a message about a writer that is never right
BROKEN = "\ufffd"  # in a decoded text: bytes that are no character

# A row for each token of each kept solution, as `proxy_formulas.rbridge` takes them.
EXPERTS_SCHEMA = {
    "task": pl.String,
    "solution": pl.String,
    "position": pl.Int32,
    "bytes": pl.Int32,
    "logprob": pl.Float32,
}
# A row for each problem: `texts` were written for it, `unfinished` of them cut at a limit, `said` ends the last one.
WRITTEN_SCHEMA = {
    "problem": pl.String,
    "texts": pl.Int64,
    "unfinished": pl.Int64,
    "said": pl.String,
    "solution": pl.String,
}


@dataclass(frozen=True)
class LoadedWriter:
    """A writer whose model is loaded. `fingerprint`: of all that decides what it writes, beside the problems."""

    name: str
    writer: Writer
    engine: Engine
    options: ExtractionOptions
    fingerprint: str


def load_writer(name: str, writer: Writer, options: ExtractionOptions, folder: Path, code: str) -> LoadedWriter:
    """Load the writer's model from `folder` with `options`, in which `writer.model` counts already.

    `code`: fingerprint of the code that writes. Raises InputError for a folder that is not whole or that cannot be run.
    """
    options = choose_engine(options, folder)
    engine = make_engine(options)
    engine.check(folder)
    ends = [path for path in [folder / "generation_config.json"] if path.is_file()]
    made_from = code, model_fingerprint(folder), ends, options.that_change_results(), writer.sampling()
    engine.load(folder)
    return LoadedWriter(name, writer, engine, options, fingerprint(*made_from))


def write_task(
    loaded: LoadedWriter, task: str, problems: Sequence[Problem], answer_pattern: str, parts_dir: Path
) -> tuple[list[Solution], pl.DataFrame, dict]:
    """The writer's right solutions, with the ids `<problem>@<writer>`, their tokens (EXPERTS_SCHEMA), and a summary.

    Parts in `parts_dir`, one for each `CHUNK` problems, survive a kill; parts from other weights, settings or problems
    are made again. Raises InputError for problems without an answer, and if no text is right.
    """
    problems = once_each(problems)
    _require_answers(task, problems)
    table = _write_parts(loaded, task, problems, answer_pattern, parts_dir)
    kept = table.filter(pl.col("solution").is_not_null())
    if kept.is_empty():
        raise InputError(_none_right(loaded.name, task, table, problems[0], answer_pattern))
    log.info("%s: %s has %d of %d problems right", task, loaded.name, len(kept), len(problems))
    summary = {
        "task": task,
        "writer": loaded.name,
        "problems": len(problems),
        "right": len(kept),
        "kept_share": len(kept) / len(problems),
        "texts": table["texts"].sum(),
        "unfinished": table["unfinished"].sum(),
        "answer_pattern": answer_pattern,
    }
    return _solutions(kept, problems, loaded.name), _tokens(kept, task, loaded.name), summary


def settings(loaded: LoadedWriter) -> dict:
    """How a writer's solutions were made: its model, the engine that ran it, and how texts were drawn."""
    writer = loaded.writer.model_dump(mode="json", exclude={"model", "memory_gb"}, exclude_none=True)
    engine = loaded.options.model_dump(mode="json", include={*ModelOptions.model_fields})
    return {"writer": loaded.name, **writer, "model": engine, "fingerprint": loaded.fingerprint}


def _require_answers(task: str, problems: Sequence[Problem]) -> None:
    without = [problem.id for problem in problems if not problem.right_answer]
    if without:
        raise InputError(
            f"task {task}: {len(without)} of {len(problems)} problems have no answer, first {without[0]!r}; what a "
            "writer writes is judged by it: give answers (or choices), or leave such rows out"
        )


def _write_parts(
    loaded: LoadedWriter, task: str, problems: Sequence[Problem], answer_pattern: str, parts_dir: Path
) -> pl.DataFrame:
    """What `_write_chunk` gives for all problems, from the parts that are there and those that are made now."""
    chunks = [problems[start : start + CHUNK] for start in range(0, len(problems), CHUNK)]
    fingerprints = [fingerprint(loaded.fingerprint, task, answer_pattern, chunk) for chunk in chunks]
    parts = [parts_dir / f"{number:05d}.parquet" for number in range(len(chunks))]
    to_do = [i for i, part in enumerate(parts) if table_fingerprint(part) != fingerprints[i]]
    with tqdm(
        total=sum(len(chunks[i]) for i in to_do),
        desc=f"{loaded.name}: {task}",
        unit="problem",
        mininterval=PROGRESS_SECONDS,
        file=sys.stderr,
        disable=not to_do,
    ) as bar:
        for i in to_do:
            write_table(_write_chunk(loaded, task, chunks[i], re.compile(answer_pattern)), parts[i], fingerprints[i])
            bar.update(len(chunks[i]))
    return pl.concat(map(read_table, parts))


def _write_chunk(loaded: LoadedWriter, task: str, problems: Sequence[Problem], pattern: re.Pattern) -> pl.DataFrame:
    """One row (WRITTEN_SCHEMA) for each problem, with lists of its solution's token positions, bytes and logprobs.

    A problem that is right already is not tried again.
    """
    writer, engine = loaded.writer, loaded.engine
    rows = [{"problem": p.problem_id, "texts": 0, "unfinished": 0, "said": "", "solution": None} for p in problems]
    sequences: list[ScoredSequence] = []
    for attempt in range(writer.samples):
        waiting = [(problem, row) for problem, row in zip(problems, rows) if row["solution"] is None]
        if not waiting:
            break
        seeds = [draw_seed(writer.seed, task, row["problem"], attempt) for _, row in waiting]
        found = engine.sample([problem.prompt for problem, _ in waiting], writer, seeds)
        for (problem, row), (text, finished) in zip(waiting, found):
            row |= {"texts": row["texts"] + 1, "unfinished": row["unfinished"] + (not finished), "said": text[-SHOWN:]}
            if finished and is_right(text, problem, pattern):
                read = _read_again(loaded, task, row["problem"], problem.prompt, text)
                row["solution"] = text if read else None
                sequences += read
    stats = engine.token_stats(sequences).group_by("key").agg("position", "bytes", "logprob")
    table = pl.DataFrame(rows, schema=WRITTEN_SCHEMA).with_columns(key=pl.lit(f"{task}/") + pl.col("problem"))
    return table.join(stats, on="key", how="left", maintain_order="left").drop("key")


def is_right(text: str, problem: Problem, pattern: re.Pattern) -> bool:
    """Whether group 1 of the pattern's last match in `text` is the problem's answer; white space around does not count.

    A text with broken characters is never right: it is not what the writer wrote.
    """
    found = [group or "" for group in first_groups(pattern, text)]
    return bool(found and BROKEN not in text and found[-1].strip() == problem.right_answer)


def _read_again(loaded: LoadedWriter, task: str, problem: str, prompt: str, text: str) -> list[ScoredSequence]:
    """The text in the writer's tokens, all scored; none if they do not decode to the text."""
    engine = loaded.engine
    reading = loaded.options.reading() | {"leading_space": None, "vocabulary": engine.vocabulary}
    try:
        return tokenize([(f"{task}/{problem}", prompt, text)], engine.tokenizer, engine.context, **reading)
    except InputError as error:
        log.warning("%s: right, but not kept: %s", loaded.name, error)
        return []


def _solutions(kept: pl.DataFrame, problems: Sequence[Problem], name: str) -> list[Solution]:
    asked = {problem.problem_id: problem for problem in problems}
    return [
        Solution(
            id=f"{problem}@{name}",
            prompt=asked[problem].prompt,
            solution=text,
            answer=asked[problem].right_answer,
            writer=name,
            problem=problem,
        )
        for problem, text in kept.select("problem", "solution").iter_rows()
    ]


def _tokens(kept: pl.DataFrame, task: str, name: str) -> pl.DataFrame:
    """A row (EXPERTS_SCHEMA) for each token of the solutions."""
    columns = ["position", "bytes", "logprob"]
    ids = {"task": pl.lit(task), "solution": pl.col("problem") + f"@{name}"}
    return kept.select(**ids, **{column: column for column in columns}).explode(columns)


def _none_right(name: str, task: str, table: pl.DataFrame, first: Problem, answer_pattern: str) -> str:
    texts, unfinished = table["texts"].sum(), table["unfinished"].sum()
    return (
        f"task {task}: writer {name} has none of {len(table)} problems right in {texts} texts, {unfinished} of them "
        f"cut at a limit. Of {first.id!r}, where {first.right_answer!r} is right, its last text ends with "
        f"{table['said'][0]!r}. See that answer_pattern {answer_pattern!r} finds the answer in such a text (its last "
        "match counts), raise max_new_tokens or samples, give stop strings or model.chat_template, or take a stronger "
        "writer"
    )
