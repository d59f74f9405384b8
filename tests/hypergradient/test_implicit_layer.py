"""`implicit_layer` under jax's transformations, and with closures."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel
from bilevel import implicit_layer
from helpers import CASES, norm_error

SOLVERS = {"default": None, "LU": lx.LU(), "CG": bilevel.CG(rtol=1e-13)}


def layered(case, solver):
    """Phi through the layer; the solution is found without any derivative."""

    def phi(u):
        w = jax.lax.stop_gradient(case.w_star(u))
        return case.problem.outer(
            u, implicit_layer(case.problem, u, w, solver), case.problem.outer_data
        )

    return phi


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "case_name",
    [
        "coupled",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("scalar", "pytree", "logistic")),
    ],
)
def test_gradient(case_name, name):
    case = CASES[case_name]
    phi = layered(case, SOLVERS[name])
    tolerance = 1e-5 if name == "default" else 1e-9
    assert norm_error(jax.jit(jax.grad(phi))(case.u), case.gradient(case.u)) < tolerance
    direction = jax.tree.map(lambda x: jnp.ones_like(x), case.u)
    slope = jax.jvp(phi, (case.u,), (direction,))[1]
    np.testing.assert_allclose(float(slope), case.gradient(case.u).sum(), rtol=tolerance, atol=1e-8)


def test_vmap():
    case = CASES["coupled"]
    us = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    found = jax.vmap(jax.grad(layered(case, bilevel.CG(rtol=1e-13))))(us)
    np.testing.assert_allclose(found, np.stack([case.gradient(u) for u in us]), rtol=1e-9)


def test_the_derivative_through_the_inner_solver_is_dropped():
    problem = bilevel.BilevelProblem(lambda u, w, _: w, lambda u, w, _: 0.5 * (w - 3 * u) ** 2)
    slope = jax.grad(lambda u: implicit_layer(problem, u, 3 * u + 1e6 * (u - u)))(jnp.array(2.0))
    assert float(slope) == pytest.approx(3.0, rel=1e-6)


def test_closures_are_differentiated():
    """The inner objective closes over `a`, as in a larger program."""

    def model(a, u):
        problem = bilevel.BilevelProblem(
            outer=lambda u, w, _: w, inner=lambda u, w, _: 0.5 * (w - a * jnp.sin(u)) ** 2
        )
        return implicit_layer(problem, u, jax.lax.stop_gradient(a * jnp.sin(u)))

    a, u = jnp.array(2.0), jnp.array(0.7)
    found = jax.jit(jax.grad(model, argnums=(0, 1)))(a, u)
    np.testing.assert_allclose(found, [np.sin(0.7), 2 * np.cos(0.7)], rtol=1e-6)
    mixed = jax.grad(lambda a: jax.grad(model, argnums=1)(a, u))(a)
    np.testing.assert_allclose(mixed, np.cos(0.7), rtol=1e-6)


def test_a_map_that_is_not_symmetric():
    j = jnp.asarray(0.3 * np.random.default_rng(1).normal(size=(4, 4)))
    problem = bilevel.FixedPointProblem(lambda u, w, _: w[0], lambda u, w, _: j @ w + u)
    inverse = np.linalg.inv(np.eye(4) - np.asarray(j))
    u = jnp.arange(4.0)

    def model(u):
        return implicit_layer(problem, u, jnp.asarray(inverse) @ jax.lax.stop_gradient(u))

    np.testing.assert_allclose(jax.jacrev(model)(u), inverse, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(model)(u), inverse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("differentiate", [jax.grad, jax.jacfwd])
def test_a_linear_solve_that_diverges_gives_nan(differentiate):
    """w = 3 w + u has the derivative -1/2, and x + (b + 2 x) runs away from it."""
    problem = bilevel.FixedPointProblem(outer=lambda u, w, _: w, map=lambda u, w, _: 3.0 * w + u)

    def slope(solver):
        layer = differentiate(lambda u: implicit_layer(problem, u, -u / 2, solver))
        return float(layer(jnp.array(1.0)))

    assert np.isnan(slope(bilevel.Richardson(1.0)))
    assert slope(lx.GMRES(1e-9, 1e-9)) == pytest.approx(-0.5)
