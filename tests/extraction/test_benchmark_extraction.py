"""The extraction benchmark at tiny sizes, as far as it needs neither vLLM nor lm-eval."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import extraction
import extraction_rows
from extraction import AGAIN, Floor, Measured, agreement, benchmark, floors, head, parse, plan, table, targets_table
from extraction_rows import OURS, ROWS, Case, Shape, command, few, prepare

FUNCTIONS = [
    (
        f'def f{i}(a, b):\n    """Return item {i} of both lists, or None."""',
        f"\n    c = {i}\n" + "    return a or b\n" * 9,
    )
    for i in range(8)
]
SHAPE = Shape(2, 64, 2, 2, 96, 384, head_dimension=32)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction_rows, "library_functions", lambda: FUNCTIONS)
        patch.setattr(extraction_rows, "SHORTEST", 10)
        lengths = prepare(folder, SHAPE, 4, "float32", "cpu")
    assert len(lengths) == 4 and all(0 < scored < tokens for tokens, scored in lengths)
    return Case(str(folder), SHAPE.vocabulary, "cpu", "float32", 512, None)


def test_the_librarys_functions_split_where_no_token_crosses(monkeypatch):
    monkeypatch.setattr(extraction_rows.sysconfig, "get_path", lambda name: str(Path(json.__file__).parent))
    functions = extraction_rows.library_functions.__wrapped__()
    assert len(functions) >= 8 and any("Serialize ``obj``" in prompt for prompt, _ in functions)
    assert all(prompt.endswith('"""') and body.startswith("\n") for prompt, body in functions)


def test_the_model_is_the_shape_that_the_floor_counts(case):
    from safetensors import safe_open

    assert AutoConfig.from_pretrained(case.folder).vocab_size == SHAPE.vocabulary
    with safe_open(Path(case.folder) / "model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}
    body = sum(shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2 and "embed" not in name)
    assert body == SHAPE.body_parameters and "lm_head.weight" not in shapes


def test_rows_that_need_no_other_package_agree(case):
    names = [name for name, row in ROWS.items() if not row.needs]
    sums = {}
    for name in names:
        answers = extraction_rows.measure(case, name)
        sums[name] = next(answers)["sums"]
        timed = next(answers)
        assert timed["seconds"] > 0 and timed["peak"] > 100
    assert set(names) == {"transformers", "temperatures", "whole-logits", "prefill-transformers"}
    assert sums["prefill-transformers"] == {} and len(sums["transformers"]) == 4
    assert sums["transformers"] == pytest.approx(sums["whole-logits"], rel=1e-4)
    assert sums["temperatures"] == sums["transformers"]


@pytest.mark.slow
def test_a_process_answers_each_line_and_stops_at_the_end(case):
    finished = subprocess.run(
        command(case, "prefill-transformers"), input="again\nagain\n", text=True, capture_output=True
    )
    answers = [json.loads(line) for line in finished.stdout.splitlines()]
    assert finished.returncode == 0, finished.stderr
    assert [set(answer) for answer in answers] == [{"sums"}, *[{"seconds", "cpu_seconds", "peak", "over_loaded"}] * 2]


class InThisProcess:
    def submit(self, function, *arguments):
        return argparse.Namespace(result=lambda: function(*arguments))


@pytest.mark.slow
def test_missing_and_failing_rows_are_named(monkeypatch, tmp_path):
    """One row lacks a package, one fails at its first line; the other is measured and the outcome is a failure."""
    bad = tmp_path / "bad.py"
    bad.write_text("raise SystemExit('no weights\\nat all')")
    bad_command = [sys.executable, str(bad)]
    monkeypatch.setattr(extraction, "command", lambda *a: bad_command if a[1] == "whole-logits" else command(*a))
    monkeypatch.setattr(extraction, "installed", lambda module: module == "lm_eval")
    monkeypatch.setattr(extraction_rows, "library_functions", lambda: FUNCTIONS)
    monkeypatch.setattr(extraction_rows, "SHORTEST", 10)
    monkeypatch.setattr(extraction_rows, "rates", lambda *_: (1e11, 1e10))
    args = parse(
        ["--device", "cpu", "--repeats", "2", "--rows", "prefill-transformers", "whole-logits", "lm-eval-vllm"]
    )
    with extraction.tqdm(disable=True) as bar:
        lines, fine = benchmark("Title", SHAPE, 4, args, InThisProcess(), bar)
    text = "\n".join(lines)
    assert not fine
    assert f"{ROWS['lm-eval-vllm'].label} | not installed: vllm |" in text
    assert "text by text | failed, see below |" in text and "exit code 1\nno weights\nat all\n```" in text
    assert f"| {ROWS['prefill-transformers'].label}, again |" in text
    assert text.count("not measured") == len(extraction.TARGETS)


def rows(**seconds: list[float]) -> dict[str, Measured]:
    found = {name.replace("_", "-"): Measured(ROWS[name.replace("_", "-")].label) for name in seconds}
    for row, repeats in zip(found.values(), seconds.values()):
        row.tokens, row.sums = 1000, {"a": -100.0, "b": -50.0}
        for one in repeats:
            row.add({"seconds": one, "cpu_seconds": one / 2, "peak": 300.0, "over_loaded": 20.0})
    return found


def test_ratios_are_paired_by_round_and_held_against_targets():
    # The second round met twice the load; the pairs still say 2 x and 1.3 x.
    found = rows(vllm=[1.0, 2.0, 1.0], stock_20=[2.0, 4.0, 2.0], lm_eval_vllm=[1.3, 2.6, 1.3], stock_all=[])
    text = "\n".join(targets_table(50_304, found))
    assert "`prompt_logprobs=20` | 1.4 x | 2.00 x | met, +43%" in text
    assert "vllm backend | 1.2 x | 1.30 x | met, +8%" in text
    assert "whole vocabulary | 25.0 x | | not measured" in text
    slow = rows(vllm=[1.0], stock_20=[1.2], lm_eval_vllm=[1.0])
    assert "1.4 x | 1.20 x | **missed**, -14%" in "\n".join(targets_table(152_064, slow))
    assert "1.0 x | 1.20 x | met, +20%" in "\n".join(targets_table(8192, slow))


def test_table_shows_speed_share_and_what_is_missing():
    found = rows(vllm=[1.0, 2.0, 4.0], prefill=[0.5], stock_all=[])
    found["prefill"].sums = {}
    found["stock-all"].fault = "not installed: vllm"
    lines = table("T", found, 1000, (Floor(1e9, 0.1), Floor(5e9, 0.6)), 1e12)
    label = ROWS[OURS].label
    assert f"| {label} | 500 | 250-1,000 | 1.00 | 0.50 | 300 | 20 | 30.0% | 0.2% |" in lines
    assert "| vLLM, prefill alone | 2,000 | 2,000-2,000 | 0.50 | 0.50 | 300 | 20 | 20.0% | 0.2% |" in lines
    assert any("not installed: vllm" in line for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_floor_counts_every_product_once():
    prefill, whole = floors(SHAPE, [(3, 2), (5, 1)], (1e6, 1e3))
    attention = 4 * 2 * 64 * (6 + 15)
    assert prefill == Floor(2 * SHAPE.body_parameters * 8 + attention, prefill.flops / 1e6)
    assert whole.flops == prefill.flops + 2 * 64 * 384 * 3
    assert whole.seconds == whole.flops / 1e6 + 8 * 384 * 3 / 1e3


@pytest.mark.parametrize("value, agree", [(-50.04, True), (-50.06, False), (float("nan"), False)])
def test_rows_that_disagree_are_found(value, agree):
    found = rows(vllm=[1.0], transformers=[1.0], lm_eval_hf=[1.0])
    found["lm-eval-hf"].sums["b"] = value
    line, verdict = agreement(found, "float32")
    assert verdict is agree and ("FAILED" in line) is not agree and ROWS[OURS].label in line


def test_the_whole_vocabulary_is_asked_of_few_texts():
    sequences = [argparse.Namespace(token_ids=range(n)) for n in (300, 100, 200)]
    assert len(few(sequences, 1000)) == 3
    assert few(sequences, 15_000) == sequences[:2]
    assert few(sequences, 1_000_000) == sequences[1:2]


def test_plans_and_heading():
    assert [title for title, *_ in plan(parse(["--device", "cpu"]))] == [
        "Vocabulary 8,192",
        "Vocabulary 50,304",
        "Vocabulary 152,064",
    ]
    gpu = parse(["--device", "cuda", "--sizes", "8B", "--documents", "7"])
    [(title, shape, documents)] = plan(gpu)
    assert title == "Llama 8B" and documents == 7 and "stock-all" not in gpu.rows
    assert shape.body_parameters + 2 * 4096 * 128_256 == pytest.approx(8.03e9, rel=1e-3)
    assert "bfloat16" in "\n".join(head(gpu)) and "float32" in "\n".join(head(parse(["--device", "cpu"])))
    assert AGAIN not in ROWS
