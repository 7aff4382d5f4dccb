"""The vLLM engine, with the real vLLM on a CPU, against the library's own float32 logits; and every guard around it."""

import inspect
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from awkward_models import AWKWARD
from conftest import byte_level_tokenizer
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine
from proxycast.extraction.schema import TokenStats
from proxycast.extraction.shared_prompts import common_prefix
from proxycast.options import InputError
from proxycast.solutions.tokenisation import ScoredSequence, tokenize
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("vllm_imported")]

TEXTS = [
    ("sum", "Q: what is 2 plus 3?\nA:", " 2 plus 3 is five."),
    ("cat", "The cat", " sat on the mat; the hat."),
    ("prose", "Once", " the cat is on the mat and the hat is what 2 plus 3 is." * 2),
    ("token", "A: 2 plus 3 is", " five"),
]


def reference(folder: Path, sequences) -> dict[str, np.ndarray]:
    """The six statistics from whole float32 logits of the plain library, one sequence at a time, in float64."""
    # "eager", because "sdpa" leaves out a soft cap of the attention (Gemma 2).
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    rows = []
    for sequence in sequences:
        with torch.no_grad():
            logits = model(torch.from_numpy(sequence.token_ids)[None]).logits[0].double()
        for position in range(sequence.start, sequence.stop):
            row, token = logits[position - 1], int(sequence.token_ids[position])
            logprobs = row.log_softmax(0)
            top = logprobs.sort(descending=True).values
            entropy = float(-(logprobs.exp() * logprobs).sum())
            rank = int((row > row[token]).sum()), int((row == row[token]).sum())
            rows.append((float(logprobs[token]), float(top[0]), float(top[1]), entropy, *rank))
    return dict(zip(TokenStats._fields, np.array(rows).T))


def assert_agrees(table: pl.DataFrame, expected: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    for name in TokenStats._fields[:4]:
        np.testing.assert_allclose(table[name].to_numpy(), expected[name], atol=tolerance, rtol=0, err_msg=name)
    # Logits that differ by rounding only can change places; away from such ties the rank is exact.
    apart = np.abs(table["n_greater"].to_numpy() - expected["n_greater"])
    assert apart.max() <= 1 and (apart > 0).mean() < 0.02
    np.testing.assert_array_equal(table["n_equal"].to_numpy(), expected["n_equal"])


@pytest.fixture(scope="module")
def llama_folders(tmp_path_factory):
    """Two checkpoints of one architecture."""
    folder = tmp_path_factory.mktemp("llama")
    return [AWKWARD["llama_no_bos_bytelevel"](folder / str(seed), seed) for seed in (0, 1)]


@pytest.fixture
def vllm_engine():
    """make_engine for vLLM whose engines are closed when the test ends."""
    made = []

    def make(**options):
        made.append(make_engine(ExtractionOptions(engine="vllm", **options)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


# vLLM runs it through transformers, whose classes it changes for the rest of the process: see below.
THROUGH_TRANSFORMERS = "gpt_neox"
NOT_IN_FLOAT32 = "qwen3_next_deltanet"  # by vLLM's CPU build
# vLLM 0.32's CPU build loads the experts in place so wrongly that log-probs are off by nats.
NOT_IN_PLACE = {"qwen3_moe"}


@pytest.mark.parametrize("kind", sorted(set(AWKWARD) - {THROUGH_TRANSFORMERS, NOT_IN_FLOAT32}))
def test_agrees_with_float32_logits_and_reloads_in_place(kind, tmp_path, vllm_engine, caplog, monkeypatch):
    """With the head as a matrix, as on a GPU; the other tests take vLLM's logits, as is faster on a CPU."""
    monkeypatch.setattr("proxycast.extraction.engines.workers.vllm_worker.MATRIX_ON", {"cpu"})
    caplog.set_level(logging.INFO)
    folders = [AWKWARD[kind](tmp_path / str(seed), seed) for seed in (0, 1)]
    engine, running = vllm_engine(), []
    for folder in (*folders, *folders):
        engine.load(folder)
        running.append(engine._llm)
        sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
        table = engine.token_stats(sequences)
        assert_agrees(table, reference(folder, sequences))
        assert table["position"].to_list() == [p for s in sequences for p in range(s.start, s.stop)]
        assert table["token"].to_list() == [t for s in sequences for t in s.token_ids[s.start : s.stop]]
    assert "(the head as a matrix)" in caplog.text and "vLLM's logits" not in caplog.text
    # The first two have an engine each; the third proves that loading in place says the same as its own engine did.
    if kind in NOT_IN_PLACE:
        assert len(set(map(id, running))) == 4 and caplog.text.count("off those by a new engine; so each") == 1
    else:
        assert running[0] is not running[1] is running[2] is running[3]


def test_what_the_cpu_build_lacks_is_one_line(tmp_path, vllm_engine):
    folder = AWKWARD[NOT_IN_FLOAT32](tmp_path / "delta")
    words = "delta: vLLM cannot run this model here: .*CPU GDN attention requires BF16.; set .* to transformers$"
    with pytest.raises(InputError, match=words):
        vllm_engine().load(folder)


def test_gated_deltanet_in_bfloat16(tmp_path, vllm_engine):
    """As far from float32 as the engine on transformers is."""
    folder = AWKWARD[NOT_IN_FLOAT32](tmp_path / "delta")
    tables = []
    for engine in (vllm_engine(dtype="bfloat16"), make_engine(ExtractionOptions(dtype="bfloat16"))):
        engine.load(folder)
        sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
        tables.append(engine.token_stats(sequences))
    exact = reference(folder, sequences)["logprob"]
    by_vllm, by_transformers = (np.abs(table["logprob"].to_numpy() - exact).mean() for table in tables)
    assert by_vllm < 2 * by_transformers


def small_folder(folder, model):
    model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


def test_longrope_agrees_up_to_its_original_context_and_is_refused_beyond(tmp_path, vllm_engine):
    """vLLM chooses the factors by max_model_len, transformers by the length of each text."""
    rope = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.2] * 16, long_factor=[8.0] * 16)
    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=352)
    context = dict(max_position_embeddings=256, original_max_position_embeddings=64)
    tokens = dict(pad_token_id=None, bos_token_id=0, eos_token_id=1)
    config = Phi3Config(**shape, **context, **tokens, rope_parameters=rope, initializer_range=0.3)
    folder = small_folder(tmp_path / "phi3", Phi3ForCausalLM(config))
    with pytest.raises(InputError, match="give max_model_len, at most 64; set extraction.engine .* to transformers"):
        vllm_engine().check(folder)
    engine = vllm_engine(max_model_len=64)
    engine.load(folder)
    sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
    assert_agrees(engine.token_stats(sequences), reference(folder, sequences))


def test_a_model_that_looks_ahead_is_refused(tmp_path, vllm_engine):
    """vLLM runs a Qwen2 as an encoder where its config.json says so, and so does transformers."""
    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=352)
    rest = dict(num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3)
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **rest))
    folder = small_folder(tmp_path / "qwen2", model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    for engine in (vllm_engine(), make_engine(ExtractionOptions(device="cpu"))):
        with pytest.raises(InputError, match=f"^{folder}: .*looks ahead"):
            engine.load(folder)


def test_another_architecture_gets_another_engine(tmp_path, llama_folders, vllm_engine):
    other = AWKWARD["gpt2_tied"](tmp_path / "gpt2")
    engine = vllm_engine()
    for folder in (llama_folders[0], other, llama_folders[1]):
        engine.load(folder)
        sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
        assert_agrees(engine.token_stats(sequences), reference(folder, sequences))


def test_what_vllm_says_of_unloaded_layers_is_heard():
    from proxycast.extraction.engines.workers.vllm_worker import _unloaded_layers
    from vllm.model_executor.model_loader.reload import layerwise

    with _unloaded_layers() as unloaded:
        layerwise.logger.warning("%s: Failed to load weights", "RMSNorm")
    assert unloaded == {"RMSNorm"}
    # vLLM still says it in these words:
    assert 'logger.warning("%s: Failed to load weights", layer.__class__.__name__)' in inspect.getsource(layerwise)


def says_that_it_forgot_a_norm(runner, reload, weights_path):
    from vllm.model_executor.model_loader.reload import layerwise

    reload(runner, weights_path=weights_path)
    layerwise.logger.warning("%s: Failed to load weights", "RMSNorm")


def forgets_a_norm(runner, reload, weights_path):
    norm = runner.model.model.norm.weight
    before = norm.clone()
    reload(runner, weights_path=weights_path)
    norm.data.copy_(before)


@pytest.mark.parametrize(
    "fault, words",
    [
        (
            says_that_it_forgot_a_norm,
            "could not load it in place: .*0: vLLM left the weights of RMSNorm as they were; so each",
        ),
        (forgets_a_norm, "loaded in place its log-probs are .* nats off those by a new engine"),
    ],
)
def test_a_layer_that_keeps_its_old_weights_costs_a_new_engine(
    fault, words, tmp_path, vllm_engine, monkeypatch, caplog
):
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    reload = GPUModelRunner.reload_weights
    monkeypatch.setattr(GPUModelRunner, "reload_weights", lambda self, weights_path: fault(self, reload, weights_path))
    folders = [AWKWARD["llama_no_bos_bytelevel"](tmp_path / str(seed), seed) for seed in (0, 1, 2)]
    engine, running = vllm_engine(), []
    for folder in (*folders, folders[0]):
        engine.load(folder)
        running.append(id(engine._llm))
        sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
        assert_agrees(engine.token_stats(sequences), reference(folder, sequences))
    assert re.search(words, caplog.text) and caplog.text.count("gets a new engine") == 1


def test_chunks_of_a_prompt_in_several_steps_change_nothing(llama_folders, vllm_engine):
    whole, chunked = vllm_engine(), vllm_engine(batch_tokens=16)
    tables = []
    for engine in (whole, chunked):
        engine.load(llama_folders[0])
        texts = [(f"{key}{i}", prompt, text) for i in range(5) for key, prompt, text in TEXTS]
        tables.append(engine.token_stats(tokenize(texts, engine.tokenizer, engine.context)))
        engine.close()
    assert tables[0].select(pl.exclude(TokenStats._fields)).equals(tables[1].select(pl.exclude(TokenStats._fields)))
    for name in TokenStats._fields[:4]:
        np.testing.assert_allclose(tables[0][name].to_numpy(), tables[1][name].to_numpy(), atol=1e-4)


def test_a_sequence_may_fill_the_context(llama_folders, vllm_engine):
    engine = vllm_engine()
    engine.load(llama_folders[0])
    text = TEXTS[2][2] * 20
    sequences = tokenize([("long", "Once", text)], engine.tokenizer, engine.context)
    assert len(sequences) > 1 and all(len(sequence.token_ids) == engine.context for sequence in sequences[1:])
    assert_agrees(engine.token_stats(sequences), reference(llama_folders[0], sequences))


def test_generates_what_transformers_generates(llama_folders, vllm_engine):
    prompts = [prompt for _, prompt, _ in TEXTS]
    texts = []
    for engine in (vllm_engine(), make_engine(ExtractionOptions())):
        engine.load(llama_folders[1])
        texts.append((engine.generate(prompts, 8), engine.generate(prompts, 8, stop=[" ", "e"])))
    assert texts[0] == texts[1]
    with pytest.raises(InputError, match="1 to 127 tokens"):
        vllm = vllm_engine()
        vllm.load(llama_folders[1])
        vllm.generate([TEXTS[2][2] * 20], 8)


def test_bfloat16_meets_a_float32_head(llama_folders, vllm_engine):
    tables = []
    for engine in (vllm_engine(dtype="bfloat16"), make_engine(ExtractionOptions())):
        engine.load(llama_folders[0])
        tables.append(engine.token_stats(tokenize(TEXTS, engine.tokenizer, engine.context)))
    logprob = [table["logprob"].to_numpy() for table in tables]
    assert 1e-3 < np.abs(logprob[0] - logprob[1]).max() < 0.5  # it is bfloat16, and it is this model
    # bfloat16 logits would be multiples of 1/32 and more; a third of the positions would be tied.
    assert (tables[0]["n_equal"] == 1).all()


def test_max_model_len_shortens_the_context(llama_folders, vllm_engine):
    engine = vllm_engine(max_model_len=32)
    engine.load(llama_folders[0])
    assert engine.context == 32
    sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
    assert_agrees(engine.token_stats(sequences), reference(llama_folders[0], sequences))


# v1 in one process runs in test_architectures_that_vllm_runs_through_transformers.
IN_ITS_OWN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
PROCESSES = {
    "v1 on two workers": ("v1", IN_ITS_OWN_PROCESS, {"tensor_parallel_size": 2}),
    "v2": pytest.param("v2", {}, {}, marks=pytest.mark.triton),
    "v2 in chunks": pytest.param("v2", {}, {"batch_tokens": 16}, marks=pytest.mark.triton),
}


def run_apart(tmp_path: Path, folders: list[Path], runner="v1", environment=None, options=None, texts=TEXTS):
    """Statistics and continuations of four tokens by a vLLM engine in a process of its own."""
    workers = (options or {}).get("tensor_parallel_size", 1)
    how = "(vLLM's logits, which are faster on a CPU)" if workers == 1 else f"(the head in {workers} slices)"
    settings = dict(runner=runner, environment=environment or {}, options=options or {}, texts=texts)
    (tmp_path / "options.json").write_text(json.dumps(settings | {"folders": [str(f) for f in folders]}))
    out = tmp_path / "out.parquet"
    command = [sys.executable, Path(__file__).with_name("run_vllm.py"), tmp_path / "options.json", out]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout[-6000:]
    assert how in finished.stdout
    return pl.read_parquet(out), json.loads(out.with_suffix(".json").read_text())


def assert_agrees_for_all(folders: list[Path], table: pl.DataFrame, generated: list[str]) -> None:
    """`table` against the plain library's logits, `generated` against the other engine's greedy continuations."""
    engine = make_engine(ExtractionOptions())
    for folder in folders:
        engine.load(folder)
        sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
        assert_agrees(table.filter(folder=str(folder)), reference(folder, sequences))
    assert generated == engine.generate([prompt for _, prompt, _ in TEXTS], 4)


@pytest.mark.parametrize("runner, environment, options", PROCESSES.values(), ids=PROCESSES.keys())
def test_runners_and_processes(runner, environment, options, llama_folders, tmp_path):
    assert_agrees_for_all(llama_folders, *run_apart(tmp_path, llama_folders, runner, environment, options))


# Texts that begin alike

EXAMPLES = "Q: what is 2 plus 3?\nA: 2 plus 3 is five. The cat sat on the mat; the hat is his.\n" * 12
LETTERS = [(f"letter {letter}", EXAMPLES + "Which is it?\nA:", f" {letter}") for letter in "ABCD"]
# Two begin with the same word: what they share ends behind the first token that is scored.
WORDS = [(text, EXAMPLES + "What sat on it?\nA:", text) for text in (" the cat", " the hat", " a mat", " the cat")]


@pytest.fixture(scope="module")
def long_folders(tmp_path_factory):
    """Two checkpoints that read 1024 tokens: vLLM's cache has blocks of 128 on a CPU."""
    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=352)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LlamaConfig(**shape, initializer_range=0.3, max_position_embeddings=1024)
        folders.append(small_folder(tmp_path_factory.mktemp(f"long{seed}"), LlamaForCausalLM(config)))
    return folders


def scheduled(engine, sequences) -> tuple[pl.DataFrame, int]:
    """The statistics, and the number of tokens that vLLM computed for them."""
    runner, counts = runner_of(engine), []
    original = runner.execute_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            runner,
            "execute_model",
            lambda steps, *rest, **named: (
                counts.append(steps.total_num_scheduled_tokens) or original(steps, *rest, **named)
            ),
        )
        return engine.token_stats(sequences), sum(counts)


def test_prompts_that_texts_share_are_computed_once(long_folders, vllm_engine, monkeypatch):
    engine = vllm_engine()
    for folder in (*long_folders, *long_folders):  # the cache must not keep what other weights have made
        engine.load(folder)
        sequences = tokenize([*LETTERS, *WORDS], engine.tokenizer, engine.context)
        table, computed = scheduled(engine, sequences)
        whole = sum(sequence.stop - 1 for sequence in sequences)
        shared = common_prefix(sequences[0].token_ids, sequences[-1].token_ids) // 128 * 128
        assert shared >= 256 and computed == whole - (len(sequences) - 1) * shared
        assert_agrees(table, reference(folder, sequences))
        again, as_many = scheduled(engine, sequences)  # a call finds nothing of the one before
        assert again.equals(table) and as_many == computed
    with monkeypatch.context() as patch:
        patch.setattr(
            "proxycast.extraction.engines.vllm.may_skip_prefix", lambda sequences, _: [False] * len(sequences)
        )
        expected, computed = scheduled(engine, sequences)
    assert computed == whole
    for name in TokenStats._fields[:4]:
        np.testing.assert_allclose(table[name].to_numpy(), expected[name].to_numpy(), rtol=0, atol=1e-4)


def test_shared_prompts_behind_a_window_of_attention(tmp_path, vllm_engine):
    """Every other layer looks back 64 tokens: vLLM keeps other blocks for it than for the rest."""
    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=352)
    rest = dict(intermediate_size=128, head_dim=32, query_pre_attn_scalar=32, sliding_window=64, initializer_range=0.3)
    torch.manual_seed(0)
    folder = small_folder(
        tmp_path / "gemma", Gemma2ForCausalLM(Gemma2Config(**shape, **rest, max_position_embeddings=1024))
    )
    engine = vllm_engine()
    engine.load(folder)
    sequences = tokenize([*LETTERS, *WORDS], engine.tokenizer, engine.context)
    table, computed = scheduled(engine, sequences)
    assert_agrees(table, reference(folder, sequences))
    assert computed < sum(sequence.stop - 1 for sequence in sequences) / 2


def test_a_text_of_which_more_is_cached_is_computed_whole(long_folders, vllm_engine):
    """The first one scores the end, the others what the cache holds of the first."""
    engine = vllm_engine()
    engine.load(long_folders[0])
    [whole] = tokenize([("end", EXAMPLES, " the cat")], engine.tokenizer, engine.context)
    ids, random = whole.token_ids, np.random.default_rng(0)
    inside = [
        ScoredSequence(f"from {start}", ids, start, len(ids), np.ones(len(ids) - start, np.int32))
        for start in (1, 130, 256, 257)
    ]
    other = np.concatenate([ids[:300], random.integers(1, 90, 200)])
    sequences = [whole, *inside, ScoredSequence("other", other, 200, 500, np.ones(300, np.int32))]
    assert_agrees(engine.token_stats(sequences), reference(long_folders[0], sequences))


def test_a_hit_that_reaches_what_is_scored_is_an_error(long_folders, vllm_engine, monkeypatch):
    from proxycast.extraction.engines.vllm import HookError

    engine = vllm_engine()
    engine.load(long_folders[0])
    sequences = tokenize([(str(i), "A:", EXAMPLES) for i in range(2)], engine.tokenizer, engine.context)
    monkeypatch.setattr(
        "proxycast.extraction.engines.vllm.may_skip_prefix", lambda sequences, _: [True] * len(sequences)
    )
    with pytest.raises(HookError, match="got nothing"):
        engine.token_stats(sequences)


def test_a_cache_that_is_wrong_is_found_at_the_start(long_folders, vllm_engine, monkeypatch, caplog):
    engine = vllm_engine()
    original = engine._statistics

    def wrong(sequences):
        return original(sequences) + len(sequences) - 1  # two texts that share a prompt are a nat off

    monkeypatch.setattr(engine, "_statistics", wrong)
    engine.load(long_folders[0])
    assert "when vLLM keeps a prompt that texts share; each is computed whole" in caplog.text
    monkeypatch.setattr(engine, "_statistics", original)
    sequences = tokenize(LETTERS, engine.tokenizer, engine.context)
    table, computed = scheduled(engine, sequences)
    assert computed == sum(sequence.stop - 1 for sequence in sequences)
    assert_agrees(table, reference(long_folders[0], sequences))


@pytest.mark.parametrize("runner, environment, options", PROCESSES.values(), ids=PROCESSES.keys())
def test_shared_prompts_in_each_runner(runner, environment, options, long_folders, tmp_path):
    texts = [*LETTERS[:2], *WORDS[:3]]
    table, _ = run_apart(tmp_path, long_folders[:1], runner, environment, options, texts)
    engine = make_engine(ExtractionOptions())
    engine.load(long_folders[0])
    sequences = tokenize(texts, engine.tokenizer, engine.context)
    assert_agrees(table, reference(long_folders[0], sequences))


@pytest.mark.parametrize("kind", ["llama_no_bos_bytelevel", "gemma2_softcap", "falcon_h1_mamba2"])
def test_only_attention_alone_has_a_cache(kind, tmp_path, vllm_engine):
    engine = vllm_engine()
    engine.load(AWKWARD[kind](tmp_path / kind))
    assert engine._llm.llm_engine.vllm_config.cache_config.enable_prefix_caching == (kind != "falcon_h1_mamba2")


def test_the_head_sees_the_tail_of_a_long_text_alone(long_folders, vllm_engine, monkeypatch):
    """In chunks: no tensor of it has more rows than the tail."""
    engine, rows = vllm_engine(batch_tokens=100), []
    engine.load(long_folders[0])
    sequences = tokenize([("long", "A:", EXAMPLES)], engine.tokenizer, engine.context, tail_tokens=30)
    model = runner_of(engine).model
    original = model.compute_logits
    monkeypatch.setattr(model, "compute_logits", lambda hidden: rows.append(len(hidden)) or original(hidden))
    assert_agrees(engine.token_stats(sequences), reference(long_folders[0], sequences))
    steps = -(-(sequences[0].stop - 1) // 100)
    assert steps > 2 and 30 <= sum(rows) <= 30 + steps  # each step has one token of vLLM's own


def test_one_worker_in_a_process_of_its_own(llama_folders, tmp_path):
    """With one checkpoint, as each start takes long; test_vllm_study.py has three."""
    assert_agrees_for_all(llama_folders[:1], *run_apart(tmp_path, llama_folders[:1], environment=IN_ITS_OWN_PROCESS))


def test_architectures_that_vllm_runs_through_transformers(tmp_path):
    folders = [AWKWARD[THROUGH_TRANSFORMERS](tmp_path / str(seed), seed) for seed in (0, 1)]
    assert_agrees_for_all(folders, *run_apart(tmp_path, folders))


def runner_of(engine):
    return engine._llm.llm_engine.model_executor.driver_worker.worker.model_runner


def test_an_answer_without_the_hook_is_an_error(llama_folders, vllm_engine):
    from proxycast.extraction.engines.vllm import HookError

    engine = vllm_engine()
    engine.load(llama_folders[0])
    sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
    del runner_of(engine)._get_prompt_logprobs_dict  # the class's own comes back
    with pytest.raises(HookError, match="sum: vLLM answered without the hook"):
        engine.token_stats(sequences)


def test_other_tokens_than_asked_for_are_an_error(llama_folders, vllm_engine):
    from proxycast.extraction.engines.vllm_replies import HookError, arranged

    engine = vllm_engine()
    engine.load(llama_folders[0])
    sequences = tokenize(TEXTS[:2], engine.tokenizer, engine.context)
    asked = np.concatenate([s.token_ids[s.start : s.stop] for s in sequences])
    spans = np.array([(i, 0, s.start, s.stop - s.start) for i, s in enumerate(sequences)], np.int32)
    columns = np.arange(6 * len(asked), dtype=np.float32)
    found = arranged(engine._folder, sequences, spans.tobytes(), asked.tobytes(), columns.tobytes())
    np.testing.assert_array_equal(found, columns.reshape(6, -1))
    wrong = asked.copy()
    wrong[len(asked) - 1] += 1
    with pytest.raises(HookError, match=f"cat: asked for token {asked[-1]} at position {sequences[1].stop - 1}, got "):
        arranged(engine._folder, sequences, spans.tobytes(), wrong.tobytes(), columns.tobytes())
    short = spans[:1], asked[: spans[0, 3]], columns.reshape(6, -1)[:, : spans[0, 3]]
    with pytest.raises(HookError, match=f"cat: .*position {sequences[1].start}, got nothing"):
        arranged(engine._folder, sequences, *(part.tobytes() for part in short))


def says_less_by_a_hundredth(monkeypatch, module) -> None:
    reduce = module.token_stats_from_hidden
    monkeypatch.setattr(
        module,
        "token_stats_from_hidden",
        lambda *args, **kw: (stats := reduce(*args, **kw))._replace(logprob=stats.logprob - 0.01),
    )


def test_a_head_whose_matrix_says_something_else_is_not_taken(llama_folders, vllm_engine, monkeypatch, caplog):
    from proxycast.extraction.engines.workers import vllm_head

    monkeypatch.setattr("proxycast.extraction.engines.workers.vllm_worker.MATRIX_ON", {"cpu"})
    says_less_by_a_hundredth(monkeypatch, vllm_head)
    engine = vllm_engine()
    with caplog.at_level(logging.INFO):
        engine.load(llama_folders[0])
    assert "(vLLM's logits: by the matrix, logprob are others)" in caplog.text
    sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
    assert_agrees(engine.token_stats(sequences), reference(llama_folders[0], sequences))


def test_a_head_that_fails_here_leaves_vllms_logits(llama_folders, vllm_engine, monkeypatch, caplog):
    def fails(*arguments):
        raise RuntimeError("no such\ninstruction")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr("proxycast.extraction.engines.workers.vllm_head.WorkerHead.statistics", fails)
    engine = vllm_engine()
    engine.load(llama_folders[0])
    assert "(vLLM's logits: " in caplog.text and "no such" in caplog.text
    sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
    assert_agrees(engine.token_stats(sequences), reference(llama_folders[0], sequences))


def test_what_stands_behind_a_head_is_seen(llama_folders, vllm_engine):
    from proxycast.extraction.engines.workers.vllm_head import NotAMatrix, head_of

    engine = vllm_engine()
    engine.load(llama_folders[0])
    runner = runner_of(engine)
    arguments = runner.model, engine.vocabulary, 64, torch.float32, torch.device("cpu")
    assert head_of(*arguments).ranks == 1
    for changed, against in [
        (lambda hidden, compute: compute(hidden) + 1, "something stands behind the head"),
        (lambda hidden, compute: compute(hidden * 2), "something stands in front of the head"),
        (lambda hidden, compute: compute(hidden) * torch.nan, "they are not finite"),
        (lambda hidden, compute: hidden @ torch.ones(64, engine.vocabulary), "0 layers of vLLM's LogitsProcessor"),
    ]:
        model = torch.nn.ModuleList([runner.model])
        model.compute_logits = lambda hidden, changed=changed: changed(hidden, runner.model.compute_logits)
        with pytest.raises(NotAMatrix, match=against):
            head_of(model, *arguments[1:])


def test_other_log_probs_than_stock_are_an_error(llama_folders, vllm_engine, monkeypatch):
    from proxycast.extraction.engines.vllm import HookError
    from proxycast.extraction.engines.workers import vllm_worker
    from proxycast.extraction.engines.workers.vllm_head import NotAMatrix

    def no_matrix(*arguments):
        raise NotAMatrix("not now")

    monkeypatch.setattr(vllm_worker, "head_of", no_matrix)
    says_less_by_a_hundredth(monkeypatch, vllm_worker)
    with pytest.raises(HookError, match="by the hook and by vLLM itself differ by 0.01 nats"):
        vllm_engine().load(llama_folders[0])


def test_broken_weights_are_named_by_the_text_that_shows_them(tmp_path, vllm_engine):
    from safetensors.torch import load_file, save_file

    folder = AWKWARD["llama_no_bos_bytelevel"](tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][7] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    engine = vllm_engine()
    engine.load(folder)
    with pytest.raises(InputError, match="broken: the logits of sum at position"):
        engine.token_stats(tokenize(TEXTS, engine.tokenizer, engine.context))


def test_out_of_memory_is_tried_again_with_half_the_tokens(llama_folders, vllm_engine, monkeypatch, caplog):
    engine = vllm_engine(batch_tokens=1024)
    engine.load(llama_folders[0])
    sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
    expected = engine.token_stats(sequences)
    from vllm import LLM

    generate, limit = LLM.generate, 600

    def with_less_memory(self, *args, **kw):
        if self.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens > limit:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return generate(self, *args, **kw)

    monkeypatch.setattr(LLM, "generate", with_less_memory)
    with caplog.at_level(logging.WARNING):
        again = engine.token_stats(sequences)
    assert "failed at 1024 tokens a step, again with 512" in caplog.text and "3 GiB" in caplog.text
    np.testing.assert_allclose(again["logprob"].to_numpy(), expected["logprob"].to_numpy(), atol=1e-5)
    limit = 0
    with pytest.raises(InputError, match="out of memory at 128 tokens a step.*3 GiB.*tensor_parallel_size"):
        engine.token_stats(sequences)


def test_what_vllm_cannot_run_is_refused_before_anything_is_built(tmp_path, llama_folders, vllm_engine, monkeypatch):
    def change(folder: Path, **settings) -> Path:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))
        return folder

    odd_heads = change(AWKWARD["llama_no_bos_bytelevel"](tmp_path / "odd"), head_dim=24)
    with pytest.raises(InputError, match="odd: its attention heads have 24 dimensions.*to transformers or auto"):
        vllm_engine().load(odd_heads)
    unknown = AWKWARD["llama_no_bos_bytelevel"](tmp_path / "nobodys")
    change(unknown, architectures=["NobodysForCausalLM"])
    with pytest.raises(InputError, match="nobodys: vLLM has no architecture NobodysForCausalLM.*transformers"):
        vllm_engine().check(unknown)
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.29.1")
    with pytest.raises(InputError, match=r"vLLM 0.29.1 is installed; the hook knows 0.32.\*, 0.33.\*"):
        vllm_engine().load(llama_folders[0])


def test_a_model_that_vllm_cannot_build_is_named(llama_folders, vllm_engine):
    with pytest.raises(InputError, match="vLLM cannot build this model: .*"):
        vllm_engine(quantization="awq").load(llama_folders[0])


class FakeRunner:
    """As much of a V1 runner as the installation looks at."""

    model_config = num_prompt_logprobs = requests = model = device = None

    def __init__(self):
        self.input_batch = type("Batch", (), {"req_id_to_index": {}})()
        self.query_start_loc = type("Buffer", (), {"np": None})()

    def _get_prompt_logprobs_dict(self, hidden_states, num_scheduled_tokens, surprise):
        raise AssertionError


def test_a_changed_signature_or_attribute_is_an_error():
    from proxycast.extraction.engines.workers.vllm_worker import Collected, _install_v1, _install_v2
    from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

    with pytest.raises(RuntimeError, match="_get_prompt_logprobs_dict takes .*surprise.*knows"):
        _install_v1(FakeRunner(), Collected(10))
    runner = FakeRunner()
    runner._get_prompt_logprobs_dict = lambda hidden_states, num_scheduled_tokens: {}
    del runner.query_start_loc.__class__.np
    with pytest.raises(RuntimeError, match="has no 'np'"):
        _install_v1(runner, Collected(10))

    runner.prompt_logprobs_worker = PromptLogprobsWorker(4, torch.device("cpu"))
    _install_v2(runner, Collected(10))  # the real one fits
    runner.prompt_logprobs_worker.compute_prompt_logprobs = lambda logits_fn, hidden_states: {}
    with pytest.raises(RuntimeError, match="takes .*'logits_fn', 'hidden_states'.*knows"):
        _install_v2(runner, Collected(10))


def test_requests_of_both_kinds_in_one_step_are_an_error(llama_folders, vllm_engine):
    from vllm import SamplingParams

    engine = vllm_engine()
    engine.load(llama_folders[0])
    both = [
        SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, extra_args=extra)
        for extra in (None, {"proxycast": [0, 1, 5]})
    ]
    with pytest.raises(RuntimeError, match="with and without token statistics"):
        engine._llm.generate([{"prompt_token_ids": [1, 2, 3]}] * 2, both, use_tqdm=False)
    assert "extra_args" in inspect.signature(SamplingParams).parameters
