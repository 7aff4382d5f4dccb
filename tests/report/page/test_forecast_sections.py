"""Sections of the forecasts: their numbers are the tables', long tables are thinned out, cautions stand as cautions."""

import forecasting_study
import ladder_study
import polars as pl
import pytest
from proxycast.config.truth import Target
from proxycast.report.page.of_forecasts.forecast_sections import MOST_PAIRS, OBSERVED_ROWS, PATH_ROWS, forecast_sections
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

TARGET = Target(metric="accuracy", table="truth.csv")
OPTIONS = {"rehearsal": 0.5, "intervals": "conformal"}


def named(tables):
    return {f"forecasting/{name}": table for name, table in tables.items() if len(table)}


@pytest.fixture(scope="module")
def tables():
    return named(forecasting_study.run(forecasting_study.study(runs=2, sd=0.004), **OPTIONS))


def sections_of(tables, folder, **changes):
    options = forecasting_study.options(**(OPTIONS | changes))
    return forecast_sections(results_of(tables, folder, target=TARGET, forecasting=options))


@pytest.fixture(scope="module")
def sections(tables, tmp_path_factory):
    return sections_of(tables, tmp_path_factory.mktemp("results"))


def test_every_row_is_one_of_its_table_and_every_list_names_what_is_there(sections, tables):
    assert_rows_are_the_tables(sections, tables)
    assert_lists_name_what_is_there(sections)
    known = {data.table for data in datasets_of(sections).values()}
    assert known == set(tables) - {"forecasting/intervals"}  # whose coverage a sentence tells


def test_curves_are_those_of_the_chosen_method_and_of_compute_alone(sections, tables):
    [chosen] = tables["forecasting/rehearsal"].filter("chosen")["method"]
    paths = datasets_of(sections)["forecast_paths"].frame
    assert set(paths["method"]) == {chosen, "compute_only"}
    expected = tables["forecasting/paths"].filter(pl.col("method").is_in(set(paths["method"])), pl.col("tokens") > 0)
    assert len(paths) == len(expected)  # a small study is not thinned out
    assert any(chosen.split("/")[0].split("_")[0] in note.text.lower() for note in notes_of(sections))
    assert set(datasets_of(sections)["forecast_horizons"].frame["method"]) == {chosen}


def test_the_truth_before_and_behind_the_cut_is_drawn(sections, tables):
    observed = tables["forecasting/observed"].filter(pl.col("series") == "truth", pl.col("tokens") > 0)
    block = blocks_of(sections)["forecast-curves"]
    pair = next(iter(block.selects[0].options))
    assert len(datasets_of(sections)["forecast_observed"].frame) == len(observed)
    run, task = pair.split(" · ")
    horizons = tables["forecasting/forecasts"].filter(run=run, task=task, method="compute_only")
    own = observed.filter(run=run, task=task)
    assert marks(drawn(block), "symbol") >= len(own) + len(horizons)


def test_the_errors_are_those_of_the_table_and_the_chosen_method_is_named_once(sections, tables):
    errors = tables["forecasting/errors"].filter(pl.col("method") != "chosen")
    shown = cells_of(page_of(sections), "forecast-error-table")
    for cells, row in zip(shown, errors.iter_rows(named=True), strict=True):
        low, high = row["rmse_low"], row["rmse_high"]
        ends = "" if low is None else f" [{low:.3g}, {high:.3g}]"
        assert cells[4] == ("–" if row["rmse"] is None else f"{row['rmse']:.3g}{ends}")
        assert cells[2] == row["task"] and cells[3] == f"{row['horizon']:g}"
    assert len({cells[0] for cells in shown if "chosen in advance" in cells[0]}) == 1


def test_every_chart_can_be_drawn(sections):
    charts = [block for block in blocks_of(sections).values() if hasattr(block, "spec")]
    assert [chart.id for chart in charts] == ["forecast-curves", "forecast-errors", "forecast-coverage"]
    for chart in charts:
        assert "NaN" not in drawn(chart) and chart.alt and chart.caption


def test_without_some_table_the_page_stands(tables, tmp_path):
    results = results_of(tables, tmp_path, target=TARGET, forecasting=forecasting_study.options(**OPTIONS))
    for left_out in tables:
        sections = forecast_sections(without(results, left_out))
        assert datasets_of(sections)
        if left_out.endswith(("/paths", "/summary")):
            assert page_of(sections)
        assert left_out not in {data.table for data in datasets_of(sections).values()}
    assert [section.blocks for section in sections_of({}, tmp_path / "nothing")] == [[], []]


def test_without_a_truth_beyond_the_cut_nothing_is_judged_and_the_page_says_so(tmp_path):
    steps = [step for step in forecasting_study.STEPS if step <= forecasting_study.CUT]
    tables = named(forecasting_study.run(forecasting_study.study(steps=steps), tasks=["algebra"], **OPTIONS))
    sections = sections_of(tables, tmp_path)
    assert any("cannot be judged yet" in note.text for note in notes_of(sections))
    assert not blocks_of(sections)["forecast-curves"].selects  # one run, one task
    assert page_of(sections)


def test_cautions_are_shown_as_such_of_the_run_and_task_that_is_chosen(tables, tmp_path):
    [chosen] = tables["forecasting/rehearsal"].filter("chosen")["method"]
    first = tables["forecasting/paths"].row(0, named=True)
    here = (pl.col("run") == first["run"]) & (pl.col("task") == first["task"]) & (pl.col("method") == chosen)
    doubt = tables["forecasting/forecasts"].with_columns(
        caution=pl.when(here).then(pl.lit("<i>doubt</i>")).otherwise(pl.lit(""))
    )
    block = blocks_of(sections_of(tables | {"forecasting/forecasts": doubt}, tmp_path))["forecast-cautions"]
    count = tables["forecasting/paths"].select("run", "task").n_unique()
    assert block.markup.count("note caution") == 1 and block.markup.count("None for ") == count - 1
    assert "&lt;i&gt;doubt" in block.markup and "<i>" not in block.markup
    assert block.markup.count(" hidden") == count - 1


def test_a_large_study_is_thinned_out_and_says_so(tables, tmp_path):
    runs = pl.DataFrame({"number": range(MOST_PAIRS)})
    many = {}
    for name in ("paths", "observed"):
        first = tables[f"forecasting/{name}"].filter(pl.col("run") == pl.col("run").first())
        many[f"forecasting/{name}"] = (
            runs.join(first, how="cross").with_columns(run=pl.format("r{}", "number")).drop("number")
        )
    sections = sections_of(many, tmp_path)
    data = datasets_of(sections)
    assert len(data["forecast_paths"].frame) <= PATH_ROWS and len(data["forecast_observed"].frame) <= OBSERVED_ROWS
    assert any(f"first {MOST_PAIRS} of {2 * MOST_PAIRS} runs and tasks" in note.text for note in notes_of(sections))
    keys = ["run", "task", "method"]
    shown, every = data["forecast_paths"].frame, many["forecasting/paths"].filter(pl.col("tokens") > 0)
    ends = [pl.col("tokens").min().alias("first"), pl.col("tokens").max().alias("last")]
    thinned, whole = (frame.group_by(keys).agg(ends) for frame in (shown, every))
    assert len(thinned.join(whole, on=[*keys, "first", "last"])) == len(thinned)


def test_a_ladder_has_its_two_step_law(tmp_path):
    found = ladder_study.forecast(
        *ladder_study.study(sd=0.003), "accuracy", [ladder_study.TASK], ladder_study.options()
    )
    tables = named(found)
    sections = forecast_sections(results_of(tables, tmp_path, target=TARGET, forecasting=ladder_study.options()))
    assert_rows_are_the_tables(sections, tables)
    assert "two_step" in set(datasets_of(sections)["forecast_paths"].frame["method"])
    law = tables["forecasting/two_step"].filter(kind="run", method="two_step")
    assert marks(drawn(blocks_of(sections)["forecast-two-step"]), "symbol") >= len(law)
