"""How many solutions are enough to order the corpora, and which ones.

What is looked at, fixed before the first look:

- Corpora at the study's budgets. A number is that of the solutions of each task; a task with fewer has all of its own.
  Of n solutions a corpus's score is the proxy's mean over them (of a ratio: the ratio of their sums), averaged over
  tasks as elsewhere. Frequencies of tokens stay those of all solutions. A figure is that of a single seed: the mean
  over seeds.
- `reference` "truth": decision accuracy against the truth. "all solutions": the share of pairs that n solutions order
  as all of them do, which needs no truth.
- `pick` "random": `DRAWS` draws without replacement, the same for all corpora and proxies, those of a smaller number
  among those of a larger. "information": the solutions of the largest Fisher information (`item_response`).
  "correlation": those whose values correlate best with the mean of the task's others. Both learn from values alone,
  without the truth.
- Picks are judged on other corpora than they were made on: `SPLITS` random halves, one to pick, one to judge. Of every
  pair of corpora, agreement with the reference is averaged over the splits that judge it. That of random solutions is
  averaged over the draws. So all picks are compared on all pairs: the difference is paired.
- `score` "mean": as above. "filled": values of solutions that were not picked are filled in by the model
  (`item_response.filled_means`); with random solutions, too, one draw a split, so that one sees what comes from the
  picks and what from the model.
- Two kinds of intervals are kept apart. low and high: bootstrap over corpora, draws (or splits) averaged. draws_low and
  draws_high: over the draws, all corpora as they are; how lucky one draw can be. A draw of n among M is closer to all M
  than to n new solutions by the factor sqrt(1 - n / M), so these say how far n are from the solutions that are given.
- `enough`: the smallest number from which on decision accuracy is within `WITHIN` of that of all solutions, or above;
  its interval is that of the samples of corpora. enough_draws_low and _high: the same of single draws.
- Twice the solutions that are there is extrapolated by a - b n^-c. A pair whose order is uncertain is as likely right
  as wrong, so that what noise of variance 1/n costs falls like 1/n, and like 1/sqrt(n) where even the closest pairs
  are predictable; c lies between, 1/2 to 1. Only numbers from a tenth of all on are fitted.

Shapes: K rankings (of corpora: seeds; of models: tasks), n candidates, P pairs, M solutions of a task, R draws or
splits, G numbers, B bootstrap samples, the first of them every candidate once.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.data_selection.corpus_scores import signed_solutions
from proxycast.experiments.item_response import FEWEST_CANDIDATES, filled_means, fit_responses, item_rest_correlation
from proxycast.experiments.rank_statistics import ResampledTruth, mean_of_known
from proxycast.proxy_formulas import BASELINES, proxy_name

log = logging.getLogger(__name__)

DRAWS, SPLITS = 200, 64
WITHIN = 0.01
STEPS = (1, 2, 3, 4, 5, 6, 8)  # of a power of ten
EXPONENTS = np.linspace(0.5, 1, 11)
FEWEST_FITTED = 5  # numbers
RANDOM, TRUTH, ALL = "random", "truth", "all solutions"
NO_ORDER = "the reference orders nothing: all tie in it"
DRAWN, SPLIT, FILLED, LISTED = 11, 12, 13, 14  # streams of random numbers
KEYS = ["size", "step", "statistic", "weighting"]
FLOATS = "low high draws_low draws_high".split()
COUNTS = "enough enough_low enough_high enough_draws_low enough_draws_high solutions tasks".split()
_DIFFERENCES = "difference difference_low difference_high".split()
COUNT_COLUMNS = {  # of corpora
    **{"size": pl.String, "step": pl.Int64, "statistic": pl.String, "weighting": pl.String},
    **{"reference": pl.String, "pick": pl.String, "score": pl.String, "number": pl.Int64},
    **dict.fromkeys(("decision_accuracy", *FLOATS, *_DIFFERENCES), pl.Float64),
    **dict.fromkeys((*COUNTS, "corpora"), pl.Int64),
    "note": pl.String,
}
PICKED_COLUMNS = {
    **{"size": pl.String, "step": pl.Int64, "statistic": pl.String, "weighting": pl.String, "task": pl.String},
    **{"place": pl.Int64, "random_place": pl.Int64, "solution": pl.String},
    **{"information": pl.Float64, "correlation": pl.Float64},
}


class TaskValues(NamedTuple):
    """One task's solutions under a proxy: sums / weights is a value, higher is better."""

    task: str
    solutions: pl.DataFrame  # (M): solution
    sums: Array  # (n, K, M)
    weights: Array  # (n, K, M): the denominators of a ratio, else 1

    @property
    def number(self) -> int:
        return len(self.solutions)

    @property
    def values(self) -> Array:
        return self.sums / self.weights

    def scores(self, picked: Array) -> Array:
        """The mean over the solutions of each of `picked` (R, G, M), 1 or 0 -> (R, G, K, n)."""
        sums, weights = (picked @ part.reshape(-1, self.number).T for part in (self.sums, self.weights))
        return _by_ranking(sums / weights, *self.sums.shape[:2])


def _by_ranking(scores: Array, candidates: int, rankings: int) -> Array:
    """`scores` (R, G, n K) -> (R, G, K, n)."""
    return np.moveaxis(scores.reshape(*scores.shape[:2], candidates, rankings), 3, 2)


def wanted_proxies(highlighted: Sequence[Proxy]) -> list[Proxy]:
    """The `highlighted`, and the ratios on the same solutions, which they have to beat."""
    ratios = [Proxy(statistic=name, weighting="none") for name in BASELINES]
    return list(dict.fromkeys([*highlighted, *ratios]))


def solution_tables(
    checkpoints: pl.DataFrame,
    of_solutions: pl.LazyFrame,
    truth: pl.DataFrame | None,
    options: SelectionOptions,
    budgets: Sequence[Budget],
    highlighted: Sequence[Proxy],
) -> dict[str, pl.DataFrame]:
    """The tables solution_counts and picked_solutions.

    `of_solutions`: `proxy_formulas.solution_proxies` and `solution_ratios`. `truth`: corpus, task, value, higher is
    better (`corpus_truth.oriented`); None where there is none. Picks of picked_solutions are made on all corpora.
    """
    counts, picks = [], []
    for budget in budgets:
        small = checkpoints.filter(role="proxy", size=budget.size, step=budget.step)
        small = pl.concat([checkpoints.filter(role="target"), small])
        for proxy in wanted_proxies(highlighted):
            scores = signed_solutions(small, of_solutions.filter(**proxy.model_dump()), [proxy])
            scores = scores.filter(pl.col("denominator") > 0)  # without text a ratio has no value
            if scores.is_empty():
                log.warning(
                    "%s at %s has no values per solution, and is left out",
                    proxy_name(**proxy.model_dump()),
                    budget.name,
                )
                continue
            key = scores.select(KEYS).row(0, named=True)
            counts.append(pl.DataFrame(list(count_rows(key, scores, truth, options)), COUNT_COLUMNS))
            named = pick_table(scores, options.seed).with_columns(
                pl.lit(value).alias(name) for name, value in key.items()
            )
            picks.append(named.select(*PICKED_COLUMNS).cast(PICKED_COLUMNS))
    return {
        "solution_counts": pl.concat([pl.DataFrame(schema=COUNT_COLUMNS), *counts]),
        "picked_solutions": pl.concat([pl.DataFrame(schema=PICKED_COLUMNS), *picks]),
    }


def task_values(scores: pl.DataFrame, candidates: pl.DataFrame, seeds: pl.DataFrame) -> list[TaskValues]:
    """The tasks of `scores` (`corpus_scores.signed_solutions` of one proxy, size and step), in the order of names."""
    found = []
    for (task,), rows in sorted(scores.group_by("task"), key=lambda part: part[0]):
        solutions = rows.select("solution").unique().sort("solution")
        axes = [candidates, seeds, solutions]
        sums, weights = (dense(rows, name, f"task {task}: {name}", axes) for name in ("score", "denominator"))
        found.append(TaskValues(task, solutions, sums, weights))
    return found


def pick_table(scores: pl.DataFrame, seed: int) -> pl.DataFrame:
    """task, place, random_place, solution, information, correlation: every solution, the most informative first.

    Learned from all corpora and seeds of `scores` (as in `task_values`). The first n places of a task are the pick of
    n, the first n random places a draw of n, the same under every proxy.
    """
    candidates, rng = scores.select("corpus", "seed").unique().sort("corpus", "seed"), bootstrap.stream(seed, LISTED)
    parts = []
    for task in task_values(scores, candidates, scores.select("size").unique()):
        values = task.values[:, 0]
        information, correlation = fit_responses(values).information, item_rest_correlation(values)
        columns = {
            "place": _places(information) + 1,
            "random_place": _orders(task.number, 1, rng)[0] + 1,
            "information": information,
            "correlation": correlation,
        }
        named = task.solutions.with_columns(pl.Series(name, of) for name, of in columns.items())
        parts.append(named.sort("place").with_columns(task=pl.lit(task.task)))
    return pl.concat(parts)


def numbers_up_to(most: int) -> list[int]:
    """1, 2, 3, 4, 5, 6, 8 times the powers of ten, below `most`, and `most`."""
    powers = 10 ** np.arange(len(str(most)))
    return [int(n) for n in np.outer(powers, STEPS).ravel() if n < most] + [most]


def count_rows(
    key: Mapping[str, object], scores: pl.DataFrame, truth: pl.DataFrame | None, options: SelectionOptions
) -> Iterator[dict]:
    """The rows of solution_counts of one proxy, size and step (`key`)."""
    if truth is not None:
        scores = scores.join(truth, on="corpus", how="semi")
    corpora, seeds = (scores.select(name).unique().sort(name) for name in ("corpus", "seed"))
    tasks = task_values(scores, corpora, seeds)
    most, n = max(task.number for task in tasks), len(corpora)
    numbers = numbers_up_to(most)
    orders = {ALL: np.mean([scores_of_all(task) for task in tasks], axis=0)}  # (K, n)
    if truth is not None:
        true = dense(truth.group_by("corpus").agg(pl.col("value").mean()), "value", "true value", [corpora])
        orders = {TRUTH: np.tile(true, (len(seeds), 1)), **orders}
    random = np.mean(random_scores(tasks, numbers, DRAWS, options.seed), axis=0)
    found, notes = {(RANDOM, "mean"): (random, None)}, []
    if not bootstrap.enough_to_resample(n, options.confidence):
        notes.append(bootstrap.too_few("corpora", n))
    if n >= 2 * FEWEST_CANDIDATES and most > 1:
        judged = halves(n, options.seed)
        found |= {name: (of, judged) for name, of in picked_scores(tasks, numbers, judged, options.seed).items()}
    else:
        notes.append(f"no picks are judged: {n} corpora, at most {most} solutions a task")
    common = {**key, "solutions": most, "tasks": len(tasks), "corpora": n, "note": "; ".join(notes)}
    for reference, order in orders.items():
        judge = Judge(order, numbers, options)
        for row in (*judge.rows(found), *(judge.extrapolation() if reference == TRUTH else ())):
            yield common | {"reference": reference} | row


def random_scores(tasks: Sequence[TaskValues], numbers: Sequence[int], draws: int, seed: int) -> list[Array]:
    """Scores by random solutions of every task -> (R, G, K, n) each."""
    rng = bootstrap.stream(seed, DRAWN)
    return [task.scores(_first(_orders(task.number, draws, rng), numbers)) for task in tasks]


def scores_of_all(task: TaskValues) -> Array:
    """Scores by all solutions -> (K, n)."""
    return task.scores(np.ones((1, 1, task.number)))[0, 0]


def halves(n: int, seed: int) -> NDArray[np.bool_]:
    """Which of `n` corpora each split judges, half of them or one more -> (SPLITS, n). It picks on the others."""
    rng = bootstrap.stream(seed, SPLIT)
    return _orders(n, SPLITS, rng) >= n // 2


def picked_scores(
    tasks: Sequence[TaskValues], numbers: Sequence[int], judged: NDArray[np.bool_], seed: int
) -> dict[tuple[str, str], Array]:
    """(pick, score) -> scores of all corpora by what each split picks on those that it does not judge (R, G, K, n)."""
    rng, found = bootstrap.stream(seed, FILLED), {}
    fitted = np.stack([np.flatnonzero(~row) for row in judged])
    for task in tasks:
        n, seeds, most = task.sums.shape
        values = task.values[fitted].reshape(len(judged), -1, most)
        responses = fit_responses(values)
        picked = {
            "information": _first(_places(responses.information), numbers),
            "correlation": _first(_places(item_rest_correlation(values)), numbers),
            RANDOM: _first(_orders(most, len(judged), rng), numbers),
        }
        flat = task.values.reshape(n * seeds, most)
        for pick, chosen in picked.items():
            # All corpora read a solution with one tokenizer: their denominators are the same.
            filled = _by_ranking(filled_means(flat, chosen, responses, task.weights[0, 0]), n, seeds)
            for score, of in (("mean", task.scores(chosen)), ("filled", filled)):
                found[pick, score] = found.get((pick, score), 0) + of / len(tasks)
    del found[RANDOM, "mean"]  # `random_scores` has more draws
    return found


def _orders(count: int, rows: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Places of `count` things in `rows` random orders -> (rows, count)."""
    return rng.permuted(np.tile(np.arange(count), (rows, 1)), axis=1)


def _places(values: Array) -> NDArray[np.intp]:
    """The place of each of `values` (R, M), from 0, the largest first."""
    return np.argsort(np.argsort(-np.round(values, DECIMALS), axis=-1, kind="stable"), axis=-1)


def _first(places: NDArray[np.intp], numbers: Sequence[int]) -> Array:
    """1 for the solutions among the first of each number -> (R, G, M)."""
    return (places[:, None, :] < np.array(numbers)[:, None]).astype(float)


class Judge:
    """How well scores of some solutions order n candidates as the reference does, by the share of pairs."""

    figure = "decision_accuracy"

    def __init__(self, order: Array, numbers: Sequence[int], options: SelectionOptions):
        """`order` (K, n): the reference of each ranking."""
        n = order.shape[1]
        self.numbers, self.confidence = np.array(numbers), options.confidence
        self.sure = bootstrap.enough_to_resample(n, options.confidence)
        weights = bootstrap.bootstrap_weights(n, options.bootstrap_replicates, options.seed)
        # The first sample has every corpus once: it is the figure itself.
        weights = np.concatenate([np.ones((1, n)), weights])
        self.references = [ResampledTruth(np.round(of_seed, DECIMALS), weights) for of_seed in order]

    def rows(self, found: Mapping[tuple[str, str], tuple[Array, NDArray[np.bool_] | None]]) -> Iterator[dict]:
        """A row for each pick, score and number. `found`: (pick, score) -> scores (R, G, K, n), judged (R, n) or None.

        The first of `found` is what the others are compared with.
        """
        for (pick, score), (scores, judged) in found.items():
            curve, draws = self.curve(scores, judged)
            if (pick, score) == next(iter(found)):
                self.random, self.level = curve, curve[-1] - WITHIN
            samples = smallest_enough(self.numbers, curve, self.level)
            enough = self._numbers("enough", samples[1:] if self.sure else []) | {"enough": _whole(samples[0])}
            value, difference = self._interval("", curve), {}
            if draws is None:
                difference = self._interval("difference", curve - self.random)
            else:
                ends = bootstrap.percentile_interval(draws, self.confidence)
                value |= dict(zip(("draws_low", "draws_high"), ends, strict=True))
                enough |= self._numbers("enough_draws", smallest_enough(self.numbers, draws, self.level[:1]))
            columns = {self.figure: curve[:, 0], **value, **difference}
            told = {"note": NO_ORDER} if np.isnan(self.level[0]) else {}
            for g, number in enumerate(self.numbers.tolist()):
                figures = {name: _known(of[g]) for name, of in columns.items()}
                yield {"pick": pick, "score": score, "number": number, **figures, **enough, **told}

    def curve(self, scores: Array, judged: NDArray[np.bool_] | None) -> tuple[Array, Array | None]:
        """The figure of every number in every sample of candidates (G, B); of every draw with all of them (G, R).

        Of splits, which judge parts of the candidates, there are no such draws.
        """
        curves, draws = [], []
        for k, reference in enumerate(self.references):
            agreement = reference.agreement(np.round(scores[:, :, k], DECIMALS))  # (R, G, P)
            if judged is None:
                mean = agreement.mean(0)
                ordered = np.count_nonzero(reference.signs)
                draws.append(agreement.sum(-1) / (ordered or np.nan))  # (R, G)
            else:
                i, j = np.triu_indices(judged.shape[1], 1)
                both = judged[:, i] & judged[:, j]  # (R, P)
                mean = np.einsum("rgp,rp->gp", agreement, both) / np.maximum(both.sum(0), 1)
            curves.append(reference.over_pairs(mean))
        return mean_of_known(np.array(curves)), mean_of_known(np.array(draws)).T if draws else None

    def extrapolation(self) -> Iterator[dict]:
        """The row of twice as many solutions as there are, after `rows`."""
        used = self.numbers >= self.numbers[-1] / 10
        if used.sum() >= FEWEST_FITTED:
            twice = 2 * int(self.numbers[-1])
            curve = extrapolated(self.numbers[used], self.random[used], twice)[None]
            figures = {name: _known(of[0]) for name, of in self._interval("", curve).items()}
            value = {self.figure: _known(curve[0, 0]), **figures, "note": "extrapolated"}
            yield {"pick": RANDOM, "score": "mean", "number": twice, **value}

    def _interval(self, name: str, samples: Array) -> dict[str, Array]:
        """Columns of `name` and its ends, of `samples` (G, 1 + B)."""
        ends = bootstrap.percentile_interval(samples[:, 1:], self.confidence)
        low, high = (np.where(self.sure, end, np.nan) for end in ends)
        named = {name: samples[:, 0]} if name else {}
        return named | {f"{name}_low".lstrip("_"): low, f"{name}_high".lstrip("_"): high}

    def _numbers(self, name: str, samples: Array) -> dict[str, int | None]:
        """Ends of the interval of `samples` of a number, which are numbers too."""
        tails = ((1 - self.confidence) / 2, (1 + self.confidence) / 2)
        known = np.asarray(samples)[np.isfinite(samples)]
        ends = np.quantile(known, tails, method="inverted_cdf") if len(known) else [np.nan, np.nan]
        return {f"{name}_low": _whole(ends[0]), f"{name}_high": _whole(ends[1])}


def smallest_enough(numbers: Array, curve: Array, level: Array) -> Array:
    """The smallest of `numbers` (G,) from which on `curve` (G, B) is at least `level` (B,) -> (B,). NaN if none is."""
    stays = np.logical_and.accumulate((curve >= level - 10.0**-DECIMALS)[::-1])[::-1]
    return np.where(stays.any(0), numbers[stays.argmax(0)], np.nan)


def extrapolated(numbers: Array, curve: Array, at: int) -> Array:
    """`curve` (G, B) over `numbers` (G,), continued to `at` by the a - b n^-c of least squares -> (B,), within 0 to 1.

    c is one of `EXPONENTS`; a and b are those of ordinary least squares.
    """
    best, found = np.full(curve.shape[1], np.inf), np.full(curve.shape[1], np.nan)
    for exponent in EXPONENTS:
        x = numbers.astype(float) ** -exponent
        slope = ((x - x.mean()) @ curve) / ((x - x.mean()) ** 2).sum()
        level = curve.mean(0) - slope * x.mean()
        error = ((curve - level - slope * x[:, None]) ** 2).sum(0)
        found = np.where(error < best, level + slope * float(at) ** -exponent, found)
        best = np.minimum(best, error)
    return np.clip(found, 0, 1)


def _whole(value: float) -> int | None:
    return None if np.isnan(value) else int(value)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
