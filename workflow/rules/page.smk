# The study's page: every table in one HTML file, with the answer at its top.
from importlib.resources import files

from proxycast.tables import digest_of


rule study_page:
    input:
        checkpoints=rules.checkpoints.output[0],
        tables=[table for experiment in EXPERIMENTS for table in experiment.output if str(table).endswith(".parquet")],
    output:
        f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/study_page.log",
    benchmark:
        f"{RESULTS}/benchmarks/study_page.tsv"
    resources:
        mem_mb=grown(2000),
    params:
        code=CODE["study_page"],
        assets=[digest_of(path) for path in sorted((files("proxycast.report.page") / "assets").iterdir())],
        study=STUDY.model_dump(mode="json"),
        budgets=AT_BUDGETS["budgets"],
        tasks=PLAN.task_names,
        left_out=PLAN.left_out,
        where=PLAN.where,
        rules={
            str(table).removeprefix(f"{RESULTS}/").removesuffix(".parquet"): made_by.name
            for made_by in workflow.rules
            for table in made_by.output
            if str(table).endswith(".parquet") and "{" not in str(table)
        },
    script:
        "../scripts/study_page.py"
