"""Whether what a study claimed in advance holds: in a sentence, and a line for each comparison."""

from collections.abc import Iterator

import polars as pl

from proxycast.experiments.post_trained.claim_limits import REFUTED, SUPPORTED, UNDECIDED
from proxycast.report.page.answers.wording import Fact, Row, counted, known_rows
from proxycast.report.page.formats import shown, with_interval

POPULATION_NAMES = {
    "all": "all models",
    "bases": "the bases",
    "post_trained": "post-trained models",
    "within_base": "models of one base",
}


def facts_of_claims(claims: pl.DataFrame | None) -> Iterator[Fact]:
    """How many comparisons of the claim are supported, refuted and undecided. `claims`: the table of that name."""
    if claims is None:
        return
    counts = [(verdict, claims.filter(verdict=verdict).height) for verdict in (SUPPORTED, REFUTED, UNDECIDED)]
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts if count)
    yield Fact("Claim", f"of {counted(len(claims), 'comparison')} fixed in advance: {told}")


def claim_lines(claims: pl.DataFrame | None) -> list[str]:
    """A heading, and a line for each comparison; nothing without a claim."""
    return [] if claims is None else ["claim fixed in advance:", *map(_line, known_rows(claims))]


def _line(row: Row) -> str:
    method, baseline = (f"{row[name]} ({row[tail]})" if row[tail] else row[name] for name, tail in _NAMES)
    start = f"  {row['verdict']} among {POPULATION_NAMES[row['population']]}: {method} over {baseline}"
    if row["difference"] is None:
        return f"{start}, {row['note']}"
    difference = with_interval(row, "difference", "+.2f", "difference_low", "difference_high")
    values = f"rho {shown(row['spearman'], '.2f')} against {shown(row['baseline_spearman'], '.2f')}"
    return f"{start}, {values}, difference {difference}" + (f", {row['note']}" if row["note"] else "")


_NAMES = (("method", "tail"), ("baseline", "baseline_tail"))
