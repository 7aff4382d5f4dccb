"""Checkpoints and data sets from the hub: only the files that are needed, each one checked against the hub's own hash.

Files that the user's hub cache holds are linked from there. What `huggingface_hub` reads from the environment holds
here, too: HF_ENDPOINT (a mirror), HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_HUB_DISABLE_XET.
"""

import errno
import fcntl
import hashlib
import logging
import math
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Literal, TextIO, TypeVar
from urllib.request import getproxies

from pydantic import Field, model_validator
from tqdm import tqdm

from proxycast.conversion import conversion_fingerprint, convert_once, remove_others
from proxycast.engines.model_folder import TOKENIZER_FILES, adapters_among, is_finished, stays_in_folder
from proxycast.jobs import open_private
from proxycast.options import LONGEST_CAUSE, InputError, Options, is_inner_name, require_inside
from proxycast.tables import remove_tree, write_json

if TYPE_CHECKING:
    from httpx2 import Response

log = logging.getLogger(__name__)

Result = TypeVar("Result")

for library in ("httpx", "httpx2"):  # at INFO they log every request, with the signed addresses of private files
    logging.getLogger(library).setLevel(logging.WARNING)
for module in ("file_download", "utils._http"):  # their warnings hold whole addresses: signed ones, and passwords
    logging.getLogger(f"huggingface_hub.{module}").setLevel(logging.ERROR)

MODEL_FILES = {
    *("config.json", "generation_config.json", *TOKENIZER_FILES),
    *("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"),
}
# Of each format: the whole weights, the index of the shards, a shard and how many there are.
WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", r"model.*-\d+-of-(\d+)\.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", r"pytorch_model.*-\d+-of-(\d+)\.bin"),
)
PLANNED_BYTES = ".planned_bytes"  # in the folder of a run: what its files will take; locked while its download lives
SOURCE = ".source"  # ends the name of a checkpoint's folder that is still to be converted
WORKSPACE = ".download"  # in the folder of a checkpoint or data set, while its files come
ANSWER_SECONDS = 60  # a server that says nothing for so long is asked again
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 600.0  # seconds between two tries that a server may ask for; the hub counts requests of five minutes
LARGEST_FILE = 10**14  # bytes; the hub takes files up to 500 GB
COMMIT = re.compile("[0-9a-f]{40}")
DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
# Anything else may be read in two ways, so that a password would be taken for a host or a path, and told.
HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
ENDPOINT = re.compile(rf"((?i:https?)://)(?:[^\s/?#@\\]*@)?({HOST}(?:/[A-Za-z0-9._~/+-]*)?)")
POLL_SECONDS = 10.0  # between two looks for room on the disk
SAY_SECONDS = 60.0  # between two log lines about waiting for room
LOCK_SECONDS = 600.0  # to wait for the lock under which downloads look for room


class HubOptions(Options):
    """How models and data sets of the hub are downloaded."""

    concurrent_downloads: int = Field(4, ge=1, description="download jobs at a time")
    retries: int = Field(5, ge=0, description="further tries of a request or a file after an error that may pass")
    disk_gb: float | None = Field(
        None,
        gt=0,
        description="most disk (10^9 bytes) that downloaded weights may take while they wait to be scored; "
        "a download waits until there is room",
    )
    keep: bool = Field(False, description="keep downloaded weights; else they are removed as soon as they are scored")

    @model_validator(mode="after")
    def _room_is_made_by_removal(self) -> "HubOptions":
        if self.keep and self.disk_gb is not None:
            raise ValueError("keep and disk_gb: found both; what is kept never makes room, so give one of them")
        return self


@dataclass(frozen=True)
class Source:
    """A repository of the hub at a branch, tag or commit."""

    repo: str
    revision: str = "main"
    repo_type: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return f"hub {self.repo_type} {self.repo}, revision {self.revision}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `digest`: sha256 (64 digits) of one that LFS or Xet stores, else git's blob id (40)."""

    name: str
    size: int
    digest: str

    def is_at(self, path: Path) -> bool:
        """Whether `path` holds exactly these bytes."""
        return path.is_file() and path.stat().st_size == self.size and self._digest_of(path) == self.digest

    def differs(self, path: Path) -> str:
        """What `path` holds, and what it should."""
        found = f"{path.stat().st_size} bytes with hash {self._digest_of(path)}"
        return f"found {found}, expected {self.size} bytes with hash {self.digest}"

    def _digest_of(self, path: Path) -> str:
        with path.open("rb") as file:
            if len(self.digest) == 64:
                return hashlib.file_digest(file, "sha256").hexdigest()
            header = b"blob %d\0" % path.stat().st_size
            return hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """What a source was when it was asked: its commit, and files of it."""

    source: Source
    commit: str
    files: tuple[RemoteFile, ...]

    def record(self) -> dict[str, object]:
        """What was used, for a JSON file: {repo, revision, commit, files: {name: {size, sha256 or blob_id}}}."""
        kinds = {64: "sha256", 40: "blob_id"}
        files = {file.name: {"size": file.size, kinds[len(file.digest)]: file.digest} for file in self.files}
        return {"repo": self.source.repo, "revision": self.source.revision, "commit": self.commit, "files": files}


class WrongBytes(OSError):
    """A file came through whole, but it is not the one that the hub promised."""


def needed_model_files(names: Iterable[str], code: bool = False) -> list[str]:
    """Those of `names` that inference needs: configuration, tokenizer, weights in one format; `code`: *.py as well.

    Weights are model.safetensors or else its index and shards; without any, the same of pytorch_model.bin. Nothing in
    a subfolder is needed. Raises InputError, without naming the repository, when configuration or weights are missing,
    or an adapter lies beside them.
    """
    top = [name for name in names if "/" not in name]
    if adapters := adapters_among(top):
        raise InputError(adapters)
    if "config.json" not in top:
        raise InputError(f"found {top}, but no config.json; a model in the layout of transformers has one")
    weights = next((found for found in (_weights(top, *kind) for kind in WEIGHTS) if found), None)
    if weights is None:
        raise InputError(
            f"found {top}, but no whole weights; there must be model.safetensors, pytorch_model.bin, "
            "or an index of one of them and all its shards"
        )
    return sorted(weights + [name for name in top if name in MODEL_FILES or (code and name.endswith(".py"))])


def _weights(names: Sequence[str], whole: str, index: str, shard: str) -> list[str]:
    if whole in names:
        return [whole]
    matches = [match for name in names if (match := re.fullmatch(shard, name))]
    totals = [int(match[1]) for match in matches]
    # Shards of another total are left from an earlier save.
    shards = [match.string for match, total in zip(matches, totals) if totals.count(total) == total]
    return [index, *shards] if index in names and shards else []


def resolve(source: Source, options: HubOptions) -> Snapshot:
    """The commit that `source` is now, and all its files; offline those that the hub cache holds of it.

    Raises InputError, naming repository and revision, where there is no such thing or it cannot be reached.
    """
    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        return _checked(_cached_snapshot(source), f"the hub cache {_cache_folder()}")
    _shown_endpoint()  # before a library can print it
    _bound_waits()
    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        # The HTTP library would print the whole header.
        raise InputError("HF_TOKEN: the token holds a character that no token has; copy it again")
    api = HfApi(endpoint=_endpoint())

    def ask() -> Snapshot:
        info = api.repo_info(
            source.repo,
            revision=source.revision,
            repo_type=source.repo_type,
            files_metadata=True,
            timeout=ANSWER_SECONDS,
        )
        files = [
            RemoteFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for file in info.siblings or ()
        ]
        return Snapshot(source, info.sha, tuple(files))

    snapshot = _with_retries(ask, source, options.retries)
    unknown = [file.name for file in snapshot.files if file.size is None or file.digest is None]
    if unknown:
        raise InputError(
            f"{source}: {_shown_endpoint()} gives no size or hash for {unknown[:5]}, so that they cannot be checked; "
            "set HF_ENDPOINT to a mirror that does"
        )
    return _checked(snapshot, _shown_endpoint())


def _checked(snapshot: Snapshot, origin: str) -> Snapshot:
    """`snapshot`, whose names may be joined to a folder, each one another file. `InputError` for one of bad faith.

    `origin`: who says what is in it. Nothing that it says has become a path before.
    """
    said = f"{snapshot.source}: {origin} says"
    if not isinstance(snapshot.commit, str) or not COMMIT.fullmatch(snapshot.commit):
        raise InputError(f"{said} that its commit is {_cut(snapshot.commit)}; a commit is 40 hexadecimal digits")
    names = Counter(file.name for file in snapshot.files if isinstance(file.name, str))
    for file in snapshot.files:
        if not is_inner_name(file.name) or file.name.split("/")[0] == WORKSPACE:
            raise InputError(
                f"{said} that it has a file {_cut(file.name)}; a name is relative to the repository, without empty "
                f"parts, '.', '..', backslashes and control characters, and does not begin with {WORKSPACE!r}"
            )
        if names[file.name] > 1:
            raise InputError(f"{said} {names[file.name]} times that it has a file {_cut(file.name)}; once is right")
        if folder := next((parent for parent in _parents(file.name) if parent in names), None):
            raise InputError(f"{said} that {_cut(folder)} is a file and, with {_cut(file.name)}, a folder of files")
        if type(file.size) is not int or not 0 <= file.size <= LARGEST_FILE:
            raise InputError(f"{said} that {_cut(file.name)} has {_cut(file.size)} bytes; no file has")
        if not isinstance(file.digest, str) or not DIGEST.fullmatch(file.digest):
            raise InputError(
                f"{said} that {_cut(file.name)} has the hash {_cut(file.digest)}; it has 40 or 64 hexadecimal digits"
            )
    return snapshot


def _parents(name: str) -> Iterator[str]:
    """The folders that a file lies in: a and a/b of a/b/c."""
    return (name[:place] for place, letter in enumerate(name) if letter == "/")


def _cut(value: object) -> str:
    """What somebody else said, for a message: a string by its beginning, a number with few digits, else its kind."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:80]}...")
    return repr(value) if isinstance(value, float) or (type(value) is int and abs(value) < 10**30) else "no such thing"


def choose(snapshot: Snapshot, choice: Callable[[list[str]], Iterable[str]]) -> Snapshot:
    """`snapshot` with only the files whose names `choice` returns of all names. InputError when it returns none."""
    names = [file.name for file in snapshot.files]
    try:
        chosen = set(choice(names))
    except InputError as error:
        raise InputError(f"{snapshot.source}: {error}{_offline_hint(snapshot.source)}") from None
    if not chosen:
        raise InputError(f"{snapshot.source}: none of its {len(names)} files is asked for; found {names[:10]}")
    return replace(snapshot, files=tuple(file for file in snapshot.files if file.name in chosen))


def download(
    source: Source, choice: Callable[[list[str]], Iterable[str]], folder: Path, options: HubOptions
) -> dict[str, object]:
    """The files of `source` that `choice` returns of all names, in `folder` as in the repository; `Snapshot.record`.

    Each file gets its name only when size and hash are the hub's; right ones that lie there are kept. Raises InputError
    for what does not exist, may not be read, does not come through in `options.retries` further tries, or does not fit
    on the disk.
    """
    snapshot = choose(resolve(source, options), choice)
    _place({folder: snapshot}, options)
    return snapshot.record()


def remove_all_but(folder: Path, names: Collection[str]) -> None:
    """Leave only the files with these names (a/b/c) in a folder of downloads, and the folders that they lie in.

    Whoever reads the folder takes all in it for the repository's: what came with somebody else's results, too.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in [*folders, *files]):
            is_folder = path.is_dir() and not path.is_symlink()
            if not is_folder and path.relative_to(folder).as_posix() not in names:
                remove_tree(path)


@dataclass(frozen=True)
class Patience:
    """How long to wait for room on the disk: for so many seconds in which nothing changes.

    Seconds in which `others_run()`, any job that may lead to more room, do not count.
    """

    seconds: float = 600.0
    others_run: Callable[[], bool] = lambda: False


def fetch_run(
    checkpoints: Sequence[tuple[str, str, str]],
    folder: Path,
    options: HubOptions,
    *,
    code: bool = False,
    to_convert: Collection[str] = (),
    tokenizer: Path | None = None,
    conversion_code: str = "",
    record_file: Path | None = None,
    patience: Patience = Patience(),
) -> dict[str, dict[str, object]]:
    """All checkpoints (name, repository, revision) of a training run, in `folder`/name; the record of each name.

    `folder` appears when it is complete, with those of `to_convert` converted (`tokenizer` as in `convert`; the
    fingerprint of its code is `conversion_code`) and the record written to `record_file`. Until then the files lie in a
    hidden folder beside it, where they survive an error and a kill: another call downloads and converts the rest. A
    file that several checkpoints share, such as the tokenizer, is downloaded once and hard-linked: replace files, never
    write into them.

    With `options.disk_gb`, waits until what all runs beside `folder` take leaves room for this one; `InputError` where
    there is none in all of `patience`.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    snapshots = {}
    for name, repo, revision in checkpoints:
        everything = resolve(Source(repo, revision), options)
        snapshots[name] = choose(everything, lambda names: needed_model_files(names, code))
    record = {name: snapshot.record() for name, snapshot in snapshots.items()}
    if partial.is_symlink():  # nothing here makes one
        partial.unlink()
    marks = {name: conversion_fingerprint(record[name], tokenizer, conversion_code) for name in to_convert}
    converted = {name for name, mark in marks.items() if is_finished(partial / name, mark)}
    places = {name: partial / f"{name}{SOURCE}" if name in marks else partial / name for name in snapshots}
    with _reserved(partial, folder, _planned_bytes(snapshots, marks), options.disk_gb, patience):
        remove_tree(folder)
        missing = {places[name]: snapshot for name, snapshot in snapshots.items() if name not in converted}
        remove_others(partial, {PLANNED_BYTES, *snapshots, *(path.name for path in missing)})
        if missing:
            _place(missing, options)
        for path, snapshot in missing.items():
            remove_others(path, {file.name for file in snapshot.files})
        for name in [name for name in marks if name not in converted]:
            with _disk_full_told(partial / name, snapshots[name]):
                convert_once(places[name], partial / name, tokenizer, marks[name])
            remove_tree(places[name])
        if record_file:
            write_json(record, record_file)
        with nullcontext() if options.disk_gb is None else _locked(folder.parent):
            partial.rename(folder)  # last: what fails after it would take the files with it
    return record


def _planned_bytes(snapshots: Mapping[str, Snapshot], to_convert: Collection[str]) -> int:
    """What a run will take of the disk. What is converted is a copy: no link to the hub cache or to another one."""
    linked = {Path(name): snapshot for name, snapshot in snapshots.items() if name not in to_convert}
    copied = [file.size for name in to_convert for file in snapshots[name].files]
    return sum(file.size for file in _own_files(linked).values()) + sum(copied)


def _own_files(snapshots: Mapping[Path, Snapshot]) -> dict[Path, RemoteFile]:
    """The files that take room on the disk, by path: neither in the hub cache nor equal to an earlier one."""
    digests, own = set(), {}
    for folder, snapshot in snapshots.items():
        for file in snapshot.files:
            if file.digest not in digests and not _cached(snapshot, file.name):
                own[folder / file.name] = file
            digests.add(file.digest)
    return own


def _place(snapshots: Mapping[Path, Snapshot], options: HubOptions) -> None:
    """Bring the files of each snapshot into its folder: as they lie there, linked, or downloaded."""
    for folder in snapshots:
        if folder.is_symlink():  # nothing here makes one, and files would be written where it leads
            folder.unlink()
        remove_tree(folder / WORKSPACE)  # a killed job leaves half of a file there
    _require_room(snapshots)
    placed: dict[str, Path] = {}
    total = sum(file.size for snapshot in snapshots.values() for file in snapshot.files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="download", mininterval=5) as progress:
        for folder, snapshot in snapshots.items():
            with _workspace(folder) as workspace, _disk_full_told(folder, snapshot):
                for file in snapshot.files:
                    before, target = progress.n, folder / file.name
                    require_inside(target.parent, folder)
                    if not file.is_at(target) and not _linked(snapshot, file, target, placed):
                        _download_file(snapshot, file, target, workspace, options.retries, progress)
                    placed.setdefault(file.digest, target)
                    # Linked files counted nothing, bytes of a failed try counted twice.
                    progress.update(before + file.size - progress.n)


def _require_room(snapshots: Mapping[Path, Snapshot]) -> None:
    missing = [
        file.size
        for path, file in _own_files(snapshots).items()
        if not (path.is_file() and path.stat().st_size == file.size)
    ]
    folder = next(iter(snapshots))
    there = next(path for path in folder.absolute().parents if path.is_dir())
    free = shutil.disk_usage(there).free
    if sum(missing) > free:
        raise InputError(
            f"{folder.parent}: the disk has {free / 1e9:.2f} GB free, but the files to download need "
            f"{sum(missing) / 1e9:.2f} GB ({len(missing)} files, of {_first_source(snapshots)}); make room"
        )


def _first_source(snapshots: Mapping[Path, Snapshot]) -> str:
    first, *others = (str(snapshot.source) for snapshot in snapshots.values())
    return f"{first} and {len(others)} more" if others else first


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files, on the same disk as `folder`."""
    try:
        yield folder / WORKSPACE
    finally:
        remove_tree(folder / WORKSPACE)


@contextmanager
def _disk_full_told(folder: Path, snapshot: Snapshot) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # safetensors raises one of its own
        if not _is_disk_full(error):
            raise
        raise InputError(
            f"{folder}: the disk is full, in the middle of {snapshot.source}; finished files stay, so make room and "
            "run again"
        ) from None


def _is_disk_full(error: Exception) -> bool:
    # hf_xet and safetensors tell the number in words only.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)


def _linked(snapshot: Snapshot, file: RemoteFile, target: Path, placed: Mapping[str, Path]) -> bool:
    """Make `target` a link to its like among those `placed` in this run, or in the hub cache; False without one."""
    from huggingface_hub import is_offline_mode

    target.parent.mkdir(parents=True, exist_ok=True)
    remove_tree(target)
    if file.digest in placed:
        _link(placed[file.digest], target, otherwise=shutil.copyfile)
        return True
    cached = _cached(snapshot, file.name)
    if cached and file.is_at(cached):
        _link(cached, target, otherwise=os.symlink)
        return True
    if cached:
        log.warning("%s is broken: %s", cached, file.differs(cached))
    if is_offline_mode():
        fault = f"{cached} is broken: {file.differs(cached)}" if cached else f"{file.name} is not in the hub cache"
        raise InputError(f"{snapshot.source}: {fault}{_offline_hint(snapshot.source)}")
    return False


def _link(path: Path, target: Path, otherwise: Callable[[Path, Path], object]) -> None:
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or one that knows no hard links
        otherwise(path.resolve(), target)


def _download_file(
    snapshot: Snapshot, file: RemoteFile, target: Path, workspace: Path, retries: int, progress: tqdm
) -> None:
    """Download `file`, check it, and move it to `target`."""
    from huggingface_hub import hf_hub_download

    folder = workspace.parent

    def fetch() -> None:
        path = hf_hub_download(
            snapshot.source.repo,
            file.name,
            revision=snapshot.commit,
            repo_type=snapshot.source.repo_type,
            endpoint=_endpoint(),
            local_dir=workspace,
            cache_dir=workspace / "no cache",  # what the user's cache holds was looked at before and is not right
            tqdm_class=_bar_within(progress, file.size),
        )
        if not file.is_at(Path(path)):
            differs = file.differs(Path(path))
            os.unlink(path)
            raise WrongBytes(differs)
        require_inside(target.parent, folder)  # again: a download takes long
        os.replace(path, target)

    _with_retries(fetch, snapshot.source, retries, file.name)


def _bar_within(progress: tqdm, most: float = math.inf) -> type[tqdm]:
    """A kind of bar that shows nothing and counts for `progress`; it raises `WrongBytes` behind the `most`th byte."""
    before = progress.n

    class Bytes(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n=1):
            progress.update(n)
            if progress.n - before > most:  # a server without an end would fill the disk
                raise WrongBytes(f"found more bytes than the {most} that the hub promises")

        # Xet tells of each byte twice: when it comes, here, and when it is written, above.
        def update_transfer(self, n):
            pass

        def set_transfer_postfix_str(self, *args, **kwargs):
            pass

    return Bytes


def _with_retries(action: Callable[[], Result], source: Source, retries: int, name: str | None = None) -> Result:
    """What `action` returns. Errors that may pass are met with further tries; in the end they become InputError.

    `name`: the file that it is about. A full disk and other faults of this machine are raised as they are.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    about = f"{source}, file {name}" if name else f"{source}"
    for attempt in range(retries + 1):
        try:
            return action()
        except Exception as error:  # what a server sends may have any form, and each of a library's raises its own
            # hf_hub_download says "not in the cache" whatever happened.
            fault = (error.__cause__ or error) if isinstance(error, LocalEntryNotFoundError) else error
            is_of_machine = isinstance(fault, OSError) and fault.errno is not None
            if isinstance(error, InputError) or is_of_machine or _is_disk_full(fault):
                raise
            if attempt == retries or not _may_pass(fault):
                raise InputError(f"{about}: {_explained(fault, source)}") from None
            seconds = _seconds_to_wait(fault, attempt)
            log.warning("%s: %s; trying again in %.0f s", about, _words(fault), seconds)
        time.sleep(seconds)


def _may_pass(fault: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the second: of the HTTP library itself

    if isinstance(fault, HfHubHTTPError):
        # A plain 403 comes from the storage behind the hub when the signed address of a file has expired.
        status = fault.response.status_code
        return status in (408, 429) or status >= 500 or (status == 403 and type(fault) is HfHubHTTPError)
    return isinstance(fault, HTTPError | OSError | RuntimeError) and not isinstance(fault, ValueError | RecursionError)


def _seconds_to_wait(fault: Exception, attempt: int) -> float:
    """Exponential backoff with jitter, or longer if the server asks for it, up to `LONGEST_ASKED`."""
    from huggingface_hub.utils import parse_ratelimit_headers

    seconds = min(LONGEST_WAIT, 2.0**attempt) * random.uniform(0.5, 1.5)
    headers = fault.response.headers if hasattr(fault, "response") else {}
    asked = headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(headers)  # `_bound_waits` has made its numbers short
    if re.fullmatch("[0-9]+", asked):
        seconds = max(seconds, int(asked))
    if limit is not None and limit.remaining == 0:
        seconds = max(seconds, limit.reset_in_seconds)
    return min(seconds, LONGEST_ASKED)


@cache
def _bound_waits() -> None:
    """Let no answer ask huggingface_hub, which tries again by itself, to wait for longer than `LONGEST_ASKED`."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client():
        made = default_client_factory()
        made.event_hooks["response"].append(_shorten_waits)
        return made

    set_client_factory(client)


def _shorten_waits(response: "Response") -> None:
    for name in ("Retry-After", "RateLimit"):
        if name in response.headers:
            response.headers[name] = re.sub("[0-9]{4,}", f"{LONGEST_ASKED:.0f}", response.headers[name])


def _explained(fault: Exception, source: Source) -> str:
    """What went wrong and what would help, in words that cannot hold the token."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = _shown_endpoint()
    if isinstance(fault, GatedRepoError):
        return (
            "the repository is gated; accept the conditions on the page of the repository with the account of "
            "HF_TOKEN, and set HF_TOKEN in the environment"
        )
    if isinstance(fault, RepositoryNotFoundError):
        return (
            f"{endpoint} shows no such repository; correct its id, or if it is gated or private set HF_TOKEN in the "
            "environment to the token of an account that may read it"
        )
    if isinstance(fault, RevisionNotFoundError):
        return f"no such branch, tag or commit{_close_revisions(source)}"
    if isinstance(fault, HfHubHTTPError) and fault.response.status_code == 401:
        return f"{endpoint} refuses the token; set HF_TOKEN in the environment to one that is valid"
    if isinstance(fault, HfHubHTTPError | WrongBytes):
        return f"{_words(fault)}, from {endpoint}"
    if isinstance(fault, HFValidationError):
        return "not an id that a repository can have; it is 'name' or 'organisation/name'"
    return (
        f"no use of {endpoint} ({_words(fault)}); check the network, set HF_ENDPOINT to a mirror, or "
        f"HF_HUB_OFFLINE=1 to take what the hub cache {_cache_folder()} holds"
    )


def _words(fault: Exception) -> str:
    """One line for a log. Never the text of a server, which may repeat what it was sent.

    Nor that of a library where the address of the mirror or a proxy holds a password: it may repeat it in any spelling.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(fault, HfHubHTTPError):
        return f"HTTP status {fault.response.status_code}"
    if isinstance(fault, WrongBytes):
        return str(fault)
    if any("@" in address for address in (_endpoint(), *getproxies().values())):
        return type(fault).__name__
    text = str(fault).partition("\n")[0].replace(get_token() or "\n", "<token>")
    return f"{type(fault).__name__}: {text[:LONGEST_CAUSE]}"


def _close_revisions(source: Source) -> str:
    from huggingface_hub import HfApi

    try:
        refs = HfApi(endpoint=_endpoint()).list_repo_refs(source.repo, repo_type=source.repo_type)
    except Exception:  # only a hint
        return ""
    names = [ref.name[:80] for ref in (*refs.branches, *refs.tags)[:1000] if isinstance(ref.name, str)]
    close = get_close_matches(source.revision, names, n=5)
    return f"; close to it are {close}" if close else f"; there are {len(names)}, such as {names[:5]}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _shown_endpoint() -> str:
    """Without the password of a mirror that has one in its address. `InputError`, untold, for what is no address."""
    match = ENDPOINT.fullmatch(_endpoint())
    if not match:
        raise InputError(
            "HF_ENDPOINT: no address of a mirror; it is https://host, with :port, /path and, before the host, "
            "user:password@ where the mirror has them; in a password write what is no letter or digit as %XX"
        )
    return match[1] + match[2]


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached(snapshot: Snapshot, name: str) -> Path | None:
    """The file of this commit in the hub cache."""
    from huggingface_hub import try_to_load_from_cache

    source = snapshot.source
    found = try_to_load_from_cache(source.repo, name, revision=snapshot.commit, repo_type=source.repo_type)
    return Path(found) if isinstance(found, str) and _stays_in(_storage(source), Path(found)) else None


def _storage(source: Source) -> Path:
    """Where the hub cache keeps what it has of a repository."""
    return _cache_folder() / "--".join([f"{source.repo_type}s", *source.repo.split("/")])


def _cached_snapshot(source: Source) -> Snapshot:
    """What the hub cache holds of `source`, in the layout models--<org>--<name>/{refs,snapshots,blobs}."""
    storage = _storage(source)
    ref = storage / "refs" / source.revision
    commit = _first_bytes(ref).decode(errors="replace").strip() if ref.is_file() else source.revision
    folder = storage / "snapshots" / commit
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if COMMIT.fullmatch(commit) else []
    if not files:
        raise InputError(f"{source}: not in the hub cache{_offline_hint(source)}")
    if outside := next((path for path in files if not _stays_in(storage, path)), None):
        raise InputError(
            f"{source}: {_cut(str(outside.relative_to(storage)))} in the hub cache {_cache_folder()} leads out of the "
            f"blobs of {storage.name}; remove that folder and fill it again{_offline_hint(source)}"
        )
    return Snapshot(source, commit, tuple(_cached_file(path, folder) for path in files))


def _stays_in(storage: Path, path: Path) -> bool:
    """Whether a file in the snapshots of `storage` lies there, or is a link to one of its blobs."""
    return path.parent.resolve().is_relative_to(storage.resolve()) and stays_in_folder(path)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def _cached_file(path: Path, snapshot_folder: Path) -> RemoteFile:
    """A link of the cache leads to a blob that is named by its hash; a cache without links does not tell the hash."""
    blob = Path(os.readlink(path)).name if path.is_symlink() else ""
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob):
        with path.open("rb") as file:
            blob = hashlib.file_digest(file, "sha256").hexdigest()
    return RemoteFile(path.relative_to(snapshot_folder).as_posix(), path.stat().st_size, blob)


def _offline_hint(source: Source) -> str:
    """What to do where only the cache may be asked; nothing online."""
    from huggingface_hub import is_offline_mode

    if not is_offline_mode():
        return ""
    kind = "" if source.repo_type == "model" else f" --repo-type {source.repo_type}"
    return (
        f"; HF_HUB_OFFLINE is set, so only the cache {_cache_folder()} (HF_HUB_CACHE) was looked at: fill it, where "
        f"there is network, by: hf download {source.repo} --revision {source.revision}{kind}"
    )


@dataclass(frozen=True)
class _Taken:
    """Bytes that a folder takes of hub.disk_gb: those it will hold if its download lives, else those that lie there."""

    size: int
    is_living: bool

    def told(self, path: Path) -> str:
        if self.is_living:
            state = "is being downloaded"
        else:
            state = "is left of a download that does not run" if path.name.startswith(".") else "waits to be scored"
        return f"{path} {self.size / 1e9:.2f} GB, which {state}"


@contextmanager
def _reserved(partial: Path, folder: Path, planned: int, disk_gb: float | None, patience: Patience) -> Iterator[None]:
    """Wait until `planned` bytes fit beside those of the other runs, then hold them for the download to `partial`.

    They are held by a lock on a file, so that they are free when this process ends, however it ends.
    """
    if disk_gb is None:
        partial.mkdir(parents=True, exist_ok=True)
        yield
        return
    if planned > disk_gb * 1e9:
        raise InputError(
            f"{partial.parent}: the weights of one training run take {planned / 1e9:.2f} GB, more than hub.disk_gb "
            f"{disk_gb:g}; it must be at least that"
        )
    partial.parent.mkdir(parents=True, exist_ok=True)
    before, since, said = None, time.monotonic(), float("-inf")
    while True:
        with _locked(partial.parent):
            taken = _taken_by_others(partial, folder)
            if partial not in taken and sum(t.size for t in taken.values()) + planned <= disk_gb * 1e9:
                partial.mkdir(exist_ok=True)
                remove_tree(partial / PLANNED_BYTES)  # of another's results: somebody may have it open, and lock it
                reservation = _open_lock(partial / PLANNED_BYTES)
                reservation.truncate()
                fcntl.flock(reservation, fcntl.LOCK_EX)
                print(planned, file=reservation, flush=True)
                break
        told = "; ".join(t.told(path) for path, t in taken.items())
        now = time.monotonic()
        if now - said >= SAY_SECONDS:
            said = now
            log.info("waiting for %.2f GB of the %g GB of hub.disk_gb; taken: %s", planned / 1e9, disk_gb, told)
        if taken != before or any(t.is_living for t in taken.values()):
            before, since = taken, now
        elif now - since >= SAY_SECONDS and patience.others_run():
            since = now
        elif now - since >= patience.seconds:
            raise InputError(
                f"{folder}: its {planned / 1e9:.2f} GB have no room in hub.disk_gb {disk_gb:g}, and in "
                f"{patience.seconds / 60:.0f} minutes nothing ran that could make room. Taken: {told}. Mend what "
                "failed and run again: the runs of the study are then finished, scored and removed. Remove the "
                "folders of runs that the study has no more, or raise hub.disk_gb"
            )
        time.sleep(POLL_SECONDS)
    with reservation:
        yield


def _taken_by_others(partial: Path, folder: Path) -> dict[Path, _Taken]:
    """What lies beside `partial` and `folder`; `partial`, too, while another process downloads to it."""
    taken = {}
    for path in sorted(path for path in partial.parent.iterdir() if path.is_dir() and path != folder):
        planned = _living_reservation(path)
        if planned is not None:
            taken[path] = _Taken(planned, is_living=True)
        elif path != partial and (size := _bytes_of_its_own(path)):
            taken[path] = _Taken(size, is_living=False)
    return taken


def _living_reservation(folder: Path) -> int | None:
    """Bytes that a living process has reserved for `folder`."""
    try:
        opened = os.fdopen(os.open(folder / PLANNED_BYTES, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError:  # none, or nobody's of this user: a link, a folder, another user's
        return None
    with opened as file:
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.getuid():
            return None  # whoever may open it may lock it, and would be waited for
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found = file.read(20).strip()
            return int(found) if re.fullmatch("[0-9]+", found) else 0
    return None


def _bytes_of_its_own(folder: Path) -> int:
    """Bytes that are free when `folder` is removed: of all its files but those that are linked from elsewhere, too."""
    links: Counter[tuple[int, int]] = Counter()
    files = {}
    for path, _, names in os.walk(folder):
        for name in set(names) - {PLANNED_BYTES}:
            with suppress(FileNotFoundError):  # scored and removed at this moment
                status = os.lstat(os.path.join(path, name))
                links[status.st_dev, status.st_ino] += 1
                files[status.st_dev, status.st_ino] = status
    return sum(file.st_size for key, file in files.items() if S_ISREG(file.st_mode) and links[key] == file.st_nlink)


def _open_lock(path: Path) -> TextIO:
    """A file to lock, which nobody else can hold locked. Never what a link leads to."""
    if path.is_symlink():
        path.unlink()
    return os.fdopen(open_private(path), "w")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among the download jobs of this machine or file system."""
    with _open_lock(folder / ".lock") as file:
        try:
            _wait_for_lock(file, folder)
        except OSError as error:
            raise InputError(
                f"{folder}: hub.disk_gb needs file locks, which this file system lacks ({error})"
            ) from None
        yield


def _wait_for_lock(file: TextIO, folder: Path) -> None:
    """Others hold it for as long as it takes to look at a folder. `InputError` after `LOCK_SECONDS`."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise InputError(
                    f"{folder / '.lock'}: locked by another process for {LOCK_SECONDS:.0f} s; end the download that "
                    "hangs, then run again"
                ) from None
            time.sleep(0.05)
