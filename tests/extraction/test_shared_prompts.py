"""Texts that begin alike, read together: the same numbers as one by one, fewer tokens, only where that is proven."""

import logging
from unittest.mock import patch

import numpy as np
import pytest
import torch
from awkward_models import AWKWARD
from conftest import CONTEXT, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction import packed_texts
from proxycast.extraction.engines.in_memory import InMemoryEngine
from proxycast.extraction.engines.modules import reading
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.extraction.shared_prompts import (
    MASK_ELEMENTS,
    Cost,
    common_prefix,
    may_skip_prefix,
    plan_families,
    read_tokens,
    sorted_texts,
)
from proxycast.extraction.token_stats import Head
from proxycast.options import InputError
from proxycast.solutions.tokenisation import ScoredSequence, tokenize
from transformers import MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM

COLUMNS = "logprob", "max_logprob", "second_logprob", "entropy"
EAGER = Cost(keys=1e9, a_pass=0)  # all that saves a token is shared


def scored(token_ids, start, stop=None, key="a"):
    stop = stop or len(token_ids)
    return ScoredSequence(key, np.asarray(token_ids, np.int64), start, stop, np.ones(stop - start, np.int32))


def questions(shots=30, asked=6, question=12, choices=4, own=5, vocabulary=90, seed=0):
    """Sequences of choices behind questions behind examples; some choices are one token, some are the same."""
    random = np.random.default_rng(seed)
    examples, found = random.integers(1, vocabulary, shots), []
    for i in range(asked):
        prompt = np.concatenate([examples, random.integers(1, vocabulary, question + i % 3)])
        for j in range(choices):
            token_ids = np.concatenate([prompt, random.integers(1, vocabulary, 1 + i * j % own)])
            found.append(scored(token_ids, len(prompt), key=f"{i}/{j}"))
    return found


def loaded(folder, **options):
    engine = TransformersEngine(ExtractionOptions(device="cpu", **{"batch_tokens": 400} | options))
    engine.load(folder)
    return engine


@pytest.fixture(autouse=True)
def small_calls_share_too(monkeypatch):
    monkeypatch.setattr(packed_texts, "pass_cost", lambda model: EAGER)


def apart(engine, sequences, temperatures=()):
    with patch.object(type(engine), "_plan", lambda self, sequences: ([], list(range(len(sequences))))):
        return engine.token_stats(sequences, temperatures)


def require_same(table, expected, most=1e-4):
    for name in ("key", "position", "token", "bytes", "n_equal"):
        assert table[name].equals(expected[name]), name
    for name in expected.columns:
        if expected[name].dtype.is_float():
            np.testing.assert_allclose(table[name], expected[name], rtol=0, atol=most, err_msg=name)
    # A logit within rounding of the token's own may stand on either side of it.
    assert (table["n_greater"].cast(int) - expected["n_greater"].cast(int)).abs().max() <= 1


def plain_logprobs(model, sequences) -> np.ndarray:
    rows = []
    for s in sequences:
        with torch.no_grad():
            logprobs = model(torch.from_numpy(s.token_ids)[None]).logits[0].log_softmax(-1)
        rows += [logprobs[t - 1, s.token_ids[t]].item() for t in range(s.start, s.stop)]
    return np.array(rows)


class Reads:
    """The shapes of the model's passes."""

    def __init__(self, engine):
        self.shapes = []
        engine._model.base_model.register_forward_pre_hook(
            lambda _, __, given: self.shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )

    def tokens(self) -> int:
        """In the passes since the last call."""
        total = sum(texts * width for texts, width in self.shapes)
        self.shapes.clear()
        return total


# The plan

tokens = st.lists(st.integers(0, 2), min_size=2, max_size=24)


@st.composite
def groups(draw):
    """Sequences that are drawn as a tree: a text begins with a part of an earlier one, or is one again."""
    found = []
    for _ in range(draw(st.integers(1, 14))):
        token_ids = draw(tokens)
        if found:
            earlier = draw(st.sampled_from(found)).token_ids
            token_ids = [*earlier[: draw(st.integers(0, len(earlier)))], *token_ids[draw(st.integers(0, 24)) :]]
            token_ids = token_ids if len(token_ids) > 1 else [0, 1]
        start = draw(st.integers(1, len(token_ids) - 1))
        found.append(scored(token_ids, start, draw(st.integers(start + 1, len(token_ids))), key=str(len(found))))
    return found


costs = st.builds(Cost, st.sampled_from([3.0, 50.0, 1e9]), st.sampled_from([0.0, 1.0, 20.0]))


@given(groups(), costs, st.integers(1, 60), st.sampled_from([5, 1000]))
def test_a_plan_has_each_text_once_and_says_what_it_shares(sequences, cost, budget, longest):
    families = plan_families(sequences, cost, budget, longest)
    together = [i for family in families for i in family.members()]
    assert len(together) == len(set(together))
    assert all(len(sequences[i].token_ids) <= longest for i in together)
    for family in families:
        first = next(family.members())
        for i in family.members():
            assert np.array_equal(*(read_tokens(sequences[at])[: family.prompt] for at in (i, first)))
            assert sequences[i].stop - 1 >= family.prompt
        for batch in family.batches:
            assert len(batch) == 1 or family.tokens(batch, sequences) - family.prompt <= budget
            for pack in batch:
                assert pack[0].shared == family.prompt
                for before, member in zip(pack, pack[1:]):
                    texts = [read_tokens(sequences[m.index]) for m in (before, member)]
                    assert member.shared == common_prefix(*texts) >= family.prompt
        parts = list(family.divided(3))
        assert {b for part in parts for b in part.batches} == {*family.batches}


@given(groups(), st.integers(1, 4))
def test_no_hit_of_a_cache_reaches_what_is_scored(sequences, block):
    """The deepest hit by trying all pairs; a text that shares less is found to be readable."""
    texts = [read_tokens(sequence) for sequence in sequences]
    for i, (sequence, readable) in enumerate(zip(sequences, may_skip_prefix(sequences, block))):
        most = max((common_prefix(texts[i], other) for j, other in enumerate(texts) if j != i), default=0)
        hit = min(most, len(texts[i]) - 1) // block * block
        assert readable == (hit <= sequence.start - 1)


def test_the_order_of_texts_is_that_of_their_tokens():
    texts = [np.array(ids) for ids in ([300, 1], [2, 70000], [2], [2, 3], [300])]
    order, shared = sorted_texts(texts)
    assert order == [2, 3, 1, 4, 0] and shared.tolist() == [0, 1, 1, 0, 1]


def test_examples_are_read_once_and_each_question_once():
    sequences = questions(shots=30, asked=6, question=12, choices=4, vocabulary=10**6)
    [family] = plan_families(sequences, Cost(100, 5), 400, 1000)
    assert family.prompt == 30 and sum(map(len, family.batches)) == 6
    distinct = {tuple(read_tokens(s)[:place]) for s in sequences for place in range(1, s.stop)}
    assert 30 + sum(
        sum(sequences[m.index].stop - 1 - m.shared for m in pack) for batch in family.batches for pack in batch
    ) == len(distinct)


def test_nothing_shared_is_nothing_planned():
    random = np.random.default_rng(0)
    sequences = [scored([1, *random.integers(2, 5000, 50)], 20) for _ in range(50)]  # all with a BOS
    assert plan_families(sequences, Cost(500, 128), 2048, 1000) == []
    assert plan_families([], EAGER, 100, 100) == plan_families(sequences[:1], EAGER, 100, 100) == []


def test_long_solutions_of_one_problem_are_apart_and_their_mask_is_bounded():
    prompt = np.arange(10)
    sequences = [scored(np.concatenate([prompt, np.full(30_000, i)]), 29_000) for i in range(8)]
    assert plan_families(sequences, Cost(2048, 128), 16384, 1 << 62) == []
    prompt = np.arange(30_000)
    sequences = [scored(np.concatenate([prompt, np.full(1000, i)]), 30_001) for i in range(8)]
    [family] = plan_families(sequences, Cost(8192, 128), 16384, 1 << 62)
    assert family.prompt == 30_000
    assert all(len(batch) * 1000 * 31_000 <= MASK_ELEMENTS for batch in family.batches)


# The numbers


@settings(max_examples=60)
@given(sequences=groups(), cost=costs, budget=st.integers(5, 80))
def test_any_groups_are_read_as_by_the_plain_model(sequences, cost, budget, tiny_engine):
    engine, model = tiny_engine
    engine._batch_tokens = budget
    with patch.object(packed_texts, "pass_cost", lambda model: cost):
        table = engine.token_stats(sequences)
    require_same(table, apart(engine, sequences))
    np.testing.assert_allclose(table["logprob"], plain_logprobs(model, sequences), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def tiny_engine(tiny_folders):
    return loaded(tiny_folders({})), tiny_model()


HYBRIDS = {"falcon_h1_mamba2", "qwen3_next_deltanet"}


@pytest.mark.parametrize("kind", AWKWARD)
def test_each_kind_of_model_reads_alike_or_is_not_asked_to(kind, tmp_path):
    engine = loaded(AWKWARD[kind](tmp_path / kind))
    sequences, reads = questions(), Reads(engine)
    table = engine.token_stats(sequences)
    reads.tokens()
    assert engine.token_stats(sequences).equals(table)
    shared = reads.tokens()
    require_same(table, apart(engine, sequences))
    whole = reads.tokens()
    assert shared == whole if kind in HYBRIDS else shared < whole / 3


def test_one_way_or_another_temperatures_are_those_of_the_text(model_folder):
    engine, sequences = loaded(model_folder()), questions()
    require_same(engine.token_stats(sequences, (0.5, 2.0)), apart(engine, sequences, (0.5, 2.0)))


def test_choices_of_one_token_cost_nothing_of_their_own(model_folder):
    engine = loaded(model_folder())
    engine.token_stats(questions())  # with the proof
    letters = [scored([*range(5, 45), 100 + i, letter], 41) for i in range(5) for letter in (7, 8, 9, 7)]
    reads = Reads(engine)
    table = engine.token_stats(letters)
    assert reads.tokens() <= 40 + 5
    require_same(table, apart(engine, letters))


def test_windows_of_a_long_text_begin_alike_and_keep_their_positions(model_folder):
    engine = loaded(model_folder())
    texts = [(f"long{i}", "Q:" + "ab" * CONTEXT, f"xyz{i}" * CONTEXT) for i in range(3)]
    sequences = tokenize(texts, engine.tokenizer, engine.context)
    assert any(sequence.offset for sequence in sequences) and engine._plan(sequences)[0]
    require_same(engine.token_stats(sequences), apart(engine, sequences))


@pytest.mark.parametrize("told", [True, False])
def test_a_window_of_attention_is_found_by_texts_that_are_longer(model_folder, monkeypatch, told):
    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=352)
    config = MistralConfig(
        **shape, intermediate_size=96, sliding_window=24, initializer_range=0.3, max_position_embeddings=256
    )
    torch.manual_seed(0)
    engine = loaded(model_folder(model=MistralForCausalLM(config)))
    assert reading.attention_window(engine._model.config) == 24
    if not told:  # by the configuration: it shows in what the model makes of a text
        monkeypatch.setattr(reading, "attention_window", lambda _: reading.ANY_LENGTH)
    long, short = questions(shots=60), questions(shots=6, question=4)
    assert engine._plan(long)[0] == []
    require_same(engine.token_stats(long), apart(engine, long))
    assert engine._plan(short)[0]
    require_same(engine.token_stats(short), apart(engine, short))


def test_frequencies_that_the_longest_text_decides_are_not_mixed(model_folder):
    rope = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0] * 8, long_factor=[8.0] * 8)
    shape = dict(vocab_size=352, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    context = dict(max_position_embeddings=256, original_max_position_embeddings=40, pad_token_id=0)
    torch.manual_seed(0)
    config = Phi3Config(**shape, **context, rope_parameters=rope, initializer_range=0.3)
    engine = loaded(model_folder(model=Phi3ForCausalLM(config)))
    assert engine._sharing.mixed_up_to == 40
    sequences = (
        questions(shots=22, question=4)
        + questions(shots=22, question=12)
        + questions(shots=22, question=20)
        + questions(shots=60)
    )
    families, _ = engine._plan(sequences)
    assert families and all(len(sequences[i].token_ids) <= 40 for family in families for i in family.members())
    require_same(engine.token_stats(sequences), apart(engine, sequences))


def test_weights_that_show_nothing_are_read_apart_and_asked_again(model_folder):
    flat = tiny_model()
    with torch.no_grad():
        for layer in flat.model.layers:
            layer.self_attn.o_proj.weight.zero_()  # no token depends on those before it
    engine = loaded(model_folder("flat", model=flat))
    assert engine._plan(questions())[0] == [] and engine._alike.longest > 1000
    engine.load(model_folder("sharp"))
    assert engine._plan(questions())[0]


# What is broken or short of memory


def test_a_text_that_is_broken_is_named_and_no_other(model_folder):
    sequences = questions()
    broken = tiny_model()
    own = set(sequences[-1].token_ids[:-1]) - {t for s in sequences[:-4] for t in s.token_ids}
    with torch.no_grad():
        broken.model.embed_tokens.weight[max(own)] = torch.nan
    engine = loaded(model_folder(model=broken))
    engine._alike.proven = engine._alike.proven_width = 1000
    with pytest.raises(InputError) as told:
        apart(engine, sequences)
    assert engine._plan(sequences)[0]
    with pytest.raises(InputError) as shared:
        engine.token_stats(sequences)
    assert str(shared.value) == str(told.value)


def test_families_without_memory_are_read_apart(model_folder, caplog):
    engine, sequences = loaded(model_folder()), questions()
    expected = engine.token_stats(sequences)

    def refuse(_, __, given):
        if given.get("attention_mask") is not None:
            raise torch.OutOfMemoryError("no memory")

    engine._model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    require_same(engine.token_stats(sequences), expected)
    assert "out of memory with" in caplog.text and engine._batch_tokens < 400


def test_a_library_that_fails_is_told_in_the_log_alone(model_folder, monkeypatch, caplog):
    engine, sequences = loaded(model_folder()), questions()
    monkeypatch.setattr(packed_texts.FamilyReader, "read", lambda *_: 1 / 0)
    with caplog.at_level(logging.DEBUG):
        engine.token_stats(sequences)
    assert "not read together: " in caplog.text and engine._plan(sequences)[0] == []


# In memory, and divided among processes


@torch.inference_mode()
def test_the_parts_of_a_family_have_the_numbers_of_the_whole(model_folder):
    engine = InMemoryEngine(None, ExtractionOptions(batch_tokens=60))
    engine.load(tiny_model())
    engine.divide(0, 2)
    sequences = questions()
    columns, order = TransformersEngine._scored(engine, sequences, ())
    plans = engine._batches(sequences)
    assert len([plan for plan in plans if plan[0]]) == 2
    at = {i: place for place, i in enumerate(order)}
    ends = np.cumsum([sequences[i].stop - sequences[i].start for i in order])
    whole = np.split(columns, ends[:-1], axis=1)
    for plan in plans:
        part, members = TransformersEngine._scored(engine, sequences, (), plan)
        assert np.array_equal(part, np.concatenate([whole[at[i]] for i in members], axis=1))


# Long texts


@pytest.mark.parametrize("tail", [10, 40])
def test_the_head_sees_the_tail_of_a_long_text_alone_in_chunks(model_folder, tail, monkeypatch):
    engine = loaded(model_folder())
    texts = [(f"long{i}", f"{i}", "xyz" * 200) for i in range(3)]
    sequences = tokenize(texts, engine.tokenizer, 10_000, tail_tokens=tail)
    assert all(s.stop - s.start == tail < s.start for s in sequences)
    rows = []
    original = Head.__call__
    monkeypatch.setattr(Head, "__call__", lambda self, hidden: rows.append(len(hidden)) or original(self, hidden))
    engine.token_stats(sequences)
    assert sum(rows) == 3 * tail
    monkeypatch.setattr("proxycast.extraction.token_stats.SCRATCH_BYTES_CPU", 4 * 352 * 7)
    rows.clear()
    engine.token_stats(sequences)
    assert sum(rows) == 3 * tail
