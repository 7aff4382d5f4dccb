"""What a repository of the hub holds at a commit, which of it a model needs, and what the hub cache has of it."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from proxycast.options import InputError
from proxycast.tables import digest_of
from proxycast.weights.model_files import COMMIT, HASH, TOKENIZER_FILES, WEIGHT_FORMATS, stays_in_folder
from proxycast.weights.model_folder import adapters_among

MODEL_FILES = {
    *("config.json", "generation_config.json", *TOKENIZER_FILES),
    *("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"),
}


@dataclass(frozen=True)
class HubSource:
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
        if len(self.digest) == 64:
            return digest_of(path)
        with path.open("rb") as file:
            header = b"blob %d\0" % path.stat().st_size
            return hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """The commit of a source, and files of it."""

    source: HubSource
    commit: str
    files: tuple[RemoteFile, ...]

    def record(self) -> dict[str, object]:
        """What was used, for a JSON file: {repo, revision, commit, files: {name: {size, sha256 or blob_id}}}."""
        kinds = {64: "sha256", 40: "blob_id"}
        files = {file.name: {"size": file.size, kinds[len(file.digest)]: file.digest} for file in self.files}
        return {"repo": self.source.repo, "revision": self.source.revision, "commit": self.commit, "files": files}


def needed_model_files(names: Iterable[str], code: bool = False) -> list[str]:
    """Those of `names` that inference needs: configuration, tokenizer, weights in one format; `code`: *.py as well.

    Weights are model.safetensors, else its index and shards, else the same of pytorch_model.bin. Subfolders are left
    out. Raises InputError, without the repository's name, if configuration or weights are missing or an adapter is
    there.
    """
    top = [name for name in names if "/" not in name]
    if adapters := adapters_among(top):
        raise InputError(adapters)
    if "config.json" not in top:
        raise InputError(f"found {top}, but no config.json; a model in the layout of transformers has one")
    weights = next((found for found in (_weights(top, *kind) for kind in WEIGHT_FORMATS) if found), None)
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


def shortened(value: object) -> str:
    """A value from outside, for a message: the beginning of a string, a number with few digits, else no value."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:80]}...")
    return repr(value) if isinstance(value, float) or (type(value) is int and abs(value) < 10**30) else "no such thing"


def choose(snapshot: Snapshot, choice: Callable[[list[str]], Iterable[str]]) -> Snapshot:
    """`snapshot` with only the files whose names `choice` returns of all names. InputError when it returns none."""
    names = [file.name for file in snapshot.files]
    try:
        chosen = set(choice(names))
    except InputError as error:
        raise InputError(f"{snapshot.source}: {error}{offline_hint(snapshot.source)}") from None
    if not chosen:
        raise InputError(f"{snapshot.source}: none of its {len(names)} files is asked for; found {names[:10]}")
    return replace(snapshot, files=tuple(file for file in snapshot.files if file.name in chosen))


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_file(snapshot: Snapshot, name: str) -> Path | None:
    """The file of this commit in the hub cache."""
    from huggingface_hub import try_to_load_from_cache

    source = snapshot.source
    found = try_to_load_from_cache(source.repo, name, revision=snapshot.commit, repo_type=source.repo_type)
    return Path(found) if isinstance(found, str) and _stays_in(_storage(source), Path(found)) else None


def _storage(source: HubSource) -> Path:
    """Where the hub cache keeps what it has of a repository."""
    return cache_folder() / "--".join([f"{source.repo_type}s", *source.repo.split("/")])


def cached_snapshot(source: HubSource) -> Snapshot:
    """What the hub cache holds of `source`, in the layout models--<org>--<name>/{refs,snapshots,blobs}."""
    storage = _storage(source)
    ref = storage / "refs" / source.revision
    commit = _first_bytes(ref).decode(errors="replace").strip() if ref.is_file() else source.revision
    folder = storage / "snapshots" / commit
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if COMMIT.fullmatch(commit) else []
    if not files:
        raise InputError(f"{source}: not in the hub cache{offline_hint(source)}")
    if outside := next((path for path in files if not _stays_in(storage, path)), None):
        raise InputError(
            f"{source}: {shortened(str(outside.relative_to(storage)))} in the hub cache {cache_folder()} leads out of "
            f"the blobs of {storage.name}; remove that folder and fill it again{offline_hint(source)}"
        )
    return Snapshot(source, commit, tuple(_cached_file(path, folder) for path in files))


def _stays_in(storage: Path, path: Path) -> bool:
    """Whether a file in the snapshots of `storage` lies there, or is a link to one of its blobs."""
    return path.parent.resolve().is_relative_to(storage.resolve()) and stays_in_folder(path)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def _cached_file(path: Path, snapshot_folder: Path) -> RemoteFile:
    """In a cache with links a blob's name is its hash; in one without links, the hash is computed."""
    blob = Path(os.readlink(path)).name if path.is_symlink() else ""
    digest = blob if HASH.fullmatch(blob) else digest_of(path)
    return RemoteFile(path.relative_to(snapshot_folder).as_posix(), path.stat().st_size, digest)


def offline_hint(source: HubSource) -> str:
    """What to do if only the cache may be used; empty online."""
    from huggingface_hub import is_offline_mode

    if not is_offline_mode():
        return ""
    kind = "" if source.repo_type == "model" else f" --repo-type {source.repo_type}"
    return (
        f"; HF_HUB_OFFLINE is set, so only the cache {cache_folder()} (HF_HUB_CACHE) was looked at: fill it, where "
        f"there is network, by: hf download {source.repo} --revision {source.revision}{kind}"
    )
