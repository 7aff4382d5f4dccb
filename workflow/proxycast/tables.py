"""Files that can be trusted: written whole or not at all, with the fingerprint of their inputs.

A table is parquet with a seal: the sha256 of all its other bytes, stored before the footer, where parquet readers do
not look. Without it, most flipped bits would be read as wrong numbers, because our parquet files have no checksums.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
from pydantic import BaseModel

from proxycast.options import InputError, json_value, require_regular, told_reason

FINGERPRINT = "proxycast.fingerprint"
LARGEST_WHOLE = 2**53  # floats hold every whole number up to this; larger ones in external tables are refused
# What polars raises for a file that it cannot read. A panic in its Rust code is no Exception.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
PARQUET_MAGIC = b"PAR1"
SEAL = b"proxycast.sha256"
DIGEST_BYTES = 32
SEAL_SUFFIX = ".sha256"
# What makes a spreadsheet evaluate a text: the start of the cell, or what follows a character that some programs take
# for its end. They remove quotes there, so `;"=` is a formula, too.
BEGINS_FORMULA = r'^(\s|"*[=+\-@＝＋－＠])'
BEGINS_FORMULA_WITHIN = r'([;\t\r\n]"*)([=+\-@＝＋－＠])'
TABLE_FUNCTION = re.compile(r"\bread_(csv|ipc|json|ndjson|parquet)\b", re.IGNORECASE)  # in polars SQL
MANIFEST = "manifest.json"
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,249}")  # a checkpoint, or part of one, as `SafeName`s make it
HASHED_BYTES = 64_000_000  # input files up to this size are hashed; larger ones count by `stat_of`


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it to `path`, on failure remove it.

    The temporary name keeps the suffix, because writers choose the format by it. The file is synced before it is
    renamed; otherwise a power failure may leave an empty file under the final name.
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


def read_json(path: Path) -> dict:
    """The object that `write_json` wrote; empty if the file is absent, truncated or holds something else."""
    try:
        value = json_value(path.read_text()) if path.is_file() else {}  # not a pipe, which may never end
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def beside_compiled_code(module: str) -> Path:
    """Where the module with this `__file__` keeps for the next process what it took long to find: in __pycache__."""
    return Path(cache_from_source(module)).with_suffix(".json")


def keep(value: object, of: str, path: Path) -> None:
    """`write_json` of what can be found again, where Python may keep compiled code and the folder can be written.

    `of`: what it was found from.
    """
    if not sys.dont_write_bytecode:
        with suppress(OSError):
            write_json({"of": of, "sha256": _sha256_of(value), "value": value}, path)


def kept(of: str, path: Path) -> Any:
    """What `keep` wrote; None if it was found from something else, or if the file is absent or damaged."""
    found = read_json(path)
    value = found.get("value")
    return value if found.get("of") == of and found.get("sha256") == _sha256_of(value) else None


def _sha256_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def read_csv(path: Path) -> pl.DataFrame:
    """A .csv with each column as text. Raises `InputError` if it cannot be read or has two columns of one name."""
    require_regular(path)
    try:
        header = pl.read_csv(path, has_header=False, n_rows=1, infer_schema=False, glob=False).row(0)
        table = pl.read_csv(path, infer_schema=False, glob=False)
    except UNREADABLE as error:
        raise InputError(
            f"{path}: cannot be read ({told_reason(error)}); it must be a .csv with commas, and the same number of "
            "fields in each row"
        ) from None
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{path}, column {name}: stands there {header.count(name)} times; give it once")
    return table


def seal(path: Path) -> None:
    """Write the sha256 of a file that is no table to a hidden file beside it, for `require_unchanged`."""
    with atomic(_seal_of(path)) as temporary:
        temporary.write_text(digest_of(path) + "\n")


def require_unchanged(path: Path) -> None:
    """Rename a sealed file that has changed since, and raise `InputError`."""
    if not is_unchanged(path):
        raise damaged(path)


def is_unchanged(path: Path) -> bool:
    """Whether the file is unchanged since `seal`, was never sealed, or is absent."""
    sealed = _seal_of(path)
    return not (sealed.is_file() and path.is_file()) or sealed.read_text(errors="replace").strip() == digest_of(path)


def sealed_by(path: Path) -> Path | None:
    """The file that the seal `path` belongs to; None if `path` is no seal."""
    name = path.name.removeprefix(".").removesuffix(SEAL_SUFFIX)
    return path.with_name(name) if _seal_of(path.with_name(name)) == path else None


def _seal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{SEAL_SUFFIX}")


def damaged(path: Path) -> InputError:
    """Rename a damaged file or folder of the study, and return the error to raise.

    In a process that called `change_nothing` it is not renamed.
    """
    said = f"{path}: damaged: its bytes are not those that were written"
    if _CHANGES_NOTHING:
        return InputError(f"{said}; a run without -n renames it and makes it again. Check the disk")
    aside = set_aside(path)
    return InputError(f"{said}. It is {aside.name} now; run the same command again to make it anew, and check the disk")


def set_aside(path: Path) -> Path:
    """Rename a file or folder to `<name>.damaged`; the new path."""
    aside = path.with_name(f"{path.name}.damaged")
    remove_tree(aside)
    os.replace(path, aside)
    return aside


_CHANGES_NOTHING: list[bool] = []


def change_nothing() -> None:
    """From now on this process renames and removes no file, as in a dry run."""
    _CHANGES_NOTHING.append(True)


def remove_tree(path: Path) -> None:
    """Remove a file, a folder with its content, or a link, but never the target of a link. It may be absent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that change with any part. A `Path` stands for its content, a model for its values."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return digest_of(value)
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")


def digest_of(path: Path) -> str:
    """sha256 of a file, as hexadecimal digits."""
    require_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stat_of(path: Path) -> tuple[int, ...]:
    """Size, inode, mtime and ctime (ns) of a file, which change when the file does. The file is not read.

    `cp -p`, `rsync` and `tar` preserve mtime, but no program can set ctime.
    """
    stat = path.stat()
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def edited(state: str, edit: object) -> str:
    """The fingerprint `state`, changed by a recorded `edit`."""
    return state if edit is None else fingerprint(state, edit)


def input_states(
    paths: Iterable[Path | str], most_bytes: int = HASHED_BYTES, edits: Mapping[str, object] | None = None
) -> str:
    """A fingerprint of these input files, for the parameters of a job.

    It covers the content of files up to `most_bytes`, and `stat_of` larger ones. So a copy of a large file on another
    disk counts as changed; jobs that keep finished parts then compare contents. Absent files count too, and so do
    `edits` made while a study ran, since some jobs may have read other content.
    """
    states = []
    for path in sorted(map(Path, paths)):
        try:
            is_read = path.is_file() and path.stat().st_size <= most_bytes  # never read a pipe
            state = digest_of(path) if is_read else stat_of(path)
        except FileNotFoundError:
            state = None
        states.append((str(path), state))
    edits = {path: edits[path] for path, _ in states if edits and path in edits}
    return fingerprint(states, *([edits] if edits else []))


def sql_condition(where: str) -> pl.Expr:
    """A condition in SQL on the columns of one row, for polars.

    Raises `ValueError` if it is none, or if it reads another table, which polars would open.
    """
    if reads := TABLE_FUNCTION.search(where):
        raise ValueError(f"{where!r} has {reads[0]}; a condition is about the columns of one row")
    try:
        return pl.sql_expr(where)
    except UNREADABLE as error:
        raise ValueError(f"{where!r} is no condition in SQL: {error}") from None


def write_table(
    table: pl.DataFrame | pl.LazyFrame,
    path: Path,
    made_from: str,
    csv: bool | pl.DataFrame = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `table` as sealed parquet (zstd), with the fingerprint `made_from` and `metadata` in its footer.

    With `csv`, also write a .csv beside it that is safe for spreadsheets (`as_cells`), of that table if one is given.
    """
    metadata = {FINGERPRINT: made_from, **(metadata or {})}
    with atomic(path) as temporary:
        if isinstance(table, pl.LazyFrame):
            table.sink_parquet(temporary, compression="zstd", metadata=metadata)
        else:
            table.write_parquet(temporary, compression="zstd", metadata=metadata)
        _seal(temporary)
    if csv is not False:
        with atomic(path.with_suffix(".csv")) as temporary:
            as_cells(table.lazy().collect() if csv is True else csv).write_csv(temporary)


def as_cells(table: pl.DataFrame) -> pl.DataFrame:
    """The table made safe for spreadsheets: a text that looks like a formula gets an apostrophe in front.

    So a text or column name such as `=HYPERLINK(...)` is shown, not evaluated. Numbers are unchanged.
    """

    def shown(texts: pl.Expr) -> pl.Expr:
        return texts.str.replace(BEGINS_FORMULA, "'$1").str.replace_all(BEGINS_FORMULA_WITHIN, "$1'$2")

    names = pl.select(shown(pl.lit(pl.Series(table.columns, dtype=pl.String)))).to_series().to_list()
    table = table.with_columns(shown(pl.col(pl.String, pl.Categorical, pl.Enum).cast(pl.String)))
    return table.rename(dict(zip(table.columns, names)))


def read_table(path: Path | str) -> pl.DataFrame:
    """A table that `write_table` wrote. `InputError` if it is damaged; see `scan_tables`."""
    return scan_tables(path).collect()


def scan_tables(paths: Path | str | Iterable[Path | str]) -> pl.LazyFrame:
    """Tables that `write_table` wrote, concatenated vertically. `InputError` if one is damaged."""
    paths = [Path(path) for path in ([paths] if isinstance(paths, Path | str) else paths)]
    for path in paths:
        _require_sealed(path)
    return pl.scan_parquet(paths, glob=False)


def _require_sealed(path: Path) -> None:
    """Rename a table with a broken seal, so that it is made again, and raise `InputError`."""
    if not is_sealed(path):
        raise damaged(path)


def table_metadata(path: Path) -> dict[str, str]:
    """The metadata that `write_table` put into the footer; empty if the file is absent, damaged or not of it."""
    return pl.read_parquet_metadata(path) if is_sealed(path) else {}


def table_fingerprint(path: Path) -> str | None:
    """The fingerprint that `path` was written with; None if the file is absent, damaged or not of `write_table`."""
    return table_metadata(path).get(FINGERPRINT)


def _seal(path: Path) -> None:
    """Insert the digest of the file before its footer. Offsets in a footer count from the start, so they stay valid."""
    with path.open("r+b") as file:
        start = _footer_start(file)
        file.seek(start)
        footer = file.read()
        digest = _digest_of(file, start, footer)
        file.seek(start)
        file.write(SEAL + digest + footer)


def is_sealed(path: Path) -> bool:
    """Whether the file is a table of `write_table` with every byte unchanged."""
    if not is_whole_parquet(path):
        return False
    with path.open("rb") as file:
        start = _footer_start(file)
        data = max(0, start - len(SEAL) - DIGEST_BYTES)
        file.seek(data)
        seal = file.read(start - data)
        footer = file.read()
        return seal == SEAL + _digest_of(file, data, footer)


def _footer_start(file: BinaryIO) -> int:
    """Offset of the footer of a parquet file, which ends before its length and the magic bytes."""
    end = file.seek(-8, os.SEEK_END)
    return end - int.from_bytes(file.read(4), "little")


def _digest_of(file: BinaryIO, data: int, footer: bytes) -> bytes:
    """sha256 of the first `data` bytes of the file and of its footer."""
    digest = hashlib.sha256()
    file.seek(0)
    while data:
        block = file.read(min(data, 1 << 20))
        digest.update(block)
        data -= len(block)
    digest.update(footer)
    return digest.digest()


def is_whole_parquet(path: Path | str) -> bool:
    """Whether `path` starts and ends like a parquet file. A truncated file lacks the footer, which is written last."""
    try:
        # O_NONBLOCK: do not wait for a pipe without a writer. Seeking in it fails below.
        with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            head = file.read(4)
            end = file.seek(-8, os.SEEK_END) + 8
            footer = file.read(8)
            return head == footer[4:] == PARQUET_MAGIC and int.from_bytes(footer[:4], "little") + 12 <= end
    except OSError:
        return False


def is_whole_csv(path: Path) -> bool:
    """Whether a csv ends with the end of a row; a truncated one rarely does."""
    if not path.is_file():  # a pipe may never end
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() == b"\n"


def manifest_parts(manifest: Path) -> list[Path]:
    """The tables that a manifest ({name: fingerprint}) names, in its order: <name>.parquet beside it.

    Raises `InputError` for a manifest with any other content, which proxycast did not write.
    """
    parts = read_json(manifest)
    if not names_parts(parts):
        raise InputError(f"{manifest}: no list of tables beside it; remove it, and run again to make it anew")
    return [manifest.with_name(f"{name}.parquet") for name in parts]


def names_parts(manifest: object) -> bool:
    """Whether this is the content of a manifest: names of tables beside it, each with its fingerprint."""
    return isinstance(manifest, dict) and all(
        NAME.fullmatch(name) and isinstance(value, str) for name, value in manifest.items()
    )


def require_parts(manifest: Path) -> list[Path]:
    """`manifest_parts`, after a check that all are undamaged and have the fingerprints of the manifest.

    Raises `InputError` for a table that is damaged or has another fingerprint, as after two jobs with different
    settings. In the second case the manifest is removed, so its job runs again and keeps the right tables.
    """
    parts = manifest_parts(manifest)
    for part, expected in zip(parts, read_json(manifest).values()):
        _require_sealed(part)
        if (found := pl.read_parquet_metadata(part).get(FINGERPRINT)) != expected:
            manifest.unlink()
            raise InputError(
                f"{part}: found the fingerprint {found}, but {expected} in {manifest.name}: it was made from other "
                f"inputs. {manifest.name} is removed; run the same command again to make the wrong tables anew"
            )
    return parts


def of_size(paths: Sequence[Path], most_bytes: int) -> list[list[Path]]:
    """The files in order, in lists of at most `most_bytes` in total; a larger file has its own list."""
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
