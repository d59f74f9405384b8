"""Poisoning: objectives by hand, hypergradients against a closed form and differences, the set."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel
from bilevel import tasks
from helpers import assert_close, assert_epoch_is_full, implicit_gradient

KEYS = jax.random.split(jax.random.key(3), 6)
X = jax.random.normal(KEYS[0], (12, 3))
X_VAL = jax.random.normal(KEYS[1], (9, 3))
TARGETS = X @ jnp.array([1.0, -2.0, 0.5]) + 0.1 * jax.random.normal(KEYS[2], (12,))
TARGETS_VAL = X_VAL @ jnp.array([1.0, -2.0, 0.5])
Y, Y_VAL = (TARGETS > 0).astype(int), (TARGETS_VAL > 0).astype(int)
POISONED = jnp.array([7, 2, 10])
U = 0.3 * jax.random.normal(KEYS[3], (3, 3))
L2 = 0.1


def predict(w, x):
    return x @ w.T


def shifted(u):
    return X.at[POISONED].add(u)


def regression(**options):
    return tasks.poisoning(
        X,
        TARGETS,
        X_VAL,
        TARGETS_VAL,
        predict,
        poisoned=POISONED,
        radius=0.5,
        loss=tasks.models.squared_error,
        l2=L2,
        **options,
    )


def classification():
    return tasks.poisoning(X, Y, X_VAL, Y_VAL, predict, poisoned=POISONED, radius=0.5, l2=L2)


def ridge_solution(u):
    x = shifted(u)
    gram = x.T @ x / len(x) + L2 * jnp.eye(3)
    return jnp.linalg.solve(gram, x.T @ TARGETS / len(x))


def test_objectives_by_hand():
    problem = classification()
    w = jax.random.normal(KEYS[4], (2, 3))

    def cross_entropy(x, y):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x @ w.T), y[:, None], 1))

    inner = cross_entropy(shifted(U), Y) + 0.05 * jnp.sum(w**2)
    assert_close(problem.inner(U, w, problem.inner_data), inner, rtol=1e-12)
    assert_close(problem.outer(U, w, problem.outer_data), -cross_entropy(X_VAL, Y_VAL), rtol=1e-12)


def test_poisoned_rows():
    np.testing.assert_array_equal(tasks.poisoned_rows(regression(), U), shifted(U))


def test_batches_are_unbiased():
    problem = regression()
    assert_epoch_is_full(problem.inner, (U, jnp.array([[0.4, -1.0, 0.2]])), problem.inner_data, 1)


def test_hypergradient_against_the_closed_form_of_ridge():
    problem = regression()

    def phi(u):
        return -0.5 * jnp.mean((X_VAL @ ridge_solution(u) - TARGETS_VAL) ** 2)

    found = implicit_gradient(problem, U, ridge_solution(U)[None], lx.Cholesky())
    assert float(found.inner_residual) < 1e-13
    assert_close(found.value, phi(U), rtol=1e-12)
    assert_close(found.grad, jax.grad(phi)(U), rtol=1e-9, atol=1e-13)


@pytest.mark.slow
def test_logistic_hypergradient_against_finite_differences():
    check = bilevel.check_hypergradient(
        classification(),
        U,
        jnp.zeros((2, 3)),
        bilevel.AID(lx.Cholesky()),
        bilevel.GradientInner("auto", 2000),
    )
    assert "agrees" in str(check)


@pytest.mark.parametrize("p", [1.0, 2.0, np.inf])
def test_each_row_stays_in_its_own_ball(p):
    geometry = regression(p=p).geometry
    point = jnp.stack([3.0 * U[0], 0.01 * U[1], -5.0 * U[2]])
    found = geometry.project(point)
    np.testing.assert_allclose(np.linalg.norm(found[0], p), 0.5, rtol=1e-12)
    np.testing.assert_array_equal(found[1], point[1])
    np.testing.assert_allclose(found[2], bilevel.Ball(0.5, p).project(point[2]), rtol=1e-14)
    np.testing.assert_allclose(geometry.retract(U, point - U), found, rtol=1e-12)


def test_auto_steps_measure_each_row_separately():
    grad = jnp.array([[3.0, -4.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]])
    root_mean_square = np.sqrt([25 / 3, 3, 1])[:, None] * np.ones((3, 3))
    np.testing.assert_allclose(regression().geometry.magnitude(U, grad), root_mean_square)


def test_bounds_are_a_box():
    x = jnp.clip(X, -1.0, 1.0)
    problem = tasks.poisoning(
        x, Y, X_VAL, Y_VAL, predict, poisoned=POISONED, radius=0.5, p=np.inf, bounds=(-1.0, 1.0)
    )
    found = problem.geometry.project(jnp.full((3, 3), 9.0))
    np.testing.assert_allclose(found, np.minimum(0.5, 1.0 - x[POISONED]))
    moved = tasks.poisoned_rows(problem, found)
    assert float(jnp.max(moved)) <= 1.0
    found = problem.geometry.project(jnp.full((3, 3), -9.0))
    np.testing.assert_allclose(found, np.maximum(-0.5, -1.0 - x[POISONED]))


@pytest.mark.slow
def test_ridge_attack_ends_at_a_stationary_point():
    """After projected steps the residual is zero, every row is at its bound, and Phi is lower."""
    problem = regression()
    method = bilevel.DoubleLoop(
        bilevel.ClosedForm(lambda u, _: ridge_solution(u)[None]), bilevel.AID(lx.Cholesky())
    )
    solution = bilevel.solve(
        problem, method, jnp.zeros((3, 3)), jnp.zeros((1, 3)), num_steps=400, trace_every=10
    )
    np.testing.assert_allclose(np.linalg.norm(solution.u, axis=1), 0.5, rtol=1e-9)
    assert solution.trace["outer_residual"][-1] < 1e-6
    values = solution.trace["outer_value"]
    w0 = ridge_solution(jnp.zeros((3, 3)))[None]
    assert values[-1] < 5 * problem.outer(
        U, w0, problem.outer_data
    )  # the loss is 5.6 times as large


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"poisoned": jnp.array([1, 1])}, "each once"),
        ({"poisoned": jnp.array([12])}, "0 to 11"),
        ({"poisoned": jnp.array([], int)}, "at least one"),
        ({"radius": 0.0}, "radius > 0"),
        ({"p": 3.0}, "p = 1, 2 or infinity"),
        ({"l2": -1.0}, "l2"),
        ({"bounds": (-9.0, 9.0)}, "p = jnp.inf"),
        ({"bounds": (0.0, 1.0), "p": np.inf}, "reach from"),
    ],
)
def test_bad_calls(options, message):
    options = {"poisoned": POISONED, "radius": 0.5, **options}
    with pytest.raises(ValueError, match=message):
        tasks.poisoning(X, Y, X_VAL, Y_VAL, predict, **options)
