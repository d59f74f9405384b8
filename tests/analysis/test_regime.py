"""The regime report on a quadratic whose two paces are known."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from bilevel import tasks

N, P = 8, 2


def quadratic_reweighting():
    """Orthonormal rows, so that at uniform weights H = (1 / 4 + l2) I."""
    X = jnp.tile(jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), (2, 1)) / 1.0
    y = jnp.array([1.0, -1.0, 0.5, 2.0, -1.0, 0.3, 1.0, 1.0])
    model = tasks.models.linear_model(P, 1, bias=False)
    return (
        tasks.reweighting(
            X, y, X[:4], jnp.ones(4), model.predict, loss=tasks.models.squared_error, l2=0.1
        ),
        model.w0,
        tasks.uniform_weights(N),
    )


def algorithm_2(rho, eta):
    return bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(rho), 1),
        bilevel.AID(lx.Cholesky()),
        optax.sgd(eta),
        warm_start=True,
    )


def report(rho, eta, num_steps=300):
    problem, w0, u0 = quadratic_reweighting()
    method = algorithm_2(rho, eta)
    run = bilevel.solve(problem, method, u0, w0, num_steps=num_steps, trace_every=num_steps)
    return bilevel.regime(problem, method, u0, w0, run), run


@pytest.mark.parametrize("rho", [0.1])
@pytest.mark.slow
def test_paces_against_the_closed_form(rho):
    """H = (1/2 + l2) I, so w closes -log(1 - 0.6 rho) a step; the weights move by eta sum u |c|."""
    eta = 1e-6  # so small that a mirror step is linear
    found, _ = report(rho, eta, 2)
    assert found.inner_pace == pytest.approx(-np.log(1 - 0.6 * rho), rel=1e-6)

    problem, w0, u0 = quadratic_reweighting()
    w, sizes = w0, []
    for k in range(64):
        step = problem.residual(u0, w, problem.inner_data)
        w = jax.tree.map(lambda a, g: a - rho * g, w, step)
        if k >= 32:
            psi = bilevel.implicit_gradient(problem, u0, w, lx.Cholesky()).grad
            sizes.append(float(jnp.vdot(u0, jnp.abs(psi - jnp.vdot(u0, psi)))))
    assert found.outer_pace == pytest.approx(eta * np.mean(sizes), rel=1e-4)
    assert found.ratio == pytest.approx(found.outer_pace / found.inner_pace, rel=1e-12)


@pytest.mark.slow
def test_ratio_grows_with_the_outer_step_and_names_the_theorem():
    reports = [report(0.02, eta)[0] for eta in (1e-4, 0.3, 300.0)]
    assert [r.theorem for r in reports] == ["1", "neither", "2"]
    assert reports[0].ratio < reports[1].ratio < reports[2].ratio
    slow, _, fast = (str(r) for r in reports)
    assert "Theorem 1" in slow
    assert "expect at most p = 2 rows to survive" in fast
    assert "faster than the model" in fast


def test_surviving_rows_are_counted():
    found, run = report(0.02, 300.0)
    weights = np.asarray(run.u)
    assert found.surviving_rows == int(np.sum(weights >= 0.01 / N))
    assert found.effective_sample_size == pytest.approx(
        bilevel.effective_sample_size(weights), rel=1e-12
    )
    assert (found.num_rows, found.num_parameters) == (N, P)
    assert found.surviving_rows <= P  # as the theorem says


def test_a_model_with_more_parameters_than_rows_gets_no_bound():
    one = bilevel.Regime(1.0, 0.001, 1000.0, 0.1, 2.0, 10, 50, 3, "2")
    assert "set no bound" in str(one)
    assert "1000 times" in str(one)
