"""Downstream results that the DataDecide project published (`allenai/DataDecide-eval-results`) as a targets table.

A row of those files is one task of one checkpoint, and its column `metrics` holds thirty figures in a struct, as JSON
or as the text of a Python dict. Nearly all of the bytes are in that column, so rows are dropped before it is read, and
of a text only the figures that are wanted are cut out, which is faster than regular expressions and far faster than
parsing it whole.
"""

import difflib
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl
from tqdm import tqdm

from proxycast.config.ladder import Ladder
from proxycast.metrics import about_share, is_share, outside_share
from proxycast.options import InputError, told_names, told_reason, told_value
from proxycast.tables import LARGEST_WHOLE, UNREADABLE, is_whole_parquet
from proxycast.truth.targets import TARGETS_SCHEMA

log = logging.getLogger(__name__)

# Problems of the ten tasks of OLMES. The smallest N that makes every published accuracy at 1B a whole number of N-ths;
# mmlu, which is an average over subjects and has no such N: the test set (Hendrycks et al., 2021, arXiv 2009.03300).
PROBLEMS = {
    **{"arc_challenge": 1172, "arc_easy": 2376, "boolq": 3270, "csqa": 1221, "hellaswag": 10042, "mmlu": 14042},
    **{"openbookqa": 500, "piqa": 1838, "socialiqa": 1954, "winogrande": 1267},
}
PROXIES = ("correct_prob", "margin", "norm_correct_prob", "total_prob")
METRICS = ("primary_metric", *(proxy + unit for proxy in PROXIES for unit in ("", "_per_char", "_per_token")))

# The seeds that DataDecide trained with, and what it calls them.
SEED_NUMBERS = {6198: "default", 14: "small-aux-2", 15: "small-aux-3", 4: "large-aux-2", 5: "large-aux-3"}

EVALUATION_COLUMNS = ("params", "data", "task", "step", "seed", "metrics")
CHECKPOINT = ["corpus", "size", "seed", "step"]
KEY_IN_TEXT = re.compile(r"""["'](\w+)["']\s*:""")
ROWS_AT_ONCE = 4000  # few enough that their texts stay in a core's cache while every figure is looked for


def read_evaluations(
    paths: Sequence[Path],
    corpora: Mapping[str, str],
    ladder: Ladder,
    sizes: Sequence[str],
    tasks: Sequence[str],
    metrics: Sequence[str] = METRICS,
) -> pl.DataFrame:
    """One row (TARGETS_SCHEMA) for every checkpoint, task and metric; a checkpoint is {corpus}-{size}-seed{s}-step{n}.

    `corpora`: spelling in the column `data` -> corpus; a corpus may have several. Spellings of corpora, sizes and seeds
    are compared without case and punctuation, seeds also by number (SEED_NUMBERS). The task `mmlu` is the row of that
    name or, where there is none, the mean over the subjects mmlu_*. `n`: PROBLEMS; null, unknown, for another task. A
    row that stands there twice counts once.

    `InputError` for a column, corpus, size, seed, run, task or key that is missing, for a figure that is none, for a
    share beyond 0 to 1 (`metrics.is_share`), for two rows of one key that differ and for a checkpoint without all
    subjects. A seed of the ladder that no corpus has at a size is left out with a warning.
    """
    labels = {path: _read_whole(path, _labels) for path in paths}
    found = pl.concat(labels.values()).unique()
    where = f"{paths[0]}" + f" and {len(paths) - 1} more" * (len(paths) > 1)
    runs = _wanted_runs(found, corpora, ladder, sizes, where)
    spelled = _task_spellings(found["task"].unique().drop_nulls().to_list(), tasks, where)
    bar = tqdm(paths, desc="evaluations", unit="file", mininterval=5)
    rows = pl.concat([_read_whole(path, _wanted_rows, runs, spelled, metrics) for path in bar])
    # Sorted, so that a mean over subjects adds them in the same order whatever the order of the rows.
    rows = _without_repeats(rows, where).sort(*CHECKPOINT, "task")
    rows = _with_subjects_averaged(rows, tasks, where).sort(*CHECKPOINT, "task")
    return (
        rows.with_columns(
            checkpoint=pl.format("{}-{}-seed{}-step{}", *CHECKPOINT),
            n=pl.col("task").replace_strict(PROBLEMS, default=None, return_dtype=pl.Int64),
        )
        .unpivot(on=metrics, index=["checkpoint", "task", "n"], variable_name="metric", value_name="value")
        .select(list(TARGETS_SCHEMA))
    )


def _read_whole(path: Path, read: Callable[..., pl.DataFrame], *arguments: object) -> pl.DataFrame:
    """What `read` reads of a file. `InputError` for one that polars cannot read."""
    try:
        return read(path, *arguments)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {told_reason(error)}; download it again") from None


def _labels(path: Path) -> pl.DataFrame:
    """The different params, data, seed, task of a file, as text."""
    if not is_whole_parquet(path):
        raise InputError(f"{path}: found no whole parquet file; download it again")
    scan = pl.scan_parquet(path, glob=False)
    schema = scan.collect_schema()
    missing = [name for name in EVALUATION_COLUMNS if name not in schema]
    if missing:
        raise InputError(
            f"{path}, column {missing[0]}: missing; found {told_names(schema.names())}; "
            f"there must be {list(EVALUATION_COLUMNS)}"
        )
    return _plain_types(scan).select("params", "data", "seed", "task").unique().collect(engine="streaming")


def _plain_types(scan: pl.LazyFrame) -> pl.LazyFrame:
    """Labels as text, a seed that is a number as a whole one; steps as floats."""
    seed = pl.col("seed").cast(pl.Int64) if scan.collect_schema()["seed"].is_float() else pl.col("seed")
    step = pl.col("step").cast(pl.Float64, strict=False)
    return scan.with_columns(pl.col("params", "data", "task").cast(pl.String), seed.cast(pl.String), step)


def _wanted_runs(
    found: pl.DataFrame, corpora: Mapping[str, str], ladder: Ladder, sizes: Sequence[str], where: str
) -> pl.DataFrame:
    """params, data, spelled_seed as the files spell them -> corpus, size, seed. `InputError` for a run without rows."""
    for size in sizes:
        if size not in ladder.sizes:
            raise InputError(f"size {size}: not in ladder {ladder.name}; found there {list(ladder.sizes)}")
    by_data = spellings("data", corpora, found["data"], where)
    by_params = spellings("params", {size: size for size in sizes}, found["params"], where)
    names = {name: name for size in sizes for name in ladder.seeds_of(size).values()}
    numbers = {str(number): name for number, name in SEED_NUMBERS.items() if name in names}
    by_seed = spellings("seed", numbers | names, found["seed"], where)
    seeds = {(size, name): seed for size in sizes for seed, name in ladder.seeds_of(size).items()}
    rows = []
    for params, data, seed in found.select("params", "data", "seed").unique().sort(pl.all()).iter_rows():
        size, corpus, name = by_params.get(params), by_data.get(data), by_seed.get(seed)
        if corpus is not None and (size, name) in seeds:
            rows.append((params, data, seed, corpus, size, seeds[size, name]))
    there = {row[3:] for row in rows}
    trained = {row[4:] for row in rows}
    for (size, name), seed in seeds.items():
        if (size, seed) not in trained and any(other == size for other, _ in trained):
            log.warning("%s: no row of size %s, seed %d (%s); it is left out", where, size, seed, name)
            continue
        for corpus in corpora.values():
            if (corpus, size, seed) not in there:
                raise InputError(f"{where}: no row of corpus {corpus}, size {size}, seed {seed} ({name})")
    return pl.DataFrame(rows, ["params", "data", "spelled_seed", "corpus", "size", "seed"], orient="row")


def spellings(column: str, wanted: Mapping[str, str], found: pl.Series, where: str) -> dict[str, str]:
    """Spelling in the files -> name, for every spelling in `wanted` that is there. `InputError` for a name without."""
    there = found.unique().drop_nulls().sort().to_list()
    names = {}
    for spelling, name in wanted.items():
        alike = (
            [spelling]
            if spelling in there
            else [other for other in there if _normalised(other) == _normalised(spelling)]
        )
        if len(alike) > 1 or any(names.setdefault(other, name) != name for other in alike):
            raise InputError(f"{where}, column {column}: {spelling!r} ({name}) may be {alike}; spell it as it is there")
    for spelling, name in wanted.items():
        if name not in names.values():
            raise InputError(f"{where}, column {column}: no row of {spelling!r} ({name}); {_closest(spelling, there)}")
    return names


def _normalised(spelling: str) -> str:
    """Letters and digits in lower case; whatever stands between them is one space, so that 1.1 and 11 stay two."""
    return " ".join(re.findall(r"[^\W_]+", spelling.casefold()))


def _closest(spelling: str, there: Sequence[str]) -> str:
    return f"the closest found: {told_names(difflib.get_close_matches(spelling, there, n=5, cutoff=0), True)}"


def _task_spellings(there: Sequence[str], tasks: Iterable[str], where: str) -> list[str]:
    """Values of the column `task` to read: the tasks, and the subjects of an mmlu that has no row of its own."""
    names = []
    for task in tasks:
        subjects = [name for name in there if name.startswith("mmlu_")] if task == "mmlu" else []
        if task not in there and not subjects:
            raise InputError(f"{where}, column task: no row of {task!r}; {_closest(task, there)}")
        names += [task] if task in there else subjects
    return names


def _wanted_rows(path: Path, runs: pl.DataFrame, tasks: Sequence[str], metrics: Sequence[str]) -> pl.DataFrame:
    """corpus, size, seed, step, task and one column for each metric, of the wanted rows of a file."""
    scan = pl.scan_parquet(path, glob=False)
    figures = _figures(path, scan, metrics)
    wanted = [pl.col(name).is_in(runs[name].unique().to_list()) for name in ("params", "data")]
    scan = _plain_types(scan).filter(*wanted, pl.col("task").is_in(tasks)).rename({"seed": "spelled_seed"})
    scan = scan.join(runs.lazy(), on=["params", "data", "spelled_seed"])
    with pl.Config(streaming_chunk_size=ROWS_AT_ONCE):
        rows = scan.select(*CHECKPOINT, "task", *figures).collect(engine="streaming")
    whole = pl.col("step").is_between(0, LARGEST_WHOLE) & (pl.col("step") == pl.col("step").floor())
    for step in rows.filter(~whole.fill_null(False))["step"][:1]:
        raise InputError(f"{path}, column step: found {told_value(step)}; it must be a whole number of at least 0")
    for row in rows.filter(~pl.all_horizontal(_finite(metrics))).iter_rows(named=True):
        raise InputError(_what_is_wrong(path, row, rows, scan, metrics))
    for name in filter(is_share, metrics):
        for row in rows.filter(outside_share(pl.col(name))).head(1).iter_rows(named=True):
            where = f"{name} of {_checkpoint_name(row)}, task {row['task']}"
            raise InputError(f"{path}: {where} is {row[name]!r}; {about_share(name, row[name])}")
    return rows.with_columns(pl.col("step").cast(pl.Int64))


def _finite(metrics: Sequence[str]) -> pl.Expr:
    return pl.col(metrics).is_finite().fill_null(False)


def _figures(path: Path, scan: pl.LazyFrame, metrics: Sequence[str]) -> list[pl.Expr]:
    """An expression for each metric, null where the row has no such figure. `InputError` if the first row lacks one."""
    kind = scan.collect_schema()["metrics"]
    if kind == pl.Struct:
        keys = [field.name for field in kind.fields]
    elif kind == pl.String:
        first = "".join(scan.select("metrics").head(1).collect()["metrics"].drop_nulls())
        keys = KEY_IN_TEXT.findall(first)
    else:
        raise InputError(f"{path}, column metrics: found {kind}; it must be a struct, or text with a dict or JSON")
    for key in metrics:
        if key not in keys:
            raise InputError(f"{path}, column metrics: no key {key!r}; found in the first row {keys}")
    if kind == pl.Struct:
        return [pl.col("metrics").struct.field(key).cast(pl.Float64, strict=False) for key in metrics]
    return [_figure_in_text(key, quote='"' if '"' in first else "'") for key in metrics]


def _figure_in_text(key: str, quote: str) -> pl.Expr:
    """The figure behind `key`. Null where the key is missing or None; nan stays NaN."""
    pattern = rf"{re.escape(f'{quote}{key}{quote}')}\s*:\s*([^,}}\s]*)"
    return pl.col("metrics").str.extract(pattern).cast(pl.Float64, strict=False).alias(key)


def _what_is_wrong(
    path: Path, row: Mapping[str, object], rows: pl.DataFrame, scan: pl.LazyFrame, metrics: Sequence[str]
) -> str:
    """The message for a row with a figure that is missing or not finite."""
    key = next(key for key in metrics if row[key] is None or not math.isfinite(row[key]))
    same = [pl.col(name) == row[name] for name in (*CHECKPOINT, "task")]
    found = scan.filter(*same).select("metrics").collect().item(0, 0) or {}
    if isinstance(found, str):
        found = dict(re.findall(KEY_IN_TEXT.pattern + r"\s*([^,}]*)", found))
    name = f"{_checkpoint_name(row)}, task {row['task']}"
    if key not in found:
        return f"{path}, column metrics: no key {key!r} in {name}; found {told_names(found)}"
    count = rows.select((~_finite(metrics)).sum()).sum_horizontal().item()
    return f"{path}: {key} of {name} is {found[key]}; it must be finite; {count} figures are not"


def _checkpoint_name(row: Mapping[str, object]) -> str:
    return "{}-{}-seed{}-step{:.0f}".format(*(row[key] for key in CHECKPOINT))


def _without_repeats(rows: pl.DataFrame, where: str) -> pl.DataFrame:
    """Each (checkpoint, task) once. `InputError` if its rows differ."""
    key = pl.struct(*CHECKPOINT, "task")
    if rows.select(key.n_unique()).item() == len(rows):
        return rows
    rows = rows.unique(maintain_order=True)
    for row in rows.filter(~key.is_first_distinct()).iter_rows(named=True):
        raise InputError(f"{where}: {_checkpoint_name(row)}, task {row['task']} stands there twice with other figures")
    return rows


def _with_subjects_averaged(rows: pl.DataFrame, tasks: Sequence[str], where: str) -> pl.DataFrame:
    """The rows of `tasks`; mmlu, where no row is called so, is the mean over its subjects with equal weight."""
    of_tasks = rows.filter(pl.col("task").is_in(list(tasks)))
    if "mmlu" not in tasks or (of_tasks["task"] == "mmlu").any():
        return of_tasks
    subjects = rows.filter(pl.col("task").str.starts_with("mmlu_"))
    expected = subjects["task"].n_unique()
    figures = pl.exclude(*CHECKPOINT, "task")
    means = subjects.group_by(CHECKPOINT).agg(figures.mean(), count=pl.len())
    for row in means.filter(pl.col("count") < expected).sort(CHECKPOINT).iter_rows(named=True):
        raise InputError(
            f"{where}: {row['count']} of {expected} subjects of mmlu for {_checkpoint_name(row)}; all must be there"
        )
    return pl.concat([of_tasks, means.drop("count").with_columns(task=pl.lit("mmlu")).select(rows.columns)])
