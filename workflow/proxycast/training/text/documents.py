"""The documents of a source of text, in batches of a few megabytes, however large the files are.

Files are .jsonl (or .json, one object a line) and .txt, also compressed (.gz, .zst), and .parquet. Each becomes small
polars frames with the columns that the source names, so that one condition (`where`) filters them all.
"""

import gzip
import io
import logging
import random
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from backports import zstd

from proxycast.config.training import Source
from proxycast.options import InputError, json_value, told_names, told_reason
from proxycast.tables import UNREADABLE, fingerprint, input_states

log = logging.getLogger(__name__)

BATCH_BYTES = 4 << 20  # tokenising briefly takes about 100 times as much memory
PIECE_BYTES = 1 << 20
SLICE_BYTES = 32 << 20
LINE_BYTES = 64 << 20  # JSON of one document: many times the longest book


@dataclass
class Counts:
    """What became of the documents that were read so far."""

    read: int = 0
    filtered: int = 0
    empty: int = 0

    def __str__(self) -> str:
        kept = self.read - self.filtered - self.empty
        return (
            f"{self.read} documents read, {kept} kept, {self.filtered} dropped by `where`, {self.empty} dropped "
            "because they hold no text"
        )


def documents(
    paths: Sequence[Path], source: Source, seed: int = 0, counts: Counts | None = None
) -> Iterator[list[str]]:
    """Yield the documents of `paths` in batches of at most 4 MiB of UTF-8; a longer document is a batch of its own.

    Files come in an order shuffled by `seed`, because a reader may stop early; documents keep their order within a
    file. Empty ones are left out. `counts`, if given, is kept up to date.

    Raises InputError, naming the file, for one that is damaged, of an unknown kind, lacks a column or holds something
    else than text, and when no document is left at all.
    """
    counts = Counts() if counts is None else counts
    readers = {path: _reader(path) for path in paths}
    batch: list[str] = []
    size = 0
    for path in random.Random(seed).sample(sorted(paths), len(paths)):
        for frame in readers[path](path, source):
            texts = _kept(frame, path, source, counts)
            for text, length in zip(texts, texts.str.len_bytes()):
                if batch and size + length > BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
                batch.append(text)
                size += length
    if batch:
        yield batch
    log.info("%s: %s", ", ".join(source.files), counts)
    if counts.read == counts.filtered + counts.empty:
        raise InputError(f"{', '.join(source.files)}: no document left; {counts}")


def documents_fingerprint(paths: Sequence[Path], source: Source, seed: int = 0) -> str:
    """Changes with what `documents` yields: the files (`tables.input_states`), column, filter and seed."""
    return fingerprint(input_states(paths), source.column, source.where, seed)


def _reader(path: Path):
    """The function that yields frames of `path`."""
    compressed = path.suffix in (".gz", ".zst")
    match (path.with_suffix("") if compressed else path).suffix:
        case ".jsonl" | ".json" | ".ndjson":
            return _json_frames
        case ".txt":
            return _text_frames
        case ".parquet" if not compressed:
            return _parquet_frames
    raise InputError(f"{path}: unknown kind of file; text is read from .jsonl, .txt (both also .gz, .zst) and .parquet")


def _kept(frame: pl.DataFrame, path: Path, source: Source, counts: Counts) -> pl.Series:
    """The texts of `frame` that fulfil the condition and are not empty."""
    counts.read += frame.height
    if source.where:
        chosen = frame.filter(_condition(frame, path, source.where))
        counts.filtered += frame.height - chosen.height
        frame = chosen
    texts = frame[source.column]
    texts = texts.filter(texts.str.len_bytes() > 0)
    counts.empty += frame.height - len(texts)
    return texts


def _condition(frame: pl.DataFrame, path: Path, where: str) -> pl.Series:
    try:
        keep = frame.select(pl.sql_expr(where).alias("keep"))["keep"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        types = ", ".join(f"{name} ({dtype})" for name, dtype in frame.schema.items())
        reason = told_reason(error)  # polars quotes values that it cannot cast
        raise InputError(f"{path}, where: {where!r} cannot be told for its rows ({reason}); columns: {types}") from None
    if keep.dtype not in (pl.Boolean, pl.Null) or len(keep) != frame.height:
        raise InputError(
            f"{path}, where: {where!r} gives {len(keep)} values of type {keep.dtype} for {frame.height} rows; it must "
            "say of each row whether it is kept"
        )
    return keep.cast(pl.Boolean)


def _columns(source: Source) -> list[str]:
    """The columns that a source needs, its text first."""
    named = pl.sql_expr(source.where).meta.root_names() if source.where else []
    return list(dict.fromkeys([source.column, *named]))


def _require_text_columns(path: Path, source: Source, found: Collection[str]) -> None:
    for name in _columns(source):
        if name not in found:
            key = "column" if name == source.column else "where"
            there = ", ".join(told_names(sorted(found), may_stand_alone=True))
            raise InputError(f"{path}: no column {name!r}, which {key} names; found {there}")


def _parquet_frames(path: Path, source: Source) -> Iterator[pl.DataFrame]:
    """Slices of about 32 MiB: however large the row groups, one is never decoded whole."""
    try:
        table = pl.scan_parquet(path, glob=False)
        schema = table.collect_schema()
        _require_text_columns(path, source, schema.names())
        if schema[source.column] != pl.String:
            found = schema[source.column]
            raise InputError(f"{path}, column {source.column}: found type {found}; it must hold strings")
        rows = table.select(pl.len()).collect().item()
        start, count = 0, 64
        while start < rows:
            frame = table.select(_columns(source)).slice(start, count).collect()
            yield frame
            start += count
            fitting = int(count * SLICE_BYTES / (frame.estimated_size() + 1))
            count = max(1, min(4 * count, fitting))
    except UNREADABLE as error:
        raise InputError(
            f"{path}: cannot be read ({told_reason(error)}); truncated, or of another kind: copy it again"
        ) from None


def _json_frames(path: Path, source: Source) -> Iterator[pl.DataFrame]:
    """Parsed by Python: polars would turn numbers into text silently and not name the line of an error."""
    types = {source.column: pl.String}  # of columns so far: one may be null throughout a batch
    for number, rows in enumerate(_json_rows(path, source.column)):
        if number == 0:
            _require_text_columns(path, source, {name for row in rows for name in row})
        yield pl.DataFrame([_json_column(path, name, rows, types) for name in _columns(source)])


def _json_column(path: Path, name: str, rows: list[dict], types: dict[str, pl.DataType]) -> pl.Series:
    try:
        column = pl.Series(name, [row.get(name) for row in rows], strict=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}, column {name}: its values cannot be one column ({told_reason(error)})") from None
    if column.dtype == pl.Null:
        return column.cast(types.get(name, pl.Null))
    types[name] = column.dtype
    return column


def _json_rows(path: Path, text: str) -> Iterator[list[dict]]:
    """The objects of the lines, about 4 MiB at a time; the value of key `text` is a string or null in each."""
    rows, size = [], 0
    with _decompressed(path) as file:
        for number, line in enumerate(_bounded_lines(file, path), 1):
            if line.isspace():
                continue
            rows.append(_json_row(f"{path}, line {number}", line, text))
            size += len(line)
            if size >= BATCH_BYTES:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def _bounded_lines(file: io.BufferedReader, path: Path) -> Iterator[bytes]:
    """The lines of a file; a compressed one may hold any number of bytes without an end of a line."""
    number = 0
    while line := file.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            raise InputError(
                f"{path}, line {number}: found more than {LINE_BYTES >> 20} MiB; each line must be one document"
            )
        yield line


def _json_row(where: str, line: bytes, text: str) -> dict:
    try:
        row = json_value(line)
    except ValueError as error:
        raise InputError(f"{where}: no valid JSON ({error}); each line must be one object") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: found a {type(row).__name__}; each line must be one JSON object")
    value = row.get(text)
    if value is not None and not isinstance(value, str):
        found = f"the {type(value).__name__}" + (f" {str(value)[:60]}" if isinstance(value, int | float) else "")
        raise InputError(f"{where}, key {text}: found {found}; it must be a string")
    if value and b"\\ud" in line.lower():
        # Half of a surrogate pair is valid JSON but no character: it becomes U+FFFD, as in UTF-8 decoders.
        row[text] = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return row


def _text_frames(path: Path, source: Source) -> Iterator[pl.DataFrame]:
    """A file is one document; one of more than 1 MiB becomes pieces of at most 1 MiB, cut at ends of lines."""
    _require_text_columns(path, source, ["text"])
    position, rest = 0, b""
    with _decompressed(path) as file:
        while block := rest + file.read(PIECE_BYTES - len(rest)):
            cut = len(block)
            if cut == PIECE_BYTES and file.peek(1):
                cut = block.rfind(b"\n") + 1 or _last_character(block)
            try:
                piece = block[:cut].decode()
            except UnicodeDecodeError as error:
                at = position + error.start
                raise InputError(f"{path}: byte {at} is not UTF-8 ({error.reason}); convert the file") from None
            yield pl.DataFrame({"text": [piece if position else piece.removeprefix("\ufeff")]})
            position, rest = position + cut, block[cut:]


def _last_character(block: bytes) -> int:
    """Where the last character of UTF-8 in `block` starts, whole or not."""
    starts = (i for i in range(len(block) - 1, len(block) - 5, -1) if block[i] & 0xC0 != 0x80)
    return next(starts, len(block))


@contextmanager
def _decompressed(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of `path`, decompressed. Raises InputError for a file that cannot be read to its end."""
    openers = {".gz": gzip.open, ".zst": zstd.open}
    try:
        with io.BufferedReader(openers.get(path.suffix, open)(path, "rb"), 1 << 20) as file:
            yield file
    except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); it is truncated or of another kind: copy it again"
        ) from None
