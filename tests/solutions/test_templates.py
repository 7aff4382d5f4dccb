"""Rows of data sets to expert solutions: what templates see, which rows count, and every mistake told by its place."""

import gzip
import json
import logging
import random
import subprocess
import sys

import polars as pl
import pytest
from proxycast.config.tasks import Rows
from proxycast.options import InputError
from proxycast.solutions.rows import Problem
from proxycast.solutions.templates import render_solutions
from pydantic import ValidationError

QUESTIONS = [
    {
        "key": f"q{i}",
        "question": f"{i} + 1?",
        "options": {"text": [str(i + 1), str(i), str(i + 2)], "label": ["A", "B", "C"]},
        "answer": "A",
    }
    for i in range(9)
]
CHOICES = {"prompt": "Q: {{ question }}\nA:", "choices": "options.text", "gold": "options.label.index(answer)"}
WORKED = {"solution": " {{ question }} It is {{ options.text[0] }}."}


def parquet(path, rows):
    pl.DataFrame(rows).write_parquet(path)
    return path


def render(tmp_path, rows, **keys):
    return render_solutions([parquet(tmp_path / "rows.parquet", rows)], Rows(files="unused", **keys), "t.yaml: rows")


def error(tmp_path, rows, **keys):
    with pytest.raises(InputError) as caught:
        render(tmp_path, rows, **keys)
    assert str(caught.value).startswith("t.yaml: rows: ")
    return str(caught.value)


def test_the_right_choice_is_the_solution(tmp_path):
    solutions = render(tmp_path, QUESTIONS, **CHOICES)
    assert len(solutions) == 9
    assert solutions[3].model_dump() == {
        "id": "000004",
        "prompt": "Q: 3 + 1?\nA:",
        "solution": " 4",
        "answer": None,
        "choices": (" 4", " 3", " 5"),
        "correct": None,
        "writer": None,
        "problem": None,
    }
    assert [solution.correct_choice for solution in solutions] == [0] * 9


def test_the_label_and_the_form_of_a_choice_count(tmp_path):
    rows = QUESTIONS[:1] + [QUESTIONS[1] | {"answer": "C"}]
    solutions = render(tmp_path, rows, **CHOICES, choice="\n{{ choice }} ({{ key }})\n", id="key")
    assert [solution.correct_choice for solution in solutions] == [0, 2]
    assert solutions[1].solution == "\n3 (q1)\n" and solutions[1].id == "q1"


def test_a_worked_solution_leaves_the_choices_their_answer(tmp_path):
    solution = render(tmp_path, QUESTIONS[4:5], **CHOICES, **WORKED)[0]
    assert (solution.solution, solution.answer) == (" 4 + 1? It is 5.", " 5")
    assert solution.choices == (" 5", " 4", " 6") and solution.correct_choice == 0


def test_a_worked_solution_that_is_a_wrong_choice(tmp_path):
    message = error(tmp_path, QUESTIONS, **CHOICES, solution=" {{ options.text[1] }}")
    assert "row 1: solution: found ' 0', a choice, where the right one is ' 1'" in message


def test_rows_without_a_solution_are_problems(tmp_path):
    rows = [{"q": "1+1", "a": 2}, {"q": "2+2", "a": 4}]
    templates = dict(prompt="Q: {{ q }}", answer="{{ a }}")
    found = render(tmp_path, rows, **templates)
    assert [type(problem) for problem in found] == [Problem] * 2
    assert [(problem.prompt, problem.answer) for problem in found] == [("Q: 1+1", "2"), ("Q: 2+2", "4")]
    assert render(tmp_path, rows, **templates | {"solution": ""}) == found
    (worked, _) = render(tmp_path, rows, **templates | {"solution": " is {{ a }}."})
    assert (worked.solution, worked.answer) == (" is 2.", "2")


def test_choices_without_a_solution_keep_their_right_answer(tmp_path):
    found = render(tmp_path, QUESTIONS, **CHOICES, solution="")[3]
    assert type(found) is Problem
    assert (found.choices, found.answer, found.correct_choice) == ((" 4", " 3", " 5"), " 4", 0)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "json.gz", "csv", "csv.gz"])
def test_generic_text_from_every_kind_of_file(tmp_path, kind):
    rows = [{"text": "007"}, {"text": "Two\nlines, é."}, {"text": "1.10"}]
    path = tmp_path / f"shard.0-of-1.{kind}"
    if kind == "parquet":
        parquet(path, rows)
    else:
        text = "\n".join(map(json.dumps, rows)) if "json" in kind else pl.DataFrame(rows).write_csv()
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    solutions = render_solutions([path], Rows(files="unused", solution="{{ text }}"), "t.yaml: rows")
    assert [(s.prompt, s.solution, s.choices, s.answer) for s in solutions] == [
        ("", row["text"], None, None) for row in rows
    ]


def test_a_csv_holds_text_as_it_is_written(tmp_path):
    (tmp_path / "codes.csv").write_text("code\n007\n1.10\n")
    solutions = render_solutions([tmp_path / "codes.csv"], Rows(files="unused", solution="{{ code }}"), "w")
    assert [solution.solution for solution in solutions] == ["007", "1.10"]


def test_blank_text_must_be_left_out_by_the_user(tmp_path):
    rows = [{"text": "a"}, {"text": " \n"}, {"text": "b"}]
    assert "row 2: solution: found the blank text ' \\n'" in error(tmp_path, rows, solution="{{ text }}")
    kept = render(tmp_path, rows, solution="{{ text }}", where="length(trim(text)) > 0 AND text <> ' \n'")
    assert [solution.solution for solution in kept] == ["a", "b"]


def test_jsonl_may_hold_a_column_late(tmp_path):
    rows = [{"text": "a", "note": None}] * 300 + [{"text": "b", "note": {"kind": ["x"]}}]
    path = tmp_path / "late.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    keys = {"solution": "{{ text }}{{ note.kind[0] }}", "where": "note IS NOT NULL"}
    assert render_solutions([path], Rows(files="unused", **keys), "w")[0].solution == "bx"


def test_files_in_order_with_ids_of_their_own(tmp_path):
    paths = [parquet(tmp_path / f"{name}.parquet", rows) for name, rows in zip("ba", (QUESTIONS[:5], QUESTIONS[5:]))]
    solutions = render_solutions(paths, Rows(files="unused", **CHOICES), "w")
    assert [solution.prompt[3] for solution in solutions] == list("012345678")
    assert [solution.id for solution in solutions] == [f"{number:06d}" for number in range(1, 10)]
    keys = CHOICES | {"gold": "{'A': 0}[answer] + (2 if key == 'q7' else 0) * 2"}
    with pytest.raises(InputError, match=r"a\.parquet, row 3: gold: found 4; it must be an index .* 0 to 2; rows with"):
        render_solutions(paths, Rows(files="unused", **keys), "w")


def test_a_sample_is_pythons_draw_in_file_order_after_where(tmp_path):
    rows = [{"n": i, "text": f"t{i}"} for i in range(200)]
    keys = {"solution": "{{ text }}", "where": "n >= 50", "sample": 20}
    for seed in (0, 1234):
        drawn = sorted(random.Random(seed).sample(list(range(50, 200)), 20))
        solutions = render(tmp_path, rows, **keys, seed=seed)
        assert [solution.solution for solution in solutions] == [f"t{n}" for n in drawn]
        assert [solution.id for solution in solutions] == [f"{n + 1:06d}" for n in drawn]
    assert len(render(tmp_path, rows, **keys | {"sample": 151})) == 150


def test_questions_without_one_right_choice_are_left_out_and_counted(tmp_path, caplog):
    options = {"text": ["1", "1 ", "x"], "label": ["A", "B", "C"]}
    twice = QUESTIONS[0] | {"options": options}
    blank = QUESTIONS[1] | {"options": options | {"text": ["2", "1", " "]}}
    keys = CHOICES | {"choice": " {{ choice | trim }}"}
    with caplog.at_level(logging.WARNING):
        assert len(render(tmp_path, [twice, *QUESTIONS[2:], blank], **keys)) == 7
    assert "left out 2 of 9 rows with equal or blank choices, first" in caplog.text
    assert "rows.parquet, row 1" in caplog.text
    assert "(2 after `where`, 2 of them with equal" in error(tmp_path, [twice, blank], **keys)


def test_text_is_not_escaped_nor_trimmed(tmp_path):
    rows = [{"a": "<b> & 'c'", "b": "\r\n x"}]
    assert render(tmp_path, rows, solution="{{ a }}{{ b }}\n")[0].solution == "<b> & 'c'\r\n x\n"


def test_regex_replace(tmp_path):
    rows = [{"a": "go [title] on [x] [y]."}]
    found = render(tmp_path, rows, solution="{{ a | regex_replace(' \\\\[(.*?)]', '<\\\\1>') }}")
    assert found[0].solution == "go<title> on<x><y>."


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"prompt": "{{ query }}"}, "prompt: found 'query', which is no column of"),
        ({"prompt": "{{ query }}"}, "columns are ['key', 'question', 'options', 'answer']"),
        ({"choices": "choice.text"}, "choices: found 'choice', which is no column"),
        ({"choice": "{{ choice }}{{ unit }}"}, "choice: found 'unit', which is no column"),
        ({"where": "level > 3"}, "where: found 'level', which is no column"),
        ({"gold": "range"}, "gold: found 'range', which is no column"),
        ({"where": "answer + 1"}, "cannot be read: "),
        ({"where": "answer = 'Z'"}, "found no rows to make solutions of (0 after `where`"),
        ({"choices": "options.texts"}, "row 1: choices: 'dict object' has no attribute 'texts'"),
        ({"gold": "options.labels"}, "row 1: gold: 'dict object' has no attribute 'labels'"),
        ({"id": "options.ids"}, "row 1: id: 'dict object' has no attribute 'ids'"),
        ({"id": "'x'"}, "row 2: id: found 'x', which an earlier row has"),
        ({"id": "''"}, "row 1: id: found ''"),
        ({"choices": "question"}, "row 1: choices: found '0 + 1?'; it must be a list of at least two"),
        ({"choices": "options.text[:1]"}, "row 1: choices: found ['1']; it must be a list of at least two"),
        ({"gold": "3"}, "row 1: gold: found 3; it must be an index of the choices, 0 to 2; rows without a label"),
        ({"gold": "-1"}, "row 1: gold: found -1; "),
        ({"gold": "0.5"}, "row 1: gold: found 0.5; "),
        ({"gold": "''"}, "row 1: gold: found ''; "),
        ({"gold": "none"}, "row 1: gold: found None; "),
        ({"gold": "options.label.index('E')"}, "row 1: gold: 'E' is not in list; rows without a label cannot be used"),
        ({"prompt": "{{ question.format.__globals__ }}"}, "row 1: prompt: access to attribute '__globals__'"),
        ({"prompt": "{{ options.text.append('4') }}"}, "row 1: prompt: "),
    ],
)
def test_a_mistake_names_row_and_key(tmp_path, keys, words):
    assert words in error(tmp_path, QUESTIONS, **CHOICES | keys)


def test_an_empty_cell_is_not_the_word_none(tmp_path):
    rows = [{"a": "x", "c": ["p", "q"]}, {"a": None, "c": ["p", None]}]
    assert "row 2: solution: an empty cell (null)" in error(tmp_path, rows, solution="{{ a }}")
    assert "row 2: choice: an empty cell (null)" in error(tmp_path, rows, choices="c", gold="0")
    assert "row 2: id: found None" in error(tmp_path, rows, solution="x", id="a")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.parquet", b"PAR1", "truncated"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "cannot be read"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.txt", b"text", "rows are read from .parquet"),
        ("a.csv", b"", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        render_solutions([tmp_path / name], Rows(files="unused", solution="{{ text }}"), "w")
    assert str(caught.value).startswith(f"w: {tmp_path / name}: ") and words in str(caught.value)


def test_no_files():
    with pytest.raises(InputError, match="w: found no files"):
        render_solutions([], Rows(files="unused", solution="x"), "w")


@pytest.mark.parametrize(
    "keys, place, words",
    [
        ({"prompt": "{{ a "}, "prompt", "'{{ a ' is no Jinja template: unexpected end of template"),
        ({"solution": "{{ a | lowre }}"}, "solution", "is no Jinja template: No filter named 'lowre'"),
        ({"choice": "{% if a %}"}, "choice", "is no Jinja template"),
        ({"choices": "a b"}, "choices", "'a b' is no Jinja expression: chunk after expression"),
        ({"gold": "{{ a }}"}, "gold", "is no Jinja expression"),
        ({"id": ""}, "id", "is no Jinja expression"),
        ({"where": "a =="}, "where", "'a ==' is no condition in SQL: unable to parse"),
        ({"sample": 0}, "sample", "greater than 0"),
        ({"gold": None}, None, "choices and gold: found one without the other"),
        ({"choices": None}, None, "choices and gold: found one without the other"),
        ({"choices": None, "gold": None}, None, "solution: missing"),
        ({"answers": "x"}, "answers", "Extra inputs"),
        ({"answer": "x"}, None, "answer: found one beside choices; leave it out"),
        ({"choices": None, "gold": None, "solution": ""}, None, "solution: missing"),
    ],
)
def test_mistakes_that_are_seen_in_the_configuration(keys, place, words):
    with pytest.raises(ValidationError) as caught:
        Rows(files="unused", **CHOICES | keys)
    problem = caught.value.errors()[0]
    assert problem["loc"] == ((place,) if place else ()) and words in problem["msg"]


def test_planning_does_not_load_jinja():
    code = "import sys, proxycast.solutions.templates; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
