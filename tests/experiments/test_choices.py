"""What a choice costs, against loops over all orders of what ties, scikit-learn and scipy."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from proxycast.experiments.bootstrap import bootstrap_weights
from proxycast.experiments.choices import (
    FIGURES,
    at_random,
    choice_figures,
    decision_figures,
    seed_noise,
    signs_beyond_noise,
    signs_where_seeds_agree,
)
from proxycast.experiments.rank_statistics import decision_accuracy, pair_weights
from scipy import stats
from sklearn.metrics import ndcg_score

few_values = st.integers(-2, 2).map(float)
n_candidates = st.shared(st.integers(1, 6), key="n")
truths = n_candidates.flatmap(lambda n: arrays(float, n, elements=few_values))
predictions = n_candidates.flatmap(lambda n: arrays(float, (3, n), elements=few_values))
tops = st.integers(1, 4)


def of_one_order(order, truth, k):
    """The four figures of one order of candidates, place by place."""
    ranked, sorted_truth = [truth[i] for i in order], sorted(truth, reverse=True)
    k = min(k, len(order))
    least = min(truth)
    gain = sum((value - least) / math.log2(place + 2) for place, value in enumerate(ranked[:k]))
    ideal = sum((value - least) / math.log2(place + 2) for place, value in enumerate(sorted_truth[:k]))
    hits = sum(value >= sorted_truth[k - 1] for value in ranked[:k])
    best = sorted_truth[0]
    return best - ranked[0], best - max(ranked[:k]), hits / k, gain / ideal if ideal else math.nan


def brute_force(scores, truth, k):
    """The mean over all orders of the candidates in which the scores fall."""
    found = [
        of_one_order(order, truth, k)
        for order in permutations(range(len(truth)))
        if all(scores[a] >= scores[b] for a, b in zip(order, order[1:]))
    ]
    return np.mean(found, axis=0)


@given(predictions, truths, tops)
@settings(max_examples=40)
def test_figures_are_means_over_all_orders_of_what_ties(scores, truth, k):
    found = choice_figures(scores, truth, k)
    for row, own in enumerate(scores):
        expected = brute_force(own, truth, k)
        np.testing.assert_allclose([found[name][row, 0] for name in FIGURES], expected, atol=1e-10)


@given(predictions, truths, tops)
@settings(max_examples=25)
def test_a_sample_is_a_choice_among_the_candidates_that_it_drew_repeated_as_often(scores, truth, k):
    weights = bootstrap_weights(len(truth), 8, 0)
    found = choice_figures(scores, truth, k, weights)
    for sample, counts in enumerate(weights):
        drawn = np.repeat(np.arange(len(truth)), counts.astype(int))
        alone = choice_figures(scores[:, drawn], truth[drawn], k)
        for name in FIGURES:
            np.testing.assert_allclose(found[name][:, sample], alone[name][:, 0], atol=1e-10)


def test_a_sample_without_candidates_says_nothing():
    found = choice_figures([[1.0, 2.0]], [1.0, 2.0], 1, np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert all(np.isnan(found[name][0, 0]) for name in FIGURES)
    assert [found[name][0, 1] for name in FIGURES] == [0, 0, 1, 1]


@given(arrays(float, (2, 9), elements=st.integers(0, 5).map(float)), arrays(float, 9, elements=st.floats(0, 1)), tops)
@settings(max_examples=40)
def test_ndcg_is_that_of_scikit_learn(scores, truth, k):
    gains = np.round(truth, 12) - np.round(truth, 12).min()
    if gains.max() == 0:
        return
    expected = [ndcg_score(gains[None], row[None], k=k) for row in scores]
    np.testing.assert_allclose(choice_figures(scores, truth, k)["ndcg"][:, 0], expected, atol=1e-9)


@given(arrays(float, 12, elements=st.floats(-3, 3), unique=True), st.integers(1, 12))
@settings(max_examples=30)
def test_random_choice_in_closed_form(truth, k):
    truth = np.round(truth, 6)
    best, n = truth.max(), len(truth)
    sets = [max(chosen) for chosen in combinations(truth, k)]
    found = at_random(truth, k)
    assert found["regret"] == pytest.approx(best - truth.mean(), abs=1e-9)
    assert found["regret_top"] == pytest.approx(best - np.mean(sets), abs=1e-9)
    if len(set(truth)) == n:
        assert found["recall"] == pytest.approx(k / n)


@given(predictions, truths, tops)
def test_a_perfect_order_costs_nothing_and_figures_stay_in_their_range(scores, truth, k):
    perfect = choice_figures(truth[None], truth, k)
    assert perfect["regret"] == 0 and perfect["regret_top"] == 0 and perfect["recall"] == pytest.approx(1)
    found = choice_figures(scores, truth, k)
    assert (found["regret_top"] <= found["regret"] + 1e-12).all()
    assert (found["regret"] <= np.ptp(truth) + 1e-12).all()
    assert ((found["recall"] >= 0) & (found["recall"] <= 1 + 1e-12)).all()
    moved = choice_figures(scores * 2 + 1, truth * 3 - 5, k)  # other units
    np.testing.assert_allclose(moved["regret"], 3 * found["regret"], atol=1e-9)
    np.testing.assert_allclose(moved["ndcg"], found["ndcg"], atol=1e-9)


def test_many_rows_are_cut_into_parts(monkeypatch):
    rng = np.random.default_rng(0)
    scores, truth, weights = rng.normal(size=(7, 8)), rng.normal(size=8), bootstrap_weights(8, 20, 1)
    whole = choice_figures(scores, truth, 3, weights)
    monkeypatch.setattr("proxycast.experiments.choices.MOST_NUMBERS", 2 * 8 * 20)
    for name, values in choice_figures(scores, truth, 3, weights).items():
        np.testing.assert_array_equal(values, whole[name])


seeds = st.integers(1, 4).flatmap(lambda k: arrays(float, (k, 5), elements=few_values))


@given(seeds)
def test_seeds_agree_where_all_order_a_pair_alike(scores):
    for place, (i, j) in enumerate(combinations(range(5), 2)):
        signs = {int(np.sign(seed[i] - seed[j])) for seed in scores}
        expected = signs.pop() if len(signs) == 1 else 0
        assert signs_where_seeds_agree(scores)[place] == expected


def test_noise_decides_as_an_analysis_of_variance_does():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(3, 6)) + np.arange(6) / 2
    residual = ((scores - scores.mean(0)) ** 2).sum() / (6 * 2)  # the mean square within groups
    assert seed_noise(scores) == pytest.approx(math.sqrt(residual))
    signs, places = signs_beyond_noise(scores, 0.9), list(combinations(range(6), 2))
    assert 0 < np.abs(signs).sum() < len(places)
    for sign, (i, j) in zip(signs, places):
        gap = scores[:, i].mean() - scores[:, j].mean()
        p = 2 * stats.t.sf(abs(gap) / math.sqrt(residual * 2 / 3), 12)
        assert sign == (np.sign(gap) if p < 0.1 else 0)
    assert not signs_beyond_noise(scores[:1], 0.9).any()  # one seed


@given(st.integers(2, 6).flatmap(lambda n: st.tuples(*[arrays(float, n, elements=few_values)] * 2)))
def test_decisions_by_loop(both):
    scores, truth = both
    signs = np.array([[np.sign(scores[i] - scores[j]) for i, j in combinations(range(len(truth)), 2)]])
    drawn = bootstrap_weights(len(truth), 5, 0)
    weights = np.concatenate([np.ones((1, len(truth))), drawn])
    found = decision_figures(signs, truth, pair_weights(weights).T)
    for sample, counts in enumerate(weights):
        decided = right = pairs = 0
        for i, j in combinations(range(len(truth)), 2):
            often = counts[i] * counts[j] * (truth[i] != truth[j])
            pairs += often
            decided += often * (scores[i] != scores[j])
            right += often * ((scores[i] - scores[j]) * (truth[i] - truth[j]) > 0)
        expected = {"decided": decided / pairs if pairs else math.nan}
        expected["accuracy"] = right / decided if decided else math.nan
        expected["decision_accuracy"] = (right + (pairs - decided) / 2) / pairs if pairs else math.nan
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][0, sample], value)
    np.testing.assert_allclose(found["decision_accuracy"][0, 0], decision_accuracy(scores, truth))
