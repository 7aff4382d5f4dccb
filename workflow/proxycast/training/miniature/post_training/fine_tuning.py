"""Gradient steps of post-training, and supervised fine-tuning, which is nothing but them."""

import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proxycast.options import InputError
from proxycast.training.miniature.post_training.objectives import supervised_loss, written_log_probs
from proxycast.training.miniature.post_training.worked_solutions import Example, padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOOK = 10  # steps whose losses are averaged for the table and for divergence
FAR = 2.0  # nats; a loss so far above that of the first step is no noise
ADAM_BETAS = (0.9, 0.95)
LARGEST_GRADIENT = 1.0  # norm; longer ones are cut to it


class Descent:
    """AdamW on a model, with a rate that falls to 0 on a line, and a watch for losses that leave all bounds."""

    def __init__(self, model: "PreTrainedModel", steps: int, learning_rate: float, named: str):
        """`named`: run and recipe, for errors."""
        self.model, self.steps, self.learning_rate, self.named = model, steps, learning_rate, named
        self.losses: list[float] = []
        self._adam = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=ADAM_BETAS, weight_decay=0.0, fused=True
        )

    def step(self, loss: Tensor, number: int | None = None) -> None:
        """One step down the loss; its `number` from 0, where steps are left out. Raises InputError for divergence."""
        self._watch(loss.item())
        number = len(self.losses) - 1 if number is None else number
        for group in self._adam.param_groups:
            group["lr"] = self.learning_rate * (1 - number / self.steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        self._adam.step()
        self._adam.zero_grad()

    def end(self) -> tuple[float, float]:
        """The mean loss of the first and of the last steps. Raises InputError for weights that are not finite."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise self._diverged("weights that are not finite")
        look = max(1, min(LOOK, len(self.losses) // 2))
        return sum(self.losses[:look]) / look, sum(self.losses[-look:]) / look

    def _watch(self, loss: float) -> None:
        self.losses.append(loss)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss {loss:g}")
        recent = self.losses[-LOOK:]
        if len(recent) == LOOK and (mean := sum(recent) / LOOK) > self.losses[0] + FAR:
            raise self._diverged(f"a loss of {mean:.3g}, which was {self.losses[0]:.3g} at the first step,")

    def _diverged(self, what: str) -> InputError:
        run, recipe = self.named.rsplit(" ", 1)
        return InputError(
            f"{run}: the recipe {recipe} diverged: found {what} at step {len(self.losses)} of {self.steps}; lower "
            f"miniature.post_training.{recipe}.learning_rate, which is {self.learning_rate:g}"
        )


def shuffled_batches(count: int, size: int, steps: int, random: Random) -> Iterator[list[int]]:
    """`steps` batches of places below `count`: all of them in a new order, again and again."""
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < size:
            waiting += random.sample(range(count), count)
        yield waiting[:size]
        waiting = waiting[size:]


def fine_tune(
    descent: Descent, examples: Sequence[Example], batch: int, end: int, random: Random, tick: Callable[[], object]
) -> tuple[float, float]:
    """Learn to write what stands after each prompt; the mean loss (nats a token) of the first and the last steps."""
    for places in shuffled_batches(len(examples), batch, descent.steps, random):
        found = padded([examples[place] for place in places], end)
        descent.step(supervised_loss(written_log_probs(descent.model, found), found))
        tick()
    return descent.end()
