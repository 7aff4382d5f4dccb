"""Each highlighted proxy beside each baseline: the differences of two decision accuracies, paired."""

import numpy as np
import polars as pl
import pytest
from proxycast.config.experiments.selection_options import Proxy, SelectionOptions
from proxycast.experiments.data_selection.ranking import against_baselines_table, decision_accuracy_table

OPTIONS = SelectionOptions(bootstrap_replicates=200)
CORPORA = [f"c{n:02}" for n in range(12)]
TRUTH = pl.DataFrame([{"corpus": c, "task": t, "value": float(n)} for t in "xy" for n, c in enumerate(CORPORA)])
FIXED = [Proxy(statistic="margin"), Proxy(statistic="plain", weighting="none")]


def predictions(baselines: list[str]) -> pl.DataFrame:
    """Proxy margin, another proxy, and baselines, the first of them the best; two seeds."""
    draw = np.random.default_rng(1)
    named = [("margin", "uniform", "proxy", 4.0), ("margin", "entropy", "proxy", 9.0)]
    named += [(name, "none", "baseline", 2.0 + 3 * place) for place, name in enumerate(baselines)]
    return pl.DataFrame(
        [
            {"corpus": c, "task": task, "statistic": statistic, "weighting": weighting, "kind": kind}
            | {"depends_on_candidate": weighting == "entropy", "size": "s", "step": 4, "seed": seed, "tokens": 10}
            | {"flops": 60.0, "score": n + noise * draw.normal()}
            for statistic, weighting, kind, noise in named
            for seed in (0, 1)
            for task in "xy"
            for n, c in enumerate(CORPORA)
        ]
    )


def test_differences_are_those_of_the_table_of_decision_accuracies():
    predicted = predictions(["best", "plain", "worst"])
    table = against_baselines_table(predicted, TRUTH, 600.0, OPTIONS, FIXED)
    alone = decision_accuracy_table(predicted, TRUTH, 600.0, OPTIONS).filter(seed="single")
    of = dict(alone.select(pl.concat_str("task", "statistic", "weighting", separator=" "), "decision_accuracy").rows())
    assert len(table) == 3 * (3 + 2)  # tasks; margin beside all three, plain beside the other two
    for row in table.rows(named=True):
        own, rival = (
            of[f"{row['task']} {row['statistic']} {row['weighting']}"],
            of[f"{row['task']} {row['baseline']} none"],
        )
        assert row["decision_accuracy"] == own and row["baseline_decision_accuracy"] == rival
        assert row["difference"] == pytest.approx(own - rival, abs=1e-12)
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    # The table of decision accuracies has the difference to the best baseline, over the same samples.
    ends = ["difference_low", "difference_high"]
    margin = {"task": "all", "statistic": "margin", "weighting": "uniform"}
    best = alone.filter(**margin).select("best_baseline", *ends).row(0)
    assert table.filter(**margin, baseline=best[0]).select(ends).row(0) == best[1:]


def test_without_another_baseline_there_is_no_row():
    for baselines in ([], ["plain"]):
        fixed = [FIXED[1]] if baselines else FIXED
        table = against_baselines_table(predictions(baselines), TRUTH, 600.0, OPTIONS, fixed)
        assert table.is_empty() and table.schema["difference"] == pl.Float64
