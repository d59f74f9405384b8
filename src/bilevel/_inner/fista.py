"""FISTA: accelerated iterations of a proximal gradient step, for non-smooth inner problems."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

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


class FISTA(AbstractInnerSolver):
    """The map of a proximal gradient step, iterated with momentum that restarts.

        w_{k+1} = map(u, y_k)
        t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2
        y_{k+1} = w_{k+1} + (t_k - 1) / t_{k+1} (w_{k+1} - w_k)
        t_{k+1} = 1,  y_{k+1} = w_{k+1}     where   <y_k - w_{k+1}, w_{k+1} - w_k> > 0

    (Beck & Teboulle 2009, with the restart of O'Donoghue & Candes 2015, section 3.2, by the gradient.)
    It stops where `||y_k - map(u, y_k)|| <= rtol ||w_{k+1}||`; as the map does not expand, the
    residual of `w_{k+1}` is no larger.

    Args:
        rtol: at least ten times the dtype's epsilon, which is taken in place of a smaller one.
        max_steps: after which it stops with `RESULTS.inner_max_steps_reached`.

    **Valid** for `map(u, w) = prox_{s g}(w - s grad h(w))` with h convex and 1 / s-smooth, g convex,
    as in `tasks.lasso` and `tasks.elastic_net`. The objective is within `2 |w_0 - w*|^2 / (s k^2)`
    of its minimum (without restarts), and once the support is identified, convergence is linear, at
    a rate that goes with the square root of the condition number on it; `GradientInner(optax.sgd(1.0),
    T)`, which is ISTA, goes with the condition number itself.

    One batch is drawn for the whole solve, and all data is what makes sense. `AID` differentiates
    at its end; `ITD`, which would have to go back through a loop of unknown length, refuses it (use
    ISTA there).

    Raises:
        TypeError: the problem is a `BilevelProblem`, which has no map.

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
        """No state: the momentum of one u is of no use at the next."""
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
            restart = jnp.asarray(optax.tree.vdot(residual, moved)) > 0
            t = jnp.where(restart, 1, (1 + jnp.sqrt(1 + 4 * s.t**2)) / 2)
            momentum = jnp.where(restart, 0, (s.t - 1) / t)
            y = jax.tree.map(lambda x, d: x + momentum.astype(x.dtype) * d, w, moved)
            done = jnp.asarray(optax.tree.norm(residual) <= rtol * optax.tree.norm(w))
            return _State(w, y, t, s.num_steps + 1, done)

        start = _State(w, w, jnp.ones((), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        end: Any = jax.lax.while_loop(
            lambda s: ~s.done & (s.num_steps < self.max_steps), step, start
        )
        result = RESULTS.where(end.done, RESULTS.successful, RESULTS.inner_max_steps_reached)
        return end.w, state, stream, InnerStats(end.num_steps, result)
