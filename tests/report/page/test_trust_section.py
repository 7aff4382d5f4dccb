"""The section "Why believe it": tables with rules and fingerprints, warnings, and what was fixed in advance."""

import re
import sys

import polars as pl
from page_results import RANKING, SUMMARY, TRUTH, finished, smoke
from proxycast.experiments.reliability import VERDICTS, verdict
from proxycast.jobs import job
from proxycast.report.page.blocks import Column, Dataset, Section, Table
from proxycast.report.page.html_page import page_html
from proxycast.report.page.sections.provenance import MOST_WARNINGS, RULE_OF_TABLE, anchor_of, rule_of, warnings_of
from proxycast.report.page.sections.trust import trust_section
from proxycast.tables import table_fingerprint

EVIL = '<img src=x onerror="alert(1)">'


def page(results, sections=()) -> str:
    return page_html("a study", [*sections, trust_section(results, sections)], "")


def ranking_section(results) -> Section:
    dataset = Dataset("ranking", results.table("data_selection/ranking"), "data_selection/ranking", "last budget")
    return Section("ranking", "Ranking", [Table("ranking-table", "Ranking", dataset, [Column("corpus", "Corpus")])])


def test_each_table_has_its_rule_its_fingerprint_and_its_files(tmp_path):
    results = finished(tmp_path, {"data_selection/ranking": RANKING})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "data_selection.log").touch()
    html = page(results, [ranking_section(results)])
    (row,) = re.findall(f'<tr id="{anchor_of("data_selection/ranking")}">.*?</tr>', html, re.DOTALL)
    assert table_fingerprint(tmp_path / "data_selection" / "ranking.parquet") == "of data_selection/ranking"
    assert "<td>data_selection</td>" in row and "<code>of data_selection/ranking</code>" in row
    assert re.findall('href="(.*?)"', row) == [
        "data_selection/ranking.csv",
        "data_selection/ranking.parquet",
        "logs/data_selection.log",
    ]
    assert 'data-download="ranking"' in row
    # What stands below a block leads there.
    assert f'<a href="#{anchor_of("data_selection/ranking")}"><code>data_selection/ranking</code></a>' in html


def test_without_a_trust_section_no_link_leads_nowhere(tmp_path):
    results = finished(tmp_path, {"data_selection/ranking": RANKING})
    assert 'href="#made-' not in page_html("a study", [ranking_section(results)], "")


def test_a_rule_is_what_snakemake_says_else_known_by_its_table():
    assert rule_of("data_selection/ranking", {"data_selection/ranking": "other"}) == "other"
    assert rule_of("data_selection/choices", {}) == "choices" and rule_of("token_stats/a/b", {}) == "score"
    assert rule_of("unheard/of", {}) == ""


def test_the_rules_of_tables_are_those_of_the_workflow():
    from conftest import ROOT

    texts = {path.name: path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk")}
    for table, rule in RULE_OF_TABLE.items():
        (text,) = [text for text in texts.values() if re.search(rf"^ *rule {rule}:", text, re.MULTILINE)]
        name = table.rpartition("/")[2]
        assert f'"{name}"' in text or f"/{name}.parquet" in text, table


def warn(log, *lines: str) -> None:
    with job(log):
        for line in lines:
            print(line, file=sys.stderr)


def test_warnings_are_those_of_the_last_attempt_by_rule_and_bounded(tmp_path):
    logs = tmp_path / "logs"
    (logs / "score").mkdir(parents=True)
    warn(logs / "choices.log", "01:02:03 WARNING mended since")
    warn(logs / "choices.log", "01:02:03 only told", "01:02:04 WARNING few corpora", "x.py:3: UserWarning: old")
    for name in ("a", "b"):
        warn(logs / "score" / f"{name}.log", "01:02:05 WARNING \x1b[31mslow\x1b[0m engine " + "x" * 5000)
    many = [f"01:02:03 WARNING number {n}" for n in range(MOST_WARNINGS + 7)]
    warn(logs / "mixtures.log", *many)
    warn(logs / "study_page.log", "01:02:03 WARNING of the page itself")
    found = {entry.rule: entry for entry in warnings_of(logs)}
    assert found.keys() == {"choices", "score", "mixtures"}
    assert [line for line, *_ in found["choices"].lines] == ["few corpora", "x.py:3: UserWarning: old"]
    ((line, count, name),) = found["score"].lines
    assert line.startswith("slow engine xxx") and len(line) < 450 and (count, name) == (2, "a")
    assert len(found["mixtures"].lines) == MOST_WARNINGS and found["mixtures"].more == 7


def test_markup_in_logs_and_configuration_stays_text(tmp_path):
    (tmp_path / "logs").mkdir()
    warn(tmp_path / "logs" / "choices.log", f"01:02:03 WARNING {EVIL}</script>")
    study = smoke(target={"size": "43k", "metric": "multiple_choice_accuracy", "table": f"{EVIL}.csv"})
    results = finished(tmp_path, {}, study, left_out=[f"left {EVIL}"], where=f"config/{EVIL}.yaml")
    html = page(results)
    assert "&lt;img src=x" in html and "left &lt;img" in html and "<img" not in html
    assert "WARNING" not in html and html.count("&lt;/script&gt;") == 1


def test_no_warning_and_no_log_are_told_apart(tmp_path):
    assert "not known: no log" in page(finished(tmp_path, {}))
    (tmp_path / "logs").mkdir()
    warn(tmp_path / "logs" / "choices.log", "01:02:03 told")
    assert "hold no warning" in page(finished(tmp_path, {}))


def test_what_was_fixed_is_told_apart_from_hindsight(tmp_path):
    html = page(finished(tmp_path, {"data_selection/summary": SUMMARY, "data_selection/truth": TRUTH}))
    rows = dict(re.findall('<tr><th scope="row">([^<]*)</th><td>(.*?)</td></tr>', html))
    assert rows["Proxies"] == "yes</td><td>top5_accuracy/token_frequency, cross_entropy/uniform"
    assert rows["Budgets"].startswith("yes</td><td>smallest: size 30k, step 20; ")
    assert rows["Best proxies, budget &#34;small&#34;"] == "no, in hindsight</td><td>margin/entropy 0.91 [0.20, 0.90]"
    assert rows["Best baseline, budget &#34;small&#34;"] == "no, in hindsight</td><td>bits_per_byte"
    assert "0.83 [0.41, 0.97]" in html and "0.88 [0.71, 0.96]" in html and "<td>good</td>" in html


def test_defaults_and_rules_count_as_fixed_but_are_named(tmp_path):
    study = smoke()
    study = type(study)(**study.model_dump(exclude={"highlighted", "budgets"}, exclude_unset=True))
    results = finished(tmp_path, {}, study)
    results.budgets = smoke().budgets[:1]
    html = page(results)
    assert "<td>yes, by default</td>" in html and "<td>by a rule: the largest size below" in html


def test_a_study_without_tables_says_that_nothing_was_judged(tmp_path):
    html = page(finished(tmp_path, {}, smoke(target=None)))
    assert "the study has no truth" in html and "miniature:" in html and "polars 2" in html


def test_a_computed_dataset_leads_to_each_of_its_tables(tmp_path):
    frame = pl.DataFrame({"corpus": ["a"]})
    dataset = Dataset("both", frame, "computed", "", ["data_selection/ranking", "data_selection/truth"])
    section = Section("x", "X", [Table("t", "T", dataset, [Column("corpus", "Corpus")])])
    html = page(finished(tmp_path, {}), [section])
    for table in dataset.made_from:
        assert f'<a href="#{anchor_of(table)}">' in html and f'<tr id="{anchor_of(table)}">' in html
    assert "none: the file is not there" in html


def test_the_glossary_has_the_words_of_this_study_alone(tmp_path):
    corpora = page(finished(tmp_path / "a", {"data_selection/ranking": RANKING}))
    forecasts = page(finished(tmp_path / "b", {"forecasting/forecasts": [{"run": "a"}]}))
    without = page(finished(tmp_path / "c", {"data_selection/ranking": RANKING}, smoke(target=None)))
    terms = [re.findall("<dt>(.*?)</dt>", html) for html in (corpora, forecasts, without)]
    assert terms[0] == ["Proxy", "Target", "Budget", "Decision accuracy", "Regret", "Noise ceiling"]
    assert terms[1] == ["Proxy", "Target", "Cut"] and terms[2] == ["Proxy", "Budget"]


def test_verdict_words_are_explained_by_their_bounds(tmp_path):
    html = page(finished(tmp_path, {"data_selection/truth": TRUTH}))
    for bound, word in VERDICTS[:-1]:
        assert f"&#34;{word}&#34; below {bound:g}" in html and verdict(bound - 0.01, None) == word
        assert verdict(bound, None) != word
