"""Configuration: the studies that we ship load, and each kind of bad input gets an error that says where and what."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config import Corpus, Study, Task, load_plan, read_yaml
from proxycast.config_reference import KINDS, write_reference
from proxycast.miniature.problems import FAMILIES
from proxycast.miniature.suite import FAMILY_NAMES
from proxycast.options import InputError, Options, SafeName
from proxycast.proxies import STATISTICS, WEIGHTINGS
from pydantic import TypeAdapter, ValidationError

CONFIG = Path(__file__).parents[1] / "config"
STUDIES = sorted(CONFIG.glob("*.yaml"))
UNSAFE = ["../x", "a b", "", ".hidden", "a/b", "-a", "ä", "a\n", "x" * 101]

SIZE = {"hidden_size": 32, "layers": 1, "intermediate_size": 32, "steps": 4}
STUDY = {
    "study": "mine",
    "corpora": {"suite": "all"},
    "tasks": {"suite": ["sums"]},
    "miniature": {"sizes": {"small": {**SIZE, "checkpoints": [2]}, "large": SIZE}},
    "target": {"size": "large"},
    "highlighted": [{"statistic": "cross_entropy"}],
    "budgets": [{"name": "early", "size": "small", "step": 2}],
}
CORPUS = {"name": "web", "recipe": {"mixture": [{"source": "web", "weight": 1}]}}
TASK = {"name": "sums", "family": "products"}


@pytest.fixture
def files(tmp_path):
    """A function that writes mappings to files of a configuration folder, on top of a small one that is right."""

    def write(entries: dict[str, object] | None = None) -> Path:
        right = {"corpora/suite/web.yaml": CORPUS, "corpora/suite/wiki.yaml": {**CORPUS, "name": "wiki"}}
        for name, content in {**right, "tasks/suite/sums.yaml": TASK, **(entries or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return tmp_path

    return write


def study(**changes) -> dict:
    return {**copy.deepcopy(STUDY), **changes}


def refuse(values: dict, folder: Path, *words: str) -> None:
    """Loading must fail with a message that holds every one of `words`."""
    with pytest.raises(InputError) as caught:
        load_plan(values, "study.yaml", folder)
    for word in words:
        assert word in str(caught.value)


# What we ship


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_load(path):
    plan = load_plan(read_yaml(path), str(path), CONFIG)
    assert len(plan.corpora) >= 5
    assert [plan.corpus(name).name for name in plan.corpus_files] == [corpus.name for corpus in plan.corpora]


def test_default_study_has_the_25_corpora_of_datadecide():
    plan = load_plan(read_yaml(CONFIG / "config.yaml"), "config.yaml", CONFIG)
    mirrored = [corpus.mirrors for corpus in plan.corpora]
    assert len(mirrored) == len(set(mirrored)) == 25 and None not in mirrored
    assert {task.family for task in plan.tasks} == set(FAMILIES)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_statistics_in_shipped_studies_exist(path):
    for proxy in read_yaml(path)["highlighted"]:
        assert proxy["statistic"] in STATISTICS and proxy["weighting"] in WEIGHTINGS


def test_families_of_the_configuration_are_those_that_exist():
    assert set(FAMILY_NAMES) == set(FAMILIES)


def test_schemas_and_reference_are_not_stale(tmp_path):
    write_reference(tmp_path)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.*")}
    assert len(made) == len(KINDS) + 1
    for path, text in made.items():
        assert (CONFIG / path).read_text() == text, f"run `python -m proxycast.config_reference`: {path} is stale"


SHIPPED = sorted(CONFIG.rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "/".join(path.relative_to(CONFIG).parts))
def test_shipped_files_fit_the_schema_that_they_name(path):
    schema = re.match(r"# yaml-language-server: \$schema=(\S+)", path.read_text())
    assert schema, "an editor finds the schema by the first line"
    jsonschema.validate(read_yaml(path), json.loads((path.parent / schema[1]).read_text()))


def test_every_key_stands_in_the_reference():
    text = (CONFIG / "README.md").read_text()

    def models(model: type[Options]) -> set[type[Options]]:
        inner = [m for m in Options.__subclasses__() if any(m.__name__ in str(f) for f in model.model_fields.values())]
        return {model}.union(*(models(m) for m in inner))

    found = set().union(*(models(model) for model in (Study, Corpus, Task)))
    assert len(found) >= 14
    for model in found:
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key} is not described"
            assert f"| `{key}` | " in text
            assert field.description.rstrip(".")[1:] in text


# Bad input: values


def test_small_study_is_right_before_it_is_spoilt(files):
    plan = load_plan(study(), "study.yaml", files())
    assert [corpus.name for corpus in plan.corpora] == ["web", "wiki"]
    assert plan.solutions_source("sums") == Path("results/mine/suite/problems/products.jsonl")
    assert plan.solutions_source("generic_text") == Path("results/mine/suite/generic_text.jsonl")


def test_unknown_key_of_a_study(files):
    refuse(study(hihglighted=[]), files(), "study.yaml: hihglighted: unknown key; did you mean 'highlighted'?", "known")


@pytest.mark.parametrize(
    "path", [["miniature"], ["miniature", "training"], ["miniature", "sizes", "small"], ["target"]]
)
def test_unknown_key_within_a_study(files, path):
    """Any misspelt key, at any depth, is answered with the key that was meant."""
    values = study()
    values["miniature"]["training"] = {"warmup": 0.1}
    node = values
    for key in path:
        node = node[key]
    key = next(iter(node))
    node[f"{key}x"] = node[key]
    refuse(values, files(), f"study.yaml: {'.'.join(path)}.{key}x: unknown key; did you mean '{key}'?")


@pytest.mark.parametrize("key", ["highlighted", "budgets"])
def test_unknown_key_within_a_list(files, key):
    values = study()
    values[key][0]["sise"] = 1
    refuse(values, files(), f"study.yaml: {key}[0].sise: unknown key", "known are")


def test_unknown_key_of_a_component(files):
    recipe = {"mixture": [{"source": "web", "weight": 1, "dedupliacte": True}]}
    folder = files({"corpora/suite/web.yaml": {**CORPUS, "recipe": recipe}})
    refuse(
        *(study(), folder),
        f"{folder}/corpora/suite/web.yaml: recipe.mixture[0].dedupliacte: unknown key; did you mean 'deduplicate'?",
    )


def test_unknown_key_of_a_task(files):
    folder = files({"tasks/suite/sums.yaml": {**TASK, "answer_patern": "x"}})
    refuse(study(), folder, f"{folder}/tasks/suite/sums.yaml: answer_patern: unknown", "mean 'answer_pattern'?")


@pytest.mark.parametrize(
    "proxy, words",
    [
        (
            {"statistic": "top6_accuracy"},
            ["statistic 'top6_accuracy' is unknown; did you mean", "known are cross_entropy"],
        ),
        (
            {"statistic": "margin", "weighting": "unifrom"},
            ["weighting 'unifrom' is unknown; did you mean 'uniform'?", "gaussian_nll"],
        ),
    ],
)
def test_unknown_statistic_and_weighting(files, proxy, words):
    refuse(study(highlighted=[STUDY["highlighted"][0], proxy]), files(), "study.yaml: highlighted[1]: ", *words)


@pytest.mark.parametrize("pattern, words", [("(", "is no regular expression"), ("x", "put the answer in parentheses")])
def test_answer_pattern_that_finds_nothing(files, pattern, words):
    folder = files({"tasks/suite/sums.yaml": {**TASK, "answer_pattern": pattern}})
    refuse(study(), folder, f"{folder}/tasks/suite/sums.yaml: answer_pattern: {pattern!r}", words)


def test_missing_key_and_wrong_type(files):
    values = study(jobs="corpora", target={})
    refuse(values, files(), "study.yaml: target.size: Field required", "jobs: Input should be 'run' or 'corpus', found")


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names(files, name):
    rule = "must begin with a letter or digit" if len(name) <= 100 else "at most 100 characters"
    refuse(study(study=name), files(), "study.yaml: study: ", rule, f"found {name!r}")
    refuse(study(corpora={name: "all"}), files(), f"study.yaml: corpora.{name}: ", rule)
    refuse(study(corpora={"suite": ["web", name]}), files(), "study.yaml: corpora.suite[1]: ", rule)
    sizes = {name: SIZE, **STUDY["miniature"]["sizes"]}
    refuse(study(miniature={"sizes": sizes}), files(), f"study.yaml: miniature.sizes.{name}: ", rule)
    folder = files({"corpora/suite/web.yaml": {**CORPUS, "name": name}})
    refuse(study(), folder, f"{folder}/corpora/suite/web.yaml: name: ", rule, f"found {name!r}")
    folder = files({"corpora/suite/web.yaml": CORPUS, "tasks/suite/sums.yaml": {**TASK, "name": name}})
    refuse(study(), folder, f"{folder}/tasks/suite/sums.yaml: name: ", rule)


@given(st.text(max_size=12))
def test_safe_names_are_safe_path_components(name):
    try:
        TypeAdapter(SafeName).validate_python(name)
    except ValidationError:
        return
    path = Path("folder") / name
    assert path.parent == Path("folder") and path.name == name and not name.startswith((".", "-"))
    assert not set(name) & set("/\\ \t\n{}*?'\"$;")


# Bad input: files


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml: no such file"):
        read_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: [1", "not valid YAML: .*line"),
        ("- web\n", "found a list, expected a mapping"),
        ("", "found a NoneType, expected"),
    ],
)
def test_broken_files(files, text, words):
    folder = files({"corpora/suite/broken.yaml": text})
    with pytest.raises(InputError, match=rf"corpora/suite/broken\.yaml: {words}"):
        load_plan(study(), "study.yaml", folder)


def test_unknown_suite(files):
    folder = files()
    refuse(study(corpora={"siute": "all"}), folder, "study.yaml: corpora: suite 'siute'", f"{folder}/corpora/siute")
    refuse(study(tasks={"siute": "all"}), folder, "study.yaml: tasks: suite 'siute'", f"{folder}/tasks/siute")


def test_name_that_no_file_has(files):
    folder = files()
    refuse(study(corpora={"suite": ["web", "wikki"]}), folder, "study.yaml: corpora.suite: 'wikki'", "mean 'wiki'?")
    refuse(study(tasks={"suite": ["sum"]}), folder, "study.yaml: tasks.suite: 'sum'", "did you mean 'sums'?")


def test_suites_are_all_or_a_list(files):
    refuse(study(corpora={"suite": "web"}), files(), "study.yaml: corpora.suite: Input should be 'all', found 'web'")


def test_corpus_named_twice_in_a_study(files):
    refuse(study(corpora={"suite": ["web", "wiki", "web"]}), files(), "study.yaml: corpora.suite names 'web' twice")


def test_two_files_of_one_name(files):
    folder = files({"corpora/suite/web2.yaml": CORPUS})
    refuse(study(), folder, f"{folder}/corpora/suite/web2.yaml: name: 'web'", f"{folder}/corpora/suite/web.yaml too")
    refuse(study(corpora={"suite": ["web", "wiki"]}), folder, "web2.yaml: name: 'web'")


def test_two_suites_of_one_name(files):
    folder = files({"corpora/other/mine.yaml": CORPUS})
    refuse(study(corpora={"suite": "all", "other": "all"}), folder, "name: 'web' is the name of", "names must differ")


def test_two_tasks_of_one_name(files):
    folder = files({"tasks/suite/sums2.yaml": {**TASK, "family": "homes"}})
    refuse(study(), folder, f"{folder}/tasks/suite/sums2.yaml: name: 'sums'", f"{folder}/tasks/suite/sums.yaml too")


@pytest.mark.parametrize("corpora", [[], ["web"]])
def test_too_few_corpora(files, corpora):
    refuse(study(corpora={"suite": corpora}), files(), f"study.yaml: corpora: found {len(corpora)}", "at least two")


def test_no_task(files):
    refuse(study(tasks={"suite": []}), files(), "study.yaml: tasks: found none", "at least one")


# Bad input: recipes, tasks and sizes that do not fit


@pytest.mark.parametrize("both", [False, True])
def test_recipe_or_checkpoints(files, both):
    checkpoints = [{"folder": "x", "size": "large", "step": 4, "tokens": 9}]
    corpus = {**CORPUS, "checkpoints": checkpoints} if both else {"name": "web"}
    folder = files({"corpora/suite/web.yaml": corpus})
    refuse(
        study(), folder, f"{folder}/corpora/suite/web.yaml: a corpus has either a recipe or checkpoints, exactly one"
    )


@pytest.mark.parametrize("both", [False, True])
def test_family_or_solutions(files, both):
    folder = files({"tasks/suite/sums.yaml": {**TASK, "solutions": "x.jsonl"} if both else {"name": "sums"}})
    refuse(study(), folder, f"{folder}/tasks/suite/sums.yaml: a task has either a family or a solutions file")


def test_keep_without_classifier(files):
    recipe = {"mixture": [CORPUS["recipe"]["mixture"][0], {"source": "web", "weight": 1, "keep": 0.5}]}
    folder = files({"corpora/suite/web.yaml": {**CORPUS, "recipe": recipe}})
    refuse(study(), folder, f"{folder}/corpora/suite/web.yaml: recipe.mixture[1]: keep below 1 needs a classifier")


def test_unknown_source(files):
    folder = files({"corpora/suite/web.yaml": {**CORPUS, "recipe": {"mixture": [{"source": "wob", "weight": 1}]}}})
    refuse(study(), folder, "web.yaml: recipe.mixture[0].source: Input should be 'web', 'crawl'", "found 'wob'")


def test_unknown_family(files):
    folder = files({"tasks/suite/sums.yaml": {**TASK, "family": "product"}})
    refuse(study(), folder, "study.yaml: task 'sums': family: 'product'", "mean 'products'?", "known are days_after")


def test_task_with_the_name_of_the_generic_text(files):
    folder = files({"tasks/suite/sums.yaml": {**TASK, "name": "generic_text"}})
    refuse(study(tasks={"suite": "all"}), folder, "study.yaml: a task is named 'generic_text'")


def test_study_without_a_suite(files):
    values = study()
    del values["miniature"]
    folder = files()
    refuse(values, folder, f"{folder}/corpora/suite/web.yaml: recipe: ", "study.yaml has no `miniature` section")
    own = [{"folder": "f", "size": size, "step": step, "tokens": 9} for size, step in (("small", 2), ("large", 4))]
    corpora = {f"corpora/suite/{name}.yaml": {"name": name, "checkpoints": own} for name in ("web", "wiki")}
    refuse(
        values, files(corpora), "study.yaml: task 'sums' has its problems from the suite, but `miniature` is missing"
    )
    folder = files(corpora | {"tasks/suite/sums.yaml": {"name": "sums", "solutions": "sums.jsonl"}})
    refuse(values, folder, "study.yaml: generic_text: missing")
    plan = load_plan({**values, "generic_text": "text.jsonl"}, "study.yaml", folder)
    assert plan.solutions_source("generic_text") == Path("text.jsonl")
    assert plan.solutions_source("sums") == Path("sums.jsonl")


def test_unknown_target_size(files):
    refuse(study(target={"size": "larg"}), files(), "study.yaml: target.size: 'larg'", "mean 'large'?", "small, large")


def test_target_size_alone(files):
    values = study(miniature={"sizes": {"large": SIZE}})
    refuse(values, files(), "study.yaml: target.size: 'large' is the only size")


@pytest.mark.parametrize("size, step", [("small", 3), ("smal", 2), ("large", 4)])
def test_budget_without_checkpoint(files, size, step):
    budgets = [STUDY["budgets"][0], {"name": "x", "size": size, "step": step}]
    refuse(study(budgets=budgets), files(), f"study.yaml: budgets[1]: no checkpoint {size} at step {step}", "[2, 4]")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"checkpoints": [5]}, "checkpoints [5] lie outside of the 4 training steps"),
        ({"checkpoints": [0]}, "checkpoints [0] lie outside"),
        ({"seeds": [1, 1]}, "seeds (1, 1) name one seed twice"),
        ({"hidden_size": 33}, "hidden_size: Input should be a multiple of 32, found 33"),
    ],
)
def test_size_that_cannot_be_trained(files, change, words):
    values = study()
    values["miniature"]["sizes"]["small"] |= change
    refuse(values, files(), "study.yaml: miniature.sizes.small", words)
