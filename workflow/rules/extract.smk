# One job for each training run (or corpus): walk its checkpoints, write token statistics and, unless a table gives the truth, targets.


rule score:
    input:
        weights=lambda wildcards: weight_inputs(PLAN, JOBS[wildcards.job]),
        solutions=SOLUTIONS,
    output:
        token_stats=f"{RESULTS}/token_stats/{{job}}.parquet",
        targets=f"{RESULTS}/targets/{{job}}.parquet",
    log:
        f"{RESULTS}/logs/score/{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score/{{job}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        checkpoints=lambda wildcards: [vars(checkpoint) for checkpoint in JOBS[wildcards.job]],
        tasks=[task.model_dump(mode="json") for task in PLAN.tasks],
        extraction=lambda wildcards: [o.model_dump() for o in extraction_options(PLAN, JOBS[wildcards.job])],
        target=STUDY.target.model_dump(mode="json"),
        parts=f"{RESULTS}/parts/{{job}}",
    script:
        "../scripts/score.py"
