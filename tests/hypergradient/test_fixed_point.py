"""`FixedPointProblem`: maps that are not symmetric, and maps of optimisers."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest

import bilevel
from bilevel import AID, ITD, DoubleLoop, GradientInner
from helpers import CASES, estimate_on_all_data, flat, norm_error

N, M = 5, 3
RNG = np.random.default_rng(0)
J = 0.6 * RNG.normal(size=(N, N)) / np.sqrt(N)
C, T = RNG.normal(size=(N, M)), RNG.normal(size=N)
U = jnp.asarray(RNG.normal(size=M))
PICARD = GradientInner(optax.sgd(1.0), 200)

AFFINE = bilevel.FixedPointProblem(  # w* = (I - J)^{-1} C u
    outer=lambda u, w, _: 0.5 * jnp.sum((w - T) ** 2) + 0.1 * jnp.sum(u**2),
    map=lambda u, w, _: jnp.asarray(J) @ w + jnp.asarray(C) @ u,
)
INVERSE = np.linalg.inv(np.eye(N) - J)


def affine_gradient(u):
    u = np.asarray(u)
    return 0.2 * u + (INVERSE @ C).T @ (INVERSE @ C @ u - T)


ESTIMATORS = {
    "LU": AID(lx.LU()),
    "GMRES": AID(lx.GMRES(rtol=1e-12, atol=1e-12)),
    "Richardson": AID(bilevel.Richardson(1.0, rtol=1e-13)),
    "Neumann": AID(bilevel.Neumann(1.0, 300)),
    "SID": bilevel.SID(bilevel.StochasticRichardson(1.0, 300), 2),
    "ITD": ITD(),
    "ITD forward": ITD("forward"),
    "ITD checkpointed": ITD("checkpointed"),
    "ITD truncated": ITD(truncate=150),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_closed_form_of_a_map_that_is_not_symmetric(name):
    assert np.linalg.norm(J - J.T) > 0.5
    found = estimate_on_all_data(AFFINE, ESTIMATORS[name], PICARD, U, jnp.zeros(N))
    np.testing.assert_allclose(found.w, INVERSE @ C @ np.asarray(U), rtol=1e-9)
    np.testing.assert_allclose(found.grad, affine_gradient(U), rtol=1e-9)
    assert float(found.inner_residual) < 1e-12


def test_solve_runs_on_a_fixed_point_problem():
    method = DoubleLoop(PICARD, AID(lx.GMRES(rtol=1e-10, atol=1e-10)), optax.sgd(0.05))
    solution = bilevel.solve(AFFINE, method, U, jnp.zeros(N), num_steps=3000, tol=1e-6)
    a = INVERSE @ C
    truth = np.linalg.solve(0.2 * np.eye(M) + a.T @ a, a.T @ T)
    np.testing.assert_allclose(solution.u, truth, rtol=1e-4)
    assert solution.stats["converged"]


def test_parts_that_need_an_objective_refuse_a_map():
    with pytest.raises(TypeError, match=r"`SOBA` needs an inner objective.*use `DoubleLoop`"):
        bilevel.solve(AFFINE, bilevel.SOBA(0.1, 0.1, 0.1), U, jnp.zeros(N), num_steps=1)
    inner = bilevel.MinimiserInner(optx.BFGS(1e-6, 1e-6))
    with pytest.raises(TypeError, match="`MinimiserInner` minimises an inner objective"):
        estimate_on_all_data(AFFINE, AID(lx.LU()), inner, U, jnp.zeros(N))
    with pytest.raises(ValueError, match=r"tagged `lineax\.positive_semidefinite_tag`"):
        estimate_on_all_data(AFFINE, AID(bilevel.CG()), PICARD, U, jnp.zeros(N))
    with pytest.raises(TypeError, match=r"`map` must be a function|map"):
        bilevel.FixedPointProblem(lambda u, w, _: 0.0, 3)  # pyright: ignore
    wrong = bilevel.FixedPointProblem(AFFINE.outer, lambda u, w, _: w[:2] * u[0])
    method = DoubleLoop(PICARD, AID(lx.LU()), optax.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"must return a pytree like w, got shapes \(2,\) for w of \(5,\)"
    ):
        bilevel.solve(wrong, method, U, jnp.zeros(N), num_steps=1)
    blind = bilevel.FixedPointProblem(AFFINE.outer, lambda u, w, _: 0.5 * w)
    with pytest.raises(ValueError, match="does not depend on its argument `u`"):
        bilevel.implicit_gradient(blind, U, jnp.zeros(N), lx.LU())


# Models trained by momentum or Adam.


OPTIMISERS = {
    "momentum": (optax.sgd(0.05, momentum=0.8), 2000),
    "adam": (optax.adam(optax.exponential_decay(0.1, 300, 0.5)), 6000),
}


@pytest.fixture
def standard_promotion():
    """Adam of optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_optimizer_aware_itd(name):
    case, (tx, steps) = CASES["coupled"], OPTIMISERS[name]
    found = estimate_on_all_data(case.problem, ITD(), GradientInner(tx, steps), case.u, case.w0)
    assert norm_error(found.grad, case.gradient(case.u)) < 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_preconditioning_by_adam_speeds_up_the_fixed_point():
    """With badly scaled curvature the plain fixed point is slow, and that of Adam is not."""
    scales = jnp.geomspace(1.0, 1e4, 6)
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(w),
        inner=lambda u, w, _: 0.5 * jnp.sum(scales * (w - jnp.sin(u)) ** 2),
    )
    u = jnp.linspace(0.1, 1.0, 6)
    # The state that a stationary noise of the gradients, of the size of the curvature, leaves.
    tx = optax.adam(0.5, b1=0.0, b2=0.999, eps=1e-8)
    state: Any = tx.init(u)
    state = (state[0]._replace(nu=scales**2, count=jnp.asarray(10**6, jnp.int32)), *state[1:])
    mapped = bilevel.optimizer_fixed_point(problem, tx, state)
    w = jnp.sin(u)
    truth = np.cos(np.asarray(u))
    plain = bilevel.implicit_gradient(problem, u, w, bilevel.Richardson(rtol=0.0, max_steps=40))
    better = bilevel.implicit_gradient(
        mapped, u, w, bilevel.Richardson(1.0, rtol=0.0, max_steps=40)
    )
    assert np.linalg.norm(flat(plain.grad) - truth) > 0.5
    np.testing.assert_allclose(flat(better.grad), truth, rtol=1e-9)
