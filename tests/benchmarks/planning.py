"""Time and memory of `snakemake -n` for DataDecide's studies: planning.py --out table.md

A plan is made offline, from the configuration alone, and once more where every checkpoint has been scored, so that tens
of thousands of tables are looked at. Processor time counts, because other work on the machine does not change it much;
the best of a few runs is shown.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))

from proxycast.study.checkpoint_plan import plan_checkpoints  # noqa: E402
from proxycast.study.checkpoints import scoring_jobs  # noqa: E402
from proxycast.study.loader import load_plan  # noqa: E402
from proxycast.study.yaml_files import read_yaml  # noqa: E402

STUDIES = ("data_selection", "datadecide_full")


def copy_project(project: Path) -> None:
    for name in ("workflow", "config"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "Snakefile", project)
    os.chdir(project)


def score_everything(study: str) -> int:
    """A table of token statistics for every checkpoint, all of them the same file; how many there are."""
    plan = load_plan(read_yaml(Path(f"config/{study}.yaml")), where=study)
    table = Path("table.parquet").absolute()
    pl.DataFrame({"value": [0.0]}).write_parquet(table)
    jobs = scoring_jobs(plan, plan_checkpoints(plan))
    for job, checkpoints in jobs.items():
        folder = plan.results / "token_stats" / job
        folder.mkdir(parents=True)
        for checkpoint in checkpoints:
            (folder / f"{checkpoint.checkpoint}.parquet").hardlink_to(table)
        (folder / "manifest.json").write_text(json.dumps({c.checkpoint: "" for c in checkpoints}))
    return sum(map(len, jobs.values()))


def dry_run(study: str) -> tuple[float, float, int]:
    """Processor seconds, peak MB and number of jobs."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = "workflow"
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "snakemake", "--configfile", f"config/{study}.yaml", "-n", "--quiet", "all"]
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        output = said.read()
    if status:
        sys.exit(output)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000, int(re.search(r"^total +(\d+)$", output, re.M)[1])


def measured(study: str, tables: int, rounds: int) -> str:
    seconds, megabytes, jobs = min(dry_run(study) for _ in range(rounds))
    return f"| `config/{study}.yaml` | {tables:,} | {jobs:,} | {seconds:.1f} | {megabytes:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out and options.out.absolute()
    lines = ["| study | tables there | jobs | processor seconds | peak MB |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder, "project"))
        lines += [measured(study, 0, options.rounds) for study in STUDIES]
        lines.append(measured(STUDIES[-1], score_everything(STUDIES[-1]), options.rounds))
    command = f"    python tests/benchmarks/planning.py --rounds {options.rounds}"
    table = "\n".join(["# Planning DataDecide's studies (`snakemake -n`)", "", command, "", *lines, ""])
    print(table)
    if out:
        out.write_text(table)


if __name__ == "__main__":
    main()
