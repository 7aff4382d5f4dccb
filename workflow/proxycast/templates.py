"""Expert solutions from the rows of a data set, by Jinja templates.

A row becomes a prompt and a solution: of a multiple-choice question the choice that its label says, of other data sets
the text that an expert wrote, or none, where a strong model is to write it (`proxycast.writers`).

Templates and expressions see the row's columns by their names; lists and structs are Python's lists and dictionaries,
so that `choices.text` is the field `text` of the column `choices`. (A field that has the name of a dictionary's method,
such as `items`, is `choices['items']`.) A name that is no column is an error, and so is an empty cell where it would be
written. Beside Jinja's own filters there is `regex_replace(pattern, replacement)`.

Light to import: jinja2 is loaded when the first template is checked.
"""

import logging
import random
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from pydantic import Field, ValidationInfo, field_validator, model_validator
from tqdm import tqdm

from proxycast.files import Files
from proxycast.options import InputError, told_names, told_reason, told_value
from proxycast.patterns import substitute
from proxycast.sandbox import bounded_environment, limited
from proxycast.solutions import Problem, Solution
from proxycast.tables import UNREADABLE, is_whole_parquet, sql_condition

if TYPE_CHECKING:
    from jinja2 import Environment

log = logging.getLogger(__name__)

TEMPLATES = ("prompt", "choice", "solution", "answer")
EXPRESSIONS = ("choices", "gold", "id")
FILE, ROW, NUMBER = "proxycast file", "proxycast row", "proxycast number"  # columns of our own; no name in Jinja
LONGEST_SHOWN = 200  # characters of a template
LABELS = "rows without a label cannot be used; take a split that has labels, or leave such rows out with `where`"


class Rows(Files):
    """Rows of a data set and the templates that make an expert solution of each."""

    prompt: str = Field("", description="Jinja template over a row's columns; empty for generic text")
    choices: str | None = Field(None, description="Jinja expression: the list of choices, as in 'choices.text'")
    gold: str | None = Field(
        None, description="Jinja expression: index of the right choice, from 0, as in 'choices.label.index(answerKey)'"
    )
    choice: str = Field(
        " {{ choice }}",
        description="Jinja template of a choice as it continues the prompt; `choice` is the choice",
    )
    solution: str | None = Field(
        None,
        description="Jinja template of a worked solution; without it the right choice is the solution; '' where "
        "there is none and writers are to write it",
    )
    answer: str | None = Field(
        None, description="Jinja template of the right answer; of rows with choices it is the right choice"
    )
    id: str | None = Field(None, description="Jinja expression: the problem's id; without it the number of the row")
    where: str | None = Field(None, description="condition in SQL on the columns, as in \"answerKey <> ''\"")
    sample: int | None = Field(None, gt=0, description="rows drawn at random, after `where`; without it all")
    seed: int = Field(0, ge=0, description="seed of the draw, which is that of Python's random.Random(seed).sample")

    @field_validator(*TEMPLATES, *EXPRESSIONS)
    @classmethod
    def _is_jinja(cls, source: str | None, info: ValidationInfo) -> str | None:
        from jinja2 import TemplateSyntaxError

        try:
            if source is not None:
                _compile(info.field_name, source)
        except (TemplateSyntaxError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            kind = "template" if info.field_name in TEMPLATES else "expression"
            shown = told_value(source, LONGEST_SHOWN)
            raise ValueError(f"{shown} is no Jinja {kind}: {getattr(error, 'message', error)}") from None
        return source

    @field_validator("where")
    @classmethod
    def _is_sql(cls, where: str | None) -> str | None:
        if where is not None:
            sql_condition(where)
        return where

    @model_validator(mode="after")
    def _complete(self) -> "Rows":
        if (self.choices is None) != (self.gold is None):
            raise ValueError("choices and gold: found one without the other; a multiple-choice question needs both")
        if self.choices is not None and self.answer is not None:
            raise ValueError("answer: of rows with choices the answer is the right choice; leave it out")
        if self.choices is None and not self.solution and self.answer is None:
            raise ValueError(
                "solution: missing; rows without choices need a template of the solution, or of the answer where "
                "writers are to write the solutions"
            )
        return self


@cache
def _environment() -> "Environment":
    from jinja2 import StrictUndefined

    environment = bounded_environment()(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_not_null)
    environment.globals.clear()  # else a missing column named `range` or `dict` would be a function
    environment.filters["regex_replace"] = _regex_replace
    return environment


def _not_null(value: object) -> object:
    """Jinja would write None as the word 'None', which looks like text."""
    if value is None:
        raise ValueError("an empty cell (null); leave such rows out with `where`")
    return value


def _regex_replace(text: str, pattern: str, replacement: str) -> str:
    return substitute(pattern, replacement, text)


def _compile(key: str, source: str) -> Callable[[dict], object]:
    if key in TEMPLATES:
        return _environment().from_string(source).render
    return _environment().compile_expression(source, undefined_to_none=False)


def render_solutions(paths: Sequence[Path], rows: Rows, where: str) -> list[Problem]:
    """The expert solutions of all rows of `paths` that `rows` takes, in the order of the files.

    Where `rows` gives no solution, each row becomes a problem that has none.

    Files are .parquet, .jsonl (or .json of the same lines) or .csv (all of its columns are text), the latter three also
    with .gz. A question of which two choices come out the same, or one blank, is left out: no choice of it is *the*
    right one. How many were is logged. `where` begins the messages; `InputError` names file, row (from 1) and key.
    """
    table = _read(paths, rows, where)
    templates = {
        key: _compile(key, source) for key in TEMPLATES + EXPRESSIONS if (source := getattr(rows, key)) is not None
    }
    has_solution = rows.solution != "" and (rows.solution or rows.choices) is not None
    solutions: dict[str, Problem] = {}
    unfit = []
    for row in tqdm(table.iter_rows(named=True), total=len(table), desc="solutions", mininterval=5):
        place = f"{row.pop(FILE)}, row {row.pop(ROW)}"
        default_id = f"{row.pop(NUMBER):06d}"
        try:
            solution = _render(row, templates, default_id, has_solution)
            if solution is not None and solution.id in solutions:
                raise ValueError(
                    f"id: found {told_value(solution.id)}, which an earlier row has; each row needs its own"
                )
        except ValueError as error:
            raise InputError(f"{where}: {place}: {error}") from None
        if solution is None:
            unfit.append(place)
        else:
            solutions[solution.id] = solution
    if unfit:
        log.warning(
            "%s: left out %d of %d rows with equal or blank choices, first %s", where, len(unfit), len(table), unfit[0]
        )
    if not solutions:
        raise InputError(
            f"{where}: found no rows to make solutions of ({len(table)} after `where`, {len(unfit)} of them with equal "
            "or blank choices)"
        )
    return list(solutions.values())


def _read(paths: Sequence[Path], rows: Rows, where: str) -> pl.DataFrame:
    """The columns that the templates use, and FILE, ROW (in its file) and NUMBER (in all), of the rows that count."""
    if not paths:
        raise InputError(f"{where}: found no files to read rows from")
    table = pl.concat([_scan(path, where) for path in paths], how="diagonal_relaxed").with_row_index(NUMBER, offset=1)
    columns = [name for name in table.collect_schema().names() if name not in (FILE, ROW, NUMBER)]
    used = _used_columns(rows)
    for key, names in used.items():
        for name in sorted(names - set(columns)):
            raise InputError(
                f"{where}: {key}: found {name!r}, which is no column of {paths[0]}; columns are {told_names(columns)}"
            )
    try:
        if rows.where is not None:
            table = table.filter(pl.sql_expr(rows.where))
        table = table.select(FILE, ROW, NUMBER, *sorted(set().union(*used.values()))).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise InputError(f"{where}: {', '.join(map(str, paths))}: cannot be read: {told_reason(error)}") from None
    if rows.sample is not None and rows.sample < len(table):
        table = table[sorted(random.Random(rows.seed).sample(range(len(table)), rows.sample))]
    return table


def _used_columns(rows: Rows) -> dict[str, set[str]]:
    """The names that each template and expression looks up, and `where`."""
    from jinja2.meta import find_undeclared_variables

    used = {}
    for key in TEMPLATES + EXPRESSIONS:
        source = getattr(rows, key) or ""
        parsed = _environment().parse(source if key in TEMPLATES else "{{ (" + source + ") }}" if source else "")
        used[key] = find_undeclared_variables(parsed)
    used["choice"] = used["choice"] - {"choice"} if rows.choices is not None else set()
    used["where"] = set(pl.sql_expr(rows.where).meta.root_names()) if rows.where is not None else set()
    return used


def _scan(path: Path, where: str) -> pl.LazyFrame:
    csv, parquet = partial(pl.scan_csv, infer_schema=False, glob=False), partial(pl.scan_parquet, glob=False)

    def json_lines(path: Path) -> pl.LazyFrame:
        return pl.scan_ndjson(escape(str(path)), infer_schema_length=None)  # it knows no `glob=False`

    readers = {".parquet": parquet, ".jsonl": json_lines, ".json": json_lines, ".csv": csv}
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in readers:
        raise InputError(
            f"{where}: {path}: rows are read from .parquet, or .jsonl, .json (a row a line) and .csv, these also as .gz"
        )
    if suffix == ".parquet" and not is_whole_parquet(path):
        raise InputError(f"{where}: {path}: found a truncated file or no parquet at all; copy or write it again")
    try:
        frame = readers[suffix](path).with_row_index(ROW, offset=1).with_columns(pl.lit(str(path)).alias(FILE))
        frame.collect_schema()  # what cannot be read is told here, where its file is known
    except UNREADABLE as error:
        raise InputError(f"{where}: {path}: cannot be read: {told_reason(error)}") from None
    return frame


def _render(
    row: dict, templates: dict[str, Callable[[dict], object]], default_id: str, has_solution: bool
) -> Problem | None:
    """None where two choices are the same or one is blank. `ValueError` names the key."""
    id = _evaluate("id", templates, row) if "id" in templates else default_id
    if id in (None, ""):
        raise ValueError(f"id: found {told_value(id)}; each row needs an id of its own")
    prompt = _evaluate("prompt", templates, row)
    choices = _choices(row, templates) if "choices" in templates else None
    right = choices[_gold(row, templates, len(choices))] if choices else None
    if choices and (len(set(choices)) < len(choices) or not all(choice.strip() for choice in choices)):
        return None
    answer = _evaluate("answer", templates, row) if "answer" in templates else right
    if not has_solution:
        return Problem(id=str(id), prompt=prompt, answer=answer, choices=choices)
    worked = "solution" in templates
    solution = _evaluate("solution", templates, row) if worked else right
    if choices and solution in choices and solution != right:
        raise ValueError(
            f"solution: found {told_value(solution)}, a choice, where the right one is {told_value(right)}"
        )
    if not solution.strip():
        raise ValueError(f"solution: found the blank text {told_value(solution)}; leave such rows out with `where`")
    return Solution(id=str(id), prompt=prompt, solution=solution, answer=answer if worked else None, choices=choices)


def _choices(row: dict, templates: dict) -> list[str]:
    found = _evaluate("choices", templates, row)
    if not isinstance(found, list | tuple) or len(found) < 2:
        raise ValueError(f"choices: found {told_value(found)}; it must be a list of at least two")
    return [_evaluate("choice", templates, row | {"choice": choice}) for choice in found]


def _gold(row: dict, templates: dict, count: int) -> int:
    """The label as it is: a filter that makes 0 of an empty one would hide that there is none."""
    found = _evaluate("gold", templates, row)
    if not re.fullmatch(r"\s*\d+\s*", str(found)) or int(found) >= count:
        raise ValueError(
            f"gold: found {told_value(found)}; it must be an index of the choices, 0 to {count - 1}; {LABELS}"
        )
    return int(found)


def _evaluate(key: str, templates: dict, row: dict) -> object:
    """A template's text or an expression's value. Whatever goes wrong in it is the row's or the template's doing."""
    from jinja2 import Undefined

    try:
        with limited():
            value = templates[key](row)
        if isinstance(value, Undefined):
            str(value)  # raises, in Jinja's words; an expression alone would return it
    except Exception as error:
        hint = f"; {LABELS}" if key == "gold" else ""
        raise ValueError(f"{key}: {error}{hint}") from None
    return value
