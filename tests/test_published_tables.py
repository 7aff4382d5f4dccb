"""The reader of the tables that others published, against the known answers that come with them."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import PUBLISHED
from proxycast.compute import compute_to_reach_table, pareto_table
from proxycast.ladder import Ladder, LadderSize, Tokenizer
from proxycast.options import InputError
from proxycast.published import published_curve, published_targets
from proxycast.ranking import DECISION_ACCURACY_COLUMNS, SelectionOptions, decision_accuracy, decision_accuracy_table
from proxycast.targets import TARGETS_SCHEMA, read_target_table

pytestmark = pytest.mark.published

RECIPES, SIZES = "datadecide_recipes.csv", "datadecide_sizes.csv"
ACCURACY, NLL = "datadecide_accuracy_1b.csv", "datadecide_correct_prob_nll.csv"
CURVE, STEPS = "datadecide_decision_accuracy_by_size_step.csv", "datadecide_checkpoint_steps.csv"
# Seeds 1 and 2 of these sizes ended early: the last step that all corpora have, from the lists of their checkpoints.
STOPPED = {"530M": {0: 57776, 1: 51411, 2: 51411}, "750M": {1: 28257, 2: 28257}}

# SOURCES.md: decision accuracy of single seeds at the last step of a size, by an independent calculation.
CORRECT_PROB_NLL = {
    **{"4M": 0.581, "6M": 0.427, "8M": 0.491, "10M": 0.614, "14M": 0.641, "16M": 0.741, "20M": 0.728, "60M": 0.770},
    **{"90M": 0.783, "150M": 0.797, "300M": 0.833, "530M": 0.857, "750M": 0.842},
}
# The known curve of accuracy itself, per seed.
DIRECT_ACCURACY = {"4M": 0.379, "20M": 0.646, "90M": 0.786, "150M": 0.803, "530M": 0.847}


@pytest.fixture(scope="module")
def sizes() -> pl.DataFrame:
    return pl.read_csv(PUBLISHED / SIZES, schema_overrides={"flops_6ND": pl.Float64})


@pytest.fixture(scope="module")
def ladder(sizes) -> Ladder:
    of_1b = {"checkpoint_every": 2500, "seeds": {0: "default", 1: "large-aux-2", 2: "large-aux-3"}}
    return Ladder(
        name="datadecide",
        tokenizer=Tokenizer(hub="allenai/gpt-neox-olmo-dolma-v1_5"),
        vocabulary=50304,
        sequence_length=2048,
        checkpoint_every=1250,
        seeds={0: "default", 1: "small-aux-2", 2: "small-aux-3"},
        sizes={
            row["size"]: LadderSize(
                hidden_size=row["d_model"],
                layers=row["n_layers"],
                heads=row["n_heads"],
                batch_sequences=row["batch_sequences"],
                steps=row["train_steps"],
                learning_rate=row["lr_peak"],
                stopped=STOPPED.get(row["size"], {}),
                **(of_1b if row["size"] == "1B" else {}),
            )
            for row in sizes.iter_rows(named=True)
        },
    )


@pytest.fixture(scope="module")
def corpora() -> dict[str, str]:
    """Display name -> the folder part of the hub's name, which is what the project calls a corpus."""
    table = pl.read_csv(PUBLISHED / RECIPES)
    slug = pl.col("hf_repo_pattern").str.extract("DataDecide-(.*)-<SIZE>")
    return dict(table.select("display_name", slug).iter_rows())


@pytest.fixture(scope="module")
def targets(corpora, ladder) -> pl.DataFrame:
    return published_targets(PUBLISHED, corpora, ladder)


@pytest.fixture
def folder(tmp_path) -> Path:
    for path in PUBLISHED.glob("datadecide_*.csv"):
        shutil.copy(path, tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def truth_of(targets: pl.DataFrame, metric: str, task: str = "olmes_10") -> pl.DataFrame:
    """corpus, task, value."""
    found = targets.filter(metric=metric, task=task)
    return found.select(corpus=pl.col("checkpoint").str.strip_suffix("-1B-seed0-step69369"), task="task", value="value")


def test_the_proxy_has_its_known_decision_accuracies(targets, sizes):
    proxy = targets.filter(metric="log_correct_prob_per_char")
    parts = proxy["checkpoint"].str.extract_groups(r"^(?<corpus>.*)-(?<size>\d+[MB])-seed(?<seed>\d)-step(?<step>\d+)$")
    predictions = (
        proxy.with_columns(parts.struct.unnest())
        .join(sizes, on="size")
        .select(
            *("corpus", "task", "size"),
            statistic="metric",
            weighting=pl.lit("none"),
            kind=pl.lit("proxy"),
            depends_on_candidate=pl.lit(False),
            step=pl.col("step").cast(pl.Int64),
            seed=pl.col("seed").cast(pl.Int64),
            tokens=pl.col("step").cast(pl.Int64) * pl.col("batch_sequences") * 2048,
            score="value",
            parameters="n_params_nonemb",
        )
        .with_columns(flops=6.0 * pl.col("parameters") * pl.col("tokens"))
    )
    assert len(predictions) == 14 * 25 * 3
    options = SelectionOptions(bootstrap_replicates=100)
    judged = decision_accuracy_table(predictions, truth_of(targets, "accuracy"), 7.062e20, options)
    of_seeds = judged.filter(pl.col("seed").is_in(list("012")), task="all")
    assert (of_seeds.group_by("size").len()["len"] == 3).all()
    single = dict(of_seeds.group_by("size").agg(pl.col("decision_accuracy").mean()).iter_rows())
    assert {size: round(single[size], 3) for size in CORRECT_PROB_NLL} == CORRECT_PROB_NLL
    # Each seed stands where its run ended, and costs what it cost up to there.
    listed = pl.read_csv(PUBLISHED / STEPS).with_columns(step=pl.col("steps").str.split(" ").list.last().cast(pl.Int64))
    for size, seed, name in [(s, n, f"small-aux-{n + 1}" if n else "default") for s in STOPPED for n in range(3)]:
        last = listed.filter(size=size, seed_name=name)["step"].mode().item()  # some corpora have a few steps more
        row = of_seeds.row(by_predicate=(pl.col("size") == size) & (pl.col("seed") == str(seed)), named=True)
        assert abs(row["step"] - last) <= 10
    share = {row["seed"]: row["compute_fraction"] for row in of_seeds.filter(size="750M").iter_rows(named=True)}
    assert share == pytest.approx({"0": 0.4342, "1": 0.1929, "2": 0.1929}, abs=1e-4)


def test_one_target_seed_agrees_with_three_on_280_of_300_pairs(targets):
    three, one = truth_of(targets, "accuracy"), truth_of(targets, "accuracy_of_one_seed")
    both = three.join(one, on="corpus")
    assert len(both) == 25
    assert decision_accuracy(both["value_right"], both["value"]) * 300 == 280


def test_the_truth_is_whole_numbers_of_problems(targets):
    """Of one seed k / n, of three seeds k / 3n; olmes_10 is the mean of its ten tasks."""
    truth = targets.filter(pl.col("metric").str.starts_with("accuracy"))
    assert len(truth) == 11 * 25 * 2
    seeds = pl.when(metric="accuracy").then(3).otherwise(1)
    single = truth.filter(~pl.col("task").is_in(["mmlu", "olmes_10"])).with_columns(
        k=pl.col("value") * pl.col("n") * seeds
    )
    assert len(single) == 9 * 25 * 2
    assert single.select((pl.col("k") - pl.col("k").round()).abs().max()).item() < 1e-6
    wide = truth.filter(pl.col("task") != "olmes_10").group_by("checkpoint", "metric").agg(pl.col("value", "n").mean())
    both = wide.join(truth.filter(task="olmes_10"), on=["checkpoint", "metric"])
    assert len(both) == 50
    assert both.select((pl.col("value") - pl.col("value_right")).abs().max()).item() < 1e-9
    assert both.select((pl.col("n") * 10 == pl.col("n_right")).all()).item()


def test_targets_are_a_targets_table(targets, tmp_path):
    assert targets.schema == pl.Schema(TARGETS_SCHEMA)
    targets.write_parquet(tmp_path / "t.parquet")
    assert read_target_table(tmp_path / "t.parquet").equals(targets)
    value = targets.filter(checkpoint="c4-4M-seed1-step5725", metric="log_correct_prob_per_char")["value"].item()
    assert value == -1.4427539
    assert value < 0


def test_corpora_by_either_name_and_only_those(targets, corpora, ladder):
    internal = dict(pl.read_csv(PUBLISHED / RECIPES).select("display_name", "internal_name").iter_rows())
    other = {internal[name]: corpus for name, corpus in corpora.items()}
    assert published_targets(PUBLISHED, other, ladder).equals(targets)
    some = published_targets(PUBLISHED, {"Dolma1.7 (no code)": "c1"}, ladder)
    assert some["checkpoint"].str.starts_with("c1-").all() and len(some) == 14 * 3 + 11 * 2


def test_the_curve(ladder, sizes, targets):
    curve = published_curve(PUBLISHED, ladder)
    assert curve.columns == DECISION_ACCURACY_COLUMNS and len(curve) == 272
    source = pl.read_csv(PUBLISHED / CURVE, schema_overrides={"flops_6ND": pl.Float64})
    assert curve.select("size", "step", "decision_accuracy").equals(source.select("size", "step", "decision_accuracy"))
    assert np.allclose(curve["flops"], source["flops_6ND"], rtol=1e-12)
    assert np.allclose(curve["compute_fraction"] * 100, source["percent_target_compute"], rtol=1e-9)
    tokens = source.join(sizes, on="size", maintain_order="left")
    assert curve["tokens"].equals((tokens["step"] * tokens["batch_sequences"] * 2048).rename("tokens"))
    last = curve.group_by("size", maintain_order=True).agg(pl.col("decision_accuracy").last())
    found = dict(last.iter_rows())
    assert {size: round(found[size], 3) for size in DIRECT_ACCURACY} == DIRECT_ACCURACY
    constant = dict(task="all", statistic="accuracy", weighting="none", kind="baseline", seed="single", corpora=25)
    assert curve.select(list(constant)).unique().to_dicts() == [constant]
    assert not curve["depends_on_candidate"].any()
    assert (
        curve.select("low", "spearman", "kendall", "best_baseline", "difference_high").null_count().row(0) == (272,) * 5
    )


def test_the_curve_in_a_study_of_some_corpora_is_marked(ladder, corpora):
    """It was published for all 25 together: of some it is no baseline, on no frontier, and says what it is."""
    names = list(corpora.values())
    whole = published_curve(PUBLISHED, ladder)
    assert published_curve(PUBLISHED, ladder, names).equals(whole) and set(whole["note"]) == {""}
    curve = published_curve(PUBLISHED, ladder, names[:8])
    assert set(curve["note"]) == {"published for all 25 corpora, of which this study has 8"}
    constant = {"statistic": "accuracy_of_25_corpora", "kind": "published", "corpora": 25}
    assert curve.select(list(constant)).unique().to_dicts() == [constant]
    marked = ["statistic", "kind", "note"]
    assert curve.drop(marked).equals(whole.drop(marked))
    own = whole.head(1).with_columns(decision_accuracy=pl.lit(0.3), statistic=pl.lit("own"))
    pareto = pareto_table(pl.concat([curve, own]), dict.fromkeys(ladder.sizes, 1), None)
    assert pareto.filter("on_frontier")["statistic"].to_list() == ["own"]
    assert pareto.filter(statistic="accuracy_of_25_corpora", on_own_frontier=True).height > 1
    assert set(compute_to_reach_table(pareto, [0.8])["kind"]) == {"published", "baseline"}


def test_the_curve_stands_under_a_decision_accuracy_table(ladder, targets):
    """The same columns and types as the project's own, so that one is put under the other."""
    truth = truth_of(targets, "accuracy")
    labels = dict(statistic="s", weighting="none", kind="proxy", size="4M")
    predictions = truth.rename({"value": "score"}).with_columns(
        depends_on_candidate=pl.lit(False),
        step=1,
        seed=0,
        tokens=1,
        flops=1.0,
        **{k: pl.lit(v) for k, v in labels.items()},
    )
    table = decision_accuracy_table(predictions, truth, 1.0, SelectionOptions(bootstrap_replicates=100))
    curve = published_curve(PUBLISHED, ladder)
    both = pl.concat([table, curve.cast(dict(table.schema))])
    assert len(both) == len(table) + 272
    assert {k: v for k, v in curve.schema.items() if k not in ("step",)} == {
        k: v for k, v in table.schema.items() if k not in ("step",)
    }


@pytest.mark.parametrize("name", [RECIPES, ACCURACY, NLL])
def test_files_and_columns_that_are_missing(folder, corpora, ladder, name):
    header = (folder / name).read_text().splitlines()[0].split(",")
    column = {RECIPES: "display_name", ACCURACY: "acc_1b_default_seed", NLL: "seed_index"}[name]
    edit(folder / name, column, "other")
    with pytest.raises(InputError, match=f"{name}, column {column}: missing; found .*'other'"):
        published_targets(folder, corpora, ladder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file; it should have the columns .*{header[0]}"):
        published_targets(folder, corpora, ladder)


MISTAKES = {
    "value": (
        NLL,
        "4M,3744832,C4,0,1.4279067",
        "4M,3744832,C4,0,",
        r"row 2, column nll: found (None|''); it must be a",
    ),
    "nan": (NLL, "4M,3744832,C4,1,1.4427539", "4M,3744832,C4,1,nan", r"row 3, column nll: found 'nan'; it must be a"),
    "seed": (NLL, "C4,1,", "C4,3,", "found size 4M, seed 3; ladder datadecide has no such run"),
    "size": (NLL, "4M,3744832,C4,1,", "5M,3744832,C4,1,", "found size 5M, seed 1; ladder datadecide has no such run"),
    "twice": (NLL, "C4,1,", "C4,0,", r"\['c4-4M-seed0-step5725', 'olmes_10', 'log_correct_prob_per_char'\] stands"),
    "percent": (
        ACCURACY,
        "0.4112627986348123",
        "41.126",
        r"row 2, column acc_1b_default_seed: found 41.126; .* 0 to 1",
    ),
    "negative": (
        NLL,
        "C4,0,1.4279067",
        "C4,0,-1.4279067",
        r"row 2, column nll: found -1.4279067; it must be 0 or more",
    ),
    "task": (ACCURACY, "arc_challenge,", "arc,", "column task: found 'arc'; it must be one of"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_table_are_named(folder, corpora, ladder, mistake):
    name, old, new, words = MISTAKES[mistake]
    edit(folder / name, old, new)
    with pytest.raises(InputError, match=words) as caught:
        published_targets(folder, corpora, ladder)
    assert str(folder) in str(caught.value)


def test_a_corpus_that_was_not_published(corpora, ladder):
    with pytest.raises(
        InputError, match=r"column recipe: no row of 'Dolma1.8' \(d18\); the closest found: \['Dolma1.7'"
    ):
        published_targets(PUBLISHED, corpora | {"Dolma1.8": "d18"}, ladder)


def test_a_ladder_without_the_target(folder, corpora, ladder):
    small = ladder.model_copy(update={"sizes": {"4M": ladder.sizes["4M"]}})
    with pytest.raises(InputError, match="found size 6M, seed 0; ladder datadecide has no such run"):
        published_targets(folder, corpora, small)
    lines = (folder / NLL).read_text().splitlines()
    (folder / NLL).write_text("\n".join(line for line in lines if line.startswith(("size", "4M"))))
    for read in (lambda: published_targets(folder, corpora, small), lambda: published_curve(folder, small)):
        with pytest.raises(InputError, match=r"size 1B is not in ladder datadecide; found \['4M'\]"):
            read()


def test_a_curve_that_contradicts_itself_or_the_ladder(folder, ladder):
    edit(folder / CURVE, ",472,", ",473,")
    with pytest.raises(
        InputError, match=r"size 4M, step 1250, column decision_accuracy: found 0.524.*; it must be 0.525"
    ):
        published_curve(folder, ladder)
    shutil.copy(PUBLISHED / CURVE, folder)
    edit(folder / CURVE, "4M,2500,", "4M,2501,")
    with pytest.raises(InputError, match=r"size 4M, step 2501, column flops_6ND: found 3681319649280000.0; it must be"):
        published_curve(folder, ladder)
    (folder / CURVE).unlink()
    with pytest.raises(InputError, match="no such file"):
        published_curve(folder, ladder)
