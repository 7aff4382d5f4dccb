"""Rows of several texts: no longer than a model has proven to read them, and a broken one makes no process wait."""

import numpy as np
import pytest
import torch
from conftest import tiny_model
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction import packed_texts
from proxycast.extraction.engines.in_memory import InMemoryEngine
from proxycast.extraction.engines.modules import reading
from proxycast.extraction.shared_prompts import Cost
from test_shared_prompts import Reads, apart, loaded, require_same, scored
from transformers import GPTNeoConfig, GPTNeoForCausalLM, Llama4ForCausalLM, Llama4TextConfig


@pytest.fixture(autouse=True)
def a_row_is_cheapest(monkeypatch):
    monkeypatch.setattr(packed_texts, "pass_cost", lambda model: Cost(1e4, 100))


def short_choices(question=8, choices=30, own=8, seed=0):
    """Choices behind one question, which are cheapest as one row, far longer than any of them."""
    random = np.random.default_rng(seed)
    prompt = random.integers(1, 90, question)
    texts = [np.concatenate([prompt, random.integers(1, 90, own)]) for _ in range(choices)]
    return [scored(token_ids, question, key=str(i)) for i, token_ids in enumerate(texts)]


def counts_by_row(kind):
    """A model whose attention counts tokens in the row, whatever their positions are: 24 and 64 tokens matter."""
    shape = dict(vocab_size=352, hidden_size=64, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    match kind:
        case "gpt_neo_window":
            layers = dict(num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]])
            return GPTNeoForCausalLM(GPTNeoConfig(**shape, **layers, max_position_embeddings=256, window_size=24))
        case "gpt_neo_context":
            layers = dict(num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]])
            return GPTNeoForCausalLM(GPTNeoConfig(**shape, **layers, max_position_embeddings=64, window_size=64))
        case "llama4_temperature":
            layers = dict(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
            experts = dict(intermediate_size=64, intermediate_size_mlp=64, num_local_experts=2)
            scale = dict(attn_temperature_tuning=True, floor_scale=64, no_rope_layers=[1, 0, 1, 0])
            return Llama4ForCausalLM(
                Llama4TextConfig(**shape, **layers, **experts, **scale, max_position_embeddings=256)
            )
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["gpt_neo_window", "gpt_neo_context", "llama4_temperature"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_is_no_longer_than_attention_that_counts_in_it_allows(model_folder, monkeypatch, kind, dtype):
    if dtype == "float32":  # in bfloat16 the proof sees less, and the configuration tells
        monkeypatch.setattr(reading, "longest_row", lambda _: reading.ANY_LENGTH)
    engine = loaded(model_folder(model=counts_by_row(kind)), dtype=dtype)
    sequences = short_choices()
    assert all(family.width(sequences) <= 64 for family in engine._plan(sequences)[0])
    require_same(engine.token_stats(sequences), apart(engine, sequences), 1e-4 if dtype == "float32" else 0.1)


def test_a_long_row_is_proven_once(model_folder):
    engine, sequences = loaded(model_folder()), short_choices()
    [family] = engine._plan(sequences)[0]
    assert family.width(sequences) > 200 and engine._alike.proven_width > 200
    reads = Reads(engine)
    engine._plan(sequences)
    assert reads.tokens() == 0
    require_same(engine.token_stats(sequences), apart(engine, sequences))


@torch.inference_mode()
def test_a_broken_text_of_a_part_makes_no_process_wait(monkeypatch):
    """What is read again for it concerns this process: the others are in the gathering already."""
    broken, asked = tiny_model(), []
    engine = InMemoryEngine(None, ExtractionOptions(batch_tokens=400))
    engine.load(broken)
    engine._plan(short_choices())  # proven while nothing is broken
    with torch.no_grad():
        broken.lm_head.weight[3] = torch.nan
    engine.load(broken)
    engine.divide(0, 2)

    def gather(found, own):
        asked.append("gather")
        found[:] = own, ([], None)  # the other one has nothing

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda plans: asked.append("broadcast"))
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    columns, _ = engine._scored(short_choices(), ())
    assert asked == ["broadcast", "gather"] and np.isnan(columns[:4]).any()
    assert engine._scored([], ())[0].shape == (6, 0)
