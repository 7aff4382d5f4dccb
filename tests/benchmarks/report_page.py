"""Size of a study's page, time and memory to build it, and time until a reader can use it, in headless Chromium.

    python tests/benchmarks/report_page.py                          simulated tables, as large as DataDecide's
    python tests/benchmarks/report_page.py results/smoke config/smoke.yaml       a finished study

The simulated study has the corpora, sizes, seeds, tasks and checkpoints of config/datadecide_full.yaml, 80 proxies and
all baselines. The workflow's own scripts make its tables at two budgets from random numbers (as in scale.py); rows at
all other sizes and steps are copies, with noise. The largest datasets of the page are listed below the figures.

Interactive: everything in sight is drawn, and clicks are answered; drawn: all charts of the page are.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests"), str(Path(__file__).parent)]

import scale  # noqa: E402
from browser import chromium  # noqa: E402
from proxycast.proxy_formulas import STATISTICS  # noqa: E402
from proxycast.tables import read_table, write_table  # noqa: E402

AT_EVERY_CHECKPOINT = ("decision_accuracy", "pareto", "choices")  # the other tables hold the budgets alone
TARGETS = {"full": (15, 5, 60, 2), "miniature": (4, 2, 60, 2)}  # MB, s to interactive, s to build, GiB
HEAD = "| study | rows of tables | built, s | processor, s | peak GiB | size, MB | interactive, s | drawn, s |"
BUILD = r"""
import json, re, sys, time
begun, used = time.monotonic(), time.process_time()
from pathlib import Path
from proxycast.report.page.contents import study_page
from proxycast.report.page.html_page import write_page
from proxycast.report.page.study_results import StudyResults
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checkpoints import budgets_of
from proxycast.study.loader import load_plan
import yaml
results, config, page = map(Path, sys.argv[1:])
plan = load_plan(yaml.safe_load(config.read_text()), str(config))
budgets = plan.study.budgets or budgets_of(plan, plan_checkpoints(plan))
write_page(study_page(StudyResults(plan.study, results, budgets, plan.task_names, plan.left_out, str(config))), page)
status = Path("/proc/self/status").read_text()
peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20  # ru_maxrss would count the parent, too
print(json.dumps({"seconds": time.monotonic() - begun, "processor": time.process_time() - used, "peak": peak}))
"""
# From the start of the navigation; `seen`: the charts of the first screen.
TIMES = """() => new Promise((tell) => {
  const isSeen = (one) => one.getBoundingClientRect().top < innerHeight;
  const seen = [...document.querySelectorAll('[data-chart]')].filter(isSeen);
  let interactive = null;
  const look = () => {
    if (interactive === null && document.readyState === 'complete' && seen.every((one) => one.dataset.drawn === 'done'))
      interactive = performance.now();
    if (document.documentElement.dataset.drawn === 'all') tell([interactive ?? performance.now(), performance.now()]);
    else setTimeout(look, 5);
  };
  look();
})"""


def simulated(folder: Path) -> tuple[Path, Path]:
    """Results and configuration of a made-up study of DataDecide's size."""
    study, checkpoints, tasks = scale.planned("all")
    budgets = pl.DataFrame(study["budgets"]).select("size", "step")
    small = checkpoints.filter(role="proxy")
    at_budgets = pl.concat([small.join(budgets, ["size", "step"], "semi"), checkpoints.filter(role="target")])
    scale.write_measurements(folder, study, at_budgets, tasks)
    for script, job in scale.scripts(folder, study, at_budgets, tasks).items():
        if not script.endswith("figures"):
            seconds, *_ = scale.measured(script, job | {"log": f"{folder}/{script}.log"})
            print(f"{script}: {seconds:.0f} s", file=sys.stderr, flush=True)
    keys = ["size", "step"]
    cells = small.group_by(keys).agg(pl.col("tokens").first(), pl.col("flops").first())
    cells = cells.join(budgets, keys, "anti").sort(keys)
    target = checkpoints.filter(role="target")["flops"].max()
    cells = cells.with_columns(compute_fraction=pl.col("flops") / target)
    for name in AT_EVERY_CHECKPOINT:
        path = folder / f"data_selection/{name}.parquet"
        table = read_table(path)
        first = budgets.row(0, named=True)
        of_cell = [column for column in cells.columns if column in table.columns]
        copies = table.filter(**first).drop(of_cell).join(cells.select(of_cell), how="cross")
        noise = 1 + 0.01 * pl.int_range(pl.len()).hash(0).cast(pl.Float64) / 2**64
        floats = [c for c, dtype in copies.schema.items() if dtype.is_float() and c not in of_cell]
        copies = copies.with_columns((pl.col(floats) * noise).name.keep()).select(table.columns).cast(table.schema)
        write_table(pl.concat([table, copies]), path, "")
    write_table(checkpoints, folder / "checkpoints.parquet", "")
    assert set(STATISTICS) <= set(table["statistic"])
    config = folder / "study.yaml"
    config.write_text(yaml.safe_dump(study | {"study": "datadecide_full"}))
    return folder, config


def rows_of(results: Path) -> int:
    paths = [path for path in results.rglob("*.parquet") if "token_stats" not in path.parts]
    return sum(pl.scan_parquet(path).select(pl.len()).collect().item() for path in paths)


def built(results: Path, config: Path, page: Path) -> dict:
    """Seconds, processor seconds and peak GiB of a process that builds the page."""
    command = [sys.executable, "-c", BUILD, str(results), str(config), str(page)]
    out, inside = os.pipe()
    process = os.posix_spawn(
        sys.executable,
        command,
        os.environ | {"PYTHONPATH": str(ROOT / "workflow")},
        file_actions=[(os.POSIX_SPAWN_DUP2, inside, 1)],
    )
    os.close(inside)
    with os.fdopen(out) as said:
        figures = said.read()
    if os.waitpid(process, 0)[1]:
        sys.exit("the page could not be built")
    return json.loads(figures)


def opening(page: Path) -> tuple[float, float]:
    """Seconds until the page is interactive, and until all its charts are drawn: the median of three times."""
    with chromium() as browser:
        found = []
        for _ in range(3):
            opened = browser.new_page(viewport={"width": 1280, "height": 900})
            opened.goto(page.absolute().as_uri(), wait_until="commit")
            found.append(opened.evaluate(TIMES))
            opened.close()
    interactive, drawn = sorted(found)[1]
    return interactive / 1000, drawn / 1000


def largest_datasets(page: Path) -> list[str]:
    from page_numbers import PageFile

    sizes = {
        name: (len(json.dumps(dataset)), len(next(iter(dataset["columns"].values()), [])))
        for name, dataset in PageFile(page).data.items()
    }
    largest = sorted(sizes.items(), key=lambda item: -item[1][0])[:8]
    return [f"{name}: {size / 1e6:.2f} MB, {rows} rows" for name, (size, rows) in largest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="results of a finished study; without: simulated ones")
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--keep", type=Path, help="keep the simulated tables and the page in this empty folder")
    options = parser.parse_args()
    folder = (options.keep or Path(tempfile.mkdtemp())).absolute()
    if options.results:
        results, config, targets = options.results.absolute(), options.config.absolute(), TARGETS["miniature"]
        os.chdir(results.parents[1])
    elif (folder / "study.yaml").exists():
        results, config, targets = folder, folder / "study.yaml", TARGETS["full"]
    else:
        started = time.monotonic()
        (results, config), targets = simulated(folder), TARGETS["full"]
        print(f"simulated in {time.monotonic() - started:.0f} s", file=sys.stderr)
    page = folder / "report.html"
    figures = built(results, config, page)
    interactive, drawn = opening(page)
    size = page.stat().st_size / 1e6
    print(f"{HEAD}\n{'|---' * 8}|")
    told = f"{figures['seconds']:.1f} | {figures['processor']:.1f} | {figures['peak']:.2f} | {size:.2f}"
    print(f"| {config.stem} | {rows_of(results):,} | {told} | {interactive:.2f} | {drawn:.2f} |\n")
    print("\n".join(largest_datasets(page)))
    measured = (size, interactive, figures["seconds"], figures["peak"])
    for name, found, most in zip(("MB", "s to interactive", "s to build", "GiB"), measured, targets):
        if found > most:
            print(f"over its target: {found:.2f} {name}, at most {most}")


if __name__ == "__main__":
    main()
