"""What an estimate reports: its error, its warnings, its memory."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from bilevel import AID, ITD, RESULTS, GradientInner, HypergradientWarning
from helpers import CASES, COUPLED, assert_close, estimate_on_all_data, flat, on_all_data

SLOW = pytest.mark.slow

# The error estimate.


def errors(case, estimator, inner):
    """The true error and its estimate."""
    found = estimate_on_all_data(case.problem, estimator, inner, case.u, case.w0)
    return np.linalg.norm(flat(found.grad) - case.gradient(case.u)), float(found.error_estimate)


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        ("LU", 3),
        pytest.param("LU", 30, marks=SLOW),
        pytest.param("CG", 3, marks=SLOW),
        ("CG", 30),
        ("Neumann", 3),
        ("Neumann", 30),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "coupled",
        *(pytest.param(n, marks=SLOW) for n in ("logistic", "pytree", "ridge_per_feature")),
    ],
)
def test_error_estimate_of_aid(name, solver, steps):
    """Within a factor of ten of the truth, whatever the inner point and the linear solver."""
    case = CASES[name]
    solvers = {
        "LU": lx.LU(),
        "CG": bilevel.CG(rtol=0.0, max_steps=2),
        "Neumann": bilevel.Neumann(num_terms=steps),
    }
    true, estimated = errors(case, AID(solvers[solver]), GradientInner(case.sgd(), steps))
    if true < 1e-11:
        assert estimated < 1e-9
    else:
        assert 0.3 * true < estimated < 30 * true, (true, estimated)


@pytest.mark.parametrize("mode", ["reverse", pytest.param("checkpointed", marks=SLOW), "forward"])
@pytest.mark.parametrize(
    "name", ["coupled", pytest.param("ridge_per_feature", marks=SLOW), "logistic"]
)
@pytest.mark.slow
def test_error_estimate_of_itd(name, mode):
    case = CASES[name]
    for steps in (10, 20, 40):
        true, estimated = errors(case, ITD(mode), GradientInner(case.sgd(), steps))
        assert (true < 1e-11 and estimated < 1e-9) or 0.1 * true < estimated < 1e3 * true


@pytest.mark.slow
def test_error_estimates_with_known_constants():
    """With the true mu, or the true q of every step, the estimate guesses no curvature."""
    case = CASES["coupled"]
    mu, largest = case.bounds
    step = 1 / largest
    for steps in (5, 20):
        inner = GradientInner(optax.sgd(step), steps)
        aid = AID(bilevel.CG(rtol=1e-10), strong_convexity=mu)
        true, estimated = errors(case, aid, inner)
        assert true < 1.001 * estimated < 300 * true
        itd = ITD(contraction=1 - step * mu)
        true, estimated = errors(case, itd, inner)
        assert true < estimated < 300 * true
    # A smaller constant is a weaker promise.
    weaker = AID(bilevel.CG(rtol=1e-10), strong_convexity=mu / 2)
    inner = GradientInner(optax.sgd(step), 5)
    assert errors(case, weaker, inner)[1] > errors(case, aid, inner)[1]


def test_error_estimate_of_itd_from_the_solution():
    """No step is needed, and truncation still has its error."""
    case, step = CASES["coupled"], 0.2
    w = case.w_star(case.u)
    for steps in (5, 20):
        inner = GradientInner(optax.sgd(step), steps)
        found = ITD().estimate(case.problem, inner, case.u, w, _state(inner, w), case.streams())[0]
        true = np.linalg.norm(flat(found.grad) - case.gradient(case.u))
        assert float(found.inner_residual) < 1e-12
        assert 0.3 * true < float(found.error_estimate) < 300 * true


def _state(inner, w):
    return bilevel.EstimatorState(inner.tx.init(w))


@pytest.mark.slow
def test_error_estimate_is_zero_at_the_solution_and_infinite_without_one():
    case = CASES["coupled"]
    found = bilevel.implicit_gradient(case.problem, case.u, case.w_star(case.u), lx.LU())
    assert float(found.error_estimate) < 1e-12
    concave = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(w), inner=lambda u, w, _: -0.5 * jnp.sum((w - u) ** 2)
    )
    found = bilevel.implicit_gradient(concave, jnp.ones(2), jnp.zeros(2), lx.LU())
    assert np.isinf(float(found.error_estimate))
    growing = GradientInner(optax.sgd(0.1), 5)
    found = estimate_on_all_data(concave, ITD(), growing, jnp.ones(2), jnp.zeros(2))
    assert np.isinf(float(found.error_estimate))


def test_the_error_estimate_costs_nothing_when_it_is_not_used():
    case = CASES["logistic"]

    def flops(output):
        def run(u, w):
            return output(bilevel.implicit_gradient(case.problem, u, w, lx.LU()))

        costs: Any = jax.jit(run).lower(case.u, case.w0).compile().cost_analysis()
        return costs["flops"]

    assert flops(lambda e: (e.grad, e.error_estimate)) > 1.1 * flops(lambda e: e.grad)


# Warnings.


def test_a_solve_that_ran_out_of_steps_warns_and_says_what_to_do():
    case = CASES["coupled"]
    solver = bilevel.Richardson(0.01, rtol=1e-10, max_steps=3)
    with pytest.warns(HypergradientWarning, match=r"linear residual"):
        bilevel.implicit_gradient(case.problem, case.u, case.w_star(case.u), solver)


@pytest.mark.parametrize("solver", [bilevel.Neumann(10.0, 20), bilevel.Richardson(10.0)])
def test_a_series_that_does_not_contract_warns(solver):
    case = CASES["coupled"]
    with pytest.warns(HypergradientWarning, match=r"step_size='auto'.*or damp"):
        found = bilevel.implicit_gradient(case.problem, case.u, case.w_star(case.u), solver)
    assert bool(found.result == RESULTS.not_contracting)


def test_a_run_warns_once():
    case = CASES["coupled"]
    method = bilevel.DoubleLoop(
        GradientInner(case.sgd(), 5), AID(bilevel.Neumann(1.0, 4)), optax.sgd(1e-9)
    )
    with pytest.warns(
        HypergradientWarning, match="at 6 of 6 trace points, first at step 1"
    ) as seen:
        bilevel.solve(case.problem, method, case.u, case.w0, num_steps=6, chunk_size=2)
    assert len(seen) == 1


def test_a_run_searches_for_its_step_size_once():
    """Power iteration takes 20 products in the first outer step and one in each later step."""
    case, terms = CASES["coupled"], 4
    method = bilevel.DoubleLoop(
        GradientInner(case.sgd(), 5), AID(bilevel.Neumann(num_terms=terms)), optax.sgd(0.1)
    )
    trace = bilevel.solve(case.problem, method, case.u, case.w0, num_steps=4).trace
    # K - 1 products of the series and one for the residual.
    np.testing.assert_array_equal(trace["hvps"], terms * np.arange(1, 5) + 20 + np.arange(4))


# Unrolling and the Neumann series (Vicol et al., Appendix E).


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_unrolled_steps_from_the_optimum_are_neumann_terms(steps):
    case, step = CASES["coupled"], 0.2
    w, inner = case.w_star(case.u), GradientInner(optax.sgd(step), steps)
    unrolled = ITD().estimate(case.problem, inner, case.u, w, _state(inner, w), case.streams())[0]
    series = bilevel.implicit_gradient(case.problem, case.u, w, bilevel.Neumann(step, steps))
    np.testing.assert_allclose(flat(unrolled.grad), flat(series.grad), rtol=1e-12)


@pytest.mark.parametrize("last", [3, 10])
def test_itd_is_the_derivative_of_its_last_steps(last):
    """The last K of T steps, compared with the recursion in numpy; all of them by default."""
    case, step, q, u = CASES["coupled"], 0.2, COUPLED, flat(CASES["coupled"].u)
    estimator = ITD(truncate=last) if last < 10 else ITD()
    inner = GradientInner(optax.sgd(step), 10)
    found = estimate_on_all_data(case.problem, estimator, inner, case.u, case.w0)
    w, jacobian = np.zeros(5), np.zeros((5, 3))
    for k in range(10):
        w = w - step * (q.a @ w - q.b @ u - q.c)
        if k >= 10 - last:
            jacobian = jacobian - step * (q.a @ jacobian - q.b)
    truth = q.lam * u + q.d @ w + jacobian.T @ (w - q.t + q.d.T @ u)
    np.testing.assert_allclose(flat(found.grad), truth, rtol=1e-12)
    np.testing.assert_allclose(flat(found.w), w, rtol=1e-12)
    assert int(found.calls.inner_grad) == 11
    assert int(found.calls.hvp) == last


def test_checkpoints_change_no_number():
    """Not the steps of "auto", some of which are taken back, nor the counts and the result."""
    problem = bilevel.BilevelProblem(
        lambda u, w, _: jnp.sum((w - 1) ** 2), lambda u, w, _: jnp.sum((w - u) ** 4 + w**2)
    )
    u, w = jnp.array([0.3, -0.2]), jnp.array([2.0, 0.5])
    found = [
        estimate_on_all_data(problem, ITD(mode), GradientInner("auto", 7), u, w)
        for mode in ("reverse", "checkpointed")
    ]
    assert_close(found[0].grad, found[1].grad, rtol=1e-13)
    assert_close(found[0].w, found[1].w, rtol=1e-13)
    assert [int(each.calls.hvp) for each in found] == [27, 27]
    inner = GradientInner(optax.sgd(5.0), 3)
    with pytest.warns(HypergradientWarning, match="larger residual"):
        bilevel.solve(
            problem,
            bilevel.DoubleLoop(inner, ITD("checkpointed"), optax.sgd(1e-9)),
            u,
            w,
            num_steps=1,
            throw=False,
        )


def test_itd_refuses_what_it_cannot_split():
    closed = bilevel.ClosedForm(lambda u, _: u)
    case = CASES["coupled"]
    for estimator in (ITD(truncate=2), ITD("checkpointed")):
        with pytest.raises(ValueError, match=r"`ClosedForm` does not have; use `GradientInner`"):
            estimator.init(case.problem, closed, case.u, case.w0)
    with pytest.raises(ValueError, match="truncate >= 1, got 0"):
        ITD(truncate=0)


# Memory, in inner vectors, of what XLA compiles.

DIM, ROWS = 20_000, 8


def temporary_vectors(estimator, steps, rows=ROWS, dim=DIM, inner=None):
    """The compiled temporary memory of one estimate, over that of one inner vector."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(jnp.sin(w)),
        inner=lambda u, w, x: jnp.mean(jnp.log1p(jnp.exp(x[0] @ w))) + jnp.exp(u) * jnp.sum(w**2),
        inner_data=(jnp.ones((rows, dim)),),
    )
    inner = GradientInner(optax.sgd(0.1), steps) if inner is None else inner

    def run(x, u, w):
        data = eqx.tree_at(lambda p: p.inner_data, problem, (x,))
        state = estimator.init(data, inner, u, w)
        found = estimator.estimate(data, inner, u, w, state, on_all_data(data))[0]
        return found.grad, found.w

    arguments = (jnp.ones((rows, dim)), jnp.zeros(()), jnp.zeros(dim))
    memory: Any = jax.jit(run).lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes / (8 * dim)


def test_memory_of_reverse_itd_grows_with_the_steps():
    for steps in (50, 200):
        assert steps <= temporary_vectors(ITD(), steps) <= steps + 10


@pytest.mark.parametrize(
    "solver",
    [
        lambda steps: GradientInner(optax.sgd(0.1), steps),
        lambda steps: bilevel.BiGSAM(0.1, 0.1, steps),
    ],
    ids=["gradient", "BiG-SAM"],
)
def test_unrolled_steps_keep_no_intermediate_values_of_the_rows(solver):
    """One number per row takes as much memory as 20 inner vectors, and the gradient of a step has
    several."""
    few, many = (
        temporary_vectors(ITD(), steps, rows=2000, dim=100, inner=solver(steps))
        for steps in (50, 200)
    )
    assert many - few <= 160


def test_memory_of_checkpointed_itd_grows_with_the_root_of_the_steps():
    for steps in (50, 200, 400):
        assert temporary_vectors(ITD("checkpointed"), steps) <= 3 * np.sqrt(steps) + 10


@pytest.mark.slow
def test_memory_of_forward_itd_and_of_aid_does_not_grow():
    for estimator in (
        ITD("forward"),
        AID(bilevel.CG(max_steps=20)),
        AID(bilevel.Neumann(0.1, 20)),
        AID(bilevel.Richardson(0.1)),
    ):
        few, many = (temporary_vectors(estimator, steps) for steps in (50, 400))
        assert many <= 10, estimator
        np.testing.assert_allclose(few, many, rtol=0.05, atol=0.1)
