"""Expert solutions: read and check them, and turn them into token sequences whose tail is scored.

A solution is a text that an expert wrote in answer to a prompt. A candidate model never writes here: it only reads
`prompt + solution`, and its distribution at each of the solution's tokens is what everything else is made of. So the
one thing that this module must get right is which tokens belong to the solution, and how many bytes of it each of them
covers.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from proxycast.options import InputError
from proxycast.tables import atomic, is_whole_parquet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair; no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character; write the whole character") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must hold more than white space")
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Solution(BaseModel):
    """One problem and an expert's solution. A model reads `prompt + solution`: a space between is part of either."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[Text, StringConstraints(min_length=1)]
    prompt: Text
    solution: Annotated[Text, AfterValidator(_not_blank)]
    answer: Text | None = None
    choices: tuple[Annotated[Text, StringConstraints(min_length=1)], ...] | None = None
    writer: Text | None = None

    @model_validator(mode="after")
    def _choices_hold_the_correct_one_once(self) -> Self:
        if self.choices is None:
            return self
        if len(self.choices) < 2:
            raise ValueError(f"choices: found {len(self.choices)}; give at least two")
        twice = [choice for choice in self.choices if self.choices.count(choice) > 1]
        if twice:
            raise ValueError(f"choices: found {twice[0]!r} {len(twice)} times; each choice must be given once")
        if self.correct_choice is None:
            raise ValueError(
                f"choices: found {list(self.choices)}; one of them must be the solution {self.solution!r} "
                f"or the answer {self.answer!r}, to the letter"
            )
        return self

    @property
    def correct_choice(self) -> int | None:
        """Index of the choice equal to `solution`, else of the one equal to `answer`; None without choices."""
        for text in (self.solution, self.answer):
            if self.choices is not None and text in self.choices:
                return self.choices.index(text)
        return None


def read_solutions(path: Path) -> list[Solution]:
    """Read and check a .jsonl or .parquet file. Raises InputError naming file, row (in a .jsonl: line) and field."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: found the suffix {path.suffix!r}; expert solutions are read from .jsonl or .parquet")
    if not path.is_file():
        raise InputError(f"{path}: no such file (paths start where snakemake is run); it should hold solutions")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)
    solutions: list[Solution] = []
    first_row: dict[str, int] = {}
    for number, row in rows:
        solution = _solution(row, f"{path}, row {number}")
        if solution.id in first_row:
            raise InputError(
                f"{path}, row {number}, field id: found {solution.id!r}, the id of row {first_row[solution.id]}; "
                "each solution needs its own"
            )
        first_row[solution.id] = number
        solutions.append(solution)
    if not solutions:
        raise InputError(f"{path}: found no rows; give at least one solution with id, prompt and solution")
    return solutions


def write_solutions(solutions: Iterable[Solution], path: Path) -> None:
    """Write `solutions` as JSON lines, atomically; fields that are None are left out."""
    with atomic(path) as temporary:
        lines = (solution.model_dump_json(exclude_none=True) + "\n" for solution in solutions)
        temporary.write_text("".join(lines), encoding="utf-8")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, row {number}: not UTF-8 ({error}); save the file as UTF-8") from None
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, row {number}: broken JSON ({error}); each line must be one JSON object"
            ) from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    if not is_whole_parquet(path):
        raise InputError(f"{path}: found a truncated file or no parquet at all; copy or write it again")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: cannot be read as parquet ({error}); write it again") from None
    return enumerate(table.iter_rows(named=True), start=1)


def _solution(row: object, where: str) -> Solution:
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: found a {type(row).__name__}; each row must be an object with id, prompt and solution"
        )
    try:
        return Solution.model_validate(row)
    except ValidationError as error:
        problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "missing":
            raise InputError(f"{where}, field {field}: missing; found only {sorted(row)}")
        case "extra_forbidden":
            raise InputError(f"{where}, field {field}: unknown; the fields are {', '.join(Solution.model_fields)}")
    expected = problem["msg"].removeprefix("Value error, ")
    # A rule over several fields has no place of its own: its message starts with the field and says what was found.
    raise InputError(
        f"{where}, field {field}: found {problem['input']!r}: {expected}" if field else f"{where}, field {expected}"
    )


@dataclass(frozen=True, eq=False)
class ScoredSequence:
    """The tokens of `prompt + continuation`; those at `start` to `stop - 1`, all of the continuation, are scored.

    token_ids: int64, (T,), the whole sequence as the model reads it; start >= 1 because the first token has no context.
    token_bytes: int32, (stop - start,), UTF-8 bytes of the continuation that each scored token covers.
    """

    key: str
    token_ids: np.ndarray
    start: int
    stop: int
    token_bytes: np.ndarray


def tokenize(
    texts: Iterable[tuple[str, str, str]],
    tokenizer: "PreTrainedTokenizerFast",
    context: int,
    tail_tokens: int | None = None,
    batch_size: int = 1024,
) -> list[ScoredSequence]:
    """Tokenise each (key, prompt, continuation) as one text; score the continuation's last `tail_tokens` tokens.

    Two tokenisations glued together are not what a model would read. One tokenisation can put the end of the prompt and
    the start of the continuation into one token: such a token is scored (our choice), and counts the bytes of the
    continuation alone. Special tokens that the tokenizer puts in front (BOS) stay, those that it puts behind (EOS) go.
    Raises InputError, naming the key, for a text of more than `context` tokens and for one that leaves nothing to
    score.
    """
    _require_fast(tokenizer)
    remaining = iter(texts)
    sequences: list[ScoredSequence] = []
    while batch := list(islice(remaining, batch_size)):
        encodings = _encode([prompt + continuation for _, prompt, continuation in batch], tokenizer)
        for (key, prompt, continuation), (token_ids, offsets, special) in zip(batch, encodings):
            sequence = _scored_sequence(key, prompt, continuation, token_ids, offsets, special, tail_tokens)
            if len(sequence.token_ids) > context:
                raise InputError(
                    f"{key}: found {len(sequence.token_ids)} tokens of prompt and solution; "
                    f"the model's context holds {context}"
                )
            if sequence.start >= sequence.stop:
                raise InputError(
                    f"{key}: no token is left to score; a solution needs a token that follows another, "
                    "of the prompt or its own"
                )
            sequences.append(sequence)
    return sequences


def prompt_tokens(prompts: list[str], tokenizer: "PreTrainedTokenizerFast") -> list[np.ndarray]:
    """Token ids (int64) of each prompt, ready to be continued: special tokens in front stay, those behind go."""
    _require_fast(tokenizer)
    return [token_ids[: _content(special)[1]] for token_ids, _, special in _encode(prompts, tokenizer)]


def _require_fast(tokenizer: "PreTrainedTokenizerFast") -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} of {getattr(tokenizer, 'name_or_path', '') or 'the model'}: a slow tokenizer, "
            "which knows no character offsets; give a folder with a tokenizer.json"
        )


def _encode(
    texts: list[str], tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each text: token ids (T,), spans in characters (T, 2), and which tokens the tokenizer added itself (T,)."""
    if not texts:
        return
    _keep_spaces_in_offsets(tokenizer)
    encoded = tokenizer(
        texts,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        padding=False,
        truncation=False,
        verbose=False,
    )
    for token_ids, offsets, special in zip(
        encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"]
    ):
        yield np.array(token_ids, np.int64), np.array(offsets, np.int64).reshape(-1, 2), np.array(special, bool)


def _keep_spaces_in_offsets(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Stop byte-level tokenizers from trimming white space off the spans of tokens that cover it. Ids stay the same."""
    processor = tokenizer.backend_tokenizer.post_processor
    state = b"" if processor is None else processor.__getstate__()
    if b'"trim_offsets":true' in state:
        processor.__setstate__(state.replace(b'"trim_offsets":true', b'"trim_offsets":false'))
        tokenizer.backend_tokenizer.post_processor = processor


def _content(special: np.ndarray) -> tuple[int, int]:
    """First and one-past-last index of the tokens that stand for text, between the special ones around them."""
    content = np.flatnonzero(~special)
    return (int(content[0]), int(content[-1]) + 1) if len(content) else (0, 0)


def _scored_sequence(
    key: str,
    prompt: str,
    continuation: str,
    token_ids: np.ndarray,
    offsets: np.ndarray,
    special: np.ndarray,
    tail_tokens: int | None,
) -> ScoredSequence:
    first, stop = _content(special)
    boundary, length = len(prompt), len(prompt) + len(continuation)
    # A character cut over several tokens is in the span of each: it counts for the first of them, the others add no
    # bytes. A character in no span (dropped by the tokenizer's normalisation) counts for the token that follows it, or
    # for the last one.
    ends = np.maximum.accumulate(offsets[first:stop, 1])
    ends[-1:] = length
    # A second piece of the prompt's last character ends at the boundary; a second piece of the continuation's first one
    # ends past it.
    start = max(first + int(np.searchsorted(ends, boundary, side="right")), 1)
    if tail_tokens is not None:
        start = max(start, stop - tail_tokens)
    covered = _utf8_positions(continuation)[np.maximum(ends - boundary, 0)]
    token_bytes = np.diff(covered, prepend=0)[start - first :].astype(np.int32)
    return ScoredSequence(key, token_ids[:stop], start, stop, token_bytes)


def _utf8_positions(text: str) -> np.ndarray:
    """Number of UTF-8 bytes before each character of `text`, and in all: (len(text) + 1,)."""
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    return np.concatenate([[0], np.cumsum(lengths)])
