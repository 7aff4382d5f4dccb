"""What a loaded model proves before its numbers count: it reads from left to right, and each text as if alone.

A right-padded batch is right only for such models, and neither name nor configuration tells. Three forward passes of a
few tokens show it, once for each module that is built:

- if a text changes from some token on, or in one token, what is in front must be read alike. The second, the third, the
  middle and the last token are changed, so that blocks of any length show;
- a text alone, in front of padding and beside other texts must be read alike, up to rounding;
- the text must be read the same after the others: the model has no memory.

What shows only in texts of thousands of tokens is tested with positions: a rotary embedding that chooses its
frequencies by the longest text does so too if one token stands far behind the others. For code that `transformers` does
not know, one text is padded to the widest batch.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from proxycast.extraction.engines.modules.model_head import body_of
from proxycast.extraction.shared_prompts import ANY_LENGTH, Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HALF = 8  # tokens of each half of a text
TEXTS = 3  # that must all show a fault: at a tie a router of experts may turn over by rounding alone
# Differences that count: above this share of what the tokens in front change, and of the largest logit.
SHARE = {torch.float32: 1e-3, torch.bfloat16: 0.2}
LOGIT_ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
WINDOWS = "sliding_window", "attention_chunk_size"  # of attention, in tokens
# What attention counts in tokens of the row, not by their positions: GPT-Neo's window, Llama 4's temperature.
ROWS = "window_size", "floor_scale"
# Kinds of rotary embeddings whose frequencies stay what they are, however long a text is.
FIXED_ROPES = {"default", "linear", "llama3", "yarn", "proportional"}


class NotReadable(ValueError):
    """The model is none whose log-probabilities could be computed; the message says why, without its folder."""


class Sharing(NamedTuple):
    """Which texts may share a batch: those of up to `mixed_up_to` tokens, and longer ones of one length, or none."""

    mixed_up_to: int
    equal_lengths: bool = True


@dataclass
class Reader:
    """A loaded model as the proofs see it.

    read: token ids (b, T), and keyword arguments of the model's forward pass -> float32 logits (b, T, n) of n tokens.
    token_ids: ids of all tokens that are text. Both on the model's device.
    """

    read: Callable[..., torch.Tensor]
    token_ids: torch.Tensor
    dtype: torch.dtype
    half: int = HALF
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def halves(self, count: int) -> torch.Tensor:
        """`count` random halves of texts (count, half), which differ in every token."""
        n = len(self.token_ids)
        first = torch.randint(n, (1, self.half), generator=self.generator)
        return self.token_ids[((first + torch.arange(count)[:, None]) % n).to(self.token_ids.device)]

    def bound(self, logits: torch.Tensor, effect: float = 0.0) -> float:
        """The largest difference of logits that is rounding, for logits of that size."""
        return max(LOGIT_ROUNDING[self.dtype] * _largest(logits), SHARE[self.dtype] * effect)


def prove(reader: Reader) -> tuple[Sharing, bool]:
    """How texts of a few tokens may share a batch, and whether these weights have shown it.

    They have not if a logit is not finite, or if no token depends on those before it, as at the first step of some
    trainings: the next checkpoint is asked again. Raises NotReadable for a model that reads otherwise.
    """
    half = reader.half
    text, other, end, other_end = reader.halves(4)
    padding = torch.zeros_like(end)
    # Padding comes first: where experts have a capacity, it is what fills one of them.
    rows = [(padding, padding), (other, end), (text, padding), (text, end), (text, other_end)]
    whole, changed = torch.cat([text, end]), torch.cat([other, other_end])
    changes = _changed_once(whole, changed)
    stacked = torch.stack([*map(torch.cat, rows), *changes.values()])
    alone, batch, again = (reader.read(ids) for ids in (text[None], stacked, text[None]))
    batch, once = batch[1 : len(rows)], dict(zip(changes, batch[len(rows) :]))
    if not all(logits.isfinite().all() for logits in (alone, batch, again)):
        return Sharing(0, False), False
    effect = _largest(batch[0, half:] - batch[2, half:])
    bound = reader.bound(batch, effect)
    if (moved := _largest(again - alone)) > bound:
        why = "chance" if _largest(reader.read(text[None]) - again) > bound else "what it has read before"
        raise NotReadable(f"what it makes of a text depends on {why}: logits move by {moved:.2g}")
    moved = [_largest(batch[2, :place] - read[:place]) for place, read in (once | {half: batch[3]}).items()]
    if max(moved) > bound:
        _require_causality(reader)
    if _largest(batch[1:, :half] - alone) <= bound:
        return Sharing(ANY_LENGTH), effect > bound
    equal = reader.read(torch.stack([other, end, other_end, text]))
    return Sharing(0, _largest(equal[-1] - alone[0]) <= bound), effect > bound


def _changed_once(text: torch.Tensor, other: torch.Tensor) -> dict[int, torch.Tensor]:
    """`text` with the token of `other` at one place -> by place: the second, the third and the last."""
    places = dict.fromkeys([1, min(2, len(text) - 1), len(text) - 1])
    return {place: torch.cat([text[:place], other[place : place + 1], text[place + 1 :]]) for place in places}


def _require_causality(reader: Reader) -> None:
    """Raise NotReadable if each of some texts, read alone, is read otherwise in front of what changes in it."""
    moved = []
    for _ in range(TEXTS):
        text, other, end, other_end = reader.halves(4)
        whole, changed = torch.cat([text, end]), torch.cat([other, other_end])
        first, third = (reader.read(torch.cat(row)[None])[0] for row in [(text, end), (other, end)])
        effect = _largest(third[reader.half :] - first[reader.half :])
        changes = {reader.half: torch.cat([text, other_end])} | _changed_once(whole, changed)
        read = {place: reader.read(ids[None])[0] for place, ids in changes.items()}
        moved.append(max(_largest(first[:place] - found[:place]) for place, found in read.items()))
        if moved[-1] <= reader.bound(first, effect):
            return
    raise NotReadable(
        f"it looks ahead: logits move by {max(moved):.2g} when only later tokens change, so none would be a "
        "prediction; only causal language models, which read a text from left to right, are scored"
    )


def longest_mixed(reader: Reader, widest: int) -> int:
    """Most tokens, up to `widest`, of texts that a rotary embedding reads alike whatever the width of the batch."""
    [text, other] = reader.halves(2)
    tokens = torch.cat([text, other[:1]])[None]

    def last_at(position: int) -> torch.Tensor:
        positions = torch.cat([torch.arange(reader.half), torch.tensor([position])])
        return reader.read(tokens, position_ids=positions[None].to(tokens.device))[0, : reader.half]

    near = last_at(reader.half)
    bound = reader.bound(near)
    alike, different = reader.half, widest + 1
    if _largest(last_at(widest - 1) - near) <= bound:
        return widest
    while different - alike > 1:
        middle = (alike + different) // 2
        if _largest(last_at(middle - 1) - near) <= bound:
            alike = middle
        else:
            different = middle
    return alike


def reads_alike_when_padded(reader: Reader, widest: int) -> bool:
    """Whether a text is read as alone in front of padding up to `widest` tokens, and as before when that is over."""
    [text] = reader.halves(1)
    alone = reader.read(text[None])
    padded = reader.read(torch.nn.functional.pad(text, (0, widest - len(text)))[None])[:, : reader.half]
    again, bound = reader.read(text[None]), reader.bound(alone)
    if _largest(again - alone) > bound:
        raise NotReadable("what it makes of a text depends on how long a text it read before")
    return _largest(padded - alone) <= bound


def reads_alike_in_full_batch(reader: Reader, texts: int) -> bool:
    """Whether a text is read as alone behind `texts` others, all of one token, which fill one expert of a mixture."""
    [text] = reader.halves(1)
    others = text[:1].expand(texts, len(text))
    alone = reader.read(text[None])[0]
    return _largest(reader.read(torch.cat([others, text[None]]))[-1] - alone) <= reader.bound(alone)


def reads_alike_when_shared(
    reader: Reader, in_families: Callable[..., Iterator[torch.Tensor]], length: int
) -> bool | None:
    """Whether texts of `length` tokens are read as alone where they share what they begin with, in each way to do so.

    `in_families` (two texts (2, length), the length of their ends) yields their logits (2, length, n) for each way.
    None if these weights do not show it: no token depends on those in front of the last `half`.
    """
    half = min(reader.half, length // 2)
    if not half:
        return None
    [text, other] = reader.token_ids[
        torch.randint(len(reader.token_ids), (2, length - half), generator=reader.generator)
    ]
    end, other_end = reader.halves(2)[:, :half]
    rows = torch.stack([torch.cat([text, end]), torch.cat([text, other_end])])
    alone = torch.cat([reader.read(row[None]) for row in rows])
    effect = _largest(reader.read(torch.cat([other, end])[None])[0, -half:] - alone[0, -half:])
    bound = reader.bound(alone, effect)
    if not effect > bound:  # nor where it is NaN
        return None
    return all(_largest(found - alone) <= bound for found in in_families(rows, half))


@dataclass
class AlikeWhenShared:
    """Which texts that share a prompt are read as alone: shown up to `proven` tokens, not so above `longest`.

    And how many tokens a row of such texts may have: shown up to `proven_width`, not so above `widest`.
    """

    proven: int = 0
    longest: int = ANY_LENGTH
    proven_width: int = 0
    widest: int = ANY_LENGTH

    def families(
        self,
        plan: Callable[[int, int], list[Family]],
        size_of: Callable[[Family], tuple[int, int]],
        prove: Callable[[int, int], bool | None],
    ) -> list[Family]:
        """The families that `plan` makes of texts and rows of up to so many tokens, with the proof for the largest.

        `size_of` a family: tokens of its longest text and of its longest row. Where a proof fails, half is tried:
        attention may have a window, and it may count tokens in the row, not in the text.
        """
        while families := plan(self.longest, self.widest):
            length, width = map(max, zip(*map(size_of, families)))
            shown = length <= self.proven or prove(length, 0)
            is_narrow = not shown or width <= 2 * length
            if shown:
                self.proven = max(self.proven, length)
                shown = width <= self.proven_width or prove(length, width)
            if shown:
                self.proven_width = max(self.proven_width, width)
                return families
            if shown is None:
                return []
            if is_narrow:
                self.longest = length // 2 if length > 4 * HALF else 0
            else:
                self.widest = width // 2
        return []


def takes_positions(model: "PreTrainedModel") -> bool:
    """Whether the model may be told where each token of a text stands."""
    return "position_ids" in inspect.signature((body_of(model) or model).forward).parameters


def sharing_of(model: "PreTrainedModel", reader: Reader, widest: int, batch_tokens: int) -> tuple[Sharing, bool]:
    """As `prove`, also of texts of up to `widest` tokens in batches of `batch_tokens`, for kinds that need that."""
    own_code = model.is_custom_code()
    may_grow = has_growing_rope(model.config) or own_code
    sharing, conclusive = prove(reader)
    if may_grow and sharing.mixed_up_to and widest > reader.half:
        if takes_positions(model) and not own_code:
            sharing = sharing._replace(mixed_up_to=longest_mixed(reader, widest))
        elif not reads_alike_when_padded(reader, widest):
            sharing = sharing._replace(mixed_up_to=0)
    if own_code and not reads_alike_in_full_batch(reader, batch_tokens // (2 * reader.half) - 1):
        sharing = Sharing(0, equal_lengths=False)
    return sharing._replace(mixed_up_to=min(sharing.mixed_up_to, chosen_tokens(model.config))), conclusive


def ropes(config: "PretrainedConfig") -> list[dict]:
    """The parameters of each rotary embedding of a model: one for all layers, or one for each kind of layer."""
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [rope for rope in found.values() if isinstance(rope, dict)] or ([found] if found else [])


def has_growing_rope(config: "PretrainedConfig") -> bool:
    """Whether the frequencies of a rotary embedding may depend on the length of the text."""
    return any(rope.get("rope_type", "default") not in FIXED_ROPES for rope in ropes(config))


def chosen_tokens(config: "PretrainedConfig") -> int:
    """How many tokens sparse attention looks at (DeepSeek V3.2, GLM 5). Beyond, ties may depend on the batch."""
    return getattr(config.get_text_config(), "index_topk", None) or ANY_LENGTH


def attention_window(config: "PretrainedConfig") -> int:
    """The least number of tokens that any layer looks back, as far as the configuration tells."""
    return _least(config, WINDOWS)


def longest_row(config: "PretrainedConfig") -> int:
    """Most tokens of a row in which a token need not stand at its position, as far as the configuration tells."""
    return _least(config, ROWS)


def _least(config: "PretrainedConfig", names: Sequence[str]) -> int:
    found = (getattr(config.get_text_config(), name, None) for name in names)
    return min((value for value in found if isinstance(value, int) and value > 0), default=ANY_LENGTH)


def rope_reset(model: "PreTrainedModel") -> Callable[[], None]:
    """A function that makes rotary embeddings forget which texts they have seen: some keep frequencies that grew."""
    kept = [
        (module, dict(vars(module)), dict(module._buffers))
        for module in model.modules()
        if any("inv_freq" in name for name in module._buffers)
    ]

    def reset() -> None:
        for module, attributes, buffers in kept:
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)

    return reset


def text_tokens(config: "PretrainedConfig", vocabulary: int) -> np.ndarray:
    """Ids below `vocabulary` that no key of the configuration calls special, as those that stand for images are."""
    special = [value for value in _special(config.to_dict()) if isinstance(value, int)]
    found = np.setdiff1d(np.arange(vocabulary), special)
    return found if len(found) else np.arange(vocabulary)


def _special(config: dict) -> Iterator[object]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _special(value)
        elif str(key).endswith(("token_id", "token_ids", "token_index")):
            yield from value if isinstance(value, Sequence) else [value]


def _largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()
