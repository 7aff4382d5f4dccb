"""Levels by which tokens are coloured, on the page and on a terminal: one character a token.

A measure of one candidate has the levels 0 to 5, the stronger the more. A difference of two candidates has five levels:
a and b where the first is lower (of a weight or contribution: higher), c where they are alike, d and e the other way.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from proxycast.options import printable

ALIKE = "c"
LINE_END, TAB, NO_BYTES = "\N{RETURN SYMBOL}", "\N{RIGHTWARDS ARROW TO BAR}", "\N{MIDLINE HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Measure:
    """What tokens are coloured by. `bounds`: where the levels 1 to 5 begin; `steps`: where a difference begins.

    A difference of ranks is a ratio; others are of the measure's own unit. `better`: how `{name}` stands out where
    it has the levels a or b. `column`: of the table token_view; `contribution` is made of its shares. `scale`: the
    column that the levels are of, if another.
    """

    title: str
    column: str
    bounds: Sequence[float]
    labels: Sequence[str]
    steps: tuple[float, float]
    unit: str
    better: str
    scale: str = ""
    higher: bool = False  # whether the levels a and b are those where the first is higher

    @property
    def levels_of(self) -> str:
        return self.scale or self.column


NATS = ["below 0.1 nats", "0.1 to 0.5", "0.5 to 1.5", "1.5 to 3", "3 to 5", "5 nats or more"]
OF_MEAN = ["below ¼ of the mean", "¼ to ½", "½ to 1", "1 to 2", "2 to 4", "4 times the mean or more"]
MEASURES = {
    "rank": Measure(
        *(
            "Rank",
            "rank",
            (2, 6, 21, 101, 1001),
            ["rank 1", "2 to 5", "6 to 20", "21 to 100", "101 to 1000", "above 1000"],
        ),
        *((1.5, 4), "times", "{name} ranks it better"),
    ),
    "entropy": Measure(
        *("Entropy", "entropy", (0.1, 0.5, 1.5, 3, 5), NATS, (0.2, 1), "nats", "{name} is surer"),
    ),
    "cross_entropy": Measure(
        *("Cross-entropy", "cross_entropy", (0.1, 0.5, 1.5, 3, 5), NATS, (0.2, 1), "nats", "{name} expects it more"),
    ),
    "weight": Measure(
        *("Weight", "weight", (0.25, 0.5, 1, 2, 4), OF_MEAN, (0.2, 1), "times the mean weight"),
        *("it counts more for {name}", "relative_weight", True),
    ),
    "contribution": Measure(
        *(
            "Contribution",
            "contribution",
            (0.25, 0.5, 1, 2, 4),
            OF_MEAN,
            (0.05, 0.5),
            "of the largest in this solution",
        ),
        *("it speaks for {name}", "relative_share", True),
    ),
}


def levels(values: Sequence[float | None], measure: Measure) -> str:
    """A level for each token; a value that is missing has the lowest."""
    return "".join("0" if value is None else str(bisect_right(measure.bounds, value)) for value in values)


def difference_levels(first: Sequence[float | None], second: Sequence[float | None], name: str) -> str:
    """A level for each token of two candidates. Of contributions: `first` are the differences, `second` is 0."""
    measure = MEASURES[name]
    known = [(a, b) if a is not None and b is not None else (1.0, 1.0) for a, b in zip(first, second, strict=True)]
    if name == "contribution":
        most = max((abs(a - b) for a, b in known), default=0) or 1.0
        return "".join(_difference_level((a - b) / most, measure) for a, b in known)
    if name == "rank":
        lower, upper = measure.steps
        return "".join(_level(b / a, a / b, lower, upper) for a, b in known)
    return "".join(_difference_level(a - b if measure.higher else b - a, measure) for a, b in known)


def _difference_level(by: float, measure: Measure) -> str:
    return _level(by, -by, *measure.steps)


def _level(for_first: float, for_second: float, lower: float, upper: float) -> str:
    if for_first >= lower:
        return "a" if for_first >= upper else "b"
    if for_second >= lower:
        return "e" if for_second >= upper else "d"
    return ALIKE


def difference_labels(measure: Measure, first: str, second: str) -> dict[str, str]:
    """What each level of a difference says, for legends."""
    lower, upper = measure.steps
    found = {}
    for name, levels_of in ((first, "ab"), (second, "ed")):
        for level, least in zip(levels_of, (upper, lower)):
            unit = "nat" if measure.unit == "nats" and least == 1 else measure.unit
            found[level] = f"{measure.better.format(name=name)}, by {least:g} {unit} or more"
    return {level: found.get(level, "alike") for level in "abcde"}


def marked(text: str) -> str:
    """A token's text with what cannot be seen made visible: ends of lines, tabs, control characters, no bytes."""
    shown = "".join({"\n": f"{LINE_END}\n", "\t": f"{TAB}\t"}.get(c) or printable(c) for c in text)
    return shown or NO_BYTES


def in_line(text: str) -> str:
    """`marked` in one line."""
    return marked(text).replace("\n", "").replace("\t", "") if text else ""
