"""Token statistics -> proxies: ten core statistics x eight weightings, as polars expressions.

At each scored position t a candidate has a distribution p_t over V tokens, and y_t is the expert's token. A *proxy* is
a pair (statistic s, weighting w). A solution's value is sum(w s) / sum(w) over its scored tokens; a task's value is the
mean over its solutions, so that a long solution counts as much as a short one. `STATISTICS` and `WEIGHTINGS` define
the method; the code below them only aggregates.

Weights that sum to zero over a solution (`expert_disagreement` where every p_t(y_t) is exactly 1, `entropy` where every
H is exactly 0) leave the quotient undefined. The value is then the uniform mean: the limit of the quotient when equal
weights go to zero together. So a proxy is never NaN.
"""

import math
from dataclasses import dataclass
from typing import Literal

import polars as pl
from pydantic import Field

from proxycast.options import InputError, Options


class ProxyOptions(Options):
    """Details of the proxies that the paper leaves open."""

    rank_ties: Literal["mean", "best", "worst"] = Field(
        "mean",
        description="Rank of the expert's token among tokens of equal logit: 1 + #greater + (#equal - 1) / 2 (mean), "
        "1 + #greater (best) or #greater + #equal (worst). Unit: rank, 1 is best.",
    )
    inverse_entropy_offset: float = Field(
        1.0, gt=0, description="c in the weight 1 / (c + H) of `inverse_entropy`. Unit: nats."
    )
    token_frequency_scope: Literal["task", "study"] = Field(
        "task",
        description="Scored tokens in which f(y_t), the relative frequency of a token, is counted: of one task or of "
        "all tasks.",
    )
    gaussian_scope: Literal["task", "solution"] = Field(
        "task",
        description="Scored tokens whose mean and deviation of nll are mu and sigma of `gaussian_nll`.",
    )


@dataclass(frozen=True)
class Statistic:
    """What is measured at a token. `sign`: +1 if higher is better, -1 if lower is better; fixed in advance."""

    expression: pl.Expr
    formula: str
    sign: Literal[1, -1]


@dataclass(frozen=True)
class Weighting:
    """The weight of a token. A weight that depends on the candidate's own distribution can invert a ranking."""

    expression: pl.Expr
    formula: str
    depends_on_candidate: bool


@dataclass(frozen=True)
class Baseline:
    """A ratio of sums over all scored tokens of a task. `sign` as in `Statistic`."""

    numerator: pl.Expr
    denominator: pl.Expr
    formula: str
    sign: Literal[1, -1]


# Columns that `_with_token_columns` prepares.
_p, _p_max, _nll, _entropy = pl.col("p"), pl.col("p_max"), pl.col("nll"), pl.col("entropy")
_rank, _frequency, _mu, _sigma, _c = pl.col("rank"), pl.col("frequency"), pl.col("mu"), pl.col("sigma"), pl.col("c")
_log_vocabulary = pl.col("vocabulary").cast(pl.Float64).log()
# The expert's token is the argmax if no token is above it, for every rank_ties: then max p = p(y).
_is_argmax = pl.col("n_greater") == 0
_gaussian = (-((_nll - _mu) ** 2) / (2 * _sigma**2)).exp()

STATISTICS: dict[str, Statistic] = {
    "cross_entropy": Statistic(_nll, "-ln p_t(y_t), nats", -1),
    "top1_accuracy": Statistic((_rank <= 1).cast(pl.Float64), "1 if rank_t <= 1 else 0", +1),
    "top2_accuracy": Statistic((_rank <= 2).cast(pl.Float64), "1 if rank_t <= 2 else 0", +1),
    "top3_accuracy": Statistic((_rank <= 3).cast(pl.Float64), "1 if rank_t <= 3 else 0", +1),
    "top5_accuracy": Statistic((_rank <= 5).cast(pl.Float64), "1 if rank_t <= 5 else 0", +1),
    "normalized_entropy": Statistic(_entropy / _log_vocabulary, "H(p_t) / ln V", -1),
    "expert_rank": Statistic(_rank, "rank_t, 1 is best", -1),
    "reciprocal_rank": Statistic(1 / _rank, "1 / rank_t", +1),
    "margin": Statistic(_p_max - _p, "max_v p_t(v) - p_t(y_t)", -1),
    "wrong_confidence": Statistic(
        pl.when(_is_argmax).then(0.0).otherwise(_p_max), "max_v p_t(v) if argmax != y_t else 0", -1
    ),
}

WEIGHTINGS: dict[str, Weighting] = {
    "uniform": Weighting(pl.lit(1.0), "1", False),
    "expert_probability": Weighting(_p, "p_t(y_t)", True),
    "expert_disagreement": Weighting(1 - _p, "1 - p_t(y_t)", True),
    "entropy": Weighting(_entropy, "H(p_t)", True),
    "inverse_entropy": Weighting(1 / (_c + _entropy), "1 / (c + H(p_t)), c = inverse_entropy_offset", True),
    "token_frequency": Weighting(_frequency, "f(y_t)", False),
    "inverse_token_frequency": Weighting(1 / _frequency, "1 / f(y_t)", False),
    # Depends on the candidate through nll, mu and sigma, although the paper does not mark it.
    "gaussian_nll": Weighting(
        pl.when(_sigma == 0).then(1.0).otherwise(_gaussian), "exp(-(nll_t - mu)^2 / (2 sigma^2)), 1 if sigma = 0", True
    ),
}

BASELINES: dict[str, Baseline] = {
    "expert_cross_entropy": Baseline(_nll, pl.lit(1.0), "sum of nll / tokens, nats", -1),
    "bits_per_byte": Baseline(_nll / math.log(2), pl.col("bytes"), "sum of nll / ln 2 / bytes", -1),
}
RBRIDGE = "rbridge"  # a baseline of its own form, see `solution_rbridge`; lower is better
# The same of softmax(logits / T), with one T a checkpoint. They need the column `TEMPERED_LOGPROB` of token statistics,
# which `extraction.temperature_fit` adds.
TEMPERED_LOGPROB = "tempered_logprob"
_tempered_nll = -pl.col(TEMPERED_LOGPROB)
TEMPERED: dict[str, Baseline] = {
    "tempered_cross_entropy": Baseline(_tempered_nll, pl.lit(1.0), "expert_cross_entropy of softmax(logits / T)", -1),
    "tempered_bits_per_byte": Baseline(
        _tempered_nll / math.log(2), pl.col("bytes"), "bits_per_byte of softmax(logits / T)", -1
    ),
}
BASELINE_SIGNS = {name: baseline.sign for name, baseline in (BASELINES | TEMPERED).items()} | {RBRIDGE: -1}
SIGNS = {name: statistic.sign for name, statistic in STATISTICS.items()} | BASELINE_SIGNS
SIGNS |= {"generic_cross_entropy": -1, "generic_bits_per_byte": -1}  # the same, of the generic text

_RANK = {
    "mean": 1 + pl.col("n_greater") + (pl.col("n_equal") - 1) / 2,
    "best": 1 + pl.col("n_greater"),
    "worst": pl.col("n_greater") + pl.col("n_equal"),
}
_TASK = ["checkpoint", "task"]
_SOLUTION = ["checkpoint", "task", "solution"]
_EXPERTS = ["task", "solution"]
_EQUAL_WEIGHTS = 1e-9  # difference of probabilities; rounding errors of sums over thousands of bytes are far smaller


def proxy_name(statistic: str, weighting: str) -> str:
    """statistic/weighting; of a baseline, which has the weighting "none", the statistic alone."""
    return statistic if weighting == "none" else f"{statistic}/{weighting}"


def tails(token_stats: pl.LazyFrame, tail_tokens: int, tail_bytes: int | pl.Expr | None) -> dict[str, pl.LazyFrame]:
    """Scored tokens of each tail, by name, from statistics that hold both.

    "tokens": the last `tail_tokens` tokens. "bytes", if `tail_bytes` is given: the tokens that reach into the last
    `tail_bytes` bytes of the solution, that is, are followed by fewer bytes.
    """
    if tail_bytes is None:
        return {"tokens": token_stats}
    tokens_behind = (pl.col("position").max() - pl.col("position")).over(_SOLUTION)
    return {
        "tokens": token_stats.filter(tokens_behind < tail_tokens),
        "bytes": token_stats.filter(_bytes_behind(_SOLUTION) < tail_bytes),
    }


def ratios_of(token_stats: pl.LazyFrame) -> dict[str, Baseline]:
    """`BASELINES`, and `TEMPERED` where the statistics have a fitted temperature."""
    return BASELINES | (TEMPERED if TEMPERED_LOGPROB in token_stats.collect_schema().names() else {})


def solution_proxies(token_stats: pl.LazyFrame, options: ProxyOptions) -> pl.LazyFrame:
    """All 80 proxies of every solution: checkpoint, task, solution, statistic, weighting, value (Float64), tokens.

    `token_stats` must hold all scored tokens of a checkpoint, because f, mu and sigma are taken over them. Its rows are
    read at once, to refuse impossible values (`InputError`), and again when the result is collected. With
    `collect(engine="streaming")` only the result must fit into memory, not the tokens.
    """
    _refuse_bad_rows(token_stats)
    proxies = [(s, w) for s in STATISTICS for w in WEIGHTINGS]
    # Make literals columns before summing: the sum of a literal over a group is the literal itself.
    columns = _with_token_columns(token_stats, options).select(
        *_SOLUTION,
        *(statistic.expression.alias(f"s {s}") for s, statistic in STATISTICS.items()),
        *(weighting.expression.alias(f"w {w}") for w, weighting in WEIGHTINGS.items()),
    )
    sums = columns.group_by(_SOLUTION).agg(
        *(pl.col(f"w {w}").sum() for w in WEIGHTINGS),
        *((pl.col(f"w {w}") * pl.col(f"s {s}")).sum().alias(f"{s}/{w}") for s, w in proxies),
        tokens=pl.len(),
    )
    quotients = [
        pl.when(pl.col(f"w {w}") > 0)
        .then(pl.col(f"{s}/{w}") / pl.col(f"w {w}"))
        .otherwise(pl.col(f"{s}/uniform") / pl.col("w uniform"))
        for s, w in proxies
    ]
    # Lists and explode, not unpivot: the streaming engine keeps the order of the rows.
    return (
        sums.sort(_SOLUTION)
        .select(
            *_SOLUTION,
            statistic=pl.lit([s for s, _ in proxies]),
            weighting=pl.lit([w for _, w in proxies]),
            value=pl.concat_list(quotients),
            tokens="tokens",
        )
        .explode("statistic", "weighting", "value")
    )


def token_shares(token_stats: pl.LazyFrame, options: ProxyOptions, statistic: str, weighting: str) -> pl.DataFrame:
    """What each token adds to its task's value of one proxy or ratio of `BASELINES`: the shares sum to the value.

    Columns: checkpoint, task, solution, position, token, bytes, rank, entropy (nats), nll (nats), value (the statistic
    at the token; null where a token without bytes has none), weight, share. A solution's weights are used as they are
    in `solution_proxies`, so share = w s / sum(w) / solutions of the task. Of a ratio sum(y) / sum(x) the weight is x
    and the share y / sum(x) over the task. `token_stats` must hold all scored tokens of each task in it. The rows are
    sorted, and each sum is taken in their order, so that it is the same in every run.
    """
    columns = _with_token_columns(token_stats, options)
    if baseline := BASELINES.get(statistic):
        x, y = baseline.denominator.cast(pl.Float64), baseline.numerator
        columns = columns.with_columns(weight=x, value=pl.when(x > 0).then(y / x), y=y)
        share = pl.col("y") / pl.col("weight").sum().over(_TASK)
    else:
        weight, value = WEIGHTINGS[weighting].expression, STATISTICS[statistic].expression
        columns = columns.with_columns(weight=weight, value=value, y=None)
        total = pl.col("weight").sum().over(_SOLUTION)
        of_solution = pl.when(total > 0).then(pl.col("weight") / total).otherwise(1 / pl.len().over(_SOLUTION))
        share = of_solution * pl.col("value") / pl.col("solution").n_unique().over(_TASK)
    names = [*_SOLUTION, "position", "token", "bytes", "rank", "entropy", "nll", "value", "weight"]
    rows = columns.select(*names, "y").sort(*_SOLUTION, "position").collect().rechunk()
    return rows.select(*names, share=share)


def task_proxies(solution_proxies: pl.LazyFrame) -> pl.LazyFrame:
    """The mean of every proxy over a task's solutions.

    Columns: checkpoint, task, statistic, weighting, value, standard_error, solutions, tokens.
    The standard error is that of a mean over independent solutions, sd / sqrt(n); null for a single solution.
    """
    return solution_proxies.group_by(*_TASK, "statistic", "weighting", maintain_order=True).agg(
        value=pl.col("value").mean(),
        standard_error=pl.col("value").std(ddof=1) / pl.len().sqrt(),
        solutions=pl.len(),
        tokens=pl.col("tokens").sum(),
    )


def baseline_statistics(token_stats: pl.LazyFrame) -> pl.LazyFrame:
    """The ratios of `ratios_of`, over all tokens of a task, in the columns of `task_proxies` with the weighting "none".

    The standard error of a ratio r = sum(y) / sum(x) over n independent solutions is the delta method's,
    sqrt(n / (n - 1) sum((y - r x)^2)) / sum(x) (Cochran, Sampling Techniques, 1977, section 2.11, without the finite
    population correction); null for a single solution. Generic text is scored by the same function: a document is a
    solution, a data set a task. Errors as in `solution_proxies`; a task without bytes is refused, too.
    """
    ratios = ratios_of(token_stats)
    sums = _baseline_sums(token_stats, ratios)
    _refuse_tasks_without_bytes(token_stats)
    return pl.concat([_ratio(sums, name) for name in ratios])


def solution_ratios(token_stats: pl.LazyFrame) -> pl.LazyFrame:
    """The sums behind the ratios of `ratios_of` for every solution: sum(value) / sum(denominator) is a task's ratio.

    Columns: those of `solution_proxies`, weighting "none"; `value` is the solution's sum(y), `denominator` its sum(x).
    Errors as in `solution_proxies`.
    """
    ratios = ratios_of(token_stats)
    sums = _baseline_sums(token_stats, ratios)
    names = {"statistic": pl.lit(list(ratios)), "weighting": pl.lit(["none"] * len(ratios))}
    values = {
        column: pl.concat_list(f"{name}/{part}" for name in ratios)
        for column, part in (("value", "y"), ("denominator", "x"))
    }
    return sums.select(*_SOLUTION, **names | values, tokens="tokens").explode(*names, *values)


def _baseline_sums(token_stats: pl.LazyFrame, ratios: dict[str, Baseline]) -> pl.LazyFrame:
    """Numerator (`<name>/y`), denominator (`<name>/x`) and tokens of each baseline, a row for each solution."""
    _refuse_bad_rows(token_stats)
    nll = -pl.col("logprob").cast(pl.Float64)
    columns = token_stats.with_columns(nll=nll).select(
        *_SOLUTION,
        *(baseline.numerator.alias(f"{name}/y") for name, baseline in ratios.items()),
        *(baseline.denominator.cast(pl.Float64).alias(f"{name}/x") for name, baseline in ratios.items()),
    )
    return columns.group_by(_SOLUTION).agg(pl.all().sum(), tokens=pl.len()).sort(_SOLUTION)


def _ratio(sums: pl.LazyFrame, name: str) -> pl.LazyFrame:
    """sum(y) / sum(x) of each task with its standard error; `sums` has one row per solution."""
    y, x, n = pl.col(f"{name}/y"), pl.col(f"{name}/x"), pl.len()
    squares = ((y - y.sum() / x.sum() * x) ** 2).sum()
    return sums.group_by(_TASK, maintain_order=True).agg(
        statistic=pl.lit(name),
        weighting=pl.lit("none"),
        value=y.sum() / x.sum(),
        standard_error=pl.when(n > 1).then((n / (n - 1) * squares).sqrt() / x.sum()),
        solutions=n,
        tokens=pl.col("tokens").sum(),
    )


def rbridge(token_stats: pl.LazyFrame, experts: pl.LazyFrame) -> pl.LazyFrame:
    """rBridge of every task with solutions in `experts`, in the columns of `task_proxies`; weighting "none".

    It is the mean of `solution_rbridge` over the task's solutions.
    """
    return task_proxies(solution_rbridge(token_stats, experts))


def solution_rbridge(token_stats: pl.LazyFrame, experts: pl.LazyFrame) -> pl.LazyFrame:
    """rBridge of every solution in `experts`, in the columns of `solution_proxies`; other solutions get no row.

    Koh et al., "Predicting LLM Reasoning Performance with Small Proxy Model" (2025), Algorithm 1: the mean over a
    solution's scored tokens of nll_t (w_t - min w) / (max w - min w), where w_t is the mean over the token's letters of
    the probability that the expert gave to its own token with that letter. Our choices, where the paper is silent:
    letters are UTF-8 bytes; a token without bytes (the rest of a split character) has the weight of the byte before it;
    if all weights are equal within rounding, each is 1.

    `experts`: task, solution, position, bytes, logprob of all tokens of the solutions, tokenised by their writer.
    Tokens of candidate and expert are aligned by the bytes after them, because only a tail of the candidate's is
    scored. Raises InputError, when this is called, for a solution of which the expert's tokens cover fewer bytes than
    the candidate's.
    """
    pieces = _expert_pieces(experts)
    tokens = token_stats.select(
        *_SOLUTION, nll=-pl.col("logprob").cast(pl.Float64), bytes="bytes", behind=_bytes_behind(_SOLUTION)
    ).join(pieces.group_by(_EXPERTS).agg(covered=(pl.col("behind") + pl.col("bytes")).max()), on=_EXPERTS)
    _refuse_short_experts(tokens)
    stop = pl.col("behind") + pl.col("bytes").clip(lower_bound=1)
    tokens = _with_mass(_with_mass(tokens, pieces, pl.col("behind"), "mass_behind"), pieces, stop, "mass_to_start")
    weight = (pl.col("mass_to_start") - pl.col("mass_behind")) / (stop - pl.col("behind"))
    least, most = pl.col("weight").min().over(_SOLUTION), pl.col("weight").max().over(_SOLUTION)
    scaled = pl.when(most - least > _EQUAL_WEIGHTS).then((pl.col("weight") - least) / (most - least)).otherwise(1.0)
    return (
        tokens.with_columns(weight=weight)
        .with_columns(value=pl.col("nll") * scaled)
        .group_by(_SOLUTION)
        .agg(statistic=pl.lit(RBRIDGE), weighting=pl.lit("none"), value=pl.col("value").mean(), tokens=pl.len())
        .sort(_SOLUTION)
    )


def _bytes_behind(solution: list[str]) -> pl.Expr:
    """UTF-8 bytes of the solution's later tokens."""
    return pl.col("bytes").reverse().cum_sum().reverse().over(solution, order_by="position") - pl.col("bytes")


def _expert_pieces(experts: pl.LazyFrame) -> pl.LazyFrame:
    """For each expert token with bytes: p, the bytes `behind` (after) it, and `mass`, the sum of p over those bytes."""
    columns = experts.select(
        *_EXPERTS, "bytes", "position", p=pl.col("logprob").cast(pl.Float64).exp(), behind=_bytes_behind(_EXPERTS)
    )
    share = pl.col("p") * pl.col("bytes")
    mass = share.reverse().cum_sum().reverse().over(_EXPERTS, order_by="position") - share
    return columns.with_columns(mass=mass).filter(pl.col("bytes") > 0).sort(*_EXPERTS, "behind")


def _with_mass(tokens: pl.LazyFrame, pieces: pl.LazyFrame, place: pl.Expr, name: str) -> pl.LazyFrame:
    """Add the sum of the expert's p over the last `place` bytes of the solution, linear within a token."""
    found = tokens.with_columns(place=place).sort(*_EXPERTS, "place")
    right = pieces.select(*_EXPERTS, "p", "mass", place="behind", piece="behind")
    joined = found.join_asof(right, on="place", by=_EXPERTS, strategy="backward", check_sortedness=False)
    mass = pl.col("mass") + pl.col("p") * (pl.col("place") - pl.col("piece"))
    return joined.with_columns(mass.alias(name)).drop("place", "p", "mass", "piece")


def _refuse_short_experts(tokens: pl.LazyFrame) -> None:
    short = tokens.filter(pl.col("behind") + pl.col("bytes") > pl.col("covered")).head(1)
    for row in short.collect(engine="streaming").iter_rows(named=True):
        raise InputError(
            f"expert probabilities: task {row['task']}, solution {row['solution']}: they cover {row['covered']} bytes, "
            f"but checkpoint {row['checkpoint']} scored {row['behind'] + row['bytes']}; give those of the same text"
        )


def _with_token_columns(token_stats: pl.LazyFrame, options: ProxyOptions) -> pl.LazyFrame:
    """Add the columns that the expressions of `STATISTICS` and `WEIGHTINGS` use, in double precision.

    f(y_t) is counted within one checkpoint: a table repeats the solutions for each of its checkpoints, and families of
    models have different tokenizers. sigma is the standard deviation with divisor n.
    """
    frequency_scope = _TASK if options.token_frequency_scope == "task" else ["checkpoint"]
    gaussian_scope = _TASK if options.gaussian_scope == "task" else _SOLUTION
    nll = -pl.col("logprob").cast(pl.Float64)
    counts = token_stats.group_by(*frequency_scope, "token").agg(count=pl.len())
    frequencies = counts.select(
        *frequency_scope, "token", frequency=pl.col("count") / pl.col("count").sum().over(frequency_scope)
    )
    moments = token_stats.group_by(gaussian_scope).agg(mu=nll.mean(), sigma=nll.std(ddof=0))
    # Rounding can leave p just above 1 or an entropy just below 0, but no weight may be negative.
    return (
        token_stats.join(frequencies, on=[*frequency_scope, "token"])
        .join(moments, on=gaussian_scope)
        .with_columns(
            nll=nll,
            p=(-nll).exp().clip(upper_bound=1),
            p_max=pl.col("max_logprob").cast(pl.Float64).exp().clip(upper_bound=1),
            entropy=pl.col("entropy").cast(pl.Float64).clip(lower_bound=0),
            rank=_RANK[options.rank_ties].cast(pl.Float64),
            c=pl.lit(options.inverse_entropy_offset),
        )
    )


_REQUIRED = {
    **{name: pl.col(name).is_finite() for name in ("logprob", "max_logprob", "second_logprob", "entropy")},
    "n_greater": pl.col("n_greater") >= 0,
    "n_equal": pl.col("n_equal") >= 1,
    "vocabulary": pl.col("vocabulary") >= 2,
    "bytes": pl.col("bytes") >= 0,
}


def _refuse_bad_rows(token_stats: pl.LazyFrame) -> None:
    """Raise `InputError` that names the first row with an impossible value."""
    wrong = {name: ~rule.fill_null(False) for name, rule in _REQUIRED.items()}
    rows = (
        token_stats.filter(pl.any_horizontal(wrong.values()))
        .head(1)
        .with_columns(**{f"wrong {n}": w for n, w in wrong.items()})
    )
    for row in rows.collect(engine="streaming").iter_rows(named=True):
        found = ", ".join(f"{name} = {row[name]}" for name in _REQUIRED if row[f"wrong {name}"])
        raise InputError(
            f"token statistics: checkpoint {row['checkpoint']}, task {row['task']}, solution {row['solution']}, "
            f"position {row['position']}: {found}; log-probabilities and entropy must be finite, "
            "n_greater >= 0, n_equal >= 1, vocabulary >= 2 and bytes >= 0"
        )


def _refuse_tasks_without_bytes(token_stats: pl.LazyFrame) -> None:
    empty = token_stats.group_by(_TASK).agg(pl.col("bytes").sum()).filter(pl.col("bytes") == 0).head(1)
    for row in empty.collect(engine="streaming").iter_rows(named=True):
        raise InputError(
            f"token statistics: checkpoint {row['checkpoint']}, task {row['task']}: the scored tokens cover 0 bytes "
            "of text, so bits per byte are undefined"
        )
