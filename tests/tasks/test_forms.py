"""Minimax and compositional problems: closed forms, pooled and over clients that differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import FedNest, tasks

RNG = np.random.default_rng(3)
ROWS, DIM_U, DIM_W, RIDGE = 12, 3, 4, 0.5
A = RNG.normal(size=(ROWS, DIM_W, DIM_U)) + np.eye(DIM_W, DIM_U)
B = RNG.normal(size=(ROWS, DIM_W)) + np.arange(ROWS)[:, None] / 6  # rows of a client are alike
MEAN_A, MEAN_B = A.mean(0), B.mean(0)
LEFT = MEAN_A.T @ MEAN_A + RIDGE * np.eye(DIM_U)
U_STAR = np.linalg.solve(LEFT, MEAN_A.T @ MEAN_B)  # of |A u - b|^2 / 2 + RIDGE |u|^2 / 2
CLIENTS = np.arange(ROWS).reshape(4, 3)
U0, W0 = jnp.array([0.4, -0.3, 0.2]), jnp.zeros(DIM_W)


def saddle(u, w, batch):
    """`w'(A u - b) - |w|^2 / 2 + RIDGE |u|^2 / 2`: its maximum over w is the least-squares loss."""
    a, b = batch
    gap = jnp.mean(a @ u - b, axis=0)
    return w @ gap - 0.5 * jnp.sum(w**2) + 0.5 * RIDGE * jnp.sum(u**2)


def residual(u, batch):
    a, b = batch
    return jnp.mean(a @ u - b, axis=0)


DATA = jnp.asarray(A), jnp.asarray(B)
PROBLEMS = {
    "minimax": tasks.minimax(saddle, DATA),
    "compositional": tasks.compositional(
        lambda u, w, _: 0.5 * jnp.sum(w**2) + 0.5 * RIDGE * jnp.sum(u**2),
        residual,
        jnp.zeros((ROWS, 1)),
        DATA,
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_hypergradient_and_the_solution_are_those_of_least_squares(name):
    w_star = MEAN_A @ np.asarray(U0) - MEAN_B
    found = bilevel.implicit_gradient(PROBLEMS[name], U0, jnp.asarray(w_star), bilevel.CG())
    truth = LEFT @ np.asarray(U0) - MEAN_A.T @ MEAN_B
    np.testing.assert_allclose(found.grad, truth, rtol=1e-10)
    solution = bilevel.solve(PROBLEMS[name], bilevel.SOBA(0.8, 0.8, 0.1), U0, W0, num_steps=400)
    np.testing.assert_allclose(solution.u, U_STAR, rtol=1e-6)


@pytest.mark.parametrize("name", [pytest.param("minimax", marks=pytest.mark.slow), "compositional"])
def test_corrected_clients_end_at_the_pooled_solution(name):
    problem = tasks.federated(PROBLEMS[name], CLIENTS, CLIENTS)
    method = FedNest(0.3, 0.5, 0.1, num_inner=3, num_outer=2, num_terms=40)
    solution = bilevel.solve(problem, method, U0, W0, num_steps=400)
    np.testing.assert_allclose(solution.u, U_STAR, rtol=1e-6)
    np.testing.assert_allclose(solution.w, MEAN_A @ U_STAR - MEAN_B, rtol=1e-6, atol=1e-8)


def test_a_map_that_is_not_linear_gives_the_chain_rule():
    """min_u of `log mean_i exp(r_i(u))`, with w a tree: the gradient of the composition itself."""

    def moments(u, batch):
        a, b = batch
        losses = jnp.sum((a @ u - b) ** 2, axis=1) / 8
        return {"exp": jnp.mean(jnp.exp(losses)), "mean": jnp.mean(losses)}

    def risk(u, w, _):
        return jnp.log(w["exp"]) + w["mean"] ** 2 + jnp.sum(jnp.sin(u))

    problem = tasks.compositional(risk, moments, None, DATA)
    truth = jax.grad(lambda u: risk(u, moments(u, DATA), None))(U0)
    found = bilevel.implicit_gradient(problem, U0, moments(U0, DATA), bilevel.CG())
    np.testing.assert_allclose(found.grad, truth, rtol=1e-10)
