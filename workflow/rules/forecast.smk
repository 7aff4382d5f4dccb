# Where a training run ends: curves fitted to early checkpoints, judged by the later ones.

if STUDY.forecasting:
    FORECASTING = ["summary", "errors", "rehearsal", "forecasts", "intervals", "fits", "paths", "observed", "two_step"]
    MEASURED = {
        "checkpoints": rules.checkpoints.output[0],
        "targets": f"{RESULTS}/targets.parquet",
        "proxies": rules.join_proxies.output[0],
        "solution_proxies": expand(rules.solution_proxies.output.of_solutions, corpus=SCORED_CORPORA),
        "problems": PROBLEMS,
    }

    rule forecasting:
        input:
            **({"curve": [str(path) for path in PLAN.curve.files]} if PLAN.curve else MEASURED),
        output:
            **tables_of("forecasting", FORECASTING),
        log:
            f"{RESULTS}/logs/forecasting.log",
        benchmark:
            f"{RESULTS}/benchmarks/forecasting.tsv"
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["forecasting"],
            contents=state_of(PLAN.curve.files if PLAN.curve else []),
            study=STUDY.model_dump(mode="json", include={"target", "forecasting"}),
            tasks=PLAN.task_names,
        script:
            "../scripts/forecasting.py"
