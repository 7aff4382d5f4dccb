"""Problems and their expert solutions, as rows of .jsonl or .parquet: read, checked and written.

A solution is a text that an expert wrote in answer to a prompt. A candidate model never writes here: it only reads
`prompt + solution`, and its distribution at each of the solution's tokens is what everything else is made of.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self, TypeVar

import polars as pl
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StrictInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from proxycast.options import InputError, json_value, told_names, told_reason, told_value
from proxycast.tables import UNREADABLE, atomic, is_whole_parquet, require_unchanged, seal

GENERIC_TEXT = "generic_text"  # web text, read beside the tasks


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair; no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character; write the whole character") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must hold more than white space")
    return text


def _as_text(value: object) -> object:
    """A whole number, as ids and answers often are, in decimal text. 12.0 may mean 12, or a column with gaps."""
    if isinstance(value, float):
        raise ValueError("a number with a point has several spellings; write it as text, as it should be read")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


EncodableText = Annotated[str, AfterValidator(_encodable)]
TextOrWhole = Annotated[EncodableText, BeforeValidator(_as_text)]
Name = Annotated[TextOrWhole, StringConstraints(min_length=1)]
AnyProblem = TypeVar("AnyProblem", bound="Problem")


class Problem(BaseModel):
    """What is asked of a model, and the right answer where one is known.

    `correct` is the index of the right choice, from 0, where its text is neither the solution nor the answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Name
    prompt: EncodableText
    answer: TextOrWhole | None = None
    choices: tuple[Annotated[EncodableText, StringConstraints(min_length=1)], ...] | None = None
    correct: StrictInt | None = None

    @model_validator(mode="after")
    def _choices_hold_the_correct_one_once(self) -> Self:
        if self.choices is None:
            if self.correct is not None:
                raise ValueError(f"correct: found {self.correct} without choices; it is the index of the right one")
            return self
        if len(self.choices) < 2:
            raise ValueError(f"choices: found {len(self.choices)}; give at least two")
        twice = [choice for choice in self.choices if self.choices.count(choice) > 1]
        if twice:
            raise ValueError(f"choices: found {twice[0]!r} {len(twice)} times; each choice must be given once")
        if self.correct is not None and not 0 <= self.correct < len(self.choices):
            raise ValueError(f"correct: found {self.correct}; the index of a choice is 0 to {len(self.choices) - 1}")
        if self.correct is not None and self._choice_by_text not in (None, self.correct):
            raise ValueError(
                f"correct: found {self.correct}, but choice {self._choice_by_text} is {self._in_words}; the first "
                "choice is 0"
            )
        if self.correct_choice is None:
            raise ValueError(
                f"choices: found {list(self.choices)}; one of them must be {self._in_words}, to the letter"
            )
        return self

    @property
    def _in_words(self) -> str:
        return f"the answer {self.answer!r}"

    @property
    def correct_choice(self) -> int | None:
        """`correct`, or else the index of the choice equal to one of the right texts; None without choices."""
        return self._choice_by_text if self.correct is None else self.correct

    @property
    def _right_texts(self) -> tuple[str | None, ...]:
        return (self.answer,)

    @property
    def _choice_by_text(self) -> int | None:
        return next((self.choices.index(text) for text in self._right_texts if text in (self.choices or ())), None)

    @property
    def problem_id(self) -> str:
        """What the solutions of one problem have in common."""
        return self.id

    @property
    def right_answer(self) -> str | None:
        """`answer`, or else the correct choice, without white space around it; None where neither is known."""
        text = self.choices[self.correct_choice] if self.answer is None and self.choices else self.answer
        return None if text is None else text.strip()


class Solution(Problem):
    """A problem and an expert's solution. A model reads `prompt + solution`: a space between is part of either.

    `problem` names the problem that several solutions share; without it the id is the problem's.
    """

    solution: Annotated[EncodableText, AfterValidator(_not_blank)]
    writer: EncodableText | None = None
    problem: Name | None = None

    @property
    def problem_id(self) -> str:
        return self.problem or self.id

    @property
    def _in_words(self) -> str:
        return f"the solution {self.solution!r} or the answer {self.answer!r}"

    @property
    def _right_texts(self) -> tuple[str | None, ...]:
        return self.solution, self.answer


def read_solutions(path: Path) -> list[Solution]:
    """Read and check a .jsonl or .parquet file. Raises InputError naming file, row (in a .jsonl: line) and field."""
    return _read_rows(path, lambda row: Solution)


def read_problems(path: Path) -> list[Problem]:
    """`read_solutions` of a file in which rows may have no solution: those become a Problem, the others a Solution."""
    return _read_rows(path, lambda row: Problem if row.get("solution") is None else Solution)


def once_each(rows: Iterable[Problem]) -> list[Problem]:
    """The first row of each problem, of rows that may be several solutions of one.

    Raises InputError for two rows of one problem that ask different things.
    """
    first: dict[str, Problem] = {}
    for row in rows:
        same = first.setdefault(row.problem_id, row)
        for field in ("prompt", "choices", "correct_choice", "right_answer"):
            if getattr(row, field) != getattr(same, field):
                raise InputError(
                    f"problem {row.problem_id!r}: rows {same.id!r} and {row.id!r} differ in {field.replace('_', ' ')}: "
                    f"{getattr(same, field)!r} and {getattr(row, field)!r}; only the solution may differ"
                )
    return list(first.values())


def _read_rows(path: Path, kind: Callable[[dict], type[AnyProblem]]) -> list[AnyProblem]:
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: found the suffix {path.suffix!r}; expert solutions are read from .jsonl or .parquet")
    if not path.is_file():
        raise InputError(f"{path}: no such file (paths start where snakemake is run); it should hold solutions")
    require_unchanged(path)
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)
    found: list[AnyProblem] = []
    first_row: dict[str, int] = {}
    for number, row in rows:
        checked = _validated(row, kind, f"{path}, row {number}")
        if checked.id in first_row:
            raise InputError(
                f"{path}, row {number}, field id: found {checked.id!r}, the id of row {first_row[checked.id]}; "
                "each row needs its own (several solutions of one problem name it in the field problem)"
            )
        first_row[checked.id] = number
        found.append(checked)
    if not found:
        raise InputError(f"{path}: found no rows; give at least one solution with id, prompt and solution")
    return found


def write_solutions(solutions: Iterable[Problem], path: Path) -> None:
    """Write solutions, or problems without any, as sealed JSON lines, atomically, without fields that are None."""
    with atomic(path) as temporary:
        lines = (solution.model_dump_json(exclude_none=True) + "\n" for solution in solutions)
        temporary.write_text("".join(lines), encoding="utf-8")
    seal(path)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json_value(line.decode())
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, row {number}: not UTF-8 ({error}); save the file as UTF-8") from None
        except ValueError as error:
            raise InputError(
                f"{path}, row {number}: broken JSON ({error}); each line must be one JSON object"
            ) from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    if not is_whole_parquet(path):
        raise InputError(f"{path}: found a truncated file or no parquet at all; copy or write it again")
    try:
        table = pl.read_parquet(path, glob=False)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as parquet ({told_reason(error)}); write it again") from None
    return enumerate(table.iter_rows(named=True), start=1)


def _validated(row: object, kind: Callable[[dict], type[AnyProblem]], where: str) -> AnyProblem:
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: found a {type(row).__name__}; each row must be an object with id, prompt and solution"
        )
    model = kind(row)
    if model is Problem:
        row = {field: value for field, value in row.items() if field in Problem.model_fields or value is not None}
    try:
        return model.model_validate(row)
    except ValidationError as error:
        problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "missing":
            raise InputError(f"{where}, field {field}: missing; found only {told_names(sorted(row))}")
        case "extra_forbidden":
            raise InputError(f"{where}, field {field}: unknown; the fields are {', '.join(model.model_fields)}")
    expected = problem["msg"].removeprefix("Value error, ")
    # The message of a rule over several fields starts with the field and says what was found.
    raise InputError(
        f"{where}, field {field}: found {told_value(problem['input'])}: {expected}"
        if field
        else f"{where}, field {expected}"
    )
