"""Makes the page of a finished study anew, or one page of several studies: `proxycast report`. No job runs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from proxycast.options import InputError
from proxycast.report.page.contents import study_page
from proxycast.report.page.html_page import write_page
from proxycast.report.page.several_studies import several_studies_page
from proxycast.report.page.study_results import MADE_WITH, StudyResults
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
    """As its last page was made; the tables must be all there, and be those of the study as it stands now."""
    run = f"run snakemake --configfile {plan.where} first"
    if not (plan.results / MADE_WITH).is_file():
        raise InputError(f"{plan.where}: the study is not finished: {plan.results} lacks {MADE_WITH}; {run}")
    results, now = StudyResults.read(plan.results), plan.study.model_dump(mode="json")
    missing = [name for name in results.rules if not (plan.results / f"{name}.parquet").is_file()]
    if missing:
        raise InputError(f"{plan.where}: the study is not finished: {plan.results} lacks {', '.join(missing)}; {run}")
    made_with = results.study.model_dump(mode="json")
    edited = [key for key in now if now[key] != made_with[key]]
    if edited:
        raise InputError(f"{plan.where}: {', '.join(edited)} was edited since {plan.results} was made; {run}")
    return results
