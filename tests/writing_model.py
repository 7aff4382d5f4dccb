"""A small model that has learned to solve sums, most of the time: a writer whose texts are sometimes right."""

from pathlib import Path

import torch
from awkward_models import byte_level
from proxycast.solutions.rows import Problem
from transformers import LlamaConfig, LlamaForCausalLM

END = "<|end|>"
PATTERN = r"is (\d+)\."
SUMS = [(a, b) for a in range(4) for b in range(5)]
PROBLEMS = [Problem(id=f"{a}+{b}", prompt=f"Q: what is {a} plus {b}?\nA:", answer=str(a + b)) for a, b in SUMS]


def train_writer(folder: Path, steps: int = 60) -> Path:
    """A Llama of two layers in `folder`. Its solutions hold characters of several bytes, which are several tokens."""
    torch.manual_seed(0)
    tokenizer = byte_level([END], eos=END)
    texts = [f"{p.prompt} é → {p.id} is {p.answer}.{END}" for p in PROBLEMS]
    batch = tokenizer(texts, padding=False)["input_ids"]
    length = max(map(len, batch))
    ids = torch.tensor([row + [tokenizer.eos_token_id] * (length - len(row)) for row in batch])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=384,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=128,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
