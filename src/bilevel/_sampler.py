"""Which rows an oracle sees: all data, a random draw, or the next block of an epoch."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, Key, PyTree, UInt32

from ._arrays import take_rows, take_rows_of_parts
from ._bits import bits, fold_in, two_draws
from ._problem import num_rows


class Batch(eqx.Module):
    """Some rows and their positions.

    `data` has the structure of the data drawn from, with `len(index)` rows; `index` is `None` for
    the full data.
    """

    data: Any
    index: Int[Array, " batch"] | None


class AbstractSampler(eqx.Module):
    """A rule for drawing batches; its state is a pytree of arrays and is part of checkpoints."""

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

    @property
    def has_batches(self) -> bool:
        """Whether a draw has rows: False for the whole of no data."""
        return jax.eval_shape(lambda: self.draw()[0]) is not None

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
    drawn: Int[Array, ""]


class WithReplacement(AbstractSampler):
    """Each draw is `batch_size` rows, independent and uniform, with replacement.

    The k-th draw depends only on the key and on k. Every batch mean is an unbiased estimate of the
    mean over all rows.

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
        kind = jax.dtypes.canonicalize_dtype(int)
        key = fold_in(state.key, state.drawn)
        index = _uniform(key, (self.batch_size,), num_rows(data), kind)
        return Batch(take_rows(data, index), index), _Draws(state.key, state.drawn + 1)


class _Epoch(NamedTuple):
    key: Key[Array, ""]
    epoch: Int[Array, ""]
    position: Int[Array, ""]


class Shuffled(AbstractSampler):
    """Contiguous blocks of `batch_size` from a random order that is redrawn every epoch.

    The draws, laid end to end, are one pseudo-random permutation of the rows after the other. So each
    index occurs exactly once per epoch, whatever the batch size. If `batch_size` does not divide the
    number of rows, a batch takes the end of one epoch and the start of the next; nothing is dropped,
    repeated or masked.

    A permutation is computed when it is needed and never stored: a Feistel network on pairs of digits
    in base ceil(sqrt(n)), with cycle walking for the few numbers above n: Luby and Rackoff (1988),
    "How to construct pseudorandom permutations from pseudorandom functions" [luby1988][]; Black and
    Rogaway (2002), "Ciphers with arbitrary finite domains" [black2002][]. A draw costs
    O(batch_size), the state is three numbers, and no rows are sorted between epochs.

    Raises:
        ValueError: `batch_size` < 1 or above the number of rows, or there is no data.
    """

    batch_size: int

    def __check_init__(self):
        _check_batch_size(self)

    def init(self, data, key):
        """The start of the first epoch."""
        n = _rows(self, data)
        if self.batch_size > n:
            raise ValueError(
                f"`Shuffled` got batch_size={self.batch_size} for {n} rows; use at most {n}, or "
                "`FullBatch()` for all rows at once."
            )
        return _Epoch(key, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def draw(self, data, state):
        """The next block."""
        n = num_rows(data)
        position = state.position + jnp.arange(self.batch_size, dtype=jnp.int32)
        # A block touches at most two epochs. Their keys are chosen round by round: of one choice for
        # all rounds XLA makes a loop that draws the keys again for every row.
        epochs = state.epoch + jnp.arange(2, dtype=jnp.int32)
        this, following = jax.vmap(
            lambda epoch: bits(fold_in(state.key, epoch), (_ROUNDS,), jnp.uint32)
        )(epochs)
        keys = [jnp.where(position < n, this[k], following[k]) for k in range(_ROUNDS)]
        index = _permute((position % n).astype(jnp.uint32), keys, n).astype(jnp.int32)
        end = state.position + self.batch_size
        return Batch(take_rows(data, index), index), _Epoch(
            state.key, state.epoch + end // n, end % n
        )


class Blocks(AbstractSampler):
    """Each draw is one of the fixed blocks of `batch_size` consecutive rows, independent and uniform.

    For methods that remember something of every block, such as `SABA`. Blocks of sorted data are not
    samples of it: shuffle the rows once before.

    Raises:
        ValueError: `batch_size` < 1, it does not divide the number of rows, or there is no data.
    """

    batch_size: int

    def __check_init__(self):
        _check_batch_size(self)

    def init(self, data, key):
        """A key and a counter."""
        self.num_blocks(data)
        return _Draws(key, jnp.zeros((), jnp.int32))

    def draw(self, data, state):
        """One block."""
        k = _uniform(fold_in(state.key, state.drawn), (), self.num_blocks(data), jnp.int32)
        index = k * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.int32)
        return Batch(self._block(data, k), index), _Draws(state.key, state.drawn + 1)

    def num_blocks(self, data: PyTree[Array] | None) -> int:
        """How many blocks the data have."""
        n = _rows(self, data)
        if n % self.batch_size:
            sizes = [size for size in range(1, n + 1) if n % size == 0]
            nearest = min(sizes, key=lambda size: abs(size - self.batch_size))
            raise ValueError(
                f"`Blocks` must be of equal size, and batch_size={self.batch_size} does not divide "
                f"{n} rows. Use one that does ({nearest} is the nearest), or leave out "
                f"{n % self.batch_size} rows."
            )
        return n // self.batch_size

    def map(self, function: Callable[[PyTree[Array]], PyTree], data: PyTree[Array]) -> PyTree:
        """The function's values on all blocks, stacked."""
        blocks = jnp.arange(self.num_blocks(data), dtype=jnp.int32)
        return jax.lax.map(lambda k: function(self._block(data, k)), blocks)

    def _block(self, data: PyTree[Array], k: Int[Array, ""]) -> PyTree[Array]:
        start = k * self.batch_size
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, self.batch_size), data)

    def block(self, batch: Batch) -> Int[Array, ""]:
        """Which block a batch of this sampler is."""
        assert batch.index is not None
        return batch.index[0] // self.batch_size


class FromParts(AbstractSampler):
    """Each draw takes as many rows from each of `parts` equal parts of consecutive rows.

    Where a mesh splits the rows among devices or processes, and `parts` is a multiple of their
    number, each draws from the rows that it holds, and no row moves. Together the draws are a
    stratified sample of all rows: each row is as likely as any other, the mean over a batch is
    unbiased, and a sorted table is sampled more evenly than by draws from all of it. What is drawn
    depends on `parts`, and not on the number of devices.

    Args:
        sampler: what draws from a part: `Shuffled(b)` or `WithReplacement(b)`, for batches of
            `b * parts` rows. Each part has a key of its own.
        parts: their number; it divides that of the rows.

    Raises:
        ValueError: `parts` < 1 or no divisor of the number of rows; there is no data; or the sampler
            refuses a part.
        TypeError: another sampler.

    >>> rows = jnp.arange(12)
    >>> sampler = FromParts(Shuffled(2), 3)
    >>> batch, _ = sampler.draw(rows, sampler.init(rows, jr.key(0)))
    >>> (batch.index // 4).tolist()  # the part of each row
    [0, 0, 1, 1, 2, 2]
    """

    sampler: AbstractSampler
    parts: int

    def __check_init__(self):
        if self.parts < 1:
            raise ValueError(f"`FromParts` needs parts >= 1, got {self.parts}.")
        if not isinstance(self.sampler, (Shuffled, WithReplacement)):
            raise TypeError(
                "`FromParts` draws from each part by `Shuffled` or `WithReplacement`, got "
                f"{type(self.sampler).__name__}."
            )

    def init(self, data, key):
        """The states of all parts."""
        _, places = self._parted(data)
        return jax.vmap(lambda k: self.sampler.init(places, k))(jr.split(key, self.parts))

    def draw(self, data, state):
        """Rows of the first part, then of the second, and so on."""
        parted, places = self._parted(data)
        # The places are data whose rows are their own positions.
        drawn, state = jax.vmap(lambda s: self.sampler.draw(places, s))(state)
        first = len(places) * jnp.arange(self.parts, dtype=jnp.int32)
        index = drawn.data + first[:, None]
        return Batch(take_rows_of_parts(parted, drawn.data), index.ravel()), state

    def _parted(self, data: PyTree[Array] | None) -> tuple[PyTree[Array], Int[Array, " rows"]]:
        """(the data with the parts as axis 0, the places of a row within a part)."""
        n = _rows(self, data)
        if n % self.parts:
            raise ValueError(
                f"`FromParts` has equal parts, and parts={self.parts} does not divide {n} rows. Leave "
                f"out {n % self.parts} rows, or use a number that divides theirs."
            )
        shape = self.parts, n // self.parts
        parted = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), data)
        return parted, jnp.arange(shape[1], dtype=jnp.int32)


def _uniform(key: Key[Array, ""], shape: tuple[int, ...], n: int, kind: Any) -> Int[Array, "..."]:
    """What `jr.randint(key, shape, 0, n, kind)` gives, faster."""
    size = 8 * jnp.dtype(kind).itemsize
    unsigned = jnp.dtype(f"uint{size}").type
    high, low = two_draws(key, shape, unsigned)
    half = 2 ** (size // 2) % n
    power = half**2 % 2**size % n  # 2^size modulo n
    return ((high % unsigned(n) * unsigned(power) + low % unsigned(n)) % unsigned(n)).astype(kind)


_ROUNDS = 6


def _permute(
    x: UInt32[Array, " batch"], keys: Sequence[UInt32[Array, " batch"]], n: int
) -> UInt32[Array, " batch"]:
    """The images of `x` under the permutation of 0 .. n-1 that the round keys stand for."""
    base = jnp.uint32(math.isqrt(n - 1) + 1)

    def network(x: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
        left, right = x // base, x % base
        for key in keys:
            left, right = right, (left + _mix(right ^ key)) % base
        return left * base + right

    # The network permutes 0 .. base^2 - 1; following its cycle back into 0 .. n-1 restricts it.
    return jax.lax.while_loop(
        lambda x: jnp.any(x >= n), lambda x: jnp.where(x >= n, network(x), x), network(x)
    )


def _mix(h: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
    """MurmurHash3's finaliser: every input bit changes every output bit with probability 1/2."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    # One bit less than 32, so that adding a digit cannot overflow.
    return (h ^ (h >> 16)) >> 1


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
