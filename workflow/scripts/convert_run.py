"""Convert the checkpoints of a training run to folders that transformers and vLLM load."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.weights.conversion import convert_run

with job(snakemake.log[0]):
    inputs, folder = snakemake.input, Path(snakemake.output[0])
    tokenizer = Path(inputs.tokenizer) if inputs.get("tokenizer") else None
    sources = zip(snakemake.params.steps, inputs.weights, strict=True)
    convert_run({f"step{step}": Path(source) for step, source in sources}, folder, tokenizer, snakemake.params.code)
