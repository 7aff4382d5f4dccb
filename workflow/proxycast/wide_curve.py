"""A training curve that others logged: one table with a row for each step and a column for each measurement."""

from difflib import get_close_matches
from pathlib import Path

import polars as pl
from pydantic import Field, model_validator

from proxycast.metrics import about_share, is_share, is_unbounded, mixed_units, outside_share
from proxycast.options import InputError, InputPath, Options, SafeName, told_names, told_value
from proxycast.tables import LARGEST_WHOLE, read_csv


class WideTask(Options):
    """Columns of one task."""

    truth: str = Field(description="column of the metric that is forecast")
    problems: int | None = Field(None, gt=0, description="problems behind the truth; for its binomial noise")
    statistics: dict[SafeName, str] = Field({}, description="statistic -> its column")


class WideCurve(Options):
    """One run in a .csv with a row for each step."""

    path: InputPath = Field(description="the .csv; a relative path starts where snakemake is run")
    run: SafeName = Field(description="name of the run")
    step: str = Field("step", description="column of the training step")
    tokens_per_step: float = Field(gt=0, description="tokens in a batch")
    shared: dict[SafeName, str] = Field(
        {},
        description="statistic -> its column, of statistics that know no tasks and stand under every task; the name "
        "generic_cross_entropy makes it that baseline",
    )
    tasks: dict[SafeName, WideTask] = Field(min_length=1, description="tasks by name")

    @model_validator(mode="after")
    def _apart(self) -> "WideCurve":
        for name, task in self.tasks.items():
            for statistic in task.statistics.keys() & self.shared.keys():
                raise ValueError(f"tasks.{name}.statistics.{statistic} is one of `shared` too; give it one name each")
        return self


def read_wide_curve(curve: WideCurve, metric: str) -> dict[str, pl.DataFrame]:
    """The tables "checkpoints", "targets" and "proxies" of the run, as far as `forecasting.forecast` needs them.

    Statistics stand there with the weighting "none". An empty cell is a checkpoint without that measurement.
    `InputError` for a column that is missing, a step that is none or stands there twice, a value that is no number, a
    truth beyond 0 to 1 where the metric is a share (`metrics.is_share`).
    """
    where = {"step": curve.step}
    where |= {f"shared.{name}": column for name, column in curve.shared.items()}
    for task, columns in curve.tasks.items():
        where[f"tasks.{task}.truth"] = columns.truth
        where |= {f"tasks.{task}.statistics.{name}": column for name, column in columns.statistics.items()}
    table = _read(curve.path, where)
    for task, columns in curve.tasks.items():
        for row in table.filter(outside_share(pl.col(columns.truth)) & is_share(metric)).head(1).iter_rows(named=True):
            raise InputError(
                f"{curve.path}, step {row[curve.step]:.0f}, column {columns.truth} (task {task}): "
                f"found {row[columns.truth]!r}; {about_share(metric, row[columns.truth])}"
            )
    if not is_unbounded(metric):
        truths = [value for columns in curve.tasks.values() for value in table[columns.truth].drop_nulls()]
        if mixed := mixed_units(truths):
            raise InputError(
                f"{curve.path}: found {mixed[1]!r}, but at most {mixed[0]!r} elsewhere in the truths of {metric}: "
                "percent beside fractions; give every value in the same unit, 0 to 1"
            )
    steps = table[curve.step].cast(pl.Int64)
    if len(steps) and steps.max() * curve.tokens_per_step > LARGEST_WHOLE:
        raise InputError(
            f"{curve.path}: step {steps.max()} times tokens_per_step {curve.tokens_per_step:g} is too large"
        )
    checkpoint = pl.Series("checkpoint", [f"{curve.run}-step{step}" for step in steps])

    def measured(column: str, **key: str) -> pl.DataFrame:
        values = pl.DataFrame({"checkpoint": checkpoint, "value": table[column]}).drop_nulls()
        return values.with_columns(**{name: pl.lit(text) for name, text in key.items()})

    targets = [
        measured(columns.truth, task=task, metric=metric).with_columns(n=pl.lit(columns.problems, pl.Int64))
        for task, columns in curve.tasks.items()
    ]
    proxies = [
        measured(column, task=task, tail="tokens", statistic=name, weighting="none").with_columns(
            standard_error=pl.lit(None, pl.Float64)
        )
        for task, columns in curve.tasks.items()
        for name, column in {**columns.statistics, **curve.shared}.items()
    ]
    checkpoints = pl.DataFrame(
        {
            "checkpoint": checkpoint,
            "run": curve.run,
            "step": steps,
            "tokens": (steps * curve.tokens_per_step).cast(pl.Int64),
        }
    )
    return {"checkpoints": checkpoints, "targets": pl.concat(targets), "proxies": pl.concat(proxies or [NO_PROXIES])}


NO_PROXIES = pl.DataFrame(
    schema=dict.fromkeys(("checkpoint", "task", "tail", "statistic", "weighting"), pl.String)
    | {"value": pl.Float64, "standard_error": pl.Float64}
)


def _read(path: Path, columns: dict[str, str]) -> pl.DataFrame:
    """The `columns` (key of the configuration -> name) as numbers; an empty cell is null."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; forecasting.curve.path names a .csv with a row for each step")
    table = read_csv(path)
    for key, name in columns.items():
        if name not in table.columns:
            raise InputError(f"{path}: forecasting.curve.{key}: no column {name!r}; found {_some(table.columns, name)}")
    names = list(dict.fromkeys(columns.values()))
    text = table.select(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in names)
    numbers = text.select(pl.col(name).cast(pl.Float64, strict=False) for name in names)
    step = columns["step"]
    for name in names:
        bad = ~numbers[name].is_finite().fill_null(False)
        for row in (bad & text[name].is_not_null() if name != step else bad).arg_true()[:1]:
            raise InputError(
                f"{path}, row {row + 2}, column {name}: found {told_value(table[name][row])}; it must be a number"
            )
    steps = numbers[step]
    is_wrong = ~steps.is_between(0, LARGEST_WHOLE) | (steps != steps.floor()) | ~steps.is_first_distinct()
    for row in is_wrong.arg_true()[:1]:
        raise InputError(
            f"{path}, row {row + 2}, column {step}: found {told_value(table[step][row])}; every row must have a step "
            "of its own, a whole number of at least 0"
        )
    return numbers.sort(step)


def _some(names: list[str], wanted: str) -> str:
    """The names most like the wanted one, and how many there are."""
    like = get_close_matches(wanted, names, n=3, cutoff=0.0)
    return f"{len(names)} columns, among them {', '.join(map(repr, told_names(like)))}"
