"""How far the order of the models depends on who wrote the solutions, and on how many there are."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from joblib import Parallel, delayed
from tqdm import tqdm

from proxycast.experiments.arrays import Array
from proxycast.experiments.model_selection.folds import Fold, mean_over_folds, score_folds
from proxycast.experiments.model_selection.known_models import KnownModels, Method, Tail, proxy_features, schema_of
from proxycast.experiments.model_selection.scorers import RankSVMLinear, Scorer, Univariate
from proxycast.experiments.rank_statistics import mean_of_known, spearman_samples
from proxycast.jobs import PROGRESS_SECONDS

# Of a study whose subsets hold proxies only: what stands for the expert's cross-entropy among them.
FIXED_PROXY = ("cross_entropy", "uniform")
WRITERS_SCHEMA = schema_of("writer", "number", "draw", "method", "spearman", "agreement")


def writers_table(
    known: KnownModels, subsets: pl.DataFrame, folds: Sequence[Fold], scorers: Mapping[str, Scorer], processes: int = 1
) -> pl.DataFrame:
    """How far the ranking depends on who wrote the solutions, and on how many there are: WRITERS_SCHEMA.

    `subsets`: proxies over parts of the solutions, with columns writer ("all": of every writer), number (problems of a
    task; null: all) and draw. Everything is refitted on every subset, so `scorers` should be cheap (`cheap_scorers`).
    `spearman`: mean over folds, which leave two tasks out; `agreement`: Spearman's rho of the predicted order of the
    models with the one from all solutions of all writers, mean over folds and tasks.
    """
    tail = next(iter(known.features))  # the one in tokens, where there are both
    reference, _ = score_folds(_with_features(known, {tail: known.features[tail]}), folds, scorers)
    subsets = subsets.filter(pl.col("task").is_in(known.tasks), pl.col("checkpoint").is_in(known.models), tail=tail)
    names = pl.DataFrame({"checkpoint": known.models})
    cells = subsets.partition_by("writer", "number", "draw", as_dict=True, maintain_order=True)

    def rows(writer: str, number: int | None, draw: int) -> list[tuple]:
        where = f"subsets: writer {writer}, {number or 'all'} problems, draw {draw}"
        features = {tail: proxy_features(cells[writer, number, draw], names, known.tasks, known.proxies, where)}
        scores, _ = score_folds(_with_features(known, features), folds, scorers)
        _, means = mean_over_folds(known, folds, scores, np.ones((1, len(names))))
        return [
            (
                writer,
                number,
                draw,
                method.name,
                mean,
                _agreement(*([of[method] for of in s] for s in (scores, reference))),
            )
            for method, mean in zip(scores[0], means[:, 0], strict=True)
            if method.kind != "oracle"
        ]

    bar = tqdm(cells, desc="writers", unit="subset", mininterval=PROGRESS_SECONDS, file=sys.stderr)
    found = Parallel(n_jobs=processes)(delayed(rows)(*cell) for cell in bar)
    return pl.DataFrame([row for some in found for row in some], WRITERS_SCHEMA, orient="row", nan_to_null=True)


def cheap_scorers() -> dict[str, Scorer]:
    """For `writers_table`: the best proxy, and a linear RankSVM with the middle C of its grid, to save inner folds."""
    Cs = RankSVMLinear().Cs
    return {"univariate": Univariate(), "rank_svm_linear": RankSVMLinear(Cs=[Cs[len(Cs) // 2]])}


def _with_features(known: KnownModels, features: dict[Tail, Array]) -> KnownModels:
    """The same models with other proxies, and as only baseline the plain cross-entropy among them."""
    baselines = {}
    if FIXED_PROXY in known.proxies:
        ((tail, values),) = features.items()
        baselines[Method("/".join(FIXED_PROXY), "baseline", tail)] = values[..., known.proxies.index(FIXED_PROXY)]
    return replace(known, features=features, baselines=baselines)


def _agreement(scores: Sequence[Array], reference: Sequence[Array]) -> float:
    """Mean over folds and tasks of rho; equal scores count 0, unless the reference is constant."""
    pairs = zip(np.concatenate(scores), np.concatenate(reference), strict=True)
    rho = [spearman_samples(own[None], other, np.ones((1, len(own))))[0, 0] for own, other in pairs]
    return float(mean_of_known(np.array(rho)))
