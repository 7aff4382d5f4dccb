"""The token view: chosen solutions with each token coloured, two candidates side by side, and what decides a proxy."""

import polars as pl
from jinja2 import Environment
from markupsafe import Markup

from proxycast.proxy_formulas import SIGNS, proxy_name
from proxycast.report.page.answers.wording import listed
from proxycast.report.page.blocks import Block, Column, Dataset, Html, Note, Section, Table
from proxycast.report.page.formats import shown
from proxycast.report.page.html_page import ASSETS
from proxycast.report.page.sections.token_levels import (
    MEASURES,
    difference_labels,
    difference_levels,
    in_line,
    levels,
    marked,
)
from proxycast.report.page.study_results import StudyResults
from proxycast.report.snakemake_report import script_json

LISTED, MOST_TEXTS = 100, 10  # tokens of either sign, and texts of them, that are listed
FIRST_MEASURE = "rank"  # that the page opens with
NUMBERS = ["rank", "entropy", "cross_entropy", "weight"]
SPACE = "\N{OPEN BOX}"
DIGITS = 4  # significant, of the numbers that a token tells


def token_section(results: StudyResults) -> Section:
    """Of a study without token statistics the section says so."""
    view, contrast = results.table("token_view"), results.table("token_contrast")
    if view is None or contrast is None:
        text = "There is no token view: the tables token_view and token_contrast are made where a study runs models."
        return Section("tokens", "Tokens", [Note(text)])
    by_token = contrast["position"].null_count() == 0
    blocks: list[Block] = [Note(_about(results, contrast, by_token))]
    if not by_token:
        blocks.append(Note(_tokenizers_differ(contrast), is_caution=True))
    view = _by_contribution(view, contrast)
    blocks.append(_view_block(results, view, contrast, by_token))
    return Section("tokens", "Tokens", [*blocks, *_tables(results, view, contrast, by_token)])


def _about(results: StudyResults, contrast: pl.DataFrame, by_token: bool) -> str:
    row = contrast.row(0, named=True)
    proxy, difference = proxy_name(row["statistic"], row["weighting"]), shown(row["difference"], ".4g")
    if row["second"] is None:
        return (
            f"{row['first']} is the only candidate. Its {proxy}, signed so that more is better, is {difference}: the "
            "sum of the contributions of all scored tokens."
        )
    averaged = _averaged(results)
    means = f" Contributions are means of {averaged}; the texts and their numbers are of one run each." * bool(averaged)
    return (
        f"{row['first']} and {row['second']} are {_chosen_as(results)}; the command proxycast tokens STUDY "
        f"--candidates A B compares others. By {proxy}, signed so that more is better, they differ by {difference}. "
        f"This difference is the sum of the contributions of all {'scored tokens' if by_token else 'solutions'}: a "
        f"positive one speaks for {row['first']}, a negative one for {row['second']}.{means}"
    )


def _chosen_as(results: StudyResults) -> str:
    """Which two candidates a study compares, as `token_contrast.compared.comparison_of` chooses them."""
    if results.study.token_view:
        return "the two that the study names"
    if results.table("data_selection/ranking") is not None:
        return "the first and the last corpus of the ranking"
    if results.table("model_selection/ranking") is not None:
        return "the first and the last model of the ranking"
    return "the last and the first checkpoint of the longest run"


def _averaged(results: StudyResults) -> str:
    """What the contributions are means of, in words; empty where each is of a single checkpoint."""
    ranking = results.table("data_selection/ranking")
    has_seeds = ranking is not None and (ranking["seeds"].max() or 1) > 1
    of = ["seeds"] * has_seeds + ["last checkpoints"] * (results.study.selection.last_checkpoints > 1)
    return " and ".join(of)


def _tokenizers_differ(contrast: pl.DataFrame) -> str:
    first, second = contrast.row(0, named=True)["first"], contrast.row(0, named=True)["second"]
    return (
        f"{first} and {second} have different tokenizers, so their tokens cannot be compared one by one: each is shown "
        "with its own tokens, and contributions are those of whole solutions."
    )


# --- The solutions


def _view_block(results: StudyResults, view: pl.DataFrame, contrast: pl.DataFrame, by_token: bool) -> Html:
    names = view["candidate"].unique(maintain_order=True).to_list()
    factor = SIGNS[contrast["statistic"][0]] / len(results.tasks)
    mean = pl.col("share").abs().mean().over("candidate", "step", "solution", "task")
    view = view.with_columns(relative_share=pl.when(mean > 0).then(pl.col("share").abs() / mean))
    view = view.with_columns(contribution=pl.col("share") * factor)
    steps = [sorted(view.filter(candidate=name)["step"].unique()) for name in names]
    ends = [view.filter(candidate=name, is_end=True)["step"][0] for name in names]
    compared = by_token and len(names) == 2
    solutions = [_solution(rows, names, ends, compared) for _, rows in view.group_by("place", maintain_order=True)]
    measures = {
        name: {
            "title": measure.title,
            "labels": measure.labels,
            "differences": list(difference_labels(measure, *names).values()) if compared else [],
        }
        for name, measure in MEASURES.items()
    }
    numbers = [solution.pop("numbers") for solution in solutions]
    slider = steps[-1]
    data = {"names": names, "steps": steps, "ends": ends, "measures": measures, "solutions": numbers}
    template = (ASSETS / "tokens.html.j2").read_text(encoding="utf8")
    markup = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            solutions=solutions,
            measures=measures,
            first=FIRST_MEASURE,
            slider=slider,
            start=slider.index(ends[-1]),
            data=Markup(script_json(data, allow_nan=False)),
        )
    )
    caption = "The last tokens of the solutions that contribute most. All numbers: token_view.parquet."
    return Html("token-view", "Solutions, token by token", Markup(markup), caption=caption)


def _by_contribution(view: pl.DataFrame, contrast: pl.DataFrame) -> pl.DataFrame:
    """The solutions of the view in the order in which the contrast, largest first, names them."""
    of_solution = ["task", "solution"]
    first = contrast.select(*of_solution, row=pl.int_range(pl.len())).unique(of_solution, keep="first")
    view = view.join(first, on=of_solution, how="left", maintain_order="left")
    places = view.sort("row", "place", nulls_last=True).select(of_solution).unique(maintain_order=True)
    places = places.with_columns(place=pl.int_range(1, pl.len() + 1))
    view = view.drop("place", "row").join(places, on=of_solution, how="left", maintain_order="left")
    return view.sort("place", maintain_order=True)


def _solution(rows: pl.DataFrame, names: list[str], ends: list[int], compared: bool) -> dict:
    """What the template and the script know of a solution."""
    sides = []
    for name in names:
        of_side = rows.filter(candidate=name)
        steps = {step: found for (step,), found in of_side.group_by("step", maintain_order=True)}
        sides.append(steps)
    last = [steps[end] for steps, end in zip(sides, ends)]
    row, panes = rows.row(0, named=True), []
    for name, end, found in zip(names, ends, last):
        level = levels(found[MEASURES[FIRST_MEASURE].levels_of].to_list(), MEASURES[FIRST_MEASURE])
        panes.append({"name": name, "step": end, "tokens": list(zip(map(marked, found["text"]), level))})
    if compared:
        level = _differences(*last)[FIRST_MEASURE]
        panes.append({"name": "", "step": None, "tokens": list(zip(map(marked, last[0]["text"]), level))})
    numbers = {
        "task": row["task"],
        "solution": row["solution"],
        "positions": [found["position"].to_list() for found in last],
        "sides": [{step: _of_step(found) for step, found in steps.items()} for steps in sides],
        "differences": {},
    }
    if compared:
        for step, second in sides[1].items():
            first = sides[0][step] if sides[0].keys() == sides[1].keys() else last[0]
            own = _differences(first, second)
            by = [_rounded(a - b) for a, b in zip(first["contribution"], second["contribution"])]
            numbers["differences"][step] = {"levels": own, "contribution": by}
    return {"task": row["task"], "id": row["solution"], "before": row["before"], "panes": panes, "numbers": numbers}


def _of_step(found: pl.DataFrame) -> dict:
    """Numbers and levels of one candidate at one step."""
    numbers = {name: [_rounded(value) for value in found[name]] for name in NUMBERS}
    return numbers | {"levels": {name: levels(found[m.levels_of].to_list(), m) for name, m in MEASURES.items()}}


def _differences(first: pl.DataFrame, second: pl.DataFrame) -> dict[str, str]:
    return {
        name: difference_levels(
            *(side[m.column if name == "contribution" else m.levels_of] for side in (first, second)), name
        )
        for name, m in MEASURES.items()
    }


def _rounded(value: float | None) -> float | int | None:
    if value is None:
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


# --- The tables


def _tables(results: StudyResults, view: pl.DataFrame, contrast: pl.DataFrame, by_token: bool) -> list[Block]:
    """The largest contributions of either sign; of tokens, also what the same texts add up to."""
    rows = contrast.filter(pl.col("contribution") != 0).with_columns(is_positive=pl.col("contribution") > 0)
    if rows.is_empty():
        return [Note("Nothing contributes: every contribution is 0.")]
    texts = [_by_text(rows)] if by_token else []
    rows = rows.filter(pl.int_range(pl.len()).over("is_positive") < LISTED)
    columns = [Column("contribution", "Contribution", "+.3g"), Column("task", "Task"), Column("solution", "Solution")]
    things, caption = "Solutions", ""
    if by_token:
        rows, things = _with_places(rows, view), "Tokens"
        around = [Column("shown_before", "Text before"), Column("shown_after", "Text after")]
        columns[1:1] = [Column("shown_text", "Token"), *_ranks(results, contrast), *around]
        of_mean = f" Contributions and ranks are means of {_averaged(results)}." * bool(_averaged(results))
        caption = f"A token that is a button is in one of the solutions above; pressing it goes there.{of_mean}"
    else:
        rows = rows.select("place", "contribution", "task", "solution", "first", "second", "difference", "is_positive")
    dataset = Dataset("token_contrast", rows, "token_contrast", f"the {LISTED} largest of either sign")
    first, second = contrast.select("first", "second").row(0)
    titles = [f"{things} that speak for {first}", f"{things} that speak for {second}"]
    titles = titles if second else [f"{things} that add to the value", f"{things} that take from it"]
    key = "in_view" if by_token else ""
    return texts + [
        Table(id, title, dataset, columns, caption, key=key, where={"is_positive": is_positive})
        for id, title, is_positive in zip(("token-contrast", "token-contrast-second"), titles, (True, False))
        if is_positive in rows["is_positive"]
    ]


def _in_cell(text: str) -> str:
    """A token in a cell, which would lose the spaces at its ends."""
    return in_line(text).replace(" ", SPACE)


def _by_text(rows: pl.DataFrame) -> Table:
    """Contributions summed over tokens of the same text."""
    found = rows.group_by("text", maintain_order=True).agg(
        tokens=pl.len(), summed=pl.col("contribution").sum(), tasks=pl.col("task").unique(maintain_order=True)
    )
    found = found.sort(pl.col("summed").abs(), descending=True, maintain_order=True).head(MOST_TEXTS)
    found = found.with_columns(
        pl.col("text").map_elements(_in_cell, return_dtype=pl.String).alias("shown_text"),
        pl.Series("tasks", [listed(names) for names in found["tasks"].to_list()]),
    )
    columns = [
        Column("shown_text", "Token"),
        Column("summed", "Sum of contributions", "+.3g"),
        Column("tokens", "Times"),
        Column("tasks", "Tasks"),
    ]
    speak = [len(rows.filter(is_positive=is_positive)) for is_positive in (True, False)]
    caption = (
        f"{SPACE} is a space. Of the tokens in token_contrast alone, the largest of either sign: {speak[0]} with "
        f"positive contributions and {speak[1]} with negative ones, which sum to "
        f"{shown(rows['contribution'].sum(), '+.3g')} of {shown(rows['difference'][0], '+.3g')}."
    )
    dataset = Dataset("token_texts", found, "token_contrast", f"summed by text, the {len(found)} largest")
    return Table("token-texts", "Tokens of the same text", dataset, columns, caption)


def _ranks(results: StudyResults, contrast: pl.DataFrame) -> list[Column]:
    title = "Mean rank" if _averaged(results) else "Rank"
    sides = zip(("first_rank", "second_rank"), contrast.select("first", "second").row(0))
    return [Column(column, f"{title}: {name}", ".4g") for column, name in sides if name is not None]


def _with_places(rows: pl.DataFrame, view: pl.DataFrame) -> pl.DataFrame:
    """Tokens with `in_view`, solution and token where the view shows them, and texts in one line."""
    first = view.filter(candidate=rows["first"][0], is_end=True).sort("place", "position")
    places = first.select(
        "task", "solution", "position", index=pl.int_range(pl.len()).over("place"), shown=pl.col("place") - 1
    )
    rows = rows.join(places, on=["task", "solution", "position"], how="left", maintain_order="left")
    hows = {"before": in_line, "text": _in_cell, "after": in_line}
    texts = [
        pl.col(name).map_elements(how, return_dtype=pl.String).alias(f"shown_{name}") for name, how in hows.items()
    ]
    return rows.with_columns(pl.format("{}:{}", "shown", "index").alias("in_view"), *texts).drop("index", "shown")
