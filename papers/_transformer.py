"""A small decoder-only transformer on bytes, as two functions on a pytree of arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key, PyTree

BYTES = 256


class Size(NamedTuple):
    """How large a transformer is: its width, its layers, its heads, and the bytes that it sees."""

    width: int
    layers: int
    heads: int
    context: int


def init(size: Size, key: Key[Array, ""]) -> PyTree[Array]:
    """Parameters: normal with variance 1 / inputs, layers stacked on axis 0."""
    d, n = size.width, size.layers
    keys = iter(jr.split(key, 6))

    def normal(*shape: int, scale: float | None = None) -> Array:
        return jr.normal(next(keys), shape) * (shape[-2] ** -0.5 if scale is None else scale)

    return {
        "bytes": normal(BYTES, d, scale=0.5 * d**-0.5),
        "places": normal(size.context, d, scale=0.1 * d**-0.5),
        "layers": {
            "qkv": normal(n, d, 3 * d),
            "out": normal(n, d, d) / (2 * n) ** 0.5,
            "up": normal(n, d, 4 * d),
            "down": normal(n, 4 * d, d) / (2 * n) ** 0.5,
            "norms": jnp.ones((n, 2, d)),
        },
        "norm": jnp.ones(d),
    }


def count(w: PyTree[Array]) -> int:
    """The number of parameters."""
    return sum(x.size for x in jax.tree.leaves(w))


def _normed(x: Array, gain: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * gain


def logits(w: PyTree[Array], tokens: Array, heads: int, remat: bool = False) -> Array:
    """The logits of the next byte at each place; `remat` keeps the layers' inputs only."""
    length = tokens.shape[1]
    x = w["bytes"][tokens] + w["places"][:length]
    mask = jnp.tril(jnp.ones((length, length), bool))

    def layer(x: Array, p: Any) -> tuple[Array, None]:
        rows, _, d = x.shape
        qkv = (_normed(x, p["norms"][0]) @ p["qkv"]).reshape(rows, length, 3, heads, d // heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (d // heads) ** -0.5
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        read = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), v)
        x = x + read.reshape(rows, length, d) @ p["out"]
        hidden = jax.nn.gelu(_normed(x, p["norms"][1]) @ p["up"])
        return x + hidden @ p["down"], None

    x, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, w["layers"])
    return _normed(x, w["norm"]) @ w["bytes"].T


def losses(w: PyTree[Array], rows: Array, heads: int, remat: bool = False) -> Array:
    """The mean cross-entropy of the next byte, in nats, one number per row of bytes."""
    rows = rows.astype(jnp.int32)
    scores = jax.nn.log_softmax(logits(w, rows[:, :-1], heads, remat).astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(scores, rows[:, 1:, None], -1)[..., 0], 1)


def windows(text: np.ndarray, context: int) -> np.ndarray:
    """All rows of `context + 1` bytes of a text, as a view."""
    return np.lib.stride_tricks.sliding_window_view(text, context + 1)
