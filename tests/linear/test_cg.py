"""`bilevel.CG` against numpy, and where `lineax.CG` gives up."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from bilevel import CG

N = 8


def spd(seed: int = 0, low: float = 1.0, high: float = 50.0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(N, N)))
    return (q * np.geomspace(low, high, N)) @ q.T


def operator(matrix) -> lx.AbstractLinearOperator:
    matrix = jnp.asarray(matrix)
    return lx.MatrixLinearOperator(0.5 * (matrix + matrix.T), lx.positive_semidefinite_tag)


def solve(matrix, b, solver: lx.AbstractLinearSolver, **options):
    return lx.linear_solve(operator(matrix), jnp.asarray(b), solver, options=options, throw=False)


B = np.random.default_rng(1).normal(size=N)


@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_numpy(seed):
    a = spd(seed)
    solution = solve(a, B, CG(rtol=1e-12))
    np.testing.assert_allclose(solution.value, np.linalg.solve(a, B), rtol=1e-10)
    assert solution.result == lx.RESULTS.successful
    assert N <= solution.stats["num_steps"] <= 2 * N


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_isotropic_operator_takes_one_step(scale):
    solution = solve(scale * np.eye(N), B, CG(rtol=1e-10))
    np.testing.assert_allclose(solution.value, B / scale, rtol=1e-14)
    assert solution.stats["num_steps"] == 1


def test_a_start_at_the_solution_stays_there():
    a = spd()
    x = np.linalg.solve(a, B)
    solution = solve(a, B, CG(rtol=1e-9), y0=jnp.asarray(x))
    np.testing.assert_array_equal(solution.value, x)
    assert solution.stats["num_steps"] == 0
    # Also with nothing to stop it: all steps of a zero residual are harmless.
    forced = solve(np.eye(N), B, CG(rtol=0.0, max_steps=5), y0=jnp.asarray(B))
    np.testing.assert_array_equal(forced.value, B)


def test_a_warm_start_far_away_reaches_the_same_solution():
    a = spd()
    solution = solve(a, B, CG(rtol=1e-12), y0=jnp.asarray(100 * B))
    np.testing.assert_allclose(solution.value, np.linalg.solve(a, B), rtol=1e-9)


def test_negative_curvature_stops_with_a_code_and_the_iterate_so_far():
    a = np.diag(np.r_[np.ones(N - 1), -1.0])
    solution = solve(a, np.eye(N)[-1], CG(rtol=1e-10))
    assert solution.result == lx.RESULTS.breakdown
    assert bool(solution.stats["negative_curvature"])
    np.testing.assert_array_equal(solution.value, np.zeros(N))
    # The first direction is fine here and the second is not: one step is kept.
    mixed = solve(np.diag(np.r_[2 * np.ones(N - 1), -0.1]), np.ones(N), CG(rtol=1e-10))
    assert mixed.result == lx.RESULTS.breakdown
    assert mixed.stats["num_steps"] == 2
    assert np.isfinite(mixed.value).all()
    assert np.linalg.norm(mixed.value) > 0


def test_too_few_steps_have_a_code():
    solution = solve(spd(), B, CG(rtol=1e-12, max_steps=3))
    assert solution.result == lx.RESULTS.max_steps_reached
    assert solution.stats["num_steps"] == 3
    # Asked for a fixed number of steps, making them is success.
    fixed = solve(spd(), B, CG(rtol=0.0, max_steps=3))
    assert fixed.result == lx.RESULTS.successful
    np.testing.assert_array_equal(fixed.value, solution.value)


@pytest.mark.parametrize("curvature", [1e-4])
def test_tiny_curvature_in_float32_where_lineax_breaks_down(curvature):
    n = 1000
    rng = np.random.default_rng(0)
    diagonal = jnp.asarray(curvature * rng.uniform(1, 2, n), jnp.float32)
    a = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(diagonal), lx.positive_semidefinite_tag)
    b = jnp.asarray(rng.normal(size=n), jnp.float32)
    theirs = lx.linear_solve(a, b, lx.CG(rtol=1e-4, atol=1e-4), throw=False).value
    ours = lx.linear_solve(a, b, CG(rtol=1e-5), throw=False)
    assert np.isnan(theirs).any()  # drop `CG` from the library once this fails
    assert ours.result == lx.RESULTS.successful
    np.testing.assert_allclose(ours.value, np.asarray(b / diagonal), rtol=1e-3)
    assert ours.value.dtype == jnp.float32


def test_derivatives_through_linear_solve_are_those_of_the_inverse():
    a, da = spd(), spd(3)
    db = np.random.default_rng(2).normal(size=N)
    inverse = jax.jit(lambda a, b: lx.linear_solve(operator(a), b, CG(rtol=1e-13)).value)
    at, along = ((jnp.asarray(a), jnp.asarray(b)) for a, b in [(a, B), (da, db)])
    x, dx = jax.jit(lambda at, along: jax.jvp(inverse, at, along))(at, along)
    np.testing.assert_allclose(dx, np.linalg.solve(a, db - da @ np.asarray(x)), rtol=1e-9)
    gradient = jax.jit(jax.grad(lambda b: jnp.sum(inverse(at[0], b))))(at[1])
    np.testing.assert_allclose(gradient, np.linalg.solve(a, np.ones(N)), rtol=1e-9)


def test_untagged_operators_and_bad_tolerances_are_refused():
    with pytest.raises(ValueError, match=r"needs an operator tagged .*positive_semidefinite_tag"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.eye(N)), jnp.asarray(B), CG())
    with pytest.raises(ValueError, match=r"tolerances must be >= 0, got rtol=-1"):
        CG(rtol=-1.0)
    with pytest.raises(ValueError, match="needs `max_steps`; it would never stop"):
        CG(rtol=0.0, atol=0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e24, 1e30])
def test_the_size_of_the_right_hand_side_does_not_matter_in_float32(scale):
    """The square of 1e-24 is 0 in float32, that of 1e24 infinite."""
    a, b = jnp.asarray(spd(), jnp.float32), jnp.asarray(B * scale, jnp.float32)
    solution = solve(a, b, CG(rtol=1e-4), y0=b)
    expected = np.linalg.solve(np.asarray(a, float), np.asarray(b, float))
    np.testing.assert_allclose(solution.value / scale, expected / scale, rtol=1e-2, atol=1e-4)
    assert solution.stats["num_steps"] >= 4
