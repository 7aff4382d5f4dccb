"""Checks before any training: each fault of an input is found, and named with its file, component, row or corpus."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from conftest import CONTEXT, byte_level_tokenizer, metaspace_tokenizer, tiny_model
from proxycast.config.corpora import Corpus
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.ladder import Ladder
from proxycast.config.study import Study
from proxycast.config.tasks import Task
from proxycast.files import Files
from proxycast.options import InputError
from proxycast.solutions.rows import Solution
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checks import (
    begin_edits,
    changed_since,
    check_files,
    check_folders,
    check_inputs,
    check_measurable,
    check_recipes,
    check_target_table,
    count_scored_tokens,
    edits_of,
    end_edits,
    require_one_tokenizer,
    require_plain_results,
    require_vocabulary,
)
from proxycast.study.cross_checks import check_truth_of_models
from proxycast.study.study_plan import Plan
from proxycast.tables import read_json, stat_of, write_json
from proxycast.weights.model_config import context_of
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

POOL = pl.DataFrame(
    {
        "source": ["web"] * 4 + ["wiki"] * 2,
        "first": [True, False, True, True, True, True],
        "clean": [True, True, False, True, False, False],
        "quality_wiki": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    }
)
FILE = Path("config/corpora/suite/mine.yaml")
OPTIONS = ExtractionOptions(tail_tokens=10)


def corpus(*components: dict, name: str = "mine") -> Corpus:
    return Corpus(name=name, recipe={"mixture": [{"weight": 1, **component} for component in components]})


@pytest.fixture
def solutions(tmp_path):
    """A function that writes solutions (prompt, solution) into tasks/<name>.jsonl."""

    def write(*rows: tuple[str, str], name: str = "sums") -> Path:
        path = tmp_path / "tasks" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        entries = [{"id": f"row-{n}", "prompt": prompt, "solution": text} for n, (prompt, text) in enumerate(rows)]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return path

    return write


# Recipes


def test_recipes_are_counted():
    mine = corpus({"source": "web"}, {"source": "web", "deduplicate": True}, {"source": "wiki"})
    half = corpus({"source": "web", "heuristics": True, "classifier": "wiki", "keep": 0.5}, name="half")
    given = Corpus(name="given", checkpoints=[{"folder": "x", "size": "s", "step": 1, "tokens": 1}])
    assert check_recipes(POOL, {FILE: mine, Path("b"): half, Path("c"): given}) == {"mine": [4, 3, 2], "half": [1]}


@pytest.mark.parametrize(
    "component",
    [
        {"source": "wiki", "heuristics": True},
        {"source": "wiki", "classifier": "wiki", "keep": 0.4},
        {"source": "books"},
    ],
)
def test_recipe_that_keeps_nothing(component):
    source = component["source"]
    available = POOL.filter(source=source).height
    with pytest.raises(
        InputError, match=rf"{FILE}: mixture\[1\] \(source {source}\) keeps none of its {available} doc.*filters"
    ):
        check_recipes(POOL, {FILE: corpus({"source": "web"}, component)})


# Model folders and solutions


def test_scored_tokens_are_counted(model_folder, solutions):
    folder, other = model_folder("a"), model_folder("b", tokenizer=byte_level_tokenizer(bos=True))
    files = [solutions(("Q: one?\nA:", " 2 plus 3."), ("", "The cat sat."), name="t"), solutions((" Q", " the hat."))]
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    # The first token of a text without prompt has no context, unless there is a BOS.
    expected = tokens(" 2 plus 3.") + tokens("The cat sat.") - 1 + tokens(" the hat.")
    found = check_folders(dict.fromkeys([folder, other], ExtractionOptions()), files)
    assert found == {str(folder): expected, str(other): expected + 1}
    short = ExtractionOptions(tail_tokens=1)
    assert check_folders({folder: short, other: OPTIONS}, files) == {str(folder): 3, str(other): expected + 1}


def test_folder_without_tokenizer(model_folder, solutions):
    folder = model_folder()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=rf"{folder}: tokenizer\.json missing; found \['config\.json'"):
        check_folders(dict.fromkeys([model_folder("whole"), folder], OPTIONS), [solutions(("a", " b"))])


def test_folder_that_must_be_converted_first(model_folder, solutions):
    folder = model_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "hf_olmo"}))
    with pytest.raises(InputError, match=rf"^{folder}: found a checkpoint of hf_olmo.*`convert_from: hf_olmo`"):
        check_folders({folder: ExtractionOptions()}, [solutions()])


def test_vocabulary_that_does_not_match(model_folder, solutions):
    largest = max(byte_level_tokenizer().get_vocab().values())
    folder = model_folder(vocabulary=largest)
    wrong = rf"{folder}: found token id {largest} in the tokenizer, but vocab_size {largest}"
    with pytest.raises(InputError, match=wrong):
        check_folders({folder: OPTIONS}, [solutions(("a", " b"))])


def test_added_tokens_without_an_embedding(model_folder, solutions):
    """Some Gemma checkpoints have them, for images: they are in nobody's way until a text has one."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    beyond = tokenizer.convert_tokens_to_ids("<image>")
    folder = model_folder(tokenizer=tokenizer, vocabulary=beyond)
    assert check_folders({folder: OPTIONS}, [solutions(("a", " b"))]) == {str(folder): 2}
    file = solutions(("a", " b"), ("a", " b<image>"))
    wrong = rf"{file}: row-1: found the token '<image>' with id {beyond}, but {folder} has {beyond} embeddings"
    with pytest.raises(InputError, match=wrong):
        check_folders({folder: OPTIONS}, [file])


@pytest.mark.parametrize("fault", ["absent", "truncated", "config"])
def test_folder_that_is_not_whole(model_folder, solutions, fault):
    folder = model_folder()
    weights = folder / "model.safetensors"
    match fault:
        case "absent":
            shutil.rmtree(folder)
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "config":
            (folder / "config.json").unlink()
    with pytest.raises(InputError, match=str(folder)):
        check_folders({folder: OPTIONS}, [solutions(("a", " b"))])


def test_over_long_solution(model_folder, solutions):
    folder = model_folder()
    file = solutions(("Q", " cat"), ("Q", " cat" * CONTEXT))
    whole = ExtractionOptions(windowing=False)
    with pytest.raises(
        InputError, match=rf"{file}: row-1: found {CONTEXT + 1} tokens of prompt and solution.*context holds {CONTEXT}"
    ):
        check_folders({folder: whole}, [file])
    # A tail does not help: the whole sequence is read.
    short = ExtractionOptions(windowing=False, tail_tokens=1)
    with pytest.raises(InputError, match="row-1"):
        count_scored_tokens(folder, CONTEXT, [file], short)
    assert count_scored_tokens(folder, CONTEXT + 1, [file], short) == 2


def test_over_long_solution_in_windows(model_folder, solutions, caplog):
    folder = model_folder()
    file = solutions(("Q", " cat"), ("Q", " cat" * CONTEXT))
    assert check_folders({folder: ExtractionOptions()}, [file]) == {str(folder): 1 + CONTEXT}
    words = f"1 of 2 texts are longer than the model's context of {CONTEXT} tokens and are read in windows, first"
    assert caplog.messages == [f"{words} {file}: row-1"]
    caplog.clear()
    assert check_folders({folder: ExtractionOptions(max_model_len=CONTEXT // 2)}, [file]) == {str(folder): 1 + CONTEXT}
    assert f"context of {CONTEXT // 2} tokens" in caplog.text


def test_context_counts_for_each_folder(model_folder, solutions):
    short = tiny_model()
    short.config.max_position_embeddings = 8
    file, options = solutions(("Q", " cat" * 20)), ExtractionOptions(windowing=False)
    with pytest.raises(InputError, match="row-0: found 21 tokens .* context holds 8"):
        check_folders(dict.fromkeys([model_folder("long"), model_folder("short", model=short)], options), [file])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_context_is_found_in_every_config(model_folder, architecture):
    assert context_of(model_folder(architecture=architecture)) == CONTEXT


def test_chat_template_counts_for_each_folder(model_folder, solutions):
    """The prompt's tokens change; the solution's, and so those that are scored, are the same."""
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}\n"
    base, chat = model_folder("base"), model_folder("chat", tokenizer=tokenizer)
    options = ExtractionOptions(chat_template=True)
    file = solutions(("Q", " cat"), ("", "The cat"))
    found = check_folders({base: OPTIONS, chat: options}, [file])
    assert found[str(chat)] == found[str(base)] + 1  # the template's BOS gives the first token a context
    with pytest.raises(InputError, match=f"^{base}: this tokenizer has no chat template; give"):
        check_folders({base: options}, [file])


def test_choices_are_read_as_the_solutions_are(model_folder, solutions):
    file = solutions(("Q", " cat"))
    row = {"id": "x", "prompt": "Q", "solution": " cat", "choices": [" cat", " cat" * CONTEXT]}
    file.write_text(file.read_text() + json.dumps(row) + "\n")
    folder = model_folder()
    assert check_folders({folder: OPTIONS}, [file]) == {str(folder): 2}
    with pytest.raises(InputError, match=rf"{file}: x, choice 2: found {CONTEXT + 1} tokens"):
        check_folders({folder: ExtractionOptions(windowing=False)}, [file])


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_solution(model_folder, solutions, text):
    file = solutions(("Q", " cat"), ("Q", text))
    with pytest.raises(InputError, match=rf"{file}, row 2, field solution: found {text!r}".replace("\\", r"\\")):
        check_folders({model_folder(): OPTIONS}, [file])


def test_missing_field(model_folder, solutions):
    file = solutions(("Q", " cat"))
    file.write_text(file.read_text() + '{"id": "x", "prompt": "Q"}\n')
    with pytest.raises(InputError, match=rf"{file}, row 2, field solution: missing"):
        check_folders({model_folder(): OPTIONS}, [file])


# Files, tokenizers and vocabularies


def test_files_of_this_machine_must_be_there(tmp_path):
    path = tmp_path / "a.txt"
    words = rf"^web.yaml: text.mixture\[0\]: files: '{path}' finds no file on this machine"
    with pytest.raises(InputError, match=words):
        check_files("web.yaml: text.mixture[0]", Files(files=str(path)))
    path.touch()
    check_files("web.yaml: text.mixture[0]", Files(files=str(path)))
    check_files("web.yaml: text.mixture[0]", Files(hub="owner/data", files="absent"))  # a job of its own will see


def test_one_tokenizer_for_all_models(model_folder, tmp_path):
    one, same, padded = model_folder("one"), model_folder("same"), model_folder("padded", vocabulary=400)
    other = model_folder("other", tokenizer=metaspace_tokenizer())
    require_one_tokenizer([])
    # The number of embeddings and what is put around a text are no part of it.
    around = model_folder("around", tokenizer=byte_level_tokenizer(bos=True))
    require_one_tokenizer([one, same, padded, around, tmp_path / "absent"])
    with pytest.raises(
        InputError, match=rf"^{other}: its tokenizer has another vocabulary than that of {one}; corpora"
    ):
        require_one_tokenizer([one, same, other])


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer"])
def test_the_same_tokens_may_split_text_otherwise(part, model_folder):
    tokenizer = byte_level_tokenizer()
    backend = tokenizer.backend_tokenizer
    if part == "normalizer":
        backend.normalizer = normalizers.NFC()
    else:
        words = pre_tokenizers.Split(" ", "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, backend.pre_tokenizer])
    one, other = model_folder("one"), model_folder("other", tokenizer=tokenizer)
    with pytest.raises(InputError, match=rf"^{other}: its tokenizer splits text otherwise than that of {one}; corpora"):
        require_one_tokenizer([one, other])


def test_one_token_more_is_another_vocabulary(model_folder):
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<more>"])
    one, other = model_folder("one"), model_folder("other", tokenizer=tokenizer)
    with pytest.raises(InputError, match="another vocabulary"):
        require_one_tokenizer([one, other])


def test_broken_tokenizer(model_folder):
    folder = model_folder()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=rf"^{folder}/tokenizer.json: no readable tokenizer"):
        require_one_tokenizer([folder])


def test_vocabulary_of_the_ladder(model_folder):
    one, other = model_folder("one"), model_folder("other", vocabulary=400)
    require_vocabulary([one, other], None)
    require_vocabulary([one], 352)
    with pytest.raises(InputError, match=rf"^{other}/config.json, key vocab_size: found 400, but 352 in the ladder"):
        require_vocabulary([one, other], 352)


# All inputs of a study


@pytest.fixture
def study(tmp_path, monkeypatch, model_folder, solutions):
    """A function that makes a plan of two corpora of folders, with changes of the study, and its checkpoints."""
    monkeypatch.chdir(tmp_path)
    folder = model_folder()
    files = {name: solutions(("Q", " cat"), ("", "The hat"), name=name) for name in ("sums", "generic")}

    def build(ladder: dict | None = None, corpora: dict[str, dict] | None = None, **changes) -> tuple:
        changes |= {"ladder": {"name": "mine"}} if ladder else {}
        entries = [{"folder": str(folder), "size": size, "step": 1, "tokens": 9} for size in ("small", "large")]
        values = {
            **{"study": "mine", "corpora": {"own": "all"}, "generic_text": files["generic"]},
            **{"target": {"size": "large", "table": "truth.csv"}, "highlighted": [{"statistic": "margin"}]},
            **{"budgets": [{"name": "x", "size": "small", "step": 1}]},
        }
        given = {name: {"checkpoints": entries} for name in "ab"} | (corpora or {})
        plan = Plan(
            study=Study(**{**values, **changes}),
            corpora=[Corpus(name=name, **origin) for name, origin in given.items()],
            tasks=[Task(name="sums", solutions=files["sums"])],
            corpus_files={name: Path(f"{name}.yaml") for name in given},
            ladder=Ladder(**LADDER, **ladder) if ladder else None,
            where="study.yaml",
        )
        rows = [(f"{name}-large-seed0-step1", "sums", "accuracy", 0.5, 2) for name in given]
        columns = ["checkpoint", "task", "metric", "value", "n"]
        if not Path("truth.csv").exists():  # else a second plan would have newer inputs
            pl.DataFrame(rows, columns, orient="row").write_csv("truth.csv")
        return plan, plan_checkpoints(plan)

    return build


SHAPE = {"hidden_size": 64, "layers": 1, "heads": 2, "batch_sequences": 1, "steps": 1, "learning_rate": 0.01}
LADDER = {
    **{"name": "mine", "vocabulary": 352, "sequence_length": 9, "checkpoint_every": 1, "seeds": {0: "a"}},
    "sizes": {"small": SHAPE, "large": SHAPE},
}
TRUTH = {"target": {"size": "large", "metric": "accuracy", "table": "truth.csv"}}


def test_good_inputs_are_checked_once(study, model_folder, monkeypatch):
    plan, checkpoints = study(**TRUTH)
    check_inputs(plan, checkpoints)
    found = json.loads(Path("results/mine/checked.json").read_text())
    folder = checkpoints[0].folder
    assert list(found["folders"]) == [folder] and found["folders"][folder] > 0
    monkeypatch.setattr("proxycast.study.checks.check_folders", None)
    check_inputs(plan, checkpoints)
    path = Path(folder) / "config.json"
    path.write_text(path.read_text() + "\n")  # one byte more: all is checked again
    with pytest.raises(TypeError):
        check_inputs(plan, checkpoints)


def test_a_ladders_tokenizer_is_that_of_the_models(study, model_folder):
    other = model_folder("other", tokenizer=metaspace_tokenizer())
    good = {"tokenizer": {"folder": str(model_folder("good"))}}
    check_inputs(*study(good, **TRUTH))
    with pytest.raises(InputError, match=rf": its tokenizer has another vocabulary than that of {other}; corpora"):
        check_inputs(*study({"tokenizer": {"folder": str(other)}}, **TRUTH))


def test_a_tokenizer_that_lies_about_is_not_the_ladders(study, model_folder):
    shutil.copy(model_folder("other", tokenizer=metaspace_tokenizer()) / "tokenizer.json", "tokenizer.json")
    check_inputs(*study({"tokenizer": {"hub": "me/tokenizer"}}, **TRUTH))


def test_files_of_a_study_must_be_there(study):
    new = {"new": {"text": {"mixture": [{"files": "absent.txt"}]}}}
    with pytest.raises(InputError, match=r"^new.yaml: text.mixture\[0\]: files: 'absent.txt' finds no file"):
        check_inputs(*study({"tokenizer": {"hub": "me/tokenizer"}}, new, **TRUTH))


def test_weights_of_the_hub_are_not_looked_for(study):
    hub = {name: {"checkpoints": [{"hub": f"me/{name}-{{size}}"}]} for name in "ab"}
    plan, checkpoints = study({"tokenizer": {"hub": "me/tokenizer"}}, hub, **TRUTH)
    check_inputs(plan, checkpoints)
    assert json.loads(Path("results/mine/checked.json").read_text())["folders"] == {}


# The table of the truth


def checkpoint(corpus: str, role: str = "target", seed: int = 0, step: int = 9) -> SimpleNamespace:
    run = f"{corpus}-{role}-seed{seed}"
    return SimpleNamespace(checkpoint=f"{run}-step{step}", run=run, corpus=corpus, role=role, step=step)


CHECKPOINTS = [
    *(checkpoint(corpus, seed=seed, step=step) for corpus in "abc" for seed in (0, 1) for step in (5, 9)),
    *(checkpoint(corpus, role="proxy") for corpus in "abc"),
]
LAST = [c.checkpoint for c in CHECKPOINTS if c.role == "target" and c.step == 9]


@pytest.fixture
def target_table(tmp_path):
    """A function that writes a table of accuracies for checkpoints x tasks."""

    def write(checkpoints: list[str], tasks: tuple[str, ...] = ("sums", "homes"), metric: str = "accuracy") -> Path:
        rows = [(c, task, metric, 0.5, 10) for c in checkpoints for task in tasks]
        path = tmp_path / "truth.csv"
        pl.DataFrame(rows, ["checkpoint", "task", "metric", "value", "n"], orient="row").write_csv(path)
        return path

    return write


TASKS = ["sums", "homes"]


def test_table_needs_the_last_target_checkpoints_alone(target_table):
    check_target_table(target_table(LAST), CHECKPOINTS, TASKS, ["accuracy"])


def test_table_may_name_a_corpus_with_one_checkpoint_by_its_name(target_table):
    one = [c for c in CHECKPOINTS if c.corpus == "a" or "-seed0-step9" in c.checkpoint]
    names = [name for name in LAST if name[0] == "a"]
    check_target_table(target_table([*names, "b", "c-target-seed0"]), one, TASKS, ["accuracy"])
    with pytest.raises(InputError, match="column checkpoint: found 'a', which has 4 checkpoints; name one of"):
        check_target_table(target_table(["a", "b", "c"]), one, TASKS, ["accuracy"])


def test_table_that_lacks_a_corpus(target_table):
    path = target_table([name for name in LAST if name[0] != "b"])
    with pytest.raises(
        InputError, match=rf"{path}: no row for corpus b; the column checkpoint .*'b-target-seed0-step5'"
    ):
        check_target_table(path, CHECKPOINTS, TASKS, ["accuracy"])


def test_table_that_lacks_several_corpora(target_table):
    with pytest.raises(InputError, match="no row for corpus a, c;"):
        check_target_table(target_table(LAST[2:4]), CHECKPOINTS, TASKS, ["accuracy"])


def test_table_that_lacks_a_seed(target_table):
    with pytest.raises(InputError, match="missing for 2 of checkpoint/task: a-target-seed0-step9/sums"):
        check_target_table(target_table(LAST[1:]), CHECKPOINTS, TASKS, ["accuracy"])


def test_table_that_lacks_a_task(target_table):
    with pytest.raises(InputError, match="missing for 6 of checkpoint/task: a-target-seed0-step9/homes"):
        check_target_table(target_table(LAST, tasks=("sums",)), CHECKPOINTS, TASKS, ["accuracy"])


def test_table_that_lacks_the_metric(target_table):
    with pytest.raises(InputError, match=r"acuracy missing for 12.*found metrics \['accuracy'\]"):
        check_target_table(target_table(LAST), CHECKPOINTS, TASKS, ["acuracy"])


# The truth of models

MODELS = [
    SimpleNamespace(checkpoint=f"m{n}-step9", run=f"m{n}", corpus=f"m{n}", role="candidate", step=9) for n in range(5)
]
NAMES = [model.checkpoint for model in MODELS]
THREE = ("sums", "homes", "dates")


def test_models_and_tasks_without_any_row_have_no_truth(target_table):
    check_truth_of_models(target_table(NAMES[:4], THREE), MODELS, [*THREE, "words"], ["accuracy"])


@pytest.mark.parametrize(
    "names, tasks, words",
    [
        (NAMES[:3], THREE, "column checkpoint: found 3 of this study's 5, for one no 'm3-step9'; did you mean"),
        (NAMES[:3], THREE, "at least 4 with a truth are needed to judge. Without `target` the models are ranked"),
        (NAMES, THREE[:2], "column task: found 2 of this study's 3, for one no 'dates'; at least 3 with a truth"),
        ([*NAMES[:4], "M4_step9"], THREE, "column checkpoint: found 'M4_step9'; did you mean 'm4-step9'"),
        ([*NAMES[:4], "M4"], THREE, "column checkpoint: found 'M4'; did you mean 'm4'"),
        (NAMES, (*THREE[:2], "Dates"), "column task: found 'Dates'; did you mean 'dates'"),
    ],
)
def test_a_truth_of_models_that_cannot_judge_or_is_misspelled(target_table, names, tasks, words):
    with pytest.raises(InputError, match=re.escape(words)):
        check_truth_of_models(target_table([*names, "m77-step9"], tasks), MODELS, THREE, ["accuracy"])


def test_a_truth_of_models_with_a_hole(target_table):
    path = target_table(NAMES, THREE)
    table = pl.read_csv(path).filter((pl.col("task") != "homes") | (pl.col("checkpoint") != "m4-step9"))
    table.write_csv(path)
    with pytest.raises(InputError, match="accuracy missing for 1 of checkpoint/task: m4-step9/homes"):
        check_truth_of_models(path, MODELS, THREE, ["accuracy"])
    with pytest.raises(InputError, match=r"acuracy missing for 15 .*found metrics \['accuracy'\]"):
        check_truth_of_models(path, MODELS, THREE, ["acuracy"])


# What can be measured here

CHOICES = Solution(id="a", prompt="Q", solution=" x", choices=[" x", " y"])
ANSWER = Solution(id="b", prompt="Q", solution=" x", answer="x")
PLAIN = Task(name="sums", solutions="sums.jsonl")
WITH_PATTERN = Task(name="homes", solutions="homes.jsonl", answer_pattern="(.*)")


def test_what_tasks_allow_can_be_measured():
    both = Solution(id="c", prompt="Q", solution=" x", answer="x", choices=[" x", " y"])
    solutions = {"sums": [CHOICES], "homes": [CHOICES, both]}
    check_measurable([PLAIN, WITH_PATTERN], solutions, ["multiple_choice_accuracy", "choice_log_likelihood"])
    check_measurable([WITH_PATTERN], solutions, ["exact_match"])


@pytest.mark.parametrize(
    "task, solution, metric, words",
    [
        (
            PLAIN,
            CHOICES,
            "acuracy",
            "metric 'acuracy' is not measured here; give target.table, or one of multiple_choice",
        ),
        (PLAIN, ANSWER, "multiple_choice_accuracy", "task sums: multiple_choice_accuracy needs solutions with choices"),
        (PLAIN, ANSWER, "exact_match", "task sums: exact_match needs an answer_pattern and answers"),
        (WITH_PATTERN, CHOICES, "exact_match", "task homes: exact_match needs an answer_pattern and answers"),
    ],
)
def test_what_cannot_be_measured(task, solution, metric, words):
    with pytest.raises(InputError, match=words):
        check_measurable([task], {task.name: [solution]}, ["choice_log_likelihood"] * (solution == CHOICES) + [metric])


def test_choices_stand_in_all_rows_or_in_none():
    """A row without choices would be left out of the truth in silence."""
    with pytest.raises(InputError, match=r"task sums .*: choices in 1 of 2 rows"):
        check_measurable([PLAIN], {PLAIN.name: [CHOICES, ANSWER]}, ["multiple_choice_accuracy"])


def test_edits_while_a_study_runs_are_remembered(tmp_path):
    own, lost, record = tmp_path / "own.csv", tmp_path / "lost.csv", tmp_path / "study.json"
    own.write_text("1")
    lost.write_text("1")
    stats = {path: stat_of(path) if path.exists() else None for path in (own, lost, tmp_path / "new.csv")}
    begin_edits(stats, record)
    assert edits_of(record, write=True) == {} and changed_since(stats) == []
    own.write_text("2")
    lost.unlink()
    (tmp_path / "new.csv").write_text("1")
    # The run was killed: it has no end.
    assert set(edits_of(record, write=False)) == {str(path) for path in stats} and "edits" not in read_json(record)
    kept = edits_of(record, write=True)
    assert set(kept) == {str(path) for path in stats}
    begin_edits({path: stat_of(path) for path in (own, tmp_path / "new.csv")}, record)
    assert edits_of(record, write=True) == kept
    end_edits([own], record)
    again = edits_of(record, write=True)
    assert again[str(own)] > kept[str(own)] and {k: v for k, v in again.items() if k != str(own)} == {
        k: v for k, v in kept.items() if k != str(own)
    }


@pytest.mark.parametrize("edits", [["a"], "a", 7, {"a": "x", "b": [1], "c": 5}])
@pytest.mark.parametrize("inputs", [["a"], "a", 7, {"a": "x", "c": {}}])
def test_what_is_kept_of_edits_may_be_of_somebody_else(tmp_path, edits, inputs):
    record = tmp_path / "record.json"
    write_json({"edits": edits, "inputs": inputs, "device": 1}, record)
    assert edits_of(record, write=True) == ({"c": 5} if isinstance(edits, dict) else {})
    end_edits([tmp_path / "x"], record)
    assert str(tmp_path / "x") in edits_of(record, write=False)


@pytest.mark.parametrize(
    "place",
    [
        *("", "suite", "suite/models", "suite/models/a-seed0", "suite/models/a-seed0/step5", "text/a/source0"),
        *("weights", "weights/.run.partial", "logs/score", "study", "consent.json", "solutions/a.jsonl", "new"),
    ],
)
@pytest.mark.parametrize("target", ["victim", "victim/package.json", "victim/absent", "results/other"])
def test_results_whose_links_lead_away_are_refused(tmp_path, monkeypatch, place, target):
    results = tmp_path / "results/study"
    for name in ("victim", "results/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "victim/package.json").write_text("{}")
    (results / place).parent.mkdir(parents=True, exist_ok=True)
    (results / place).symlink_to(os.path.relpath(tmp_path / target, (results / place).parent))
    with pytest.raises(InputError, match=r": a link out of the results, to \S+/(victim|other)"):
        require_plain_results(results)
    monkeypatch.setenv("PROXYCAST_LINKED_RESULTS", f"/nonexistent/x:{tmp_path / target.split('/package')[0]}")
    require_plain_results(results)


def test_results_that_cannot_be_listed_are_refused(tmp_path, monkeypatch):
    """A folder of mode 0111, in which a known name can be opened all the same. Root lists any."""
    real, closed = os.scandir, tmp_path / "study/suite"
    closed.mkdir(parents=True)

    def scandir(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="study/suite: cannot be listed"):
        require_plain_results(tmp_path / "study")


def test_links_within_results_and_to_the_hub_cache_are_fine(tmp_path, monkeypatch):
    disk, cache = tmp_path / "disk", tmp_path / "cache"
    results = tmp_path / "results/study"
    (disk / "study/logs").mkdir(parents=True)
    (tmp_path / "results").symlink_to(disk)
    (results / "logs/job.log").symlink_to("job.attempts")  # that is not there yet
    blob = cache / "models--a--b/blobs" / ("0" * 64)
    blob.parent.mkdir(parents=True)
    blob.touch()
    (results / "model.safetensors").symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    require_plain_results(results)
    require_plain_results(tmp_path / "absent")
    os.mkfifo(results / "fingerprint.txt")
    with pytest.raises(InputError, match="fingerprint.txt: a pipe or device among the results"):
        require_plain_results(results)
    (results / "fingerprint.txt").unlink()
    (results / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop: a link that leads to itself"):
        require_plain_results(results)
