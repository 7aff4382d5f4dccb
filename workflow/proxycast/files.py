"""Files that a study reads, by glob: on this machine, or in a repository on the hub.

A glob means the same in both, as in Python's glob with recursive=True: `*`, `?` and `[...]` stay within a
folder, `**` matches any folders, and hidden names match only parts that begin with a dot.
"""

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from proxycast.options import InputError, Options, without_unseen

HUB_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$"
REVISION = r"^[A-Za-z0-9_][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*$"  # never '..' or a leading '-'
PATTERN_RULES = {  # what each pattern requires, for messages
    HUB_ID: "a repository of the hub is 'owner/name', each of letters, digits, '_', '.' and '-'",
    REVISION: "a revision is a branch, tag or commit: letters, digits, '_' and '-', in parts joined by '.' or '/'",
}
HubId = Annotated[str, StringConstraints(pattern=HUB_ID, max_length=200)]
Revision = Annotated[str, StringConstraints(pattern=REVISION, max_length=200)]


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Files(Options):
    """Files by glob, on this machine or, with `hub`, in a data set that a job downloads."""

    files: Annotated[tuple[str, ...], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])] = Field(
        min_length=1,
        description="glob or list of globs, ** for any folders; with `hub` they match names in the data set",
    )
    hub: HubId | None = Field(None, description="data set on the hub, as in 'allenai/ai2_arc'; without it local files")
    revision: Revision = Field("main", description="hub: branch, tag or commit; results record the commit")

    def matches(self, name: str) -> bool:
        """Whether the file `name` of the data set is one of these."""
        return any(_matches(name, pattern) for pattern in self.files)

    def paths(self, downloaded: Path | None = None) -> list[Path]:
        """The files, sorted; those of the hub lie in `downloaded`. `InputError` for a glob that finds none."""
        names = (
            {p.relative_to(downloaded).as_posix(): p for p in downloaded.rglob("*") if p.is_file()} if self.hub else {}
        )
        found: set[Path] = set()
        for pattern in self.files:
            if self.hub:
                here = {path for name, path in names.items() if _matches(name, pattern)}
            else:
                here = _files_here(pattern)
            if not here:
                where = (
                    f"in data set {self.hub}" if self.hub else "on this machine (paths start where snakemake is run)"
                )
                raise InputError(f"files: {pattern!r} finds no file {where}")
            try:
                found |= {without_unseen(path) for path in here}
            except ValueError as error:
                raise InputError(f"files: {error}") from None
        return sorted(found)


def _files_here(pattern: str) -> set[Path]:
    """The local files that a glob finds. Below `**` each folder is read once.

    Python's glob would not end if two links below `**` lead to a folder above.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        # Test the name itself: as a Path, "file.txt/" would be the file.
        return {Path(name) for name in glob(pattern) if os.path.isfile(name)}
    start = parts.index("**")
    top, rest, found = "/".join(parts[:start]), "/".join(parts[start:]), set()
    for root in sorted(glob(f"{top}/")) if start else [""]:
        seen = set()
        for folder, folders, names in os.walk(root or ".", followlinks=True):
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in seen:
                folders.clear()
                continue
            seen.add((stat.st_dev, stat.st_ino))
            folders.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))  # it by its own name
            inner = [Path(os.path.relpath(os.path.join(folder, name), root or ".")) for name in names]
            found |= {Path(root, name) for name in inner if _matches(name.as_posix(), rest)}
    return {path for path in found if path.is_file()}


def own_files(folder: Path | None) -> list[Path]:
    """All files of a folder of tasks, sorted, except Python's cache. A task may include files of any name."""
    files = [] if folder is None else (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if "__pycache__" not in path.parts)


def _matches(name: str, pattern: str) -> bool:
    """Whether a glob would find the file `name` (a/b/c) by `pattern`.

    Names of the hub have no part ".." and are not absolute. So an absolute pattern and one with ".." match none.
    """
    *folders, last = pattern.split("/")
    if pattern.startswith("/") or last in ("", "."):  # elsewhere, or folders only
        return False
    parts = [part for part in folders if part not in ("", ".")] + [last]
    # A repeated "**" matches the same as one, but would be tried in many more ways.
    parts = [part for i, part in enumerate(parts) if parts[i : i + 2] != ["**", "**"]]
    return _parts_match(name.split("/"), parts)


def _parts_match(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts match the names. It goes part by part, so many `**` take no longer."""
    reached = {0}
    for part in parts[:-1]:
        if part == "**":
            hidden = [i for i, name in enumerate(names) if name.startswith(".")] + [len(names)]
            reached = {j for i in reached for j in range(i, next(end for end in hidden if end >= i) + 1)}
        else:
            reached = {i + 1 for i in reached if i < len(names) and _part_matches(names[i], part)}
    if parts[-1] == "**":  # one name at least: the file
        return any(i < len(names) and not any(name.startswith(".") for name in names[i:]) for i in reached)
    return len(names) - 1 in reached and _part_matches(names[-1], parts[-1])


def _part_matches(name: str, part: str) -> bool:
    return fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))
