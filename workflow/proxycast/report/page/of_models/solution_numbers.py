"""How far the order depends on who wrote the solutions, and on how many there are."""

import altair as alt
import polars as pl

from proxycast.experiments.model_selection.subsets import EVERY_WRITER
from proxycast.report.model_selection_figures import WRITER_NAMES, method_name
from proxycast.report.page.blocks import Block, Chart, Dataset, Select
from proxycast.report.page.charts import specification
from proxycast.report.style import readable

WRITERS_METHOD, FIGURE, PROXY = "writers_method", "writers_figure", "counts_proxy"
FIGURES = {"spearman": "with the truth", "agreement": "with the order from all solutions"}


def writers_compared(writers: pl.DataFrame | None) -> list[Block]:
    """Spearman over the number of problems, a line for each writer; small marks are single draws."""
    if writers is None:
        return []
    names = writers["writer"].unique(maintain_order=True).to_list()
    if len(names) == 2:  # all solutions are of one writer: "all" repeats them
        names.remove(EVERY_WRITER)
    rows = writers.filter(pl.col("writer").is_in(names)).with_columns(
        problems=pl.col("number").cast(pl.String).fill_null("all"),
        name=pl.col("writer").replace(WRITER_NAMES),
    )
    numbers = [*map(str, sorted(rows["number"].drop_nulls().unique())), *(["all"] * bool(rows["number"].null_count()))]
    methods = rows["method"].unique(maintain_order=True).to_list()
    base = (
        alt.Chart(alt.NamedData("models_writers"), height=260)
        .transform_filter(f"datum.method === {WRITERS_METHOD}")
        .transform_calculate(shown=f"datum[{FIGURE}]")
        .transform_filter("isValid(datum.shown)")
    )
    legend = alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1) if len(names) > 1 else None
    named = [WRITER_NAMES.get(name, name) for name in names]
    colour = alt.Color("name:N", legend=legend, scale=alt.Scale(scheme="tableau10", domain=named))
    shape = alt.Shape("name:N", legend=legend, scale=alt.Scale(domain=named))
    x = alt.X("problems:O", sort=numbers, title="Problems of each task", axis=alt.Axis(labelAngle=0))
    y = alt.Y("shown:Q", title="Spearman's ρ, mean over folds", scale=alt.Scale(zero=False))
    of_draw = ["name:N", "problems:O", "draw:O", alt.Tooltip("shown:Q", title="rho", format=".3f")]
    # A mean covers its draw where there is one draw only, so it has a tooltip of its own.
    of_mean = ["name:N", "problems:O", "draws:Q", alt.Tooltip("shown:Q", title="mean rho", format=".3f")]
    mean = base.transform_aggregate(shown="mean(shown)", draws="count()", groupby=["name", "problems"])
    chart = alt.layer(
        base.mark_point(size=18, opacity=0.5, filled=True).encode(x=x, y=y, color=colour, tooltip=of_draw),
        mean.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, detail="name:N"),
        mean.mark_point(size=60, filled=True, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=of_mean),
    ).add_params(alt.param(name=WRITERS_METHOD, value=methods[0]), alt.param(name=FIGURE, value="spearman"))
    selects = [Select(FIGURE, "ρ", FIGURES)]
    several = len(methods) > 1
    selects += [Select(WRITERS_METHOD, "Method", {m: method_name(m) for m in methods})] if several else []
    return [
        Chart(
            "models-writers",
            "Writers and numbers of solutions",
            specification(chart.properties(width="container")),
            [Dataset("models_writers", rows, "model_selection/writers")],
            caption="Small marks: single draws of the problems. Lines: means over draws. Two tasks held out.",
            alt="Spearman correlation over the number of problems for each writer",
            selects=selects,
        )
    ]


def enough_solutions(counts: pl.DataFrame | None) -> list[Block]:
    """Spearman over the number of solutions with the band over draws, and the number that is enough."""
    if counts is None:
        return []
    reference = "truth" if "truth" in counts["reference"] else counts["reference"][0]
    rows = counts.filter(reference=reference)
    keys = rows.select("statistic", "weighting", "tail").rows()
    several = rows["tail"].n_unique() > 1
    names = [readable(s, w) + (f" ({tail})" if several else "") for s, w, tail in keys]
    rows = rows.with_columns(pl.Series("name", names, pl.String))
    proxies = rows["name"].unique(maintain_order=True).to_list()
    base = alt.Chart(alt.NamedData("models_counts"), height=260).transform_filter(f"datum.name === {PROXY}")
    x = alt.X(
        "number:Q", title="Solutions of each task", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s", grid=False)
    )
    title = "Spearman's ρ " + ("with the truth" if reference == "truth" else "with the order from all solutions")
    y = alt.Y("spearman:Q", title=title, scale=alt.Scale(zero=False))
    tooltip = ["number:Q", *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("spearman", "low", "high")), "enough:Q"]
    chart = alt.layer(
        base.mark_area(opacity=0.25, color="#2A93D1").encode(
            x=x, y=alt.Y("draws_low:Q", title=title, scale=alt.Scale(zero=False)), y2="draws_high:Q"
        ),
        base.mark_line(color="#2A93D1", point=alt.OverlayMarkDef(size=40, color="#2A93D1")).encode(
            x=x, y=y, tooltip=tooltip
        ),
        base.transform_aggregate(enough="max(enough)")
        .transform_filter("isValid(datum.enough)")
        .mark_rule(strokeDash=[6, 3], color="#8f8f8f")
        .encode(x=alt.X("enough:Q", title="Solutions of each task")),
    ).add_params(alt.param(name=PROXY, value=proxies[0]))
    return [
        Chart(
            "models-counts",
            "How many solutions are enough",
            specification(chart.properties(width="container")),
            [Dataset("models_counts", rows, "model_selection/solution_counts", f"reference: {reference}")],
            caption="Band: draws of random solutions. Dashed: from this number on, ρ is within 0.01 of all solutions. "
            + _about_enough(rows),
            alt="Spearman correlation over the number of solutions",
            selects=[Select(PROXY, "Proxy", {name: name for name in proxies})] if len(proxies) > 1 else [],
        )
    ]


def _about_enough(rows: pl.DataFrame) -> str:
    parts = []
    for name, enough, low, high in (
        rows.unique("name", maintain_order=True).select("name", "enough", "enough_low", "enough_high").rows()
    ):
        ends = "" if low is None or high is None else f" [{low}, {high}]"
        parts.append(f"{name}: " + ("never" if enough is None else f"{enough}{ends}"))
    return f"Enough by {'; by '.join(parts)}."
