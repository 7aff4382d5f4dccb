"""Statistics that others measured: the reader, what its rows are of, and every mistake by file and row."""

from itertools import product

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.ladder import Ladder, LadderSize, Tokenizer
from proxycast.config.truth import OutsideStatistics, Target
from proxycast.options import InputError
from proxycast.truth.outside_statistics import (
    COLUMNS,
    STATISTICS_SCHEMA,
    compared_rows,
    models_of_table,
    named_tasks,
    read_statistics,
    require_complete,
    require_signs,
    statistics_and_truth,
    with_own_names,
)
from proxycast.truth.targets import TARGETS_SCHEMA

HEADER = "unit,task,statistic,value,n,parameters,tokens,flops,size,step,seed,family\n"
ROW = "web,sums,nll,1.5,10,100,2000,,small,4,0,llama\n"
SIGNS = OutsideStatistics(table="t.csv", higher_is_better={"nll": False})
LADDER = Ladder(
    **{"name": "mine", "tokenizer": Tokenizer(hub="me/t"), "vocabulary": 100, "sequence_length": 8},
    **{"checkpoint_every": 4, "seeds": {0: "a", 1: "b"}},
    sizes={
        "small": LadderSize(
            hidden_size=64, layers=1, heads=2, batch_sequences=4, steps=10, learning_rate=0.01, stopped={1: 7}
        )
    },
)


@pytest.fixture
def table(tmp_path):
    """A function that writes a csv and reads it."""

    def write(text: str) -> pl.DataFrame:
        (tmp_path / "t.csv").write_text(text)
        return read_statistics(tmp_path / "t.csv")

    return write


def rows(*given: dict) -> pl.DataFrame:
    """A table as it is read; `given` are the cells that are not empty."""
    right = {"unit": "web", "task": "sums", "statistic": "nll", "value": 1.0}
    schema = {name: column.kind for name, column in COLUMNS.items()} | {"row": pl.Int64}
    return pl.DataFrame([right | row | {"row": n} for n, row in enumerate(given, 2)], schema)


def checkpoints(*given: tuple) -> pl.DataFrame:
    names = ["corpus", "size", "seed", "step", "role"]
    schema = dict(zip(names, (pl.String, pl.String, pl.Int64, pl.Int64, pl.String)))
    frame = pl.DataFrame(given, schema, orient="row")
    return frame.with_columns(checkpoint=pl.format("{}-{}-seed{}-step{}", *names[:4]))


def test_a_table_with_every_column_and_with_the_least(table, tmp_path):
    found = table(HEADER + ROW).row(0, named=True)
    assert found == {
        **{"unit": "web", "task": "sums", "statistic": "nll", "value": 1.5, "n": 10, "parameters": 100},
        **{"tokens": 2000, "flops": None, "size": "small", "step": 4, "seed": 0, "family": "llama", "row": 2},
    }
    least = table("unit,task,statistic,value,other\nweb,,nll,1.5,x\n")
    known = {"unit": "web", "statistic": "nll", "value": 1.5, "row": 2}
    assert least.row(0, named=True) == dict.fromkeys(COLUMNS) | known
    everything = table(HEADER + ROW)
    everything.drop("row").write_parquet(tmp_path / "t.parquet")
    assert read_statistics(tmp_path / "t.parquet").drop("row").equals(everything.drop("row"))


MISTAKES = {
    "no value": (HEADER + "web,sums,nll,,,,,,,,,\n", r"row 2, column value: found None; it must be a finite number"),
    "NaN": (HEADER + ROW + "web,arcs,nll,nan,,,,,,,,\n", r"row 3, column value: found 'nan'; it must be a finite"),
    "infinite": (HEADER + "web,sums,nll,-inf,,,,,,,,\n", r"row 2, column value: found '-inf'; it must be a finite"),
    "no unit": (HEADER + ",sums,nll,1,,,,,,,,\n", "row 2, column unit: found None; it must be a name"),
    "space": (HEADER + "web ,sums,nll,1,,,,,,,,\n", "row 2, column unit: found 'web '; it must be a name, without"),
    "half a step": (
        HEADER + "web,sums,nll,1,,,,,,1.5,,\n",
        "row 2, column step: found '1.5'; it must be a count of at",
    ),
    "no parameters": (HEADER + "web,sums,nll,1,,0,,,,,,\n", "row 2, column parameters: found '0'; .* at least 1, or"),
    "no column": ("unit,task,value\nweb,sums,1\n", "column statistic: missing; found .*'task'"),
    "spelled": ("Unit,task,statistic,value\nweb,sums,nll,1\n", "column unit: found 'Unit'; it must be spelled 'unit'"),
    "two values": (
        HEADER + ROW + ROW,
        r"row 3, columns \['unit', .*'web', 'sums', 'nll', 'small', 4, 0.* row 2 already",
    ),
    "by case": (HEADER + "web,,nll,1,,,,,,,,\nWeb,,nll,2,,,,,,,,\n", "row 3.*stands in row 2 already as"),
    "markup": (HEADER + "<b>,sums,nll,1,,,,,,,,\n", "row 2, column unit: '<b>' has '<'; figures"),
    "percent": (HEADER + "web,sums,accuracy,43.1,,,,,,,,\n", r"row 2, column value: found 43.1; accuracy is a share"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_table_are_named_by_row(table, mistake):
    text, words = MISTAKES[mistake]
    with pytest.raises(InputError, match=rf"t\.csv.*{words}"):
        table(text)


def test_no_such_table(tmp_path):
    with pytest.raises(InputError, match="absent.csv: no such file; it should hold statistics: unit, task"):
        read_statistics(tmp_path / "absent.csv")


# Names and signs


def test_units_by_either_name_and_none_that_is_unknown(tmp_path):
    found = with_own_names(rows({"unit": "The Web"}, {"unit": "wiki"}), tmp_path, {"The Web": "web", "wiki": "wiki"})
    assert found["unit"].to_list() == ["web", "wiki"]
    with pytest.raises(
        InputError, match="row 3, column unit: found 'wikki', which is no .* 'wiki'.*it names web, wiki"
    ):
        with_own_names(rows({}, {"unit": "wikki"}), tmp_path, {"web": "web", "wiki": "wiki"})
    with pytest.raises(InputError, match="row 3, .*'web', 'sums', 'nll'.* stands in row 2 already"):
        with_own_names(rows({"unit": "The Web"}, {}), tmp_path, {"The Web": "web", "web": "web"})


def test_signs_that_are_known_or_given():
    signs = OutsideStatistics(table="t.csv", higher_is_better={"score": True, "nll": False})
    known = {"score": 1, "nll": -1, "margin": -1, "top5_accuracy": 1, "bits_per_byte": -1, "other": None}
    assert {name: signs.sign(name) for name in known} == known
    with pytest.raises(ValueError, match="higher_is_better.margin: found true, but less of it is better wherever"):
        OutsideStatistics(table="t.csv", higher_is_better={"margin": True})
    assert OutsideStatistics(table="t.csv", higher_is_better={"margin": False}).sign("margin") == -1


ERROR = Target(metric="error", higher_is_better=False)


@pytest.mark.parametrize(
    "statistics, signs, runs_models, words",
    [
        (["nll"], {}, False, r"row 2, column statistic: found 'nll', which has no sign; give .*{nll: true}"),
        (["nll"], {"nll": False, "nl": True}, False, r"no row of 'nl', which .*did you mean 'nll'\?; found nll"),
        (["error"], {"error": True}, False, "t.csv: more of error is better by .*, but the target says otherwise"),
        (["chance"], {"chance": True}, False, "row 2, .*'chance', which the study finds for itself"),
        (["bits_per_byte"], {}, True, "row 2, .*'bits_per_byte', which the study finds for itself"),
        (["error"], {}, True, "row 2, .*'error', which the study finds for itself; give this one another name"),
    ],
)
def test_signs_that_are_missing_or_wrong(statistics, signs, runs_models, words):
    options = OutsideStatistics(table="t.csv", higher_is_better=signs)
    with pytest.raises(InputError, match=words):
        require_signs(rows(*({"statistic": name} for name in statistics)), options, ERROR, runs_models)


def test_signs_that_need_not_be_given():
    require_signs(
        rows({"statistic": "error"}, {"statistic": "bits_per_byte"}), OutsideStatistics(table="t"), ERROR, False
    )
    require_signs(rows({"statistic": "nll"}), SIGNS, ERROR, True)


# Models, tasks and truth of a study that runs none


def test_models_with_what_is_known_of_them(tmp_path):
    found = models_of_table(
        rows(
            {"size": "small", "seed": 1, "parameters": 7, "family": "llama"},
            {"size": "small", "seed": 1, "task": "arcs", "tokens": 9},
            {"size": "small", "seed": 1, "step": 3, "unit": "wiki"},
            {"unit": "wiki"},  # of every model of wiki
            {"unit": "books"},
        ),
        tmp_path,
        None,
    )
    keys = ["unit", "size", "seed", "step", "parameters", "tokens", "flops", "family"]
    assert found.select(keys).rows() == [
        ("web", "small", 1, 0, 7, 9, None, "llama"),
        ("wiki", "small", 1, 3, None, None, None, None),
        ("books", None, 0, 0, None, None, None, None),
    ]


def test_a_ladder_tells_steps_parameters_and_tokens(tmp_path):
    given = rows(
        {"size": "small", "seed": 0}, {"size": "small", "seed": 1}, {"size": "small", "seed": 0, "unit": "b", "step": 4}
    )
    found = models_of_table(given, tmp_path, LADDER)
    n = LADDER.sizes["small"].parameters(100)
    assert found.select("unit", "seed", "step", "parameters", "tokens").rows() == [
        ("web", 0, 10, n, 10 * 32),
        ("web", 1, 7, n, 7 * 32),
        ("b", 0, 4, n, 4 * 32),
    ]


def test_rows_of_one_model_that_contradict_each_other(tmp_path):
    given = rows({"size": "small", "parameters": 7}, {"size": "small", "task": "arcs", "parameters": 8})
    with pytest.raises(
        InputError, match="row 3, column parameters: found 8, but 7 in row 2, which is of the same model"
    ):
        models_of_table(given, tmp_path, None)


def test_the_truth_is_the_target_metric_at_the_targets_size(tmp_path):
    given = rows(
        {"size": "small", "statistic": "accuracy"},  # what the small models reach is no truth
        {"size": "large", "statistic": "accuracy", "task": "arcs"},
        {"size": "large"},  # nothing predicts from the target itself
        {"size": "small", "task": None},
    )
    target = Target(size="large", metric="accuracy")
    found = compared_rows(given, tmp_path, target)
    assert found.select("row", "is_truth").rows() == [(2, False), (3, True), (5, False)]
    assert named_tasks(given, tmp_path, target) == ["sums"]
    everywhere = Target(metric="accuracy")
    assert compared_rows(given, tmp_path, everywhere)["is_truth"].to_list() == [True, True, False, False]
    with pytest.raises(
        InputError, match="row 3, column statistic: found 'accuracy', the metric .*; give the truth once"
    ):
        compared_rows(given, tmp_path, Target(size="large", metric="accuracy", table="truth.csv"))


def test_tasks_where_the_statistics_know_none(tmp_path):
    given = rows({"task": None}, {"statistic": "error", "task": "arcs"}, {"statistic": "error"})
    assert named_tasks(given, tmp_path, ERROR) == ["arcs", "sums"]
    with pytest.raises(InputError, match="column task: found no task in any row"):
        named_tasks(given.filter(statistic="nll"), tmp_path, ERROR)
    truth = tmp_path / "truth.csv"
    truth.write_text("checkpoint,task,metric,value\nm,b,error,1\nm,a,error,2\nm,c,other,2\n")
    outside = Target(metric="error", higher_is_better=False, table=truth)
    assert named_tasks(given.filter(statistic="nll"), tmp_path, outside) == ["b", "a"]


KNOWN = checkpoints(
    *((corpus, size, seed, step, "proxy") for corpus, size, seed, step in product("ab", "st", (0, 1), (4, 8))),
    ("a", "large", 0, 8, "target"),
)
CELLS = st.fixed_dictionaries(
    {
        "unit": st.sampled_from("ab"),
        "task": st.sampled_from(["sums", "arcs", None]),
        "size": st.sampled_from(["s", "t", "large", "other", None]),
        "seed": st.sampled_from([0, 1, None]),
        "step": st.sampled_from([4, 8, 12, None]),
        "value": st.floats(-9, 9),
    }
)


@given(CELLS)
def test_a_row_is_of_every_checkpoint_that_it_does_not_exclude(row):
    """Against a loop. The target is no small model."""
    expected = {
        (c["checkpoint"], task)
        for c in KNOWN.iter_rows(named=True)
        for task in ("sums", "arcs")
        if c["role"] == "proxy" and c["corpus"] == row["unit"] and row["task"] in (task, None)
        if all(row[name] in (c[name], None) for name in ("size", "seed", "step"))
    }
    target = Target(size="large")
    found, truth = statistics_and_truth(rows(row), "t.csv", SIGNS, target, KNOWN, ["sums", "arcs"])
    assert set(found.select("checkpoint", "task").iter_rows()) == expected and len(found) == len(expected)
    assert found.schema == pl.Schema(STATISTICS_SCHEMA) and truth.schema == pl.Schema(TARGETS_SCHEMA)
    assert truth.is_empty() and set(found["value"]) <= {row["value"]} and not found["higher_is_better"].any()


def test_statistics_and_truth_of_one_table(tmp_path, caplog):
    given = rows(
        {"unit": "a", "size": "large", "statistic": "error", "value": 3.0, "n": 5},
        {"unit": "a", "size": "s", "value": 2.0},
        {"unit": "a", "size": "other"},
        {"unit": "a", "task": "unused", "size": "s"},
    )
    target = Target(size="large", metric="error", higher_is_better=False)
    table = compared_rows(given, tmp_path, target)
    found, truth = statistics_and_truth(table, "t.csv", SIGNS, target, KNOWN, ["sums"])
    assert truth.rows() == [("a-large-seed0-step8", "sums", "error", 3.0, 5)]
    assert set(found["checkpoint"]) == {f"a-s-seed{seed}-step{step}" for seed in (0, 1) for step in (4, 8)}
    assert "t.csv: 2 rows count for nothing: the study compares no such value (unit a, task sums, s" in caplog.text


def test_without_a_target_every_row_is_a_statistic(tmp_path):
    given = rows({"unit": "a", "size": "s"}, {"unit": "a", "size": "s", "statistic": "margin"})
    table = compared_rows(given, tmp_path, None)
    found, truth = statistics_and_truth(table, "t.csv", SIGNS, None, KNOWN, ["sums"])
    assert truth.is_empty() and len(found) == 2 * 4 and not found["higher_is_better"].any()
    assert named_tasks(given, tmp_path, None) == ["sums"]


def test_two_rows_for_one_value():
    given = rows({"unit": "a", "size": "s", "seed": 0, "step": 4}, {"unit": "a", "size": "s"})
    with pytest.raises(InputError, match="t.csv, row 3: a-s-seed0-step4, sums, nll has a value in row 2 already"):
        statistics_and_truth(given, "t.csv", SIGNS, Target(size="large"), KNOWN, ["sums"])


def test_a_statistic_that_some_lack():
    wanted = pl.DataFrame({"checkpoint": ["m", "n", "o"], "cell": ["x", "x", "y"]})
    keys = ["checkpoint", "task", "statistic"]
    found = pl.DataFrame([("m", "sums", "nll"), ("n", "sums", "nll")], keys, orient="row")
    require_complete(found, wanted, ["sums"], "t.csv")  # none at y is right, too
    with pytest.raises(InputError, match="t.csv: no row of nll, task arcs, for m, and 1 more are missing"):
        require_complete(found, wanted, ["sums", "arcs"], "t.csv")
    with pytest.raises(InputError, match="t.csv: no row of nll, task sums, for n, and 0 more"):
        require_complete(found.head(1), wanted, ["sums"], "t.csv")
