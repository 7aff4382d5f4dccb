"""`proxycast pick`: only the listed solutions, in files of their own, and what is refused."""

import json
from pathlib import Path

import polars as pl
import pytest
from conftest import write_rows
from proxycast.command.main import app
from typer.testing import CliRunner


def run(*words: object):
    return CliRunner().invoke(app, ["pick", *map(str, words)])


@pytest.fixture
def solutions(tmp_path) -> Path:
    folder = tmp_path / "solutions"
    folder.mkdir()
    for task in ("sums", "dates"):
        rows = [{"id": f"{task}-{n}", "prompt": f"{n}?", "solution": f" {n}."} for n in range(5)]
        write_rows(rows, folder / f"{task}.jsonl")
    return folder


@pytest.fixture
def table(tmp_path) -> Path:
    """The first proxy's most informative are 4, 3, 2, ..., the second's 0, 1, 2, ...; the random order is 2, 0, ..."""
    rows = [
        {"size": "4M", "step": 9, "statistic": statistic, "weighting": weighting, "task": task, "place": place + 1}
        | {"random_place": [2, 3, 1, 4, 5][n], "solution": f"{task}-{n}", "information": 1.0, "correlation": 0.5}
        for statistic, weighting, order in (("margin", "uniform", [4, 3, 2, 1, 0]), ("bits_per_byte", "none", range(5)))
        for task in ("sums", "dates")
        for place, n in enumerate(order)
    ]
    path = tmp_path / "picked_solutions.parquet"
    pl.DataFrame(rows).write_parquet(path)
    return path


def ids(folder: Path, task: str) -> list[str]:
    return [json.loads(line)["id"] for line in (folder / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--number", 2], [3, 4]),
        (["--number", 2, "--proxy", "bits_per_byte"], [0, 1]),
        (["--number", 2, "--by", "random_place", "--proxy", "margin/uniform"], [0, 2]),
        ([], [0, 1, 2, 3, 4]),
    ],
)
def test_the_first_places_are_written(tmp_path, solutions, table, options, expected):
    out = tmp_path / "few"
    result = run(table, "--solutions", solutions, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.glob("*.jsonl")) == ["dates.jsonl", "sums.jsonl"]
    for task in ("sums", "dates"):
        assert ids(out, task) == [f"{task}-{n}" for n in expected]
        assert f"{task}.jsonl: {len(expected)} solutions" in result.stdout


def test_ids_of_one_s_own_are_enough(tmp_path, solutions):
    (tmp_path / "ids.csv").write_text("task,solution\nsums,sums-3\nsums,sums-1\nsums,sums-3\n")
    assert run(tmp_path / "ids.csv", "--solutions", solutions, "--out", tmp_path / "few").exit_code == 0
    assert ids(tmp_path / "few", "sums") == ["sums-1", "sums-3"]
    assert not (tmp_path / "few" / "dates.jsonl").exists()


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("task,solution\n", [], "found a header without any row"),
        ("task,solution\nsums,sums-9\nsums,x\n", [], "'sums-9' of task 'sums', which no solution has as its id, and 1"),
        ("task,solution\nwords,w-1\n", [], "lists solutions of task 'words', of which there is no file; found tasks"),
        ("task,id\nsums,sums-1\n", [], "missing; found ['task', 'id']; there must be ['task', 'solution']"),
        ("task,solution\nsums,sums-1\n", ["--number", 1], "--number needs a column place with the place of each"),
        ("task,solution,place\nsums,sums-1,7\n", ["--number", 2], "lists no solution whose place is 2 or less"),
        ("task,solution\nsums,sums-1\n", ["--proxy", "margin/uniform"], "has no list of margin/uniform; it has none"),
    ],
)  # fmt: skip
def test_what_cannot_be_picked_is_told_and_nothing_is_written(tmp_path, solutions, text, options, message):
    (tmp_path / "ids.csv").write_text(text)
    result = run(tmp_path / "ids.csv", "--solutions", solutions, "--out", tmp_path / "few", *options)
    assert result.exit_code == 1 and "ids.csv" in result.stderr and message in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "few").exists()


def test_no_file_is_overwritten(tmp_path, solutions, table):
    result = run(table, "--solutions", solutions, "--out", solutions, "--number", 1)
    assert result.exit_code == 1 and "there is such a file already" in result.stderr
    assert len(ids(solutions, "sums")) == 5
