"""Several studies on one page: the answer of each, and which proxy to trust where."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proxycast.proxy_formulas import proxy_name
from proxycast.report.page.answer import answers
from proxycast.report.page.blocks import Block, Column, Dataset, Html, Note, Section, Table
from proxycast.report.page.formats import shown, with_interval
from proxycast.report.page.html_page import page_html
from proxycast.report.page.sections.provenance import relative
from proxycast.report.page.study_results import StudyResults

TITLE = "Several studies"
EXPERIMENTS = {"corpora": "decision accuracy", "models": "rho on held-out tasks"}
TRUST_SCHEMA = {
    **dict.fromkeys(("experiment", "study", "at", "method", "kind"), pl.String),
    "named": pl.Boolean,
    **dict.fromkeys(("value", "low", "high"), pl.Float64),
    "best_baseline": pl.String,
    **dict.fromkeys(("difference", "difference_low", "difference_high"), pl.Float64),
}
DIFFERENCE = ["best_baseline", "difference", "difference_low", "difference_high"]


def several_studies_page(studies: Sequence[StudyResults], page: Path) -> str:
    """The page as HTML. `page`: where it will lie, for links to the pages of the studies."""
    templates = Environment(
        loader=PackageLoader("proxycast.report.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    macros = templates.get_template("several.html.j2").module
    rows = [_study_row(results, page) for results in studies]
    trust = pl.concat([trust_rows(results) for results in studies])
    sections = [Section("trust-where", "Which proxy to trust where", _trust(trust, macros))]
    about = "Each study's own page has the evidence. Differences are to the best baseline of the same study."
    return page_html(TITLE, sections, Markup(macros.studies(rows)), about)


def _study_row(results: StudyResults, page: Path) -> dict[str, object]:
    """What the first table says of a study. `link`: empty where its page is not made yet."""
    own = results.results / "report.html"
    checkpoints = results.table("checkpoints")
    candidates = {name: _candidates(results, name) for name in ("corpora", "models")}
    return {
        "name": results.study.study,
        "link": relative(own, page) if own.is_file() else "",
        "sentences": [answer.sentence for answer in answers(results)],
        "target": results.study.target.metric if results.study.target else "none",
        "size": (results.study.target.size if results.study.target else None) or "",
        "seeds": shown(None if checkpoints is None else checkpoints["seed"].n_unique()),
        "candidates": ", ".join(f"{count} {name}" for name, count in candidates.items() if count) or shown(None),
        "tasks": len(results.tasks),
    }


def _candidates(results: StudyResults, name: str) -> int:
    table, column = {
        "corpora": (results.table("data_selection/ranking"), "corpus"),
        "models": (results.table("model_selection/ranking"), "model"),
    }[name]
    return 0 if table is None else table[column].n_unique()


def trust_rows(results: StudyResults) -> pl.DataFrame:
    """How well each proxy, scorer and baseline did in a study, at its last budget: TRUST_SCHEMA."""
    parts = [pl.DataFrame(schema=TRUST_SCHEMA)]
    study = pl.lit(results.study.study).alias("study")
    summary = results.table("data_selection/summary")
    if summary is not None and results.budgets:
        last = results.budgets[-1]
        parts.append(
            summary.filter(size=last.size, step=last.step).select(
                pl.lit("corpora").alias("experiment"),
                study,
                pl.lit(f"size {last.size}, step {last.step}").alias("at"),
                _proxy_names(),
                "kind",
                pl.col("highlighted").alias("named"),
                pl.col("decision_accuracy").alias("value"),
                *("low", "high"),
                *DIFFERENCE,
            )
        )
    models = results.table("model_selection/summary")
    if models is not None:
        tail = pl.when(pl.col("tail") != "").then(pl.format(" ({})", "tail")).otherwise(pl.lit(""))
        parts.append(
            models.filter(pl.col("kind") != "oracle", split="two_tasks").select(
                pl.lit("models").alias("experiment"),
                study,
                pl.lit("two tasks held out").alias("at"),
                pl.concat_str("method", tail).alias("method"),
                "kind",
                (pl.col("kind") == "scorer").alias("named"),
                pl.col("spearman").alias("value"),
                *("low", "high"),
                *DIFFERENCE,
            )
        )
    return pl.concat(parts)


def _proxy_names() -> pl.Expr:
    both = pl.struct("statistic", "weighting")
    return both.map_elements(lambda pair: proxy_name(**pair), return_dtype=pl.String).alias("method")


def _trust(rows: pl.DataFrame, macros) -> list[Block]:
    if rows.is_empty():
        return [Note("No study has a truth, so nothing tells which proxy to trust.", is_caution=True)]
    made_from = [name for name in ("data_selection/summary", "model_selection/summary") if _is_from(rows, name)]
    dataset = Dataset("trust_where", rows, "which_proxy_to_trust", "of each study", made_from)
    blocks: list[Block] = []
    for experiment, measure in EXPERIMENTS.items():
        found = rows.filter(experiment=experiment)
        if found.is_empty():
            continue
        caption = (
            f"In a cell: {measure}, with its interval; below it the difference to the best baseline of the study. "
            "A sign says what that interval does: ▲ better, ▼ worse, = not told apart, * this is the best baseline. "
            "Fixed: chosen in advance in some study. The other proxies here are among the best in hindsight."
        )
        title = f"{experiment.capitalize()}: {measure}"
        markup = Markup(macros.grid(f"{title}, by method and study", *_grid(found)))
        blocks.append(Html(f"grid-{experiment}", title, markup, [dataset], caption))
    columns = [
        *(Column(name, title) for name, title in (("study", "Study"), ("experiment", "Of"), ("method", "Method"))),
        *(Column(name, title) for name, title in (("kind", "Kind"), ("at", "At"), ("named", "Fixed in advance"))),
        Column("value", "Value", ".2f", "low", "high"),
        Column("best_baseline", "Best baseline"),
        Column("difference", "Difference", ".2f", "difference_low", "difference_high"),
    ]
    return [*blocks, Table("trust-table", "The same as a table", dataset, columns, is_open=False)]


def _is_from(rows: pl.DataFrame, table: str) -> bool:
    return {"data_selection": "corpora", "model_selection": "models"}[table.partition("/")[0]] in rows["experiment"]


def _grid(rows: pl.DataFrame) -> tuple[list[str], list[dict]]:
    """The studies, and for each method its cells, None where a study lacks it. What most studies have stands first."""
    studies = rows["study"].unique(maintain_order=True).to_list()
    order = rows.group_by("method", "kind", maintain_order=True).agg(
        pl.len().alias("studies"), pl.col("named").any(), pl.col("value").mean()
    )
    plain = pl.col("method").str.starts_with(
        "bits_per_byte"
    )  # of any tail; the hardest to beat of those that nobody need fix
    order = order.sort("named", plain, "studies", "value", descending=True, nulls_last=True, maintain_order=True)
    cells = {(row["study"], row["method"]): _cell(row) for row in rows.iter_rows(named=True)}
    lines = [
        {"method": row["method"], "kind": row["kind"], "named": row["named"]}
        | {"cells": [cells.get((study, row["method"])) for study in studies]}
        for row in order.iter_rows(named=True)
    ]
    return studies, lines


def _cell(row: dict) -> dict[str, str]:
    low, high = row["difference_low"], row["difference_high"]
    is_best = row["best_baseline"] == row["method"]
    sign = "*" if is_best else "" if None in (low, high) else "▲" if low > 0 else "▼" if high < 0 else "="
    words = {"▲": "better", "▼": "worse", "=": "not told apart", "*": "best baseline"}.get(sign, "")
    difference = "" if is_best else with_interval(row, "difference", "+.2f", "difference_low", "difference_high")
    return {"value": with_interval(row, "value", ".2f", "low", "high"), "difference": difference} | {
        "sign": sign,
        "words": words,
    }
