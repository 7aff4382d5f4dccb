"""What `gpu.py` measures: each stage is one function that runs in a process of its own and notes figure after figure.

A stage loads once and measures several things, because loading is what takes long. Each figure is written down as soon
as it is known: of a stage that fails or is ended, what it had is kept.
"""

import contextlib
import gc
import json
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from extraction import SIZES, work_of
from extraction_rows import (
    CONTEXT,
    Case,
    Memory,
    Shape,
    loaded_engine,
    rates,
    sequences_of,
    stock_model,
    stock_outputs,
    tokenized,
    wait,
    write_model,
    write_texts,
)
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.ladder import Ladder
from proxycast.extraction.engines.factory import make_engine
from proxycast.extraction.schema import TokenStats
from proxycast.options import InputError
from proxycast.tables import atomic

LENGTHS_FILE, DONE = "lengths.json", "done"
SMALL, WIDE = "small", "wide"  # models for comparisons: heads of 64 and of 128 dimensions
FLOAT64, FLOAT32, BFLOAT16 = "float64", "float32", "bfloat16"
KERNELS_LISTED = 12


@dataclass(frozen=True)
class Scale:
    """How large everything is: as on a GPU, or tiny, to rehearse on a CPU."""

    models: dict[str, Shape]
    documents: int
    compared: int  # texts that the engines are compared on
    referred: int  # of them, those that the plain forward passes read
    batch_tokens: int
    heads: tuple[tuple[int, int, int], ...]  # vocabulary, depth, rows
    logits: tuple[tuple[int, int], ...]  # vocabulary, rows
    trained: dict[str, dict]  # sizes of a ladder
    vocabulary: int  # of the models that are trained
    length: int  # of their sequences
    repeats: int
    steps: int  # of training that are measured, after two that are not


def _full() -> Scale:
    """As on a GPU. The trained shapes and the vocabulary are DataDecide's (config/ladders/datadecide.yaml)."""
    from fused_head import DEPTHS, LOGIT_ROWS, ROWS, VOCABULARIES

    compared = dict(layers=8, hidden=1024, feed_forward=4096, vocabulary=50_304)
    return Scale(
        models={
            SMALL: Shape(heads=16, key_value_heads=8, **compared),
            WIDE: Shape(heads=8, key_value_heads=8, head_dimension=128, tied=False, **compared),
            **{size: SIZES[size] for size in ("1.7B", "8B")},
        },
        documents=1000,
        compared=300,
        referred=20,
        batch_tokens=16_384,
        heads=tuple(product(VOCABULARIES, DEPTHS, ROWS)),
        logits=tuple(product(VOCABULARIES, LOGIT_ROWS)),
        trained={
            "20M": dict(hidden_size=192, layers=16, heads=8, batch_sequences=64, learning_rate=0.008373),
            "90M": dict(hidden_size=528, layers=16, heads=12, batch_sequences=160, learning_rate=0.004856),
        },
        vocabulary=50_304,
        length=2048,
        repeats=3,
        steps=8,
    )


def _tiny() -> Scale:
    shape = dict(layers=2, hidden=64, key_value_heads=2, feed_forward=128, vocabulary=1024)
    narrow = Shape(heads=4, head_dimension=64, **shape)
    wide = Shape(heads=2, head_dimension=128, tied=False, **shape)
    trained = dict(hidden_size=16, layers=1, heads=2, batch_sequences=2, learning_rate=0.01)
    return Scale(
        models={SMALL: narrow, WIDE: wide, "1.7B": narrow, "8B": wide},
        documents=6,
        compared=6,
        referred=2,
        batch_tokens=1024,
        heads=((300, 32, 5), (500, 32, 40)),
        logits=((500, 3),),
        trained={"20M": trained, "90M": trained},
        vocabulary=320,
        length=32,
        repeats=2,
        steps=2,
    )


@dataclass(frozen=True)
class Place:
    """Where a stage runs and writes. `out`: results; `models`: folders of models, which later stages find there.

    `repeats`: of each timing; None: as many as the scale has.
    """

    out: Path
    models: Path
    rehearsed: bool
    repeats: int | None = None

    @property
    def scale(self) -> Scale:
        return _tiny() if self.rehearsed else _full()

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsed else "cuda"


class Notes:
    """The figures of a stage, on disk after each."""

    def __init__(self, place: Place, file: Path):
        self.place, self.file, self.figures = place, file, {}

    def add(self, **figures: object) -> None:
        self.figures |= figures
        with atomic(self.file) as temporary:
            temporary.write_text(json.dumps(self.figures))

    def time(self, name: str, work: Callable[[], object], tokens: int, repeats: int | None = None) -> float:
        """Note the seconds of each repeat, after one that warms up; returns their median."""
        seconds = []
        for i in range(1 + (repeats or self.place.repeats or self.place.scale.repeats)):
            gc.collect()
            began = time.perf_counter()
            work()
            wait(self.place.device)
            seconds += [time.perf_counter() - began] * (i > 0)
        self.add(**{name: {"seconds": seconds, "tokens": tokens}})
        return statistics.median(seconds)


# --- models


def case_of(place: Place, name: str, seed: int = 0, dtype: str = BFLOAT16) -> Case:
    """The random model `name`; written, with tokenizer and texts, if it is not there."""
    texts, folder, shape = place.models / "texts", place.models / f"{name}-{seed}", place.scale.models[name]
    if not (texts / DONE).exists():
        texts.mkdir(parents=True, exist_ok=True)
        lengths = write_texts(
            texts, min(shape.vocabulary for shape in place.scale.models.values()), place.scale.documents
        )
        (texts / LENGTHS_FILE).write_text(json.dumps(lengths))
        (texts / DONE).touch()
    if not (folder / DONE).exists():
        shutil.copytree(texts, folder, ignore=shutil.ignore_patterns(DONE), dirs_exist_ok=True)
        write_model(folder, shape, BFLOAT16, place.device, seed)
        free_memory()
        (folder / DONE).touch()
    return Case(str(folder), shape.vocabulary, place.device, dtype, place.scale.batch_tokens, None)


def free_memory() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # nothing, without a GPU


def note_work(notes: Notes, size: str, case: Case) -> int:
    """What one pass over the texts of a case has to do; returns their tokens."""
    lengths = json.loads((Path(case.folder) / LENGTHS_FILE).read_text())
    tokens, scored = (sum(column) for column in zip(*lengths))
    work = asdict(work_of(notes.place.scale.models[size], lengths))
    notes.add(work=work, texts={"documents": len(lengths), "tokens": tokens, "scored": scored})
    return tokens


# --- speed


def measure_rates(notes: Notes) -> None:
    flops, bandwidth = rates(notes.place.device, None)
    notes.add(flops=flops, bandwidth=bandwidth)


def measure_engine(notes: Notes, size: str, kind: str, **more: object) -> None:
    """Ours: from text to the finished table, and from tokens; what scoring adds to memory; the kernels' time."""
    case = case_of(notes.place, size)
    tokens = note_work(notes, size, case)
    began = time.perf_counter()
    engine = loaded_engine(case, kind, **more)
    wait(case.device)
    notes.add(load={"seconds": time.perf_counter() - began})
    documents, memory = case.documents, Memory(case.device)
    memory.reset()
    loaded = memory.now()
    notes.time("text", lambda: engine.token_stats(tokenized(documents, engine)), tokens)
    notes.add(memory={"added_mb": memory.peak() - loaded, "loaded_mb": loaded})
    sequences = tokenized(documents, engine)
    notes.time("given", lambda: engine.token_stats(sequences), tokens)
    notes.time("tokenisation", lambda: tokenized(documents, engine), tokens, 1)
    some = sequences[: max(2, len(sequences) // 4)]
    wall = notes.time("some", lambda: engine.token_stats(some), sum(len(s.token_ids) for s in some))
    notes.add(kernels=kernel_times(lambda: engine.token_stats(some), case.device) | {"wall": wall})


def kernel_times(work: Callable[[], object], device: str) -> dict:
    """Seconds of all kernels and copies of `work`, and those that take most: [milliseconds, calls, name]."""
    import torch
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(
        activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
    ) as seen:
        work()
        wait(device)
    clock = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, clock))
    if device == "cuda":
        events = [event for event in events if str(event.device_type).endswith("CUDA")]
    listed = [[getattr(event, clock) / 1e3, event.count, event.key[:120]] for event in events[:KERNELS_LISTED]]
    return {"seconds": sum(getattr(event, clock) for event in events) / 1e6, "listed": listed}


def measure_stock(notes: Notes, size: str, compiled: bool) -> None:
    """vLLM's own: the prefill alone, and its prompt log-probs. `compiled`: as it runs by default; ours runs eagerly."""
    case = case_of(notes.place, size)
    tokens = note_work(notes, size, case)
    sequences = sequences_of(case)
    model = stock_model(case, 20, enforce_eager=not compiled or case.device == "cpu")
    notes.time("prefill", stock_outputs(model, sequences, None), tokens)
    for count in () if compiled else (1, 20):
        notes.time(f"prompt_logprobs={count}", stock_outputs(model, sequences, count), tokens)


def measure_head(notes: Notes) -> None:
    from fused_head import KERNELS, allowed, measure_fused

    device = notes.place.device
    ceilings = rates(device, None)
    for kinds, (vocabulary, depth, n) in product(KERNELS, notes.place.scale.heads):  # those last that may fail
        with allowed(kinds):
            found = measure_fused(n, vocabulary, depth, device, ceilings)
        notes.add(**{f"{vocabulary} {depth} {n} {kinds}": found})


def measure_logits(notes: Notes) -> None:
    import torch
    from fused_head import KERNELS, allowed, measure_from_logits

    device = notes.place.device
    _, bandwidth = rates(device, None)
    for kinds, (vocabulary, n), kind in product(KERNELS[:2], notes.place.scale.logits, (FLOAT32, BFLOAT16)):
        with allowed(kinds):
            found = measure_from_logits(n, vocabulary, getattr(torch, kind), device, bandwidth)
        notes.add(**{f"{vocabulary} {n} {kind} {kinds}": found})


def measure_training(notes: Notes, size: str) -> None:
    """Steps of `pretrain` on random tokens, as tokens a second; 6 N FLOPs a token are the floor's work."""
    from proxycast.training.text.train_run import pretrain
    from text_training import save_tokenizer

    scale, folder, began = notes.place.scale, notes.place.models / f"training-{size}", []
    shutil.rmtree(folder, ignore_errors=True)
    last = 3 + scale.steps  # two that compile and warm up; the last one ends with a checkpoint
    ladder = Ladder(
        name="benchmark",
        tokenizer={"folder": "tokenizer"},
        vocabulary=scale.vocabulary,
        sequence_length=scale.length,
        checkpoint_every=last,
        seeds={0: "default"},
        sizes={size: scale.trained[size] | {"steps": last}},
    )
    save_tokenizer(folder / "tokenizer")
    shape, rng = ladder.sizes[size], np.random.default_rng(0)
    notes.add(parameters=shape.parameters(scale.vocabulary))

    def batch(step: int) -> np.ndarray:
        """`pretrain` asks for its next batch when a step is done, loss and gradient norm read."""
        began.append(time.perf_counter())
        if len(began) > 3:
            seconds = list(np.diff(began[2:]))
            notes.add(steps={"seconds": seconds, "tokens": ladder.batch_tokens(size)})
        return rng.integers(0, scale.vocabulary, (shape.batch_sequences, scale.length))

    memory = Memory(notes.place.device)
    pretrain(
        ladder,
        size,
        0,
        batch,
        folder / "models",
        (last,),
        folder / "tokenizer",
        folder / "state",
        "random tokens",
        notes.place.device,
    )
    notes.add(memory={"peak_mb": memory.peak()})
    shutil.rmtree(folder)


# --- agreement


def save_table(place: Place, name: str, columns: dict[str, np.ndarray]) -> None:
    """The statistics of scored tokens, for `gpu_report.differences`."""
    folder = place.out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **columns)


def compared_models() -> list[tuple[str, int]]:
    return [(SMALL, 0), (SMALL, 1), (WIDE, 0)]


def refer(notes: Notes) -> None:
    """The plain library, text by text, eager attention, statistics in float64 on the device: three types of weights.

    In float64 the library's norms and rotary embeddings still compute in float32, which moves nothing by 1e-5.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.backends.cuda.matmul.allow_tf32 = False
    for (name, seed), dtype in product(compared_models(), (FLOAT64, FLOAT32, BFLOAT16)):
        case = case_of(notes.place, name, seed)
        plain = AutoModelForCausalLM.from_pretrained(
            case.folder, dtype=getattr(torch, dtype), attn_implementation="eager"
        ).to(case.device)
        parts = []
        for sequence in sequences_of(case)[: notes.place.scale.referred]:
            ids = torch.from_numpy(sequence.token_ids).to(case.device)
            with torch.inference_mode():
                logits = plain(ids[None]).logits[0, sequence.start - 1 : sequence.stop - 1].double()  # (n, V)
            parts.append(definitions(logits, ids[sequence.start : sequence.stop]))
        save_table(notes.place, f"plain {dtype} {name}-{seed}", dict(zip(TokenStats._fields, np.concatenate(parts, 1))))
        notes.add(**{f"{name}-{seed} {dtype}": {"tokens": sum(part.shape[1] for part in parts)}})
        del plain
        free_memory()


def definitions(logits, targets) -> np.ndarray:
    """The six statistics (6, n) of float64 logits (n, V), by their definitions."""
    import torch

    logprobs, own = logits.log_softmax(1), logits.gather(1, targets[:, None])
    columns = [
        logprobs.gather(1, targets[:, None])[:, 0],
        *logprobs.topk(2).values.T,
        -(logprobs.exp() * logprobs).sum(1),
        (logits > own).sum(1).double(),
        (logits == own).sum(1).double(),
    ]
    return torch.stack(columns).cpu().numpy()


def tabulate(notes: Notes, kind: str, dtypes: tuple[str, ...]) -> None:
    """The tables of an engine for the models that are compared, one after another in one engine."""
    for dtype in dtypes:
        options = ExtractionOptions(
            engine=kind,
            dtype=dtype,
            device=notes.place.device,
            batch_tokens=notes.place.scale.batch_tokens,
            tail_tokens=CONTEXT,
        )
        engine = make_engine(options)
        for name, seed in compared_models():
            case = case_of(notes.place, name, seed, dtype)
            engine.load(Path(case.folder))
            table = engine.token_stats(tokenized(case.documents[: notes.place.scale.compared], engine))
            columns = {column: table[column].to_numpy() for column in TokenStats._fields}
            save_table(notes.place, f"{kind} {dtype} {name}-{seed}", columns)
            notes.add(**{f"{name}-{seed} {dtype}": {"tokens": len(table)}})
        engine.close()


def refuse(notes: Notes) -> None:
    """vLLM does not run float32 on a GPU, where it would not be float32. Without a GPU there is nothing to refuse."""
    case = case_of(notes.place, SMALL)
    try:
        make_engine(ExtractionOptions(engine="vllm", dtype=FLOAT32)).check(Path(case.folder))
        notes.add(said="")
    except InputError as error:
        notes.add(said=str(error).removeprefix(f"{case.folder}: "))


# --- the stages


@dataclass(frozen=True)
class Stage:
    """`seconds`: at most, on a GPU. `needs`: modules without which it cannot run."""

    work: Callable[[Notes], None]
    seconds: float
    needs: tuple[str, ...] = ()


def _stages() -> dict[str, Stage]:
    """In the order in which they run: what tells most comes first, should the time not suffice."""
    vllm, found = ("vllm",), {"rates": Stage(measure_rates, 60)}
    found["head"] = Stage(measure_head, 150)
    for size, factor in (("1.7B", 1), ("8B", 2)):
        found |= {
            f"vllm-{size}": Stage(partial(measure_engine, size=size, kind="vllm"), 120 * factor, vllm),
            f"stock-{size}": Stage(partial(measure_stock, size=size, compiled=False), 120 * factor, vllm),
            f"transformers-{size}": Stage(partial(measure_engine, size=size, kind="transformers"), 90 * factor),
        }
    found |= {
        "reference": Stage(refer, 90),
        "tables-transformers": Stage(partial(tabulate, kind="transformers", dtypes=(FLOAT32, BFLOAT16)), 90),
        "tables-vllm": Stage(partial(tabulate, kind="vllm", dtypes=(BFLOAT16,)), 150, vllm),
        "refusal": Stage(refuse, 60),
        "from-logits": Stage(measure_logits, 90),
        "training-20M": Stage(partial(measure_training, size="20M"), 150),
        "training-90M": Stage(partial(measure_training, size="90M"), 180),
    }
    for size, seconds in (("1.7B", 180), ("8B", 240)):
        work = partial(measure_engine, size=size, kind="transformers", compile="always")
        found[f"transformers-compiled-{size}"] = Stage(work, seconds)
        found[f"compiled-{size}"] = Stage(partial(measure_stock, size=size, compiled=True), seconds, vllm)
    return found


STAGES = _stages()


def run(name: str, place: Place, log: Path, answer: Path) -> None:
    """In a process of its own, which leads a group of processes: what it leaves behind can be ended with it."""
    os.setsid()
    code = 1
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            STAGES[name].work(Notes(place, answer))
            code = 0
        except BaseException:
            traceback.print_exc(file=file)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # vLLM and torch may take seconds, or crash, while they clean up; nothing is left to lose
