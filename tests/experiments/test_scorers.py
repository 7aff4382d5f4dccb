"""Scorers against loops, scipy and independent solutions of their objectives."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.experiments.model_selection import scorers
from proxycast.experiments.model_selection.scorers import (
    READ,
    SCORERS,
    RankSVMLinear,
    RankSVMRBF,
    Sparse3,
    Univariate,
    preferences,
    standardise,
)
from proxycast.options import InputError
from scipy import optimize, stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

# One setting each: no inner folds.
FIXED = {
    "univariate": Univariate(),
    "sparse3": Sparse3(alphas=[0.1]),
    "rank_svm_linear": RankSVMLinear(Cs=[1.0]),
    "rank_svm_rbf": RankSVMRBF(Cs=[10.0], gammas=[0.3]),
}
each_scorer = pytest.mark.parametrize("name", list(SCORERS))


def problem(seed=0, tasks=3, models=7, proxies=6, noise=0.5, levels=None):
    """X, y, tasks: noisy proxies of one ability, tasks of different scales and sizes; `levels`: y has ties."""
    rng = np.random.default_rng(seed)
    ability, loading = rng.normal(size=models), rng.normal(size=proxies)
    X, y, names = [], [], []
    for task in range(tasks):
        here = ability[: models - task % 2]
        X.append(10.0**task * (np.outer(here, loading) + noise * rng.normal(size=(len(here), proxies))) + task)
        found = here + noise * rng.normal(size=len(here))
        y.append(task + (found if levels is None else np.round(found * levels) / levels) / 4)
        names += [f"task{task}"] * len(here)
    return np.concatenate(X), np.concatenate(y), np.array(names)


def rows_of(X, y, tasks):
    return [(X[tasks == task], y[tasks == task]) for task in dict.fromkeys(tasks)]


def by_task(X, tasks):
    """Standardised within tasks, by the library's z-scores."""
    return np.concatenate([stats.zscore(X[tasks == task], axis=0) for task in dict.fromkeys(tasks)])


# What all scorers share


def test_features_are_standardised_within_tasks_and_constants_become_zero():
    X, _, tasks = problem()
    X[tasks == "task1", 2] = 0.1 + 0.2
    X[np.flatnonzero(tasks == "task1")[0], 2] = 0.3  # another number in the last bit only
    X[:, 3] = 7
    Z = standardise(X, tasks)
    others = [0, 1, 4, 5]
    np.testing.assert_allclose(Z[:, others], by_task(X[:, others], tasks), atol=1e-12)
    assert (Z[tasks == "task1", 2] == 0).all() and (Z[tasks == "task0", 2] != 0).all() and (Z[:, 3] == 0).all()


@each_scorer
def test_a_scorer_orders_a_learnable_task(name):
    X, y, tasks = problem(seed=1, models=12, noise=0.05)
    scorer = SCORERS[name]().fit(X[tasks != "task2"], y[tasks != "task2"], tasks[tasks != "task2"])
    assert stats.spearmanr(scorer.predict(X[tasks == "task2"]), y[tasks == "task2"]).statistic > 0.9


@each_scorer
def test_only_the_order_of_y_within_tasks_matters(name):
    X, y, tasks = problem(seed=2, levels=2)
    scorer = clone(SCORERS[name]()).fit(X, y, tasks)
    warped = np.concatenate([np.exp(own) * 10.0**n - n for n, (_, own) in enumerate(rows_of(X, y, tasks))])
    np.testing.assert_array_equal(scorer.predict(X[:7]), clone(scorer).fit(X, warped, tasks).predict(X[:7]))


@settings(max_examples=8)
@given(st.integers(0, 1000))
def test_units_of_features_and_the_order_of_rows_do_not_matter(seed):
    X, y, tasks = problem(seed, levels=2)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    units, zero = rng.uniform(0.1, 9, (3, 6)), rng.normal(size=(3, 6))
    task_numbers = np.unique(tasks, return_inverse=True)[1]
    other = X * units[task_numbers] + zero[task_numbers]
    first = rng.permutation(7)
    for name, scorer in FIXED.items():
        wanted = clone(scorer).fit(X, y, tasks).predict(X[:7])[first]
        found = clone(scorer).fit(other[order], y[order], tasks[order]).predict(5 * X[:7][first] - 2)
        np.testing.assert_allclose(found, wanted, atol=5e-3 if name == "rank_svm_rbf" else 1e-4, err_msg=name)


@each_scorer
def test_a_task_on_which_all_tie_counts_nothing(name):
    X, y, tasks = problem()
    tied = np.concatenate([X, X[:4] + 1]), np.concatenate([y, 3 + 1e-14 * np.arange(4)]), [*tasks, *["tied"] * 4]
    scorer = SCORERS[name]()
    np.testing.assert_array_equal(scorer.fit(*tied).predict(X[:7]), clone(scorer).fit(X, y, tasks).predict(X[:7]))
    with pytest.raises(InputError, match="all models tie in every training task"):
        scorer.fit(X, np.unique(tasks, return_inverse=True)[1].astype(float), tasks)


@each_scorer
def test_wrong_input_is_refused(name):
    X, y, tasks = problem()
    scorer = clone(FIXED[name])
    with pytest.raises(NotFittedError):
        scorer.predict(X)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        scorer.fit(X, y, tasks[1:])
    with pytest.raises(ValueError, match="NaN"):
        scorer.fit(np.where(X == X[0, 0], np.nan, X), y, tasks)
    scorer.fit(X, y, tasks)
    with pytest.raises(ValueError, match="X has 5 features; the scorer was fitted on 6"):
        scorer.predict(X[:, :5])
    with pytest.raises(ValueError, match="NaN"):
        scorer.predict(np.where(X == X[0, 0], np.nan, X))


def test_pairs_are_models_of_one_task_that_differ():
    X, y, tasks = problem(levels=1)
    wanted = [(i, j) for i in range(len(y)) for j in range(len(y)) if tasks[i] == tasks[j] and y[i] > y[j]]
    assert list(zip(*preferences(y, tasks), strict=True)) == wanted
    all_pairs = sum(len(own) * (len(own) - 1) // 2 for _, own in rows_of(X, y, tasks))
    assert 0 < len(wanted) < all_pairs  # some tie
    nearly = y + 1e-14 * np.arange(len(y))
    assert RankSVMLinear(Cs=[1.0]).fit(X, nearly, tasks).pairs_ == len(wanted)


# Univariate


def test_univariate_is_the_best_mean_of_scipys_correlations():
    X, y, tasks = problem(seed=3, levels=2, noise=1)
    scorer = Univariate().fit(X, y, tasks)
    wanted = [np.mean([stats.spearmanr(x[:, p], own).statistic for x, own in rows_of(X, y, tasks)]) for p in range(6)]
    np.testing.assert_allclose(scorer.spearman_, wanted, atol=1e-12)
    assert scorer.proxy_ == np.argmax(np.abs(wanted)) and list(scorer.chosen_) == [scorer.proxy_]
    assert scorer.sign_ == np.sign(wanted[scorer.proxy_])
    turned = Univariate().fit(-X, y, tasks)
    assert turned.proxy_ == scorer.proxy_ and turned.sign_ == -scorer.sign_
    np.testing.assert_array_equal(turned.predict(-X[:7]), scorer.predict(X[:7]))


def test_univariate_takes_the_first_of_equals_and_counts_constants_as_zero():
    y, tasks = np.array([1.0, 2, 3, 1, 2, 3]), np.array(list("aaabbb"))
    once = [1.0, 2, 3, 5, 5, 5]  # orders one task, constant in the other: 1/2
    both = [1.0, 3, 2, 1, 3, 2]  # 1/2 in both
    mirrored = [-1.0, -3, -2, -1, -3, -2]
    scorer = Univariate().fit(np.transpose([once, mirrored, both]), y, tasks)
    np.testing.assert_allclose(scorer.spearman_, [0.5, -0.5, 0.5], atol=1e-12)
    assert (scorer.proxy_, scorer.sign_) == (0, 1)
    assert (Univariate().fit(np.transpose([mirrored, once]), y, tasks).sign_) == -1


# Sparse3


def naive_triple(X, y, tasks, alpha):
    """The best triple, its weights and the share explained: least squares on stacked rows, for every triple in turn."""
    Z = by_task(X, tasks)
    ranks = np.concatenate([stats.zscore(stats.rankdata(own)) for _, own in rows_of(X, y, tasks)])
    names = list(dict.fromkeys(tasks))
    root = np.sqrt([1 / (len(names) * np.sum(tasks == task)) for task in tasks])  # every task counts alike
    best = None
    for triple in combinations(range(X.shape[1]), 3):
        A = np.concatenate([Z[:, triple] * root[:, None], np.sqrt(alpha) * np.eye(3)])
        b = np.concatenate([ranks * root, np.zeros(3)])
        w = np.linalg.lstsq(A, b)[0]
        loss = np.sum((A @ w - b) ** 2)
        if best is None or loss < best[0] - 1e-10:
            best = loss, triple, w
    return best[1], best[2], 1 - best[0]


@pytest.mark.parametrize("seed, alpha", [(4, 0.01), (5, 0.1), (6, 1.0)])
def test_sparse3_is_the_naive_loop(seed, alpha):
    X, y, tasks = problem(seed, proxies=9, levels=2, noise=1)
    triple, weights, explained = naive_triple(X, y, tasks, alpha)
    scorer = Sparse3(alphas=[alpha]).fit(X, y, tasks)
    assert tuple(scorer.proxies_) == tuple(scorer.chosen_) == triple
    np.testing.assert_allclose(scorer.coef_[scorer.proxies_], weights, atol=1e-10)
    assert np.count_nonzero(scorer.coef_) == 3
    assert scorer.explained_ == pytest.approx(explained)
    wanted = stats.zscore(X[:7], axis=0)[:, triple] @ weights
    np.testing.assert_allclose(scorer.predict(X[:7]), wanted, atol=1e-10)


def test_sparse3_is_least_squares_on_preferences():
    """With hardly a penalty: the weights that fit the signs of all pairs, but for one factor. A tie has the sign 0."""
    X, y, _ = problem(seed=7, tasks=1, models=12, proxies=3, levels=2)
    Z = stats.zscore(X, axis=0)
    i, j = np.triu_indices(len(y), 1)
    of_pairs = np.linalg.lstsq(Z[i] - Z[j], np.sign(y[i] - y[j]))[0]
    found = Sparse3(alphas=[1e-12]).fit(X, y, np.zeros(len(y))).coef_
    np.testing.assert_allclose(found / np.linalg.norm(found), of_pairs / np.linalg.norm(of_pairs), atol=1e-8)


def test_sparse3_takes_the_first_of_equal_triples():
    X, y, tasks = problem(seed=8, proxies=3)
    doubled = X[:, [0, 1, 1, 2, 0, 2]]
    scorer = Sparse3(alphas=[0.1]).fit(doubled, y, tasks)
    alone = [triple for triple in combinations(range(6), 3)]
    values = [Sparse3(alphas=[0.1]).fit(doubled[:, triple], y, tasks).explained_ for triple in alone]
    assert tuple(scorer.proxies_) == alone[int(np.argmax(np.round(values, 9)))]
    assert np.sum(np.round(values, 9) == np.max(np.round(values, 9))) > 1
    constant = Sparse3(alphas=[0.1]).fit(np.concatenate([X * 0 + 1, X], axis=1), y, tasks)
    assert tuple(constant.proxies_) == (3, 4, 5)


def test_sparse3_needs_three_proxies():
    X, y, tasks = problem()
    with pytest.raises(InputError, match="three proxies needs at least three, found 2"):
        Sparse3().fit(X[:, :2], y, tasks)


# RankSVM


def separable(seed=0):
    """Two tasks in which one combination of the proxies is the order."""
    rng = np.random.default_rng(seed)
    X, tasks = rng.normal(size=(20, 4)), np.repeat(["a", "b"], 10)
    return X, by_task(X, tasks) @ [2.0, -1, 0.5, 0], tasks


def test_a_separable_case_is_ordered_without_error():
    X, y, tasks = separable()
    for scorer in (RankSVMLinear(Cs=[1e6]), RankSVMRBF(Cs=[1e6], gammas=[0.1])):
        scorer.fit(X, y, tasks)
        for x, own in rows_of(X, y, tasks):
            assert stats.spearmanr(scorer.predict(x), own).statistic == pytest.approx(1)


@pytest.mark.parametrize("C", [0.1, 10.0])
def test_the_linear_rank_svm_minimises_its_objective(C):
    """Against a descent by scipy on the sum over pairs, written as a loop over models."""
    X, y, tasks = problem(seed=9, levels=2)
    Z = by_task(X, tasks)
    pairs = [(i, j) for i in range(len(y)) for j in range(len(y)) if tasks[i] == tasks[j] and y[i] > y[j]]
    D = np.array([Z[i] - Z[j] for i, j in pairs])

    def objective(w):
        short = np.maximum(0, 1 - D @ w)
        return w @ w / 2 + C * np.mean(short**2), w - 2 * C * D.T @ short / len(D)

    wanted = optimize.minimize(objective, np.zeros(6), jac=True, method="L-BFGS-B", options={"ftol": 1e-15}).x
    scorer = RankSVMLinear(Cs=[C]).fit(X, y, tasks)
    np.testing.assert_allclose(scorer.coef_, wanted, atol=1e-4)
    assert (scorer.C_, scorer.pairs_) == (C, len(pairs))
    assert list(scorer.chosen_) == list(np.argsort(-np.abs(wanted))[:READ])


@pytest.mark.parametrize("C, gamma", [(1.0, 0.3), (30.0, 2.0)])
def test_the_rbf_rank_svm_solves_its_dual(C, gamma):
    """Against scipy on the dual of the SVM without intercept: 0 <= alpha <= C / pairs, kernel of pairs by loops."""
    X, y, tasks = problem(seed=10, tasks=2, models=6, levels=3)
    Z = by_task(X, tasks)

    def k(a, b):
        return np.exp(-gamma / 6 * np.sum((a - b) ** 2))

    pairs = [(i, j) for i in range(len(y)) for j in range(len(y)) if tasks[i] == tasks[j] and y[i] > y[j]]
    K = np.array([[k(Z[i], Z[a]) - k(Z[i], Z[b]) - k(Z[j], Z[a]) + k(Z[j], Z[b]) for a, b in pairs] for i, j in pairs])
    dual = optimize.minimize(
        lambda alpha: (alpha @ K @ alpha / 2 - alpha.sum(), K @ alpha - 1),
        np.zeros(len(pairs)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, C / len(pairs))] * len(pairs),
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10000, "maxfun": 100000},
    )
    held_out = stats.zscore(X[:6] ** 2, axis=0)
    wanted = [sum(a * (k(Z[i], x) - k(Z[j], x)) for a, (i, j) in zip(dual.x, pairs)) for x in held_out]
    scorer = RankSVMRBF(Cs=[C], gammas=[gamma]).fit(X, y, tasks)
    np.testing.assert_allclose(scorer.predict(X[:6] ** 2), wanted, atol=3e-3 * np.ptp(wanted))
    assert np.ptp(wanted) > 0.1
    assert (scorer.C_, scorer.gamma_, scorer.pairs_, len(scorer.chosen_)) == (C, gamma / 6, len(pairs), 0)


def test_the_rbf_rank_svm_learns_what_no_line_can():
    """The best models are those in the middle of a proxy."""
    rng = np.random.default_rng(11)
    X, tasks = rng.normal(size=(40, 3)), np.repeat(["a", "b"], 20)
    y = -np.abs(by_task(X, tasks)[:, 0])
    test = rng.normal(size=(30, 3))
    truth = -np.abs(stats.zscore(test, axis=0)[:, 0])
    curved = RankSVMRBF(Cs=[100.0], gammas=[1.0]).fit(X, y, tasks).predict(test)
    straight = RankSVMLinear().fit(X, y, tasks).predict(test)
    assert stats.spearmanr(curved, truth).statistic > 0.8 > 0.4 > stats.spearmanr(straight, truth).statistic


# Settings


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_whose_sum_is_no_number_are_an_error(scorer):
    X, y, tasks = problem()
    X[:, 0] = np.where(np.arange(len(X)) % 2, 1.7e308, 1.6e308)
    with pytest.raises(ValueError, match="NaN|infinity"):
        SCORERS[scorer]().fit(X, y, tasks)


def test_what_was_learned_from_the_same_numbers_is_not_learned_again(monkeypatch):
    monkeypatch.setattr(scorers, "_KEPT", {})
    monkeypatch.setattr(scorers, "MOST_KEPT", 5)
    X, y, tasks = problem()
    learned = []

    def learn(settings, X, y, groups):
        learned.append(list(settings))
        return [setting * X.sum() + y.sum() for setting in settings]

    def found(settings, X, y, groups):
        return scorers._learned(learn, settings, X, y, groups)

    assert found([1, 2], X, y, tasks) == found([1, 2], X.copy(), y, tasks) == learn([1, 2], X, y, tasks)
    assert found([3, 1], X, y, tasks) == [3 * X.sum() + y.sum(), X.sum() + y.sum()]
    assert learned == [[1, 2], [1, 2], [3]]
    others = (X + 1, y, tasks), (X, y + 1, tasks), (X, y, np.full(len(y), "one")), (X[:, ::-1], y, tasks)
    for other in others:
        assert found([1], *other) == [other[0].sum() + other[1].sum()]
    assert learned[3:] == [[1]] * 4
    assert 0 < len(scorers._KEPT) <= 5


@pytest.mark.parametrize(
    "scorer, setting",
    [
        (Sparse3(), lambda s: {"alphas": [s.alpha_]}),
        (RankSVMLinear(), lambda s: {"Cs": [s.C_]}),
        (RankSVMRBF(Cs=(1.0, 100.0), gammas=(0.01, 1.0)), lambda s: {"Cs": [s.C_], "gammas": [s.gamma_ * 6]}),
    ],
)
def test_settings_are_those_that_predict_training_tasks_best(scorer, setting):
    """Against fitting the scorer with every single setting on all tasks but one."""
    grids = [{name: [value] for name, value in zip(scorer.get_params(), values)} for values in grid(scorer)]
    chosen = set()
    for seed in range(5):
        X, y, tasks = problem(seed, models=9, noise=1.5, levels=2)
        means = []
        for only in grids:
            rho = []
            for task in dict.fromkeys(tasks):
                out = tasks == task
                fitted = clone(scorer).set_params(**only).fit(X[~out], y[~out], tasks[~out])
                rho.append(stats.spearmanr(fitted.predict(X[out]), y[out]).statistic)
            means.append(np.mean(rho))
        wanted = grids[int(np.argmax(np.round(means, 9)))]
        found = setting(clone(scorer).fit(X, y, tasks))
        assert {k: pytest.approx(v) for k, v in wanted.items()} == found
        chosen.add(str(wanted))
    assert len(chosen) > 1


def grid(scorer):
    names = list(scorer.get_params())
    parameters = scorer.get_params()
    values = [[value] for value in parameters[names[0]]]
    for name in names[1:]:
        values = [[*before, value] for before in values for value in parameters[name]]
    return values


def test_with_one_training_task_settings_are_the_middle_ones():
    X, y, tasks = problem(tasks=1)
    assert Sparse3().fit(X, y, tasks).alpha_ == 0.1
    assert RankSVMLinear().fit(X, y, tasks).C_ == 1
    rbf = RankSVMRBF().fit(X, y, tasks)
    assert (rbf.C_, rbf.gamma_) == (10, 0.1 / 6)
