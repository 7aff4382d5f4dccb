"""A model folder's tokenizer, loaded once for a whole sweep, and what turns generated tokens into text."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from proxycast.engines.model_folder import TOKENIZER_FILES, json_object, read_config, renamed_config
from proxycast.options import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast


class Written(NamedTuple):
    """What a model wrote after a prompt. `finished`: it ended by itself or at a stop string, not at a limit."""

    text: str
    finished: bool


class TokenizerCache:
    """The tokenizer of the folder that was asked for last: the same object as long as its files are the same."""

    def __init__(self, trust_remote_code: bool = False, architecture: str | None = None):
        self._trust_remote_code, self._architecture = trust_remote_code, architecture
        self._tokenizer = self._digests = None

    def load(self, folder: Path) -> "PreTrainedTokenizerFast":
        """Raises InputError, naming the folder, if `transformers` cannot read the tokenizer."""
        from transformers import AutoTokenizer

        files = [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]
        digests = [(path.name, hashlib.sha256(path.read_bytes()).digest()) for path in files]
        if digests != self._digests:
            self._digests = None
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(
                    folder,
                    config=self._config(folder),
                    local_files_only=True,
                    trust_remote_code=self._trust_remote_code,
                )
            except (OSError, ValueError, KeyError) as error:
                raise InputError(f"{folder}: transformers cannot read this tokenizer: {error}") from error
            self._digests = digests
        return self._tokenizer

    def _config(self, folder: Path) -> "PretrainedConfig | None":
        """`transformers` looks at a model's config for its tokenizer, too; None where it may read it by itself."""
        if not (folder / "config.json").is_file() or renamed_config(folder, self._architecture) is None:
            return None
        return read_config(folder, self._trust_remote_code, self._architecture)


def end_tokens(folder: Path, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Token ids that end a text: the tokenizer's own, and those in the folder's generation_config.json.

    A post-trained model often has one for the end of a turn beside the one for the end of a text.
    """
    path = folder / "generation_config.json"
    ends = json_object(path).get("eos_token_id") if path.is_file() else None
    ends = ends if isinstance(ends, list) else [ends]
    return [end for end in dict.fromkeys([tokenizer.eos_token_id, *ends]) if end is not None]


def continuations(
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[np.ndarray],
    token_ids: Sequence[list[int]],
    ends: Collection[int],
    stop: Sequence[str] = (),
) -> list[Written]:
    """Generated tokens as the texts that they add to their prompts, each up to an end token or a `stop` string.

    They are decoded behind their prompt: SentencePiece's decoders strip a space off the first token of all.
    """
    found = []
    for prompt, ids in zip(prompts, token_ids):
        length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        whole, in_front = (
            tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for tokens in (prompt.tolist() + ids[:length], prompt.tolist())
        )
        text = whole.removeprefix(in_front)
        stopped = min((text.split(mark)[0] for mark in stop), key=len, default=text)
        found.append(Written(stopped, length < len(ids) or len(stopped) < len(text)))
    return found
