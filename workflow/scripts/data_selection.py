"""Judge every proxy and baseline against the truth, and write the tables of the data selection."""

from pathlib import Path

import polars as pl
from proxycast.compute import compute_to_reach_table, pareto_table
from proxycast.config import Budget, Proxy, Target
from proxycast.data_selection import (
    metric_signs,
    oriented,
    predictions_by_size,
    require_differences,
    require_known,
    solution_scores,
    summary_table,
    tokens_read,
    truth_by_seed,
    truth_table,
)
from proxycast.jobs import job
from proxycast.published import ACCURACY
from proxycast.ranking import SelectionOptions, decision_accuracy_table, ranking_table
from proxycast.solutions import read_problems
from proxycast.tables import fingerprint, read_table, require_parts, scan_tables, table_fingerprint, write_table
from proxycast.targets import MULTIPLE_CHOICE_ACCURACY, chance_accuracy, log_unknown

# Of a study that judges published measurements and runs no model.
NO_PROXIES = pl.DataFrame(
    schema=dict.fromkeys(("checkpoint", "task", "solution", "statistic", "weighting"), pl.String)
    | {"value": pl.Float64}
)

with job(snakemake.log[0]):
    study, tasks, inputs = snakemake.params.study, snakemake.params.tasks, snakemake.input
    target, options = Target(**study["target"]), SelectionOptions(**study["selection"])
    checkpoints, targets = read_table(inputs.checkpoints), read_table(inputs.targets)
    if target.table:
        log_unknown(targets, checkpoints["checkpoint"].to_list(), tasks)
    # All models share a tokenizer: a tail in tokens is the same span of text for all of them.
    proxies = scan_tables(inputs.proxies).filter(tail="tokens") if inputs.get("proxies") else NO_PROXIES.lazy()
    require_known(checkpoints, proxies)
    target_flops = checkpoints.filter(role="target")["flops"].max()
    truths = {
        metric: truth_by_seed(checkpoints, targets.filter(pl.col("task").is_in(tasks)), metric)
        for metric in dict.fromkeys((target.metric, *target.other_metrics))
    }
    require_differences(truths[target.metric], target.metric)

    budgets = [Budget(**budget) for budget in study["budgets"]]
    at = pl.DataFrame({"size": [budget.size for budget in budgets], "step": [budget.step for budget in budgets]})
    signs = metric_signs(targets, target)
    means = {metric: oriented(truth, signs[metric]) for metric, truth in truths.items()}
    judged, at_budgets = {metric: [] for metric in truths}, []
    for predicted in predictions_by_size(checkpoints, proxies, targets, tasks, signs):
        for metric, truth in means.items():
            table = decision_accuracy_table(predicted, truth, target_flops, options, snakemake.threads)
            judged[metric].append(table.select(pl.lit(metric).alias("truth"), pl.all()))
        at_budgets.append(predicted.join(at, ["size", "step"], "semi"))
    decision_accuracy = pl.concat(table for tables in judged.values() for table in tables)
    if inputs.get("curve"):  # judged by those who published it
        curve = read_table(inputs.curve).select(pl.lit(ACCURACY).alias("truth"), pl.all())
        decision_accuracy = pl.concat([decision_accuracy, curve.cast(dict(decision_accuracy.schema))])
    problems = {Path(path).stem: read_problems(Path(path)) for path in inputs.get("problems", [])}
    highlighted = [Proxy(**proxy) for proxy in study["highlighted"]]
    of_solutions = (
        scan_tables(inputs.solution_proxies).filter(tail="tokens")
        if inputs.get("solution_proxies")
        else NO_PROXIES.lazy()
    )
    # Scores of single solutions are many: the ranking is made at the study's budgets only.
    needed = checkpoints.filter(role="target").vstack(
        checkpoints.filter(role="proxy").join(at, ["size", "step"], "semi")
    )
    scores = solution_scores(needed, of_solutions, pl.concat(at_budgets), highlighted)
    parameters = dict(checkpoints.select("size", "active_parameters").iter_rows())
    small = set(checkpoints.filter(role="proxy")["checkpoint"])
    parts = [part for path in inputs.get("token_stats", []) for part in require_parts(Path(path)) if part.stem in small]
    scored_tokens = tokens_read(pl.scan_parquet(parts)) if parts else None
    against_target = decision_accuracy.filter(truth=target.metric)
    pareto = pareto_table(against_target, parameters, scored_tokens)
    truth = truth_table(truths, {MULTIPLE_CHOICE_ACCURACY: chance_accuracy(problems)}, options, signs)
    ceiling = truth.filter(metric=target.metric)["ceiling_decision_accuracy"].item()
    tables = {
        "summary": summary_table(against_target, budgets, highlighted, ceiling),
        "ranking": ranking_table(scores, truths[target.metric], options, signs[target.metric]),
        "decision_accuracy": decision_accuracy,
        "pareto": pareto,
        "compute_to_reach": compute_to_reach_table(pareto, options.thresholds),
        "truth": truth,
    }
    sources = [Path(path) for path in (inputs.get("proxies"), inputs.targets) if path]
    made_from = fingerprint(*map(table_fingerprint, sources), study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
