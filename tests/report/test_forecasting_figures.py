"""Figures of forecasts of made-up training curves; the tables are those of `forecasting.forecast`."""

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from matplotlib.colors import to_hex
from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.forecasting.conformal import about_rehearsals
from proxycast.experiments.forecasting.protocol import forecast
from proxycast.report import forecasting_figures as plots
from proxycast.report import style

TASKS = ("dates", "sorting")
PROXIES = ("cross_entropy/uniform", "top1_accuracy/uniform", "margin/uniform")
STEPS = (10, 20, 30, 40, 60, 80, 100, 150, 200, 400, 900, 1300, 1800)


def study(runs=2, tasks=TASKS, steps=STEPS, sd=0.006, seed=0, **changes):
    """The tables of forecasts up to step 100 and beyond, of runs whose loss falls by a power law."""
    rng = np.random.default_rng(seed)
    checkpoints, targets, proxies = [], [], []
    for run, step in ((run, step) for run in range(runs) for step in steps):
        name = f"r{run}-{step}"
        checkpoints.append((name, f"web-4M-s{run}", step, step * 65536))
        for number, task in enumerate(tasks):
            loss = 1.5 + 0.1 * run + (0.5 + 0.1 * number) * (step / 100) ** -(0.3 + 0.05 * number)
            accuracy = np.clip(0.9 - 0.2 * loss + sd * rng.standard_normal(), 0, 1)
            targets.append((name, task, "accuracy", accuracy, 500))
            for key, value in {
                ("cross_entropy", "uniform"): loss,
                ("top1_accuracy", "uniform"): 0.9 - 0.25 * loss,
                ("margin", "uniform"): 0.1 * loss**2,
                ("expert_cross_entropy", "none"): loss,
            }.items():
                proxies.append((name, task, *key, value + sd * rng.standard_normal(), 0.01))
    options = {"fit_up_to_step": 100, "proxies": PROXIES, "bootstrap_replicates": 100} | changes
    key = ["checkpoint", "task", "statistic", "weighting", "value", "standard_error"]
    return forecast(
        pl.DataFrame(checkpoints, schema=["checkpoint", "run", "step", "tokens"], orient="row"),
        pl.DataFrame(targets, schema=["checkpoint", "task", "metric", "value", "n"], orient="row"),
        pl.DataFrame(proxies, schema=key, orient="row"),
        "accuracy",
        tasks,
        ForecastingOptions(**options),
    )


def draw(tables, run="web-4M-s0"):
    (chosen,) = tables["rehearsal"].filter("chosen")["method"]
    return {
        "error_over_horizon": plots.error_over_horizon(tables["errors"], chosen),
        "forecast_coverage": plots.forecast_coverage(
            tables["errors"], chosen, 0.9, about_rehearsals(tables["intervals"], chosen)
        ),
        "forecast_curves": plots.forecast_curves(tables["observed"], tables["paths"], run, "accuracy"),
        "proxy_curves": plots.proxy_curves(tables["observed"], tables["fits"], run),
    }


@pytest.fixture(scope="module")
def tables():
    return study()


@pytest.fixture(scope="module")
def figures(tables):
    return draw(tables)


def words(figure):
    return [text.get_text() for text in texts(figure)[0]]


def line_of(axes, **wanted):
    """The lines of `axes` that have these properties."""
    return [line for line in axes.lines if all(getattr(line, f"get_{key}")() == value for key, value in wanted.items())]


def test_no_text_overlaps_another_and_none_is_cut(figures):
    for name, figure in figures.items():
        assert overlapping(figure) == [], name


def test_the_same_tables_give_the_same_svg(tables, tmp_path):
    for folder in "ab":
        style.save(plots.error_over_horizon(tables["errors"], "pooled"), tmp_path / folder)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def repeated(tables, tasks):
    """The observations, forecasts and fits of one run and task, under the names of so many tasks."""
    names = pl.DataFrame({"task": [f"task {n}" for n in range(tasks)]})
    of_one = {name: tables[name].filter(run="web-4M-s0", task=TASKS[0]) for name in ("observed", "paths", "fits")}
    return {name: table.drop("task").join(names, how="cross") for name, table in of_one.items()}


@pytest.mark.parametrize("tasks", [1, 10])
def test_few_and_many_tasks_are_drawn_without_overlaps(tables, tasks):
    more = repeated(tables, tasks)
    if tasks == 1:  # as where a study names one proxy
        more["paths"] = more["paths"].filter(pl.col("method") != "pooled")
    curves = plots.forecast_curves(more["observed"], more["paths"], "web-4M-s0", "accuracy")
    proxies = plots.proxy_curves(more["observed"], more["fits"], "web-4M-s0")
    for figure in (curves, proxies):
        assert overlapping(figure) == []
        assert {f"task {n}" for n in range(tasks)} <= set(words(figure))


def test_errors_are_drawn_with_their_intervals(tables, figures):
    (axes,), errors = figures["error_over_horizon"].axes, tables["errors"].filter(task="all")
    for method in ("pooled", "compute_only", "last_value", "expert_cross_entropy", "other_runs"):
        rows = errors.filter(method=method).sort("horizon")
        look = plots.forecaster_look(method)
        (line,) = line_of(axes, color=look.colour, marker=look.marker)
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (
            rows["horizon"].to_list(),
            rows["rmse"].to_list(),
        )
        (bars,) = [c for c in axes.collections if to_hex(c.get_color()[0]) == to_hex(look.colour)]
        expected = rows.select("rmse_low", "rmse_high").to_numpy()
        np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], expected)
    behind = sorted(tuple(line.get_ydata()) for line in line_of(axes, color="0.8"))
    others = errors.filter(pl.col("method").is_in([*PROXIES, "constant", "logistic"])).sort("horizon")
    assert behind == sorted(tuple(rows["rmse"]) for _, rows in others.group_by("method"))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2×", "4×", "9×", "18×"]


def test_the_method_chosen_in_advance_is_named_and_drawn_once(tables):
    for chosen in ("last_value", "margin/uniform"):
        figure = plots.error_over_horizon(tables["errors"], chosen)
        label = plots.forecaster_name(chosen).replace(", ", ",\n") + "\n(chosen in advance)"
        assert words(figure).count(label) == 1
        assert sum("chosen in advance" in text for text in words(figure)) == 1
    assert not [text for text in words(plots.error_over_horizon(tables["errors"], None)) if "chosen" in text]


def test_coverage_in_rehearsals_is_told(figures):
    assert any(
        "In rehearsals before the cut, the intervals of " in text for text in words(figures["forecast_coverage"])
    )


def test_coverage_is_drawn_against_the_nominal_one(tables, figures):
    (axes,) = figures["forecast_coverage"].axes
    rows = tables["errors"].filter(task="all", method="last_value").sort("horizon")
    (line,) = line_of(axes, marker="D")
    assert line.get_ydata().tolist() == rows["coverage"].to_list()
    assert [line.get_ydata()[0] for line in line_of(axes, color="0.35")] == [0.9]
    (band,) = axes.collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert rows["forecasts"].to_list() == [4] * 4
    # Of 4 with probability 0.9: 0.4% for 1 or fewer, 5.2% for 2 or fewer.
    assert (low, high) == (0.5, 1.0)


def test_curves_show_what_was_fitted_and_what_was_not(tables, figures):
    figure, paths = figures["forecast_curves"], tables["paths"].filter(run="web-4M-s0")
    assert [axes.get_title(loc="left") for axes in figure.axes] == sorted(TASKS)
    for axes in figure.axes:
        truth = tables["observed"].filter(run="web-4M-s0", series="truth", task=axes.get_title(loc="left"))
        points = [line for line in axes.lines if line.get_marker() == "o"]
        by_face = {line.get_markerfacecolor(): sorted(zip(*line.get_data())) for line in points}
        expected = {
            face: sorted(rows.select("tokens", "value").rows())
            for face, rows in (("0.15", truth.filter("in_fit")), ("white", truth.filter(~pl.col("in_fit"))))
        }
        assert by_face == expected and len(expected["0.15"]) == 7 and len(expected["white"]) == 6
        (cut,) = line_of(axes, color="0.35")
        assert cut.get_xdata()[0] == 100 * 65536
        for method in ("pooled", "compute_only"):
            path = paths.filter(method=method, task=axes.get_title(loc="left")).sort("tokens")
            (line,) = line_of(axes, color=plots.forecaster_look(method).colour)
            assert line.get_ydata().tolist() == path["predicted"].to_list()
        bottom, top = axes.get_ylim()
        assert bottom < truth["value"].min() and truth["value"].max() < top
    assert figure.get_supylabel() == "Accuracy, as published (fraction of questions)"


def test_an_interval_without_end_does_not_flatten_a_panel(tables):
    wild = tables["paths"].with_columns(high=pl.col("high") + 100)
    axes = plots.forecast_curves(tables["observed"], wild, "web-4M-s0", "accuracy").axes[0]
    assert axes.get_ylim()[1] < 1


def test_fitted_curves_run_through_the_points(tables, figures):
    axes = figures["proxy_curves"].axes
    assert len(axes) == len(PROXIES) + 1
    panel = next(a for a in axes if a.get_title(loc="left").startswith("Cross-entropy"))
    assert panel.get_ylabel() == "nats per token"
    for place, task in enumerate(sorted(TASKS)):
        loss = tables["observed"].filter(run="web-4M-s0", task=task, series="cross_entropy/uniform").filter("in_fit")
        (curve,) = [line for line in line_of(panel, color=style.COLOURS[place]) if line.get_linestyle() == "-"]
        found = np.interp(loss["tokens"], *curve.get_data())
        assert np.abs(found - loss["value"]).max() < 0.05


@pytest.mark.parametrize(
    "curve, at_cut, at_twice",
    [
        ("power", 0.5, 1 - 0.5 * 2**-0.3),
        ("logistic", 1 - 0.5 / (1 + 4**-0.3), 1 - 0.5 / (1 + 2**-0.3)),
        ("constant", 1, 1),
    ],
)
def test_curves_of_the_table_of_fits(curve, at_cut, at_twice):
    fit = {"curve": curve, "a": 1.0, "b": 0.5, "c": 0.3, "m": 4.0, "tokens_at_cut": 1000.0}
    np.testing.assert_allclose(plots.fitted_curve(fit, np.array([1000.0, 2000.0])), [at_cut, at_twice])


def test_what_cannot_be_drawn_is_told_in_words(tables):
    none = tables["errors"].clear()
    assert any("cannot be judged yet" in text for text in words(plots.error_over_horizon(none, None)))
    assert any("can be judged yet" in text for text in words(plots.forecast_coverage(none, None, 0.9)))
    for figure in (
        plots.forecast_curves(tables["observed"], tables["paths"], "other", "accuracy"),
        plots.proxy_curves(tables["observed"], tables["fits"], "other"),
    ):
        assert any("run other" in text for text in words(figure)) and overlapping(figure) == []


def test_a_single_forecast_has_no_interval_and_says_so(tables):
    one = (
        tables["errors"]
        .filter(horizon=4)
        .with_columns(pl.lit(None, pl.Float64).alias(name) for name in ("rmse_low", "rmse_high"))
    )
    figure = plots.error_over_horizon(one, None)
    assert overlapping(figure) == [] and any("No intervals" in text for text in words(figure))


def test_a_horizon_without_a_truth_is_named(tables):
    half = study(steps=STEPS[:-3])  # up to four times the cut
    figure = plots.error_over_horizon(half["errors"], "pooled")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["2×", "4×", "9×\nnot judged", "18×\nnot judged"][: len(labels)] and len(labels) == 4
    unjudged = "Without a truth, so not judged: 4 at 9×, 4 at 18× (forecasts of each method)."
    for drawn in (figure, plots.forecast_coverage(half["errors"], "pooled", 0.9)):
        assert any(unjudged in text for text in words(drawn)) and overlapping(drawn) == []
    whole = plots.error_over_horizon(tables["errors"], "pooled")
    assert not any("Without a truth" in text for text in words(whole))


def test_what_the_rehearsal_could_not_do_is_told(tables):
    for text in ("No method was chosen in advance: because.", ""):
        figure = plots.error_over_horizon(tables["errors"], None, text)
        assert any("No method was chosen" in found for found in words(figure)) == bool(text)
        assert overlapping(figure) == []


def test_panels_say_what_must_not_be_trusted(tables):
    noise = pl.when(pl.col("task") == TASKS[0]).then(pl.lit("the truth is noise")).otherwise(pl.lit(""))
    last = pl.col("horizon") == 18
    of_pool = "the curve goes above 1; it changes much without the first checkpoints"
    pool = (pl.col("method") == "pooled") & (pl.col("task") == TASKS[1]) & last
    alone = (pl.col("method") == "compute_only") & (pl.col("task") == TASKS[1])
    forecasts = tables["forecasts"].with_columns(
        caution=pl.when(pool).then(pl.lit(of_pool)).otherwise(noise),
        fallback=pl.when(alone).then(pl.lit("constant: it follows no power curve")).otherwise(pl.lit("")),
        without_first=pl.col("predicted") - 0.1,
    )
    drawn = (tables["observed"], tables["paths"], "web-4M-s0", "accuracy", None)
    figure = plots.forecast_curves(*drawn, forecasts)
    assert overlapping(figure) == []
    by_task = {axes.get_title(loc="left"): axes for axes in figure.axes}
    said = {task: [text.get_text() for text in axes.texts] for task, axes in by_task.items()}
    assert said == {TASKS[0]: ["truth: noise"], TASKS[1]: ["Compute only: no curve\nPooled proxies: above 1"]}
    crosses = {task: line_of(axes, marker="x") for task, axes in by_task.items()}
    wanted = forecasts.filter(pool, run="web-4M-s0")
    (cross,) = [line for line in crosses[TASKS[1]] if len(line.get_xdata())]
    assert list(zip(*cross.get_data())) == wanted.select("tokens", "without_first").rows()
    assert not any(len(line.get_xdata()) for line in crosses[TASKS[0]])
    assert any("without the first quarter" in text for text in words(figure))
    eight = repeated(tables, 8)
    names = eight["paths"].select("task").unique()
    of_one = forecasts.filter(pool | alone, run="web-4M-s0").drop("task").join(names, how="cross")
    figure = plots.forecast_curves(eight["observed"], eight["paths"], "web-4M-s0", "accuracy", None, of_one)
    assert overlapping(figure) == []
    plain = plots.forecast_curves(*drawn, forecasts.with_columns(caution=pl.lit(""), fallback=pl.lit("")))
    assert not any(axes.texts for axes in plain.axes)
    assert not any("without the first quarter" in text for text in words(plain))


def test_errors_of_few_or_noisy_truths_say_so(tables):
    text = pl.lit("too few tasks and runs for an interval; 1 of 4 truths are noise or constant")
    figure = plots.error_over_horizon(tables["errors"].with_columns(caution=text), "pooled")
    assert any("too few for an interval" in found for found in words(figure)) and overlapping(figure) == []
    assert any("1 of 4 truths are noise or constant" in found for found in words(figure))


def test_names_of_methods():
    assert plots.forecaster_name("pooled, logistic link") == "Pooled proxies, logistic link"
    assert plots.forecaster_name("cross_entropy/uniform") == "Cross-entropy, uniform weighting"
    assert plots.forecaster_name("generic_cross_entropy") == "Generic-text cross-entropy"
    assert plots.forecaster_name("pile") == "Pile"
