"""Read statistics that others measured, and the truth and the decision accuracies that stand beside them."""

from pathlib import Path

from proxycast.config.ladder import Ladder
from proxycast.config.truth import OutsideStatistics, Target
from proxycast.experiments.data_selection.published_curve import published_curve
from proxycast.jobs import job
from proxycast.tables import fingerprint, read_table, table_fingerprint, write_table
from proxycast.truth.outside_statistics import compared_rows, read_statistics, statistics_and_truth, with_own_names

with job(snakemake.log[0]):
    params, inputs, output = snakemake.params, snakemake.input, snakemake.output
    options = OutsideStatistics(**params.study["statistics"])
    target = Target(**params.study["target"]) if params.study["target"] else None
    checkpoints, path = read_table(inputs.checkpoints), Path(inputs.table)
    table = read_statistics(path)
    table = with_own_names(table, path, params.names) if params.names else table
    table = table if params.runs_models else compared_rows(table, path, target)
    files = [path, *([Path(inputs.curve)] if inputs.get("curve") else [])]
    made_from = fingerprint(table_fingerprint(Path(inputs.checkpoints)), files, params.study, params.tasks)
    statistics, truth = statistics_and_truth(table, path, options, target, checkpoints, params.tasks)
    write_table(statistics, Path(output.statistics), made_from)
    if output.get("targets"):
        write_table(truth, Path(output.targets), made_from)
    if output.get("curve"):
        targets = checkpoints.filter(role="target")
        curve = published_curve(
            Path(inputs.curve), Ladder(**params.ladder), targets["flops"].max(), targets["corpus"].n_unique()
        )
        write_table(curve, Path(output.curve), made_from)
