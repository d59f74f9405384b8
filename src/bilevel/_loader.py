"""Batches that come from the host: any Python iterable, read ahead while the steps are computed."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakSet

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from ._sampler import AbstractSampler, Batch
from ._settings import POWER_STEPS

A = TypeVar("A")
_SAMPLERS = ("outer_sampler", "inner_sampler")  # the fields of a method that hold samplers
_read: WeakSet[Any] = WeakSet()  # iterators that a run has read from


@dataclasses.dataclass(eq=False, frozen=True)
class Source:
    """Where batches come from, as one leaf of a pytree."""

    batches: Any


class FromLoader(AbstractSampler):
    """Batches that a Python iterable yields, in its order: a data loader, a generator, a list.

    A batch is a pytree of arrays (numpy, JAX, CPU tensors of PyTorch), and all batches have the shapes
    and dtypes of the first. The objective gets it as it is, converted as `jax.numpy.asarray` does.
    The problem's data of that level stay `None`.

    Args:
        batches: one of
            - an iterable that can be begun again, such as a list or a `DataLoader` of PyTorch or
              grain: when it ends it is begun again, once per epoch;
            - an iterator, such as a generator, which ends once and serves one run;
            - a function of the number k of batches drawn so far, which returns an iterator that goes
              on from there, such as `lambda k: iter(dataset[k:])` in grain.
        window: how many batches are read at a time, at least as many as a step draws. A thread reads
            and copies the next window while steps are computed, and up to three windows are in the
            device's memory. It never changes the result.
        sharding: how a batch is laid out over a mesh, such as `NamedSharding(mesh, P("data"))`. Each
            process then yields its own part of the batches.

    The state is the number of batches drawn, and is part of checkpoints. A run that goes on reads an
    iterable anew and drops so many batches, so the same iterable has to yield the same batches; a
    function is asked to begin there. Only `solve` and `Loaders` hand out the batches; in a loop of
    your own over `algorithm.step`, put each batch into the problem's data, with `FullBatch()`.

    A run whose batches end before its steps has the result `loader_exhausted`, and the solution so
    far. Methods that look at all data from time to time refuse it: `SABA`, `SRBA`, `VRBO`,
    `BiGSAM`. Cost: a copy of each batch to the device, one within it, and one where it is drawn.
    Source: ours.

    Raises:
        ValueError: `window` < 1; or, in `solve`, no batch, one unlike the first, or fewer batches in a
            window than a step draws.
        TypeError: `batches` is no iterable and no function, or a leaf is no numeric array.

    >>> import jax.numpy as jnp, numpy as np
    >>> from bilevel import BilevelProblem, SOBA, solve
    >>> rng = np.random.default_rng(0)
    >>> loader = [rng.normal(1.0, 0.1, 8).astype(np.float32) for _ in range(10)]
    >>> problem = BilevelProblem(  # w*(u) = u + mean of the rows
    ...     outer=lambda u, w, _: w**2, inner=lambda u, w, x: jnp.mean((w - u - x) ** 2) / 2
    ... )
    >>> method = SOBA(0.3, 0.3, 0.05, inner_sampler=FromLoader(loader, window=4))
    >>> solution = solve(problem, method, jnp.zeros(()), jnp.zeros(()), num_steps=200)
    >>> round(float(solution.u), 1), int(solution.state.samplers.inner.drawn)
    (-1.0, 200)
    """

    batches: Source
    window: int
    sharding: NamedSharding | None = eqx.field(static=True)

    def __init__(self, batches: Any, window: int = 32, sharding: NamedSharding | None = None):
        self.batches = batches if isinstance(batches, Source) else Source(batches)
        self.window, self.sharding = window, sharding

    def __check_init__(self):
        if self.window < 1:
            raise ValueError(f"`FromLoader` needs window >= 1, got {self.window}.")
        batches = self.batches.batches
        if not (callable(batches) or isinstance(batches, Iterable)):
            raise TypeError(
                "`FromLoader` needs an iterable of batches, or a function of the number of batches "
                f"drawn that returns an iterator, got {type(batches).__name__}."
            )
        if isinstance(batches, np.ndarray | jax.Array):
            raise TypeError(
                "`FromLoader` got one array; arrays in memory are the problem's `inner_data` or "
                "`outer_data`, with a sampler such as `Shuffled(batch_size)`."
            )

    def init(self, data, key):
        """Nothing drawn yet."""
        return _start(0)

    def draw(self, data, state):
        """Refused: the batches are on the host."""
        raise TypeError(
            "`FromLoader` hands out batches in `solve` only. For `run_chunk`, `algorithm.init` and "
            "checkpoints, open it with `Loaders(algorithm)` and use its `.algorithm`; in a loop over "
            "`algorithm.step`, put each batch into the problem's data and use `FullBatch()`."
        )


class Position(NamedTuple):
    """How many batches were drawn, and within a chunk how many are left on the device after that."""

    drawn: Int[Array, ""]
    left: Int[Array, ""]


class Loaded(AbstractSampler):
    """Batches on the device, those from `end - 2 window` to `end` of a loader, in a ring."""

    ring: PyTree[Array]
    origin: Int[Array, ""]
    end: Int[Array, ""]

    def init(self, data, key):
        """The position of the first batch."""
        return _start(self.origin)

    def draw(self, data, state):
        """The next batch; `left` is negative if it is not on the device."""
        size = jax.tree.leaves(self.ring)[0].shape[0]
        slot = (state.drawn - self.origin) % size
        batch = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, slot, keepdims=False), self.ring
        )
        drawn = state.drawn + 1
        return Batch(batch, None), Position(drawn, self.end - drawn)


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
                position = 0 if state is None else int(_position(state, name).drawn)
                self._feeds[name] = _Feed(name, sampler, position)
            if self._feeds and "auto" in [x for x in jax.tree.leaves(algorithm) if _is_text(x)]:
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
        came = [feed.advance(int(_position(state, n).drawn)) for n, feed in self._feeds.items()]
        return any(came)

    def close(self) -> None:
        """Stop reading."""
        for feed in self._feeds.values():
            feed.close()


def loaded_samplers(algorithm: Any, kind: type = Loaded) -> dict[str, Any]:
    """The samplers of this kind in an algorithm, by the name of their field."""
    leaves = jax.tree_util.tree_leaves_with_path(
        algorithm, is_leaf=lambda x: isinstance(x, FromLoader | Loaded)
    )
    return {path[-1].name: x for path, x in leaves if isinstance(x, kind)}


def sample_batches(problem: Any, algorithm: Any) -> tuple[Any, Any]:
    """What the objectives get as `batch`, for a look at shapes: all data, or a loader's batch.

    Raises:
        ValueError: a level has data and a loader as well.
    """
    loaded, batches = loaded_samplers(algorithm), []
    for name, data in zip(_SAMPLERS, (problem.outer_data, problem.inner_data), strict=True):
        if name in loaded and data is not None:
            raise ValueError(
                f"the batches of `{name}` come from a `FromLoader`, so the problem's "
                f"`{name.replace('sampler', 'data')}` must be None; leave out one of them."
            )
        batches.append(jax.tree.map(lambda x: x[0], loaded[name].ring) if name in loaded else data)
    return batches[0], batches[1]


def refuse_loader(sampler: AbstractSampler, method: str) -> None:
    """Refuse batches from the host where all the data are needed."""
    if isinstance(sampler, Loaded | FromLoader):
        raise ValueError(
            f"`{method}` looks at all data from time to time, and a `FromLoader` has no end to wait "
            "for. Give the data as arrays, or take a method that draws batches only, such as `SOBA`, "
            "`AmIGO`, `StocBiO`, `F2SA` or `MRBO`."
        )


def positions(state: Any) -> list[Position]:
    """The positions of the loaders in a state's samplers."""
    leaves = jax.tree.leaves(state.samplers, is_leaf=_is_position)
    return [x for x in leaves if _is_position(x)]


def missing(state: Any) -> Bool[Array, ""]:
    """Whether a step drew batches that are not on the device."""
    return jnp.any(jnp.stack([x.left < 0 for x in positions(state)]))


def as_many_again(before: Any, after: Any) -> Bool[Array, ""]:
    """Whether the device holds as many batches again as the step between two states drew."""
    pairs = zip(positions(before), positions(after), strict=True)
    return jnp.all(jnp.stack([y.left >= y.drawn - x.drawn for x, y in pairs]))


def at_rest(state: A) -> A:
    """The state as it leaves a chunk: what is on the device is no part of it."""
    return jax.tree.map(
        lambda x: Position(x.drawn, jnp.zeros_like(x.left)) if _is_position(x) else x,
        state,
        is_leaf=_is_position,
    )


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


def _is_position(x: Any) -> bool:
    return isinstance(x, Position)


def _start(drawn: Any) -> Position:
    return Position(jnp.asarray(drawn, jnp.int32), jnp.zeros((), jnp.int32))


def _position(state: Any, name: str) -> Position:
    at = state.samplers.outer if name == "outer_sampler" else state.samplers.inner
    if not _is_position(at):
        raise ValueError(
            f"`state` does not belong to this algorithm: its `{name}` is a `FromLoader`, and the "
            "state was made with another sampler. Go on with the algorithm that made it."
        )
    return at


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
