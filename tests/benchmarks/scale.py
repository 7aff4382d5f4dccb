"""Time and memory of a study of all DataDecide's checkpoints, at 1/10, 1/3 and all of it, without a model.

scale.py joins: proxies, per corpus as rule solution_proxies writes them, drawn at random for the checkpoints that
config/datadecide_full.yaml plans (every 10th, every 3rd, all), then joined, judged and drawn by the workflow's own
scripts, each in a process of its own.

scale.py cluster: the whole study (of 3, 8, all corpora) by `snakemake --profile slurm` on the Slurm that is there; its
scoring jobs replay token statistics (key `replay`). Time and memory of each phase are from Snakemake's benchmark files.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))

from proxycast.extraction.sweep import EXTRACTED_SCHEMA  # noqa: E402
from proxycast.proxy_formulas import BASELINES, STATISTICS, WEIGHTINGS  # noqa: E402
from proxycast.solutions.rows import GENERIC_TEXT  # noqa: E402
from proxycast.study.checkpoint_plan import plan_checkpoints  # noqa: E402
from proxycast.study.checkpoints import checkpoints_table  # noqa: E402
from proxycast.study.loader import load_plan  # noqa: E402
from proxycast.study.yaml_files import read_yaml  # noqa: E402
from proxycast.tables import write_table  # noqa: E402

STUDY = "config/datadecide_full.yaml"
SHARES = {"1/10": 10, "1/3": 3, "all": "all"}
CORPORA = {"1/10": 3, "1/3": 8, "all": 25}
SOLUTIONS = 1000  # of a task
TOKENS = 8  # scored tokens of a solution
REPLAYED = 4  # solutions of a task that scoring jobs replay
NAMES = pl.DataFrame(
    [(s, w) for s in STATISTICS for w in WEIGHTINGS] + [(b, "none") for b in BASELINES],
    ["statistic", "weighting"],
    orient="row",
)


def planned(every: int | str) -> tuple[dict, pl.DataFrame, list[str]]:
    """The study with every n-th checkpoint, its checkpoints and tasks; all corpora have the models of the budgets."""
    os.chdir(ROOT)
    study = read_yaml(Path(STUDY))
    study["ladder"]["checkpoints"] = every
    study["budgets"] = [
        {"name": "small", "size": "90M", "step": 29901},
        {"name": "large", "size": "300M", "step": 45787},
    ]
    plan = load_plan(study, where=STUDY)
    return study, checkpoints_table(plan_checkpoints(plan), {}), plan.task_names


def write_measurements(folder: Path, study: dict, checkpoints: pl.DataFrame, tasks: list[str]) -> None:
    """What the scoring jobs and the published evaluations would have given: numbers without meaning, from one seed."""
    random = np.random.default_rng(0)
    write_table(checkpoints, folder / "checkpoints.parquet", "")
    at_budgets = pl.DataFrame(study["budgets"]).select("size", "step")
    highlighted = pl.DataFrame(study["highlighted"])
    solutions = pl.DataFrame({"solution": [f"row-{n}" for n in range(SOLUTIONS)]})
    for (corpus,), found in checkpoints.filter(role="proxy").group_by("corpus", maintain_order=True):
        names = found.select("checkpoint").join(pl.DataFrame({"task": [*tasks, GENERIC_TEXT]}), how="cross")
        proxies = names.join(NAMES, how="cross").with_columns(solutions=pl.lit(SOLUTIONS, pl.UInt32))
        proxies = proxies.with_columns(tokens=pl.col("solutions") * TOKENS, tail=pl.lit("tokens"))
        values = {name: pl.Series(random.normal(size=len(proxies))) for name in ("value", "standard_error")}
        write_table(proxies.with_columns(**values), folder / f"proxies/{corpus}.parquet", corpus)
        kept = found.join(at_budgets, ["size", "step"], "semi").select("checkpoint")
        kept = kept.join(pl.DataFrame({"task": tasks}), how="cross").join(solutions, how="cross")
        kept = kept.join(highlighted, how="cross").with_columns(tokens=pl.lit(TOKENS), tail=pl.lit("tokens"))
        values = {"value": pl.Series(random.normal(size=len(kept))), "denominator": pl.lit(1.0)}
        write_table(kept.with_columns(**values), folder / f"solution_proxies/{corpus}.parquet", corpus)
    truth = checkpoints.select("checkpoint").join(pl.DataFrame({"task": tasks}), how="cross")
    value = pl.Series(random.random(len(truth)))
    truth = truth.with_columns(metric=pl.lit(study["target"]["metric"]), value=value, n=pl.lit(SOLUTIONS, pl.Int64))
    write_table(truth, folder / "targets.parquet", "")
    stats = checkpoints.filter(role="proxy")["checkpoint"][0]
    tokens = pl.DataFrame({"checkpoint": [stats], "task": tasks[:1], "solution": ["row-0"], "position": [9]})
    write_table(tokens, folder / f"token_stats/one/{stats}.parquet", "")
    (folder / "token_stats/one/manifest.json").write_text(json.dumps({stats: ""}))


def scripts(folder: Path, study: dict, checkpoints: pl.DataFrame, tasks: list[str]) -> dict[str, dict]:
    """Script -> input, output and params, as the rules give them."""
    corpora = checkpoints.filter(role="proxy")["corpus"].unique(maintain_order=True)
    tables = ["summary", "ranking", "pairs", "agreement", "decision_accuracy", "pareto", "compute_to_reach"]
    tables += ["predictions", "truth"]
    keys = ("study", "target", "highlighted", "budgets")
    params = {"study": {key: study[key] for key in keys} | {"selection": {}}, "tasks": tasks}
    params |= {"left_out": [], "rates": [], "reading": None, "tokenizers": []}
    later = ["signal_to_noise", "snr_and_accuracy", "repeats", "choices", "margins", "solution_counts"]
    figures = ["pareto_frontier", "decision_accuracy_over_training"]
    figures += ["snr_against_decision_accuracy", "repeats_over_compute", "regret_over_compute"]
    of_budgets = ["ranking_with_intervals", "proxy_against_truth", "decision_accuracy_heatmap", "signal_to_noise"]
    for kind in (*of_budgets, "regret_by_method", "gap_calibration", "solution_counts"):
        figures += [f"{kind}_{budget['size']}_step{budget['step']}" for budget in study["budgets"]]
    of_solutions = [f"{folder}/solution_proxies/{corpus}.parquet" for corpus in corpora]
    finished = {name: f"{folder}/{name}.parquet" for name in ("checkpoints", "targets", "proxies")}

    def named(*names: str) -> dict[str, str]:
        return {name: f"{folder}/data_selection/{name}.parquet" for name in names}

    return {
        "join_proxies": {
            "input": {"proxies": [f"{folder}/proxies/{corpus}.parquet" for corpus in corpora]},
            "output": {"joined": f"{folder}/proxies.parquet"},
            "params": {},
        },
        "data_selection": {
            "input": finished
            | {
                "solution_proxies": of_solutions,
                "token_stats": [f"{folder}/token_stats/one/manifest.json"],
                "problems": [],
            },
            "output": named(*tables),
            "params": params,
        },
        "signal_to_noise": {
            "input": finished,
            "output": named("signal_to_noise", "snr_and_accuracy", "task_choice", "repeats"),
            "params": params,
        },
        "choices": {
            "input": finished | {"proxies": [finished["proxies"]], "outside": [], **named("pairs")},
            "output": named("choices", "decisions", "margins"),
            "params": params,
        },
        "solution_counts": {
            "input": {
                "checkpoints": finished["checkpoints"],
                "targets": [finished["targets"]],
                "solution_proxies": of_solutions,
            },
            "output": named("solution_counts", "picked_solutions"),
            "params": params,
        },
        "data_selection_figures": {
            "input": named(*tables, *later),
            "output": {name: f"{folder}/data_selection/{name}.png" for name in figures},
            "params": params,
        },
    }


RUN_SCRIPT = """
import json, runpy, sys
from types import SimpleNamespace
from snakemake.iocontainers import Namedlist
script, job = sys.argv[1], json.loads(sys.argv[2])
named = {key: Namedlist(fromdict=job[key]) for key in ("input", "output", "params")}
if script.endswith("join_proxies.py"):
    named["input"] = job["input"]["proxies"]
runpy.run_path(script, {"snakemake": SimpleNamespace(**named, log=[job["log"]], threads=1)})
"""


def measured(script: str, job: dict) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak MB of one of the workflow's scripts."""
    command = [sys.executable, "-c", RUN_SCRIPT, f"{ROOT}/workflow/scripts/{script}.py", json.dumps(job)]
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(Path(job["log"]).read_text())
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def joins(shares: list[str], keep: Path | None) -> list[str]:
    lines = ["| checkpoints | rows | phase | seconds | processor seconds | peak MB |", "|---|---|---|---|---|---|"]
    for share in shares:
        folder = Path(tempfile.mkdtemp(dir=keep))
        study, checkpoints, tasks = planned(SHARES[share])
        write_measurements(folder, study, checkpoints, tasks)
        rows = checkpoints.filter(role="proxy").height * len(NAMES) * (len(tasks) + 1)
        for script, job in scripts(folder, study, checkpoints, tasks).items():
            seconds, processor, megabytes = measured(script, job | {"log": f"{folder}/{script}.log"})
            lines.append(
                f"| {len(checkpoints):,} ({share}) | {rows:,} | {script} | {seconds:.1f} | {processor:.1f} | "
                f"{megabytes:,.0f} |"
            )
            print(lines[-1], flush=True)
        if keep is None:
            shutil.rmtree(folder)
    return lines


def write_project(project: Path, corpora: int, sizes: list[str] | None) -> None:
    """A copy of the project with a study `scale` of the first corpora, whose scoring jobs replay a small table."""
    for name in ("workflow", "config", "slurm"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "Snakefile", project)
    os.chdir(project)
    full, suite = read_yaml(Path(STUDY)), Path("config/tasks/replayed")
    tasks = sorted(path.stem for path in Path("config/tasks/olmes").glob("*.yaml"))
    suite.mkdir()
    recorded = []
    for task in [*tasks, GENERIC_TEXT]:
        ids, prompt = [f"row-{n}" for n in range(REPLAYED)], "" if task == GENERIC_TEXT else "Question:"
        rows = [{"id": name, "prompt": prompt, "solution": f" answer {name}"} for name in ids]
        Path(f"config/{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if task != GENERIC_TEXT:
            (suite / f"{task}.yaml").write_text(yaml.safe_dump({"name": task, "solutions": f"config/{task}.jsonl"}))
        recorded += [(task, name, position) for name in ids for position in range(TOKENS)]
    write_recorded(
        pl.DataFrame(recorded, ["task", "solution", "position"], orient="row"), Path("config/recorded.parquet")
    )
    names = sorted(read_yaml(path)["name"] for path in Path("config/corpora/datadecide").glob("*.yaml"))[:corpora]
    study = {
        "study": "scale",
        "corpora": {"datadecide": names},
        "tasks": {"replayed": "all"},
        "generic_text": f"config/{GENERIC_TEXT}.jsonl",
        "replay": "config/recorded.parquet",
        "ladder": full["ladder"] | ({"sizes": sizes} if sizes else {}),
        "target": {"size": "1B", "metric": "accuracy", "table": "config/truth.parquet"},
        "highlighted": full["highlighted"],
        "budgets": [{"name": "small", "size": "4M", "step": 5000}],
    }
    Path("config/scale.yaml").write_text(yaml.safe_dump(study))
    checkpoints = checkpoints_table(plan_checkpoints(load_plan(study, where="config/scale.yaml")), {})
    truth = checkpoints.filter(role="target").select("checkpoint").join(pl.DataFrame({"task": tasks}), how="cross")
    value = pl.Series(np.random.default_rng(0).random(len(truth)))
    truth.with_columns(metric=pl.lit("accuracy"), value=value, n=pl.lit(100)).write_parquet("config/truth.parquet")


def write_recorded(tokens: pl.DataFrame, path: Path) -> None:
    """Token statistics as a model could have given them, from one seed."""
    random, n = np.random.default_rng(0), len(tokens)
    best = -random.exponential(0.5, n)
    behind = random.exponential(1, n) * random.integers(0, 2, n)
    above = np.where(behind > 0, random.integers(1, 50, n), 0)
    columns = {
        "token": random.integers(0, 50, n),
        "bytes": 4,
        "logprob": best - behind,
        "max_logprob": best,
        "second_logprob": best - 0.1,
        "entropy": random.exponential(2, n),
        "n_greater": above,
        "n_equal": 1,
        "vocabulary": 50304,
    }
    write_table(
        tokens.with_columns(checkpoint=pl.lit("recorded"), **columns)
        .select(list(EXTRACTED_SCHEMA))
        .cast(EXTRACTED_SCHEMA),
        path,
        "",
    )


def cluster(shares: list[str], keep: Path | None, arguments: list[str]) -> list[str]:
    lines = [
        "| corpora | phase | jobs | seconds each | processor seconds | peak MB of one |",
        "|---|---|---|---|---|---|",
    ]
    for share in shares:
        project = Path(tempfile.mkdtemp(dir=keep)) / "project"
        write_project(project, CORPORA[share], None)
        started = time.monotonic()
        command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", "config/scale.yaml"]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(command, cwd=project, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        if status:
            sys.exit(f"{project}: snakemake failed")
        lines.append(
            f"| {CORPORA[share]} ({share}) | all, and Snakemake itself | | {seconds:.0f} | "
            f"{usage.ru_utime + usage.ru_stime:.0f} | {usage.ru_maxrss / 1000:.0f} |"
        )
        for rule, table in benchmarks(project / "results/scale/benchmarks"):
            lines.append(
                f"| {CORPORA[share]} ({share}) | {rule} | {len(table)} | {table['s'].median():.1f} | "
                f"{table['cpu_time'].sum():.0f} | {table['max_rss'].max():.0f} |"
            )
        print("\n".join(lines), flush=True)
        if keep is None:
            shutil.rmtree(project.parent)
    return lines


def benchmarks(folder: Path) -> list[tuple[str, pl.DataFrame]]:
    """Rule -> a row for each of its jobs, as Snakemake measured them."""
    found: dict[str, list[pl.DataFrame]] = {}
    for path in sorted(folder.rglob("*.tsv")):
        rule = path.relative_to(folder).parts[0].removesuffix(".tsv")
        row = pl.read_csv(path, separator="\t", null_values=["NA", "-"]).select("s", "max_rss", "cpu_time")
        found.setdefault(rule, []).append(row.cast(pl.Float64))
    return [(rule, pl.concat(rows)) for rule, rows in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["joins", "cluster"])
    parser.add_argument("--shares", nargs="+", default=list(SHARES), choices=SHARES)
    parser.add_argument("--keep", type=Path, help="keep the tables in this folder")
    parser.add_argument(
        "--snakemake", type=shlex.split, default="--profile slurm", help="the options that it is run with: %(default)s"
    )
    options = parser.parse_args()
    keep = options.keep and options.keep.absolute()
    print(
        "\n".join(
            joins(options.shares, keep) if options.what == "joins" else cluster(options.shares, keep, options.snakemake)
        )
    )


if __name__ == "__main__":
    main()
