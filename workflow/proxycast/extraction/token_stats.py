"""Logits to six numbers per expert token. The only place that touches logits, so that all engines agree.

All is float32 over the whole vocabulary: ranks of bfloat16 logits are full of ties, and an entropy of the top k is only
a bound. Passes over the vocabulary decide the speed: the largest two entries come from one pass over blocks,
exponentials are taken once, and chunks stay in a processor's cache. On a GPU, `token_stats_triton` does all in one
pass; without Triton, this module runs there too, with the same result.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from proxycast.extraction.row_parts import statistics_of_parts, together
from proxycast.extraction.schema import TokenStats

log = logging.getLogger(__name__)

BLOCK = 64  # entries per block in the search for the two largest
SCRATCH_BYTES_CPU = 4 << 20  # stays in the cache of a CPU: 1.5 times as fast as all rows at once
HEAD_BYTES_CPU = 32 << 20  # enough rows for a fast matrix product, in memory that malloc reuses
SCRATCH_BYTES_GPU, HEAD_BYTES_GPU = 256 << 20, 1 << 30  # a GPU wants few large kernels; not measured
CAST_BYTES = 256 << 20  # float32 weights that a head of another type holds at a time


@dataclass(frozen=True)
class Head:
    """The map from a last hidden state (n, d) to logits (n, V), always in float32. weight: (V, d); bias: (V,).

    The weights stay in the type they have: a float32 copy of them would be gigabytes.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.adjust(self._product(hidden))

    def adjust(self, logits: torch.Tensor) -> torch.Tensor:
        """What some architectures do to the head's product: scale it, then squash it into (-softcap, softcap)."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def _product(self, hidden: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        if self.weight.dtype == torch.float32:
            return torch.nn.functional.linear(hidden.float(), self.weight, bias)
        if self.weight.is_cuda and hidden.dtype == self.weight.dtype:
            # Products of two 16-bit numbers are exact in float32, and so they are summed.
            logits = torch.mm(hidden, self.weight.T, out_dtype=torch.float32)
        else:
            hidden = hidden.float()
            parts = self.weight.split(max(1, CAST_BYTES // (4 * self.weight.shape[1])))
            logits = torch.cat([hidden @ part.float().T for part in parts], dim=1)
        return logits if bias is None else logits.add_(bias)


@dataclass(frozen=True)
class Slice:
    """One worker's slice of the vocabulary: the head of its tokens, and how it meets the other workers.

    first: the token id of the head's first logit. total: (n,) of each worker to their sum. gather: (6, n) of each
    worker to (6, workers, n). All workers must call `token_stats_of_slice` with the same hidden states and targets.
    """

    head: Head
    first: int
    total: Callable[[torch.Tensor], torch.Tensor]
    gather: Callable[[torch.Tensor], torch.Tensor]


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array there; a GPU is not waited for."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # without it the copy would wait for the batch before
    return tensor.to(device, non_blocking=True)


def token_stats(logits: torch.Tensor, targets: torch.Tensor) -> TokenStats:
    """Six statistics for each row of `logits` (n, V), V >= 2, at the token `targets` (n,).

    A logit may be -infinity (a masked token, probability 0) except the target's. A row with another logit that is not
    finite has a logprob or an entropy that is not finite. Nothing waits for a GPU, but the trial of a kernel.
    """
    kernels = _kernels(logits.device)
    return _token_stats(logits, targets) if kernels is None else kernels.from_logits(logits, targets)


def token_stats_from_hidden(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    vocabulary: int,
    chunk_bytes: int | None = None,
) -> TokenStats:
    """`token_stats(head(hidden), targets)` for hidden (n, d), with `chunk_bytes` of float32 logits at a time.

    On a GPU no logits reach memory if `head` is a `Head` with 16-bit weights. (For float32 weights, which tensor cores
    do not multiply, the library's product is faster.)
    """
    kernels = _kernels(hidden.device)
    if kernels is not None and isinstance(head, Head) and hidden.dtype == head.weight.dtype and hidden.itemsize == 2:
        return kernels.fused(hidden, head.weight, targets, head.bias, head.scale, head.softcap)
    parts = [token_stats(*chunk) for chunk in _head_chunks(hidden, head, targets, vocabulary, chunk_bytes)]
    return TokenStats(*(torch.cat(column) for column in zip(*parts)))


def token_stats_of_slice(
    hidden: torch.Tensor, own: Slice, targets: torch.Tensor, vocabulary: int, chunk_bytes: int | None = None
) -> TokenStats:
    """`token_stats_from_hidden` of a head whose `vocabulary` tokens several workers share, the same on each of them.

    Each reduces the logits of its own tokens. Exchanged are the target's logit, which one worker has, and then six
    numbers a token, never logits.
    """
    head, tokens = own.head, len(own.head.weight)  # a worker may be left without tokens
    kernels, here = _kernels(hidden.device), targets - own.first
    inside = (here >= 0) & (here < tokens)  # (n,)
    if kernels is not None and hidden.dtype == head.weight.dtype and hidden.itemsize == 2:
        form = head.bias, head.scale, head.softcap
        target_logits = (
            kernels.target_logits(hidden, head.weight, here, *form) if tokens else hidden.new_zeros(len(hidden))
        )
        target_logits = own.total(target_logits.float().masked_fill(~inside, 0.0))
        parts = (
            kernels.fused_parts(hidden, head.weight, here, target_logits, *form)
            if tokens
            else _parts(torch.full((len(hidden), 2), -torch.inf, device=hidden.device), target_logits)
        )
        return kernels.statistics_of(own.gather(parts), target_logits)
    here = here.clamp(0, max(tokens - 1, 0))
    chunk, columns = _chunk_rows(_head_bytes(hidden.device, chunk_bytes), vocabulary), []
    for start in range(0, max(len(hidden), 1), chunk):  # as many on each worker, however large its slice
        rows = slice(start, start + chunk)
        logits = head(hidden[rows])
        if (missing := 2 - tokens) > 0:  # tokens of probability 0
            logits = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
        target = own.total(logits.gather(1, here[rows].unsqueeze(1)).squeeze(1).masked_fill(~inside[rows], 0.0))
        columns.append(statistics_of_parts(together(own.gather(_parts(logits, target))), target))
    return TokenStats(*(torch.cat(column) for column in zip(*columns)))


def token_stats_at_temperatures(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    vocabulary: int,
    temperatures: Sequence[float],
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """`token_stats_from_hidden`, and below it `tempered_logprobs` of the same logits: (6 + K, n), float32.

    On a GPU logits do reach memory here, some rows at a time: the kernel that keeps none knows no temperatures. So its
    six statistics may differ by their last bits from those of a run without temperatures; on a CPU they are the same.
    """
    parts = []
    for logits, own in _head_chunks(hidden, head, targets, vocabulary, chunk_bytes):
        stats = torch.stack([column.float() for column in token_stats(logits, own)])
        parts.append(torch.cat([stats, tempered_logprobs(logits, own, temperatures)]))
    return torch.cat(parts, dim=1)


def tempered_logprobs(logits: torch.Tensor, targets: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """ln softmax(logits / T) at the tokens `targets` (n,), for each T of `temperatures` (K,): (K, n), float32.

    `logits` (n, V) as in `token_stats`. (Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.)
    """
    rows, vocabulary = logits.shape
    chunk = _chunk_rows(SCRATCH_BYTES_CPU if logits.device.type == "cpu" else SCRATCH_BYTES_GPU, vocabulary)
    parts = [
        _tempered(logits[start : start + chunk].float(), targets[start : start + chunk], temperatures)
        for start in range(0, max(rows, 1), chunk)
    ]
    return torch.cat(parts, dim=1)


def _tempered(logits: torch.Tensor, targets: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """One chunk, float32 (n, V). With m the largest logit, z = logit - m: ln p = z / T - ln sum exp(z / T), sum >= 1.

    exp(z / (T / 2)) is the square of exp(z / T): a temperature whose double is there, too, takes no exponentials.
    """
    largest = logits.amax(1, keepdim=True)
    target = (logits.gather(1, targets.unsqueeze(1)) - largest).squeeze(1)
    shifted, powers = logits - largest, torch.empty_like(logits)
    found: dict[float, torch.Tensor] = {}
    for highest in sorted(temperatures, reverse=True):
        if highest in found:
            continue
        torch.div(shifted, highest, out=powers).exp_()
        temperature = highest
        found[temperature] = target / temperature - powers.sum(1).log()
        while (temperature := temperature / 2) in temperatures:
            powers.mul_(powers)
            found[temperature] = target / temperature - powers.sum(1).log()
    return torch.stack([found[temperature] for temperature in temperatures])


def _head_chunks(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    vocabulary: int,
    chunk_bytes: int | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(`head(hidden)`, targets), some rows at a time: `chunk_bytes` of float32 logits."""
    chunk = _chunk_rows(_head_bytes(hidden.device, chunk_bytes), vocabulary)
    for start in range(0, max(len(hidden), 1), chunk):
        yield head(hidden[start : start + chunk]), targets[start : start + chunk]


def _head_bytes(device: torch.device, chunk_bytes: int | None) -> int:
    return chunk_bytes or (HEAD_BYTES_CPU if device.type == "cpu" else HEAD_BYTES_GPU)


def _kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, for tensors on a GPU that they run on."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    return _import_kernels()


@functools.cache
def _import_kernels() -> ModuleType | None:
    try:
        from proxycast.extraction import token_stats_triton
    except ImportError as error:
        log.warning("no Triton (%s): statistics are computed by plain torch, slower and in more memory", error)
        return None
    return token_stats_triton


def _token_stats(logits: torch.Tensor, targets: torch.Tensor) -> TokenStats:
    parts = []
    for part, rows, *buffers in _reduced_chunks(logits):
        # Chunk by chunk to the end: whatever is made in between, malloc must find the same memory for the next logits.
        target = part.gather(1, targets[rows].unsqueeze(1))  # (n, 1)
        parts.append(statistics_of_parts(_six(part, target, *buffers), target.squeeze(1)))
    return TokenStats(*(torch.cat(column) for column in zip(*parts)))


def _parts(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Six numbers (6, n), float32, of logits (n, V) of some tokens, V >= 2, and the logit `target` (n,) of any token.

    The largest two; with z = logit - largest, the sum of exp(z) without the largest entry (whose exp is 1) and that of
    z exp(z); how many are above the target, and equal to it.
    """
    chunks = _reduced_chunks(logits)
    return torch.cat([torch.stack(_six(part, target[rows, None], *buffers)) for part, rows, *buffers in chunks], dim=1)


def _reduced_chunks(logits: torch.Tensor) -> Iterator[tuple[torch.Tensor, slice, torch.Tensor, torch.Tensor]]:
    """Some rows of logits (n, V) at a time, as float32, the rows that they are, and two buffers of the same shape."""
    count, vocabulary = logits.shape
    chunk = _chunk_rows(SCRATCH_BYTES_CPU if logits.device.type == "cpu" else SCRATCH_BYTES_GPU, vocabulary)
    scratch = torch.empty(2, min(chunk, count), vocabulary, dtype=torch.float32, device=logits.device)
    for start in range(0, max(count, 1), chunk):
        part = logits[start : start + chunk]
        yield part.float(), slice(start, start + chunk), *scratch[:, : len(part)]


def _chunk_rows(chunk_bytes: int, vocabulary: int) -> int:
    return max(1, chunk_bytes // (4 * vocabulary))


def _six(
    logits: torch.Tensor, target: torch.Tensor, shifted: torch.Tensor, scratch: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """`_parts`, (n,) each, of one chunk (n, V) at `target` (n, 1); `shifted` and `scratch` are buffers of its shape."""
    largest, second, at_largest = _two_largest(logits)  # (n, 1) each
    # Sums of float32 0 and 1 are far faster than those of booleans, and exact up to 2^24 tokens.
    n_greater = torch.gt(logits, target, out=scratch).sum(1)
    n_equal = torch.eq(logits, target, out=scratch).sum(1)
    torch.sub(logits, largest.masked_fill(largest == -torch.inf, 0.0), out=shifted)
    torch.exp(shifted, out=scratch).scatter_(1, at_largest, 0.0)
    rest = scratch.sum(1)
    weighted = scratch.mul_(shifted)
    # Sum of z exp z, (n,), without the NaN of masked tokens (0 * -infinity); NaN logits still show in logprob. On a CPU
    # the slower sum is taken only where it is needed; a GPU would have to be waited for.
    total = weighted.nansum(1) if weighted.is_cuda else weighted.sum(1)
    if not weighted.is_cuda and total.isnan().any():
        total = weighted.nansum(1)
    return largest.squeeze(1), second.squeeze(1), rest, total, n_greater, n_equal


def _two_largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Largest and second-largest entry of each row and the index of the largest, (n, 1) each: a faster torch.topk(2).

    The second largest is either the largest of another block or the second of the best block.
    """
    rows, vocabulary = logits.shape
    if vocabulary <= 2 * BLOCK:
        top, indices = logits.topk(2)
        return top[:, :1], top[:, 1:], indices[:, :1]
    whole = vocabulary - vocabulary % BLOCK
    block_maxima = logits[:, :whole].unflatten(1, (-1, BLOCK)).amax(2)
    if whole < vocabulary:
        block_maxima = torch.cat([block_maxima, logits[:, whole:].amax(1, keepdim=True)], dim=1)
    top_blocks, blocks = block_maxima.topk(2)
    members = blocks[:, :1] * BLOCK + torch.arange(BLOCK, device=logits.device)  # (n, BLOCK)
    inside = logits.gather(1, members.clamp(max=vocabulary - 1)).masked_fill(members >= vocabulary, -torch.inf)
    top_inside, at = inside.topk(2)
    # Only a row without one finite logit needs the clamp.
    at_largest = members.gather(1, at[:, :1]).clamp(max=vocabulary - 1)
    return top_blocks[:, :1], torch.maximum(top_blocks[:, 1:], top_inside[:, 1:]), at_largest
