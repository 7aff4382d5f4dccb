"""lm-eval as a source of truth, without lm-eval: results as it writes them, what is kept, and what is told."""

import copy
import gc
import importlib.metadata
import json
import re
import sys
import tomllib
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from olmo3_models import olmo3_folder, retrofit_folder
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.tasks import HarnessTask
from proxycast.config.truth import Harness
from proxycast.options import InputError
from proxycast.truth import harness
from proxycast.truth.harness import backend_arguments, harness_rows, read_score
from pydantic import ValidationError
from tokenizers import Tokenizer

# What lm-eval 0.4.13 returned for a task, a group with a mean, and a task with filters, on a tiny model.
TOY = {"name": "toy_choice", "alias": "toy_choice", "sample_len": 7, "acc,none": 0.42857142857142855}
TOY |= {"acc_stderr,none": "N/A", "acc_norm,none": 0.2857142857142857, "acc_norm_stderr,none": "N/A"}
GROUP = {"alias": "toy_group", "name": "toy_group", "sample_len": 14, "acc,none": 0.5, "acc_stderr,none": "N/A"}
GROUP |= {"sample_count": {"acc,none": 14}}
WRITTEN = {"name": "toy_write", "alias": "toy_write", "sample_len": 3, "exact_match,strict-match": 0.0}
WRITTEN |= {"exact_match_stderr,strict-match": "N/A", "exact_match,flexible-extract": 1}
FOUND = {
    "results": {"toy_choice": TOY, "toy_group": GROUP, "toy_write": WRITTEN, "toy_tag": {"alias": "toy_tag"}},
    "n-samples": {"toy_choice": {"original": 7, "effective": 7}},
    "n-shot": {"toy_choice": 0, "toy_group": 0},
    "versions": {"toy_choice": 1.0, "toy_group": "N/A"},
    "lm_eval_version": "0.4.13",
}


def index(files):
    """lm-eval's index, in its place: file -> names of tasks in it; those of "" are tags of all others."""
    entries = {
        name: SimpleNamespace(name=name, yaml_path=Path("/x", file) if file else None, tags={*files.get("", ())})
        for file, names in files.items()
        for name in names
    }
    return SimpleNamespace(all_tasks=list(entries), task_index=entries)


@pytest.fixture
def recorded(tmp_path):
    """A function that writes FOUND, changed at results/task/key, to a file."""

    def write(task=None, key=None, value=None):
        found = copy.deepcopy(FOUND)
        if task:
            found["results"][task][key] = value
        path = tmp_path / "found.json"
        path.write_text(json.dumps(found))
        return path

    return write


@pytest.mark.parametrize(
    "task, metric, value, n",
    [
        ("toy_choice", "acc,none", 3 / 7, 7),
        ("toy_choice", "acc_norm,none", 2 / 7, 7),
        ("toy_group", "acc,none", 0.5, 14),
        ("toy_write", "exact_match,strict-match", 0.0, 3),
        ("toy_write", "exact_match,flexible-extract", 1.0, 3),
    ],
)
def test_value_and_problems(recorded, task, metric, value, n):
    assert read_score(recorded(), HarnessTask(task=task, metric=metric)) == (value, n)


@pytest.mark.parametrize(
    "task, metric, change, words",
    [
        ("toy", "acc,none", (), r"no results of the task 'toy'; found \['toy_choice', 'toy_group', 'toy_tag', 'toy_w"),
        ("toy_choice", "acc", (), r"toy_choice has no metric 'acc'; found \['acc,none', 'acc_norm,none'\]; take one"),
        ("toy_tag", "acc,none", (), r"found \[\]; 'toy_tag' is a group without a mean of its own"),
        ("toy_choice", "acc_stderr,none", (), r"acc_stderr,none: found 'N/A'; it must be a finite number"),
        ("toy_choice", "acc,none", ("toy_choice", "acc,none", float("nan")), "found nan; it must be a finite number"),
        ("toy_choice", "acc,none", ("toy_choice", "acc,none", True), "found True; it must be a finite number"),
        ("toy_choice", "acc,none", ("toy_choice", "sample_len", 0), "sample_len: found 0; it must be a count"),
        ("toy_choice", "acc,none", ("toy_choice", "sample_len", None), "sample_len: found None; it must be"),
    ],
)
def test_what_is_missing_or_no_figure(recorded, task, metric, change, words):
    path = recorded(*change)
    with pytest.raises(InputError, match=words) as caught:
        read_score(path, HarnessTask(task=task, metric=metric))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"results": {}}', '{"results": 3}'])
def test_a_file_without_results(tmp_path, text):
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no results of lm-eval; remove the file"):
        read_score(path, HarnessTask(task="toy", metric="acc,none"))


@pytest.mark.parametrize("found", ["0.4.12", None])
def test_another_version_is_an_error_that_names_both(monkeypatch, found):
    def version(name):
        if name != "lm_eval" or found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(InputError, match=rf"found {found or 'no lm-eval'} installed.*pip install lm-eval==0\.4\.13"):
        harness.require_harness()


def test_the_version_is_the_one_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"lm-eval=={harness.LM_EVAL}" in project["optional-dependencies"]["components"]


def test_options_that_make_no_sense():
    for values in ({"limit": 0}, {"backend": "openai"}, {"batch_size": "some"}, {"seed": -1}, {"limt": 3}):
        with pytest.raises(ValidationError):
            Harness(**values)
    with pytest.raises(ValidationError):
        HarnessTask(task="", metric="acc,none")


def test_arguments_of_the_backends(tmp_path):
    own = ExtractionOptions(dtype="bfloat16", tensor_parallel_size=4, max_model_len=512, gpu_memory_fraction=0.8)
    hf = backend_arguments(Harness(model_args={"think_end_token": "</think>"}), tmp_path, own)
    assert hf == {
        **{"pretrained": str(tmp_path), "dtype": "bfloat16", "trust_remote_code": False},
        **{"max_length": 512, "think_end_token": "</think>"},
    }
    vllm = backend_arguments(Harness(backend="vllm", seed=7, model_args={"dtype": "float32"}), tmp_path, own)
    assert vllm["tensor_parallel_size"] == 4 and vllm["max_model_len"] == 512 and vllm["seed"] == 7
    assert vllm["dtype"] == "float32" and "quantization" not in vllm
    assert "max_length" not in backend_arguments(Harness(), tmp_path, ExtractionOptions())


# What is kept of an earlier run


@pytest.fixture
def lm_eval(monkeypatch):
    """The harness in place of the real one: `calls` (model, task), `loads`; it dies at the task `dies`."""
    state = SimpleNamespace(calls=[], loads=[], dies=None, chat=[])

    @contextmanager
    def loaded_model(options, folder, own):
        state.loads.append(folder.name)
        yield folder.name

    def evaluate(model, wanted, options, own, manager):
        if wanted.task == state.dies:
            raise KeyboardInterrupt
        state.calls.append((model, wanted.task))
        return copy.deepcopy(FOUND)

    monkeypatch.setattr(harness, "require_harness", lambda: None)
    monkeypatch.setattr(harness, "_index", lambda path: index({"toy.yaml": FOUND["results"]}))
    monkeypatch.setattr(harness, "loaded_model", loaded_model)
    monkeypatch.setattr(harness, "_run_task", evaluate)
    monkeypatch.setitem(sys.modules, "evaluate", SimpleNamespace(load=None))
    return state


TASKS = {
    "a": HarnessTask(task="toy_choice", metric="acc,none"),
    "b": HarnessTask(task="toy_write", metric="exact_match,strict-match"),
}


def run(folders, results, tasks=TASKS, own=None, code="code", **options):
    checkpoints = [(folder.name, folder) for folder in folders]
    extraction = [ExtractionOptions(**(own or {}))] * len(folders)
    return harness_rows(checkpoints, extraction, tasks, Harness(**options), "accuracy", results, code=code)


def test_finished_tasks_survive_a_kill(lm_eval, model_folder, tmp_path):
    folders, results = [model_folder("x"), model_folder("y", seed=1)], tmp_path / "results"
    lm_eval.dies = "toy_write"
    with pytest.raises(KeyboardInterrupt):
        run(folders, results)
    lm_eval.dies = None
    rows = run(folders, results)
    expected = [("accuracy", 3 / 7, 7), ("accuracy", 0.0, 3)]
    assert rows == [(name, task, *values) for name in "xy" for task, values in zip("ab", expected)]
    assert lm_eval.calls == [("x", "toy_choice"), ("x", "toy_write"), ("y", "toy_choice"), ("y", "toy_write")]
    assert run(folders, results) == rows and len(lm_eval.loads) == 3 and len(lm_eval.calls) == 4
    kept = json.loads((results / "y" / "b.json").read_text())
    assert kept["checkpoint"] == "y" and kept["lm_eval_version"] == "0.4.13"


@pytest.mark.parametrize(
    "changes, again",
    [
        ({"limit": 3}, 2),
        ({"seed": 7}, 2),
        ({"generation": {"temperature": 0.6}}, 2),
        ({"model_args": {"think_end_token": "x"}}, 2),
        ({"own": {"dtype": "bfloat16"}}, 2),
        ({"own": {"chat_template": True}}, 2),
        ({"tasks": {"a": TASKS["a"], "b": TASKS["b"].model_copy(update={"num_fewshot": 3})}}, 1),
        ({"tasks": {**TASKS, "b": HarnessTask(task="toy_write", metric="exact_match,flexible-extract")}}, 0),
        ({"code": "other code"}, 2),
        ({"batch_size": 4}, 0),  # another rounding, the same figures
        ({"own": {"tail_tokens": 5, "tensor_parallel_size": 2}}, 0),  # not the harness's
    ],
)
def test_only_what_changes_a_figure_makes_it_again(lm_eval, model_folder, tmp_path, changes, again):
    folder = model_folder()
    run([folder], tmp_path / "results")
    lm_eval.calls.clear()
    run([folder], tmp_path / "results", **changes)
    assert len(lm_eval.calls) == again


def test_other_weights_and_other_tasks_of_ones_own_are_made_again(lm_eval, model_folder, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "toy.yaml").write_text("task: toy")
    options = {"include_path": own}
    run([model_folder()], tmp_path / "results", **options)
    run([model_folder()], tmp_path / "results", **options)
    assert len(lm_eval.calls) == 2
    run([model_folder(seed=5)], tmp_path / "results", **options)
    assert len(lm_eval.calls) == 4
    (own / "toy.yaml").write_text("task: toy2")
    run([model_folder(seed=5)], tmp_path / "results", **options)
    assert len(lm_eval.calls) == 6


def test_nothing_runs_where_a_folder_or_a_name_is_wrong(lm_eval, model_folder, tmp_path):
    wrong = {**TASKS, "c": HarnessTask(task="toy_choise", metric="acc,none")}
    with pytest.raises(InputError, match=r"task c: lm_eval\.task: .*'toy_choise'; close to it: \['toy_choice'"):
        run([model_folder()], tmp_path, wrong)
    with pytest.raises(InputError, match="no such folder"):
        run([model_folder(), tmp_path / "none"], tmp_path)
    with pytest.raises(InputError, match="include_path: no folder"):
        run([model_folder()], tmp_path, include_path=tmp_path / "none")
    assert lm_eval.loads == []


class StandIn:
    """In the place of lm-eval: notes, when a model is made, which of those before are gone."""

    def __init__(self, monkeypatch):
        self.models, self.gone, self.fails, self.arguments = [], [], False, []
        stand_in = self

        class Model:
            @classmethod
            def create_from_arg_obj(cls, arguments, settings):
                stand_in.gone.append([model() is None for model in stand_in.models])
                stand_in.arguments.append(arguments)
                made = cls()
                made.known_by = [made]  # a cycle, which only the garbage collector frees
                stand_in.models.append(weakref.ref(made))
                return made

        def simple_evaluate(model, **options):
            if stand_in.fails:
                raise ValueError(f"{model} was asked for {options['tasks']}")
            return copy.deepcopy(FOUND)

        registry = SimpleNamespace(get_model=lambda backend: Model)
        packages = {"lm_eval": SimpleNamespace(simple_evaluate=simple_evaluate), "lm_eval.api": SimpleNamespace()}
        packages["evaluate"] = SimpleNamespace(load=None)
        for name, module in {**packages, "lm_eval.api.registry": registry}.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(harness, "require_harness", lambda: None)
        monkeypatch.setattr(harness, "_index", lambda path: index({"toy.yaml": FOUND["results"]}))


@pytest.fixture
def stand_in(monkeypatch):
    gc.disable()  # else it may come by chance
    yield StandIn(monkeypatch)
    gc.enable()


def test_a_model_is_gone_before_the_next_one_is_made(stand_in, model_folder, tmp_path):
    folders = [model_folder(name, seed=seed) for seed, name in enumerate("xyz")]
    run(folders, tmp_path / "results")
    assert stand_in.gone == [[], [True], [True, True]]


def test_a_model_that_failed_is_gone_before_the_next_one_is_made(stand_in, model_folder, tmp_path):
    folders = [model_folder("x"), model_folder("y", seed=1)]
    stand_in.fails = True
    with pytest.raises(ValueError, match="was asked for"):
        run(folders, tmp_path / "results")
    stand_in.fails = False
    run(folders, tmp_path / "results")
    assert stand_in.gone == [[], [True], [True, True]]


def test_the_harness_is_given_the_tokenizer_of_the_file(stand_in, model_folder, tmp_path):
    """The class would build its own pre-tokenizer, which loses the spaces of this text."""
    folder = model_folder()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    run([folder], tmp_path / "results")
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("The cat sat").ids
    assert stand_in.arguments[0]["tokenizer"]("The cat sat")["input_ids"] == expected


def test_a_former_architecture_is_renamed_in_a_folder_of_links(tmp_path, model_folder):
    plain = olmo3_folder(tmp_path / "plain")
    retrofit = retrofit_folder(plain, tmp_path / "retrofit")
    with harness._runnable(retrofit, None) as folder:
        assert {path.name for path in folder.iterdir()} == {path.name for path in retrofit.iterdir()}
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["Olmo3ForCausalLM"]
        assert (folder / "model.safetensors").resolve() == (retrofit / "model.safetensors").resolve()
    assert not folder.exists() and "Retrofit" in (retrofit / "config.json").read_text()
    with harness._runnable(plain, None) as folder:
        assert folder == plain


LOADS = ["trust_remote_code", "pretrained", "tokenizer", "peft", "delta", "device", "revision", "subfolder", "backend"]
LOADS += [
    "gguf_file",
    "lora_local_path",
    "code_revision",
    "tokenizer_mode",
    "device_map",
    "attn_implementation",
    "config",
]
LOADS += [
    "hf_overrides",
    "worker_extension_cls",
    "load_format",
    "download_dir",
    "weights_only",
    "TRUST_REMOTE_CODE",
    "x",
]


@pytest.mark.parametrize("name", LOADS)
def test_arguments_of_a_study_load_nothing_else(name):
    """They would go over the model that was checked, and over the consent to its code."""
    with pytest.raises(ValidationError, match=f"model_args: found '{name}'; possible are "):
        Harness(model_args={name: True})


@pytest.mark.parametrize(
    "path, name",
    [("rouge", "evaluate-metric/rouge"), ("org/rouge", "org/rouge"), ("own", "./own"), ("org/own", "./org/own")],
)
def test_a_metric_is_asked_for_by_what_would_be_loaded(lm_eval, tmp_path, monkeypatch, path, name):
    """A folder of this name here goes before the metric of the hub, whose name may be allowed."""
    for folder in ("own", "org/own"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = []
    with pytest.raises(InputError, match=f"loads the metric {name}, which is code"):
        with harness._metrics_asked_for("toy_choice", asked.append):
            sys.modules["evaluate"].load(path)
    assert asked == [name]


GENERATES = [
    "custom_generate",
    "trust_remote_code",
    "assistant_model",
    "generation_config",
    "cache_implementation",
    "x",
]


@pytest.mark.parametrize("name", GENERATES)
def test_generation_of_a_study_loads_nothing(name):
    """transformers takes the code that generates from a folder or repository, and the consent to it beside that."""
    with pytest.raises(ValidationError, match=f"generation: found '{name}'; possible are "):
        Harness(generation={name: "evil/repo"})


@pytest.mark.parametrize("count", ["many", "9" * 5000, -1, 0, True, 1e17, 10**17])
def test_a_count_of_tokens_is_one(count):
    """Planning takes it for the length of the answers."""
    with pytest.raises(ValidationError, match="generation.max_gen_toks: found .*; it must be a whole number of tokens"):
        Harness(generation={"max_gen_toks": count})


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("lm_eval/tasks/cruxeval/cruxeval_input.yaml", "cruxeval_input"),
        ("lm_eval/tasks/score/math/prompt_robustness_math_algebra.yaml", "prompt_robustness_math_algebra"),
        ("lm_eval/tasks/score/score_robustness.yaml", "score_robustness"),  # a group, with those of score/math
        ("", "longproc_tag"),
    ],
)
def test_tasks_that_run_answers_and_do_not_say_so_need_consent(
    lm_eval, monkeypatch, model_folder, tmp_path, file, name
):
    """lm-eval itself asks only where a task has `unsafe_code`."""
    files = {file: [name], "lm_eval/tasks/longproc/countdown_2k.yaml": ["countdown_2k"]}
    monkeypatch.setattr(harness, "_index", lambda path: index(files))
    tasks = {"a": HarnessTask(task=name, metric="acc,none")}
    with pytest.raises(InputError, match=f"{name}: it runs code that models write, .*PROXYCAST_RUN_PROGRAMS={name} "):
        run([model_folder()], tmp_path, tasks)
    monkeypatch.setitem(FOUND["results"], name, TOY)
    run([model_folder()], tmp_path, tasks, run_unsafe_code=True)
    assert lm_eval.calls == [("model", name)]


def test_tasks_that_run_nothing_need_no_consent():
    files = {"lm_eval/tasks/score/mmlu_pro/a.yaml": ["a"], "lm_eval/tasks/scores/b.yaml": ["b"], "score/c.yaml": ["c"]}
    assert not any(harness.runs_answers(index(files), name) for name in "abc")


@pytest.mark.lm_eval
def test_which_tasks_run_answers_is_known_of_this_version():
    """What runs text, in the code of lm-eval's tasks: either their YAML says so, or RUN_ANSWERS does."""
    import lm_eval.tasks

    tasks = Path(lm_eval.tasks.__file__).parent
    runs = re.compile(r"(?<![\w.])(eval|exec)\(|parse_expr|sympify|Popen|os\.system|pickle\.load")
    found = {path.parent.relative_to(tasks).as_posix() for path in tasks.rglob("*.py") if runs.search(path.read_text())}
    assert found == set(harness.RUN_ANSWERS)
    asks = [
        f"{path.parent.relative_to(tasks).as_posix()}"
        for path in tasks.rglob("*.yaml")
        if "unsafe_code: true" in path.read_text()
    ]
    assert {"humaneval", "mbpp"} <= set(asks)
