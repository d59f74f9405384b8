"""MRBO, SUSTAIN and VRBO: differences of directions at two points, with v from a Neumann series.

Yang, Ji and Liang (2021) [yang2021][], and Khanduri, Zeng, Hong, Wai, Wang and Yang (2021)
[khanduri2021][].
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, ScalarLike

from .._problem import Problem
from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_schedule, as_setting
from .base import (
    AbstractAlgorithm,
    Info,
    SamplerStates,
    State,
    as_variables,
    count,
    require_positive,
)
from .directions import Directions, Point, at_both, descend, joint_directions, recursive
from .loops import neumann, randomised_neumann
from .turn import Turn, init_state, open_turn

Series = Callable[[Turn, Point, PyTree], tuple[PyTree, Turn, ScalarLike]]


class MRBO(AbstractAlgorithm):
    """Recursive momentum on w and on u, with one Neumann series per step.

        D_w = grad_w f(z) + (1 - momentum) (D_w- - grad_w f(z-))
        D_u = p(z) + (1 - momentum) (D_u- - p(z-)),     p(z) = grad_u F - (d2_uw f)^T v(z)
        v(z) = linear_step sum_{k < K} (I - linear_step H_k) ... (I - linear_step H_1) grad_w F
        w+ = w - inner_step D_w,   u+ = retract(u, -outer_step D_u)

    with z = (u, w), z- the point before, and both p on the same batches: Yang, Ji and Liang (2021),
    "Provably faster algorithms for bilevel optimization", Algorithm 1 [yang2021][]. The first
    directions are plain. `SUSTAIN` differs in the series.

    Args:
        inner_step, linear_step, outer_step, momentum: numbers, or schedules of the number of steps
            made; as in `SOBA`, where the linear step is that of the series. The paper takes steps of
            the order of `step^(-1/3)` and a momentum of `step^(-2/3)`.
        num_terms: K.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `linear_residual` is that of v(z) on the first inner batch. Cost per step: one outer and K inner
    batches; at two points an outer gradient, an inner gradient, K Hessian-vector products and a mixed
    product. Memory beyond u and w: two vectors like u and two like w (the point before, and its
    direction).

    Raises:
        ValueError: `num_terms` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    momentum: StepSize = eqx.field(default=0.1, converter=as_schedule)
    num_terms: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_terms=self.num_terms)

    def init(self, problem, u0, w0, key):
        """No direction yet."""
        return init_state(self, problem, u0, w0, key, aux=_start(*as_variables(u0, w0)))

    def step(self, problem, state):
        """One joint step."""
        return _momentum_step(self, problem, state, _series(self.num_terms))


class SUSTAIN(AbstractAlgorithm):
    """Recursive momentum on w and on u, with a Neumann series that is cut at random.

        D_w = grad_w f(z) + (1 - momentum) (D_w- - grad_w f(z-))
        D_u = p(z) + (1 - momentum) (D_u- - p(z-)),     p(z) = grad_u F - (d2_uw f)^T v(z)
        v(z) = K linear_step (I - linear_step H_p) ... (I - linear_step H_1) grad_w F
        w+ = w - inner_step D_w,   u+ = retract(u, -outer_step D_u)

    with z = (u, w), z- the point before, both p on the same batches, and p uniform on 0 .. K - 1:
    Khanduri, Zeng, Hong, Wai, Wang and Yang (2021), "A momentum-assisted single-timescale stochastic
    approximation algorithm for bilevel optimization", Algorithm 1 [khanduri2021][]. The first
    directions are plain. `MRBO` differs in the series.

    Args:
        num_terms: K. The others are those of `MRBO`.

    `linear_residual` is that of v(z) on the first inner batch. Cost per step: one outer and p + 1
    inner batches; at two points an outer gradient, an inner gradient, p + 1 Hessian-vector products
    and a mixed product. Memory beyond u and w: two vectors like u and two like w (the point before,
    and its direction).

    Raises:
        ValueError: `num_terms` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    momentum: StepSize = eqx.field(default=0.1, converter=as_schedule)
    num_terms: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_terms=self.num_terms)

    def init(self, problem, u0, w0, key):
        """No direction yet."""
        return init_state(self, problem, u0, w0, key, aux=_start(*as_variables(u0, w0)))

    def step(self, problem, state):
        """One joint step."""

        def series(turn: Turn, z: Point, b: PyTree):
            return randomised_neumann(turn, z, b, self.num_terms)

        return _momentum_step(self, problem, state, series)


class VRBO(AbstractAlgorithm):
    """One outer step, then inner steps along which both directions are updated by differences.

        D = d(u, w) on all data                       where step % period == 0
        u+ = retract(u, -outer_step D_u)
        D <- d_B(u+, w) - d_B(u, w) + D
        num_inner times:  w+ = w - inner_step D_w,   D <- d_B(u+, w+) - d_B(u+, w) + D
        d = (grad_u F - (d2_uw f)^T v, grad_w f),   v from K terms of the Neumann series

    with both d_B of an update on the same batches, so that D ends at the point (u+, w+) from which the
    next step starts: Yang, Ji and Liang (2021), "Provably faster algorithms for bilevel optimization",
    Algorithm 2 [yang2021][].

    Args:
        inner_step, linear_step, outer_step: numbers, or schedules of the number of steps made; the
            linear step is that of the series.
        period: the number of outer steps from one pass over all data to the next.
        num_inner: the number of inner steps per outer step.
        num_terms: K.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `outer_value`, `inner_residual` and `linear_residual` are those of the last update, at the end of
    the step. Cost per step: num_inner + 1 times one outer and K inner batches, with the oracles of
    `MRBO` at two points; every `period` steps once all data with K - 1 products more. Memory beyond u
    and w: a direction for each; during a step also the point.

    Raises:
        ValueError: `period`, `num_inner` or `num_terms` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    period: int = eqx.field(default=20, kw_only=True)
    num_inner: int = 3
    num_terms: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        counts = {"num_inner": self.num_inner, "num_terms": self.num_terms}
        require_positive(self, period=self.period, **counts)

    def init(self, problem, u0, w0, key):
        """No direction yet."""
        aux = optax.tree.zeros_like(Point(*as_variables(u0, w0)))
        return init_state(self, problem, u0, w0, key, aux, variance_reduced=True)

    def step(self, problem, state):
        """One outer step and its inner loop."""
        turn, z, series = open_turn(self, problem, state), Point(state.u, state.w), self.num_terms
        restart = state.step % self.period == 0

        def exact() -> Point:
            return _directions(turn.on_all_data(), z, _series(series))[0]

        d = jax.lax.cond(restart, exact, lambda: state.aux)
        move = turn.move(d.u)

        def update(carry: tuple[Point, Point, SamplerStates], step: Array) -> tuple[Any, Any]:
            old, d, samplers = carry
            here, new = turn.at(samplers), Point(move.u, descend(old.w, step, d.w))
            (d_new, seen), (d_old, _) = at_both(
                lambda z: _directions(here, z, _series(series)), new, old
            )
            samplers = here.samplers._replace(inner=seen[2])
            return (new, recursive(d_new, d_old, d, 0.0), samplers), seen[:2]

        # The first update follows u alone, so that D ends at the point where the next step starts.
        inner_step = jnp.asarray(turn.inner_step)
        steps = jnp.where(jnp.arange(self.num_inner + 1) == 0, 0, inner_step)
        (end, last, samplers), seen = jax.lax.scan(update, (z, d, state.samplers), steps)
        outer, residual = jax.tree.map(lambda x: x[-1], seen)

        pairs = 2 * (self.num_inner + 1)
        calls = jax.tree.map(
            lambda batches, full: batches + restart.astype(full.dtype) * full,
            count(pairs, pairs, pairs * self.num_terms, pairs),
            count(1, 1, self.num_terms - 1, 1),
        )
        return turn.close(
            Directions(d.u, last.w, outer),
            w=end.w,
            aux=last,
            calls=calls,
            move=move,
            linear_residual=residual,
            samplers=samplers,
        )


def _start(u: PyTree, w: PyTree) -> tuple[Point, Point]:
    """The point before the first one, and the directions there, which do not count."""
    z = Point(u, w)
    return z, optax.tree.zeros_like(z)


def _series(num_terms: int) -> Series:
    """All K terms of the Neumann series."""

    def series(turn: Turn, z: Point, b: PyTree) -> tuple[PyTree, Turn, ScalarLike]:
        v, turn = neumann(turn, z, b, num_terms - 1)
        return v, turn, num_terms - 1

    return series


def _directions(turn: Turn, z: Point, series: Series) -> tuple[Point, tuple]:
    """The directions of u and w with v from `series`.

    Also the outer terms, the residual of v, the next state of the inner sampler and the number of
    products.
    """
    outer = turn.outer(z.u, z.w)
    v, later, num_products = series(turn.draw_inner(), z, outer.w)
    d = joint_directions(outer, turn.inner(z.u, z.w, v))
    residual = jnp.asarray(optax.tree.norm(d.v))
    return Point(d.u, d.w), (outer, residual, later.streams.inner.state, num_products)


def _momentum_step(
    method: MRBO | SUSTAIN, problem: Problem, state: State, series: Series
) -> tuple[State, Info]:
    """Steps on w and u along two directions with recursive momentum."""
    turn, z, (z_old, d_old) = open_turn(method, problem, state), Point(state.u, state.w), state.aux
    (new, seen), (new_at_old, _) = at_both(lambda z: _directions(turn, z, series), z, z_old)
    outer, residual, draws, num_products = seen
    momentum: Array = jnp.where(state.step == 0, 1.0, turn.now(method.momentum))
    d = recursive(new, new_at_old, d_old, momentum)
    return turn.close(
        Directions(d.u, d.w, outer),
        w=descend(z.w, turn.inner_step, d.w),
        aux=(z, d),
        calls=count(2, 2, 2 * (num_products + 1), 2),
        linear_residual=residual,
        samplers=turn.samplers._replace(inner=draws),
    )
