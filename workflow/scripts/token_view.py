"""Compare two candidates token by token: chosen solutions over training, and the tokens that decide a proxy."""

from pathlib import Path

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.experiments.token_contrast.compared import comparison_of, stat_files
from proxycast.experiments.token_contrast.contributions import Reading
from proxycast.experiments.token_contrast.token_tables import token_tables
from proxycast.jobs import job
from proxycast.proxy_formulas import ProxyOptions
from proxycast.solutions.rows import read_solutions
from proxycast.tables import fingerprint, read_table, table_fingerprint, write_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    manifests, rankings = list(map(Path, inputs.token_stats)), [*inputs.corpora, *inputs.models]
    files = stat_files(manifests)
    comparison = comparison_of(
        read_table(inputs.checkpoints),
        files,
        [Proxy(**proxy) for proxy in study["highlighted"]],
        SelectionOptions(**study["selection"]),
        budgets=[Budget(**budget) for budget in study["budgets"]],
        corpora=read_table(inputs.corpora[0]) if inputs.corpora else None,
        models=read_table(inputs.models[0]) if inputs.models else None,
        names=study["token_view"] or (),
    )
    reading = Reading(files, ProxyOptions(**study["proxies"]), *snakemake.params.tails)
    tables = token_tables(
        comparison, reading, {Path(path).stem: read_solutions(Path(path)) for path in inputs.solutions}
    )
    sources = [table_fingerprint(Path(path)) for path in (inputs.checkpoints, *rankings)]
    made_from = fingerprint(sources, manifests, list(map(Path, inputs.solutions)), study, snakemake.params.tails)
    write_table(tables["token_view"], Path(snakemake.output.view), made_from)
    write_table(tables["token_contrast"], Path(snakemake.output.contrast), made_from, csv=True)
