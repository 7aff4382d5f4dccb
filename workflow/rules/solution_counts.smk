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

    rule solution_count_figures:
        input:
            solution_counts=rules.solution_counts.output.solution_counts,
        output:
            **figures_of("data_selection", named(["solution_counts"], NAMED_BUDGETS)),
        log:
            f"{RESULTS}/logs/solution_count_figures.log",
        params:
            code=CODE["solution_count_figures"],
            study=STUDY.model_dump(mode="json", include={"selection"}) | AT_BUDGETS,
        script:
            "../scripts/solution_count_figures.py"

    EXPERIMENTS += [rules.solution_counts, rules.solution_count_figures]


if PLAN.selects_models and JOBS:

    rule model_solution_counts:
        input:
            checkpoints=rules.checkpoints.output[0],
            targets=[f"{RESULTS}/targets.parquet"] if STUDY.target else [],
            proxies=rules.join_proxies.output[0],
            solution_proxies=expand(rules.solution_proxies.output.of_solutions, corpus=SCORED_CORPORA),
        output:
            **tables_of("model_selection", ["solution_counts"]),
            **figures_of("model_selection", named(["model_solution_counts"])),
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

    EXPERIMENTS.append(rules.model_solution_counts)
