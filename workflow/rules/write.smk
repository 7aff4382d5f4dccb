# Expert solutions from strong models: the tasks' problems, what each writer writes for them, and both joined.
# A study without writers needs none of these jobs.
from proxycast.tables import input_states

WRITERS = STUDY.writers
WRITTEN_TASKS = PLAN.task_names if WRITERS else []
# Problems that the truth is measured on: all of them, with or without a solution. Without writers each has a solution.
PROBLEMS = expand(f"{RESULTS}/problems/{{task}}.jsonl", task=WRITTEN_TASKS) if WRITERS else SOLUTIONS
EXPERTS = expand(f"{RESULTS}/written/{{writer}}/experts.parquet", writer=WRITERS)
WRITTEN_OPTIONS = {name: STUDY.extraction.with_overrides(writer.model) for name, writer in WRITERS.items()}
OF_WRITERS = {name: c for name, w in WRITERS.items() for c in CHECKPOINTS if c.checkpoint == w.checkpoint}


def writer_folder(name):
    """Folder of the writer's model."""
    if name in OF_WRITERS:
        return OF_WRITERS[name].folder
    return str(WRITERS[name].folder or f"{RESULTS}/writers/{name}/step0")


def writer_weights(name):
    """Files that a writer's job needs first."""
    if name in OF_WRITERS:
        return weight_inputs(PLAN, [OF_WRITERS[name]])
    return f"{RESULTS}/writers/{name}" if WRITERS[name].hub else []


def writer_state(name):
    """A fingerprint of the files in a writer's given folder."""
    if name in OF_WRITERS:
        return weight_states(PLAN, [OF_WRITERS[name]])
    return input_states(WRITERS[name].folder.glob("*") if WRITERS[name].folder else [], most_bytes=-1)


rule copy_problems:
    input:
        lambda wildcards: PLAN.solutions_source(wildcards.task),
    output:
        f"{RESULTS}/problems/{{task}}.jsonl",
    log:
        f"{RESULTS}/logs/copy_problems/{{task}}.log",
    wildcard_constraints:
        task="|".join(name for name in WRITTEN_TASKS if name not in RENDERED) or "none",
    params:
        code=CODE["copy_problems"],
        contents=lambda wildcards: state_of(PLAN.solutions_source(wildcards.task)),
    script:
        "../scripts/copy_problems.py"


rule render_problems:
    input:
        lambda wildcards: data_set(f"solutions-{wildcards.task}"),
    output:
        f"{RESULTS}/problems/{{task}}.jsonl",
    log:
        f"{RESULTS}/logs/render_problems/{{task}}.log",
    wildcard_constraints:
        task="|".join(name for name in WRITTEN_TASKS if name in RENDERED) or "none",
    params:
        code=CODE["render_solutions"],
        contents=lambda wildcards: state_of(data_set(f"solutions-{wildcards.task}")),
        rows=lambda wildcards: PLAN.rows(wildcards.task).model_dump(mode="json"),
    script:
        "../scripts/render_solutions.py"


rule download_writer:
    output:
        weights=removed_when_scored(directory(f"{RESULTS}/writers/{{writer}}")),
        record=f"{RESULTS}/revisions/writers/{{writer}}.json",
    log:
        f"{RESULTS}/logs/download_writer/{{writer}}.log",
    wildcard_constraints:
        writer="|".join(name for name, writer in WRITERS.items() if writer.hub) or "none",
    priority: DATA_FIRST
    threads: 0
    resources:
        hub_downloads=1,
        idle_minutes=IDLE_MINUTES,
    params:
        code=CODE["download_run"],
        checkpoints=lambda wildcards: [(0, WRITERS[wildcards.writer].hub, WRITERS[wildcards.writer].revision, None)],
    script:
        "../scripts/download_run.py"


# One job for each writer, so its model is loaded once for all tasks.
rule write_solutions:
    input:
        weights=lambda wildcards: writer_weights(wildcards.writer),
        problems=expand(f"{RESULTS}/problems/{{task}}.jsonl", task=WRITTEN_TASKS),
    output:
        solutions=expand(f"{RESULTS}/written/{{{{writer}}}}/{{task}}.jsonl", task=WRITTEN_TASKS),
        experts=f"{RESULTS}/written/{{writer}}/experts.parquet",
        summary=f"{RESULTS}/written/{{writer}}/summary.json",
    log:
        f"{RESULTS}/logs/write_solutions/{{writer}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_solutions/{{writer}}.tsv"
    wildcard_constraints:
        writer="|".join(WRITERS) or "none",
    threads: MODEL_JOBS.threads("write_solutions")
    resources:
        **MODEL_JOBS.resources("write_solutions"),
    params:
        code=CODE["write_solutions"],
        contents=lambda wildcards: writer_state(wildcards.writer),
        writer=lambda wildcards: WRITERS[wildcards.writer].model_dump(mode="json", exclude={"memory_gb", "model"}),
        folder=lambda wildcards: writer_folder(wildcards.writer),
        extraction=lambda wildcards: WRITTEN_OPTIONS[wildcards.writer].that_change_results(),
        answer_patterns={task.name: task.answer_pattern for task in PLAN.tasks},
        parts=f"{RESULTS}/written/{{writer}}/parts",
    script:
        "../scripts/write_solutions.py"


rule join_solutions:
    input:
        problems=f"{RESULTS}/problems/{{task}}.jsonl",
        written=expand(f"{RESULTS}/written/{{writer}}/{{{{task}}}}.jsonl", writer=WRITERS),
    output:
        f"{RESULTS}/solutions/{{task}}.jsonl",
    log:
        f"{RESULTS}/logs/join_solutions/{{task}}.log",
    wildcard_constraints:
        task="|".join(WRITTEN_TASKS) or "none",
    params:
        code=CODE["join_solutions"],
    script:
        "../scripts/join_solutions.py"
