"""Released models, reasoning tasks and their studies: each file read by the class that uses it, each N counted."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import polars as pl
import pytest
import yaml
from proxycast import processes
from proxycast.config.corpora import Corpus
from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.config.extraction import ExtractionOptions, Writer
from proxycast.config.models import ReleasedModel
from proxycast.config.tasks import HarnessTask, Rows
from proxycast.config.truth import Harness
from proxycast.solutions.templates import render_solutions
from pydantic import ValidationError

CONFIG = Path(__file__).parents[2] / "config"
MODELS = sorted((CONFIG / "models" / "open_reasoning").glob("*.yaml"))
TASKS = sorted((CONFIG / "tasks" / "reasoning").glob("*.yaml"))
OLMO3 = sorted((CONFIG / "corpora" / "olmo3").glob("*.yaml"))
HARNESS = CONFIG / "harness" / "reasoning"


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def model(**changes) -> ReleasedModel:
    return ReleasedModel(**{"name": "m", "family": "f", "hub": "me/m", "parameters": 9, **changes})


# Models


def test_a_model_without_a_family_is_one_by_itself():
    assert (model().as_corpus().family, model(family=None).as_corpus().family) == ("f", "m")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"folder": "x"}, "exactly one of the two"),
        ({"hub": None}, "exactly one of the two"),
        ({"parameters": None}, "parameters: missing"),
        ({"parameters": 0}, "parameters"),
        ({"hub": "a/b/c"}, "hub"),
        ({"name": "a b"}, "name"),
        ({"memory_gb": 0}, "memory_gb"),
        ({"size": "7B"}, "size"),
    ],
)
def test_a_model_that_makes_no_sense(changes, words):
    with pytest.raises(ValidationError, match=words):
        model(**changes)


def test_a_folder_is_counted_later():
    found = model(hub=None, folder="x", parameters=None)
    assert (found.revision, found.tokens, found.model.model_fields_set) == ("main", None, set())


def test_eighteen_models_of_six_families_and_six_recipes():
    found = [ReleasedModel(**read(path)) for path in MODELS]
    assert [m.name for m in found] == [path.stem for path in MODELS]
    assert Counter(m.family for m in found) == dict.fromkeys(("glm4", "llama3", "olmo3", "phi4", "qwen2.5", "qwen3"), 3)
    assert len({m.recipe for m in found}) == 6 and len({m.hub for m in found}) == 18
    sizes = [m.parameters for m in found]
    assert 0.5e9 < min(sizes) < 0.6e9 * 1.01 and 69e9 < max(sizes) < 70e9
    for m in found:
        assert "Chosen" in m.description and m.tokens > 1e12
        assert 2 * m.parameters / 1e9 + 12 < m.memory_gb < 2.6 * m.parameters / 1e9 + 24
        assert 2 * m.parameters / m.model.tensor_parallel_size < 0.6 * 80e9  # of a GPU's 80 GB


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_parameters_are_those_of_the_formula_above_them(path):
    above = re.search(r"((?:# .*\n)+)parameters: (\d+)\n", path.read_text())
    formula = "".join(line.removeprefix("# ") + " " for line in above[1].splitlines()).rsplit(":", 1)[1]
    assert re.fullmatch(r"[\d *+()]+", formula)
    assert eval(formula) == int(above[2])


# Independent of the formulas: the library builds the shape without memory. One for each kind of block.
SHAPES = {
    "deepseek-r1-distill-qwen-1.5b": ("Qwen2", 28, 1536, 12, 2, 8960, 151936, {}),
    "qwen3-0.6b": ("Qwen3", 28, 1024, 16, 8, 3072, 151936, {"head_dim": 128, "tie_word_embeddings": True}),
    "deepseek-r1-distill-llama-70b": ("Llama", 80, 8192, 64, 8, 28672, 128256, {}),
    "olmo-3-32b-think": ("Olmo3", 64, 5120, 40, 8, 27648, 100278, {}),
    "phi-4-mini-reasoning": ("Phi3", 32, 3072, 24, 8, 8192, 200064, {"tie_word_embeddings": True}),
    "glm-z1-9b": ("Glm4", 40, 4096, 32, 2, 13696, 151552, {"attention_bias": True}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_library(name):
    import torch
    import transformers

    kind, layers, hidden, heads, key_heads, inner, vocabulary, more = SHAPES[name]
    shape = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    shape |= {"num_key_value_heads": key_heads, "intermediate_size": inner, "vocab_size": vocabulary}
    more = {"tie_word_embeddings": False, "pad_token_id": None, **more}
    with torch.device("meta"):
        built = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**shape, **more))
    count = sum(weight.numel() for weight in built.parameters())
    if not more["tie_word_embeddings"]:
        count -= built.get_input_embeddings().weight.numel()
    assert read(CONFIG / "models" / "open_reasoning" / f"{name}.yaml")["parameters"] == count


# Tasks: the name of a file on the hub, a row, what the prompt holds, the answer, texts that give and do not give it.
EXAMPLES = {
    "aime_2025": (
        "test.jsonl",
        {"id": 3, "problem": " Find $x$. ", "answer": "070"},
        ["Find $x$.\n\n", "within \\boxed{}."],
        "70",
        ["So \\boxed{12}, no: \\boxed{070}.", "<think>\\boxed{1}</think>\n\\boxed{ 70 }"],
        ["The answer is 70.", "\\boxed{70}, or \\boxed{71}"],
    ),
    "hmmt_feb_2025": (
        "data/train-00000-of-00001.parquet",
        {"problem_idx": 9, "problem": "Find $r$.", "answer": "\\frac{\\sqrt{3}}{2} "},
        ["Find $r$.\n\n", "within \\boxed{}."],
        "\\frac{\\sqrt{3}}{2}",
        ["$\\boxed{5}$ hence $\\boxed{\\frac{\\sqrt{3}}{2}}$"],
        ["\\boxed{\\frac{\\sqrt{3}}{2}} or \\boxed{1}"],
    ),
    "gpqa_diamond": (
        "test/gpqa_diamond.parquet",
        {"question": "Which?\n\nA. one\nB. two\nC. three\nD. four", "answer": "C"},
        ["Which?\n\nA. one", "The answer is (X)"],
        "C",
        ["the answer is (A)? No.\nThe answer is (C).", "The answer is **C**"],
        ["The answer is (C). Or: the answer is D", "C"],
    ),
    "mmlu_pro": (
        "data/test-00000-of-00001.parquet",
        {
            "question_id": 70,
            "question": "Which?",
            "options": ["one", "two ", "three"],
            "answer": "B",
            "answer_index": 1,
        },
        ["Which?\n\nA. one\nB. two\nC. three\n\nReason"],
        "B",
        ["The answer is (B)"],
        ["The answer is (A)"],
    ),
    "supergpqa": (
        "SuperGPQA-all.jsonl",
        {"uuid": "f0", "question": "Which?", "options": ["one", "two"], "answer": "one", "answer_letter": "A"},
        ["Which?\n\nA. one\nB. two\n\nReason"],
        "A",
        ["The answer is A."],
        ["The answer is about one"],
    ),
    "usaco": (
        "data/test-00000-of-00001.parquet",
        {"id": "1_bronze", "question": "Count cows. ", "input_output": "{}", "difficulty": "bronze"},
        ["Count cows.\n\n", "```python"],
        "python",
        ["First\n```cpp\nint\n```\nthen\n```python\nprint(1)\n```\n"],
        ["```python\nprint(1)", "```python\nprint(1)\n```\nor\n```cpp\nint\n```"],
    ),
}


def test_every_task_has_an_example():
    assert [path.stem for path in TASKS] == sorted(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_row_becomes_a_problem_with_an_answer(name, tmp_path):
    file, row, parts, answer, right, wrong = EXAMPLES[name]
    settings = read(CONFIG / "tasks" / "reasoning" / f"{name}.yaml")
    rows = Rows(**settings["rows"])
    assert settings["name"] == name and rows.matches(file) and not rows.matches("README.md")
    path = tmp_path / f"rows{Path(file).suffix}"
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pl.DataFrame([row]).write_parquet(path)
    [problem] = render_solutions([path], rows, name)
    assert all(part in problem.prompt for part in parts) and problem.answer == answer and problem.choices is None
    assert getattr(problem, "solution", None) is None
    pattern = re.compile(settings["answer_pattern"])

    def found(text: str) -> str | None:
        match = pattern.search(text)
        return match and match[1].strip()

    assert [found(text) for text in right] == [answer] * len(right)
    assert answer not in [found(text) for text in wrong]


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_the_harness_has_or_is_given_the_task(path):
    wanted = HarnessTask(**read(path)["lm_eval"])
    own = {read_harness(file)["task"]: read_harness(file) for file in HARNESS.glob("*.yaml")}
    assert (wanted.task in own) == (path.stem in ("hmmt_feb_2025", "supergpqa", "usaco"))
    if wanted.task in own:
        metric, name = wanted.metric.split(",")
        filters = [entry["name"] for entry in own[wanted.task].get("filter_list", [])] or ["none"]
        assert metric == own[wanted.task]["metric_list"][0]["metric"] and name in filters
        assert own[wanted.task]["dataset_path"] == read(path)["rows"]["hub"]


def read_harness(path: Path) -> dict:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    return yaml.load(path.read_text(), Loader)


# The judge of programs


@pytest.fixture(scope="module")
def judge():
    spec = importlib.util.spec_from_file_location("usaco", HARNESS / "usaco.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SECONDS = 1
    return module


SUM = "print(sum(map(int, input().split())))"


@pytest.mark.parametrize(
    "answer, solved",
    [
        (f"Add them.\n```python\n{SUM}\n```", 1),
        (f"```python\nprint(0)\n```\nNo:\n```python\n{SUM}\n```\nDone.", 1),
        (f"```python\n{SUM}\n```\nNo:\n```python\nprint(3)\n```", 0),  # right for one test only
        ("```python\nwhile True: pass\n```", 0),
        (f"```python\nimport time\ntime.sleep(5)\n{SUM}\n```", 0),
        (f"```python\nimport mmap\nx = mmap.mmap(-1, 3 << 30)\n{SUM}\n```", 0),
        (f"```python\n{SUM}\nraise SystemExit(1)\n```", 0),
        (SUM, 0),
        ("", 0),
    ],
)
def test_programs_are_judged_by_all_tests(judge, answer, solved, monkeypatch):
    if "sleep" in answer:
        monkeypatch.setattr(judge, "WALL_SECONDS", 2)
    tests = {"inputs": ["1 2\n", "5 6\n"], "outputs": ["3\n", " 11"]}
    assert judge.process_results({"input_output": json.dumps(tests)}, [answer]) == {"solved": solved}


@pytest.fixture(params=["in namespaces", "without"])
def sandbox(judge, request, monkeypatch):
    """The judge where the user may have namespaces, and where not."""
    if request.param == "without":
        monkeypatch.setattr(judge, "namespaces", lambda: ())
    elif not judge.namespaces():
        pytest.skip("no namespaces here")
    return judge


def test_a_busy_machine_is_no_fault_of_a_program(sandbox):
    """Time is that of a processor: the program waits as it would for one."""
    assert sandbox.passes(f"import time\ntime.sleep(3 * {sandbox.SECONDS})\n{SUM}", "1 2", "3")


def test_a_program_has_no_environment(sandbox, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    said = "import os, sys; print(sorted(k for k in os.environ if k != 'LC_CTYPE'), os.listdir('.'))"
    assert sandbox.passes(said, "", "[] ['program.py']")
    assert sandbox.passes("import os; print(len(os.listdir('/proc/self/fd')))", "", "4")  # with that of the folder


def test_programs_run_in_the_python_of_a_module(sandbox, python_of_a_module):
    assert sandbox.passes("import os; print('LD_LIBRARY_PATH' in os.environ)", "", "True")


def test_programs_may_have_threads_whatever_else_the_user_runs(sandbox):
    """The kernel's limit counts all processes and threads of a user: those of the models' job, too."""
    resting = threading.Event()
    threads = [threading.Thread(target=resting.wait) for _ in range(sandbox.PROCESSES + 10)]
    try:
        for thread in threads:
            thread.start()
        most = "import resource; print(resource.getrlimit(resource.RLIMIT_NPROC)[0] > 42 + 32)"
        assert sandbox.tasks() > 42 and sandbox.passes(most, "", "True")
    finally:
        resting.set()
        for thread in threads:
            thread.join()
    deep = f"import threading\nthreading.stack_size(1 << 26)\nthreading.Thread(target=lambda: {SUM}).start()"
    assert sandbox.passes(deep, "1 2", "3")


@pytest.mark.parametrize("most", [["NPROC", 40], ["AS", 900 << 20], ["FSIZE", 8 << 20]])
def test_limits_of_the_site_stay(judge, most):
    """A limit that is lower already cannot be set to a higher one; the program runs within it."""
    name, value = most
    program = f"""
import resource, runpy, sys
usaco = runpy.run_path({judge.__file__!r})
number = resource.RLIMIT_{name}
resource.setrlimit(number, ({value}, {value}))
sys.exit(not usaco["passes"]({SUM!r}, "1 2", "3"))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=60).returncode == 0


def test_a_program_in_namespaces_sees_no_process_network_or_right(judge, monkeypatch):
    if not judge.namespaces():
        pytest.skip("no namespaces here")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    environs = """
import glob
for path in glob.glob("/proc/[0-9]*/environ"):
    try: print("hf_secret" in open(path).read())
    except OSError: pass
"""
    assert judge.passes(environs + "print(len(glob.glob('/proc/[0-9]*')) <= 3)", "", "False True")
    interfaces = "import socket; print([name for _, name in socket.if_nameindex()])"
    assert judge.passes(interfaces, "", "['lo']")
    rights = "print(sum(int(line.split()[1], 16) for line in open('/proc/self/status') if line.startswith('Cap')))"
    assert judge.passes(rights, "", "0")


LEFT_BEHIND = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({pids!r}, "w").write("x")
        time.sleep(600)
    os._exit(0)
while not os.path.exists({pids!r}): time.sleep(0.01)
{then}
"""


@pytest.mark.parametrize("then", ["", "time.sleep(600)", "os._exit(1)"])
def test_what_a_program_starts_ends_with_it(sandbox, tmp_path, then, monkeypatch):
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 4)
    before = set(processes.descendants(os.getpid()))
    sandbox.passes(LEFT_BEHIND.format(pids=str(tmp_path / "pids"), then=then), "", "")
    assert (tmp_path / "pids").exists() and set(processes.descendants(os.getpid())) <= before
    alive = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"-I\0program.py" in read_bytes(path)]
    assert not alive


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.parametrize(
    "program",
    [
        "while True: print('x' * 1_000_000)",
        "open('big', 'wb').truncate(1 << 40)",
        "import sys\nwhile True: sys.stderr.write('x' * 1_000_000)",
        "[open('program.py') for _ in range(1000)]",
        "x = bytearray(2 << 30)",
        "import os, time\nfor _ in range(200):\n    if not os.fork(): time.sleep(600)\ntime.sleep(600)",
        "import os\nos.kill(os.getppid(), 9)\nimport time; time.sleep(600)",
        "\x00",
        "\udcff",
        "x = '" + "y" * 3_000_000 + "'\nraise SystemExit(1)",
    ],
)
def test_limits_of_a_program(sandbox, program, monkeypatch):
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 2)
    begun = time.monotonic()
    assert not sandbox.passes(program, "", "")
    assert time.monotonic() - begun < 20
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"-I\0program.py" in read_bytes(path)]


def test_large_inputs_and_outputs_of_a_program_pass(sandbox):
    text = "12345 " * 500_000
    assert sandbox.passes("print(input())", text, text)


# Studies and training runs


def test_runs_of_olmo3_name_revisions_that_exist():
    entries = {}
    for path in OLMO3:
        corpus = Corpus(**read(path))
        assert corpus.name == path.stem and corpus.family == "olmo3"
        entries[corpus.name] = [spec for entry in corpus.checkpoints for spec in entry.expand(None, [], None)]
    pretraining = entries["olmo3-7b-pretraining"]
    assert [spec.step for spec in pretraining] == sorted({spec.step for spec in pretraining})
    assert pretraining[0].revision == "stage1-step4000" and pretraining[-1].revision == "stage1-step1413814"
    assert all(spec.step % 1000 == 0 for spec in pretraining[:-1])
    assert sum(spec.step <= 80_000 for spec in pretraining) == 20
    assert all(
        fnmatch(spec.revision, "step_????") and int(spec.revision[5:]) == spec.step and spec.step % 25 == 0
        for spec in entries["olmo3-7b-think-rl"]
    )
    assert entries["olmo3-7b-think-rl"][-1].revision == "step_1375"
    assert {spec.revision for spec in entries["olmo3-7b-think-sft"]} <= {f"step{n}000" for n in range(1, 44)}


@pytest.mark.parametrize("name", ["forecasting", "forecasting_think"])
def test_studies_of_forecasting_have_truth_at_every_horizon(name):
    study = read(CONFIG / f"{name}.yaml")
    options = ForecastingOptions(**study["forecasting"])
    [corpus] = study["corpora"]["olmo3"]
    entries = Corpus(**read(CONFIG / "corpora" / "olmo3" / f"{corpus}.yaml")).checkpoints
    steps = [spec.step for entry in entries for spec in entry.expand(None, [], None)]
    assert sum(step <= options.fit_up_to_step for step in steps) >= 6
    for horizon in options.horizons:
        wanted = horizon * options.fit_up_to_step
        assert any(abs(step - wanted) <= options.horizon_tolerance * wanted for step in steps), horizon
    check_keys(study)


def test_the_study_of_models_is_whole():
    study = read(CONFIG / "model_selection.yaml")
    assert list(study["writers"]) == ["kimi-k2.5", "minimax-m2.5", "qwen3-next-80b"]
    assert ModelSelectionOptions(**study["model_selection"]).numbers == (10, 30, 100)
    assert (study["models"], study["tasks"]) == ({"open_reasoning": "all"}, {"reasoning": "all"})
    check_keys(study)


def check_keys(study: dict) -> None:
    """Every group of keys by the class that reads it."""
    Rows(**study["generic_text"])
    extraction = ExtractionOptions(**study["extraction"])
    writers = [Writer(**writer) for writer in study.get("writers", {}).values()]
    for writer in writers:
        assert writer.max_new_tokens < writer.model.max_model_len and writer.hub
    if "lm_eval" in study["target"]:
        harness = Harness(**study["target"]["lm_eval"])
        assert harness.run_unsafe_code and (CONFIG.parent / harness.include_path) == HARNESS
        # Left for the question: lm-eval gives the rest of the context to the answer.
        assert extraction.max_model_len - harness.generation["max_gen_toks"] >= 4096
