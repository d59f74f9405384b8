"""A turn: one step of a single-loop method, from the batches that it draws to its next state."""

import dataclasses
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree, Scalar, ScalarLike

from .._hypergradient.base import require_outer_variable
from .._loader import refuse_loader
from .._problem import Problem
from .._sampler import FullBatch, Stream, Streams
from .._settings import StepSize
from .._solution import Calls
from .auto_steps import (
    DECAY,
    Move,
    first_control,
    move_outer,
    series_step,
    step_size_at,
    update_curvature,
)
from .base import (
    AdjointLoop,
    Info,
    SamplerStates,
    SingleLoop,
    State,
    advance,
    as_variables,
    count,
    init_samplers,
    open_streams,
)
from .directions import (
    Directions,
    InnerTerms,
    OuterTerms,
    inner_gradient,
    inner_gradients,
    inner_terms,
    make_info,
    objective,
    outer_terms,
)

M = TypeVar("M", bound=SingleLoop)
M_co = TypeVar("M_co", bound=SingleLoop, covariant=True)


def init_state(
    method: SingleLoop,
    problem: Problem,
    u0: PyTree,
    w0: PyTree,
    key: Key[Array, ""],
    aux: Any = (),
    *,
    num_inner: int = 1,
    variance_reduced: bool = False,
) -> State:
    """The first state: the samplers' states, and what `"auto"` step sizes start from.

    Args:
        method, problem, u0, w0, key: as in `AbstractAlgorithm.init`.
        aux: what else the method carries.
        num_inner: how many steps w makes per outer step.
        variance_reduced: whether the noise of the directions vanishes at the solution, so that the
            inner steps `"auto"` need not decrease.

    Raises:
        TypeError: the problem is a fixed-point problem, or u0 and w0 are not arrays of one dtype.
        ValueError: the inner objective does not depend on its argument `u`.
    """
    objective(problem, f"`{type(method).__name__}`")
    u, w = as_variables(u0, w0)
    aux = jax.tree.map(jnp.asarray, aux)
    samplers = init_samplers(problem, method.outer_sampler, method.inner_sampler, key)
    streams = open_streams(problem, method.outer_sampler, method.inner_sampler, samplers)
    require_outer_variable(problem, u, w, streams.inner.draw()[0])
    control, calls = None, count()
    if any(isinstance(setting, str) for setting in jax.tree.leaves(method)):  # "auto"
        noisy = not (variance_reduced or isinstance(method.inner_sampler, FullBatch))
        first, decay = 1 / 3 if variance_reduced else 1.0, DECAY * num_inner if noisy else 0.0
        control, num_products = first_control(problem, u, w, streams, first, decay)
        calls = count(1, 0, num_products, 2)
    return State(jnp.zeros((), jnp.int32), key, u, w, aux, samplers, control, calls)


@dataclasses.dataclass(frozen=True)
class Turn(Generic[M_co]):
    """One step of a method while it is made. A turn never changes: `draw` and `at` return another.

    Attributes:
        method, problem: whose step it is.
        state: the state that the step started from, with `"auto"` brought up to date.
        outer_batch, inner_batch: the current batches, on which all oracles are taken.
        streams, following: where the current batches were drawn from, and where the next ones are.
    """

    method: M_co
    problem: Problem
    state: State
    outer_batch: Any
    inner_batch: Any
    streams: Streams
    following: Streams

    # Batches.

    @property
    def samplers(self) -> SamplerStates:
        """The samplers' states after the current batches."""
        outer, inner = (stream.state for stream in self.following)
        return self.state.samplers._replace(outer=outer, inner=inner)

    def draw(self) -> "Turn[M_co]":
        """The turn with the next outer and the next inner batch."""
        return _draw(self, self.following)

    def draw_inner(self) -> "Turn[M_co]":
        """The turn with the next inner batch."""
        return self.at_inner(self.following.inner.state)

    def at(self, samplers: SamplerStates) -> "Turn[M_co]":
        """The turn with the batches that come next after these states of the samplers."""
        outer, inner = self.streams
        outer = Stream(outer.sampler, outer.data, samplers.outer)
        return _draw(self, Streams(outer, Stream(inner.sampler, inner.data, samplers.inner)))

    def at_inner(self, state: Any) -> "Turn[M_co]":
        """The turn with the inner batch that comes next after this state of the inner sampler."""
        stream = Stream(self.streams.inner.sampler, self.streams.inner.data, state)
        batch, following = stream.draw()
        return dataclasses.replace(
            self,
            inner_batch=batch,
            streams=self.streams._replace(inner=stream),
            following=self.following._replace(inner=following),
        )

    def on_all_data(self) -> "Turn[M_co]":
        """The turn whose batches are all the data.

        Raises:
            ValueError: the batches come from a `FromLoader`.
        """
        for stream in self.streams:
            refuse_loader(stream.sampler, type(self.method).__name__)
        data = self.problem.outer_data, self.problem.inner_data
        return _draw(self, Streams(*(Stream(FullBatch(), x, ()) for x in data)))

    # Oracles on the current batches.

    def outer(self, u: PyTree, w: PyTree) -> OuterTerms:
        """`F`, `grad_u F` and `grad_w F`."""
        return outer_terms(self.problem, u, w, self.outer_batch)

    def inner(self, u: PyTree, w: PyTree, v: PyTree) -> InnerTerms:
        """`grad_w f`, `(d2_uw f)^T v` and `H v`, in one pass."""
        return inner_terms(self.problem, u, w, v, self.inner_batch)

    def inner_gradient(self, u: PyTree, w: PyTree) -> PyTree[Array]:
        """`grad_w f`."""
        return inner_gradient(self.problem, u, w, self.inner_batch)

    def inner_gradients(self, u: PyTree, w: PyTree) -> tuple[PyTree, PyTree]:
        """`(grad_u f, grad_w f)`."""
        return inner_gradients(self.problem, u, w, self.inner_batch)

    # Settings.

    def now(self, setting: StepSize) -> Any:
        """A setting at this step: a schedule is called with the number of steps made."""
        return step_size_at(setting, self.state.step, self.state.control)

    @property
    def inner_step(self) -> Any:
        """The step size of w."""
        return self.now(self.method.inner_step)

    @property
    def linear_step(self: "Turn[AdjointLoop]") -> Any:
        """The step size of v."""
        return self.now(self.method.linear_step)

    @property
    def series_step(self: "Turn[AdjointLoop]") -> Any:
        """The same for a series of products, which has to stay of the order of 1 / L."""
        return series_step(self.method.linear_step, self.state.step, self.state.control)

    # The end.

    def move(self, direction: PyTree[Array]) -> Move:
        """The outer step along `direction`: the new u as `.u`, and its step size as `.step`."""
        return move_outer(self.method.outer_step, self.problem, self.state, direction)

    def close(
        self,
        d: Directions,
        *,
        w: PyTree[Array],
        aux: Any,
        calls: Calls,
        move: Move | None = None,
        linear_residual: Scalar | ScalarLike | None = None,
        samplers: SamplerStates | None = None,
    ) -> tuple[State, Info]:
        """The next state and what the step reports.

        Args:
            d: the directions; u moves along `d.u`, and the residuals are the lengths of the others.
            w, aux: the next inner variable, and what else the method carries.
            calls: the oracle calls of the step, from `count`. Nobody else counts them.
            move: the outer step, if it is not `self.move(d.u)`.
            linear_residual: the residual of the linear system, if it is not the length of `d.v`.
            samplers: the samplers' next states, if they are not those after the current batches.
        """
        move = self.move(d.u) if move is None else move
        samplers = self.samplers if samplers is None else samplers
        info = make_info(d, calls, move.step / self.inner_step, linear_residual)
        return advance(self.state, move, w, aux, samplers, calls), info


def open_turn(method: M, problem: Problem, state: State) -> Turn[M]:
    """Draw an outer and an inner batch, and bring `"auto"` up to date."""
    streams = open_streams(problem, method.outer_sampler, method.inner_sampler, state.samplers)
    state = update_curvature(problem, state, streams.inner)
    return _draw(Turn(method, problem, state, None, None, streams, streams), streams)


def _draw(turn: Turn[M], streams: Streams) -> Turn[M]:
    (outer_batch, outer), (inner_batch, inner) = streams.outer.draw(), streams.inner.draw()
    return dataclasses.replace(
        turn,
        outer_batch=outer_batch,
        inner_batch=inner_batch,
        streams=streams,
        following=Streams(outer, inner),
    )
