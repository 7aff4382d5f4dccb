"""Means of a run's last checkpoints, against a loop."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxycast.experiments.checkpoint_means import checkpoint_means


def checkpoints_of(steps: dict[str, list[int]]) -> pl.DataFrame:
    rows = [(f"{run}-step{step}", run, "4M", step) for run, found in steps.items() for step in found]
    return pl.DataFrame(rows, ["checkpoint", "run", "size", "step"], orient="row")


@given(
    st.dictionaries(
        st.sampled_from("ab"), st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True), min_size=1
    ),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_every_value_is_the_mean_of_its_run_so_far(steps, number, random):
    table = checkpoints_of(steps)
    value = {(name, task): random.random() for name in table["checkpoint"] for task in ("sums", "times")}
    rows = [(*key, "margin", of, 0.5) for key, of in value.items()]
    random.shuffle(rows)
    values = pl.DataFrame(rows, ["checkpoint", "task", "statistic", "value", "standard_error"], orient="row")
    found = checkpoint_means(values.lazy(), table, number).collect()
    assert found.columns == values.columns and found["standard_error"].to_list() == [0.5] * len(rows)
    for name, task, _, mean, _ in found.iter_rows():
        run, step = name.split("-step")
        before = [s for s in sorted(steps[run]) if s <= int(step)][-number:]
        assert mean == pytest.approx(np.mean([value[f"{run}-step{s}", task] for s in before]))


def test_other_checkpoints_stay_as_they_are():
    values = pl.DataFrame({"checkpoint": ["a-step1", "a-step2", "x"], "task": ["t"] * 3, "value": [1.0, 3.0, 9.0]})
    found = checkpoint_means(values.lazy(), checkpoints_of({"a": [1, 2]}), 3).collect()
    assert found["value"].to_list() == [1, 2, 9]
    assert checkpoint_means(values.lazy(), checkpoints_of({"a": [1, 2]}), 1).collect().equals(values)
