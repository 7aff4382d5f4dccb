"""Models in memory against the saved checkpoint in the workflow's engine: the same numbers, and nothing is changed."""

import copy
import socket

import numpy as np
import polars as pl
import pytest
import torch
from conftest import CONTEXT, byte_level_tokenizer, tiny_model
from polars.testing import assert_frame_equal
from proxycast import InputError, ModelScoring, score
from proxycast.extraction.engines.in_memory import PRODUCTS, unwrapped
from proxycast.extraction.sweep import EXTRACTED_SCHEMA
from proxycast.solutions.rows import Solution
from scored_models import OPTIONS, SOLUTIONS, of_the_workflow, with_dropout
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_a_model_in_training_has_the_numbers_of_its_saved_checkpoint(architecture, model_folder, tmp_path):
    model = with_dropout(architecture)
    found = score(model, byte_level_tokenizer(), SOLUTIONS, **OPTIONS)
    assert dict(found.schema) == EXTRACTED_SCHEMA
    assert_frame_equal(found, of_the_workflow(model_folder(model=model), tmp_path), check_exact=True)


def test_bfloat16_and_long_texts_in_windows(model_folder, tmp_path):
    long = {"long": [Solution(id="a", prompt="Q", solution=" The cat sat" * 200), *SOLUTIONS["sums"]]}
    folder = model_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    found = score(model, byte_level_tokenizer(), long, tail_tokens=500, max_model_len=64)
    expected = of_the_workflow(folder, tmp_path, "bfloat16", long, tail_tokens=500, max_model_len=64, batch_tokens=None)
    assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu(dtype, model_folder, tmp_path):
    folder = model_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).cuda().train()
    torch.backends.fp32_precision = "tf32"
    random = torch.cuda.get_rng_state()
    try:
        found = score(model, byte_level_tokenizer(), SOLUTIONS, **OPTIONS)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"
    assert torch.equal(random, torch.cuda.get_rng_state())
    assert_frame_equal(found, of_the_workflow(folder, tmp_path, dtype, device="cuda"), check_exact=True)


def test_a_folder_by_its_path(model_folder, tmp_path):
    folder = model_folder()
    found = score(str(folder), SOLUTIONS, device="cpu", **OPTIONS)
    assert_frame_equal(found, of_the_workflow(folder, tmp_path), check_exact=True)
    assert score(folder, SOLUTIONS, checkpoint="mine", **OPTIONS)["checkpoint"].unique().to_list() == ["mine"]


@pytest.mark.vllm
def test_a_folder_by_vllm(model_folder):
    found = score(model_folder(), SOLUTIONS, engine="vllm", **OPTIONS)
    expected = score(model_folder(), SOLUTIONS, **OPTIONS)
    assert_frame_equal(found, expected, abs_tol=1e-4, rel_tol=0)


class Plain(torch.nn.Module):
    """A module as hand-written trainers have it: token ids in, logits out."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, ids):
        return self.inner(ids).logits


def test_a_module_of_no_library_is_read_by_its_logits():
    model, tokenizer = tiny_model("gpt2"), byte_level_tokenizer()
    found = score(Plain(model), tokenizer, SOLUTIONS, max_model_len=CONTEXT, **OPTIONS)
    expected = score(model, tokenizer, SOLUTIONS, **OPTIONS)
    assert found.select("task", "solution", "position", "token").equals(
        expected.select("task", "solution", "position", "token")
    )
    for name in ("logprob", "entropy", "max_logprob"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_weights_that_change_are_seen_and_texts_are_tokenised_once(model_folder, tmp_path, monkeypatch):
    model, tokenizer = with_dropout("gpt2"), byte_level_tokenizer()
    scoring_of = ModelScoring(tokenizer, SOLUTIONS, **OPTIONS)
    first = scoring_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    monkeypatch.setattr("proxycast.extraction.sweep.tokenize", None)
    second = scoring_of(model)
    assert not first.equals(second)
    assert_frame_equal(second, of_the_saved(model, model_folder, tmp_path, monkeypatch), check_exact=True)


def of_the_saved(model, model_folder, tmp_path, monkeypatch) -> pl.DataFrame:
    monkeypatch.undo()
    return of_the_workflow(model_folder(model=model), tmp_path)


# What is as before


def everything_of(model: torch.nn.Module) -> dict:
    """What a training depends on."""
    return {
        "modes": [part.training for part in model.modules()],
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "pointers": [parameter.data_ptr() for parameter in model.parameters()],
        "requires": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
        "random": torch.get_rng_state(),
        "grad": torch.is_grad_enabled(),
        "products": [backend.fp32_precision for backend in PRODUCTS],
        "of all": torch.backends.fp32_precision,
        "autocast": torch.is_autocast_enabled("cpu"),
        "forward": model.forward,
        "hooks": [len(part._forward_hooks) for part in model.modules()],
        "attributes": sorted(vars(model)),
        "buffers": [buffer.clone() for buffer in model.buffers()],
    }


def assert_same(before: object, after: object) -> None:
    if isinstance(before, torch.Tensor):
        assert torch.equal(before, after) and before.dtype == after.dtype
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list):
        assert len(before) == len(after)
        for one, other in zip(before, after):
            assert_same(one, other)
    else:
        assert before == after


def rope_that_grows():
    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    return type(model)(model.config).train()


@pytest.mark.parametrize("model", [with_dropout("gpt2"), rope_that_grows()], ids=["gpt2", "dynamic rope"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed_even_by_a_failure(model, fails, monkeypatch):
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(7)
    settings = tokenizer.backend_tokenizer.to_str()
    model.get_output_embeddings().requires_grad_(False)
    list(model.modules())[-1].eval()  # one part is frozen
    model(torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    before = everything_of(model)
    if fails:
        monkeypatch.setattr("proxycast.extraction.engines.in_memory.InMemoryEngine._score", lambda *_: 1 / 0)
        with pytest.raises(InputError, match="ZeroDivisionError"):
            score(model, tokenizer, SOLUTIONS, **OPTIONS)
    else:
        score(model, tokenizer, SOLUTIONS, **OPTIONS)
    assert_same(before, everything_of(model))
    assert tokenizer.backend_tokenizer.to_str() == settings
    loss = model(torch.arange(9)[None], labels=torch.arange(9)[None]).loss
    loss.backward()  # no tensor of inference is left in the model


def test_what_surrounds_the_call_does_not_change_the_numbers():
    """Autocast, TF32, a forward of accelerate's, no gradients, compiled code and a wrapper."""
    model, tokenizer = with_dropout("llama"), byte_level_tokenizer()
    expected = score(model, tokenizer, SOLUTIONS, **OPTIONS)
    prepared = copy.deepcopy(model)
    prepared._original_forward = prepared.forward
    prepared.forward = torch.autocast("cpu", torch.bfloat16)(prepared.forward)
    forward = prepared.forward
    torch.backends.fp32_precision = "tf32"
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = score(torch.nn.DataParallel(prepared), tokenizer, SOLUTIONS, **OPTIONS)
        assert torch.backends.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"
    assert_frame_equal(found, expected, check_exact=True)
    assert prepared.forward is forward


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_settings_of_the_older_interface_come_back(precision):
    """torch raises an error where the two interfaces to TF32 do not agree."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        score(tiny_model(), byte_level_tokenizer(), SOLUTIONS, **OPTIONS)
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cuda.matmul.allow_tf32 == (precision != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


def test_compiled_code_is_not_run():
    def broken(graph, inputs):
        raise AssertionError("compiled")

    model, tokenizer = with_dropout("llama"), byte_level_tokenizer()
    expected = score(model, tokenizer, SOLUTIONS, **OPTIONS)
    compiled = torch.compile(model, backend=broken)
    assert unwrapped(compiled) is model
    assert_frame_equal(score(compiled, tokenizer, SOLUTIONS, **OPTIONS), expected, check_exact=True)
    model.compile(backend=broken)
    assert_frame_equal(score(model, tokenizer, SOLUTIONS, **OPTIONS), expected, check_exact=True)


# Several processes


def one_of_two(rank: int, port: int, queue, batch_tokens: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    tokenizer = byte_level_tokenizer()
    model = torch.nn.parallel.DistributedDataParallel(with_dropout("gpt2"))
    options = OPTIONS | {"batch_tokens": batch_tokens}
    found = {"shared": score(model, tokenizer, SOLUTIONS, sharded=True, **options)}
    if rank == 0:
        found["alone"] = score(model, tokenizer, SOLUTIONS, **options)
    with torch.no_grad():
        if rank == 1:
            model.module.lm_head.weight.fill_(torch.nan)
    try:
        score(model, tokenizer, SOLUTIONS, sharded=True, **options)
    except InputError as error:
        found["error"] = str(error)
    sharded = torch.distributed.fsdp.fully_shard(
        tiny_model("llama"), mesh=torch.distributed.init_device_mesh("cpu", (2,))
    )
    try:
        score(sharded, tokenizer, SOLUTIONS, sharded=True)
    except InputError as error:
        found["fsdp"] = str(error)
    queue.put((rank, found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_divide_the_solutions_and_each_has_the_whole_table():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=one_of_two, args=(rank, port, queue, 120)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    expected = score(with_dropout("gpt2"), byte_level_tokenizer(), SOLUTIONS, **OPTIONS | {"batch_tokens": 120})
    for table in (found[0]["shared"], found[1]["shared"], found[0]["alone"]):
        assert_frame_equal(table, expected, check_exact=True)
    assert found[0]["error"] == found[1]["error"] and "NaN" in found[0]["error"]
    assert "FSDP" in found[0]["fsdp"] and "FSDP" in found[1]["fsdp"]


# What is refused

SMALL = dict(vocab_size=352, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


@pytest.mark.parametrize(
    "model, said",
    [
        (lambda: tiny_model().model, "found no logits"),
        (lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL)), "predicts no next token"),
        (lambda: T5ForConditionalGeneration(T5Config(vocab_size=352, d_model=32, d_ff=32, num_layers=1)), "next token"),
        (lambda: BertLMHeadModel(BertConfig(**SMALL, is_decoder=False)), "looks ahead"),
        (lambda: torch.nn.Linear(2, 2), "give max_model_len"),
        (lambda: tiny_model().half(), "float16"),
        (lambda: tiny_model().to("meta"), "on meta"),
        (lambda: torch.nn.Identity(), "on no device"),
        (lambda: "owner/name with spaces", "no such folder"),
        (lambda: 7, "found a int"),
    ],
)
def test_models_that_cannot_be_scored(model, said):
    model = model()
    arguments = (SOLUTIONS,) if isinstance(model, str) else (byte_level_tokenizer(), SOLUTIONS)
    with pytest.raises(InputError, match=said) as error:
        score(model, *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, options, said",
    [
        (({},), {}, "found no solution"),
        (({"sums": []},), {}, "task 'sums': found no solution"),
        (({"sums": [{"id": "a"}]},), {}, "task .sums.: found a dict; expected solutions"),
        (([1],), {}, "found a list"),
        (({"sums": [Solution(id="a", prompt="", solution="a")]},), {}, "sums/a: no token is left to score"),
        ((SOLUTIONS,), {"tail_tokens": 0}, "tail_tokens: Input should be greater"),
        ((SOLUTIONS,), {"dtype": "float32"}, "dtype: no option here"),
    ],
)
def test_bad_arguments(arguments, options, said):
    with pytest.raises(InputError, match=said):
        score(tiny_model(), byte_level_tokenizer(), *arguments, **options)


def test_bad_arguments_of_a_folder(model_folder, tmp_path):
    with pytest.raises(InputError, match="trust_remote_code: no option here"):
        score(model_folder(), SOLUTIONS, trust_remote_code=True)
    with pytest.raises(InputError, match="engine: Input should be"):
        score(model_folder(), SOLUTIONS, engine="vlm")
    with pytest.raises(InputError, match="expected task -> solutions"):
        score(model_folder(), byte_level_tokenizer(), SOLUTIONS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="config.json"):
        score(tmp_path / "empty", SOLUTIONS)


def test_a_slow_tokenizer_and_modules_that_read_no_tokens():
    with pytest.raises(InputError, match="give a fast one"):
        score(tiny_model(), object(), SOLUTIONS)
    for module, said in [
        (torch.nn.Linear(2, 2), "cannot read two tokens"),
        (torch.nn.Embedding(352, 7), "looks|token"),
    ]:
        with pytest.raises(InputError, match=said):
            score(module, byte_level_tokenizer(), SOLUTIONS, max_model_len=CONTEXT)
