"""A model folder in the layout of `transformers`: is it whole, and which model is it?"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from proxycast.options import InputError, library_errors, require_regular, told_value
from proxycast.tables import damaged, digest_of, fingerprint, remove_tree
from proxycast.weights.model_config import nested_objects, vocabulary_of
from proxycast.weights.model_files import (
    json_object,
    require_own_file,
    safetensors_header,
    tensor_entries,
    tokenizer_files,
    tokenizer_json,
    weight_files,
)

# In each checkpoint that was made here: what it was made from and, if it was trained here, its content.
FINGERPRINT_FILE = "fingerprint.txt"
TRAINED = (("suite", "models"), ("text", "models"))  # folders of a study's results, of <run>/<step>
FLOATS = ("F64", "F32", "F16", "BF16")  # types of weights that are plain numbers
QUANTIZED = {"quantization_config", "compression_config"}  # keys of config.json that say what other types mean
# An adapter that lies beside a model: `transformers` applies it where peft is installed, vLLM never does.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# What tells how weights are quantised, where config.json does not.
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")  # of files that are read as numbers only


def check_folder(folder: Path) -> None:
    """Raise InputError, naming folder and fault, unless it holds a config, whole weights and a matching tokenizer.

    A folder with an adapter beside the model is refused: it is unclear which of the two is meant.
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
    """Raise InputError if config.json names another model or code of the hub, which would run instead."""
    path = folder / "config.json"
    for place in nested_objects(json_object(path)):
        if "speculators_config" in place:  # vLLM takes the model that it names as `verifier`
            raise InputError(f"{path}, key speculators_config: found a draft of another model, which vLLM would run")
        for key, value in place.items():
            if key.endswith("attn_implementation") and "/" in str(value):
                raise InputError(f"{path}, key {key}: found {told_value(value)}, code of the hub; take the key away")


def _require_floats(folder: Path) -> None:
    """Raise InputError for integers or 8 bits that config.json does not explain: they would be read as floats."""
    if not QUANTIZED.isdisjoint(json_object(folder / "config.json")):
        return
    for path in weight_files(folder):
        for name, entry in tensor_entries(path).items():
            if name.endswith(".weight") and entry["dtype"] not in FLOATS:
                raise InputError(
                    f"{path}: {name} has the type {entry['dtype']}, but config.json has no quantization_config, which "
                    f"would say what the numbers mean; it must be one of {', '.join(FLOATS)}"
                )


def adapters_among(names: Iterable[str]) -> str | None:
    """What is wrong with a model that has an adapter among its files `names`; None where it has none."""
    found = sorted(set(ADAPTER_FILES) & set(names))
    return found and (
        f"found {', '.join(found)}: an adapter, which would be applied or not, depending on which packages are "
        "installed; merge it into the weights (peft: merge_and_unload, save_pretrained), or take its files away"
    )


def model_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits for the model's configuration, tokenizer, own code and every byte of its weights.

    Raises InputError for a checkpoint that was trained here and has changed since; it is renamed.
    """
    found = _content(folder)
    _require_as_written(folder, found)
    return found


@contextmanager
def new_checkpoint(folder: Path, tokenizer: Path, made_from: str) -> Iterator[Path]:
    """A hidden folder to write a trained model into. With tokenizer and fingerprints added, it becomes `folder`."""
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        remove_tree(temporary)  # a kill left it behind, or a link in results of somebody else leads elsewhere
        temporary.mkdir(parents=True)
        for path in tokenizer_files(tokenizer):
            shutil.copyfile(path, temporary / path.name)
        yield temporary
        mark_as_trained(temporary, made_from)
        remove_tree(folder)
        temporary.rename(folder)
    finally:
        remove_tree(temporary)


def mark_as_trained(folder: Path, made_from: str) -> None:
    """Write into a checkpoint the fingerprints of what it was made from and of its content."""
    (folder / FINGERPRINT_FILE).write_text(f"{made_from}\n{_small_content(folder)}\n{_content(folder)}\n")


def _require_as_written(folder: Path, content: str | None = None) -> None:
    """Raise InputError where `mark_as_trained` marked other files: without `content` only small ones are compared.

    Copies elsewhere may be changed by their user.
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


def is_finished(folder: Path, made_from: str) -> bool:
    """Whether `folder` holds a whole checkpoint with the fingerprint `made_from`."""
    try:
        check_folder(folder)
        require_regular(folder / FINGERPRINT_FILE)
        return (folder / FINGERPRINT_FILE).read_text().split()[:1] == [made_from]
    except (InputError, OSError):
        return False


def _largest_token_id(folder: Path) -> int:
    """The largest id of a token that is not an added one. Some models have no embedding for added tokens (images)."""
    path = tokenizer_json(folder)
    with library_errors(f"{path}: no readable tokenizer; copy the file again", may_quote=False):
        return _largest_in_tokenizer(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=2)  # one tokenizer serves a whole sweep, and a large one takes half a second to parse
def _largest_in_tokenizer(text: str) -> int:
    tokenizer = Tokenizer.from_str(text)
    added = tokenizer.get_added_tokens_decoder()  # some stand in the vocabulary, too
    return max((i for i in tokenizer.get_vocab(with_added_tokens=False).values() if i not in added), default=-1)
