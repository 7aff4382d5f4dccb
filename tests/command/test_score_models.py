"""`proxycast score` on tiny models: its table against `rank`, its parquet, and what it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from conftest import metaspace_tokenizer, tiny_model, write_rows
from proxycast.command.ranking_screen import pair_lines
from proxycast.command.score_models import candidate_names
from proxycast.library.candidate_ranking import OTHER_TOKENIZERS, rank
from proxycast.tables import table_fingerprint
from test_main import refused, said

DEFAULT = ("top5_accuracy/token_frequency", "top1_accuracy/inverse_token_frequency", "bits_per_byte")


@pytest.fixture
def solutions(tmp_path) -> Path:
    texts = [
        "the cat sat.",
        "The cat sat on the mat",
        "2 plus 3 is five.",
        "A: the hat.",
        "the mat; the hat.",
        "is five.",
    ]
    rows = [{"id": str(n), "prompt": "Q: what is 2 plus 3?", "solution": f" {text}"} for n, text in enumerate(texts)]
    write_rows(rows, tmp_path / "sums.jsonl")
    return tmp_path / "sums.jsonl"


@pytest.fixture
def models(model_folder) -> list[Path]:
    return [model_folder(f"{name}/step9", seed=seed, architecture=kind) for seed, (name, kind) in enumerate(MODELS)]


MODELS = [("a", "llama"), ("b", "gpt2"), ("c", "llama")]


def test_models_are_printed_in_their_order(models, solutions, tmp_path):
    out = tmp_path / "statistics.parquet"
    text = said("score", *models, "--solutions", solutions, "--out", out)
    table = pl.read_parquet(out)
    assert table["checkpoint"].unique(maintain_order=True).to_list() == ["a/step9", "b/step9", "c/step9"]
    assert table["task"].unique().to_list() == ["sums"] and table["solution"].n_unique() == 6
    assert table_fingerprint(out) and str(out) in text
    expected = rank({name: part for (name,), part in table.group_by("checkpoint", maintain_order=True)})
    for (statistic, _), rows in expected.ranking.group_by("statistic", "weighting", maintain_order=True):
        shown = text[text.index(f"\n{statistic}") :]
        found = re.findall(r"(\w/step9) +(\d+\.\d+) \[\S+ \S+\] +(\d)", shown)[:3]
        assert found == [(c, f"{v:.4f}", f"{p:g}") for c, v, p in rows.select("candidate", "value", "place").rows()]
    assert text.count("pairs can be told apart") == 3 and text.count("Spearman's rho") == 3
    assert text.count("less is better") == 1


@pytest.mark.slow
def test_no_snakemake_is_needed(models, solutions):
    """In a process of its own, as the installed command runs."""
    code = "import sys; sys.modules['snakemake'] = None; from proxycast.command.main import app; app()"
    command = [sys.executable, "-c", code, "score", models[0], "--solutions", solutions, "--proxies", "bits_per_byte"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert re.search(r"^ +step9 +\d\.\d+ \[\S+ \S+\] +1 \[1, 1\] *$", found.stdout, re.MULTILINE)


def test_tasks_and_proxies_may_be_chosen(models, solutions, tmp_path):
    write_rows([{"id": "1", "prompt": "", "solution": "The mat; the hat."}], tmp_path / "mats.jsonl")
    found = said("score", *models[:2], "--solutions", tmp_path, "--proxies", "margin/uniform", "--tasks", "mats")
    assert "tasks: mats (1 solutions)" in found and "margin/uniform, less is better" in found
    assert "bits_per_byte" not in found and "nothing says how sure this order is" in found


def test_other_tokenizers_are_said_in_the_table(models, solutions, model_folder):
    other = model_folder("other", model=tiny_model(vocabulary=120), tokenizer=metaspace_tokenizer())
    text = said("score", models[0], other, "--solutions", solutions)
    assert text.count(OTHER_TOKENIZERS) == 2 and text.index("bits_per_byte, less") < text.index("top5_accuracy")


def test_errors_come_before_the_first_model_runs(models, solutions, tmp_path, monkeypatch):
    monkeypatch.setattr("proxycast.command.score_models.score", lambda *_, **__: pytest.fail("a model runs"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "out.parquet").touch()
    write_rows([{"id": "1", "prompt": "p", "solution": "s"}, {"id": "2", "prompt": "p"}], tmp_path / "bad.jsonl")
    good = ["score", *models, "--solutions", solutions]
    assert f"{tmp_path}/none: no such folder, and no id of the hub" in refused(
        "score", tmp_path / "none", "--solutions", solutions
    )
    assert f"{tmp_path}/empty: found no config.json" in refused("score", tmp_path / "empty", "--solutions", solutions)
    monkeypatch.chdir(tmp_path)
    assert "a/none: no such folder" in refused("score", "a/none", "--solutions", solutions)  # not one of the hub
    assert "bad.jsonl, row 2, field solution: missing" in refused(
        "score", *models, "--solutions", tmp_path / "bad.jsonl"
    )
    assert "did you mean 'margin/uniform'" in refused(*good, "--proxies", "margn/uniform")
    assert "give `temperatures` to proxycast.score" in refused(*good, "--proxies", "tempered_cross_entropy")
    assert "--tasks: 'sum' is in no file; did you mean 'sums'" in refused(*good, "--tasks", "sum")
    assert "out.parquet: is there already" in refused(*good, "--out", tmp_path / "out.parquet")
    assert "written as .parquet" in refused(*good, "--out", tmp_path / "out.csv")
    assert "given twice" in refused("score", models[0], models[0], "--solutions", solutions)
    assert "Missing option '--solutions'" in refused("score", models[0], status=2)
    (models[1] / "model.safetensors").unlink()
    assert str(models[1]) in refused(*good)


def test_names_are_as_short_as_they_can_be(tmp_path):
    folders = [tmp_path / name for name in ("x/a/step1", "x/b/step1")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    assert list(candidate_names([str(folders[0]), "me/model@main"])) == ["step1", "me/model@main"]
    assert list(candidate_names(list(map(str, folders)))) == ["a/step1", "b/step1"]


def test_pairs_that_are_not_told_apart_are_named():
    pairs = pl.DataFrame({"better": ["a", "a", "b"], "worse": ["b", "c", "c"], "told_apart": [False, True, True]})
    assert list(pair_lines(pairs)) == ["2 of 3 pairs can be told apart", "not told apart: a and b"]
    assert list(pair_lines(pairs[1:])) == ["2 of 2 pairs can be told apart"]
    assert list(pair_lines(pairs[:0])) == []
