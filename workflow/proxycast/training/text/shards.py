"""Tokens of a source of text on disk, and the sequences of a training run drawn from them.

A source is tokenised once, as far as the largest run needs, into shards: little-endian integers, documents one behind
the other with the end-of-text token after each. Training maps them into memory. Seed and step decide which sequence is
read, so a stopped run goes on without any state of the data.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from proxycast.options import InputError, library_errors
from proxycast.tables import MANIFEST, atomic, fingerprint, read_json, write_json
from proxycast.weights.tokenizer import read_tokenizer

log = logging.getLogger(__name__)

SHARD_TOKENS = 2**27  # 256 MiB of two bytes each
TOKEN_DTYPES = ("<u2", "<u4")


@dataclass
class Shard:
    """What a file of tokens holds; kept beside it as JSON, so that an interrupted job goes on behind it."""

    name: str
    tokens: int
    documents: int
    text_bytes: int
    made_from: str

    def add(self, tokens: np.ndarray, batch: list[str]) -> None:
        self.tokens += len(tokens)
        self.documents += len(batch)
        self.text_bytes += sum(len(text.encode()) for text in batch)


def tokenize_source(
    batches: Iterator[list[str]],
    tokenizer: Path,
    folder: Path,
    tokens_needed: int,
    end_of_text: int,
    made_from: str,
    shard_tokens: int = SHARD_TOKENS,
) -> dict:
    """Write the tokens of `batches` of documents into shards in `folder`, and return the manifest, written last.

    Stops after the batch with which `tokens_needed` is reached. `tokenizer` is a tokenizer.json; it adds no special
    tokens, and what looks like one in a document stays text. `end_of_text` is the id behind each document. Token ids
    take two bytes for a vocabulary of at most 65536 tokens, else four.

    `made_from` is the fingerprint of the documents. Finished shards with the same fingerprint and tokenizer stay;
    `batches` starts at the first document all the same, and documents in those shards are skipped.
    """
    encoder, vocabulary = _read_encoder(tokenizer, end_of_text)
    dtype = np.dtype("<u2" if vocabulary <= 2**16 else "<u4")
    made_from = fingerprint(made_from, tokenizer, end_of_text)
    shards = _finished_shards(folder, dtype, made_from)
    done = sum(shard.tokens for shard in shards)
    batches = _from_document(batches, sum(shard.documents for shard in shards))
    (folder / MANIFEST).unlink(missing_ok=True)
    with tqdm(total=tokens_needed, initial=done, unit="token", unit_scale=True, mininterval=5) as bar:
        while done < tokens_needed and (first := next(batches, None)) is not None:
            shard = Shard(f"{len(shards):05d}.bin", 0, 0, 0, made_from)
            with atomic(folder / shard.name) as temporary, temporary.open("wb") as file:
                for batch in itertools.chain([first], batches):
                    with library_errors(
                        f"{tokenizer}: the tokenizer fails behind document {shard.documents} of {shard.name}"
                    ):
                        tokens = _encode_documents(encoder, batch, end_of_text, dtype)
                    tokens.tofile(file)
                    shard.add(tokens, batch)
                    bar.update(len(tokens))
                    if shard.tokens >= min(shard_tokens, tokens_needed - done):
                        break
            write_json(asdict(shard), (folder / shard.name).with_suffix(".json"))
            shards.append(shard)
            done += shard.tokens
    manifest = {
        "tokens": done,
        "documents": sum(shard.documents for shard in shards),
        "text_bytes": sum(shard.text_bytes for shard in shards),
        "dtype": dtype.str,
        "vocabulary": vocabulary,
        "end_of_text": end_of_text,
        "tokenizer": fingerprint(tokenizer),
        "made_from": made_from,
        "content": fingerprint(*(folder / shard.name for shard in shards)),
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(manifest, folder / MANIFEST)
    log.info("%s: %d tokens of %d documents in %d shards", folder, done, manifest["documents"], len(shards))
    return manifest


def _read_encoder(path: Path, end_of_text: int) -> tuple[Tokenizer, int]:
    """The tokenizer in a tokenizer.json, for which special tokens in a text are plain text, and its largest id + 1."""
    tokenizer = read_tokenizer(path)
    tokenizer.encode_special_tokens = True
    vocabulary = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    if not 0 <= end_of_text < vocabulary:
        raise InputError(f"{path}: end-of-text token {end_of_text} is not among its ids 0 to {vocabulary - 1}")
    return tokenizer, vocabulary


def _encode_documents(tokenizer: Tokenizer, batch: list[str], end_of_text: int, dtype: np.dtype) -> np.ndarray:
    """The tokens of all documents of `batch` in one array, each document followed by `end_of_text`."""
    encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    tokens = np.full(sum(map(len, encodings)) + len(encodings), end_of_text, dtype)
    start = 0
    for encoding in encodings:
        tokens[start : start + len(encoding)] = encoding.ids
        start += len(encoding) + 1
    return tokens


def _finished_shards(folder: Path, dtype: np.dtype, made_from: str) -> list[Shard]:
    """The leading shards in `folder` that are whole and `made_from` the same; other shards are deleted."""
    shards: list[Shard] = []
    for record in sorted(folder.glob("[0-9]*.json")):
        found = read_json(record)
        if set(found) != set(Shard.__dataclass_fields__) or not _is_shard(found, len(shards)):
            break
        shard = Shard(**found)
        if record.stem != f"{len(shards):05d}" or shard.made_from != made_from:
            break
        if not all(type(count) is int and count >= 0 for count in (shard.documents, shard.text_bytes)):
            break
        if not _is_whole_shard(folder / shard.name, shard.tokens, dtype):
            break
        shards.append(shard)
    kept = {Path(shard.name).stem for shard in shards}
    for path in [*folder.glob("[0-9]*.bin"), *folder.glob("[0-9]*.json"), *folder.glob(".[0-9]*.bin")]:
        if path.stem not in kept:
            path.unlink()
    if shards:
        log.info("%s: going on behind %d finished shards", folder, len(shards))
    return shards


def _is_shard(found: object, number: int) -> bool:
    """Whether this is a record of the shard with this number, whose name becomes a path."""
    tokens = found.get("tokens") if isinstance(found, dict) else None
    return type(tokens) is int and tokens >= 0 and found.get("name") == f"{number:05d}.bin"


def _is_whole_shard(path: Path, tokens: int, dtype: np.dtype) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == tokens * dtype.itemsize


def _from_document(batches: Iterator[list[str]], first: int) -> Iterator[list[str]]:
    """`batches` without the first `first` documents."""
    for batch in batches:
        if first < len(batch):
            yield batch[first:]
        first = max(0, first - len(batch))


class Tokens:
    """The tokens of one source, mapped into memory from shards in `folder`. InputError if they are not whole."""

    def __init__(self, folder: Path):
        self.folder = folder
        manifest = _read_manifest(folder)
        self.tokens: int = sum(shard["tokens"] for shard in manifest["shards"])
        self.tokenizer: str = manifest["tokenizer"]
        dtype = np.dtype(manifest["dtype"])
        self.ends = np.cumsum([shard["tokens"] for shard in manifest["shards"]])
        for path, length in torn_shards(folder, manifest).items():
            found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
            raise InputError(
                f"{path}: found {found}, but {MANIFEST} promises {length} bytes; run the same command again, which "
                "tokenises again what is missing"
            )
        paths = [folder / shard["name"] for shard in manifest["shards"]]
        # As plain arrays, because slicing a memmap itself is slow.
        self.shards = [np.memmap(path, dtype, "r").view(np.ndarray) for path in paths]

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out` with the tokens from `start` on, across shards where they meet."""
        shard = int(np.searchsorted(self.ends, start, side="right"))
        filled = 0
        while filled < len(out):
            begin = start + filled - (self.ends[shard] - len(self.shards[shard]))
            part = self.shards[shard][begin : begin + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            shard += 1


def torn_shards(folder: Path, manifest: dict) -> dict[Path, int]:
    """Shards of a manifest that are not whole in `folder` -> the right size. ValueError for another manifest."""
    if not _lists_shards(manifest):
        raise ValueError("no list of shards as it is written here")
    dtype = np.dtype(manifest["dtype"])
    shards = {folder / shard["name"]: shard["tokens"] for shard in manifest["shards"]}
    return {p: tokens * dtype.itemsize for p, tokens in shards.items() if not _is_whole_shard(p, tokens, dtype)}


def _read_manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{path}: no such file; it is written when the text has been tokenised: let that job finish")
    manifest = read_json(path)
    if not _lists_shards(manifest) or not isinstance(manifest.get("tokenizer"), str):
        raise InputError(f"{path}: no list of shards as it is written here; delete {folder} and tokenise again")
    return manifest


def _lists_shards(manifest: dict) -> bool:
    shards = manifest.get("shards")
    is_list = isinstance(shards, list) and all(_is_shard(shard, number) for number, shard in enumerate(shards))
    return is_list and manifest.get("dtype") in TOKEN_DTYPES


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Split `total` sequences by `weights`: each share is exact but for less than one sequence (largest remainders)."""
    exact = np.asarray(weights, float) / math.fsum(weights) * total
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: total - counts.sum()]] += 1
    return counts.tolist()


class TokenStream:
    """The sequences of a training run: `batch(step)` for any step, in any order.

    A source is cut into consecutive blocks of `sequence_length` tokens (documents run on from block to block; the rest
    at its end is unused). In each epoch of a source every block comes once, in an order of its own. Over the run, each
    source gives its share of the sequences, at random places. All follows from `seed` and the numbers here; memory is 6
    bytes for a sequence of the run.

    Raises InputError when a source would be repeated more than `max_epochs` times.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        weights: Sequence[float],
        steps: int,
        batch_sequences: int,
        sequence_length: int,
        seed: int,
        max_epochs: float = 4,
    ):
        self.steps, self.batch_sequences, self.sequence_length = steps, batch_sequences, sequence_length
        self.sources = [Tokens(folder) for folder in folders]
        if len({source.tokenizer for source in self.sources}) > 1:
            raise InputError(f"{', '.join(map(str, folders))}: tokenised by different tokenizers; tokenise them again")
        counts = shares(weights, steps * batch_sequences)
        self._source = np.repeat(np.arange(len(folders), dtype=np.uint16), counts)
        np.random.default_rng([seed, len(folders)]).shuffle(self._source)
        self._block = np.empty(len(self._source), np.uint32)
        for number, (source, count) in enumerate(zip(self.sources, counts)):
            blocks = source.tokens // sequence_length
            if count > max_epochs * blocks:
                raise InputError(
                    f"{source.folder}, source {number} of the mixture: found {source.tokens} tokens, but its share of "
                    f"the run is {count * sequence_length}, more than {max_epochs:g} epochs; give it more text, a "
                    "smaller weight or a larger max_epochs"
                )
            self._block[self._source == number] = _order(blocks, count, (seed, number))

    def batch(self, step: int) -> np.ndarray:
        """The sequences of `step`, counted from 0: int64 (batch_sequences, sequence_length)."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is not among the {self.steps} steps of the run")
        tokens = np.empty((self.batch_sequences, self.sequence_length), np.int64)
        first = step * self.batch_sequences
        for row, sequence in enumerate(range(first, first + self.batch_sequences)):
            source = self.sources[self._source[sequence]]
            source.read(int(self._block[sequence]) * self.sequence_length, tokens[row])
        return tokens


def _order(blocks: int, count: int, seed: tuple[int, int]) -> np.ndarray:
    """`count` numbers of blocks: permutations of all of them, one for each epoch, the last cut off."""
    epochs = range(math.ceil(count / blocks)) if count else ()
    order = [np.random.default_rng([*seed, epoch]).permutation(blocks) for epoch in epochs]
    return np.concatenate([np.empty(0, int), *order])[:count]
