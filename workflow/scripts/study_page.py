"""Write the study's page from its finished tables."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.report.page.contents import study_page
from proxycast.report.page.html_page import write_page
from proxycast.report.page.study_results import StudyResults
from proxycast.tables import write_json

with job(snakemake.log[0]):
    page, made_with = Path(snakemake.output.page), Path(snakemake.output.made_with)
    write_json(snakemake.params.made_with, made_with)
    write_page(study_page(StudyResults.read(page.parent)), page)
