"""Grids of HTML: heat maps and matrices of pairs. Each cell shows its number; the colour only repeats it.

The colours are classes of `assets/grids.css`, which knows light, dark and print. A cell may be a button that sets a
control of the page (`data-select`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from jinja2 import Environment, Template
from markupsafe import Markup

from proxycast.report.page.formats import MISSING

LEVELS = 20  # colours are numbered from 0 to this


@dataclass(frozen=True)
class Cell:
    """A cell of a grid. Its `text` says all that its colour says.

    `level`: its colour, 0 to `LEVELS`; None: no colour. `title`: more words, shown on hover. With `selects` the cell is
    a button: it sets the control of that name to `value`, and the page goes to the element with the id `goes`.
    """

    text: str
    level: int | None = None
    title: str = ""
    selects: str = ""
    value: str = ""
    goes: str = ""
    is_pressed: bool = False  # the button of the value that is chosen when the page opens


def level(value: float | None, low: float, high: float) -> int | None:
    """The colour of a value on a scale from `low` to `high`; what lies beyond takes the end's. None where unknown."""
    if value is None or value != value:
        return None
    share = (value - low) / (high - low) if high > low else 0.5
    return round(LEVELS * min(max(share, 0.0), 1.0))


GRID = """{% macro colour(cell) %}
{% if cell.level is not none %} class="level-{{ cell.level }}"{% endif %}
{% endmacro %}
{% macro about(cell) %}{% if cell.title %} title="{{ cell.title }}"{% endif %}{% endmacro %}
<div class="scroll grid-box" tabindex="0" role="region" aria-label="{{ label }}">
<table class="grid {{ scale }}{% if narrow %} narrow{% endif %}">
<thead><tr><td>{{ corner }}</td>
{% for column in columns %}
<th scope="col"><span>{{ column }}</span></th>
{% endfor %}
</tr></thead>
<tbody>
{% for name, row in rows %}
<tr><th scope="row">{{ name }}</th>
{% for cell in row %}
{% if cell is none %}
<td class="none">{{ missing }}</td>
{% elif cell.selects %}
<td{{ colour(cell) }}><button type="button" data-select="{{ cell.selects }}" data-value="{{ cell.value }}"
  {% if cell.goes %}
  data-goes="{{ cell.goes }}"
  {% endif %}
  aria-pressed="{{ 'true' if cell.is_pressed else 'false' }}"{{ about(cell) }}>{{ cell.text }}</button></td>
{% else %}
<td{{ colour(cell) }}{{ about(cell) }}>{{ cell.text }}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>"""


def grid(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell | None]],
    *,
    label: str,
    corner: str = "",
    scale: Literal["diverging", "sequential"] = "diverging",
    narrow: bool = False,
) -> Markup:
    """A table of colours (rows, columns) with its texts escaped. A cell that is None shows a dash.

    `label`: the name of the grid for those who do not see it; `corner`: above the names of the rows. `diverging`: red
    below level 10, blue above; `sequential`: the higher, the bluer. `narrow`: cells of one sign or two.
    """
    filled = list(zip(rows, cells, strict=True))
    return Markup(
        _template().render(
            rows=filled, columns=columns, label=label, corner=corner, scale=scale, narrow=narrow, missing=MISSING
        )
    )


@cache  # a page has a dozen grids
def _template() -> Template:
    return Environment(autoescape=True, trim_blocks=True).from_string(GRID)
