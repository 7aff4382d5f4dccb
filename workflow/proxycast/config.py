"""The configuration: what a study uses, read from YAML into strict models, with errors that say what would be right.

A study (config/config.yaml) names suites; a suite is a folder of corpora and a folder of tasks, one small file each.
This module is the only one that knows where these files lie. It composes the options that the other modules define
beside the code that uses them.
"""

import difflib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from proxycast.corpora import Corpus
from proxycast.engines import ExtractionOptions
from proxycast.files import RULES, Files
from proxycast.forecasting import ForecastingOptions
from proxycast.harness import Harness, HarnessTask
from proxycast.hub import HubOptions
from proxycast.ladder import Ladder
from proxycast.metrics import is_error
from proxycast.miniature.suite import FAMILY_NAMES, Suite
from proxycast.model_selection import FEWEST_TASKS, ModelSelectionOptions
from proxycast.models import ReleasedModel
from proxycast.options import (
    DEEPEST,
    InputError,
    InputPath,
    Options,
    SafeName,
    ShownName,
    require_regular,
    told_reason,
    told_value,
    unfolded,
)
from proxycast.proxies import STATISTICS, WEIGHTINGS, ProxyOptions
from proxycast.ranking import SelectionOptions
from proxycast.solutions import GENERIC_TEXT
from proxycast.templates import Rows
from proxycast.wide_curve import WideCurve
from proxycast.writers import Writer

CONFIG = Path("config")
LONGEST_YAML = 10_000_000  # characters
FROZEN = "frozen"  # key of a study that holds the files it names as they were when Snakemake started
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, and ten times as fast where it is compiled
LONGEST_PATTERN = 2000  # characters; to compile sets of Unicode's letters takes milliseconds for each
PUBLISHED_TASK = "olmes_10"  # the mean over the ten OLMES tasks: all that is published of small models
Model = TypeVar("Model", bound=Options)


class Task(Options):
    """A downstream task: expert solutions from a file, from rows of a data set, or from the miniature suite."""

    name: SafeName = Field(description="name of the task; it becomes part of file names")
    description: str = Field("", description="what the task asks, in a sentence")
    family: SafeName | None = Field(None, description="miniature suite: the family of problems")
    solutions: InputPath | None = Field(
        None, description="JSONL or parquet with id, prompt, solution (answer, choices, writer)"
    )
    rows: Rows | None = Field(None, description="rows of a data set and templates that make solutions of them")
    answer_pattern: str | None = Field(
        None,
        max_length=LONGEST_PATTERN,
        description="regular expression; its group 1 finds the answer in generated text; without it no exact match",
    )
    max_new_tokens: int = Field(16, gt=0, description="tokens generated for the exact match")
    lm_eval: HarnessTask | None = Field(
        None, description="how lm-eval measures the task, in a study with `target.lm_eval`; else it is measured here"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "Task":
        if [self.family, self.solutions, self.rows].count(None) != 2:
            raise ValueError("a task has a family, a solutions file or rows, exactly one of the three")
        return self

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_with_a_group(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern or "()").groups
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{told_value(pattern)} is no regular expression: {error}") from None
        if groups < 1:
            raise ValueError(f"{pattern!r} has no group; put the answer in parentheses")
        return pattern


class Target(Options):
    """The truth that is to be predicted."""

    size: SafeName | None = Field(
        None,
        description="data selection: model size whose ranking of the corpora is the truth; without it none is made",
    )
    metric: SafeName = Field(
        "multiple_choice_accuracy",
        description="downstream metric; the mean over seeds counts. A share (accuracy, exact match) lies in 0 to 1",
    )
    higher_is_better: bool = Field(
        True, description="whether more of the metric is better; must be given where its name tells of an error or loss"
    )
    other_metrics: list[SafeName] = Field(
        [], description="further truths of the same checkpoints, each with its decision accuracy and noise ceiling"
    )
    lower_is_better: list[SafeName] = Field(
        [], description="metrics of the truth, other than `metric`, of which less is better: errors, losses"
    )
    table: InputPath | None = Field(
        None,
        description="csv or parquet with checkpoint, task, metric, value, n; "
        "without it the checkpoints are evaluated here; n may be empty where it is unknown",
    )
    evaluations: Files | None = Field(
        None, description="published evaluations in the format of allenai/DataDecide-eval-results (parquet), as a table"
    )
    lm_eval: Harness | None = Field(
        None,
        description="downstream scores by lm-eval, of the tasks that say how (`lm_eval`); the others are measured here",
    )
    parameters: int | None = Field(
        None,
        gt=0,
        description="N of the target, where only a table knows it (no corpus and no ladder has its size); of a mixture "
        "of experts the parameters that a token meets",
    )
    tokens: int | None = Field(None, gt=0, description="tokens that the target saw in training (D), likewise")

    @property
    def measured_here(self) -> bool:
        """Whether the target's checkpoints are evaluated by this study; else their weights are not needed."""
        return self.table is None and self.evaluations is None

    @model_validator(mode="after")
    def _one_origin(self) -> "Target":
        given = [key for key in ("table", "evaluations", "lm_eval") if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different origins of the truth; give one of them")
        return self

    @model_validator(mode="after")
    def _directions(self) -> "Target":
        if is_error(self.metric) and "higher_is_better" not in self.model_fields_set:
            raise ValueError(
                f"higher_is_better: missing; the metric {self.metric!r} may be one of which less is better"
            )
        if self.metric in self.lower_is_better:
            raise ValueError(f"lower_is_better names {self.metric!r}, which is `metric`; give higher_is_better: false")
        for name in self.other_metrics:
            if is_error(name) and name not in (self.metric, *self.lower_is_better):
                raise ValueError(f"other_metrics: {name!r} sounds like an error or a loss; name it in lower_is_better")
        return self

    def sign(self, metric: str) -> int:
        """1 where more of the metric is better, -1 where less is."""
        lower = not self.higher_is_better if metric == self.metric else metric in self.lower_is_better
        return -1 if lower else 1


class LadderChoice(Options):
    """The part of a ladder (config/ladders/<name>.yaml) that a study looks at."""

    name: SafeName = Field(description="name of the ladder")
    sizes: Literal["all"] | list[SafeName] = Field("all", description="sizes whose checkpoints are scored")
    seeds: Literal["all"] | list[int] = Field("all", description="training seeds, of the target too")
    checkpoints: Literal["all", "last"] | Annotated[int, Field(ge=1)] = Field(
        1,
        description="a number n: every n-th checkpoint of the ladder's rule, counted back from a run's last; "
        "last: that one; all: also those that only some runs have",
    )
    first_step: int = Field(
        1, ge=0, description="checkpoints of earlier steps are left out; 0: the untrained model too"
    )


class Proxy(Options):
    """One of the 80 proxies; or, with the weighting none, a baseline."""

    statistic: ShownName = Field(description="core statistic")
    weighting: str = Field("uniform", description="weighting of the tokens")

    @model_validator(mode="after")
    def _known(self) -> "Proxy":
        if self.weighting == "none":
            return self
        for key, known in (("statistic", STATISTICS), ("weighting", WEIGHTINGS)):
            value = getattr(self, key)
            if value not in known:
                raise ValueError(f"{key} {value!r} is unknown{closest(value, known)}; known are {', '.join(known)}")
        return self


class Budget(Options):
    """A small-model budget at which proxies are compared."""

    name: ShownName = Field(description="short name, used in figures")
    size: SafeName = Field(description="model size")
    step: int = Field(ge=0, description="training step")


class Study(Options):
    """One study: corpora, tasks, truth, and how proxies are extracted and judged."""

    study: SafeName = Field(description="name of the study; results go to results/<study>")
    corpora: dict[SafeName, Literal["all"] | list[SafeName]] = Field(
        {}, description="suites of corpora (folders of config/corpora): 'all' or names"
    )
    models: dict[SafeName, Literal["all"] | list[SafeName]] = Field(
        {}, description="suites of released models (folders of config/models): 'all' or names"
    )
    tasks: dict[SafeName, Literal["all"] | list[SafeName]] = Field(
        {}, description="suites of tasks (folders of config/tasks): 'all' or names"
    )
    writers: dict[SafeName, Writer] = Field(
        {},
        description="strong models that write expert solutions of all tasks, beside those that are given; needed by "
        "tasks without any",
    )
    generic_text: InputPath | Rows | None = Field(
        None,
        description="text for the generic cross-entropy: a JSONL like a solutions file, with empty prompts, or rows of "
        "a data set; the miniature suite has its own",
    )
    miniature: Suite | None = Field(None, description="the suite that trains itself; needed by corpora with a recipe")
    ladder: LadderChoice | None = Field(None, description="model sizes, steps and training that the corpora share")
    hub: HubOptions = Field(HubOptions(), description="how weights and data sets are fetched from the hub")
    published: InputPath | None = Field(
        None, description="folder of DataDecide's published measurements; the study judges them and runs no model"
    )
    target: Target = Field(description="the truth")
    jobs: Literal["run", "corpus"] = Field(
        "run",
        description="one scoring job for each training run, or for all runs of a corpus "
        "(small models: fewer start-ups)",
    )
    extraction: ExtractionOptions = Field(ExtractionOptions(), description="how token statistics are made")
    proxies: ProxyOptions = Field(ProxyOptions(), description="choices that the method leaves open")
    selection: SelectionOptions = Field(SelectionOptions(), description="intervals and thresholds of the comparison")
    highlighted: list[Proxy] = Field(
        [], description="data selection: proxies fixed in advance; figures of one show the first"
    )
    budgets: list[Budget] = Field(
        [], description="data selection: small-model budgets fixed in advance; figures of one are drawn for each"
    )
    model_selection: ModelSelectionOptions | None = Field(
        None, description="choose among models: scorers learned on some tasks, judged on the others"
    )
    replay: InputPath | None = Field(
        None,
        description="for tests of the workflow alone: token statistics (parquet) that stand for every checkpoint, none "
        "of which is downloaded or run; the numbers mean nothing",
    )
    forecasting: ForecastingOptions | None = Field(
        None, description="forecast training runs: curves fitted to early checkpoints, judged by the later ones"
    )


class Plan(BaseModel):
    """A study with the files it names, all of them checked against each other."""

    study: Study
    corpora: list[Corpus]  # released models too, each as a corpus with one checkpoint
    tasks: list[Task]
    corpus_files: dict[str, Path]  # corpus or model name -> its file
    ladder: Ladder | None
    where: str  # the study's file, for errors
    models: list[ReleasedModel] = []
    files: dict[Path, dict] = {}  # every YAML file that the study reads, and what it held

    @cached_property
    def results(self) -> Path:
        return Path("results") / self.study.study

    @property
    def task_names(self) -> list[str]:
        if self.curve:
            return list(self.curve.tasks)
        return [PUBLISHED_TASK] if self.study.published else [task.name for task in self.tasks]

    @property
    def runs_models(self) -> bool:
        """Whether models are run at all; else everything that is judged was measured and published by others."""
        return self.study.published is None and self.curve is None

    @property
    def curve(self) -> WideCurve | None:
        """A training curve that others logged, if the study forecasts one."""
        return self.study.forecasting.curve if self.study.forecasting else None

    @property
    def selects_data(self) -> bool:
        """Whether small models are to rank the corpora as models of the target's size do."""
        return self.study.target.size is not None

    @property
    def solution_names(self) -> list[str]:
        """Every task, and the generic text: what checkpoints read."""
        return [*self.task_names, GENERIC_TEXT] if self.runs_models else []

    @property
    def harness_tasks(self) -> list[Task]:
        """Tasks that lm-eval measures."""
        return [task for task in self.tasks if task.lm_eval] if self.study.target.lm_eval else []

    @property
    def measured_tasks(self) -> list[Task]:
        """Tasks that scoring jobs measure themselves, by multiple choice and exact match."""
        by_harness = {task.name for task in self.harness_tasks}
        return [task for task in self.tasks if task.name not in by_harness] if self.study.target.measured_here else []

    def corpus(self, name: str) -> Corpus:
        return next(corpus for corpus in self.corpora if corpus.name == name)

    def solutions_source(self, task: str) -> Path:
        """The file that a task's expert solutions are copied from; of rows, the file that they are rendered to."""
        if self.rows(task):
            return self.results / "solutions" / f"{task}.jsonl"
        if task == GENERIC_TEXT:
            return self.study.generic_text or self.results / "suite" / "generic_text.jsonl"
        found = next(entry for entry in self.tasks if entry.name == task)
        return found.solutions or self.results / "suite" / "problems" / f"{found.family}.jsonl"

    def rows(self, task: str) -> Rows | None:
        """The rows that a task's solutions, or the generic text, are rendered from."""
        if task == GENERIC_TEXT:
            return self.study.generic_text if isinstance(self.study.generic_text, Rows) else None
        return next(entry for entry in self.tasks if entry.name == task).rows

    def file_sets(self) -> dict[str, Files]:
        """Name -> files of every data set that the study reads, from this machine or from the hub."""
        found: dict[str, Files] = {f"solutions-{name}": self.rows(name) for name in self.solution_names}
        found["evaluations"] = self.study.target.evaluations
        for corpus in self.corpora:
            found |= {
                f"text-{corpus.name}-{n}": source for n, source in enumerate(corpus.text.mixture if corpus.text else [])
            }
        return {name: files for name, files in found.items() if files}

    @property
    def published_names(self) -> dict[str, str]:
        """What others call a corpus -> its name here."""
        return {corpus.display_name or corpus.name: corpus.name for corpus in self.corpora}

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer of the models that are trained here, and of the ladder's."""
        if self.ladder is None:
            return self.results / "suite" / "tokenizer"
        return Path(self.ladder.tokenizer.folder or self.results / "tokenizer")

    @property
    def vocabulary(self) -> int | None:
        """Tokens that all models have an embedding for; None where models of other tokenizers may stand beside them."""
        if not self.selects_data:
            return None
        suite = self.study.miniature
        return suite.vocabulary if suite else self.ladder.vocabulary if self.ladder else None

    def file_set_origin(self, name: str) -> str:
        """The file and key that one of the `file_sets` comes from, for errors."""
        for corpus in self.corpora:
            for number in range(len(corpus.text.mixture) if corpus.text else 0):
                if name == f"text-{corpus.name}-{number}":
                    return f"{self.corpus_files[corpus.name]}: text.mixture[{number}]"
        task = name.removeprefix("solutions-")
        if name == "evaluations" or task == GENERIC_TEXT:
            return f"{self.where}: {'target.evaluations' if name == 'evaluations' else GENERIC_TEXT}"
        return f"{self.where}: task {task}: rows"

    def data_folder(self, name: str) -> Path:
        """Where the files of a data set of the hub are downloaded to."""
        return self.results / "data" / name


def load_plan(study: dict, where: str, config: Path = CONFIG) -> Plan:
    """Check the study's values, its corpora and tasks, and all of them together. `where` names its file in errors.

    A study that was `frozen` is what it was then, whatever has become of the files.
    """
    try:
        unfolded(study)
    except ValueError as error:  # Snakemake has read it
        raise InputError(f"{where}: {error}") from None
    frozen = study.get(FROZEN)
    if frozen:
        study, where = {key: value for key, value in study.items() if key != FROZEN}, frozen["where"]
    checked = _parse(Study, study, where)
    files = {Path(file): values for file, values in frozen["files"].items()} if frozen else _read_files(checked, config)
    corpora = _read_suites(Corpus, checked.corpora, config / "corpora", where, "corpora", files)
    models = _read_suites(ReleasedModel, checked.models, config / "models", where, "models", files)
    corpora |= {file: model.as_corpus() for file, model in models.items()}
    _require_distinct(corpora)
    tasks = _read_suites(Task, checked.tasks, config / "tasks", where, "tasks", files)
    plan = Plan(
        study=checked,
        corpora=list(corpora.values()),
        models=list(models.values()),
        tasks=list(tasks.values()),
        corpus_files={corpus.name: file for file, corpus in corpora.items()},
        ladder=_read_ladder(checked.ladder, config / "ladders", where, files) if checked.ladder else None,
        where=where,
        files=files,
    )
    _check_together(plan, where)
    return plan


def frozen(study: dict, plan: Plan, code: dict[str, str]) -> dict:
    """The study's values with all that a job reads beside them, so that no later edit reaches a job: JSON values.

    `code`: script -> fingerprint, as the jobs' parameters have it.
    """
    files = {str(file): values for file, values in plan.files.items()}
    return study | {FROZEN: {"where": plan.where, "files": files, "code": code}}


def _read_files(study: Study, config: Path) -> dict[Path, dict]:
    """Every YAML file of the study's suites, and its ladder."""
    suites = {"corpora": study.corpora, "models": study.models, "tasks": study.tasks}
    folders = [config / kind / suite for kind, names in suites.items() for suite in names]
    files = [file for folder in folders for file in folder.glob("*.yaml")]
    files += [file for file in (config / "ladders").glob("*.yaml") if study.ladder and file.stem == study.ladder.name]
    return {file: read_yaml(file) for file in sorted(files)}


def _read_ladder(choice: LadderChoice, folder: Path, where: str, files: Mapping[Path, dict]) -> Ladder:
    file = folder / f"{choice.name}.yaml"
    if file not in files:
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise InputError(f"{where}: ladder.name: no file {file}{closest(choice.name, known)}; there are {known}")
    ladder = _parse(Ladder, files[file], str(file))
    for size in choice.sizes if choice.sizes != "all" else []:
        if size not in ladder.sizes:
            known = f"{closest(size, ladder.sizes)}; known are {', '.join(ladder.sizes)}"
            raise InputError(f"{where}: ladder.sizes: {size!r} is no size of {file}{known}")
    names = {seed for size in ladder.sizes for seed in ladder.seeds_of(size)}
    for seed in choice.seeds if choice.seeds != "all" else []:
        if seed not in names:
            raise InputError(f"{where}: ladder.seeds: {seed} is no seed of {file}; known are {sorted(names)}")
    return ladder


class _Loader(YAML_LOADER):
    """PyYAML takes the last of two values with one key; here that is an error."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Looks at the keys before `<<` brings others, which may be overridden."""
        seen = self.__dict__.setdefault("flattened", {})
        if id(node) not in seen:
            seen[id(node)] = node  # held, or its place in memory may become another's
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            there = set()
            for key in keys:
                value = self.construct_object(key)
                if value in there:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {told_value(value)} stands there twice; give it once", key.start_mark
                    )
                there.add(value)
        super().flatten_mapping(node)


def _of_yaml(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the line: the file may be another one than was meant."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{(problem or 'a character that YAML does not allow')[:80]}{where}"


def require_keys_once(path: Path) -> None:
    """`InputError` for a study's file in which a key stands twice: Snakemake, which reads it, takes the last.

    As Snakemake does, it takes a file for JSON that can be read as such.
    """
    if not path.is_file():  # a pipe, which Snakemake has read
        return
    try:
        json.loads(path.read_text(encoding="utf8"), object_pairs_hook=lambda pairs: _once(pairs, path))
    except InputError:
        raise
    except (ValueError, RecursionError):
        read_yaml(path)


def _once(pairs: list[tuple[str, object]], path: Path) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError(
            f"{path}: key {told_value(_repeated([key for key, _ in pairs]))} stands there twice; give it once"
        )
    return found


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file; an error that names the file if it is absent, broken or no mapping."""
    require_regular(path)
    try:
        text = path.read_text(encoding="utf8")
        _require_bounded(text)
        value = yaml.load(text, Loader=_Loader)
        unfolded(value)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {_of_yaml(error)}") from None
    except (OSError, ValueError, RecursionError, OverflowError, TypeError) as error:  # no UTF-8, a 13th month, too deep
        raise InputError(f"{path}: cannot be read ({told_reason(error)}); give a file of YAML") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a {type(value).__name__}, expected a mapping of keys to values")
    return value


def _require_bounded(text: str) -> None:
    """Raise `ValueError` for YAML that is too large, or nested so deeply that reading it fails."""
    if len(text) > LONGEST_YAML:
        raise ValueError(f"found {len(text):,} characters; a file of the configuration has at most {LONGEST_YAML:,}")
    depth = 0
    for event in yaml.parse(text, Loader=YAML_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")


def _read_suites(
    model: type[Model],
    suites: dict[str, str | list[str]],
    folder: Path,
    where: str,
    key: str,
    files: Mapping[Path, dict],
) -> dict[Path, Model]:
    """File -> content for every corpus (or task) that the study uses, in the order of the file names."""
    used: dict[Path, Model] = {}
    for suite, names in suites.items():
        of_suite = {file: values for file, values in files.items() if file.parent == folder / suite}
        if not of_suite:
            raise InputError(f"{where}: {key}: suite {suite!r} has no files in {folder / suite}")
        found = {file: _parse(model, values, str(file)) for file, values in of_suite.items()}
        available = {item.name for item in found.values()}
        if names != "all":
            if len(set(names)) < len(names):
                raise InputError(f"{where}: {key}.{suite} names {_repeated(names)!r} twice")
            for name in names:
                if name not in available:
                    close = closest(name, available)
                    raise InputError(f"{where}: {key}.{suite}: {name!r} is in no file of {folder / suite}{close}")
        used |= {file: item for file, item in found.items() if names == "all" or item.name in names}
    _require_distinct(used)
    return used


def _require_distinct(items: dict[Path, Corpus | Task | ReleasedModel]) -> None:
    by_name: dict[str, Path] = {}
    for file, item in items.items():
        if item.name in by_name:
            raise InputError(f"{file}: name: {item.name!r} is the name of {by_name[item.name]} too; names must differ")
        by_name[item.name] = file


def _check_together(plan: Plan, where: str) -> None:
    study = plan.study
    _require_one_kind_of_experiment(plan, where)
    if study.replay and study.target.measured_here:
        raise InputError(f"{where}: replay: no model runs that could be measured; give target.table or .evaluations")
    if plan.selects_data:
        _require_choice_in_advance(study, where)
        if len(plan.corpora) < 2:
            raise InputError(f"{where}: corpora: found {len(plan.corpora)}; a ranking needs at least two")
    _require_distinct_display_names(plan)
    if study.ladder and study.miniature:
        raise InputError(
            f"{where}: ladder and miniature: found both; a study trains and compares models of one of them"
        )
    if study.target.lm_eval and not plan.harness_tasks:
        raise InputError(f"{where}: target.lm_eval: no task of the study says how lm-eval measures it (key lm_eval)")
    if study.published and plan.ladder is None:
        raise InputError(f"{where}: ladder: missing; the published measurements need it for steps and compute")
    if not plan.runs_models:
        return
    if not plan.corpora:
        raise InputError(f"{where}: corpora, models: found none of either; a study needs models to run")
    if not plan.tasks:
        raise InputError(f"{where}: tasks: found none; a study needs at least one")
    for corpus in plan.corpora:
        _check_corpus(corpus, plan, where)
    for task in plan.tasks:
        _check_task(task, study, where)
    if study.miniature is None and study.generic_text is None:
        raise InputError(
            f"{where}: generic_text: missing; without a `miniature` section it must name a JSONL file "
            "with id, prompt (empty) and solution (the text), or rows of a data set"
        )


def _require_one_kind_of_experiment(plan: Plan, where: str) -> None:
    study = plan.study
    others = [name for name in ("model_selection", "forecasting") if getattr(study, name)]
    if not (plan.selects_data or others):
        raise InputError(
            f"{where}: found no experiment; give target.size (data selection), model_selection or forecasting"
        )
    if plan.selects_data and others:
        raise InputError(
            f"{where}: target.size and {others[0]}: found both; small models that rank corpora for a target, and "
            "models that are compared themselves, are two studies"
        )
    if study.model_selection and len(plan.task_names) < FEWEST_TASKS:
        raise InputError(
            f"{where}: tasks: found {len(plan.task_names)}; model_selection holds two out and learns from the others, "
            f"so it needs at least {FEWEST_TASKS}"
        )


def _require_choice_in_advance(study: Study, where: str) -> None:
    """What a data selection is judged by is fixed before its results are seen."""
    for key in ("highlighted", "budgets"):
        if not getattr(study, key):
            raise InputError(f"{where}: {key}: missing; a study with target.size (data selection) names at least one")


def _require_distinct_display_names(plan: Plan) -> None:
    """Two corpora of one name in the tables of others would get each other's truth."""
    owners: dict[str, Corpus] = {}
    for corpus in plan.corpora:
        name = corpus.display_name or corpus.name
        other = owners.setdefault(name, corpus)
        if other is not corpus:
            raise InputError(
                f"{plan.corpus_files[corpus.name]}: display_name: {name!r} is that of "
                f"{plan.corpus_files[other.name]} too; names must differ"
            )


def _check_corpus(corpus: Corpus, plan: Plan, where: str) -> None:
    file, study = plan.corpus_files[corpus.name], plan.study
    if corpus.recipe and study.miniature is None:
        raise InputError(f"{file}: recipe: the study {where} has no `miniature` section to train it with")
    if corpus.text and not (study.miniature or plan.ladder):
        raise InputError(f"{file}: text: the study {where} has no `ladder` (and no `miniature`) to train models with")
    if corpus.text and study.miniature:
        for size in corpus.sizes or study.miniature.sizes:
            if size in study.miniature.sizes and study.miniature.sizes[size].tokenizer:
                raise InputError(
                    f"{file}: text: models of size {size} read with a tokenizer of their own, and text is tokenised "
                    "with the suite's; give `sizes` that have none"
                )
    known = list(study.miniature.sizes if study.miniature else plan.ladder.sizes if plan.ladder else {})
    if study.ladder and study.ladder.sizes != "all":  # what the study leaves out is trained for nothing
        known = [size for size in known if size in (*study.ladder.sizes, study.target.size)]
    for size in corpus.sizes or []:
        if size not in known:
            raise InputError(f"{file}: sizes: {size!r} is unknown{closest(size, known)}; known are {', '.join(known)}")


def _check_task(task: Task, study: Study, where: str) -> None:
    if task.name == GENERIC_TEXT:
        raise InputError(f"{where}: a task is named {GENERIC_TEXT!r}, as the text for the generic cross-entropy is")
    if task.family and task.family not in FAMILY_NAMES:
        close, known = closest(task.family, FAMILY_NAMES), ", ".join(FAMILY_NAMES)
        raise InputError(
            f"{where}: task {task.name!r}: family: {task.family!r} is no family of problems{close}; known are {known}"
        )
    unsolved = task.rows and (task.rows.solution == "" or (task.rows.solution, task.rows.choices) == (None, None))
    if unsolved and not study.writers:
        raise InputError(
            f"{where}: task {task.name!r}: its rows have no solution, and the study has no `writers` to write one"
        )
    if study.writers and task.answer_pattern is None:
        raise InputError(f"{where}: task {task.name!r}: answer_pattern: missing; what `writers` write is judged by it")
    if task.family and study.miniature is None:
        raise InputError(f"{where}: task {task.name!r} has its problems from the suite, but `miniature` is missing")


def _parse(model: type[Model], values: dict, where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        by_key: dict[tuple, list[dict]] = {}  # what is wrong with each alternative that could stand at a key
        for problem in error.errors():
            if not _is_consequence(problem):
                by_key.setdefault(_path(problem), []).append(problem)
        raise InputError("\n".join(_explain(model, path, found, where) for path, found in by_key.items())) from None


def _is_consequence(problem: dict) -> bool:
    """Whether another problem says what is wrong, and this one only that, so, an alternative or a sequence fails."""
    is_mapping, is_list = isinstance(problem["input"], dict), isinstance(problem["input"], list)
    match problem["type"]:
        case "path_type":  # a mapping in the place of a file
            return is_mapping
        case "too_short":  # the entries that are wrong are not counted
            return bool(problem["input"])
        case _:  # a list in the place of a word
            return is_list and str(problem["loc"][-1:]).startswith('("literal[')


# What pydantic puts between the keys: which alternative it tried, or that a key itself is wrong.
MARKS = ("literal[", "list[", "[key]", "constrained-", "lax-or-strict[", "function-")
MESSAGES = {
    "string_pattern_mismatch": "a name must begin with a letter or digit and hold only those and '_', '.', '-'",
    "model_type": "Input should be a mapping of keys to values",
    "path_type": "Input should be a path",
}


def _path(problem: dict) -> tuple:
    return tuple(part for part in problem["loc"] if not str(part).startswith(MARKS))


def _explain(model: type[Options], path: tuple, problems: list[dict], where: str) -> str:
    """One line for what pydantic found wrong at a path of keys: file, key, what was found, what would be right."""
    *parents, last = path or ("",)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    kind, value = problems[0]["type"], problems[0]["input"]
    if kind == "extra_forbidden":
        known = _keys_at(model, parents)
        return f"{where}: {key}: unknown key{closest(str(last), known)}; known are {', '.join(known)}"
    first, *others = map(_message, problems)
    message = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
    found = "" if kind in ("missing", "value_error") else f", found {told_value(value, 200)}"
    return f"{where}: {key}: {message}{found}" if key else f"{where}: {message}"


def _message(problem: dict) -> str:
    rule = RULES.get(problem.get("ctx", {}).get("pattern"))
    return rule or MESSAGES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")


def _keys_at(model: type[Options], path: list) -> list[str]:
    """The keys that are allowed at `path` within `model`, read from its JSON schema."""
    schema = model.model_json_schema()
    node = schema
    for part in [*path, None]:
        while True:
            options = [o for o in node.get("anyOf", []) if o.get("type") != "null"]
            if "$ref" in node:
                node = schema["$defs"][node["$ref"].split("/")[-1]]
            elif options:
                node = options[-1]
            else:
                break
        if part is not None:
            entries = node.get("patternProperties", {}).values()  # of a mapping whose keys are names
            node = node.get("properties", {}).get(part) or node.get("items") or next(iter(entries), {})
    return list(node.get("properties", {}))


def closest(name: str, known) -> str:
    """What was meant, in words, if something known is spelled much like `name`; case does not count."""
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _repeated(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
