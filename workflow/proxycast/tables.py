"""Files that can be trusted: written whole or not at all, marked with the fingerprint of what they were made from."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from pydantic import BaseModel

FINGERPRINT = "proxycast.fingerprint"
PARQUET_MAGIC = b"PAR1"
MANIFEST = "manifest.json"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it to `path`, on failure leave nothing behind.

    The temporary name keeps the suffix, because writers choose a format by it. What is renamed is on the disk: without
    fsync a host that loses power may leave an empty file under the final name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(value: object, path: Path) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=_plain) + "\n")


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that change with any part. A `Path` counts by its content, a model by its values."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return hashlib.sha256(value.read_bytes()).hexdigest()
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")


def write_table(
    table: pl.DataFrame | pl.LazyFrame,
    path: Path,
    made_from: str,
    csv: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `table` as parquet (zstd), the fingerprint `made_from` in its metadata; with `csv` a .csv beside it.

    `metadata`: what else stands there.
    """
    metadata = {**(metadata or {}), FINGERPRINT: made_from}
    with atomic(path) as temporary:
        if isinstance(table, pl.LazyFrame):
            table.sink_parquet(temporary, compression="zstd", metadata=metadata)
        else:
            table.write_parquet(temporary, compression="zstd", metadata=metadata)
    if csv:
        with atomic(path.with_suffix(".csv")) as temporary:
            table.lazy().collect().write_csv(temporary)


def table_fingerprint(path: Path) -> str | None:
    """The fingerprint that `path` was written with; None when the file is absent, truncated or not ours."""
    return table_metadata(path).get(FINGERPRINT)


def table_metadata(path: Path) -> dict[str, str]:
    """The metadata that `path` was written with; empty when the file is absent or truncated."""
    return pl.read_parquet_metadata(path) if is_whole_parquet(path) else {}


def is_whole_parquet(path: Path | str) -> bool:
    """Whether `path` starts and ends as a parquet file does. A file cut anywhere lacks the footer, written last."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(4)
            end = file.seek(-8, os.SEEK_END) + 8
            footer = file.read(8)
            return head == footer[4:] == PARQUET_MAGIC and int.from_bytes(footer[:4], "little") + 12 <= end
    except OSError:
        return False


def manifest_parts(manifest: Path) -> list[Path]:
    """The tables that a manifest ({name: fingerprint}) names, in its order: <name>.parquet beside it."""
    return [manifest.with_name(f"{name}.parquet") for name in json.loads(manifest.read_text())]


def of_size(paths: Sequence[Path], most_bytes: int) -> list[list[Path]]:
    """The files in order, in lists of at most so many bytes together, or of one file that is larger."""
    lists: list[list[Path]] = []
    room = 0
    for path in paths:
        size = path.stat().st_size
        if not lists or size > room:
            lists.append([])
            room = most_bytes
        lists[-1].append(path)
        room -= size
    return lists
