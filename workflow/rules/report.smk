# The figures of every experiment. `snakemake --report` binds them, the tables and how each was made into one page.


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


if PLAN.selects_data:
    AT_BUDGETS = ["ranking_with_intervals", "proxy_against_truth", *(["decision_accuracy_heatmap"] if JOBS else [])]
    BUDGETS = {f"{budget.size}_step{budget.step}": budget.name for budget in STUDY.budgets}

    rule data_selection_figures:
        input:
            **{name: rules.data_selection.output[name] for name in DATA_SELECTION},
        output:
            **figures_of(
                "data_selection",
                named(["pareto_frontier", "decision_accuracy_over_training"]) | named(AT_BUDGETS, BUDGETS),
            ),
        log:
            f"{RESULTS}/logs/data_selection_figures.log",
        params:
            code=CODE["data_selection_figures"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "highlighted", "budgets"}),
        script:
            "../scripts/data_selection_figures.py"


if STUDY.model_selection:

    rule model_selection_figures:
        input:
            **{name: rules.model_selection.output[name] for name in MODEL_SELECTION},
        output:
            **figures_of(
                "model_selection",
                named(
                    [
                        "methods",
                        "predicted_against_true_rank",
                        "proxies_chosen",
                        "solutions_and_writers",
                        "model_selection_heatmap",
                    ]
                ),
            ),
        log:
            f"{RESULTS}/logs/model_selection_figures.log",
        params:
            code=CODE["model_selection_figures"],
            study=STUDY.model_dump(mode="json", include={"target", "selection", "model_selection"}),
        script:
            "../scripts/model_selection_figures.py"


if STUDY.forecasting:
    FORECAST_RUNS = {run: run for run in ([PLAN.curve.run] if PLAN.curve else RUNS)}

    rule forecasting_figures:
        input:
            **{name: rules.forecasting.output[name] for name in FORECASTING},
        output:
            **figures_of(
                "forecasting",
                named(["error_over_horizon", "forecast_coverage"])
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
    *([rules.model_selection, rules.model_selection_figures] if STUDY.model_selection else []),
    *([rules.forecasting, rules.forecasting_figures] if STUDY.forecasting else []),
]
