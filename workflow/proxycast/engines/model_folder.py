"""A model folder in the layout of `transformers`: is it whole, and which model is it, told without building it."""

import hashlib
import json
import sys
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from proxycast.options import InputError
from proxycast.tables import fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FINGERPRINT_FILE = "fingerprint.txt"  # in each checkpoint that was trained here: what it was made from
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# Names of the key in config.json that holds the context: most architectures', GPT-2's and its kin's, DBRX's.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
# Names in checkpoints that were written before their architecture was released -> what it has been called since.
FORMER_NAMES = {"Olmo2RetrofitForCausalLM": "Olmo3ForCausalLM"}


def check_folder(folder: Path) -> None:
    """Raise InputError, naming folder and fault, unless it holds a config, whole weights and a tokenizer that fits."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; it should hold a model (config.json, tokenizer.json, *.safetensors)"
        )
    vocabulary = vocabulary_of(folder)
    for path in weight_files(folder):
        safetensors_header(path)
    largest = _largest_token_id(folder)
    if largest >= vocabulary:
        raise InputError(
            f"{folder}: found token id {largest} in the tokenizer, but vocab_size {vocabulary} in config.json; "
            f"the id of every token that is not an added one must be below, so one of the two belongs to another model"
        )


def model_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits for the model's configuration, tokenizer, own code and every byte of its weights."""
    small = [folder / "config.json", *tokenizer_files(folder), *sorted(folder.glob("*.py"))]
    weights = []
    for path in weight_files(folder):
        with path.open("rb") as file:
            weights.append(hashlib.file_digest(file, "sha256").hexdigest())
    return fingerprint({path.name: path for path in small}, weights)


def is_finished(folder: Path, mark: str) -> bool:
    """Whether `folder` holds a whole checkpoint with the fingerprint `mark`."""
    try:
        check_folder(folder)
        return (folder / FINGERPRINT_FILE).read_text().strip() == mark
    except (InputError, OSError):
        return False


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that decide which tokens a text becomes, those that are there."""
    return [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]


def tokenizer_json(folder: Path) -> Path:
    """The file tokenizer.json. Raises InputError where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        found = sorted(path.name for path in folder.iterdir())
        raise InputError(
            f"{folder}: tokenizer.json missing; found {found}; the save_pretrained of a fast tokenizer writes it"
        )
    return path


def context_of(folder: Path) -> int:
    """Most tokens that the model reads at once; no limit for architectures that have none."""
    config = json_object(folder / "config.json")
    config = config.get("text_config") or config
    return next((config[key] for key in CONTEXT_KEYS if config.get(key)), sys.maxsize)


def vocabulary_of(folder: Path) -> int:
    """Token ids that the model has an embedding for, padding included."""
    config = json_object(folder / "config.json")
    text_config = config.get("text_config") or {}
    vocabulary = config.get("vocab_size", text_config.get("vocab_size"))
    if not isinstance(vocabulary, int):
        raise InputError(
            f"{folder / 'config.json'}, key vocab_size: found {vocabulary!r}; it must be the number of logits"
        )
    return vocabulary


def read_config(folder: Path, trust_remote_code: bool = False, architecture: str | None = None) -> "PretrainedConfig":
    """What `transformers` makes of config.json, or of `renamed_config`.

    Raises InputError for an architecture that it does not know.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    renamed = renamed_config(folder, architecture)
    try:
        if renamed is not None:
            return CONFIG_MAPPING[renamed["model_type"]].from_dict(renamed)
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder / 'config.json'}: transformers cannot read it: {error}; convert the checkpoint to an "
            "architecture of transformers, set model.architecture to the one that runs its weights, or "
            "trust_remote_code for a model whose code lies in its folder"
        ) from error


def renamed_config(folder: Path, architecture: str | None = None) -> dict | None:
    """The object in config.json with its architecture renamed to `architecture`, or to the one of FORMER_NAMES.

    None where config.json may stand as it is. Weights are untouched: they must have the names of that architecture.
    """
    config = json_object(folder / "config.json")
    declared = (config.get("architectures") or [None])[0]
    wanted = architecture or FORMER_NAMES.get(declared)
    renamed = config | {"architectures": [wanted], "model_type": _model_type(wanted)} if wanted else config
    return None if renamed == config else renamed


def _model_type(architecture: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    for model_type, name in CLASSES.items():
        if name == architecture:
            return model_type
    close = get_close_matches(architecture, CLASSES.values(), n=3)
    raise InputError(
        f"model.architecture: {architecture!r} is no causal language model of transformers; close to it: {close}"
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `transformers` reads: model.safetensors, or else the shards that its index lists."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        found = sorted(path.name for path in folder.iterdir())
        raise InputError(
            f"{folder}: weights missing; found {found}; "
            "there must be model.safetensors, or model.safetensors.index.json with its shards"
        )
    names = sorted(set(json_object(index).get("weight_map", {}).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise InputError(f"{folder}: {index.name} lists {len(names)} files; missing of them: {missing}")
    return [folder / name for name in names]


def safetensors_header(path: Path) -> dict[str, list[int]]:
    """Shape of each tensor in `path`. Raises InputError when the file is not exactly as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        header_bytes = file.read(header_length) if header_length <= size else b""
    try:
        header = json.loads(header_bytes)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        expected = 8 + header_length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: entry["shape"] for name, entry in tensors.items()}
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise InputError(
            f"{path}: no readable safetensors header in {size} bytes; the file is truncated or of another kind"
        ) from None
    if size != expected:
        raise InputError(f"{path}: found {size} bytes, but its header promises {expected}; copy the file again")
    return shapes


def json_object(path: Path) -> dict:
    """The object in a JSON file. Raises InputError for one that is missing, broken or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path.parent}: {path.name} missing; found {sorted(p.name for p in path.parent.iterdir())}"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: broken JSON ({error}); copy the file again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a {type(value).__name__}; it must be a JSON object")
    return value


def _largest_token_id(folder: Path) -> int:
    """The largest id of a token that any text may have. Added ones, such as those for images, are left out: some models
    have no embedding for them, and `solutions.tokenize` refuses a text that has one of those.
    """
    path = tokenizer_json(folder)
    try:
        return _largest_in_tokenizer(path.read_text(encoding="utf-8"))
    except Exception as error:  # the Rust library raises nothing narrower
        raise InputError(f"{path}: no readable tokenizer ({error}); copy the file again") from None


@lru_cache(maxsize=2)  # one tokenizer serves a whole sweep, and a large one takes half a second to parse
def _largest_in_tokenizer(text: str) -> int:
    tokenizer = Tokenizer.from_str(text)
    added = tokenizer.get_added_tokens_decoder()  # some stand in the vocabulary, too
    return max((i for i in tokenizer.get_vocab(with_added_tokens=False).values() if i not in added), default=-1)
