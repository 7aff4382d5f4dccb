"""Problems, documents and the split: right answers, no leak, and a leak check that finds what is planted."""

import calendar
import re
import shutil
import string
import sysconfig
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.tasks import Task
from proxycast.config.training import Suite
from proxycast.options import InputError
from proxycast.study.yaml_files import read_yaml
from proxycast.training.miniature import sources
from proxycast.training.miniature.leaks import count_leaks, require_no_leak
from proxycast.training.miniature.problems import ASKERS, FAMILIES, Family, bare_question, benchmark, draw, is_held_out
from proxycast.training.miniature.sources import SOURCES, held_out_text, snippets, write_sources

TASKS = sorted((Path(__file__).parents[2] / "config" / "tasks" / "miniature").glob("*.yaml"))
PROBLEM_KINDS = ["bench", "book", "chat", "short", "web", "wrong"]
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def wordings(family: Family) -> list[str]:
    """All questions of a family: each core in both wordings, from each writer."""
    return [text for core in family.cores for name in ASKERS for text in (f"{name}: {core}", f"{core}, {name}?")]


WORDINGS = {text: family for family in FAMILIES.values() for text in wordings(family)}
HELD_OUT = [text for text in WORDINGS if is_held_out(text)]


def stands_in(question: str, pool: str) -> bool:
    return question in pool and re.search(rf"(?<!\w){re.escape(question)}(?!\w)", pool) is not None


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A part of the standard library in place of the whole, so that its text is read in a moment."""
    folder = tmp_path_factory.mktemp("library")
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-e]*.py")):
        shutil.copy(path, folder)
    # The same text in a file on either side of the split.
    twin = (
        'def twin(value):\n    """Return the value that was given, and nothing else, so that two files hold this."""\n'
    )
    for number in range(40):
        (folder / f"twin{number}.py").write_text(twin + "    return value\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources.sysconfig, "get_path", lambda name: str(folder))
        sources._files.cache_clear()
        yield folder
    sources._files.cache_clear()


@pytest.fixture(scope="module")
def documents(library):
    return write_sources(seed=0, scale=0.05)


# The split


@every_family
def test_held_out_share_of_each_family(family):
    questions = wordings(family)
    share = sum(map(is_held_out, questions)) / len(questions)
    assert share == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / len(questions)) ** 0.5)


def test_held_out_share_of_all_wordings():
    assert len(HELD_OUT) / len(WORDINGS) == pytest.approx(0.3, abs=0.015)


@given(st.sampled_from(list(WORDINGS)), st.text(" \t\n", max_size=3))
def test_split_knows_neither_case_nor_white_space(question, space):
    assert is_held_out(question.upper().replace(" ", space)) == is_held_out(question)


@given(st.integers(0), st.sampled_from(list(FAMILIES)), st.booleans())
def test_draws_come_from_their_side(seed, name, held_out):
    question = draw(Random(seed), FAMILIES[name], held_out).question
    assert is_held_out(question) == held_out and WORDINGS[question].name == name


@every_family
def test_draws_reach_every_wording_of_their_side(family):
    """Every core and writer stands on both sides."""
    random, side = Random(0), {text for text in wordings(family) if not is_held_out(text)}
    drawn = {draw(random, family).question for _ in range(15 * len(side))}
    assert drawn == side
    for questions in (side, set(wordings(family)) - side):
        assert {question.split(": ")[-1].split(",")[0] for question in questions} == set(family.cores)
        assert all(any(name in question for question in questions) for name in ASKERS)


def test_no_document_holds_a_held_out_wording(documents):
    """By brute force over every wording and document, whatever its style."""
    pool = "\n".join(documents["text"])
    assert not any(stands_in(question, pool) for question in HELD_OUT)
    assert sum(q in pool for q in WORDINGS if not is_held_out(q)) > 0.1 * len(WORDINGS)


# Right answers


def steps(name: str, count: int, start: str) -> str:
    """`count` elements from `start`, from the standard library's own sequences."""
    days, months = list(calendar.day_name), list(calendar.month_name)[1:]
    sequences = {"days": days, "months": months, "letters": string.ascii_lowercase, "numbers": range(10, 50)}
    family, direction = name.split("_")
    sequence = [str(element) for element in sequences[family]]
    sign = 1 if direction == "after" else -1
    place = sequence.index(start)
    return " " + " ".join(sequence[(place + sign * k) % len(sequence)] for k in range(1, count + 1)) + "."


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.endswith(("after", "before"))])
def test_chains(name):
    for core, solution in FAMILIES[name].cores.items():
        count, word, start = core.split()
        assert word == name.split("_")[1] and solution == steps(name, int(count), start)


def test_chains_by_hand():
    assert FAMILIES["days_after"].cores["2 after Sunday"] == " Monday Tuesday."
    assert FAMILIES["days_before"].cores["3 before Tuesday"] == " Monday Sunday Saturday."
    assert FAMILIES["letters_after"].cores["3 after y"] == " z a b."
    assert FAMILIES["numbers_after"].cores["2 after 48"] == " 49 10."


def test_products():
    for core, solution in FAMILIES["products"].cores.items():
        value = eval(core)
        assert solution == f" {value} {('even', 'odd')[value % 2]}."
    assert len(FAMILIES["products"].cores) == 81


def test_opposites_are_mutual():
    cores = FAMILIES["opposites"].cores
    pairs = {core.split()[-1]: solution.split()[0] for core, solution in cores.items()}
    for word, other in pairs.items():
        assert pairs[other] == word != other and cores[f"opposite of {word}"] == f" {other} not {word}."


def test_facts_are_fixed_for_ever():
    """Trained models hold these: a fact that changes makes them wrong."""
    facts = {name: next(iter(FAMILIES[name].cores.items())) for name in ("homes", "trades", "beasts")}
    assert facts == {
        "homes": ("home of gorp", " blue west."),
        "trades": ("trade of feno", " rope shop."),
        "beasts": ("life of ubix", " seeds four."),
    }


# The benchmark


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_benchmark(path):
    task, most = Task(**read_yaml(path)), Suite.model_fields["problems"].default
    family = FAMILIES[task.family]
    problems = benchmark(family, most, seed=0)
    assert len({p.id for p in problems}) == len({p.prompt for p in problems}) == most
    for problem in problems:
        question = re.fullmatch(r"Q: (.*)\nA:", problem.prompt)[1]
        core = question.split(": ")[-1].split(",")[0]
        assert bare_question(problem.prompt) == question
        assert is_held_out(question) and problem.solution == family.cores[core]
        assert len(set(problem.choices)) == 4 and problem.choices[problem.correct_choice] == problem.solution
        # What a model that reproduces the solution would be credited with.
        assert re.search(task.answer_pattern, problem.solution)[1] == problem.answer
        assert all(re.search(task.answer_pattern, choice) for choice in problem.choices)


@every_family
def test_place_of_the_right_choice_tells_nothing(family):
    places = [p.correct_choice for p in benchmark(family, 60, seed=1)]
    assert all(places.count(place) >= 4 for place in range(4))


def test_benchmark_depends_on_its_seed_alone():
    family = FAMILIES["homes"]
    assert benchmark(family, 20, 3) == benchmark(family, 20, 3) != benchmark(family, 20, 4)


def test_more_problems_than_wordings():
    with pytest.raises(InputError, match=r"miniature\.problems: found 100, but family beasts has only \d+ held-out"):
        benchmark(FAMILIES["beasts"], 100, seed=0)


# Documents

ENDINGS = {
    "bench": r"Q: (.*)\nA:( .*\.)",
    "book": r"Example\. (.*)\nSolution\.( .*\.)",
    "web": r"(?:Hi all, |Problem: |Please help\. |)(.*?)(?: First| Ok,| Well,)( .*\.)",
    "short": r"Q: (.*)\nA: (.*)\.",
    "chat": r"\w+ asks (.*)\n\w+:(?: lol| idk| i think| easy,)( .*\.)",
}


def test_documents_hold_the_problems_that_their_kind_promises(documents):
    """Each style is taken apart again: worked ones are right (a fact is the same in all of them), 'wrong' is wrong."""
    right, seen = {kind: [] for kind in ENDINGS}, set()
    for kind, text in documents.filter(documents["kind"].is_in(PROBLEM_KINDS)).select("kind", "text").iter_rows():
        style = kind if kind != "wrong" else "bench" if text.startswith("Q: ") else "web"
        question, rest = re.fullmatch(ENDINGS[style], text).groups()
        core = question.split(": ")[-1].split(",")[0]
        solution = WORDINGS[question].cores[core]
        seen.add((kind, WORDINGS[question].name))
        if kind == "wrong":
            assert rest != solution
        elif kind == "short":
            assert rest in solution.rstrip(".").split(" ")
        else:
            right[kind].append(rest == solution)
    assert seen == {(kind, name) for kind in PROBLEM_KINDS for name in FAMILIES}
    for kind in ("bench", "book", "web"):
        assert all(right[kind])
    assert sum(right["chat"]) / len(right["chat"]) == pytest.approx(0.5, abs=0.12)


def test_sources_have_their_size_and_kinds(documents):
    for name, source in SOURCES.items():
        mine = documents.filter(source=name)
        written = round(0.05 * source.documents)
        assert mine.height == written + round(source.duplicates * written)
        for kind, weight in source.kinds.items():
            share = weight / sum(source.kinds.values())
            assert mine.filter(kind=kind).height / mine.height == pytest.approx(
                share, abs=5 * (0.25 / mine.height) ** 0.5
            )


def test_sources_depend_on_their_seed_alone(documents, library):
    assert write_sources(seed=0, scale=0.05).equals(documents)
    assert not write_sources(seed=1, scale=0.05).equals(documents)


# Held-out text


def test_held_out_text_shares_no_shingle_with_the_training_side(library):
    def squeezed(text: str) -> str:
        return "".join(text.lower().split())

    trained = {squeezed(text) for texts in snippets(held_out=False).values() for text in texts}
    shingles = {text[i : i + 24] for text in trained for i in range(len(text) - 23)}
    texts = held_out_text(60, seed=0)
    assert len(texts) == len(set(texts)) == 60
    for text in map(squeezed, texts):
        assert not any(text[i : i + 24] in shingles for i in range(len(text) - 23))


def test_text_of_both_sides_stays_in_training_alone(library):
    trained, held_out = (snippets(side)["code"] for side in (False, True))
    assert any("def twin" in text for text in trained) and any(
        "def twin" in text for text in sources._files(True)["code"]
    )
    assert held_out and not any("def twin" in text for text in held_out)


def test_files_go_to_one_side(library):
    sides = [sum(sources._files(side).values(), []) for side in (False, True)]
    assert 0.02 < len(sides[1]) / len(sides[0]) < 0.4


# The leak check


def test_nothing_leaks(documents, library):
    questions = [bare_question(p.prompt) for family in FAMILIES.values() for p in benchmark(family, 60, 0)]
    leaks = count_leaks(documents["text"].to_list(), questions, held_out_text(60, 0))
    assert leaks["documents"] == documents["text"].n_unique() and leaks["questions"] == 600 and leaks["texts"] == 60
    assert leaks["leaked_questions"] == leaks["leaked_texts"] == 0
    require_no_leak(leaks)


@pytest.fixture
def leaky_documents(library, monkeypatch):
    """The documents that a broken split would write: of held-out questions alone."""
    monkeypatch.setattr(sources, "draw", partial(draw, held_out=True))
    return write_sources(seed=0, scale=0.02)


@pytest.mark.parametrize("kind", PROBLEM_KINDS)
def test_leaked_questions_are_found_in_every_kind_of_document(leaky_documents, kind):
    mine = leaky_documents.filter(kind=kind)["text"].to_list()
    inside = [question for question in HELD_OUT if stands_in(question, "\n".join(mine))]
    assert inside
    leaks = count_leaks(mine, HELD_OUT, [])
    assert leaks["leaked_questions"] == len(inside)
    with pytest.raises(InputError, match=f"miniature suite: {len(inside)} of {len(HELD_OUT)} benchmark questions"):
        require_no_leak(leaks)


@pytest.mark.parametrize(
    "document",
    [
        "7*8, Ann?",
        "Q: 7*8, Ann?\nA: 56 even.",
        "please: 7*8, ANN? thanks",
        "so\n7*8,\n\t ann?\nwell",
        "(7*8, Ann?)",
        "17*8, Ann? but also 7*8, Ann?",
    ],
)
def test_planted_question(document):
    assert count_leaks(["Q: 1*1, Bob?\nA: 1 odd.", document], ["7*8, Ann?"], [])["leaked_questions"] == 1


@pytest.mark.parametrize(
    "document", ["17*8, Ann?", "7*8, Anna?", "7*8 Ann", "7*8,\nBob: 7*9, Ann?", "Ann: 7*8", "x7*8, ann?"]
)
def test_lookalikes_of_a_question(document):
    assert count_leaks([document], ["7*8, Ann?"], [])["leaked_questions"] == 0


def test_question_that_two_documents_make_together():
    assert count_leaks(["we saw 7*8,", "Ann? she said"], ["7*8, Ann?"], [])["leaked_questions"] == 0


TEXT = "Return the index of the first element that is not less than the value, or the length if there is none."


@given(st.integers(0, len(TEXT) - 44), st.booleans())
def test_part_of_a_held_out_text(start, spread):
    part = TEXT[start : start + 44].strip()  # 42 characters or more
    document = f"we read: {part.upper().replace(' ', '  ' if spread else ' ')} xyz"
    leaks = count_leaks([document], [], [TEXT, "another text that is held out and that no document holds a part of"])
    assert (leaks["texts"], leaks["leaked_texts"]) == (2, 1)
    with pytest.raises(InputError, match="1 of 2 held-out texts"):
        require_no_leak(leaks)


@pytest.mark.parametrize(
    "length, leaked",
    [(31, 0), (32, 1), (36, 1), (39, 1), (40, 1), (60, 1)],
)
def test_document_that_stands_whole_in_a_held_out_text(length, leaked):
    document = TEXT[3 : 3 + length].replace(" ", "_")
    assert count_leaks([document], [], [TEXT.replace(" ", "_")])["leaked_texts"] == leaked


@given(st.integers(0, 39))
def test_short_run_in_a_longer_document_is_no_leak(length):
    document = f"{TEXT[10 : 10 + length].strip()}#and then it goes on in another way entirely"
    assert count_leaks([document], [], [TEXT])["leaked_texts"] == 0
