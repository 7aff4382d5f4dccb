"""The fingerprint of the code that a rule's results depend on."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from proxycast.study import code_fingerprint as module_of_fingerprints
from proxycast.study.code_fingerprint import LIBRARY, _plans, code_fingerprint, codes_now, keep_digests, used_modules

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))
# What no script computes with: commands, checks before the first job, faults of Snakemake's report, weights that
# planning counts, and what people call from a shell or from Python; a process that passes calls on to an engine.
NO_RESULTS = {
    "experiments/opposed_pairs",
    "plan",
    "progress",
    "weights/experts",
    "callbacks",
    "extraction/engines/engine_process",
    "extraction/engines/in_memory",
    "report/page/several_studies",
}
CALLED_BY_PEOPLE = ("command/", "library/")


def names(script: str) -> set[str]:
    return {
        path.relative_to(LIBRARY).with_suffix("").as_posix()
        for path in used_modules(ROOT / f"workflow/scripts/{script}.py")
    }


def test_every_module_counts_somewhere_or_computes_nothing():
    counted = {path for script in SCRIPTS for path in used_modules(script)}
    left = {path.relative_to(LIBRARY).with_suffix("").as_posix() for path in {*LIBRARY.rglob("*.py")} - counted}
    left = {name for name in left if not (name.endswith("__init__") or _plans(LIBRARY / name))}
    left = {name for name in left if not name.startswith(CALLED_BY_PEOPLE)}
    assert left == NO_RESULTS


def test_modules_are_found_however_they_are_imported():
    """Within functions, through others, as attributes of a package."""
    assert {
        "extraction/engines/transformers",
        "extraction/engines/workers/vllm_worker",
        "extraction/token_stats_triton",
        "truth/targets",
    } <= names("score")
    assert {"training/miniature/llama", "training/miniature/gpt"} <= names("train_corpus")
    assert {"proxy_formulas", "experiments/model_selection/subsets"} <= names("solution_proxies")
    assert {
        "report/data_selection_figures",
        "report/comparisons/law_figures",
        "report/style",
        "report/label_placement",
    } <= names("data_selection_figures")


def test_what_is_cheap_to_make_again_does_not_reach_what_is_dear():
    after_scoring = {
        "proxy_formulas",
        "experiments/rank_statistics",
        "experiments/data_selection/ranking",
        "experiments/data_selection/data_tables",
        "experiments/model_selection/subsets",
        "experiments/model_selection/scorers",
        "experiments/model_selection/model_tables",
        "experiments/laws/curves",
        "report/style",
    }
    assert not after_scoring & (names("score") | names("train_corpus") | names("train_run") | names("write_solutions"))
    assert not {"extraction/token_stats", "extraction/sweep", "extraction/engines/transformers", "truth/targets"} & (
        names("train_corpus") | names("train_run")
    )


def test_every_rule_has_the_fingerprint_of_its_own_script():
    seen = set()
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        for rule in re.split(r"^ *rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            [script] = re.findall(r"^ *script:\n *(.*)", rule, re.MULTILINE)
            [code] = re.findall(r"^ *code=CODE\[(.*)\],$", rule, re.MULTILINE)
            assert re.sub(r"\.\./scripts/(\w+)\.py", r"\1", script) == code, rule
            seen |= set(re.findall(r"scripts/(\w+)\.py", script))
    assert seen == {script.stem for script in SCRIPTS}


@pytest.fixture
def library(tmp_path):
    """A function: the fingerprint of a script after an edit of a copy of the library."""
    shutil.copytree(
        ROOT / "workflow", tmp_path / "workflow", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )

    def fingerprint_after(script: str, module: str = "", old: str = "", new: str = "") -> str:
        if module:
            path = tmp_path / "workflow" / module
            assert path.read_text().count(old) == 1
            path.write_text(path.read_text().replace(old, new))
        command = "import sys; from pathlib import Path; from proxycast.study.code_fingerprint import *; "
        command += "print(code_fingerprint(Path(sys.argv[1])))"
        arguments = [sys.executable, "-c", command, str(tmp_path / f"workflow/scripts/{script}.py")]
        found = subprocess.run(
            arguments, env={"PYTHONPATH": str(tmp_path / "workflow")}, capture_output=True, text=True
        )
        return found.stdout.strip()

    return fingerprint_after


def test_comments_docstrings_and_layout_do_not_count(library):
    script = ROOT / "workflow/scripts/solution_proxies.py"
    first = library("solution_proxies")
    assert first == code_fingerprint(script)
    module = "proxycast/proxy_formulas.py"
    assert (
        library("solution_proxies", module, "import polars as pl\n", "import polars as pl  # a comment\n\n\n") == first
    )
    doc = (ROOT / "workflow" / module).read_text().split('"""')[1]
    assert library("solution_proxies", module, doc, "Other words.") == first
    assert library("solution_proxies", "scripts/solution_proxies.py", "8_000_000", "9_000_000") != first


def test_a_formula_counts(library):
    first, scoring = library("solution_proxies"), library("score")
    old = '"margin": '
    assert library("solution_proxies", "proxycast/proxy_formulas.py", old, '"margin": 2 * ') != first
    assert library("score") == scoring


def test_edits_of_scripts_and_modules_are_seen_later(tmp_path, monkeypatch):
    """As at the end of a run: in this process, which has read the files before. What is no code any more is None."""
    library = shutil.copytree(LIBRARY, tmp_path / "proxycast", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("proxycast.study.code_fingerprint.LIBRARY", library)
    scripts = [shutil.copy(ROOT / f"workflow/scripts/{name}.py", tmp_path) for name in ("score", "train_run")]
    score, train_run = map(Path, scripts)
    first = codes_now([score, train_run])
    assert first == {path: code_fingerprint(path) for path in (score, train_run)}
    module = library / "extraction/token_stats.py"
    before = module.read_text()
    module.write_text(before + "\n\nOTHER = 1\n")
    found = codes_now([score, train_run])
    assert found[score] != first[score] and found[train_run] == first[train_run]
    module.write_text(before)
    assert codes_now([score, train_run]) == first
    train_run.write_text("with")
    assert codes_now([score, train_run]) == {score: first[score], train_run: None}


@pytest.fixture
def new_process(tmp_path, monkeypatch):
    """Forgets what was read and parsed, as a process that starts; digests are kept in a folder of the test."""
    monkeypatch.setattr(module_of_fingerprints, "KEPT", tmp_path / "__pycache__/digests.json")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)

    def forget() -> Path:
        for function in (module_of_fingerprints._digest_and_imports, module_of_fingerprints._digests):
            function.cache_clear()
        module_of_fingerprints._kept.cache_clear()
        return module_of_fingerprints.KEPT

    forget()
    yield forget
    forget()


def test_what_was_parsed_is_kept_for_the_next_process(new_process, monkeypatch):
    first, parse = codes_now(SCRIPTS), module_of_fingerprints.ast.parse
    keep_digests()
    kept = new_process()
    written = kept.stat().st_mtime_ns
    monkeypatch.setattr(module_of_fingerprints.ast, "parse", lambda source: pytest.fail("parses again"))
    assert codes_now(SCRIPTS) == first
    keep_digests()
    assert kept.stat().st_mtime_ns == written  # nothing new
    monkeypatch.setattr(module_of_fingerprints.ast, "parse", parse)
    script = kept.with_name("edited.py")
    script.write_text(SCRIPTS[0].read_text() + "\nOTHER = 1\n")
    assert codes_now([script])[script] not in {*first.values(), None}


def test_what_others_kept_stays(new_process, monkeypatch):
    """Else each of two studies that run by turns would parse what the other one has no use for."""
    for scripts in (SCRIPTS[:3], SCRIPTS[3:6]):
        codes_now(scripts)
        keep_digests()
        kept = new_process()
    with monkeypatch.context() as patch:
        patch.setattr(module_of_fingerprints.ast, "parse", lambda source: pytest.fail("parses again"))
        codes_now(SCRIPTS[:6])
    new_process()
    monkeypatch.setattr(module_of_fingerprints, "MOST_KEPT", 5)
    script = kept.with_name("edited.py")
    script.write_text("OTHER = 1")
    codes_now([script])
    keep_digests()
    newest = json.loads(kept.read_text())["value"]
    assert len(newest) == 5 and set(module_of_fingerprints._digests()) < set(newest)


@pytest.mark.parametrize("damage", [lambda text: text[:-200], lambda text: text.replace('"of": "', '"of": "0')])
def test_digests_that_are_cut_or_another_parsers_are_not_read(new_process, damage):
    first = codes_now(SCRIPTS[:3])
    keep_digests()
    kept = new_process()
    kept.write_text(damage(re.sub('": \\[\n *"[0-9a-f]{64}', '": ["wrong', kept.read_text())))
    assert codes_now(SCRIPTS[:3]) == first


def test_digests_are_kept_where_python_keeps_compiled_code(new_process, monkeypatch):
    codes_now(SCRIPTS[:1])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keep_digests()
    assert not new_process().exists()
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(module_of_fingerprints, "KEPT", Path("/proc/nowhere/digests.json"))
    codes_now(SCRIPTS[:1])
    keep_digests()  # a library that belongs to somebody else
