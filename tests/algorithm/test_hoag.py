"""HOAG with the adaptive outer step of its published code: its equations in NumPy, the solution."""

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import HOAG, SufficientDecrease
from problems import CASES, COUPLED

CASE, Q = CASES["coupled"], COUPLED
TIGHT = 1e-12  # so that w and v are exact to that, and u follows its equations


def by_hand(num_steps, shrink, grow):
    """u along exact hypergradients, and L after each step."""
    u, curvature, before, found = np.asarray(CASE.u), 0.0, None, []
    for _ in range(num_steps):
        w = np.linalg.solve(Q.a, Q.b @ u + Q.c)
        value = 0.5 * np.sum((w - Q.t) ** 2) + 0.5 * Q.lam * u @ u + u @ Q.d @ w
        d = Q.gradient(u)
        if before is None:
            curvature = len(u) * np.linalg.norm(d)
        else:
            old, length = before
            if value <= old + TIGHT + TIGHT * (1 + length) - curvature / 2 * length**2:
                curvature *= shrink
            elif value > old:
                curvature *= grow
        after = u - d / curvature
        before, u = (value, np.linalg.norm(after - u)), after
        found.append((u, curvature))
    return found


@pytest.mark.parametrize(("shrink", "grow"), [(0.95, 2.0), (0.5, 3.0)])
def test_the_steps_follow_the_values(shrink, grow):
    """With shrink = 0.5 the steps soon are too long, and F rises now and then."""
    expected = by_hand(20, shrink, grow)
    curvatures = np.array([c for _, c in expected])
    factors = curvatures[1:] / curvatures[:-1]
    assert (np.max(factors) > 1) == (shrink < 0.9)
    method = HOAG(0.3, SufficientDecrease(shrink, grow), TIGHT, max_inner=400)
    w0 = CASE.w_star(CASE.u) + 1.0  # so that the tolerance is relative to something
    found = bilevel.solve(CASE.problem, method, CASE.u, w0, num_steps=20)
    assert int(found.state.step) == 20
    u, curvature = expected[-1]
    np.testing.assert_allclose(found.u, u, rtol=1e-8)
    np.testing.assert_allclose(found.state.aux.adapted.curvature, curvature, rtol=1e-8)


@pytest.mark.slow
def test_it_converges_without_a_step_size_of_u():
    method = HOAG(outer_step=SufficientDecrease())
    found = bilevel.solve(CASE.problem, method, CASE.u, CASE.w0, num_steps=300)
    np.testing.assert_allclose(found.u, CASE.u_star, rtol=1e-6)
    assert np.asarray(found.trace["step_ratio"])[-1] > 0


def test_a_start_at_the_inner_solution():
    """Tolerances relative to a first residual of zero could never be met."""
    method = HOAG(0.4, 0.05, max_inner=300)
    start = CASE.w_star(CASE.u)
    found = bilevel.solve(CASE.problem, method, CASE.u, start, num_steps=40)
    assert not np.any(np.asarray(found.trace["result"]))
    assert found.stats["calls"]["inner_grad"] < 40 * 30


def test_wrong_calls():
    with pytest.raises(ValueError, match=r"shrink in \(0, 1\], got 1.2"):
        SufficientDecrease(1.2)
    with pytest.raises(ValueError, match=r"grow >= 1, got 0\.5"):
        SufficientDecrease(grow=0.5)
    assert jnp.asarray(SufficientDecrease().grow) == 2
