"""On full batches, the direction that a variance-reduced method keeps is the exact one at its point.

The directions are written out in matrices; they share nothing with the code.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from problems import COUPLED, flat
from rows import draws

CASE = COUPLED.case("coupled", jnp.array([0.5, -0.3, 0.2]), jnp.zeros(5))
STEP, K = 0.15, 4
WHOLE = draws(bilevel.Blocks, 1)  # one block, of the only row
ONE_ROW = dataclasses.replace(
    CASE.problem, outer_data=jnp.zeros((1, 0)), inner_data=jnp.zeros((1, 0))
)
METHODS: dict[str, Any] = {
    **{
        f"VRBO, {t} inner steps, period {period}": bilevel.VRBO(
            STEP, STEP, 0.03, period=period, num_inner=t, num_terms=K
        )
        for t, period in [(1, 20), (1, 3), (2, 5), (3, 1), (7, 4)]
    },
    "VRBO, auto": bilevel.VRBO(linear_step=STEP, period=4, num_inner=2, num_terms=K),
    "SRBA, period 20": bilevel.SRBA(STEP, STEP, 0.03, period=20),
    "SRBA, period 3": bilevel.SRBA(STEP, STEP, 0.03, period=3),
    "SPABA": bilevel.SPABA(STEP, STEP, 0.03, probability=0.3),
    "SFFBA": bilevel.SFFBA(STEP, STEP, 0.03, momentum=0.3, **WHOLE),
    "MSEBA": bilevel.MSEBA(STEP, STEP, 0.03, momentum=0.3, probability=0.3, **WHOLE),
    "MRBO": bilevel.MRBO(STEP, STEP, 0.03, momentum=0.3, num_terms=K),
    "SUSTAIN": bilevel.SUSTAIN(STEP, STEP, 0.03, momentum=0.3, num_terms=1),
    "FSLA": bilevel.FSLA(STEP, STEP, 0.03, momentum=0.3),
}


def exact(u, w, v) -> dict[str, np.ndarray]:
    """The directions of `COUPLED` at (u, w, v)."""
    q = COUPLED
    return {
        "u": q.lam * u + q.d @ w + q.b.T @ v,  # the mixed derivative is -B^T
        "w": q.a @ w - q.b @ u - q.c,
        "v": q.a @ v - (w - q.t + q.d.T @ u),
    }


def series(u, w, num_terms) -> np.ndarray:
    terms = [np.linalg.matrix_power(np.eye(5) - STEP * COUPLED.a, k) for k in range(num_terms)]
    return STEP * sum(terms) @ (w - COUPLED.t + COUPLED.d.T @ u)


def kept(method: Any, state: bilevel.State) -> tuple[dict[str, Any], tuple[Any, Any, Any]]:
    """The direction in a state, and the point (u, w, v) that it belongs to."""
    aux, u, w = state.aux, flat(state.u), flat(state.w)
    if isinstance(method, bilevel.VRBO):
        return {"u": aux.u, "w": aux.w}, (u, w, series(u, w, K))
    if isinstance(method, bilevel.SRBA | bilevel.SPABA | bilevel.SFFBA | bilevel.MSEBA):
        old = aux.old
        return aux.d._asdict(), (flat(old.u), flat(old.w), flat(old.v))
    if isinstance(method, bilevel.FSLA):
        return {"u": aux.direction}, (flat(aux.u_old), w, flat(aux.v))
    z, d = aux
    u, w = flat(z.u), flat(z.w)
    return {"u": d.u, "w": d.w}, (u, w, series(u, w, method.num_terms))


@pytest.mark.parametrize("name", METHODS)
def test_the_kept_direction_is_exact(name):
    method, problem = METHODS[name], ONE_ROW
    step = jax.jit(lambda state: method.step(problem, state))
    state = eqx.filter_jit(method.init)(problem, CASE.u, CASE.w0, jax.random.key(0))
    for _ in range(23):  # over several restarts
        state, _ = step(state)
        directions, point = kept(method, state)
        for variable, truth in exact(*point).items():
            if variable in directions:
                np.testing.assert_allclose(flat(directions[variable]), truth, atol=1e-12)


@pytest.mark.parametrize(
    "num_inner",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)],
)
def test_vrbo_converges_between_restarts(num_inner):
    """`w* = u` and `F = (w - 1)^2 / 2`: u tends to 1, also where D is never computed anew."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: 0.5 * jnp.sum((w - 1) ** 2),
        inner=lambda u, w, _: 0.5 * jnp.sum((w - u) ** 2),
    )
    for period in (20, 1000):
        method = bilevel.VRBO(0.5, 0.5, 0.1, period=period, num_inner=num_inner)
        solution = bilevel.solve(problem, method, jnp.zeros(2), jnp.zeros(2), num_steps=300)
        np.testing.assert_allclose(solution.u, 1.0, atol=1e-6)
