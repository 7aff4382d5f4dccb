# Which mixture next: a regression over corpora that are mixtures of the same sources, and their export to optimisers.

if PLAN.mixtures:

    rule mixtures:
        input:
            checkpoints=rules.checkpoints.output[0],
            targets=f"{RESULTS}/targets.parquet" if STUDY.target else [],
            proxies=rules.join_proxies.output[0] if JOBS else [],
            outside=OUTSIDE,
        output:
            **tables_of(
                "data_selection",
                ["ratios", "metrics", "mixture_regression", "mixture_predictions", "next_mixtures"],
            ),
            **figures_of("data_selection", named(["mixtures_held_out", "mixtures_next"])),
        log:
            f"{RESULTS}/logs/mixtures.log",
        benchmark:
            f"{RESULTS}/benchmarks/mixtures.tsv"
        resources:
            mem_mb=grown(2000),
        params:
            code=CODE["mixtures"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "highlighted"}) | AT_BUDGETS,
            tasks=PLAN.task_names,
            mixtures=PLAN.mixtures,
        script:
            "../scripts/mixtures.py"

    EXPERIMENTS.append(rules.mixtures)
