"""Checkpoints x tasks -> token statistics: one job walks one run, and writes a file for each of its checkpoints."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
from tqdm import tqdm

from proxycast.engines import TOKEN_STATS_SCHEMA, Engine, ExtractionOptions
from proxycast.engines.model_folder import check_folder, model_fingerprint
from proxycast.jobs import PROGRESS_SECONDS
from proxycast.solutions import ScoredSequence, Solution, tokenize
from proxycast.tables import fingerprint, table_fingerprint, write_table

log = logging.getLogger(__name__)

REVISION = 1  # to be raised when the same inputs give other numbers: parts of an older revision are made again
# What `extract` returns: a row for each scored token.
EXTRACTED_SCHEMA = {
    **dict.fromkeys(("checkpoint", "task", "solution"), pl.String),
    **{name: kind for name, kind in TOKEN_STATS_SCHEMA.items() if name != "key"},
}


def extract(
    engine: Engine,
    checkpoints: Sequence[tuple[str, Path]],
    tasks: Mapping[str, Sequence[Solution]],
    options: ExtractionOptions,
    parts_dir: Path,
) -> dict[str, str]:
    """Write `parts_dir/<checkpoint>.parquet` for each (checkpoint, folder): EXTRACTED_SCHEMA, over each task.

    Returns checkpoint -> fingerprint. A table is kept when it is whole and was made from the same weights, tokenizer,
    solutions and options; else it is made again. Every folder is checked before the first model runs.
    """
    texts = {task: [(s.id, s.prompt, s.solution) for s in solutions] for task, solutions in tasks.items()}
    tokenized = TokenizedTexts(
        {task: [(f"{task}/{s.id}", s.prompt, s.solution) for s in solutions] for task, solutions in tasks.items()},
        options.tail_tokens,
        options.windowing,
        options.chat_template,
        options.tail_bytes,
    )

    def measure(checkpoint: str, folder: Path) -> Iterator[pl.DataFrame]:
        engine.load(folder)
        for task, sequences in tokenized.for_engine(engine).items():
            yield _with_keys(engine.token_stats(sequences), checkpoint, task)

    made_from = fingerprint(REVISION, texts, options.that_change_results())
    return walk(checkpoints, len(tasks), measure, made_from, parts_dir)


def walk(
    checkpoints: Sequence[tuple[str, Path]],
    tables: int,
    measure: Callable[[str, Path], Iterator[pl.DataFrame]],
    made_from: str,
    parts_dir: Path,
) -> dict[str, str]:
    """Write what `measure(checkpoint, folder)` yields, `tables` tables, to `parts_dir/<checkpoint>.parquet`.

    Returns checkpoint -> fingerprint. A file is kept when it is whole and was made from the same weights, tokenizer and
    `made_from`; else it is made again. Every folder is checked before the first model runs.
    """
    for _, folder in checkpoints:
        check_folder(folder)
    marks = {checkpoint: fingerprint(model_fingerprint(folder), made_from) for checkpoint, folder in checkpoints}
    parts = {checkpoint: parts_dir / f"{checkpoint}.parquet" for checkpoint, _ in checkpoints}
    for left in parts_dir.glob(".*.parquet"):  # of a job that was killed while it wrote
        left.unlink(missing_ok=True)
    to_do = [(name, folder) for name, folder in checkpoints if table_fingerprint(parts[name]) != marks[name]]
    log.info("%d of %d checkpoints are done already", len(checkpoints) - len(to_do), len(checkpoints))
    with tqdm(
        total=len(to_do) * tables, unit="task", mininterval=PROGRESS_SECONDS, file=sys.stderr, disable=not to_do
    ) as bar:
        for checkpoint, folder in to_do:
            bar.set_description(checkpoint, refresh=False)
            started, found = time.monotonic(), []
            for table in measure(checkpoint, folder):
                found.append(table)
                bar.update()
            table = pl.concat(found)
            write_table(table, parts[checkpoint], marks[checkpoint])
            kind, seconds = parts_dir.parent.name, time.monotonic() - started
            log.info("%s of %s written: %d rows in %.1f s", kind, checkpoint, len(table), seconds)
    return marks


class TokenizedTexts:
    """Task -> token sequences for the engine's tokenizer, made again only when a checkpoint brings another one.

    Texts without any prompt, the generic text, do not go through a chat template: they answer nothing.

    `texts`: task -> (key, prompt, continuation), as `solutions.tokenize` takes them.
    """

    def __init__(
        self,
        texts: Mapping[str, Sequence[tuple[str, str, str]]],
        tail_tokens: int | None = None,
        windowing: bool = True,
        chat_template: bool = False,
        tail_bytes: int | None = None,
    ):
        self.texts, self.chat_template = texts, chat_template
        self.reading = dict(tail_tokens=tail_tokens, tail_bytes=tail_bytes, windowing=windowing)
        self.tokenizer = self.limits = None

    def for_engine(self, engine: Engine) -> dict[str, list[ScoredSequence]]:
        limits = dict(context=engine.context, vocabulary=engine.vocabulary)
        if engine.tokenizer is not self.tokenizer or limits != self.limits:
            self.tokenizer = None  # until all is tokenised, nothing is kept
            self.sequences = {}
            for task, texts in self.texts.items():
                chat = self.chat_template and any(prompt for _, prompt, _ in texts)
                self.sequences[task] = tokenize(texts, engine.tokenizer, chat_template=chat, **limits, **self.reading)
            self.tokenizer, self.limits = engine.tokenizer, limits
        return self.sequences


def _with_keys(stats: pl.DataFrame, checkpoint: str, task: str) -> pl.DataFrame:
    """The engine's `key` is task/solution, so that its errors name both; the table has a column for each."""
    return stats.select(
        checkpoint=pl.lit(checkpoint),
        task=pl.lit(task),
        solution=pl.col("key").str.strip_prefix(f"{task}/"),
        **{name: pl.col(name) for name in stats.columns if name != "key"},
    )
