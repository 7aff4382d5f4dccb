"""Fetch the files of a data set from the hub; record the commit and the hash of every file."""

from pathlib import Path

from proxycast.files import Files
from proxycast.hub import HubOptions, Source, download, remove_all_but
from proxycast.jobs import job
from proxycast.tables import write_json

with job(snakemake.log[0]):
    options, files = HubOptions(**snakemake.config.get("hub", {})), Files(**snakemake.params.files)
    source, folder = Source(files.hub, files.revision, "dataset"), Path(snakemake.output.folder)
    # Snakemake removes what a failed job was to write; finished files lie beside it and stay.
    partial = folder.with_name(f".{folder.name}.partial")
    record = download(source, lambda names: filter(files.matches, names), partial, options)
    remove_all_but(partial, record["files"])
    write_json(record, Path(snakemake.output.record))
    partial.rename(folder)  # last: what fails after it would take the files with it
