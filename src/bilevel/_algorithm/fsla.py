"""FSLA: a fully single loop with momentum on the outer direction (Li, Gu and Huang 2022)."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._sampler import AbstractSampler, FullBatch, Streams
from .._settings import as_schedule
from .auto_steps import StepSize, as_setting, at, follow, move_outer
from .base import AbstractAlgorithm, SamplerStates, advance, close_streams, count, start
from .directions import (
    OuterTerms,
    Point,
    at_both,
    begin,
    descend,
    inner_gradient,
    inner_terms,
    make_info,
    outer_terms,
    recursive,
    streams_of,
)


class _Aux(NamedTuple):
    v: PyTree[Array]
    u_old: PyTree[Array]
    direction: PyTree[Array]
    samplers: SamplerStates


class FSLA(AbstractAlgorithm):
    """One step on w, then on v, then on u, each at the newest point, with momentum on u.

        w+ = w - inner_step grad_w f(u, w)
        v+ = v - linear_step (H(u, w+) v - grad_w F(u, w+))
        p(u, w, v) = grad_u F(u, w) - (d2_uw f(u, w))^T v
        D+ = p(u, w+, v+) + (1 - momentum) (D - p(u-, w, v))      u- the outer point before
        u+ = retract(u, -outer_step D+)

    (Li, Gu & Huang 2022, Algorithm 1.) Each p is taken on the same batches at both points; the first D
    is p.

    Args:
        inner_step, linear_step, outer_step, momentum: floats, or schedules of the number of steps
            made; as in `SOBA`. The paper takes steps and momentum of the order of 1 / sqrt(step).
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost a step: three inner and two outer batches; an inner gradient, a Hessian-vector product, an
    outer gradient for v, and an outer gradient and a cross product at each of two points. Memory
    beyond `SOBA`'s: two vectors like u.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    momentum: StepSize = eqx.field(default=0.1, converter=as_schedule)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        begun = begin(self, problem, u0, w0, key)
        v0, d0 = optax.tree.zeros_like(w0), optax.tree.zeros_like(u0)
        return start(begun, _Aux(v0, u0, d0, begun.samplers))

    def step(self, problem, state):
        """One step on each variable."""
        u, w, v = state.u, state.w, state.aux.v
        outer_stream, inner_stream = streams_of(self, problem, state.aux.samplers)
        state = follow(problem, state, inner_stream)
        first, inner_stream = inner_stream.draw()
        second, inner_stream = inner_stream.draw()
        third, inner_stream = inner_stream.draw()
        outer_second, outer_stream = outer_stream.draw()
        outer_third, outer_stream = outer_stream.draw()

        inner_step = at(self.inner_step, state.step, state.control)
        d_w = inner_gradient(problem, u, w, first)
        w_next = descend(w, inner_step, d_w)

        product = inner_terms(problem, u, w_next, v, second).product
        d_v = optax.tree.sub(product, outer_terms(problem, u, w_next, outer_second).w)
        v_next = descend(v, at(self.linear_step, state.step, state.control), d_v)

        def hypergradient(z: Point) -> tuple[PyTree[Array], OuterTerms]:
            outer = outer_terms(problem, z.u, z.w, outer_third)
            return optax.tree.sub(outer.u, inner_terms(problem, *z, third).cross), outer

        (new, outer), (old, _) = at_both(
            hypergradient, Point(u, w_next, v_next), Point(state.aux.u_old, w, v)
        )
        momentum = jnp.where(state.step == 0, 1.0, at(self.momentum, state.step))
        direction = recursive(new, old, state.aux.direction, momentum)

        samplers = close_streams(Streams(outer_stream, inner_stream))
        aux = _Aux(v_next, u, direction, samplers)
        d = Point(direction, d_w, d_v)
        move = move_outer(self.outer_step, problem, state, direction)
        info = make_info(outer, d, count(3, 1, 1, 2), move.step / inner_step)
        return advance(state, move, w_next, aux, info.calls), info
