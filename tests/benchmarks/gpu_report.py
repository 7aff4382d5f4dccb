"""The figures of `gpu.py` as one markdown table: each beside what bounds it and beside its goal.

Every row is there, measured or not: a figure that is missing says why. Nothing here imports torch.
"""

import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from extraction import Work, data_sheet_peak

COLUMNS = ("", "measured", "range", "of vLLM's prefill", "of the floor", "of the peak", "kernels", "memory", "goal")
LEGEND = (
    "- measured: tokens/s are all tokens of the texts, prompts included, over wall time, the median of the repeats. "
    "Ours are timed to the finished table of six statistics of each scored token; *from text* includes tokenisation.",
    "- of vLLM's prefill: of the eager one in this table.",
    "- of the floor: the least time that arithmetic and memory take, at the rates in the first two rows, over the time "
    "taken. Of a scoring row: the FLOPs of the body for all tokens and of the head for the scored ones, and float32 "
    "logits written and read once. Of the fused head: the longer of its products and one reading of its operands. Of "
    "`from_logits`: one reading. Of training: 6 N FLOPs a token, N without the input embedding, no attention.",
    "- of the peak: FLOPs a second over the data sheet's for bfloat16 without sparsity.",
    "- kernels: time of all kernels and copies on the GPU over wall time, of a quarter of the texts.",
    "- memory: what scoring adds to the loaded model (for vLLM, which holds keys and values, to those as well); of the "
    "fused head, beside it the share of float32 logits of N x V; of training, the most in use.",
)
SIZES = ("1.7B", "8B")
FLOAT32_NATS = 3e-4
LEAST_FUSED, LARGE_ROWS, LARGE_HEAD = 0.80, 8192, (152_064, 4096)
MOST_OF_LOGITS = 0.05  # 24 bytes of partial results for each 256 columns are 2 %
# (row, size) -> goals: what it is compared with, and the least ratio.
GOALS = {
    ("vllm", "1.7B"): (("of vLLM's prefill", 0.92), ("of stock prompt_logprobs=1", 1.05)),
    ("vllm", "8B"): (("of vLLM's prefill", 0.95), ("of stock prompt_logprobs=1", 1.08), ("of the peak", 0.60)),
    **{(stage, "1.7B"): (("of vLLM's prefill", 0.75),) for stage in ("transformers", "transformers-compiled")},
    **{(stage, "8B"): (("of vLLM's prefill", 0.85),) for stage in ("transformers", "transformers-compiled")},
}


@dataclass(frozen=True)
class Goal:
    """`value` (None: not measured) is to be at least `bound`, or at most."""

    what: str
    value: float | None
    bound: float
    at_most: bool = False

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        if self.value is None:
            return f"{self.what} {sign} {self.bound:g}: not measured"
        met = self.value <= self.bound if self.at_most else self.value >= self.bound  # NaN misses
        return f"{self.what} {sign} {self.bound:g}: {self.value:.3g}, {'met' if met else '**missed**'}"


@dataclass
class Row:
    """A line of the table; what is None stays empty."""

    label: str
    measured: str
    spread: str = ""
    prefill: float | None = None
    floor: float | None = None
    peak: float | None = None
    kernels: float | None = None
    memory: str = ""
    goals: list[Goal] = field(default_factory=list)

    def __str__(self) -> str:
        shares = [self.prefill, self.floor, self.peak, self.kernels]
        written = ["" if share is None else f"{share:.2f}" for share in shares]
        cells = [self.label, self.measured, self.spread, *written, self.memory, "; ".join(map(str, self.goals))]
        return f"| {' | '.join(cells)} |"


class Results:
    """What `gpu.py` wrote: `stages`: name -> {"state", "seconds", "figures"}; `tables`: the folder of statistics."""

    def __init__(self, written: dict, tables: Path):
        self.stages, self.tables, self.rehearsed = written["stages"], tables, written["machine"]["rehearsed"]
        self.peak_rate = data_sheet_peak(written["machine"]["card"])
        found = self.figures("rates")
        self.rates = (found["flops"], found["bandwidth"]) if found else None

    def figures(self, stage: str) -> dict:
        return self.stages.get(stage, {}).get("figures", {})

    def why_not(self, stage: str) -> str:
        state = self.stages.get(stage, {}).get("state", "not asked for")
        return "not measured" if state == "ok" else f"not measured: {state}"

    def speed(self, stage: str, figure: str) -> float | None:
        """Tokens a second."""
        found = self.figures(stage).get(figure)
        return found["tokens"] / statistics.median(found["seconds"]) if found else None


def share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def tokens_row(results: Results, label: str, stage: str, figure: str, size: str, has_head: bool) -> Row:
    """A row of tokens a second over the texts. `has_head`: whether statistics or log-probs are made."""
    speed, found = results.speed(stage, figure), results.figures(stage)
    if speed is None:
        return Row(label, results.why_not(stage))
    seconds, tokens = found[figure]["seconds"], found[figure]["tokens"]
    row = Row(label, f"{speed:,.0f} tokens/s", f"{tokens / max(seconds):,.0f}-{tokens / min(seconds):,.0f}")
    row.prefill = share(speed, results.speed(f"stock-{size}", "prefill"))
    work = Work(**found["work"])
    flops = (work.whole if has_head else work.body) / tokens * speed
    if results.rates:
        row.floor = work.floors(results.rates)[has_head].seconds / tokens * speed
    row.peak = share(flops, results.peak_rate)
    return row


def engine_rows(results: Results, size: str) -> Iterator[Row]:
    for label, stage, figure, has_head in (
        ("vLLM, prefill alone, eager", "stock", "prefill", False),
        ("vLLM, prefill alone, compiled", "compiled", "prefill", False),
        ("vLLM, stock `prompt_logprobs=1`", "stock", "prompt_logprobs=1", True),
        ("vLLM, stock `prompt_logprobs=20`", "stock", "prompt_logprobs=20", True),
        ("**proxycast, vLLM**, from text", "vllm", "text", True),
        ("proxycast, vLLM, from tokens", "vllm", "given", True),
        ("**proxycast, transformers**, from text", "transformers", "text", True),
        ("proxycast, transformers, from tokens", "transformers", "given", True),
        ("**proxycast, transformers, compiled**, from text", "transformers-compiled", "text", True),
        ("proxycast, transformers, compiled, from tokens", "transformers-compiled", "given", True),
    ):
        name = f"{stage}-{size}"
        row = tokens_row(results, f"{size}: {label}", name, figure, size, has_head)
        found = results.figures(name)
        if figure == "given" and "kernels" in found:
            row.kernels = share(found["kernels"]["seconds"], found["kernels"]["wall"])
        if figure == "text":
            if "memory" in found:
                row.memory = f"{found['memory']['added_mb'] / 1e3:.2f} GB"
            row.goals = list(engine_goals(results, row, stage, size))
        yield row


def engine_goals(results: Results, row: Row, stage: str, size: str) -> Iterator[Goal]:
    stock = share(results.speed(f"{stage}-{size}", "text"), results.speed(f"stock-{size}", "prompt_logprobs=1"))
    values = {"of vLLM's prefill": row.prefill, "of stock prompt_logprobs=1": stock, "of the peak": row.peak}
    for what, bound in GOALS[stage, size]:
        yield Goal(what, values[what], bound)


def rate_rows(results: Results) -> Iterator[Row]:
    if results.rates is None:
        yield Row("bfloat16 matrix product, and copy", results.why_not("rates"))
        return
    flops, bandwidth = results.rates
    yield Row("bfloat16 matrix product", f"{flops / 1e12:,.3g} TFLOP/s", peak=share(flops, results.peak_rate))
    yield Row("copy, read and written", f"{bandwidth / 1e12:.3g} TB/s")


def head_rows(results: Results) -> Iterator[Row]:
    found = results.figures("head")
    if not found:
        yield Row("fused head", results.why_not("head"), goals=[Goal("of the floor", None, LEAST_FUSED)])
    for shape, figures in found.items():
        *sizes, kinds = shape.split()
        vocabulary, depth, n = map(int, sizes)
        floor = figures["floor"] / figures["seconds"]
        row = Row(f"fused head ({kinds}), V {vocabulary:,}, d {depth:,}, N {n:,}", "", floor=floor)
        row.measured = f"{figures['flops'] / figures['seconds'] / 1e12:,.3g} TFLOP/s"
        if figures["plain_seconds"]:
            row.spread = f"{figures['plain_seconds'] / figures['seconds']:.2f} x `mm` and `log_softmax`"
        if figures["peak"] is not None:
            of_logits = figures["peak"] / figures["logit_bytes"]
            row.memory = f"{figures['peak'] / 2**20:,.0f} MiB, {of_logits:.1%}"
            row.goals.append(Goal("memory of N x V", of_logits, MOST_OF_LOGITS, at_most=True))
        if (vocabulary, depth) == LARGE_HEAD and n >= LARGE_ROWS:
            row.goals.insert(0, Goal("of the floor", floor, LEAST_FUSED))
        yield row


def logits_rows(results: Results) -> Iterator[Row]:
    found = results.figures("from-logits")
    if not found:
        yield Row("`from_logits`", results.why_not("from-logits"))
    for name, figures in found.items():
        vocabulary, n, kind, kinds = name.split()
        label = f"`from_logits` ({kinds}), V {int(vocabulary):,}, N {int(n):,}, {kind}"
        yield Row(label, f"{figures['seconds'] * 1e3:.3f} ms", floor=figures["floor"] / figures["seconds"])


def training_rows(results: Results) -> Iterator[Row]:
    for size in ("20M", "90M"):
        stage, label = f"training-{size}", f"training on text, {size}"
        speed, found = results.speed(stage, "steps"), results.figures(stage)
        if speed is None:
            yield Row(label, results.why_not(stage))
            continue
        seconds, tokens = found["steps"]["seconds"], found["steps"]["tokens"]
        row = Row(label, f"{speed:,.0f} tokens/s", f"{tokens / max(seconds):,.0f}-{tokens / min(seconds):,.0f}")
        flops = 6 * found["parameters"] * speed
        row.floor, row.peak = share(flops, results.rates and results.rates[0]), share(flops, results.peak_rate)
        if "memory" in found:
            row.memory = f"{found['memory']['peak_mb'] / 1e3:.2f} GB"
        yield row


def differences(results: Results, one: str, other: str) -> tuple[float, float] | None:
    """Largest and mean difference of log-probs (nats) of two tables, over the tokens that both have, of all models."""
    found = []
    for path in sorted(results.tables.glob(f"{one} *.npz")):
        against = path.with_name(path.name.replace(one, other, 1))
        if against.exists():
            with np.load(path) as a, np.load(against) as b:
                n = min(len(a["logprob"]), len(b["logprob"]))
                found.append(np.abs(a["logprob"][:n].astype(np.float64) - b["logprob"][:n].astype(np.float64)))
    joined = np.concatenate(found) if found else np.empty(0)
    return (float(joined.max()), float(joined.mean())) if joined.size else None


def agreement_rows(results: Results) -> Iterator[Row]:
    for label, one, other, bound in (
        ("transformers, float32, and the library's", "transformers float32", "plain float32", FLOAT32_NATS),
        ("transformers, float32, and float64", "transformers float32", "plain float64", None),
        ("the library's float32, and float64", "plain float32", "plain float64", None),
        ("transformers, bfloat16, and float64", "transformers bfloat16", "plain float64", None),
        ("vLLM, bfloat16, and float64", "vllm bfloat16", "plain float64", None),
        ("the library's bfloat16, and float64", "plain bfloat16", "plain float64", None),
        ("vLLM and transformers, bfloat16", "vllm bfloat16", "transformers bfloat16", None),
    ):
        found = differences(results, one, other)
        row = Row(f"log-probs: {label}", "not measured")
        if found:
            row.measured, row.spread = f"{found[0]:.1e} nats at most", f"{found[1]:.1e} on average"
        if bound:
            row.goals = [Goal("nats", found[0] if found else None, bound, at_most=True)]
        yield row
    said = results.figures("refusal").get("said")
    if said is None or results.rehearsed:
        yield Row("float32 by vLLM", "not measured: no GPU to refuse it on" if said else results.why_not("refusal"))
    else:
        yield Row("float32 by vLLM", "refused" if "not exact on a GPU" in said else f"**not refused**: {said}")


def rows(results: Results) -> list[Row]:
    parts: list[Callable[[Results], Iterator[Row]]] = [rate_rows]
    parts += [lambda results, size=size: engine_rows(results, size) for size in SIZES]
    parts += [head_rows, logits_rows, agreement_rows, training_rows]
    return [row for part in parts for row in part(results)]


def text_lines(results: Results) -> Iterator[str]:
    """What was read, of each size."""
    for size in SIZES:
        stages = (f"{stage}-{size}" for stage in ("vllm", "stock", "transformers"))
        found = next((results.figures(stage)["texts"] for stage in stages if "texts" in results.figures(stage)), None)
        if found:
            tokens = f"{found['tokens']:,} tokens, {found['scored']:,} of them scored"
            yield f"{size}: random Llama, {found['documents']} texts, {tokens}."


def kernel_lines(results: Results) -> Iterator[str]:
    for size in SIZES:
        for stage in (f"vllm-{size}", f"transformers-{size}"):
            if found := results.figures(stage).get("kernels"):
                yield f"\nKernels of {stage}, {found['seconds']:.3f} s in all of {found['wall']:.3f} s:\n\n```"
                for milliseconds, count, name in found["listed"]:
                    yield f"{milliseconds:9.1f} ms {count:6d} x  {name}"
                yield "```"


def report(written: dict, tables: Path, command: str) -> str:
    """Markdown: machine and versions, the table, then what failed and which kernels take the time."""
    results, machine = Results(written, tables), written["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Speed on a GPU",
        "",
        f"    {command}",
        "",
        f"{machine['card']}, driver {machine['driver']}; {versions}. Code of {machine['commit']}, {machine['date']}.",
        *(["", "**A rehearsal on a CPU with tiny shapes: no figure means anything.**"] * machine["rehearsed"]),
        "",
    ]
    lines += text_lines(results)
    lines += ["", *LEGEND, "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += map(str, rows(results))
    for name, stage in results.stages.items():
        if stage.get("log"):
            lines += ["", f"{name}: {stage['state']}", "", "```", re.sub(r"`{3,}", "", stage["log"]), "```"]
    return "\n".join([*lines, *kernel_lines(results)]) + "\n"
