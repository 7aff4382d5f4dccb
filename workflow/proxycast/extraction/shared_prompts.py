"""Which texts begin alike, and how a model reads what they share once. Importing this imports no torch.

Texts that begin alike form a tree: the examples of a few-shot prompt, below them the questions, below each question its
choices. A text is read up to the token before its last one, which is predicted and predicts nothing. So choices of one
token have nothing of their own: they are one text.

- A **pack** is a part of the tree that is read as one row: each token once, and it sees the tokens above it only.
- A **family** is a prompt that is read first, and packs that are read behind it, in batches. With an empty prompt, its
  packs have nothing in common.

Which of the two a branch becomes, or neither, is decided by an estimate of what the passes cost. Sorted texts have
their tree in the tokens that neighbours share, so that the plan takes little time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from proxycast.solutions.tokenisation import ScoredSequence

LEAST_SAVED = 0.1  # of the cost: what sharing must save; less is lost in what the estimate does not see
ANY_LENGTH = 1 << 62  # longer than any text
MASK_ELEMENTS = 1 << 25  # most pairs of a row's own tokens and all that they may see: a mask is a matrix
KEYS_SHARE = 8  # so many keys of a prompt, which each row of a batch gets a copy of, take the memory of a token


@dataclass(frozen=True)
class Member:
    """A text of a pack: its index, and how many of its first tokens are those of the member before it.

    For the first member of a pack: the length of the family's prompt.
    """

    index: int
    shared: int


Pack = tuple[Member, ...]


@dataclass(frozen=True)
class Family:
    """Packs whose texts all begin with the same `prompt` tokens (0: with nothing), as batches of packs."""

    prompt: int
    batches: tuple[tuple[Pack, ...], ...]

    def members(self) -> Iterator[int]:
        """The indices of all texts."""
        return (member.index for batch in self.batches for pack in batch for member in pack)

    def tokens(self, batch: Sequence[Pack], sequences: Sequence[ScoredSequence]) -> int:
        """Tokens of the prompt and of a batch behind it, with padding."""
        return self.prompt + len(batch) * self._own(batch, sequences)

    def width(self, sequences: Sequence[ScoredSequence]) -> int:
        """Tokens of the prompt and of the longest row behind it."""
        return self.prompt + max(self._own(batch, sequences) for batch in self.batches)

    def _own(self, batch: Sequence[Pack], sequences: Sequence[ScoredSequence]) -> int:
        return max(sum(sequences[m.index].stop - 1 - m.shared for m in pack) for pack in batch)

    def divided(self, parts: int) -> Iterator["Family"]:
        """Up to `parts` families with the same batches."""
        return (Family(self.prompt, self.batches[part::parts]) for part in range(min(parts, len(self.batches))))


@dataclass(frozen=True)
class Cost:
    """What passes cost, in tokens that see nothing: attention makes a token dearer, by the keys that it looks at.

    keys: so many of them cost as much as the token's own products. a_pass: tokens whose time the start of a pass takes.
    """

    keys: float
    a_pass: float

    def alone(self, length: int) -> float:
        """Of a text that is read by itself: a token sees half of it."""
        return length * (1 + length / 2 / self.keys)

    def behind(self, prompt: int, own: int) -> float:
        """Of a row of `own` tokens behind a prompt: the mask is a full one, so that each pair of tokens counts."""
        return own * (1 + (prompt + own) / self.keys)


def read_tokens(sequence: ScoredSequence) -> np.ndarray:
    """The tokens that must be read: the last one predicts nothing."""
    return sequence.token_ids[: sequence.stop - 1]


def sorted_texts(texts: Sequence[np.ndarray]) -> tuple[list[int], np.ndarray]:
    """The order of the texts by their tokens, and how many first tokens each shares with the one before it there."""
    keys = [text.astype(">i4").tobytes() for text in texts]
    order = sorted(range(len(texts)), key=keys.__getitem__)
    shared = np.zeros(len(texts), np.int64)
    for place in range(1, len(order)):
        shared[place] = common_prefix(texts[order[place - 1]], texts[order[place]])
    return order, shared


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Number of first tokens that two texts share."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    first = int(differ.argmax()) if length else 0
    return first if length and differ[first] else length


def may_skip_prefix(sequences: Sequence[ScoredSequence], block: int) -> list[bool]:
    """Of each sequence: whether a cache of all of them, in blocks of tokens, leaves its scored part to be computed.

    A cache holds what a sequence shares with any other, in whole blocks, and never its last token that is read. What
    stands in front of the first scored token must be computed, because the cache has no hidden states.
    """
    texts = [read_tokens(sequence) for sequence in sequences]
    order, shared = sorted_texts(texts)
    most = np.zeros(len(texts), np.int64)
    most[order] = np.maximum(shared, np.append(shared[1:], 0))  # of sorted texts, neighbours share most
    hits = np.minimum(most, [len(text) - 1 for text in texts]) // block * block
    return (hits < [sequence.start for sequence in sequences]).tolist()


def plan_families(
    sequences: Sequence[ScoredSequence], cost: Cost, budget: int, longest: int, widest: int = ANY_LENGTH
) -> list[Family]:
    """The families of `sequences`, whose batches have about `budget` tokens. Those in none are better read alone.

    Sequences of more than `longest` tokens are in none. A row of several has up to `widest`, with the prompt.
    """
    indices = [i for i, sequence in enumerate(sequences) if len(sequence.token_ids) <= longest]
    places, shared = sorted_texts([read_tokens(sequences[i]) for i in indices])
    order = [indices[place] for place in places]
    lengths = np.array([sequences[i].stop - 1 for i in order], np.int64)
    if shared.sum() <= LEAST_SAVED * lengths.sum():
        return []
    tree = _Tree(lengths, shared, cost, budget, widest)
    packs: dict[int, list[tuple[int, int]]] = {0: []}  # by the first text of the family, 0 for the empty prompt
    prompts = {0: 0}
    # (first, last + 1, family); families are told apart by where they start, which is behind 0 for all but the empty.
    waiting = [(0, len(order), 0)]
    while waiting:
        first, stop, family = waiting.pop()
        prompt = prompts[family]
        if stop - first == 1:
            if prompt and tree.fits(first, stop, prompt):
                packs[family].append((first, stop))
            continue
        how, depth, children = tree.choice(first, stop, prompt)
        if how == "pack":
            packs[family].append((first, stop))
            continue
        if how == "family":
            family = len(prompts)
            prompts[family], packs[family] = depth, []
        waiting += [(*child, family) for child in reversed(children)]
    if tree.saved(packs[0]) < cost.a_pass:
        packs[0] = []
    return [
        Family(prompts[family], tuple(_batches(found, prompts[family], tree, order, budget)))
        for family, found in packs.items()
        if found
    ]


class _Tree:
    """Sorted texts as a tree: a range of them is a branch, which begins where its neighbours share least."""

    def __init__(self, lengths: np.ndarray, shared: np.ndarray, cost: Cost, budget: int, widest: int):
        self.lengths, self.shared, self.cost, self.budget, self.widest = lengths, shared, cost, budget, widest
        self._lengths_before = np.concatenate([[0], np.cumsum(lengths)])
        self._shared_before = np.concatenate([[0], np.cumsum(shared)])

    def own(self, first: int, stop: int, prompt: int) -> int:
        """Tokens of the branch behind the prompt, each once."""
        lengths = self._lengths_before[stop] - self._lengths_before[first]
        return int(lengths - (self._shared_before[stop] - self._shared_before[first + 1]) - prompt)

    def fits(self, first: int, stop: int, prompt: int) -> bool:
        """Whether the branch may be one row."""
        own = self.own(first, stop, prompt)
        short = own <= self.budget and prompt + own <= self.widest
        return (stop - first == 1 or short) and own * (prompt + own) <= MASK_ELEMENTS

    def cost_of(self, first: int, stop: int, prompt: int) -> float:
        """Least cost of a branch as one row or as texts by themselves."""
        lengths = self.lengths[first:stop]
        alone = float(self.cost.alone(lengths).sum())
        if prompt:
            behind = np.where(
                (lengths - prompt) * lengths <= MASK_ELEMENTS, self.cost.behind(prompt, lengths - prompt), np.inf
            )
            alone = float(np.minimum(behind, self.cost.alone(lengths)).sum())
        if stop - first == 1 or not self.fits(first, stop, prompt):
            return alone
        return min(alone, self.cost.behind(prompt, self.own(first, stop, prompt)))

    def saved(self, packs: Sequence[tuple[int, int]]) -> float:
        """What packs without a prompt save."""
        return sum(
            float(self.cost.alone(self.lengths[first:stop]).sum()) - self.cost.behind(0, self.own(first, stop, 0))
            for first, stop in packs
        )

    def choice(self, first: int, stop: int, prompt: int) -> tuple[str, int, list[tuple[int, int]]]:
        """ "pack", "family" or "apart"; the tokens that the branch shares; the branches below it."""
        inner = self.shared[first + 1 : stop]
        depth = int(inner.min())
        cuts = [first, *(first + 1 + np.flatnonzero(inner == depth)).tolist(), stop]
        children = list(zip(cuts, cuts[1:]))
        apart = sum(self.cost_of(*child, prompt) for child in children)
        pack = self.cost.behind(prompt, self.own(first, stop, prompt)) if self.fits(first, stop, prompt) else np.inf
        family = np.inf
        if depth > prompt:
            below = sum(self.cost_of(*child, depth) for child in children)
            family = 2 * self.cost.a_pass + self.cost.alone(depth) + below
        best = min(pack, family)
        if best > (1 - LEAST_SAVED) * apart:
            return "apart", depth, children
        return ("pack" if pack <= family else "family"), depth, children


def _batches(
    packs: list[tuple[int, int]], prompt: int, tree: _Tree, order: list[int], budget: int
) -> Iterator[tuple[Pack, ...]]:
    """The packs, those of like length together, padded to the longest."""
    packs = sorted(packs, key=lambda pack: -tree.own(*pack, prompt))
    while packs:
        widest = tree.own(*packs[0], prompt)
        size = budget // max(widest + prompt // KEYS_SHARE, 1)
        size = max(1, min(size, MASK_ELEMENTS // max(widest * (prompt + widest), 1)))
        yield tuple(
            tuple(
                Member(order[place], prompt if place == first else int(tree.shared[place]))
                for place in range(first, stop)
            )
            for first, stop in packs[:size]
        )
        packs = packs[size:]
