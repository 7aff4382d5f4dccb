"""Copies of an engine that divide the texts: the same numbers as one, and no copy that outlives its job."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from proxycast import processes
from proxycast.config.extraction import ExtractionOptions, SamplingOptions
from proxycast.extraction.engines import data_parallel
from proxycast.extraction.engines.data_parallel import DataParallelEngine, consecutive
from proxycast.extraction.engines.factory import make_engine
from proxycast.options import InputError
from proxycast.solutions.tokenisation import tokenize
from safetensors.torch import load_file, save_file

OPTIONS = ExtractionOptions(tail_tokens=20, device="cpu", data_parallel_size=2)
TEXTS = [(f"t/{i}", f"Q: what is {i}?\nA:", " the cat sat on the mat." * (1 + i % 7)) for i in range(23)]


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 9))
def test_parts_are_consecutive_and_about_equal(costs, parts):
    slices = consecutive(costs, parts)
    assert [i for part in slices for i in range(len(costs))[part]] == list(range(len(costs)))
    assert len(slices) == parts
    for part in slices:
        assert sum(costs[part]) <= sum(costs) / parts + max(costs, default=0)


@pytest.fixture(scope="module")
def copies():
    engine = make_engine(OPTIONS)
    assert isinstance(engine, DataParallelEngine)
    yield engine
    engine.close()


@pytest.fixture
def single():
    return make_engine(OPTIONS.model_copy(update={"data_parallel_size": 1}))


def test_two_copies_score_and_write_as_one(copies, single, model_folder):
    for seed in (0, 1):
        folder = model_folder(f"m{seed}", seed=seed)
        copies.load(folder)
        single.load(folder)
        assert (copies.context, copies.vocabulary) == (single.context, single.vocabulary)
        assert copies.reads(folder) == (copies.tokenizer, copies.context)
        for texts in (TEXTS, TEXTS[:1], []):
            sequences = tokenize(texts, copies.tokenizer, copies.context, 20)
            assert_frame_equal(copies.token_stats(sequences), single.token_stats(sequences), abs_tol=2e-5)
        prompts = [prompt for _, prompt, _ in TEXTS[:5]]
        assert copies.generate(prompts, 4, ["."]) == single.generate(prompts, 4, ["."])
        options = SamplingOptions(max_new_tokens=4, temperature=1.0)
        assert copies.sample(prompts, options, range(5)) == single.sample(prompts, options, range(5))


def test_each_copy_gets_its_part(copies, model_folder):
    copies.load(model_folder())
    sequences = tokenize(TEXTS, copies.tokenizer, copies.context, 20)
    asked, ask = [], copies._ask
    copies._ask = lambda method, parts: ask(method, asked.extend(parts) or parts)
    try:
        copies.token_stats(sequences)
    finally:
        del copies._ask
    tokens = [sum(len(s.token_ids) for s in part) for part, _ in asked]
    assert len(tokens) == 2 and max(tokens) < 0.6 * sum(tokens)


def test_temperatures_pass_through(copies, single, model_folder):
    copies.load(model_folder())
    single.load(model_folder())
    sequences, grid = tokenize(TEXTS[:4], copies.tokenizer, copies.context, 20), (0.5, 0.7, 1.0, 1.4, 2.0)
    assert_frame_equal(copies.token_stats(sequences, grid), single.token_stats(sequences, grid), abs_tol=2e-5)


def test_an_error_in_a_copy_is_the_errors_own_words(copies, model_folder):
    folder = model_folder("broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][:] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    copies.load(folder)
    sequences = tokenize(TEXTS, copies.tokenizer, copies.context, 20)
    with pytest.raises(InputError, match="broken: the logits of t/0 at position [0-9]+ are NaN or infinite"):
        copies.token_stats(sequences)
    with pytest.raises(RuntimeError, match="in a copy of the engine:\n(.*\n)*.*'nonsense'"):
        copies._ask("nonsense", [(), ()])
    copies.load(model_folder())  # both have answered, and go on
    assert len(copies.token_stats(sequences))


def test_a_copy_that_is_gone_is_named(model_folder):
    engine = make_engine(OPTIONS)
    try:
        engine.load(model_folder())
        sequences = tokenize(TEXTS, engine.tokenizer, engine.context, 20)
        engine._copies[1].process.kill()
        with pytest.raises(RuntimeError, match="copy 2 of 2 of the engine .the processors. ended with signal SIGKILL"):
            engine.token_stats(sequences)
    finally:
        engine.close()
    assert engine._copies == []


def test_an_answer_that_nobody_has_waited_for_is_not_taken_for_the_next_one(model_folder, single):
    engine, folder = make_engine(OPTIONS), model_folder()
    try:
        engine.load(folder)
        single.load(folder)
        sequences = tokenize(TEXTS, engine.tokenizer, engine.context, 20)
        gone = [copy.process for copy in engine._copies]
        with pytest.raises(TypeError, match="pickle"):  # one has been asked, the other has not
            engine._ask("token_stats", [(sequences[:3],), ((i for i in sequences),)])
        assert engine._copies == [] and all(process.poll() is not None for process in gone)
        engine.load(folder)
        assert_frame_equal(engine.token_stats(sequences), single.token_stats(sequences), abs_tol=2e-5)
    finally:
        engine.close()


def test_copies_that_could_not_start_are_started_again(model_folder, monkeypatch, tmp_path):
    (tmp_path / "selectors.py").write_text("a file of the user's, with the name of a module of Python")
    monkeypatch.chdir(tmp_path)
    engine = make_engine(OPTIONS)
    try:
        with monkeypatch.context() as broken:
            broken.setattr(data_parallel, "_threads_of_each", lambda copies: 0)
            with pytest.raises(RuntimeError, match="expects a positive integer"):
                engine.load(model_folder())
        engine.load(model_folder("again"))
    finally:
        engine.close()


JOB = """
import sys, time
from pathlib import Path
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine
engine = make_engine(ExtractionOptions(device="cpu", data_parallel_size=2))
engine.load(Path(sys.argv[1]))
print(*(copy.process.pid for copy in engine._copies), flush=True)
engine._copies[0].pipe.send(("generate", (["Q:"], 1 << 40, ())))  # it computes for good, and hears no pipe
time.sleep(120)
"""


def test_copies_end_with_a_job_that_is_killed(model_folder):
    job = subprocess.Popen([sys.executable, "-c", JOB, model_folder()], stdout=subprocess.PIPE, text=True)
    copies = [int(number) for number in job.stdout.readline().split()]
    assert len(copies) == 2 and all(processes.start_of(copy) for copy in copies)
    job.send_signal(signal.SIGKILL)
    job.wait()
    job.stdout.close()
    deadline = time.monotonic() + 30
    while any(processes.start_of(copy) for copy in copies) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(processes.start_of(copy) for copy in copies)


@pytest.mark.parametrize(
    "visible, tensor_parallel, shares",
    [
        ("0,1,2,3", 1, [("0",), ("1",)]),
        ("4,5,6,7", 2, [("4", "5"), ("6", "7")]),
        ("3", 1, [("3",)]),
        ("GPU-a,GPU-b,GPU-c", 2, [("GPU-a", "GPU-b")]),
    ],
)
def test_each_copy_has_gpus_of_its_own(visible, tensor_parallel, shares, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    options = ExtractionOptions(engine="vllm", data_parallel_size=2, tensor_parallel_size=tensor_parallel)
    assert data_parallel._shares_of_gpus(options) == shares
    assert ("1 instead of 2" in caplog.text) == (len(shares) == 1)
    with pytest.raises(InputError, match=f"takes 8 GPUs .*, and {len(visible.split(','))} are there"):
        data_parallel._shares_of_gpus(options.model_copy(update={"tensor_parallel_size": 8}))
    other = options.model_copy(update={"engine": "transformers", "pipeline_parallel_size": 2})
    assert data_parallel._shares_of_gpus(other) == [(name,) for name in visible.split(",")[:2]]


def test_each_copy_expects_its_share_of_the_tokens(monkeypatch):
    asked = []
    engine = data_parallel.DataParallelEngine(OPTIONS, None)
    engine._copies = [None] * 3
    monkeypatch.setattr(engine, "_ask", lambda *arguments: asked.append(arguments))
    engine.expect(300)
    assert asked == [("expect", [(100,)] * 3)]


def test_results_do_not_depend_on_the_number_of_copies():
    one = OPTIONS.model_copy(update={"data_parallel_size": 1})
    assert OPTIONS.that_change_results() == one.that_change_results()
