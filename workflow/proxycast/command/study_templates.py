"""The files of a new study, for each question that a study can answer. `CHANGE` marks what only the user knows.

No study here has a truth: it ranks, or forecasts, and judges nothing. A block in comments tells how to give one.
"""

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import yaml

Files = dict[Path, str]
Entries = dict[str, list[dict]]  # corpus or model -> its checkpoints, as keys of the option models

SCHEMA = "# yaml-language-server: $schema={folder}schema/{kind}.schema.json\n"


class Question(StrEnum):
    """What a study is to answer."""

    CORPORA_BY_CHECKPOINTS = "corpora-by-checkpoints"
    CORPORA_BY_TEXT = "corpora-by-text"
    MODELS = "models"
    FORECAST = "forecast"


def study_files(question: Question, name: str, entries: Entries) -> Files:
    """Path -> text of every file of a new study. Without `entries` placeholders take their place."""
    study, files = QUESTIONS[question](name, entries)
    text = SCHEMA.format(folder="", kind="study") + study.format(name=name)
    return {Path(f"{name}.yaml"): text, **files, **_task(name, answers=question is Question.FORECAST)}


def statistics_files(name: str, table: Path, target: dict, signs: dict[str, bool]) -> Files:
    """The file of a study of models whose numbers stand in a table. `signs`: statistic -> whether more is better."""
    text = STATISTICS.format(name=name, table=json.dumps(str(table)), signs=_flow(signs), target=_flow(target))
    return {Path(f"{name}.yaml"): SCHEMA.format(folder="", kind="study") + text}


HEAD = """\
# {title} Written by `proxycast new`.
# CHANGE marks what only you know, here and in the files that this study names. Then:
#   proxycast check config/{{name}}.yaml
#   snakemake --configfile config/{{name}}.yaml --cores 2
study: {{name}}

"""

CORPORA = (
    HEAD.format(title="Which of several corpora is best to pretrain on?")
    + """\
corpora: {{{name}: all}} # one file a corpus in config/corpora/{name}/
tasks: {{{name}: all}} # one file a task in config/tasks/{name}/
"""
)
CORPORA_TRUTH = """
# With a truth, scores of large models that were trained on these corpora, the study judges which proxies to trust.
# `proxycast check config/{name}.yaml --template truth.csv` writes the table to fill in.
# target: {{size: 1B, parameters: 1000000000, tokens: 100000000000, metric: accuracy, table: truth.csv}}
"""
MODELS = (
    HEAD.format(title="Which of several models is best at a task?")
    + """\
models: {{{name}: all}} # one file a model in config/models/{name}/
tasks: {{{name}: all}} # one file a task in config/tasks/{name}/

extraction:
  tail_bytes: 4000 # score also the last 4000 bytes of each solution, the same text for every tokenizer
  chat_template: false # true: prompts in each model's chat template

# With a truth, scores of at least four models in at least three tasks, the study judges which proxies to trust.
# `proxycast check config/{name}.yaml --template truth.csv` writes the table to fill in.
# target: {{metric: accuracy, table: truth.csv}}
# model_selection: {{}}
"""
)
STATISTICS = (
    HEAD.format(title="Which of several models is best at a task, by numbers that others measured?")
    + """\
statistics:
  table: {table} # a row a number: unit (the model), task, statistic, value
  higher_is_better: {signs} # CHANGE: whether more of each is better; known ones need no entry

target: {target} # CHANGE: the statistic that is to be predicted
model_selection: {{}}
"""
)
FORECAST = (
    HEAD.format(title="How good will a training run be at its end?")
    + """\
# For a run's log in place of its checkpoints see docs/tutorials/forecasting-a-run.md.
corpora: {{{name}: all}} # one file a run in config/corpora/{name}/
tasks: {{{name}: all}} # one file a task in config/tasks/{name}/

# What is forecast, and measured at each checkpoint here: the accuracy of multiple choice, or exact_match.
# If you have measured it yourself, add `table: truth.csv`, which
# `proxycast check config/{name}.yaml --template truth.csv` writes for you to fill in.
target: {{metric: multiple_choice_accuracy}}

forecasting:
  end: {{step: 100000}} # CHANGE: where the run will end
  # fit_up_to_step: 10000 # without it forecasts use every checkpoint; with it the later ones judge them
"""
)


def _by_checkpoints(name: str, entries: Entries) -> tuple[str, Files]:
    return CORPORA + CORPORA_TRUTH, _of_entries(name, entries) or {
        Path(f"corpora/{name}/{corpus}.yaml"): _header("corpus")
        + f"name: {corpus}\n"
        + "checkpoints: # small models trained on it; sizes, seeds and steps are looked for on the disk\n"
        + f"  - folder: path/to/{corpus}/{{size}}-seed{{seed}}/step{{step}} # CHANGE\n"
        + "    tokens_per_step: 1048576 # CHANGE: tokens in a training step\n"
        for corpus in ("corpus-a", "corpus-b")
    }


def _by_text(name: str, entries: Entries) -> tuple[str, Files]:
    files = {
        Path(f"corpora/{name}/{corpus}.yaml"): _header("corpus")
        + f"name: {corpus}\n"
        + "text:\n"
        + "  mixture: # .jsonl, .txt (also .gz, .zst) or .parquet; several sources have weights\n"
        + f'    - {{files: "path/to/{corpus}/*.jsonl"}} # CHANGE\n'
        for corpus in ("corpus-a", "corpus-b")
    }
    ladder = f"ladder: {{{{name: {name}}}}} # the models that are trained on each corpus\n"
    return CORPORA + ladder + CORPORA_TRUTH, files | {Path(f"ladders/{name}.yaml"): LADDER.format(name=name)}


LADDER = (
    SCHEMA.format(folder="../", kind="ladder")
    + """\
# Small Llamas that are trained on every corpus, in the same way. `proxycast estimate` tells what they take.
name: {name}
tokenizer: {{folder: path/to/tokenizer}} # CHANGE: tokenizer.json and tokenizer_config.json; or hub: <repository>
vocabulary: 50304 # CHANGE: at least the tokens of the tokenizer
sequence_length: 1024
checkpoint_every: 1000
seeds: {{0: default}}
sizes: # CHANGE: what you can afford
  4M: {{hidden_size: 64, layers: 8, heads: 8, batch_sequences: 32, steps: 2000, learning_rate: 0.014}}
  20M: {{hidden_size: 192, layers: 16, heads: 8, batch_sequences: 64, steps: 4000, learning_rate: 0.008}}
"""
)


def _models(name: str, entries: Entries) -> tuple[str, Files]:
    given = {model: _mapping({"name": model, **entry}) for model, [entry] in entries.items()}
    placeholders = {
        model: f"name: {model}\n"
        + f"folder: path/to/{model} # CHANGE: config.json, *.safetensors, a tokenizer; or hub: and parameters:\n"
        for model in ("model-a", "model-b")
    }
    files = given or placeholders
    return MODELS, {Path(f"models/{name}/{model}.yaml"): _header("model") + text for model, text in files.items()}


def _forecast(name: str, entries: Entries) -> tuple[str, Files]:
    return FORECAST, _of_entries(name, entries) or {
        Path(f"corpora/{name}/run-a.yaml"): _header("corpus")
        + "name: run-a\n"
        + "checkpoints: # of one training run; its steps are looked for on the disk\n"
        + "  - folder: path/to/run-a/step{step} # CHANGE\n"
        + "    size: 7B # CHANGE: a name for the size\n"
        + "    tokens_per_step: 1048576 # CHANGE: tokens in a training step\n"
    }


def _of_entries(name: str, entries: Entries) -> Files:
    return {
        Path(f"corpora/{name}/{corpus}.yaml"): _header("corpus")
        + f"name: {corpus}\ncheckpoints:\n"
        + "".join(f"  - {_flow(entry)}\n" for entry in found)
        for corpus, found in entries.items()
    }


def _task(name: str, answers: bool) -> Files:
    task = f"{name}-task"
    row = '{"id": "1", "prompt": "2 + 3 =", "solution": " 5"'
    row += ', "choices": [" 4", " 5"]}' if answers else "}"
    return {
        Path(f"tasks/{name}/{task}.yaml"): _header("task")
        + f"name: {task}\n"
        + "# Expert solutions, one JSON object a line, as in\n"
        + f"#   {row}\n"
        + "solutions: path/to/solutions.jsonl # CHANGE\n"
    }


def _header(kind: str) -> str:
    return SCHEMA.format(folder="../../", kind=kind)


def _mapping(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _flow(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10_000).strip()


QUESTIONS: dict[Question, Callable[[str, Entries], tuple[str, Files]]] = {
    Question.CORPORA_BY_CHECKPOINTS: _by_checkpoints,
    Question.CORPORA_BY_TEXT: _by_text,
    Question.MODELS: _models,
    Question.FORECAST: _forecast,
}
