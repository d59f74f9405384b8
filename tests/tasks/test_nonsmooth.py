"""Lasso and elastic net against scikit-learn's coordinate descent and the formula on the
support."""

import inspect
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from sklearn.linear_model import ElasticNet, Lasso, LassoCV
from sklearn.model_selection import KFold

import bilevel
from bilevel import FISTA, ITD, GradientInner, tasks
from helpers import implicit_gradient

EXACT = FISTA(rtol=1e-14, max_steps=50_000)


@cache
def rows(num_rows=40, num_features=8, seed=0):
    """Training and validation rows of a sparse model with correlated features."""
    rng = np.random.default_rng(seed)
    mix = np.eye(num_features) + 0.3 * rng.normal(size=(num_features, num_features))
    x, x_val = (rng.normal(size=(num_rows, num_features)) @ mix for _ in range(2))
    w = np.zeros(num_features)
    w[:3] = 1.0, -0.8, 0.5
    return x, x @ w + rng.normal(size=num_rows), x_val, x_val @ w + rng.normal(size=num_rows)


def sides(u):
    """`(l1, l2)` for each of 8 features, of a lasso's u or an elastic net's."""
    l1, *l2 = u if isinstance(u, tuple) else (u,)
    zeros = np.zeros(8)
    return np.exp(l1) + zeros, np.exp(l2[0]) + zeros if l2 else zeros


def coordinate_descent(u, x, y):
    """scikit-learn, with separate penalties encoded in the rows and the columns.

    `l1_j |w_j| = |v_j|` for `w_j = v_j / l1_j`, and squared penalties are rows with a target of 0.
    """
    l1, l2 = sides(u)
    n = len(x)
    x = np.vstack([x, np.diag(np.sqrt(n * l2))]) / l1
    y = np.concatenate([y, np.zeros(8)])
    model = Lasso(alpha=n / len(x), fit_intercept=False, tol=1e-15, max_iter=1_000_000)
    return model.fit(x, y).coef_ / l1


def by_hand(u, x, y, x_val, y_val):
    """Phi and its gradient: `-l1_j sign(w_j) v_j` and `-l2_j w_j v_j` on the support."""
    l1, l2 = sides(u)
    w = coordinate_descent(u, x, y)
    on = np.flatnonzero(w)
    error = x_val @ w - y_val
    gram = x[:, on].T @ x[:, on] / len(x) + np.diag(l2[on])
    v = np.zeros(8)
    v[on] = np.linalg.solve(gram, x_val[:, on].T @ error / len(x_val))
    entries = -l1 * np.sign(w) * v, -l2 * w * v
    shape = u if isinstance(u, tuple) else (u,)
    gradient = [g if np.ndim(a) else g.sum() for g, a in zip(entries, shape, strict=False)]
    return 0.5 * np.mean(error**2), np.hstack(gradient), w


PENALTIES = {
    "lasso": np.array(-1.5),
    "lasso, one per feature": np.linspace(-3, -1, 8),
    "elastic net": (np.array(-2.0), np.array(-1.0)),
    "elastic net, one per feature": (np.linspace(-1, -3, 8), np.linspace(-2, 0, 8)),
    "elastic net, one and eight": (np.array(-1.0), np.linspace(-2, 0, 8)),
}


def as_jax(tree) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def problem_of(u, data) -> Any:
    build = tasks.elastic_net if isinstance(u, tuple) else tasks.lasso
    return build(*as_jax(data))


def solve(problem, u, w0, solver: Any = EXACT):
    stream = bilevel.Stream(bilevel.FullBatch(), problem.inner_data, ())
    w, _, _, stats = jax.jit(
        lambda u, w0: solver.solve(problem, u, w0, solver.init(problem, u, w0), stream)
    )(u, w0)
    return w, stats


def flat(tree):
    return np.hstack([np.ravel(a) for a in jax.tree.leaves(tree)])


QUICK = ["elastic net, one and eight"]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in PENALTIES if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_solution_and_hypergradient(name):
    u = PENALTIES[name]
    value, gradient, w_star = by_hand(u, *rows())
    assert 2 <= np.count_nonzero(w_star) <= 7
    problem, u = problem_of(u, rows()), as_jax(u)
    w, stats = solve(problem, u, jnp.zeros(8))
    assert bool(stats.result == bilevel.RESULTS.successful)
    np.testing.assert_allclose(w, w_star, atol=1e-10)
    np.testing.assert_array_equal(w == 0, w_star == 0)
    np.testing.assert_allclose(problem.outer(u, w, problem.outer_data), value, rtol=1e-10)

    found = {"on the support": tasks.reference.support_hypergradient(problem, u, w)}
    for solver in (lx.LU(), lx.GMRES(rtol=1e-13, atol=1e-13)):
        found[str(solver)] = implicit_gradient(problem, u, w, solver).grad
    for estimate in found.values():
        np.testing.assert_allclose(flat(estimate), gradient, rtol=1e-8)

    check = tasks.reference.check_support(problem, u, w)
    assert bool(check.identified)
    assert float(check.margin) > 1e-3
    np.testing.assert_array_equal(check.support, w_star != 0)


@pytest.mark.parametrize("name", PENALTIES)
def test_hypergradient_against_differences_of_coordinate_descent(name):
    u = PENALTIES[name]
    leaves = u if isinstance(u, tuple) else (u,)
    _, gradient, _ = by_hand(u, *rows())
    start, shapes = np.hstack(leaves), [np.shape(a) for a in leaves]

    def phi(at):
        parts = np.split(at, [int(np.prod(shapes[0]))])
        parts = tuple(p.reshape(s) for p, s in zip(parts, shapes, strict=False))
        return by_hand(parts if isinstance(u, tuple) else parts[0], *rows())[0]

    steps = 1e-4 * np.eye(len(start))
    differences = [(phi(start + s) - phi(start - s)) / 2e-4 for s in steps]
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)


# ---- folds


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["elastic net, one and eight", pytest.param("lasso", marks=pytest.mark.slow)]
)
def test_folds_are_a_loop_over_folds(name):
    x, y, *_ = rows()
    u, splitter = PENALTIES[name], KFold(4, shuffle=True, random_state=2)
    parts = [by_hand(u, x[i], y[i], x[j], y[j]) for i, j in splitter.split(x)]
    values, gradients, models = zip(*parts, strict=True)
    build = tasks.elastic_net_cv if isinstance(u, tuple) else tasks.lasso_cv
    problem, u = build(jnp.asarray(x), jnp.asarray(y), splitter), as_jax(u)
    w, _ = solve(problem, u, tasks.stack_models(jnp.zeros(8), 4))
    np.testing.assert_allclose(w, models, atol=1e-10)
    np.testing.assert_allclose(problem.outer(u, w, problem.outer_data), np.mean(values), rtol=1e-10)
    gradient = np.mean(gradients, axis=0)
    for estimate in (
        tasks.reference.support_hypergradient(problem, u, w),
        implicit_gradient(problem, u, w, lx.LU()).grad,
    ):
        np.testing.assert_allclose(flat(estimate), gradient, rtol=1e-8)
    check = tasks.reference.check_support(problem, u, w)
    np.testing.assert_array_equal(check.identified, np.ones(4, bool))
    np.testing.assert_array_equal(check.support, np.array(models) != 0)


def test_phi_is_the_curve_of_lasso_cv():
    x, y, *_ = rows()
    problem: Any = tasks.lasso_cv(jnp.asarray(x), jnp.asarray(y), 5)
    alphas: Any = np.geomspace(0.5, 0.01, 7)
    path = LassoCV(cv=5, alphas=alphas, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(x, y)
    w0 = tasks.stack_models(jnp.zeros(8), 5)
    for alpha, errors in zip(path.alphas_, path.mse_path_, strict=True):
        u = jnp.log(alpha)
        w, _ = solve(problem, u, w0)
        value = problem.outer(u, w, problem.outer_data)
        np.testing.assert_allclose(value, errors.mean() / 2, rtol=1e-8)


# ---- the support


def test_certificate_along_the_iterations():
    """A wrong support never gets a certificate, and an accurate solution always does."""
    u = as_jax(np.array(-1.5))
    problem = problem_of(u, rows())
    truth = by_hand(np.array(-1.5), *rows())[2]
    w, given, right = jnp.ones(8), [], []
    step = jax.jit(lambda w: problem.map(u, w, problem.inner_data))
    check = jax.jit(lambda w: tasks.reference.check_support(problem, u, w))
    for _ in range(300):
        w = step(w)
        found = check(w)
        given.append(bool(found.identified))
        right.append(bool(np.all(np.sign(w) == np.sign(truth))))
        assert np.linalg.norm(w - truth) <= float(found.distance) + 1e-12
    assert right[-1]
    assert given[-1]
    assert not right[0]
    assert not any(g and not r for g, r in zip(given, right, strict=True))
    assert 0 <= given.index(True) - right.index(True) < 150


def test_certificate_with_more_features_than_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 100))
    y = x[:, :4] @ np.array([2.0, -2.0, 1.0, 1.0]) + 0.1 * rng.normal(size=30)
    problem: Any = tasks.lasso(*as_jax((x, y, x, y)))
    u = jnp.log(0.2)
    w, _ = solve(problem, u, jnp.zeros(100))
    truth = Lasso(alpha=0.2, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y).coef_
    found = tasks.reference.check_support(problem, u, w)
    assert bool(found.identified)
    np.testing.assert_allclose(w, truth, atol=1e-8)
    np.testing.assert_array_equal(found.support, truth != 0)
    np.testing.assert_allclose(found.smallest, np.abs(truth[truth != 0]).min(), rtol=1e-6)
    off = truth == 0
    margin = 0.2 - np.abs(x.T @ (y - x @ truth) / 30)[off].max()
    np.testing.assert_allclose(found.margin, margin, rtol=1e-6)


def test_there_is_no_certificate_at_a_kink():
    """Where a feature is about to enter, Phi has two slopes, and w* is not strictly
    complementary."""
    x, y, *_ = rows()
    problem = problem_of(np.array(0.0), rows())
    largest = np.log(np.abs(x.T @ y).max() / len(x))  # the first one enters here

    def at(u):
        w, _ = solve(problem, jnp.asarray(u), jnp.zeros(8))
        return tasks.reference.check_support(problem, jnp.asarray(u), w), float(
            tasks.reference.support_hypergradient(problem, jnp.asarray(u), w)
        )

    kink, _ = at(largest)
    assert not bool(kink.identified)
    assert min(abs(float(kink.margin)), float(kink.smallest)) < 1e-12
    (above, no_slope), (below, slope) = at(largest + 1e-3), at(largest - 1e-3)
    assert bool(above.identified)
    assert bool(below.identified)
    assert (np.asarray(above.support).sum(), np.asarray(below.support).sum()) == (0, 1)
    assert no_slope == 0
    assert float(above.smallest) == np.inf
    assert slope > 0.1


# ---- FISTA


def test_fista_needs_the_root_of_the_steps():
    """At a condition number of 1e4, ISTA is far from the solution after ten times the steps of
    FISTA."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(50, 8)))
    x = np.sqrt(50) * q * np.sqrt(np.geomspace(1, 1e-4, 8))
    y = x @ rng.normal(size=8) + 0.01 * rng.normal(size=50)
    u = np.array(-12.0)
    problem: Any = tasks.lasso(*as_jax((x, y, x, y)))
    truth = coordinate_descent(u, x, y)
    w, stats = solve(problem, as_jax(u), jnp.zeros(8), FISTA(rtol=1e-12))
    np.testing.assert_allclose(w, truth, atol=1e-6)
    assert int(stats.calls) < 2500
    ista = GradientInner(optax.sgd(1.0), 10 * int(stats.calls))
    slow, _ = solve(problem, as_jax(u), jnp.zeros(8), ista)
    assert np.linalg.norm(slow - truth) > 1e3 * np.linalg.norm(w - truth)


def test_fista_reports_how_it_ended():
    u = as_jax(PENALTIES["lasso"])
    problem = problem_of(u, rows())
    _, stats = solve(problem, u, jnp.zeros(8), FISTA(rtol=1e-12, max_steps=3))
    assert bool(stats.result == bilevel.RESULTS.inner_max_steps_reached)
    assert int(stats.calls) == 3
    found, stats = solve(problem, u, jnp.zeros(8), FISTA(rtol=1e-6))
    assert bool(stats.result == bilevel.RESULTS.successful)
    residual = np.linalg.norm(problem.residual(u, found, problem.inner_data))
    assert residual <= 1e-6 * np.linalg.norm(found)
    _, stats = solve(problem, u, found, FISTA(rtol=1e-6))  # a warm start
    assert int(stats.calls) == 1
    with pytest.raises(ValueError, match="max_steps >= 1"):
        FISTA(max_steps=0)
    ridge: Any = tasks.ridge(*as_jax(rows()))
    with pytest.raises(TypeError, match="GradientInner"):
        solve(ridge, u, jnp.zeros(8))
    with pytest.raises(ValueError, match="FISTA"):
        ITD().init(problem, EXACT, u, jnp.zeros(8))


def test_fista_in_float32_stops_at_the_precision_of_the_dtype():
    u = as_jax(np.float32(-1.5))
    problem: Any = tasks.lasso(*as_jax([a.astype(np.float32) for a in rows()]))
    w, stats = solve(problem, u, jnp.zeros(8, jnp.float32), FISTA(rtol=1e-14))
    assert w.dtype == jnp.float32
    assert bool(stats.result == bilevel.RESULTS.successful)
    np.testing.assert_allclose(w, by_hand(np.array(-1.5), *rows())[2], atol=1e-4)


# ---- runs and refusals


def test_shapes_that_do_not_belong_together():
    x, y, x_val, y_val = as_jax(rows())
    with pytest.raises(ValueError, match="one label for each"):
        inspect.unwrap(tasks.elastic_net)(x, y[:5], x_val, y_val)
    with pytest.raises(ValueError, match="features of"):
        inspect.unwrap(tasks.elastic_net)(x, y, x_val[:, :3], y_val)
    problem = tasks.lasso(x, y, x_val, y_val)
    with pytest.raises(ValueError, match="one entry per feature"):
        problem.map(jnp.zeros(3), jnp.zeros(8), problem.inner_data)


def test_alpha_and_l1_ratio_of_scikit_learn():
    """`alpha` and `l1_ratio` as the docstring converts them."""
    x, y, *_ = rows()
    u = as_jax((np.log(0.3 * 0.4), np.log(0.3 * 0.6)))
    w, _ = solve(problem_of(u, rows()), u, jnp.zeros(8))
    model = ElasticNet(alpha=0.3, l1_ratio=0.4, fit_intercept=False, tol=1e-14, max_iter=100_000)
    np.testing.assert_allclose(w, model.fit(x, y).coef_, atol=1e-8)
