"""Every stochastic method against its equations in numpy, on the same batches."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from equations import KEY, PROBLEM, STEPS, U0, W0, Rows
from methods import METHODS

SLOW = {
    "VRBO",
    "SRBA",
    "SFFBA",
    "MSEBA",
    "SUSTAIN",
    "SPABA",
    "BSA",
}  # kin of others


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name, row in METHODS.items()
        if row.oracle
    ],
)
def test_fifty_steps_are_the_equations(name):
    oracle: Any = METHODS[name].oracle
    algorithm, equations = oracle
    outer_key, inner_key = jr.split(KEY)
    rows = [
        Rows(sampler, data, key)
        for sampler, data, key in [
            (algorithm.inner_sampler, PROBLEM.inner_data, inner_key),
            (algorithm.outer_sampler, PROBLEM.outer_data, outer_key),
        ]
    ]
    step = jax.jit(lambda state: algorithm.step(PROBLEM, state)[0])
    state = eqx.filter_jit(algorithm.init)(PROBLEM, jnp.asarray(U0), jnp.asarray(W0), KEY)
    found = []
    for _ in range(STEPS):
        state = step(state)
        found.append((state.u, state.w))
    expected = equations(*rows)
    for u, w in found:
        u_expected, w_expected = next(expected)
        np.testing.assert_allclose(u, u_expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(w, w_expected, rtol=0, atol=1e-10)
    assert np.linalg.norm(np.asarray(state.u) - U0) > 0.1
