"""PDBO: a primal-dual method for several inner minimisers (Sow, Ji, Guan and Liang 2022)."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Scalar

from .._sampler import AbstractSampler, FullBatch, Streams
from .._settings import as_schedule
from .auto_steps import StepSize, as_setting, at, follow, move_outer
from .base import AbstractAlgorithm, SamplerStates, advance, close_streams, count, start
from .directions import (
    Point,
    begin,
    descend,
    make_info,
    objective,
    outer_terms,
    streams_of,
)
from .loops import sgd


class _Aux(NamedTuple):
    multiplier: Scalar
    gap: Scalar  # of the step before
    samplers: SamplerStates


class PDBO(AbstractAlgorithm):
    """`min F(u, w)` over u and w subject to `f(u, w) - min_x f(u, x) <= delta`; no Hessian.

        x = num_inner gradient steps on f(u, .) from w,   gap = f(u, w) - f(u, x) - delta
        s = (gap + extrapolation (gap - the gap of the step before)) / delta
        multiplier <- multiplier + dual_step (1 + multiplier) clip(s, -1, 1), at least 0 and at most
                      max_multiplier
        d_u = grad_u F(u, w) + multiplier (grad_u f(u, w) - grad_u f(u, x))
        d_w = grad_w F(u, w) + multiplier grad_w f(u, w)
        u+ = retract(u, -outer_step d_u),   w+ = w - inner_step / (1 + multiplier) d_w

    A step down the Lagrangian `F + multiplier gap` in (u, w) after one up in the multiplier (Sow et
    al. 2022, PDBO; extrapolation of the constraint as in Boob, Deng & Lan 2022). It asks for no unique
    inner solution: among several, w goes to where F is small. `ValueFunctionPenalty` is told its
    multiplier, this one finds it; what it is told is how far above its minimum f may stay.

    The equations follow the outline of Sow et al.; they were not compared with the pseudo-code. Ours
    are: the multiplier's step is relative to `1 + multiplier` and to delta, and bounded, so that one
    serves many scales of F and f; w's is divided by `1 + multiplier`, so that one inner step serves
    both; x starts at w; f is not smoothed; w is free.

    Args:
        inner_step, outer_step: floats, or schedules of the number of steps made.
        dual_step: the same. The multiplier moves by at most `dual_step (1 + multiplier)` a step.
        delta: the same, in units of f, > 0. With mu the smallest positive curvature of f, w ends
            within `sqrt(2 delta / mu)` of an inner solution, and the multiplier is at most
            `|grad_w F| / sqrt(2 mu delta)`.
        max_multiplier: the same. Where it is reached, f stays further than delta above its minimum.
        extrapolation: the same, in [0, 1]; 1 is the theory's.
        first_multiplier: where the multiplier starts.
        num_inner: steps from w to x.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Valid where F and the gap are convex in (u, w), and F has a curvature in w of less than
    `2 + multiplier` times f's largest, at the first multiplier too. Of w's distance from the inner
    solutions x keeps `(1 - mu / L)^num_inner`.

    `inner_residual` is `|grad_w f|` at x, `linear_residual` is the length of d_w and of the
    multiplier's step together; `state.aux.multiplier` is the multiplier. Cost a step: num_inner + 2
    inner gradients and an outer one; it keeps two numbers.

    Raises:
        ValueError: `num_inner` < 1; `delta` <= 0.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    dual_step: StepSize = eqx.field(default=0.03, converter=as_schedule)
    delta: StepSize = eqx.field(default=1e-3, converter=as_schedule)
    max_multiplier: StepSize = eqx.field(default=1e3, converter=as_schedule)
    extrapolation: StepSize = eqx.field(default=0.0, converter=as_schedule)
    first_multiplier: StepSize = eqx.field(default=10.0, converter=as_schedule)
    num_inner: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        if self.num_inner < 1:
            raise ValueError(f"`PDBO` needs num_inner >= 1, got {self.num_inner}.")
        if isinstance(self.delta, np.ndarray) and not np.all(self.delta > 0):
            raise ValueError(
                f"`PDBO` needs delta > 0, got {self.delta}: with 0 no multiplier is large enough."
            )

    def init(self, problem, u0, w0, key):
        """The first multiplier and the samplers."""
        begun = begin(self, problem, u0, w0, key)
        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(begun.w)))
        first = jnp.asarray(at(self.first_multiplier, jnp.zeros((), jnp.int32)))
        return start(begun, _Aux(zero + first.astype(zero.dtype), zero, begun.samplers))

    def step(self, problem, state):
        """One step on the multiplier, then one on u and w."""
        u, w = state.u, state.w
        old, gap_old, samplers = state.aux
        outer_stream, inner_stream = streams_of(self, problem, samplers)
        state = follow(problem, state, inner_stream)
        inner_step = at(self.inner_step, state.step, state.control)
        x, inner_stream = sgd(problem, u, w, inner_step, self.num_inner, inner_stream)
        inner_batch, inner_stream = inner_stream.draw()
        outer_batch, outer_stream = outer_stream.draw()

        def now(setting: Any) -> Array:
            return jnp.asarray(at(setting, state.step)).astype(old.dtype)

        outer = outer_terms(problem, u, w, outer_batch)
        inner = jax.value_and_grad(objective(problem), argnums=(0, 1))
        (f_w, at_w), (f_x, at_x) = (inner(u, y, inner_batch) for y in (w, x))
        delta = now(self.delta)
        gap = (f_w - f_x).astype(old.dtype) - delta
        further = now(self.extrapolation) * jnp.where(state.step == 0, 0, gap - gap_old)
        move_by = now(self.dual_step) * (1 + old) * jnp.clip((gap + further) / delta, -1, 1)
        multiplier = jnp.clip(old + move_by, 0, now(self.max_multiplier))
        d_u = descend(outer.u, -multiplier, optax.tree.sub(at_w[0], at_x[0]))
        d_w = descend(outer.w, -multiplier, at_w[1])

        calls = count(1, self.num_inner + 2)
        residual = jnp.asarray(optax.tree.norm((d_w, multiplier - old)))
        move = move_outer(self.outer_step, problem, state, d_u)
        info = make_info(outer, Point(d_u, at_x[1]), calls, move.step / inner_step, residual)
        aux = _Aux(multiplier, gap, close_streams(Streams(outer_stream, inner_stream)))
        w_step = now(inner_step) / (1 + multiplier)
        return advance(state, move, descend(w, w_step, d_w), aux, calls), info
