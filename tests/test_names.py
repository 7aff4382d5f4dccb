"""Hostile names in every place of the configuration: refused with file and key, or harmless on a disk and a shell."""

import copy
import json
import re
import shlex
from glob import escape
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.config.tasks import Rows
from proxycast.options import InputError
from proxycast.solutions.templates import render_solutions
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checkpoints import Checkpoint, scoring_jobs
from proxycast.study.loader import load_plan
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import read_yaml
from proxycast.truth.targets import read_target_table

LONGEST = 255  # bytes of a file's name
HOSTILE = [
    *("../../x", "..", ".", "", "/", "/etc/passwd", "a/b", "a\\b", "-rf", "--help", "~", "~root", " ", "a b", " a"),
    *("a b; rm -rf x", "$(touch x)", "`touch x`", "$HOME", "a|b", "a&b", "a>b", "a*", "a?", "[a]", "a#b", "a'b", 'a"b'),
    *("a\nb", "a\n", "a\tb", "a\rb", "a\0b", "\x1b[2J", "{x}", "{size}", "{", "}", "{{x}}", "%j", "a:b", "a=b", "a,b"),
    *("é", "名前", "a\u202eb", "\ufeffa", "١", "a\u0000", "\ud800", ".hidden", "manifest", "null", "con"),
    *(
        "generic_text",
        "experts",
        "x" * 101,
        "x" * 300,
        "x" * 5000,
        "a..b",
        "a.",
        "a-",
        "a ",
        "0",
        "1e9",
        "@x",
        "a+b",
        "a^b",
        "!x",
    ),
]
NUMBERS = [-1, 2**63, 10**30, 10**100, 1.5, True, "1; x", "../1", None]

SHAPE = {"hidden_size": 32, "layers": 2, "heads": 2, "batch_sequences": 4, "learning_rate": 0.01}
TASKS = {
    f"tasks/lab/{name}.yaml": {"name": name, "solutions": "own.jsonl", "answer_pattern": "(.)"}
    for name in ("sums", "times", "odds")
}
ENTRY = {"hub": "lab/a-{size}", "revision": "step{step}-{seed_name}", "size": ["small"], "seed": [0], "step": [5, 10]}
OF_DATA = {
    "study.yaml": {
        "study": "own",
        "corpora": {"lab": ["alpha", "beta"]},
        "tasks": {"lab": "all"},
        "ladder": {"name": "lab", "sizes": ["small"], "seeds": [0]},
        "generic_text": {"hub": "lab/web", "revision": "main", "files": "*.parquet", "solution": "{{ text }}"},
        "target": {
            "size": "large",
            "metric": "score",
            "other_metrics": ["other"],
            "evaluations": {"hub": "lab/results", "revision": "main", "files": "*.parquet"},
        },
        "highlighted": [{"statistic": "cross_entropy"}],
        "budgets": [{"name": "end", "size": "small", "step": 10}],
    },
    "ladders/lab.yaml": {
        "name": "lab",
        "tokenizer": {"hub": "lab/tokenizer", "revision": "main"},
        "vocabulary": 352,
        "sequence_length": 64,
        "checkpoint_every": 5,
        "seeds": {"0": "default"},
        "sizes": {"small": SHAPE | {"steps": 10}, "large": SHAPE | {"steps": 20}},
    },
    "corpora/lab/alpha.yaml": {
        "name": "alpha",
        "display_name": "Alpha",
        "family": "llama",
        "checkpoints": [ENTRY | {"exceptions": [{"size": "small", "seed": 0}]}, {"hub": "lab/a", "size": "large"}],
    },
    "corpora/lab/beta.yaml": {
        "name": "beta",
        "checkpoints": [
            *({"folder": f"own/b{step}", "size": "small", "step": step, "parameters": 44192} for step in (5, 10)),
            {"hub": "lab/b", "size": "large"},
        ],
    },
    **TASKS,
}
OF_MODELS = {
    "study.yaml": {
        "study": "own",
        "models": {"lab": "all"},
        "tasks": {"lab": "all"},
        "writers": {
            "strong": {"hub": "lab/strong", "revision": "main"},
            "weak": {"checkpoint": "m0-1e-06B-seed0-step0"},
            "own": {"folder": "own/m1"},
        },
        "generic_text": "own.jsonl",
        "target": {"metric": "exact_match"},
        "model_selection": {},
    },
    "models/lab/m0.yaml": {"name": "m0", "family": "f0", "recipe": "sft", "hub": "lab/m0", "revision": "main"}
    | {"parameters": 1000},
    **{
        f"models/lab/m{n}.yaml": {"name": f"m{n}", "family": f"f{n}", "folder": f"own/m{n}", "parameters": 1000}
        for n in range(1, 9)
    },
    **TASKS,
}
SUITE = {
    "study.yaml": {
        "study": "own",
        "corpora": {"lab": "all"},
        "tasks": {"lab": "all"},
        "miniature": {
            "tokenizers": {"coarse": 300},
            "sizes": {
                "small": {"hidden_size": 32, "layers": 1, "intermediate_size": 64, "steps": 10},
                "large": {"hidden_size": 32, "layers": 2, "intermediate_size": 64, "steps": 20},
            },
        },
        "target": {"size": "large"},
        "highlighted": [{"statistic": "cross_entropy"}],
        "budgets": [{"name": "end", "size": "small", "step": 10}],
    },
    "corpora/lab/alpha.yaml": {"name": "alpha", "recipe": {"mixture": [{"source": "web", "weight": 1}]}},
    "corpora/lab/beta.yaml": {
        "name": "beta",
        "text": {"mixture": [{"files": "*.txt", "hub": "lab/text", "revision": "main"}]},
        "sizes": ["small", "large"],
        "seeds": [0],
    },
    "tasks/lab/sums.yaml": {"name": "sums", "family": "products", "answer_pattern": "(.)"},
}
STUDIES = {"data": OF_DATA, "models": OF_MODELS, "suite": SUITE}


NAMED = {"corpora", "models", "tasks", "writers", "sizes", "tokenizers", "seeds"}  # mappings whose keys are names


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The path to every name, seed and step of a document; to a key that is a name itself, with '=' behind it."""
    if isinstance(value, dict):
        found = [(*path, key, "=") for key in value if {*path[-1:]} & NAMED]
        return found + [place for key, inner in value.items() for place in places(inner, (*path, key))]
    if isinstance(value, list):
        return [place for number, inner in enumerate(value) for place in places(inner, (*path, number))]
    is_number = isinstance(value, int) and {"seed", "seeds", "step"} & {*path[-2:]}
    return [path] if isinstance(value, str) or is_number else []


PLACES = [(study, file, *path) for study, files in STUDIES.items() for file in files for path in places(files[file])]


def put(study: str, file: str, path: tuple, value: object, project: Path) -> None:
    """Write the study's files to project/<study>, one of them with another value at one place."""
    files = copy.deepcopy(STUDIES[study])
    *parents, last = path[:-1] if path[-1] == "=" else path
    node = files[file]
    for key in parents:
        node = node[key]
    if path[-1] == "=":
        node[value if isinstance(value, str) else str(value)] = node.pop(last)
    else:
        node[last] = value
    for name, document in files.items():
        target = project / study / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)


def planned(config: Path) -> tuple[Plan, list[Checkpoint]]:
    plan = load_plan(read_yaml(config / "study.yaml"), str(config / "study.yaml"), config)
    return plan, plan_checkpoints(plan)


def require_harmless(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """Names that become part of a path are one plain word each, and what is made lies in the results."""
    words = {plan.study.study, *(corpus.name for corpus in plan.corpora), *plan.solution_names, *plan.study.writers}
    words |= {c.checkpoint for c in checkpoints} | {c.run for c in checkpoints} | {c.size for c in checkpoints}
    words |= {*scoring_jobs(plan, checkpoints), *plan.file_sets()}
    words |= {*(model.family for model in plan.models if model.family)}
    words |= {*(task.family for task in plan.tasks if task.family)}
    words |= {*plan.study.miniature.tokenizers, *plan.study.miniature.sizes} if plan.study.miniature else set()
    for word in words:
        assert shlex.quote(word) == word and "/" not in word and word not in ("", ".", "..") and word[0] not in "-."
        assert len(f".{word}.0123abcd.parquet".encode()) <= LONGEST  # as it is while it is written
    results = Path("results").resolve()
    assert plan.results.resolve().parent == results
    for c in checkpoints:
        if c.folder != c.source or c.revision:
            assert results / plan.study.study in Path(c.folder).resolve().parents
        assert ".." not in c.revision and not c.revision.startswith("-")
        assert c.step < 2**63 and c.seed < 2**63 and c.tokens < 2**63  # columns of a table
    json.dumps([c.row() for c in checkpoints]).encode()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = tmp_path_factory.mktemp("names")
    for name in ("b5", "b10", *(f"m{n}" for n in range(1, 9))):
        (project / "own" / name).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        yield project


def try_value(place: tuple, value: object, project: Path) -> None:
    study, file, *path = place
    put(study, file, tuple(path), value, project)
    try:
        require_harmless(*planned(project / study))
    except InputError as error:
        told = str(error)
        assert re.search(r"\.yaml", told), told
        assert all(line.isprintable() for line in told.split("\n")), told


@pytest.mark.parametrize("study", STUDIES)
def test_the_studies_are_good_as_they_stand(study, project):
    put(study, "study.yaml", ("study",), "own", project)
    require_harmless(*planned(project / study))


@given(st.sampled_from(PLACES), st.sampled_from(HOSTILE + NUMBERS) | st.text(max_size=20) | st.integers())
@settings(max_examples=500)
def test_a_name_is_refused_or_harmless(project, place, value):
    try_value(place, value, project)


@pytest.mark.parametrize(
    "place, value, told",
    [
        (("data", "study.yaml", "study"), "../../x", "study.yaml: study: a name must begin with a letter or digit"),
        (("data", "study.yaml", "corpora", "lab", "="), "\x1b[2J", r"study.yaml: corpora.\x1b[2J: a name must"),
        (("data", "study.yaml", "budgets", 0, "name"), "{x}", "study.yaml: budgets[0].name: '{x}' has a brace"),
        (("data", "study.yaml", "generic_text", "hub"), "-rf/x", "generic_text.hub: a repository of the hub is"),
        (("data", "corpora/lab/alpha.yaml", "name"), "a b; rm -rf", "alpha.yaml: name: a name must begin with"),
        (
            ("data", "corpora/lab/alpha.yaml", "checkpoints", 0, "step", 0),
            10**30,
            "checkpoints[0].step[0]: Input should",
        ),
        (("data", "corpora/lab/beta.yaml", "checkpoints", 0, "folder"), "x" * 300, "beta.yaml: checkpoints[0]: "),
        (("data", "ladders/lab.yaml", "seeds", "0"), "a..b", "checkpoints[0]: a revision is a branch, tag or commit"),
        (("models", "models/lab/m1.yaml", "folder"), "own/{x}", "m1.yaml: folder: 'own/{x}' has a brace"),
        (("models", "models/lab/m1.yaml", "folder"), "x" * 300, "has a name of more than 255 bytes"),
        (("models", "study.yaml", "generic_text"), "own/{x}.jsonl", "study.yaml: generic_text: 'own/{x}.jsonl' has a"),
        (("models", "study.yaml", "writers", "own", "folder"), "{x}", "study.yaml: writers.own.folder: '{x}' has a"),
        (("models", "tasks/lab/sums.yaml", "solutions"), "{x}", "sums.yaml: solutions: '{x}' has a brace"),
    ],
)
def test_the_refusal_names_file_and_key(project, place, value, told):
    study, file, *path = place
    put(study, file, tuple(path), value, project)
    with pytest.raises(InputError) as refused:
        planned(project / study)
    assert told in str(refused.value)


@pytest.mark.parametrize("value", ["a..b", "A.b-c_9", "0", "manifest", "x" * 100])
def test_odd_names_are_accepted(project, value):
    put("data", "corpora/lab/alpha.yaml", ("name",), value, project)
    put_name_into_study(project, value)
    plan, checkpoints = planned(project / "data")
    require_harmless(plan, checkpoints)
    assert value in {checkpoint.corpus for checkpoint in checkpoints}


def put_name_into_study(project: Path, name: str) -> None:
    study = project / "data/study.yaml"
    study.write_text(study.read_text().replace('["alpha", "beta"]', json.dumps([name, "beta"])))


def test_a_model_of_many_parameters_has_a_size(project):
    put("models", "models/lab/m0.yaml", ("parameters",), 1_040_000_000_000, project)
    study = project / "models/study.yaml"
    study.write_text(study.read_text().replace("m0-1e-06B", "m0-1040B"))
    plan, checkpoints = planned(project / "models")
    require_harmless(plan, checkpoints)
    assert "m0-1040B-seed0-step0" in {checkpoint.checkpoint for checkpoint in checkpoints}


ROW = {"checkpoint": "a", "task": "t", "metric": "m", "value": 0.5, "n": 3}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_brackets_in_a_file_name_are_no_pattern(suffix, tmp_path):
    """As a pattern 'truth[1].csv' finds 'truth1.csv', another table."""
    for name, value in (("truth1", 0.25), ("truth[1]", 0.75)):
        table = pl.DataFrame([ROW | {"value": value}])
        table.write_csv(tmp_path / f"{name}.csv") if suffix == "csv" else table.write_parquet(
            tmp_path / f"{name}.parquet"
        )
    assert read_target_table(tmp_path / f"truth[1].{suffix}")["value"].to_list() == [0.75]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_brackets_in_the_name_of_rows_are_no_pattern(suffix, tmp_path):
    for name in ("rows1", "rows[1]"):
        table = pl.DataFrame({"text": [f"the cat of {name}"]})
        write = {"csv": table.write_csv, "parquet": table.write_parquet, "jsonl": table.write_ndjson}[suffix]
        write(tmp_path / f"{name}.{suffix}")
    rows = Rows(files=f"{escape(str(tmp_path))}/rows[[]1].{suffix}", prompt="", solution="{{ text }}")
    assert [s.solution for s in render_solutions(rows.paths(), rows, "rows")] == ["the cat of rows[1]"]
