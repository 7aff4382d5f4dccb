"""Reinforcement learning from verifiable rewards: right answers that the model writes are made likelier than wrong."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from proxycast.config.post_training_options import PolicyGradient
from proxycast.training.miniature.leaks import holding_questions
from proxycast.training.miniature.post_training.fine_tuning import LOOK, Descent
from proxycast.training.miniature.post_training.objectives import group_advantages, policy_loss, written_log_probs
from proxycast.training.miniature.post_training.text_sampling import sample_solutions
from proxycast.training.miniature.post_training.worked_solutions import (
    Example,
    SolutionTokens,
    is_right,
    padded,
    prompt_of,
)
from proxycast.training.miniature.step_problems import StepProblem


class Rewarded(NamedTuple):
    """How a run of the policy gradient went; `texts` are the prompts with what was written after them."""

    loss_first: float
    loss_last: float
    reward_first: float  # mean over the first steps
    reward_last: float
    differing_share: float  # of the groups of samples, whose rewards differ: only they teach anything
    dropped: int  # texts that hold a question of the benchmark; nothing is learned from them
    texts: list[str]


def follow_rewards(
    descent: Descent,
    problems: Sequence[StepProblem],
    tokens: SolutionTokens,
    options: PolicyGradient,
    questions: Sequence[str],
    seed: int,
    tick: Callable[[], object],
) -> Rewarded:
    """Policy gradient with group-relative advantage (`group_advantages`), on-policy.

    `problems`: those of all steps, one after the other; `questions`: the benchmark's. The reward of a text is 1 for the
    right answer, else 0.
    """
    longest, means, differing, dropped, kept = tokens.longest(problems), [], [], 0, []
    for step in range(options.steps):
        asked = problems[step * options.questions : (step + 1) * options.questions]
        asked = [problem for problem in asked for _ in range(options.samples)]
        prompts = tokens.prompts(list(map(prompt_of, asked)))
        written = sample_solutions(descent.model, prompts, options.temperature, longest, tokens, seed + step)
        said = [tokens.text(ids) for ids in written]
        rewards = torch.tensor([float(is_right(problem, text)) for problem, text in zip(asked, said, strict=True)])
        advantages = group_advantages(rewards.view(-1, options.samples))
        means.append(rewards.mean().item())
        differing.append((advantages != 0).any(dim=1).float().mean().item())
        texts = [prompt_of(problem) + text for problem, text in zip(asked, said, strict=True)]
        is_dropped = holding_questions(texts, questions)
        dropped += sum(is_dropped)
        kept += [text for text, is_out in zip(texts, is_dropped, strict=True) if not is_out]
        advantages = advantages.flatten().masked_fill(torch.tensor(is_dropped), 0.0)
        teaching = advantages.nonzero().flatten().tolist()
        if teaching:
            batch = padded([Example(prompts[place], written[place]) for place in teaching], tokens.end)
            log_probs = written_log_probs(descent.model, batch, options.temperature)
            descent.step(policy_loss(log_probs, batch, advantages[teaching], len(asked)), step)
        tick()
    look = max(1, min(LOOK, options.steps // 2))
    rewards = sum(means[:look]) / look, sum(means[-look:]) / look
    losses = descent.end() if descent.losses else (0.0, 0.0)
    return Rewarded(*losses, *rewards, sum(differing) / len(differing), dropped, kept)
