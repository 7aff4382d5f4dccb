# Expert solutions, from the users' files or from the suite.


rule copy_solutions:
    input:
        lambda wildcards: PLAN.solutions_source(wildcards.task),
    output:
        f"{RESULTS}/solutions/{{task}}.jsonl",
    log:
        f"{RESULTS}/logs/copy_solutions/{{task}}.log",
    script:
        "../scripts/copy_solutions.py"
