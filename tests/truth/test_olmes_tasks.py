"""The ten OLMES tasks: a row as each data set has it, and the exact texts that a model reads of it."""

import re
from fnmatch import fnmatch
from pathlib import Path

import polars as pl
import pytest
import yaml
from proxycast.config.tasks import Rows
from proxycast.options import InputError
from proxycast.solutions.templates import render_solutions

FOLDER = Path("config/tasks/olmes")
LETTERS = ["A", "B", "C", "D", "E"]


def lettered(*texts):
    return {"text": list(texts), "label": LETTERS[: len(texts)]}


# For each task: the name of a file on the hub, a row, the prompt, the continuations and which is right.
EXAMPLES = {
    "arc_challenge": (
        "ARC-Challenge/test-00000-of-00001.parquet",
        {
            "id": "Mercury_1",
            "question": "What makes a shadow grow in the evening?",
            "choices": {"text": ["a lower sun", "a colder wind", "a fuller moon"], "label": ["1", "2", "3"]},
            "answerKey": "1",
        },
        "Question: What makes a shadow grow in the evening?\nAnswer:",
        [" a lower sun", " a colder wind", " a fuller moon"],
        0,
    ),
    "arc_easy": (
        "ARC-Easy/test-00000-of-00001.parquet",
        {
            "id": "Mercury_SC_2",
            "question": "Ice that gets warm will",
            "choices": lettered("melt.", "boil.", "burn.", "grow."),
            "answerKey": "A",
        },
        "Question: Ice that gets warm will\nAnswer:",
        [" melt.", " boil.", " burn.", " grow."],
        0,
    ),
    "boolq": (
        "boolq/validation/0000.parquet",
        {
            "question": "is a tomato a fruit",
            "passage": "Tomato -- The tomato is a plant whose fruit is a berry.",
            "idx": 0,
            "label": 1,
        },
        "Tomato -- The tomato is a plant whose fruit is a berry.\nQuestion: is a tomato a fruit?\nAnswer:",
        [" yes", " no"],
        0,
    ),
    "csqa": (
        "data/validation-00000-of-00001.parquet",
        {
            "id": "1afa02df02c908a558b4036e80242fac",
            "question": "Where would one keep a boat when nobody sails it?",
            "question_concept": "boat",
            "choices": lettered("harbour", "sky", "drawer", "oven", "pocket"),
            "answerKey": "A",
        },
        "Question: Where would one keep a boat when nobody sails it?\nAnswer:",
        [" harbour", " sky", " drawer", " oven", " pocket"],
        0,
    ),
    "hellaswag": (
        "data/validation-00000-of-00001.parquet",
        {
            "ind": 24,
            "activity_label": "Home and Garden",
            "ctx_a": "[header] How to water a plant [title] Fill the can. [step] Use water. [substeps] Not too much.",
            "ctx_b": "the Can",
            "ctx": "",
            "endings": ["is full. [title] Pour it.", "sings  a song.", "[step] flies.", "is   blue."],
            "source_id": "wikihow~1",
            "split": "val",
            "split_type": "indomain",
            "label": "3",
        },
        "Home and Garden: How to water a plant. Fill the can. Use water. Not too much. The can",
        [" is full. Pour it.", " sings a song.", "  flies.", " is  blue."],
        3,
    ),
    "mmlu": (
        "all/test-00000-of-00001.parquet",
        {
            "question": "Which bone is in the upper arm? ",
            "subject": "clinical_knowledge",
            "choices": ["The femur", "The tibia", "The humerus", "The ulna"],
            "answer": 2,
        },
        "The following are multiple choice questions (with answers) about clinical knowledge.\n\n"
        "Question: Which bone is in the upper arm?\nAnswer:",
        [" The femur", " The tibia", " The humerus", " The ulna"],
        2,
    ),
    "openbookqa": (
        "main/test-00000-of-00001.parquet",
        {
            "id": "8-376",
            "question_stem": "A magnet pulls",
            "choices": lettered("wood", "iron", "glass", "paper"),
            "answerKey": "B ",
        },
        "Question: A magnet pulls\nAnswer:",
        [" wood", " iron", " glass", " paper"],
        1,
    ),
    "piqa": (
        "plain_text/validation/0000.parquet",
        {"goal": "To dry a wet shoe,", "sol1": "fill it with water.", "sol2": "fill it with newspaper.", "label": 1},
        "Goal: To dry a wet shoe,\nAnswer:",
        [" fill it with water.", " fill it with newspaper."],
        1,
    ),
    "socialiqa": (
        "default/validation/0000.parquet",
        {
            "context": "Kai lent Ash his bicycle.",
            "question": "How would Ash feel afterwards?",
            "answerA": "angry",
            "answerB": "hungry",
            "answerC": "grateful",
            "label": "3",
        },
        "Question: Kai lent Ash his bicycle. How would Ash feel afterwards?\nAnswer:",
        [" angry", " hungry", " grateful"],
        2,
    ),
    "winogrande": (
        "winogrande_xl/validation-00000-of-00001.parquet",
        {
            "sentence": "The trophy did not fit the case because the _ was too big.",
            "option1": "trophy",
            "option2": "case",
            "answer": "1",
        },
        "The trophy did not fit the case because the",
        [" trophy was too big.", " case was too big."],
        0,
    ),
}

# A row of the same data set that has no label, as in its test split or where a label was lost.
UNLABELLED = {"boolq": {"label": -1}, "hellaswag": {"label": ""}, "mmlu": {"answer": -1}, "piqa": {"label": -1}}
UNLABELLED |= {"socialiqa": {"label": ""}, "winogrande": {"answer": ""}}

# Sizes of the splits; OLMES draws 1000 where there are more than 1500, but not for MMLU.
SPLIT = {"arc_challenge": 1172, "arc_easy": 2376, "boolq": 3270, "csqa": 1221, "hellaswag": 10042, "mmlu": None}
SPLIT |= {"openbookqa": 500, "piqa": 1838, "socialiqa": 1954, "winogrande": 1267}


def settings(task):
    return yaml.safe_load((FOLDER / f"{task}.yaml").read_text())


def render(task, tmp_path, *rows):
    path = tmp_path / "rows.parquet"
    pl.DataFrame(rows).write_parquet(path)
    return render_solutions([path], Rows.model_validate(settings(task)["rows"]), task)


def test_there_are_ten():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(EXAMPLES)


@pytest.mark.parametrize("task", EXAMPLES)
def test_a_row_becomes_the_text_of_olmes(task, tmp_path):
    _, row, prompt, choices, right = EXAMPLES[task]
    (solution,) = render(task, tmp_path, row)
    assert solution.prompt == prompt
    assert list(solution.choices) == choices
    assert solution.solution == choices[right] and solution.correct_choice == right


@pytest.mark.parametrize("task", EXAMPLES)
def test_a_file_names_itself_its_split_and_draw(task):
    found = settings(task)
    assert found["name"] == task and "zero-shot" in found["description"]
    rows = Rows.model_validate(found["rows"])
    name = EXAMPLES[task][0]
    assert rows.matches(name) and not rows.matches(re.sub("test|validation", "train", name))
    drawn = (1000, 1234) if (SPLIT[task] or 0) > 1500 else (None, 0)
    assert (rows.sample, rows.seed) == drawn
    assert ("convert" in rows.revision) == fnmatch(name, "*/0000.parquet")


@pytest.mark.parametrize("task", EXAMPLES)
def test_a_row_without_a_label_is_an_error(task, tmp_path):
    row = EXAMPLES[task][1]
    with pytest.raises(InputError, match=rf"^{task}: .*rows.parquet, row 2: gold: .*rows without a label"):
        render(task, tmp_path, row, row | UNLABELLED.get(task, {"answerKey": ""}))


@pytest.mark.parametrize(
    "sentence, prompt, choices",
    [
        ("_ was late.", "", ["Ann was late.", "Bea was late."]),
        ('He said: "_ is late."', 'He said: "', ['Ann is late."', 'Bea is late."']),
        ("He met _'s aunt_.", "He met", [" Ann's aunt_.", " Bea's aunt_."]),
    ],
)
def test_winogrande_keeps_the_sentence_as_it_is(tmp_path, sentence, prompt, choices):
    row = {"sentence": sentence, "option1": "Ann", "option2": "Bea", "answer": "2"}
    (solution,) = render("winogrande", tmp_path, row)
    assert (solution.prompt, list(solution.choices), solution.correct_choice) == (prompt, choices, 1)
