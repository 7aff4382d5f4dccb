# The figures of every experiment, each experiment's drawn by one job. `snakemake --report` puts them, the tables and their provenance into one page.
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


def tables_from(experiments):
    """The tables of some rules, by name: what one job draws."""
    outputs = {name: path for experiment in experiments for name, path in experiment.output.items()}
    return {name: path for name, path in outputs.items() if str(path).endswith(".parquet")}


def named(kinds, things=None):
    """Figure -> (kind, label) of every kind, or of every kind and thing: file suffix -> words."""
    if things is None:
        return {kind: (kind, kind.replace("_", " ")) for kind in kinds}
    return {f"{k}_{t}": (k, f"{k.replace('_', ' ')}, {words}") for k in kinds for t, words in things.items()}


NAMED_BUDGETS = {f"{budget.size}_step{budget.step}": budget.name for budget in BUDGETS}


if PLAN.selects_data:
    OF_CORPORA = [rules.data_selection, rules.signal_to_noise]
    OF_CORPORA += [rules.choices] if STUDY.target else []
    OF_CORPORA += [rules.solution_counts] if JOBS else []
    if STUDY.target:
        DRAWN = ["pareto_frontier", "decision_accuracy_over_training"]
        DRAWN += ["snr_against_decision_accuracy", "repeats_over_compute", "regret_over_compute"]
        DRAWN += ["orders_over_learning_rate"] if RATES else []
        DRAWN += ["law_decision_accuracy", "law_differences", "law_curves"] if OF_LAWS else []
        OF_BUDGETS = ["ranking_with_intervals", "proxy_against_truth", "regret_by_method", "gap_calibration"]
        OF_BUDGETS += ["decision_accuracy_heatmap"] if JOBS else []
    else:
        DRAWN, OF_BUDGETS = ["agreement_of_proxies"], ["order_of_corpora"]
    OF_BUDGETS += ["signal_to_noise", *(["solution_counts"] if JOBS else [])]

    rule data_selection_figures:
        input:
            **tables_from(OF_CORPORA),
        output:
            **figures_of("data_selection", named(DRAWN) | named(OF_BUDGETS, NAMED_BUDGETS)),
        log:
            f"{RESULTS}/logs/data_selection_figures.log",
        params:
            code=CODE["data_selection_figures"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "highlighted"}) | AT_BUDGETS,
        script:
            "../scripts/data_selection_figures.py"


if PLAN.selects_models:
    OF_MODELS = [rules.model_selection]
    OF_MODELS += [rules.model_choices] if STUDY.target else []
    OF_MODELS += [rules.model_solution_counts] if JOBS else []
    MODELS_DRAWN = ["models_ranked", "model_pairs", "model_agreement"]
    if STUDY.target:
        MODELS_DRAWN += ["methods", "predicted_against_true_rank", "proxies_chosen"]
        MODELS_DRAWN += ["solutions_and_writers", "model_selection_heatmap"] if JOBS else []
        MODELS_DRAWN += ["model_regret", "model_gap_calibration"]
        MODELS_DRAWN += ["post_training_methods", "post_training_shifts"] if TELLS_POST_TRAINING else []
    MODELS_DRAWN += ["model_solution_counts"] if JOBS else []

    rule model_selection_figures:
        input:
            **tables_from(OF_MODELS),
        output:
            **figures_of("model_selection", named(MODELS_DRAWN)),
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
    *([*OF_CORPORA, rules.data_selection_figures] if PLAN.selects_data else []),
    *([*OF_MODELS, rules.model_selection_figures] if PLAN.selects_models else []),
    *([rules.forecasting, rules.forecasting_figures] if STUDY.forecasting else []),
    *([rules.judged] if STUDY.judges else []),
]
