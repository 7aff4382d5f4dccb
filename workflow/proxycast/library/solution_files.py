"""Expert solutions from files, by task, for those who call the library from Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from proxycast.options import InputError
from proxycast.solutions.rows import Solution, read_solutions

SUFFIXES = (".jsonl", ".parquet")
AS_LOADED = ", as load_solutions returns them"

Tasks = Mapping[str, Sequence[Solution]]


def load_solutions(path: str | Path | Sequence[str | Path]) -> dict[str, list[Solution]]:
    """Read and check expert solutions: task -> its solutions. A task has the name of its file, without the suffix.

    `path`: a .jsonl or .parquet file, a folder with such files, or several files. A row has `id`, `prompt` and
    `solution`, and may have `answer`, `choices`, `writer` and `problem` (docs/how/texts.md); a model reads `prompt +
    solution`.

    Raises InputError that names the file, the row and the field for a row that is not a solution, for a folder without
    such files, and for two files of one task.
    """
    given = [path] if isinstance(path, str | Path) else list(path)
    files = [file for part in map(Path, given) for file in (_files_in(part) if part.is_dir() else [part])]
    if not files:
        raise InputError("load_solutions: found no files; give at least one .jsonl or .parquet")
    tasks: dict[str, Path] = {}
    for file in files:
        if file.stem in tasks:
            raise InputError(
                f"{file}: the task {file.stem!r} has another file already, {tasks[file.stem]}; rename one of the two"
            )
        tasks[file.stem] = file
    return {task: read_solutions(file) for task, file in tasks.items()}


def require_tasks(solutions: Tasks) -> Tasks:
    """`solutions`, if they are what `load_solutions` returns and hold at least one. Else raise InputError."""
    if not isinstance(solutions, Mapping):
        raise InputError(f"solutions: found a {type(solutions).__name__}; expected task -> solutions{AS_LOADED}")
    for task, rows in solutions.items():
        if wrong := [row for row in rows if not isinstance(row, Solution)]:
            raise InputError(
                f"solutions, task {task!r}: found a {type(wrong[0]).__name__}; expected solutions{AS_LOADED}"
            )
    if empty := [task for task, rows in solutions.items() if not rows] or not solutions:
        where = f"task {empty[0]!r}" if solutions else "solutions"
        raise InputError(f"{where}: found no solution; give at least one")
    return solutions


def _files_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
    if not files:
        raise InputError(
            f"{folder}: found no {' or '.join(SUFFIXES)} file; a folder of solutions has one for each task"
        )
    return files
