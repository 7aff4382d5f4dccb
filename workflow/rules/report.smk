# The figures of the data selection. `snakemake --report` binds them, the tables and how each was made into one page.

FIGURES = [
    "pareto_frontier",
    "ranking_with_intervals",
    "proxy_against_truth",
    "decision_accuracy_heatmap",
    "decision_accuracy_over_training",
]


rule figures:
    input:
        **{name: rules.data_selection.output[name] for name in TABLES},
    output:
        **{
            f"{name}_png": report(
                f"{RESULTS}/data_selection/{name}.png",
                caption=f"../report/{name}.rst",
                category="Figures",
                labels={"figure": name.replace("_", " ")},
            )
            for name in FIGURES
        },
        svg=expand(f"{RESULTS}/data_selection/{{name}}.svg", name=FIGURES),
    log:
        f"{RESULTS}/logs/figures.log",
    params:
        study=STUDY.model_dump(mode="json", include={"target", "selection", "highlighted", "budgets"}),
    script:
        "../scripts/figures.py"
