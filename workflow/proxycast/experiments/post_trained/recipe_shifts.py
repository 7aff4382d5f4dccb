"""Why: what each recipe of post-training does to a statistic and to the truth, against the base it was made from.

A shift is the value of a post-trained model less that of its base. A base is known where exactly one model of the
recipe `none` belongs to it. Values are as they were measured, without signs; correlations take the statistic's own
sign and that of the truth, so 1 says that what the statistic calls better is better.

Shapes: S statistics, T tasks, n models, G bases, B bootstrap samples.
"""

import logging
from dataclasses import dataclass
from itertools import product

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.bootstrap import (
    bootstrap_weights,
    enough_to_resample,
    percentile_interval,
    sure_interval,
    too_few,
)
from proxycast.experiments.model_selection.known_models import (
    BASE,
    KnownModels,
    Method,
    Tail,
    only_bases,
    schema_of,
)
from proxycast.experiments.rank_statistics import spearman_samples
from proxycast.proxy_formulas import SIGNS

log = logging.getLogger(__name__)

ALL = "all"  # tasks, or recipes
PROXIES = ("normalized_entropy", "margin", "expert_rank", "top1_accuracy", "cross_entropy")
RATIOS = ("bits_per_byte", "tempered_cross_entropy")
FEWEST_CORRELATED = 3  # models
SHIFTS_SCHEMA = schema_of(
    *("base", "family", "recipe", "model", "task", "tail", "statistic", "weighting"),
    *("base_value", "value", "difference", "base_truth", "truth", "truth_difference"),
)
MEANS_SCHEMA = schema_of(
    *("recipe", "task", "tail", "statistic", "weighting", "models", "bases", "difference", "low", "high"),
    *("truth_difference", "truth_low", "truth_high", "spearman", "spearman_low", "spearman_high", "note"),
)


@dataclass(frozen=True)
class Shifts:
    """What was measured of each post-trained model and of its base. Tasks begin with their mean, `all`.

    `statistics` (S): tail, statistic, weighting; `values`, `truth`: [of the base, of the model].
    """

    bases: list[str]  # (n,)
    families: list[str]
    recipes: list[str]
    models: list[str]
    tasks: list[str]  # (1 + T,)
    statistics: list[tuple[Tail, str, str]]
    values: Array  # (2, S, 1 + T, n)
    truth: Array  # (2, 1 + T, n)
    truth_sign: int


def recipe_shifts(known: KnownModels) -> Shifts:
    """The post-trained models of `known` whose base is known, and the statistics that are there of all."""
    base_of = only_bases(known)
    for base in dict.fromkeys(known.bases):
        if base not in base_of:
            found = sum(own == base and recipe == BASE for own, recipe in zip(known.bases, known.recipes))
            log.warning("no shifts of %s: it has %d models of the recipe %s; one is needed", base, found, BASE)
    made = [m for m, recipe in enumerate(known.recipes) if recipe not in (BASE, "") and known.bases[m] in base_of]
    both = [[base_of[known.bases[m]] for m in made], made]
    watched = {
        (tail, name, "uniform"): SIGNS[name] * features[..., known.proxies.index((name, "uniform"))]
        for tail, features in known.features.items()
        for name in PROXIES
        if (name, "uniform") in known.proxies
    }
    for tail, name in product(known.features, RATIOS):
        if (method := Method(name, "baseline", tail)) in known.baselines:
            watched[tail, name, "none"] = SIGNS[name] * known.baselines[method]
    values = [_with_mean(found)[:, both].swapaxes(0, 1) for found in watched.values()]  # (2, 1 + T, n) each
    return Shifts(
        [known.bases[m] for m in made],
        [known.families[m] for m in made],
        [known.recipes[m] for m in made],
        [(known.names or known.models)[m] for m in made],
        [ALL, *known.tasks],
        list(watched),
        np.stack(values, axis=1) if values else np.empty((2, 0, 1 + len(known.tasks), len(made))),
        _with_mean(known.sign * known.truth)[:, both].swapaxes(0, 1),
        known.sign,
    )


def _with_mean(values: Array) -> Array:
    """(T, n) -> (1 + T, n): first the mean over tasks."""
    return np.concatenate([values.mean(0, keepdims=True), values])


def shifts_table(shifts: Shifts) -> pl.DataFrame:
    """A row for every post-trained model, task and statistic: SHIFTS_SCHEMA."""
    rows = []
    for m, who in enumerate(zip(shifts.bases, shifts.families, shifts.recipes, shifts.models)):
        for (t, task), (s, statistic) in product(enumerate(shifts.tasks), enumerate(shifts.statistics)):
            (base, value), (base_truth, truth) = shifts.values[:, s, t, m], shifts.truth[:, t, m]
            numbers = base, value, value - base, base_truth, truth, truth - base_truth
            rows.append((*who, task, *statistic, *map(float, numbers)))
    return pl.DataFrame(rows, SHIFTS_SCHEMA, orient="row")


def means_table(shifts: Shifts, options: SelectionOptions) -> pl.DataFrame:
    """A row for every recipe ("all": of all models), task and statistic: MEANS_SCHEMA.

    `difference`, `truth_difference`: mean over bases of the mean over a base's models. `spearman`: over the row's
    models, between the two shifts. Intervals are percentile bootstraps over bases, the same draws for all.
    """
    recipes, rows = np.array(shifts.recipes, dtype=str), []
    for recipe in [ALL, *sorted(set(shifts.recipes))] if len(recipes) else []:
        own = np.flatnonzero((recipes == recipe) | (recipe == ALL))
        bases = np.array(shifts.bases)[own]
        names, place = np.unique(bases, return_inverse=True)
        draws = bootstrap_weights(len(names), options.bootstrap_replicates, options.seed)
        weights = np.concatenate([np.ones((1, len(names))), draws])
        common = {"recipe": recipe, "models": len(own), "bases": len(names)}
        for (t, task), (s, statistic) in product(enumerate(shifts.tasks), enumerate(shifts.statistics)):
            key = common | {"task": task} | dict(zip(("tail", "statistic", "weighting"), statistic))
            pair = np.round(
                np.stack([np.diff(found[..., t, own], axis=0)[0] for found in (shifts.values[:, s], shifts.truth)]),
                DECIMALS,
            )
            rows.append(key | _mean_row(*pair, place, weights, SIGNS[statistic[1]], shifts.truth_sign, options))
    table = pl.DataFrame([dict.fromkeys(MEANS_SCHEMA) | row for row in rows], MEANS_SCHEMA)
    return table.with_columns(pl.selectors.float().fill_nan(None))


def _mean_row(
    shift: Array, truth: Array, place: Array, weights: Array, sign: int, truth_sign: int, options: SelectionOptions
) -> dict[str, object]:
    """`shift`, `truth` (n,): of the models; `place` (n,): their bases; `weights` (1 + B, G): how often one is drawn."""
    count, row = weights.shape[1], {}
    for prefix, values in (("", shift), ("truth_", truth)):
        of_bases = np.bincount(place, values) / np.bincount(place)
        samples = weights @ of_bases / weights.sum(1)
        ends = percentile_interval(samples[1:], options.confidence)
        known = enough_to_resample(count, options.confidence)
        low, high = (float(end) if known else None for end in ends)
        row |= {f"{prefix}difference": float(samples[0]), f"{prefix}low": low, f"{prefix}high": high}
    row["note"] = "" if enough_to_resample(count, options.confidence) else too_few("bases", count)
    if len(shift) >= FEWEST_CORRELATED:
        rho = spearman_samples(sign * shift[None], truth_sign * truth, weights[:, place])[0]
        low, high, why = sure_interval(rho[0], rho[1:], count, options, "bases")
        row |= {"spearman": float(rho[0]), "spearman_low": float(low), "spearman_high": float(high)}
        row["note"] = row["note"] or str(why)
    return row
