"""The figures of the two-step law, from a made-up ladder."""

import pytest
from drawn_texts import overlapping, texts
from ladder_study import TASK, laws, options, study
from proxycast.experiments.forecasting.protocol import series_to_forecast
from proxycast.report.comparisons.ladder_figures import two_step_law, two_step_predictions


@pytest.fixture(scope="module")
def tables():
    tables = study(sd=0.002)
    changes = {"proxies": ("cross_entropy/uniform",), "models": {"big": {"parameters": 1e10, "tokens": 1e11}}}
    _, _, observed = series_to_forecast(*tables, "accuracy", [TASK], options(**changes))
    return laws(tables, **changes)["two_step"], observed


def words(figure):
    return [text.get_text() for text in texts(figure)[0]]


def test_every_run_is_drawn_and_no_text_overlaps(tables):
    two_step, observed = tables
    predicted = two_step_predictions(two_step, "accuracy")
    law = two_step_law(two_step, observed, "accuracy", higher_is_better=True)
    for figure in (predicted, law):
        assert overlapping(figure) == []
        assert {"200M", "500M", "1.3B"} <= {*words(figure)}
    [axes] = predicted.axes
    # Six runs with a truth, and the line; the model has none yet.
    assert len(axes.lines) == 6 + 1
    runs = two_step.filter(kind="run")
    drawn = sorted(line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 1)
    assert drawn == pytest.approx(sorted(runs["predicted"]))
    assert "big" in words(law)
    [axes] = law.axes
    # A line and points for each size, the model's line and its cross.
    assert len(axes.lines) == 2 * 3 + 2
    assert max(x for line in axes.lines for x in line.get_xdata()) == pytest.approx(6e21)


def test_an_error_rate_is_drawn_as_it_is(tables):
    """The law is of accuracy; drawn is 1 less it."""
    two_step, observed = tables
    [upright] = two_step_law(two_step, observed, "accuracy", higher_is_better=True).axes
    [turned] = two_step_law(two_step, observed, "error", higher_is_better=False).axes
    assert turned.lines[0].get_ydata() == pytest.approx(1 - upright.lines[0].get_ydata())


def test_without_a_law_the_figures_say_why(tables):
    two_step, observed = tables
    for figure in (
        two_step_predictions(two_step.clear(), "accuracy"),
        two_step_law(two_step.clear(), observed, "accuracy", higher_is_better=True),
    ):
        assert any(text.startswith("No law was fitted") for text in words(figure))
