"""Corpora of text without a truth: one size trained at two learning rates, and means of a run's last checkpoints."""

import os
from pathlib import Path

import forked_python
import polars as pl
import pytest
from conftest import byte_level_tokenizer, copy_project, write_json, write_rows
from scipy.stats import spearmanr

pytestmark = pytest.mark.slow

TEXTS = {
    "prose": "The cat sat on the mat, and the dog lay at the door of the house. ",
    "sums": "What is three and four? It is seven. What is two and six? It is eight. ",
    "noise": "zq xv kj wq pf 93 #! ~ qz vx jk ",
}
STUDY = {
    "study": "rates",
    "corpora": {"mine": "all"},
    "tasks": {"mine": "all"},
    "ladder": {"name": "mine", "learning_rate_factor": 0.5, "rate_check": {"size": "tiny", "factor": 0.1}},
    "selection": {"last_checkpoints": 2, "bootstrap_replicates": 200},
    "jobs": "corpus",
}
SIZE = {"hidden_size": 32, "layers": 1, "heads": 2, "batch_sequences": 4, "steps": 12, "learning_rate": 0.02}
LADDER = {"name": "mine", "tokenizer": {"folder": "tokenizer"}, "vocabulary": 352, "sequence_length": 64}
LADDER |= {"checkpoint_every": 4, "seeds": {0: "default"}, "sizes": {"tiny": SIZE}}
LADDER |= {"optimisation": {"warmup_tokens_per_parameter": 0}}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    project = copy_project(tmp_path_factory.mktemp("rates"))
    byte_level_tokenizer().save_pretrained(project / "tokenizer")
    for name, text in TEXTS.items():
        write_rows([{"text": text * 20}] * 60, project / f"text/{name}.jsonl")
        corpus = {"name": name, "text": {"mixture": [{"files": f"text/{name}.jsonl"}]}}
        write_json(corpus, project / f"config/corpora/mine/{name}.yaml")
    rows = [{"id": n, "prompt": f"What is {n}?", "solution": " It is seven, and the cat sat." * 2} for n in range(6)]
    write_rows(rows, project / "own/sums.jsonl")
    write_json({"name": "sums", "solutions": "own/sums.jsonl"}, project / "config/tasks/mine/sums.yaml")
    write_json(LADDER, project / "config/ladders/mine.yaml")
    write_json(STUDY, project / "config/rates.yaml")
    command = ["snakemake", "--configfile", "config/rates.yaml", "--cores", "2"]
    environment = os.environ | {"PYTHONPATH": str(project / "workflow"), "CUDA_VISIBLE_DEVICES": ""}
    run = forked_python.run(*command, cwd=project, env=environment, merged=True)
    assert run.returncode == 0, run.stdout[-5000:]
    return project


def test_the_second_training_is_slower(project):
    runs = project / "results/rates/text/models"
    peak = {
        run: max(pl.read_csv(runs / run / "step12/loss.csv")["learning_rate"])
        for run in ("prose-tiny-seed0", "prose-tiny-rate0.1-seed0")
    }
    assert peak["prose-tiny-seed0"] == pytest.approx(0.5 * 0.02, rel=0.1)
    assert peak["prose-tiny-rate0.1-seed0"] == pytest.approx(0.1 * peak["prose-tiny-seed0"])


def test_the_ranking_is_of_the_mean_of_two_checkpoints(project):
    results = project / "results/rates"
    ranking = pl.read_parquet(results / "data_selection/ranking.parquet")
    assert set(ranking["size"]) == {"tiny"} and set(ranking["step"]) == {12}
    proxies = pl.read_parquet(results / "proxies.parquet").filter(tail="tokens")
    for row in ranking.iter_rows(named=True):
        last = [f"{row['corpus']}-tiny-seed0-step{step}" for step in (8, 12)]
        named = proxies.filter(pl.col("checkpoint").is_in(last), task="sums", statistic=row["statistic"])
        values = named.filter(weighting=row["weighting"])["value"]
        sign = -1 if row["statistic"] == "bits_per_byte" else 1
        assert len(values) == 2 and row["predicted"] == pytest.approx(sign * values.mean())


def test_the_check_compares_both_trainings(project):
    results = project / "results/rates"
    table = pl.read_csv(results / "data_selection/rate_check.csv")
    proxies = pl.read_parquet(results / "proxies.parquet").filter(tail="tokens", task="sums")
    assert len(table) == 3 and set(table["corpora"]) == {3} and set(table["pairs"]) == {3}
    for row in table.iter_rows(named=True):
        named = proxies.filter(statistic=row["statistic"], weighting=row["weighting"])
        value = dict(named.select("checkpoint", "value").iter_rows())
        orders = [
            [sum(value[f"{corpus}-{size}-seed0-step{step}"] for step in (8, 12)) for corpus in TEXTS]
            for size in ("tiny", "tiny-rate0.1")
        ]
        if any(len(set(order)) == 1 for order in orders):
            assert row["spearman"] is None
        else:
            assert row["spearman"] == pytest.approx(spearmanr(*orders).statistic)
    log = (results / "logs/data_selection.log").read_text()
    assert log.count("pairs of corpora change their order at the lower learning rate") == 3
