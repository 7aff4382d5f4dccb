"""The token view: chosen solutions with each token coloured, two candidates side by side, and what decides a proxy."""

import polars as pl
from jinja2 import Environment
from markupsafe import Markup

from proxycast.proxy_formulas import proxy_name
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

LISTED = 200  # tokens of the table
FIRST_MEASURE = "rank"  # that the page opens with
NUMBERS = ["rank", "entropy", "cross_entropy", "weight", "share"]
DIGITS = 4  # significant, of the numbers that a token tells


def token_section(results: StudyResults) -> Section:
    """Of a study without token statistics the section says so."""
    view, contrast = results.table("token_view"), results.table("token_contrast")
    if view is None or contrast is None:
        text = "There is no token view: this study has no token statistics of its own, as models were run elsewhere."
        return Section("tokens", "Tokens", [Note(text)])
    by_token = contrast["position"].null_count() == 0
    blocks: list[Block] = [Note(_about(contrast, by_token))]
    if not by_token:
        blocks.append(Note(_tokenizers_differ(contrast), is_caution=True))
    return Section(
        "tokens", "Tokens", [*blocks, _view_block(view, contrast, by_token), _table(view, contrast, by_token)]
    )


def _about(contrast: pl.DataFrame, by_token: bool) -> str:
    row = contrast.row(0, named=True)
    proxy = proxy_name(row["statistic"], row["weighting"])
    if row["second"] is None:
        return (
            f"{row['first']} is the only candidate. Its {proxy}, signed so that more is better, is "
            f"{shown(row['difference'], '.4g')}: the sum of the contributions of all scored tokens."
        )
    return (
        f"By {proxy}, signed so that more is better, {row['first']} and {row['second']} differ by "
        f"{shown(row['difference'], '.4g')}. This difference is the sum of the contributions of all "
        f"{'scored tokens' if by_token else 'solutions'}: a positive one speaks for {row['first']}, a negative one for "
        f"{row['second']}. Contributions are means over the seeds and checkpoints that the ranking averages; the "
        "colours show one run of each."
    )


def _tokenizers_differ(contrast: pl.DataFrame) -> str:
    first, second = contrast.row(0, named=True)["first"], contrast.row(0, named=True)["second"]
    return (
        f"{first} and {second} have different tokenizers, so their tokens cannot be compared one by one: each is shown "
        "with its own tokens, and contributions are those of whole solutions."
    )


# --- The solutions


def _view_block(view: pl.DataFrame, contrast: pl.DataFrame, by_token: bool) -> Html:
    names = view["candidate"].unique(maintain_order=True).to_list()
    view = _by_contribution(view, contrast)
    mean = pl.col("share").abs().mean().over("candidate", "step", "solution", "task")
    view = view.with_columns(relative_share=pl.when(mean > 0).then(pl.col("share").abs() / mean))
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
            by = [_rounded(a - b) for a, b in zip(first["share"], second["share"])]
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


# --- The table


def _table(view: pl.DataFrame, contrast: pl.DataFrame, by_token: bool) -> Table:
    rows = contrast.filter(pl.col("contribution") != 0)
    rows = (contrast if rows.is_empty() else rows).head(LISTED)
    total = len(contrast)
    which = f"the {len(rows)} largest of {total}" if len(rows) < total else ""
    if not by_token:
        dataset = Dataset(
            "token_contrast",
            rows.select("place", "contribution", "task", "solution", "first", "second", "difference"),
            "token_contrast",
            which,
        )
        columns = [
            Column("contribution", "Contribution", "+.3g"),
            Column("task", "Task"),
            Column("solution", "Solution"),
        ]
        return Table("token-contrast", "Solutions that decide, largest first", dataset, columns)
    view = _by_contribution(view, contrast)
    first = view.filter(candidate=contrast["first"][0], is_end=True).sort("place", "position")
    places = first.select(
        "task", "solution", "position", index=pl.int_range(pl.len()).over("place"), shown=pl.col("place") - 1
    )
    at = pl.format("{}:{}", "shown", "index").alias("in_view")
    rows = rows.join(places, on=["task", "solution", "position"], how="left", maintain_order="left")
    texts = [pl.col(name).map_elements(in_line, return_dtype=pl.String) for name in ("before", "text", "after")]
    rows = rows.with_columns(at, *texts).drop("index", "shown")
    dataset = Dataset("token_contrast", rows, "token_contrast", which)
    names = contrast.row(0, named=True)
    columns = [
        Column("contribution", "Contribution", "+.3g"),
        Column("text", "Token"),
        Column("before", "Text before"),
        Column("after", "Text after"),
        Column("task", "Task"),
        Column("solution", "Solution"),
        Column("first_rank", f"Rank, {names['first']}", ".4g"),
        *([Column("second_rank", f"Rank, {names['second']}", ".4g")] if names["second"] else []),
    ]
    caption = "A token that is a button is in one of the solutions above; pressing it goes there."
    return Table("token-contrast", "Tokens that decide, largest first", dataset, columns, caption, key="in_view")
