"""What a sweep does beside the model that runs: it reads the next weights, and writes the table before."""

import threading
from concurrent.futures import Future

import polars as pl
import pytest
from conftest import finished
from proxycast.extraction import sweep, weights_ahead
from proxycast.extraction.sweep import walk
from proxycast.options import InputError
from proxycast.tables import table_fingerprint
from proxycast.weights.model_folder import model_fingerprint

NAMES = ["step0", "step1", "step2"]
SOON = 30  # seconds, after which what is waited for does not come
TABLE = pl.DataFrame({"task": ["a"]})


@pytest.fixture
def folders(model_folder):
    return [(name, model_folder(name, seed=seed)) for seed, name in enumerate(NAMES)]


@pytest.fixture
def fingerprinted(monkeypatch):
    """Checkpoints whose weights have been read, in order; an event for each."""
    names, events = [], {name: threading.Event() for name in NAMES}

    def note(folder):
        names.append(folder.name)
        found = model_fingerprint(folder)
        events[folder.name].set()
        return found

    monkeypatch.setattr(weights_ahead, "model_fingerprint", note)
    return names, events


def run(folders, parts, measure, code="code"):
    return finished(walk(folders, {name: {"a": "made"} for name, _ in folders}, measure, parts, code=code))


def test_the_next_weights_are_read_while_a_model_runs_and_no_others(folders, fingerprinted, tmp_path):
    names, events = fingerprinted
    seen = []

    def measure(checkpoint, folder, tasks):
        following = NAMES[NAMES.index(checkpoint) + 1 :][:1]
        assert all(events[name].wait(SOON) for name in following)
        seen.append(list(names))
        yield TABLE

    run(folders, tmp_path / "parts", measure)
    assert seen == [NAMES[:2], NAMES, NAMES]


def test_a_table_is_written_while_the_next_model_runs(folders, tmp_path, monkeypatch):
    begun = {name: threading.Event() for name in NAMES}
    write_table = sweep.write_table

    def write(table, path, *arguments, **options):
        following = NAMES[NAMES.index(path.stem) + 1 :][:1]
        assert all(begun[name].wait(SOON) for name in following)
        write_table(table, path, *arguments, **options)

    monkeypatch.setattr(sweep, "write_table", write)

    def measure(checkpoint, folder, tasks):
        begun[checkpoint].set()
        yield TABLE

    found = run(folders, tmp_path / "parts", measure)
    assert found == {name: table_fingerprint(tmp_path / f"parts/{name}.parquet") for name in NAMES}


def test_a_table_that_cannot_be_written_ends_the_sweep_by_the_second_model_behind_it(folders, tmp_path, monkeypatch):
    measured = []

    def write(table, path, *arguments, **options):
        raise OSError("no space left on device")

    def measure(checkpoint, folder, tasks):
        measured.append(checkpoint)
        yield TABLE

    monkeypatch.setattr(sweep, "write_table", write)
    with pytest.raises(OSError, match="no space left"):
        run(folders, tmp_path / "parts", measure)
    assert measured in (NAMES[:1], NAMES[:2])


@pytest.mark.parametrize("fails", [KeyboardInterrupt, InputError])
def test_what_was_measured_is_written_when_the_next_model_fails(folders, tmp_path, monkeypatch, fails):
    failed, write_table = threading.Event(), sweep.write_table

    def write(*arguments, **options):
        assert failed.wait(SOON)
        write_table(*arguments, **options)

    def measure(checkpoint, folder, tasks):
        if checkpoint == "step1":
            failed.set()
            raise fails("here")
        yield TABLE

    monkeypatch.setattr(sweep, "write_table", write)
    with pytest.raises(fails):
        run(folders, tmp_path / "parts", measure)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["step0.parquet"]


@pytest.mark.parametrize("damaged", NAMES[:2])
def test_weights_that_are_not_as_they_were_written_leave_no_table(folders, tmp_path, monkeypatch, damaged):
    """Of a checkpoint behind the first they are known while another one is measured, so no engine gets them."""
    found, measured = threading.Event(), []

    class Told(Future):
        def set_exception(self, error):
            super().set_exception(error)
            found.set()

    def fingerprint(folder):
        if folder.name == damaged:
            raise InputError(f"{folder}: damaged")
        return model_fingerprint(folder)

    def measure(checkpoint, folder, tasks):
        measured.append(checkpoint)
        assert found.wait(SOON)
        yield TABLE

    monkeypatch.setattr(weights_ahead, "Future", Told)
    monkeypatch.setattr(weights_ahead, "model_fingerprint", fingerprint)
    with pytest.raises(InputError, match=f"{damaged}: damaged"):
        run(folders, tmp_path / "parts", measure)
    before = NAMES[: NAMES.index(damaged)]
    assert sorted(path.stem for path in (tmp_path / "parts").glob("*")) == before
    assert measured in (before, NAMES[:1])


def test_files_of_a_run_before_are_compared_before_the_first_model_runs(folders, fingerprinted, tmp_path):
    """They are kept or not by their weights, so nothing of them is left for later; the new one is read ahead."""
    names, _ = fingerprinted
    first = run(folders[:2], tmp_path / "parts", lambda *_: iter([TABLE]))
    names.clear()
    measured = []

    def measure(checkpoint, folder, tasks):
        measured.append(checkpoint)
        yield TABLE

    found = run(folders, tmp_path / "parts", measure)
    assert measured == names == ["step2"] and first.items() < found.items()
