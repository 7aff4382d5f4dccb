"""Checkpoints x tasks -> token statistics: one job walks one run, and writes a file for each of its checkpoints."""

import json
import logging
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from tqdm import tqdm

from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.base import Engine
from proxycast.extraction.schema import TOKEN_STATS_SCHEMA
from proxycast.extraction.weights_ahead import WeightsAhead
from proxycast.jobs import PROGRESS_SECONDS
from proxycast.jobs.background import in_background
from proxycast.solutions.rows import Solution
from proxycast.solutions.tokenisation import ScoredSequence, require_known, tokenize
from proxycast.tables import fingerprint, table_fingerprint, table_metadata, write_table
from proxycast.weights.model_folder import check_folder, model_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

# All bars on one line: walks side by side have one each, and a log knows no cursor.
BAR = dict(unit="task", mininterval=PROGRESS_SECONDS, position=0)
TASKS = "proxycast.tasks"  # in a part's metadata: the fingerprint of each task, as a JSON object
# What `extract` writes: a row for each scored token.
EXTRACTED_SCHEMA = {
    **dict.fromkeys(("checkpoint", "task", "solution"), pl.String),
    **{name: kind for name, kind in TOKEN_STATS_SCHEMA.items() if name != "key"},
}


# A walk under way: the name of each checkpoint before it is measured, in the end checkpoint -> fingerprint.
Walk = Generator[str, None, dict[str, str]]


def extract(
    engine: Engine,
    checkpoints: Sequence[tuple[str, Path]],
    tasks: Mapping[str, Sequence[Solution]],
    options: ExtractionOptions,
    parts_dir: Path,
    *,
    code: str,
) -> Walk:
    """Write `parts_dir/<checkpoint>.parquet` for each (checkpoint, folder): EXTRACTED_SCHEMA, over each task.

    With `options.temperatures` the columns `tempered_schema` of them are behind it.

    Nothing happens before the walk is run (`side_by_side`), which gives checkpoint -> fingerprint. Rows of a task are
    kept if weights, tokenizer, solutions, options and `code` (a fingerprint) are the same; other tasks are read. Every
    folder is checked before the first model runs. The solutions are tokenised once for each tokenizer, while weights
    are loaded.
    """
    tokenized, names = tokenized_solutions(tasks, options), [name for name, _ in checkpoints]

    def measure(checkpoint: str, folder: Path, to_read: Sequence[str]) -> Iterator[pl.DataFrame]:
        tokenized.begin(engine, folder, to_read)
        engine.load(folder)
        tell_work(engine, tokenized, to_read, len(names) - names.index(checkpoint))
        yield from read_tasks(engine, tokenized, checkpoint, to_read, options.temperatures)

    reading = options.that_change_token_stats()
    made_from = {task: fingerprint(texts, reading) for task, texts in tokenized.texts.items()}
    return walk(checkpoints, {name: made_from for name, _ in checkpoints}, measure, parts_dir, code=code)


def walk(
    checkpoints: Sequence[tuple[str, Path]],
    made_from: Mapping[str, Mapping[str, str]],
    measure: Callable[[str, Path, Sequence[str]], Iterator[pl.DataFrame]],
    parts_dir: Path,
    *,
    code: str,
) -> Walk:
    """Write `parts_dir/<checkpoint>.parquet`: the rows of each task of the checkpoint, in the order of the tasks.

    `made_from`: checkpoint -> task -> fingerprint of what its rows depend on beside the weights, the tokenizer and
    `code`. `measure(checkpoint, folder, tasks)` yields a table with a column `task` for each of these tasks, in order.

    A generator, for `side_by_side`: yields the name of each checkpoint before it is measured, and returns checkpoint ->
    fingerprint over its tasks. Rows whose fingerprint is the same are kept; `measure` is called for the other tasks
    only. The file is the one of a first run. Every folder is checked before the first model runs; the bytes of new
    checkpoints' weights are read ahead of their engine (`WeightsAhead`), and a table is written while the next
    checkpoint is measured.
    """
    for _, folder in checkpoints:
        check_folder(folder)
    for unfinished in parts_dir.glob(".*.parquet"):  # of a job that was killed while it wrote
        unfinished.unlink(missing_ok=True)
    parts = {checkpoint: parts_dir / f"{checkpoint}.parquet" for checkpoint, _ in checkpoints}
    # What a file holds may be of other weights; where there is none, they are read while a model runs.
    ahead = WeightsAhead({checkpoint: folder for checkpoint, folder in checkpoints if not parts[checkpoint].exists()})
    tasks_of = {
        checkpoint: _of_tasks(made_from[checkpoint], model_fingerprint(folder), code)
        for checkpoint, folder in checkpoints
        if checkpoint not in ahead
    }
    to_measure = {
        checkpoint: list(tasks) if checkpoint in ahead else _not_in(parts[checkpoint], tasks_of[checkpoint])
        for checkpoint, tasks in made_from.items()
    }
    total, left = (sum(map(len, found.values())) for found in (made_from, to_measure))
    log.info("%d of %d tasks of %d checkpoints are done already", total - left, total, len(checkpoints))
    with (
        tqdm(total=left, file=sys.stderr, disable=not left, **BAR) as bar,
        ThreadPoolExecutor(1) as writer,  # of one table, while the next model is loaded
    ):
        written = writer.submit(bool)  # nothing before the first one
        for checkpoint, folder in checkpoints:
            if checkpoint not in ahead and table_fingerprint(parts[checkpoint]) == _of_all(tasks_of[checkpoint]):
                continue
            yield checkpoint
            bar.set_description(checkpoint, refresh=False)
            started, missing = time.monotonic(), to_measure[checkpoint]
            tables = _rows_in(parts[checkpoint], made_from[checkpoint].keys() - missing)
            ahead.begin(checkpoint)
            if missing:
                for task, table in zip(missing, measure(checkpoint, folder, missing), strict=True):
                    tables[task] = table
                    bar.update()
            if checkpoint in ahead:
                tasks_of[checkpoint] = _of_tasks(made_from[checkpoint], ahead.fingerprint(checkpoint), code)
            written.result()
            written = writer.submit(_write, parts[checkpoint], tables, tasks_of[checkpoint], len(missing), started)
        written.result()
    return {checkpoint: _of_all(tasks_of[checkpoint]) for checkpoint, _ in checkpoints}


def side_by_side(walks: Sequence[Walk], checkpoints: Sequence[tuple[str, Path]]) -> list[dict[str, str]]:
    """What each of some walks over (some of) `checkpoints` returns.

    A checkpoint is measured by all of them before the next one is loaded. Each walk's checks come before the first
    model runs; what one has finished stays if another one fails.
    """
    order = {name: place for place, (name, _) in enumerate(checkpoints)}
    with ExitStack() as opened:
        for each in walks:
            opened.callback(each.close)  # waits for the table that it writes
        found, waiting = {}, {}

        def advance(number: int) -> None:
            try:
                waiting[number] = order[next(walks[number])]
            except StopIteration as end:
                found[number] = end.value
                waiting.pop(number, None)

        for number in range(len(walks)):
            advance(number)
        while waiting:
            advance(min(waiting, key=lambda number: (waiting[number], number)))
    return [found[number] for number in range(len(walks))]


def _of_tasks(made_from: Mapping[str, str], weights: str, code: str) -> dict[str, str]:
    """Task -> fingerprint of its rows, for a checkpoint with these weights."""
    return {task: fingerprint(weights, own, code) for task, own in made_from.items()}


def _of_all(tasks: Mapping[str, str]) -> str:
    """The fingerprint of a checkpoint's table, from those of its tasks."""
    return fingerprint(list(tasks.items()))


def _write(
    part: Path, tables: Mapping[str, pl.DataFrame], tasks: Mapping[str, str], measured: int, started: float
) -> None:
    # One chunk a task: polars lays a file out by chunks.
    table = pl.concat([tables[task].rechunk() for task in tasks])
    write_table(table, part, _of_all(tasks), metadata={TASKS: json.dumps(tasks)})
    log.info(
        "%s of %s written: %d rows in %.1f s, %d of %d tasks measured",
        *(part.parent.parent.name, part.stem, len(table), time.monotonic() - started, measured, len(tasks)),
    )


def _not_in(part: Path, tasks: Mapping[str, str]) -> list[str]:
    """Those of `tasks` (task -> fingerprint) whose rows are not in a file of `walk`."""
    try:
        there = json.loads(table_metadata(part).get(TASKS, "{}"))
    except (ValueError, RecursionError):
        there = {}
    there = there if isinstance(there, dict) else {}  # a table of somebody else may hold anything
    return [task for task, wanted in tasks.items() if there.get(task) != wanted]


def _rows_in(part: Path, tasks: Collection[str]) -> dict[str, pl.DataFrame]:
    """Task -> its rows in a file of `walk`."""
    if not tasks:
        return {}
    table = pl.read_parquet(part)
    return {task: table.filter(task=task) for task in tasks}


class TokenizedTexts:
    """Task -> token sequences for the engine's tokenizer, made again only when a checkpoint brings another one.

    Texts without a prompt (the generic text) answer nothing and do not go through a chat template. `texts`: task ->
    (key, prompt, continuation), as `tokenize` takes them; `reading`: arguments of it.
    """

    def __init__(
        self, texts: Mapping[str, Sequence[tuple[str, str, str]]], chat_template: bool = False, **reading: object
    ):
        self.texts, self.chat_template, self.reading = texts, chat_template, reading
        self._tokenizer = self._context = None
        self._sequences: dict[str, list[ScoredSequence]] = {}
        self._known: dict[str, int] = {}  # task -> the vocabulary that its tokens were compared with
        self._ahead: Future | None = None

    def begin(self, engine: Engine, folder: Path, tasks: Collection[str]) -> None:
        """Tokenise `tasks` for the checkpoint in `folder`, in the background: the engine is about to load it.

        `for_engine` waits for it, and raises its errors.
        """
        tokenizer, context = engine.reads(folder)
        self._finish()
        self._ahead = in_background(lambda: self._tokenise(tokenizer, context, tasks))

    def for_engine(self, engine: Engine, tasks: Iterable[str]) -> dict[str, list[ScoredSequence]]:
        """The sequences of `tasks`, in their order. Raises InputError of `solutions.tokenize` for any of them."""
        tasks = list(tasks)
        self._finish()
        self._tokenise(engine.tokenizer, engine.context, tasks)
        for task in tasks:
            if self._known.get(task) != engine.vocabulary:
                require_known(self._sequences[task], engine.tokenizer, engine.vocabulary)
                self._known[task] = engine.vocabulary
        return {task: self._sequences[task] for task in tasks}

    def _finish(self) -> None:
        """Wait for what has begun, and raise its error."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.result()

    def _tokenise(self, tokenizer: "PreTrainedTokenizerFast", context: int, tasks: Iterable[str]) -> None:
        if tokenizer is not self._tokenizer or context != self._context:
            self._tokenizer, self._context, self._sequences, self._known = tokenizer, context, {}, {}
        for task in tasks:
            if task not in self._sequences:
                texts = self.texts[task]
                chat = self.chat_template and any(prompt for _, prompt, _ in texts)
                self._sequences[task] = tokenize(texts, tokenizer, context, chat_template=chat, **self.reading)


def tokenized_solutions(tasks: Mapping[str, Sequence[Solution]], options: ExtractionOptions) -> TokenizedTexts:
    """The solutions of each task, with keys that name both."""
    return TokenizedTexts(
        {task: [(f"{task}/{s.id}", s.prompt, s.solution) for s in solutions] for task, solutions in tasks.items()},
        tail_tokens=options.tail_tokens,
        tail_bytes=options.tail_bytes,
        **options.reading(),
    )


def tell_work(engine: Engine, tokenized: TokenizedTexts, tasks: Iterable[str], checkpoints: int) -> None:
    """Tell the engine how many tokens `tasks` have for the loaded checkpoint and those behind it, `checkpoints` in all.

    Each counts as if it read the same; some may have their rows already.
    """
    sequences = tokenized.for_engine(engine, tasks).values()
    engine.expect(checkpoints * sum(len(sequence.token_ids) for own in sequences for sequence in own))


def read_tasks(
    engine: Engine,
    tokenized: TokenizedTexts,
    checkpoint: str,
    tasks: Iterable[str],
    temperatures: Sequence[float] = (),
) -> Iterator[pl.DataFrame]:
    """The rows of each of `tasks` (EXTRACTED_SCHEMA) of the loaded checkpoint, in order; `checkpoint` is its name."""
    for task, sequences in tokenized.for_engine(engine, tasks).items():
        yield _with_keys(engine.token_stats(sequences, temperatures), checkpoint, task)


def _with_keys(stats: pl.DataFrame, checkpoint: str, task: str) -> pl.DataFrame:
    """The engine's `key` is task/solution, so that its errors name both; the table has a column for each."""
    return stats.select(
        checkpoint=pl.lit(checkpoint),
        task=pl.lit(task),
        solution=pl.col("key").str.strip_prefix(f"{task}/"),
        **{name: pl.col(name) for name in stats.columns if name != "key"},
    )
