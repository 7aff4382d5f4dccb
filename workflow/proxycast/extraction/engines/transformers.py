"""The engine on plain `transformers`: any causal language model of the library, on a CPU or a GPU.

A batch runs through the model's body only. The head is applied to the hidden states in front of scored tokens, some
rows at a time: no (tokens x vocabulary) matrix exists. What lies between the head's product and the logits (a scale, a
soft cap) is found in the config and checked on the model. Any other model is run whole, slower, one sequence at a time.
The other assumptions of a batch are proven by `reading`.

On a GPU, batches follow each other without waiting: statistics stay there until the call's last batch has been sent.
"""

import dataclasses
import gc
import inspect
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import polars as pl
import torch

from proxycast.config.extraction import ExtractionOptions, SamplingOptions
from proxycast.extraction.engines.base import BATCH_TOKENS, file_states, longest_read, require_room, token_stats_table
from proxycast.extraction.engines.modules import padding, reading
from proxycast.extraction.engines.modules.compiled import Compiled
from proxycast.extraction.engines.modules.draw import Draw
from proxycast.extraction.engines.modules.model_head import (
    body_of,
    count_embeddings,
    count_logits,
    exact_head,
    head_by_config,
)
from proxycast.extraction.engines.modules.model_loading import build_model, free_memory, load_in_place, require_tied
from proxycast.extraction.engines.modules.reading import Reader, Sharing, prove, rope_reset
from proxycast.extraction.token_stats import (
    to_device,
    token_stats,
    token_stats_at_temperatures,
    token_stats_from_hidden,
)
from proxycast.options import InputError, library_errors, one_line
from proxycast.solutions.tokenisation import ScoredSequence, prompt_tokens
from proxycast.weights.model_config import read_config
from proxycast.weights.model_folder import check_folder
from proxycast.weights.tokenizer import TokenizerCache, Written, continuations, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

PROOF_LOGITS = 256  # tokens whose logits are compared when a model is proven
STOP_CHECK_STEPS = 8  # between two looks whether all texts of a batch have met a stop string

Outcome = TypeVar("Outcome")


class Witness(NamedTuple):
    """The first checkpoint of a kind, and how the module that was built for it reads a text."""

    folder: Path
    files: object
    logits: torch.Tensor


# Of an engine: what stays as long as config.json is the same.
OF_A_KIND = (
    *("_sharing", "_is_proven", "_head", "_vocabulary", "_witness", "_keeps_nothing", "_batch_tokens", "_compiled"),
)


class TransformersEngine:
    """Loads one checkpoint after another and scores sequences with it; see `engines.base.Engine`."""

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

        Each module that is built must prove that it is causal and reads each text as if alone; else InputError.
        """
        files = file_states(folder)
        if self._loaded == files:
            return
        self.check(folder)
        self._loaded, self._folder = None, folder
        config = (folder / "config.json").read_bytes()
        if not (config == self._config and self._loads_in_place() and load_in_place(self._model, folder)):
            self._build_anew(folder, config)
        require_tied(self._model, folder)
        if not self._is_proven:
            self._prove()
        elif self._head is not None:
            self._head = head_by_config(self._model)  # of these weights, in the form that was proven
        if self._is_proven and self._witness is None:
            self._witness = Witness(folder, files, self._probe())
        self.expect(0)
        self.tokenizer = self._tokenizers.load(folder)
        self._loaded = files

    def _build_anew(self, folder: Path, config: bytes) -> None:
        """Build the model in `folder`. What was proven of its kind stays: the same config.json."""
        kept = {name: getattr(self, name) for name in OF_A_KIND} if config == self._config else {}
        if self._model is not None:
            self.close()  # frees the old weights before the new ones come
        self._model = build_model(folder, self.options, self._device)
        self._config, self._built_from = config, folder
        self._forget = rope_reset(self._model)
        self._batch_tokens = self._full_batch()
        self._compiled = Compiled(self.options.compile, self._device)
        vars(self).update(kept)
        self._compiled.attach(self._model)

    def expect(self, tokens: int) -> None:
        """Be told how many tokens checkpoints of the kind are about to read: whether compiled layers pay."""
        if self._is_proven and self._compiled.pays(self._model, tokens):
            begins = self._compiled.begin(self._reader(), self._sharing, self.context)
            if begins and self._witness and self._witness.folder == self._folder:
                self._witness = self._witness._replace(logits=self._probe())

    def _loads_in_place(self) -> bool:
        """Whether a module that was built for one checkpoint reads another one, loaded into it, as that one's own does.

        A module may keep what it made of its weights: RWKV divides them in its first pass. So the first checkpoint of a
        kind is loaded into the module of the second, and must be read as before.
        """
        first = self._witness
        if self._keeps_nothing is None and first is not None and first.folder != self._built_from:
            there = file_states(first.folder) == first.files and load_in_place(self._model, first.folder)
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
        self._compiled = Compiled()  # never
        self._keeps_nothing: bool | None = None  # whether weights that are loaded in place are all that counts
        self._forget: Callable[[], None] = lambda: None  # puts rotary embeddings back to what they were when built

    @property
    def context(self) -> int:
        """Most tokens that the loaded model reads at once; no limit for architectures that have none."""
        return longest_read(self._folder, self.options)

    def reads(self, folder: Path) -> tuple["PreTrainedTokenizerFast", int]:
        """The tokenizer and the context of the checkpoint in `folder`, loaded or not."""
        return self._tokenizers.load(folder), longest_read(folder, self.options)

    @property
    def vocabulary(self) -> int:
        """Number of logits, padding of the vocabulary included."""
        return self._vocabulary

    @torch.inference_mode()
    def token_stats(self, sequences: Sequence[ScoredSequence], temperatures: Sequence[float] = ()) -> pl.DataFrame:
        """One row per scored token, columns TOKEN_STATS_SCHEMA, in the order of `sequences`.

        With `temperatures` also the columns `tempered_schema(temperatures)`.

        Raises InputError naming the folder, the sequence's key and the position where a logit is not finite. The cause
        may lie behind it: broken attention carries a NaN to earlier tokens (0 * NaN is NaN).
        """
        with library_errors(f"{self._folder}: transformers cannot run this model ({type(self._model).__name__})"):
            columns, done = self._scored(sequences, temperatures)
        ends = np.cumsum([sequences[i].stop - sequences[i].start for i in done])
        parts = dict(zip(done, np.split(columns, ends[:-1], axis=1)))
        columns = np.concatenate([columns[:, :0], *(parts[i] for i in range(len(sequences)))], axis=1)
        return token_stats_table(sequences, columns, self.vocabulary, str(self._folder), temperatures)

    def _scored(
        self, sequences: Sequence[ScoredSequence], temperatures: Sequence[float]
    ) -> tuple[np.ndarray, list[int]]:
        """Statistics (6 + K, n) of the scored tokens, and the order of the sequences in which they stand."""
        waiting = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].token_ids))  # texts of like length meet
        done, results = [], [torch.empty(6 + len(temperatures), 0, device=self._device)]
        while waiting:
            size = self._batch_size(len(sequences[i].token_ids) for i in waiting)
            members = [sequences[i] for i in waiting[:size]]
            tokens = len(members) * len(members[0].token_ids)
            columns = self._within_memory(
                lambda members=members: self._score(members, temperatures), len(members), tokens
            )
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
        others = islice(lengths, max(1, self._batch_tokens // longest) - 1)
        if longest > self._sharing.mixed_up_to:
            return 1 + sum(1 for _ in takewhile(longest.__eq__, others))
        return padding.with_little_padding([longest, *others])

    def _prove(self) -> None:
        """Find out how the built module turns tokens into logits and which texts may share a batch.

        Raises InputError if the library cannot run it, or if it is no causal language model.
        """
        model, own_code = self._model, self._model.is_custom_code()
        may_grow = reading.has_growing_rope(model.config) or own_code
        try:
            self._head = exact_head(model)
            self._vocabulary = count_logits(model) if self._head is None else len(self._head.weight)
            reader = self._reader()
            sharing, conclusive = prove(reader)
            widest = min(self.context, self._full_batch() // 2)  # of the batches that have several texts
            if may_grow and sharing.mixed_up_to and widest > reader.half:
                takes_positions = "position_ids" in inspect.signature((body_of(model) or model).forward).parameters
                if takes_positions and not own_code:
                    sharing = sharing._replace(mixed_up_to=reading.longest_mixed(reader, widest))
                elif not reading.reads_alike_when_padded(reader, widest):
                    sharing = sharing._replace(mixed_up_to=0)
            if own_code and not reading.reads_alike_in_full_batch(reader, self._full_batch() // (2 * reader.half) - 1):
                sharing = Sharing(0, equal_lengths=False)
            sharing = sharing._replace(mixed_up_to=min(sharing.mixed_up_to, reading.chosen_tokens(model.config)))
        except reading.NotReadable as error:
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

        token_ids = torch.from_numpy(reading.text_tokens(model.config, min(count, count_embeddings(model)))).to(
            self._device
        )
        dtype = torch.float32 if self.options.dtype == "float32" else torch.bfloat16
        return Reader(read, token_ids, dtype, half=min(reading.HALF, self.context // 2))

    def _pass(self, token_ids: torch.Tensor, **positions: torch.Tensor) -> torch.Tensor:
        """The body's last hidden states (b, T, d), or, where the head has a form of its own, the logits (b, T, V)."""
        self._forget()
        module = self._model if self._head is None else body_of(self._model)
        with padding.unpacked():
            found = self._compiled.run(lambda: module(input_ids=token_ids, use_cache=False, **positions))
        return found.logits if self._head is None else found.last_hidden_state

    def _within_memory(self, work: Callable[[], Outcome], texts: int, tokens: int) -> Outcome | None:
        """What `work` returns; None where memory did not suffice for its `tokens`, and the batches are smaller now.

        Raises InputError where `texts` is one: no batch is smaller.
        """
        try:
            return work()
        except torch.OutOfMemoryError:
            pass  # what the failed pass made is freed only after this block
        torch.cuda.empty_cache()
        free = free_memory(self._device)
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

    def _score(self, batch: list[ScoredSequence], temperatures: Sequence[float]) -> torch.Tensor:
        """Statistics (6 + K, n) of the scored tokens, one sequence after the other.

        Position t - 1 predicts the token at position t. The columns are float32, in which counts below 2^24 are exact,
        and stay on the device.
        """
        width = max(len(sequence.token_ids) for sequence in batch)
        # Right padding needs no attention mask: no token of a causal model sees what follows it.
        token_ids = np.zeros((len(batch), width), np.int64)
        for row, sequence in zip(token_ids, batch):
            row[: len(sequence.token_ids)] = sequence.token_ids
        rows = np.concatenate([i * width + np.arange(s.start - 1, s.stop - 1) for i, s in enumerate(batch)])
        targets = np.concatenate([sequence.token_ids[sequence.start : sequence.stop] for sequence in batch])
        token_ids, rows, targets = (to_device(array, self._device) for array in (token_ids, rows, targets))
        found = self._pass(token_ids).flatten(0, 1)[rows]
        if temperatures:
            head = self._head or (lambda logits: logits)
            return token_stats_at_temperatures(found, head, targets, self.vocabulary, temperatures)
        if self._head is None:
            stats = token_stats(found, targets)
        else:
            stats = token_stats_from_hidden(found, self._head, targets, self.vocabulary)
        return torch.stack([column.float() for column in stats])

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
                        np.stack([encoded[i] for i in batch]), room, stop, ends, processors(batch)
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
        token_ids: np.ndarray,
        max_new_tokens: int,
        stop: Sequence[str],
        ends: list[int],
        processors: list[Callable],
    ) -> list[list[int]]:
        """The tokens that follow `token_ids` (b, T)."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        token_ids = to_device(token_ids, self._device)
        length = token_ids.shape[1]
        self._forget()

        def stopped(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            if stop and (ids.shape[1] - length) % STOP_CHECK_STEPS == 0:
                texts = self.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
                done |= torch.tensor([any(end in text for end in stop) for text in texts], device=ids.device)
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
