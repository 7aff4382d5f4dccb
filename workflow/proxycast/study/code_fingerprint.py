"""Which code of proxycast a script's results depend on, as a fingerprint.

Snakemake runs a rule again when its script has changed, but knows nothing of the modules that the script imports. Each
rule has this fingerprint among its parameters: of its script and of every module of the library that the script
imports, directly or through others. Comments, docstrings and layout do not count. Imports within functions do.

A package's `__init__` counts only if something of its own is imported. `PLANNING` does not count: these modules decide
what a job does, which is in its parameters and inputs, or how it runs and writes, which changes no number. Without this
cut every job would depend on every module, because a study's configuration knows all options.

To parse the library takes half of the time that Snakemake needs to plan a small study. So what was parsed is kept for
the next process, by the content of its files, beside the compiled code that Python keeps (`keep_digests`).
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from proxycast.jobs.garbage import no_collection
from proxycast.tables import beside_compiled_code, keep, kept

LIBRARY = Path(__file__).parents[1]
KEPT = beside_compiled_code(__file__)
MOST_KEPT = 1500  # digests, about five times what the library has
PLANNING = frozenset("cluster study jobs options tables __init__".split())  # the last names what Python may call
PLANNING |= {f"config/{name}" for name in "corpora errors models reference study tasks truth".split()}
# What a digest depends on beside the source: this module as it was imported, and Python's parser and layout.
_PARSER = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()


def code_fingerprint(script: Path) -> str:
    """16 hexadecimal digits for a script of the workflow and the library modules that decide what it computes."""
    with no_collection():  # of a million nodes of syntax, which would be two thirds of the parsing
        modules = sorted(used_modules(script))
        digests = [_digest_and_imports(path)[0] for path in [script, *modules]]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def codes_now(scripts: Iterable[Path]) -> dict[Path, str | None]:
    """`code_fingerprint` of each script with the files as they are now; None if they are no code.

    Files are read again, and only those that are not as they were are parsed again.
    """
    _digest_and_imports.cache_clear()
    found: dict[Path, str | None] = {}
    for script in scripts:
        try:
            found[script] = code_fingerprint(script)
        except (OSError, SyntaxError):
            found[script] = None
    return found


def keep_digests() -> None:
    """Keep what this process parsed for the next one, where Python may keep compiled code.

    What others kept stays, so that two studies whose scripts differ do not parse the library for each other again.
    """
    if _digests().keys() <= _kept().keys():
        return
    _kept.cache_clear()  # others have written since
    others = {key: digest for key, digest in _kept().items() if key not in _digests()}
    keep(dict(list((others | _digests()).items())[-MOST_KEPT:]), _PARSER, KEPT)


def used_modules(script: Path) -> set[Path]:
    """Files of the library that `script` imports, directly or through others, without `PLANNING`."""
    found: set[Path] = set()
    to_read = [script]
    while to_read:
        new = _digest_and_imports(to_read.pop())[1] - found
        found |= new
        to_read += new
    return found


@cache
def _digest_and_imports(path: Path) -> tuple[str, frozenset[Path]]:
    """A digest of the code in one layout, without comments and docstrings; files of the library that it imports."""
    digest, names = _digest_and_names(path.read_bytes())
    files = set()
    for name in names:
        module = LIBRARY.joinpath(*name.split(".")[1:])
        files |= {file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()}
    return digest, frozenset(file for file in files if not _plans(file))


def _digest_and_names(source: bytes) -> tuple[str, list[str]]:
    """The digest, and the dotted names below `proxycast` that are imported."""
    key = hashlib.sha256(source).hexdigest()
    if key not in _digests():
        _digests()[key] = _kept().get(key) or _parsed(source)
    return _digests()[key]


@cache
def _digests() -> dict[str, tuple[str, list[str]]]:
    """sha256 of a source -> `_digest_and_names`, of all that this process has asked for."""
    return {}


@cache
def _kept() -> dict[str, tuple[str, list[str]]]:
    """What another process kept; nothing where it parsed in another way."""
    return kept(_PARSER, KEPT) or {}


def _parsed(source: bytes) -> tuple[str, list[str]]:
    tree = ast.parse(source)
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    node.body[0] = ast.Expr(ast.Constant(...))
            case ast.Import() | ast.ImportFrom():
                names.update(_imported_names(node))
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), sorted(names)


def _plans(file: Path) -> bool:
    """Whether a module, or the wing that it stands in, is one of `PLANNING`."""
    inner = file.relative_to(LIBRARY).with_suffix("")
    return not PLANNING.isdisjoint(path.as_posix() for path in (inner, *inner.parents))


def _imported_names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Dotted names below `proxycast`: modules, and what is imported from them, which may be modules too."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names if alias.name.split(".")[0] == LIBRARY.name)
        case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == LIBRARY.name:
            yield module
            yield from (f"{module}.{alias.name}" for alias in names)
