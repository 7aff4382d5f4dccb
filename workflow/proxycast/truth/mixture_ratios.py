"""Which sources each corpus is mixed from, and in which ratios: from recipes, from texts, or from a table.

A source is a distribution of text. The same documents behind another filter are another source, since a model that is
trained on them becomes another one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from proxycast.config.corpora import Corpus
from proxycast.config.errors import closest
from proxycast.config.experiments.selection_options import MixtureOptions
from proxycast.config.training import Component, Source
from proxycast.options import InputError, told_names, told_value
from proxycast.tables import read_csv

Mixtures = dict[str, dict[str, float]]  # corpus -> source -> share of its tokens, above 0; shares sum to 1
RUN = "run"
INDEX_COLUMNS = ("run_id", "name", "index")  # that mixture optimisers write beside it
SUM_TOLERANCE = 0.01  # ratios are often rounded to three digits


def known_mixtures(corpora: Iterable[Corpus], options: MixtureOptions | None, names: Mapping[str, str]) -> Mixtures:
    """The mixtures of a study's corpora; empty unless two are known and one of them mixes sources.

    `names`: what a corpus may be called in a table -> its name in the study. `InputError` for a wrong table.
    """
    if options:
        return read_ratios(options.ratios, names)
    found = {corpus.name: shares for corpus in corpora if (shares := _shares(corpus))}
    return found if len(found) > 1 and any(len(shares) > 1 for shares in found.values()) else {}


def _shares(corpus: Corpus) -> dict[str, float]:
    if not (corpus.recipe or corpus.text):
        return {}
    shares: dict[str, float] = defaultdict(float)
    for part in (corpus.recipe or corpus.text).mixture:
        shares[_component_name(part) if isinstance(part, Component) else _source_name(part)] += part.weight
    total = sum(shares.values())
    return {source: share / total for source, share in shares.items()}


def _component_name(part: Component) -> str:
    """Such as "web deduplicate heuristics qa:0.5": the source, then its filters."""
    filters = [name for name in ("deduplicate", "heuristics") if getattr(part, name)]
    filters += [f"{part.classifier}:{part.keep:g}"] if part.keep < 1 else []
    return " ".join([part.source, *filters])


def _source_name(part: Source) -> str:
    """Such as "data/web/*.jsonl", with the repository before it and the condition behind it."""
    files = "; ".join(part.files)
    of_hub = f"{part.hub}: " if part.hub else ""
    return f"{of_hub}{files}{f' where {part.where}' if part.where else ''}"


def read_ratios(path: Path, names: Mapping[str, str]) -> Mixtures:
    """The mixtures of a csv: column `run`, and a column for each source. Shares are divided by their sum.

    Corpora of the study that the table lacks are no mixtures. `InputError` names the row and what is wrong.
    """
    table = read_csv(path)
    if RUN not in table.columns:
        raise InputError(
            f"{path}: found the columns {told_names(table.columns)}, but none is {RUN}, the name of a corpus"
        )
    sources = [name for name in table.columns if name not in (RUN, *INDEX_COLUMNS)]
    if len(sources) < 2:
        raise InputError(f"{path}: found {len(sources)} columns of sources; a mixture needs at least two")
    found: Mixtures = {}
    for number, row in enumerate(table.iter_rows(named=True), start=2):
        corpus = names.get(row[RUN])
        if corpus is None:
            raise InputError(
                f"{path}, line {number}: run {told_value(row[RUN])} is no corpus of the study"
                f"{closest(row[RUN] or '', names)}; its corpora are {told_names(list(dict.fromkeys(names.values())))}"
            )
        if corpus in found:
            raise InputError(f"{path}, line {number}: {corpus} stands there twice; give each corpus once")
        found[corpus] = _row_shares(row, sources, f"{path}, line {number} ({corpus})")
    if len(found) < 2:
        raise InputError(f"{path}: found {len(found)} corpora; mixtures are compared from two on")
    return found


def _row_shares(row: Mapping[str, str | None], sources: list[str], where: str) -> dict[str, float]:
    values = pl.Series([row[source] for source in sources], dtype=pl.String).cast(pl.Float64, strict=False)
    for source, value in zip(sources, values, strict=True):
        if value is None or not 0 <= value <= 1 + SUM_TOLERANCE:
            raise InputError(f"{where}: {source}: found {told_value(row[source])}; a share of tokens is from 0 to 1")
    if abs(values.sum() - 1) > SUM_TOLERANCE:
        raise InputError(f"{where}: the shares sum to {values.sum():g}; they must sum to 1")
    return {source: value / values.sum() for source, value in zip(sources, values, strict=True) if value > 0}


def ratio_table(mixtures: Mapping[str, Mapping[str, float]]) -> pl.DataFrame:
    """run, source, ratio: a row for each corpus and each source of any of them; 0 where it has none of it."""
    sources = sorted({source for shares in mixtures.values() for source in shares})
    rows = [(run, source, shares.get(source, 0.0)) for run, shares in mixtures.items() for source in sources]
    return pl.DataFrame(rows, RATIOS_SCHEMA, orient="row")


RATIOS_SCHEMA = {RUN: pl.String, "source": pl.String, "ratio": pl.Float64}
