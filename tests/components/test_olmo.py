"""Converted checkpoints against ai2-olmo, whose models they were: the same logits, at DataDecide's shapes.

The sources are written by the package: `save_pretrained` of hf_olmo's class makes safetensors, its script
`convert_olmo_to_hf`, which made the checkpoints on the hub, pytorch_model.bin.
"""

import json
from dataclasses import asdict, fields

import pytest
import torch
from conftest import byte_level_tokenizer
from proxycast.weights.conversion import IRRELEVANT, OlmoConfig, convert
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

pytestmark = pytest.mark.olmo

TOLERANCE = 1e-6  # of float32 logits, as a share of the largest
SMALL = dict(d_model=64, n_heads=4, n_layers=2, vocab_size=1000, embedding_size=1024, eos_token_id=999)
# width, heads, layers; N of arXiv 2504.11393: everything but the input embedding
SHAPES = {
    "4M": (64, 8, 8, 3_744_832),
    "20M": (192, 8, 16, 19_101_888),
    "150M": (768, 12, 12, 151_898_880),
    "90M, 2 layers, heads of 44": (528, 12, 2, 2 * (16 * 528**2 + 2 * 528) + 528 + 50304 * 528),
}


@pytest.fixture(scope="module")
def hf_olmo():
    """The package hf_olmo, without its import making the class known to transformers."""
    with pytest.MonkeyPatch.context() as patch:
        for auto in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
            patch.setattr(auto, "register", lambda *args, **options: None)
        import hf_olmo

        return hf_olmo


@pytest.fixture
def olmo(hf_olmo):
    """A function that makes a random model of hf_olmo as DataDecide's are, but for `keys`; no weight stays a one."""

    def build(**keys):
        config = dict(
            **dict(d_model=64, n_heads=8, n_layers=8, mlp_ratio=8, max_sequence_length=2048, rope=True),
            **dict(include_bias=False, layer_norm_type="rms", layer_norm_eps=1e-6, weight_tying=False),
            **dict(vocab_size=50280, embedding_size=50304, eos_token_id=50279, pad_token_id=1),
            **dict(attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0),
        )
        torch.manual_seed(0)
        model = hf_olmo.OLMoForCausalLM(hf_olmo.OLMoConfig(**(config | keys)), init_params=True).eval()
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "ln_f.weight")):
                torch.nn.init.uniform_(weight, 0.5, 1.5)
        return model

    return build


def save(model, folder, kind: str = "safetensors"):
    """Write `model` to `folder` by the package's own means."""
    if kind == "safetensors":
        model.save_pretrained(folder)
    else:
        from hf_olmo.convert_olmo_to_hf import write_config, write_model
        from olmo import TrainConfig

        folder.mkdir()
        TrainConfig(model=model.model.config).save(folder / "config.yaml")
        torch.save(model.model.state_dict(), folder / "model.pt")
        write_config(str(folder))
        write_model(str(folder))
        (folder / "model.pt").unlink()
    byte_level_tokenizer().save_pretrained(folder)
    return folder


def token_ids(model, sequences: int = 2, length: int = 300) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (sequences, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(model, folder, tokens) -> float:
    """Largest difference between the logits of `model` and those of the Llama in `folder`, over the largest logit."""
    expected = model(tokens, use_cache=False, return_dict=True).logits
    found = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens, use_cache=False).logits
    assert found.shape == expected.shape == (*tokens.shape, model.config.embedding_size)
    return (found.sub_(expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("size, kind", [*((size, "bin") for size in SHAPES), ("4M", "safetensors")])
def test_same_logits_at_the_shapes_of_datadecide(size, kind, olmo, tmp_path):
    width, heads, layers, parameters = SHAPES[size]
    model = olmo(d_model=width, n_heads=heads, n_layers=layers)
    convert(save(model, tmp_path / "source", kind), tmp_path / "llama")
    assert difference(model, tmp_path / "llama", token_ids(model)) <= TOLERANCE
    weights = load_file(tmp_path / "llama" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert sum(w.numel() for name, w in weights.items() if "embed_tokens" not in name) == parameters


def test_same_logits_over_the_whole_context(olmo, tmp_path):
    model = olmo(**SMALL)
    convert(save(model, tmp_path / "source"), tmp_path / "llama")
    assert difference(model, tmp_path / "llama", token_ids(model, 1, 2048)) <= TOLERANCE


@pytest.mark.parametrize("size", ["4M", "20M"])
def test_same_greedy_generations(size, olmo, tmp_path):
    width, heads, layers, _ = SHAPES[size]
    model = olmo(d_model=width, n_heads=heads, n_layers=layers)
    convert(save(model, tmp_path / "source"), tmp_path / "llama")
    prompts = token_ids(model, 3, 20)
    expected = model.model.generate(prompts, max_steps=24, beam_size=1).token_ids[:, 0]
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    found = llama.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=24, do_sample=False)
    assert found[:, 20:].tolist() == expected.tolist() and len({tuple(row) for row in expected.tolist()}) == 3


@pytest.mark.parametrize(
    "keys",
    [
        {"layer_norm_eps": 1e-5},
        {"layer_norm_eps": 1e-3},
        {"rope_theta": 500_000},
        {"mlp_hidden_size": 200},
        {"mlp_ratio": 4},
        {"embedding_size": 1000},
        {"n_kv_heads": 4},
        {"multi_query_attention": False},
        {"bias_for_layer_norm": False},
    ],
    ids=str,
)
def test_what_is_carried_over(keys, olmo, tmp_path):
    model = olmo(**SMALL | keys)
    convert(save(model, tmp_path / "source"), tmp_path / "llama")
    assert difference(model, tmp_path / "llama", token_ids(model)) <= TOLERANCE


def swap(first: str, second: str):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        for name in [name for name in weights if first in name]:
            other = name.replace(first, second)
            weights[name], weights[other] = weights[other], weights[name]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


def set_key(**keys):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        assert keys.keys() <= config.keys()
        (folder / "config.json").write_text(json.dumps(config | keys))

    return change


MISTAKES = {
    "halves of ff_proj": swap("up_proj", "gate_proj"),
    "queries and keys": swap("q_proj", "k_proj"),
    "keys and values": swap("k_proj", "v_proj"),
    "norms of the block": swap("input_layernorm", "post_attention_layernorm"),
    "head and embedding": swap("lm_head", "model.embed_tokens"),
    "epsilon of Llama 2": set_key(rms_norm_eps=1e-5),
    "theta of Llama 3": set_key(rope_theta=500_000),
    "GELU": set_key(hidden_act="gelu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistake, olmo, tmp_path):
    model = olmo()
    convert(save(model, tmp_path / "source"), tmp_path / "llama")
    tokens = token_ids(model)
    assert difference(model, tmp_path / "llama", tokens) <= TOLERANCE
    MISTAKES[mistake](tmp_path / "llama")
    assert difference(model, tmp_path / "llama", tokens) > 1000 * TOLERANCE


def test_bfloat16_stays_bfloat16(olmo, tmp_path):
    model = olmo(**SMALL).bfloat16()
    convert(save(model, tmp_path / "source"), tmp_path / "llama")
    weights = load_file(tmp_path / "llama" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(tmp_path / "llama").dtype == torch.bfloat16
    assert difference(model.float(), tmp_path / "llama", token_ids(model)) <= TOLERANCE


def test_every_field_of_the_package_is_decided(hf_olmo):
    from olmo import ModelConfig

    names = {field.name for field in fields(ModelConfig)}
    decided = OlmoConfig.model_fields
    assert names - decided.keys() - IRRELEVANT == set() == decided.keys() & IRRELEVANT
    assert decided.keys() - names == {"tie_word_embeddings"}
    defaults = asdict(ModelConfig())
    for name, field in decided.items():
        assert name == "tie_word_embeddings" or field.is_required() or field.default == defaults[name], name


OTHER_VALUES = {
    **dict(alibi_bias_max=3.0, attention_layer_norm_with_affine=False, flash_attention=True, rope_full_precision=False),
    **dict(attention_dropout=0.3, residual_dropout=0.3, embedding_dropout=0.3, precision="amp_bf16"),
    **dict(emb_init_std=3.0, init_cutoff_factor=2.0, init_fn="mitchell", init_std=1.0, scale_emb_init=True),
}


@pytest.mark.parametrize("key", [*OTHER_VALUES, "init_device"])
def test_what_is_called_irrelevant_is(key, olmo):
    from olmo import ModelConfig

    assert {field.name for field in fields(ModelConfig)} & IRRELEVANT == {*OTHER_VALUES, "init_device"}
    model, other = olmo(**SMALL), olmo(**SMALL, **{key: OTHER_VALUES.get(key, "meta")})
    other.load_state_dict(model.state_dict())
    tokens = token_ids(model)
    with torch.no_grad():
        logits = [m(tokens, use_cache=False, return_dict=True).logits for m in (model, other)]
    assert torch.equal(*logits)


def test_the_tokenizer_of_the_package(hf_olmo, olmo, tmp_path):
    save(olmo(**SMALL), tmp_path / "source")
    plain = byte_level_tokenizer()
    hf_olmo.OLMoTokenizerFast(tokenizer_object=plain.backend_tokenizer, eos_token=plain.eos_token).save_pretrained(
        tmp_path / "source"
    )
    convert(tmp_path / "source", tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    assert tokenizer("The cat é")["input_ids"] == plain("The cat é")["input_ids"]
    assert tokenizer.eos_token == plain.eos_token and "olmo" not in type(tokenizer).__name__.lower()
