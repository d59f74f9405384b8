"""A logistic regression with one penalty per feature, its derivatives by hand, and settings.

`_floors.py` makes methods of it. The methods of the table `tests/methods.py` take their settings from
here, so that both sides of `step_time.py` make the same steps.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import Blocks, Shuffled, on_network, tasks

N, OUTER, DIM, BATCH = 8_000, 4_096, 784, 256
BLOCK = 250  # the inner blocks of SABA, which divide N; the outer blocks have 256 rows
RHO, SIGMA, GAMMA, ETA, K, PERIOD, T = 0.1, 0.1, 0.05, 0.3, 4, 10, 3
MULTIPLIER, DELTA, DUAL, RADIUS = 10.0, 1e-2, 0.03, 1e-2
PROBABILITY, TIGHT = 0.1, 1e-9  # a tolerance that is never met: loops of fixed length
CLIENTS_OF_ALL, CLIENTS_OF_STEP = 125, 4  # 64 inner and 32 outer rows each
AGENTS = 4  # each has a quarter of the rows, and draws 64 of them
MIXING = [[0.5, 0.25, 0, 0.25], [0.25, 0.5, 0.25, 0], [0, 0.25, 0.5, 0.25], [0.25, 0, 0.25, 0.5]]


def data() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=DIM) / np.sqrt(DIM)
    x = rng.normal(size=(N + OUTER, DIM)).astype(np.float32)
    y = np.sign(x @ truth + 0.5 * rng.normal(size=N + OUTER)).astype(np.float32)
    return tuple(jnp.asarray(a) for a in (x[:N], y[:N], x[N:], y[N:]))


def problems() -> dict[str, tuple[Any, jax.Array]]:
    """By the page of a method: its problem, and the shape that u and w start with."""
    x, y, x_outer, y_outer = data()
    pooled = tasks.logistic(x, y, x_outer, y_outer)
    inner = np.arange(N).reshape(CLIENTS_OF_ALL, -1)
    outer = np.arange(32 * CLIENTS_OF_ALL).reshape(CLIENTS_OF_ALL, -1)
    outer_rows, inner_rows = jax.tree.map(
        lambda leaf: leaf.reshape(-1, AGENTS, *leaf.shape[1:]),
        (pooled.outer_data, pooled.inner_data),
    )
    own = dataclasses.replace(pooled, outer_data=outer_rows, inner_data=inner_rows)
    shared = on_network(own, AGENTS)
    return {
        "federated": (tasks.federated(pooled, inner, outer), jnp.zeros(DIM)),
        "gossip": (shared, jnp.zeros((AGENTS, DIM))),
        "": (pooled, jnp.zeros(DIM)),
    }


# The problem by hand. Points are rows: u, w, v of shape (points, DIM).


def inner_terms(u, w, v, batch):
    """`grad_w f`, `H v` and `(d2_uw f)^T v`."""
    x, y = batch
    points = len(w)
    seen = jnp.concatenate([w, v]) @ x.T
    p = jax.nn.sigmoid(-y * seen[:points])
    back = jnp.concatenate([-y * p, p * (1 - p) * seen[points:]]) / len(y)
    data_terms = back @ x
    penalty = jnp.exp(u)
    grad = data_terms[:points] + penalty * w
    return grad, data_terms[points:] + penalty * v, penalty * w * v


def inner_gradient(u, w, batch):
    x, y = batch
    return (-y * jax.nn.sigmoid(-y * (w @ x.T)) / len(y)) @ x + jnp.exp(u) * w


def inner_losses(u, w, x, batch):
    """f at w and at x, and `grad_w f` at w."""
    rows, y = batch
    margins = y * (jnp.concatenate([w, x]) @ rows.T)
    penalties = jnp.exp(u) * jnp.concatenate([w, x]) ** 2 / 2
    losses = jnp.mean(jax.nn.softplus(-margins), 1) + jnp.sum(penalties, 1)
    back = -y * jax.nn.sigmoid(-margins[:1]) / len(y)
    return losses, back @ rows + jnp.exp(u) * w


def product(u, w, v, batch):
    x, y = batch
    seen = jnp.concatenate([w, v]) @ x.T
    p = jax.nn.sigmoid(-y * seen[: len(w)])
    return (p * (1 - p) * seen[len(w) :] / len(y)) @ x + jnp.exp(u) * v


def outer_gradient(w, batch):
    x, y = batch
    return (-y * jax.nn.sigmoid(-y * (w @ x.T)) / len(y)) @ x


def row(x):
    return x[None, :]


class Draw:
    """The batches of a sampler, as the library draws them."""

    def __init__(self, sampler, rows):
        self.sampler, self.rows = sampler, rows

    def __call__(self, state):
        batch, state = self.sampler.draw(self.rows, state)
        return batch.data, state


def series(u, w, b, draw, state):
    """K terms of the Neumann series, with a new batch per product."""
    total = term = b
    for _ in range(K - 1):
        batch, state = draw(state)
        term = term - SIGMA * product(u, w, term, batch)
        total = total + term
    return SIGMA * total, state


SHUFFLED: dict[str, Any] = {
    "inner_sampler": Shuffled(BATCH),
    "outer_sampler": Shuffled(BATCH),
}
BLOCKS: dict[str, Any] = {"inner_sampler": Blocks(BLOCK), "outer_sampler": Blocks(BATCH)}
CLIENTS: dict[str, Any] = {
    "inner_sampler": Shuffled(CLIENTS_OF_STEP),
    "outer_sampler": Shuffled(CLIENTS_OF_STEP),
}
OF_AGENTS: dict[str, Any] = {
    "inner_sampler": Shuffled(BATCH // AGENTS),
    "outer_sampler": Shuffled(BATCH // AGENTS),
}
SIZES = (RHO, SIGMA, GAMMA)
