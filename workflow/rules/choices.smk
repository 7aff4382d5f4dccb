# What a choice costs: regret, pairs left undecided, and how sure a predicted gap is. Made from finished tables.

CHOICES = ["choices", "decisions", "margins"]


if PLAN.selects_data and STUDY.target:

    rule choices:
        input:
            checkpoints=rules.checkpoints.output[0],
            targets=f"{RESULTS}/targets.parquet",
            proxies=[rules.join_proxies.output[0]] if JOBS else [],
            outside=[OUTSIDE] if OUTSIDE else [],
            pairs=rules.data_selection.output.pairs,
        output:
            **tables_of("data_selection", CHOICES),
        log:
            f"{RESULTS}/logs/choices.log",
        benchmark:
            f"{RESULTS}/benchmarks/choices.tsv"
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["choices"],
            study=STUDY.model_dump(mode="json", include={"target", "selection"}) | AT_BUDGETS,
            tasks=PLAN.task_names,
        script:
            "../scripts/choices.py"


if PLAN.selects_models and STUDY.target:

    rule model_choices:
        input:
            **{name: rules.model_selection.output[name] for name in ["predictions", "ranking", "pairs"]},
        output:
            **tables_of("model_selection", CHOICES),
        log:
            f"{RESULTS}/logs/model_choices.log",
        benchmark:
            f"{RESULTS}/benchmarks/model_choices.tsv"
        resources:
            mem_mb=grown(2000),
        params:
            code=CODE["model_choices"],
            study=STUDY.model_dump(mode="json", include={"target", "selection"}),
        script:
            "../scripts/model_choices.py"
