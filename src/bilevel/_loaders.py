"""Batches from the host, the loop's side: `Loaders` reads them ahead and puts them on the device."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ._loader import FromLoader, Loaded, loaded_samplers, position_of
from ._settings import POWER_STEPS

A = TypeVar("A")
_read: WeakSet[Any] = WeakSet()  # iterators that a run has read from


class Loaders(Generic[A]):
    """The `FromLoader`s of an algorithm, opened, for `run_chunk` and checkpoints.

        with Loaders(algorithm) as loaders:
            state = loaders.algorithm.init(problem, u0, w0, key)
            while ...:
                state, status, rows = run_chunk(problem, loaders.algorithm, ...)
                loaders.advance(state)

    `run_chunk` ends its chunk where the batches on the device do. `solve` does all this by itself.

    Args:
        algorithm: any; without a `FromLoader` it stays as it is.
        state: go on from here, by default from the first batch.

    Attributes:
        algorithm: the algorithm with the batches that are on the device now.
        exhausted: whether a loader has no more batches to read.

    Raises:
        ValueError, TypeError: as in `FromLoader`.
    """

    def __init__(self, algorithm: A, state: Any = None):
        self._given = algorithm
        self._feeds: dict[str, _Feed] = {}
        try:
            for name, sampler in loaded_samplers(algorithm, FromLoader).items():
                position = 0 if state is None else int(position_of(state, name).drawn)
                self._feeds[name] = _Feed(name, sampler, position)
            if self._feeds and "auto" in [
                x for x in jax.tree.leaves(algorithm) if isinstance(x, str)
            ]:
                for feed in self._feeds.values():
                    feed.require(POWER_STEPS)
        except BaseException:
            self.close()
            raise

    def __bool__(self) -> bool:
        return bool(self._feeds)

    def __enter__(self) -> "Loaders[A]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def algorithm(self) -> A:
        """The algorithm with the batches that are on the device now."""
        if not self._feeds:
            return self._given

        def replace(path: Any, x: Any) -> Any:
            return self._feeds[path[-1].name].sampler if isinstance(x, FromLoader) else x

        return jax.tree_util.tree_map_with_path(
            replace, self._given, is_leaf=lambda x: isinstance(x, FromLoader)
        )

    @property
    def exhausted(self) -> bool:
        """Whether a loader has no more batches to read."""
        return any(feed.exhausted for feed in self._feeds.values())

    def advance(self, state: Any) -> bool:
        """Bring the next windows to the device where there is room; whether any came."""
        came = [feed.advance(int(position_of(state, n).drawn)) for n, feed in self._feeds.items()]
        return any(came)

    def close(self) -> None:
        """Stop reading."""
        for feed in self._feeds.values():
            feed.close()


class _Feed:
    """One loader: what is on the device, the window that is read ahead, and the iterator."""

    def __init__(self, name: str, loader: FromLoader, drawn: int):
        self._name, self._window, self._sharding = name, loader.window, loader.sharding
        self._batches = _from(loader.batches.batches, drawn, name)
        self._shapes: Any = None
        self._number = self._end = drawn  # batches that were read, and that are on the device
        self._origin = drawn
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "bilevel-loader")
        self.exhausted = False
        try:
            count, block = self._read()
            if count == 0:
                raise ValueError(
                    f"the `FromLoader` of `{name}` has no batch"
                    + (f" after the {drawn} that this run has drawn." if drawn else ".")
                    + " An iterator that was used up yields nothing: make it anew, or give an "
                    "iterable that can be begun again."
                )
            ring = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), block)
            self._loaded(ring, count)
            self.advance(drawn)
        except BaseException:
            self.close()
            raise

    def _loaded(self, ring: Any, count: int) -> None:
        self._end += count
        self.exhausted = count < self._window
        origin, end = (jax.device_put(np.asarray(x, np.int32)) for x in (self._origin, self._end))
        self.sampler = Loaded(ring, origin, end)
        self._next: Future[Any] | None = None
        if not self.exhausted:
            self._next = self._thread.submit(self._read)

    def advance(self, drawn: int) -> bool:
        """Write windows over batches that were drawn; whether there were any."""
        came = False
        while self._next is not None and drawn >= self._end - self._window:
            count, block = self._next.result()
            self._next = None
            if count == 0:
                self.exhausted = True
                break
            at = (self._end - self._origin) % (2 * self._window)
            self._loaded(_write(self.sampler.ring, block, at), count)
            came = True
        return came

    def require(self, count: int) -> None:
        """Refuse a window that is too small for the first look of "auto"."""
        if self._end - self._origin < count:
            raise ValueError(
                f'"auto" step sizes look at {count} batches before the first step, and the '
                f"`FromLoader` of `{self._name}` has {self._end - self._origin} ready: give it "
                f"window={-(-count // 2)} or more and as many batches, or give numbers as step sizes."
            )

    def close(self) -> None:
        """Stop reading, and wait for the batch that is being read."""
        self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _read(self) -> tuple[int, Any]:
        """The next window on the device, filled up with copies, and how many batches it has."""
        rows: list[list[np.ndarray]] = []
        while len(rows) < self._window and not self._closed:
            try:
                batch = next(self._batches)
            except StopIteration:
                break
            except Exception as error:
                error.add_note(f"(while batch {self._number} of `{self._name}` was read)")
                raise
            rows.append(self._checked(batch))
            self._number += 1
        if not rows or self._closed:
            return 0, None
        filled = rows + [rows[-1]] * (self._window - len(rows))
        leaves = [np.stack(column) for column in zip(*filled, strict=True)]
        return len(rows), self._put(jax.tree.unflatten(self._shapes[0], leaves))

    def _checked(self, batch: Any) -> list[np.ndarray]:
        """The leaves of a batch, which must be like those of the first."""
        paths, structure = jax.tree_util.tree_flatten_with_path(batch)
        arrays = []
        for path, leaf in paths:
            array = np.asarray(leaf)
            if array.dtype.kind in "OSUM":
                raise TypeError(
                    f"batch {self._number} of `{self._name}`: the leaf batch"
                    f"{jax.tree_util.keystr(path)} must be a numeric array, got {array.dtype} "
                    f"({type(leaf).__name__}). Encode text and categories as numbers in the loader."
                )
            arrays.append(array)
        shapes = structure, [(x.shape, str(x.dtype)) for x in arrays]
        if not arrays:
            raise ValueError(f"batch {self._number} of `{self._name}` has no array: {batch!r}.")
        if self._shapes is None:
            self._shapes = shapes
        if shapes != self._shapes:
            raise ValueError(
                f"batch {self._number} of `{self._name}` is unlike the first one: it has "
                f"{_described(shapes)}, and the first has {_described(self._shapes)}. All batches "
                "need one structure, and one shape and dtype per leaf: leave out a last, smaller "
                "batch (`drop_last=True` in a DataLoader, `drop_remainder=True` in grain), or pad it."
            )
        return arrays

    def _put(self, block: Any) -> Any:
        if self._sharding is None:
            return jax.device_put(block)
        sharding = NamedSharding(self._sharding.mesh, PartitionSpec(None, *self._sharding.spec))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), block)


@partial(jax.jit, donate_argnums=0)
def _write(ring: Any, block: Any, at: Any) -> Any:
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, axis=0), ring, block
    )


def _described(shapes: Any) -> str:
    structure, leaves = shapes
    return f"{[f'{dtype}{list(shape)}' for shape, dtype in leaves]} in {structure}"


def _from(batches: Any, drawn: int, name: str) -> Iterator[Any]:
    """The batches from number `drawn` on."""
    if not isinstance(batches, Iterable):
        start: Callable[[int], Iterator[Any]] = batches
        return iter(start(drawn))
    if iter(batches) is batches:
        _claim(batches, name)
        return islice(batches, drawn, None)
    return islice(_again_and_again(batches), drawn, None)


def _again_and_again(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        count = 0
        for batch in batches:
            count += 1
            yield batch
        if count == 0:
            return


def _claim(iterator: Any, name: str) -> None:
    """Refuse an iterator that another run, or the other level, has read from."""
    try:
        used = iterator in _read
        _read.add(iterator)
    except TypeError:  # it takes no weak references
        return
    if used:
        raise ValueError(
            f"the iterator of `{name}` has been read from already, by an earlier run or by the other "
            "level, so its batches are gone. Make it anew, or give `FromLoader` an iterable that can "
            "be begun again, or a function that returns an iterator."
        )
