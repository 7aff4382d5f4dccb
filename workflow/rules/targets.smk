# The downstream truth: what the scoring jobs or lm-eval measured, a table from elsewhere, or what others published.

if STUDY.published:

    rule read_published:
        input:
            folder=STUDY.published,
        output:
            targets=f"{RESULTS}/targets.parquet",
            curve=f"{RESULTS}/published_curve.parquet",
        log:
            f"{RESULTS}/logs/read_published.log",
        params:
            code=CODE["read_published"],
            contents=state_of(sorted(STUDY.published.glob("*.csv"))),
            corpora=PLAN.published_names,
            ladder=PLAN.ladder.model_dump(mode="json"),
        script:
            "../scripts/read_published.py"

elif STUDY.target.evaluations:
    JUDGED = {checkpoint.corpus for checkpoint in CHECKPOINTS if checkpoint.role == "target"}

    rule read_evaluations:
        input:
            evaluations=lambda wildcards: data_set("evaluations"),
        output:
            targets=f"{RESULTS}/targets.parquet",
        log:
            f"{RESULTS}/logs/read_evaluations.log",
        benchmark:
            f"{RESULTS}/benchmarks/read_evaluations.tsv"
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["read_evaluations"],
            contents=lambda wildcards: state_of(data_set("evaluations")),
            corpora={name: corpus for name, corpus in PLAN.published_names.items() if corpus in JUDGED},
            sizes=sorted({checkpoint.size for checkpoint in CHECKPOINTS if checkpoint.corpus in JUDGED}),
            tasks=PLAN.task_names,
            ladder=PLAN.ladder.model_dump(mode="json"),
            evaluations=STUDY.target.evaluations.model_dump(mode="json"),
        script:
            "../scripts/read_evaluations.py"

else:

    rule join_targets:
        input:
            STUDY.target.table
            or [
                *expand(f"{RESULTS}/targets/{{job}}/manifest.json", job=JOBS if PLAN.measured_tasks else []),
                *expand(f"{RESULTS}/harness/{{job}}.parquet", job=JOBS if PLAN.harness_tasks else []),
            ],
        output:
            targets=f"{RESULTS}/targets.parquet",
        log:
            f"{RESULTS}/logs/join_targets.log",
        params:
            code=CODE["join_targets"],
            contents=state_of(STUDY.target.table or []),
        script:
            "../scripts/join_targets.py"


if PLAN.harness_tasks:
    OWN_TASKS = own_files(STUDY.target.lm_eval.include_path)

    rule evaluate_harness:
        input:
            weights=lambda wildcards: weight_inputs(PLAN, JOBS[wildcards.job]),
        output:
            targets=f"{RESULTS}/harness/{{job}}.parquet",
        log:
            f"{RESULTS}/logs/evaluate_harness/{{job}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/evaluate_harness/{{job}}.tsv"
        priority: 2  # before new downloads
        threads: MODEL_JOBS.threads("evaluate_harness")
        resources:
            **MODEL_JOBS.resources("evaluate_harness"),
        params:
            code=CODE["evaluate_harness"],
            contents=lambda wildcards: [weight_states(PLAN, JOBS[wildcards.job]), state_of(OWN_TASKS)],
            checkpoints=lambda wildcards: [(c.checkpoint, c.folder, c.role) for c in JOBS[wildcards.job]],
            extraction=lambda wildcards: [options.that_change_results() for options in OPTIONS_OF[wildcards.job][0]],
            options_of=lambda wildcards: OPTIONS_OF[wildcards.job][1],
            tasks={task.name: task.lm_eval.model_dump() for task in PLAN.harness_tasks},
            harness=STUDY.target.lm_eval.model_dump(mode="json"),
            metric=STUDY.target.metric,
            results=f"{RESULTS}/lm_eval",
            corpus=lambda wildcards: JOBS[wildcards.job][0].corpus,
        script:
            "../scripts/evaluate_harness.py"


# A curve that others logged holds its own truth.
TARGETS = [] if PLAN.curve else [f"{RESULTS}/targets.parquet"]
TARGETS += [f"{RESULTS}/published_curve.parquet"] if STUDY.published else []
TARGETS += expand(f"{RESULTS}/harness/{{job}}.parquet", job=JOBS if PLAN.harness_tasks else [])
