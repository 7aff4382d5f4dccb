"""Where the numbers of a page are from: tables and the rules that made them, versions, and what the run warned of."""

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from proxycast.jobs import attempts, shown
from proxycast.report.page.blocks import Dataset, Section, datasets_of
from proxycast.tables import table_fingerprint

PACKAGES = "proxycast torch transformers polars numpy scipy scikit-learn snakemake vllm".split()
WARNED = re.compile(r"(^|\s)(WARNING|ERROR|CRITICAL)\b|\b[A-Za-z]*Warning: ")  # of proxycast, of vLLM, of Python
TIME = re.compile(r"^\d\d:\d\d:\d\d ")
MOST_WARNINGS = 20  # different lines of a rule on the page
LONGEST_WARNING = 400  # characters of a line
PAGE_RULE = "study_page"  # its log is being written
# Table -> the rule that makes it, for a page that is made without Snakemake. `RULE_OF_FOLDER`: tables that are one of
# many, such as proxies/<corpus>.
RULE_OF_TABLE = {
    f"{folder}{name}": rule
    for rule, folder, names in (
        ("checkpoints", "", "checkpoints"),
        ("join_proxies", "", "proxies"),
        ("join_temperatures", "", "temperatures"),
        ("read_statistics", "", "statistics published_curve"),
        ("data_selection", "data_selection/", "ranking pairs agreement rate_check summary decision_accuracy pareto"),
        ("data_selection", "data_selection/", "compute_to_reach truth against_baselines predictions"),
        ("data_selection", "data_selection/", "scaling_laws law_points law_gains rates"),
        ("signal_to_noise", "data_selection/", "signal_to_noise snr_and_accuracy task_choice repeats"),
        ("choices", "data_selection/", "choices decisions margins"),
        ("solution_counts", "data_selection/", "solution_counts picked_solutions"),
        ("mixtures", "data_selection/", "ratios metrics mixture_regression mixture_predictions next_mixtures"),
        ("model_selection", "model_selection/", "ranking pairs agreement summary folds chosen stability truth"),
        ("model_selection", "model_selection/", "predictions proxies writers"),
        ("model_choices", "model_selection/", "choices decisions margins"),
        ("model_solution_counts", "model_selection/", "solution_counts"),
        ("judged", "", "data_selection/judged model_selection/judged"),
        ("forecasting", "forecasting/", "summary errors rehearsal forecasts intervals fits paths observed two_step"),
        ("token_view", "", "token_view token_contrast"),
    )
    for name in names.split()
}
RULE_OF_FOLDER = {
    "token_stats": "score",
    "proxies": "solution_proxies",
    "solution_proxies": "solution_proxies",
    "temperatures": "solution_proxies",
    "subsets": "solution_proxies",
    "harness": "evaluate_harness",
}


@dataclass(frozen=True)
class Made:
    """A table that the page uses. `datasets`: the parts of it that stand on the page."""

    table: str
    rule: str  # empty: unknown
    fingerprint: str  # empty: none
    files: Mapping[str, str]  # csv, parquet, log: those that are there, from the page
    datasets: Sequence[Dataset]


@dataclass(frozen=True)
class Warned:
    """What the logs of a rule warn of. `lines`: text, how many jobs said it, one of them. `more`: lines left out."""

    rule: str
    lines: Sequence[tuple[str, int, str]]
    more: int


def anchor_of(table: str) -> str:
    """The id on the page of what is said about a table."""
    return f"made-{re.sub('[^A-Za-z0-9_-]', '-', table)}"


def rule_of(table: str, rules: Mapping[str, str]) -> str:
    """The rule that makes a table: as Snakemake knows it, else by its name; empty if unknown."""
    return rules.get(table) or RULE_OF_TABLE.get(table) or RULE_OF_FOLDER.get(table.partition("/")[0], "")


def tables_used(sections: Iterable[Section], results: Path, rules: Mapping[str, str]) -> list[Made]:
    """The tables that the sections' blocks are drawn from, each once, by name."""
    used: dict[str, list[Dataset]] = {}
    for block in (block for section in sections for block in section.blocks):
        for dataset in datasets_of(block):
            for table in dataset.made_from or [dataset.table]:
                known = used.setdefault(table, [])
                known += [dataset] if dataset not in known else []
    return [_made(table, datasets, results, rules) for table, datasets in sorted(used.items())]


def _made(table: str, datasets: Sequence[Dataset], results: Path, rules: Mapping[str, str]) -> Made:
    rule = rule_of(table, rules)
    files = {"csv": f"{table}.csv", "parquet": f"{table}.parquet", "log": f"logs/{rule}.log"}
    found = {kind: name for kind, name in files.items() if (results / name).is_file()}
    return Made(table, rule, table_fingerprint(results / files["parquet"]) or "", found, datasets)


def versions() -> dict[str, str]:
    """Package -> its version, of those that are installed where the page is made."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def warnings_of(logs: Path) -> list[Warned]:
    """The warnings of the last attempt of each job with a log below `logs`, by rule. Equal lines are one."""
    by_rule: dict[str, dict[str, list[str]]] = {}
    for path in sorted(logs.rglob("*.attempts")):
        rule, *job = path.relative_to(logs).with_suffix("").parts
        if rule == PAGE_RULE:
            continue
        for attempt in attempts(path.with_suffix(".log"))[-1:]:
            lines = Counter(_warning(line) for line in attempt.lines if WARNED.search(line))
            for line in lines:
                by_rule.setdefault(rule, {}).setdefault(line, []).append("/".join(job))
    return [_bounded(rule, said) for rule, said in by_rule.items()]


def _bounded(rule: str, said: Mapping[str, Sequence[str]]) -> Warned:
    lines = [(line, len(jobs), shown(jobs[0])) for line, jobs in said.items()]
    return Warned(rule, lines[:MOST_WARNINGS], max(0, len(lines) - MOST_WARNINGS))


def _warning(line: str) -> str:
    text = shown(TIME.sub("", line).removeprefix("WARNING "))
    return text if len(text) <= LONGEST_WARNING else f"{text[:LONGEST_WARNING]}..."


def relative(path: Path, page: Path) -> str:
    """A link from the page to a file."""
    return Path(os.path.relpath(path, page.parent)).as_posix()


def has_logs(logs: Path) -> bool:
    """Whether any log below can be read: those of another user cannot."""
    return next(_readable(logs), None) is not None


def _readable(logs: Path) -> Iterator[Path]:
    return (path for path in logs.rglob("*.attempts") if attempts(path.with_suffix(".log")))
