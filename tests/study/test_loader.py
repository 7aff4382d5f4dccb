"""Configuration: the studies that we ship load, and each kind of bad input gets an error that says where and what."""

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.corpora import Corpus, RunException
from proxycast.config.errors import parse
from proxycast.config.experiments.forecasting_options import WideCurve
from proxycast.config.ladder import Ladder, LadderSize, Optimisation
from proxycast.config.reference import FILE_KINDS, write_reference
from proxycast.config.study import Study
from proxycast.config.tasks import Rows, Task
from proxycast.config.training import FAMILY_NAMES, STEP_FAMILY_NAMES, Source
from proxycast.config.truth import Target
from proxycast.files import Files
from proxycast.options import InputError, Options, SafeName
from proxycast.proxy_formulas import BASELINES, STATISTICS, WEIGHTINGS
from proxycast.solutions.rows import read_solutions
from proxycast.solutions.templates import render_solutions
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.loader import frozen, load_plan
from proxycast.study.yaml_files import read_yaml, require_keys_once
from proxycast.training.miniature.problems import FAMILIES
from proxycast.training.miniature.step_problems import STEP_FAMILIES
from proxycast.training.text.documents import documents
from proxycast.truth.targets import read_target_table
from proxycast.truth.training_log import read_wide_curve
from proxycast.weights.tokenizer import read_tokenizer
from pydantic import TypeAdapter, ValidationError

CONFIG = Path(__file__).parents[2] / "config"
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

# A study of models that exist: nothing of the suite.
SHAPE = {"hidden_size": 64, "layers": 1, "heads": 2, "batch_sequences": 4, "steps": 10, "learning_rate": 0.01}
LADDER = {
    "name": "mine",
    "tokenizer": {"hub": "me/tokenizer"},
    "vocabulary": 100,
    "sequence_length": 8,
    "checkpoint_every": 4,
    "seeds": {0: "default", 1: "second"},
    "sizes": {"small": SHAPE, "large": {**SHAPE, "layers": 2, "seeds": {0: "default", 5: "fifth"}}},
}
ROWS = {"hub": "me/text", "files": "*.parquet", "solution": "{{ text }}"}
HUB = {"hub": "me/web-{size}", "revision": "step{step}-seed-{seed_name}"}


@pytest.fixture
def files(tmp_path):
    """A function that writes mappings to files of a configuration folder, on top of a small one that is right."""

    def write(entries: dict[str, object] | None = None) -> Path:
        right = {"corpora/suite/web.yaml": CORPUS, "corpora/suite/wiki.yaml": {**CORPUS, "name": "wiki"}}
        for name, content in {**right, "tasks/suite/sums.yaml": TASK, **(entries or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return tmp_path

    return write


def study(**changes) -> dict:
    return {**copy.deepcopy(STUDY), **changes}


def hub_study(**changes) -> dict:
    """A study of models of the hub, on a ladder; `hub_files` are its files."""
    own = {"generic_text": ROWS, "ladder": {"name": "mine"}, "budgets": [{"name": "early", "size": "small", "step": 4}]}
    return {key: value for key, value in study(**{**own, **changes}).items() if key != "miniature"}


def hub_files(**changes) -> dict[str, object]:
    right = {
        "ladders/mine.yaml": LADDER,
        "corpora/suite/web.yaml": {"name": "web", "checkpoints": [HUB]},
        "corpora/suite/wiki.yaml": {"name": "wiki", "checkpoints": [{**HUB, "hub": "me/wiki-{size}"}]},
        "tasks/suite/sums.yaml": {"name": "sums", "rows": {**ROWS, "prompt": "{{ question }}"}},
    }
    return right | changes


def refuse(values: dict, folder: Path, *words: str) -> None:
    """Loading, or finding the checkpoints, must fail with a message that holds every one of `words`."""
    with pytest.raises(InputError) as caught:
        plan_checkpoints(load_plan(values, "study.yaml", folder))
    for word in words:
        assert word in str(caught.value)


CLAIM = {"methods": ["rank_svm_linear", "margin/uniform"], "against": ["generic_bits_per_byte", "chance", "rbridge"]}


@pytest.mark.parametrize(
    "changes, word",
    [
        ({}, ""),
        ({"methods": ["rank_svm"]}, "miniature.yaml: model_selection.claim.methods[0]: 'rank_svm' is unknown; did you"),
        ({"against": ["primary_metric"]}, "model_selection.claim.against[0]: 'primary_metric' is unknown"),
        ({"populations": ["bases"]}, "model_selection.claim.populations: 'bases' needs models of the recipe none"),
        ({"populations": ["base"]}, "model_selection.claim.populations"),
    ],
)
def test_a_claim_is_checked_before_the_first_job(changes, word):
    values = read_yaml(CONFIG / "miniature_model_selection.yaml")
    values |= {"model_selection": {"claim": CLAIM | changes}}
    if not word:
        assert plan_checkpoints(load_plan(values, "miniature.yaml", CONFIG))
        values.pop("target"), values.pop("writers")
        word = "model_selection.claim: "
    with pytest.raises(InputError) as caught:
        plan_checkpoints(load_plan(values, "miniature.yaml", CONFIG))
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "names, word",
    [
        (["base-llama-39k-seed0", "core-gpt2-141k-seed0"], ""),
        (["base-llama-39k-seed0", "base-llama-39k-sed0"], "token_view[1]: 'base-llama-39k-sed0' is unknown; did you"),
        (["base", "core"], "token_view[0]: 'base' is unknown"),
        (["base-llama-39k-seed0"] * 2, "token_view: found base-llama-39k-seed0 twice"),
        (["base-llama-39k-seed0"], "token_view"),
    ],
)
def test_the_two_whose_tokens_are_compared_are_models_of_the_study(names, word):
    values = read_yaml(CONFIG / "miniature_model_selection.yaml") | {"token_view": names}
    if not word:
        assert plan_checkpoints(load_plan(values, "study.yaml", CONFIG))
        return
    with pytest.raises(InputError) as caught:
        plan_checkpoints(load_plan(values, "study.yaml", CONFIG))
    assert word in str(caught.value)


def test_the_two_whose_tokens_are_compared_are_corpora_or_checkpoints():
    values = read_yaml(CONFIG / "smoke.yaml")
    corpora = load_plan(values, "smoke.yaml", CONFIG).corpus_names
    assert plan_checkpoints(load_plan(values | {"token_view": corpora[:2]}, "smoke.yaml", CONFIG))
    forecast = read_yaml(CONFIG / "miniature_forecasting.yaml")
    known = [c.checkpoint for c in plan_checkpoints(load_plan(forecast, "forecast.yaml", CONFIG))]
    assert plan_checkpoints(load_plan(forecast | {"token_view": known[:2]}, "forecast.yaml", CONFIG))
    with pytest.raises(InputError, match=r"forecast.yaml: token_view\[0\]: 'web' is unknown"):
        plan_checkpoints(load_plan(forecast | {"token_view": ["web", known[0]]}, "forecast.yaml", CONFIG))


# What we ship


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_load(path):
    plan = load_plan(read_yaml(path), str(path), CONFIG)
    if plan.runs_models:  # else they are in a table of the reader
        assert plan_checkpoints(plan)
    assert [plan.corpus(name).name for name in plan.corpus_files] == [corpus.name for corpus in plan.corpora]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_frozen_study_is_what_it_was_whatever_becomes_of_its_files(path, tmp_path):
    """Through JSON, as jobs get it."""
    values = read_yaml(path)
    plan = load_plan(values, str(path), CONFIG)
    as_jobs_read_it = json.loads(json.dumps(frozen(values, plan, {})))
    found = load_plan(as_jobs_read_it, "the study", CONFIG)
    # Keys that are numbers are text in JSON, and numbers again once they are read.
    assert found.model_copy(update={"files": plan.files}) == plan


def test_default_study_has_the_25_corpora_of_datadecide():
    plan = load_plan(read_yaml(CONFIG / "config.yaml"), "config.yaml", CONFIG)
    mirrored = [corpus.mirrors for corpus in plan.corpora]
    assert len(mirrored) == len(set(mirrored)) == 25 and None not in mirrored
    assert {task.family for task in plan.tasks} == set(FAMILIES)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_statistics_in_shipped_studies_exist(path):
    values = read_yaml(path)
    for proxy in values.get("highlighted", []):
        if values.get("statistics"):
            assert proxy["statistic"] in values["statistics"]["higher_is_better"] and proxy["weighting"] == "none"
        else:
            known = STATISTICS if proxy["weighting"] != "none" else [*BASELINES, values["target"]["metric"]]
            assert proxy["statistic"] in known and proxy["weighting"] in {**WEIGHTINGS, "none": None}


def test_families_of_the_configuration_are_those_that_exist():
    assert set(FAMILY_NAMES) == set(FAMILIES) and set(STEP_FAMILY_NAMES) == set(STEP_FAMILIES)


def test_schemas_and_reference_are_not_stale(tmp_path):
    write_reference(tmp_path)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.*")}
    assert len(made) == len(FILE_KINDS) + 1
    for path, text in made.items():
        assert (CONFIG / path).read_text() == text, f"run `python -m proxycast.config.reference`: {path} is stale"


SHIPPED = sorted(set(CONFIG.rglob("*.yaml")) - set(CONFIG.glob("harness/**/*.yaml")))  # those have lm-eval's format


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "/".join(path.relative_to(CONFIG).parts))
def test_shipped_files_fit_the_schema_that_they_name(path):
    schema = re.match(r"# yaml-language-server: \$schema=(\S+)", path.read_text())
    assert schema, "an editor finds the schema by the first line"
    validator((path.parent / schema[1]).resolve()).validate(read_yaml(path))


@cache
def validator(schema: Path) -> jsonschema.protocols.Validator:
    values = json.loads(schema.read_text())
    kind = jsonschema.validators.validator_for(values)
    kind.check_schema(values)
    return kind(values)


def test_every_key_stands_in_the_reference():
    text = (CONFIG / "README.md").read_text()

    def within(annotation: object) -> set[type[Options]]:
        if isinstance(annotation, type) and issubclass(annotation, Options):
            return {annotation}.union(*(within(field.annotation) for field in annotation.model_fields.values()))
        return set().union(*map(within, get_args(annotation)))

    found = set().union(*map(within, (Study, Corpus, Task, Ladder)))
    assert {Rows, Source, RunException, LadderSize, Optimisation} < found
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
        ("margin/unifrom", ["weighting 'unifrom' is unknown; did you mean 'uniform'?"]),
        ("top6_accuracy/uniform", ["statistic 'top6_accuracy' is unknown; did you mean"]),
        ({"statistic": "bits_per_byte"}, ["bits_per_byte is a baseline; give weighting: none, or its name alone"]),
    ],
)
def test_unknown_statistic_and_weighting(files, proxy, words):
    refuse(study(highlighted=[STUDY["highlighted"][0], proxy]), files(), "study.yaml: highlighted[1]: ", *words)


def test_proxies_may_be_given_by_name(files):
    named = ["top5_accuracy/token_frequency", "margin", "bits_per_byte"]
    proxies = load_plan(study(highlighted=named), "study.yaml", files()).study.highlighted
    assert [(proxy.statistic, proxy.weighting) for proxy in proxies] == [
        *(("top5_accuracy", "token_frequency"), ("margin", "uniform"), ("bits_per_byte", "none"))
    ]


@pytest.mark.parametrize("pattern, words", [("(", "is no regular expression"), ("x", "put the answer in parentheses")])
def test_answer_pattern_that_finds_nothing(files, pattern, words):
    folder = files({"tasks/suite/sums.yaml": {**TASK, "answer_pattern": pattern}})
    refuse(study(), folder, f"{folder}/tasks/suite/sums.yaml: answer_pattern: {pattern!r}", words)


def test_missing_key_and_wrong_type(files):
    values = study(jobs="corpora", budgets=[{"name": "early", "step": 4}])
    refuse(values, files(), "study.yaml: budgets[0].size: Field required", "jobs: Input should be 'run' or 'corpus', f")


def test_all_missing_keys_are_told_at_once(files):
    values = {"tasks": {"suite": "all"}, "budgets": [{"step": 2}], "miniature": {"sizes": {"small": {"layers": 1}}}}
    missing = ("study", "budgets[0].name", "budgets[0].size", "miniature.sizes.small.steps")
    refuse(values, files(), *(f"study.yaml: {key}: Field required" for key in missing))


def test_mistakes_in_several_files_are_told_at_once(files):
    folder = files({"corpora/suite/web.yaml": {"name": "web"}, "tasks/suite/sums.yaml": {"family": "products"}})
    refuse(study(), folder, f"{folder}/corpora/suite/web.yaml: ", f"{folder}/tasks/suite/sums.yaml: name: Field requ")


def test_texts_that_no_model_would_draw_are_not_asked_for():
    values = read_yaml(CONFIG / "miniature_post_training.yaml")
    values["target"] |= {"metric": "multiple_choice_accuracy", "other_metrics": ["sampled_exact_match"]}
    with pytest.raises(InputError, match="^study.yaml: target.sampling: .*give it as metric, or leave sampling out"):
        load_plan(values, "study.yaml", CONFIG)


@pytest.mark.parametrize(
    "statistic, words",
    [
        (
            "parameters",
            "without a truth there is no baseline 'parameters'; there are expert_cross_entropy, bits_per_by",
        ),
        ("bits_per_bite", "no baseline 'bits_per_bite'; did you mean 'bits_per_byte'?; there are"),
        ("rbridge", "no baseline 'rbridge'"),
        ("tempered_cross_entropy", "no baseline 'tempered_cross_entropy'; it needs extraction.temperatures"),
    ],
)
def test_without_a_truth_only_scored_baselines_rank(files, statistic, words):
    highlighted = [{"statistic": "cross_entropy"}, {"statistic": statistic, "weighting": "none"}]
    refuse(study(target=None, highlighted=highlighted), files(), "study.yaml: highlighted[1]: ", words)
    for known in ("bits_per_byte", "generic_cross_entropy"):  # the suite has its own generic text
        highlighted[1]["statistic"] = known
        load_plan(study(target=None, highlighted=highlighted), "study.yaml", files())
    highlighted[1]["statistic"], tempered = "tempered_cross_entropy", {"temperatures": [0.5, 0.7, 1, 1.4, 2]}
    load_plan(study(target=None, highlighted=highlighted, extraction=tempered), "study.yaml", files())
    recorded = study(target=None, replay="recorded.parquet", extraction=tempered)
    refuse(recorded, files(), "study.yaml: replay: ", "remove extraction.temperatures")


def test_what_a_study_leaves_out_is_told_with_its_key(files):
    judged, ranked = (load_plan(study(**more), "study.yaml", files()) for more in ({}, {"target": None}))
    assert judged.left_out == []
    assert len(ranked.left_out) == 1 and "`target`" in ranked.left_out[0]
    checkpoints = [{"folder": f"{name}-s", "size": "s", "step": 1, "tokens": 2, "parameters": 3} for name in "ab"]
    given = {f"corpora/given/{c['folder'][0]}.yaml": {"name": c["folder"][0], "checkpoints": [c]} for c in checkpoints}
    task = {"tasks/given/own.yaml": {"name": "own", "solutions": "own.jsonl"}}
    values = {"study": "mine", "corpora": {"given": "all"}, "tasks": {"given": "all"}}
    told = load_plan(values, "study.yaml", files(given | task)).left_out
    assert len(told) == 2 and "`generic_text`" in told[1]


MODEL_SELECTION = {"target": {"metric": "exact_match"}, "highlighted": [], "budgets": [], "model_selection": {}}
THREE_TASKS = {f"tasks/suite/{name}.yaml": {**TASK, "name": name} for name in ("sums", "more", "most")}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"target": {}}, "found no experiment; give target.size (data selection), model_selection or forecasting"),
        ({"model_selection": {}}, "target.size and model_selection: found both"),
        ({"forecasting": {"fit_up_to_step": 2}}, "target.size and forecasting: found both"),
        (
            {"target": {"size": "large", "lm_eval": {}}},
            "target.lm_eval: no task of the study says how lm-eval measures",
        ),
        ({"highlighted": []}, "highlighted: found none; corpora are ranked by the proxies named there"),
        (
            {"target": None, "forecasting": {"fit_up_to_step": 2}},
            "target: missing; forecasting needs to know its metric",
        ),
        (MODEL_SELECTION, "tasks: found 1; model_selection holds two out and learns from the others, so it needs at l"),
        ({**MODEL_SELECTION, "corpora": {}}, "corpora, models: found none of either; a study needs models to run"),
        (
            {"target": None, "budgets": [], "corpora": {}},
            "found neither corpora nor models; name the suites to be ranked",
        ),
    ],
)
def test_a_study_makes_one_kind_of_experiment(files, changes, words):
    folder = files(THREE_TASKS if "corpora" in changes else None)
    refuse(
        study(**changes, **({"tasks": {"suite": "all"}} if "corpora" in changes else {})),
        folder,
        f"study.yaml: {words}",
    )


FORECAST = {"target": {}, "highlighted": [], "budgets": []}
WRITERS = {"writers": {"strong": {"folder": "nowhere/strong"}}}


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {**FORECAST, "forecasting": {"fit_up_to_step": 3}},
            "forecasting.fit_up_to_step: 3 leaves 1 checkpoints of ",
        ),
        (
            {**FORECAST, "forecasting": {"fit_up_to_step": 3, "fit_from_step": 3}},
            "fit_from_step: 3 is not before fit",
        ),
        ({**FORECAST, "forecasting": {"end": {"step": 9}}}, "forecasting.end.run: missing; say which run ends there"),
        (
            MODEL_SELECTION | {"corpora": {"suite": ["web"]}},
            "models, corpora: found 2 models; model selection needs at least 4 to judge scorers",
        ),
        (MODEL_SELECTION | WRITERS, "writers.strong.folder: nowhere/strong: no such folder"),
        (
            MODEL_SELECTION | {"writers": {"w": {"checkpoint": "web-larg"}}},
            "writers.w.checkpoint: 'web-larg' is no ",
        ),
    ],
)
def test_what_the_other_experiments_need_is_told_when_planned(files, changes, words):
    tasks = {file: {**task, "answer_pattern": "(.)"} for file, task in THREE_TASKS.items()}
    refuse(study(**changes, tasks={"suite": "all"}), files(tasks), "study.yaml: ", words)


def test_models_to_choose_among_may_differ_in_size_tokenizer_and_steps(files):
    values = study(**MODEL_SELECTION, tasks={"suite": "all"})
    values["miniature"]["tokenizers"] = {"other": 400}
    values["miniature"]["sizes"]["large"] |= {"architecture": "gpt2", "tokenizer": "other"}
    plan = load_plan(values, "study.yaml", files(THREE_TASKS))
    checkpoints = plan_checkpoints(plan)
    assert {c.role for c in checkpoints} == {"candidate"} and plan.vocabulary is None
    assert {(c.size, c.family) for c in checkpoints} == {("small", "llama"), ("large", "gpt2")}
    sizes = plan.study.miniature.sizes
    assert {(c.size, c.parameters) for c in checkpoints} == {
        ("small", sizes["small"].parameters(plan.study.miniature.vocabulary)),
        ("large", sizes["large"].parameters(400)),
    }


def test_a_curve_that_others_logged_needs_no_models(files):
    curve = {
        "path": "curve.csv",
        "run": "r",
        "tokens_per_step": 4,
        "tasks": {"t": {"truth": "a", "statistics": {"s": "b"}}},
    }
    forecasting = {"fit_up_to_step": 2, "proxies": ["s"], "curve": curve}
    plan = load_plan(
        {"study": "mine", "target": {"metric": "accuracy"}, "forecasting": forecasting}, "study.yaml", files()
    )
    assert (plan_checkpoints(plan), plan.solution_names, plan.task_names) == ([], [], ["t"])


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
    refuse(
        study(corpora={"suite": "web"}),
        files(),
        "study.yaml: corpora.suite: Input should be 'all' or a valid list, found",
    )


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
        study(), folder, f"{folder}/corpora/suite/web.yaml: a corpus has a recipe, checkpoints or text, exactly one of"
    )


@pytest.mark.parametrize("both", [False, True])
def test_family_or_solutions(files, both):
    folder = files({"tasks/suite/sums.yaml": {**TASK, "solutions": "x.jsonl"} if both else {"name": "sums"}})
    refuse(study(), folder, f"{folder}/tasks/suite/sums.yaml: a task has a family, a solutions file or rows,")


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
    assert load_plan(values, "study.yaml", folder).solution_names == ["sums"]
    plan = load_plan({**values, "generic_text": "text.jsonl"}, "study.yaml", folder)
    assert plan.solutions_source("generic_text") == Path("text.jsonl")
    assert plan.solutions_source("sums") == Path("sums.jsonl")


def test_unknown_target_size(files):
    refuse(study(target={"size": "larg"}), files(), "study.yaml: target.size: 'larg'", "mean 'large'?", "small, large")


def test_target_size_alone(files):
    values = study(miniature={"sizes": {"large": SIZE}})
    refuse(values, files(), "study.yaml: target.size: 'large' is the only size")


@pytest.mark.parametrize(
    "laws, words",
    [
        (
            {"sizes": [["small", "tiny"]]},
            ".sizes[0]: 'tiny' is no size of this study below the target's; there are small",
        ),
        ({"sizes": [["small", "large"]]}, ".sizes[0]: 'large' is no size of this study below the target's"),
        (
            {},
            ": 2_param is fitted to at least 2 sizes; found small; the study has no others below the target's",
        ),
        (
            {"sources": ["bits_per_bite"]},
            ".sources[0]: found bits_per_bite, weighting none; did you mean 'bits_per_byte'?",
        ),
    ],
)
def test_scaling_laws_that_cannot_be(files, laws, words):
    options = {"sources": ["bits_per_byte"], "laws": ["2_param"]} | laws
    refuse(study(selection={"scaling_laws": options}), files(), f"study.yaml: selection.scaling_laws{words}")


def test_scaling_laws_need_a_target(files):
    values = study(selection={"scaling_laws": {"sources": ["bits_per_byte"]}})
    del values["target"]
    refuse(values, files(), "study.yaml: selection.scaling_laws: found no data selection with a target")


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
        ({"learning_rate_factor": 0}, "learning_rate_factor: Input should be greater than 0, found 0"),
        ({"learning_rate_factor": float("inf")}, "learning_rate_factor: Input should be a finite number"),
    ],
)
def test_size_that_cannot_be_trained(files, change, words):
    values = study()
    values["miniature"]["sizes"]["small"] |= change
    refuse(values, files(), "study.yaml: miniature.sizes.small", words)


# A study of models that exist, on a ladder


def test_hub_study_is_right_before_it_is_spoilt(files):
    plan = load_plan(hub_study(), "study.yaml", files(hub_files()))
    assert plan.where == "study.yaml" and plan.ladder == Ladder(**LADDER)
    assert plan.results == Path("results/mine")
    assert plan.task_names == ["sums"] and plan.solution_names == ["sums", "generic_text"]
    assert plan.solutions_source("sums") == Path("results/mine/solutions/sums.jsonl")
    assert plan.solutions_source("generic_text") == Path("results/mine/solutions/generic_text.jsonl")
    assert plan.rows("sums").prompt == "{{ question }}" and plan.rows("generic_text") == Rows(**ROWS)
    assert plan.tokenizer_folder == Path("results/mine/tokenizer") and plan.vocabulary == 100
    assert plan.data_folder("x") == Path("results/mine/data/x")
    assert plan.file_sets() == {"solutions-sums": plan.rows("sums"), "solutions-generic_text": Rows(**ROWS)}
    assert plan.published_names == {"web": "web", "wiki": "wiki"}


def test_where_the_tokenizer_lies(files):
    ladder = {**LADDER, "tokenizer": {"folder": "my/tokenizer"}}
    plan = load_plan(hub_study(), "study.yaml", files(hub_files(**{"ladders/mine.yaml": ladder})))
    assert plan.tokenizer_folder == Path("my/tokenizer")


def test_tokenizer_and_vocabulary_of_the_suite_and_of_neither(files):
    plan = load_plan(study(), "study.yaml", files())
    assert plan.tokenizer_folder == Path("results/mine/suite/tokenizer") and plan.vocabulary == 512
    assert plan.file_sets() == {} and plan.rows("sums") is None and plan.rows("generic_text") is None
    own = [{"folder": "f", "size": size, "step": step, "tokens": 9} for size, step in (("small", 2), ("large", 4))]
    entries = {f"corpora/suite/{name}.yaml": {"name": name, "checkpoints": own} for name in ("web", "wiki")}
    values = {key: value for key, value in hub_study(generic_text="x.jsonl").items() if key != "ladder"}
    plan = load_plan(values, "study.yaml", files(hub_files(**entries)))
    assert plan.vocabulary is None and plan.ladder is None


def test_every_data_set_of_a_study_is_named_once(files):
    evaluations = {"hub": "me/evaluations", "files": "*.parquet"}
    mixture = [{"files": "a.txt", "weight": 0.5}, {"hub": "me/b", "files": "b.txt", "weight": 0.5}]
    entries = {"corpora/suite/web.yaml": {"name": "web", "display_name": "The Web", "text": {"mixture": mixture}}}
    values = hub_study(target={"size": "large", "evaluations": evaluations}, generic_text="x.jsonl")
    plan = load_plan(values, "study.yaml", files(hub_files(**entries)))
    assert plan.file_sets() == {
        "solutions-sums": plan.rows("sums"),
        "evaluations": Files(**evaluations),
        "text-web-0": Source(**mixture[0]),
        "text-web-1": Source(**mixture[1]),
    }
    assert plan.published_names == {"The Web": "web", "wiki": "wiki"}


def test_the_old_key_of_published_measurements_says_what_to_write():
    with pytest.raises(InputError, match="^study.yaml: published: this key is gone; .* name it in statistics.table"):
        load_plan({"study": "mine", "published": "folder"}, "study.yaml", CONFIG)


@pytest.mark.parametrize(
    "target, here",
    [({}, True), ({"table": "x.csv"}, False), ({"evaluations": {"files": "x.parquet"}}, False)],
)
def test_who_measures_the_truth(target, here):
    assert Target(size="large", **target).measured_here is here


def test_which_way_a_metric_is_better():
    """Every metric counts as better the more, but errors and losses, of which a study must say it."""
    target = Target(metric="loss", higher_is_better=False, other_metrics=["accuracy", "ppl"], lower_is_better=["ppl"])
    assert [target.sign(name) for name in ("loss", "accuracy", "ppl", "unnamed")] == [-1, 1, -1, 1]
    assert Target().sign("multiple_choice_accuracy") == 1
    assert Target(metric="loss", higher_is_better=True).sign("loss") == 1
    assert Target(**target.model_dump()) == target
    for metric in ("loss", "error_rate", "bits_per_byte", "word-perplexity", "eval_cross_entropy", "NLL"):
        with pytest.raises(ValidationError, match=f"higher_is_better: missing; by its name, '{metric}' may be"):
            Target(metric=metric)
    for metric in ("neg_loss", "log_likelihood", "accuracy", "terror"):
        assert Target(metric=metric).sign(metric) == 1
    with pytest.raises(ValidationError, match="other_metrics: 'ppl' sounds like an error or a loss; name it in lower"):
        Target(other_metrics=["ppl"])
    with pytest.raises(ValidationError, match="names 'score', which is `metric`; give higher_is_better: false"):
        Target(metric="score", lower_is_better=["score"])


def test_corpora_that_others_call_the_same(files):
    entries = {"corpora/suite/web.yaml": {"name": "web", "display_name": "wiki", "checkpoints": [HUB]}}
    words = "display_name: 'wiki' is that of"
    refuse(hub_study(), files(hub_files(**entries)), "wiki.yaml: ", words, "web.yaml too; names must differ")


@pytest.mark.parametrize(
    "choice, words",
    [
        ({"name": "mien"}, ["ladder.name: no file ", "ladders/mien.yaml; did you mean 'mine'?; there are ['mine']"]),
        ({"name": "mine", "sizes": ["smal"]}, ["ladder.sizes: 'smal' is no size of", "mean 'small'?; known are small"]),
        ({"name": "mine", "seeds": [5, 2]}, ["ladder.seeds: 2 is no seed of", "known are [0, 1, 5]"]),
        ({"name": "mine", "seed": [0]}, ["ladder.seed: unknown key; did you mean 'seeds'?"]),
        ({"name": "mine", "sizes": "small"}, ["ladder.sizes: Input should be 'all' or a valid list, found 'small'"]),
        ({"name": "../mine"}, ["ladder.name: a name must begin with a letter or digit", "found '../mine'"]),
        ("mine", ["ladder: Input should be a mapping of keys to values, found 'mine'"]),
        ({"name": "mine", "first_step": -1}, ["ladder.first_step: Input should be greater than or equal to 0"]),
    ],
)
def test_ladder_that_is_chosen_wrongly(files, choice, words):
    refuse(hub_study(ladder=choice), files(hub_files()), "study.yaml: ", *words)


@pytest.mark.parametrize("checkpoints", ["every", 0, 1.5, None])
def test_checkpoints_are_all_the_last_or_every_nth(files, checkpoints):
    """One line for all alternatives, and no word of pydantic's own."""
    values = hub_study(ladder={"name": "mine", "checkpoints": checkpoints})
    with pytest.raises(InputError) as caught:
        load_plan(values, "study.yaml", files(hub_files()))
    message = str(caught.value)
    assert message.startswith("study.yaml: ladder.checkpoints: Input should be 'all' or 'last' or ")
    assert message.endswith(f", found {checkpoints!r}") and "constrained" not in message and "\n" not in message


def test_ladder_file_that_is_wrong(files):
    broken = copy.deepcopy(LADDER)
    broken["sizes"]["small"]["batch_sequence"] = broken["sizes"]["small"].pop("batch_sequences")
    folder = files(hub_files(**{"ladders/mine.yaml": broken}))
    where = f"{folder}/ladders/mine.yaml: sizes.small"
    refuse(hub_study(), folder, f"{where}.batch_sequences: Field", f"{where}.batch_sequence: unknown key; did you mean")


def test_models_of_one_way_to_train(files):
    refuse(
        hub_study() | {"miniature": STUDY["miniature"]},
        files(hub_files()),
        "study.yaml: ladder and miniature: found both",
    )


def test_text_needs_something_to_train(files):
    text = {"name": "web", "text": {"mixture": [{"files": "x.txt"}]}}
    values = {key: value for key, value in hub_study().items() if key != "ladder"}
    folder = files(hub_files(**{"corpora/suite/web.yaml": text}))
    refuse(values, folder, f"{folder}/corpora/suite/web.yaml: text: the study study.yaml has no `ladder`")
    folder = files(hub_files(**{"corpora/suite/web.yaml": {**text, "sizes": ["large", "smal"]}}))
    where = f"{folder}/corpora/suite/web.yaml: sizes: 'smal' is unknown"
    refuse(hub_study(), folder, where, "mean 'small'?; known are small, large")
    # One that the ladder has, but that the study does not look at.
    ladder = {**LADDER, "sizes": {**LADDER["sizes"], "middle": LADDER["sizes"]["small"]}}
    folder = files(hub_files(**{"corpora/suite/web.yaml": {**text, "sizes": ["middle"]}, "ladders/mine.yaml": ladder}))
    load_plan(hub_study(), "study.yaml", folder)
    chosen = hub_study(ladder={"name": "mine", "sizes": ["small"]})
    refuse(chosen, folder, "web.yaml: sizes: 'middle' is unknown; known are small, large")


@pytest.mark.parametrize(
    "choice, texts, words",
    [
        ({"learning_rate_factor": 0.1}, [], "ladder.learning_rate_factor: no corpus of the study is text"),
        (
            {"learning_rate_factor": 0.1},
            ["web"],
            "found 0.1, but wiki has checkpoints, which were trained at the ladder's",
        ),
        ({"learning_rate_factor": 0}, ["web"], "ladder.learning_rate_factor: Input should be greater than 0"),
        ({"rate_check": {"size": "small"}}, ["web"], "ladder.rate_check: found 1 corpora of text; an order needs at"),
        (
            {"rate_check": {"size": "smal"}},
            ["web"],
            "ladder.rate_check.size: 'smal' is no size that the study uses; did",
        ),
        (
            {"rate_check": {"size": "small", "factor": 1}},
            ["web"],
            "ladder.rate_check.factor: Input should be less than",
        ),
        ({"rate_check": {"size": "large"}}, ["web", "wiki"], "ladder.rate_check.size: 'large' is the target's"),
    ],
)
def test_learning_rates_are_those_of_text(files, choice, texts, words):
    text = {f"corpora/suite/{name}.yaml": {"name": name, "text": {"mixture": [{"files": "x.txt"}]}} for name in texts}
    refuse(hub_study(ladder={"name": "mine", **choice}), files(hub_files(**text)), "study.yaml: ", words)


# What a user reads of mistakes in what can stand for several things


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"revison": "x"}, "checkpoints[0].revison: unknown key; did you mean 'revision'?; known are folder, hub, "),
        ({"convert_from": "olmo"}, "checkpoints[0].convert_from: Input should be 'hf_olmo', found 'olmo'"),
        (
            {"hub": "my models/{size}"},
            "checkpoints[0].hub: a repository of the hub is 'owner/name', each of letters, digits, '_', '.' and '-', "
            "found 'my models/{size}'",
        ),
        ({"revision": "../{step}"}, "checkpoints[0].revision: a revision is a branch, tag or commit: "),
        (
            {"revision": "{stpe}"},
            "checkpoints[0].revision: '{stpe}' has the unknown placeholder {stpe}; known are size, ",
        ),
        ({"size": "a b"}, "checkpoints[0].size[0]: a name must begin with a letter or digit"),
        ({"seed": "x"}, "checkpoints[0].seed[0]: Input should be a valid integer"),
        ({"model": {"dtyp": "x"}}, "checkpoints[0].model.dtyp: unknown key; did you mean 'dtype'?"),
        (
            {"exceptions": [{"size": "small", "seed": 0, "lst": 1}]},
            "checkpoints[0].exceptions[0].lst: unknown key; did",
        ),
        ({"folder": "x"}, "checkpoints[0]: a checkpoint lies in a folder or in a hub repository, exactly one of the "),
    ],
)
def test_mistakes_in_checkpoints(files, changes, line):
    folder = files(hub_files(**{"corpora/suite/web.yaml": {"name": "web", "checkpoints": [HUB | changes]}}))
    with pytest.raises(InputError) as caught:
        load_plan(hub_study(), "study.yaml", folder)
    assert str(caught.value).startswith(f"{folder}/corpora/suite/web.yaml: {line}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mixture, line",
    [
        (
            [{"files": "a", "weight": 0.5}, {"files": "b", "weight": 0.4}],
            "text: the weights of the mixture sum to 0.9; ",
        ),
        ([{"files": "a", "wieght": 1}], "text.mixture[0].wieght: unknown key; did you mean 'weight'?; known are files"),
        ([{"files": "a", "hub": "a b"}], "text.mixture[0].hub: a repository of the hub is 'owner/name'"),
        ([{"files": "a", "where": "a ="}], "text.mixture[0].where: 'a =' is no condition in SQL: "),
        ([{"hub": "a/b"}], "text.mixture[0].files: Field required"),
        ([], "text.mixture: Tuple should have at least 1 item after validation, not 0, found []"),
    ],
)
def test_mistakes_in_text(files, mixture, line):
    folder = files(hub_files(**{"corpora/suite/web.yaml": {"name": "web", "text": {"mixture": mixture}}}))
    with pytest.raises(InputError) as caught:
        load_plan(hub_study(), "study.yaml", folder)
    assert str(caught.value).startswith(f"{folder}/corpora/suite/web.yaml: {line}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value, line",
    [
        (
            {**ROWS, "smaple": 5},
            ".smaple: unknown key; did you mean 'sample'?; known are files, hub, revision, prompt, ",
        ),
        ({"files": "x"}, ": solution: missing; rows without choices need a template of the solution"),
        ({**ROWS, "solution": "{{ text"}, ".solution: '{{ text' is no Jinja template: "),
        ({"solution": "x"}, ".files: Field required"),
        ({**ROWS, "hub": "a b"}, ".hub: a repository of the hub is 'owner/name'"),
        (["x.jsonl"], ": Input should be a path or a mapping of keys to values, found ['x.jsonl']"),
        (5, ": Input should be a path or a mapping of keys to values, found 5"),
    ],
)
def test_mistakes_in_generic_text(files, value, line):
    """A file or rows: what is wrong with the one that was meant, without pydantic's names of the two."""
    with pytest.raises(InputError) as caught:
        load_plan(hub_study(generic_text=value), "study.yaml", files(hub_files()))
    assert str(caught.value).startswith(f"study.yaml: generic_text{line}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"hub": {"disk": 3}}, "hub.disk: unknown key; did you mean 'disk_gb'?"),
        ({"hub": {"concurrent_downloads": 0}}, "hub.concurrent_downloads: Input should be greater than or equal to 1"),
        (
            {"target": {"size": "large", "table": "x", "evaluations": {"files": "x"}}},
            "target: table and evaluations are different sources of the truth; give only one of them",
        ),
        ({"target": {"size": "large", "evaluations": {"hub": "a/b"}}}, "target.evaluations.files: Field required"),
        ({"target": {"size": "large", "parameters": 0}}, "target.parameters: Input should be greater than 0, found 0"),
    ],
)
def test_mistakes_in_a_study(files, changes, line):
    refuse(hub_study(**changes), files(hub_files()), f"study.yaml: {line}")


def test_rows_of_a_task_that_are_wrong(files):
    task = {"name": "sums", "rows": {**ROWS, "choises": "a"}}
    folder = files(hub_files(**{"tasks/suite/sums.yaml": task}))
    refuse(hub_study(), folder, f"{folder}/tasks/suite/sums.yaml: rows.choises: unknown key; did you mean 'choices'?")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("name: a\ncolour: b\nname: c\n", "'name'"),
        ("a: {x: 1, y: 2, 'x': 3}\n", "'x'"),
        ("a: [{b: 1, b: 1}]\n", "'b'"),
        ("1: a\n0x1: b\n", "1"),
        ("yes: a\ntrue: b\n", "True"),
        ("base: &b {x: 1, x: 2}\na: {<<: *b}\n", "'x'"),
        ("base: &b {x: 1}\na: {<<: *b, y: 1, y: 2}\nc: {<<: *b}\n", "'y'"),
        ('{"a": 1,\n"a": 2}', "'a'"),
    ],
)
def test_a_key_that_stands_twice(tmp_path, text, key):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    for read in (read_yaml, require_keys_once):
        with pytest.raises(InputError, match=f"x.yaml: .*key {key} stands there twice"):
            read(path)


def test_keys_that_stand_once(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("b: &b {x: 1, y: 2}\nc: &c {<<: *b, x: 3}\nd: {<<: *c, y: 4}\ne: {<<: [*b, *c]}\nf: *c\n")
    found = read_yaml(path)
    assert found["c"] == found["f"] == {"x": 3, "y": 2} and found["e"]["x"] == 1
    require_keys_once(path)
    path.write_text('{"a": {"b": 1},\t"c": {"b": 1}}')  # no YAML, but JSON, which Snakemake tries first
    require_keys_once(path)


SECRETS = {
    "shadow": "root:$y$j9T$secret:19000:0:99999:7:::\ndaemon,secret:x,y\n",
    "key": "-----BEGIN OPENSSH PRIVATE KEY-----\nsecretb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n",
    "token": "hf_secretsecretsecretsecretsecret",
    "password": "secret\n",
    "quote": 'a\n"secret\n',
    "hosts": "github.com:\n    oauth_token: secret\n    user: [secret\n",
    "mapping": "github.com:\n    oauth_token: secret\n",
    "tag": "secret: x: &a !secret\n",
    "json": '{"token": "secret"}\n',
    "list": '["secret"]\n',
    "string": '"secret"\n',
    "version": '{"version": "secret"}\n',
    "tokens": '{"version": "1.0", "added_tokens": "secret"}\n',
    "struct": '{"question": ["secret"], "text": ["secret"]}\n{"question": {"a": "secret"}}\n',
}


def readers():
    def rows(path):
        return Rows(files=str(path), prompt="{{ question }}", choices="options", gold="0")

    columns = WideCurve.model_construct(path=(), run="r", step="step", shared={}, tasks={}, tokens_per_step=1)
    return {
        "solutions.jsonl": read_solutions,
        "solutions.parquet": read_solutions,
        "truth.csv": read_target_table,
        "truth.parquet": read_target_table,
        "curve.csv": lambda path: read_wide_curve(columns.model_copy(update={"path": (path,)}), "accuracy"),
        "text.jsonl": lambda path: list(documents([path], Source(files=str(path), column="text", weight=1))),
        "where.txt": lambda path: list(documents([path], Source(files=str(path), where="CAST(text AS BIGINT) = 1"))),
        "where.jsonl": lambda path: list(
            documents([path], Source(files=str(path), column="token", where="token::int = 1"))
        ),
        "tokenizer.json": read_tokenizer,
        "task.yaml": lambda path: read_yaml(path) and parse(Task, read_yaml(path), str(path)),
        "rows.jsonl": lambda path: render_solutions([path], rows(path), "task"),
        "rows.csv": lambda path: render_solutions([path], rows(path), "task"),
    }


@pytest.mark.parametrize("content", SECRETS)
@pytest.mark.parametrize("name", readers())
def test_no_line_of_a_private_file_is_told(tmp_path, name, content):
    """A path of a study may be a link to any file of the person who runs it."""
    (tmp_path / "private").write_text(SECRETS[content])
    path = tmp_path / name
    path.symlink_to("private")
    with pytest.raises(InputError) as refused:
        readers()[name](path)
    assert "secret" not in str(refused.value) and "OPENSSH" not in str(refused.value)
    assert path.name in str(refused.value) and len(str(refused.value)) < 600
