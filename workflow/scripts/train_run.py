"""Train one model of the ladder on a corpus of text, resuming where an interrupted job stopped."""

from pathlib import Path

import torch
from proxycast.cluster.gpu_locks import asked_gpus, own_gpus
from proxycast.config.ladder import Ladder
from proxycast.config.training import Text
from proxycast.jobs import job
from proxycast.tables import fingerprint, write_json
from proxycast.training.text.corpus import corpus_fingerprint, source_folders
from proxycast.training.text.shards import TokenStream
from proxycast.training.text.train_run import pretrain

with job(snakemake.log[0]), own_gpus(asked_gpus(snakemake.resources)):
    # One thread without a GPU: more threads would sum in another order and round differently.
    torch.set_num_threads(snakemake.threads if torch.cuda.is_available() else 1)
    params, manifest, output = snakemake.params, Path(snakemake.input.text), Path(snakemake.output[0])
    ladder, text = Ladder(**params.ladder), Text(**params.text)
    shape = ladder.sizes[params.size]
    stream = TokenStream(
        source_folders(manifest.parent, text),
        [source.weight for source in text.mixture],
        shape.steps,
        shape.batch_sequences,
        ladder.sequence_length,
        params.seed,
        text.max_epochs,
    )
    written = pretrain(
        ladder,
        params.size,
        params.seed,
        stream.batch,
        models=Path(params.models),
        steps=params.steps,
        tokenizer=Path(snakemake.input.tokenizer),
        state=Path(params.state),
        made_from=fingerprint(corpus_fingerprint(manifest), params.code),
    )
    write_json({f"{output.stem}/{folder}": mark for folder, mark in written.items()}, output)
