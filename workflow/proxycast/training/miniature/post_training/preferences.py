"""Direct preference optimisation on pairs of a right and a wrong solution that the starting model wrote itself."""

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import torch

from proxycast.config.post_training_options import Preferences
from proxycast.training.miniature.leaks import holding_questions
from proxycast.training.miniature.post_training.fine_tuning import Descent, shuffled_batches
from proxycast.training.miniature.post_training.objectives import preference_loss, written_log_probs
from proxycast.training.miniature.post_training.text_sampling import sample_solutions
from proxycast.training.miniature.post_training.worked_solutions import (
    Example,
    SolutionTokens,
    documents_of,
    is_right,
    padded,
    prompt_of,
)
from proxycast.training.miniature.step_problems import StepProblem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS_OF_A_PASS = 128


class Pair(NamedTuple):
    """A right and a wrong solution of one question."""

    right: Example
    wrong: Example


class Sampled(NamedTuple):
    """What a model wrote after the prompts of problems. `texts`: with their prompts; `right_share` of all of them."""

    pairs: list[Pair]
    right_share: float
    differing_share: float  # of the questions, that have right samples and wrong ones
    dropped: int  # texts that hold a question of the benchmark; they are in no pair
    texts: list[str]


def sample_pairs(
    model: "PreTrainedModel",
    problems: Sequence[StepProblem],
    tokens: SolutionTokens,
    options: Preferences,
    questions: Sequence[str],
    seed: int,
) -> Sampled:
    """A pair for each problem: the first right sample and the first wrong one.

    Where all samples are wrong, the generator's solution stands for the right one. Where none is, there is no pair.
    `questions`: the benchmark's.
    """
    asked = [problem for problem in problems for _ in range(options.samples)]
    prompts = tokens.prompts(list(map(prompt_of, asked)))
    longest = tokens.longest(problems)
    written = sample_solutions(model, prompts, options.temperature, longest, tokens, seed)
    said = [tokens.text(ids) for ids in written]
    rights = [is_right(problem, text) for problem, text in zip(asked, said, strict=True)]
    texts = [prompt_of(problem) + text for problem, text in zip(asked, said, strict=True)]
    is_dropped = holding_questions(texts, questions)
    pairs, differing = [], 0
    for number, own in enumerate(tokens.examples(documents_of(problems))):
        group = range(number * options.samples, (number + 1) * options.samples)
        group = [place for place in group if not is_dropped[place]]
        right = next((written[place] for place in group if rights[place]), None)
        wrong = next((written[place] for place in group if not rights[place]), None)
        differing += right is not None and wrong is not None
        if wrong is not None:
            pairs.append(Pair(Example(own.prompt, right or own.written), Example(own.prompt, wrong)))
    kept = [text for text, is_out in zip(texts, is_dropped, strict=True) if not is_out]
    return Sampled(pairs, sum(rights) / len(rights), differing / len(problems), sum(is_dropped), kept)


def prefer(
    descent: Descent,
    pairs: Sequence[Pair],
    options: Preferences,
    batch: int,
    end: int,
    random: Random,
    tick: Callable[[], object],
) -> tuple[float, float]:
    """Make right solutions likelier than wrong ones; the mean loss (nats a pair) of the first and the last steps."""
    with torch.no_grad():
        before = torch.cat(
            [
                _of_pairs(descent.model, pairs[start : start + TEXTS_OF_A_PASS], end)
                for start in range(0, len(pairs), TEXTS_OF_A_PASS)
            ],
            dim=1,
        )
    for places in shuffled_batches(len(pairs), min(batch, len(pairs)), descent.steps, random):
        now = _of_pairs(descent.model, [pairs[place] for place in places], end)
        descent.step(preference_loss(*now, *before[:, places], options.beta))
        tick()
    return descent.end()


def _of_pairs(model: "PreTrainedModel", pairs: Sequence[Pair], end: int) -> torch.Tensor:
    """Log-probabilities (2, pairs) of the right and the wrong texts."""
    batch = padded([pair.right for pair in pairs] + [pair.wrong for pair in pairs], end)
    return written_log_probs(model, batch).sum(dim=1).view(2, -1)
