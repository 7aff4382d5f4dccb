"""Logs of several runs: how runs, tokens, parameters and means are told, W&B's exports, and what is wrong with them."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from proxycast.config.errors import parse
from proxycast.config.experiments.forecasting_options import ForecastingOptions, WideCurve
from proxycast.options import InputError
from proxycast.truth.training_log import read_wide_curve, run_names

TASK = {"truth": "acc", "statistics": {"loss": "ce"}}
TWO_RUNS = "model,s,D,N,acc,ce\nb,10,80,7,0.2,3\na,10,40,5,0.1,4\na,20,80,5,0.3,NaN\nb,20,160,7,,2\n"


def curve(path, **changes):
    return WideCurve(**({"path": path, "step": "s", "tasks": {"t": TASK}} | changes))


def by_column(path, **changes):
    return curve(path, **({"run_column": "model", "tokens": "D", "parameters": "N"} | changes))


def written(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def told(tables):
    return {
        "checkpoints": tables["checkpoints"].drop("checkpoint").rows(),
        "truth": tables["targets"].select("checkpoint", "value").rows(),
        "loss": tables["proxies"].filter(statistic="loss").select("checkpoint", "value").rows(),
    }


KNOWN = {
    "checkpoints": [("a", 10, 40, 1200.0), ("a", 20, 80, 2400.0), ("b", 10, 80, 3360.0), ("b", 20, 160, 6720.0)],
    "truth": [("a-step10", 0.1), ("a-step20", 0.3), ("b-step10", 0.2)],
    "loss": [("a-step10", 4.0), ("b-step10", 3.0), ("b-step20", 2.0)],
}
SHAPES = {
    "a column of runs": lambda folder: by_column(written(folder, "log.csv", TWO_RUNS)),
    "a file for each run": lambda folder: curve(
        (),
        runs={
            "a": {"path": written(folder, "a.csv", "s,acc,ce\n20,0.3,nan\n10,0.1,4\n"), "parameters": 5},
            "b": {
                "path": written(folder, "b.csv", "s,acc,ce\n10,0.2,3\n20,,2\n"),
                "parameters": 7,
                "tokens_per_step": 8,
            },
        },
        tokens_per_step=4,
    ),
    "W&B's charts, one for each metric": lambda folder: curve(
        [
            written(
                folder,
                "wandb_acc.csv",
                '"s","b - acc","b - acc__MIN","b - acc__MAX","big one - acc","big one - acc__MIN"\n'
                '"10","0.2","0.2","0.2","0.1","0"\n"20","","","","0.3","0"\n',
            ),
            written(
                folder,
                "wandb_ce.csv",
                "s,b - ce,b - ce__MIN,b - ce__MAX,big one - ce,big one - ce__MIN\n10,3,9,9,,\n20,2,9,9,,\n10,,,,4,9\n",
            ),
        ],
        runs={
            "a": {"name": "big one", "parameters": 5, "tokens_per_step": 4},
            "b": {"parameters": 7, "tokens_per_step": 8},
        },
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_runs_are_read_from_logs_of_any_shape(tmp_path, shape):
    log = SHAPES[shape](tmp_path)
    assert told(read_wide_curve(log, "accuracy")) == KNOWN
    assert run_names(log) == ["a", "b"]


def test_a_parquet_is_read_as_a_csv(tmp_path):
    text = by_column(written(tmp_path, "log.csv", TWO_RUNS))
    table = pl.read_csv(tmp_path / "log.csv", schema_overrides={"ce": pl.Float32}).with_columns(
        pl.col("ce").fill_null(float("nan")), pl.col("model").cast(pl.Categorical)
    )
    table.write_parquet(tmp_path / "log.parquet")
    binary = by_column(tmp_path / "log.parquet")
    for name, found in read_wide_curve(binary, "accuracy").items():
        assert_frame_equal(found, read_wide_curve(text, "accuracy")[name])
    assert run_names(binary) == ["a", "b"]
    table.with_columns(acc=pl.lit([0.5])).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"log.parquet, column acc: found the type List.*; it must hold numbers"):
        read_wide_curve(binary, "accuracy")
    table.with_columns(D=pl.Series([80.0, 40.0, float("inf"), 160.0])).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match="log.parquet, row 3, column D: found inf; it must be a number"):
        read_wide_curve(binary, "accuracy")
    (tmp_path / "log.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="log.parquet: found a truncated file or no parquet"):
        read_wide_curve(binary, "accuracy")


def test_a_history_of_wandb_as_it_comes(tmp_path):
    """Rows with gaps, an index without a name, times, text, and metrics that are logged at steps of their own."""
    text = ",_step,_timestamp,note,eval/acc,train/ce\n0,0,1.7e9,,,9.5\n1,50,1.7e9,hi,,4\n2,100,1.7e9,,0.25,NaN\n"
    log = curve(
        written(tmp_path, "history.csv", text + "3,100,,,,3.5\n4,150,,,NaN,\n"),
        run="r",
        step="_step",
        tokens_per_step=2,
        tasks={"t": {"truth": "eval/acc", "statistics": {"loss": "train/ce"}}},
    )
    assert told(read_wide_curve(log, "accuracy")) == {
        "checkpoints": [("r", 0, 0, None), ("r", 50, 100, None), ("r", 100, 200, None)],
        "truth": [("r-step100", 0.25)],
        "loss": [("r-step0", 9.5), ("r-step50", 4.0), ("r-step100", 3.5)],
    }


def test_runs_that_are_named_are_read_alone(tmp_path):
    log = by_column(written(tmp_path, "log.csv", TWO_RUNS + "c,5,x,x,0.9,\n".replace("x", "1")), runs={"b": {}})
    tables = read_wide_curve(log, "accuracy")
    assert tables["checkpoints"]["run"].to_list() == ["b", "b"] and run_names(log) == ["b"]


def test_a_log_without_steps_has_tokens_in_their_place(tmp_path):
    log = by_column(written(tmp_path, "log.csv", TWO_RUNS), step="D")
    found = read_wide_curve(log, "accuracy")["checkpoints"]
    assert found["step"].to_list() == found["tokens"].to_list() == [40, 80, 80, 160]


SHARES = st.tuples(*[st.floats(0, 1) | st.none()] * 4)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(SHARES, max_size=5).map(lambda rows: [(0.5, 0.25, 1.0, 0.125), *rows]),
    st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
)
def test_a_mean_is_weighted_and_known_where_all_its_columns_are(tmp_path_factory, rows, weights):
    path = tmp_path_factory.mktemp("mean") / "log.parquet"
    names = ["x", "y", "z", "ce"]
    pl.DataFrame([(n, *row) for n, row in enumerate(rows, 1)], schema=["s", *names], orient="row").write_parquet(path)
    task = {"truth": dict(zip(names, weights)), "statistics": {"loss": "ce", "half": {"ce": 0.5}}}
    tables = read_wide_curve(curve(path, run="r", tokens_per_step=1, tasks={"t": task}), "score")
    expected = {
        f"r-step{n}": sum(w * v for w, v in zip(weights, row)) / sum(weights)
        for n, row in enumerate(rows, 1)
        if None not in row[:3]
    }
    assert dict(tables["targets"].select("checkpoint", "value").rows()) == pytest.approx(expected)
    loss, half = (tables["proxies"].filter(statistic=name)["value"].to_list() for name in ("loss", "half"))
    assert loss == half == [row[3] for row in rows if row[3] is not None]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("a,20,80", "a,10,40", "row 4, column acc: found 0.3, but 0.1 in row 3, both of run a at step 10"),
        ("b,20,160", "b,20,60", "row 5, column D: found 60 tokens at step 20, but 80 at step 10 of run b"),
        ("b,20,160", "b,20,", "column D: found no tokens of run b at step 20, which has measurements"),
        ("b,20,160", "b,20,-1", "row 5, column D: found -1.0 at step 20; it must be a number of tokens, above 0"),
        ("b,10,80", "b,10,0", "row 2, column D: found 0.0 at step 10; it must be a number of tokens, above 0"),
        ("a,20,80,5", "a,20,80,6", "row 4, column N: found 6.0, but 5.0 in row 3, both of run a; a run has one number"),
        ("b,20,160,7", "b,20,160,-7", "row 5, column N: found -7.0; it must be a number of parameters, above 0"),
        ("80,7,0.2,3\n", "80,,0.2,3\n", None),  # told in another row
        ("b,10", ",10", "row 2, column model: found nothing; it must name the row's run"),
        ("b,10", "b 1,10", "found the run 'b 1'; a name must begin .* this one as in .*{my-run: {name: 'b 1'}}"),
        ("N,acc", "M,acc", "forecasting.curve.parameters: no column 'N'; found 6 columns, among them"),
        ("model,", "run,", "forecasting.curve.run_column: no column 'model'; found 6 columns"),
        ("4\n", "NaN\n", None),
    ],
)
def test_mistakes_in_the_log_of_several_runs(tmp_path, old, new, message):
    assert old in TWO_RUNS
    log = by_column(written(tmp_path, "log.csv", TWO_RUNS.replace(old, new)))
    if message is None:
        read_wide_curve(log, "accuracy")
        return
    with pytest.raises(InputError, match=message) as caught:
        read_wide_curve(log, "accuracy")
    assert "log.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_without_parameters_or_without_rows(tmp_path):
    text = TWO_RUNS.replace(",7,", ",,")
    with pytest.raises(InputError, match="log.csv, column N: found no parameters of run b"):
        read_wide_curve(by_column(written(tmp_path, "log.csv", text)), "accuracy")
    with pytest.raises(InputError, match=r"runs: no measurement of a run 'c'; found those of \['b', 'a'\]"):
        read_wide_curve(by_column(tmp_path / "log.csv", parameters=None, runs={"a": {}, "c": {}}), "accuracy")
    plain = curve(written(tmp_path, "plain.csv", "s,acc,ce\n1,0.1,2\n"), tokens_per_step=1)
    with pytest.raises(InputError, match="plain.csv, column acc: found no run before its name, as in '<run> - acc'"):
        read_wide_curve(plain, "accuracy")
    two = curve(tmp_path / "plain.csv", tokens_per_step=1, runs={"a": {"name": "x"}, "b": {"name": "x"}})
    with pytest.raises(InputError, match="found no run before|two runs have one name"):
        read_wide_curve(two, "accuracy")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tasks": {"t": {"truth": {"a": 1, "b": -1}}}}, "tasks.t.truth.b: Input should be greater than 0, found -1"),
        ({"tasks": {"t": {"truth": {"a": "much"}}}}, "curve.tasks.t.truth.a: Input should be a valid number.*'much'"),
        ({"tasks": {"t": {"truth": 3}}}, "curve.tasks.t.truth: found 3; give a column's name, or {column: weight"),
        ({"run": "r"}, "curve: run and run_column: found both; `run` names the only run"),
        ({"tokens_per_step": 4}, "curve: tokens and tokens_per_step: found both"),
        ({"tokens": None}, "curve: tokens_per_step: missing; give tokens per batch, or `tokens`"),
        (
            {"tokens": None, "runs": {"a": {"tokens_per_step": 4}, "b": {}}},
            "curve: runs.b.tokens_per_step: missing; give tokens per batch",
        ),
        ({"runs": {"a": {"parameters": 4}}}, "curve: parameters and runs.a.parameters: found both"),
        ({"path": ()}, "curve: path: missing; give the file of the log"),
    ],
)
def test_mistakes_in_the_keys_of_a_log(changes, message):
    keys = {"path": "log.csv", "run_column": "model", "tokens": "D", "parameters": "N", "tasks": {"t": TASK}}
    with pytest.raises(InputError, match=message):
        parse(ForecastingOptions, {"fit_up_to_step": 9, "curve": keys | changes}, "study.yaml", "forecasting")
