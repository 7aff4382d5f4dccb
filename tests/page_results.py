"""Result tables of a small finished study, as its page reads them: a data selection, a model selection, a forecast."""

from pathlib import Path

import polars as pl
import yaml
from conftest import ROOT
from proxycast.config.study import Study
from proxycast.report.page.study_results import StudyResults
from proxycast.tables import write_table

PROXIES = [
    ("top5_accuracy", "token_frequency"),
    ("cross_entropy", "uniform"),
]  # those that config/smoke.yaml highlights
AT = {"size": "30k", "step": 40}
ENDS = {"low": 0.2, "high": 0.9}


def smoke(**changed: object) -> Study:
    """The study of config/smoke.yaml, with other options."""
    return Study(**yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text()) | changed)


def finished(folder: Path, tables: dict[str, list[dict]], study: Study | None = None, **options) -> StudyResults:
    """A study whose results folder has these tables (name -> rows)."""
    study = study or smoke()
    for name, rows in tables.items():
        write_table(pl.DataFrame(rows, infer_schema_length=None), folder / f"{name}.parquet", f"of {name}", csv=True)
    return StudyResults(study, folder, study.budgets, ["homes", "sums"], **options)


def against(difference: float, low: float | None, high: float | None, baseline: str = "bits_per_byte", **more) -> dict:
    """A row of `against_baselines`: the first highlighted proxy at the last budget."""
    statistic, weighting = PROXIES[0]
    return {
        **{"task": "all", "statistic": statistic, "weighting": weighting, "depends_on_candidate": False, **AT},
        **{"compute_fraction": 0.1, "decision_accuracy": 0.75, "baseline": baseline},
        **{"baseline_decision_accuracy": 0.75 - difference, "difference": difference},
        **{"difference_low": low, "difference_high": high, "corpora": 5, "note": ""},
        **more,
    }


def summary_row(
    statistic: str, weighting: str, value: float, difference: float, low: float, high: float, **more
) -> dict:
    return {
        **{"budget": "small", **AT, "compute_fraction": 0.1, "statistic": statistic, "weighting": weighting},
        **{"kind": "proxy", "highlighted": False, "depends_on_candidate": False, "decision_accuracy": value, **ENDS},
        **{"noise_ceiling": 0.9, "spearman": value, "spearman_low": 0.0, "spearman_high": 1.0},
        **{"best_baseline": "bits_per_byte", "difference": difference, "difference_low": low, "difference_high": high},
        **{"note": "", **more},
    }


SUMMARY = [
    summary_row("margin", "entropy", 0.91, 0.21, 0.05, 0.3, depends_on_candidate=True),
    summary_row(*PROXIES[0], 0.81, 0.11, 0.01, 0.3, highlighted=True),
    summary_row("bits_per_byte", "none", 0.7, 0.0, 0.0, 0.0, kind="baseline"),
    summary_row("chance", "none", 0.5, -0.2, -0.3, -0.1, kind="baseline"),
]
MODELS = [
    {
        **{"split": "two_tasks", "method": method, "kind": kind, "tail": "bytes", "folds": 3, "spearman": rho},
        **{"fold_sd": 0.1, **ENDS, "best_baseline": "bits_per_byte (bytes)", "difference": difference},
        **{"difference_low": low, "difference_high": high, "note": ""},
    }
    for method, kind, rho, difference, low, high in (
        ("sparse3", "scorer", 0.5, -0.25, -0.4, -0.1),
        ("bits_per_byte", "baseline", 0.75, 0.0, 0.0, 0.0),
        ("parameters", "baseline", 0.625, -0.125, -0.3, 0.1),
    )
]
TRUTH = [
    {
        **{"metric": "multiple_choice_accuracy", "higher_is_better": True, "corpora": 5, "tasks": 2, "seeds": 2},
        **{"verdict": "good", "reliability": 0.83, "reliability_low": 0.41, "reliability_high": 0.97},
        **{"ceiling_spearman": 0.91, "ceiling_decision_accuracy": 0.88, "ceiling_decision_accuracy_low": 0.71},
        **{"ceiling_decision_accuracy_high": 0.96, "note": ""},
    }
]
RANKING = [{"corpus": name, "statistic": "margin", "weighting": "uniform", **AT, "place": 1.0} for name in "abc"]
