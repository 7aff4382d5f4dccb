"""Logits to six numbers per expert token. The only place that touches logits, so that all engines agree.

All is reduced in float32, over the whole vocabulary: ranks from bfloat16 logits drown in ties, and an entropy from the
top k is a bound. The number of passes over the vocabulary decides the speed, so the largest two entries come from one
pass over blocks, exponentials are taken once, and work goes through chunks that stay in a processor's cache. On a GPU,
`token_stats_triton` does all in one pass; where Triton is missing, what is here runs there too, with the same result.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch

log = logging.getLogger(__name__)

BLOCK = 64  # entries per block in the search for the two largest
SCRATCH_BYTES_CPU = 4 << 20  # stays in the cache of a CPU: 1.5 times as fast as all rows at once
HEAD_BYTES_CPU = 32 << 20  # rows enough for a fast matrix product, in memory that malloc uses again
SCRATCH_BYTES_GPU, HEAD_BYTES_GPU = 256 << 20, 1 << 30  # a GPU wants few large kernels; not measured
CAST_BYTES = 256 << 20  # float32 weights that a head of another type holds at a time


class TokenStats(NamedTuple):
    """What is kept of each position's distribution over V tokens; six tensors of shape (n,).

    logprob, max_logprob, second_logprob: natural logarithms of the probability of the expert's token, of the most
    probable token and of the next one (equal to the first when tied). entropy: nats, exact. n_greater: tokens with a
    strictly greater logit than the expert's; n_equal: tokens with the same logit, itself included.
    """

    logprob: torch.Tensor
    max_logprob: torch.Tensor
    second_logprob: torch.Tensor
    entropy: torch.Tensor
    n_greater: torch.Tensor
    n_equal: torch.Tensor


class NonFiniteLogits(ValueError):
    """The logits of `row` hold NaN or +infinity, or -infinity for the expert's token."""

    def __init__(self, row: int):
        super().__init__(f"row {row}: logits are NaN or +infinity, or the expert's token has probability 0")
        self.row = row


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


def token_stats(logits: torch.Tensor, targets: torch.Tensor, check: bool = True) -> TokenStats:
    """Six statistics for each row of `logits` (n, V), V >= 2, at the token `targets` (n,).

    A logit may be -infinity (a masked token, probability 0) except the target's. Raises NonFiniteLogits for the first
    bad row; with `check` false nothing waits for a GPU, and the caller owes a `check_finite`.
    """
    kernels = _kernels(logits.device)
    stats = _token_stats(logits, targets) if kernels is None else kernels.from_logits(logits, targets)
    return check_finite(stats) if check else stats


def token_stats_from_hidden(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    vocabulary: int,
    chunk_bytes: int | None = None,
    check: bool = True,
) -> TokenStats:
    """`token_stats(head(hidden), targets, check)` for hidden (n, d), with `chunk_bytes` of float32 logits at a time.

    Without any logits in memory on a GPU, where `head` is a `Head` with 16-bit weights. (For float32 weights, which
    tensor cores do not multiply, the library's own product is the faster one.)
    """
    kernels = _kernels(hidden.device)
    if kernels is not None and isinstance(head, Head) and hidden.dtype == head.weight.dtype and hidden.itemsize == 2:
        stats = kernels.fused(hidden, head.weight, targets, head.bias, head.scale, head.softcap)
    else:
        if chunk_bytes is None:
            chunk_bytes = HEAD_BYTES_CPU if hidden.device.type == "cpu" else HEAD_BYTES_GPU
        chunk = _chunk_rows(chunk_bytes, vocabulary)
        parts = [
            token_stats(head(hidden[start : start + chunk]), targets[start : start + chunk], check=False)
            for start in range(0, max(len(hidden), 1), chunk)
        ]
        stats = TokenStats(*(torch.cat(column) for column in zip(*parts)))
    return check_finite(stats) if check else stats


def check_finite(stats: TokenStats) -> TokenStats:
    """The same statistics; raises NonFiniteLogits for the first row whose logits were bad. Waits for a GPU."""
    bad = ~(torch.isfinite(stats.logprob) & torch.isfinite(stats.entropy))
    if bad.any():
        raise NonFiniteLogits(int(bad.nonzero()[0]))
    return stats


def _kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, for tensors on a GPU that they run on."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    return _import_kernels()


@functools.cache
def _import_kernels() -> ModuleType | None:
    try:
        from proxycast import token_stats_triton
    except ImportError as error:
        log.warning("no Triton (%s): statistics are computed by plain torch, slower and in more memory", error)
        return None
    return token_stats_triton


def _token_stats(logits: torch.Tensor, targets: torch.Tensor) -> TokenStats:
    rows, vocabulary = logits.shape
    chunk = _chunk_rows(SCRATCH_BYTES_CPU if logits.device.type == "cpu" else SCRATCH_BYTES_GPU, vocabulary)
    scratch = torch.empty(2, min(chunk, rows), vocabulary, dtype=torch.float32, device=logits.device)
    parts = []
    for start in range(0, max(rows, 1), chunk):
        part = logits[start : start + chunk]
        parts.append(_reduce(part.float(), targets[start : start + chunk], *scratch[:, : len(part)]))
    return TokenStats(*(torch.cat(column) for column in zip(*parts)))


def _chunk_rows(chunk_bytes: int, vocabulary: int) -> int:
    return max(1, chunk_bytes // (4 * vocabulary))


def _reduce(logits: torch.Tensor, targets: torch.Tensor, shifted: torch.Tensor, scratch: torch.Tensor) -> TokenStats:
    """One chunk, float32 (n, V); `shifted` and `scratch` are buffers of the same shape.

    With m the largest logit, z = logit - m and s the sum of exp(z) without the largest entry (whose exp is 1): ln p = z
    - ln(1 + s) and H = ln(1 + s) - sum(z exp z) / (1 + s). Leaving the 1 out keeps a nearly certain prediction exact: 1
    + s would round to 1 there.
    """
    target = logits.gather(1, targets.unsqueeze(1))  # (n, 1)
    largest, second, at_largest = _two_largest(logits)  # (n, 1) each
    # Comparisons written as float32 0 and 1 are summed far faster than booleans, and exactly up to 2^24 tokens.
    n_greater = torch.gt(logits, target, out=scratch).sum(1)
    n_equal = torch.eq(logits, target, out=scratch).sum(1)
    torch.sub(logits, largest, out=shifted)
    torch.exp(shifted, out=scratch).scatter_(1, at_largest, 0.0)
    rest = scratch.sum(1)  # s, (n,)
    log_total = torch.log1p(rest)
    weighted = scratch.mul_(shifted)
    # Sum of z exp z, (n,). 0 * -infinity of masked tokens is NaN, and left out; NaN logits still show in logprob. On a
    # CPU the slower sum is only for those who need it; on a GPU, to ask would be to wait.
    total = weighted.nansum(1) if weighted.is_cuda else weighted.sum(1)
    if not weighted.is_cuda and total.isnan().any():
        total = weighted.nansum(1)
    return TokenStats(
        logprob=(target - largest).squeeze(1) - log_total,
        max_logprob=-log_total,
        second_logprob=(second - largest).squeeze(1) - log_total,
        entropy=log_total - total / (1 + rest),
        n_greater=n_greater.int(),
        n_equal=n_equal.int(),
    )


def _two_largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Largest and second-largest entry of each row and the index of the largest, (n, 1) each: torch.topk(2) in one fast
    pass.

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
    at_largest = members.gather(1, at[:, :1]).clamp(
        max=vocabulary - 1
    )  # only a row without one finite logit needs the clamp
    return top_blocks[:, :1], torch.maximum(top_blocks[:, 1:], top_inside[:, 1:]), at_largest
