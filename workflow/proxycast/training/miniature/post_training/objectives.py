"""The losses of post-training, all of the log-probabilities of what was written after a prompt."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from proxycast.training.miniature.post_training.worked_solutions import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def written_log_probs(model: "PreTrainedModel", batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probability (batch, length - 1) of each written token, given all before it; 0 for prompts and padding.

    `temperature` divides the logits: the policy that texts were drawn from. Logits are made for written tokens only.
    """
    is_written, targets = batch.is_written[:, 1:], batch.token_ids[:, 1:]
    hidden = model.base_model(input_ids=batch.token_ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.get_output_embeddings()(hidden[is_written]) / temperature  # (written tokens, vocabulary)
    log_probs = -F.cross_entropy(logits, targets[is_written], reduction="none")
    return torch.zeros(targets.shape).masked_scatter(is_written, log_probs)


def supervised_loss(log_probs: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy (nats) of the tokens that were written after a prompt."""
    return -log_probs.sum() / batch.is_written.sum()


def group_advantages(rewards: Tensor) -> Tensor:
    """(r - mean) / sd within each row of rewards (questions, samples); 0 where all samples of a question are alike.

    Shao et al. 2024 (arXiv 2402.03300), section 4.1.2, outcome supervision. `sd` is that of the group itself.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    sd = rewards.std(dim=1, correction=0, keepdim=True)
    return torch.where(sd > 0, centred / sd.clamp_min(torch.finfo(rewards.dtype).tiny), 0.0)


def policy_loss(log_probs: Tensor, batch: Batch, advantages: Tensor, samples: int) -> Tensor:
    """Its gradient is that of Shao et al. 2024, equation 3, on-policy and without the KL term.

    The mean over a text's tokens of advantage x log-probability, and of these over all `samples` of a step; those with
    advantage 0 may be left out of the batch. `advantages` (batch).
    """
    of_texts = log_probs.sum(dim=1) / batch.is_written.sum(dim=1)
    return -(advantages * of_texts).sum() / samples


def preference_loss(right: Tensor, wrong: Tensor, right_before: Tensor, wrong_before: Tensor, beta: float) -> Tensor:
    """-ln sigmoid(beta ((right - right_before) - (wrong - wrong_before))), the mean over pairs.

    Rafailov et al. 2023 (arXiv 2305.18290), equation 7; log-probabilities (pairs) of whole texts by the model, and by
    the starting model (`before`).
    """
    return -F.logsigmoid(beta * ((right - right_before) - (wrong - wrong_before))).mean()
