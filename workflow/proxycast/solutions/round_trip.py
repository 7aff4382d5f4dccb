"""Whether tokens decode to the text that they were made from; if not, where they differ and why."""

import os
import re
import unicodedata
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from proxycast.options import InputError
from proxycast.solutions.chat_template import tokenizer_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def require_round_trip(
    texts: list[tuple[str, str, str]],
    token_ids: list[np.ndarray],
    tokenizer: "PreTrainedTokenizerFast",
    chat_template: bool,
) -> None:
    """Raise InputError where tokens do not decode to (key, prompt, continuation), scored or not.

    Then the tokenizer does not know some characters, drops or changes them. Of a prompt in a chat template only the
    text itself counts, stripped. `token_ids` have no special tokens in front.
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
            who = f"the tokenizer of {tokenizer_name(tokenizer)} does"
            if chat_template and not prompt_is_read:
                who = f"the tokenizer and the chat template of {tokenizer_name(tokenizer)} do"
            raise InputError(f"{key}: {who} not give the {part} back: {_difference(part, wanted, found, tokenizer)}")


def _is_read(prompt: str, decoded: str, tokenizer: "PreTrainedTokenizerFast", continuation: str | None = None) -> bool:
    """Whether `decoded` contains the prompt or, with a continuation, is prompt and continuation.

    Some tokenizers add a space in front of a text and after an added token.
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
    """How a text and its decoded tokens differ: the first place, why, and what would work."""
    same = bisect_right(range(1, len(text) + 1), False, key=lambda length: text[:length] not in decoded)
    # If not even the first character is found, the texts are aligned at their ends.
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
