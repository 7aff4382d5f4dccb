"""What the end of a run says of the order of candidates: few lines, and the same as the tables."""

from types import SimpleNamespace

import polars as pl
import pytest
from proxycast.cluster.status.summary import (
    cost_of_choices,
    forecast_ends,
    order_lines,
    order_of_corpora,
    order_of_models,
)
from proxycast.config.study import DEFAULT_PROXIES, Budget
from proxycast.tables import write_table

PLACES = {"place": pl.Float64, "place_low": pl.Float64, "place_high": pl.Float64}


def ranking_of(*names: str, intervals: bool = True) -> pl.DataFrame:
    rows = [
        (name, n + 1, max(1, n) if intervals else None, n + 2 if intervals else None) for n, name in enumerate(names)
    ]
    return pl.DataFrame(rows, {"corpus": pl.String, **PLACES}, orient="row").reverse()


def pairs_of(**told: bool | None) -> pl.DataFrame:
    rows = [(*pair.split("_"), told_apart) for pair, told_apart in told.items()]
    return pl.DataFrame(rows, {"better": pl.String, "worse": pl.String, "told_apart": pl.Boolean}, orient="row")


@pytest.mark.parametrize(
    "told, last",
    [
        ({"a_b": True, "a_c": True, "b_c": True}, "every pair can be told apart"),
        ({"a_b": False, "a_c": True, "b_c": False}, "2 of 3 pairs cannot be told apart, among them a from b"),
        ({"a_b": True, "a_c": True, "b_c": False}, "1 of 3 pairs cannot be told apart"),
        (
            {"a_b": None, "a_c": None, "b_c": None},
            "how sure this order is remains unknown: one seed and one score a task",
        ),
    ],
)
def test_the_order_and_what_cannot_be_told_apart(told, last):
    lines = order_lines(ranking_of("a", "b", "c"), pairs_of(**told), "corpus")
    assert lines == ["  1 [1, 2] a", "  2 [1, 3] b", "  3 [2, 4] c", f"  {last}"]


def test_many_candidates_take_few_lines():
    names = [f"n{n:02d}" for n in range(25)]
    told = {f"{a}_{b}": False for i, a in enumerate(names) for b in names[i + 1 :]}
    lines = order_lines(ranking_of(*names, intervals=False), pairs_of(**told), "corpus")
    assert lines[:2] == ["  1 n00", "  2 n01"] and lines[5] == "  and 20 more in the table ranking"
    assert lines[6:] == [
        "  300 of 300 pairs cannot be told apart, among them n00 from n01, n02, n03, n04, n05 and 19 more"
    ]


def test_the_last_budget_and_the_first_proxy_are_told(tmp_path):
    """Names of a study are shown without anything that a terminal would interpret."""
    (tmp_path / "data_selection").mkdir()
    until_then = SimpleNamespace(results=tmp_path, study=SimpleNamespace(highlighted=DEFAULT_PROXIES))
    assert order_of_corpora(until_then) == []  # of a run that was to stop before
    first, other = DEFAULT_PROXIES[:2]
    parts, pairs = [], []
    for proxy in (other, first):
        for step in (20, 40):
            best = ["\x1b[31mweb", "wiki"] if (proxy, step) == (first, 40) else ["wiki", "\x1b[31mweb"]
            key = {"statistic": proxy.statistic, "weighting": proxy.weighting, "size": "30k", "step": step}
            labels = {name: pl.lit(value) for name, value in {**key, "seeds": 2 if step == 20 else 1}.items()}
            parts.append(ranking_of(*best).with_columns(**labels))
            pairs.append(
                pl.DataFrame({"better": best[:1], "worse": best[1:], "told_apart": [True]}).with_columns(**labels)
            )
    for name, tables in (("ranking", parts), ("pairs", pairs)):
        write_table(pl.concat(tables), tmp_path / f"data_selection/{name}.parquet", "made from")
    budgets = [Budget(name=str(step), size="30k", step=step) for step in (20, 40)]
    study = SimpleNamespace(highlighted=[first, other], budgets=budgets, selection=SimpleNamespace(confidence=0.9))
    assert order_of_corpora(SimpleNamespace(results=tmp_path, study=study)) == [
        "corpora, best first, by top5_accuracy/token_frequency of 30k at step 40 (place, 90% interval over solutions "
        "alone, as there is one seed):",
        "  1 [1, 2] web",
        "  2 [1, 3] wiki",
        "  every pair can be told apart",
    ]


@pytest.mark.parametrize("judged", [False, True])
def test_the_order_of_the_models_is_told_with_what_it_rests_on(tmp_path, judged):
    (tmp_path / "model_selection").mkdir()
    study = SimpleNamespace(selection=SimpleNamespace(confidence=0.95), highlighted=DEFAULT_PROXIES)
    plan = SimpleNamespace(results=tmp_path, study=study)
    assert order_of_models(plan) == []  # of a run that was to stop before
    labels = {name: pl.lit(value) for name, value in (("task", "all"), ("method", "bits_per_byte"), ("tail", "bytes"))}
    rho, truth = (0.876, [0.5, None]) if judged else (None, [None, None])
    own = (
        ranking_of("a", "\x1b[31mb")
        .rename({"corpus": "model"})
        .with_columns(**labels, held_out_spearman=pl.lit(rho, pl.Float64), truth=pl.Series(truth, dtype=pl.Float64))
    )
    other = own.reverse().with_columns(method=pl.lit("sparse3"))
    pair = {"better": ["a"], "worse": ["\x1b[31mb"], "difference": [0.1], "told_apart": [False]}
    pairs = pl.DataFrame(pair).with_columns(**labels)
    reverse = pairs.rename({"better": "worse", "worse": "better"}).with_columns(told_apart=True)
    others = [("top5_accuracy/token_frequency", True), ("top1_accuracy/inverse_token_frequency", False)]
    of_others = [reverse.with_columns(method=pl.lit(name), told_apart=pl.lit(told)) for name, told in others]
    pairs = pl.concat([pairs, *(table.select(pairs.columns) for table in of_others)])
    rows = [("sparse3", "bytes", -1.0), ("sparse3", "tokens", 1.0), ("margin/uniform", "bytes", None)]
    agreement = pl.DataFrame(rows, ["other_method", "other_tail", "spearman"], orient="row").with_columns(**labels)
    found = {"ranking": pl.concat([own, other]), "pairs": pairs, "agreement": agreement}
    for name, table in found.items():
        write_table(table, tmp_path / f"model_selection/{name}.parquet", "made from")
    why = "best on held-out tasks, rho 0.88" if judged else "named in advance"
    assert order_of_models(plan) == [
        f"models, best first, by bits_per_byte, {why} (place, 95% interval over solutions):",
        "  1 [1, 2] a",
        "  2 [1, 3] b",
        "  1 of 1 pairs cannot be told apart, among them a from b",
        *(["  without a truth: a"] if judged else []),
        "  but top5_accuracy/token_frequency tells them apart the other way round: b before a",
        "  correlation with the order by other methods: sparse3 -1.00",
    ]


def test_a_run_that_stops_before_its_forecasts_tells_no_end(tmp_path):
    """As `snakemake results/<study>/targets.parquet` does."""
    study = SimpleNamespace(forecasting=SimpleNamespace(end=object()), target=SimpleNamespace(metric="accuracy"))
    assert forecast_ends(SimpleNamespace(results=tmp_path, study=study)) == []


def test_the_cost_of_the_pick_is_told_beside_that_of_the_best_baseline(tmp_path):
    first, budget = DEFAULT_PROXIES[0], Budget(name="last", size="10M", step=4)
    study = SimpleNamespace(highlighted=DEFAULT_PROXIES, budgets=[budget], target=SimpleNamespace(metric="accuracy"))
    plan = SimpleNamespace(results=tmp_path, study=study)
    assert cost_of_choices(plan) == []  # of a run that was to stop before
    key = ["statistic", "weighting", "kind", "size", "step", "seed", "picked", "regret", "regret_low", "regret_high"]
    rows = [
        (first.statistic, first.weighting, "proxy", "10M", 4, "mean", "b\x1b[31m", 0.02, 0.0, 0.1234),
        (first.statistic, first.weighting, "proxy", "10M", 8, "mean", "c", 0.5, None, None),
        (first.statistic, first.weighting, "proxy", "10M", 4, "single", None, 0.7, None, None),
        ("bits_per_byte", "none", "baseline", "10M", 4, "mean", "a", 0.0, None, None),
        ("chance", "none", "baseline", "10M", 4, "mean", "a, b", 0.3, None, None),
    ]
    table = pl.DataFrame(rows, key, orient="row").with_columns(random_regret=0.3, best_baseline=pl.lit("bits_per_byte"))
    write_table(table, tmp_path / "data_selection/choices.parquet", "")
    write_table(table.filter(step=4), tmp_path / "data_selection/decisions.parquet", "")
    lines = cost_of_choices(plan)
    assert lines[0] == "what the pick of 10M models at step 4 costs, in accuracy:"
    assert lines[1].startswith(f"  0.02 [0, 0.123] by {first.statistic}/{first.weighting}, which picks b")
    assert "\x1b" not in lines[1]
    assert lines[2:] == ["  0 by bits_per_byte, the best baseline, which picks a", "  0.3 by a random choice"]
    study.budgets = []
    assert cost_of_choices(plan) == lines
    study.highlighted = [DEFAULT_PROXIES[0].model_copy(update={"statistic": "bits_per_byte", "weighting": "none"})]
    assert cost_of_choices(plan)[1:] == ["  0 by bits_per_byte, which picks a", "  0.3 by a random choice"]
