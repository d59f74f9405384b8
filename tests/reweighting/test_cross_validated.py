"""The weight function that is learned and chosen on folds of the trusted rows."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pandas as pd
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler

import bilevel
from bilevel.datasets import flip_to_different
from bilevel.reweighting import cross_validated_weights, effective_sample_size
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._weights import weight_function as _weight_function
from bilevel.reweighting._weights.baselines import SIMPLEST
from bilevel.reweighting._weights.candidates import (
    Candidate,
    best_candidate,
    candidate_table,
    mixture,
)
from bilevel.reweighting._weights.labels import Classes, Numbers, RowScorer
from bilevel.reweighting._weights.weight_function import (
    FOLDS,
    Folds,
    Inner,
    Outer,
    Path,
    Rows,
    effective_weights,
    fit_model,
    make_folds,
    penalised_risk,
    sample_weights,
)


def scaled_digits(rows, trusted, rate, seed):
    """Scaled digits: noisy training rows, trusted rows, hold-out; and which labels are wrong."""
    X, y = map(np.asarray, load_digits(return_X_y=True))
    X = MinMaxScaler().fit_transform(X)
    order = np.random.default_rng(seed).permutation(len(y))
    train, verified, holdout = np.split(order, [rows, rows + trusted])
    noisy = flip_to_different(y[train], rate, seed=seed)[0] if rate else y[train]
    return (X[train], noisy, X[verified], y[verified]), (X[holdout], y[holdout]), noisy != y[train]


def refit(data, weights, trusted_weight, holdout):
    """Accuracy of logistic regression fitted on weighted and trusted rows."""
    X, y, X_trusted, y_trusted = data
    sample_weight = np.r_[weights, np.full(len(y_trusted), trusted_weight)]
    fit = LogisticRegression(max_iter=2000).fit(
        np.r_[X, X_trusted], np.r_[y, y_trusted], sample_weight=sample_weight
    )
    return fit.score(*holdout)


def normal_folds(seed: int = 0, shift: float = 0.0, rows: int = 300, trusted: int = 60) -> Folds:
    """Two classes of normal rows; the trusted ones lie `shift` standard deviations aside."""
    rng = np.random.default_rng(seed)
    X, X_trusted = 2 + rng.normal(size=(rows, 3)), 2 + rng.normal(size=(trusted, 3))
    X_trusted[:, 0] += shift
    y, y_trusted = ((a.sum(1) > 6 + shift / 2).astype(int) for a in (X, X_trusted))
    return make_folds(X, y, X_trusted, y_trusted, None, seed)


def mirrored(data: Folds, fold: int) -> Folds:
    """The same rows in the same folds, but the trusted ones of one fold contradict the others."""
    x_trusted = np.where((data.fold == fold)[:, None], 4 - data.x_trusted, data.x_trusted)
    again = make_folds(data.x, data.y, x_trusted, data.y_trusted, None, 1)
    np.testing.assert_array_equal(again.fold, data.fold)
    return again


@pytest.fixture(scope="module")
def folds() -> Folds:
    return normal_folds(1)


# --- the problem


def test_effective_weights_sum_to_the_effective_sample_size():
    u = {"offset": jnp.array(0.3), "slope": jnp.array([2.0, -1.0])}
    z = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)))
    weights = effective_weights(u, z)
    share = 1 / (1 + np.exp(-(0.3 + np.asarray(z) @ [2, -1])))
    np.testing.assert_allclose(weights / weights.mean(), share / share.mean(), rtol=1e-12)
    np.testing.assert_allclose(weights.sum(), effective_sample_size(share), rtol=1e-12)
    # Weights of 0 and 1 stay what they are.
    hard = effective_weights(
        {"offset": jnp.array(0.0), "slope": jnp.array([1e3])}, jnp.array([[1.0], [-1.0], [1.0]])
    )
    np.testing.assert_allclose(hard, [1, 0, 1], atol=1e-12)


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_classifier_is_scikit_learns(classes):
    rng = np.random.default_rng(1)
    X, y, weights = rng.normal(size=(60, 3)), rng.integers(0, classes, 60), rng.uniform(0, 2, 60)
    rows = Rows(jnp.asarray(X), jnp.asarray(y, jnp.int32))
    ours = fit_model(rows, jnp.asarray(weights), classes)
    theirs: Any = LogisticRegression(tol=1e-10, max_iter=1000).fit(X, y, sample_weight=weights)
    weight, bias = np.asarray(ours["weight"]), np.asarray(ours["bias"])
    if classes == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    np.testing.assert_allclose(weight, theirs.coef_, atol=5e-3)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=5e-3)


def test_the_regression_is_ridge():
    rng = np.random.default_rng(1)
    X, weights = rng.normal(size=(60, 3)), rng.uniform(0, 2, 60)
    y = X @ [1.0, -2.0, 0.5] + 0.7 + rng.normal(size=60)
    ours = fit_model(Rows(jnp.asarray(X), jnp.asarray(y)), jnp.asarray(weights), 1)
    theirs: Any = Ridge(alpha=1).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(ours["weight"][0], theirs.coef_, atol=5e-3)
    np.testing.assert_allclose(ours["bias"], theirs.intercept_, atol=5e-3)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Classes(2), id="classes"),
        pytest.param(Numbers(), id="numbers", marks=pytest.mark.slow),
    ],
)
def test_hypergradient_against_differences(kind):
    """Of the objective in the coefficients, through the inner solutions of all folds."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(42, 2))
    y = rng.integers(0, 2, 42) if kind == Classes(2) else X @ [1.0, -1.0] + rng.normal(size=42)
    data = Folds(X[:30], y[:30], X[30:], y[30:], kind, None, np.random.default_rng(0))
    z = jnp.asarray(np.stack([d.features for d in data.described[:2]]))
    others, inflate = jnp.asarray(data.others[:2], float), jnp.array(1.5)
    trusted = Rows(data.rows.x[30:], data.rows.y[30:])
    problem = bilevel.BilevelProblem(
        Outer(1 - others, trusted), Inner(z, others, inflate, data.rows)
    )
    u = {
        "offset": jnp.array(0.2),
        "slope": jnp.asarray(rng.normal(size=z.shape[2])),
        "log_trusted": jnp.array(0.3),
        "log_temperature": jnp.array(-0.2),
    }
    fitted = data.fit(np.asarray(sample_weights(u, z, others, inflate)))
    w, to_tree = ravel_pytree(jax.tree.map(jnp.asarray, data.centred(fitted)))
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), u)

    def solve(u):
        """Newton's method; the bias of all classes may shift by a constant: a singular Hessian."""

        def step(_, w):
            risk = lambda w: problem.inner(u, to_tree(w), None)  # noqa: E731
            return w - jnp.linalg.pinv(jax.hessian(risk)(w), hermitian=True) @ jax.grad(risk)(w)

        return to_tree(jax.lax.fori_loop(0, 8, step, w))

    @jax.jit
    def value(t):
        v = jax.tree.map(lambda a, d: a + t * d, u, direction)
        return problem.outer(v, solve(v), None)

    @jax.jit
    def estimate(u):
        return bilevel.implicit_gradient(problem, u, solve(u), lx.SVD()).grad

    grad = estimate(u)
    slope = (value(1e-4) - value(-1e-4)) / 2e-4
    expected = jnp.vdot(ravel_pytree(grad)[0], ravel_pytree(direction)[0])
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_the_inner_objective_is_the_sum_of_what_the_folds_models_minimise(folds):
    z = jnp.asarray(np.stack([d.features for d in folds.described[:FOLDS]]))
    others, inflate = jnp.asarray(folds.others[:FOLDS], float), jnp.array(1.0)
    u = jax.tree.map(jnp.asarray, folds.start())
    weights = sample_weights(u, z, others, inflate)
    np.testing.assert_allclose(weights, np.hstack([np.ones((FOLDS, folds.n)), others]), rtol=1e-9)
    w = jax.tree.map(jnp.asarray, folds.centred(folds.fit(np.asarray(weights))))
    inner = eqx.filter_jit(Inner(z, others, inflate, folds.rows))
    least = inner(u, w, None)
    one_by_one = [
        penalised_risk(jax.tree.map(lambda a, k=k: a[k], w), folds.rows, weights[k])
        for k in range(FOLDS)
    ]
    np.testing.assert_allclose(least, sum(one_by_one), rtol=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.1, a.shape)), w)
        assert inner(u, other, None) > least


# --- the folds


def test_features_of_a_fold_have_not_seen_its_rows(folds):
    """Other trusted rows in fold 0 change what models say that train on them, and that alone."""
    again = mirrored(folds, 0)
    assert folds.shift is None
    assert again.shift is None
    before, after = folds.described, again.described
    for name in ("features", "agree", "fits", "quality", "outputs"):
        np.testing.assert_array_equal(getattr(before[0], name), getattr(after[0], name))
        for k in range(1, FOLDS + 1):
            assert (getattr(before[k], name) != getattr(after[k], name)).any()
    assert np.abs(before[1].features - after[1].features).max() > 0.05
    assert before[0].features.shape == (folds.n, 10)
    np.testing.assert_array_equal(folds.others.sum(axis=0), np.full(folds.m, FOLDS))
    classes = [np.bincount(folds.y_trusted[folds.fold == k], minlength=2) for k in range(FOLDS)]
    assert np.ptp(classes, axis=0).max() <= 1  # each has its share in every fold
    # The losses of fold 0's rows under its own model are of these rows alone.
    weights = np.hstack([np.ones((FOLDS + 1, folds.n)), folds.others])
    first, second = (data.fit(weights[:1]) for data in (folds, again))
    np.testing.assert_array_equal(first["weight"], second["weight"])
    losses = np.abs(folds.judge(weights)[0] - again.judge(weights)[0])
    assert losses[folds.fold == 0].min() > 0


def test_a_fold_that_is_left_out_does_not_judge_the_coefficients(folds):
    others = jnp.asarray(folds.others[:FOLDS], float)
    counts = jnp.asarray([0.0, 1.0, 1.0])[:, None]
    trusted = Rows(folds.rows.x[folds.size :], folds.rows.y[folds.size :])
    wrong = trusted._replace(y=jnp.where(jnp.asarray(folds.fold == 0), 1 - trusted.y, trusted.y))
    fitted = folds.fit(np.ones((FOLDS, folds.n + folds.m)))
    w = jax.tree.map(jnp.asarray, folds.centred(fitted))
    u = folds.start()
    without = [Outer((1 - others) * counts, rows)(u, w, None) for rows in (trusted, wrong)]
    assert without[0] == without[1]
    whole = [Outer(1 - others, rows)(u, w, None) for rows in (trusted, wrong)]
    assert whole[1] > whole[0] + 0.1


def test_rows_are_judged_by_models_that_have_not_seen_them(folds):
    """Against scikit-learn, fold by fold; the temperature is the best for all rows."""
    rng = np.random.default_rng(3)
    weights = np.hstack([rng.uniform(0, 2, (FOLDS + 1, folds.n)), 2.0 * folds.others])
    losses, accuracy = folds.judge(weights)
    x, y = np.r_[folds.x, folds.x_trusted], np.r_[folds.y, folds.y_trusted]
    decision = np.empty(folds.m)
    for k in range(FOLDS):
        model: Any = LogisticRegression(tol=1e-10).fit(x, y, sample_weight=weights[k])
        decision[folds.fold == k] = model.decision_function(folds.x_trusted[folds.fold == k])
    sign = 2 * folds.y_trusted - 1
    assert accuracy == np.mean(decision * sign > 0)
    by_hand = [np.logaddexp(0, -np.exp(t) * sign * decision) for t in np.linspace(-2, 2, 33)]
    np.testing.assert_allclose(losses, min(by_hand, key=np.mean), atol=1e-3)


def test_a_shift_is_found_where_there_is_one():
    """The log density ratio of N(1.5 e_1, I) to N(0, I) is 1.5 x_1 - 1.5^2 / 2."""
    for seed in range(3):
        data = normal_folds(seed, shift=1.5)
        assert data.shift is not None
        for half in data.shift:
            assert np.abs(half).max() <= _weight_function.STEEPEST / 2
            rank: Any = spearmanr(half, data.x[:, 0])
            assert rank.statistic > 0.9
        assert data.described[0].features.shape == (data.n, 11)
        np.testing.assert_array_equal(data.described[0].features[:, -1], data.shift[0])


def test_a_shift_is_seldom_found_where_there_is_none():
    """About once in a hundred: scores that are cross-fitted vary by 1.3 standard errors of a coin."""
    assert sum(normal_folds(seed).shift is not None for seed in range(20)) <= 1


def test_a_path_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    us = [
        {"offset": rng.normal(), "slope": rng.normal(size=4), "log_trusted": np.float32(t)}
        for t in range(3)
    ]
    trace = pd.DataFrame({"step": [5, 10, 15], "outer_value": rng.normal(size=3)})
    w = {"weight": rng.normal(size=(3, 2, 4)), "bias": rng.normal(size=(3, 2))}
    file = tmp_path / "path.npz"
    Path([5, 10, 15], us, trace, w).save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["path.npz"]
    read = Path.load(file)
    assert read.steps == [5, 10, 15]
    for expected, found in [*zip(us, read.us, strict=True), (w, read.w)]:
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], strict=True)
    pd.testing.assert_frame_equal(read.trace, trace)


# --- the choice


def test_a_mixture_by_hand():
    """Deviances 1 and 1 + log 3: shares 3/4 and 1/4, whatever is added to both."""
    a, b = np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 4.0], [3.0, 1.0]])
    experts = {"a": Candidate(a, np.array([1.0, 2.0])), "b": Candidate(b, np.array([5.0, 6.0]))}
    for constant in (0.0, 1e4):
        mixed, share = mixture(experts, {"a": 1 + constant, "b": 1 + constant + np.log(3)})
        assert share.to_dict() == pytest.approx({"a": 0.75, "b": 0.25}, rel=1e-9)
        np.testing.assert_allclose(mixed.weights, [[1.5, 1.0], [1.5, 1.0]], rtol=1e-9)
        np.testing.assert_allclose(mixed.trusted, [2.0, 3.0], rtol=1e-9)


def test_rows_of_a_class_that_no_trusted_row_has_weigh_like_the_others():
    candidate = Candidate(np.array([[1.0, 3.0, 9.0], [0.0, 0.0, 9.0]]), np.ones(2))
    weights = candidate.with_neutral_rows(np.array([False, False, True])).weights
    np.testing.assert_allclose(weights, [[1, 3, 2], [0, 0, 0]])
    np.testing.assert_array_equal(
        candidate.with_neutral_rows(np.zeros(3, bool)).weights, candidate.weights
    )


@pytest.mark.parametrize(("errors", "winner"), [(0.45, SIMPLEST), (0.55, "weights")])
def test_a_gain_within_half_a_standard_error_is_not_enough(errors, winner):
    rng = np.random.default_rng(0)
    simplest, spread = rng.uniform(1, 2, 40), rng.normal(size=40)
    spread -= spread.mean()
    error = np.sqrt(np.sum(spread**2) / 39 / 40)
    judged = {
        "uniform": (simplest + 1, 0.5),
        SIMPLEST: (simplest, 0.6),
        "filter": (simplest + spread, 0.65),
        "weights": (simplest + spread - errors * error, 0.7),
    }
    table = candidate_table(judged)
    assert best_candidate(table) == winner
    assert str(table["loss"].idxmin()) == "weights"
    assert table.loc["weights", "difference"] == pytest.approx(-errors * error, rel=1e-9)
    assert table.loc["weights", "standard_error"] == pytest.approx(error, rel=1e-9)
    assert table.loc["uniform", "standard_error"] == pytest.approx(0, abs=1e-12)
    assert table["score"].to_dict() == {name: score for name, (_, score) in judged.items()}


# --- what is said of new rows


def test_new_labels_are_ranked_among_those_of_the_training_rows():
    """One feature x = 0, 1, ..., 9 and label 1; the models' log odds are x - 4.5."""
    w = {"weight": np.array([[[0.0], [1.0]]]), "bias": np.array([[0.0, -4.5]])}
    x = np.arange(10.0)
    fits = Classes(2).fit(np.stack([0 * x, x - 4.5], axis=1), np.ones(10, int))
    scorer = RowScorer(Classes(2), (w, w), (fits, fits), 2 * (2 * x / 9 - 1), 0.0)
    new = np.array([-1.0, 3.5, 6.5, 20.0])[:, None]
    quality, undisputed = scorer(new, np.ones(4, int))
    np.testing.assert_allclose(quality, [0.1, 0.5, 0.8, 1.0])
    assert undisputed.tolist() == [False, False, True, True]
    quality, undisputed = scorer(new, np.zeros(4, int))  # as likely as label 1 of 9 - x
    np.testing.assert_allclose(quality, [1.0, 0.7, 0.4, 0.1])
    assert undisputed.tolist() == [True, True, False, False]


def test_new_targets_are_ranked_by_their_residuals():
    """The training rows' residuals are 0, 1, ..., 9; beyond 3 a target is disputed."""
    w = {"weight": np.array([[[2.0]], [[0.0]]]), "bias": np.array([[0.0], [2.0]])}  # mean x + 1
    fits = -(np.arange(9.0, -1, -1) ** 2)
    sums = 2 * (2 * np.arange(10) / 9 - 1)
    scorer = RowScorer(Numbers(), (w, w), (fits, fits), sums, 3.0)
    x = np.array([0.0, 1.0, 2.0])
    np.testing.assert_array_equal(scorer.predict(x[:, None])[:, 0], x + 1)
    quality, undisputed = scorer(x[:, None], x + 1 + np.array([0.5, -2.5, 8.5]))
    np.testing.assert_allclose(quality, [1.0, 0.8, 0.2])
    assert undisputed.tolist() == [True, True, False]


def test_training_rows_are_ranked_as_they_were(folds):
    """By models half of which have seen the row, so a little better than before."""
    last = folds.described[FOLDS]
    quality, undisputed = last.scorer(folds.x, folds.y)
    rank: Any = spearmanr(quality, last.quality)
    assert rank.statistic > 0.9
    assert undisputed.mean() > 0.9
    assert quality.mean() >= last.quality.mean() - 0.01


# --- the whole


def noisy_rows(seed: int = 1) -> tuple[tuple[Any, Any, Any, Any], np.ndarray]:
    """400 normal rows of two classes, 30 % with the wrong label, 60 trusted ones; which are wrong."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(460, 10))
    y = (X @ np.where(np.arange(10) % 2, 1.0, -1.0) > 0).astype(int)
    wrong = rng.random(400) < 0.3
    return (X[:400], np.where(wrong, 1 - y[:400], y[:400]), X[400:], y[400:]), wrong


def test_models_of_a_subsample_say_about_the_same_of_all_rows(monkeypatch):
    data, wrong = noisy_rows()
    whole = make_folds(*data, None, 0)
    monkeypatch.setattr(_weight_function, "MAX_ROWS", 150)
    part = make_folds(*data, None, 0)
    assert (whole.size, part.size, part.n) == (400, 150, 400)
    quality = [folds.described[FOLDS].quality for folds in (whole, part)]
    assert np.corrcoef(quality)[0, 1] > 0.95  # measured 0.994
    for q in quality:
        assert roc_auc_score(~wrong, q) > 0.95  # measured 0.983 and 0.979
    # Each of the 150 rows stands for 400 / 150: lines have the totals that they had.
    equal = Candidate(np.ones((FOLDS + 1, 400)), np.ones(FOLDS + 1))
    np.testing.assert_allclose(equal.fit_weights(part)[:, :150].sum(axis=1), 400, rtol=1e-12)
    uneven = equal._replace(weights=np.stack([d.quality for d in whole.described]))
    totals = [uneven.fit_weights(folds)[:, : folds.size].sum(axis=1) for folds in (whole, part)]
    np.testing.assert_allclose(totals[1], totals[0], rtol=0.1)
    np.testing.assert_array_equal(uneven.fit_weights(part)[:, 150:], part.others)


@pytest.mark.slow
def test_weights_of_a_subsample_are_about_the_same(monkeypatch):
    data, wrong = noisy_rows()
    whole = cross_validated_weights(*data)
    monkeypatch.setattr(_weight_function, "MAX_ROWS", 150)
    part = cross_validated_weights(*data)
    for found in (whole, part):
        assert found.winner == "weights"
        assert found.weights.shape == (400,)
        assert found.weights.mean() == pytest.approx(1.0, rel=1e-6)
        assert roc_auc_score(~wrong, found.weights) > 0.9
    assert np.corrcoef(whole.weights, part.weights)[0, 1] > 0.9  # measured 0.939


@pytest.mark.slow
def test_noisy_digits():
    data, holdout, wrong = scaled_digits(1000, 200, 0.4, seed=1)
    found = cross_validated_weights(*data)
    np.testing.assert_allclose(found.weights.mean(), 1, rtol=1e-5)
    assert roc_auc_score(wrong, -found.weights) > 0.93
    ours = refit(data, found.scale * found.weights, found.scale * found.trusted_weight, holdout)
    ones, trusted = np.ones(len(wrong)), LogisticRegression(max_iter=2000).fit(*data[2:])
    baselines = [
        refit(data, ones, 0.0, holdout),
        refit(data, ones, 1.0, holdout),
        trusted.score(*holdout),
        refit(data, trusted.predict(data[0]) == data[1], 1.0, holdout),
    ]
    assert ours > max(baselines) - 0.01
    # The table judges the same baselines, on the trusted rows.
    assert list(found.candidates.index[:4]) == ["uniform", SIMPLEST, "trusted only", "filter"]
    assert found.candidates.loc[SIMPLEST, "difference"] == 0
    assert found.candidates.loc[found.winner, "loss"] == found.candidates["loss"].min()
    again = cross_validated_weights(*data)
    np.testing.assert_array_equal(found.weights, again.weights)


@pytest.mark.slow
def test_clean_labels_are_left_alone():
    data, holdout, _ = scaled_digits(1000, 200, 0.0, seed=2)
    found = cross_validated_weights(*data)
    ours = refit(data, found.scale * found.weights, found.scale * found.trusted_weight, holdout)
    assert ours >= refit(data, np.ones(1000), 1.0, holdout) - 0.01


@pytest.mark.slow
def test_useless_training_rows_lose_to_the_trusted_ones():
    """Labels that say nothing: the trusted rows alone, or weights that come to the same."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 5))
    y = (X[:, 0] + X[:, 1] > 0).astype(int)
    found = cross_validated_weights(X[:600], rng.integers(0, 2, 600), X[600:], y[600:])
    loss = found.candidates["loss"].to_dict()
    assert loss[found.winner] < 0.5 * loss["uniform"]
    if found.winner == "trusted only":
        assert not found.weights.any()


def test_bad_input_is_named():
    X, y = np.zeros((5, 2)), np.zeros(5, int)
    with pytest.raises(InputError, match="got 5 trusted rows, at least 6"):
        cross_validated_weights(X, y, X, y)
    X, y = np.zeros((6, 2)), np.zeros(6, int)
    message = r"must both be class codes 0, 1, \.\.\. or both floating targets, got "
    for one, other, kinds in [(y, y.astype(float), "int64 and float64"), (y, y - 1, "from -1")]:
        with pytest.raises(InputError, match=message + f".*{kinds}"):
            cross_validated_weights(X, one, X, other)
