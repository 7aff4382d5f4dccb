"""What vLLM's workers have collected, brought into the order of the sequences; every token is compared."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proxycast.solutions.tokenisation import ScoredSequence


class HookError(RuntimeError):
    """vLLM did not do what the hook in its workers needs: a bug or an unknown version, never the user's input."""


def arranged(
    folder: Path, sequences: Sequence[ScoredSequence], spans: bytes, token_ids: bytes, columns: bytes
) -> np.ndarray:
    """What a worker collected (`Collected.take`, which has the bytes) in the order of the sequences: (6, n), float32.

    Raises HookError, naming the sequence, for a scored token that is missing or is another one than was asked for.
    """
    sequence, _, position, count = np.frombuffer(spans, np.int32).reshape(-1, 4).T
    scored = np.array([s.stop - s.start for s in sequences])
    first = np.cumsum(scored) - scored - np.array([s.start for s in sequences])  # where position 0 would stand
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    at = np.repeat(first[sequence] + position, count) + within
    asked = np.concatenate([s.token_ids[s.start : s.stop] for s in sequences])
    seen = np.full(len(asked), -1)
    seen[at] = np.frombuffer(token_ids, np.int64)
    if not np.array_equal(seen, asked):
        wrong = int((seen != asked).argmax())
        which = int(np.searchsorted(np.cumsum(scored), wrong, side="right"))
        raise HookError(
            f"{folder}: {sequences[which].key}: asked for token {asked[wrong]} at position "
            f"{wrong - first[which]}, got {'nothing' if seen[wrong] < 0 else f'token {seen[wrong]}'}"
        )
    found = np.empty((6, len(asked)), np.float32)
    found[:, at] = np.frombuffer(columns, np.float32).reshape(6, -1)
    return found
