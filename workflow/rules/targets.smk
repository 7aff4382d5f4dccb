# The downstream truth: what the scoring jobs measured, or a table from elsewhere.


rule join_targets:
    input:
        STUDY.target.table or expand(rules.score.output.targets, job=JOBS),
    output:
        f"{RESULTS}/targets.parquet",
    log:
        f"{RESULTS}/logs/join_targets.log",
    script:
        "../scripts/join_targets.py"
