"""Opens a study as Snakemake would and tells what it holds: `proxycast check`. No job runs, no result changes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from proxycast.cluster.model_jobs import ModelJobs
from proxycast.cluster.opening import check_before_jobs, record_of
from proxycast.config.study import Budget
from proxycast.experiments.forecasting.observed import cut_of
from proxycast.experiments.forecasting.run_end import with_end
from proxycast.experiments.model_selection.known_models import FEWEST_OF_A_LABEL
from proxycast.proxy_formulas import proxy_name
from proxycast.solutions.rows import Solution, read_problems
from proxycast.study.checkpoints import Checkpoint, budgets_of, checkpoints_table, runs, short_names
from proxycast.study.consent import allowing, foreign_code
from proxycast.study.loader import load_plan
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import read_yaml
from proxycast.tables import change_nothing
from proxycast.truth.outside_statistics import metrics_of
from proxycast.truth.targets import read_target_table, with_full_names
from proxycast.truth.training_log import read_wide_curve

SHOWN_NAMES = 8  # of a list of names
NO_TRUTH = "no truth, so it is predicted only"


def check_study(study: Path) -> None:
    """Print what a study holds; `InputError` for what Snakemake would refuse before the first job."""
    change_nothing()
    plan = load_plan(read_yaml(study), str(study))
    checkpoints, _ = check_before_jobs(plan, record_of(plan), writes=False)
    ModelJobs(plan, checkpoints, None).check()
    for label, text in what_it_holds(plan, checkpoints):
        print(f"{label:12} {text}")


def what_it_holds(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    yield "study", f"{plan.study.study}: {_question(plan)}"
    by_file, of_table = {model.name for model in plan.models}, plan.selects_models and not plan.corpora
    models = [name for name in plan.corpus_names if of_table or name in by_file]
    corpora = [name for name in plan.corpus_names if name not in models]
    yield from ((label, _names(found)) for label, found in (("corpora", corpora), ("models", models)) if found)
    for size in dict.fromkeys(c.size for c in checkpoints):
        yield "checkpoints", _of_size([c for c in checkpoints if c.size == size])
    for task in plan.task_names:
        yield "task", f"{task}: {_solutions(plan, task)}"
    if plan.selects_data:
        yield from _judged_corpora(plan, checkpoints)
    if plan.selects_models:
        yield from _judged_models(plan, checkpoints)
    if plan.study.forecasting:
        yield from _judged_forecasts(plan, checkpoints)
    for name, judge in plan.judges.items():
        yield "judge", f"{name}, learned in study {judge.study}: predicts the order and {judge.metric.name}"
    for code in foreign_code(plan, list(checkpoints)):
        if allowing(code) is None:
            yield "refused", f"{code.asked_by}: {code.name} is code of others; a run needs it in {code.variable}"
    yield "next", f"snakemake --configfile {plan.where} --cores 2"


def _question(plan: Plan) -> str:
    questions = {
        "which corpus is best?": plan.selects_data,
        "which model is best?": plan.selects_models,
        "where does a training run end?": plan.study.forecasting,
    }
    return " ".join(question for question, is_asked in questions.items() if is_asked)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{len(names)}: {', '.join(names[:SHOWN_NAMES])}{more}"


def _of_size(found: Sequence[Checkpoint]) -> str:
    """The checkpoints of one size: how many, of which steps and seeds, and what they are for."""
    steps, seeds = sorted({c.step for c in found}), sorted({c.seed for c in found})
    span = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
    of_seeds = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    role = " and ".join(sorted({c.role for c in found}))
    of_size = f" of size {found[0].size}" if found[0].size else ""  # others need not tell the size of a model
    return f"{len(found):,}{of_size} (role {role}; {span}; {of_seeds})"


def _solutions(plan: Plan, task: str) -> str:
    if not plan.runs_models:
        return "from tables"
    path = plan.solutions_source(task)
    if plan.rows(task) or not path.exists():
        return f"{path} is made when the study runs"
    rows = read_problems(path)
    solved, chosen = (sum(found) for found in zip(*((isinstance(row, Solution), bool(row.choices)) for row in rows)))
    return f"{len(rows):,} problems, {solved:,} with a solution, {chosen:,} with choices"


def _later_steps(plan: Plan, checkpoints: Sequence[Checkpoint], budget: Budget) -> Iterator[tuple[str, str]]:
    """Which corpora lack the last step of a size, so that an earlier one is compared."""
    of_size = [c for c in checkpoints if c.size == budget.size and c.role == "proxy"]
    last = max(c.step for c in of_size)
    lacking = sorted(set(plan.corpus_names) - {c.corpus for c in of_size if c.step == last})
    if last > budget.step:
        yield "not compared", f"step {last}: {', '.join(lacking)} lack{'s' * (len(lacking) == 1)} it"


def _judged_corpora(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, str]]:
    for budget in budgets_of(plan, list(checkpoints)):
        yield "ranked at", f"size {budget.size}, step {budget.step}"
        if not plan.study.budgets:
            yield from _later_steps(plan, checkpoints, budget)
    yield "ranked by", _ranked_by(plan)
    known = sorted({c.corpus for c in checkpoints if c.role == "target"})
    others = sorted(set(plan.corpus_names) - set(known))
    if known:
        pairs = len(known) * (len(known) - 1) // 2
        yield "judged", f"proxies, by how they order {pairs:,} pairs of {len(known)} corpora with a truth"
    if others:
        yield "not judged", f"the order of {_names(others)} ({NO_TRUTH})"


def _judged_models(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, str]]:
    """A table of the truth may leave out whole models and whole tasks."""
    last = [max(found, key=lambda c: c.step) for found in runs(list(checkpoints)).values()]
    target = plan.study.target
    yield "ranked by", _ranked_by(plan)
    if target is None:
        yield "not judged", f"the order of {len(last)} models ({NO_TRUTH})"
        return
    rows = None
    if target.table:
        table = with_full_names(read_target_table(target.table), short_names(list(checkpoints)), target.table)
        rows = table.filter(metric=target.metric)
    known = [c for c in last if rows is None or c.checkpoint in set(rows["checkpoint"])]
    tasks = [task for task in plan.task_names if rows is None or task in set(rows["task"])]
    yield "judged", f"scorers and proxies, by {target.metric} of {len(known)} models in {len(tasks)} tasks"
    if others := [c.corpus for c in last if c not in known]:
        yield "not judged", f"models without a truth, ranked by what the others teach: {_names(others)}"
    if others := [task for task in plan.task_names if task not in tasks]:
        yield "not judged", f"tasks without a truth, where models are ranked all the same: {_names(others)}"
    if max(Counter(c.family for c in known).values()) < FEWEST_OF_A_LABEL:
        yield "not judged", f"models of a new family (no family has {FEWEST_OF_A_LABEL} models to hold out)"
    recipes = Counter(c.recipe for c in known if c.recipe)
    if recipes and max(recipes.values()) < FEWEST_OF_A_LABEL:
        yield "not judged", f"models of a new recipe (no recipe has {FEWEST_OF_A_LABEL} models to hold out)"


def _ranked_by(plan: Plan) -> str:
    """The proxies that were named in advance; models are also ranked by all that others measured."""
    names = [proxy_name(proxy.statistic, proxy.weighting) for proxy in plan.study.highlighted]
    if plan.selects_models and plan.outside is not None:
        metrics = metrics_of(plan.study.target)
        others = [name for name in plan.outside["statistic"].unique(maintain_order=True) if name not in metrics]
        names = list(dict.fromkeys([*names, *others])) if plan.runs_models else others
    return ", ".join(names)


def _judged_forecasts(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, str]]:
    """A horizon is judged where a later checkpoint lies near it."""
    known = _with_truth_in_log(plan) if plan.curve else checkpoints_table(list(checkpoints), {})
    known = known.filter(~pl.col("run").is_in(list(plan.study.forecasting.models)))
    options, end = with_end(plan.study.forecasting, known)
    near = {h: h * options.horizon_tolerance for h in options.horizons}
    for (run,), found in known.group_by("run", maintain_order=True):
        cut = found.filter(pl.col("step") <= cut_of(run, options)).sort("step").row(-1, named=True)
        at_cut = f"times the compute of step {cut['step']:,}"
        if end and end.run == run:
            yield "end", f"of {run} at step {end.step:,}, {end.horizon:g} {at_cut}"
        times = (found["tokens"] / cut["tokens"]).to_list()
        reached = {h for h, most in near.items() if any(abs(time - h) <= most for time in times)}
        for label, horizons in (("judged", reached), ("not judged", near.keys() - reached)):
            if horizons:
                yield label, f"forecasts of {run} at {', '.join(f'{h:g}' for h in sorted(horizons))} {at_cut}"


def _with_truth_in_log(plan: Plan) -> pl.DataFrame:
    """The steps of the logged runs at which the metric is known."""
    tables = read_wide_curve(plan.curve, plan.study.target.metric)
    return tables["checkpoints"].join(tables["targets"], on="checkpoint", how="semi", maintain_order="left")
