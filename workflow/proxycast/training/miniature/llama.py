"""A small Llama as plain functions over a dictionary of tensors with Hugging Face's names, fast to train on a CPU.

`save_folder` writes what transformers and vLLM load as `LlamaForCausalLM`.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from proxycast.config.training import CONTEXT, HEAD_DIMENSION, Size

ROPE_THETA = 10_000.0
NORM_EPSILON = 1e-5


def initialise(size: Size, vocabulary: int, seed: int) -> dict[str, Tensor]:
    """Random parameters: embedding sd 0.02, matrices sd 1/sqrt(fan in), residual outputs smaller by sqrt(2 layers)."""
    generator = torch.Generator().manual_seed(seed)
    width, inner = size.hidden_size, size.intermediate_size

    def normal(rows: int, columns: int, sd: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * sd

    residual = (2 * size.layers) ** -0.5
    parameters = {"model.embed_tokens.weight": normal(vocabulary, width, 0.02)}
    for layer in range(size.layers):
        block = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj"):
            parameters[f"{block}.self_attn.{name}.weight"] = normal(width, width, width**-0.5)
        parameters[f"{block}.self_attn.o_proj.weight"] = normal(width, width, width**-0.5 * residual)
        for name in ("gate_proj", "up_proj"):
            parameters[f"{block}.mlp.{name}.weight"] = normal(inner, width, width**-0.5)
        parameters[f"{block}.mlp.down_proj.weight"] = normal(width, inner, inner**-0.5 * residual)
        parameters[f"{block}.input_layernorm.weight"] = torch.ones(width)
        parameters[f"{block}.post_attention_layernorm.weight"] = torch.ones(width)
    parameters["model.norm.weight"] = torch.ones(width)
    return parameters


def logits(parameters: dict[str, Tensor], size: Size, tokens: Tensor) -> Tensor:
    """Next-token logits (batch, length, vocabulary) of token ids (batch, length)."""
    batch, length = tokens.shape
    width, heads = size.hidden_size, size.hidden_size // HEAD_DIMENSION
    cosine, sine = _rotations(length)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (width,), parameters[name], NORM_EPSILON)

    def project(x: Tensor, name: str) -> Tensor:  # (batch, length, width) -> (batch, heads, length, head dimension)
        return F.linear(x, parameters[name]).view(batch, length, heads, HEAD_DIMENSION).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)

    hidden = F.embedding(tokens, parameters["model.embed_tokens.weight"])  # (batch, length, width)
    for layer in range(size.layers):
        block = f"model.layers.{layer}"
        x = norm(hidden, f"{block}.input_layernorm.weight")
        query, key, value = (project(x, f"{block}.self_attn.{name}_proj.weight") for name in "qkv")
        attended = F.scaled_dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        hidden = hidden + F.linear(attended, parameters[f"{block}.self_attn.o_proj.weight"])
        x = norm(hidden, f"{block}.post_attention_layernorm.weight")
        gated = F.silu(F.linear(x, parameters[f"{block}.mlp.gate_proj.weight"]))
        gated = gated * F.linear(x, parameters[f"{block}.mlp.up_proj.weight"])
        hidden = hidden + F.linear(gated, parameters[f"{block}.mlp.down_proj.weight"])
    return F.linear(norm(hidden, "model.norm.weight"), parameters["model.embed_tokens.weight"])


def _rotations(length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, head dimension / 2) of rotary position embeddings."""
    frequencies = ROPE_THETA ** -(torch.arange(0, HEAD_DIMENSION, 2) / HEAD_DIMENSION)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return angles.cos(), angles.sin()


def save_folder(parameters: dict[str, Tensor], size: Size, folder: Path) -> None:
    """Write config.json and model.safetensors of a `LlamaForCausalLM` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(parameters["model.embed_tokens.weight"]),
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.hidden_size // HEAD_DIMENSION,
        "num_key_value_heads": size.hidden_size // HEAD_DIMENSION,
        "head_dim": HEAD_DIMENSION,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(
        {n: p.detach().contiguous() for n, p in parameters.items()}, folder / "model.safetensors", {"format": "pt"}
    )
