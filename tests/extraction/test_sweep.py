"""What a sweep keeps: rows of tasks that are the same, of checkpoints that are the same, and nothing else."""

import json
import logging
import random
import threading

import numpy as np
import polars as pl
import pytest
from conftest import finished, tiny_model
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.tasks import Task
from proxycast.extraction import sweep as module
from proxycast.extraction.engines.base import token_stats_table
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.extraction.sweep import EXTRACTED_SCHEMA, TASKS, _not_in, extract, side_by_side, walk
from proxycast.options import InputError
from proxycast.solutions.rows import Solution
from proxycast.tables import table_fingerprint, table_metadata, write_table
from proxycast.truth.measurement import evaluate_checkpoints
from proxycast.truth.targets import TARGETS_SCHEMA
from proxycast.weights.model_folder import model_fingerprint
from proxycast.weights.tokenizer import TokenizerCache

OPTIONS = ExtractionOptions(tail_tokens=6, batch_tokens=120, device="cpu")
CHOICES = [" five.", " the cat sat.", " 7", " é"]


class Recorder:
    """An engine without a model: numbers that weights and tokens decide. Tells what it loaded, read and continued."""

    context, vocabulary = 256, 352

    def __init__(self):
        self.tokenizers, self.loads, self.read, self.expected = TokenizerCache(), [], [], []

    def reads(self, folder):
        return self.tokenizers.load(folder), self.context

    def load(self, folder):
        if self.loads[-1:] != [folder.name]:
            self.loads.append(folder.name)
        self.weights, self.tokenizer = int(model_fingerprint(folder), 16), self.tokenizers.load(folder)

    def expect(self, tokens):
        self.expected.append(tokens)

    def token_stats(self, sequences, temperatures=()):
        tasks = {sequence.key.split("/")[0] for sequence in sequences}
        self.read += [(self.loads[-1], task) for task in sorted(tasks)]
        seeds = [[self.weights, *sequence.token_ids.tolist()] for sequence in sequences]
        columns = [np.random.default_rng(seed).normal(size=(6, s.stop - s.start)) for seed, s in zip(seeds, sequences)]
        return token_stats_table(sequences, np.concatenate(columns, axis=1).astype(np.float32), 352, "here")

    def generate(self, prompts, max_new_tokens, stop=()):
        self.read.append((self.loads[-1], "generate"))
        return [str((self.weights + len(prompt) * max_new_tokens) % 10) for prompt in prompts]


def solutions(task: str, number: int = 4) -> list[Solution]:
    return [
        Solution(id=f"s{i}", prompt=f"Q: what is {task}?\nA:", solution=CHOICES[i % 4], choices=CHOICES, answer="7")
        for i in range(number)
    ]


TASK_NAMES = ["b", "a", "d", "c"]  # not in the order of the alphabet


@pytest.fixture
def folders(model_folder):
    return [(f"step{seed}", model_folder(f"folder{seed}", seed=seed)) for seed in range(2)]


@pytest.fixture
def tasks():
    return {task: solutions(task) for task in TASK_NAMES}


@pytest.fixture
def sweep(folders, tmp_path):
    """A function that extracts tasks into `parts`, and returns (what was read, what was loaded, the fingerprints)."""

    def run(tasks, parts="parts", options=OPTIONS, code="code", checkpoints=folders, engine=None):
        engine, parts = engine or Recorder(), tmp_path / parts
        found = finished(extract(engine, checkpoints, tasks, options, parts, code=code))
        assert found == {name: table_fingerprint(parts / f"{name}.parquet") for name, _ in checkpoints}
        return getattr(engine, "read", None), getattr(engine, "loads", None), found

    return run


@pytest.fixture
def is_as_fresh(sweep, tmp_path, folders):
    """A function that compares the files of `parts` with those of a first run of these tasks, byte by byte."""

    def compare(tasks, engines=(None, None), **options):
        found, fresh = (
            sweep(tasks, parts=parts, engine=engine, **options)[-1]
            for parts, engine in zip(("parts", "fresh"), engines)
        )
        assert found == fresh
        for name, _ in folders:
            files = [tmp_path / parts / f"{name}.parquet" for parts in ("parts", "fresh")]
            tables = [pl.read_parquet(file) for file in files]
            assert tables[0].equals(tables[1]) and tables[0].schema == pl.Schema(EXTRACTED_SCHEMA)
            assert tables[0]["task"].unique(maintain_order=True).to_list() == list(tasks)
            assert files[0].read_bytes() == files[1].read_bytes()
            files[1].unlink()

    return compare


BOTH = ["folder0", "folder1"]


def test_a_task_that_is_added_is_read_alone(sweep, is_as_fresh, tasks, caplog, capsys):
    caplog.set_level(logging.INFO)
    sweep({task: tasks[task] for task in "bdc"})
    assert "100%" in (bar := capsys.readouterr().err) and " 6/6 " in bar
    assert "0 of 6 tasks of 2 checkpoints are done already" in caplog.text
    read, loads, _ = sweep(tasks)
    assert read == [(folder, "a") for folder in BOTH] and loads == BOTH
    assert "100%" in (bar := capsys.readouterr().err) and " 2/2 " in bar
    assert "6 of 8 tasks of 2 checkpoints are done already" in caplog.text
    assert caplog.text.count("1 of 4 tasks measured") == 2
    is_as_fresh(tasks)
    assert sweep(tasks)[:2] == ([], []) and "8 of 8 tasks of 2 checkpoints are done already" in caplog.text


@pytest.mark.parametrize("left", ["bac", "cab", "d", "dcab"])
def test_tasks_that_are_removed_or_put_in_another_order_need_no_model(sweep, is_as_fresh, tasks, left):
    *_, before = sweep(tasks)
    left = {task: tasks[task] for task in left}
    read, loads, after = sweep(left)
    assert read == loads == [] and set(before.values()).isdisjoint(after.values())
    is_as_fresh(left)


def test_a_solution_that_is_edited_has_its_task_read_alone(sweep, is_as_fresh, tasks):
    sweep(tasks)
    edited = tasks["d"][2].model_copy(update={"solution": " the hat."})
    tasks = tasks | {"d": [*tasks["d"][:2], edited, *tasks["d"][3:]]}
    read, loads, _ = sweep(tasks)
    assert read == [(folder, "d") for folder in BOTH] and loads == BOTH
    is_as_fresh(tasks)


def test_all_tasks_are_read_again_for_other_weights_options_or_code(sweep, is_as_fresh, tasks, folders):
    sweep(tasks)
    tiny_model(seed=9).save_pretrained(folders[1][1])
    everything = [(folder, task) for folder in BOTH for task in TASK_NAMES]
    assert sweep(tasks)[0] == everything[4:]
    is_as_fresh(tasks)
    longer = OPTIONS.model_copy(update={"tail_tokens": 3})
    assert sweep(tasks, options=longer)[0] == everything
    assert sweep(tasks, options=longer, code="other code")[0] == everything
    is_as_fresh(tasks, options=longer, code="other code")


def test_checkpoints_that_have_different_tasks_get_what_each_lacks(sweep, is_as_fresh, tasks, folders):
    sweep({task: tasks[task] for task in "ba"}, checkpoints=folders[:1])
    sweep({task: tasks[task] for task in "c"}, checkpoints=folders[1:])
    read, *_ = sweep(tasks)
    assert read == [("folder0", "d"), ("folder0", "c"), ("folder1", "b"), ("folder1", "a"), ("folder1", "d")]
    is_as_fresh(tasks)


def test_rows_that_are_kept_are_those_of_a_model_that_reads_all_tasks(sweep, is_as_fresh, tasks):
    engine, fresh = TransformersEngine(OPTIONS), TransformersEngine(OPTIONS)
    sweep({task: tasks[task] for task in "dbc"}, engine=engine)
    is_as_fresh(tasks, [engine, fresh])


def test_any_sequence_of_changes_leaves_what_a_first_run_writes(sweep, is_as_fresh, tasks):
    draw = random.Random(0)
    for _ in range(12):
        names = draw.sample(TASK_NAMES, draw.randint(1, 4))
        chosen = {task: solutions(task, draw.choice([2, 4])) for task in names}
        is_as_fresh(chosen)


def test_rows_of_a_file_that_says_nothing_of_its_tasks_are_not_kept(sweep, is_as_fresh, tasks, tmp_path):
    sweep(tasks)
    path = tmp_path / "parts/step0.parquet"
    write_table(pl.read_parquet(path), path, "another fingerprint")
    (tmp_path / "parts/step1.parquet").write_bytes((tmp_path / "parts/step1.parquet").read_bytes()[:-9])
    read, *_ = sweep(tasks)
    assert read == [(folder, task) for folder in BOTH for task in TASK_NAMES]
    is_as_fresh(tasks)


def test_a_text_that_cannot_be_read_stops_before_the_first_new_task_is_read(sweep, tasks, tmp_path):
    sweep({"b": tasks["b"]})
    before = (tmp_path / "parts/step0.parquet").read_bytes()
    long = Solution(id="long", prompt="x" * 999, solution="y")
    options = OPTIONS.model_copy(update={"windowing": False})
    engine = Recorder()
    with pytest.raises(InputError, match="^c/long: found"):
        folders = [("step0", tmp_path / "folder0")]
        finished(extract(engine, folders, tasks | {"c": [long]}, options, tmp_path / "parts", code="code"))
    assert engine.read == [] and (tmp_path / "parts/step0.parquet").read_bytes() == before


def test_the_engine_is_told_how_many_tokens_are_left(sweep, tasks, tmp_path, folders):
    engine = Recorder()
    sweep({"b": tasks["b"]}, engine=engine)
    tokens = [len(engine.tokenizer.encode(s.prompt + s.solution)) for s in tasks["b"]]
    assert engine.expected == [2 * sum(tokens), sum(tokens)]
    (tmp_path / "parts/step0.parquet").unlink()
    sweep({task: tasks[task] for task in "ba"}, engine=engine)
    assert engine.expected[2] > engine.expected[0] > engine.expected[3] == sum(tokens)


def test_a_killed_sweep_keeps_the_old_rows(sweep, tasks, tmp_path, folders):
    fewer = {task: tasks[task] for task in "ba"}
    sweep(fewer)

    class Killed(Recorder):
        def token_stats(self, sequences, temperatures=()):
            if self.loads[-1] == "folder1" and sequences[0].key.startswith("c/"):
                raise KeyboardInterrupt
            return super().token_stats(sequences)

    with pytest.raises(KeyboardInterrupt):
        finished(extract(Killed(), folders, tasks, OPTIONS, tmp_path / "parts", code="code"))
    tables = [json.loads(table_metadata(tmp_path / f"parts/{name}.parquet")[TASKS]) for name, _ in folders]
    assert [list(table) for table in tables] == [TASK_NAMES, ["b", "a"]]
    assert sweep(tasks)[0] == [("folder1", "d"), ("folder1", "c")]


def test_a_measurement_that_leaves_a_task_out_writes_nothing(folders, tmp_path):
    made_from = {name: {"a": "1", "b": "2"} for name, _ in folders}
    one = pl.DataFrame({"task": ["a"]})
    with pytest.raises(ValueError, match="shorter"):
        finished(walk(folders, made_from, lambda *_: iter([one]), tmp_path, code="code"))
    assert list(tmp_path.glob("*.parquet")) == []


# Downstream truth


@pytest.fixture
def truth(folders, tasks, tmp_path):
    """A function that measures tasks; `pattern` (task -> answer_pattern), `generate` (checkpoints)."""

    def run(names="ba", pattern=None, generate=(), parts="targets", checkpoints=folders, options=OPTIONS, **settings):
        engine, parts = Recorder(), tmp_path / parts
        wanted = [Task(name=n, solutions="unused", answer_pattern=(pattern or {}).get(n), **settings) for n in names]
        found = finished(
            evaluate_checkpoints(engine, checkpoints, wanted, tasks, options, generate, parts, code="code")
        )
        assert found == {name: table_fingerprint(parts / f"{name}.parquet") for name, _ in checkpoints}
        return engine.read, pl.concat([pl.read_parquet(parts / f"{name}.parquet") for name, _ in checkpoints])

    return run


PATTERN = {"b": r"(\d)", "a": r"(\d)"}


def test_a_checkpoint_that_is_added_is_measured_alone(truth, folders, model_folder):
    truth(pattern=PATTERN, generate=["step0", "step1"])
    folders = [*folders, ("step2", model_folder("folder2", seed=2))]
    read, table = truth(pattern=PATTERN, generate=["step0", "step1", "step2"], checkpoints=folders)
    assert read == [("folder2", what) for task in "ba" for what in (task, "generate")]
    assert table.filter(metric="exact_match")["checkpoint"].to_list() == [f"step{n}" for n in (0, 0, 1, 1, 2, 2)]
    # One that is to generate from now on is measured again, the others are not.
    few, _ = truth(pattern=PATTERN, generate=["step0"], checkpoints=folders, parts="few")
    assert few.count(("folder0", "generate")) == 2 and ("folder1", "generate") not in few
    read, _ = truth(pattern=PATTERN, generate=["step0", "step2"], checkpoints=folders, parts="few")
    assert {folder for folder, _ in read} == {"folder2"}


def test_a_metric_that_is_added_to_one_task_measures_that_task_where_text_is_generated(truth):
    truth(generate=["step1"])
    read, table = truth(pattern={"a": r"(\d)"}, generate=["step1"])
    assert read == [("folder1", "a"), ("folder1", "generate")]
    _, fresh = truth(pattern={"a": r"(\d)"}, generate=["step1"], parts="fresh")
    assert table.equals(fresh) and table.schema == pl.Schema(TARGETS_SCHEMA)
    assert table.filter(metric="exact_match").select("checkpoint", "task").rows() == [("step1", "a")]
    assert truth(pattern={"a": r"(\d)"}, generate=["step1"])[0] == []
    assert truth(pattern={"a": r"(\d)"}, generate=["step1"], max_new_tokens=3)[0] == read


def test_tasks_of_truth_are_added_and_removed_one_by_one(truth):
    truth("bd")
    read, table = truth("bad")
    assert read == [("folder0", "a"), ("folder1", "a")]
    assert table.equals(truth("bad", parts="fresh")[1])
    read, table = truth("da")
    assert read == [] and table.equals(truth("da", parts="fresh")[1])


def test_truth_does_not_depend_on_the_tail_of_solutions(truth):
    truth()
    tail = {"tail_tokens": 99, "tail_bytes": 50}
    assert truth(options=OPTIONS.model_copy(update=tail))[0] == []
    assert truth(options=OPTIONS.model_copy(update={"dtype": "bfloat16"}))[0] != []


@pytest.mark.parametrize("said", ["[]", "{", "7", "[" * 10**5, '{"a": ["x"]}'])
def test_a_table_of_bad_faith_has_no_finished_tasks(tmp_path, said):
    write_table(pl.DataFrame({"a": [1]}), tmp_path / "x.parquet", "mark", metadata={TASKS: said})
    assert _not_in(tmp_path / "x.parquet", {"a": "x"}) == ["a"]


@pytest.fixture
def tokenised(monkeypatch):
    """What has been tokenised: (first key, context) of each call, and an event for the first of them."""
    calls, first, tokenize = [], threading.Event(), module.tokenize

    def told(texts, tokenizer, context, **reading):
        found = tokenize(texts, tokenizer, context, **reading)
        calls.append((texts[0][0], context))
        first.set()
        return found

    monkeypatch.setattr(module, "tokenize", told)
    return calls, first


def test_texts_are_tokenised_once_a_sweep_while_the_first_model_is_loaded(sweep, tasks, tokenised, monkeypatch):
    calls, first = tokenised
    load = Recorder.load

    def waits(self, folder):
        assert first.wait(30)
        load(self, folder)

    monkeypatch.setattr(Recorder, "load", waits)
    read, loads, _ = sweep(tasks)
    assert loads == ["folder0", "folder1"] and len(read) == 8
    assert calls == [(f"{task}/s0", 256) for task in TASK_NAMES]


def test_a_checkpoint_with_another_context_is_tokenised_anew(sweep, tasks, tokenised):
    engine = Recorder()
    sweep(tasks, engine=engine)
    engine.context = 255
    sweep(tasks, "others", engine=engine)
    assert [context for _, context in tokenised[0]] == [256] * 4 + [255] * 4


def test_a_text_that_cannot_be_tokenised_is_named_by_the_sweep(sweep, tasks):
    tasks["d"][2] = tasks["d"][2].model_copy(update={"solution": "x" * 999})
    with pytest.raises(InputError, match="d/s2: found 1009 tokens .*set extraction.windowing"):
        sweep(tasks, options=OPTIONS.model_copy(update={"windowing": False}))


def beside(folders, tasks, tmp_path, engine, parts="both"):
    """Token statistics of all checkpoints and the truth of the last one by one engine, as a scoring job makes them."""
    wanted = [Task(name=name, solutions="unused") for name in "ba"]
    stats, truth = tmp_path / parts / "stats", tmp_path / parts / "truth"
    last = folders[-1:]
    walks = [
        extract(engine, folders, tasks, OPTIONS, stats, code="code"),
        evaluate_checkpoints(engine, last, wanted, tasks, OPTIONS, [], truth, code="code"),
    ]
    found = side_by_side(walks, folders)
    assert [list(each) for each in found] == [[name for name, _ in folders], [name for name, _ in last]]
    return stats, truth


def test_statistics_and_truth_of_a_checkpoint_come_from_one_load(folders, tasks, sweep, truth, tmp_path):
    engine = Recorder()
    stats, judged = beside(folders, tasks, tmp_path, engine)
    assert engine.loads == ["folder0", "folder1"]
    assert engine.read == [(folder, task) for folder in BOTH for task in TASK_NAMES] + [("folder1", t) for t in "ba"]
    sweep(tasks)
    _, alone = truth(checkpoints=folders[1:])
    for name, _ in folders:
        assert pl.read_parquet(stats / f"{name}.parquet").equals(pl.read_parquet(tmp_path / f"parts/{name}.parquet"))
    assert pl.read_parquet(judged / "step1.parquet").equals(alone)
    again = Recorder()
    beside(folders, tasks, tmp_path, again)
    assert again.loads == []
    (stats / "step0.parquet").unlink()  # of one walk only
    beside(folders, tasks, tmp_path, again)
    assert again.loads == ["folder0"]


def test_what_one_walk_has_finished_stays_when_another_fails(folders, tasks, tmp_path):
    class Failing(Recorder):
        def token_stats(self, sequences, temperatures=()):
            if (self.loads[-1], "a") in self.read and sequences[0].key.startswith("b/"):
                raise InputError("the truth of folder1 fails")
            return super().token_stats(sequences)

    with pytest.raises(InputError, match="truth of folder1 fails"):
        beside(folders, tasks, tmp_path, Failing())
    assert sorted(path.name for path in (tmp_path / "both/stats").glob("*.parquet")) == [
        "step0.parquet",
        "step1.parquet",
    ]
    engine = Recorder()
    beside(folders, tasks, tmp_path, engine)
    assert engine.read == [("folder1", "b"), ("folder1", "a")]


def test_each_walks_folders_are_checked_before_a_model_runs(folders, tasks, tmp_path):
    (folders[1][1] / "config.json").unlink()
    engine = Recorder()
    with pytest.raises(InputError, match="config.json"):
        wanted = [Task(name="b", solutions="unused")]
        truth = evaluate_checkpoints(engine, folders, wanted, tasks, OPTIONS, [], tmp_path / "truth", code="code")
        side_by_side([extract(engine, folders[:1], tasks, OPTIONS, tmp_path / "stats", code="code"), truth], folders)
    assert engine.loads == []
