"""The files of a model folder, read without trust in their content."""

import math
import re
from pathlib import Path

from proxycast.options import InputError, is_inner_name, json_value, require_regular

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# Of each format, in the order of `transformers`: whole weights, the index of shards, a shard and how many there are.
WEIGHT_FORMATS = (
    ("model.safetensors", "model.safetensors.index.json", r"model.*-\d+-of-(\d+)\.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", r"pytorch_model.*-\d+-of-(\d+)\.bin"),
)
INDEX = "model.safetensors.index.json"  # of weights in several files
LONGEST_HEADER = 100_000_000  # bytes of a header of safetensors, as the library has it
CACHED = re.compile("(models|datasets)--")  # begins the name of a folder in a hub cache
COMMIT = re.compile("[0-9a-f]{40}")
HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # the name of a file that one of its blobs is


def require_own_file(path: Path) -> None:
    """Raise InputError for a link out of the folder of `path`, except to a file in a hub cache.

    Whoever made the folder may not be allowed to read the target: it must not be copied to the results or shown.
    """
    if path.is_symlink() and not stays_in_folder(path):
        raise InputError(
            f"{path}: a link out of its folder; only weights that are scored as they are may be links, and what leads "
            "to the files of a hub cache (HF_HUB_CACHE): put a copy of the file in its place"
        )


def stays_in_folder(path: Path) -> bool:
    """Whether a file lies in its folder, is a link within it, or one to a file that a hub cache holds."""
    target, folder = path.resolve(), path.parent.resolve()
    return target.is_relative_to(folder) or _is_in_a_cache(target, folder)


def _is_in_a_cache(target: Path, folder: Path) -> bool:
    """Whether a file is a blob of the cache that `folder` is a snapshot of, or lies in the user's own hub cache.

    A cache is <cache>/models--<org>--<name>/{blobs/<hash>, snapshots/<commit>/<name>}; shared blobs lie in
    <cache>/blobs/<two digits>/<hash>. A name that is no hash is no blob.
    """
    storages = [p.parent for p in folder.parents if p.name == "snapshots" and CACHED.match(p.parent.name)]
    blobs = [storage / "blobs" for storage in storages], [storage.parent / "blobs" for storage in storages]
    if HASH.fullmatch(target.name):
        own, shared = ({path.resolve() for path in paths} for paths in blobs)
        if target.parent in own or target.parent.parent in shared:
            return True
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).resolve()
    parts = target.relative_to(cache).parts if target.is_relative_to(cache) else ()
    is_blob = "blobs" in parts[:2] and HASH.fullmatch(target.name) is not None
    return is_blob or parts[1:2] == ("snapshots",)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that decide the tokens of a text, as far as they exist."""
    found = [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]
    for path in found:
        require_own_file(path)
    return found


def tokenizer_json(folder: Path) -> Path:
    """The file tokenizer.json. Raises InputError where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        found = sorted(path.name for path in folder.iterdir())
        raise InputError(
            f"{folder}: tokenizer.json missing; found {found}; the save_pretrained of a fast tokenizer writes it"
        )
    require_own_file(path)
    return path


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `transformers` reads: model.safetensors, or else the shards that its index lists."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        found = sorted(path.name for path in folder.iterdir())
        raise InputError(
            f"{folder}: weights missing; found {found}; there must be model.safetensors, or {INDEX} with its shards"
        )
    return shards(index)


def shards(index: Path) -> list[Path]:
    """The files that an index lists. Raises InputError where it lists none, one is missing or one lies elsewhere."""
    listed = json_object(index).get("weight_map", {})
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    for name in listed.values() if isinstance(listed, dict) else [None]:
        # Libraries join the name to the folder.
        if not is_inner_name(name) or "/" in name or not name.endswith(suffix):
            shown = repr(name[:80]) if isinstance(name, str) else f"a {type(name).__name__}"
            raise InputError(f"{index}, key weight_map: found {shown}; it names *{suffix} files that lie beside it")
    names = sorted(set(listed.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise InputError(f"{index}: lists {len(names)} files; missing of them: {missing}")
    return [index.parent / name for name in names]


def safetensors_header(path: Path) -> dict[str, list[int]]:
    """Shape of each tensor in `path`. Raises InputError when the file is not exactly as long as its header says."""
    return {name: entry["shape"] for name, entry in tensor_entries(path).items()}


def tensor_entries(path: Path) -> dict[str, dict]:
    """What the header says of each tensor: shape, dtype, data_offsets."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        header_bytes = file.read(header_length) if header_length <= min(size, LONGEST_HEADER) else b""
    if header_length > LONGEST_HEADER:
        raise InputError(
            f"{path}: its safetensors header claims {header_length:,} bytes, of at most {LONGEST_HEADER:,}; "
            "the file is of another kind"
        )
    try:
        header = json_value(header_bytes)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        expected = 8 + header_length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        [(_dimensions(entry["shape"]), entry["dtype"]) for entry in tensors.values()]
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise InputError(
            f"{path}: no readable safetensors header in {size} bytes; the file is truncated or of another kind"
        ) from None
    if size != expected:
        raise InputError(f"{path}: found {size} bytes, but its header promises {expected}; copy the file again")
    return tensors


def _dimensions(shape: object) -> list[int]:
    """`ValueError` for what is no shape of a tensor."""
    is_shape = isinstance(shape, list) and all(type(length) is int and 0 <= length < 2**48 for length in shape)
    if not is_shape or math.prod(shape) >= 2**48:  # larger numbers break planning
        raise ValueError("no shape")
    return shape


def json_object(path: Path) -> dict:
    """The object in a JSON file. Raises InputError for one that is missing, broken or holds something else."""
    require_own_file(path)
    require_regular(path)
    try:
        value = json_value(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path.parent}: {path.name} missing; found {sorted(p.name for p in path.parent.iterdir())}"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: broken JSON ({error}); copy the file again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a {type(value).__name__}; it must be a JSON object")
    return value
