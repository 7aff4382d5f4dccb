"""Scaling laws as predictions: against laws fitted one by one, sums of compute, and what is told without a fit."""

import logging
from itertools import product

import numpy as np
import polars as pl
import pytest
from proxycast.config.errors import parse
from proxycast.config.experiments.selection_options import ScalingLawOptions, SelectionOptions
from proxycast.experiments.data_selection.law_predictions import (
    GAINS_SCHEMA,
    LAWS_SCHEMA,
    POINTS_SCHEMA,
    law_fits,
    law_rows,
    law_tables,
    size_name,
    size_sets,
)
from proxycast.experiments.laws.scaling_laws import LAWS, fit_plain_laws
from proxycast.experiments.rank_statistics import decision_accuracy
from proxycast.options import InputError

CORPORA, TASKS, SEEDS = [f"c{n}" for n in range(6)], ["dates", "sums"], [0, 1]
SIZES = {"1M": 1e6, "2M": 2e6, "4M": 4e6, "8M": 8e6, "32M": 32e6}
STEPS = [10, 20, 30, 40]
TOKENS_A_STEP = 1e6
KEYS = ["corpus", "size", "step", "seed", "tokens", "flops"]
OPTIONS = SelectionOptions(
    bootstrap_replicates=200,
    scaling_laws={"sources": ["bits_per_byte", "top5_accuracy/uniform"], "laws": ["2_param", "3_param"]},
)


def row(corpus: str, size: str, step: int, seed: int) -> dict:
    tokens = int(TOKENS_A_STEP * step)
    role = "target" if size == "32M" else "proxy"
    return {
        **{"corpus": corpus, "size": size, "step": step, "seed": seed, "tokens": tokens, "role": role},
        "flops": 6 * SIZES[size] * tokens,
        "active_parameters": int(SIZES[size]),
    }


CHECKPOINTS = pl.DataFrame([row(*key) for key in product(CORPORA, SIZES, STEPS, SEEDS)])


def predictions(checkpoints: pl.DataFrame = CHECKPOINTS) -> pl.DataFrame:
    """Scores of every small checkpoint: a loss that falls, a proxy and a metric that follow it, with some noise."""
    random, rows = np.random.default_rng(0), []
    for c in checkpoints.filter(role="proxy").iter_rows(named=True):
        quality = CORPORA.index(c["corpus"])
        for number, task in enumerate(TASKS):
            loss = 0.4 + (5 - quality) / 30 + 30 * (1 + number / 5) * c["flops"] ** -0.11 + 0.01 * random.normal()
            accuracy = 0.9 - 0.6 / (1 + np.exp(-6 * (loss - 0.8)))
            scores = [("bits_per_byte", "none", "baseline", -loss), ("accuracy", "none", "baseline", accuracy)]
            scores += [("top5_accuracy", "uniform", "proxy", float(np.clip(1 - loss / 3, 0, 1)))]
            scores += [("margin_of_both_signs", "none", "baseline", 1.4 - loss), ("chance", "none", "baseline", 0.0)]
            for statistic, weighting, kind, score in scores:
                head = {"task": task, "statistic": statistic, "weighting": weighting, "kind": kind}
                rows.append({k: c[k] for k in KEYS} | head | {"depends_on_candidate": False, "score": score})
    return pl.DataFrame(rows)


TRUTH = pl.DataFrame(
    [{"corpus": c, "task": t, "value": 0.4 + n / 20} for (n, c), t in product(enumerate(CORPORA), TASKS)]
)


def options_of(**laws: object) -> SelectionOptions:
    return OPTIONS.model_copy(update={"scaling_laws": OPTIONS.scaling_laws.model_copy(update=laws)})


def made(options: SelectionOptions = OPTIONS, predicted: pl.DataFrame | None = None):
    predicted = predictions() if predicted is None else predicted
    rows = law_rows(predicted, options.scaling_laws, "accuracy")
    return law_tables(rows, CHECKPOINTS, {"accuracy": TRUTH, "other": TRUTH}, "accuracy", options)


@pytest.fixture(scope="module")
def tables():
    return made()


def test_every_fit_is_the_one_made_alone(tables):
    """A share is extrapolated as what it lacks to 1, a loss as itself."""
    fits, scores = tables[0]["scaling_laws"], predictions().filter(step=40)
    assert fits.schema == LAWS_SCHEMA and len(fits) == 2 * 2 * len(CORPORA) * len(TASKS) * len(SEEDS)
    target = 6 * SIZES["32M"] * 40 * TOKENS_A_STEP
    for found in fits.sample(12, seed=0).iter_rows(named=True):
        key = {name: found[name] for name in ("statistic", "weighting", "corpus", "task", "seed")}
        own = scores.filter(**key).sort("flops")
        best = 1 if found["statistic"] == "top5_accuracy" else 0
        compute, loss = own["flops"].to_numpy()[None], best - own["score"].to_numpy()[None]
        (alone,) = fit_plain_laws(LAWS[found["law"]], compute, loss, target)
        assert found["predicted"] == pytest.approx(best - alone.predicted)
        assert found["A"] == pytest.approx(alone.parameters["A"]) and found["residual"] == pytest.approx(alone.residual)
        assert (found["points"], found["sizes"], found["note"]) == (4, "1M to 8M", alone.note)


def test_compute_is_the_sum_over_the_sizes(tables):
    (laws, judged, cells), target = tables, 6 * SIZES["32M"] * 40 * TOKENS_A_STEP
    spent = sum(6 * SIZES[size] * 40 * TOKENS_A_STEP for size in ("1M", "2M", "4M", "8M"))
    for table in (laws["scaling_laws"], judged["accuracy"]):
        assert table["flops"].unique().to_list() == pytest.approx([spent])
        assert table["compute_fraction"].unique().to_list() == pytest.approx([spent / target])
    assert laws["scaling_laws"]["extrapolation"].unique().to_list() == pytest.approx([4.0])
    assert judged["accuracy"]["tokens"].unique().to_list() == [4 * 40 * TOKENS_A_STEP]
    assert [(cell.name, cell.step, list(cell.sizes)) for cell in cells] == [("1M to 8M", 40, ["1M", "2M", "4M", "8M"])]
    ends = laws["law_points"]
    assert ends.schema == POINTS_SCHEMA and set(ends["step"]) == {40} and len(ends) == 2 * 4 * 6 * 2 * 2


def test_a_seed_that_ended_early_costs_what_it_took():
    """As the seeds of DataDecide's 750M: each is fitted to its own ends, at its own compute."""
    early = (pl.col("seed") == 1) & (pl.col("size") == "8M") & (pl.col("step") > 20)
    _, judged, _ = made(predicted=predictions(CHECKPOINTS.filter(~early)))
    flops = dict(judged["accuracy"].select("seed", "flops").unique().iter_rows())
    whole = sum(6 * SIZES[size] * 40 * TOKENS_A_STEP for size in ("1M", "2M", "4M", "8M"))
    short = whole - 6 * SIZES["8M"] * 20 * TOKENS_A_STEP
    assert flops == pytest.approx({"0": whole, "1": short, "mean": (whole + short) / 2, "single": (whole + short) / 2})


def test_decision_accuracies_and_gains_by_hand(tables):
    laws, judged, _ = tables
    table, gains = judged["accuracy"], laws["law_gains"]
    assert table.equals(judged["other"]) and gains.schema == GAINS_SCHEMA
    names = {f"{law} of {source}" for law in ("2_param", "3_param") for source in ("bits_per_byte", "top5_accuracy")}
    assert set(table["statistic"]) == names and set(table["task"]) == {"all", *TASKS}
    assert dict(table.select("statistic", "kind").unique().iter_rows())["2_param of top5_accuracy"] == "proxy"
    true = TRUTH.group_by("corpus").agg(pl.col("value").mean()).sort("corpus")["value"]
    score = pl.col("score").mean()
    for gain in gains.filter(seed="single").iter_rows(named=True):
        source = {name: gain[name] for name in ("statistic", "weighting")}
        fits = laws["scaling_laws"].filter(law=gain["law"], **source).with_columns(score="predicted")
        alone = predictions().filter(step=40, size="8M", **source)
        shares = []
        for found in (fits, alone):
            by_seed = found.group_by("seed", "corpus").agg(score).sort("seed", "corpus").partition_by("seed")
            shares.append(np.mean([decision_accuracy(part["score"].round(12), true) for part in by_seed]))
        assert gain["decision_accuracy"] == pytest.approx(shares[0])
        assert gain["single_decision_accuracy"] == pytest.approx(shares[1])
        assert gain["difference"] == pytest.approx(shares[0] - shares[1])
        own = table.filter(statistic=f"{gain['law']} of {gain['statistic']}", task="all", seed="single")
        assert own["decision_accuracy"].item() == pytest.approx(shares[0])
        assert gain["single_size"] == "8M" and gain["fits"] == 24
    assert not gains["difference"].is_null().any()


def test_the_best_baseline_is_a_law_or_one_of_the_largest_size(tables):
    table = tables[1]["accuracy"].filter(task="all", seed="single")
    known = {"2_param of bits_per_byte", "3_param of bits_per_byte", "bits_per_byte", "accuracy", "chance"}
    assert set(table["best_baseline"]) <= known | {"margin_of_both_signs"}
    assert (table["difference"] <= 1e-12).all()


def test_laws_that_end_in_the_metric():
    options = options_of(laws=("3_param-default", "5_param-ai2"), sources=OPTIONS.scaling_laws.sources[:1])
    laws, judged, _ = made(options, predictions().filter(seed=0))
    fits = laws["scaling_laws"]
    assert fits["predicted"].is_between(0, 1).all() and fits["link_a"].is_not_null().all()
    assert fits.filter(law="5_param-ai2")["beta"].is_not_null().all()
    assert fits.filter(law="5_param-ai2")["note"].str.contains("5 parameters, 4 sizes: not unique").all()
    assert set(judged["accuracy"]["statistic"]) == {"3_param-default of bits_per_byte", "5_param-ai2 of bits_per_byte"}


@pytest.mark.parametrize(
    "laws, words",
    [
        ({"sources": ["margin_of_both_signs"]}, "not fitted: a law needs a loss, or a share of which more is better"),
        ({"sources": ["rbridge"]}, "not fitted: no values at 1M, 2M, 4M, 8M"),
        ({"sizes": [["1M", "2M"]]}, "not fitted: 3 sizes are needed, found 2"),
        ({"laws": ["3_param-default"]}, "the metric of the truth was not measured at these sizes"),
    ],
)
def test_nothing_is_fitted_in_silence(caplog, laws, words):
    given = OPTIONS.scaling_laws.model_dump() | laws
    options = OPTIONS.model_copy(update={"scaling_laws": ScalingLawOptions(**given)})
    predicted = predictions()
    if "laws" in laws:
        predicted = predicted.filter(pl.col("statistic") != "accuracy")
    with caplog.at_level(logging.WARNING):
        found, judged, _ = made(options, predicted)
    noted = found["scaling_laws"].filter(pl.col("note").str.contains(words, literal=True))
    assert len(noted) and noted["predicted"].is_null().all() and words in caplog.text
    kept = {"2_param of bits_per_byte", "2_param of top5_accuracy"} if "sizes" in laws else set()
    assert set(judged["accuracy"]["statistic"] if judged else ()) == kept


def test_names_of_sets_of_sizes():
    ladder = ["4M", "20M", "60M", "90M"]
    assert size_name(["20M", "60M"], ladder) == "20M to 60M"
    assert size_name(["4M", "60M"], ladder) == "4M, 60M"
    sets = size_sets(predictions(), CHECKPOINTS, OPTIONS.scaling_laws)
    assert [size_set.name for size_set in sets] == ["1M to 8M"]
    options = ScalingLawOptions(sources=["bits_per_byte"], sizes=[["8M", "1M", "4M"]])
    assert [size_set.name for size_set in size_sets(predictions(), CHECKPOINTS, options)] == ["1M, 4M, 8M"]


def test_a_source_without_the_ends_of_a_run_is_told():
    lacking = predictions().filter(
        ~((pl.col("size") == "4M") & (pl.col("statistic") == "top5_accuracy") & (pl.col("step") == 40))
    )
    sets = size_sets(lacking, CHECKPOINTS, OPTIONS.scaling_laws)
    fits = law_fits(lacking, sets, OPTIONS.scaling_laws, "accuracy")["scaling_laws"]
    assert set(fits.filter(statistic="top5_accuracy")["note"]) == {"not fitted: the ends of some runs have no value"}
    assert fits.filter(statistic="bits_per_byte")["predicted"].is_not_null().all()


@pytest.mark.parametrize(
    "given, words",
    [
        ({}, "sources: Field required"),
        ({"sources": []}, "sources"),
        ({"sources": ["bits_per_byte"], "laws": ["4_param"]}, "laws"),
        ({"sources": ["bits_per_byte"], "sizes": [["4M"]]}, "at least two different sizes"),
        ({"sources": ["bits_per_byte", "bits_per_byte"]}, "more than once"),
        ({"sources": ["top5_accuracy/loud"]}, "weighting 'loud' is unknown"),
    ],
)
def test_options_that_cannot_be(given, words):
    with pytest.raises(InputError, match=words):
        parse(SelectionOptions, {"scaling_laws": given}, "study.yaml", "selection")
