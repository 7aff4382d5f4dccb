"""Which corpus: the decision by the proxy that was named first, at the last budget, and how far to trust it."""

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from proxycast.experiments.data_selection.corpus_truth import about_noisy_metric
from proxycast.experiments.reliability import NOISE
from proxycast.proxy_formulas import proxy_name
from proxycast.report.page.answers.cost_facts import facts_of_cost
from proxycast.report.page.answers.judge_facts import facts_of_judges
from proxycast.report.page.answers.other_orders import fact_of_cheapest, fact_of_other_orders
from proxycast.report.page.answers.wording import (
    Answer,
    Fact,
    Row,
    brackets,
    clause_of_leader,
    clause_of_undecided,
    cost,
    counted,
    fact_of_pairs,
    first_row,
    leading,
    listed,
    percent,
    sentence,
    versus,
    why,
)
from proxycast.report.page.formats import with_interval
from proxycast.report.page.study_results import StudyResults


class CorpusOrder(NamedTuple):
    """The order of the corpora that answers the study: by which proxy, and its rows of two tables."""

    proxy: dict[str, str]  # statistic, weighting
    cell: dict[str, object]  # size, step
    ranking: pl.DataFrame
    pairs: pl.DataFrame

    @property
    def name(self) -> str:
        return proxy_name(**self.proxy)

    @property
    def seeds(self) -> int:
        return self.ranking["seeds"].min()


def corpus_order(results: StudyResults) -> CorpusOrder | None:
    """By the proxy that was named first (or the table's first, where that one is not known), at the last budget."""
    ranking, pairs = (results.table(f"data_selection/{name}") for name in ("ranking", "pairs"))
    if ranking is None:
        return None
    named = [proxy.model_dump(include={"statistic", "weighting"}) for proxy in results.study.highlighted[:1]]
    proxies = [*named, *ranking.select("statistic", "weighting").head(1).rows(named=True)]
    proxy = next(proxy for proxy in proxies if len(ranking.filter(**proxy)))
    cells = [{"size": last.size, "step": last.step} for last in results.budgets[-1:]]
    cells += ranking.filter(**proxy).select("size", "step").tail(1).rows(named=True)
    cell = next(cell for cell in cells if len(ranking.filter(**proxy, **cell)))
    ranking = ranking.filter(**proxy, **cell).sort("place", "corpus")
    schema = {"better": pl.String, "worse": pl.String, "told_apart": pl.Boolean}  # one corpus has no pairs
    pairs = pl.DataFrame(schema=schema) if pairs is None else pairs.filter(**proxy, **cell)
    return CorpusOrder(proxy, cell, ranking, pairs)


def corpus_answer(results: StudyResults) -> Answer | None:
    """The answer of a data selection, with or without a truth; None without a ranking."""
    order = corpus_order(results)
    if order is None:
        return None
    facts = [Fact("Decided by", _decided_by(order, results)), *fact_of_pairs(order.pairs)]
    clauses = [clause_of_leader(order.ranking, "corpus", "corpora")]
    undecided = list(clause_of_undecided(order.ranking, order.pairs, "corpus", "corpora"))
    missing, warning = list(_missing_of_order(order)), ""
    if results.study.target is None:
        clauses += [*undecided, *_clauses_of_agreement(order, results)]
        facts += facts_of_judges(results.table("data_selection/judged"), "corpus", **order.cell)
        missing.append("How often such an order is right: the study has no truth.")
    else:
        evidence, metric = _evidence(order, results), results.study.target.metric
        clauses += [*_clause_of_accuracy(order, evidence), *undecided, *_clause_of_pick(order, evidence, metric)]
        facts += [*_facts_of_truth(order, evidence, results), *fact_of_cheapest(results)]
        facts += fact_of_other_orders(results, order.proxy | order.cell, metric)
        missing += _missing_of_truth(order, evidence)
        if evidence.truth and evidence.truth["verdict"] == NOISE:
            warning = about_noisy_metric(evidence.truth)
    facts += facts_of_cost(results, order.cell)
    facts.append(brackets(results.study.selection.confidence, results.study.target, clauses, facts))
    return Answer(sentence(clauses), facts, missing, warning)


def _decided_by(order: CorpusOrder, results: StudyResults) -> str:
    named = [proxy_name(proxy.statistic, proxy.weighting) for proxy in results.study.highlighted]
    first = ", the first that was named in advance" if order.name in named[:1] else ""
    seeds = f"mean over {order.seeds} seeds" if order.seeds > 1 else "one seed"
    return f"{order.name}{first}, of {order.cell['size']} models at step {order.cell['step']:,}, {seeds}"


def _missing_of_order(order: CorpusOrder) -> Iterator[str]:
    if len(order.pairs) and order.pairs["told_apart"].null_count() == len(order.pairs):
        yield "How sure the order is: with one seed and one score a task, nothing can be resampled."
    elif order.seeds == 1 and len(order.ranking) > 1:
        yield "The noise between training seeds: there is one seed, so intervals of places are over solutions alone."


class Evidence(NamedTuple):
    """Rows of the order's proxy at its budget; None where a table or its row is missing."""

    truth: Row | None  # of the target's metric
    decisions: Row | None  # decision accuracy, predictions averaged over seeds as in the ranking
    one_seed: Row | None  # the same of a single seed
    choice: Row | None  # what the pick costs
    baseline: Row | None  # decision accuracy of the best baseline
    baseline_choice: Row | None  # what its pick costs


def _evidence(order: CorpusOrder, results: StudyResults) -> Evidence:
    accuracies, metric = results.table("data_selection/decision_accuracy"), results.study.target.metric
    choices = results.table("data_selection/choices")
    where = {"truth": metric, "task": "all", **order.cell}
    decisions = first_row(accuracies, **where, **order.proxy, seed="mean")
    best = {"kind": "baseline", "statistic": (decisions or {}).get("best_baseline") or "", "seed": "mean"}
    return Evidence(
        first_row(results.table("data_selection/truth"), metric=metric),
        decisions,
        first_row(accuracies, **where, **order.proxy, seed="single"),
        first_row(choices, **order.cell, **order.proxy, seed="mean"),
        first_row(accuracies, **where, **best),
        first_row(choices, **order.cell, **best),
    )


def _clause_of_accuracy(order: CorpusOrder, evidence: Evidence) -> Iterator[str]:
    if _is_known(decisions := evidence.decisions):
        right = with_interval(decisions, "decision_accuracy", ".2f", "low", "high")
        fraction = decisions["compute_fraction"]
        at = "" if fraction is None else f" at {percent(fraction * order.seeds)} of the target's compute"
        least = decisions["decision_accuracy"] if decisions["low"] is None else decisions["low"]
        yield f"{right} of pairs decided rightly{at}{', not shown to beat guessing (0.5)' * (least <= 0.5)}"


def _clause_of_pick(order: CorpusOrder, evidence: Evidence, metric: str) -> Iterator[str]:
    choice, leaders = evidence.choice, leading(order.ranking, "corpus")
    if not choice or choice["regret"] is None or choice["picked"] is None:
        return
    price = cost(choice, "regret", metric, "regret_low", "regret_high")
    it = "it" if len(leaders) == 1 else "one of them"
    if choice["picked"] != ", ".join(leaders):  # a corpus without a truth leads
        it = f"{_named(choice['picked'])}, the first with a truth,"
    if choice["picked"] == choice["best"]:
        yield f"picking {it} costs {price}, as none is better by the truth"
    else:
        yield f"picking {it} instead of the true best ({_named(choice['best'])}) costs {price}"


def _named(names: str) -> str:
    """Corpora as the table choices names those that tie."""
    return listed(names.split(", "))


def _facts_of_truth(order: CorpusOrder, evidence: Evidence, results: StudyResults) -> Iterator[Fact]:
    target = results.study.target
    decisions, baseline, choice, truth = evidence.decisions, evidence.baseline, evidence.choice, evidence.truth
    if decisions and decisions["best_baseline"]:
        name = decisions["best_baseline"]
        if order.proxy == {"statistic": name, "weighting": "none"}:
            yield Fact("Best baseline", f"{name}, which is what decides here")
        else:
            right = (
                f" ({with_interval(baseline, 'decision_accuracy', '.2f', 'low', 'high')})"
                if _is_known(baseline)
                else ""
            )
            yield Fact("Best baseline", f"in hindsight {name}{right}; {versus(decisions, order.name)}")
    if order.seeds > 1 and _is_known(single := evidence.one_seed):
        fraction = single["compute_fraction"]
        at = "" if fraction is None else f" at {percent(fraction)} of the target's compute"
        right = with_interval(single, "decision_accuracy", ".2f", "low", "high")
        yield Fact("One seed", f"a single seed of the small models decides {right} of pairs rightly{at}")
    if truth and truth["ceiling_decision_accuracy"] is not None:
        ends = "ceiling_decision_accuracy_low", "ceiling_decision_accuracy_high"
        ceiling = with_interval(truth, "ceiling_decision_accuracy", ".2f", *ends)
        models = f" of {target.size} models" if target.size else ""
        what = f"the truth, {target.metric}{models}, {counted(truth['seeds'], 'seed')}, is {truth['verdict']}"
        yield Fact("Noise ceiling", f"a perfect prediction is expected to decide {ceiling} rightly; {what}")
    if choice and choice["random_regret"] is not None:
        yield Fact("Other picks", ", ".join(_other_picks(order, evidence, target.metric)))


def _is_known(decisions: Row | None) -> bool:
    return bool(decisions) and decisions["decision_accuracy"] is not None


def _other_picks(order: CorpusOrder, evidence: Evidence, metric: str) -> Iterator[str]:
    yield f"a random one costs {cost(evidence.choice, 'random_regret', metric)}"
    other = evidence.baseline_choice
    is_other = other and order.proxy["statistic"] != other["statistic"]
    if is_other and other["regret"] is not None and other["picked"] is not None:
        price = cost(other, "regret", metric, "regret_low", "regret_high")
        yield f"that of {other['statistic']} ({_named(other['picked'])}) {price}"


def _missing_of_truth(order: CorpusOrder, evidence: Evidence) -> Iterator[str]:
    decisions, choice, truth = evidence.decisions, evidence.choice, evidence.truth
    unknown = order.ranking.filter(pl.col("truth").is_null())["corpus"].to_list()
    if unknown:
        yield f"The truth of {listed(unknown)}: ranked with the others, but not judged."
    if not _is_known(decisions):
        yield "How many pairs are decided rightly: the tables do not have it."
    else:
        if decisions["low"] is None:
            yield f"The interval of the share of pairs decided rightly{why(decisions)}."
        if not decisions["best_baseline"]:
            yield "Whether a plain baseline does as well: there is none."
    if not choice or choice["regret"] is None:
        yield "What the pick costs: the tables do not have it."
    elif choice["regret_low"] is None:
        yield f"The interval of what the pick costs{why(choice)}."
    if not truth or truth["ceiling_decision_accuracy"] is None:
        yield f"The noise ceiling{why(truth)}."


def _clauses_of_agreement(order: CorpusOrder, results: StudyResults) -> Iterator[str]:
    """How far the other proxies that were named in advance agree with the order, at the same budget."""
    found = _agreement(order, results.table("data_selection/agreement"))
    if len(found) == 1:
        yield f"the order by {found[0][0]} correlates with this one at {found[0][1]:.2f}"
    elif found:
        name, rho = min(found, key=lambda other: other[1])
        yield f"the orders by {len(found)} other proxies correlate with this one at {rho:.2f} ({name}) or more"


def _agreement(order: CorpusOrder, agreement: pl.DataFrame | None) -> list[tuple[str, float]]:
    """(Other proxy, Spearman's rho with the order), at the order's budget."""
    if agreement is None:
        return []
    found = []
    for own, other in (("", "other_"), ("other_", "")):  # each pair of orders has one row
        here = {f"{own}{name}": value for name, value in (order.proxy | order.cell).items()}
        here |= {f"{other}{name}": value for name, value in order.cell.items()}
        rows = agreement.filter(pl.col("spearman").is_finite(), **here)
        found += rows.select(f"{other}statistic", f"{other}weighting", "spearman").rows()
    return [(proxy_name(statistic, weighting), rho) for statistic, weighting, rho in found]
