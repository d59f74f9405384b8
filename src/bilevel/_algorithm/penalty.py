"""The value-function penalty method (V-PBGD, Shen and Chen 2023)."""

import equinox as eqx
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
from .loops import scaled, sgd


class ValueFunctionPenalty(AbstractAlgorithm):
    """Gradient descent on `F(u, w) + multiplier (f(u, w) - min_x f(u, x))`, in u and w; no Hessian.

        x = num_inner gradient steps on f(u, .) from w
        d_u = grad_u F(u, w) + multiplier (grad_u f(u, w) - grad_u f(u, x))
        d_w = grad_w f(u, w) + grad_w F(u, w) / multiplier
        u+ = retract(u, -outer_step d_u),   w+ = w - inner_step d_w

    (Shen & Chen 2023, Algorithm 1, V-PBGD, with w's step divided by the multiplier.) It asks for no
    unique inner solution: among several, w goes to where F is small. Its solution is that of the
    penalised problem, at a distance of the order of 1 / multiplier.

    Args:
        inner_step, outer_step, multiplier: floats, or schedules of the number of steps made.
        num_inner: steps from w to x.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `inner_residual` is `|grad_w f|` at x, `linear_residual` is `multiplier |d_w|`. Cost a step:
    num_inner + 2 inner gradients and an outer one; it keeps nothing beyond u and w.

    Raises:
        ValueError: `num_inner` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    multiplier: StepSize = eqx.field(default=10.0, converter=as_schedule)
    num_inner: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        if self.num_inner < 1:
            raise ValueError(f"`ValueFunctionPenalty` needs num_inner >= 1, got {self.num_inner}.")

    def init(self, problem, u0, w0, key):
        """Nothing but the samplers."""
        begun = begin(self, problem, u0, w0, key)
        return start(begun, begun.samplers)

    def step(self, problem, state):
        """One step on u and w."""
        u, w = state.u, state.w
        multiplier = at(self.multiplier, state.step)
        outer_stream, inner_stream = streams_of(self, problem, state.aux)
        state = follow(problem, state, inner_stream)
        inner_step = at(self.inner_step, state.step, state.control)
        x, inner_stream = sgd(problem, u, w, inner_step, self.num_inner, inner_stream)
        inner_batch, inner_stream = inner_stream.draw()
        outer_batch, outer_stream = outer_stream.draw()

        outer = outer_terms(problem, u, w, outer_batch)
        at_w, at_x = (inner_gradients(problem, u, y, inner_batch) for y in (w, x))
        d_u = descend(outer.u, -multiplier, optax.tree.sub(at_w[0], at_x[0]))
        d_w = descend(at_w[1], -1 / multiplier, outer.w)

        calls = count(1, self.num_inner + 2)
        residual = optax.tree.norm(scaled(multiplier, d_w))
        move = move_outer(self.outer_step, problem, state, d_u)
        info = make_info(outer, Point(d_u, at_x[1]), calls, move.step / inner_step, residual)
        samplers = close_streams(Streams(outer_stream, inner_stream))
        return advance(state, move, descend(w, inner_step, d_w), samplers, calls), info
