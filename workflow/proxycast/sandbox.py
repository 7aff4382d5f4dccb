"""Templates of somebody else, of rows and of chats, end: Jinja's sandbox guards files, not time and memory.

Time and memory are looked at whenever a line of the template runs, by Python's tracing, which counts for one thread and
so works in any. What takes long inside one line (`'a' * 10**10`, `'%9999999999d' % 1`) is refused before it begins.

Light to import: jinja2 is loaded when the first template is.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from string import Formatter
from types import FrameType
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5.0  # of a processor, for one text
CHARACTERS = 10_000_000  # of one value, and of what is written
MEMORY = 2 << 30  # bytes by which the process may grow meanwhile
SOON = 0.001  # seconds before which values are not measured
LOOKS = 0.05  # seconds between two looks at the memory
COUNT = 1_000_000  # of anything that a filter or method is asked for, such as a width
BITS = 10_000  # of a whole number
WIDTH = re.compile(r"\d{5,}|%[-#0 +\d.]*\*")  # in a pattern of %: a large one, or one that stands elsewhere
WIDTH_OF_FIELD = re.compile(r"\d{5,}|\{")  # the same, behind the colon of a field of str.format
TEMPLATE = "<template>"  # what Jinja calls the file of a template that is none


class TooMuch(ValueError):
    """A template takes more than it may."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise `TooMuch` in templates that run inside for too long, or write or hold too much."""
    ends, looked, written = time.thread_time() + SECONDS, time.thread_time(), 0
    before = None  # bytes that the process has; most templates have ended before the first look

    def in_time() -> float:
        if (now := time.thread_time()) > ends:
            raise TooMuch(f"the template runs for more than {SECONDS:g} s; has it a loop without an end?")
        return now

    def at_line(frame: FrameType, event: str, value: object) -> Callable:
        nonlocal looked, written, before
        now = in_time()
        if now - looked > LOOKS:
            looked, held = now, psutil.Process().memory_info().rss
            before = held if before is None else before
            if held - before > MEMORY:
                raise TooMuch(f"the template takes more than {MEMORY >> 30} GiB of memory")
        if event == "return" and isinstance(value, str):
            written += len(value)
        longest = 0
        if now > ends - SECONDS + SOON:  # nothing grows large sooner, and most templates have ended
            longest = max((len(text) for text in frame.f_locals.values() if type(text) is str), default=0)
        if max(written, longest) > CHARACTERS:
            raise TooMuch(f"the template writes more than {CHARACTERS:,} characters")
        return at_line

    def at_call(frame: FrameType, event: str, value: object) -> Callable | None:
        in_time()  # of a filter's own loops, too, such as that of `wordwrap`
        return at_line if frame.f_code.co_filename == TEMPLATE else None

    tracing = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(tracing)


@cache
def bounded_environment() -> type["ImmutableSandboxedEnvironment"]:
    """Jinja's sandbox, in which nothing that one line of a template asks for is endless."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%"})

        def __init__(self, *arguments: object, **options: object):
            super().__init__(*arguments, **options)
            self.filters |= {name: _bounded(function) for name, function in self.filters.items()}
            self.filters["format"] = _narrow(self.filters["format"])
            self.globals.pop("lipsum", None)

        def call_binop(self, context: object, operator: str, left: object, right: object) -> object:
            require_bounded(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def wrap_str_format(self, value: object) -> Callable | None:
            within = super().wrap_str_format(value)
            return within and _narrow_fields(_bounded(within, value.__self__), value.__self__)

        def call(self, context: object, called: object, /, *arguments: object, **options: object) -> object:
            text = getattr(called, "__self__", None)
            if isinstance(text, str):
                _require_bounded_call(text, *arguments, *options.values())
            return super().call(context, called, *arguments, **options)

    return Bounded


def require_bounded(operator: str, left: object, right: object) -> None:
    """Raise `TooMuch` for a product, power or pattern that would be very large."""
    whole = isinstance(left, int) and isinstance(right, int)
    lengths = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
    counts = [value for value in (left, right) if isinstance(value, int)]
    is_large = (
        (operator == "*" and whole and left.bit_length() + right.bit_length() > BITS)
        or (operator == "*" and lengths and counts and lengths[0] * counts[0] > CHARACTERS)
        or (operator == "**" and whole and left.bit_length() * right > BITS)
        or (operator == "%" and isinstance(left, str) and WIDTH.search(left))
    )
    if is_large:
        raise TooMuch(f"the template asks for a very large result of {operator}")


def _require_bounded_call(value: object, *arguments: object) -> None:
    """Raise `TooMuch` for a filter or a method of a text that would make a very large one."""
    held = [value, *arguments]
    held += [inner for table in held if isinstance(table, dict) for inner in table.values()]  # of `translate`
    sizes = [len(text) for text in held if isinstance(text, str | list | tuple)]
    largest = sorted(sizes)[-2:]
    if any(isinstance(count, int) and abs(count) > COUNT for count in arguments) or (
        len(largest) == 2 and largest[0] * largest[1] > 100 * CHARACTERS
    ):
        raise TooMuch("the template asks a filter or a method for a very large text")


def _bounded(function: Callable, *text: str) -> Callable:
    """A filter, or a method of a `text`, that refuses to make a very large one."""

    @wraps(function)  # with the marks by which Jinja knows what to give a filter
    def within(*arguments: object, **options: object) -> object:
        values = [*text, *(value for value in arguments if isinstance(value, str | int | list | tuple | dict))]
        if values:
            _require_bounded_call(values[0], *values[1:], *options.values())
        return function(*arguments, **options)

    return within


def _narrow(function: Callable) -> Callable:
    """The filter `format`, as `%` is."""

    @wraps(function)
    def within(pattern: object, *arguments: object, **options: object) -> object:
        require_bounded("%", pattern, arguments)
        return function(pattern, *arguments, **options)

    return within


def _narrow_fields(function: Callable, pattern: str) -> Callable:
    """str.format of a pattern, which may have no field with a very large width."""

    @wraps(function)
    def within(*arguments: object, **options: object) -> object:
        if any(spec and WIDTH_OF_FIELD.search(spec) for _, _, spec, _ in Formatter().parse(pattern)):
            raise TooMuch("the template asks for a very large result of format")
        return function(*arguments, **options)

    return within
