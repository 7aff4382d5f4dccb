"""A model folder's tokenizer, the same for training, scoring and generation, and generated tokens as text.

tokenizer.json is the tokenizer. For some classes (Llama, GPT-2, Qwen2) `transformers` 5 takes only vocabulary and
merges from it and builds the rest itself, which changes the tokens of a text
(https://github.com/huggingface/transformers/issues/45488). So only names are taken from the class. vLLM gets token ids,
and lm-eval this tokenizer.
"""

import hashlib
import logging
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE

from proxycast.options import InputError, library_errors
from proxycast.tables import fingerprint
from proxycast.weights.model_files import json_object, tokenizer_files, tokenizer_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

# Text that pre-tokenizers and normalizers treat in their own ways: digits, white space, quotes, letters of all kinds.
SAMPLE = """The cat's 12345678 + x_1 >= 3.14!?\n\n\n\tif n1 == 10:
        re-turn 'ÉcOle e\u0301 ½ 日本語 안녕 😀'  # DON'T\r\n  a   b """


class Written(NamedTuple):
    """What a model wrote after a prompt. `finished`: it ended by itself or at a stop string, not at a limit."""

    text: str
    finished: bool


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, without the dropout of BPE, truncation and padding: always the same tokens.

    Raises InputError for a file that cannot be read.
    """
    with library_errors(f"{path}: no readable tokenizer; copy the file again", may_quote=False):
        tokenizer = Tokenizer.from_file(str(path))
        if isinstance(tokenizer.model, BPE):
            tokenizer.model.dropout = None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for special_tokens in (False, True):
            tokenizer.decode(tokenizer.encode("", add_special_tokens=special_tokens).ids)
    return tokenizer


@lru_cache(maxsize=1024)
def tokens_fingerprint(path: Path) -> tuple[str, str]:
    """16 hexadecimal digits each for the tokens in a tokenizer.json with their ids, and for how it splits SAMPLE."""
    tokenizer = read_tokenizer(path)
    return fingerprint(tokenizer.get_vocab()), fingerprint(tokenizer.encode(SAMPLE, add_special_tokens=False).ids)


def tokenizer_fingerprints(folders: Iterable[str]) -> list[str]:
    """The distinct `tokens_fingerprint` of model folders; none if one is gone, as downloads are: not all are known."""
    files = [Path(folder, "tokenizer.json") for folder in folders]
    if not all(path.is_file() for path in files):
        return []
    return sorted({"-".join(tokens_fingerprint(path)) for path in files})


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """`read_tokenizer` of a model folder, with the chat template and the names of special tokens from its other files.

    Nothing else in them counts: no class and, as in `transformers` 5, no `add_bos_token`. Names of unknown tokens are
    left out. Raises InputError, naming the folder, if tokenizer.json is missing or a file cannot be read.
    """
    file = read_tokenizer(tokenizer_json(folder))
    tokenizer = _settings(folder)
    tokenizer._tokenizer = file
    tokenizer.split_special_tokens = tokenizer.clean_up_tokenization_spaces = False
    if tokenizer.bos_token is None and tokenizer.eos_token is None:
        _take_names_of_the_class(folder, tokenizer)
    for name, token in tokenizer.special_tokens_map.items():
        if file.token_to_id(token) is None:
            log.warning("%s: its %s %r is no token of tokenizer.json and is left out", folder, name, token)
            setattr(tokenizer, name, None)
    _warn_of_another_bos(folder, tokenizer)
    return tokenizer


def _settings(folder: Path) -> "PreTrainedTokenizerFast":
    """What `transformers` makes of the other files, around an empty tokenizer, which loads in seconds less."""
    from transformers import PreTrainedTokenizerFast

    with TemporaryDirectory(prefix="proxycast_") as name:
        for path in tokenizer_files(folder):
            if path.name != "tokenizer.json":
                (Path(name) / path.name).symlink_to(path.resolve())
        Tokenizer(BPE()).save(str(Path(name) / "tokenizer.json"))
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name, local_files_only=True)
        except Exception as error:  # whatever the files hold
            raise InputError(f"{folder}: transformers cannot read this tokenizer: {error}") from error
    tokenizer.name_or_path = str(folder)
    return tokenizer


def _take_names_of_the_class(folder: Path, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Name BOS and EOS as the tokenizer's class does: GPT-2's folder on the hub names them nowhere."""
    from transformers import AutoTokenizer

    try:
        of_class = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # no class, or one that cannot read the file
        return
    for name in ("bos_token", "eos_token"):
        if (token := getattr(of_class, name)) in tokenizer.get_vocab():
            setattr(tokenizer, name, token)


def _warn_of_another_bos(folder: Path, tokenizer: "PreTrainedTokenizerFast") -> None:
    path = folder / "tokenizer_config.json"
    wanted = json_object(path).get("add_bos_token") if path.is_file() else None
    if wanted is None or tokenizer.bos_token is None:
        return
    written = tokenizer.bos_token_id in tokenizer.backend_tokenizer.encode("").ids
    if written != wanted:
        log.warning(
            "%s: tokenizer_config.json has add_bos_token %s, but tokenizer.json puts %s in front of a text; the latter "
            "counts, as in transformers 5",
            *(folder, str(wanted).lower(), tokenizer.bos_token if written else f"no {tokenizer.bos_token}"),
        )


def end_of_text(folder: Path) -> int:
    """Id of the token that ends each document. Raises InputError for a tokenizer that names none."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.eos_token is None:
        raise InputError(f"{folder}: this tokenizer names no eos_token; name one in tokenizer_config.json")
    return tokenizer.eos_token_id


class TokenizerCache:
    """Keeps the tokenizer of the last folder: the same object as long as its files are the same."""

    def __init__(self):
        self._tokenizer = self._digests = None

    def load(self, folder: Path) -> "PreTrainedTokenizerFast":
        """`load_tokenizer`, loaded once for a whole sweep."""
        digests = [(path.name, hashlib.sha256(path.read_bytes()).digest()) for path in tokenizer_files(folder)]
        if digests != self._digests:
            self._digests = None
            self._tokenizer = load_tokenizer(folder)
            self._digests = digests
        return self._tokenizer


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

    They are decoded behind their prompt, because SentencePiece's decoders strip a leading space.
    """
    found = []
    for prompt, ids in zip(prompts, token_ids):
        length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        whole, in_front = (
            tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for tokens in (prompt.tolist() + ids[:length], prompt.tolist())
        )
        text = whole.removeprefix(in_front)
        stopped = min((text.split(end)[0] for end in stop), key=len, default=text)
        found.append(Written(stopped, length < len(ids) or len(stopped) < len(text)))
    return found
