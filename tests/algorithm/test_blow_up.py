"""Runs that blow up say so, and runs that go far do not: every method, with and without a set U."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import RESULTS
from bilevel._solution import NAMES
from methods import METHODS
from rows import BY_BLOCKS, BY_CLIENTS, with_steps

QUICK = ("SOBA",)
FAILED = {"outer_divergence", "inner_divergence", "linear_divergence", "nonfinite"}


def toward(target: float, geometry: Any = None) -> bilevel.BilevelProblem:
    """`w* = u` and `F = |w - target|^2 / 2`, which is least at `u = target`."""
    return bilevel.BilevelProblem(
        outer=lambda u, w, _: 0.5 * jnp.sum((w - target) ** 2),
        inner=lambda u, w, _: 0.5 * jnp.sum((w - u) ** 2),
        outer_data=(jnp.zeros(1),),
        inner_data=(jnp.zeros(1),),
        geometry=bilevel.Euclidean() if geometry is None else geometry,
    )


SINGLE = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name, row in METHODS.items()
    if row.oracle is not None or name in BY_CLIENTS
]


def made(name: str, inner: float, linear: float, outer: float) -> Any:
    options = {"inner_sampler": bilevel.Blocks(1), "outer_sampler": bilevel.Blocks(1)}
    kind = METHODS[name].kind
    return with_steps(kind, inner, linear, outer, options if name in BY_BLOCKS else None)


def outcome(name: str, steps: tuple[float, float, float], start: float = 0.0, **options) -> Any:
    options = {"target": 1.0, "geometry": None, "num_steps": 60} | options
    problem = toward(options.pop("target"), options.pop("geometry"))
    at = jnp.full(2, start)
    return bilevel.solve(problem, made(name, *steps), at, at, throw=False, **options)


BLOW_UPS = {"w": (2.6, 0.5, 0.1), "v": (0.5, 2.6, 0.1), "u": (0.5, 0.5, 30.0)}


@pytest.mark.parametrize("name", SINGLE)
def test_a_blow_up_is_told(name):
    has_v = "linear_step" in vars(made(name, 1.0, 1.0, 1.0))
    for place, steps in BLOW_UPS.items():
        if place == "v" and not has_v:
            continue
        for options in ({"chunk_size": 7}, {"num_steps": 20}, {"trace_every": 3}):
            result = NAMES[int(outcome(name, steps, **options).result._value)]
            assert result in FAILED, (place, options)


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_far_is_no_blow_up(name):
    """A solution at 1e8, a start at 1e8, and few steps of either."""
    steps = (0.3, 0.3, 0.05)
    cases = [(0.0, 1e8), (1e8, 1.0), (1.0, 1.0)]
    if name == "PDBO":  # whose delta is in units of f, here of 1e16
        cases = cases[2:]
    for start, target in cases:
        for num_steps in (1, 2, 3, 5, 9, 60, 250):
            solution = outcome(name, steps, start, target=target, num_steps=num_steps)
            assert bool(solution.result == RESULTS.successful), (start, target, num_steps)


def test_far_is_no_blow_up_of_soba():
    """Two of the cases of the slow test."""
    for start, target, num_steps in ((0.0, 1e8, 2), (1e8, 1.0, 60)):
        solution = outcome("SOBA", (0.3, 0.3, 0.05), start, target=target, num_steps=num_steps)
        assert bool(solution.result == RESULTS.successful)


def test_it_raises_with_what_grew():
    with pytest.raises(bilevel.BilevelError, match="These grew: the length of a step") as caught:
        bilevel.solve(toward(1.0), made("SOBA", *BLOW_UPS["w"]), *(jnp.zeros(2),) * 2, num_steps=60)
    assert bool(caught.value.solution.result == RESULTS.outer_divergence)


@pytest.mark.parametrize("place", ["w", "v", "u"])
def test_a_blow_up_within_a_set(place):
    """On a ball u stays where it is put, so only w and v can blow up; u then jumps to and fro."""
    solution = outcome("SOBA", BLOW_UPS[place], geometry=bilevel.Ball(2.0), num_steps=80)
    assert bool(solution.result == RESULTS.outer_divergence) == (place != "u")
    assert np.linalg.norm(solution.u) <= 2 + 1e-12


@pytest.mark.parametrize("outer_step", [0.3, pytest.param(3.0, marks=pytest.mark.slow), 40.0])
def test_a_double_loop(outer_step):
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(1.0), 1), bilevel.AID(), optax.sgd(outer_step)
    )
    solution = bilevel.solve(
        toward(1.0), method, jnp.zeros(2), jnp.zeros(2), num_steps=20, throw=False
    )
    expected = RESULTS.successful if outer_step < 2 else RESULTS.outer_divergence
    assert bool(solution.result == expected)


@pytest.mark.parametrize("warm_start", [False, True])
def test_inner_solves_that_run_away(warm_start):
    """Each inner solve multiplies the distance to w* by 1.5^6; F is bounded, so it shows nothing."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.mean(jnp.tanh(w - 1.0)),
        inner=lambda u, w, _: 0.5 * jnp.sum((w - u) ** 2),
    )
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(2.5), 6),
        bilevel.ITD(),
        optax.sgd(1e-3),
        warm_start=warm_start,
    )
    with pytest.warns(bilevel.HypergradientWarning, match="a larger residual than it began with"):
        solution = bilevel.solve(
            problem, method, jnp.ones(2), jnp.zeros(2), num_steps=12, throw=False
        )
    assert NAMES[int(solution.result._value)] in ("inner_divergence", "outer_divergence")


def test_leaving_a_saddle_is_no_blow_up():
    """From 1e-6 to 1 both steps and residuals grow a million times, and F falls all the while."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum((w**2 - 1) ** 2) / 8,
        inner=lambda u, w, _: 0.5 * jnp.sum((w - u) ** 2),
    )
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(1.0), 1), bilevel.AID(), optax.sgd(0.5)
    )
    start = jnp.array([1e-6, -2e-6])
    for num_steps in (20, 40, 60, 80, 200):
        solution = bilevel.solve(problem, method, start, start, num_steps=num_steps, throw=False)
        assert bool(solution.result == RESULTS.successful)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x.values[0], marks=x.marks if x.values[0] == "SOBA" else pytest.mark.slow)
        for x in SINGLE
    ],
)
def test_absurd_steps(name):
    """Whatever the number of steps, a run that was thrown away is not successful."""
    runs = [{"num_steps": n} for n in (1, 2, 3)] + [{"num_steps": 10, "trace_every": 10}]
    sizes = [(1e12, 0.1), (0.5, 1e12)]
    if name != "SOBA":
        runs += [{"num_steps": n, "chunk_size": 1} for n in (1, 2, 3, 10)]
        runs += [{"num_steps": n} for n in (10, 30)]
        sizes += [(1e12, 1e12), (1e3, 0.1), (0.5, 1e3)]
    for step, outer_step in sizes:
        for options in runs:
            solution = outcome(name, (step, step, outer_step), **options)
            assert solution.stats["num_steps"] <= options["num_steps"]
            if NAMES[int(solution.result._value)] not in FAILED:  # it has not moved yet
                farthest = max(float(jnp.abs(x).max()) for x in (solution.u, solution.w))
                assert farthest < 100, (step, outer_step, options)


@pytest.mark.parametrize(
    ("num_steps", "tol"),
    [
        (1, None),
        (20, 1e-6),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in [(1, 1e-6), (2, 1e-6), (20, None)]),
    ],
)
def test_thrown_on_a_plain(num_steps, tol):
    """F is at most 1 and flat there, so that no residual shows that the run is lost."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: 1.0 - jnp.exp(-0.5 * jnp.sum((w - 1.0) ** 2)),
        inner=lambda u, w, _: 0.5 * jnp.sum((w - u) ** 2),
    )
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(1.0), 1), bilevel.AID(), optax.sgd(1e12)
    )
    start = jnp.zeros(2), jnp.zeros(2)
    solution = bilevel.solve(problem, method, *start, num_steps=num_steps, tol=tol, throw=False)
    assert NAMES[int(solution.result._value)] in FAILED
    with pytest.raises(bilevel.BilevelError, match="blew up"):
        bilevel.solve(problem, method, *start, num_steps=num_steps, tol=tol)


def test_a_trace_of_one_point():
    solution = outcome("SOBA", BLOW_UPS["w"], trace_every=100)
    assert len(solution.trace["step"]) == 1
    assert bool(solution.result == RESULTS.outer_divergence)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [4, 60])
def test_a_comparison_names_the_methods_that_blew_up(num_steps):
    steps = BLOW_UPS if num_steps == 60 else {"u": (0.5, 0.5, 1e5)}
    methods = {name: made("SOBA", *steps) for name, steps in steps.items()}
    methods["fine"] = made("SOBA", 0.5, 0.5, 0.1)
    start = jnp.zeros(2), jnp.zeros(2)
    frame = bilevel.compare(methods, toward(1.0), *start, num_steps=num_steps, seeds=2)
    ends = frame.groupby(["algorithm", "seed"]).result.last().unstack()
    expected = {name: "successful" if name == "fine" else "outer_divergence" for name in methods}
    for seed in (0, 1):
        assert ends[seed].to_dict() == expected
