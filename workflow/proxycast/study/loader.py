"""Reads a study and the files that it names from YAML, into the option models of `config`.

A study (config/config.yaml) names suites. A suite is a folder with one small file for each corpus, model or task. Only
this module knows where these files lie.
"""

from collections.abc import Mapping
from pathlib import Path

from proxycast.config.corpora import Corpus
from proxycast.config.errors import Group, closest, parse, repeated
from proxycast.config.ladder import Ladder
from proxycast.config.models import ReleasedModel
from proxycast.config.study import CONFIG, LadderChoice, Study
from proxycast.config.tasks import Task
from proxycast.experiments.judges.judge_file import judge_values, parse_judge
from proxycast.options import InputError, unfolded
from proxycast.study.cross_checks import check_together, require_distinct
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import read_yaml

FROZEN = "frozen"  # key of a study that holds the files it names as they were when Snakemake started


def load_plan(study: dict, where: str, config: Path = CONFIG) -> Plan:
    """The study with its corpora and tasks, each checked and all of them together. `where` names its file in errors.

    Of a study that was `frozen` no file is read: it holds what they were.
    """
    try:
        unfolded(study)
    except ValueError as error:  # Snakemake has read it
        raise InputError(f"{where}: {error}") from None
    frozen = study.get(FROZEN)
    if frozen:
        study, where = {key: value for key, value in study.items() if key != FROZEN}, frozen["where"]
    checked = parse(Study, study, where)
    files = {Path(file): values for file, values in frozen["files"].items()} if frozen else _read_files(checked, config)
    problems: list[str] = []
    corpora = _read_suites(Corpus, checked.corpora, config / "corpora", where, "corpora", files, problems)
    models = _read_suites(ReleasedModel, checked.models, config / "models", where, "models", files, problems)
    tasks = _read_suites(Task, checked.tasks, config / "tasks", where, "tasks", files, problems)
    if problems:
        raise InputError("\n".join(problems))
    corpora |= {file: model.as_corpus() for file, model in models.items()}
    require_distinct(corpora)
    plan = Plan(
        study=checked,
        corpora=list(corpora.values()),
        models=list(models.values()),
        tasks=list(tasks.values()),
        corpus_files={corpus.name: file for file, corpus in corpora.items()},
        ladder=_read_ladder(checked.ladder, config / "ladders", where, files) if checked.ladder else None,
        judges={name: parse_judge(files[path], str(path)) for name, path in checked.judges.items()},
        where=where,
        files=files,
    )
    check_together(plan, where)
    return plan


def frozen(study: dict, plan: Plan, code: dict[str, str]) -> dict:
    """The study's values with all other files that a job reads, as JSON values: no later edit reaches a job.

    `code`: script -> fingerprint, as in the parameters of jobs.
    """
    files = {str(file): values for file, values in plan.files.items()}
    return study | {FROZEN: {"where": plan.where, "files": files, "code": code}}


def _read_files(study: Study, config: Path) -> dict[Path, dict]:
    """Every YAML file of the study's suites, its ladder and its judges."""
    suites = {"corpora": study.corpora, "models": study.models, "tasks": study.tasks}
    folders = [config / kind / suite for kind, names in suites.items() for suite in names]
    files = [file for folder in folders for file in folder.glob("*.yaml")]
    files += [file for file in (config / "ladders").glob("*.yaml") if study.ladder and file.stem == study.ladder.name]
    judges = {path: judge_values(path) for path in study.judges.values()}
    return {file: read_yaml(file) for file in sorted(files)} | judges


def _read_ladder(choice: LadderChoice, folder: Path, where: str, files: Mapping[Path, dict]) -> Ladder:
    file = folder / f"{choice.name}.yaml"
    if file not in files:
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise InputError(f"{where}: ladder.name: no file {file}{closest(choice.name, known)}; there are {known}")
    ladder = parse(Ladder, files[file], str(file))
    for size in choice.sizes if choice.sizes != "all" else []:
        if size not in ladder.sizes:
            known = f"{closest(size, ladder.sizes)}; known are {', '.join(ladder.sizes)}"
            raise InputError(f"{where}: ladder.sizes: {size!r} is no size of {file}{known}")
    names = {seed for size in ladder.sizes for seed in ladder.seeds_of(size)}
    for seed in choice.seeds if choice.seeds != "all" else []:
        if seed not in names:
            raise InputError(f"{where}: ladder.seeds: {seed} is no seed of {file}; known are {sorted(names)}")
    check, sizes = choice.rate_check, list(ladder.sizes) if choice.sizes == "all" else choice.sizes
    if check and check.size not in sizes:
        known = f"{closest(check.size, sizes)}; known are {', '.join(sizes)}"
        raise InputError(f"{where}: ladder.rate_check.size: {check.size!r} is no size that the study uses{known}")
    return ladder.with_rates(choice.learning_rate_factor, check)


def _read_suites(
    model: type[Group],
    suites: dict[str, str | list[str]],
    folder: Path,
    where: str,
    key: str,
    files: Mapping[Path, dict],
    problems: list[str],
) -> dict[Path, Group]:
    """File -> content for every corpus (or task) that the study uses, in the order of the file names.

    What is wrong in a file is added to `problems`: of all files it is told at once.
    """
    used: dict[Path, Group] = {}
    for suite, names in suites.items():
        of_suite = {file: values for file, values in files.items() if file.parent == folder / suite}
        if not of_suite:
            raise InputError(f"{where}: {key}: suite {suite!r} has no files in {folder / suite}")
        found = {}
        for file, values in of_suite.items():
            try:
                found[file] = parse(model, values, str(file))
            except InputError as error:
                problems.append(str(error))
        if problems:
            continue
        available = {item.name for item in found.values()}
        if names != "all":
            if len(set(names)) < len(names):
                raise InputError(f"{where}: {key}.{suite} names {repeated(names)!r} twice")
            for name in names:
                if name not in available:
                    close = closest(name, available)
                    raise InputError(f"{where}: {key}.{suite}: {name!r} is in no file of {folder / suite}{close}")
        used |= {file: item for file, item in found.items() if names == "all" or item.name in names}
    require_distinct(used)
    return used
