"""Shared by all configuration models and input checks: strict models, safe names, one kind of error."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, model_validator

LARGEST_CONFIGURATION = 1_000_000  # values
DEEPEST = 50  # mappings and lists within each other
LARGEST_NUMBER = 10**18  # of a configuration
LONGEST_LINE = 3000  # characters of a message
LONGEST_CAUSE = 300  # characters of a library's own message
MARKUP_CHARACTERS = "<>&"  # characters that begin a tag or an entity of HTML
LONGEST_NAME = 255  # bytes of a file's name, on all common file systems
LONGEST_PATH = 1000  # bytes of an untrusted name with its folders; most systems allow 4096 for a whole path
LONGEST_VALUE = 100  # characters of a value in a message
TOLD_NAMES = 30  # columns or keys of a file in a message
TOLD_NAME = re.compile(r"[^\W_][\w ./%()+-]{0,31}|_[\w]{0,31}|")  # usual names of columns and keys
JOINERS = "\u200c\u200d"  # they occur within words of Persian and Hindi, and within emoji
UNSEEN = (
    "Cc",
    "Cf",
    "Cn",
    "Co",
    "Cs",
    "Zl",
    "Zp",
)  # categories of invisible characters, used in attacks and in no honest name


class InputError(ValueError):
    """Bad input: one message that names the file, the key or row, what was found and what is expected."""

    def __str__(self) -> str:
        """The message, shortened and escaped: the found value may be very long or hold control characters."""
        return "\n".join(printable(_cut(line)) for line in super().__str__().split("\n"))


def _cut(line: str) -> str:
    """The line, without its middle if it is too long to read."""
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 500]} [...] {line[-500:]}"


def printable(text: str) -> str:
    """The text for a terminal or a log, with control and invisible characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """A library's error in one line, for the message of an `InputError`: its type and text, shortened."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= LONGEST_CAUSE else text[:LONGEST_CAUSE] + '...'}"


@contextmanager
def library_errors(said: str, may_quote: bool = True) -> Iterator[None]:
    """Turn every error of a library into `InputError` with `said` and the cause, also a Rust panic (no `Exception`).

    Set `may_quote` to False for a library that parses a file: its message may quote a private file given by mistake.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        cause = one_line(error) if may_quote else f"{type(error).__name__}: {told_reason(error)}"
        raise InputError(f"{said}: {cause}") from (error if may_quote else None)


def json_value(text: str | bytes) -> object:
    """The value of untrusted JSON. `ValueError` if it cannot be read, is nested too deeply or has too long numbers."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unfolded(value: object, most: int = LARGEST_CONFIGURATION) -> int:
    """The number of values of a configuration after each YAML alias is replaced by its value.

    Raises `ValueError` for more than `most`, for a value that contains itself and for too deep nesting. Nine aliases on
    each of nine lines unfold to a billion values.
    """
    sizes: dict[int, int] = {}  # by id of what was visited: a YAML alias is the same object

    def size(value: object, depth: int) -> int:
        children = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        if not isinstance(children, list | tuple):
            return 1
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep, or contains itself")
        if id(value) not in sizes:
            sizes[id(value)] = 1 + sum(size(child, depth + 1) for child in children)
        if sizes[id(value)] > most:
            raise ValueError(f"its aliases unfold to more than {most:,} values")
        return sizes[id(value)]

    return size(value, 0)


class Options(BaseModel):
    """A group of configuration keys. Unknown keys are errors. A group is frozen once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounded_numbers(self) -> Self:
        """Bound all numbers: estimates multiply several of them, and the product must fit into a float."""
        for key, value in vars(self).items():
            if large := next((number for number in _numbers(value) if abs(number) > LARGEST_NUMBER), None):
                raise ValueError(f"{key}: found {told_value(large)}; a number may be at most {LARGEST_NUMBER:.0e}")
        return self


def _numbers(value: object) -> Iterator[int | float]:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, int | float):
        yield value


# A name that becomes part of a file name or of a Snakemake wildcard: no separators, no leading dot, no spaces.
SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
SafeName = Annotated[str, StringConstraints(pattern=SAFE_NAME, max_length=100)]


def _without_braces(value: str | Path) -> str | Path:
    if {"{", "}"} & set(str(value)):
        raise ValueError(f"{str(value)!r} has a brace, which Snakemake reads as a wildcard; give it another name")
    return value


def _without_markup(value: str) -> str:
    """`ValueError` for a name with markup or unprintable characters: the report is an HTML page."""
    wrong = [c for c in value if c in MARKUP_CHARACTERS or not c.isprintable()]
    if wrong:
        raise ValueError(
            f"{value!r} has {wrong[0]!r}; figures and the report show this name, so use only printable characters "
            f"other than {' '.join(MARKUP_CHARACTERS)}"
        )
    return value


def without_unseen(value: str | Path) -> str | Path:
    """`ValueError` for a path with control or invisible characters: Snakemake prints the inputs of jobs."""
    if _hides(str(value)):
        raise ValueError(f"{printable(str(value))!r} has an invisible character; give the file another name")
    return value


def _without_long_names(path: Path) -> Path:
    if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"{str(path)[:40]!r}... has a name of more than {LONGEST_NAME} bytes, too long for a file")
    return path


# A name that figures and the report show.
ShownName = Annotated[
    str, StringConstraints(max_length=100), AfterValidator(_without_braces), AfterValidator(_without_markup)
]


def told_names(names: Iterable[object], may_stand_alone: bool = False) -> list[str]:
    """Names of a file's columns or keys for a message.

    A path given by mistake may lead to a private file, whose first line must not be shown. So a single name, a long
    name and an unusual one are replaced by their length. Set `may_stand_alone` for JSON and parquet, where a single
    name may be shown.
    """
    found = [str(name) for name in names]
    are_names = len(found) > 1 or may_stand_alone
    shown = [name if are_names and TOLD_NAME.fullmatch(name) else f"{len(name)} characters" for name in found]
    return shown[:TOLD_NAMES] + ([f"and {len(shown) - TOLD_NAMES} more"] if len(shown) > TOLD_NAMES else [])


def told_value(value: object, longest: int = LONGEST_VALUE) -> str:
    """A value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def told_reason(error: BaseException) -> str:
    """A library's message about a file that it cannot read, without quotes from the file."""
    text = " ".join(re.split("[`'\"\\[]", str(error), maxsplit=1)[0].split())
    return text[:LONGEST_CAUSE] or type(error).__name__


def is_inner_name(name: object) -> bool:
    """Whether an untrusted name (a/b/c) may be joined to a folder: a relative path of plain parts.

    A plain part is not empty, '.' or '..', is not too long, and has no backslash and no invisible character. An
    absolute name begins with an empty part.
    """
    if not isinstance(name, str) or "\\" in name or _hides(name):
        return False
    parts = name.split("/")
    return (
        not {"", ".", ".."} & set(parts)
        and len(name.encode()) <= LONGEST_PATH
        and all(len(part.encode()) <= LONGEST_NAME for part in parts)
    )


def _hides(name: str) -> bool:
    return any(unicodedata.category(c) in UNSEEN and c not in JOINERS for c in name)


def require_regular(path: Path) -> None:
    """Raise `InputError` for a folder, a pipe or a device: reading one may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # reading the file will say what is wrong
        return
    if not S_ISREG(mode):
        raise InputError(f"{path}: found a folder, a pipe or a device; put a file in its place")


def require_inside(path: Path, folder: Path) -> None:
    """Raise `InputError` if `path`, with links followed, lies outside `folder`."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path}: leads out of {folder}, to {path.resolve()}; remove the link")


# A file or folder of the user, which may be the input of a rule.
InputPath = Annotated[
    Path, AfterValidator(_without_braces), AfterValidator(_without_long_names), AfterValidator(without_unseen)
]
