"""A corpus of text as a whole: each source of its mixture tokenised into a folder of its own, and read by weight."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proxycast.config.training import Text
from proxycast.options import InputError, library_errors
from proxycast.tables import MANIFEST, fingerprint, read_json
from proxycast.training.text.documents import documents, documents_fingerprint
from proxycast.training.text.shards import TokenStream, tokenize_source, torn_shards

# More than a run reads: sequences are whole, and shares are rounded up.
MARGIN_TOKENS = 2**16


def source_folders(folder: Path, text: Text) -> list[Path]:
    """Where the shards of each source of the mixture lie, below the folder of the corpus."""
    return [folder / f"source{number}" for number in range(len(text.mixture))]


def tokenize_text(
    text: Text, downloaded: Sequence[Path], tokenizer: Path, folder: Path, tokens: int, end_of_text: int, code: str
) -> list[dict]:
    """Tokenise every source of a mixture for training runs of `tokens` tokens -> the sources' manifests.

    Only the share of each source is read. `downloaded`: for each source, the folder of files from the hub; `code`:
    fingerprint of the code that tokenises. Raises InputError of `documents` and `tokenize_source`, with the source's
    number.
    """
    manifests = []
    for number, (source, own) in enumerate(zip(text.mixture, source_folders(folder, text))):
        try:
            paths = source.paths(downloaded[number])
            made_from = fingerprint(documents_fingerprint(paths, source), code)
            needed = math.ceil(source.weight * tokens * (1 + 1e-6)) + MARGIN_TOKENS
            manifests.append(tokenize_source(documents(paths, source), tokenizer, own, needed, end_of_text, made_from))
        except InputError as error:
            raise InputError(f"text.mixture[{number}]: {error}") from None
    return manifests


def corpus_fingerprint(manifest: Path) -> str:
    """Changes with the tokens of a corpus, whatever files they were made from. `manifest`: of `tokenize_text`."""
    with library_errors(f"{manifest}: no list of sources as it is written here; remove it and run again"):
        return fingerprint([source["content"] for source in json.loads(manifest.read_text())])


def lost_parts(manifest: Path) -> list[Path]:
    """What the manifest of `tokenize_text` promises and is not there whole: shards, sources' manifests, or itself."""
    try:
        sources = json.loads(manifest.read_text())
        folders = [manifest.parent / f"source{number}" for number in range(len(sources))]
        lost = [shard for folder, source in zip(folders, sources) for shard in torn_shards(folder, source)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [manifest]
    return lost + [folder / MANIFEST for folder in folders if not read_json(folder / MANIFEST)]


def text_stream(folder: Path, text: Text, tokens: int, sequence_length: int, seed: int) -> np.ndarray:
    """`tokens` token ids of a corpus for the miniature suite, which reads one long stream in the order of the seed."""
    sequences = math.ceil(tokens / sequence_length)
    weights = [source.weight for source in text.mixture]
    folders = source_folders(folder, text)
    return TokenStream(folders, weights, 1, sequences, sequence_length, seed, text.max_epochs).batch(0).ravel()[:tokens]
