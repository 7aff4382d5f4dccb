"""Write the study's page from its finished tables."""

from pathlib import Path

from proxycast.config.study import Budget, Study
from proxycast.jobs import job
from proxycast.report.page.contents import study_page
from proxycast.report.page.html_page import write_page
from proxycast.report.page.study_results import StudyResults

with job(snakemake.log[0]):
    params, page = snakemake.params, Path(snakemake.output[0])
    results = StudyResults(
        Study(**params.study),
        page.parent,
        [Budget(**budget) for budget in params.budgets],
        params.tasks,
        params.left_out,
        params.where,
        params.rules,
    )
    write_page(study_page(results), page)
