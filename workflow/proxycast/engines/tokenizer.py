"""A model folder's tokenizer, loaded once for a whole sweep, and what turns generated tokens into text."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxycast.engines.model_folder import TOKENIZER_FILES
from proxycast.options import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TokenizerCache:
    """The tokenizer of the folder that was asked for last: the same object as long as its files are the same."""

    def __init__(self, trust_remote_code: bool = False):
        self._trust_remote_code = trust_remote_code
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
                    folder, local_files_only=True, trust_remote_code=self._trust_remote_code
                )
            except (OSError, ValueError, KeyError) as error:
                raise InputError(f"{folder}: transformers cannot read this tokenizer: {error}") from error
            self._digests = digests
        return self._tokenizer


def continuation_texts(
    tokenizer: "PreTrainedTokenizerFast", token_ids: Sequence[list[int]], stop: Sequence[str] = ()
) -> list[str]:
    """Generated tokens as texts, each ended before the end-of-text token and the first of the `stop` strings."""
    eos = tokenizer.eos_token_id
    texts = tokenizer.batch_decode(
        [ids[: ids.index(eos)] if eos in ids else ids for ids in token_ids],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [min((text.split(mark)[0] for mark in stop), key=len, default=text) for text in texts]
