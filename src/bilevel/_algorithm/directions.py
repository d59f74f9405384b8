"""The parts that the stochastic methods share: directions and variance reduction.

Most single-loop methods are one update of `(u, w, v)` along three directions. They differ in how they
estimate these from minibatches: by the plain directions (SOBA), by `saga` (SABA), or by `recursive`
with momentum (FSLA, MRBO, SUSTAIN) or without (SRBA, VRBO).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree, Scalar, ScalarLike

from .._derivatives import inner_traced, pull_back
from .._problem import BilevelProblem, Objective, Problem
from .._solution import RESULTS, Calls
from .base import Info

T = TypeVar("T")


class Point(NamedTuple):
    """The variables that move together, or a direction for each."""

    u: PyTree[Array]
    w: PyTree[Array]
    v: PyTree[Array] | None = None


class OuterTerms(NamedTuple):
    """`F(u, w)` with its two gradients, on a batch."""

    value: Scalar
    u: PyTree[Array]
    w: PyTree[Array]


class InnerTerms(NamedTuple):
    """`grad_w f`, `(d2_uw f)^T v` and `H v`, on a batch."""

    residual: PyTree[Array]
    mixed: PyTree[Array]
    product: PyTree[Array]


class Directions(NamedTuple):
    """A direction for each variable, and the outer terms at the point where they were taken.

    `w` is the inner gradient there, and `v` the residual of the linear system. A method without an
    adjoint variable has no `v`.
    """

    u: PyTree[Array]
    w: PyTree[Array]
    outer: OuterTerms
    v: PyTree[Array] | None = None


def objective(problem: Problem, needed_by: str = "this method") -> Objective:
    """The inner objective of a problem that has one.

    Raises:
        TypeError: it is a fixed-point problem.
    """
    if isinstance(problem, BilevelProblem):
        return problem.inner
    raise TypeError(
        f"{needed_by} needs an inner objective, which a "
        f"`{type(problem).__name__}` does not have; use `DoubleLoop`."
    )


def outer_terms(problem: Problem, u: PyTree, w: PyTree, batch: Any) -> OuterTerms:
    """One pass forward and back through F."""
    value, (by_u, by_w) = jax.value_and_grad(problem.outer, argnums=(0, 1))(u, w, batch)
    return OuterTerms(value, by_u, by_w)


def inner_terms(problem: Problem, u: PyTree, w: PyTree, v: PyTree, batch: Any) -> InnerTerms:
    """One pass through f gives all three, forward over reverse where there is a forward mode."""
    inner = objective(problem)
    if not inner_traced(problem, u, w, batch).has_forward_mode:
        residual, products = pull_back(problem, u, w, batch)
        return InnerTerms(residual, *products(v))
    (_, residual), (mixed, product) = jax.jvp(
        lambda w: jax.grad(inner, argnums=(0, 1))(u, w, batch), (w,), (v,)
    )
    return InnerTerms(residual, mixed, product)


def inner_gradient(problem: Problem, u: PyTree, w: PyTree, batch: Any) -> PyTree[Array]:
    """`grad_w f`."""
    return jax.grad(objective(problem), argnums=1)(u, w, batch)


def inner_gradients(problem: Problem, u: PyTree, w: PyTree, batch: Any) -> tuple[PyTree, PyTree]:
    """`(grad_u f, grad_w f)`."""
    return jax.grad(objective(problem), argnums=(0, 1))(u, w, batch)


def joint_directions(outer: OuterTerms, inner: InnerTerms) -> Directions:
    """`d_u = grad_u F - (d2_uw f)^T v`, `d_w = grad_w f` and `d_v = H v - grad_w F`.

    Dagréou, Ablin, Vaiter and Moreau (2022), "A framework for bilevel optimization that enables
    stochastic and global variance reduction algorithms", equations (3) to (5) [dagreou2022][].
    """
    return Directions(
        u=optax.tree.sub(outer.u, inner.mixed),
        w=inner.residual,
        v=optax.tree.sub(inner.product, outer.w),
        outer=outer,
    )


def descend(x: PyTree[Array], step: ScalarLike, direction: PyTree[Array]) -> PyTree[Array]:
    """`x - step * direction`, in the dtype of `x`."""
    return jax.tree.map(lambda x, d: x - jnp.asarray(step).astype(d.dtype) * d, x, direction)


# Variance reduction. `x` is the new point, `x_0` the one before, both seen on the same batch.


def recursive(new: T, new_at_old: T, previous: T, momentum: ScalarLike) -> T:
    """`D = g(x) + (1 - momentum) (D_0 - g(x_0))`.

    With momentum 1 this is g(x), the plain estimate. With momentum 0 it is the estimate of Nguyen,
    Liu, Scheinberg and Takáč (2017), "SARAH: A novel method for machine learning problems using
    stochastic recursive gradient" [nguyen2017][]. In between it is that of Cutkosky and Orabona
    (2019), "Momentum-based variance reduction in non-convex SGD" [cutkosky2019][].
    """

    def combine(g: Array, g_old: Array, d: Array) -> Array:
        return g + (1 - jnp.asarray(momentum).astype(g.dtype)) * (d - g_old)

    return jax.tree.map(combine, new, new_at_old, previous)


def at_both(function: Callable[[T], Any], new: T, old: T) -> tuple[Any, Any]:
    """`function` at two points of the same structure, in one vectorised pass."""
    both = jax.vmap(function)(jax.tree.map(lambda x, y: jnp.stack([x, y]), new, old))
    return jax.tree.map(lambda x: x[0], both), jax.tree.map(lambda x: x[1], both)


class Table(NamedTuple):
    """The last value seen of each block, their mean, and the number and the row of the next block.

    All values are finite. The row is read when the table has just been written: if it were read before
    the next writing, XLA would copy the table, which at 400 blocks of 7840 numbers takes a hundred
    times as long as the step.
    """

    values: Any
    mean: Any
    block: Int[Array, ""]
    row: Any


def first_table(values: Any, block: Int[Array, ""]) -> Table:
    """The table of `values`, one entry per block along axis 0; `block` comes first."""
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), values)
    return Table(values, mean, block, jax.tree.map(lambda x: x[block], values))


def saga(table: Table, new: Any, following: Int[Array, ""]) -> tuple[Any, Table]:
    """`D = g_i(x) - table_i + mean(table)`, and the table with `new = g_i(x)` in row i.

    The block `i = table.block` is the one just seen, and `following` the one that comes next. A value
    that is not finite does not enter the table. Defazio, Bach and Lacoste-Julien (2014), "SAGA: A fast
    incremental gradient method with support for non-strongly convex composite objectives"
    [defazio2014][].
    """
    old = table.row
    estimate = optax.tree.add(optax.tree.sub(new, old), table.mean)
    finite = jnp.isfinite(optax.tree.sum(new))
    kept = jax.tree.map(lambda g, g_old: jnp.where(finite, g, g_old), new, old)
    values = jax.tree.map(lambda t, g: t.at[table.block].set(g), table.values, kept)
    mean = jax.tree.map(
        lambda m, g, g_old, t: m + (g - g_old) / t.shape[0], table.mean, kept, old, values
    )
    row = jax.tree.map(lambda t: t[following], values)
    return estimate, Table(values, mean, following, row)


def make_info(
    directions: Directions,
    calls: Calls,
    step_ratio: ScalarLike,
    linear_residual: ScalarLike | None = None,
) -> Info:
    """What a step along `directions` reports; the residuals are the lengths of the directions."""
    outer, inner_residual = directions.outer, optax.tree.norm(directions.w)
    if linear_residual is None:
        linear_residual = optax.tree.norm(directions.v)
    linear_residual = jnp.asarray(linear_residual)
    finite = jnp.isfinite(optax.tree.norm(outer.w)) & jnp.isfinite(inner_residual)
    diverged = finite & ~jnp.isfinite(linear_residual)
    return Info(
        outer_value=outer.value,
        outer_grad=directions.u,
        inner_residual=inner_residual,
        linear_residual=linear_residual,
        calls=calls,
        result=RESULTS.where(diverged, RESULTS.linear_divergence, RESULTS.successful),
        step_ratio=jnp.asarray(step_ratio).astype(outer.value.dtype),
    )
