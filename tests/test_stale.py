"""What finished is right for the inputs and the study that stand there now; the first runs of Snakemake take minutes.

A small study of given models, one table of the truth and two tasks is finished once. Each test changes something in a
copy of it as users and clusters do, and says what must be made again.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked_python
import polars as pl
import pytest
from conftest import byte_level_tokenizer, copy_project, tiny_model, write_json, write_rows
from polars.testing import assert_frame_equal
from proxycast.jobs import attempts
from proxycast.study import code_fingerprint
from proxycast.tables import is_sealed
from proxycast.weights import model_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STUDY = "config/stale.yaml"
RESULTS = Path("results/stale")
RANKING = RESULTS / "data_selection/ranking.parquet"
CHECKPOINTS = {f"{corpus}-small-seed0-step{step}" for corpus in ("left", "right") for step in (10, 20)}
RULE = re.compile(r"^ *rule (\w+):", re.MULTILINE)
JUDGED = {"data_selection", "data_selection_figures", "choices", "token_view", "study_page", "all"}
AFTER_PROXIES = JUDGED | {"signal_to_noise", "solution_counts"}
AFTER_SCORING = {"solution_proxies", "join_proxies"} | AFTER_PROXIES
AFTER_THE_TRUTH = {"join_targets"} | AFTER_PROXIES
# In the place of what draws: other tests look at figures, and every run here would draw them.
EMPTY_FILES = """
from pathlib import Path
for path in snakemake.output:
    Path(path).touch()
"""
# In the place of what nothing here asks for: every run would make it again.
EMPTY_TABLES = """
from pathlib import Path
import polars as pl
from proxycast.tables import write_table
for path in map(Path, snakemake.output):
    if path.suffix == ".parquet":
        write_table(pl.DataFrame({"empty": [0]}), path, "", csv=True)
"""
EMPTY_PAGE = """
from pathlib import Path
from proxycast.tables import write_json
Path(snakemake.output.page).touch()
write_json(snakemake.params.made_with, Path(snakemake.output.made_with))
"""
REPLACED = dict.fromkeys(["signal_to_noise", "solution_counts", "token_view"], EMPTY_TABLES)
REPLACED |= {"data_selection_figures": EMPTY_FILES, "study_page": EMPTY_PAGE}


def write_model(folder: Path, seed: int) -> None:
    tiny_model(seed=seed).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)


def write_truth(project: Path, left: float, right: float) -> None:
    rows = [
        {"checkpoint": f"{corpus}-large-seed0-step99", "task": task, "metric": "score", "value": value, "n": 8}
        for corpus, value in (("left", left), ("right", right))
        for task in ("sums", "times")
    ]
    pl.DataFrame(rows).write_csv(project / "own/truth.csv")


def write_study(project: Path) -> None:
    copy_project(project)
    for name, script in REPLACED.items():
        (project / f"workflow/scripts/{name}.py").write_text(script)
    for number, corpus in enumerate(("left", "right")):
        checkpoints = []
        for step in (10, 20):
            write_model(project / f"models/{corpus}/step{step}", 100 * number + step)
            folder = f"models/{corpus}/step{step}"
            checkpoints.append({"folder": folder, "size": "small", "step": step, "tokens": 1000 * step, "seed": 0})
        write_json({"name": corpus, "checkpoints": checkpoints}, project / f"config/corpora/given/{corpus}.yaml")
    for task in ("sums", "times"):
        texts = [f" {n} {task} three, the cat sat on the mat." for n in range(8)]
        rows = [{"id": f"{task}-{n}", "prompt": f"Q: {n}?\nA:", "solution": text} for n, text in enumerate(texts)]
        write_rows(rows, project / f"own/{task}.jsonl")
        write_json({"name": task, "solutions": f"own/{task}.jsonl"}, project / f"config/tasks/given/{task}.yaml")
    write_rows([{"id": "generic", "prompt": "", "solution": "The cat sat on the mat."}], project / "own/generic.jsonl")
    write_truth(project, 0.1, 0.3)
    study = {
        "study": "stale",
        "corpora": {"given": "all"},
        "tasks": {"given": "all"},
        "generic_text": "own/generic.jsonl",
        "target": {"size": "large", "metric": "score", "table": "own/truth.csv", "parameters": 10**6, "tokens": 10**6},
        "jobs": "corpus",
        "extraction": {"tail_tokens": 8},
        "selection": {"bootstrap_replicates": 100},
        "highlighted": [{"statistic": "cross_entropy"}],
        "budgets": [{"name": "only", "size": "small", "step": 20}],
    }
    write_json(study, project / STUDY)


SCORING = ("--until", "score")  # of tests that ask for nothing that comes after it


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--configfile", STUDY, "--cores", "2", *arguments]


def snakemake(project: Path, *arguments: str, fails: bool = False, library: Path = ROOT / "workflow") -> str:
    """What it says, with the library of `library`."""
    environment = os.environ | {"PYTHONPATH": str(library)}
    finished = forked_python.run(*command(*arguments)[2:], cwd=project, env=environment, merged=True)
    assert (finished.returncode != 0) == fails, finished.stdout[-5000:]
    return finished.stdout


def rules(said: str) -> set[str]:
    """Rules of everything that was planned or started."""
    return set(re.findall(r"^(?:local)?rule (\w+):$", said, re.MULTILINE))


def written(project: Path, corpus: str) -> list[list[str]]:
    """For each attempt to score a corpus the checkpoints that it wrote."""
    logs = attempts(project / RESULTS / f"logs/score/{corpus}.log")
    return [re.findall(r"token_stats of (\S+) written", "\n".join(attempt.lines)) for attempt in logs]


def token_stats(project: Path) -> dict[str, pl.DataFrame]:
    return {
        path.stem: pl.read_parquet(path) for path in sorted((project / RESULTS / "token_stats").glob("*/*.parquet"))
    }


def state_of(folder: Path) -> dict[Path, tuple]:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(folder.rglob("*"))}


def with_its_time_kept(path: Path, change) -> None:
    """`change` a file as `cp -p`, rsync or tar do: what it was before and is then have one time."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def finish(project: Path) -> None:
    write_study(project)
    snakemake(project)
    assert "Nothing to be done" in snakemake(project)
    # Copies whose library is edited know the rest of it, and the models, as an edited checkout does.
    for kept in (code_fingerprint.KEPT, model_config.KEPT):
        if not (kept.exists() and kept.is_relative_to(ROOT)):
            continue
        cache = project / kept.parent.relative_to(ROOT)
        cache.mkdir()
        shutil.copy2(kept, cache)


@pytest.fixture(scope="session")
def finished(once):
    """The finished study; to be read only."""
    return once("stale", finish)


@pytest.fixture
def project(finished, tmp_path):
    """A copy of it. The models are where they were: to copy a file larger than 64 MB is to change it."""
    copy = shutil.copytree(finished, tmp_path / "project", ignore=shutil.ignore_patterns("models"))
    (copy / "models").symlink_to(finished / "models")
    return copy


# Code


@pytest.mark.parametrize(
    "module, old, new, expected",
    [
        (
            "proxy_formulas.py",
            '"margin": Statistic(_p_max - _p,',
            '"margin": Statistic(_p_max - 2 * _p,',
            AFTER_SCORING,
        ),
        ("extraction/token_stats.py", '"""', '"""Another word. ', set()),
        ("extraction/sweep.py", "import logging\n", "import logging\n\nOTHER = 1\n", {"score"} | AFTER_SCORING),
        (
            "experiments/data_selection/ranking.py",
            "import numpy as np",
            "import numpy as np\n\nOTHER = 1",
            JUDGED,
        ),
    ],
    ids=["a formula", "a docstring", "scoring", "the ranking"],
)
def test_changed_code_reruns_what_depends_on_it(project, module, old, new, expected):
    path = project / "workflow/proxycast" / module
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    planned = rules(snakemake(project, "-n", library=project / "workflow"))
    assert planned >= expected and ("score" in planned) == ("score" in expected)
    assert bool(planned) == bool(expected)
    kept = (project / "workflow/proxycast/study/__pycache__").glob("code_fingerprint.*.json")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sys.dont_write_bytecode or [digest in file.read_text() for file in kept] == [True]  # for the next start


def test_changed_scoring_scores_every_checkpoint_again(project):
    path = project / "workflow/proxycast/extraction/token_stats.py"
    path.write_text(path.read_text() + "\n\nOTHER = 1\n")
    assert {"score"} | AFTER_SCORING <= rules(snakemake(project, "-n", library=project / "workflow"))
    snakemake(project, *SCORING, library=project / "workflow")
    assert {name for corpus in ("left", "right") for name in written(project, corpus)[-1]} == CHECKPOINTS
    assert rules(snakemake(project, "-n", *SCORING, library=project / "workflow")) == set()


def test_scripts_that_were_replaced_run_again(project):
    """Those of the library, in the place of the short ones: what they make of two corpora has all its rows."""
    for name in REPLACED.keys() - {"data_selection_figures"}:
        shutil.copy2(ROOT / f"workflow/scripts/{name}.py", project / "workflow/scripts")
    assert rules(snakemake(project)) == REPLACED.keys() | {"all"}
    for name in ("signal_to_noise", "solution_counts"):
        table = pl.read_parquet(project / RESULTS / f"data_selection/{name}.parquet")
        assert len(table) and "empty" not in table.columns
    assert set(pl.read_parquet(project / RESULTS / "token_view.parquet")["candidate"]) == {"left", "right"}
    assert (project / RESULTS / "report.html").stat().st_size > 1_000_000


# Inputs


def test_solutions_that_were_replaced_are_read_again(project):
    path = project / "own/sums.jsonl"
    with_its_time_kept(path, lambda: path.write_text(path.read_text().replace("mat", "hat")))
    assert {"copy_solutions", "score"} | AFTER_SCORING <= rules(snakemake(project, "-n"))


def test_a_truth_that_was_replaced_is_read_again(project):
    path = project / "own/truth.csv"
    with_its_time_kept(path, lambda: write_truth(project, 0.3, 0.1))
    assert rules(snakemake(project, "-n")) == AFTER_THE_TRUTH


def test_touched_inputs_start_nothing(project):
    for path in (project / "own").iterdir():
        path.touch()
    assert rules(snakemake(project, "-n")) == set()


def test_an_input_from_the_future_stops_the_study_until_it_is_touched(project):
    """Snakemake would throw away what is made from it, at every start, with old results left standing."""
    before = pl.read_parquet(project / RANKING)
    write_truth(project, 0.3, 0.1)
    tomorrow = time.time() + 86_400
    os.utime(project / "own/truth.csv", (tomorrow, tomorrow))
    said = snakemake(project, fails=True)
    assert re.search("own/truth.csv: was changed on .*, which is in the future; .* run: touch own/truth.csv", said)
    (project / "own/truth.csv").touch()
    assert rules(snakemake(project)) == AFTER_THE_TRUTH
    assert not pl.read_parquet(project / RANKING).equals(before)


def test_swapped_weights_are_scored_again_and_no_others(finished, project):
    (project / "models").unlink()
    shutil.copytree(finished / "models", project / "models")  # other files of the same content and time
    snakemake(project, *SCORING)
    assert [written(project, corpus)[1:] for corpus in ("left", "right")] == [[[]], [[]]]
    weights = project / "models/left/step20/model.safetensors"
    with_its_time_kept(weights, lambda: write_model(weights.parent, 7))
    snakemake(project, *SCORING)
    assert written(project, "left")[2:] == [["left-small-seed0-step20"]] and len(written(project, "right")) == 2


def test_another_tokenizer_is_seen(finished, project):
    (project / "models").unlink()
    shutil.copytree(finished / "models", project / "models")
    path = project / "models/left/step20/tokenizer_config.json"
    with_its_time_kept(path, lambda: path.write_text(path.read_text().replace("<|end|>", "<|bos|>")))
    assert "score" in rules(snakemake(project, "-n"))


# Intermediates that a job which was given up has removed


INTERMEDIATES = {
    "targets.parquet": ("own/truth.csv", lambda project: write_truth(project, 0.3, 0.1)),
    "solutions/sums.jsonl": (
        "own/sums.jsonl",
        lambda project: (project / "own/sums.jsonl").write_text(
            (project / "own/sums.jsonl").read_text().replace("mat", "hat")
        ),
    ),
}


@pytest.mark.parametrize("intermediate", INTERMEDIATES)
def test_a_lost_intermediate_whose_source_was_edited_is_made_again(project, intermediate):
    """As after a job that was given up: Snakemake removes its output before it is submitted, and forgets why."""
    source, edit = INTERMEDIATES[intermediate]
    before = pl.read_parquet(project / RANKING)
    with_its_time_kept(project / source, lambda: edit(project))
    (project / RESULTS / intermediate).unlink()
    shutil.rmtree(project / ".snakemake/metadata")  # what it would have known of the source is gone, too
    assert "all" in rules(snakemake(project))
    assert not pl.read_parquet(project / RANKING).equals(before)
    assert "Nothing to be done" in snakemake(project)


def test_a_frozen_study_is_for_jobs_alone(project):
    [study] = (project / RESULTS / "study").glob("*.json")
    said = snakemake(project, "-n", "--configfile", str(study), fails=True)
    assert "frozen: unknown key; jobs alone read a study that is frozen" in said


def test_outputs_of_failed_jobs_are_not_kept(project):
    """Snakemake would record them as made from what is there now."""
    write_truth(project, 0.3, 0.1)
    assert "takes old outputs of failed jobs for new ones" in snakemake(project, "--keep-incomplete", fails=True)
    assert rules(snakemake(project, "-n")) == AFTER_THE_TRUTH


def outputs_and_targets(study: str) -> tuple[dict[str, set[str]], set[str]]:
    """Rule -> files that it makes, and the inputs of the rule `all`, of all that a study would run."""
    arguments = ["--configfile", f"config/{study}.yaml", "-n", "--forceall", "--quiet", "progress", "--cores", "1"]
    finished = subprocess.run([sys.executable, "-m", "snakemake", *arguments], cwd=ROOT, capture_output=True, text=True)
    made: dict[str, set[str]] = {}
    targets: set[str] = set()
    said = finished.stdout + finished.stderr
    for rule, block in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", said, re.MULTILINE):
        found = re.findall(r"^    (input|output): (.*)$", block, re.MULTILINE)
        files = {key: set(line.split(", ")) for key, line in found}
        if rule == "all":
            targets = files["input"]
        made.setdefault(rule, set()).update(files.get("output", ()))
    return made, targets


PLANNED = [
    "config",
    "miniature_model_selection",
    "miniature_post_training",
    "miniature_forecasting",
    "hub_check",
    "forecasting_think",
]


def test_all_names_every_file_that_a_result_rests_on():
    """But weights from the hub, which are removed when they are scored."""
    seen = set()
    for study in PLANNED:
        made, targets = outputs_and_targets(study)
        seen |= made.keys()
        files = set().union(*made.values())
        kept = {file for file in files if "/revisions/" in file or not re.search(r"/(weights|writers)/", file)}
        assert kept <= targets, study
    rules_there = {rule for file in (ROOT / "workflow/rules").glob("*.smk") for rule in RULE.findall(file.read_text())}
    # Of text, of the conversion of folders, of statistics from outside and of judges there is no study without files.
    assert rules_there - seen == {"tokenize_text", "train_run", "convert_run", "read_statistics", "judged"}


# A study that is edited while it runs


def test_a_study_edited_while_it_runs_is_scored_as_it_was(finished, project):
    shutil.rmtree(project / "results")
    shutil.rmtree(project / ".snakemake")
    with (project / "said.log").open("w") as log:
        process = subprocess.Popen(command("--cores", "1", *SCORING), cwd=project, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 300
            while not list((project / RESULTS / "token_stats").glob("*/*.parquet")):
                assert process.poll() is None and time.monotonic() < deadline, (project / "said.log").read_text()
                time.sleep(0.02)
            study = json.loads((project / STUDY).read_text())
            write_json(study | {"extraction": {"tail_tokens": 3}}, project / STUDY)
            corpus = json.loads((project / "config/corpora/given/right.yaml").read_text())
            corpus["checkpoints"][1]["model"] = {"dtype": "bfloat16"}
            write_json(corpus, project / "config/corpora/given/right.yaml")
            assert process.wait(300) == 0, (project / "said.log").read_text()
        finally:
            process.kill()
    found, expected = token_stats(project), token_stats(finished)
    assert found.keys() == expected.keys() == CHECKPOINTS
    for name in found:
        assert_frame_equal(found[name], expected[name], check_exact=True)
    assert "score" in rules(snakemake(project, "-n"))


def begin(project: Path, library: Path = ROOT / "workflow") -> subprocess.Popen:
    """A Snakemake that has begun its first jobs; what it says goes to said.log."""
    with (project / "said.log").open("w") as log:
        process = subprocess.Popen(
            command("--cores", "1"),
            cwd=project,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(library)},
        )
    wait_for(process, lambda: "rule " in (project / "said.log").read_text())
    return process


def wait_for(process: subprocess.Popen, happened) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_edited_and_restored_while_a_study_runs_counts_as_changed(finished, project):
    """Some jobs read the one, some the other, and nothing tells it afterwards. An input, and the code of other jobs."""
    truth, library = project / "own/truth.csv", project / "workflow"
    formulas = library / "proxycast/proxy_formulas.py"
    before = {path: path.read_bytes() for path in (truth, formulas)}
    (project / RESULTS / "targets.parquet").unlink()
    shutil.rmtree(project / RESULTS / "token_stats/left")
    process = begin(project, library)
    try:
        write_truth(project, 0.3, 0.1)
        old, new = b'"margin": Statistic(_p_max - _p,', b'"margin": Statistic(_p_max - 2 * _p,'
        assert before[formulas].count(old) == 1
        formulas.write_bytes(before[formulas].replace(old, new))
        assert process.wait(300) == 0
    finally:
        process.kill()
    said = (project / "said.log").read_text()
    for path, content in before.items():
        path.write_bytes(content)
    assert "own/truth.csv was edited while the study ran" in said
    assert "workflow/scripts/solution_proxies.py was edited" in said
    done = rules(snakemake(project, library=library))
    assert {"join_targets", "solution_proxies"} <= done and "score" not in done
    assert_frame_equal(pl.read_parquet(project / RANKING), pl.read_parquet(finished / RANKING), rel_tol=1e-10)
    assert "Nothing to be done" in snakemake(project, library=library)


def test_an_input_that_is_edited_and_restored_around_a_kill_is_read_again(finished, project):
    """A Snakemake that is killed notes nothing any more: the next one compares with what was kept at the start."""
    truth, targets = project / "own/truth.csv", project / RESULTS / "targets.parquet"
    shutil.copy2(truth, project / "truth.bak")
    targets.unlink()
    shutil.rmtree(project / RESULTS / "data_selection")
    process = begin(project)
    try:
        write_truth(project, 0.3, 0.1)
        wait_for(process, targets.exists)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.move(project / "truth.bak", truth)
    snakemake(project, "--unlock")
    assert "join_targets" in rules(snakemake(project, "-n", "--rerun-incomplete"))
    snakemake(project, "--rerun-incomplete")
    assert_frame_equal(pl.read_parquet(project / RANKING), pl.read_parquet(finished / RANKING), rel_tol=1e-10)
    assert "Nothing to be done" in snakemake(project)


# Damage


def test_solutions_with_a_flipped_bit_are_copied_again(finished, project):
    copied = project / RESULTS / "solutions/sums.jsonl"
    with_its_time_kept(copied, lambda: copied.write_text(copied.read_text().replace("mat", "hat", 1)))
    (project / RESULTS / "token_stats/left/left-small-seed0-step10.parquet").unlink()
    said = snakemake(project)
    assert f"{RESULTS}/solutions/sums.jsonl was truncated, damaged or lacked a part" in said
    assert copied.read_bytes() == (finished / RESULTS / "solutions/sums.jsonl").read_bytes()
    assert_frame_equal(pl.read_parquet(project / RANKING), pl.read_parquet(finished / RANKING), rel_tol=1e-10)


@pytest.mark.parametrize("name", ["checked.json", "token_stats/left/manifest.json"])
def test_a_truncated_record_stops_nothing(project, name):
    os.truncate(project / RESULTS / name, 20)
    snakemake(project, *SCORING)
    assert json.loads((project / RESULTS / name).read_text())
    assert written(project, "left")[1:] in ([], [[]])  # no checkpoint is scored again


def test_results_that_are_a_link_to_nowhere(project):
    shutil.rmtree(project / "results")
    (project / "results").symlink_to(project / "absent")
    assert re.search("results: a link to .*absent, which is not there: mount it", snakemake(project, fails=True))


def test_a_flipped_bit_is_named_and_costs_one_checkpoint(finished, project):
    part = project / RESULTS / "token_stats/left/left-small-seed0-step10.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 4
    part.write_bytes(content)
    (project / RESULTS / "proxies/left.parquet").unlink()
    said = snakemake(project, fails=True)
    assert f"{part.relative_to(project)}: damaged: its bytes are not those that were written" in said
    snakemake(project)
    assert written(project, "left")[1:] == [["left-small-seed0-step10"]] and len(written(project, "right")) == 1
    assert is_sealed(part)
    assert_frame_equal(token_stats(project)[part.stem], token_stats(finished)[part.stem], check_exact=True)
    assert_frame_equal(pl.read_parquet(project / RANKING), pl.read_parquet(finished / RANKING), rel_tol=1e-10)


def test_a_dry_run_changes_nothing(project):
    os.truncate(project / RESULTS / "token_stats/left/left-small-seed0-step10.parquet", 500)
    (project / RESULTS / "checked.json").unlink()
    path = project / "own/sums.jsonl"
    path.write_text(path.read_text().replace("mat", "hat"))
    before = state_of(project / "results")
    for mode in ("--summary", "--list-changes=code", "-n"):
        said = snakemake(project, mode)
        assert "left-small-seed0-step10.parquet was truncated, damaged or lacked a part" in said
        assert state_of(project / "results") == before
    assert {"copy_solutions", "score"} <= rules(said)


@pytest.mark.parametrize("place", ["token_stats/left", "proxies", "logs/score", "consent.json"])
def test_a_link_out_of_results_of_somebody_else_stops_every_start(project, tmp_path, place):
    victim = tmp_path / "victim"
    (victim / "left").mkdir(parents=True)
    for name in ("left.parquet", "left.log", "manifest.json", ".x.parquet"):
        (victim / name).write_text("{}")
    path = project / RESULTS / place
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(victim / "manifest.json" if path.suffix else victim)
    before = state_of(tmp_path)
    for mode in ("-n", "--quiet"):
        assert f"{RESULTS / place}: a link out of the results, to {victim}" in snakemake(project, mode, fails=True)
    assert {p: s for p, s in state_of(tmp_path).items() if ".snakemake" not in p.parts} == {
        p: s for p, s in before.items() if ".snakemake" not in p.parts
    }


def test_results_on_a_disk_that_is_not_mounted_are_not_made_anew(project):
    other_disk = Path("/dev/shm") / f"proxycast-{os.getpid()}"
    if other_disk.parent.stat().st_dev == project.stat().st_dev:
        pytest.fail("needs a second disk: /dev/shm")
    shutil.move(project / "results", other_disk)
    try:
        (project / "results").symlink_to(other_disk)
        snakemake(project)
        other_disk.rename(other_disk.with_suffix(".unmounted"))
        said = snakemake(project, fails=True)
        assert re.search(r"results/stale: gone, and \S+ is on another disk than the results were: mount that", said)
        assert not other_disk.exists()
    finally:
        for path in (other_disk, other_disk.with_suffix(".unmounted")):
            shutil.rmtree(path, ignore_errors=True)


def test_deleted_results_are_made_anew(project):
    shutil.rmtree(project / "results")
    assert "score" in rules(snakemake(project, "-n"))
