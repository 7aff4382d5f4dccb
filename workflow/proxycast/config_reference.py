"""What editors and people read of the configuration, generated from its models: JSON schemas and config/README.md.

Run `python -m proxycast.config_reference` after any change of a model; a test fails while the files are stale.
"""

from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from proxycast.config import CONFIG, Corpus, Study, Task
from proxycast.tables import atomic, write_json

KINDS: dict[str, tuple[type[BaseModel], str]] = {
    "study": (Study, "A study: `config/*.yaml`"),
    "corpus": (Corpus, "A corpus: `config/corpora/<suite>/*.yaml`"),
    "task": (Task, "A task: `config/tasks/<suite>/*.yaml`"),
}

INTRODUCTION = """\
# Configuration

A study is one file; `snakemake --configfile config/<study>.yaml` runs it, and without `--configfile` it is
`config/config.yaml`. It names suites of corpora and of tasks, which are folders here: **adding a corpus or a task is
adding a file** to one of them. Unknown keys are errors. The lines `# yaml-language-server: $schema=...` give editors
completion and checks from `schema/`.

A corpus has either a `recipe`, which the miniature suite trains models on, or `checkpoints`, folders of models that
exist already. A task has either a `family` of the miniature suite's problems or a `solutions` file (`.jsonl` or
`.parquet`), one expert solution a row:

| column | | |
|---|---|---|
| `id` | text, required | name of the problem, unique in the file |
| `prompt` | text, required | what the model reads first; it is not scored |
| `solution` | text, required | what the expert wrote; it follows the prompt directly: begin it with its white space |
| `answer` | text | what `answer_pattern` must find in generated text |
| `choices` | list of text | continuations to choose from; the correct one equals `solution`, or else `answer` |
| `writer` | text | who wrote the solution |

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
            mark = "[]" if "list" in str(field.annotation) else ".<name>" if "dict" in str(field.annotation) else ""
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
