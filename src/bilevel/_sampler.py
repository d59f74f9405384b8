"""Which rows an oracle call sees: the full data, a random draw, or the next block of an epoch."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, Key, PyTree

from ._problem import num_rows


class Batch(NamedTuple):
    """Some rows and their positions.

    `data` has the structure of the data drawn from, with `len(index)` rows; `index` is `None` for
    the full data.
    """

    data: Any
    index: Int[Array, " batch"] | None


class AbstractSampler(eqx.Module):
    """A rule for drawing batches; its state is a pytree of arrays and goes into checkpoints."""

    @abc.abstractmethod
    def init(self, data: PyTree[Array] | None, key: Key[Array, ""]) -> Any:
        """The state before the first draw."""

    @abc.abstractmethod
    def draw(self, data: PyTree[Array] | None, state: Any) -> tuple[Batch, Any]:
        """The next batch and the state after it."""


class Stream(eqx.Module):
    """Data, the sampler that draws from it and the sampler's state, in one value to pass around.

    `stream.draw()` returns `(batch data, the stream after the draw)`. It is functional: the old
    stream draws the same batch again.
    """

    sampler: AbstractSampler
    data: PyTree[Array] | None
    state: Any

    def draw(self) -> tuple[Any, "Stream"]:
        """The next batch's data, and the stream that follows it."""
        batch, state = self.sampler.draw(self.data, self.state)
        return batch.data, Stream(self.sampler, self.data, state)


class Streams(NamedTuple):
    """Where an outer step draws its batches from."""

    outer: Stream
    inner: Stream


class FullBatch(AbstractSampler):
    """Every draw is all the data. Stateless."""

    def init(self, data, key):
        """No state."""
        return ()

    def draw(self, data, state):
        """All rows, in order."""
        return Batch(data, None), state


class _Draws(NamedTuple):
    key: Key[Array, ""]
    count: Int[Array, ""]


class WithReplacement(AbstractSampler):
    """Each draw is `batch_size` rows, independent and uniform, with replacement.

    The k-th draw depends on the key and on k alone. Every batch mean is an unbiased estimate of
    the full mean.

    Raises:
        ValueError: `batch_size` < 1, or there is no data to draw from.
    """

    batch_size: int

    def __check_init__(self):
        _check_batch_size(self)

    def init(self, data, key):
        """A key and a counter."""
        _rows(self, data)
        return _Draws(key, jnp.zeros((), jnp.int32))

    def draw(self, data, state):
        """`batch_size` rows picked independently."""
        index = jr.randint(
            jr.fold_in(state.key, state.count), (self.batch_size,), 0, num_rows(data)
        )
        return _take(data, index), _Draws(state.key, state.count + 1)


class _Epoch(NamedTuple):
    key: Key[Array, ""]
    epoch: Int[Array, ""]
    order: Int[Array, " n"]
    position: Int[Array, ""]


class Shuffled(AbstractSampler):
    """Contiguous blocks of `batch_size` from a random order that is redrawn every epoch.

    The draws, laid end to end, are one random permutation of the rows after the other, so each
    index occurs exactly once an epoch whatever the batch size; where `batch_size` does not divide
    the number of rows, a batch takes the end of one epoch and the start of the next (nothing is
    dropped, repeated or masked). State: the current order, n integers.

    Raises:
        ValueError: `batch_size` < 1 or above the number of rows, or there is no data.
    """

    batch_size: int

    def __check_init__(self):
        _check_batch_size(self)

    def init(self, data, key):
        """The first epoch's order."""
        n = _rows(self, data)
        if self.batch_size > n:
            raise ValueError(
                f"`Shuffled` got batch_size={self.batch_size} for {n} rows; use at most {n}, or "
                "`FullBatch()` for all rows at once."
            )
        zero = jnp.zeros((), jnp.int32)
        return _Epoch(key, zero, _order(key, zero, n), zero)

    def draw(self, data, state):
        """The next block; a new order is drawn when it is needed."""
        n = state.order.shape[0]

        def within(state):
            index = jax.lax.dynamic_slice(state.order, (state.position,), (self.batch_size,))
            return index, _Epoch(
                state.key, state.epoch, state.order, state.position + self.batch_size
            )

        def across(state):
            following = _order(state.key, state.epoch + 1, n)
            both = jnp.concatenate([state.order, following])
            index = jax.lax.dynamic_slice(both, (state.position,), (self.batch_size,))
            return index, _Epoch(
                state.key, state.epoch + 1, following, state.position + self.batch_size - n
            )

        index, state = jax.lax.cond(
            state.position + self.batch_size <= n, within, across, state
        )
        return _take(data, index), state


def _order(key: Key[Array, ""], epoch: Int[Array, ""], n: int) -> Int[Array, " n"]:
    return jr.permutation(jr.fold_in(key, epoch), jnp.arange(n, dtype=jnp.int32))


def _take(data: PyTree[Array], index: Int[Array, " batch"]) -> Batch:
    # The indices are in range by construction, so no bounds check is compiled in.
    rows = jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data)
    return Batch(rows, index)


def _check_batch_size(sampler: Any) -> None:
    if sampler.batch_size < 1:
        raise ValueError(
            f"`{type(sampler).__name__}` needs batch_size >= 1, got {sampler.batch_size}."
        )


def _rows(sampler: AbstractSampler, data: PyTree[Array] | None) -> int:
    n = num_rows(data)
    if n == 0:
        raise ValueError(
            f"`{type(sampler).__name__}` draws rows, but the problem has no data for it; give the "
            "problem `inner_data`/`outer_data`, or use `FullBatch()`."
        )
    return n
