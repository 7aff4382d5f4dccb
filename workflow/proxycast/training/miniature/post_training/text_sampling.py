"""What a model writes after prompts: drawn token by token with a cache of keys and values, many texts at a time."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from proxycast.config.training import CONTEXT
from proxycast.training.miniature.post_training.worked_solutions import SolutionTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS_AT_A_TIME = 256


def sample_solutions(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    temperature: float,
    most_tokens: int,
    tokens: SolutionTokens,
    seed: int,
) -> list[list[int]]:
    """The token ids that are drawn after each prompt, at most `most_tokens`, up to the end of the first sentence.

    The seed decides all of them together: the same prompts in the same order give the same texts.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, len(prompts), TEXTS_AT_A_TIME):
        batch = prompts[start : start + TEXTS_AT_A_TIME]
        found += _sample_batch(model, batch, temperature, most_tokens, tokens.ends, generator)
    return list(map(tokens.first_sentence, found))


@torch.no_grad()
def _sample_batch(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    temperature: float,
    most_tokens: int,
    ends: Collection[int],
    generator: torch.Generator,
) -> list[list[int]]:
    from transformers import DynamicCache

    width = max(map(len, prompts))
    token_ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    is_text = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (is_text.cumsum(1) - 1).clamp_min(0)
    rows, written = list(range(len(prompts))), [[] for _ in prompts]
    cache = DynamicCache(config=model.config)
    for _ in range(min(most_tokens, CONTEXT - width)):
        logits = model(
            input_ids=token_ids, attention_mask=is_text, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits[:, -1]
        token_ids = _draw((logits / temperature).softmax(dim=-1), generator)
        for row, token in zip(rows, token_ids[:, 0].tolist(), strict=True):
            written[row].append(token)
        going_on = [place for place, row in enumerate(rows) if written[row][-1] not in ends]
        if not going_on:
            break
        if len(going_on) <= len(rows) // 2:  # the others would be computed for nothing
            kept = torch.tensor(going_on)
            cache.batch_select_indices(kept)
            rows = [rows[place] for place in going_on]
            token_ids, is_text, positions = token_ids[kept], is_text[kept], positions[kept]
        is_text = torch.cat([is_text, torch.ones_like(token_ids)], dim=1)
        positions = positions[:, -1:] + 1
    found = []
    for ids in written:  # some went on, as others in the batch did
        last = next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))
        found.append(ids[:last])
    return found


def _draw(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A token (batch, 1) by the inverse of each row's distribution function, much faster than torch.multinomial."""
    cumulative = probabilities.cumsum(dim=-1)
    drawn = torch.rand(len(probabilities), 1, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, drawn, right=True).clamp_max(probabilities.shape[-1] - 1)
