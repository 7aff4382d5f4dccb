"""Sections of a model selection: their numbers are the tables', and a study that lacks tables still has a page."""

import polars as pl
import pytest
from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments.choosing.model_choices import model_choice_tables
from proxycast.experiments.model_selection.known_models import known_models
from proxycast.experiments.model_selection.model_counts import model_count_table
from proxycast.experiments.model_selection.model_ranking import ranking_tables
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.experiments.model_selection.writer_comparison import WRITERS_SCHEMA
from proxycast.report.page.of_models.model_sections import MOST_DRAWN, MOST_PAIRED, model_sections
from proxycast.report.page.of_models.solution_numbers import writers_compared
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
    results_of,
    without,
)
from selection_study import CHECKPOINTS, FAST, MODELS, TASKS, of_solutions_of, proxies_from, targets_of

NAMED = [Proxy(statistic="top5_accuracy", weighting="entropy")]
TARGET = Target(metric="accuracy", table="truth.csv")
DERIVED = {"models_ranks"}  # means over folds


@pytest.fixture(scope="module")
def tables():
    of_solutions = of_solutions_of(tails=("tokens", "bytes"), noise=1.5)
    proxies, scorers = proxies_from(of_solutions), ModelSelectionOptions(scorers=["univariate"])
    given = (CHECKPOINTS, targets_of(), proxies, TASKS, TARGET, FAST, scorers, of_solutions.lazy(), NAMED)
    found = {name: t for name, t in model_selection_tables(*given).items() if isinstance(t, pl.DataFrame)}
    found |= model_choice_tables(found["predictions"], found["ranking"], found["pairs"], 1, FAST)
    known = known_models(CHECKPOINTS, proxies, targets_of(), TASKS, "accuracy")
    found["solution_counts"] = model_count_table(known, of_solutions.lazy(), NAMED, FAST)
    rows = [(w, n, d, "univariate", 0.5 + d / 9, 0.7) for w in ("all", "a", "b") for n in (3, None) for d in (0, 1)]
    found["writers"] = pl.DataFrame(rows, WRITERS_SCHEMA, orient="row")
    return {f"model_selection/{name}": table for name, table in found.items() if len(table)}


@pytest.fixture(scope="module")
def sections(tables, tmp_path_factory):
    return model_sections(results_of(tables, tmp_path_factory.mktemp("results"), target=TARGET))


def ranked(models=MODELS, tasks=TASKS, solutions=4, rename=None):
    """The tables of a study without a truth."""
    of_solutions = of_solutions_of(tasks=tasks, solutions=solutions, tails=("tokens",), noise=2.0)
    of_solutions = of_solutions.filter(pl.col("checkpoint").is_in(models))
    known = known_models(
        CHECKPOINTS.filter(pl.col("checkpoint").is_in(models)), proxies_from(of_solutions), None, tasks
    )
    found = ranking_tables(known, of_solutions.lazy(), NAMED, FAST)
    names = ["model", "better", "worse"]
    return {
        f"model_selection/{name}": table.with_columns(pl.col([n for n in names if n in table.columns]).replace(rename))
        if rename
        else table
        for name, table in found.items()
    }


def test_every_row_is_one_of_its_table_and_every_list_names_what_is_there(sections, tables):
    assert_rows_are_the_tables(sections, tables, DERIVED)
    assert_lists_name_what_is_there(sections)
    assert {data.table for data in datasets_of(sections).values()} == set(tables)  # nothing is left out


def test_the_table_shows_the_order_of_the_first_method_over_all_tasks(sections, tables):
    ranking = tables["model_selection/ranking"]
    first = ranking.row(0, named=True)
    own = ranking.filter(task="all", method=first["method"], tail=first["tail"])
    shown = [(row[0], row[2]) for row in cells_of(page_of(sections), "models-ranking")]
    expected = [
        (row["model"], f"{row['place']:g} [{row['place_low']:g}, {row['place_high']:g}]")
        for row in own.iter_rows(named=True)
    ]
    assert shown == expected
    assert marks(drawn(blocks_of(sections)["models-places"]), "symbol") >= len(MODELS)


def test_undecided_pairs_are_counted_and_marked(sections, tables):
    pairs = tables["model_selection/pairs"]
    first = pairs.row(0, named=True)
    own = pairs.filter(task="all", method=first["method"], tail=first["tail"])
    undecided = own.filter(~pl.col("told_apart"))
    block = blocks_of(sections)["models-pairs"]
    assert 0 < len(undecided) < len(own)
    assert block.title == f"{len(undecided)} of {len(own)} pairs of models cannot be told apart"
    assert (
        block.markup.count(">?</td>") == len(undecided) and block.markup.count(">&gt;</td>") == own["told_apart"].sum()
    )


def test_marks_of_means_have_tooltips_for_they_cover_a_single_draw(tables):
    [block] = writers_compared(tables["model_selection/writers"].filter(draw=0))
    points = [layer["encoding"] for layer in block.spec["layer"] if layer["mark"]["type"] == "point"]
    assert len(points) == 2
    fields = [{shown["field"] for shown in encoding["tooltip"]} for encoding in points]
    assert fields == [{"name", "problems", "draw", "shown"}, {"name", "problems", "draws", "shown"}]
    assert marks(drawn(block), "symbol") == 2 * 6  # three writers, two numbers of problems


def test_predicted_ranks_are_means_over_folds(sections, tables):
    predictions = tables["model_selection/predictions"].filter(split="two_tasks")
    for row in datasets_of(sections)["models_ranks"].frame.iter_rows(named=True):
        key = {name: row[name] for name in ("task", "method", "model")}
        own = predictions.filter(pl.col("tail").is_in(["tokens", ""]), **key)["predicted_rank"].to_list()
        assert row["mean_rank"] == pytest.approx(sum(own) / len(own))
        assert (row["least"], row["greatest"], row["folds"]) == (min(own), max(own), len(own))


def test_a_grid_of_proxies_shows_each_of_them(sections, tables):
    block = blocks_of(sections)["models-proxies"]
    own = tables["model_selection/proxies"].filter(pl.col("tail").is_in(["tokens", ""]), task="all")
    first = block.markup.split("data-shown-for")[1]
    for value in own["spearman"].drop_nulls():
        assert f">{value:.2f}</td>" in first


def test_every_chart_can_be_drawn(sections):
    charts = [block for block in blocks_of(sections).values() if hasattr(block, "spec")]
    assert len(charts) == 8
    for chart in charts:
        assert "NaN" not in drawn(chart) and chart.alt and chart.caption, chart.id


def test_without_some_table_the_page_stands(tables, tmp_path):
    results = results_of(tables, tmp_path, target=TARGET)
    for left_out in tables:
        sections = model_sections(without(results, left_out))
        assert datasets_of(sections)
        assert left_out not in {data.table for data in datasets_of(sections).values()}
        if left_out.endswith(("/ranking", "/summary")):
            assert page_of(sections)
    assert [s.blocks for s in model_sections(results_of({}, tmp_path / "nothing"))] == [[]] * 4


def test_without_a_truth_the_order_is_shown_and_the_page_says_that_nothing_is_judged(tmp_path):
    tables = ranked()
    sections = model_sections(results_of(tables, tmp_path))
    assert_rows_are_the_tables(sections, tables)
    assert any("nothing is judged" in note.text and note.is_caution for note in notes_of(sections))
    assert not sections[1].blocks and not sections[2].blocks
    assert [cells[0] for cells in cells_of(page_of(sections), "models-ranking")][0] in MODELS


def test_two_models_one_task_and_one_solution(tmp_path):
    sections = model_sections(results_of(ranked(MODELS[:2], TASKS[:1], 1), tmp_path))
    blocks = blocks_of(sections)
    assert not blocks["models-places"].selects and "No intervals" in blocks["models-places"].caption
    assert any("Nothing could be resampled" in note.text for note in notes_of(sections))
    assert len(cells_of(page_of(sections), "models-ranking")) == 2


def test_names_of_models_are_text(tmp_path):
    name = "<b onclick='x'>\"a\"&</b>"
    html = page_of(model_sections(results_of(ranked(rename={MODELS[0]: name}), tmp_path)))
    assert "<b onclick" not in html
    assert name in [cells[0] for cells in cells_of(html, "models-ranking")]


def test_of_many_models_the_best_are_drawn_and_all_stand_in_the_table(tmp_path):
    count = 90
    names = [f"m{n}" for n in range(count)]
    ranking = ranked()["model_selection/ranking"].filter(method="bits_per_byte").head(1)
    ranking = pl.concat([ranking] * count).with_columns(
        pl.Series("model", names), place=pl.int_range(1.0, count + 1, dtype=pl.Int64).cast(pl.Float64)
    )
    pairs = pl.DataFrame({"better": [a for a in names for b in names if a < b]}).with_columns(
        worse=pl.Series([b for a in names for b in names if a < b]),
        **{name: pl.lit(ranking[name][0]) for name in ("task", "method", "kind", "tail")},
        difference=1.0, difference_low=0.5, difference_high=1.5, told_apart=True,
    )  # fmt: skip
    sections = model_sections(
        results_of({"model_selection/ranking": ranking, "model_selection/pairs": pairs}, tmp_path)
    )
    data = datasets_of(sections)
    assert data["models_places"].frame["model"].to_list() == names[:MOST_DRAWN]
    assert len(data["models_pairs"].frame) == MOST_PAIRED * (MOST_PAIRED - 1) // 2
    assert len(cells_of(page_of(sections), "models-ranking")) == count


def test_ties_everywhere(tables, tmp_path):
    """Every model has the same score, no pair is decided, no rank correlation exists."""

    def tied(table: pl.DataFrame) -> pl.DataFrame:
        middle = {"place": 6.5, "place_low": 1.0, "place_high": 12.0, "score": 0.0, "score_low": 0.0, "score_high": 0.0}
        middle |= {"told_apart": False, "spearman": None, "low": None, "high": None, "predicted_rank": 6.5}
        new = {name: pl.lit(value, table.schema[name]) for name, value in middle.items() if name in table.columns}
        return table.with_columns(**new)

    same = {name: tied(table) for name, table in tables.items()}
    sections = model_sections(results_of(same, tmp_path, target=TARGET))
    blocks = blocks_of(sections)
    assert blocks["models-pairs"].title.startswith("66 of 66 pairs")
    assert "models-methods" not in blocks and "models-agreement" not in blocks
    assert any("No method could be judged" in note.text and note.is_caution for note in notes_of(sections))
    assert page_of(sections)


def test_judges_say_what_they_rest_on_and_where_they_do_not_apply(tmp_path):
    row = {"judge": "ours", "study": "a", "scorer": "univariate", "tail": "tokens", "task": "all", "model": "m0"}
    row |= {"score": 1.0, "place": 1.0, "place_low": 1.0, "place_high": 2.0, "metric": "accuracy", "predicted": 0.61}
    row |= {"predicted_low": 0.5, "predicted_high": 0.72, "spearman": 0.8, "low": 0.6, "high": 0.9}
    row |= {"evidence": "rho 0.8 on 4 tasks", "warnings": "larger models than the judge saw"}
    tables = ranked() | {"model_selection/judged": pl.DataFrame([row])}
    sections = model_sections(results_of(tables, tmp_path))
    said = {note.text: note.is_caution for note in notes_of(sections)}
    assert said["larger models than the judge saw"] and not said["Judge ours: rho 0.8 on 4 tasks"]
    [cells] = cells_of(page_of(sections), "models-judged")
    assert cells == ["ours", "univariate", "m0", "1 [1, 2]", "0.61 [0.5, 0.72]", "0.80 [0.60, 0.90]"]


def test_of_many_predictions_the_leading_method_is_kept(tables, tmp_path):
    predictions = tables["model_selection/predictions"].filter(split="two_tasks")
    many = pl.concat([predictions.with_columns(task=pl.format("{} {}", "task", pl.lit(n))) for n in range(40)])
    ranking = tables["model_selection/ranking"].filter(method="bits_per_byte", tail="tokens")
    rest = {"model_selection/ranking": ranking, "model_selection/predictions": many}
    sections = model_sections(results_of(rest, tmp_path, target=TARGET))
    shown = datasets_of(sections)["models_ranks"].frame
    count, every = shown["method"].n_unique(), many.filter(pl.col("method") != "chance")["method"].n_unique()
    assert len(shown) <= 4000 and "bits_per_byte" in set(shown["method"])
    assert f"{count} of {every} methods" in blocks_of(sections)["models-ranks"].caption
