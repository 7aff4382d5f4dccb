"""Which engine runs a checkpoint, and with which options: the study's, the corpus's, the checkpoint's own."""

import json
import logging
import shutil
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from proxycast.config.extraction import ExtractionOptions, ModelOptions
from proxycast.extraction.engines.factory import choose_engine, engines_for
from proxycast.options import InputError
from transformers import LlamaConfig, LlamaForCausalLM


def test_a_model_sets_its_own_over_the_studys_options():
    study = ExtractionOptions(engine="vllm", dtype="bfloat16", tail_tokens=7)
    corpus = ModelOptions(tensor_parallel_size=2, dtype="bfloat16")
    checkpoint = ModelOptions(dtype="float32", tensor_parallel_size=1)
    assert study.with_overrides(ModelOptions()) == study
    assert study.with_overrides(corpus, checkpoint) == ExtractionOptions(engine="vllm", dtype="float32", tail_tokens=7)
    assert study.with_overrides(corpus).tensor_parallel_size == 2
    # A default that is set explicitly counts: it takes back what was set before.
    assert study.with_overrides(ModelOptions(engine="transformers")).engine == "transformers"


def test_options_that_only_round_differently_keep_finished_parts():
    one = ExtractionOptions().that_change_results()
    other = ExtractionOptions(batch_tokens=5, device="cpu", compile="never", tensor_parallel_size=4)
    assert one == other.that_change_results()
    for change in (
        {"engine": "vllm"},
        {"dtype": "bfloat16"},
        {"windowing": False},
        {"max_model_len": 9},
        {"leading_space": "keep"},
        {"window_stride": 0.25},
    ):
        assert one != ExtractionOptions(**change).that_change_results()


@pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")
def test_auto_takes_transformers_without_a_gpu_and_says_why(model_folder, caplog):
    with caplog.at_level(logging.INFO):
        chosen = choose_engine(ExtractionOptions(engine="auto", tail_tokens=3), model_folder())
    assert chosen == ExtractionOptions(engine="transformers", tail_tokens=3)
    assert "engine transformers, because no GPU is there" in caplog.text


@pytest.mark.parametrize("reason, engine", [(None, "vllm"), ("vLLM has no architecture X", "transformers")])
def test_auto_on_a_gpu_asks_whether_vllm_supports_the_model(reason, engine, model_folder, caplog, monkeypatch):
    from proxycast.extraction.engines import vllm_support

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm_support, "unsupported", lambda folder, options: reason)
    with caplog.at_level(logging.INFO):
        assert choose_engine(ExtractionOptions(engine="auto"), model_folder()).engine == engine
    assert (reason or "vLLM supports the model on this GPU") in caplog.text


def test_vllm_refuses_float32_on_a_gpu_and_auto_takes_transformers(model_folder, caplog, monkeypatch):
    """Its attention multiplies it in TF32 there."""
    from proxycast.extraction.engines.vllm import VllmEngine

    folder = model_folder()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = "model: dtype float32 by vLLM is not exact on a GPU.* bfloat16.*set extraction.engine .* to transformers"
    with pytest.raises(InputError, match=words):
        VllmEngine(ExtractionOptions(engine="vllm")).check(folder)
    with caplog.at_level(logging.INFO):
        assert choose_engine(ExtractionOptions(engine="auto"), folder).engine == "transformers"
    assert "engine transformers, because dtype float32 by vLLM is not exact on a GPU" in caplog.text


def test_heads_that_the_gpus_cannot_share_are_named_with_what_is_possible(model_folder, monkeypatch):
    from proxycast.extraction.engines import vllm

    monkeypatch.setattr(vllm, "unsupported", lambda folder, options: None)
    shape = dict(hidden_size=192, num_attention_heads=12, num_key_value_heads=4)
    folder = model_folder(model=LlamaForCausalLM(LlamaConfig(vocab_size=400, num_hidden_layers=1, **shape)))
    for size in (1, 2, 4, 12):
        vllm.VllmEngine(ExtractionOptions(engine="vllm", tensor_parallel_size=size)).check(folder)
    for size in (3, 5, 8, 24):  # 3 divides the heads, but not those of keys and values
        words = f"model: tensor_parallel_size: found {size}, which does not divide the model's 12 heads .* 1, 2, 4, 12$"
        with pytest.raises(InputError, match=words):
            vllm.VllmEngine(ExtractionOptions(engine="vllm", tensor_parallel_size=size)).check(folder)


def test_float32_is_multiplied_as_such(monkeypatch):
    """Whatever the environment (an image of NVIDIA's) or other code of the process has set before."""
    from proxycast.extraction.engines.factory import make_engine

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        make_engine(ExtractionOptions(device="cpu"))
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_checkpoints_with_the_same_options_share_an_engine_and_all_are_checked_first(model_folder):
    folders = [(str(i), model_folder(str(i))) for i in range(3)]
    a, b = ExtractionOptions(), ExtractionOptions(dtype="bfloat16")
    found = engines_for(folders, [a, b, a])
    assert [(options, group) for _, options, group in found] == [(a, [folders[0], folders[2]]), (b, [folders[1]])]
    with pytest.raises(InputError, match="nowhere: no such folder"):
        engines_for([*folders, ("3", Path("nowhere"))], [a, b, a, a])


def test_texts_without_prompts_do_not_go_through_a_chat_template(tmp_path):
    from awkward_models import AWKWARD
    from proxycast.extraction.engines.factory import make_engine
    from proxycast.extraction.sweep import TokenizedTexts

    engine = make_engine(ExtractionOptions(chat_template=True))
    engine.load(AWKWARD["qwen3_chat"](tmp_path / "chat"))
    texts = {"task": [("a", "What is 2 plus 3?", "five")], "generic_text": [("b", "", "The cat sat on the mat.")]}
    found = TokenizedTexts(texts, chat_template=True).for_engine(engine, texts)
    decoded = {task: engine.tokenizer.decode(sequences[0].token_ids) for task, sequences in found.items()}
    assert decoded["generic_text"] == "The cat sat on the mat."
    assert decoded["task"].endswith("five") and "user\nWhat is 2 plus 3?" in decoded["task"]


def test_vllm_reads_the_same_files_or_none(model_folder, monkeypatch):
    """transformers takes model.safetensors where it is, vLLM the shards of an index, or else all files."""
    from proxycast.extraction.engines import vllm

    monkeypatch.setattr(vllm, "unsupported", lambda folder, options: None)
    engine = vllm.VllmEngine(ExtractionOptions(engine="vllm"))
    folder = model_folder()
    engine.check(folder)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    with pytest.raises(
        InputError, match=r"found consolidated.safetensors beside model.safetensors; vLLM would read other"
    ):
        engine.check(folder)
    (folder / "consolidated.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="found model-00001-of-00001.safetensors, model.safetensors beside"):
        engine.check(folder)
    (folder / "model.safetensors").unlink()
    engine.check(folder)


class Vllm:
    """Stands for vLLM: an engine's answers are two numbers, which the folder's file `weights` holds.

    `keeps`: places of them that loading in place leaves as they were.
    """

    def __init__(self, monkeypatch, keeps: tuple[int, ...] = (), error: str | None = None):
        from proxycast.extraction.engines import vllm

        world, self.started = self, []

        class LLM:
            def __init__(self, folder, **options):
                assert all(earlier() is None for earlier in world.started)  # a GPU has no room for two
                world.started.append(weakref.ref(self))
                self.weights = np.loadtxt(Path(folder) / "weights")
                core = SimpleNamespace(shutdown=lambda: None)
                self.llm_engine = SimpleNamespace(engine_core=core)

            def collective_rpc(self, name, args=()):
                if name == "proxycast_install":
                    return ["v1"]
                if error:
                    raise RuntimeError(error)
                new = np.loadtxt(Path(args[0]) / "weights")
                new[list(keeps)] = self.weights[list(keeps)]
                self.weights = new

        state = SimpleNamespace(cleanup_dist_env_and_memory=lambda: None)
        modules = {"vllm": SimpleNamespace(LLM=LLM, __version__="0.32.0"), "vllm.distributed.parallel_state": state}
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        engine = vllm.VllmEngine
        monkeypatch.setattr(vllm, "gc", SimpleNamespace(collect=lambda: None))  # a tenth of a second each
        monkeypatch.setattr(vllm, "prepare_environment", lambda: None)  # it would turn compilation off for other tests
        monkeypatch.setattr(vllm, "weight_files", lambda folder: [])
        monkeypatch.setattr(vllm, "caches_prefixes", lambda folder, options: True)
        monkeypatch.setattr(engine, "check", lambda self, folder: None)
        monkeypatch.setattr(engine, "_require_causality", lambda self: None)
        monkeypatch.setattr(vllm.TokenizerCache, "load", lambda self, folder: None)
        monkeypatch.setattr(engine, "_check_prompt", lambda self: (None, np.tile(self._llm.weights, (6, 1))))
        monkeypatch.setattr(engine, "_compare_with_stock", lambda self: self._check_prompt()[1])
        self.engine = engine(ExtractionOptions(engine="vllm"))

    def load(self, folder: Path) -> np.ndarray:
        self.engine.load(folder)
        return self.engine._llm.weights


@pytest.fixture
def checkpoint(tmp_path):
    """A function that makes a folder for `Vllm`: checkpoint(name, weights, architecture)."""

    def make(name: str, *weights: float, architecture: str = "A") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "vocab_size": 9}))
        np.savetxt(folder / "weights", weights)
        return folder

    return make


BROKEN = {
    "keeps one weight": {"keeps": (1,)},
    "keeps all": {"keeps": (0, 1)},
    "raises": {"error": "left the weights of Norm as they were"},
}


@pytest.mark.parametrize("fault", [None, *BROKEN])
def test_loading_in_place_is_used_once_a_new_engine_has_said_the_same(fault, checkpoint, monkeypatch, caplog):
    vllm = Vllm(monkeypatch, **BROKEN.get(fault, {}))
    folders = [checkpoint(str(n), n, 10 + n) for n in range(4)]
    with caplog.at_level(logging.INFO):
        for folder in (*folders, folders[3], *folders):  # as extraction and targets walk them
            assert vllm.load(folder).tolist() == np.loadtxt(folder / "weights").tolist()
    if fault:
        assert len(vllm.started) == 8 and caplog.text.count("so each checkpoint of this architecture gets a new") == 1
        assert fault != "raises" or "vLLM could not load it in place: RuntimeError: left the weights" in caplog.text
    else:
        assert len(vllm.started) == 2 and caplog.text.count("0: loaded in place as by a new engine, 0 nats apart") == 1


def test_checkpoints_that_say_the_same_prove_nothing(checkpoint, monkeypatch):
    vllm = Vllm(monkeypatch, keeps=(0, 1))
    folders = [checkpoint("a", 1, 2), checkpoint("b", 1, 2), checkpoint("c", 5, 6), checkpoint("d", 7, 8)]
    broken = checkpoint("nan", np.nan, np.nan)
    for folder in (folders[0], folders[1], broken, folders[2], folders[3], folders[1]):
        np.testing.assert_array_equal(vllm.load(folder), np.loadtxt(folder / "weights"))
    assert len(vllm.started) == 6 and list(vllm.engine._proven.values()) == [False]


def test_each_architecture_is_proven_and_what_was_proven_stays(checkpoint, monkeypatch):
    vllm = Vllm(monkeypatch)
    one, other = ([checkpoint(f"{a}{n}", n, n, architecture=a) for n in range(5)] for a in "AB")
    for folder in (*one[:3], *other[:2], *one[3:], *other[2:]):
        assert vllm.load(folder).tolist() == np.loadtxt(folder / "weights").tolist()
    # Two engines for A, two for B; one more for A, which then loads in place, and for B, whose proof comes after it.
    assert len(vllm.started) == 6


def test_a_checkpoint_that_has_changed_is_no_proof(checkpoint, monkeypatch):
    vllm = Vllm(monkeypatch)
    folders = [checkpoint(str(n), n, 10 + n) for n in range(4)]
    for folder in folders[:2]:
        vllm.load(folder)
    np.savetxt(folders[0] / "weights", (50, 60))
    for folder in folders[2:]:
        assert vllm.load(folder).tolist() == np.loadtxt(folder / "weights").tolist()
    assert len(vllm.started) == 3  # the fourth is proven with the second


def test_what_a_kernel_lacks_is_said_in_one_line(checkpoint, monkeypatch):
    vllm = Vllm(monkeypatch)

    def fails(self):
        raise NotImplementedError("no such kernel on a CPU")

    monkeypatch.setattr(type(vllm.engine), "_compare_with_stock", fails)
    with pytest.raises(
        InputError,
        match="a: vLLM cannot run this model here: NotImplementedError: no such kernel on a CPU; set extraction.",
    ):
        vllm.load(checkpoint("a", 1, 2))


def test_vllms_engine_that_ran_out_of_memory_is_gone_before_the_next_one_starts(monkeypatch):
    from proxycast.extraction.engines import vllm

    class EngineDeadError(Exception):
        pass

    class Llm:
        def generate(self, prompts, settings, use_tqdm):
            if len(started) == 1:
                raise EngineDeadError("no memory")
            return ["answered"]

    def start(self):
        self._llm = None
        gone.append([llm() is None for llm in started])
        self._llm = Llm()
        started.append(weakref.ref(self._llm))

    errors = SimpleNamespace(EngineDeadError=EngineDeadError)
    modules = {"vllm": SimpleNamespace(SamplingParams=dict), "vllm.v1.engine.exceptions": errors}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm.VllmEngine, "_start", start)
    monkeypatch.setattr(vllm.VllmEngine, "context", 8)
    started, gone = [], []
    engine = vllm.VllmEngine(ExtractionOptions(batch_tokens=64))
    engine._folder = Path("here")
    engine._start()
    assert engine._run([np.arange(3)], [{}]) == ["answered"]
    assert gone == [[], [True]] and engine._batch_tokens == 32
    started.pop()
    engine._batch_tokens = 15
    engine._llm.generate = lambda *_, **__: Llm().generate([], [], False)
    with pytest.raises(InputError, match="here: out of memory at 15 tokens a step, .* no memory; give more GPUs"):
        engine._run([np.arange(3)], [{}])
