"""What the hub answers: errors in words that hold no secret, and answers that cannot be trusted."""

import logging
import shutil
import traceback

import hub_repository
import huggingface_hub
import pytest
from hub_repository import (
    API,
    FILE,
    HEAD,
    LAST,
    NEEDED,
    OPTIONS,
    REPO,
    REVISIONS,
    RUN,
    SAME,
    contents,
    expected_run,
    is_untouched,
    link,
    victim,
    without,
)
from hub_stub import GATED, Fault, HubStub, Status, commit_of, make_cache
from huggingface_hub import constants
from proxycast.config.study import HubOptions
from proxycast.options import InputError, is_inner_name
from proxycast.weights.hub import download, remove_all_but
from proxycast.weights.hub_requests import resolve
from proxycast.weights.hub_runs import fetch_run
from proxycast.weights.hub_snapshots import HubSource, needed_model_files

offline, server, waits = hub_repository.offline, hub_repository.server, hub_repository.waits


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
    record = download(HubSource(REPO), needed_model_files, tmp_path / "m", OPTIONS)
    assert contents(tmp_path / "m") == {**NEEDED, "model.safetensors": LAST}
    assert record["commit"] == commit_of(REPO, REVISIONS["main"])
    assert server.fault_for("GET", path.replace(".*", "x"), type(fault)) is None  # both were met
    assert max(waits, default=0) >= least_wait


def test_a_file_that_never_comes(server, tmp_path):
    server.fail(HEAD, Status(500), times=99)
    with pytest.raises(InputError, match=f"main, file model.safetensors: HTTP status 500, from {server.endpoint}$"):
        download(HubSource(REPO), needed_model_files, tmp_path, HubOptions(retries=0))


def test_waits_grow_and_differ(server, waits):
    server.fail(API, Status(500), times=9)
    with pytest.raises(InputError, match=f"hub model {REPO}, revision main: HTTP status 500, from {server.endpoint}"):
        resolve(HubSource(REPO), HubOptions(retries=8))
    assert len(waits) == 8
    assert all(0.5 <= seconds / min(60, 2**i) <= 1.5 for i, seconds in enumerate(waits))
    assert len({seconds / min(60, 2**i) for i, seconds in enumerate(waits)}) == 8


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (HubSource("org/modle"), ["org/modle, revision main", "no such repository", "id", "set HF_TOKEN"]),
        (HubSource("org/a--b"), ["org/a--b", "not an id"]),
        (HubSource(REPO, "step5-seed-1"), [REPO, "revision step5-seed-1", "no such branch", "close", "'step5-seed-0'"]),
        (HubSource(REPO, "zzz"), [REPO, "revision zzz", "there are 2", "main"]),
        (HubSource(REPO, "0" * 40), [REPO, "0" * 40, "no such branch, tag or commit"]),
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
        download(HubSource(REPO), needed_model_files, tmp_path, OPTIONS)
    assert waits == []


def test_five_close_revisions_at_most(monkeypatch):
    with HubStub({REPO: {f"step{i}": NEEDED for i in range(20)}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        with pytest.raises(InputError) as error:
            resolve(HubSource(REPO, "step99"), OPTIONS)
        assert str(error.value).count("'step") == 5
        server.fail("/refs", Status(500))
        with pytest.raises(InputError, match="no such branch, tag or commit$"):
            resolve(HubSource(REPO, "step99"), OPTIONS)


def test_no_server(monkeypatch, waits):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")
    with pytest.raises(InputError) as error:
        resolve(HubSource(REPO), OPTIONS)
    expected = [REPO, "http://127.0.0.1:9 ", "refused", "HF_ENDPOINT", "HF_HUB_OFFLINE=1", constants.HF_HUB_CACHE]
    assert all(part in str(error.value) for part in expected), error.value
    assert len(waits) == 2


def test_a_server_that_is_no_hub(server):
    server.fail(API, Status(200, {"Content-Type": "text/html"}, "<p>Log in to this network</p>"), times=9)
    with pytest.raises(InputError, match=f"{REPO}.*no use of {server.endpoint}"):
        resolve(HubSource(REPO), OPTIONS)


def test_a_mirror_that_knows_no_hashes(server):
    server.without_hashes = True
    with pytest.raises(InputError, match=f"{REPO}.*{server.endpoint} gives no size or hash for .*config.json"):
        resolve(HubSource(REPO), OPTIONS)


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
        resolve(HubSource(REPO), OPTIONS)
    assert TOKEN not in "".join(traceback.format_exception(error.value)) + caplog.text


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
            download(
                HubSource("org/data", repo_type=repo_type), lambda names: names, tmp_path / "project/data", OPTIONS
            )
        assert sum(server.requests.values()) == 1
    assert is_untouched(mine) and not (tmp_path / "project").exists()


@pytest.mark.parametrize(
    "name", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.txt", "\U0001f469\u200d\U0001f4bb.md", "a b (1).json"]
)
def test_names_of_all_languages_are_names(name):
    assert is_inner_name(name) and not is_inner_name(f"../{name}")


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
            download(HubSource("org/data", repo_type="dataset"), lambda names: names, tmp_path / "data", OPTIONS)
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
        record = download(HubSource("org/data", repo_type="dataset"), lambda names: names, folder, OPTIONS)
    remove_all_but(folder, record["files"])
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
        resolve(HubSource(REPO), OPTIONS)


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
    resolve(HubSource(REPO), OPTIONS)
    assert waits == [300]
