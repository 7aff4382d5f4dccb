"""What choosing a model costs: regret, pairs that a rule decides, and how sure a predicted gap is."""

import altair as alt
import polars as pl

from proxycast.experiments.margins import SURE
from proxycast.report.model_selection_figures import SPLITS, method_name
from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Select, Table
from proxycast.report.page.charts import specification
from proxycast.report.page.of_models.model_evidence import (
    KIND_COLOURS,
    kind_encodings,
    leading_tail,
    method_axis,
    of_tail,
    rows_height,
    with_names,
)
from proxycast.report.page.study_results import StudyResults
from proxycast.report.style import look

SPLIT, METHOD = "models_cost_split", "models_gap_method"
RANDOM_TOO_FAR = 20  # times the largest regret: a random choice so far away would hide the others


def pick_blocks(results: StudyResults) -> list[Block]:
    choices, decisions, margins = (
        results.table(f"model_selection/{name}") for name in ("choices", "decisions", "margins")
    )
    target, tail = results.study.target, leading_tail(results)
    blocks = _regrets(choices, target.metric if target else "truth", tail) if choices is not None else []
    blocks += _decided(decisions) if decisions is not None else []
    return blocks + (_gaps(margins, tail) if margins is not None else [])


def _regrets(choices: pl.DataFrame, metric: str, tail: str) -> list[Block]:
    rows = with_names(of_tail(choices, tail)).filter(pl.col("method") != "chance").drop_nulls("regret")
    if rows.is_empty():
        return []
    splits = [split for split in SPLITS if split in set(rows["split"])]
    names = rows.sort("regret", "regret_top", maintain_order=True)["name"].unique(maintain_order=True).to_list()
    k, unit = rows["top_k"][0], look(metric).label.lower()
    y, (kind_colour, kind_shape) = method_axis(names), kind_encodings()
    title = f"Regret, in {unit}"
    base = alt.Chart(alt.NamedData("models_regret"), height=rows_height(names))
    base = base.transform_filter(f"datum.split === {SPLIT}")
    tooltip = [alt.Tooltip("name:N", title="method")]
    for name in ("regret", "regret_low", "regret_high", "random_regret", "regret_top", "recall", "ndcg"):
        tooltip.append(alt.Tooltip(f"{name}:Q", format=".3~g"))
    x = alt.X("regret:Q", title=title, axis=alt.Axis(tickCount=6))
    layers = [
        base.transform_filter("isValid(datum.regret_low)")
        .mark_rule(strokeWidth=3, opacity=0.5)
        .encode(x=alt.X("regret_low:Q", title=title), x2="regret_high:Q", y=y, color=kind_colour),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            x=x, y=y, color=kind_colour, shape=kind_shape, tooltip=tooltip
        ),
    ]
    worst = rows.select(pl.max_horizontal("regret", "regret_high").max()).item()
    is_near = rows["random_regret"].max() is not None and rows["random_regret"].max() <= RANDOM_TOO_FAR * worst
    caption = "Regret: truth of the best model less that of the picked one, mean over held-out tasks. Bars: intervals."
    if is_near:
        random = base.transform_aggregate(random="mean(random_regret)").mark_rule(strokeDash=[6, 3])
        layers.insert(0, random.encode(x=alt.X("random:Q", title=title), color=alt.value(KIND_COLOURS["baseline"])))
        caption += " Dashed: a random choice."
    chart = alt.layer(*layers).add_params(alt.param(name=SPLIT, value=splits[0]))
    data = Dataset("models_regret", rows, "model_selection/choices", f"tail in {tail}, without chance")
    table = Dataset("models_choices", with_names(choices), "model_selection/choices")
    columns = [
        Column("name", "Method"),
        *([Column("tail", "Tail")] if choices["tail"].n_unique() > 1 else []),
        *([Column("split", "Held out")] if len(splits) > 1 else []),
        Column("regret", "Regret", ".3g", "regret_low", "regret_high"),
        Column("random_regret", "Of a random pick", ".3g"),
        Column("regret_top", f"Best of top {k}", ".3g", "regret_top_low", "regret_top_high"),
        Column("recall", f"Recall at {k}", ".2f", "recall_low", "recall_high"),
        Column("ndcg", f"NDCG at {k}", ".2f", "ndcg_low", "ndcg_high"),
        Column("decision_accuracy", "Decision accuracy", ".3f"),
        Column("note", "Note"),
    ]
    select = [Select(SPLIT, "Held out", {split: SPLITS[split] for split in splits})] if len(splits) > 1 else []
    spec = specification(chart.properties(width="container"))
    shows = "Regret of the pick of every method with its interval"
    return [
        Chart("models-regret", "Regret of the pick", spec, [data], caption, shows, select),
        Table("models-choices", "Regret, recall and NDCG as a table", table, columns, is_open=False),
    ]


def _decided(decisions: pl.DataFrame) -> list[Block]:
    data = Dataset("models_decisions", with_names(decisions), "model_selection/decisions")
    columns = [
        Column("name", "Method"),
        *([Column("tail", "Tail")] if decisions["tail"].n_unique() > 1 else []),
        Column("decided", "Pairs decided", ".2f", "decided_low", "decided_high"),
        Column("accuracy", "Right of them", ".2f", "accuracy_low", "accuracy_high"),
        Column(
            "decision_accuracy",
            "Of all pairs, others guessed",
            ".2f",
            "decision_accuracy_low",
            "decision_accuracy_high",
        ),
        Column("pairs", "Pairs"),
        Column("note", "Note"),
    ]
    caption = "A pair is decided if the interval of its difference excludes 0. Nothing was learned from the truth."
    return [Table("models-decisions", "Pairs that can be told apart, and how many are right", data, columns, caption)]


def _gaps(margins: pl.DataFrame, tail: str) -> list[Block]:
    """Share of right pairs over the predicted gap of one method, with its logistic curve."""
    rows = with_names(of_tail(margins, tail)).filter(pl.col("method") != "chance")
    if rows.is_empty():
        return []
    methods = rows["method"].unique(maintain_order=True).to_list()
    title = "Pairs ordered as in truth"
    y = {"title": title, "axis": alt.Axis(format="%"), "scale": alt.Scale(domain=[0, 1])}
    base = alt.Chart(alt.NamedData("models_margins"), height=260).transform_filter(f"datum.method === {METHOD}")
    axis = alt.Axis(tickCount=8)
    x = alt.X(
        "gap:Q", title="Predicted gap, in standard deviations of the scores", scale=alt.Scale(domainMin=0), axis=axis
    )
    tooltip = ["pairs:Q", *(alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("gap", "right", "right_low"))]
    tooltip += [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("right_high", "fitted", "gap_85")]
    chart = alt.layer(
        alt.Chart().mark_rule(strokeDash=[2, 3], color="#8f8f8f").encode(y=alt.datum(SURE)),
        base.mark_rule(strokeWidth=3, opacity=0.5, color="#2A93D1").encode(
            x=x, y=alt.Y("right_low:Q", **y), y2="right_high:Q"
        ),
        base.mark_line(color="#E69F00").encode(x=x, y=alt.Y("fitted:Q", **y)),
        base.mark_point(filled=True, size=70, color="#2A93D1", opacity=1).encode(
            x=x, y=alt.Y("right:Q", **y), tooltip=tooltip
        ),
    ).add_params(alt.param(name=METHOD, value=methods[0]))
    names = {method: method_name(method) for method in methods}
    return [
        Chart(
            "models-gaps",
            "How sure a predicted gap is",
            specification(chart.properties(width="container")),
            [Dataset("models_margins", rows, "model_selection/margins", f"tail in {tail}")],
            caption="Points: pairs of two models in bins of the gap, with intervals. Line: logistic curve. Dotted: "
            f"{SURE:.0%}.",
            alt="Share of pairs that are ordered rightly over the predicted gap",
            selects=[Select(METHOD, "Method", names)] if len(names) > 1 else [],
        )
    ]
