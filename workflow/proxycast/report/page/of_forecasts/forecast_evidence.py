"""How far forecasts are off: errors and coverage over the horizon, the rehearsal, the fits and the two-step law."""

import altair as alt
import polars as pl

from proxycast.experiments.forecasting.methods import CHOSEN, COMPUTE_ONLY, LAST_VALUE, POOLED, TWO_STEP
from proxycast.report.forecasting_figures import forecaster_name
from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Note, Select, Table
from proxycast.report.page.charts import specification
from proxycast.report.page.study_results import StudyResults
from proxycast.report.page.task_lists import task_select, tasks_of

ERROR_TASK, COVERAGE_TASK, LAW_TASK = "forecast_error_task", "forecast_coverage_task", "forecast_law_task"
ADVANCE = " (chosen in advance)"
OTHERS = "other methods"
LINES = {  # series -> colour and dashes; the chosen method comes first
    CHOSEN: ("#2A93D1", [1, 0]),
    POOLED: ("#009E73", [1, 0]),
    COMPUTE_ONLY: ("#E69F00", [6, 3]),
    LAST_VALUE: ("#B08A5B", [2, 2]),
    TWO_STEP: ("#CC79A7", [8, 3, 2, 3]),
}
LINE_LEGEND = {"symbolType": "stroke", "symbolSize": 400, "symbolStrokeWidth": 3, "symbolOpacity": 1, "labelLimit": 330}
OTHER = ("#8f8f8f", [1, 0])
MOST_ERRORS = 2000  # rows; beyond, those over all tasks alone


def chosen_method(results: StudyResults) -> str | None:
    """The method that the rehearsal chose, if it chose one."""
    rehearsal = results.table("forecasting/rehearsal")
    found = [] if rehearsal is None else rehearsal.filter("chosen")["method"].to_list()
    return found[0] if found else None


def error_blocks(results: StudyResults) -> list[Block]:
    errors, two_step = results.table("forecasting/errors"), results.table("forecasting/two_step")
    blocks: list[Block] = []
    if errors is not None:
        blocks += _errors(errors, chosen_method(results), results)
    rehearsal, fits = results.table("forecasting/rehearsal"), results.table("forecasting/fits")
    blocks += [_rehearsal(rehearsal)] if rehearsal is not None else []
    blocks += _two_step(two_step) if two_step is not None else []
    return blocks + ([_fits(fits)] if fits is not None else [])


def _named(errors: pl.DataFrame, chosen: str | None) -> tuple[pl.DataFrame, dict[str, tuple[str, list[int]]]]:
    """The errors with the `name` of each method and its `line`, and the look of each line in the legend's order.

    Without the copy of the chosen method that has the name `chosen`. Methods without a line of their own are grey.
    """
    rows = errors.filter(pl.col("method") != CHOSEN)
    methods = rows["method"].unique(maintain_order=True).to_list()
    own = {CHOSEN: chosen} if chosen in methods else {}
    for series in (POOLED, COMPUTE_ONLY, LAST_VALUE, TWO_STEP):
        of_series = [m for m in methods if m.partition(", ")[0] == series and m not in own.values()]
        method = min(of_series, key=len, default=None)  # the one without a further word, if there is one
        own |= {series: method} if method else {}
    names = {method: forecaster_name(method) + (ADVANCE if method == chosen else "") for method in methods}
    lines = {names[method]: LINES[series] for series, method in own.items()}
    line = {method: names[method] if method in own.values() else OTHERS for method in methods}
    if OTHERS in line.values():
        lines[OTHERS] = OTHER
    named = rows.with_columns(
        name=pl.col("method").replace_strict(names, return_dtype=pl.String),
        line=pl.col("method").replace_strict(line, return_dtype=pl.String),
    )
    return named, lines


def _errors(errors: pl.DataFrame, chosen: str | None, results: StudyResults) -> list[Block]:
    rows, lines = _named(errors, chosen)
    which = "" if len(rows) <= MOST_ERRORS else "all tasks together"
    rows = rows.filter(task="all") if which else rows
    judged = rows.drop_nulls("rmse")
    data = Dataset("forecast_errors", rows, "forecasting/errors", which)
    unjudged = rows.filter(task="all").group_by("horizon").agg(pl.col("unjudged").max()).filter(pl.col("unjudged") > 0)
    parts = [f"{count} at {horizon:g}×" for horizon, count in unjudged.sort("horizon").rows()]
    blocks: list[Block] = []
    cautions = rows.filter(task="all")["caution"].drop_nulls().unique(maintain_order=True)
    blocks += [Note(f"{text[:1].upper()}{text[1:]}.", is_caution=True) for text in cautions if text]
    if parts:
        blocks.append(Note(f"Without a truth, so not judged: {', '.join(parts)} (forecasts of each method)."))
    if judged.is_empty():
        return [*blocks, Note("No run has a checkpoint near any horizon: its forecasts cannot be judged yet.")]
    tasks = tasks_of(judged)
    options = results.study.forecasting
    blocks.append(_error_chart(data, lines, tasks))
    if rows["coverage"].count():
        blocks.append(_coverage_chart(data, lines, tasks, options.confidence if options else None))
    return [*blocks, _error_table(data)]


def _over_horizon(data: Dataset, lines: dict, value: str, y: alt.Y, task: str) -> list[alt.Chart]:
    """Lines of `value` over the horizon, methods without a colour of their own behind the others."""
    horizons = data.frame["horizon"].unique().sort().to_list()
    base = alt.Chart(alt.NamedData("forecast_errors"), height=300)
    base = base.transform_filter(f"datum.task === {task} && isValid(datum.{value})")
    names = list(lines)
    legend = alt.Legend(title=None, orient="top", columns=1, **LINE_LEGEND)
    looks = list(lines.values())
    colour = alt.Color("line:N", scale=alt.Scale(domain=names, range=[c for c, _ in looks]), legend=legend)
    dash = alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=[d for _, d in looks]), legend=legend)
    axis = alt.Axis(labelExpr="datum.label + '×'", grid=False, values=horizons)
    scale = alt.Scale(type="log", nice=False, padding=14)
    x = alt.X("horizon:Q", title="Horizon, times the compute at the cut", axis=axis, scale=scale)
    tooltip = [alt.Tooltip("name:N", title="method"), alt.Tooltip("horizon:Q"), alt.Tooltip("forecasts:Q")]
    tooltip += [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("rmse", "rmse_low", "rmse_high", "coverage")]
    tooltip += [
        alt.Tooltip(f"{name}:Q", format="+.3~g") for name in ("difference", "difference_low", "difference_high")
    ]
    others, own = f"datum.line === '{OTHERS}'", f"datum.line !== '{OTHERS}'"
    encoded = {"x": x, "y": y, "color": colour, "detail": "method:N", "tooltip": tooltip}
    return [
        base.transform_filter(others)
        .mark_line(strokeWidth=1, opacity=0.5, point=alt.OverlayMarkDef(size=14))
        .encode(**encoded),
        base.transform_filter(own)
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=50))
        .encode(**encoded, strokeDash=dash),
    ]


def _error_chart(data: Dataset, lines: dict, tasks: list[str]) -> Chart:
    title = "Root mean square error"
    scale = alt.Scale(domainMin=0)
    drawn = _over_horizon(data, lines, "rmse", alt.Y("rmse:Q", title=title, scale=scale), ERROR_TASK)
    bars = alt.Chart(alt.NamedData("forecast_errors")).transform_filter(
        f"datum.task === {ERROR_TASK} && isValid(datum.rmse_low) && datum.line !== '{OTHERS}'"
    )
    names, looks = list(lines), list(lines.values())
    colour = alt.Color("line:N", scale=alt.Scale(domain=names, range=[c for c, _ in looks]))
    rule = bars.mark_rule(opacity=0.45, strokeWidth=2).encode(
        x="horizon:Q", y=alt.Y("rmse_low:Q", title=title, scale=scale), y2="rmse_high:Q", color=colour
    )
    chart = alt.layer(rule, *drawn).add_params(alt.param(name=ERROR_TASK, value=tasks[0]))
    return Chart(
        "forecast-errors",
        "Error over the horizon",
        specification(chart.properties(width="container")),
        [data],
        caption="Bars: intervals over tasks and runs. Point at a mark for its method and its difference from the best "
        "baseline.",
        alt="Root mean square error of every method over the horizon",
        selects=task_select(ERROR_TASK, tasks),
    )


def _coverage_chart(data: Dataset, lines: dict, tasks: list[str], confidence: float | None) -> Chart:
    scale = alt.Scale(domain=[0, 1])
    title = "Share of truths inside"
    y = alt.Y("coverage:Q", title=title, scale=scale, axis=alt.Axis(format="%"))
    layers = _over_horizon(data, lines, "coverage", y, COVERAGE_TASK)
    caption = "How often the interval of a forecast held what became of the run."
    if confidence is not None:
        line = alt.Chart(alt.NamedData("forecast_errors")).transform_aggregate(n="count()")
        line = line.transform_calculate(nominal=str(confidence)).mark_rule(strokeDash=[2, 3], color="#8f8f8f")
        layers.append(line.encode(y=alt.Y("nominal:Q", title=title, scale=scale)))
        caption += f" Dotted: the {confidence:.0%} that it claims."
    chart = alt.layer(*layers).add_params(alt.param(name=COVERAGE_TASK, value=tasks[0]))
    return Chart(
        "forecast-coverage",
        "Measured coverage of the intervals",
        specification(chart.properties(width="container")),
        [data],
        caption=caption,
        alt="Share of truths inside the intervals of every method over the horizon",
        selects=task_select(COVERAGE_TASK, tasks),
    )


def _error_table(data: Dataset) -> Table:
    columns = [
        Column("name", "Method"),
        Column("kind", "Kind"),
        Column("task", "Task"),
        Column("horizon", "Times the cut", "g"),
        Column("rmse", "RMSE", ".3g", "rmse_low", "rmse_high"),
        Column("difference", "Less best baseline", "+.3g", "difference_low", "difference_high"),
        Column("best_baseline", "Best baseline"),
        Column("coverage", "Coverage", ".0%"),
        Column("width", "Width of intervals", ".3g"),
        Column("forecasts", "Forecasts"),
        Column("caution", "Caution"),
    ]
    return Table("forecast-error-table", "Errors and coverage as a table", data, columns, is_open=False)


def _rehearsal(rehearsal: pl.DataFrame) -> Table:
    names = [forecaster_name(method) for method in rehearsal["method"]]
    rows = rehearsal.with_columns(pl.Series("name", names, pl.String))
    columns = [
        Column("name", "Method"),
        Column("kind", "Kind"),
        Column("rmse", "RMSE before the cut", ".4g"),
        Column("chosen", "Chosen"),
        Column("forecasts", "Forecasts"),
        Column("fitted", "Really fitted"),
        Column("pairs", "Runs and tasks"),
        Column("share", "Fitted up to, of the cut", ".2g"),
        Column("note", "Note"),
    ]
    caption = (
        "Each method forecasts the last checkpoints before the cut from the earlier ones. Controls are not chosen."
    )
    data = Dataset("forecast_rehearsal", rows, "forecasting/rehearsal")
    return Table("forecast-rehearsal", "What the rehearsal chose, and why", data, columns, caption)


def _fits(fits: pl.DataFrame) -> Table:
    names = [forecaster_name(method) for method in fits["method"]]
    rows = fits.with_columns(pl.Series("name", names, pl.String))
    columns = [Column("run", "Run"), Column("task", "Task"), Column("name", "Method"), Column("curve", "Curve")]
    columns += [Column(name, name, ".3g") for name in ("a", "b", "c")]
    columns += [Column("link", "Link"), Column("asymptote", "Tends to", ".3g"), Column("points", "Checkpoints")]
    columns += [Column("beyond", "Impossible"), Column("note", "Note")]
    kept = "" if len(rows) <= MOST_ERRORS else f"first {MOST_ERRORS} of {len(rows)}"
    data = Dataset("forecast_fits", rows.head(MOST_ERRORS), "forecasting/fits", kept)
    return Table("forecast-fits", "Fitted curves", data, columns, is_open=False)


def _two_step(two_step: pl.DataFrame) -> list[Block]:
    """What the two-step law says of runs and models, against what became of them."""
    rows = two_step.filter(pl.col("kind") != "ladder", method=TWO_STEP)
    if rows.is_empty():
        return []
    data = Dataset("forecast_two_step", rows, "forecasting/two_step", "runs and models")
    columns = [
        Column("kind", "Kind"),
        Column("run", "Run or model"),
        Column("task", "Task"),
        Column("predicted", "Forecast", ".3f", "low", "high"),
        Column("truth", "Truth", ".3f"),
        Column("error", "Error", "+.3f"),
        Column("flops_beyond", "Compute beyond the runs", ".3g"),
        Column("note", "Note"),
    ]
    table = Table("forecast-two-step-table", "The two-step law as a table", data, columns, is_open=False)
    known = rows.drop_nulls(["truth", "predicted"])
    return [table] if known.is_empty() else [_two_step_chart(data, known), table]


def _two_step_chart(data: Dataset, known: pl.DataFrame) -> Chart:
    tasks = known["task"].unique(maintain_order=True).to_list()
    base = alt.Chart(alt.NamedData("forecast_two_step"), height=340)
    base = base.transform_filter(f"datum.task === {LAW_TASK} && isValid(datum.truth) && isValid(datum.predicted)")
    scale, title = alt.Scale(zero=False), "Forecast"
    x = alt.X("truth:Q", title="Truth", scale=scale, axis=alt.Axis(tickCount=6))
    kinds = {"scale": alt.Scale(domain=["run", "model"], range=["#2A93D1", "#E69F00"])}
    shapes = {"scale": alt.Scale(domain=["run", "model"], range=["circle", "diamond"])}
    legend = alt.Legend(title=None, orient="top")
    tooltip = [
        "run:N",
        "kind:N",
        *(alt.Tooltip(f"{n}:Q", format=".3~f") for n in ("predicted", "low", "high", "truth")),
    ]
    tooltip += [alt.Tooltip("parameters:Q", format=".3~s"), alt.Tooltip("tokens:Q", format=".3~s")]
    chart = alt.layer(
        base.mark_line(color="#8f8f8f", strokeDash=[4, 3]).encode(x=x, y=alt.Y("truth:Q", title=title, scale=scale)),
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2, opacity=0.4, color="#8f8f8f")
        .encode(x=x, y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            x=x,
            y=alt.Y("predicted:Q", title=title, scale=scale),
            color=alt.Color("kind:N", legend=legend, **kinds),
            shape=alt.Shape("kind:N", legend=legend, **shapes),
            tooltip=tooltip,
        ),
    ).add_params(alt.param(name=LAW_TASK, value=tasks[0]))
    several = [Select(LAW_TASK, "Task", {task: task for task in tasks})] if len(tasks) > 1 else []
    return Chart(
        "forecast-two-step",
        "Two-step law over parameters and tokens: forecast against truth",
        specification(chart.properties(width="container")),
        [data],
        caption="A run is forecast from its cut by the law of the others, a model by that of all runs. On the "
        "dashed line forecast and truth are the same. Bars: intervals.",
        alt="Forecasts of the two-step law against the truth",
        selects=several,
    )
