"""What every configuration model and every input check shares: strict models, safe names, one kind of error."""

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
MARKUP = "<>&"  # begins a tag or an entity of HTML
LONGEST_NAME = 255  # bytes of a file's name, on all common file systems
LONGEST_PATH = 1000  # bytes of a name with its folders that somebody else chose; most systems take 4096 in all
LONGEST_VALUE = 100  # characters of a value that a message tells
TOLD_NAMES = 30  # of a file's columns or keys
TOLD_NAME = re.compile(r"[^\W_][\w ./%()+-]{0,31}|_[\w]{0,31}|")  # what columns and keys are named
JOINERS = "\u200c\u200d"  # within words of Persian and Hindi, and within pictures of several people
UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")  # categories of characters that no name needs, but attacks


class InputError(ValueError):
    """Bad input of a user: one message that names the file, the key or row, what was found and what would be right."""

    def __str__(self) -> str:
        """What was found may be very long, or hold control characters, which a terminal would obey: cut and escaped."""
        return "\n".join(printable(_cut(line)) for line in super().__str__().split("\n"))


def _cut(line: str) -> str:
    """A line with its middle left out where it is too long to be read."""
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 500]} [...] {line[-500:]}"


def printable(text: str) -> str:
    """One line for a terminal or a log: what a terminal would obey, or would hide, stands as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """A library's error for the message of an InputError: its kind and what it says, without line breaks, cut short."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= LONGEST_CAUSE else text[:LONGEST_CAUSE] + '...'}"


@contextmanager
def library_errors(said: str, may_quote: bool = True) -> Iterator[None]:
    """Turn whatever a library raises into InputError, `said` and the cause: a panic of one in Rust is no Exception.

    Not `may_quote`: a library that parses a file quotes it, and it may be another one than was meant, and private.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        cause = one_line(error) if may_quote else f"{type(error).__name__}: {told_reason(error)}"
        raise InputError(f"{said}: {cause}") from (error if may_quote else None)


def json_value(text: str | bytes) -> object:
    """What JSON of somebody else holds. `ValueError` for all that cannot be read, depth and long numbers included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unfolded(value: object, most: int = LARGEST_CONFIGURATION) -> int:
    """How many values a configuration has where each alias of YAML stands for all that it names.

    Raises `ValueError` for more than `most`, for one that holds itself and for one that is nested too deeply: nine
    aliases on each of nine lines are a billion values, in whatever goes through them.
    """
    sizes: dict[int, int] = {}  # of what was gone through; in YAML an alias is the same object again

    def size(value: object, depth: int) -> int:
        children = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        if not isinstance(children, list | tuple):
            return 1
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep, or within itself")
        if id(value) not in sizes:
            sizes[id(value)] = 1 + sum(size(child, depth + 1) for child in children)
        if sizes[id(value)] > most:
            raise ValueError(f"its aliases unfold to more than {most:,} values")
        return sizes[id(value)]

    return size(value, 0)


class Options(BaseModel):
    """A group of configuration keys. Unknown keys are errors, and a group never changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounded_numbers(self) -> Self:
        """Estimates multiply several of them, and what no float holds would end the program."""
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
SafeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


def _without_braces(value: str | Path) -> str | Path:
    if {"{", "}"} & set(str(value)):
        raise ValueError(f"{str(value)!r} has a brace, which Snakemake reads as a wildcard; give it another name")
    return value


def _without_markup(value: str) -> str:
    """The report is a page of HTML; a name in it is text, and what is seen of it is all that it says."""
    wrong = [c for c in value if c in MARKUP or not c.isprintable()]
    if wrong:
        raise ValueError(
            f"{value!r} has {wrong[0]!r}; a name that figures and the report show has printable characters without "
            f"{' '.join(MARKUP)}"
        )
    return value


def without_unseen(value: str | Path) -> str | Path:
    """`ValueError` for a path with characters that a terminal obeys or hides: Snakemake prints its jobs' inputs."""
    if _hides(str(value)):
        raise ValueError(f"{printable(str(value))!r} has a character that is not seen; give the file another name")
    return value


def _without_long_names(path: Path) -> Path:
    if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"{str(path)[:40]!r}... has a name of more than {LONGEST_NAME} bytes, which no file can have")
    return path


# A name that figures and the report show.
ShownName = Annotated[
    str, StringConstraints(max_length=100), AfterValidator(_without_braces), AfterValidator(_without_markup)
]


def told_names(names: Iterable[object], may_stand_alone: bool = False) -> list[str]:
    """Names of columns or keys that a file has, for a message that lists them.

    A path may lead to another file than a table: its first line, a key or a password, must not be told. So what stands
    alone, is long or is no name is told by its length. In JSON and parquet no line is taken for a name.
    """
    found = [str(name) for name in names]
    are_names = len(found) > 1 or may_stand_alone
    shown = [name if are_names and TOLD_NAME.fullmatch(name) else f"{len(name)} characters" for name in found]
    return shown[:TOLD_NAMES] + ([f"and {len(shown) - TOLD_NAMES} more"] if len(shown) > TOLD_NAMES else [])


def told_value(value: object, longest: int = LONGEST_VALUE) -> str:
    """What a file holds where something else should be, for a message: short, or by its beginning."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def told_reason(error: BaseException) -> str:
    """What a library says of a file that it cannot read, without what it quotes of the file: none of that is told."""
    text = " ".join(re.split("[`'\"\\[]", str(error), maxsplit=1)[0].split())
    return text[:LONGEST_CAUSE] or type(error).__name__


def is_inner_name(name: object) -> bool:
    """Whether a name (a/b/c) that somebody else chose may be joined to a folder: it is relative and of plain parts.

    An empty part, '.' and '..' are none, and an absolute name begins with an empty one. Neither are backslashes,
    control characters and their kin, or more bytes than a file system takes.
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
    """Raise `InputError` for what is there and no file: a folder, or a pipe, from which reading may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # whoever reads it says what is wrong
        return
    if not S_ISREG(mode):
        raise InputError(f"{path}: found a folder, a pipe or a device; put a file in its place")


def require_inside(path: Path, folder: Path) -> None:
    """Raise `InputError` where `path` lies outside `folder` when its links are followed."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path}: leads out of {folder}, to {path.resolve()}; remove the link that does it")


# A file or folder of the user, which may be the input of a rule.
InputPath = Annotated[
    Path, AfterValidator(_without_braces), AfterValidator(_without_long_names), AfterValidator(without_unseen)
]
