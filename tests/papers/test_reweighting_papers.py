"""What the scripts on reweighting compute, against formulas and other implementations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from scipy.stats import norm

import bilevel


@pytest.mark.slow
def test_both_orders_of_algorithm_2(script):
    flows = script("flows")
    problem, u0, w0 = flows.problem_of(3), flows.uniform_weights(flows.N), jnp.array(flows.START)
    rho, eta = jnp.array(0.01), jnp.array(0.02)
    w = w0 - rho * problem.residual(u0, w0, problem.inner_data)
    psi = jax.jit(lambda w: bilevel.implicit_gradient(problem, u0, w, lx.Cholesky()).grad)
    for step, at in ((flows.printed_step, w0), (flows.library_step, w)):
        found = eqx.filter_jit(step)(problem, u0, w0, rho, eta)
        np.testing.assert_allclose(found[1], w, rtol=1e-12)
        weights = u0 * jnp.exp(-eta * psi(at))
        np.testing.assert_allclose(found[0], weights / jnp.sum(weights), rtol=1e-12)
    # The formula that Theorem 1 is run with.
    best = flows.solution(u0, flows.rows_of(problem))
    np.testing.assert_allclose(problem.residual(u0, best, problem.inner_data), 0, atol=1e-12)


@pytest.mark.slow
def test_proposition_2_small(script):
    run = script("flows").discretisation(3, 3, horizon=0.2)
    for name in ("library", "printed"):
        assert run["slopes"][name] == pytest.approx(1, abs=0.05)
        assert run["gaps"][name][-1] < 0.02
    assert run["gaps"]["library"] != run["gaps"]["printed"]


def test_a_period_is_found(script):
    frozen = script("frozen_flow")
    t = np.linspace(0, 50, 5001)
    u = np.stack([0.5 + 0.3 * np.sin(t), 0.5 - 0.3 * np.sin(t), 0 * t], axis=1)
    found = frozen.goes_round(u, t[1])
    assert found["period"] == pytest.approx(2 * np.pi, rel=1e-4)
    assert found["rows"] == [0, 1]
    assert found["swing"] == pytest.approx(0.6, rel=1e-3)
    assert found["distance after a round"] < 1e-4
    assert frozen.goes_round(u * np.exp(-t / 10)[:, None], t[1]) is None
    assert frozen.goes_round(np.full((5001, 3), 1 / 3), t[1]) is None


@pytest.mark.slow
def test_propositions_6_and_7(script):
    frozen = script("frozen_flow")
    worst = frozen.constant_fields(2)
    assert worst["descent"] <= 1e-12
    assert max(worst["flow"], worst["limit"], worst["weight on arg max"]) <= 1e-8
    assert frozen.proposition_7((5, 3), draws=20) == {1: 1, 2: 1, 3: 1, 4: 0, 5: 0}


def test_baselines_of_the_mixture_are_least_squares(script):
    mixture = script("toy_mixture")
    data = mixture.mixture(0)
    problem = mixture.problem_of(data, mixture.RIDGE)
    for rows in (np.full(mixture.N, True), data.first):
        fitted = np.linalg.lstsq(data.d[rows], data.y[rows], rcond=None)[0]
        found = mixture.problem_solution(problem, jnp.asarray(rows / rows.sum()))
        assert mixture.error(found) == pytest.approx(mixture.error(fitted), rel=1e-6)


def test_algorithm_2_is_a_loop_over_log_weights(script):
    """5000 collapsed steps are those of numpy, written from the paper, on the log-weights."""
    mixture = script("toy_mixture")
    data, ridge = mixture.mixture(0), mixture.WELL_POSED
    problem = mixture.problem_of(data, ridge)
    u, w, changes = mixture.count_changes(problem, jnp.zeros(2))

    d, y = data.d, data.y
    logs, theta = np.full(len(y), -np.log(len(y))), np.zeros(2)
    heaviest = []
    for _ in range(mixture.STEPS):
        p = np.exp(logs)
        theta = theta - mixture.RHO * (d.T @ (p * (d @ theta - y)) + ridge * theta)
        hessian = (p * d.T) @ d + ridge * np.eye(2)
        slope = data.d_outer.T @ (data.d_outer @ theta - data.y_outer) / len(data.y_outer)
        psi = -(d @ np.linalg.solve(hessian, slope)) * (d @ theta - y)
        logs = logs - mixture.ETA * psi
        logs -= logs.max() + np.log(np.sum(np.exp(logs - logs.max())))
        heaviest.append(int(logs.argmax()))
    assert logs.min() < -500
    np.testing.assert_allclose(bilevel.Simplex().log_weights(u), logs, atol=1e-6)
    np.testing.assert_allclose(w, theta, atol=1e-10)
    assert int(changes) == np.sum(np.diff(heaviest) != 0) > 0


@pytest.mark.slow
def test_equal_speeds_move_the_log_weights_alike_in_the_first_step(script):
    times, results = script("reparametrised").run_grid(1, 1, speeds=(1e-6,), inners=(0.02,))
    assert times.tolist() == [0, 1]
    moves = {}
    for (name, _), runs in results.items():
        np.testing.assert_allclose(runs.weights[0, 0].sum(-1), 1, rtol=1e-12)
        np.testing.assert_allclose(runs.weights[0, 0, 0], 1 / 500, rtol=1e-12)
        log = np.log(runs.weights[0, 0, 1])
        moves[name] = log - log.mean()
    assert np.abs(moves["mirror"]).max() > 1e-6
    for name in ("softmax", "sigmoid"):
        np.testing.assert_allclose(moves[name], moves["mirror"], rtol=1e-3, atol=1e-9)


def test_true_ratio_is_that_of_two_normal_densities(script):
    density = script("density_ratio")
    x = np.random.default_rng(0).normal(size=(20, 2))
    nu = norm.pdf(x, density.SHIFT, density.SCALE).prod(-1)
    np.testing.assert_allclose(density.true_ratio(x), nu / norm.pdf(x).prod(-1), rtol=1e-10)


def test_with_more_parameters_than_rows_the_frozen_flow_ends_at_a_projection(script):
    """At these shares phi is the same on the rows with weight, and larger on the others."""
    many = script("many_parameters")
    with jax.enable_x64(True):
        field = many.field(30, 0, 1e-8)
        u = np.random.default_rng(0).dirichlet(np.ones(many.FLOW_ROWS))
        # The matrix identity of the field against the inverse itself; the linear flow.
        z, r, g = (np.asarray(x) for x in (field.z, field.r, field.g))
        found = np.asarray(field(jnp.asarray(u)))
        v = np.linalg.solve(z.T @ (u[:, None] * z) + 1e-8 * np.eye(30), g)
        np.testing.assert_allclose(found, -r * (z @ v), rtol=1e-3)
        np.testing.assert_allclose(-u * found, r * np.linalg.solve(z @ z.T, z @ g), rtol=1e-3)
        end = many.projected(field)
        phi = np.asarray(field(jnp.asarray(end)))
        on = end > 0
        assert 2 < on.sum() < many.FLOW_ROWS
        np.testing.assert_allclose(phi[on], phi[on].mean(), rtol=1e-3)
        assert phi[~on].min() > 0 > phi[on].mean()
