"""The whole workflow, for real: the smoke study runs once in a copy of the project; other tests damage copies of it.

What a user would type is what runs here: `snakemake --configfile ...` in a process of its own.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import forked_python
import polars as pl
import pytest
import torch
from conftest import write_json, write_rows
from polars.testing import assert_frame_equal
from proxycast.jobs import attempts
from proxycast.proxy_formulas import STATISTICS, WEIGHTINGS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[1]
SMOKE = "config/smoke.yaml"
CORPORA = ["base", "core", "core_wiki_10", "web_crawl", "web_edu"]
TASKS = ["days_after", "homes", "products"]
FIGURES = ["pareto_frontier", "decision_accuracy_over_training", "snr_against_decision_accuracy"]
FIGURES += ["repeats_over_compute", "regret_over_compute"]
OF_RECIPES = ["mixtures_held_out", "mixtures_next"]
FIGURES_OF_A_BUDGET = ["ranking_with_intervals", "proxy_against_truth", "decision_accuracy_heatmap", "signal_to_noise"]
FIGURES_OF_A_BUDGET += ["solution_counts", "regret_by_method", "gap_calibration"]
NOT_ON_THE_PAGE = {"decision_accuracy", "repeats"}  # too large
COLUMNS = {
    "summary": {"budget", "statistic", "weighting", "kind", "decision_accuracy", "low", "high", "noise_ceiling"},
    "ranking": {"corpus", "statistic", "weighting", "size", "step", "predicted", "predicted_rank", "truth", "true_rank"}
    | {f"{name}_{end}" for name in ("predicted", "predicted_rank", "truth", "true_rank") for end in ("low", "high")},
    "decision_accuracy": {"truth", "task", "statistic", "weighting", "kind", "size", "step", "seed", "tokens", "flops"}
    | {"compute_fraction", "decision_accuracy", "low", "high", "spearman", "kendall", "best_baseline", "difference"},
    "pareto": {"statistic", "weighting", "kind", "size", "step", "flops", "compute_fraction", "scoring_flops"}
    | {"decision_accuracy", "low", "high", "on_frontier", "on_own_frontier"},
    "compute_to_reach": {"statistic", "weighting", "kind", "threshold", "compute_fraction", "size", "step"},
    "signal_to_noise": {
        "task",
        "statistic",
        "size",
        "step",
        "dispersion",
        "seed_noise",
        "snr_seeds",
        "snr_checkpoints",
    },
    "snr_and_accuracy": {"over", "noise", "task", "size", "judged_size", "spearman", "spearman_low", "spearman_high"},
    "task_choice": {"statistic", "size", "step", "rule", "left_out", "gain", "gain_low", "gain_high"},
    "repeats": {"statistic", "size", "seeds", "checkpoints", "compute_fraction", "decision_accuracy", "over_rival"},
    "truth": {"metric", "corpora", "seeds", "reliability", "ceiling_decision_accuracy", "chance", "above_chance"},
}
SCORED_BASELINES = {"expert_cross_entropy", "bits_per_byte", "generic_cross_entropy"}
KNOWN_BASELINES = {"parameters", "training_compute", "chance"}
MEASURED_BASELINES = {"multiple_choice_accuracy", "choice_log_likelihood"}
PER_CORPUS = {"train_corpus", "score", "solution_proxies"}
JUDGING = {"data_selection", "data_selection_figures", "signal_to_noise", "solution_counts", "choices", "mixtures"}
JUDGING |= {"token_view", "study_page"}
JOINS = {"join_proxies", "join_targets", "all", *JUDGING}


def figures(*budgets: str) -> list[str]:
    return FIGURES + [f"{name}_{budget}" for name in FIGURES_OF_A_BUDGET for budget in budgets]


def command(*arguments: str, study: str = SMOKE) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--configfile", study, "--cores", "2", *arguments]


def snakemake(project: Path, *arguments: str, study: str = SMOKE, fails: bool = False) -> str:
    """What `snakemake` says, both streams in one; an error where its exit status is not the expected one."""
    finished = forked_python.run(*command(*arguments, study=study)[2:], cwd=project, merged=True)
    assert (finished.returncode != 0) == fails, finished.stdout[-5000:]
    return finished.stdout


def jobs(output: str) -> set[tuple[str, str]]:
    """(rule, corpus or job) of everything that `snakemake` planned or started."""
    blocks = re.split(r"^(?:local)?rule (\w+):$", output, flags=re.MULTILINE)[1:]
    found = set()
    for rule, block in zip(blocks[::2], blocks[1::2]):
        wildcards = re.search(r"^    wildcards: \w+=(\S+)$", block.split("\n\n")[0], re.MULTILINE)
        found.add((rule, wildcards[1] if wildcards else ""))
    return found


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def cut(path: Path) -> None:
    """Truncate a file as a full disk or a killed copy does."""
    os.truncate(path, path.stat().st_size * 2 // 3)


def model_times(project: Path) -> dict[str, int]:
    """Checkpoint ("run/step") -> when its weights were written."""
    weights = (project / "results/smoke/suite/models").glob("*/step*/model.safetensors")
    return {"/".join(path.parts[-3:-1]): path.stat().st_mtime_ns for path in weights}


@pytest.fixture
def project(smoke, tmp_path):
    """A copy of the finished smoke study, with its times, to be damaged."""
    return shutil.copytree(smoke, tmp_path / "project")


@pytest.fixture(scope="module")
def results(smoke):
    return smoke / "results/smoke"


def read_all(folder: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted(folder.rglob("*.parquet")))


@pytest.mark.parametrize("name", COLUMNS)
def test_every_table_is_there_twice(results, name):
    table = pl.read_parquet(results / f"data_selection/{name}.parquet")
    assert set(table.columns) >= COLUMNS[name]
    assert len(table)
    csv = pl.read_csv(results / f"data_selection/{name}.csv", schema=table.schema)
    assert_frame_equal(csv, table, check_exact=False, rel_tol=1e-12)


@pytest.mark.parametrize("name", [*figures("30k_step20", "30k_step40"), *OF_RECIPES])
def test_every_figure_is_there_twice(results, name):
    assert (results / f"data_selection/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (results / f"data_selection/{name}.svg").read_text()[-20:]


def test_every_proxy_and_baseline_is_judged_everywhere(results):
    table = pl.read_parquet(results / "data_selection/decision_accuracy.parquet")
    cells = table.partition_by("truth", "task", "size", "step", "seed", as_dict=True)
    assert set(cells) == {
        (truth, task, "30k", step, seed)
        for truth in ("multiple_choice_accuracy", "choice_log_likelihood", "exact_match")
        for task in ("all", *TASKS)
        for step in (20, 40)
        for seed in ("0", "1", "mean", "single")
    }
    proxies = Counter((statistic, weighting, "proxy") for statistic in STATISTICS for weighting in WEIGHTINGS)
    baselines = Counter((n, "none", "baseline") for n in SCORED_BASELINES | KNOWN_BASELINES | MEASURED_BASELINES)
    assert len(proxies) == 80
    for cell in cells.values():
        assert Counter(cell.select("statistic", "weighting", "kind").iter_rows()) == proxies + baselines
    chance = table.filter(pl.col("statistic") == "chance", pl.col("truth") == "multiple_choice_accuracy", task="all")
    assert set(chance["decision_accuracy"]) == {0.5}
    assert set(table["corpora"]) == {5}


@pytest.mark.parametrize("seed", ["0", "mean"])
@pytest.mark.parametrize("statistic, weighting", [("cross_entropy", "uniform"), ("top5_accuracy", "token_frequency")])
def test_decision_accuracy_agrees_with_loops(results, seed, statistic, weighting):
    checkpoints = {row["checkpoint"]: row for row in pl.read_parquet(results / "checkpoints.parquet").to_dicts()}
    seeds = [0, 1] if seed == "mean" else [int(seed)]
    wanted = {c for c, row in checkpoints.items() if (row["size"], row["step"]) == ("30k", 40) and row["seed"] in seeds}
    by_task = defaultdict(lambda: defaultdict(list))  # (corpus, seed, task) -> solution -> its tokens
    for row in read_all(results / "token_stats").to_dicts():
        if row["checkpoint"] in wanted and row["task"] in TASKS:
            checkpoint = checkpoints[row["checkpoint"]]
            by_task[checkpoint["corpus"], checkpoint["seed"], row["task"]][row["solution"]].append(row)

    predicted = dict.fromkeys(CORPORA, 0.0)
    for (corpus, _, _), solutions in by_task.items():
        counts = Counter(token["token"] for tokens in solutions.values() for token in tokens)
        for tokens in solutions.values():
            weights = [counts[t["token"]] if weighting == "token_frequency" else 1 for t in tokens]
            if statistic == "cross_entropy":
                values = [t["logprob"] for t in tokens]  # lower is better, so its sign is turned
            else:
                values = [1 + t["n_greater"] + (t["n_equal"] - 1) / 2 <= 5 for t in tokens]
            mean = sum(w * v for w, v in zip(weights, values)) / sum(weights)
            predicted[corpus] += mean / len(solutions)

    truth = dict.fromkeys(CORPORA, 0.0)
    for row in read_all(results / "targets").to_dicts():
        checkpoint = checkpoints[row["checkpoint"]]
        if checkpoint["role"] == "target" and row["metric"] == "multiple_choice_accuracy":
            truth[checkpoint["corpus"]] += row["value"]

    points = pairs = 0
    for a, b in combinations(CORPORA, 2):
        difference, true_difference = round(predicted[a] - predicted[b], 9), round(truth[a] - truth[b], 9)
        if true_difference:
            pairs += 1
            points += 0.5 if not difference else (difference > 0) == (true_difference > 0)
    found = pl.read_parquet(results / "data_selection/decision_accuracy.parquet").filter(
        truth="multiple_choice_accuracy", task="all", statistic=statistic, weighting=weighting, step=40, seed=seed
    )
    assert found["decision_accuracy"].to_list() == [pytest.approx(points / pairs)]


def test_log_probabilities_agree_with_transformers(results):
    checkpoints = pl.read_parquet(results / "checkpoints.parquet").filter(corpus="web_edu", step=40, seed=1)
    folder = results / "suite/models" / checkpoints["run"].item() / "step40"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    stats = pl.read_parquet(results / f"token_stats/web_edu/{checkpoints['checkpoint'].item()}.parquet").filter(
        task="homes"
    )
    for line in (results / "solutions/homes.jsonl").read_text().splitlines():
        solution = json.loads(line)
        ids = torch.tensor(tokenizer(solution["prompt"] + solution["solution"])["input_ids"])
        with torch.no_grad():
            log_probabilities = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
        rows = stats.filter(solution=solution["id"]).sort("position")
        positions = torch.tensor(rows["position"].to_list())
        assert positions[-1] == len(ids) - 1
        assert tokenizer.decode(ids[positions]).endswith(solution["solution"])
        assert rows["token"].to_list() == ids[positions].tolist()
        expected = log_probabilities[positions - 1, ids[positions]].tolist()
        assert rows["logprob"].to_list() == pytest.approx(expected, abs=1e-4)


def test_leaks_were_counted_and_are_zero(results):
    counts = re.search(r"leaks: \{(.*)\}", (results / "logs/build_suite.log").read_text())[1]
    counts = {key: int(n) for key, n in re.findall(r"'(\w+)': (\d+)", counts)}
    assert counts["leaked_questions"] == counts["leaked_texts"] == 0
    assert counts["questions"] == 3 * 20 and counts["texts"] == 30 and counts["documents"] > 1000


def test_a_second_run_does_nothing(smoke):
    started = time.monotonic()
    assert "Nothing to be done" in snakemake(smoke)
    print(f"the second run took {time.monotonic() - started:.1f} s")


def test_progress_has_seen_the_study_end(smoke):
    """Snakemake's hooks told that it ran and ended, and every phase counts what the rules really write."""
    assert [attempt.state for attempt in attempts(smoke / "results/smoke/logs/snakemake.log")] == ["done"]
    command = [sys.executable, "-m", "proxycast.progress", SMOKE]
    environment = os.environ | {"PYTHONPATH": str(smoke / "workflow")}
    ended = subprocess.run(command, cwd=smoke, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and ended.stdout.endswith("smoke: ended, all phases are complete\n")


def test_an_edited_corpus_reruns_that_corpus_alone(project):
    change(project / "config/corpora/miniature/base.yaml", "source: web, weight: 0.34", "source: web, weight: 0.24")
    planned = jobs(snakemake(project, "-n"))
    assert {(rule, corpus) for rule, corpus in planned if rule in PER_CORPUS} == {(rule, "base") for rule in PER_CORPUS}
    assert {rule for rule, _ in planned} - PER_CORPUS == JOINS


def test_a_changed_bootstrap_trains_and_scores_nothing(project):
    change(project / SMOKE, "bootstrap_replicates: 200", "bootstrap_replicates: 100")
    assert jobs(snakemake(project, "-n")) == {(rule, "") for rule in (*JUDGING, "all")}


def test_changed_extraction_scores_everything_and_trains_nothing(project):
    with (project / SMOKE).open("a") as study:
        study.write("\nextraction: {tail_tokens: 3}\n")
    planned = jobs(snakemake(project, "-n"))
    assert {(rule, corpus) for rule, corpus in planned if rule in PER_CORPUS} == {
        (rule, corpus) for rule in PER_CORPUS - {"train_corpus"} for corpus in CORPORA
    }


@pytest.mark.slow
def test_damage_and_a_kill_cost_only_what_was_lost(project):
    """Two truncated checkpoints and a truncated table; a kill -9 in the middle of making them again; and the rest."""
    models, token_stats = project / "results/smoke/suite/models", project / "results/smoke/token_stats"
    before = model_times(project)
    cut(models / "base-30k-seed0/step20/model.safetensors")
    cut(models / "base-43k-seed1/step60/model.safetensors")
    cut(token_stats / "core/core-30k-seed1-step40.parquet")
    (token_stats / "web_edu/web_edu-30k-seed0-step20.parquet").unlink()
    scored = {path: path.stat().st_mtime_ns for path in token_stats.rglob("*.parquet")}

    said = snakemake(project, "-n")
    damaged = ("token_stats/core/core-30k-seed1-step40.parquet", "token_stats/web_edu/manifest.json")
    for path in ("models/base-30k-seed0/step20", "models/base-43k-seed1/step60", *damaged):
        assert f"{path} was truncated, damaged or lacked a part" in said
    assert {("train_corpus", "base"), *(("score", corpus) for corpus in ("base", "core", "web_edu"))} <= jobs(said)

    # Killed when the first of the two runs is trained and the second, another size, is being compiled.
    process = subprocess.Popen(
        command(), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while model_times(project).get("base-30k-seed0/step40", 0) <= before["base-30k-seed0/step40"]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    at_kill = model_times(project)
    assert not (project / "results/smoke/suite/trained/base.json").exists()

    assert "--unlock" in snakemake(project, fails=True)
    snakemake(project, "--unlock")
    started = jobs(snakemake(project, "--rerun-incomplete"))
    assert {corpus for rule, corpus in started if rule == "train_corpus"} == {"base"}
    assert {corpus for rule, corpus in started if rule == "score"} <= {"base", "core", "web_edu"}
    after = model_times(project)
    assert after.keys() == before.keys()
    assert {c for c in before if at_kill.get(c) != before[c]} == {
        *("base-30k-seed0/step20", "base-30k-seed0/step40", "base-43k-seed1/step60")
    }
    assert {c for c in before if after[c] != at_kill.get(c)} == {"base-43k-seed1/step60"}
    made_again = {path.stem for path in token_stats.rglob("*.parquet") if path.stat().st_mtime_ns != scored.get(path)}
    assert {"core-30k-seed1-step40", "web_edu-30k-seed0-step20"} <= made_again
    assert {name for name in made_again if not name.startswith("base-")} == {
        *("core-30k-seed1-step40", "web_edu-30k-seed0-step20")
    }
    assert len(read_all(token_stats / "core")) == len(read_all(token_stats / "base"))
    assert "Nothing to be done" in snakemake(project)


def test_the_report_holds_figures_and_captions(smoke, tmp_path):
    snakemake(smoke, "--report", str(tmp_path / "report.html"))
    report = (tmp_path / "report.html").read_text()
    for name in {*FIGURES, *OF_RECIPES, *FIGURES_OF_A_BUDGET, *COLUMNS} - NOT_ON_THE_PAGE:
        file = f"data_selection_{name}" if name in COLUMNS and name not in FIGURES_OF_A_BUDGET else name
        caption = (ROOT / f"workflow/report/{file}.rst").read_text()
        # Words that stand between two marks of markup come through as they are.
        phrase = max(re.findall(r"[A-Za-z ,]+", caption), key=len).strip()
        assert phrase in report, name
        assert name in report


# A study of models that exist already: folders, solutions of one's own, a table as the truth.

FOLDERS = "config/folders.yaml"
TRUTH = {"base": 0.1, "core": 0.3, "web_edu": 0.2}
STUDY = {
    "study": "folders",
    "corpora": {"given": "all"},
    "tasks": {"given": "all"},
    "generic_text": "own/generic.jsonl",
    "target": {"size": "large", "metric": "score", "table": "own/truth.csv"},
    "jobs": "corpus",
    "selection": {"bootstrap_replicates": 100},
    "highlighted": [{"statistic": "cross_entropy"}],
    "budgets": [{"name": "only", "size": "small", "step": 40}],
}


@pytest.fixture(scope="module")
def folders(smoke, tmp_path_factory):
    """A project whose corpora are folders that the smoke study trained, not run yet."""
    project = tmp_path_factory.mktemp("folders") / "project"
    project.mkdir()
    shutil.copytree(smoke / "workflow", project / "workflow")
    shutil.copy2(smoke / "Snakefile", project)
    sizes = {"small": ("30k", 40), "large": ("43k", 60)}
    for corpus in TRUTH:
        checkpoints = []
        for size, (trained, step) in sizes.items():
            for seed in (0, 1):
                folder = f"models/{corpus}/{size}-{seed}"
                shutil.copytree(
                    smoke / f"results/smoke/suite/models/{corpus}-{trained}-seed{seed}/step{step}", project / folder
                )
                checkpoints.append({"folder": folder, "size": size, "step": step, "tokens": step * 1024, "seed": seed})
        write_json({"name": corpus, "checkpoints": checkpoints}, project / f"config/corpora/given/{corpus}.yaml")
    for task, word in (("sums", "plus"), ("times", "times")):
        rows = [
            {"id": f"{task}-{n}", "prompt": f"Q: what is {n} {word} 3?\nA:", "solution": f" {n} {word} 3 it is."}
            for n in range(8)
        ]
        write_rows(rows, project / f"own/{task}.jsonl")
        write_json({"name": task, "solutions": f"own/{task}.jsonl"}, project / f"config/tasks/given/{task}.yaml")
    text = "The cat sat on the mat, and the dog lay at the door."
    write_rows([{"id": f"g{n}", "prompt": "", "solution": text[n:]} for n in range(3)], project / "own/generic.jsonl")
    rows = [
        {"checkpoint": f"{corpus}-large-seed{seed}-step60", "task": task, "metric": "score", "value": value, "n": 8}
        for corpus, value in TRUTH.items()
        for seed in (0, 1)
        for task in ("sums", "times")
    ]
    pl.DataFrame(rows).write_csv(project / "own/truth.csv")
    write_json(STUDY, project / FOLDERS)
    return project


@pytest.mark.slow
def test_folders_and_a_table_of_the_truth_run_end_to_end(folders, smoke):
    snakemake(folders, study=FOLDERS)
    selection = folders / "results/folders/data_selection"
    ranking = pl.read_parquet(selection / "ranking.parquet")
    assert dict(ranking.select("corpus", "truth").iter_rows()) == pytest.approx(TRUTH)
    assert dict(ranking.select("corpus", "true_rank").iter_rows()) == {"core": 1, "web_edu": 2, "base": 3}
    judged = pl.read_parquet(selection / "decision_accuracy.parquet").filter(task="all", seed="mean")
    assert len(judged.filter(kind="proxy")) == 80
    assert set(judged.filter(kind="baseline")["statistic"]) == SCORED_BASELINES | KNOWN_BASELINES
    given = pl.read_parquet(folders / "results/folders/checkpoints.parquet").filter(size="large")
    trained = pl.read_parquet(smoke / "results/smoke/checkpoints.parquet").filter(size="43k")
    assert set(given["parameters"]) == set(trained["parameters"])
    assert all((selection / f"{name}.png").is_file() for name in figures("small_step40"))
    assert "Nothing to be done" in snakemake(folders, study=FOLDERS)


def test_a_folder_without_tokenizer_stops_before_any_scoring(folders, tmp_path):
    project = shutil.copytree(folders, tmp_path / "project", ignore=shutil.ignore_patterns("results", ".snakemake"))
    (project / "models/web_edu/small-1/tokenizer.json").unlink()
    said = snakemake(project, study=FOLDERS, fails=True)
    assert "models/web_edu/small-1: tokenizer.json missing" in said
    assert not {rule for rule, _ in jobs(said)} & PER_CORPUS


def test_a_truth_that_lacks_a_corpus_stops_before_any_scoring(folders, tmp_path):
    project = shutil.copytree(folders, tmp_path / "project", ignore=shutil.ignore_patterns("results", ".snakemake"))
    truth = pl.read_csv(project / "own/truth.csv")
    truth.filter(~pl.col("checkpoint").str.starts_with("core")).write_csv(project / "own/truth.csv")
    said = snakemake(project, study=FOLDERS, fails=True)
    assert "own/truth.csv: no row for corpus core" in said
    assert not {rule for rule, _ in jobs(said)} & PER_CORPUS


def test_nan_weights_fail_the_job_and_are_named(folders, tmp_path):
    project = shutil.copytree(folders, tmp_path / "project", ignore=shutil.ignore_patterns("results", ".snakemake"))
    weights = project / "models/core/small-1/model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    said = snakemake(project, "results/folders/token_stats/core/manifest.json", study=FOLDERS, fails=True)
    assert re.search(r"error: models/core/small-1: the logits of (sums|times|generic_text)/\S+ at position \d+", said)
    assert not (project / "results/folders/token_stats/core/manifest.json").exists()
