"""Names of baselines and statistics that a study may give: only those that it will have values of."""

from proxycast.config.errors import closest
from proxycast.options import InputError
from proxycast.proxy_formulas import BASELINES, RBRIDGE, TEMPERED
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.study.study_plan import Plan
from proxycast.truth.outside_statistics import metrics_of

KNOWN_OF_MODELS = ("parameters", "training_compute")


def require_scored_baselines(plan: Plan, where: str) -> None:
    """Without a truth there are only what models are scored for, what others measured, and what is known of models."""
    known = scored_baselines(plan)
    if any(proxy.weighting == "none" and proxy.statistic not in known for proxy in plan.study.highlighted):
        known += names_outside(plan)  # a job that needs no such name reads no table
    for number, proxy in enumerate(plan.study.highlighted):
        if proxy.weighting == "none" and proxy.statistic not in known:
            needed = dict.fromkeys(TEMPERED, "extraction.temperatures") | {"generic_cross_entropy": "generic_text"}
            missing = f"; it needs {needed[proxy.statistic]}" if proxy.statistic in needed else ""
            raise InputError(
                f"{where}: highlighted[{number}]: without a truth there is no baseline {proxy.statistic!r}{missing}"
                f"{closest(proxy.statistic, known)}; there are {', '.join(known)}"
            )


def scored_baselines(plan: Plan) -> list[str]:
    known = [*BASELINES, *(["generic_cross_entropy"] if GENERIC_TEXT in plan.solution_names else [])]
    if plan.selects_models:
        known += [*(["generic_bits_per_byte"] if GENERIC_TEXT in plan.solution_names else []), *KNOWN_OF_MODELS]
    known += [RBRIDGE] if plan.study.writers else []
    return known + ([*TEMPERED] if plan.study.extraction.temperatures else [])


def names_outside(plan: Plan) -> list[str]:
    """The statistics that others measured."""
    return [] if plan.outside is None else plan.outside["statistic"].unique(maintain_order=True).to_list()


def require_measured_outside(plan: Plan) -> None:
    """Where no model is run, corpora are ranked by statistics that others measured and the study names in advance.

    Models are ranked by all that there are.
    """
    study, is_given = plan.study, "highlighted" in plan.study.model_fields_set
    if not plan.selects_data and not is_given:
        return
    known = [*names_outside(plan), *(KNOWN_OF_MODELS if plan.selects_models else ()), *metrics_of(study.target)]
    for number, proxy in enumerate(study.highlighted):
        if proxy.weighting != "none" or proxy.statistic not in known:
            raise InputError(
                f"{plan.where}: highlighted{f'[{number}]' if is_given else ''}: "
                f"{f'found {proxy.statistic}, weighting {proxy.weighting}' if is_given else 'missing'}; no model is "
                f"run, so there are only the statistics of {study.statistics.table}, with the weighting none: "
                f"{', '.join(dict.fromkeys(known))}"
            )
