"""Pages of finished studies for their tests, and made-up studies: the library's tables of numbers that are known."""

from collections.abc import Mapping
from pathlib import Path

import forecasting_study
import polars as pl
import post_trained_study
import selection_study
from browser import check_page
from judged_corpora import FAST, HIGHLIGHTED, TARGET, TASKS, made_study
from page_numbers import check_numbers
from proxycast.config.experiments.selection_options import Claim, ModelSelectionOptions
from proxycast.config.study import Budget, Proxy, Study
from proxycast.config.truth import Target
from proxycast.experiments.choosing.corpus_choices import corpus_choice_tables
from proxycast.experiments.data_selection.corpus_truth import mean_truth
from proxycast.experiments.data_selection.data_tables import data_selection_tables, order_tables
from proxycast.experiments.data_selection.noisy_tasks import signal_tables
from proxycast.experiments.data_selection.solution_counts import solution_tables
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.report.page.contents import study_page
from proxycast.report.page.html_page import write_page
from proxycast.report.page.study_results import StudyResults
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checkpoints import budgets_of
from proxycast.study.study_plan import Plan
from proxycast.tables import write_table

PROXIES = ("cross_entropy/uniform",)  # that are forecast
BUDGETS = [Budget(name="early", size="small", step=2), Budget(name="late", size="middle", step=4)]


def made_page(results: StudyResults) -> Path:
    """The page of a study whose tables are there. Its numbers are those of the tables."""
    path = results.results / "report.html"
    write_page(study_page(results), path)
    check_numbers(path, path.parent)
    return path


def check_finished(browser: object, results: Path) -> Path:
    """The page that the workflow wrote, which `conftest.browser` opens."""
    path = results / "report.html"
    check_numbers(path, results)
    check_page(browser, path)
    return path


def check_planned(browser: object, plan: Plan, results: Path, experiment: str, tables: dict, measured: dict) -> None:
    """The page of a study that we ship, with tables that were made without the workflow."""
    write_tables(results, experiment, tables, measured)
    with_budgets = budgets_of(plan, plan_checkpoints(plan))
    check_page(browser, made_page(StudyResults(plan.study, results, with_budgets, plan.task_names, [], plan.where)))


def finished_corpora(
    results: Path,
    qualities,
    names: Mapping[str, str] | None = None,
    is_judged=True,
    baselines=True,
    tasks=TASKS,
    **made,
) -> StudyResults:
    """A data selection over corpora of these qualities, as `made_study` makes them. `names` replaces theirs."""
    checkpoints, targets, proxies, of_solutions = made_study(qualities, target=is_judged, tasks=tasks, **made)
    if not baselines:
        proxies = proxies.filter(pl.col("weighting") != "none")
    budgets = [budget for budget in BUDGETS if budget.step in checkpoints["step"]]
    highlighted = HIGHLIGHTED if baselines else HIGHLIGHTED[:1]
    common = dict(options=FAST, budgets=budgets, highlighted=highlighted)
    scored = dict(proxies=proxies.lazy(), of_solutions=of_solutions.lazy())
    truth = {"targets": targets, "target": TARGET} if is_judged else {}
    if is_judged:
        tables = data_selection_tables(checkpoints, tasks=tasks, **truth, **common, **scored)
        tables |= corpus_choice_tables(
            checkpoints, targets, tasks, TARGET, FAST, budgets, proxies=proxies.lazy(), pairs=tables["pairs"]
        )
        mean = mean_truth(checkpoints, targets, tasks, TARGET)
    else:
        tables, mean = order_tables(checkpoints, tasks=tasks, **common, **scored), None
    tables |= signal_tables(checkpoints, tasks, FAST, budgets, proxies=proxies.lazy(), **truth)
    tables |= solution_tables(checkpoints, of_solutions.lazy(), mean, FAST, budgets, highlighted)
    measured = {"checkpoints": checkpoints, "proxies": proxies} | ({"targets": targets} if is_judged else {})
    write_tables(results, "data_selection", tables, measured, names)
    study = Study(
        study="made_up",
        corpora={"made_up": "all"},
        tasks={"made_up": "all"},
        target=TARGET if is_judged else None,
        selection=FAST,
        highlighted=highlighted,
        budgets=budgets,
    )
    return StudyResults(study, results, budgets, tasks, [], "config/made_up.yaml")


def finished_models(results: Path, is_judged=True, names: Mapping[str, str] | None = None) -> StudyResults:
    """A model selection of 12 models on four tasks."""
    checkpoints, tasks = selection_study.CHECKPOINTS, selection_study.TASKS
    target = Target(metric="accuracy", table="truth.csv") if is_judged else None
    highlighted = [Proxy(statistic=statistic, weighting=weighting) for statistic, weighting in selection_study.PROXIES]
    proxies, targets = selection_study.proxies_of(), selection_study.targets_of() if is_judged else None
    counts = {"solutions": pl.lit(6, pl.UInt32), "tokens": pl.lit(60, pl.UInt32)}
    proxies = proxies.with_columns(**counts)
    options = ModelSelectionOptions(scorers=["univariate"])
    of_solutions = selection_study.of_solutions_of().lazy()
    given = (checkpoints, targets, proxies, tasks, target, selection_study.FAST, options, of_solutions, highlighted)
    measured = {"checkpoints": checkpoints, "proxies": proxies} | ({"targets": targets} if is_judged else {})
    write_tables(results, "model_selection", model_selection_tables(*given), measured, names)
    study = Study(
        study="made_up_models",
        models={"made_up": "all"},
        tasks={"made_up": "all"},
        target=target,
        selection=selection_study.FAST,
        highlighted=highlighted,
        model_selection=options,
    )
    return StudyResults(study, results, [], tasks, [], "config/made_up_models.yaml")


def finished_post_training(results: Path, names: Mapping[str, str] | None = None, **made) -> StudyResults:
    """A model selection of bases that were post-trained by recipes, with a claim. `made`: of `checkpoints_of`."""
    checkpoints, tasks = post_trained_study.checkpoints_of(**made), post_trained_study.TASKS
    proxies, targets = post_trained_study.measured_of(checkpoints, tails=("tokens", "bytes"))
    target = Target(metric="accuracy", table="truth.csv")
    claim = Claim(
        methods=("univariate", "margin/uniform"),
        against=("bits_per_byte", "parameters", "rbridge"),
        populations=("post_trained", "within_base"),
    )
    options, named = ModelSelectionOptions(scorers=["univariate"], claim=claim), [Proxy(statistic="margin")]
    counts = {"solutions": pl.lit(6, pl.UInt32), "tokens": pl.lit(60, pl.UInt32)}
    proxies = proxies.with_columns(**counts)
    of_solutions = proxies.with_columns(solution=pl.lit("s"), denominator=pl.lit(1.0)).lazy()
    given = (checkpoints, targets, proxies, tasks, target, selection_study.FAST, options, of_solutions, named)
    measured = {"checkpoints": checkpoints, "proxies": proxies, "targets": targets}
    write_tables(results, "model_selection", model_selection_tables(*given), measured, names)
    study = Study(
        study="made_up_post_training",
        corpora={"made_up": "all"},
        tasks={"made_up": "all"},
        target=target,
        selection=selection_study.FAST,
        highlighted=named,
        model_selection=options,
    )
    return StudyResults(study, results, [], tasks, [], "config/made_up_post_training.yaml")


def finished_curves(results: Path, runs=2, names: Mapping[str, str] | None = None) -> StudyResults:
    """Forecasts of training runs on two tasks."""
    made = forecasting_study.small(forecasting_study.study(runs, sd=0.002))
    tables = forecasting_study.run(made, proxies=PROXIES)
    write_tables(results, "forecasting", tables, dict(zip(("checkpoints", "targets", "proxies"), made)), names)
    study = Study(
        study="made_up_curves",
        corpora={"made_up": "all"},
        tasks={"made_up": "all"},
        target=Target(metric="accuracy", table="truth.csv"),
        forecasting=forecasting_study.options(proxies=PROXIES),
    )
    return StudyResults(study, results, [], forecasting_study.TASKS, [], "config/made_up_curves.yaml")


def write_tables(
    results: Path,
    experiment: str,
    tables: Mapping[str, pl.DataFrame],
    measured: Mapping[str, pl.DataFrame],
    names: Mapping[str, str] | None = None,
) -> None:
    """The tables of an experiment and those that it was made from, with other names."""
    for name, table in {**measured, **{f"{experiment}/{name}": table for name, table in tables.items()}}.items():
        shown = table.with_columns(pl.col(pl.String).replace(names)) if names else table
        write_table(shown, results / f"{name}.parquet", "", csv=True)
