"""Batches that come from the host: any Python iterable, read ahead while the steps are computed."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Int, PyTree

from ._sampler import AbstractSampler, Batch

A = TypeVar("A")
_SAMPLERS = ("outer_sampler", "inner_sampler")  # the fields of a method that hold samplers


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


def _is_position(x: Any) -> bool:
    return isinstance(x, Position)


def _start(drawn: Any) -> Position:
    return Position(jnp.asarray(drawn, jnp.int32), jnp.zeros((), jnp.int32))


def position_of(state: Any, name: str) -> Position:
    """The position of the loader in the sampler of this name.

    Raises:
        ValueError: the state has another sampler there.
    """
    at = state.samplers.outer if name == "outer_sampler" else state.samplers.inner
    if not _is_position(at):
        raise ValueError(
            f"`state` does not belong to this algorithm: its `{name}` is a `FromLoader`, and the "
            "state was made with another sampler. Go on with the algorithm that made it."
        )
    return at
