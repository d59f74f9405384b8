"""The contract of an algorithm, and the functions that the methods share."""

import abc
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Int, Key, PyTree, Scalar, ScalarLike

from .._problem import Problem
from .._sampler import AbstractSampler, Stream, Streams
from .._solution import RESULTS, Calls
from .._variables import check_variable
from .auto_steps import Control, Move


class SamplerStates(NamedTuple):
    """What goes on with every step, also with a step that is not taken.

    Attributes:
        outer, inner: the states of the two samplers.
        tables: what a method remembers of each block of the data (`SABA`), always finite.
    """

    outer: Any
    inner: Any
    tables: Any = ()


class State(eqx.Module):
    """What the next step needs: the same class for all methods.

    Attributes:
        step: how many outer steps have been made.
        key: the random key of the run. It never changes; a step derives its own by `fold_in`.
        u, w: the outer variable (a point of U) and the inner variable.
        aux: what else the method carries, such as the adjoint variable v.
        samplers: the states of the two samplers.
        control: what step sizes `"auto"` have learned so far; `None` if there are none.
        calls: the oracle calls of all steps so far.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    u: PyTree[Array]
    w: PyTree[Array]
    aux: Any
    samplers: SamplerStates
    control: Control | None
    calls: Calls


class Info(eqx.Module):
    """What a person wants to see of one step.

    All values are taken where the step took its hypergradient: at the point that it started from,
    and in methods with an inner loop at that u and at the w after the loop.

    Attributes:
        outer_value: `F(u, w)` on the outer batch of the step.
        outer_grad: the estimate of the hypergradient that the step used, a pytree like `u`. `solve`
            reduces it to `||u - project(u - outer_grad)||`, at trace points only.
        inner_residual, linear_residual: as in `Hypergradient`.
        calls: what this step cost, without the product by which `"auto"` follows the curvature.
        result: how the solvers of the step ended.
        step_ratio: the outer step size divided by the inner one. This ratio of the two time scales
            decides whether weights on the simplex become sparse: Ivanova and Ablin (2023), "A
            challenge in reweighting data with bilevel optimization", Section 3 [ivanova2023][]. It
            is NaN for a method that does not move w by a step size of its own.
    """

    outer_value: Scalar
    outer_grad: PyTree[Array]
    inner_residual: Scalar
    linear_residual: Scalar
    calls: Calls
    result: RESULTS
    step_ratio: Scalar


class AbstractAlgorithm(eqx.Module):
    """A method for `min_u F(u, w*(u))`: a start and a step, both pure functions."""

    @abc.abstractmethod
    def init(
        self, problem: Problem, u0: PyTree[Array], w0: PyTree[Array], key: Key[Array, ""]
    ) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: State) -> tuple[State, Info]:
        """One outer step."""


@runtime_checkable
class SingleLoop(Protocol):
    """The fields of a method whose step is a turn: what `init_state` and `open_turn` need."""

    @property
    def inner_step(self) -> Any:
        """The step size of w: a number, a schedule of the number of outer steps made, or `"auto"`."""

    @property
    def outer_step(self) -> Any:
        """The step size of u, the same."""

    @property
    def inner_sampler(self) -> AbstractSampler:
        """Where inner batches come from."""
        ...

    @property
    def outer_sampler(self) -> AbstractSampler:
        """Where outer batches come from."""
        ...


@runtime_checkable
class AdjointLoop(SingleLoop, Protocol):
    """The same for a method with an adjoint variable v."""

    @property
    def linear_step(self) -> Any:
        """The step size of v, or of the series that it is made of."""


def require_positive(method: AbstractAlgorithm, **counts: int) -> None:
    """Refuse a count below 1, such as the number of inner steps."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{type(method).__name__}` needs {name} >= 1, got {value}.")


def as_variables(u0: PyTree, w0: PyTree) -> tuple[PyTree[Array], PyTree[Array]]:
    """u0 and w0 as arrays of one dtype; what `solve` would first bring into this form is refused."""

    def convert(x: Any) -> Any:
        return jnp.asarray(x) if isinstance(x, float | np.ndarray | np.generic) else x

    u0, w0 = jax.tree.map(convert, (u0, w0))
    for name, tree in (("u0", u0), ("w0", w0)):
        check_variable(name, tree)
    leaves = jax.tree.leaves((u0, w0))
    kinds = {str(x.dtype) if eqx.is_inexact_array(x) else type(x).__name__ for x in leaves}
    if len(kinds) > 1:
        raise TypeError(
            "`init` and `step` need floating-point arrays of one dtype in u0 and w0, got leaves of "
            f"{sorted(kinds)}. `given = bilevel.as_arrays(problem, u0, w0)` brings modules and several"
            " dtypes into that form: pass `given.problem, given.u, given.w`, and have the variables "
            "back by `given.restore(state.u, state.w)`. `solve` does so by itself."
        )
    return u0, w0


def init_samplers(problem: Problem, outer: Any, inner: Any, key: Key[Array, ""]) -> SamplerStates:
    """Start both samplers, each with a key of its own."""
    for name, sampler in (("outer_sampler", outer), ("inner_sampler", inner)):
        if not isinstance(sampler, AbstractSampler):
            raise TypeError(
                f"`{name}` must be a sampler such as `FullBatch()` or `Shuffled(32)`, got {sampler!r}."
            )
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


def count(
    outer_grad: ScalarLike = 0,
    inner_grad: ScalarLike = 0,
    hvp: ScalarLike = 0,
    mixed: ScalarLike = 0,
) -> Calls:
    """`Calls` from integers."""
    # Counters are arrays of a fixed dtype: a weakly typed 0 would compile anew after a reload.
    return Calls(*(jnp.asarray(n, jnp.int32) for n in (outer_grad, inner_grad, hvp, mixed)))


def choose(new_is_good: Array, new: State, old: State) -> State:
    """`new` where it is good, else `old`, but always the samplers of `new`.

    So another batch is tried after a step that was not taken, and tables, which are too large to be
    copied, never are.
    """
    chosen = {
        name: jax.tree.map(lambda x, y: jnp.where(new_is_good, x, y), value, vars(old)[name])
        for name, value in vars(new).items()
        if name != "samplers"
    }
    return State(samplers=new.samplers, **chosen)


def advance(
    state: State, move: Move, w: PyTree[Array], aux: Any, samplers: SamplerStates, calls: Calls
) -> State:
    """The state after a step that cost `calls`.

    With `"auto"` step sizes, a step to a point that is not finite is not taken, and they are halved.
    """
    step, total = state.step + 1, jax.tree.map(jnp.add, state.calls, calls)
    new = State(step, state.key, move.u, w, aux, samplers, move.control, total)
    if state.control is None or move.control is None:
        return new
    control = state.control
    halved = control._replace(
        curvature=2 * control.curvature, squares=jax.tree.map(lambda x: 4 * x, control.squares)
    )
    finite = jnp.isfinite(optax.tree.sum((move.u, w, move.control.squares)))
    old = State(step, state.key, state.u, state.w, state.aux, samplers, halved, total)
    return choose(finite, new, old)
