# Which corpus, or which model, is best: rankings, what they cost, and how far the truth can be trusted.

# Too long for a page: every task, fold or point of a figure. They lie beside the others as parquet and csv.
NOT_IN_REPORT = {"decision_accuracy", "predictions", "proxies", "paths", "observed"}


def tables_of(experiment, names):
    """Output files of an experiment's tables by name, parquet and csv; the report shows the csv."""
    found = {name: f"{RESULTS}/{experiment}/{name}.parquet" for name in names}
    for name in names:
        path = f"{RESULTS}/{experiment}/{name}.csv"
        caption = f"../report/{experiment}_{name}.rst"
        shown = report(path, caption=caption, category="Tables", labels={"table": name})
        found[f"{name}_csv"] = path if name in NOT_IN_REPORT else shown
    return found


if PLAN.selects_data:
    DATA_SELECTION = ["summary", "ranking", "decision_accuracy", "pareto", "compute_to_reach", "truth"]

    rule data_selection:
        input:
            checkpoints=rules.checkpoints.output[0],
            targets=f"{RESULTS}/targets.parquet",
            proxies=rules.join_proxies.output[0] if JOBS else [],
            solution_proxies=expand(rules.solution_proxies.output.of_solutions, corpus=SCORED_CORPORA),
            token_stats=expand(rules.score.output.token_stats, job=job_with_a_proxy(JOBS)),
            problems=PROBLEMS,
            curve=f"{RESULTS}/published_curve.parquet" if STUDY.published else [],
        output:
            **tables_of("data_selection", DATA_SELECTION),
        log:
            f"{RESULTS}/logs/data_selection.log",
        benchmark:
            f"{RESULTS}/benchmarks/data_selection.tsv"
        threads: 4
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["data_selection"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "highlighted", "budgets"}),
            tasks=PLAN.task_names,
        script:
            "../scripts/data_selection.py"


if STUDY.model_selection:
    MODEL_SELECTION = ["summary", "folds", "chosen", "stability", "writers", "truth", "predictions", "proxies"]

    rule model_selection:
        input:
            checkpoints=rules.checkpoints.output[0],
            targets=f"{RESULTS}/targets.parquet",
            proxies=rules.join_proxies.output[0],
            subsets=expand(rules.solution_proxies.output.subsets, corpus=SCORED_CORPORA),
            problems=PROBLEMS,
        output:
            **tables_of("model_selection", MODEL_SELECTION),
        log:
            f"{RESULTS}/logs/model_selection.log",
        benchmark:
            f"{RESULTS}/benchmarks/model_selection.tsv"
        threads: 2
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["model_selection"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "model_selection"}),
            tasks=PLAN.task_names,
        script:
            "../scripts/model_selection.py"
