"""Inner solvers against hand-written loops and closed forms; reparametrisation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import bilevel
from bilevel import (
    ITD,
    RESULTS,
    BilevelProblem,
    ClosedForm,
    FullBatch,
    GradientInner,
    MinimiserInner,
    Shuffled,
    Stream,
)
from helpers import CASES, COUPLED, estimate_on_all_data, flat, norm_error
from solvers import INNER_SOLVERS, solve_inner

CASE = CASES["coupled"]
STREAM = Stream(FullBatch(), None, ())


@pytest.fixture
def optax_promotion():
    """optax's Adam raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def solve(inner, case=CASE, stream=STREAM):
    run = jax.jit(
        lambda u, w: inner.solve(case.problem, u, w, inner.init(case.problem, u, w), stream)
    )
    return run(case.u, case.w0)


@pytest.mark.parametrize(
    "tx", [optax.sgd(0.1, momentum=0.9), optax.adam(0.05)], ids=["momentum", "adam"]
)
def test_gradient_inner_is_the_optax_loop(tx, optax_promotion):
    w, state = CASE.w0, tx.init(CASE.w0)
    for _ in range(6):
        gradient = COUPLED.a @ np.asarray(w) - COUPLED.b @ flat(CASE.u) - COUPLED.c
        updates, state = tx.update(jnp.asarray(gradient), state, w)
        w = optax.apply_updates(w, updates)
    found, found_state, _, stats = solve(GradientInner(tx, 6))
    np.testing.assert_allclose(np.asarray(found), np.asarray(w), rtol=1e-12)
    np.testing.assert_allclose(flat(found_state), flat(state), rtol=1e-12)
    assert int(stats.calls) == 6
    assert bool(stats.result == RESULTS.successful)


def test_gradient_inner_keeps_the_optimiser_state_when_warm(optax_promotion):
    """Two solves of three steps from the last state are one solve of six."""
    inner = GradientInner(optax.adam(0.05), 3)
    w, state, stream, _ = solve(inner)
    w, *_ = inner.solve(CASE.problem, CASE.u, w, state, stream)
    whole, *_ = solve(GradientInner(optax.adam(0.05), 6))
    np.testing.assert_allclose(np.asarray(w), np.asarray(whole), rtol=1e-13)


def test_gradient_inner_draws_one_batch_per_step():
    """On sum_i (w - x_i)^2 with step 1/2 each step jumps to the row drawn."""
    data = jnp.arange(5.0)
    problem = BilevelProblem(
        lambda u, w, _: w, lambda u, w, x: jnp.mean((w - x) ** 2) + 0.0 * u, inner_data=data
    )
    sampler = Shuffled(1)
    stream = Stream(sampler, data, sampler.init(data, jax.random.key(0)))
    seen = []
    inner = GradientInner(optax.sgd(0.5), 1)
    w = jnp.array(0.0)
    state = inner.init(problem, w, w)
    for _ in range(5):
        w, state, stream, _ = inner.solve(problem, jnp.array(0.0), w, state, stream)
        seen.append(flat(w).item())
    np.testing.assert_allclose(sorted(seen), [0.0, 1.0, 2.0, 3.0, 4.0], atol=1e-15)


def test_gradient_inner_needs_at_least_one_step():
    with pytest.raises(ValueError, match="needs num_steps >= 1, got 0"):
        GradientInner(optax.sgd(0.1), 0)


@pytest.mark.parametrize("name", INNER_SOLVERS)
def test_every_inner_solver_reaches_the_solution(name):
    row = INNER_SOLVERS[name]
    w, _, _, stats = solve_inner(row)
    assert norm_error(w, row.w_star) < row.tolerance
    assert norm_error(row.w0, row.w_star) > 0.1
    assert bool(stats.result == RESULTS.successful)


@pytest.mark.parametrize("name", ["coupled", "pytree", "logistic"])
def test_minimiser_reaches_the_solution(name):
    case = CASES[name]
    data = case.problem.inner_data
    stream = Stream(FullBatch(), data, ())
    w, state, _, stats = solve(MinimiserInner(optx.BFGS(rtol=1e-9, atol=1e-9)), case, stream)
    assert norm_error(w, case.w_star(case.u)) < 1e-7
    assert state == ()
    assert 1 < int(stats.calls) < 100
    assert bool(stats.result == RESULTS.successful)


def test_minimiser_reports_that_it_ran_out_of_steps():
    inner = MinimiserInner(optx.BFGS(rtol=1e-9, atol=1e-9), max_steps=2)
    w, _, _, stats = solve(inner)
    assert bool(stats.result == RESULTS.inner_max_steps_reached)
    assert norm_error(w, CASE.w_star(CASE.u)) > 1e-3
    # No failure of the outer step; the code is in the trace and the run goes on.
    method = bilevel.DoubleLoop(inner=inner, hypergradient=bilevel.AID(), outer_tx=optax.sgd(0.1))
    solution = bilevel.solve(CASE.problem, method, CASE.u, CASE.w0, num_steps=3, chunk_size=4)
    assert bool(solution.result == RESULTS.successful)
    assert np.all(solution.trace["result"] == int(RESULTS.inner_max_steps_reached._value))


def test_itd_refuses_what_it_cannot_unroll():
    inner = MinimiserInner(optx.BFGS(rtol=1e-9, atol=1e-9))
    with pytest.raises(ValueError, match=r"which `MinimiserInner` does not allow\. Use `GradientI"):
        ITD().init(CASE.problem, inner, CASE.u, CASE.w0)


def test_closed_form_ignores_the_start():
    inner = ClosedForm(lambda u, _: CASE.w_star(u))
    w, *_, stats = inner.solve(CASE.problem, CASE.u, CASE.w0 + jnp.nan, (), STREAM)
    assert norm_error(w, np.linalg.solve(COUPLED.a, COUPLED.b @ flat(CASE.u) + COUPLED.c)) < 1e-12
    assert int(stats.calls) == 0


def test_reparametrised_minimisers_correspond():
    case = CASES["simplex"]
    problem = bilevel.reparametrise(case.problem, jax.nn.softmax)
    method = bilevel.DoubleLoop(
        inner=GradientInner(case.sgd(), 40),
        hypergradient=bilevel.AID(bilevel.CG(rtol=1e-12)),
        outer_tx=optax.sgd(4.0),
    )
    x0 = jnp.zeros(4)
    solution = bilevel.solve(problem, method, x0, case.w0, num_steps=400, chunk_size=400)
    u = np.asarray(jax.nn.softmax(solution.u))
    np.testing.assert_allclose(u, np.asarray(case.u_star), atol=1e-8, rtol=0)


def test_projected_inner_steps():
    """`min_w |w - u|^2 / 2` in a box is clip(u): ITD differentiates it, AID refuses."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: 0.5 * jnp.sum((w - 3.0) ** 2),
        inner=lambda u, w, _: 0.5 * jnp.sum((w - u) ** 2),
    )
    inner = GradientInner(optax.sgd(0.5), 60, bilevel.Box(0.0, 1.0))
    u, w0 = jnp.array([-0.5, 0.4, 1.7]), jnp.full(3, 0.5)
    found = estimate_on_all_data(problem, bilevel.ITD(), inner, u, w0)
    np.testing.assert_allclose(np.asarray(found.w), [0.0, 0.4, 1.0], atol=1e-12)
    np.testing.assert_allclose(np.asarray(found.grad), [0.0, 0.4 - 3.0, 0.0], atol=1e-12)
    for estimator in (bilevel.AID(), bilevel.SID(bilevel.StochasticRichardson(0.1, 2))):
        with pytest.raises(ValueError, match=r"keeps w in a `Box`.*Use `ITD`"):
            estimator.init(problem, inner, u, w0)


def test_auto_inner_steps_are_one_over_the_largest_curvature():
    """20 products find L, and then one per solve keeps it up to date; the steps are those of sgd(1
    / L)."""
    case = CASES["coupled"]
    inner, stream = GradientInner("auto", 7), case.streams().inner
    state = inner.init(case.problem, case.u, case.w0)
    w, state, _, stats = inner.solve(case.problem, case.u, case.w0, state, stream)
    assert (int(stats.calls), int(stats.products)) == (7, 20)
    largest = case.bounds[1]
    by_hand = GradientInner(optax.sgd(1 / largest), 7)
    plain, *_ = by_hand.solve(
        case.problem, case.u, case.w0, by_hand.init(case.problem, case.u, case.w0), stream
    )
    np.testing.assert_allclose(flat(w), flat(plain), rtol=1e-2)
    _, _, _, stats = inner.solve(case.problem, case.u, w, state, stream)
    assert int(stats.products) == 1
