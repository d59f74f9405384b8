"""Loops over minibatches: for w, and for the adjoint variable v.

Each starts with the current inner batch of a turn, draws a new one per iteration, and returns the turn
whose current inner batch is the next one.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, PyTree, ScalarLike

from .base import AdjointLoop, SingleLoop
from .directions import Point, descend
from .turn import Turn

M = TypeVar("M", bound=SingleLoop)
A = TypeVar("A", bound=AdjointLoop)


def sgd(turn: Turn[M], u: PyTree, w: PyTree[Array], num_steps: int) -> tuple[PyTree, Turn[M]]:
    """`w <- w - inner_step grad_w f(u, w)`."""
    step = turn.inner_step

    def iterate(carry: tuple[PyTree, Any], _: None) -> tuple[tuple[PyTree, Any], None]:
        w, draws = carry
        here = turn.at_inner(draws)
        w = descend(w, step, here.inner_gradient(u, w))
        return (w, here.following.inner.state), None

    (w, draws), _ = jax.lax.scan(iterate, (w, turn.streams.inner.state), length=num_steps)
    return w, turn.at_inner(draws)


def linear_sgd(
    turn: Turn[A], at_point: Point, b: PyTree[Array], num_steps: int
) -> tuple[PyTree[Array], Turn[A]]:
    """`v <- v - linear_step (H v - b)` from `at_point.v`."""
    u, w, v = at_point
    step = turn.linear_step

    def iterate(carry: tuple[PyTree, Any], _: None) -> tuple[tuple[PyTree, Any], None]:
        v, draws = carry
        here = turn.at_inner(draws)
        v = descend(v, step, optax.tree.sub(here.inner(u, w, v).product, b))
        return (v, here.following.inner.state), None

    (v, draws), _ = jax.lax.scan(iterate, (v, turn.streams.inner.state), length=num_steps)
    return v, turn.at_inner(draws)


def neumann(
    turn: Turn[A], at_point: Point, b: PyTree[Array], num_products: int
) -> tuple[PyTree[Array], Turn[A]]:
    """`step sum_{q <= Q} (I - step H_q) ... (I - step H_1) b` with Q products."""
    u, w, _ = at_point
    step = turn.series_step

    def add_term(carry: tuple[PyTree, PyTree, Any], _: None):
        total, term, draws = carry
        here = turn.at_inner(draws)
        term = descend(term, step, here.inner(u, w, term).product)
        return (optax.tree.add(total, term), term, here.following.inner.state), None

    first = (b, b, turn.streams.inner.state)
    (total, _, draws), _ = jax.lax.scan(add_term, first, length=num_products)
    return scaled(step, total), turn.at_inner(draws)


def randomised_neumann(
    turn: Turn[A], at_point: Point, b: PyTree[Array], num_terms: int
) -> tuple[PyTree[Array], Turn[A], Int[Array, ""]]:
    """`K step (I - step H_p) ... (I - step H_1) b` with p uniform on 0 .. K - 1, and p.

    Its mean over p is that of K terms of the Neumann series: Ghadimi and Wang (2018), "Approximation
    methods for bilevel programming", Algorithm 3 [ghadimi2018][].
    """
    u, w, _ = at_point
    step = turn.series_step
    key = jr.fold_in(turn.state.key, turn.state.step)
    num_products = jr.randint(key, (), 0, num_terms, jnp.int32)

    def multiply(_: Any, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        term, draws = carry
        here = turn.at_inner(draws)
        term = descend(term, step, here.inner(u, w, term).product)
        return term, here.following.inner.state

    first = (b, turn.streams.inner.state)
    term, draws = jax.lax.fori_loop(0, num_products, multiply, first)
    return scaled(num_terms * jnp.asarray(step), term), turn.at_inner(draws), num_products


def scaled(scale: ScalarLike, tree: PyTree[Array]) -> PyTree[Array]:
    """`scale * tree`, in the dtype of `tree`."""
    return jax.tree.map(lambda x: jnp.asarray(scale).astype(x.dtype) * x, tree)
