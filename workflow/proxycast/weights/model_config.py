"""Which model config.json describes: its architecture and its size, without building it.

What `transformers` makes of a config.json is kept for the next process, by the file's content, beside the compiled code
that Python keeps: to import `transformers` takes half of the time that Snakemake needs to plan a small study.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

from proxycast.jobs.garbage import no_collection
from proxycast.options import InputError, one_line
from proxycast.tables import beside_compiled_code, keep, kept
from proxycast.weights.model_files import json_object

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Names of the attribute that holds the context: most architectures', GPT-2's and its kin's, DBRX's and MPT's, and that
# of decoders that were trained behind an encoder.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
# Their positions begin after the id of the padding token: the last rows of the table are unused.
PADDED_POSITIONS = {
    *("roberta", "roberta-prelayernorm", "camembert", "xlm-roberta", "xlm-roberta-xl", "data2vec-text", "xmod")
}
# Names of classes whose head predicts no next token: a classifier's, a reward model's, a masked language model's.
OTHER_HEADS = re.compile(r"For(?!CausalLM|ConditionalGeneration|Vision\w*2|ImageTextToText)[A-Z]|DoubleHeads")
# Keys of config.json that count parts of a model, with the largest allowed number.
COUNTED = {
    re.compile(r"layers?$|^depth$|blocks?$|stages$"): 1_000,
    re.compile(r"heads?(_kv|_q)?$|experts?$|codebooks?$|labels$|groups$"): 100_000,
    re.compile(r"vocab_size|hidden_size|^n_embd$|^d_model$|intermediate_size"): 100_000_000,
}
# Names in checkpoints that were written before their architecture was released -> what it has been called since.
FORMER_NAMES = {"Olmo2RetrofitForCausalLM": "Olmo3ForCausalLM"}
KEPT = beside_compiled_code(__file__)
MOST_KEPT = 1000
READERS = ("transformers", "huggingface_hub", "torch")  # packages that decide how a config.json is understood
_SOURCE = Path(__file__).read_bytes()  # this module as it was imported


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


def nested_objects(config: dict) -> Iterator[dict]:
    """A configuration, and those within it."""
    places = [config]
    while places:
        place = places.pop()
        places += [value for value in place.values() if isinstance(value, dict)]
        yield place


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
    """What `transformers` understands by config.json, including the defaults of its architecture.

    Only the file counts for an architecture that `transformers` does not know or whose code must not run. Raises
    InputError for values that it refuses. The first call takes seconds, for imports, unless its answer was kept.
    """
    _require_buildable(folder)
    asked = "shape", folder, trust_remote_code, architecture
    key = _key(*asked)
    if key in _kept():
        return Shape(*_kept()[key])
    import_transformers()
    from transformers import CONFIG_MAPPING

    config = renamed_config(folder, architecture) or json_object(folder / "config.json")
    if config.get("model_type") in CONFIG_MAPPING or (trust_remote_code and "auto_map" in config):
        loaded = _loaded_config(folder, trust_remote_code, architecture)
        shape = config_shape(loaded.get_text_config())
        if key == _key(*asked):  # it was not edited while transformers was imported
            _keep(key, shape, loaded)
        return shape
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
    return config_shape(SimpleNamespace(**{"vocab_size": raw.get("vocab_size")} | text))


def _require_buildable(folder: Path) -> None:
    """Raise InputError for a config.json with so many layers or labels that reading or building it never ends."""
    path = folder / "config.json"
    for place in nested_objects(json_object(path)):
        for key, value in place.items():
            most = next((most for pattern, most in COUNTED.items() if pattern.search(key)), None)
            if most and isinstance(value, int | float) and abs(value) > most:
                found = f"{value:.3g}" if abs(value) < 2**1000 else "a number of many digits"
                raise InputError(f"{path}, key {key}: found {found}; there may be at most {most:,}")


def import_transformers() -> None:
    """Import what reads a configuration, but neither scikit-learn nor SciPy: they take seconds and are not needed.

    One guesses which drafts of assisted generation are right, the other is in losses of detecting objects in pictures.
    """
    absent = dict.fromkeys(("is_sklearn_available", "is_scipy_available"), lambda: False)
    with no_collection():  # a sixth of the time
        from transformers import utils

        with patch.multiple(utils, **absent):
            import transformers.generation.candidate_generator
            import transformers.loss.loss_utils  # noqa: F401


def config_shape(text: "PretrainedConfig | SimpleNamespace") -> Shape:
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
    """What `transformers` makes of config.json or `renamed_config`: one object for all calls, not to be changed.

    Raises InputError for an unknown architecture, and for one that predicts no next token (an encoder with a decoder,
    another head) unless `architecture` says what runs the weights.
    """
    config = _loaded_config(folder, trust_remote_code, architecture)
    names = config.architectures or []
    has_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if names and not architecture and not has_code and all(map(_has_other_head, names)):
        raise InputError(
            f"{folder / 'config.json'}, key architectures: found {', '.join(names)}, whose head predicts no next "
            "token; where its weights are a causal language model's all the same, set model.architecture to that class"
        )
    return config


def require_readable(folder: Path, trust_remote_code: bool = False, architecture: str | None = None) -> None:
    """Raise the InputError that `read_config` raises; one that raised none is not read again, in any process."""
    _require_buildable(folder)
    asked = "readable", folder, trust_remote_code, architecture
    key = _key(*asked)
    if key not in _kept():
        config = read_config(folder, trust_remote_code, architecture)
        if key == _key(*asked):
            _keep(key, [], config)


def _key(what: str, folder: Path, trust_remote_code: bool, architecture: str | None) -> str | None:
    """Name of what may be kept of a config.json. None where more counts than it says: code, names or other files."""
    config = json_object(folder / "config.json")
    if trust_remote_code or not isinstance(config.get("model_type"), str) or "configuration_files" in config:
        return None
    return hashlib.sha256(json.dumps([what, config, architecture]).encode()).hexdigest()


def _keep(key: str | None, value: Sequence, config: "PretrainedConfig") -> None:
    """Keep an answer for the next process, if `transformers` alone gave it."""
    readers, is_own = _readers(), type(config).__module__.startswith("transformers.")
    plain = all(item is None or isinstance(item, int | float) for item in value)
    if key is None or readers is None or not (is_own and plain):
        return
    _kept.cache_clear()  # others have written, too
    keep(dict(list((_kept() | {key: value}).items())[-MOST_KEPT:]), readers, KEPT)
    _kept.cache_clear()


@cache
def _kept() -> dict[str, Sequence]:
    """What other processes kept; nothing where they understood by other code."""
    readers = _readers()
    return kept(readers, KEPT) or {} if readers else {}


@cache
def _readers() -> str | None:
    """Of this module and the versions of READERS; None if one is missing or in development, which versions hide."""
    try:
        versions = [version(name) for name in READERS]
    except PackageNotFoundError:
        return None
    if any("dev" in found for found in versions):
        return None
    return hashlib.sha256(_SOURCE + repr(versions).encode()).hexdigest()


_CONFIGS: dict[tuple, "PretrainedConfig"] = {}  # a sweep's checkpoints have one config.json


def _loaded_config(folder: Path, trust_remote_code: bool, architecture: str | None) -> "PretrainedConfig":
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
    """config.json with its architecture renamed to `architecture` or as in FORMER_NAMES; None if nothing changes.

    The weights must have the names of that architecture.
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
