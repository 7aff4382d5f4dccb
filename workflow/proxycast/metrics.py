"""Tells by a metric's name whether it is a share of problems, and whether less is better.

A share must lie in 0 to 1: percentages among fractions would give a wrong order. For other metrics except losses, a gap
between the values reveals two units (`mixed_units`).
"""

import re
from collections.abc import Iterable

import polars as pl

EXACT_MATCH = "exact_match"  # share of problems with the right greedy text, 0 to 1
SAMPLED_EXACT_MATCH = "sampled_exact_match"  # mean over problems of the share of right texts among drawn ones, 0 to 1

SHARE_WORDS = {"acc", "accuracy", "accuracies", "em", "exactmatch", "pass", "rate", "share", "fraction", "solved"}
SHARE_WORDS |= {"auc", "auroc", "f1", "precision", "recall"}
SHARE_NAMES = {"primary_metric", EXACT_MATCH}  # the first: DataDecide's accuracy
LOSS_WORDS = {"bpb", "bpc", "brier", "cer", "crossentropy", "ece", "logloss", "loss", "losses", "mae", "mse", "nll"}
LOSS_WORDS |= {"perplexity", "ppl", "rmse", "ter", "wer", "xent"}
LOSS_NAMES = {"bits_per_byte", "bits_per_character", "bits_per_token", "bits_per_word", "cross_entropy"}
LOSS_NAMES |= {
    "kl_divergence",
    "log_loss",
    "log_perplexity",
    "log_ppl",
    "negative_log_likelihood",
    "neg_log_likelihood",
}
ERROR_WORDS = {"err", "error", "errors", "failure", "failures", "fnr", "fpr", "miss", "misses"}
ERROR_NAMES = {"false_positive", "false_negative"}
# Often given in percent; other losses, and perplexities, may differ by any factor.
LOSSES_IN_PERCENT = {"brier", "cer", "ece", "ter", "wer"}
# A metric with such a word in its name is a function of a share or an error, with its own range and direction.
TRANSFORMED = {"delta", "difference", "gain", "inverse", "log", "logit", "minus", "neg", "negative", "percent", "pct"}
TRANSFORMED |= {"percentage", "rank", "ratio", "reduction"}
ROUNDING = 1e-6  # a mean of values in 32 bits may be off by some 1e-7
GAP = 20  # smallest factor between the least percentage and the greatest fraction


def _says(metric: str, words: set[str], names: set[str]) -> bool:
    """Whether the metric's name contains one of `names` or of `words`, and nothing that reverses its meaning."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", metric)  # valLoss
    text = f"_{'_'.join(re.findall(r'[a-z0-9]+', apart.lower()))}_"
    named = [name for name in names if f"_{name}_" in text]
    for name in named:
        text = text.replace(f"_{name}_", "_")
    own = text.split("_")
    return TRANSFORMED.isdisjoint(own) and (bool(named) or not words.isdisjoint(own))


def is_share(metric: str) -> bool:
    """Whether the metric is a share of problems, 0 to 1: an accuracy, an exact match, a rate."""
    return _says(metric, SHARE_WORDS, SHARE_NAMES)


def is_loss(metric: str) -> bool:
    """Whether the metric is a loss or a perplexity, whose values may differ by any factor."""
    return _says(metric, LOSS_WORDS, LOSS_NAMES)


def is_unbounded(metric: str) -> bool:
    """Whether values of the metric may differ by any factor, so a large factor is no sign of two units."""
    return is_loss(metric) and not _says(metric, LOSSES_IN_PERCENT, set())


def is_error(metric: str) -> bool:
    """Whether the name says that less is better: a loss, a perplexity, an error."""
    return is_loss(metric) or _says(metric, ERROR_WORDS, ERROR_NAMES)


def outside_share(value: pl.Expr) -> pl.Expr:
    """Whether a value is no share. Nulls and rounding beyond 0 or 1 are allowed."""
    return ~value.is_between(-ROUNDING, 1 + ROUNDING).fill_null(True)


def about_share(metric: str, value: float) -> str:
    """The part of a message that says what value is expected."""
    percent = f" ({value:g} % is {value / 100:g})" if 1 < value <= 100 else ""
    return f"{metric} is a share of problems and must lie in 0 to 1{percent}"


def mixed_units(values: Iterable[float]) -> tuple[float, float] | None:
    """The greatest fraction and the least percentage, if the values look like a mix of both; else None.

    They do if some lie in 0 to 1, the others up to 100, and a factor of `GAP` separates the two groups: comparable
    models do not leave such a gap. 0 is ignored, because it is the same in both units.
    """
    positive = sorted(value for value in values if value > 0)
    small, large = [v for v in positive if v <= 1], [v for v in positive if v > 1]
    if small and large and large[-1] <= 100 and large[0] >= GAP * small[-1]:
        return small[-1], large[0]
    return None
