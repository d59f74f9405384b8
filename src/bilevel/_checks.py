"""What `solve` refuses before it runs, and while it is traced."""

import contextlib
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ._algorithm.base import AbstractAlgorithm, State
from ._callback import AbstractCallback
from ._geometry import AbstractGeometry
from ._loader import sample_batches
from ._pinned import compiled
from ._problem import BilevelProblem, FixedPointProblem, Problem
from ._variables import Uniform, as_arrays

UNDER_TRANSFORMATION = (
    "`solve` runs on the host and cannot be called under jax.jit, grad or vmap, nor with "
    "objectives that close over a variable being traced. Inside a transformation use "
    "`algorithm.init` and `algorithm.step` in a `lax.scan`, or `implicit_gradient`."
)


def any_tracer(tree: Any) -> bool:
    """Whether jax is tracing a leaf."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


@contextlib.contextmanager
def memory_of(algorithm: AbstractAlgorithm) -> Iterator[None]:
    """Say in words that a step of the algorithm needs more memory than there is."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")):
            raise
        raise MemoryError(
            f"a step of `{type(algorithm).__name__}` needs more memory than there is ({error}). Draw "
            "smaller batches (`inner_sampler=`, `outer_sampler=`), choose an estimator that keeps "
            "fewer vectors (`ITD('checkpointed')`, or `AID(CG())` in place of a direct solver), or "
            "use float32. The last chunk's state is in your `Checkpoint`, if you passed one."
        ) from error


def check_call(
    problem: Problem, u0: PyTree, w0: PyTree, num_steps: int, trace_every: int, chunk_size: int
) -> tuple[Uniform, float]:
    """Refuse a wrong call; the problem in the form that the methods see, and the norm of (u, w)."""
    for name, value in [
        ("num_steps", num_steps),
        ("trace_every", trace_every),
        ("chunk_size", chunk_size),
    ]:
        if not isinstance(value, numbers.Integral):
            raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    # Under jit, new arrays are tracers too.
    if any_tracer((u0, w0, problem, jnp.zeros(()))):
        raise TypeError(UNDER_TRANSFORMATION)
    given = as_arrays(problem, u0, w0, ("u0", "w0"))
    found = _distance_and_norms(given.problem.geometry, given.u, given.w)
    distance, size, size_of_both, all_finite = (float(x) for x in found)
    if not all_finite:
        raise ValueError(
            "`u0` and `w0` must be finite, and an entry is NaN or infinite; "
            "`jax.tree.map(jnp.isfinite, (u0, w0))` shows which."
        )
    if not distance <= max(1e-3 * size, 1e-6):  # entries may be tiny
        raise ValueError(
            f"`u0` is not in the set of `{type(problem.geometry).__name__}`: the nearest point of "
            f"it is {distance:.3g} away. Start from a point of the set, such as "
            "`problem.geometry.project(u0)`."
        )
    return given, size_of_both


def check_kinds(problem: Any, algorithm: Any, callbacks: Any) -> None:
    """Refuse what is no problem, algorithm or callback, before a step is made that would be lost."""
    if not isinstance(problem, BilevelProblem | FixedPointProblem):
        raise TypeError(
            "`problem` must be a `BilevelProblem` or a `FixedPointProblem`, got "
            f"{type(problem).__name__}."
        )
    if not isinstance(algorithm, AbstractAlgorithm):
        is_class = isinstance(algorithm, type)
        got = f"the class {algorithm.__name__}" if is_class else type(algorithm).__name__
        raise TypeError(f"`algorithm` must be an algorithm such as `SOBA()`, got {got}.")
    if not isinstance(callbacks, Sequence):
        raise TypeError(
            f"`callbacks` must be a list of callbacks, got {type(callbacks).__name__}; pass a single "
            "one as `callbacks=[callback]`."
        )
    for k, callback in enumerate(callbacks):
        if not isinstance(callback, AbstractCallback):
            raise TypeError(
                f"`callbacks[{k}]` must be an `AbstractCallback`, got {callback!r}. A function of a "
                "chunk, which returns True to stop, is passed as `StopWhen(function)`."
            )


@compiled
def _distance_and_norms(
    geometry: AbstractGeometry, u: PyTree[Array], w: PyTree[Array]
) -> tuple[Array, ...]:
    distance = optax.tree.norm(optax.tree.sub(geometry.project(u), u))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((u, w))]))
    return distance, optax.tree.norm(u), optax.tree.norm((u, w)), finite


def check_objectives(problem: Problem, algorithm: AbstractAlgorithm, state: State) -> None:
    """Refuse objectives that are no scalars, and a map whose value is not like w."""
    outer_data, inner_data = sample_batches(problem, algorithm)
    scalars = [("outer", problem.outer, outer_data)]
    if isinstance(problem, BilevelProblem):
        scalars.append(("inner", problem.inner, inner_data))
    for name, objective, data in scalars:
        value = eqx.filter_eval_shape(objective, state.u, state.w, data)
        if not (hasattr(value, "shape") and value.shape == ()):
            raise ValueError(
                f"the {name} objective must return a scalar, got "
                f"{getattr(value, 'shape', type(value).__name__)}; take a mean or a sum."
            )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"the {name} objective must return a floating-point number, got {value.dtype}; it has "
                "no derivative otherwise."
            )
    if isinstance(problem, FixedPointProblem):
        image = eqx.filter_eval_shape(problem.map, state.u, state.w, inner_data)
        got, expected = (jax.tree.map(lambda x: x.shape, tree) for tree in (image, state.w))
        if got != expected:
            raise ValueError(
                f"the map of a `FixedPointProblem` must return a pytree like w, got shapes {got} "
                f"for w of {expected}."
            )


def check_fits(
    state: Any, problem: Problem, algorithm: AbstractAlgorithm, u0: PyTree, w0: PyTree
) -> None:
    """Refuse a state of another problem or algorithm, and what is no state."""
    if not isinstance(state, State):
        raise TypeError(
            f"`state` must be a `State`, such as `solution.state`, got {type(state).__name__}."
        )
    for name, ours, theirs in [("u", state.u, u0), ("w", state.w, w0)]:
        if jax.tree.map(jnp.shape, ours) != jax.tree.map(jnp.shape, theirs):
            raise ValueError(
                f"`state` does not belong to this problem: its `{name}` has shapes "
                f"{jax.tree.map(jnp.shape, ours)}, `{name}0` has {jax.tree.map(jnp.shape, theirs)}."
            )
    own = eqx.filter_eval_shape(algorithm.init, problem, u0, w0, state.key)
    ours, theirs = (jax.tree.map(lambda x: (x.shape, str(x.dtype)), x) for x in (state, own))
    if ours != theirs:
        raise ValueError(
            f"`state` does not belong to this algorithm: it was made by another method than this "
            f"`{type(algorithm).__name__}`, by one with other solvers or samplers, or in another "
            "dtype. Go on with the algorithm that made it, or start anew from its `u` and `w`."
        )
