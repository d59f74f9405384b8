"""The only loop in the library: `run_chunk`, compiled."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ._algorithm.base import AbstractAlgorithm, State, choose
from ._checks import check_objectives
from ._geometry import outer_residual
from ._loader import as_many_again, at_rest, missing, positions
from ._problem import Problem
from ._solution import RESULTS

# In place of the NaN of a method without such a ratio, at which `jax_debug_nans` would end the run.
NO_RATIO = -jnp.inf


class Tolerances(NamedTuple):
    """When a run has converged: *all three* residuals at or below their tolerance."""

    outer: float
    inner: float
    linear: float


class RunOptions(NamedTuple):
    """When a run stops and what it records, as arrays: changing them compiles nothing."""

    num_steps: Int[Array, ""]
    trace_every: Int[Array, ""]
    tolerances: Tolerances


class Status(NamedTuple):
    """Whether a run is over, and why."""

    over: Bool[Array, ""]
    result: RESULTS


class Row(NamedTuple):
    """One trace point; `live` is False where a step recorded none."""

    live: Bool[Array, ""]
    step: Int[Array, ""]
    outer_value: Float[Array, ""]
    outer_residual: Float[Array, ""]
    inner_residual: Float[Array, ""]
    linear_residual: Float[Array, ""]
    step_ratio: Float[Array, ""]
    move: Float[Array, ""]
    result: Int[Array, ""]
    outer_grads: Int[Array, ""]
    inner_grads: Int[Array, ""]
    hvps: Int[Array, ""]
    mixed: Int[Array, ""]


def run_chunk(
    problem: Problem,
    algorithm: AbstractAlgorithm,
    options: RunOptions,
    state: State,
    status: Status,
    *,
    chunk_size: int,
) -> tuple[State, Status, Row]:
    """At most `chunk_size` steps in one compiled loop; pure, so it may be jitted or vmapped.

    The loop ends with the run (enough steps, converged, or a non-finite number), so a last, partial
    chunk needs no second compilation. It also ends where the batches of a `FromLoader` that are on
    the device do, which `Loaders` opened: a step that needs others is not taken. Returns the new state
    and status, and the rows recorded, which are marked `live`.
    """
    # While tracing, so that a compiled run pays nothing for it.
    check_objectives(problem, algorithm, state)

    def one(state: State) -> tuple[State, Status, Row]:
        following, info = algorithm.step(problem, state)
        finite = jnp.isfinite(info.outer_value + info.inner_residual + info.linear_residual)
        # A step can overflow at a finite gradient, so the point it leads to is looked at as well. A
        # sum is finite only if all its terms are, and passes over 8000 weights are what costs here.
        for tree in (optax.tree.add(info.outer_grad, following.u), following.w):
            finite &= jnp.isfinite(optax.tree.sum(tree))
        # A step that met a non-finite number is not taken: the state stays the last good one.
        following = choose(finite, following, state)
        dtype = info.outer_value.dtype

        step = state.step + 1
        recorded = (step % options.trace_every == 0) | (step == options.num_steps) | ~finite

        def measure() -> tuple[Array, Array]:
            moved = optax.tree.sub((following.u, following.w), (state.u, state.w))
            residual = outer_residual(problem.geometry, state.u, info.outer_grad)
            return residual.astype(dtype), jnp.asarray(optax.tree.norm(moved)).astype(dtype)

        unknown = jnp.zeros_like(info.outer_value)  # of a row that is not live
        residual, move = jax.lax.cond(recorded, measure, lambda: (unknown, unknown))
        tolerances = jax.tree.map(lambda x: x.astype(dtype), options.tolerances)
        converged = (
            recorded
            & (residual <= tolerances.outer)
            & (info.inner_residual <= tolerances.inner)
            & (info.linear_residual <= tolerances.linear)
        )
        failure = RESULTS.where(
            info.result == RESULTS.linear_divergence, info.result, RESULTS.nonfinite
        )
        status = Status(
            over=converged | ~finite | (step >= options.num_steps),
            result=RESULTS.where(
                finite,
                RESULTS.where(converged, RESULTS.successful, RESULTS.outer_max_steps_reached),
                failure,
            ),
        )
        calls = following.calls
        return (
            following,
            status,
            Row(
                live=recorded,
                step=step,
                outer_value=info.outer_value,
                outer_residual=residual,
                inner_residual=info.inner_residual,
                linear_residual=info.linear_residual,
                step_ratio=jnp.where(jnp.isnan(info.step_ratio), NO_RATIO, info.step_ratio),
                move=move,
                result=jnp.where(finite, info.result._value, failure._value),
                outer_grads=calls.outer_grad,
                inner_grads=calls.inner_grad,
                hvps=calls.hvp,
                mixed=calls.mixed,
            ),
        )

    row_shape = eqx.filter_eval_shape(one, state)[2]
    rows = jax.tree.map(lambda x: jnp.zeros((chunk_size, *x.shape), x.dtype), row_shape)

    has_loader = bool(positions(state))

    def unfinished(carry: tuple[State, Status, Row, Array, Array]) -> Array:
        _, status, _, k, waits = carry
        return ~status.over & (k < chunk_size) & ~waits

    def body(
        carry: tuple[State, Status, Row, Array, Array],
    ) -> tuple[State, Status, Row, Array, Array]:
        state, status, rows, k, waits = carry
        following = one(state)
        if has_loader:
            lacking = missing(following[0])
            waits = lacking | ~as_many_again(state, following[0])
            unchanged = (state, status, following[2]._replace(live=jnp.zeros((), bool)))
            following = jax.tree.map(lambda x, y: jnp.where(lacking, x, y), unchanged, following)
        state, status, row = following
        rows = jax.tree.map(lambda all_rows, x: all_rows.at[k].set(x), rows, row)
        return state, status, rows, k + 1, waits

    first = (state, status, rows, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    state, status, rows = jax.lax.while_loop(unfinished, body, first)[:3]
    return at_rest(state), status, rows
