"""Several inner minimisers: the methods that reach the best one, and those that stay where w
began."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import AID, PDBO, BilevelProblem, DoubleLoop, GradientInner

START = (0.0, [0.0, 2.0])  # u and w; w_2 is free for f
DELTA = 1e-3


def outer(u, w, batch):
    """Best at u = w_1 = w_2 = 1 (Liu, Mu, Yuan, Zeng and Zhang 2020, in one dimension)."""
    return 0.5 * (u - w[1]) ** 2 + 0.5 * (w[0] - 1) ** 2


def inner(u, w, batch):
    """The minimisers have w_1 = u and any w_2."""
    return 0.5 * w[0] ** 2 - u * w[0]


def priced(u, w, batch):
    """`outer` with a price on u: best at u = w_1 = w_2 = 1/2, and F = 1/4, where grad F is not
    0."""
    return outer(u, w, batch) + 0.5 * u**2


FREE, PRICED = BilevelProblem(outer, inner), BilevelProblem(priced, inner)


def solve(algorithm, problem=PRICED, num_steps=1000, start=START, **options) -> bilevel.Solution:
    u0, w0 = (jnp.asarray(x, float) for x in start)
    options = {"key": jax.random.key(0), "throw": False} | options
    return bilevel.solve(problem, algorithm, u0, w0, num_steps=num_steps, **options)


def point(solution) -> np.ndarray:
    """(u, w_1, w_2)."""
    return np.array([solution.u, *solution.w])


def above(solution) -> float:
    """How far f is above its minimum."""
    return float((solution.w[0] - solution.u) ** 2 / 2)


FIRST_ORDER: dict[str, tuple[bilevel.AbstractAlgorithm, float]] = {
    # With default settings, the largest distance of u, w_1 or w_2 from the best point.
    "PDBO": (PDBO(), np.sqrt(2 * DELTA) / 2 + 1e-6),
    "penalty": (bilevel.ValueFunctionPenalty(), 0.5 / 21 + 1e-6),  # 1 / (2 + 4 * 10)
    "BOME": (bilevel.BOME(), 3e-3),
}


@pytest.mark.parametrize("name", FIRST_ORDER)
@pytest.mark.slow
def test_first_order_methods_reach_the_best_point(name):
    algorithm, tolerance = FIRST_ORDER[name]
    assert np.abs(point(solve(algorithm)) - 0.5).max() < tolerance


def test_conjugate_gradients_say_that_the_hessian_is_singular():
    with pytest.warns(bilevel.HypergradientWarning, match="not positive"):
        found = solve(DoubleLoop(GradientInner(optax.sgd(0.5), 40), AID()))
    # H v = grad_w F has no solution: what v cannot meet is |w_2 - u|, and w_2 stays where it began.
    np.testing.assert_allclose([found.w[1], *found.trace["linear_residual"][-2:]], [2.0, 1.0, 1.0])


# PDBO against the solution of its own problem, `min F` where f is at most delta above its minimum.


def relaxed(delta: float) -> np.ndarray:
    """(u, w_1, w_2) and the multiplier, by hand."""
    gap = np.sqrt(2 * delta)
    return np.array([(1 - gap) / 2, (1 + gap) / 2, (1 - gap) / 2, (1 - gap) / (2 * gap)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("delta", "options"),
    [(1e-2, {}), (1e-3, {}), (1e-3, {"extrapolation": 1.0}), (1e-3, {"first_multiplier": 100.0})],
)
def test_the_relaxed_problem_is_solved(delta, options):
    found = solve(PDBO(delta=delta, **options), num_steps=3000)
    multiplier = found.state.aux.multiplier
    np.testing.assert_allclose([*point(found), multiplier], relaxed(delta), rtol=1e-6)
    assert above(found) < delta * (1 + 1e-6)


def test_a_constraint_that_costs_nothing_has_no_multiplier():
    """All points with u = w_2 and w_1 = 1 have F = 0, and f above its minimum by delta or less."""
    found = solve(PDBO(), FREE)
    assert found.state.aux.multiplier == 0
    assert FREE.outer(found.u, found.w, None) < 1e-12
    assert above(found) < DELTA


def trajectory(algorithm, start, num_steps=1000) -> tuple[np.ndarray, np.ndarray]:
    """The multiplier and how far f is above its minimum, after each step."""
    u0, w0 = (jnp.asarray(x, float) for x in start)

    def body(state: Any, _: None) -> tuple[Any, Any]:
        state, _ = algorithm.step(PRICED, state)
        return state, (state.aux.multiplier, (state.w[0] - state.u) ** 2 / 2)

    first = algorithm.init(PRICED, u0, w0, jax.random.key(0))
    found = jax.jit(lambda state: jax.lax.scan(body, state, length=num_steps)[1])(first)
    return np.asarray(found[0]), np.asarray(found[1])


def test_the_constraint_holds_in_the_end():
    """f minus its minimum is 12500 delta at the start, 305 delta after one step, and tends to
    delta from above."""
    multiplier, gap = trajectory(PDBO(), (0.0, [5.0, 2.0]))
    assert gap[0] > 90 * DELTA
    assert np.all(gap[10:] < 1.15 * DELTA)
    assert np.all(gap[300:] < 1.001 * DELTA)
    np.testing.assert_allclose(gap[-1], DELTA, rtol=1e-7)
    assert np.all((multiplier > 7) & (multiplier < 12))


def test_the_multiplier_stays_in_its_bounds():
    """With the bound 2 it is a penalty of 2: u = 2/5, and f is 0.02 above its minimum."""
    multiplier, gap = trajectory(PDBO(max_multiplier=2.0), START)
    assert np.all((multiplier >= 0) & (multiplier <= 2))
    assert np.all(multiplier[-500:] == 2)
    np.testing.assert_allclose(gap[-1], 0.02, rtol=1e-6)
    multiplier, _ = trajectory(PDBO(delta=1.0), START)
    assert np.all(multiplier >= 0)
    assert multiplier[-1] == 0


# A problem in more dimensions, where ten steps do not solve the inner problem.


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"num_inner >= 1, got 0\."):
        PDBO(num_inner=0)
    with pytest.raises(ValueError, match=r"delta > 0, got 0\.0"):
        PDBO(delta=0.0)
