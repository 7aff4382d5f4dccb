"""The ladder: its checkpoints against counting, N against models of the library, DataDecide's against others."""

from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import PUBLISHED
from hypothesis import given
from hypothesis import strategies as st
from proxycast.compute import training_flops
from proxycast.config.ladder import Ladder, LadderSize, Tokenizer
from proxycast.study.yaml_files import read_yaml
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = Path(__file__).parents[2] / "config"

SMALL = {"hidden_size": 64, "layers": 2, "heads": 2, "batch_sequences": 4, "steps": 10, "learning_rate": 0.01}
LADDER = {
    "name": "mine",
    "tokenizer": {"folder": "tokenizer"},
    "vocabulary": 100,
    "sequence_length": 8,
    "checkpoint_every": 4,
    "seeds": {0: "default", 1: "second"},
    "sizes": {"small": SMALL},
}


def ladder(**small) -> Ladder:
    return Ladder(**{**LADDER, "sizes": {"small": {**SMALL, **small}}})


# Steps, seeds and tokens


@given(
    every=st.integers(1, 40),
    own=st.none() | st.integers(1, 40),
    steps=st.integers(1, 200),
    stopped=st.none() | st.integers(1, 200),
    last=st.none() | st.integers(1, 200),
)
def test_steps_are_multiples_and_the_last(every, own, steps, stopped, last):
    """Against counting: what was told of the run goes before what the ladder says of the seed, and that before all."""
    mine = ladder(steps=steps, checkpoint_every=own, stopped={} if stopped is None else {1: stopped})
    mine = mine.model_copy(update={"checkpoint_every": every})
    for seed in (0, 1):
        end = last or (stopped if seed == 1 else None) or steps
        counted = [step for step in range(end + 1) if step % (own or every) == 0 or step == end]
        assert mine.steps_of("small", seed, last) == counted


def test_seeds_of_a_size_are_its_own_or_the_ladders():
    assert ladder().seeds_of("small") == {0: "default", 1: "second"}
    assert ladder(seeds={5: "large"}).seeds_of("small") == {5: "large"}


def test_tokens_of_a_batch():
    assert ladder().batch_tokens("small") == 4 * 8


# Parameters


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"intermediate_size": 96},
        {"hidden_size": 96, "heads": 3, "layers": 1},
    ],
)
def test_parameters_are_those_of_a_model(shape):
    """Against the library's Llama of the same shape with an output head of its own: all but the input embedding."""
    size = LadderSize(**{**SMALL, **shape})
    config = LlamaConfig(
        hidden_size=size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=shape.get("intermediate_size", 4 * size.hidden_size),
        vocab_size=100,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert size.parameters(100) == model.num_parameters() - model.get_input_embeddings().weight.numel()


# What the training of a size depends on

TWO = {**LADDER, "sizes": {"small": SMALL, "large": {**SMALL, "layers": 4}}}


def test_only_one_size():
    one = Ladder(**TWO).only("large")
    assert list(one.sizes) == ["large"] and one.sizes["large"] == Ladder(**TWO).sizes["large"]
    for change in ({"description": "other"}, {"sizes": {**TWO["sizes"], "small": {**SMALL, "steps": 99}}}):
        assert Ladder(**{**TWO, **change}).only("large") == one
    for change in ({"vocabulary": 101}, {"optimisation": {"beta2": 0.9}}, {"sizes": {"large": {**SMALL, "layers": 5}}}):
        assert Ladder(**{**TWO, **change}).only("large") != one


# Bad input


@pytest.mark.parametrize("hidden, heads", [(64, 3), (6, 2), (63, 1)])
def test_heads_of_odd_width(hidden, heads):
    with pytest.raises(ValidationError, match=f"hidden_size {hidden} cannot be split into {heads} heads of even width"):
        LadderSize(**{**SMALL, "hidden_size": hidden, "heads": heads})


@pytest.mark.parametrize("origin", [{}, {"hub": "a/b", "folder": "x"}])
def test_tokenizer_of_no_origin_or_two(origin):
    with pytest.raises(ValidationError, match="in a hub repository or in a folder, exactly one of the two"):
        Tokenizer(**origin)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seeds": {-1: "x"}}, "greater than or equal to 0"),
        ({"seeds": {0: "a/b"}}, "pattern"),
        ({"seeds": {}}, "at least 1"),
        ({"sizes": {}}, "at least 1"),
        ({"checkpoint_every": 0}, "greater than 0"),
        ({"tokenizer": {"hub": "../x"}}, "pattern"),
        ({"sizes": {"small": {**SMALL, "layres": 2}}}, "layres"),
    ],
)
def test_ladder_that_makes_no_sense(change, words):
    with pytest.raises(ValidationError, match=words):
        Ladder(**{**LADDER, **change})


# DataDecide's


@pytest.mark.published
def test_ladder_of_datadecide_is_the_published_one():
    """Shape, N, tokens, FLOPs, batch and learning rate of all 14 sizes, exactly; sizes in the published order."""
    mine = Ladder(**read_yaml(CONFIG / "ladders" / "datadecide.yaml"))
    published = pl.read_csv(PUBLISHED / "datadecide_sizes.csv", schema_overrides={"flops_6ND": pl.Float64})
    assert list(mine.sizes) == published["size"].to_list() and len(mine.sizes) == 14
    for row in published.iter_rows(named=True):
        size = mine.sizes[row["size"]]
        tokens = size.steps * mine.batch_tokens(row["size"])
        assert {
            **{"n_params_nonemb": size.parameters(mine.vocabulary), "d_model": size.hidden_size},
            **{"n_heads": size.heads, "n_layers": size.layers, "batch_sequences": size.batch_sequences},
            **{"seq_len": mine.sequence_length, "train_steps": size.steps, "tokens": tokens},
            **{"lr_peak": size.learning_rate},
        } == {key: row[key] for key in row if key in published.columns[1:10]}
        # A float holds 53 bits: the product of integers is rounded once.
        assert float(training_flops(size.parameters(mine.vocabulary), tokens)) == row["flops_6ND"]
