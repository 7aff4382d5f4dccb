"""A finished study as the page reads it: its options and its result tables, each read at most once."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import polars as pl

from proxycast.config.study import Budget, Study
from proxycast.options import InputError
from proxycast.tables import read_json, read_table

MADE_WITH = "report.json"  # beside the page: what `StudyResults` was made with


class StudyResults:
    """`budgets`: those of the study, or the one in their place. `left_out`: what the study leaves out, and why.

    `where`: the study's file. `rules`: table -> the rule that makes it; tables of rules that the study no longer has
    may lie beside them, and are not read. Without `rules` every table there is read. `jobs`: those that score.
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
        jobs: Sequence[str] = (),
    ) -> None:
        self.study, self.results, self.budgets = study, results, list(budgets)
        self.tasks, self.left_out, self.where = list(tasks), list(left_out), where
        self.rules, self.jobs = dict(rules or {}), list(jobs)
        self.table = cache(self._table)

    @classmethod
    def read(cls, results: Path) -> "StudyResults":
        """As the study's last page was made (`report.json`). `InputError` without that file."""
        made_with = read_json(results / MADE_WITH)
        try:
            study, budgets = Study(**made_with.pop("study")), [Budget(**budget) for budget in made_with.pop("budgets")]
            return cls(study, results, budgets, **made_with)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{results / MADE_WITH}: is not what a page was made with; run the study again") from None

    def _table(self, name: str) -> pl.DataFrame | None:
        """The table `name`, such as `data_selection/ranking`; None where the study does not have it, or it is empty."""
        path = self.results / f"{name}.parquet"
        is_made = name in self.rules if self.rules else True
        table = read_table(path) if is_made and path.exists() else None
        return None if table is None or table.is_empty() else table
