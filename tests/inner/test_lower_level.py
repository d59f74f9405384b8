"""`check_lower_level` on inner problems whose minima are known."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import BilevelProblem, Solution, check_lower_level
from bilevel._ending import spare_evaluations

SOBA = bilevel.SOBA(0.1, 0.1, 0.05)


def found(u, w) -> Solution:
    """A solution to be judged, from any method."""
    return Solution(jnp.asarray(u), jnp.asarray(w), bilevel.RESULTS.successful, None, {}, {})


def mirrlees():
    """Mirrlees (1999): first-order conditions hold on a curve whose greater part is no minimum.

    The solution is u = 1, w = 0.958, where both minima of f are equally low.
    """
    return BilevelProblem(
        lambda u, w, _: (u - 2) ** 2 + (w - 1) ** 2,
        lambda u, w, _: -u * jnp.exp(-((w + 1) ** 2)) - jnp.exp(-((w - 1) ** 2)),
    )


def test_a_stationary_point_of_the_first_order_conditions_that_is_no_solution():
    run = bilevel.solve(
        mirrlees(), bilevel.SOBA(0.1, 0.1, 0.05), jnp.array(1.5), jnp.array(2.0), num_steps=5000
    )
    check = check_lower_level(mirrlees(), run)
    assert check.residual < 1e-3
    assert check.verdict == "not_minimal"
    # f is least near w = -1 for u > 1: the minimum of a fine grid
    grid = jnp.linspace(-3, 3, 60_001)
    f = mirrlees().inner(run.u, grid, None)
    assert check.inner_values.min() == pytest.approx(float(f.min()), abs=1e-6)
    np.testing.assert_allclose(check.w, grid[f.argmin()], atol=1e-3)
    assert "solves first-order conditions only" in str(check)


def test_a_converged_run_says_so_by_itself_where_that_is_cheap():
    method = bilevel.SOBA(0.1, 0.1, 0.05)
    start = jnp.array(1.5), jnp.array(2.0)
    options = {"num_steps": 20_000, "tol": 1e-6, "throw": False}
    run = bilevel.solve(mirrlees(), method, *start, **options)
    assert run.stats["converged"]
    assert run.result == bilevel.RESULTS.lower_level_not_minimal
    assert "solves first-order conditions only" in str(run)
    with pytest.raises(bilevel.BilevelError, match="does not minimise the inner problem"):
        bilevel.solve(mirrlees(), method, *start, num_steps=20_000, tol=1e-6)
    # A large problem pays for it with a twentieth of its inner gradients, or is left alone.
    assert _spare(w=jnp.zeros(200_000), calls=137) == 0
    assert _spare(w=jnp.zeros(200_000), calls=10_000) == 100
    assert _spare(w=jnp.zeros(3), calls=137) == 30
    # Where w is kept in a set, f may be lower outside of it.
    kept = bilevel.GradientInner(optax.sgd(0.1), 3, bilevel.Box(0.0, 2.0))
    loop = bilevel.DoubleLoop(kept, bilevel.ITD(), optax.sgd(0.1))
    assert _spare(w=jnp.zeros(3), calls=137, method=loop) == 0


def _spare(w, calls, method: Any = SOBA):
    state = method.init(mirrlees(), jnp.array(1.5), w, jax.random.key(0))
    counted = eqx.tree_at(lambda s: s.calls.inner_grad, state, jnp.array(calls))
    return spare_evaluations(mirrlees(), method, counted)


def test_the_right_branch_is_found_to_be_unique():
    u, w = 1.5, -1.0
    for _ in range(50):  # Newton's method on f_w = 0
        g = jax.grad(lambda w: mirrlees().inner(u, w, None))
        w = w - g(w) / jax.grad(g)(w)
    assert check_lower_level(mirrlees(), found(u, w)).verdict == "unique"


@pytest.mark.parametrize(
    ("inner", "w", "verdict"),
    [
        (lambda u, w, _: jnp.sum((w - u) ** 2), jnp.zeros(3), "unique"),
        (lambda u, w, _: jnp.sum((w - u) ** 2), jnp.full(3, 0.5), "not_stationary"),
        (lambda u, w, _: (w[0] - u) ** 2, jnp.zeros(3), "not_unique"),
        (lambda u, w, _: jnp.sum(jnp.cos(w + u)), jnp.zeros(1), "not_minimal"),  # a maximum
        (lambda u, w, _: (w[0] ** 2 - w[1] ** 2) / 4 + w[1] ** 4, jnp.zeros(2), "not_minimal"),
        (lambda u, w, _: jnp.sum((w**2 - 1) ** 2), jnp.ones(1), "not_unique"),
    ],
    ids=["bowl", "slope", "valley", "maximum", "saddle", "two wells"],
)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_verdicts_do_not_depend_on_the_unit_of_f(inner, w, verdict, scale):
    problem = BilevelProblem(
        lambda u, w, _: jnp.sum((w - 1.0) ** 2), lambda u, w, b: scale * inner(u, w, b) + scale
    )
    check = check_lower_level(problem, found(0.0, w))
    assert check.verdict == verdict
    assert str(check)


def test_several_minimisers_are_told_with_the_range_of_the_outer_objective():
    problem = BilevelProblem(
        lambda u, w, _: (w["a"] - 1.0) ** 2, lambda u, w, _: (w["a"] ** 2 - 1) ** 2
    )
    check = check_lower_level(
        problem,
        Solution(jnp.array(0.0), {"a": jnp.array(1.0)}, bilevel.RESULTS.successful, None, {}, {}),
        lambda key: {"a": jax.random.normal(key)},
        num_starts=8,
    )
    assert check.verdict == "not_unique"
    assert check.outer_values.max() == pytest.approx(4.0, rel=1e-3)
    assert check.distances.max() == pytest.approx(2.0, rel=1e-3)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="`num_starts` must be at least 1, got 0"):
        check_lower_level(mirrlees(), found(1.0, 1.0), num_starts=0)
