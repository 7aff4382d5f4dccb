"""What a part of the vocabulary says of a row: six numbers. Several parts as one, and one as statistics; plain torch.

The largest logit, the second largest, sums of e^z and of z e^z without one largest entry (z = logit - largest), and how
many logits are above the target's, and equal to it.
"""

import torch

from proxycast.extraction.schema import TokenStats


def statistics_of_parts(parts: torch.Tensor | tuple[torch.Tensor, ...], target: torch.Tensor) -> TokenStats:
    """Statistics of rows by the part (6, n) of their whole vocabulary, and the logit `target` (n,) of their tokens.

    With m the row's largest logit, z = logit - m and s the sum of exp(z) without the largest entry: ln p = z - ln(1 +
    s) and H = ln(1 + s) - sum(z exp z) / (1 + s). Without the 1, s keeps a nearly certain prediction exact.
    """
    largest, second, rest, weighted, n_greater, n_equal = parts
    log_total = torch.log1p(rest)
    return TokenStats(
        logprob=(target - largest) - log_total,
        max_logprob=-log_total,
        second_logprob=(second - largest) - log_total,
        entropy=log_total - weighted / (1 + rest),
        n_greater=n_greater.int(),
        n_equal=n_equal.int(),
    )


def together(parts: torch.Tensor) -> torch.Tensor:
    """Parts (6, R, n) of the slices of a vocabulary as one of the whole (6, n), float32.

    Each slice's sums move from its own largest logit to the row's, and its largest entry is one of the rest, in all
    slices but one. A slice of masked logits has sums of 0, which -infinity - top would turn into NaN.
    """
    largest, second, rest, weighted, n_greater, n_equal = parts
    top, at = largest.max(0)
    others = largest.scatter(0, at.unsqueeze(0), -torch.inf)
    shift = (largest - top).masked_fill(largest == -torch.inf, 0.0)
    summed = rest + (others > -torch.inf)
    weights = shift.exp()
    return torch.stack(
        [
            top,
            torch.maximum(others.amax(0), second.amax(0)),
            (weights * summed).sum(0),
            # Far below the top, exp(shift) is 0 and the shift may be large, but never infinite.
            (weights * (weighted + shift * summed)).sum(0),
            n_greater.sum(0),
            n_equal.sum(0),
        ]
    )
