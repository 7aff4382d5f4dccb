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
# What stands in the rows of a table that can be seen, from top to bottom: [number in the dataset, text] of each.
ROWS_SHOWN = """const rowsShown = (table) => [...table.tBodies[0].rows].filter((row) => !row.hidden)
  .map((row) => [Number(row.dataset.row), row.textContent]);"""
# [dataset, numbers of the rows, [column, [[direction, other columns that claim one, numbers] for each of two clicks]]
# for each header] for each table.
SORTED_BY_EACH = f"""() => {{
  {ROWS_SHOWN}
  const numbers = (table) => [...table.tBodies[0].rows].map((row) => Number(row.dataset.row));
  return [...document.querySelectorAll('table[data-of]')].map((table) => {{
    const before = rowsShown(table).map(([number]) => number);
    const after = (button) => {{
      button.click();
      const way = button.closest('th').getAttribute('aria-sort');
      return [way, table.querySelectorAll('[aria-sort]').length - 1, numbers(table)];
    }};
    const buttons = [...table.querySelectorAll('[data-sorts]')];
    return [table.dataset.of, before, buttons.map((button) => [button.dataset.sorts, [after(button), after(button)]])];
  }});
}}"""
# Whether each of these lists of texts is sorted as the browser's language sorts.
ARE_SORTED = """(lists) => {
  const { compare } = new Intl.Collator();
  return lists.map((texts) => texts.every((text, i) => i === 0 || compare(String(texts[i - 1]), String(text)) <= 0));
}"""
# [rows before, word, rows that have it, what is said of their number, whether the rows come back] for each filter that
# some control shows, by a word of the last row.
FILTERED = f"""() => {{
  {ROWS_SHOWN}
  const filter = (input) => {{
    const table = document.getElementById(input.dataset.filters);
    const fill = (text) => {{ input.value = text; input.dispatchEvent(new Event('input')); return rowsShown(table); }};
    const before = rowsShown(table);
    const [word] = before.at(-1)[1].trim().split(/\\s+/);
    if (!word) return [];
    const left = fill(word.toUpperCase());
    const told = input.closest('.filter').querySelector('[role=status]').textContent;
    return [[before, word, left, told, JSON.stringify(fill('')) === JSON.stringify(before)]];
  }};
  return [...document.querySelectorAll('input[data-filters]')]
    .filter((input) => !input.parentElement.closest('[hidden]')).flatMap(filter);
}}"""
# For each control of a name (the first, the middle, the last) and each value that it is given: what it says of itself,
# and, of all that follows the name: the keys of the rows that are chosen, [keys, rows that are chosen] of each table,
# and [value, is hidden] of each part.
CHOSEN = """async () => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const keys = (rows) => rows.map((row) => row.dataset.key);
  const followed = (name) => ({
    keys: keys(all(`table[data-follows='${name}'] tr.chosen`)),
    tables: all(`table[data-follows='${name}']`)
      .map((table) => [keys(all('tbody tr', table)), all('tr.chosen', table).length]),
    parts: all(`[data-shown-for='${name}']`).map((part) => [part.dataset.value, part.hidden]),
  });
  const told = (control, events) => {
    for (const event of events) control.dispatchEvent(new Event(event, { bubbles: true }));
  };
  const ways = { // [value, how to choose it] for each value to be given
    range: (control, values) => [...new Set([0, values.length - 1])].map((at) => [
      values[at], () => { control.value = at; told(control, ['input']); },
    ]),
    select: (control) => [...control.options].slice(-2).map(({ value }) => [
      value, () => { control.value = value; told(control, ['input', 'change']); },
    ]),
    button: (control) => [[
      control.dataset.value, () => control.dispatchEvent(new MouseEvent('click', { bubbles: true })),
    ]],
  };
  const found = [];
  for (const name of new Set(all('[data-select]').map((control) => control.dataset.select))) {
    const controls = all(`[data-select='${name}']`);
    for (const at of new Set([0, Math.floor(controls.length / 2), controls.length - 1])) {
      const control = controls[at];
      const kind = control.type === 'range' ? 'range' : control.localName === 'select' ? 'select' : 'button';
      const values = kind === 'range' ? JSON.parse(control.dataset.values) : [];
      for (const [value, choose] of ways[kind](control, values)) {
        choose();
        const output = document.getElementById(control.dataset.output);
        found.push({
          kind, values, value, max: control.max, output: output && output.innerText,
          pressed: control.getAttribute('aria-pressed'), ...followed(name),
        });
        await new Promise((drawn) => setTimeout(drawn)); // charts follow in their own time
      }
    }
  }
  return found;
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
# minute for all, and the others are made as these are. Other rows go, and leave the table as wide and high as it was.
# Other marks are one part of each chart, as axe-core asks of each element whether each part that is left out has it.
SERIOUS_FAULTS = """async ([impacts, rules]) => {
  const long = [...document.querySelectorAll('tbody')].filter((body) => body.rows.length > 3);
  const tables = long.map((body) => body.closest('table'));
  const sizes = tables.map((table) => [table.offsetWidth, table.offsetHeight]);
  const leftOut = long.map((body, i) => {
    [...body.rows].slice(3).forEach((row) => row.remove());
    tables[i].style.minWidth = `${sizes[i][0]}px`;
    return body.insertRow();
  });
  const missing = tables.map((table, i) => sizes[i][1] - table.offsetHeight);
  leftOut.forEach((space, i) => { space.style.height = `${missing[i]}px`; });
  for (const marks of document.querySelectorAll('.drawing .role-mark')) {
    const others = document.createElementNS('http://www.w3.org/2000/svg', 'g');
    others.append(...[...marks.children].slice(2));
    if (others.children.length) {
      marks.append(others);
      leftOut.push(others);
    }
  }
  const options = { resultTypes: ['violations'], ...(rules && { runOnly: rules }) };
  const { violations } = await axe.run({ exclude: leftOut }, options);
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
        check_keyboard(page)
        check_print(page)
        unfold(page)
        check_sorting(page)
        check_filters(page)
        check_choices(page)
        check_downloads(page)
        check_accessible(page)
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


def check_sorting(page: "Page") -> None:
    """Every column, up and down: numbers by their values, texts as the browser's language sorts them, none last."""
    data, texts = data_of(page), []
    for dataset, before, columns in page.evaluate(SORTED_BY_EACH):
        for column, ways in columns:
            assert [way for way, *_ in ways] in (["ascending", "descending"], ["descending", "ascending"])
            values = data[dataset]["columns"][column]
            for way, others, found in ways:
                assert sorted(found) == sorted(before) and others == 0
                known = known_first([values[number] for number in found])
                upwards = known[::-1] if way == "descending" else known
                if all(isinstance(value, int | float) for value in known):
                    assert upwards == sorted(known)
                else:
                    texts.append(upwards)
    for ordered, found in zip(page.evaluate(ARE_SORTED, texts), texts, strict=True):
        assert ordered, found


def known_first(values: list) -> list:
    """The values that are known, behind which the others must stand."""
    known = [value for value in values if value is not None]
    assert values == known + [None] * (len(values) - len(known))
    return known


def check_filters(page: "Page") -> None:
    """A word of the last row leaves the rows that have it, and says how many."""
    for before, word, left, told, is_undone in page.evaluate(FILTERED):
        assert left == [row for row in before if word.lower() in row[1].lower()]
        assert re.search(rf"\b{len(left)}\b", told), told
        assert is_undone


def check_choices(page: "Page") -> None:
    """Each control chooses: what follows its name shows the row or the part of that value."""
    for chosen in page.evaluate(CHOSEN):
        text = str(chosen["value"])
        assert set(chosen["keys"]) <= {text}
        assert all(count == keys.count(text) for keys, count in chosen["tables"])
        assert all(hidden == (of != text) for of, hidden in chosen["parts"])
        if chosen["kind"] == "range":
            assert int(chosen["max"]) == len(chosen["values"]) - 1
            assert chosen["output"] in (None, text)
        elif chosen["kind"] == "button":
            assert chosen["pressed"] == "true"


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
    """Nothing that axe-core calls serious or critical, by these rules or all. Of a table a few rows remain."""
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
