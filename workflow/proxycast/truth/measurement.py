"""Downstream results measured here: multiple choice by likelihood, and exact match of what a model writes."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from proxycast.config.extraction import ExtractionOptions
from proxycast.config.tasks import Task
from proxycast.config.truth import Sampling, Target
from proxycast.extraction.engines.base import Engine, draw_seed
from proxycast.extraction.sweep import TokenizedTexts, Walk, tell_work, walk
from proxycast.metrics import EXACT_MATCH, SAMPLED_EXACT_MATCH
from proxycast.options import InputError
from proxycast.sandbox import first_groups
from proxycast.solutions.rows import Problem, once_each
from proxycast.solutions.tokenisation import ScoredSequence, tokenize
from proxycast.tables import fingerprint
from proxycast.truth.targets import CHOICE_LOG_LIKELIHOOD, HALVES, MULTIPLE_CHOICE_ACCURACY, TARGETS_SCHEMA


def evaluate(
    engine: Engine,
    checkpoint: str,
    folder: Path,
    task: str,
    solutions: Sequence[Problem],
    answer_pattern: str | None = None,
    max_new_tokens: int = 64,
    choices: Sequence[ScoredSequence] | None = None,
    drawn: Sequence[Sequence[str]] | None = None,
    is_greedy: bool = True,
) -> pl.DataFrame:
    """One row (TARGETS_SCHEMA) for each metric that the problems allow.

    Multiple choice: over the problems with choices. Exact match: when `answer_pattern` is given, over the problems with
    an answer; of greedy texts if `is_greedy`, and of those that were `drawn` (`draw_texts`), also over either half of
    the problems (HALVES). A problem with several solutions counts once. `choices`: the `choice_texts` of the problems
    (`once_each`) in the engine's tokens, if they are there already.
    """
    problems = once_each(solutions)
    with_choices = [problem for problem in problems if problem.choices is not None]
    with_answer = [] if answer_pattern is None else having_answers(problems)
    if not with_choices and not with_answer:
        raise InputError(
            f"task {task}: nothing can be measured; give solutions with choices, or an answer_pattern and answers"
        )
    engine.load(folder)
    values = []
    if with_choices:
        measured = multiple_choice(engine, task, with_choices, choices)
        values += [(metric, value, len(with_choices)) for metric, value in measured.items()]
    if with_answer and is_greedy:
        share = exact_match(engine, task, with_answer, answer_pattern, max_new_tokens)
        values.append((EXACT_MATCH, share, len(with_answer)))
    if with_answer and drawn is not None:
        shares = right_shares(drawn, with_answer, answer_pattern)
        parts = {SAMPLED_EXACT_MATCH: shares} | {half: shares[first::2] for first, half in enumerate(HALVES)}
        values += [(name, math.fsum(part) / len(part), len(part)) for name, part in parts.items() if part]
    rows = [(checkpoint, task, metric, value, n) for metric, value, n in values]
    return pl.DataFrame(rows, schema=TARGETS_SCHEMA, orient="row")


def evaluate_checkpoints(
    engine: Engine,
    checkpoints: Sequence[tuple[str, Path]],
    tasks: Sequence[Task],
    solutions: Mapping[str, Sequence[Problem]],
    options: ExtractionOptions,
    generate: Collection[str],
    parts_dir: Path,
    target: Target | None = None,
    *,
    code: str,
) -> Walk:
    """`evaluate` each (checkpoint, folder) over each task, into files of `parts_dir` that are kept as `extract`'s are.

    Exact match, which needs generation, is measured only for the checkpoints in `generate`; `target` says whether texts
    are drawn, and whether greedy ones are written. `code`: a fingerprint of the code that measures. The walk is run by
    `sweep.side_by_side`.
    """
    target = target or Target()
    problems = {task.name: once_each(solutions[task.name]) for task in tasks}
    texts = {name: choice_texts(name, found) for name, found in problems.items()}
    choices = TokenizedTexts(texts, **options.reading())
    by_name, names = {task.name: task for task in tasks}, [name for name, _ in checkpoints]

    def measure(checkpoint: str, folder: Path, to_measure: Sequence[str]) -> Iterator[pl.DataFrame]:
        choices.begin(engine, folder, to_measure)
        engine.load(folder)
        tell_work(engine, choices, to_measure, len(names) - names.index(checkpoint))
        tokenized = choices.for_engine(engine, to_measure)
        patterns = {name: by_name[name].answer_pattern if checkpoint in generate else None for name in to_measure}
        drawn = {}
        if target.sampling:
            asked = [by_name[name] for name in to_measure if patterns[name] is not None]
            drawn = draw_texts(engine, asked, problems, target.sampling)
        for name, tokens in tokenized.items():
            settings = patterns[name], by_name[name].max_new_tokens, tokens, drawn.get(name), target.decodes_greedily
            yield evaluate(engine, checkpoint, folder, name, problems[name], *settings)

    # Choices have no tail, and the settings of generation count only for a checkpoint that generates.
    tail = {"tail_tokens", "tail_bytes"}
    reading = {key: value for key, value in options.that_change_results().items() if key not in tail}
    fingerprints = {name: fingerprint(found, reading) for name, found in problems.items()}
    drawing = [target.sampling, target.decodes_greedily] if target.sampling else []
    generated = {
        task.name: fingerprint(fingerprints[task.name], task.answer_pattern, task.max_new_tokens, *drawing)
        for task in tasks
        if task.answer_pattern is not None
    }
    made_from = {name: fingerprints | (generated if name in generate else {}) for name, _ in checkpoints}
    return walk(checkpoints, made_from, measure, parts_dir, code=code)


def multiple_choice(
    engine: Engine, task: str, solutions: Sequence[Problem], choices: Sequence[ScoredSequence] | None = None
) -> dict[str, float]:
    """Accuracy and log-likelihood of the correct choice. A choice's score: its log-probability after the prompt.

    A problem whose best score is shared by k choices, the correct one among them, counts 1/k. The log-likelihood is the
    mean over problems of log softmax over the scores of the problem's choices, at the correct one.
    """
    if choices is None:
        choices = tokenize(choice_texts(task, solutions), engine.tokenizer, engine.context)
    sums = iter(_log_probabilities(engine, choices))
    hits, log_likelihoods = [], []
    for solution in solutions:
        scores = np.array([next(sums) for _ in solution.choices])
        correct, largest = scores[solution.correct_choice], scores.max()
        hits.append((correct == largest) / np.count_nonzero(scores == largest))
        log_likelihoods.append(correct - largest - np.log(np.exp(scores - largest).sum()))
    return {
        MULTIPLE_CHOICE_ACCURACY: math.fsum(hits) / len(hits),
        CHOICE_LOG_LIKELIHOOD: math.fsum(log_likelihoods) / len(hits),
    }


def choice_texts(task: str, solutions: Sequence[Problem]) -> list[tuple[str, str, str]]:
    """(key, prompt, choice) of every choice of every problem, in order, as `solutions.tokenize` takes them."""
    return [
        (f"{task}/{solution.id}, choice {number}", solution.prompt, choice)
        for solution in solutions
        for number, choice in enumerate(solution.choices or [], start=1)
    ]


def _log_probabilities(engine: Engine, sequences: Sequence[ScoredSequence]) -> list[float]:
    """Log-probability (nats) of the scored tokens of every text, in order; a long text has several sequences."""
    stats = engine.token_stats(sequences)
    return stats.group_by("key", maintain_order=True).agg(pl.col("logprob").cast(pl.Float64).sum())["logprob"].to_list()


def exact_match(
    engine: Engine, task: str, solutions: Sequence[Problem], answer_pattern: str, max_new_tokens: int
) -> float:
    """Share of problems with group 1 of the pattern's first match in the greedy continuation equal to the answer.

    White space around either does not count.
    """
    texts = engine.generate([solution.prompt for solution in solutions], max_new_tokens)
    return sum(right_shares([[text] for text in texts], solutions, answer_pattern)) / len(texts)


def having_answers(problems: Sequence[Problem]) -> list[Problem]:
    """Those whose texts can be judged."""
    return [problem for problem in problems if problem.answer is not None]


def draw_texts(
    engine: Engine, tasks: Sequence[Task], problems: Mapping[str, Sequence[Problem]], sampling: Sampling
) -> dict[str, list[list[str]]]:
    """Name of each task -> `sampling.samples` texts of the loaded model for each of its `problems` with an answer.

    Each text has a seed of its own, made from `sampling.seed`, the task, the problem and the number of the text: what
    is drawn does not depend on what else is. The prompts of all tasks of one `max_new_tokens` go to the engine in one
    call, because prompts of one length share a batch.
    """
    asked = {task.name: having_answers(problems[task.name]) for task in tasks}
    found: dict[str, list[list[str]]] = {name: [[] for _ in those] for name, those in asked.items()}
    for limit in dict.fromkeys(task.max_new_tokens for task in tasks):
        draws = [
            (task.name, place, problem.prompt, draw_seed(sampling.seed, task.name, problem.problem_id, number))
            for task in tasks
            for place, problem in enumerate(asked[task.name])
            for number in range(sampling.samples)
            if task.max_new_tokens == limit
        ]
        prompts, seeds = [prompt for _, _, prompt, _ in draws], [seed for *_, seed in draws]
        for (name, place, _, _), written in zip(draws, engine.sample(prompts, sampling.options(limit), seeds)):
            found[name][place].append(written.text)
    return found


def right_shares(texts: Sequence[Sequence[str]], problems: Sequence[Problem], answer_pattern: str) -> list[float]:
    """Of each problem: the share of its texts with group 1 of the pattern's first match equal to the answer."""
    pattern, shares = re.compile(answer_pattern), []
    for said, problem in zip(texts, problems, strict=True):
        found = [first_groups(pattern, text)[:1] for text in said]
        hits = [any((group or "").strip() == problem.answer.strip() for group in groups) for groups in found]
        shares.append(sum(hits) / len(hits))
    return shares
