"""The order of the corpora: their places with intervals, who can be told apart from whom, and what it cost."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Html, Note, Section, Table, When
from proxycast.report.page.charts import specification
from proxycast.report.page.formats import shown
from proxycast.report.page.grids import LEVELS, Cell, grid
from proxycast.report.page.of_corpora.corpus_costs import cost_blocks
from proxycast.report.page.of_corpora.corpus_orders import (
    MOST_ORDERS,
    ORDER_COLUMNS,
    ORDER_KEY,
    Order,
    order_select,
    orders_of,
    sorted_as,
)
from proxycast.report.page.of_corpora.orders_agreement import agreement_blocks
from proxycast.report.page.study_results import StudyResults

MOST_DRAWN = 40  # corpora of a chart or matrix; tables have all
PREDICTED, TRUE = "#0072B2", "#D55E00"
BETTER, WORSE, EQUAL, UNKNOWN = "+", "−", "=", "?"


def ranking_section(results: StudyResults) -> Section:
    ranking = results.table("data_selection/ranking")
    if ranking is None:
        study = results.study
        is_asked_for = study.corpora and not (study.model_selection or study.forecasting)
        why = [Note("This study has no ranking of corpora.", is_caution=True)] if is_asked_for else []
        return Section("ranking", "Ranking", why)
    orders = orders_of(results, ranking)
    shown_orders = orders[:MOST_ORDERS]
    rows = sorted_as(ranking.sort("place", "corpus"), [order.cell for order in orders])
    if len(orders) > MOST_ORDERS:
        rows = rows.join(pl.DataFrame([o.cell for o in shown_orders]), ORDER_COLUMNS, "semi", maintain_order="left")
    dataset = Dataset(
        "ranking", rows, "data_selection/ranking", "" if rows.height == ranking.height else "of these orders"
    )
    blocks: list[Block] = [_chart(dataset, shown_orders)]
    if len(orders) > MOST_ORDERS:
        blocks.append(Note(f"{MOST_ORDERS} of {len(orders)} orders are on this page; the result table has all."))
    if "truth" not in ranking.columns:
        blocks.append(Note("This study has no truth: the order is a prediction, and nothing here judges it."))
    blocks += [_table(dataset, order, order == orders[0]) for order in shown_orders]
    blocks += _pairs(results.table("data_selection/pairs"), ranking, shown_orders)
    blocks += cost_blocks(results, shown_orders)
    return Section("ranking", "Ranking", [*blocks, *agreement_blocks(results, shown_orders)])


def _chart(dataset: Dataset, orders: Sequence[Order]) -> Chart:
    """Predicted and true rank of each corpus, the predicted best first; without a truth, its place."""
    corpora, known = dataset.frame["corpus"].n_unique(), "truth" in dataset.frame.columns
    if known:
        marks = [("predicted", "predicted_rank", 4), ("true", "true_rank", -4)]
    else:
        marks = [("predicted", "place", 0)]
    layers = [layer for mark in marks for layer in _marks(*mark, known, _ranks(corpora))]
    chart = (
        alt.layer(*layers, data=alt.NamedData(dataset.name))
        .add_params(alt.param(name="order", value=orders[0].key))
        .transform_filter(f"{ORDER_KEY} == order")
        .transform_window(row="row_number()", sort=[alt.SortField("place"), alt.SortField("corpus")])
        .transform_filter(f"datum.row <= {MOST_DRAWN}")
        .properties(width="container", height=min(corpora, MOST_DRAWN) * (24 if known else 19))
    )
    cut = f" The first {MOST_DRAWN} of {corpora} corpora; the table has all." if corpora > MOST_DRAWN else ""
    what = "Circles: the predicted rank. Diamonds: the true one" if known else "Predicted places"
    return Chart(
        "ranking-chart",
        "The order of the corpora",
        specification(chart),
        [dataset],
        caption=f"{what}. Bars: intervals, where something could be resampled.{cut}",
        alt=f"Places of {min(corpora, MOST_DRAWN)} corpora with intervals; the table below has the numbers.",
        selects=[order_select(orders)] if len(orders) > 1 else [],
        marks=min(corpora, MOST_DRAWN),
    )


def _ranks(corpora: int) -> list[int]:
    """The ranks that an axis names: 1, then about six round ones."""
    step = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, corpora) if n >= corpora / 6)
    return [1, *range(max(step, 2), corpora + 1, step)]


def _marks(kind: str, column: str, aside: float, known: bool, ranks: list[int]) -> list[alt.Chart]:
    """The points of `column` and their intervals, `aside` pixels below the middle of the corpus's row."""
    y = alt.Y("corpus:N", sort=alt.EncodingSortField("row", op="min"), title=None, axis=alt.Axis(labelLimit=170))
    scale, axis = alt.Scale(zero=False, nice=False, padding=8), alt.Axis(orient="top", values=ranks)
    legend = alt.Legend(title=None, orient="top", symbolOpacity=1) if known else None
    domain = ["predicted", "true"]
    ink = alt.Color("kind:N", scale=alt.Scale(domain=domain, range=[PREDICTED, TRUE]), legend=legend)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=domain, range=["circle", "diamond"]), legend=legend)
    named = alt.Chart().transform_calculate(kind=f"'{kind}'")
    bar = (
        named.transform_filter(f"isValid(datum.{column}_low) && isValid(datum.{column}_high)")
        .mark_rule(aria=False, strokeWidth=2, opacity=0.55, yOffset=aside)
        .encode(y=y, x=alt.X(f"{column}_low:Q", scale=scale, axis=axis), x2=f"{column}_high:Q", color=ink)
    )
    point = (
        named.transform_filter(f"isValid(datum.{column})")
        .mark_point(filled=True, size=70, opacity=1, yOffset=aside)
        .encode(
            y=y,
            x=alt.X(f"{column}:Q", title="rank, 1 is best", scale=scale, axis=axis),
            color=ink,
            shape=shape,
            tooltip=_tooltips(known),
        )
    )
    return [bar, point]


def _tooltips(known: bool) -> list[alt.Tooltip]:
    ranks = {"predicted_rank": "predicted rank", "true_rank": "true rank"} if known else {"place": "place"}
    scores = {"predicted": "predicted score"} | ({"truth": "true score"} if known else {})
    return [
        alt.Tooltip("corpus:N"),
        *(alt.Tooltip(f"{column}:Q", title=title, format=".3~g") for column, title in (ranks | scores).items()),
    ]


def _table(dataset: Dataset, order: Order, is_first: bool) -> Table:
    known = "truth" in dataset.frame.columns
    place = Column("place", "Place", ".3g", "place_low", "place_high")
    predicted = Column("predicted", "Predicted score", ".4g", "predicted_low", "predicted_high")
    columns = [Column("corpus", "Corpus")]
    # Without a truth there are places alone; with one, the place among all differs where some corpora have none.
    if not known or not dataset.frame["place"].equals(dataset.frame["predicted_rank"]):
        columns.append(place)
    if known:
        columns += [
            Column("predicted_rank", "Predicted rank", ".3g", "predicted_rank_low", "predicted_rank_high"),
            Column("true_rank", "True rank", ".3g", "true_rank_low", "true_rank_high"),
            predicted,
            Column("truth", "True score", ".4g", "truth_low", "truth_high"),
        ]
    else:
        columns.append(predicted)
    return Table(
        f"ranking-table-{_word(order)}",
        f"All corpora by {order.label}",
        dataset,
        [*columns, Column("seeds", "Seeds")],
        caption="Scores are means over tasks and seeds.",
        key="corpus",
        selects="corpus",
        where=order.cell,
        when=When("order", order.key, is_first),
    )


def _word(order: Order) -> str:
    """The order's key as part of an id."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in order.key)


def _pairs(pairs: pl.DataFrame | None, ranking: pl.DataFrame, orders: Sequence[Order]) -> list[Block]:
    if pairs is None:
        return [Note("There are no pairs to tell apart: fewer than two corpora are compared.")]
    corpora = ranking["corpus"].n_unique()
    if corpora <= MOST_DRAWN:
        dataset = Dataset("pairs", sorted_as(pairs, [order.cell for order in orders]), "data_selection/pairs")
        return [_matrix(dataset, ranking, order, order == orders[0]) for order in orders]
    parts = [_undecided_with_leader(pairs, ranking, order) for order in orders]
    undecided = Dataset("pairs", pl.concat(parts), "data_selection/pairs", "undecided with the leader")
    return [
        Note(f"{corpora} corpora are too many for a matrix of pairs. These cannot be told apart from the first:"),
        *(
            Table(
                f"pairs-table-{_word(order)}",
                f"Not told apart from the first by {order.label}",
                undecided,
                PAIR_COLUMNS,
                where=order.cell,
                when=When("order", order.key, order == orders[0]),
            )
            for order in orders
        ),
    ]


PAIR_COLUMNS = [
    Column("better", "Better"),
    Column("worse", "Worse"),
    Column("difference", "Difference of scores", ".3g", "difference_low", "difference_high"),
]


def _undecided_with_leader(pairs: pl.DataFrame, ranking: pl.DataFrame, order: Order) -> pl.DataFrame:
    leader = _in_order(ranking, order)[0]
    return pairs.filter(~pl.col("told_apart").fill_null(False), better=leader, **order.cell)


def _in_order(ranking: pl.DataFrame, order: Order) -> list[str]:
    return ranking.filter(**order.cell).sort("place", "corpus")["corpus"].to_list()


def _matrix(dataset: Dataset, ranking: pl.DataFrame, order: Order, is_first: bool) -> Html:
    names = _in_order(ranking, order)
    found = {(r["better"], r["worse"]): r for r in dataset.frame.filter(**order.cell).iter_rows(named=True)}
    cells = [[None if a == b else _pair_cell(a, b, found) for b in names] for a in names]
    unsure = [name for name, cell in zip(names, cells[0]) if cell and cell.text in (EQUAL, UNKNOWN)]
    told = ", ".join(unsure) if unsure else "none"
    undecided = sum(not row["told_apart"] for row in found.values())
    return Html(
        f"pairs-{_word(order)}",
        "Who can be told apart from whom",
        grid(
            [f"{n}. {name}" for n, name in enumerate(names, 1)],
            [str(n) for n in range(1, len(names) + 1)],
            cells,
            label=f"Pairs of corpora by {order.label}",
            narrow=True,
        ),
        [dataset],
        caption=f"By {order.label}. + the corpus of the row is better than that of the column, − it is worse, "
        f"= they cannot be told apart. Undecided: {undecided} of {len(found)} pairs. "
        f"Not told apart from {names[0]}, which leads: {told}.",
        when=When("order", order.key, is_first),
    )


def _pair_cell(row: str, column: str, found: dict[tuple[str, str], dict]) -> Cell | None:
    pair = found.get((row, column)) or found.get((column, row))
    if pair is None:
        return None
    ends = f" [{shown(pair['difference_low'], '.3g')}, {shown(pair['difference_high'], '.3g')}]"
    about = f"{pair['better']} over {pair['worse']}: {shown(pair['difference'], '.3g')}{ends}"
    if pair["told_apart"] is None:
        return Cell(UNKNOWN, None, f"{about}, no interval")
    if not pair["told_apart"]:
        return Cell(EQUAL, LEVELS // 2, f"{about}, not told apart")
    return Cell(BETTER, 17, about) if pair["better"] == row else Cell(WORSE, 3, about)
