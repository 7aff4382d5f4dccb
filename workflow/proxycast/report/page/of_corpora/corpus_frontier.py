"""How well each method orders the corpora for its compute: the Pareto frontier, and what a wrong choice costs."""

import json
from collections.abc import Sequence

import altair as alt
import polars as pl

from proxycast.report.page.blocks import Block, Chart, Dataset, Note, Section, Select
from proxycast.report.page.charts import MOST_MARKS, specification
from proxycast.report.page.of_corpora.compute_reached import reached_blocks
from proxycast.report.page.of_corpora.corpus_costs import ceiling_of
from proxycast.report.page.of_corpora.corpus_orders import (
    ORDER_COLUMNS,
    PROXY_COLUMNS,
    PROXY_KEY,
    colours_of,
    dashes_of,
    interval_text,
    name_of,
    proxies_in,
)
from proxycast.report.page.study_results import StudyResults

ACCURACY, REGRET = "accuracy", "regret"  # values of the control "measure"
KINDS = {"proxy": "circle", "baseline": "cross", "scaling law": "diamond", "published": "triangle-up"}
# A law is named "<law> of <statistic>".
KIND = "indexof(datum.statistic, ' of ') >= 0 ? 'scaling law' : datum.kind"
VALUE = "measure == 'regret' ? datum.regret : datum.decision_accuracy"
COMPARED = ("bits_per_byte", "multiple_choice_accuracy", "expert_cross_entropy", "primary_metric", "accuracy")
MOST_LINES = 7
SHORT = "datum.value >= 0.001 ? format(datum.value, '~g') : format(datum.value, '.0e')"  # 0.01, 1e-5
FAINT, FRONTIER = "#868c94", "#7a7a7a"


def frontier_section(results: StudyResults, dataset: Dataset | None) -> Section:
    """`dataset`: `pareto_dataset`."""
    if dataset is None:
        return Section("compute", "Accuracy for compute")
    blocks: list[Block] = [_chart(results, dataset)]
    if "proxy" not in dataset.frame["kind"]:
        blocks.append(Note("This study has no proxies of its own: statistics that others measured count as baselines."))
    return Section("compute", "Accuracy for compute", [*blocks, *reached_blocks(results)])


def pareto_dataset(results: StudyResults) -> Dataset | None:
    """The table pareto, with regrets where they are known; of a large one the rows that matter (`_thinned`)."""
    pareto = results.table("data_selection/pareto")
    if pareto is None:
        return None
    choices = results.table("data_selection/choices")
    told = []
    if choices is not None:
        regrets = choices.filter(seed="single").select(*ORDER_COLUMNS, "regret", "regret_low", "regret_high")
        pareto = pareto.join(regrets, ORDER_COLUMNS, "left", maintain_order="left")
        told = ["regret is from data_selection/choices"]
    rows = _thinned(pareto, lined(results, pareto))
    told += [f"{len(rows)} of {len(pareto)} rows"] if len(rows) < len(pareto) else []
    return Dataset("pareto", rows, "data_selection/pareto", "; ".join(told))


def lined(results: StudyResults, table: pl.DataFrame) -> list[tuple[str, str]]:
    """The methods that charts draw as lines: the highlighted ones, then those that they are compared with."""
    found = set(proxies_in(table))
    wanted = [(proxy.statistic, proxy.weighting) for proxy in results.study.highlighted]
    wanted += [(name, "none") for name in COMPARED]
    return [name for name in dict.fromkeys(wanted) if name in found][:MOST_LINES]


def _thinned(pareto: pl.DataFrame, lines: Sequence[tuple[str, str]]) -> pl.DataFrame:
    """At most `MOST_MARKS` rows in their order: the frontier, then what lines join, then of the others every n-th."""
    if len(pareto) <= MOST_MARKS:
        return pareto
    of_lines = pl.concat_str(PROXY_COLUMNS, separator="/").is_in(["/".join(line) for line in lines])
    rest, kept = pareto.with_row_index("row"), []
    for matters in (pl.col("on_frontier"), of_lines, pl.lit(True)):
        part, rest = rest.filter(matters), rest.filter(~matters)
        room = MOST_MARKS - sum(map(len, kept))
        if room > 0 and len(part):
            kept.append(part.gather_every(-(-len(part) // room)))
    return pl.concat(kept).sort("row").drop("row")


def _chart(results: StudyResults, dataset: Dataset) -> Chart:
    rows = dataset.frame.filter(pl.col("compute_fraction") > 0)
    lines = lined(results, rows)
    value = VALUE if _has_regret(rows) else "datum.decision_accuracy"
    base = (
        alt.Chart(alt.NamedData(dataset.name))
        .transform_calculate(value=value, sort_of=KIND, name=name_of(proxies_in(rows)), **_told(rows))
        .transform_filter("datum.compute_fraction > 0 && isValid(datum.value)")
    )
    x, y = _axes(rows)
    shape = alt.Shape(
        "sort_of:N",
        scale=alt.Scale(domain=_kinds(rows), range=[KINDS[kind] for kind in _kinds(rows)]),
        legend=alt.Legend(title=None, orient="top", symbolFillColor=FAINT, symbolStrokeColor=FAINT, symbolOpacity=1),
    )
    seen = {"x": x, "y": y, "shape": shape, "tooltip": _tooltips(rows)}
    colours = colours_of(lines)
    ink = alt.Color(
        "name:N",
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
        legend=alt.Legend(title=None, orient="bottom", columns=1, symbolOpacity=1, symbolType="square"),
    )
    of_lines = base.transform_filter(f"indexof({json.dumps(['/'.join(line) for line in lines])}, {PROXY_KEY}) >= 0")
    best = (
        base.transform_filter("datum.kind != 'published'")
        .transform_calculate(signed="measure == 'regret' ? -datum.value : datum.value")
        .transform_window(best="max(signed)", sort=[alt.SortField("compute_fraction")], frame=[None, 0])
    )
    best = best.transform_calculate(best_value="measure == 'regret' ? -datum.best : datum.best")
    layers = [
        base.transform_filter("datum.sort_of != 'scaling law'")
        .mark_point(filled=True, size=28, opacity=0.4, color=FAINT)
        .encode(**seen),
        base.transform_filter("datum.sort_of == 'scaling law'")
        .mark_point(aria=False, filled=True, size=55, opacity=1, color=FAINT)
        .encode(**seen),
        *_levels(results, rows),
        best.mark_line(aria=False, interpolate="step-after", strokeWidth=2, strokeDash=[5, 3], color=FRONTIER).encode(
            x=x, y=alt.Y("best_value:Q")
        ),
        of_lines.transform_filter("measure == 'accuracy' && datum.on_own_frontier")
        .mark_line(aria=False, strokeWidth=1.5)
        .encode(x=x, y=y, color=ink, strokeDash=dashes_of(lines)),
        of_lines.mark_point(filled=True, size=55, opacity=0.95).encode(**seen, color=ink),
        base.transform_filter("measure == 'accuracy' && datum.on_frontier")
        .mark_point(aria=False, filled=False, size=140, strokeWidth=1.5, opacity=1, color=FRONTIER)
        .encode(x=x, y=y, tooltip=_tooltips(rows)),
    ]
    return _as_block(rows, dataset, layers)


def _as_block(rows: pl.DataFrame, dataset: Dataset, layers: Sequence[alt.Chart]) -> Chart:
    title = alt.Title(
        alt.ExprRef("measure == 'regret' ? 'Regret, one seed (up is better)' : 'Decision accuracy, one seed'"),
        anchor="start",
        fontSize=12,
        fontWeight="normal",
    )
    chart = (
        alt.layer(*layers)
        .add_params(alt.param(name="measure", value=ACCURACY))
        .properties(width="container", height=360, title=title)
    )
    measures = {ACCURACY: "decision accuracy", REGRET: "what the pick costs (regret)"}
    told = [
        "A point is a method at a size and step, by a single seed; the answer above takes the mean over seeds.",
        "Dashed grey: the best in hindsight over all methods, so it is optimistic; rings mark the methods on it.",
        "Coloured lines join the best points of one method.",
    ]
    if _has_regret(rows):
        told.append("The view of regret has neither rings nor coloured lines.")
        told.append("Regret: the truth of the best corpus less that of the picked one, in its unit.")
    return Chart(
        "frontier",
        "What accuracy a small run buys",
        specification(chart),
        [dataset],
        caption=" ".join(told),
        alt=f"Decision accuracy of {len(rows)} methods, sizes and steps over their compute; tables hold the numbers.",
        selects=[Select("measure", "Height shows", measures)] if _has_regret(rows) else [],
    )


def _has_regret(rows: pl.DataFrame) -> bool:
    return "regret" in rows.columns and rows["regret"].count() > 0


def _kinds(rows: pl.DataFrame) -> list[str]:
    is_law = pl.col("statistic").str.contains(" of ", literal=True)
    found = set(rows.select(pl.when(is_law).then(pl.lit("scaling law")).otherwise("kind").alias("kind"))["kind"])
    return [kind for kind in KINDS if kind in found]


def _axes(rows: pl.DataFrame) -> tuple[alt.X, alt.Y]:
    """On the left of x there is room for the names of levels. Of regret, 0 is on top."""
    low, high = rows["compute_fraction"].min(), rows["compute_fraction"].max()
    ratio = max(high / low, 4.0)
    x = alt.X(
        "compute_fraction:Q",
        title="share of the target's compute",
        scale=alt.Scale(type="log", domain=[low / ratio**0.3, high * ratio**0.04], nice=False),
        axis=alt.Axis(labelExpr=SHORT, tickCount=6, labelOverlap=True),
    )
    floor = min([0.4, *(rows["decision_accuracy"].drop_nulls() - 0.02)])
    ends = f"[{floor}, 1]"
    if _has_regret(rows):
        worst = 1.05 * max(rows["regret"].max(), 1e-9)
        ends = f"measure == 'regret' ? [{worst}, 0] : {ends}"
    y = alt.Y(
        "value:Q", title=None, axis=alt.Axis(minExtent=38), scale=alt.Scale(zero=False, domainRaw=alt.ExprRef(ends))
    )
    return x, y


def _levels(results: StudyResults, rows: pl.DataFrame) -> list[alt.Chart]:
    """Lines across the chart: thresholds, chance and the noise ceiling, or the regret of a random choice."""
    truth, choices = ceiling_of(results), results.table("data_selection/choices")
    ceiling = truth and truth["ceiling_decision_accuracy"]
    found = [(0.5, "chance", ACCURACY)]
    for threshold in results.study.selection.thresholds:
        is_near = ceiling is not None and abs(threshold - ceiling) < 0.02
        found.append((threshold, "" if is_near else f"threshold {threshold:g}", ACCURACY))
    if ceiling is not None and abs(ceiling - 0.5) < 0.02:
        found[0] = (0.5, "", ACCURACY)
    if ceiling is not None:
        found.append((ceiling, f"noise ceiling {ceiling:.3f}", ACCURACY))
    if _has_regret(rows):
        random = choices.filter(seed="single")["random_regret"].drop_nulls()
        found += [(random[0], "random choice", REGRET)] if len(random) else []
    values, names, measures = (json.dumps(list(column)) for column in zip(*found))
    base = (
        alt.Chart(alt.sequence(0, len(found), 1, as_="n"))
        .transform_calculate(value=f"{values}[datum.n]", text=f"{names}[datum.n]", of=f"{measures}[datum.n]")
        .transform_filter("datum.of == measure")
    )
    y = alt.Y("value:Q")
    return [
        base.mark_rule(aria=False, strokeDash=[2, 3], color=FAINT).encode(y=y),
        base.mark_text(aria=False, align="left", baseline="bottom", dx=4, dy=-1, fontSize=11).encode(
            y=y, x=alt.value(0), text="text:N"
        ),
    ]


def _tooltips(rows: pl.DataFrame) -> list[alt.Tooltip]:
    told = [
        alt.Tooltip("name:N", title="method"),
        alt.Tooltip("run:N", title="at"),
        alt.Tooltip("compute_fraction:Q", title="compute", format=".2~g"),
        alt.Tooltip("accuracy_text:N", title="accuracy, one seed"),
    ]
    return told + ([alt.Tooltip("regret_text:N", title="regret, one seed")] if _has_regret(rows) else [])


def _told(rows: pl.DataFrame) -> dict[str, str]:
    """Texts of the tooltip as expressions of Vega."""
    told = {"run": "datum.size + ', step ' + format(datum.step, ',')"}
    told["accuracy_text"] = interval_text("decision_accuracy", "low", "high", ".3f")
    if _has_regret(rows):
        told["regret_text"] = interval_text("regret", "regret_low", "regret_high", ".3~g")
    return told
