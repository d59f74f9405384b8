"""The contract of an algorithm, and the functions that the methods share."""

import abc
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, Key, PyTree, Scalar, ScalarLike

from .._problem import Problem
from .._sampler import AbstractSampler, Stream, Streams
from .._solution import RESULTS, Calls
from .auto_steps import Control, Move

T = TypeVar("T")


class State(eqx.Module):
    """What the next step needs: the same class for all methods.

    Attributes:
        step: how many outer steps have been made.
        key: the run's random key; it never changes, a step derives its own by `fold_in`.
        u, w: the outer variable (a point of U) and the inner variable.
        aux: whatever else the method carries.
        calls: the oracle calls of all steps so far.
        control: what step sizes `"auto"` have learned so far; `None` without one.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    u: PyTree[Array]
    w: PyTree[Array]
    aux: Any
    calls: Calls
    control: Control | None


class Info(eqx.Module):
    """What a person wants to see of one step.

    All are taken where the step took its hypergradient: at the point it started from, and in methods
    with an inner loop at that u and the w after the loop.

    Attributes:
        outer_value: `F(u, w)` on the step's outer batch.
        outer_grad: the estimate of the hypergradient that the step used, a pytree like `u`. `solve`
            reduces it to `||u - project(u - outer_grad)||`, at trace points only.
        inner_residual, linear_residual: as in `Hypergradient`.
        calls: what this step cost, without the product with which `"auto"` follows the curvature.
        result: how the step's own solvers ended.
        step_ratio: outer over inner step size, the ratio of the two time scales, which decides
            whether weights on the simplex go sparse (Ivanova & Ablin, section 3); NaN for a method
            that does not move w by a step size of its own.
    """

    outer_value: Scalar
    outer_grad: PyTree[Array]
    inner_residual: Scalar
    linear_residual: Scalar
    calls: Calls
    result: RESULTS
    step_ratio: Scalar


class AbstractAlgorithm(eqx.Module):
    """A method for `min_u F(u, w*(u))`: a start and a step, both pure."""

    @abc.abstractmethod
    def init(
        self, problem: Problem, u0: PyTree[Array], w0: PyTree[Array], key: Key[Array, ""]
    ) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: State) -> tuple[State, Info]:
        """One outer step."""


class SamplerStates(NamedTuple):
    """The states of the two samplers, as kept in `State.aux`."""

    outer: Any
    inner: Any


def init_samplers(
    problem: Problem, outer: AbstractSampler, inner: AbstractSampler, key: Key[Array, ""]
) -> SamplerStates:
    """Start both samplers, each on a key of its own."""
    outer_key, inner_key = jr.split(key)
    return SamplerStates(
        outer=outer.init(problem.outer_data, outer_key),
        inner=inner.init(problem.inner_data, inner_key),
    )


def open_streams(
    problem: Problem, outer: AbstractSampler, inner: AbstractSampler, states: SamplerStates
) -> Streams:
    """The streams of batches that go on from `states`."""
    return Streams(
        outer=Stream(outer, problem.outer_data, states.outer),
        inner=Stream(inner, problem.inner_data, states.inner),
    )


def close_streams(streams: Streams) -> SamplerStates:
    """The part of the streams that changes, to be kept for the next step."""
    return SamplerStates(outer=streams.outer.state, inner=streams.inner.state)


def count(
    outer_grad: ScalarLike = 0,
    inner_grad: ScalarLike = 0,
    hvp: ScalarLike = 0,
    cross: ScalarLike = 0,
) -> Calls:
    """`Calls` from integers."""
    # Counters are arrays of a fixed dtype: a weakly typed 0 would compile anew after a reload.
    return Calls(*(jnp.asarray(n, jnp.int32) for n in (outer_grad, inner_grad, hvp, cross)))


class Begun(NamedTuple):
    """What a run of any method begins with."""

    u: PyTree[Array]
    w: PyTree[Array]
    key: Key[Array, ""]
    samplers: SamplerStates
    control: Control | None
    calls: Calls


def start(begun: Begun, aux: Any, calls: Calls | None = None) -> State:
    """A state at step 0, after `calls` more than it took to begin."""
    spent = begun.calls if calls is None else jax.tree.map(jnp.add, begun.calls, calls)
    step = jnp.zeros((), jnp.int32)
    return State(step, begun.key, begun.u, begun.w, aux, spent, begun.control)


class Table(NamedTuple):
    """The last value seen of each block, always finite, their mean, and the next block's row.

    The row is read when the table has just been written: read before the next writing, it would make
    XLA copy the table, which at 400 blocks of 7840 takes a hundred times as long as the step.
    """

    values: Any
    mean: Any
    row: Any


def choose(new_is_good: Array, new: T, old: T) -> T:
    """`new` where it is good, else `old`.

    Tables are good always, and too large to be copied; samplers go on, so that another batch is tried.
    """
    always = (Table, SamplerStates)

    def pick(x: Any, y: Any) -> Any:
        return x if isinstance(x, always) else jnp.where(new_is_good, x, y)

    return jax.tree.map(pick, new, old, is_leaf=lambda x: isinstance(x, always))


def advance(state: State, move: Move, w: PyTree[Array], aux: Any, calls: Calls) -> State:
    """The state after a step that cost `calls`.

    With `"auto"` step sizes, a step to a point that is not finite is not taken, and they are halved.
    """
    total = jax.tree.map(jnp.add, state.calls, calls)
    taken = (move.u, w, aux, move.control)
    if state.control is not None and move.control is not None:
        control = state.control
        halved = control._replace(
            curvature=2 * control.curvature, squares=jax.tree.map(lambda x: 4 * x, control.squares)
        )
        finite = jnp.isfinite(optax.tree.sum((move.u, w, move.control.squares)))
        taken = choose(finite, taken, (state.u, state.w, state.aux, halved))
    u, w, aux, control = taken
    return State(state.step + 1, state.key, u, w, aux, total, control)
