"""The contract of an inner solver."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
from jaxtyping import Array, Int, PyTree

from .._problem import Problem
from .._sampler import Stream
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
