"""Rows of problems and solutions: what is read, and what is said of mistakes."""

import json

import polars as pl
import pytest
from proxycast.options import InputError
from proxycast.solutions.rows import Problem, Solution, once_each, read_problems, read_solutions, write_solutions
from pydantic import ValidationError

GOOD = {"id": "a", "prompt": "Q: 2+2?\nA:", "solution": " 4."}


def write_lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_written_solutions_read_back(tmp_path):
    solutions = [
        Solution(id="a", prompt="", solution=" x\u2028y 😀\n", writer="me"),
        Solution(id="b", prompt="p", solution=" 4", answer="4", choices=[" 3", " 4"]),
    ]
    write_solutions(solutions, tmp_path / "deep" / "s.jsonl")
    assert read_solutions(tmp_path / "deep" / "s.jsonl") == solutions
    pl.DataFrame([s.model_dump() for s in solutions]).write_parquet(tmp_path / "s.parquet")
    assert read_solutions(tmp_path / "s.parquet") == solutions


def test_whole_numbers_are_ids_and_answers(tmp_path):
    """As decimal text, from either format; what two spellings have, or is no number, is refused."""
    row = {"id": 12, "problem": 0, "prompt": "p", "answer": -7, "solution": "x"}
    expected = [Solution(id="12", problem="0", prompt="p", answer="-7", solution="x")]
    assert read_solutions(write_lines(tmp_path / "s.jsonl", row)) == expected
    pl.DataFrame([row]).write_parquet(tmp_path / "s.parquet")
    assert read_solutions(tmp_path / "s.parquet") == expected
    for field, value, words in (
        ("answer", 12.0, "found 12.0: a number with a point has several spellings; write it as text"),
        ("id", True, "found True"),
        ("solution", 5, "found 5"),
    ):
        path = write_lines(tmp_path / "s.jsonl", row | {field: value})
        with pytest.raises(InputError) as caught:
            read_solutions(path)
        assert str(caught.value).startswith(f"{path}, row 1, field {field}: {words}")
    path = write_lines(tmp_path / "s.jsonl", row, row | {"id": "12"})
    with pytest.raises(InputError, match="row 2, field id: found '12', the id of row 1"):
        read_solutions(path)


def test_the_correct_choice_is_the_solution_or_else_the_answer():
    assert Solution(id="a", prompt="", solution="b", answer="a", choices=["a", "b"]).correct_choice == 1
    assert Solution(id="a", prompt="", solution="it is a", answer="a", choices=["a", "b"]).correct_choice == 0
    assert Solution(id="a", prompt="", solution="b or so", choices=["a", "b"], correct=1).correct_choice == 1
    assert Solution(id="a", prompt="", solution="b", answer="a").correct_choice is None


@pytest.mark.parametrize(
    "row, words",
    [
        ({"id": "b", "prompt": ""}, "row 2, field solution: missing"),
        (GOOD | {"id": "b", "solution": " \n"}, "row 2, field solution: found ' \\n'"),
        (GOOD | {"id": "b", "prompt": 3}, "row 2, field prompt: found 3"),
        (GOOD | {"id": ""}, "row 2, field id: found ''"),
        (GOOD | {"id": "b", "solutoin": "x"}, "row 2, field solutoin: unknown; the fields are id, prompt"),
        (GOOD, "row 2, field id: found 'a', the id of row 1"),
        (GOOD | {"id": "b", "choices": ["5", "6"]}, "row 2, field choices: found ['5', '6']; one of them must be"),
        (GOOD | {"id": "b", "choices": [" 4.", "5", "5"]}, "row 2, field choices: found '5' 2 times"),
        (GOOD | {"id": "b", "choices": [" 4."]}, "row 2, field choices: found 1; give at least two"),
        (
            GOOD | {"id": "b", "choices": ["5", "6"], "correct": 2},
            "row 2, field correct: found 2; the index of a choice",
        ),
        (GOOD | {"id": "b", "choices": ["5", "6"], "correct": -1}, "row 2, field correct: found -1"),
        (GOOD | {"id": "b", "correct": 0}, "row 2, field correct: found 0 without choices"),
        (GOOD | {"id": "b", "choices": [" 4.", 5]}, "row 2, field choices.1: found 5"),
        ('{"id": "b", "prompt"', "row 2: broken JSON"),
        ('{"id": "b", "prompt": "", "solution": "\\ud800"}', "row 2, field solution: found '\\ud800': half of a"),
        ("[1, 2]", "row 2: found a list; each row must be an object"),
    ],
)
def test_mistakes_name_file_row_and_field(tmp_path, row, words):
    path = write_lines(tmp_path / "s.jsonl", GOOD, row)
    with pytest.raises(InputError) as caught:
        read_solutions(path)
    assert str(caught.value).startswith(f"{path}, {words}")


def test_files_that_are_no_solutions(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    (tmp_path / "s.txt").write_text("x")
    pl.DataFrame([GOOD]).write_parquet(tmp_path / "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-20])
    pl.DataFrame([GOOD]).select(pl.lit(None).alias("id"), "prompt", "solution").write_parquet(tmp_path / "null.parquet")
    for name, words in {
        "empty.jsonl": "found no rows",
        "latin.jsonl": "row 1: not UTF-8",
        "s.txt": "found the suffix '.txt'",
        "cut.parquet": "truncated",
        "null.parquet": "row 1, field id: found None",
        "none.jsonl": "no such file",
    }.items():
        with pytest.raises(InputError, match=words):
            read_solutions(tmp_path / name)


def test_problems_may_have_no_solution(tmp_path):
    rows = [GOOD, {"id": "b", "prompt": "q", "answer": " 4 "}, {"id": "c", "prompt": "q", "choices": ["x", "y"]}]
    rows[2]["answer"] = "y"
    problems = read_problems(write_lines(tmp_path / "p.jsonl", *rows))
    assert [type(problem) for problem in problems] == [Solution, Problem, Problem]
    assert [problem.right_answer for problem in problems] == [None, "4", "y"] and problems[2].correct_choice == 1
    write_solutions(problems, tmp_path / "q.jsonl")
    assert read_problems(tmp_path / "q.jsonl") == problems
    pl.DataFrame([dict.fromkeys(Solution.model_fields) | p.model_dump() for p in problems]).write_parquet(
        tmp_path / "q.parquet"
    )
    assert read_problems(tmp_path / "q.parquet") == problems
    with pytest.raises(InputError, match="row 2, field solution: missing"):
        read_solutions(tmp_path / "q.jsonl")
    with pytest.raises(InputError, match="row 1, field writer: unknown; the fields are id, prompt, answer, choices"):
        read_problems(write_lines(tmp_path / "w.jsonl", {"id": "b", "prompt": "q", "writer": "x"}))
    with pytest.raises(InputError, match="one of them must be the answer 'z', to the letter"):
        read_problems(write_lines(tmp_path / "w.jsonl", rows[2] | {"answer": "z"}))


def test_the_right_answer_is_the_right_choice_where_none_is_given():
    asked = dict(id="a", prompt="", choices=[" x", " y"])
    assert Solution(**asked, solution=" y").right_answer == "y"
    assert Solution(**asked, solution="so y", answer=" y").right_answer == "y"
    assert Solution(id="a", prompt="", solution=" y").right_answer is None


def test_a_problem_with_several_solutions_counts_once():
    asked = dict(prompt="q", choices=["x", "y"], answer="y")
    rows = [Solution(id=f"p@{w}", problem="p", writer=w, solution=f"{w} says y", **asked) for w in "ab"]
    other = Problem(id="other", **asked)
    assert once_each([*rows, other]) == [rows[0], other]
    assert once_each([Problem(id="p", **asked), *rows]) == [Problem(id="p", **asked)]
    for field, value in {"prompt": "r", "choices": ("y", "z"), "answer": "x"}.items():
        with pytest.raises(InputError, match=f"problem 'p': rows 'p@a' and 'p@b' differ in {field[:5]}|correct choice"):
            once_each([rows[0], rows[1].model_copy(update={field: value})])
    free = [row.model_copy(update={"choices": None}) for row in rows]
    with pytest.raises(InputError, match="differ in right answer: 'y' and 'x'; only the solution may differ"):
        once_each([free[0], free[1].model_copy(update={"answer": "x"})])


def test_a_right_choice_that_contradicts_the_answer_is_refused():
    given = {"id": "a", "prompt": "p", "answer": "red", "choices": ["red", "blue"]}
    assert Problem(**given, correct=0).correct_choice == 0
    with pytest.raises(ValidationError, match="correct: found 1, but choice 0 is the answer 'red'"):
        Problem(**given, correct=1)
    with pytest.raises(ValidationError, match="correct"):
        Problem(**given | {"answer": None}, correct=True)
