"""Patterns that take for ever end, and others find what `re` finds."""

import re
import resource
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast import sandbox
from proxycast.config.tasks import Task
from proxycast.extraction.writers import is_right
from proxycast.options import InputError
from proxycast.sandbox import first_groups, substitute
from proxycast.solutions.rows import Problem
from proxycast.truth.measurement import exact_match
from pydantic import ValidationError

ENDLESS = {
    r"(a+)+$": "a" * 40 + "b",
    r"(a|a)*$": "a" * 40 + "b",
    r"(.*a){25}$": "a" * 60 + "b",
    r"(\s*\d+\s*)+x": "1 " * 40,
    r"\s+(x)$": " " * 10**6,
    r"(.*)=(.*)=(.*);": "=" * 10**5,
    r"^(\w+\s?)*$": "word " * 20 + "!",
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(sandbox, "PATTERN_SECONDS", 0.2)


def children_seconds() -> float:
    """Processor time of the searchers that have ended; unlike a clock, a busy machine does not change it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("pattern", ENDLESS)
def test_an_endless_pattern_ends(pattern):
    started = children_seconds()
    with pytest.raises(InputError, match=r"pattern .*: no end after 0.2 s in a text of \d+ characters"):
        first_groups(re.compile(pattern), ENDLESS[pattern])
    with pytest.raises(InputError, match="no end"):
        substitute(pattern, "", ENDLESS[pattern])
    assert children_seconds() - started < 5
    assert first_groups(re.compile("(a)b"), "abab") == ["a", "a"]


def test_a_replacement_takes_no_memory_without_end(monkeypatch):
    monkeypatch.setattr(sandbox, "PATTERN_SECONDS", 30)
    with pytest.raises(InputError, match="pattern '': MemoryError"):
        substitute("", "x" * 30_000, "y" * 100_000)  # 3 GB
    assert substitute("", "a", "x") == "axa"


def test_a_slow_machine_is_no_endless_pattern(monkeypatch, tmp_path):
    """Python may start from a busy disk, and the processor be shared: time of a clock says nothing of a pattern."""
    sandbox._searcher and sandbox._end_searcher(sandbox._searcher.pop())
    slow = tmp_path / "slow python"
    slow.write_text(f'#!/bin/sh\nsleep 1.5\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    assert first_groups(re.compile("(a)b"), "abab") == ["a", "a"]


def test_the_python_of_a_module_searches(python_of_a_module):
    sandbox._searcher and sandbox._end_searcher(sandbox._searcher.pop())
    assert first_groups(re.compile("(a)b"), "abab") == ["a", "a"]


def test_a_pattern_is_compiled_in_no_time():
    """Planning does it, and each of these sets takes milliseconds."""
    with pytest.raises(ValidationError, match="at most 2000 characters"):
        Task(name="a", solutions="a.jsonl", answer_pattern="(?i)(" + r"[\x00-\uffff]" * 300 + ")")


@pytest.mark.parametrize("in_thread", [False, True])
def test_what_judges_answers_ends(in_thread):
    problem, text, pattern = Problem(id="1", prompt="Q", answer="b"), "a" * 40 + "b", r"(a+)+$"

    class Engine:
        @staticmethod
        def generate(prompts, max_new_tokens):
            return [text]

    refused = []

    def judge():
        for ask in (
            lambda: exact_match(Engine, "task", [problem], pattern, 9),
            lambda: is_right(text, problem, re.compile(pattern)),
        ):
            with pytest.raises(InputError, match="no end after") as error:
                ask()
            refused.append(error)

    if in_thread:
        thread = threading.Thread(target=judge)
        thread.start()
        thread.join(20)
    else:
        judge()
    assert len(refused) == 2


PIECES = st.sampled_from(["(a)", "(b|c)", r"(\d+)", r"\s*", ".", "[abc]?", "^", "$", r"\n", "(?i:A)", "ä", "(x)?"])
PATTERNS = st.lists(PIECES, max_size=5).map(lambda pieces: "()" + "".join(pieces))


@settings(max_examples=100, deadline=None)
@given(PATTERNS, st.text("abc1 \nAä\ud800\u2028x", max_size=12))
def test_matches_are_those_of_re(pattern, text):
    assert first_groups(re.compile(pattern), text) == [match[1] for match in re.finditer(pattern, text)]
    assert substitute(pattern, r"<\1>", text) == re.sub(pattern, r"<\1>", text)


@pytest.mark.parametrize(("pattern", "replacement"), [("(", ""), ("a", r"\7"), ("a", r"\g<x>"), ("(" * 5000, "")])
def test_what_is_no_pattern(pattern, replacement):
    with pytest.raises(InputError, match="pattern "):
        substitute(pattern, replacement, "abc")


@pytest.mark.parametrize("pattern", ["(" * 990 + ")" * 990, "(a){99999999999999999999}"])
def test_a_pattern_that_re_cannot_compile_is_refused_when_it_is_read(pattern):
    with pytest.raises(ValidationError, match="is no regular expression"):
        Task(name="a", family="sums", answer_pattern=pattern)
