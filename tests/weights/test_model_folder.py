"""Model folders of somebody else: links that lead out of them, and weights that lie elsewhere by their names."""

import json
import os
import shutil

import pytest
from hub_stub import make_cache
from huggingface_hub import constants
from proxycast.options import InputError
from proxycast.weights.conversion import convert
from proxycast.weights.model_config import shape_of
from proxycast.weights.model_files import tokenizer_files, weight_files
from proxycast.weights.model_folder import check_folder, new_checkpoint
from proxycast.weights.tokenizer import load_tokenizer

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n"


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "home/.ssh/id_rsa"
    path.parent.mkdir(parents=True)
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "own.py"]
)
@pytest.mark.parametrize("how", ["absolute", "relative", "twice", "through a blob"])
def test_a_link_out_of_a_model_folder_is_refused(model_folder, private, name, how):
    folder = model_folder()
    (folder / name).unlink(missing_ok=True)
    target = {"relative": os.path.relpath(private, folder)}.get(how, str(private))
    if how == "twice":
        (folder / "first").symlink_to(private)
        target = "first"
    if how == "through a blob":
        blob = folder.parent / "blobs" / ("a" * 64)
        blob.parent.mkdir()
        blob.symlink_to(private)
        target = blob
    (folder / name).symlink_to(target)
    with pytest.raises(InputError, match="a link out of its folder.*put a copy") as refused:
        check_folder(folder)
    assert "OPENSSH" not in str(refused.value)
    if name != "own.py":
        with pytest.raises(InputError, match="a link out of its folder"):
            tokenizer_files(folder) and load_tokenizer(folder)
            weight_files(folder) and check_folder(folder)


@pytest.mark.parametrize(
    "keys",
    [
        {"speculators_config": {"verifier": {"name_or_path": "org/other"}}},
        {"attn_implementation": "org/kernel"},
        {"_attn_implementation": "org/kernel@main:name"},
        {"attn_implementation": {"": "sdpa", "text_config": "org/kernel"}},
        {"vision_config": {"_attn_implementation": "org/kernel"}},
    ],
)
def test_a_configuration_that_names_another_model_or_code_is_refused(model_folder, keys):
    """vLLM runs the model that a draft names; transformers loads attention from the hub where `kernels` is there."""
    folder = model_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    with pytest.raises(InputError, match="config.json, key (speculators_config|_?attn_implementation): found "):
        check_folder(folder)


def test_links_that_may_be(model_folder, tmp_path, monkeypatch):
    """Within the folder; to a hub cache; of weights that are scored as they are; and the folder itself."""
    folder = model_folder()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "tokenizer.json").rename(folder / "real.json")
    (folder / "tokenizer.json").symlink_to("real.json")
    (folder / "model.safetensors").rename(tmp_path / "large.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "large.safetensors")
    (tmp_path / "named").symlink_to(folder)
    check_folder(tmp_path / "named")

    snapshot = make_cache(tmp_path / "some cache", "org/model", {"main": files})["main"]
    check_folder(snapshot)
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for path in snapshot.iterdir():
        (downloaded / path.name).symlink_to(path.resolve())
    with pytest.raises(InputError, match="a link out of its folder"):
        check_folder(downloaded)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "some cache"))
    check_folder(downloaded)


def test_a_cache_whose_blob_is_a_link_to_a_private_file(model_folder, tmp_path, private):
    files = {path.name: path.read_bytes() for path in model_folder().iterdir()}
    snapshot = make_cache(tmp_path / "cache", "org/model", {"main": files})["main"]
    blob = (snapshot / "tokenizer.json").resolve()
    blob.unlink()
    blob.symlink_to(private)
    with pytest.raises(InputError, match="tokenizer.json: a link out of its folder"):
        check_folder(snapshot)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_nothing_private_is_copied_by_a_conversion(tmp_path, private, name):
    """Weights, too, are copied here: a file of torch.save may be private as well."""
    source, folder = tmp_path / "source", tmp_path / "results/converted"
    source.mkdir()
    for other in ("pytorch_model.bin", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (source / other).write_text('{"model_type": "hf_olmo"}')
    config = {"include_bias": False, "layer_norm_type": "rms", "rope": True, "weight_tying": False, "d_model": 4}
    config |= {"embedding_size": 8, "eos_token_id": 0, "layer_norm_eps": 1e-5, "max_sequence_length": 8}
    config |= {"mlp_ratio": 2, "n_heads": 1, "n_layers": 1, "pad_token_id": 0, "vocab_size": 8}
    (source / "config.json").write_text(json.dumps(config | {"model_type": "hf_olmo"}))
    (source / name).unlink()
    (source / name).symlink_to(private)
    with pytest.raises(InputError, match=f"{name}: a link out of its folder") as refused:
        convert(source, folder)
    assert "OPENSSH" not in str(refused.value) and not folder.exists()


def test_nothing_private_is_copied_by_training(tmp_path, model_folder, private, monkeypatch):
    tokenizer = model_folder("tokenizer")
    (tokenizer / "notes.txt").symlink_to(private)
    folder = tmp_path / "results/suite/models/a-seed0/step1"
    (folder.parent).mkdir(parents=True)
    folder.with_name(".step1.partial").symlink_to(private.parent)

    monkeypatch.setattr("proxycast.weights.model_folder.mark_as_trained", lambda folder, mark: None)
    with new_checkpoint(folder, tokenizer, "mark") as written:
        (written / "model.safetensors").write_bytes(b"")
    assert sorted(path.name for path in private.parent.iterdir()) == ["id_rsa"]
    assert not any(SECRET.encode() in path.read_bytes() for path in folder.iterdir())
    (tokenizer / "tokenizer_config.json").unlink()
    (tokenizer / "tokenizer_config.json").symlink_to(private)
    with pytest.raises(InputError, match="a link out of its folder"), new_checkpoint(folder, tokenizer, "mark"):
        pass


@pytest.mark.parametrize(
    "weight_map",
    [
        *({"a": name} for name in ("../other/model.safetensors", "{other}/model.safetensors", "sub/model.safetensors")),
        *({"a": name} for name in ("", ".", "..", "config.json", "./model.safetensors", "x\0.safetensors", "x.bin")),
        *({"a": name} for name in (7, None, ["x.safetensors"], "\\model.safetensors", "x" * 300 + ".safetensors")),
        *(["a.safetensors"], "a.safetensors", 7, {"a": "model-1.safetensors", "b": 7}),
    ],
)
def test_an_index_names_weights_that_lie_beside_it(model_folder, tmp_path, weight_map):
    other, folder = model_folder("other"), model_folder("own")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "sub").mkdir()
    shutil.copy(other / "model.safetensors", folder / "sub")
    text = json.dumps({"weight_map": weight_map}).replace("{other}", str(other))
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json, key weight_map: found .*lie beside it"):
        check_folder(folder)


def test_an_index_of_weights_beside_it(model_folder):
    folder = model_folder()
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    check_folder(folder)


@pytest.mark.parametrize("text", ["a word", [1], 7])
def test_a_nested_configuration_that_is_no_object_is_one_error(tmp_path, text):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    with pytest.raises(InputError, match="config.json, key text_config: found a (str|list|int); it must be an object"):
        shape_of(tmp_path)
