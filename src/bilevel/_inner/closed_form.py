"""`ClosedForm`: an inner solution that is known as a formula."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PyTree

from .._solution import RESULTS
from .base import AbstractInnerSolver, InnerStats


class ClosedForm(AbstractInnerSolver):
    """An inner solution that is known as a formula.

    Args:
        solution: `(u, batch) -> w*(u)`, differentiable in `u` if it is to be used with `ITD`
            (which is then exact).
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
