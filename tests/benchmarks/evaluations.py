"""How long DataDecide's published evaluations take to read, and how much memory.

    python tests/benchmarks/evaluations.py --out table.md

Writes files of the size and shape of `allenai/DataDecide-eval-results` with random figures to a temporary folder: 25
corpora, 14 sizes, 3 seeds, 9 tasks and 57 subjects of mmlu, 855 checkpoints of each corpus, 1,410,750 rows in four
files, 33 figures a row in the text of a Python dict, zstd. Then reads them into a targets table, each time in a process
of its own: with every size, and with those of the default study. It needs 1 GB of disk and three minutes.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
from proxycast.config.ladder import Ladder, LadderSize, Tokenizer
from proxycast.truth.evaluations import METRICS, PROBLEMS, read_evaluations
from tqdm import tqdm

CORPORA = [f"Corpus {number} (QC {number}%)" for number in range(25)]
TASKS = [*(task for task in PROBLEMS if task != "mmlu"), *(f"mmlu_high_school_subject_{i}" for i in range(57))]
CHECKPOINTS = {  # of one run: the steps of published curves, and step 0
    **{"4M": 6, "6M": 5, "8M": 10, "10M": 12, "14M": 16, "16M": 20, "20M": 13, "60M": 23, "90M": 22},
    **{"150M": 31, "300M": 37, "530M": 42, "750M": 22, "1B": 26},
}
DEFAULT_STUDY = ["4M", "6M", "8M", "10M", "14M", "16M", "20M", "60M", "90M", "1B"]
SEEDS = {0: "default", 1: "small-aux-2", 2: "small-aux-3"}
SEEDS_1B = {0: "default", 1: "large-aux-2", 2: "large-aux-3"}
OTHERS = ("acc_raw", "acc_per_token", "acc_per_char", "acc_per_byte", "sum_logits_corr", "logits_per_token_corr")
OTHERS += ("logits_per_char_corr", "bits_per_byte_corr", "uncond_correct_prob", "uncond_correct_prob_per_token")
OTHERS += ("uncond_correct_prob_per_char", "uncond_total_prob", "predicted_index_raw", "predicted_index_per_token")
OTHERS += ("predicted_index_per_char", "predicted_index_per_byte", "predicted_index_uncond", "correct_choice")
KEYS = (*OTHERS, "acc_uncond", "no_answer", *reversed(METRICS))
FILES = 4
LIMITS = {"seconds": 10, "GiB": 2}


def ladder() -> Ladder:
    shape = dict(hidden_size=64, layers=8, heads=8, batch_sequences=32, learning_rate=0.01)
    sizes = {
        size: LadderSize(steps=1250 * (n - 1), seeds=SEEDS_1B if size == "1B" else None, **shape)
        for size, n in CHECKPOINTS.items()
    }
    return Ladder(
        name="datadecide",
        tokenizer=Tokenizer(hub="allenai/gpt-neox-olmo-dolma-v1_5"),
        vocabulary=50304,
        sequence_length=2048,
        checkpoint_every=1250,
        seeds=SEEDS,
        sizes=sizes,
    )


def labels() -> pl.DataFrame:
    runs = [
        (size, corpus, seed.replace("-", " "), 1250.0 * step)
        for (size, checkpoints), corpus in product(CHECKPOINTS.items(), CORPORA)
        for seed in (SEEDS_1B if size == "1B" else SEEDS).values()
        for step in range(checkpoints)
    ]
    table = pl.DataFrame(runs, ["params", "data", "seed", "step"], orient="row")
    return table.join(pl.DataFrame({"task": TASKS}), how="cross").with_columns(chinchilla=pl.lit("5xC"))


def texts(rows: int, random: np.random.Generator) -> pl.Series:
    """The text of a Python dict for each row; the figures have up to 19 digits, as real ones do."""
    figures = random.random((len(KEYS), rows)) * 0.1 ** random.integers(0, 3, (len(KEYS), rows))
    parts = []
    for key in KEYS:
        figure = {"acc_uncond": pl.lit("None"), "no_answer": pl.lit("0")}.get(key, pl.col(key).cast(pl.String))
        parts += [pl.lit(f"{', ' if parts else '{'}'{key}': "), figure]
    return pl.DataFrame(figures, list(KEYS), orient="col").select(pl.concat_str(*parts, pl.lit("}")))[:, 0]


def generate(folder: Path, rows_in_a_group: int) -> int:
    """Write the files; the bytes of text in `metrics`."""
    table, random, size = labels(), np.random.default_rng(0), 0
    rows = -(-len(table) // FILES)
    for number in tqdm(range(FILES), desc=f"writing, row groups of {rows_in_a_group}", unit="file", mininterval=5):
        part = table.slice(number * rows, rows)
        metrics = pl.concat([texts(len(some), random) for some in part.iter_slices(50_000)])
        size += metrics.str.len_bytes().sum()
        path = folder / f"train-{number:05}-of-{FILES:05}.parquet"
        part.with_columns(metrics=metrics).write_parquet(path, compression="zstd", row_group_size=rows_in_a_group)
    return size


def read(folder: Path, sizes: list[str]) -> None:
    """In a process of its own: print rows, checkpoints, seconds, CPU seconds, GiB."""
    start, cpu = time.perf_counter(), time.process_time()
    corpora = {name: f"corpus-{number}" for number, name in enumerate(CORPORA)}
    table = read_evaluations(sorted(folder.glob("*.parquet")), corpora, ladder(), sizes, list(PROBLEMS), METRICS)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    # Not ru_maxrss, which begins with the size of the process that started this one.
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
    print(len(table), table["checkpoint"].n_unique(), seconds, cpu, peak)


def measure(folder: Path, sizes: list[str], repeats: int) -> tuple[int, int, float, float, float]:
    """Rows, checkpoints; seconds and CPU seconds of the fastest repeat; the largest peak."""
    command = [sys.executable, __file__, "--read", str(folder), "--sizes", *sizes]
    runs = []
    for _ in range(repeats):
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        runs.append([int(output[0]), int(output[1]), *map(float, output[2:])])
    fastest = min(runs, key=lambda run: run[2])
    return *fastest[:4], max(run[4] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        return read(args.read, args.sizes)
    load = os.getloadavg()[0]
    lines, fine = [], True
    for rows_in_a_group in (1_000, 100_000, 400_000):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            size = generate(folder, rows_in_a_group)
            disk = sum(path.stat().st_size for path in folder.iterdir())
            for title, sizes in (("all 14", list(CHECKPOINTS)), ("4M-90M and 1B", DEFAULT_STUDY)):
                rows, checkpoints, seconds, cpu, peak = measure(folder, sizes, args.repeats)
                fine &= seconds < LIMITS["seconds"] and peak < LIMITS["GiB"]
                group = "a file" if rows_in_a_group == 400_000 else f"{rows_in_a_group:,}"
                lines.append(
                    f"| {group} | {title} | {checkpoints:,} | {rows:,} | {seconds:.1f} | {cpu:.1f} | {peak:.2f} |"
                )
    head = [
        "# Reading the published evaluations of DataDecide",
        "",
        "    python tests/benchmarks/evaluations.py --out table.md",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, polars {pl.__version__}; "
        f"load average before the start {load:.1f}, at the end {os.getloadavg()[0]:.1f}: beyond the number of cores, "
        "seconds measure others' work too.",
        f"Files of the size and shape of the published ones, random figures: {len(labels()):,} rows in {FILES} files, "
        f"{size / 2**30:.1f} GiB of text in `metrics`, {disk / 2**30:.2f} GiB on disk (zstd), {len(METRICS)} of "
        f"{len(KEYS)} figures read, ten tasks, mmlu as 57 subjects.",
        f"Fastest of {args.repeats} processes, each new; peak: the largest resident set of them, Python and all.",
        "",
        "| rows in a row group | sizes | checkpoints | rows of targets | s | CPU s | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    print(*head, *lines, sep="\n")
    if args.out:
        args.out.write_text("\n".join([*head, *lines]) + "\n")
    sys.exit(0 if fine else f"slower than {LIMITS['seconds']} s or above {LIMITS['GiB']} GiB")


if __name__ == "__main__":
    main()
