"""Learning rate, momentum and start as outer variables: by hand, by differences, by a grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import ITD, DoubleLoop, GradientInner, tasks
from bilevel.tasks import Descent, DescentSettings
from bilevel.tasks.models import linear_predict, squared_error
from helpers import estimate_on_all_data

RNG = np.random.default_rng(0)
X, X_VAL = RNG.normal(size=(20, 3)), RNG.normal(size=(15, 3))
Y, Y_VAL = X @ [1.0, -2.0, 0.5] + RNG.normal(size=20), X_VAL @ [1.0, -2.0, 0.5]
START = np.array([0.3, 0.1, -0.2])


def arrays(*given: Any) -> Any:
    return tuple(jnp.asarray(x) for x in given)


ROWS = arrays(X, Y, X_VAL, Y_VAL)
RUN = tasks.learning_rate(*ROWS, predict=linear_predict, loss=squared_error)
W0 = Descent(jnp.asarray(START), jnp.zeros(3))


def by_hand(log_rate: float, logit: float, num_steps: int) -> float:
    """The validation loss after so many steps of gradient descent with momentum."""
    p, v = START, np.zeros(3)
    for _ in range(num_steps):
        v = v / (1 + np.exp(-logit)) - np.exp(log_rate) * X.T @ (X @ p - Y) / 20
        p = p + v
    return float(0.5 * np.mean((X_VAL @ p - Y_VAL) ** 2))


@pytest.mark.parametrize(
    "mode",
    [*(pytest.param(m, marks=pytest.mark.slow) for m in ("reverse", "checkpointed")), "forward"],
)
def test_the_derivative_in_rate_and_momentum(mode):
    u, h = DescentSettings(jnp.asarray(-2.0), jnp.asarray(0.4)), 1e-6
    inner = GradientInner(optax.sgd(1.0), 7)
    found = estimate_on_all_data(RUN, ITD(mode), inner, u, W0)
    np.testing.assert_allclose(found.value, by_hand(-2.0, 0.4, 7), rtol=1e-12)
    truth = [
        (by_hand(-2.0 + a, 0.4 + b, 7) - by_hand(-2.0 - a, 0.4 - b, 7)) / (2 * h)
        for a, b in ((h, 0), (0, h))
    ]
    np.testing.assert_allclose(found.grad, truth, rtol=1e-7)


@pytest.mark.slow
def test_tuned_rate_and_momentum_are_the_best_of_a_grid():
    method = DoubleLoop(GradientInner(optax.sgd(1.0), 5), ITD("forward"), optax.adam(0.05))
    u = DescentSettings(jnp.asarray(-3.0), jnp.asarray(-2.0))
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes dtypes
        found = bilevel.solve(RUN, method, u, W0, num_steps=400).u
    grid = [by_hand(a, b, 5) for a in np.linspace(-3, 0.5, 71) for b in np.linspace(-5, 2, 71)]
    value = by_hand(float(found.log_rate), float(found.logit_momentum), 5)
    assert value < min(grid) + 1e-4
    assert value < 0.2 * by_hand(-3.0, -2.0, 5)


def few() -> tasks.Episodes:
    """Three regression tasks of five rows, and as many to judge by."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 3, 5, 3)))
    y = jnp.einsum("stik,tk->sti", x, jnp.asarray(rng.normal(size=(3, 3))))
    return tasks.Episodes(x[0], y[0], x[1], y[1])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("num_steps", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_start_is_maml(num_steps):
    """The derivative of each task's own training from the shared start, written out."""
    given, rate = few(), 0.1

    def after(start):
        def one(x, y, x_query, y_query):
            w = start
            for _ in range(num_steps):
                w = w - rate * x.T @ (x @ w - y) / len(y)
            return 0.5 * jnp.mean((x_query @ w - y_query) ** 2)

        return jnp.mean(jax.vmap(one)(*given))

    problem = tasks.initialisation(given, linear_predict, loss=squared_error)
    u, inner = jnp.asarray(START), GradientInner(optax.sgd(rate), num_steps)
    found = estimate_on_all_data(problem, ITD(), inner, u, jnp.zeros((3, 3)))
    value, grad = jax.value_and_grad(after)(u)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    np.testing.assert_allclose(found.grad, grad, rtol=1e-10)
    method = DoubleLoop(inner, ITD(), optax.sgd(0.5))
    learned = bilevel.solve(problem, method, u, jnp.zeros((3, 3)), num_steps=500).u
    assert np.linalg.norm(jax.grad(after)(learned)) < 1e-6  # a convex quadratic


def test_batches_of_tasks_are_unbiased():
    problem = tasks.initialisation(few(), linear_predict, loss=squared_error)
    u, w = jnp.asarray(START), jnp.asarray(RNG.normal(size=(3, 3)))
    for objective, data in (
        (problem.inner, problem.inner_data),
        (problem.outer, problem.outer_data),
    ):
        batches = [jax.tree.map(lambda x, i=i: x[i : i + 1], data) for i in range(3)]
        parts = [float(objective(u, w, batch)) for batch in batches]
        np.testing.assert_allclose(np.mean(parts), objective(u, w, data), rtol=1e-12)
