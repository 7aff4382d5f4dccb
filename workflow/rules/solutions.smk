# Expert solutions and generic text: from the user's files, from the suite, or rendered from rows of a data set.
from proxycast.solutions.rows import GENERIC_TEXT

RENDERED = [name for name in PLAN.solution_names if PLAN.rows(name)]
# In a study with writers, a task's solutions are the given ones and the writers' (write.smk).
AS_GIVEN = [GENERIC_TEXT] if STUDY.writers else PLAN.solution_names


rule copy_solutions:
    input:
        lambda wildcards: PLAN.solutions_source(wildcards.task),
    output:
        f"{RESULTS}/solutions/{{task}}.jsonl",
    log:
        f"{RESULTS}/logs/copy_solutions/{{task}}.log",
    wildcard_constraints:
        task="|".join(name for name in AS_GIVEN if name not in RENDERED) or "none",
    params:
        code=CODE["copy_solutions"],
        contents=lambda wildcards: state_of(PLAN.solutions_source(wildcards.task)),
    script:
        "../scripts/copy_solutions.py"


rule render_solutions:
    input:
        lambda wildcards: data_set(f"solutions-{wildcards.task}"),
    output:
        f"{RESULTS}/solutions/{{task}}.jsonl",
    log:
        f"{RESULTS}/logs/render_solutions/{{task}}.log",
    wildcard_constraints:
        task="|".join(name for name in AS_GIVEN if name in RENDERED) or "none",
    params:
        code=CODE["render_solutions"],
        contents=lambda wildcards: state_of(data_set(f"solutions-{wildcards.task}")),
        rows=lambda wildcards: PLAN.rows(wildcards.task).model_dump(mode="json"),
    script:
        "../scripts/render_solutions.py"
