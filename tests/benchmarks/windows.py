"""What windows cost in tokens read, for the table of docs/how/texts.md: python tests/benchmarks/windows.py

The layout is counted, not timed: an engine reads each window's tokens once.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "workflow"))

from proxycast.solutions.tokenisation import window_spans  # noqa: E402

CONTEXT, TAIL = 2048, 1000  # tokens; TAIL: as `tail_tokens` has it
STRIDES = (0.75, 0.5, 0.25, 0.1, 0.05)
LENGTHS = (2500, 5000, 20000)  # tokens of one text


def tokens_read(length: int, start: int, stride: float) -> int:
    """Tokens of all windows in which the tokens from `start` on of a text of `length` tokens are scored."""
    spans = window_spans(start, length, CONTEXT, max(int(stride * CONTEXT), 1), leading=1)
    return sum(stop - first + (first > 0) for first, _, stop in spans)


def table() -> str:
    heads = [f"{part} of {length:,}" for part in ("all", f"last {TAIL:,}") for length in LENGTHS]
    rows = [
        [stride, f"{1 - stride:.0%}"]
        + [f"{tokens_read(length, 1, stride) / length:.1f}" for length in LENGTHS]
        + [f"{tokens_read(length, length - TAIL, stride):,}" for length in LENGTHS]
        for stride in STRIDES
    ]
    lines = [["`window_stride`", "context of each token, at least", *heads], ["---"] * (2 + len(heads)), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    print(table())
