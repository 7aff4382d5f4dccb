# Which tokens decide between the leader and the last of a ranking, or between the two ends of a training run.

if JOBS:

    rule token_view:
        input:
            checkpoints=rules.checkpoints.output[0],
            corpora=[rules.data_selection.output["ranking"]] if PLAN.selects_data else [],
            models=[rules.model_selection.output["ranking"]] if PLAN.selects_models else [],
            token_stats=expand(rules.score.output.token_stats, job=JOBS),
            solutions=expand(f"{RESULTS}/solutions/{{task}}.jsonl", task=PLAN.task_names),
        output:
            view=f"{RESULTS}/token_view.parquet",
            contrast=f"{RESULTS}/token_contrast.parquet",
            contrast_csv=f"{RESULTS}/token_contrast.csv",
        log:
            f"{RESULTS}/logs/token_view.log",
        benchmark:
            f"{RESULTS}/benchmarks/token_view.tsv"
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["token_view"],
            study=STUDY.model_dump(mode="json", include={"highlighted", "selection", "proxies", "token_view"})
            | AT_BUDGETS,
            tails=(STUDY.extraction.tail_tokens, STUDY.extraction.tail_bytes),
        script:
            "../scripts/token_view.py"

    EXPERIMENTS.append(rules.token_view)
