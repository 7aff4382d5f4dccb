"""Problems whose solutions have two or three steps, each the look-up of a state and a move, in two styles.

A family is a small machine: states, moves, and where each move leads from each state. A question gives a start and the
moves; its solution writes the state after each move, and the last one is the answer. `draw_steps` splits the *cores*
(start and moves) by a hash, so that no document holds a benchmark question in any wording, nor its answer. Single steps
are shared: to answer a new question is to chain known steps.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from random import Random

from proxycast.options import InputError
from proxycast.solutions.rows import Solution
from proxycast.training.miniature.problems import (
    DAYS,
    PROMPT_END,
    PROMPT_START,
    WRONG_SOLUTIONS,
    is_held_out,
)

STYLES = ("short", "worded")
ANSWER_PATTERN = r"^[^.\n]*?(\S+)\."  # group 1: the last word before the first full stop


@dataclass(frozen=True)
class Move:
    """A move as a question writes it (`sign`) and as words, and the state that it leads to from each state."""

    sign: str
    words: str
    leads_to: dict[str, str]


@dataclass(frozen=True)
class StepFamily:
    """A kind of problem: `steps` moves from any of the states."""

    name: str
    steps: int
    moves: dict[str, Move]  # by sign

    @property
    def states(self) -> list[str]:
        return list(next(iter(self.moves.values())).leads_to)

    @cached_property
    def _sides(self) -> dict[bool, list[tuple[str, ...]]]:
        """The cores on the training side (False) and on the held-out side (True) of the split."""
        sides: dict[bool, list[tuple[str, ...]]] = {False: [], True: []}
        for core in product(self.states, *[self.moves] * self.steps):
            sides[is_held_out(self.question(core))].append(core)
        return sides

    def cores(self, held_out: bool) -> list[tuple[str, ...]]:
        """Every core (start, sign of the first move, ...) on one side of the split."""
        return self._sides[held_out]

    def question(self, core: tuple[str, ...]) -> str:
        """'sums 3 +5 +4'."""
        return " ".join((self.name, *core))

    def follow(self, start: str, signs: tuple[str, ...]) -> list[str]:
        """The states after each move."""
        states = []
        for sign in signs:
            start = self.moves[sign].leads_to[start]
            states.append(start)
        return states

    def written(self, core: tuple[str, ...], states: list[str], style: str) -> str:
        """A solution that visits `states`, with the space before it: ' 3 +5 8 +4 2.', or the same in words."""
        start, *signs = core
        if style == "short":
            return f" {start} " + " ".join(f"{s} {state}" for s, state in zip(signs, states, strict=True)) + "."
        told = (f"{self.moves[s].words} gives {state}" for s, state in zip(signs, states, strict=True))
        return f" From {start}, " + ", ".join(told) + "."


@dataclass(frozen=True)
class StepProblem:
    """A question, its worked solution in each style (with the space before it), and wrong ones in the style 'short'."""

    family: str
    question: str
    solutions: dict[str, str]
    answer: str
    wrong: tuple[str, ...]


def _shifts(states: list[str], by_sign: dict[str, tuple[str, int]]) -> dict[str, Move]:
    """Moves that go around a ring of states: sign -> (words, places)."""
    size = len(states)
    return {
        sign: Move(sign, words, {state: states[(place + by) % size] for place, state in enumerate(states)})
        for sign, (words, by) in by_sign.items()
    }


def _sums() -> StepFamily:
    """Sums modulo 10."""
    return StepFamily("sums", 2, _shifts(list("0123456789"), {f"+{n}": (f"plus {n}", n) for n in range(2, 8)}))


def _clock() -> StepFamily:
    """A clock of eight hours."""
    later = {f"f{n}": (f"{n} later", n) for n in (1, 2, 3)}
    earlier = {f"b{n}": (f"{n} earlier", -n) for n in (1, 2, 3)}
    return StepFamily("clock", 2, _shifts(list("12345678"), later | earlier))


def _days() -> StepFamily:
    """Days of the week, on and back."""
    on = {f"+{n}": (f"{n} on", n) for n in (1, 2, 3)}
    back = {f"-{n}": (f"{n} back", -n) for n in (1, 2, 3)}
    return StepFamily("days", 2, _shifts([day[:3] for day in DAYS], on | back))


def _rooms() -> StepFamily:
    """A ring of ten rooms: the next room, the one before, the one across."""
    ring = {">": ("right", 1), "<": ("left", -1), "=": ("across", 5)}
    return StepFamily("rooms", 3, _shifts(list("abcdefghij"), ring))


def _board() -> StepFamily:
    """A token on a board of three rows of three fields; whoever leaves it comes in on the other side."""

    def field(row: int, column: int) -> str:
        return str(3 * (row % 3) + column % 3 + 1)

    ways = {"u": ("up", -1, 0), "d": ("down", 1, 0), "l": ("left", 0, -1), "r": ("right", 0, 1)}
    places = list(product(range(3), range(3)))
    moves = {
        sign: Move(sign, words, {field(r, c): field(r + down, c + right) for r, c in places})
        for sign, (words, down, right) in ways.items()
    }
    return StepFamily("board", 3, moves)


def _lamps() -> StepFamily:
    """Three lamps, 1 where one is on; a move switches one of them."""

    def switched(lamps: str, number: int) -> str:
        return lamps[:number] + ("1" if lamps[number] == "0" else "0") + lamps[number + 1 :]

    states = ["".join(bits) for bits in product("01", repeat=3)]
    moves = [Move(f"#{n + 1}", f"lamp {n + 1}", {state: switched(state, n) for state in states}) for n in range(3)]
    return StepFamily("lamps", 3, {move.sign: move for move in moves})


def _swaps() -> StepFamily:
    """Ten goods, and five markets that each take any good for one other: a rule without a pattern."""
    goods = list("klmnopqrst")
    moves = {}
    for number in range(1, 6):
        given = goods.copy()
        while any(a == b for a, b in zip(goods, given, strict=True)):
            Random(f"market {number} {''.join(given)}").shuffle(given)
        moves[f"@{number}"] = Move(f"@{number}", f"market {number}", dict(zip(goods, given, strict=True)))
    return StepFamily("swaps", 2, moves)


def _largest() -> StepFamily:
    """The largest number so far."""
    digits = list("123456789")
    moves = {f"|{n}": Move(f"|{n}", f"against {n}", {state: max(state, n) for state in digits}) for n in digits}
    return StepFamily("largest", 2, moves)


STEP_FAMILIES: dict[str, StepFamily] = {
    family.name: family for family in (_sums(), _clock(), _days(), _rooms(), _board(), _lamps(), _swaps(), _largest())
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
    step = random.randrange(family.steps)
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


def answer_of(text: str) -> str | None:
    """The answer of a worked solution, right or wrong: the last word before the first full stop."""
    found = re.match(ANSWER_PATTERN, text)
    return found[1] if found else None
