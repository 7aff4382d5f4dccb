"""What the callback costs: the share of a training that goes into scoring.

    python tests/benchmarks/callback.py [--steps 12] [--every 4] [--solutions 40] [--tokens 200]

A run of the Trainer on random tokens: a Llama of 4.7 million parameters, 8 texts of 512 tokens a step, and solutions of
which `--tokens` tokens are scored behind a prompt of 20. Steps and calls of the callback take turns in one process, so
that their ratio holds on a busy machine; processor seconds, the median of all. `its forward passes alone` is what a
step leads one to expect: a third of its time for each token (a backward pass costs two forward passes).
At the end, the time of `import proxycast` in a new process, the best of five.
"""

import argparse
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from proxycast.callbacks import ProxyCallback
from proxycast.solutions.rows import Solution
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

VOCABULARY, LENGTH, TEXTS, PROMPT = 8192, 512, 8, 20


class Clock(TrainerCallback):
    """Processor seconds of each step. It stands in front of the callback, whose time is no part of them."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **given) -> None:
        self._started = time.process_time()

    def on_step_end(self, args, state, control, **given) -> None:
        self.seconds.append(time.process_time() - self._started)


class Timed(ProxyCallback):
    """The callback, with processor seconds of each call that scores."""

    def on_train_begin(self, *arguments, **given) -> None:
        started, self.seconds = time.process_time(), []
        super().on_train_begin(*arguments, **given)
        self.preparation = time.process_time() - started

    def _log(self, *arguments) -> None:
        before, started = self._logged_at, time.process_time()
        super()._log(*arguments)
        if self._logged_at != before:  # the last step is met twice
            self.seconds.append(time.process_time() - started)


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def solutions(count: int, tokens: int) -> list[Solution]:
    draw = random.Random(0)

    def text(length: int) -> str:
        return " ".join(f"w{draw.randrange(VOCABULARY)}" for _ in range(length))

    return [Solution(id=str(i), prompt=text(PROMPT), solution=" " + text(tokens)) for i in range(count)]


def run(steps: int, every: int, callback: Timed) -> Clock:
    torch.manual_seed(0)
    shape = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512)
    clock = Clock()
    ids = torch.randint(VOCABULARY, (TEXTS * steps, LENGTH))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape, tie_word_embeddings=True)),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=TEXTS,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=[{"input_ids": row, "labels": row} for row in ids],
            data_collator=default_data_collator,
            callbacks=[clock, callback],
        )
        print(f"{trainer.model.num_parameters():,} parameters, {trainer.args.device}, torch {torch.__version__}")
        trainer.train()
    return clock


def import_seconds() -> float:
    found = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import proxycast"], check=True)
        with_it = time.perf_counter() - started
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True)
        found.append(with_it - (time.perf_counter() - started))
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--solutions", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=200)
    given = parser.parse_args()
    tasks = {"words": solutions(given.solutions, given.tokens)}
    callback = Timed(tasks, every=given.every, tokenizer=tokenizer_of_words())
    clock = run(given.steps, given.every, callback)
    step, scoring = statistics.median(clock.seconds[1:]), statistics.median(callback.seconds)
    trained, read = TEXTS * LENGTH, given.solutions * (PROMPT + given.tokens)
    expected = step / 3 * read / trained
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, {given.steps} steps, {len(callback.seconds)} calls"
    )
    print("| what | processor s | of a step |\n|---|---|---|")
    for name, seconds in [
        (f"a step: {trained:,} tokens trained on", step),
        (f"a call of the callback: {read:,} tokens read", scoring),
        ("its forward passes alone, from the step", expected),
        ("before the first step: tokenising, the proof of the model", callback.preparation),
    ]:
        print(f"| {name} | {seconds:.2f} | {seconds / step:.2f} |")
    for every in (100, 1000):
        print(f"share of the training with a call every {every} steps: {scoring / (every * step + scoring):.3%}")
    print(f"import proxycast: {import_seconds() * 1000:.0f} ms")


if __name__ == "__main__":
    main()
