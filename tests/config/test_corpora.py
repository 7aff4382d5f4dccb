"""Entries that stand for many checkpoints: every expansion against brute force, hostile names, DataDecide's lists."""

import itertools
from pathlib import Path

import polars as pl
import pytest
from conftest import PUBLISHED
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.corpora import CheckpointEntry, CheckpointSpec, Corpus
from proxycast.config.ladder import Ladder
from proxycast.study.yaml_files import read_yaml
from pydantic import ValidationError
from small_ladder import small_ladder

CONFIG = Path(__file__).parents[2] / "config"

LADDER = small_ladder(
    {
        "4M": {"steps": 10},
        "6M": {"steps": 12, "stopped": {1: 7}},
        "1B": {"steps": 9, "checkpoint_every": 5, "seeds": {0: "default", 3: "large"}},
    }
)
# By hand, from the values above: (size, seed) -> its name and its steps.
RUNS = {
    ("4M", 0): ("default", [0, 4, 8, 10]),
    ("4M", 1): ("second", [0, 4, 8, 10]),
    ("6M", 0): ("default", [0, 4, 8, 12]),
    ("6M", 1): ("second", [0, 4, 7]),
    ("1B", 0): ("default", [0, 5, 9]),
    ("1B", 3): ("large", [0, 5, 9]),
}
SIZES = list(LADDER.sizes)
SHOWN = {"hub": "me/{size}", "revision": "step{step}-{seed_name}-{seed}"}


def expand(entry: dict, ladder: Ladder | None = LADDER, seeds: list[int] | None = None) -> list[CheckpointSpec]:
    return list(CheckpointEntry(**entry).expand(ladder, list(ladder.sizes) if ladder else [], seeds))


def shown(size: str, seed: int, step: int, name: str) -> CheckpointSpec:
    """What SHOWN is with all placeholders filled in."""
    return CheckpointSpec(None, f"me/{size}", f"step{step}-{name}-{seed}", size, seed, step)


# From the ladder


def test_everything_of_the_ladder():
    expected = [shown(size, seed, step, name) for (size, seed), (name, steps) in RUNS.items() for step in steps]
    assert expand(SHOWN) == expected and len(expected) == 21


@pytest.mark.parametrize("size", [None, "4M", ["6M", "1B"], ["1B", "4M", "6M"]])
@pytest.mark.parametrize("seed", [None, 0, 3, [1, 0]])
@pytest.mark.parametrize("step", [None, 4, [5, 0]])
@pytest.mark.parametrize("seeds", [None, [0], [1, 3]])
def test_what_the_entry_names_goes_before_the_ladder(size, seed, step, seeds):
    """Against a filter over all that there could be. What an entry names is taken even if the ladder has it not."""
    as_list = {
        key: [v] if isinstance(v, str | int) else v for key, v in (("size", size), ("seed", seed), ("step", step))
    }
    entry = SHOWN | {key: value for key, value in (("size", size), ("seed", seed), ("step", step)) if value is not None}
    expected = set()
    for a, b, c in itertools.product(SIZES, range(5), range(20)):
        name, by_rule = RUNS.get((a, b), (str(b), RUNS[a, 0][1]))  # another seed is a run as the first
        in_size = as_list["size"] is None or a in as_list["size"]
        in_seed = b in as_list["seed"] if as_list["seed"] else (a, b) in RUNS and (seeds is None or b in seeds)
        in_step = c in as_list["step"] if as_list["step"] else c in by_rule
        if in_size and in_seed and in_step:
            expected.add(shown(a, b, c, name))
    found = expand(entry, seeds=seeds)
    assert set(found) == expected and len(found) == len(expected)


def test_sizes_that_the_ladder_has_not():
    entry = SHOWN | {"size": ["own", "4M"], "step": [1, 2]}
    # Without a name in the ladder a seed is called by its number; without seeds there it is 0.
    expected = [shown("own", 0, 1, "0"), shown("own", 0, 2, "0")]
    expected += [shown("4M", seed, step, name) for seed, name in ((0, "default"), (1, "second")) for step in (1, 2)]
    assert expand(entry) == expected


def test_without_a_ladder():
    found = expand(SHOWN | {"size": ["a", "b"], "seed": [1, 2], "step": 3}, ladder=None)
    assert found == [shown(size, seed, 3, str(seed)) for size in "ab" for seed in (1, 2)]
    assert expand({"hub": "me/x", "size": "a", "step": 3}, ladder=None) == [
        CheckpointSpec(None, "me/x", "main", "a", 0, 3)
    ]


def test_runs_that_do_not_follow_the_rule():
    exceptions = [
        {"size": "4M", "seed": 1, "last": 9, "also": [3, 8], "without": [4]},
        {"size": "6M", "seed": 1, "last": 13},  # goes before `stopped`
        {"size": "1B", "seed": 3, "without": [0, 9]},
        {"size": "1B", "seed": 1, "also": [77]},  # of no run
    ]
    found = expand(SHOWN | {"exceptions": exceptions})
    own = {("4M", 1): [0, 3, 8, 9], ("6M", 1): [0, 4, 8, 12, 13], ("1B", 3): [5]}
    expected = [shown(*run, s, name) for run, (name, steps) in RUNS.items() for s in own.get(run, steps)]
    assert found == expected
    # Steps that the entry names are those that there are.
    assert [spec.step for spec in expand(SHOWN | {"exceptions": exceptions, "size": "4M", "step": 4})] == [4, 4]


def test_folders_without_open_placeholders_need_not_be_there():
    """They are filled in as revisions are; whoever reads them says what is missing."""
    found = expand({"folder": "none/{size}/{seed}-{step}", "size": "4M", "seed": [0, 1], "step": [4, 8]})
    assert [spec.folder for spec in found] == [Path(f"none/4M/{a}-{b}") for a in (0, 1) for b in (4, 8)]
    assert {(spec.hub, spec.revision) for spec in found} == {(None, "")}


@pytest.mark.parametrize(
    "entry, ladder, words",
    [
        ({"hub": "me/{size}", "step": 1}, None, "^size: missing; only a study with a ladder knows which sizes"),
        ({"hub": "me/x", "size": "4M"}, None, "^step: missing; only a ladder knows the steps.*no size '4M'$"),
        ({"hub": "me/x", "size": "own"}, LADDER, "^step: missing; only a ladder knows .*no size 'own'$"),
        ({"folder": "x", "step": 1}, None, "^size: missing; only a study with a ladder"),
        ({"folder": "x/{size}"}, None, "^step: missing; give it, or put {step} into the folder"),
        ({"folder": "x/{step}"}, None, "^size: missing; give it, or put {size} into the folder"),
        ({"folder": "x/{step}"}, LADDER, "^size: missing; give it, or put {size} into the folder"),
    ],
)
def test_what_is_missing_is_named(entry, ladder, words):
    with pytest.raises(ValueError, match=words):
        expand(entry, ladder)


# On the disk


def make(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)


def found_in(root: Path, entry: dict, ladder: Ladder | None = None, seeds: list[int] | None = None) -> set[tuple]:
    specs = expand({**entry, "folder": f"{root}/{entry['folder']}"}, ladder, seeds)
    assert len(set(specs)) == len(specs)
    assert specs == sorted(specs, key=lambda spec: (spec.size, spec.seed, spec.step))
    return {(spec.folder.relative_to(root).as_posix(), spec.size, spec.seed, spec.step) for spec in specs}


def test_folders_that_are_there(tmp_path):
    make(tmp_path, ["4M/s0/5", "4M/s0/10", "4M/s1/5", "6M-x/s0/5", "4M/s0/last", "4M/sx/5", "4M/5", ".git/s0/5"])
    (tmp_path / "4M/s0/99").write_text("no folder")
    entry = {"folder": "{size}/s{seed}/{step}"}
    everything = {
        ("4M/s0/5", "4M", 0, 5),
        ("4M/s0/10", "4M", 0, 10),
        ("4M/s1/5", "4M", 1, 5),
        ("6M-x/s0/5", "6M-x", 0, 5),
    }
    assert found_in(tmp_path, entry) == everything
    assert found_in(tmp_path, entry | {"step": 5}) == {f for f in everything if f[3] == 5}
    assert found_in(tmp_path, entry | {"size": ["4M"], "step": [10]}) == {("4M/s0/10", "4M", 0, 10)}
    for name, value in (("size", "1B"), ("seed", 2), ("step", 30)):
        named = [spec[("", "size", "seed", "step").index(name)] for spec in everything]
        with pytest.raises(ValueError, match=rf"^{name}: {value} has no folder that fits "):
            found_in(tmp_path, entry | {name: [*sorted(set(named)), value]})
    assert found_in(tmp_path, entry | {"seed": [1]}) == {("4M/s1/5", "4M", 1, 5)}
    # What is found is what the study looks at.
    assert found_in(tmp_path, entry, LADDER) == {f for f in everything if f[1] == "4M"}
    assert found_in(tmp_path, entry, LADDER, seeds=[1]) == {("4M/s1/5", "4M", 1, 5)}
    # What is named is taken as it is.
    assert found_in(tmp_path, entry | {"size": "6M-x"}, LADDER) == {("6M-x/s0/5", "6M-x", 0, 5)}
    assert found_in(tmp_path, entry | {"seed": 1, "size": "4M"}, LADDER, seeds=[0]) == {("4M/s1/5", "4M", 1, 5)}


def test_values_that_the_folder_does_not_show(tmp_path):
    make(tmp_path, ["run/step5", "run/step10"])
    entry = {"folder": "run/step{step}", "size": "mine"}
    assert found_in(tmp_path, entry) == {("run/step5", "mine", 0, 5), ("run/step10", "mine", 0, 10)}
    assert {f[2] for f in found_in(tmp_path, entry | {"seed": 7})} == {7}


def test_relative_folders_start_where_the_study_runs(tmp_path, monkeypatch):
    make(tmp_path, ["models/4M/5"])
    monkeypatch.chdir(tmp_path)
    for start in ("", "./"):
        (spec,) = expand({"folder": f"{start}models/{{size}}/{{step}}"}, None)
        assert spec == CheckpointSpec(Path("models/4M/5"), None, "", "4M", 0, 5)


def test_a_placeholder_that_stands_twice_is_one_value(tmp_path):
    make(tmp_path, ["4M/4M-5", "4M/6M-5", "6M/6M-7", "6M/6M-5-5"])
    entry = {"folder": "{size}/{size}-{step}"}
    assert found_in(tmp_path, entry) == {("4M/4M-5", "4M", 0, 5), ("6M/6M-7", "6M", 0, 7)}


def test_characters_of_a_glob_are_none(tmp_path):
    make(tmp_path, ["x[12]/4M-5", "x1/6M-5", "x*/8M-5"])
    assert found_in(tmp_path, {"folder": "x[12]/{size}-{step}"}) == {("x[12]/4M-5", "4M", 0, 5)}
    assert found_in(tmp_path, {"folder": "x*/{size}-{step}"}) == {("x*/8M-5", "8M", 0, 5)}


def test_nothing_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"^folder: '.*' finds no folder \(paths start where snakemake is run\)"):
        expand({"folder": f"{tmp_path}/{{size}}/{{step}}"}, None)


@given(
    texts=st.lists(st.text(alphabet="a.[]*?()|+^$\\-! é", min_size=1, max_size=4), min_size=3, max_size=3),
    values=st.sets(
        st.tuples(st.sampled_from(["4M", "a.b", "x-5", "seed1"]), st.integers(0, 12), st.integers(0, 2000)), min_size=1
    ),
    decoys=st.sets(st.text(alphabet="a.[]*?()-45", min_size=1, max_size=5), max_size=3),
)
def test_names_are_taken_as_they_are(tmp_path_factory, texts, values, decoys):
    """Characters that mean something in a glob or a regular expression mean themselves: against string templates."""
    root = tmp_path_factory.mktemp("models")
    first, second, third = (text.replace("-", "_") + "_" for text in texts)
    make(root, [f"x{first}{size}/y{second}{seed}{third}{step}" for size, seed, step in values])
    make(root, [f"x{first}4M/{decoy}" for decoy in decoys - {".", ".."}])
    found = found_in(root, {"folder": f"x{first}{{size}}/y{second}{{seed}}{third}{{step}}"})
    assert found == {(f"x{first}{size}/y{second}{seed}{third}{step}", size, seed, step) for size, seed, step in values}


# Patterns that are refused


@pytest.mark.parametrize(
    "values, words",
    [
        ({"folder": "{siz}"}, "'{siz}' has the unknown placeholder {siz}; known are size, seed, step .type"),
        ({"folder": "{seed_name}"}, "has the unknown placeholder {seed_name}; known are size, seed, step .type"),
        ({"hub": "me/{name}"}, "has the unknown placeholder {name}; known are size, seed, step, seed_name"),
        ({"hub": "me/x", "revision": "{}"}, "has the unknown placeholder {}; known are size, seed, step, seed_name"),
        ({"folder": "a{b"}, "'a{b' has a brace that belongs to no placeholder"),
        ({"folder": "{size!r}"}, "has a brace that belongs to no placeholder"),
        ({"folder": "{size.__class__}"}, "has a brace that belongs to no placeholder"),
        ({"folder": "{{size}}"}, "has a brace that belongs to no placeholder"),
        ({"hub": "{size:>9}/x"}, "has a brace that belongs to no placeholder"),
        ({"hub": "../{size}"}, "a repository of the hub is 'owner/name', .* found '../{size}'"),
        ({"hub": "https://x.org/a"}, "a repository of the hub is"),
        ({"hub": "a/b/{size}"}, "a repository of the hub is"),
        ({"hub": "a/{size}\n"}, "a repository of the hub is"),
        ({"hub": "me/x", "revision": "a/../{step}"}, "a revision is a branch, tag or commit: .* found 'a/../{step}'"),
        ({"hub": "me/x", "revision": "step {step}"}, "a revision is a branch, tag or commit"),
        ({"hub": "me/x", "revision": "-{step}"}, "a revision is a branch, tag or commit"),
        ({}, "a checkpoint lies in a folder or in a hub repository, exactly one of the two"),
        ({"folder": "x", "hub": "me/x"}, "exactly one of the two"),
        ({"hub": "me/x", "convert_from": "olmo"}, "'hf_olmo'"),
        ({"hub": "me/x", "tokens": 5}, "tokens is for an entry of one step; give tokens_per_step for several"),
        ({"hub": "me/x", "tokens": 5, "step": [1, 2]}, "tokens is for an entry of one step"),
        ({"hub": "me/x", "tokens": 5, "step": 1, "tokens_per_step": 5}, "tokens is for an entry of one step"),
        ({"hub": "me/x", "seed": -1}, "greater than or equal to 0"),
        ({"hub": "me/x", "step": [0, -1]}, "greater than or equal to 0"),
        ({"hub": "me/x", "step": []}, "at least 1"),
        ({"hub": "me/x", "size": []}, "at least 1"),
        ({"hub": "me/x", "size": "../x"}, "pattern"),
        ({"hub": "me/x", "exceptions": [{"size": "4M", "seed": 0, "lats": 3}]}, "lats"),
    ],
)
def test_entries_that_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        CheckpointEntry(**values)


@given(
    st.text(alphabet="ab{}./-", max_size=12)
    | st.lists(st.sampled_from(["{size}", "{step}", "{seed}", "{seed_name}", "a", "/", "..", "-", "{x}"])).map("".join)
)
def test_whatever_is_allowed_can_be_filled_in(pattern):
    """No pattern that is let through fails later, or leads out of its place."""
    for key in ("hub", "revision", "folder"):
        values = {"hub": "me/x", key: pattern} if key != "folder" else {"folder": pattern}
        try:
            entry = CheckpointEntry(**values, size="4M", seed=1, step=7)
        except ValidationError:
            continue
        (spec,) = entry.expand(LADDER, SIZES, None)
        names = {"size": "4M", "seed": 1, "step": 7, "seed_name": "second"}
        expected = pattern
        for name, value in names.items():
            expected = expected.replace(f"{{{name}}}", str(value))
        assert (Path(expected) if key == "folder" else expected) == getattr(spec, key)
        assert key == "folder" or ".." not in expected.split("/")


@pytest.mark.parametrize(
    "origins",
    [[], ["recipe", "text"], ["checkpoints", "text"], ["recipe", "checkpoints"], ["recipe", "checkpoints", "text"]],
)
def test_a_corpus_has_one_origin(origins):
    every = {
        "recipe": {"mixture": [{"source": "web", "weight": 1}]},
        "checkpoints": [{"hub": "me/x"}],
        "text": {"mixture": [{"files": "x.jsonl"}]},
    }
    with pytest.raises(ValidationError, match="a corpus has a recipe, checkpoints or text, exactly one of the three"):
        Corpus(name="mine", **{key: every[key] for key in origins})


@pytest.mark.parametrize("key", ["sizes", "seeds"])
def test_what_only_text_has(key):
    with pytest.raises(ValidationError, match="sizes and seeds are for a corpus of text"):
        Corpus(name="mine", checkpoints=[{"hub": "me/x"}], **{key: ["4M"] if key == "sizes" else [1]})


# DataDecide's corpora


@pytest.fixture(scope="module")
def shipped() -> tuple[Ladder, dict[str, Corpus]]:
    """The ladder, and the corpora by the names that others give them."""
    corpora = [Corpus(**read_yaml(path)) for path in sorted((CONFIG / "corpora" / "datadecide").glob("*.yaml"))]
    ladder = Ladder(**read_yaml(CONFIG / "ladders" / "datadecide.yaml"))
    return ladder, {corpus.display_name: corpus for corpus in corpora}


@pytest.fixture(scope="module")
def recipes() -> pl.DataFrame:
    return pl.read_csv(PUBLISHED / "datadecide_recipes.csv")


@pytest.mark.published
def test_corpora_of_datadecide_are_the_published_ones(shipped, recipes):
    _, corpora = shipped
    assert len(corpora) == 25 and {len(corpus.checkpoints) for corpus in corpora.values()} == {1}
    patterns = {name: corpus.checkpoints[0].hub for name, corpus in corpora.items()}
    published = dict(recipes.select("display_name", "hf_repo_pattern").iter_rows())
    assert patterns == {name: pattern.replace("<SIZE>", "{size}") for name, pattern in published.items()}
    # The name here is that of the repositories.
    assert {c.checkpoints[0].hub for c in corpora.values()} == {
        f"allenai/DataDecide-{c.name}-{{size}}" for c in corpora.values()
    }
    assert {c.checkpoints[0].convert_from for c in corpora.values()} == {"hf_olmo"}


@pytest.mark.published
def test_checkpoints_of_datadecide_are_the_published_ones(shipped, recipes):
    """Every revision of every repository: 31,491 listed, of which three runs stand twice, by another name."""
    ladder, corpora = shipped
    listed = pl.read_csv(PUBLISHED / "datadecide_checkpoint_steps.csv")
    patterns = dict(recipes.select("internal_name", "hf_repo_pattern").iter_rows())
    other_names = {f"DCLM-baseline-{n}p": f"dolma17-{100 - n}p-DCLM-baseline-{n}p" for n in (25, 50, 75)}
    published, count = set(), 0
    for row in listed.iter_rows(named=True):
        pattern = patterns[other_names.get(row["recipe"], row["recipe"])]
        steps = list(map(int, row["steps"].split()))
        count += len(steps)
        hub = pattern.replace("<SIZE>", row["size"])
        published |= {(hub, row["size"], step, f"step{step}-seed-{row['seed_name']}") for step in steps}
    assert (count, len(published)) == (31_491, 31_404)
    found = [s for c in corpora.values() for s in c.checkpoints[0].expand(ladder, list(ladder.sizes), None)]
    assert len(found) == len(published)
    assert {(spec.hub, spec.size, spec.step, spec.revision) for spec in found} == published
    assert len({(spec.hub, spec.seed) for spec in found}) == 1_100
