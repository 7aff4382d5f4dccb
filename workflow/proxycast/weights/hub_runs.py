"""All checkpoints of a training run from the hub, in one folder that appears when it is complete."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from proxycast.config.study import HubOptions
from proxycast.tables import remove_tree, write_json
from proxycast.weights.conversion import conversion_fingerprint, convert_once, remove_others
from proxycast.weights.disk_room import PLANNED_BYTES, Patience, folder_lock, reserved_room
from proxycast.weights.hub import disk_full_told, place_files, stored_files
from proxycast.weights.hub_requests import resolve
from proxycast.weights.hub_snapshots import HubSource, Snapshot, choose, needed_model_files
from proxycast.weights.model_folder import is_finished

TO_CONVERT = ".source"  # ends the name of a checkpoint's folder that is still to be converted


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
    patience: Patience | None = None,
) -> dict[str, dict[str, object]]:
    """Download all checkpoints (name, repository, revision) of a training run to `folder`/name; a record for each name.

    `folder` appears when it is complete: those of `to_convert` converted (`tokenizer` as in `convert`,
    `conversion_code` the fingerprint of its code), the records in `record_file`. Until then the files lie in a hidden
    folder beside it, where another call finds them after an error or a kill. A file that several checkpoints share is
    downloaded once and hard-linked: replace files, never write into them.

    With `options.disk_gb`, waits for room among all runs beside `folder`. Raises InputError after `patience`.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    snapshots = {}
    for name, repo, revision in checkpoints:
        everything = resolve(HubSource(repo, revision), options)
        snapshots[name] = choose(everything, lambda names: needed_model_files(names, code))
    record = {name: snapshot.record() for name, snapshot in snapshots.items()}
    if partial.is_symlink():  # nothing here makes one
        partial.unlink()
    fingerprints = {name: conversion_fingerprint(record[name], tokenizer, conversion_code) for name in to_convert}
    converted = {name for name, made_from in fingerprints.items() if is_finished(partial / name, made_from)}
    places = {name: partial / f"{name}{TO_CONVERT}" if name in fingerprints else partial / name for name in snapshots}
    with reserved_room(
        partial, folder, _planned_bytes(snapshots, fingerprints), options.disk_gb, patience or Patience()
    ):
        remove_tree(folder)
        missing = {places[name]: snapshot for name, snapshot in snapshots.items() if name not in converted}
        remove_others(partial, {PLANNED_BYTES, *snapshots, *(path.name for path in missing)})
        if missing:
            place_files(missing, options)
        for path, snapshot in missing.items():
            remove_others(path, {file.name for file in snapshot.files})
        for name in [name for name in fingerprints if name not in converted]:
            with disk_full_told(partial / name, snapshots[name]):
                convert_once(places[name], partial / name, tokenizer, fingerprints[name])
            remove_tree(places[name])
        if record_file:
            write_json(record, record_file)
        with nullcontext() if options.disk_gb is None else folder_lock(folder.parent):
            partial.rename(folder)  # last: on an error before it, the files stay in the hidden folder
    return record


def _planned_bytes(snapshots: Mapping[str, Snapshot], to_convert: Collection[str]) -> int:
    """Bytes that a run takes of the disk. A converted checkpoint is a copy, never a link."""
    linked = {Path(name): snapshot for name, snapshot in snapshots.items() if name not in to_convert}
    copied = [file.size for name in to_convert for file in snapshots[name].files]
    return sum(file.size for file in stored_files(linked).values()) + sum(copied)
