"""The ladder: closed form, jax.grad through a closed form, central differences, claimed rates."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from helpers import CASES, COUPLED, ISOTROPIC, Case, estimate_on_all_data, flat, norm_error
from solvers import ESTIMATORS, ITERATIVE, LINEAR_SOLVERS, exact_inner


def estimate(case, estimator, inner, v0=None):
    """One estimate from the case's `w0`, jitted; `v0` replaces the state's `v`."""

    @eqx.filter_jit
    def run(u, w0):
        state = estimator.init(case.problem, inner, u, w0)
        state = state if v0 is None else state._replace(v=v0)
        return estimator.estimate(case.problem, inner, u, w0, state, case.streams())[0]

    return run(case.u, case.w0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_formula_is_the_derivative_of_phi(case):
    assert norm_error(jax.grad(case.phi)(case.u), case.gradient(case.u)) < 1e-11


# CG, LU and ITD on every case; the others, which compile slowly, on a case of each kind. In the quick
# suite CG has every case, and the others a case or two.
EVERYWHERE = ["CG", "LU", "ITD"]
QUICK = {"logistic": (*ESTIMATORS,), "pytree": ("CG", "ITD"), "scalar": ("CG", "LU")}
KINDS = ("scalar", "isotropic", "ridge_per_feature", "logistic")
PAIRS = [
    pytest.param(
        case, name, marks=[pytest.mark.slow] * (name != "CG" and name not in QUICK.get(case, ()))
    )
    for case in CASES
    for name in ESTIMATORS
    if name in EVERYWHERE or case in KINDS
]


@pytest.mark.parametrize(("case_name", "estimator_name"), PAIRS)
def test_closed_form(case_name, estimator_name):
    case, row = CASES[case_name], ESTIMATORS[estimator_name]
    found = estimate(case, row.estimator, row.inner(case))
    assert jax.tree.structure(found.grad) == jax.tree.structure(case.u)
    assert norm_error(found.grad, case.gradient(case.u)) < 1e-9
    assert norm_error(found.w, case.w_star(case.u)) < 1e-9
    np.testing.assert_allclose(float(found.value), float(case.phi(case.u)), rtol=1e-9)
    assert float(found.inner_residual) < 1e-9
    assert float(found.linear_residual) < 1e-9
    assert bool(found.result == bilevel.RESULTS.successful)


def test_sign_convention_of_v():
    case = CASES["coupled"]
    found = bilevel.implicit_gradient(case.problem, case.u, case.w_star(case.u), lx.LU())
    u, w = flat(case.u), flat(case.w_star(case.u))
    v = np.linalg.solve(COUPLED.a, w - COUPLED.t + COUPLED.d.T @ u)
    np.testing.assert_allclose(np.asarray(found.v), v, rtol=1e-11)


@pytest.mark.parametrize("name", LINEAR_SOLVERS)
def test_damped_closed_form(name):
    case, damping = CASES["coupled"], 0.5
    solver = LINEAR_SOLVERS[name]
    found = estimate(case, bilevel.AID(solver, damping=damping), exact_inner(case))
    truth = COUPLED.gradient(flat(case.u), damping)
    assert norm_error(truth, case.gradient(case.u)) > 0.05  # damping is visible here
    assert norm_error(found.grad, truth) < 1e-9
    # The residual reported is that of the undamped system: |damping * v|.
    norm_v = float(optax.tree.norm(found.v))
    np.testing.assert_allclose(float(found.linear_residual), damping * norm_v, rtol=1e-9)


# The cases that other libraries get wrong.


@pytest.mark.parametrize("name", LINEAR_SOLVERS)
def test_zero_right_hand_side(name):
    """grad_w F = 0: v is exactly 0 and the hypergradient is grad_u F, not NaN."""
    case = CASES["coupled"]
    problem = bilevel.BilevelProblem(outer=lambda u, w, _: jnp.sum(u**3), inner=case.problem.inner)
    found = bilevel.implicit_gradient(problem, case.u, case.w0, LINEAR_SOLVERS[name])
    np.testing.assert_array_equal(flat(found.v), np.zeros(5))
    np.testing.assert_allclose(flat(found.grad), 3 * flat(case.u) ** 2, rtol=1e-14)


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("case", [CASES["coupled"], CASES["isotropic"]], ids=lambda c: c.name)
@pytest.mark.slow
def test_warm_start_at_the_solution(case, name):
    matrices = COUPLED if case.name == "coupled" else ISOTROPIC
    u, w = flat(case.u), flat(case.w_star(case.u))
    v0 = jnp.asarray(np.linalg.solve(matrices.a, w - matrices.t + matrices.d.T @ u))
    found = estimate(case, bilevel.AID(LINEAR_SOLVERS[name]), exact_inner(case), v0)
    np.testing.assert_allclose(flat(found.v), v0, rtol=1e-11)
    assert norm_error(found.grad, case.gradient(case.u)) < 1e-9
    assert bool(found.result == bilevel.RESULTS.successful)


@pytest.mark.parametrize("name", ITERATIVE)
def test_convergence_in_one_iteration(name):
    """An isotropic Hessian: the first iterate is exact; hypertorch and BOAT return zero here."""
    case = CASES["isotropic"]
    solver = LINEAR_SOLVERS[name]
    found = bilevel.implicit_gradient(case.problem, case.u, case.w_star(case.u), solver)
    assert norm_error(found.grad, case.gradient(case.u)) < 1e-9
    if name == "CG":
        assert int(found.calls.hvp) == 2  # one iteration and the residual


@pytest.mark.parametrize(
    "tx",
    [optax.sgd(0.1), optax.sgd(0.45), optax.sgd(0.2, momentum=0.3)],
    ids=["0.1", "0.45", "momentum"],
)
def test_itd_with_any_inner_step_size(tx):
    case = CASES["coupled"]
    found = estimate(case, bilevel.ITD(), bilevel.GradientInner(tx, 300))
    assert norm_error(found.grad, case.gradient(case.u)) < 1e-9


# Rates.


def errors_after(case, estimator, step, counts):
    def inner(k):
        return bilevel.GradientInner(optax.sgd(step), k)

    truth = case.gradient(case.u)
    return np.array([norm_error(estimate(case, estimator, inner(k)).grad, truth) for k in counts])


def test_rate_of_aid_in_inner_steps():
    """The error of AID shrinks as q^T, q = 1 - step * mu."""
    case, step = CASES["coupled"], 0.25
    counts = [20, 30, 40]
    errors = errors_after(case, bilevel.AID(bilevel.CG(rtol=1e-14)), step, counts)
    slope = np.polyfit(counts, np.log(errors), 1)[0]
    np.testing.assert_allclose(slope, np.log(1 - step * case.bounds[0]), rtol=0.02)


def test_rate_of_itd_where_the_hessian_moves():
    """In general it shrinks as T q^T: the error over q^T grows linearly in T."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: w, inner=lambda u, w, _: 0.5 * w**2 + 0.25 * w**4 - u * w
    )
    u, star, step = jnp.array(1.0), 0.6823278038280193, 0.1  # w + w^3 = 1
    hessian = 1 + 3 * star**2
    case = Case(
        "quartic", problem, u, jnp.array(0.0), lambda u: u, lambda u: np.array([1 / hessian])
    )
    counts = [20, 40, 60]
    scaled = errors_after(case, bilevel.ITD(), step, counts) / (1 - step * hessian) ** np.array(
        counts
    )
    np.testing.assert_allclose((scaled[2] - scaled[1]) / (scaled[1] - scaled[0]), 1.0, rtol=0.01)
    assert scaled[2] > 2 * scaled[0]


@pytest.mark.parametrize("name", ["coupled", "logistic"])
def test_error_of_aid_is_linear_in_the_inner_error(name):
    case = CASES[name]
    w, truth = case.w_star(case.u), case.gradient(case.u)
    solve = jax.jit(lambda w: bilevel.implicit_gradient(case.problem, case.u, w, lx.LU()))
    direction = jnp.linspace(1.0, 2.0, w.size)
    sizes = np.array([1e-2, 1e-3, 1e-4, 1e-5])
    found = [solve(w + size * direction) for size in sizes]
    errors = [norm_error(x.grad, truth) for x in found]
    residuals = [float(x.inner_residual) for x in found]
    slope = np.polyfit(np.log(residuals), np.log(errors), 1)[0]
    np.testing.assert_allclose(slope, 1.0, atol=0.02)


def test_error_of_aid_is_linear_in_the_linear_residual():
    """`|grad error| <= |B| / mu * linear_residual`, at every CG iteration."""
    case = CASES["coupled"]
    w, truth = case.w_star(case.u), case.gradient(case.u)
    bound = np.linalg.norm(COUPLED.b, 2) / case.bounds[0]
    errors = []
    for steps in (1, 2, 3, 4):
        solver = bilevel.CG(rtol=0.0, atol=0.0, max_steps=steps)
        found = bilevel.implicit_gradient(case.problem, case.u, w, solver)
        errors.append(np.linalg.norm(flat(found.grad) - truth))
        assert 0 < errors[-1] <= bound * float(found.linear_residual)
    assert errors[3] < 0.2 * errors[0]


# `implicit_gradient` as a pure function.


DIRECT_AND_CG = pytest.mark.parametrize(
    "solver", [lx.Cholesky(), bilevel.CG(rtol=1e-13)], ids=["direct", "CG"]
)


def gradient_at(case, u, solver):
    return bilevel.implicit_gradient(case.problem, u, case.w_star(u), solver).grad


@DIRECT_AND_CG
def test_implicit_gradient_under_vmap(solver):
    case = CASES["coupled"]
    us = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    found = jax.jit(jax.vmap(lambda u: gradient_at(case, u, solver)))(us)
    truth = np.stack([case.gradient(u) for u in us])
    np.testing.assert_allclose(np.asarray(found), truth, rtol=1e-9)


@DIRECT_AND_CG
def test_second_derivative_is_the_hessian_of_phi(solver):
    case = CASES["coupled"]
    found = jax.jit(jax.jacrev(lambda u: gradient_at(case, u, solver)))(case.u)
    np.testing.assert_allclose(np.asarray(found), COUPLED.outer_hessian, rtol=1e-9)


def test_second_derivative_where_the_hessian_moves():
    case = CASES["ridge_per_feature"]
    found = jax.jit(jax.jacrev(lambda u: gradient_at(case, u, lx.LU())))(case.u)
    h = 1e-4
    columns = [
        (case.gradient(case.u + h * e) - case.gradient(case.u - h * e)) / (2 * h) for e in np.eye(4)
    ]
    np.testing.assert_allclose(np.asarray(found), np.stack(columns, axis=1), rtol=1e-5, atol=1e-9)


# Singular Hessians.


@pytest.mark.parametrize("solver", [lx.SVD(), lx.LSMR(rtol=1e-12, atol=1e-12)], ids=["SVD", "LSMR"])
def test_pseudo_inverse_of_a_singular_hessian(solver):
    """Fewer rows than parameters: `grad = -B^T H^+ grad_w F`."""
    rng = np.random.default_rng(2)
    x, y, t = rng.normal(size=(3, 6)), rng.normal(size=3), rng.normal(size=6)
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: 0.5 * jnp.sum((w - t) ** 2),
        inner=lambda u, w, _: 0.5 * jnp.sum((x @ w - y * u) ** 2),
    )
    u = jnp.asarray(rng.normal(size=3))
    w = jnp.asarray(np.linalg.pinv(x) @ (y * np.asarray(u)))
    found = bilevel.implicit_gradient(problem, u, w, solver)
    cross = -(y[:, None] * x).T  # d2_wu f
    truth = -cross.T @ np.linalg.pinv(x.T @ x) @ (np.asarray(w) - t)
    np.testing.assert_allclose(found.grad, truth, rtol=1e-8)
    # The derivative of the minimum-norm solution, which is what ITD from zero gives too.
    inner = bilevel.GradientInner(optax.sgd(float(1 / np.linalg.norm(x, 2) ** 2)), 3000)
    unrolled = estimate_on_all_data(problem, bilevel.ITD(), inner, u, jnp.zeros(6))
    np.testing.assert_allclose(unrolled.grad, truth, rtol=1e-8)
