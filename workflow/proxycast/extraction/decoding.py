"""The tokens that a model of transformers writes after texts: the likeliest, or drawn by a seed for each text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from proxycast.config.extraction import SamplingOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

STOP_CHECK_STEPS = 8  # between two looks whether all texts of a batch have met a stop string


def continue_texts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    token_ids: torch.Tensor,
    max_new_tokens: int,
    stop: Sequence[str],
    ends: list[int],
    processors: list[Callable],
) -> list[list[int]]:
    """The tokens that follow `token_ids` (b, T): up to one of `ends`, at most a few behind a `stop` string.

    `processors` change the logits, of which the largest decides.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    length = token_ids.shape[1]

    def stopped(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        if stop and (ids.shape[1] - length) % STOP_CHECK_STEPS == 0:
            texts = tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
            done |= torch.tensor([any(end in text for end in stop) for text in texts], device=ids.device)
        return done

    output = model.generate(
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
    """A logits processor that makes greedy decoding draw at random, each text by its own seed.

    The argmax of log p + g, with g = -ln(e) and e exponential, is a draw from p (the Gumbel-max trick: Gumbel,
    Statistical Theory of Extreme Values, 1954). p is the model's at `temperature`, cut to `top_p`.
    """

    def __init__(self, options: SamplingOptions, seeds: Sequence[int], device: torch.device):
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self._warpers = [TemperatureLogitsWarper(options.temperature)]
        if options.top_p < 1:  # else it sorts the tokens to keep them all
            self._warpers.append(TopPLogitsWarper(options.top_p))
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, token_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """`logits` (b, V) of the next token."""
        for warp in self._warpers:
            logits = warp(token_ids, logits)
        noise = torch.empty_like(logits)
        for row, generator in zip(noise, self._generators):
            row.exponential_(generator=generator)
        return logits - noise.log_()
