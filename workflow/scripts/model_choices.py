"""What choosing a model costs on held-out tasks, from finished tables."""

from pathlib import Path

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments.choosing.model_choices import model_choice_tables
from proxycast.jobs import job
from proxycast.tables import fingerprint, read_table, table_fingerprint, write_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    target = Target(**study["target"])
    tables = model_choice_tables(
        read_table(inputs.predictions),
        read_table(inputs.ranking),
        read_table(inputs.pairs),
        target.sign(target.metric),
        SelectionOptions(**study["selection"]),
    )
    made_from = fingerprint([table_fingerprint(Path(path)) for path in inputs], study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
