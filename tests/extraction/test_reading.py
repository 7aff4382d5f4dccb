"""Models that are not what they are taken for: refused, or read the slow right way.

The proofs are tried on toys that break one assumption each, written here in a few lines, and on small models of the
library, whose reference is the plain model on one unpadded text at a time.
"""

import json
import sys

import numpy as np
import pytest
import torch
from proxycast.cluster.cost_model import model_in
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.modules.reading import (
    NotReadable,
    Reader,
    Sharing,
    longest_mixed,
    prove,
    reads_alike_in_full_batch,
    reads_alike_when_padded,
    rope_reset,
    text_tokens,
)
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.options import InputError
from proxycast.solutions.tokenisation import ScoredSequence
from proxycast.weights.hub_snapshots import needed_model_files
from proxycast.weights.model_config import context_of, read_config, vocabulary_of
from proxycast.weights.model_folder import check_folder, model_fingerprint
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    ElectraConfig,
    ElectraForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MistralConfig,
    MptConfig,
    Phi3Config,
    Phi3ForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

ANY_LENGTHS = Sharing(1 << 62)
SHAPE = dict(vocab_size=352, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
SHAPE |= dict(max_position_embeddings=256, pad_token_id=0, bos_token_id=0, eos_token_id=0)


# Toys


class Toy:
    """Logits of a token: its own embedding and the mean of those that `sees` lets it look at, (b, T) -> (b, T, 16)."""

    def __init__(
        self, sees=lambda ids: torch.ones(ids.shape[1], ids.shape[1]).tril(), change=lambda logits, ids: logits
    ):
        generator = torch.Generator().manual_seed(0)
        self.embeddings = torch.randn(100, 16, generator=generator)
        self.sees, self.change, self.longest = sees, change, 0

    def __call__(self, ids, position_ids=None):
        embedded = self.embeddings[ids]
        weights = self.sees(ids).expand(len(ids), -1, -1)
        mixed = weights @ embedded / weights.sum(-1, keepdim=True).clamp(min=1)
        return self.change(embedded + 2 * mixed, ids)


def remembers(logits, ids):
    remembers.longest = max(remembers.longest, ids.shape[1])
    return logits * remembers.longest


def drops_beyond_capacity(logits, ids):
    """An expert for each token id modulo 4, which takes an eighth of a batch's tokens, the first ones."""
    expert = ids.flatten() % 4
    place = torch.stack([(expert[: i + 1] == expert[i]).sum() for i in range(len(expert))])
    return torch.where((place <= len(expert) // 8).reshape(*ids.shape, 1), logits, 0)


def triangle(ids, ahead=0):
    return torch.ones(ids.shape[1], ids.shape[1]).tril(ahead)


def blocks(length, first=0):
    """Attention within blocks of `length` tokens in both directions, and to all earlier ones; the first is shorter."""

    def sees(ids):
        block = (torch.arange(ids.shape[1]) + length - first) // length
        return (block[None] <= block[:, None]).float()

    return sees


def prefix(length):
    """Attention within the first `length` tokens in both directions."""
    return lambda ids: triangle(ids).index_fill(1, torch.arange(min(length, ids.shape[1])), 1)


READ_RIGHT = {
    "causal": Toy(),
    "a window of attention": Toy(lambda ids: triangle(ids) - triangle(ids, -4)),
    "another start": Toy(change=lambda logits, ids: logits + 3),
}
LOOKS_AHEAD = {
    "both directions": Toy(lambda ids: torch.ones(ids.shape[1], ids.shape[1])),
    "one token ahead": Toy(lambda ids: triangle(ids, 1)),
    "a window to both sides": Toy(lambda ids: triangle(ids, 2) - triangle(ids, -4)),
    "a little of the mean of all": Toy(change=lambda logits, ids: logits + 0.02 * logits.mean(1, keepdim=True)),
    "a prefix in both directions": Toy(lambda ids: triangle(ids).index_fill(1, torch.arange(ids.shape[1] * 3 // 4), 1)),
    "normal over the text": Toy(change=lambda logits, ids: logits / logits.std(1, keepdim=True)),
    "less than the mean of the text": Toy(change=lambda logits, ids: logits - logits.mean(1, keepdim=True)),
    **{f"blocks of {length}": Toy(blocks(length)) for length in (2, 3, 4, 8, 16)},
    **{f"blocks of {length} behind one token": Toy(blocks(length, 1)) for length in (2, 4, 8)},
    **{f"a prefix of {length} tokens": Toy(prefix(length)) for length in (2, 4, 8, 9)},
    "padding is masked, the rest is seen": Toy(lambda ids: (ids != 0)[:, None].float().expand(-1, ids.shape[1], -1)),
}
DEPENDS_ON_THE_BATCH = {
    "width": (Toy(change=lambda logits, ids: logits * ids.shape[1]), True),
    "padding moves positions": (
        Toy(change=lambda logits, ids: logits + (ids == 0).sum(1)[:, None, None].clamp(max=1)),
        True,
    ),
    "mean of the batch": (Toy(change=lambda logits, ids: logits - 0.5 * logits.mean(0, keepdim=True)), False),
    "capacity of an expert": (Toy(change=drops_beyond_capacity), False),
}


def reader_of(toy) -> Reader:
    return Reader(toy, torch.arange(1, 100), torch.float32)


@pytest.mark.parametrize("name", READ_RIGHT)
def test_a_causal_toy_may_share_batches(name):
    assert prove(reader_of(READ_RIGHT[name])) == (ANY_LENGTHS, True)


@pytest.mark.parametrize("name", LOOKS_AHEAD)
def test_a_toy_that_looks_ahead_is_refused(name):
    with pytest.raises(NotReadable, match="looks ahead"):
        prove(reader_of(LOOKS_AHEAD[name]))


@pytest.mark.parametrize("name", DEPENDS_ON_THE_BATCH)
def test_a_toy_that_depends_on_its_batch_is_read_apart(name):
    toy, equal_lengths = DEPENDS_ON_THE_BATCH[name]
    assert prove(reader_of(toy)) == (Sharing(0, equal_lengths), True)


def test_a_toy_with_a_memory_or_with_chance_is_refused():
    remembers.longest = 0
    with pytest.raises(NotReadable, match="depends on what it has read before"):
        prove(reader_of(Toy(change=remembers)))
    with pytest.raises(NotReadable, match="depends on chance"):
        prove(reader_of(Toy(change=lambda logits, ids: torch.nn.functional.dropout(logits, 0.1))))


def test_weights_that_show_nothing_prove_nothing():
    alone = Toy(lambda ids: torch.eye(ids.shape[1]))
    assert prove(reader_of(alone)) == (ANY_LENGTHS, False)
    assert not prove(reader_of(Toy(change=lambda logits, ids: logits * torch.nan)))[1]


@pytest.mark.parametrize("limit", [9, 100, 777, 1000])
def test_the_longest_width_that_changes_nothing_is_found(limit):
    class Growing(Toy):
        def __call__(self, ids, position_ids):
            return super().__call__(ids) * (1.0 if position_ids.max() < limit else 1.1)

    assert longest_mixed(reader_of(Growing()), 1000) == limit


def test_unknown_code_is_padded_to_the_widest_batch():
    grows = Toy(change=lambda logits, ids: logits * (1.0 if ids.shape[1] < 50 else 1.1))
    assert prove(reader_of(grows)) == (ANY_LENGTHS, True)
    assert reads_alike_when_padded(reader_of(grows), 49) and not reads_alike_when_padded(reader_of(grows), 50)
    remembers.longest = 16
    with pytest.raises(NotReadable, match="how long a text"):
        reads_alike_when_padded(reader_of(Toy(change=remembers)), 50)


@pytest.mark.parametrize("capacity", [64, 1000])
def test_a_capacity_shows_in_a_full_batch_only(capacity):
    """An expert for each token id modulo 4 that takes so many tokens, the first ones."""

    def drops(logits, ids):
        expert = ids.flatten() % 4
        place = torch.zeros_like(expert)
        for number in range(4):
            place[expert == number] = torch.arange((expert == number).sum())
        return torch.where((place < capacity).reshape(*ids.shape, 1), logits, 0)

    reader = reader_of(Toy(change=drops))
    assert prove(reader) == (ANY_LENGTHS, True)
    assert not reads_alike_in_full_batch(reader, 255)
    assert reads_alike_in_full_batch(reader_of(Toy()), 255)


def test_special_tokens_are_no_text():
    config = LlamaConfig(bos_token_id=1, eos_token_id=[2, 5], pad_token_id=None)
    config.text = {"image_token_id": 3, "boi_token_index": 4}
    assert text_tokens(config, 8).tolist() == [0, 6, 7]
    assert text_tokens(config, 3).tolist() == [0]


# Models of the library


def load(folder, **options) -> TransformersEngine:
    engine = TransformersEngine(ExtractionOptions(device="cpu", **options))
    engine.load(folder)
    return engine


def sharp(model, seed=0):
    """Weights with which each token's logits depend much on the tokens that it sees."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def texts(*lengths: int, vocabulary: int = 300) -> list[ScoredSequence]:
    """Random texts, all of whose tokens but the first are scored."""
    draw = np.random.default_rng(0)
    return [
        ScoredSequence(f"{i}", draw.integers(5, vocabulary, n), 1, n, np.zeros(n - 1, np.int32))
        for i, n in enumerate(lengths)
    ]


def alone(folder, sequence, architecture=AutoModelForCausalLM) -> np.ndarray:
    """Log-probabilities of the scored tokens by a freshly loaded model that reads nothing else."""
    model = architecture.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(sequence.token_ids)[None]).logits[0].double().log_softmax(1)
    return np.array([logits[t - 1, sequence.token_ids[t]].item() for t in range(1, sequence.stop)])


def require_alone(engine, folder, sequences):
    table = engine.token_stats(sequences)
    for sequence in sequences:
        found = table.filter(key=sequence.key)["logprob"]
        np.testing.assert_allclose(found, alone(folder, sequence), atol=2e-4, err_msg=f"{len(sequence.token_ids)}")


def electra():
    return ElectraForCausalLM(ElectraConfig(**SHAPE, embedding_size=64))


def roberta(**settings):
    return RobertaForCausalLM(RobertaConfig(**SHAPE | dict(pad_token_id=1), **settings))


def gemma3(**settings):
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=16, num_key_value_heads=2, **settings))


LOOK_AHEAD = {
    "bert": lambda: BertLMHeadModel(BertConfig(**SHAPE)),
    "roberta": roberta,
    "electra": electra,
    "xlnet": lambda: XLNetLMHeadModel(XLNetConfig(vocab_size=352, d_model=64, n_layer=2, n_head=4, d_inner=96)),
    "xlm": lambda: XLMWithLMHeadModel(XLMConfig(vocab_size=352, emb_dim=64, n_layers=2, n_heads=4)),
    "gemma3": lambda: gemma3(use_bidirectional_attention=True),
}


@pytest.mark.parametrize("name", LOOK_AHEAD)
def test_a_model_that_looks_ahead_is_refused(model_folder, name):
    folder = model_folder(model=sharp(LOOK_AHEAD[name]()))
    with pytest.raises(InputError, match=f"^{folder}: .* looks ahead") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_the_proof_holds_for_weights_that_were_never_trained(model_folder):
    with pytest.raises(InputError, match="looks ahead"):
        load(model_folder(model=BertLMHeadModel(BertConfig(**SHAPE))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_kinds_are_scored_where_they_are_decoders(model_folder, dtype):
    for name, model in {"roberta": roberta(is_decoder=True), "gemma3": gemma3()}.items():
        folder = model_folder(name, model=sharp(model))
        engine = load(folder, dtype=dtype)
        assert engine._is_proven and engine._sharing == ANY_LENGTHS
        if dtype == "float32":
            require_alone(engine, folder, texts(5, 9, 30))


def test_hidden_states_of_another_type_than_the_weights(model_folder):
    """Mamba's residual stream stays float32."""
    config = MambaConfig(vocab_size=352, hidden_size=64, num_hidden_layers=2, state_size=8)
    engine = load(model_folder(model=sharp(MambaForCausalLM(config))), dtype="bfloat16")
    assert engine._head is not None and engine._sharing == ANY_LENGTHS


def test_bfloat16_too_shows_who_looks_ahead(model_folder):
    with pytest.raises(InputError, match="looks ahead"):
        load(model_folder(model=sharp(LOOK_AHEAD["gemma3"]())), dtype="bfloat16")


def test_zeros_at_the_first_step_prove_nothing_yet(model_folder):
    first, second = sharp(LOOK_AHEAD["roberta"]()), sharp(LOOK_AHEAD["roberta"]())
    with torch.no_grad():
        for layer in first.roberta.encoder.layer:
            layer.attention.output.dense.weight.zero_()
            layer.attention.output.dense.bias.zero_()
    engine = load(model_folder("step0", model=first))
    assert not engine._is_proven
    for _ in range(2):  # the module that was refused is not taken for proven the next time
        with pytest.raises(InputError, match="looks ahead"):
            engine.load(model_folder("step1", model=second))


def test_a_load_in_place_proves_nothing_again(model_folder):
    engine, passes = load(model_folder("a")), []
    for seed in (1, 2):  # the third is the first that is loaded in place, after a proof
        engine.load(model_folder(f"a{seed}", seed=seed))
    engine._model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    model, folder = engine._model, model_folder("b", seed=3)
    engine.load(folder)
    assert engine._model is model and passes == []
    require_alone(engine, folder, texts(5, 9, 30))


# Rotary embeddings that depend on the length of the text


def phi3(original=40, positions=120):
    rope = dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=original)
    rope |= dict(short_factor=[1.0] * 8, long_factor=[1.0, 1.5, 2, 4, 8, 16, 32, 64.0], factor=positions / original)
    shape = SHAPE | dict(max_position_embeddings=positions, original_max_position_embeddings=original)
    return sharp(Phi3ForCausalLM(Phi3Config(**shape, rope_parameters=rope)))


LENGTHS = (12, 39, 40, 41, 41, 60, 60, 100, 120, 12, 33)


@pytest.mark.parametrize("batch_tokens", [50, 130, 500, 16384])
def test_longrope_reads_each_text_as_alone(model_folder, batch_tokens):
    folder = model_folder(model=phi3())
    require_alone(load(folder, batch_tokens=batch_tokens), folder, texts(*LENGTHS))


def test_longrope_shares_batches_among_short_texts_and_among_equal_ones(model_folder):
    engine, widths = load(model_folder(model=phi3()), batch_tokens=500), []
    engine._model.base_model.register_forward_pre_hook(
        lambda module, _, given: widths.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    engine.token_stats(texts(*LENGTHS))
    assert widths == [(1, 120), (1, 100), (2, 60), (2, 41), (5, 40)]


def test_longrope_whose_texts_are_all_short_shares_all_batches(model_folder):
    engine = load(model_folder(model=phi3()), max_model_len=40)
    assert engine.context == 40 and engine._sharing.mixed_up_to >= 40


def test_rotary_embeddings_forget_long_texts():
    """NTK by the length of the text: after a long text the library keeps its frequencies for shorter ones."""
    rope = dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0)
    model = sharp(LlamaForCausalLM(LlamaConfig(**SHAPE | dict(max_position_embeddings=32), rope_parameters=rope)))
    reset = rope_reset(model)
    token_ids = torch.arange(5, 305)[None]

    def logits(length):
        with torch.no_grad():
            return model(token_ids[:, :length]).logits

    fresh = logits(48)
    logits(256)
    assert (logits(48) - fresh).abs().max() > 1e-2
    reset()
    assert torch.equal(logits(48), fresh)


def test_dynamic_ropes_change_nothing_within_the_context(model_folder):
    rope = dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0)
    folder = model_folder(
        model=sharp(LlamaForCausalLM(LlamaConfig(**SHAPE | dict(max_position_embeddings=64), rope_parameters=rope)))
    )
    engine = load(folder)
    assert engine._sharing == Sharing(64)
    require_alone(engine, folder, texts(64, 63, 12, 33, 64))


def test_sparse_attention_shares_batches_up_to_the_tokens_that_it_chooses(model_folder):
    """Which of equal scores the library's choice takes depends on the width."""
    shape = SHAPE | dict(num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=16, n_routed_experts=4, n_group=1)
    heads = dict(qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, index_n_heads=2, index_head_dim=16)
    moe = dict(topk_group=1, num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1)
    config = DeepseekV32Config(**shape, **heads, **moe, index_topk=8)
    folder = model_folder(model=sharp(DeepseekV32ForCausalLM(config)))
    engine = load(folder)
    assert engine._sharing == Sharing(8)
    require_alone(engine, folder, texts(6, 8, 23, 23, 40, 60))


# What config.json leaves out


def without(folder, *keys, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in keys} | values))
    return folder


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, GPT2Config, MptConfig, Phi3Config, Gemma3TextConfig])
def test_defaults_of_the_architecture_count(tmp_path, kind):
    default = kind()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind.model_type}))
    names = "max_position_embeddings", "n_positions", "max_seq_len"
    assert context_of(tmp_path) == next(getattr(default, name) for name in names if hasattr(default, name))
    assert vocabulary_of(tmp_path) == default.vocab_size


def test_a_key_of_another_architecture_says_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "n_positions": 7, "max_seq_len": 9}))
    assert context_of(tmp_path) == 2048


def test_what_a_nested_configuration_leaves_out(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {"hidden_size": 64}}))
    assert (context_of(tmp_path), vocabulary_of(tmp_path)) == (131072, 262208)


def test_an_architecture_without_a_limit(tmp_path):
    for model_type in ("mamba", "xlnet", "bloom"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert context_of(tmp_path) == sys.maxsize, model_type


def test_the_file_alone_counts_for_an_unknown_architecture(tmp_path):
    config = {"model_type": "nobody's", "vocab_size": 99, "text_config": {"max_position_embeddings": 77}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (context_of(tmp_path), vocabulary_of(tmp_path)) == (77, 99)


def test_a_long_text_fits_the_positions_that_are_left(model_folder):
    folder = without(model_folder(), "max_position_embeddings")
    assert load(folder).context == 2048
    positions = model_folder("roberta", model=sharp(roberta(is_decoder=True)))
    engine = load(positions)
    assert engine.context == 254  # the table's first two rows are for padding
    engine.token_stats(texts(254))


def test_planning_knows_what_config_json_leaves_out(model_folder):
    model = model_in(without(model_folder(), "max_position_embeddings", "num_key_value_heads"), 10**6, 10**6)
    assert (model.hidden_size, model.layers, model.vocabulary, model.context) == (64, 2, 352, 2048)


# What cannot be run


def llama4():
    shape = SHAPE | dict(num_key_value_heads=2, head_dim=16, num_local_experts=2, intermediate_size_mlp=96)
    return Llama4ForCausalLM(
        Llama4TextConfig(**shape, attention_chunk_size=16, layer_types=["chunked_attention", "full_attention"])
    )


def test_a_body_that_is_not_where_the_library_says_is_found(model_folder):
    folder = model_folder(model=sharp(llama4()))
    engine = load(folder)
    assert engine._head is not None
    require_alone(engine, folder, texts(5, 15, 40))


UNFIT = {
    "gptq": dict(quantization_config=dict(quant_method="gptq", bits=4, group_size=128)),
    "awq": dict(quantization_config=dict(quant_method="awq", bits=4, group_size=128)),
    "bitsandbytes": dict(quantization_config=dict(quant_method="bitsandbytes", load_in_4bit=True)),
    "unknown quantization": dict(quantization_config=dict(quant_method="nobody's")),
    "quantization without its method": dict(quantization_config=dict(bits=4)),
    "quantization by nothing": dict(quantization_config=dict(quant_method=None)),
    "5 heads of 64": dict(num_attention_heads=5),
    "3 heads of keys for 2": dict(num_key_value_heads=3),
    "0 heads": dict(num_attention_heads=0),
    "another width": dict(hidden_size=128),
    "words": dict(hidden_size="large"),
    "rope": dict(rope_parameters=dict(rope_type="nobody's", rope_theta=1e4)),
    "rope without its keys": dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4)),
    "activation": dict(hidden_act="nobody's"),
    "model type": dict(model_type="nobody's"),
    "an encoder's type": dict(model_type="vit"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_the_library_cannot_run_is_one_line_that_names_the_folder(model_folder, name):
    folder = without(model_folder(), **UNFIT[name])
    with pytest.raises(InputError, match=f"^{folder}") as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_weights_of_another_shape_are_named(model_folder):
    with pytest.raises(
        InputError, match=r"6 weights have other shapes .*mlp.down_proj.weight has \[64, 128\], expected \[64, 80\]"
    ):
        load(without(model_folder(), intermediate_size=80))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_numbers_are_refused(model_folder, dtype):
    folder = model_folder()
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for step in (check_folder, load):
        with pytest.raises(InputError, match=f"model.safetensors: {name} has the type .*no quantization_config"):
            step(folder)


def test_more_layers_in_the_files_than_in_the_configuration(model_folder):
    folder = without(model_folder(), num_hidden_layers=1)
    with pytest.raises(InputError, match=r"found \d weights .* no place: model.layers.1.input_layernorm.weight"):
        load(folder)
    require_alone(load(folder, ignored_weights=["model.layers.1.*"]), folder, texts(9))


@pytest.mark.parametrize("name", ["score.weight", "v_head.summary.weight", "classifier.bias"])
def test_another_head_beside_a_tied_one(model_folder, name):
    folder = model_folder(tied=True)
    weights = load_file(folder / "model.safetensors") | {name: torch.ones(2, 64)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = load(model_folder("whole", tied=True))
    for again in (engine.load, load):
        with pytest.raises(InputError, match=f"found 1 weights .* no place: {name};"):
            again(folder)
    assert (
        ExtractionOptions(ignored_weights=["score.*"]).that_change_results()
        != ExtractionOptions().that_change_results()
    )


@pytest.mark.parametrize(
    "architecture",
    ["LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaModel", "LlamaForRewardModel"],
)
def test_a_name_that_predicts_no_next_token(model_folder, architecture):
    folder = without(model_folder(tied=True), architectures=[architecture])
    engine = TransformersEngine(ExtractionOptions(device="cpu"))
    for step in (engine.check, engine.load):
        with pytest.raises(InputError, match=f"key architectures: found {architecture}, whose head predicts no next"):
            step(folder)
    require_alone(load(folder, architecture="LlamaForCausalLM"), folder, texts(9))


def test_the_option_that_names_an_architecture_does_not_make_it_causal(model_folder):
    folder = model_folder(model=sharp(BertForMaskedLM(BertConfig(**SHAPE))))
    with pytest.raises(InputError, match="found BertForMaskedLM, whose head"):
        load(folder)
    with pytest.raises(InputError, match="looks ahead"):
        load(folder, architecture="BertLMHeadModel")


def bart():
    sizes = dict(encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    return dict(vocab_size=352, d_model=64, encoder_ffn_dim=96, decoder_ffn_dim=96, **sizes)


def t5():
    return T5ForConditionalGeneration(T5Config(vocab_size=352, d_model=64, d_ff=96, num_layers=1, num_heads=2))


ENCODER_DECODERS = {
    "bart": lambda: BartForConditionalGeneration(BartConfig(**bart())),
    "marian": lambda: MarianMTModel(MarianConfig(**bart(), pad_token_id=0, decoder_start_token_id=0)),
    "t5": t5,
}


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_with_a_decoder_is_refused_before_anything_is_loaded(model_folder, name):
    folder = model_folder(model=ENCODER_DECODERS[name]())
    without(folder, "is_encoder_decoder")  # it is the architecture's default
    with pytest.raises(InputError, match=f"{name} is an encoder with a decoder"):
        check_folder(folder)


def test_all_names_of_tied_weights_do_not_hide_an_encoder(model_folder):
    model = ENCODER_DECODERS["bart"]()
    folder = model_folder(model=model)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    for architectures in (["BartForConditionalGeneration"], ["BartForCausalLM"]):
        without(folder, architectures=architectures, is_encoder_decoder=False, is_decoder=True)
        with pytest.raises(InputError, match=r"no place: .*model.encoder"):
            load(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_a_model_is_refused(model_folder, name):
    folder = model_folder()
    (folder / name).write_text("{}")
    with pytest.raises(InputError, match=f"^{folder}: found {name}: an adapter"):
        check_folder(folder)
    with pytest.raises(InputError, match=f"^found {name}: an adapter"):
        needed_model_files([path.name for path in folder.iterdir()])


def test_code_of_another_repository_is_not_run(model_folder):
    folder = without(model_folder(), auto_map={"AutoConfig": "some/where--own.Config"})
    with pytest.raises(InputError, match=r"key auto_map: found .*some/where--own.Config"):
        read_config(folder, trust_remote_code=True)
    read_config(folder)


def test_what_tells_of_quantised_weights_is_part_of_the_fingerprint(model_folder):
    folder = model_folder()
    before = model_fingerprint(folder)
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    four = model_fingerprint(folder)
    (folder / "quantize_config.json").write_text('{"bits": 8}')
    assert len({before, four, model_fingerprint(folder)}) == 3


# Code of its own

OWN_CODE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(self.change)

    @staticmethod
    def change(module, inputs, embedded):
        {change}
"""
WIDTH_COUNTS = "return embedded * (1.5 if embedded.shape[1] > 50 else 1.0)"
LOOKS_BACK_TO_FRONT = "return embedded + 0.1 * embedded.flip(1)"
LENGTH_STAYS = (
    "module.longest = max(getattr(module, 'longest', 0), embedded.shape[1]); return embedded * module.longest"
)


def own_folder(folder, change):
    without(
        folder,
        model_type="own",
        architectures=["OwnForCausalLM"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    )
    (folder / "own.py").write_text(OWN_CODE.format(change=change))
    return folder


def test_code_of_its_own_is_proven_at_the_width_of_a_batch(model_folder, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code"))
    folder = own_folder(model_folder("width"), WIDTH_COUNTS)
    engine = load(folder, trust_remote_code=True, batch_tokens=400)
    assert engine._sharing == Sharing(0)
    table, sequences = engine.token_stats(texts(40, 60, 60, 30)), texts(40, 60, 60, 30)
    for sequence in sequences:  # as the same engine reads each by itself
        single = engine.token_stats([sequence])["logprob"]
        np.testing.assert_allclose(table.filter(key=sequence.key)["logprob"], single, atol=1e-4)
    for name, change, why in [("ahead", LOOKS_BACK_TO_FRONT, "looks ahead"), ("stays", LENGTH_STAYS, "read before")]:
        with pytest.raises(InputError, match=why):
            load(own_folder(model_folder(name), change), trust_remote_code=True)
    with pytest.raises(InputError, match="trust_remote_code"):
        load(folder)
