# One job for each training run (or corpus): run its checkpoints one by one and write token statistics and, where the
# truth is measured here, targets.
from proxycast.study.checkpoints import distinct_options

OPTIONS_OF = {job: distinct_options(PLAN, found) for job, found in JOBS.items()}


rule score:
    input:
        weights=lambda wildcards: weight_inputs(PLAN, JOBS[wildcards.job]),
        solutions=SOLUTIONS,
        problems=PROBLEMS if PLAN.measured_tasks else [],
        replay=str(STUDY.replay) if STUDY.replay else [],
    output:
        **({"targets": f"{RESULTS}/targets/{{job}}/manifest.json"} if PLAN.measured_tasks else {}),
        # The tables of the checkpoints lie beside it and are no outputs: Snakemake removes outputs of a failed job.
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
        # Distinct sets of options, and for each checkpoint the index of its set.
        extraction=lambda wildcards: [options.that_change_token_stats() for options in OPTIONS_OF[wildcards.job][0]],
        options_of=lambda wildcards: OPTIONS_OF[wildcards.job][1],
        # A truth from elsewhere, which a study may get later, scores nothing again.
        target=STUDY.target.model_dump(mode="json") if PLAN.measured_tasks else {},
        corpus=lambda wildcards: JOBS[wildcards.job][0].corpus,
    script:
        "../scripts/replay.py" if STUDY.replay else "../scripts/score.py"
