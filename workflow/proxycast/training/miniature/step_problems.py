"""Problems whose solutions have three steps, each the look-up of a state and a move, in two styles.

A family is a small machine: states, moves, and where each move leads from each state. A question gives a start and the
moves; its solution writes the state after each move, and the last one is the answer. `draw_steps` splits the *cores*
(start and moves) by a hash, so that no document holds a benchmark question in any wording, nor its answer. Single steps
are shared: to answer a new question is to chain known steps.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from random import Random

from proxycast.options import InputError
from proxycast.solutions.rows import Solution
from proxycast.training.miniature.problems import (
    DAYS,
    FAMILIES,
    PROMPT_END,
    PROMPT_START,
    WRONG_SOLUTIONS,
    benchmark,
    is_held_out,
)

# What stands before each move, in questions and solutions: a model that continues a repeated sign finds the next move.
MARKS = (",", ";", " then")
STYLES = ("short", "worded")
ANSWER_PATTERN = r"^[^.\n]*?([^\s.]+)\."  # group 1: the last word before the first full stop


@dataclass(frozen=True)
class StepFamily:
    """A kind of problem: as many moves as there are `MARKS`, from any of the states."""

    name: str
    moves: dict[str, dict[str, str]]  # sign -> state -> the state that the move leads to

    @property
    def states(self) -> list[str]:
        return list(next(iter(self.moves.values())))

    @cached_property
    def _sides(self) -> dict[bool, list[tuple[str, ...]]]:
        """The cores on the training side (False) and on the held-out side (True) of the split."""
        sides: dict[bool, list[tuple[str, ...]]] = {False: [], True: []}
        for core in product(self.states, *[self.moves] * len(MARKS)):
            sides[is_held_out(self.question(core))].append(core)
        return sides

    def cores(self, held_out: bool) -> list[tuple[str, ...]]:
        """Every core (start, sign of the first move, ...) on one side of the split."""
        return self._sides[held_out]

    def question(self, core: tuple[str, ...]) -> str:
        """'dial 3, +; - then *'."""
        start, *signs = core
        moves = (f"{mark} {sign}" for mark, sign in zip(MARKS, signs, strict=True))
        return f"{self.name} {start}" + "".join(moves)

    def follow(self, start: str, signs: tuple[str, ...]) -> list[str]:
        """The states after each move."""
        states = []
        for sign in signs:
            start = self.moves[sign][start]
            states.append(start)
        return states

    def written(self, core: tuple[str, ...], states: list[str], style: str) -> str:
        """A solution that visits `states`, with the space before it: ' 3, + 6; - 5 then * 0.', or the same in words."""
        start, *signs = core
        steps = zip(MARKS, signs, states, strict=True)
        if style == "short":
            return f" {start}" + "".join(f"{mark} {sign} {state}" for mark, sign, state in steps) + "."
        return f" From {start}" + "".join(f"{mark} {sign} gives {state}" for mark, sign, state in steps) + "."


@dataclass(frozen=True)
class StepProblem:
    """A question, its worked solution in each style (with the space before it), and wrong ones in the style 'short'."""

    family: str
    question: str
    solutions: dict[str, str]
    answer: str
    wrong: tuple[str, ...]


def _moves(states: list[str], rules: dict[str, Callable[[int], int]]) -> dict[str, dict[str, str]]:
    """Moves from rules by sign: place of a state -> place that it leads to, around the ring of states."""
    size = len(states)
    return {sign: {s: states[rule(n) % size] for n, s in enumerate(states)} for sign, rule in rules.items()}


def _rooms() -> StepFamily:
    """A ring of ten rooms: one or two to the right, one or two to the left, across."""
    rules = {">": lambda n: n + 1, "<": lambda n: n - 1, "=": lambda n: n + 5}
    rules |= {")": lambda n: n + 2, "(": lambda n: n - 2}
    return StepFamily("rooms", _moves(list("abcdefghij"), rules))


def _dial() -> StepFamily:
    """A dial of ten digits: three on, one back, the double, the triple, nine less the digit."""
    rules = {"+": lambda n: n + 3, "-": lambda n: n - 1, "*": lambda n: 2 * n}
    rules |= {"^": lambda n: 3 * n, "_": lambda n: 9 - n}
    return StepFamily("dial", _moves(list("0123456789"), rules))


def _days() -> StepFamily:
    """Days of the week: one on, one back, three on, two back."""
    rules = {"!": lambda n: n + 1, "?": lambda n: n - 1, "%": lambda n: n + 3, "@": lambda n: n - 2}
    return StepFamily("days", _moves([day[:3] for day in DAYS], rules))


def _notes() -> StepFamily:
    """Notes of a scale, whatever the octave: a step, a third and a fifth up, a fourth down."""
    rules = {"#": lambda n: n + 1, "$": lambda n: n + 2, "&": lambda n: n - 3, "[": lambda n: n + 4}
    return StepFamily("notes", _moves("do re mi fa so la ti".split(), rules))


def _lift() -> StepFamily:
    """A lift of nine floors that stops at either end: two up, one down, three down, one up."""
    rules = {"/": lambda n: min(n + 2, 8), "|": lambda n: max(n - 1, 0)}
    rules |= {"~": lambda n: max(n - 3, 0), "]": lambda n: min(n + 1, 8)}
    return StepFamily("lift", _moves(list("123456789"), rules))


def _board() -> StepFamily:
    """A token on a board of three rows of three fields; whoever leaves it comes in on the other side."""
    rules = {
        "N": lambda n: n - 3,
        "S": lambda n: n + 3,
        "E": lambda n: n - 2 if n % 3 == 2 else n + 1,
        "W": lambda n: n + 2 if n % 3 == 0 else n - 1,
    }
    return StepFamily("board", _moves(list("123456789"), rules))


def _swaps() -> StepFamily:
    """Eight goods and four markets that each take any good for one other: a rule without a pattern."""
    goods, rules = list("klmnopqr"), {}
    for market in "HJXY":
        given = list(range(len(goods)))
        while any(place == other for place, other in enumerate(given)):
            Random(f"market {market} {given}").shuffle(given)
        rules[market] = given.__getitem__
    return StepFamily("swaps", _moves(goods, rules))


STEP_FAMILIES: dict[str, StepFamily] = {
    family.name: family for family in (_rooms(), _dial(), _days(), _notes(), _lift(), _board(), _swaps())
}


def draw_steps(random: Random, family: StepFamily, held_out: bool = False) -> StepProblem:
    """One problem from the training side of the split, or from the held-out side."""
    return _problem(random, family, random.choice(family.cores(held_out)))


def _problem(random: Random, family: StepFamily, core: tuple[str, ...]) -> StepProblem:
    states = family.follow(core[0], core[1:])
    wrong: dict[str, str] = {}  # by answer
    while len(wrong) < WRONG_SOLUTIONS:
        mistaken = _mistaken(random, family, core, states)
        if mistaken[-1] != states[-1]:
            wrong.setdefault(mistaken[-1], family.written(core, mistaken, "short"))
    return StepProblem(
        family.name,
        family.question(core),
        {style: family.written(core, states, style) for style in STYLES},
        states[-1],
        tuple(wrong.values()),
    )


def _mistaken(random: Random, family: StepFamily, core: tuple[str, ...], states: list[str]) -> list[str]:
    """The states of a solution with one wrong step, after which it goes on as it should."""
    step = random.randrange(len(MARKS))
    slip = random.choice([state for state in family.states if state != states[step]])
    return [*states[:step], slip, *family.follow(slip, core[step + 2 :])]


def step_benchmark(family: StepFamily, problems: int, seed: int) -> list[Solution]:
    """`problems` distinct held-out problems, two solutions each (a row a style), with four complete solutions to choose
    from, the same ones for both."""
    random, cores = Random(f"{family.name}-{seed}"), family.cores(held_out=True)
    if problems > len(cores):
        raise InputError(
            f"miniature.problems: found {problems}, but family {family.name} has only {len(cores)} held-out questions"
        )
    rows = []
    for number, core in enumerate(random.sample(cores, problems)):
        problem = _problem(random, family, core)
        right = problem.solutions["short"]
        choices = random.sample([right, *problem.wrong], 1 + WRONG_SOLUTIONS)
        rows += [
            Solution(
                id=f"{family.name}-{number:03d}-{style}",
                problem=f"{family.name}-{number:03d}",
                prompt=f"{PROMPT_START}{problem.question}{PROMPT_END}",
                solution=problem.solutions[style],
                answer=problem.answer,
                choices=choices,
                correct=choices.index(right),
                writer=style,
            )
            for style in STYLES
        ]
    return rows


def suite_problems(family: str, problems: int, seed: int) -> list[Solution]:
    """The benchmark of any family of the suite, with one step or with several."""
    if family in STEP_FAMILIES:
        return step_benchmark(STEP_FAMILIES[family], problems, seed)
    return benchmark(FAMILIES[family], problems, seed)


def answer_of(text: str) -> str | None:
    """The answer of a worked solution, right or wrong: the last word before the first full stop."""
    found = re.match(ANSWER_PATTERN, text)
    return found[1] if found else None
