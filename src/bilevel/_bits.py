"""The bits that `jax.random` draws, for a tenth of the time on a CPU.

JAX compiles Threefry-2x32 as a loop there, which takes most of the time of a small step. Here its 20
rounds stand one after the other: Salmon, Moraes, Dror and Shaw (2011), "Parallel random numbers: as
easy as 1, 2, 3" [salmon2011][]. Keys of other generators are left to JAX.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Key, UInt, UInt32

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = 0x1BD11BDA
Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]


def fold_in(key: Key[Array, ""], data: Any) -> Key[Array, ""]:
    """As `jax.random.fold_in`."""
    if not _is_threefry(key):
        return jr.fold_in(key, data)
    words = _threefry(_words(key), (jnp.uint32(0), jnp.asarray(data).astype(jnp.uint32)))
    return jr.wrap_key_data(jnp.stack(words))


def bits(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> UInt[Array, "..."]:
    """As `jax.random.bits`, of 32 or 64 bits."""
    splits: bool = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if not (_is_threefry(key) and splits):  # otherwise the bits are in another order
        return jr.bits(key, shape, dtype)
    place = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    high, low = _threefry(_words(key), (jnp.zeros_like(place), place))
    if jnp.dtype(dtype).itemsize == 4:
        return high ^ low
    return (high.astype(dtype) << 32) | low.astype(dtype)


def two_draws(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> UInt[Array, "2 ..."]:
    """`jax.random.bits` of each of the two keys of `jax.random.split`."""
    return jax.vmap(lambda k: bits(fold_in(key, k), shape, dtype))(jnp.arange(2, dtype=jnp.uint32))


def _is_threefry(key: Any) -> bool:
    return str(jr.key_impl(key)) == "threefry2x32"


def _words(key: Key[Array, ""]) -> Words:
    words = jr.key_data(key)
    return words[0], words[1]


@jax.jit
def _threefry(key: Words, counter: Words) -> Words:
    """Two words from two words of a key and two of a counter."""
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(5):
        for left in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << jnp.uint32(left)) | (y >> jnp.uint32(32 - left)))
        x = x + keys[(i + 1) % 3]
        y = y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y
