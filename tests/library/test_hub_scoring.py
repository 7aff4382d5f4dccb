"""A model on the hub by its name: the revision becomes a commit, and files are downloaded once."""

import pytest
from hub_repository import waits  # noqa: F401  no home, and nobody sleeps
from hub_stub import HubStub, commit_of
from polars.testing import assert_frame_equal
from proxycast import InputError, score
from scored_models import OPTIONS, SOLUTIONS, of_the_workflow


def test_a_model_on_the_hub_at_a_revision(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = {"main": model_folder("main", seed=1), "v1": model_folder("v1", seed=2)}
    files = {name: {path.name: path.read_bytes() for path in folder.iterdir()} for name, folder in folders.items()}
    with HubStub({"org/tiny": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        found = score("org/tiny", SOLUTIONS, revision="v1", device="cpu", **OPTIONS)
        size = len(files["v1"]["model.safetensors"])
        assert hub.sent_bytes["model.safetensors"] == size
        score("org/tiny", SOLUTIONS, revision="v1", device="cpu", **OPTIONS)
        assert hub.sent_bytes["model.safetensors"] == size  # nothing came twice
        with pytest.raises(InputError, match="no such branch, tag or commit"):
            score("org/tiny", SOLUTIONS, revision="v2")
        with pytest.raises(InputError, match="no such repository"):
            score("org/other", SOLUTIONS)
    assert found["checkpoint"].unique().to_list() == [f"org/tiny@{commit_of('org/tiny', files['v1'])}"]
    expected = of_the_workflow(folders["v1"], tmp_path)
    assert_frame_equal(found.drop("checkpoint"), expected.drop("checkpoint"), check_exact=True)
