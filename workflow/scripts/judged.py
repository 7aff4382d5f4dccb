"""Apply the judges of other studies to this one's corpora or models."""

from pathlib import Path

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.checkpoint_means import checkpoint_means
from proxycast.experiments.judges.judge_application import judged_table, judged_values
from proxycast.experiments.judges.judge_file import Reading, read_judge
from proxycast.experiments.post_trained.copies import read_compared
from proxycast.jobs import job
from proxycast.tables import fingerprint, scan_tables, table_fingerprint, write_table
from proxycast.weights.tokenizer import tokenizer_fingerprints

with job(snakemake.log[0]):
    inputs, params = snakemake.input, snakemake.params
    checkpoints = read_compared(inputs.checkpoints, inputs.recipes)
    options = SelectionOptions(**params.study["selection"])
    proxies, of_solutions = (
        checkpoint_means(scan_tables(paths), checkpoints, options.last_checkpoints)
        for paths in (inputs.proxies, inputs.solution_proxies)
    )
    checkpoints, values = judged_values(
        checkpoints,
        proxies,
        of_solutions,
        [(budget["size"], budget["step"]) for budget in params.study["budgets"]],
    )
    judges = {name: read_judge(path) for name, path in zip(params.names, inputs.judges, strict=True)}
    table = judged_table(
        judges,
        values,
        checkpoints,
        reading=Reading.model_validate(params.reading),
        tokenizers=tokenizer_fingerprints(params.tokenizers),
        options=options,
    )
    made_from = fingerprint(
        [Path(path) for path in inputs.judges],
        [table_fingerprint(Path(path)) for path in (*inputs.recipes, inputs.proxies)],
        params.study,
    )
    write_table(table, Path(snakemake.output.judged), made_from, csv=True)
