"""Write tables that others published as long tables of statistics, which studies read (`statistics`).

    python config/published_tables.py <folder of the published files> <folder to write to>

datadecide.csv                      DataDecide: correct_prob of small models, accuracies of the 1B models
datadecide_decision_accuracies.csv  decision accuracies of the small models' own accuracy
perplexity_correlations.csv         90 models: bits per byte over web pages, errors of nine tasks
datadecide_evaluations.csv          DataDecide: accuracy and task loss of the models that its laws are made from; needs
                                    macro_avg-00000-of-00001.parquet of allenai/DataDecide-eval-results in the folder
olmo_ladder.csv                     16 runs of OLMo-ladder: bits per byte and accuracy of eight tasks at each checkpoint

A file whose sources are not in the folder is left out.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl

# Problems of the ten tasks of OLMES, so that every accuracy of one seed is a whole number of them.
PROBLEMS = {
    **{"arc_challenge": 1172, "arc_easy": 2376, "boolq": 3270, "csqa": 1221, "hellaswag": 10042, "mmlu": 14042},
    **{"openbookqa": 500, "piqa": 1838, "socialiqa": 1954, "winogrande": 1267},
}
MACRO = "olmes_10"  # the mean over the ten tasks


def datadecide(folder: Path) -> pl.DataFrame:
    """Units are the corpora's names in the published files, which corpus files have as `display_name`.

    The step of a published value is not known; a study takes the last of the ladder's run. Three seeds of the 1B models
    are published as their mean only, which stands under seed 0.
    """
    small = pl.read_csv(folder / "datadecide_correct_prob_nll.csv").select(
        unit="recipe",
        task=pl.lit(MACRO),
        statistic=pl.lit("log_correct_prob_per_char"),
        value=-pl.col("nll"),
        size="size",
        seed="seed_index",
    )
    accuracies = {"acc_1b_three_seed_mean": "accuracy", "acc_1b_default_seed": "accuracy_of_one_seed"}
    large = (
        pl.read_csv(folder / "datadecide_accuracy_1b.csv")
        .with_columns(pl.col("task").replace("olmes_10_macro_avg", MACRO), size=pl.lit("1B"), seed=pl.lit(0, pl.Int64))
        .unpivot(on=list(accuracies), index=["task", "recipe", "size", "seed"], variable_name="statistic")
        .with_columns(pl.col("statistic").replace(accuracies))
        .rename({"recipe": "unit"})
    )
    problems = PROBLEMS | {MACRO: sum(PROBLEMS.values())}
    both = pl.concat([small, large.select(small.columns)])
    return both.with_columns(n=pl.col("task").replace_strict(problems, return_dtype=pl.Int64))


def datadecide_decision_accuracies(folder: Path) -> pl.DataFrame:
    """Of OLMES accuracy, over all 25 corpora, the mean of three single seeds."""
    path = folder / "datadecide_decision_accuracy_by_size_step.csv"
    curve = pl.read_csv(path, schema_overrides={"flops_6ND": pl.Float64})
    return curve.select(pl.lit("accuracy").alias("statistic"), "size", "step", "decision_accuracy", corpora=pl.lit(25))


LAW_SIZES = ("150M", "300M", "530M", "750M")
TASK_LOSSES = ("correct_logit_per_byte", "logits_per_byte_corr", "bits_per_byte_corr")  # the first that there is
TARGET_SEEDS = ("default", "large aux 2", "large aux 3")


def datadecide_evaluations(folder: Path) -> pl.DataFrame:
    """What DataDecide's released scaling laws are made from: the default seed of the small models, at every step.

    Of the 1B models `accuracy` is the mean of three seeds at the last step that all have, as in `datadecide`, and
    `accuracy_of_one_seed` that of the default seed at its last step. The task loss is made positive. Some runs end
    before or after the others: the end of each stands at the step at which most runs of its size end.
    """
    rows = pl.read_parquet(folder / "macro_avg-00000-of-00001.parquet")
    recipes = pl.read_csv(folder / "datadecide_recipes.csv")
    names = {_letters(name): name for name in recipes["display_name"]}  # spelled in other ways on the hub
    rows = rows.filter(pl.col("params").is_in([*LAW_SIZES, "1B"])).with_columns(
        data=pl.col("data").map_elements(lambda name: names.get(_letters(name), name), pl.String),
        seed=pl.col("seed").cast(pl.String).str.replace_all("-", " ").replace("6198", "default"),
    )
    figures = [json.loads(text) for text in rows["metrics"]]
    loss = next(name for name in TASK_LOSSES if name in figures[0])
    table = rows.with_columns(
        accuracy=pl.Series([figure["primary_metric"] for figure in figures], dtype=pl.Float64),
        task_loss=pl.Series([figure[loss] for figure in figures], dtype=pl.Float64).abs(),
        task=pl.col("task").replace("olmes_10_macro_avg", MACRO),
    )
    key = ["data", "task", "params"]
    default = table.filter(seed="default")
    small = default.filter(pl.col("params") != "1B")
    end, most = pl.col("step").max().over("data", "params"), pl.col("end").mode().min().over("params")
    small = small.with_columns(end=end).with_columns(most=most, is_end=pl.col("step") == pl.col("end"))
    small = small.filter(pl.col("is_end") | (pl.col("step") < pl.col("most"))).with_columns(
        step=pl.when("is_end").then("most").otherwise("step")
    )
    small = small.unpivot(on=["accuracy", "task_loss"], index=[*key, "step"], variable_name="statistic")
    large = table.filter(pl.col("seed").is_in(TARGET_SEEDS), params="1B")
    seeds = pl.col("seed").n_unique().over("step")
    common = large.filter(seeds == len(TARGET_SEEDS)).filter(pl.col("step") == pl.col("step").max())
    ends = {
        "accuracy": common.group_by(key).agg(pl.col("accuracy").mean().alias("value")),
        "accuracy_of_one_seed": default.filter(pl.col("step") == pl.col("step").max().over(key), params="1B").select(
            *key, value="accuracy"
        ),
    }
    last = default.filter(params="1B")["step"].max()
    parts = [
        end.with_columns(statistic=pl.lit(name), step=pl.lit(last, rows.schema["step"])) for name, end in ends.items()
    ]
    every = pl.concat([small, *(part.select(small.columns) for part in parts)])
    problems = PROBLEMS | {MACRO: sum(PROBLEMS.values())}
    return (
        every.filter(pl.col("task").is_in(list(problems)))
        .unique(maintain_order=True)
        .select(
            unit="data",
            task="task",
            statistic="statistic",
            value="value",
            size="params",
            seed=pl.lit(0),
            step=pl.col("step").cast(pl.Int64),
            n=pl.col("task").replace_strict(problems, return_dtype=pl.Int64),
        )
    )


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def perplexity_correlations(folder: Path) -> pl.DataFrame:
    """A model that stands there under two families is told apart by the family."""
    table = pl.read_csv(folder / "perplexity_correlations_90_models.csv")
    twice = pl.col("model").count().over("model") > 1
    named = pl.when(twice).then(pl.format("{} ({})", "model", "family")).otherwise("model").alias("unit")
    table = table.with_columns(named)
    key = ["unit", "family"]
    shared = table.select(
        *key, task=pl.lit(None, pl.String), statistic=pl.lit("bits_per_byte_of_web_pages"), value="mean_bits_per_byte"
    )
    errors = table.unpivot(on=pl.selectors.starts_with("error_"), index=key, variable_name="task")
    errors = errors.with_columns(pl.col("task").str.strip_prefix("error_"), statistic=pl.lit("error"))
    return pl.concat([shared, errors.select(shared.columns)])


def olmo_ladder(folder: Path) -> pl.DataFrame:
    """Every checkpoint of the runs that were trained as a ladder; a family is a size."""
    table = pl.read_csv(folder / "ladder_two_step_input.csv").filter(role="train")
    key = ["run", "parameters", "tokens"]
    long = table.unpivot(on=pl.selectors.matches("_(bpb|accuracy)$"), index=key, variable_name="column")
    return long.select(
        unit="run",
        task=pl.col("column").str.replace("_(bpb|accuracy)$", ""),
        statistic=pl.col("column").str.extract("_(bpb|accuracy)$"),
        value="value",
        family=pl.col("run").str.extract("^([^-]+)"),
        parameters="parameters",
        tokens="tokens",
        step="tokens",
    )


TABLES: list[Callable[[Path], pl.DataFrame]] = [
    *(datadecide, datadecide_decision_accuracies, datadecide_evaluations, perplexity_correlations, olmo_ladder),
]

if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    for make in TABLES:
        try:
            table = make(source)
        except FileNotFoundError as error:
            print(f"{make.__name__}.csv is left out: {error}")
            continue
        table.write_csv(target / f"{make.__name__}.csv")
        print(f"{target / make.__name__}.csv: {len(table)} rows")
