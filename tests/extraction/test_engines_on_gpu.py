"""What the engines promise on a GPU, held against a plain forward pass there. The same runs on a CPU, in float32."""

import numpy as np
import polars as pl
import pytest
import torch
from conftest import CONTEXT, byte_level_tokenizer
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine
from proxycast.options import InputError
from proxycast.solutions.tokenisation import ScoredSequence, tokenize
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ANSWER = " 2 plus 3 is five. The cat sat on"
TEXTS = [(f"text {i}", "Q: what is 2 plus 3?\nA:", ANSWER * (1 + i % 3)) for i in range(12)]
FLOAT32_NATS = 3e-4  # what docs/how/engines.md says of float32 on a GPU
BFLOAT16_RELATIVE = 2e-2  # of the log-probability of a text, as in tests/benchmarks/extraction.py


@pytest.fixture
def model_folder(tmp_path):
    """A Llama with 64-dimensional heads, shared by pairs, which FlashAttention runs, and sharp predictions."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    byte_level_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def plain_logprobs(folder, sequences: list[ScoredSequence], device: str) -> np.ndarray:
    """Text by text, eager attention, float64 weights and statistics, made on the device."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").to(device)
    found = []
    for sequence in sequences:
        ids = torch.from_numpy(sequence.token_ids).to(device)
        with torch.inference_mode():
            logprobs = model(ids[None]).logits[0, :-1].log_softmax(1).gather(1, ids[1:, None])[:, 0]
        found.append(logprobs[sequence.start - 1 : sequence.stop - 1].cpu().numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_of_the_engine_on_transformers_is_float32(device, model_folder):
    """Even where a library has allowed TF32 for the process."""
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        engine = make_engine(ExtractionOptions(dtype="float32", device=device))
        engine.load(model_folder)
        sequences = tokenize(TEXTS, engine.tokenizer, engine.context)
        found = engine.token_stats(sequences)["logprob"].to_numpy()
        engine.close()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    np.testing.assert_allclose(found, plain_logprobs(model_folder, sequences, device), rtol=0, atol=FLOAT32_NATS)


@pytest.mark.gpu
def test_vllm_refuses_float32(model_folder):
    with pytest.raises(InputError, match="dtype float32 by vLLM is not exact on a GPU"):
        make_engine(ExtractionOptions(engine="vllm", dtype="float32")).check(model_folder)


@pytest.mark.vllm
@pytest.mark.parametrize("device", DEVICES)
def test_both_engines_agree_in_bfloat16(device, model_folder):
    sums = []
    for kind in ("vllm", "transformers"):
        engine = make_engine(ExtractionOptions(engine=kind, dtype="bfloat16", device=device, gpu_memory_fraction=0.3))
        engine.load(model_folder)
        table = engine.token_stats(tokenize(TEXTS, engine.tokenizer, engine.context))
        engine.close()
        sums.append(table.group_by("key", maintain_order=True).agg(pl.col("logprob").cast(float).sum())["logprob"])
    np.testing.assert_allclose(*sums, rtol=BFLOAT16_RELATIVE)
