"""Train every size and seed of the miniature suite on one corpus."""

from pathlib import Path

import polars as pl
import torch
from proxycast.config import Corpus, read_yaml
from proxycast.jobs import job
from proxycast.miniature.pretraining import pretrain_corpus
from proxycast.miniature.suite import Suite
from proxycast.tables import fingerprint, table_fingerprint, write_json

with job(snakemake.log[0]):
    torch.set_num_threads(snakemake.threads)
    corpus = Corpus(**read_yaml(Path(snakemake.input.corpus)))
    pool, tokenizer = Path(snakemake.input.pool), Path(snakemake.input.tokenizer)
    written = pretrain_corpus(
        corpus.name,
        corpus.recipe,
        Suite(**snakemake.params.suite),
        pl.read_parquet(pool),
        tokenizer.parent,
        models=Path(snakemake.params.models),
        made_from=fingerprint(table_fingerprint(pool), tokenizer),
    )
    write_json(written, Path(snakemake.output[0]))
