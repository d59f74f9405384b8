"""Loops over minibatches, and the steps that are built of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, Key, PyTree, ScalarLike

from .._problem import Problem
from .._sampler import Stream, Streams
from .auto_steps import at, move_outer
from .base import Info, SamplerStates, State, advance, close_streams, count
from .directions import (
    Point,
    at_both,
    descend,
    inner_gradient,
    inner_terms,
    joint_directions,
    make_info,
    outer_terms,
    recursive,
    streams_of,
)

Solve = Callable[[Point, PyTree, Stream], tuple[PyTree, Stream, ScalarLike]]


def sgd(
    problem: Problem, u: PyTree, w: PyTree[Array], step: ScalarLike, num_steps: int, stream: Stream
) -> tuple[PyTree[Array], Stream]:
    """`w <- w - step grad_w f(u, w)`, a new batch a step."""

    def iterate(carry: tuple[PyTree, Any], _: None) -> tuple[tuple[PyTree, Any], None]:
        w, draws = carry
        batch, following = Stream(stream.sampler, stream.data, draws).draw()
        return (descend(w, step, inner_gradient(problem, u, w, batch)), following.state), None

    (w, draws), _ = jax.lax.scan(iterate, (w, stream.state), length=num_steps)
    return w, Stream(stream.sampler, stream.data, draws)


def linear_sgd(
    problem: Problem,
    at_point: Point,
    b: PyTree[Array],
    step: ScalarLike,
    num_steps: int,
    stream: Stream,
) -> tuple[PyTree[Array], Stream]:
    """`v <- v - step (H v - b)` from `at_point.v`, a new batch a step."""

    def iterate(carry: tuple[PyTree, Any], _: None) -> tuple[tuple[PyTree, Any], None]:
        v, draws = carry
        batch, following = Stream(stream.sampler, stream.data, draws).draw()
        product = inner_terms(problem, at_point.u, at_point.w, v, batch).product
        return (descend(v, step, optax.tree.sub(product, b)), following.state), None

    (v, draws), _ = jax.lax.scan(iterate, (at_point.v, stream.state), length=num_steps)
    return v, Stream(stream.sampler, stream.data, draws)


def neumann(
    problem: Problem,
    at_point: Point,
    b: PyTree[Array],
    step: ScalarLike,
    num_products: int,
    stream: Stream,
) -> tuple[PyTree[Array], Stream]:
    """`step sum_{q <= Q} (I - step H_q) ... (I - step H_1) b`, a new batch a product."""

    def add_term(carry: tuple[PyTree, PyTree, Any], _: None):
        total, term, draws = carry
        batch, following = Stream(stream.sampler, stream.data, draws).draw()
        product = inner_terms(problem, at_point.u, at_point.w, term, batch).product
        term = descend(term, step, product)
        return (optax.tree.add(total, term), term, following.state), None

    first = (b, b, stream.state)
    (total, _, draws), _ = jax.lax.scan(add_term, first, length=num_products)
    return scaled(step, total), Stream(stream.sampler, stream.data, draws)


def randomised_neumann(
    problem: Problem,
    at_point: Point,
    b: PyTree[Array],
    step: ScalarLike,
    num_terms: int,
    stream: Stream,
    key: Key[Array, ""],
) -> tuple[PyTree[Array], Stream, Int[Array, ""]]:
    """`K step (I - step H_p) ... (I - step H_1) b` with p uniform on 0 .. K - 1, and p.

    Its mean over p is that of K terms of the Neumann series (Ghadimi & Wang 2018, Algorithm 3).
    """
    num_products = jr.randint(key, (), 0, num_terms, jnp.int32)

    def multiply(_: Any, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        term, draws = carry
        batch, following = Stream(stream.sampler, stream.data, draws).draw()
        product = inner_terms(problem, at_point.u, at_point.w, term, batch).product
        return descend(term, step, product), following.state

    term, draws = jax.lax.fori_loop(0, num_products, multiply, (b, stream.state))
    v = scaled(num_terms * jnp.asarray(step), term)
    return v, Stream(stream.sampler, stream.data, draws), num_products


def scaled(scale: ScalarLike, tree: PyTree[Array]) -> PyTree[Array]:
    """`scale * tree`, in the dtype of `tree`."""
    return jax.tree.map(lambda x: jnp.asarray(scale).astype(x.dtype) * x, tree)


def inner_loop_step(
    method: Any,
    problem: Problem,
    state: State,
    samplers: SamplerStates,
    solve: Solve,
    keep: Callable[[PyTree, SamplerStates], Any],
) -> tuple[State, Info]:
    """`num_inner` stochastic gradient steps on w, then v by `solve`, then a step on u.

    `solve((u, w), grad_w F, stream)` returns v, the stream and the number of products; the next
    step's `aux` is `keep(v, samplers)`.
    """
    outer_stream, inner_stream = streams_of(method, problem, samplers)
    outer_batch, outer_stream = outer_stream.draw()

    inner_step = at(method.inner_step, state.step, state.control)
    w, inner_stream = sgd(problem, state.u, state.w, inner_step, method.num_inner, inner_stream)
    outer = outer_terms(problem, state.u, w, outer_batch)
    v, inner_stream, num_products = solve(Point(state.u, w), outer.w, inner_stream)
    inner_batch, inner_stream = inner_stream.draw()
    inner = inner_terms(problem, state.u, w, v, inner_batch)
    d = joint_directions(outer, inner)

    calls = count(1, method.num_inner + 1, num_products + 1, 1)
    move = move_outer(method.outer_step, problem, state, d.u)
    info = make_info(outer, d, calls, move.step / inner_step)
    aux = keep(v, close_streams(Streams(outer_stream, inner_stream)))
    return advance(state, move, w, aux, calls), info


def momentum_step(
    method: Any,
    problem: Problem,
    state: State,
    old: tuple[Point, Point],
    samplers: SamplerStates,
    solve: Solve,
    keep: Callable[[tuple[Point, Point], SamplerStates], Any],
) -> tuple[State, Info]:
    """Steps on w and u along two directions with recursive momentum.

    `old` is the point before and the directions there, zero at the first step; `solve` as in
    `inner_loop_step`; the next step's `aux` is `keep(old, samplers)`.
    """
    z, (z_old, d_old) = Point(state.u, state.w), old
    outer_stream, inner_stream = streams_of(method, problem, samplers)
    outer_batch, outer_stream = outer_stream.draw()
    inner_batch, inner_stream = inner_stream.draw()

    def directions(z: Point) -> tuple[Point, Any]:
        outer = outer_terms(problem, z.u, z.w, outer_batch)
        v, following, num_products = solve(z, outer.w, inner_stream)
        inner = inner_terms(problem, z.u, z.w, v, inner_batch)
        d = joint_directions(outer, inner)
        seen = (outer, optax.tree.norm(d.v))
        return d._replace(v=None), (seen, following.state, num_products)

    (new, (seen, draws, num_products)), (new_at_old, _) = at_both(directions, z, z_old)
    momentum = jnp.where(state.step == 0, 1.0, at(method.momentum, state.step))
    d = recursive(new, new_at_old, d_old, momentum)

    outer, residual = seen
    inner_step = at(method.inner_step, state.step, state.control)
    calls = count(2, 2, 2 * (num_products + 1), 2)
    move = move_outer(method.outer_step, problem, state, d.u)
    info = make_info(outer, d, calls, move.step / inner_step, residual)
    aux = keep((z, d), SamplerStates(outer_stream.state, draws))
    return advance(state, move, descend(z.w, inner_step, d.w), aux, calls), info
