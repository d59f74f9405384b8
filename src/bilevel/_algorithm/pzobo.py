"""PZOBO: a partially zeroth-order method (Sow, Ji and Liang 2022)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._sampler import AbstractSampler, FullBatch, Stream, Streams
from .._settings import as_schedule
from .auto_steps import StepSize, as_setting, at, follow, move_outer
from .base import AbstractAlgorithm, advance, close_streams, count, start
from .directions import (
    Point,
    begin,
    inner_gradient,
    make_info,
    outer_terms,
    streams_of,
)
from .loops import sgd


class PZOBO(AbstractAlgorithm):
    """The response of the inner solution by finite differences along random directions; no Hessian.

        w+(u) = num_inner gradient steps on f(u, .) from w
        d_u = grad_u F(u, w+) + mean_q <(w+(u + radius e_q) - w+(u)) / radius, grad_w F(u, w+)> e_q
        u+ = retract(u, -outer_step d_u),   e_q standard normal

    all inner loops on the same batches (Sow, Ji & Liang 2022, Algorithm 1). The variance of d_u is
    that of its implicit part times (dim(u) + 1) / num_directions: a method for few outer variables,
    and of use where f has no second derivatives.

    Args:
        inner_step, outer_step, radius: floats, or schedules of the number of steps made.
        num_inner: inner steps an outer step.
        num_directions: how many e_q.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `linear_residual` is 0: no linear system is solved. Cost a step: (num_directions + 1) num_inner
    + 1 inner gradients, an outer one; memory of num_directions inner loops side by side.

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
        for name in ("num_inner", "num_directions"):
            if getattr(self, name) < 1:
                raise ValueError(f"`PZOBO` needs {name} >= 1, got {getattr(self, name)}.")

    def init(self, problem, u0, w0, key):
        """Nothing but the samplers."""
        begun = begin(self, problem, u0, w0, key)
        return start(begun, begun.samplers)

    def step(self, problem, state):
        """One outer step."""
        outer_stream, inner_stream = streams_of(self, problem, state.aux)
        state = follow(problem, state, inner_stream)
        inner_step = at(self.inner_step, state.step, state.control)
        outer_batch, outer_stream = outer_stream.draw()
        flat, unravel = ravel_pytree(state.u)
        radius = jnp.asarray(at(self.radius, state.step)).astype(flat.dtype)

        def inner_loop(u: PyTree[Array]) -> tuple[PyTree[Array], Stream]:
            return sgd(problem, u, state.w, inner_step, self.num_inner, inner_stream)

        w, inner_stream_next = inner_loop(state.u)
        outer = outer_terms(problem, state.u, w, outer_batch)

        def along(e: Array) -> Array:
            moved = optax.tree.sub(inner_loop(unravel(flat + radius * e))[0], w)
            return jnp.asarray(optax.tree.vdot(moved, outer.w)) / radius

        key = jr.fold_in(state.key, state.step)
        directions = jr.normal(key, (self.num_directions, flat.size), flat.dtype)
        slopes = jax.vmap(along)(directions)
        implicit = unravel(directions.T @ slopes / self.num_directions)
        d_u = optax.tree.add(outer.u, implicit)

        inner_batch, inner_stream_next = inner_stream_next.draw()
        residual = inner_gradient(problem, state.u, w, inner_batch)
        calls = count(1, (self.num_directions + 1) * self.num_inner + 1)
        move = move_outer(self.outer_step, problem, state, d_u)
        ratio = move.step / inner_step
        info = make_info(outer, Point(d_u, residual), calls, ratio, jnp.zeros_like(outer.value))
        samplers = close_streams(Streams(outer_stream, inner_stream_next))
        return advance(state, move, w, samplers, calls), info
