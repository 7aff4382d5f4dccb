"""Downloads against a hub on this machine, through the real `huggingface_hub`: bytes, faults, caches, disk, secrets."""

import errno
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from hub_stub import GATED, NO_FILE, Fault, HubStub, Status, commit_of, digest_of, make_cache
from huggingface_hub import constants
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter
from huggingface_hub.utils.sha import git_hash
from proxycast import hub
from proxycast.files import Files
from proxycast.hub import HubOptions, Source, download, fetch_run, needed_model_files, resolve
from proxycast.options import InputError, is_inner_name
from tqdm import tqdm

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


SMALL = ["config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
BINS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
REST = [
    *("optimizer.pt", "training_args.bin", "model.gguf", "consolidated.safetensors", "original/config.json"),
    *("model.fp16.safetensors", "tf_model.h5", "README.md", "unet/model.safetensors", "modeling_own.py"),
    *("consolidated-00001-of-00001.safetensors", "model/part-00001-of-00001.safetensors", "tools/own.py"),
]


@pytest.mark.parametrize(
    ("there", "needed"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors", INDEX, *SHARDS], ["model.safetensors"]),
        ([INDEX, *SHARDS, "pytorch_model.bin"], [INDEX, *SHARDS]),
        ([INDEX, *SHARDS, "model-00001-of-00003.safetensors"], [INDEX, *SHARDS]),
        ([INDEX, SHARDS[0], "pytorch_model.bin"], ["pytorch_model.bin"]),
        ([*SHARDS, "pytorch_model.bin.index.json", *BINS], ["pytorch_model.bin.index.json", *BINS]),
    ],
)
def test_only_what_inference_needs(there, needed):
    assert needed_model_files([*REST, *SMALL, *there]) == sorted([*SMALL, *needed])
    assert needed_model_files([*REST, *SMALL, *there], code=True) == sorted([*SMALL, *needed, "modeling_own.py"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.safetensors"], "no config.json"),
        (["config.json", *REST], "no whole weights"),
        (["config.json", INDEX, SHARDS[1]], "no whole weights"),
        (["config.json", *SHARDS], "no whole weights"),
    ],
)
def test_a_repository_without_a_model(names, message):
    with pytest.raises(InputError, match=message):
        needed_model_files(names)


def test_a_run(server, tmp_path, waits, capfd, caplog):
    with caplog.at_level(logging.INFO):
        record = fetch_run(RUN, tmp_path / "runs" / "a", OPTIONS)
    assert "/storage/" not in caplog.text  # the addresses of the storage are signed: who has one may read
    assert contents(tmp_path / "runs" / "a") == expected_run()
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name != ".lock"] == ["a"]
    assert record["step5"] == {
        "repo": REPO,
        "revision": "step5-seed-0",
        "commit": commit_of(REPO, REVISIONS["step5-seed-0"]),
        "files": {
            **{name: {"size": len(content), "blob_id": git_hash(content)} for name, content in NEEDED.items()},
            "model.safetensors": {"size": 40_000, "sha256": digest_of("model.safetensors", FIRST)},
        },
    }
    assert record["step9"]["commit"] == commit_of(REPO, REVISIONS["main"])
    # What both share came once, and takes the disk once; nothing else was asked for, or slept over.
    assert server.sent_bytes == {"model.safetensors": 80_000, **{n: len(c) for n, c in NEEDED.items()}}
    one, other = (tmp_path / "runs" / "a" / step / "tokenizer.json" for step in ("step5", "step9"))
    assert os.path.samefile(one, other)
    assert waits == []
    assert f"{2 * sum(map(len, {**NEEDED, '': FIRST}.values())) / 1000:.1f}k/" in capfd.readouterr().err  # all counted


def test_bytes_by_xet_count_once():
    """The stub knows no Xet; this is how `huggingface_hub` reports on a download by it."""
    progress = tqdm(total=9, disable=False)
    bar = hub._bar_within(progress)
    with XetDownloadProgressReporter(reconstruction_desc="", total=9, log_level=logging.INFO, tqdm_class=bar) as report:
        for written, came in [(0, 4), (3, 6), (9, 6)]:
            report.update_progress(
                SimpleNamespace(
                    total_bytes_completed=written,
                    total_transfer_bytes_completed=came,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completion_rate=1.0,
                    total_bytes=9,
                )
            )
    assert progress.n == 9


def test_git_itself_agrees_with_the_stub():
    """The stub's hashes, which all tests rest on, against git."""
    made = subprocess.run(["git", "hash-object", "--stdin"], input=b"some\n", capture_output=True, check=True)
    assert digest_of("config.json", b"some\n") == made.stdout.decode().strip()


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_the_stubs_cache_is_that_of_the_library(tmp_path, repo_type):
    """`make_cache` against what `huggingface_hub` itself makes of the same repository."""
    revisions = {"main": REVISIONS["main"], "refs/convert/parquet": {"easy/rows.parquet": FIRST}}
    with HubStub(**{f"{repo_type}s": {REPO: revisions}}) as server:
        for revision in revisions:
            huggingface_hub.snapshot_download(
                REPO, revision=revision, repo_type=repo_type, cache_dir=tmp_path / "library", endpoint=server.endpoint
            )
    make_cache(tmp_path / "stub", REPO, revisions, repo_type)

    def parts(cache):
        storage = cache / f"{repo_type}s--org--model"
        paths = [path for kind in ("refs", "blobs", "snapshots") for path in (storage / kind).rglob("*")]
        links = {path.relative_to(cache): os.readlink(path) for path in paths if path.is_symlink()}
        return links, {path.relative_to(cache): path.read_bytes() for path in paths if path.is_file()}

    assert parts(tmp_path / "stub") == parts(tmp_path / "library")


API, HEAD, FILE = r"/api/models/.*/main", r"resolve/.*/model.safetensors", r"/storage/.*/model.safetensors"


@pytest.mark.parametrize(
    ("path", "fault", "least_wait"),
    [
        (API, Status(429, {"Retry-After": "77"}), 77),
        (API, Status(429, {"RateLimit": '"api";r=0;t=88'}), 88),
        (API, Status(502), 0.5),
        (HEAD, Status(429, {"Retry-After": "77"}), 0),
        (HEAD, Status(500), 0),
        (FILE, Status(429, {"Retry-After": "77"}), 77),
        (FILE, Status(503), 0.5),
        (FILE, Status(403), 0.5),
        (FILE, Fault.CUT, 0),
        (FILE, Fault.SHORT, 0.5),
        (FILE, Fault.WRONG, 0.5),
        (r"resolve/.*/config.json", Fault.WRONG, 0.5),
        (r"resolve/.*/tokenizer.json", Fault.SHORT, 0.5),
    ],
)
def test_faults_that_pass(server, tmp_path, waits, path, fault, least_wait):
    server.fail(path, fault, times=2)
    record = download(Source(REPO), needed_model_files, tmp_path / "m", OPTIONS)
    assert contents(tmp_path / "m") == {**NEEDED, "model.safetensors": LAST}
    assert record["commit"] == commit_of(REPO, REVISIONS["main"])
    assert server.fault_for("GET", path.replace(".*", "x"), type(fault)) is None  # both were met
    assert max(waits, default=0) >= least_wait


def test_a_file_that_never_comes(server, tmp_path):
    server.fail(HEAD, Status(500), times=99)
    with pytest.raises(InputError, match=f"main, file model.safetensors: HTTP status 500, from {server.endpoint}$"):
        download(Source(REPO), needed_model_files, tmp_path, HubOptions(retries=0))


def test_waits_grow_and_differ(server, waits):
    server.fail(API, Status(500), times=9)
    with pytest.raises(InputError, match=f"hub model {REPO}, revision main: HTTP status 500, from {server.endpoint}"):
        resolve(Source(REPO), HubOptions(retries=8))
    assert len(waits) == 8
    assert all(0.5 <= seconds / min(60, 2**i) <= 1.5 for i, seconds in enumerate(waits))
    assert len({seconds / min(60, 2**i) for i, seconds in enumerate(waits)}) == 8


def test_a_cut_file_is_resumed_where_it_was_cut(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.fail(FILE, Fault.CUT)
    download(Source(REPO), needed_model_files, tmp_path, OPTIONS)
    assert server.ranges == ["bytes=20000-"]
    assert (tmp_path / "model.safetensors").read_bytes() == LAST


def test_a_file_that_is_always_wrong(server, tmp_path):
    server.fail(FILE, Fault.WRONG, times=99)
    with pytest.raises(InputError) as error:
        download(Source(REPO), needed_model_files, tmp_path, OPTIONS)
    wrong = digest_of("model.safetensors", bytes(byte ^ 1 for byte in LAST))
    right = digest_of("model.safetensors", LAST)
    assert str(error.value) == (
        f"hub model {REPO}, revision main, file model.safetensors: found 40000 bytes with hash {wrong}, "
        f"expected 40000 bytes with hash {right}, from {server.endpoint}"
    )
    assert server.gets(FILE) == 3
    assert contents(tmp_path) == NEEDED


def test_what_is_finished_survives_an_error(server, tmp_path):
    folder = tmp_path / "a"
    server.fail(f"{commit_of(REPO, REVISIONS['main'])}/model.safetensors", NO_FILE)
    with pytest.raises(InputError, match=f"{REPO}, revision main, file model.safetensors: HTTP status 404"):
        fetch_run(RUN, folder, OPTIONS)
    assert not folder.exists()
    # In the meantime one file is damaged, another one cut; and a run of another checkpoint left its own behind.
    partial = tmp_path / ".a.partial"
    (partial / "step5" / "config.json").write_bytes(NEEDED["config.json"].upper())
    (partial / "step5" / "tokenizer.json").write_bytes(b"{")
    (partial / "step5" / "pytorch_model.bin").write_bytes(b"old")
    (partial / "step5" / ".download").mkdir()
    (partial / "step5" / ".download" / "1.incomplete").write_bytes(b"half")
    shutil.copytree(partial / "step5", partial / "step3")
    fetch_run(RUN, folder, OPTIONS)
    assert contents(folder) == expected_run()
    assert server.sent_bytes["model.safetensors"] == 80_000


def test_a_killed_process_goes_on_where_it_was(server, tmp_path):
    """A process of its own, which reads HF_ENDPOINT and HF_TOKEN as jobs do."""
    server.token = "hf_secret"
    server.fail(f"{commit_of(REPO, REVISIONS['main'])}/model.safetensors", Fault.STALL)
    call = f"hub.fetch_run({RUN!r}, Path({str(tmp_path / 'a')!r}), hub.HubOptions())"
    command = [sys.executable, "-c", f"from pathlib import Path; from proxycast import hub; {call}"]
    environment = os.environ | {"HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    assert server.stalled.wait(30), process.communicate()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "a").exists()
    process.stderr.close()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert contents(tmp_path / "a") == expected_run()
    assert server.sent_bytes["model.safetensors"] == 3 * 40_000  # the first checkpoint's came once
    assert server.tokens == {"hub": {"Bearer hf_secret"}, "storage": {None}}


def test_a_finished_folder_is_made_anew(server, tmp_path):
    (tmp_path / "a" / "old").mkdir(parents=True)
    fetch_run(RUN, tmp_path / "a", OPTIONS)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["step5", "step9"]


def test_files_of_a_data_set(monkeypatch, tmp_path):
    files = {"README.md": b"#", "easy/train-0.parquet": random_bytes(99), "easy/test-0.parquet": random_bytes(98)}
    source = Source("org/data", "refs/convert/parquet", "dataset")
    choice = Files(files="easy/*.parquet", hub="org/data")

    def chosen(names):
        return [name for name in names if choice.matches(name)]

    with HubStub(datasets={"org/data": {"refs/convert/parquet": files}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        record = download(source, chosen, tmp_path, OPTIONS)
        assert contents(tmp_path) == without(["README.md"], files)
        assert record["revision"] == "refs/convert/parquet" and set(record["files"]) == set(files) - {"README.md"}
        once = server.sent_bytes.copy()
        assert download(source, chosen, tmp_path, OPTIONS) == record
        assert server.sent_bytes == once
        with pytest.raises(InputError, match="hub dataset org/data.*none of its 3 files is asked for.*README.md"):
            download(source, lambda names: [], tmp_path, OPTIONS)
    assert choice.paths(tmp_path) == sorted(tmp_path / name for name in files if name != "README.md")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (Source("org/modle"), ["org/modle, revision main", "no such repository", "id", "set HF_TOKEN"]),
        (Source("org/a--b"), ["org/a--b", "not an id"]),
        (Source(REPO, "step5-seed-1"), [REPO, "revision step5-seed-1", "no such branch", "close", "'step5-seed-0'"]),
        (Source(REPO, "zzz"), [REPO, "revision zzz", "there are 2", "main"]),
        (Source(REPO, "0" * 40), [REPO, "0" * 40, "no such branch, tag or commit"]),
    ],
)
def test_what_is_not_there(server, waits, source, parts):
    with pytest.raises(InputError) as error:
        resolve(source, OPTIONS)
    assert all(part in str(error.value) for part in parts), error.value
    assert waits == []


@pytest.mark.parametrize("path", [API, HEAD])
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (GATED, "gated; accept the conditions on the page of the repository with the account of HF_TOKEN"),
        (Status(401, {}, "Invalid credentials in Authorization header"), "refuses the token; set HF_TOKEN"),
    ],
)
def test_what_may_not_be_read(server, tmp_path, waits, path, status, message):
    server.fail(path, status, times=99)
    with pytest.raises(InputError, match=f"hub model {REPO}, revision main.*{message}"):
        download(Source(REPO), needed_model_files, tmp_path, OPTIONS)
    assert waits == []


def test_five_close_revisions_at_most(monkeypatch):
    with HubStub({REPO: {f"step{i}": NEEDED for i in range(20)}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        with pytest.raises(InputError) as error:
            resolve(Source(REPO, "step99"), OPTIONS)
        assert str(error.value).count("'step") == 5
        server.fail("/refs", Status(500))
        with pytest.raises(InputError, match="no such branch, tag or commit$"):
            resolve(Source(REPO, "step99"), OPTIONS)


def test_no_server(monkeypatch, waits):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")
    with pytest.raises(InputError) as error:
        resolve(Source(REPO), OPTIONS)
    expected = [REPO, "http://127.0.0.1:9 ", "refused", "HF_ENDPOINT", "HF_HUB_OFFLINE=1", constants.HF_HUB_CACHE]
    assert all(part in str(error.value) for part in expected), error.value
    assert len(waits) == 2


def test_a_server_that_is_no_hub(server):
    server.fail(API, Status(200, {"Content-Type": "text/html"}, "<p>Log in to this network</p>"), times=9)
    with pytest.raises(InputError, match=f"{REPO}.*no use of {server.endpoint}"):
        resolve(Source(REPO), OPTIONS)


def test_a_mirror_that_knows_no_hashes(server):
    server.without_hashes = True
    with pytest.raises(InputError, match=f"{REPO}.*{server.endpoint} gives no size or hash for .*config.json"):
        resolve(Source(REPO), OPTIONS)


TOKEN = "hf_thisMustNotBeSeen"
ECHO = f"you sent {TOKEN}"


@pytest.mark.parametrize(
    ("path", "fault", "endpoint"),
    [(path, Status(code, {}, ECHO), None) for path in (API, HEAD) for code in (400, 401, 403, 404, 429, 500)]
    + [(path, Status(403, {"X-Error-Code": "GatedRepo"}, ECHO), None) for path in (API, HEAD)]
    + [(API, Status(404, {"X-Error-Code": code}, ECHO), None) for code in ("RevisionNotFound", "RepoNotFound")]
    + [(FILE, fault, None) for fault in (Fault.CUT, Fault.SHORT, Fault.WRONG)]
    + [(API, None, None), (API, None, "http://127.0.0.1:9")],
)
def test_the_token_is_never_told(server, tmp_path, monkeypatch, caplog, capfd, path, fault, endpoint):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    told = []
    with caplog.at_level(logging.INFO):
        if fault:
            server.fail(path, fault, times=999)
        try:
            told.append(str(fetch_run(RUN, tmp_path / "a", OPTIONS)))
        except InputError as error:
            told += [repr(error), "".join(traceback.format_exception(error))]
    assert bool(fault or endpoint) == ("Traceback" in told[-1])
    assert endpoint or f"Bearer {TOKEN}" in server.tokens["hub"]
    assert server.tokens["storage"] <= {None}
    said = capfd.readouterr()
    written = [path.read_bytes().decode("latin1") for path in tmp_path.rglob("*") if path.is_file()]
    assert TOKEN not in "\n".join([*told, caplog.text, said.out, said.err, *written])


def test_the_token_in_a_librarys_words(server, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError(f"cannot send 'Bearer {TOKEN}'")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.file_download, "http_get", fail)
    with pytest.raises(InputError, match="RuntimeError: cannot send 'Bearer <token>'"):
        fetch_run(RUN, tmp_path / "a", OPTIONS)
    assert "cannot send" in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize("bad", ["\x01", "\u201d"])
def test_a_token_that_no_header_may_hold(server, monkeypatch, caplog, bad):
    monkeypatch.setenv("HF_TOKEN", TOKEN + bad)
    with pytest.raises(InputError, match="HF_TOKEN.*copy it again") as error:
        resolve(Source(REPO), OPTIONS)
    assert TOKEN not in "".join(traceback.format_exception(error.value)) + caplog.text


def test_the_cache_online(server, tmp_path, caplog):
    """Whole files are linked; one that is damaged in the cache is downloaded, and the cache left as it was."""
    cached = make_cache(tmp_path / "cache", REPO, {"step5-seed-0": without(["config.json"], REVISIONS["step5-seed-0"])})
    # The same commit as the server's, though one file is missing in the cache.
    snapshot = cached["step5-seed-0"].rename(
        cached["step5-seed-0"].with_name(commit_of(REPO, REVISIONS["step5-seed-0"]))
    )
    (snapshot / "tokenizer.json").resolve().write_bytes(b'{"model": 2}')
    before = contents(tmp_path / "cache")
    half = tmp_path / ".a.partial" / "step5" / "model.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes(FIRST[:99])
    record = fetch_run(RUN, tmp_path / "a", OPTIONS)
    assert contents(tmp_path / "a") == expected_run()
    assert contents(tmp_path / "cache") == before
    assert os.path.samefile(tmp_path / "a/step5/model.safetensors", (snapshot / "model.safetensors").resolve())
    assert not (tmp_path / "a/step5/model.safetensors").is_symlink()
    sent = {name: len(NEEDED[name]) for name in ("config.json", "tokenizer.json")}
    assert server.sent_bytes == {"model.safetensors": 40_000, **sent}
    assert "tokenizer.json is broken" in caplog.text
    assert record["step5"]["files"]["tokenizer.json"]["blob_id"] == git_hash(TOKENIZER["tokenizer.json"])


def test_where_hard_links_cannot_be(server, tmp_path, monkeypatch):
    def link(*args):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    make_cache(tmp_path / "cache", REPO, {"step5-seed-0": REVISIONS["step5-seed-0"]})
    fetch_run(RUN, tmp_path / "a", OPTIONS)
    assert contents(tmp_path / "a") == expected_run()
    weights = (tmp_path / "a/step5/model.safetensors").readlink()
    assert weights.is_absolute() and weights.parent.name == "blobs"
    assert not (tmp_path / "a/step9/tokenizer.json").is_symlink()


@pytest.mark.parametrize("links", [True, False])
def test_offline_from_the_cache(server, tmp_path, monkeypatch, offline, links):
    make_cache(tmp_path / "cache", REPO, REVISIONS, links=links)
    record = fetch_run(RUN, tmp_path / "a", OPTIONS)
    assert contents(tmp_path / "a") == expected_run()
    by_commit = fetch_run([(name, REPO, record[name]["commit"]) for name in record], tmp_path / "b", OPTIONS)
    assert {name: r["files"] for name, r in by_commit.items()} == {name: r["files"] for name, r in record.items()}
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no cache"))
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    online = fetch_run(RUN, tmp_path / "c", OPTIONS)
    if links:
        assert record == online
    assert record["step9"]["files"]["model.safetensors"] == online["step9"]["files"]["model.safetensors"]
    assert record["step9"]["commit"] == online["step9"]["commit"]


def test_offline_a_revision_with_slashes(tmp_path, offline):
    files = {"easy/test.parquet": b"rows"}
    make_cache(tmp_path / "cache", "org/data", {"refs/convert/parquet": files}, "dataset")
    record = download(Source("org/data", "refs/convert/parquet", "dataset"), lambda n: n, tmp_path / "d", OPTIONS)
    assert contents(tmp_path / "d") == files
    assert record["commit"] == commit_of("org/data", files)


def test_offline_in_a_process_of_its_own(tmp_path):
    """HF_HUB_OFFLINE and HF_HUB_CACHE as a job has them."""
    make_cache(tmp_path / "hubs", REPO, REVISIONS)
    call = f"hub.fetch_run({RUN!r}, Path({str(tmp_path / 'a')!r}), hub.HubOptions())"
    command = [sys.executable, "-c", f"from pathlib import Path; from proxycast import hub; {call}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hubs")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "a/step9/model.safetensors").read_bytes() == LAST


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_offline_and_not_in_the_cache(tmp_path, offline, waits, repo_type):
    make_cache(tmp_path / "cache", REPO, {"main": REVISIONS["main"]}, repo_type)
    with pytest.raises(InputError) as error:
        resolve(Source(REPO, "step5-seed-0", repo_type), OPTIONS)
    kind = " --repo-type dataset" if repo_type == "dataset" else ""
    assert str(error.value) == (
        f"hub {repo_type} {REPO}, revision step5-seed-0: not in the hub cache; HF_HUB_OFFLINE is set, so only the "
        f"cache {tmp_path / 'cache'} (HF_HUB_CACHE) was looked at: fill it, where there is network, by: "
        f"hf download {REPO} --revision step5-seed-0{kind}"
    )
    assert waits == []


def test_offline_and_half_of_the_cache(tmp_path, offline):
    files = {"config.json": b"{}", INDEX: b"{}", SHARDS[0]: FIRST}
    make_cache(tmp_path / "cache", REPO, {"main": files})
    with pytest.raises(InputError, match=f"{REPO}, revision main: .*no whole weights.*hf download {REPO} --revision"):
        fetch_run([("a", REPO, "main")], tmp_path / "a", OPTIONS)
    snapshot = make_cache(tmp_path / "cache", REPO, REVISIONS)["main"]
    (snapshot / "model.safetensors").resolve().write_bytes(FIRST)
    with pytest.raises(InputError, match="model.safetensors is broken: found 40000 bytes.*expected 40000.*hf download"):
        fetch_run(RUN, tmp_path / "a", OPTIONS)


def test_too_little_disk(server, tmp_path, monkeypatch):
    make_cache(tmp_path / "cache", REPO, {"main": REVISIONS["main"]})
    need = 40_000 + sum(map(len, NEEDED.values()))  # of step5; the cache has all of step9
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need - 1))
    with pytest.raises(InputError, match=r"0\.00 GB free.*need 0\.00 GB \(4 files.*and 1 more\); make room"):
        fetch_run(RUN, tmp_path / "a", OPTIONS)
    assert server.sent_bytes == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need))
    fetch_run(RUN, tmp_path / "a", OPTIONS)


def test_what_lies_there_needs_no_disk(server, tmp_path, monkeypatch):
    server.fail(f"{commit_of(REPO, REVISIONS['main'])}/model.safetensors", NO_FILE)
    with pytest.raises(InputError):
        fetch_run(RUN, tmp_path / "a", OPTIONS)
    half = tmp_path / ".a.partial" / "step9" / ".download" / "1.incomplete"
    half.parent.mkdir()
    half.write_bytes(b"what a killed job left must go before free disk is counted")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=40_000 - half.exists()))
    fetch_run(RUN, tmp_path / "a", OPTIONS)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("Io: full (os error 28)")])
def test_the_disk_becomes_full(server, tmp_path, monkeypatch, waits, error):
    http_get = huggingface_hub.file_download.http_get

    def write(url, file, **kwargs):
        if "model.safetensors" in url:
            file.write(b"a part")
            raise error
        http_get(url, file, **kwargs)

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", write)
    with pytest.raises(InputError, match=f"step5: the disk is full.*{REPO}, revision step5-seed-0; finished"):
        fetch_run(RUN, tmp_path / "a", OPTIONS)
    assert waits == []
    assert contents(tmp_path / ".a.partial" / "step5") == NEEDED


def test_another_fault_of_this_machine_is_told_as_it_is(server, tmp_path, monkeypatch, waits):
    def refuse(url, file, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/file")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", refuse)
    with pytest.raises(PermissionError, match="/some/file"):
        fetch_run(RUN, tmp_path / "a", OPTIONS)
    assert waits == []


# Room on the disk, hub.disk_gb


def reserved_files(folder):
    """What `fetch_run` leaves in `folder` besides, where there is a bound."""
    return {".planned_bytes": (folder / ".planned_bytes").read_bytes()}


def left_behind(folder, size):
    """A folder with `size` bytes of weights, as a download leaves it behind."""
    (folder / "step5").mkdir(parents=True)
    (folder / "step5" / "model.safetensors").write_bytes(bytes(size))
    (folder / ".planned_bytes").write_text("999999")
    return folder


@pytest.fixture
def clock(monkeypatch):
    """`time.sleep` moves `time.monotonic`; `clock.at[seconds]` is called at that time. Ends a wait of two days."""
    times = SimpleNamespace(now=0.0, at={})

    def sleep(seconds):
        times.now += seconds
        assert times.now < 2 * 24 * 3600, "waits for ever"
        for when in [when for when in times.at if when <= times.now]:
            times.at.pop(when)()

    monkeypatch.setattr(time, "monotonic", lambda: times.now)
    monkeypatch.setattr(time, "sleep", sleep)
    return times


PATIENCE = hub.Patience()


def reserve(folder, planned, disk_gb, patience=PATIENCE):
    return hub._reserved(folder.with_name(f".{folder.name}.partial"), folder, planned, disk_gb, patience)


def test_a_run_larger_than_the_bound(server, tmp_path):
    options = HubOptions(disk_gb=(run_bytes() - 1) / 1e9)
    with pytest.raises(InputError, match=r"one training run take 0.00 GB, more than hub.disk_gb 8.*e-05"):
        fetch_run(RUN, tmp_path / "a", options)
    fetch_run(RUN, tmp_path / "a", HubOptions(disk_gb=run_bytes() / 1e9))


def test_a_run_waits_for_room(server, tmp_path, monkeypatch, caplog):
    options = HubOptions(disk_gb=1.5 * run_bytes() / 1e9)
    fetch_run(RUN, tmp_path / "a", options)
    looks = []

    def look(seconds):
        looks.append((tmp_path / "b").exists())
        if len(looks) == 3:
            shutil.rmtree(tmp_path / "a")  # scored

    monkeypatch.setattr(time, "sleep", look)
    with caplog.at_level(logging.INFO):
        fetch_run(RUN, tmp_path / "b", options)
    assert looks == [False] * 3
    assert contents(tmp_path / "b") == expected_run() | reserved_files(tmp_path / "b")
    said = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert len(said) == 1 and f"hub.disk_gb; taken: {tmp_path / 'a'} 0.00 GB, which waits to be scored" in said[0]


def test_it_says_again_that_it_waits(tmp_path, clock, caplog):
    left_behind(tmp_path / "a", 9)
    clock.at[190] = lambda: shutil.rmtree(tmp_path / "a")
    with caplog.at_level(logging.INFO), reserve(tmp_path / "b", 9, 10e-9):
        assert caplog.text.count("waiting") == 4  # at 0, 60, 120 and 180 s


def test_a_failed_run_does_not_wait_for_itself(server, tmp_path):
    options = HubOptions(disk_gb=run_bytes() / 1e9, retries=0)
    server.fail(FILE, Status(500))
    with pytest.raises(InputError):
        fetch_run(RUN, tmp_path / "a", options)
    assert (tmp_path / ".a.partial" / "step5" / "config.json").is_file()
    fetch_run(RUN, tmp_path / "a", options)
    fetch_run(RUN, tmp_path / "a", options)  # nor for what it makes anew


def test_a_failed_download_takes_what_lies_there(server, tmp_path, clock):
    """Not what it had planned: nobody will download that, perhaps never."""
    options = HubOptions(disk_gb=1.6 * run_bytes() / 1e9, retries=0)  # half of one run and another fit, two do not
    server.fail(f"{commit_of(REPO, REVISIONS['main'])}/model.safetensors", NO_FILE)
    with pytest.raises(InputError, match="404"):
        fetch_run(RUN, tmp_path / "a", options)
    fetch_run(RUN, tmp_path / "b", options)
    assert clock.now == 0
    with pytest.raises(InputError, match="no room in hub.disk_gb"):
        fetch_run(RUN, tmp_path / "c", options)
    shutil.rmtree(tmp_path / "b")
    fetch_run(RUN, tmp_path / "a", options)


HOLDS = """
import sys, time
from pathlib import Path
from proxycast import hub
partial, folder = Path(sys.argv[1]), Path(sys.argv[2])
with hub._reserved(partial, folder, 9, 10e-9, hub.Patience()):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has reserved 9 of 10 bytes for run a."""
    command = [sys.executable, "-c", HOLDS, tmp_path / ".a.partial", tmp_path / "a"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"holds\n"
        yield process
        process.kill()


def test_a_living_download_is_waited_for_and_a_killed_one_is_not(tmp_path, clock, holder, caplog):
    def kill():
        holder.send_signal(signal.SIGKILL)
        holder.wait()

    clock.at[36_000] = kill
    with caplog.at_level(logging.INFO), reserve(tmp_path / "b", 9, 10e-9):
        assert 36_000 <= clock.now < 36_000 + 2 * hub.POLL_SECONDS
    assert f"{tmp_path / '.a.partial'} 0.00 GB, which is being downloaded" in caplog.text
    with reserve(tmp_path / "c", 10, 10e-9):
        pass


@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX])
@pytest.mark.parametrize("own", [False, True])
def test_what_any_reader_may_lock_is_not_waited_for(tmp_path, clock, how, own):
    """A reservation in results of somebody else, of the run itself or of one beside it, that others may open."""
    planned = tmp_path / f".{'b' if own else 'a'}.partial/{hub.PLANNED_BYTES}"
    planned.parent.mkdir()
    planned.write_text("9")
    planned.chmod(0o644)
    with planned.open() as file:
        fcntl.flock(file, how)
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for ever"))
        signal.alarm(20)
        try:
            with reserve(tmp_path / "b", 9, 10e-9):
                assert clock.now == 0 and (tmp_path / ".b.partial" / hub.PLANNED_BYTES).stat().st_mode & 0o777 == 0o600
        finally:
            signal.alarm(0)


def test_what_is_no_file_reserves_nothing(tmp_path, clock):
    for run, make in {"a": os.mkdir, "b": os.mkdir, "c": os.mkfifo}.items():
        (tmp_path / f".{run}.partial").mkdir()
        make(tmp_path / f".{run}.partial" / hub.PLANNED_BYTES)
    for run in ("b", "c"):
        with reserve(tmp_path / run, 9, 10e-9):
            assert clock.now == 0


def test_a_run_that_another_process_downloads_is_waited_for(tmp_path, clock, holder):
    clock.at[100] = lambda: holder.communicate(b"")
    with reserve(tmp_path / "a", 1, 10e-9):  # it would fit
        assert 100 <= clock.now < 100 + 2 * hub.POLL_SECONDS


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("a", "waits to be scored"),  # its scoring failed for good, or the study has it no more
        (".a.partial", "is left of a download that does not run"),
    ],
)
def test_room_that_never_comes(tmp_path, clock, name, state):
    left = left_behind(tmp_path / name, 9)
    with pytest.raises(InputError) as error, reserve(tmp_path / "b", 9, 10e-9):
        pass
    assert str(error.value) == (
        f"{tmp_path / 'b'}: its 0.00 GB have no room in hub.disk_gb 1e-08, and in 10 minutes nothing ran that could "
        f"make room. Taken: {left} 0.00 GB, which {state}. Mend what failed and run again: the runs of the study are "
        "then finished, scored and removed. Remove the folders of runs that the study has no more, or raise hub.disk_gb"
    )
    assert 600 <= clock.now < 600 + 2 * hub.POLL_SECONDS
    assert not (tmp_path / ".b.partial").exists()


def test_patience_begins_anew_with_every_change(tmp_path, clock):
    for name in "acd":
        left_behind(tmp_path / name, 9)
    clock.at[500] = lambda: shutil.rmtree(tmp_path / "c")
    clock.at[1000] = lambda: shutil.rmtree(tmp_path / "d")
    with pytest.raises(InputError, match="Taken: [^;]*/a 0.00 GB, which waits"), reserve(tmp_path / "b", 9, 10e-9):
        pass
    assert 1600 <= clock.now < 1600 + 2 * hub.POLL_SECONDS


def test_patience_lasts_while_others_run(tmp_path, clock):
    left_behind(tmp_path / "a", 9)
    patience = hub.Patience(600, lambda: clock.now < 5000)
    with pytest.raises(InputError, match="no room"), reserve(tmp_path / "b", 9, 10e-9, patience):
        pass
    assert 5000 + 600 - 2 * hub.SAY_SECONDS <= clock.now < 5000 + 600 + 2 * hub.POLL_SECONDS


def test_what_the_hub_cache_holds_takes_no_room(server, tmp_path, clock):
    """It stays when the run is removed. What is linked within the run counts once."""
    small = sum(map(len, NEEDED.values()))
    make_cache(tmp_path / "cache", REPO, {"main": REVISIONS["main"]})
    options = HubOptions(disk_gb=2 * (40_000 + small) / 1e9)  # the weights of each second checkpoint are in the cache
    fetch_run(RUN, tmp_path / "runs" / "a", options)
    assert hub._bytes_of_its_own(tmp_path / "runs" / "a") == 40_000 + small
    fetch_run(RUN, tmp_path / "runs" / "b", options)
    assert clock.now == 0


def test_a_run_that_is_removed_while_others_look(tmp_path, monkeypatch):
    left_behind(tmp_path / "a", 9)
    lstat = os.lstat

    def removed(path, **kwargs):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        return lstat(path, **kwargs)

    monkeypatch.setattr(os, "lstat", removed)
    with reserve(tmp_path / "b", 9, 9e-9):
        assert (tmp_path / ".b.partial" / ".planned_bytes").read_text() == "9\n"


@pytest.mark.filterwarnings("ignore:flock not supported")  # of huggingface_hub's own locks
def test_a_file_system_without_locks(server, tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    fetch_run(RUN, tmp_path / "a", OPTIONS)
    with pytest.raises(InputError, match="hub.disk_gb needs file locks, which this file system lacks"):
        fetch_run(RUN, tmp_path / "b", HubOptions(disk_gb=1))


def test_runs_at_the_same_time_never_take_more(tmp_path, monkeypatch):
    monkeypatch.undo()  # real sleep
    monkeypatch.setattr(hub, "POLL_SECONDS", 0.002)
    read = hub._taken_by_others

    def slowly(partial, folder):
        found = read(partial, folder)
        time.sleep(0.005)  # time enough for another one to come between
        return found

    monkeypatch.setattr(hub, "_taken_by_others", slowly)
    at_a_time, most, lock = [0], [0], threading.Lock()

    def job(i):
        with reserve(tmp_path / str(i), 4, 10e-9):
            with lock:
                at_a_time[0] += 1
                most[0] = max(most[0], at_a_time[0])
            time.sleep(0.3)  # so long that another one has looked
            with lock:
                at_a_time[0] -= 1
        shutil.rmtree(tmp_path / f".{i}.partial")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, range(8)))
    assert most == [2]


def test_options_are_checked():
    assert HubOptions() == HubOptions(concurrent_downloads=4, retries=5, disk_gb=None, keep=False)
    for wrong in ({"concurrent_downloads": 0}, {"retries": -1}, {"disk_gb": 0}):
        with pytest.raises(ValueError):
            HubOptions(**wrong)


def test_planning_stays_light():
    command = "import sys, proxycast.hub; print({'huggingface_hub', 'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "set()\n"


def test_the_stub_counts_what_it_is_told(server):
    """A fault is met as often as asked, no more: else tests of faults would say nothing."""
    server.fail("x", Status(500), times=2)
    assert [server.fault_for("GET", "/x", Status) for _ in range(3)] == [Status(500), Status(500), None]


# A mirror or a cache of bad faith

SAME = b"echo pwned\n"


def victim(tmp_path):
    path = tmp_path / "home" / ".bashrc"
    path.parent.mkdir()
    path.write_text("# mine\n")
    return path


def is_untouched(path):
    return path.read_text() == "# mine\n" and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
@pytest.mark.parametrize(
    "name",
    [
        "{up}", "data/{up}", "{absolute}", "/{absolute}", "data/./b.txt", "./b.txt", "data//b.txt", "data/", "", ".",
        "..", "data\\..\\b.txt", "..\\b.txt", "C:\\b.txt", "b\n.txt", "b\0.txt", "b\x1b[2J.txt", "b\x7f.txt",
        "b\x85.txt",
        "b\u202etxt.exe", "b\u2028.txt", "data/a.txt/b.txt", "a.parquet/x/y", ".download/b.txt", "x" * 256,
        "y/" * 600 + "z",
    ],
)  # fmt: skip
def test_a_name_that_is_no_name_is_refused_before_anything_is_asked_for(tmp_path, monkeypatch, repo_type, name):
    """`huggingface_hub` looks at names that it is asked for; those of files that are at hand already it is not."""
    mine = victim(tmp_path)
    name = name.format(absolute=mine, up="../" * 20 + str(mine).lstrip("/"))
    files = {"data/a.txt": SAME, "a.parquet": SAME, name: SAME}
    with HubStub(**{f"{repo_type}s": {"org/data": {"main": files}}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        with pytest.raises(InputError, match=r"org/data.*127\.0\.0\.1.*(relative to the repository|folder of files)"):
            download(Source("org/data", repo_type=repo_type), lambda names: names, tmp_path / "project/data", OPTIONS)
        assert sum(server.requests.values()) == 1
    assert is_untouched(mine) and not (tmp_path / "project").exists()


@pytest.mark.parametrize(
    "name", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.txt", "\U0001f469\u200d\U0001f4bb.md", "a b (1).json"]
)
def test_names_of_all_languages_are_names(name):
    assert is_inner_name(name) and not is_inner_name(f"../{name}")


def test_a_disk_without_modes_has_locks(tmp_path, monkeypatch):
    """Only another user's lock is refused."""
    (tmp_path / ".lock").touch(0o755)
    (tmp_path / ".lock").chmod(0o755)

    def refused(*arguments):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refused)
    with hub._locked(tmp_path):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(InputError, match=r"\.lock: is private to another user"), hub._locked(tmp_path):
        pass


def listing(server, monkeypatch, change):
    """Let the stub's answer about a repository be `change`d."""
    handler = server._server.RequestHandlerClass
    real = handler._json

    def changed(self, value, *args):
        if isinstance(value, dict) and "siblings" in value:
            change(value)
        return real(self, value, *args)

    monkeypatch.setattr(handler, "_json", changed)


def commits(sha):
    return lambda value: value.update(sha=sha)


def files_get(**keys):
    return lambda value: value["siblings"][0].update(**keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((commits(sha), "commit") for sha in ("../x", "/nonexistent", "main", "", "0" * 41, "0" * 39 + "G")),
        *((commits(sha), "commit") for sha in (None, 7, ["0" * 40], "0" * 40 + "\n")),
        *((files_get(size=size), "bytes; no file has") for size in (-1, 10**15, 10**4000, 1.5, "12", True)),
        *((files_get(lfs=None, blobId=digest), "hash") for digest in ("../x", "a" * 41, "A" * 40, 7)),
        (lambda value: value["siblings"].append(value["siblings"][0]), "2 times"),
        (files_get(rfilename=7), "relative to the repository"),
        (lambda value: value.update(siblings=7), "no use of"),
        (lambda value: value.update(siblings=[7]), "no use of"),
        (files_get(lfs={"size": 1}), "no use of"),
    ],
)  # fmt: skip
def test_a_listing_that_cannot_be(server, tmp_path, monkeypatch, waits, change, message):
    listing(server, monkeypatch, change)
    with pytest.raises(InputError, match=f"{REPO}.*{message}") as refused:
        fetch_run(RUN, tmp_path / "a", OPTIONS)
    assert len(str(refused.value)) < 700 and waits == []
    assert not any(key[1].startswith(f"/{REPO}/resolve") for key in server.requests)


def test_a_file_that_does_not_end_is_not_taken(server, tmp_path, monkeypatch):
    """The listing promises less than the server sends."""
    listing(server, monkeypatch, lambda value: [file.update(size=3, lfs=None) for file in value["siblings"]])
    with pytest.raises(InputError, match=r"more bytes than the 3|found \d+ bytes"):
        fetch_run(RUN, tmp_path / "a", HubOptions(retries=0))


def link(path, to):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


@pytest.mark.parametrize(
    "place", ["", "/step5", "/step9", "/step5/.download", "/step5/tokenizer.json", "/.planned_bytes"]
)
@pytest.mark.parametrize("disk_gb", [None, 1])
def test_links_that_lie_where_a_run_is_downloaded_to_are_not_followed(server, tmp_path, place, disk_gb):
    mine = victim(tmp_path)
    at_a_file = place.endswith((".json", "bytes"))
    link(tmp_path / f"results/.a.partial{place}", mine if at_a_file else mine.parent)
    link(tmp_path / "results/.lock", mine)
    link(tmp_path / "results/a", mine.parent)
    fetch_run(RUN, tmp_path / "results/a", HubOptions(retries=0, disk_gb=disk_gb))
    found = contents(tmp_path / "results/a")
    assert without([".planned_bytes"], found) == expected_run()
    assert is_untouched(mine)


def test_a_folder_of_a_data_set_that_leads_out_is_refused(tmp_path, monkeypatch):
    mine = victim(tmp_path)
    link(tmp_path / "data/easy", mine.parent)
    with HubStub(datasets={"org/data": {"main": {"easy/.bashrc": SAME}}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        with pytest.raises(InputError, match=r"data/easy.*leads out of .*data.*remove the link"):
            download(Source("org/data", repo_type="dataset"), lambda names: names, tmp_path / "data", OPTIONS)
    assert is_untouched(mine)


def test_what_lay_among_downloads_is_no_part_of_them(tmp_path, monkeypatch):
    mine, folder = victim(tmp_path), tmp_path / "data"
    (folder / "easy/rows.jsonl").mkdir(parents=True)
    (folder / "easy/more.jsonl").write_text("of somebody else")
    (folder / "hard/deep").mkdir(parents=True)
    (folder / "hard/deep/more.jsonl").write_text("of somebody else")
    link(folder / "hard/link.jsonl", mine)
    link(folder / "home", mine.parent)
    with HubStub(datasets={"org/data": {"main": {"easy/rows.jsonl": SAME}}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        record = download(Source("org/data", repo_type="dataset"), lambda names: names, folder, OPTIONS)
    hub.remove_all_but(folder, record["files"])
    assert contents(folder) == {"easy/rows.jsonl": SAME} and not (folder / "home").is_symlink()
    assert is_untouched(mine)


@pytest.mark.parametrize("how", ["file", "blob", "blobs", "snapshot", "folder", "hash"])
def test_a_cache_whose_links_lead_out_of_it(tmp_path, offline, how):
    mine = tmp_path / "home" / "id_rsa"
    mine.parent.mkdir()
    mine.write_text("# mine\n")
    snapshot = make_cache(tmp_path / "cache", REPO, {"main": REVISIONS["main"]})["main"]
    config, blobs = snapshot / "config.json", snapshot.parents[1] / "blobs"
    match how:
        case "file":
            config.unlink()
            config.symlink_to(mine)
        case "blob":
            blob = config.resolve()
            blob.unlink()
            blob.symlink_to(mine)
        case "blobs":
            config.unlink()
            shutil.move(blobs, tmp_path / "blobs")
            blobs.symlink_to(mine.parent)
            config.symlink_to("../../blobs/id_rsa")
        case "snapshot":
            shutil.rmtree(snapshot)
            snapshot.symlink_to(mine.parent)
            mine.rename(mine.with_name("config.json"))
            mine = mine.with_name("config.json")
        case "folder":
            (snapshot / "sub").symlink_to(mine.parent)
        case "hash":
            other = tmp_path / "home" / ("a" * 40)
            other.write_text("# mine\n")
            config.unlink()
            config.symlink_to(other)
    if how == "folder":  # nothing is looked for where it leads
        fetch_run([("step9", REPO, "main")], tmp_path / "a", OPTIONS)
    else:
        with pytest.raises(InputError, match="in the hub cache"):
            fetch_run([("step9", REPO, "main")], tmp_path / "a", OPTIONS)
    assert mine.read_text() == "# mine\n"
    assert not any(b"# mine" in content for content in contents(tmp_path / "a").values())


def test_a_cached_name_with_control_characters(tmp_path, offline):
    make_cache(tmp_path / "cache", REPO, {"main": {**REVISIONS["main"], "\x1b[2J.json": b"{}"}})
    with pytest.raises(InputError, match=r"hub cache .*cache says that it has a file '\\x1b\[2J.json'"):
        fetch_run([("step9", REPO, "main")], tmp_path / "a", OPTIONS)


@pytest.mark.parametrize("commit", ["../x", "/nonexistent", "main", "x" * 10**6])
def test_a_cached_branch_that_is_no_commit(tmp_path, offline, commit):
    snapshot = make_cache(tmp_path / "cache", REPO, {"main": REVISIONS["main"]})["main"]
    (snapshot.parents[1] / "refs/main").write_text(commit)
    with pytest.raises(InputError, match="not in the hub cache"):
        resolve(Source(REPO), OPTIONS)


@pytest.mark.parametrize(
    "headers",
    [
        *({"Retry-After": text} for text in ("999999999", "9" * 5000, "\xb2", "\xd9\xa3", "-1")),
        *({"RateLimit": f'"api";r=0;t={t}', "RateLimit-Policy": '"api";q=5;w=9'} for t in ("999999999", "9" * 5000)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [API, FILE])
def test_no_server_makes_anybody_wait_for_long(server, tmp_path, waits, path, headers):
    server.fail(path, Status(429, headers), times=99)
    with pytest.raises(InputError, match=REPO):
        fetch_run(RUN, tmp_path / "a", HubOptions(retries=1))
    assert max(waits, default=0) <= 601 and sum(waits) < 20_000


def test_a_server_may_ask_for_minutes(server, waits):
    server.fail(API, Status(429, {"Retry-After": "300"}))
    resolve(Source(REPO), OPTIONS)
    assert waits == [300]


def test_a_lock_is_its_users_alone(server, tmp_path, monkeypatch):
    (tmp_path / ".lock").touch(0o644)
    fetch_run(RUN, tmp_path / "a", HubOptions(disk_gb=1))
    assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(hub, "LOCK_SECONDS", 0.1)
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"\.lock: locked by another process"):
            fetch_run(RUN, tmp_path / "b", HubOptions(disk_gb=1))
