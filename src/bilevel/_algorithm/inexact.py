"""Inexact hypergradient descent, deterministic and stochastic.

Grazzi and Pontil (2023) [grazzi2023][], and Grazzi, Pontil and Salzo (2022) [grazzi2022][].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree, ScalarLike

from .._sampler import AbstractSampler, FullBatch, Stream
from .._settings import StepSize, as_schedule, as_setting
from .auto_steps import step_size_at
from .base import AbstractAlgorithm, SamplerStates, count
from .directions import (
    OuterTerms,
    descend,
    inner_gradient,
    inner_terms,
    joint_directions,
    outer_terms,
)
from .turn import init_state, open_turn


def logarithmic(kappa: ScalarLike) -> Callable[[ScalarLike], Array]:
    """`s -> ceil(kappa log(s + 2))` for s steps made, so that the first step has `kappa log 2`.

    If kappa is at least `1 / (1 - q)`, with q the contraction constant of the inner and the linear
    steps, the sum of the errors of the hypergradients is finite: Grazzi and Pontil (2023), "Principled
    and efficient bilevel optimization for machine learning" [grazzi2023][], whose rule is
    `ceil(kappa log(s + 1))`: one outer step behind this one, and without any steps at s = 0.

    >>> [int(logarithmic(10.0)(s)) for s in (0, 1, 100)]
    [7, 11, 47]
    """
    return lambda s: jnp.ceil(kappa * jnp.log(jnp.asarray(s, float) + 2))


class InexactDescent(AbstractAlgorithm):
    """Cold-started inner and linear loops whose lengths grow with the outer step.

        w = t_s gradient steps on f(u_s, .) from w_0
        v = t_s steps v <- v - linear_step (H v - grad_w F(u_s, w)) from 0
        u_{s+1} = retract(u_s, -outer_step (grad_u F - (d2_uw f)^T v)),   s = 0, 1, ...

    On all data with `t_s = logarithmic(kappa)` this is inexact hypergradient descent, whose mean
    squared gradient norm falls as 1 / S: Grazzi and Pontil (2023), "Principled and efficient bilevel
    optimization for machine learning" [grazzi2023][]. On minibatches it is a stochastic method with
    the optimal O(eps^-2) samples if the inner and linear steps decrease within each loop, `t_s =
    J_s` is of the order of S, and F and the mixed product are averaged over J_s batches: Grazzi,
    Pontil and Salzo (2022), "Bilevel optimization with a lower-level contraction: Optimal sample
    complexity without warm-start" [grazzi2022][].

    Args:
        inner_step, linear_step: numbers, or schedules of the *inner* iteration k, such as
            `decreasing_step(c, d)`; every loop starts them anew.
        outer_step: a number, or a schedule of the number of outer steps made.
        num_steps: t_s, a function of the number of steps made, by default `logarithmic(10.0)`, or a
            number.
        num_samples: J_s, the same.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost per step: t_s + J_s inner gradients and products, J_s outer gradients and mixed products.
    Memory beyond u and w: w_0. The loops have no fixed length, so the step cannot be differentiated in
    reverse mode.
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
        return init_state(self, problem, u0, w0, key, aux=w0)

    def step(self, problem, state):
        """Two loops and an outer step."""
        turn, u = open_turn(self, problem, state), state.u
        outer_stream, inner_stream = turn.streams
        num_steps = jnp.asarray(turn.now(self.num_steps)).astype(jnp.int32)
        num_samples = jnp.asarray(turn.now(self.num_samples)).astype(jnp.int32)
        control = turn.state.control

        def inner_step(k: Int[Array, ""], w: PyTree, batch: Any) -> PyTree[Array]:
            size = step_size_at(self.inner_step, k, control)
            return descend(w, size, inner_gradient(problem, u, w, batch))

        w, inner_stream = _loop(num_steps, inner_step, state.aux, inner_stream)
        outer, outer_stream = _mean(
            num_samples, lambda batch: outer_terms(problem, u, w, batch), outer_stream
        )

        def linear_step(k: Int[Array, ""], v: PyTree, batch: Any) -> PyTree[Array]:
            product = inner_terms(problem, u, w, v, batch).product
            size = step_size_at(self.linear_step, k, control)
            return descend(v, size, optax.tree.sub(product, outer.w))

        v0 = optax.tree.zeros_like(w)
        v, inner_stream = _loop(num_steps, linear_step, v0, inner_stream)
        inner, inner_stream = _mean(
            num_samples, lambda batch: inner_terms(problem, u, w, v, batch), inner_stream
        )
        d = joint_directions(OuterTerms(*outer), inner)

        move, num_calls = turn.move(d.u), num_steps + num_samples
        state, info = turn.close(
            d,
            w=w,
            aux=state.aux,
            calls=count(num_samples, num_calls, num_calls, num_samples),
            move=move,
            samplers=SamplerStates(outer_stream.state, inner_stream.state),
        )
        # The schedule of inner steps counts the inner iterations.
        first_step = step_size_at(self.inner_step, jnp.zeros_like(state.step), control)
        ratio = jnp.asarray(move.step / first_step).astype(info.step_ratio.dtype)
        return state, dataclasses.replace(info, step_ratio=ratio)


def _loop(
    num_steps: Int[Array, ""], step: Callable, x: PyTree[Array], stream: Stream
) -> tuple[PyTree[Array], Stream]:
    """`x <- step(k, x, batch)`, with a new batch per step."""

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
