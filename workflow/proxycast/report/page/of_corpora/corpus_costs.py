"""What an order of the corpora costs: compute of the small runs and of reading the solutions, and how good it is."""

from collections.abc import Sequence

import polars as pl

from proxycast.report.page.blocks import Block, Column, Dataset, Note, Table
from proxycast.report.page.formats import shown
from proxycast.report.page.of_corpora.corpus_orders import ORDER_COLUMNS, Order
from proxycast.report.page.study_results import StudyResults


def cost_blocks(results: StudyResults, orders: Sequence[Order]) -> list[Block]:
    """The table of each order's cost and decision accuracy, and the noise ceiling."""
    pareto = results.table("data_selection/pareto")
    wanted = pl.DataFrame([order.cell for order in orders])
    runs = _runs(results)
    if pareto is None:
        if runs is None:
            return []
        rows = wanted.select("size", "step").unique(maintain_order=True).join(runs, ["size", "step"], "left")
        columns = [Column("size", "Size"), Column("step", "Step", ","), *RUN_COLUMNS]
        dataset = Dataset("costs", rows, "checkpoints", "small runs at the budgets, summed")
        return [Table("costs", "What it cost", dataset, columns, caption=ABOUT_RUNS)]
    rows = wanted.join(pareto, ORDER_COLUMNS, "inner", maintain_order="left")
    columns = [
        Column("statistic", "Statistic"),
        Column("weighting", "Weighting"),
        Column("size", "Size"),
        Column("step", "Step", ","),
        Column("decision_accuracy", "Accuracy, one seed", ".2f", "low", "high"),
        Column("compute_fraction", "Of target compute", ".2g"),
    ]
    if runs is not None:
        rows = rows.join(runs, ["size", "step"], "left", maintain_order="left")
        columns += RUN_COLUMNS
    else:
        columns.append(Column("flops", "FLOPs, a run", ".2e"))
    if rows["scoring_flops"].count():
        # scoring_flops is 2 N T and flops is 6 N D: T follows.
        scored = (3 * pl.col("scoring_flops") * pl.col("tokens") / pl.col("flops")).round().cast(pl.Int64)
        rows = rows.with_columns(tokens_read=scored)
        columns.append(Column("tokens_read", "Tokens read, a run", ","))
    dataset = Dataset("costs", rows, "data_selection/pareto", "the orders above; runs are from checkpoints")
    caption = f"Decision accuracy is that of a single seed; the answer above takes the mean over seeds. {ABOUT_RUNS} "
    caption += "GPU-hours are not in the tables."
    table = Table("costs", "What it cost, and how good it is", dataset, columns, caption=caption)
    return [table, Note(_about_ceiling(results))]


ABOUT_RUNS = "Runs: every corpus and seed at this size and step."
RUN_COLUMNS = [Column("runs", "Runs", ","), Column("flops_of_runs", "FLOPs, all runs", ".2e")]


def _runs(results: StudyResults) -> pl.DataFrame | None:
    """size, step, runs, flops_of_runs: of all small models at a size and step."""
    checkpoints = results.table("checkpoints")
    if checkpoints is None:
        return None
    small = checkpoints.filter(role="proxy")
    return small.group_by("size", "step").agg(runs=pl.len(), flops_of_runs=pl.col("flops").sum())


def ceiling_of(results: StudyResults) -> dict | None:
    """The row of the target's metric in the table truth."""
    truth, target = results.table("data_selection/truth"), results.study.target
    rows = truth.filter(metric=target.metric) if truth is not None and target else None
    return rows.row(0, named=True) if rows is not None and len(rows) else None


def _about_ceiling(results: StudyResults) -> str:
    row = ceiling_of(results)
    if row is None or row["ceiling_decision_accuracy"] is None:
        why = f" ({row['note']})" if row and row["note"] else ""
        return f"The noise ceiling of decision accuracy is unknown{why}."
    ends = row["ceiling_decision_accuracy_low"], row["ceiling_decision_accuracy_high"]
    interval = "" if None in ends else f" [{shown(ends[0], '.3f')}, {shown(ends[1], '.3f')}]"
    return (
        f"Noise ceiling: a perfect prediction is expected to reach a decision accuracy of "
        f"{shown(row['ceiling_decision_accuracy'], '.3f')}{interval} against a truth of {row['seeds']} seeds."
    )
