"""Sums over the content of arrays, equal for equal ones however they are split among processes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_BLOCK = 1 << 16  # entries at a time


def spans(value: Any) -> bool:
    """Whether it is an array of which this process has a part only, or one of several copies."""
    return isinstance(value, jax.Array) and not value.is_fully_addressable


def content_sums(arrays: Sequence[Any]) -> list[str]:
    """For each array a sum, modulo 2^64, of mixtures of its entries' bits with their positions.

    Equal arrays have equal sums, whatever processes hold them: each adds up its own part. Others have
    the same one with a probability of 2^-64, except on purpose. Every process gets all sums.
    """
    sums = np.array([_sum_of_parts(array) for array in arrays], np.uint64)
    if any(spans(array) for array in arrays):
        # As halves, because JAX may have no integers of 64 bits.
        parts = multihost_utils.process_allgather(sums.view(np.uint32), tiled=False)
        all_sums = np.ascontiguousarray(parts).view(np.uint64)
        held = np.array([spans(array) for array in arrays])
        sums = np.where(held, all_sums.sum(axis=0, dtype=np.uint64), sums)
    return [f"{total:016x}" for total in sums.tolist()]


def _sum_of_parts(array: Any) -> int:
    if not spans(array):
        array = np.asarray(array)
        return _sum_of_part(array, array.shape, (slice(None),) * array.ndim)
    # A part that several devices hold is counted once.
    parts = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    return sum(_sum_of_part(np.asarray(x.data), array.shape, x.index) for x in parts) % (1 << 64)


def _sum_of_part(part: np.ndarray, shape: tuple[int, ...], index: tuple[slice, ...]) -> int:
    """The sum over one part, whose entries have the positions `index` in an array of this shape."""
    if part.size == 0:
        return 0
    per_row = max(math.prod(part.shape[1:]), 1)
    rows, block = part.shape[0] if part.ndim else 1, max(_BLOCK // per_row, 1)
    starts = [axis.indices(size)[0] for axis, size in zip(index, shape, strict=True)]
    total = 0
    for row in range(0, rows, block):
        piece = part[row : row + block] if part.ndim else part.reshape(1)
        position = np.zeros((1,) * piece.ndim, np.uint64)
        for axis, start in enumerate(starts):
            here = np.arange(piece.shape[axis], dtype=np.uint64) + (start + row * (axis == 0))
            stride = math.prod(shape[axis + 1 :])
            position = position + (here * stride).reshape([-1] + [1] * (piece.ndim - axis - 1))
        total += _mixed(np.broadcast_to(position, piece.shape).ravel(), np.ascontiguousarray(piece))
    return total % (1 << 64)


def _mixed(position: np.ndarray, piece: np.ndarray) -> int:
    """The sum of the mixtures (the last steps are those of the generator SplitMix64)."""
    bytes_each = piece.dtype.itemsize
    word = math.gcd(bytes_each, 8)
    words = piece.reshape(-1).view(f"u{word}").reshape(piece.size, -1)
    x = np.arange(words.shape[1], dtype=np.uint64) + position[:, None] * np.uint64(words.shape[1])
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x += words.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return int(x.sum(dtype=np.uint64))
