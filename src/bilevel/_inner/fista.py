"""FISTA: accelerated iterations of a proximal gradient step, for non-smooth inner problems."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._arrays import dot
from .._problem import FixedPointProblem
from .._settings import as_data
from .._solution import RESULTS
from .base import AbstractInnerSolver, InnerStats


class _State(NamedTuple):
    w: PyTree[Array]
    y: PyTree[Array]
    t: Scalar
    num_steps: Int[Array, ""]
    done: Bool[Array, ""]
    finite: Bool[Array, ""]
    first: Scalar  # the residual of the start
    last: Scalar


class FISTA(AbstractInnerSolver):
    """FISTA: a proximal gradient step, iterated with momentum that restarts.

        w_{k+1} = map(u, y_k)
        t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2
        y_{k+1} = w_{k+1} + (t_k - 1) / t_{k+1} (w_{k+1} - w_k)
        t_{k+1} = 1,  y_{k+1} = w_{k+1}     where   <y_k - w_{k+1}, w_{k+1} - w_k> > 0

    The solver stops where `||y_k - map(u, y_k)|| <= rtol ||w_{k+1}||`. The map does not expand
    distances, so the residual of `w_{k+1}` is no larger. A map that does (its step is larger than
    1 / L) may run away: the solver then ends at the last w that is finite, or after `max_steps`, with
    `RESULTS.inner_divergence`.

    Args:
        rtol: the tolerance; a value below ten times the dtype's epsilon counts as that.
        max_steps: the largest number of steps. A solve that reaches it ends with
            `RESULTS.inner_max_steps_reached`.

    **Valid** for `map(u, w) = prox_{s g}(w - s grad h(w))` with g and h convex and h 1 / s-smooth,
    as in `tasks.lasso` and `tasks.elastic_net`. Error: without restarts the objective is within
    `2 ||w_0 - w*||^2 / (s k^2)` of its minimum after k steps. Once the support is identified,
    convergence is linear, and the number of steps goes with the square root of the condition number
    on the support. With ISTA, which is `GradientInner(optax.sgd(1.0), T)`, it goes with the
    condition number itself. Cost: one evaluation of the map per step. Memory: three vectors of the
    size of w.

    One batch is drawn for the whole solve, so use `FullBatch`. `AID` differentiates at the end of
    the solve. `ITD` refuses this solver, because it cannot go back through a loop of unknown
    length; use ISTA there.

    Raises:
        TypeError: the problem is a `BilevelProblem`, which has no map.
        ValueError: `max_steps` < 1.

    Source: Beck and Teboulle (2009), "A fast iterative shrinkage-thresholding algorithm for linear
    inverse problems" [beck2009][], with the restart by the gradient of O'Donoghue and Candès
    (2015), "Adaptive restart for accelerated gradient schemes", section 3.2 [odonoghue2015][].

    Soft thresholding solves `1/2 (w - 3)^2 + |w|`:

    >>> import bilevel, jax.numpy as jnp
    >>> problem = bilevel.FixedPointProblem(
    ...     outer=lambda u, w, _: w,
    ...     map=lambda u, w, _: jnp.maximum(w - 0.5 * (w - 3.0) - 0.5 * u, 0.0),
    ... )
    >>> stream = bilevel.Stream(bilevel.FullBatch(), None, ())
    >>> w, *_ = FISTA().solve(problem, jnp.array(1.0), jnp.array(0.0), (), stream)
    >>> round(float(w), 4)
    2.0
    """

    rtol: Float[np.ndarray | Array, "*batch"] = eqx.field(default=1e-10, converter=as_data)
    max_steps: int = 10_000
    unrollable: ClassVar[bool] = False

    def __check_init__(self):
        if self.max_steps < 1:
            raise ValueError(f"`FISTA` needs max_steps >= 1, got {self.max_steps}.")

    def init(self, problem, u, w):
        """No state: the momentum for one u does not help at the next."""
        return ()

    def solve(self, problem, u, w, state, stream):
        """Iterate on one batch until the tolerance is met."""
        if not isinstance(problem, FixedPointProblem):
            raise TypeError(
                "`FISTA` iterates the map of a `FixedPointProblem`, which a "
                f"`{type(problem).__name__}` does not have; use `GradientInner` or `MinimiserInner`."
            )
        batch, stream = stream.draw()
        dtype = jnp.result_type(*jax.tree.leaves(w))
        rtol = jnp.maximum(jnp.asarray(self.rtol, dtype), 10 * jnp.finfo(dtype).eps)

        def step(s: _State) -> _State:
            w = problem.map(u, s.y, batch)
            residual, moved = optax.tree.sub(s.y, w), optax.tree.sub(w, s.w)
            restart = dot(residual, moved) > 0
            t = jnp.where(restart, 1, (1 + jnp.sqrt(1 + 4 * s.t**2)) / 2)
            momentum = jnp.where(restart, 0, (s.t - 1) / t)
            y = jax.tree.map(lambda x, d: x + momentum.astype(x.dtype) * d, w, moved)
            size = jnp.asarray(optax.tree.norm(residual))
            finite = jnp.isfinite(size + optax.tree.norm(w))
            done = finite & (size <= rtol * optax.tree.norm(w))
            # What is not finite is not kept.
            w, y = (
                jax.tree.map(lambda x, old: jnp.where(finite, x, old), *xs)
                for xs in ((w, s.w), (y, s.y))
            )
            first = jnp.where(s.num_steps == 0, size, s.first)
            return _State(w, y, t, s.num_steps + 1, done, finite, first, size)

        zero, no = jnp.zeros((), dtype), jnp.zeros((), bool)
        start = _State(w, w, jnp.ones((), dtype), jnp.zeros((), jnp.int32), no, ~no, zero, zero)
        end: Any = jax.lax.while_loop(
            lambda s: ~s.done & s.finite & (s.num_steps < self.max_steps), step, start
        )
        result = RESULTS.where(end.done, RESULTS.successful, RESULTS.inner_max_steps_reached)
        away = ~end.finite | (~end.done & (end.last > end.first))
        result = RESULTS.where(away, RESULTS.inner_divergence, result)
        return end.w, state, stream, InnerStats(end.num_steps, result)
