"""Expert solutions by task, from a file, several files or a folder."""

import polars as pl
import pytest
from conftest import write_rows
from proxycast import InputError, load_solutions

ROWS = [{"id": "a", "prompt": "Q", "solution": " A"}, {"id": "b", "prompt": "R", "solution": " B", "answer": "B"}]


def test_a_file_several_files_and_a_folder(tmp_path):
    write_rows(ROWS, tmp_path / "sums.jsonl")
    pl.DataFrame(ROWS).write_parquet(tmp_path / "dates.parquet")
    (tmp_path / "README.md").write_text("not a task")
    one = load_solutions(str(tmp_path / "sums.jsonl"))
    assert list(one) == ["sums"] and [row.solution for row in one["sums"]] == [" A", " B"]
    every = load_solutions(tmp_path)
    assert list(every) == ["dates", "sums"] and every["sums"] == one["sums"]
    assert every["dates"] == every["sums"]  # a null in parquet is a key that is not there
    assert load_solutions([tmp_path / "sums.jsonl", tmp_path / "dates.parquet"]) == every


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "found no .jsonl or .parquet file"),
        ({"a.jsonl": [{"id": "a", "prompt": "Q"}]}, "a.jsonl, row 1, field solution: missing"),
        ({"a.jsonl": ROWS, "a/a.jsonl": ROWS}, "the task 'a' has another file already"),
        ({"a.json": ROWS}, "a.json: found the suffix '.json'"),
        ({"b.jsonl": []}, "b.jsonl: found no rows"),
    ],
)
def test_what_is_refused(files, said, tmp_path):
    for name, rows in files.items():
        write_rows(rows, tmp_path / name)
    with pytest.raises(InputError, match=said):
        load_solutions([tmp_path / name for name in files] or tmp_path)


def test_no_file_at_all(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_solutions(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="found no files"):
        load_solutions([])
