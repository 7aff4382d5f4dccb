"""Which engine runs a checkpoint, and with which options: the study's, the corpus's, the checkpoint's own."""

import logging
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from proxycast.engines import ExtractionOptions, ModelOptions, choose_engine, engines_for
from proxycast.options import InputError


def test_a_model_sets_its_own_over_the_studys_options():
    study = ExtractionOptions(engine="vllm", dtype="bfloat16", tail_tokens=7)
    corpus = ModelOptions(tensor_parallel_size=2, dtype="bfloat16")
    checkpoint = ModelOptions(dtype="float32", tensor_parallel_size=1)
    assert study.over(ModelOptions()) == study
    assert study.over(corpus, checkpoint) == ExtractionOptions(engine="vllm", dtype="float32", tail_tokens=7)
    assert study.over(corpus).tensor_parallel_size == 2
    # A default that is set explicitly counts: it takes back what was set before.
    assert study.over(ModelOptions(engine="transformers")).engine == "transformers"


def test_options_that_only_round_differently_keep_finished_parts():
    one = ExtractionOptions().that_change_results()
    assert one == ExtractionOptions(batch_tokens=5, device="cpu", tensor_parallel_size=4).that_change_results()
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
    from proxycast.engines import vllm

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm, "unsupported", lambda folder, options: reason)
    with caplog.at_level(logging.INFO):
        assert choose_engine(ExtractionOptions(engine="auto"), model_folder()).engine == engine
    assert (reason or "vLLM supports the model on this GPU") in caplog.text


def test_checkpoints_with_the_same_options_share_an_engine_and_all_are_checked_first(model_folder):
    folders = [(str(i), model_folder(str(i))) for i in range(3)]
    a, b = ExtractionOptions(), ExtractionOptions(dtype="bfloat16")
    found = engines_for(folders, [a, b, a])
    assert [(options, group) for _, options, group in found] == [(a, [folders[0], folders[2]]), (b, [folders[1]])]
    with pytest.raises(InputError, match="nowhere: no such folder"):
        engines_for([*folders, ("3", Path("nowhere"))], [a, b, a, a])


def test_texts_without_prompts_do_not_go_through_a_chat_template(tmp_path):
    from awkward_models import AWKWARD
    from proxycast.engines import make_engine
    from proxycast.extraction import TokenizedTexts

    engine = make_engine(ExtractionOptions(chat_template=True))
    engine.load(AWKWARD["qwen3_chat"](tmp_path / "chat"))
    texts = {"task": [("a", "What is 2 plus 3?", "five")], "generic_text": [("b", "", "The cat sat on the mat.")]}
    found = TokenizedTexts(texts, chat_template=True).for_engine(engine, texts)
    decoded = {task: engine.tokenizer.decode(sequences[0].token_ids) for task, sequences in found.items()}
    assert decoded["generic_text"] == "The cat sat on the mat."
    assert decoded["task"].endswith("five") and "user\nWhat is 2 plus 3?" in decoded["task"]


def test_vllms_engine_that_ran_out_of_memory_is_gone_before_the_next_one_starts(monkeypatch):
    from proxycast.engines import vllm

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
