"""Grids of HTML: escaped, with the colours of their values."""

import re
from importlib.resources import files

import pytest
from proxycast.report.page.grids import LEVELS, Cell, grid, level


def test_levels_are_even_steps_and_end_at_the_ends():
    values = [low / 100 for low in range(101)]
    found = [level(value, 0, 1) for value in values]
    assert found == sorted(found) and set(found) == set(range(LEVELS + 1))
    assert level(0.5, 0, 1) == LEVELS // 2 and level(-3, 0, 1) == 0 and level(9, 0, 1) == LEVELS
    assert level(None, 0, 1) is None and level(float("nan"), 0, 1) is None and level(2, 2, 2) == LEVELS // 2


def test_texts_are_escaped_and_empty_cells_have_no_colour():
    odd = '<i>"x"</i>'
    cells = [[Cell(odd, 3, odd, selects="proxy", value=odd, goes="scatter"), None], [Cell("?", None), Cell("1", 20)]]
    html = str(grid([odd, "b"], ["c", odd], cells, label=odd, corner=odd))
    assert "<i>" not in html and html.count("&lt;i&gt;") == 7
    assert re.findall(r'class="level-(\d+)"', html) == ["3", "20"]
    assert html.count("<button") == 1 and 'data-goes="scatter"' in html and 'aria-pressed="false"' in html


def test_rows_must_fit():
    with pytest.raises(ValueError):
        grid(["a", "b"], ["c"], [[Cell("1")]], label="")


def test_every_level_has_a_colour_in_both_scales():
    css = (files("proxycast.report.page") / "assets" / "grids.css").read_text(encoding="utf8")
    for scale in ("diverging", "sequential"):
        assert set(re.findall(rf"\.{scale} \.level-(\d+) ", css)) == {str(n) for n in range(LEVELS + 1)}
