"""How far the order of corpora moved with the learning rate and the size of small models in a finished study.

learning_rates.py RESULTS: the tables `rates`, `rate_check` and `truth` of results/<study> as rows of markdown.
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


def tell(results: Path) -> None:
    rates, moved, truth = (pl.read_parquet(results / f"data_selection/{name}.parquet") for name in TABLES)
    print("| proxy, small models | rates | alike | less another seed | accuracy | lower rate's | gain |")
    print("|---|---|---|---|---|---|---|")
    for row in rates.sort("statistic", "size", maintain_order=True).iter_rows(named=True):
        told = [interval(row, "agreement"), interval(row, "seed_difference", "+.2f")]
        told += [interval(row, name) for name in ("decision_accuracy", "slower_decision_accuracy")]
        told.append(interval(row, "difference", "+.2f"))
        name = f"{readable(row['statistic'], row['weighting'])}, {row['size']}"
        print(f"| {name} | {row['factor']:.2g}, {row['slower_factor']:.2g} | {' | '.join(told)} |")
    keys = ["statistic", "weighting", "size", "slower_size", "pairs", "pairs_moved", "pairs_moved_surely"]
    for row in moved.select(keys).rows():
        print("{}/{}, {} and {}: of {} pairs {} move, {} surely".format(*row))
    for row in truth.iter_rows(named=True):
        print(f"truth {row['metric']}: {row['seeds']} seeds, reliability {interval(row, 'reliability')} {row['note']}")


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
