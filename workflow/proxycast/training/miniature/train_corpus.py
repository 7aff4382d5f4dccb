"""Pretraining of the miniature models: a compiled loss, Muon on matrices, AdamW on the rest, checkpoints on the way."""

import fcntl
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from proxycast.config.training import Size, Suite, Training
from proxycast.jobs import LOCK_SECONDS, PROGRESS_SECONDS, open_private
from proxycast.tables import atomic, fingerprint, require_unchanged
from proxycast.training.miniature import gpt, llama
from proxycast.weights.model_folder import is_finished, new_checkpoint

if TYPE_CHECKING:
    from torch._dynamo.aot_compile import AOTCompiledFunction

log = logging.getLogger(__name__)

ADAM_BETAS = (0.9, 0.95)
MUON_MOMENTUM = 0.95
MUON_WEIGHT_DECAY = 0.05
# Coefficients of the quintic Newton-Schulz iteration (Jordan et al. 2024, "Muon").
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ARCHITECTURES = {"llama": llama, "gpt2": gpt, "gpt_neox": gpt}
EMBEDDINGS = ("embed", "wte", "wpe", "lm_head")  # a row for each token or position: AdamW's, though they are matrices


class Muon:
    """Momentum, orthogonalised by Newton-Schulz iterations (Jordan et al. 2024), over matrices stacked by shape."""

    def __init__(self, matrices: list[Tensor]):
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            self.groups.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
        self.momenta = {shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad if p.shape == shape else p.grad.mT for p in group])
            momentum = self.momenta[shape].mul_(MUON_MOMENTUM).add_(gradient)
            update = orthogonalise(gradient.add_(momentum, alpha=MUON_MOMENTUM))
            for parameter, direction in zip(group, update, strict=True):
                direction = direction if parameter.shape == shape else direction.mT
                rows, columns = parameter.shape
                parameter.mul_(1 - learning_rate * MUON_WEIGHT_DECAY)
                parameter.add_(direction, alpha=-learning_rate * max(1, rows / columns) ** 0.5)


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly: five Newton-Schulz steps on (n, rows, columns) with rows <= columns."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def next_token_loss(size: Size) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """Mean next-token cross-entropy (nats) of token ids (batch, length + 1)."""
    logits = ARCHITECTURES[size.architecture].logits

    def loss(parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
        predicted = logits(parameters, size, tokens[:, :-1])
        return F.cross_entropy(predicted.flatten(0, 1), tokens[:, 1:].flatten())

    return loss


def compiled_loss(size: Size, vocabulary: int, training: Training) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """`next_token_loss`, compiled for its fixed shape. Without a C++ compiler it runs uncompiled, with a warning.

    A Llama's is compiled once on a machine and then loaded: tracing three sizes takes two seconds of every job. Modules
    of transformers (the other architectures) cannot be saved. The cache holds code that is run, so what another user
    may have put there is not read.
    """
    made = _compiled_file(size, vocabulary, training)
    made.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if size.architecture != "llama" or not _are_own(made.parent.parent, made.parent):
        torch._dynamo.config.suppress_errors = True
        return torch.compile(next_token_loss(size), dynamic=False)
    try:
        # Of two jobs that start together, one compiles and the other waits.
        with os.fdopen(open_private(made.with_suffix(".lock")), "w") as lock:
            _wait_for(lock, made)
            if not made.exists():
                with atomic(made) as temporary:
                    _compile(size, vocabulary, training).save_compiled_function(str(temporary))
        with made.open("rb") as file:
            return torch.compiler.load_compiled_function(file)
    except Exception as error:  # the compiler raises many kinds
        log.warning("the loss runs uncompiled, which is slower: %s", error)
        return next_token_loss(size)


def _wait_for(lock: TextIO, made: Path) -> None:
    """Take the lock. Raises `TimeoutError` after `LOCK_SECONDS`."""
    until, told = time.monotonic() + LOCK_SECONDS, False
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise TimeoutError(f"another process has held the lock of {made} for {LOCK_SECONDS:.0f} s") from None
        if not told:
            log.info("waiting for %s, which another job compiles, at most %.0f s", made, LOCK_SECONDS)
            told = True
        time.sleep(0.1)


def _are_own(*folders: Path) -> bool:
    """Whether the folders are this user's, and nobody else may write to them."""
    stats = [folder.stat() for folder in folders]
    return all(stat.st_uid == os.getuid() and not stat.st_mode & 0o022 for stat in stats)


def _compile(size: Size, vocabulary: int, training: Training) -> "AOTCompiledFunction":
    parameters = ARCHITECTURES[size.architecture].initialise(size, vocabulary, seed=0)
    parameters = {name: p.requires_grad_() for name, p in parameters.items()}
    tokens = torch.zeros(training.batch_sequences, training.sequence_length + 1, dtype=torch.int64)
    compiled = torch.compile(next_token_loss(size), dynamic=False, fullgraph=True)
    return compiled.aot_compile(((parameters, tokens), {}))


def _compiled_file(size: Size, vocabulary: int, training: Training) -> Path:
    """A file in torch's own cache. Its name changes with shapes, code, versions and what the CPU can do."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # imports the compiler

    shape = size.model_dump(include={"hidden_size", "layers", "intermediate_size", "architecture"})
    batch = training.batch_sequences, training.sequence_length
    code = [Path(__file__), Path(ARCHITECTURES[size.architecture].__file__)]
    versions = [platform.python_version(), *(metadata.version(name) for name in ("torch", "transformers"))]
    machine = dict(torch.cpu.get_capabilities()), torch.get_num_threads()  # the number stands in the compiled code
    own = fingerprint(shape, vocabulary, batch, code, versions, machine)
    return Path(cache_dir()) / "proxycast" / f"{own}.bin"


def schedule(step: int, steps: int, training: Training) -> float:
    """The learning rate of `step` as a share of its peak: warm-up, a plateau, and a linear fall to 5 %."""
    rising = (step + 1) / max(1.0, training.warmup * steps)
    falling = (steps - step) / (training.decay * steps)
    return min(1.0, rising, max(0.05, falling))


def train(
    loss: Callable[[dict[str, Tensor], Tensor], Tensor],
    size: Size,
    vocabulary: int,
    training: Training,
    stream: np.ndarray,
    seed: int,
    checkpoints: set[int],
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Train on `stream` (steps x batch tokens + 1 ids) and yield (step, parameters) at each step in `checkpoints`."""
    initial = ARCHITECTURES[size.architecture].initialise(size, vocabulary, seed)
    parameters = {name: p.requires_grad_() for name, p in initial.items()}
    matrices = [p for name, p in parameters.items() if _is_matrix(name, p)]
    others = [p for name, p in parameters.items() if not _is_matrix(name, p)]
    factor = size.learning_rate_factor
    rate, muon_rate = training.learning_rate * factor, training.muon_learning_rate * factor
    adam = torch.optim.AdamW(others, lr=rate, betas=ADAM_BETAS, weight_decay=0.0, fused=True)
    muon = Muon(matrices)
    batches = torch.from_numpy(stream.astype(np.int64)).unfold(
        0, training.sequence_length + 1, training.sequence_length
    )
    for step in range(size.steps):
        scale = schedule(step, size.steps, training)
        for group in adam.param_groups:
            group["lr"] = rate * scale
        batch = batches[step * training.batch_sequences : (step + 1) * training.batch_sequences]
        loss(parameters, batch.contiguous()).backward()
        adam.step()
        muon.step(muon_rate * scale)
        for parameter in parameters.values():
            parameter.grad = None
        if step + 1 in checkpoints:
            yield step + 1, {name: p.detach() for name, p in parameters.items()}


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains it."""
    return parameter.dim() == 2 and not any(part in name for part in EMBEDDINGS)


def pretrain_corpus(
    corpus: str,
    suite: Suite,
    stream_of: Callable[[int, int, str | None], np.ndarray],
    tokenizers: Mapping[str | None, Path],
    models: Path,
    documents: object,
) -> dict[str, str]:
    """Train every size and seed on one corpus -> checkpoint folder (relative to `models`) -> fingerprint.

    `stream_of(tokens, seed, tokenizer)` gives that many token ids of the corpus, in the order of the seed; `tokenizers`
    has the folder of each tokenizer by its name, the suite's own as None. A run whose checkpoints are all whole and
    carry the right fingerprint is kept, so a killed job loses at most its current run; `documents` is what
    `tables.fingerprint` takes of the corpus.
    """
    runs = _plan_runs(corpus, suite, tokenizers, models, documents)
    to_do = [run for run in runs if not all(is_finished(folder, run.fingerprint) for folder in run.folders.values())]
    total, batch = sum(run.size.steps for run in to_do), suite.training.batch_tokens
    with tqdm(total=total * batch, unit="token", unit_scale=True, mininterval=PROGRESS_SECONDS, file=sys.stderr) as bar:
        for run in to_do:
            bar.set_description(run.name, refresh=False)
            stream, done = stream_of(run.size.steps * batch + 1, run.seed, run.size.tokenizer), 0
            loss, checkpoints = _loss(run.size, run.vocabulary, suite.training), set(run.folders)
            for step, parameters in train(
                loss, run.size, run.vocabulary, suite.training, stream, run.seed, checkpoints
            ):
                with new_checkpoint(run.folders[step], tokenizers[run.size.tokenizer], run.fingerprint) as folder:
                    ARCHITECTURES[run.size.architecture].save_folder(parameters, run.size, folder)
                bar.update((step - done) * batch)
                done = step
    return {folder.relative_to(models).as_posix(): run.fingerprint for run in runs for folder in run.folders.values()}


@dataclass(frozen=True)
class _PlannedRun:
    """A training run: its fingerprint, and the folder of its checkpoint at each step."""

    name: str
    size: Size
    vocabulary: int
    seed: int
    fingerprint: str
    folders: dict[int, Path]


def _plan_runs(
    corpus: str, suite: Suite, tokenizers: Mapping[str | None, Path], models: Path, documents: object
) -> list[_PlannedRun]:
    for folder in tokenizers.values():
        require_unchanged(folder / "tokenizer.json")
    made_from = {name: fingerprint(documents, folder / "tokenizer.json") for name, folder in tokenizers.items()}
    runs = []
    for size_name, size in suite.sizes.items():
        vocabulary = suite.vocabulary_of(size_name)
        settings = size.model_dump(exclude={"seeds"})
        for seed in size.seeds:
            name = f"{corpus}-{size_name}-seed{seed}"
            own = fingerprint(settings, seed, suite.training, vocabulary, made_from[size.tokenizer])
            folders = {step: models / name / f"step{step}" for step in size.all_checkpoints}
            runs.append(_PlannedRun(name, size, vocabulary, seed, own, folders))
    return runs


@cache  # the same for every seed
def _loss(size: Size, vocabulary: int, training: Training) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return compiled_loss(size, vocabulary, training) if training.compile else next_token_loss(size)
