"""Sections of the forecasts: curves of every run and task with their truth, where runs end, and errors."""

from collections.abc import Sequence

import altair as alt
import numpy as np
import polars as pl
from jinja2 import Environment
from markupsafe import Markup

from proxycast.experiments.forecasting.conformal import about_rehearsals
from proxycast.experiments.forecasting.methods import COMPUTE_ONLY, POOLED, TWO_STEP
from proxycast.experiments.forecasting.observed import TRUTH
from proxycast.experiments.forecasting.rehearsal import about_choice
from proxycast.report.forecasting_figures import forecaster_name
from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Html, Note, Section, Select, Table
from proxycast.report.page.charts import specification
from proxycast.report.page.of_forecasts.forecast_evidence import LINE_LEGEND, chosen_method, error_blocks
from proxycast.report.page.study_results import StudyResults
from proxycast.report.style import look

PAIR = "forecast_pair"
MOST_PAIRS = 150  # runs and tasks whose curves are on the page
PATH_ROWS, OBSERVED_ROWS = 5000, 2500  # points of all curves, and of all truths
COLOURS, TRUTH_COLOUR = ("#2A93D1", "#E69F00", "#009E73"), "#8f8f8f"
DASHES = ([1, 0], [6, 3], [4, 2])
TOKENS = "replace(format(datum.value, '~s'), 'G', 'B')"


def forecast_sections(results: StudyResults) -> list[Section]:
    """Curves and ends of the runs, and the errors. A study without forecasts has no such section."""
    return [
        Section("forecasts", "Forecasts", curve_blocks(results)),
        Section("forecasts-errors", "How far forecasts are off", error_blocks(results)),
    ]


def curve_blocks(results: StudyResults) -> list[Block]:
    paths, observed, summary, forecasts = (
        results.table(f"forecasting/{name}") for name in ("paths", "observed", "summary", "forecasts")
    )
    if paths is None and summary is None:
        return []
    rehearsal, chosen = results.table("forecasting/rehearsal"), chosen_method(results)
    blocks: list[Block] = [Note(text) for text in _about_choice(results, rehearsal, chosen)]
    target = results.study.target
    metric = look(target.metric).label if target else "Truth"
    pairs = [] if paths is None else paths.select("run", "task").unique(maintain_order=True).rows()[:MOST_PAIRS]
    if paths is not None:
        every = paths.select("run", "task").n_unique()
        if every > len(pairs):
            blocks.append(
                Note(f"Curves of the first {len(pairs)} of {every} runs and tasks; the others are in the tables.")
            )
        drawn = paths.filter(pl.struct("run", "task").is_in([{"run": run, "task": task} for run, task in pairs]))
        blocks.append(_curves(drawn, observed, forecasts, chosen, metric))
    source = forecasts if forecasts is not None else summary
    if source is not None and pairs:
        blocks += _cautions(source, pairs, _methods(paths, chosen))
    return blocks + (_ends(summary) if summary is not None else [])


def _about_choice(results: StudyResults, rehearsal: pl.DataFrame | None, chosen: str | None) -> list[str]:
    """Which method was chosen in advance, by what, and how often its intervals held before the cut."""
    options, intervals = results.study.forecasting, results.table("forecasting/intervals")
    lines = []
    if rehearsal is not None and chosen is not None:
        row = rehearsal.filter("chosen").row(0, named=True)
        lines.append(
            f"Method: {forecaster_name(chosen)}, chosen before anything beyond the cut was seen: it has the least "
            f"error of the rehearsal, RMSE {row['rmse']:.3g} over {row['forecasts']} forecasts."
        )
    elif options is not None and options.rehearsal is None:
        lines.append("No rehearsal was ordered, so no method was chosen in advance.")
    if options is not None:
        empty = pl.DataFrame(schema={"chosen": pl.Boolean, "share": pl.Float64, "forecasts": pl.Int64})
        lines.append(about_choice(empty if rehearsal is None else rehearsal, options))
    if intervals is not None:
        said = about_rehearsals(intervals, chosen)
        lines.append(said.replace(chosen, forecaster_name(chosen)) if chosen else said)
    return [line for line in lines if line]


def _methods(paths: pl.DataFrame, chosen: str | None) -> list[str]:
    """The methods whose curves are drawn: the chosen one, the truth's own power law, and the two-step law."""
    found = paths["method"].unique(maintain_order=True).to_list()
    pool = next((m for m in found if m.partition(", ")[0] == POOLED), found[0])
    first = chosen if chosen in found else pool
    return [m for m in dict.fromkeys([first, COMPUTE_ONLY, TWO_STEP]) if m in found]


def _thinned(frame: pl.DataFrame, keys: Sequence[str], most: int) -> pl.DataFrame:
    """At most about `most` rows: of each group as many, evenly spread from its first to its last."""
    groups = frame.partition_by(keys, maintain_order=True)
    count = max(2, most // max(len(groups), 1))
    parts = [g[np.unique(np.linspace(0, len(g) - 1, min(count, len(g))).round().astype(int))] for g in groups]
    return pl.concat(parts) if parts else frame


def _ticks(paths: pl.DataFrame) -> list[float]:
    """1, 2 and 5 times the powers of ten between the first and the last tokens."""
    low, high = paths["tokens"].min(), paths["tokens"].max()
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [tick for power in powers for digit in (1, 2, 5) if low <= (tick := float(digit * 10**power)) <= high]


def _with_pair(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pair=pl.format("{} · {}", "run", "task"))


def _pair_select(pairs: pl.DataFrame) -> list[Select]:
    """The list of runs and tasks, none of a single one; `pairs`: run, task, pair."""
    if len(pairs) < 2:
        return []
    if pairs["run"].n_unique() == 1:
        return [Select(PAIR, "Task", dict(pairs.select("pair", "task").rows()))]
    if pairs["task"].n_unique() == 1:
        return [Select(PAIR, "Run", dict(pairs.select("pair", "run").rows()))]
    groups = dict(pairs.select("pair", "run").rows())
    return [Select(PAIR, "Run and task", {pair: pair for pair in groups}, groups)]


def _curves(
    paths: pl.DataFrame, observed: pl.DataFrame | None, forecasts: pl.DataFrame | None, chosen: str | None, metric: str
) -> Chart:
    methods = _methods(paths, chosen)
    names = [forecaster_name(method) for method in methods]
    named = pl.col("method").replace_strict(dict(zip(methods, names)), default=None, return_dtype=pl.String)
    drawn = paths.filter(pl.col("method").is_in(methods) & (pl.col("tokens") > 0)).sort("tokens", maintain_order=True)
    drawn = _with_pair(_thinned(drawn, ["run", "task", "method"], PATH_ROWS).with_columns(name=named))
    pairs = _with_pair(paths.select("run", "task").unique(maintain_order=True))
    used = [Dataset("forecast_paths", drawn, "forecasting/paths", "methods and points that are drawn")]
    here = f"datum.pair === {PAIR}"
    legend = alt.Legend(title=None, orient="top", columns=1, **LINE_LEGEND)
    colour = alt.Color("name:N", scale=alt.Scale(domain=names, range=list(COLOURS[: len(names)])), legend=legend)
    dash = alt.StrokeDash("name:N", scale=alt.Scale(domain=names, range=list(DASHES[: len(names)])), legend=legend)
    axis = alt.Axis(labelExpr=TOKENS, grid=False, values=_ticks(drawn), labelOverlap="greedy")
    x = alt.X("tokens:Q", title="Training tokens", scale=alt.Scale(type="log", nice=False, padding=8), axis=axis)
    y = {"title": metric, "scale": alt.Scale(zero=False)}
    base = alt.Chart(alt.NamedData("forecast_paths"), height=340).transform_filter(here)
    band = base.transform_filter(f"isValid(datum.low) && datum.method !== '{TWO_STEP}'")
    layers = [
        band.mark_area(opacity=0.18).encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=2).encode(x=x, y=alt.Y("predicted:Q", **y), color=colour, strokeDash=dash),
    ]
    if observed is not None:
        known = observed.filter(pl.col("series") == TRUTH, pl.col("tokens") > 0).sort("tokens", maintain_order=True)
        known = _with_pair(_thinned(known, ["run", "task", "in_fit"], OBSERVED_ROWS))
        known = known.filter(pl.col("pair").is_in(pairs["pair"].implode()))
        used.append(Dataset("forecast_observed", known, "forecasting/observed", "the truth, thinned out if it is long"))
        layers += _truth_layers(x, y, here)
    if forecasts is not None:
        ends = _with_pair(forecasts.filter(method=methods[0])).filter(pl.col("pair").is_in(pairs["pair"].implode()))
        used.append(Dataset("forecast_horizons", ends, "forecasting/forecasts", names[0]))
        tooltip = [alt.Tooltip("horizon:Q", title="times the cut"), alt.Tooltip("tokens:Q", format=".3~s")]
        tooltip += [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("predicted", "low", "high", "truth", "error")]
        tooltip += [alt.Tooltip("covered:N"), alt.Tooltip("caution:N")]
        marks = (
            alt.Chart(alt.NamedData("forecast_horizons")).transform_filter(here).mark_point(shape="diamond", size=110)
        )
        layers.append(marks.encode(x=x, y=alt.Y("predicted:Q", **y), color=alt.value(COLOURS[0]), tooltip=tooltip))
    chart = alt.layer(*layers).add_params(alt.param(name=PAIR, value=pairs["pair"][0]))
    return Chart(
        "forecast-curves",
        "Forecast and truth" if len(pairs) > 1 else f"Forecast and truth: {pairs['pair'][0]}",
        specification(chart.properties(width="container")),
        used,
        caption="Filled points: the truth that the fit saw. Hollow points: the truth behind the cut (dotted line). "
        "Bands: intervals. Diamonds: forecasts at the horizons.",
        alt="Forecast curves with intervals, the observed truth and the cut over training tokens",
        selects=_pair_select(pairs),
        marks=len(drawn) // len(pairs),
    )


def _truth_layers(x: alt.X, y: dict, here: str) -> list[alt.Chart]:
    truth = alt.Chart(alt.NamedData("forecast_observed")).transform_filter(here)
    tooltip = ["step:Q", alt.Tooltip("tokens:Q", format=".3~s"), alt.Tooltip("value:Q", format=".4~g")]
    tooltip += [alt.Tooltip("standard_error:Q", format=".2~g"), alt.Tooltip("in_fit:N", title="seen by the fit")]
    return [
        truth.transform_filter("datum.in_fit")
        .transform_aggregate(tokens="max(tokens)")
        .mark_rule(strokeDash=[2, 3], color=TRUTH_COLOUR)
        .encode(x=x),
        truth.mark_point(size=36, color=TRUTH_COLOUR, fill=TRUTH_COLOUR, opacity=1).encode(
            x=x,
            y=alt.Y("value:Q", **y),
            fillOpacity=alt.condition("datum.in_fit", alt.value(1), alt.value(0)),
            tooltip=tooltip,
        ),
    ]


CAUTIONS = """{% for pair, texts in cautions.items() %}
<div data-shown-for="{{ name }}" data-value="{{ pair }}"{% if not loop.first %} hidden{% endif %}>
{% for text in texts %}<p class="note caution">{{ text }}</p>
{% else %}<p class="note">None for {{ pair }}.</p>
{% endfor %}
</div>
{% endfor %}"""


def _cautions(table: pl.DataFrame, pairs: Sequence[tuple[str, str]], methods: Sequence[str]) -> list[Block]:
    """What must not be trusted of the curves that are drawn, below the chart of the chosen run and task."""
    rows = _with_pair(table.filter(pl.col("method").is_in(methods), pl.col("caution").fill_null("") != ""))
    found: dict[str, list[str]] = {}
    for pair in (f"{run} · {task}" for run, task in pairs):
        own = rows.filter(pair=pair).group_by("method", "caution", maintain_order=True).agg(pl.col("horizon"))
        texts = [
            f"{forecaster_name(method)}, at {', '.join(f'{at:g}×' for at in horizons)}: {caution}."
            for method, caution, horizons in own.rows()
        ]
        found[pair] = texts
    having = sum(bool(texts) for texts in found.values())
    if not having:
        return []
    template = Environment(autoescape=True).from_string(CAUTIONS)
    markup = Markup(template.render(cautions=found, name=PAIR))
    of_all = f"{having} of {len(pairs)} runs and tasks have cautions; those of the chosen one are shown."
    return [Html("forecast-cautions", "Cautions", markup, caption=of_all if len(pairs) > 1 else "")]


def _ends(summary: pl.DataFrame) -> list[Block]:
    rows = _with_pair(summary).with_columns(
        pl.Series("name", [forecaster_name(method) for method in summary["method"]], pl.String)
    )
    ends = rows.filter("is_end")
    farthest = rows.filter(pl.col("horizon") == pl.col("horizon").max().over("run", "task"))
    title = "Where the runs end" if len(ends) else "The farthest horizon of every run"
    shown = ends if len(ends) else farthest
    columns = [
        Column("run", "Run"),
        Column("task", "Task"),
        Column("name", "Method"),
        Column("horizon", "Times the cut", "g"),
        Column("last_value", "At the cut", ".3f"),
        Column("predicted", "Forecast", ".3f", "low", "high"),
        Column("truth", "Truth", ".3f"),
        Column("rehearsal_coverage", "Covered in rehearsals", ".0%"),
        Column("caution", "Caution"),
    ]
    unknown = {name for name in ("truth", "rehearsal_coverage") if shown[name].null_count() == len(shown)}
    unknown |= {name for name in ("run", "task") if rows[name].n_unique() == 1}
    columns = [column for column in columns if column.name not in unknown]
    data = Dataset("forecast_ends", shown, "forecasting/summary", title.lower())
    blocks: list[Block] = [Table("forecast-ends", title, data, columns, key="pair", selects=PAIR)]
    others = rows.filter(
        ~pl.struct("pair", "horizon").is_in(shown.select(pl.struct("pair", "horizon")).to_series().implode())
    )
    if len(others):
        data = Dataset("forecast_others", others, "forecasting/summary", "other horizons")
        blocks.append(
            Table("forecast-others", "Other horizons", data, columns, key="pair", selects=PAIR, is_open=False)
        )
    return blocks
