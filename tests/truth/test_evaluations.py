import json
from pathlib import Path
from statistics import fmean

import polars as pl
import pytest
from conftest import PUBLISHED
from evaluation_rows import CORPORA, LADDER, RUNS, SUBJECTS, TASKS, all_rows
from proxycast.options import InputError
from proxycast.truth.evaluations import METRICS, PROBLEMS, read_evaluations
from proxycast.truth.targets import TARGETS_SCHEMA


def row_of(rows, data="Dolma1.7", params="4M", seed="small aux 2", step=1250, task="boolq"):
    key = dict(data=data, params=params, seed=seed, step=step, task=task)
    return next(row for row in rows if all(row[name] == value for name, value in key.items()))


WRITERS = {
    "dict": str,
    "json": json.dumps,
    "dense json": lambda metrics: json.dumps(metrics, separators=(",", ":")),
    "indented json": lambda metrics: json.dumps(metrics, indent=1),
    "struct": lambda metrics: metrics,
}


@pytest.fixture
def write(tmp_path):
    """A function that writes rows to a file as one of WRITERS does."""

    def to_file(rows, how="dict", name="train.parquet", **casts) -> Path:
        table = pl.DataFrame(
            [row | {"metrics": WRITERS[how](row["metrics"])} for row in rows], infer_schema_length=None
        )
        table.cast(casts).with_columns(chinchilla=pl.lit("5xC")).write_parquet(tmp_path / name, row_group_size=7)
        return tmp_path / name

    return to_file


def read(*paths, corpora=CORPORA, ladder=LADDER, sizes=("4M", "1B"), tasks=TASKS, **metrics) -> pl.DataFrame:
    return read_evaluations(paths, corpora, ladder, sizes, tasks, **metrics)


def expected(rows, tasks=TASKS, metrics=METRICS) -> dict[tuple[str, str, str], float]:
    """checkpoint, task, metric -> value, in plain Python."""
    values = {}
    for row in rows:
        size, seed = RUNS[row["params"], row["seed"]]
        checkpoint = f"{CORPORA[row['data']]}-{size}-seed{seed}-step{row['step']}"
        task = "mmlu" if row["task"].startswith("mmlu_") else row["task"]
        if task in tasks:
            for key in metrics:
                values.setdefault((checkpoint, task, key), []).append(row["metrics"][key])
    return {key: pytest.approx(fmean(several), rel=1e-12) for key, several in values.items()}


def as_dict(table: pl.DataFrame) -> dict[tuple[str, str, str], float]:
    assert table.schema == pl.Schema(TARGETS_SCHEMA)
    values = {(checkpoint, task, metric): value for checkpoint, task, metric, value, _ in table.iter_rows()}
    assert len(values) == len(table)
    return values


def test_all_ways_to_write_the_metrics_give_the_same(write):
    rows = all_rows()
    wanted = expected(rows)
    assert len(wanted) == 4 * 3 * 3 * 3 * 13
    tables = [read(write(rows, how)) for how in WRITERS]
    assert as_dict(tables[0]) == wanted
    for table in [*tables[1:], read(write(rows[::-1]))]:
        assert table.equals(tables[0])  # to the last bit, in whatever order the rows stand


def test_figures_are_read_to_the_last_digit(write):
    rows = all_rows(["boolq"])
    values = as_dict(read(write(rows), tasks=["boolq"]))
    row = row_of(rows)
    assert [values["dolma17-4M-seed1-step1250", "boolq", key] for key in METRICS] == [
        row["metrics"][key] for key in METRICS
    ]


def test_only_what_is_asked_for(write):
    rows = all_rows()
    metrics = ["margin", "primary_metric"]
    table = read(write(rows), corpora={"Dolma1.7": "dolma17"}, sizes=["1B"], tasks=["boolq", "mmlu"], metrics=metrics)
    some = [row for row in rows if row["data"] == "Dolma1.7" and row["params"] == "1B"]
    assert as_dict(table) == expected(some, ["boolq", "mmlu"], metrics)
    assert len(table) == 2 * 3 * 2 * 2


def test_rows_that_are_not_wanted_may_hold_anything(write):
    rows = all_rows()
    for row in rows:
        if row["data"] != "Dolma1.7" or row["params"] != "1B" or row["task"] != "boolq":
            row["metrics"] = row["metrics"] | {"margin": None}
    table = read(write(rows), corpora={"Dolma1.7": "dolma17"}, sizes=["1B"], tasks=["boolq"])
    assert len(table) == 2 * 3 * 13


def test_several_files_of_several_kinds(write):
    rows = all_rows()
    parts = [
        write(rows[:50], "json", "a.parquet"),
        write(rows[50:100], "struct", "b.parquet"),
        write(rows[100:], name="c.parquet"),
    ]
    assert read(*parts).equals(read(write(rows)))
    assert as_dict(read(*parts)) == expected(rows)


@pytest.mark.parametrize(
    "seeds, kind",
    [
        (["default", "small-aux-2", "large_aux_2"], pl.String),
        (["Default", "Small Aux 2", "LARGE AUX 2"], pl.String),
        (["6198", "14", "4"], pl.String),
        (["6198", "14", "4"], pl.Int64),
        (["6198", "14", "4"], pl.Float64),
    ],
)
def test_spellings_of_seeds(write, seeds, kind):
    rows = all_rows(["boolq"])
    names = dict(zip(["default", "small aux 2", "large aux 2"], seeds))
    other = [row | {"seed": names[row["seed"]]} for row in rows]
    assert read(write(other, seed=kind), tasks=["boolq"]).equals(read(write(rows), tasks=["boolq"]))


def test_spellings_of_corpora_sizes_and_steps(write):
    rows = all_rows(["boolq"])
    same = {"DCLM-Baseline (QC 10%)": "dclm_baseline-QC 10", "DCLM-Baseline (QC 20%)": "x-y", "Dolma1.7": "dolma1_7"}
    other = [row | {"data": same[row["data"]], "params": row["params"].lower()} for row in rows]
    corpora = CORPORA | {"X/Y": "qc20"}  # a corpus may have several spellings
    table = read(write(other, step=pl.Float64), corpora=corpora, tasks=["boolq"])
    assert table.equals(read(write(rows), tasks=["boolq"]))


def test_punctuation_separates_numbers(write):
    """1.1 and 11 are two corpora, whatever stands between the digits."""
    rows = [row | {"data": "Dolma 11"} if row["data"] != "Dolma1.7" else row for row in all_rows(["boolq"])]
    with pytest.raises(InputError, match=r"column data: no row of 'Dolma 1.1' \(d\)"):
        read(write(rows), corpora={"Dolma 1.1": "d"}, tasks=["boolq"])


def test_one_row_of_mmlu_stands_for_its_subjects(write):
    rows = all_rows(["mmlu", "boolq", *SUBJECTS])
    wanted = expected([row for row in rows if row["task"] not in SUBJECTS], ["mmlu", "boolq"])
    for row in rows:
        if row["task"] in SUBJECTS:
            row["metrics"]["margin"] = None  # they are not even looked at
    assert as_dict(read(write(rows), tasks=["mmlu", "boolq"])) == wanted
    table = read(write(all_rows()), tasks=["mmlu", "mmlu_anatomy"])
    assert table["task"].unique().sort().to_list() == ["mmlu", "mmlu_anatomy"]


def test_a_row_that_stands_there_twice_counts_once(write):
    rows = all_rows()
    twice = [row for row in rows if row["params"] == "1B" and row["seed"] == "default"]
    assert read(write(rows + twice)).equals(read(write(rows)))


def test_problems_behind_a_value(write):
    table = read(write(all_rows()), tasks=["boolq", "mmlu", "mmlu_anatomy"])
    assert dict(table.select("task", "n").unique().iter_rows()) == {"boolq": 3270, "mmlu": 14042, "mmlu_anatomy": None}


@pytest.mark.published
def test_problems_follow_from_published_accuracies():
    table = pl.read_csv(PUBLISHED / "datadecide_accuracy_1b.csv")
    for task in PROBLEMS.keys() - {"mmlu"}:
        accuracies = table.filter(task=task)["acc_1b_default_seed"].to_numpy()
        smallest = next(n for n in range(1, 20_000) if abs(accuracies * n - (accuracies * n).round()).max() < 1e-6)
        assert PROBLEMS[task] == smallest


def lacking(rows, **labels):
    return [row for row in rows if not all(row[name] == value for name, value in labels.items())]


MISSING = {
    "corpus": (dict(data="Dolma1.7"), r"column data: no row of 'Dolma1.7' \(dolma17\); the closest found: \['DCLM-"),
    "size": (dict(params="4M"), r"column params: no row of '4M' \(4M\); the closest found: \['1B'\]"),
    "seed": (dict(seed="large aux 2"), r"column seed: no row of '4' \(large-aux-2\); the closest found: \["),
    "task": (dict(task="arc_easy"), r"column task: no row of 'arc_easy'; the closest found: \['mmlu_"),
    "run": (
        dict(data="Dolma1.7", params="4M", seed="default"),
        r"no row of corpus dolma17, size 4M, seed 0 \(default\)",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named(write, what):
    labels, words = MISSING[what]
    path = write(lacking(all_rows(), **labels))
    with pytest.raises(InputError, match=words) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_a_seed_that_no_corpus_has_at_a_size_is_left_out(write, caplog):
    """The ladder knows runs that ended early, which nobody evaluated."""
    rows = all_rows(["boolq"])
    shape = LADDER.sizes["1B"].model_copy(update={"seeds": {0: "default", 1: "large-aux-2", 2: "small-aux-2"}})
    longer = LADDER.model_copy(update={"sizes": LADDER.sizes | {"1B": shape}})
    assert read(write(rows), ladder=longer, tasks=["boolq"]).equals(read(write(rows), tasks=["boolq"]))
    assert caplog.messages == [f"{write(rows)}: no row of size 1B, seed 2 (small-aux-2); it is left out"]
    rows = [row | {"seed": "other"} if row["params"] == "1B" else row for row in rows]
    rows += [row | {"params": "6M", "seed": "large aux 2"} for row in rows]
    with pytest.raises(InputError, match=r"no row of corpus qc10, size 1B, seed 0 \(default\)"):
        read(write(rows), tasks=["boolq"])


def test_five_close_spellings_are_shown(write):
    rows = [row | {"data": f"Dolma1.7 (no {i})"} for row in all_rows(["boolq"]) for i in range(8)]
    with pytest.raises(InputError) as caught:
        read(write(rows), corpora={"Dolma1.7": "dolma17"}, tasks=["boolq"])
    assert str(caught.value).count("Dolma1.7 (no ") == 5


def test_mmlu_without_any_row(write):
    with pytest.raises(InputError, match="column task: no row of 'mmlu'"):
        read(write(all_rows(["boolq"])), tasks=["boolq", "mmlu"])


def test_a_checkpoint_without_all_subjects(write):
    rows = lacking(all_rows(), task="mmlu_virology", data="Dolma1.7", params="1B", seed="large aux 2", step=5725)
    with pytest.raises(InputError, match="2 of 3 subjects of mmlu for dolma17-1B-seed1-step5725; all must be there"):
        read(write(rows))
    read(write(rows), tasks=["boolq"])


def test_ambiguous_spellings(write):
    path = write([row | {"data": "Dolma1.7++"} if row["step"] == 0 else row for row in all_rows(["boolq"])])
    with pytest.raises(InputError, match=r"column data: 'Dolma1/7' \(d\) may be \['Dolma1.7', 'Dolma1.7\+\+'\]"):
        read(path, corpora={"Dolma1/7": "d"}, tasks=["boolq"])
    with pytest.raises(InputError, match=r"'dolma1.7' \(b\) may be"):
        read(write(all_rows(["boolq"])), corpora={"Dolma1.7": "a", "dolma1.7": "b"}, tasks=["boolq"])


def test_a_size_that_the_ladder_does_not_have(write):
    with pytest.raises(InputError, match=r"size 6M: not in ladder two-sizes; found there \['4M', '1B'\]"):
        read(write(all_rows()), sizes=["4M", "6M"])


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_figures_that_are_none(write, how, value):
    rows = all_rows()
    row_of(rows)["metrics"]["margin_per_char"] = value
    row_of(rows, task="arc_easy", step=0)["metrics"]["margin"] = value
    row_of(rows, task="arc_easy", step=0)["metrics"]["total_prob"] = value
    words = (
        r": (margin|margin_per_char) of dolma17-4M-seed1-step(0|1250), task (arc_easy|boolq) is .*; 3 figures are not"
    )
    with pytest.raises(InputError, match=words) as caught:
        read(write(rows, how))
    assert str(value).lower()[:3] in str(caught.value).lower() or "null" in str(caught.value)
    read(write(rows, how), metrics=["primary_metric", "margin_per_token"])


@pytest.mark.parametrize("how", ["dict", "json"])
def test_a_key_that_a_later_row_lacks(write, how):
    rows = all_rows()
    rows[0], rows[-1] = row_of(rows, task="arc_easy"), row_of(rows)
    del rows[-1]["metrics"]["margin_per_char"]
    words = r"no key 'margin_per_char' in dolma17-4M-seed1-step1250, task boolq; found \['predicted_index_raw', "
    with pytest.raises(InputError, match=words):
        read(write(rows, how), tasks=["boolq"], corpora={"Dolma1.7": "dolma17"})


@pytest.mark.parametrize("how", WRITERS)
def test_a_key_that_no_row_has(write, how):
    rows = all_rows()
    for row in rows:
        del row["metrics"]["margin"]
    path = write(rows, how)
    with pytest.raises(InputError, match="no key 'margin'; found in the first row .*'margin_per_char'") as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_rows_of_one_key_that_differ(write):
    rows = all_rows()
    other = row_of(rows) | {"metrics": row_of(rows)["metrics"] | {"margin": 0.5}}
    with pytest.raises(InputError, match="dolma17-4M-seed1-step1250, task boolq stands there twice"):
        read(write([*rows, other]))


@pytest.mark.parametrize("value", [43.1, -0.2])
def test_a_share_beyond_0_to_1(write, value):
    """Accuracy in percent. What is no share, such as a sum of probabilities, may exceed 1."""
    rows = all_rows()
    row_of(rows)["metrics"]["total_prob_per_char"] = 1.7
    assert 1.7 in read(write(rows))["value"]
    row_of(rows)["metrics"]["primary_metric"] = value
    words = f"primary_metric of dolma17-4M-seed1-step1250, task boolq is {value}; .* must lie in 0 to 1"
    with pytest.raises(InputError, match=words):
        read(write(rows))


@pytest.mark.parametrize("step", [0.5, -1.0, None, float("nan")])
def test_steps_that_are_none(write, step):
    rows = [row | {"step": float(row["step"])} for row in all_rows()]
    row_of(rows)["step"] = step
    with pytest.raises(InputError, match=f"column step: found {step}; it must be a whole number"):
        read(write(rows))


def test_files_that_are_no_evaluations(write, tmp_path):
    path = write(all_rows())
    table = pl.read_parquet(path)
    table.drop("step").write_parquet(path)
    with pytest.raises(InputError, match=r"column step: missing; found \['params', 'data', 'task', 'seed', 'metrics'"):
        read(path)
    table.with_columns(metrics=1.0).write_parquet(path)
    with pytest.raises(InputError, match="column metrics: found Float64; it must be a struct, or text"):
        read(path)
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="cut.parquet: found no whole parquet file"):
        read(tmp_path / "cut.parquet")


def test_figures_in_another_notation_are_not_cut_short(write):
    """A number of many digits is read whole; the text of a numpy scalar, or of no number, is an error."""
    rows = all_rows(["boolq"])
    path = write(rows)
    table = pl.read_parquet(path)
    value = repr(rows[0]["metrics"]["margin"])

    def replace(other):
        table.with_columns(table["metrics"].str.replace(value, other, literal=True)).write_parquet(path)

    replace(digits := "0." + "1" * 60 + "e-05")
    assert float(digits) in read(path, tasks=["boolq"])["value"]
    for other in (f"np.float64({value})", "é" * 30, "x" + "é" * 30):
        replace(other)
        with pytest.raises(InputError, match=f"margin of .* is {other[:5]}"):
            read(path, tasks=["boolq"])
