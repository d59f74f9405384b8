"""Rates of the stochastic methods on a strongly convex quadratic with a known solution."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import Shuffled, decreasing_step
from bilevel.tasks import quadratic
from methods import METHODS
from rows import draws

pytestmark = pytest.mark.slow

ROWS, DIM_U, DIM_W, BATCH = 512, 4, 8, 32
U0, W0 = np.zeros(DIM_U), np.zeros(DIM_W)


@functools.cache  # not while tests are collected
def problem() -> bilevel.BilevelProblem:
    return quadratic(
        jax.random.key(1),
        num_inner_rows=ROWS,
        num_outer_rows=ROWS // 2,
        dim_u=DIM_U,
        dim_w=DIM_W,
        condition=5.0,
    )


@functools.cache
def solution() -> np.ndarray:
    """u* by linear algebra: with w*(u) = -A^-1 (B u + d), Phi is a quadratic."""
    rows, others = (
        [np.asarray(x) for x in jax.tree.leaves(data)]
        for data in (problem().inner_data, problem().outer_data)
    )
    a, b, _, d = rows
    hessian, mixed = b.T @ b / len(b), b.T @ a / len(a)
    slope, shift = -np.linalg.solve(hessian, mixed), -np.linalg.solve(hessian, d.mean(0))
    a, b, c, d = others
    along = a + b @ slope
    gradient = along.T @ (b @ shift) / len(b) + c.mean(0) + slope.T @ d.mean(0)
    return -np.linalg.solve(along.T @ along / len(along), gradient)


def squared_errors(algorithm: Any, steps: list[int], seeds: int) -> np.ndarray:
    """The mean of `|u_k - u*|^2` over the seeds, at the steps k."""
    on, u_star = problem(), solution()

    @eqx.filter_jit
    @eqx.filter_vmap(in_axes=(None, 0))
    def run(algorithm, key):
        def to(state, length):
            def step(_, state):
                return algorithm.step(on, state)[0]

            return jax.lax.fori_loop(0, length, step, state)

        state, found = algorithm.init(on, U0, W0, key), []
        for length in np.diff([0, *steps]):
            state = to(state, int(length))
            found.append(jnp.sum((state.u - u_star) ** 2))
        return jnp.stack(found)

    return np.asarray(run(algorithm, jax.random.split(jax.random.key(0), seeds))).mean(axis=0)


LINEAR = {name: row.linear for name, row in METHODS.items() if row.linear}
DECAYING = {name: row.decaying for name, row in METHODS.items() if row.decaying}


@pytest.mark.parametrize("name", LINEAR)
def test_variance_reduced_methods_converge_linearly_with_a_constant_step(name):
    """log error falls along a straight line, over six decades at least; plain SOBA stalls."""
    steps = [200, 300, 400, 500, 600]
    errors = squared_errors(LINEAR[name], steps, 4)
    slope, intercept = np.polyfit(steps, np.log(errors), 1)
    assert slope < -0.02
    assert np.max(np.abs(np.log(errors) - intercept - slope * np.array(steps))) < 1.5
    assert errors[-1] < 1e-6 * errors[0]
    plain = squared_errors(bilevel.SOBA(0.2, 0.2, 0.05, **draws(Shuffled, BATCH)), [2000, 4000], 4)
    assert 0.3 < plain[1] / plain[0] < 3
    assert plain[1] > 1e4 * errors[-1]


@pytest.mark.parametrize("name", DECAYING)
def test_steps_of_one_over_k_give_a_squared_error_of_one_over_k(name):
    method = DECAYING[name](decreasing_step(40.0, 100.0), decreasing_step(20.0, 100.0))
    steps = [2000, 4000, 8000, 16000]
    errors = squared_errors(method, steps, 48)
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -1.25 < slope < -0.75
