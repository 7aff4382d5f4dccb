"""The fingerprint of the code that a rule's results depend on."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from proxycast.code_fingerprint import LIBRARY, PLANNING, code_fingerprint, used_modules

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))
# Modules that no script computes with: they plan, tell of a study, or document it.
NO_RESULTS = PLANNING | {
    "config_reference",
    "console",
    "disk",
    "experts",
    "models",
    "plan",
    "progress",
    "report_page",
    "slurm_plugin",
    "slurm_states",
    "summary",
}


def names(script: str) -> set[str]:
    return {
        path.relative_to(LIBRARY).with_suffix("").as_posix()
        for path in used_modules(ROOT / f"workflow/scripts/{script}.py")
    }


def test_every_module_counts_somewhere_or_computes_nothing():
    counted = {path for script in SCRIPTS for path in used_modules(script)}
    left = {path.relative_to(LIBRARY).with_suffix("").as_posix() for path in {*LIBRARY.rglob("*.py")} - counted}
    assert left - {"text/__init__"} == NO_RESULTS


def test_modules_are_found_however_they_are_imported():
    """Within functions, through others, as attributes of a package."""
    assert {"engines/transformers", "engines/vllm_worker", "token_stats_triton", "targets"} <= names("score")
    assert {"miniature/llama", "miniature/gpt"} <= names("train_corpus")
    assert {"proxies", "subsets", "scorers"} <= names("solution_proxies")
    assert {"plots/data_selection", "plots/style", "labels"} <= names("data_selection_figures")


def test_what_is_cheap_to_make_again_does_not_reach_what_is_dear():
    after_scoring = {
        "proxies",
        "subsets",
        "ranking",
        "scorers",
        "data_selection",
        "model_selection",
        "curves",
        "plots/style",
    }
    assert not after_scoring & (names("score") | names("train_corpus") | names("train_run") | names("write_solutions"))
    assert not {"token_stats", "extraction", "engines/transformers", "targets"} & (
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
        command = "import sys; from pathlib import Path; from proxycast.code_fingerprint import *; "
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
    module = "proxycast/proxies.py"
    assert (
        library("solution_proxies", module, "import polars as pl\n", "import polars as pl  # a comment\n\n\n") == first
    )
    doc = (ROOT / "workflow" / module).read_text().split('"""')[1]
    assert library("solution_proxies", module, doc, "Other words.") == first
    assert library("solution_proxies", "scripts/solution_proxies.py", "8_000_000", "9_000_000") != first


def test_a_formula_counts(library):
    first, scoring = library("solution_proxies"), library("score")
    old = '"margin": '
    assert library("solution_proxies", "proxycast/proxies.py", old, '"margin": 2 * ') != first
    assert library("score") == scoring
