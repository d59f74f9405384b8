"""Constraints on w: the three ways that `docs/methods/solution_concepts.md` names.

The oracles are closed forms: the projection onto the simplex and its derivative, clipping, and the
solutions that BOLIB lists (Zhou, Zemkoho and Tin, a library of bilevel test problems).
"""

from typing import Any

import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest

import bilevel
from bilevel import AID, Box, DoubleLoop, FixedPointProblem, GradientInner, RootInner

TARGET = jnp.array([0.6, 0.1, 0.3, 0.2])


def simplex(point: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex, by sorting."""
    ordered = np.sort(point)[::-1]
    levels = (np.cumsum(ordered) - 1) / np.arange(1, len(point) + 1)
    return np.maximum(point - levels[np.flatnonzero(ordered > levels)[-1]], 0)


def kkt(u, z, _) -> Any:
    """`z - r(z)`, where r are the conditions of `min |w - u|^2 / 2` with `sum w = 1` and `w >= 0`.

    `min(w, m) = 0` says that w, m >= 0 and that one of them is zero.
    """
    stationary = z["w"] - u - z["m"] + z["n"]
    residual = {"w": stationary, "n": jnp.sum(z["w"]) - 1, "m": jnp.minimum(z["w"], z["m"])}
    return {name: z[name] - residual[name] for name in z}


@pytest.mark.slow
def test_the_conditions_of_kkt_as_a_root_with_the_active_set():
    problem = FixedPointProblem(lambda u, z, _: 0.5 * jnp.sum((z["w"] - TARGET) ** 2), kkt)
    u = jnp.array([0.9, 0.2, -0.4, 0.25])
    start = {"w": jnp.full(4, 0.25), "n": jnp.zeros(()), "m": jnp.zeros(4)}
    solver = RootInner(optx.Newton(1e-10, 1e-10, linear_solver=lx.LU()))
    stream = bilevel.Stream(bilevel.FullBatch(), None, ())
    z, *_ = solver.solve(problem, u, start, (), stream)
    expected = simplex(np.asarray(u))
    np.testing.assert_allclose(z["w"], expected, atol=1e-9)
    active = np.asarray(z["m"] > 1e-6)
    assert active.tolist() == (expected == 0).tolist() == [False, False, True, False]
    found = bilevel.implicit_gradient(problem, u, z, lx.LU())
    free = (~active).astype(float)
    error = expected - np.asarray(TARGET)
    by_hand = free * (error - (free @ error) / free.sum())
    np.testing.assert_allclose(found.grad, by_hand, atol=1e-9)

    method = DoubleLoop(solver, AID(lx.LU()), optax.sgd(0.5), warm_start=True)
    solution = bilevel.solve(problem, method, u, start, num_steps=60)
    nearest = simplex(np.asarray(TARGET) * np.array([1, 1, 0, 1]) + np.array([0, 0, -9, 0]))
    np.testing.assert_allclose(solution.w["w"], nearest, atol=1e-6)  # on the face of the start


def test_a_projected_step_as_a_fixed_point():
    """`w = P(w - s grad f)` in the box [0, 1], f = |w - u|^2 / 2: w* = clip(u)."""
    problem = FixedPointProblem(
        lambda u, w, _: 0.5 * jnp.sum((w - TARGET) ** 2),
        lambda u, w, _: jnp.clip(w - 0.5 * (w - u), 0.0, 1.0),
    )
    u = jnp.array([0.4, 1.7, -0.3, 0.9])
    method = DoubleLoop(GradientInner(optax.sgd(1.0), 60), AID(lx.LU()), optax.sgd(0.5))
    solution = bilevel.solve(problem, method, u, jnp.full(4, 0.5), num_steps=1)
    inside = (np.asarray(u) > 0) & (np.asarray(u) < 1)
    gradient = np.where(inside, np.clip(u, 0, 1) - TARGET, 0)
    np.testing.assert_allclose(solution.u, u - 0.5 * gradient, atol=1e-12)
    np.testing.assert_allclose(solution.w, np.clip(u, 0, 1), atol=1e-12)


# Two problems of BOLIB whose inner objective is linear in w: w jumps from one bound to the other, and
# Phi with it. Descent ends at a solution of one piece; which one depends on the start.

BARRIER = 1e-2
MORGAN_PATRONE = bilevel.BilevelProblem(  # MorganPatrone2006a: f = u w, |w| <= 1, and w = tanh z
    outer=lambda u, z, _: -u - jnp.tanh(z),
    inner=lambda u, z, _: u * jnp.tanh(z) - BARRIER * jnp.log(1 - jnp.tanh(z) ** 2),
    geometry=Box(-0.5, 0.5),
)


@pytest.mark.slow
@pytest.mark.parametrize("start", [-0.4, 0.4])
def test_a_barrier_on_a_problem_whose_solution_jumps(start):
    """BOLIB's solution is F = -1 at u = 0, w = 1; the barrier with t stays 2 sqrt(t) above it."""
    method = DoubleLoop(
        bilevel.MinimiserInner(optx.BFGS(1e-10, 1e-10)), AID(lx.LU()), optax.sgd(0.01), True
    )
    run = bilevel.solve(
        MORGAN_PATRONE, method, jnp.array(start), jnp.array(0.5), num_steps=600, throw=False
    )
    u = np.linspace(-0.5, 0.5, 100_000)  # where 2 t w = -u (1 - w^2)
    w = (BARRIER - np.sqrt(BARRIER**2 + u**2)) / u
    piece = u < 0 if start < 0 else u > 0.1
    least = (-u - w)[piece].min()
    assert float(-run.u - jnp.tanh(run.w)) == pytest.approx(least, abs=1e-6)
    if start < 0:
        assert least == pytest.approx(-1 + 2 * BARRIER**0.5, abs=0.01)
    else:
        assert least == pytest.approx(0.48, abs=1e-3)  # 1.5 above: a solution of its piece alone


@pytest.mark.parametrize(
    ("start", "least"), [pytest.param(0.2, 0.5, marks=pytest.mark.slow), (0.6, 0.0)]
)
def test_a_penalty_chooses_among_inner_solutions(start, least):
    """LucchettiEtal1987: f = w (u - 1), 0 <= w <= 1, and w = sin(z)^2. At u = 1 all w are solutions,
    and BOLIB's F = 0 is that of w = 0; every u < 1 has w = 1 and F >= 0.5."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, z, _: u * jnp.sin(z) ** 2 - u / 2 + 0.5,
        inner=lambda u, z, _: jnp.sin(z) ** 2 * (u - 1),
        geometry=Box(0.0, 1.0),
    )
    method = bilevel.ValueFunctionPenalty(0.1, 0.02, multiplier=1.0)
    run = bilevel.solve(problem, method, jnp.array(start), jnp.array(0.8), num_steps=1500)
    assert float(problem.outer(run.u, run.w, None)) == pytest.approx(least, abs=1e-6)


@pytest.mark.slow
def test_projected_steps_end_on_the_piece_of_their_start():
    problem = FixedPointProblem(
        lambda u, w, _: -u - w, lambda u, w, _: jnp.clip(w - u, -1.0, 1.0), geometry=Box(-0.5, 0.5)
    )
    method = DoubleLoop(GradientInner(optax.sgd(1.0), 100), AID(lx.LU()), optax.sgd(0.02), True)
    run = bilevel.solve(problem, method, jnp.array(0.2), jnp.array(0.3), num_steps=100)
    assert (float(run.u), float(run.w)) == pytest.approx((0.5, -1.0))
