"""How values of tables are written on the page."""

from collections.abc import Mapping

MISSING = "–"


def shown(value: object, how: str = "") -> str:
    """A cell's text: a number by the format `how`, a missing value as a dash."""
    if value is None or value != value:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, how) if how and isinstance(value, int | float) else str(value)


def with_interval(row: Mapping[str, object], name: str, how: str, low: str, high: str) -> str:
    """A value and its interval, as in "0.86 [0.71, 0.93]"; without an interval the value alone."""
    value = shown(row[name], how)
    ends = row.get(low), row.get(high)
    return value if None in ends or row[name] is None else f"{value} [{shown(ends[0], how)}, {shown(ends[1], how)}]"
