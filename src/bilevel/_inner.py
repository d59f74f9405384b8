"""Inner solvers: from an outer variable to (nearly) the inner solution."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import Array, Int, PyTree

from ._problem import BilevelProblem, Problem
from ._sampler import Stream
from ._solution import RESULTS


class InnerStats(NamedTuple):
    """What an inner solve cost (calls of `f` with its gradient) and how it ended."""

    calls: Int[Array, ""]
    result: RESULTS


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


class GradientInner(AbstractInnerSolver):
    """A fixed number of steps of any optax transformation.

        w_{k+1} = w_k + tx.update(grad_w f(u, w_k, batch_k)),   k = 0 .. num_steps - 1

    and of a `FixedPointProblem` with `w - map(u, w)` in place of the gradient, so that
    `optax.sgd(1.0)` iterates its map.

    Args:
        tx: an optax gradient transformation, such as `optax.sgd(0.1)`; its state is kept from one
            call to the next under a warm start.
        num_steps: how many steps, >= 1. Each draws one batch and costs one inner gradient.

    An optax transformation is compiled in as it is, so build it once; to change its step size
    without compiling anew, wrap it in `optax.inject_hyperparams`, which moves the step size into
    the state.

    Raises:
        ValueError: `num_steps` < 1.
    """

    tx: optax.GradientTransformation
    num_steps: int
    unrollable: ClassVar[bool] = True

    def __check_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"`GradientInner` needs num_steps >= 1, got {self.num_steps}.")

    def init(self, problem, u, w):
        """The optax state."""
        return self.tx.init(w)

    def solve(self, problem, u, w, state, stream):
        """`num_steps` steps."""

        def step(carry, _):
            w, tx_state, draws = carry
            batch, following = eqx.tree_at(lambda s: s.state, stream, draws).draw()
            residual = problem.residual(u, w, batch)
            updates, tx_state = self.tx.update(residual, tx_state, w)
            return (optax.apply_updates(w, updates), tx_state, following.state), None

        (w, state, draws), _ = jax.lax.scan(step, (w, state, stream.state), length=self.num_steps)
        stats = InnerStats(jnp.full((), self.num_steps, jnp.int32), RESULTS.successful)
        return w, state, Stream(stream.sampler, stream.data, draws), stats


class MinimiserInner(AbstractInnerSolver):
    """Any optimistix minimiser, such as `optimistix.LBFGS(rtol=1e-6, atol=1e-9)`.

    Args:
        minimiser: the optimistix solver; it has its own tolerances and needs no step size.
        max_steps: after which it stops with `RESULTS.inner_max_steps_reached`. That is no failure
            of an outer step: a warm-started solve goes on from there at the next one.

    One batch is drawn for the whole solve. `calls` counts the solver's steps, each of which
    evaluates `f` once and its gradient at most once.
    """

    minimiser: optx.AbstractMinimiser
    max_steps: int = 256
    unrollable: ClassVar[bool] = False

    def init(self, problem, u, w):
        """No state: curvature estimates belong to one `u` and are built anew."""
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
        result = RESULTS.where(
            solution.result == optx.RESULTS.successful,
            RESULTS.successful,
            RESULTS.inner_max_steps_reached,
        )
        calls = jnp.asarray(solution.stats["num_steps"], jnp.int32)
        return solution.value, state, stream, InnerStats(calls, result)


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
