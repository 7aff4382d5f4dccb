"""The engine on plain `transformers`: any causal language model of the library, on a CPU or a GPU.

A batch runs through the model's body only. The head is applied to the hidden states in front of scored tokens, some
rows at a time: no (tokens x vocabulary) matrix exists. What lies between the head's product and the logits (a scale, a
soft cap) is found in the config and checked on the model. Any other model is run whole, slower, one sequence at a time.
The other assumptions of a batch are proven by `reading`. Texts that begin alike are read in families, where that is
cheaper and the model has proven it (`shared_prompts`, `packed_texts`).

On a GPU, batches follow each other without waiting: statistics stay there until the call's last batch has been sent.
"""

import dataclasses
import gc
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import polars as pl
import torch

from proxycast.config.extraction import ExtractionOptions, SamplingOptions
from proxycast.extraction.decoding import Draw, continue_texts
from proxycast.extraction.engines.base import BATCH_TOKENS, file_states, longest_read, require_room, token_stats_table
from proxycast.extraction.engines.modules import model_head, padding, reading
from proxycast.extraction.engines.modules.compiled import Compiled
from proxycast.extraction.engines.modules.model_loading import (
    Witness,
    build_model,
    free_memory,
    load_in_place,
    require_tied,
)
from proxycast.extraction.engines.modules.reading import Reader, Sharing, rope_reset, sharing_of
from proxycast.extraction.shared_prompts import Family
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

Outcome = TypeVar("Outcome")


# Of an engine: what stays as long as config.json is the same.
OF_A_KIND = (
    *("_sharing", "_is_proven", "_head", "_vocabulary", "_witness", "_keeps_nothing", "_batch_tokens", "_alike"),
    "_compiled",
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
            self._head = model_head.head_by_config(self._model)  # of these weights, in the form that was proven
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
                self._head = model_head.head_by_config(self._model)
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
        self._alike = reading.AlikeWhenShared()  # up to which length texts that share a prompt are read as alone
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
        self,
        sequences: Sequence[ScoredSequence],
        temperatures: Sequence[float],
        plan: tuple[list[Family], list[int]] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        """Statistics (6 + K, n) of the scored tokens, and the order of the sequences in which they stand.

        `plan`: the families that are read together, and the indices of texts that are read alone; else all texts.
        """
        families, alone = plan or self._plan(sequences)
        done, results = [], [torch.empty(6 + len(temperatures), 0, device=self._device)]
        for indices, columns in self._score_families(families, sequences, temperatures):
            done, results = done + indices, [*results, columns]
        alone = [*alone, *sorted({i for family in families for i in family.members()} - {*done})]
        waiting = sorted(alone, key=lambda i: -len(sequences[i].token_ids))  # texts of like length meet
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
        columns = torch.cat(results, dim=1).cpu().numpy()  # only here is a GPU waited for
        if families and not np.isfinite(columns[:4]).all():  # in a row, a NaN gets into other texts than its own
            return self._scored(sequences, temperatures, ([], sorted(done)))
        return columns, done

    def _plan(self, sequences: Sequence[ScoredSequence]) -> tuple[list[Family], list[int]]:
        """The families of texts that begin alike, which are read together, and the indices of the other texts."""
        families = []
        if len(sequences) > 1 and self._head is not None and self._sharing.mixed_up_to:
            from proxycast.extraction.packed_texts import families_of

            longest = min(self._sharing.mixed_up_to, reading.attention_window(self._model.config))
            settings = self._alike, longest, self._batch_tokens, self._to_device
            families = families_of(self._model, sequences, *settings, self._reader)
        together = {i for family in families for i in family.members()}
        return families, [i for i in range(len(sequences)) if i not in together]

    def _score_families(
        self, families: Sequence[Family], sequences: Sequence[ScoredSequence], temperatures: Sequence[float]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """For each batch the indices of its texts and their statistics (6 + K, n). What finds no memory is left out."""
        from proxycast.extraction.packed_texts import FamilyReader

        for family in families:
            reader = FamilyReader(self._pass, sequences, family, self._to_device, getattr(torch, self.options.dtype))
            for batch in family.batches:
                indices = [member.index for pack in batch for member in pack]
                members = [sequences[i] for i in indices]
                columns = self._within_memory(
                    lambda batch=batch, members=members, read=reader.read: self._statistics(
                        read(batch), members, temperatures
                    ),
                    *(max(len(members), 2), family.tokens(batch, sequences)),  # 2: they can be read alone
                )
                if columns is None:
                    break
                yield indices, columns

    def _full_batch(self) -> int:
        return self.options.batch_tokens or BATCH_TOKENS[self._device.type]

    def _batch_size(self, lengths: Iterator[int]) -> int:
        """How many of the next texts run together, padding included; one at least. `lengths`: theirs, longest first."""
        if self._head is None:
            return 1
        return padding.batch_size(lengths, self._batch_tokens, self._sharing, self._model)

    def _prove(self) -> None:
        """Find out how the built module turns tokens into logits and which texts may share a batch.

        Raises InputError if the library cannot run it, or if it is no causal language model.
        """
        model = self._model
        try:
            self._head = model_head.exact_head(model)
            self._vocabulary = model_head.count_logits(model) if self._head is None else len(self._head.weight)
            reader = self._reader()
            widest = min(self.context, self._full_batch() // 2)  # of the batches that have several texts
            sharing, conclusive = sharing_of(model, reader, widest, self._full_batch())
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
        def read(token_ids: torch.Tensor, **given: object) -> torch.Tensor:
            found = self._pass(token_ids, **given)
            logits = head(found.flatten(0, 1)).unflatten(0, token_ids.shape) if head else found[..., some].float()
            return logits - logits.mean(-1, keepdim=True)  # log-probabilities do not change with their mean

        embedded = min(count, model_head.count_embeddings(model))
        token_ids = torch.from_numpy(reading.text_tokens(model.config, embedded)).to(self._device)
        return Reader(read, token_ids, getattr(torch, self.options.dtype), half=min(reading.HALF, self.context // 2))

    def _pass(self, token_ids: torch.Tensor, **given: object) -> torch.Tensor:
        """The body's last hidden states (b, T, d), or, where the head has a form of its own, the logits (b, T, V)."""
        self._forget()
        module = self._model if self._head is None else model_head.body_of(self._model)
        with padding.unpacked():
            if given:  # masks and caches of texts that begin alike, of which nothing is compiled
                found = module(**{"input_ids": token_ids, "use_cache": False} | given)
            else:
                found = self._compiled.run(lambda: module(input_ids=token_ids, use_cache=False))
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
        """Statistics (6 + K, n) of the scored tokens, one sequence after the other; position t - 1 predicts token t."""
        width = max(len(sequence.token_ids) for sequence in batch)
        # Right padding needs no attention mask: no token of a causal model sees what follows it.
        token_ids = np.zeros((len(batch), width), np.int64)
        for row, sequence in zip(token_ids, batch):
            row[: len(sequence.token_ids)] = sequence.token_ids
        rows = np.concatenate([i * width + np.arange(s.start - 1, s.stop - 1) for i, s in enumerate(batch)])
        token_ids, rows = self._to_device(token_ids), self._to_device(rows)
        return self._statistics(self._pass(token_ids).flatten(0, 1)[rows], batch, temperatures)

    def _statistics(
        self, found: torch.Tensor, batch: list[ScoredSequence], temperatures: Sequence[float]
    ) -> torch.Tensor:
        """Statistics (6 + K, n) of the scored tokens by what `_pass` has found in front of them (n, d).

        The columns are float32, in which counts below 2^24 are exact, and stay on the device.
        """
        targets = self._to_device(np.concatenate([s.token_ids[s.start : s.stop] for s in batch]))
        if temperatures:
            head = self._head or (lambda logits: logits)
            return token_stats_at_temperatures(found, head, targets, self.vocabulary, temperatures)
        if self._head is None:
            stats = token_stats(found, targets)
        else:
            stats = token_stats_from_hidden(found, self._head, targets, self.vocabulary)
        return torch.stack([column.float() for column in stats])

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._device)

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
                        [encoded[i] for i in batch], room, stop, ends, processors(batch)
                    ),
                    *(len(batch), len(batch) * (length + room)),
                )
                if found is not None:
                    waiting = waiting[len(batch) :]
                    for i, ids in zip(batch, found):
                        token_ids[i] = ids
        return continuations(self.tokenizer, encoded, token_ids, ends, stop)

    def _continue(self, encoded: list[np.ndarray], *decoding: object) -> list[list[int]]:
        self._forget()
        return continue_texts(self._model, self.tokenizer, self._to_device(np.stack(encoded)), *decoding)
