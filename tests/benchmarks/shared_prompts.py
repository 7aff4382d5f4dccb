"""What it saves to read once what texts share: few-shot questions, choices, solutions of one problem.

    python tests/benchmarks/shared_prompts.py [--engine vllm] [--hidden 256 --layers 4] [--repeats 3]
    python tests/benchmarks/shared_prompts.py [--engine vllm] --long

A random Llama reads random tokens, in shapes like those of benchmarks. Each set is read with sharing and without, in
turn, by the same engine. Prints a Markdown table: tokens that are read, seconds, the largest difference of a log-prob.
--long: memory and seconds for one text of 30,000 tokens of which 1,000 are scored, by a small Llama with 50,304 tokens.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
import torch
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.extraction.engines.vllm import VllmEngine
from proxycast.solutions.tokenisation import ScoredSequence
from tokenizers import Tokenizer, models
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, CONTEXT = 8192, 4096
# Name -> tokens of the examples, questions, tokens of a question, continuations of each, their least and most tokens.
SETS = {
    "5-shot questions, 4 choices of words": (500, 40, 60, 4, 2, 12),
    "5-shot questions, 4 letters": (500, 40, 60, 4, 1, 1),
    "questions, 4 choices of words": (0, 40, 60, 4, 2, 12),
    "10 problems, 8 short solutions each": (0, 10, 150, 8, 40, 80),
    "5 problems, 8 long solutions each": (0, 5, 150, 8, 200, 400),
    "4-shot problems, 1 solution each": (800, 20, 80, 1, 60, 150),
    "nothing shared": (0, 80, 100, 1, 50, 100),
}


def build(folder: Path, hidden: int, layers: int, vocabulary: int = VOCABULARY, context: int = CONTEXT) -> Path:
    torch.manual_seed(0)
    shape = dict(hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers)
    heads = dict(num_attention_heads=hidden // 32, max_position_embeddings=context)
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape, **heads)).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({chr(100 + i): i for i in range(vocabulary)}, []))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def texts(shots: int, questions: int, question: int, choices: int, least: int, most: int) -> list[ScoredSequence]:
    random = np.random.default_rng(0)
    examples, found = random.integers(VOCABULARY, size=shots), []
    for i in range(questions):
        asked = np.concatenate(
            [examples, random.integers(VOCABULARY, size=random.integers(question // 2, 2 * question))]
        )
        for j in range(choices):
            own = random.integers(VOCABULARY, size=random.integers(least, most + 1))
            token_ids = np.concatenate([asked, own])
            ends = len(asked), len(token_ids)
            found.append(ScoredSequence(f"{i}/{j}", token_ids, *ends, np.ones(len(own), np.int32)))
    return found


@contextmanager
def nothing_shared() -> Iterator[None]:
    """Within it each text is read by itself."""
    with (
        patch.object(TransformersEngine, "_plan", lambda self, sequences: ([], list(range(len(sequences))))),
        patch("proxycast.extraction.engines.vllm.may_skip_prefix", lambda sequences, block: [False] * len(sequences)),
    ):
        yield


def tokens_read(engine: TransformersEngine | VllmEngine, sequences: list[ScoredSequence]) -> int:
    """Tokens that the model's body gets for the sequences, with padding."""
    counted = []
    if isinstance(engine, VllmEngine):
        runner = engine._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        original = runner.execute_model

        def execute(scheduled, *arguments, **named):
            counted.append(scheduled.total_num_scheduled_tokens)
            return original(scheduled, *arguments, **named)

        with patch.object(runner, "execute_model", execute):
            engine.token_stats(sequences)
        return sum(counted)
    hook = engine._model.base_model.register_forward_pre_hook(
        lambda _, __, given: counted.append(given["input_ids"].numel()), with_kwargs=True
    )
    engine.token_stats(sequences)
    hook.remove()
    return sum(counted)


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def long_text(kind: str) -> None:
    """Print the peak of memory before a long text is scored, and what is added."""
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(ExtractionOptions(engine=kind))
        engine.load(build(Path(folder) / "model", 64, 2, vocabulary=50304, context=32768))
        token_ids = np.random.default_rng(0).integers(50304, size=30_000)
        loaded, began = peak_megabytes(), time.perf_counter()
        engine.token_stats([ScoredSequence("long", token_ids, 29_000, 30_000, np.ones(1000, np.int32))])
        seconds = time.perf_counter() - began
        print(f"{kind}: {loaded:,} MB loaded, {peak_megabytes() - loaded:,} MB more, {seconds:.1f} s")
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--long", action="store_true")
    options = parser.parse_args()
    if options.long:
        return long_text(options.engine)
    print(f"\n{options.engine}: {options.layers} layers of {options.hidden}, threads: {torch.get_num_threads()}\n")
    print(
        "| | tokens apart | tokens shared | apart, s | shared, s | range | times as fast | largest difference, nats |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(ExtractionOptions(engine=options.engine, dtype=options.dtype))
        engine.load(build(Path(folder) / "model", options.hidden, options.layers))
        for name, shape in tqdm(SETS.items()):
            sequences = texts(*shape)
            engine.token_stats(sequences)  # with the proof that the model may read them so
            shared = tokens_read(engine, sequences)
            with nothing_shared():
                apart = tokens_read(engine, sequences)
            times: dict[bool, list[float]] = {False: [], True: []}
            tables: dict[bool, pl.DataFrame] = {}
            for _ in range(options.repeats):
                for together in times:
                    started = time.perf_counter()
                    if together:
                        tables[together] = engine.token_stats(sequences)
                    else:
                        with nothing_shared():
                            tables[together] = engine.token_stats(sequences)
                    times[together].append(time.perf_counter() - started)
            ratios = [one / other for one, other in zip(times[False], times[True])]
            difference = (tables[True]["logprob"] - tables[False]["logprob"]).abs().max()
            one, other = (statistics.median(times[together]) for together in times)
            print(
                f"| {name} | {apart:,} | {shared:,} | {one:.2f} | {other:.2f} | {min(ratios):.2f}-{max(ratios):.2f} | "
                f"{statistics.median(ratios):.2f} | {difference:.1g} |",
                flush=True,
            )
        engine.close()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
