"""Code of others runs only for who has named it, whatever the files of a study say."""

import dataclasses
import json
from pathlib import Path

import pytest
from proxycast.config.tasks import HarnessTask
from proxycast.config.truth import Harness, OutsideStatistics
from proxycast.options import InputError
from proxycast.study.checks import check_inputs
from proxycast.study.consent import PROGRAMS_VARIABLE, TRUST_VARIABLE, Code, allowing, foreign_code, require_consent
from test_checks import TRUTH, solutions, study  # noqa: F401  fixtures

HOSTILE = """
from pathlib import Path
from transformers import LlamaConfig
Path({pwned!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
"""


@pytest.fixture(autouse=True)
def nothing_is_allowed(monkeypatch):
    for name in (TRUST_VARIABLE, PROGRAMS_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hostile(study, tmp_path):  # noqa: F811
    """A study whose corpora ask for the code of their models, which leaves a file behind; that file."""
    plan, checkpoints = study(**TRUTH, extraction={"trust_remote_code": True})
    pwned = tmp_path / "pwned"
    for folder in {Path(checkpoint.folder) for checkpoint in checkpoints}:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "own.py").write_text(HOSTILE.format(pwned=str(pwned)))
    return plan, checkpoints, pwned


@pytest.mark.parametrize("record", [True, False])
def test_no_file_of_a_study_switches_a_models_code_on(hostile, record):
    """Nor in a dry run, which reads the model's configuration."""
    plan, checkpoints, pwned = hostile
    with pytest.raises(
        InputError, match="^study.yaml: .: trust_remote_code, .*: asks to run code .* set PROXYCAST_TRUST_CODE="
    ):
        check_inputs(plan, checkpoints, record=record)
    assert not pwned.exists() and not (plan.results / "consent.json").exists()


def test_what_is_allowed_runs_and_is_recorded(hostile, monkeypatch):
    plan, checkpoints, pwned = hostile
    folder = Path(checkpoints[0].folder)
    monkeypatch.setenv(TRUST_VARIABLE, f"org/other:{folder.resolve().parent}")
    check_inputs(plan, checkpoints)
    assert pwned.exists()
    record = json.loads((plan.results / "consent.json").read_text())
    assert {kept["entry"] for kept in record.values()} == {str(folder.resolve().parent)}
    assert all(str(folder) in key and kept["since"].startswith("20") for key, kept in record.items())


@pytest.mark.parametrize(
    ("entry", "name", "fits"),
    [
        ("org/model", "org/model", True),
        ("org", "org/model", False),
        ("org/model", "org/model2", False),
        ("org/model", "./org/model", False),  # a folder in the place of a repository
        ("./org", "org/model", False),
        ("./models", "./models/a", True),
        ("./models/", "./models/a", True),
        ("./models", "./models2/a", False),
        ("./models", "./models/../other", False),
        ("a:./models:b", "./models", True),
        ("*", "org/model", False),
        ("1", "org/model", False),
        ("", "./", False),
    ],
)
def test_which_entry_allows_what(entry, name, fits, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TRUST_VARIABLE, entry)
    assert (allowing(Code(TRUST_VARIABLE, name, "key")) is not None) == fits
    assert allowing(Code(PROGRAMS_VARIABLE, name, "key")) is None


def test_a_link_in_an_allowed_folder_allows_nothing_else(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/link").symlink_to(tmp_path / "other")
    monkeypatch.setenv(TRUST_VARIABLE, "./mine")
    assert allowing(Code(TRUST_VARIABLE, "./mine/link", "key")) is None


def test_tasks_with_code_and_programs_of_models_need_a_word_each(study, monkeypatch):  # noqa: F811
    plan, checkpoints = study(**TRUTH)
    task = plan.tasks[0].model_copy(update={"lm_eval": HarnessTask(task="usaco", metric="solved,none")})
    harness = Harness(include_path=Path("config/harness/x"), run_unsafe_code=True)
    target = plan.study.target.model_copy(update={"lm_eval": harness, "table": None})
    plan = plan.model_copy(update={"tasks": [task], "study": plan.study.model_copy(update={"target": target})})
    assert {code.name for code in foreign_code(plan, checkpoints)} == {"./config/harness/x", "usaco"}
    require_consent(plan, checkpoints, runs_jobs=False)  # planning runs none of it
    monkeypatch.setenv(TRUST_VARIABLE, "org/model")
    all_of_it = "PROXYCAST_TRUST_CODE='org/model:./config/harness/x' and PROXYCAST_RUN_PROGRAMS='usaco'"
    with pytest.raises(InputError, match=f"include_path, target.lm_eval.run_unsafe_code: .*set {all_of_it}"):
        require_consent(plan, checkpoints, runs_jobs=True)
    monkeypatch.setenv(TRUST_VARIABLE, "./config/harness")
    for said in ("", "humaneval", "usaco2"):
        monkeypatch.setenv(PROGRAMS_VARIABLE, said)
        with pytest.raises(InputError, match="run_unsafe_code: .*PROXYCAST_RUN_PROGRAMS='(.*,)?usaco'"):
            require_consent(plan, checkpoints, runs_jobs=True)
    monkeypatch.setenv(PROGRAMS_VARIABLE, "humaneval, usaco")
    require_consent(plan, checkpoints, runs_jobs=True)
    assert len(json.loads((plan.results / "consent.json").read_text())) == 2


def test_a_writer_that_is_a_checkpoint_of_the_study_needs_a_word_too(study):  # noqa: F811
    """Its `model` goes over that of the checkpoint, which is scored without its code."""
    writer = {"checkpoint": "a-small-seed0-step1", "model": {"trust_remote_code": True}}
    plan, checkpoints = study(**TRUTH, writers={"w": writer})
    with pytest.raises(InputError, match="^study.yaml: writers.w: trust_remote_code: asks to run code .*'/.*/model'"):
        check_inputs(plan, checkpoints)


def test_code_in_results_of_somebody_else_needs_a_word(study):  # noqa: F811
    """Models that the study makes have no source, but may be there already."""
    plan, checkpoints = study(**TRUTH, extraction={"trust_remote_code": True})
    made = [dataclasses.replace(c, source="", folder=f"results/mine/suite/models/{c.run}/step1") for c in checkpoints]
    with pytest.raises(InputError, match="trust_remote_code.*'./results/mine/suite/models/a-small-seed0/step1[:']"):
        require_consent(plan, made, runs_jobs=True)


def test_a_study_that_runs_no_models_runs_no_writers_code(study, tmp_path):  # noqa: F811
    """All of its results come from a table, but for what writers write."""
    writer = {"folder": str(tmp_path / "model"), "model": {"trust_remote_code": True}}
    plan, checkpoints = study(**TRUTH, writers={"w": writer})
    statistics = OutsideStatistics(table=tmp_path / "statistics.csv")
    changed = plan.study.model_copy(update={"statistics": statistics})
    plan = plan.model_copy(update={"study": changed, "tasks": []})
    assert not plan.runs_models
    with pytest.raises(InputError, match="^study.yaml: writers.w: trust_remote_code: asks to run code "):
        check_inputs(plan, checkpoints)
