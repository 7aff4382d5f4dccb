"""The tasks of a table, and the list from which a reader picks one."""

from collections.abc import Sequence

import polars as pl

from proxycast.experiments.model_selection.model_ranking import ALL_TASKS
from proxycast.report.page.blocks import Select


def tasks_of(rows: pl.DataFrame) -> list[str]:
    """The tasks of a table in their order. Of a study of one task that one alone, whose scores have a unit."""
    tasks = rows["task"].unique(maintain_order=True).to_list()
    tasks = [task for task in (ALL_TASKS, *tasks) if task in tasks]
    tasks = list(dict.fromkeys(tasks))
    return tasks[1:] if len(tasks) == 2 and tasks[0] == ALL_TASKS else tasks


def task_name(task: str) -> str:
    return "all tasks" if task == ALL_TASKS else task


def task_select(name: str, tasks: Sequence[str]) -> list[Select]:
    """The list of tasks that sets `name`; none for a single task."""
    return [Select(name, "Task", {task: task_name(task) for task in tasks})] if len(tasks) > 1 else []
