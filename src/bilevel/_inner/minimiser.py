"""`MinimiserInner`: any optimistix minimiser."""

from typing import ClassVar

import jax.numpy as jnp
import optimistix as optx

from .._problem import BilevelProblem
from .base import AbstractInnerSolver, InnerStats, told


class MinimiserInner(AbstractInnerSolver):
    """Any optimistix minimiser for `min_w f(u, w)`, such as `optimistix.LBFGS(rtol=1e-6, atol=1e-9)`.

    Args:
        minimiser: the optimistix solver; it has its own tolerances and needs no step size.
        max_steps: the largest number of steps. A solve that reaches it ends with
            `RESULTS.inner_max_steps_reached`. The outer step does not fail then: under a warm start
            the next solve goes on from there. One that diverges ends with
            `RESULTS.inner_divergence`.

    One batch is drawn for the whole solve. `calls` counts the solver's steps, each of which
    evaluates `f` once and its gradient at most once. Error and memory are those of the minimiser.
    `ITD` refuses this solver, because the number of its steps is not fixed. Source: ours, as a
    wrapper of optimistix's minimisers.

    Raises:
        TypeError: the problem is a `FixedPointProblem`, which has no inner objective.
    """

    minimiser: optx.AbstractMinimiser
    max_steps: int = 256
    unrollable: ClassVar[bool] = False

    def init(self, problem, u, w):
        """No state: estimates of the curvature belong to one `u` and are built again for the next."""
        return ()

    def solve(self, problem, u, w, state, stream):
        """Minimise `f(u, .)` on one batch."""
        if not isinstance(problem, BilevelProblem):
            raise TypeError(
                "`MinimiserInner` minimises an inner objective, which a "
                f"`{type(problem).__name__}` does not have; use `GradientInner(optax.sgd(1.0), T)` "
                "to iterate its map."
            )
        batch, stream = stream.draw()
        solution = optx.minimise(
            lambda w, args: problem.inner(args[0], w, args[1]),
            self.minimiser,
            w,
            args=(u, batch),
            max_steps=self.max_steps,
            throw=False,
        )
        result = told(solution.result)
        calls = jnp.asarray(solution.stats["num_steps"], jnp.int32)
        return solution.value, state, stream, InnerStats(calls, result)
