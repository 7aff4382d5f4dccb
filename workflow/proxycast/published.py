"""Measurements of DataDecide that others published, from a folder of their tables: truth, a real proxy, known curves.

datadecide_recipes.csv                          internal_name, display_name: both names of every corpus
datadecide_accuracy_1b.csv                      task, recipe, acc_1b_default_seed, acc_1b_three_seed_mean
datadecide_correct_prob_nll.csv                 size, recipe, seed_index, nll: mean over the ten tasks of OLMES of
                                                -ln(correct_prob_per_char), nats, of every size and seed
datadecide_decision_accuracy_by_size_step.csv   size, step, flops_6ND, correct_pairs_of_900, decision_accuracy: of
                                                accuracy itself, three single seeds against the mean of three at 1B
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl

from proxycast.compute import training_flops
from proxycast.config import PUBLISHED_TASK as OLMES
from proxycast.evaluations import PROBLEMS, spellings
from proxycast.ladder import Ladder
from proxycast.metrics import about_share, outside_share
from proxycast.options import InputError, one_line
from proxycast.ranking import DECISION_ACCURACY_COLUMNS
from proxycast.tables import UNREADABLE
from proxycast.targets import KEY, TARGETS_SCHEMA

FILES = (
    *("datadecide_recipes.csv", "datadecide_accuracy_1b.csv", "datadecide_correct_prob_nll.csv"),
    "datadecide_decision_accuracy_by_size_step.csv",
)
TARGET_SIZE = "1B"
LOG_CORRECT_PROB = "log_correct_prob_per_char"  # nats, mean over the ten tasks; higher is better
ACCURACY = "accuracy"  # share of problems, 0 to 1: the mean of three seeds
ACCURACY_OF_ONE_SEED = "accuracy_of_one_seed"
CORPORA = 25  # behind the published decision accuracies
OF_ALL_CORPORA = "accuracy_of_25_corpora"  # the published curve in a study of fewer
PAIRS = 3 * CORPORA * (CORPORA - 1) // 2  # of three seeds


def published_targets(folder: Path, corpora: Mapping[str, str], ladder: Ladder) -> pl.DataFrame:
    """One row (TARGETS_SCHEMA) for each corpus, size and seed of the proxy, and for each corpus and task of the truth.

    `corpora`: display or internal name of a corpus -> its name here; others are left out. The proxy is LOG_CORRECT_PROB
    of the task `olmes_10`; its step is not published and taken to be the last of the ladder's run, which for some seeds
    is earlier than for others (`stopped`). The truth are
    ACCURACY and ACCURACY_OF_ONE_SEED of each task and of `olmes_10`. The three seeds of ACCURACY are not published
    apart: their mean stands under seed 0, as if one run had it.

    `InputError` for a file, column, corpus, size or seed that is missing, a value that is none or beyond its range, a
    row that is repeated.
    """
    table = pl.concat([_proxy(folder, corpora, ladder), _truth(folder, corpora, ladder)])
    for row in table.filter(~pl.struct(KEY).is_first_distinct()).iter_rows(named=True):
        raise InputError(f"{folder}: {[row[name] for name in KEY]} stands there twice; give it once")
    return table


def _proxy(folder: Path, corpora: Mapping[str, str], ladder: Ladder) -> pl.DataFrame:
    path = folder / "datadecide_correct_prob_nll.csv"
    table = _read(path, {"size": pl.String, "recipe": pl.String, "seed_index": pl.Int64, "nll": pl.Float64})
    runs = []
    for size, seed in table.select("size", "seed_index").unique(maintain_order=True).iter_rows():
        if size not in ladder.sizes or seed not in ladder.seeds_of(size):
            raise InputError(f"{path}: found size {size}, seed {seed}; ladder {ladder.name} has no such run")
        runs.append((size, seed, ladder.last_step(size, seed)))
    for row in table.with_row_index().filter(pl.col("nll") < 0).head(1).iter_rows(named=True):
        raise InputError(f"{path}, row {row['index'] + 2}, column nll: found {row['nll']!r}; it must be 0 or more")
    steps = pl.DataFrame(runs, ["size", "seed_index", "step"], orient="row")
    return (
        _with_corpus(table, path, folder, corpora)
        .join(steps, on=["size", "seed_index"], maintain_order="left")
        .select(
            checkpoint=pl.format("{}-{}-seed{}-step{}", "corpus", "size", "seed_index", "step"),
            task=pl.lit(OLMES),
            metric=pl.lit(LOG_CORRECT_PROB),
            value=-pl.col("nll"),
            n=pl.lit(sum(PROBLEMS.values()), pl.Int64),
        )
    )


def _truth(folder: Path, corpora: Mapping[str, str], ladder: Ladder) -> pl.DataFrame:
    path = folder / "datadecide_accuracy_1b.csv"
    metrics = {"acc_1b_three_seed_mean": ACCURACY, "acc_1b_default_seed": ACCURACY_OF_ONE_SEED}
    table = _read(path, {"task": pl.String, "recipe": pl.String} | dict.fromkeys(metrics, pl.Float64))
    problems = PROBLEMS | {OLMES: sum(PROBLEMS.values())}
    for name in metrics:
        for row in table.select(outside_share(pl.col(name)).arg_true())[:, 0][:1]:
            value = table[name][row]
            raise InputError(f"{path}, row {row + 2}, column {name}: found {value!r}; {about_share(ACCURACY, value)}")
    tasks = table["task"].replace("olmes_10_macro_avg", OLMES)
    for task in tasks.filter(~tasks.is_in(list(problems)))[:1]:
        raise InputError(f"{path}, column task: found {task!r}; it must be one of {list(problems)}")
    if TARGET_SIZE not in ladder.sizes:
        raise InputError(f"{path}: size {TARGET_SIZE} is not in ladder {ladder.name}; found {list(ladder.sizes)}")
    checkpoint = f"{{}}-{TARGET_SIZE}-seed0-step{ladder.last_step(TARGET_SIZE, 0)}"
    return (
        _with_corpus(table.with_columns(tasks), path, folder, corpora)
        .rename(metrics)
        .with_columns(
            checkpoint=pl.format(checkpoint, "corpus"),
            n=pl.col("task").replace_strict(problems, return_dtype=pl.Int64),
        )
        .unpivot(on=metrics.values(), index=["checkpoint", "task", "n"], variable_name="metric", value_name="value")
        .select(list(TARGETS_SCHEMA))
    )


def published_curve(folder: Path, ladder: Ladder, corpora: Collection[str] | None = None) -> pl.DataFrame:
    """Decision accuracy of OLMES accuracy itself at every size and step, mean of three single seeds.

    Only counts of pairs were published, of all 25 corpora together, so there is no curve of some of them. In a study of
    fewer `corpora` the curve is no baseline: it stands there as OF_ALL_CORPORA, of the kind "published", with a note.

    Columns of `ranking.DECISION_ACCURACY_COLUMNS`; what was not published (intervals, correlations) is null. Tokens and
    FLOPs are the ladder's. `InputError` for a row whose accuracy is not its share of pairs, or whose FLOPs are not 6ND.
    """
    path = folder / "datadecide_decision_accuracy_by_size_step.csv"
    figures = dict.fromkeys(("flops_6ND", "correct_pairs_of_900", "decision_accuracy"), pl.Float64)
    table = _read(path, {"size": pl.String, "step": pl.Int64} | figures)
    sizes = dict.fromkeys([TARGET_SIZE, *table["size"]])
    for size in sizes:
        if size not in ladder.sizes:
            raise InputError(f"{path}: size {size} is not in ladder {ladder.name}; found {list(ladder.sizes)}")
    batch_tokens = {size: ladder.batch_tokens(size) for size in sizes}
    parameters = {size: ladder.sizes[size].parameters(ladder.vocabulary) for size in sizes}
    tokens = pl.col("step") * pl.col("size").replace_strict(batch_tokens, return_dtype=pl.Int64)
    flops = training_flops(pl.col("size").replace_strict(parameters, return_dtype=pl.Float64), pl.col("tokens"))
    table = table.with_columns(tokens=tokens).with_columns(flops=flops)
    _require_equal(path, table, "decision_accuracy", pl.col("correct_pairs_of_900") / PAIRS)
    _require_equal(path, table, "flops_6ND", pl.col("flops"))
    target_tokens = ladder.sizes[TARGET_SIZE].steps * batch_tokens[TARGET_SIZE]
    texts = {
        "task": "all",
        "statistic": ACCURACY,
        "weighting": "none",
        "kind": "baseline",
        "seed": "single",
        "note": "",
    }
    if corpora is not None and len(corpora) < CORPORA:
        note = f"published for all {CORPORA} corpora, of which this study has {len(corpora)}"
        texts |= {"statistic": OF_ALL_CORPORA, "kind": "published", "note": note}
    table = table.with_columns(
        depends_on_candidate=pl.lit(False),
        compute_fraction=pl.col("flops") / training_flops(parameters[TARGET_SIZE], target_tokens),
        corpora=pl.lit(CORPORA, pl.Int64),
        best_baseline=pl.lit(None, pl.String),
        **{name: pl.lit(text) for name, text in texts.items()},
    )
    unknown = [name for name in DECISION_ACCURACY_COLUMNS if name not in table.columns]
    return table.with_columns(pl.lit(None, pl.Float64).alias(name) for name in unknown).select(
        DECISION_ACCURACY_COLUMNS
    )


def _require_equal(path: Path, table: pl.DataFrame, column: str, right: pl.Expr) -> None:
    rows = table.select("size", "step", column, right=right).filter(
        ((pl.col(column) - pl.col("right")).abs() > 1e-9 * pl.col("right")).fill_null(True)
    )
    for row in rows.iter_rows(named=True):
        raise InputError(
            f"{path}, size {row['size']}, step {row['step']}, column {column}: found {row[column]!r}; "
            f"it must be {row['right']!r}"
        )


def _with_corpus(table: pl.DataFrame, path: Path, folder: Path, corpora: Mapping[str, str]) -> pl.DataFrame:
    """The rows of `corpora`, with a column corpus. The column recipe may hold either name of a corpus."""
    both = _read(folder / "datadecide_recipes.csv", {"internal_name": pl.String, "display_name": pl.String})
    pairs = list(both.iter_rows())
    either = {other: corpora[name] for pair in pairs for name, other in (pair, pair[::-1]) if name in corpora}
    names = spellings("recipe", {**corpora, **either}, table["recipe"], str(path))
    return table.filter(pl.col("recipe").is_in(list(names))).with_columns(
        corpus=pl.col("recipe").replace_strict(names, return_dtype=pl.String)
    )


def _read(path: Path, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Columns of a .csv, each value there and finite: `InputError` names the row as an editor counts it, from 2."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; it should have the columns {list(schema)}")
    try:
        table = pl.read_csv(path, infer_schema=False, glob=False)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}; copy it again") from None
    for name in schema:
        if name not in table.columns:
            raise InputError(f"{path}, column {name}: missing; found {table.columns}; there must be {list(schema)}")
    typed = table.select(pl.col(name).cast(kind, strict=False) for name, kind in schema.items())
    for name, kind in schema.items():
        there = pl.col(name).is_finite() if kind.is_numeric() else pl.col(name).is_not_null()
        for row in typed.select((~there.fill_null(False)).arg_true())[:, 0][:1]:
            raise InputError(f"{path}, row {row + 2}, column {name}: found {table[name][row]!r}; it must be a {kind}")
    return typed
