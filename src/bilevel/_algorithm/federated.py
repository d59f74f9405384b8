"""FedNest and LFedNest: bilevel optimization over clients, with local steps of u as well.

Tarzanagh, Li, Thrampoulidis and Oymak (2022) [tarzanagh2022][].
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, ScalarLike

from .._inner.federated import FederatedInner
from .._problem import Problem, num_rows
from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_setting
from .auto_steps import Move
from .base import AbstractAlgorithm, count, require_positive
from .directions import Directions, descend, inner_terms, joint_directions, outer_terms
from .turn import Turn, init_state, open_turn


class FedNest(AbstractAlgorithm):
    """Local steps of w and of u between averages over clients, both corrected.

        w:   one round of FedInn, num_inner local steps per client (`FederatedInner`)
        v = linear_step sum_{j < num_terms} (I - linear_step H)^j grad_w F,   H, F: averages
        h = grad_u F - (d2_uw f)^T v                                   (an average)
        u_i <- u_i - outer_step (grad_u F_i(u_i, w) - grad_u F_i(u, w) + h)      num_outer times
        u+ = retract(u, mean_i u_i - u)                                (FedOut)

    Args:
        inner_step, outer_step: of the local steps; numbers, or schedules of the outer steps made.
        linear_step, num_terms: of the Neumann series, whose products are averages over clients.
        num_inner, num_outer: local steps of w and of u, >= 1.
        inner_sampler, outer_sampler: the clients of a step; all of them by default.

    The clients are axis 0 of the data: `tasks.federated(problem, inner_rows, outer_rows)` makes such a
    problem. The correction of the local steps of u makes them begin along h, and leaves only the
    *direct* gradient to follow them: the part through w is that of the start. Where F does not depend
    on u by itself, they are num_outer times the same step. Local steps of u are therefore worth as
    much as the direct gradient is of the whole, and `DoubleLoop` with `FederatedInner` and an accurate
    linear solver is the same method with one.

    Cost per step: num_inner local gradients, num_terms products and num_outer local outer gradients
    per client; 2 + num_terms + 2 averages. Memory beyond u and w: v. This is a simulation, see
    `FederatedInner`.

    Raises:
        ValueError: a count is below 1, a step size is "auto", or the problem has no outer or no inner
            data.

    Source: Tarzanagh, Li, Thrampoulidis and Oymak (2022), "FedNest: Federated bilevel, minimax, and
    compositional optimization" (FedNest, FedInn and FedOut) [tarzanagh2022][]. There
    the series has a random length; here it is the full one, as in the authors' code.
    """

    inner_step: StepSize = eqx.field(converter=as_setting)
    linear_step: StepSize = eqx.field(converter=as_setting)
    outer_step: StepSize = eqx.field(converter=as_setting)
    num_inner: int = 5
    num_outer: int = 1
    num_terms: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        _check(self)

    def init(self, problem, u0, w0, key):
        """Nothing is carried along."""
        _check_clients(self, problem)
        return init_state(self, problem, u0, w0, key)

    def step(self, problem, state):
        """One round of each."""
        turn, u = open_turn(self, problem, state), state.u
        w = _round(turn, self.num_inner, True)
        outer, size = turn.outer(u, w), turn.linear_step
        v = _series(lambda x: turn.inner(u, w, x).product, outer.w, size, self.num_terms)
        d = joint_directions(outer, turn.inner(u, w, v))
        outer_step = turn.now(self.outer_step)

        def displacement(client: PyTree) -> PyTree[Array]:
            def own(u: PyTree) -> PyTree[Array]:
                return jax.grad(problem.outer)(u, w, _alone(client))

            correction = optax.tree.sub(d.u, own(u))

            def local(u_i: PyTree, _: None) -> tuple[PyTree, None]:
                return descend(u_i, outer_step, optax.tree.add(own(u_i), correction)), None

            first = descend(u, outer_step, d.u)
            return optax.tree.sub(jax.lax.scan(local, first, length=self.num_outer - 1)[0], u)

        return _moved(
            turn, d, w, jax.vmap(displacement)(turn.outer_batch), outer_step, self._calls()
        )

    def _calls(self) -> Any:
        local = self.num_outer if self.num_outer > 1 else 0
        return count(1 + local, self.num_inner + 1, self.num_terms, 1)


class LFedNest(AbstractAlgorithm):
    """FedNest with nothing shared but averages: each client follows its own hypergradient.

        w:   one round of FedAvg, num_inner local steps per client, without correction
        v_i = linear_step sum_{j < num_terms} (I - linear_step H_i)^j grad_w F_i
        u_i <- u_i - outer_step (grad_u F_i - (d2_uw f_i)^T v_i)(u_i, w)         num_outer times
        u+ = retract(u, mean_i u_i - u)

    Args:
        inner_step, linear_step, outer_step, num_inner, num_outer, num_terms, inner_sampler,
            outer_sampler: as in `FedNest`; the two samplers are equal, and draw the same clients.

    It needs two averages per step, where `FedNest` needs `num_terms` more. **It ends at another point
    where clients differ**: the mean of their own hypergradients is not the hypergradient, and their
    own steps of w drift. Where all clients have the same data it is `FedNest` with exact local
    hypergradients.

    Raises:
        ValueError: as in `FedNest`, the outer and the inner data have other numbers of clients, or the
            samplers differ.

    Source: Tarzanagh, Li, Thrampoulidis and Oymak (2022), "FedNest: Federated bilevel, minimax, and
    compositional optimization" [tarzanagh2022][], their light variant, as in the authors' code.
    """

    inner_step: StepSize = eqx.field(converter=as_setting)
    linear_step: StepSize = eqx.field(converter=as_setting)
    outer_step: StepSize = eqx.field(converter=as_setting)
    num_inner: int = 5
    num_outer: int = 1
    num_terms: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        _check(self)
        if self.inner_sampler != self.outer_sampler:
            raise ValueError(
                "`LFedNest` takes both data of each client, so its samplers have to draw the same "
                f"clients: they must be equal, got inner_sampler={self.inner_sampler} and "
                f"outer_sampler={self.outer_sampler}."
            )

    def init(self, problem, u0, w0, key):
        """Nothing is carried along."""
        counts = _check_clients(self, problem)
        if counts[0] != counts[1]:
            raise ValueError(
                f"`LFedNest` needs the outer and the inner data of the same clients, got {counts[0]} "
                f"and {counts[1]} along axis 0; deal both to as many clients with `tasks.federated`."
            )
        state = init_state(self, problem, u0, w0, key)
        same = state.samplers._replace(outer=state.samplers.inner)
        return dataclasses.replace(state, samplers=same)

    def step(self, problem, state):
        """One round of each."""
        turn, u = open_turn(self, problem, state), state.u
        w = _round(turn, self.num_inner, False)
        size, outer_step = turn.linear_step, turn.now(self.outer_step)

        def at(u: PyTree, outer_client: PyTree, inner_client: PyTree) -> Directions:
            outer = outer_terms(problem, u, w, _alone(outer_client))

            def terms(x: PyTree) -> Any:
                return inner_terms(problem, u, w, x, _alone(inner_client))

            v = _series(lambda x: terms(x).product, outer.w, size, self.num_terms)
            return joint_directions(outer, terms(v))

        def displacement(*client: PyTree) -> tuple[PyTree[Array], Directions]:
            first = at(u, *client)

            def local(u_i: PyTree, _: None) -> tuple[PyTree, None]:
                return descend(u_i, outer_step, at(u_i, *client).u), None

            start = descend(u, outer_step, first.u)
            last, _ = jax.lax.scan(local, start, length=self.num_outer - 1)
            return optax.tree.sub(last, u), first

        moves, own = jax.vmap(displacement)(turn.outer_batch, turn.inner_batch)
        calls = count(
            self.num_outer,
            self.num_inner + self.num_outer,
            self.num_outer * self.num_terms,
            self.num_outer,
        )
        return _moved(turn, _mean(own), w, moves, outer_step, calls)


def _check(method: FedNest | LFedNest) -> None:
    """Refuse counts below 1, and steps that clients would have to agree on."""
    require_positive(
        method, num_inner=method.num_inner, num_outer=method.num_outer, num_terms=method.num_terms
    )
    for name in ("inner_step", "linear_step", "outer_step"):
        if isinstance(vars(method)[name], str):
            raise ValueError(
                f"`{type(method).__name__}` needs a number or a schedule as {name}, got 'auto': what "
                "'auto' learns, clients would have to agree on."
            )


def _check_clients(method: AbstractAlgorithm, problem: Problem) -> tuple[int, int]:
    counts = num_rows(problem.outer_data), num_rows(problem.inner_data)
    if not all(counts):
        raise ValueError(
            f"`{type(method).__name__}` takes the entries along axis 0 of the data for clients, and "
            "there are none; `tasks.federated(problem, inner_rows, outer_rows)` makes such a problem."
        )
    return counts[0] or 0, counts[1] or 0


def _round(turn: Turn, num_inner: int, corrected: bool) -> PyTree[Array]:
    """The inner variable after one round of local steps, on the clients of the turn."""
    inner, stream = FederatedInner(turn.inner_step, num_inner, 1, corrected), turn.streams.inner
    return inner.solve(turn.problem, turn.state.u, turn.state.w, (), stream)[0]


def _series(product: Any, b: PyTree[Array], step: ScalarLike, num_terms: int) -> PyTree[Array]:
    """`step sum_{j < num_terms} (I - step H)^j b`."""

    def term(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
        x, total = carry
        x = descend(x, step, product(x))
        return (x, optax.tree.add(total, x)), None

    (_, total), _ = jax.lax.scan(term, (b, b), length=num_terms - 1)
    return jax.tree.map(lambda x: jnp.asarray(step).astype(x.dtype) * x, total)


def _alone(client: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda x: x[None], client)


def _mean(stacked: PyTree[Array]) -> Any:
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)


def _moved(
    turn: Turn, d: Directions, w: PyTree, moves: PyTree, outer_step: ScalarLike, calls: Any
) -> Any:
    """The end of a step that moves u by the mean of the clients' displacements."""
    u = turn.problem.geometry.retract(turn.state.u, _mean(moves))
    move = Move(u, jnp.asarray(outer_step), turn.state.control)
    return turn.close(d, w=w, aux=(), calls=calls, move=move)
