"""From a chart of Altair to what stands on the page: a specification without data, or a flat picture.

A page of thousands of marks is slow, so a chart of more rows than `MOST_MARKS` becomes a picture.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version

import altair as alt
import vl_convert

from proxycast.report.page.blocks import Chart
from proxycast.report.style import BASELINE_LOOKS, GREY, STATISTIC_LOOKS
from proxycast.tables import beside_compiled_code, keep, kept

KEPT = beside_compiled_code(__file__)
SETS_EMBED = "window.vegaEmbed = vegaEmbed;"
MOST_MARKS = 4000
PICTURE_SCALE = 1.5  # pixels of a picture for each of the chart's
FONT = "system-ui, sans-serif"
# The colours of texts, lines and grids come from page.css, which knows light, dark and print.
CONFIG = {
    "mark": {"aria": False},  # a chart is an image with a description; its marks have none of their own
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridOpacity": 0.5},
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 260},
    "text": {"fontSize": 12},
}
DARKEST, LIGHTEST = 0.125, 0.3  # relative luminance of marks that are seen on both backgrounds
BLACK, MID_GREY = "#000000", "#7a7a7a"  # black marks could not be seen in the dark


def specification(chart: alt.TopLevelMixin) -> dict:
    """The chart as Vega-Lite without data, as wide as the page gives it room."""
    spec = chart.to_dict(validate=False)
    spec.pop("datasets", None)
    spec["config"] = CONFIG
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def colour(statistic: str) -> str:
    """The colour of a statistic or baseline, as in the figures, that can be seen in light and dark."""
    look = (STATISTIC_LOOKS | BASELINE_LOOKS).get(statistic)
    found = look.colour if look else MID_GREY
    return MID_GREY if found in (BLACK, GREY) else _seen(found)


def _seen(colour: str) -> str:
    """`colour` (#rrggbb), made lighter or darker until its contrast with the light and the dark page is about 3."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    for share in (n / 50 for n in range(50)):
        end = 1.0 if _luminance(parts) < DARKEST else 0.0
        mixed = [part + share * (end - part) for part in parts]
        if DARKEST <= _luminance(mixed) <= LIGHTEST:
            return "#" + "".join(f"{round(255 * part):02x}" for part in mixed)
    return MID_GREY


def _luminance(parts: Sequence[float]) -> float:
    """Relative luminance of WCAG, from red, green and blue between 0 and 1."""
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def is_flat(chart: Chart) -> bool:
    marks = sum(len(dataset.frame) for dataset in chart.datasets) if chart.marks is None else chart.marks
    return marks > MOST_MARKS


def picture(chart: Chart, values: Mapping[str, list[dict]]) -> str:
    """The chart as a PNG in a data URI. `values`: rows of its datasets by their names."""
    spec = chart.spec | {"datasets": values, "config": CONFIG | {"background": "white"}}
    if spec.get("width") == "container":
        spec["width"] = 760
    png = vl_convert.vegalite_to_png(json.dumps(spec), scale=PICTURE_SCALE)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script that sets `vegaEmbed`; about 900 kB, from `vl_convert`.

    To bundle it takes a third of a small page's time, so it is kept for the next page.
    """
    maker = f"vl_convert {version('vl-convert-python')}: {SETS_EMBED}"
    if (script := kept(maker, KEPT)) is None:
        script = vl_convert.javascript_bundle(SETS_EMBED)
        keep(script, maker, KEPT)
    return script
