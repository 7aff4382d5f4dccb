"""How far the order of corpora moved with the learning rate and the size of small models in a finished study.

learning_rates.py RESULTS: how two rates order the corpora, which pairs move, how each rate orders them beside each
truth, how far it tells them apart, and the truths, of results/<study> as rows of markdown.
learning_rates.py --cut: config/miniature_rates.yaml cut to six corpora, four tasks and short trainings, on stdout.
"""

import argparse
import sys
from pathlib import Path

import polars as pl
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))

from proxycast.report.style import readable  # noqa: E402

STUDY = ROOT / "config/miniature_rates.yaml"
CORPORA = ["base", "core", "core_wiki_10", "web_crawl", "web_edu", "core_books_70"]
TASKS = ["days_after", "homes", "products", "opposites"]
STEPS = {"30k": 60, "43k": 80, "140k": 80}


def cut_study() -> dict:
    """The study with less of everything but sizes, rates, seeds and methods."""
    study = yaml.safe_load(STUDY.read_text())
    study |= {"study": "miniature_rates_cut", "corpora": {"miniature": CORPORA}, "tasks": {"miniature": TASKS}}
    study["miniature"] |= {"scale": 0.15, "problems": 20, "generic_documents": 30}
    study["selection"] = {"bootstrap_replicates": 500}
    sizes = study["miniature"]["sizes"]
    study["miniature"]["sizes"] = {name: size | {"steps": STEPS[name.split("_")[0]]} for name, size in sizes.items()}
    study["budgets"] = [budget | {"step": STEPS[budget["size"]]} for budget in study["budgets"]]
    return study


def interval(row: dict, name: str, form: str = ".2f") -> str:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{value:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def named(row: dict) -> str:
    return f"{readable(row['statistic'], row['weighting'])}, {row['size']}"


def tell_rates(rates: pl.DataFrame, moved: pl.DataFrame) -> None:
    """How alike two rates order the corpora, and what the lower one gains; which pairs move."""
    print("| small models | rates | alike | less another seed | accuracy | lower rate's | gain |")
    print("|---|---|---|---|---|---|---|")
    for row in rates.sort("statistic", "size", maintain_order=True).iter_rows(named=True):
        told = [interval(row, "agreement"), interval(row, "seed_difference", "+.2f")]
        told += [interval(row, name) for name in ("decision_accuracy", "slower_decision_accuracy")]
        told.append(interval(row, "difference", "+.2f"))
        print(f"| {named(row)} | {row['factor']:.2g}, {row['slower_factor']:.2g} | {' | '.join(told)} |")
    keys = ["statistic", "weighting", "size", "slower_size", "pairs", "pairs_moved", "pairs_moved_surely"]
    for row in moved.select(keys).rows():
        print("{}/{}, {} and {}: of {} pairs {} move, {} surely".format(*row))


def tell_each(results: Path, rates: pl.DataFrame, truths: list[str]) -> None:
    """Each size and rate by itself: one run's decision accuracy and rho beside each truth, then mean and noise."""
    keys = ["statistic", "weighting", "size"]
    both = rates.sort("statistic", "size", maintain_order=True).with_columns(pl.concat_list("size", "slower_size"))
    compared = both.explode("size").select(*keys, "step").unique(maintain_order=True)
    judged = pl.read_parquet(results / "data_selection/decision_accuracy.parquet").filter(seed="single", task="all")
    noise = pl.read_parquet(results / "data_selection/signal_to_noise.parquet").filter(task="all")
    judged, noise = (compared.join(table, on=compared.columns, maintain_order="left") for table in (judged, noise))
    noise = {tuple(row[key] for key in keys): row for row in noise.iter_rows(named=True)}
    heads = " | ".join(f"accuracy, {readable(truth).lower()} | rho" for truth in truths)
    print(f"| small models | {heads} | mean | spread over corpora | noise of a seed |")
    print("|---" * (4 + 2 * len(truths)) + "|")
    rows = judged.rows_by_key(["truth", *keys], named=True)
    for method in dict.fromkeys(key[1:] for key in rows):
        of_truth = [rows[truth, *method][0] for truth in truths]
        told = [text for row in of_truth for text in (accuracy(row), interval(row, "spearman"))]
        told += [f"{abs(noise[method][name]):.3g}" for name in ("mean", "dispersion", "seed_noise")]
        print(f"| {named(dict(zip(keys, method)))} | {' | '.join(told)} |")


def accuracy(row: dict) -> str:
    """Decision accuracy, whose interval has no prefix in its table."""
    return interval({f"accuracy{end}": row[name] for end, name in ENDS.items()}, "accuracy")


def tell(results: Path) -> None:
    rates, moved, truth = (pl.read_parquet(results / f"data_selection/{name}.parquet") for name in TABLES)
    tell_rates(rates, moved)
    tell_each(results, rates, truth["metric"].to_list())
    for row in truth.iter_rows(named=True):
        told = f"{row['seeds']} seeds, reliability {interval(row, 'reliability')}"
        told += f", at most {interval(row, 'ceiling_decision_accuracy')} decided"
        print(f"truth {row['metric']}: {told}, values {row['lowest']:.2f} to {row['highest']:.2f} {row['note']}")


ENDS = {"": "decision_accuracy", "_low": "low", "_high": "high"}
TABLES = ("rates", "rate_check", "truth")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="results/<study>")
    parser.add_argument("--cut", action="store_true", help="write the cut study")
    given = parser.parse_args()
    if given.cut == (given.results is not None):
        parser.error("give either a folder of results or --cut")
    if given.cut:
        yaml.safe_dump(cut_study(), sys.stdout, sort_keys=False)
    else:
        tell(given.results)
