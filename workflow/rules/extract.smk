# One job for each training run (or corpus): walk its checkpoints, write token
# statistics and, where the truth is measured here, targets.

OPTIONS_OF = {job: distinct_options(PLAN, found) for job, found in JOBS.items()}
USES_VLLM = any(options.engine != "transformers" for found, _ in OPTIONS_OF.values() for options in found)
MEMORY_MB = 4000 if USES_VLLM else 2000  # vLLM on a CPU: 1 GB for keys and values, 1 GB for itself
MEMORY_GB = {model.name: model.memory_gb for model in PLAN.models}


def memory_of_models(wildcards):
    """Host memory (MB) of a job that runs the models of a scoring job."""
    return max(MEMORY_MB, 1000 * MEMORY_GB.get(JOBS[wildcards.job][0].corpus, 0))


rule score:
    input:
        weights=lambda wildcards: weight_inputs(PLAN, JOBS[wildcards.job]),
        solutions=SOLUTIONS,
        problems=PROBLEMS if PLAN.measured_tasks else [],
    output:
        **({"targets": f"{RESULTS}/targets/{{job}}/manifest.json"} if PLAN.measured_tasks else {}),
        # The tables, one for each checkpoint, lie beside it: Snakemake would remove those of a job that fails.
        token_stats=f"{RESULTS}/token_stats/{{job}}/manifest.json",
    log:
        f"{RESULTS}/logs/score/{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score/{{job}}.tsv"
    priority: 2  # before new downloads
    threads: 1
    resources:
        mem_mb=memory_of_models,
    params:
        checkpoints=lambda wildcards: [(c.checkpoint, c.folder, c.role) for c in JOBS[wildcards.job]],
        vocabulary=PLAN.vocabulary,
        tasks=[task.model_dump(mode="json") for task in PLAN.measured_tasks],
        # Each set of options once, and for each checkpoint the number of its own.
        extraction=lambda wildcards: [options.that_change_results() for options in OPTIONS_OF[wildcards.job][0]],
        options_of=lambda wildcards: OPTIONS_OF[wildcards.job][1],
        target=STUDY.target.model_dump(mode="json"),
        corpus=lambda wildcards: JOBS[wildcards.job][0].corpus,
    script:
        "../scripts/score.py"
