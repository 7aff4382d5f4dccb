"""The regression over mixtures: against refits, loops and a known optimum; what optimisers read; what is refused."""

from itertools import combinations, product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.config.truth import Target
from proxycast.experiments.data_selection import mixtures
from proxycast.experiments.data_selection.mixtures import (
    NEXT_SCHEMA,
    PREDICTIONS_SCHEMA,
    REGRESSION_SCHEMA,
    as_csv,
    mixture_metrics,
    mixture_tables,
    sharing_sources,
    too_few,
)
from proxycast.experiments.laws import mixture_law as laws
from scipy.optimize import minimize
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

FAST = SelectionOptions(bootstrap_replicates=200)
SOURCES = ["books", "code", "math", "web"]
# Of two tasks: one learns from code, the other from books; web helps neither.
SLOPES = np.array([[1.0, -2.5], [-2.5, 1.0], [0.4, 0.3], [0.8, 0.8]])


def true_values(ratios):
    """The value of each of two tasks at `ratios` (m, K)."""
    return 0.5 + np.exp(ratios @ SLOPES)


def drawn(n=30, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    ratios = rng.dirichlet(np.ones(len(SOURCES)), n)
    return ratios, true_values(ratios) + noise * rng.standard_normal((n, 2))


def as_mixtures(ratios):
    return {f"m{n:02}": dict(zip(SOURCES, map(float, row))) for n, row in enumerate(ratios)}


def as_metrics(values, metric="bits_per_byte/20M-step9"):
    told = {"statistic": "bits_per_byte", "weighting": "none", "kind": "baseline", "size": "20M", "step": 9}
    rows = [
        {"run": f"m{n:02}", "task": task, "metric": metric, **told, "value": float(value)}
        for n, row in enumerate(values)
        for task, value in (("all", row.mean()), *zip("ab", row))
    ]
    return pl.DataFrame(rows)


def test_floor_and_ridge_are_those_of_refits_without_each_mixture(monkeypatch):
    monkeypatch.setattr(laws, "RIDGES", laws.RIDGES[4:12:2])
    ratios, values = drawn(10, noise=0.1)
    values = values[:, :1]
    s = np.linalg.svd(ratios - ratios.mean(0), compute_uv=False)
    errors = {}
    for floor, ridge in product(laws.FLOORS, laws.RIDGES * (s**2).mean()):
        bottom = values.min() - np.ptp(values) * floor
        missed = []
        for i in range(len(ratios)):
            rest = np.arange(len(ratios)) != i
            fitted = Ridge(ridge, solver="svd").fit(ratios[rest], np.log(values[rest, 0] - bottom))
            missed.append(bottom + np.exp(fitted.predict(ratios[[i]])[0]) - values[i, 0])
        errors[floor, ridge] = np.mean(np.square(missed))
    floor, ridge = min(errors, key=errors.get)
    bottom = values.min() - np.ptp(values) * floor
    expected = Ridge(ridge, solver="svd").fit(ratios, np.log(values[:, 0] - bottom))
    others, _ = drawn(9, seed=1)
    found = laws.fit_log_linear(ratios, values).predict(others)
    assert found == pytest.approx(bottom + np.exp(expected.predict(others)), rel=1e-9)


def test_the_known_optimum_is_found():
    ratios, values = drawn(30, noise=0.01)
    best = minimize(
        lambda z: true_values(np.exp(z) / np.exp(z).sum()).mean(), np.zeros(len(SOURCES)), method="Nelder-Mead"
    ).x
    best = np.exp(best) / np.exp(best).sum()
    assert best.max() < 0.7  # it lies between the sources
    chosen = laws.proposals(laws.fit_log_linear(ratios, values), ratios, seed=0)
    nearest_seen = laws.distances(best[None], ratios).min()
    assert laws.distances(best[None], chosen.ratios[:1]).item() < min(0.12, nearest_seen)
    assert true_values(chosen.ratios[:1]).mean() < true_values(ratios).mean(1).min()
    assert chosen.ratios.sum(1) == pytest.approx(1)
    assert (laws.distances(chosen.ratios, ratios).min(1)[~chosen.inside] <= laws.REACH + 0.01).all()
    of_truth = spearmanr(laws.held_out(laws.LAW, ratios, values, 0)[0], values.mean(1)).statistic
    assert of_truth > 0.98


def test_inside_is_what_a_mean_of_mixtures_can_be():
    ratios, _ = drawn(6)
    rng = np.random.default_rng(3)
    assert all(laws.is_inside(rng.dirichlet(np.ones(6)) @ ratios, ratios) for _ in range(20))
    assert not any(laws.is_inside(corner, ratios) for corner in np.eye(len(SOURCES)))


def test_predictions_of_held_out_mixtures_are_those_of_fits_without_them():
    ratios, values = drawn(12, noise=0.1)
    rest = np.arange(12) != 7
    for method, fit in laws.METHODS.items():
        expected = fit(ratios[rest], values[rest]).predict(ratios[[7]]).item()
        assert laws.held_out(method, ratios, values, 0)[0][7] == pytest.approx(expected)
    apart = np.abs(ratios[:, None] - ratios).sum(-1) / 2 + np.eye(12)
    assert laws.held_out(laws.NEAREST, ratios, values, 0)[0] == pytest.approx(values.mean(1)[apart.argmin(1)])


def test_many_mixtures_are_held_out_in_parts():
    repeats = laws.parts_of(73, seed=5)
    assert len(repeats) == laws.REPEATS and repeats[0][0].tolist() != repeats[1][0].tolist()
    for parts in repeats:
        assert sorted(np.concatenate(parts)) == list(range(73)) and len(parts) == laws.PARTS
    ratios, values = drawn(60, noise=0.05)
    predicted, fits = laws.held_out(laws.MEAN, ratios, values, 5)
    (first, *_), *_ = laws.parts_of(60, 5)
    rest = np.setdiff1d(np.arange(60), first)
    assert {fits[i].value for i in first} == {values[rest].mean()} and predicted.std() > 0


def test_intervals_against_a_loop_and_their_coverage():
    ratios, values = drawn(19, noise=0.2)
    held_out, fits = laws.held_out(laws.LAW, ratios, values, 0)
    residuals, (others, _) = values.mean(1) - held_out, drawn(4, seed=1)
    low, high = laws.prediction_interval(fits, residuals, others, 0.9)
    for m, mixture in enumerate(others):
        below = sorted(f.predict(mixture[None]).item() - abs(r) for f, r in zip(fits, residuals))
        above = sorted(f.predict(mixture[None]).item() + abs(r) for f, r in zip(fits, residuals))
        assert low[m] == pytest.approx(below[1]) and high[m] == pytest.approx(above[17])  # 2nd and 18th of 19
    assert laws.fewest_for_interval(0.95) == 19
    assert laws.prediction_interval(fits[:18], residuals[:18], others, 0.95) is None
    covered = []
    for seed in range(12):
        ratios, values = drawn(20, noise=0.2, seed=seed)
        held_out, fits = laws.held_out(laws.LAW, ratios, values, 0)
        others, measured = drawn(50, noise=0.2, seed=100 + seed)
        low, high = laws.prediction_interval(fits, values.mean(1) - held_out, others, 0.9)
        covered.append(np.mean((low <= measured.mean(1)) & (measured.mean(1) <= high)))
    assert 0.84 < np.mean(covered) < 0.97


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcde"), min_size=1), min_size=1, max_size=6))
def test_the_largest_part_that_shares_its_sources(sources):
    mixtures = {f"m{n}": dict.fromkeys(names, 1 / len(names)) for n, names in enumerate(sources)}

    def shares(runs):
        return all(sum(s in mixtures[other] for other in runs) > 1 for run in runs for s in mixtures[run])

    largest = max((c for n in range(len(mixtures) + 1) for c in combinations(mixtures, n) if shares(c)), key=len)
    assert tuple(sharing_sources(mixtures)) == largest


def test_tables_of_mixtures_that_follow_the_law():
    ratios, values = drawn(24, noise=0.02)
    tables = mixture_tables(as_mixtures(ratios), as_metrics(values), FAST)
    rows = {row["method"]: row for row in tables["mixture_regression"].to_dicts()}
    predictions = tables["mixture_predictions"]
    for method, row in rows.items():
        found = predictions.filter(method=method).sort("run")
        assert found["value"].to_list() == pytest.approx(values.mean(1).tolist())
        assert row["rmse"] == pytest.approx(((found["predicted"] - found["value"]) ** 2).mean() ** 0.5)
        if method != "mean":
            assert row["spearman"] == pytest.approx(spearmanr(found["predicted"], found["value"]).statistic)
            assert row["difference"] == pytest.approx(row["spearman"] - rows["nearest"]["spearman"])
    assert rows["mean"]["spearman"] == 0 and rows["log_linear"]["note"] == ""
    assert rows["log_linear"]["low"] > 0.9 and rows["log_linear"]["difference_low"] > 0
    after = tables["next_mixtures"]
    assert after["metric"].n_unique() == 1 and after["run"].n_unique() == 2 * laws.PROPOSALS
    totals = after.group_by("run").agg(pl.col("ratio").sum())
    assert totals["ratio"].to_list() == pytest.approx([1.0] * len(totals))
    best = after.row(0, named=True)
    assert best["best_value"] == pytest.approx(values.mean(1).min()) and best["gain"] > 0
    assert best["caution"] == (None if best["inside"] else "outside of the mixtures seen")
    assert best["gain"] == pytest.approx(best["best_value"] - best["predicted"])
    assert best["low"] < best["predicted"] < best["high"]
    for _, of_run in after.group_by("run"):
        mixture = np.array([dict(of_run.select("source", "ratio").iter_rows())[s] for s in SOURCES])
        apart = np.abs(ratios - mixture).sum(1) / 2
        assert of_run["distance"][0] == pytest.approx(apart.min()) and of_run["nearest"][0] == f"m{apart.argmin():02}"


def test_noise_is_called_so_and_proposed_with_a_caution():
    ratios, _ = drawn(16)
    values = 1 + 0.1 * np.random.default_rng(8).standard_normal((16, 2))
    tables = mixture_tables(as_mixtures(ratios), as_metrics(values), FAST)
    row = tables["mixture_regression"].row(0, named=True)
    assert row["method"] == "log_linear" and row["low"] < 0 and "not better than chance" in row["note"]
    cautions = tables["next_mixtures"]["caution"].unique()
    assert len(cautions) and all(
        "not better than chance" in text and "it takes 19 mixtures" in text for text in cautions
    )


def test_an_order_that_every_sample_turns_round_has_no_interval():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7])
    predicted = {
        "log_linear": -values,
        "trees": values,
        "nearest": values[::-1] * [1, 1, 1, -1, 1, 1, 1],
        "mean": 0 * values,
    }
    law, trees, nearest, mean = mixtures._judged(predicted, values, FAST)
    assert (law["spearman"], law["low"], law["high"]) == (-1, None, None) and trees["low"] is None
    assert "chance" not in trees["note"]
    assert "not better than chance" in law["note"] and "every sample of mixtures gives" in law["note"]
    assert nearest["low"] < nearest["high"] and (mean["low"], mean["high"]) == (0, 0)


def test_too_few_mixtures_say_how_many_it_takes(caplog):
    ratios, values = drawn(3)
    tables = mixture_tables(as_mixtures(ratios), as_metrics(values), FAST)
    assert "found 3 mixtures of 4 sources; at least 5 different ones are needed" in caplog.text
    schemas = {"mixture_regression": REGRESSION_SCHEMA, "mixture_predictions": PREDICTIONS_SCHEMA}
    for name, schema in (schemas | {"next_mixtures": NEXT_SCHEMA}).items():
        assert tables[name].is_empty() and dict(tables[name].schema) == schema
        assert as_csv(name, tables[name]).columns == list(schema)
    assert tables["ratios"]["run"].n_unique() == 3  # what is known is exported all the same
    own = {"m00": {"web": 1.0}, "m01": {"books": 1.0}, "m02": {"code": 0.5, "math": 0.5}}
    assert too_few(sharing_sources(own)).startswith("found no two mixtures that share all their sources")
    six = {f"m{n}": {f"s{n}": 0.5, f"s{(n + 1) % 6}": 0.5} for n in range(6)}
    assert too_few(six) == "" and too_few({k: six[k] for k in list(six)[:4]})
    many = np.random.default_rng(0).dirichlet(np.ones(17), 6)
    many = {f"m{n}": {f"s{k}": r for k, r in enumerate(row)} for n, row in enumerate(many)}
    assert too_few(many) == "found 6 mixtures of 17 sources; at least 17 different ones are needed"
    tied = {k: {"x": 0.25, "y": 0.25, "z": 0.5 - n / 20, "w": n / 20} for n, k in enumerate("abcde", 1)}
    assert too_few(tied) == ""  # x and y are one source


def test_csv_as_optimisers_read_it(tmp_path):
    ratios, values = drawn(7)
    known = as_mixtures(ratios) | {"alone": {"forum": 1.0}}
    partly = as_metrics(values[:5], "1-accuracy/1B").with_columns(kind=pl.lit("truth"))
    tables = mixture_tables(known, pl.concat([as_metrics(values), partly]), FAST)
    wide = {name: as_csv(name, tables[name]) for name in ("ratios", "metrics")}
    assert [table.columns[0] for table in wide.values()] == ["run", "run"]
    assert wide["ratios"]["run"].to_list() == wide["metrics"]["run"].to_list() == list(known)[:7]
    assert wide["ratios"].columns[1:] == SOURCES
    assert wide["ratios"].drop("run").sum_horizontal().to_list() == pytest.approx([1] * 7)
    # The truth of some mixtures only is no column: optimisers drop rows with an empty cell.
    assert wide["metrics"].columns[1:] == [f"{task}/bits_per_byte/20M-step9" for task in ("all", "a", "b")]
    assert all(kind == pl.Float64 for table in wide.values() for kind in table.drop("run").dtypes)
    assert wide["metrics"]["a/bits_per_byte/20M-step9"].to_list() == pytest.approx(values[:, 0].tolist())


def test_metrics_are_means_over_seeds_where_lower_is_better():
    rng, tasks = np.random.default_rng(0), ["dates", "sums"]
    models = [("20M", 5, "proxy"), ("20M", 9, "proxy"), ("60M", 9, "proxy"), ("1B", 9, "target")]
    checkpoints = pl.DataFrame(
        [
            {"checkpoint": f"{corpus}-{size}-{step}-{seed}", "corpus": corpus, "size": size, "step": step, "seed": seed}
            | {"role": role, "tokens": step, "flops": step * (60.0 if size == "60M" else 20), "parameters": 1}
            for corpus, (size, step, role), seed in product("xyz", models, (0, 1))
        ]
    )
    names = [("top5_accuracy", "uniform"), ("cross_entropy", "uniform"), ("reciprocal_rank", "uniform")]
    names += [("bits_per_byte", "none"), ("margin", "entropy")]
    proxies = pl.DataFrame(
        [
            {"checkpoint": c, "task": task, "statistic": s, "weighting": w, "value": rng.random(), "tail": tail}
            for c, task, (s, w), tail in product(checkpoints["checkpoint"], tasks, names, ("tokens", "bytes"))
        ]
    )
    targets = pl.DataFrame(
        [
            {"checkpoint": c, "task": task, "metric": metric, "value": rng.random() - (metric == "margin_nats"), "n": 9}
            for c, task, metric in product(checkpoints["checkpoint"], tasks, ("accuracy", "margin_nats", "loss"))
        ]
    )
    target = Target(
        size="1B", metric="accuracy", other_metrics=["margin_nats", "loss"], lower_is_better=["loss"], table="t.csv"
    )
    budgets = [Budget(name="a", size="20M", step=5), Budget(name="b", size="60M", step=9)]
    highlighted = [Proxy(statistic=s, weighting=w) for s, w in names[:3]]
    found = mixture_metrics(checkpoints, proxies.lazy(), targets, tasks, budgets, highlighted, target)
    places = ["60M-step9", "20M-step5"]  # by compute
    expected = [
        f"{prefix}/{place}"
        for prefix in ("1-top5_accuracy/uniform", "cross_entropy/uniform", "-reciprocal_rank/uniform", "bits_per_byte")
        for place in places
    ] + ["1-accuracy/1B", "-margin_nats/1B", "loss/1B"]
    assert found["metric"].unique(maintain_order=True).to_list() == expected
    assert len(found) == 11 * 3 * 3 and found.null_count()["value"].item() == 0
    told = {"1-top5_accuracy/uniform/60M-step9": (1, -1), "bits_per_byte/60M-step9": (0, 1)}
    for metric, (base, factor) in told.items():
        values = []
        for task in tasks:
            statistic = "top5_accuracy" if base else "bits_per_byte"
            rows = proxies.filter(pl.col("checkpoint").str.starts_with("y-60M-9"), tail="tokens", task=task)
            values.append(base + factor * rows.filter(statistic=statistic)["value"].mean())
            assert found.filter(metric=metric, run="y", task=task)["value"].item() == pytest.approx(values[-1])
        assert found.filter(metric=metric, run="y", task="all")["value"].item() == pytest.approx(sum(values) / 2)
    of_truth = targets.filter(pl.col("checkpoint").str.starts_with("z-1B"), task="sums")
    for metric, sign in (("1-accuracy", -1), ("-margin_nats", -1), ("loss", 1)):
        mean = of_truth.filter(metric=metric.lstrip("1-"))["value"].mean()
        value = found.filter(metric=f"{metric}/1B", run="z", task="sums")["value"].item()
        assert value == pytest.approx(sign * mean + (metric[0] == "1"))
    alone = mixture_metrics(checkpoints.filter(role="proxy"), proxies.lazy(), None, tasks, budgets, highlighted, None)
    assert alone["metric"].unique(maintain_order=True).to_list() == expected[:-3]


def test_where_rho_has_no_interval_its_difference_has_none():
    y = np.arange(5.0)
    predicted = {"log_linear": y + 0.1, "trees": y, "nearest": y[::-1].copy(), "mean": 0 * y}
    law = mixtures._judged(predicted, y, SelectionOptions(confidence=0.99))[0]
    assert law["low"] is None and law["difference_low"] is None and law["difference"] == 2
    assert "not better than that of the nearest mixture" in law["note"]
