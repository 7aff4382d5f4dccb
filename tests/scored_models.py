"""Solutions, models in training, and what the workflow's own engine says of a checkpoint: for tests of the library."""

from pathlib import Path

import polars as pl
import torch
from conftest import finished, tiny_model
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine
from proxycast.extraction.sweep import extract
from proxycast.solutions.rows import Solution

SOLUTIONS = {
    task: [
        Solution(id=f"s{i}", prompt="Q: what is 2 plus 3?\nA:" * (i % 3), solution=f" {words} é" * (i % 4 + 1) + str(i))
        for i in range(9)
    ]
    for task, words in (("sums", "2 plus 3 is five"), ("cats", "The cat sat on the mat"))
}
OPTIONS = dict(tail_tokens=20, batch_tokens=300)


def of_the_workflow(folder: Path, tmp_path: Path, dtype="float32", solutions=SOLUTIONS, **options) -> pl.DataFrame:
    """The table that a study's job writes for the checkpoint in `folder`."""
    options = ExtractionOptions(**{"device": "cpu", "dtype": dtype, **OPTIONS, **options})
    engine = make_engine(options)
    finished(extract(engine, [("model", folder)], solutions, options, tmp_path / "parts", code=""))
    return pl.read_parquet(tmp_path / "parts/model.parquet")


def with_dropout(architecture: str) -> torch.nn.Module:
    """In training, dropout would change every number."""
    model = tiny_model(architecture)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    return model.train()
