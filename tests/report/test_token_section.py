"""The token view on the page: what it shows is what the tables hold, whatever a study is called and lacks."""

import json
import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy, Study
from proxycast.experiments.token_contrast.compared import comparison_of, manifests_below, stat_files
from proxycast.experiments.token_contrast.contributions import Reading
from proxycast.experiments.token_contrast.token_tables import token_tables
from proxycast.proxy_formulas import ProxyOptions
from proxycast.report.page.blocks import Html, Note, Table
from proxycast.report.page.html_page import page_html
from proxycast.report.page.sections.token_levels import MEASURES, difference_levels, in_line, levels, marked
from proxycast.report.page.sections.tokens import token_section
from proxycast.report.page.study_results import StudyResults
from proxycast.tables import read_table, write_table
from token_study import TOP5, pairs_of_bytes, write_ranking, write_study


def made(folder, proxy=TOP5, **keys) -> StudyResults:
    """A study with both tables, made as the rule makes them."""
    solutions = write_study(folder, **keys)
    files = stat_files(manifests_below(folder))
    comparison = comparison_of(
        *(read_table(folder / "checkpoints.parquet"), files, [proxy], SelectionOptions()),
        budgets=[Budget(name="b", size="small", step=20)],
        corpora=write_ranking(folder, proxy),
    )
    for name, table in token_tables(comparison, Reading(files, ProxyOptions(), 99, None), solutions).items():
        write_table(table, folder / f"{name}.parquet", "made up")
    return StudyResults(Study(study="tiny"), folder, tasks=list(solutions))


def data_of(section) -> dict:
    [markup] = [block.markup for block in section.blocks if isinstance(block, Html)]
    return json.loads(re.search(r'id="token-data">(.*?)</script>', markup, re.DOTALL)[1])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return made(tmp_path_factory.mktemp("results"))


def test_the_page_says_who_chose_the_two(results):
    named = StudyResults(Study(study="tiny", token_view=("good", "bad")), results.results, tasks=results.tasks)
    write_ranking(results.results)
    for found, words in ((named, "are the two that the study names"), (results, "are the first and the last corpus")):
        assert any(words in block.text for block in token_section(found).blocks if isinstance(block, Note))


def test_every_number_is_that_of_the_table(results):
    data, view = data_of(token_section(results)), results.table("token_view")
    assert data["names"] == view["candidate"].unique(maintain_order=True).to_list()
    of = {(solution["task"], solution["solution"]): solution for solution in data["solutions"]}
    for (task, solution, name, step), rows in view.group_by("task", "solution", "candidate", "step"):
        own = of[task, solution]["sides"][data["names"].index(name)][str(step)]
        for column in ("rank", "entropy", "cross_entropy", "weight"):
            assert own[column] == pytest.approx(rows[column].to_list(), rel=6e-4)
        assert {len(text) for text in own["levels"].values()} == {len(rows)}
        assert own["levels"]["rank"] == levels(rows["rank"].to_list(), MEASURES["rank"])
    # The solution that opens is the one with the largest token of those that are shown.
    named = results.table("token_contrast").join(view, on=["task", "solution"], how="semi", maintain_order="left")
    assert list(of)[0] == named.select("task", "solution").row(0)
    opens = dict(zip(("task", "solution"), list(of)[0]))
    first, second = (view.filter(candidate=name, step=20, **opens) for name in data["names"])
    by = data["solutions"][0]["differences"]["20"]["contribution"]
    wanted = (first["share"] - second["share"]) / 2  # tasks
    assert by == pytest.approx(wanted.to_list(), rel=6e-4)


def test_tables_list_the_largest_of_either_sign_and_where_they_are_shown(results):
    section = token_section(results)
    texts, *tables = [block for block in section.blocks if isinstance(block, Table)]
    rows, data = tables[0].dataset.frame, data_of(section)
    contrast = results.table("token_contrast")
    first, second = contrast.select("first", "second").row(0)
    assert [table.title for table in tables] == [f"Tokens that speak for {name}" for name in (first, second)]
    values = contrast["contribution"]
    for table, wanted in zip(tables, (values.filter(values > 0), values.filter(values < 0))):
        assert rows.filter(**table.where)["contribution"].to_list() == wanted.head(100).to_list() != []
        assert table.columns[3].title == f"Mean rank: {second}"
    shown = rows.drop_nulls("in_view")
    assert 0 < len(shown)
    for row in shown.iter_rows(named=True):
        solution, token = map(int, row["in_view"].split(":"))
        assert data["solutions"][solution]["positions"][0][token] == row["position"]
        assert data["solutions"][solution]["solution"] == row["solution"]
    markup = page_html("tiny", [section], "")
    assert len(re.findall(r'<tr [^>]*data-key="', markup)) == len(shown)
    summed = dict(contrast.group_by("text").agg(pl.col("contribution").sum()).rows())
    of_text = texts.dataset.frame
    assert len(of_text) == 10 and of_text["summed"].abs().is_sorted(descending=True)
    assert of_text["summed"][0] == pytest.approx(max(summed.values(), key=abs))
    assert "ranks are means of seeds" in tables[0].caption
    assert "the last corpus of the ranking" in section.blocks[0].text and "means of seeds" in section.blocks[0].text


def test_where_less_is_better_a_contribution_is_that_of_the_table(tmp_path):
    results = made(tmp_path, proxy=Proxy(statistic="cross_entropy", weighting="uniform"), seeds=[0])
    data, contrast = data_of(token_section(results)), results.table("token_contrast")
    of = {(row["solution"], row["position"]): row["contribution"] for row in contrast.iter_rows(named=True)}
    for solution in data["solutions"]:
        own, by = solution["differences"]["20"], []
        for position, value in zip(solution["positions"][0], own["contribution"]):
            by.append(of[solution["solution"], position])
            assert value == pytest.approx(by[-1], rel=6e-4)
        assert all(
            (value > 0) == (level in "ab") for value, level in zip(by, own["levels"]["contribution"]) if level != "c"
        )
    assert "ean rank" not in page_html("tiny", [token_section(results)], "")


def test_texts_and_names_are_escaped(tmp_path):
    results = made(tmp_path)
    for name in ("token_view", "token_contrast"):
        texts = pl.col(pl.String).str.replace_all("good", "g\"'<b>").str.replace_all("sums", "</script><i>")
        write_table(results.table(name).with_columns(texts), tmp_path / f"{name}.parquet", "made up")
    results = StudyResults(Study(study="tiny"), tmp_path, tasks=results.tasks)
    html = page_html("tiny", [token_section(results)], "")
    assert "<b>" not in html and "<i>" not in html and "&lt;i&gt;" in html
    assert html.count("</script>") == html.count("<script")
    json.loads(re.search(r'id="token-data">(.*?)</script>', html, re.DOTALL)[1])


def test_a_study_without_its_own_statistics_says_so(tmp_path):
    section = token_section(StudyResults(Study(study="tiny"), tmp_path))
    assert [type(block) for block in section.blocks] == [Note]
    assert "made where a study runs models" in section.blocks[0].text


def test_one_candidate_has_no_difference(tmp_path):
    section = token_section(made(tmp_path, corpora=["only"], seeds=[0]))
    data = data_of(section)
    assert "only candidate" in section.blocks[0].text
    assert data["names"] == ["only"] and data["solutions"][0]["differences"] == {}
    assert "Difference" not in section.blocks[1].markup


def test_other_tokenizers_have_their_own_tokens_and_no_difference(tmp_path):
    section = token_section(made(tmp_path, corpora=["good", "bad"], tokenizers={"bad": pairs_of_bytes}))
    about, caution, view, table, *others = section.blocks
    assert caution.is_caution and "different tokenizers" in caution.text
    [solution, *_] = data_of(section)["solutions"]
    assert len(solution["positions"][0]) != len(solution["positions"][1]) and solution["differences"] == {}
    assert [of.title for of in (table, *others)] == [
        f"Solutions that speak for {name}" for name in data_of(section)["names"]
    ]
    assert "text" not in table.dataset.frame.columns and "Difference" not in view.markup


def test_levels_follow_their_bounds():
    assert levels([1, 2, 5, 6, 20.5, 21, 100, 101, 1001, None], MEASURES["rank"]) == "0112233450"
    assert levels([0, 0.1, 0.5, 2.9, 3, 5], MEASURES["entropy"]) == "012345"


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=1), st.sampled_from(sorted(MEASURES)))
def test_a_difference_seen_from_the_other_side_is_its_mirror(pairs, measure):
    first, second = zip(*pairs)
    there, back = difference_levels(first, second, measure), difference_levels(second, first, measure)
    assert there.translate(str.maketrans("abde", "edba")) == back


def test_a_difference_favours_the_one_that_reads_better():
    assert difference_levels([1, 2, 3, 8], [4, 3, 3, 2], "rank") == "abce"
    assert difference_levels([0.1, 2.0], [1.5, 1.7], "cross_entropy") == "ad"
    assert difference_levels([2.0, None], [0.5, 1.0], "weight") == "ac"
    assert difference_levels([0.5, -0.1, 0.01, 0], [0, 0, 0, 0], "contribution") == "adcc"


def test_what_cannot_be_seen_is_marked():
    assert marked("a\n\tb") == "a␍\n⇥\tb".replace("␍", "⏎") and in_line("a\nb") == "a⏎b"
    assert marked("\x1b[31m\u202e") == "\\x1b[31m\\u202e" and marked("") == "⋯"
