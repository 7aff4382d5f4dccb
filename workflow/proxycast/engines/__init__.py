"""Engines: a checkpoint's folder and token sequences in, token statistics out. Importing this imports no torch."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import polars as pl
from pydantic import Field

from proxycast.engines.tokenizer import Written
from proxycast.options import InputError, Options, SafeName
from proxycast.solutions import ScoredSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

# A CPU is faster while a batch stays in its cache: tests/benchmarks/extraction.py --batch-tokens shows by how much.
BATCH_TOKENS = {"cuda": 16384, "cpu": 2048}

# Measured on an H200: 0.017 nats on average, 0.095 at most; the engine on transformers: 5e-5 and 3e-4.
FLOAT32_ON_GPU = (
    "dtype float32 by vLLM is not exact on a GPU, where its attention multiplies in TF32 (log-probs 0.017 nats off on "
    "average; bfloat16 does what it says)"
)

# The fields of `token_stats.TokenStats`, which this module must not import.
STATISTICS = ("logprob", "max_logprob", "second_logprob", "entropy", "n_greater", "n_equal")

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


class ModelOptions(Options):
    """How one model is run. A study sets them for all; a corpus or one of its checkpoints sets its own over them."""

    engine: Literal["auto", "transformers", "vllm"] = Field(
        "transformers",
        description="what runs the model; auto: vLLM on a GPU where it supports the model and dtype, else transformers",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of the weights and hidden states; logits are always float32"
    )
    chat_template: bool = Field(
        False, description="post-trained models: the prompt goes through the tokenizer's chat template"
    )
    leading_space: Literal["strip", "keep"] = Field(
        "strip",
        description="with chat_template: what becomes of the single space with which a solution or choice begins that "
        "was written for base models; strip: it goes, unless the template itself has a space in front of an answer. "
        "Other white space always stays",
    )
    trust_remote_code: bool = Field(
        False,
        description="run Python code that lies in the model's folder; only where PROXYCAST_TRUST_CODE names the "
        "model, in the environment of whoever starts the study",
    )
    architecture: str | None = Field(
        None,
        description="class of transformers that runs the weights, where config.json names one that nobody knows; "
        "Olmo2RetrofitForCausalLM, which became Olmo3ForCausalLM, needs no mention",
    )
    ignored_weights: tuple[str, ...] = Field(
        (),
        description="transformers: patterns (mtp.*) of weights that lie in the files and are meant to be left out; "
        "without it, weights that the architecture has no place for are an error",
    )
    max_model_len: int | None = Field(
        None, ge=2, description="tokens read at once, if fewer than the model's own context (saves memory)"
    )
    quantization: SafeName | None = Field(
        None, description="vLLM: method of quantised weights; without it what config.json says"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="vLLM: GPUs that share each layer")
    pipeline_parallel_size: int = Field(1, ge=1, description="vLLM: groups of GPUs that share the layers")
    gpu_memory_fraction: float = Field(0.9, gt=0, le=1, description="vLLM: share of each GPU's memory it may use")


class ExtractionOptions(ModelOptions):
    """How checkpoints read the expert solutions."""

    tail_tokens: int = Field(
        1000, ge=1, description="tokens scored at the end of each solution, counted in the candidate's own tokens"
    )
    tail_bytes: int | None = Field(
        None,
        ge=1,
        description="count the tail in UTF-8 bytes as well: tokens that reach into the last so many bytes of each "
        "solution, the same span of text for every tokenizer; tables then have both tails",
    )
    windowing: bool = Field(
        True, description="read texts longer than the model's context in overlapping windows; false: an error"
    )
    window_stride: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the context by which a window moves on: a scored token sees all that is in front of it, "
        "or at least 1 - window_stride of the context; smaller ones show more and read more, 1e-9 shows all that fits",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of one forward pass, padding included; "
        "without it 16384 on a GPU, and on a CPU 2048, whose work stays in its cache",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")

    def reading(self) -> dict:
        """How `solutions.tokenize` reads a text, apart from its tail: the arguments of these names."""
        return self.model_dump(include={"chat_template", "leading_space", "windowing", "window_stride"})

    def that_change_results(self) -> dict:
        """The options without those that change numbers by rounding only: a rerun with less memory keeps its parts."""
        rounding = {"batch_tokens", "device", "tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_fraction"}
        return self.model_dump(exclude=rounding)

    def over(self, *models: ModelOptions) -> "ExtractionOptions":
        """These options with what `models` set themselves; of two that set the same key, the later counts."""
        return self.model_copy(update={key: getattr(model, key) for model in models for key in model.model_fields_set})


class SamplingOptions(Options):
    """How text is drawn from a model."""

    temperature: float = Field(
        0.6, ge=0, description="divides the logits before a token is drawn; 0: the most probable token"
    )
    top_p: float = Field(
        0.95, gt=0, le=1, description="tokens are drawn from the fewest that together have this probability"
    )
    max_new_tokens: int = Field(8192, gt=0, description="most tokens of one text")
    stop: tuple[str, ...] = Field((), description="strings at the first of which a text ends; it is not part of it")


class Engine(Protocol):
    """What extraction and targets need of whatever runs the models: many checkpoints, one loaded at a time."""

    def check(self, folder: Path) -> None:
        """Raise InputError, naming what would work, for a folder that is not whole or that this engine cannot run."""

    def load(self, folder: Path) -> None:
        """Make the checkpoint in `folder` the loaded one. Raises InputError for a folder that is not a whole model."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The loaded checkpoint's tokenizer; the same object as long as the tokenizer's files are the same."""

    @property
    def context(self) -> int:
        """Most tokens that the loaded model reads at once."""

    @property
    def vocabulary(self) -> int:
        """Number of logits, padding of the vocabulary included."""

    def token_stats(self, sequences: Sequence[ScoredSequence]) -> pl.DataFrame:
        """One row per scored token, columns TOKEN_STATS_SCHEMA, in the order of `sequences`."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Each prompt's greedy continuation, ended before the end-of-text token or the first of the `stop` strings."""

    def sample(self, prompts: Sequence[str], options: SamplingOptions, seeds: Sequence[int]) -> list[Written]:
        """A text drawn for each prompt by its own seed, which alone decides what is drawn, whatever runs beside it.

        A text ends where `generate` ends it, or before a token that the model's generation_config.json calls its end.
        """

    def close(self) -> None:
        """Free what the engine holds."""


def make_engine(options: ExtractionOptions) -> Engine:
    """The engine that `options.engine` names, which is no longer auto; only now are its heavy packages imported."""
    match options.engine:
        case "transformers":
            from proxycast.engines.transformers import TransformersEngine

            return TransformersEngine(options)
        case "vllm":
            from proxycast.engines.vllm import VllmEngine

            return VllmEngine(options)
    raise ValueError(f"engine {options.engine!r}: choose_engine decides it for a folder")


def choose_engine(options: ExtractionOptions, folder: Path) -> ExtractionOptions:
    """`options` with auto replaced by the engine for the model in `folder`; the log says which one and why."""
    if options.engine != "auto":
        return options
    import torch

    reason = "no GPU is there"
    if torch.cuda.is_available() and options.device != "cpu":
        from proxycast.engines.vllm import unsupported

        reason = unsupported(folder, options)
    engine = "transformers" if reason else "vllm"
    log.info("%s: engine %s, because %s", folder, engine, reason or "vLLM supports the model on this GPU")
    return options.model_copy(update={"engine": engine})


def engines_for(
    checkpoints: Sequence[tuple[str, Path]], options: Sequence[ExtractionOptions]
) -> list[tuple[Engine, ExtractionOptions, list[tuple[str, Path]]]]:
    """(engine, its options, the checkpoints that it runs): one for all (name, folder) whose options are the same.

    Raises InputError for a folder that is not whole or that its engine cannot run; no model is loaded before.
    """
    groups: dict[ExtractionOptions, list[tuple[str, Path]]] = {}
    for (name, folder), wanted in zip(checkpoints, options):
        groups.setdefault(choose_engine(wanted, folder), []).append((name, folder))
    found = [(make_engine(chosen), chosen, group) for chosen, group in groups.items()]
    for engine, chosen, group in found:
        set_here = {key: value for key, value in chosen if value != ExtractionOptions.model_fields[key].default}
        log.info("%d checkpoints with %s, %s", len(group), type(engine).__name__, set_here or "all options at default")
        for _, folder in group:
            engine.check(folder)
    return found


def token_stats_table(
    sequences: Sequence[ScoredSequence], columns: np.ndarray, vocabulary: int, where: str
) -> pl.DataFrame:
    """Statistics `columns` (6, n) of the scored tokens, one sequence after the other, as a table (TOKEN_STATS_SCHEMA).

    Raises InputError with `where`, the sequence's key and the position of the first one that is not finite.
    """
    if not sequences:
        return pl.DataFrame(schema=TOKEN_STATS_SCHEMA)
    lengths = [sequence.stop - sequence.start for sequence in sequences]
    table = pl.DataFrame(
        {
            "key": pl.Series([sequence.key for sequence in sequences]).gather(
                np.repeat(np.arange(len(sequences)), lengths)
            ),
            "position": np.concatenate([s.offset + np.arange(s.start, s.stop) for s in sequences]),
            "token": np.concatenate([sequence.token_ids[sequence.start : sequence.stop] for sequence in sequences]),
            "bytes": np.concatenate([sequence.token_bytes for sequence in sequences]),
            **dict(zip(STATISTICS, columns)),
            "vocabulary": np.full(sum(lengths), vocabulary),
        }
    ).cast(TOKEN_STATS_SCHEMA)
    for row in table.filter(~(pl.col("logprob").is_finite() & pl.col("entropy").is_finite())).iter_rows(named=True):
        raise InputError(
            f"{where}: the logits of {row['key']} at position {row['position']} are NaN or infinite; "
            "the weights are broken, or too large for bfloat16"
        )
    return table


def require_room(folder: Path, prompts: Sequence[str], encoded: Sequence[np.ndarray], context: int) -> None:
    """Raise InputError for a prompt that is empty or leaves no room in the context for a token after it."""
    for prompt, token_ids in zip(prompts, encoded):
        if not 0 < len(token_ids) < context:
            raise InputError(
                f"{folder}: found {len(token_ids)} tokens in the prompt {prompt[:60]!r}...; "
                f"to continue a prompt it must have 1 to {context - 1} tokens"
            )
