"""What a claim may name, checked before the first job, and the words for what becomes of it."""

from collections.abc import Collection

from proxycast.config.errors import closest
from proxycast.config.experiments.selection_options import Claim
from proxycast.config.study import Study
from proxycast.experiments.model_selection.known_models import BASE_TRUTH, tells_post_training
from proxycast.options import InputError
from proxycast.proxy_formulas import STATISTICS, WEIGHTINGS

SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"


def require_known_claim(
    study: Study, claim: Claim, baselines: Collection[str], recipes: Collection[str], where: str
) -> None:
    """`InputError` for a method that the study does not judge, and for a population that its models do not tell.

    `baselines`: those of the study; `recipes`: of its models; `where`: the study's file.
    """
    if study.target is None:
        raise InputError(f"{where}: model_selection.claim: without target nothing judges it; remove the key")
    scorers = study.model_selection.scorers
    baselines = [*baselines, *((BASE_TRUTH,) if tells_post_training(recipes) else ())]
    proxies = {f"{statistic}/{weighting}" for statistic in STATISTICS for weighting in WEIGHTINGS}
    for key in ("methods", "against"):
        for number, name in enumerate(getattr(claim, key)):
            place = f"{where}: model_selection.claim.{key}[{number}]"
            if name not in {*scorers, *baselines} | proxies:
                close = closest(name, [*scorers, *baselines, *sorted(proxies)])
                raise InputError(
                    f"{place}: {name!r} is unknown{close}; known are {', '.join([*scorers, *baselines])} and proxies "
                    "as in top1_accuracy/uniform"
                )
    if both := [name for name in claim.methods if name in claim.against]:
        raise InputError(f"{where}: model_selection.claim: {both[0]} stands in methods and in against; remove one")
    others = [population for population in claim.populations if population != "all"]
    if others and not tells_post_training(recipes):
        found = ", ".join(sorted({recipe or "unknown" for recipe in recipes}))
        raise InputError(
            f"{where}: model_selection.claim.populations: {others[0]!r} needs models of the recipe none and of others; "
            f"found {found}"
        )
