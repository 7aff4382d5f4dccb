"""Signal to noise of every proxy and baseline, the tasks that only add noise, and what repeats buy."""

from pathlib import Path

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget
from proxycast.config.truth import Target
from proxycast.experiments.data_selection.noisy_tasks import signal_tables
from proxycast.jobs import job
from proxycast.tables import fingerprint, read_table, scan_tables, table_fingerprint, write_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    tables = signal_tables(
        read_table(inputs.checkpoints),
        snakemake.params.tasks,
        SelectionOptions(**study["selection"]),
        [Budget(**budget) for budget in study["budgets"]],
        proxies=scan_tables(inputs.proxies) if inputs.get("proxies") else None,
        targets=read_table(inputs.targets) if inputs.get("targets") else None,
        target=Target(**study["target"]) if study["target"] else None,
        outside=read_table(inputs.outside) if inputs.get("outside") else None,
    )
    sources = [inputs.checkpoints, inputs.get("proxies"), inputs.get("targets"), inputs.get("outside")]
    made_from = fingerprint(*(table_fingerprint(Path(path)) for path in sources if path), study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
