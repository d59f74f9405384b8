"""`solve`: wrong calls are refused in words; closures work or are refused; results are described."""

import inspect
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest

import bilevel
from bilevel import AID, ITD, BilevelProblem, Checkpoint, GradientInner
from helpers import CASES, assert_same, norm_error, run, soba
from methods import LAWS

ZERO = jnp.zeros(())
METHOD = soba(0.1, 0.1, 0.1)


def outer(u, w, _):
    return 0.5 * (w - 1.0) ** 2


def inner(u, w, _):
    return 0.5 * (w - u) ** 2


PROBLEM = BilevelProblem(outer, inner)


def solve(problem: Any = PROBLEM, method: Any = METHOD, u0: Any = ZERO, w0: Any = ZERO, **options):
    return bilevel.solve(
        problem, method, u0, w0, **(dict[str, Any](num_steps=3, chunk_size=4) | options)
    )


@pytest.mark.parametrize("name", ["num_steps", "trace_every", "chunk_size"])
def test_counts_below_one(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        solve(**{name: 0})
    with pytest.raises(TypeError, match=name):  # 2.5 made two steps, without a word
        solve(**{name: 2.5})


@pytest.mark.parametrize(
    "u0", [jnp.array([0.5, 0.6]), jnp.array([-0.1, 1.1]), jnp.full(4000, 1.05 / 4000)]
)
def test_start_outside_of_the_simplex(u0):
    problem = BilevelProblem(outer, inner, geometry=bilevel.Simplex())
    with pytest.raises(ValueError, match=r"`u0` is not in the set of `Simplex`.*away\. Start from"):
        solve(problem, u0=u0)


def test_start_outside_of_a_box():
    problem = BilevelProblem(outer, inner, geometry=bilevel.Box(1.0, 2.0))
    with pytest.raises(
        ValueError, match="is not in the set of `Box`: the nearest point of it is 1 "
    ):
        solve(problem)


@pytest.mark.parametrize("name", ["u0", "w0"])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_nonfinite_start(name, value):
    with pytest.raises(ValueError, match="`u0` and `w0` must be finite"):
        solve(**{name: jnp.array(value)})


@pytest.mark.parametrize("name", ["u0", "w0"])
def test_integers_are_no_variables(name):
    with pytest.raises(
        TypeError, match=rf"`{name}\['a'\]` must be a floating-point array, got int64"
    ):
        solve(**{name: {"a": jnp.array(1)}})


def test_objectives_must_be_scalars():
    vector = BilevelProblem(lambda u, w, _: w * jnp.ones(3), inner)
    with pytest.raises(ValueError, match=r"outer objective must return a scalar, got \(3,\)"):
        solve(vector)
    with pytest.raises(ValueError, match=r"inner objective must return a scalar, got \(1,\)"):
        solve(BilevelProblem(outer, lambda u, w, _: inner(u, w, _)[None]))
    with pytest.raises(TypeError, match="outer objective must return a floating-point number"):
        solve(BilevelProblem(lambda u, w, _: w.astype(int), inner))


def test_problem_arguments():
    with pytest.raises(
        ValueError, match=r"must have the same length on axis 0.*got lengths \[2, 3\]"
    ):
        BilevelProblem(outer, inner, inner_data=(jnp.ones(2), jnp.ones(3)))
    with pytest.raises(ValueError, match="`outer_data` has zero rows"):
        BilevelProblem(outer, inner, outer_data=jnp.ones((0, 3)))
    with pytest.raises(
        TypeError, match=r"`outer_data\[1\]` must be an array with one row per sample"
    ):
        BilevelProblem(outer, inner, outer_data=(jnp.ones(2), jnp.array(1.0)))


def test_state_of_another_problem():
    other = run(LAWS["SOBA"], 7)
    with pytest.raises(
        ValueError, match=r"`state` does not belong to this problem: its `u` has sh"
    ):
        solve(state=other.state)


def test_state_of_another_algorithm():
    method, other = LAWS["AID cold"], run(LAWS["SOBA"], 7)
    with pytest.raises(ValueError, match="`state` does not belong to this algorithm"):
        run(method, state=other.state)


def solve_unchecked(problem: Any = PROBLEM, method: Any = METHOD, **options):
    """As a user's call is, whose annotations nobody checks."""
    return inspect.unwrap(bilevel.solve)(
        problem, method, ZERO, ZERO, **dict[str, Any](num_steps=3, chunk_size=4) | options
    )


def test_arguments_of_another_kind():
    with pytest.raises(TypeError, match=r"must be a `BilevelProblem` or .*, got function"):
        solve_unchecked(outer)
    with pytest.raises(TypeError, match=r"such as `SOBA\(\)`, got the class SOBA"):
        solve_unchecked(method=bilevel.SOBA)
    method: Any = eqx.tree_at(lambda m: m.inner_sampler, METHOD, 32)
    with pytest.raises(TypeError, match=r"`inner_sampler` must be a sampler .*, got 32"):
        solve_unchecked(method=method)


def test_what_is_no_callback_is_refused_before_a_step():
    """A function was called after each chunk, and its missing `close` lost the run at its end."""
    seen = []
    with pytest.raises(
        TypeError, match=r"`callbacks\[0\]` must be an `AbstractCallback`.*StopWhen"
    ):
        solve_unchecked(callbacks=[seen.append])
    assert not seen
    with pytest.raises(TypeError, match="must be a list of callbacks, got StopWhen"):
        solve_unchecked(callbacks=bilevel.StopWhen(bool))


def test_a_solution_is_no_state():
    with pytest.raises(TypeError, match=r"such as `solution\.state`, got Solution"):
        solve_unchecked(state=solve())


@pytest.mark.parametrize(
    ("tol", "error"),
    [
        (float("nan"), ValueError),  # nothing is at or below it
        (-1e-3, ValueError),
        (bilevel.Tolerances(1e-3, -1.0, 1e-3), ValueError),
        ("small", TypeError),
        ((1e-3, 1e-3, 1e-3), TypeError),
    ],
)
def test_tolerances_that_are_none(tol, error):
    with pytest.raises(error, match="`tol` must be"):
        solve_unchecked(tol=tol)


def test_debug_nans_finds_no_nan_of_ours():
    """`jax_debug_nans` stopped healthy runs: at steps without a row, and without a ratio of steps."""
    method = bilevel.DoubleLoop(GradientInner(optax.sgd(0.5), 2), AID(lx.LU()), optax.sgd(0.1))
    with jax.debug_nans(True):
        solution = solve(method=method, num_steps=5, trace_every=2)
        with pytest.raises(FloatingPointError, match="nan"):
            solve(BilevelProblem(lambda u, w, _: jnp.log(-u - 1.0) + w, inner))
    assert np.isnan(solution.trace["step_ratio"]).all()
    assert solution.trace["step"].tolist() == [2, 4, 5]


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, lambda f: jax.vmap(f, axis_size=2)])
def test_solve_under_a_transformation(transform):
    call = transform(lambda u0: solve(u0=u0).u)
    with pytest.raises(TypeError, match="`solve` runs on the host"):
        call(jnp.zeros(2) if transform not in (jax.jit, jax.grad) else ZERO)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
@pytest.mark.parametrize("place", ["outer", "inner"])
def test_solve_with_objectives_that_close_over_a_traced_value(transform, place):
    def call(x):
        F = (lambda u, w, _: 0.5 * (w - x) ** 2) if place == "outer" else outer
        f = (lambda u, w, _: 0.5 * (w - x * u) ** 2) if place == "inner" else inner
        return solve(BilevelProblem(F, f)).u

    with pytest.raises(TypeError, match="`solve` runs on the host"):
        transform(call)(jnp.array(2.0))


METHODS_FOR_CLOSURES = {
    "AID": bilevel.DoubleLoop(
        inner=GradientInner(optax.sgd(1.0), 1), hypergradient=AID(lx.LU()), outer_tx=optax.sgd(0.1)
    ),
    "ITD": bilevel.DoubleLoop(
        inner=GradientInner(optax.sgd(1.0), 1), hypergradient=ITD(), outer_tx=optax.sgd(0.1)
    ),
    "SOBA": METHOD,
}


@pytest.mark.parametrize("name", METHODS_FOR_CLOSURES)
def test_objectives_that_ignore_u_are_refused(name):
    """A hypergradient of silent zeros is nearly always a closure over the wrong variable."""
    theirs = jnp.array(2.0)
    problem = BilevelProblem(outer, lambda u, w, _: 0.5 * (w - theirs) ** 2)
    with pytest.raises(ValueError, match="the inner objective does not depend on its argument"):
        solve(problem, METHODS_FOR_CLOSURES[name])
    with pytest.raises(ValueError, match="silently zero"):
        bilevel.implicit_gradient(problem, ZERO, ZERO, lx.LU())


def test_dependence_through_control_flow_is_seen():
    """Only a `cond` inside a `scan` inside a `jit` reaches u."""

    def inner(u, w, _):
        def step(c, _):
            return jax.lax.cond(c > 0, lambda: c * u, lambda: c + u), None

        target = jax.jit(lambda u: jax.lax.scan(step, jnp.ones(()), length=2)[0])(u)
        return 0.5 * (w - target) ** 2

    found = bilevel.implicit_gradient(
        BilevelProblem(outer, inner), jnp.array(3.0), jnp.array(9.0), lx.LU()
    )
    np.testing.assert_allclose(float(found.grad), (9 - 1) * 6.0, rtol=1e-12)


def test_objectives_may_close_over_arrays():
    factor = jnp.array(3.0)
    problem = BilevelProblem(outer, lambda u, w, _: 0.5 * (w - factor * u) ** 2)
    found = bilevel.implicit_gradient(problem, jnp.array(2.0), jnp.array(6.0), lx.LU())
    np.testing.assert_allclose(float(found.grad), 3 * (6 - 1), rtol=1e-14)
    solution = solve(problem, METHODS_FOR_CLOSURES["AID"], num_steps=200)
    np.testing.assert_allclose(float(solution.u), 1 / 3, rtol=1e-10)


def closing_over(x):
    """`w* = x u`, `Phi = (x u - 1)^2 / 2`."""
    return BilevelProblem(outer, lambda u, w, _: 0.5 * (w - x * u) ** 2)


@pytest.mark.parametrize("solver", [lx.LU(), bilevel.CG(rtol=1e-12)], ids=["LU", "CG"])
def test_derivative_in_a_closed_over_variable(solver):
    """d/dx of grad Phi(u) = x (x u - 1), at w = x u."""
    u, x = jnp.array(2.0), jnp.array(1.5)

    def gradient(x):
        return bilevel.implicit_gradient(closing_over(x), u, x * u, solver).grad

    np.testing.assert_allclose(float(gradient(x)), 1.5 * 2, rtol=1e-12)
    np.testing.assert_allclose(float(jax.grad(gradient)(x)), 2 * 1.5 * 2 - 1, rtol=1e-12)
    np.testing.assert_allclose(float(jax.jit(jax.grad(gradient))(x)), 5.0, rtol=1e-12)


@pytest.mark.parametrize("kind", ["gradient", "minimiser"])
def test_derivative_of_the_value_through_an_inner_solver(kind):
    """d/dx of Phi(u) = (x u - 1)^2 / 2 through `AID.estimate`, which solves the inner problem."""
    u, x = jnp.array(2.0), jnp.array(1.5)
    if kind == "gradient":
        inner_solver = GradientInner(optax.sgd(1.0), 1)
    else:
        inner_solver = bilevel.MinimiserInner(optx.BFGS(rtol=1e-10, atol=1e-10))
    estimator = AID(lx.LU(), warm_start=False)

    def value(x):
        problem = closing_over(x)
        state = estimator.init(problem, inner_solver, u, ZERO)
        data = bilevel.Stream(bilevel.FullBatch(), None, ())
        streams = bilevel.Streams(data, data)
        return estimator.estimate(problem, inner_solver, u, ZERO, state, streams)[0].value

    np.testing.assert_allclose(float(jax.grad(value)(x)), (3 - 1) * 2.0, rtol=1e-7)


def test_derivative_through_algorithm_steps():
    """d/dx of the outer variable after two steps u+ = u - s x (x u - 1), by an unrolled scan."""
    x, s, method = jnp.array(1.5), 0.1, METHODS_FOR_CLOSURES["AID"]

    def last(x):
        problem = closing_over(x)
        state = method.init(problem, jnp.array(1.0), ZERO, jax.random.key(0))
        for _ in range(2):
            state, _ = method.step(problem, state)
        return state.u

    def by_hand(x):
        u = 1.0
        for _ in range(2):
            u = u - s * x * (x * u - 1)
        return u

    np.testing.assert_allclose(float(last(x)), float(by_hand(x)), rtol=1e-12)
    np.testing.assert_allclose(float(jax.grad(last)(x)), float(jax.grad(by_hand)(x)), rtol=1e-10)


def test_the_caller_keeps_what_it_passed():
    """Chunks reuse their state's memory; that of the caller's arrays must survive."""
    method = LAWS["SOBA"]
    first = run(method, 3)
    before = jax.tree.map(lambda x: np.array(x), (first.u, first.w))
    second, third = run(method, state=first.state), run(method, state=first.state)
    assert_same(second.state, third.state)
    assert_same((first.u, first.w), before)
    assert float(jnp.sum(method.case.u)) == float(jnp.sum(CASES["coupled"].u))


def test_solution_describes_the_run():
    solution = run(LAWS["SOBA"], 7)
    assert solution.stats == {
        "num_steps": 7,
        "calls": {"outer_grad": 7, "inner_grad": 7, "hvp": 7, "mixed": 7},
        "converged": False,
    }
    assert bool(solution.result == bilevel.RESULTS.successful)
    assert {len(column) for column in solution.trace.values()} == {7}
    problem, u, w = CASES["coupled"].problem, CASES["coupled"].u, CASES["coupled"].w0
    np.testing.assert_allclose(
        solution.trace["outer_value"][0], float(problem.outer(u, w, None)), rtol=1e-14
    )
    gradient = np.linalg.norm(jax.grad(problem.inner, argnums=1)(u, w, None))
    np.testing.assert_allclose(solution.trace["inner_residual"][0], gradient, rtol=1e-14)
    assert solution.trace["hvps"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_finished_run_stays_finished_and_says_so():
    """`num_steps` counts the steps before too: "10 more" of a run of 10 is 20."""
    method = LAWS["SOBA"]
    first = run(method, 7)
    again = run(method, 7, state=first.state)
    assert_same(first.state, again.state)
    assert len(again.trace["step"]) == 0
    assert "made no step: 7 were made before, and 7 were asked for in all" in str(again)
    with pytest.warns(UserWarning, match=r"num_steps=5 no step is made\..* pass num_steps=107"):
        run(method, 5, state=first.state)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(3), 3, np.int64(3)])
def test_raw_keys_and_seeds_are_accepted(key):
    solution = run(LAWS["SOBA replaced"], 7, key=key)
    assert norm_error(solution.w, run(LAWS["SOBA replaced"], 7).w) == 0.0


def test_a_weakly_typed_start_compiles_no_more(compilations, tmp_path):
    weak = jnp.asarray(0.25)
    assert weak.weak_type
    path = tmp_path / "run.eqx"
    problem = BilevelProblem(outer, lambda u, w, _: inner(u, w, _))  # compiled by no other test
    compilations.clear()
    solution = solve(problem, u0=weak, w0=weak, num_steps=9, callbacks=[Checkpoint(path)])
    assert compilations.count("jit(_compiled_chunk)") == 1
    assert not solution.u.weak_type


FIRST_CALL = """
import logging
import jax
import numpy as np
import bilevel

jax.config.update("jax_disable_most_optimizations", True)  # as many programs, sooner
rng = np.random.default_rng(0)
rows = jax.device_put(rng.normal(size=(64, 3))), jax.device_put(rng.normal(size=64))
u, w = jax.device_put(np.zeros(3)), jax.device_put(np.zeros(3))
loss = lambda w, rows: ((rows[0] @ w - rows[1]) ** 2).mean()
problem = bilevel.BilevelProblem(
    lambda u, w, rows: loss(w, rows), lambda u, w, rows: loss(w, rows) + (w**2 @ u**2), rows, rows
)
method = bilevel.SOBA("auto", "auto", "auto", bilevel.Shuffled(16), bilevel.Shuffled(16))
programs = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **rest: programs.append(rest) if "backend_compile" in event else None
)
bilevel.solve(problem, method, u, w, num_steps=3)
print(len(programs))
"""


def test_a_first_call_compiles_few_programs():
    """A program of its own for each small operation of the preparations would cost seconds."""
    found = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) <= 10
