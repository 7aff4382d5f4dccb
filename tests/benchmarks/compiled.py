"""What compiled layers gain: the engine on transformers with and without, text to finished table.

    python tests/benchmarks/compiled.py [--repeats 5] [--hidden 128 576]

The model is a random Llama of 4 layers, float32 on a CPU and bfloat16 on a GPU. Both ways take turns, and times are of
the process (on a GPU of the clock). Prints a Markdown table: medians and ranges, and what it took to compile and prove.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from extraction_rows import CONTEXT, Shape, prepare, tokenized, wait
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine

VOCABULARY = 8192


def measure(folder: Path, hidden: int, documents: int, repeats: int, device: str) -> str:
    """The row of the table for one model."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    shape = Shape(4, hidden, hidden // 64, hidden // 64, 4 * hidden, VOCABULARY)
    tokens = sum(length for length, _ in prepare(folder, shape, documents, dtype, device))
    texts = [tuple(row) for row in json.loads((folder / "documents.json").read_text())]
    clock = time.process_time if device == "cpu" else time.perf_counter
    engines, rates, took = {}, {"never": [], "always": []}, 0.0
    for when in rates:
        engines[when] = make_engine(ExtractionOptions(compile=when, dtype=dtype, device=device, tail_tokens=CONTEXT))
        began = time.perf_counter()
        engines[when].load(folder)
        took = time.perf_counter() - began - took  # of the second, what it takes longer than the first
        engines[when].token_stats(tokenized(texts, engines[when]))
    for _ in range(repeats):
        for when, engine in engines.items():
            began = clock()
            engine.token_stats(tokenized(texts, engine))
            wait(device)
            rates[when].append(tokens / (clock() - began))
    never, always = (statistics.median(found) for found in rates.values())
    ranges = (f"{statistics.median(found):,.0f} ({min(found):,.0f}-{max(found):,.0f})" for found in rates.values())
    named = f"{hidden}, {documents} texts ({tokens:,} tokens)"
    return f"| {named} | {' | '.join(ranges)} | {always / never:.2f} | {took:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 576])
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    print("| hidden size, texts | `never`, tokens/s | `always`, tokens/s | ratio | to compile and prove |")
    print("|---|---:|---:|---:|---:|")
    for hidden in options.hidden:
        documents = 80 if hidden <= 256 or device == "cuda" else 12
        with tempfile.TemporaryDirectory() as folder:
            print(measure(Path(folder), hidden, documents, options.repeats, device), flush=True)


if __name__ == "__main__":
    main()
