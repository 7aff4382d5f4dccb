"""What transformers made of a config.json is known to the next process, as long as nothing that decided it changed."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from proxycast.options import InputError
from proxycast.weights import model_config
from proxycast.weights.model_folder import check_folder
from transformers import CONFIG_MAPPING, LlamaConfig

KEY = model_config._key  # before conftest.py makes this process forget everything
READ = """
import sys
from pathlib import Path
from proxycast.weights import model_config
from proxycast.weights.model_folder import check_folder
model_config.KEPT = Path("configs.json")
check_folder(Path("model"))
model_config.require_readable(Path("model"))
print(model_config.shape_of(Path("model")), "torch" in sys.modules)
"""


@pytest.fixture
def answer(tmp_path, model_folder, monkeypatch):
    """What a new process answers about a folder, and whether it asked transformers."""
    folder = model_folder("model")
    monkeypatch.setattr(model_config, "_key", KEY)
    monkeypatch.setattr(model_config, "KEPT", tmp_path / "configs.json")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)

    def asked(trust=False, architecture=None) -> tuple[str, bool]:
        for forget in (model_config._kept.cache_clear, model_config._readers.cache_clear, model_config._CONFIGS.clear):
            forget()
        imports = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_config, "import_transformers", lambda: imports.append(True))
            try:
                check_folder(folder)
                model_config.require_readable(folder, trust, architecture)
                return str(model_config.shape_of(folder, trust, architecture)), bool(imports)
            except InputError as error:
                return str(error), bool(imports)

    return asked


def edit(path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_next_process_takes_no_torch(answer, tmp_path):
    said, imports = answer()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", READ]
    found = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert imports and found == f"{said} False\n"


def test_the_next_process_knows_and_an_edit_is_read_anew(answer, tmp_path):
    said, imports = answer()
    assert re.search(r"vocabulary=352, context=256, .*layers=2", said) and imports
    assert answer() == (said, False)
    shutil.copy2(tmp_path / "model/config.json", tmp_path)
    edit(tmp_path / "model/config.json", max_position_embeddings=128)
    assert answer() == (said.replace("context=256", "context=128"), True)
    assert answer() == (said.replace("context=256", "context=128"), False)
    shutil.copy2(tmp_path / "config.json", tmp_path / "model")
    assert answer() == (said, False)


def test_what_is_refused_is_refused_again(answer, tmp_path):
    answer()
    edit(tmp_path / "model/config.json", architectures=["LlamaForSequenceClassification"])
    refused = "key architectures: found LlamaForSequenceClassification, whose head predicts no next token"
    for _ in range(2):
        said, imports = answer()
        assert refused in said and imports
    assert "vocabulary=352" in answer(architecture="LlamaForCausalLM")[0]  # an answer of its own
    assert refused in answer()[0]
    edit(tmp_path / "model/config.json", architectures=["LlamaForCausalLM"], rms_norm_eps="small")
    for _ in range(2):
        assert "transformers cannot read it" in answer()[0]


def test_the_rest_of_the_folder_is_checked_every_time(answer, tmp_path):
    answer()
    (tmp_path / "model/model.safetensors").write_bytes(b"cut")
    said, imports = answer()
    assert "model.safetensors" in said and not imports


def test_what_other_code_understood_is_not_taken(answer, tmp_path, monkeypatch):
    said, _ = answer()
    monkeypatch.setattr(model_config, "_SOURCE", b"# other code")
    assert answer() == (said, True)
    monkeypatch.setattr(model_config, "version", lambda name: "99.0")
    assert answer() == (said, True)
    assert answer() == (said, False)
    # A version in development is another every day, with one name.
    monkeypatch.setattr(model_config, "version", lambda name: "99.0.dev0")
    assert answer() == answer() == (said, True)


def test_what_more_than_the_file_decides_is_not_kept(answer, tmp_path, monkeypatch):
    edit(tmp_path / "model/config.json", configuration_files=["config.json"])
    assert answer()[1] and answer()[1]
    edit(tmp_path / "model/config.json", configuration_files=None)
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    assert answer()[1] and not answer()[1]
    assert answer(trust=True)[1] and answer(trust=True)[1]  # the folder's code


def test_nothing_is_written_where_python_writes_nothing(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert answer()[1] and not (tmp_path / "configs.json").exists()
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(model_config, "KEPT", tmp_path / "model/config.json/kept.json")  # of somebody else
    assert answer()[1] and answer()[1]


def test_a_class_that_a_process_registered_is_its_own(answer, tmp_path, monkeypatch):
    class Mine(LlamaConfig):
        model_type = "mine"

    edit(tmp_path / "model/config.json", model_type="mine")
    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "mine", Mine)
    assert "vocabulary=352" in answer()[0]
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "mine")
    assert "transformers cannot read it" in answer()[0]


def test_a_file_that_changes_while_it_is_read_is_not_known(answer, tmp_path, monkeypatch):
    """Else what was read in its place would count for it in every later process."""
    path = tmp_path / "model/config.json"
    good = path.read_text()
    edit(path, architectures=["LlamaForSequenceClassification"])
    with monkeypatch.context() as patch:
        read = model_config.read_config
        patch.setattr(model_config, "read_config", lambda *given: (path.write_text(good), read(*given))[1])
        assert "vocabulary=352" in answer()[0]
    edit(path, architectures=["LlamaForSequenceClassification"])
    assert "whose head predicts no next token" in answer()[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda text: text.replace('"of": "', '"of": "0'),
        lambda text: text.replace("352", "351"),
        lambda text: text.replace('"value"', '"other"'),
    ],
)
def test_a_damaged_record_is_made_anew(answer, tmp_path, damage):
    said, _ = answer()
    kept = tmp_path / "configs.json"
    kept.write_text(damage(kept.read_text()))
    assert answer() == (said, True)
    assert answer() == (said, False)
