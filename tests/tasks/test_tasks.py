"""The task builders against numpy, and their reference solutions against formulas of their own."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel
from bilevel import tasks
from bilevel.tasks import _stationary
from helpers import assert_epoch_is_full


def as_jax(*arrays) -> Any:
    return tuple(jnp.asarray(x) for x in arrays)


def gradients(objective, at, data):
    """The value and both gradients at `(u, w)`."""
    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))(*at, data)


# ---- the quadratics


def small_quadratic(seed=0, condition=20.0) -> Any:
    return tasks.quadratic(
        jax.random.key(seed),
        num_inner_rows=24,
        num_outer_rows=18,
        dim_u=3,
        dim_w=5,
        condition=condition,
    )


def moments(data):
    """`(mean z z', mean of the linear terms)` of the joint variable z = (u, w), in numpy."""
    a, b, c, d = map(np.asarray, data)
    z = np.hstack([a, b])
    return z.T @ z / len(z), np.hstack([c, d]).mean(axis=0)


def test_quadratic_is_its_equation():
    p = small_quadratic()
    rng = np.random.default_rng(0)
    u, w = rng.normal(size=3), rng.normal(size=5)
    z = np.concatenate([u, w])
    for objective, data in [(p.inner, p.inner_data), (p.outer, p.outer_data)]:
        m, linear = moments(data)
        value, (by_u, by_w) = gradients(objective, as_jax(u, w), data)
        np.testing.assert_allclose(value, z @ m @ z / 2 + linear @ z, rtol=1e-12)
        np.testing.assert_allclose(np.concatenate([by_u, by_w]), m @ z + linear, rtol=1e-11)


@pytest.mark.parametrize("condition", [1.0, 20.0, 1e4])
def test_quadratic_has_the_stated_spectrum(condition):
    p = small_quadratic(1, condition)
    m, _ = moments(p.inner_data)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(m), np.logspace(-np.log10(condition), 0, 8), rtol=1e-9
    )
    curvature = np.linalg.eigvalsh(m[3:, 3:])
    assert 1 / condition * (1 - 1e-9) <= curvature[0]
    assert curvature[-1] <= 1 + 1e-9
    slope = -np.linalg.solve(m[3:, 3:], m[3:, :3])  # dw*/du
    bound = (condition - 1) / (2 * np.sqrt(condition))
    assert np.linalg.norm(slope, 2) <= bound + 1e-9
    lift = np.vstack([np.eye(3), slope])
    of_phi = np.linalg.eigvalsh(lift.T @ moments(p.outer_data)[0] @ lift)
    assert of_phi[0] >= 1 / condition * (1 - 1e-9)


def test_quadratic_rows_are_its_summands():
    p = small_quadratic()
    at = as_jax(np.arange(3.0), np.ones(5))
    assert_epoch_is_full(p.inner, at, p.inner_data, 4)
    assert_epoch_is_full(p.outer, at, p.outer_data, 3)


def test_quadratic_reference_solves_the_linear_system():
    p = small_quadratic()
    (m, linear), (m_outer, linear_outer) = moments(p.inner_data), moments(p.outer_data)
    # stationarity of the Lagrangian F - v'(grad_w f), in the unknowns (u, w, v)
    system = np.block([[m_outer, -np.vstack([m[:3, 3:], m[3:, 3:]])], [m[3:], np.zeros((5, 5))]])
    exact = np.linalg.solve(system, -np.concatenate([linear_outer, linear[3:]]))
    reference = tasks.reference.reference_solution(p, jnp.zeros(3), jnp.zeros(5), tol=1e-10)
    np.testing.assert_allclose(reference.u, exact[:3], atol=1e-8)
    np.testing.assert_allclose(reference.w, exact[3:8], atol=1e-8)
    z = exact[:8]
    np.testing.assert_allclose(reference.value, z @ m_outer @ z / 2 + linear_outer @ z, rtol=1e-12)
    assert reference.gradient_norm <= 1e-10
    assert reference.inner_residual < 1e-12


# ---- ridge


def ridge_data(seed=7):
    """With seed 7 all four best penalties are finite; with seed 0 two of them are zero."""
    rng = np.random.default_rng(seed)
    x, x_val = rng.normal(size=(30, 4)), rng.normal(size=(40, 4))
    w = np.array([1.0, -0.5, 0.3, 0.2])
    return x, x @ w + rng.normal(size=30), x_val, x_val @ w + rng.normal(size=40)


def ridge_solution(u, x, y):
    penalty = np.exp(u) * np.ones(4)
    hessian = x.T @ x / len(x) + np.diag(penalty)
    return np.linalg.solve(hessian, x.T @ y / len(x)), hessian, penalty


def ridge_phi(u, x, y, x_val, y_val):
    w = ridge_solution(u, x, y)[0]
    return 0.5 * np.mean((x_val @ w - y_val) ** 2)


def ridge_hypergradient(u, x, y, x_val, y_val):
    """`-exp(u_j) w_j v_j`, and their sum for one shared penalty."""
    w, hessian, penalty = ridge_solution(u, x, y)
    v = np.linalg.solve(hessian, x_val.T @ (x_val @ w - y_val) / len(x_val))
    entries = -penalty * w * v
    return entries if np.ndim(u) else entries.sum()


@pytest.mark.parametrize("u", [np.array(0.3), np.array([-1.0, 0.5, 0.0, -0.3])])
def test_ridge_is_its_equation(u):
    x, y, x_val, y_val = ridge_data()
    p = tasks.ridge(*as_jax(x, y, x_val, y_val))
    w = np.array([0.3, -1.0, 0.2, 2.0])
    penalty = np.exp(u) * np.ones(4)
    value, (by_u, by_w) = gradients(p.inner, as_jax(u, w), p.inner_data)
    expected = 0.5 * np.mean((x @ w - y) ** 2) + 0.5 * np.sum(penalty * w**2)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(by_w, x.T @ (x @ w - y) / 30 + penalty * w, rtol=1e-12)
    expected = 0.5 * penalty * w**2
    np.testing.assert_allclose(by_u, expected if u.ndim else expected.sum(), rtol=1e-12)
    value, (by_u, by_w) = gradients(p.outer, as_jax(u, w), p.outer_data)
    np.testing.assert_allclose(value, 0.5 * np.mean((x_val @ w - y_val) ** 2), rtol=1e-13)
    np.testing.assert_allclose(by_w, x_val.T @ (x_val @ w - y_val) / 40, rtol=1e-12)
    np.testing.assert_array_equal(by_u, np.zeros(u.shape))
    assert_epoch_is_full(p.inner, as_jax(u, w), p.inner_data, 5)
    assert_epoch_is_full(p.outer, as_jax(u, w), p.outer_data, 5)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_ridge_reference_is_the_best_penalty(shape):
    data = ridge_data()
    p = tasks.ridge(*as_jax(*data))
    reference = tasks.reference.reference_solution(p, jnp.zeros(shape), jnp.zeros(4), tol=1e-9)
    u = np.asarray(reference.u)
    assert u.shape == shape
    assert np.linalg.norm(ridge_hypergradient(u, *data)) < 1e-8
    np.testing.assert_allclose(reference.w, ridge_solution(u, *data[:2])[0], atol=1e-12)
    np.testing.assert_allclose(reference.value, ridge_phi(u, *data), rtol=1e-13)
    for step in [0.01, 0.1, 0.5]:
        for direction in np.random.default_rng(0).normal(size=(20, *shape)):
            assert reference.value < ridge_phi(u + step * direction, *data)


# ---- logistic regression


def logistic_data(num_features, seed=0, num_rows=200):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=num_features)
    x, x_val = rng.normal(size=(2, num_rows, num_features))

    def label(x):
        return np.sign(x @ w + 2 * rng.normal(size=num_rows)).astype(int)

    return x, label(x), x_val, label(x_val)


def logistic_loss_gradient(w, x, y):
    p = 1 / (1 + np.exp(y * (x @ w)))
    return np.log1p(np.exp(-y * (x @ w))).mean(), -x.T @ (y * p) / len(x), p


def logistic_hypergradient(u, w, x, y, x_val, y_val):
    """The hypergradient by Newton's method from `w` in numpy, and the inner solution."""
    penalty = np.exp(u) * np.ones(x.shape[1])
    hessian = np.eye(len(w))
    for _ in range(5):
        _, gradient, p = logistic_loss_gradient(w, x, y)
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + np.diag(penalty)
        w = w - np.linalg.solve(hessian, gradient + penalty * w)
    v = np.linalg.solve(hessian, logistic_loss_gradient(w, x_val, y_val)[1])
    entries = -penalty * w * v
    return (entries if np.ndim(u) else entries.sum()), w


@pytest.mark.parametrize("shape", [(), (22,)])
def test_logistic_is_its_equation(shape):
    x, y, x_val, y_val = logistic_data(22)
    p = tasks.logistic(*as_jax(x, y, x_val, y_val))
    rng = np.random.default_rng(1)
    u, w = rng.normal(size=shape), rng.normal(size=22)
    u = np.asarray(u)
    penalty = np.exp(u) * np.ones(22)
    value, (by_u, by_w) = gradients(p.inner, as_jax(u, w), p.inner_data)
    loss, gradient, _ = logistic_loss_gradient(w, x, y)
    np.testing.assert_allclose(value, loss + 0.5 * np.sum(penalty * w**2), rtol=1e-12)
    np.testing.assert_allclose(by_w, gradient + penalty * w, rtol=1e-10)
    expected = 0.5 * penalty * w**2
    np.testing.assert_allclose(by_u, expected if u.ndim else expected.sum(), rtol=1e-12)
    value, (_, by_w) = gradients(p.outer, as_jax(u, w), p.outer_data)
    loss, gradient, _ = logistic_loss_gradient(w, x_val, y_val)
    np.testing.assert_allclose(value, loss, rtol=1e-12)
    np.testing.assert_allclose(by_w, gradient, rtol=1e-10, atol=1e-14)
    assert_epoch_is_full(p.inner, as_jax(u, w), p.inner_data, 8)
    assert_epoch_is_full(p.outer, as_jax(u, w), p.outer_data, 8)


def test_logistic_loss_does_not_overflow():
    z, y = as_jax(np.array([[1e4], [-1e4], [0.0]]), np.ones(3))
    np.testing.assert_allclose(tasks.models.logistic_loss(z, y), [0, 1e4, np.log(2)], rtol=1e-15)


@pytest.mark.parametrize("shape", [(), (22,)])
def test_logistic_reference_is_stationary_in_numpy_too(shape):
    data = logistic_data(22)
    p = tasks.logistic(*as_jax(*data))
    reference = tasks.reference.reference_solution(p, jnp.zeros(shape), jnp.zeros(22))
    gradient, w = logistic_hypergradient(np.asarray(reference.u), np.asarray(reference.w), *data)
    assert np.linalg.norm(gradient) < 1e-7
    np.testing.assert_allclose(reference.w, w, atol=1e-10)
    start = logistic_hypergradient(np.zeros(shape), np.zeros(22), *data)
    assert np.linalg.norm(start[0]) > 1e-2
    assert reference.value < logistic_loss_gradient(start[1], *data[2:])[0] - 0.1


# ---- hyper-cleaning

N, M, D, K, L2 = 60, 50, 4, 3, 0.4


def cleaning_data(seed=0):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(K, D))
    x, x_val = rng.normal(size=(N, D)), rng.normal(size=(M, D))
    y = (x @ w.T).argmax(axis=1)
    y[:20] = rng.integers(0, K, 20)
    y_val = (x_val @ w.T + rng.normal(size=(M, K))).argmax(axis=1)
    return x, y.astype(np.int32), x_val, y_val.astype(np.int32)


def cleaning_problem(data, **options):
    model = tasks.models.linear_model(D, K, bias=False)
    return tasks.hyper_cleaning(*as_jax(*data), predict=model.predict, **options), model


def softmax(x, w):
    e = np.exp(x @ w.T)
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(x, y, w):
    """The losses and their gradients in w, one per row."""
    s = softmax(x, w)
    each = np.einsum("nk,nd->nkd", s - np.eye(K)[y], x).reshape(len(x), -1)
    return -np.log(s[np.arange(len(y)), y]), each


def cleaning_hypergradient(u, w, x, y, x_val, y_val):
    """`-sigmoid'(u_i) / n * grad l_i' H^-1 grad F`, with a dense Hessian in numpy."""
    p = 1 / (1 + np.exp(-u))
    s = softmax(x, w)
    curvature = np.einsum("nk,kj->nkj", s, np.eye(K)) - np.einsum("nk,nj->nkj", s, s)
    hessian = np.einsum("n,nkj,nd,ne->kdje", p, curvature, x, x).reshape(K * D, K * D) / len(x)
    v = np.linalg.solve(
        hessian + L2 * np.eye(K * D), cross_entropy(x_val, y_val, w)[1].mean(axis=0)
    )
    return -p * (1 - p) / len(x) * (cross_entropy(x, y, w)[1] @ v)


def test_hyper_cleaning_is_its_equation():
    data = x, y, x_val, y_val = cleaning_data()
    p, _ = cleaning_problem(data, l2=0.7)
    rng = np.random.default_rng(3)
    u, w = rng.normal(size=N), rng.normal(size=(K, D))
    weight = 1 / (1 + np.exp(-u))
    losses, each = cross_entropy(x, y, w)
    args = jnp.asarray(u), {"weight": jnp.asarray(w)}
    value, (by_u, by_w) = gradients(p.inner, args, p.inner_data)
    np.testing.assert_allclose(value, (weight * losses).mean() + 0.35 * (w**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(by_u, weight * (1 - weight) * losses / N, rtol=1e-12)
    expected = (weight @ each / N).reshape(K, D) + 0.7 * w
    np.testing.assert_allclose(by_w["weight"], expected, rtol=1e-11)
    value, (by_u, by_w) = gradients(p.outer, args, p.outer_data)
    losses, each = cross_entropy(x_val, y_val, w)
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(by_w["weight"].ravel(), each.mean(axis=0), rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(by_u, np.zeros(N))
    assert_epoch_is_full(p.inner, args, p.inner_data, 6)
    assert isinstance(p.geometry, bilevel.Euclidean)


def test_hyper_cleaning_hypergradient_and_reference():
    data = cleaning_data()
    p, model = cleaning_problem(data)
    references = [
        tasks.reference.reference_solution(p, jnp.zeros(N), model.w0, tol=tol)
        for tol in [1e-2, 1e-4, 1e-7]
    ]
    gradient = np.ones(N)
    for reference in references:  # also where the gradient is not small: the formula itself
        u, w = np.asarray(reference.u), np.asarray(reference.w["weight"])
        gradient = cleaning_hypergradient(u, w, *data)
        estimate: Any = eqx.filter_jit(bilevel.implicit_gradient)(
            p, reference.u, reference.w, bilevel.CG(rtol=1e-13)
        )
        np.testing.assert_allclose(estimate.grad, gradient, rtol=1e-8, atol=1e-13)
        np.testing.assert_allclose(reference.gradient_norm, np.linalg.norm(gradient), rtol=1e-3)
    assert np.linalg.norm(gradient) < 1.001e-7
    # No minimiser: some rows want all or nothing, and the value falls all the way to its infimum.
    values = [r.value for r in references]
    assert values[0] > values[1] > values[2]
    assert values[1] - values[2] < 1e-3
    assert np.asarray(references[2].u).max() > 10
    assert np.asarray(references[2].u).min() < -10


# ---- one penalty per tensor


def mlp_problem():
    rng = np.random.default_rng(4)
    x, x_val = rng.normal(size=(2, 60, 2))

    def target(x):
        return np.sin(2 * x[:, 0]) + x[:, 1] + 0.3 * rng.normal(size=60)

    model = tasks.models.mlp_model(2, 1, key=jax.random.key(4), width=4)
    data = x, target(x), x_val, target(x_val)
    problem = tasks.tensor_penalties(
        *as_jax(*data), predict=model.predict, loss=tasks.models.squared_error
    )
    return problem, model, data


def test_tensor_penalties_are_their_equation():
    p, model, (x, y, x_val, y_val) = mlp_problem()
    u = tasks.log_penalties(model.w0, 0.1)
    leaves, structure = jax.tree.flatten(u)
    assert len(leaves) == 4
    np.testing.assert_allclose(leaves, np.log(0.1), rtol=1e-15)
    u = jax.tree.unflatten(structure, [a + 0.1 * i for i, a in enumerate(leaves)])
    w1, b1, w2, b2 = tensors = [np.asarray(a) for a in jax.tree.leaves(model.w0)]

    def error(x, y):
        return (np.tanh(x @ w1.T + b1) @ w2.T + b2)[:, 0] - y

    penalties = [0.05 * np.exp(0.1 * i) * (t**2).sum() for i, t in enumerate(tensors)]
    value, (by_u, _) = gradients(p.inner, (u, model.w0), p.inner_data)
    np.testing.assert_allclose(value, 0.5 * (error(x, y) ** 2).mean() + sum(penalties), rtol=1e-12)
    np.testing.assert_allclose(jax.tree.leaves(by_u), penalties, rtol=1e-12)
    value, (_, by_w) = gradients(p.outer, (u, model.w0), p.outer_data)
    np.testing.assert_allclose(value, 0.5 * (error(x_val, y_val) ** 2).mean(), rtol=1e-12)
    np.testing.assert_allclose(jax.tree.leaves(by_w)[3], [error(x_val, y_val).mean()], rtol=1e-10)
    assert_epoch_is_full(p.inner, (u, model.w0), p.inner_data, 5)


def test_tensor_penalties_per_feature_or_for_a_whole_subtree():
    x, y, x_val, y_val = cleaning_data()
    w0, predict = tasks.models.linear_model(D, K)
    p = tasks.tensor_penalties(*as_jax(x, y, x_val, y_val), predict=predict)
    rng = np.random.default_rng(0)
    w = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), w0)
    squares = {k: np.asarray(a) ** 2 for k, a in w.items()}

    def penalty(u):
        loss = p.outer(u, w, p.inner_data)
        return float(p.inner(u, w, p.inner_data) - loss)

    of_features = rng.normal(size=(1, D))
    u = {"weight": jnp.asarray(of_features), "bias": jnp.asarray(-1.0)}
    expected = (np.exp(of_features) * squares["weight"]).sum() + np.exp(-1) * squares["bias"].sum()
    np.testing.assert_allclose(penalty(u), expected / 2, rtol=1e-12)
    expected = np.exp(0.3) * (squares["weight"].sum() + squares["bias"].sum())
    np.testing.assert_allclose(penalty(jnp.asarray(0.3)), expected / 2, rtol=1e-12)


# ---- the reference itself


def cubic(u, w, _):
    """Two branches of minima of `w^3 - w = u`, which end at |u| = 2 / sqrt(27)."""
    return w**4 / 4 - w**2 / 2 - u * w


def test_reference_continues_from_the_next_branch():
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: (w + 0.3) ** 2 * ((w - 1.3) ** 2 + 0.2), inner=cubic
    )
    reference = tasks.reference.reference_solution(problem, jnp.array(-1.0), jnp.array(-1.0))
    w = 1.3 + (-1.6 + np.sqrt(0.96)) / 4  # where F has its second minimum, on the upper branch
    np.testing.assert_allclose(reference.w, w, atol=1e-7)
    np.testing.assert_allclose(reference.u, w**3 - w, atol=1e-7)


def test_reference_reports_that_phi_only_jumps():
    """The best w for F is -0.2, which is unstable: Phi cycles through the hysteresis for ever."""
    problem = bilevel.BilevelProblem(outer=lambda u, w, _: (w + 0.2) ** 2, inner=cubic)
    with pytest.raises(bilevel.BilevelError, match="Phi jumps") as error:
        tasks.reference.reference_solution(problem, jnp.array(-1.0), jnp.array(-1.0))
    assert error.value.solution.stats["converged"] is False
    assert abs(float(error.value.solution.w)) > 0.5


def test_reference_leaves_a_maximum_of_the_inner_objective():
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: (w**2 - 2) ** 2 / 2,
        inner=lambda u, w, _: (w**2 - jnp.exp(u)) ** 2 / 4,
    )
    reference = tasks.reference.reference_solution(problem, jnp.array(0.0), jnp.array(0.0))
    np.testing.assert_allclose(reference.u, np.log(2), atol=1e-7)
    np.testing.assert_allclose(abs(reference.w), np.sqrt(2), atol=1e-7)


def test_reference_in_float32():
    p = jax.tree.map(lambda x: x.astype(jnp.float32), small_quadratic())
    u, w = jnp.zeros(3, jnp.float32), jnp.zeros(5, jnp.float32)
    reference = tasks.reference.reference_solution(p, u, w, tol=1e-4)
    assert reference.u.dtype == reference.w.dtype == jnp.float32
    exact = tasks.reference.reference_solution(small_quadratic(), jnp.zeros(3), jnp.zeros(5))
    np.testing.assert_allclose(
        reference.u, exact.u, atol=20 * 2e-4
    )  # condition * tol, and rounding
    with pytest.raises(ValueError, match=r"`tol` must be at least 1e-05.*use float64"):
        tasks.reference.reference_solution(p, u, w)


def test_reference_compiles_once(compilations):
    for seed in (5, 6):
        tasks.reference.reference_solution(
            small_quadratic(seed),
            jnp.zeros(3),
            jnp.zeros(5),
            linear_solver=lx.QR(),
            tol=10.0**-seed,
        )
    assert compilations.count("jit(_evaluate)") == 1  # no other test here takes QR


def test_reference_that_is_not_reached_is_an_error_with_the_last_point():
    p = small_quadratic()
    with pytest.raises(bilevel.BilevelError, match="`max_steps` is reached") as error:
        tasks.reference.reference_solution(p, jnp.zeros(3), jnp.zeros(5), max_steps=2)
    solution = error.value.solution
    assert solution.stats == {"num_steps": 2, "converged": False}
    assert bool(solution.result == bilevel.RESULTS.outer_max_steps_reached)
    assert np.abs(np.asarray(solution.u)).max() > 0


def test_reference_refuses_an_inner_problem_without_a_minimum():
    unbounded = bilevel.BilevelProblem(
        outer=lambda u, w, _: w**2, inner=lambda u, w, _: jnp.sin(u) * w
    )
    with pytest.raises(bilevel.BilevelError, match="No inner solution"):
        tasks.reference.reference_solution(unbounded, jnp.array(1.0), jnp.array(1.0))


def test_reference_refuses_what_it_cannot_do():
    reference: Any = inspect.unwrap(tasks.reference.reference_solution)
    x, y, x_val, y_val = as_jax(*cleaning_data())
    model = tasks.models.linear_model(D, K)
    p = tasks.reweighting(x, y, x_val, y_val, model.predict)
    with pytest.raises(ValueError, match="Euclidean, got Simplex"):
        reference(p, tasks.uniform_weights(N), model.w0)
    fixed = bilevel.FixedPointProblem(outer=lambda u, w, _: w, map=lambda u, w, _: u * w)
    with pytest.raises(TypeError, match=r"must be a BilevelProblem.*FixedPointProblem"):
        inspect.unwrap(_stationary._check)(fixed, jnp.array(1.0), jnp.array(1.0), 1e-8)


# ---- what all builders share


def builders():
    """Each builder without the run-time checks of annotations, which would fail first."""
    linear = tasks.models.linear_model(D, K).predict

    def with_model(build):
        return lambda *data: inspect.unwrap(build)(*data, linear)

    return {
        "ridge": inspect.unwrap(tasks.ridge),
        "logistic": inspect.unwrap(tasks.logistic),
        "hyper_cleaning": with_model(tasks.hyper_cleaning),
        "tensor_penalties": with_model(tasks.tensor_penalties),
    }


@pytest.mark.parametrize("name", sorted(builders()))
def test_rows_that_do_not_belong_together_are_refused(name):
    build: Any = builders()[name]
    x, y, x_val, y_val = as_jax(np.ones((5, 2)), np.ones(5), np.ones((4, 2)), np.ones(4))
    assert isinstance(build(x, y, x_val, y_val), bilevel.BilevelProblem)
    with pytest.raises(ValueError, match=r"`y` must have one label .* 5 rows of `X`.*\(4,\)"):
        build(x, y[:4], x_val, y_val)
    with pytest.raises(ValueError, match=r"`y_val` must have one label .* 4 rows .*\(4, 1\)"):
        build(x, y, x_val, y_val[:, None])
    with pytest.raises(ValueError, match=r"`X_val` must have the features of `X`, 2 .* got 1"):
        build(x, y, x_val[:, :1], y_val)
    with pytest.raises(ValueError, match=r"`X` must have shape \(rows, features\).*reshape"):
        build(x[:, :, None], y, x_val, y_val)


def test_values_out_of_range_are_refused():
    x, x_val = as_jax(np.ones((2, 2)), np.ones((2, 2)))
    signs, codes = as_jax(np.array([1, -1]), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"`y` must hold labels in \{-1, 1\}, got \[0\].*2 \* y"):
        tasks.logistic(x, codes, x_val, signs)
    with pytest.raises(ValueError, match="`y_val` must hold labels"):
        tasks.logistic(x, signs, x_val, codes)
    predict = tasks.models.linear_model(2, 2).predict
    with pytest.raises(ValueError, match="`l2` must be >= 0, got -1"):
        tasks.hyper_cleaning(x, codes, x_val, codes, predict, l2=-1.0)
    for penalty in [0.0, -1.0]:
        with pytest.raises(ValueError, match="`penalty` must be > 0 to have a logarithm"):
            tasks.log_penalties({"weight": jnp.ones(2)}, penalty)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"`num_inner_rows` must be at least .* = 7 .* got 6"):
        tasks.quadratic(key, num_inner_rows=6, num_outer_rows=7, dim_u=3, dim_w=4)
    with pytest.raises(ValueError, match="`num_outer_rows`"):
        tasks.quadratic(key, num_inner_rows=7, num_outer_rows=6, dim_u=3, dim_w=4)
    with pytest.raises(ValueError, match="`dim_u` must be >= 1, got 0"):
        tasks.quadratic(key, dim_u=0)
    for condition in [0.5, float("nan")]:
        with pytest.raises(ValueError, match=r"`condition` .* must be >= 1"):
            tasks.quadratic(key, condition=condition)


def test_labels_of_any_dtype_and_traced_ones():
    x, y, x_val, y_val = logistic_data(3, num_rows=8)
    problems: list[Any] = [
        tasks.logistic(*as_jax(x, y.astype(dtype), x_val, y_val.astype(dtype)))
        for dtype in [np.int32, np.float64, np.int8]
    ]
    for p in problems:
        assert p.inner_data[1].dtype == jnp.float64
        np.testing.assert_array_equal(p.inner_data[1], y)

    @jax.jit
    def loss(y):
        p: Any = tasks.logistic(jnp.asarray(x), y, jnp.asarray(x_val), jnp.asarray(y_val))
        return p.inner(jnp.zeros(()), jnp.ones(3), p.inner_data)

    p = problems[0]
    expected = p.inner(jnp.zeros(()), jnp.ones(3), p.inner_data)
    np.testing.assert_allclose(loss(jnp.asarray(y)), expected, rtol=1e-14)


def test_problems_from_separate_calls_share_one_compilation(compilations):
    @eqx.filter_jit
    def value(p, u, w):
        return p.inner(u, w, p.inner_data) + p.outer(u, w, p.outer_data)

    predict = tasks.models.linear_model(D, K).predict
    for seed in (0, 1):
        value(small_quadratic(seed), jnp.zeros(3), jnp.zeros(5))
        value(tasks.ridge(*as_jax(*ridge_data(seed))), jnp.zeros(4), jnp.zeros(4))
        value(tasks.logistic(*as_jax(*logistic_data(6, seed))), jnp.zeros(6), jnp.zeros(6))
        data = as_jax(*cleaning_data(seed))
        w = tasks.models.linear_model(D, K).w0
        value(tasks.hyper_cleaning(*data, predict=predict), jnp.zeros(N), w)
        value(tasks.tensor_penalties(*data, predict=predict), tasks.log_penalties(w), w)
        value(tasks.reweighting(*data, predict=predict), tasks.uniform_weights(N), w)
    assert len([name for name in compilations if "value" in name]) == 6


@pytest.mark.parametrize(
    ("name", "module"), [("linear_model", tasks.models), ("ridge_solution", tasks.reference)]
)
def test_names_that_moved_warn_and_work(name, module):
    with pytest.warns(DeprecationWarning, match=f"is `{module.__name__}.{name}` now"):
        assert getattr(tasks, name) is getattr(module, name)
