"""Two candidates token by token on a terminal, from the token statistics of a study: `proxycast tokens`.

Off a terminal, where there are no colours, each token has a line with its numbers.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxycast.config.errors import closest
from proxycast.config.study import Budget
from proxycast.experiments.token_contrast.compared import (
    Comparison,
    comparison_of,
    manifests_below,
    stat_files,
)
from proxycast.experiments.token_contrast.contributions import Contributions, Reading, contributions
from proxycast.experiments.token_contrast.token_tables import MOST_LISTED, contrast_table, view_table
from proxycast.options import InputError, printable
from proxycast.proxy_formulas import SIGNS, proxy_name
from proxycast.report.page.sections.token_levels import MEASURES, difference_labels, difference_levels, in_line, levels
from proxycast.solutions.rows import Solution, read_solutions
from proxycast.study.loader import load_plan
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import read_yaml
from proxycast.tables import change_nothing, read_table

LISTED = 15  # tokens that decide
WIDE = 200  # columns off a terminal, so that lines can be searched
# Dark letters, which can be read on these colours whatever colours the terminal has.
STYLES = {"1": "#fdf1d8", "2": "#fbe0b0", "3": "#f8c987", "4": "#f3ad64", "5": "#ec9150"}
STYLES |= {"a": "#8cc0ee", "b": "#cfe5f8", "d": "#fbdcc3", "e": "#f2aa78"}
STYLES = {level: f"black on {colour}" for level, colour in STYLES.items()}


def show_tokens(
    study: Path,
    task: str = "",
    solution: str = "",
    candidates: Sequence[str] = (),
    by: str = "rank",
    step: int | None = None,
) -> None:
    """Print a solution as both candidates read it, and the tokens that decide between them.

    `by`: one of `MEASURES`. Without `task` and `solution` it is the solution that contributes most. Raises `InputError`
    for a study without token statistics, and for names and steps that it does not have.
    """
    change_nothing()
    plan = load_plan(read_yaml(study), str(study))
    reading, comparison = _opened(plan, candidates)
    texts = {name: _texts(plan.results / f"solutions/{name}.jsonl") for name in plan.task_names}
    found = contributions(comparison, reading, plan.task_names, MOST_LISTED)
    task, solution = _wanted(found, texts, task, solution)
    shown = _at_step(comparison, step, reading, read_table(plan.results / "checkpoints.parquet"))
    chosen = pl.DataFrame({"task": [task], "solution": [solution]})
    contribution = pl.col("share") * SIGNS[comparison.proxy.statistic] / len(plan.task_names)
    view = view_table(shown, reading, chosen, texts).with_columns(contribution=contribution)
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    contrast = contrast_table(comparison, found, texts)
    for line in _about(comparison, found):
        console.print(Text(printable(line)))
    console.print()
    console.print(Text(printable(f"{task}: {solution}, by {MEASURES[by].title.lower()}"), "bold"))
    sides = [view.filter(candidate=one.name, checkpoint=next(iter(one.steps.values()))) for one in shown.candidates]
    _print_solution(console, sides, by, has_difference=not found.tokens.is_empty() and len(sides) == 2)
    console.print(_listed(contrast))


def _opened(plan: Plan, names: Sequence[str]) -> tuple[Reading, Comparison]:
    results, study = plan.results, plan.study
    files = stat_files(manifests_below(results))
    if not (results / "checkpoints.parquet").is_file() or not files:
        why = "run it first" if plan.runs_models else "it runs no models, its statistics are those of others"
        raise InputError(f"{plan.where}: no token statistics in {results}/token_stats; {why}")
    asked = {"data": plan.selects_data, "model": plan.selects_models}  # others may lie there from before
    rankings = {key: results / f"{key}_selection/ranking.parquet" for key in asked}
    corpora, models = (read_table(path) if asked[key] and path.is_file() else None for key, path in rankings.items())
    budgets = study.budgets
    if corpora is not None and not budgets:  # of one alone the study need not tell
        size, step = corpora.select("size", "step").row(0)
        budgets = [Budget(name=size, size=size, step=step)]
    checkpoints = read_table(results / "checkpoints.parquet")
    comparison = comparison_of(
        *(checkpoints, files, study.highlighted, study.selection),
        budgets=budgets,
        corpora=corpora,
        models=models,
        names=names or study.token_view or (),
    )
    return Reading(files, study.proxies, study.extraction.tail_tokens, study.extraction.tail_bytes), comparison


def _texts(path: Path) -> Mapping[str, Solution]:
    return {solution.id: solution for solution in read_solutions(path)}


def _wanted(
    found: Contributions, texts: Mapping[str, Mapping[str, Solution]], task: str, solution: str
) -> tuple[str, str]:
    """Task and solution that are asked for; what is not named is what contributes most."""
    if task and task not in texts:
        raise InputError(f"no task {task!r} here{closest(task, texts)}; there are {', '.join(texts)}")
    rows = found.solutions.filter(task=task) if task else found.solutions
    if solution:
        known = rows["solution"].to_list()
        if solution not in known:
            some = ", ".join(known[:8]) + (f" and {len(known) - 8:,} more" if len(known) > 8 else "")
            raise InputError(f"no solution {solution!r} here{closest(solution, known)}; there are {some}")
        rows = rows.filter(solution=solution)
    return rows.select("task", "solution").row(0)


def _at_step(comparison: Comparison, step: int | None, reading: Reading, checkpoints: pl.DataFrame) -> Comparison:
    """The comparison with one checkpoint a candidate: its end, or that of `step` where it has been followed."""
    shown, known = [], set()
    for one in comparison.candidates:
        rows = checkpoints.filter(pl.col("checkpoint").is_in(list(reading.files)), run=one.run)
        steps = dict(rows.select("step", "checkpoint").iter_rows())
        known |= steps.keys()
        follows = step in steps and len(one.steps) > 1
        end = next(at for at, checkpoint in steps.items() if checkpoint == one.end)
        shown.append(replace(one, steps={step: steps[step]} if follows else {end: one.end}))
    if step is not None and step not in known:
        raise InputError(f"no step {step} here; there are {', '.join(map(str, sorted(known)))}")
    return Comparison(shown, comparison.proxy, comparison.tail)


def _about(comparison: Comparison, found: Contributions) -> Iterator[str]:
    proxy = proxy_name(comparison.proxy.statistic, comparison.proxy.weighting)
    names = [one.name for one in comparison.candidates]
    if len(names) == 1:
        yield f"{names[0]} is the only candidate; by {proxy}, more is better, it has {found.total:.4g}"
        return
    yield f"by {proxy}, more is better: {names[0]} less {names[1]} is {found.total:+.4g}, the sum over all tokens"
    yield f"contributions above 0 speak for {names[0]}, below 0 for {names[1]}"
    if found.tokens.is_empty():
        yield "their tokenizers differ: contributions are those of solutions, and each is shown with its own tokens"


def _print_solution(console: Console, sides: Sequence[pl.DataFrame], by: str, has_difference: bool) -> None:
    measure = MEASURES[by]
    mean = pl.col("share").abs().mean()
    sides = [side.with_columns(relative_share=pl.when(mean > 0).then(pl.col("share").abs() / mean)) for side in sides]
    console.print(Text(f"before: {_in_line(sides[0]['before'][0])}", style="dim"))
    names = [f"{side['candidate'][0]}, step {side['step'][0]}" for side in sides]
    own = [levels(side[measure.levels_of].to_list(), measure) for side in sides]
    if not console.is_terminal:
        for table in _lines(sides, names, has_difference):
            console.print(table)
        return
    for name, side, level in zip(names, sides, own):
        console.print(Text(printable(name), "underline"))
        console.print(_coloured(side["text"], level))
    console.print(_legend(dict(zip("012345", measure.labels))))
    if has_difference:
        column = measure.column if by == "contribution" else measure.levels_of
        console.print(Text("difference", "underline"))
        console.print(_coloured(sides[0]["text"], difference_levels(*(side[column] for side in sides), by)))
        labels = difference_labels(measure, *(printable(side["candidate"][0]) for side in sides))
        console.print(_legend(labels))


def _coloured(texts: Sequence[str], level: str) -> Text:
    return Text.assemble(*((_in_line(text), STYLES.get(of, "")) for text, of in zip(texts, level)))


def _legend(labels: Mapping[str, str]) -> Text:
    parts = [part for level, label in labels.items() for part in (("  ", STYLES.get(level, "")), f" {label}  ")]
    return Text.assemble(*parts, style="dim")


def _lines(sides: Sequence[pl.DataFrame], names: Sequence[str], is_one: bool) -> Iterator[Table]:
    """Numbers of each token: of both candidates in one table if they have the same tokens."""
    numbers = ["rank", "entropy", "cross_entropy", "weight", "share"]
    for group in [range(len(sides))] if is_one else [[n] for n in range(len(sides))]:
        table = Table(box=SIMPLE_HEAD)
        table.add_column("token", overflow="fold")
        for n in group:
            for name in numbers:
                table.add_column(f"{printable(names[n])}\n{name}", justify="right")
        for i, text in enumerate(sides[group[0]]["text"]):
            cells = (f"{sides[n][name][i]:.4g}" for n in group for name in numbers)
            table.add_row(Text(_in_line(text)), *cells)
        yield table


def _listed(contrast: pl.DataFrame) -> Table:
    is_of_tokens = contrast["position"].null_count() == 0
    what = "tokens" if is_of_tokens else "solutions"
    table = Table(box=SIMPLE_HEAD, title=f"{what} that decide, largest first", title_justify="left", title_style="bold")
    table.add_column("contribution", justify="right")
    for name in (["token", "in its text"] if is_of_tokens else []) + ["task", "solution"]:
        table.add_column(name, overflow="fold")
    for row in contrast.filter(pl.col("contribution") != 0).head(LISTED).iter_rows(named=True):
        around = [("before", "dim"), ("text", "bold underline"), ("after", "dim")]
        text = [Text(_in_line(row["text"])), Text.assemble(*((_in_line(row[k]), style) for k, style in around))]
        place = [Text(printable(row[key])) for key in ("task", "solution")]
        table.add_row(f"{row['contribution']:+.3g}", *(text if is_of_tokens else []), *place)
    return table


def _in_line(text: str | None) -> str:
    return printable(in_line(text or ""))
