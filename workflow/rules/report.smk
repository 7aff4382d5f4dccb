# The figures of every experiment. `snakemake --report` puts them, the tables and their provenance into one page.
from proxycast.experiments.laws.two_step import FEWEST_RUNS
from proxycast.truth.training_log import run_names


def figures_of(experiment, figures):
    """Output files of an experiment's figures: name -> (kind, what the report calls it), each as PNG and SVG."""
    folder = f"{RESULTS}/{experiment}"
    found = {"svg": expand(f"{folder}/{{name}}.svg", name=figures)}
    for name, (kind, label) in figures.items():
        caption = f"../report/{kind}.rst"
        found[name] = report(f"{folder}/{name}.png", caption=caption, category="Figures", labels={"figure": label})
    return found


def named(kinds, things=None):
    """Figure -> (kind, label) of every kind, or of every kind and thing: file suffix -> words."""
    if things is None:
        return {kind: (kind, kind.replace("_", " ")) for kind in kinds}
    return {f"{k}_{t}": (k, f"{k.replace('_', ' ')}, {words}") for k in kinds for t, words in things.items()}


NAMED_BUDGETS = {f"{budget.size}_step{budget.step}": budget.name for budget in BUDGETS}


if PLAN.selects_data and STUDY.target:
    OF_BUDGETS = ["ranking_with_intervals", "proxy_against_truth", *(["decision_accuracy_heatmap"] if JOBS else [])]

    rule data_selection_figures:
        input:
            **{name: rules.data_selection.output[name] for name in DATA_SELECTION},
        output:
            **figures_of(
                "data_selection",
                named(["pareto_frontier", "decision_accuracy_over_training"]) | named(OF_BUDGETS, NAMED_BUDGETS),
            ),
        log:
            f"{RESULTS}/logs/data_selection_figures.log",
        params:
            code=CODE["data_selection_figures"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "highlighted"}) | AT_BUDGETS,
        script:
            "../scripts/data_selection_figures.py"

    if OF_LAWS:

        rule law_figures:
            input:
                **{name: rules.data_selection.output[name] for name in ["pareto", "ranking", "truth", *OF_LAWS]},
            output:
                **figures_of("data_selection", named(["law_decision_accuracy", "law_differences", "law_curves"])),
            log:
                f"{RESULTS}/logs/law_figures.log",
            params:
                code=CODE["law_figures"],
                study=STUDY.model_dump(mode="json", include={"target", "selection"}),
            script:
                "../scripts/law_figures.py"

elif PLAN.selects_data:

    rule data_selection_figures:
        input:
            **{name: rules.data_selection.output[name] for name in DATA_SELECTION},
        output:
            **figures_of(
                "data_selection",
                named(["agreement_of_proxies"]) | named(["order_of_corpora"], NAMED_BUDGETS),
            ),
        log:
            f"{RESULTS}/logs/data_selection_figures.log",
        params:
            code=CODE["corpus_order_figures"],
            study=STUDY.model_dump(mode="json", include={"highlighted", "selection"}) | AT_BUDGETS,
            left_out=PLAN.left_out,
        script:
            "../scripts/corpus_order_figures.py"


if PLAN.selects_models:
    OF_MODELS = ["models_ranked", "model_pairs", "model_agreement"]
    if STUDY.target:
        OF_MODELS += ["methods", "predicted_against_true_rank", "proxies_chosen"]
        OF_MODELS += ["solutions_and_writers", "model_selection_heatmap"] if JOBS else []

    rule model_selection_figures:
        input:
            **{name: rules.model_selection.output[name] for name in MODEL_SELECTION},
        output:
            **figures_of("model_selection", named(OF_MODELS)),
        log:
            f"{RESULTS}/logs/model_selection_figures.log",
        params:
            code=CODE["model_selection_figures"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "model_selection"}),
        script:
            "../scripts/model_selection_figures.py"


if STUDY.forecasting:
    FORECAST_RUNS = {run: run for run in (run_names(PLAN.curve) if PLAN.curve else RUNS)}
    FORECAST_RUNS = {run: run for run in FORECAST_RUNS if run not in STUDY.forecasting.models}

    rule forecasting_figures:
        input:
            **{name: rules.forecasting.output[name] for name in FORECASTING},
        output:
            **figures_of(
                "forecasting",
                named(["error_over_horizon", "forecast_coverage"])
                | named(["two_step_predictions", "two_step_law"] if len(FORECAST_RUNS) >= FEWEST_RUNS else [])
                | named(["forecast_curves", "proxy_curves"], FORECAST_RUNS),
            ),
        log:
            f"{RESULTS}/logs/forecasting_figures.log",
        params:
            code=CODE["forecasting_figures"],
            study=STUDY.model_dump(mode="json", include={"target", "forecasting"}),
        script:
            "../scripts/forecasting_figures.py"


EXPERIMENTS = [
    *([rules.data_selection, rules.data_selection_figures] if PLAN.selects_data else []),
    *([rules.law_figures] if PLAN.selects_data and STUDY.selection.scaling_laws else []),
    *([rules.model_selection, rules.model_selection_figures] if PLAN.selects_models else []),
    *([rules.forecasting, rules.forecasting_figures] if STUDY.forecasting else []),
    *([rules.judged] if STUDY.judges else []),
]
