"""A model folder in the layout of `transformers`: is it whole, and which model is it, told without building it."""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

from tokenizers import Tokenizer

from proxycast.options import (
    InputError,
    is_inner_name,
    json_value,
    library_errors,
    one_line,
    require_regular,
    told_value,
)
from proxycast.tables import damaged, digest_of, fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# In each checkpoint that was made here: what it was made from and, where it was trained here, what was written.
FINGERPRINT_FILE = "fingerprint.txt"
TRAINED = (("suite", "models"), ("text", "models"))  # folders of a study's results, of <run>/<step>
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
FLOATS = ("F64", "F32", "F16", "BF16")  # types of weights that are plain numbers
QUANTIZED = {"quantization_config", "compression_config"}  # keys of config.json that say what other types mean
INDEX = "model.safetensors.index.json"  # of weights in several files
# An adapter that lies beside a model: `transformers` applies it where peft is installed, vLLM never does.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# What tells how weights are quantised, where config.json does not.
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# Names of the attribute that holds the context: most architectures', GPT-2's and its kin's, DBRX's and MPT's, and that
# of decoders that were trained behind an encoder.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
# Their positions begin behind the id of the padding token, so the last rows of the table are never reached.
PADDED_POSITIONS = {
    *("roberta", "roberta-prelayernorm", "camembert", "xlm-roberta", "xlm-roberta-xl", "data2vec-text", "xmod"),
}
# Names of classes whose head predicts no next token: a classifier's, a reward model's, a masked language model's.
OTHER_HEADS = re.compile(r"For(?!CausalLM|ConditionalGeneration|Vision\w*2|ImageTextToText)[A-Z]|DoubleHeads")
LONGEST_HEADER = 100_000_000  # bytes of a header of safetensors, as the library has it
# Keys of config.json that count parts of which something is built, with the most there may be of each.
COUNTED = {
    re.compile(r"layers?$|^depth$|blocks?$|stages$"): 1_000,
    re.compile(r"heads?(_kv|_q)?$|experts?$|codebooks?$|labels$|groups$"): 100_000,
    re.compile(r"vocab_size|hidden_size|^n_embd$|^d_model$|intermediate_size"): 100_000_000,
}
# Names in checkpoints that were written before their architecture was released -> what it has been called since.
FORMER_NAMES = {"Olmo2RetrofitForCausalLM": "Olmo3ForCausalLM"}
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")  # of files from which numbers alone are taken
CACHED = re.compile("(models|datasets)--")  # begins the name of a folder in a hub cache
HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # the name of a file that one of its blobs is


class Shape(NamedTuple):
    """What a model's configuration says of its size; None where it does not.

    vocabulary: token ids that have an embedding, padding included. context: most tokens that are read at once;
    `sys.maxsize` for architectures without a limit. cache_share: heads of keys over heads of queries.
    """

    vocabulary: int | None
    context: int
    hidden_size: int | None
    layers: int | None
    cache_share: float


def check_folder(folder: Path) -> None:
    """Raise InputError, naming folder and fault, unless it holds a config, whole weights and a tokenizer that fits.

    So does one with an adapter beside the model: which of the two is meant nobody can tell.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; it should hold a model (config.json, tokenizer.json, *.safetensors)"
        )
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in WEIGHT_SUFFIXES:
            require_own_file(path)
    _require_as_written(folder)
    if adapters := adapters_among(path.name for path in folder.iterdir()):
        raise InputError(f"{folder}: {adapters}")
    vocabulary = vocabulary_of(folder)
    for path in weight_files(folder):
        safetensors_header(path)
    _require_floats(folder)
    _require_own_model(folder)
    largest = _largest_token_id(folder)
    if largest >= vocabulary:
        raise InputError(
            f"{folder}: found token id {largest} in the tokenizer, but vocab_size {vocabulary} in config.json; "
            f"the id of every token that is not an added one must be below, so one of the two belongs to another model"
        )


def _require_own_model(folder: Path) -> None:
    """Raise InputError where config.json names another model, or code of the hub, that would run in its place."""
    path = folder / "config.json"
    for place in _objects(json_object(path)):
        if "speculators_config" in place:  # vLLM takes the model that it names as `verifier`
            raise InputError(f"{path}, key speculators_config: found a draft of another model, which vLLM would run")
        for key, value in place.items():
            if key.endswith("attn_implementation") and "/" in str(value):
                raise InputError(f"{path}, key {key}: found {told_value(value)}, code of the hub; take the key away")


def _objects(config: dict) -> Iterator[dict]:
    """A configuration, and those within it."""
    places = [config]
    while places:
        place = places.pop()
        places += [value for value in place.values() if isinstance(value, dict)]
        yield place


def _require_floats(folder: Path) -> None:
    """Raise InputError for weights of integers or of 8 bits that no key of config.json explains.

    A library takes them for plain numbers, which are another model's.
    """
    if not QUANTIZED.isdisjoint(json_object(folder / "config.json")):
        return
    for path in weight_files(folder):
        for name, entry in _header(path).items():
            if name.endswith(".weight") and entry["dtype"] not in FLOATS:
                raise InputError(
                    f"{path}: {name} has the type {entry['dtype']}, but config.json has no quantization_config, which "
                    f"would say what the numbers mean; it must be one of {', '.join(FLOATS)}"
                )


def require_own_file(path: Path) -> None:
    """Raise InputError for a link out of the folder of `path`, but to a file that a hub cache holds.

    Who made the folder may not be able to read what the link leads to; it must not be copied to the results, nor told.
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

    A cache is <cache>/models--<org>--<name>/{blobs/<hash>, snapshots/<commit>/<name>}; blobs that repositories share
    lie in <cache>/blobs/<two digits>/<hash>. A name that is no hash is of another file, wherever `blobs` leads.
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


def adapters_among(names: Iterable[str]) -> str | None:
    """What is wrong with a model that has an adapter among its files `names`; None where it has none."""
    found = sorted(set(ADAPTER_FILES) & set(names))
    return found and (
        f"found {', '.join(found)}: an adapter, which would be applied or not, depending on which packages are "
        "installed; merge it into the weights (peft: merge_and_unload, save_pretrained), or take its files away"
    )


def model_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits for the model's configuration, tokenizer, own code and every byte of its weights.

    Raises InputError for a checkpoint that was trained here and is another one now; it gets another name.
    """
    found = _content(folder)
    _require_as_written(folder, found)
    return found


def mark_as_trained(folder: Path, mark: str) -> None:
    """Write into a checkpoint what it was made from, and what tells later whether its files are as they were."""
    (folder / FINGERPRINT_FILE).write_text(f"{mark}\n{_small_content(folder)}\n{_content(folder)}\n")


def _require_as_written(folder: Path, content: str | None = None) -> None:
    """Raise InputError where `mark_as_trained` marked other files: without `content` only small ones are compared.

    A copy elsewhere is its user's, who may change it.
    """
    if folder.parts[-4:-2] not in TRAINED:
        return
    try:
        require_regular(folder / FINGERPRINT_FILE)
        _, *written = (folder / FINGERPRINT_FILE).read_text().split()
    except (OSError, ValueError):
        return
    if written and (_small_content(folder) != written[0] or content not in (None, *written[1:])):
        raise damaged(folder)


def _small_files(folder: Path) -> dict[str, Path]:
    own = [*QUANTIZATION_FILES, *(path.name for path in sorted(folder.glob("*.py")))]
    small = [folder / "config.json", *tokenizer_files(folder), *(folder / name for name in own)]
    found = {path.name: path for path in small if path.is_file()}
    for path in found.values():
        require_own_file(path)
    return found


def _small_content(folder: Path) -> str:
    return fingerprint(_small_files(folder))


def _content(folder: Path) -> str:
    return fingerprint(_small_files(folder), [digest_of(path) for path in weight_files(folder)])


def is_finished(folder: Path, mark: str) -> bool:
    """Whether `folder` holds a whole checkpoint with the fingerprint `mark`."""
    try:
        check_folder(folder)
        require_regular(folder / FINGERPRINT_FILE)
        return (folder / FINGERPRINT_FILE).read_text().split()[:1] == [mark]
    except (InputError, OSError):
        return False


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that decide which tokens a text becomes, those that are there."""
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


def context_of(folder: Path, trust_remote_code: bool = False, architecture: str | None = None) -> int:
    """Most tokens that the model reads at once; no limit for architectures that have none."""
    return shape_of(folder, trust_remote_code, architecture).context


def vocabulary_of(folder: Path) -> int:
    """Token ids that the model has an embedding for, padding included."""
    vocabulary = shape_of(folder).vocabulary
    if not isinstance(vocabulary, int):
        raise InputError(
            f"{folder / 'config.json'}, key vocab_size: found {vocabulary!r}; it must be the number of logits"
        )
    return vocabulary


def shape_of(folder: Path, trust_remote_code: bool = False, architecture: str | None = None) -> Shape:
    """What `transformers` understands by config.json, which leaves out what is its architecture's default.

    The file alone counts for an architecture that `transformers` does not know, or whose code must not run. Raises
    InputError for one whose values it refuses. Takes seconds the first time, for imports.
    """
    import_transformers()
    from transformers import CONFIG_MAPPING

    _require_buildable(folder)
    config = renamed_config(folder, architecture) or json_object(folder / "config.json")
    if config.get("model_type") in CONFIG_MAPPING or (trust_remote_code and "auto_map" in config):
        return _shape(_config(folder, trust_remote_code, architecture).get_text_config())
    return shape_in_file(folder)


def shape_in_file(folder: Path) -> Shape:
    """What config.json itself says, without any import."""
    _require_buildable(folder)
    raw = json_object(folder / "config.json")
    text = raw.get("text_config") or raw
    if not isinstance(text, dict):
        raise InputError(
            f"{folder / 'config.json'}, key text_config: found a {type(text).__name__}; it must be an object"
        )
    return _shape(SimpleNamespace(**{"vocab_size": raw.get("vocab_size")} | text))


def _require_buildable(folder: Path) -> None:
    """Raise InputError for a config.json with so many layers, or labels, that to read it or to build it never ends."""
    path = folder / "config.json"
    for place in _objects(json_object(path)):
        for key, value in place.items():
            most = next((most for pattern, most in COUNTED.items() if pattern.search(key)), None)
            if most and isinstance(value, int | float) and abs(value) > most:
                found = f"{value:.3g}" if abs(value) < 2**1000 else "a number of many digits"
                raise InputError(f"{path}, key {key}: found {found}; there may be at most {most:,}")


def import_transformers() -> None:
    """Import what reading a configuration does without scikit-learn, which takes a second: nothing here decodes so."""
    from transformers import utils

    with patch.object(utils, "is_sklearn_available", lambda: False):
        import transformers.generation.candidate_generator  # noqa: F401


def _shape(text: "PretrainedConfig | SimpleNamespace") -> Shape:
    heads = _number(text, "num_attention_heads", "n_head")
    context = _number(text, *CONTEXT_KEYS)
    if context and getattr(text, "model_type", None) in PADDED_POSITIONS:
        context -= text.pad_token_id + 1
    return Shape(
        vocabulary=getattr(text, "vocab_size", None),
        context=context or sys.maxsize,
        hidden_size=_number(text, "hidden_size", "n_embd"),
        layers=_number(text, "num_hidden_layers", "n_layer"),
        cache_share=(_number(text, "num_key_value_heads") or heads) / heads if heads else 1,
    )


def _number(config: "PretrainedConfig | SimpleNamespace", *keys: str) -> int | None:
    """The first positive number among some attributes; XLNet writes -1 where there is no limit."""
    found = (getattr(config, key, None) for key in keys)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def read_config(folder: Path, trust_remote_code: bool = False, architecture: str | None = None) -> "PretrainedConfig":
    """What `transformers` makes of config.json, or of `renamed_config`. Not to be changed: later calls return it, too.

    Raises InputError for an architecture that it does not know, and for one that predicts no next token: an encoder
    with a decoder, or a model with another head, unless `architecture` says what runs the weights.
    """
    config = _config(folder, trust_remote_code, architecture)
    names = config.architectures or []
    has_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if names and not architecture and not has_code and all(map(_has_other_head, names)):
        raise InputError(
            f"{folder / 'config.json'}, key architectures: found {', '.join(names)}, whose head predicts no next "
            "token; where its weights are a causal language model's all the same, set model.architecture to that class"
        )
    return config


_CONFIGS: dict[tuple, "PretrainedConfig"] = {}  # a sweep's checkpoints have one config.json


def _config(folder: Path, trust_remote_code: bool, architecture: str | None) -> "PretrainedConfig":
    import_transformers()
    from transformers import CONFIG_MAPPING, AutoConfig

    where, raw = folder / "config.json", json_object(folder / "config.json")
    _require_buildable(folder)
    code = folder if trust_remote_code else None
    key = json.dumps(raw), architecture, code
    if key in _CONFIGS:
        return _CONFIGS[key]
    if code and any("--" in str(name) for name in (raw.get("auto_map") or {}).values()):
        raise InputError(
            f"{where}, key auto_map: found {raw['auto_map']}; only code in the model's folder is run: copy that of the "
            "other repository into it, and write the names without what stands before --"
        )
    renamed = renamed_config(folder, architecture)
    try:
        if renamed is not None:
            config = CONFIG_MAPPING[renamed["model_type"]].from_dict(renamed)
        else:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        config.get_text_config()
    except Exception as error:  # each architecture checks its values in its own way, and its code may be the folder's
        raise InputError(
            f"{where}: transformers cannot read it: {one_line(error)}; convert the checkpoint to an "
            "architecture of transformers, set model.architecture to the one that runs its weights, or "
            "trust_remote_code for a model whose code lies in its folder"
        ) from error
    if config.is_encoder_decoder:
        raise InputError(
            f"{where}: {config.model_type} is an encoder with a decoder (key is_encoder_decoder), of which the decoder "
            "alone would run; only models that read a text from left to right are scored"
        )
    return _CONFIGS.setdefault(key, config)


def _has_other_head(name: str) -> bool:
    has_none = name.endswith("Model") and "LMHead" not in name
    return has_none or OTHER_HEADS.search(name) is not None


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
        # Whatever reads the weights joins the name to the folder.
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
    return {name: entry["shape"] for name, entry in _header(path).items()}


def _header(path: Path) -> dict[str, dict]:
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
    if not is_shape or math.prod(shape) >= 2**48:  # numbers that no float holds would end planning
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


def _largest_token_id(folder: Path) -> int:
    """The largest id of a token that any text may have. Added ones, such as those for images, are left out: some models
    have no embedding for them, and `solutions.tokenize` refuses a text that has one of those.
    """
    path = tokenizer_json(folder)
    with library_errors(f"{path}: no readable tokenizer; copy the file again", may_quote=False):
        return _largest_in_tokenizer(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=2)  # one tokenizer serves a whole sweep, and a large one takes half a second to parse
def _largest_in_tokenizer(text: str) -> int:
    tokenizer = Tokenizer.from_str(text)
    added = tokenizer.get_added_tokens_decoder()  # some stand in the vocabulary, too
    return max((i for i in tokenizer.get_vocab(with_added_tokens=False).values() if i not in added), default=-1)
