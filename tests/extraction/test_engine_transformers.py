"""The transformers engine against the library's own logits; broken folders; extraction, killed and resumed."""

import gc
import json
import math
import os
import shutil
import subprocess
import sys
import weakref

import numpy as np
import polars as pl
import pytest
import torch
from conftest import CONTEXT, byte_level_tokenizer, finished, tiny_model
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines import transformers as transformers_engine
from proxycast.extraction.engines.factory import make_engine
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.extraction.schema import TOKEN_STATS_SCHEMA
from proxycast.extraction.sweep import extract
from proxycast.options import InputError
from proxycast.solutions.rows import Solution
from proxycast.solutions.tokenisation import tokenize
from proxycast.weights.model_folder import check_folder
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

OPTIONS = ExtractionOptions(tail_tokens=20, batch_tokens=300, device="cpu")
PROBLEMS = [
    (f"s{i}", "Q: what is 2 plus 3?\nA:" * (i % 3), " The cat sat é" * (i % 4 + 1) + str(i) * (i + 1))
    for i in range(12)
]


def sequences_for(engine, tail_tokens=20):
    return tokenize(PROBLEMS, engine.tokenizer, engine.context, tail_tokens)


def sequences_apart(engine):
    """As `sequences_for`, but no two of them begin alike, so that each is read by itself."""
    texts = [(key, f"{letter}{prompt}", text) for letter, (key, prompt, text) in zip("abcdefghijkl", PROBLEMS)]
    return tokenize(texts, engine.tokenizer, engine.context, tail_tokens=20)


def reference(folder, sequences) -> list[dict]:
    """Six statistics of each scored token in float64, from the logits of one unpadded sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rows = []
    for sequence in sequences:
        with torch.no_grad():
            logits = model(torch.tensor(sequence.token_ids)[None]).logits[0].double()
        for t in range(sequence.start, sequence.stop):
            row, token = logits[t - 1], int(sequence.token_ids[t])
            log_probability = torch.log_softmax(row, 0)
            top = log_probability.topk(2).values.tolist()
            rows.append(
                {
                    "key": sequence.key,
                    "position": t,
                    "token": token,
                    "logprob": log_probability[token].item(),
                    "max_logprob": top[0],
                    "second_logprob": top[1],
                    "entropy": torch.distributions.Categorical(logits=row).entropy().item(),
                    # A logit within rounding of the token's own may stand on either side of it.
                    "n_greater_least": int((row > row[token] + 1e-4).sum()),
                    "n_greater_most": int((row > row[token] - 1e-4).sum()) - 1,
                    "vocabulary": len(row),
                }
            )
    return rows


def check(table: pl.DataFrame, rows: list[dict], tolerance=1e-4):
    expected = pl.DataFrame(rows)
    assert dict(table.schema) == TOKEN_STATS_SCHEMA
    for name in ("key", "position", "token", "vocabulary"):
        assert table[name].to_list() == expected[name].to_list()
    for name in ("logprob", "max_logprob", "second_logprob", "entropy"):
        np.testing.assert_allclose(
            table[name].to_numpy(), expected[name].to_numpy(), rtol=0, atol=tolerance, err_msg=name
        )
    assert (table["n_greater"] >= expected["n_greater_least"]).all()
    assert (table["n_greater"] <= expected["n_greater_most"]).all()
    assert (table["n_equal"] >= 1).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("tied", [False, True])
def test_statistics_agree_with_the_librarys_logits(model_folder, architecture, tied):
    folder = model_folder(architecture=architecture, tied=tied)
    engine = make_engine(OPTIONS)
    engine.load(folder)
    assert engine._head is not None and engine.context == CONTEXT
    sequences = sequences_for(engine)
    check(engine.token_stats(sequences), reference(folder, sequences))


@pytest.mark.parametrize(
    "config, kind, through_the_head",
    [
        (CohereConfig(logit_scale=0.25, use_qk_norm=False), CohereForCausalLM, True),
        (GraniteConfig(logits_scaling=4.0), GraniteForCausalLM, True),
        (Gemma2Config(final_logit_softcapping=2.0, head_dim=32), Gemma2ForCausalLM, True),
        (HyperCLOVAXConfig(logits_scaling=4.0), HyperCLOVAXForCausalLM, False),  # multiplies where Granite divides
    ],
)
def test_logits_that_are_scaled_or_capped(model_folder, config, kind, through_the_head):
    config.update(
        dict(vocab_size=352, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
        | dict(intermediate_size=128, max_position_embeddings=CONTEXT, pad_token_id=0, initializer_range=0.2)
    )
    if hasattr(config, "layer_types"):
        config.layer_types = config.layer_types[:2] if config.layer_types else None
    torch.manual_seed(0)
    folder = model_folder(model=kind(config))
    engine = TransformersEngine(OPTIONS)
    engine.load(folder)
    assert (engine._head is not None) == through_the_head
    sequences = sequences_for(engine)
    check(engine.token_stats(sequences), reference(folder, sequences))


def test_batches_change_nothing_and_keep_the_order(model_folder):
    folder = model_folder()
    tables = []
    for batch_tokens in (1, 150, 16384):
        engine = TransformersEngine(OPTIONS.model_copy(update={"batch_tokens": batch_tokens}))
        engine.load(folder)
        tables.append(engine.token_stats(sequences_for(engine)))
    for table in tables[1:]:
        assert table["key"].to_list() == tables[0]["key"].to_list()
        for name in ("logprob", "entropy", "second_logprob"):
            np.testing.assert_allclose(table[name], tables[0][name], rtol=0, atol=2e-5)
    assert tables[0].group_by("key").agg(pl.col("bytes").sum()).height == len(PROBLEMS)
    assert engine.token_stats([]).schema == tables[0].schema


def test_windows_of_a_long_text_keep_its_positions(model_folder):
    engine = TransformersEngine(OPTIONS)
    engine.load(model_folder())
    sequences = tokenize([("long", "Q:", "xyz" * 2 * CONTEXT)], engine.tokenizer, engine.context)
    assert len(sequences) > 1 and sequences[-1].offset > 0
    table = engine.token_stats(sequences)
    first = sequences[0].offset + sequences[0].start
    assert table["position"].to_list() == list(range(first, first + table.height))


def small_memory(engine, limit: int) -> list[tuple[int, ...]]:
    """From now on the model's body has no memory for more than `limit` tokens. Returns the shapes of its passes."""
    shapes = []

    def refuse(module, arguments, keywords):
        shapes.append(tuple(keywords["input_ids"].shape))
        if keywords["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError("no memory")

    engine._model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    return shapes


def test_batches_hold_no_more_than_their_tokens(model_folder):
    engine = TransformersEngine(OPTIONS)
    engine.load(model_folder())
    sequences = sequences_apart(engine)
    shapes = small_memory(engine, 300)
    engine.token_stats(sequences)
    assert sum(texts for texts, _ in shapes) == len(sequences) and 1 < len(shapes) < len(sequences)
    assert all(texts * width <= 300 for texts, width in shapes)
    longest_first = sorted((len(sequence.token_ids) for sequence in sequences), reverse=True)
    assert [width for _, width in shapes] == [longest_first[sum(s[0] for s in shapes[:i])] for i in range(len(shapes))]


def test_too_little_memory_halves_the_batches_for_good_and_changes_no_number(model_folder, caplog):
    engine = TransformersEngine(OPTIONS)
    folder = model_folder()
    engine.load(folder)
    sequences = sequences_apart(engine)
    expected = engine.token_stats(sequences)
    shapes = small_memory(engine, 130)
    table = engine.token_stats(sequences)
    for name in ("key", "position", "token", "bytes", "n_greater", "n_equal"):
        assert table[name].equals(expected[name]), name
    for name in ("logprob", "max_logprob", "second_logprob", "entropy"):
        np.testing.assert_allclose(table[name], expected[name], rtol=0, atol=2e-5)
    texts, width = shapes[0]
    assert texts * width > 130 and f"{texts} texts, {texts * width} tokens" in caplog.text
    assert f"batch_tokens goes from 300 to {texts * width // 2}" in caplog.text
    assert engine._batch_tokens <= 150
    del shapes[:]
    engine.token_stats(sequences)
    assert max(texts * width for texts, width in shapes) <= 130  # no second try of what had failed
    same_module = model_folder("other", seed=1)
    engine.load(same_module)
    assert engine._batch_tokens <= 150
    engine.load(model_folder("another", architecture="gpt2"))
    assert engine._batch_tokens == 300


def test_a_text_too_long_for_the_memory_is_named_with_what_would_help(model_folder):
    engine = TransformersEngine(OPTIONS)
    engine.load(model_folder())
    sequences = sequences_for(engine)
    longest = max(len(sequence.token_ids) for sequence in sequences)
    small_memory(engine, longest - 1)
    with pytest.raises(InputError, match=f"one text of {longest} tokens does not fit .* give dtype bfloat16"):
        engine.token_stats(sequences)


def test_generation_too_has_little_memory(model_folder, caplog):
    engine = TransformersEngine(OPTIONS)
    engine.load(model_folder())
    prompts = ["Q: cat", "Q: hat", "Q: mat", "Q: sat", "Q: bat"]
    expected = engine.generate(prompts, 6)
    shapes = small_memory(engine, 2 * len(engine.tokenizer(prompts[0])["input_ids"]))
    assert engine.generate(prompts, 6) == expected
    assert shapes[0][0] > 2 and "batch_tokens goes from 300" in caplog.text


def test_bfloat16_runs_the_body_and_float32_the_head(model_folder):
    folder = model_folder()
    engine = TransformersEngine(OPTIONS.model_copy(update={"dtype": "bfloat16"}))
    engine.load(folder)
    table = engine.token_stats(sequences_for(engine))
    assert next(engine._model.parameters()).dtype == torch.bfloat16 and engine._head.weight.dtype == torch.float32
    assert table["n_equal"].max() == 1  # bfloat16 logits would tie
    expected = pl.DataFrame(reference(folder, sequences_for(engine)))
    assert abs(table["logprob"].mean() - expected["logprob"].mean()) < 0.05


@pytest.mark.parametrize("tied", [False, True])
def test_a_sweep_reuses_the_module_with_the_new_weights(model_folder, tied):
    engine = TransformersEngine(OPTIONS)
    folders = [model_folder(f"step{seed}", seed=seed, tied=tied) for seed in range(4)]
    modules, tokenizers = [], set()
    for folder in [*folders, folders[0]]:
        engine.load(folder)
        modules.append(engine._model)
        tokenizers.add(id(engine.tokenizer))
        sequences = sequences_for(engine)[:3]
        check(engine.token_stats(sequences), reference(folder, sequences))
    assert len(tokenizers) == 1
    # The first two are built: into the module of the second the first is loaded to prove that this may be done.
    assert modules[0] is not modules[1] and all(module is modules[1] for module in modules[1:])


def test_a_model_that_keeps_something_of_the_weights_before_is_built_anew(tmp_path, caplog):
    """RWKV divides the weights of its later layers in its first pass, and remembers that it has."""
    shape = dict(vocab_size=352, context_length=64, hidden_size=64, num_hidden_layers=4, intermediate_size=96)
    engine, config = TransformersEngine(OPTIONS), RwkvConfig(**shape, rescale_every=2)
    for seed in (0, 1, 2, 3, 0):
        folder = tmp_path / f"step{seed}"
        torch.manual_seed(seed)
        model = RwkvForCausalLM(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(folder)
        byte_level_tokenizer().save_pretrained(folder)
        engine.load(folder)
        sequences = sequences_for(engine)[:3]
        check(engine.token_stats(sequences), reference(folder, sequences))
    assert caplog.text.count("keeps something of the weights before; each checkpoint is built anew") == 1


def test_without_the_first_checkpoint_nothing_is_loaded_in_place(model_folder, caplog):
    engine = TransformersEngine(OPTIONS)
    first, *others = (model_folder(f"step{seed}", seed=seed) for seed in range(4))
    engine.load(first)
    shutil.rmtree(first)
    for folder in others:
        engine.load(folder)
        sequences = sequences_for(engine)[:2]
        check(engine.token_stats(sequences), reference(folder, sequences))
    assert caplog.text.count("step0 is not as it was to prove it; each checkpoint is built anew") == 1


def test_a_checkpoint_that_does_not_fill_the_module_is_built_anew(model_folder):
    engine = TransformersEngine(OPTIONS)
    engine.load(model_folder("a", tied=True))
    first = engine._model
    folder = model_folder("b", tied=True, seed=1)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # both names of the tied pair
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine.load(folder)
    assert engine._model is not first
    sequences = sequences_for(engine)[:3]
    check(engine.token_stats(sequences), reference(folder, sequences))
    engine.load(model_folder("c", architecture="gpt2"))
    assert type(engine._model).__name__ == "GPT2LMHeadModel"


def test_a_head_of_its_own_in_a_tied_model_is_refused(model_folder):
    engine = TransformersEngine(OPTIONS)
    for seed in range(3):  # the third would be loaded in place
        folder = model_folder(f"step{seed}", tied=True, seed=seed)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        if seed == 2:
            weights["lm_head.weight"][3, 4] += 1
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(
                InputError, match="step2: config.json has tie_word_embeddings: true, but the weights hold"
            ):
                engine.load(folder)
        else:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            engine.load(folder)


def test_a_model_is_gone_before_the_next_one_is_built(model_folder, monkeypatch):
    engine, built, gone = TransformersEngine(OPTIONS), [], []
    original = transformers_engine.build_model

    def build(*arguments):
        gone.append(all(model() is None for model in built))
        model = original(*arguments)
        model.known_by = [model]  # a cycle, as a model with code of its own may have
        built.append(weakref.ref(model))
        return model

    monkeypatch.setattr(transformers_engine, "build_model", build)
    gc.disable()  # else it may come by chance
    try:
        for folder in (model_folder("a"), model_folder("b", architecture="gpt2"), model_folder("c")):
            engine.load(folder)
            engine.token_stats(sequences_for(engine)[:2])
            engine.generate(["The cat"], 2)
        engine.close()
        assert gone == [True] * 3 and built[-1]() is None
    finally:
        gc.enable()


def test_sharded_weights_load_in_place_too(model_folder, tmp_path):
    engine = TransformersEngine(OPTIONS)
    for seed in range(2):
        engine.load(model_folder(f"whole{seed}", seed=seed))
    first = engine._model
    folder = model_folder("sharded", seed=5)
    (folder / "model.safetensors").unlink()
    tiny_model(seed=5).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    engine.load(folder)
    assert engine._model is first
    sequences = sequences_for(engine)[:3]
    check(engine.token_stats(sequences), reference(folder, sequences))


def test_a_folder_whose_files_changed_is_loaded_again(model_folder):
    engine = TransformersEngine(OPTIONS)
    folder = model_folder(seed=0)
    engine.load(folder)
    before = engine.token_stats(sequences_for(engine)[:2])
    tiny_model(seed=1).save_pretrained(folder)
    engine.load(folder)
    assert not before.equals(engine.token_stats(sequences_for(engine)[:2]))


# Broken folders


def test_what_is_missing_or_broken_is_named(model_folder):
    def broken(name, change):
        folder = model_folder(name)
        change(folder)
        return folder

    def cut(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    def shrink_vocabulary(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 257}))

    cases = {
        "config.json missing": lambda folder: (folder / "config.json").unlink(),
        "tokenizer.json missing": lambda folder: (folder / "tokenizer.json").unlink(),
        "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
        r"model.safetensors: found \d+ bytes, but its header promises": cut,
        "no readable safetensors header in 3 bytes": lambda folder: (folder / "model.safetensors").write_bytes(b"abc"),
        "config.json: broken JSON": lambda folder: (folder / "config.json").write_text("{"),
        "tokenizer.json: no readable tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
        r"found token id \d+ in the tokenizer, but vocab_size 257": shrink_vocabulary,
        "key vocab_size: found None": lambda folder: (folder / "config.json").write_text("{}"),
    }
    for number, (words, change) in enumerate(cases.items()):
        folder = broken(f"m{number}", change)
        with pytest.raises(InputError, match=words) as caught:
            check_folder(folder)
        assert str(folder) in str(caught.value)
    with pytest.raises(InputError, match="no such folder"):
        check_folder(folder / "none")
    check_folder(model_folder("good"))


def test_checks_import_no_heavy_module():
    code = "import sys, proxycast.extraction.sweep, proxycast.truth.targets\n"
    code += "print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_what_generation_does_not_need_is_not_imported(model_folder):
    """scikit-learn would take a second of every job's start."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom proxycast.config.extraction import ExtractionOptions\n"
        "from proxycast.extraction.engines.factory import make_engine\n"
        f"engine = make_engine(ExtractionOptions(device='cpu'))\nengine.load(Path({str(model_folder())!r}))\n"
        "assert engine.generate(['The cat'], 2)\nprint({'sklearn'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_missing_weights_are_no_random_weights(model_folder):
    folder = model_folder()
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    after_a_whole_one = TransformersEngine(OPTIONS)
    after_a_whole_one.load(model_folder("whole"))
    for engine in (TransformersEngine(OPTIONS), after_a_whole_one):
        with pytest.raises(InputError, match="1 weights missing .*: model.layers.1.mlp.up_proj.weight"):
            engine.load(folder)


def test_an_unknown_architecture_is_named(model_folder):
    folder = model_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "hf_olmo"}))
    with pytest.raises(InputError, match="transformers cannot read it"):
        TransformersEngine(OPTIONS).load(folder)


def test_a_failed_load_leaves_no_half_loaded_checkpoint(model_folder):
    engine = TransformersEngine(OPTIONS)
    good, bad = model_folder("good"), model_folder("bad", architecture="gpt2")
    engine.load(good)
    (bad / "config.json").write_text((bad / "config.json").read_text().replace('"gpt2"', '"nothing"'))
    with pytest.raises(InputError):
        engine.load(bad)
    engine.load(good)
    sequences = sequences_for(engine)[:2]
    check(engine.token_stats(sequences), reference(good, sequences))


@pytest.mark.parametrize("where", ["norm", "embedding"])
def test_nan_weights_name_model_solution_and_position(model_folder, where):
    model = tiny_model()
    token = byte_level_tokenizer()("7")["input_ids"][0]
    with torch.no_grad():
        if where == "norm":
            model.model.norm.weight[3] = torch.nan
        else:
            model.model.embed_tokens.weight[token] = torch.nan  # what follows a "7" cannot be predicted
    folder = model_folder(model=model)
    engine = TransformersEngine(OPTIONS)
    engine.load(folder)
    assert engine._head is not None
    sequences = tokenize([("t/a", "Q:", " five five five"), ("t/b", "Q:", " 7.")], engine.tokenizer, engine.context)
    # Attention gives a later NaN the weight 0, and 0 * NaN is NaN: it may show a few positions early, in the right
    # solution.
    where_found = f"t/a at position {sequences[0].start}" if where == "norm" else r"t/b at position \d"
    with pytest.raises(InputError, match=f"^{folder}: the logits of {where_found} are NaN"):
        engine.token_stats(sequences)


# Greedy generation


def greedy(model, tokenizer, prompt, steps) -> str:
    """Arg max after arg max, each from a forward pass over everything before it."""
    ids = tokenizer(prompt)["input_ids"]
    length = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            token = model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[length:], skip_special_tokens=True)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_generation_is_greedy_and_batches_change_nothing(model_folder, architecture):
    tokenizer = byte_level_tokenizer(bos=True)
    folder = model_folder(architecture=architecture, tokenizer=tokenizer)
    engine = TransformersEngine(OPTIONS)
    engine.load(folder)
    prompts = [prompt + solution[: i + 1] for i, (_, prompt, solution) in enumerate(PROBLEMS)] + ["Q: cat", "Q: hat"]
    texts = engine.generate(prompts, 12)
    assert texts == [engine.generate([prompt], 12)[0] for prompt in prompts]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert texts == [greedy(model, tokenizer, prompt, 12) for prompt in prompts]
    assert len(set(texts)) > 3


def test_generation_ends_at_the_stop_string_the_end_token_and_the_context(model_folder):
    model = tiny_model()
    engine = TransformersEngine(OPTIONS)
    engine.load(model_folder(model=model))
    (text,) = engine.generate(["The cat"], 40)
    assert len(text) > 20
    for stop in (text[5:7], text[12:15]):
        assert engine.generate(["The cat"], 40, [stop, "never there"]) == [text.split(stop)[0]]
    with pytest.raises(InputError, match=f"to continue a prompt it must have 1 to {CONTEXT - 1} tokens"):
        engine.generate(["xyz" * CONTEXT], 5)
    with pytest.raises(InputError, match="found 0 tokens in the prompt"):
        engine.generate([""], 5)
    near_the_end = engine.tokenizer.decode(engine.tokenizer("xyz" * CONTEXT)["input_ids"][: CONTEXT - 2])
    assert engine.generate([near_the_end], 50) == engine.generate([near_the_end], 2)
    said = engine.tokenizer("The cat" + text)["input_ids"]
    third = said[len(engine.tokenizer("The cat")["input_ids"]) + 2]
    with torch.no_grad():  # the end-of-text token takes the place of the third token that the model said
        model.lm_head.weight[engine.tokenizer.eos_token_id] = model.lm_head.weight[third] * 1.01
    engine.load(model_folder("ending", model=model))
    (ended,) = engine.generate(["The cat"], 40)
    assert text.startswith(ended) and len(ended) < len(text)


# Extraction


@pytest.fixture
def job(model_folder, tmp_path):
    checkpoints = [(f"step{seed}", model_folder(f"folder{seed}", seed=seed)) for seed in range(3)]
    tasks = {
        task: [Solution(id=key, prompt=prompt, solution=text) for key, prompt, text in PROBLEMS[start::2]]
        for start, task in enumerate(["first", "second"])
    }
    return dict(checkpoints=checkpoints, tasks=tasks, options=OPTIONS, parts_dir=tmp_path / "parts", code="code")


def extracted(engine, **job) -> pl.DataFrame:
    """What `extract` wrote for the checkpoints of the job, in their order."""
    marks = finished(extract(engine, **job))
    assert list(marks) == [name for name, _ in job["checkpoints"]]
    return pl.concat([pl.read_parquet(job["parts_dir"] / f"{name}.parquet") for name in marks])


class CountingEngine(TransformersEngine):
    """Counts what it loads, and is killed at the n-th load."""

    def __init__(self, killed_at=math.inf):
        super().__init__(OPTIONS)
        self.killed_at, self.loads = killed_at, []

    def load(self, folder):
        self.loads.append(folder.name)
        if len(self.loads) == self.killed_at:
            raise KeyboardInterrupt
        super().load(folder)


def test_extraction_makes_one_row_per_checkpoint_task_and_token(job):
    table = extracted(CountingEngine(), **job)
    assert table.columns == ["checkpoint", "task", "solution", *list(TOKEN_STATS_SCHEMA)[1:]]
    engine = TransformersEngine(OPTIONS)
    engine.load(dict(job["checkpoints"])["step1"])
    expected = engine.token_stats(sequences_for(engine))
    for task, start in (("first", 0), ("second", 1)):
        ids = [key for key, _, _ in PROBLEMS[start::2]]
        found = table.filter(checkpoint="step1", task=task)
        assert found["solution"].unique(maintain_order=True).to_list() == ids
        direct = expected.filter(pl.col("key").is_in(ids))
        assert found["token"].to_list() == direct["token"].to_list()
        np.testing.assert_allclose(found["logprob"], direct["logprob"], rtol=0, atol=2e-5)


def test_a_killed_extraction_resumes_where_it_stopped(job):
    with pytest.raises(KeyboardInterrupt):
        finished(extract(CountingEngine(killed_at=3), **job))
    assert sorted(os.listdir(job["parts_dir"])) == ["step0.parquet", "step1.parquet"]
    engine = CountingEngine()
    table = extracted(engine, **job)
    assert engine.loads == ["folder2"]
    assert table["checkpoint"].unique(maintain_order=True).to_list() == ["step0", "step1", "step2"]
    untouched = CountingEngine()
    assert extracted(untouched, **job).equals(table) and untouched.loads == []


def test_a_part_that_is_cut_or_made_from_something_else_is_made_again(job):
    table = extracted(CountingEngine(), **job)
    part = job["parts_dir"] / "step1.parquet"
    part.write_bytes(part.read_bytes()[:-50])
    pl.DataFrame({"a": [1]}).write_parquet(job["parts_dir"] / "step2.parquet")
    engine = CountingEngine()
    assert extracted(engine, **job).equals(table)
    assert engine.loads == ["folder1", "folder2"]

    def loads(**changed):
        engine = CountingEngine()
        finished(extract(engine, **job | changed))
        return engine.loads

    assert loads(options=OPTIONS.model_copy(update={"batch_tokens": 77})) == []
    tiny_model(seed=9).save_pretrained(job["checkpoints"][0][1])
    assert loads() == ["folder0"]
    fewer = job["tasks"] | {"first": job["tasks"]["first"][1:]}
    assert loads(tasks=fewer) == ["folder0", "folder1", "folder2"]
    assert loads(tasks=fewer, options=OPTIONS.model_copy(update={"tail_tokens": 3})) == [
        "folder0",
        "folder1",
        "folder2",
    ]
    assert loads(code="other code") == ["folder0", "folder1", "folder2"]


def test_every_folder_is_checked_before_the_first_model_runs(job):
    (job["checkpoints"][2][1] / "tokenizer.json").unlink()
    engine = CountingEngine()
    with pytest.raises(InputError, match="folder2: tokenizer.json missing"):
        finished(extract(engine, **job))
    assert engine.loads == []


def test_tokenisation_errors_name_task_and_solution(job):
    job["tasks"]["second"].append(Solution(id="long", prompt="x" * 999, solution="y"))
    job["options"] = OPTIONS.model_copy(update={"windowing": False})
    with pytest.raises(InputError, match=f"^second/long: found \\d+ tokens .* holds {CONTEXT};"):
        finished(extract(CountingEngine(), **job))


def test_an_unknown_device_is_an_input_error():
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="key device: found cuda"):
            TransformersEngine(ExtractionOptions(device="cuda"))
