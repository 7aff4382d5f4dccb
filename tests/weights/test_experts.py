"""Active parameters of mixtures of experts, against the experts of transformers' own models that a token reaches."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from proxycast.options import InputError
from proxycast.study.checkpoints import count_parameters
from proxycast.weights.experts import inactive_parameters
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SHARED = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
SHARED |= dict(intermediate_size=48, pad_token_id=None, bos_token_id=1, eos_token_id=2)
FOUR = dict(num_experts=4, num_experts_per_tok=2)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
ROUTED = dict(n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1, n_group=1, topk_group=1)
MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1)
# The architectures spell the numbers and the weights differently; some have layers without experts, or shared experts.
KINDS = {
    "mixtral": LOCAL,
    "phimoe": LOCAL,
    "olmoe": FOUR,
    "qwen2_moe": FOUR | dict(moe_intermediate_size=16, shared_expert_intermediate_size=24),
    "qwen3_moe": FOUR | dict(moe_intermediate_size=16, head_dim=16, mlp_only_layers=[0]),
    "deepseek_v3": ROUTED
    | dict(moe_intermediate_size=16, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8)
    | dict(qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8),
    "glm4_moe": ROUTED | dict(moe_intermediate_size=16, head_dim=16, first_k_dense_replace=1),
    "granitemoe": LOCAL,
    "granitemoehybrid": LOCAL | MAMBA | dict(shared_intermediate_size=24, layer_types=["mamba", "attention"]),
    "gpt_oss": LOCAL | dict(head_dim=16),
    "llama4_text": dict(num_local_experts=4, num_experts_per_tok=1, head_dim=16, intermediate_size_mlp=40)
    | dict(interleave_moe_layer_step=2),
    "jamba": FOUR | dict(use_mamba_kernels=False, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1),
    "lfm2_moe": FOUR | dict(moe_intermediate_size=16, num_dense_layers=1, layer_types=["conv", "full_attention"]),
    "ernie4_5_moe": dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_num_shared_experts=1)
    | dict(moe_layer_start_index=1, moe_layer_end_index=1),
}
NUMBER = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def build(kind: str):
    settings = KINDS[kind]
    config = CONFIG_MAPPING[kind](**SHARED | settings)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager").eval()


def touched(model) -> int:
    """Parameters without the input embedding; of the routed experts those through which one token's gradient flows."""
    experts = next(getattr(model.config, name) for name in NUMBER if getattr(model.config, name, None))
    logits = model(input_ids=torch.tensor([[5]]), use_cache=False).logits
    (logits * torch.randn(logits.shape)).sum().backward()
    count = 0
    for name, parameter in model.named_parameters():
        if parameter is model.get_input_embeddings().weight:
            if model.get_output_embeddings().weight is parameter:
                count += parameter.numel()
            continue
        routed = ".experts." in name or "put_linear" in name
        if not routed or "shared" in name:
            count += parameter.numel()
            continue
        gradient = parameter.grad.reshape(experts, -1)
        count += int((gradient != 0).any(1).sum()) * gradient.shape[1]
    buffers = set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return count + sum(model.get_buffer(name).numel() for name in buffers)  # of routers: they lie in the files, too


@pytest.mark.parametrize("kind", KINDS)
def test_active_parameters_are_those_that_a_token_reaches(kind, tmp_path):
    model = build(kind)
    expected = touched(model)
    assert expected < model.num_parameters()
    model.save_pretrained(tmp_path / "as_published")
    # The names that transformers 5 gives the weights in memory, where a layer's experts are one tensor.
    model.save_pretrained(tmp_path / "in_memory")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    weights = {n: p.clone() for n, p in model.state_dict().items() if not (tied and n.endswith("lm_head.weight"))}
    for file in (tmp_path / "in_memory").glob("*.safetensors"):
        file.unlink()
    save_file(weights, tmp_path / "in_memory" / "model.safetensors")
    for folder in (tmp_path / "as_published", tmp_path / "in_memory"):
        assert count_parameters(folder) - inactive_parameters(folder) == expected, folder


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_models_without_experts_are_active_as_a_whole(architecture, model_folder):
    assert inactive_parameters(model_folder(architecture=architecture)) == 0


def expert_folder(folder: Path, tensors: dict[str, tuple[int, ...]], **config) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "nobodys", "architectures": ["Nobodys"]} | config))
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, folder / "model.safetensors")
    return folder


ONE_BY_ONE = {f"model.layers.{n}.moe.experts.{i}.up.weight": (6, 4) for n in (0, 1) for i in range(4)}


@pytest.mark.parametrize(
    "config, inactive",
    [
        ({"num_experts_per_tok": 1}, 2 * 3 * 24),
        ({"moe_top_k": 4}, 0),
        ({"text_config": {"top_k_experts": 3}}, 2 * 24),
        ({"moe_topk": [1, 2]}, (3 + 2) * 24),  # Hunyuan: one number for each layer
    ],
)
def test_spellings_of_the_number_for_each_token(config, inactive, tmp_path):
    assert inactive_parameters(expert_folder(tmp_path / "model", ONE_BY_ONE, **config)) == inactive


JETMOE = {
    **{"mlp.router.layer.weight": (4, 8), "mlp.input_linear.weight": (4, 6, 8), "mlp.bias": (8,)},
    **{"self_attention.experts.router.layer.weight": (4, 8), "self_attention.kv_proj.weight": (8, 8)},
    **{"self_attention.experts.input_linear.weight": (4, 8, 8), "self_attention.experts.bias": (8,)},
}
DBRX = {f"ffn.experts.mlp.{name}": (4 * 6, 8) for name in ("w1", "v1", "w2")} | {"ffn.router.layer.weight": (4, 8)}


@pytest.mark.parametrize(
    "layer, config, inactive",
    [
        (JETMOE, {"num_local_experts": 4, "num_experts_per_tok": 1}, 3 * (6 * 8 + 8 * 8)),  # attention has experts, too
        (DBRX, {"ffn_config": {"moe_num_experts": 4, "moe_top_k": 3}}, 3 * 6 * 8),
    ],
)
def test_stacked_experts_of_another_form(layer, config, inactive, tmp_path):
    tensors = {f"model.layers.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
    assert inactive_parameters(expert_folder(tmp_path / "model", tensors, **config)) == 2 * inactive


ROUTER = {"model.layers.0.mlp.gate.weight": (4, 8), "model.layers.0.mlp.own.weight": (8, 8)}


@pytest.mark.parametrize(
    "tensors, config, words",
    [
        (ONE_BY_ONE, {}, "config.json: found no number of experts for each token.*give `active_parameters`"),
        (ONE_BY_ONE, {"num_experts_per_tok": 5}, "model: found 4 experts in model.layers.0.moe, and 5 of them"),
        (ONE_BY_ONE, {"moe_topk": 2, "zero_expert_num": 2}, "found zero_expert_num 2: .* depends on the token; give"),
        (ROUTER, {"num_experts": 4, "num_experts_per_tok": 2}, "names 4 experts and model.layers.0.mlp.gate.weight"),
        ({"a.0.experts.mlp.w1": (24, 4)}, {"moe_top_k": 2}, "an unknown number of experts in a.0, "),
    ],
)
def test_what_the_files_do_not_tell_is_asked_for(tensors, config, words, tmp_path):
    with pytest.raises(InputError, match=words):
        inactive_parameters(expert_folder(tmp_path / "model", tensors, **config))


def test_what_config_leaves_out_is_taken_from_transformers(tmp_path):
    model = build("mixtral")
    model.save_pretrained(tmp_path)
    expected = inactive_parameters(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("num_experts_per_tok") == 2  # which is Mixtral's default
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert inactive_parameters(tmp_path) == expected > 0


def test_leftover_numbers_of_experts_make_no_mixture(model_folder):
    folder = model_folder(model=tiny_model())
    config = json.loads((folder / "config.json").read_text()) | {"num_experts": 16, "num_experts_per_tok": 2}
    (folder / "config.json").write_text(json.dumps(config))
    assert inactive_parameters(folder) == 0
