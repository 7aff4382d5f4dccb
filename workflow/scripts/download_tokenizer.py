"""Fetch the ladder's tokenizer from the hub; record the commit and the hash of every file."""

from pathlib import Path

from proxycast.config.study import HubOptions
from proxycast.jobs import job
from proxycast.tables import write_json
from proxycast.weights.hub import download
from proxycast.weights.hub_snapshots import HubSource
from proxycast.weights.model_files import TOKENIZER_FILES

with job(snakemake.log[0]):
    options, tokenizer = HubOptions(**snakemake.config.get("hub", {})), snakemake.params.tokenizer
    source, folder = HubSource(tokenizer["hub"], tokenizer["revision"]), Path(snakemake.output.folder)
    record = download(source, lambda names: [name for name in names if name in TOKENIZER_FILES], folder, options)
    write_json(record, Path(snakemake.output.record))
