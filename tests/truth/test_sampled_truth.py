"""The sampled exact match against a count by hand; seeds, fingerprints, and what a study must say to have it."""

import re
from itertools import product

import polars as pl
import pytest
from conftest import finished
from proxycast.config.errors import parse
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.tasks import Task
from proxycast.config.truth import Sampling, Target
from proxycast.extraction.engines.base import draw_seed
from proxycast.extraction.engines.factory import make_engine
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.options import InputError
from proxycast.solutions.rows import Problem
from proxycast.study.checks import check_measurable
from proxycast.truth.measurement import draw_texts, evaluate_checkpoints
from proxycast.weights.tokenizer import Written

OPTIONS = ExtractionOptions(device="cpu", batch_tokens=400)
PATTERN = r"is (\d)\."
TASKS = [
    Task(name=name, solutions="unused", answer_pattern=PATTERN, max_new_tokens=limit)
    for name, limit in (("sums", 6), ("codes", 9), ("more_sums", 6))
]
PROBLEMS = {
    task.name: [
        Problem(id=f"p{i}", prompt=f"Q: {task.name} {'and ' * (i % 3)}{i}?\nA:", answer=str(i % 3)) for i in range(7)
    ]
    for task in TASKS
}
SAMPLED = {"metric": "sampled_exact_match", "sampling": {"samples": 5, "temperature": 0.7, "seed": 3}}
TARGET = Target.model_validate(SAMPLED)


def said(prompt: str, seed: int) -> str:
    """What `Stub` writes: two answers, of which the first counts, or none."""
    first, second = (draw_seed(prompt, seed, place) % 3 for place in (1, 2))
    return "nothing" if draw_seed(prompt, seed) % 4 == 0 else f"it is {first}. No, it is {second}."


class Stub(TransformersEngine):
    """Writes what `said` says, and notes each call."""

    def __init__(self):
        super().__init__(OPTIONS)
        self.calls = []

    def sample(self, prompts, options, seeds):
        self.calls.append((len(prompts), options.temperature, options.top_p, options.max_new_tokens))
        return [Written(said(prompt, seed), True) for prompt, seed in zip(prompts, seeds, strict=True)]

    def generate(self, prompts, max_new_tokens, stop=()):
        self.calls.append("greedy")
        return ["it is 1."] * len(prompts)


@pytest.fixture
def measured(model_folder, tmp_path):
    """A function that measures checkpoints with `target`, of which only "large" generates: calls and table."""
    folder = model_folder()

    def run(target=TARGET, problems=PROBLEMS, parts="parts", names=("large",)):
        engine, folders, parts = Stub(), [(name, folder) for name in names], tmp_path / parts
        finished(evaluate_checkpoints(engine, folders, TASKS, problems, OPTIONS, ["large"], parts, target, code="code"))
        return engine.calls, pl.concat(pl.read_parquet(parts / f"{name}.parquet") for name in names)

    return run


WITH_CHOICES = {
    name: [p.model_copy(update={"choices": ("0", "1", "2")}) for p in rows] for name, rows in PROBLEMS.items()
}


def test_the_mean_of_all_drawn_texts_against_a_count(measured):
    calls, table = measured(problems=WITH_CHOICES, names=("large", "small"))
    # All prompts of one limit go to the engine together, and no greedy text is written.
    assert calls == [(2 * 7 * 5, 0.7, 1.0, 6), (7 * 5, 0.7, 1.0, 9)]
    assert set(table.filter(checkpoint="small")["metric"]) == {"multiple_choice_accuracy", "choice_log_likelihood"}
    values = []
    for task, problems in PROBLEMS.items():
        right = {}
        for problem, number in product(problems, range(5)):
            found = re.search(PATTERN, said(problem.prompt, draw_seed(3, task, problem.id, number)))
            right[problem.id, number] = found is not None and found[1] == problem.answer
        rows = table.filter(checkpoint="large", task=task)
        of = {row["metric"]: (row["value"], row["n"]) for row in rows.iter_rows(named=True)}
        assert of["sampled_exact_match"] == (pytest.approx(sum(right.values()) / 35), 7)
        for name, ids in (("odd", "0246"), ("even", "135")):
            hits = [right[f"p{i}", number] for i in ids for number in range(5)]
            assert of[f"sampled_exact_match_{name}"] == (pytest.approx(sum(hits) / len(hits)), len(ids))
        values.append(of["sampled_exact_match"][0])
    assert len(set(values)) > 1 and 0.1 < min(values) < max(values) < 0.5


def test_greedy_texts_are_written_only_if_asked_for(measured):
    both = Target.model_validate(SAMPLED | {"other_metrics": ["exact_match"]})
    greedy, drawn = (Target(metric="exact_match"), measured(both))
    assert drawn[0].count("greedy") == 3 and len(drawn[0]) == 5
    calls, alone = measured(greedy, parts="alone")
    assert calls == ["greedy"] * 3 and measured(None, parts="alone")[0] == []
    assert drawn[1].filter(metric="exact_match").equals(alone)
    assert [Target(metric=m).is_generated for m in ("exact_match", "accuracy")] == [True, False] and TARGET.is_generated
    assert [t.texts_of_problem for t in (Target(), greedy, TARGET, both)] == [1, 1, 5, 6]


def test_a_text_depends_on_seed_problem_and_number_alone(model_folder):
    """Drawn beside others, alone, with more texts a problem, and in another order of problems."""
    engine = make_engine(OPTIONS)
    engine.load(model_folder())
    sampling = Sampling(samples=3, temperature=0.9)
    together = draw_texts(engine, TASKS, PROBLEMS, sampling)
    assert [len(texts) for texts in together.values()] == [7] * 3 and together["sums"] != together["more_sums"]
    for task in TASKS:
        assert draw_texts(engine, [task], PROBLEMS, sampling) == {task.name: together[task.name]}
    more = draw_texts(engine, TASKS[1:], PROBLEMS, sampling.model_copy(update={"samples": 4}))["codes"]
    assert [texts[:3] for texts in more] == together["codes"]
    turned = draw_texts(engine, TASKS[:1], {"sums": PROBLEMS["sums"][::-1]}, sampling)["sums"]
    assert turned[::-1] == together["sums"]
    assert all(len(set(texts)) == 3 for texts in together["sums"])
    for change in ({"seed": 1}, {"temperature": 0.5}):
        other = draw_texts(engine, TASKS[:1], PROBLEMS, sampling.model_copy(update=change))["sums"]
        assert other != together["sums"]


def test_what_changes_the_texts_measures_again_and_nothing_else_does(measured):
    first = measured()[1]
    for same in ({"parameters": 9, "size": "large"}, {"other_metrics": ["multiple_choice_accuracy"]}):
        assert measured(Target.model_validate(SAMPLED | same))[0] == []
    for key, value in (("samples", 4), ("temperature", 0.8), ("seed", 4)):
        other = Target.model_validate(SAMPLED | {"sampling": SAMPLED["sampling"] | {key: value}})
        calls, _ = measured(other)
        assert [call[0] for call in calls] == [14 * other.sampling.samples, 7 * other.sampling.samples], key
    again = {"sums": PROBLEMS["sums"][:4]}
    calls, table = measured(problems=PROBLEMS | again)
    assert len(calls) == 2  # the last change is undone
    assert table.filter(task="codes").equals(first.filter(task="codes"))
    assert measured(problems=PROBLEMS | {"sums": PROBLEMS["sums"][:3]})[0] == [(3 * 5, 0.7, 1.0, 6)]


def test_without_drawing_the_fingerprints_are_as_they_were(measured):
    """A study of before keeps its results."""
    measured(None)
    assert measured(Target(metric="exact_match"))[0] == measured(Target())[0] == []


@pytest.mark.parametrize(
    "options, words",
    [
        (SAMPLED | {"sampling": {"samples": 0}}, "sampling.samples.*found 0"),
        (SAMPLED | {"sampling": {"temperature": 0}}, "sampling.temperature.*found 0"),
        (SAMPLED | {"sampling": {"temperature": -1}}, "sampling.temperature.*found -1"),
        (SAMPLED | {"sampling": {"seed": -1}}, "sampling.seed.*found -1"),
        (SAMPLED | {"sampling": {"top_p": 0.9}}, "top_p"),
        (SAMPLED | {"metric": "exact_match"}, "sampled_exact_match is not among metric and other_metrics"),
        (SAMPLED | {"table": "truth.csv"}, "sampled_exact_match comes from a table, so nothing is drawn"),
    ],
)
def test_what_a_study_must_say(options, words):
    with pytest.raises(InputError, match=words):
        parse(Target, options, "target")


def test_a_table_may_hold_sampled_scores():
    assert Target(metric="sampled_exact_match", table="truth.csv").sampling is None


def test_a_task_must_have_an_answer_pattern_and_answers():
    rows = {"sums": PROBLEMS["sums"]}
    check_measurable(TASKS[:1], rows, TARGET.metrics, draws=True)
    with pytest.raises(InputError, match="target: sampled_exact_match needs sampling: {samples: 4"):
        check_measurable(TASKS[:1], rows, TARGET.metrics)
    words = "task sums: sampled_exact_match needs an answer_pattern and answers"
    with pytest.raises(InputError, match=words):
        check_measurable([TASKS[0].model_copy(update={"answer_pattern": None})], rows, TARGET.metrics, draws=True)
    unanswered = [Problem(id="p", prompt="Q", choices=None)]
    with pytest.raises(InputError, match=words):
        check_measurable(TASKS[:1], {"sums": unanswered}, TARGET.metrics, draws=True)
