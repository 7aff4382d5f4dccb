"""GPT-2 and GPT-NeoX as functions over a dictionary of tensors: modules of transformers, called with the tensors.

`save_folder` writes what `GPT2LMHeadModel` and `GPTNeoXForCausalLM` load. Matrices are (out, in) here, as everywhere
else; GPT-2's own class (Conv1D) and its saved file hold most of them transposed.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proxycast.config.training import CONTEXT, HEAD_DIMENSION, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONV1D = ("c_attn.weight", "c_fc.weight", "c_proj.weight")
OUTPUT_EMBEDDINGS = ("wte.weight", "lm_head.weight")  # one row for each token


def initialise(size: Size, vocabulary: int, seed: int) -> dict[str, Tensor]:
    """Random parameters as transformers draws them: matrices sd 0.02 (GPT-2's residual outputs smaller), biases 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _transformers_model(size, vocabulary)
    return _transposed({name: p.detach() for name, p in model.named_parameters()})


def logits(parameters: dict[str, Tensor], size: Size, tokens: Tensor) -> Tensor:
    """Next-token logits (batch, length, vocabulary) of token ids (batch, length)."""
    model = _skeleton(size, _vocabulary(parameters))
    return torch.func.functional_call(model, _transposed(parameters), (tokens,), {"use_cache": False}).logits


def save_folder(parameters: dict[str, Tensor], size: Size, folder: Path) -> None:
    """Write config.json and model.safetensors of a `GPT2LMHeadModel` or `GPTNeoXForCausalLM` into `folder`."""
    model = _transformers_model(size, _vocabulary(parameters))
    model.load_state_dict(_transposed(parameters), strict=False)  # a tied head has no name of its own
    model.save_pretrained(folder)


def _transformers_model(size: Size, vocabulary: int) -> "PreTrainedModel":
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar per checkpoint would drown the log
    shape = dict(
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden_size // HEAD_DIMENSION,
        **dict(bos_token_id=0, eos_token_id=0, pad_token_id=1),
    )
    if size.architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_inner=size.intermediate_size, **shape)).eval()  # without dropout
    return GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=size.intermediate_size, **shape)).eval()


_skeleton = cache(_transformers_model)  # its own weights are never used


def _vocabulary(parameters: dict[str, Tensor]) -> int:
    return next(len(p) for name, p in parameters.items() if name.endswith(OUTPUT_EMBEDDINGS))


def _transposed(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters with the matrices of Conv1D the other way round."""
    return {name: p.T.contiguous() if name.endswith(CONV1D) else p for name, p in parameters.items()}
