"""What editors and people read of the configuration, generated from its models: JSON schemas and config/README.md.

Run `python -m proxycast.config_reference` after any change of a model; a test fails while the files are stale.
"""

from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from proxycast.config import CONFIG, Study, Task
from proxycast.corpora import Corpus
from proxycast.ladder import Ladder
from proxycast.models import ReleasedModel
from proxycast.tables import atomic, write_json

KINDS: dict[str, tuple[type[BaseModel], str]] = {
    "study": (Study, "A study: `config/*.yaml`"),
    "corpus": (Corpus, "A corpus: `config/corpora/<suite>/*.yaml`"),
    "model": (ReleasedModel, "A released model: `config/models/<suite>/*.yaml`"),
    "task": (Task, "A task: `config/tasks/<suite>/*.yaml`"),
    "ladder": (Ladder, "A ladder of model sizes: `config/ladders/*.yaml`"),
}

INTRODUCTION = """\
# Configuration

A study is one file; `snakemake --configfile config/<study>.yaml` runs it, and without `--configfile` it is
`config/config.yaml`. It names suites of corpora, of models and of tasks, which are folders here: **adding a corpus, a
model or a task is adding a file** to one of them. It ranks corpora (`target.size`, `highlighted`, `budgets`), chooses
among models (`model_selection`) or forecasts training runs (`forecasting`). Unknown keys are errors. The lines
`# yaml-language-server: $schema=...` give editors completion and checks from `schema/`.

A corpus is one of three: a `recipe`, which the miniature suite trains models on; `checkpoints`, models that exist
already, in folders or on the hub; or `text`, which the study tokenises and trains models on. The next two sections walk
through the last two.

## Where does my corpus stand? You have models that were trained on it

1. Write `config/corpora/mine/elsewhere.yaml`. One entry covers a sweep: placeholders are looked for on the disk.

   ```yaml
   name: elsewhere
   checkpoints:
     - {folder: "models/elsewhere-{size}-seed{seed}/step{step}", tokens_per_step: 1024}
   ```

2. Add the suite to the study, under `corpora:`, beside those that are there: `mine: all`.
3. `snakemake --configfile config/<study>.yaml --cores 2` runs the jobs of the new corpus alone, then ranks again.
4. Read its row of `results/<study>/data_selection/ranking.csv`. Without models of the target's size it has no true
   rank; its `predicted_rank` is the place that it takes when it is put among the N corpora that have one: 1 to N + 1,
   and between two where it equals one of them. `seeds` says how many of its seeds were there.

Sizes, steps, tokens and tokenizer must be those of the other corpora at the budgets that the study compares. On the hub
an entry is `hub: me/elsewhere-{size}` with `revision: step{step}-seed{seed}`; a study with a `ladder` knows sizes,
seeds, steps, tokens and parameters, else the entry lists `size`, `seed`, `step` and gives `tokens_per_step` and
`parameters`. `convert_from: hf_olmo` converts DataDecide's format.

## Where does my corpus stand? You have its text

1. Write `config/corpora/mine/notes.yaml`: files, or a data set of the hub, alone or as a mixture.

   ```yaml
   name: notes
   text:
     mixture:
       - {files: "data/notes/*.jsonl.gz", weight: 0.7, where: "length(text) > 100"}
       - {files: "data/more/**/*.txt", weight: 0.3}
   ```

2. Add the suite to the study, under `corpora:`: `mine: all`.
3. `snakemake --configfile config/<study>.yaml --cores 2` tokenises it once, trains all sizes but the target's, as the
   other corpora's models were trained, and scores them. A killed training goes on from its last saved state.
4. Read its row of `results/<study>/data_selection/ranking.csv`, as above.

Text is `.jsonl`, `.txt` (each also `.gz` or `.zst`) or `.parquet`; `where` is an SQL condition on a row's columns. Only
as many tokens are read as the longest run needs. In a study with a `ladder`, such as `config/data_selection.yaml`, the
models have the ladder's shapes, batches, steps and learning rates; `sizes: [4M, 20M]` in the corpus file trains fewer.

## A task

A task has a `family` of the miniature suite's problems, `rows` of a data set with templates (`config/tasks/olmes` has
ten), or a `solutions` file (`.jsonl` or `.parquet`), one expert solution a row. Add or edit a task in a finished study,
and checkpoints read this task alone. Remove one, and they read nothing.


| column | | |
|---|---|---|
| `id` | text, required | name of the problem, unique in the file |
| `prompt` | text, required | what the model reads first; it is not scored |
| `solution` | text, required | what the expert wrote; it follows the prompt directly: begin it with its white space |
| `answer` | text | what `answer_pattern` must find in generated text |
| `choices` | list of text | continuations to choose from; the correct one equals `solution`, or else `answer` |
| `writer` | text | who wrote the solution |
| `problem` | text | joins several solutions of one problem, each with an `id` of its own |

Where a study has `writers`, rows may lack the solution.

## A model, and solutions written by strong models

A file in `config/models/<suite>/` names a released model, in a folder or on the hub. `writers` in a study are strong
models that solve the problems of every task: texts are drawn (`temperature`, `samples`, `seed`), and the first whose
answer is right is kept: group 1 of the task's `answer_pattern` at its *last* match. (The exact match of a small model
takes the first match, because it goes on after its answer.)

## A curve that others logged

`forecasting.curve` reads one run from a .csv with a row for each step, as `config/published_olmo2.yaml` does: which
column is the truth of each task, which are its statistics, and which are shared by all. Fits are in units of the cut:
t = tokens / tokens at the cut, so `b` of f(t) = a - b t^(-c) is what is left to gain there.

The tables below are generated from the models that check the files (`python -m proxycast.config_reference`).
"""


def reference() -> str:
    """config/README.md: every key of every kind of file, with its type, default and meaning."""
    sections = [INTRODUCTION]
    for model, title in KINDS.values():
        sections.append(f"## {title}\n")
        sections += [_table(part, path) for path, part in _parts(model, "")]
    return "\n".join(sections)


def _parts(model: type[BaseModel], path: str) -> list[tuple[str, type[BaseModel]]]:
    """The model itself and every model within it, with the path of keys that leads to it."""
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
    for kind, (model, _) in KINDS.items():
        write_json(model.model_json_schema(), folder / "schema" / f"{kind}.schema.json")
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(reference())


if __name__ == "__main__":
    write_reference()
