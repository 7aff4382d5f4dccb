"""Limits time and memory of untrusted templates of rows and chats; Jinja's sandbox limits neither.

Python's tracing checks both at every line of a template, in any thread. Operations that take long within one line
(`'a' * 10**10`, `'%9999999999d' % 1`) are refused before they begin. jinja2 is imported with the first template.
"""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from string import Formatter
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from proxycast.options import InputError, told_value
from proxycast.processes import bare_environment

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5.0  # CPU time for one text
CHARACTERS = 10_000_000  # of one value, and of the output
MEMORY = 2 << 30  # bytes that the process may grow by
SOON = 0.001  # seconds before values are first measured
LOOKS = 0.05  # seconds between two checks of the memory
COUNT = 1_000_000  # largest number given to a filter or method, such as a width
BITS = 10_000  # of an integer
WIDTH = re.compile(r"\d{5,}|%[-#0 +\d.]*\*")  # in a pattern of %: a large width, or one taken from an argument
WIDTH_OF_FIELD = re.compile(r"\d{5,}|\{")  # the same, after the colon of a str.format field
TEMPLATE = "<template>"  # Jinja's file name for a template from a string


class TooMuch(ValueError):
    """A template exceeded its time or memory."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise `TooMuch` in templates within the block that run too long, write too much or use too much memory."""
    ends, looked, written = time.thread_time() + SECONDS, time.thread_time(), 0
    before = None  # memory of the process; most templates end before the first check

    def in_time() -> float:
        if (now := time.thread_time()) > ends:
            raise TooMuch(f"the template runs for more than {SECONDS:g} s; does it have an endless loop?")
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
        if now > ends - SECONDS + SOON:  # nothing grows large sooner, and most templates end before
            longest = max((len(text) for text in frame.f_locals.values() if type(text) is str), default=0)
        if max(written, longest) > CHARACTERS:
            raise TooMuch(f"the template writes more than {CHARACTERS:,} characters")
        return at_line

    def at_call(frame: FrameType, event: str, value: object) -> Callable | None:
        in_time()  # also in a filter's own loops, such as that of `wordwrap`
        return at_line if frame.f_code.co_filename == TEMPLATE else None

    tracing = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(tracing)


@cache
def bounded_environment() -> type["ImmutableSandboxedEnvironment"]:
    """Jinja's sandbox, in which every operation within one line is bounded."""
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
    """Raise `TooMuch` for a filter or string method whose result would be very large."""
    held = [value, *arguments]
    held += [inner for table in held if isinstance(table, dict) for inner in table.values()]  # of `translate`
    sizes = [len(text) for text in held if isinstance(text, str | list | tuple)]
    largest = sorted(sizes)[-2:]
    if any(isinstance(count, int) and abs(count) > COUNT for count in arguments) or (
        len(largest) == 2 and largest[0] * largest[1] > 100 * CHARACTERS
    ):
        raise TooMuch("the template asks a filter or a method for a very large text")


def _bounded(function: Callable, *text: str) -> Callable:
    """Wrap a filter, or a method of a `text`, so that it refuses very large results."""

    @wraps(function)  # keeps the attributes by which Jinja knows what to pass to a filter
    def within(*arguments: object, **options: object) -> object:
        values = [*text, *(value for value in arguments if isinstance(value, str | int | list | tuple | dict))]
        if values:
            _require_bounded_call(values[0], *values[1:], *options.values())
        return function(*arguments, **options)

    return within


def _narrow(function: Callable) -> Callable:
    """Wrap the filter `format` with the check of `%`."""

    @wraps(function)
    def within(pattern: object, *arguments: object, **options: object) -> object:
        require_bounded("%", pattern, arguments)
        return function(pattern, *arguments, **options)

    return within


def _narrow_fields(function: Callable, pattern: str) -> Callable:
    """Wrap str.format of a pattern so that it refuses very large widths."""

    @wraps(function)
    def within(*arguments: object, **options: object) -> object:
        if any(spec and WIDTH_OF_FIELD.search(spec) for _, _, spec, _ in Formatter().parse(pattern)):
            raise TooMuch("the template asks for a very large result of format")
        return function(*arguments, **options)

    return within


PATTERN_SECONDS = 5.0  # CPU time for one text; sound patterns take microseconds
PATTERN_MEMORY = 2 << 30  # bytes for the search process: replacements can make a text of any length
SEARCHER = f"""
import json, re, resource, signal, sys
signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process
limit = resource.getrlimit(resource.RLIMIT_AS)[1]
memory = {PATTERN_MEMORY} if limit == resource.RLIM_INFINITY else min({PATTERN_MEMORY}, limit)
resource.setrlimit(resource.RLIMIT_AS, (memory, limit))
for line in sys.stdin:
    pattern, flags, text, replacement, seconds = json.loads(line)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        compiled = re.compile(pattern, flags)
        if replacement is None:
            answer = [match[1] if compiled.groups else match[0] for match in compiled.finditer(text)]
        else:
            answer = compiled.sub(replacement, text)
        answer = json.dumps({{"answer": answer}})
    except (re.error, IndexError, RecursionError, OverflowError, MemoryError) as error:
        answer = json.dumps({{"error": str(error) or type(error).__name__}})
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(answer, flush=True)
"""
_searcher_lock = threading.Lock()
_searcher: list[subprocess.Popen] = []  # the living one


def first_groups(pattern: re.Pattern, text: str) -> Sequence[str | None]:
    """Group 1 of each match of `pattern` in `text`, in order. Raises InputError when it takes too long."""
    return _ask_searcher(pattern.pattern, pattern.flags, text, None)


def substitute(pattern: str, replacement: str, text: str) -> str:
    """Like `re.sub`. Raises InputError for an invalid pattern, and when it takes too long."""
    return _ask_searcher(pattern, 0, text, replacement)


def _ask_searcher(pattern: str, flags: int, text: str, replacement: str | None) -> list[str | None] | str:
    with _searcher_lock:
        if not _searcher:
            command = [sys.executable, "-I", "-S", "-c", SEARCHER]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            _searcher.append(subprocess.Popen(command, **pipes, env=bare_environment()))
        process, finished = _searcher[0], False
        try:
            process.stdin.write(json.dumps([pattern, flags, text, replacement, PATTERN_SECONDS]).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            finished = line.endswith(b"\n")
        except BrokenPipeError:
            line = b""
        finally:
            if not finished:  # a late answer would be taken for the next one
                _end_searcher(_searcher.pop())
    if not finished:
        raise InputError(
            f"pattern {told_value(pattern)}: no end after {PATTERN_SECONDS:g} s in a text of {len(text)} characters; "
            "avoid a repetition within a repetition, or next to a similar one"
        )
    found = json.loads(line)
    if "error" in found:
        raise InputError(f"pattern {told_value(pattern)}: {found['error']}")
    return found["answer"]


def _end_searcher(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@cache
def template_environment() -> "Environment":
    from jinja2 import StrictUndefined

    environment = bounded_environment()(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_not_null)
    environment.globals.clear()  # otherwise a missing column named `range` or `dict` would be a function
    environment.filters["regex_replace"] = _regex_replace
    return environment


def _not_null(value: object) -> object:
    """Refuse None, which Jinja would write as the word 'None'."""
    if value is None:
        raise ValueError("an empty cell (null); leave such rows out with `where`")
    return value


def _regex_replace(text: str, pattern: str, replacement: str) -> str:
    return substitute(pattern, replacement, text)
