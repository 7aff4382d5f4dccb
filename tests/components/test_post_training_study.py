"""The study of post-trained models, smaller: from one command to its report."""

from itertools import combinations
from pathlib import Path

import forked_python
import numpy as np
import polars as pl
import pytest
import yaml
from conftest import copy_project, write_json
from page_studies import check_finished
from proxycast.config.post_training_options import RECIPES
from proxycast.solutions.rows import read_problems
from proxycast.training.miniature.problems import bare_question, is_held_out
from scipy.stats import spearmanr

pytestmark = pytest.mark.slow
STUDY, TASKS = "miniature_post_training", ["days", "lift", "notes", "swaps"]


def finish_post_trained(project: Path) -> None:
    """Six bases of two corpora, three of them post-trained, each with a fraction of its training."""
    path = copy_project(project) / f"config/{STUDY}.yaml"
    study = yaml.safe_load(path.read_text())
    suite, training = study["miniature"], study["miniature"]["post_training"]
    study |= {"corpora": {"miniature_steps": ["steps_little", "steps_much"]}, "tasks": {"miniature_steps": TASKS}}
    suite |= {"problems": 12, "scale": 0.1, "step_documents": 6000, "generic_documents": 24}
    suite["training"]["batch_sequences"] = 16
    for size in suite["sizes"].values():
        size["steps"] = 150
    training |= {"corpora": ["steps_much"], "batch": 16}
    training |= {recipe: training.get(recipe, {}) | {"steps": 20} for recipe in RECIPES}
    training["distillation"] |= {"questions": 60, "samples": 8}
    training["rl"] |= {"questions": 8, "steps": 6}
    training["dpo"] |= {"questions": 60}
    study["target"]["sampling"] = {"samples": 2}
    study["writers"]["teacher"]["checkpoint"] = "steps_much-gpt2-334k-sft_styles-seed0-step150"
    study["extraction"]["temperatures"] = [0.5, 0.8, 1, 1.26, 2]
    study["selection"] = {"bootstrap_replicates": 200}
    study["model_selection"] |= {"draws": 1}
    write_json(study, path)
    command = ["snakemake", "--configfile", f"config/{STUDY}.yaml", "--cores", "2"]
    for _ in range(2):
        run = forked_python.run(*command, cwd=project, merged=True)
        assert run.returncode == 0, run.stdout[-5000:]
    assert "Nothing to be done" in run.stdout


@pytest.fixture(scope="session")
def results(once):
    return once("post_trained", finish_post_trained) / "results" / STUDY


def read(results: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(results / f"{name}.parquet")


def test_each_base_is_made_into_each_recipe_and_nothing_leaks(results):
    checkpoints, trained = read(results, "checkpoints"), read(results, "suite/post_training")
    assert dict(checkpoints["recipe"].value_counts().iter_rows()) == {"none": 6} | dict.fromkeys(RECIPES, 3)
    of_base = ["corpus", "size", "seed"]
    assert set(trained.select("base", "recipe").iter_rows()) == {
        (f"{corpus}-{size}-seed{seed}", recipe)
        for corpus, size, seed, recipe in checkpoints.filter(pl.col("recipe") != "none")
        .select(*of_base, "recipe")
        .iter_rows()
    }
    assert checkpoints.group_by(of_base).agg(pl.col("flops").n_unique())["flops"].unique().to_list() == [1]
    assert trained.filter(pl.col("recipe").str.starts_with("sft"))["documents"].min() > 0
    assert trained["leaked_questions"].sum() == 0
    assert set(trained["benchmark_texts"]) == {3 * 12 * len(TASKS)}  # each with two solutions
    suite = pl.read_csv(results / "suite/leaks.csv")
    assert suite.select("questions", "leaked_questions").row(0) == (3 * 12 * len(TASKS), 0)
    for task in TASKS:
        assert all(is_held_out(bare_question(p.prompt)) for p in read_problems(results / f"problems/{task}.jsonl"))
    taught = read(results, "suite/teacher").filter("verified")
    assert all(solution.rstrip(".").endswith(answer) for solution, answer in taught.select("solution", "answer").rows())


def test_recipes_do_what_they_are_known_for(results):
    """Fine-tuning lowers the loss on the style that it reads; overtraining sharpens."""
    stats = pl.scan_parquet(results / "token_stats/steps_much/*.parquet")
    stats = stats.filter(pl.col("solution").str.ends_with("-short"), pl.col("task").is_in(TASKS))
    means = stats.group_by("checkpoint").agg(nll=-pl.col("logprob").mean(), entropy=pl.col("entropy").mean()).collect()
    means = means.join(read(results, "checkpoints").select("checkpoint", "size", "recipe"), on="checkpoint")
    for _, base in means.group_by("size"):
        values = {recipe: (nll, entropy) for _, nll, entropy, _, recipe in base.iter_rows()}
        assert values["sft"][0] < values["none"][0]
        assert values["overtrained_strong"][1] < values["sft"][1]


def test_the_populations_are_judged_as_scipy_judges_them(results):
    checkpoints, truth = read(results, "checkpoints"), read(results, "targets").filter(metric="sampled_exact_match")
    assert sorted(truth["task"].unique()) == TASKS and set(truth["n"]) == {12}
    assert ((truth["value"] * 24 - (truth["value"] * 24).round()).abs() < 1e-9).all()  # 12 problems, two texts each
    populations = read(results, "model_selection/populations")
    models = dict(populations.select("population", "models").unique().iter_rows())
    copies = read(results, "suite/post_training").filter(pl.col("note") != "")["run"].to_list()
    made = 21 - len(copies)
    assert models == {"all": 6 + made, "bases": 6, "post_trained": made, "within_base": 3 + made}
    checkpoints = checkpoints.filter(~pl.col("run").is_in(copies))
    assert set(read(results, "model_selection/ranking")["checkpoint"]) == set(checkpoints["checkpoint"])
    bits = (
        read(results, "proxies").filter(statistic="bits_per_byte", tail="tokens").join(truth, on=["checkpoint", "task"])
    )
    bits = bits.join(checkpoints, on="checkpoint")
    rho = {}
    for task, own in bits.group_by("task"):
        if own["value_right"].n_unique() > 1:
            rho[task[0]] = spearmanr(-own["value"].round(12), own["value_right"].round(12)).statistic
    pairs = [[rho[task] for task in pair if task in rho] for pair in combinations(TASKS, 2)]
    expected = np.mean([np.mean(pair) for pair in pairs if pair])
    row = populations.filter(population="all", method="bits_per_byte", tail="tokens")
    assert row["spearman"].item() == pytest.approx(expected)


def test_the_claim_and_the_fitted_temperatures_stand_in_the_tables(results):
    claims = read(results, "model_selection/claims")
    assert set(claims["population"]) == {"all", "bases", "post_trained", "within_base"}
    assert set(claims["verdict"]) <= {"supported", "refuted", "undecided"}
    decided = claims.drop_nulls("difference")
    by_hand = decided["spearman"] - decided["baseline_spearman"]
    assert len(decided) > 50 and decided["difference"].to_list() == pytest.approx(by_hand.to_list())
    fitted = read(results, "temperatures")
    assert len(fitted) == 27 and (fitted["tempered_cross_entropy"] <= fitted["cross_entropy"] + 1e-6).all()
    shifts = read(results, "model_selection/recipe_shifts")
    assert set(shifts["recipe"]) <= set(RECIPES) and shifts["base"].n_unique() == 3
    compared = read(results, "token_contrast")
    assert len(compared) and (results / "model_selection/judge.json").is_file()


@pytest.mark.browser
def test_its_page(browser, results):
    page = check_finished(browser, results)
    assert "Post-training" in page.read_text()
