"""Pretraining of a ladder's models on token ids: a Llama of transformers, AdamW, a cosine, runs that survive a kill."""

import contextlib
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from proxycast.config.ladder import Ladder, LadderSize
from proxycast.jobs import PROGRESS_SECONDS
from proxycast.options import InputError
from proxycast.tables import atomic, fingerprint
from proxycast.weights.model_files import tokenizer_files
from proxycast.weights.model_folder import is_finished, new_checkpoint
from proxycast.weights.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

STATE_FILE = "state.pt"  # parameters, moments and losses of a run that is under way
LOSS_FILE = "loss.csv"
TERMINATED = 128 + signal.SIGTERM  # exit status, as a shell has it
CPU_BUDGET = 1.5e9  # bytes of activations at once
GPU_SHARE = 0.5  # of the memory that is free beside parameters, gradients and moments
# Positions whose logits exist at once. On one CPU core, V = 50304 and d = 64, 128 is 3 times as fast as all positions.
HEAD_ROWS = {"cpu": 128, "cuda": 4096}


def pretrain(
    ladder: Ladder,
    size: str,
    seed: int,
    batches: Callable[[int], np.ndarray],
    models: Path,
    steps: Sequence[int],
    tokenizer: Path,
    state: Path,
    made_from: str,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    state_minutes: float = 10.0,
) -> dict[str, str]:
    """Train one model and keep its checkpoints `models`/step<N>, N in `steps` -> checkpoint folder -> fingerprint.

    `batches(i)` gives the token ids (batch_sequences, sequence_length) of step i, counted from 0; `made_from` is the
    fingerprint of what it reads. The learning rate falls over all steps of the ladder, wherever `steps` ends. A
    checkpoint folder is written under a temporary name and renamed; whole ones with the right fingerprint are kept. At
    each checkpoint, every `state_minutes` and on SIGTERM the run's state is saved in the folder `state`; a run that was
    killed goes on from there and ends, on a CPU with as many threads, with the same bits. Beside the weights of a
    checkpoint lies loss.csv: loss (mean nats a token) and learning rate of every step up to it.

    Raises InputError for a batch or tokenizer that does not fit the ladder, a loss that is no number, a full disk;
    SystemExit after SIGTERM.
    """
    own = _fingerprint(ladder, size, seed, tokenizer, made_from)
    folders = {step: models / f"step{step}" for step in sorted(steps)}
    missing = {step: folder for step, folder in folders.items() if not is_finished(folder, own)}
    if missing:
        run = _untrained_run(_Files(models, state / STATE_FILE, tokenizer, own), ladder, size, seed, device)
        _resume(run, min(missing))
        _train(run, batches, missing, state_minutes)
    (state / STATE_FILE).unlink(missing_ok=True)
    return {folder.name: own for folder in folders.values()}


def learning_rate(ladder: Ladder, size: str, step: int) -> float:
    """The learning rate of a step, counted from 1: OLMo's linear warm-up and cosine, by tokens.

    With n = step x tokens of a batch, W = warmup_tokens_per_parameter x N, D the tokens of all the ladder's steps, p
    the peak and f = final_learning_rate it is

        p n / W                                             for n < W,
        p (f + (1 - f) (1 + cos(pi (n - W) / (D - W))) / 2)  from there on,

    so that the last step has p f.
    """
    shape, optimisation = ladder.sizes[size], ladder.optimisation
    n = step * ladder.batch_tokens(size)
    warmup = optimisation.warmup_tokens_per_parameter * shape.parameters(ladder.vocabulary)
    if n < warmup:
        return shape.learning_rate * n / warmup
    fallen = (n - warmup) / max(1.0, shape.steps * ladder.batch_tokens(size) - warmup)
    cosine = (1 + math.cos(math.pi * min(1.0, fallen))) / 2
    return shape.learning_rate * (optimisation.final_learning_rate + (1 - optimisation.final_learning_rate) * cosine)


def summed_loss(hidden: Tensor, head: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy (nats), summed over all tokens (batch, length) but the first of each sequence.

    `hidden` (batch, length, width) is what the head (vocabulary, width) reads. The logits of a few positions exist at a
    time; their gradients are made along with them.
    """
    rows = HEAD_ROWS[hidden.device.type]
    hidden, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    if not hasattr(F, "linear_cross_entropy"):  # new in torch 2.13
        return _SummedLoss.apply(hidden, head, targets, rows)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None, acc_policy="balanced")
    return F.linear_cross_entropy(hidden, head, targets, reduction="sum", options=options)


class _SummedLoss(torch.autograd.Function):
    """`F.linear_cross_entropy`, summed, for torch before 2.13: the gradients of `rows` positions with their logits."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor, rows: int) -> Tensor:
        loss, of_hidden, of_head = hidden.new_zeros(()), torch.empty_like(hidden), torch.zeros_like(head)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logprobs, own = (hidden[part] @ head.T).log_softmax(1), targets[part, None]
            loss -= logprobs.gather(1, own).sum()
            of_logits = logprobs.exp_().scatter_add_(1, own, torch.full_like(own, -1, dtype=hidden.dtype))
            of_hidden[part] = of_logits @ head
            of_head.addmm_(of_logits.T, hidden[part])
        ctx.save_for_backward(of_hidden, of_head)
        return loss

    @staticmethod
    def backward(ctx, of_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_hidden, of_head = ctx.saved_tensors
        return of_loss * of_hidden, of_loss * of_head, None, None


@dataclass(frozen=True)
class _Files:
    """Where a run writes and what it copies; `fingerprint`: of its checkpoints and its state."""

    models: Path
    state: Path
    tokenizer: Path
    fingerprint: str


@dataclass
class _Run:
    """A training run: as many losses as steps are done."""

    files: _Files
    ladder: Ladder
    size: str
    model: LlamaForCausalLM
    body: Callable  # the model without its head, compiled on a GPU
    optimizer: torch.optim.AdamW
    micro_batch: int
    losses: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.files.models)

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def learning_rate(self) -> float:
        return learning_rate(self.ladder, self.size, self.step)


def _fingerprint(ladder: Ladder, size: str, seed: int, tokenizer: Path, made_from: str) -> str:
    """What a checkpoint depends on; which other ones are kept is no part of it."""
    shape = ladder.sizes[size].model_dump(exclude={"seeds", "stopped", "checkpoint_every"})
    keys = {"vocabulary", "sequence_length", "norm_epsilon", "rope_theta", "optimisation"}
    files = {path.name: path for path in tokenizer_files(tokenizer)}
    return fingerprint(shape, ladder.model_dump(include=keys), seed, files, made_from)


def _untrained_run(files: _Files, ladder: Ladder, size: str, seed: int, device: str) -> _Run:
    """The untrained run."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("training, key device: found cuda, but torch sees no GPU; give auto or cpu")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    model = _llama_model(ladder, ladder.sizes[size], seed, files.tokenizer).to("cuda" if on_gpu else "cpu")
    optimisation = ladder.optimisation
    optimizer = torch.optim.AdamW(
        model.parameters(),
        betas=(optimisation.beta1, optimisation.beta2),
        eps=optimisation.epsilon,
        weight_decay=optimisation.weight_decay,
        fused=True,
    )
    # Where no compiler is at hand, the model runs uncompiled, with a warning. On a CPU it is slower when compiled.
    torch._dynamo.config.suppress_errors = True
    body = torch.compile(model.model, dynamic=False) if on_gpu else model.model
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32 for the head; the rest of the model computes in bfloat16
    micro_batch = _micro_batch(ladder, size, _activation_budget(model))
    log.info("%s: %d of %d sequences at once", files.models, micro_batch, ladder.sizes[size].batch_sequences)
    return _Run(files, ladder, size, model, body, optimizer, micro_batch)


def _llama_model(ladder: Ladder, shape: LadderSize, seed: int, tokenizer: Path) -> LlamaForCausalLM:
    """The model with random parameters, in float32 on the CPU, the same for each seed."""
    found = load_tokenizer(tokenizer)
    largest = max(found.get_vocab().values())
    if largest >= ladder.vocabulary:
        raise InputError(
            f"{tokenizer}: found token id {largest}, but vocabulary {ladder.vocabulary} in ladder {ladder.name}; "
            "it must be larger than every id"
        )
    config = LlamaConfig(
        vocab_size=ladder.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=ladder.sequence_length,
        initializer_range=ladder.optimisation.initialisation,
        rms_norm_eps=ladder.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": ladder.rope_theta},
        bos_token_id=found.bos_token_id,
        eos_token_id=found.eos_token_id,
        dtype="float32",
        architectures=["LlamaForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).train()


def _activation_budget(model: LlamaForCausalLM) -> float:
    """Bytes for what the forward pass keeps for the backward pass."""
    if model.device.type == "cpu":
        return CPU_BUDGET
    free, _ = torch.cuda.mem_get_info()
    return GPU_SHARE * (free - 12 * model.num_parameters())  # gradients and two moments, float32


def _micro_batch(ladder: Ladder, size: str, budget: float) -> int:
    """Sequences at once, so that the batch falls into the fewest parts, about equal, that fit into `budget` bytes.

    For each token a block keeps 10 d + 4 inner floats, as `torch.autograd.graph.saved_tensors_hooks` counts them.
    """
    shape = ladder.sizes[size]
    kept = 4 * ladder.sequence_length * shape.layers * (10 * shape.hidden_size + 4 * shape.inner)
    parts = math.ceil(shape.batch_sequences / max(1, int(budget // kept)))
    return math.ceil(shape.batch_sequences / parts)


def _train(run: _Run, batches: Callable[[int], np.ndarray], missing: dict[int, Path], state_minutes: float) -> None:
    """Train as far as the last of the `missing` checkpoints and write them on the way."""
    last, batch_tokens, saved = max(missing), run.ladder.batch_tokens(run.size), time.monotonic()
    bar = tqdm(
        total=last * batch_tokens,
        initial=run.step * batch_tokens,
        desc=run.name,
        unit="token",
        unit_scale=True,
        mininterval=PROGRESS_SECONDS,
        file=sys.stderr,
    )
    with _sigterm() as stop, bar:
        if run.step in missing:
            _write_checkpoint(run, missing[run.step])
        while run.step < last:
            if not _update(run, batches(run.step), stop):
                _save_state(run)
                log.info("%s: terminated; saved after step %d, the next job goes on from there", run.name, run.step)
                sys.exit(TERMINATED)
            bar.set_postfix(loss=run.losses[-1], learning_rate=run.learning_rate, refresh=False)
            bar.update(batch_tokens)
            if run.step in missing:
                _write_checkpoint(run, missing[run.step])
            if run.step < last and (run.step in missing or time.monotonic() - saved > 60 * state_minutes):
                _save_state(run)
                saved = time.monotonic()


def _update(run: _Run, batch: np.ndarray, stop: threading.Event) -> bool:
    """Do one step; False, with nothing changed, if `stop` comes first."""
    tokens = _as_tensor(run, batch)
    while (result := _gradients(run, tokens, stop)) is None:
        if stop.is_set():
            return False
        run.micro_batch = math.ceil(run.micro_batch / 2)
        log.warning("%s: the GPU's memory does not suffice; from here %d sequences at once", run.name, run.micro_batch)
    loss, norm = result
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise InputError(
            f"{run.name}, step {run.step + 1}: found loss {loss} and gradient norm {norm}; both must be finite; "
            "the learning rate of the ladder is too high for this model, or its text is broken here"
        )
    run.losses.append(loss)
    for group in run.optimizer.param_groups:
        group["lr"] = run.learning_rate
    run.optimizer.step()
    return True


def _gradients(run: _Run, tokens: Tensor, stop: threading.Event) -> tuple[float, float] | None:
    """Make the clipped gradient of the mean loss -> that loss, the norm; None when stopped or out of the GPU's memory.

    The first token of a sequence is predicted by nothing, so a sequence has sequence_length - 1 predictions.
    """
    run.optimizer.zero_grad()
    predictions = tokens[:, 1:].numel()
    device = run.model.device
    total = torch.zeros((), device=device)
    try:
        for part in tokens.split(run.micro_batch):
            if stop.is_set():
                return None
            part = part.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                hidden = run.body(input_ids=part, use_cache=False).last_hidden_state
            # In float32: a loss in bfloat16, as of bfloat16 input, is too coarse for a training curve.
            loss = summed_loss(hidden.float(), run.model.lm_head.weight, part) / predictions
            loss.backward()
            total += loss.detach()
    except torch.OutOfMemoryError:
        if run.micro_batch == 1:
            raise
        return None
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.ladder.optimisation.gradient_clip)
    return total.item(), norm.item()


def _as_tensor(run: _Run, batch: np.ndarray) -> Tensor:
    """The batch of the next step as a tensor. Raises InputError if the model cannot read it."""
    shape = (run.ladder.sizes[run.size].batch_sequences, run.ladder.sequence_length)
    if batch.shape != shape:
        raise InputError(f"{run.name}, step {run.step + 1}: found a batch {batch.shape}; it must be {shape}")
    wrong = batch[(batch < 0) | (batch >= run.ladder.vocabulary)]
    if wrong.size:
        raise InputError(
            f"{run.name}, step {run.step + 1}: found token id {wrong[0]} in the batch; the ladder {run.ladder.name} "
            f"has vocabulary {run.ladder.vocabulary}, so ids must be 0 to {run.ladder.vocabulary - 1}"
        )
    return torch.from_numpy(batch)


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, which Slurm sends before it kills. Only a main thread hears signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _needs_room(path: Path) -> Iterator[None]:
    """Say what to do when `path` cannot be written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise InputError(
            f"{path}: cannot be written ({error}); make room on the disk and start again: "
            "whole checkpoints are kept and training goes on from its last saved state"
        ) from error


def _save_state(run: _Run) -> None:
    state = {
        "fingerprint": run.files.fingerprint,
        "losses": run.losses,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    with _needs_room(run.files.state), atomic(run.files.state) as temporary:
        torch.save(state, temporary)


def _resume(run: _Run, first_missing: int) -> None:
    """Put the run where its saved state left it, if there is one before or at its first missing checkpoint."""
    path = run.files.state
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        log.info("%s: starts with step 1", run.name)
        return
    except Exception as error:  # the zip reader and the unpickler have many kinds
        log.warning("%s: starts with step 1, because %s cannot be read: %s", run.name, path, error)
        return
    if not isinstance(state, dict) or state.get("fingerprint") != run.files.fingerprint:
        log.warning("%s: starts with step 1, because %s is of another training", run.name, path)
    elif len(state["losses"]) > first_missing:
        log.warning("%s: starts with step 1, because %s is past the missing step%d", run.name, path, first_missing)
    else:
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.losses = state["losses"]
        log.info("%s: goes on after step %d", run.name, run.step)


def _write_checkpoint(run: _Run, folder: Path) -> None:
    """Write the model in the layout of `transformers`, and the losses up to here."""
    with _needs_room(folder), new_checkpoint(folder, run.files.tokenizer, run.files.fingerprint) as temporary:
        run.model.config.save_pretrained(temporary)
        parameters = {name: parameter.contiguous() for name, parameter in run.model.state_dict().items()}
        save_file(parameters, temporary / "model.safetensors", {"format": "pt"})
        _losses(run).write_csv(temporary / LOSS_FILE)


def _losses(run: _Run) -> pl.DataFrame:
    steps = range(1, run.step + 1)
    return pl.DataFrame(
        {
            "step": steps,
            "tokens": [step * run.ladder.batch_tokens(run.size) for step in steps],
            "loss": run.losses,
            "learning_rate": [learning_rate(run.ladder, run.size, step) for step in steps],
        },
        schema={"step": pl.Int64, "tokens": pl.Int64, "loss": pl.Float64, "learning_rate": pl.Float64},
    )
