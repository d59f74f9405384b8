"""Numerical failures end a run with a code, a partial solution and a finite state."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from bilevel import RESULTS, BilevelError
from helpers import assert_same, flat, raw, soba
from methods import METHODS, ROWS
from rows import BY_BLOCKS, BY_CLIENTS, draws, with_steps

INNER = bilevel.GradientInner(optax.sgd(0.5), 2)
FAILING = {name: method for row in ROWS for name, method in row.failing.items()}


def fails_above(limit):
    """`w* = u`; u grows towards 10, and F is NaN where the first entry of w exceeds the limit."""

    def outer(u, w, batch):
        (limit,) = batch
        return 0.5 * jnp.mean((w - 10.0) ** 2) + 0.0 * jnp.sqrt(limit[0] - w[0])

    problem = bilevel.BilevelProblem(
        outer,
        lambda u, w, _: 0.5 * jnp.sum((w - u) ** 2),
        outer_data=(jnp.array([limit]),),
        inner_data=(jnp.zeros(1),),
    )
    return problem, jnp.zeros(2), jnp.zeros(2)


@pytest.mark.parametrize("name", ["AID", "ITD", "SOBA"])
def test_nan_is_reported_and_the_state_is_finite(name):
    method = FAILING[name]
    options = dict[str, Any](num_steps=100, chunk_size=8)
    problem, u0, w0 = fails_above(1.0)
    with pytest.raises(BilevelError, match="became NaN or infinite") as caught:
        bilevel.solve(problem, method, u0, w0, **options)
    partial = caught.value.solution
    assert bool(partial.result == RESULTS.nonfinite)
    steps = partial.stats["num_steps"]
    assert 2 < steps < 50
    assert f"ended at step {steps} of 100" in str(caught.value)
    assert all(np.all(np.isfinite(x)) for x in raw(partial.state))
    assert partial.trace["step"].tolist() == list(range(1, steps + 2))
    assert np.isnan(partial.trace["outer_value"][-1])
    assert np.all(np.isfinite(partial.trace["outer_value"][:-1]))
    assert partial.trace["result"][-1] != 0
    # The state is the one of a run that stops just before.
    before = bilevel.solve(problem, method, u0, w0, **(options | {"num_steps": steps}))
    assert_same(before.state, partial.state)

    problem, u0, w0 = fails_above(-1.0)  # NaN from the start
    solution = bilevel.solve(problem, method, u0, w0, throw=False, **options)
    assert bool(solution.result == RESULTS.nonfinite)
    assert solution.stats["num_steps"] == 0
    assert not solution.stats["converged"]
    np.testing.assert_array_equal(flat(solution.u), [0.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILING)
def test_no_method_hands_back_a_nan(name):
    """F becomes NaN on the way: the run ends there with a code, and u, w, v are finite."""
    problem, u0, w0 = fails_above(1.0)
    solution = bilevel.solve(problem, FAILING[name], u0, w0, num_steps=300, throw=False)
    assert bool(solution.result == RESULTS.nonfinite)
    assert 0 < solution.stats["num_steps"] < 300
    assert all(np.all(np.isfinite(x)) for x in raw(solution.state))
    assert flat(solution.w)[0] < 5


def test_an_update_that_overflows_is_not_kept():
    """The objectives are finite, the step is not: u must not become infinite."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(w), inner=lambda u, w, _: 0.5 * jnp.sum((w - u) ** 2)
    )
    method = soba(0.5, 0.5, 1.7e308)
    solution = bilevel.solve(
        problem, method, jnp.zeros(2), jnp.zeros(2), num_steps=20, chunk_size=8, throw=False
    )
    assert bool(solution.result == RESULTS.nonfinite)
    assert all(np.all(np.isfinite(x)) for x in raw(solution.state))


def test_singular_hessian_is_a_linear_divergence():
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(w), inner=lambda u, w, _: 0.5 * (w[0] - u) ** 2
    )
    method = bilevel.DoubleLoop(
        inner=INNER, hypergradient=bilevel.AID(lx.LU(), warm_start=False), outer_tx=optax.sgd(0.1)
    )
    solution = bilevel.solve(
        problem, method, jnp.array(0.0), jnp.zeros(2), num_steps=5, throw=False
    )
    assert bool(solution.result == RESULTS.linear_divergence)
    assert all(np.all(np.isfinite(x)) for x in raw(solution.state))
    with pytest.raises(BilevelError, match="singular or indefinite"):
        bilevel.solve(problem, method, jnp.array(0.0), jnp.zeros(2), num_steps=5)


FREE = bilevel.BilevelProblem(  # the second entry of w is free, and F depends on it
    outer=lambda u, w, _: 0.5 * jnp.sum((w - 1.0) ** 2),
    inner=lambda u, w, batch: 0.5 * (w[0] - u[0]) ** 2 + 0.0 * u[1] * jnp.sum(batch),
    outer_data=jnp.zeros(1),
    inner_data=jnp.zeros(1),
)
WITHOUT_V = ("F2SA", "BOME", "ValueFunctionPenalty", "PDBO", "PZOBO")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("SOBA", "F2SA") else pytest.mark.slow)
        for name, row in METHODS.items()
        if row.oracle is not None or name in BY_CLIENTS
    ],
)
def test_a_singular_hessian_is_told(name):
    """No v solves `H v = grad_w F`. The methods that need none go to the inner solution of least F."""
    blocks = draws(bilevel.Blocks, 1) if name in BY_BLOCKS else {}
    method = with_steps(METHODS[name].kind, 0.5, 0.5, 0.1, blocks)
    options = {"num_steps": 60, "throw": False}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        solution = bilevel.solve(FREE, method, jnp.zeros(2), jnp.zeros(2), **options)
    told = [str(x.message) for x in said if x.category is bilevel.HypergradientWarning]
    assert [text[:27] for text in told] == (
        [] if name in WITHOUT_V else ["the linear residual stays a"]
    )
    if name in WITHOUT_V and name != "PZOBO":  # which follows the start, as unrolling does
        assert abs(solution.w[1] - 1) < 0.3


def test_too_little_memory_is_told():
    """A step that would need 16 TB."""
    n = 10**6

    def inner(u, w, _):
        large = jnp.outer(jnp.arange(1.0 * n) * w[0], jnp.ones(n) + w[1])
        return 0.5 * jnp.sum((w - u) ** 2) + 0.0 * jnp.fft.fft(large, axis=1)[0, 0].real

    problem = bilevel.BilevelProblem(FREE.outer, inner)
    with pytest.raises(MemoryError, match=r"`SOBA` needs more memory .* smaller batches"):
        bilevel.solve(problem, soba(0.5, 0.5, 0.1), jnp.zeros(2), jnp.zeros(2), num_steps=1)


def test_a_linear_step_of_soba_that_explodes_is_a_linear_divergence():
    """The step on v is far above 2 / L; w stays where it is and finite."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(w), inner=lambda u, w, _: 0.5 * jnp.sum((w - u) ** 2)
    )
    method = soba(0.5, 1e30, 1e-300)
    solution = bilevel.solve(problem, method, jnp.zeros(2), jnp.zeros(2), num_steps=20, throw=False)
    assert bool(solution.result == RESULTS.linear_divergence)
    assert all(np.all(np.isfinite(x)) for x in raw(solution.state))


def test_negative_curvature_is_named_and_finite():
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(w), inner=lambda u, w, _: -0.5 * jnp.sum((w - u) ** 2)
    )
    with pytest.warns(
        bilevel.HypergradientWarning, match="solve the inner problem further, or damp"
    ):
        found = bilevel.implicit_gradient(problem, jnp.ones(2), jnp.ones(2), bilevel.CG(rtol=1e-6))
    assert np.isinf(float(found.error_estimate))
    assert bool(found.result == RESULTS.negative_curvature)
    assert np.all(np.isfinite(flat(found.grad)))
    assert float(found.linear_residual) > 1.0


def test_early_stop_needs_all_three_residuals():
    """SOBA from v = 0 at w = w*(u): outer and inner residuals are 0, the linear one is not."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: 0.5 * (w - 1.0) ** 2 + 0.05 * u**2,
        inner=lambda u, w, _: 0.5 * (w - u) ** 2,
    )
    start = jnp.array(0.0)
    options = dict[str, Any](num_steps=500, chunk_size=64)
    solution = bilevel.solve(problem, soba(0.5, 0.5, 0.1), start, start, tol=1e-6, **options)
    first = {k: solution.trace[k][0] for k in ("outer_residual", "inner_residual")}
    assert first == {"outer_residual": 0.0, "inner_residual": 0.0}
    assert solution.trace["linear_residual"][0] == 1.0
    assert 10 < solution.stats["num_steps"] < 500
    np.testing.assert_allclose(float(solution.u), 1 / 1.1, atol=1e-5)
    for name in ("outer", "inner", "linear"):
        tight = dict.fromkeys(("outer", "inner", "linear"), 1e3) | {name: 1e-30}
        solution = bilevel.solve(
            problem,
            soba(0.5, 0.5, 0.1),
            start + 0.5,
            start,
            tol=bilevel.Tolerances(**tight),
            throw=False,
            **(options | dict[str, Any](num_steps=20)),
        )
        assert solution.stats["num_steps"] == 20
        assert bool(solution.result == RESULTS.outer_max_steps_reached)


def test_no_tolerance_met_raises_and_says_how_to_go_on():
    problem, u0, w0 = fails_above(100.0)
    with pytest.raises(BilevelError, match=r"state=solution\.state") as caught:
        bilevel.solve(problem, FAILING["SOBA"], u0, w0, num_steps=3, chunk_size=8, tol=1e-9)
    assert caught.value.solution.stats["num_steps"] == 3
    assert isinstance(caught.value.solution.u, jax.Array)
