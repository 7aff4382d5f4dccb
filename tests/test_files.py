"""Files by glob: against the patterns' meaning, on this machine and in the folder of a downloaded data set."""

import glob
import subprocess
import sys
from os.path import isfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxycast.config.corpora import CheckpointEntry
from proxycast.files import PATTERN_RULES, Files, HubId, Revision, own_files
from proxycast.options import InputError, InputPath
from pydantic import TypeAdapter, ValidationError

NAMES = ["a.txt", "b.txt", "b.jsonl", "deep/c.txt", "deep/deeper/d.txt", "deep/.hidden.txt"]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.txt").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "patterns, names",
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "deep/c.txt", "deep/deeper/d.txt"]),
        (["b.*", "a.txt", "*.txt"], ["a.txt", "b.jsonl", "b.txt"]),  # each once, whatever the order
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("deep/?.txt", ["deep/c.txt"]),
    ],
)
def test_files_of_this_machine(folder, monkeypatch, patterns, names):
    monkeypatch.chdir(folder)
    assert Files(files=patterns).paths() == [Path(name) for name in names]
    absolute = [str(folder / pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
    assert Files(files=absolute).paths() == [folder / name for name in names]


@pytest.mark.parametrize(
    "patterns, names",
    [
        ("*.txt", ["a.txt", "b.txt"]),  # * stays within its folder
        ("**/*.txt", ["a.txt", "b.txt", "deep/c.txt", "deep/deeper/d.txt"]),
        ("deep/**", ["deep/c.txt", "deep/deeper/d.txt"]),
        ("deep/.*", ["deep/.hidden.txt"]),
        ("**.jsonl", ["b.jsonl"]),
        ("[!a].txt", ["b.txt"]),
        (["deep/c.txt", "b.*"], ["b.jsonl", "b.txt", "deep/c.txt"]),
    ],
)
def test_files_of_the_hub(folder, patterns, names):
    files = Files(hub="owner/data", files=patterns)
    assert files.paths(folder) == sorted(folder / name for name in names)
    assert [name for name in sorted(NAMES) if files.matches(name)] == names


# Few letters, so that patterns find something; ".." is left out, as no name of the hub has it.
PART = st.text(alphabet="ab.", min_size=1, max_size=3).filter(lambda part: part not in (".", ".."))
TREE = st.lists(st.lists(PART, min_size=1, max_size=4), max_size=12)
GLOB_PART = st.one_of(
    PART,
    st.sampled_from(
        ["**", "*", ".*", "?", "a*", "*b", "*.a", "**a", "[!a]", "[ab]*", "[a-b]", "[.]a", "[", "[]a]", ".", ""]
    ),
    st.text(alphabet="ab.*?[]!-", min_size=1, max_size=4).filter(lambda part: part != ".."),
)
GLOB = st.lists(GLOB_PART, min_size=1, max_size=5).map("/".join).filter(lambda glob: not glob.startswith("/"))


@settings(max_examples=500, deadline=None)
@given(TREE, GLOB)
@example([["a", "b"], ["a", ".b"], [".a", "b"], ["b"]], "**")
@example([["a"]], "a/**")
@example([["a"]], "a/")
@example([["a", "b", "a"]], "**/**/b/**/**")
@example([[".a", ".b", "a"]], ".a/.?/**/a")
def test_globs_of_the_hub_find_what_globs_of_this_machine_find(tree, pattern):
    """Against glob itself, on the same tree: by names alone, in the downloaded folder, and from this machine."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        for parts in tree:
            path = folder.joinpath(*parts)
            if not path.exists() and not any(parent.is_file() for parent in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        found = {Path(n).as_posix() for n in glob.glob(pattern, root_dir=made, recursive=True) if isfile(f"{made}/{n}")}

        files = Files(hub="owner/data", files=pattern)
        assert {name for name in names if files.matches(name)} == found
        for kind, where in ((files, folder), (Files(files=f"{made}/{pattern}"), None)):
            try:
                paths = kind.paths(where)
            except InputError:
                paths = []
            assert [path.relative_to(folder).as_posix() for path in paths] == sorted(
                found, key=lambda name: folder.joinpath(name)
            )


@pytest.mark.parametrize("pattern", ["/data/*.txt", "../*.txt", "deep/../a.txt"])
def test_globs_of_the_hub_lead_nowhere_else(folder, pattern):
    assert not any(Files(hub="owner/data", files=pattern).matches(name) for name in NAMES)


@pytest.mark.parametrize("hub", [None, "owner/data"])
def test_each_glob_must_find_something(folder, monkeypatch, hub):
    monkeypatch.chdir(folder)
    where = "in data set owner/data" if hub else r"on this machine \(paths start where snakemake is run\)"
    with pytest.raises(InputError, match=rf"files: 'none\*' finds no file {where}"):
        Files(hub=hub, files=["a.txt", "none*"]).paths(folder)


@pytest.mark.parametrize("pattern", ["loops/**/*.txt", "**/*.txt"])
def test_links_in_a_circle_end(tmp_path, monkeypatch, pattern):
    """Two links to the folder that they lie in have as many paths as there are rows of 40 of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loops" / "deep").mkdir(parents=True)
    (tmp_path / "loops" / "deep" / "a.txt").touch()
    for name in "bcd":
        (tmp_path / "loops" / name).symlink_to(tmp_path / "loops")
        (tmp_path / "loops" / f"e{name}").symlink_to("deep")
    code = f"from proxycast.files import Files; print(*Files(files={pattern!r}).paths())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == ["loops/deep/a.txt"]


def test_many_stars_over_a_long_name_end():
    """Names that a mirror invents, and a pattern of the study: a try of all places would never be done."""
    code = (
        "from proxycast.files import Files; f = Files(hub='o/d', files='**/a/' * 30 + 'b'); f.matches('a/' * 200 + 'c')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", ["\x1b[2Ja.txt", "a\nb.txt", "a\u202eb.txt", "a\x7f.txt"])
def test_names_that_a_terminal_obeys_are_refused(tmp_path, name):
    """Snakemake prints the files that a job reads."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / name).touch()
    (tmp_path / "inner" / "ä b.txt").touch()
    with pytest.raises(InputError, match="files: .* has an invisible character") as told:
        Files(files=f"{tmp_path}/**/*.txt").paths()
    assert name not in str(told.value)
    (tmp_path / "inner" / name).unlink()
    assert len(Files(files=f"{tmp_path}/**/*.txt").paths()) == 1
    with pytest.raises(ValidationError, match="invisible"):
        TypeAdapter(InputPath).validate_python(f"data/{name}")
    with pytest.raises(ValidationError, match="invisible"):
        CheckpointEntry(folder=f"data/{name}", size="a", step=1, tokens=1)


def test_a_folder_is_no_file(folder):
    with pytest.raises(InputError, match="finds no file"):
        Files(files=str(folder / "folder.txt")).paths()


@pytest.mark.parametrize("values", [{"files": []}, {"files": "a", "hub": "a b"}, {"files": "a", "revision": ".."}])
def test_bad_files(values):
    with pytest.raises(ValidationError):
        Files(**values)


# Names of the hub


def is_valid(kind: type, value: str) -> bool:
    try:
        return TypeAdapter(kind).validate_python(value) == value
    except ValidationError:
        return False


@pytest.mark.parametrize("value", ["gpt2", "allenai/DataDecide-c4-4M", "a/b.c_d-e", "0/1"])
def test_hub_ids(value):
    assert is_valid(HubId, value)


@pytest.mark.parametrize("value", ["", "a/b/c", "/a", "a/", "../b", "a/..", "a b/c", "-a/b", "a/b\n", "a" * 201, "ä/b"])
def test_no_hub_ids(value):
    assert not is_valid(HubId, value)


@pytest.mark.parametrize(
    "value", ["main", "step1250-seed-default", "refs/convert/parquet", "v1.0", "0" * 40, "refs/pr/3", "stage2-x.y"]
)
def test_revisions(value):
    assert is_valid(Revision, value)


@pytest.mark.parametrize("value", ["", "..", "a..b", "../a", "a/../b", "-x", "a b", "/a", "a/", "a.", "x\n", "a//b"])
def test_no_revisions(value):
    assert not is_valid(Revision, value)


@given(st.text(alphabet="ab/.-_ \n~^:\\é", max_size=9), st.sampled_from([HubId, Revision]))
def test_what_is_allowed_is_a_path_that_leads_down(text, kind):
    """It becomes part of folders, and of an argument: no way up, no root, no option."""
    if is_valid(kind, text):
        assert not {"", ".", ".."} & set(text.split("/")) and text[0] not in "-." and not set(text) & set(" \n~^:\\é")


def test_every_rule_has_words():
    assert all("letters, digits" in words for words in PATTERN_RULES.values())
    assert len(PATTERN_RULES) == 2


def test_all_files_of_a_folder_count_whatever_their_names(tmp_path):
    for name in ("a.yaml", "_common", "sub/utils.py", "sub/__pycache__/utils.cpython-311.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert own_files(tmp_path) == sorted(tmp_path / name for name in ("a.yaml", "_common", "sub/utils.py"))
    assert own_files(None) == []
