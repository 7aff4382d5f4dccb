"""Expert solutions: read and check them, and turn them into token sequences whose tail is scored.

A solution is a text that an expert wrote in answer to a prompt. A candidate model never writes here: it only reads
`prompt + solution`, and its distribution at each of the solution's tokens is what everything else is made of. So the
one thing that this module must get right is which tokens belong to the solution, and how many bytes of it each of them
covers.
"""

import json
import logging
import os
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar
from unittest.mock import patch

import numpy as np
import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from proxycast.options import InputError, json_value, library_errors, told_names, told_reason, told_value
from proxycast.sandbox import bounded_environment, limited
from proxycast.tables import UNREADABLE, atomic, is_whole_parquet, require_unchanged, seal

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

GENERIC_TEXT = "generic_text"  # web text, which stands beside the tasks wherever solutions are read

# What a chat template that writes today's date is told: the same text, and so the same result, on every day.
TEMPLATE_DATE = date(2025, 1, 1)
OTHER_MESSAGE = "7 <proxycast> 7"  # no prompt


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
Row = TypeVar("Row", bound="Problem")


class Problem(BaseModel):
    """What is asked of a model, and the right answer where one is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[Text, StringConstraints(min_length=1)]
    prompt: Text
    answer: Text | None = None
    choices: tuple[Annotated[Text, StringConstraints(min_length=1)], ...] | None = None

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
                f"choices: found {list(self.choices)}; one of them must be {self._in_words}, to the letter"
            )
        return self

    @property
    def _in_words(self) -> str:
        return f"the answer {self.answer!r}"

    @property
    def correct_choice(self) -> int | None:
        """Index of the choice equal to `answer`; None without choices."""
        return self._choice(self.answer)

    def _choice(self, *texts: str | None) -> int | None:
        return next((self.choices.index(text) for text in texts if text in (self.choices or ())), None)

    @property
    def problem_id(self) -> str:
        """What the solutions of one problem have in common."""
        return self.id

    @property
    def right_answer(self) -> str | None:
        """`answer`, or else the correct choice, without white space around it; None where neither is known."""
        text = self.choices[self.correct_choice] if self.answer is None and self.choices else self.answer
        return None if text is None else text.strip()


class Solution(Problem):
    """A problem and an expert's solution. A model reads `prompt + solution`: a space between is part of either.

    `problem` joins several solutions of one problem, each with an id of its own; without it the id is the problem's.
    """

    solution: Annotated[Text, AfterValidator(_not_blank)]
    writer: Text | None = None
    problem: Annotated[Text, StringConstraints(min_length=1)] | None = None

    @property
    def problem_id(self) -> str:
        return self.problem or self.id

    @property
    def _in_words(self) -> str:
        return f"the solution {self.solution!r} or the answer {self.answer!r}"

    @property
    def correct_choice(self) -> int | None:
        """Index of the choice equal to `solution`, else of the one equal to `answer`; None without choices."""
        return self._choice(self.solution, self.answer)


def read_solutions(path: Path) -> list[Solution]:
    """Read and check a .jsonl or .parquet file. Raises InputError naming file, row (in a .jsonl: line) and field."""
    return _read(path, lambda row: Solution)


def read_problems(path: Path) -> list[Problem]:
    """`read_solutions` of a file in which rows may have no solution: those become a Problem, the others a Solution."""
    return _read(path, lambda row: Problem if row.get("solution") is None else Solution)


def once_each(rows: Iterable[Problem]) -> list[Problem]:
    """The first row of each problem, of rows that may be several solutions of one.

    Raises InputError for two of one problem that ask different things: one of them would be left out in silence.
    """
    first: dict[str, Problem] = {}
    for row in rows:
        same = first.setdefault(row.problem_id, row)
        for field in ("prompt", "choices", "correct_choice", "right_answer"):
            if getattr(row, field) != getattr(same, field):
                raise InputError(
                    f"problem {row.problem_id!r}: rows {same.id!r} and {row.id!r} differ in {field.replace('_', ' ')}: "
                    f"{getattr(same, field)!r} and {getattr(row, field)!r}; only the solution may differ"
                )
    return list(first.values())


def _read(path: Path, kind: Callable[[dict], type[Row]]) -> list[Row]:
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: found the suffix {path.suffix!r}; expert solutions are read from .jsonl or .parquet")
    if not path.is_file():
        raise InputError(f"{path}: no such file (paths start where snakemake is run); it should hold solutions")
    require_unchanged(path)
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)
    found: list[Row] = []
    first_row: dict[str, int] = {}
    for number, row in rows:
        checked = _checked(row, kind, f"{path}, row {number}")
        if checked.id in first_row:
            raise InputError(
                f"{path}, row {number}, field id: found {checked.id!r}, the id of row {first_row[checked.id]}; "
                "each row needs its own (several solutions of one problem name it in the field problem)"
            )
        first_row[checked.id] = number
        found.append(checked)
    if not found:
        raise InputError(f"{path}: found no rows; give at least one solution with id, prompt and solution")
    return found


def write_solutions(solutions: Iterable[Problem], path: Path) -> None:
    """Write solutions, or problems without any, as sealed JSON lines, atomically, without fields that are None."""
    with atomic(path) as temporary:
        lines = (solution.model_dump_json(exclude_none=True) + "\n" for solution in solutions)
        temporary.write_text("".join(lines), encoding="utf-8")
    seal(path)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json_value(line.decode())
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, row {number}: not UTF-8 ({error}); save the file as UTF-8") from None
        except ValueError as error:
            raise InputError(
                f"{path}, row {number}: broken JSON ({error}); each line must be one JSON object"
            ) from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    if not is_whole_parquet(path):
        raise InputError(f"{path}: found a truncated file or no parquet at all; copy or write it again")
    try:
        table = pl.read_parquet(path, glob=False)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as parquet ({told_reason(error)}); write it again") from None
    return enumerate(table.iter_rows(named=True), start=1)


def _checked(row: object, kind: Callable[[dict], type[Row]], where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: found a {type(row).__name__}; each row must be an object with id, prompt and solution"
        )
    model = kind(row)
    if model is Problem:
        row = {field: value for field, value in row.items() if field in Problem.model_fields or value is not None}
    try:
        return model.model_validate(row)
    except ValidationError as error:
        problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "missing":
            raise InputError(f"{where}, field {field}: missing; found only {told_names(sorted(row))}")
        case "extra_forbidden":
            raise InputError(f"{where}, field {field}: unknown; the fields are {', '.join(model.model_fields)}")
    expected = problem["msg"].removeprefix("Value error, ")
    # A rule over several fields has no place of its own: its message starts with the field and says what was found.
    raise InputError(
        f"{where}, field {field}: found {told_value(problem['input'])}: {expected}"
        if field
        else f"{where}, field {expected}"
    )


@dataclass(frozen=True, eq=False)
class ScoredSequence:
    """Tokens that a model reads at once; those at `start` to `stop - 1`, all of a continuation, are scored.

    token_ids: int64, (T,), the whole sequence as the model reads it; start >= 1 because the first token has no context.
    token_bytes: int32, (stop - start,), UTF-8 bytes of the continuation that each scored token covers.
    offset: a scored token's `position` in the tables is `offset` plus its index in `token_ids`, so that the windows of
        one long text keep the text's own positions.
    """

    key: str
    token_ids: np.ndarray
    start: int
    stop: int
    token_bytes: np.ndarray
    offset: int = 0


def tokenize(
    texts: Iterable[tuple[str, str, str]],
    tokenizer: "PreTrainedTokenizerFast",
    context: int,
    tail_tokens: int | None = None,
    batch_size: int = 1024,
    windowing: bool = True,
    chat_template: bool = False,
    vocabulary: int | None = None,
    tail_bytes: int | None = None,
    leading_space: Literal["strip", "keep"] | None = "strip",
    window_stride: float = 0.5,
) -> list[ScoredSequence]:
    """Tokenise each (key, prompt, continuation) as one text; score the continuation's last `tail_tokens` tokens.

    With `tail_bytes` all tokens that reach into its last `tail_bytes` UTF-8 bytes are scored, too, so that models with
    other tokenizers can be compared on the same span of text (`proxies.tails` takes the two apart).

    Two tokenisations glued together are not what a base model would read. One tokenisation can put the end of the
    prompt and the start of the continuation into one token: such a token is scored (our choice), and counts the bytes
    of the continuation alone. Special tokens that the tokenizer puts in front (BOS) stay, those that it puts behind
    (EOS) go.

    `chat_template`: the prompt goes through the tokenizer's chat template, which writes the special tokens; the
    tokenizer adds none. A chat model answers behind the template's own tokens, so here the continuation is tokenised
    apart, without the space that some tokenizers put in front of a text, and its tokens follow the template's.
    `leading_space` says what becomes of the single space with which a continuation begins that was written for base
    models (" Paris"): "strip" takes it away, unless the template itself has a space in front of an answer, as Llama 2's
    does. Other white space is content and stays. The log tells how many continuations it concerns, and for base models
    how many begin with a word that the end of their prompt joins. None, for what a model wrote itself: "keep", no log.

    `windowing`: a text of more than `context` tokens is read in windows: several sequences with the text's key, in
    order. The first window is the text's beginning: it scores the tokens below `context`, with all that is in front of
    them. The tokens behind are cut into as few equal parts as have at most `window_stride` of the context; each part
    ends a window that holds the special tokens in front once more, then as many tokens as fit. So every token is scored
    once, and sees all tokens in front of it or at least 1 - `window_stride` of the context (`stride` in transformers'
    guide to the perplexity of fixed-length models: https://huggingface.co/docs/transformers/perplexity). A window that
    would score nothing is left out: a tail of one part that starts behind the first `context` tokens takes one window,
    the last `context` tokens. Without `windowing` a longer text is an error.

    Raises InputError, naming the key, for a text that leaves nothing to score, whose tokens do not decode to prompt and
    continuation, or that has a token id of `vocabulary` (the number of embeddings, None: any) or above.
    """
    _require_fast(tokenizer)
    space_in_template = chat_template and _writes_space_before_answer(tokenizer)
    strip = chat_template and leading_space == "strip" and not space_in_template
    remaining, sequences = iter(texts), []
    read, longer = 0, []  # texts, and keys of those that are longer than the context
    spaced, joined = [], []  # keys of texts that begin with a single space, or with a word that the prompt joins
    while batch := list(islice(remaining, batch_size)):
        spaced += [key for key, _, text in batch if _has_leading_space(text)]
        joined += [k for k, prompt, text in batch if _begins_with_word(text) and (chat_template or _ends_word(prompt))]
        if strip:
            batch = [(k, prompt, text[1:] if _has_leading_space(text) else text) for k, prompt, text in batch]
        with library_errors(
            f"{_name(tokenizer)}: the tokenizer fails at one of the texts {batch[0][0]} to {batch[-1][0]}"
        ):
            tails = _tails(batch, tokenizer, tail_tokens, tail_bytes, chat_template)
            for tail in tails:
                _require_known(tail.sequence.key, tail.sequence.token_ids, tokenizer, vocabulary)
            _require_round_trip(
                batch, [tail.sequence.token_ids[tail.leading :] for tail in tails], tokenizer, chat_template
            )
        read += len(tails)
        for tail in tails:
            fits = len(tail.sequence.token_ids) <= context
            sequences += [tail.sequence] if fits else _windows(tail, context, windowing, window_stride)
            longer += [] if fits else [tail.sequence.key]
    if leading_space is not None:
        needs_space = space_in_template or not chat_template
        _log_leading_spaces(joined if needs_space else spaced, read, needs_space, chat_template, leading_space)
    if longer:
        log.warning(
            "%d of %d texts are longer than the model's context of %d tokens and are read in windows, first %s",
            len(longer),
            read,
            context,
            longer[0],
        )
    return sequences


def _log_leading_spaces(
    keys: list[str], read: int, needs_space: bool, chat_template: bool, leading_space: Literal["strip", "keep"]
) -> None:
    """Tells of the texts in `keys`, out of `read`: they lack a leading space that they need, or have one too many."""
    if not keys:
        return
    these, first = f"{len(keys)} of {read} texts", f"first {keys[0]}"
    if needs_space and chat_template:
        log.warning("%s begin without the space that the chat template has in front of an answer, %s", these, first)
    elif needs_space:
        log.warning(
            "%s begin with a word right behind a prompt that ends without white space, %s: a model reads both as one "
            "word; begin the text with a space",
            *(these, first),
        )
    elif leading_space == "strip":
        log.info("%s lose the space that they begin with, behind the chat template, %s", these, first)
    else:
        log.warning(
            "%s begin with a space behind a chat template that has none there, %s: models rarely answer so; "
            "leading_space: strip leaves it out",
            *(these, first),
        )


def prompt_tokens(
    prompts: list[str],
    tokenizer: "PreTrainedTokenizerFast",
    chat_template: bool = False,
    vocabulary: int | None = None,
) -> list[np.ndarray]:
    """Token ids (int64) of each prompt, ready to be continued: special tokens in front stay, those behind go.

    Raises InputError, quoting the prompt, where `tokenize` would.
    """
    _require_fast(tokenizer)
    texts = _chat_prompts(prompts, tokenizer) if chat_template else prompts
    with library_errors(f"{_name(tokenizer)}: the tokenizer fails at one of the prompts"):
        encoded = list(_encode(texts, tokenizer, special_tokens=not chat_template))
    named = [(f"prompt {prompt[:60]!r}", prompt, "") for prompt in prompts]
    for (key, _, _), encoding in zip(named, encoded):
        _require_known(key, encoding.token_ids, tokenizer, vocabulary)
    _require_round_trip(named, [e.token_ids[e.leading :] for e in encoded], tokenizer, chat_template)
    return [encoding.token_ids for encoding in encoded]


def _require_fast(tokenizer: "PreTrainedTokenizerFast") -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} of {_name(tokenizer)}: a slow tokenizer, "
            "which knows no character offsets; give a folder with a tokenizer.json"
        )


def _name(tokenizer: "PreTrainedTokenizerFast") -> str:
    return getattr(tokenizer, "name_or_path", "") or "the model"


def _chat_prompts(prompts: list[str], tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """Each prompt as a user's message in the tokenizer's chat template, up to where the answer starts.

    Raises InputError for a template that fails, or that leaves the message out though its words stand there: they must
    stand there more often than with another message. (Where they stand nowhere, the round trip fails.)
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{_name(tokenizer)}: this tokenizer has no chat template; give chat_template: false, or a checkpoint "
            "with a chat_template in tokenizer_config.json or in chat_template.jinja"
        )
    of_another = _in_template(OTHER_MESSAGE, tokenizer).replace(OTHER_MESSAGE, "")
    written: dict[str, str] = {}  # the choices of a problem share their prompt
    for prompt in prompts:
        if prompt in written:
            continue
        written[prompt] = _in_template(prompt, tokenizer)
        text = prompt.strip()
        if text and 0 < written[prompt].count(text) <= of_another.count(text):
            raise InputError(
                f"{_name(tokenizer)}: its chat template leaves out the user's message {text[:60]!r}; give "
                "chat_template: false, or another checkpoint"
            )
    return [written[prompt] for prompt in prompts]


def _in_template(message: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The chat template with one message of the user."""
    name = _name(tokenizer)
    with library_errors(
        f"{name}: its chat template refuses a single user message; give chat_template: false, or another checkpoint"
    ):
        return _chat([{"role": "user", "content": message}], tokenizer, add_generation_prompt=True)


def _chat(messages: list[dict], tokenizer: "PreTrainedTokenizerFast", **options: bool) -> str:
    """The messages in the tokenizer's chat template, within limits of time and memory."""
    from transformers.utils import chat_template_utils

    with patch.object(chat_template_utils, "ImmutableSandboxedEnvironment", bounded_environment()), limited():
        chat = tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=TEMPLATE_DATE.strftime, **options)
    chat.encode()
    return chat


def _writes_space_before_answer(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the chat template has a space between a prompt and an answer, as Llama 2's: "[INST] Q [/INST] A"."""
    (prompt,) = _chat_prompts(["Q"], tokenizer)
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    try:
        chat = _chat(messages, tokenizer)
    except Exception:
        return False  # a template that knows no answers
    return chat.startswith(prompt + " A")


def _has_leading_space(text: str) -> bool:
    """Whether `text` begins with one space that is no indentation, as it must behind the prompt of a base model."""
    return len(text) > 1 and text[0] == " " and not text[1].isspace()


def _begins_with_word(text: str) -> bool:
    """Whether `text` begins with a letter of a script that has spaces between words, or with a digit."""
    return text[:1].isalnum() and text[0] < "\u0590"  # Latin, Greek, Cyrillic, Armenian


def _ends_word(prompt: str) -> bool:
    """Whether a space must follow the end of `prompt` before another word begins."""
    return prompt[-1:].isalnum() or prompt[-1:] in tuple(".,:;?!])")


@dataclass(frozen=True, eq=False)
class _Encoding:
    """One text in tokens, without special tokens that the tokenizer put behind.

    token_ids: int64, (T,); spans: int64, (T, 2), first and one-past-last character of each token;
    leading: special tokens in front, which stand before any part of the text.
    """

    token_ids: np.ndarray
    spans: np.ndarray
    leading: int


def _encode(texts: list[str], tokenizer: "PreTrainedTokenizerFast", special_tokens: bool) -> Iterator[_Encoding]:
    """Each text's encoding, with the special tokens of the tokenizer itself, or with none but those in the text."""
    if not texts:
        return
    _keep_spaces_in_offsets(tokenizer)
    encoded = tokenizer(
        texts,
        add_special_tokens=special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        padding=False,
        truncation=False,
        verbose=False,
    )
    bos = tokenizer.bos_token_id
    for token_ids, spans, special in zip(
        encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"]
    ):
        # The mask marks what the tokenizer added, never a special token that stands in the text.
        content = np.flatnonzero(~np.array(special, bool))
        first, stop = (int(content[0]), int(content[-1]) + 1) if len(content) else (0, 0)
        written = not special_tokens and token_ids[:1] == [bos]  # a BOS that a chat template wrote
        yield _Encoding(
            np.array(token_ids[:stop], np.int64),
            np.array(spans[:stop], np.int64).reshape(-1, 2),
            int(written) if first == 0 else first,
        )


def _keep_spaces_in_offsets(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Stop byte-level tokenizers from trimming white space off the spans of tokens that cover it. Ids stay the same."""
    processor = tokenizer.backend_tokenizer.post_processor
    state = b"" if processor is None else processor.__getstate__()
    if b'"trim_offsets":true' in state:
        processor.__setstate__(state.replace(b'"trim_offsets":true', b'"trim_offsets":false'))
        tokenizer.backend_tokenizer.post_processor = processor


@dataclass(frozen=True, eq=False)
class _Tail:
    """A whole text with its scored tokens, not yet cut into windows.

    leading: special tokens that each window repeats.
    """

    sequence: ScoredSequence
    leading: int


def _tails(
    batch: list[tuple[str, str, str]],
    tokenizer: "PreTrainedTokenizerFast",
    tail_tokens: int | None,
    tail_bytes: int | None,
    chat_template: bool,
) -> list[_Tail]:
    prompts, continuations = [prompt for _, prompt, _ in batch], [continuation for _, _, continuation in batch]
    if chat_template:
        prompts = _chat_prompts(prompts, tokenizer)
        encodings = _encode_apart(prompts, continuations, tokenizer)
    else:
        texts = [prompt + continuation for prompt, continuation in zip(prompts, continuations)]
        encodings = _encode(texts, tokenizer, special_tokens=True)
    return [
        _tail(key, len(prompt), continuation, encoding, tail_tokens, tail_bytes)
        for (key, _, continuation), prompt, encoding in zip(batch, prompts, encodings)
    ]


def _encode_apart(
    prompts: list[str], continuations: list[str], tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[_Encoding]:
    """Each prompt's tokens and behind them those of its continuation, which no token joins, as in generation."""
    written = list(dict.fromkeys(prompts))  # the choices of a problem share their prompt
    in_front = dict(zip(written, _encode(written, tokenizer, special_tokens=False)))
    with _no_space_in_front(tokenizer):
        behind = list(_encode(continuations, tokenizer, special_tokens=False))
    for prompt, own in zip(prompts, behind):
        before = in_front[prompt]
        token_ids = np.concatenate([before.token_ids, own.token_ids])
        yield _Encoding(token_ids, np.concatenate([before.spans, own.spans + len(prompt)]), before.leading)


@contextmanager
def _no_space_in_front(tokenizer: "PreTrainedTokenizerFast") -> Iterator[None]:
    """Meanwhile the tokenizer puts no space in front of a text, as SentencePiece's kinds do: it goes on with another.

    Their " cat" and "cat" would else be the same tokens, and those of "cat" decode to " cat" behind a prompt.
    """
    backend = tokenizer.backend_tokenizer
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    backend.normalizer, backend.pre_tokenizer = (
        _without_prefix(part) for part in (backend.normalizer, backend.pre_tokenizer)
    )
    try:
        yield
    finally:
        backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer


def _without_prefix(part: "Normalizer | PreTokenizer | None") -> "Normalizer | PreTokenizer | None":
    """The normalizer or pre-tokenizer without what puts a space in front of a text; None where that is all of it."""
    state = None if part is None else _state_without_prefix(json.loads(part.__getstate__()))
    if state is not None:
        part.__setstate__(json.dumps(state).encode())
    return None if state is None else part


def _state_without_prefix(state: dict) -> dict | None:
    if state["type"] == "Prepend":
        return None
    without = {"prepend_scheme": "never", "add_prefix_space": False}
    state = state | {key: value for key, value in without.items() if key in state}
    for key in {"normalizers", "pretokenizers"} & state.keys():
        state[key] = [part for part in map(_state_without_prefix, state[key]) if part is not None]
    return state


def _tail(
    key: str,
    boundary: int,
    continuation: str,
    encoding: _Encoding,
    tail_tokens: int | None,
    tail_bytes: int | None,
) -> _Tail:
    """The scored tokens of a text whose continuation starts at the character `boundary`."""
    token_ids, stop = encoding.token_ids, len(encoding.token_ids)
    # A character cut over several tokens is in the span of each: it counts for the first of them, the others add no
    # bytes.
    ends = np.maximum.accumulate(encoding.spans[:, 1])
    # A second piece of the prompt's last character ends at the boundary; a second piece of the continuation's first one
    # ends past it.
    start = max(int(np.searchsorted(ends, boundary, side="right")), 1)
    characters = np.maximum(ends - boundary, 0)  # of the continuation, read with each token: (T,)
    read = _utf8_positions(continuation)[characters]  # bytes likewise
    if tail_tokens is not None:
        reaching = stop if tail_bytes is None else int(np.searchsorted(read, read[-1] - tail_bytes, side="right"))
        start = max(start, min(stop - tail_tokens, reaching))
    if start >= stop:
        raise InputError(
            f"{key}: no token is left to score; a solution needs a token that follows another, of the prompt or its own"
        )
    token_bytes = np.diff(read)[start - 1 :].astype(np.int32)
    return _Tail(ScoredSequence(key, token_ids, start, stop, token_bytes), encoding.leading)


def _utf8_positions(text: str) -> np.ndarray:
    """Number of UTF-8 bytes before each character of `text`, and in all: (len(text) + 1,)."""
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    return np.concatenate([[0], np.cumsum(lengths)])


def _windows(tail: _Tail, context: int, windowing: bool, window_stride: float) -> list[ScoredSequence]:
    """The windows of a text longer than `context`, in order; `tokenize` has the rule."""
    whole, stride = tail.sequence, max(int(window_stride * context), 1)
    if not windowing:
        raise InputError(
            f"{whole.key}: found {whole.stop} tokens of prompt and solution; the model's context holds {context}; "
            "set extraction.windowing: true, raise max_model_len or drop the solution"
        )
    if context - stride < max(tail.leading, 1):
        raise InputError(
            f"{whole.key}: a context of {context} tokens is too short to be read in windows that move by {stride} "
            "(window_stride); give more"
        )
    windows = []
    for first, start, stop in window_spans(whole.start, whole.stop, context, stride, tail.leading):
        leading = tail.leading if first else 0
        token_ids = np.concatenate([whole.token_ids[:leading], whole.token_ids[first:stop]])
        token_bytes = whole.token_bytes[start - whole.start : stop - whole.start]
        offset = first - leading
        windows.append(ScoredSequence(whole.key, token_ids, start - offset, stop - offset, token_bytes, offset))
    return windows


def window_spans(start: int, stop: int, context: int, stride: int, leading: int) -> list[tuple[int, int, int]]:
    """(first, start, stop) of the windows in which a text's tokens `start` to `stop` - 1 are scored, stop > context.

    A window reads the tokens from its `first` up to its `stop`, behind `leading` repeated ones if `first` is not 0, and
    scores those from its `start` on. All tokens below `context` are scored in one window, at most `stride` in each of
    the others.
    """
    behind = np.arange(max(start, context), stop)
    spans = [(0, start, context)] if start < context else []
    for part in np.array_split(behind, -(-len(behind) // stride)):
        end = int(part[-1]) + 1
        spans.append((end - context + leading, int(part[0]), end))
    return spans


def _require_known(
    key: str, token_ids: np.ndarray, tokenizer: "PreTrainedTokenizerFast", vocabulary: int | None
) -> None:
    """A tokenizer may have tokens that the model has no embedding for, such as those for images, but not use them."""
    largest = int(token_ids.max(initial=-1))
    if vocabulary is not None and largest >= vocabulary:
        raise InputError(
            f"{key}: found the token {tokenizer.convert_ids_to_tokens(largest)!r} with id {largest}, but "
            f"{_name(tokenizer)} has {vocabulary} embeddings (vocab_size in config.json); remove it from the text, or "
            "take the tokenizer that belongs to the model"
        )


def _require_round_trip(
    texts: list[tuple[str, str, str]],
    token_ids: list[np.ndarray],
    tokenizer: "PreTrainedTokenizerFast",
    chat_template: bool,
) -> None:
    """Raise InputError where tokens do not decode to (key, prompt, continuation), scored or not.

    Then the model would not read what was written: characters are unknown to the tokenizer, dropped, or changed. Of a
    prompt in a chat template only the text itself counts, without white space around it: what the template writes is no
    one's text. `token_ids` are without special tokens in front.
    """
    backend = tokenizer.backend_tokenizer
    # Behind another token: SentencePiece's decoders strip a space off the first one.
    front = backend.encode("a", add_special_tokens=False).ids
    in_front = backend.decode(front, skip_special_tokens=False)
    decoded = backend.decode_batch([front + ids.tolist() for ids in token_ids], skip_special_tokens=False)
    for (key, prompt, continuation), text in zip(texts, decoded):
        text, prompt = text.removeprefix(in_front), prompt.strip() if chat_template else prompt
        if chat_template:
            prompt_is_read = _is_read(prompt, text.removesuffix(continuation), tokenizer)
            all_is_read = prompt_is_read and text.endswith(continuation)
        else:
            all_is_read = _is_read(prompt, text, tokenizer, continuation)
            prompt_is_read = text.startswith((prompt, " " + prompt))
        if not all_is_read:
            part, wanted, found = "prompt", prompt, text
            if prompt_is_read:
                part, wanted, found = "solution", continuation, text[text.find(prompt) + len(prompt) :]
            who = f"the tokenizer of {_name(tokenizer)} does"
            if chat_template and not prompt_is_read:
                who = f"the tokenizer and the chat template of {_name(tokenizer)} do"
            raise InputError(f"{key}: {who} not give the {part} back: {_difference(part, wanted, found, tokenizer)}")


def _is_read(prompt: str, decoded: str, tokenizer: "PreTrainedTokenizerFast", continuation: str | None = None) -> bool:
    """Whether `decoded` has the prompt in it or, where a continuation is given, is prompt and continuation.

    Some tokenizers put a space in front of a text, and in front of what follows an added token: these may be more.
    """
    text = prompt + (continuation or "")
    if text in decoded if continuation is None else decoded in (text, " " + text):
        return True
    added = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, added))})" if added else "(?!)", prompt)
    pattern = "".join(re.escape(part) + " ?" * (place % 2) for place, part in enumerate(parts))
    if continuation is None:
        return re.search(pattern, decoded) is not None
    return re.fullmatch(f" ?{pattern}{re.escape(continuation)}", decoded) is not None


def _difference(part: str, text: str, decoded: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """What to tell of a text that is not in what its tokens decode to: the first place, why, and what would work."""
    same = bisect_right(range(1, len(text) + 1), False, key=lambda length: text[:length] not in decoded)
    # Where not even the first character is found, the texts are laid one upon the other from their ends.
    at = decoded.find(text[:same]) if same else len(decoded) - len(os.path.commonprefix([text[::-1], decoded[::-1]]))
    place = max(same - 5, 0)
    return (
        f"it has {text[place : place + 30]!r} where the tokens decode to {decoded[at + place : at + place + 30]!r}"
        f"{_normalisation(part, text, tokenizer)}; take a checkpoint with another tokenizer, or remove or replace "
        f"these characters in the {part}"
    )


def _normalisation(part: str, text: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """Says that the tokenizer normalises `text`, apart from SentencePiece's mark for a space, and to which form."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    normalised = text if normalizer is None else normalizer.normalize_str(text)
    if normalised.replace("\u2581", " ").strip() == text.replace("\u2581", " ").strip():
        return ""
    forms = [form for form in ("NFC", "NFKC") if unicodedata.normalize(form, text) != text]
    same = [form for form in forms if unicodedata.normalize(form, text) == normalised]
    return " (it normalises the text" + (f" to Unicode {same[0]}: write the {part} so)" if same else ")")
