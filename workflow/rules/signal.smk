# Signal to noise of every statistic; with a truth also the tasks that only add noise, and what repeats buy.
if PLAN.selects_data:
    SIGNAL = ["signal_to_noise"]
    SIGNAL += ["snr_and_accuracy", "task_choice", "repeats"] if STUDY.target else []

    rule signal_to_noise:
        input:
            checkpoints=rules.checkpoints.output[0],
            targets=f"{RESULTS}/targets.parquet" if STUDY.target else [],
            proxies=rules.join_proxies.output[0] if JOBS else [],
            outside=OUTSIDE,
        output:
            **tables_of("data_selection", SIGNAL),
        log:
            f"{RESULTS}/logs/signal_to_noise.log",
        benchmark:
            f"{RESULTS}/benchmarks/signal_to_noise.tsv"
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["signal_to_noise"],
            study=STUDY.model_dump(mode="json", include={"target", "selection"}) | AT_BUDGETS,
            tasks=PLAN.task_names,
        script:
            "../scripts/signal_to_noise.py"
