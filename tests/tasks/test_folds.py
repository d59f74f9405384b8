"""Cross-validation as one bilevel problem, compared with loops over folds in numpy and
scikit-learn."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
)

import bilevel
from bilevel import AID, tasks
from helpers import assert_epoch_is_full, implicit_gradient

FEATURES = 4


def rows(n=23, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, FEATURES))
    return x, x @ np.array([1.0, -0.5, 0.3, 0.0]) + rng.normal(size=n)


def ridge_folds(x, y, folds) -> Any:
    return tasks.cross_validation(
        jnp.asarray(x),
        jnp.asarray(y),
        folds,
        tasks.models.linear_predict,
        loss=tasks.models.squared_error,
    )


def ridge_by_hand(u, x, y, splits):
    """Phi and its gradient by a loop over the splits, one linear system each."""
    penalty = np.exp(u) * np.ones(x.shape[1])
    value, gradient, models = 0.0, np.zeros(x.shape[1]), []
    for train, test in splits:
        hessian = x[train].T @ x[train] / len(train) + np.diag(penalty)
        w = np.linalg.solve(hessian, x[train].T @ y[train] / len(train))
        error = x[test] @ w - y[test]
        v = np.linalg.solve(hessian, x[test].T @ error / len(test))
        value += 0.5 * np.mean(error**2) / len(splits)
        gradient -= penalty * w * v / len(splits)
        models.append(w)
    return value, gradient if np.ndim(u) else gradient.sum(), np.array(models)


GROUPS = np.arange(23) % 7
SPLITTERS = {
    "a number": (3, KFold(3)),
    "KFold, shuffled": (KFold(4, shuffle=True, random_state=1),) * 2,
    "folds of sizes 1, 2 and 20": (
        np.array([0, 1, 1] + 20 * [2]),
        [(np.arange(1, 23), [0]), (np.r_[0, 3:23], [1, 2]), (np.arange(3), np.arange(3, 23))],
    ),
    "rows that are never held out": (
        np.array(3 * [-1] + 10 * [0] + 10 * [1]),
        [(np.r_[0:3, 13:23], np.arange(3, 13)), (np.r_[0:13], np.arange(13, 23))],
    ),
    "groups, as a list": (list(GroupKFold(3).split(np.zeros((23, 1)), groups=GROUPS)),) * 2,
    "repeated": (RepeatedKFold(n_splits=3, n_repeats=2, random_state=0),) * 2,
    "overlapping": (ShuffleSplit(5, test_size=0.3, train_size=0.5, random_state=0),) * 2,
}


SHARED, ONE_EACH = np.array(-0.7), np.array([-1.0, 0.5, 0.0, -3.0])
QUICK = {("a number", False), ("rows that are never held out", True), ("overlapping", True)}


@pytest.mark.parametrize(
    ("name", "u"),
    [
        pytest.param(name, u, marks=() if (name, u is SHARED) in QUICK else pytest.mark.slow)
        for name in SPLITTERS
        for u in (SHARED, ONE_EACH)
    ],
)
def test_ridge_over_folds_is_a_loop_over_folds(name, u):
    x, y = rows()
    folds, splitter = SPLITTERS[name]
    splits = splitter if isinstance(splitter, list) else list(splitter.split(x))
    value, gradient, models = ridge_by_hand(u, x, y, splits)
    problem = ridge_folds(x, y, folds)

    @jax.jit
    def solution_and_residual(u):
        w = tasks.reference.ridge_solution(u, problem.inner_data)
        return w, problem.residual(u, w, problem.inner_data)

    w, residual = solution_and_residual(jnp.asarray(u))
    np.testing.assert_allclose(w, models, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(residual, 0, atol=1e-13)
    for solver in [bilevel.CG(rtol=1e-13), lx.Cholesky()]:
        found = implicit_gradient(problem, jnp.asarray(u), w, solver)
        np.testing.assert_allclose(found.value, value, rtol=1e-12)
        np.testing.assert_allclose(found.grad, gradient, rtol=1e-9, atol=1e-13)


def test_equations_and_batches():
    """f and F from the training rows of each fold; the mean over an epoch of batches is the
    value."""
    x, y = rows(24)
    folds = np.arange(24) % 3 * (np.arange(24) > 5)  # sizes 12, 6, 6
    problem = ridge_folds(x, y, folds)
    rng = np.random.default_rng(0)
    u, w = rng.normal(size=FEATURES), rng.normal(size=(3, FEATURES))
    risk = [0.5 * (x @ v - y) ** 2 for v in w]
    inner = sum(r[folds != k].mean() + 0.5 * np.exp(u) @ w[k] ** 2 for k, r in enumerate(risk))
    outer = np.mean([r[folds == k].mean() for k, r in enumerate(risk)])
    assert (
        abs(outer - np.mean([r[i] for k, r in enumerate(risk) for i in np.where(folds == k)[0]]))
        > 0.01
    )
    for objective, data, expected in [
        (problem.inner, problem.inner_data, inner),
        (problem.outer, problem.outer_data, outer),
    ]:
        at = jnp.asarray(u), jnp.asarray(w)
        np.testing.assert_allclose(objective(*at, data), expected, rtol=1e-13)
        assert_epoch_is_full(objective, at, data, 4)


def test_rows_that_a_bootstrap_draws_twice_count_twice():
    x, y = rows(6)
    splits = [
        (np.array([0, 0, 1, 2]), np.array([3, 4, 5])),
        (np.array([3, 4, 5]), np.array([0, 0, 1])),
    ]
    problem = ridge_folds(x, y, splits)
    w = np.ones((2, FEATURES))
    risk = 0.5 * (x @ w[0] - y) ** 2
    inner = sum(risk[train].mean() for train, _ in splits) + 0.5 * w.size
    outer = np.mean([risk[test].mean() for _, test in splits])
    at = jnp.zeros(()), jnp.asarray(w)
    np.testing.assert_allclose(problem.inner(*at, problem.inner_data), inner, rtol=1e-13)
    np.testing.assert_allclose(problem.outer(*at, problem.outer_data), outer, rtol=1e-13)


@pytest.mark.slow
def test_logistic_over_stratified_folds_is_that_of_scikit_learn():
    x, y = cast(Any, load_iris(return_X_y=True))
    x, y = ((x - x.mean(0)) / x.std(0))[50:], np.where(y[50:] == 1, -1.0, 1.0)
    problem: Any = tasks.cross_validation(
        jnp.asarray(x),
        jnp.asarray(y),
        5,
        tasks.models.linear_predict,
        loss=tasks.models.logistic_loss,
    )
    u = jnp.asarray([-2.0, -4.0, -3.0, -5.0])
    w0 = tasks.stack_models(jnp.zeros(4), 5)
    # The rows are sorted by class: folds that are not stratified would hold one class only.
    assert (np.asarray(problem.outer_data[2])[:50] > 0).sum(0).tolist() == [10] * 5
    scale = np.exp(-0.5 * np.asarray(u))  # a penalty of one on rescaled features
    losses, models = [], []
    for train, test in StratifiedKFold(5).split(x, y):
        model = LogisticRegression(C=1 / len(train), fit_intercept=False, tol=1e-12, max_iter=1000)
        model.fit(x[train] * scale, y[train])
        models.append(model.coef_[0] * scale)
        losses.append(np.log1p(np.exp(-y[test] * (x[test] @ models[-1]))).mean())
    inner = bilevel.GradientInner("auto", 3000)
    check = bilevel.check_hypergradient(
        problem, u, w0, AID(bilevel.CG(rtol=1e-13)), inner, reference=inner
    )
    assert check, str(check)
    stream = bilevel.Stream(bilevel.FullBatch(), problem.inner_data, ())
    w, *_ = inner.solve(problem, u, w0, inner.init(problem, u, w0), stream)
    np.testing.assert_allclose(w, models, rtol=1e-4)
    np.testing.assert_allclose(problem.outer(u, w, problem.outer_data), np.mean(losses), rtol=1e-6)


def test_a_split_equals_one_fold():
    """Folds of which only the first is ever held out give `ridge`."""
    x, y = rows()
    split: Any = tasks.ridge(*(jnp.asarray(a) for a in (x[:15], y[:15], x[15:], y[15:])))
    folds = ridge_folds(x, y, [(np.arange(15), np.arange(15, 23))])
    u = jnp.asarray(0.3)
    w = tasks.reference.ridge_solution(u, split.inner_data)
    np.testing.assert_allclose(
        tasks.reference.ridge_solution(u, folds.inner_data)[0], w, rtol=1e-12
    )
    found = [implicit_gradient(p, u, w, lx.Cholesky()) for p, w in [(split, w), (folds, w[None])]]
    np.testing.assert_allclose(found[0].value, found[1].value, rtol=1e-12)
    np.testing.assert_allclose(found[0].grad, found[1].grad, rtol=1e-11)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (np.zeros(22, int), "one integer per row"),
        (np.linspace(0, 1, 23), "one integer per row"),
        (np.zeros(23, int), "0 rows to train on"),
        ([(np.arange(22), np.arange(0))], "0 held out"),
    ],
)
def test_invalid_folds_are_refused(folds, message):
    x, y = rows()
    with pytest.raises(ValueError, match=message):
        ridge_folds(x, y, folds)


def test_float32_stays_float32():
    x, y = (a.astype(np.float32) for a in rows())
    problem = ridge_folds(x, y, 3)
    u, w = jnp.zeros((), jnp.float32), jnp.zeros((3, FEATURES), jnp.float32)
    assert tasks.reference.ridge_solution(u, problem.inner_data).dtype == jnp.float32
    for objective, data in [
        (problem.inner, problem.inner_data),
        (problem.outer, problem.outer_data),
    ]:
        assert objective(u, w, data).dtype == jnp.float32
