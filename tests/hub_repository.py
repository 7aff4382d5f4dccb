"""A repository of the hub with a run of two checkpoints, for tests of downloads: on a server, or in the hub cache."""

import time

import numpy as np
import pytest
from hub_stub import HubStub
from huggingface_hub import constants
from proxycast.config.study import HubOptions

random_bytes = np.random.default_rng(0).bytes
FIRST, LAST = random_bytes(40_000), random_bytes(40_000)
TOKENIZER = {"tokenizer.json": b'{"model": 1}', "tokenizer_config.json": b"{}"}
NEEDED = {"config.json": b'{"vocab_size": 9}', **TOKENIZER}
USELESS = {
    "README.md": b"read",
    "optimizer.pt": b"state",
    "onnx/model.onnx": b"onnx",
    "pytorch_model.bin": b"same again",
}
REVISIONS = {
    "main": {**NEEDED, **USELESS, "model.safetensors": LAST},
    "step5-seed-0": {**NEEDED, **USELESS, "model.safetensors": FIRST},
}
REPO = "org/model"
RUN = [("step5", REPO, "step5-seed-0"), ("step9", REPO, "main")]
OPTIONS = HubOptions(retries=2)


@pytest.fixture
def server(monkeypatch):
    with HubStub({REPO: REVISIONS}) as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.endpoint)
        yield stub


@pytest.fixture(autouse=True)
def waits(monkeypatch, tmp_path):
    """A hub cache and a home without token; nobody sleeps, but the seconds are kept."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return seconds


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without(names, files):
    return {name: content for name, content in files.items() if name not in names}


def expected_run():
    weights = {"step5/model.safetensors": FIRST, "step9/model.safetensors": LAST}
    small = {f"{step}/{name}": content for step in ("step5", "step9") for name, content in NEEDED.items()}
    return {**weights, **small}


def run_bytes():
    """What the run takes of the disk: its small files once."""
    return sum(map(len, NEEDED.values())) + 2 * 40_000


API, HEAD, FILE = r"/api/models/.*/main", r"resolve/.*/model.safetensors", r"/storage/.*/model.safetensors"


# A mirror or a cache of bad faith

SAME = b"echo pwned\n"


def victim(tmp_path):
    path = tmp_path / "home" / ".bashrc"
    path.parent.mkdir()
    path.write_text("# mine\n")
    return path


def is_untouched(path):
    return path.read_text() == "# mine\n" and [p.name for p in path.parent.iterdir()] == [path.name]


def link(path, to):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)
