"""The parts that the stochastic methods share: directions and variance reduction.

Most single-loop methods are one update of `(u, w, v)` along three directions and differ in how these
are estimated from minibatches: as they are (SOBA), by `saga` (SABA), by `recursive` with momentum
(FSLA, SUSTAIN, MRBO) or without (SRBA, VRBO). Each file of a method says which.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree, Scalar, ScalarLike

from .._hypergradient.base import require_outer_variable
from .._problem import BilevelProblem, Objective, Problem
from .._sampler import FullBatch, Streams
from .._solution import RESULTS, Calls
from .auto_steps import DECAY, first_control, uses_auto
from .base import Begun, Info, SamplerStates, Table, count, init_samplers, open_streams

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
    cross: PyTree[Array]
    product: PyTree[Array]


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


def begin(
    method: Any,
    problem: Problem,
    u0: PyTree,
    w0: PyTree,
    key: Key[Array, ""],
    *,
    variance_reduced: bool = False,
) -> Begun:
    """Checks, the samplers' first states, and what `"auto"` step sizes start from.

    Raises:
        TypeError: it is a fixed-point problem.
        ValueError: the inner objective does not depend on its argument `u`.
    """
    objective(problem, f"`{type(method).__name__}`")
    u0, w0 = jax.tree.map(jnp.asarray, (u0, w0))
    samplers = init_samplers(problem, method.outer_sampler, method.inner_sampler, key)
    streams = streams_of(method, problem, samplers)
    require_outer_variable(problem, u0, w0, streams.inner.draw()[0])
    control, calls = None, count()
    if uses_auto(method):
        noisy = not (variance_reduced or isinstance(method.inner_sampler, FullBatch))
        decay = DECAY * getattr(method, "num_inner", 1) if noisy else 0.0
        first = 1 / 3 if variance_reduced else 1.0
        control, num_products = first_control(problem, u0, w0, streams, first, decay)
        calls = count(1, 1, num_products + 2, 2)
    return Begun(u0, w0, key, samplers, control, calls)


def streams_of(method: Any, problem: Problem, samplers: SamplerStates) -> Streams:
    """Where a method's step draws its batches from."""
    return open_streams(problem, method.outer_sampler, method.inner_sampler, samplers)


def outer_terms(problem: Problem, u: PyTree, w: PyTree, batch: Any) -> OuterTerms:
    """One pass forward and back through F."""
    value, (by_u, by_w) = jax.value_and_grad(problem.outer, argnums=(0, 1))(u, w, batch)
    return OuterTerms(value, by_u, by_w)


def inner_terms(problem: Problem, u: PyTree, w: PyTree, v: PyTree, batch: Any) -> InnerTerms:
    """One forward-over-reverse pass through f gives all three."""
    (_, residual), (cross, product) = jax.jvp(
        lambda w: jax.grad(objective(problem), argnums=(0, 1))(u, w, batch), (w,), (v,)
    )
    return InnerTerms(residual, cross, product)


def inner_gradient(problem: Problem, u: PyTree, w: PyTree, batch: Any) -> PyTree[Array]:
    """`grad_w f`."""
    return jax.grad(objective(problem), argnums=1)(u, w, batch)


def inner_gradients(problem: Problem, u: PyTree, w: PyTree, batch: Any) -> tuple[PyTree, PyTree]:
    """`(grad_u f, grad_w f)`."""
    return jax.grad(objective(problem), argnums=(0, 1))(u, w, batch)


def joint_directions(outer: OuterTerms, inner: InnerTerms) -> Point:
    """`(grad_u F - (d2_uw f)^T v, grad_w f, H v - grad_w F)` (Dagreou et al. 2022, (3)-(5))."""
    return Point(
        u=optax.tree.sub(outer.u, inner.cross),
        w=inner.residual,
        v=optax.tree.sub(inner.product, outer.w),
    )


def descend(x: PyTree[Array], step: ScalarLike, direction: PyTree[Array]) -> PyTree[Array]:
    """`x - step * direction`, in the dtype of `x`."""
    return jax.tree.map(lambda x, d: x - jnp.asarray(step).astype(d.dtype) * d, x, direction)


# Variance reduction. `x` is the new point, `x_0` the one before, both seen on the same batch.


def recursive(new: T, new_at_old: T, previous: T, momentum: ScalarLike) -> T:
    """`D = g(x) + (1 - momentum) (D_0 - g(x_0))`.

    With momentum 1 this is g(x), the plain estimate; with 0 it is SARAH's (Nguyen et al. 2017); in
    between STORM's (Cutkosky & Orabona 2019).
    """

    def combine(g: Array, g_old: Array, d: Array) -> Array:
        return g + (1 - jnp.asarray(momentum).astype(g.dtype)) * (d - g_old)

    return jax.tree.map(combine, new, new_at_old, previous)


def at_both(function: Callable[[T], Any], new: T, old: T) -> tuple[Any, Any]:
    """`function` at two points of the same structure, in one vectorised pass."""
    both = jax.vmap(function)(jax.tree.map(lambda x, y: jnp.stack([x, y]), new, old))
    return jax.tree.map(lambda x: x[0], both), jax.tree.map(lambda x: x[1], both)


def saga(
    table: Table, block: Int[Array, ""], new: Any, following: Int[Array, ""]
) -> tuple[Any, Table]:
    """`D = g_i(x) - table_i + mean(table)`, and the table with `g_i(x)` in row i (SAGA).

    `following` is the block that comes next. What is not finite does not enter the table.
    """
    old = table.row
    estimate = optax.tree.add(optax.tree.sub(new, old), table.mean)
    finite = jnp.isfinite(optax.tree.sum(new))
    kept = jax.tree.map(lambda g, g_old: jnp.where(finite, g, g_old), new, old)
    values = jax.tree.map(lambda t, g: t.at[block].set(g), table.values, kept)
    mean = jax.tree.map(
        lambda m, g, g_old, t: m + (g - g_old) / t.shape[0], table.mean, kept, old, values
    )
    return estimate, Table(values, mean, jax.tree.map(lambda t: t[following], values))


def make_info(
    outer: OuterTerms,
    directions: Point,
    calls: Calls,
    step_ratio: ScalarLike,
    linear_residual: Scalar | None = None,
) -> Info:
    """What a step along `directions` reports; the residuals are the lengths of the directions."""
    inner_residual = optax.tree.norm(directions.w)
    if linear_residual is None:
        linear_residual = jnp.asarray(optax.tree.norm(directions.v))
    diverged = jnp.isfinite(optax.tree.norm(outer.w)) & ~jnp.isfinite(linear_residual)
    return Info(
        outer_value=outer.value,
        outer_grad=directions.u,
        inner_residual=inner_residual,
        linear_residual=linear_residual,
        calls=calls,
        result=RESULTS.where(diverged, RESULTS.linear_divergence, RESULTS.successful),
        step_ratio=jnp.asarray(step_ratio).astype(outer.value.dtype),
    )
