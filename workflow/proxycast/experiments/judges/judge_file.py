"""The format of judge.json: what a study with a truth learned of its proxies or scorers, for use in another one.

A file may be somebody else's: it is read without trust. An unknown key, a value of another type, a NaN and another
version of the format are errors. docs/reference/judge.md lists every key.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from proxycast.config.errors import parse
from proxycast.config.extraction import ExtractionOptions
from proxycast.options import InputError, SafeName, ShownName, json_value, require_regular, told_value
from proxycast.proxy_formulas import ProxyOptions
from proxycast.tables import NAME, write_json

FORMAT = 1
LARGEST_FILE = 200_000_000  # bytes; a judge of all of DataDecide has a hundredth of it
Kind = Literal["data_selection", "model_selection"]
Form = Literal["linear", "logistic"]
CandidateName = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]  # a corpus, or the name of a checkpoint


class Part(BaseModel):
    """A group of keys of judge.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Share(Part):
    """A share or a correlation with its interval over candidates; ends are null where it would be too certain."""

    value: float | None = Field(description="decision accuracy, or Spearman's rho; null where it is undefined")
    low: float | None = Field(description="lower end of its interval")
    high: float | None = Field(description="upper end of its interval")


class Link(Part):
    """From a score to the metric: y = a + b (x - mean) / sd + error, of y or, logistic, of ln(y / (1 - y))."""

    form: Form = Field(description="whether y is the metric itself or its log-odds")
    mean: float = Field(description="mean of the scores x that it was fitted to")
    sd: float = Field(gt=0, description="their standard deviation, divisor n")
    intercept: float = Field(description="a")
    slope: float = Field(description="b, for one standard deviation of x")
    residual_variance: float = Field(ge=0, description="residual sum of squares over n - 2, on the scale of y")
    n: int = Field(ge=3, description="candidates behind the fit")
    lowest: float = Field(description="least of the scores x")
    highest: float = Field(description="greatest of them")
    left_out_error: dict[Form, float] = Field(
        description="root mean squared error of each form on candidates that were left out, one by one; in the metric"
    )


class CorpusProxy(Part):
    """A proxy named in advance, at a size and step of the small models."""

    statistic: ShownName = Field(description="statistic, or name of a baseline")
    weighting: ShownName = Field(description="weighting, or `none`")
    sign: Literal[1, -1] = Field(description="-1 where a lower value is better; scores are value times sign")
    size: ShownName = Field(description="size of the small models")
    parameters: int = Field(gt=0, description="N, without the input embedding")
    step: int = Field(ge=0, description="training step of the checkpoint")
    tokens: int = Field(ge=0, description="D, training tokens")
    step_fraction: float = Field(description="step over the last step of this size")
    compute_fraction: float = Field(description="6 N D of a small run over that of one target run")
    seeds: int = Field(gt=0, description="seeds that the scores are a mean over")
    corpora: int = Field(gt=0, description="corpora that were compared")
    single: Share = Field(description="decision accuracy of one small run for each corpus")
    mean: Share = Field(description="decision accuracy of the mean over seeds")
    link: Link | None = Field(description="score, mean over tasks and seeds, to metric; null where none can be fitted")


class ScorerTask(Part):
    """A task that a scorer was taught: how its proxies are standardised, and what its score says of the metric."""

    means: list[float] = Field(description="mean of each proxy over the models")
    sds: list[float] = Field(description="standard deviation (divisor n); 0: constant, counts nothing")
    link: Link | None = Field(description="score to metric; its errors are of models that were left out")


class FittedScorer(Part):
    """A linear scorer, fitted to all models and tasks."""

    scorer: ShownName = Field(description="name of the scorer")
    tail: Literal["tokens", "bytes"] = Field(description="tail that its proxies are taken over")
    statistics: list[ShownName] = Field(description="statistic of each proxy with a coefficient other than 0")
    weightings: list[ShownName] = Field(description="its weighting")
    coefficients: list[float] = Field(description="of the standardised proxies, signed so that higher is better")
    two_tasks: Share = Field(description="Spearman's rho on pairs of tasks that were held out")
    family: Share = Field(description="the same, where a family of models was held out too")
    tasks: dict[ShownName, ScorerTask] = Field(description="task -> standardisation and link")


class Metric(Part):
    """The downstream metric that was the truth."""

    name: SafeName = Field(description="name of the metric")
    higher_is_better: bool = Field(description="false for errors and losses")
    bounds: list[float] | None = Field(min_length=2, max_length=2, description="possible values; null: no bounds")
    lowest: float = Field(description="least value of a candidate, mean over seeds and tasks")
    highest: float = Field(description="greatest")
    ceiling: Share = Field(description="noise ceiling: of decision accuracy, or of Spearman's rho")
    verdict: ShownName = Field(description="how far the truth can be trusted, in a word")


class TaskSeen(Part):
    """A task and the solutions that were read."""

    name: ShownName = Field(description="name of the task")
    solutions: int | None = Field(description="expert solutions; null where no model read any")
    tokens: int | None = Field(description="scored tokens of one model")


class Reading(Part):
    """Options that change the values of proxies."""

    proxies: ProxyOptions = Field(description="the study's `proxies`")
    tail_tokens: int = Field(gt=0, description="tokens scored at the end of a solution")
    tail_bytes: int | None = Field(gt=0, description="bytes of the second tail, if there is one")
    chat_template: bool = Field(description="whether prompts are in a chat template")
    leading_space: ShownName = Field(description="`strip` or `keep`")
    windowing: bool = Field(description="whether long texts are read in windows")
    window_stride: float = Field(description="share of the context by which a window moves")
    last_checkpoints: int = Field(1, gt=0, description="checkpoints of a run whose mean is a value")


class Origin(Part):
    """Where the judge comes from."""

    proxycast: ShownName = Field(description="version of proxycast")
    date: ShownName = Field(description="day, UTC")
    tables: dict[ShownName, ShownName] = Field(description="table -> fingerprint of what it was made from")


class Judge(Part):
    """What a study with a truth learned."""

    format: Literal[FORMAT] = Field(description="version of this format")
    study: SafeName = Field(description="name of the study")
    kind: Kind = Field(description="`data_selection` or `model_selection`")
    metric: Metric = Field(description="the truth")
    target_size: ShownName | None = Field(description="size of the target models of a data selection")
    target_flops: float | None = Field(description="6 N D of one target run")
    candidates: list[CandidateName] = Field(description="corpora or models that had a truth")
    tasks: list[TaskSeen] = Field(min_length=1, description="tasks; scores and metric are means over them")
    reading: Reading | None = Field(description="options; null where no model was run")
    tokenizers: list[ShownName] = Field(description="fingerprints of the tokenizers; empty: unknown")
    corpus_proxies: list[CorpusProxy] = Field(description="data selection: proxies named in advance, at every budget")
    scorers: list[FittedScorer] = Field(description="model selection: linear scorers")
    origin: Origin = Field(description="provenance")


def reading_of(proxies: ProxyOptions, extraction: ExtractionOptions, last_checkpoints: int = 1) -> Reading:
    of_extraction = extraction.model_dump(include=set(Reading.model_fields))
    return Reading(proxies=proxies, last_checkpoints=last_checkpoints, **of_extraction)


def read_judge(path: Path | str) -> Judge:
    """The judge in a file. `InputError` names the file and key, what was found and what would be right."""
    return parse_judge(judge_values(Path(path)), str(path))


def judge_values(path: Path) -> dict:
    """What a file of JSON holds, as far as it can be a judge of this version; `InputError` otherwise."""
    require_regular(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; a study with a truth writes data_selection/judge.json")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path}: found {path.stat().st_size:,} bytes; a judge has at most {LARGEST_FILE:,}")
    try:
        value = json_value(path.read_bytes())
    except (ValueError, OSError):
        raise InputError(
            f"{path}: cannot be read as JSON: damaged, or no judge; copy judge.json of the judged study again"
        ) from None
    if not isinstance(value, dict) or "format" not in value:
        raise InputError(f"{path}: format: missing; this is no judge.json of a judged study")
    if value["format"] != FORMAT:
        raise InputError(
            f"{path}: format: found {told_value(value['format'])}; this version of proxycast reads {FORMAT}; make the "
            "file again with this version"
        )
    return value


def parse_judge(values: dict, where: str) -> Judge:
    """The judge, after a check of what the types cannot say: something was learned, and lists have one length."""
    judge = parse(Judge, values, where)
    key = "corpus_proxies" if judge.kind == "data_selection" else "scorers"
    if not getattr(judge, key):
        raise InputError(f"{where}: {key}: found none; a judge of {judge.kind} needs at least one")
    for number, scorer in enumerate(judge.scorers):
        lists = [scorer.statistics, scorer.weightings, scorer.coefficients]
        lists += [values for task in scorer.tasks.values() for values in (task.means, task.sds)]
        if not scorer.statistics:
            raise InputError(f"{where}: scorers[{number}].statistics: found none; a scorer needs at least one proxy")
        if len({len(values) for values in lists}) > 1:
            raise InputError(
                f"{where}: scorers[{number}]: statistics, weightings, coefficients, means and sds differ in length"
            )
    return judge


def write_judge(judge: Judge, path: Path) -> None:
    write_json(judge.model_dump(mode="json"), path)
