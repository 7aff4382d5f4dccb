# One job for each training run (or corpus): walk its checkpoints, write token statistics and, unless a table gives the truth, targets.


def options_of(job):
    return extraction_options(PLAN, JOBS[job])


def uses_vllm(job):
    return any(options.engine != "transformers" for options in options_of(job))


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
        # vLLM on a CPU: 1 GB for keys and values, 1 GB for itself.
        mem_mb=lambda wildcards: 4000 if uses_vllm(wildcards.job) else 2000,
    params:
        checkpoints=lambda wildcards: [vars(checkpoint) for checkpoint in JOBS[wildcards.job]],
        tasks=[task.model_dump(mode="json") for task in PLAN.tasks],
        extraction=lambda wildcards: [options.model_dump() for options in options_of(wildcards.job)],
        target=STUDY.target.model_dump(mode="json"),
        parts=f"{RESULTS}/parts/{{job}}",
    script:
        "../scripts/score.py"
