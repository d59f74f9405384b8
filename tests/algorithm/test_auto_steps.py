"""Step sizes: numbers, schedules and "auto"."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import SOBA
from helpers import CASES, COUPLED, assert_same, flat, norm_error
from methods import METHODS, ROWS

UNTUNED = {name: each for row in ROWS for name, each in row.untuned.items()}
ON_BATCHES = {name: row.on_batches for name, row in METHODS.items() if row.on_batches}
FAST = [("SOBA", "coupled"), ("F2SA", "coupled"), ("SOBA", "simplex")]
ROWS = [
    row if row in FAST else pytest.param(*row, marks=pytest.mark.slow)
    for row in [(name, case) for name in UNTUNED for case in ("coupled", "simplex", "box")]
]


@pytest.mark.parametrize(("name", "case_name"), ROWS)
def test_every_method_runs_untuned(name, case_name):
    case, (algorithm, tolerance) = CASES[case_name], UNTUNED[name]
    solution = bilevel.solve(
        case.problem, algorithm, case.u, case.w0, num_steps=1500, trace_every=100
    )
    assert norm_error(solution.u, case.u_star) < tolerance
    assert norm_error(solution.u, case.u_star) < 0.5 * norm_error(case.u, case.u_star)


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_on_a_ball_whose_bound_is_active(p):
    """Phi is strongly convex: a residual of zero is its one minimum. AdaGrad entry by entry stops
    elsewhere."""
    case, ball = CASES["coupled"], bilevel.Ball(0.3, p)
    problem = bilevel.BilevelProblem(case.problem.outer, case.problem.inner, geometry=ball)
    u0 = jnp.zeros(3)
    untuned = bilevel.solve(problem, SOBA(), u0, case.w0, num_steps=3000, trace_every=100)
    np.testing.assert_allclose(np.linalg.norm(flat(untuned.u), p), 0.3, rtol=1e-9)
    assert untuned.trace["outer_residual"][-1] < 1e-8


def test_a_constant_added_to_the_simplex_changes_nothing():
    """`F + 100 sum(u)` is F on the simplex; its large gradient is no outlier."""
    case = CASES["simplex"]
    problem = bilevel.BilevelProblem(
        lambda u, w, b: case.problem.outer(u, w, b) + 100 * jnp.sum(u),
        case.problem.inner,
        geometry=case.problem.geometry,
    )
    solution = bilevel.solve(problem, SOBA(), case.u, case.w0, num_steps=400)
    np.testing.assert_allclose(flat(solution.u), flat(case.u_star), atol=1e-8)


@pytest.mark.parametrize("name", ON_BATCHES)
@pytest.mark.slow
def test_stochastic_runs_untuned(name):
    """On minibatches every method comes far closer to the best value than its start is."""
    from bilevel.tasks import quadratic

    problem = quadratic(
        jax.random.key(1), num_inner_rows=512, num_outer_rows=256, dim_u=4, dim_w=8, condition=10.0
    )
    u0, w0 = jnp.zeros(4), jnp.zeros(8)
    algorithm, tolerance = ON_BATCHES[name]
    solution = bilevel.solve(problem, algorithm, u0, w0, num_steps=3000, trace_every=500)
    hessian = jax.hessian(problem.inner, 1)(u0, w0, problem.inner_data)

    @jax.jit
    def phi(u):
        w = -jnp.linalg.solve(hessian, jax.grad(problem.inner, 1)(u, w0, problem.inner_data))
        return problem.outer(u, w, problem.outer_data)

    best = u0 - jnp.linalg.solve(jax.hessian(phi)(u0), jax.grad(phi)(u0))
    gap = float((phi(solution.u) - phi(best)) / (phi(u0) - phi(best)))
    assert abs(gap) < tolerance


def test_the_inner_step_is_the_inverse_of_the_largest_curvature():
    case = CASES["coupled"]
    state: Any = eqx.filter_jit(SOBA().init)(case.problem, case.u, case.w0, jax.random.key(0))
    largest = np.linalg.eigvalsh(COUPLED.a)[-1]
    assert 0.99 * largest < float(state.control.curvature) <= largest * (1 + 1e-12)
    assert int(state.calls.hvp) == 20


def test_outer_steps_are_adagrads():
    """Against the equations in numpy, on full batches."""
    case, q = CASES["coupled"], COUPLED
    algorithm = SOBA()
    state: Any = eqx.filter_jit(algorithm.init)(case.problem, case.u, case.w0, jax.random.key(0))
    step = jax.jit(lambda state: algorithm.step(case.problem, state))
    u, w, v = flat(case.u), np.zeros(5), np.zeros(5)
    by_w = w - q.t + q.d.T @ u
    parts = q.lam * u + q.d @ w, q.b.T @ by_w / float(state.control.curvature)
    s = np.full(3, sum(np.mean(x**2) for x in parts))
    for k in range(30):
        state, info = step(state)
        rho = 1 / float(state.control.curvature)
        d_w = q.a @ w - q.b @ u - q.c
        d_v = q.a @ v - (w - q.t + q.d.T @ u)
        d_u = q.lam * u + q.d @ w + q.b.T @ v
        usual = np.sqrt(s.sum() / max(k, 1))
        if k > 0 and 10 * usual < np.linalg.norm(d_u):
            d_u = d_u * 10 * usual / np.linalg.norm(d_u)
        s = s + d_u**2
        move = d_u / np.sqrt(s + s.mean())
        np.testing.assert_allclose(
            float(info.step_ratio), np.linalg.norm(move) / np.linalg.norm(d_u) / rho, rtol=1e-9
        )
        u, w, v = u - move, w - rho * d_w, v - rho * d_v
        np.testing.assert_allclose(flat(state.u), u, rtol=1e-9)
        np.testing.assert_allclose(flat(state.w), w, rtol=1e-9, atol=1e-12)


def stiffening() -> bilevel.BilevelProblem:
    """`w*(u) = 1 / (1 + e^u)`, whose curvature `1 + e^u` grows two hundredfold on the way."""
    return bilevel.BilevelProblem(
        outer=lambda u, w, _: 0.5 * jnp.sum((w - 0.005) ** 2),
        inner=lambda u, w, _: 0.5 * jnp.sum((w - 1) ** 2) + 0.5 * jnp.sum(jnp.exp(u) * w**2),
    )


def test_the_curvature_is_followed():
    """A fixed step of 1 / L at the start ends in a NaN; "auto" goes along."""
    problem, u, w = stiffening(), jnp.zeros(3), jnp.zeros(3)
    fixed = bilevel.solve(problem, SOBA(0.5, 0.5, 200.0), u, w, num_steps=3000, throw=False)
    assert not bool(fixed.result == bilevel.RESULTS.successful)
    assert np.isfinite(flat((fixed.u, fixed.w))).all()
    followed = bilevel.solve(problem, SOBA(), u, w, num_steps=3000)
    assert flat(followed.u).min() > 4  # on the way to log(199), with a curvature above 55
    assert float(followed.trace["inner_residual"][-1]) < 1e-2
    curvature = float(followed.state.control.curvature)
    np.testing.assert_allclose(curvature, 1 + np.exp(flat(followed.u).max()), rtol=0.05)


@pytest.mark.slow
def test_a_step_to_nowhere_is_not_taken():
    """A step to infinity leaves u and w where they are and halves all steps."""
    case = CASES["coupled"]
    method = SOBA(inner_step=1e308)
    state = eqx.filter_jit(method.init)(case.problem, case.u, jnp.full(5, 1e3), jax.random.key(0))
    state, _ = SOBA().step(case.problem, state)
    following, _ = method.step(case.problem, state)
    assert_same((following.u, following.w), (state.u, state.w))
    before, after = state.control, following.control
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(float(after.curvature), 2 * float(before.curvature), rtol=0.1)
    np.testing.assert_allclose(after.squares, 4 * np.asarray(before.squares), rtol=1e-12)
    assert int(following.step) == 2


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="number > 0 or 'auto', got 'automatic'"):
        SOBA("automatic")


@pytest.mark.parametrize("step", [-0.1, np.nan, np.inf])
def test_a_step_that_leads_uphill_is_refused(step):
    """With -0.1, u ran away from the solution, and the run said `successful`."""
    for steps in ((step, 0.5, 0.1), (0.5, step, 0.1), (0.5, 0.5, step)):
        with pytest.raises(ValueError, match=f"a number >= 0, a schedule or 'auto', got {step}"):
            SOBA(*steps)


def test_the_ratio_of_time_scales_is_reported():
    case = CASES["simplex"]
    _, info = SOBA(0.5, 0.5, 2.0).step(
        case.problem, SOBA(0.5, 0.5, 2.0).init(case.problem, case.u, case.w0, jax.random.key(0))
    )
    assert float(info.step_ratio) == 4.0
