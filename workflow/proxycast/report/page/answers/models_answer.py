"""Which model: the decision by the method that the ranking names first, and how far to trust it."""

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from proxycast.experiments.reliability import NOISE
from proxycast.report.page.answers.claim_facts import facts_of_claims
from proxycast.report.page.answers.cost_facts import facts_of_cost
from proxycast.report.page.answers.judge_facts import facts_of_judges
from proxycast.report.page.answers.wording import (
    Answer,
    Fact,
    Row,
    brackets,
    clause_of_leader,
    clause_of_undecided,
    cost,
    fact_of_pairs,
    first_row,
    listed,
    sentence,
    versus,
    why,
)
from proxycast.report.page.formats import with_interval
from proxycast.report.page.study_results import StudyResults

TWO_TASKS = "two_tasks"  # the split in which pairs of tasks are held out


class ModelOrder(NamedTuple):
    """The order of the models that answers the study: by which method, and its rows of three tables."""

    task: str
    method: str
    tail: str
    ranking: pl.DataFrame
    pairs: pl.DataFrame
    agreement: pl.DataFrame | None

    @property
    def first(self) -> Row:
        return first_row(self.ranking)


def model_order(results: StudyResults) -> ModelOrder | None:
    """By the method and over the tasks that the ranking names first."""
    ranking = results.table("model_selection/ranking")
    if ranking is None:
        return None
    key = dict(zip(("task", "method", "tail"), ranking.select("task", "method", "tail").row(0)))
    pairs, agreement = (results.table(f"model_selection/{name}") for name in ("pairs", "agreement"))
    none = {"better": pl.String, "worse": pl.String, "told_apart": pl.Boolean}  # of one model
    return ModelOrder(
        **key,
        ranking=ranking.filter(**key).sort("place", "model"),
        pairs=pl.DataFrame(schema=none) if pairs is None else pairs.filter(**key),
        agreement=None if agreement is None else agreement.filter(pl.col("spearman").is_finite(), **key),
    )


def model_answer(results: StudyResults) -> Answer | None:
    """The answer of a model selection, with or without a truth; None without a ranking."""
    order = model_order(results)
    if order is None:
        return None
    clauses = [clause_of_leader(order.ranking, "model", "models")]
    undecided = list(clause_of_undecided(order.ranking, order.pairs, "model", "models"))
    facts = [Fact("Decided by", _decided_by(order)), *fact_of_pairs(order.pairs)]
    missing, warning = list(_missing_of_order(order)), ""
    if results.study.target is None:
        clauses += [*undecided, *_clauses_of_agreement(order)]
        missing.append("How often such an order is right: the study has no truth.")
    else:
        evidence, metric = _evidence(order, results), results.study.target.metric
        clauses += [*_clause_of_rho(evidence), *undecided, *_clause_of_pick(evidence, metric)]
        facts += _facts_of_truth(order, evidence, metric)
        facts += facts_of_claims(results.table("model_selection/claims"))
        missing += _missing_of_truth(order, evidence)
        if evidence.truth and evidence.truth["verdict"] == NOISE:
            warning = _about_noise(evidence.truth, metric)
    facts += facts_of_judges(results.table("model_selection/judged"), "model", task=order.task)
    facts += facts_of_cost(results)
    facts.append(brackets(results.study.selection.confidence, results.study.target, clauses, facts))
    return Answer(sentence(clauses), facts, missing, warning)


def _decided_by(order: ModelOrder) -> str:
    if order.first["held_out_spearman"] is not None:
        return f"{order.method}, which does best where two tasks are held out"
    return f"{order.method}, {'named in advance' if order.tail else 'which nothing judges'}"


def _missing_of_order(order: ModelOrder) -> Iterator[str]:
    if len(order.pairs) and order.pairs["told_apart"].null_count() == len(order.pairs):
        yield "How sure the order is: with one score a task, nothing can be resampled."
    elif order.first["interval_over"]:
        yield f"How the order varies beyond these solutions: intervals are over {order.first['interval_over']}."


class Evidence(NamedTuple):
    """Rows of the order's method where two tasks are held out; None where a table or its row is missing."""

    truth: Row | None  # over all tasks
    held_out: Row | None  # rho; of a proxy, which learns nothing, over all tasks
    choice: Row | None  # what the pick costs on a task that was held out
    baseline: Row | None  # rho of the best baseline


def _evidence(order: ModelOrder, results: StudyResults) -> Evidence:
    summary, where = results.table("model_selection/summary"), {"split": TWO_TASKS}
    own = {"method": order.method, "tail": order.tail}
    held_out = first_row(summary, **where, **own)
    if held_out is None and "/" in order.method:
        statistic, weighting = order.method.split("/", 1)
        alone = results.table("model_selection/proxies")
        held_out = first_row(alone, statistic=statistic, weighting=weighting, tail=order.tail, task="all")
    best = (first_row(summary, **where) or {}).get("best_baseline")
    return Evidence(
        first_row(results.table("model_selection/truth"), task="all"),
        held_out,
        first_row(results.table("model_selection/choices"), **where, **own),
        _labelled(summary, best),
    )


def _labelled(summary: pl.DataFrame | None, label: str | None) -> Row | None:
    """The baseline's row, by its name as the column `best_baseline` has it: "bits_per_byte (tokens)"."""
    if summary is None or not label:
        return None
    own = pl.when(pl.col("tail") == "").then("method").otherwise(pl.format("{} ({})", "method", "tail"))
    return first_row(summary.filter(own == label, kind="baseline", split=TWO_TASKS))


def _clause_of_rho(evidence: Evidence) -> Iterator[str]:
    if (held_out := evidence.held_out) and held_out["spearman"] is not None:
        rho = with_interval(held_out, "spearman", ".2f", "low", "high")
        on = "on tasks that were held out" if "split" in held_out else "over all tasks"
        yield f"such an order has a rank correlation of {rho} with the truth {on}"


def _clause_of_pick(evidence: Evidence, metric: str) -> Iterator[str]:
    if evidence.choice and evidence.choice["regret"] is not None:
        price = cost(evidence.choice, "regret", metric, "regret_low", "regret_high")
        yield f"its pick instead of the true best costs {price} on such a task"


def _about_noise(truth: Row, metric: str) -> str:
    ends = "reliability_low", "reliability_high"
    reliability = "" if truth["reliability"] is None else with_interval(truth, "reliability", ".2f", *ends)
    return f"The truth may be noise: {metric} has a reliability of {reliability}; nothing can be concluded from it."


def _facts_of_truth(order: ModelOrder, evidence: Evidence, metric: str) -> Iterator[Fact]:
    held_out, baseline, choice, truth = evidence.held_out, evidence.baseline, evidence.choice, evidence.truth
    if held_out and baseline and baseline["spearman"] is not None:
        name, rho = baseline["method"], with_interval(baseline, "spearman", ".2f", "low", "high")
        if (name, baseline["tail"]) == (order.method, order.tail):
            yield Fact("Best baseline", f"{name}, which is what decides here")
        else:
            beats = versus(held_out, order.method) if "difference" in held_out else "the difference has no interval"
            yield Fact("Best baseline", f"in hindsight {name}, {rho} on tasks that were held out; {beats}")
    if truth and truth["ceiling"] is not None:
        ceiling = with_interval(truth, "ceiling", ".2f", "ceiling_low", "ceiling_high")
        quality = f"the truth is: {truth['verdict']}"
        yield Fact("Noise ceiling", f"a perfect prediction is expected to reach {ceiling}; {quality}")
    if choice and choice["random_regret"] is not None:
        yield Fact("Other picks", f"a random one costs {cost(choice, 'random_regret', metric)}")
    if (unmeasured := _unmeasured(order)) and len(unmeasured) < len(order.ranking):
        yield Fact("Not measured", f"{listed(unmeasured)}: ranked with the others")


def _unmeasured(order: ModelOrder) -> list[str]:
    return order.ranking.filter(pl.col("truth").is_null())["model"].to_list()


def _missing_of_truth(order: ModelOrder, evidence: Evidence) -> Iterator[str]:
    held_out, choice, truth = evidence.held_out, evidence.choice, evidence.truth
    if not held_out or held_out["spearman"] is None:
        yield f"How right such an order is on tasks that were held out{why(held_out)}."
    else:
        if held_out["low"] is None:
            yield f"The interval of that correlation{why(held_out)}."
        if not evidence.baseline:
            yield "Whether a plain baseline does as well: there is none."
    if not choice or choice["regret"] is None:
        yield f"What the pick of {order.method} costs on a task that was held out{why(choice)}."
    elif choice["regret_low"] is None:
        yield f"The interval of what the pick costs{why(choice)}."
    if not truth or truth["ceiling"] is None:
        yield f"The noise ceiling{why(truth)}."
    if order.first["rests_on"] not in ("", "nothing learned"):
        yield f"The leader's place by what was held out: {order.method} was fitted ({order.first['rests_on']})."


def _clauses_of_agreement(order: ModelOrder) -> Iterator[str]:
    if order.agreement is not None and len(order.agreement):
        others = order.agreement.unique("other_method", keep="first", maintain_order=True)
        name, rho = others.sort("spearman").select("other_method", "spearman").row(0)
        orders = (
            f"the orders by {len(others)} other methods correlate" if len(others) > 1 else "another order correlates"
        )
        yield f"{orders} with this one at {rho:.2f} ({name}){' or more' * (len(others) > 1)}"
