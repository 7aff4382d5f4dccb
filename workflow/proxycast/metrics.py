"""Downstream metrics by their names: which are shares of problems, and of which less is better.

A share is told by the words of its name, and must lie in 0 to 1: percent beside fractions would order nothing as the
models do. Of any other metric but losses, values in two units are told by the gap between them (`mixed_units`).
"""

import re
from collections.abc import Iterable

import polars as pl

SHARE_WORDS = {"acc", "accuracy", "accuracies", "em", "exactmatch", "pass", "rate", "share", "fraction", "solved"}
SHARE_WORDS |= {"auc", "auroc", "f1", "precision", "recall"}
SHARE_NAMES = {"primary_metric", "exact_match"}  # the first: DataDecide's accuracy
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
# A metric with such a word in its name is a function of a share, or of an error, whose range and direction are its own.
TRANSFORMED = {"delta", "difference", "gain", "inverse", "log", "logit", "minus", "neg", "negative", "percent", "pct"}
TRANSFORMED |= {"percentage", "rank", "ratio", "reduction"}
ROUNDING = 1e-6  # a mean of values in 32 bits may be off by some 1e-7
GAP = 20  # percent beside fractions: the least percentage is that much larger than the greatest fraction


def _says(metric: str, words: set[str], names: set[str]) -> bool:
    """Whether the metric's name holds one of `names` or of `words`, and nothing that would turn its meaning."""
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
    """Whether values of the metric may differ by any factor: such a factor does not tell of two units."""
    return is_loss(metric) and not _says(metric, LOSSES_IN_PERCENT, set())


def is_error(metric: str) -> bool:
    """Whether the name says that less is better: a loss, a perplexity, an error."""
    return is_loss(metric) or _says(metric, ERROR_WORDS, ERROR_NAMES)


def outside_share(value: pl.Expr) -> pl.Expr:
    """Whether a value that is there is none of a share; what rounding adds to 0 or 1 is forgiven."""
    return ~value.is_between(-ROUNDING, 1 + ROUNDING).fill_null(True)


def about_share(metric: str, value: float) -> str:
    """What would be right in the place of such a value."""
    percent = f" ({value:g} % is {value / 100:g})" if 1 < value <= 100 else ""
    return f"{metric} is a share of problems and must lie in 0 to 1{percent}"


def mixed_units(values: Iterable[float]) -> tuple[float, float] | None:
    """The greatest fraction and the least percentage, where the values look like fractions beside percent; else None.

    Some lie in 0 to 1, the others up to 100, and between the two is a gap of the factor `GAP`, as models that are
    compared leave none. 0 is the same in both units.
    """
    positive = sorted(value for value in values if value > 0)
    small, large = [v for v in positive if v <= 1], [v for v in positive if v > 1]
    if small and large and large[-1] <= 100 and large[0] >= GAP * small[-1]:
        return small[-1], large[0]
    return None
