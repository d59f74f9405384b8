"""FedNest and LFedNest on clients that differ: their equations in NumPy, and where they end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import FedNest, LFedNest
from problems import CASES, COUPLED, among_clients, client_shifts

CASE = among_clients(CASES["coupled"])
E, S, D = client_shifts(3, 5)
RHO, SIGMA, ETA, NUM_INNER, NUM_OUTER, TERMS = 0.1, 0.15, 0.2, 3, 2, 6
Q = COUPLED


def f_w(u, w, i):
    """The inner gradient of client i, or of the mean."""
    return Q.a @ w - Q.b @ u - Q.c + (0 if i is None else E[i] @ w + S[i])


def hessian(i):
    return Q.a + (0 if i is None else E[i])


def outer_gradients(u, w, i):
    own = 0 if i is None else D[i]
    return Q.lam * u + Q.d @ w + own, w - Q.t + Q.d.T @ u


def hypergradient(u, w, i):
    """With the Neumann series in place of the inverse; `-B'` is the mixed derivative."""
    g_u, g_w = outer_gradients(u, w, i)
    power, v = g_w, np.zeros(5)
    for _ in range(TERMS):
        v, power = v + SIGMA * power, power - SIGMA * hessian(i) @ power
    return g_u + Q.b.T @ v


def inner_round(u, w, corrected):
    ends = []
    for i in range(3):
        w_i = w
        for _ in range(NUM_INNER):
            correction = f_w(u, w, None) - f_w(u, w, i) if corrected else 0
            w_i = w_i - RHO * (f_w(u, w_i, i) + correction)
        ends.append(w_i)
    return np.mean(ends, axis=0)


def fed_nest(u, w):
    w = inner_round(u, w, True)
    h, ends = hypergradient(u, w, None), []
    for i in range(3):
        u_i = u
        for _ in range(NUM_OUTER):
            change = outer_gradients(u_i, w, i)[0] - outer_gradients(u, w, i)[0]
            u_i = u_i - ETA * (change + h)
        ends.append(u_i)
    return np.mean(ends, axis=0), w


def light(u, w):
    w, ends = inner_round(u, w, False), []
    for i in range(3):
        u_i = u
        for _ in range(NUM_OUTER):
            u_i = u_i - ETA * hypergradient(u_i, w, i)
        ends.append(u_i)
    return np.mean(ends, axis=0), w


@pytest.mark.parametrize(("method", "by_hand"), [(FedNest, fed_nest), (LFedNest, light)])
def test_ten_steps_are_the_equations(method, by_hand):
    u, w = np.asarray(CASE.u), np.asarray(CASE.w0)
    for _ in range(10):
        u, w = by_hand(u, w)
    made = method(RHO, SIGMA, ETA, NUM_INNER, NUM_OUTER, TERMS)
    found = bilevel.solve(CASE.problem, made, CASE.u, CASE.w0, num_steps=10)
    np.testing.assert_allclose(found.u, u, rtol=1e-10)
    np.testing.assert_allclose(found.w, w, rtol=1e-10)


def end(method: Any, **steps: Any) -> np.ndarray:
    made = method(0.05, 0.2, 0.05, **steps, num_terms=60)
    found = bilevel.solve(CASE.problem, made, CASE.u, CASE.w0, num_steps=1500)
    return np.asarray(found.u)


@pytest.mark.slow
def test_corrected_local_steps_end_at_the_solution_and_light_ones_elsewhere():
    for num_outer in (1, 3):
        np.testing.assert_allclose(end(FedNest, num_outer=num_outer), Q.u_star, rtol=1e-6)
    away = np.linalg.norm(end(LFedNest, num_outer=4) - Q.u_star)
    assert 0.01 < away / np.linalg.norm(Q.u_star) < 1


@pytest.mark.slow
def test_clients_that_are_alike_make_the_light_variant_exact():
    alike = bilevel.BilevelProblem(
        CASE.problem.outer,
        CASE.problem.inner,
        outer_data=jnp.zeros((3, 3)),
        inner_data=(jnp.zeros((3, 5, 5)), jnp.zeros((3, 5))),
    )
    made = LFedNest(0.1, 0.2, 0.1, num_terms=100)
    found = bilevel.solve(alike, made, CASE.u, CASE.w0, num_steps=1000)
    np.testing.assert_allclose(found.u, Q.u_star, rtol=1e-8)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "sampler",
    [
        bilevel.Shuffled(2),
        pytest.param(bilevel.WithReplacement(3), marks=SLOW),
        pytest.param(bilevel.Blocks(2), marks=SLOW),
    ],
)
def test_light_clients_keep_their_own_data(sampler):
    """`f_i = w^2 / 2 - a_i u w`, `F_i = b_i w`: each client's hypergradient is `a_i b_i = 1`.

    With the data of another client it is one of 1e-3 to 1e3.
    """
    a = jnp.array([1.0, 10.0, 100.0, 1000.0])
    problem = bilevel.BilevelProblem(
        lambda u, w, b: jnp.mean(b) * w, lambda u, w, a: w**2 / 2 - jnp.mean(a) * u * w, 1 / a, a
    )
    method = LFedNest(0.1, 1.0, 0.5, inner_sampler=sampler, outer_sampler=sampler)
    start = jnp.array(0.0)
    found = bilevel.solve(problem, method, start, start, num_steps=6, throw=False)
    np.testing.assert_allclose(found.u, -3.0, rtol=1e-12)
    with pytest.raises(ValueError, match="they must be equal"):
        LFedNest(0.1, 0.1, 0.1, inner_sampler=sampler)


@pytest.mark.parametrize("method", [FedNest, LFedNest])
def test_a_step_of_zero_leaves_u_where_it_is(method):
    """As in a schedule that warms up."""
    made = method(RHO, SIGMA, lambda k: jnp.where(k == 0, 0.0, ETA), NUM_INNER, NUM_OUTER, TERMS)
    state = made.init(CASE.problem, CASE.u, CASE.w0, jax.random.key(0))
    first, _ = made.step(CASE.problem, state)
    second, _ = made.step(CASE.problem, first)
    np.testing.assert_array_equal(first.u, CASE.u)
    assert jnp.all(jnp.isfinite(second.u))
    assert not jnp.any(second.u == CASE.u)


def test_wrong_calls():
    with pytest.raises(ValueError, match="`FedNest` needs a number or a schedule as outer_step"):
        FedNest(0.1, 0.1, "auto")
    with pytest.raises(ValueError, match="num_outer >= 1, got 0"):
        LFedNest(0.1, 0.1, 0.1, num_outer=0)
    with pytest.raises(ValueError, match="`FedNest` takes the entries along axis 0"):
        bilevel.solve(
            CASES["coupled"].problem, FedNest(0.1, 0.1, 0.1), CASE.u, CASE.w0, num_steps=1
        )
    uneven = bilevel.BilevelProblem(
        CASE.problem.outer, CASE.problem.inner, jnp.zeros((2, 3)), CASE.problem.inner_data
    )
    with pytest.raises(ValueError, match="the same clients, got 2 and 3"):
        bilevel.solve(uneven, LFedNest(0.1, 0.1, 0.1), CASE.u, CASE.w0, num_steps=1)
