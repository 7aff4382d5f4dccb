"""Expert solutions from the rows of a data set, by Jinja templates.

A row becomes a prompt and a solution: of a multiple-choice question the choice that its label says, of other data sets
the text that an expert wrote, or none, where a strong model is to write it (`proxycast.extraction.writers`).

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
from functools import partial
from glob import escape
from pathlib import Path

import polars as pl
from tqdm import tqdm

from proxycast.config.tasks import EXPRESSIONS, TEMPLATES, Rows, compile_template
from proxycast.options import InputError, told_names, told_reason, told_value
from proxycast.sandbox import limited, template_environment
from proxycast.solutions.rows import Problem, Solution
from proxycast.tables import UNREADABLE, is_whole_parquet

log = logging.getLogger(__name__)

FILE, ROW, NUMBER = "proxycast file", "proxycast row", "proxycast number"  # columns of our own; no name in Jinja
LABELS = "rows without a label cannot be used; take a split that has labels, or leave such rows out with `where`"


def render_solutions(paths: Sequence[Path], rows: Rows, where: str) -> list[Problem]:
    """The expert solutions of all rows of `paths` that `rows` takes, in the order of the files.

    Where `rows` gives no solution, each row becomes a problem that has none.

    Files are .parquet, .jsonl (or .json of the same lines) or .csv (all of its columns are text), the latter three also
    with .gz. A question of which two choices come out the same, or one blank, is left out: no choice of it is *the*
    right one. How many were is logged. `where` begins the messages; `InputError` names file, row (from 1) and key.
    """
    table = _read_columns(paths, rows, where)
    templates = {
        key: compile_template(key, source)
        for key in TEMPLATES + EXPRESSIONS
        if (source := getattr(rows, key)) is not None
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


def _read_columns(paths: Sequence[Path], rows: Rows, where: str) -> pl.DataFrame:
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
        parsed = template_environment().parse(
            source if key in TEMPLATES else "{{ (" + source + ") }}" if source else ""
        )
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
    id = _value_of("id", templates, row) if "id" in templates else default_id
    if id in (None, ""):
        raise ValueError(f"id: found {told_value(id)}; each row needs an id of its own")
    prompt = _value_of("prompt", templates, row)
    choices = _rendered_choices(row, templates) if "choices" in templates else None
    right = choices[_gold(row, templates, len(choices))] if choices else None
    if choices and (len(set(choices)) < len(choices) or not all(choice.strip() for choice in choices)):
        return None
    answer = _value_of("answer", templates, row) if "answer" in templates else right
    if not has_solution:
        return Problem(id=str(id), prompt=prompt, answer=answer, choices=choices)
    worked = "solution" in templates
    solution = _value_of("solution", templates, row) if worked else right
    if choices and solution in choices and solution != right:
        raise ValueError(
            f"solution: found {told_value(solution)}, a choice, where the right one is {told_value(right)}"
        )
    if not solution.strip():
        raise ValueError(f"solution: found the blank text {told_value(solution)}; leave such rows out with `where`")
    return Solution(id=str(id), prompt=prompt, solution=solution, answer=answer if worked else None, choices=choices)


def _rendered_choices(row: dict, templates: dict) -> list[str]:
    found = _value_of("choices", templates, row)
    if not isinstance(found, list | tuple) or len(found) < 2:
        raise ValueError(f"choices: found {told_value(found)}; it must be a list of at least two")
    return [_value_of("choice", templates, row | {"choice": choice}) for choice in found]


def _gold(row: dict, templates: dict, count: int) -> int:
    """The label without any filter, which could turn an empty label into 0."""
    found = _value_of("gold", templates, row)
    if not re.fullmatch(r"\s*\d+\s*", str(found)) or int(found) >= count:
        raise ValueError(
            f"gold: found {told_value(found)}; it must be an index of the choices, 0 to {count - 1}; {LABELS}"
        )
    return int(found)


def _value_of(key: str, templates: dict, row: dict) -> object:
    """A template's text or an expression's value. Any error is one of the row or the template."""
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
