"""Problems with step-by-step solutions, and the split that keeps held-out questions out of every corpus.

Each of the ten families is a small piece of knowledge (the days, a times table, invented facts) that a model of 100,000
parameters learns from a few hundred thousand tokens. A question is a `core` in one of many wordings. `draw` splits the
wordings by a hash of the normalised question; every question of a corpus or benchmark comes from it, so no style of
document leaks one. Only the wording is held out: the benchmark asks what a corpus teaches, not whether a model reasons.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from proxycast.options import InputError
from proxycast.solutions.rows import Solution

ASKERS = "Tom Ann Bob Eve Sam Mia Leo Zoe Max Ida".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
VILLAGES = "gorp blick tamu zerk plon dasi vemo krul sofa nidd wuta hark jemi quob rask lumo".split()
HOME_COLOURS, DIRECTIONS = "red blue green white black".split(), "north south east west".split()
PEOPLE = "feno bidu carp mosk yalt prin toke daro simu vond gleb huka narz opti ruvi cald".split()
TOOLS, PLACES = "hammer needle spade brush rope".split(), "mill farm dock shop".split()
BEASTS = "ubix orla pemt dwon saki rufo thal mib gano zeft eldo kwim".split()
FOODS, LEGS = "grass fish seeds honey bark".split(), "two four six eight".split()
OPPOSITES = (
    "hot cold, big small, fast slow, old new, hard soft, light dark, high low, rich poor, wet dry, full empty, "
    "early late, loud quiet"
)
PROMPT_START, PROMPT_END = "Q: ", "\nA:"
HELD_OUT_SHARE = 0.3
WRONG_SOLUTIONS = 3


@dataclass(frozen=True)
class WordedProblem:
    """One worded question, its worked solution (with the space before it), and three wrong ones of the same form."""

    family: str
    question: str
    solution: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A kind of problem: `cores` maps the core of a question to its solution; `near` gives likely mistakes."""

    name: str
    cores: dict[str, str]
    near: Callable[[str, Random], list[str]]


def _steps(sequence: list[str], start: int, count: int, stride: int) -> str:
    """The `count` elements that follow `start` in the cyclic `sequence`, as a worked solution."""
    return " " + " ".join(sequence[(start + stride * k) % len(sequence)] for k in range(1, count + 1)) + "."


def _chain(name: str, sequence: list[str], stride: int, most: int = 3) -> Family:
    """'2 after Monday' -> ' Tuesday Wednesday.'; a mistake starts from a neighbour or from anywhere."""
    word = "after" if stride > 0 else "before"
    places = {
        f"{count} {word} {sequence[start]}": (start, count)
        for start in range(len(sequence))
        for count in range(1, most + 1)
    }

    def near(core: str, random: Random) -> list[str]:
        start, count = places[core]
        others = random.sample(range(len(sequence)), 4) + [start + stride, start - stride]
        return [_steps(sequence, other, count, stride) for other in random.sample(others, len(others))]

    return Family(name, {core: _steps(sequence, *place, stride) for core, place in places.items()}, near)


def _facts(name: str, wording: str, subjects: list[str], first: list[str], second: list[str]) -> Family:
    """An invented fact with two parts for each subject, fixed by a hash: 'home of gorp' -> ' red north.'"""
    pairs = [f" {a} {b}." for a in first for b in second]

    def fact(subject: str) -> str:
        return pairs[int(hashlib.sha256(subject.encode()).hexdigest(), 16) % len(pairs)]

    cores = {wording.format(subject): fact(subject) for subject in subjects}
    return Family(name, cores, lambda core, random: random.sample(pairs, 6))


def _times_table() -> Family:
    """'7*8' -> ' 56 even.'; a mistake is the product of neighbouring factors."""

    def solution(value: int) -> str:
        return f" {value} {'odd' if value % 2 else 'even'}."

    def near(core: str, random: Random) -> list[str]:
        a, b = map(int, core.split("*"))
        values = {(a + i) * (b + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} | {a * b + 1, a * b + 2, a + b}
        return [solution(value) for value in random.sample(sorted(values), len(values))]

    return Family("products", {f"{a}*{b}": solution(a * b) for a in range(1, 10) for b in range(1, 10)}, near)


def _opposites() -> Family:
    """'opposite of hot' -> ' cold not hot.'; a mistake is the opposite of another word."""
    pairs = [pair.split() for pair in OPPOSITES.split(", ")]
    opposite = {a: b for a, b in pairs} | {b: a for a, b in pairs}

    def near(core: str, random: Random) -> list[str]:
        word = core.split()[-1]
        return [f" {other} not {word}." for other in random.sample(sorted(opposite), 8)]

    return Family("opposites", {f"opposite of {a}": f" {b} not {a}." for a, b in opposite.items()}, near)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _chain("days_after", DAYS, 1),
        _chain("days_before", DAYS, -1),
        _chain("months_after", MONTHS, 1),
        _chain("letters_after", LETTERS, 1),
        _chain("numbers_after", [str(n) for n in range(10, 50)], 1),
        _times_table(),
        _opposites(),
        _facts("homes", "home of {}", VILLAGES, HOME_COLOURS, DIRECTIONS),
        _facts("trades", "trade of {}", PEOPLE, TOOLS, PLACES),
        _facts("beasts", "life of {}", BEASTS, FOODS, LEGS),
    )
}


def normalise(text: str) -> str:
    """Lower case without any white space: the form in which questions are compared and split."""
    return re.sub(r"\s+", "", text.lower())


def is_held_out(question: str) -> bool:
    """Whether this wording belongs to the benchmark (a fixed 30 % of all wordings, by hash)."""
    return hashlib.sha256(normalise(question).encode()).digest()[0] < HELD_OUT_SHARE * 256


def draw(random: Random, family: Family, held_out: bool = False) -> WordedProblem:
    """One problem from the training side of the split, or from the held-out side."""
    while True:
        core, writer = random.choice(list(family.cores)), random.choice(ASKERS)
        question = random.choice((f"{writer}: {core}", f"{core}, {writer}?"))
        if is_held_out(question) == held_out:
            break
    solution = family.cores[core]
    wrong = [w for w in dict.fromkeys(family.near(core, random)) if w != solution][:WRONG_SOLUTIONS]
    answer = solution.strip(" .").split()[0 if family.name in ("products", "opposites") else -1]
    return WordedProblem(family.name, question, solution, answer, tuple(wrong))


def benchmark(family: Family, problems: int, seed: int) -> list[Solution]:
    """`problems` distinct held-out problems as expert solutions, with four complete solutions to choose from."""
    random, found = Random(f"{family.name}-{seed}"), {}
    for _ in range(200 * problems):
        problem = draw(random, family, held_out=True)
        found.setdefault(problem.question, problem)
        if len(found) == problems:
            break
    else:
        raise InputError(
            f"miniature.problems: found {problems}, but family {family.name} has only {len(found)} held-out wordings"
        )
    return [
        Solution(
            id=f"{family.name}-{number:03d}",
            prompt=f"{PROMPT_START}{problem.question}{PROMPT_END}",
            solution=problem.solution,
            answer=problem.answer,
            choices=random.sample([problem.solution, *problem.wrong], 1 + WRONG_SOLUTIONS),
            writer="generator",
        )
        for number, problem in enumerate(found.values())
    ]


def bare_question(prompt: str) -> str:
    """The question in a prompt of the benchmark, as a document of any style would hold it."""
    return prompt.removeprefix(PROMPT_START).removesuffix(PROMPT_END)
