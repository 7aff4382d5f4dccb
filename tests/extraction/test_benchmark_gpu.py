"""The GPU benchmark: rehearsed on a CPU, its table, and what failures leave of it."""

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu
import gpu_stages
from extraction import data_sheet_peak
from gpu_report import GOALS, Goal, Results, differences, report, rows
from gpu_stages import STAGES, Place, Stage

MACHINE = {"card": "NVIDIA H200", "driver": "580.1", "versions": {"torch": "2.11.0"}, "commit": "abc"}
MACHINE |= {"rehearsed": False, "date": "2026-01-01"}
WITHOUT_VLLM = [name for name, stage in STAGES.items() if not stage.needs]


def rehearse(folder: Path, stages: list[str]) -> tuple[dict, str]:
    """Results and report of stages in a process as a user starts it."""
    command = [sys.executable, gpu.__file__, "--rehearse", "--out", folder, *stages]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    written = json.loads((folder / "results.json").read_text())
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert {name: written["stages"][name]["state"] for name in stages} == dict.fromkeys(stages, "ok")
    text = (folder / "gpu.md").read_text()
    assert done.stdout.rstrip().endswith(text.rstrip())
    assert "A rehearsal on a CPU" in text
    return written, text


def measured(text: str, label: str) -> str:
    """The second cell of the row `label`."""
    [row] = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
    return row.split(" | ")[1]


@pytest.mark.slow
def test_rehearsal_without_vllm(tmp_path):
    written, text = rehearse(tmp_path, WITHOUT_VLLM)
    for size in ("1.7B", "8B"):
        for label in ("**proxycast, transformers**, from text", "proxycast, transformers, from tokens"):
            assert "tokens/s" in measured(text, f"{size}: {label}")
        assert measured(text, f"{size}: **proxycast, vLLM**, from text") == "not measured: not asked for"
        kernels = written["stages"][f"transformers-{size}"]["figures"]["kernels"]
        assert 0 < kernels["seconds"] and any("mm" in name for _, _, name in kernels["listed"])
    assert "tokens/s" in measured(text, "training on text, 90M")
    float32 = re.search(r"nats <= 0.0003: (\S+), met", text)
    assert float32 and float(float32[1]) > 0
    assert "nats at most" in measured(text, "log-probs: transformers, bfloat16, and float64")


@pytest.mark.vllm
@pytest.mark.slow
def test_rehearsal_with_vllm(tmp_path):
    with_vllm = [name for name in STAGES if name not in WITHOUT_VLLM]
    written, text = rehearse(tmp_path, ["rates", "tables-transformers", *with_vllm])
    for label in ("vLLM, prefill alone, eager", "vLLM, stock `prompt_logprobs=1`", "**proxycast, vLLM**, from text"):
        for size in ("1.7B", "8B"):
            assert "tokens/s" in measured(text, f"{size}: {label}")
    assert not re.search(r"of vLLM's prefill >= [\d.]+: not measured; of stock", text)
    assert "nats at most" in measured(text, "log-probs: vLLM and transformers, bfloat16")
    # What another run in the folder adds; this one leaves nothing out.
    assert set(json.loads((tmp_path / "results.json").read_text())["stages"]) == set(written["stages"])


def test_every_row_is_there_when_nothing_is_measured(tmp_path):
    found = rows(Results({"machine": MACHINE, "stages": {}}, tmp_path))
    assert all(row.measured.startswith("not measured") for row in found)
    goals = [goal for row in found for goal in row.goals]
    assert len(goals) == sum(map(len, GOALS.values())) + 2  # of the fused head and of float32
    assert all(str(goal).endswith("not measured") for goal in goals)


def test_the_shapes_that_are_trained_are_datadecides():
    ladder = yaml.safe_load((ROOT / "config/ladders/datadecide.yaml").read_text())
    scale = gpu_stages._full()
    assert (scale.vocabulary, scale.length) == (ladder["vocabulary"], ladder["sequence_length"])
    for size, shape in scale.trained.items():
        assert shape == {key: value for key, value in ladder["sizes"][size].items() if key != "steps"}


def timed(tokens: int, *seconds: float) -> dict:
    return {"seconds": list(seconds), "tokens": tokens}


def test_shares_and_goals_are_those_of_the_figures(tmp_path):
    work = {"body": 2e12, "whole": 3e12, "logit_bytes": 1e9}
    stages = {
        "rates": {"flops": 1e12, "bandwidth": 1e9},
        "stock-8B": {"work": work, "prefill": timed(100, 4.0), "prompt_logprobs=1": timed(100, 5.0)},
        "vllm-8B": {"work": work, "text": timed(100, 9.0, 5.0, 4.0), "memory": {"added_mb": 1500.0, "loaded_mb": 0}},
        "head": {
            f"152064 4096 {n} tried": {
                **{"seconds": 1.0, "floor": floor, "flops": 8e14, "peak": peak, "logit_bytes": 100 << 20},
                **{"plain_seconds": 1.5, "plain_peak": 1},
            }
            for n, floor, peak in ((1024, 0.5, 1 << 20), (8192, 0.8, 50 << 20))
        },
        "training-20M": {"parameters": 1e9, "steps": timed(10, 0.5)},
    }
    stages = {name: {"state": "ok", "seconds": 1.0, "figures": figures} for name, figures in stages.items()}
    text = report({"machine": MACHINE, "stages": stages}, tmp_path, "python gpu.py")
    assert "NVIDIA H200, driver 580.1; torch 2.11.0. Code of abc, 2026-01-01." in text
    ours = next(line for line in text.splitlines() if line.startswith("| 8B: **proxycast, vLLM**, from text"))
    assert "| 20 tokens/s | 11-25 | 0.80 | 0.80 | 0.00 |  | 1.50 GB |" in ours
    assert "of vLLM's prefill >= 0.95: 0.8, **missed**; of stock prompt_logprobs=1 >= 1.08: 1, **missed**" in ours
    few, many = (line for line in text.splitlines() if line.startswith("| fused head"))
    assert "0.50 |" in few and "of the floor" not in few and "memory of N x V <= 0.05: 0.01, met" in few
    assert "of the floor >= 0.8: 0.8, met; memory of N x V <= 0.05: 0.5, **missed**" in many
    training = next(line for line in text.splitlines() if line.startswith("| training on text, 20M"))
    assert "| 20 tokens/s |" in training and "| 0.12 |" in training  # 6 N 20 / 1e12


def test_goals_of_numbers_that_are_none():
    assert str(Goal("x", float("nan"), 1.0)).endswith("**missed**")
    assert str(Goal("x", float("nan"), 1.0, at_most=True)).endswith("**missed**")
    assert str(Goal("x", None, 1.0)) == "x >= 1: not measured"


def test_cards_are_known_by_a_word_of_their_name():
    assert data_sheet_peak("NVIDIA H100 80GB HBM3") == data_sheet_peak("NVIDIA H200") == 989e12
    assert data_sheet_peak("NVIDIA A100-SXM4-80GB") == 312e12 and data_sheet_peak("Some Processor") is None


def test_differences_are_over_the_tokens_of_both(tmp_path):
    for name, values in (("a float32 m-0", [1.0, 2.0, 9.0]), ("b float64 m-0", [1.5, 2.0]), ("a float32 n-0", [0.0])):
        np.savez(tmp_path / f"{name}.npz", logprob=np.array(values))
    results = Results({"machine": MACHINE, "stages": {}}, tmp_path)
    assert differences(results, "a float32", "b float64") == (0.5, 0.25)
    assert differences(results, "a float32", "c") is None


def end(notes, how: str) -> None:
    notes.add(before=1)
    match how:
        case "raises":
            raise ValueError("no such kernel")
        case "dies":
            os._exit(7)
        case "hangs":
            time.sleep(60)


@pytest.mark.parametrize(
    "how, state", [("raises", "failed (1)"), ("dies", "failed (7)"), ("hangs", "ended after its 1 s")]
)
def test_a_stage_that_fails_leaves_its_figures_and_says_why(how, state, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_stages.STAGES, how, Stage(partial(end, how=how), 60))
    found = gpu.run_stage(get_context("fork"), how, Place(tmp_path, tmp_path, True), 1)
    assert (found["state"], found["figures"]) == (state, {"before": 1})
    assert ("no such kernel" in found["log"]) == (how == "raises")
    written = {"machine": MACHINE, "stages": {"rates": found | {"figures": {}}}}
    assert f"not measured: {state}" in report(written, tmp_path, "")


def test_only_results_of_the_same_code_and_card_are_added_to(tmp_path):
    path = tmp_path / "results.json"
    assert gpu.earlier(path, MACHINE) == {}
    path.write_text(json.dumps({"machine": MACHINE, "stages": {"rates": {"state": "ok"}}}))
    assert gpu.earlier(path, MACHINE | {"date": "2026-02-02"}) == {"rates": {"state": "ok"}}
    for change in ({"commit": "def"}, {"card": "NVIDIA H100"}, {"versions": {}}, {"rehearsed": True}):
        assert gpu.earlier(path, MACHINE | change) == {}
