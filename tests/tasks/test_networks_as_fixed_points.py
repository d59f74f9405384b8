"""Fixed points of networks: a graph, a convolutional cell, a transformer block with tied weights."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from scipy.signal import correlate2d

import bilevel
from bilevel import AID, ITD, GradientInner, implicit_gradient, tasks
from helpers import estimate_on_all_data

RNG = np.random.default_rng(0)
NODES, WIDTH, SIDE = 7, 3, 4
GMRES = lx.GMRES(rtol=1e-12, atol=1e-12)


def differences(phi: Any, u: np.ndarray, h: float = 1e-6) -> np.ndarray:
    found = np.zeros_like(u)
    for i in np.ndindex(u.shape):
        d = np.zeros_like(u)
        d[i] = h
        found[i] = (phi(u + d) - phi(u - d)) / (2 * h)
    return found


def test_a_graph_whose_nodes_depend_on_their_neighbours():
    """`w = tanh(A w u + x)`: all nodes at once, and every hypergradient against differences."""
    links = RNG.random((NODES, NODES)) < 0.4
    a = links / np.maximum(links.sum(axis=1, keepdims=True), 1)
    x, target = RNG.normal(size=(NODES, WIDTH)), RNG.normal(size=(NODES, WIDTH))
    u = 0.4 * RNG.normal(size=(WIDTH, WIDTH))

    def by_hand(u: np.ndarray) -> np.ndarray:
        w = np.zeros((NODES, WIDTH))
        for _ in range(500):
            w = np.tanh(a @ w @ u + x)
        return w

    problem = bilevel.FixedPointProblem(
        outer=lambda u, w, _: 0.5 * jnp.mean((w - target) ** 2),
        map=lambda u, w, data: jnp.tanh(data[0] @ w @ u + data[1]),
        inner_data=(jnp.asarray(a), jnp.asarray(x)),
    )
    truth = differences(lambda u: 0.5 * np.mean((by_hand(u) - target) ** 2), u)
    inner, start = GradientInner(optax.sgd(1.0), 200), jnp.zeros((NODES, WIDTH))
    for estimator in (AID(bilevel.Neumann(1.0, 200)), AID(GMRES), ITD()):
        found = estimate_on_all_data(problem, estimator, inner, jnp.asarray(u), start)
        np.testing.assert_allclose(found.w, by_hand(u), atol=1e-12)
        np.testing.assert_allclose(found.grad, truth, rtol=1e-6, atol=1e-9)


def check_layer(model: Any, by_hand: Any, rows: np.ndarray) -> None:
    """The prediction against steps in NumPy, and its derivative in the parameters."""
    u = np.asarray(model.u0)
    target = RNG.normal(size=by_hand(u).shape)
    np.testing.assert_allclose(model.predict(model.u0, jnp.asarray(rows)), by_hand(u), atol=1e-9)

    def loss(u):
        return 0.5 * jnp.mean((model.predict(u, jnp.asarray(rows)) - target) ** 2)

    truth = differences(lambda u: 0.5 * np.mean((by_hand(u) - target) ** 2), u)
    np.testing.assert_allclose(jax.grad(loss)(model.u0), truth, rtol=1e-5, atol=1e-9)
    problem = tasks.equilibrium(
        jnp.asarray(rows),
        jnp.zeros(len(rows)),
        model,
        loss=lambda z, _: 0.5 * jnp.mean((z - target) ** 2, axis=1),
    )
    w = jnp.asarray(by_hand(u))
    found = implicit_gradient(problem, model.u0, w, GMRES)
    np.testing.assert_allclose(found.grad, truth, rtol=1e-5, atol=1e-9)


def equilibrium_model(u0: np.ndarray, cell: Any, width: int) -> Any:
    return tasks.models.EquilibriumModel(
        jnp.asarray(u0),
        cell=cell,
        readout=lambda u, z: z,
        width=width,
        solver=bilevel.RootInner(bilevel.Anderson(rtol=1e-12, atol=1e-12)),
        linear_solver=GMRES,
    )


@pytest.mark.slow
def test_a_convolutional_cell():
    """`z = tanh(k * z + x)` on images of 4 x 4, with a 3 x 3 filter that contracts."""
    k, images = RNG.uniform(-0.1, 0.1, size=(3, 3)), RNG.normal(size=(2, SIDE * SIDE))

    def cell(k, z, x):
        flat = z.reshape(-1, 1, SIDE, SIDE)
        moved = jax.lax.conv(flat, k[None, None], (1, 1), "SAME")
        return jnp.tanh(moved.reshape(z.shape) + x)

    def by_hand(k: np.ndarray) -> np.ndarray:
        found = []
        for image in images.reshape(-1, SIDE, SIDE):
            z = np.zeros((SIDE, SIDE))
            for _ in range(200):
                z = np.tanh(correlate2d(z, k, mode="same") + image)
            found.append(z.ravel())
        return np.array(found)

    check_layer(equilibrium_model(k, cell, SIDE * SIDE), by_hand, images)


@pytest.mark.slow
def test_a_transformer_block_with_tied_weights():
    """`z = x + attention(z) u` over five tokens; small weights make it contract."""
    tokens, d = 5, 3
    u, rows = 0.15 * RNG.normal(size=(d, d)), RNG.normal(size=(2, tokens * d))

    def block(u, z, softmax):
        return softmax(z @ z.T / np.sqrt(d)) @ z @ u

    def cell(u, z, x):
        apart = z.reshape(-1, tokens, d)
        moved = jax.vmap(lambda z: block(u, z, lambda s: jax.nn.softmax(s, axis=1)))(apart)
        return x + moved.reshape(z.shape)

    def softmax(s: np.ndarray) -> np.ndarray:
        e = np.exp(s - s.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def by_hand(u: np.ndarray) -> np.ndarray:
        found = []
        for x in rows.reshape(-1, tokens, d):
            z = x
            for _ in range(300):
                z = x + block(u, z, softmax)
            found.append(z.ravel())
        return np.array(found)

    check_layer(equilibrium_model(u, cell, tokens * d), by_hand, rows)
