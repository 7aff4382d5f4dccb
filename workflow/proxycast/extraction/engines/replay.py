"""No engine: recorded token statistics stand for every checkpoint's, to test the workflow at full scale without models.

The numbers differ between checkpoints, so that there is something to rank, but mean nothing.
"""

import hashlib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl

from proxycast.options import InputError
from proxycast.tables import fingerprint, table_fingerprint, write_table

log = logging.getLogger(__name__)

LOGPROBS = ("logprob", "max_logprob", "second_logprob")


def replay(
    recorded: Path, checkpoints: Sequence[str], tasks: Collection[str], parts_dir: Path, *, code: str
) -> dict[str, str]:
    """Write `parts_dir/<checkpoint>.parquet` for each checkpoint, as `sweep.extract` does, from one of its tables.

    Returns checkpoint -> fingerprint. Whole tables from the same recording and `code` (its fingerprint) are kept.
    """
    table = pl.read_parquet(recorded)
    if (found := set(table["task"])) != set(tasks):
        raise InputError(f"replay: {recorded}: found tasks {sorted(found)}; those of the study are {sorted(tasks)}")
    made_from = fingerprint(recorded)
    fingerprints = {checkpoint: fingerprint(made_from, checkpoint, code) for checkpoint in checkpoints}
    for checkpoint, own in fingerprints.items():
        path = parts_dir / f"{checkpoint}.parquet"
        if table_fingerprint(path) != own:
            write_table(as_of(table, checkpoint), path, own)
            log.info("token_stats of %s replayed: %d rows", checkpoint, len(table))
    return fingerprints


def as_of(table: pl.DataFrame, checkpoint: str) -> pl.DataFrame:
    """`table` under another name, surprise and ranks stretched by a factor from 1 to 2 that only the name decides."""
    factor = 1 + int.from_bytes(hashlib.sha256(checkpoint.encode()).digest()[:4], "little") / 2**32
    return table.with_columns(
        pl.lit(checkpoint).alias("checkpoint"),
        *(pl.col(name) * pl.lit(factor, pl.Float32) for name in LOGPROBS),
        (pl.col("n_greater") * factor).cast(pl.Int32),
    )
