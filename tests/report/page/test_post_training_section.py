"""The section on post-training: its numbers are the tables', and a study without recipes has none."""

import polars as pl
import pytest
from page_studies import finished_models, finished_post_training
from proxycast.cluster.status.summary import answer_lines
from proxycast.report.page.answers.claim_facts import claim_lines
from proxycast.report.page.answers.models_answer import model_answer
from proxycast.report.page.contents import study_page
from proxycast.report.page.of_models.model_sections import model_sections
from proxycast.report.page.of_models.post_training_section import post_training_section
from section_checks import (
    assert_lists_name_what_is_there,
    assert_rows_are_the_tables,
    blocks_of,
    cells_of,
    datasets_of,
    drawn,
    marks,
    notes_of,
    page_of,
    without,
)

OWN = [f"model_selection/{name}" for name in ("claims", "populations", "recipe_shifts", "recipe_means")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return finished_post_training(
        tmp_path_factory.mktemp("results"), recipes=["none", "sft", "rl", "overtrained_strong"]
    )


@pytest.fixture(scope="module")
def section(results):
    return post_training_section(results)


def test_every_row_is_one_of_its_table(results, section):
    assert_rows_are_the_tables([section], {name: results.table(name) for name in OWN})
    assert_lists_name_what_is_there([section])
    assert {data.table for data in datasets_of([section]).values()} == set(OWN)


def test_the_claim_is_told_row_by_row_and_counted(results, section):
    claims = results.table("model_selection/claims")
    cells = cells_of(page_of([section]), "models-claims")
    assert [(row[0], row[-2]) for row in cells] == claims.select("population", "verdict").rows()
    counts = claims["verdict"].value_counts()
    note = notes_of([section])[0].text
    for verdict, count in counts.rows():
        assert f"{count} {verdict}" in note
    assert {"supported", "undecided"} <= set(counts["verdict"])


def test_the_claim_stands_in_the_answer_and_at_the_end_of_a_run(results):
    answer, claims = model_answer(results), results.table("model_selection/claims")
    told = next(fact.text for fact in answer.facts if fact.label == "Claim")
    assert told.startswith(f"of {len(claims)} comparisons fixed in advance: ")
    assert any(line.startswith("  claim: of ") for line in answer_lines(answer))
    heading, *lines = claim_lines(claims)
    assert heading == "claim fixed in advance:" and len(lines) == len(claims)
    row = claims.filter(population="within_base", method="margin/uniform", baseline="bits_per_byte", tail="tokens").row(
        0, named=True
    )
    line = next(line for line in lines if "models of one base: margin/uniform (tokens) over bits_per_byte" in line)
    assert line == (
        f"  supported among models of one base: margin/uniform (tokens) over bits_per_byte (tokens), rho "
        f"{row['spearman']:.2f} against {row['baseline_spearman']:.2f}, difference {row['difference']:+.2f} "
        f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]"
    )
    assert any(line.endswith("over rbridge, rbridge is left out: it is not known of these models") for line in lines)
    assert claim_lines(None) == []


def test_every_method_is_drawn_in_every_population(results, section):
    chart = blocks_of([section])["models-populations"]
    rows = (
        results.table("model_selection/populations")
        .filter(pl.col("tail").is_in(["tokens", ""]), pl.col("method") != "chance")
        .drop_nulls("spearman")
    )
    svg = drawn(chart)
    assert marks(svg, "symbol") >= len(rows) == len(chart.datasets[0].frame)
    assert marks(svg, "rule") >= rows["low"].count()
    assert set(chart.datasets[0].frame["population"]) == {"all", "bases", "post_trained", "within_base"}


def test_shifts_are_drawn_for_one_statistic_and_task_at_a_time(results, section):
    chart = blocks_of([section])["models-shifts"]
    rows = results.table("model_selection/recipe_shifts").filter(
        task="all", statistic="normalized_entropy", tail="tokens"
    )
    assert len(rows) == 18 and chart.marks == 18 + 3
    assert marks(drawn(chart), "symbol") >= 18 + 3
    assert [select.label for select in chart.selects] == ["Statistic", "Task"]


@pytest.mark.parametrize("name", OWN)
def test_a_study_that_lacks_a_table_has_a_page(results, name):
    rest = without(results, name)
    assert name not in {data.table for data in datasets_of(model_sections(rest)).values()}
    assert page_of([post_training_section(rest)])


def test_studies_without_recipes_have_no_such_section(tmp_path):
    plain = finished_models(tmp_path)
    assert post_training_section(plain).blocks == [] and ">Post-training<" not in study_page(plain)
    assert not [fact for fact in model_answer(plain).facts if fact.label == "Claim"]
