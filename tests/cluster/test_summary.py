"""What the end of a run says: the answer, the best candidates in few lines, and where to read on."""

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from proxycast.cluster.status.summary import (
    answer_lines,
    order_lines,
    order_of_corpora,
    order_of_models,
    report_lines,
)
from proxycast.config.study import DEFAULT_PROXIES, Budget
from proxycast.report.page.answers.wording import Answer, Fact
from proxycast.report.page.study_results import StudyResults
from proxycast.tables import write_table

PLACES = {"place": pl.Float64, "place_low": pl.Float64, "place_high": pl.Float64}


def ranking_of(*names: str, intervals: bool = True) -> pl.DataFrame:
    rows = [
        (name, n + 1, max(1, n) if intervals else None, n + 2 if intervals else None) for n, name in enumerate(names)
    ]
    return pl.DataFrame(rows, {"corpus": pl.String, **PLACES}, orient="row").reverse()


def test_the_order_is_that_of_places():
    assert order_lines(ranking_of("a", "b", "c"), "corpus") == ["  1 [1, 2] a", "  2 [1, 3] b", "  3 [2, 4] c"]


def test_many_candidates_take_few_lines():
    lines = order_lines(ranking_of(*(f"n{n:02d}" for n in range(25)), intervals=False), "corpus")
    assert lines[:2] == ["  1 n00", "  2 n01"] and lines[5:] == ["  and 20 more in the table ranking"]


def test_an_answer_is_told_without_what_a_terminal_would_interpret():
    answer = Answer("\x1b[31mweb leads.", [Fact("Best baseline", "none")], ["The noise: one seed."], "Nothing is sure.")
    assert answer_lines(answer) == [
        "Nothing is sure.",
        "web leads.",
        "  best baseline: none",
        "  not known: the noise: one seed",
    ]
    assert answer_lines(None) == []  # of a run that was to stop before


def test_the_last_budget_and_the_first_proxy_are_told(tmp_path):
    """Names of a study are shown without anything that a terminal would interpret."""
    (tmp_path / "data_selection").mkdir()
    until_then = StudyResults(SimpleNamespace(highlighted=DEFAULT_PROXIES), tmp_path)
    assert order_of_corpora(until_then) == []  # of a run that was to stop before
    first, other = DEFAULT_PROXIES[:2]
    parts, pairs = [], []
    for proxy in (other, first):
        for step in (20, 40):
            best = ["\x1b[31mweb", "wiki"] if (proxy, step) == (first, 40) else ["wiki", "\x1b[31mweb"]
            key = {"statistic": proxy.statistic, "weighting": proxy.weighting, "size": "30k", "step": step}
            labels = {name: pl.lit(value) for name, value in {**key, "seeds": 2 if step == 20 else 1}.items()}
            parts.append(ranking_of(*best).with_columns(**labels))
            pairs.append(
                pl.DataFrame({"better": best[:1], "worse": best[1:], "told_apart": [True]}).with_columns(**labels)
            )
    for name, tables in (("ranking", parts), ("pairs", pairs)):
        write_table(pl.concat(tables), tmp_path / f"data_selection/{name}.parquet", "made from")
    budgets = [Budget(name=str(step), size="30k", step=step) for step in (20, 40)]
    study = SimpleNamespace(highlighted=[first, other], selection=SimpleNamespace(confidence=0.9))
    assert order_of_corpora(StudyResults(study, tmp_path, budgets)) == [
        "corpora, best first (place, 90% interval over solutions alone, as there is one seed):",
        "  1 [1, 2] web",
        "  2 [1, 3] wiki",
    ]


def test_the_order_of_the_models_is_told_with_who_tells_pairs_otherwise(tmp_path):
    (tmp_path / "model_selection").mkdir()
    study = SimpleNamespace(selection=SimpleNamespace(confidence=0.95), highlighted=DEFAULT_PROXIES)
    assert order_of_models(StudyResults(study, tmp_path)) == []  # of a run that was to stop before
    labels = {name: pl.lit(value) for name, value in (("task", "all"), ("method", "bits_per_byte"), ("tail", "bytes"))}
    own = ranking_of("a", "\x1b[31mb").rename({"corpus": "model"}).with_columns(**labels)
    other = own.reverse().with_columns(method=pl.lit("sparse3"))
    pair = {"better": ["a"], "worse": ["\x1b[31mb"], "difference": [0.1], "told_apart": [False]}
    pairs = pl.DataFrame(pair).with_columns(**labels)
    reverse = pairs.rename({"better": "worse", "worse": "better"}).with_columns(told_apart=True)
    others = [("top5_accuracy/token_frequency", True), ("top1_accuracy/inverse_token_frequency", False)]
    of_others = [reverse.with_columns(method=pl.lit(name), told_apart=pl.lit(told)) for name, told in others]
    pairs = pl.concat([pairs, *(table.select(pairs.columns) for table in of_others)])
    found = {"ranking": pl.concat([own, other]), "pairs": pairs}
    for name, table in found.items():
        write_table(table, tmp_path / f"model_selection/{name}.parquet", "made from")
    assert order_of_models(StudyResults(study, tmp_path)) == [
        "models, best first (place, 95% interval over solutions):",
        "  1 [1, 2] a",
        "  2 [1, 3] b",
        "  but top5_accuracy/token_frequency tells them apart the other way round: b before a",
    ]


HOW = "provenance of every file: "
COMMAND = f"{HOW}snakemake --configfile config/smoke.yaml --report results/smoke/provenance.html"
IN_ITS_PLACE = "in the place of the study's page; give it another name, and remove it to have the page again"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--cores", "2", "--report", "x/r.html", "--report-after-run"], f"{HOW}x/r.html, made now"),
        (["--cores", "2", "--report-after-run", "--report"], f"{HOW}report.html, made now"),
        (["--cores", "2", "--profile", "with_report"], f"{HOW}p.html, made now"),
        (["--cores", "2"], COMMAND),
        (["-n", "auto", "--no-such"], COMMAND),
        (
            ["--report", "results/smoke/report.html", "--report-after-run"],
            f"{HOW}results/smoke/report.html, made now {IN_ITS_PLACE}",
        ),
    ],
)
def test_the_page_and_the_report_on_provenance_are_told(tmp_path, monkeypatch, capfd, arguments, line):
    monkeypatch.chdir(tmp_path)
    Path("with_report").mkdir()
    Path("with_report/config.yaml").write_text("report: p.html\nreport-after-run: true\n")
    plan = SimpleNamespace(results=Path("results/smoke"), where="config/smoke.yaml")
    assert report_lines(plan, arguments) == [line]
    plan.results.mkdir(parents=True)
    (plan.results / "report.html").touch()
    assert report_lines(plan, arguments) == ["report: results/smoke/report.html", line]
    assert capfd.readouterr() == ("", "")
