"""Finished studies whose tables are made from made-up data, for the tests of the answer at the top of the page."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import forecasting_study
import numpy as np
import polars as pl
from judged_corpora import FAST, HIGHLIGHTED, TARGET, TASKS, made_study
from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.config.truth import Target
from proxycast.experiments.choosing.corpus_choices import corpus_choice_tables
from proxycast.experiments.choosing.model_choices import model_choice_tables
from proxycast.experiments.data_selection.data_tables import data_selection_tables, order_tables
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.report.page.study_results import StudyResults

BUDGETS = [Budget(name="early", size="small", step=2), Budget(name="last", size="small", step=4)]


class Tables(StudyResults):
    """A study whose tables are at hand: name -> table, such as `data_selection/ranking`."""

    def __init__(self, tables, target, highlighted=HIGHLIGHTED, forecasting=None, folder=Path("nowhere")):
        study = SimpleNamespace(highlighted=highlighted, target=target, forecasting=forecasting)
        study.selection = FAST
        super().__init__(study, folder, BUDGETS)
        self.tables = tables

    def _table(self, name):
        table = self.tables.get(name)
        return None if table is None or table.is_empty() else table


def corpora(qualities, folder, target=TARGET, rename=None, **options) -> Tables:
    """A data selection of corpora c00, c01, ... of these qualities. `rename`: corpus -> another name."""
    checkpoints, targets, proxies, of_solutions = made_study(qualities, target=target is not None, **options)
    checkpoints = checkpoints.with_columns(pl.col("corpus").replace(rename or {}))
    lazy = {"proxies": proxies.lazy(), "of_solutions": of_solutions.lazy()}
    if target:
        given = checkpoints, targets, TASKS, target, FAST, BUDGETS
        tables = data_selection_tables(*given, HIGHLIGHTED, **lazy)
        tables |= corpus_choice_tables(*given, proxies=proxies.lazy(), pairs=tables["pairs"])
    else:
        tables = order_tables(checkpoints, *lazy.values(), TASKS, FAST, BUDGETS, HIGHLIGHTED)
    named = {f"data_selection/{name}": table for name, table in tables.items()}
    folder.mkdir(parents=True, exist_ok=True)
    proxies.write_parquet(folder / "proxies.parquet")
    return Tables(named | {"checkpoints": checkpoints}, target, folder=folder)


def models(folder, judged=True, solutions=6) -> Tables:
    """A model selection of eight models of two families, three tasks; without `judged` no truth."""
    rng, names = np.random.default_rng(0), [f"{family}-{n}" for family, n in product("ab", range(4))]
    checkpoints = pl.DataFrame(
        [
            {"checkpoint": name, "run": name, "corpus": name, "step": 1, "family": name[0], "role": "candidate"}
            | {"parameters": 1000 + n, "flops": 1e9 + n}
            for n, name in enumerate(names)
        ]
    )
    targets, rows = [], []
    for (n, name), task in product(enumerate(names), ("algebra", "words", "dates")):
        score = 0.2 + n / 20 + 0.02 * rng.normal()
        targets.append({"checkpoint": name, "task": task, "metric": "accuracy", "value": score, "n": 50})
        key = {"checkpoint": name, "task": task, "tail": "tokens"}
        for (statistic, weighting), s in product(PROXIES_OF_MODELS, range(solutions)):
            value = 3 - n / 5 + 0.1 * rng.normal()
            own = {"statistic": statistic, "weighting": weighting, "value": value, "solution": f"s{s}"}
            rows.append(key | own | {"tokens": 9, "denominator": 1.0})
    of_solutions = pl.DataFrame(rows)
    keys = ["checkpoint", "task", "tail", "statistic", "weighting"]
    proxies = of_solutions.group_by(keys, maintain_order=True).agg(pl.col("value").mean(), pl.col("tokens").sum())
    target = Target(metric="accuracy", table="truth.csv") if judged else None
    options, named = ModelSelectionOptions(scorers=["univariate"]), [Proxy(statistic="cross_entropy")]
    truth = pl.DataFrame(targets) if judged else None
    given = checkpoints, truth, proxies.drop("tokens"), ["algebra", "words", "dates"], target, FAST, options
    tables = model_selection_tables(*given, of_solutions.lazy(), named)
    if judged:
        tables |= model_choice_tables(tables["predictions"], tables["ranking"], tables["pairs"], 1, FAST)
    folder.mkdir(parents=True, exist_ok=True)
    proxies.write_parquet(folder / "proxies.parquet")
    return Tables({f"model_selection/{name}": t for name, t in tables.items()}, target, named, folder=folder)


PROXIES_OF_MODELS = [("cross_entropy", "uniform"), ("margin", "uniform"), ("bits_per_byte", "none")]


def forecasts(folder, runs=1, **changes) -> Tables:
    """Forecasts of made-up runs of two tasks."""
    made = forecasting_study.run(forecasting_study.study(runs=runs, sd=0.002), **changes)
    options = forecasting_study.options(**changes)
    tables = {f"forecasting/{name}": table for name, table in made.items()}
    folder.mkdir(parents=True, exist_ok=True)
    return Tables(tables, Target(metric="accuracy", table="truth.csv"), forecasting=options, folder=folder)
