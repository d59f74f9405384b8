"""Inexact hypergradient descent, deterministic and stochastic (Grazzi, Pontil and Salzo)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree, ScalarLike

from .._sampler import AbstractSampler, FullBatch, Stream, Streams
from .._settings import as_schedule
from .auto_steps import StepSize, as_setting, at, follow, move_outer
from .base import AbstractAlgorithm, advance, close_streams, count, start
from .directions import (
    OuterTerms,
    begin,
    descend,
    inner_gradient,
    inner_terms,
    joint_directions,
    make_info,
    outer_terms,
    streams_of,
)


def logarithmic(kappa: ScalarLike) -> Callable[[ScalarLike], Array]:
    """`s -> ceil(kappa log(s + 2))` for s steps made, so that the first has `kappa log 2`.

    With kappa at least `1 / (1 - q)`, q the contraction constant of the inner and the linear steps,
    the errors of the hypergradients sum up (Grazzi & Pontil, "IHD", where steps are counted from
    one).

    >>> [int(logarithmic(10.0)(s)) for s in (0, 1, 100)]
    [7, 11, 47]
    """
    return lambda s: jnp.ceil(kappa * jnp.log(jnp.asarray(s, float) + 2))


class _Start(eqx.Module):
    w0: PyTree[Array]
    samplers: Any


class InexactDescent(AbstractAlgorithm):
    """Cold-started inner and linear loops whose lengths grow with the outer step.

        w = t_s gradient steps on f(u_s, .) from w_0
        v = t_s steps v <- v - linear_step (H v - grad_w F(u_s, w)) from 0
        u_{s+1} = retract(u_s, -outer_step (grad_u F - (d2_uw f)^T v)),   s = 0, 1, ...

    On all data with `t_s = logarithmic(kappa)` this is inexact hypergradient descent, whose mean
    squared gradient norm falls as 1 / S (Grazzi & Pontil, "IHD"). On minibatches, with inner and
    linear steps that decrease within each loop, `t_s = J_s` of the order of S and F and the cross
    product averaged over J_s batches, it is the stochastic method SIHD, with the optimal O(eps^-2)
    samples.

    Args:
        inner_step, linear_step: floats, or schedules of the *inner* iteration k, such as
            `decreasing_step(c, d)`; every loop starts them anew.
        outer_step: a float, or a schedule of the number of outer steps made.
        num_steps: t_s, a function of the number of steps made, by default `logarithmic(10.0)`, or a
            number.
        num_samples: J_s, the same.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost a step: t_s inner gradients and products, J_s outer gradients and joint passes. It keeps
    w_0. The loops have no fixed length, so the step cannot be differentiated in reverse.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    num_steps: StepSize = eqx.field(default=logarithmic(10.0), converter=as_schedule)
    num_samples: StepSize = eqx.field(default=1.0, converter=as_schedule)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def init(self, problem, u0, w0, key):
        """It remembers w_0."""
        begun = begin(self, problem, u0, w0, key)
        return start(begun, _Start(begun.w, begun.samplers))

    def step(self, problem, state):
        """Two loops and an outer step."""
        u = state.u
        num_steps = jnp.asarray(at(self.num_steps, state.step)).astype(jnp.int32)
        num_samples = jnp.asarray(at(self.num_samples, state.step)).astype(jnp.int32)
        outer_stream, inner_stream = streams_of(self, problem, state.aux.samplers)
        state = follow(problem, state, inner_stream)

        def inner_step(k: Int[Array, ""], w: PyTree, batch: Any) -> PyTree[Array]:
            return descend(
                w, at(self.inner_step, k, state.control), inner_gradient(problem, u, w, batch)
            )

        w, inner_stream = _loop(num_steps, inner_step, state.aux.w0, inner_stream)
        outer, outer_stream = _mean(
            num_samples, lambda batch: outer_terms(problem, u, w, batch), outer_stream
        )

        def linear_step(k: Int[Array, ""], v: PyTree, batch: Any) -> PyTree[Array]:
            product = inner_terms(problem, u, w, v, batch).product
            return descend(
                v, at(self.linear_step, k, state.control), optax.tree.sub(product, outer.w)
            )

        v0 = optax.tree.zeros_like(w)
        v, inner_stream = _loop(num_steps, linear_step, v0, inner_stream)
        inner, inner_stream = _mean(
            num_samples, lambda batch: inner_terms(problem, u, w, v, batch), inner_stream
        )
        d = joint_directions(OuterTerms(*outer), inner)

        calls = count(num_samples, num_steps + num_samples, num_steps + num_samples, num_samples)
        move = move_outer(self.outer_step, problem, state, d.u)
        first_step = at(self.inner_step, jnp.zeros_like(state.step), state.control)
        info = make_info(outer, d, calls, move.step / first_step)
        aux = _Start(state.aux.w0, close_streams(Streams(outer_stream, inner_stream)))
        return advance(state, move, w, aux, calls), info


def _loop(
    num_steps: Int[Array, ""], step: Callable, x: PyTree[Array], stream: Stream
) -> tuple[PyTree[Array], Stream]:
    """`x <- step(k, x, batch)`, a new batch a step."""

    def iterate(k: Any, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        x, draws = carry
        batch, following = Stream(stream.sampler, stream.data, draws).draw()
        # Without jit, k is an integer of Python.
        return step(jnp.asarray(k, jnp.int32), x, batch), following.state

    x, draws = jax.lax.fori_loop(0, num_steps, iterate, (x, stream.state))
    return x, Stream(stream.sampler, stream.data, draws)


def _mean(count: Int[Array, ""], of: Callable, stream: Stream) -> tuple[Any, Stream]:
    """The mean of `of(batch)` over `count` batches."""
    zero = optax.tree.zeros_like(jax.eval_shape(lambda: of(stream.draw()[0])))

    def add(_: Any, total: Any, batch: Any) -> Any:
        return optax.tree.add(total, of(batch))

    total, stream = _loop(count, add, zero, stream)
    return jax.tree.map(lambda x: x / count.astype(x.dtype), total), stream
