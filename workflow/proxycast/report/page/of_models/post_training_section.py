"""What post-training changes: the claim fixed in advance, methods among bases and others, and why."""

import altair as alt
import polars as pl

from proxycast.proxy_formulas import SIGNS
from proxycast.report.page.answers.claim_facts import POPULATION_NAMES, facts_of_claims
from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Note, Section, Select, Table
from proxycast.report.page.charts import specification
from proxycast.report.page.of_models.model_evidence import leading_tail, method_axis, of_tail, with_names
from proxycast.report.page.study_results import StudyResults
from proxycast.report.page.task_lists import task_select, tasks_of
from proxycast.report.style import look, readable

COLOURS = {"all": "#2A93D1", "bases": "#E69F00", "post_trained": "#009E73", "within_base": "#CC79A7"}
SHAPES = {"all": "circle", "bases": "square", "post_trained": "triangle-up", "within_base": "diamond"}
STATISTIC, TASK = "shift_statistic", "shift_task"
OF_A_METHOD = 11  # pixels of each population of a row


def post_training_section(results: StudyResults) -> Section:
    """Empty where the study has none of these tables."""
    tail = leading_tail(results)
    claims, populations = (results.table(f"model_selection/{name}") for name in ("claims", "populations"))
    blocks = _claims(claims) if claims is not None else []
    blocks += _populations(populations, tail) if populations is not None else []
    shifts, means = (results.table(f"model_selection/{name}") for name in ("recipe_shifts", "recipe_means"))
    if shifts is not None and means is not None:
        blocks += _shifts(shifts, means, tail)
    return Section("post-training", "Post-training", blocks)


def _claims(claims: pl.DataFrame) -> list[Block]:
    rows = with_names(claims)
    others = with_names(claims.select(method="baseline"))["name"]
    several = [name for name in ("tail", "baseline_tail") if rows[name].n_unique() > 1]
    columns = [
        Column("population", "Among"),
        Column("name", "Method"),
        *([Column("tail", "Tail")] if several else []),
        Column("baseline_name", "Better than"),
        *([Column("baseline_tail", "Its tail")] if several else []),
        Column("spearman", "ρ", ".2f"),
        Column("baseline_spearman", "ρ of the other", ".2f"),
        Column("difference", "Difference", "+.2f", "difference_low", "difference_high"),
        Column("verdict", "Verdict"),
        Column("note", "Note"),
    ]
    data = Dataset("models_claims", rows.with_columns(baseline_name=others), "model_selection/claims")
    caption = "Supported: the interval of the difference lies above 0; refuted: below 0; undecided: neither."
    return [
        *(Note(f"The claim: {fact.text}.") for fact in facts_of_claims(claims)),
        Table("models-claims", "What was claimed in advance", data, columns, caption),
    ]


def _populations(populations: pl.DataFrame, tail: str) -> list[Block]:
    every = with_names(populations)
    rows = of_tail(every, tail).filter(pl.col("method") != "chance").drop_nulls("spearman")
    table = Dataset("models_populations_table", every, "model_selection/populations")
    columns = [
        Column("population", "Among"),
        Column("name", "Method"),
        Column("kind", "Kind"),
        *([Column("tail", "Tail")] if every["tail"].n_unique() > 1 else []),
        Column("models", "Models"),
        Column("bases", "Bases"),
        Column("spearman", "ρ", ".3f", "low", "high"),
        Column("difference", "Less bits per byte", "+.3f", "difference_low", "difference_high"),
        Column("verdict", "Verdict"),
        Column("note", "Note"),
    ]
    all_rows = Table("models-populations-table", "All of them as a table", table, columns, is_open=False)
    return [*([_populations_chart(rows, tail)] if len(rows) else []), all_rows]


def _populations_chart(rows: pl.DataFrame, tail: str) -> Chart:
    shown = [name for name in POPULATION_NAMES if name in set(rows["population"])]
    order = rows.filter(population="all").sort("spearman", descending=True, maintain_order=True)["name"]
    names = order.unique(maintain_order=True).to_list()
    words = ", ".join(f"'{name}': '{POPULATION_NAMES[name].capitalize()}'" for name in shown)
    legend = alt.Legend(title=None, orient="top", columns=2, symbolOpacity=1, labelExpr=f"({{{words}}})[datum.label]")
    colour, shape = (
        channel("population:N", legend=legend, scale=alt.Scale(domain=shown, range=[looks[name] for name in shown]))
        for channel, looks in ((alt.Color, COLOURS), (alt.Shape, SHAPES))
    )
    title = "Spearman's ρ on held-out tasks"
    base = alt.Chart(alt.NamedData("models_populations"), height=OF_A_METHOD * (len(shown) + 1) * len(names))
    base = base.encode(y=method_axis(names), yOffset=alt.YOffset("population:N", sort=shown), color=colour)
    tooltip = ["population:N", alt.Tooltip("name:N", title="method"), "models:Q", "bases:Q", "verdict:N"]
    for name in ("spearman", "low", "high", "difference", "difference_low", "difference_high"):
        tooltip.append(alt.Tooltip(f"{name}:Q", format=".3f"))
    chart = alt.layer(
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2, opacity=0.5)
        .encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(
            x=alt.X("spearman:Q", title=title, axis=alt.Axis(tickCount=6)), shape=shape, tooltip=tooltip
        ),
    )
    counts = rows.unique("population", maintain_order=True).select("population", "models", "bases").rows()
    sizes = "; ".join(f"{POPULATION_NAMES[name]}: {models} of {bases} bases" for name, models, bases in counts)
    return Chart(
        "models-populations",
        "Methods among bases, post-trained models and models of one base",
        specification(chart.properties(width="container")),
        [Dataset("models_populations", rows, "model_selection/populations", f"tail in {tail}, without chance")],
        caption=f"Models: {sizes}. Two tasks held out. Bars: intervals over bases, each with all its models. "
        "Within bases only models of one base are compared, so what pretraining made is held fixed.",
        alt="Mean Spearman correlation of every method among bases, post-trained models and models of one base",
    )


def _shifts(shifts: pl.DataFrame, means: pl.DataFrame, tail: str) -> list[Block]:
    """Shift of the truth over that of a statistic; crosses are means of recipes over bases."""
    rows, own_means = shifts.filter(tail=tail), means.filter(tail=tail)
    if rows.is_empty():
        return []
    crosses = own_means.filter(pl.col("recipe") != "all")
    tasks, statistics = tasks_of(rows), rows["statistic"].unique(maintain_order=True).to_list()
    here = f"datum.task === {TASK} && datum.statistic === {STATISTIC}"
    recipes = rows["recipe"].unique().sort().to_list()
    legend = alt.Legend(title="Recipe", orient="top", columns=4, symbolOpacity=1)
    colour = alt.Color("recipe:N", legend=legend, scale=alt.Scale(scheme="tableau10", domain=recipes))
    axis = alt.Axis(tickCount=7)
    x = alt.X("difference:Q", title="Shift of the statistic", scale=alt.Scale(zero=True), axis=axis)
    y = alt.Y("truth_difference:Q", title="Shift of the truth", scale=alt.Scale(zero=True))
    numbers = [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("difference", "truth_difference")]
    of_model = [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("base_value", "value", "base_truth", "truth")]
    ends = [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("low", "high", "truth_low", "truth_high")]
    points, marks = (
        alt.Chart(alt.NamedData(name), height=340).transform_filter(here).encode(x=x, y=y, color=colour)
        for name in ("models_shifts", "models_recipe_crosses")
    )
    chart = alt.layer(
        points.mark_point(filled=True, size=40, opacity=0.6).encode(
            tooltip=["model:N", "base:N", "recipe:N", *numbers, *of_model]
        ),
        marks.mark_point(shape="cross", filled=True, size=220, opacity=1).encode(
            tooltip=["recipe:N", "bases:Q", *numbers, *ends]
        ),
    ).add_params(alt.param(name=TASK, value=tasks[0]), alt.param(name=STATISTIC, value=statistics[0]))
    names = {name: _statistic_name(name) for name in statistics}
    selects = [*([Select(STATISTIC, "Statistic", names)] if len(names) > 1 else []), *task_select(TASK, tasks)]
    count = rows["model"].n_unique()
    return [
        Chart(
            "models-shifts",
            "What post-training does to a statistic, and to the truth",
            specification(chart.properties(width="container")),
            [
                Dataset("models_shifts", rows, "model_selection/recipe_shifts", f"tail {tail}"),
                Dataset(
                    "models_recipe_crosses", crosses, "model_selection/recipe_means", f"tail {tail}, single recipes"
                ),
            ],
            caption=f"Each mark: a post-trained model less its base ({count} models). Crosses: mean of a recipe over "
            "bases. A statistic that follows the truth has its marks on a line.",
            alt="Shift of the truth over the shift of a statistic for every post-trained model",
            selects=selects,
            marks=count + len(recipes),
        ),
        _means_table(means),
    ]


def _statistic_name(statistic: str) -> str:
    unit = look(statistic).unit
    return readable(statistic) + (f", {unit}" if unit else "") + ("; less is better" if SIGNS[statistic] < 0 else "")


def _means_table(means: pl.DataFrame) -> Table:
    columns = [
        Column("recipe", "Recipe"),
        *([Column("task", "Task")] if means["task"].n_unique() > 1 else []),
        *([Column("tail", "Tail")] if means["tail"].n_unique() > 1 else []),
        Column("statistic", "Statistic"),
        Column("models", "Models"),
        Column("bases", "Bases"),
        Column("difference", "Shift", "+.3g", "low", "high"),
        Column("truth_difference", "Shift of the truth", "+.3g", "truth_low", "truth_high"),
        Column("spearman", "ρ of the shifts", ".2f", "spearman_low", "spearman_high"),
        Column("note", "Note"),
    ]
    data = Dataset("models_recipe_means", means, "model_selection/recipe_means")
    caption = "ρ: over the models, with the statistic's own sign. Intervals are over bases."
    return Table("models-recipe-means", "Shifts by recipe as a table", data, columns, caption, is_open=False)
