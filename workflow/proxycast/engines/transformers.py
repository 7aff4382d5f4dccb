"""The engine on plain `transformers`: any causal language model of the library, on a CPU or a GPU.

A batch runs through the model's body only; the head is applied to the hidden states in front of the scored tokens, some
rows at a time, so that no (tokens x vocabulary) matrix exists. What lies between the head's product and the logits (a
scale, a soft cap) is found in the config and then checked on the model itself; a model that does anything else is run
whole, slower, one sequence at a time. What else a batch takes for granted is proven with it (`reading`).

On a GPU, batches follow each other without waiting: statistics stay there until the call's last batch has been sent.
"""

import dataclasses
import gc
import inspect
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import polars as pl
import torch

from proxycast.engines import (
    BATCH_TOKENS,
    ExtractionOptions,
    SamplingOptions,
    Written,
    require_room,
    token_stats_table,
)
from proxycast.engines.model_folder import check_folder, context_of, read_config, safetensors_header, weight_files
from proxycast.engines.reading import (
    HALF,
    NotReadable,
    Reader,
    Sharing,
    chosen_tokens,
    has_growing_rope,
    longest_mixed,
    prove,
    reads_alike_in_full_batch,
    reads_alike_when_padded,
    rope_reset,
    text_tokens,
)
from proxycast.engines.tokenizer import TokenizerCache, continuations, end_tokens
from proxycast.options import InputError, library_errors, one_line
from proxycast.solutions import ScoredSequence, prompt_tokens
from proxycast.token_stats import Head, token_stats, token_stats_from_hidden

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

PROOF_LOGITS = 256  # tokens whose logits are compared when a model is proven
STOP_CHECK_STEPS = 8  # between two looks whether all texts of a batch have met a stop string

Result = TypeVar("Result")


class Witness(NamedTuple):
    """The first checkpoint of a kind, and how the module that was built for it reads a text."""

    folder: Path
    files: object
    logits: torch.Tensor


# Of an engine: what stays as long as config.json is the same.
OF_A_KIND = ("_sharing", "_is_proven", "_head", "_vocabulary", "_witness", "_keeps_nothing", "_batch_tokens")


class TransformersEngine:
    """Loads one checkpoint after another and scores sequences with it; see `proxycast.engines.Engine`."""

    def __init__(self, options: ExtractionOptions):
        self.options = options
        if options.device == "cuda" and not torch.cuda.is_available():
            raise InputError("extraction, key device: found cuda, but torch sees no GPU; give auto or cpu")
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(found if options.device == "auto" else options.device)
        self._batch_tokens = self._full_batch()  # halved when a GPU's memory does not suffice
        self._tokenizers = TokenizerCache()
        # No TF32 on a GPU: NVIDIA's containers ask for it, and convolutions (Mamba's) take it unasked.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        self._let_go()

    def check(self, folder: Path) -> None:
        """Raise InputError for a folder that is not whole, or whose configuration no causal language model has."""
        check_folder(folder)
        read_config(folder, self.options.trust_remote_code, self.options.architecture)

    def load(self, folder: Path) -> None:
        """Make the checkpoint in `folder` the loaded one; the built module stays where config.json is the same.

        What is scored takes the model to be causal and its texts to be read each as if alone: that is proven for each
        module that is built. Raises InputError where it is not so.
        """
        files = _file_states(folder)
        if self._loaded == files:
            return
        self.check(folder)
        self._loaded, self._folder = None, folder
        config = (folder / "config.json").read_bytes()
        if not (config == self._config and self._loads_in_place() and _load_in_place(self._model, folder)):
            self._build_anew(folder, config)
        _require_tied(self._model, folder)
        if not self._is_proven:
            self._prove()
        elif self._head is not None:
            self._head = head_by_config(self._model)  # of these weights, in the form that was proven
        if self._is_proven and self._witness is None:
            self._witness = Witness(folder, files, self._probe())
        self.tokenizer = self._tokenizers.load(folder)
        self._loaded = files

    def _build_anew(self, folder: Path, config: bytes) -> None:
        """Build the model in `folder`. What was proven of its kind stays: the same config.json."""
        kept = {name: getattr(self, name) for name in OF_A_KIND} if config == self._config else {}
        if self._model is not None:
            self.close()  # frees the old weights before the new ones come
        self._model = _build(folder, self.options, self._device)
        self._config, self._built_from = config, folder
        self._forget = rope_reset(self._model)
        self._batch_tokens = self._full_batch()
        vars(self).update(kept)

    def _loads_in_place(self) -> bool:
        """Whether a module that was built for one checkpoint reads another, loaded into it, as that one's own does.

        What a model makes of its weights may stay in it: RWKV divides them in its first pass. So the first checkpoint
        of a kind is loaded into the module that was built for the second, and must be read as before.
        """
        first = self._witness
        if self._keeps_nothing is None and first is not None and first.folder != self._built_from:
            there = _file_states(first.folder) == first.files and _load_in_place(self._model, first.folder)
            if there and self._head is not None:
                self._head = head_by_config(self._model)
            self._keeps_nothing = there and bool(
                (self._probe() - first.logits).abs().max() <= self._reader().bound(first.logits)
            )
            if not self._keeps_nothing:
                why = (
                    "keeps something of the weights before" if there else f"{first.folder} is not as it was to prove it"
                )
                log.warning("%s: not loaded in place: %s; each checkpoint is built anew: slow", self._folder, why)
        return bool(self._keeps_nothing)

    def _probe(self) -> torch.Tensor:
        """Logits for one and the same text."""
        reader = self._reader()
        return reader.read(torch.cat([*reader.halves(2)])[None])

    def close(self) -> None:
        """Free the model's memory."""
        self._let_go()
        gc.collect()  # a model whose modules know each other lives until then
        torch.cuda.empty_cache()  # nothing, without a GPU

    def _let_go(self) -> None:
        self._loaded: object = None  # which files the engine holds; None while a load is unfinished
        self._model = self._config = self._head = self.tokenizer = None
        self._sharing: Sharing | None = None
        self._is_proven = False  # whether passes through a module of this kind have shown how it reads
        self._built_from: Path | None = None  # the folder that the module was built from
        self._witness: Witness | None = None
        self._keeps_nothing: bool | None = None  # whether weights that are loaded in place are all that counts
        self._forget: Callable[[], None] = lambda: None  # puts rotary embeddings back to what they were when built

    @property
    def context(self) -> int:
        """Most tokens that the loaded model reads at once; no limit for architectures that have none."""
        context = context_of(self._folder, self.options.trust_remote_code, self.options.architecture)
        return min(context, self.options.max_model_len or context)

    @property
    def vocabulary(self) -> int:
        """Number of logits, padding of the vocabulary included."""
        return self._vocabulary

    @torch.inference_mode()
    def token_stats(self, sequences: Sequence[ScoredSequence]) -> pl.DataFrame:
        """One row per scored token, columns TOKEN_STATS_SCHEMA, in the order of `sequences`.

        Raises InputError naming the folder, the sequence's key and the position where a logit is not finite. Broken
        attention can carry a NaN to earlier tokens of the sequence (0 * NaN is NaN), so the cause may lie behind it.
        """
        with library_errors(f"{self._folder}: transformers cannot run this model ({type(self._model).__name__})"):
            columns, done = self._scored(sequences)
        ends = np.cumsum([sequences[i].stop - sequences[i].start for i in done])
        parts = dict(zip(done, np.split(columns, ends[:-1], axis=1)))
        columns = np.concatenate([columns[:, :0], *(parts[i] for i in range(len(sequences)))], axis=1)
        return token_stats_table(sequences, columns, self.vocabulary, str(self._folder))

    def _scored(self, sequences: Sequence[ScoredSequence]) -> tuple[np.ndarray, list[int]]:
        """Statistics (6, n) of the scored tokens, and the order of the sequences in which they stand."""
        waiting = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].token_ids))  # texts of like length meet
        done, results = [], [torch.empty(6, 0, device=self._device)]
        while waiting:
            size = self._batch_size(len(sequences[i].token_ids) for i in waiting)
            members = [sequences[i] for i in waiting[:size]]
            tokens = len(members) * len(members[0].token_ids)
            columns = self._within_memory(lambda members=members: self._score(members), len(members), tokens)
            if columns is not None:
                done, waiting = done + waiting[:size], waiting[size:]
                results.append(columns)
        return torch.cat(results, dim=1).cpu().numpy(), done  # only here is a GPU waited for

    def _full_batch(self) -> int:
        return self.options.batch_tokens or BATCH_TOKENS[self._device.type]

    def _batch_size(self, lengths: Iterator[int]) -> int:
        """How many of the next texts run together, padding included; one at least. `lengths`: theirs, longest first."""
        if self._head is None or not self._sharing.equal_lengths:
            return 1
        longest = next(lengths)
        size = max(1, self._batch_tokens // longest)
        if longest > self._sharing.mixed_up_to:
            size = 1 + sum(1 for _ in takewhile(longest.__eq__, islice(lengths, size - 1)))
        return size

    def _prove(self) -> None:
        """Find out how the built module turns tokens into logits and which texts may share a batch.

        Raises InputError if the library cannot run it, or if it is no causal language model.
        """
        model, own_code = self._model, self._model.is_custom_code()
        may_grow = has_growing_rope(model.config) or own_code
        try:
            self._head = exact_head(model)
            self._vocabulary = _count_logits(model) if self._head is None else len(self._head.weight)
            reader = self._reader()
            sharing, conclusive = prove(reader)
            widest = min(self.context, self._full_batch() // 2)  # of the batches that have several texts
            if may_grow and sharing.mixed_up_to and widest > reader.half:
                takes_positions = "position_ids" in inspect.signature((body_of(model) or model).forward).parameters
                if takes_positions and not own_code:
                    sharing = sharing._replace(mixed_up_to=longest_mixed(reader, widest))
                elif not reads_alike_when_padded(reader, widest):
                    sharing = sharing._replace(mixed_up_to=0)
            if own_code and not reads_alike_in_full_batch(reader, self._full_batch() // (2 * reader.half) - 1):
                sharing = Sharing(0, equal_lengths=False)
            sharing = sharing._replace(mixed_up_to=min(sharing.mixed_up_to, chosen_tokens(model.config)))
        except NotReadable as error:
            raise InputError(f"{self._folder}: {type(model).__name__}: {error}") from error
        except Exception as error:  # a library's, of any kind
            raise InputError(
                f"{self._folder}: transformers cannot run this model ({type(model).__name__}): {one_line(error)}"
            ) from error
        if self._head is None:
            log.warning("%s: a head of a form of its own; whole logits, one sequence at a time: slow", self._folder)
        elif conclusive and sharing.mixed_up_to < widest:
            how = "only those of one length share a batch" if sharing.equal_lengths else "each is read by itself"
            log.warning(
                "%s: texts of more than %d tokens would change each other's numbers in a batch; %s: slow",
                *(self._folder, sharing.mixed_up_to, how),
            )
        self._sharing, self._is_proven = sharing, conclusive

    def _reader(self) -> Reader:
        """The built module as the proofs see it."""
        model, count = self._model, self._vocabulary
        some = torch.linspace(0, count - 1, min(PROOF_LOGITS, count), device=self._device).long()
        head = self._head and dataclasses.replace(
            self._head,
            weight=self._head.weight[some].float(),
            bias=None if self._head.bias is None else self._head.bias[some],
            softcap=None,  # which would hide what lies above it
        )

        @torch.inference_mode()
        def read(token_ids: torch.Tensor, **positions: torch.Tensor) -> torch.Tensor:
            found = self._pass(token_ids, **positions)
            logits = head(found.flatten(0, 1)).unflatten(0, token_ids.shape) if head else found[..., some].float()
            return logits - logits.mean(-1, keepdim=True)  # log-probabilities do not change with their mean

        token_ids = torch.from_numpy(text_tokens(model.config, min(count, _count_embeddings(model)))).to(self._device)
        dtype = torch.float32 if self.options.dtype == "float32" else torch.bfloat16
        return Reader(read, token_ids, dtype, half=min(HALF, self.context // 2))

    def _pass(self, token_ids: torch.Tensor, **positions: torch.Tensor) -> torch.Tensor:
        """The body's last hidden states (b, T, d), or, where the head has a form of its own, the logits (b, T, V)."""
        self._forget()
        if self._head is None:
            return self._model(input_ids=token_ids, use_cache=False, **positions).logits
        return body_of(self._model)(input_ids=token_ids, use_cache=False, **positions).last_hidden_state

    def _within_memory(self, work: Callable[[], Result], texts: int, tokens: int) -> Result | None:
        """What `work` returns; None where memory did not suffice for its `tokens`, and the batches are smaller now.

        Raises InputError where `texts` is one: no batch is smaller.
        """
        try:
            return work()
        except torch.OutOfMemoryError:
            pass  # what the failed pass made is freed only after this block
        torch.cuda.empty_cache()
        free = _free_memory(self._device)
        if texts == 1:
            raise InputError(
                f"{self._folder}: one text of {tokens} tokens does not fit into the memory of {self._device} ({free}); "
                f"give dtype bfloat16 (found {self.options.dtype}), a smaller max_model_len (longer texts are read in "
                "windows), or engine vllm with tensor_parallel_size"
            )
        budget, self._batch_tokens = self._batch_tokens, min(self._batch_tokens, tokens) // 2
        log.warning(
            "%s: out of memory with %d texts, %d tokens with padding (%s): batch_tokens goes from %d to %d",
            *(self._folder, texts, tokens, free, budget, self._batch_tokens),
        )
        return None

    def _score(self, batch: list[ScoredSequence]) -> torch.Tensor:
        """Statistics (6, n) of the scored tokens, one sequence after the other; t - 1 predicts the token at position t.

        They are float32, in which counts below 2^24 are exact, and stay on the device.
        """
        width = max(len(sequence.token_ids) for sequence in batch)
        # Right padding needs no attention mask: no token of a causal model sees what follows it.
        token_ids = np.zeros((len(batch), width), np.int64)
        for row, sequence in zip(token_ids, batch):
            row[: len(sequence.token_ids)] = sequence.token_ids
        rows = np.concatenate([i * width + np.arange(s.start - 1, s.stop - 1) for i, s in enumerate(batch)])
        targets = np.concatenate([sequence.token_ids[sequence.start : sequence.stop] for sequence in batch])
        token_ids, rows, targets = (self._to_device(array) for array in (token_ids, rows, targets))
        found = self._pass(token_ids).flatten(0, 1)[rows]
        if self._head is None:
            stats = token_stats(found, targets, check=False)
        else:
            stats = token_stats_from_hidden(found, self._head, targets, self.vocabulary, check=False)
        return torch.stack([column.float() for column in stats])

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # without it the copy would wait for the batch before
        return tensor.to(self._device, non_blocking=True)

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Each prompt's greedy continuation, ended before the end-of-text token, a `stop` string or the context's end.

        Prompts of equal length run together, without padding, so that a batch changes nothing.
        """
        eos = self.tokenizer.eos_token_id
        ends = [] if eos is None else [eos]
        return [written.text for written in self._write(prompts, max_new_tokens, stop, ends, lambda batch: [])]

    def sample(self, prompts: Sequence[str], options: SamplingOptions, seeds: Sequence[int]) -> list[Written]:
        """A text drawn for each prompt by its own seed; batches as in `generate`."""
        ends = end_tokens(self._folder, self.tokenizer)

        def drawn(batch: list[int]) -> list[Draw]:
            return [Draw(options, [seeds[i] for i in batch], self._device)] if options.temperature > 0 else []

        return self._write(prompts, options.max_new_tokens, options.stop, ends, drawn)

    @torch.inference_mode()
    def _write(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str],
        ends: list[int],
        processors: Callable[[list[int]], list[Callable]],
    ) -> list[Written]:
        """What greedy decoding writes after each prompt; `processors` change the logits of the prompts of a batch."""
        encoded = prompt_tokens(list(prompts), self.tokenizer, self.options.chat_template, self.vocabulary)
        require_room(self._folder, prompts, encoded, self.context)
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, token_ids in enumerate(encoded):
            by_length[len(token_ids)].append(i)
        token_ids: list[list[int]] = [[] for _ in encoded]
        for length, waiting in sorted(by_length.items()):
            room = min(max_new_tokens, self.context - length)
            while waiting:
                batch = waiting[: max(1, self._batch_tokens // (length + room))]
                found = self._within_memory(
                    lambda batch=batch, room=room: self._continue(
                        self._to_device(np.stack([encoded[i] for i in batch])), room, stop, ends, processors(batch)
                    ),
                    *(len(batch), len(batch) * (length + room)),
                )
                if found is not None:
                    waiting = waiting[len(batch) :]
                    for i, ids in zip(batch, found):
                        token_ids[i] = ids
        return continuations(self.tokenizer, encoded, token_ids, ends, stop)

    def _continue(
        self,
        token_ids: torch.Tensor,
        max_new_tokens: int,
        stop: Sequence[str],
        ends: list[int],
        processors: list[Callable],
    ) -> list[list[int]]:
        """The tokens that follow `token_ids` (b, T)."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        length = token_ids.shape[1]
        self._forget()

        def stopped(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            if stop and (ids.shape[1] - length) % STOP_CHECK_STEPS == 0:
                texts = self.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
                done |= torch.tensor([any(mark in text for mark in stop) for text in texts], device=ids.device)
            return done

        output = self._model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
            ),
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([stopped]),
        )
        return output[:, length:].tolist()


class Draw:
    """A logits processor behind which greedy decoding draws at random, each text by its own seed.

    The argmax of log p + g, with g = -ln(e) and e from the exponential distribution, is a draw from p (the Gumbel-max
    trick: Gumbel, Statistical Theory of Extreme Values, 1954). p is the model's at `temperature`, cut to `top_p`.
    """

    def __init__(self, options: SamplingOptions, seeds: Sequence[int], device: torch.device):
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self._warpers = [TemperatureLogitsWarper(options.temperature), TopPLogitsWarper(options.top_p)]
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, token_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """`logits` (b, V) of the next token."""
        for warp in self._warpers:
            logits = warp(token_ids, logits)
        noise = [torch.empty_like(row).exponential_(generator=g) for row, g in zip(logits, self._generators)]
        return logits - torch.stack(noise).log()


def body_of(model: torch.nn.Module) -> torch.nn.Module | None:
    """The part of `model` in front of its head: its `base_model`, or where the library's name for that leads nowhere,
    as in Llama 4, its `model`.
    """
    parts = (model.base_model, getattr(model, "model", None))
    return next((part for part in parts if isinstance(part, torch.nn.Module) and part is not model), None)


def head_by_config(model: torch.nn.Module) -> Head | None:
    """The map from the body's last hidden state to the logits that the config suggests; None without a linear head."""
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    if not isinstance(linear, torch.nn.Linear):
        return None
    divisor = getattr(config, "logits_scaling", None) or 1.0
    weight = linear.weight.detach()
    return Head(
        weight=weight if weight.is_cuda else weight.float(),  # a CPU has no fast product of 16-bit numbers in float32
        bias=None if linear.bias is None else linear.bias.detach().float(),
        scale=(getattr(config, "logit_scale", None) or 1.0) / divisor,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def exact_head(model: torch.nn.Module) -> Head | None:
    """The map from the body's last hidden state to the logits of `model`; None where it has not the form of `Head`.

    The config only suggests the form. The proof is a forward pass in which a ramp takes the place of the head's
    product: the logits must be the ramp as `Head` would adjust it, and the head must have been given the body's last
    hidden state.
    """
    head, body, linear = head_by_config(model), body_of(model), model.get_output_embeddings()
    if head is None or body is None:
        return None
    ramp = torch.linspace(-50, 50, linear.out_features, device=head.weight.device)
    given = []

    def replace(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        given.append(inputs[0])
        return ramp.expand(output.shape)

    token_ids = torch.arange(min(8, linear.out_features), device=head.weight.device).unsqueeze(0)
    hook = linear.register_forward_hook(replace)
    try:
        with torch.inference_mode():
            logits = model(input_ids=token_ids, use_cache=False).logits.float()
            hidden = getattr(body(input_ids=token_ids, use_cache=False), "last_hidden_state", None)
    finally:
        hook.remove()
    plain = (
        len(given) == 1
        and hidden is not None
        and given[0].shape == hidden.shape
        and torch.allclose(given[0], hidden.to(given[0].dtype), rtol=1e-3, atol=1e-3, equal_nan=True)
    )
    return head if plain and torch.allclose(logits[0, -1], head.adjust(ramp), rtol=1e-4, atol=1e-4) else None


@torch.inference_mode()
def _count_logits(model: torch.nn.Module) -> int:
    token_ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    return model(input_ids=token_ids, use_cache=False).logits.shape[-1]


def _count_embeddings(model: torch.nn.Module) -> int:
    """Tokens that can be read; some models read more than they predict."""
    return getattr(model.get_input_embeddings(), "num_embeddings", None) or model.config.get_text_config().vocab_size


def _build(folder: Path, options: ExtractionOptions, device: torch.device) -> torch.nn.Module:
    """The model in `folder`, every weight of it from the file, in evaluation mode."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, GenerationConfig
    from transformers.quantizers.auto import AutoHfQuantizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar per checkpoint would drown the log
    config = read_config(folder, options.trust_remote_code, options.architecture)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        raise InputError(f"{folder}: transformers has no causal language model of the type {config.model_type}")
    quantization = getattr(config, "quantization_config", None)
    with library_errors(f"{folder}: transformers cannot read the quantization_config"):
        known = not quantization or AutoHfQuantizer.supports_quant_method(quantization)  # else it would only warn
    if not known:
        raise InputError(
            f"{folder}: transformers knows no quantization of the kind {quantization.get('quant_method')!r}"
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, options.dtype),
            attn_implementation=_attention(config),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except Exception as error:  # of any library: quantised weights need packages, shapes may be impossible
        raise InputError(f"{folder}: transformers cannot build this model: {one_line(error)}") from error
    for name, found, expected in sorted(report["mismatched_keys"])[:1]:
        raise InputError(
            f"{folder}: {len(report['mismatched_keys'])} weights have other shapes than config.json says: {name} has "
            f"{list(found)}, expected {list(expected)}; one of the two belongs to another model"
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(
            f"{folder}: {len(missing)} weights missing from the safetensors files: {', '.join(missing[:5])}"
        )
    unknown = sorted(
        name
        for name in report["unexpected_keys"]
        if not any(fnmatchcase(name, pattern) for pattern in options.ignored_weights)
    )
    if unknown:
        raise InputError(
            f"{folder}: found {len(unknown)} weights for which {type(model).__name__}, as config.json describes it, "
            f"has no place: {', '.join(unknown[:5])}; these are more layers or another head than would run, or "
            "config.json is another model's; set ignored_weights for those that are meant to be left out"
        )
    model.generation_config = GenerationConfig()  # the folder may ask for sampling; only greedy generation is done here
    try:
        return model.eval().to(device)
    except torch.OutOfMemoryError as error:
        size = model.get_memory_footprint() / 2**30
        raise InputError(
            f"{folder}: {size:.1f} GiB of weights do not fit into the memory of {device} ({_free_memory(device)}); "
            f"give dtype bfloat16 (found {options.dtype}), or engine vllm with tensor_parallel_size"
        ) from error


def _require_tied(model: torch.nn.Module, folder: Path) -> None:
    """Raise InputError where config.json ties the head to the input embeddings and the file has another head."""
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    ties = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if not ties or not isinstance(outer, torch.nn.Linear) or not hasattr(inner, "weight"):
        return
    one, other = inner.weight, outer.weight
    if one.data_ptr() != other.data_ptr() and one.shape == other.shape and not torch.equal(one, other):
        raise InputError(
            f"{folder}: config.json has tie_word_embeddings: true, but the weights hold a head that is not the input "
            "embeddings: which of the two is meant nobody can tell; correct config.json, or take that head away"
        )


def _free_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return "free memory unknown"
    return "{:.1f} of {:.1f} GiB free".format(*(size / 2**30 for size in torch.cuda.mem_get_info(device)))


def _attention(config: "PretrainedConfig") -> str | None:
    """Eager where the attention's logits have a soft cap (Gemma 2), which sdpa leaves out in silence; None: its own."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def _load_in_place(model: torch.nn.Module | None, folder: Path) -> bool:
    """Copy the folder's weights into `model`; False, with nothing copied, where they do not fill it exactly once.

    Tied weights share memory: the file may hold them under one name. A file that holds both names could untie them, so
    it is no match.
    """
    from safetensors.torch import load_file

    if model is None:
        return False
    own = model.state_dict()  # tensors that share memory with the module
    shapes = {name: shape for path in weight_files(folder) for name, shape in safetensors_header(path).items()}
    if any(name not in own or list(own[name].shape) != shape for name, shape in shapes.items()):
        return False
    filled = {own[name].data_ptr() for name in shapes}
    if len(filled) < len(shapes) or any(tensor.data_ptr() not in filled for tensor in own.values()):
        return False
    with torch.no_grad():
        for path in weight_files(folder):
            for name, tensor in load_file(path).items():
                own[name].copy_(tensor)
    return True


def _file_states(folder: Path) -> list[tuple[Path, int, int]] | None:
    """Path, size and time of each file: equal lists mean that nothing was written in between."""
    if not folder.is_dir():
        return None
    return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
