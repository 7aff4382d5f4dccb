# The downstream truth: measured by the scoring jobs or lm-eval, or read from tables of others. And their statistics.
from proxycast.files import own_files
from proxycast.study.checkpoints import short_names

# Whether the truth stands beside the statistics of a study that runs no model.
TRUTH_OUTSIDE = STUDY.statistics and not PLAN.runs_models and STUDY.target and STUDY.target.measured_here
CURVE = STUDY.statistics.decision_accuracies if STUDY.statistics else None

if STUDY.statistics:

    rule read_statistics:
        input:
            table=STUDY.statistics.table,
            checkpoints=rules.checkpoints.output[0],
            curve=CURVE or [],
        output:
            **({"targets": f"{RESULTS}/targets.parquet"} if TRUTH_OUTSIDE else {}),
            **({"curve": f"{RESULTS}/published_curve.parquet"} if CURVE else {}),
            statistics=f"{RESULTS}/statistics.parquet",
        log:
            f"{RESULTS}/logs/read_statistics.log",
        params:
            code=CODE["read_statistics"],
            contents=state_of(STUDY.statistics.paths()),
            study=STUDY.model_dump(mode="json", include={"statistics", "target"}),
            names=PLAN.unit_names,
            tasks=PLAN.task_names,
            runs_models=PLAN.runs_models,
            ladder=PLAN.ladder.model_dump(mode="json") if CURVE else None,
        script:
            "../scripts/read_statistics.py"


if STUDY.target and STUDY.target.evaluations:
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

elif STUDY.target and not TRUTH_OUTSIDE:

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
            short_names=short_names(CHECKPOINTS) if STUDY.target.table else {},
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


# A curve that others logged includes its truth; without a truth candidates are only ranked.
TARGETS = [] if PLAN.curve or TRUTH_OUTSIDE or not STUDY.target else [f"{RESULTS}/targets.parquet"]
OUTSIDE = rules.read_statistics.output.statistics if STUDY.statistics else []
TARGETS += rules.read_statistics.output if STUDY.statistics else []
TARGETS += expand(f"{RESULTS}/harness/{{job}}.parquet", job=JOBS if PLAN.harness_tasks else [])
