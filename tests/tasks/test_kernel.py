"""Kernel ridge regression against scikit-learn's and the derivative of its closed form."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

import bilevel
from bilevel import tasks
from helpers import implicit_gradient

N, FEATURES = 30, 3
SOLUTION = eqx.filter_jit(tasks.reference.kernel_ridge_solution)  # eager, each operation compiles


def rows():
    """The third feature has nothing to do with the target."""
    rng = np.random.default_rng(0)
    x, x_val = rng.normal(size=(2, N, FEATURES))

    def target(x):
        return np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] + 0.1 * rng.normal(size=N)

    return x, target(x), x_val, target(x_val)


def problem_of(**options) -> Any:
    return tasks.kernel_ridge(*(jnp.asarray(a) for a in rows()), **options)


POINTS = {
    "one length-scale": (jnp.asarray(0.3), jnp.asarray(-4.0)),
    "one per feature": (jnp.asarray([0.0, 0.5, 1.5]), jnp.asarray(-5.0)),
}


def scikit_learn(u, x, y, x_val):
    scale, n = np.exp(np.asarray(u[0])) * np.ones(FEATURES), len(x)
    model = KernelRidge(kernel="rbf", gamma=0.5, alpha=n * np.exp(float(u[1])))
    model.fit(x / scale, y)
    return model.dual_coef_, model.predict(x_val / scale)


@pytest.mark.parametrize("name", POINTS)
def test_the_solution_is_that_of_scikit_learn(name):
    u, (x, y, x_val, y_val) = POINTS[name], rows()
    problem = problem_of()
    w, predicted = scikit_learn(u, x, y, x_val)
    found = SOLUTION(u, problem.inner_data)
    np.testing.assert_allclose(found, w, rtol=1e-9)
    value, residual = eqx.filter_jit(
        lambda u, w: (
            problem.outer(u, w, problem.outer_data),
            problem.residual(u, w, problem.inner_data),
        )
    )(u, found)
    np.testing.assert_allclose(value, 0.5 * np.mean((predicted - y_val) ** 2), rtol=1e-10)
    np.testing.assert_allclose(residual, 0, atol=1e-14)


@pytest.mark.parametrize("name", POINTS)
def test_hypergradient_is_the_derivative_of_the_closed_form(name):
    u, problem = POINTS[name], problem_of()

    def phi(u):
        w = tasks.reference.kernel_ridge_solution(u, problem.inner_data)
        return problem.outer(u, w, problem.outer_data)

    exact = jax.jit(jax.grad(phi))(u)
    w = SOLUTION(u, problem.inner_data)
    for solver in (lx.Cholesky(), bilevel.CG(rtol=1e-13)):
        found = implicit_gradient(problem, u, w, solver).grad
        for a, b in zip(found, exact, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-11)
    # and central differences of scikit-learn's predictions, in the penalty
    x, y, x_val, y_val = rows()
    values = []
    for step in (1e-4, -1e-4):
        _, predicted = scikit_learn((u[0], u[1] + step), x, y, x_val)
        values.append(0.5 * np.mean((predicted - y_val) ** 2))
    np.testing.assert_allclose(exact[1], (values[0] - values[1]) / 2e-4, rtol=1e-6)


def laplacian(log_scale, a, b):
    return jnp.exp(-jnp.sum(jnp.abs(a[:, None] - b[None]), axis=-1) * jnp.exp(-log_scale))


def test_any_kernel():
    x, y, x_val, y_val = rows()
    u = jnp.asarray(1.0), jnp.asarray(-4.0)
    problem = problem_of(kernel=laplacian)
    solution = partial(tasks.reference.kernel_ridge_solution, kernel=laplacian)
    model = KernelRidge(kernel="laplacian", gamma=np.exp(-1.0), alpha=N * np.exp(-4.0)).fit(x, y)
    w = solution(u, problem.inner_data)
    np.testing.assert_allclose(w, model.dual_coef_, rtol=1e-10)
    value = problem.outer(u, w, problem.outer_data)
    np.testing.assert_allclose(
        value, 0.5 * np.mean((model.predict(x_val) - y_val) ** 2), rtol=1e-10
    )


def test_a_minibatch_of_dual_coefficients_is_refused():
    problem, u = problem_of(), POINTS["one length-scale"]
    with pytest.raises(ValueError, match="FullBatch"):
        problem.inner(u, jnp.zeros(N), jax.tree.map(lambda a: a[:5], problem.inner_data))
