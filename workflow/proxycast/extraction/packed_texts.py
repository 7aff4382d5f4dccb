"""Texts that begin alike, read by a model of transformers: the prompt once, and what follows in rows that share it.

A row holds a tree of texts (`shared_prompts.Pack`): each token has the position that it has in its text, and a mask
lets it see the tokens above it. Keys and values of the prompt are computed once, and each row of each batch gets them.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from proxycast.extraction.engines.base import BATCH_TOKENS
from proxycast.extraction.engines.modules import reading
from proxycast.extraction.engines.modules.reading import Reader, takes_positions
from proxycast.extraction.shared_prompts import MASK_ELEMENTS, Cost, Family, Member, Pack, plan_families, read_tokens
from proxycast.options import one_line
from proxycast.solutions.tokenisation import ScoredSequence

log = logging.getLogger(__name__)

KEYS_OF_A_TOKEN = 4  # times the hidden size: keys whose look-up takes as long as the other products of a token
PASSES = 16  # whose start takes as long as a batch of `BATCH_TOKENS`
ALL = np.iinfo(np.int32).max


class NoPlainCache(RuntimeError):
    """The model keeps more of a text than keys and values of each token."""


class SharedLayer(DynamicLayer):
    """Keys and values of a prompt (1, heads, P, d), which stand in front of those of any batch and stay as they are."""

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object):
        """The keys and values that a batch (b, heads, T, d) sees: (b, heads, P + T, d)."""
        keys, values = (kept.expand(len(key_states), -1, -1, -1) for kept in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def pass_cost(model: torch.nn.Module) -> Cost:
    """What passes of a model cost, roughly."""
    config, weight = model.config.get_text_config(), next(model.parameters())
    width = getattr(config, "hidden_size", None) or weight.shape[-1]
    return Cost(KEYS_OF_A_TOKEN * width, BATCH_TOKENS[weight.device.type] / PASSES)


def families_of(
    model: torch.nn.Module,
    sequences: Sequence[ScoredSequence],
    alike: reading.AlikeWhenShared,
    longest: int,
    most_tokens: int,
    to_device: Callable[[np.ndarray], torch.Tensor],
    reader: Callable[[], Reader],
) -> list[Family]:
    """The families of texts of up to `longest` tokens, in passes of `most_tokens`, that `alike` has found readable."""
    cost, row = pass_cost(model), reading.longest_row(model.config)
    return alike.families(
        lambda most, widest: plan_families(sequences, cost, most_tokens, min(most, longest), min(widest, row)),
        lambda family: (max(len(sequences[i].token_ids) for i in family.members()), family.width(sequences)),
        lambda *size: reads_alike_when_shared(model, reader(), to_device, *size),
    )


def reads_alike_when_shared(
    model: torch.nn.Module,
    reader: Reader,
    to_device: Callable[[np.ndarray], torch.Tensor],
    length: int,
    width: int = 0,
) -> bool | None:
    """Whether texts of `length` tokens that share a prompt are read as alone; None where the weights do not show it.

    `width`: also in rows of so many tokens.
    """
    takes_trees = (
        not model.is_custom_code()
        and getattr(model.config, "_attn_implementation", None) in ("sdpa", "eager")
        and takes_positions(model)
    )
    try:
        return takes_trees and reading.reads_alike_when_shared(
            reader, lambda rows, half: _in_families(reader.read, rows, half, width, to_device, reader.dtype), length
        )
    except Exception as error:  # a library's, of any kind, for want of what a tree needs
        log.debug("%s: texts that begin alike are not read together: %s", type(model).__name__, one_line(error))
        return False


def _in_families(
    run: Callable[..., torch.Tensor],
    rows: torch.Tensor,
    half: int,
    width: int,
    to_device: Callable[[np.ndarray], torch.Tensor],
    dtype: torch.dtype,
) -> Iterator[torch.Tensor]:
    """What `run` makes of two texts (2, T) that differ in their last `half` tokens, in each way to share the others.

    Yields (2, T, n) for: one row of both; a prompt and a row for each; a prompt and one row, which share more than it.
    Of a `width`: for rows of so many tokens, rounded up to a power of two, with other texts between the two.
    """
    texts, length, shared = rows.cpu().numpy(), rows.shape[1], rows.shape[1] - half
    more = max(0, -(-_rounded(width, shared) // half) - length // half - 1) if width else 0
    between = [np.concatenate([texts[0, :shared], np.roll(texts[0], i + 1)[:half]]) for i in range(more)]
    # The last token of a sequence is not read. Of the texts between, one token is scored.
    sequences = [
        ScoredSequence("proof", np.append(text, 0), start, length + 1, np.zeros(length + 1 - start, np.int32))
        for text, start in zip((texts[0], *between, texts[1]), (1, *[length] * more, 1))
    ]
    for prompt in dict.fromkeys([0, shared, *([] if width else [shared // 2])]):
        members = [Member(i, shared if i else prompt) for i in range(len(sequences))]
        if width and not prompt and (length + (more + 1) * half) ** 2 > MASK_ELEMENTS:
            continue  # rows of so many tokens stand behind a prompt
        apart = prompt == shared and not width
        family = Family(prompt, (tuple((member,) for member in members) if apart else (tuple(members),),))
        found = FamilyReader(run, sequences, family, to_device, dtype).read(family.batches[0])
        yield torch.stack([found[:length], found[-length:]])


def _rounded(width: int, prompt: int) -> int:
    """The next power of two, so that much of the prompt would be lost, unless such a mask were too large."""
    rounded = 1 << (width - 1).bit_length()
    return rounded if rounded * (rounded - prompt) <= MASK_ELEMENTS else width


class _Rows(NamedTuple):
    """A batch of packs as arrays: token ids, positions and segments (b, T), and what a segment sees of others.

    A segment is what a member adds to the members before it. limits (b, S, S): the position up to which the tokens of a
    segment see those of another one. paths: for each member the column of each of its tokens behind the prompt.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    limits: np.ndarray
    paths: list[list[np.ndarray]]


class FamilyReader:
    """Reads the batches of a family, one after the other.

    run: token ids (b, T), and arguments of the model's forward pass -> (b, T, d), hidden states or logits.
    to_device: an array as a tensor on the model's device. dtype: that in which the model computes.

    Raises NoPlainCache where the prompt leaves something else than keys and values.
    """

    def __init__(
        self,
        run: Callable[..., torch.Tensor],
        sequences: Sequence[ScoredSequence],
        family: Family,
        to_device: Callable[[np.ndarray], torch.Tensor],
        dtype: torch.dtype,
    ):
        self._run, self._sequences, self._family, self._to_device, self._dtype = (
            run,
            sequences,
            family,
            to_device,
            dtype,
        )
        self._layers: list[SharedLayer] | None = None
        self._first, self._of_prompt = family.prompt, None  # the prompt's scored rows, from the position `_first` on

    def _read_prompt(self) -> None:
        members = list(self._family.members())
        prompt, cache = self._family.prompt, DynamicCache()
        token_ids = self._sequences[members[0]].token_ids[None, :prompt]
        found = self._run(self._to_device(token_ids), past_key_values=cache, use_cache=True)
        if not cache.layers or any(
            type(layer) is not DynamicLayer or layer.get_seq_length() != prompt for layer in cache.layers
        ):
            raise NoPlainCache
        self._layers = [SharedLayer(layer) for layer in cache.layers]
        self._first = min(prompt, *(self._sequences[i].start - 1 for i in members))
        self._of_prompt = found[0, self._first :].clone()

    def read(self, batch: Sequence[Pack]) -> torch.Tensor:
        """What stands in front of the scored tokens (n, d): the members of all packs, one after the other."""
        if self._family.prompt and self._layers is None:
            self._read_prompt()
        rows = _rows(batch, self._sequences, self._family.prompt)
        width = rows.token_ids.shape[1]
        if width:
            found = self._pass(rows).flatten(0, 1)
            found = torch.cat([self._of_prompt, found]) if self._first < self._family.prompt else found
        else:  # all texts of the batch are the prompt
            found = self._of_prompt
        return found[self._to_device(np.concatenate(list(self._scored(batch, rows.paths, width))))]

    def _scored(self, batch: Sequence[Pack], paths: list[list[np.ndarray]], width: int):
        """Where what is in front of each member's scored tokens stands, behind the rows of the prompt."""
        prompt = self._family.prompt
        ahead = prompt - self._first
        for row, (pack, own) in enumerate(zip(batch, paths)):
            for member, path in zip(pack, own):
                sequence = self._sequences[member.index]
                in_prompt = np.arange(min(sequence.start - 1, prompt), min(sequence.stop - 1, prompt)) - self._first
                behind = path[max(sequence.start - 1 - prompt, 0) :] + (ahead + row * width)
                yield np.concatenate([in_prompt, behind])

    def _pass(self, rows: _Rows) -> torch.Tensor:
        token_ids, positions, segments, limits = (
            self._to_device(array) for array in (rows.token_ids, rows.positions, rows.segments, rows.limits)
        )
        mask = _mask(positions, segments, limits, self._family.prompt, self._dtype)
        given = {"attention_mask": mask, "position_ids": positions}
        if self._layers is not None:
            cache = DynamicCache()
            cache.layers = list(self._layers)
            given |= {"past_key_values": cache, "use_cache": True}
        return self._run(token_ids, **given)


def _mask(
    positions: torch.Tensor, segments: torch.Tensor, limits: torch.Tensor, prompt: int, dtype: torch.dtype
) -> torch.Tensor:
    """What is added to the scores of attention (b, 1, T, P + T): 0 for what a token sees, else the least number."""
    texts, width = positions.shape
    limit = limits[torch.arange(texts, device=limits.device)[:, None], segments]  # (b, T, S)
    limit = limit.gather(2, segments[:, None].expand(-1, width, -1))  # (b, T, T)
    hidden = (positions[:, None] > positions[:, :, None]) | (positions[:, None] >= limit)
    mask = torch.zeros(texts, 1, width, prompt + width, dtype=dtype, device=positions.device)
    mask[..., prompt:].masked_fill_(hidden[:, None], torch.finfo(dtype).min)
    return mask


def _rows(batch: Sequence[Pack], sequences: Sequence[ScoredSequence], prompt: int) -> _Rows:
    """The arrays of a batch. Padding is a segment of its own that only itself sees."""
    texts = [[read_tokens(sequences[member.index]) for member in pack] for pack in batch]
    added = [[len(text) - m.shared for text, m in zip(of_pack, pack)] for of_pack, pack in zip(texts, batch)]
    width, most = max(map(sum, added)), max(map(len, batch))
    token_ids, positions = (np.zeros((len(batch), width), np.int64) for _ in range(2))
    segments = np.full((len(batch), width), most)
    limits = np.zeros((len(batch), most + 1, most + 1), np.int32)
    limits[:, most, most] = ALL
    paths: list[list[np.ndarray]] = []
    for row, (pack, of_pack) in enumerate(zip(batch, texts)):
        used, path, own = 0, np.empty(0, np.int64), []
        for segment, (member, text) in enumerate(zip(pack, of_pack)):
            columns = np.arange(used, used + len(text) - member.shared)
            token_ids[row, columns] = text[member.shared :]
            positions[row, columns] = np.arange(member.shared, len(text))
            segments[row, columns] = segment
            if segment:
                limits[row, segment] = np.minimum(limits[row, segment - 1], member.shared)
            limits[row, segment, segment] = ALL
            path = np.concatenate([path[: member.shared - prompt], columns])
            own.append(path)
            used += len(columns)
        paths.append(own)
    return _Rows(token_ids, positions, segments, limits, paths)
