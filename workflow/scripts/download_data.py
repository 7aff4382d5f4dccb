"""Fetch the files of a data set from the hub; record the commit and the hash of every file."""

from pathlib import Path

from proxycast.config.study import HubOptions
from proxycast.files import Files
from proxycast.jobs import job
from proxycast.tables import write_json
from proxycast.weights.hub import download, remove_all_but
from proxycast.weights.hub_snapshots import HubSource

with job(snakemake.log[0]):
    options, files = HubOptions(**snakemake.config.get("hub", {})), Files(**snakemake.params.files)
    source, folder = HubSource(files.hub, files.revision, "dataset"), Path(snakemake.output.folder)
    # Snakemake removes the outputs of a failed job. Finished files lie beside the output, so they stay.
    partial = folder.with_name(f".{folder.name}.partial")
    record = download(source, lambda names: filter(files.matches, names), partial, options)
    remove_all_but(partial, record["files"])
    write_json(record, Path(snakemake.output.record))
    partial.rename(folder)  # last: if a later step failed, Snakemake would remove the files
