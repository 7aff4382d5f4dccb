"""Problems of several steps: right answers, the split by core, two solutions a problem, and the documents."""

import calendar
import re
from itertools import chain, product
from pathlib import Path
from random import Random

import polars as pl
import pytest
from proxycast.config.tasks import Task
from proxycast.config.training import Component, Size, Suite
from proxycast.options import InputError
from proxycast.solutions.rows import once_each
from proxycast.study.yaml_files import read_yaml
from proxycast.training.miniature import sources
from proxycast.training.miniature.leaks import count_leaks
from proxycast.training.miniature.problems import FAMILIES, bare_question, benchmark
from proxycast.training.miniature.recipes import pool_fingerprint, select
from proxycast.training.miniature.sources import STEP_KINDS, write_sources
from proxycast.training.miniature.step_problems import (
    ANSWER_PATTERN,
    STEP_FAMILIES,
    STYLES,
    StepFamily,
    answer_of,
    draw_steps,
    step_benchmark,
    suite_problems,
)

TASKS = sorted((Path(__file__).parents[2] / "config" / "tasks" / "miniature_steps").glob("*.yaml"))
every_family = pytest.mark.parametrize("family", STEP_FAMILIES.values(), ids=STEP_FAMILIES)


@pytest.fixture(scope="module")
def texts():
    """A few words in place of the standard library's text, which no test here reads."""
    few = {kind: [f"some {kind} of no matter, number {n}" for n in range(9)] for kind in ("documentation", "code")}
    few["literature"] = few["code"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "snippets", lambda held_out: few)
        yield


@pytest.fixture(scope="module")
def documents(texts):
    return write_sources(seed=0, scale=0.01, step_documents=6000)


# Right answers, from the rules as a person would tell them.


def around(states: str, by: dict[str, int]):
    """Moves around a ring of states, separated by spaces."""
    ring = states.split()
    return lambda state, sign: ring[(ring.index(state) + by[sign]) % len(ring)]


def on_the_board(state: str, sign: str) -> str:
    rows = [["1", "2", "3"], ["4", "5", "6"], ["7", "8", "9"]]
    row, column = next((r, c) for r, c in product(range(3), repeat=2) if rows[r][c] == state)
    down, right = {"N": (-1, 0), "S": (1, 0), "E": (0, 1), "W": (0, -1)}[sign]
    return rows[(row + down) % 3][(column + right) % 3]


def by_lift(state: str, sign: str) -> str:
    return str(min(9, max(1, int(state) + {"/": 2, "|": -1, "~": -3, "]": 1}[sign])))


def on_the_dial(state: str, sign: str) -> str:
    n = int(state)
    return str({"+": n + 3, "-": n + 9, "*": n * 2}[sign])[-1]


SWAPS = {"H": "pmrqnklo", "J": "lprokqnm", "X": "poqlnkrm", "Y": "qnprklmo"}  # fixed for ever: trained models hold them
DAYS = " ".join(calendar.day_abbr)
RULES = {
    "rooms": around("a b c d e f g h i j", {">": 1, "<": -1, "=": 5}),
    "dial": on_the_dial,
    "days": around(DAYS, {"!": 1, "?": -1, "%": 3}),
    "notes": around("do re mi fa so la ti", {"#": 1, "$": 2, "&": -3}),
    "lift": by_lift,
    "board": on_the_board,
    "swaps": lambda state, sign: SWAPS[sign]["klmnopqr".index(state)],
}


@every_family
def test_every_solution_follows_the_rules(family: StepFamily):
    rule = RULES[family.name]
    for core in family.cores(False) + family.cores(True):
        start, *signs = core
        states = [start]
        for sign in signs:
            states.append(rule(states[-1], sign))
        assert family.follow(start, tuple(signs)) == states[1:]
        assert family.question(core) == "{} {}, {}; {} then {}".format(family.name, *core)
        written = zip(signs, states[1:], strict=True)
        assert family.written(core, states[1:], "short") == " {}, {} {}; {} {} then {} {}.".format(
            start, *chain(*written)
        )
        worded = family.written(core, states[1:], "worded")
        assert re.findall(r"(?:From|gives) (\w+)", worded) == states


@every_family
def test_words_of_a_move_tell_it_apart(family: StepFamily):
    words = {move.words for move in family.moves.values()}
    assert len(words) == len(family.moves) and all(sign == move.sign for sign, move in family.moves.items())


def parts(text: str) -> list[str]:
    """The words of a question or a short solution, without the marks between the moves."""
    return re.split(r"[,;]? (?:then )?", text)


@every_family
def test_drawn_problems(family: StepFamily):
    random = Random(1)
    for _ in range(100):
        problem = draw_steps(random, family)
        start, *signs = parts(problem.question)[1:]
        states = family.follow(start, tuple(signs))
        assert set(problem.solutions) == set(STYLES)
        assert {answer_of(text) for text in problem.solutions.values()} == {problem.answer} == {states[-1]}
        answers = [answer_of(text) for text in problem.wrong]
        assert len({problem.answer, *answers}) == 4 and set(answers) <= set(family.states)
        for text in problem.wrong:
            (first, *told), rule = parts(text.strip(" .")), RULES[family.name]
            said = [first, *told[1::2]]
            slips = [s for s in range(len(signs)) if rule(said[s], signs[s]) != said[s + 1]]
            assert first == start and told[::2] == signs and len(slips) == 1


def test_answer_is_the_last_word_before_the_first_full_stop():
    assert answer_of(" 3 +5 8 +4 2. It is 7.") == "2"
    assert answer_of(" 2.") == "2" and answer_of(" it is Tue. no.") == "Tue"
    assert answer_of(" 2") is answer_of(" 2\n3.") is answer_of(" .") is None


# The split


@every_family
def test_split_of_the_cores(family: StepFamily):
    training, held_out = (set(family.cores(side)) for side in (False, True))
    count = len(family.states) * len(family.moves) ** 3
    assert not training & held_out and len(training | held_out) == count
    assert len(held_out) / count == pytest.approx(0.3, abs=4 * (0.21 / count) ** 0.5)
    drawn = {draw_steps(Random(seed), family, held_out=True).question for seed in range(200)}
    assert drawn <= {family.question(core) for core in held_out}


def in_any_wording(family: StepFamily, core: tuple[str, ...]) -> list[str]:
    """The question, and the beginning of each solution up to its second move, which tells the core but for a sign."""
    states = family.follow(core[0], core[1:])
    return [family.question(core), *(family.written(core, states, style) for style in STYLES)]


def test_no_document_holds_a_held_out_core(documents):
    pool = "\n".join(documents["text"])
    seen = 0
    for family in STEP_FAMILIES.values():
        assert not [core for core in family.cores(True) if any(text in pool for text in in_any_wording(family, core))]
        seen += sum(family.question(core) in pool for core in family.cores(False))
    assert seen > 0.9 * sum(len(family.cores(False)) for family in STEP_FAMILIES.values())


def test_planted_questions_are_found(documents):
    questions = [bare_question(p.prompt) for f in STEP_FAMILIES.values() for p in step_benchmark(f, 40, 0)[::2]]
    texts = documents["text"].to_list()
    assert count_leaks(texts, questions, [])["leaked_questions"] == 0
    planted = [f"guest asks {question.upper()}\nanon: idk" for question in questions[::40]]
    assert count_leaks(texts + planted, questions, [])["leaked_questions"] == len(planted) == len(STEP_FAMILIES)


# The benchmark


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_benchmark(path):
    task = Task(**read_yaml(path))
    rows = suite_problems(task.family, 50, seed=0)
    problems = once_each(rows)  # and rows of one problem agree
    assert task.answer_pattern == ANSWER_PATTERN and len(rows) == 100 and len(problems) == 50
    assert len({p.prompt for p in problems}) == 50 and len({row.id for row in rows}) == 100
    for number, row in enumerate(rows):
        assert (row.writer, row.problem_id) == (STYLES[number % 2], f"{task.family}-{number // 2:03d}")
        assert re.search(task.answer_pattern, row.solution)[1] == row.answer
        answers = [answer_of(choice) for choice in row.choices]
        assert len(set(answers)) == 4 and answers[row.correct_choice] == row.answer
        if row.writer == "short":
            assert row.choices[row.correct_choice] == row.solution
    places = [problem.correct_choice for problem in problems]
    assert all(places.count(place) >= 4 for place in range(4))


def test_every_family_has_a_task():
    assert {Task(**read_yaml(path)).family for path in TASKS} == set(STEP_FAMILIES)


def test_benchmark_depends_on_its_seed_alone():
    family = STEP_FAMILIES["rooms"]
    assert step_benchmark(family, 20, 3) == step_benchmark(family, 20, 3) != step_benchmark(family, 20, 4)
    assert suite_problems("beasts", 20, 3) == benchmark(FAMILIES["beasts"], 20, 3)


def test_more_problems_than_cores():
    with pytest.raises(InputError, match=r"miniature\.problems: found 999, but family rooms has only \d+ held-out"):
        step_benchmark(STEP_FAMILIES["rooms"], 999, seed=0)


# Documents


def test_documents_of_every_kind(documents):
    steps = documents.filter(source="steps")
    assert steps.height == 6000
    for kind, weight in STEP_KINDS.items():
        share = weight / sum(STEP_KINDS.values())
        assert steps.filter(kind=kind).height / 6000 == pytest.approx(share, abs=0.03)
    # A worked solution is right where its kind says so.
    for kind, text in steps.select("kind", "text").iter_rows():
        question = rf"({'|'.join(STEP_FAMILIES)}) (\w+), (\S); (\S) then (\S)"
        name, start, *signs, said = re.search(rf"{question}\s(.*)", text, re.S).groups()
        family = STEP_FAMILIES[name]
        right = family.follow(start, tuple(signs))[-1]
        answer = re.search(r"(\S+)\.$", said)[1]
        if kind in ("bench", "book", "web", "short"):
            assert answer == right
        elif kind == "wrong":
            assert answer != right


def test_a_suite_without_steps_is_as_it_was(texts, documents):
    """The same documents before the new ones, and the same fingerprint: existing studies keep their pools."""
    without = write_sources(seed=0, scale=0.01)
    assert without.equals(documents.filter(pl.col("source") != "steps"))
    size = Size(hidden_size=32, layers=1, intermediate_size=32, steps=1)
    suite = Suite(sizes={"a": size})
    old = {"seed", "scale", "vocabulary", "tokenizers", "problems", "generic_documents"}
    assert set(suite.settings_of_pool()) == old
    asked = suite.model_copy(update={"step_documents": 10})
    assert set(asked.settings_of_pool()) == old | {"step_documents"}
    assert pool_fingerprint(asked) != pool_fingerprint(suite)


def test_component_of_steps(documents):
    pool = documents.with_columns(first=pl.struct("source", "text").is_first_distinct(), clean=pl.lit(True))
    rows = select(pool, Component(source="steps", weight=1.0))
    assert set(pool["source"].gather(rows)) == {"steps"} and len(rows) == 6000
