"""Files that can be trusted: written whole or not at all, marked with the fingerprint of what they were made from.

A table is parquet, and carries a seal: the sha256 of all its other bytes, in front of the footer, where no reader of
parquet looks. Parquet itself checks nothing: most flipped bits come out as wrong numbers.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import polars as pl
from pydantic import BaseModel

from proxycast.options import InputError, json_value, require_regular, told_reason

FINGERPRINT = "proxycast.fingerprint"
LARGEST_WHOLE = 2**53  # up to which a float is a whole number: larger ones of somebody else's table are none
# What polars raises for a file that it cannot read; a panic of its Rust is no Exception.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
PARQUET_MAGIC = b"PAR1"
SEAL = b"proxycast.sha256"
DIGEST_BYTES = 32
SEAL_SUFFIX = ".sha256"
# What makes a spreadsheet compute a text: how the cell begins, or what stands behind what some take for its end. They
# take away quotes there: `;"=` is a formula, too.
BEGINS_FORMULA = r'^(\s|"*[=+\-@＝＋－＠])'
BEGINS_FORMULA_WITHIN = r'([;\t\r\n]"*)([=+\-@＝＋－＠])'
TABLE_FUNCTION = re.compile(r"\bread_(csv|ipc|json|ndjson|parquet)\b", re.IGNORECASE)  # of polars's SQL
MANIFEST = "manifest.json"
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,249}")  # a checkpoint, or part of one, as `SafeName`s make it
HASHED_BYTES = 64_000_000  # an input file up to this size counts by its content, a larger one by what stat tells of it


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


def read_json(path: Path) -> dict:
    """The object that `write_json` wrote; empty where the file is absent, truncated or holds something else."""
    try:
        value = json_value(path.read_text()) if path.is_file() else {}  # of a pipe nobody writes to there is no end
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_csv(path: Path) -> pl.DataFrame:
    """A .csv with each column as text. Raises InputError for one that is none, or has a column's name twice."""
    require_regular(path)
    try:
        header = pl.read_csv(path, has_header=False, n_rows=1, infer_schema=False, glob=False).row(0)
        table = pl.read_csv(path, infer_schema=False, glob=False)
    except UNREADABLE as error:
        raise InputError(
            f"{path}: cannot be read ({told_reason(error)}); it must be a .csv with commas, and as many fields in each "
            "row as in the first"
        ) from None
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{path}, column {name}: stands there {header.count(name)} times; give it once")
    return table


def seal(path: Path) -> None:
    """Keep the sha256 of a file that is no table, in a hidden file beside it; `require_unchanged` compares."""
    with atomic(_seal_of(path)) as temporary:
        temporary.write_text(digest_of(path) + "\n")


def require_unchanged(path: Path) -> None:
    """Raise `InputError` for a file that `seal` has sealed and that is another one now. It gets another name."""
    if not is_unchanged(path):
        raise damaged(path)


def is_unchanged(path: Path) -> bool:
    """Whether the file is the one that `seal` has sealed, or was never sealed, or is absent."""
    sealed = _seal_of(path)
    return not (sealed.is_file() and path.is_file()) or sealed.read_text(errors="replace").strip() == digest_of(path)


def sealed_by(path: Path) -> Path | None:
    """The file that `path` is the seal of; None where it is no seal."""
    name = path.name.removeprefix(".").removesuffix(SEAL_SUFFIX)
    return path.with_name(name) if _seal_of(path.with_name(name)) == path else None


def _seal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{SEAL_SUFFIX}")


def damaged(path: Path) -> InputError:
    """Give a file or folder of ours that has changed by itself another name; the error that tells so.

    In a process that called `change_nothing` it keeps its name.
    """
    said = f"{path}: damaged: its bytes are not those that were written"
    if _CHANGES_NOTHING:
        return InputError(f"{said}; a run without -n gives it another name and makes it again. Check the disk")
    aside = set_aside(path)
    return InputError(
        f"{said}. It is {aside.name} now; run the same command again, which makes it again, and check the disk"
    )


def set_aside(path: Path) -> Path:
    """Give a file or folder the name `<name>.damaged`, beside it; the new path."""
    aside = path.with_name(f"{path.name}.damaged")
    remove_tree(aside)
    os.replace(path, aside)
    return aside


_CHANGES_NOTHING: list[bool] = []


def change_nothing() -> None:
    """From now on no file that is read in this process gets another name or goes: a dry run changes nothing."""
    _CHANGES_NOTHING.append(True)


def remove_tree(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, but never what a link leads to. Absent is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that change with any part. A `Path` counts by its content, a model by its values."""
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
    """What tells of a file, without reading it, whether it has changed: size, inode, and two times in ns.

    `cp -p`, `rsync` and `tar` keep the time that is looked at everywhere (mtime); nobody sets the other (ctime).
    """
    stat = path.stat()
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def edited(state: str, edit: object) -> str:
    """The fingerprint `state`, another one for each `edit` that was noted."""
    return state if edit is None else fingerprint(state, edit)


def input_states(
    paths: Iterable[Path | str], most_bytes: int = HASHED_BYTES, edits: Mapping[str, object] | None = None
) -> str:
    """A fingerprint of what tells whether any of these input files has changed: for the parameters of a job.

    Of a file up to `most_bytes` it is the content, of a larger one `stat_of`. A copy of such a file on another disk
    counts as changed; a job that keeps finished parts compares contents then. A file that is absent counts too, and so
    does what `edits` holds for it: edits while a study ran, some of whose jobs may have read another content.
    """
    states = []
    for path in sorted(map(Path, paths)):
        try:
            is_read = path.is_file() and path.stat().st_size <= most_bytes  # a pipe is as it is
            state = digest_of(path) if is_read else stat_of(path)
        except FileNotFoundError:
            state = None
        states.append((str(path), state))
    edits = {path: edits[path] for path, _ in states if edits and path in edits}
    return fingerprint(states, *([edits] if edits else []))


def sql_condition(where: str) -> pl.Expr:
    """A condition in SQL on the columns of one row, as polars has it.

    Raises ValueError for what is none, and for one that reads a table of its own: polars would open that file here.
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
    csv: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `table` as sealed parquet (zstd), the fingerprint `made_from` and further `metadata` in its footer.

    With `csv` a .csv stands beside it, for spreadsheets too: see `as_cells`.
    """
    metadata = {FINGERPRINT: made_from, **(metadata or {})}
    with atomic(path) as temporary:
        if isinstance(table, pl.LazyFrame):
            table.sink_parquet(temporary, compression="zstd", metadata=metadata)
        else:
            table.write_parquet(temporary, compression="zstd", metadata=metadata)
        _seal(temporary)
    if csv:
        with atomic(path.with_suffix(".csv")) as temporary:
            as_cells(table.lazy().collect()).write_csv(temporary)


def as_cells(table: pl.DataFrame) -> pl.DataFrame:
    """The table as spreadsheets may read it: a text that one would take for a formula gets an apostrophe in front.

    Numbers stay as they are. A name of somebody else, such as `=HYPERLINK(...)`, is then shown and not computed. So is
    that of a column.
    """

    def shown(texts: pl.Expr) -> pl.Expr:
        return texts.str.replace(BEGINS_FORMULA, "'$1").str.replace_all(BEGINS_FORMULA_WITHIN, "$1'$2")

    names = pl.select(shown(pl.lit(pl.Series(table.columns, dtype=pl.String)))).to_series().to_list()
    table = table.with_columns(shown(pl.col(pl.String, pl.Categorical, pl.Enum).cast(pl.String)))
    return table.rename(dict(zip(table.columns, names)))


def read_table(path: Path | str) -> pl.DataFrame:
    """A table that `write_table` wrote. `InputError` for one that is damaged; see `scan_tables`."""
    return scan_tables(path).collect()


def scan_tables(paths: Path | str | Iterable[Path | str]) -> pl.LazyFrame:
    """One table that `write_table` wrote, or several, one below the other. `InputError` for one that is damaged."""
    paths = [Path(path) for path in ([paths] if isinstance(paths, Path | str) else paths)]
    for path in paths:
        _require_sealed(path)
    return pl.scan_parquet(paths, glob=False)


def _require_sealed(path: Path) -> None:
    """Raise `InputError` for a table whose seal is broken. It gets another name: what is missing is made again."""
    if not is_sealed(path):
        raise damaged(path)


def table_metadata(path: Path) -> dict[str, str]:
    """What `write_table` put into the footer; nothing when the file is absent, truncated, damaged or not ours."""
    return pl.read_parquet_metadata(path) if is_sealed(path) else {}


def table_fingerprint(path: Path) -> str | None:
    """The fingerprint that `path` was written with; None when the file is absent, truncated, damaged or not ours."""
    return table_metadata(path).get(FINGERPRINT)


def _seal(path: Path) -> None:
    """Put the digest of the file in front of its footer. All offsets in a footer count from the start of the file."""
    with path.open("r+b") as file:
        start = _footer_start(file)
        file.seek(start)
        footer = file.read()
        digest = _digest_of(file, start, footer)
        file.seek(start)
        file.write(SEAL + digest + footer)


def is_sealed(path: Path) -> bool:
    """Whether the file is a table of `write_table` whose every byte is as it was written."""
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
    """Where the footer of a parquet file begins: before its own length and the magic bytes at the end."""
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
    """Whether `path` starts and ends as a parquet file does. A file cut anywhere lacks the footer, written last."""
    try:
        # Of a pipe nobody writes to: not waited for, and then it cannot be sought in.
        with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            head = file.read(4)
            end = file.seek(-8, os.SEEK_END) + 8
            footer = file.read(8)
            return head == footer[4:] == PARQUET_MAGIC and int.from_bytes(footer[:4], "little") + 12 <= end
    except OSError:
        return False


def is_whole_csv(path: Path) -> bool:
    """Whether a csv ends as one is written: a truncated one has no end of its last row, but for chance."""
    if not path.is_file():  # of a pipe nobody writes to there is no end
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() == b"\n"


def manifest_parts(manifest: Path) -> list[Path]:
    """The tables that a manifest ({name: fingerprint}) names, in its order: <name>.parquet beside it.

    Raises `InputError` for one that names anything else: nothing here wrote it.
    """
    parts = read_json(manifest)
    if not names_parts(parts):
        raise InputError(f"{manifest}: no list of tables beside it; remove it, and run again to make it anew")
    return [manifest.with_name(f"{name}.parquet") for name in parts]


def names_parts(manifest: object) -> bool:
    """Whether this is what a manifest holds: names of tables beside it, each with its fingerprint."""
    return isinstance(manifest, dict) and all(
        NAME.fullmatch(name) and isinstance(mark, str) for name, mark in manifest.items()
    )


def require_parts(manifest: Path) -> list[Path]:
    """`manifest_parts`, each of which is undamaged and carries the fingerprint that the manifest gives it.

    Raises `InputError` for one that is damaged, or another than the manifest's: two jobs with different settings have
    written here. Then the manifest is removed, so that its job runs again; it keeps the tables that are right.
    """
    parts = manifest_parts(manifest)
    for part, mark in zip(parts, read_json(manifest).values()):
        _require_sealed(part)
        if (found := pl.read_parquet_metadata(part).get(FINGERPRINT)) != mark:
            manifest.unlink()
            raise InputError(
                f"{part}: found the fingerprint {found}, but {mark} in {manifest.name}: it was made from other inputs. "
                f"{manifest.name} is removed; run the same command again, which makes again what is not right"
            )
    return parts


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
