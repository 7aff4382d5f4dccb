"""A kernel that is not known to be right on a GPU is tried there once in a process, before its results are used.

A small case is compared with plain torch in float64. Should the kernel not compile, fail, or differ, a warning names it
and the known-good one does its work until the process ends.
"""

import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from proxycast.extraction.gpu_kernels.tiles import Tile
from proxycast.extraction.row_parts import statistics_of_parts, together
from proxycast.extraction.schema import TokenStats

log = logging.getLogger(__name__)

SECONDS: dict[
    Hashable, float
] = {}  # what each trial took, by kernel and GPU; with it, compilation where it is not cached
_right: dict[Hashable, bool] = {}


def proven(kernel: Hashable, device: torch.device, difference: Callable[[], str]) -> bool:
    """Whether `difference()`, called once for each kernel and GPU, found none: then it returns an empty text."""
    key = (kernel, device.type, device.index)
    if key not in _right:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # results cannot be looked at now: try another time
        start = time.perf_counter()
        try:
            with waiting_allowed(device):
                found = difference()
        except Exception as error:  # of the compiler, the driver or the kernel
            found = f"{type(error).__name__}: {error}"
        SECONDS[key] = time.perf_counter() - start
        _right[key] = not found
        if found:
            log.warning("the kernel %s is not used on %s, a slower one is: %s", kernel, device, found[:500])
        else:
            log.info("the kernel %s is right on %s, found in %.2f s", kernel, device, SECONDS[key])
    return _right[key]


@contextmanager
def waiting_allowed(device: torch.device) -> Iterator[None]:
    """Results are looked at, also where torch was told that nothing may wait for a GPU."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def expected(logits: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """`TokenStats` in float64 from logits (n, V), from the definitions."""
    logits = logits.double()
    (top, second), at = logits.topk(2, 1).values.T, logits.argmax(1, keepdim=True)
    target = logits.gather(1, targets.unsqueeze(1))
    z = logits - top.unsqueeze(1)
    e = z.exp().scatter(1, at, 0.0)
    log_total = e.sum(1).log1p()
    return [
        target.squeeze(1) - top - log_total,
        -log_total,
        second - top - log_total,
        log_total - (e * z).nan_to_num(nan=0.0).sum(1) / (1 + e.sum(1)),
        (logits > target).sum(1),
        (logits == target).sum(1),
    ]


def difference(
    stats: TokenStats,
    wanted: Sequence[torch.Tensor],
    rows: torch.Tensor,
    left_out: Collection[str] = (),
    absolute: float = 3e-5,
) -> str:
    """What is wrong with the `rows` of `stats`, or an empty text. Counts must be exact, the rest close."""
    for name, found, right in zip(TokenStats._fields, stats, wanted):
        if name in left_out:
            continue
        close = torch.isclose(found.double(), right.double(), rtol=3e-5, atol=absolute)
        if name.startswith("n_"):
            close = found == right
        if not close[rows].all():
            row = int((~close & rows).nonzero()[0, 0])
            return f"{name} of row {row} is {found[row].item()}, not {right[row].item()}"
    return ""


def of_head(
    tile: Tile,
    dtype: torch.dtype,
    bias_type: torch.dtype | None,
    scale: float,
    softcap: float | None,
    device: torch.device,
    run: Callable[..., Iterable[TokenStats]],
) -> str:
    """What `run`(hidden, weight, targets, bias, scale, softcap, used) gets wrong: edges, ties, padding, NaN."""
    for whole in (True, False):
        hidden, weight, bias, targets = head_case(tile.rows + 37, 5 * tile.columns + 37, 3 * tile.depth + 24, whole)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        logits = hidden.double() @ weight.double().T
        if bias_type is not None:
            bias = bias.to(bias_type)
            logits += bias.double()
        logits *= scale
        wanted = expected(logits if softcap is None else torch.tanh(logits / softcap) * softcap, targets)
        hidden[1] = torch.nan
        padded = torch.cat([weight, torch.full((29, weight.shape[1]), torch.nan, dtype=dtype)])
        given = (hidden.to(device), padded.to(device), targets.to(device))
        for stats in run(*given, None if bias_type is None else bias.to(device), scale, softcap, len(weight)):
            stats = TokenStats(*(column.cpu() for column in stats))
            if stats.logprob[1].isfinite() and stats.entropy[1].isfinite():
                return "a hidden state of NaN does not show"
            keep = torch.arange(len(targets)) != 1
            if whole:
                found = difference(stats, wanted, keep)
            else:  # sums are rounded: of the counts only that of the tokens with equal weights is sure
                found = difference(stats, wanted, keep & (targets % 8 == 0), ("n_greater",), 5e-4)
            if found:
                return found
    return ""


def of_targets(
    tile: Tile,
    dtype: torch.dtype,
    device: torch.device,
    run: Callable[..., torch.Tensor],
    right: Callable[..., torch.Tensor],
) -> str:
    """Whether `run` gives the numbers of `right`, which takes a tile, too, to the last bit."""
    hidden, weight, bias, targets = (
        each.to(device) for each in head_case(tile.rows + 37, 500, 17 * tile.depth + 24, False)
    )
    targets[7] = 500  # none of the slice's
    arguments = (hidden.to(dtype), weight.to(dtype), targets, bias, 1.0, None, len(weight))
    differ = run(*arguments) != right(*arguments, tile)
    return f"{int(differ.sum())} of {len(differ)} targets have another logit" if differ.any() else ""


def head_case(
    rows: int, vocabulary: int, depth: int, whole: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weights, a bias and targets. Each eighth token is token 0 again: their logits are equal.

    Every third target is one of them. `whole`: all numbers are eighths, whose logits are exact in float32 in any order
    of sums, with many ties; every ninth row has a prediction that is nearly certain.
    """
    generator = torch.Generator().manual_seed(0)
    if whole:
        hidden, weight, bias = (
            torch.randint(-8, 9, shape, generator=generator) / 8
            for shape in ((rows, depth), (vocabulary, depth), (vocabulary,))
        )
        hidden[::9] = weight[5] * 2
    else:
        hidden = torch.randn(rows, depth, generator=generator) * 4 / depth**0.5
        weight, bias = torch.randn(vocabulary, depth, generator=generator), torch.randn(vocabulary, generator=generator)
    weight[::8], bias[::8] = weight[0].clone(), bias[0].clone()
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[::3] = targets[::3] // 8 * 8
    targets[-1], targets[0] = vocabulary - 1, 0
    return hidden, weight, bias, targets


def of_logits(
    dtype: torch.dtype, device: torch.device, run: Callable[[torch.Tensor, torch.Tensor, int], TokenStats], block: int
) -> str:
    """What `run`(logits, targets, block) gets wrong: parts of blocks, ties, masked logits, NaN."""
    generator = torch.Generator().manual_seed(0)
    for vocabulary in (2 * block + 64, 3 * block + 7):
        logits = torch.randn(6, vocabulary, generator=generator) * 5
        logits[0] = logits[0].round()
        logits[1, vocabulary // 2] = 60.0  # nearly certain
        targets = torch.randint(0, vocabulary, (6,), generator=generator)
        targets[0], targets[1], targets[2] = 0, vocabulary // 2, vocabulary - 1
        masked = torch.rand(6, vocabulary, generator=generator) < 0.5
        masked[3:, : block + 3] = True  # a whole block
        logits.masked_fill_(masked.scatter_(1, targets[:, None], False), -torch.inf)
        logits = logits.to(dtype)
        wanted = expected(logits, targets)
        logits[5, -2] = torch.nan
        targets[5] = vocabulary - 1
        stats = TokenStats(*(column.cpu() for column in run(logits.to(device), targets.to(device), block)))
        if stats.logprob[5].isfinite() and stats.entropy[5].isfinite():
            return "a logit of NaN does not show"
        found = difference(stats, wanted, torch.arange(6) < 5)
        if found:
            return found
    return ""


def of_combination(
    device: torch.device, run: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor | TokenStats]
) -> str:
    """What `run`(parts, target_logits) gets wrong, as one six and as statistics; few rows with many parts, and many."""
    generator = torch.Generator().manual_seed(0)
    for count, rows in ((600, 3), (33, 70), (1, 2)):
        parts = torch.rand(6, count, rows, generator=generator)
        parts[0] = (parts[0] * 8).round()
        parts[1] = parts[0] - parts[1]
        parts[3] = -parts[3]
        parts[4:] = (parts[4:] * 9).round()
        masked = torch.rand(count, rows, generator=generator) < 0.3
        masked[0] = False
        parts[:2].masked_fill_(masked, -torch.inf)
        parts[2:].masked_fill_(masked, 0.0)
        of_targets = parts[0].amax(0) - 1.5
        one, stats = run(parts.to(device), None), run(parts.to(device), of_targets.to(device))
        everything = torch.ones(rows, dtype=torch.bool)
        found = difference(
            TokenStats(*(column.cpu() for column in stats)), combined(parts.double(), of_targets), everything
        )
        found = found or difference(combined(one.cpu()[:, None], of_targets), combined(parts, of_targets), everything)
        if found:
            return found
    return ""


def combined(parts: torch.Tensor, target_logits: torch.Tensor | None) -> torch.Tensor | TokenStats:
    """Parts (6, R, n) as one, (6, n), or with the targets' logits (n,) as statistics: by a dozen kernels of torch."""
    whole = together(parts)
    return whole if target_logits is None else statistics_of_parts(whole, target_logits)
