"""`proxycast report`: the page of a finished study, one page of several, and what is refused."""

import shutil

import pytest
from page_results import RANKING, SUMMARY, TRUTH, finished
from proxycast import tables
from proxycast.command import report_page
from proxycast.report.page import several_studies
from proxycast.report.page.study_results import MADE_WITH
from proxycast.tables import write_json
from test_main import project, refused, said  # noqa: F401

CHECKPOINTS = [{"checkpoint": "a", "seed": 0}, {"checkpoint": "b", "seed": 1}]
PLACES = [row | {"place_low": 1.0, "place_high": 2.0, "predicted": 0.5} for row in RANKING]
NEEDED = {
    "checkpoints": CHECKPOINTS,
    **{f"data_selection/{name}": PLACES for name in ("pairs", "agreement", "choices")},
    "data_selection/ranking": PLACES,
    "data_selection/summary": SUMMARY,
    "data_selection/truth": TRUTH,
}


@pytest.fixture
def two_studies(project, monkeypatch):  # noqa: F811
    """A project with two finished studies, of the few tables that a page of several studies reads."""
    monkeypatch.setattr(several_studies, "answers", lambda results: [])
    text = (project / "config" / "smoke.yaml").read_text()
    (project / "config" / "other.yaml").write_text(text.replace("study: smoke", "study: other"))
    for name in ("smoke", "other"):
        results = project / "results" / name
        made = finished(results, NEEDED)
        study = made.study.model_dump(mode="json") | {"study": name}
        budgets = [budget.model_dump(mode="json") for budget in made.budgets]
        rules = dict.fromkeys(NEEDED, "some_rule")
        write_json({"study": study, "budgets": budgets, "tasks": made.tasks, "rules": rules}, results / MADE_WITH)
    return project


def test_one_study_is_written_to_its_results(two_studies, monkeypatch):
    monkeypatch.setattr(report_page, "study_page", lambda results: f"page of {results.study.study}")
    assert said("report", "config/smoke.yaml") == "results/smoke/report.html\n"
    assert (two_studies / "results" / "smoke" / "report.html").read_text() == "page of smoke"


def test_several_studies_are_one_page(two_studies):
    assert said("report", "config/smoke.yaml", "config/other.yaml") == "results/report.html\n"
    html = (two_studies / "results" / "report.html").read_text()
    assert "smoke" in html and "other" in html and "0.91 [0.20, 0.90]" in html
    assert said("report", "config/smoke.yaml", "config/other.yaml", "--out", "pages/all.html") == "pages/all.html\n"
    assert (two_studies / "pages" / "all.html").is_file()


def test_what_is_refused(two_studies):
    assert "config/none.yaml: no such file" in refused("report", "config/none.yaml")
    shutil.copy(two_studies / "config" / "smoke.yaml", two_studies / "config" / "twin.yaml")
    message = refused("report", "config/smoke.yaml", "config/twin.yaml")
    assert "config/smoke.yaml and config/twin.yaml: both are the study smoke" in message
    assert "--out: is for several studies" in refused("report", "config/smoke.yaml", "--out", "x.html")
    (two_studies / "results" / "other" / "data_selection" / "truth.parquet").unlink()
    message = refused("report", "config/smoke.yaml", "config/other.yaml")
    assert "config/other.yaml: the study is not finished: results/other lacks data_selection/truth; " in message


def test_a_study_that_was_edited_or_never_had_a_page_is_refused(two_studies):
    """Else a page would say of the tables what is not true of them, and Snakemake would take it for made."""
    config = two_studies / "config" / "smoke.yaml"
    config.write_text(config.read_text() + "\nextraction: {batch_tokens: 99}\n")
    assert "config/smoke.yaml: extraction was edited since results/smoke was made; run" in refused(
        "report", str(config.relative_to(two_studies))
    )
    made_with = two_studies / "results" / "other" / MADE_WITH
    made_with.write_text("{}")
    assert f"results/other/{MADE_WITH}: is not what a page was made with" in refused("report", "config/other.yaml")
    made_with.unlink()
    assert f"the study is not finished: results/other lacks {MADE_WITH}; " in refused("report", "config/other.yaml")


def test_tables_of_rules_that_are_gone_are_not_read(tmp_path):
    """A study keeps the results of options that it no longer has."""
    rules = {"data_selection/ranking": "data_selection"}
    results = finished(tmp_path, {"data_selection/ranking": RANKING, "data_selection/truth": TRUTH}, rules=rules)
    assert results.table("data_selection/ranking") is not None and results.table("data_selection/truth") is None


def test_a_damaged_table_is_told_and_left_where_it_is(two_studies):
    path = two_studies / "results" / "smoke" / "data_selection" / "summary.parquet"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    assert f"{path.relative_to(two_studies)}: damaged" in refused("report", "config/smoke.yaml", "config/other.yaml")
    assert path.read_bytes() == content and tables._CHANGES_NOTHING
