"""SOBA: the single-loop method of Dagreou, Ablin, Vaiter and Moreau (2022)."""

from typing import NamedTuple

import equinox as eqx
import optax
from jaxtyping import Array, PyTree

from .._sampler import AbstractSampler, FullBatch, Streams
from .auto_steps import StepSize, as_setting, at, follow, move_outer
from .base import (
    AbstractAlgorithm,
    SamplerStates,
    advance,
    close_streams,
    count,
    start,
)
from .directions import (
    begin,
    descend,
    inner_terms,
    joint_directions,
    make_info,
    outer_terms,
    streams_of,
)


class _Aux(NamedTuple):
    v: PyTree[Array]
    samplers: SamplerStates


class SOBA(AbstractAlgorithm):
    """All three variables move at once, each along its own unbiased direction.

        d_w = grad_w f(u, w)                         w+ = w - inner_step * d_w
        d_v = H v - grad_w F(u, w)                   v+ = v - linear_step * d_v
        d_u = grad_u F(u, w) - (d2_uw f(u, w))^T v   u+ = retract(u, -outer_step * d_u)

    with H = d2_ww f(u, w) and the directions at the same point and batches (Dagreou et al. 2022,
    Algorithm 1 with the directions (3)-(5) of their paper; there `v` has the opposite sign).

    Args:
        inner_step, linear_step: steps for `w` and `v`; below 2 / L, with L the largest eigenvalue
            of H *on a batch*.
        outer_step: step for `u`. The ratio outer_step / inner_step decides whether `u` follows
            the bilevel problem or runs ahead of `w`; on the simplex, running ahead makes the
            weights sparse (Ivanova & Ablin, section 3).
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `d_u` is biased while `v` and `w` move towards their targets: look at all three residuals. Cost
    a step: one outer gradient, and one forward-over-reverse pass that gives the inner gradient, the
    Hessian-vector and the cross product together.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        begun = begin(self, problem, u0, w0, key)
        return start(begun, _Aux(optax.tree.zeros_like(w0), begun.samplers))

    def step(self, problem, state):
        """One joint step."""
        u, w, v = state.u, state.w, state.aux.v
        streams = streams_of(self, problem, state.aux.samplers)
        state = follow(problem, state, streams.inner)
        outer_batch, outer_stream = streams.outer.draw()
        inner_batch, inner_stream = streams.inner.draw()

        outer = outer_terms(problem, u, w, outer_batch)
        inner = inner_terms(problem, u, w, v, inner_batch)
        d = joint_directions(outer, inner)

        inner_step = at(self.inner_step, state.step, state.control)
        move = move_outer(self.outer_step, problem, state, d.u)
        info = make_info(outer, d, count(1, 1, 1, 1), move.step / inner_step)
        aux = _Aux(
            v=descend(v, at(self.linear_step, state.step, state.control), d.v),
            samplers=close_streams(Streams(outer_stream, inner_stream)),
        )
        w = descend(w, inner_step, d.w)
        return advance(state, move, w, aux, info.calls), info
