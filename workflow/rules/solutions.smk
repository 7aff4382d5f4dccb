# Expert solutions, from files or from the suite, and the check of every input before anything is trained or scored.


rule copy_solutions:
    input:
        lambda wildcards: PLAN.solutions_source(wildcards.task),
    output:
        f"{RESULTS}/solutions/{{task}}.jsonl",
    log:
        f"{RESULTS}/logs/copy_solutions/{{task}}.log",
    script:
        "../scripts/copy_solutions.py"


rule check_inputs:
    input:
        corpora=list(PLAN.corpus_files.values()),
        solutions=SOLUTIONS,
        pool=rules.build_suite.output.pool if TRAINED else [],
        tokenizer=rules.build_suite.output.tokenizer if TRAINED else [],
        target_table=STUDY.target.table or [],
    output:
        f"{RESULTS}/checked.json",
    log:
        f"{RESULTS}/logs/check_inputs.log",
    params:
        study=STUDY.model_dump(mode="json", include={"target", "extraction"}),
        checkpoints=[vars(checkpoint) for checkpoint in CHECKPOINTS],
        tasks=[task.model_dump(mode="json") for task in PLAN.tasks],
    script:
        "../scripts/check_inputs.py"
