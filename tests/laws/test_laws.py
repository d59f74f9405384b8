"""What every algorithm must obey, over the table `LAWS` of `tests/methods.py`.

All runs use chunks of 4 on the same problems, so that each method is compiled once.
"""

import functools
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import RESULTS, Checkpoint, StopWhen, Tolerances
from bilevel._chunk import RunOptions, Status
from bilevel._solve import _own
from helpers import (
    CASES,
    COUPLED,
    assert_close,
    assert_same,
    flat,
    norm_error,
    run,
    soba,
    to_float32,
)
from methods import LAWS, row_of


def core(*names: str, among: Iterable[str] = LAWS) -> list[Any]:
    """All methods; those that are not among `names` are slow tests."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in among]


QUICK = [name for name, law in LAWS.items() if law.quick]
DETERMINISTIC = [name for name, law in LAWS.items() if law.case.u_star is not None]
every_method = pytest.mark.parametrize("name", core(*QUICK))
every_deterministic_method = pytest.mark.parametrize("name", core(*QUICK, among=DETERMINISTIC))
CHUNK = "jit(_compiled_chunk)"
SOBAS = [name for name in LAWS if name.startswith("SOBA")]


@functools.cache
def unbroken(name: str) -> bilevel.Solution:
    """Seven steps in chunks of four."""
    return run(LAWS[name])


def samplers(method) -> dict[str, Any]:
    return {x: getattr(method.algorithm, x) for x in ("inner_sampler", "outer_sampler")}


def initial(method, key=3, w0=None):
    w0 = method.case.w0 if w0 is None else w0
    init = eqx.filter_jit(method.algorithm.init)
    return init(method.problem, method.case.u, w0, jax.random.key(key))


def two_steps_by_hand(method):
    state = initial(method)
    for _ in range(2):
        state, _ = method.algorithm.step(method.problem, state)
    return state


@pytest.mark.parametrize("name", core("SOBA"))
def test_jit_changes_nothing(name):
    """`step` called eagerly from a Python loop, against the compiled chunk."""
    method = LAWS[name]
    jitted, by_hand = run(method, 2).state, two_steps_by_hand(method)
    assert_close(by_hand, jitted, rtol=1e-12, atol=1e-14)
    assert norm_error(by_hand.u, method.case.u) > 1e-4  # there was something to compare


@pytest.mark.parametrize("name", core("ITD box"))
def test_disabling_jit_changes_nothing(name):
    """Not even the loops inside are compiled."""
    method = LAWS[name]
    with jax.disable_jit():
        by_hand = two_steps_by_hand(method)
    assert_close(by_hand, run(method, 2).state, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", core("auto SOBA"))
def test_chunk_size_changes_nothing(name, compilations):
    """Bit for bit; and three chunks, the last one partial, are one compilation."""
    one = unbroken(name)
    compilations.clear()
    two = run(LAWS[name], chunk_size=3)
    assert compilations.count(CHUNK) == 1
    assert_same(one.state, two.state)
    assert_same(one.trace, two.trace)
    assert one.stats == two.stats


@every_method
def test_trace_every_thins_the_trace_and_nothing_else(name):
    one, two = unbroken(name), run(LAWS[name], trace_every=3)
    assert_same(one.state, two.state)
    np.testing.assert_array_equal(two.trace["step"], [3, 6, 7])
    for column in one.trace:
        np.testing.assert_array_equal(one.trace[column][[2, 5, 6]], two.trace[column])


@every_method
def test_save_load_and_go_on(name, tmp_path):
    method, path = LAWS[name], tmp_path / "run.eqx"
    first = run(method, 5, callbacks=[Checkpoint(path)])
    loaded = Checkpoint(path).load(initial(method, key=99))
    assert_same(loaded, first.state)
    resumed = run(method, state=loaded, key=jax.random.key(5))
    assert_same(resumed.state, unbroken(name).state)
    assert resumed.stats == unbroken(name).stats
    whole = {k: np.concatenate([first.trace[k], resumed.trace[k]]) for k in first.trace}
    assert_same(whole, unbroken(name).trace)


@every_method
def test_compiles_once(name, tmp_path, compilations):
    """Nothing is traced or compiled for more steps, another tolerance, key or start, or a resume.

    The same call once more compiles nothing at all.
    """
    method, path = LAWS[name], tmp_path / "run.eqx"
    run(method)  # `unbroken` may be older than the last clearing of what is compiled
    compilations.clear()
    run(method)
    assert compilations == []
    unbroken(name)
    run(method, 5, callbacks=[Checkpoint(path)])
    loaded = Checkpoint(path).load(initial(method))
    compilations.clear()
    run(method, 9, tol=1e-30, throw=False, trace_every=2)
    run(method, key=jax.random.key(8))
    run(method, state=loaded)
    run(method, state=unbroken(name).state, num_steps=8)
    assert CHUNK not in compilations
    if name in SOBAS:
        other = soba(0.01, 0.02, 0.03, **samplers(method))
        moved = bilevel.solve(
            method.problem, other, method.case.u, method.case.w0, num_steps=7, chunk_size=4
        )
        assert norm_error(moved.w, unbroken(name).w) > 1e-3
        assert CHUNK not in compilations


@pytest.mark.parametrize("name", core("AID warm", "SOBA shuffled"))
def test_vmap_over_seeds_is_a_loop(name):
    method = LAWS[name]
    never: Any = [jnp.array(-1.0)] * 3
    options = RunOptions(jnp.array(7, jnp.int32), jnp.array(1, jnp.int32), Tolerances(*never))

    @jax.jit
    @jax.vmap
    def together(key):
        state = method.algorithm.init(method.problem, method.case.u, method.case.w0, key)
        status = Status(jnp.array(False), RESULTS.outer_max_steps_reached)
        return bilevel.run_chunk(
            method.problem, method.algorithm, options, state, status, chunk_size=7
        )[0]

    found = together(jax.random.split(jax.random.key(0), 3))
    for i, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        one = run(method, key=key).state
        assert_close(jax.tree.map(lambda x: x[i], found), one, rtol=1e-12, atol=1e-15)  # noqa: B023
    if name in ("SOBA shuffled", "SOBA replaced"):
        assert norm_error(found.w[0], found.w[1]) > 1e-3


def test_vmap_over_step_sizes_is_a_loop():
    method = LAWS["SOBA"]
    sizes = np.array([0.1, 0.2, 0.3])

    @eqx.filter_jit
    @eqx.filter_vmap
    def together(algorithm):
        state = algorithm.init(method.problem, method.case.u, method.case.w0, jax.random.key(3))

        def step(state, _):
            return algorithm.step(method.problem, state)[0], None

        return jax.lax.scan(step, state, length=7)[0]

    found = together(soba(jnp.asarray(sizes), jnp.asarray(sizes), jnp.asarray(sizes / 9)))
    for i, s in enumerate(sizes):
        one = bilevel.solve(
            method.problem,
            soba(s, s, s / 9),
            method.case.u,
            method.case.w0,
            num_steps=7,
            chunk_size=4,
        )
        np.testing.assert_allclose(np.asarray(found.u[i]), np.asarray(one.u), rtol=1e-12)
        np.testing.assert_allclose(np.asarray(found.aux[i]), np.asarray(one.state.aux), 1e-12)


@every_method
def test_float32_stays_float32(name):
    """Also no type is weak, which `test_compiles_once` would notice in float64."""
    method = LAWS[name]
    problem = method.problem
    u, w, outer_data, inner_data = to_float32(
        (method.case.u, method.case.w0, problem.outer_data, problem.inner_data)
    )
    problem = bilevel.BilevelProblem(
        problem.outer, problem.inner, outer_data, inner_data, problem.geometry
    )
    first = eqx.filter_jit(method.algorithm.init)(problem, u, w, jax.random.key(0))
    state = jax.tree.map(_own, first)
    following, info = eqx.filter_eval_shape(method.algorithm.step, problem, state)

    def describe(x):
        return x.shape, x.dtype, getattr(x, "weak_type", False)

    before = [describe(x) for x in jax.tree.leaves(state)]
    assert before == [describe(x) for x in jax.tree.leaves(following)]
    assert not any(weak for *_, weak in before)
    floats = {str(d) for _, d, _ in before if jnp.issubdtype(d, jnp.floating)}
    assert floats == {"float32"}
    assert info.outer_value.dtype == info.inner_residual.dtype == jnp.float32


@pytest.mark.parametrize("name", ["AID cold", "SOBA"])
def test_float32_converges_to_its_precision(name):
    method = LAWS[name]
    u, w = to_float32((method.case.u, method.case.w0))
    algorithm = method.algorithm
    if name == "AID cold":
        algorithm = eqx.tree_at(
            lambda a: a.hypergradient, algorithm, bilevel.AID(bilevel.CG(rtol=1e-5))
        )
    found = bilevel.solve(method.problem, algorithm, u, w, num_steps=400, chunk_size=400)
    assert found.u.dtype == jnp.float32
    assert norm_error(found.u, method.case.u_star) < 1e-5


@every_deterministic_method
def test_converges_to_the_solution(name):
    method = LAWS[name]
    solution = run(method, 1200)
    np.testing.assert_allclose(flat(solution.u), flat(method.case.u_star), atol=1e-8, rtol=0)
    w_star = method.case.w_star(method.case.u_star)
    np.testing.assert_allclose(flat(solution.w), flat(w_star), atol=1e-8, rtol=0)


@every_deterministic_method
def test_stops_when_all_residuals_are_small(name):
    solution = run(LAWS[name], 1200, tol=1e-5)
    assert solution.stats["converged"]
    assert bool(solution.result == RESULTS.successful)
    assert 5 < solution.stats["num_steps"] < 1200
    last = {k: v[-1] for k, v in solution.trace.items()}
    residuals = [last[f"{k}_residual"] for k in ("outer", "inner", "linear")]
    assert max(residuals) <= 1e-5
    before = [solution.trace[f"{k}_residual"][-2] for k in ("outer", "inner", "linear")]
    assert max(before) > 1e-5
    np.testing.assert_allclose(flat(solution.u), flat(LAWS[name].case.u_star), atol=1e-3, rtol=0)


@every_deterministic_method
def test_does_not_move_at_the_solution(name):
    method = LAWS[name]
    case, u = method.case, method.case.u_star
    w = case.w_star(u)
    state = initial(method, w0=w)
    state = eqx.tree_at(lambda s: s.u, state, u)
    if (place_of_v := row_of(name).place_of_v) is not None:
        outer_w = jax.grad(case.problem.outer, argnums=1)(u, w, None)
        v = jnp.asarray(np.linalg.solve(case.hessian, flat(outer_w)))
        state = eqx.tree_at(place_of_v, state, v.reshape(place_of_v(state).shape))
    solution = run(method, 4, state=state)
    np.testing.assert_allclose(flat(solution.u), flat(u), atol=1e-13, rtol=0)
    np.testing.assert_allclose(flat(solution.w), flat(w), atol=1e-13, rtol=0)
    assert np.max(solution.trace["outer_residual"]) < 1e-12


@pytest.mark.parametrize(
    "name", ["AID simplex", "SOBA simplex", "SOBA shuffled", "SOBA replaced", "ITD box"]
)
def test_stays_in_the_set(name):
    """Also with a step so large that most weights underflow."""
    method, seen = LAWS[name], []
    look = StopWhen(lambda chunk: bool(seen.append(flat(chunk.state.u))))
    run(method, 12, callbacks=[look])
    if name in SOBAS:
        wild = soba(0.1, 0.1, 1e5, **samplers(method))
        bilevel.solve(
            method.problem,
            wild,
            method.case.u,
            method.case.w0,
            num_steps=12,
            chunk_size=4,
            callbacks=[look],
        )
        assert seen[-1].max() > 0.5
    for u in seen:
        if "box" in name:
            assert np.all((u >= 0) & (u <= 0.5))
        else:
            assert np.all(u >= 0)
            np.testing.assert_allclose(u.sum(), 1.0, rtol=1e-14)
    assert len(seen) >= 3


@pytest.mark.parametrize("name", ["SOBA shuffled", "SOBA replaced"])
def test_the_key_decides_the_run(name):
    method = LAWS[name]
    assert_same(unbroken(name).state, run(method, key=jax.random.key(3)).state)
    other = run(method, key=jax.random.key(4))
    assert norm_error(other.w, unbroken(name).w) > 1e-3


def test_aid_and_itd_agree_on_a_whole_run():
    """The same outer path from two estimators, and the equations of the outer step in numpy."""
    case = CASES["coupled"]
    solution = unbroken("AID cold")
    u = flat(case.u)
    for _ in range(7):
        u = u - 0.2 * COUPLED.gradient(u)
    np.testing.assert_allclose(flat(solution.u), u, rtol=1e-9)
