"""Checkpoints and data sets from the hub: only the files that are needed, each checked against the hub's own hash.

Files in the user's hub cache are linked. These variables of `huggingface_hub` count here too: HF_ENDPOINT (a mirror),
HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_HUB_DISABLE_XET.
"""

import logging
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from proxycast.config.study import HubOptions
from proxycast.options import InputError, require_inside
from proxycast.tables import remove_tree
from proxycast.weights.hub_requests import WORKSPACE, WrongBytes, hub_endpoint, is_disk_full, resolve, with_retries
from proxycast.weights.hub_snapshots import HubSource, RemoteFile, Snapshot, cached_file, choose, offline_hint

log = logging.getLogger(__name__)


def download(
    source: HubSource, choice: Callable[[list[str]], Iterable[str]], folder: Path, options: HubOptions
) -> dict[str, object]:
    """Download the files of `source` that `choice` selects from all names into `folder`; returns `Snapshot.record`.

    A file gets its name only when its size and hash are right; right files that lie there are kept. Raises InputError
    for a source that does not exist or may not be read, a download that fails `options.retries` times more, or a full
    disk.
    """
    snapshot = choose(resolve(source, options), choice)
    place_files({folder: snapshot}, options)
    return snapshot.record()


def remove_all_but(folder: Path, names: Collection[str]) -> None:
    """Leave only the files with these names (a/b/c) in a folder of downloads, and the folders that they lie in.

    Readers of the folder take every file in it for the repository's.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in [*folders, *files]):
            is_folder = path.is_dir() and not path.is_symlink()
            if not is_folder and path.relative_to(folder).as_posix() not in names:
                remove_tree(path)


def stored_files(snapshots: Mapping[Path, Snapshot]) -> dict[Path, RemoteFile]:
    """The files that take room on the disk, by path: neither in the hub cache nor equal to an earlier one."""
    digests, own = set(), {}
    for folder, snapshot in snapshots.items():
        for file in snapshot.files:
            if file.digest not in digests and not cached_file(snapshot, file.name):
                own[folder / file.name] = file
            digests.add(file.digest)
    return own


def place_files(snapshots: Mapping[Path, Snapshot], options: HubOptions) -> None:
    """Bring the files of each snapshot into its folder: keep them, link them, or download them."""
    for folder in snapshots:
        if folder.is_symlink():  # not made here: files would be written to its target
            folder.unlink()
        remove_tree(folder / WORKSPACE)  # a killed job may have left half of a file
    _require_room(snapshots)
    placed: dict[str, Path] = {}
    total = sum(file.size for snapshot in snapshots.values() for file in snapshot.files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="download", mininterval=5) as progress:
        for folder, snapshot in snapshots.items():
            with ExitStack() as stack, disk_full_told(folder, snapshot):
                stack.callback(remove_tree, folder / WORKSPACE)
                for file in snapshot.files:
                    before, target = progress.n, folder / file.name
                    require_inside(target.parent, folder)
                    if not file.is_at(target) and not _linked(snapshot, file, target, placed):
                        _download_file(snapshot, file, target, folder, options.retries, progress)
                    placed.setdefault(file.digest, target)
                    # Linked files counted nothing, bytes of a failed try counted twice.
                    progress.update(before + file.size - progress.n)


def _require_room(snapshots: Mapping[Path, Snapshot]) -> None:
    missing = [
        file.size
        for path, file in stored_files(snapshots).items()
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
def disk_full_told(folder: Path, snapshot: Snapshot) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # safetensors raises one of its own
        if not is_disk_full(error):
            raise
        raise InputError(
            f"{folder}: the disk is full, in the middle of {snapshot.source}; finished files stay, so make room and "
            "run again"
        ) from None


def _linked(snapshot: Snapshot, file: RemoteFile, target: Path, placed: Mapping[str, Path]) -> bool:
    """Link `target` to the same file among those `placed` in this run or in the hub cache; False if there is none."""
    from huggingface_hub import is_offline_mode

    target.parent.mkdir(parents=True, exist_ok=True)
    remove_tree(target)
    if file.digest in placed:
        _link(placed[file.digest], target, otherwise=shutil.copyfile)
        return True
    cached = cached_file(snapshot, file.name)
    if cached and file.is_at(cached):
        _link(cached, target, otherwise=os.symlink)
        return True
    if cached:
        log.warning("%s is broken: %s", cached, file.differs(cached))
    if is_offline_mode():
        fault = f"{cached} is broken: {file.differs(cached)}" if cached else f"{file.name} is not in the hub cache"
        raise InputError(f"{snapshot.source}: {fault}{offline_hint(snapshot.source)}")
    return False


def _link(path: Path, target: Path, otherwise: Callable[[Path, Path], object]) -> None:
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or one that knows no hard links
        otherwise(path.resolve(), target)


def _download_file(
    snapshot: Snapshot, file: RemoteFile, target: Path, folder: Path, retries: int, progress: tqdm
) -> None:
    """Download `file`, check it, and move it to `target` in `folder`."""
    from huggingface_hub import hf_hub_download

    workspace = folder / WORKSPACE

    def fetch() -> None:
        path = hf_hub_download(
            snapshot.source.repo,
            file.name,
            revision=snapshot.commit,
            repo_type=snapshot.source.repo_type,
            endpoint=hub_endpoint(),
            local_dir=workspace,
            cache_dir=workspace / "no cache",  # the user's cache has no right one
            tqdm_class=_bar_within(progress, file.size),
        )
        if not file.is_at(Path(path)):
            differs = file.differs(Path(path))
            os.unlink(path)
            raise WrongBytes(differs)
        require_inside(target.parent, folder)  # again: a download takes long
        os.replace(path, target)

    with_retries(fetch, snapshot.source, retries, file.name)


def _bar_within(progress: tqdm, most: float = math.inf) -> type[tqdm]:
    """A hidden bar that counts for `progress`; it raises `WrongBytes` after more than `most` bytes."""
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
