"""Train sizes and seeds of the miniature suite on one corpus: a recipe of the suite, or text."""

from pathlib import Path

import numpy as np
import torch
from proxycast.config.corpora import Corpus
from proxycast.config.training import Suite
from proxycast.jobs import job
from proxycast.tables import read_table, write_json
from proxycast.training.miniature.recipes import token_stream, tokens_column
from proxycast.training.miniature.train_corpus import pretrain_corpus
from proxycast.training.text.corpus import corpus_fingerprint, text_stream


def stream_of(tokens: int, seed: int, tokenizer: str | None) -> np.ndarray:
    if corpus.recipe:
        return token_stream(read_table(pool), corpus.recipe, tokens, seed, tokens_column(tokenizer))
    return text_stream(Path(snakemake.input.text).parent, corpus.text, tokens, suite.training.sequence_length, seed)


with job(snakemake.log[0]):
    torch.set_num_threads(snakemake.threads)
    corpus, suite = Corpus(**snakemake.params.corpus), Suite(**snakemake.params.suite)
    sizes = {name: size for name, size in suite.sizes.items() if name in snakemake.params.sizes}
    if corpus.seeds:
        sizes = {name: size.model_copy(update={"seeds": tuple(corpus.seeds)}) for name, size in sizes.items()}
    pool, tokenizer = Path(snakemake.input.pool), Path(snakemake.input.tokenizer)
    tokenizers = {None: tokenizer.parent} | {
        name: Path(path).parent for name, path in zip(suite.tokenizers, snakemake.input.tokenizers, strict=True)
    }
    documents = (pool, corpus.recipe) if corpus.recipe else corpus_fingerprint(Path(snakemake.input.text))
    written = pretrain_corpus(
        corpus.name,
        suite.model_copy(update={"sizes": sizes}),
        stream_of,
        tokenizers,
        models=Path(snakemake.params.models),
        documents=(snakemake.params.code, documents),
    )
    write_json(written, Path(snakemake.output[0]))
