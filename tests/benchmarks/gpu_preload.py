"""Everything slow to import that the stages of `gpu.py` need: imported once, and inherited by each stage's process.

It must not touch the GPU: CUDA does not survive a fork. What is missing or fails here, the stage that needs it tells.
"""

import contextlib
import importlib
import logging

from proxycast.extraction.engines.vllm_support import prepare_environment

MODULES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "proxycast.extraction.engines.transformers",
    "proxycast.extraction.engines.vllm",
    "vllm",
    "vllm.v1.engine.core",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.model_executor.models.llama",
    "vllm.entrypoints.llm",
    "gpu_stages",
)

logging.basicConfig(level=logging.INFO)
prepare_environment()
for module in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(module)
