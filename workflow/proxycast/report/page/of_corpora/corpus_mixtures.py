"""Corpora as mixtures: how well their ratios predict a metric, and which mixtures come next."""

import altair as alt
import polars as pl
from jinja2 import Environment
from markupsafe import Markup

from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Html, Note, Select, Table
from proxycast.report.page.charts import specification
from proxycast.report.page.formats import shown
from proxycast.report.page.grids import Cell, grid, level
from proxycast.report.page.study_results import StudyResults

POINT, FAINT = "#0072B2", "#868c94"
MOST_SOURCES = 12  # columns of a grid: those of the largest shares, then all others together


def mixture_blocks(results: StudyResults) -> list[Block]:
    regression = results.table("data_selection/mixture_regression")
    if regression is None:
        return []
    blocks: list[Block] = _held_out(regression)
    proposed = results.table("data_selection/next_mixtures")
    if proposed is None:
        return [*blocks, Note("The regression over mixtures proposes no next mixture.")]
    return [*blocks, *_next(proposed)]


def _metric_select(name: str, table: pl.DataFrame) -> list[Select]:
    metrics = table["metric"].unique(maintain_order=True).to_list()
    return [Select(name, "Metric", {metric: metric for metric in metrics})] if len(metrics) > 1 else []


def _held_out(regression: pl.DataFrame) -> list[Block]:
    dataset = Dataset("mixture_regression", regression, "data_selection/mixture_regression")
    base = alt.Chart(alt.NamedData(dataset.name)).transform_filter("datum.metric == held_out_metric")
    y = alt.Y("method:N", title=None, sort=None)
    told = ("spearman", "low", "high", "rmse")
    tooltip = [alt.Tooltip("method:N"), *(alt.Tooltip(f"{name}:Q", format=".3~g") for name in told)]
    x = {"scale": alt.Scale(domain=[-1, 1]), "axis": alt.Axis(tickCount=5)}
    layers = [
        base.transform_filter("isValid(datum.low)")
        .mark_rule(aria=False, color=POINT, opacity=0.6, strokeWidth=2)
        .encode(x=alt.X("low:Q", **x), x2="high:Q", y=y),
        base.transform_filter("isValid(datum.spearman)")
        .mark_point(filled=True, size=70, opacity=1, color=POINT)
        .encode(x=alt.X("spearman:Q", title="Spearman's rho, held out", **x), y=y, tooltip=tooltip),
    ]
    chart = alt.layer(*layers).add_params(alt.param(name="held_out_metric", value=regression["metric"][0]))
    columns = [Column("metric", "Metric"), Column("method", "Method"), Column("mixtures", "Mixtures")]
    columns += [Column("spearman", "Spearman's rho", ".2f", "low", "high"), Column("rmse", "RMSE", ".3g")]
    columns += [Column("difference", "Less nearest mixture", "+.2f", "difference_low", "difference_high")]
    return [
        Chart(
            "mixtures-held-out",
            "What the ratios of sources predict of other mixtures",
            specification(chart.properties(width="container", height=130)),
            [dataset],
            caption="The law must beat the nearest mixture, or its proposals below mean little.",
            alt="Spearman's rho of predicted and measured values on mixtures held out, for each method.",
            selects=_metric_select("held_out_metric", regression),
        ),
        Table("mixtures-table", "The same as a table", dataset, [*columns, Column("note", "Note")], is_open=False),
    ]


NOT_BETTER = "not predicted to be better than the best one seen"  # a caution of the table
GRIDS = """{% for metric, first, markup, cautions in parts %}
<div data-shown-for="next_metric" data-value="{{ metric }}"{% if not first %} hidden{% endif %}>{{ markup }}
{% for caution in cautions %}
<p class="note caution">{{ caution }}</p>
{% endfor %}
</div>
{% endfor %}"""


def _next(proposed: pl.DataFrame) -> list[Block]:
    dataset = Dataset("next_mixtures", proposed, "data_selection/next_mixtures")
    metrics = proposed["metric"].unique(maintain_order=True).to_list()
    parts = []
    for metric in metrics:
        rows = proposed.filter(metric=metric)
        parts.append((metric, metric == metrics[0], _grid(rows, metric), _cautions(rows)))
    interval = " with its interval" if proposed["gain_low"].count() else ""
    return [
        Html(
            "next-mixtures",
            "Which mixture next",
            Markup(Environment(autoescape=True).from_string(GRIDS).render(parts=parts)),
            [dataset],
            caption="Shares of sources in percent, the best proposal first; in brackets the gain over the best "
            f"mixture seen{interval}, in the unit of the metric.",
            selects=_metric_select("next_metric", proposed),
        ),
    ]


def _cautions(rows: pl.DataFrame) -> list[str]:
    """Why proposals must not be trusted, each reason once; before it the proposals that it holds for, if not all."""
    runs = rows.unique("run", keep="first", maintain_order=True)
    reasons: dict[str, list[str]] = {}
    for run, text in runs.select("run", "caution").iter_rows():
        for part in filter(None, (text or "").split("; ")):
            reasons.setdefault(part, []).append(run)
    told = [part if len(of) == len(runs) else f"{', '.join(of)}: {part}" for part, of in reasons.items()]
    if (runs["gain"] > 0).any():
        return told
    none = "No proposal is predicted to be better than the best mixture seen."
    return [none, *(text for text in told if not text.endswith(NOT_BETTER))]


def _grid(rows: pl.DataFrame, metric: str) -> Markup:
    shares = {(row["run"], row["source"]): row["ratio"] for row in rows.iter_rows(named=True)}
    largest = rows.group_by("source").agg(pl.col("ratio").mean()).sort("ratio", "source", descending=[True, False])
    names = largest["source"].to_list()
    columns = [(name, [name]) for name in names[:MOST_SOURCES]]
    columns += [("others", names[MOST_SOURCES:])] if len(names) > MOST_SOURCES else []
    runs = rows.unique("run", keep="first", maintain_order=True).to_dicts()

    def cell(run: str, title: str, sources: list[str]) -> Cell:
        share = sum(shares.get((run, source), 0.0) for source in sources)
        return Cell(shown(100 * share, ".1f"), level(share, 0, 1), f"{run}, {title}: {100 * share:.1f} %")

    def gain(row: dict) -> str:
        ends = row["gain_low"], row["gain_high"]
        return f"{row['gain']:+.3g}" + ("" if None in ends else f" [{ends[0]:+.3g}, {ends[1]:+.3g}]")

    return grid(
        [f"{row['run']} ({gain(row)})" for row in runs],
        [title for title, _ in columns],
        [[cell(row["run"], *column) for column in columns] for row in runs],
        label=f"Proposed mixtures by {metric}",
        scale="sequential",
    )
