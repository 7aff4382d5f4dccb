"""How far the orders of the corpora agree with each other, and what judges from other studies predict."""

from collections.abc import Sequence

import polars as pl

from proxycast.report.page.blocks import Block, Column, Dataset, Html, Note, Table
from proxycast.report.page.formats import shown
from proxycast.report.page.grids import Cell, grid, level
from proxycast.report.page.of_corpora.corpus_orders import ORDER_COLUMNS, Order
from proxycast.report.page.study_results import StudyResults


def agreement_blocks(results: StudyResults, orders: Sequence[Order]) -> list[Block]:
    blocks: list[Block] = []
    agreement = results.table("data_selection/agreement")
    if agreement is None:
        blocks.append(Note("There is one order of the corpora, so there is no other that it could agree with."))
    else:
        blocks.append(_matrix(agreement, orders))
    judged = results.table("data_selection/judged")
    if judged is not None:
        blocks += _judged(judged)
    return blocks


def _matrix(agreement: pl.DataFrame, orders: Sequence[Order]) -> Html:
    dataset = Dataset("agreement", agreement, "data_selection/agreement")
    rho = {}
    for row in agreement.iter_rows(named=True):
        one, other = (tuple(row[f"{prefix}{key}"] for key in ORDER_COLUMNS) for prefix in ("", "other_"))
        rho[one, other] = rho[other, one] = row["spearman"]

    def cell(a: Order, b: Order) -> Cell | None:
        value = rho.get((tuple(a.cell.values()), tuple(b.cell.values())))
        return None if a == b else Cell(shown(value, ".2f"), level(value, -1, 1), f"{a.label}; {b.label}")

    return Html(
        "agreement",
        "How far the orders agree",
        grid(
            [f"{n}. {order.label}" for n, order in enumerate(orders, 1)],
            [str(n) for n in range(1, len(orders) + 1)],
            [[cell(a, b) for b in orders] for a in orders],
            label="Spearman's rho between the orders of the corpora",
        ),
        [dataset],
        caption="Spearman's rho between two orders of the corpora: 1 is the same order, 0 none in common.",
    )


def _judged(judged: pl.DataFrame) -> list[Block]:
    dataset = Dataset("judged", judged, "data_selection/judged")
    evidence = judged.select("judge", "evidence").unique(maintain_order=True).rows()
    warnings = judged.filter(pl.col("warnings") != "").select("judge", "warnings").unique(maintain_order=True).rows()
    columns = [
        Column("judge", "Judge"),
        Column("statistic", "Statistic"),
        Column("weighting", "Weighting"),
        Column("size", "Size"),
        Column("step", "Step", ","),
        Column("corpus", "Corpus"),
        Column("place", "Place", "g", "place_low", "place_high"),
        Column("metric", "Metric"),
        Column("predicted", "Predicted", ".4g", "predicted_low", "predicted_high"),
        Column("decision_accuracy", "Accuracy there", ".3f", "low", "high"),
    ]
    return [
        Table("judged", "What judges of other studies predict", dataset, columns),
        *(Note(f"Judge {judge}: {text}") for judge, text in evidence if text),
        *(Note(f"Judge {judge}: {text}", is_caution=True) for judge, text in warnings),
    ]
