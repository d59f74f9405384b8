"""The weight function that is learned and chosen on folds of the trusted rows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler

import bilevel
from bilevel.datasets import flip_to_different
from bilevel.reweighting import _cross_validated as module
from bilevel.reweighting import cross_validated_weights, effective_sample_size


@pytest.fixture
def standard_promotion():
    """optax's Adam mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def digits(rows, trusted, rate, seed):
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


def test_effective_weights_sum_to_the_effective_sample_size():
    u = {"offset": jnp.array(0.3), "slope": jnp.array([2.0, -1.0])}
    z = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)))
    weights = module.effective_weights(u, z)
    share = 1 / (1 + np.exp(-(0.3 + np.asarray(z) @ [2, -1])))
    np.testing.assert_allclose(weights / weights.mean(), share / share.mean(), rtol=1e-12)
    np.testing.assert_allclose(weights.sum(), effective_sample_size(share), rtol=1e-12)
    # Weights of 0 and 1 stay what they are.
    hard = module.effective_weights(
        {"offset": jnp.array(0.0), "slope": jnp.array([1e3])}, jnp.array([[1.0], [-1.0], [1.0]])
    )
    np.testing.assert_allclose(hard, [1, 0, 1], atol=1e-12)


def test_the_model_is_scikit_learns():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    weights = rng.uniform(0, 2, 60)
    rows = module._Rows(jnp.asarray(X), jnp.asarray(y, jnp.int32))
    ours = module._fit(rows, jnp.asarray(weights)[None], 3)
    theirs = LogisticRegression(tol=1e-10, max_iter=1000).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(ours["weight"][0], theirs.coef_, atol=5e-3)


def test_features_of_a_fold_have_not_seen_its_rows():
    """Other labels in fold 0 change the features of the folds that train on it, not its own."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(42, 2)))
    y = (np.asarray(x[:, 0]) > 0).astype(np.int32)
    data = module._Folds(module._Rows(x, jnp.asarray(y)), 30, 2, np.random.default_rng(0))
    other = y.copy()
    other[30:][data.fold == 0] = 1 - other[30:][data.fold == 0]
    again = module._Folds(module._Rows(x, jnp.asarray(other)), 30, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(data.features[0], again.features[0])
    assert np.abs(data.features[1] - again.features[1]).max() > 0.05
    assert data.features[0].shape == (30, 8)
    np.testing.assert_array_equal(data.others.sum(axis=0), np.full(12, module.FOLDS))
    # The losses of fold 0's rows under its own model are of its own labels alone.
    weights = np.concatenate([np.ones((module.FOLDS + 1, 30)), data.others], axis=1)
    before, after = data.judge(weights)[0], again.judge(weights)[0]
    assert np.abs(before - after)[data.fold == 0].min() > 0


@pytest.mark.slow
def test_noisy_digits(standard_promotion):
    data, holdout, wrong = digits(1000, 200, 0.4, seed=1)
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
    assert list(found.candidates.index[:4]) == [
        "uniform",
        module.SIMPLEST,
        "trusted only",
        "filter",
    ]
    assert found.candidates.loc[module.SIMPLEST, "difference"] == 0
    assert found.candidates.loc[found.winner, "loss"] == found.candidates["loss"].min()
    again = cross_validated_weights(*data)
    np.testing.assert_array_equal(found.weights, again.weights)


@pytest.mark.slow
def test_clean_labels_are_left_alone(standard_promotion):
    data, holdout, _ = digits(1000, 200, 0.0, seed=2)
    found = cross_validated_weights(*data)
    ours = refit(data, found.scale * found.weights, found.scale * found.trusted_weight, holdout)
    assert ours >= refit(data, np.ones(1000), 1.0, holdout) - 0.01


@pytest.mark.slow
def test_useless_training_rows_lose_to_the_trusted_ones(standard_promotion):
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
    with pytest.raises(ValueError, match="got 5 trusted rows, at least 6"):
        cross_validated_weights(X, y, X, y)
    X, y = np.zeros((6, 2)), np.zeros(6)
    with pytest.raises(ValueError, match=r"class codes 0, 1, \.\.\., got float64"):
        cross_validated_weights(X, y, X, y)


@pytest.mark.slow
def test_hypergradient_against_differences():
    """Of the objective in the coefficients, through the inner solutions of all folds."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(42, 2)))
    y = jnp.asarray(rng.integers(0, 2, 42), jnp.int32)
    data = module._Folds(module._Rows(x, y), 30, 2, np.random.default_rng(0))
    z, others = jnp.asarray(np.stack(data.features[:2])), jnp.asarray(data.others[:2], float)
    trusted = module._Rows(x[30:], y[30:])
    problem = module.BilevelProblem(
        module._Outer(1 - others, trusted), module._Inner(z, others, data.rows)
    )
    u = {
        "offset": jnp.array(0.2),
        "slope": jnp.asarray(rng.normal(size=8)),
        "log_trusted": jnp.array(0.3),
        "log_temperature": jnp.array(-0.2),
    }
    w = data.fit(np.asarray(module._sample_weights(u, z, others)))
    solver = bilevel.MinimiserInner(optx.BFGS(rtol=1e-12, atol=1e-12), max_steps=2000)
    stream = bilevel.Stream(bilevel.FullBatch(), None, ())

    @eqx.filter_jit
    def solve(u):
        best, *_ = solver.solve(problem, u, w, (), stream)
        return best

    # The bias is not penalised, and a constant shift of all classes is free: a singular Hessian.
    grad = bilevel.implicit_gradient(problem, u, solve(u), lx.SVD()).grad
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), u)
    value = lambda t: float(  # noqa: E731
        problem.outer(v := jax.tree.map(lambda a, d: a + t * d, u, direction), solve(v), None)
    )
    slope = (value(1e-4) - value(-1e-4)) / 2e-4
    expected = sum(
        float(jnp.vdot(a, b)) for a, b in zip(*map(jax.tree.leaves, (grad, direction)), strict=True)
    )
    np.testing.assert_allclose(slope, expected, rtol=1e-3)
