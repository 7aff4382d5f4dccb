"""Tiny tokenizers and models that several test modules share, and how tests of components are left out.

A test that needs what proxycast itself does not is marked with the component's name: a package; `slurm`, the local
Slurm of components/slurm-local.sh; `browser`, Debian's Chromium and what drives it; `compiler`, one of C++; or
`published`, the folder of measurements that others published, beside the project or where PROXYCAST_PUBLISHED says.
Without the component it is skipped, and a line at the end tells how many were. With `--require-components`, as in CI,
it fails.
"""

import fcntl
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from proxycast.extraction.engines.vllm_support import prepare_environment
from proxycast.jobs import attempts_file, identity_file
from proxycast.weights import model_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

if TYPE_CHECKING:  # the process that hands tests to others needs neither torch nor transformers, which take seconds
    from transformers import PreTrainedTokenizerFast

pytest.register_assert_rewrite("browser", "page_numbers")  # what they compare stands in their errors
settings.register_profile("no deadline", deadline=None)  # a test's time says nothing on a shared machine
settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_known_of_models():
    """Tests in this process read each config.json themselves; Snakemake's processes may know it from earlier ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_config, "_key", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def vllm_imported():
    """What vLLM imports is no garbage, even where it says so itself: each engine collects six times, from start to end.

    Neither may it call an engine no garbage, which would stay for ever.
    """
    prepare_environment()
    import vllm.entrypoints.llm
    import vllm.model_executor.models.llama
    import vllm.v1.worker.cpu_worker  # noqa: F401

    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("freeze", "unfreeze"):
            patch.setattr(gc, name, lambda: None)
        yield


@pytest.fixture(scope="module")
def browser():
    """Chromium, for tests with the mark `browser`. No asyncio loop can start in this thread until the module ends."""
    from browser import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture
def python_of_a_module(tmp_path, monkeypatch):
    """A Python that starts only where LD_LIBRARY_PATH leads to its library, as one that a cluster's module brings."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    python = tmp_path / "python of a module"
    python.write_text(f'#!/bin/sh\n[ "$LD_LIBRARY_PATH" = "{tmp_path}" ] && exec {sys.executable} "$@"\nexit 127\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


ROOT = Path(__file__).parents[1]
PUBLISHED = Path(os.environ.get("PROXYCAST_PUBLISHED", ROOT.parent / "shared" / "published"))
PACKAGES = ("vllm", "lm_eval", "triton", "olmo")
BROWSER = ("playwright", "axe_playwright_python")  # drive Chromium, and hold axe-core
# What is missing without the component, and what to do about it.
COMPONENTS = {
    **{name: (f"the package {name}", ".ci/run installs it") for name in PACKAGES},
    "browser": ("Debian's chromium, playwright or axe-playwright-python", ".ci/run installs them"),
    "slurm": ("the Slurm of tests/components/slurm-local.sh", ".ci/run starts it"),
    "compiler": ("a compiler of C++ (c++ or g++)", "the system's packages have one"),
    "published": (f"the folder {PUBLISHED}", "PROXYCAST_PUBLISHED names another one"),
}
LONGEST = ("test_workflow.py", "test_studies.py", "test_vllm.py", "test_stale.py", "test_tutorials.py")
LONGEST += ("test_data_selection_figures.py", "test_text_training.py", "test_corpora_sections.py")
LONGEST += ("test_forecast_methods.py", "test_engine_transformers.py", "test_miniature_training.py")
NOT_RUN, SLOW = "not run", "slow"
SLURM_CONF = Path("/etc/slurm/slurm.conf")


def pytest_addoption(parser):
    parser.addoption("--require-components", action="store_true", help="fail where a component is not installed")


def pytest_configure(config):
    for name in PACKAGES:
        config.addinivalue_line("markers", f"{name}: needs the package {name}")
    config.addinivalue_line(
        "markers", "slurm: disturbs the Slurm of components/slurm-local.sh; only with --dist loadscope"
    )
    config.addinivalue_line("markers", "browser: opens pages in Debian's chromium, by playwright, with axe-core")
    config.addinivalue_line("markers", "published: needs the measurements that others published")
    config.addinivalue_line("markers", "compiler: needs a compiler of C++")
    config.addinivalue_line("markers", "gpu: needs a GPU")
    config.addinivalue_line("markers", "slow: takes too long for the suite; only with --require-components")
    config.addinivalue_line("markers", "interpreter: needs Triton's interpreter; test_token_stats.py runs it")


def pytest_collection_modifyitems(items):
    """The longest files first: begun last, one would run alone."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection():
    """While the tests are imported there is no garbage, and to look for it takes a fifth of the time."""
    gc.disable()


def pytest_collection_finish():
    """What was imported stays until the end: nobody who looks for garbage needs to walk through it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def is_there(component: str) -> bool:
    if component == "published":
        return PUBLISHED.is_dir()
    if component == "compiler":
        return bool(shutil.which("c++") or shutil.which("g++"))
    if component == "browser":
        return shutil.which("chromium") is not None and all(map(find_spec, BROWSER))
    if component != "slurm":
        return find_spec(component) is not None
    # Never a cluster that others use.
    is_ours = SLURM_CONF.exists() and "written by slurm-local.sh" in SLURM_CONF.read_text()
    return is_ours and subprocess.run(["sinfo"], capture_output=True).returncode == 0


def pytest_runtest_setup(item):
    required = item.config.getoption("--require-components")
    missing = [name for name in COMPONENTS if item.get_closest_marker(name) and not is_there(name)]
    if missing and required:
        pytest.fail(f"missing: {', '.join(COMPONENTS[name][0] for name in missing)}", pytrace=False)
    # Counted by the first one alone: the lines at the end add up to the tests that did not run.
    if missing:
        skip_and_count(item, missing[0])
    if not required and (item.get_closest_marker("slow") or item.get_closest_marker("slurm")):
        skip_and_count(item, SLOW)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU")


def skip_and_count(item, why: str) -> None:
    item.user_properties.append((NOT_RUN, why))  # reaches the process that prints the summary
    pytest.skip(f"missing: {COMPONENTS[why][0]}" if why in COMPONENTS else "takes too long for the suite")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A file that needs a package at its top skips itself: with --require-components that is an error, too."""
    report = yield
    if report.skipped and collector.config.getoption("--require-components"):
        report.outcome, report.longrepr = "failed", f"{collector.nodeid}: {report.longrepr[2]}"
    return report


def pytest_terminal_summary(terminalreporter):
    """A line for each reason why tests did not run."""
    skipped = terminalreporter.stats.get("skipped", [])
    counts = Counter(why for report in skipped for name, why in properties(report) if name == NOT_RUN)
    for name, (thing, remedy) in COMPONENTS.items():
        if counts[name]:
            terminalreporter.line(f"{counts[name]} tests not run: {thing} is missing ({remedy})")
    if counts[SLOW]:
        terminalreporter.line(f"{counts[SLOW]} tests not run: they take minutes (.ci/run runs them)")
    for report in skipped:
        if isinstance(report, pytest.CollectReport):
            terminalreporter.line(
                f"{report.nodeid} not run: {report.longrepr[2].removeprefix('Skipped: ')} (.ci/run runs it)"
            )


def properties(report) -> list[tuple[str, str]]:
    return getattr(report, "user_properties", [])  # a file's report has none


SAMPLE = ["Q: what is 2 plus 3?\nA: 2 plus 3 is five.\n\nThe cat sat on the mat; the hat. é€😀"] * 3
BOS, EOS = "<|bos|>", "<|end|>"
CONTEXT = 256


def byte_level_tokenizer(bos: bool = False, eos: bool = False) -> "PreTrainedTokenizerFast":
    """Byte-level BPE, about 330 tokens; `bos` and `eos` put special tokens in front of and behind each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    template = (BOS + " " if bos else "") + "$A" + (" " + EOS if eos else "")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=template, special_tokens=[(BOS, 0), (EOS, 1)]),
        ]
    )
    return of_transformers(tokenizer)


def metaspace_tokenizer() -> "PreTrainedTokenizerFast":
    """Unigram with SentencePiece's white-space mark and a BOS in front; unknown characters are one token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", BOS, EOS], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return of_transformers(tokenizer, unk_token="<unk>")


def of_transformers(tokenizer: Tokenizer, **special: str) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, **special)


def tiny_model(architecture: str = "llama", vocabulary: int = 352, seed: int = 0, tied: bool = False):
    """A random model with sharp predictions: hidden 64, 2 layers of 2 heads, float32."""
    import torch
    import transformers as library

    shared = dict(vocab_size=vocabulary, tie_word_embeddings=tied, initializer_range=0.3)
    block = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    torch.manual_seed(seed)
    match architecture:
        case "llama":
            config = library.LlamaConfig(**shared, **block, max_position_embeddings=CONTEXT)
            return library.LlamaForCausalLM(config).eval()
        case "gpt2":
            config = library.GPT2Config(**shared, n_embd=64, n_layer=2, n_head=2, n_positions=CONTEXT)
            return library.GPT2LMHeadModel(config).eval()
        case "gpt_neox":
            config = library.GPTNeoXConfig(**shared, **block, max_position_embeddings=CONTEXT)
            return library.GPTNeoXForCausalLM(config).eval()
    raise ValueError(architecture)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> Callable[[dict], Path]:
    """A function: the folder of tiny_model(**kind) and its tokenizer, made once in this process; to be copied."""
    made: dict[tuple, tuple[Path, object]] = {}

    def folder_of(kind: dict) -> Path:
        import torch

        key = tuple(sorted(kind.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny")
            tiny_model(**kind).save_pretrained(folder)
            byte_level_tokenizer().save_pretrained(folder)
            made[key] = folder, torch.get_rng_state()
        folder, state = made[key]
        torch.set_rng_state(state)  # as if the model had been made now
        return folder

    return folder_of


@pytest.fixture
def model_folder(tmp_path, tiny_folders):
    """A function that saves a tiny model and its tokenizer: model_folder(name, **of tiny_model) -> folder."""

    def build(name: str = "model", model=None, tokenizer=None, **kind) -> Path:
        folder = tmp_path / name
        if model is None and tokenizer is None:
            return shutil.copytree(tiny_folders(kind), folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        (model or tiny_model(**kind)).save_pretrained(folder)
        (tokenizer or byte_level_tokenizer()).save_pretrained(folder)
        return folder

    return build


def write_attempt(log: Path, said: str, started: datetime, ended: str = "", slurm_job: str = "") -> None:
    """An attempt of a job on another machine; `ended`: `=== <state> <time>`, as at the end of its log."""
    with attempts_file(log).open("a") as file:
        line = f"=== started {started.isoformat()} on node7, process 12\n"
        begun = dict(state="running", host="node7", process=12, process_start=1, slurm_job=slurm_job or None)
        position = file.tell() + len(line)
        attempt = f"{identity_file(log).stat().st_size if identity_file(log).exists() else 0:016x}"
        record = dict(attempt=attempt, at=started.isoformat(), position=position)
        file.write(f"{line}{said}\n")
    with identity_file(log).open("a") as file:
        file.write(json.dumps(record | begun) + "\n")
    if ended:
        _, state, time = ended.split()
        write_end(log, state, datetime.fromisoformat(time))


def write_end(log: Path, state: str, time: datetime) -> None:
    """The end of the newest attempt of a job."""
    begun = json.loads(identity_file(log).read_text().splitlines()[-1])
    position = attempts_file(log).stat().st_size
    end = dict(attempt=begun["attempt"], at=time.isoformat(), position=position, state=state)
    with identity_file(log).open("a") as file:
        file.write(json.dumps(end) + "\n")
    with attempts_file(log).open("a") as file:
        file.write(f"=== {state} {time.isoformat()}\n")


def copy_project(folder: Path) -> Path:
    """What a user has before the first study: workflow, configuration, profile, Snakefile."""
    for name in ("workflow", "config", "slurm"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy2(ROOT / "Snakefile", folder)
    return folder


def write_json(value: object, path: Path) -> None:
    """JSON is YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_rows(rows: list[dict], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`once(name, make)`: the folder of that name, filled by `make`, for all tests and processes; to be read only."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        project, finished = shared / name / "project", shared / name / "finished"
        project.parent.mkdir(exist_ok=True)
        with project.with_name("lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                shutil.rmtree(project, ignore_errors=True)
                project.mkdir()
                started = time.monotonic()
                make(project)
                print(f"{name}: made in {time.monotonic() - started:.0f} s")
                finished.touch()
        return project

    return made


def finish_smoke(project: Path) -> None:
    copy_project(project)
    if "PROXYCAST_SMOKE" in os.environ:
        for part in (".snakemake/metadata", "results/smoke"):
            shutil.copytree(Path(os.environ["PROXYCAST_SMOKE"], part), project / part, symlinks=True)
    command = [sys.executable, "-m", "snakemake", "--configfile", "config/smoke.yaml", "--cores", "2"]
    run = subprocess.run(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, run.stdout[-5000:]


@pytest.fixture(scope="session")
def smoke(once) -> Path:
    """A project whose smoke study is finished; PROXYCAST_SMOKE may name one that ran already, as in .ci/run."""
    return once("smoke", finish_smoke)


def finished(walk):
    """What a walk of `extraction.sweep` returns, once all of its checkpoints are measured."""
    while True:
        try:
            next(walk)
        except StopIteration as end:
            return end.value
