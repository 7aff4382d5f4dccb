"""Writes a new study with the files that it names: `proxycast new`."""

from pathlib import Path

import polars as pl

from proxycast.command.study_templates import Entries, Files, Question, statistics_files, study_files
from proxycast.config.corpora import CheckpointEntry, Corpus
from proxycast.config.errors import parse
from proxycast.config.models import ReleasedModel
from proxycast.config.study import CONFIG
from proxycast.metrics import is_error, is_loss, is_share
from proxycast.options import InputError, Options, SafeName
from proxycast.proxy_formulas import SIGNS
from proxycast.tables import atomic, read_csv

STATISTICS_COLUMNS = {"unit", "task", "statistic", "value"}


class _Name(Options):
    study: SafeName


def new_study(question: Question, name: str, table: Path | None = None) -> list[Path]:
    """Write the files of a study named `name` below config/; their paths, the study's own first.

    `table`: a .csv of checkpoints (`read_entries`), or of statistics: unit, task, statistic, value. `InputError` if a
    file is there already; then none is written.
    """
    parse(_Name, {"study": name}, "proxycast new")
    rows = read_csv(table) if table else None
    if rows is None:
        texts = study_files(question, name, {})
    elif STATISTICS_COLUMNS <= set(rows.columns):
        texts = _of_statistics(question, name, table, rows)
    else:
        texts = study_files(question, name, read_entries(table, rows, question))
    files = {CONFIG / path: text for path, text in texts.items()}
    _require_new(files)
    for path, text in files.items():
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(files)


def _require_new(files: Files) -> None:
    if not CONFIG.is_dir():
        raise InputError(f"{CONFIG}: no such folder; run this in the folder of the project, beside its Snakefile")
    if there := [path for path in files if path.exists()]:
        raise InputError(f"{there[0]}: is there already, and is not overwritten; give the study another name")


def _of_statistics(question: Question, name: str, table: Path, rows: pl.DataFrame) -> Files:
    """A study of the models in a table of statistics. The first one named like a share or an error is the metric."""
    if question is not Question.MODELS:
        raise InputError(f"{table}: a table of statistics is for the question {Question.MODELS}, found {question}")
    names = rows["statistic"].drop_nulls().unique(maintain_order=True).to_list()
    if not names:
        raise InputError(f"{table}: found no rows; give one for each number")
    metric = min(names, key=lambda name: (not is_share(name), is_loss(name) or not is_error(name)))
    target = {"metric": metric} | ({"higher_is_better": False} if is_error(metric) else {})
    known = {*SIGNS, metric}
    signs = {name: not is_error(name) for name in names if name not in known}
    return statistics_files(name, table, target, signs)


def read_entries(table: Path, rows: pl.DataFrame, question: Question) -> Entries:
    """Corpus, run or model -> its checkpoints, from the `rows` of a .csv, one for each.

    Columns: name, and keys of a checkpoint's entry (folder or hub, revision, size, seed, step, tokens ...) or of a
    model (folder or hub, family, parameters ...). An empty cell leaves a key out.
    `InputError` names the row, as an editor shows it, and what is wrong with it.
    """
    if question is Question.CORPORA_BY_TEXT:
        raise InputError(f"{table}: --from-table is for checkpoints; write the files of a corpus of text into its file")
    if "name" not in rows.columns:
        raise InputError(f"{table}: column name: missing; each row needs the name of its corpus, run or model")
    entries: Entries = {}
    for number, row in enumerate(rows.iter_rows(named=True), start=2):
        where = f"{table}, row {number}"
        values = {key: value for key, value in row.items() if value not in (None, "")}
        name = values.get("name", "")
        if question is Question.MODELS:
            if name in entries:
                raise InputError(f"{where}: name: {name!r} stands in another row already; a model has one row")
            entries[name] = [_told(parse(ReleasedModel, values, where))]
        else:
            entry = parse(CheckpointEntry, {key: value for key, value in values.items() if key != "name"}, where)
            parse(Corpus, {"name": name, "checkpoints": [entry]}, where)
            entries.setdefault(name, []).append(_told(entry))
    if not entries:
        raise InputError(f"{table}: found no rows; give one for each checkpoint")
    return entries


def _told(entry: Options) -> dict:
    """The keys that were given, as YAML writes them; a list of one value as that value."""
    found = entry.model_dump(mode="json", exclude_unset=True)
    return {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in found.items()}
