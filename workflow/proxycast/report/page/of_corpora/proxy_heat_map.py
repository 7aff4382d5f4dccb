"""Every proxy at a budget: a heat map of decision accuracy, and what the chosen proxy predicts for each corpus."""

import json
from collections.abc import Sequence

import altair as alt
import polars as pl
from jinja2 import Environment
from markupsafe import Markup

from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Html, Note, Section, Table, When
from proxycast.report.page.charts import specification
from proxycast.report.page.formats import shown, with_interval
from proxycast.report.page.grids import Cell, grid, level
from proxycast.report.page.of_corpora.corpus_orders import (
    BUDGET_KEY,
    ORDER_COLUMNS,
    PROXY_COLUMNS,
    PROXY_KEY,
    Place,
    budget_select,
    budgets_in,
    name_of,
    proxies_in,
    sorted_as,
)
from proxycast.report.page.of_corpora.scatter_names import HEIGHT, LONGEST, NARROW, PADDING, placed_names
from proxycast.report.page.study_results import StudyResults
from proxycast.report.style import (
    BASELINE_LOOKS,
    STATISTIC_LOOKS,
    WEIGHTING_LOOKS,
    capital,
    in_order,
    look,
    readable,
    weighting_name,
)

MOST_PREDICTIONS = 12000  # rows on the page; of more, only the proxies of the table summary
MOST_NAMED = 60  # corpora of which some have names in the scatter; of more, only the one predicted to be best
POINT = "#0072B2"


def heat_map_section(results: StudyResults) -> Section:
    accuracies = _at_budgets(results)
    if accuracies is None or accuracies.is_empty():
        return Section("proxies", "Every proxy")
    places = budgets_in(results, accuracies)
    dataset = Dataset(
        "at_budgets",
        sorted_as(accuracies, [place.cell for place in places]),
        "data_selection/decision_accuracy",
        "budgets, all tasks, one seed",
    )
    blocks: list[Block] = []
    if "proxy" not in accuracies["kind"]:
        blocks.append(Note("This study has no proxies of its own: the map shows what it compares instead."))
    first = _first_choice(results, accuracies.filter(**places[0].cell))
    blocks.append(_heat_map(dataset, places, first))
    predictions = _predictions(results, accuracies, places)
    if predictions is None:
        blocks.append(Note("This study has no table of predictions: run it again for the scatter of a proxy."))
    else:
        blocks.append(_scatter(results, predictions, places, first))
    blocks += [_table(dataset, place, place == places[0]) for place in places]
    return Section("proxies", "Every proxy", blocks)


def _at_budgets(results: StudyResults) -> pl.DataFrame | None:
    """decision_accuracy of single seeds over all tasks, against the target's metric, at the budgets; best first."""
    table, target = results.table("data_selection/decision_accuracy"), results.study.target
    if table is None or target is None:
        return None
    budgets = pl.DataFrame([(b.size, b.step) for b in results.budgets], ["size", "step"], orient="row")
    rows = table.filter(truth=target.metric, task="all", seed="single").cast({"step": pl.Int64})
    rows = rows.join(budgets, ["size", "step"], "semi", maintain_order="left") if len(budgets) else rows
    return rows.sort("decision_accuracy", descending=True, nulls_last=True, maintain_order=True)


def _first_choice(results: StudyResults, rows: pl.DataFrame) -> tuple[str, str]:
    """The first highlighted proxy, or the best one where it is missing."""
    found = proxies_in(rows)
    wanted = [(proxy.statistic, proxy.weighting) for proxy in results.study.highlighted]
    return next((name for name in wanted if name in found), found[0])


# The map

MAPS = """{% for place, first, maps in parts %}
<div class="maps" data-shown-for="budget" data-value="{{ place.key }}"{% if not first %} hidden{% endif %}>
{% for map in maps %}{{ map }}{% endfor %}</div>
{% endfor %}"""


def _heat_map(dataset: Dataset, places: Sequence[Place], first: tuple[str, str]) -> Html:
    parts = [(place, place == places[0], _maps(dataset.frame.filter(**place.cell), place, first)) for place in places]
    marked = dataset.frame["depends_on_candidate"].any()
    star = " * The weights depend on the candidate: such a proxy can invert a ranking." if marked else ""
    return Html(
        "heat-map",
        "Decision accuracy of every proxy, one seed",
        Markup(Environment(autoescape=True).from_string(MAPS).render(parts=parts)),
        [dataset],
        caption="Blue: better than chance (0.5); red: worse. For a single seed, over all tasks. Choose a cell to see "
        f"what the proxy predicts for each corpus, and its row in the table.{star}",
        selects=[budget_select("budget", places)] if len(places) > 1 else [],
    )


def _maps(rows: pl.DataFrame, place: Place, first: tuple[str, str]) -> list[Markup]:
    """The map of the proxies, statistics by weightings, and that of everything else."""
    found = {(row["statistic"], row["weighting"]): row for row in rows.iter_rows(named=True)}

    def cell(statistic: str, weighting: str) -> Cell | None:
        row = found.get((statistic, weighting))
        if row is None:
            return None
        value = with_interval(row, "decision_accuracy", ".3f", "low", "high")
        return Cell(
            shown(row["decision_accuracy"], ".2f"),
            level(row["decision_accuracy"], 0, 1),
            f"{readable(statistic, weighting)}: {value}",
            selects="proxy",
            value=f"{statistic}/{weighting}",
            goes="scatter",
            is_pressed=(statistic, weighting) == first,
        )

    maps = []
    proxies, others = rows.filter(kind="proxy"), rows.filter(pl.col("kind") != "proxy")
    if len(proxies):
        statistics = in_order(proxies["statistic"], STATISTIC_LOOKS)
        weightings = in_order(proxies["weighting"], WEIGHTING_LOOKS)
        marked = set(proxies.filter("depends_on_candidate")["weighting"])
        maps.append(
            grid(
                [look(name).label for name in statistics],
                [capital(weighting_name(name)) + ("*" if name in marked else "") for name in weightings],
                [[cell(statistic, weighting) for weighting in weightings] for statistic in statistics],
                label=f"Decision accuracy of proxies, statistics by weightings, {place.label}",
            )
        )
    if len(others):
        names = in_order(others["statistic"], BASELINE_LOOKS)
        cells = [[cell(name, "none")] for name in names]
        label = f"Decision accuracy of baselines, {place.label}"
        maps.append(grid([look(name).label for name in names], ["Baselines"], cells, label=label))
    return maps


def _table(dataset: Dataset, place: Place, is_first: bool) -> Table:
    return Table(
        "proxies-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in place.key),
        f"All methods, {place.label}",
        dataset,
        [
            Column("statistic", "Statistic"),
            Column("weighting", "Weighting"),
            Column("decision_accuracy", "Accuracy, one seed", ".3f", "low", "high"),
            Column("difference", "Less best baseline", "+.3f", "difference_low", "difference_high"),
            Column("spearman", "Spearman's rho", ".2f", "spearman_low", "spearman_high"),
            Column("kind", "Kind"),
            Column("note", "Note"),
        ],
        caption="For a single seed, over all tasks; the best first. The best baseline is chosen in hindsight.",
        key=PROXY_COLUMNS,
        selects="proxy",
        where=place.cell,
        when=When("budget", place.key, is_first),
    )


# What the chosen proxy predicts


def _predictions(results: StudyResults, accuracies: pl.DataFrame, places: Sequence[Place]) -> Dataset | None:
    table = results.table("data_selection/predictions")
    if table is None:
        return None
    told = ""
    at = pl.DataFrame([place.cell for place in places])
    rows = table.join(at, ["size", "step"], "semi", maintain_order="left")
    if len(rows) > MOST_PREDICTIONS:
        summary = results.table("data_selection/summary")
        best = accuracies if summary is None else summary
        fixed = pl.DataFrame([proxy.model_dump() for proxy in results.study.highlighted])
        for names in (best.select(PROXY_COLUMNS).unique(), fixed.select(PROXY_COLUMNS)):
            if len(rows) > MOST_PREDICTIONS:
                rows, told = rows.join(names, PROXY_COLUMNS, "semi", maintain_order="left"), "only the best proxies"
    return Dataset("predictions", rows, "data_selection/predictions", told) if len(rows) else None


def _scatter(results: StudyResults, dataset: Dataset, places: Sequence[Place], first: tuple[str, str]) -> Chart:
    """Predicted score against truth, a point a corpus; the one predicted to be best has its name, others with room."""
    corpora = dataset.frame["corpus"].n_unique()
    metric = look(results.study.target.metric).label
    drawn = {"scale": alt.Scale(zero=False, nice=False, padding=PADDING)}
    x = alt.X("predicted:Q", title="predicted score", axis=alt.Axis(tickCount=6, labelOverlap=True), **drawn)
    y = alt.Y("truth:Q", title=f"{metric}, target", axis=alt.Axis(tickCount=6), **drawn)
    tooltip = [alt.Tooltip("corpus:N")] + [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("predicted", "truth")]
    layers = [alt.Chart().mark_point(filled=True, size=70, opacity=0.8, color=POINT).encode(x=x, y=y, tooltip=tooltip)]
    align, dx, dy = (alt.ExprRef(f"datum.beside[{n}]") for n in (1, 2, 3))
    named = alt.Chart().transform_filter(f"datum.beside && (datum.beside[0] == {NARROW} || width >= datum.beside[0])")
    named = named.mark_text(aria=False, align=align, dx=dx, dy=dy, fontSize=11, limit=LONGEST)
    layers.append(named.encode(x=x, y=y, text="corpus:N"))
    names = name_of(proxies_in(dataset.frame), "proxy")
    title = alt.Title(alt.ExprRef(f"{names} || 'no predictions of this method'"), anchor="start", fontSize=13)
    chart = (
        alt.layer(*layers, data=alt.NamedData(dataset.name))
        .add_params(alt.param(name="proxy", value="/".join(first)), alt.param(name="budget", value=places[0].key))
        .transform_filter(f"{PROXY_KEY} == proxy && {BUDGET_KEY} == budget")
        .transform_calculate(beside=f"({_names(dataset.frame)})[proxy + '/' + budget][datum.corpus]")
        .properties(width="container", height=HEIGHT, title=title)
    )
    return Chart(
        "scatter",
        "What it predicts, against the truth",
        specification(chart),
        [dataset],
        caption="A point is a corpus; scores are means over tasks and seeds, higher is better. Hover for its name; "
        "the corpus that is predicted to be best has its name beside it, others where there is room.",
        alt=f"Predicted scores of {corpora} corpora against their truth, for the proxy chosen in the map.",
        marks=corpora,
    )


def _names(predictions: pl.DataFrame) -> str:
    """Order -> corpus -> where its name stands (`placed_names`), as an expression of Vega."""
    found = {}
    rows = predictions.drop_nulls(["predicted", "truth"]).sort("predicted", "truth", descending=True)
    for cell, of in rows.group_by(ORDER_COLUMNS, maintain_order=True):
        of = of if len(of) <= MOST_NAMED else of.head(1)
        found["/".join(map(str, cell))] = placed_names(of["predicted"], of["truth"], of["corpus"].to_list())
    return json.dumps(found)
