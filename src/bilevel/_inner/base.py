"""The contract of an inner solver."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import Array, Int, PyTree, Scalar

from .._problem import Problem
from .._sampler import FullBatch, Stream
from .._solution import RESULTS


class InnerStats(NamedTuple):
    """What an inner solve cost and how it ended.

    `calls` counts evaluations of f with its gradient, `products` counts products with the inner
    Hessian. `outer_calls` counts evaluations of F with its gradient, by a solver that uses the
    outer objective as well.
    """

    calls: Int[Array, ""]
    result: RESULTS
    outer_calls: Int[Array, ""] | int = 0
    products: Int[Array, ""] | int = 0


Scan = Callable[[Callable, Any, Any, int], tuple[Any, Any]]
"""As `jax.lax.scan`, with the number of steps."""

NOISE = 1e3  # by which a residual may grow from one batch to another


def ended(
    first: Scalar, last: Scalar, start: PyTree[Array], end: PyTree[Array], stream: Stream
) -> RESULTS:
    """How a solve of a fixed number of steps ended, from the norms of its first and last residual.

    It is a failure if the residual grew, by any factor on all data and a thousandfold on batches,
    while w moved by more than rounding, or if it is not finite.
    """
    first, last, start, end = jax.lax.stop_gradient((first, last, start, end))
    factor = 1.0 if isinstance(stream.sampler, FullBatch) else NOISE
    size, moved = (jnp.asarray(optax.tree.norm(x)) for x in (end, optax.tree.sub(end, start)))
    moves = moved > float(jnp.finfo(size.dtype).eps) ** 0.5 * size
    failed = ((last > factor * first) & moves) | ~jnp.isfinite(last)
    return RESULTS.where(failed, RESULTS.inner_divergence, RESULTS.successful)


def told(result: optx.RESULTS) -> RESULTS:
    """How a solve by optimistix ended."""
    ours = RESULTS.where(
        result == optx.RESULTS.successful, RESULTS.successful, RESULTS.inner_divergence
    )
    exhausted = (result == optx.RESULTS.max_steps_reached) | (
        result == optx.RESULTS.nonlinear_max_steps_reached
    )
    return RESULTS.where(exhausted, RESULTS.inner_max_steps_reached, ours)


class AbstractInnerSolver(eqx.Module):
    """Approximates `w*(u) = argmin_w f(u, w)` from a starting point.

    `unrollable` says whether `solve` may be differentiated by running through its steps, which is
    what `ITD` does.
    """

    unrollable: ClassVar[bool]

    @abc.abstractmethod
    def init(self, problem: Problem, u: PyTree[Array], w: PyTree[Array]) -> Any:
        """The solver's state before its first call, a pytree of arrays."""

    @abc.abstractmethod
    def solve(
        self,
        problem: Problem,
        u: PyTree[Array],
        w: PyTree[Array],
        state: Any,
        stream: Stream,
    ) -> tuple[PyTree[Array], Any, Stream, InnerStats]:
        """`(w, state, stream, stats)` after solving from `w`, on batches drawn from `stream`."""


class AbstractStepInner(AbstractInnerSolver):
    """An inner solver that takes `num_steps` steps in one loop."""

    @abc.abstractmethod
    def solve_by(
        self,
        scan: Scan,
        problem: Problem,
        u: PyTree[Array],
        w: PyTree[Array],
        state: Any,
        stream: Stream,
    ) -> tuple[PyTree[Array], Any, Stream, InnerStats]:
        """`solve`, whose loop over the steps is `scan`: it decides what a backward pass keeps."""

    def solve(self, problem, u, w, state, stream):
        """`num_steps` steps."""
        return self.solve_by(jax.lax.scan, problem, u, w, state, stream)
