"""Compiled layers: numbers as without, one graph for all layers of a kind, and a way back from any fault.

The tests trace for real and run what is traced as it is (`aot_eager` or `eager`), which needs no compiler; those that
are marked `slow` compile C++ with TorchInductor.
"""

import gc
import logging
import weakref

import awkward_models
import numpy as np
import polars as pl
import pytest
import torch
from awkward_models import AWKWARD
from conftest import CONTEXT, tiny_model
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.in_memory import InMemoryEngine
from proxycast.extraction.engines.modules import compiled, padding
from proxycast.extraction.engines.modules.compiled import Compiled, layers_of
from proxycast.extraction.engines.modules.reading import ANY_LENGTH, Reader, Sharing
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.solutions.tokenisation import tokenize
from transformers import Lfm2Config, Lfm2ForCausalLM, RwkvConfig, RwkvForCausalLM

LAYERS = 4
OPTIONS = ExtractionOptions(device="cpu", batch_tokens=300, compile="always")
NUMBERS = ("logprob", "max_logprob", "second_logprob", "entropy")
# Many shapes of batches: widths of 7 to 90 tokens, and one text alone.
TEXTS = [(f"s{i}", "Q: what is 2 plus 3?\nA:" * (i % 3), " The cat sat" * (i % 9 + 1) + str(i)) for i in range(40)]


@pytest.fixture(autouse=True)
def enabled(monkeypatch):
    """vLLM on a CPU, in the same process, has it turned off."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    with torch._dynamo.config.patch(disable=False):
        yield


@pytest.fixture
def backend(monkeypatch):
    """Layers are traced, and run without a compiler; what was compiled before is forgotten."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    yield lambda name: monkeypatch.setattr(compiled, "BACKEND", name)
    torch._dynamo.reset()


@pytest.fixture
def deep(monkeypatch):
    """Awkward models with four layers, so that layers which share no code show."""
    save = awkward_models._save

    def saved(folder, model, config, *rest, **settings):
        if "layer_types" in settings:
            settings["layer_types"] = settings["layer_types"] * 2
        key = "n_layer" if "n_layer" in settings else "num_hidden_layers"
        return save(folder, model, config, *rest, **settings | {key: LAYERS})

    monkeypatch.setattr(awkward_models, "_save", saved)


def statically(function, dynamic, compile=torch.compile, **rest):
    """`torch.compile` that makes code for each shape."""
    return compile(function, dynamic=False, **rest)


def hybrid(seed: int) -> Lfm2ForCausalLM:
    """Two layers of short convolutions and two of attention."""
    torch.manual_seed(seed)
    shape = dict(hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1, vocab_size=352)
    kinds = dict(layer_types=["conv", "full_attention"] * 2, num_hidden_layers=LAYERS)
    return Lfm2ForCausalLM(Lfm2Config(**shape, **kinds, max_position_embeddings=CONTEXT, initializer_range=0.3))


def load(folder, when="always", **options):
    engine = TransformersEngine(OPTIONS.model_copy(update={"compile": when} | options))
    engine.load(folder)
    return engine


def score(engine) -> pl.DataFrame:
    return engine.token_stats(tokenize(TEXTS, engine.tokenizer, engine.context))


def require_alike(found: pl.DataFrame, expected: pl.DataFrame, tolerance: float = 1e-4):
    assert found["key", "position", "token"].equals(expected["key", "position", "token"])
    for name in NUMBERS:
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), atol=tolerance, err_msg=name)


def require_compiled_alike(folders, graphs: int, later: int, **options):
    """Checkpoints one after the other: each has its own numbers, and no other code is made for them."""
    plain, engine = TransformersEngine(OPTIONS.model_copy(update={"compile": "never"})), None
    for number, folder in enumerate(folders):
        engine = engine or load(folder, **options)
        assert engine._compiled.is_on and (number or engine._compiled.graphs == graphs)
        for each in (plain, engine):
            each.load(folder)
        require_alike(score(engine), score(plain))
        assert engine._compiled.is_on and engine._compiled.graphs <= graphs + later
    assert plain._compiled.graphs == 0 and not plain._compiled.is_on
    return engine


@pytest.mark.parametrize("name", ["llama_bos_sentencepiece", "gpt2_tied", "gpt_neox"])
def test_all_layers_share_one_graph_for_one_text_and_one_for_several(name, backend, deep, tmp_path):
    backend("aot_eager")
    folders = [AWKWARD[name](tmp_path / str(seed), seed) for seed in range(2)]
    engine = require_compiled_alike(folders, graphs=2, later=0)
    assert len(engine._compiled._layers) == LAYERS


def test_layers_with_a_window_and_without_share_one_graph(backend, deep, tmp_path):
    require_compiled_alike([AWKWARD["gemma2_softcap"](tmp_path / "0")], graphs=2, later=0)


def test_each_kind_of_layers_has_graphs_of_its_own(backend, deep, tmp_path):
    """One layer without experts, and three with them."""
    require_compiled_alike([AWKWARD["qwen3_moe"](tmp_path / "0")], graphs=2 * 2, later=0)


def test_a_hybrid_has_graphs_for_each_of_its_two_kinds(model_folder, backend):
    require_compiled_alike([model_folder(f"{seed}", model=hybrid(seed)) for seed in range(2)], graphs=2 * 2, later=0)


@pytest.mark.slow
def test_a_loop_over_tokens_is_not_compiled_anew_for_each_text(model_folder, backend, caplog):
    """RWKV without a kernel: the tracer unrolls it."""
    torch.manual_seed(0)
    config = RwkvConfig(vocab_size=352, context_length=CONTEXT, hidden_size=64, num_hidden_layers=2)
    folder = model_folder(model=RwkvForCausalLM(config))
    engine = load(folder)
    assert not engine._compiled.is_on and engine._compiled.graphs <= compiled.MOST_GRAPHS
    assert "run uncompiled" in caplog.text
    assert score(engine).equals(score(load(folder, when="never")))


def test_weights_that_are_loaded_in_place_go_through_the_same_code(model_folder, backend):
    folders = [model_folder(f"step{seed}", seed=seed) for seed in range(4)]
    engine, plain = load(folders[0]), load(folders[0], when="never")
    module = None
    for folder in folders:
        for each in (engine, plain):
            each.load(folder)
        require_alike(score(engine), score(plain))
        assert engine._compiled.is_on and engine._compiled.graphs == 2
        module, before = engine._model, module
    assert module is before and engine._keeps_nothing  # the third and the fourth are loaded in place


def test_a_compiled_model_is_freed(model_folder, backend):
    engine = load(model_folder())
    score(engine)
    model, layer = weakref.ref(engine._model), weakref.ref(engine._model.model.layers[0])
    engine.close()
    gc.collect()
    assert model() is None and layer() is None and not engine._compiled.is_on


def test_compiled_layers_are_left_as_they_were(model_folder, backend):
    """Generation, whose batches grow by a token in each step, runs uncompiled."""
    engine = load(model_folder())
    assert all("forward" not in vars(layer) for layer in engine._model.model.layers)
    graphs = engine._compiled.graphs
    texts = engine.generate(["The cat", "Q: what is 2 plus 3?"], 5)
    assert texts == load(model_folder("same"), when="never").generate(["The cat", "Q: what is 2 plus 3?"], 5)
    assert engine._compiled.graphs == graphs


def test_a_tracer_that_is_turned_off_is_told(model_folder, backend, caplog, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    engine = load(model_folder())
    assert not engine._compiled.is_on and "uncompiled, slower on a GPU: TORCHDYNAMO_DISABLE is set" in caplog.text


@pytest.fixture
def errors_hidden():
    """As training leaves torch behind."""
    with torch._dynamo.config.patch(suppress_errors=True):
        yield


@pytest.mark.usefixtures("errors_hidden")
@pytest.mark.parametrize("fault", ["no compiler of C++", "later", "wrong", "for each width", "ahead"])
def test_what_cannot_be_compiled_runs_as_it_is_with_one_warning(fault, model_folder, backend, monkeypatch, caplog):
    folder = model_folder()
    expected = score(load(folder, when="never"))
    look_up, calls = torch._dynamo.lookup_backend, []

    def broken(name):
        def compile_graph(graph, inputs):
            calls.append(name)
            if fault == "no compiler of C++" or (fault == "later" and len(calls) == 3):
                raise RuntimeError("g++ is not here")
            made = look_up(name)(graph, inputs)
            return (lambda *args: tuple(x * 1.01 for x in made(*args))) if fault == "wrong" else made

        return compile_graph

    monkeypatch.setattr(torch._dynamo, "lookup_backend", broken)
    if fault == "for each width":
        monkeypatch.setattr(compiled, "MOST_GRAPHS", 2)
        monkeypatch.setattr(torch, "compile", statically)
    if fault == "ahead":
        monkeypatch.setattr(compiled, "prove", lambda reader: (Sharing(0, False), True))
    engine = load(folder)
    if fault == "later":
        assert engine._compiled.is_on
        torch._dynamo.reset()
    found = score(engine)
    assert not engine._compiled.is_on
    [warning] = [record.message for record in caplog.records if "uncompiled" in record.message]
    said = {
        "no compiler of C++": "g++ is not here",
        "later": "g++ is not here",
        "wrong": "logits differ by",
        "for each width": "2 graphs already, and batches of other sizes need more",
        "ahead": "change each other's numbers",
    }
    assert said[fault] in warning and "LlamaForCausalLM" in warning
    assert found.equals(expected)
    engine.load(model_folder("other", seed=1))  # it is not tried again
    assert not engine._compiled.is_on and len([r for r in caplog.records if "uncompiled" in r.message]) == 1


def test_code_that_is_made_anew_for_each_width_is_not_used(model_folder, backend, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", statically)
    engine = load(model_folder())
    assert not engine._compiled.is_on and engine._compiled.graphs == 3
    assert "compiled anew for each width" in caplog.text


class Chunked(torch.nn.Module):
    """Token ids (b, T) to logits (b, T, 50), by a layer that reads 64 tokens at a time, or all."""

    base_model = None

    def __init__(self, tokens: int):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 8)
        self.layers = torch.nn.ModuleList([ChunkedLayer(tokens)])

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.layers[0](self.embed(token_ids))


class ChunkedLayer(torch.nn.Module):
    def __init__(self, tokens: int):
        super().__init__()
        self.linear, self.tokens = torch.nn.Linear(8, 50), tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x] if self.tokens == 0 else x.split(self.tokens, dim=1)
        return torch.cat([self.linear(part) for part in parts], dim=1)


@pytest.mark.parametrize("tokens, graphs", [(0, 2), (64, 4)])
def test_a_loop_over_chunks_shows_in_wide_texts(tokens, graphs, backend, caplog):
    model, layers = Chunked(tokens).eval(), Compiled("always", torch.device("cpu"))
    layers.attach(model)

    @torch.inference_mode()
    def read(token_ids):
        return layers.run(lambda: model(token_ids))

    reader = Reader(read, torch.arange(50), torch.float32)
    assert layers.begin(reader, Sharing(0), 4096) == (tokens == 0)
    assert layers.graphs == graphs
    assert ("anew for each width" in caplog.text) == (tokens > 0)


def test_memory_that_does_not_suffice_halves_the_batches_of_compiled_layers(model_folder, backend, monkeypatch, caplog):
    folder = model_folder()
    expected, engine, shapes = score(load(folder, when="never")), load(folder), []
    forward = type(engine._model.model).forward

    def limited(self, input_ids, **rest):
        shapes.append(input_ids.shape)
        if input_ids.numel() > 200:
            raise torch.OutOfMemoryError("by hand")
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(type(engine._model.model), "forward", limited)
    require_alike(score(engine), expected)
    assert engine._compiled.is_on and "batch_tokens goes from 300" in caplog.text


def test_a_proof_that_does_not_fit_into_memory_leaves_the_model_as_it_is(model_folder, backend, monkeypatch, caplog):
    def too_large(*_):
        raise torch.OutOfMemoryError("by hand")

    monkeypatch.setattr(compiled, "_texts", too_large)
    engine = load(model_folder())
    assert not engine._compiled.is_on and caplog.text.count("uncompiled") == 1
    assert score(engine).equals(score(load(model_folder(), when="never")))


def test_the_layers_are_those_of_the_text_model():
    largest = torch.nn.ModuleList(
        torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(9, 9)])}) for _ in "ab"
    )
    body = torch.nn.ModuleDict({"vision": torch.nn.ModuleList([torch.nn.Linear(2, 2)]), "text": largest})
    assert layers_of(body) == list(largest) and layers_of(torch.nn.Linear(2, 2)) == []


def test_auto_compiles_where_the_work_pays_for_it(model_folder, backend, monkeypatch):
    engine = load(model_folder(), when="auto")
    engine.expect(10**15)
    assert not engine._compiled.is_on and engine._compiled.graphs == 0  # never on a CPU
    on_gpu = Compiled("auto", torch.device("cuda"))
    on_gpu.attach(engine._model)
    hidden = engine._model.config.hidden_size
    enough = round(compiled.SECONDS_TO_COMPILE / compiled.SECONDS_SAVED / hidden / len(layers_of(engine._model)))
    assert [on_gpu.pays(engine._model, tokens) for tokens in (0, enough // 2, enough * 2)] == [False, False, True]
    monkeypatch.setattr(engine._model, "is_custom_code", lambda: True, raising=False)
    assert not on_gpu.pays(engine._model, enough * 2)  # what the tracer makes of other code nobody has tried
    for when, pays in (("always", True), ("never", False)):
        assert Compiled(when, torch.device("cuda")).pays(engine._model, enough * 2) == pays


def test_work_that_is_announced_compiles_a_loaded_model(model_folder, backend, monkeypatch):
    """The checkpoint that later ones are compared with is read again, by compiled layers."""
    monkeypatch.setattr(Compiled, "pays", lambda self, model, tokens: tokens > 1000)
    folders = [model_folder(f"step{seed}", seed=seed) for seed in range(3)]
    engine = load(folders[0], when="auto")
    before = engine._witness.logits
    engine.expect(10)
    assert not engine._compiled.is_on
    engine.expect(2000)
    assert engine._compiled.is_on and engine._witness.logits is not before
    for folder in folders[1:]:
        engine.load(folder)
        require_alike(score(engine), score(load(folder, when="never")))
    assert engine._keeps_nothing and engine._compiled.graphs == 2


def test_a_model_in_memory_is_never_compiled(model_folder, backend):
    from transformers import AutoTokenizer

    engine = InMemoryEngine(AutoTokenizer.from_pretrained(model_folder()), OPTIONS)
    engine.load(tiny_model())
    engine.expect(10**15)
    score(engine)
    assert not engine._compiled.is_on and engine._compiled.graphs == 0


def test_the_proof_allows_for_the_rounding_of_bfloat16(model_folder, backend):
    backend("aot_eager")
    engine = load(model_folder(), dtype="bfloat16")
    assert engine._compiled.is_on and engine._sharing.mixed_up_to == ANY_LENGTH


# What a batch costs besides


def test_a_pass_makes_no_mask_and_searches_no_packed_texts(model_folder, monkeypatch):
    """So that flash attention can be used, and nothing waits for a GPU."""
    from transformers import masking_utils

    engine, given, searched = load(model_folder(), when="never"), [], []
    attention = torch.nn.functional.scaled_dot_product_attention
    search = masking_utils.find_packed_sequence_indices

    def seen(*args, attn_mask=None, is_causal=False, **rest):
        given.append((attn_mask, is_causal))
        return attention(*args, attn_mask=attn_mask, is_causal=is_causal, **rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", searched.append)
    sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
    begin = {int(sequence.token_ids[0]): sequence for sequence in sequences}  # none begins like another
    assert len(begin) > 1
    engine.token_stats(list(begin.values()))
    assert set(given) == {(None, True)} and searched == []
    monkeypatch.undo()
    with pytest.raises(KeyError), padding.unpacked():
        assert masking_utils.find_packed_sequence_indices is not search
        raise KeyError
    assert masking_utils.find_packed_sequence_indices is search


@pytest.mark.parametrize(
    "lengths, size",
    [
        ([600] * 27, 27),
        ([10000, 10], 1),  # 10,000 tokens of padding
        ([1000, 999, 998, 997, 996, 995, 100], 6),
        ([100, 1, 1, 1], 4),  # few tokens
        ([7], 1),
    ],
)
def test_batches_are_padded_little_or_small(lengths, size):
    assert padding.with_little_padding(lengths) == size


def test_padding_of_documents_of_100_to_600_tokens():
    lengths = sorted(np.random.default_rng(0).integers(100, 601, 1000).tolist(), reverse=True)
    padded = 0
    while lengths:
        size = padding.with_little_padding(lengths[: 16384 // lengths[0]])
        batch, lengths = lengths[:size], lengths[size:]
        padded += batch[0] * size - sum(batch)
    assert padded < 0.02 * 350_000


# TorchInductor


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("name, graphs", [("llama_bos_sentencepiece", 2), ("gpt2_tied", 2), ("lfm2", 4)])
def test_compiled_to_c(name, graphs, deep, tmp_path, model_folder, backend):
    backend("inductor")
    if name == "lfm2":
        folders = [model_folder(f"{seed}", model=hybrid(seed)) for seed in range(2)]
    else:
        folders = [AWKWARD[name](tmp_path / str(seed), seed) for seed in range(2)]
    require_compiled_alike(folders, graphs, later=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu(dtype, deep, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch._dynamo.reset()
    folders = [AWKWARD["llama_bos_sentencepiece"](tmp_path / str(seed), seed) for seed in range(3)]
    engine = load(folders[0], device="cuda", dtype=dtype)
    plain = load(folders[0], when="never", device="cuda", dtype=dtype)
    assert engine._compiled.is_on and engine._compiled.graphs == 2
    for folder in folders:
        for each in (engine, plain):
            each.load(folder)
        require_alike(score(engine), score(plain), 1e-3 if dtype == "float32" else 0.5)
    assert engine._compiled.graphs == 2


@pytest.mark.gpu
def test_no_pass_waits_for_a_gpu(model_folder):
    engine = load(model_folder(), when="never", device="cuda")
    token_ids = torch.zeros(3, 20, dtype=torch.long, device="cuda")
    with torch.inference_mode():
        engine._pass(token_ids)
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine._pass(token_ids)
        finally:
            torch.cuda.set_sync_debug_mode("default")
