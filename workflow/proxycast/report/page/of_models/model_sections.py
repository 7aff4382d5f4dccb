"""Sections of a model selection: the order of the models, the pairs that are undecided, and the evidence behind."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from proxycast.experiments.model_selection.model_ranking import ALL_TASKS, IN_SAMPLE, PARTLY
from proxycast.report.model_ranking_figures import NOT_JUDGED, about_method, leading, method_names
from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Html, Note, Section, Table
from proxycast.report.page.charts import specification
from proxycast.report.page.formats import shown
from proxycast.report.page.grids import Cell, grid, level
from proxycast.report.page.of_models.model_evidence import evidence_blocks
from proxycast.report.page.of_models.model_picks import pick_blocks
from proxycast.report.page.of_models.post_training_section import post_training_section
from proxycast.report.page.study_results import StudyResults
from proxycast.report.page.task_lists import task_name, task_select, tasks_of

PREDICTED, LEARNED = "#2A93D1", "#B08A5B"
MOST_DRAWN = 40  # models of a chart: more cannot be read
MOST_PAIRED = 20  # models of the matrix of pairs
LINE = 26  # characters of a name that stand beside a chart; longer names take two lines
TWO_LINES = f"length(datum.label) > {LINE} ? [slice(datum.label, 0, {LINE}), slice(datum.label, {LINE})] : datum.label"
ROW, HIGH_ROW = 22, 32  # pixels
TASK = "models_task"


def model_sections(results: StudyResults) -> list[Section]:
    """Ranking, evidence, what post-training changes, and costs. A study without these tables has no such section."""
    return [
        Section("models", "Ranking of the models", ranking_blocks(results)),
        Section("models-evidence", "How well methods order models", evidence_blocks(results)),
        post_training_section(results),
        Section("models-cost", "What choosing a model costs", pick_blocks(results)),
    ]


def ranking_blocks(results: StudyResults) -> list[Block]:
    ranking = results.table("model_selection/ranking")
    if ranking is None:
        return []
    rows = leading(ranking)
    tasks = tasks_of(rows)
    overall = Dataset(
        "models_ranking", rows.filter(task=tasks[0]), "model_selection/ranking", f"first method, {task_name(tasks[0])}"
    )
    blocks: list[Block] = [Note(about_method(ranking).replace("`", "")), _places(rows, tasks), _ranking_table(overall)]
    if set(rows["rests_on"]) & {IN_SAMPLE, PARTLY}:
        text = "A scorer has learned from the truth of the models marked with a diamond: their place is no prediction."
        blocks.insert(1, Note(text, is_caution=True))
    if ranking["held_out_spearman"].null_count() == len(ranking):
        blocks.insert(1, Note(NOT_JUDGED.replace("`", ""), is_caution=True))
    pairs, agreement = results.table("model_selection/pairs"), results.table("model_selection/agreement")
    blocks += _pairs(leading(pairs), overall.frame["model"].to_list(), tasks[0]) if pairs is not None else []
    blocks += _agreement(agreement, ranking, tasks[0]) if agreement is not None else []
    judged = results.table("model_selection/judged")
    return blocks + (_judged(judged) if judged is not None else [])


def _places(rows: pl.DataFrame, tasks: Sequence[str]) -> Chart:
    count = rows["model"].n_unique()
    drawn = rows.filter(pl.col("task").is_in(tasks))
    if count > MOST_DRAWN:
        drawn = drawn.filter(pl.col("place").rank("ordinal").over("task") <= MOST_DRAWN)
    learned = pl.col("rests_on").is_in([IN_SAMPLE, PARTLY])
    drawn = drawn.with_columns(truth_is=pl.when(learned).then(pl.lit("learned from")).otherwise(pl.lit("not seen")))
    data = Dataset("models_places", drawn, "model_selection/ranking", _which(drawn, count))
    axis = alt.Axis(labelLimit=190, grid=False, ticks=False, domain=False, labelExpr=TWO_LINES)
    height = HIGH_ROW if drawn["model"].str.len_chars().max() > LINE else ROW
    base = (
        alt.Chart(alt.NamedData("models_places"), height=height * min(count, MOST_DRAWN))
        .transform_filter(f"datum.task === {TASK}")
        .encode(y=alt.Y("model:N", sort=alt.EncodingSortField("place", op="min"), title=None, axis=axis))
    )
    values = ["not seen", "learned from"]
    several = drawn["truth_is"].n_unique() > 1 or "learned from" in set(drawn["truth_is"])
    legend = alt.Legend(title="Truth of the model", orient="top", symbolOpacity=1) if several else None
    colour = alt.Color("truth_is:N", scale=alt.Scale(domain=values, range=[PREDICTED, LEARNED]), legend=legend)
    shape = alt.Shape("truth_is:N", scale=alt.Scale(domain=values, range=["circle", "diamond"]), legend=legend)
    title, scale = "Place, 1 is best", alt.Scale(zero=False, nice=False, padding=12)
    x = alt.X("place:Q", title=title, axis=alt.Axis(tickMinStep=1, format=".1~f"), scale=scale)
    tooltip = [
        *(alt.Tooltip(name) for name in ("model:N", "family:N", "place:Q", "place_low:Q", "place_high:Q")),
        *(alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("score", "score_low", "score_high", "truth")),
        alt.Tooltip("rests_on:N", title="rests on"),
    ]
    intervals = base.transform_filter("isValid(datum.place_low)").mark_rule(strokeWidth=3, opacity=0.45)
    chart = alt.layer(
        intervals.encode(x=alt.X("place_low:Q", title=title), x2="place_high:Q", color=colour),
        base.mark_point(filled=True, size=80, opacity=1).encode(x=x, color=colour, shape=shape, tooltip=tooltip),
    ).add_params(alt.param(name=TASK, value=tasks[0]))
    return Chart(
        "models-places",
        "Places of the models" + (f": the best {MOST_DRAWN} of {count}" if count > MOST_DRAWN else ""),
        specification(chart.properties(width="container")),
        [data],
        caption=_about_places(drawn),
        alt="Place of every model, best first, with the interval over solutions",
        selects=task_select(TASK, tasks),
    )


def _which(drawn: pl.DataFrame, count: int) -> str:
    return "first method" + (f", best {MOST_DRAWN} of each task" if count > MOST_DRAWN else "")


def _about_places(rows: pl.DataFrame) -> str:
    lines = ["Bars: intervals of the place over the solutions of each task."]
    missing = rows["place_low"].null_count()
    if missing:
        lines = ["No intervals: nothing could be resampled (one solution, or no values of single solutions)."]
        lines = lines if missing == len(rows) else ["Without a bar: nothing could be resampled."]
    if ALL_TASKS in set(rows["task"]):
        lines.append("All tasks: mean over tasks of the score in standard deviations over models.")
    return " ".join(lines)


def _ranking_table(overall: Dataset) -> Table:
    columns = [
        Column("model", "Model"),
        Column("family", "Family"),
        Column("place", "Place", "g", "place_low", "place_high"),
        Column("score", "Score", ".3g", "score_low", "score_high"),
        Column("truth", "Truth", ".4g"),
        Column("rests_on", "Rests on"),
    ]
    known = overall.frame
    absent = {"truth"} if known["truth"].null_count() == len(known) else set()
    absent |= {"rests_on"} if known["rests_on"].n_unique() == 1 else set()
    absent |= {"family"} if known["family"].null_count() == len(known) or known["family"].n_unique() == 1 else set()
    shown_columns = [column for column in columns if column.name not in absent]
    return Table("models-ranking", "The same as a table", overall, shown_columns, key="model", selects="model")


def _pairs(pairs: pl.DataFrame, order: list[str], task: str) -> list[Block]:
    """The matrix of pairs, best models first, and how many pairs are undecided."""
    rows = pairs.filter(task=task)
    if rows["told_apart"].null_count() == len(rows):
        return [Note("Nothing could be resampled, so it is not known which pairs of models can be told apart.")]
    told, all_pairs = int(rows["told_apart"].sum()), rows["told_apart"].count()
    best = order[:MOST_PAIRED]
    drawn = rows.filter(pl.col("better").is_in(best) & pl.col("worse").is_in(best))
    found = {(row["better"], row["worse"]): row for row in drawn.iter_rows(named=True)}
    cells = [[_pair_cell(found, one, other) for other in best] for one in best]
    names = [f"{number}  {model}" for number, model in enumerate(best, 1)]
    part = f", the best {MOST_PAIRED} models" if len(order) > MOST_PAIRED else ""
    undecided = all_pairs - told
    says = (
        f"{undecided} of {all_pairs} pairs of models cannot be told apart"
        if undecided
        else "All pairs can be told apart"
    )
    markup = grid(
        names, list(map(str, range(1, len(best) + 1))), cells, label="Pairs of models", corner="better", narrow=True
    )
    return [
        Html(
            "models-pairs",
            says + (f"; here{part[1:]}" if part else ""),
            markup,
            [Dataset("models_pairs", drawn, "model_selection/pairs", f"first method, {task_name(task)}{part}")],
            caption=f"{TOLD}: the model of the row is better, and the interval of the difference over solutions "
            f"excludes 0. {OPEN}: it does not.",
        )
    ]


TOLD, OPEN = ">", "?"


def _pair_cell(found: dict[tuple[str, str], dict], one: str, other: str) -> Cell | None:
    row = found.get((one, other))
    if row is None or row["told_apart"] is None:
        return Cell("")
    ends = f"[{shown(row['difference_low'], '.3g')}, {shown(row['difference_high'], '.3g')}]"
    title = f"{one} less {other}: {shown(row['difference'], '.3g')} {ends}"
    return Cell(TOLD, 18, title) if row["told_apart"] else Cell(OPEN, None, title)


def _agreement(agreement: pl.DataFrame, ranking: pl.DataFrame, task: str) -> list[Block]:
    """Spearman's rho between the orders of every two methods."""
    names = method_names(ranking)
    rows = agreement.filter(task=task).drop_nulls("spearman")
    if rows.is_empty():
        return []
    found: dict = {}
    for row in rows.iter_rows(named=True):
        one, other = (row["method"], row["tail"]), (row["other_method"], row["other_tail"])
        found[one, other] = found[other, one] = row["spearman"]
    cells = [
        [
            Cell(f"{found[key]:.2f}", level(found[key], -1, 1)) if (key := (one, other)) in found else None
            for other in names
        ]
        for one in names
    ]
    rows_named = [f"{number}  {name}" for number, name in enumerate(names.values(), 1)]
    return [
        Html(
            "models-agreement",
            "How far the methods agree",
            grid(rows_named, list(map(str, range(1, len(names) + 1))), cells, label="Agreement of methods"),
            [Dataset("models_agreement", rows, "model_selection/agreement", task_name(task))],
            caption="Spearman's ρ between the orders of two methods. They read the same tokens, so methods that agree "
            "may be wrong together.",
        )
    ]


def _judged(judged: pl.DataFrame) -> list[Block]:
    """What judges of other studies say of the models, over all tasks; each warning once."""
    rows = judged.filter(task=ALL_TASKS)
    rows = judged if rows.is_empty() else rows
    warnings = rows["warnings"].drop_nulls().unique(maintain_order=True)
    evidence = rows.select("judge", "evidence").unique(maintain_order=True).rows()
    columns = [
        Column("judge", "Judge"),
        Column("scorer", "Scorer"),
        *([] if rows["task"].n_unique() == 1 else [Column("task", "Task")]),
        Column("model", "Model"),
        Column("place", "Place", "g", "place_low", "place_high"),
        Column("predicted", "Expected metric", ".3g", "predicted_low", "predicted_high"),
        Column("spearman", "ρ on held-out tasks", ".2f", "low", "high"),
    ]
    data = Dataset("models_judged", rows, "model_selection/judged")
    return [
        *(Note(f"Judge {judge}: {text}") for judge, text in evidence if text),
        *(Note(text, is_caution=True) for text in warnings if text),
        Table("models-judged", "What judges of other studies say", data, columns, key="model", selects="model"),
    ]
