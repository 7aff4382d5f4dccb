"""One page of several studies: which proxy to trust where."""

import re

import pytest
from page_results import ENDS, MODELS, RANKING, SUMMARY, finished, smoke
from proxycast.report.page import several_studies
from proxycast.report.page.answer import Answer
from proxycast.report.page.several_studies import several_studies_page, trust_rows


@pytest.fixture(autouse=True)
def answered(monkeypatch):
    """What the answers say has tests of its own."""
    monkeypatch.setattr(several_studies, "answers", lambda results: [Answer(f"<b>{results.study.study}</b> leads")])


def studies(folder):
    corpora = finished(folder / "one", {"data_selection/summary": SUMMARY, "data_selection/ranking": RANKING})
    models = finished(folder / "two", {"model_selection/summary": MODELS}, smoke(study="two"))
    return corpora, models


def test_each_number_is_that_of_its_table(tmp_path):
    corpora, models = studies(tmp_path)
    found = trust_rows(corpora)
    assert found["method"].to_list() == ["margin/entropy", "top5_accuracy/token_frequency", "bits_per_byte", "chance"]
    assert found["value"].to_list() == [row["decision_accuracy"] for row in SUMMARY]
    assert found["difference_low"].to_list() == [row["difference_low"] for row in SUMMARY]
    assert set(found.select("low", "high").rows()) == {tuple(ENDS.values())}
    of_models = trust_rows(models)
    assert of_models["method"].to_list() == [f"{row['method']} (bytes)" for row in MODELS]
    assert of_models["value"].to_list() == [row["spearman"] for row in MODELS]


def test_a_sign_says_what_the_interval_does(tmp_path):
    html = several_studies_page(studies(tmp_path), tmp_path / "report.html")
    lines = dict(re.findall('<th scope="row"[^>]*>([^\\s<]+).*?</th>\n(.*?)</tr>', html, re.DOTALL))
    for method, words in {"margin/entropy": "better", "chance": "worse", "bits_per_byte": "best baseline"}.items():
        assert f'aria-label="{words}"' in lines[method]
    assert "0.91 [0.20, 0.90]" in lines["margin/entropy"] and "+0.21 [+0.05, +0.30]" in lines["margin/entropy"]
    assert 'aria-label="not told apart"' in lines["parameters"] and 'aria-label="worse"' in lines["sparse3"]
    # What was fixed in advance stands first, then bits per byte.
    order = re.findall('<tr><th scope="row"(?: class="named")?>([a-z0-9_/]+)', html)
    assert order[:3] == ["top5_accuracy/token_frequency", "bits_per_byte", "margin/entropy"]


def test_a_study_links_its_page_if_it_has_one(tmp_path):
    corpora, models = studies(tmp_path)
    (tmp_path / "one" / "report.html").touch()
    html = several_studies_page([corpora, models], tmp_path / "pages" / "all.html")
    assert '<a href="../one/report.html">smoke</a>' in html and "Its own page is not made yet." in html
    assert "3 corpora" in html and "<p>&lt;b&gt;smoke&lt;/b&gt; leads</p>" in html


def test_without_a_truth_the_page_stands(tmp_path):
    results = [finished(tmp_path / name, {}, smoke(target=None, study=name)) for name in ("a", "b")]
    html = several_studies_page(results, tmp_path / "report.html")
    assert "nothing tells which proxy to trust" in html and html.count("<td>none</td>") == 2
