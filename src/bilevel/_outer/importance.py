"""Batches drawn by weight."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from .._algorithm.base import AbstractAlgorithm
from .._arrays import take_rows, whole
from .._geometry import Simplex
from .._problem import num_rows
from .._sampler import AbstractSampler, Batch
from .geometry import TransformedGeometry


class _Weighted(NamedTuple):
    key: Key[Array, ""]
    drawn: Array
    u: Float[Array, " rows"]


class WeightedSampler(AbstractSampler):
    """Batches drawn by weight, for objectives that take the importance ratio as a last leaf.

        i ~ q = (1 - share) / n + share u,   ratio_i = 1 / (n q_i)

    The rows are drawn independently and with replacement, and the batch is `(*data, ratio)`. A mean
    over the batch with each term times its ratio is an unbiased estimate of the mean over all rows.
    Its terms are bounded: a row of weight u_i counts at most `1 / share` times its share of the
    batch, and any row counts at most `1 / (1 - share)` times as much as in a uniform draw. Uniform
    batches see a dominating row n / |B| times as heavy as it is, or not at all.

    It draws by the weights in its state: wrap the algorithm in `ImportanceSampling`. Weights and
    ratios have the precision of the data.

    Args:
        batch_size: >= 1.
        share: strictly between 0 and 1: the part of a batch that is drawn by weight, not uniformly.

    Raises:
        ValueError: `batch_size` or `share` outside of its range, no data, or data in no tuple.
    """

    batch_size: int
    share: float = 0.5

    def __check_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"`WeightedSampler` needs batch_size >= 1, got {self.batch_size}.")
        if not 0 < self.share < 1:
            raise ValueError(f"`WeightedSampler` needs 0 < share < 1, got {self.share}.")

    def init(self, data, key):
        """Uniform weights."""
        if not isinstance(data, tuple) or not num_rows(data):
            raise ValueError(
                "`WeightedSampler` adds a leaf to the rows it draws, so the data must be a tuple of "
                f"arrays, got {type(data).__name__}."
            )
        n, dtypes = num_rows(data), [x.dtype for x in jax.tree.leaves(data)]
        floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
        dtype = max(floating, key=lambda dtype: dtype.itemsize, default=float)
        return _Weighted(key, jnp.zeros((), jnp.int32), jnp.full((n,), 1 / n, dtype))

    def draw(self, data, state):
        """`batch_size` rows with their ratios."""
        n = num_rows(data)
        q = (1 - self.share) / n + self.share * state.u
        cumulative = jnp.cumsum(q)
        points = jr.uniform(jr.fold_in(state.key, state.drawn), (self.batch_size,), q.dtype)
        index = jnp.searchsorted(cumulative, points * cumulative[-1])
        index = jnp.minimum(index, n - 1).astype(jnp.int32)
        rows = take_rows(data, index)
        ratio = 1 / (n * q[index])
        following = _Weighted(state.key, state.drawn + 1, state.u)
        return Batch((*rows, ratio), index), following


class ImportanceSampling(AbstractAlgorithm):
    """An algorithm whose inner sampler `WeightedSampler` draws by the current weights.

    Args:
        algorithm: any whose `inner_sampler` is a `WeightedSampler`, with `u` one array of weights.

    Source: ours.

    Raises:
        TypeError: its inner sampler is another one.
        ValueError: the set of the problem is not `Simplex`, so that u need not add up to 1.
    """

    algorithm: AbstractAlgorithm

    def init(self, problem, u0, w0, key):
        """The first state of the algorithm."""
        state = self.algorithm.init(problem, u0, w0, key)
        if not isinstance(state.samplers.inner, _Weighted):
            raise TypeError(
                "`ImportanceSampling` needs an algorithm with `inner_sampler=WeightedSampler(...)`, "
                f"got {self.algorithm!r}."
            )
        geometry = problem.geometry
        while isinstance(geometry, TransformedGeometry):
            geometry = geometry.inside
        if not isinstance(geometry, Simplex):
            raise ValueError(
                "`ImportanceSampling` draws rows by u, which must be weights that add up to 1: the "
                f"problem needs `geometry=Simplex()`, got {type(geometry).__name__}. With others the "
                "ratios of the batches would be wrong."
            )
        return state

    def step(self, problem, state):
        """Tell the sampler the weights, then step."""
        inner = state.samplers.inner
        weights = whole(jax.lax.stop_gradient(state.u)).astype(inner.u.dtype)
        samplers = state.samplers._replace(inner=inner._replace(u=weights))
        return self.algorithm.step(problem, dataclasses.replace(state, samplers=samplers))
