"""Engines: a checkpoint's folder and token sequences in, token statistics out. Importing this imports no torch."""

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from proxycast.config.extraction import ExtractionOptions, SamplingOptions
from proxycast.extraction.schema import TOKEN_STATS_SCHEMA, TokenStats, tempered_schema
from proxycast.options import InputError
from proxycast.solutions.tokenisation import ScoredSequence
from proxycast.tables import fingerprint
from proxycast.weights.model_config import context_of
from proxycast.weights.tokenizer import Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

# A CPU is faster while a batch stays in its cache: tests/benchmarks/extraction.py --batch-tokens shows by how much.
BATCH_TOKENS = {"cuda": 16384, "cpu": 2048}

KV_CACHE_BYTES = 1 << 30  # of keys and values, vLLM on a CPU

# Measured on an H200: 0.017 nats on average, 0.095 at most; the engine on transformers: 5e-5 and 3e-4.
FLOAT32_ON_GPU = (
    "dtype float32 by vLLM is not exact on a GPU, where its attention multiplies in TF32 (log-probs 0.017 nats off on "
    "average; bfloat16 does what it says)"
)


class Engine(Protocol):
    """What extraction and targets need of an engine: many checkpoints, one loaded at a time."""

    def check(self, folder: Path) -> None:
        """Raise InputError, naming what would work, for a folder that is not whole or that this engine cannot run."""

    def load(self, folder: Path) -> None:
        """Make the checkpoint in `folder` the loaded one. Raises InputError for a folder that is not a whole model."""

    def reads(self, folder: Path) -> tuple["PreTrainedTokenizerFast", int]:
        """`tokenizer` and `context` of the checkpoint in `folder`, as they are once it is loaded."""

    def expect(self, tokens: int) -> None:
        """Be told, behind `load`, about how many tokens this checkpoint and those of its kind behind it will read.

        What takes time once and saves some for each token may be decided by it. No number changes but by rounding.
        """

    @property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The loaded checkpoint's tokenizer; the same object as long as the tokenizer's files are the same."""

    @property
    def context(self) -> int:
        """Most tokens that the loaded model reads at once."""

    @property
    def vocabulary(self) -> int:
        """Number of logits, padding of the vocabulary included."""

    def token_stats(self, sequences: Sequence[ScoredSequence], temperatures: Sequence[float] = ()) -> pl.DataFrame:
        """One row per scored token, columns TOKEN_STATS_SCHEMA, in the order of `sequences`.

        With `temperatures` also the columns `tempered_schema(temperatures)`; only the engine transformers has them.
        """

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Each prompt's greedy continuation, ended before the end-of-text token or the first of the `stop` strings."""

    def sample(self, prompts: Sequence[str], options: SamplingOptions, seeds: Sequence[int]) -> list[Written]:
        """A text drawn for each prompt; its seed alone decides what is drawn, whatever runs beside it.

        A text ends where `generate` ends it, or before an end token of the model's generation_config.json.
        """

    def close(self) -> None:
        """Free what the engine holds."""


def draw_seed(*parts: object) -> int:
    """A number below 2^60 that changes with any part: a text does not depend on those beside it."""
    return int(fingerprint(*parts)[:15], 16)


def token_stats_table(
    sequences: Sequence[ScoredSequence],
    columns: np.ndarray,
    vocabulary: int,
    where: str,
    temperatures: Sequence[float] = (),
) -> pl.DataFrame:
    """Statistics `columns` (6, n) of the scored tokens, one sequence after the other, as a table (TOKEN_STATS_SCHEMA).

    Of K `temperatures` the rows of `columns` behind the six are theirs.

    Raises InputError with `where`, the sequence's key and the position of the first one that is not finite.
    """
    tempered = tempered_schema(temperatures)
    if not sequences:
        return pl.DataFrame(schema=TOKEN_STATS_SCHEMA | tempered)
    lengths = [sequence.stop - sequence.start for sequence in sequences]
    table = pl.DataFrame(
        {
            "key": pl.Series([sequence.key for sequence in sequences]).gather(
                np.repeat(np.arange(len(sequences)), lengths)
            ),
            "position": np.concatenate([s.offset + np.arange(s.start, s.stop) for s in sequences]),
            "token": np.concatenate([sequence.token_ids[sequence.start : sequence.stop] for sequence in sequences]),
            "bytes": np.concatenate([sequence.token_bytes for sequence in sequences]),
            **dict(zip(TokenStats._fields, columns)),
            "vocabulary": np.full(sum(lengths), vocabulary),
            **dict(zip(tempered, columns[len(TokenStats._fields) :])),
        }
    ).cast(TOKEN_STATS_SCHEMA | tempered)
    for row in table.filter(~(pl.col("logprob").is_finite() & pl.col("entropy").is_finite())).iter_rows(named=True):
        raise InputError(
            f"{where}: the logits of {row['key']} at position {row['position']} are NaN or infinite; "
            "the weights are broken, or too large for bfloat16"
        )
    return table


def longest_read(folder: Path, options: ExtractionOptions, without_limit: int = sys.maxsize) -> int:
    """Most tokens that the model in `folder` reads at once; `without_limit` for architectures that have none."""
    own = min(context_of(folder, options.trust_remote_code, options.architecture), without_limit)
    return min(own, options.max_model_len or own)


def require_room(folder: Path, prompts: Sequence[str], encoded: Sequence[np.ndarray], context: int) -> None:
    """Raise InputError for a prompt that is empty or leaves no room in the context for a token after it."""
    for prompt, token_ids in zip(prompts, encoded):
        if not 0 < len(token_ids) < context:
            raise InputError(
                f"{folder}: found {len(token_ids)} tokens in the prompt {prompt[:60]!r}...; "
                f"to continue a prompt it must have 1 to {context - 1} tokens"
            )


def file_states(folder: Path) -> list[tuple[Path, int, int]] | None:
    """Path, size and time of each file: equal lists mean that nothing was written in between."""
    if not folder.is_dir():
        return None
    return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]


def groups(sequences: Sequence[ScoredSequence], tokens: int) -> Iterator[list[ScoredSequence]]:
    """Consecutive sequences with together at most `tokens` tokens, or one that has more."""
    group, total = [], 0
    for sequence in sequences:
        if group and total + len(sequence.token_ids) > tokens:
            yield group
            group, total = [], 0
        group.append(sequence)
        total += len(sequence.token_ids)
    if group:
        yield group
