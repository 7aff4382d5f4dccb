"""Options that need certain checkpoints: scaling laws their sizes, post-training its bases, a token view two models."""

from collections.abc import Sequence

from proxycast.config.errors import closest
from proxycast.config.training import STEP_FAMILY_NAMES
from proxycast.experiments.laws.scaling_laws import LAWS
from proxycast.options import InputError
from proxycast.proxy_formulas import BASELINES, RBRIDGE, TEMPERED
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.study.checkpoints import Checkpoint, base_run
from proxycast.study.study_plan import Plan
from proxycast.truth.outside_statistics import metrics_of


def require_laws(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """`selection.scaling_laws` needs a judged data selection, known sources, and enough sizes for each law."""
    options, key = plan.study.selection.scaling_laws, f"{plan.where}: selection.scaling_laws"
    if not (plan.selects_data and plan.study.target):
        raise InputError(f"{key}: found no data selection with a target; a law is predicted at the target's size")
    outside = [] if plan.outside is None else plan.outside["statistic"].unique(maintain_order=True).to_list()
    names = [*metrics_of(plan.study.target), *outside, *(BASELINES if plan.runs_models else [])]
    names += [RBRIDGE] if plan.study.writers else []
    names += [*TEMPERED] if plan.runs_models and plan.study.extraction.temperatures else []
    names += ["generic_cross_entropy"] if GENERIC_TEXT in plan.solution_names else []
    for number, source in enumerate(options.sources):
        if not plan.runs_models if source.weighting != "none" else source.statistic not in names:
            proxies = "and all proxies" if plan.runs_models else "but no proxies, as no model is run"
            raise InputError(
                f"{key}.sources[{number}]: found {source.statistic}, weighting {source.weighting}"
                f"{closest(source.statistic, names)}; there are {', '.join(dict.fromkeys(names))}, {proxies}"
            )
    largest = max(c.flops for c in checkpoints if c.role == "target")
    spent: dict[str, int] = {}
    for c in checkpoints:
        if c.role == "proxy" and c.size != plan.target_size:
            spent[c.size] = max(c.flops, spent.get(c.size, 0))
    below = {size: flops for size, flops in spent.items() if flops <= largest}
    for number, sizes in enumerate(options.sizes or [list(below)]):
        where = f"{key}.sizes[{number}]" if options.sizes else key
        _require_sizes_of_laws(options.laws, sizes, sorted(below, key=below.get), where)


def require_token_view(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """`token_view` names two candidates as their ranking does, or two checkpoints of a forecast."""
    names, key = plan.study.token_view or (), f"{plan.where}: token_view"
    if names and not plan.runs_models:
        raise InputError(f"{key}: no model is run, so there are no tokens to compare; remove the key")
    corpus_of = {c.run: c.corpus for c in checkpoints}
    is_one = len(set(corpus_of.values())) == len(corpus_of)  # model of each corpus: known by its name, else by its run
    known = list((corpus_of.values() if is_one else corpus_of) if plan.selects_models else ())
    known = known or (plan.corpus_names if plan.selects_data else [c.checkpoint for c in checkpoints])
    for number, name in enumerate(names):
        if name not in known:
            raise InputError(
                f"{key}[{number}]: {name!r} is unknown{closest(name, known)}; there are {', '.join(known)}"
            )
    if len(set(names)) < len(names):
        raise InputError(f"{key}: found {names[0]} twice; two candidates are compared")


def _require_sizes_of_laws(laws: Sequence[str], sizes: Sequence[str], known: Sequence[str], where: str) -> None:
    for size in sizes:
        if size not in known:
            raise InputError(
                f"{where}: {size!r} is no size of this study below the target's{closest(size, known)}; "
                f"there are {', '.join(known)}"
            )
    missing = [size for size in known if size not in sizes]
    more = f"add some of {', '.join(missing)}" if missing else "the study has no others below the target's"
    for law in laws:
        if len(sizes) < LAWS[law].sizes:
            found = ", ".join(sizes) or "none below the target's"
            raise InputError(f"{where}: {law} is fitted to at least {LAWS[law].sizes} sizes; found {found}; {more}")


def require_post_training(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """`InputError` for a study that has no place for it, unknown corpora or teacher, and tasks without steps."""
    options, key = plan.study.miniature.post_training, f"{plan.where}: miniature.post_training"
    if not plan.study.model_selection:
        raise InputError(
            f"{key}: it makes models, and corpora or curves are not compared by them; it needs `model_selection`"
        )
    trained = [corpus.name for corpus in plan.corpora if not corpus.checkpoints]
    for corpus in options.corpora if options.corpora != "all" else []:
        if corpus not in trained:
            raise InputError(
                f"{key}.corpora: {corpus!r} is no corpus that the study trains models on{closest(corpus, trained)}; "
                f"there are {', '.join(trained)}"
            )
    bases = list(dict.fromkeys(base_run(c) for c in checkpoints if c.run != base_run(c)))
    if options.teacher is not None and options.teacher not in bases:
        raise InputError(
            f"{key}.teacher: {options.teacher!r} is no run that is post-trained{closest(options.teacher, bases)}; "
            f"there are {', '.join(bases)}"
        )
    for task in plan.tasks:
        if task.family and task.family not in STEP_FAMILY_NAMES:
            raise InputError(
                f"{key}: task {task.name!r}: its family {task.family!r} has no worked solutions of several steps to "
                f"learn from; those that have are {', '.join(STEP_FAMILY_NAMES)}"
            )
    if not any(task.family for task in plan.tasks):
        raise InputError(f"{key}: found no task with a family of the suite, whose training questions it could ask")
