"""SRBA: SOBA with variance reduction by SARAH (Dagreou, Moreau, Vaiter and Ablin 2023)."""

from typing import NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PyTree

from .._sampler import AbstractSampler, FullBatch, Streams
from .auto_steps import StepSize, as_setting, at, follow, move_outer
from .base import AbstractAlgorithm, SamplerStates, advance, close_streams, count, start
from .directions import (
    OuterTerms,
    Point,
    at_both,
    begin,
    descend,
    inner_terms,
    joint_directions,
    make_info,
    outer_terms,
    recursive,
    streams_of,
)


class _Aux(NamedTuple):
    v: PyTree[Array]
    old: Point
    d: Point
    samplers: SamplerStates


class SRBA(AbstractAlgorithm):
    """SOBA whose three directions are exact every `period` steps and updated by differences between.

        D = d(z) on all data                        where step % period == 0
        D = d_B(z) - d_B(z-) + D-                   elsewhere, both on the same batch B; z- before z
        w+ = w - inner_step D_w,   v+ = v - linear_step D_v,   u+ = retract(u, -outer_step D_u)

    with the three directions d of `SOBA` (Dagreou et al. 2023, Algorithm 1). Departs from the paper in
    that v is not projected onto a ball.

    Args:
        inner_step, linear_step, outer_step: floats, or schedules of the number of steps made; as in
            `SOBA`.
        period: steps from one pass over all data to the next; of the order of the number of batches.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost a step: the oracles of `SOBA` at two points, or once on all data. Memory beyond `SOBA`'s: a
    point and a direction for each of the three variables.

    Raises:
        ValueError: `period` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    period: int = eqx.field(default=20, kw_only=True)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        if self.period < 1:
            raise ValueError(f"`SRBA` needs period >= 1, got {self.period}.")

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        begun = begin(self, problem, u0, w0, key, variance_reduced=True)
        z = Point(u0, w0, optax.tree.zeros_like(w0))
        return start(begun, _Aux(z.v, z, optax.tree.zeros_like(z), begun.samplers))

    def step(self, problem, state):
        """One joint step."""
        z = Point(state.u, state.w, state.aux.v)
        streams = streams_of(self, problem, state.aux.samplers)
        state = follow(problem, state, streams.inner)
        outer_batch, outer_stream = streams.outer.draw()
        inner_batch, inner_stream = streams.inner.draw()

        def directions(z: Point, outer_data, inner_data) -> tuple[Point, OuterTerms]:
            outer = outer_terms(problem, z.u, z.w, outer_data)
            inner = inner_terms(problem, *z, inner_data)
            return joint_directions(outer, inner), outer

        def exact():
            d, seen = directions(z, problem.outer_data, problem.inner_data)
            return d, seen, count(1, 1, 1, 1)

        def updated():
            (new, seen), (old, _) = at_both(
                lambda z: directions(z, outer_batch, inner_batch), z, state.aux.old
            )
            return recursive(new, old, state.aux.d, 0.0), seen, count(2, 2, 2, 2)

        d, outer, calls = jax.lax.cond(state.step % self.period == 0, exact, updated)

        inner_step = at(self.inner_step, state.step, state.control)
        v = descend(z.v, at(self.linear_step, state.step, state.control), d.v)
        aux = _Aux(v, z, d, close_streams(Streams(outer_stream, inner_stream)))
        move = move_outer(self.outer_step, problem, state, d.u)
        info = make_info(outer, d, calls, move.step / inner_step)
        return advance(state, move, descend(z.w, inner_step, d.w), aux, calls), info
