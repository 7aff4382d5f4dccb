"""The tables token_view and token_contrast: chosen solutions token by token, and the tokens that decide a proxy."""

from collections.abc import Mapping, Sequence

import polars as pl

from proxycast.experiments.token_contrast.compared import Compared, Comparison
from proxycast.experiments.token_contrast.contributions import Contributions, Reading, contributions, largest
from proxycast.experiments.token_contrast.token_texts import text_after, text_before, token_text
from proxycast.solutions.rows import Solution

MOST_LISTED = 500  # rows of token_contrast of either sign
OF_A_TASK, MOST_SOLUTIONS, MOST_TOKENS = 2, 20, 96  # what token_view shows; tokens: the last of a solution
BEFORE, AFTER = 40, 24  # characters around a token that is listed
BEFORE_VIEW = 240  # characters before the first token of a solution that is shown

VIEW_SCHEMA = {
    **dict.fromkeys(("task", "solution", "candidate", "checkpoint"), pl.String),
    **dict.fromkeys(("step", "place"), pl.Int64),
    "is_end": pl.Boolean,
    **dict.fromkeys(("position", "bytes"), pl.Int64),
    **dict.fromkeys(("text", "before"), pl.String),
    **dict.fromkeys(("rank", "entropy", "cross_entropy", "value", "weight", "share"), pl.Float64),
    "relative_weight": pl.Float64,
}
_PAIRS = [f"{side}_{name}" for name in ("value", "weight", "rank", "cross_entropy") for side in ("first", "second")]
CONTRAST_SCHEMA = {
    "place": pl.Int64,
    "contribution": pl.Float64,
    **dict.fromkeys(("before", "text", "after", "task", "solution"), pl.String),
    "position": pl.Int64,
    **dict.fromkeys(("first", "second", "statistic", "weighting", "tail"), pl.String),
    **dict.fromkeys(_PAIRS, pl.Float64),
    **dict.fromkeys(("difference", "solution_contribution"), pl.Float64),
}
Solutions = Mapping[str, Mapping[str, Solution]]  # task -> id -> solution


def token_tables(
    comparison: Comparison, reading: Reading, solutions: Mapping[str, Sequence[Solution]]
) -> dict[str, pl.DataFrame]:
    """`token_view` and `token_contrast` of a comparison. `solutions`: task -> its expert solutions.

    At most `OF_A_TASK` solutions a task and `MOST_SOLUTIONS` in all are shown (`chosen_solutions`).
    Raises `InputError` where a compared checkpoint has no statistics. Memory as in `contributions`.
    """
    texts = {task: {solution.id: solution for solution in of_task} for task, of_task in solutions.items()}
    found = contributions(comparison, reading, list(solutions), MOST_LISTED)
    chosen = chosen_solutions(found.solutions, found.tokens)
    return {
        "token_view": view_table(comparison, reading, chosen, texts),
        "token_contrast": contrast_table(comparison, found, texts),
    }


def chosen_solutions(
    of_solutions: pl.DataFrame, tokens: pl.DataFrame, of_a_task: int = OF_A_TASK, most: int = MOST_SOLUTIONS
) -> pl.DataFrame:
    """task, solution of those that are shown: of each task the one that contributes most, then that of its first token.

    `of_solutions`, `tokens`: the largest contributions first. The first of every task come before the second of any, so
    that every task is shown where there are not too many.
    """
    names = ["task", "solution"]
    first = of_solutions.unique("task", keep="first", maintain_order=True)
    ordered = pl.concat([first.select(names), tokens.select(names), of_solutions.select(names)])
    ordered = ordered.unique(names, keep="first", maintain_order=True)
    ordered = ordered.with_columns(number=pl.int_range(pl.len()).over("task")).filter(pl.col("number") < of_a_task)
    return ordered.sort("number", maintain_order=True).select(names).head(most)


def view_table(
    comparison: Comparison,
    reading: Reading,
    chosen: pl.DataFrame,
    texts: Solutions,
    most_tokens: int = MOST_TOKENS,
) -> pl.DataFrame:
    """Every scored token of the `chosen` solutions, at each shown checkpoint of both candidates."""
    parts = []
    for one in comparison.candidates:
        for step, checkpoint in one.steps.items():
            for (task,), names in chosen.group_by("task", maintain_order=True):
                shares = reading.shares(checkpoint, task, comparison)
                rows = shares.join(names.select("solution"), on="solution", how="semi", maintain_order="left")
                parts.append(_viewed(rows, one, step, texts[task], most_tokens))
    places = chosen.with_columns(place=pl.int_range(1, pl.len() + 1))
    table = pl.concat(parts).join(places, on=["task", "solution"], how="left", maintain_order="left")
    order = pl.col("candidate").replace_strict({one.name: n for n, one in enumerate(comparison.candidates)})
    return table.sort("place", order, "step", "position").select(*VIEW_SCHEMA).cast(VIEW_SCHEMA)


def contrast_table(comparison: Comparison, found: Contributions, texts: Solutions) -> pl.DataFrame:
    """The tokens with the largest contributions of either sign, or the solutions where the tokenizers differ."""
    is_of_tokens = not found.tokens.is_empty()
    rows = largest(found.tokens if is_of_tokens else found.solutions, MOST_LISTED)
    proxy, names = comparison.proxy, [one.name for one in comparison.candidates]
    rows = rows.with_columns(
        place=pl.int_range(1, pl.len() + 1),
        first=pl.lit(names[0]),
        second=pl.lit(names[1] if len(names) > 1 else None, dtype=pl.String),
        statistic=pl.lit(proxy.statistic),
        weighting=pl.lit(proxy.weighting),
        tail=pl.lit(comparison.tail),
        difference=pl.lit(found.total),
    ).join(
        found.solutions.rename({"contribution": "solution_contribution"}),
        on=["task", "solution"],
        how="left",
        maintain_order="left",
    )
    if not is_of_tokens:
        empty = [name for name in CONTRAST_SCHEMA if name not in rows.columns]
        rows = rows.with_columns(pl.lit(None, CONTRAST_SCHEMA[name]).alias(name) for name in empty)
        return rows.select(*CONTRAST_SCHEMA).cast(CONTRAST_SCHEMA)
    rows = rows.rename({f"{side}_nll": f"{side}_cross_entropy" for side in ("first", "second")})
    if len(names) == 1:  # the second is nothing
        rows = rows.with_columns(pl.lit(None, pl.Float64).alias(name) for name in _PAIRS if name.startswith("second"))
    return rows.hstack(_around(rows, texts)).select(*CONTRAST_SCHEMA).cast(CONTRAST_SCHEMA)


def _viewed(rows: pl.DataFrame, one: Compared, step: int, of_task: Mapping[str, Solution], most: int) -> pl.DataFrame:
    """Rows of `token_view` but its `place`: the last `most` tokens of each solution at one checkpoint."""
    mean = pl.col("weight").mean().over("solution")
    rows = rows.with_columns(relative_weight=pl.when(mean > 0).then(pl.col("weight") / mean))
    rows = rows.filter(pl.int_range(pl.len()).reverse().over("solution") < most)
    covered = rows.select((pl.col("behind") + pl.col("bytes")).max().over("solution")).to_series()
    ids, sizes, behind = rows["solution"].to_list(), rows["bytes"].to_list(), rows["behind"].to_list()
    return rows.with_columns(
        candidate=pl.lit(one.name),
        step=pl.lit(step),
        is_end=pl.lit(one.steps[step] == one.end),
        cross_entropy="nll",
        text=pl.Series([token_text(of_task[i], b, size) for i, b, size in zip(ids, behind, sizes)], dtype=pl.String),
        before=pl.Series([text_before(of_task[i], c, BEFORE_VIEW) for i, c in zip(ids, covered)], dtype=pl.String),
    )


def _around(rows: pl.DataFrame, texts: Solutions) -> pl.DataFrame:
    """before, text, after of each of the tokens `rows`."""
    found = []
    for task, solution, behind, size in rows.select("task", "solution", "behind", "bytes").iter_rows():
        row = texts[task][solution]
        before, after = text_before(row, behind + size, BEFORE), text_after(row, behind, AFTER)
        found.append({"before": before, "text": token_text(row, behind, size), "after": after})
    return pl.DataFrame(found)
