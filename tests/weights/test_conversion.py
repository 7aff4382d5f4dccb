"""Small checkpoints in the layout of hf_olmo, made by hand, against a forward pass in numpy; and all that is refused.

That the layout is the real one is shown in components/test_olmo.py, with the package itself.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import byte_level_tokenizer
from hub_stub import HubStub, make_cache
from huggingface_hub import constants
from proxycast.config.study import HubOptions
from proxycast.options import InputError
from proxycast.weights import conversion
from proxycast.weights.conversion import convert, convert_run, needs_conversion
from proxycast.weights.disk_room import PLANNED_BYTES
from proxycast.weights.hub_runs import fetch_run
from proxycast.weights.hub_snapshots import needed_model_files
from proxycast.weights.model_folder import FINGERPRINT_FILE, check_folder
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

D, HEADS, LAYERS, INNER, ROWS = 24, 2, 3, 20, 352  # heads of 12; up_proj and gate_proj have 20 rows each
EPSILON, THETA = 1e-2, 500.0
CONFIG = {
    **{"model_type": "hf_olmo", "architectures": ["OLMoForCausalLM"], "transformers_version": "4.43.0"},
    **{"d_model": D, "n_heads": HEADS, "n_layers": LAYERS, "n_kv_heads": None, "multi_query_attention": False},
    **{"mlp_ratio": 8, "mlp_hidden_size": 2 * INNER, "activation_type": "swiglu", "block_type": "sequential"},
    **{"layer_norm_type": "rms", "layer_norm_with_affine": True, "layer_norm_eps": EPSILON, "norm_after": False},
    **{"attention_layer_norm": False, "attention_layer_norm_with_affine": False, "bias_for_layer_norm": False},
    **{"rope": True, "rope_theta": THETA, "rope_full_precision": True, "alibi": False, "alibi_bias_max": 8.0},
    **{"include_bias": False, "clip_qkv": None, "scale_logits": False, "weight_tying": False},
    **{"embedding_layer_norm": False, "max_sequence_length": 64, "vocab_size": ROWS - 10, "embedding_size": ROWS},
    **{"eos_token_id": 1, "pad_token_id": 2, "block_group_size": 1, "flash_attention": True, "init_device": "meta"},
    **{"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0, "precision": "amp_bf16"},
    **{"use_cache": True, "init_fn": "normal", "init_std": 0.02, "init_cutoff_factor": 3.0, "torch_dtype": "float32"},
}


def random_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    shapes = {"wte": (ROWS, D), "ln_f": (D,), "ff_out": (ROWS, D)}
    for i in range(LAYERS):
        block = {"attn_norm": (D,), "att_proj": (3 * D, D), "attn_out": (D, D)}
        block |= {"ff_norm": (D,), "ff_proj": (2 * INNER, D), "ff_out": (D, INNER)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    rng = torch.Generator().manual_seed(seed)
    return {f"model.transformer.{n}.weight": 0.4 * torch.randn(s, generator=rng) + 0.1 for n, s in shapes.items()}


def save(weights: dict[str, torch.Tensor], folder: Path, kind: str) -> None:
    """Write `weights` as `kind`: "bin" or "safetensors", in one file or with " shards" in two and an index."""
    write, name = (torch.save, "pytorch_model{}.bin") if kind.startswith("bin") else (save_file, "model{}.safetensors")
    if not kind.endswith("shards"):
        write(weights, folder / name.format(""))
        return
    files = {key: name.format(f"-0000{i % 2 + 1}-of-00002") for i, key in enumerate(weights)}
    for file in set(files.values()):
        write({key: weights[key] for key in weights if files[key] == file}, folder / file)
    (folder / (name.format("") + ".index.json")).write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.fixture
def source(tmp_path):
    """A function that writes a checkpoint: `CONFIG` with `changes` and without the keys in `drop`, and a tokenizer."""

    def build(changes=(), drop=(), weights=None, kind="bin") -> Path:
        folder = tmp_path / "source"
        byte_level_tokenizer().save_pretrained(folder)
        config = {key: value for key, value in {**CONFIG, **dict(changes)}.items() if key not in drop}
        (folder / "config.json").write_text(json.dumps(config))
        save(weights or random_weights(), folder, kind)
        return folder

    return build


def forward(weights: dict[str, torch.Tensor], tokens: np.ndarray) -> np.ndarray:
    """Logits (T, rows) of ai2-olmo's model for `tokens` (T,), in float64, written from its description."""
    w = {name.removeprefix("model.transformer."): tensor.double().numpy() for name, tensor in weights.items()}
    length, width = len(tokens), D // HEADS

    def norm(x, weight):
        return weight * x / np.sqrt((x**2).mean(1, keepdims=True) + EPSILON)

    def rotate(x):  # (T, width); dimension j and j + width / 2 turn together
        angle = np.arange(length)[:, None] / THETA ** (np.arange(0, width, 2) / width)
        first, second = x[:, : width // 2], x[:, width // 2 :]
        turned = (first + 1j * second) * np.exp(1j * angle)
        return np.hstack([turned.real, turned.imag])

    def attend(q, k, v):
        scores = np.where(np.tri(length, dtype=bool), rotate(q) @ rotate(k).T / np.sqrt(width), -np.inf)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True) @ v

    x = w["wte.weight"][tokens]
    for i in range(LAYERS):
        qkv = norm(x, w[f"blocks.{i}.attn_norm.weight"]) @ w[f"blocks.{i}.att_proj.weight"].T
        q, k, v = (qkv[:, j * D : (j + 1) * D] for j in range(3))
        heads = [slice(h * width, (h + 1) * width) for h in range(HEADS)]
        x = x + np.hstack([attend(q[:, h], k[:, h], v[:, h]) for h in heads]) @ w[f"blocks.{i}.attn_out.weight"].T
        hidden = norm(x, w[f"blocks.{i}.ff_norm.weight"]) @ w[f"blocks.{i}.ff_proj.weight"].T
        up, gate = hidden[:, :INNER], hidden[:, INNER:]
        x = x + up * gate / (1 + np.exp(-gate)) @ w[f"blocks.{i}.ff_out.weight"].T
    return norm(x, w["ln_f.weight"]) @ w["ff_out.weight"].T


def llama_logits(folder, tokens: np.ndarray) -> np.ndarray:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)[None]).logits[0].double().numpy()


@pytest.mark.parametrize("kind", ["bin", "bin shards", "safetensors", "safetensors shards"])
def test_logits_are_those_of_a_forward_pass_by_hand(kind, source, tmp_path):
    convert(source(kind=kind), tmp_path / "llama")
    check_folder(tmp_path / "llama")
    tokens = np.random.default_rng(0).integers(0, ROWS, 64)
    expected = forward(random_weights(), tokens)
    np.testing.assert_allclose(llama_logits(tmp_path / "llama", tokens), expected, atol=2e-6 * np.abs(expected).max())


def test_config(source, tmp_path):
    derived = {"mlp_hidden_size": None, "mlp_ratio": 2, "embedding_size": None, "vocab_size": ROWS}
    convert(source(derived, weights=narrow(random_weights())), tmp_path / "llama")
    found = LlamaForCausalLM.config_class.from_pretrained(tmp_path / "llama")
    assert found.architectures == ["LlamaForCausalLM"] and not found.tie_word_embeddings
    assert (found.hidden_size, found.intermediate_size, found.vocab_size) == (D, D, ROWS)
    assert (found.num_hidden_layers, found.num_attention_heads, found.head_dim) == (LAYERS, HEADS, D // HEADS)
    assert (found.max_position_embeddings, found.rms_norm_eps) == (64, EPSILON)
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (None, 1, 2)


def narrow(weights):
    """`weights` with a feed-forward layer of `D` and not `INNER`."""
    shapes = {"ff_proj": (2 * D, D), "ff_out": (D, D)}
    for name in weights:
        if "blocks" in name and (shape := shapes.get(name.split(".")[-2])):
            weights[name] = torch.zeros(shape)
    return weights


def test_missing_keys_with_a_default(source, tmp_path):
    dropped = ["n_kv_heads", "multi_query_attention", "norm_after", "clip_qkv", "block_group_size", "rope_theta"]
    convert(source(drop=dropped), tmp_path / "llama")
    assert json.loads((tmp_path / "llama" / "config.json").read_text())["rope_theta"] == 10_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_stays(dtype, source, tmp_path):
    weights = {name: tensor.to(dtype) for name, tensor in random_weights().items()}
    convert(source(weights=weights), tmp_path / "llama")
    found = load_file(tmp_path / "llama" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert torch.equal(found["lm_head.weight"], weights["model.transformer.ff_out.weight"])
    assert LlamaForCausalLM.from_pretrained(tmp_path / "llama").dtype == dtype


def test_weights_that_lie_in_memory_by_columns(source, tmp_path):
    weights = {n: t.T.contiguous().T if t.dim() == 2 else t for n, t in random_weights().items()}
    convert(source(weights=weights), tmp_path / "llama")
    found = load_file(tmp_path / "llama" / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    assert torch.equal(found, weights["model.transformer.blocks.0.att_proj.weight"][D : 2 * D])


# Config files that are refused

REFUSED = [
    ("activation_type", "gelu", "found 'gelu'; to be a Llama it must be 'swiglu'"),
    ("alibi", True, "found True; to be a Llama it must be False"),
    ("attention_layer_norm", True, "found True; .* must be False"),
    ("bias_for_layer_norm", True, "found True; .* must be False or None"),
    ("block_group_size", 2, "found 2; .* must be 1"),
    ("block_type", "llama", "found 'llama'; .* must be 'sequential'"),
    ("clip_qkv", 8.0, "found 8.0; .* must be None"),
    ("embedding_layer_norm", True, "found True; .* must be False"),
    ("include_bias", True, "found True; .* must be False"),
    ("layer_norm_type", "default", "found 'default'; .* must be 'rms'"),
    ("layer_norm_type", "low_precision", "found 'low_precision'; .* must be 'rms'"),
    ("layer_norm_with_affine", False, "found False; .* must be True"),
    ("multi_query_attention", True, "found True; .* must be False or None"),
    ("norm_after", True, "found True; .* must be False"),
    ("rope", False, "found False; .* must be True"),
    ("scale_logits", True, "found True; .* must be False"),
    ("tie_word_embeddings", True, "found True; .* must be False"),
    ("weight_tying", True, "found True; .* must be False"),
    ("n_heads", 5, r"found 5; it must be d_model 24 in heads of even width"),
    ("n_heads", 8, r"found 8; it must be d_model 24 in heads of even width"),
    ("n_kv_heads", 1, r"found 1; it must be null or n_heads \(2\)"),
    ("embedding_size", 128, r"found 128; it must be null or from vocab_size \(342\) on"),
    ("mlp_hidden_size", 41, "found 41; it must be even"),
    ("mlp_ratio", 2.5, "found 2.5; .* a valid integer"),
    ("d_model", 0, "found 0; .* greater than 0"),
    ("d_model", None, "found None; .* a valid integer"),
    ("n_layers", "3", "found '3'; .* a valid integer"),
    ("layer_norm_eps", 0.0, "found 0.0; .* greater than 0"),
    ("layer_norm_eps", None, "found None; .* a valid number"),
    ("rope_theta", None, "found None; .* a valid number"),
    ("eos_token_id", ROWS, "found 352; it must be below the 352 embeddings"),
    ("pad_token_id", ROWS, "found 352; it must be below the 352 embeddings"),
    ("pad_token_id", -1, "found -1; .* greater than or equal to 0"),
    ("sliding_window", 128, "found 128; a key unknown here could make it no Llama"),
]


@pytest.mark.parametrize("key, value, problem", REFUSED)
def test_refused_config(key, value, problem, source, tmp_path):
    with pytest.raises(InputError, match=f"source/config.json, key {key}: {problem}"):
        convert(source({key: value}), tmp_path / "llama")
    assert not (tmp_path / "llama").exists()


NEEDED = ["include_bias", "layer_norm_type", "rope", "weight_tying", "d_model", "n_heads", "n_layers", "mlp_ratio"]
NEEDED += ["embedding_size", "vocab_size", "max_sequence_length", "layer_norm_eps", "eos_token_id", "pad_token_id"]


@pytest.mark.parametrize("key", NEEDED)
def test_missing_key(key, source, tmp_path):
    with pytest.raises(InputError, match=f"source/config.json, key {key}: missing; found only .*'alibi'"):
        convert(source(drop=[key]), tmp_path / "llama")


def test_which_folders_need_conversion(source, tmp_path):
    folder = source()
    assert needs_conversion(folder)
    for changes, needed in [
        ({"model_type": "olmo", "architectures": ["OLMoForCausalLM"]}, True),
        ({"model_type": "olmo", "architectures": ["OlmoForCausalLM"]}, False),
        ({"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}, False),
        ({"model_type": "llama", "architectures": None}, False),
        ({"model_type": "hf_olmo", "architectures": None}, True),
    ]:
        (folder / "config.json").write_text(json.dumps(CONFIG | changes))
        assert needs_conversion(folder) is needed
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "olmo2", "architectures": []}))
    with pytest.raises(InputError, match="config.json, key model_type: found 'olmo2'; only 'hf_olmo' is converted"):
        convert(folder, tmp_path / "llama")
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: broken JSON"):
        needs_conversion(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="config.json missing"):
        needs_conversion(folder)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "llama")


# Weights that are refused

NAME = "model.transformer.blocks.1.ff_norm.weight"


def test_missing_tensor(source, tmp_path):
    weights = random_weights()
    del weights[NAME]
    with pytest.raises(InputError, match=rf"source: tensor {NAME} missing, of shape \(24,\)"):
        convert(source(weights=weights), tmp_path / "llama")


@pytest.mark.parametrize("name", ["model.transformer.blocks.0.att_proj.bias", "model.transformer.wpe.weight", "wte"])
def test_extra_tensor(name, source, tmp_path):
    with pytest.raises(InputError, match=f"source: found tensor {name}, which the model"):
        convert(source(weights=random_weights() | {name: torch.ones(3)}), tmp_path / "llama")


@pytest.mark.parametrize(
    "name, shape, right",
    [
        ("wte", (ROWS - 10, D), (ROWS, D)),
        ("ff_out", (ROWS - 10, D), (ROWS, D)),
        ("ln_f", (1, D), (D,)),
        ("blocks.2.att_proj", (3 * D + 3, D), (3 * D, D)),
        ("blocks.0.attn_out", (D, D + 1), (D, D)),
        ("blocks.1.ff_proj", (INNER, D), (2 * INNER, D)),
        ("blocks.1.ff_out", (D, 2 * INNER), (D, INNER)),
    ],
)
def test_wrong_shape(name, shape, right, source, tmp_path):
    name = f"model.transformer.{name}.weight"
    found, must = (str(s).replace("(", r"\(").replace(")", r"\)") for s in (shape, right))
    with pytest.raises(InputError, match=f"source: tensor {name}: found shape {found}; .* must be {must}"):
        convert(source(weights=random_weights() | {name: torch.ones(shape)}), tmp_path / "llama")


def test_types_that_differ_or_hold_no_weights(source, tmp_path):
    weights = random_weights()
    folder = source(weights=weights | {NAME: weights[NAME].bfloat16()})
    with pytest.raises(InputError, match=f"tensor {NAME}: found bfloat16; .*of one type, as wte.weight .float32."):
        convert(folder, tmp_path / "llama")
    torch.save({name: tensor.to(torch.int8) for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="found int8; .*one of float32, bfloat16, float16"):
        convert(folder, tmp_path / "llama")


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_truncated_file(share, kind, source, tmp_path):
    folder = source(kind=kind)
    path = folder / {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[kind]
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(InputError, match=f"{path.name}: .*(truncated|but its header promises)"):
        convert(folder, tmp_path / "llama")
    assert not (tmp_path / "llama").exists()


@pytest.mark.parametrize("position", range(300, 1500, 60))
def test_damaged_pickle(position, source, tmp_path):
    folder = source()
    path = folder / "pytorch_model.bin"
    content = bytearray(path.read_bytes())
    start = content.index(b"PK") + position  # of the zip's first file, which is the pickle
    content[start : start + 20] = bytes(range(200, 220))
    path.write_bytes(content)
    with pytest.raises(InputError, match="source(/pytorch_model.bin)?: "):
        convert(folder, tmp_path / "llama")


class Touch:
    """A pickle of this writes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_run_code_does_not(new_format, source, tmp_path):
    folder = source()
    weights = random_weights() | {"model.transformer.extra": Touch(tmp_path / "ran")}
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    message = "asks for posix.mkdir, which could run code" if new_format else "from before PyTorch 1.6"
    with pytest.raises(InputError, match=f"source/pytorch_model.bin: .*{message}"):
        convert(folder, tmp_path / "llama")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "llama").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # so it would have


@pytest.mark.parametrize("value", [[torch.ones(3)], {"model": {"wte": torch.ones(3)}}])
def test_something_else_than_tensors(value, source, tmp_path):
    folder = source()
    torch.save(value, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pytorch_model.bin: holds something else than tensors by name"):
        convert(folder, tmp_path / "llama")


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_shards_that_are_not_there(kind, source, tmp_path):
    folder = source(kind=f"{kind} shards")
    shard = sorted(folder.glob("*-00002-of-*"))[0]
    shard.unlink()
    with pytest.raises(InputError, match=rf"index.json: lists 2 files; missing of them: \['{shard.name}'\]"):
        convert(folder, tmp_path / "llama")
    next(folder.glob("*.index.json")).write_text('{"weight_map": {}}')
    with pytest.raises(InputError, match="index.json: lists 0 files"):
        convert(folder, tmp_path / "llama")


def test_no_weights(source, tmp_path):
    folder = source()
    (folder / "pytorch_model.bin").rename(folder / "model.pt")
    with pytest.raises(InputError, match="source: weights missing; found .*'model.pt'.* one of model.safetensors, "):
        convert(folder, tmp_path / "llama")


# Tokenizers, and what is on the disk before and after


def test_tokenizer_of_the_source_or_else_the_given_one(source, tmp_path):
    given = tmp_path / "tokenizer"
    byte_level_tokenizer(eos=True).save_pretrained(given)
    folder = source()
    convert(folder, tmp_path / "own", given)
    assert (tmp_path / "own" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    for path in [*folder.glob("tokenizer*"), *folder.glob("special*")]:
        path.unlink()
    convert(folder, tmp_path / "given", given)
    assert (tmp_path / "given" / "tokenizer.json").read_bytes() == (given / "tokenizer.json").read_bytes()
    with pytest.raises(InputError, match="source has no tokenizer.json; name a folder"):
        convert(folder, tmp_path / "none")
    with pytest.raises(InputError, match=f"source and {tmp_path} have no tokenizer.json; name a folder"):
        convert(folder, tmp_path / "none", tmp_path)
    assert not (tmp_path / "none").exists()


def test_tokenizer_class_of_hf_olmo(source, tmp_path):
    folder = source()
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "OLMoTokenizerFast", "auto_map": {"AutoTokenizer": ["x--y.OLMoTokenizerFast", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    convert(folder, tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama", trust_remote_code=False)
    assert tokenizer("The cat é")["input_ids"] == byte_level_tokenizer()("The cat é")["input_ids"]
    config = json.loads((tmp_path / "llama" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in config


def test_only_what_is_needed_is_written(source, tmp_path):
    folder = source()
    (folder / "modeling_olmo.py").write_text("raise SystemExit\n")
    convert(folder, tmp_path / "new" / "llama")
    tokenizer = {path.name for path in folder.glob("*token*")}
    assert {p.name for p in (tmp_path / "new" / "llama").iterdir()} == {"config.json", "model.safetensors", *tokenizer}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["llama"]


def test_an_existing_folder_stays(source, tmp_path):
    folder = source()
    kept = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    with pytest.raises(InputError, match="source: exists already; remove it"):
        convert(folder, folder)
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == kept


def test_a_killed_conversion_leaves_no_folder_of_the_name(source, tmp_path, monkeypatch):
    folder = source()

    def killed(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("safetensors.torch.save_file", killed)
        convert(folder, tmp_path / "llama")
    assert not (tmp_path / "llama").exists()
    (tmp_path / ".llama.partial" / "generation_config.json").write_text("{}")
    convert(folder, tmp_path / "llama")
    check_folder(tmp_path / "llama")
    assert not (tmp_path / "llama" / "generation_config.json").exists() and not (tmp_path / ".llama.partial").exists()


# Whole training runs: from folders, and from the hub


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


STEPS = ("step1", "step2", "step3")


class Run:
    """A training run of three checkpoints, converted from folders."""

    def __init__(self, source, folder: Path):
        self.folder, self.tokenizer = folder / "runs" / "a", folder / "tokenizer"
        self.sources = {}
        for seed, step in enumerate(STEPS):
            self.sources[step] = source(weights=random_weights(seed)).rename(folder / step)
        byte_level_tokenizer().save_pretrained(self.tokenizer)
        self.expected = {}
        for step in STEPS:
            convert(self.sources[step], folder / "expected" / step)
            self.expected |= {f"{step}/{name}": data for name, data in contents(folder / "expected" / step).items()}

    def make(self) -> None:
        convert_run(self.sources, self.folder, self.tokenizer, "code")

    def found(self) -> dict[str, bytes]:
        return {name: data for name, data in contents(self.folder).items() if Path(name).name != FINGERPRINT_FILE}

    def change(self, step: str) -> None:
        """The checkpoint is replaced by another one."""
        save(random_weights(9), self.sources[step], "bin")
        convert(self.sources[step], self.folder.parent.parent / "changed")
        self.expected |= {f"{step}/{n}": d for n, d in contents(self.folder.parent.parent / "changed").items()}

    def check_effort(self, twice: int = 0) -> None:
        pass


class HubRun(Run):
    """The same from the hub: two checkpoints to be converted, one that stays as it is."""

    def __init__(self, source, folder: Path, stub: HubStub):
        super().__init__(source, folder)
        self.record = folder / "record.json"
        self.stub, self.revisions = stub, {step: contents(self.sources[step]) for step in STEPS}
        stub.repos["models"]["org/model"] = self.revisions
        self.expected = {name: data for name, data in self.expected.items() if not name.startswith("step3/")}
        self.expected |= {f"step3/{name}": data for name, data in self.revisions["step3"].items()}

    def make(self) -> None:
        checkpoints = [(step, "org/model", step) for step in STEPS]
        fetch_run(
            checkpoints,
            self.folder,
            HubOptions(retries=0, disk_gb=1),
            to_convert=STEPS[:2],
            tokenizer=self.tokenizer,
            record_file=self.record,
        )

    def found(self) -> dict[str, bytes]:
        return {name: data for name, data in super().found().items() if name != PLANNED_BYTES}

    def change(self, step: str) -> None:
        super().change(step)
        self.revisions[step] = contents(self.sources[step])

    def check_effort(self, twice: int = 0) -> None:
        """Weights came once, but for those of `twice` checkpoints at most."""
        sizes = [len(files["pytorch_model.bin"]) for files in self.revisions.values()]
        assert sum(sizes) <= self.stub.sent_bytes["pytorch_model.bin"] <= sum(sizes) + twice * max(sizes)


@pytest.fixture
def hub_run(source, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubStub({}) as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.endpoint)
        yield HubRun(source, tmp_path, stub)


@pytest.fixture(params=["folders", "hub"])
def run(request, source, tmp_path):
    return request.getfixturevalue("hub_run") if request.param == "hub" else Run(source, tmp_path)


@pytest.fixture
def conversions(monkeypatch):
    """The folders that weights were written to."""
    written = []

    def write(tensors, path, metadata):
        save_file(tensors, path, metadata)
        written.append(path.parent.name)

    monkeypatch.setattr("safetensors.torch.save_file", write)
    return written


def test_a_run(run, conversions):
    run.make()
    assert run.found() == run.expected
    assert [path.name for path in run.folder.parent.iterdir() if path.name != ".lock"] == ["a"]
    assert not list(run.folder.glob("*.source"))
    run.check_effort()


@pytest.mark.parametrize("error", [InputError("refused"), OSError("broken"), KeyboardInterrupt()])
def test_what_is_done_survives_a_failed_conversion(run, conversions, monkeypatch, error):
    def fail_at_second(weights, config, folder):
        if conversions:
            raise error
        write(weights, config, folder)

    write = conversion._write_model
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(conversion, "_write_model", fail_at_second)
        run.make()
    assert not run.folder.exists()
    assert conversions == [".step1.partial"]
    run.make()
    assert run.found() == run.expected
    assert conversions.count(".step1.partial") == conversions.count(".step2.partial") == 1
    run.check_effort()


class Killed(BaseException):
    pass


def test_killed_at_any_moment_it_goes_on_where_it_was(run, monkeypatch):
    """Before each single change of names on the disk, one after the other, and in the middle of a removal."""
    left = [0]

    def dies(change, halfway=None):
        def changed(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                if halfway:
                    halfway(*args)
                raise Killed
            return change(*args, **kwargs)

        return changed

    def remove_one_file(folder, *args):
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file())[:1]:
            path.unlink()

    rename, rmtree = Path.rename, shutil.rmtree
    moment, done = 0, False
    while not done:
        moment += 1
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dies(rename))
            patch.setattr(shutil, "rmtree", dies(rmtree, halfway=remove_one_file))
            patch.setattr(os, "replace", dies(os.replace))
            patch.setattr(conversion, "_write_model", dies(conversion._write_model))
            left[0] = moment
            try:
                run.make()
                done = True
            except Killed:
                assert not run.folder.exists()
        run.make()
        assert run.found() == run.expected
        if not done:  # begin anew
            shutil.rmtree(run.folder)
            if isinstance(run, HubRun):
                run.check_effort(twice=1)  # a file that came, but did not get its name
                run.stub.sent_bytes.clear()
    assert moment > (15 if isinstance(run, HubRun) else 6)


def fail_at_the_end(run, monkeypatch):
    """All is converted, but the folder does not get its name."""

    def rename(path, target):
        if target == run.folder:
            raise Killed
        return original(path, target)

    original = Path.rename
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", rename)
        run.make()


def test_a_finished_run_that_has_not_got_its_name(run, conversions, monkeypatch):
    fail_at_the_end(run, monkeypatch)
    done = list(conversions)
    run.make()
    assert run.found() == run.expected and conversions == done
    run.check_effort()


@pytest.mark.parametrize("change", ["truncated", "source", "tokenizer"])
def test_what_was_converted_of_something_else_is_made_anew(run, conversions, monkeypatch, change):
    fail_at_the_end(run, monkeypatch)
    conversions.clear()
    if change == "truncated":
        weights = run.folder.with_name(".a.partial") / "step2" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    elif change == "source":
        run.change("step2")
    else:
        (run.tokenizer / "tokenizer_config.json").write_text('{"model_max_length": 5}')
    run.make()
    assert run.found() == run.expected  # each source has a tokenizer of its own
    assert ".step2.partial" in conversions
    assert (".step1.partial" in conversions) == (change == "tokenizer")


def test_checkpoints_that_are_asked_for_no_more(run, monkeypatch):
    fail_at_the_end(run, monkeypatch)
    other = run.folder.with_name(".a.partial") / "step7"
    shutil.copytree(run.folder.with_name(".a.partial") / "step1", other)
    run.make()
    assert run.found() == run.expected


def test_the_record_is_there_before_the_folder(hub_run, monkeypatch):
    """What fails after the folder has its name takes it away with it."""
    fail_at_the_end(hub_run, monkeypatch)
    record = json.loads(hub_run.record.read_text())
    assert list(record) == list(STEPS)
    assert {"config.json", "pytorch_model.bin", "tokenizer.json"} <= set(record["step1"]["files"])


def test_the_disk_becomes_full_in_a_conversion(hub_run, monkeypatch):
    def full(*args):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    full_told = "step1: the disk is full, in the middle of hub"
    with monkeypatch.context() as patch, pytest.raises(InputError, match=full_told):
        patch.setattr("safetensors.torch.save_file", full)
        hub_run.make()
    hub_run.make()
    assert hub_run.found() == hub_run.expected
    hub_run.check_effort()


def test_a_converted_run_takes_the_disk_though_the_hub_cache_holds_it(hub_run, tmp_path, monkeypatch):
    """A conversion is a copy; only what stays as it is can be a link to the cache."""
    make_cache(tmp_path / "cache", "org/model", hub_run.revisions)
    fail_at_the_end(hub_run, monkeypatch)
    planned = int((hub_run.folder.with_name(".a.partial") / PLANNED_BYTES).read_text())
    files = [contents(hub_run.sources[step]) for step in STEPS[:2]]
    assert planned == sum(len(found[name]) for found in files for name in needed_model_files(found))
