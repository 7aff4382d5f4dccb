"""Engines: a checkpoint's folder and token sequences in, token statistics out. Importing this imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import polars as pl
from pydantic import Field

from proxycast.engines.model_folder import check_folder
from proxycast.options import Options
from proxycast.solutions import ScoredSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TOKEN_STATS_SCHEMA", "Engine", "ExtractionOptions", "check_folder", "make_engine"]

# What an engine returns for each scored token. `position`: index of the token in its sequence; `bytes`: UTF-8 bytes of
# the continuation that the token covers; log-probabilities and entropy in nats; `n_equal` counts the token itself;
# `vocabulary`: number of logits.
TOKEN_STATS_SCHEMA = {
    "key": pl.String,
    "position": pl.Int32,
    "token": pl.Int32,
    "bytes": pl.Int32,
    "logprob": pl.Float32,
    "max_logprob": pl.Float32,
    "second_logprob": pl.Float32,
    "entropy": pl.Float32,
    "n_greater": pl.Int32,
    "n_equal": pl.Int32,
    "vocabulary": pl.Int32,
}


class ExtractionOptions(Options):
    """How checkpoints read the expert solutions."""

    engine: Literal["transformers"] = Field("transformers", description="what runs the models")
    tail_tokens: int = Field(
        1000, ge=1, description="tokens scored at the end of each solution, counted in the candidate's own tokens"
    )
    batch_tokens: int = Field(16384, ge=1, description="tokens of one forward pass, padding included")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of the weights and hidden states; logits are always reduced in float32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")


class Engine(Protocol):
    """What extraction and targets need of whatever runs the models: many checkpoints, one loaded at a time."""

    def load(self, folder: Path) -> None:
        """Make the checkpoint in `folder` the loaded one. Raises InputError for a folder that is not a whole model."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The loaded checkpoint's tokenizer; the same object as long as the tokenizer's files are the same."""

    @property
    def context(self) -> int:
        """Most tokens that the loaded model reads at once."""

    def token_stats(self, sequences: Sequence[ScoredSequence]) -> pl.DataFrame:
        """One row per scored token, columns TOKEN_STATS_SCHEMA, in the order of `sequences`."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Each prompt's greedy continuation, ended before the end-of-text token or the first of the `stop` strings."""


def make_engine(options: ExtractionOptions) -> Engine:
    """The engine that `options.engine` names; only now are its heavy packages imported."""
    match options.engine:
        case "transformers":
            from proxycast.engines.transformers import TransformersEngine

            return TransformersEngine(options)
