"""How many solutions were enough in finished studies, whether picking them helped, and how good the extrapolation is.

solution_counts.py RESULTS...: from the tables solution_counts of results/<study>.
solution_counts.py --size: time and memory of the tables for values of DataDecide's size, drawn at random.
"""

import argparse
import resource
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))

from proxycast.config.experiments.selection_options import SelectionOptions  # noqa: E402
from proxycast.config.study import DEFAULT_PROXIES, Budget, Proxy  # noqa: E402
from proxycast.experiments.data_selection.corpus_scores import signed_solutions  # noqa: E402
from proxycast.experiments.data_selection.solution_counts import (  # noqa: E402
    extrapolated,
    solution_tables,
    task_values,
    wanted_proxies,
)
from proxycast.experiments.item_response import fit_responses  # noqa: E402
from proxycast.proxy_formulas import proxy_name  # noqa: E402

SHOWN = (1, 3, 10)
CORPORA, SEEDS, TASKS, SOLUTIONS, SIZES = 25, 3, 10, 500, ("20M", "90M")


def tell_corpora(counts: pl.DataFrame) -> None:
    keys = ["reference", "size", "step", "statistic", "weighting"]
    for key, cell in counts.filter(score="mean", pick="random").group_by(keys, maintain_order=True):
        given = cell.filter(pl.col("number") <= pl.col("solutions"))
        known = {row["number"]: row["decision_accuracy"] for row in given.iter_rows(named=True)}
        row = given.row(-1, named=True)
        print(
            "{:14} {} step {:4} {:32}".format(*key[:3], proxy_name(*key[3:])),
            *(f"{n}: {known[n]:.3f}" for n in (*SHOWN, row["number"]) if n in known),
            "enough {enough} [{enough_low}, {enough_high}], draws [{enough_draws_low}, {enough_draws_high}]".format(
                **row
            ),
        )
    judged = counts.filter(pl.col("difference").is_not_null(), pl.col("number").is_in(SHOWN))
    for key, rows in judged.group_by("reference", "pick", "score", "number", maintain_order=True):
        better, worse = (rows["difference_low"] > 0).sum(), (rows["difference_high"] < 0).sum()
        print(
            "{:14} {:12} {:7} {:3}".format(*key),
            f"mean difference {rows['difference'].mean():+.4f}, {better} of {len(rows)} better, {worse} worse",
        )


def tell_extrapolation(counts: pl.DataFrame) -> None:
    """The figure of all solutions, from numbers of less than half of them."""
    errors = []
    for _, cell in counts.filter(score="mean", pick="random", reference="truth").group_by("size", "step", "statistic"):
        given = cell.filter(pl.col("number") <= pl.col("solutions"))
        known = given.filter(pl.col("number") < pl.col("solutions") / 2)
        used = known.filter(pl.col("number") >= known["number"].max() / 10)
        curve, true = used["decision_accuracy"].to_numpy(), given["decision_accuracy"][-1]
        found = extrapolated(used["number"].to_numpy(), curve[:, None], given["number"][-1])[0]
        errors.append((abs(found - true), abs(curve[-1] - true)))
    if errors:
        print(
            "extrapolated to all: mean error {:.4f}; the last known number instead: {:.4f}".format(*np.mean(errors, 0))
        )


def tell_likeness(results: Path) -> None:
    """Correlation of what the model leaves over, of the five most informative solutions and of all pairs of a task."""
    checkpoints = pl.read_parquet(results / "checkpoints.parquet")
    values = pl.scan_parquet(results / "solution_proxies" / "*.parquet").filter(tail="tokens")
    picks = pl.read_parquet(results / "data_selection" / "picked_solutions.parquet")
    for size, step, *name in picks.select("size", "step", "statistic", "weighting").unique(maintain_order=True).rows():
        small = checkpoints.filter((pl.col("role") == "target") | (pl.col("size") == size) & (pl.col("step") == step))
        scores = signed_solutions(small, values, [Proxy(statistic=name[0], weighting=name[1])])
        candidates, alike = scores.select("corpus", "seed").unique().sort("corpus", "seed"), []
        for task in task_values(scores, candidates, scores.select("size").unique()):
            own, model = task.values[:, 0], fit_responses(task.values[:, 0])
            aimed = model.slopes * model.precisions
            theta = (own - model.means) @ model.precisions / (1 + aimed.sum())
            left = (own - model.means - np.outer(theta, model.slopes))[:, np.argsort(-model.information, kind="stable")]
            left = left[:, left.std(0) > 1e-9]
            correlation = np.corrcoef(left.T)
            alike.append([r[np.triu_indices(len(r), 1)].mean() for r in (correlation[:5, :5], correlation)])
        print(
            f"{size} {proxy_name(*name):32} five most informative {{:.2f}}, all {{:.2f}}".format(
                *np.mean(alike, axis=0)
            )
        )


def tell_models(counts: pl.DataFrame) -> None:
    for row in counts.filter(pl.col("number") == pl.col("solutions")).iter_rows(named=True):
        cell = counts.filter(**{name: row[name] for name in ("reference", "statistic", "weighting", "tail")})
        known = dict(cell.select("number", "spearman").iter_rows())
        print(
            "{:14} {:6} {:40}".format(row["reference"], row["tail"], proxy_name(row["statistic"], row["weighting"])),
            *(f"{n}: {known[n]:.3f}" for n in (*SHOWN, row["number"]) if n in known),
            "enough {enough} [{enough_low}, {enough_high}], draws [{enough_draws_low}, {enough_draws_high}]".format(
                **row
            ),
        )


def measure_size() -> None:
    rng, checkpoints, values = np.random.default_rng(0), [], []
    tasks, solutions = (
        np.repeat([f"t{t}" for t in range(TASKS)], SOLUTIONS),
        [f"s{m}" for m in range(SOLUTIONS)] * TASKS,
    )
    for c, size, seed in product(range(CORPORA), (*SIZES, "1B"), range(SEEDS)):
        name, role = f"c{c}-{size}-{seed}", "target" if size == "1B" else "proxy"
        checkpoints.append({"checkpoint": name, "corpus": f"c{c}", "size": size, "step": 9, "seed": seed, "role": role})
        for proxy in wanted_proxies(DEFAULT_PROXIES) if role == "proxy" else ():
            value = c / CORPORA + rng.normal(size=len(tasks))
            named = {"checkpoint": pl.lit(name), "denominator": pl.lit(1.0)}
            named |= {key: pl.lit(of) for key, of in proxy.model_dump().items()}
            values.append(pl.DataFrame({"task": tasks, "solution": solutions, "value": value}).with_columns(**named))
    truth = pl.DataFrame(
        [(f"c{c}", "t0", c / CORPORA) for c in range(CORPORA)], ["corpus", "task", "value"], orient="row"
    )
    given = pl.DataFrame(checkpoints), pl.concat(values).lazy(), truth, SelectionOptions()
    started = time.process_time()
    tables = solution_tables(*given, [Budget(name=size, size=size, step=9) for size in SIZES], DEFAULT_PROXIES)
    print(
        f"{len(values) * len(tasks):,} values: {time.process_time() - started:.0f} s of a processor, peak "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, {list(map(len, tables.values()))} rows"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--size", action="store_true")
    arguments = parser.parse_args()
    for folder in arguments.results:
        for experiment, tell in (
            ("data_selection", (tell_corpora, tell_extrapolation)),
            ("model_selection", (tell_models,)),
        ):
            if (path := folder / experiment / "solution_counts.parquet").exists():
                if experiment == "data_selection":
                    tell_likeness(folder)
                for each in tell:
                    each(pl.read_parquet(path))
    if arguments.size:
        measure_size()
