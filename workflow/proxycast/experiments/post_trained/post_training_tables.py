"""The tables of a model selection that say what post-training changes."""

from collections.abc import Mapping, Sequence

import polars as pl

from proxycast.config.experiments.selection_options import Claim, SelectionOptions
from proxycast.config.study import Proxy
from proxycast.experiments.model_selection.folds import Fold, Scores
from proxycast.experiments.model_selection.known_models import KnownModels, tells_post_training
from proxycast.experiments.model_selection.scorers import Scorer
from proxycast.experiments.post_trained.claim_verdicts import claims_table
from proxycast.experiments.post_trained.populations import POPULATIONS_SCHEMA, judge_populations, populations_table
from proxycast.experiments.post_trained.recipe_shifts import (
    MEANS_SCHEMA,
    SHIFTS_SCHEMA,
    means_table,
    recipe_shifts,
    shifts_table,
)

# Tables of a study whose models tell of post-training; empty where none of these has a truth.
OF_POST_TRAINING = {
    "populations": POPULATIONS_SCHEMA,
    "recipe_shifts": SHIFTS_SCHEMA,
    "recipe_means": MEANS_SCHEMA,
}


def post_trained_tables(
    known: KnownModels,
    scorers: Mapping[str, Scorer],
    named: Sequence[Proxy],
    options: SelectionOptions,
    claim: Claim | None,
    processes: int,
    *,
    folds: Sequence[Fold],
    scores: Sequence[Scores],
) -> dict[str, pl.DataFrame]:
    """`OF_POST_TRAINING` where models tell of post-training; claims where there is a `claim`.

    `named`: the proxies that are judged; those of the claim are added. `folds`, `scores`: where two tasks are held out.
    """
    is_told = tells_post_training(known.recipes)
    if not (is_told or claim):
        return {}
    claimed = [*claim.methods, *claim.against] if claim else []
    of_claim = [tuple(name.split("/")) for name in claimed if "/" in name]
    proxies = list(dict.fromkeys([*((proxy.statistic, proxy.weighting) for proxy in named), *of_claim]))
    judged = judge_populations(known, scorers, proxies, options, folds, scores, processes)
    tables = {}
    if is_told:
        shifts = recipe_shifts(known)
        tables["populations"] = populations_table(judged.values(), options)
        tables |= {"recipe_shifts": shifts_table(shifts), "recipe_means": means_table(shifts, options)}
    return tables | ({"claims": claims_table(judged, claim, known.left_out, options)} if claim else {})
