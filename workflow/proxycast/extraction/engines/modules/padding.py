"""Right-padded batches: how many texts share one, and passes that need no mask."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, takewhile

import torch

from proxycast.extraction.engines.modules.reading import Sharing

# A GPU runs 4,096 tokens of a model of a billion parameters as fast, a token, as more: by arithmetic, that is ten times
# as long as their kernels take to launch. With smaller models that takes longer than padding does. Documents of 100 to
# 600 tokens in batches of up to 16,384 are padded by 5.4 %, in these by 2.0 %; texts of thousands by 0.1 to 1 %.
LARGE, FEWEST_TOKENS = 1e9, 4096
PADDING = 0.02  # most of a batch's tokens, where there are as many


def batch_size(lengths: Iterator[int], most_tokens: int, sharing: Sharing, model: torch.nn.Module) -> int:
    """How many of the next texts run together, at most `most_tokens` with padding; one at least.

    `lengths`: theirs, the longest first.
    """
    if not sharing.equal_lengths:
        return 1
    longest = next(lengths)
    others = islice(lengths, max(1, most_tokens // longest) - 1)
    if longest > sharing.mixed_up_to:
        return 1 + sum(1 for _ in takewhile(longest.__eq__, others))
    if sum(weights.numel() for weights in model.parameters()) < LARGE:
        return 1 + sum(1 for _ in others)
    return with_little_padding([longest, *others])


def with_little_padding(lengths: Sequence[int]) -> int:
    """How many of the texts, the longest first, share a batch: it is padded little, or has not many tokens."""
    size, tokens = 1, 0
    for count, length in enumerate(lengths, start=1):
        tokens += length
        padded = count * lengths[0]
        if padded <= FEWEST_TOKENS or padded - tokens <= PADDING * padded:
            size = count
    return size


@contextmanager
def unpacked() -> Iterator[None]:
    """Within it `transformers` takes each row of a batch for one text, as it is.

    For packed texts, which would need a mask, it searches the positions, and that waits for a GPU in every pass: the
    next one is prepared only when the one before it is over. Where the library has no such function, nothing changes.
    """
    from transformers import masking_utils

    search = getattr(masking_utils, "find_packed_sequence_indices", None)
    if search is None:
        yield
        return
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search
