"""Texts that are drawn at random, each by its own seed, as a logits processor of transformers."""

from collections.abc import Sequence

import torch

from proxycast.config.extraction import SamplingOptions


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
