"""Makes the page of a finished study anew, or one page of several studies: `proxycast report`. No job runs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from proxycast.options import InputError
from proxycast.report.page.contents import study_page
from proxycast.report.page.html_page import write_page
from proxycast.report.page.several_studies import several_studies_page
from proxycast.report.page.study_results import StudyResults
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checkpoints import budgets_of
from proxycast.study.loader import load_plan
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import read_yaml
from proxycast.tables import change_nothing

OF_SEVERAL = Path("results/report.html")


def report(studies: Sequence[Path], out: Path | None) -> Path:
    """Write the page and return where it lies. `InputError` for a study that is not finished."""
    change_nothing()  # a damaged table is told, and left as it is
    plans = [load_plan(read_yaml(path), str(path)) for path in studies]
    names = Counter(plan.study.study for plan in plans)
    for name, count in names.items():
        if count > 1:
            where = " and ".join(plan.where for plan in plans if plan.study.study == name)
            raise InputError(f"{where}: both are the study {name}, whose results are in results/{name}; give it once")
    if len(plans) == 1 and out:
        raise InputError(f"--out: is for several studies; the page of one is {plans[0].results / 'report.html'}")
    found = [_finished(plan) for plan in plans]
    if len(found) == 1:
        page = found[0].results / "report.html"
        write_page(study_page(found[0]), page)
    else:
        page = out or OF_SEVERAL
        write_page(several_studies_page(found, page), page)
    return page


def _finished(plan: Plan) -> StudyResults:
    missing = [name for name in needed_tables(plan) if not (plan.results / f"{name}.parquet").is_file()]
    if missing:
        raise InputError(
            f"{plan.where}: the study is not finished: {plan.results} lacks {', '.join(missing)}; run snakemake "
            f"--configfile {plan.where} first"
        )
    budgets = budgets_of(plan, plan_checkpoints(plan)) if plan.selects_data else []
    return StudyResults(plan.study, plan.results, budgets, plan.task_names, plan.left_out, plan.where)


def needed_tables(plan: Plan) -> list[str]:
    """The tables that every finished study of this kind has, and the page cannot do without."""
    judged = ["summary", "truth", "choices"] if plan.study.target else []
    tables = ["checkpoints"]
    if plan.selects_data:
        tables += [f"data_selection/{name}" for name in ("ranking", "pairs", "agreement", *judged)]
    if plan.selects_models:
        tables += [f"model_selection/{name}" for name in ("ranking", "pairs", "agreement", *judged)]
    if plan.study.forecasting:
        tables += [f"forecasting/{name}" for name in ("summary", "errors", "rehearsal")]
    return tables
