"""How much memory and time a model takes, and how many GPUs, by its shape.

The constants and formulas overestimate, since jobs ask for these numbers. A comment tells the source of each.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from proxycast.cluster.site import PROFILE, Site
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.base import BATCH_TOKENS
from proxycast.options import InputError
from proxycast.weights.model_config import shape_in_file, shape_of

GB, MB = 1e9, 1e6

# The shape of a model that is not there yet.
ASSUMED_VOCABULARY = 160_000  # the largest of the usual ones: Qwen has 152 thousand, Llama 3 128
ASSUMED_CONTEXT = 32_768
ASSUMED_KV_SHARE = 0.25  # key and value heads to heads: 1/4 in Llama 3 8B and Qwen3 8B, 1/8 in Llama 3 70B
WIDTH_TO_DEPTH = 128  # d / L, as of Llama 2 7B and GPT-3; with N = 12 L d^2 (Kaplan et al., section 2.1) it gives d

# Memory.
BYTES = {"float32": 4, "bfloat16": 2}
ACTIVATION_BYTES = 34  # a token and unit of width: one block, 16 bits (Korthikanti et al., arXiv 2205.05198, 4.1)
LOGIT_COPIES = 2  # float32 logits of a batch, and their log-softmax: vLLM holds both
HEAD_GB = 2  # engine transformers: the head works in pieces (token_stats.HEAD_BYTES_GPU and SCRATCH_BYTES_GPU)
CONTEXT_GB = 1  # what CUDA and its libraries take on each GPU
# Of the engine itself; no correction goes below. 0.3 are for Snakemake, which runs twice in a Slurm job, unmeasured.
HOST_GB = {"cpu": {"transformers": 2, "vllm": 4}, "cuda": {"transformers": 4, "vllm": 8}}
HOST_GB_OF_FURTHER_GPU = 4  # a process of vLLM for each

# Time.
CPU_FLOPS = 10e9  # a second and thread: 13 to 33 measured with tests/benchmarks/extraction.py
UTILISATION = 0.3  # of a GPU's peak
FLOAT32_SLOWER = 16  # A100: 19.5 against 312 TFLOPS, H100: 67 against 989 (NVIDIA's data sheets)

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory and time depend on."""

    parameters: int  # all of them, without the input embedding: what memory holds
    active_parameters: int  # N: of them those that a token meets, which time depends on
    hidden_size: int  # d
    layers: int  # L
    kv_share: float  # heads of keys and values to heads
    vocabulary: int  # V
    context: int

    def weight_bytes(self, dtype: str) -> float:
        """All weights: the parameters and the input embedding, V d, which may count twice where it is tied."""
        return BYTES[dtype] * (self.parameters + self.vocabulary * self.hidden_size)

    def cache_bytes(self, dtype: str, tokens: int) -> float:
        """Keys and values of `tokens` tokens: two vectors for each block."""
        return 2 * BYTES[dtype] * self.layers * self.hidden_size * self.kv_share * tokens

    def activation_bytes(self, dtype: str, tokens: int) -> float:
        """What one block holds of a forward pass; the blocks follow each other."""
        return ACTIVATION_BYTES * BYTES[dtype] / 2 * self.hidden_size * tokens

    def logit_bytes(self, tokens: int) -> float:
        return 4 * LOGIT_COPIES * self.vocabulary * tokens


def assumed_model(
    parameters: int,
    active_parameters: int | None = None,
    vocabulary: int = ASSUMED_VOCABULARY,
    context: int = ASSUMED_CONTEXT,
) -> ModelShape:
    """The shape of a model with known N alone: N = 12 L d^2 with L = d / 128.

    Without `active_parameters` a token meets all parameters.
    """
    active = active_parameters or parameters
    width = (active * WIDTH_TO_DEPTH / 12) ** (1 / 3)
    layers = max(1, round(width / WIDTH_TO_DEPTH))
    return ModelShape(parameters, active, max(1, round(width)), layers, ASSUMED_KV_SHARE, vocabulary, context)


def model_in(folder: Path, parameters: int, active_parameters: int) -> ModelShape:
    """The shape by config.json and the defaults of its architecture; the rest is assumed."""
    shape = shape_in_file(folder)
    if None in shape or shape.context == sys.maxsize:
        shape = shape_of(folder)
    vocabulary, context = shape.vocabulary or ASSUMED_VOCABULARY, min(shape.context, 1 << 20)
    guess = assumed_model(parameters, active_parameters, vocabulary, context)
    return ModelShape(
        parameters,
        active_parameters,
        shape.hidden_size or guess.hidden_size,
        shape.layers or guess.layers,
        shape.cache_share,
        guess.vocabulary,
        guess.context,
    )


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job takes by the formulas, before margins, attempts and corrections."""

    gpus: int
    memory_mb: float
    seconds: float
    gpu_memory_gb: float = 0  # on each GPU
    least_mb: float = 0
    is_given: bool = False  # whether the study says how much memory, so that nothing is to be corrected

    @property
    def threads(self) -> int:
        """A GPU wants a few processes beside it; without one, as many as results were compared with."""
        return min(16, 4 * self.gpus) or 1


def engine_on(device: Device, options: ExtractionOptions) -> str:
    """The engine that `auto` will choose, as far as that is known without the model."""
    if options.engine != "auto":
        return options.engine
    return "vllm" if device == "cuda" and options.dtype != "float32" else "transformers"


def gpu_memory_bytes(model: ModelShape, options: ExtractionOptions, gpus: int) -> float:
    """Memory on each of `gpus` GPUs: those of a copy of the engine share weights and cache, not activations."""
    gpus = max(1, gpus // options.data_parallel_size)
    engine, dtype = engine_on("cuda", options), options.dtype
    tokens = options.batch_tokens or BATCH_TOKENS["cuda"]
    split = model.weight_bytes(dtype)
    whole = CONTEXT_GB * GB + model.activation_bytes(dtype, tokens)
    if engine == "transformers":
        return split + whole + HEAD_GB * GB
    context = min(model.context, options.max_model_len or model.context)
    return (split + model.cache_bytes(dtype, context)) / gpus + whole + model.logit_bytes(tokens)


def gpus_for(model: ModelShape, options: ExtractionOptions, site: Site, where: str) -> int:
    """GPUs of a copy of the engine, as the study says or the smallest power of two with enough memory, times copies.

    An engine on transformers has one. Raises InputError for more than a job may have.
    """
    copies = options.data_parallel_size
    own = _gpus_of_copy(model, options.model_copy(update={"data_parallel_size": 1}), site, where)
    if copies > 1 and site.gpu_memory_gb is not None and own * copies > site.gpus_per_node:
        raise InputError(
            f"{where}: data_parallel_size: found {copies}; so many copies of the engine, each on {own} GPUs, are more "
            f"than the {site.gpus_per_node} GPUs that a job may have ({PROFILE}: config.site.gpus_per_node); give "
            f"{max(site.gpus_per_node // own, 1)} at most"
        )
    return own * copies


def _gpus_of_copy(model: ModelShape, options: ExtractionOptions, site: Site, where: str) -> int:
    stages = options.pipeline_parallel_size
    if engine_on("cuda", options) == "transformers":
        return 1
    if "tensor_parallel_size" in options.model_fields_set or site.gpu_memory_gb is None:
        return options.tensor_parallel_size * stages
    room = site.gpu_memory_gb * GB * options.gpu_memory_fraction
    gpus = 1
    while gpu_memory_bytes(model, options, gpus * stages) > room:
        gpus *= 2
        if gpus * stages > site.gpus_per_node:
            raise InputError(
                f"{where}: needs more than {site.gpus_per_node} GPUs of {site.gpu_memory_gb:g} GB "
                f"({PROFILE}: config.site.gpus_per_node, gpu_memory_gb) by our estimate; give tensor_parallel_size and "
                "pipeline_parallel_size to say how many it takes, or a smaller max_model_len or batch_tokens"
            )
    return gpus * stages


def host_memory_bytes(model: ModelShape, options: ExtractionOptions, device: Device, gpus: int) -> float:
    """Memory of the engine and of the weights (on a GPU: while they are copied); without a GPU activations too.

    Each copy of the engine takes as much.
    """
    if (copies := options.data_parallel_size) > 1:
        single = options.model_copy(update={"data_parallel_size": 1})
        return copies * host_memory_bytes(model, single, device, max(1, gpus // copies))
    engine = engine_on(device, options)
    memory = HOST_GB[device][engine] * GB + model.weight_bytes(options.dtype)
    if device == "cuda":
        return memory + HOST_GB_OF_FURTHER_GPU * GB * (gpus - 1)
    tokens = options.batch_tokens or BATCH_TOKENS["cpu"]
    logits = model.logit_bytes(tokens) if engine == "vllm" else 0
    return memory + model.activation_bytes(options.dtype, tokens) + logits


def flops_per_second(site: Site, dtype: str, gpus: int, threads: int) -> float:
    if gpus == 0:
        return CPU_FLOPS * threads
    return gpus * site.gpu_teraflops * 1e12 * UTILISATION / (FLOAT32_SLOWER if dtype == "float32" else 1)
