"""PZOBO: a partially zeroth-order method.

Sow, Ji and Liang (2022) [sow2022b][].
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from .._arrays import dot
from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_schedule, as_setting
from .base import AbstractAlgorithm, count, require_positive
from .directions import Directions
from .loops import sgd
from .turn import init_state, open_turn


class PZOBO(AbstractAlgorithm):
    """The response of the inner solution by finite differences along random directions; no Hessian.

        w+(u) = num_inner gradient steps on f(u, .) from w
        d_u = grad_u F(u, w+) + mean_q <(w+(u + radius e_q) - w+(u)) / radius, grad_w F(u, w+)> e_q
        u+ = retract(u, -outer_step d_u),   e_q standard normal

    with all inner loops on the same batches: Sow, Ji and Liang (2022), "On the convergence theory for
    Hessian-free bilevel algorithms", Algorithm 1 [sow2022b][]. The variance of d_u is that of its
    implicit part times (dim(u) + 1) / num_directions, so it is a method for few outer variables. It is
    of use where f has no second derivatives.

    Args:
        inner_step, outer_step, radius: numbers, or schedules of the number of steps made.
        num_inner: the number of inner steps per outer step.
        num_directions: how many e_q.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `linear_residual` is 0, since no linear system is solved. Cost per step: (num_directions + 1)
    num_inner + 1 inner gradients and an outer one. During a step it holds num_directions inner loops
    side by side; it keeps nothing beyond u and w.

    Raises:
        ValueError: `num_inner` or `num_directions` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    radius: StepSize = eqx.field(default=1e-2, converter=as_schedule)
    num_inner: int = 10
    num_directions: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_inner=self.num_inner, num_directions=self.num_directions)

    def init(self, problem, u0, w0, key):
        """Nothing but the samplers."""
        return init_state(self, problem, u0, w0, key, num_inner=self.num_inner)

    def step(self, problem, state):
        """One outer step."""
        turn = open_turn(self, problem, state)
        flat, unravel = ravel_pytree(state.u)
        radius = jnp.asarray(turn.now(self.radius)).astype(flat.dtype)
        w, turn_after = sgd(turn, state.u, state.w, self.num_inner)
        outer = turn.outer(state.u, w)

        def along(e: Array) -> Array:
            response, _ = sgd(turn, unravel(flat + radius * e), state.w, self.num_inner)
            return dot(optax.tree.sub(response, w), outer.w) / radius

        key = jr.fold_in(state.key, state.step)
        directions = jr.normal(key, (self.num_directions, flat.size), flat.dtype)
        slopes = jax.vmap(along)(directions)
        implicit = unravel(directions.T @ slopes / self.num_directions)
        d = Directions(
            optax.tree.add(outer.u, implicit), turn_after.inner_gradient(state.u, w), outer
        )
        return turn_after.close(
            d,
            w=w,
            aux=(),
            calls=count(1, (self.num_directions + 1) * self.num_inner + 1),
            linear_residual=jnp.zeros_like(outer.value),
        )
