"""Judge every proxy and baseline against the truth, and write the tables of the data selection."""

from pathlib import Path

import polars as pl
from proxycast.compute import compute_to_reach_table, pareto_table
from proxycast.config import GENERIC_TEXT, Budget, Proxy, Target
from proxycast.data_selection import (
    predictions,
    require_differences,
    solution_scores,
    summary_table,
    tokens_read,
    truth_by_seed,
    truth_table,
)
from proxycast.jobs import job
from proxycast.ranking import SelectionOptions, decision_accuracy_table, ranking_table
from proxycast.solutions import read_solutions
from proxycast.tables import fingerprint, table_fingerprint, write_table
from proxycast.targets import MULTIPLE_CHOICE_ACCURACY, chance_accuracy

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    target, options = Target(**study["target"]), SelectionOptions(**study["selection"])
    checkpoints, proxies = pl.read_parquet(inputs.checkpoints), pl.read_parquet(inputs.proxies)
    targets = pl.read_parquet(inputs.targets)
    target_flops = checkpoints.filter(role="target")["flops"].max()
    tasks = proxies.filter(pl.col("task") != GENERIC_TEXT).select("task").unique()
    truths = {
        metric: truth_by_seed(checkpoints, targets.join(tasks, on="task", how="semi"), metric)
        for metric in dict.fromkeys((target.metric, *target.other_metrics))
    }
    require_differences(truths[target.metric], target.metric)

    predicted = predictions(checkpoints, proxies, targets)
    decision_accuracy = pl.concat(
        decision_accuracy_table(
            predicted, truth.group_by("corpus", "task").agg(pl.col("value").mean()), target_flops, options
        ).select(pl.lit(metric).alias("truth"), pl.all())
        for metric, truth in truths.items()
    )
    solutions = {Path(path).stem: read_solutions(Path(path)) for path in inputs.solutions}
    highlighted = [Proxy(**proxy) for proxy in study["highlighted"]]
    scores = solution_scores(checkpoints, pl.scan_parquet(inputs.solution_proxies), highlighted)
    parameters = dict(checkpoints.select("size", "parameters").iter_rows())
    scored_tokens = tokens_read(
        pl.read_parquet(inputs.token_stats[0], columns=["checkpoint", "task", "solution", "position"])
    )
    against_target = decision_accuracy.filter(truth=target.metric)
    pareto = pareto_table(against_target, parameters, scored_tokens)
    truth = truth_table(truths, {MULTIPLE_CHOICE_ACCURACY: chance_accuracy(solutions)})
    ceiling = truth.filter(metric=target.metric)["ceiling_decision_accuracy"].item()
    budgets = [Budget(**budget) for budget in study["budgets"]]
    tables = {
        "summary": summary_table(against_target, budgets, highlighted, ceiling),
        "ranking": ranking_table(scores, truths[target.metric], options),
        "decision_accuracy": decision_accuracy,
        "pareto": pareto,
        "compute_to_reach": compute_to_reach_table(pareto, options.thresholds),
        "truth": truth,
    }
    made_from = fingerprint(*(table_fingerprint(Path(path)) for path in (inputs.proxies, inputs.targets)), study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
