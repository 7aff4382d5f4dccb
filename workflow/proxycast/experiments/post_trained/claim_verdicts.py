"""Whether a claim that was fixed in advance holds: these methods order models better than those."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import Claim, SelectionOptions
from proxycast.experiments.model_selection.known_models import Method, schema_of
from proxycast.experiments.post_trained.claim_limits import REFUTED, SUPPORTED, UNDECIDED
from proxycast.experiments.post_trained.populations import Judged

CLAIMS_SCHEMA = schema_of(
    *("population", "method", "kind", "tail", "baseline", "baseline_tail", "spearman", "baseline_spearman"),
    *("difference", "difference_low", "difference_high", "verdict", "note"),
)


def claims_table(
    judged: Mapping[str, Judged], claim: Claim, left_out: Mapping[Method, str], options: SelectionOptions
) -> pl.DataFrame:
    """A row for every population, method and what it is claimed to beat, in the order of the claim: CLAIMS_SCHEMA.

    Methods of the same tail are compared, and those that read no text with each. `difference`: rho of the method less
    that of the other, with its paired interval. `verdict`: supported where the interval lies above 0, refuted where it
    lies below, else undecided. `left_out`: why a baseline is not known for all models.
    """
    rows = []
    for population in claim.populations:
        found = judged.get(population)
        for name in claim.methods:
            for other in claim.against:
                pairs = [] if found is None else _pairs(found, name, other)
                common = {"population": population, "method": name, "baseline": other}
                why = "the population has too few models" if found is None else _missing(found, (name, other), left_out)
                rows += [common | _row(found, *pair, options) for pair in pairs]
                rows += [] if pairs else [common | {"verdict": UNDECIDED, "note": why}]
    table = pl.DataFrame([dict.fromkeys(CLAIMS_SCHEMA) | row for row in rows], CLAIMS_SCHEMA)
    return table.with_columns(pl.selectors.float().fill_nan(None))


def _pairs(found: Judged, name: str, other: str) -> list[tuple[Method, Method]]:
    own, others = ([m for m in found.methods if m.name == wanted and m.kind != "oracle"] for wanted in (name, other))
    return [(one, two) for one in own for two in others if one.tail == two.tail or "" in (one.tail, two.tail)]


def _missing(found: Judged, names: tuple[str, str], left_out: Mapping[Method, str]) -> str:
    missing = [name for name in names if name not in {method.name for method in found.methods}]
    whys = {method.name: why for method, why in left_out.items()}
    if not missing:
        return "they are known of no common text"
    return "; ".join(f"{name} is left out: {whys.get(name, 'it is not known of these models')}" for name in missing)


def _row(found: Judged, method: Method, other: Method, options: SelectionOptions) -> dict[str, object]:
    at = [found.methods.index(method), found.methods.index(other)]
    (own, of_other), *_, why = found.compared(found.samples[at], options)
    difference, low, high = found.difference(method, other, options)
    verdict = UNDECIDED if np.isnan([low, high]).any() else SUPPORTED if low > 0 else REFUTED if high < 0 else UNDECIDED
    return {
        **{"kind": method.kind, "tail": method.tail, "baseline_tail": other.tail},
        **{"spearman": own, "baseline_spearman": of_other},
        **{"difference": difference, "difference_low": low, "difference_high": high},
        **{"verdict": verdict, "note": "; ".join(dict.fromkeys(str(text) for text in why if text))},
    }
