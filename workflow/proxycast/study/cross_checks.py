"""Checks of a study's parts against each other.

`check_together` runs when all files are read, `check_checkpoints` when the checkpoints are known, and
`check_truth_of_models` where a table of the truth is given.
"""

import re
from pathlib import Path

import polars as pl

from proxycast.config.corpora import Corpus
from proxycast.config.errors import closest
from proxycast.config.models import ReleasedModel
from proxycast.config.study import Budget, Study
from proxycast.config.tasks import Task
from proxycast.config.training import FAMILY_NAMES, STEP_FAMILY_NAMES
from proxycast.experiments.forecasting.run_end import with_end
from proxycast.experiments.judges.judge_file import reading_of
from proxycast.experiments.judges.judge_limits import require_kind, require_known_proxies, require_same_values
from proxycast.experiments.laws.curves import CURVES
from proxycast.experiments.model_selection.known_models import FEWEST_MODELS, FEWEST_TASKS
from proxycast.experiments.post_trained.claim_limits import require_known_claim
from proxycast.options import InputError
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.study.checkpoints import Checkpoint, budgets_of, runs, short_names
from proxycast.study.option_checks.method_names import (
    KNOWN_OF_MODELS,
    names_outside,
    require_measured_outside,
    require_scored_baselines,
    scored_baselines,
)
from proxycast.study.option_checks.needed_checkpoints import require_laws, require_post_training, require_token_view
from proxycast.study.study_plan import Plan
from proxycast.truth.targets import read_target_table, require_targets, with_full_names


def require_distinct(items: dict[Path, Corpus | Task | ReleasedModel]) -> None:
    by_name: dict[str, Path] = {}
    for file, item in items.items():
        if item.name in by_name:
            raise InputError(f"{file}: name: {item.name!r} is the name of {by_name[item.name]} too; names must differ")
        by_name[item.name] = file


def check_together(plan: Plan, where: str) -> None:
    study = plan.study
    _require_one_kind_of_experiment(plan, where)
    if study.replay and study.target and study.target.measured_here:
        raise InputError(f"{where}: replay: no model runs that could be measured; give target.table or .evaluations")
    if study.replay and study.extraction.temperatures:
        raise InputError(
            f"{where}: replay: recorded statistics are of no other temperature; remove extraction.temperatures"
        )
    if plan.selects_data:
        if not study.highlighted:
            raise InputError(f"{where}: highlighted: found none; corpora are ranked by the proxies named there")
        if plan.runs_models and len(plan.corpora) < 2:
            raise InputError(f"{where}: corpora: found {len(plan.corpora)}; a ranking needs at least two")
    _require_distinct_display_names(plan)
    if study.ladder and study.miniature:
        raise InputError(
            f"{where}: ladder and miniature: found both; a study trains and compares models of one of them"
        )
    if study.target and study.target.lm_eval and not plan.harness_tasks:
        raise InputError(f"{where}: target.lm_eval: no task of the study says how lm-eval measures it (key lm_eval)")
    if study.statistics and study.forecasting:
        raise InputError(
            f"{where}: statistics and forecasting: found both; a training run that others logged is forecasting.curve"
        )
    for key in ("miniature", "writers"):
        if getattr(study, key) and study.statistics and not plan.tasks:
            raise InputError(f"{where}: {key}: a study with statistics and without tasks runs no models; remove one")
    if study.statistics and study.statistics.decision_accuracies and not (plan.ladder and plan.target_size):
        raise InputError(
            f"{where}: statistics.decision_accuracies: needs a ladder, which knows the compute, and target.size"
        )
    if study.target is None and plan.runs_models and (plan.selects_data or plan.selects_models):
        require_scored_baselines(plan, where)
    if study.target and study.target.sampling and not study.target.is_generated and not plan.target_size:
        raise InputError(
            f"{where}: target.sampling: without target.size no checkpoint writes for a metric among other_metrics; "
            "give it as metric, or leave sampling out"
        )
    _check_judges(plan, where)
    if study.mixtures and not plan.mixtures:  # which reads the table
        raise InputError(
            f"{where}: mixtures: corpora are mixtures in a data selection (corpora and no model_selection or "
            "forecasting); remove the key"
        )
    if not plan.runs_models:
        return
    if not plan.corpora:
        raise InputError(f"{where}: corpora, models: found none of either; a study needs models to run")
    if not plan.tasks:
        raise InputError(f"{where}: tasks: found none; a study needs at least one")
    for corpus in plan.corpora:
        _check_corpus(corpus, plan, where)
    if study.ladder:
        _require_text_for_rates(plan, where)
    for task in plan.tasks:
        _check_task(task, study, where)


def _check_judges(plan: Plan, where: str) -> None:
    """A judge must be one of this kind of study, and of values that this study computes."""
    study = plan.study
    if study.judges and not (plan.runs_models and (plan.selects_data or plan.selects_models)):
        raise InputError(f"{where}: judges: they rank corpora or models, of a study that runs them; remove the key")
    for name, judge in plan.judges.items():
        path = study.judges[name]
        if plan.results in path.parents:
            raise InputError(f"{where}: judges.{name}: {path} is what this study writes; give that of another study")
        require_kind(judge, "data_selection" if plan.selects_data else "model_selection", str(path))
        tempered = bool(study.extraction.temperatures)
        require_known_proxies(judge, str(path), rbridge=bool(study.writers), tempered=tempered)
        require_same_values(judge, reading_of(study.proxies, study.extraction), str(path))


def _require_one_kind_of_experiment(plan: Plan, where: str) -> None:
    study = plan.study
    others = [name for name in ("model_selection", "forecasting") if getattr(study, name)]
    if study.target is None and study.forecasting:
        raise InputError(f"{where}: target: missing; forecasting needs to know its metric")
    if not (plan.selects_data or plan.selects_models or others) and study.target is None:
        raise InputError(
            f"{where}: found neither corpora nor models; name the suites to be ranked, and those of the tasks whose "
            "solutions they read"
        )
    if not (plan.selects_data or plan.selects_models or others):
        raise InputError(
            f"{where}: found no experiment; give target.size (data selection), model_selection or forecasting, or "
            "leave target out to rank corpora or models that nobody has measured"
        )
    if plan.selects_data and others:
        raise InputError(
            f"{where}: target.size and {others[0]}: found both; small models that rank corpora for a target, and "
            "models that are compared themselves, are two studies"
        )
    if study.target and study.model_selection and plan.runs_models and len(plan.task_names) < FEWEST_TASKS:
        raise InputError(
            f"{where}: tasks: found {len(plan.task_names)}; model_selection holds two out and learns from the others, "
            f"so it needs at least {FEWEST_TASKS}; without target it ranks the models and judges nothing"
        )


def _require_distinct_display_names(plan: Plan) -> None:
    """Two corpora with one name in the tables of others would get each other's truth."""
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
    if corpus.recipe and not study.miniature.step_documents and "steps" in {c.source for c in corpus.recipe.mixture}:
        raise InputError(f"{file}: recipe: mixes the source steps, of which {where} has no miniature.step_documents")
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
        known = [size for size in known if size in (*study.ladder.sizes, plan.target_size)]
    known = [size for size in known if plan.size_in_choices(size) == size]
    for size in corpus.sizes or []:
        if size not in known:
            raise InputError(f"{file}: sizes: {size!r} is unknown{closest(size, known)}; known are {', '.join(known)}")


def _require_text_for_rates(plan: Plan, where: str) -> None:
    """Learning rates are those of corpora of text, which the study trains itself."""
    choice, texts = plan.study.ladder, [corpus.name for corpus in plan.corpora if corpus.text]
    given = [corpus.name for corpus in plan.corpora if corpus.checkpoints]
    if choice.learning_rate_factor != 1 and not texts:
        raise InputError(f"{where}: ladder.learning_rate_factor: no corpus of the study is text, which it would train")
    if choice.learning_rate_factor != 1 and given:
        raise InputError(
            f"{where}: ladder.learning_rate_factor: found {choice.learning_rate_factor:g}, but {given[0]} has "
            "checkpoints, which were trained at the ladder's own rates; corpora are compared at equal training"
        )
    if choice.rate_check and choice.rate_check.size == plan.target_size:
        raise InputError(f"{where}: ladder.rate_check.size: {plan.target_size!r} is the target's; give that of a proxy")
    if choice.rate_check and len(texts) < 2:
        raise InputError(
            f"{where}: ladder.rate_check: found {len(texts)} corpora of text; an order needs at least two of them"
        )


def _check_task(task: Task, study: Study, where: str) -> None:
    if task.name == GENERIC_TEXT:
        raise InputError(f"{where}: a task is named {GENERIC_TEXT!r}, as the text for the generic cross-entropy is")
    families = (*FAMILY_NAMES, *STEP_FAMILY_NAMES)
    if task.family and task.family not in families:
        close, known = closest(task.family, families), ", ".join(families)
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


def check_checkpoints(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """`InputError` for checkpoints with one name, ones that cannot be compared, and ones that are missing."""
    _require_distinct_names(plan, checkpoints)
    if plan.post_trains:
        require_post_training(plan, checkpoints)
    _require_writers(plan, checkpoints)
    if plan.study.statistics and not plan.runs_models:
        require_measured_outside(plan)
    if plan.selects_data:
        _require_sizes(plan, checkpoints)
        _require_comparable(plan, checkpoints)
    require_token_view(plan, checkpoints)
    if plan.study.selection.scaling_laws:
        require_laws(plan, checkpoints)
    fewest = FEWEST_MODELS if plan.study.target else 2
    if plan.selects_models and len(runs(checkpoints)) < fewest:
        what = "to judge scorers" if plan.study.target else "to rank"
        raise InputError(
            f"{plan.where}: models, corpora: found {len(runs(checkpoints))} models; model selection needs at least "
            f"{fewest} {what}"
        )
    if plan.study.model_selection and (claim := plan.study.model_selection.claim):
        baselines = [
            *(scored_baselines(plan) if plan.runs_models else KNOWN_OF_MODELS),
            *names_outside(plan),
            "chance",
        ]
        require_known_claim(plan.study, claim, baselines, [entry.recipe for entry in checkpoints], plan.where)
    if plan.study.forecasting and not plan.curve:
        _require_curves(plan, checkpoints)


def _require_distinct_names(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """Two entries of a corpus can give one model; names of two corpora can meet by a hyphen ('a-b' + 'c')."""
    owners: dict[str, str] = {}
    for entry in checkpoints:
        if entry.checkpoint in owners:
            files = plan.origin(entry.corpus), plan.origin(owners[entry.checkpoint])
            raise InputError(
                f"{files[0]}: checkpoint {entry.checkpoint} stands in {files[1]} already; "
                "corpus, size, seed and step together must name one model"
            )
        owners[entry.checkpoint] = entry.corpus


def _require_curves(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """Every run that is forecast needs more early checkpoints than a curve has parameters, and an end beyond them."""
    checkpoints = [entry for entry in checkpoints if entry.run not in plan.study.forecasting.models]
    rows = [(entry.run, entry.step, entry.tokens, float(entry.flops)) for entry in checkpoints]
    try:
        options, _ = with_end(
            plan.study.forecasting, pl.DataFrame(rows, schema=["run", "step", "tokens", "flops"], orient="row")
        )
    except InputError as error:
        raise InputError(f"{plan.where}: {error}") from None
    for run, found in runs(checkpoints).items():
        steps = sorted(checkpoint.step for checkpoint in found)
        fitted = [step for step in steps if options.fit_from_step <= step <= options.fit_up_to_step]
        if len(fitted) <= CURVES["power"].parameters:
            raise InputError(
                f"{plan.where}: forecasting.fit_up_to_step: {options.fit_up_to_step} leaves {len(fitted)} checkpoints "
                f"of run {run} to fit, from step {options.fit_from_step}; a curve needs at least "
                f"{CURVES['power'].parameters + 1}; its steps are {steps}"
            )


def _require_writers(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    known = {entry.checkpoint for entry in checkpoints}
    for name, writer in plan.study.writers.items():
        if writer.folder and not writer.folder.is_dir():
            raise InputError(f"{plan.where}: writers.{name}.folder: {writer.folder}: no such folder")
        if writer.checkpoint and writer.checkpoint not in known:
            close = closest(writer.checkpoint, known)
            raise InputError(
                f"{plan.where}: writers.{name}.checkpoint: {writer.checkpoint!r} is no checkpoint of the study{close}"
            )


def _require_sizes(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """A study needs its target if it has a truth, a smaller model and every budget that it names."""
    proxies: dict[str, set[int]] = {}
    for entry in checkpoints:
        if entry.role == "proxy":
            proxies.setdefault(entry.size, set()).add(entry.step)
    size = plan.target_size
    if not proxies:
        raise InputError(f"{plan.where}: target.size: {size!r} is the only size; a proxy must be smaller")
    if plan.study.target and not any(entry.role == "target" for entry in checkpoints):
        raise InputError(f"{plan.where}: target: no finished run of size {size!r} in any corpus")
    if not budgets_of(plan, checkpoints):
        found = {corpus: [] for corpus in plan.corpus_names}
        for entry in checkpoints:
            if entry.role == "proxy":
                found[entry.corpus].append(f"{entry.size} at step {entry.step}")
        last = "; ".join(f"{name}: {steps[-1] if steps else 'none'}" for name, steps in found.items())
        raise InputError(f"{plan.where}: corpora: no size and step that all corpora have; their last ones are {last}")
    for number, budget in enumerate(plan.study.budgets):
        if budget.size == size or budget.step not in proxies.get(budget.size, ()):
            there = {size: sorted(steps) for size, steps in proxies.items()}
            raise InputError(
                f"{plan.where}: budgets[{number}]: no checkpoint {budget.size} at step {budget.step}; there are {there}"
            )


def _require_comparable(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """Corpora are compared model by model: models of one name must have one size and one training in all corpora.

    Corpora with a target need the same targets, and without a ladder the same proxies. A corpus without a target, whose
    place is to be predicted, needs the models of the budgets.
    """
    first: dict[tuple[str, int], Checkpoint] = {}
    models: dict[str, set[str]] = {corpus: set() for corpus in plan.corpus_names}
    for entry in checkpoints:
        other = first.setdefault((entry.size, entry.step), entry)
        for key in ("parameters", "active_parameters", "tokens"):
            found, expected = getattr(entry, key), getattr(other, key)
            if found != expected:
                raise InputError(
                    f"{plan.origin(entry.corpus)}: checkpoints: {key} of {entry.size} at step {entry.step}: "
                    f"found {found}, but {expected} in {plan.origin(other.corpus)}; corpora are compared at "
                    "equal sizes and training"
                )
        models[entry.corpus].add(_model_in_words(entry))
    with_target = {entry.corpus for entry in checkpoints if entry.role == "target"}
    if plan.study.target and len(with_target) < 2:
        raise InputError(
            f"{plan.where}: target: found models of size {plan.target_size} for {len(with_target)} corpora; "
            "a truth needs at least two"
        )
    everything = set().union(*(models[corpus] for corpus in with_target))
    strict = plan.ladder is None
    for corpus, found in models.items():
        needed = {name for name in everything if strict or name.endswith("target")} if corpus in with_target else set()
        if missing := sorted(needed - found):
            raise InputError(
                f"{plan.origin(corpus)}: checkpoints: found no {missing[0].removesuffix(', the target')}, which "
                f"another corpus has; all corpora need the same models ({len(missing)} missing)"
            )
    for budget in budgets_of(plan, checkpoints):
        _require_budget(plan, budget, checkpoints)


def _model_in_words(entry: Checkpoint) -> str:
    if entry.role == "target":
        return f"{entry.size} of seed {entry.seed}, the target"
    return f"{entry.size} of seed {entry.seed} at step {entry.step}"


def _require_budget(plan: Plan, budget: Budget, checkpoints: list[Checkpoint]) -> None:
    """Every corpus needs the model of a budget, with at least one seed that all corpora have."""
    seeds: dict[str, set[int]] = {corpus: set() for corpus in plan.corpus_names}
    for entry in checkpoints:
        if (entry.size, entry.step) == (budget.size, budget.step):
            seeds[entry.corpus].add(entry.seed)
    known = next(found for found in seeds.values() if found)
    for corpus, found in seeds.items():
        if not known & found:
            raise InputError(
                f"{plan.origin(corpus)}: checkpoints: found no {budget.size} at step {budget.step} "
                f"of seed {' or '.join(map(str, sorted(known)))}, which the budget {budget.name!r} compares"
            )
        known &= found


def check_truth_of_models(path: Path, checkpoints: list[Checkpoint], tasks: list[str], metrics: list[str]) -> None:
    """`InputError` for a model with a truth in some tasks only, and for too few models and tasks with one to judge.

    A model or task of which the table has no row has no truth, and is ranked by what the others teach; but one that
    stands there in another spelling is an error.
    """
    meant = short_names(checkpoints)
    table = with_full_names(read_target_table(path), meant, path)
    last = {c.run: c.checkpoint for c in sorted(checkpoints, key=lambda c: c.step)}
    rows = table.filter(pl.col("metric").is_in(metrics))
    if rows.is_empty():
        require_targets(table, last.values(), tasks, metrics[0], path)
    kept = {}
    for column, names, fewest in (("checkpoint", last.values(), FEWEST_MODELS), ("task", tasks, FEWEST_TASKS)):
        there = set(rows[column])
        spelled = {_plain(name): name for name in there - set(names)}
        for name in [*names, *(meant if column == "checkpoint" else ())]:
            if name not in there and _plain(name) in spelled:
                raise InputError(f"{path}: column {column}: found {spelled[_plain(name)]!r}; did you mean {name!r}?")
        kept[column] = [name for name in names if name in there]
        if len(kept[column]) < fewest:
            lacking = next(name for name in names if name not in there)
            raise InputError(
                f"{path}: column {column}: found {len(kept[column])} of this study's {len(names)}, for one no "
                f"{lacking!r}{closest(lacking, there - set(names))}; at least {fewest} with a truth are needed to "
                "judge. Without `target` the models are ranked and nothing is judged"
            )
    for metric in metrics:
        require_targets(table, kept["checkpoint"], kept["task"], metric, path)


def _plain(name: str) -> str:
    """A name without its case, punctuation and white space."""
    return re.sub(r"[\W_]+", "", name.casefold())
