"""Downloads against a hub on this machine, through the real `huggingface_hub`: bytes, faults, caches, disk, secrets."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import hub_repository
import huggingface_hub
import pytest
from hub_repository import (
    FILE,
    FIRST,
    LAST,
    NEEDED,
    OPTIONS,
    REPO,
    REVISIONS,
    RUN,
    TOKENIZER,
    contents,
    expected_run,
    random_bytes,
    without,
)
from hub_stub import NO_FILE, Fault, HubStub, Status, commit_of, digest_of, make_cache
from huggingface_hub import constants
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter
from huggingface_hub.utils.sha import git_hash
from proxycast.config.study import HubOptions
from proxycast.files import Files
from proxycast.options import InputError
from proxycast.weights.hub import _bar_within, download
from proxycast.weights.hub_requests import resolve
from proxycast.weights.hub_runs import fetch_run
from proxycast.weights.hub_snapshots import HubSource, needed_model_files
from tqdm import tqdm

offline, server, waits = hub_repository.offline, hub_repository.server, hub_repository.waits


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
    bar = _bar_within(progress)
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


def test_a_cut_file_is_resumed_where_it_was_cut(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.fail(FILE, Fault.CUT)
    download(HubSource(REPO), needed_model_files, tmp_path, OPTIONS)
    assert server.ranges == ["bytes=20000-"]
    assert (tmp_path / "model.safetensors").read_bytes() == LAST


def test_a_file_that_is_always_wrong(server, tmp_path):
    server.fail(FILE, Fault.WRONG, times=99)
    with pytest.raises(InputError) as error:
        download(HubSource(REPO), needed_model_files, tmp_path, OPTIONS)
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
    call = f"fetch_run({RUN!r}, Path({str(tmp_path / 'a')!r}), HubOptions())"
    command = [
        sys.executable,
        "-c",
        f"from pathlib import Path; from proxycast.weights.hub_runs import HubOptions, fetch_run; {call}",
    ]
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
    source = HubSource("org/data", "refs/convert/parquet", "dataset")
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
    record = download(HubSource("org/data", "refs/convert/parquet", "dataset"), lambda n: n, tmp_path / "d", OPTIONS)
    assert contents(tmp_path / "d") == files
    assert record["commit"] == commit_of("org/data", files)


def test_offline_in_a_process_of_its_own(tmp_path):
    """HF_HUB_OFFLINE and HF_HUB_CACHE as a job has them."""
    make_cache(tmp_path / "hubs", REPO, REVISIONS)
    call = f"fetch_run({RUN!r}, Path({str(tmp_path / 'a')!r}), HubOptions())"
    command = [
        sys.executable,
        "-c",
        f"from pathlib import Path; from proxycast.weights.hub_runs import HubOptions, fetch_run; {call}",
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hubs")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "a/step9/model.safetensors").read_bytes() == LAST


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_offline_and_not_in_the_cache(tmp_path, offline, waits, repo_type):
    make_cache(tmp_path / "cache", REPO, {"main": REVISIONS["main"]}, repo_type)
    with pytest.raises(InputError) as error:
        resolve(HubSource(REPO, "step5-seed-0", repo_type), OPTIONS)
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


def test_options_are_checked():
    assert HubOptions() == HubOptions(concurrent_downloads=4, retries=5, disk_gb=None, keep=False)
    for wrong in ({"concurrent_downloads": 0}, {"retries": -1}, {"disk_gb": 0}):
        with pytest.raises(ValueError):
            HubOptions(**wrong)


def test_planning_stays_light():
    command = (
        "import sys, proxycast.weights.hub_runs; print({'huggingface_hub', 'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "set()\n"


def test_the_stub_counts_what_it_is_told(server):
    """A fault is met as often as asked, no more: else tests of faults would say nothing."""
    server.fail("x", Status(500), times=2)
    assert [server.fault_for("GET", "/x", Status) for _ in range(3)] == [Status(500), Status(500), None]
