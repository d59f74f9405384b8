"""Any optax transformation as inner or outer transformation, line searches and Polyak's steps too."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import AID, ITD, DoubleLoop, GradientInner
from bilevel._solution import NAMES

PROBLEM = bilevel.BilevelProblem(  # w* = u, Phi = |u - 1|^2
    outer=lambda u, w, _: jnp.sum((w - 1) ** 2),
    inner=lambda u, w, _: 0.5 * jnp.sum(jnp.array([1.0, 2.0, 5.0]) * (w - u) ** 2),
)
QUICK = ("lbfgs", "zoom")
TRANSFORMATIONS: dict[str, Any] = {
    "lbfgs": optax.lbfgs(),
    "polyak": optax.polyak_sgd(),
    "backtracking": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15, store_grad=True)
    ),
    "zoom": optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(15)),
}


@pytest.fixture(autouse=True)
def promotion():
    """The line searches of optax mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(
            pytest.param("inner", name, marks=() if name in QUICK else pytest.mark.slow)
            for name in TRANSFORMATIONS
        ),
        pytest.param("outer", "lbfgs", marks=pytest.mark.slow),
        pytest.param("outer", "polyak", marks=pytest.mark.slow),
        pytest.param("outer", "backtracking", marks=pytest.mark.slow),
        pytest.param("outer", "zoom", marks=pytest.mark.slow),
    ],
)
def test_line_searches(name, place):
    tx = TRANSFORMATIONS[name]
    inner, outer = GradientInner("auto", 60), optax.sgd(0.2)
    if place == "inner":
        inner = GradientInner(tx, 40)
    else:
        outer = tx
    method = DoubleLoop(inner, AID(), outer, warm_start=True)
    solution = bilevel.solve(PROBLEM, method, jnp.full(3, 2.0), jnp.zeros(3), num_steps=30)
    np.testing.assert_allclose(solution.u, 1.0, atol=1e-4)


def test_a_transformation_that_takes_no_keywords():
    """Sharpness-aware steps end within their radius of the minimum."""
    tx = optax.contrib.sam(optax.sgd(0.3), optax.chain(optax.contrib.normalize(), optax.sgd(1e-3)))
    method = DoubleLoop(GradientInner(tx, 80), AID(), optax.sgd(0.2), warm_start=False)
    solution = bilevel.solve(PROBLEM, method, jnp.full(3, 2.0), jnp.zeros(3), num_steps=30)
    np.testing.assert_allclose(solution.u, 1.0, atol=5e-3)


def test_evaluations_of_a_line_search_are_counted():
    """Of f: the gradient of each step and every evaluation, as an instrumented objective counts."""
    count = 0

    def note(_):
        nonlocal count
        count += 1

    def inner(u, w, _):
        jax.debug.callback(note, w)
        return PROBLEM.inner(u, w, None)

    problem = bilevel.BilevelProblem(PROBLEM.outer, inner)
    solver = GradientInner(TRANSFORMATIONS["zoom"], 3)
    u, w = jnp.full(3, 2.0), jnp.zeros(3)
    stream = bilevel.Stream(bilevel.FullBatch(), None, ())
    stats = jax.jit(lambda: solver.solve(problem, u, w, solver.init(problem, u, w), stream)[3])()
    jax.effects_barrier()
    assert int(stats.calls) == count


def test_a_search_on_batches_sees_the_batch_of_the_step():
    """With one row per batch, Newton-like steps of a line search jump to the row of the last batch."""
    rows = jnp.array([0.0, 1.0, 2.0, 3.0])
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: w**2,
        inner=lambda u, w, batch: 0.5 * jnp.mean((w - u - batch[0]) ** 2),
        inner_data=(rows,),
    )
    solver = GradientInner(TRANSFORMATIONS["zoom"], 1)
    stream = bilevel.Stream(
        bilevel.Blocks(1), (rows,), bilevel.Blocks(1).init((rows,), jax.random.key(0))
    )
    seen = stream.draw()[0][0]
    u = w = jnp.array(0.5)
    found, *_ = solver.solve(problem, u, w, solver.init(problem, u, w), stream)
    np.testing.assert_allclose(found, 0.5 + seen[0], atol=1e-6)


def test_unrolling_a_line_search_is_refused():
    method = DoubleLoop(GradientInner(optax.lbfgs(), 5), ITD(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"line search.*`AID`"):
        bilevel.solve(PROBLEM, method, jnp.zeros(3), jnp.zeros(3), num_steps=2)


def test_a_map_has_no_objective_to_search():
    problem = bilevel.FixedPointProblem(lambda u, w, _: jnp.sum(w**2), lambda u, w, _: 0.5 * w + u)
    solver = GradientInner(optax.lbfgs(), 5)
    u, stream = jnp.zeros(3), bilevel.Stream(bilevel.FullBatch(), None, ())
    with pytest.raises(TypeError, match=r"line search.*RootInner"):
        solver.solve(problem, u, u, solver.init(problem, u, u), stream)


BEALE = bilevel.BilevelProblem(
    outer=lambda u, w, _: jnp.sum(w) + u**2,
    inner=lambda u, w, _: (
        sum((c - w[0] * (1 - w[1] ** (i + 1))) ** 2 for i, c in enumerate((1.5, 2.25, 2.625)))
        + 0 * u
    ),
)


@pytest.mark.parametrize("start", [(1.0, 1.0), (0.0, 0.0), (-1.0, -1.0), (1.0, 0.5), (-2.0, 1.0)])
def test_auto_does_not_cycle(start):
    """Beale's function has its minimum 0 at (3, 1/2); f falls from every start, and far."""
    solver, u, w = GradientInner("auto", 1000), jnp.array(0.0), jnp.array(start)
    stream = bilevel.Stream(bilevel.FullBatch(), None, ())
    solve = jax.jit(lambda w: solver.solve(BEALE, u, w, solver.init(BEALE, u, w), stream)[::3])
    found, stats = solve(w)
    assert bool(stats.result == bilevel.RESULTS.successful)
    assert float(BEALE.inner(u, found, None)) < 0.3 * float(BEALE.inner(u, w, None))
    assert np.linalg.norm(BEALE.residual(u, found, None)) < 0.2


@pytest.mark.parametrize("factor", [1.5, 4.0, 1e3])
def test_a_solve_that_runs_away_says_so(factor):
    """The distance to w* grows by `|1 - step L|` per step, with L = 5."""
    solver = GradientInner(optax.sgd((1 + factor) / 5), 30)
    stream = bilevel.Stream(bilevel.FullBatch(), None, ())
    u, w = jnp.ones(3), jnp.zeros(3)
    stats = solver.solve(PROBLEM, u, w, solver.init(PROBLEM, u, w), stream)[3]
    assert bool(stats.result == bilevel.RESULTS.inner_divergence)


@pytest.mark.parametrize("x64", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_schedule_that_freezes_w_says_so(x64):
    """Under a warm start the schedule goes on: after some outer steps w does not move at all."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum((w - 3.0) ** 2) / 2,
        inner=lambda u, w, _: jnp.sum((w - u) ** 2) / 2,
    )
    schedule = optax.exponential_decay(0.5, 1, 0.5)
    for step, expected in ((schedule, "inner_divergence"), (0.5, "successful")):
        method = bilevel.DoubleLoop(
            GradientInner(optax.sgd(step), 5), bilevel.AID(), optax.sgd(0.1), warm_start=True
        )
        with jax.enable_x64(x64):
            start = jnp.zeros(2), jnp.zeros(2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", bilevel.HypergradientWarning)
                solution = bilevel.solve(problem, method, *start, num_steps=100, throw=False)
        assert NAMES[int(solution.result._value)] == expected
        assert (float(solution.trace["inner_residual"][-1]) > 0.1) == (step is schedule)


@pytest.mark.parametrize("x64", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_w_that_stands_still_at_the_solution_is_successful(x64):
    """Rounding stops w, and leaves a gradient; so does a schedule that ends with steps of zero."""
    for tx in (optax.sgd(0.3), optax.sgd(optax.cosine_decay_schedule(0.3, 300))):
        with jax.enable_x64(x64):
            u = jnp.array([1e3, 0.3, 7.0])
            solver = GradientInner(tx, 300)
            w, state = jnp.zeros(3), solver.init(PROBLEM, u, jnp.zeros(3))
            stream = bilevel.Stream(bilevel.FullBatch(), None, ())
            for _ in range(3):
                w, state, _, stats = solver.solve(PROBLEM, u, w, state, stream)
                assert bool(stats.result == bilevel.RESULTS.successful)


@pytest.mark.parametrize("slope", [-3.0, 3.0, 1e30])
def test_fista_that_runs_away_is_finite_and_says_so(slope):
    problem = bilevel.FixedPointProblem(
        lambda u, w, _: jnp.sum(w**2), lambda u, w, _: slope * w + u
    )
    u, stream = jnp.ones(2), bilevel.Stream(bilevel.FullBatch(), None, ())
    w, _, _, stats = bilevel.FISTA().solve(problem, u, u, (), stream)
    assert bool(stats.result == bilevel.RESULTS.inner_divergence)
    assert np.all(np.isfinite(w))
