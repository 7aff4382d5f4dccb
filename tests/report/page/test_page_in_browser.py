"""Pages in headless Chromium: made-up studies, the poorest and strangest among them, and the finished smoke study."""

import shutil
from pathlib import Path

import altair as alt
import polars as pl
import pytest
from browser import check_page, opened
from markupsafe import Markup
from page_numbers import PageFile
from page_studies import (
    check_finished,
    finished_corpora,
    finished_curves,
    finished_models,
    finished_post_training,
    made_page,
)
from proxycast.report.page.blocks import Chart, Column, Dataset, Html, Section, Table
from proxycast.report.page.charts import MOST_MARKS, specification
from proxycast.report.page.contents import study_page
from proxycast.report.page.html_page import page_html, write_page

pytestmark = pytest.mark.browser
QUALITIES = [0.1 * n for n in range(7)]
# What ends a script, opens a comment, an element, an attribute or a formula, where it is not escaped.
HOSTILE = [
    "</script><script>window.broken = 1; alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- <script>",
    "\" onmouseover=\"alert(1)' x='",
    "=1+1",
    "R&D &amp; {{ 7 * 7 }} datum['x']",
    "{0}\\u003cb\\n% \u202e",
]


def test_a_data_selection(browser, tmp_path):
    path = made_page(finished_corpora(tmp_path, QUALITIES))
    check_page(browser, path)
    assert path.stat().st_size < 4e6


def test_a_model_selection(browser, tmp_path):
    check_page(browser, made_page(finished_models(tmp_path)))


def test_post_training(browser, tmp_path):
    path = made_page(finished_post_training(tmp_path))
    check_page(browser, path)
    assert path.stat().st_size < 4e6


def test_forecasts(browser, tmp_path):
    check_page(browser, made_page(finished_curves(tmp_path)))


@pytest.mark.parametrize("make", [finished_corpora, finished_models])
def test_without_a_truth(browser, tmp_path, make):
    qualities = [QUALITIES] if make is finished_corpora else []
    check_page(browser, made_page(make(tmp_path, *qualities, is_judged=False)))


POOR = {
    "one setting": dict(steps=(4,), tasks=["homes"]),
    "one seed": dict(seeds=(0,)),
    "no baselines": dict(baselines=False),
    "ties": dict(qualities=[0.3] * 6, noise=0.0),
    "one corpus": dict(qualities=[0.3], is_judged=False),
    "two corpora": dict(qualities=[0.3, 0.4]),
    "nothing but one corpus": dict(qualities=[0.3], is_judged=False, baselines=False, seeds=(0,), steps=(4,)),
}


@pytest.mark.parametrize("made", POOR.values(), ids=POOR)
def test_poor_studies(browser, tmp_path, made):
    check_page(browser, made_page(finished_corpora(tmp_path, **({"qualities": QUALITIES} | made))))


def test_400_corpora(browser, tmp_path):
    made = dict(seeds=(0,), steps=(4,), tasks=["homes"], is_judged=False, baselines=False)
    path = made_page(finished_corpora(tmp_path, [n / 1000 for n in range(400)], **made))
    assert path.stat().st_size < 15e6
    check_page(browser, path)


@pytest.mark.parametrize("missing", ["data_selection", "checkpoints.parquet", "targets.parquet"])
def test_tables_that_are_gone(browser, tmp_path, missing):
    results = finished_corpora(tmp_path, QUALITIES)
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    html = study_page(results)
    write_page(html, tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as page:
        assert page.locator("h1").inner_text() == "made_up"


def test_names_are_texts_and_run_nothing(browser, tmp_path):
    """The handlers of `opened` fail on a dialog, an error or a request."""
    names = {f"c{n:02}": name for n, name in enumerate(HOSTILE)} | {"homes": HOSTILE[0], "sums": HOSTILE[1]}
    path = made_page(finished_corpora(tmp_path, QUALITIES, names))
    read = PageFile(path)
    assert read.handlers == [] and all(script.get("type") in ("module", "application/json") for script in read.scripts)
    check_page(browser, path)
    with opened(browser, path) as page:
        assert page.evaluate("window.broken") is None
        texts = {text for dataset in read.data.values() for text in dataset["columns"].get("corpus", [])}
        assert set(HOSTILE) <= texts
        in_cells = {cell for _, _, rows in read.tables.values() for _, cells in rows for cell in cells}
        assert set(HOSTILE) <= in_cells
        assert page.evaluate("document.body.innerText").count(HOSTILE[2])


# What a section may have, in a page made of blocks

ROWS = pl.DataFrame(
    {
        "corpus": ["a", "b", "c", "d", "e"],
        "step": [1, 1, 2, 2, 2],
        "score": [0.5, None, 0.25, 2.0, 10.0],
        "is_first": [True, False, False, None, False],
        "text": ["=1+1", 'two "words", a comma', "é\nline", "-2", "plain"],
    }
)


def page_of_blocks(path: Path, *blocks) -> Path:
    write_page(page_html("blocks", [Section("part", "A part", list(blocks))], Markup("<p>An answer.</p>")), path)
    return path


def blocks() -> list:
    dataset = Dataset("scores", ROWS, "data_selection/scores")
    pick = alt.param("corpus", value="a")
    chart = (
        alt.Chart(alt.NamedData("scores"))
        .mark_circle(size=90)
        .encode(
            x="step:O",
            y="score:Q",
            tooltip=["corpus:N", "score:Q"],
            opacity=alt.condition("datum.corpus == corpus", alt.value(1), alt.value(0.4)),
        )
    )
    spec = specification(chart.add_params(pick).properties(width="container"))
    columns = [
        Column("corpus", "Corpus"),
        Column("score", "Score", ".2f"),
        Column("is_first", "First"),
        Column("text", "Text"),
    ]
    buttons = "".join(
        f'<button type="button" data-select="corpus" data-value="{c}" aria-pressed="false">{c}</button>'
        for c in "abcde"
    )
    slider = (
        '<label>Step <input type="range" min="0" max="2" value="0" data-select="step" data-values="[10, 20, 40]" '
        'data-output="step-shown"></label> <output id="step-shown">10</output>'
        '<label>Task <select data-select="task"><option>homes</option><option>sums</option></select></label>'
        '<p data-shown-for="step" data-value="20" hidden>twenty</p>'
        '<p data-shown-for="step" data-value="40" hidden>forty</p>'
    )
    return [
        Chart("scores-chart", "Scores", spec, [dataset]),
        Html("pick", "Pick", Markup(f"<p>{buttons}</p>{slider}"), [dataset]),
        Table("scores-table", "Scores", dataset, columns, key="corpus", selects="corpus"),
    ]


def test_a_click_chooses_a_row_a_slider_shows_a_part_and_the_csv_is_that_of_polars(browser, tmp_path):
    path = page_of_blocks(tmp_path / "page.html", *blocks())
    check_page(browser, path)
    with opened(browser, path) as page:
        page.get_by_role("button", name="c", exact=True).click()
        assert page.locator("tr.chosen td").first.inner_text() == "c"
        faint = "(marks) => marks.filter((mark) => getComputedStyle(mark).opacity === '1').length"
        assert page.locator("[data-chart] .role-mark path").evaluate_all(faint) == 1
        slider = page.get_by_role("slider", name="Step")
        assert not page.get_by_text("forty").is_visible()
        slider.focus()
        page.keyboard.press("End")
        assert page.get_by_text("forty").is_visible() and not page.get_by_text("twenty").is_visible()
        page.keyboard.press("ArrowLeft")
        assert page.get_by_text("twenty").is_visible() and page.locator("#step-shown").inner_text() == "20"
        page.get_by_label("Filter").fill("comma TWO")
        assert page.locator("tbody tr:not([hidden])").count() == 1
        with page.expect_download() as download:
            page.get_by_role("button", name="csv").first.click()
        found = pl.read_csv(download.value.path())
    assert (
        found["score"].to_list() == ROWS["score"].to_list()
        and found["is_first"].to_list() == ROWS["is_first"].to_list()
    )
    assert found["text"].to_list() == ["'=1+1", *ROWS["text"].to_list()[1:3], "'-2", "plain"]


def test_many_marks_are_a_flat_picture(browser, tmp_path):
    many = Dataset("many", pl.DataFrame({"x": range(MOST_MARKS + 1)}), "data_selection/many")
    chart = alt.Chart(alt.NamedData("many")).mark_circle().encode(x="x:Q", y="x:Q").properties(width="container")
    path = page_of_blocks(
        tmp_path / "page.html", Chart("many-chart", "Many", specification(chart), [many], alt="Many dots")
    )
    with opened(browser, path) as page:
        assert page.get_by_role("img", name="Many dots").evaluate("(image) => image.naturalWidth") > 500
        assert page.locator("svg").count() == 0
    check_page(browser, path)


FAULTS = {
    "<script>alert(1)</script>": "violates the following Content Security Policy",
    '<img alt="" src="https://example.org/x.png">': "Content Security Policy",
    '<div style="width: 2000px">wide</div>': "width: 2000px",
    "<button type=button></button>": "discernible text",
    '<p style="color: #eee">pale</p>': "contrast",
    '<button type=button style="outline: none">x</button>': "outline: none",
    "<details><summary>More</summary><p style='width: 3000px'>wide</p></details>": "width: 3000px",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checks_find_a_fault(browser, tmp_path, fault):
    path = page_of_blocks(tmp_path / "page.html", *blocks(), Html("fault", "A fault", Markup(fault)))
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        check_page(browser, path)


def test_the_smoke_study(browser, smoke):
    """As the workflow wrote it."""
    path = check_finished(browser, smoke / "results/smoke")
    assert path.stat().st_size < 4e6
