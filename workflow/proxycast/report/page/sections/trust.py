"""Why the page may be believed: the truth, what was fixed in advance, warnings, and where each number is from."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote

import polars as pl
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proxycast.experiments.reliability import NOISE, UNKNOWN, VERDICTS
from proxycast.options import printable
from proxycast.proxy_formulas import WEIGHTINGS, proxy_name
from proxycast.report.page.blocks import Block, Column, Dataset, Html, Note, Section, Table
from proxycast.report.page.formats import with_interval
from proxycast.report.page.sections.provenance import (
    anchor_of,
    has_logs,
    relative,
    tables_used,
    versions,
    warnings_of,
)
from proxycast.report.page.study_results import StudyResults

NAMED = 3  # best proxies of a budget, found in hindsight


def trust_section(results: StudyResults, sections: Sequence[Section]) -> Section:
    """The section. `sections`: the others of the page, whose tables are told."""
    templates = Environment(
        loader=PackageLoader("proxycast.report.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["anchor_of"] = anchor_of
    macros = templates.get_template("trust.html.j2").module
    glossary = Html("glossary", "Words", Markup(macros.glossary(_words(results))))
    blocks = [glossary, *_truth(results), *_fixed(results, macros), *_weightings(results, macros)]
    blocks += _warnings(results, macros)
    used = tables_used([*sections, Section("trust", "", blocks)], results.results, results.rules)
    return Section("trust", "Why believe it", [*blocks, *_origin(results, used, macros)])


# --- Words


def _words(results: StudyResults) -> dict[str, str]:
    """Words of the page that this study needs -> what they mean."""
    tables = ("data_selection/ranking", "model_selection/ranking", "forecasting/forecasts")
    has_corpora, has_models, has_forecasts = (results.table(name) is not None for name in tables)
    words, target = (
        {"Proxy": "a number that a cheap model gives and that should foretell the truth"},
        results.study.target,
    )
    if results.table("token_view") is not None:
        words["Expert solutions"] = (
            "worked solutions of the tasks by people or strong models, which models only read, token by token"
        )
    if target is not None:
        whose = (
            "large models trained on the corpora"
            if has_corpora
            else "the models"
            if has_models
            else "later checkpoints"
        )
        words["Target"] = f"where the truth is from, which is to be foretold: {target.metric} of {whose}"
    if has_corpora:
        words["Budget"] = "the size and training step of the small models whose proxies are compared"
    if target is not None and has_corpora:
        words["Decision accuracy"] = (
            "the share of pairs of corpora that a proxy orders as the truth does; 0.5 is guessing"
        )
    if target is not None and has_models:
        words["Spearman's rho"] = "how alike two orders of the models are: 1 is the same, 0 unrelated, -1 the reverse"
    if target is not None and (has_corpora or has_models):
        words["Regret"] = "what a pick costs: how much worse its truth is than that of the best candidate"
        words["Noise ceiling"] = "what a perfect prediction would be expected to reach, as the truth itself is noisy"
    if results.study.extraction.temperatures:
        words["Tempered"] = (
            "a loss after each model's logits were divided by one temperature, fitted to the expert solutions"
        )
    if has_forecasts:
        words["Cut"] = "the checkpoint at which a forecast stops looking; the later ones judge it"
    return words


# --- How reliable the truth is


def _truth(results: StudyResults) -> list[Block]:
    corpora, models = results.table("data_selection/truth"), results.table("model_selection/truth")
    if corpora is None and models is None:
        why = "the study has no truth (`target`)" if results.study.target is None else "it has no table `truth`"
        return [Note(f"Nothing on this page was compared with a truth: {why}.", is_caution=True)]
    interval = f"In brackets: {results.study.selection.confidence:.0%} intervals."
    ceiling = f"No prediction is expected to exceed the ceiling, since the truth itself is noisy. {_verdicts()}"
    blocks: list[Block] = []
    if corpora is not None:
        columns = [
            Column("metric", "Metric"),
            Column("verdict", "Verdict"),
            Column("reliability", "Reliability", ".2f", "reliability_low", "reliability_high"),
            Column(
                "ceiling_decision_accuracy",
                "Ceiling of decision accuracy",
                ".2f",
                "ceiling_decision_accuracy_low",
                "ceiling_decision_accuracy_high",
            ),
            Column("ceiling_spearman", "Ceiling of rho", ".2f"),
            Column("corpora", "Corpora"),
            Column("tasks", "Tasks"),
            Column("seeds", "Seeds"),
            Column("note", "Note"),
        ]
        dataset = Dataset("truth_of_corpora", corpora, "data_selection/truth")
        title = "How reliable the truth of the corpora is"
        about = "Reliability is the share of the variance between corpora that is no noise between seeds."
        blocks.append(Table("truth-of-corpora", title, dataset, columns, f"{about} {ceiling} {interval}"))
    if models is not None:
        columns = [
            Column("task", "Task"),
            Column("verdict", "Verdict"),
            Column("reliability", "Reliability", ".2f", "reliability_low", "reliability_high"),
            Column("ceiling", "Ceiling of rho", ".2f", "ceiling_low", "ceiling_high"),
            Column("models", "Models"),
            Column("note", "Note"),
        ]
        dataset = Dataset("truth_of_models", models, "model_selection/truth")
        title = "How reliable the truth of the models is"
        about = (
            "Reliability is the share of the variance between models that does not come from the choice of problems."
        )
        blocks.append(Table("truth-of-models", title, dataset, columns, f"{about} {ceiling} {interval}"))
    return blocks


def _verdicts() -> str:
    """The words for a reliability (`reliability.verdict`)."""
    bounds = [f'"{word}" below {bound:g}' for bound, word in VERDICTS[:-1]]
    return (
        f'Verdicts: {", ".join(bounds)}, "{VERDICTS[-1][1]}" above; "{NOISE}" if the reliability, or the lower end of '
        f'its interval, is not above 0; "{UNKNOWN}" if nothing is known of the noise.'
    )


# --- What was fixed in advance


def _fixed(results: StudyResults, macros) -> list[Block]:
    best = _best(results)
    rows = [*_of_the_study(results), *_of_hindsight(results, best)]
    datasets = [] if best is None else [best]
    caption = (
        "Fixed in advance is what the study's file says, or a rule that does not see the truth. What was found in "
        "hindsight is the luckiest of many, so it looks better here than it will elsewhere. The page knows what the "
        "study's file says, not when it was written: compare the configuration below with a copy that is older than "
        "the truth, such as a commit."
    )
    caption += " Decision accuracies are those of a single seed." if best is not None else ""
    markup = Markup(macros.fixed(rows))
    return [Html("fixed", "What was fixed in advance, and what was not", markup, datasets, caption)]


def _row(what: str, fixed: str, value: str) -> dict[str, str]:
    return {"what": what, "fixed": fixed, "value": value}


def _of_the_study(results: StudyResults) -> Iterator[dict[str, str]]:
    study = results.study
    proxies = ", ".join(proxy_name(proxy.statistic, proxy.weighting) for proxy in study.highlighted)
    yield _row("Proxies", "yes" if "highlighted" in study.model_fields_set else "yes, by default", proxies)
    if results.budgets:
        budgets = "; ".join(f"{b.name}: size {b.size}, step {b.step}" for b in results.budgets)
        by_rule = "by a rule: the largest size below the target's, at the last step that all corpora have"
        yield _row("Budgets", "yes" if study.budgets else by_rule, budgets)
    yield _row("Thresholds of decision accuracy", "yes", ", ".join(f"{t:g}" for t in study.selection.thresholds))
    samples = f"{study.selection.confidence:.0%}, {study.selection.bootstrap_replicates} bootstrap samples"
    yield _row("Confidence of intervals", "yes", f"{samples}, seed {study.selection.seed}")
    if study.target:
        yield _row("Metric of the truth", "yes", study.target.metric)
    if study.model_selection:
        yield _row("Scorers that may win", "yes", ", ".join(study.model_selection.scorers))
    rehearsal = results.table("forecasting/rehearsal")
    if rehearsal is not None:
        chosen = rehearsal.filter("chosen")["method"].to_list()
        by_rule = "by a rehearsal on the checkpoints before the cut"
        yield _row("Method of the forecasts", by_rule, ", ".join(chosen) or "none: the rehearsal could choose none")


def _of_hindsight(results: StudyResults, best: Dataset | None) -> Iterator[dict[str, str]]:
    summary = results.table("data_selection/summary")
    for budget in [budget.name for budget in results.budgets] if summary is not None else []:
        rows = best.frame.filter(budget=budget) if best else summary.clear()
        told = [
            proxy_name(r["statistic"], r["weighting"])
            + " "
            + with_interval(r, "decision_accuracy", ".2f", "low", "high")
            for r in rows.iter_rows(named=True)
        ]
        if told:
            yield _row(f'Best proxies, budget "{budget}"', "no, in hindsight", "; ".join(told))
        baseline = summary.filter(budget=budget)["best_baseline"].drop_nulls()
        if len(baseline):
            yield _row(f'Best baseline, budget "{budget}"', "no, in hindsight", baseline[0])
    ranking = results.table("model_selection/ranking")
    if ranking is not None:
        method, rho = ranking.select("method", "held_out_spearman").row(0)
        fixed = "yes, named first" if rho is None else "no, the best on held-out tasks"
        yield _row("Method that orders the models", fixed, method if rho is None else f"{method}, rho {rho:.2f} there")
    models = results.table("model_selection/summary")
    for split in models["split"].unique(maintain_order=True) if models is not None else []:
        baseline = models.filter(split=split)["best_baseline"].drop_nulls()
        if len(baseline):
            yield _row(f"Best baseline, split {split}", "no, in hindsight", baseline[0])
    errors = results.table("forecasting/errors")
    if errors is not None and (baselines := errors["best_baseline"].drop_nulls().unique(maintain_order=True).to_list()):
        yield _row("Best baselines of the forecasts", "no, in hindsight", ", ".join(filter(None, baselines)))


def _best(results: StudyResults) -> Dataset | None:
    """The best proxies of each budget that nobody fixed in advance."""
    summary = results.table("data_selection/summary")
    if summary is None:
        return None
    free = summary.filter(pl.col("kind") == "proxy", ~pl.col("highlighted"))
    best = free.sort("decision_accuracy", descending=True, nulls_last=True, maintain_order=True)
    best = best.filter(pl.int_range(pl.len()).over("budget") < NAMED)
    return (
        None if best.is_empty() else Dataset("best_in_hindsight", best, "data_selection/summary", "best in hindsight")
    )


def _weightings(results: StudyResults, macros) -> list[Block]:
    if all(proxy.weighting == "none" for proxy in results.study.highlighted) and _best(results) is None:
        return []  # it compares what others measured, or baselines
    caption = (
        "A weighting that depends on the candidate counts each model's tokens by that model's own distribution. Two "
        "candidates are then compared over different weights, and a worse one can look better: the order can be "
        "inverted. The weightings that do not depend on it count the same tokens alike for all."
    )
    rows = [(name, weighting.formula, weighting.depends_on_candidate) for name, weighting in WEIGHTINGS.items()]
    markup = Markup(macros.weightings(rows))
    return [Html("weightings", "Weightings that depend on the candidate", markup, caption=caption)]


# --- What the run warned of, and what is not there


def _warnings(results: StudyResults, macros) -> list[Block]:
    logs = results.results / "logs"
    found = warnings_of(logs)
    blocks: list[Block] = []
    if found:
        caption = "From the logs of each job's last attempt. Lines that several jobs wrote stand here once."
        blocks.append(Html("warnings", "Warnings of the run", Markup(macros.warned(found)), caption=caption))
    elif has_logs(logs):
        blocks.append(Note("Warnings of the run: none. The logs of the jobs hold no warning."))
    else:
        blocks.append(Note("Warnings of the run are not known: no log of its jobs is there that this user may read."))
    if results.left_out:
        markup = Markup(macros.left_out(results.left_out))
        blocks.append(Html("left-out", "What the study leaves out", markup))
    return blocks


# --- Where each number is from


def _origin(results: StudyResults, used: Sequence, macros) -> list[Block]:
    page = results.results / "report.html"
    where = os.path.relpath(results.where) if results.where else ""  # Snakemake gives it in full
    provenance = os.path.relpath(page.with_name("provenance.html"))
    command = f"snakemake --configfile {quote(where or 'STUDY')} --report {quote(provenance)}"
    link = relative(Path(where), page) if where else ""
    text = yaml.safe_dump(results.study.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    config = "\n".join(map(printable, text.splitlines()))
    caption = (
        "A fingerprint changes with the inputs and options that a table was made from. It stands in the metadata of "
        "the parquet file too."
    )
    return [
        *([Html("made", "Tables of this page", Markup(macros.made(used)), caption=caption)] if used else []),
        Html("origin", "Study and software", Markup(macros.origin(where, link, page, command, versions()))),
        Html("configuration", "Configuration", Markup(macros.configuration(config))),
    ]
