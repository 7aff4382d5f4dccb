"""What a study will download and keep, as it is told before it runs: against sums by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny_model
from proxycast.cluster.disk import disk_plan, weight_bytes
from proxycast.config.corpora import Corpus
from proxycast.config.study import Study
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checkpoints import Checkpoint
from proxycast.study.study_plan import Plan
from safetensors import safe_open
from small_ladder import small_ladder

# Shapes whose weights are gigabytes: V d of embedding, N of the rest.
SMALL = {"batch_sequences": 1, "steps": 2}
LADDER = small_ladder(
    {
        "small": {**SMALL, "hidden_size": 1000, "layers": 1},
        "middle": {**SMALL, "hidden_size": 1000, "layers": 2, "steps": 3},
        "large": {**SMALL, "hidden_size": 2000, "layers": 2},
    },
    vocabulary=100_000,
    checkpoint_every=1,
    seeds={0: "a", 1: "b"},
)
BYTES = {
    size: 4 * (layers * (16 * d * d + 2 * d) + d + 100_000 * d + 100_000 * d)
    for size, layers, d in (("small", 1, 1000), ("middle", 2, 1000), ("large", 2, 2000))
}


def planned(entry: dict | None = None, **changes) -> tuple[Plan, list[Checkpoint]]:
    entry = {"hub": "me/{size}-{seed}", "revision": "{step}"} | (entry or {})
    study = {
        **{"study": "mine", "corpora": {"own": "all"}, "ladder": {"name": "mine"}, "target": {"size": "large"}},
        **{"highlighted": [{"statistic": "margin"}], "budgets": [{"name": "x", "size": "small", "step": 1}]},
    }
    plan = Plan(
        study=Study(**{**study, **changes}),
        corpora=[Corpus(name=name, checkpoints=[entry]) for name in "ab"],
        tasks=[],
        corpus_files={name: Path(f"{name}.yaml") for name in "ab"},
        ladder=LADDER,
        where="study.yaml",
    )
    return plan, plan_checkpoints(plan)


def gb(*sizes: float) -> str:
    return f"{sum(sizes) / 1e9:,.1f} GB"


def test_bytes_are_those_of_a_float32_file(tmp_path):
    """Against the tensors that the library writes for the shape of the ladder."""
    tiny = {"hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128}
    ladder = small_ladder({"tiny": tiny | SMALL, "large": LADDER.sizes["large"].model_dump()}, vocabulary=352)
    tiny_model("llama", vocabulary=352).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())
    plan, (first, *_) = planned()
    plan = plan.model_copy(update={"ladder": ladder})
    checkpoint = replace(first, size="tiny", parameters=ladder.sizes["tiny"].parameters(352))
    assert weight_bytes(plan, checkpoint) == stored
    # Of a size that no ladder tells of, the input embedding is not known.
    assert weight_bytes(plan, replace(checkpoint, size="own")) == 4 * checkpoint.parameters


def test_sums_by_hand():
    """Two corpora, two seeds; of each run the checkpoints at 1, 2 (and 3), and of the target its unfinished one too."""
    runs = {"small": 2 * BYTES["small"], "middle": 3 * BYTES["middle"], "large": 2 * BYTES["large"]}
    plan, checkpoints = planned(hub={"concurrent_downloads": 5, "disk_gb": 50})
    counts, weights = disk_plan(plan, checkpoints)
    assert counts == (
        f"hub: 28 checkpoints of 12 training runs, {gb(*(4 * size for size in runs.values()))} of weights (float32), "
        "at most 5 runs at a time"
    )
    # The five largest: four of the largest size and one of the middle.
    assert weights.startswith(
        f"disk: weights are temporary; the largest run takes {gb(runs['large'])}, 5 at a time up to "
        f"{gb(4 * runs['large'], runs['middle'])}; at most 50 GB of downloads wait for their scoring job "
    )


@pytest.mark.parametrize("convert_from", [None, "hf_olmo"])
def test_what_is_kept(convert_from):
    """A conversion takes the place of what was downloaded."""
    plan, checkpoints = planned({"convert_from": convert_from}, hub={"keep": True})
    total = 4 * (2 * BYTES["small"] + 3 * BYTES["middle"] + 2 * BYTES["large"])
    lines = disk_plan(plan, checkpoints)
    assert lines[1:] == [f"disk: {gb(total)} of weights are kept (hub.keep) in results/mine/weights"]


def test_weights_that_are_not_read_are_not_counted():
    """The target's, where others measured it."""
    plan, checkpoints = planned(target={"size": "large", "evaluations": {"files": "x.parquet"}})
    first = disk_plan(plan, checkpoints)[0]
    total = 4 * (2 * BYTES["small"] + 3 * BYTES["middle"] + BYTES["large"])
    assert first.startswith(f"hub: 24 checkpoints of 12 training runs, {gb(total)} of weights")


def test_nothing_is_told_without_the_hub(tmp_path, model_folder):
    folder = model_folder()
    for size in LADDER.sizes:
        for seed in (0, 1):
            for step in (1, 2, 3):
                (tmp_path / f"{size}-{seed}-{step}").symlink_to(folder)
    pattern = f"{tmp_path}/{{size}}-{{seed}}-{{step}}"
    plan, checkpoints = planned({"hub": None, "revision": "main", "folder": pattern})
    assert len(checkpoints) == 28 and disk_plan(plan, checkpoints) == []
