"""Post-training: losses against closed forms, sampling that padding does not change, recipes that resume and say."""

import math
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import polars as pl
import pytest
import torch
from proxycast.config.post_training_options import RECIPES, PostTraining
from proxycast.config.training import CONTEXT, Size
from proxycast.options import InputError
from proxycast.solutions.rows import write_solutions
from proxycast.tables import read_json, write_json
from proxycast.training.miniature.leaks import count_leaked_questions, holding_questions
from proxycast.training.miniature.post_training import policy_gradient, post_train, preferences
from proxycast.training.miniature.post_training.course import Course, taught_documents
from proxycast.training.miniature.post_training.fine_tuning import Descent, fine_tune, shuffled_batches
from proxycast.training.miniature.post_training.objectives import (
    group_advantages,
    policy_loss,
    preference_loss,
    supervised_loss,
    written_log_probs,
)
from proxycast.training.miniature.post_training.post_train import RECORD, load_model, save_model, table_of_recipes
from proxycast.training.miniature.post_training.preferences import sample_pairs
from proxycast.training.miniature.post_training.teacher import write_as_teacher
from proxycast.training.miniature.post_training.text_sampling import sample_solutions
from proxycast.training.miniature.post_training.worked_solutions import (
    Document,
    Example,
    SolutionTokens,
    benchmark_texts,
    documents_of,
    is_right,
    is_worked_out,
    padded,
    prompt_of,
    training_problems,
)
from proxycast.training.miniature.step_problems import STEP_FAMILIES, STYLES, draw_steps, step_benchmark
from proxycast.training.miniature.suite_tokenizer import save_tokenizer, train_tokenizer
from proxycast.training.miniature.train_corpus import ARCHITECTURES
from proxycast.weights.model_folder import check_folder, new_checkpoint
from pydantic import ValidationError
from safetensors.torch import load_file
from scipy.special import log_softmax

VOCABULARY = 320
FAMILIES = ("rooms", "dial")
BASE = "mine-small-seed0"
FEW = {
    "teacher": BASE,
    "batch": 4,
    "sft": {"documents": 12, "steps": 3},
    "sft_styles": {"documents": 12, "steps": 2},
    "distillation": {"questions": 4, "samples": 2, "steps": 2},
    "rl": {"steps": 2, "questions": 2, "samples": 3},
    "dpo": {"questions": 4, "samples": 2, "steps": 2},
    "overtrained_mild": {"documents": 4, "steps": 2},
    "overtrained_strong": {"documents": 2, "steps": 2},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """An untrained base of each architecture."""
    folder = tmp_path_factory.mktemp("bases")
    texts = [prompt + solution for prompt, solution in documents_of(training_problems(FAMILIES, 200, 0), STYLES)]
    save_tokenizer(train_tokenizer(texts, VOCABULARY), folder / "tokenizer")
    found = {}
    for name, architecture in ARCHITECTURES.items():
        size = Size(hidden_size=32, layers=2, intermediate_size=64, steps=1, architecture=name)
        found[name] = folder / name / "step1"
        with new_checkpoint(found[name], folder / "tokenizer", name) as temporary:
            architecture.save_folder(architecture.initialise(size, VOCABULARY, seed=1), size, temporary)
    return found


@pytest.fixture
def course(bases) -> Course:
    options = PostTraining(**FEW)
    return Course(BASE, bases["llama"], options, FAMILIES, ("no such question",), seed=0, code="code")


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    return {recipe: tmp_path / "models" / f"mine-small-{recipe}-seed0" / "step1" for recipe in RECIPES}


def with_options(course: Course, recipe: str, **changes) -> Course:
    options = getattr(course.options, recipe).model_copy(update=changes)
    return replace(course, options=course.options.model_copy(update={recipe: options}))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != RECORD  # it tells the seconds
    }


# What is read


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_those_of_the_whole_text(bases, architecture):
    """A document of a corpus is one text: its tokens, in the same places, are what a solution must continue."""
    tokens = SolutionTokens(bases[architecture])
    documents = documents_of(training_problems(FAMILIES, 20, 1), STYLES)
    for document, example in zip(documents, tokens.examples(documents), strict=True):
        whole = tokens.prompts([document.prompt + document.solution])[0]
        assert [*example.prompt, *example.written] == [*whole, tokens.end]
        assert tokens.text(example.written) == document.solution


def test_problems_are_of_the_training_side_and_of_all_families():
    problems = training_problems(FAMILIES, 40, "seed")
    assert [problem.family for problem in problems] == [*FAMILIES] * 20
    for problem in problems:
        family = STEP_FAMILIES[problem.family]
        assert problem.question in set(map(family.question, family.cores(held_out=False)))
    assert problems == training_problems(FAMILIES, 40, "seed") != training_problems(FAMILIES, 40, "other")
    styles = [
        [style for style in STYLES if problem.solutions[style] == document.solution]
        for problem, document in zip(problems, documents_of(problems, STYLES), strict=True)
    ]
    assert {(problem.family, *style) for problem, style in zip(problems, styles)} == set(product(FAMILIES, STYLES))


def test_a_text_beyond_the_context_is_an_error(bases):
    with pytest.raises(InputError, match=f"the models read {CONTEXT}"):
        SolutionTokens(bases["llama"]).examples([Document("Q: a\nA:", " b" * CONTEXT)])


# The losses


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_what_was_written_counts_and_padding_changes_nothing(bases, architecture):
    """Against the log-softmax of scipy over the logits of each text alone."""
    tokens, model = SolutionTokens(bases[architecture]), load_model(bases[architecture])
    examples = tokens.examples(documents_of(training_problems(FAMILIES, 5, 2), STYLES))
    batch = padded(examples, tokens.end)
    found = written_log_probs(model, batch, temperature=0.7)
    expected = []
    for example in examples:
        ids = [*example.prompt, *example.written]
        with torch.no_grad():
            table = log_softmax(model(torch.tensor([ids])).logits[0].numpy() / 0.7, axis=1)
        expected.append([table[place - 1, ids[place]] for place in range(len(example.prompt), len(ids))])
    assert found.sum(dim=1).tolist() == pytest.approx([sum(row) for row in expected], abs=2e-3)
    every = [value for row in expected for value in row]
    assert supervised_loss(found, batch).item() == pytest.approx(-sum(every) / len(every), abs=1e-4)


def test_advantages_are_standard_scores_of_each_group():
    found = group_advantages(torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]]))
    third = math.sqrt(3)
    expected = [[third, -1 / third, -1 / third, -1 / third], [0] * 4, [0] * 4, [1, -1, 1, -1]]
    assert found.tolist() == [pytest.approx(row) for row in expected]


def test_the_policy_gradient_is_that_of_the_expected_reward():
    """For one token, all samples of a question drawn: d/d logit = p (r - mean) / sd, by enumeration."""
    logits = torch.tensor([0.3, -0.2, 0.9], requires_grad=True)
    rewards = torch.tensor([1.0, 0.0, 1.0])
    batch = padded([Example([0], [token]) for token in range(3)], 0)
    log_probs = logits.log_softmax(0)[:, None]
    advantages = group_advantages(rewards[None])[0]
    policy_loss(log_probs, batch, advantages, samples=3).backward()
    probabilities = logits.detach().softmax(0)
    mean, sd = 2 / 3, math.sqrt(2) / 3
    scores = [(r - mean) / sd for r in rewards.tolist()]
    expected = [-(scores[k] - probabilities[k].item() * sum(scores)) / 3 for k in range(3)]
    assert logits.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_policy_loss_weighs_each_text_by_its_own_length():
    batch = padded([Example([5], [1, 2, 3]), Example([5, 5], [4])], 0)
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [0.0, -4.0, 0.0]])
    found = policy_loss(log_probs, batch, torch.tensor([0.5, -1.0]), samples=4)
    assert found.item() == pytest.approx(-(0.5 * -2 + -1.0 * -4) / 4)


def test_the_preference_loss_is_that_of_rafailov():
    right, wrong, right_before, wrong_before = (
        torch.tensor(v) for v in ([-1.0, -3], [-2.0, -1], [-1.5, -2], [-1.0, -2])
    )
    margins = [0.2 * ((-1 + 1.5) - (-2 + 1)), 0.2 * ((-3 + 2) - (-1 + 2))]
    expected = sum(math.log(1 + math.exp(-margin)) for margin in margins) / 2
    assert preference_loss(right, wrong, right_before, wrong_before, 0.2).item() == pytest.approx(expected)
    assert preference_loss(right, wrong, right, wrong, 0.2).item() == pytest.approx(math.log(2))


def test_batches_are_epochs():
    batches = list(shuffled_batches(5, 3, 5, Random(0)))
    read = [place for batch in batches for place in batch]
    assert list(map(len, batches)) == [3] * 5 and all(sorted(read[n : n + 5]) == list(range(5)) for n in (0, 5, 10))


# What a model writes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_are_drawn_from_the_model_whatever_is_beside_them(bases, architecture):
    """At a low temperature: the likeliest tokens, as a loop without cache and padding finds them."""
    tokens, model = SolutionTokens(bases[architecture]), load_model(bases[architecture])
    tokens.ends = tokens._stops = frozenset()  # an untrained model writes anything
    prompts = tokens.prompts(["Q: rooms a > <\nA:", "Q:", "Q: dial 3 + + * and more\nA:"])
    found = sample_solutions(model, prompts, 1e-4, 6, tokens, seed=0)
    for prompt, written in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        assert written == ids[len(prompt) :]


def test_samples_have_the_model_s_probabilities(bases):
    tokens, model = SolutionTokens(bases["llama"]), load_model(bases["llama"])
    tokens.ends = tokens._stops = frozenset()
    [prompt] = tokens.prompts(["Q: dial 3 + + *\nA:"])
    drawn = sample_solutions(model, [prompt] * 2000, 0.05, 1, tokens, seed=3)
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=VOCABULARY)
    with torch.no_grad():
        expected = 2000 * (model(torch.tensor([prompt])).logits[0, -1] / 0.05).softmax(0)
    assert (counts - expected).abs().max() < 5 * math.sqrt(500)
    assert drawn == sample_solutions(model, [prompt] * 2000, 0.05, 1, tokens, seed=3)
    assert drawn != sample_solutions(model, [prompt] * 2000, 0.05, 1, tokens, seed=4)


def test_a_solution_ends_at_its_first_sentence(bases):
    tokens = SolutionTokens(bases["llama"])
    [[*ids, end]] = [example.written for example in tokens.examples([Document("Q:", " 3 4. Q: b")])]
    stop = next(place for place, token in enumerate(ids, 1) if tokens.text([token]) == ".")
    assert tokens.text(tokens.first_sentence([*ids, end])) == " 3 4."
    assert tokens.first_sentence([*ids[:stop], end, 7]) == [*ids[:stop], end]
    assert tokens.first_sentence(ids[: stop - 1]) == ids[: stop - 1]


# The recipes


def test_every_recipe_is_a_whole_folder_and_comes_out_the_same(course, folders, tmp_path):
    course = replace(course, taught=tuple(documents_of(training_problems(FAMILIES, 6, 9))))
    manifest = post_train.post_train(course, folders)
    assert list(manifest) == [f"mine-small-{recipe}-seed0/step1" for recipe in RECIPES]
    for folder in folders.values():
        check_folder(folder)
        assert (folder / "config.json").read_bytes() == (course.folder / "config.json").read_bytes()
        load_model(folder)
    weights = {recipe: (folder / "model.safetensors").read_bytes() for recipe, folder in folders.items()}
    learned = [recipe for recipe in RECIPES if not read_json(folders[recipe] / RECORD)["note"]]
    assert set(RECIPES) - set(learned) <= {"rl"}  # an untrained model is rarely right
    assert len({weights[recipe] for recipe in learned}) == len(learned)
    again = {recipe: tmp_path / "again" / folder.parent.name / "step1" for recipe, folder in folders.items()}
    assert post_train.post_train(course, again) == manifest
    assert contents(tmp_path / "models") == contents(tmp_path / "again")
    write_json(manifest, tmp_path / "post_trained" / f"{BASE}.json")
    table = table_of_recipes([tmp_path / "post_trained" / f"{BASE}.json"])
    assert table["recipe"].to_list() == list(RECIPES) and set(table["leaked_questions"]) == {0}
    starts = dict(table.select("recipe", "starting_point").iter_rows())
    assert starts["sft"] == starts["distillation"] == "llama" and starts["rl"] == "mine-small-sft-seed0"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_is_saved_as_its_base_was(bases, architecture, tmp_path):
    """transformers renames the head of GPT-NeoX as it reads and writes."""
    folder = tmp_path / "saved"
    save_model(load_model(bases[architecture]), bases[architecture], folder)
    (weights,) = bases[architecture].glob("*.safetensors")
    before, after = load_file(weights), load_file(folder / weights.name)
    assert before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (folder / "config.json").read_bytes() == (bases[architecture] / "config.json").read_bytes()


def test_an_answer_by_the_wrong_way_is_no_solution_and_a_solution_is_a_leak(bases, tmp_path):
    problem = draw_steps(Random(0), STEP_FAMILIES["rooms"])
    right = problem.solutions["short"]
    elsewhere = right.replace(right.split()[0], "q", 1)  # from another start to the same answer
    assert is_right(problem, right) and is_right(problem, elsewhere)
    assert is_worked_out(problem, right) and not is_worked_out(problem, elsewhere)
    write_solutions(step_benchmark(STEP_FAMILIES["rooms"], 2, seed=0), tmp_path / "rooms.jsonl")
    texts = benchmark_texts([tmp_path / "rooms.jsonl"])
    assert len(texts) == 6  # two questions, each with two solutions
    held_out = step_benchmark(STEP_FAMILIES["rooms"], 2, seed=0)[1].solution
    assert holding_questions([f"Q: another\nA:{held_out}", f"Q: another\nA:{right}"], texts) == [True, False]


def test_a_killed_job_resumes(course, folders, monkeypatch):
    few = {recipe: folders[recipe] for recipe in ("sft", "dpo", "overtrained_mild")}
    made = []
    trainers = {
        recipe: lambda *given, recipe=recipe, trainer=trainer: made.append(recipe) or trainer(*given)
        for recipe, trainer in post_train.TRAINERS.items()
    }
    monkeypatch.setattr(post_train, "TRAINERS", trainers)

    def makes(course: Course) -> list[str]:
        made.clear()
        post_train.post_train(course, few)
        return list(made)

    assert makes(course) == ["sft", "dpo", "overtrained_mild"] and makes(course) == []
    (folders["dpo"] / RECORD).write_text("{")
    assert makes(course) == ["dpo"]
    assert makes(with_options(course, "dpo", beta=0.3)) == ["dpo"]
    assert makes(replace(course, seed=1)) == makes(replace(course, code="other")) == [*few]
    assert makes(course) == [*few]
    shutil.rmtree(folders["sft"])
    assert makes(course) == ["sft"]  # its weights are as before, and so are those of what starts from it
    assert makes(with_options(course, "sft", steps=1)) == [*few]


def test_the_loss_on_worked_solutions_goes_down(bases):
    tokens, model = SolutionTokens(bases["gpt2"]), load_model(bases["gpt2"])
    examples = tokens.examples(documents_of(training_problems(FAMILIES, 8, 0)))
    descent = Descent(model, 30, 3e-3, "run sft")
    first, last = fine_tune(descent, examples, 8, tokens.end, Random(0), lambda: None)
    assert last < first - 1


def test_right_samples_become_likelier(bases, monkeypatch):
    """A reward that an untrained model can win: of two tokens the first begins with a letter."""
    tokens, model = SolutionTokens(bases["llama"]), load_model(bases["llama"])
    tokens.longest = lambda problems: 2
    monkeypatch.setattr(policy_gradient, "is_right", lambda problem, text: text[:1].isalpha())
    options = PostTraining(**FEW).rl.model_copy(update={"steps": 30, "questions": 4, "samples": 8})
    problems = training_problems(FAMILIES, 120, 0)
    descent = Descent(model, 30, 2e-2, "run rl")
    found = policy_gradient.follow_rewards(descent, problems, tokens, options, (), 0, lambda: None)
    assert found.reward_last > found.reward_first + 0.3 and found.differing_share > 0.5


def test_a_reward_that_is_always_zero_teaches_nothing_and_is_told(course, folders, monkeypatch, caplog):
    monkeypatch.setattr(policy_gradient, "is_right", lambda problem, text: False)
    post_train.post_train(course, {recipe: folders[recipe] for recipe in ("sft", "rl")})
    record = read_json(folders["rl"] / RECORD)
    assert record["note"] == "every sample is wrong" and record["reward_last"] == record["differing_share"] == 0
    assert (folders["rl"] / "model.safetensors").read_bytes() == (folders["sft"] / "model.safetensors").read_bytes()
    assert "rl has nothing to learn (every sample is wrong)" in caplog.text


def test_pairs_are_right_and_wrong_samples_of_one_question(bases, monkeypatch):
    tokens, model = SolutionTokens(bases["llama"]), load_model(bases["llama"])
    problems = training_problems(FAMILIES, 3, 0)
    options = PostTraining(**FEW).dpo
    own = [example.written for example in tokens.examples(documents_of(problems))]
    said = iter([own[0], [5], [6], [7], own[2], own[2]])  # one right, none, both
    monkeypatch.setattr(preferences, "sample_solutions", lambda *_: list(said))
    found = sample_pairs(model, problems, tokens, options, (), 0)
    assert [(pair.right.written, pair.wrong.written) for pair in found.pairs] == [(own[0], [5]), (own[1], [6])]
    assert found.right_share == 0.5 and found.differing_share == pytest.approx(1 / 3)


@pytest.mark.parametrize(("rate", "said"), [(1e9, "sft diverged"), (30.0, "sft diverged: found a loss of")])
def test_a_recipe_that_diverges_is_named(course, folders, rate, said):
    course = with_options(course, "sft", learning_rate=rate, steps=40)
    with pytest.raises(InputError, match=said) as caught:
        post_train.post_train(course, {"sft": folders["sft"]})
    assert str(caught.value).startswith(BASE) and "lower miniature.post_training.sft.learning_rate" in str(caught.value)
    assert not folders["sft"].exists()


def test_weights_and_losses_that_are_not_finite_are_found(bases):
    model = load_model(bases["llama"])
    descent = Descent(model, 5, 1e-3, "run dpo")
    with pytest.raises(InputError, match="run: the recipe dpo diverged: found the loss nan at step 1 of 5"):
        descent.step(torch.tensor(math.nan))
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.inf
    with pytest.raises(InputError, match="weights that are not finite"):
        descent.end()


def test_what_the_teacher_writes_is_verified(course, folders, monkeypatch):
    post_train.post_train(course, {"sft_styles": folders["sft_styles"]})
    table = write_as_teacher(course, folders["sft_styles"])
    assert len(table) == 8 and table["question"].n_unique() <= 4
    assert table.equals(write_as_teacher(course, folders["sft_styles"]))
    problems = {prompt_of(p): p for p in training_problems(FAMILIES, 4, "0 distillation")}
    for row in table.iter_rows(named=True):
        assert row["verified"] == (row["finished"] and is_right(problems[row["prompt"]], row["solution"]))
    known = table.with_columns(verified=pl.Series([True, True, False] + [False] * 5), solution=pl.lit(" a."))
    assert taught_documents(known) == (Document(table["prompt"][0], " a."),)


def test_a_distillation_without_right_solutions_is_the_base(course, folders):
    post_train.post_train(course, {"distillation": folders["distillation"]})
    assert read_json(folders["distillation"] / RECORD)["note"] == "the teacher has no solution right"
    same = [(folder / "model.safetensors").read_bytes() for folder in (course.folder, folders["distillation"])]
    assert same[0] == same[1]


# The split


def test_a_document_that_holds_a_benchmark_question_stops_the_job(course, folders):
    asked = training_problems(FAMILIES, 12, "0 fine-tuning")[3].question
    with pytest.raises(InputError, match="1 of 2 benchmark questions and solutions stand verbatim in what the"):
        post_train.post_train(replace(course, questions=(asked.upper(), "no such question")), {"sft": folders["sft"]})


def test_samples_that_hold_one_by_chance_teach_nothing(bases, monkeypatch):
    texts = ["Q: a\nA: rooms a > <.", "Q: a\nA: b.", "rooms a >  <"]
    assert holding_questions(texts, ["rooms a > <"]) == [True, False, True]
    assert count_leaked_questions(texts, ["rooms a > <", "rooms b"]) == 1
    tokens, model = SolutionTokens(bases["llama"]), load_model(bases["llama"])
    problems = training_problems(FAMILIES, 2, 0)
    options = PostTraining(**FEW).rl.model_copy(update={"steps": 1})
    right = {
        problem.question: example.written for problem, example in zip(problems, tokens.examples(documents_of(problems)))
    }
    leak = tokens.examples([Document("", " dial 1 + + +.")])[0].written
    drawn = [row for problem in problems for row in (right[problem.question], [9], leak)]
    monkeypatch.setattr(policy_gradient, "sample_solutions", lambda *_: drawn)
    seen = []
    monkeypatch.setattr(policy_gradient, "padded", lambda examples, end: seen.extend(examples) or padded(examples, end))
    descent = Descent(model, 1, 1e-3, "run rl")
    found = policy_gradient.follow_rewards(descent, problems, tokens, options, ["dial 1 + + +"], 0, lambda: None)
    assert found.dropped == 2 and len(found.texts) == 4 and leak not in [example.written for example in seen]
    assert len(seen) == 4


# The options


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"recipes": ["rl"]}, "rl needs sft"),
        ({"recipes": ["sft", "distillation"], "teacher": "a"}, "distillation needs sft_styles"),
        ({"recipes": ["sft", "sft"]}, "twice"),
        ({}, "teacher: found None"),
        ({"recipes": ["sft"], "teacher": "a"}, "teacher: found a"),
        ({"recipes": ["ppo"]}, "ppo"),
        ({"recipes": ["sft"], "sft": {"beta": 1}}, "beta"),
    ],
)
def test_options_that_make_no_sense_are_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        PostTraining(**values)


def test_recipes_are_made_after_those_that_they_start_from():
    assert PostTraining(recipes=["dpo", "overtrained_mild", "sft"]).in_order == ("sft", "dpo", "overtrained_mild")
