"""Train one model of the ladder on a corpus of text, from where an interrupted job left it."""

from pathlib import Path

import torch
from proxycast.jobs import job
from proxycast.ladder import Ladder
from proxycast.resources import asked_gpus, own_gpus
from proxycast.tables import fingerprint, write_json
from proxycast.text.corpus import source_folders, tokens_fingerprint
from proxycast.text.mixture import Text
from proxycast.text.pretraining import pretrain
from proxycast.text.shards import TokenStream

with job(snakemake.log[0]), own_gpus(asked_gpus(snakemake.resources)):
    # Beside a GPU; without one, one thread: more would add up in another order.
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
        made_from=fingerprint(tokens_fingerprint(manifest), params.code),
    )
    write_json({f"{output.stem}/{folder}": mark for folder, mark in written.items()}, output)
