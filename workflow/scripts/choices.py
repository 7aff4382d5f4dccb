"""What choosing a corpus costs, from finished tables."""

from pathlib import Path

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget
from proxycast.config.truth import Target
from proxycast.experiments.choosing.corpus_choices import corpus_choice_tables
from proxycast.jobs import job
from proxycast.tables import fingerprint, read_table, scan_tables, table_fingerprint, write_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    tables = corpus_choice_tables(
        read_table(inputs.checkpoints),
        read_table(inputs.targets),
        snakemake.params.tasks,
        Target(**study["target"]),
        SelectionOptions(**study["selection"]),
        [Budget(**budget) for budget in study["budgets"]],
        proxies=scan_tables(inputs.proxies) if inputs.proxies else None,
        outside=read_table(inputs.outside[0]) if inputs.outside else None,
        pairs=read_table(inputs.pairs),
    )
    sources = [inputs.checkpoints, inputs.targets, *inputs.proxies, *inputs.outside, inputs.pairs]
    made_from = fingerprint([table_fingerprint(Path(path)) for path in sources], study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
