"""Finds results that are damaged or lack a part, and removes them, so that Snakemake makes them again."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from proxycast.options import InputError
from proxycast.tables import (
    MANIFEST,
    NAME,
    is_unchanged,
    is_whole_csv,
    is_whole_parquet,
    names_parts,
    read_json,
    remove_tree,
    sealed_by,
    set_aside,
)
from proxycast.training.text.corpus import lost_parts
from proxycast.weights.model_files import safetensors_header, weight_files
from proxycast.weights.model_folder import FINGERPRINT_FILE

TRAINING_MANIFESTS = ("suite/trained/*.json", "suite/post_trained/*.json", "text/trained/*.json")
TRAINED_CHECKPOINT = re.compile(f"{NAME.pattern}[/-]step[0-9]{{1,20}}")  # a folder of models that were trained here


def broken_results(results: Path) -> tuple[list[Path], list[Path]]:
    """Every damaged file and checkpoint below `results`, and all files that have to be made again for them.

    A job with a damaged checkpoint or table loses its manifest too. When it runs again it keeps what is whole. Hidden
    files are left alone: a running job is writing them.
    """
    broken: list[Path] = []
    to_make: list[Path] = []
    # Faster than rglob: there can be tens of thousands of tables. Parts of the results may be linked to another disk.
    root = os.path.realpath(results)
    seen = {root}
    for folder, folders, files in os.walk(results, followlinks=True):
        is_linked = not Path(os.path.realpath(folder)).is_relative_to(root)
        # A link may lead anywhere. It is followed down to the jobs of scoring, <kind>/<job>, and no further.
        folders[:] = [] if is_linked and len(Path(folder).relative_to(results).parts) > 1 else folders
        folders[:] = [name for name in folders if os.path.realpath(f"{folder}/{name}") not in seen]
        seen.update(os.path.realpath(f"{folder}/{name}") for name in folders)
        manifest = Path(folder, MANIFEST)
        # Behind a link only the tables that a manifest beside them names are ours.
        ours = {f"{name}.parquet" for name in _scored_tables(manifest)} & set(files) if is_linked else files
        tables = [f"{folder}/{name}" for name in files if name.endswith(".parquet") and not name.startswith(".")]
        truncated = [Path(table) for table in tables if not is_whole_parquet(table) and os.path.basename(table) in ours]
        copies = (
            [] if is_linked else [path for table in tables if (path := Path(table).with_suffix(".csv")).name in files]
        )
        truncated += [path for path in copies if not is_whole_csv(path)]
        is_whole = (is_linked and not ours) or _is_whole_manifest(manifest, files)
        if MANIFEST in files and (truncated or not is_whole):
            to_make.append(manifest)
            broken += [] if truncated else [manifest]
        seals = [] if is_linked else [path for name in files if (path := sealed_by(Path(folder, name)))]
        changed = [path for path in seals if not is_unchanged(path)]
        broken += truncated + changed
        to_make += truncated + changed
    for manifest in results.glob("text/*/manifest.json"):
        if manifest not in to_make and _is_below(manifest, root) and (lost := lost_parts(manifest)):
            broken += [path for path in lost if path not in broken]
            to_make.append(manifest)
    records = [path for path in results.glob("revisions/**/*.json") if not _is_record(read_json(path))]
    records = [path for path in records if _is_below(path, root)]
    broken += records
    to_make += records
    for manifest in chain.from_iterable(map(results.glob, TRAINING_MANIFESTS)):
        folders = _trained_folders(manifest)
        damaged = [folder for folder in folders if not _is_whole_checkpoint(folder)]
        broken += damaged if folders else [manifest]
        models = os.path.realpath(manifest.parent.with_name("models"))
        own = [folder for folder in damaged if _is_below(folder, models) and not folder.is_symlink()]
        to_make += [folder for folder in own if _is_below(folder, root) or (folder / FINGERPRINT_FILE).is_file()]
        to_make += [manifest] if damaged or (not folders and _is_below(manifest, root)) else []
    return broken, to_make


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders that exist. A table is renamed instead: it may be the user's own."""
    for path in paths:
        if path.suffix in (".parquet", ".csv") and path.exists():
            set_aside(path)
        else:
            remove_tree(path)


def _is_below(path: Path, root: str) -> bool:
    """Whether the folder that `path` lies in is, links followed, `root` or one below it."""
    return path.parent.resolve().is_relative_to(root)


def _scored_tables(manifest: Path) -> Iterable[str]:
    """The tables that a manifest of scoring names; none where it is not one."""
    parts = read_json(manifest)
    return parts if names_parts(parts) else ()


def _is_whole_manifest(manifest: Path, files: list[str]) -> bool:
    """Whether a manifest can be read and, if it is a scoring job's, the tables that it names are among the `files`."""
    if manifest.parts[-3] in ("token_stats", "targets"):
        parts = _scored_tables(manifest)
        return bool(parts) and {f"{name}.parquet" for name in parts}.issubset(files)
    try:
        found = json.loads(manifest.read_text()) if manifest.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    is_of_text = manifest.parts[-3] == "text"
    return not is_of_text or (isinstance(found, list) and all(isinstance(s, dict) and "content" in s for s in found))


def _is_record(found: Mapping[str, object]) -> bool:
    """Whether this is the record of a download, or that of each checkpoint of a run."""
    records = [found] if "commit" in found else [*found.values()]
    return bool(records) and all(
        isinstance(record, dict) and isinstance(record.get("commit"), str) for record in records
    )


def _trained_folders(manifest: Path) -> list[Path]:
    """The checkpoints that a manifest of training names; none where it names anything else."""
    models, names = manifest.parent.with_name("models"), list(read_json(manifest))
    folders = [models / name for name in names if TRAINED_CHECKPOINT.fullmatch(name)]
    return folders if len(folders) == len(names) else []


def _is_whole_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint that was trained here has its files, and all bytes of its weights."""
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return False
    try:
        return all(safetensors_header(file) is not None for file in weight_files(folder))
    except (InputError, OSError):
        return False
