"""Every proxy alone, as a grid of statistics and weightings for each task, with the baselines beside it."""

import polars as pl
from markupsafe import Markup

from proxycast.report.page.blocks import Block, Dataset, Html
from proxycast.report.page.formats import shown
from proxycast.report.page.grids import Cell, grid, level
from proxycast.report.page.task_lists import task_name, task_select, tasks_of
from proxycast.report.style import readable, weighting_name

TASK = "models_proxy_task"
MOST_TASKS = 30  # grids of a page


def proxies_alone(proxies: pl.DataFrame | None, tail: str) -> list[Block]:
    """Spearman's rho of every proxy and baseline alone: a grid for each task."""
    if proxies is None:
        return []
    rows = proxies.filter(pl.col("tail").is_in([tail, ""]))
    every = tasks_of(rows)
    if not every:
        return []
    tasks = every[:MOST_TASKS]
    kept = "" if tasks == every else f", first {MOST_TASKS} of {len(every)} tasks"
    rows = rows.filter(pl.col("task").is_in(tasks))
    parts = [
        Markup('<div data-shown-for="{}" data-value="{}"{}>{}</div>').format(
            TASK, task, Markup("") if task == tasks[0] else Markup(" hidden"), _of_task(rows.filter(task=task), task)
        )
        for task in tasks
    ]
    own = " *: the weight uses the model's own distribution." if rows["depends_on_candidate"].any() else ""
    return [
        Html(
            "models-proxies",
            "Every proxy alone",
            Markup("").join(parts),
            [Dataset("models_proxies", rows, "model_selection/proxies", f"tail in {tail}{kept}")],
            caption="Spearman's ρ with the truth, with the proxy's own sign. Blue: orders as the truth does; red: "
            f"inverts it. Point at a cell for its interval. The highest cell is the best of many in hindsight.{own}",
            selects=task_select(TASK, tasks),
        )
    ]


def _of_task(rows: pl.DataFrame, task: str) -> Markup:
    alone, baselines = rows.filter(kind="proxy"), rows.filter(kind="baseline")
    weightings = alone["weighting"].unique(maintain_order=True).to_list()
    statistics = alone["statistic"].unique(maintain_order=True).to_list()
    found = {(row["statistic"], row["weighting"]): _cell(row) for row in alone.iter_rows(named=True)}
    own = set(alone.filter("depends_on_candidate")["weighting"])
    columns = [("none" if w == "none" else weighting_name(w)) + ("*" if w in own else "") for w in weightings]
    cells = [[found.get((s, w)) for w in weightings] for s in statistics]
    where = task_name(task)
    parts = [grid([readable(s) for s in statistics], columns, cells, label=f"Proxies, {where}")] if statistics else []
    if len(baselines):
        names = [readable(statistic) for statistic in baselines["statistic"]]
        of_baselines = [[_cell(row)] for row in baselines.iter_rows(named=True)]
        parts.append(grid(names, ["ρ"], of_baselines, label=f"Baselines, {where}", corner="Baseline"))
    return Markup("").join(parts)


def _cell(row: dict) -> Cell | None:
    value = row["spearman"]
    if value is None or value != value:
        return None
    ends = "" if row["low"] is None else f"[{shown(row['low'], '.2f')}, {shown(row['high'], '.2f')}]"
    return Cell(f"{value:.2f}", level(value, -1, 1), " ".join(filter(None, [ends, row["note"]])))
