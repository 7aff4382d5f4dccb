"""Mixtures of experts: the parameters that a token does not meet, told by a folder's headers and config.json alone.

A layer routes each token to k of its E experts, which are all of one size, so a token meets k / E of their parameters.
What else a layer holds (the router, experts that all tokens share) every token meets. Experts are stored in two ways:

- one by one, as in `mlp.experts.7.up_proj.weight` (Mixtral, OLMoE, Qwen, DeepSeek, Jamba);
- all in one tensor whose first dimension is E, below `experts` (gpt-oss, Llama 4, DBRX) or beside the layer's router,
  as in `block_sparse_moe.input_linear.weight` (Granite, JetMoE).
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from proxycast.options import InputError
from proxycast.weights.model_config import read_config
from proxycast.weights.model_files import json_object, safetensors_header, weight_files

# Names of the keys in config.json, as the architectures of transformers and vLLM spell them.
EXPERTS_PER_TOKEN = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_experts_per_token"),
    *("top_k_experts", "moe_topk", "moe_top_k", "moe_k"),
)
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ROUTERS = {"router", "gate", "router_gate"}  # modules that choose the experts of a token
GIVE = "give `active_parameters` beside `parameters`"


@dataclass
class _Experts:
    """The experts of one layer."""

    parameters: int = 0  # of all of them
    numbers: set[str] = field(default_factory=set)  # of those that are stored one by one
    stacked: int = 0  # E, where they are in one tensor; 0 where its shape does not tell

    @property
    def count(self) -> int:
        return len(self.numbers) or self.stacked


def inactive_parameters(folder: Path) -> int:
    """Parameters of the model in `folder` that a token does not meet; 0 for a model without experts.

    Raises InputError, naming what to give instead, where the files do not tell how many experts a token meets.
    """
    shapes = {name: shape for file in weight_files(folder) for name, shape in safetensors_header(file).items()}
    layers, config = _experts(shapes), json_object(folder / "config.json")
    if not layers:
        _require_dense(folder, shapes, config)
        return 0
    # LongCat: a router may choose the identity instead of an expert, for some tokens more often than for others.
    if zero := _value(config, ("zero_expert_num",)):
        raise InputError(
            f"{folder / 'config.json'}: found zero_expert_num {zero}: the number of parameters that a token meets "
            f"depends on the token; {GIVE}"
        )
    chosen = _experts_per_token(folder, config)
    inactive = 0
    for path, experts in layers.items():
        count = experts.count or _value(config, EXPERTS)
        k = chosen[_layer(path)] if isinstance(chosen, list) else chosen
        if not count or not 1 <= k <= count:
            raise InputError(
                f"{folder}: found {count or 'an unknown number of'} experts in {path}, and {k} of them for each token "
                f"in config.json; {GIVE}"
            )
        inactive += experts.parameters * (count - k) // count
    return inactive


def _experts(shapes: dict[str, list[int]]) -> dict[str, _Experts]:
    """Path of a layer's experts -> what is known of them."""
    routers = {}  # path of a layer -> E
    for name, shape in shapes.items():
        path, found = _before(name, ROUTERS)
        if found and len(shape) == 2:
            routers[path] = shape[0]
    layers: dict[str, _Experts] = {}
    for name, shape in shapes.items():
        path, found = _before(name, {"experts"})
        rest = name[len(path) + 1 :].split(".")[1:] if found else []
        if rest and rest[0].isdigit():
            experts = layers.setdefault(path, _Experts())
            experts.numbers.add(rest[0])
        elif found:
            # Biases have two dimensions; what has one belongs to the router.
            if len(shape) < 2 or ROUTERS & set(rest):
                continue
            experts = layers.setdefault(path, _Experts())
            experts.stacked = experts.stacked or (shape[0] if len(shape) > 2 else 0)
        else:
            path = next((p for p in routers if name.startswith(f"{p}.")), None)
            if path is None or len(shape) < 3 or shape[0] != routers[path] or "shared" in name:
                continue
            experts = layers.setdefault(path, _Experts())
            experts.stacked = shape[0]
        experts.parameters += math.prod(shape)
    return layers


def _before(name: str, modules: set[str]) -> tuple[str, bool]:
    """The path in front of the first of `modules` in a tensor's name, and whether there is one."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part in modules), None)
    return ".".join(parts[:at]), at is not None


def _layer(path: str) -> int:
    return int(re.search(r"\.(\d+)(\.|$)", path)[1])


def _value(config: dict, keys: tuple[str, ...]) -> int | list[int] | None:
    """The first of `keys` in config.json, in its part for text, or in the one for feed-forward blocks (DBRX)."""
    places = config.get("text_config") or {}, config, config.get("ffn_config") or {}
    return next((place[key] for place in places for key in keys if place.get(key)), None)


def _experts_per_token(folder: Path, config: dict) -> int | list[int]:
    """k, or k of each layer; the default of transformers if config.json has none."""
    found = _value(config, EXPERTS_PER_TOKEN)
    if found is None:
        try:
            found = _value(read_config(folder).get_text_config().to_dict(), EXPERTS_PER_TOKEN)
        except InputError:
            pass  # an architecture that transformers does not know
    if found is None:
        raise InputError(
            f"{folder / 'config.json'}: found no number of experts for each token, which a mixture of experts needs "
            f"(a key as num_experts_per_tok); {GIVE}"
        )
    return found


def _require_dense(folder: Path, shapes: dict[str, list[int]], config: dict) -> None:
    """Raise InputError for a model with a router and experts in its config, but no experts among its tensors."""
    router = next((name for name in shapes if _before(name, ROUTERS)[1]), None)
    count = _value(config, EXPERTS)
    if router and isinstance(count, int) and count > 1:
        raise InputError(
            f"{folder}: config.json names {count} experts and {router} chooses them, but no tensor could be told to "
            f"hold them; {GIVE}"
        )
