"""Read published evaluations: the truth, and the small models' own scores as baselines."""

from pathlib import Path

from proxycast.config.ladder import Ladder
from proxycast.files import Files
from proxycast.jobs import job
from proxycast.tables import fingerprint, write_table
from proxycast.truth.evaluations import METRICS, read_evaluations

with job(snakemake.log[0]):
    params, files = snakemake.params, Files(**snakemake.params.evaluations)
    paths = files.paths(Path(snakemake.input.evaluations) if files.hub else None)
    ladder = Ladder(**params.ladder)
    targets = read_evaluations(paths, params.corpora, ladder, params.sizes, params.tasks, METRICS)
    states = [(path.name, path.stat().st_size) for path in paths]
    write_table(
        targets, Path(snakemake.output.targets), fingerprint(states, params.corpora, params.tasks, params.sizes, ladder)
    )
