"""Equilibria and solution concepts against linear algebra, searches and finite differences."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
import scipy.optimize

from bilevel import (
    AID,
    BilevelProblem,
    Box,
    Equilibrium,
    GradientInner,
    cold_start_solution,
    is_cold_start_equilibrium,
    is_warm_start_equilibrium,
    optimistic_solution,
    pessimistic_solution,
    warm_start_solution,
)

EXACT = AID(lx.SVD())
CONVERGED = GradientInner(optax.sgd(1.0), 100)


class Arrays:
    """f = |X w - Y u - t|^2 / 2 with X of rank 3 in 6 dimensions, F = |G w - s|^2 / 2, in numpy."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        left, right = (np.linalg.qr(rng.normal(size=(6, 3)))[0] for _ in range(2))
        self.x = (left * [1.0, 0.9, 0.8]) @ right.T  # the largest curvature is 1
        self.y, self.t = rng.normal(size=(6, 2)), rng.normal(size=6)
        self.g, self.s = rng.normal(size=(6, 6)), rng.normal(size=6)
        self.u, self.w0 = rng.normal(size=2), rng.normal(size=6)
        self.null = np.linalg.svd(self.x)[2][3:].T  # an orthonormal basis of the null space

    def f(self, u, w, batch):
        return 0.5 * jnp.sum((self.x @ w - self.y @ u - self.t) ** 2)

    def outer(self, u, w, batch):
        return 0.5 * jnp.sum((self.g @ w - self.s) ** 2)

    @property
    def problem(self) -> BilevelProblem:
        return BilevelProblem(self.outer, self.f)

    def cold(self, u) -> np.ndarray:
        """`w0 + X^+ (Y u + t - X w0)`."""
        return self.w0 + np.linalg.pinv(self.x, rcond=1e-10) @ (
            self.y @ u + self.t - self.x @ self.w0
        )

    def best_u(self) -> np.ndarray:
        """The minimiser of `F(u, cold(u))`."""
        response = self.g @ np.linalg.pinv(self.x, rcond=1e-10) @ self.y
        return np.linalg.lstsq(response, self.s - self.g @ self.cold(np.zeros(2)), rcond=None)[0]


A = Arrays()


# ---- equilibria


def cold_check(u, w, inner: Any = CONVERGED, estimator: Any = EXACT) -> Equilibrium:
    u, w, w0 = map(jnp.asarray, (u, w, A.w0))
    return is_cold_start_equilibrium(A.problem, u, w, w0, inner, estimator, tol=1e-9)


def warm_check(u, w, inner, estimator: Any = EXACT, problem=A.problem) -> Equilibrium:
    u, w = map(jnp.asarray, (u, w))
    return is_warm_start_equilibrium(problem, u, w, inner, estimator, tol=1e-9)


def test_a_cold_start_equilibrium_and_points_that_are_none():
    best = A.best_u()
    found = cold_check(best, A.cold(best))
    assert found.holds
    assert found.verdict == "equilibrium"
    assert max(found.gap, found.inner_residual, found.outer_residual) < 1e-12

    elsewhere = A.cold(best) + 0.5 * A.null[:, 0]
    found = cold_check(best, elsewhere)
    assert (found.verdict, found.holds) == ("another inner solution", False)
    np.testing.assert_allclose(found.gap, 0.5, rtol=1e-9)

    moved = best + np.array([1e-3, 0.0])
    found = cold_check(moved, A.cold(moved))
    assert found.verdict == "outer not stationary"
    response = A.g @ np.linalg.pinv(A.x, rcond=1e-10) @ A.y
    expected = np.linalg.norm(response.T @ response[:, 0]) * 1e-3
    np.testing.assert_allclose(found.outer_residual, expected, rtol=1e-6)

    found = cold_check(best, A.cold(best), GradientInner(optax.sgd(0.1), 3))
    assert found.verdict == "inner solve not finished"
    assert cold_check(best * np.nan, A.cold(best)).verdict == "not finite"


def test_a_cycle_is_not_an_equilibrium():
    """With a step of 2 / L two steps lead back, and one does not."""
    best = A.best_u()
    top = np.linalg.svd(A.x)[2][0]
    there = A.cold(best) + top
    inner = GradientInner(optax.sgd(2.0), 2)
    check = warm_check(best, there, inner)
    assert check.gap < 1e-12
    assert check.verdict == "inner solve not finished"
    np.testing.assert_allclose(check.inner_residual, 1, rtol=1e-9)


def test_a_stationary_point_on_the_boundary():
    problem = BilevelProblem(
        outer=lambda u, w, _: 0.5 * (w - 2.0) ** 2,
        inner=lambda u, w, _: 0.5 * (w - u) ** 2,
        geometry=Box(-1.0, 1.0),
    )
    check = warm_check(1.0, 1.0, CONVERGED, AID(lx.LU()), problem)
    assert check == ("equilibrium", 0.0, 0.0, 0.0)
    inside = warm_check(0.5, 0.5, CONVERGED, AID(lx.LU()), problem)
    assert inside.verdict == "outer not stationary"
    assert inside.outer_residual == 0.5


def test_a_tolerance_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"`tol` must be > 0, got 0\.0"):
        is_warm_start_equilibrium(
            A.problem, jnp.asarray(A.u), jnp.asarray(A.w0), CONVERGED, EXACT, tol=0.0
        )


# ---- solution concepts


def at(function, problem=A.problem, *args, **options):
    """A concept at `(u, w0)` of the arrays."""
    return function(problem, jnp.asarray(A.u), jnp.asarray(A.w0), *args, **options)


def test_the_cold_start_solution_is_the_nearest():
    found = at(cold_start_solution)
    np.testing.assert_allclose(found.w, A.cold(A.u), rtol=1e-10)
    np.testing.assert_allclose(found.value, A.outer(A.u, A.cold(A.u), None), rtol=1e-10)
    assert found.inner_residual < 1e-12
    by_descent = at(cold_start_solution, inner=GradientInner(optax.sgd(1.0), 300))
    np.testing.assert_allclose(by_descent.w, found.w, rtol=1e-9)


def test_w_may_be_a_pytree():
    problem = BilevelProblem(
        lambda u, w, _: (w["a"][0] - 3.0) ** 2 + w["b"] ** 2,
        lambda u, w, _: (w["a"][0] + w["a"][1] + w["b"] - u) ** 2,
    )
    w0 = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    cold = cold_start_solution(problem, jnp.array(3.0), w0)
    np.testing.assert_allclose(cold.w["a"], [1.0, 1.0])
    np.testing.assert_allclose(cold.w["b"], 1.0)
    best = optimistic_solution(problem, jnp.array(3.0), w0)
    np.testing.assert_allclose([*best.w["a"], best.w["b"]], [3.0, 0.0, 0.0], atol=1e-12)


def along_the_set(value, z) -> float:
    return float(value(jnp.asarray(A.u), jnp.asarray(A.cold(A.u) + A.null @ z), None))


@pytest.mark.parametrize("num_steps", [1, 5])
def test_optimistic_is_constrained_least_squares(num_steps):
    z = np.linalg.lstsq(A.g @ A.null, A.s - A.g @ A.cold(A.u), rcond=None)[0]
    found = at(optimistic_solution, num_steps=num_steps)
    np.testing.assert_allclose(found.w, A.cold(A.u) + A.null @ z, rtol=1e-8)
    assert found.inner_residual < 1e-10


def test_optimistic_takes_the_nearest_of_many():
    """F looks at one direction of three."""
    flat = BilevelProblem(lambda u, w, _: (A.null[:, 0] @ w - 5.0) ** 2, A.f)
    found = at(optimistic_solution, flat)
    cold = A.cold(A.u)
    expected = cold + (5 - A.null[:, 0] @ cold) * A.null[:, 0]
    np.testing.assert_allclose(found.w, expected, rtol=1e-9)


def convex(u, w, batch):
    """Neither quadratic nor bounded on the solution set."""
    return jnp.sum(jax.nn.softplus(A.g @ w)) + 0.1 * jnp.sum((w - 1.0) ** 4)


def test_optimistic_searches_where_f_is_not_quadratic():
    best = scipy.optimize.minimize(lambda z: along_the_set(convex, z), np.zeros(3), tol=1e-12)
    found = at(optimistic_solution, BilevelProblem(convex, A.f))
    assert found.value <= best.fun + 1e-9
    np.testing.assert_allclose(found.w, A.cold(A.u) + A.null @ best.x, atol=1e-4)
    assert found.inner_residual < 1e-10


@pytest.mark.parametrize("radius", [0.1, 3.0, 100.0])
def test_pessimistic_is_the_trust_region_solution(radius):
    """`max_z |G (c + N z) - s|^2 / 2`, `|z| = radius`: `(mu - Q) z = q` with mu above Q's
    spectrum."""
    g = A.g @ A.null
    values, vectors = np.linalg.eigh(g.T @ g)
    q = vectors.T @ (g.T @ (A.g @ A.cold(A.u) - A.s))
    low, high = values[-1] + abs(q[-1]) / radius / 2, values[-1] + np.linalg.norm(q) / radius
    mu = scipy.optimize.brentq(
        lambda mu: np.linalg.norm(q / (mu - values)) - radius, low, 1.01 * high, xtol=1e-14
    )
    expected = A.cold(A.u) + A.null @ vectors @ (q / (mu - values))
    found = at(pessimistic_solution, A.problem, radius, num_steps=1)
    np.testing.assert_allclose(found.w, expected, rtol=1e-6, atol=1e-9 * radius)
    np.testing.assert_allclose(found.value, A.outer(None, expected, None), rtol=1e-10)
    assert found.outer_residual < 1e-8 * found.value


def test_pessimistic_where_the_slope_avoids_the_largest_curvature():
    """F = s z + (4 z_1^2 + z_2^2) / 2 on |z| = 1: steps along the slope alone end at z_2 = 1."""

    @jax.jit
    def worst(s):
        problem = BilevelProblem(
            lambda u, w, _: s @ w[:2] + 2 * w[0] ** 2 + 0.5 * w[1] ** 2,
            lambda u, w, _: (w[2] - u) ** 2,
        )
        return pessimistic_solution(problem, jnp.array(1.0), jnp.zeros(3), 1.0)

    angle = np.linspace(0, 2 * np.pi, 200_001)
    z = np.stack([np.cos(angle), np.sin(angle)])
    for slope in np.array([[0.0, 0.0], [0.0, 0.3], [1e-9, 0.3], [-0.01, 0.3]]):
        found = worst(jnp.asarray(slope))
        best = (slope @ z + 2 * z[0] ** 2 + 0.5 * z[1] ** 2).max()
        np.testing.assert_allclose(found.value, best, rtol=1e-8)
        assert found.outer_residual < 1e-6
        assert float(jnp.linalg.norm(found.w[:2])) == pytest.approx(1, rel=1e-9)


def test_pessimistic_says_if_it_took_too_few_steps():
    other = BilevelProblem(convex, A.f)
    few, many = (at(pessimistic_solution, other, 3.0, num_steps=k) for k in (1, 500))
    assert many.outer_residual < 1e-8 < 1e-3 < few.outer_residual
    assert few.value < many.value


def test_the_concepts_are_ordered_and_bad_radii_refused():
    values = [
        at(c, A.problem, *r).value
        for c, r in [(optimistic_solution, ()), (cold_start_solution, ())]
    ]
    assert values[0] < values[1] < at(pessimistic_solution, A.problem, 1.0).value
    with pytest.raises(ValueError, match=r"`radius` must be > 0, got 0\.0"):
        at(pessimistic_solution, A.problem, 0.0)


def test_the_residual_shows_other_inner_problems():
    quartic = BilevelProblem(A.outer, lambda u, w, _: jnp.sum((w - 1.0) ** 4) + A.f(u, w, None))
    for function, args in [
        (cold_start_solution, ()),
        (optimistic_solution, ()),
        (pessimistic_solution, (1.0,)),
    ]:
        assert at(function, quartic, *args).inner_residual > 0.1


RESPONSES = {
    "cold": lambda u, w0: cold_start_solution(A.problem, u, w0),
    "optimistic": lambda u, w0: optimistic_solution(A.problem, u, w0, num_steps=1),
    "pessimistic": lambda u, w0: pessimistic_solution(A.problem, u, w0, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESPONSES)
def test_the_concepts_are_differentiable_in_u(name):
    w0 = jnp.asarray(A.w0)

    def value(u):
        return RESPONSES[name](u, w0).value

    step = 1e-5 * jnp.array([1.0, 0.0])
    u = jnp.asarray(A.u)
    difference = (value(u + step) - value(u - step)) / 2e-5
    np.testing.assert_allclose(jax.grad(value)(u)[0], difference, rtol=1e-6)


def kaczmarz() -> tuple[BilevelProblem, dict, np.ndarray]:
    """Two data points in turn, one at a time."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 4)), rng.normal(size=2)
    problem = BilevelProblem(
        lambda u, w, _: jnp.sum(w**2), lambda u, w, _: 0.5 * (u["x"] @ w - u["y"]) ** 2
    )
    us = {"x": jnp.tile(jnp.asarray(x), (60, 1)), "y": jnp.tile(jnp.asarray(y), 60)}
    return problem, us, rng.normal(size=4)


def test_full_warm_starts_are_projections():
    problem, us, w0 = kaczmarz()
    found = jax.jit(lambda us, w0: warm_start_solution(problem, us, w0))(us, jnp.asarray(w0))
    w = w0
    for k in range(120):
        x, y = np.asarray(us["x"][k]), float(us["y"][k])
        w = w - (x @ w - y) / (x @ x) * x  # equation (18)
        np.testing.assert_allclose(found.w[k], w, rtol=1e-9, atol=1e-12)
    x, y = np.asarray(us["x"][:2]), np.asarray(us["y"][:2])
    np.testing.assert_allclose(found.w[-1], w0 + np.linalg.pinv(x) @ (y - x @ w0), rtol=1e-8)
    assert found.value.shape == (120,)
    assert np.max(found.inner_residual) < 1e-12
