"""Mixtures of sources: one weight per source, judged by the loss on trusted rows."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._arrays import dot
from .._geometry import Simplex
from .._problem import BilevelProblem, num_rows
from .models import check_shape

LossPerRow = Callable[[PyTree, Any], Array]


class _MixtureRisk(eqx.Module):
    loss: LossPerRow
    l2: float

    def __call__(self, u: Float[Array, " sources"], w: PyTree, batch: PyTree[Array]) -> Array:
        check_shape("u", u, u.shape[:1], "one weight for each source")
        count = {x.shape[0] for x in jax.tree.leaves(batch)}
        if count != {u.shape[0]}:
            raise ValueError(
                "a batch of a mixture has the sources on axis 0 and their rows on axis 1: got "
                f"{sorted(count)} sources for {u.shape[0]} weights. `draw_by_source` makes such "
                "batches."
            )
        rows = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), batch)
        losses = self.loss(w, rows)
        value = dot(u, jnp.mean(losses.reshape((u.shape[0], -1)), axis=1).astype(u.dtype))
        return value + 0.5 * self.l2 * dot(w, w) if self.l2 else value


class _TrustedRisk(eqx.Module):
    loss: LossPerRow

    def __call__(self, u: PyTree, w: PyTree, batch: PyTree[Array]) -> Array:
        return jnp.mean(self.loss(w, batch))


def mixture(
    loss: LossPerRow,
    *,
    trusted: PyTree[Array] | None = None,
    sources: PyTree[Array] | None = None,
    l2: float = 0.0,
) -> BilevelProblem:
    """The problem of a mixture of sources: one weight per source, on the simplex.

        f(u, w) = sum_s u_s mean_{rows of source s} loss(w, row) + l2 / 2 ||w||^2
        F(u, w) = mean_{trusted rows} loss(w, row)

    A batch of f has as many rows of each source: its leaves have the sources on axis 0 and the rows on
    axis 1. Its mean is an unbiased estimate for every u, and so is the derivative in each u_s, which a
    batch that is drawn by the weights would not have for sources of weight zero.

    Args:
        loss: `(w, rows) -> one loss per row`, of any model; rows share axis 0.
        trusted: the rows that F is taken on, or `None` if a `FromLoader` yields them as batches.
        sources: all rows of all sources, as leaves `(sources, rows, ...)`; or `None` (usual) if a
            `FromLoader` yields batches of that form, which `draw_by_source` draws.
        l2: >= 0.

    The outer variable is `u` of shape `(sources,)`; start from `uniform_weights(sources)` or from the
    sources' shares of the rows. Cost: one evaluation of the model per row of a batch.

    Raises:
        ValueError: `l2` < 0, or a leaf of `sources` without an axis of rows.

    Source: Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization",
    equations (1) and (2), with one weight per source [ivanova2023][].

    >>> import jax.numpy as jnp, numpy as np
    >>> import bilevel
    >>> from bilevel.tasks import draw_by_source, mixture, uniform_weights
    >>> sources = [np.full(50, x, np.float32) for x in (0.0, 1.0, 5.0)]  # a mean is learned
    >>> problem = mixture(lambda w, x: (w - x) ** 2, trusted=jnp.full(9, 0.5))
    >>> loader = bilevel.FromLoader(draw_by_source(sources, 4))
    >>> method = bilevel.SOBA(0.2, 0.2, 0.2, inner_sampler=loader)
    >>> solution = bilevel.solve(problem, method, uniform_weights(3), jnp.zeros(()), num_steps=500)
    >>> round(float(solution.w), 2), bool(solution.u[2] < 0.1)
    (0.5, True)
    """
    if l2 < 0:
        raise ValueError(f"`l2` must be >= 0, got {l2}.")
    for leaf in jax.tree.leaves(sources):
        if leaf.ndim < 2:
            raise ValueError(
                "the leaves of `sources` must have the shape (sources, rows, ...), got "
                f"{leaf.shape}."
            )
    return BilevelProblem(_TrustedRisk(loss), _MixtureRisk(loss, l2), trusted, sources, Simplex())


def draw_by_source(
    sources: Sequence[PyTree[np.ndarray]], rows: int, seed: int = 0
) -> Callable[[int], Iterator[PyTree[np.ndarray]]]:
    """Batches with as many rows of each source, for `FromLoader`: leaves `(sources, rows, ...)`.

    Batch k depends on the seed and on k alone, so a run goes on at once where it was. A checkpoint
    compares the sizes, the shapes and the seed, not the content of the sources, which may be large.

    Args:
        sources: one pytree of arrays per source, whose leaves share axis 0. Memory-mapped arrays and
            views, such as `numpy.lib.stride_tricks.sliding_window_view(text, length)`, are read where
            rows are drawn only. Sources may differ in size.
        rows: how many are drawn of each source, uniformly and with replacement.
        seed: of the draws.

    Returns:
        A function of the number of batches drawn so far that returns the iterator from there.

    Raises:
        ValueError: no source, a source without rows, or `rows` < 1.
    """
    return _draws(sources, rows, seed, None)


def draw_mixture(
    sources: Sequence[PyTree[np.ndarray]],
    weights: Sequence[float] | np.ndarray | Array,
    rows: int,
    seed: int = 0,
) -> Callable[[int], Iterator[PyTree[np.ndarray]]]:
    """Batches of one mixture, to train on: each row's source is drawn by `weights`.

    Args:
        sources, rows, seed: as in `draw_by_source`; a batch has `rows` rows in all.
        weights: one number >= 0 per source; their sum need not be 1.

    Returns:
        As `draw_by_source`; the leaves have the shape `(rows, ...)`.

    Raises:
        ValueError: as in `draw_by_source`, or weights of another number, negative or all zero.
    """
    shares = np.asarray(weights, float)
    if shares.shape != (len(sources),) or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
        raise ValueError(
            f"`weights` must be {len(sources)} numbers >= 0 with a sum above 0, one per source, got "
            f"{shares.tolist()}."
        )
    return _draws(sources, rows, seed, tuple((shares / shares.sum()).tolist()))


class _Sources:
    """The rows themselves, which count by nothing when runs are compared: they may be large files."""

    def __init__(self, sources: Sequence[PyTree[np.ndarray]]):
        self.rows = sources


@dataclasses.dataclass(frozen=True)
class _Draws:
    """From the number of batches drawn so far to the iterator from there.

    A checkpoint compares these fields, and so sees other sizes, seeds and weights.
    """

    sources: _Sources
    sizes: tuple[int, ...]
    kinds: tuple[str, ...]
    rows: int
    seed: int
    shares: tuple[float, ...] | None

    def __call__(self, start: int) -> Iterator[PyTree[np.ndarray]]:
        """The batches from number `start` on."""
        k = start
        while True:
            yield self.batch(k)
            k += 1

    def batch(self, k: int) -> PyTree[np.ndarray]:
        """Batch number k."""
        rng = np.random.Generator(np.random.Philox(key=(self.seed, k)))
        if self.shares is None:
            counts, join = [self.rows] * len(self.sizes), np.stack
        else:
            counts, join = rng.multinomial(self.rows, self.shares), np.concatenate
        drawn = [
            jax.tree.map(lambda x, i=rng.integers(0, size, count): np.asarray(x[i]), source)
            for source, size, count in zip(self.sources.rows, self.sizes, counts, strict=True)
        ]
        return jax.tree.map(lambda *xs: join(xs), *drawn)


def _draws(
    sources: Sequence[PyTree[np.ndarray]], rows: int, seed: int, shares: tuple[float, ...] | None
) -> _Draws:
    sizes = _sizes(sources, rows)
    kinds = tuple(str((x.dtype, x.shape[1:])) for x in jax.tree.leaves(sources))
    return _Draws(_Sources(sources), tuple(sizes), kinds, rows, seed, shares)


def _sizes(sources: Sequence[PyTree[np.ndarray]], rows: int) -> list[int]:
    if rows < 1:
        raise ValueError(f"`rows` must be at least 1, got {rows}.")
    sizes = [num_rows(source, f"sources[{i}]") for i, source in enumerate(sources)]
    if not sizes or 0 in sizes:
        raise ValueError(
            f"`sources` must be one pytree of arrays per source, each with rows, got sizes {sizes}."
        )
    return sizes
