"""Federated problems: equality with the pooled problem, rounds in closed form, and the solution."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from bilevel import FederatedInner, tasks
from helpers import assert_close, implicit_gradient

RNG = np.random.default_rng(5)
CLIENTS, ROWS, FEATURES = 4, 10, 3
X = jnp.asarray(RNG.normal(size=(40, FEATURES)) * [1.0, 0.7, 0.4] + 0.5)
Y = X @ jnp.array([1.0, -1.0, 2.0]) + 0.5 * jnp.asarray(RNG.normal(size=40))
X_VAL = jnp.asarray(RNG.normal(size=(20, FEATURES)))
Y_VAL = X_VAL @ jnp.array([0.8, -1.0, 1.5])
U = jnp.array([-1.0, -2.0, -3.0])
INNER = tasks.deal_rows(Y, CLIENTS)  # sorted by target: as different as can be
OUTER = tasks.deal_rows(Y_VAL, CLIENTS)
POOLED = tasks.ridge(X, Y, X_VAL, Y_VAL)
PROBLEM = tasks.federated(POOLED, INNER, OUTER)
STEP, KEY = 0.1, jax.random.key(1)


def hessians(u=U):
    x = X[INNER]
    return jnp.einsum("cij,cik->cjk", x, x) / ROWS + jnp.diag(jnp.exp(u))[None]


def solution(u=U):
    return jnp.linalg.solve(hessians(u).mean(axis=0), X.T @ Y / 40)


def run(solver, w, problem=PROBLEM, sampler=None, key=KEY):
    sampler = bilevel.FullBatch() if sampler is None else sampler
    stream = bilevel.Stream(sampler, problem.inner_data, sampler.init(problem.inner_data, key))
    return solver.solve(problem, U, w, solver.init(problem, U, w), stream)


@pytest.mark.parametrize("which", ["inner", "outer"])
def test_the_federated_problem_equals_the_pooled_one(which):
    w = jnp.array([0.3, -0.2, 0.9])
    f, pooled = getattr(PROBLEM, which), getattr(POOLED, which)
    data, all_rows = getattr(PROBLEM, f"{which}_data"), getattr(POOLED, f"{which}_data")
    assert data[0].shape[0] == CLIENTS
    assert_close(f(U, w, data), pooled(U, w, all_rows), rtol=1e-14)


def test_hypergradient_is_the_pooled_one_and_not_the_mean_of_local_ones():
    w = solution()

    def pooled_gradient(inner, outer):
        return implicit_gradient(
            POOLED, U, w, lx.Cholesky(), inner_batch=inner, outer_batch=outer
        ).grad

    found = implicit_gradient(PROBLEM, U, w, lx.Cholesky()).grad
    pooled = pooled_gradient(POOLED.inner_data, POOLED.outer_data)
    assert_close(found, pooled, rtol=1e-11)
    local = jax.vmap(pooled_gradient)(PROBLEM.inner_data, PROBLEM.outer_data)
    gap = jnp.linalg.norm(local.mean(axis=0) - pooled)
    assert gap > 0.1 * jnp.linalg.norm(pooled)


def test_outer_rows_may_stay_with_the_server():
    problem = tasks.federated(POOLED, INNER)
    assert jax.tree.leaves(problem.outer_data)[0].shape == X_VAL.shape
    found = implicit_gradient(problem, U, solution(), lx.Cholesky()).grad
    pooled = implicit_gradient(POOLED, U, solution(), lx.Cholesky()).grad
    assert_close(found, pooled, rtol=1e-11)


@pytest.mark.parametrize("corrected", [True, False])
def test_one_local_step_is_gradient_descent(corrected):
    w0 = jnp.array([0.3, -0.2, 0.9])
    found, _, _, stats = run(FederatedInner(STEP, 1, 30, corrected), w0)
    descent = run(bilevel.GradientInner(optax.sgd(STEP), 30), w0, POOLED)[0]
    assert_close(found, descent, rtol=1e-13)
    assert int(stats.calls) == 30


@pytest.mark.parametrize("local_steps", [2, 5])
def test_a_round_in_closed_form(local_steps):
    """w+ = w - a mean_i sum_{j < T} (I - a A_i)^j  A (w - w*), A the mean of the A_i."""
    w = jnp.array([0.3, -0.2, 0.9])
    found, _, _, stats = run(FederatedInner(STEP, local_steps, 1), w)
    series = sum(
        jnp.linalg.matrix_power(jnp.eye(FEATURES)[None] - STEP * hessians(), j)
        for j in range(local_steps)
    )
    gradient = hessians().mean(axis=0) @ (w - solution())
    expected = w - STEP * jnp.asarray(series).mean(axis=0) @ gradient
    assert_close(found, expected, rtol=1e-12)
    assert int(stats.calls) == local_steps


def test_the_corrected_limit_is_the_solution_and_the_uncorrected_one_is_not():
    """The limit of FedAvg solves mean_i (I - (I - a A_i)^T)(w - w_i*) = 0."""
    w0, steps = jnp.zeros(FEATURES), 5
    assert_close(run(FederatedInner(STEP, steps, 400), w0)[0], solution(), rtol=1e-12)
    shrunk = jnp.eye(FEATURES)[None] - jnp.linalg.matrix_power(
        jnp.eye(FEATURES)[None] - STEP * hessians(), steps
    )
    moments = jnp.einsum("cij,ci->cj", X[INNER], Y[INNER]) / ROWS
    own = jnp.linalg.solve(hessians(), moments[..., None])
    biased = jnp.linalg.solve(shrunk.sum(axis=0), (shrunk @ own).sum(axis=0))[:, 0]
    assert_close(run(FederatedInner(STEP, steps, 400, False), w0)[0], biased, rtol=1e-10)
    assert jnp.linalg.norm(biased - solution()) > 0.02 * jnp.linalg.norm(solution())


def test_some_clients_per_round():
    """One round with one client is local gradient descent on that client."""
    w0 = jnp.array([0.3, -0.2, 0.9])
    sampler = bilevel.WithReplacement(1)
    found, _, stream, _ = run(FederatedInner(STEP, 3, 1), w0, sampler=sampler)
    batch, _ = sampler.draw(PROBLEM.inner_data, sampler.init(PROBLEM.inner_data, KEY))
    client = jax.tree.map(lambda x: x[0], batch.data)
    w = w0
    for _ in range(3):
        w = w - STEP * POOLED.residual(U, w, client)
    assert_close(found, w, rtol=1e-12)
    assert int(stream.state.drawn) == 1


def test_deal_rows():
    y = RNG.integers(0, 5, 103)
    for share in (0.0, 0.5, 1.0):
        index = tasks.deal_rows(y, 10, heterogeneity=share)
        assert index.shape == (10, 10)
        assert len(np.unique(index)) == 100
    labels = [len(np.unique(y[rows])) for rows in tasks.deal_rows(y, 10, heterogeneity=1.0)]
    assert max(labels) <= 2
    mixed = [len(np.unique(y[rows])) for rows in tasks.deal_rows(y, 10, heterogeneity=0.0)]
    assert np.mean(mixed) > 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FederatedInner(0.1, 0, 1), "local_steps >= 1"),
        (lambda: FederatedInner(0.1, 1, 0), "num_rounds >= 1"),
        (lambda: FederatedInner(0.0, 1, 1), "step_size > 0"),
        (lambda: tasks.federated(POOLED, np.array([[0, 40]])), "0 to 39"),
        (lambda: tasks.federated(POOLED, INNER, np.array([[-1]])), "outer_rows"),
        (lambda: tasks.deal_rows(Y, 41), "num_clients"),
        (lambda: tasks.deal_rows(Y, 2, heterogeneity=1.5), "heterogeneity"),
    ],
)
def test_bad_calls(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_problem_without_data_has_no_clients():
    problem = bilevel.BilevelProblem(lambda u, w, _: w @ w, lambda u, w, _: (w - u) @ (w - u))
    with pytest.raises(ValueError, match="clients"):
        FederatedInner(0.1, 1, 1).init(problem, U, U)
    with pytest.raises(ValueError, match="no inner_data"):
        tasks.federated(problem, INNER)
