"""Geometries: formulas, extremes, and projections against their optimality conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel import Ball, Box, Euclidean, Simplex
from bilevel._geometry import outer_residual
from helpers import assert_close

RNG = np.random.default_rng(0)
TINY = float(jnp.finfo(jnp.float64).tiny)
retract, project = jax.jit(Simplex().retract), jax.jit(Simplex().project)


def test_simplex_retract_formula():
    u, delta = RNG.dirichlet(np.ones(6)), RNG.normal(size=6)
    truth = u * np.exp(delta) / np.sum(u * np.exp(delta))
    np.testing.assert_allclose(
        np.asarray(retract(jnp.asarray(u), jnp.asarray(delta))), truth, 1e-14
    )


def test_simplex_retract_ignores_constants():
    u, delta = jnp.asarray(RNG.dirichlet(np.ones(6))), jnp.asarray(RNG.normal(size=6))
    one, two = retract(u, delta), retract(u, delta + 700.0)
    np.testing.assert_allclose(np.asarray(one), np.asarray(two), rtol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("size", [1e2, 1e6, -1e6])
def test_simplex_huge_steps_neither_overflow_nor_leave(dtype, size):
    u = jnp.full(5, 0.2, dtype)
    found = retract(u, jnp.asarray([size, 0.0, 0.0, 0.0, 0.0], dtype))
    tiny = float(jnp.finfo(dtype).tiny)
    assert found.dtype == dtype
    assert float(jnp.min(found)) >= tiny
    np.testing.assert_allclose(float(jnp.sum(found)), 1.0, rtol=4 * float(jnp.finfo(dtype).eps))
    truth = [1.0, 0.0, 0.0, 0.0, 0.0] if size > 0 else [0.0, 0.25, 0.25, 0.25, 0.25]
    np.testing.assert_allclose(np.asarray(found), truth, rtol=1e-6, atol=1e-30)


def test_simplex_steps_add_up_below_the_smallest_number():
    """A weight of e^-1e6 is none of any dtype; its log-weight is kept, and it grows from there."""
    low = retract(jnp.array([0.5, 0.5]), jnp.array([-1e6, 0.0]))
    assert float(Simplex().log_weights(low)[0]) == pytest.approx(-1e6, abs=1e-9)
    still = retract(low, jnp.array([999_000.0, 0.0]))
    assert float(Simplex().log_weights(still)[0]) == pytest.approx(-1000, abs=1e-9)
    assert 0 < float(still[0]) < 1e-290
    back = retract(still, jnp.array([1000.0, 0.0]))
    np.testing.assert_allclose(np.asarray(back), [0.5, 0.5], rtol=1e-9)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 0.2), (jnp.float64, 1e-9)])
def test_simplex_is_a_step_on_the_log_weights(dtype, error):
    """5000 steps are those of numpy on the log-weights; the log-weights reach -4000 and return."""
    steps = 3 * np.cos(np.arange(5000)[:, None] / (300 + 100 * np.arange(6))) + np.arange(6) / 100
    truth = np.full(6, -np.log(6))
    lowest = np.inf
    for step in steps:
        truth = truth + step
        truth -= truth.max() + np.log(np.sum(np.exp(truth - truth.max())))
        lowest = min(lowest, truth.min())
    u = jnp.full(6, 1 / 6, dtype)
    u, path = jax.lax.scan(lambda u, d: 2 * (retract(u, d),), u, jnp.asarray(steps, dtype))
    assert lowest < -1000
    assert float(jnp.max(jnp.abs(jnp.sum(path, axis=1) - 1))) < 1e-5
    np.testing.assert_allclose(Simplex().log_weights(u), truth, atol=error)


def test_simplex_log_weights_meet_where_they_change():
    """The two forms of an entry have the same value and slope at their border."""
    edge = TINY / float(jnp.finfo(jnp.float64).eps)
    u = edge * jnp.array([1 - 1e-6, 1.0, 1 + 1e-6])
    logs = np.asarray(Simplex().log_weights(u), np.float64)
    np.testing.assert_allclose(np.diff(logs), 1e-6, rtol=1e-4)
    assert float(Simplex().log_weights(jnp.zeros(1))[0]) == -np.inf


def test_simplex_exact_zeros_stay_zero():
    found = retract(jnp.array([0.0, 0.25, 0.75]), jnp.array([1e6, 1.0, 1.0]))
    assert float(found[0]) == 0.0
    np.testing.assert_allclose(np.asarray(found), [0.0, 0.25, 0.75], rtol=1e-14)


def test_simplex_steps_compose():
    """Mirror steps add up on the log-weights: retract(retract(u, a), b) = retract(u, a + b)."""
    u = jnp.asarray(RNG.dirichlet(np.ones(6)))
    a, b = jnp.asarray(RNG.normal(size=6)), jnp.asarray(RNG.normal(size=6))
    twice = retract(retract(u, a), b)
    np.testing.assert_allclose(np.asarray(twice), np.asarray(retract(u, a + b)), rtol=1e-13)


def test_simplex_of_a_pytree_is_one_simplex():
    u = {"a": jnp.array([0.1, 0.2]), "b": (jnp.array(0.3), jnp.array([[0.4]]))}
    delta = jax.tree.map(jnp.cos, u)
    found = Simplex().retract(u, delta)
    assert jax.tree.structure(found) == jax.tree.structure(u)
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    weights = weights * np.exp(np.cos(weights))
    leaves = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])
    np.testing.assert_allclose(leaves, weights / weights.sum(), rtol=1e-14)
    near = Simplex().project(jax.tree.map(lambda x: x + 0.5, u))
    leaves = np.concatenate([np.ravel(x) for x in jax.tree.leaves(near)])
    np.testing.assert_allclose(leaves, [0.1, 0.2, 0.3, 0.4], rtol=1e-13)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_simplex_projection_satisfies_kkt(point):
    """p = max(x - t, 0) with one t and sum p = 1 are sufficient optimality conditions."""
    x = np.array(point)
    p = np.asarray(project(jnp.asarray(x)))
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-12)
    assert np.all(p >= 0)
    threshold = (x - p)[p > 1e-12]
    np.testing.assert_allclose(threshold, threshold[0], atol=1e-12)
    assert np.all(x[p == 0] <= threshold[0] + 1e-12)


def test_simplex_residual_is_zero_exactly_at_stationary_points():
    u = jnp.array([0.3, 0.7, 0.0])
    # Equal gradients on the support and a larger one off it: stationary.
    assert float(outer_residual(Simplex(), u, jnp.array([2.0, 2.0, 3.0]))) < 1e-15
    assert float(outer_residual(Simplex(), u, jnp.array([2.0, 2.0, 1.0]))) > 0.1
    assert float(outer_residual(Simplex(), u, jnp.array([2.0, 1.0, 3.0]))) > 0.1


def test_euclidean():
    u = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    moved = Euclidean().retract(u, jax.tree.map(lambda x: -0.5 * x, u))
    np.testing.assert_array_equal(np.asarray(moved["a"]), [0.5, 1.0])
    assert float(moved["b"]) == 1.5
    np.testing.assert_array_equal(np.asarray(Euclidean().project(u)["a"]), [1.0, 2.0])
    residual = float(outer_residual(Euclidean(), u, u))
    np.testing.assert_allclose(residual, np.sqrt(14.0), rtol=1e-15)


def test_box_clips_entry_by_entry():
    box = Box(jnp.array([0.0, -1.0]), jnp.array([1.0, jnp.inf]))
    found = box.retract(jnp.array([0.5, 0.0]), jnp.array([2.0, 50.0]))
    np.testing.assert_array_equal(np.asarray(found), [1.0, 50.0])
    found = box.project(jnp.array([-3.0, -3.0]))
    np.testing.assert_array_equal(np.asarray(found), [0.0, -1.0])


def test_box_of_a_float32_pytree_keeps_its_dtype():
    u = {"a": jnp.array([0.5], jnp.float32), "b": jnp.array(2.0, jnp.float32)}
    found = Box(0.0, 1.0).retract(u, u)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    assert float(found["a"][0]) == 1.0
    assert float(found["b"]) == 1.0


def test_box_residual_vanishes_where_the_gradient_points_out():
    box, u = Box(0.0, 1.0), jnp.array([0.0, 1.0, 0.5])
    assert float(outer_residual(box, u, jnp.array([2.0, -3.0, 0.0]))) == 0.0
    assert float(outer_residual(box, u, jnp.array([-2.0, -3.0, 0.0]))) == 1.0  # up to the far side


def test_box_refuses_an_empty_set():
    with pytest.raises(ValueError, match="needs lower <= upper everywhere"):
        Box(1.0, 0.0)


def test_box_bounds_may_be_traced():
    found = jax.jit(lambda low: Box(low, 1.0).project(jnp.array([-1.0, 2.0])))(0.25)
    np.testing.assert_array_equal(np.asarray(found), [0.25, 1.0])


def test_projections_of_extreme_points_terminate():
    assert np.all(np.isnan(project(jnp.array([jnp.inf, 0.0]))))
    assert np.all(np.isnan(project(jnp.array([jnp.nan, 0.0]))))
    np.testing.assert_array_equal(project(jnp.array([-jnp.inf, 0.0, 0.0])), [0.0, 0.5, 0.5])
    np.testing.assert_array_equal(project(jnp.array([1e308, 1e308, -1e308])), [0.5, 0.5, 0.0])
    found = project(jnp.full(8000, 1 / 8000, jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1 / 8000, rtol=1e-6)


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_ball_projection_is_the_nearest_point(p):
    """The variational inequality holds on random points of the sphere."""
    center = {"x": jnp.array([0.1, -0.2]), "y": jnp.array(0.3)}
    ball = Ball(0.7, p, center)
    point = {"x": jnp.array([1.5, -0.9]), "y": jnp.array(-0.4)}
    found = ball.project(point)
    z, c, x = (np.append(np.asarray(t["x"]), t["y"]) for t in (found, center, point))
    np.testing.assert_allclose(np.linalg.norm(z - c, p), 0.7, rtol=1e-12)
    inside = RNG.normal(size=(2000, 3))
    inside = c + 0.7 * inside / np.linalg.norm(inside, p, axis=1)[:, None]
    assert np.max((inside - z) @ (x - z)) < 1e-12
    kept = {"x": jnp.array([0.2, -0.1]), "y": jnp.array(0.3)}
    assert_close(ball.project(kept), kept, rtol=1e-14)
    assert_close(ball.retract(kept, jax.tree.map(jnp.zeros_like, kept)), kept, rtol=1e-14)


def test_ball_refuses_other_norms():
    with pytest.raises(ValueError, match="p = 1, 2 or infinity, got 3"):
        Ball(1.0, 3)
    with pytest.raises(ValueError, match="radius > 0, got"):
        Ball(-1.0)


def test_what_auto_steps_measure():
    grad, u = jnp.array([3.0, -4.0]), jnp.array([0.25, 0.75])
    for geometry in (Euclidean(), Box(0.0, 1.0), Ball(1.0, jnp.inf)):
        np.testing.assert_allclose(geometry.magnitude(u, grad), [3.0, 4.0])
    np.testing.assert_allclose(Ball(1.0).magnitude(u, grad), np.sqrt(12.5) * np.ones(2))
    # tangent: g - <u, g> = (5.25, -1.75)
    np.testing.assert_allclose(Simplex().magnitude(u, grad), [5.25, 5.25])
    np.testing.assert_allclose(Simplex().tangent(u, grad), [5.25, -1.75])


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 1e25), (jnp.float16, 300.0)])
def test_a_ball_has_a_nearest_point_to_one_far_away(dtype, size):
    """The sum of squares overflowed, and the point was sent to the center."""
    inside = Ball(1.0).project(size * jnp.array([3.0, 0.0, -4.0], dtype) / 5)
    np.testing.assert_allclose(inside, [0.6, 0.0, -0.8], rtol=2e-3)
