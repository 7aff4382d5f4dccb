"""Tokenise a corpus of text into shards: of each source, as many tokens as the longest training run reads."""

from pathlib import Path

from proxycast.config.training import Text
from proxycast.jobs import job
from proxycast.tables import write_json
from proxycast.training.text.corpus import tokenize_text
from proxycast.weights.tokenizer import end_of_text

with job(snakemake.log[0]):
    inputs, output = snakemake.input, Path(snakemake.output[0])
    folder = Path(inputs.tokenizer) if Path(inputs.tokenizer).is_dir() else Path(inputs.tokenizer).parent
    manifests = tokenize_text(
        Text(**snakemake.params.text),
        [Path(path) for path in snakemake.params.downloaded],
        folder / "tokenizer.json",
        output.parent,
        snakemake.params.tokens,
        end_of_text(folder),
        snakemake.params.code,
    )
    write_json(manifests, output)
