"""Objectives with derivative rules of their own, and derivatives of solves that stop early."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from bilevel import BilevelProblem, FixedPointProblem


@jax.custom_vjp
def half_square(x):
    """`|x|^2 / 2`, which forward mode cannot differentiate, as a kernel of one's own."""
    return jnp.sum(x**2) / 2


half_square.defvjp(lambda x: (half_square(x), x), lambda x, g: (x * g,))

A = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])


def plain(x):
    return jnp.sum(x**2) / 2


def least_squares(square):
    """`w*(u) = (A^T A + I)^-1 A^T u`, F = |w - 1|^2 / 2 + |u|^2 / 2."""
    return BilevelProblem(
        outer=lambda u, w, _: square(w - 1) + square(u),
        inner=lambda u, w, _: square(A @ w - u) + square(w),
    )


U = jnp.array([1.0, -2.0])
INVERSE = np.linalg.inv(A.T @ A + np.eye(3)) @ A.T
SOLUTION = jnp.asarray(INVERSE @ U)
GRADIENT = U + INVERSE.T @ (INVERSE @ U - 1)


@pytest.mark.parametrize(
    "transform", [jax.jit, pytest.param(lambda f: f, marks=pytest.mark.slow)], ids=["jit", "eager"]
)
def test_the_hypergradient_in_reverse_mode(transform):
    def estimate(u):
        return bilevel.implicit_gradient(least_squares(half_square), u, SOLUTION, lx.LU())

    found = transform(estimate)(U)
    np.testing.assert_allclose(found.grad, GRADIENT, rtol=1e-9)
    assert found.inner_residual < 1e-12
    assert found.linear_residual < 1e-9
    assert found.error_estimate == jnp.inf  # it takes third derivatives


def test_a_map_with_a_rule_of_its_own():
    @jax.custom_vjp
    def halved(x):
        return x / 2

    halved.defvjp(lambda x: (x / 2, None), lambda _, g: (g / 2,))
    problem = FixedPointProblem(lambda u, w, _: plain(w - 1), lambda u, w, _: halved(w) + u / 2)
    found = bilevel.implicit_gradient(problem, U, U, lx.GMRES(1e-10, 1e-10))
    np.testing.assert_allclose(found.grad, U - 1, rtol=1e-8)  # w*(u) = u


AUTO = bilevel.DoubleLoop(
    bilevel.GradientInner("auto", 5), bilevel.AID(bilevel.Neumann("auto", 5)), optax.sgd(0.1)
)


@pytest.mark.parametrize(
    "method",
    [
        bilevel.SOBA("auto", "auto", "auto"),
        pytest.param(bilevel.HOAG(0.1), marks=pytest.mark.slow),
        bilevel.DoubleLoop(
            bilevel.GradientInner("auto", 5),
            bilevel.AID(bilevel.Neumann("auto", 5)),
            optax.sgd(0.1),
        ),
    ],
    ids=["SOBA", "HOAG", "DoubleLoop"],
)
def test_runs_are_those_of_the_same_function_without_the_rule(method):
    one, two = (
        bilevel.solve(least_squares(square), method, U, jnp.zeros(3), num_steps=4)
        for square in (half_square, plain)
    )
    np.testing.assert_allclose(one.u, two.u, rtol=1e-10)
    np.testing.assert_allclose(one.w, two.w, rtol=1e-10)


def test_forward_itd_says_what_to_use():
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(0.1), 3), bilevel.ITD("forward"), optax.sgd(0.1)
    )
    with pytest.raises(TypeError, match=r"custom_vjp.*ITD.*reverse"):
        bilevel.solve(least_squares(half_square), method, U, jnp.zeros(3), num_steps=1)


@pytest.mark.slow
def test_differential_equations():
    """`y' = w - y` from 0 gives `y(1) = (1 - 1/e) w`; JAX's own solver has a rule of its own."""
    from jax.experimental.ode import odeint

    def inner(u, w, _):
        times = jnp.array([0.0, 1.0])
        return plain(odeint(lambda y, t, w: w - y, jnp.zeros(2), times, w)[-1] - u)

    c = 1 - np.exp(-1.0)
    problem = BilevelProblem(lambda u, w, _: plain(w - 1), inner)
    found = jax.jit(lambda u: bilevel.implicit_gradient(problem, u, u / c, bilevel.CG(1e-8)).grad)(
        U
    )
    np.testing.assert_allclose(found, (U / c - 1) / c, rtol=1e-4)


@pytest.mark.slow
def test_the_default_adjoint_of_diffrax_says_what_to_use():
    import diffrax

    def inner(adjoint):
        def objective(u, w, _):
            term = diffrax.ODETerm(lambda t, y, w: w - y)
            found = diffrax.diffeqsolve(
                term, diffrax.Tsit5(), 0.0, 1.0, 0.1, jnp.zeros(2), w, adjoint=adjoint, max_steps=16
            )
            assert found.ys is not None
            return plain(found.ys[-1] - u)

        return objective

    c = 1 - np.exp(-1.0)
    problem = BilevelProblem(
        lambda u, w, _: plain(w - 1), inner(diffrax.RecursiveCheckpointAdjoint())
    )
    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(ValueError, match="DirectAdjoint"):
            bilevel.implicit_gradient(problem, U, U / c, bilevel.CG(1e-8))
        problem = BilevelProblem(problem.outer, inner(diffrax.DirectAdjoint()))
        found = bilevel.implicit_gradient(problem, U, U / c, bilevel.CG(1e-8)).grad
    np.testing.assert_allclose(found, (U / c - 1) / c, rtol=1e-4)


# lineax raises, also within compiled code, where the solve of a derivative ends early.

SPECTRUM = jnp.repeat(jnp.array([1.0, 2.0, 5.0]), 4)  # three steps of CG are exact
EARLY = bilevel.CG(rtol=1e-30, max_steps=3)


def quartic(u, w, _):
    return jnp.sum(SPECTRUM * (w - u) ** 2) / 2


def test_second_derivatives_of_a_solve_that_ends_early():
    """`Phi = sum(w*(u)^3)` with `w*(u) = u`: the Hessian is `diag(6 u)`."""
    problem = BilevelProblem(lambda u, w, _: jnp.sum(w**3), quartic)
    u = jnp.linspace(1.0, 2.0, 12)

    def slope(u):  # along ones, so that each system has three eigenvalues in its right-hand side
        w = bilevel.implicit_layer(problem, u, jax.lax.stop_gradient(u), EARLY)
        return jnp.sum(bilevel.implicit_gradient(problem, u, w, EARLY).grad)

    same = jnp.full(12, 1.5)
    np.testing.assert_allclose(jax.jit(jax.grad(slope))(same), 6 * same, rtol=1e-9)
    assert jnp.all(jnp.isfinite(jax.jit(jax.grad(slope))(u)))


def test_the_layer_whose_derivative_ends_early():
    problem = BilevelProblem(lambda u, w, _: jnp.sum(w), quartic)
    same = jnp.full(12, 1.5)

    def phi(u):
        return jnp.sum(bilevel.implicit_layer(problem, u, jax.lax.stop_gradient(u), EARLY) ** 2)

    np.testing.assert_allclose(jax.jit(jax.grad(phi))(same), 2 * same, rtol=1e-9)


def test_numbers_of_python_are_variables_of_the_layer():
    problem = BilevelProblem(lambda u, w, _: w, lambda u, w, _: (w - u) ** 2)
    assert float(bilevel.implicit_layer(problem, 2.0, 2.0)) == 2.0
