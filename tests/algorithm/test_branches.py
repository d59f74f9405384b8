"""BOME leaves a start where nothing pulls at u, and F2SA returns the w that its u belongs to."""

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel


@pytest.mark.parametrize(
    "method",
    [
        bilevel.BOME(),
        bilevel.ValueFunctionPenalty(),
        bilevel.PDBO(),
        bilevel.F2SA(),
        bilevel.SOBA(),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("scale", [1.0, pytest.param(1e3, marks=pytest.mark.slow)])
def test_a_start_without_a_gradient_in_u_is_left(method, scale):
    """`F = scale |w - 1|^2 / 2` does not depend on u, and the start solves the inner problem."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: 0.5 * scale * jnp.sum((w - 1) ** 2),
        inner=lambda u, w, _: 0.5 * scale * jnp.sum((w - u) ** 2),
    )
    solution = bilevel.solve(problem, method, jnp.zeros(2), jnp.zeros(2), num_steps=400)
    np.testing.assert_allclose(solution.u, 1.0, atol=0.3)


@pytest.mark.parametrize("start", [-1.0, 1.0])
def test_f2sa_returns_the_branch_of_its_u(start):
    """f has the minima `w = u - 1` and `w = u + 1`; F prefers the upper one, with u = 1, w = 2.

    On the lower one the best u is 3 - 4 / 2 and F is larger.
    """
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(2 * (w - 2) ** 2 + (u - 1) ** 2),
        inner=lambda u, w, _: jnp.sum(((w - u) ** 2 - 1) ** 2) / 8,
    )
    at = jnp.full(1, start)
    method = bilevel.F2SA(0.2, 0.02, multiplier=lambda k: 2.0 + 0.02 * k.astype(float))
    solution = bilevel.solve(problem, method, jnp.zeros(1), at, num_steps=1500)
    np.testing.assert_allclose(solution.u, 1.0, atol=0.05)
    np.testing.assert_allclose(solution.w, 2.0, atol=0.05)
    value = problem.outer(solution.u, solution.w, None)
    np.testing.assert_allclose(value, solution.trace["outer_value"][-1], atol=1e-6)


def test_f2sa_takes_the_best_of_a_flat_set():
    """f has the minimisers `w[0] = u`; F prefers `w[1] = 2` among them, and u = 1."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum((w - jnp.array([1.0, 2.0])) ** 2),
        inner=lambda u, w, _: 0.5 * (w[0] - u[0]) ** 2,
    )
    solution = bilevel.solve(
        problem, bilevel.F2SA(0.3, 0.05), jnp.zeros(1), jnp.zeros(2), num_steps=1500
    )
    np.testing.assert_allclose(solution.u, 1.0, atol=0.05)
    np.testing.assert_allclose(solution.w, [1.0, 2.0], atol=0.05)
