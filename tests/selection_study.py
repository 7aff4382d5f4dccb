"""Made-up models whose scores are known, for the tests of the model selection."""

from itertools import product

import numpy as np
import polars as pl
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.model_selection.known_models import known_models
from proxycast.experiments.model_selection.scorers import RankSVMLinear, RankSVMRBF, Sparse3, Univariate
from proxycast.proxy_formulas import STATISTICS
from proxycast.solutions.rows import GENERIC_TEXT
from scipy import stats

FAST = SelectionOptions(bootstrap_replicates=100)
TASKS = ["algebra", "sums", "dates", "words"]
MODELS = [f"{family}-{n}" for family in ("gpt2", "llama", "neox") for n in range(4)]
PROXIES = [("cross_entropy", "uniform"), ("top5_accuracy", "entropy"), ("expert_rank", "uniform")]
PROXIES += [("margin", "token_frequency")]
CHEAP = {
    "univariate": Univariate(),
    "sparse3": Sparse3(alphas=[0.1]),
    "rank_svm_linear": RankSVMLinear(Cs=[1.0]),
    "rank_svm_rbf": RankSVMRBF(Cs=[10.0], gammas=[0.1]),
}
CHECKPOINTS = pl.DataFrame(
    [
        {
            "checkpoint": model,
            "run": model,
            "corpus": model,
            "step": 9,
            "family": model.split("-")[0],
            "parameters": 10 ** (6 + n % 4),
            "flops": 1e18 * (n + 1),
            "role": "candidate",
        }
        for n, model in enumerate(MODELS)
    ]
)


def proxies_of(seed=0, noise=0.4, tails=("tokens", "bytes"), tasks=TASKS) -> pl.DataFrame:
    """Better models (those of a higher number in MODELS) have better values, up to noise."""
    rng, rows = np.random.default_rng(seed), []
    for tail in tails:
        for task in [*tasks, GENERIC_TEXT]:
            for n, model in enumerate(MODELS):
                for statistic, weighting in PROXIES if task != GENERIC_TEXT else []:
                    good = n / 4 + noise * rng.normal()
                    rows.append((model, task, tail, statistic, weighting, STATISTICS[statistic].sign * good))
                for statistic in ("expert_cross_entropy", "bits_per_byte"):
                    rows.append((model, task, tail, statistic, "none", -n / 4 - 2 * noise * rng.normal()))
    return pl.DataFrame(rows, ["checkpoint", "task", "tail", "statistic", "weighting", "value"], orient="row")


def of_solutions_of(seed=0, noise=0.4, tails=("tokens", "bytes"), tasks=TASKS, solutions=6) -> pl.DataFrame:
    """Values per solution of the proxies, and both sums of the ratios: better models are better, up to noise."""
    rng, rows = np.random.default_rng(seed), []
    for tail, task, s, (n, model) in product(tails, tasks, range(solutions), enumerate(MODELS)):
        hard, key = s % 3, (model, task, f"s{s}")
        for statistic, weighting in PROXIES:
            good = n / 4 - hard + noise * rng.normal()
            rows.append((*key, statistic, weighting, STATISTICS[statistic].sign * good, 10 + s, 1.0, tail))
        nats = (10 + s) * (4 - n / 4 + hard + noise * rng.normal())
        rows.append((*key, "expert_cross_entropy", "none", nats, 10 + s, 10.0 + s, tail))
        rows.append((*key, "bits_per_byte", "none", nats / np.log(2), 10 + s, 40.0 + 3 * s, tail))
    columns = ["checkpoint", "task", "solution", "statistic", "weighting", "value", "tokens", "denominator", "tail"]
    return pl.DataFrame(rows, columns, orient="row")


def proxies_from(of_solutions: pl.DataFrame) -> pl.DataFrame:
    """The table of proxies that `of_solutions` give."""
    value = pl.col("value").sum() / pl.col("denominator").sum()
    return of_solutions.group_by("checkpoint", "task", "tail", "statistic", "weighting").agg(value=value)


def targets_of(seed=1, noise=0.1, tasks=TASKS, problems=40) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for task in tasks:
        for n, model in enumerate(MODELS):
            share = np.clip(0.2 + n / 20 + noise * rng.normal(), 0, 1)
            rows.append((model, task, "accuracy", round(share * problems) / problems, problems))
    return pl.DataFrame(rows, ["checkpoint", "task", "metric", "value", "n"], orient="row")


def gather(checkpoints=CHECKPOINTS, proxies=None, targets=None, tasks=TASKS):
    proxies = proxies_of() if proxies is None else proxies
    return known_models(checkpoints, proxies, targets_of() if targets is None else targets, tasks, "accuracy")


def constant(table, value, **where):
    """`table` with a constant value where its columns are so."""
    here = pl.all_horizontal(pl.col(name) == wanted for name, wanted in where.items())
    return table.with_columns(value=pl.when(here).then(pl.lit(value, pl.Float64)).otherwise("value"))


def rank_correlation(x, y):
    """Spearman's rho, several times as fast as scipy's, which computes a p-value."""
    return np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]


def without(table, **where):
    return table.filter(~pl.all_horizontal(pl.col(name) == wanted for name, wanted in where.items()))
