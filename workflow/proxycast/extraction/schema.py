"""What is kept of a model's next-token distribution at each scored token. Importing this imports no torch."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from torch import Tensor


class TokenStats(NamedTuple):
    """What is kept of each position's distribution over V tokens; six tensors of shape (n,).

    logprob, max_logprob, second_logprob: natural logarithms of the probability of the expert's token, of the most
    probable token and of the next one (equal to the first when tied). entropy: nats, exact. n_greater: tokens with a
    strictly greater logit than the expert's; n_equal: tokens with the same logit, itself included.
    """

    logprob: "Tensor"
    max_logprob: "Tensor"
    second_logprob: "Tensor"
    entropy: "Tensor"
    n_greater: "Tensor"
    n_equal: "Tensor"


# What an engine returns for each scored token. `position`: index of the token in its sequence; `bytes`: UTF-8 bytes of
# the continuation that the token covers; log-probabilities and entropy in nats; `n_equal` counts the token itself;
# `vocabulary`: number of logits.
TOKEN_STATS_SCHEMA = {
    "key": pl.String,
    "position": pl.Int32,
    "token": pl.Int32,
    "bytes": pl.Int32,
    "logprob": pl.Float32,
    "max_logprob": pl.Float32,
    "second_logprob": pl.Float32,
    "entropy": pl.Float32,
    "n_greater": pl.Int32,
    "n_equal": pl.Int32,
    "vocabulary": pl.Int32,
}

_TEMPERED = "logprob_at_"


def tempered_schema(temperatures: Iterable[float]) -> dict[str, type[pl.DataType]]:
    """What a table has beside TOKEN_STATS_SCHEMA: the `logprob` of softmax(logits / T) for each temperature T, nats.

    A column for each, so that a table tells its temperatures by itself.
    """
    return {f"{_TEMPERED}{float(temperature)!r}": pl.Float32 for temperature in temperatures}


def temperatures_of(columns: Iterable[str]) -> list[float]:
    """The temperatures of a table with these columns, in their order."""
    return [float(name.removeprefix(_TEMPERED)) for name in columns if name.startswith(_TEMPERED)]
