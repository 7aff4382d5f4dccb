"""Decision accuracies of small models as others published them."""

from pathlib import Path

import polars as pl

from proxycast.compute import training_flops
from proxycast.config.ladder import Ladder
from proxycast.experiments.data_selection.corpus_scores import DECISION_ACCURACY_COLUMNS
from proxycast.metrics import about_share, outside_share
from proxycast.options import InputError
from proxycast.truth.long_tables import Column, read_long_table, require_once

COLUMNS = {
    **{"statistic": Column(pl.String), "size": Column(pl.String), "step": Column(pl.Int64, least=0)},
    **{"decision_accuracy": Column(pl.Float64), "corpora": Column(pl.Int64, least=2)},
}


def read_decision_accuracies(path: Path, ladder: Ladder) -> pl.DataFrame:
    """statistic, size, step, decision_accuracy, corpora. `InputError` names the row of a value that cannot be."""
    table = read_long_table(path, COLUMNS, "decision accuracies").cast({"step": pl.Int64, "corpora": pl.Int64})
    require_once(table.with_columns(file=pl.lit(str(path))), ["statistic", "size", "step"])
    for row in table.filter(~pl.col("size").is_in(list(ladder.sizes))).head(1).iter_rows(named=True):
        raise InputError(
            f"{path}, row {row['row']}, column size: {row['size']!r} is not in ladder {ladder.name}; found "
            f"{list(ladder.sizes)}"
        )
    for row in table.filter(outside_share(pl.col("decision_accuracy"))).head(1).iter_rows(named=True):
        value = row["decision_accuracy"]
        raise InputError(
            f"{path}, row {row['row']}, column decision_accuracy: found {value!r}; "
            f"{about_share('decision_accuracy', value)}"
        )
    return table


def published_curve(path: Path, ladder: Ladder, target_flops: float, corpora: int) -> pl.DataFrame:
    """The published decision accuracies in the columns of `DECISION_ACCURACY_COLUMNS`.

    They are means over single seeds. What was not published (intervals, correlations) is null. Tokens and FLOPs are the
    ladder's. There is no curve of other corpora: where not as many as `corpora` stand behind a value, it is no
    baseline, but of the kind "published", with their number in its name and a note.
    """
    table = read_decision_accuracies(path, ladder)
    batch_tokens = {size: ladder.batch_tokens(size) for size in ladder.sizes}
    parameters = {size: shape.parameters(ladder.vocabulary) for size, shape in ladder.sizes.items()}
    tokens = pl.col("step") * pl.col("size").replace_strict(batch_tokens, return_dtype=pl.Int64)
    flops = training_flops(pl.col("size").replace_strict(parameters, return_dtype=pl.Float64), pl.col("tokens"))
    other = pl.col("corpora") != corpora
    note = pl.format(f"published for {{}} corpora; this study compares {corpora}", "corpora")
    table = table.with_columns(tokens=tokens).with_columns(
        flops=flops,
        compute_fraction=flops / target_flops,
        task=pl.lit("all"),
        statistic=pl.when(other).then(pl.format("{}_of_{}_corpora", "statistic", "corpora")).otherwise("statistic"),
        weighting=pl.lit("none"),
        kind=pl.when(other).then(pl.lit("published")).otherwise(pl.lit("baseline")),
        seed=pl.lit("single"),
        note=pl.when(other).then(note).otherwise(pl.lit("")),
        depends_on_candidate=pl.lit(False),
        best_baseline=pl.lit(None, pl.String),
    )
    unknown = [name for name in DECISION_ACCURACY_COLUMNS if name not in table.columns]
    return table.with_columns(pl.lit(None, pl.Float64).alias(name) for name in unknown).select(
        DECISION_ACCURACY_COLUMNS
    )
