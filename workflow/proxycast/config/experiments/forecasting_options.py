"""How training runs are forecast: logs, curves, horizons."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from proxycast.options import LARGEST_NUMBER, InputPath, Options, SafeName, told_value
from proxycast.proxy_formulas import STATISTICS, WEIGHTINGS


class FitOptions(Options):
    """How curves and links are fitted."""

    loss: Literal["soft_l1", "least_squares"] = Field(
        "soft_l1",
        description="least_squares: the sum of z^2, where z is residual / scale; soft_l1: the sum of "
        "2 (sqrt(1 + z^2) - 1), which limits the effect of outliers",
    )
    loss_scale: float = Field(
        2.0,
        gt=0,
        description="soft_l1: scale of the residuals; larger residuals count as outliers. Unit: robust standard "
        "deviations (1.4826 median |residual|) of a least-squares fit.",
    )
    exponents: tuple[float, float] = Field(
        (0.01, 5.0), description="Smallest and largest exponent c. The table of fits notes a c at either bound."
    )

    without_trend: Literal["constant", "fit"] = Field(
        "constant",
        description="what to do where a curve or link is no better than a constant by BIC (values that rise and fall, "
        "or do not vary). constant: forecast a constant; fit: keep the fit, unless all values are equal",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "FitOptions":
        if not 0 < self.exponents[0] < self.exponents[1]:
            raise ValueError(f"exponents must be two positive numbers, the smaller first, found {self.exponents}")
        return self


def _as_mean(value: object) -> object:
    if not isinstance(value, str | dict):
        raise ValueError(
            f"found {told_value(value)}; give a column's name, or {{column: weight, ...}} for a weighted mean"
        )
    return {value: 1.0} if isinstance(value, str) else value


def _as_several(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


Weight = Annotated[float, Field(gt=0)]
# A column, or a weighted mean of several: column -> weight.
Column = Annotated[
    dict[str, Weight], Field(min_length=1), BeforeValidator(_as_mean, json_schema_input_type=str | dict[str, Weight])
]
LogFiles = Annotated[
    tuple[InputPath, ...],
    BeforeValidator(_as_several, json_schema_input_type=InputPath | tuple[InputPath, ...]),
]


class WideTask(Options):
    """Columns of one task. A mapping of columns to weights in the place of a column is their weighted mean."""

    truth: Column = Field(description="column of the metric that is forecast, or {column: weight, ...}")
    problems: int | None = Field(
        None, gt=0, description="number of problems that the truth is a mean over; gives its binomial noise"
    )
    statistics: dict[SafeName, Column] = Field(
        {}, description="statistic -> its column, or {column: weight, ...}; other tasks may have others"
    )


class LoggedRun(Options):
    """One run of a log, where it differs from the others."""

    path: LogFiles = Field((), description="files with rows of this run alone, beside those of `curve.path`")
    name: str | None = Field(
        None, min_length=1, description="what the log calls the run; without it the name that it has here"
    )
    parameters: float | None = Field(
        None, gt=0, description="N: parameters without the input embedding, for the compute 6 N D"
    )
    tokens_per_step: float | None = Field(None, gt=0, description="tokens per batch, in place of that of `curve`")
    fit_up_to_step: int | None = Field(
        None, gt=0, description="the cut of this run, in place of forecasting.fit_up_to_step"
    )


class WideCurve(Options):
    """Training runs in .csv or .parquet files with a row for each step and a column for each measurement.

    Rows are put together by run and step. An empty cell, or NaN, is no measurement.
    """

    path: LogFiles = Field(
        (), description="the file, or a list of files; a relative path starts where snakemake is run"
    )
    run: SafeName | None = Field(
        None,
        description="name of the only run. Without it and `run_column`, runs are what stands before the columns' "
        "names, as in `<run> - <column>` of a chart's export from W&B",
    )
    run_column: str | None = Field(None, description="column with the name of each row's run")
    runs: dict[SafeName, LoggedRun] = Field(
        {}, description="the runs that are read, and what is known of each; without it all that the files have"
    )
    step: str = Field("step", description="column of the training step")
    tokens: str | None = Field(None, description="column of the training tokens so far, in place of `tokens_per_step`")
    tokens_per_step: float | None = Field(None, gt=0, description="tokens per batch, of runs that give no other")
    parameters: str | None = Field(None, description="column of N, in place of `runs.<name>.parameters`")
    shared: dict[SafeName, Column] = Field(
        {},
        description="statistic -> its column, for statistics that are the same for every task; one named "
        "generic_cross_entropy is that baseline",
    )
    tasks: dict[SafeName, WideTask] = Field(min_length=1, description="tasks by name")

    @property
    def files(self) -> list[Path]:
        """Every file that is read, each once."""
        return list(dict.fromkeys([*self.path, *(file for run in self.runs.values() for file in run.path)]))

    @model_validator(mode="after")
    def _apart(self) -> "WideCurve":
        for name, task in self.tasks.items():
            for statistic in task.statistics.keys() & self.shared.keys():
                raise ValueError(f"tasks.{name}.statistics.{statistic} is also in `shared`; rename one of them")
        return self

    @model_validator(mode="after")
    def _one_way(self) -> "WideCurve":
        if not self.files:
            raise ValueError("path: missing; give the file of the log, or one for each of `runs`")
        if self.run and (self.run_column or self.runs):
            other = "run_column" if self.run_column else "runs"
            raise ValueError(f"run and {other}: found both; `run` names the only run")
        if self.run_column and not self.path:
            raise ValueError("run_column: is a column of the files of curve.path, which is missing")
        if self.tokens and (self.tokens_per_step or any(run.tokens_per_step for run in self.runs.values())):
            raise ValueError("tokens and tokens_per_step: found both; give the column or the number")
        if not self.tokens and not self.tokens_per_step:
            lacking = [name for name, run in self.runs.items() if not run.tokens_per_step]
            if lacking or not self.runs:
                where = f"runs.{lacking[0]}.tokens_per_step" if lacking else "tokens_per_step"
                raise ValueError(f"{where}: missing; give tokens per batch, or `tokens`, the column of tokens so far")
        if self.parameters and (given := [name for name, run in self.runs.items() if run.parameters]):
            raise ValueError(f"parameters and runs.{given[0]}.parameters: found both; give the column or the numbers")
        return self


class RunEnd(Options):
    """Where a run ends, as a step, tokens or compute: the last horizon."""

    run: SafeName | None = Field(None, description="the run that ends there; needed if a study has several")
    step: int | None = Field(None, gt=0, le=LARGEST_NUMBER, description="last training step")
    tokens: float | None = Field(None, gt=0, le=LARGEST_NUMBER, description="training tokens at the end")
    flops: float | None = Field(None, gt=0, le=1e30, description="training compute at the end, 6 N D. Unit: FLOPs")

    @model_validator(mode="after")
    def _bounded_numbers(self) -> "RunEnd":
        """The bounds above take the place of the one of all options: real runs take more FLOPs than that."""
        return self

    @model_validator(mode="after")
    def _one(self) -> "RunEnd":
        given = [key for key in ("step", "tokens", "flops") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"found {' and '.join(given) or 'none'}; give one of step, tokens and flops")
        return self


class ForecastModel(Options):
    """A model that the two-step law forecasts from the study's runs: one that is yet to be trained, or a run of them.

    Under the name of a run of the log, or of the checkpoints, it is that run: its last checkpoint is the truth, and it
    is no run that is fitted or forecast.
    """

    parameters: float | None = Field(None, gt=0, description="N, as the runs count it")
    tokens: float | None = Field(None, gt=0, description="training tokens D; those of a run are known")


GENERIC_CROSS_ENTROPY = "generic_cross_entropy"
BASELINE_SERIES = (GENERIC_CROSS_ENTROPY, "expert_cross_entropy", "bits_per_byte")
Link = Literal["linear", "logistic"]


class ForecastingOptions(Options):
    """Forecasts of training runs."""

    curve: WideCurve | None = Field(None, description="logs of training runs; no model is run")
    fit_up_to_step: int | None = Field(
        None,
        gt=0,
        description="the cut: the last training step that forecasts may use. Without it, the last step of the run that "
        "`end` is about, so that everything known of it is used",
    )
    end: RunEnd | None = Field(
        None, description="where a run will end; its score there is forecast, beside those at `horizons` before"
    )
    models: dict[SafeName, ForecastModel] = Field(
        {},
        description="models, larger or trained for longer than the runs, that the two-step law over N and D forecasts "
        "from them; {} for a name that is a run's",
    )
    fit_from_step: int = Field(1, ge=1, description="first step that is fitted; the untrained model follows no curve")
    horizons: tuple[Annotated[float, Field(gt=1)], ...] = Field(
        (2, 4, 9, 18), min_length=1, description="What is forecast. Unit: multiples of the compute at the cut."
    )
    at_horizon: Literal["nearest", "mean"] = Field(
        "nearest",
        description="the truth at a horizon: of the nearest checkpoint, or the mean over all within the tolerance",
    )
    horizon_tolerance: float = Field(
        0.1, gt=0, lt=1, description="How far from a horizon a checkpoint may lie. Unit: share of the horizon."
    )
    proxies: tuple[str, ...] = Field(
        (
            *("cross_entropy/uniform", "top1_accuracy/uniform", "top5_accuracy/token_frequency"),
            *("reciprocal_rank/uniform", "margin/uniform"),
        ),
        description="proxies fixed in advance: statistic/weighting, or a statistic of `curve` (without this key, all "
        "of them). Each makes a forecast; the method pooled is the median of these",
    )
    links: tuple[Link, ...] = Field(
        ("linear",),
        min_length=1,
        description="functions that turn a statistic into the truth; each gives separate methods",
    )
    fit: FitOptions = Field(FitOptions(), description="how curves and links are fitted")
    smoothing: int = Field(
        0,
        ge=0,
        description="Neighbours on each side that a checkpoint is averaged with before the fit, none beyond the cut.",
    )
    clip: bool = Field(
        True,
        description="limit statistics to their range (accuracy: 0 to 1; cross-entropy: above 0) and the truth to 0 to "
        "1, if all fitted checkpoints lie there. Curves do not know these limits. A loss has no upper limit.",
    )
    rehearsal: float | None = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the cut that is fitted to forecast the rest up to the cut. The best method there is the "
        "one chosen in advance. The share is widened if it holds too few checkpoints for a fit. With null, or if "
        "nothing can be fitted, none is chosen.",
    )
    bootstrap_replicates: int = Field(500, ge=100, description="Bootstrap samples for every interval.")
    block: int = Field(2, gt=0, description="Number of neighbouring checkpoints whose residuals are drawn together.")
    confidence: float = Field(0.9, gt=0, lt=1, description="Probability that an interval covers.")
    intervals: Literal["conformal", "noise"] = Field(
        "conformal",
        description="what intervals tell of. noise: of the noise of checkpoints and solutions, by a bootstrap; "
        "conformal: also of curves that are wrong, by how far forecasts from earlier cuts have missed",
    )
    seed: int = Field(0, ge=0, description="Seed of the bootstrap's random numbers.")

    @model_validator(mode="after")
    def _known(self) -> "ForecastingOptions":
        forecast = self.curve and [run for name, run in self.curve.runs.items() if name not in self.models]
        own_cuts = forecast and all(run.fit_up_to_step for run in forecast)
        if self.fit_up_to_step is None and self.end is None and not own_cuts:
            raise ValueError(
                "fit_up_to_step: missing; give the cut, or `end` to forecast from all that is known so far"
            )
        if self.fit_up_to_step and self.fit_from_step >= self.fit_up_to_step:
            raise ValueError(f"fit_from_step: {self.fit_from_step} is not before fit_up_to_step, {self.fit_up_to_step}")
        for key in ("horizons", "proxies", "links"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} names something twice: {', '.join(map(str, values))}")
        if self.curve:
            return self._with_statistics_of(self.curve)
        if not self.proxies:
            raise ValueError("proxies: found none; name at least one")
        for name in self.proxies:
            statistic, _, weighting = name.partition("/")
            if name not in BASELINE_SERIES and not (statistic in STATISTICS and weighting in WEIGHTINGS):
                raise ValueError(
                    f"proxies: {name!r} is no statistic/weighting; statistics are {', '.join(STATISTICS)}; weightings "
                    f"are {', '.join(WEIGHTINGS)}; baselines are {', '.join(BASELINE_SERIES)}"
                )
        return self

    def proxies_of(self, task: str) -> tuple[str, ...]:
        """The proxies that a task has: in a log, tasks may have different statistics."""
        if self.curve is None:
            return self.proxies
        known = {*self.curve.shared, *self.curve.tasks[task].statistics}
        return tuple(name for name in self.proxies if name in known)

    def _with_statistics_of(self, curve: WideCurve) -> "ForecastingOptions":
        """Every proxy is a statistic of the curve; where none are named, all of its statistics are proxies."""
        known = list(
            dict.fromkeys([*curve.shared, *(name for task in curve.tasks.values() for name in task.statistics)])
        )
        if "proxies" not in self.model_fields_set:
            self.__dict__["proxies"] = tuple(known)  # the model is frozen
        for name in self.proxies:
            if name not in known:
                raise ValueError(f"proxies: {name!r} is no statistic of `curve`; known are {known}")
        for name, run in curve.runs.items():
            if run.fit_up_to_step and self.fit_from_step >= run.fit_up_to_step:
                raise ValueError(
                    f"curve.runs.{name}.fit_up_to_step: {run.fit_up_to_step} is not after fit_from_step, "
                    f"{self.fit_from_step}"
                )
        return self
