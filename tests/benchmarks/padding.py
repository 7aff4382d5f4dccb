"""How much of right-padded batches is padding, with the limit for large models and without. No model runs.

    python tests/benchmarks/padding.py

Prints a Markdown table: texts sorted by length, in batches of up to 16,384 tokens.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from extraction_rows import LONGEST, SHORTEST, TOKENIZER_VOCABULARY, write_texts
from proxycast.extraction.engines.base import BATCH_TOKENS
from proxycast.extraction.engines.modules.padding import with_little_padding


def share(lengths: list[int], batch_size: Callable[[list[int]], int]) -> str:
    """Padding as a share of all tokens that are read, and the number of batches."""
    waiting, read, batches = sorted(lengths, reverse=True), 0, 0
    while waiting:
        size = batch_size(waiting[: max(1, BATCH_TOKENS["cuda"] // waiting[0])])
        read, batches, waiting = read + size * waiting[0], batches + 1, waiting[size:]
    return f"{1 - sum(lengths) / read:.1%} in {batches} batches"


def functions() -> list[int]:
    """Tokens of the texts of `extraction.py`."""
    with tempfile.TemporaryDirectory() as folder:
        return [tokens for tokens, _ in write_texts(Path(folder), TOKENIZER_VOCABULARY, 1000)]


def main() -> None:
    rng = np.random.default_rng(0)
    long = rng.lognormal(np.log(6000), 0.5, 200).astype(int).tolist()
    texts = {
        f"1,000 functions of {SHORTEST} to {LONGEST} tokens (`tests/benchmarks/extraction_rows.py`)": functions(),
        "1,000 traces of 1,000 to 16,000 tokens, all lengths alike": rng.integers(1000, 16_001, 1000).tolist(),
        "200 traces, log-normal around 6,000 tokens (sigma 0.5)": long,
    }
    print("| texts | padding without the limit | with it |\n|---|---:|---:|")
    for name, lengths in texts.items():
        print(f"| {name} | {share(lengths, len)} | {share(lengths, with_little_padding)} |")


if __name__ == "__main__":
    main()
