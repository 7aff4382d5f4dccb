# Which corpus, or which model, is best: rankings, what they cost, and how far the truth can be trusted.
from proxycast.experiments.judges.judge_file import reading_of
from proxycast.experiments.model_selection.known_models import tells_post_training
from proxycast.study.checkpoints import job_with_a_proxy

# Tables too long for the report: every task, fold or point of a figure. They are written as parquet and csv like the others.
NOT_IN_REPORT = {"decision_accuracy", "against_baselines", "pairs", "predictions", "proxies", "paths", "observed"}
NOT_IN_REPORT |= {"signal_to_noise", "repeats", "choices", "decisions", "margins", "picked_solutions"}
NOT_IN_REPORT |= {"scaling_laws", "law_points", "metrics", "mixture_predictions", "recipe_shifts"}


def tables_of(experiment, names):
    """Output files of an experiment's tables by name, parquet and csv; the report shows the csv."""
    found = {name: f"{RESULTS}/{experiment}/{name}.parquet" for name in names}
    for name in names:
        path = f"{RESULTS}/{experiment}/{name}.csv"
        caption = f"../report/{experiment}_{name}.rst"
        shown = report(path, caption=caption, category="Tables", labels={"table": name})
        found[f"{name}_csv"] = path if name in NOT_IN_REPORT else shown
    return found


# What a judge says of how its values were made. Models of a data selection share one tokenizer.
READING = reading_of(STUDY.proxies, STUDY.extraction, STUDY.selection.last_checkpoints).model_dump(mode="json")
READING = READING if PLAN.runs_models else None
TOKENIZER_FOLDERS = sorted({checkpoint.folder for checkpoint in SCORED})[: 1 if PLAN.selects_data else None]
TOKENIZER_FOLDERS = [PLAN.tokenizer_folder.as_posix()] if PLAN.vocabulary else TOKENIZER_FOLDERS


TELLS_POST_TRAINING = tells_post_training(checkpoint.recipe for checkpoint in CHECKPOINTS)
OF_POST_TRAINING = ["populations", "recipe_shifts", "recipe_means"]
OF_MODEL_SELECTION = {"study", "target", "selection", "model_selection", "highlighted"}


if PLAN.selects_data:
    DATA_SELECTION = ["ranking", "pairs", "agreement"]
    if STUDY.target:
        DATA_SELECTION += ["summary", "decision_accuracy", "against_baselines", "pareto", "compute_to_reach"]
        DATA_SELECTION += ["predictions", "truth"]
    OF_RATES = ["rate_check", *(["rates"] if STUDY.target else [])] if RATES else []
    OF_LAWS = ["scaling_laws", "law_points", "law_gains"] if STUDY.selection.scaling_laws else []

    rule data_selection:
        input:
            checkpoints=rules.checkpoints.output[0],
            targets=f"{RESULTS}/targets.parquet" if STUDY.target else [],
            proxies=rules.join_proxies.output[0] if JOBS else [],
            solution_proxies=expand(rules.solution_proxies.output.of_solutions, corpus=SCORED_CORPORA),
            token_stats=expand(rules.score.output.token_stats, job=job_with_a_proxy(JOBS)),
            problems=PROBLEMS,
            outside=OUTSIDE,
            curve=rules.read_statistics.output.curve if CURVE else [],
        output:
            **tables_of("data_selection", DATA_SELECTION + OF_RATES + OF_LAWS),
            **({"judge": f"{RESULTS}/data_selection/judge.json"} if STUDY.target and JOBS else {}),
        log:
            f"{RESULTS}/logs/data_selection.log",
        benchmark:
            f"{RESULTS}/benchmarks/data_selection.tsv"
        threads: 4
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["data_selection"],
            study=STUDY.model_dump(mode="json", include={"study", "target", "selection", "highlighted"}) | AT_BUDGETS,
            tasks=PLAN.task_names,
            reading=READING,
            tokenizers=TOKENIZER_FOLDERS,
            left_out=PLAN.left_out,
            rates=[pair.model_dump() for pair in RATES],
        script:
            "../scripts/data_selection.py"


if PLAN.selects_models:
    MODEL_SELECTION = ["ranking", "pairs", "agreement"]
    if STUDY.target:
        MODEL_SELECTION += ["summary", "folds", "chosen", "stability", "truth", "predictions", "proxies"]
        MODEL_SELECTION += ["writers"] if JOBS else []
        MODEL_SELECTION += OF_POST_TRAINING if TELLS_POST_TRAINING else []
        MODEL_SELECTION += ["claims"] if STUDY.model_selection and STUDY.model_selection.claim else []

    rule model_selection:
        input:
            checkpoints=rules.checkpoints.output[0],
            recipes=RECIPES_TABLE,
            targets=[f"{RESULTS}/targets.parquet"] if STUDY.target else [],
            proxies=rules.join_proxies.output[0] if JOBS else [],
            outside=OUTSIDE,
            solution_proxies=expand(rules.solution_proxies.output.of_solutions, corpus=SCORED_CORPORA),
            subsets=expand(rules.solution_proxies.output.subsets, corpus=SCORED_CORPORA) if JUDGES_MODELS else [],
            problems=PROBLEMS if STUDY.target else [],
        output:
            **tables_of("model_selection", MODEL_SELECTION),
            # With statistics of others, scorers learn from what no other study can compute.
            **({"judge": f"{RESULTS}/model_selection/judge.json"} if STUDY.target and JOBS and not OUTSIDE else {}),
        log:
            f"{RESULTS}/logs/model_selection.log",
        benchmark:
            f"{RESULTS}/benchmarks/model_selection.tsv"
        threads: 2
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["model_selection"],
            study=STUDY.model_dump(mode="json", include=OF_MODEL_SELECTION),
            tasks=PLAN.task_names,
            left_out=PLAN.left_out,
            reading=READING,
            tokenizers=TOKENIZER_FOLDERS,
        script:
            "../scripts/model_selection.py"


if STUDY.judges:

    rule judged:
        input:
            checkpoints=rules.checkpoints.output[0],
            recipes=RECIPES_TABLE,
            proxies=rules.join_proxies.output[0],
            solution_proxies=expand(rules.solution_proxies.output.of_solutions, corpus=SCORED_CORPORA),
            judges=list(STUDY.judges.values()),
        output:
            **tables_of("data_selection" if PLAN.selects_data else "model_selection", ["judged"]),
        log:
            f"{RESULTS}/logs/judged.log",
        resources:
            mem_mb=grown(4000),
        params:
            code=CODE["judged"],
            contents=state_of(list(STUDY.judges.values())),
            names=list(STUDY.judges),
            study=STUDY.model_dump(mode="json", include={"selection"}) | AT_BUDGETS,
            reading=READING,
            tokenizers=TOKENIZER_FOLDERS,
        script:
            "../scripts/judged.py"
