"""How fast the miniature models train on this machine: threads, processes, compilation, corpora stacked in one model.

    python tests/benchmarks/training.py

prints a markdown table of full training steps (Muon and AdamW included) on random tokens. Tokens of all models and all
processes are counted together. Repeats are interleaved over the rows, so that other load on the machine hits all alike.
"""

import itertools
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from proxycast.config.training import HEAD_DIMENSION, Size, Training
from proxycast.training.miniature import llama
from proxycast.training.miniature.train_corpus import ADAM_BETAS, MUON_MOMENTUM, compiled_loss, orthogonalise, train
from torch import Tensor

SECONDS, REPEATS, WARM_UP_STEPS = 0.8, 5, 3
VOCABULARY = 512
STEPS = 1500  # more than any row gets to; then it starts again
SIZES = {
    "hidden 64 (target)": Size(hidden_size=64, layers=2, intermediate_size=192, steps=STEPS),
    "hidden 32 (small)": Size(hidden_size=32, layers=2, intermediate_size=96, steps=STEPS),
}


@dataclass(frozen=True)
class Choice:
    """One way to spend the machine's cores."""

    size: str
    kind: str  # "eager", "compiled", or how the logits of stacked models are written (compiled too): "matmul", "vmap"
    processes: int
    threads: int
    models: int = 1  # stacked in one process
    batch: int = 16  # sequences of 64 tokens, for each model


def choices() -> list[Choice]:
    """The plain choice of each size comes first."""
    found = []
    for size in SIZES:
        found += [Choice(size, kind, 1, threads) for kind in ("eager", "compiled") for threads in (1, 2)]
        found += [Choice(size, "compiled", 2, 1), Choice(size, "compiled", 2, 1, batch=32)]
        stacks = [2, 4, 8] if size == next(iter(SIZES)) else [4]
        found += [Choice(size, kind, 2, 1, models) for kind in ("matmul", "vmap") for models in stacks]
        found.append(Choice(size, "matmul", 1, 2, 4))
    return found


def plain_loss(size: Size) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """`compiled_loss`, not compiled."""

    def loss(parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return F.cross_entropy(llama.logits(parameters, size, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return loss


def vmap_logits(parameters: dict[str, Tensor], size: Size, tokens: Tensor) -> Tensor:
    """Logits (models, batch, length, vocabulary) of stacked parameters and token ids (models, batch, length)."""
    return torch.func.vmap(lambda one, ids: llama.logits(one, size, ids))(parameters, tokens)


def matmul_logits(parameters: dict[str, Tensor], size: Size, tokens: Tensor) -> Tensor:
    """`vmap_logits` by hand: `llama.logits` with a leading model dimension, every matrix product a batched one."""
    models, batch, length = tokens.shape
    width, heads = size.hidden_size, size.hidden_size // HEAD_DIMENSION
    cosine, sine = llama._rotations(length)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (width,), None, llama.NORM_EPSILON) * parameters[name][:, None]

    def linear(x: Tensor, name: str) -> Tensor:  # (models, batch * length, ...)
        return torch.bmm(x, parameters[name].mT)

    def project(x: Tensor, name: str) -> Tensor:  # -> (models * batch, heads, length, head dimension)
        return linear(x, name).view(models * batch, length, heads, HEAD_DIMENSION).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)

    embeddings = parameters["model.embed_tokens.weight"]  # (models, vocabulary, width)
    vocabulary = embeddings.shape[1]
    rows = tokens + torch.arange(models).view(models, 1, 1) * vocabulary
    hidden = F.embedding(rows, embeddings.reshape(-1, width)).view(models, batch * length, width)
    for layer in range(size.layers):
        block = f"model.layers.{layer}"
        x = norm(hidden, f"{block}.input_layernorm.weight")
        query, key, value = (project(x, f"{block}.self_attn.{name}_proj.weight") for name in "qkv")
        attended = F.scaled_dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        attended = attended.transpose(1, 2).reshape(models, batch * length, width)
        hidden = hidden + linear(attended, f"{block}.self_attn.o_proj.weight")
        x = norm(hidden, f"{block}.post_attention_layernorm.weight")
        gated = F.silu(linear(x, f"{block}.mlp.gate_proj.weight")) * linear(x, f"{block}.mlp.up_proj.weight")
        hidden = hidden + linear(gated, f"{block}.mlp.down_proj.weight")
    return linear(norm(hidden, "model.norm.weight"), "model.embed_tokens.weight").view(
        models, batch, length, vocabulary
    )


STACKED_LOGITS = {"vmap": vmap_logits, "matmul": matmul_logits}


class StackedMuon:
    """`pretraining.Muon` over matrices that carry a leading model dimension."""

    def __init__(self, matrices: list[Tensor]):
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            self.groups.setdefault(tuple(sorted(matrix.shape[1:])), []).append(matrix)
        self.momenta = {s: torch.zeros(sum(map(len, group)), *s) for s, group in self.groups.items()}

    @torch.no_grad()
    def step(self, learning_rate: float, weight_decay: float = 0.05) -> None:
        for shape, group in self.groups.items():
            gradient = torch.cat([p.grad if p.shape[1:] == shape else p.grad.mT for p in group])
            momentum = self.momenta[shape].mul_(MUON_MOMENTUM).add_(gradient)
            update = orthogonalise(gradient.add_(momentum, alpha=MUON_MOMENTUM)).split([len(p) for p in group])
            for parameter, direction in zip(group, update, strict=True):
                direction = direction if parameter.shape[1:] == shape else direction.mT
                rows, columns = parameter.shape[1:]
                parameter.mul_(1 - learning_rate * weight_decay)
                parameter.add_(direction, alpha=-learning_rate * max(1, rows / columns) ** 0.5)


def train_stacked(choice: Choice, training: Training) -> Iterator[None]:
    """`pretraining.train` for several models at once; yields after every step."""
    size, models = SIZES[choice.size], choice.models
    each = [llama.initialise(size, VOCABULARY, seed) for seed in range(models)]
    parameters = {name: torch.stack([one[name] for one in each]).requires_grad_() for name in each[0]}
    batches = torch.randint(VOCABULARY, (20, models, choice.batch, training.sequence_length + 1))
    stacked_logits = STACKED_LOGITS[choice.kind]

    def loss(parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
        predicted = stacked_logits(parameters, size, tokens[..., :-1])
        return models * F.cross_entropy(predicted.flatten(0, 2), tokens[..., 1:].flatten())

    expected = sum(plain_loss(size)(one, batches[0, m]) for m, one in enumerate(each))
    torch.testing.assert_close(loss(parameters, batches[0]), expected, rtol=1e-4, atol=1e-4)

    compiled = torch.compile(loss, dynamic=False)
    matrices = [p for name, p in parameters.items() if p.dim() == 3 and "embed" not in name]
    others = [p for name, p in parameters.items() if p.dim() == 2 or "embed" in name]
    adam = torch.optim.AdamW(others, lr=training.learning_rate, betas=ADAM_BETAS, weight_decay=0.0, fused=True)
    muon = StackedMuon(matrices)
    for batch in itertools.cycle(batches):
        compiled(parameters, batch).backward()
        adam.step()
        muon.step(training.muon_learning_rate)
        for parameter in parameters.values():
            parameter.grad = None
        yield


def train_one(choice: Choice, training: Training) -> Iterator[None]:
    """The workflow's own `train`; yields after every step."""
    size = SIZES[choice.size]
    stream = np.random.default_rng(0).integers(VOCABULARY, size=STEPS * training.batch_tokens + 1)
    loss = compiled_loss(size, VOCABULARY, training) if choice.kind == "compiled" else plain_loss(size)
    while True:
        for _ in train(loss, size, VOCABULARY, training, stream, 0, set(range(1, STEPS + 1))):
            yield


_running: dict[Choice, Iterator[None]] = {}  # of one worker process


def start(choice: Choice) -> None:
    """Compile and warm up a choice in this process."""
    warnings.filterwarnings(
        "ignore", "There is a performance drop"
    )  # that vmap loops over the attention is the finding
    torch._dynamo.config.recompile_limit = 100  # a worker holds more graphs of one function than the default allows
    training = Training(batch_sequences=choice.batch)
    _running[choice] = (train_one if choice.models == 1 else train_stacked)(choice, training)
    for _ in range(WARM_UP_STEPS):
        next(_running[choice])


def measure(choice: Choice) -> float:
    """Tokens per second of this process."""
    steps, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS:
        next(_running[choice])
        steps += 1
    return steps * choice.models * Training(batch_sequences=choice.batch).batch_tokens / passed


def main() -> None:
    load = os.getloadavg()[0]

    def worker(threads: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,))

    with worker(1) as first, worker(1) as second, worker(2) as both_cores:
        workers = {(1, 1): [first], (2, 1): [first, second], (1, 2): [both_cores]}
        rows, started = choices(), []
        # From both ends: what one process has compiled by then, the other finds in the cache.
        for ordered, pool in ((rows, first), (rows[::-1], second), (rows, both_cores)):
            for choice in ordered:
                if pool in workers[choice.processes, choice.threads]:
                    started.append(pool.submit(start, choice))
        for one in started:
            one.result()
        found = {choice: [] for choice in rows}
        for _ in range(REPEATS):
            for choice in rows:
                runs = [pool.submit(measure, choice) for pool in workers[choice.processes, choice.threads]]
                found[choice].append(sum(run.result() for run in runs))
    print_table(found)
    print(f"\nMedian and range of {REPEATS} interleaved repeats of {SECONDS} s.")
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load average before the start {load:.1f}.")


def print_table(found: dict[Choice, list[float]]) -> None:
    names = {"matmul": "compiled, stacked by batched matmul", "vmap": "compiled, stacked by vmap"}
    print("| size | choice | models in one | batch | processes x threads | 1000 tokens/s | range | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    plain: dict[str, float] = {}
    for choice, speeds in found.items():
        median = statistics.median(speeds)
        ratio = median / plain.setdefault(choice.size, median)
        what = f"{choice.size} | {names.get(choice.kind, choice.kind)} | {choice.models} | {choice.batch}"
        figures = f"{median / 1000:.1f} | {min(speeds) / 1000:.1f}-{max(speeds) / 1000:.1f} | {ratio:.2f}"
        print(f"| {what} | {choice.processes} x {choice.threads} | {figures} |")


if __name__ == "__main__":
    main()
