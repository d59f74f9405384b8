"""A support vector machine, powers and groups: solutions and hypergradients by other ways."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from sklearn.svm import LinearSVC

import bilevel
from bilevel import ITD, GradientInner, implicit_gradient, tasks
from helpers import estimate_on_all_data

RNG = np.random.default_rng(0)
X, X_VAL = RNG.normal(size=(60, 6)), RNG.normal(size=(40, 6))
TRUE = np.array([2.0, -1.0, 0.5, 0.0, 0.0, 0.0])
Y, Y_VAL = X @ TRUE + 0.5 * RNG.normal(size=60), X_VAL @ TRUE + 0.5 * RNG.normal(size=40)


def arrays(*given: Any) -> Any:
    return tuple(jnp.asarray(x) for x in given)


ROWS = arrays(X, Y, X_VAL, Y_VAL)
SIGNS = arrays(X, np.sign(Y), X_VAL, np.sign(Y_VAL))
GROUPS = ["b", "b", "a", "a", "c", "c"]
LU = lx.LU()


def solver_of(problem: Any, step: float, num_steps: int = 2000) -> Any:
    """`u -> w` by gradient steps, which iterate the map of a fixed-point problem; compiled once."""
    stream = bilevel.Stream(bilevel.FullBatch(), problem.inner_data, ())
    solver, w = GradientInner(optax.sgd(step), num_steps), jnp.zeros(6)
    return jax.jit(lambda u: solver.solve(problem, u, w, solver.init(problem, u, w), stream)[0])


def solved(problem: Any, u: Any, step: float, num_steps: int = 2000) -> jax.Array:
    return solver_of(problem, step, num_steps)(u)


def central(phi: Any, u: Any, h: float = 1e-5) -> np.ndarray:
    flat, unravel = ravel_pytree(u)
    steps = h * np.eye(len(flat))
    return np.array([(phi(unravel(flat + d)) - phi(unravel(flat - d))) / (2 * h) for d in steps])


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def check_hypergradients(problem: Any, u: Any, step: float, rtol: float) -> None:
    """The implicit one and that of unrolled steps, against differences of the outer loss."""

    solve = solver_of(problem, step)

    def phi(u):
        return float(problem.outer(u, solve(u), problem.outer_data))

    truth = central(phi, u)
    assert np.abs(truth).max() > 1e-3
    found = implicit_gradient(problem, u, solve(u), LU)
    assert float(found.inner_residual) < 1e-9
    np.testing.assert_allclose(flat(found.grad), truth, rtol=rtol, atol=1e-8)
    inner = GradientInner(optax.sgd(step), 2000)
    unrolled = estimate_on_all_data(problem, ITD(), inner, u, jnp.zeros(6))
    np.testing.assert_allclose(flat(unrolled.grad), truth, rtol=rtol, atol=1e-8)


@pytest.mark.parametrize("smoothing", [pytest.param(1e-3, marks=pytest.mark.slow), 0.1])
def test_the_rounded_hinge_is_near_the_svm_of_scikit_learn(smoothing):
    problem, penalty = tasks.support_vectors(*SIGNS, smoothing=smoothing), 0.3
    u = jnp.log(jnp.asarray(penalty))
    step = 1 / (np.linalg.eigvalsh(X.T @ X / 60)[-1] / smoothing + penalty)
    w = solved(problem, u, step, 20_000 if smoothing < 0.1 else 2000)
    svm = LinearSVC(
        loss="hinge", C=1 / (60 * penalty), fit_intercept=False, tol=1e-8, max_iter=10**6
    )
    exact = svm.fit(X, np.sign(Y)).coef_[0]
    assert np.linalg.norm(w - exact) <= np.sqrt(smoothing / penalty)
    margin = np.asarray(SIGNS[1]) * (X @ np.asarray(w))
    short = 1 - margin
    value = np.where(
        short > smoothing, short - smoothing / 2, np.maximum(short, 0) ** 2 / 2 / smoothing
    )
    expected = value.mean() + penalty / 2 * np.sum(np.asarray(w) ** 2)
    np.testing.assert_allclose(problem.inner(u, w, problem.inner_data), expected, rtol=1e-12)


@pytest.mark.slow
def test_support_vectors_hypergradient():
    problem = tasks.support_vectors(*SIGNS, smoothing=0.5)
    step = 1 / (np.linalg.eigvalsh(X.T @ X / 60)[-1] / 0.5 + 1)
    check_hypergradients(problem, jnp.linspace(-1.0, -0.2, 6), step, 1e-5)


def test_steps_through_corners_have_the_derivative_of_the_steps():
    """Without rounding, 30 steps meet corners only by chance: the derivative is that of the steps."""
    problem, u = tasks.support_vectors(*SIGNS, smoothing=0.0), jnp.linspace(-1.0, -0.2, 6)
    inner = GradientInner(optax.sgd(0.1), 30)
    found = estimate_on_all_data(problem, ITD(), inner, u, jnp.zeros(6)).grad

    solve = solver_of(problem, 0.1, 30)

    def phi(u):
        return float(problem.outer(u, solve(u), problem.outer_data))

    np.testing.assert_allclose(found, central(phi, u, 1e-7), rtol=1e-5, atol=1e-8)


def test_a_power_of_two_is_ridge():
    problem = tasks.power_penalty(*ROWS, rounding=0.1)
    u = jnp.asarray(-1.0), jnp.zeros(())
    w = solved(problem, u, 0.3)
    ridge = np.linalg.solve(X.T @ X / 60 + np.exp(-1.0) * np.eye(6), X.T @ Y / 60)
    np.testing.assert_allclose(w, ridge, rtol=1e-9)


@pytest.mark.slow
def test_the_hypergradient_of_a_power_is_a_difference():
    problem = tasks.power_penalty(*ROWS, rounding=0.1)
    check_hypergradients(problem, (jnp.asarray(-1.0), jnp.asarray(-0.7)), 0.2, 1e-6)


def group_by_hand(log_penalty: np.ndarray) -> np.ndarray:
    """Proximal gradient steps in NumPy, a loop over the groups."""
    step, w = 1 / np.linalg.eigvalsh(X.T @ X / 60)[-1], np.zeros(6)
    codes = np.unique(GROUPS, return_inverse=True)[1]
    for _ in range(5000):
        z = w - step * X.T @ (X @ w - Y) / 60
        for g, log in enumerate(np.broadcast_to(log_penalty, 3)):
            own = codes == g
            size, t = np.linalg.norm(z[own]), step * np.exp(log) * np.sqrt(own.sum())
            z[own] *= max(1 - t / size, 0) if size > 0 else 0
        w = z
    return w


@pytest.mark.slow
@pytest.mark.parametrize("u", [np.array(-0.7), np.array([-1.0, 0.0, -0.5])])
def test_group_lasso(u):
    problem = tasks.group_lasso(*ROWS, groups=GROUPS)
    w = solved(problem, jnp.asarray(u), 1.0)
    by_hand = group_by_hand(u)
    np.testing.assert_allclose(w, by_hand, atol=1e-10)
    out = by_hand == 0
    assert out[4:].all()  # the group of noise
    assert not out[:2].any()
    np.testing.assert_array_equal(np.asarray(w) == 0, out)
    fista = bilevel.FISTA(rtol=1e-12)
    stream = bilevel.Stream(bilevel.FullBatch(), problem.inner_data, ())
    found = fista.solve(problem, jnp.asarray(u), jnp.zeros(6), (), stream)[0]
    np.testing.assert_allclose(found, by_hand, atol=1e-9)
    check_hypergradients(problem, jnp.asarray(u), 1.0, 1e-5)


def test_groups_of_one_are_the_lasso():
    groups, lasso = tasks.group_lasso(*ROWS, groups=range(6)), tasks.lasso(*ROWS)
    u, w = jnp.linspace(-2.0, 0.0, 6), jnp.asarray(RNG.normal(size=6))
    ours, theirs = (p.map(u, w, p.inner_data) for p in (groups, lasso))
    np.testing.assert_allclose(ours, theirs, atol=1e-14)


def test_at_a_kink_the_derivative_is_that_of_one_side():
    """Steps through a map with kinks have a conservative derivative: at a kink, that of one side.

    One feature, x = 1: w* = (y - exp(u))_+, with its kink at exp(u) = y.
    """
    one, y = jnp.ones((1, 1)), jnp.asarray([2.0])
    problem = tasks.lasso(one, y, one, jnp.asarray([5.0]))
    inner = GradientInner(optax.sgd(1.0), 3)
    slopes = [
        float(estimate_on_all_data(problem, ITD(), inner, jnp.asarray(u), jnp.zeros(1)).grad)
        for u in (np.log(2.0) - 1e-6, np.log(2.0), np.log(2.0) + 1e-6)
    ]
    np.testing.assert_allclose(slopes[0], 5.0 * 2.0, rtol=1e-5)  # -(5 - w) dw/du, w = 0
    assert slopes[2] == 0
    assert min(abs(slopes[1] - slopes[0]), abs(slopes[1] - slopes[2])) < 1e-4


def test_wrong_calls():
    with pytest.raises(ValueError, match="`smoothing` must be >= 0, got -1"):
        tasks.support_vectors(*SIGNS, smoothing=-1.0)
    with pytest.raises(ValueError, match="`rounding` must be > 0, got 0"):
        tasks.power_penalty(*ROWS, rounding=0.0)
    with pytest.raises(ValueError, match="one label for each of the 6 features"):
        tasks.group_lasso(*ROWS, groups=[0, 1])
    problem = tasks.group_lasso(*ROWS, groups=GROUPS)
    with pytest.raises(ValueError, match=r"one entry per group, \(3,\), got \(2,\)"):
        problem.map(jnp.zeros(2), jnp.zeros(6), problem.inner_data)
