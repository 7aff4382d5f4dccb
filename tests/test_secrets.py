"""No token reaches a file of the project: a study whose hub refuses some of its models, with secrets planted."""

import base64
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import polars as pl
import pytest
from conftest import byte_level_tokenizer, tiny_model
from hub_stub import Fault, HubStub, Status
from proxycast.config.study import HubOptions
from proxycast.options import InputError
from proxycast.weights.hub import download
from proxycast.weights.hub_requests import _cause_of, resolve
from proxycast.weights.hub_snapshots import HubSource

ROOT = Path(__file__).parents[1]
STUDY = "config/hub.yaml"
TOKEN, TOKEN_OF_FILE = "hf_PlantedInTheEnvironment0123456789", "hf_PlantedInAFile0123456789"
SECRETS = {"HF_TOKEN": TOKEN, "MIRROR_PASSWORD": "planted+password/0123", "LAB_API_KEY": "planted key 0123"}
CORPORA = ["alpha", "beta"]
SIZES = {"small": 10, "large": 20}
ODD = 'own files/it\'s "a" $(touch x); `touch x` & [b] #1 ä'  # legal in a path; a shell must not see it bare
# As a server may do that tells what it was sent.
ECHO = Status(401, {"X-Request": f"Bearer {TOKEN}"}, f"Invalid credentials: Bearer {TOKEN}")


def write(value: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with a model in a folder and one on the hub; the truth is a table. Its files have odd names."""
    project = tmp_path_factory.mktemp("secrets") / "project"
    shutil.copytree(ROOT / "workflow", project / "workflow", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy2(ROOT / "Snakefile", project)
    for corpus in CORPORA:
        entries = [
            {"hub": f"lab/{corpus}-{size}", "size": size, "step": step, "tokens": step, "parameters": 1000 * step}
            for size, step in SIZES.items()
        ]
        if corpus == "alpha":
            entries[0] = {"folder": f"{ODD}/alpha-{{size}}", "size": "small", "step": 10, "tokens": 10}
            entries[0] |= {"parameters": 10_000}
            tiny_model().save_pretrained(project / ODD / "alpha-small")
            byte_level_tokenizer().save_pretrained(project / ODD / "alpha-small")
        write({"name": corpus, "checkpoints": entries}, project / f"config/corpora/lab/{corpus}.yaml")
    rows = [{"id": str(n), "prompt": f"Q: {n}", "solution": " the cat sat"} for n in range(3)]
    for name, prompt in (("sums", None), ("generic", "")):
        lines = (json.dumps(row if prompt is None else row | {"prompt": prompt}) + "\n" for row in rows)
        (project / ODD / f"{name}.jsonl").write_text("".join(lines))
    write({"name": "sums", "solutions": f"{ODD}/sums.jsonl"}, project / "config/tasks/lab/sums.yaml")
    truth = [
        {"checkpoint": f"{corpus}-large-seed0-step20", "task": "sums", "metric": "score", "value": place / 2, "n": 3}
        for place, corpus in enumerate(CORPORA)
    ]
    pl.DataFrame(truth).write_csv(project / ODD / "truth.csv")
    study = {
        "study": "hub",
        "corpora": {"lab": "all"},
        "tasks": {"lab": "all"},
        "generic_text": f"{ODD}/generic.jsonl",
        "hub": {"retries": 1},
        "target": {"size": "large", "metric": "score", "table": f"{ODD}/truth.csv"},
        "selection": {"bootstrap_replicates": 100},
        "highlighted": [{"statistic": "cross_entropy"}],
        "budgets": [{"name": "only", "size": "small", "step": 10}],
    }
    write(study, project / STUDY)
    return project


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("models")
    tiny_model().save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {"lab/beta-small": {"main": files}}


def snakemake(project: Path, hub: HubStub, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--configfile", STUDY, "--cores", "2", "--verbose", *arguments],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
        | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(project.with_name("home")), "OMP_NUM_THREADS": "1"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def holders(folder: Path, secret: str) -> list[Path]:
    """Files below `folder` that hold the secret, as it is or as base64."""
    words = secret.encode(), base64.b64encode(secret.encode())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    return [path for path in files if any(word in path.read_bytes() for word in words)]


def test_a_planted_secret_is_found(tmp_path):
    for number in range(51):
        (tmp_path / str(number)).write_text("nothing")
    (tmp_path / "7").write_text(f"Bearer {TOKEN}")
    (tmp_path / "8").write_bytes(base64.b64encode(TOKEN.encode()))
    assert {path.name for path in holders(tmp_path, TOKEN)} == {"7", "8"}


@pytest.mark.parametrize("status", [None, 401, 404, 500])
def test_the_password_of_a_mirror_is_not_told(status, monkeypatch, caplog):
    with HubStub({"lab/model": {"main": {}}}) as hub:
        address = hub.endpoint.replace("//", "//user:planted@")
        monkeypatch.setenv("HF_ENDPOINT", address if status else "http://user:planted@127.0.0.1:9")
        monkeypatch.setattr("proxycast.weights.hub_requests.LONGEST_BACKOFF", 0.01)
        hub.fail("lab/model", Status(status or 500), times=9)
        with pytest.raises(InputError) as refused:
            resolve(HubSource("lab/model"), HubOptions(retries=1))
    assert "127.0.0.1" in str(refused.value)
    assert "planted" not in str(refused.value) + caplog.text


ODD_ADDRESSES = [
    "http://user:planted@127.0.0.1:nine", "http://user:pla/nted@127.0.0.1:9",
    "http://user:pla?nted@127.0.0.1:9", "http://user:pla#nted@127.0.0.1:9", "http://user:p@planted@127.0.0.1:9",
    "user:planted@127.0.0.1:9", "http:/user:planted@127.0.0.1:9", "//user:planted@127.0.0.1:9", "planted",
    "http://user:planted%40127.0.0.1:9", "http://127.0.0.1:9?key=planted", "http://127.0.0.1:9/#planted",
    "ftp://user:planted@127.0.0.1", "http://user:planted@", "http://user:planted @127.0.0.1", "", "http://planted:@[::1",
    "http://user:pla\\nted@127.0.0.1:9", "http://user:planted\n@127.0.0.1:9", "http://user:planted@127.0.0.1:99999999",
]  # fmt: skip
GOOD_ADDRESSES = [
    "http://user:planted@127.0.0.1:9/", "HTTP://planted@127.0.0.1:9", "http://user:pl%61nted@127.0.0.1:9/some/path",
    "http://user:12:planted@127.0.0.1:9", "http://:planted@localhost:9", "http://user:planted@[::1]:9",
]  # fmt: skip


@pytest.mark.parametrize("address", [*ODD_ADDRESSES, *GOOD_ADDRESSES])
def test_no_spelling_of_a_mirrors_address_tells_its_password(address, monkeypatch, caplog, capfd):
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr("proxycast.weights.hub_requests.LONGEST_BACKOFF", 0.01)
    with caplog.at_level("INFO"), pytest.raises(InputError) as refused:
        resolve(HubSource("lab/model"), HubOptions(retries=1))
    said = "".join([*traceback.format_exception(refused.value), caplog.text, *capfd.readouterr()])
    assert "nted" not in said
    assert "HF_ENDPOINT" in str(refused.value) and (address in GOOD_ADDRESSES) == ("no use of" in str(refused.value))


@pytest.mark.parametrize("name", ["https_proxy", "HTTP_PROXY", "all_proxy"])
def test_what_a_library_says_of_the_address_of_a_proxy_is_not_told(name, monkeypatch):
    """httpx takes what stands before the slash of http://user:planted/2@host for a port, and tells it."""
    monkeypatch.setenv(name, "http://user:planted/2@127.0.0.1:9")
    assert _cause_of(ValueError("Invalid port: 'planted'")) == "ValueError"


def test_what_huggingface_hub_says_of_a_broken_download_holds_no_password(monkeypatch, tmp_path, caplog, capfd):
    files = {"a.bin": b"a" * 5000, "b.txt": b"b" * 5000}
    monkeypatch.setattr("proxycast.weights.hub_requests.LONGEST_BACKOFF", 0.01)
    with HubStub(datasets={"lab/data": {"main": files}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("//", "//user:planted@"))
        hub.fail("resolve|storage", Fault.CUT, times=2)
        hub.fail("resolve.*b.txt", Status(503), times=1, method="GET")
        with caplog.at_level("INFO"):
            record = download(HubSource("lab/data", repo_type="dataset"), lambda names: names, tmp_path, HubOptions())
    assert set(record["files"]) == set(files)
    assert "planted" not in caplog.text + "".join(capfd.readouterr()) + json.dumps(record)


@pytest.mark.slow
def test_no_secret_reaches_a_file_when_the_hub_refuses(project, models):
    with HubStub(models, token=TOKEN) as hub:
        hub.fail("lab/beta-small", ECHO, times=99)
        ended = snakemake(project, hub, "--keep-going", **SECRETS)
    assert ended.returncode != 0
    log = (project / "results/hub/logs/download_run/beta-small-seed0.log").read_text()
    assert "refuses the token; set HF_TOKEN" in log
    assert f"Bearer {TOKEN}" in hub.tokens["hub"] and (project / "results/hub/proxies/alpha.parquet").exists()
    for secret in SECRETS.values():
        assert secret not in ended.stdout
        assert holders(project, secret) == []

    # No shell saw the names of the files that alpha was scored from.
    assert not (project / "x").exists()

    # What Snakemake says last: the failed job, why, its log and the end of it; and nothing of the jobs that ended well.
    said = ended.stdout[ended.stdout.index("download_run run=beta-small-seed0: error: ") :]
    assert "log: results/hub/logs/download_run/beta-small-seed0.log\n    " in said
    assert "1 jobs failed; " in said and "alpha" not in said


@pytest.mark.slow
def test_no_secret_reaches_the_report(project, models):
    """The token lies in a file, as `hf auth login` leaves it, and the study runs to its end."""
    token = project.with_name("token")
    token.write_text(TOKEN_OF_FILE)
    with HubStub(models, token=TOKEN_OF_FILE) as hub:
        ended = snakemake(project, hub, HF_TOKEN_PATH=str(token))
        assert ended.returncode == 0, ended.stdout[-3000:]
        report = snakemake(project, hub, "--report", "report.html", HF_TOKEN_PATH=str(token), HF_TOKEN=TOKEN_OF_FILE)
        assert report.returncode == 0, report.stdout[-3000:]
    assert hub.tokens["hub"] >= {f"Bearer {TOKEN_OF_FILE}"} and "cross_entropy" in (project / "report.html").read_text()
    assert TOKEN_OF_FILE not in ended.stdout + report.stdout
    assert holders(project, TOKEN_OF_FILE) == []
    assert "download_run: 1 jobs, " in ended.stdout and "GPU-hours" in ended.stdout
