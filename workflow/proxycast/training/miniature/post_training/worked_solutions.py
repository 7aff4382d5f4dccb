"""What post-training reads: questions of the training side of the split with worked solutions, as padded tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from proxycast.config.training import CONTEXT
from proxycast.options import InputError
from proxycast.solutions.rows import read_solutions
from proxycast.solutions.tokenisation import prompt_tokens
from proxycast.training.miniature.problems import PROMPT_END, PROMPT_START, bare_question
from proxycast.training.miniature.step_problems import STEP_FAMILIES, STYLES, StepProblem, answer_of, draw_steps
from proxycast.weights.tokenizer import load_tokenizer


class Document(NamedTuple):
    """A prompt and the solution that a model learns to write after it, with the space between them."""

    prompt: str
    solution: str


class Example(NamedTuple):
    """The token ids of a prompt, and of what is written after it."""

    prompt: list[int]
    written: list[int]


@dataclass(frozen=True)
class Batch:
    """Token ids (batch, length), padded on the right, and which of them were written after a prompt.

    No token of a causal model sees what follows it, so padding on the right needs no attention mask.
    """

    token_ids: Tensor
    is_written: Tensor


def training_problems(families: Sequence[str], count: int, seed: object) -> list[StepProblem]:
    """`count` problems, the families in turn."""
    random = Random(str(seed))
    return [draw_steps(random, STEP_FAMILIES[families[number % len(families)]]) for number in range(count)]


def prompt_of(problem: StepProblem) -> str:
    return f"{PROMPT_START}{problem.question}{PROMPT_END}"


def documents_of(problems: Sequence[StepProblem], styles: Sequence[str] = STYLES[:1]) -> list[Document]:
    """A worked solution of each problem; each run of as many problems as there are families has one style."""
    families = len({problem.family for problem in problems})
    return [
        Document(prompt_of(problem), problem.solutions[styles[number // families % len(styles)]])
        for number, problem in enumerate(problems)
    ]


def benchmark_texts(files: Iterable[Path]) -> list[str]:
    """What no training text may hold: the distinct bare questions of files of expert solutions, and the solutions.

    A solution repeats its question's start and moves, so a text may hold it without the question.
    """
    rows = [solution for path in files for solution in read_solutions(path)]
    questions = dict.fromkeys(bare_question(row.prompt) for row in rows)
    return list(dict.fromkeys([*questions, *(row.solution.strip() for row in rows)]))


def is_right(problem: StepProblem, text: str) -> bool:
    """The exact match that the truth counts, too."""
    return answer_of(text) == problem.answer


def is_worked_out(problem: StepProblem, text: str) -> bool:
    """Whether a text is a solution of the problem in every step, and not only its answer."""
    return text in problem.solutions.values()


class SolutionTokens:
    """Texts as the tokens that a base reads.

    `end` ends a text, as it ends each document of a corpus; after one of `ends`, it or a new line, no solution goes on.
    """

    def __init__(self, folder: Path):
        self._tokenizer = load_tokenizer(folder)
        self.end: int = self._tokenizer.eos_token_id
        texts = {token: self._tokenizer.decode([token]) for token in range(len(self._tokenizer))}
        self.ends = frozenset(token for token, text in texts.items() if token == self.end or "\n" in text)
        self._stops = frozenset(token for token, text in texts.items() if "." in text)

    def prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        return [token_ids.tolist() for token_ids in prompt_tokens(list(prompts), self._tokenizer)]

    def examples(self, documents: Sequence[Document]) -> list[Example]:
        """Raises InputError for a text that is longer than the models' context."""
        solutions = self._tokenizer([solution for _, solution in documents], add_special_tokens=False).input_ids
        prompts = self.prompts([prompt for prompt, _ in documents])
        examples = [Example(prompt, [*ids, self.end]) for prompt, ids in zip(prompts, solutions, strict=True)]
        for document, example in zip(documents, examples, strict=True):
            if (length := len(example.prompt) + len(example.written)) > CONTEXT:
                raise InputError(
                    f"miniature.post_training: {document.prompt!r} with its solution has {length} tokens of the "
                    f"tokenizer {self._tokenizer.name_or_path}; the models read {CONTEXT}. Give `tokenizers` with a "
                    "larger vocabulary"
                )
        return examples

    def longest(self, problems: Sequence[StepProblem]) -> int:
        """Tokens of the longest solution in any style, its end included: as many as a model may write."""
        documents = [Document(prompt_of(p), solution) for p in problems for solution in p.solutions.values()]
        return max(len(example.written) for example in self.examples(documents))

    def first_sentence(self, written: Sequence[int]) -> list[int]:
        """`written` up to its first full stop, and its end where that follows: no answer is looked for behind it.

        What a model goes on with may be anything, and so a question of the benchmark.
        """
        stop = next((place for place, token in enumerate(written, 1) if token in self._stops), len(written))
        return [*written[:stop], *(token for token in written[stop : stop + 1] if token == self.end)]

    def text(self, written: Sequence[int]) -> str:
        """The text of `written` without its end."""
        ids = written[:-1] if written and written[-1] == self.end else written
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def padded(examples: Sequence[Example], end: int) -> Batch:
    """The examples side by side, the shorter ones padded with `end`, which counts nowhere."""
    width = max(len(prompt) + len(written) for prompt, written in examples)
    token_ids = torch.full((len(examples), width), end)
    is_written = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, (prompt, written) in enumerate(examples):
        stop = len(prompt) + len(written)
        token_ids[row, :stop] = torch.tensor(prompt + written)
        is_written[row, len(prompt) : stop] = True
    return Batch(token_ids, is_written)
