"""Read DataDecide's published measurements: the truth, a proxy of small models, and the curve of their accuracy."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.ladder import Ladder
from proxycast.published import published_curve, published_targets
from proxycast.tables import fingerprint, write_table

with job(snakemake.log[0]):
    folder, ladder = Path(snakemake.input.folder), Ladder(**snakemake.params.ladder)
    made_from = fingerprint(sorted(folder.glob("datadecide_*.csv")), snakemake.params.corpora, ladder)
    targets = published_targets(folder, snakemake.params.corpora, ladder)
    write_table(targets, Path(snakemake.output.targets), made_from)
    curve = published_curve(folder, ladder, set(snakemake.params.corpora.values()))
    write_table(curve, Path(snakemake.output.curve), made_from)
