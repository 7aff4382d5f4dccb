"""Several copies of an engine, each in a process and on GPUs of its own, that divide the texts of each checkpoint.

For a large checkpoint that fits on one GPU (or on `tensor_parallel_size` of them) in a job that has more. All copies
load the same checkpoint. Each gets consecutive texts, about as many tokens as the others, and nothing is exchanged
while they run; so the numbers are those of one engine, up to the rounding of other batches.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from proxycast import processes
from proxycast.config.extraction import ExtractionOptions, SamplingOptions
from proxycast.options import InputError
from proxycast.solutions.tokenisation import ScoredSequence
from proxycast.weights.tokenizer import Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from proxycast.extraction.engines.base import Engine

log = logging.getLogger(__name__)

COPY = "proxycast.extraction.engines.engine_process"
END_SECONDS = 30.0  # for a copy to free its model, before it is killed


class Copy(NamedTuple):
    """An engine in another process. place: its GPUs, for messages."""

    process: subprocess.Popen
    pipe: Connection
    place: str


class DataParallelEngine:
    """See `engines.base.Engine`; `single` is an engine of the same options here, which loads nothing.

    Errors are those of the copies; RuntimeError if a copy's process has ended.
    """

    def __init__(self, options: ExtractionOptions, single: "Engine"):
        self.options, self._single = options, single
        self._copies: list[Copy] = []
        self.tokenizer = self.context = self.vocabulary = None

    def check(self, folder: Path) -> None:
        """Raise InputError for a folder that is not whole or that the engine cannot run."""
        self._single.check(folder)

    def reads(self, folder: Path) -> tuple["PreTrainedTokenizerFast", int]:
        """The tokenizer and the context of the checkpoint in `folder`, loaded or not."""
        return self._single.reads(folder)

    def load(self, folder: Path) -> None:
        """Make the checkpoint in `folder` the loaded one of every copy."""
        self.tokenizer = self.context = self.vocabulary = None
        if not self._copies:
            self._start()
        [self.vocabulary] = set(self._ask("load", [(folder,)] * len(self._copies)))
        self.tokenizer, self.context = self.reads(folder)

    def expect(self, tokens: int) -> None:
        """Each copy reads its share of the `tokens`."""
        self._ask("expect", [(tokens // len(self._copies),)] * len(self._copies))

    def token_stats(self, sequences: Sequence[ScoredSequence], temperatures: Sequence[float] = ()) -> pl.DataFrame:
        """One row per scored token, in the order of `sequences`: TOKEN_STATS_SCHEMA, then a column a temperature."""
        costs = [len(sequence.token_ids) + sequence.stop - sequence.start for sequence in sequences]
        parts = [(list(sequences[part]), temperatures) for part in consecutive(costs, len(self._copies))]
        return pl.concat(self._ask("token_stats", parts))

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Each prompt's greedy continuation."""
        parts = consecutive([1] * len(prompts), len(self._copies))
        found = self._ask("generate", [(list(prompts[part]), max_new_tokens, stop) for part in parts])
        return [text for texts in found for text in texts]

    def sample(self, prompts: Sequence[str], options: SamplingOptions, seeds: Sequence[int]) -> list[Written]:
        """A text drawn for each prompt by its own seed."""
        parts = consecutive([1] * len(prompts), len(self._copies))
        found = self._ask("sample", [(list(prompts[part]), options, list(seeds[part])) for part in parts])
        return [text for texts in found for text in texts]

    def close(self) -> None:
        """End the copies, and with them their models."""
        for copy in self._copies:
            copy.pipe.close()  # the end of what it reads
        for copy in self._copies:
            try:
                copy.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                copy.process.kill()
                copy.process.wait()
        self._copies = []
        self._single.close()

    def _start(self) -> None:
        options = self.options.model_copy(update={"data_parallel_size": 1})
        shares = _shares_of_gpus(self.options)
        log.info("%d copies of the engine, each on %s", len(shares), " or ".join(map(_place, shares)))
        library = str(Path(processes.__file__).parents[1])
        for gpus in shares:
            ours, theirs = Pipe()
            path = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
            environment = os.environ | {"PYTHONPATH": path} | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})
            # -P: no module of the folder where the job runs stands in for one of Python's own.
            command = [sys.executable, "-P", "-m", COPY, str(theirs.fileno())]
            process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            theirs.close()
            self._copies.append(Copy(process, ours, _place(gpus)))
        setting = options, _threads_of_each(len(shares)), logging.getLogger().level, os.getpid()
        try:
            self._ask("start", [setting] * len(shares))
        except Exception:
            self.close()  # without engines they are of no use
            raise

    def _ask(self, method: str, arguments: Iterable[tuple]) -> list:
        """What each copy answers to its arguments. Raises the first one's error, once all have answered.

        Where this is interrupted, the copies end: what they still answer would be taken for the next answer.
        """
        try:
            answers = self._answers(method, arguments)
        except BaseException:
            for copy in self._copies:
                copy.process.kill()
            self.close()
            raise
        for kind, answer in answers:
            if kind is not None:
                raise kind(answer)
        return [answer for _, answer in answers]

    def _answers(self, method: str, arguments: Iterable[tuple]) -> list[tuple[type[Exception] | None, object]]:
        answers = []
        for copy, own in zip(self._copies, arguments, strict=True):
            try:
                copy.pipe.send((method, own))
            except OSError:
                pass  # what became of it is told below
        for number, copy in enumerate(self._copies):
            try:
                answers.append(copy.pipe.recv())
            except (EOFError, OSError):
                status = copy.process.wait()
                what = (
                    f"copy {number + 1} of {len(self._copies)} of the engine ({copy.place}) ended with {_how(status)}"
                )
                answers.append((RuntimeError, f"{what}; its last words stand above"))
        return answers


def consecutive(costs: Sequence[float], parts: int) -> list[slice]:
    """Consecutive items with together about equal costs: a slice for each of `parts`, which may be empty."""
    middles = np.cumsum(costs) - np.asarray(costs) / 2  # an item goes where its middle lies
    total = float(np.sum(costs))
    ends = [int(np.searchsorted(middles, total * part / parts)) for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in zip(ends, [*ends[1:-1], len(costs)])]


def _shares_of_gpus(options: ExtractionOptions) -> list[tuple[str, ...]]:
    """The GPUs of each copy; without GPUs as many copies as asked for, on the processors."""
    import torch

    copies, size = options.data_parallel_size, options.tensor_parallel_size * options.pipeline_parallel_size
    if options.engine == "transformers":
        size = 1  # the two are vLLM's
    if not torch.cuda.is_available() or options.device == "cpu":
        return [()] * copies
    gpus = processes.visible_gpus()
    if (there := len(gpus) // size) < copies:
        log.warning(
            "%d GPUs are there for copies of the engine on %d each: %d instead of %d", len(gpus), size, there, copies
        )
    if not there:
        raise InputError(
            f"extraction: a copy of the engine takes {size} GPUs (tensor_parallel_size, pipeline_parallel_size), and "
            f"{len(gpus)} are there"
        )
    return [gpus[size * number : size * (number + 1)] for number in range(min(copies, there))]


def _place(gpus: Sequence[str]) -> str:
    return f"GPU {', '.join(gpus)}" if gpus else "the processors"


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _threads_of_each(copies: int) -> int:
    import torch

    return max(1, torch.get_num_threads() // copies)
