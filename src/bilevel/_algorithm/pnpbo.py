"""SPABA, SFFBA and MSEBA: one loop, with PAGE or ZeroSARAH for each of the three directions.

Chu, Xu, Yao and Zhang (2024) [chu2024][]; Chu, Xu, Yao, Yu and Zhang (2025) [chu2025][].
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, PyTree, ScalarLike

from .._sampler import AbstractSampler, Blocks, FullBatch, Stream
from .._settings import StepSize, as_schedule, as_setting, known
from .base import AbstractAlgorithm, as_variables, count
from .directions import (
    Directions,
    InnerTerms,
    OuterTerms,
    Point,
    Table,
    at_both,
    descend,
    first_table,
    joint_directions,
    recursive,
    saga,
)
from .turn import Turn, init_state, open_turn


class _Aux(NamedTuple):
    v: PyTree[Array]
    old: Point
    d: Point


class SPABA(AbstractAlgorithm):
    """SOBA whose three directions are exact at random steps and updated by differences between (PAGE).

        D = d(z) on all data                        at step 0 and with probability `probability`
        D = d_B(z) - d_B(z-) + D-                   elsewhere, both on the same batch B; z- before z
        w+ = w - inner_step D_w,   v+ = v - linear_step D_v,   u+ = retract(u, -outer_step D_u)

    with the three directions d of `SOBA`. Chu, Xu, Yao and Zhang (2024), "SPABA: A single-loop and
    probabilistic stochastic bilevel algorithm achieving optimal sample complexity" [chu2024][], with
    the estimator PAGE of Li, Bao, Zhang and Richtárik (2021), "PAGE: A simple and optimal
    probabilistic gradient estimator for nonconvex optimization", Algorithm 1 [li2021][]. One coin
    decides for all three directions. `SRBA` makes the same steps with passes at fixed times.

    Args:
        inner_step, linear_step, outer_step: numbers, or schedules of the number of steps made; as in
            `SOBA`.
        probability: of a pass over all data, in (0, 1]; a number or a schedule. PAGE takes b / (n + b)
            with batches of b out of n rows, with which a step costs two batches and one more in
            expectation.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost per step: the oracles of `SOBA` at two points, or once on all data. Memory beyond that of
    `SOBA`: a point and a direction for each of the three variables.

    Raises:
        ValueError: the probability is not in (0, 1].

    The equations are read from the estimator's paper and from the solver that the authors gave to
    benchmark_bilevel, which also clips v; here v is not projected.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    probability: StepSize = eqx.field(default=0.1, kw_only=True, converter=as_schedule)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        _check_share("SPABA", "probability", self.probability)

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        u0, w0 = as_variables(u0, w0)
        return init_state(self, problem, u0, w0, key, _start(u0, w0), variance_reduced=True)

    def step(self, problem, state):
        """One joint step."""
        turn, z = open_turn(self, problem, state), Point(state.u, state.w, state.aux.v)

        def exact():
            d = _directions(turn.on_all_data(), z)
            return _moves(d), d.outer, count(1, 1, 1, 1)

        def updated():
            new, old = at_both(lambda z: _directions(turn, z), z, state.aux.old)
            d = recursive(_moves(new), _moves(old), state.aux.d, 0.0)
            return d, new.outer, count(2, 2, 2, 2)

        d, outer, calls = jax.lax.cond(_coin(turn, self.probability), exact, updated)
        return _joint_step(turn, z, d, outer, calls)


class SFFBA(AbstractAlgorithm):
    """SOBA with variance reduction that never passes over all data (ZeroSARAH).

        D = g_B(z) + (1 - a) (D- - g_B(z-)) + a (mean_j T_j - T_B),   then T_B = g_B(z)
        w+ = w - inner_step D_w,   v+ = v - linear_step D_v,   u+ = retract(u, -outer_step D_u)

    for each of the five sums g of the three directions of `SOBA`, with a = `momentum`, z- the point
    before z, and tables T of what was last seen of each block, which start at zero. In the first step
    D = g_B(z). Chu, Xu, Yao, Yu and Zhang (2025), "A provably convergent plug-and-play framework for
    stochastic bilevel optimization" [chu2025][], with the estimator ZeroSARAH of Li, Hanzely and
    Richtárik (2021), "ZeroSARAH: Efficient nonconvex finite-sum optimization with zero full gradient
    computations" [li2021b][]. It is SARAH whose anchor is a slow SAGA.

    Args:
        inner_step, linear_step, outer_step: numbers, or schedules of the number of steps made; as in
            `SOBA`.
        momentum: a, in (0, 1]; a number or a schedule. ZeroSARAH takes b / (2 n) with batches of b out
            of n rows.
        inner_sampler, outer_sampler: `Blocks`, which say which block a batch is.

    Cost per step: the oracles of `SOBA` at two points. Memory: the tables of `SABA`, and the point and
    the direction of `SRBA`.

    Raises:
        TypeError: a sampler is not `Blocks`.
        ValueError: the momentum is not in (0, 1].

    The authors' solver in benchmark_bilevel adds the new gradient 1 + 2 a times, with which D tends to
    three times the gradient; here it is added once, as in the paper of ZeroSARAH, so that D is exact
    where the only block is all data. That solver also clips v; here v is not projected.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    momentum: StepSize = eqx.field(default=0.1, kw_only=True, converter=as_schedule)
    inner_sampler: Blocks = eqx.field(kw_only=True)
    outer_sampler: Blocks = eqx.field(kw_only=True)

    def __check_init__(self):
        _check_share("SFFBA", "momentum", self.momentum)
        _check_blocks("SFFBA", "inner_sampler", self.inner_sampler)
        _check_blocks("SFFBA", "outer_sampler", self.outer_sampler)

    def init(self, problem, u0, w0, key):
        """`v = 0`, and tables of zeros."""
        u0, w0 = as_variables(u0, w0)
        state = init_state(self, problem, u0, w0, key, _start(u0, w0), variance_reduced=True)
        turn, z = open_turn(self, problem, state), Point(u0, w0, state.aux.v)
        tables = (
            _zeros(self.outer_sampler, turn.streams.outer, turn.outer(z.u, z.w)),
            _zeros(self.inner_sampler, turn.streams.inner, turn.inner(*z)),
        )
        return eqx.tree_at(lambda s: s.samplers, state, state.samplers._replace(tables=tables))

    def step(self, problem, state):
        """One joint step."""
        turn, z = open_turn(self, problem, state), Point(state.u, state.w, state.aux.v)
        outer_table, inner_table = state.samplers.tables
        a = _first_is_one(turn, self.momentum)

        def terms(z: Point) -> tuple[OuterTerms, InnerTerms]:
            return turn.outer(z.u, z.w), turn.inner(*z)

        new, old = at_both(terms, z, state.aux.old)
        next_outer = _block(self.outer_sampler, turn.following.outer)
        next_inner = _block(self.inner_sampler, turn.following.inner)
        outer_anchor, outer_table = _anchor(outer_table, new[0], next_outer)
        inner_anchor, inner_table = _anchor(inner_table, new[1], next_inner)
        d = recursive(
            _moves(joint_directions(*new)), _moves(joint_directions(*old)), state.aux.d, a
        )
        anchor = _moves(joint_directions(outer_anchor, inner_anchor))
        tables = (outer_table, inner_table)
        return _joint_step(turn, z, _plus(d, a, anchor), new[0], count(2, 2, 2, 2), tables)


class MSEBA(AbstractAlgorithm):
    """One loop with mixed estimators: ZeroSARAH for w, PAGE for u and v.

        D_w = g_B(z) + (1 - a) (D_w- - g_B(z-)) + a (mean_j T_j - T_B),   g = grad_w f
        (D_u, D_v) = d(z) on all data               at step 0 and with probability `probability`
        (D_u, D_v) = d_B(z) - d_B(z-) + D-          elsewhere
        w+ = w - inner_step D_w,   v+ = v - linear_step D_v,   u+ = retract(u, -outer_step D_u)

    with the letters of `SPABA` and `SFFBA`. Chu, Xu, Yao, Yu and Zhang (2025), "A provably convergent
    plug-and-play framework for stochastic bilevel optimization" [chu2025][].

    Args:
        inner_step, linear_step, outer_step: numbers, or schedules of the number of steps made; as in
            `SOBA`.
        momentum: a, as in `SFFBA`.
        probability: of a pass over all data, as in `SPABA`.
        inner_sampler: `Blocks`, which say which block a batch is.
        outer_sampler: where outer batches come from; all data by default.

    Cost per step: the oracles of `SOBA` at two points, and with the given probability those on all
    data. Memory: one vector like w for each inner block, and the point and the direction of `SRBA`.

    Raises:
        TypeError: the inner sampler is not `Blocks`.
        ValueError: the momentum or the probability is not in (0, 1].

    Read from the abstract, which speaks of mixed strategies, and from the authors' solver in
    benchmark_bilevel, which fixes which variable has which estimator; departures as in `SFFBA`.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    momentum: StepSize = eqx.field(default=0.1, kw_only=True, converter=as_schedule)
    probability: StepSize = eqx.field(default=0.1, kw_only=True, converter=as_schedule)
    inner_sampler: Blocks = eqx.field(kw_only=True)
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        _check_share("MSEBA", "momentum", self.momentum)
        _check_share("MSEBA", "probability", self.probability)
        _check_blocks("MSEBA", "inner_sampler", self.inner_sampler)

    def init(self, problem, u0, w0, key):
        """`v = 0`, and a table of zeros."""
        u0, w0 = as_variables(u0, w0)
        state = init_state(self, problem, u0, w0, key, _start(u0, w0), variance_reduced=True)
        turn = open_turn(self, problem, state)
        table = _zeros(self.inner_sampler, turn.streams.inner, turn.inner_gradient(u0, w0))
        return eqx.tree_at(lambda s: s.samplers, state, state.samplers._replace(tables=table))

    def step(self, problem, state):
        """One joint step."""
        turn, z = open_turn(self, problem, state), Point(state.u, state.w, state.aux.v)
        a = _first_is_one(turn, self.momentum)
        new, old = at_both(lambda z: _directions(turn, z), z, state.aux.old)
        following = _block(self.inner_sampler, turn.following.inner)
        anchor, table = _anchor(state.samplers.tables, new.w, following)
        d_w = _plus(recursive(new.w, old.w, state.aux.d.w, a), a, anchor)

        def exact():
            d = _directions(turn.on_all_data(), z)
            return (d.u, d.v), count(3, 3, 3, 3)

        def updated():
            before = state.aux.d.u, state.aux.d.v
            return recursive((new.u, new.v), (old.u, old.v), before, 0.0), count(2, 2, 2, 2)

        (d_u, d_v), calls = jax.lax.cond(_coin(turn, self.probability), exact, updated)
        return _joint_step(turn, z, Point(d_u, d_w, d_v), new.outer, calls, table)


# What they share.


def _start(u0: PyTree, w0: PyTree) -> _Aux:
    z = Point(u0, w0, optax.tree.zeros_like(w0))
    return _Aux(z.v, z, optax.tree.zeros_like(z))


def _directions(turn: Turn, z: Point) -> Directions:
    return joint_directions(turn.outer(z.u, z.w), turn.inner(*z))


def _moves(d: Directions) -> Point:
    return Point(d.u, d.w, d.v)


def _coin(turn: Turn, probability: StepSize) -> Bool[Array, ""]:
    """Whether this step passes over all data: always at the start."""
    key = jr.fold_in(turn.state.key, turn.state.step)
    return (turn.state.step == 0) | jr.bernoulli(key, turn.now(probability))


def _first_is_one(turn: Turn, momentum: StepSize) -> Any:
    return jnp.where(turn.state.step == 0, 1.0, turn.now(momentum))


def _block(sampler: Blocks, stream: Stream) -> Int[Array, ""]:
    """The block that the stream draws next."""
    return sampler.block(sampler.draw(stream.data, stream.state)[0])


def _zeros(sampler: Blocks, stream: Stream, like: Any) -> Table:
    """A table of zeros; the next block of the stream comes first."""
    blocks = sampler.num_blocks(stream.data)
    values = jax.tree.map(lambda x: jax.lax.broadcast(jnp.zeros_like(x), (blocks,)), like)
    return first_table(values, _block(sampler, stream))


def _anchor(table: Table, new: Any, following: Int[Array, ""]) -> tuple[Any, Table]:
    """`mean_j T_j - T_B`, and the table with the new value of block B."""
    return optax.tree.sub(table.mean, table.row), saga(table, new, following)[1]


def _plus(d: Any, a: ScalarLike, anchor: Any) -> Any:
    return jax.tree.map(lambda d, x: d + jnp.asarray(a).astype(d.dtype) * x, d, anchor)


def _joint_step(
    turn: Turn, z: Point, d: Point, outer: OuterTerms, calls: Any, tables: Any = ()
) -> Any:
    v = descend(z.v, turn.linear_step, d.v)
    w = descend(z.w, turn.inner_step, d.w)
    samplers = turn.samplers._replace(tables=tables)
    d_all = Directions(d.u, d.w, outer, d.v)
    return turn.close(d_all, w=w, aux=_Aux(v, z, d), calls=calls, samplers=samplers)


def _check_share(method: str, name: str, value: StepSize) -> None:
    numbers = known(value)
    if numbers is not None and not np.all((numbers > 0) & (numbers <= 1)):
        raise ValueError(f"`{method}` needs a {name} in (0, 1], got {value}.")


def _check_blocks(method: str, name: str, sampler: Any) -> None:
    if not isinstance(sampler, Blocks):
        raise TypeError(
            f"`{method}` keeps the last gradient of every block, so its `{name}` must be "
            f"`Blocks(batch_size)`, got `{type(sampler).__name__}`."
        )
