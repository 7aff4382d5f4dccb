"""The report that Snakemake makes of hostile names and records: all of it stays text."""

import base64
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import forked_python
import pytest
from proxycast.config.corpora import Corpus
from proxycast.config.study import Budget
from pydantic import ValidationError

ROOT = Path(__file__).parents[2]
ATTACKS = [
    "</script><script>alert(1)</script>",
    "</SCRIPT ><img src=x onerror=alert(2)>",
    "<!--<script>",
    "]]><svg onload=alert(3)>",
    "\"';alert(4);//\\",
    "\u2028alert(5)\u2029",
    "${alert(6)}",
]
SNAKEFILE = """
from proxycast.report import snakemake_report
snakemake_report.repair()
configfile: "config.json"
WORDS = config["words"]
report: "workflow.rst"
rule all:
    input: "table.csv"
rule table:
    output:
        report("table.csv", caption="caption.rst", category=WORDS[0] + " category", labels={WORDS[1]: " ".join(WORDS)})
    params:
        study={word: [word] for word in WORDS},
        words=WORDS,
    run:
        Path(output[0]).write_text("a,b")
"""


class Scripts(HTMLParser):
    """The text of every script, and every tag with its attributes, as a browser takes them."""

    def __init__(self, page: str):
        super().__init__()
        self.scripts, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.scripts and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def report_of(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    finished = forked_python.run("snakemake", "--cores", "1", *arguments, cwd=folder, env=environment)
    assert finished.returncode == 0, finished.stderr
    return (folder / "report.html").read_text() if (folder / "report.html").exists() else ""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "config.json").write_text(json.dumps({"words": ATTACKS}))
    (tmp_path / "workflow.rst").write_text("The workflow.")
    (tmp_path / "caption.rst").write_text("The caption.")
    return tmp_path


def test_nothing_of_a_name_or_parameter_is_markup_on_the_page(study):
    page = report_of(study, "--report", "report.html", "--report-after-run")
    harmless = json.loads((study / "config.json").read_text())
    (study / "config.json").write_text(json.dumps({"words": [f"word {n}" for n, _ in enumerate(harmless["words"])]}))
    expected = report_of(study, "--report", "report.html", "--report-after-run")
    assert [tag for tag, _ in Scripts(page).tags] == [tag for tag, _ in Scripts(expected).tags]
    assert not any(name.startswith("on") for _, attributes in Scripts(page).tags for name in attributes)
    results = next(script for script in Scripts(page).scripts if script.strip().startswith("var results = "))
    shown = json.loads(results.strip().removeprefix("var results = ").rstrip("; \n"))
    assert shown["table.csv"]["labels"] == {ATTACKS[1]: " ".join(ATTACKS)}  # the words themselves, whole


def test_a_record_of_a_result_runs_no_code(study):
    """The record of somebody else's result names an environment in a YAML that runs code when it is read."""
    report_of(study)
    touched = study / "touched"
    environment = f"!!python/object/apply:os.mkdir ['{touched}']"
    [record] = [path for path in (study / ".snakemake/metadata").iterdir() if path.is_file()]
    values = json.loads(record.read_text()) | {"conda_env": base64.b64encode(environment.encode()).decode()}
    record.write_text(json.dumps(values))
    report_of(study, "--report", "report.html")
    assert not touched.exists()


@pytest.mark.parametrize("name", [*ATTACKS[:4], "a\u202eb", "a\nb", "\x1b[2J", "a&lt;b", "a\u200bb"])
def test_a_shown_name_is_printable_and_without_markup(name):
    with pytest.raises(
        ValidationError, match="figures and the report show this name, so use only printable characters"
    ):
        Budget(name=name, size="small", step=1)
    for key in ("display_name", "mirrors", "family"):
        with pytest.raises(ValidationError, match=f"{key}\n"):
            Corpus(name="a", checkpoints=[{"folder": "x", "size": "a", "step": 1}], **{key: name})


@pytest.mark.parametrize("name", ["30k, 80 steps", "10 % (QC 7%, FW3)", "Ünïcode 名前", "C4 + a_b^2 $5", "it's"])
def test_an_ordinary_shown_name_is_accepted(name):
    assert Budget(name=name, size="small", step=1).name == name


def test_the_workflow_repairs_the_page():
    assert re.search(
        r"^    snakemake_report\.repair\(\)$",
        (ROOT / "workflow/proxycast/cluster/opening.py").read_text(),
        re.MULTILINE,
    )
