# How many solutions are enough, and which ones: from finished tables, at the study's budgets.

if PLAN.selects_data and JOBS:

    rule solution_counts:
        input:
            checkpoints=rules.checkpoints.output[0],
            targets=[f"{RESULTS}/targets.parquet"] if STUDY.target else [],
            solution_proxies=expand(rules.solution_proxies.output.of_solutions, corpus=SCORED_CORPORA),
        output:
            **tables_of("data_selection", ["solution_counts", "picked_solutions"]),
        log:
            f"{RESULTS}/logs/solution_counts.log",
        benchmark:
            f"{RESULTS}/benchmarks/solution_counts.tsv"
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["solution_counts"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "highlighted"}) | AT_BUDGETS,
            tasks=PLAN.task_names,
        script:
            "../scripts/solution_counts.py"


if PLAN.selects_models and JOBS:

    rule model_solution_counts:
        input:
            checkpoints=rules.checkpoints.output[0],
            recipes=RECIPES_TABLE,
            targets=[f"{RESULTS}/targets.parquet"] if STUDY.target else [],
            proxies=rules.join_proxies.output[0],
            solution_proxies=expand(rules.solution_proxies.output.of_solutions, corpus=SCORED_CORPORA),
        output:
            **tables_of("model_selection", ["solution_counts"]),
        log:
            f"{RESULTS}/logs/model_solution_counts.log",
        benchmark:
            f"{RESULTS}/benchmarks/model_solution_counts.tsv"
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["model_solution_counts"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "highlighted"}),
            tasks=PLAN.task_names,
        script:
            "../scripts/model_solution_counts.py"
