"""What a study took, as far as its files tell: training compute of small models, tokens scored, time of the jobs."""

from collections.abc import Iterator, Mapping
from math import isfinite

import polars as pl

from proxycast.jobs.benchmarks import read_benchmark
from proxycast.report.page.answers.wording import Fact, counted, power_of_ten, two_digits
from proxycast.report.page.study_results import StudyResults


def facts_of_cost(results: StudyResults, cell: Mapping[str, object] | None = None) -> Iterator[Fact]:
    """`cell`: size and step of the small models that decide, whose training is counted; None for released models."""
    told = [*_training(results, cell or {}), *_scoring(results)]
    if told:
        yield Fact("Cost", "; ".join(told))


def _training(results: StudyResults, cell: Mapping[str, object]) -> Iterator[str]:
    checkpoints = results.table("checkpoints")
    if checkpoints is None or not cell:
        return
    trained = checkpoints.filter(role="proxy", **cell)
    flops = trained["flops"].sum()
    if isfinite(flops) and flops > 0 and not trained["flops"].null_count():
        runs = counted(trained["run"].n_unique(), "small model")
        yield f"{power_of_ten(flops, 'FLOPs')} to train {runs} to this step"


def _scoring(results: StudyResults) -> Iterator[str]:
    path = results.results / "proxies.parquet"
    if path.exists() and (not results.rules or "proxies" in results.rules):
        # Every proxy of a checkpoint and task reads the same tokens; tokens of a tail in bytes are among them.
        read = pl.scan_parquet(path).filter(tail="tokens").group_by("checkpoint", "task").agg(pl.col("tokens").max())
        tokens, checkpoints = read.select(pl.col("tokens").sum(), pl.col("checkpoint").n_unique()).collect().row(0)
        yield f"{counted(tokens, 'token')} scored by {counted(checkpoints, 'checkpoint')} in all"
    files = [results.results / f"benchmarks/score/{job}.tsv" for job in results.jobs]
    jobs = [read_benchmark(file) for file in files if file.exists()]
    if seconds := sum(job["s"] for job in jobs if job):
        time = f"{two_digits(seconds / 3600)} h" if seconds >= 3600 else f"{two_digits(seconds / 60)} min"
        yield f"{time} of jobs to score them"
