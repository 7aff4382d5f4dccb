"""A finished study as the page reads it: its options and its result tables, each read at most once."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import polars as pl

from proxycast.config.study import Budget, Study
from proxycast.tables import read_table


class StudyResults:
    """`budgets`: those of the study, or the one in their place. `left_out`: what the study leaves out, and why.

    `where`: the study's file. `rules`: table -> the rule that makes it, as Snakemake knows it.
    """

    def __init__(
        self,
        study: Study,
        results: Path,
        budgets: Sequence[Budget] = (),
        tasks: Sequence[str] = (),
        left_out: Sequence[str] = (),
        where: str = "",
        rules: Mapping[str, str] | None = None,
    ) -> None:
        self.study, self.results, self.budgets = study, results, list(budgets)
        self.tasks, self.left_out, self.where = list(tasks), list(left_out), where
        self.rules = dict(rules or {})
        self.table = cache(self._table)

    def _table(self, name: str) -> pl.DataFrame | None:
        """The table `name`, such as `data_selection/ranking`; None where the study does not have it, or it is empty."""
        path = self.results / f"{name}.parquet"
        table = read_table(path) if path.exists() else None
        return None if table is None or table.is_empty() else table
