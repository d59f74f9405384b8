"""BOME: bilevel optimisation made easy (Ye, Liu, Wright, Stone and Liu 2022)."""

import equinox as eqx
import jax.numpy as jnp
import optax

from .._sampler import AbstractSampler, FullBatch, Streams
from .._settings import as_schedule
from .auto_steps import StepSize, as_setting, at, follow, move_outer
from .base import AbstractAlgorithm, advance, close_streams, count, start
from .directions import (
    Point,
    begin,
    descend,
    inner_gradients,
    make_info,
    outer_terms,
    streams_of,
)
from .loops import sgd


class BOME(AbstractAlgorithm):
    """A step on (u, w) along grad F, corrected so that the inner value gap shrinks; no Hessian.

        x = num_inner gradient steps on f(u, .) from w,   q(u, w) = f(u, w) - f(u, x), x held fixed
        multiplier = max(eta |grad q|^2 - <grad F, grad q>, 0) / |grad q|^2
        d = grad F + multiplier grad q
        u+ = retract(u, -outer_step d_u),   w+ = w - outer_step d_w

    so that `<d, grad q> >= eta |grad q|^2` (Ye et al. 2022, Algorithm 1). It asks for no unique
    inner solution.

    Args:
        inner_step: of the steps from w to x; a float, or a schedule of the number of steps made.
        outer_step: of the step on u and w; the same. With "auto" w moves by at most
            `inner_step / (1 + multiplier)`.
        eta: how fast the gap is made to shrink, > 0.
        num_inner: steps from w to x.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `inner_residual` is `|grad_w f|` at x, `linear_residual` is `|d_w|`. Cost a step: num_inner + 2
    inner gradients and an outer one; it keeps nothing beyond u and w.

    Raises:
        ValueError: `num_inner` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    eta: StepSize = eqx.field(default=0.5, converter=as_schedule)
    num_inner: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        if self.num_inner < 1:
            raise ValueError(f"`BOME` needs num_inner >= 1, got {self.num_inner}.")

    def init(self, problem, u0, w0, key):
        """Nothing but the samplers."""
        begun = begin(self, problem, u0, w0, key)
        return start(begun, begun.samplers)

    def step(self, problem, state):
        """One step on u and w."""
        u, w = state.u, state.w
        outer_stream, inner_stream = streams_of(self, problem, state.aux)
        state = follow(problem, state, inner_stream)
        inner_step = at(self.inner_step, state.step, state.control)
        x, inner_stream = sgd(problem, u, w, inner_step, self.num_inner, inner_stream)
        inner_batch, inner_stream = inner_stream.draw()
        outer_batch, outer_stream = outer_stream.draw()

        outer = outer_terms(problem, u, w, outer_batch)
        at_w, at_x = (inner_gradients(problem, u, y, inner_batch) for y in (w, x))
        gap = (optax.tree.sub(at_w[0], at_x[0]), at_w[1])
        size = jnp.asarray(optax.tree.norm(gap, squared=True))
        along = jnp.asarray(optax.tree.vdot((outer.u, outer.w), gap))
        eta = jnp.asarray(at(self.eta, state.step)).astype(size.dtype)
        multiplier = jnp.where(
            size > 0, jnp.maximum(eta - along / jnp.where(size > 0, size, 1), 0), 0
        )
        d_u, d_w = descend((outer.u, outer.w), -multiplier, gap)

        calls = count(1, self.num_inner + 2)
        move = move_outer(self.outer_step, problem, state, d_u)
        ratio = move.step / inner_step
        info = make_info(outer, Point(d_u, at_x[1]), calls, ratio, optax.tree.norm(d_w))
        samplers = close_streams(Streams(outer_stream, inner_stream))
        w_step = move.step
        if isinstance(
            self.outer_step, str
        ):  # made for u; the curvature in w is about 1 + multiplier
            w_step = jnp.minimum(w_step, inner_step / (1 + multiplier))
        return advance(state, move, descend(w, w_step, d_w), samplers, calls), info
