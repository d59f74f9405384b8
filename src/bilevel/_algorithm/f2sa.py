"""F2SA: fully first-order stochastic approximation (Kwon, Kwon, Wright and Nowak 2023)."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._sampler import AbstractSampler, FullBatch, Streams
from .._settings import as_schedule
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
    Point,
    begin,
    descend,
    inner_gradient,
    inner_gradients,
    make_info,
    outer_terms,
    streams_of,
)


def _growing(step: Int[Array, ""]) -> Array:
    return 10 * (1 + 0.1 * jnp.asarray(step, float)) ** 0.5


class _Aux(NamedTuple):
    y: PyTree[Array]
    samplers: SamplerStates


class F2SA(AbstractAlgorithm):
    """The hypergradient as a difference of two gradients; no Hessian.

        w <- w - inner_step grad_w f(u, w)                                          num_inner times
        y <- y - inner_step (grad_w f(u, y) + grad_w F(u, y) / multiplier)          as often
        d_u = grad_u F(u, y) + multiplier (grad_u f(u, y) - grad_u f(u, w))
        u+ = retract(u, -outer_step d_u)

    w follows the inner solution and y the minimiser of `F + multiplier f`, so `multiplier (w - y)`
    tends to the v of implicit methods (Kwon et al. 2023, Algorithm 1, with y's step divided by the
    multiplier, so that one inner step serves both). w and y see the same inner batches, in the loop
    and in d_u, so that most of their noise cancels in the difference that the multiplier blows up
    (the paper draws anew for each).

    Args:
        inner_step, outer_step: floats, or schedules of the number of outer steps made.
        multiplier: the same. The bias of d_u is of the order of 1 / multiplier, its noise grows with
            it; by default it is `10 sqrt(1 + step / 10)`.
        num_inner: steps on w and on y an outer step.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `linear_residual` is `|multiplier grad_w f + grad_w F|` at y. Cost a step: 2 num_inner + 2 inner
    and num_inner + 1 outer gradients; it keeps y.

    Raises:
        ValueError: `num_inner` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    multiplier: StepSize = eqx.field(default=_growing, converter=as_schedule)
    num_inner: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        if self.num_inner < 1:
            raise ValueError(f"`F2SA` needs num_inner >= 1, got {self.num_inner}.")

    def init(self, problem, u0, w0, key):
        """`y = w`."""
        begun = begin(self, problem, u0, w0, key)
        return start(begun, _Aux(begun.w, begun.samplers))

    def step(self, problem, state):
        """One outer step."""
        u = state.u
        state = follow(problem, state, streams_of(self, problem, state.aux.samplers).inner)
        inner_step = at(self.inner_step, state.step, state.control)
        multiplier = at(self.multiplier, state.step)

        def move_both(carry: tuple[PyTree, PyTree, SamplerStates], _: None) -> tuple[Any, None]:
            w, y, draws = carry
            outer_stream, inner_stream = streams_of(self, problem, draws)
            inner_batch, inner_stream = inner_stream.draw()
            outer_batch, outer_stream = outer_stream.draw()
            by_f = inner_gradient(problem, u, y, inner_batch)
            by_outer = outer_terms(problem, u, y, outer_batch).w
            y = descend(y, inner_step, descend(by_f, -1 / multiplier, by_outer))
            w = descend(w, inner_step, inner_gradient(problem, u, w, inner_batch))
            return (w, y, close_streams(Streams(outer_stream, inner_stream))), None

        (w, y, draws), _ = jax.lax.scan(
            move_both, (state.w, state.aux.y, state.aux.samplers), length=self.num_inner
        )
        outer_stream, inner_stream = streams_of(self, problem, draws)
        inner_batch, inner_stream = inner_stream.draw()
        outer_batch, outer_stream = outer_stream.draw()

        outer = outer_terms(problem, u, y, outer_batch)
        at_w, at_y = (inner_gradients(problem, u, x, inner_batch) for x in (w, y))
        d_u = descend(outer.u, -multiplier, optax.tree.sub(at_y[0], at_w[0]))

        calls = count(self.num_inner + 1, 2 * self.num_inner + 2)
        residual = optax.tree.norm(descend(outer.w, -multiplier, at_y[1]))
        move = move_outer(self.outer_step, problem, state, d_u)
        info = make_info(outer, Point(d_u, at_w[1]), calls, move.step / inner_step, residual)
        aux = _Aux(y, close_streams(Streams(outer_stream, inner_stream)))
        return advance(state, move, w, aux, calls), info
