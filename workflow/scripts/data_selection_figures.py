"""Draw every figure of the data selection."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.report.corpus_figures import corpus_figures
from proxycast.report.style import save

with job(snakemake.log[0]):
    for name, figure in corpus_figures(dict(snakemake.input.items()), snakemake.params.study):
        save(figure, Path(snakemake.output[name]).with_suffix(""))
