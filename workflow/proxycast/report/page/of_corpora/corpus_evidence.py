"""How far the comparison of proxies holds: over training, beside noise, with fewer solutions, by scaling laws."""

import json
from collections.abc import Iterable

import altair as alt
import polars as pl

from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Note, Section, Select, Table
from proxycast.report.page.charts import MOST_MARKS, specification
from proxycast.report.page.of_corpora.corpus_frontier import lined
from proxycast.report.page.of_corpora.corpus_mixtures import mixture_blocks
from proxycast.report.page.of_corpora.corpus_orders import (
    BUDGET_KEY,
    PROXY_COLUMNS,
    PROXY_KEY,
    budget_select,
    budgets_in,
    colours_of,
    dashes_of,
    interval_text,
    name_of,
    proxies_in,
    sorted_as,
)
from proxycast.report.page.of_corpora.corpus_rates import rate_blocks
from proxycast.report.page.study_results import StudyResults
from proxycast.report.style import readable

FAINT, POINT = "#868c94", "#0072B2"
COUNT = "replace(format(datum.value, '~s'), 'G', 'B')"  # 20000000000 -> "20B"
FEW = 3  # methods whose numbers need no chart
# Squares: colours alone, as shapes have a legend of their own.
LEGEND = alt.Legend(title=None, orient="bottom", columns=1, symbolOpacity=1, symbolType="square")
SHAPES = {"proxy": "circle", "baseline": "cross"}
METHOD = [Column("statistic", "Statistic"), Column("weighting", "Weighting")]
AT = [Column("size", "Size"), Column("step", "Step", ",")]


def evidence_section(results: StudyResults, pareto: Dataset | None) -> Section:
    """`pareto`: `corpus_frontier.pareto_dataset`."""
    blocks = _over_training(results, pareto) if pareto is not None else []
    blocks += [*_signal_to_noise(results), *_solution_counts(results), *_law_gains(results)]
    blocks += [*rate_blocks(results), *mixture_blocks(results)]
    return Section("evidence", "How far this holds", blocks)


def _ink(lines: Iterable[tuple[str, str]]) -> alt.Color:
    colours = colours_of(lines)
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color("name:N", scale=scale, legend=LEGEND)


def _is_one_of(lines: Iterable[tuple[str, str]]) -> str:
    return f"indexof({json.dumps(['/'.join(line) for line in lines])}, {PROXY_KEY}) >= 0"


def _band(base: alt.Chart, lines: list[tuple[str, str]]) -> alt.Chart:
    """The interval of the first of `lines`: all of them would hide each other."""
    return base.transform_filter(_is_one_of(lines[:1])).mark_area(aria=False, opacity=0.18)


def _accuracy_scale(*tables: pl.Series) -> alt.Scale:
    floor = min([0.4, *(float(values.min()) - 0.02 for values in tables if values.count())])
    return alt.Scale(zero=False, domain=[max(floor, 0), 1])


# Decision accuracy over training


def _over_training(results: StudyResults, pareto: Dataset) -> list[Block]:
    lines = lined(results, pareto.frame)
    name = pl.concat_str(PROXY_COLUMNS, separator="/").is_in(["/".join(line) for line in lines])
    rows = pareto.frame.filter(name, pl.col("tokens") > 0)
    steps = rows.group_by("size").agg(pl.col("step").n_unique(), pl.col("flops").max()).sort("flops", descending=True)
    if steps.is_empty():
        return []
    if steps["step"].max() == 1:
        return [Note("Each size has one checkpoint: there is no decision accuracy over training to show.")]
    decides = [place.size for place in budgets_in(results, rows)[:1]]
    sizes = steps.sort(pl.col("step") == 1, ~pl.col("size").is_in(decides), maintain_order=True)["size"].to_list()
    x = alt.X(
        "tokens:Q",
        title="training tokens of a small run",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(labelExpr=COUNT, tickCount=6, labelOverlap=True),
    )
    scale = _accuracy_scale(rows["low"], rows["decision_accuracy"])
    base = (
        alt.Chart(alt.NamedData(pareto.name))
        .transform_filter(f"datum.size == trained && datum.tokens > 0 && {_is_one_of(lines)}")
        .transform_calculate(name=name_of(lines), accuracy=interval_text("decision_accuracy", "low", "high", ".3f"))
    )
    ink, dashes = _ink(lines), dashes_of(lines)
    tooltip = [alt.Tooltip("name:N", title="method"), alt.Tooltip("step:Q", format=",")]
    tooltip.append(alt.Tooltip("accuracy:N", title="accuracy, one seed"))
    of = alt.Y("decision_accuracy:Q", title="decision accuracy", scale=scale)
    layers = [
        _band(base, lines).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=ink),
        base.mark_line(aria=False).encode(x=x, y=of, color=ink, strokeDash=dashes),
        base.mark_point(filled=True, size=45, opacity=1).encode(x=x, y=of, color=ink, tooltip=tooltip),
    ]
    chart = alt.layer(*layers).add_params(alt.param(name="trained", value=sizes[0]))
    return [
        Chart(
            "over-training",
            "Decision accuracy over training",
            specification(chart.properties(width="container", height=300)),
            [pareto],
            caption="For a single seed. The band is the first method's interval over corpora. Baselines are dashed.",
            alt="Decision accuracy of the highlighted methods and main baselines over training tokens.",
            selects=[Select("trained", "Size", {size: f"{size} models" for size in sizes})] if len(sizes) > 1 else [],
        )
    ]


# Signal to noise


def _signal_to_noise(results: StudyResults) -> list[Block]:
    table = results.table("data_selection/signal_to_noise")
    if table is None:
        return []
    rows = table.filter(pl.col("task") == "all", pl.col("kind") != "truth")
    noise = "snr_seeds" if rows["snr_seeds"].count() else "snr_checkpoints"
    if not rows[noise].count():
        return [Note("Signal to noise is unknown: it takes several seeds, or several checkpoints of a run.")]
    rows = rows.sort(noise, descending=True, nulls_last=True).head(MOST_MARKS)
    rows = sorted_as(rows, [place.cell for place in budgets_in(results, rows)])
    dataset = Dataset("signal_to_noise", rows, "data_selection/signal_to_noise", "mean over tasks")
    blocks: list[Block] = []
    if rows["decision_accuracy"].count() and rows.select(PROXY_COLUMNS).n_unique() > FEW:
        blocks.append(_snr_chart(results, dataset, noise))
    columns = [*METHOD, *AT, Column(noise, "Signal to noise", ".2f", f"{noise}_low", f"{noise}_high")]
    columns += [Column("decision_accuracy", "Accuracy, one seed", ".3f"), Column("note", "Note")]
    is_open = not blocks
    blocks.append(Table("snr-table", "Signal to noise of every method", dataset, columns, is_open=is_open))
    foretold = results.table("data_selection/snr_and_accuracy")
    if foretold is not None:
        blocks.append(_foretold(foretold))
    return blocks


def _snr_chart(results: StudyResults, dataset: Dataset, noise: str) -> Chart:
    rows = dataset.frame.drop_nulls([noise, "decision_accuracy"]).filter(pl.col(noise) > 0)
    places = budgets_in(results, rows)
    lines = lined(results, rows)
    scale = _accuracy_scale(rows["decision_accuracy"])
    base = (
        alt.Chart(alt.NamedData(dataset.name))
        .transform_filter(f"{BUDGET_KEY} == snr_at && datum.{noise} > 0 && isValid(datum.decision_accuracy)")
        .transform_calculate(name=name_of(proxies_in(rows)))
    )
    shapes = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    seen = {
        "x": alt.X(
            f"{noise}:Q",
            title="signal to noise (1 is noise alone)",
            scale=alt.Scale(type="log", nice=False, padding=12),
            axis=alt.Axis(format=".3~g", tickCount=5, labelOverlap=True),
        ),
        "y": alt.Y("decision_accuracy:Q", title="decision accuracy", scale=scale),
        "shape": alt.Shape("kind:N", scale=shapes, legend=alt.Legend(title=None, orient="top", symbolOpacity=1)),
        "tooltip": [
            alt.Tooltip("name:N", title="method"),
            alt.Tooltip(f"{noise}:Q", title="signal to noise", format=".2f"),
            alt.Tooltip("decision_accuracy:Q", title="accuracy, one seed", format=".3f"),
        ],
    }
    layers = [
        base.mark_point(filled=True, size=40, opacity=0.5, color=FAINT).encode(**seen),
        base.transform_filter(_is_one_of(lines))
        .mark_point(filled=True, size=90, opacity=1)
        .encode(**seen, color=_ink(lines)),
    ]
    chart = alt.layer(*layers).add_params(alt.param(name="snr_at", value=places[0].key))
    of = "seeds" if noise == "snr_seeds" else "the last checkpoints of a run"
    return Chart(
        "snr",
        "Signal to noise, and decision accuracy",
        specification(chart.properties(width="container", height=300)),
        [dataset],
        caption=f"Signal: how far corpora lie apart. Noise: how far {of} do. A method is a point.",
        alt=f"Signal to noise of {rows.select(PROXY_COLUMNS).n_unique()} methods against their decision accuracy.",
        selects=[budget_select("snr_at", places, "At")] if len(places) > 1 else [],
    )


def _foretold(table: pl.DataFrame) -> Table:
    rows = table.filter(pl.col("task").fill_null("all") == "all")
    return Table(
        "snr-foretells",
        "Whether signal to noise foretells decision accuracy",
        Dataset("snr_and_accuracy", rows, "data_selection/snr_and_accuracy", "mean over tasks, or over all of them"),
        [
            Column("over", "Over"),
            Column("noise", "Noise between"),
            Column("size", "Measured at"),
            Column("step", "Step", ","),
            Column("judged_size", "Judged at"),
            Column("judged_step", "Step", ","),
            Column("spearman", "Spearman's rho", ".2f", "spearman_low", "spearman_high"),
            Column("picked_decision_accuracy", "Accuracy of its pick", ".3f"),
            Column("mean_decision_accuracy", "Of a random pick", ".3f"),
            Column("best_decision_accuracy", "Of the best in hindsight", ".3f"),
        ],
        is_open=False,
    )


# How many solutions are enough


def _solution_counts(results: StudyResults) -> list[Block]:
    table = results.table("data_selection/solution_counts")
    if table is None:
        return []
    reference = "truth" if (table["reference"] == "truth").any() else "all solutions"
    rows = table.filter(reference=reference, pick="random", score="mean").drop_nulls("decision_accuracy")
    if rows.is_empty():
        return [Note("How many solutions are enough is unknown: no order could be compared.")]
    lines, places = proxies_in(rows), budgets_in(results, rows)
    rows = sorted_as(rows, [place.cell for place in places])
    dataset = Dataset("solution_counts", rows, "data_selection/solution_counts", f"random, against {reference}")
    scale = _accuracy_scale(rows["decision_accuracy"], rows["low"])
    x = alt.X(
        "number:Q",
        title="solutions of each task",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(format="~g", tickCount=6, labelOverlap=True),
    )
    base = (
        alt.Chart(alt.NamedData(dataset.name))
        .transform_filter(f"{BUDGET_KEY} == counts_at")
        .transform_calculate(
            name=name_of(lines),
            is_extrapolated="indexof(datum.note, 'extrapolated') >= 0",
            alike=interval_text("decision_accuracy", "low", "high", ".3f"),
        )
    )
    measured, ink = base.transform_filter("!datum.is_extrapolated"), _ink(lines)
    of = alt.Y("decision_accuracy:Q", title="pairs ordered alike", scale=scale)
    tooltip = [alt.Tooltip("name:N", title="method"), alt.Tooltip("number:Q", title="solutions")]
    tooltip += [alt.Tooltip("alike:N", title="ordered alike"), alt.Tooltip("enough:Q")]
    layers = [
        _band(measured, lines).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=ink),
        base.mark_line(aria=False, strokeDash=[3, 3], strokeWidth=1).encode(x=x, y=of, color=ink),
        measured.mark_line(aria=False).encode(x=x, y=of, color=ink),
        base.mark_point(filled=True, size=40, opacity=1).encode(x=x, y=of, color=ink, tooltip=tooltip),
    ]
    chart = alt.layer(*layers).add_params(alt.param(name="counts_at", value=places[0].key))
    columns = [*METHOD, *AT, Column("number", "Solutions a task", ",")]
    columns += [Column("decision_accuracy", "Pairs ordered alike", ".3f", "low", "high")]
    columns += [Column("enough", "Enough", ",", "enough_low", "enough_high"), Column("note", "Note")]
    against = "the truth" if reference == "truth" else "all solutions do"
    return [
        Chart(
            "solution-counts",
            "How many solutions are enough",
            specification(chart.properties(width="container", height=300)),
            [dataset],
            caption=f"Share of pairs of corpora that one seed orders as {against}, with random solutions. The band is "
            "the interval of the first method over the corpora; dashed lines extrapolate. Enough: within 0.01 of all "
            "solutions from there on.",
            alt=f"Agreement with {against} over the number of solutions.",
            selects=[budget_select("counts_at", places, "At")] if len(places) > 1 else [],
        ),
        Table("solution-counts-table", "The same as a table", dataset, columns, is_open=False),
    ]


# Scaling laws


def _law_gains(results: StudyResults) -> list[Block]:
    table = results.table("data_selection/law_gains")
    if table is None:
        return []
    rows = table.filter(seed="single").drop_nulls("difference")
    if rows.is_empty():
        return [Note("No scaling law could be judged; data_selection/scaling_laws says why.", is_caution=True)]
    dataset = Dataset("law_gains", rows, "data_selection/law_gains", "one seed")
    sources = proxies_in(rows)
    base = (
        alt.Chart(alt.NamedData(dataset.name))
        .transform_filter(f"{PROXY_KEY} == law_source")
        .transform_calculate(
            row="datum.law + ', ' + datum.sizes",
            gain=interval_text("difference", "difference_low", "difference_high", "+.3f"),
        )
    )
    y = alt.Y("row:N", title=None, sort=None, axis=alt.Axis(labelLimit=190))
    tooltip = [alt.Tooltip("law:N"), alt.Tooltip("sizes:N"), alt.Tooltip("single_size:N", title="largest alone")]
    tooltip.append(alt.Tooltip("gain:N"))
    told = {"decision_accuracy": "its accuracy", "single_decision_accuracy": "largest size alone"}
    tooltip += [alt.Tooltip(f"{name}:Q", title=title, format=".3f") for name, title in told.items()]
    title = "gain in decision accuracy"
    layers = [
        alt.Chart(alt.sequence(0, 1, 1, as_="zero")).mark_rule(aria=False, color=FAINT).encode(x="zero:Q"),
        base.transform_filter("isValid(datum.difference_low)")
        .mark_rule(aria=False, color=POINT, opacity=0.6, strokeWidth=2)
        .encode(x="difference_low:Q", x2="difference_high:Q", y=y),
        base.mark_point(filled=True, size=70, opacity=1, color=POINT).encode(
            x=alt.X("difference:Q", title=title, axis=alt.Axis(tickCount=5)), y=y, tooltip=tooltip
        ),
    ]
    chart = alt.layer(*layers).add_params(alt.param(name="law_source", value="/".join(sources[0])))
    count = rows.group_by(PROXY_COLUMNS).len()["len"].max()
    columns = [Column("law", "Law"), *METHOD, Column("sizes", "Sizes")]
    columns += [Column("compute_fraction", "Of target compute", ".2g")]
    columns += [Column("decision_accuracy", "Accuracy, one seed", ".3f", "low", "high")]
    columns += [Column("single_size", "Largest alone"), Column("single_decision_accuracy", "Its accuracy", ".3f")]
    columns += [Column("difference", "Gain", "+.3f", "difference_low", "difference_high"), Column("note", "Note")]
    return [
        Chart(
            "law-gains",
            "Whether a scaling law beats its largest size alone",
            specification(chart.properties(width="container", height=min(24 * count, 700))),
            [dataset],
            caption="Right of 0 the law is better. For a single seed; bars are paired intervals over corpora.",
            alt="Gains of scaling laws in decision accuracy over the largest of their sizes alone.",
            selects=[Select("law_source", "Law on", {"/".join(name): readable(*name) for name in sources})]
            if len(sources) > 1
            else [],
        ),
        Table("law-gains-table", "The same as a table", dataset, columns, is_open=False),
    ]
