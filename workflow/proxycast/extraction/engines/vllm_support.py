"""Which models vLLM runs here, and why not the others; what vLLM reads from the environment."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.base import FLOAT32_ON_GPU
from proxycast.extraction.engines.modules.reading import ropes
from proxycast.jobs.garbage import no_collection
from proxycast.options import InputError
from proxycast.weights.model_config import context_of, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

VERSIONS = ("0.32", "0.33")  # major.minor of vLLM whose private functions `vllm_worker` knows


def unsupported(folder: Path, options: ExtractionOptions) -> str | None:
    """Why vLLM cannot run the model in `folder`; None if it can. Builds nothing and uses no GPU."""
    import torch

    if torch.cuda.is_available() and options.dtype == "float32":
        return FLOAT32_ON_GPU
    if find_spec("vllm") is None:
        return "vLLM is not installed (envs/vllm.yaml, or envs/vllm-cpu.sh without a GPU)"
    prepare_environment()
    with no_collection():  # these imports take seconds
        import vllm
        from vllm.model_executor.models import ModelRegistry

    if not vllm.__version__.startswith(tuple(f"{version}." for version in VERSIONS)):
        return f"vLLM {vllm.__version__} is installed; the hook knows {', '.join(f'{v}.*' for v in VERSIONS)}"
    config = read_config(folder, options.trust_remote_code, options.architecture)
    architectures = config.architectures or ["none"]
    if not set(architectures) & set(ModelRegistry.get_supported_archs()):
        return f"vLLM has no architecture {', '.join(architectures)}"
    text = config.get_text_config()
    if heads := getattr(text, "num_attention_heads", None):  # Mamba has none
        head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
        if not _attention_backend().supports_head_size(head_size):
            return f"its attention heads have {head_size} dimensions, which vLLM's attention does not run here"
    context = context_of(folder, options.trust_remote_code, options.architecture)
    return _other_rope(config, min(context, options.max_model_len or context))


def _other_rope(config: "PretrainedConfig", context: int) -> str | None:
    """Why a rotary embedding that depends on the length of a text gives other numbers in vLLM; None if it does not."""
    longest = config.get_text_config().max_position_embeddings
    for rope in ropes(config):
        if rope.get("rope_type") != "longrope":
            continue
        original = rope["original_max_position_embeddings"]
        if context > original:
            return (
                f"its rotary embedding (longrope) has other factors for texts of more than {original} tokens; vLLM "
                f"chooses them for all texts by max_model_len: give max_model_len, at most {original}"
            )
        ratio = longest / original
        if rope.get("attention_factor") or rope.get("factor", ratio) != ratio:
            return (
                "its rotary embedding (longrope) scales attention by a factor of its own, of which vLLM knows nothing"
            )
    return None


def _attention_backend() -> type:
    import torch

    if torch.cuda.is_available():
        from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend

        return FlashAttentionBackend
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return CPUAttentionBackend


def prepare_environment() -> None:
    """vLLM reads these when it is imported; what the user has set stays."""
    import torch

    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # which a job sends to its log
    }
    if not torch.cuda.is_available():
        defaults |= {
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process starts in a third of the time
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all jobs of a node sit on the same cores
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",  # it warns a dozen times of what a CPU lacks
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def require_divisible(folder: Path, options: ExtractionOptions) -> None:
    """Raise InputError where the model's heads cannot be dealt to `tensor_parallel_size` GPUs in equal shares."""
    size = options.tensor_parallel_size
    text = read_config(folder, options.trust_remote_code, options.architecture).get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    of_keys = getattr(text, "num_key_value_heads", None) or heads
    if isinstance(heads, int) and (heads % size or (of_keys % size and size % of_keys)):
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (of_keys % n == 0 or n % of_keys == 0)]
        raise InputError(
            f"{folder}: tensor_parallel_size: found {size}, which does not divide the model's {heads} heads "
            f"({of_keys} of keys and values); possible are {', '.join(map(str, fitting))}"
        )
