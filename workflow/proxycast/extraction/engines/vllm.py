"""The engine on vLLM: the same six numbers a token as the engine on `transformers`, from passes of vLLM.

Each sequence is a request that generates one token, which is thrown away. vLLM's workers compute the statistics
(`vllm_worker`), which are fetched after the requests have run. Nothing is taken on trust: each loaded checkpoint
answers one prompt by vLLM's own log-probs and by the hook, and each request must return the hook's sentinel and the
token ids. Before weights are loaded into a running engine, a proof compares the answer with that of a new engine.

What prompts of a call share is computed once, unless scored tokens would be skipped by that (`may_skip_prefix`).
"""

import gc
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from proxycast.config.extraction import NO_TEMPERATURES, ExtractionOptions, SamplingOptions
from proxycast.extraction.engines.base import (
    BATCH_TOKENS,
    KV_CACHE_BYTES,
    file_states,
    groups,
    longest_read,
    require_room,
    token_stats_table,
)
from proxycast.extraction.engines.vllm_replies import HookError, arranged
from proxycast.extraction.engines.vllm_support import (
    caches_prefixes,
    check_text,
    prepare_environment,
    require_causality,
    require_divisible,
    scored_from,
    shares_prompts,
    unsupported,
)
from proxycast.extraction.engines.workers.vllm_worker import EXTRA_ARGS_KEY, JOB_PROCESS, SENTINEL, this_process
from proxycast.extraction.shared_prompts import may_skip_prefix
from proxycast.jobs.garbage import no_collection
from proxycast.options import InputError, one_line
from proxycast.solutions.tokenisation import ScoredSequence, prompt_tokens
from proxycast.tables import write_json
from proxycast.weights.model_config import renamed_config
from proxycast.weights.model_files import INDEX, safetensors_header, shards, weight_files
from proxycast.weights.model_folder import check_folder
from proxycast.weights.tokenizer import TokenizerCache, Written, continuations, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

MAX_SEQUENCES = 256  # at a time; each costs V float32 for the token that is thrown away
CACHE_BLOCK = 16  # of vLLM's cache of prompts: what it finds of a text is a multiple of it, of 128 on a CPU
CALL_TOKENS = 1 << 20  # tokens handed to vLLM at a time; their statistics, 32 bytes each, wait in the worker
CHECK_TOKENS = 24  # of the prompt that compares the hook with vLLM's own log-probs
CHECK_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # nats; two runs of one prompt differ by rounding only
# Nats. One prompt, the same weights and the same kernels, by an engine that was started with them and by one that they
# were loaded into: on a CPU and on an H200 no bit differed.
RELOAD_TOLERANCE = 1e-4
NEW_ENGINES = "so each checkpoint of this architecture gets a new engine, which is slower"
WITHOUT_LIMIT = 1 << 17  # tokens read at once of a model without a limit (Mamba): vLLM makes room for its longest text
WORKER = "proxycast.extraction.engines.workers.vllm_worker.PromptStats"


# The kind of a checkpoint, for a running engine: config.json, and the name and shape of each tensor.
Build = tuple[bytes, tuple[tuple[str, tuple[int, ...]], ...]]


class Fresh(NamedTuple):
    """A loaded checkpoint."""

    folder: Path
    state: list[tuple[str, int, int]]  # of its files when it was loaded
    statistics: np.ndarray  # (6, n), of the check prompt


class VllmEngine:
    """Loads one checkpoint after another and scores sequences with it; see `engines.base.Engine`.

    A checkpoint with the same config.json and tensors as the one before is loaded into the running engine, which costs
    the reading of the weights; any other costs a new engine. The first two of a kind cost one each. The third starts
    with a proof that loading in place works for the kind (`_reloads_in_place`); if not, every checkpoint gets a new
    engine.
    """

    def __init__(self, options: ExtractionOptions):
        self.options = options
        self._batch_tokens = options.batch_tokens  # decided, if it is None, and halved if memory does not suffice
        self._llm = self._loaded = self._built = self.tokenizer = None
        self._fresh: dict[Build, Fresh] = {}  # of each kind, the first checkpoint that an engine was started with
        self._proven: dict[Build, bool] = {}  # whether loading in place does for this kind what a new engine does
        self._config_folder = None  # holds a config.json in the place of the model's own, where that must be corrected
        self._tokenizers = TokenizerCache()
        self._shares = True  # whether a prompt that texts share may be computed once

    def check(self, folder: Path) -> None:
        """Raise InputError, naming what would work, if the folder is not whole or vLLM cannot run its model."""
        check_folder(folder)
        # vLLM reads the files of the index, and without one all that there are.
        index, ours = folder / INDEX, weight_files(folder)
        theirs = shards(index) if index.is_file() else folder.glob("*.safetensors")
        if differ := sorted(path.name for path in {*theirs} ^ {*ours}):
            raise InputError(
                f"{folder}: found {', '.join(differ)} beside {', '.join(path.name for path in ours[:3])}; vLLM would "
                "read other files than transformers: take away what another save has left"
            )
        if reason := unsupported(folder, self.options):
            raise InputError(f"{folder}: {reason}; set extraction.engine (or the model's own) to transformers or auto")
        require_divisible(folder, self.options)

    def load(self, folder: Path) -> None:
        """Make the checkpoint in `folder` the loaded one, and compare one prompt with vLLM's own log-probs."""
        self.check(folder)
        state, loaded = file_states(folder), self._loaded
        if loaded and (loaded.folder, loaded.state) == (folder, state):
            return
        self._loaded, self._folder = None, folder
        self.tokenizer = self._tokenizers.load(folder)
        tensors = {name: tuple(s) for path in weight_files(folder) for name, s in safetensors_header(path).items()}
        build = (folder / "config.json").read_bytes(), tuple(sorted(tensors.items()))
        in_place = loaded is not None and build == self._built and self._reloads_in_place(build, loaded)
        started = not (in_place and self._reload(folder, build))
        if started:
            self._start()
        self._built = build
        try:
            if started:
                self._require_causality()
            statistics = self._compare_with_stock()
        except (HookError, InputError):
            raise
        except Exception as error:  # whatever kernels raise that are not there for a CPU, or for this GPU
            raise InputError(
                f"{folder}: vLLM cannot run this model here: {_why(error)}; set extraction.engine (or the model's own) "
                "to transformers"
            ) from error
        self._loaded = Fresh(folder, state, statistics)
        self._fresh.setdefault(build, self._loaded)

    def _reloads_in_place(self, build: Build, loaded: Fresh) -> bool:
        """Whether vLLM loads checkpoints of this kind into a running engine as it loads them into a new one.

        It was seen to corrupt hybrids (vLLM issue 48284) and to keep old weights (32718). For the proof, a checkpoint
        that an engine was started with earlier is loaded into the engine that was started with `loaded`: a weight that
        is not replaced shows. The proof costs one start, once for each kind, and needs two checkpoints that differ.
        """
        if build in self._proven:
            return self._proven[build]
        first = self._fresh[build]
        if first.state != file_states(first.folder):
            self._fresh[build] = first = loaded
        if not _largest_difference(first.statistics, loaded.statistics) > RELOAD_TOLERANCE:  # nor where they are NaN
            log.info("%s: a new engine, for a proof that loading in place works", self._folder)
            return False
        if not self._reload(first.folder, build):
            return False
        difference = _largest_difference(self._check_prompt()[1], first.statistics)
        self._proven[build] = bool(difference <= RELOAD_TOLERANCE)
        if self._proven[build]:
            log.info("%s: loaded in place as by a new engine, %.1g nats apart", first.folder, difference)
        else:
            why = f"its log-probs are {difference:.3g} nats off those by a new engine"
            log.warning("%s: loaded in place %s; %s", first.folder, why, NEW_ENGINES)
        return self._proven[build]

    def _reload(self, folder: Path, build: Build) -> bool:
        """Load the checkpoint in `folder` into the running engine; False, with the reason in the log, if it failed."""
        try:
            self._llm.collective_rpc("proxycast_reload", args=(str(folder),))
        except Exception as error:  # as it comes out of another process
            log.warning("%s: vLLM could not load it in place: %s; %s", folder, _why(error), NEW_ENGINES)
            self._proven[build] = False
            return False
        return True

    @property
    def context(self) -> int:
        """Most tokens that the loaded model reads at once."""
        return longest_read(self._folder, self.options, WITHOUT_LIMIT)

    def reads(self, folder: Path) -> tuple["PreTrainedTokenizerFast", int]:
        """The tokenizer and the context of the checkpoint in `folder`, loaded or not."""
        return self._tokenizers.load(folder), longest_read(folder, self.options, WITHOUT_LIMIT)

    @property
    def vocabulary(self) -> int:
        """Number of logits, padding of the vocabulary included."""
        return self._llm.llm_engine.model_config.get_vocab_size()

    def expect(self, tokens: int) -> None:
        """Nothing depends on it."""

    def token_stats(self, sequences: Sequence[ScoredSequence], temperatures: Sequence[float] = ()) -> pl.DataFrame:
        """One row per scored token, columns TOKEN_STATS_SCHEMA, in the order of `sequences`.

        Raises InputError naming the folder, the sequence's key and the position where a logit is not finite, and for
        `temperatures`.
        """
        if temperatures:
            raise InputError(f"{self._folder}: {NO_TEMPERATURES}")
        parts = [self._statistics(group) for group in groups(sequences, CALL_TOKENS)]
        columns = np.concatenate([np.empty((6, 0), np.float32), *parts], axis=1)
        return token_stats_table(sequences, columns, self.vocabulary, str(self._folder))

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Greedy continuations, each ended before the end-of-text token, a `stop` string or the full context."""
        eos = self.tokenizer.eos_token_id
        ends = [] if eos is None else [eos]
        settings = [{"max_tokens": max_new_tokens} for _ in prompts]
        return [written.text for written in self._write(prompts, settings, stop, ends)]

    def sample(self, prompts: Sequence[str], options: SamplingOptions, seeds: Sequence[int]) -> list[Written]:
        """A text drawn for each prompt by its own seed. Nothing ends at a `stop` string; what follows one is cut."""
        shared = {"max_tokens": options.max_new_tokens, "temperature": options.temperature, "top_p": options.top_p}
        settings = [shared | {"seed": seed} for seed in seeds]
        return self._write(prompts, settings, options.stop, end_tokens(self._folder, self.tokenizer))

    def _write(
        self, prompts: Sequence[str], settings: Sequence[dict], stop: Sequence[str], ends: list[int]
    ) -> list[Written]:
        """What vLLM writes after each prompt with its settings, of which `max_tokens` is cut to the context."""
        encoded = prompt_tokens(list(prompts), self.tokenizer, self.options.chat_template, self.vocabulary)
        require_room(self._folder, prompts, encoded, self.context)
        settings = [
            {**setting, "max_tokens": min(setting["max_tokens"], self.context - len(token_ids)), "stop_token_ids": ends}
            for token_ids, setting in zip(encoded, settings)
        ]
        outputs = [o for part in self._calls(encoded, settings) for o in self._run(encoded[part], settings[part])]
        return continuations(self.tokenizer, encoded, [list(o.outputs[0].token_ids) for o in outputs], ends, stop)

    def _calls(self, encoded: Sequence[np.ndarray], settings: Sequence[dict]) -> list[slice]:
        """Consecutive prompts that vLLM gets at once: all, but with seeds on a CPU as many as one step takes whole.

        vLLM 0.32 winds a seed's generator back for a prompt that is split over two steps, which a CPU's generator
        cannot do.
        """
        import torch

        if torch.cuda.is_available() or not any(setting.get("temperature") for setting in settings):
            return [slice(0, len(encoded))]
        if max(map(len, encoded)) > self._batch_tokens:
            raise InputError(
                f"{self._folder}: found a prompt of {max(map(len, encoded))} tokens; on a CPU vLLM draws texts only "
                f"after prompts of at most {self._batch_tokens} (batch_tokens): raise it, or give engine transformers"
            )
        starts, tokens = [0], 0
        for i, token_ids in enumerate(encoded):
            tokens += len(token_ids)
            if tokens > self._batch_tokens or i - starts[-1] == MAX_SEQUENCES:
                starts.append(i)
                tokens = len(token_ids)
        return [slice(*ends) for ends in zip(starts, [*starts[1:], len(encoded)])]

    def close(self) -> None:
        """End the engine and free its memory."""
        self._built = self._loaded = None
        if self._config_folder:
            self._config_folder.cleanup()
            self._config_folder = None
        if self._llm is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        cleanup_dist_env_and_memory()
        gc.collect()

    def _start(self) -> None:
        """A new engine for the model in the folder, with the hook in its workers."""
        self.close()
        prepare_environment()
        with no_collection():  # these imports take seconds
            import torch
            import vllm
            from vllm import LLM

        # It warns, with a traceback, that without a tokenizer it cannot warm up a chat that nobody wants.
        logging.getLogger("vllm.renderers.base").addFilter(_no_warm_up)
        options, on_cpu = self.options, not torch.cuda.is_available()
        if options.device not in ("auto", "cpu" if on_cpu else "cuda"):
            there = "no GPU" if on_cpu else "a GPU"
            raise InputError(f"extraction, key device: found {options.device}, but vLLM sees {there}; give auto")
        self._batch_tokens = self._batch_tokens or BATCH_TOKENS["cpu" if on_cpu else "cuda"]
        os.environ[JOB_PROCESS] = this_process()
        try:
            self._llm = LLM(
                str(self._folder),
                hf_config_path=self._renamed_config(),
                config_format="hf",  # not params.json, which Mistral's folders have as well
                runner="generate",
                skip_tokenizer_init=True,
                trust_remote_code=options.trust_remote_code,
                load_format="safetensors",
                use_tqdm_on_load=False,
                generation_config="vllm",  # not the folder's, which may ask for sampling
                dtype=options.dtype,
                # Hidden states in bfloat16 meet the head in float32: bfloat16 logits are full of ties.
                hf_overrides={"head_dtype": "float32"},
                quantization=options.quantization,
                tensor_parallel_size=options.tensor_parallel_size,
                pipeline_parallel_size=options.pipeline_parallel_size,
                gpu_memory_utilization=options.gpu_memory_fraction,
                kv_cache_memory_bytes=KV_CACHE_BYTES if on_cpu else None,
                max_model_len=self.context if options.max_model_len or self.context == WITHOUT_LIMIT else None,
                max_num_batched_tokens=self._batch_tokens,
                max_num_seqs=min(MAX_SEQUENCES, self._batch_tokens),
                enable_prefix_caching=caches_prefixes(self._folder, options),
                enforce_eager=True,  # prefill is bound by matrix products; compilation would only delay the start
                worker_extension_cls=WORKER,
            )
        except Exception as error:  # of any library: quantised weights need packages, tensors have other names
            raise InputError(f"{self._folder}: vLLM cannot build this model: {_why(error)}") from error
        runners = sorted(set(self._llm.collective_rpc("proxycast_install")))
        log.info(
            "%s: vLLM's model runner %s (vLLM %s), %d tokens a step",
            *(self._folder, *runners, vllm.__version__, self._batch_tokens),
        )

    def _renamed_config(self) -> str | None:
        """A folder with config.json as `renamed_config` has it; None where the model's own may stand."""
        renamed = renamed_config(self._folder, self.options.architecture)
        if renamed is None:
            return None
        self._config_folder = TemporaryDirectory(prefix="proxycast_")
        write_json(renamed, Path(self._config_folder.name) / "config.json")
        return self._config_folder.name

    def _statistics(self, sequences: Sequence[ScoredSequence]) -> np.ndarray:
        """The six statistics (6, n) of the scored tokens, one sequence after the other, by the hook."""
        # The last token of a sequence is predicted and predicts nothing, so it needs no room in the context.
        prompts = [sequence.token_ids[: sequence.stop - 1] for sequence in sequences]
        extras = [[i, s.start, int(s.token_ids[s.stop - 1])] for i, s in enumerate(sequences)]
        # A cached token has no hidden state, and so no statistics.
        settings = [
            {
                "prompt_logprobs": 0,
                "extra_args": {EXTRA_ARGS_KEY: extra},
                "skip_reading_prefix_cache": not (may and self._shares),
            }
            for extra, may in zip(extras, may_skip_prefix(sequences, CACHE_BLOCK))
        ]
        for sequence, output in zip(sequences, self._run(prompts, settings)):
            if output.prompt_logprobs is None or output.prompt_logprobs.token_ids != [SENTINEL]:
                raise HookError(f"{self._folder}: {sequence.key}: vLLM answered without the hook")
        replies = [reply for reply in self._llm.collective_rpc("proxycast_take") if reply is not None]
        if not replies:
            raise HookError(f"{self._folder}: no worker of vLLM has token statistics")
        return arranged(self._folder, sequences, *replies[0])  # workers that share a layer have all seen the same

    def _run(self, token_ids: Sequence[np.ndarray], settings: Sequence[dict]) -> list:
        """vLLM's outputs for prompts; one greedy token of each where `settings` say nothing else.

        When a GPU's memory does not suffice, the engine is started again with half the tokens a step.
        """
        import torch
        from vllm import SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        defaults = dict(
            temperature=0.0, max_tokens=1, detokenize=False, flat_logprobs=True, skip_reading_prefix_cache=True
        )
        salt = os.urandom(8).hex()  # what earlier calls left in the cache is of other weights or longer texts
        while True:
            try:
                return self._llm.generate(
                    [{"prompt_token_ids": ids.tolist(), "cache_salt": salt} for ids in token_ids],
                    [SamplingParams(**defaults | setting) for setting in settings],
                    use_tqdm=False,
                )
            except (torch.OutOfMemoryError, EngineDeadError) as error:
                why = str(error)
            self._halve_batch(why)  # not above: there the error's traceback keeps the engine that failed

    def _halve_batch(self, why: str) -> None:
        old, new = self._batch_tokens, self._batch_tokens // 2
        longest = min(self.context, MAX_SEQUENCES)
        if new < longest:
            raise InputError(
                f"{self._folder}: out of memory at {old} tokens a step, and fewer than {longest} make no sense: "
                f"{why}; give more GPUs (tensor_parallel_size), a smaller max_model_len, or bfloat16"
            )
        log.warning("%s: vLLM failed at %d tokens a step, again with %d: %s", self._folder, old, new, why)
        self._batch_tokens = new
        built, loaded = self._built, self._loaded
        self._start()
        self._built, self._loaded = built, loaded

    def _check_prompt(self) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a prompt, and the statistics (6, n) of all but its first token."""
        token_ids = check_text(self.vocabulary, min(CHECK_TOKENS, self.context - 1))
        return token_ids, self._statistics([scored_from(token_ids, 1)])

    def _compare_with_stock(self) -> np.ndarray:
        """Statistics (6, n) of the check prompt. Raises HookError if vLLM's own prompt log-probs are others."""
        token_ids, statistics = self._check_prompt()
        [output] = self._run([token_ids], [{"prompt_logprobs": 0}])
        stock = np.array(output.prompt_logprobs.logprobs)
        if output.prompt_logprobs.token_ids != token_ids[1:].tolist():
            raise HookError(f"{self._folder}: vLLM's own log-probs are of other tokens than those of the prompt")
        difference = np.abs(statistics[0] - stock).max()  # NaN, of broken weights, passes: texts will name a position
        if difference > CHECK_TOLERANCE[self.options.dtype]:
            raise HookError(f"{self._folder}: log-probs by the hook and by vLLM itself differ by {difference:.3g} nats")
        return statistics

    def _require_causality(self) -> None:
        """Raise InputError for a model that looks ahead, and find out whether texts may share a prompt."""
        tolerance, folder = CHECK_TOLERANCE[self.options.dtype], str(self._folder)
        length, statistics = min(CHECK_TOKENS, self.context - 1), self._statistics
        require_causality(folder, statistics, self.vocabulary, length, tolerance)
        config = self._llm.llm_engine.vllm_config.cache_config
        self._shares = config.enable_prefix_caching and shares_prompts(
            folder, statistics, self.vocabulary, min(self.context, 2 * config.block_size + CHECK_TOKENS), tolerance
        )


def _largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference, in nats, of the log-probs and the entropy of two (6, n) statistics."""
    return float(np.abs(one[:4] - other[:4]).max())


def _no_warm_up(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Chat template warmup failed")


def _why(error: Exception) -> str:
    """An error of vLLM without what pydantic writes around it."""
    if hasattr(error, "errors"):
        return "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
    return one_line(error)
