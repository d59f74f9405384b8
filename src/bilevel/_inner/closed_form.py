"""`ClosedForm`: an inner solution that is known as a formula."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PyTree

from .._solution import RESULTS
from .base import AbstractInnerSolver, InnerStats


class ClosedForm(AbstractInnerSolver):
    """An inner solution that is known as a formula, `w*(u) = solution(u, batch)`.

    Args:
        solution: `(u, batch) -> w*(u)`. It must be differentiable in `u` for `ITD`, which is then
            exact.

    The cost is that of the formula, which is evaluated on one batch per solve and counts as no
    oracle call. The formula is taken on trust: `inner_residual` shows whether it solves the inner
    problem. Source: ours.
    """

    solution: Callable[[PyTree, Any], PyTree]
    unrollable: ClassVar[bool] = True

    def init(self, problem, u, w):
        """No state."""
        return ()

    def solve(self, problem, u, w, state, stream):
        """Evaluate the formula on one batch; the starting point is not used."""
        batch, stream = stream.draw()
        stats = InnerStats(jnp.zeros((), jnp.int32), RESULTS.successful)
        return self.solution(u, batch), state, stream, stats
