"""A model folder as a module of transformers with every weight from the file, and loading of another one into it."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from proxycast.config.extraction import ExtractionOptions
from proxycast.jobs.garbage import no_collection
from proxycast.options import InputError, library_errors, one_line
from proxycast.weights.model_config import read_config
from proxycast.weights.model_files import safetensors_header, weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Witness(NamedTuple):
    """The first checkpoint of a kind, and how the module that was built for it reads a text."""

    folder: Path
    files: object
    logits: torch.Tensor


def build_model(folder: Path, options: ExtractionOptions, device: torch.device) -> torch.nn.Module:
    """The model in `folder`, every weight of it from the file, in evaluation mode."""
    with no_collection():  # these imports take seconds
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, GenerationConfig
        from transformers.quantizers.auto import AutoHfQuantizer
        from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar per checkpoint would drown the log
    config = read_config(folder, options.trust_remote_code, options.architecture)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        raise InputError(f"{folder}: transformers has no causal language model of the type {config.model_type}")
    quantization = getattr(config, "quantization_config", None)
    with library_errors(f"{folder}: transformers cannot read the quantization_config"):
        known = not quantization or AutoHfQuantizer.supports_quant_method(quantization)  # else it would only warn
    if not known:
        raise InputError(
            f"{folder}: transformers knows no quantization of the kind {quantization.get('quant_method')!r}"
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, options.dtype),
            attn_implementation=_attention_of(config),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except Exception as error:  # of any library: quantised weights need packages, shapes may be impossible
        raise InputError(f"{folder}: transformers cannot build this model: {one_line(error)}") from error
    _require_all_weights(folder, model, report, options.ignored_weights)
    model.generation_config = GenerationConfig()  # the folder may ask for sampling; only greedy generation is done here
    try:
        return model.eval().to(device)
    except torch.OutOfMemoryError as error:
        size = model.get_memory_footprint() / 2**30
        raise InputError(
            f"{folder}: {size:.1f} GiB of weights do not fit into the memory of {device} ({free_memory(device)}); "
            f"give dtype bfloat16 (found {options.dtype}), or engine vllm with tensor_parallel_size"
        ) from error


def _require_all_weights(folder: Path, model: torch.nn.Module, report: dict, ignored: Sequence[str]) -> None:
    """Raise InputError unless each weight of the model came from the files, and each in the files has a place."""
    for name, found, expected in sorted(report["mismatched_keys"])[:1]:
        raise InputError(
            f"{folder}: {len(report['mismatched_keys'])} weights have other shapes than config.json says: {name} has "
            f"{list(found)}, expected {list(expected)}; one of the two belongs to another model"
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(
            f"{folder}: {len(missing)} weights missing from the safetensors files: {', '.join(missing[:5])}"
        )
    unknown = sorted(
        name for name in report["unexpected_keys"] if not any(fnmatchcase(name, pattern) for pattern in ignored)
    )
    if unknown:
        raise InputError(
            f"{folder}: found {len(unknown)} weights for which {type(model).__name__}, as config.json describes it, "
            f"has no place: {', '.join(unknown[:5])}; these are more layers or another head than would run, or "
            "config.json is another model's; set ignored_weights for those that are meant to be left out"
        )


def require_tied(model: torch.nn.Module, folder: Path) -> None:
    """Raise InputError where config.json ties the head to the input embeddings and the file has another head."""
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    ties = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if not ties or not isinstance(outer, torch.nn.Linear) or not hasattr(inner, "weight"):
        return
    one, other = inner.weight, outer.weight
    if one.data_ptr() != other.data_ptr() and one.shape == other.shape and not torch.equal(one, other):
        raise InputError(
            f"{folder}: config.json has tie_word_embeddings: true, but the weights hold a head that is not the input "
            "embeddings: which of the two is meant nobody can tell; correct config.json, or take that head away"
        )


def free_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return "free memory unknown"
    return "{:.1f} of {:.1f} GiB free".format(*(size / 2**30 for size in torch.cuda.mem_get_info(device)))


def _attention_of(config: "PretrainedConfig") -> str | None:
    """Eager if attention logits have a soft cap (Gemma 2), which sdpa ignores silently; None: the model's default."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def load_in_place(model: torch.nn.Module | None, folder: Path) -> bool:
    """Copy the folder's weights into `model`; False, with nothing copied, where they do not fill it exactly once.

    Tied weights share memory, and the file may hold one of their names. A file with both could untie them: no match.
    """
    from safetensors.torch import load_file

    if model is None:
        return False
    own = model.state_dict()  # tensors that share memory with the module
    shapes = {name: shape for path in weight_files(folder) for name, shape in safetensors_header(path).items()}
    if any(name not in own or list(own[name].shape) != shape for name, shape in shapes.items()):
        return False
    filled = {own[name].data_ptr() for name in shapes}
    if len(filled) < len(shapes) or any(tensor.data_ptr() not in filled for tensor in own.values()):
        return False
    with torch.no_grad():
        for path in weight_files(folder):
            for name, tensor in load_file(path).items():
                own[name].copy_(tensor)
    return True
