"""`tasks.reweighting` against numpy, optax and the dense formula of the hypergradient."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from bilevel import tasks
from helpers import assert_epoch_is_full

N, M, D, K, L2 = 12, 6, 3, 4, 0.3
RNG = np.random.default_rng(0)
X, X_TRUSTED = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Y, Y_TRUSTED = np.arange(N) % K, np.arange(M) % K
U = RNG.dirichlet(np.ones(N))
W = {"weight": RNG.normal(size=(K, D)), "bias": RNG.normal(size=K)}


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def problem(bias: bool = True, l2: float = L2) -> tuple[Any, tasks.models.Model]:
    model = tasks.models.linear_model(D, K, bias=bias)
    codes = jnp.asarray(Y, jnp.int32), jnp.asarray(Y_TRUSTED, jnp.int32)
    rows = jnp.asarray(X), codes[0], jnp.asarray(X_TRUSTED), codes[1]
    return tasks.reweighting(*rows, model.predict, l2=l2), model


def numpy_losses(w, x, y):
    z = x @ w["weight"].T + w["bias"]
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]


def test_inner_and_outer_values():
    p, _ = problem()
    u, w = as_jax((U, W))
    squares = sum((a**2).sum() for a in W.values())
    expected = U @ numpy_losses(W, X, Y) + 0.5 * L2 * squares
    np.testing.assert_allclose(jax.jit(p.inner)(u, w, p.inner_data), expected, rtol=1e-13)
    expected = numpy_losses(W, X_TRUSTED, Y_TRUSTED).mean()  # neither weights nor penalty
    np.testing.assert_allclose(jax.jit(p.outer)(u, w, p.outer_data), expected, rtol=1e-13)
    assert isinstance(p.geometry, bilevel.Simplex)
    assert_epoch_is_full(p.inner, (u, w), p.inner_data, 4)


def test_softmax_cross_entropy_and_its_derivatives_are_those_of_optax():
    z, dz = as_jax((3 * RNG.normal(size=(N, K)), RNG.normal(size=(N, K))))
    y, r = jnp.asarray(Y, jnp.int32), jnp.asarray(RNG.normal(size=N))
    ours = tasks.models.softmax_cross_entropy
    theirs = optax.losses.softmax_cross_entropy_with_integer_labels
    np.testing.assert_allclose(ours(z, y), theirs(z, y), rtol=1e-10)

    def derivatives(loss):
        gradient = jax.grad(lambda z: jnp.vdot(r, loss(z, y)))
        return jax.jit(lambda: jax.jvp(gradient, (z,), (dz,)))()

    for a, b in zip(derivatives(ours), derivatives(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_softmax_cross_entropy_does_not_overflow():
    z = jnp.asarray([[1e4, 0.0], [-1e4, 0.0]])
    losses = tasks.models.softmax_cross_entropy(z, jnp.asarray([0, 0], jnp.int32))
    np.testing.assert_array_equal(losses, [0.0, 1e4])


def test_linear_model_is_class_major_and_starts_at_zero():
    w0, predict = tasks.models.linear_model(D, K)
    assert jax.tree.map(jnp.shape, w0) == {"weight": (K, D), "bias": (K,)}
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(w0))
    expected = X @ W["weight"].T + W["bias"]
    np.testing.assert_allclose(predict(as_jax(W), jnp.asarray(X)), expected, rtol=1e-13)
    w0, predict = tasks.models.linear_model(D, K, bias=False)
    assert isinstance(w0, dict)
    assert list(w0) == ["weight"]
    expected = X @ W["weight"].T
    np.testing.assert_allclose(
        predict({"weight": jnp.asarray(W["weight"])}, jnp.asarray(X)), expected, rtol=1e-13
    )


def test_mlp_model_shapes_and_values():
    width, depth = 7, 2
    key = jax.random.key(0)
    w0, predict = tasks.models.mlp_model(D, K, key=key, width=width, depth=depth)
    sizes = [D] + [width] * depth + [K]
    shapes = [s for a, b in itertools.pairwise(sizes) for s in [(b, a), (b,)]]
    leaves = jax.tree.leaves(w0)
    assert [leaf.shape for leaf in leaves] == shapes
    h = X
    for k in range(0, len(leaves), 2):
        h = h @ np.asarray(leaves[k]).T + np.asarray(leaves[k + 1])
        h = np.tanh(h) if k + 2 < len(leaves) else h
    np.testing.assert_allclose(jax.jit(predict)(w0, jnp.asarray(X)), h, rtol=1e-12)
    other, _ = tasks.models.mlp_model(D, K, key=jax.random.key(1), width=width, depth=depth)
    assert (np.asarray(leaves[0]) != np.asarray(jax.tree.leaves(other)[0])).all()


# Enough steps to reach rounding: the inner condition number is below 20.
EXACT = bilevel.GradientInner(optax.sgd(0.3), 1000)


def test_hypergradient_is_the_dense_formula_of_ivanova_and_ablin():
    """Equation (6): `Psi_i = -grad l_i(theta)^T H^-1 grad F(theta)`, all in numpy."""
    p, model = problem(bias=False)
    solve: Any = eqx.filter_jit(EXACT.solve)
    stream = bilevel.Stream(bilevel.FullBatch(), p.inner_data, ())
    state = EXACT.init(p, jnp.asarray(U), model.w0)
    theta = np.asarray(solve(p, jnp.asarray(U), model.w0, state, stream)[0]["weight"])

    def softmax(x):
        e = np.exp(x @ theta.T)
        return e / e.sum(axis=1, keepdims=True)

    def gradients(x, y):  # one per row, (rows, K * D)
        return np.einsum("nk,nd->nkd", softmax(x) - np.eye(K)[y], x).reshape(len(x), -1)

    s = softmax(X)
    curvature = np.einsum("nk,kj->nkj", s, np.eye(K)) - np.einsum("nk,nj->nkj", s, s)
    hessian = np.einsum("n,nkj,nd,ne->kdje", U, curvature, X, X).reshape(K * D, K * D)
    hessian += L2 * np.eye(K * D)
    v = np.linalg.solve(hessian, gradients(X_TRUSTED, Y_TRUSTED).mean(axis=0))
    psi = -gradients(X, Y) @ v

    estimate: Any = eqx.filter_jit(bilevel.implicit_gradient)(
        p, jnp.asarray(U), {"weight": jnp.asarray(theta)}, bilevel.CG(rtol=1e-12)
    )
    np.testing.assert_allclose(estimate.grad, psi, rtol=1e-8)
    np.testing.assert_allclose(np.asarray(estimate.v["weight"]).ravel(), v, rtol=1e-8)
    assert float(estimate.inner_residual) < 1e-8


def test_rows_may_be_images():
    """The model sees them as they are; trusted rows have the same shape."""
    rng = np.random.default_rng(0)
    x, trusted = jnp.asarray(rng.normal(size=(6, 3, 4))), jnp.asarray(rng.normal(size=(2, 3, 4)))
    y, y_trusted = jnp.asarray([0, 1, 1, 0, 1, 0]), jnp.asarray([0, 1])
    w, u = jnp.asarray(rng.normal(size=(12, 2))), tasks.uniform_weights(6)

    def build(shape: tuple[int, ...]) -> bilevel.BilevelProblem:
        flat = [rows.reshape(len(rows), *shape) for rows in (x, trusted)]
        return tasks.reweighting(
            *(flat[0], y, flat[1], y_trusted), lambda w, x: x.reshape(len(x), -1) @ w
        )

    images, table = build((3, 4)), build((12,))
    for name in ("inner", "outer"):
        data = getattr(images, f"{name}_data"), getattr(table, f"{name}_data")
        one, other = (getattr(p, name)(u, w, d) for p, d in zip((images, table), data, strict=True))
        np.testing.assert_allclose(one, other, rtol=1e-12)
