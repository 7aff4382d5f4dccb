"""Checkpoints of `hf_olmo`, the class of OLMo 1 and DataDecide, as folders that `transformers` and vLLM load.

OLMo's block with RMS norms, rotary positions, SwiGLU, no bias and a head of its own is Llama's under other names.
`att_proj` is q, k and v on top of each other. `ff_proj` is `up_proj` on top of `gate_proj`: `SwiGLU.forward` of
ai2-olmo applies SiLU to the second half. A checkpoint that is anything else is refused.
"""

import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator
from tqdm import tqdm

from proxycast.options import InputError
from proxycast.tables import fingerprint, input_states, remove_tree
from proxycast.weights.model_files import (
    WEIGHT_FORMATS,
    json_object,
    require_own_file,
    safetensors_header,
    shards,
    tokenizer_files,
)
from proxycast.weights.model_folder import FINGERPRINT_FILE, is_finished

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

PREFIX = "model.transformer."  # of every tensor's name; "transformer." is the model's within the class
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")

# Keys of config.json that do not change what a trained model computes, but for rounding.
IRRELEVANT = {
    # of transformers
    *("_attn_implementation_autoset", "_name_or_path", "architectures", "auto_map", "dtype", "model_type"),
    *("torch_dtype", "transformers_version", "use_cache"),
    # initialisation
    *("emb_init_std", "init_cutoff_factor", "init_device", "init_fn", "init_std", "scale_emb_init"),
    # only in training
    *("attention_dropout", "embedding_dropout", "precision", "residual_dropout"),
    # how the same numbers are computed
    *("flash_attention", "rope_full_precision"),
    # of parts that the model must not have: ALiBi, norms of queries and keys
    *("alibi_bias_max", "attention_layer_norm_with_affine"),
}


class OlmoConfig(BaseModel):
    """The keys of config.json that decide what the model computes; they are the fields of ai2-olmo's `ModelConfig`.

    A missing key has the default that `ModelConfig` gives it. Where that default is no Llama's, or is a size, or
    differs from what models are known to have (epsilon), the key must be there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    activation_type: Literal["swiglu"] = "swiglu"
    alibi: Literal[False] = False
    attention_layer_norm: Literal[False] = False
    bias_for_layer_norm: Literal[False, None] = None  # None: as include_bias
    block_group_size: Literal[1] = 1  # others have other names of tensors
    block_type: Literal["sequential"] = "sequential"
    clip_qkv: None = None
    embedding_layer_norm: Literal[False] = False
    include_bias: Literal[False]
    layer_norm_type: Literal["rms"]
    layer_norm_with_affine: Literal[True] = True
    multi_query_attention: Literal[False, None] = None
    norm_after: Literal[False] = False
    rope: Literal[True]
    scale_logits: Literal[False] = False
    tie_word_embeddings: Literal[False] = False  # a key of transformers, which hf_olmo ignores
    weight_tying: Literal[False]

    d_model: PositiveInt
    embedding_size: PositiveInt | None  # None: vocab_size
    eos_token_id: NonNegativeInt
    layer_norm_eps: PositiveFloat
    max_sequence_length: PositiveInt
    mlp_hidden_size: PositiveInt | None = None  # None: mlp_ratio * d_model; up_proj and gate_proj together
    mlp_ratio: PositiveInt
    n_heads: PositiveInt
    n_kv_heads: PositiveInt | None = None  # None: n_heads
    n_layers: PositiveInt
    pad_token_id: NonNegativeInt
    rope_theta: PositiveFloat = 10_000
    vocab_size: PositiveInt

    @property
    def embeddings(self) -> int:
        return self.embedding_size or self.vocab_size

    @property
    def feed_forward(self) -> int:
        return self.mlp_hidden_size or self.mlp_ratio * self.d_model

    @model_validator(mode="after")
    def _is_llama(self) -> "OlmoConfig":
        rules = {
            "n_heads": (self.d_model % (2 * self.n_heads) == 0, f"d_model {self.d_model} in heads of even width"),
            "n_kv_heads": (self.n_kv_heads in (None, self.n_heads), f"null or n_heads ({self.n_heads})"),
            "embedding_size": (self.embeddings >= self.vocab_size, f"null or from vocab_size ({self.vocab_size}) on"),
            "mlp_hidden_size": (self.feed_forward % 2 == 0, "even: one half is up_proj, the other gate_proj"),
            "eos_token_id": (self.eos_token_id < self.embeddings, f"below the {self.embeddings} embeddings"),
            "pad_token_id": (self.pad_token_id < self.embeddings, f"below the {self.embeddings} embeddings"),
        }
        for key, (holds, right) in rules.items():
            if not holds:
                raise ValueError(f"{key}: found {getattr(self, key)!r}; it must be {right}")
        return self


def needs_conversion(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint of `hf_olmo`. `InputError` for a folder without a readable config.json.

    transformers has classes of its own, OlmoForCausalLM and Olmo2ForCausalLM, which need none.
    """
    config = json_object(folder / "config.json")
    return config.get("model_type") == "hf_olmo" or "OLMoForCausalLM" in (config.get("architectures") or [])


def convert_run(checkpoints: Mapping[str, Path], folder: Path, tokenizer: Path | None, code: str) -> None:
    """Convert the checkpoints (name -> folder) of a training run to `folder`/name.

    `folder` appears when it is complete. Until then converted checkpoints lie in a hidden folder beside it; the next
    call converts the rest. `code`: fingerprint of the code that converts.
    """
    remove_tree(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.is_symlink():  # nothing here makes one
        partial.unlink()
    partial.mkdir(parents=True, exist_ok=True)
    remove_others(partial, checkpoints)
    for name, source in tqdm(checkpoints.items(), unit="checkpoint", mininterval=5):
        state = input_states([path for path in source.glob("*") if path.is_file()], most_bytes=-1)
        convert_once(source, partial / name, tokenizer, conversion_fingerprint(state, tokenizer, code))
    partial.rename(folder)


def conversion_fingerprint(source: object, tokenizer: Path | None, code: str) -> str:
    """Fingerprint of a converted checkpoint: of its `source` (JSON values), the tokenizer it may get, and the code."""
    return fingerprint(source, tokenizer_files(tokenizer) if tokenizer else [], code)


def convert_once(source: Path, folder: Path, tokenizer: Path | None, made_from: str) -> None:
    """`convert`, unless `folder` holds a whole checkpoint with the fingerprint `made_from`. What else is there goes."""
    if is_finished(folder, made_from):
        log.info("%s: converted before", folder)
        return
    remove_tree(folder)
    convert(source, folder, tokenizer, made_from)


def remove_others(folder: Path, names: Collection[str]) -> None:
    """Remove from `folder` all but `names`: an earlier try may have been asked for other checkpoints."""
    for path in folder.iterdir():
        if path.name not in names:
            remove_tree(path)


def convert(source: Path, folder: Path, tokenizer: Path | None = None, made_from: str = "") -> None:
    """Write the checkpoint of `hf_olmo` in `source` to the new `folder`, as a `LlamaForCausalLM` with the same logits.

    Weights keep their type and are read from the disk as they are written: memory holds no copy. `tokenizer`: folder to
    take the tokenizer from if `source` has none. `made_from`: the fingerprint to write beside the weights.

    Raises InputError if `source` is no such checkpoint, is not whole or would run code, if its architecture is not
    Llama's, if there is no tokenizer, or if `folder` exists.
    """
    if folder.exists():
        raise InputError(f"{folder}: exists already; remove it, or convert to a folder of another name")
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; it should hold a checkpoint (config.json, pytorch_model.bin)")
    if not needs_conversion(source):
        found = json_object(source / "config.json").get("model_type")
        raise InputError(f"{source / 'config.json'}, key model_type: found {found!r}; only 'hf_olmo' is converted")
    config = _read_config(source / "config.json")
    tokenizer = _with_tokenizer(source, tokenizer)
    weights = _read_weights(source)
    _check_weights(weights, config, source)
    temporary = folder.with_name(f".{folder.name}.partial")
    remove_tree(temporary)
    temporary.mkdir(parents=True)
    _write_tokenizer(tokenizer, temporary)
    _write_model(weights, config, temporary)
    if made_from:
        (temporary / FINGERPRINT_FILE).write_text(made_from + "\n")
    for path in temporary.iterdir():  # else a loss of power may leave a folder of empty files
        with path.open("rb") as file:
            os.fsync(file.fileno())
    temporary.rename(folder)
    log.info("%s: converted to %s", source, folder)


def _read_config(path: Path) -> OlmoConfig:
    try:
        return OlmoConfig.model_validate({k: v for k, v in json_object(path).items() if k not in IRRELEVANT})
    except ValidationError as error:
        problem = error.errors()[0]
    key, found = ".".join(map(str, problem["loc"])), problem["input"]
    match problem["type"]:
        case "missing":
            raise InputError(f"{path}, key {key}: missing; found only {sorted(found)}, and there is no safe default")
        case "extra_forbidden":
            raise InputError(f"{path}, key {key}: found {found!r}; a key unknown here could make it no Llama")
        case "value_error":
            raise InputError(f"{path}, key {problem['msg'].removeprefix('Value error, ')}")
    right = problem["msg"].removeprefix("Input should be ")
    raise InputError(f"{path}, key {key}: found {found!r}; to be a Llama it must be {right}")


def _with_tokenizer(source: Path, tokenizer: Path | None) -> Path:
    for folder in (source, tokenizer):
        if folder and tokenizer_files(folder) and (folder / "tokenizer.json").is_file():
            return folder
    where = f"{source} and {tokenizer} have" if tokenizer else f"{source} has"
    raise InputError(f"{where} no tokenizer.json; name a folder that holds the models' tokenizer")


def _read_weights(folder: Path) -> "dict[str, Tensor]":
    """Name -> tensor, of all the checkpoint's files. A tensor is read from its file when it is used."""
    weights = {}
    for path in _weight_files(folder):
        weights |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return weights


def _weight_files(folder: Path) -> list[Path]:
    names = [name for whole, index, _ in WEIGHT_FORMATS for name in (whole, index)]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        found = sorted(path.name for path in folder.iterdir())
        raise InputError(f"{folder}: weights missing; found {found}; there must be one of {', '.join(names)}")
    files = shards(path) if path.suffix == ".json" else [path]
    for file in files:  # what they hold is copied
        require_own_file(file)
    return files


def _read_safetensors(path: Path) -> "dict[str, Tensor]":
    from safetensors.torch import load_file

    safetensors_header(path)
    return load_file(path)


def _read_pickle(path: Path) -> "dict[str, Tensor]":
    import torch

    try:
        # Without weights_only a pickle may run any code; with mmap the weights stay on the disk.
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes raise nearly anything
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path}: asks for {asked[1]}, which could run code; save the model's state_dict alone"
            ) from None
        raise InputError(
            f"{path}: no readable file of torch.save ({type(error).__name__}); it is truncated, damaged or of the form "
            "from before PyTorch 1.6; copy it again"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise InputError(f"{path}: holds something else than tensors by name; save the model's state_dict alone")
    return weights


def _check_weights(weights: "dict[str, Tensor]", config: OlmoConfig, source: Path) -> None:
    """Raise `InputError` unless `weights` are exactly the tensors of such a model, all of one type."""
    shapes = _shapes(config)
    for name in [*shapes, *weights]:
        if name not in weights:
            raise InputError(f"{source}: tensor {name} missing, of shape {shapes[name]}; copy the checkpoint again")
        if name not in shapes:
            raise InputError(f"{source}: found tensor {name}, which the model that config.json describes does not have")
    dtype = weights[f"{PREFIX}wte.weight"].dtype
    for name, tensor in weights.items():
        if tuple(tensor.shape) != shapes[name]:
            raise InputError(
                f"{source}: tensor {name}: found shape {tuple(tensor.shape)}; by config.json it must be {shapes[name]}"
            )
        if tensor.dtype != dtype or _dtype_name(dtype) not in WEIGHT_DTYPES:
            raise InputError(
                f"{source}: tensor {name}: found {_dtype_name(tensor.dtype)}; "
                f"all must be of one type, as wte.weight ({_dtype_name(dtype)}), and it one of "
                f"{', '.join(WEIGHT_DTYPES)}"
            )


def _shapes(config: OlmoConfig) -> dict[str, tuple[int, ...]]:
    d, inner = config.d_model, config.feed_forward
    shapes = {"wte.weight": (config.embeddings, d), "ln_f.weight": (d,), "ff_out.weight": (config.embeddings, d)}
    for layer in range(config.n_layers):
        shapes |= {
            f"blocks.{layer}.attn_norm.weight": (d,),
            f"blocks.{layer}.att_proj.weight": (3 * d, d),
            f"blocks.{layer}.attn_out.weight": (d, d),
            f"blocks.{layer}.ff_norm.weight": (d,),
            f"blocks.{layer}.ff_proj.weight": (inner, d),
            f"blocks.{layer}.ff_out.weight": (d, inner // 2),
        }
    return {PREFIX + name: shape for name, shape in shapes.items()}


def _dtype_name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_tokenizer(tokenizer: Path, folder: Path) -> None:
    for path in tokenizer_files(tokenizer):
        shutil.copyfile(path, folder / path.name)
    path = folder / "tokenizer_config.json"
    config = json_object(path) if path.is_file() else {}
    if str(config.get("tokenizer_class")).startswith("OLMoTokenizer"):
        # A subclass in hf_olmo that adds nothing; transformers does not know its name.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.pop("auto_map", None)
        path.write_text(dumps(config, indent=2) + "\n")


def _write_model(weights: "dict[str, Tensor]", config: OlmoConfig, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in _llama_tensors(weights, config.n_layers).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    llama = _llama_config(config, _dtype_name(tensors["lm_head.weight"].dtype))
    (folder / "config.json").write_text(dumps(llama, indent=2) + "\n")


def _llama_tensors(weights: "dict[str, Tensor]", layers: int) -> "dict[str, Tensor]":
    """Llama's name -> tensor. The parts of `att_proj` and `ff_proj` are views of their rows."""
    tensors = {
        "model.embed_tokens.weight": weights[f"{PREFIX}wte.weight"],
        "model.norm.weight": weights[f"{PREFIX}ln_f.weight"],
        "lm_head.weight": weights[f"{PREFIX}ff_out.weight"],
    }
    for layer in range(layers):
        olmo, llama = f"{PREFIX}blocks.{layer}", f"model.layers.{layer}"
        query, key, value = weights[f"{olmo}.att_proj.weight"].chunk(3)  # (d, d) each
        up, gate = weights[f"{olmo}.ff_proj.weight"].chunk(2)  # (inner / 2, d) each
        tensors |= {
            f"{llama}.input_layernorm.weight": weights[f"{olmo}.attn_norm.weight"],
            f"{llama}.self_attn.q_proj.weight": query,
            f"{llama}.self_attn.k_proj.weight": key,
            f"{llama}.self_attn.v_proj.weight": value,
            f"{llama}.self_attn.o_proj.weight": weights[f"{olmo}.attn_out.weight"],
            f"{llama}.post_attention_layernorm.weight": weights[f"{olmo}.ff_norm.weight"],
            f"{llama}.mlp.up_proj.weight": up,
            f"{llama}.mlp.gate_proj.weight": gate,
            f"{llama}.mlp.down_proj.weight": weights[f"{olmo}.ff_out.weight"],
        }
    return tensors


def _llama_config(config: OlmoConfig, dtype: str) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.embeddings,
        "hidden_size": config.d_model,
        "intermediate_size": config.feed_forward // 2,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "head_dim": config.d_model // config.n_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_sequence_length,
        "rms_norm_eps": config.layer_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
