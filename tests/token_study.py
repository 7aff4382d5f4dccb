"""Made-up token statistics of small studies, as scoring jobs leave them, for the tests of the token view."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from proxycast.config.study import Proxy
from proxycast.extraction.sweep import EXTRACTED_SCHEMA
from proxycast.proxy_formulas import SIGNS, ProxyOptions, baseline_statistics, solution_proxies, task_proxies
from proxycast.solutions.rows import GENERIC_TEXT, Solution, write_solutions
from proxycast.tables import write_json, write_table

V, FIRST_POSITION = 50, 7
TOP5 = Proxy(statistic="top5_accuracy", weighting="token_frequency")


def characters(text: str) -> list[int]:
    """Bytes of the tokens of a tokenizer with a token for each character."""
    return [len(character.encode()) for character in text]


def pairs_of_bytes(text: str) -> list[int]:
    """A tokenizer of other tokens: two bytes each, which splits characters."""
    size = len(text.encode()) - 1
    return [1] + [2] * (size // 2) + [1] * (size % 2)


def solutions_of(task: str, count: int = 3) -> list[Solution]:
    texts = [f" {n * n} is über {task}.\n" + "x" * n for n in range(count)]
    return [Solution(id=f"{task}-{n}", prompt=f"Q{n}:\n", solution=text) for n, text in enumerate(texts)]


def token_stats(
    checkpoint: str,
    solutions: Mapping[str, Sequence[Solution]],
    rng: np.random.Generator,
    tokenizer: Callable[[str], list[int]] = characters,
) -> pl.DataFrame:
    rows = []
    for task, of_task in solutions.items():
        for solution in of_task:
            for n, size in enumerate(tokenizer(solution.solution)):
                low, high = sorted(rng.uniform(-6, 0, 2))
                rank = int(rng.integers(0, 12))
                rows.append((checkpoint, task, solution.id, FIRST_POSITION + n, n * n % 5, size))
                rows[-1] += (high if rank == 0 else low, high, low, rng.uniform(0, 4), rank, 1, V)
    return pl.DataFrame(rows, EXTRACTED_SCHEMA, orient="row")


def write_study(
    results: Path,
    corpora: Sequence[str] = ("good", "fair", "bad"),
    tasks: Sequence[str] = ("sums", "words"),
    steps: Sequence[int] = (10, 20),
    seeds: Sequence[int] = (0, 1),
    tokenizers: Mapping[str, Callable[[str], list[int]]] | None = None,
    role: str = "proxy",
) -> dict[str, list[Solution]]:
    """checkpoints.parquet, solutions and token_stats, also of generic text. Returns the solutions of the tasks."""
    rng, solutions, rows = np.random.default_rng(0), {task: solutions_of(task) for task in tasks}, []
    texts = solutions | {GENERIC_TEXT: solutions_of(GENERIC_TEXT)}
    for task, of_task in texts.items():
        write_solutions(of_task, results / f"solutions/{task}.jsonl")
    for corpus in corpora:
        manifest = {}
        for seed in seeds:
            for step in steps:
                run = f"{corpus}-small-seed{seed}"
                rows.append({"checkpoint": f"{run}-step{step}", "run": run, "corpus": corpus, "size": "small"})
                rows[-1] |= {"parameters": 1000, "step": step, "tokens": 100 * step, "seed": seed, "role": role}
                table = token_stats(f"{run}-step{step}", texts, rng, (tokenizers or {}).get(corpus, characters))
                manifest[f"{run}-step{step}"] = str(len(manifest))
                write_table(
                    table, results / f"token_stats/{corpus}/{run}-step{step}.parquet", manifest[f"{run}-step{step}"]
                )
        write_json(manifest, results / f"token_stats/{corpus}/manifest.json")
    write_table(pl.DataFrame(rows), results / "checkpoints.parquet", "made up")
    return solutions


def value(
    results: Path, checkpoint: str, proxy: Proxy, cut: Callable[[pl.LazyFrame], pl.LazyFrame] = lambda t: t
) -> float:
    """The proxy of a checkpoint, a mean over tasks and the higher the better, by the formulas of the proxies."""
    [path] = results.glob(f"token_stats/*/{checkpoint}.parquet")
    stats = cut(pl.scan_parquet(path).filter(pl.col("task") != GENERIC_TEXT))
    if proxy.weighting == "none":
        table = baseline_statistics(stats).collect()
    else:
        table = task_proxies(solution_proxies(stats, ProxyOptions())).collect()
    return SIGNS[proxy.statistic] * table.filter(statistic=proxy.statistic, weighting=proxy.weighting)["value"].mean()


def write_ranking(results: Path, proxy: Proxy = TOP5, step: int = 20) -> pl.DataFrame:
    """data_selection/ranking.parquet by the mean of all seeds."""
    checkpoints = pl.read_parquet(results / "checkpoints.parquet").filter(step=step)
    scores = [value(results, name, proxy) for name in checkpoints["checkpoint"]]
    table = checkpoints.with_columns(predicted=pl.Series(scores)).group_by("corpus").agg(pl.col("predicted").mean())
    seeds = checkpoints["seed"].n_unique()
    table = table.sort("predicted", descending=True).select(
        "corpus",
        statistic=pl.lit(proxy.statistic),
        weighting=pl.lit(proxy.weighting),
        size=pl.lit("small"),
        step=pl.lit(step),
        predicted="predicted",
        place=pl.int_range(1, pl.len() + 1).cast(pl.Float64),
        seeds=pl.lit(seeds),
    )
    write_table(table, results / "data_selection/ranking.parquet", "made up")
    return table


def study_file(project: Path, name: str = "tiny", **keys: object) -> Path:
    """A study of the corpora and tasks of `write_study`, with results in results/<name>."""
    for corpus in ("good", "fair", "bad"):
        checkpoints = [
            {
                "folder": f"models/{corpus}/{seed}/{step}",
                "size": "small",
                "step": step,
                "tokens": 100 * step,
                "seed": seed,
            }
            for seed in (0, 1)
            for step in (10, 20)
        ]
        path = project / f"config/corpora/made_up/{corpus}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": corpus, "checkpoints": checkpoints}))
    for task in ("sums", "words"):
        path = project / f"config/tasks/made_up/{task}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": task, "solutions": f"results/{name}/solutions/{task}.jsonl"}))
    study = {"study": name, "corpora": {"made_up": "all"}, "tasks": {"made_up": "all"}} | keys
    path = project / f"config/{name}.yaml"
    path.write_text(json.dumps(study))
    return path
