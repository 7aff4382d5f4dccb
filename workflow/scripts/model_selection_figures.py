"""Draw every figure of the model selection."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.report.model_figures import model_figures
from proxycast.report.style import save

with job(snakemake.log[0]):
    for name, figure in model_figures(dict(snakemake.input.items()), snakemake.params.study):
        save(figure, Path(snakemake.output[name]).with_suffix(""))
