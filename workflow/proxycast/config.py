"""The configuration: what a study uses, read from YAML into strict models, with errors that say what would be right.

A study (config/config.yaml) names suites; a suite is a folder of corpora and a folder of tasks, one small file each.
This module is the only one that knows where these files lie. It composes the options that the other modules define
beside the code that uses them.
"""

import difflib
import re
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from proxycast.engines import ExtractionOptions, ModelOptions
from proxycast.miniature.suite import FAMILY_NAMES, Recipe, Suite
from proxycast.options import InputError, Options, SafeName
from proxycast.proxies import STATISTICS, WEIGHTINGS, ProxyOptions
from proxycast.ranking import SelectionOptions

CONFIG = Path("config")
GENERIC_TEXT = "generic_text"  # stands beside the tasks wherever solutions are read
Model = TypeVar("Model", bound=Options)


class FolderCheckpoint(Options):
    """A checkpoint that exists already, as a Hugging Face folder."""

    folder: Path = Field(description="folder with config.json, *.safetensors and a tokenizer")
    size: SafeName = Field(description="name of the model size; it must be the target's or one of the proxies'")
    step: int = Field(ge=0, description="training step")
    tokens: int = Field(gt=0, description="tokens seen in training (D)")
    seed: int = Field(0, description="training seed")
    parameters: int | None = Field(
        None, gt=0, description="N without the input embedding; counted from the weights if absent"
    )
    model: ModelOptions = Field(
        ModelOptions(), description="how this checkpoint is run, where it differs from the corpus and the study"
    )


class Corpus(Options):
    """A candidate corpus: a recipe that the miniature suite trains on, or checkpoints of models trained on it."""

    name: SafeName = Field(description="name of the corpus; it becomes part of file names")
    description: str = Field("", description="what the corpus is, in a sentence")
    mirrors: str | None = Field(None, description="the DataDecide corpus whose recipe this one mirrors")
    family: str | None = Field(None, description="model family of the checkpoints; the suite's own is 'llama'")
    recipe: Recipe | None = Field(None, description="miniature suite: sources, filters and weights")
    checkpoints: list[FolderCheckpoint] | None = Field(None, min_length=1, description="models trained elsewhere")
    model: ModelOptions = Field(
        ModelOptions(), description="how its checkpoints are run, where that differs from `extraction` of the study"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "Corpus":
        if (self.recipe is None) == (self.checkpoints is None):
            raise ValueError("a corpus has either a recipe or checkpoints, exactly one of the two")
        return self


class Task(Options):
    """A downstream task: expert solutions from a file, or a family of the miniature suite's problems."""

    name: SafeName = Field(description="name of the task; it becomes part of file names")
    description: str = Field("", description="what the task asks, in a sentence")
    family: SafeName | None = Field(None, description="miniature suite: the family of problems")
    solutions: Path | None = Field(
        None, description="JSONL or parquet with id, prompt, solution (answer, choices, writer)"
    )
    answer_pattern: str | None = Field(
        None,
        description="regular expression; its group 1 finds the answer in generated text; without it no exact match",
    )
    max_new_tokens: int = Field(16, gt=0, description="tokens generated for the exact match")

    @model_validator(mode="after")
    def _one_origin(self) -> "Task":
        if (self.family is None) == (self.solutions is None):
            raise ValueError("a task has either a family or a solutions file, exactly one of the two")
        return self

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_with_a_group(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern or "()").groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if groups < 1:
            raise ValueError(f"{pattern!r} has no group; put the answer in parentheses")
        return pattern


class Target(Options):
    """The truth that is to be predicted."""

    size: SafeName = Field(description="model size whose ranking of the corpora is the truth")
    metric: SafeName = Field(
        "multiple_choice_accuracy", description="downstream metric, higher is better; the mean over seeds counts"
    )
    other_metrics: list[SafeName] = Field(
        [], description="further truths of the same checkpoints, each with its decision accuracy and noise ceiling"
    )
    table: Path | None = Field(
        None,
        description="csv or parquet with checkpoint, task, metric, value, n; "
        "without it the checkpoints are evaluated here",
    )


class Proxy(Options):
    """One of the 80 proxies."""

    statistic: str = Field(description="core statistic")
    weighting: str = Field("uniform", description="weighting of the tokens")

    @model_validator(mode="after")
    def _known(self) -> "Proxy":
        for key, known in (("statistic", STATISTICS), ("weighting", WEIGHTINGS)):
            value = getattr(self, key)
            if value not in known:
                raise ValueError(f"{key} {value!r} is unknown{_closest(value, known)}; known are {', '.join(known)}")
        return self


class Budget(Options):
    """A small-model budget at which proxies are compared."""

    name: str = Field(description="short name, used in figures")
    size: SafeName = Field(description="model size")
    step: int = Field(ge=0, description="training step")


class Study(Options):
    """One study: corpora, tasks, truth, and how proxies are extracted and judged."""

    study: SafeName = Field(description="name of the study; results go to results/<study>")
    corpora: dict[SafeName, Literal["all"] | list[SafeName]] = Field(
        min_length=1, description="suites of corpora (folders of config/corpora): 'all' or names"
    )
    tasks: dict[SafeName, Literal["all"] | list[SafeName]] = Field(
        min_length=1, description="suites of tasks (folders of config/tasks): 'all' or names"
    )
    generic_text: Path | None = Field(
        None,
        description="JSONL like a solutions file, with empty prompts: text for the generic cross-entropy; "
        "the suite has its own",
    )
    miniature: Suite | None = Field(None, description="the suite that trains itself; needed by corpora with a recipe")
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
        min_length=1, description="proxies fixed in advance; figures of one show the first"
    )
    budgets: list[Budget] = Field(
        min_length=1, description="small-model budgets fixed in advance; figures of one are drawn for each"
    )


class Plan(BaseModel):
    """A study with the files it names, all of them checked against each other."""

    study: Study
    corpora: list[Corpus]
    tasks: list[Task]
    corpus_files: dict[str, Path]  # corpus name -> its file

    @property
    def results(self) -> Path:
        return Path("results") / self.study.study

    def corpus(self, name: str) -> Corpus:
        return next(corpus for corpus in self.corpora if corpus.name == name)

    def solutions_source(self, task: str) -> Path:
        """The file that a task's expert solutions are copied from; for `GENERIC_TEXT` the generic text."""
        if task == GENERIC_TEXT:
            return self.study.generic_text or self.results / "suite" / "generic_text.jsonl"
        found = next(entry for entry in self.tasks if entry.name == task)
        return found.solutions or self.results / "suite" / "problems" / f"{found.family}.jsonl"


def load_plan(study: dict, where: str, config: Path = CONFIG) -> Plan:
    """Check the study's values, its corpora and tasks, and all of them together. `where` names its file in errors."""
    checked = _parse(Study, study, where)
    corpora = _read_suites(Corpus, checked.corpora, config / "corpora", where, "corpora")
    tasks = _read_suites(Task, checked.tasks, config / "tasks", where, "tasks")
    plan = Plan(
        study=checked,
        corpora=list(corpora.values()),
        tasks=list(tasks.values()),
        corpus_files={corpus.name: file for file, corpus in corpora.items()},
    )
    _check_together(plan, where)
    return plan


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file; an error that names the file if it is absent, broken or no mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a {type(value).__name__}, expected a mapping of keys to values")
    return value


def _read_suites(
    model: type[Model], suites: dict[str, str | list[str]], folder: Path, where: str, key: str
) -> dict[Path, Model]:
    """File -> content for every corpus (or task) that the study uses, in the order of the file names."""
    used: dict[Path, Model] = {}
    for suite, names in suites.items():
        files = sorted((folder / suite).glob("*.yaml"))
        if not files:
            raise InputError(f"{where}: {key}: suite {suite!r} has no files in {folder / suite}")
        found = {file: _parse(model, read_yaml(file), str(file)) for file in files}
        available = {item.name for item in found.values()}
        if names != "all":
            if len(set(names)) < len(names):
                raise InputError(f"{where}: {key}.{suite} names {_repeated(names)!r} twice")
            for name in names:
                if name not in available:
                    close = _closest(name, available)
                    raise InputError(f"{where}: {key}.{suite}: {name!r} is in no file of {folder / suite}{close}")
        used |= {file: item for file, item in found.items() if names == "all" or item.name in names}
    by_name: dict[str, Path] = {}
    for file, item in used.items():
        if item.name in by_name:
            raise InputError(f"{file}: name: {item.name!r} is the name of {by_name[item.name]} too; names must differ")
        by_name[item.name] = file
    return used


def _check_together(plan: Plan, where: str) -> None:
    if len(plan.corpora) < 2:
        raise InputError(f"{where}: corpora: found {len(plan.corpora)}; a ranking needs at least two")
    if not plan.tasks:
        raise InputError(f"{where}: tasks: found none; a study needs at least one")
    for corpus in plan.corpora:
        if corpus.recipe and plan.study.miniature is None:
            file = plan.corpus_files[corpus.name]
            raise InputError(f"{file}: recipe: the study {where} has no `miniature` section to train it with")
    for task in plan.tasks:
        _check_task(task, plan.study, where)
    if plan.study.miniature is None and plan.study.generic_text is None:
        raise InputError(
            f"{where}: generic_text: missing; without a `miniature` section it must name a JSONL file "
            "with id, prompt (empty) and solution (the text)"
        )
    _check_sizes(plan, where)


def _check_task(task: Task, study: Study, where: str) -> None:
    if task.name == GENERIC_TEXT:
        raise InputError(f"{where}: a task is named {GENERIC_TEXT!r}, as the text for the generic cross-entropy is")
    if task.family and task.family not in FAMILY_NAMES:
        close, known = _closest(task.family, FAMILY_NAMES), ", ".join(FAMILY_NAMES)
        raise InputError(
            f"{where}: task {task.name!r}: family: {task.family!r} is no family of problems{close}; known are {known}"
        )
    if task.family and study.miniature is None:
        raise InputError(f"{where}: task {task.name!r} has its problems from the suite, but `miniature` is missing")


def _check_sizes(plan: Plan, where: str) -> None:
    study, suite = plan.study, plan.study.miniature
    sizes = {size: set(entry.all_checkpoints) for size, entry in suite.sizes.items()} if suite else {}
    for corpus in plan.corpora:
        for checkpoint in corpus.checkpoints or []:
            sizes.setdefault(checkpoint.size, set()).add(checkpoint.step)
    if study.target.size not in sizes:
        known = f"{_closest(study.target.size, sizes)}; known are {', '.join(sizes)}"
        raise InputError(f"{where}: target.size: {study.target.size!r} is no size of this study{known}")
    if set(sizes) == {study.target.size}:
        raise InputError(f"{where}: target.size: {study.target.size!r} is the only size; a proxy must be smaller")
    for number, budget in enumerate(study.budgets):
        if budget.size == study.target.size or budget.step not in sizes.get(budget.size, ()):
            proxies = {size: sorted(steps) for size, steps in sizes.items() if size != study.target.size}
            raise InputError(
                f"{where}: budgets[{number}]: no checkpoint {budget.size} at step {budget.step}; there are {proxies}"
            )


def _parse(model: type[Model], values: dict, where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [problem for problem in error.errors() if not _is_other_alternative(problem)]
        raise InputError("\n".join(_explain(model, problem, where) for problem in problems)) from None


def _is_other_alternative(problem: dict) -> bool:
    """Whether the problem is only that a list is not the word that could stand in its place."""
    return str(problem["loc"][-1:]).startswith('("literal[') and isinstance(problem["input"], list)


def _explain(model: type[Options], problem: dict, where: str) -> str:
    """One line for one problem that pydantic found: file, key, what was found, what would be right."""
    # Pydantic puts marks of its own between the keys: which alternative it tried, or that a key itself is wrong.
    path = [part for part in problem["loc"] if not str(part).startswith(("literal[", "list[", "[key]"))]
    *parents, last = path or ("",)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, parents)
        return f"{where}: {key}: unknown key{_closest(str(last), known)}; known are {', '.join(known)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch":
        message = "a name must begin with a letter or digit and hold only those and '_', '.', '-'"
    found = "" if problem["type"] in ("missing", "value_error") else f", found {problem['input']!r}"
    return f"{where}: {key}: {message}{found}" if key else f"{where}: {message}"


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


def _closest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _repeated(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
