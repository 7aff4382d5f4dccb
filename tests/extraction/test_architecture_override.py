"""Folders whose config.json names an architecture that was renamed, or that nobody knows: the weights run."""

import numpy as np
import pytest
import torch
from olmo3_models import olmo3_folder, retrofit_folder
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine
from proxycast.options import InputError
from proxycast.solutions.tokenisation import tokenize
from proxycast.weights.model_config import read_config, renamed_config
from transformers import AutoConfig, AutoModelForCausalLM

TEXTS = [("prose", "Once", " the cat is on the mat and the hat is what 2 plus 3 is." * 2), ("sum", "2 plus 3", " is 5")]


def statistics(folder, **options):
    engine = make_engine(ExtractionOptions(device="cpu", **options))
    engine.load(folder)
    return engine.token_stats(tokenize(TEXTS, engine.tokenizer, engine.context))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("olmo3")
    plain = olmo3_folder(base / "plain")
    return plain, retrofit_folder(plain, base / "retrofit"), retrofit_folder(plain, base / "own", "OurForCausalLM")


def test_the_library_itself_refuses_the_former_name(folders):
    with pytest.raises(ValueError, match="olmo2-retrofit"):
        AutoConfig.from_pretrained(folders[1])


@pytest.mark.parametrize("options", [{}, {"architecture": "Olmo3ForCausalLM"}], ids=["known", "named"])
def test_the_former_name_gives_the_logits_of_the_released_one(folders, options):
    plain, retrofit, _ = folders
    table = statistics(retrofit, **options)
    assert table.equals(statistics(plain, **options))
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    engine = make_engine(ExtractionOptions(device="cpu"))
    engine.load(plain)
    for sequence in tokenize(TEXTS, engine.tokenizer, engine.context):
        with torch.no_grad():
            logprobs = model(torch.from_numpy(sequence.token_ids)[None]).logits[0].double().log_softmax(1)
        wanted = [float(logprobs[t - 1, sequence.token_ids[t]]) for t in range(sequence.start, sequence.stop)]
        np.testing.assert_allclose(table.filter(key=sequence.key)["logprob"], wanted, atol=1e-4)


def test_window_and_rope_of_the_former_config_count(folders):
    config, plain = read_config(folders[1]), read_config(folders[0])
    assert type(config) is type(plain)
    for key in ("layer_types", "sliding_window", "rope_parameters", "architectures", "model_type"):
        assert getattr(config, key) == getattr(plain, key), key
    assert config.rope_parameters["full_attention"]["rope_type"] == "yarn"
    assert config.rope_parameters["sliding_attention"]["rope_type"] == "default"


def test_a_name_that_nobody_knows_needs_the_option(folders):
    plain, _, own = folders
    with pytest.raises(InputError, match=r"(?s)own/config\.json: transformers cannot read it.*set model\.architecture"):
        statistics(own)
    assert statistics(own, architecture="Olmo3ForCausalLM").equals(statistics(plain))


def test_an_architecture_that_is_none(folders):
    with pytest.raises(InputError, match=r"'Olmo3ForCausalLn' is no causal .*close to it: \['Olmo3ForCausalLM'"):
        statistics(folders[2], architecture="Olmo3ForCausalLn")


def test_a_config_that_is_right_stays_as_it_is(folders, model_folder):
    assert renamed_config(folders[0]) is None
    assert renamed_config(folders[0], "Olmo3ForCausalLM") is None
    assert renamed_config(model_folder()) is None
    assert renamed_config(folders[1])["architectures"] == ["Olmo3ForCausalLM"]


def test_weights_of_another_architecture_are_refused(folders):
    """Olmo2 has other layers in front of which its norms stand the same, but no Llama has."""
    with pytest.raises(InputError, match="weights missing"):
        statistics(folders[1], architecture="LlamaForCausalLM")
