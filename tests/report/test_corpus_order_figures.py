"""Figures of a data selection without a truth: no two texts overlap, and the squares say what the pairs say."""

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.data_selection.corpus_order import (
    corpus_agreement,
    corpus_orders,
    corpus_pairs,
    order_table,
)
from proxycast.report import corpus_order_figures as plots
from proxycast.report import style

PROXIES = [("top5_accuracy", "token_frequency"), ("bits_per_byte", "none"), ("cross_entropy", "uniform")]


def tables_of(corpora: int, seeds=2, solutions=20, steps=(500, 5000)):
    rng = np.random.default_rng(corpora)
    rows = [
        (f"corpus_{'x' * (c % 9)}{c}", "sums", f"q{m}", *proxy, "20M", step, seed, 0.03 * c + 0.1 * rng.normal())
        for proxy in PROXIES
        for c in range(corpora)
        for m in range(solutions)
        for step in steps
        for seed in range(seeds)
    ]
    names = ["corpus", "task", "solution", "statistic", "weighting", "size", "step", "seed", "score"]
    orders = corpus_orders(pl.DataFrame(rows, names, orient="row"), SelectionOptions(bootstrap_replicates=100))
    return order_table(orders, 0.95), corpus_pairs(orders, 0.95), corpus_agreement(orders)


@pytest.mark.parametrize("corpora, seeds, solutions", [(2, 1, 1), (2, 1, 9), (25, 2, 20)])
def test_no_texts_overlap_and_every_pair_is_drawn(corpora, seeds, solutions):
    ranking, pairs, agreement = tables_of(corpora, seeds, solutions)
    for proxy in PROXIES[: 1 if corpora > 9 else None]:
        figure = plots.order_of_corpora(ranking, pairs, (*proxy, "20M", 5000), 0.95)
        assert overlapping(figure) == []
        squares = [p for p in figure.axes[1].patches if isinstance(p, Rectangle)]
        colours = [to_hex(square.get_facecolor()) for square in squares]
        told = pairs.filter(statistic=proxy[0], step=5000)["told_apart"]
        assert len(squares) == corpora * (corpora - 1)
        assert colours.count(plots.BETTER.lower()) == colours.count(plots.WORSE.lower()) == told.sum()
        order = ranking.filter(statistic=proxy[0], step=5000)["corpus"].to_list()
        drawn = [label.get_text().split()[0] for label in figure.axes[0].get_yticklabels()]
        assert drawn == order
    assert overlapping(plots.agreement_of_proxies(agreement, ranking)) == []


@pytest.mark.parametrize(
    "statistic, weighting, name",
    [
        ("bits_per_byte", "none", "Negative expert bits per byte"),
        ("top5_accuracy", "uniform", "Top-5 accuracy, uniform weighting"),
        ("cross_entropy", "uniform", "Negative cross-entropy, uniform weighting"),
        ("my_loss", "none", "Score by my loss"),  # whose sign the study gives
    ],
)
def test_a_score_is_named_with_its_sign(statistic, weighting, name):
    assert style.score_name(statistic, weighting) == name


def test_one_order_has_nothing_to_agree_with():
    ranking, _, agreement = tables_of(3, steps=(5000,))
    one = ranking.filter(statistic="bits_per_byte")
    words, _ = texts(plots.agreement_of_proxies(agreement.clear(), one))
    assert "1.00" in [word.get_text() for word in words]
