"""Texts in tokens, whose tail is scored.

This must be right: which tokens belong to a solution, and how many of its bytes each of them covers.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from proxycast.options import InputError, library_errors
from proxycast.solutions.chat_template import chat_prompts, tokenizer_name, writes_space_before_answer
from proxycast.solutions.round_trip import require_round_trip

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


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

    With `tail_bytes` all tokens that reach into its last `tail_bytes` UTF-8 bytes are scored, too, to compare models
    with other tokenizers on the same span of text (`proxy_formulas.tails` takes the two apart).

    A base model reads one tokenisation, not two put together. Its tokens may join the end of the prompt and the start
    of the continuation: such a token is scored (our choice) and counts the bytes of the continuation alone. Special
    tokens that the tokenizer puts in front (BOS) stay, those that it puts behind (EOS) go.

    `chat_template`: the prompt goes through the tokenizer's chat template, which writes the special tokens. A chat
    model answers behind the template's tokens, so the continuation is tokenised apart, without a space in front.
    `leading_space`: what to do with the single space in front of a continuation that was written for base models ("
    Paris"). "strip" removes it, unless the template has a space in front of an answer, as Llama 2's does. Other white
    space stays. The log counts these continuations, and for base models those whose first word joins the prompt's end.
    None, for what a model wrote itself: "keep", without the log.

    `windowing`: a text of more than `context` tokens is read in windows (`_windows`); without it, it is an error.

    Raises InputError, naming the key, for a text without a token to score, whose tokens do not decode to prompt and
    continuation, or with a token id of `vocabulary` (the number of embeddings, None: any) or above.
    """
    _require_fast(tokenizer)
    space_in_template = chat_template and writes_space_before_answer(tokenizer)
    given = texts = list(texts)
    if chat_template and leading_space == "strip" and not space_in_template:
        texts = [(key, prompt, text[1:] if _has_leading_space(text) else text) for key, prompt, text in texts]
    batches = (texts[first : first + batch_size] for first in range(0, len(texts), batch_size))
    checks = tail_tokens, tail_bytes, chat_template, vocabulary
    tails = [tail for batch in batches for tail in _tails(batch, tokenizer, *checks)]
    sequences = [window for tail in tails for window in _windows(tail, context, windowing, window_stride)]
    if leading_space is not None:
        _log_leading_spaces(given, space_in_template or not chat_template, chat_template, leading_space)
    longer = [tail.sequence.key for tail in tails if tail.sequence.stop > context]
    if longer:
        log.warning(
            "%d of %d texts are longer than the model's context of %d tokens and are read in windows, first %s",
            *(len(longer), len(texts), context, longer[0]),
        )
    return sequences


def _log_leading_spaces(
    texts: list[tuple[str, str, str]], needs_space: bool, chat_template: bool, leading_space: Literal["strip", "keep"]
) -> None:
    """Tell of the texts that lack a leading space that they need, or have one too many."""
    if needs_space:
        keys = [k for k, prompt, text in texts if _begins_with_word(text) and (chat_template or _ends_word(prompt))]
    else:
        keys = [key for key, _, text in texts if _has_leading_space(text)]
    if not keys:
        return
    these, first = f"{len(keys)} of {len(texts)} texts", f"first {keys[0]}"
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
    prompts: list[str], tokenizer: "PreTrainedTokenizerFast", chat_template: bool = False, vocabulary: int | None = None
) -> list[np.ndarray]:
    """Token ids (int64) of each prompt, ready to be continued: special tokens in front stay, those behind go.

    Raises InputError, quoting the prompt, where `tokenize` would.
    """
    _require_fast(tokenizer)
    texts = chat_prompts(prompts, tokenizer) if chat_template else prompts
    with library_errors(f"{tokenizer_name(tokenizer)}: the tokenizer fails at one of the prompts"):
        encoded = list(_encode(texts, tokenizer, special_tokens=not chat_template))
    named = [(f"prompt {prompt[:60]!r}", prompt, "") for prompt in prompts]
    for (key, _, _), encoding in zip(named, encoded):
        _require_known(key, encoding.token_ids, tokenizer, vocabulary)
    require_round_trip(named, [e.token_ids[e.leading :] for e in encoded], tokenizer, chat_template)
    return [encoding.token_ids for encoding in encoded]


def _require_fast(tokenizer: "PreTrainedTokenizerFast") -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} of {tokenizer_name(tokenizer)}: a slow tokenizer, "
            "which knows no character offsets; give a folder with a tokenizer.json"
        )


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
    vocabulary: int | None,
) -> list[_Tail]:
    """The scored tokens of some texts. Raises InputError, naming the key, where they do not decode to the text."""
    prompts, solutions = [prompt for _, prompt, _ in batch], [solution for _, _, solution in batch]
    with library_errors(
        f"{tokenizer_name(tokenizer)}: the tokenizer fails at one of the texts {batch[0][0]} to {batch[-1][0]}"
    ):
        if chat_template:
            prompts = chat_prompts(prompts, tokenizer)
            encodings = _encode_apart(prompts, solutions, tokenizer)
        else:
            whole = [prompt + solution for prompt, solution in zip(prompts, solutions)]
            encodings = _encode(whole, tokenizer, special_tokens=True)
        tails = [
            _tail(key, len(prompt), solution, encoding, tail_tokens, tail_bytes)
            for (key, _, solution), prompt, encoding in zip(batch, prompts, encodings)
        ]
        for tail in tails:
            _require_known(tail.sequence.key, tail.sequence.token_ids, tokenizer, vocabulary)
        own = [tail.sequence.token_ids[tail.leading :] for tail in tails]
        require_round_trip(batch, own, tokenizer, chat_template)
    return tails


def _encode_apart(
    prompts: list[str], continuations: list[str], tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[_Encoding]:
    """Each prompt's tokens, then those of its continuation, as in generation: no token joins the two."""
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
    """The tokenizer puts no space in front of a text, as SentencePiece's kinds do: the text continues another.

    Otherwise " cat" and "cat" would be the same tokens, and those of "cat" would decode to " cat" behind a prompt.
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
    """The normalizer or pre-tokenizer without what puts a space in front of a text; None if nothing is left."""
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
    key: str, boundary: int, continuation: str, encoding: _Encoding, tail_tokens: int | None, tail_bytes: int | None
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
    """The windows in which a text is read, in order; a text of at most `context` tokens has one.

    The first window is the beginning of the text and scores its first `context` tokens. The tokens behind are cut into
    as few equal parts as have at most `window_stride` of the context. Each part ends a window, which repeats the
    special tokens in front and holds as many tokens as fit. So every token is scored once and sees all tokens before
    it, or at least 1 - `window_stride` of the context (`stride` in
    https://huggingface.co/docs/transformers/perplexity). A window that would score nothing is left out.
    """
    whole, stride = tail.sequence, max(int(window_stride * context), 1)
    if whole.stop <= context:
        return [whole]
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

    A window reads the tokens from `first` to `stop`, behind `leading` repeated ones if `first` is not 0, and scores
    those from its `start` on: all below `context` in one window, at most `stride` in each of the others.
    """
    behind = np.arange(max(start, context), stop)
    spans = [(0, start, context)] if start < context else []
    for part in np.array_split(behind, -(-len(behind) // stride)):
        end = int(part[-1]) + 1
        spans.append((end - context + leading, int(part[0]), end))
    return spans


def require_known(sequences: Iterable[ScoredSequence], tokenizer: "PreTrainedTokenizerFast", vocabulary: int) -> None:
    """Raise InputError, naming the key, for a token id of `vocabulary` (the number of embeddings) or above."""
    for sequence in sequences:
        _require_known(sequence.key, sequence.token_ids, tokenizer, vocabulary)


def _require_known(
    key: str, token_ids: np.ndarray, tokenizer: "PreTrainedTokenizerFast", vocabulary: int | None
) -> None:
    """A tokenizer may have tokens that the model has no embedding for, such as those for images, but not use them."""
    largest = int(token_ids.max(initial=-1))
    if vocabulary is not None and largest >= vocabulary:
        raise InputError(
            f"{key}: found the token {tokenizer.convert_ids_to_tokens(largest)!r} with id {largest}, but "
            f"{tokenizer_name(tokenizer)} has {vocabulary} embeddings (vocab_size in config.json); remove it "
            "from the text, or take the tokenizer that belongs to the model"
        )
