"""What runs inside vLLM's workers: logits of scored positions become token statistics on the device.

vLLM's own prompt log-probs turn the top k of every prompt token into Python objects. Here the function that makes them
is replaced, in both of vLLM's model runners: it takes the hidden states of the scored positions, reduces their logits
with `token_stats`, and keeps six columns on the device until `proxycast_take` fetches them. Batching, chunked prefill,
parallelism and the logits themselves stay vLLM's.

The two functions are private. So their names and signatures are checked when the hook is installed, every request
answers with a sentinel instead of log-probs, and the token ids of the statistics travel with them: `VllmEngine`
compares both.
"""

import contextlib
import inspect
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from proxycast import processes
from proxycast.extraction.engines.workers.vllm_head import NotAMatrix, WorkerHead, head_of
from proxycast.extraction.token_stats import to_device, token_stats_from_hidden
from proxycast.options import one_line

EXTRA_ARGS_KEY = "proxycast"  # SamplingParams.extra_args[...] = [index of the sequence, first scored token, last token]
SENTINEL = -1001  # stands as the only prompt token id of a request whose statistics were made here

JOB_PROCESS = "PROXYCAST_JOB_PROCESS"  # environment: number and start of the process that has started vLLM

# Where one worker's head is used as a matrix. On a CPU, vLLM has packed its weights: a little faster than ours.
MATRIX_ON = {"cuda"}

V1_PARAMETERS = ["hidden_states", "num_scheduled_tokens"]
V2_PARAMETERS = ["logits_fn", "hidden_states", "input_batch", "all_token_ids", "num_computed_tokens", "prompt_lens"]
V2_ADD_PARAMETERS = ["req_id", "req_idx", "sampling_params"]


_WATCHED: set[int] = set()  # processes: a forked one has this set, and no thread of its parent


def this_process() -> str:
    """This process, for `JOB_PROCESS`."""
    return f"{os.getpid()} {processes.start_of(os.getpid())}"


def _end_with_job() -> None:
    """In a process of vLLM: end it, and the engine that started it, as soon as the job's process is gone.

    A killed job cannot end them, and they would keep the GPU's memory and the lock on the job's log. The parent is
    ended only if the job started it and it is still this process's parent: process numbers are reused.
    """
    try:
        job, job_start = map(int, os.environ.get(JOB_PROCESS, "").split())
    except ValueError:
        return
    own, parent = os.getpid(), os.getppid()
    if job == own or own in _WATCHED:
        return
    _WATCHED.add(own)
    start = processes.start_of(parent)
    is_engine = parent != job and processes.start_of(job) == job_start and processes.is_below(parent, job)

    def watch() -> None:
        while processes.start_of(job) == job_start:
            time.sleep(1)
        if is_engine and start is not None and os.getppid() == parent:
            processes.end(parent, start)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


_end_with_job()  # here, as vLLM imports this module before it loads a model, which can take minutes


@dataclass(frozen=True)
class Span:
    """Consecutive positions of one sequence in one step of the engine, as far as they are scored.

    The hidden states in rows `row` to `row + count - 1` of the step predict the tokens `position` and following.
    """

    sequence: int
    row: int
    position: int
    count: int


class PromptStats:
    """Extension of vLLM's worker (`worker_extension_cls`); its methods are called through `collective_rpc`."""

    def proxycast_install(self) -> str:
        """Put the hook into the worker's model runner; returns which of the two it is and how its head is read.

        As in "v1 (the head as a matrix)", for the log.

        Raises RuntimeError if the runner is not built as this hook expects it.
        """
        from vllm.distributed import get_pp_group

        _end_with_job()
        runner = self.model_runner
        _require_attributes(runner, "model", "model_config", "vllm_config", "device")
        self._proxycast = collected = Collected(runner.model_config.get_vocab_size())
        if get_pp_group().is_last_rank:
            collected.find_head(runner)
        return f"{self._proxycast_hook(runner, collected)} ({collected.how})"

    @staticmethod
    def _proxycast_hook(runner: object, collected: "Collected") -> str:
        if hasattr(runner, "_get_prompt_logprobs_dict"):
            _install_v1(runner, collected)
            return "v1"
        _install_v2(runner, collected)
        return "v2"

    def proxycast_reload(self, folder: str) -> None:
        """Put the weights in `folder` into the running model.

        On a CPU, vLLM's reload leaves its packed copy of a head that is tied to the embedding: heads are packed again
        here. Raises RuntimeError if any other layer has kept its old weights: vLLM only warns.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

        modules = list(self.model_runner.model.modules())
        weighted = {type(module).__name__ for module in modules if any(True for _ in module.parameters(recurse=False))}
        with _unloaded_layers() as unloaded:
            self.reload_weights(weights_path=folder)
        # The file holds the weights of a tied head once, for the embedding.
        if forgotten := sorted(unloaded & weighted - {"ParallelLMHead"}):
            raise RuntimeError(f"{folder}: vLLM left the weights of {', '.join(forgotten)} as they were")
        for module in modules:
            if isinstance(module, ParallelLMHead) and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
                module.quant_method.process_weights_after_loading(module)

    def proxycast_take(self) -> tuple[bytes, bytes, bytes] | None:
        """Everything reduced since the last call, see `Collected.take`; None on workers that see no logits."""
        return self._proxycast.take()


class Collected:
    """Token statistics of the steps since the last `take`. They stay on the device: fetching them would stall it."""

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary  # number of logits
        self.head: WorkerHead | None = None
        self.how = "an earlier stage"  # how logits become statistics
        self.spans: list[Span] = []
        self.parts: list[tuple[torch.Tensor, ...]] = []  # (token ids, six statistics), (n,) each

    def find_head(self, runner: object) -> None:
        """Take the head as a matrix where it is one; else vLLM's `compute_logits`, some rows at a time."""
        config, device = runner.model_config, torch.device(runner.device)
        try:
            head = head_of(runner.model, self.vocabulary, config.get_hidden_size(), config.dtype, device)
        except NotAMatrix as error:
            self.how = f"vLLM's logits: {error}"
            return
        except Exception as error:  # a kernel that does not compile here
            if runner.vllm_config.parallel_config.tensor_parallel_size > 1:
                raise  # the other workers would wait for this one
            self.how = f"vLLM's logits: {one_line(error)}"
            return
        if head.ranks == 1 and device.type not in MATRIX_ON:
            self.how = f"vLLM's logits, which are faster on a {device.type.upper()}"
            return
        self.head, self.how = head, "the head as a matrix" if head.ranks == 1 else f"the head in {head.ranks} slices"

    def reduce(
        self,
        spans: list[Span],
        targets: torch.Tensor,
        hidden: torch.Tensor,
        compute_logits: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Statistics of the scored rows of `hidden` (rows of the step, d) at the token ids `targets` (n,)."""
        spans = [span for span in spans if span.count > 0]
        if not spans:
            return
        rows = np.concatenate([np.arange(span.row, span.row + span.count) for span in spans])
        hidden = hidden[to_device(rows, hidden.device)]  # (n, d)
        if self.head is None:
            stats = token_stats_from_hidden(hidden, compute_logits, targets, self.vocabulary)
        else:
            stats = self.head.statistics(hidden, targets)
        self.spans += spans
        self.parts.append((targets, *stats))

    def take(self) -> tuple[bytes, bytes, bytes] | None:
        """Spans (int32, (spans, 4): the fields of `Span`), token ids (int64, (n,)) and statistics (float32, (6, n);
        counts below 2^24 are exact), as bytes: they pass between processes without pickle."""
        if not self.parts:
            return None
        spans = np.array([(s.sequence, s.row, s.position, s.count) for s in self.spans], np.int32)
        token_ids, *stats = (torch.cat(column) for column in zip(*self.parts))
        columns = torch.stack([column.float() for column in stats]).cpu().numpy()
        self.spans, self.parts = [], []
        return spans.tobytes(), token_ids.cpu().numpy().astype(np.int64).tobytes(), columns.tobytes()


@contextlib.contextmanager
def _unloaded_layers() -> Iterator[set[str]]:
    """Classes of the layers that vLLM's reload says it has not loaded. It means those with nothing but buffers, too."""
    found: set[str] = set()

    def collect(record: logging.LogRecord) -> bool:
        if "Failed to load weights" not in record.msg:
            return True
        found.add(record.args[0])
        return False  # out of the log

    logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    level = logger.level
    logger.setLevel(logging.WARNING)  # however quiet vLLM is told to be
    logger.addFilter(collect)
    try:
        yield found
    finally:
        logger.removeFilter(collect)
        logger.setLevel(level)


def _scored_span(extra: list[int], row: int, start: int, count: int) -> Span:
    """The scored part of a step's rows for the prompt positions `start` to `start + count - 1`."""
    sequence, first_scored, _ = extra
    skipped = max(first_scored - 1 - start, 0)
    return Span(sequence, row + skipped, start + skipped + 1, max(count - skipped, 0))


def _sentinel():
    from vllm.v1.outputs import LogprobsTensors

    ids = torch.full((1, 1), SENTINEL, dtype=torch.int64)
    return LogprobsTensors(ids, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))


def _ours(sampling_params: object) -> list[int] | None:
    return (getattr(sampling_params, "extra_args", None) or {}).get(EXTRA_ARGS_KEY)


def _require_parameters(function: Callable, expected: list[str]) -> None:
    found = list(inspect.signature(function).parameters)
    if found != expected:
        raise RuntimeError(f"vLLM's {function.__qualname__} takes {found}; the hook of proxycast knows {expected}")


def _require_attributes(thing: object, *names: str) -> None:
    for name in names:
        if not hasattr(thing, name):
            raise RuntimeError(f"vLLM's {type(thing).__name__} has no {name!r}, which the hook of proxycast needs")


def _all_ours(ours: list[list[int] | None]) -> bool:
    if any(extra is None for extra in ours) and any(extra is not None for extra in ours):
        raise RuntimeError("requests with and without token statistics in one step; send them one after the other")
    return bool(ours) and ours[0] is not None


def _install_v1(runner: object, collected: Collected) -> None:
    """The runner of CPUs and of older GPUs: `_get_prompt_logprobs_dict` is called once a step."""
    original = runner._get_prompt_logprobs_dict
    _require_parameters(original, V1_PARAMETERS)
    _require_attributes(runner, "num_prompt_logprobs", "requests", "input_batch", "query_start_loc", "model", "device")
    _require_attributes(runner.input_batch, "req_id_to_index")
    _require_attributes(runner.query_start_loc, "np")

    def prompt_stats(hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> dict:
        asked = [request for request in runner.num_prompt_logprobs if request in num_scheduled_tokens]
        if not _all_ours([_ours(runner.requests[request].sampling_params) for request in asked]):
            return original(hidden_states, num_scheduled_tokens)
        spans, targets, done = [], [], {}
        for name in asked:
            request = runner.requests[name]
            extra, prompt, start = _ours(request.sampling_params), request.prompt_token_ids, request.num_computed_tokens
            count = min(num_scheduled_tokens[name], len(prompt) - start)
            row = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[name]])
            span = _scored_span(extra, row, start, count)
            spans.append(span)
            # The last token is no part of the prompt: nothing follows it.
            targets += [*prompt[span.position : span.position + span.count], extra[2]][: span.count]
            if start + count == len(prompt):
                done[name] = _sentinel()
                del runner.num_prompt_logprobs[name]
        targets = to_device(np.array(targets, np.int64), hidden_states.device)
        collected.reduce(spans, targets, hidden_states, runner.model.compute_logits)
        return done

    runner._get_prompt_logprobs_dict = prompt_stats


def _install_v2(runner: object, collected: Collected) -> None:
    """The runner that GPUs use by default: a `PromptLogprobsWorker` on the last stage of the pipeline."""
    _require_attributes(runner, "prompt_logprobs_worker")
    worker = runner.prompt_logprobs_worker
    if worker is None:  # this worker is an earlier stage
        return
    compute, add, remove = worker.compute_prompt_logprobs, worker.add_request, worker.remove_request
    _require_parameters(compute, V2_PARAMETERS)
    _require_parameters(add, V2_ADD_PARAMETERS)
    _require_parameters(remove, V2_ADD_PARAMETERS[:1])
    ours: dict[str, list[int]] = {}

    def add_request(req_id: str, req_idx: int, sampling_params: object) -> None:
        if (extra := _ours(sampling_params)) is not None:
            ours[req_id] = extra
        add(req_id, req_idx, sampling_params)

    def remove_request(req_id: str) -> None:
        ours.pop(req_id, None)
        remove(req_id)

    def prompt_stats(logits_fn, hidden_states, input_batch, all_token_ids, num_computed_tokens, prompt_lens) -> dict:
        asked = [i for i, slot in enumerate(input_batch.idx_mapping_np) if worker.uses_prompt_logprobs[slot]]
        if not _all_ours([ours.get(input_batch.req_ids[i]) for i in asked]):
            return compute(logits_fn, hidden_states, input_batch, all_token_ids, num_computed_tokens, prompt_lens)
        spans, slots, positions, last, done = [], [], [], [], {}
        for i in asked:
            name, slot = input_batch.req_ids[i], int(input_batch.idx_mapping_np[i])
            start, length = int(input_batch.num_computed_prefill_tokens_np[i]), int(prompt_lens[slot])
            if start >= length or length < int(input_batch.prefill_len_np[i]):
                continue  # it generates already, or does so again after it was interrupted
            count = min(int(input_batch.num_scheduled_tokens[i]), length - start)
            span = _scored_span(ours[name], int(input_batch.query_start_loc_np[i]), start, count)
            spans.append(span)
            slots.append(np.full(span.count, slot))
            positions.append(np.arange(span.position, span.position + span.count))
            last.append(np.where(positions[-1] == length, ours[name][2], -1))  # no part of the prompt
            if start + count == length:
                done[name] = _sentinel()
        if spans:
            slots, positions, last = (
                to_device(np.concatenate(column).astype(np.int64), hidden_states.device)
                for column in (slots, positions, last)
            )
            inside = all_token_ids[slots, positions.clamp(max=all_token_ids.shape[1] - 1)].long()
            collected.reduce(spans, torch.where(last < 0, inside, last), hidden_states, logits_fn)
        return done

    worker.add_request, worker.remove_request, worker.compute_prompt_logprobs = (
        add_request,
        remove_request,
        prompt_stats,
    )
