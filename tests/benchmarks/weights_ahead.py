"""What a sweep saves by reading the next checkpoint's weights while a model runs, in place of all of them before.

    python tests/benchmarks/weights_ahead.py [--checkpoints 6] [--megabytes 256]

The weights of a checkpoint are a file of zeros. In place of a model, each checkpoint waits as long as its weights take
to be read and their fingerprint to be made, as a GPU would work: without the processor. Both ways run in turn, three
times. Prints a Markdown table: seconds until the first model runs, seconds in all, and how much of them no model ran.
"""

import argparse
import json
import statistics
import struct
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import polars as pl
from proxycast.extraction import sweep, weights_ahead
from proxycast.weights.model_folder import model_fingerprint
from tqdm import tqdm

TABLE = pl.DataFrame({"task": ["a"]})


def build(folder: Path, megabytes: int) -> Path:
    folder.mkdir()
    numbers = megabytes << 18
    entry = {"weight": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}
    header = json.dumps(entry).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
    return folder


def swept(folders: dict[str, Path], parts: Path, seconds: float, ahead: bool) -> tuple[float, float]:
    """Seconds until the first model runs, and in all."""
    begun, started = [], time.perf_counter()

    def measure(checkpoint, folder, tasks):
        begun.append(time.perf_counter())
        time.sleep(seconds)
        yield TABLE

    known = {} if ahead else {folder: model_fingerprint(folder) for folder in folders.values()}
    with (
        patch.object(sweep, "check_folder"),
        patch.object(weights_ahead, "model_fingerprint", lambda folder: known.get(folder) or model_fingerprint(folder)),
    ):
        made_from = {checkpoint: {"a": "made"} for checkpoint in folders}
        list(sweep.walk(list(folders.items()), made_from, measure, parts, code="code"))
    return begun[0] - started, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=6)
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args()
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        folders = {f"step{i}": build(Path(folder) / f"step{i}", options.megabytes) for i in range(options.checkpoints)}
        started = time.perf_counter()
        model_fingerprint(folders["step0"])
        seconds = time.perf_counter() - started
        for turn in tqdm(range(3)):
            for ahead in found:
                found[ahead].append(swept(folders, Path(folder) / f"parts{turn}{ahead}", seconds, ahead))
    running = options.checkpoints * seconds
    print(
        f"\n{options.checkpoints} checkpoints of {options.megabytes} MB; each is read, and runs, in {seconds:.2f} s\n"
    )
    print("| | first model after, s | in all, s | no model runs, s |\n|---|---|---|---|")
    for ahead, times in found.items():
        first, total = (statistics.median(column) for column in zip(*times))
        name = "read ahead" if ahead else "all read before"
        print(f"| {name} | {first:.2f} | {total:.2f} | {total - running:.2f} |")


if __name__ == "__main__":
    main()
