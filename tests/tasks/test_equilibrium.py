"""Equilibrium models: fixed points, solvers and gradients, compared with dense linear algebra."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import bilevel
from bilevel import AID, ITD, Anderson, FullBatch, GradientInner, RootInner, Stream, tasks
from helpers import CASES, estimate_on_all_data, norm_error

ROWS, FEATURES, WIDTH, CLASSES = 6, 3, 4, 3
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(ROWS, FEATURES)))
Y = jnp.asarray(RNG.integers(CLASSES, size=ROWS))
GMRES = lx.GMRES(rtol=1e-13, atol=1e-13)
RICHARDSON = bilevel.Richardson(1.0, rtol=1e-13)
TIGHT = RootInner(Anderson(1e-13, 1e-13), by_row=True)
MODEL = tasks.models.equilibrium_model(
    FEATURES,
    CLASSES,
    key=jax.random.key(0),
    width=WIDTH,
    contraction=0.8,
    solver=TIGHT,
    linear_solver=RICHARDSON,
)
U = MODEL.u0 | {"W": jnp.asarray(2 * RNG.normal(size=(WIDTH, WIDTH)))}  # close to its bound
PROBLEM = tasks.equilibrium(X, Y, MODEL)
W0 = jnp.zeros((ROWS, WIDTH))


def matrix(u, q=0.8):
    """A by a singular value decomposition."""
    W = np.asarray(u["W"])
    s = np.linalg.svd(W, compute_uv=False)
    return W / (1 + np.sum((s / q) ** 8)) ** 0.125


def fixed_points(A, injection):
    """Each row by a root finder of scipy."""
    found = [
        scipy.optimize.root(lambda z, b=b: z - np.tanh(A @ z + b), np.zeros(len(b)), tol=1e-14)
        for b in np.asarray(injection)
    ]
    return np.stack([f.x for f in found])


def injection(u, x=X):
    return np.asarray(x @ u["U"].T + u["b"][None])


Z = fixed_points(matrix(U), injection(U))


def by_hand(u, z, x, y):
    """`dF/du` by numpy: the adjoint system of each row, `(I - diag(1 - z^2) A)^T v = dF/dz`."""
    u, z, x = {k: np.asarray(a) for k, a in u.items()}, np.asarray(z), np.asarray(x)
    logits = z @ u["V"].T + u["c"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    e = (p / p.sum(1, keepdims=True) - np.eye(len(u["c"]))[np.asarray(y)]) / len(z)
    A, slope = matrix(u), 1 - z**2
    v = np.stack(
        [
            np.linalg.solve((np.eye(z.shape[1]) - d[:, None] * A).T, g)
            for d, g in zip(slope, e @ u["V"], strict=True)
        ]
    )
    d = v * slope
    by_A = d.T @ z

    @jax.jit  # operation by operation it would be many small compilations
    def pull(W, by_A):
        return jax.vjp(lambda W: tasks.models.contracted(W, 0.8), W)[1](by_A)[0]

    by_W = pull(jnp.asarray(u["W"]), jnp.asarray(by_A))
    return {"W": by_W, "U": d.T @ x, "b": d.sum(0), "V": e.T @ z, "c": e.sum(0)}


TRUTH = by_hand(U, Z, X, Y)


def assert_tree_close(found, expected, rtol):
    flat = [np.asarray(ravel_pytree(tree)[0]) for tree in (found, expected)]
    assert np.linalg.norm(flat[0] - flat[1]) <= rtol * np.linalg.norm(flat[1])


# The matrix


@pytest.mark.parametrize("size", [1e-3, 0.3, 1.0, 30.0, 1e4])
def test_contracted(size):
    W = size * RNG.normal(size=(16, 16)) / 4
    A = np.asarray(tasks.models.contracted(jnp.asarray(W), 0.8))
    np.testing.assert_allclose(A, matrix({"W": W}), rtol=1e-12)
    norm, before = np.linalg.norm(A, 2), np.linalg.norm(W, 2)
    assert norm < 0.8
    assert norm <= before
    if before > 8:
        assert norm > 0.99 * 16 ** (-1 / 8) * 0.8
    if before < 0.1:
        np.testing.assert_allclose(A, W, rtol=1e-6)


def test_contracted_is_smooth_at_zero():
    slope = jax.jacobian(lambda W: tasks.models.contracted(W, 0.9))(jnp.zeros((2, 2)))
    np.testing.assert_array_equal(slope.reshape(4, 4), np.eye(4))


# Fixed points


SOLVERS = {
    "plain": RootInner(optx.FixedPointIteration(1e-13, 1e-13)),
    "plain, by row": RootInner(optx.FixedPointIteration(1e-13, 1e-13), by_row=True),
    "Anderson": RootInner(Anderson(1e-12, 1e-12)),
    "Anderson, by row": TIGHT,
    "Anderson, damped": RootInner(Anderson(1e-12, 1e-12, memory=3, mixing=0.7)),
    "Newton, LU by row": RootInner(optx.Newton(1e-9, 1e-9, linear_solver=lx.LU()), by_row=True),
    "Newton-GMRES": RootInner(optx.Newton(1e-9, 1e-9, linear_solver=lx.GMRES(1e-8, 1e-12))),
    "Chord": RootInner(optx.Chord(1e-12, 1e-12)),
}


def solve(inner, problem: Any = PROBLEM, u=U, w0=W0, data: Any = X):
    stream = Stream(FullBatch(), data, ())
    state = inner.init(problem, u, w0)
    w, _, _, stats = jax.jit(lambda u, w0: inner.solve(problem, u, w0, state, stream))(u, w0)
    return w, stats


def some_slow(names, slow):
    """All names, those of the second list in the slow suite only."""
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


@pytest.mark.parametrize("name", some_slow(SOLVERS, ["plain, by row", "Anderson", "Newton-GMRES"]))
def test_fixed_points_against_scipy(name):
    w, stats = solve(SOLVERS[name])
    np.testing.assert_allclose(w, Z, rtol=0, atol=1e-10)
    assert bool(stats.result == bilevel.RESULTS.successful)
    assert 1 < int(stats.calls) < 256


def test_steps_are_counted():
    """The steps of plain iteration in numpy: the last one moved by less than the tolerance."""
    A, b, z, steps = matrix(U), injection(U), np.zeros((ROWS, WIDTH)), 0
    while True:
        new = np.tanh(z @ A.T + b)
        steps, moved, z = steps + 1, np.abs(new - z) / (1e-6 + 1e-6 * np.abs(new)), new
        if moved.max() < 1:
            break
    _, stats = solve(RootInner(optx.FixedPointIteration(1e-6, 1e-6)))
    assert int(stats.calls) == steps


def test_rows_are_solved_separately():
    """The slowest row counts, and a row does not see the others."""
    alone = [
        solve(TIGHT, tasks.equilibrium(X[i : i + 1], Y[i : i + 1], MODEL), U, W0[:1], X[i : i + 1])
        for i in range(3)
    ]
    together, stats = solve(TIGHT, tasks.equilibrium(X[:3], Y[:3], MODEL), U, W0[:3], X[:3])
    assert int(stats.calls) == max(int(s.calls) for _, s in alone)
    for i, (w, _) in enumerate(alone):
        np.testing.assert_allclose(together[i], w[0], rtol=1e-12)


def test_running_out_of_steps_has_a_result_code():
    _, stats = solve(RootInner(optx.FixedPointIteration(1e-12, 1e-12), max_steps=3))
    assert bool(stats.result == bilevel.RESULTS.inner_max_steps_reached)
    assert int(stats.calls) == 3


def test_anderson_on_an_affine_map():
    """Finite termination as in GMRES: n + 1 evaluations give the solution from n + 1 iterates."""
    n = 5
    J, b = RNG.normal(size=(n, n)), jnp.asarray(RNG.normal(size=n))
    J = jnp.asarray(0.9 * J / np.linalg.norm(J, 2))
    solver = Anderson(1e-9, 1e-9, memory=n + 1)
    found = optx.fixed_point(lambda y, _: J @ y + b, solver, jnp.zeros(n))
    np.testing.assert_allclose(found.value, np.linalg.solve(np.eye(n) - J, b), rtol=1e-8)
    assert int(found.stats["num_steps"]) <= n + 2


def test_anderson_without_memory_is_plain_iteration():
    plain, mixed = (
        solve(RootInner(solver, max_steps=7))[0]
        for solver in (optx.FixedPointIteration(0.0, 1e-30), Anderson(0.0, 1e-30, memory=1))
    )
    np.testing.assert_allclose(mixed, plain, rtol=1e-13)


def test_anderson_starts_at_the_solution():
    found = optx.fixed_point(lambda y, _: y, Anderson(1e-6, 1e-6), jnp.arange(3.0))
    np.testing.assert_array_equal(found.value, np.arange(3.0))
    assert int(found.stats["num_steps"]) == 1


def test_anderson_in_float32():
    u, x = jax.tree.map(lambda a: a.astype(jnp.float32), (U, X))
    w, stats = solve(
        RootInner(Anderson(1e-5, 1e-5), by_row=True), u=u, w0=W0.astype(jnp.float32), data=x
    )
    assert w.dtype == jnp.float32
    assert bool(stats.result == bilevel.RESULTS.successful)
    np.testing.assert_allclose(w, Z, atol=3e-5)


def test_newton_on_an_inner_objective():
    case = CASES["logistic"]
    inner = RootInner(optx.Newton(1e-9, 1e-9, linear_solver=lx.LU()))
    w, stats = solve(inner, case.problem, case.u, case.w0, case.problem.inner_data)
    assert norm_error(w, ravel_pytree(case.w_star(case.u))[0]) < 1e-9
    assert int(stats.calls) < 15


def test_nan_ends_the_solve():
    w, stats = solve(TIGHT, u=U | {"b": jnp.full(WIDTH, jnp.nan)})
    assert not np.any(np.isfinite(w))
    assert int(stats.calls) <= 2
    assert bool(stats.result == bilevel.RESULTS.inner_divergence)


# Gradients


PICARD = GradientInner(optax.sgd(1.0), 300)
ESTIMATORS = {
    "AID, GMRES": (AID(GMRES), TIGHT),
    "AID, LU": (AID(lx.LU()), TIGHT),
    "AID, Richardson": (AID(RICHARDSON), TIGHT),
    "AID, Neumann": (AID(bilevel.Neumann(1.0, 300)), PICARD),
    "ITD": (ITD(), PICARD),
    "ITD, checkpointed": (ITD("checkpointed"), PICARD),
}


@pytest.mark.parametrize(
    "name", some_slow(ESTIMATORS, ["AID, LU", "AID, Neumann", "ITD, checkpointed"])
)
def test_hypergradient_by_hand(name):
    """The implicit gradient is also that of unrolling to convergence."""
    estimator, inner = ESTIMATORS[name]
    found = estimate_on_all_data(PROBLEM, estimator, inner, U, W0)
    assert_tree_close(found.grad, TRUTH, 1e-9)
    assert float(found.inner_residual) < 1e-11


def test_the_system_is_not_symmetric():
    mapped = partial(PROBLEM.map, U)
    J = np.asarray(jax.jacobian(mapped)(jnp.asarray(Z), X)).reshape(Z.size, Z.size)
    assert np.linalg.norm(J - J.T) > 0.5 * np.linalg.norm(J)
    with pytest.raises(ValueError, match=r"tagged `lineax\.positive_semidefinite_tag`"):
        estimate_on_all_data(PROBLEM, AID(bilevel.CG()), TIGHT, U, W0)


def layer_loss(u, x, y, model=MODEL):
    return jnp.mean(tasks.models.softmax_cross_entropy(model.predict(u, x), y))


def unrolled_predict(u, x):
    z = jnp.zeros((len(x), WIDTH))
    z, _ = jax.lax.scan(lambda z, _: (MODEL.cell(u, z, x), None), z, length=200)
    return MODEL.readout(u, z)


def unrolled_loss(u, x, y):
    return jnp.mean(tasks.models.softmax_cross_entropy(unrolled_predict(u, x), y))


def test_layer():
    """The same gradient, also as the mean over minibatches."""
    gradient = jax.jit(jax.value_and_grad(layer_loss))
    value, found = gradient(U, X, Y)
    expected = PROBLEM.outer(U, jnp.asarray(Z), PROBLEM.outer_data)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    assert_tree_close(found, TRUTH, 1e-9)
    halves = [gradient(U, X[i::2], Y[i::2])[1] for i in (0, 1)]
    assert_tree_close(jax.tree.map(lambda a, b: (a + b) / 2, *halves), TRUTH, 1e-9)


@pytest.mark.slow
def test_layer_in_its_input_and_in_second_derivatives():
    np.testing.assert_allclose(
        jax.grad(layer_loss, 1)(U, X, Y), jax.grad(unrolled_loss, 1)(U, X, Y), rtol=1e-9, atol=1e-14
    )
    direction = jax.tree.map(jnp.ones_like, U)
    products = [
        jax.jit(lambda u, f=f: jax.jvp(jax.grad(lambda u: f(u, X, Y)), (u,), (direction,))[1])(U)
        for f in (layer_loss, unrolled_loss)
    ]
    assert_tree_close(products[0], products[1], 1e-8)


# Beyond a contraction


def monotone():
    """`A = -2 S + skew`, S positive: one fixed point, and iterating the map diverges from it."""
    S = np.diag(np.linspace(0.2, 1, WIDTH))
    return jnp.asarray(-2 * S + 0.3 * (np.eye(WIDTH, k=1) - np.eye(WIDTH, k=-1)))


def free(solver, linear_solver):
    return tasks.models.equilibrium_model(
        FEATURES,
        CLASSES,
        key=jax.random.key(0),
        width=WIDTH,
        contraction=None,
        solver=solver,
        linear_solver=linear_solver,
    )


@pytest.mark.slow
def test_a_map_that_is_not_a_contraction():
    u = U | {"W": monotone(), "U": 0.1 * U["U"]}
    plain = free(RootInner(optx.FixedPointIteration(1e-9, 1e-9)), GMRES).solve(u, X)
    assert float(plain.residual.max()) > 0.1
    assert bool(plain.result == bilevel.RESULTS.inner_max_steps_reached)
    model = free(TIGHT, GMRES)
    found = model.solve(u, X)
    np.testing.assert_allclose(found.z, fixed_points(monotone(), injection(u)), atol=1e-11)
    assert float(found.residual.max()) < 1e-11
    slope = jax.grad(partial(layer_loss, model=model))(u, X, Y)["b"]
    for i, e in enumerate(np.eye(WIDTH)[:2]):
        ahead, behind = (layer_loss(u | {"b": u["b"] + h * e}, X, Y, model) for h in (1e-5, -1e-5))
        assert float(slope[i]) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-6)


@pytest.mark.slow
def test_a_backward_pass_that_diverges_is_nan():
    u = U | {"W": monotone(), "U": 0.1 * U["U"]}
    model = free(TIGHT, bilevel.Richardson(1.0))
    assert np.isnan(jax.grad(partial(layer_loss, model=model))(u, X, Y)["b"]).all()


# Training, and models of one's own


def test_a_user_defined_cell():
    """`z = x + a cos z` with one unit and another readout."""
    model = tasks.models.EquilibriumModel(
        jnp.array(0.5),
        cell=lambda u, z, x: x + u * jnp.cos(z),
        readout=lambda u, z: z**2,
        width=1,
        solver=TIGHT,
        linear_solver=GMRES,
    )
    x = jnp.array([[0.3], [1.2]])
    z = np.array([0.3, 1.2])
    for _ in range(100):
        z = np.asarray(x)[:, 0] + 0.5 * np.cos(z)
    predict = jax.jit(lambda a: model.predict(a, x)[:, 0])
    np.testing.assert_allclose(predict(model.u0), np.square(z), rtol=1e-10)
    slopes = jax.jit(jax.jacobian(predict))(model.u0)
    np.testing.assert_allclose(slopes, 2 * z * np.cos(z) / (1 + 0.5 * np.sin(z)), rtol=1e-9)
    problem = tasks.equilibrium(x, jnp.zeros(2), model, loss=tasks.models.squared_error)
    assert float(problem.outer(model.u0, jnp.ones((2, 1)), problem.outer_data)) == 0.5


def test_wrong_calls():
    with pytest.raises(ValueError, match=r"`contraction` must be in \(0, 1\), got 1"):
        tasks.models.equilibrium_model(2, 2, key=jax.random.key(0), contraction=1.0)
    with pytest.raises(ValueError, match="one label for each row"):
        tasks.equilibrium(X, Y[:2], MODEL)
    with pytest.raises(ValueError, match="got 6 fixed points for a batch of 2 rows"):
        PROBLEM.residual(U, W0, X[:2])
    with pytest.raises(ValueError, match="same length on axis 0"):
        solve(TIGHT, data=X[:2])
    with pytest.raises(ValueError, match="memory >= 1, got 0"):
        Anderson(1e-6, 1e-6, memory=0)
    with pytest.raises(ValueError, match=r"mixing in \(0, 1\], got 0"):
        Anderson(1e-6, 1e-6, mixing=0.0)
    case = CASES["logistic"]
    with pytest.raises(TypeError, match="`Anderson` iterates a map, which a `BilevelProblem`"):
        solve(
            RootInner(Anderson(1e-6, 1e-6)), case.problem, case.u, case.w0, case.problem.inner_data
        )
    with pytest.raises(ValueError, match="`RootInner` does not allow"):
        ITD().init(PROBLEM, TIGHT, U, W0)
