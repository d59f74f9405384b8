"""VRBO: variance reduction by SARAH in two loops (Yang, Ji and Liang 2021)."""

from typing import NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from .._sampler import AbstractSampler, FullBatch, Stream
from .auto_steps import StepSize, as_setting, at, follow, move_outer, series_step
from .base import AbstractAlgorithm, SamplerStates, advance, close_streams, count, start
from .directions import (
    Point,
    at_both,
    begin,
    descend,
    inner_terms,
    make_info,
    outer_terms,
    recursive,
    streams_of,
)
from .loops import neumann


class _Aux(NamedTuple):
    d: Point
    samplers: SamplerStates


class VRBO(AbstractAlgorithm):
    """One outer step, then inner steps along which both directions are updated by differences.

        D = d(u, w) on all data                       where step % period == 0
        u+ = retract(u, -outer_step D_u)
        num_inner times:  D <- d_B(u+, w) - d_B(z-) + D,   w <- w - inner_step D_w
        d = (grad_u F - (d2_uw f)^T v, grad_w f),   v from K terms of the Neumann series

    z- is the point at which D was last updated; both d_B are taken on the same batches (Yang, Ji &
    Liang 2021, Algorithm 2).

    Args:
        inner_step, linear_step, outer_step: floats, or schedules of the number of steps made; the
            linear step is that of the series.
        period: outer steps from one pass over all data to the next.
        num_inner: inner steps an outer step.
        num_terms: K.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `linear_residual` is that of v on the last inner batch. Cost a step: num_inner times one outer and
    K inner batches, with the oracles of `MRBO` at two points; every `period` steps once all data with
    K - 1 products more. Memory beyond w and u: one direction for each and a copy of the point.

    Raises:
        ValueError: `period`, `num_inner` or `num_terms` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    period: int = eqx.field(default=20, kw_only=True)
    num_inner: int = 3
    num_terms: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        for name in ("period", "num_inner", "num_terms"):
            if getattr(self, name) < 1:
                raise ValueError(f"`VRBO` needs {name} >= 1, got {getattr(self, name)}.")

    def init(self, problem, u0, w0, key):
        """No direction yet."""
        begun = begin(self, problem, u0, w0, key, variance_reduced=True)
        return start(begun, _Aux(optax.tree.zeros_like(Point(u0, w0)), begun.samplers))

    def step(self, problem, state):
        """One outer step and its inner loop."""
        z = Point(state.u, state.w)
        streams = streams_of(self, problem, state.aux.samplers)
        state = follow(problem, state, streams.inner)
        inner_step = at(self.inner_step, state.step, state.control)
        linear_step = series_step(self.linear_step, state.step, state.control)

        def directions(z: Point, outer_data, inner_data, more: Stream):
            outer = outer_terms(problem, z.u, z.w, outer_data)
            v, following = neumann(problem, z, outer.w, linear_step, self.num_terms - 1, more)
            inner = inner_terms(problem, z.u, z.w, v, inner_data)
            residual = optax.tree.norm(optax.tree.sub(inner.product, outer.w))
            d = Point(optax.tree.sub(outer.u, inner.cross), inner.residual)
            return d, (outer, residual, following.state)

        def exact():
            full = Stream(FullBatch(), problem.inner_data, ())
            return directions(z, problem.outer_data, problem.inner_data, full)[0]

        restart = state.step % self.period == 0
        d = jax.lax.cond(restart, exact, lambda: state.aux.d)
        move = move_outer(self.outer_step, problem, state, d.u)
        u = move.u

        def inner_loop(carry: tuple[Point, Point, PyTree, SamplerStates], _: None):
            old, d, w, draws = carry
            outer_stream, inner_stream = streams_of(self, problem, draws)
            outer_batch, outer_stream = outer_stream.draw()
            inner_batch, inner_stream = inner_stream.draw()
            (new, seen), (previous, _) = at_both(
                lambda z: directions(z, outer_batch, inner_batch, inner_stream), Point(u, w), old
            )
            outer, residual, inner_draws = seen
            d = recursive(new, previous, d, 0.0)
            following = SamplerStates(outer_stream.state, inner_draws)
            carry = (Point(u, w), d, descend(w, inner_step, d.w), following)
            return carry, (outer, residual)

        first = (z, d, z.w, close_streams(streams))
        (_, last, w, samplers), seen = jax.lax.scan(inner_loop, first, length=self.num_inner)
        outer, residual = jax.tree.map(lambda x: x[-1], seen)

        pairs = 2 * self.num_inner
        calls = jax.tree.map(
            lambda batches, full: batches + restart.astype(full.dtype) * full,
            count(pairs, pairs, pairs * self.num_terms, pairs),
            count(1, 1, self.num_terms - 1, 1),
        )
        info = make_info(outer, Point(d.u, last.w), calls, move.step / inner_step, residual)
        return advance(state, move, w, _Aux(last, samplers), calls), info
