"""What every page must do in headless Chromium, whatever sections and tables it has.

`check_page` opens a page from disk, without a network, and does with it what a reader does: looks at its charts, sorts,
filters, chooses, downloads, prints, and goes through it by keyboard. An error on the console, a request and a dialog
fail.
"""

import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
LAPTOP, PHONE = 1280, 390  # pixels
SERIOUS = ("serious", "critical")
OF_COLOURS = ["color-contrast", "link-in-text-block"]  # rules of axe-core whose answer the dark may change
MOST_TABS = 3000  # key presses until the last control of a page
CONTROLS = "a[href], button, input, select, textarea, summary, [tabindex='0']"
# A mark of a chart is under this point of the window; where the middle of a line's box is beside the line, on the line.
POINTS_OF_MARKS = """(place) => {
  const marks = [...place.querySelectorAll('.role-mark path, .role-mark rect, .role-mark line, .role-mark text')];
  const step = Math.max(1, Math.floor(marks.length / 15));
  return marks.filter((_, i) => i % step === 0).flatMap((mark) => {
    const box = mark.getBoundingClientRect();
    const points = [[box.x + box.width / 2, box.y + box.height / 2]];
    if (mark.getPointAtLength && mark.getTotalLength() > 0) {
      const on = mark.getPointAtLength(mark.getTotalLength() / 2).matrixTransform(mark.getScreenCTM());
      points.push([on.x, on.y]);
    }
    return points;
  });
}"""
# [column, [[direction, other columns that claim one, numbers of the rows] for each of two clicks]] for each header.
SORTED_BY_EACH = """(table) => {
  const after = (button) => {
    button.click();
    const rows = [...table.tBodies[0].rows].map((row) => Number(row.dataset.row));
    return [button.closest('th').getAttribute('aria-sort'), table.querySelectorAll('[aria-sort]').length - 1, rows];
  };
  const buttons = [...table.querySelectorAll('[data-sorts]')];
  return buttons.map((button) => [button.dataset.sorts, [after(button), after(button)]]);
}"""
# [dataset, name of the file, csv] for each download, which Chromium would ask about if there are many.
DOWNLOADED = """async () => {
  const [create, click] = [URL.createObjectURL, HTMLAnchorElement.prototype.click];
  const [files, names] = [[], []];
  URL.createObjectURL = (blob) => { files.push(blob.text()); return 'blob:kept'; };
  HTMLAnchorElement.prototype.click = function () { names.push(this.download); };
  const buttons = [...document.querySelectorAll('[data-download]')];
  buttons.forEach((button) => button.click());
  [URL.createObjectURL, HTMLAnchorElement.prototype.click] = [create, click];
  const texts = await Promise.all(files);
  return buttons.map((button, i) => [button.dataset.download, names[i], texts[i]]);
}"""
# What axe-core calls serious, by these rules or all, in a few rows of each table and marks of each chart: it takes a
# minute for all, and the others are made as these are. It asks of each element whether each part that is left out
# contains it, so the rows and the marks that are left out are one part of each table and chart.
SERIOUS_FAULTS = """async ([impacts, rules]) => {
  const leftOut = [];
  const leaveOut = (parent, kept, part) => {
    if (parent.children.length <= kept) return;
    part.append(...[...parent.children].slice(kept));
    leftOut.push(part);
    return part;
  };
  for (const body of document.querySelectorAll('tbody')) {
    const rest = leaveOut(body, 3, document.createElement('tbody'));
    if (rest) body.after(rest);
  }
  for (const marks of document.querySelectorAll('.drawing .role-mark')) {
    const rest = leaveOut(marks, 2, document.createElementNS('http://www.w3.org/2000/svg', 'g'));
    if (rest) marks.append(rest);
  }
  const options = { resultTypes: ['violations'], ...(rules && { runOnly: rules }) };
  const { violations } = await axe.run({ exclude: leftOut }, options);
  for (const part of leftOut) {
    (part.localName === 'tbody' ? part.previousSibling : part.parentNode).append(...part.children);
    part.remove();
  }
  return violations.filter(({ impact }) => impacts.includes(impact))
    .map(({ id, help, nodes }) => [id, help, nodes.slice(0, 3).map((node) => node.html.slice(0, 150))]);
}"""
VISIBLE = """(control) => control.checkVisibility({ visibilityProperty: true }) && !control.disabled
  && control.tabIndex >= 0 && !(control.type === 'radio' && !control.checked)"""


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Debian's Chromium. An asyncio loop runs in this thread until it is closed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox, which Chromium refuses to root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: "Browser", path: Path, width: int = LAPTOP, scheme: str = "light") -> Iterator["Page"]:
    """The page, once all its charts are drawn. What it says or asks for until it is closed is an error."""
    page, said = tab_of(browser), []
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    heard = {
        "console": lambda message: message.type == "error" and said.append(f"console: {message.text}"),
        "pageerror": lambda error: said.append(f"error: {error}"),
        "dialog": lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()),
        "request": lambda request: asked(request.url, path, said),
    }
    for event, hear in heard.items():
        page.on(event, hear)
    try:
        page.goto(path.absolute().as_uri())
        page.wait_for_selector("html[data-drawn=all]", timeout=60_000)
        yield page
        page.evaluate("0")  # answered after all that was said
    finally:
        for event, hear in heard.items():
            page.remove_listener(event, hear)
        assert said == [], said


def tab_of(browser: "Browser") -> "Page":
    """The one tab, where there is no network. Its process keeps what it compiled of the scripts that all pages have."""
    context = browser.contexts[0] if browser.contexts else browser.new_context(offline=True)
    return context.pages[0] if context.pages else context.new_page()


def asked(url: str, path: Path, said: list[str]) -> None:
    """Only the file itself may be asked for, and what the page holds."""
    if not url.startswith(("data:", "blob:")) and url.partition("#")[0] != path.absolute().as_uri():
        said.append(f"request: {url}")


def check_page(browser: "Browser", path: Path) -> None:
    """Everything that is asked of every page."""
    with opened(browser, path) as page:
        check_fits(page)
        check_charts(page)
        check_hover(page)
        unfold(page)
        check_sorting(page)
        check_filters(page)
        check_choices(page)
        check_downloads(page)
        check_accessible(page)
    with opened(browser, path) as page:
        check_keyboard(page)
        check_print(page)
    with opened(browser, path, PHONE) as page:
        check_fits(page)
        unfold(page)
        check_fits(page)
        check_charts(page)
    with opened(browser, path, scheme="dark") as page:
        unfold(page)
        check_accessible(page, OF_COLOURS)
        check_themes(page)


def data_of(page: "Page") -> dict[str, dict]:
    """Dataset -> table, rows, columns, cells, titles, as the page has them."""
    return json.loads(page.locator("#data").text_content())


def unfold(page: "Page") -> None:
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")


def check_fits(page: "Page") -> None:
    """No horizontal scrolling: what is wider than the window scrolls in a box of its own."""
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    # The deepest elements that stand out, and in no box that scrolls.
    wide = """() => [...document.querySelectorAll('main *, header *')]
      .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
      .map((element) => element.outerHTML.slice(0, 120)).slice(-3)"""
    assert over <= 0, (over, page.evaluate(wide))


def check_charts(page: "Page") -> None:
    for chart in page.locator("[data-chart]").all():
        marks = chart.locator(".role-mark").locator("path, rect, line, text, image").count()
        box = chart.locator("svg").first.bounding_box()
        assert marks and box and min(box["width"], box["height"]) > 20, chart.get_attribute("data-chart")
    for picture in page.locator("img").all():
        assert picture.evaluate("(image) => image.complete && image.naturalWidth > 50")
        assert picture.get_attribute("alt")


def check_hover(page: "Page") -> None:
    """A mark of every chart with tooltips shows one."""
    charts = json.loads(page.locator("#charts").text_content())
    for name in (name for name, chart in charts.items() if '"tooltip"' in json.dumps(chart["spec"])):
        place = page.locator(f"[data-chart='{name}']")
        if not place.is_visible():
            continue  # another choice shows it
        place.scroll_into_view_if_needed()
        shown = page.locator("#vg-tooltip-element.visible")
        page.mouse.move(1, 1)
        for x, y in place.evaluate(POINTS_OF_MARKS):
            page.mouse.move(x, y)
            if shown.count() and shown.inner_text().strip():
                break
        else:
            raise AssertionError(f"{name}: no mark has a tooltip")
        page.mouse.move(1, 1)


def rows_shown(page: "Page", table: str) -> list[tuple[int, str]]:
    """Number in the dataset and text of the rows of an HTML table that can be seen, from top to bottom."""
    found = page.locator(f"#{table} tbody").evaluate(
        "(body) => [...body.rows].filter((row) => !row.hidden).map((row) => [Number(row.dataset.row), row.textContent])"
    )
    return [tuple(row) for row in found]


def tables_of(page: "Page") -> list[tuple[str, str]]:
    """id and dataset of every HTML table."""
    found = page.locator("table[data-of]").evaluate_all(
        "(tables) => tables.map((table) => [table.id, table.dataset.of])"
    )
    return [tuple(table) for table in found]


def check_sorting(page: "Page") -> None:
    """Every column, up and down: numbers by their values, texts as the browser's language sorts them, none last."""
    data = data_of(page)
    for table, dataset in tables_of(page):
        before = sorted(number for number, _ in rows_shown(page, table))
        for column, ways in page.locator(f"#{table}").evaluate(SORTED_BY_EACH):
            assert [way for way, *_ in ways] in (["ascending", "descending"], ["descending", "ascending"])
            values = data[dataset]["columns"][column]
            for way, others, found in ways:
                assert sorted(found) == before and others == 0
                require_sorted(page, [values[number] for number in found], down=way == "descending")


def require_sorted(page: "Page", values: list, down: bool) -> None:
    known = [value for value in values if value is not None]
    assert values == known + [None] * (len(values) - len(known))
    if all(isinstance(value, int | float) for value in known):
        assert known == sorted(known, reverse=down)
    else:
        order = (
            "(values) => values.every((value, i) => i === 0 || String(values[i - 1]).localeCompare(String(value)) <= 0)"
        )
        assert page.evaluate(order, known[::-1] if down else known), known


def check_filters(page: "Page") -> None:
    """A word of the last row leaves the rows that have it, and says how many."""
    for filter in page.locator("input[data-filters]").all():
        if filter.locator("xpath=ancestor::*[@hidden]").count():  # of a value that no control has now
            continue
        table = filter.get_attribute("data-filters")
        before = rows_shown(page, table)
        words = before[-1][1].split()
        if not words:
            continue
        fill = "(input, text) => { input.value = text; input.dispatchEvent(new Event('input')); }"
        filter.evaluate(fill, words[0].upper())  # some are hidden until a control shows them
        left = [row for row in before if words[0].lower() in row[1].lower()]
        assert rows_shown(page, table) == left
        count = filter.locator("xpath=ancestor::*[contains(@class, 'filter')]").locator("[role=status]").text_content()
        assert re.search(rf"\b{len(left)}\b", count), count
        filter.evaluate(fill, "")
        assert rows_shown(page, table) == before


def check_choices(page: "Page") -> None:
    """Each control chooses: what follows its name shows the row or the part of that value."""
    for name in dict.fromkeys(
        page.locator("[data-select]").evaluate_all("(all) => all.map((one) => one.dataset.select)")
    ):
        controls = page.locator(f"[data-select='{name}']")
        for control in [controls.nth(n) for n in {0, controls.count() // 2, controls.count() - 1}]:
            kind = control.evaluate("(one) => one.type || one.localName")
            if kind == "range":
                values = json.loads(control.get_attribute("data-values"))
                assert int(control.get_attribute("max")) == len(values) - 1
                for at in {0, len(values) - 1}:
                    control.evaluate("(one, at) => { one.value = at; one.dispatchEvent(new Event('input')); }", at)
                    require_chosen(page, name, values[at])
                if told := control.get_attribute("data-output"):
                    assert page.locator(f"#{told}").inner_text() == str(values[len(values) - 1])
            elif kind.startswith("select"):
                for value in control.locator("option").evaluate_all("(all) => all.map((one) => one.value)")[-2:]:
                    control.select_option(value, force=True)
                    require_chosen(page, name, value)
            else:
                control.dispatch_event("click")
                require_chosen(page, name, control.get_attribute("data-value"))
                assert control.get_attribute("aria-pressed") == "true"


def require_chosen(page: "Page", name: str, value: object) -> None:
    text = str(value)
    chosen = f"table[data-follows='{name}'] tr.chosen"
    assert set(page.locator(chosen).evaluate_all("(rows) => rows.map((row) => row.dataset.key)")) <= {text}
    for table in page.locator(f"table[data-follows='{name}']").all():
        keys = table.locator("tbody tr").evaluate_all("(rows) => rows.map((row) => row.dataset.key)")
        assert table.locator("tr.chosen").count() == keys.count(text)
    parts = page.locator(f"[data-shown-for='{name}']").evaluate_all(
        "(all) => all.map((one) => [one.dataset.value, one.hidden])"
    )
    assert all(hidden == (of != text) for of, hidden in parts)


def check_downloads(page: "Page") -> None:
    """Each dataset can be downloaded, and the csv holds its values."""
    data, downloaded = data_of(page), page.evaluate(DOWNLOADED)
    assert {name for name, _, _ in downloaded} == set(data)
    for name, file, csv in downloaded:
        dataset = data[name]
        assert file == dataset["table"].replace("/", "_") + ".csv"
        found = pl.read_csv(io.BytesIO(csv.encode()), infer_schema=False)
        assert found.columns == dataset["titles"]
        for column, (key, values) in zip(found, dataset["columns"].items(), strict=True):
            expected = dataset.get("cells", {}).get(key, values)
            assert len(column) == len(expected)
            assert all(is_cell(cell, value) for cell, value in zip(column, expected)), (name, key)


def is_cell(cell: str | None, value: object) -> bool:
    """Whether a cell of a csv holds the value; a list is its values with commas."""
    if value is None or value == "":
        return not cell
    if isinstance(value, bool):
        return cell == str(value).lower()
    if isinstance(value, int | float):
        return float(cell) == value
    return cell == (value if isinstance(value, str) else ",".join(map(str, value)))


def check_accessible(page: "Page", rules: list[str] | None = None) -> None:
    """Nothing that axe-core calls serious or critical, by these rules or all."""
    import axe_playwright_python

    page.evaluate(Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text())
    serious = page.evaluate(SERIOUS_FAULTS, [SERIOUS, rules])
    assert serious == []


def check_themes(page: "Page") -> None:
    """Opened dark, as the system is; the button turns it light, and dark again."""
    light = (
        "() => { const at = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g); return at[0] / 255; }"
    )
    assert page.evaluate(light) < 0.3
    for expected in (True, False):
        page.locator("#theme").click()
        assert (page.evaluate(light) > 0.8) == expected
        ink = page.locator("body").evaluate("(body) => getComputedStyle(body).color")
        texts = page.locator(".drawing .role-axis-label text").evaluate_all(
            "(all) => all.map((one) => getComputedStyle(one).fill)"
        )
        assert set(texts) <= {ink}


def check_keyboard(page: "Page") -> None:
    """Tab alone reaches every control, each is seen to have the focus, and Enter sorts."""
    page.evaluate(f"""() => {{
      window.reached = new Set(); window.unseen = [];
      document.addEventListener('focusin', ({{ target }}) => {{
        const style = getComputedStyle(target);
        const isSeen = style.outlineStyle !== 'none' || style.boxShadow !== 'none';
        if (!isSeen) window.unseen.push(target.outerHTML.slice(0, 120));
        window.reached.add(target);
      }});
      window.controls = () => [...document.querySelectorAll(`{CONTROLS}`)].filter({VISIBLE});
    }}""")
    left = "() => window.controls().filter((control) => !window.reached.has(control))"
    number = page.evaluate(f"({left})().length")
    for presses in range(1, MOST_TABS):
        page.keyboard.press("Tab")
        if presses >= number and not page.evaluate(f"({left})().length"):
            break
        if presses > 2 * number + 20:
            raise AssertionError(page.evaluate(f"({left})().map((one) => one.outerHTML.slice(0, 120))"))
    assert page.evaluate("window.unseen") == []
    for button in page.locator("[data-sorts]").all():
        if button.is_visible():
            button.focus()
            page.keyboard.press("Enter")
            assert button.locator("xpath=..").get_attribute("aria-sort") in ("ascending", "descending")
            break


def check_print(page: "Page") -> None:
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and page.locator("#answer").is_visible()
    assert page.pdf().startswith(b"%PDF")
    page.emulate_media(media="screen")
