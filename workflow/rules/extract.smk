# One job for each training run (or corpus): walk its checkpoints, write token
# statistics and, where the truth is measured here, targets.

OPTIONS_OF = {job: distinct_options(PLAN, found) for job, found in JOBS.items()}


rule score:
    input:
        weights=lambda wildcards: weight_inputs(PLAN, JOBS[wildcards.job]),
        solutions=SOLUTIONS,
        problems=PROBLEMS if PLAN.measured_tasks else [],
        replay=str(STUDY.replay) if STUDY.replay else [],
    output:
        **({"targets": f"{RESULTS}/targets/{{job}}/manifest.json"} if PLAN.measured_tasks else {}),
        # The tables, one for each checkpoint, lie beside it: Snakemake would remove those of a job that fails.
        token_stats=f"{RESULTS}/token_stats/{{job}}/manifest.json",
    log:
        f"{RESULTS}/logs/score/{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score/{{job}}.tsv"
    priority: 2  # before new downloads
    threads: MODEL_JOBS.threads("score")
    resources:
        **MODEL_JOBS.resources("score"),
    params:
        code=CODE["replay" if STUDY.replay else "score"],
        contents=lambda wildcards: [weight_states(PLAN, JOBS[wildcards.job]), state_of(STUDY.replay or [])],
        checkpoints=lambda wildcards: [(c.checkpoint, c.folder, c.role) for c in JOBS[wildcards.job]],
        vocabulary=PLAN.vocabulary,
        tasks=[task.model_dump(mode="json") for task in PLAN.measured_tasks],
        # Each set of options once, and for each checkpoint the number of its own.
        extraction=lambda wildcards: [options.that_change_results() for options in OPTIONS_OF[wildcards.job][0]],
        options_of=lambda wildcards: OPTIONS_OF[wildcards.job][1],
        target=STUDY.target.model_dump(mode="json"),
        corpus=lambda wildcards: JOBS[wildcards.job][0].corpus,
    script:
        "../scripts/replay.py" if STUDY.replay else "../scripts/score.py"
