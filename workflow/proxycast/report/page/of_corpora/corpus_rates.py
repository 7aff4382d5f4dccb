"""How far the order of corpora moves with the learning rate of the small models."""

from proxycast.report.page.blocks import Block, Column, Dataset, Table
from proxycast.report.page.study_results import StudyResults

COLUMNS = [
    *(Column("statistic", "Statistic"), Column("weighting", "Weighting"), Column("size", "Size")),
    Column("factor", "Learning rate / usual", ".2g"),
    Column("slower_factor", "Lower rate / usual", ".2g"),
    Column("agreement", "Pairs ordered alike", ".2f", "agreement_low", "agreement_high"),
    Column("seed_difference", "Less those of another seed", "+.2f", "seed_difference_low", "seed_difference_high"),
    Column("decision_accuracy", "Accuracy, one seed", ".2f", "decision_accuracy_low", "decision_accuracy_high"),
    Column("difference", "Gain of the lower rate", "+.2f", "difference_low", "difference_high"),
    Column("note", "Note"),
]


def rate_blocks(results: StudyResults) -> list[Block]:
    """The table of every two rates, where a study has sizes that differ in the learning rate alone."""
    rates = results.table("data_selection/rates")
    if rates is None:
        return []
    caption = (
        "Pairs of corpora that a run of one rate orders as a run of the other rate, and of another seed, does. Below 0 "
        "in the next column, the rate moves the order more than a seed does. Then: pairs ordered as the truth does at "
        "the higher rate, and what the lower one gains. Intervals are paired, over corpora."
    )
    dataset = Dataset("rates", rates, "data_selection/rates")
    return [Table("rates", "Whether the order moves with the learning rate", dataset, COLUMNS, caption=caption)]
