"""Every reader of a foreign file is fed damaged bytes of a valid one: it reads them or raises InputError, nothing else.

The examples are the same at each run. What is outside the folder of the files stays as it is.
"""

import gzip
import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import psutil
import pytest
from conftest import byte_level_tokenizer, tiny_model
from evaluation_rows import CORPORA, LADDER, all_rows
from evaluation_rows import TASKS as EVALUATED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxycast.cluster.model_jobs import count_texts
from proxycast.config.corpora import CheckpointEntry
from proxycast.config.experiments.forecasting_options import WideCurve
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.ladder import Ladder
from proxycast.config.models import ReleasedModel
from proxycast.config.tasks import Rows
from proxycast.config.training import Source
from proxycast.jobs.benchmarks import read_benchmark
from proxycast.options import InputError
from proxycast.solutions.rows import read_problems, read_solutions
from proxycast.solutions.templates import render_solutions
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml
from proxycast.tables import input_states, read_json
from proxycast.training.text.documents import documents
from proxycast.truth.evaluations import read_evaluations
from proxycast.truth.outside_statistics import read_statistics
from proxycast.truth.targets import read_target_table
from proxycast.truth.training_log import read_wide_curve
from proxycast.weights.experts import inactive_parameters
from proxycast.weights.model_config import read_config, shape_of
from proxycast.weights.model_files import safetensors_header, weight_files
from proxycast.weights.model_folder import check_folder, is_finished
from proxycast.weights.tokenizer import end_tokens, load_tokenizer
from pydantic import ValidationError
from test_names import OF_DATA

EXAMPLES = 40  # of each reader
BYTES = [
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\n",
        b"\r",
        b",",
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
    ),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e999", b"-1", b"9" * 5000, b"9" * 30, b"0.1", b"[[" * 20_000),
    *(
        b'{"a":' * 20_000,
        b"../../outside",
        b"/nonexistent/passwd",
        b"\x1b[2J",
        b"</script>",
        b"$x$",
        b"=1+1",
        b"{{ 1/0 }}",
    ),
    *(
        b"!!python/object/apply:os.system [id]",
        b"&a [*a]",
        b"*x",
        b"<<: 1",
        b"2026-13-45",
        b"\\ud800",
        b"PAR1",
        b"\x1f\x8b",
    ),
    *(b'"a"', b"{}", b"[]", b"\xff" * 8),
]
SOLUTIONS = [{"id": f"s{n}", "prompt": f"What is {n}?", "solution": f" It is {n}."} for n in range(4)]
TARGETS = [
    {"checkpoint": f"a-small-seed0-step{n}", "task": "sums", "metric": "score", "value": 0.1 * n, "n": 100}
    for n in (1, 2)
]
CURVE_KEYS = {
    "run": "r",
    "tokens_per_step": 10,
    "shared": {"generic_cross_entropy": "loss"},
    "tasks": {"sums": {"truth": "truth"}},
}
STATISTICS = [
    {"unit": f"model {n}", "task": "sums", "statistic": "loss", "value": 1 / n, "n": 10, "parameters": 100 * n}
    | {"tokens": 5, "flops": 3e3 * n, "size": "small", "step": n, "seed": 0, "family": "llama"}
    for n in (1, 2)
]
CURVE = [{"step": n, "loss": 3.0 - n / 10, "truth": 0.2 + n / 50} for n in range(1, 9)]
DOCUMENTS = [{"text": f"the cat number {n}", "kind": "x"} for n in range(4)]
LADDER_FILES = {name: json.dumps(document).encode() for name, document in OF_DATA.items()}


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict]) -> Callable[[Path], None]:
    return pl.DataFrame(rows).write_parquet


def csv(rows: list[dict]) -> bytes:
    return pl.DataFrame(rows).write_csv().encode()


def plan(folder: Path) -> None:
    plan_checkpoints(load_plan(read_yaml(folder / "study.yaml"), "study.yaml", folder))


def rows(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        made_from = Rows(files=str(folder / name), prompt="{{ text }}", solution="{{ kind }}", where="kind <> 'y'")
        render_solutions(made_from.paths(), made_from, "task")

    return read


def texts(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        column = {} if name.startswith("text.txt") else {"where": "kind <> 'y'"}
        list(documents([folder / name], Source(files=name, **column)))

    return read


def evaluations(path: Path) -> None:
    read_evaluations([path], CORPORA, LADDER, ("4M", "1B"), EVALUATED)


def parquet_of_evaluations(path: Path) -> None:
    table = pl.DataFrame([row | {"metrics": json.dumps(row["metrics"])} for row in all_rows()])
    table.write_parquet(path, row_group_size=50)


def model(folder: Path) -> None:
    check_folder(folder)
    shape_of(folder)
    read_config(folder)
    inactive_parameters(folder)
    end_tokens(folder, load_tokenizer(folder))


def header(folder: Path) -> None:
    for path in weight_files(folder):
        safetensors_header(path)
    inactive_parameters(folder)


def save_model(folder: Path) -> None:
    tiny_model().save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)


def save_shards(folder: Path) -> None:
    tiny_model().save_pretrained(folder, max_shard_size="100KB")
    byte_level_tokenizer().save_pretrained(folder)


@dataclass
class Reader:
    damaged: str  # the file whose bytes change
    read: Callable[[Path], object]
    files: dict[str, bytes | Callable[[Path], None]] = field(default_factory=dict)
    save: Callable[[Path], None] | None = None


def one_file(name: str, read: Callable[[Path], object], content: bytes | Callable[[Path], None]) -> Reader:
    return Reader(name, lambda folder: read(folder / name), {name: content})


READERS = {
    **{f"yaml {name}": Reader(name, plan, LADDER_FILES) for name in LADDER_FILES},
    "solutions.jsonl": one_file("solutions.jsonl", read_solutions, jsonl(SOLUTIONS)),
    "problems.jsonl": one_file("problems.jsonl", read_problems, jsonl(SOLUTIONS)),
    "solutions.parquet": one_file("solutions.parquet", read_solutions, parquet(SOLUTIONS)),
    "targets.csv": one_file("targets.csv", read_target_table, csv(TARGETS)),
    "targets.parquet": one_file("targets.parquet", read_target_table, parquet(TARGETS)),
    "evaluations.parquet": one_file("evaluations.parquet", evaluations, parquet_of_evaluations),
    "statistics.csv": one_file("statistics.csv", read_statistics, csv(STATISTICS)),
    "statistics.parquet": one_file("statistics.parquet", read_statistics, parquet(STATISTICS)),
    "curve.csv": one_file(
        "curve.csv",
        lambda path: read_wide_curve(WideCurve(**CURVE_KEYS, path=path), "score"),
        csv(CURVE),
    ),
    **{
        f"rows {name}": Reader(name, rows(name), {name: content})
        for name, content in {
            "rows.jsonl": jsonl(DOCUMENTS),
            "rows.csv": csv(DOCUMENTS),
            "rows.parquet": parquet(DOCUMENTS),
            "rows.jsonl.gz": gzip.compress(jsonl(DOCUMENTS)),
        }.items()
    },
    **{
        f"text {name}": Reader(name, texts(name), {name: content})
        for name, content in {
            "text.jsonl": jsonl(DOCUMENTS),
            "text.jsonl.gz": gzip.compress(jsonl(DOCUMENTS)),
            "text.parquet": parquet(DOCUMENTS),
            "text.txt": b"the cat\nsat\n",
            "text.txt.gz": gzip.compress(b"the cat\nsat\n"),
        }.items()
    },
    **{
        f"model {name}": Reader(name, model, save=save_model)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    },
    "model index": Reader("model.safetensors.index.json", header, save=save_shards),
    "manifest.json": one_file("manifest.json", read_json, b'{"a": {"b": ["step5"]}}'),
}


def mutated(content: bytes, seed: int) -> bytes:
    """One to three changes: bits flipped, a piece deleted, doubled or replaced by a nasty one, the end cut off."""
    chance, found = random.Random(seed), bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 3])):
        start = chance.randrange(len(found) + 1)
        end = min(len(found), start + chance.choice([0, 1, 1, 3, 10, 100]))
        match chance.choice(["flip", "delete", "double", "insert", "replace", "value", "cut"]):
            case "flip" if start < len(found):
                found[start] ^= 1 << chance.randrange(8)
            case "delete":
                del found[start:end]
            case "double":
                found[start:start] = found[start:end]
            case "insert":
                found[start:start] = chance.choice(BYTES)
            case "replace":
                found[start:end] = chance.choice(BYTES)
            case "value":  # of a key of JSON or a cell of csv: what stands between two separators
                marks = [at for at, byte in enumerate(found[:20_000]) if byte in b":,[]{}\n"]
                if len(marks) > 1:
                    first = chance.randrange(len(marks) - 1)
                    found[marks[first] + 1 : marks[first + 1]] = chance.choice(BYTES)
            case "cut":
                del found[start:]
    return bytes(found)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> dict[str, Path]:
    """A folder with the valid files of each reader, written once."""
    folders: dict[str, Path] = {}
    for name, reader in READERS.items():
        folder = tmp_path_factory.mktemp("foreign") / "inside"
        folder.mkdir()
        (folder.parent / "outside").write_text("as it is")
        if reader.save:
            reader.save(folder)
        for file, content in reader.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            content(folder / file) if callable(content) else (folder / file).write_bytes(content)
        for step in (5, 10):
            (folder / f"own/b{step}").mkdir(parents=True, exist_ok=True)
        (folder / "own.jsonl").write_bytes(jsonl(SOLUTIONS))
        folders[name] = folder
    return folders


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(name, valid, monkeypatch):
    monkeypatch.chdir(valid[name])
    READERS[name].read(valid[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name, valid, monkeypatch):
    reader, folder = READERS[name], valid[name]
    monkeypatch.chdir(folder)
    path = folder / reader.damaged
    content, outside = path.read_bytes(), listing(folder.parent)
    memory = psutil.Process().memory_info().rss

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(st.integers(0, 2**32))
    def read_damaged(seed):
        path.write_bytes(mutated(content, seed))
        began = time.monotonic()
        try:
            reader.read(folder)
        except InputError as error:
            assert len(str(error)) < 20_000
        assert time.monotonic() - began < 20

    try:
        read_damaged()
    finally:
        path.write_bytes(content)
    assert psutil.Process().memory_info().rss - memory < 1 << 30
    changed = {file for file, state in listing(folder.parent).items() if outside.get(file) != state}
    assert changed <= {str(path)}


@pytest.fixture
def in_time():
    """Whatever waits for a pipe to which nobody writes is interrupted."""

    def told(*_):
        raise TimeoutError("waits for ever")

    before = signal.signal(signal.SIGALRM, told)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", [name for name in READERS if name.startswith(("yaml", "model"))])
def test_pipes_and_folders_in_the_place_of_a_file_are_not_waited_for(name, make, valid, monkeypatch, in_time):
    reader, folder = READERS[name], valid[name]
    monkeypatch.chdir(folder)
    path = folder / reader.damaged
    path.rename(path.with_suffix(".aside"))
    make(path)
    try:
        with pytest.raises(InputError) if reader.damaged != "tokenizer_config.json" else nullcontext():
            reader.read(folder)
    finally:
        path.rmdir() if path.is_dir() else path.unlink()
        path.with_suffix(".aside").rename(path)


def test_pipes_in_results_and_among_inputs_are_not_waited_for(model_folder, tmp_path, in_time):
    folder = model_folder()
    for path in (tmp_path / "job.tsv", tmp_path / "a.json", folder / "fingerprint.txt"):
        os.mkfifo(path)
    assert read_benchmark(tmp_path / "job.tsv") is None and not is_finished(folder, "mark")
    solutions = SimpleNamespace(solutions_source=lambda name: None, rows=lambda name: None, results=tmp_path)
    solutions.study = SimpleNamespace(miniature=None, extraction=ExtractionOptions())
    (tmp_path / "solutions").mkdir()
    os.mkfifo(tmp_path / "solutions/sums.jsonl")
    assert not count_texts(solutions, "sums").known
    assert input_states([tmp_path / "a.json"]) == input_states([tmp_path / "a.json"])


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "text, told",
    [
        (LAUGHS, "its aliases unfold to more than 1,000,000 values"),
        (LAUGHS.replace("[", "{k: [").replace("]", "]}"), "its aliases unfold"),
        ("a: &a [*a]", "nested more than 50 deep, or contains itself"),
        ("a: &a {b: *a}", "nested more than 50 deep, or contains itself"),
        ("a: " + "[" * 100_000, "nest"),
        ("a: " + "{b: " * 100_000, "nest"),
        ("\n".join(" " * n + "a:" for n in range(3000)), "nested more than 50 deep"),
        (f"a: {'9' * 5000}", "cannot be read (Exceeds the limit"),
        ("a: 2026-13-45", "cannot be read (month must be in 1..12)"),
        ("a: x" + "x" * 10_000_001, "at most 10,000,000"),
    ],
    ids=range(10),
)
def test_yaml_that_unfolds_is_one_short_error(text, told, tmp_path):
    (tmp_path / "study.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(InputError, match="study.yaml: ") as refused:
        read_yaml(tmp_path / "study.yaml")
    assert told in str(refused.value) and len(str(refused.value)) < 600
    assert time.monotonic() - began < 5


def test_a_study_that_snakemake_has_read_unfolds_no_further():
    values = ["x"] * 9
    for _ in range(9):
        values = [values] * 9
    with pytest.raises(InputError, match="study.yaml: its aliases unfold"):
        load_plan({"study": "a", "highlighted": values}, "study.yaml")


@pytest.mark.parametrize(
    "keys",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1e12},
        {"num_labels": 10**9},
        {"num_attention_heads": 10**9},
        {"num_hidden_layers": 10**400},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"model_type": "gpt2", "n_layer": 10**9},
        {"model_type": "of no library", "n_layers": 10**9},
    ],
    ids=lambda keys: "-".join(keys),
)
def test_a_billion_layers_are_refused_before_anything_is_built(keys, tmp_path):
    save_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | keys))
    began = time.monotonic()
    for read in (shape_of, read_config, check_folder):
        with pytest.raises(InputError, match=r"config.json, key \w+: found .*; there may be at most 1"):
            read(tmp_path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", [10**400, "9" * 400, 10**18 + 1])
def test_numbers_of_a_configuration_are_bounded(number, tmp_path):
    """Memory and time are estimated by products of them: no float holds those."""
    study = {"study": "a", "target": {"parameters": number}}
    with pytest.raises(
        InputError, match="study.yaml: target: parameters: found [019]*[.]*; a number may be at most 1e.18"
    ):
        load_plan(study, "study.yaml", tmp_path)
    study = {"study": "a", "target": {}, "extraction": {"batch_tokens": number}}
    with pytest.raises(InputError, match="study.yaml: extraction: batch_tokens: found .*; a number may be at most"):
        load_plan(study, "study.yaml", tmp_path)


def test_more_checkpoints_than_can_be_planned_are_one_error():
    """A set of 10^12 steps takes all memory before anything could end it; here it is 10^6."""
    told, ladder = "found 1e.06 checkpoints; a study has at most 300,000", OF_DATA["ladders/lab.yaml"]
    long = ladder["sizes"]["small"] | {"steps": 10**6}
    with pytest.raises(ValidationError, match=f"sizes.small: {told}"):
        Ladder(**ladder | {"checkpoint_every": 1, "sizes": {"small": long}})
    with pytest.raises(InputError, match=told):
        Ladder(**ladder).steps_of("small", 0, last=5 * 10**6)
    entry = CheckpointEntry(hub="a/b", size="small", seed=[*range(1000)], step=[*range(1000)], tokens_per_step=1)
    with pytest.raises(InputError, match=told):
        next(entry.expand(None, [], None))


def test_a_model_of_a_billion_billions_has_a_size(tmp_path):
    model = {"name": "m", "family": "m", "hub": "org/m", "parameters": 10**18}
    assert ReleasedModel(**model).as_corpus().checkpoints[0].size == ("1000000000B",)


@pytest.mark.parametrize("length", [10 * 2**30, 2**63, 2**64 - 1])
def test_a_header_that_claims_gigabytes_is_not_read(length, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(20 * 2**30)  # sparse
    with pytest.raises(InputError, match=f"its safetensors header claims {length:,} bytes, of at most 100,000,000"):
        safetensors_header(path)


@pytest.mark.parametrize("shape", [[-1], ["2"], [2**60], [2**40] * 30, "ab", [True], {"a": 1}, [1e3]])
def test_a_header_has_shapes_of_whole_numbers(shape, tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="no readable safetensors header"):
        safetensors_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_line_without_an_end_is_not_read_whole(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("proxycast.training.text.documents.LINE_BYTES", 1 << 20)
    write = gzip.open if suffix.endswith("gz") else open
    with write(tmp_path / f"a{suffix}", "wb") as file:
        file.write(b'{"text": "short"}\n{"text": "')
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    with pytest.raises(InputError, match=r"a.jsonl.*, line 2: found more than 1 MiB; each line must be one document"):
        texts(f"a{suffix}")(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000])
def test_deep_and_long_json_is_one_error_everywhere(text, tmp_path):
    for name, read in {"a.jsonl": read_solutions, "config.json": lambda path: shape_of(path.parent)}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=f"{name}.*(JSON|nested too deeply)"):
            read(tmp_path / name)
    assert read_json(tmp_path / "config.json") == {}


@pytest.mark.parametrize("number", ["1e30", "2e16", "-1", "nan", "9" * 400])
def test_counts_too_large_for_a_whole_number_name_row_and_column(number, tmp_path):
    """As a float they are finite and whole, and no integer holds them."""
    path = tmp_path / "curve.csv"
    path.write_text(f"step,loss,truth\n1,2.5,0.3\n{number},2.4,0.4\n")
    with pytest.raises(InputError, match="curve.csv, row 3, column step: found "):
        read_wide_curve(WideCurve(**CURVE_KEYS, path=path), "score")
    if number != "nan":
        path.write_text(f"checkpoint,task,metric,value,n\na-s-seed0-step1,t,m,0.3,{number}\n")
        with pytest.raises(InputError, match="curve.csv, row 2, column n: found .*; it must be a count of at least 1"):
            read_target_table(path)


PIPES = {
    "task.yaml": read_yaml,
    "curve.csv": lambda path: read_wide_curve(WideCurve(**CURVE_KEYS, path=path), "score"),
    "targets.csv": read_target_table,
    "targets.parquet": read_target_table,
    "solutions.jsonl": read_solutions,
    "config.json": lambda path: shape_of(path.parent),
}


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_is_no_file(name, tmp_path):
    os.mkfifo(tmp_path / name)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for ever"))
    signal.alarm(60)
    try:
        with pytest.raises(InputError, match=name):
            PIPES[name](tmp_path / name)
    finally:
        signal.alarm(0)


@pytest.mark.parametrize(
    "where",
    [
        "a IN (SELECT a FROM read_csv('{path}'))",
        "EXISTS (FROM READ_CSV('{path}') SELECT a)",
        "(SELECT a FROM \"read_csv\"('{path}')) = 1",
        "a IN (WITH q AS (SELECT a FROM read_ndjson/**/('{path}')) SELECT a FROM q)",
        "a = ANY (SELECT a FROM Read_Parquet('{path}'))",
        "a IN (SELECT a FROM read_ipc('{path}')) OR b = $$'$$",
    ],
)
def test_a_condition_opens_no_file(where, tmp_path):
    """polars opens the file of a subquery as soon as it reads the condition: here a pipe, for ever."""
    os.mkfifo(tmp_path / "pipe")
    where = where.format(path=tmp_path / "pipe")
    for make in (
        lambda: Source(files="a", where=where),
        lambda: Rows(files="a", prompt="a", solution="b", where=where),
    ):
        with pytest.raises(ValueError, match="has (?i:read_[a-z]+); a condition is about the columns of one row"):
            make()
