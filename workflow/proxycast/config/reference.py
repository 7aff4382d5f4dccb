"""Generates the reference of the configuration: JSON schemas for editors, config/README.md for people.

Run `python -m proxycast.config.reference` after any change of a model; a test fails if the files are stale.
"""

from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from proxycast.config.corpora import Corpus
from proxycast.config.ladder import Ladder
from proxycast.config.models import ReleasedModel
from proxycast.config.study import CONFIG, Study
from proxycast.config.tasks import Task
from proxycast.tables import atomic, write_json

FILE_KINDS: dict[str, tuple[type[BaseModel], str]] = {
    "study": (Study, "A study: `config/*.yaml`"),
    "corpus": (Corpus, "A corpus: `config/corpora/<suite>/*.yaml`"),
    "model": (ReleasedModel, "A released model: `config/models/<suite>/*.yaml`"),
    "task": (Task, "A task: `config/tasks/<suite>/*.yaml`"),
    "ladder": (Ladder, "A ladder of model sizes: `config/ladders/*.yaml`"),
}

INTRODUCTION = """\
# Configuration

A study is one file. Run it with `snakemake --configfile config/<study>.yaml`; without `--configfile`, snakemake runs
`config/config.yaml`. A study names suites of corpora, models and tasks, which are folders here. **To add a corpus, a
model or a task, add a file** to one of them. A study ranks corpora (`target.size`, `highlighted`, `budgets`), chooses
among models (`model_selection`) or forecasts training runs (`forecasting`). Unknown keys are errors. The lines
`# yaml-language-server: $schema=...` give editors completion and checks from `schema/`.

A corpus has one of three: a `recipe`, which the miniature suite trains models on; `checkpoints` of existing models, in
folders or on the hub; or `text`, which the study tokenises and trains models on. For the last two follow the tutorials
`docs/tutorials/own-corpus-checkpoints.md` and `docs/tutorials/own-corpus-text.md`.

## A task

A task has a `family` of the miniature suite's problems, `rows` of a data set with templates (`config/tasks/olmes` has
ten), or a `solutions` file (`.jsonl` or `.parquet`) with one expert solution per row. If you add or edit a task in a
finished study, checkpoints read only this task. If you remove one, they read nothing.

| column | | |
|---|---|---|
| `id` | text, required | name of the problem, unique in the file |
| `prompt` | text, required | text before the solution; it is read but not scored |
| `solution` | text, required | the expert's text. It follows the prompt directly, so begin it with its white space |
| `answer` | text | what `answer_pattern` must find in generated text |
| `choices` | list of text | continuations to choose from; the correct one equals `solution`, or else `answer` |
| `writer` | text | who wrote the solution |
| `problem` | text | name that several solutions of one problem share; each has its own `id` |

In a study with `writers`, rows may lack the solution.

## A model, and solutions written by strong models

A file in `config/models/<suite>/` names a released model, in a folder or on the hub. The `writers` of a study are
strong models that solve the problems of every task. Each writer samples texts (`temperature`, `samples`, `seed`), and
the first text with the right answer is kept. The answer is group 1 of the *last* match of the task's `answer_pattern`.
(Exact match of a small model uses the first match, because small models write on after their answer.)

## Judges of other studies

`judges: {datadecide: judge.json}` applies what a study with a truth learned (`docs/how/judges.md`). The study must
compute the judge's proxies with the same options. The table `judged` holds what it says.

## Numbers of others

`statistics` reads a long table of what others measured: unit (corpus or model), task, statistic, value and, where
known, n, parameters, tokens, flops, size, step, seed, family. See `config/published_perplexity.yaml`. A study with
`statistics` and without `tasks` runs no model.

## Logs of training runs

`forecasting.curve` reads runs from .csv or .parquet files with a row for each step; see `config/published_olmo2.yaml`
and the tutorial on forecasting. It names the column of each task's truth, the columns of its statistics, and the
statistics that all tasks share. Fits use t = tokens / tokens at the cut, so `b` of f(t) = a - b t^(-c) is the gain that
is left at the cut.

The tables below are generated from the code that checks the files (`python -m proxycast.config.reference`).
"""


def reference() -> str:
    """config/README.md: every key of every kind of file, with its type, default and meaning."""
    sections = [INTRODUCTION]
    for model, title in FILE_KINDS.values():
        sections.append(f"## {title}\n")
        sections += [_table(part, path) for path, part in _parts(model, "")]
    return "\n".join(sections)


def _parts(model: type[BaseModel], path: str) -> list[tuple[str, type[BaseModel]]]:
    """The model and all models nested in it, each with its path of keys."""
    parts = [(path, model)]
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            mark = (
                "[]"
                if "list" in str(field.annotation) or "tuple" in str(field.annotation)
                else ".<name>"
                if "dict" in str(field.annotation)
                else ""
            )
            parts += _parts(inner, f"{path}.{name}{mark}".lstrip("."))
    return parts


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _table(model: type[BaseModel], path: str) -> str:
    heading = f"### `{path}`\n\n" if path else ""
    rows = "\n".join(_row(name, field, model) for name, field in model.model_fields.items())
    return f"{heading}{' '.join((model.__doc__ or '').split())}\n\n| key | default | meaning |\n|---|---|---|\n{rows}\n"


def _row(name: str, field: FieldInfo, model: type[BaseModel]) -> str:
    default = field.default
    if field.is_required() or default is PydanticUndefined:
        shown = "required"
    elif isinstance(default, BaseModel):
        shown = "see below"
    else:
        shown = "none" if default in (None, "") else f"`{list(default) if isinstance(default, tuple) else default}`"
    schema = model.model_json_schema()["properties"][name]
    values = next((part["enum"] for part in (schema, *schema.get("anyOf", [])) if "enum" in part), None)
    choices = f" One of {', '.join(f'`{value}`' for value in values)}." if values else ""
    description = (field.description or "").rstrip(".")
    return f"| `{name}` | {shown} | {description[:1].upper()}{description[1:]}.{choices} |"


def write_reference(folder: Path = CONFIG) -> None:
    """Write schema/<kind>.schema.json and README.md into `folder`."""
    for kind, (model, _) in FILE_KINDS.items():
        write_json(model.model_json_schema(), folder / "schema" / f"{kind}.schema.json")
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(reference())


if __name__ == "__main__":
    write_reference()
