# The study's page: every table in one HTML file, with the answer at its top.
import os
from importlib.resources import files

from proxycast.tables import digest_of

# Every output of the experiments: the page also tells what the logs of their rules warn of.
BEFORE_THE_PAGE = [rules.checkpoints.output[0], *([rules.join_proxies.output[0]] if JOBS else [])]
BEFORE_THE_PAGE += [output for experiment in EXPERIMENTS for output in experiment.output]

# What the page knows of the study beside its tables. `proxycast report` reads it from report.json.
MADE_WITH = {
    "study": STUDY.model_dump(mode="json"),
    "budgets": AT_BUDGETS["budgets"],
    "tasks": PLAN.task_names,
    "left_out": PLAN.left_out,
    "where": os.path.relpath(PLAN.where),  # a study that is moved as a whole has the same page
    "rules": {
        str(table).removeprefix(f"{RESULTS}/").removesuffix(".parquet"): made_by.name
        for made_by in workflow.rules
        for table in made_by.output
        if table in BEFORE_THE_PAGE and str(table).endswith(".parquet")
    },
    "jobs": list(JOBS),
}


rule study_page:
    input:
        BEFORE_THE_PAGE,
    output:
        page=f"{RESULTS}/report.html",
        made_with=f"{RESULTS}/report.json",
    log:
        f"{RESULTS}/logs/study_page.log",
    benchmark:
        f"{RESULTS}/benchmarks/study_page.tsv"
    resources:
        mem_mb=grown(2000),
    params:
        code=CODE["study_page"],
        assets=[digest_of(path) for path in sorted((files("proxycast.report.page") / "assets").iterdir())],
        made_with=MADE_WITH,
    script:
        "../scripts/study_page.py"
