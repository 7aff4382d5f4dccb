"""Convert the checkpoints of a training run to folders that transformers and vLLM load."""

from pathlib import Path

from proxycast.conversion import convert_run
from proxycast.jobs import job

with job(snakemake.log[0]):
    inputs = snakemake.input
    tokenizer = Path(inputs.tokenizer) if inputs.get("tokenizer") else None
    folders = zip(snakemake.params.steps, inputs.weights, strict=True)
    convert_run({f"step{step}": Path(folder) for step, folder in folders}, Path(snakemake.output[0]), tokenizer)
