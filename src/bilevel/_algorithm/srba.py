"""SRBA: SOBA with variance reduction by SARAH.

Dagréou, Moreau, Vaiter and Ablin (2023) [dagreou2023][].
"""

from typing import NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PyTree

from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_setting
from .base import AbstractAlgorithm, as_variables, count, require_positive
from .directions import (
    Directions,
    OuterTerms,
    Point,
    at_both,
    descend,
    joint_directions,
    recursive,
)
from .turn import Turn, init_state, open_turn


class _Aux(NamedTuple):
    v: PyTree[Array]
    old: Point
    d: Point


class SRBA(AbstractAlgorithm):
    """SOBA whose three directions are exact every `period` steps and updated by differences between.

        D = d(z) on all data                        where step % period == 0
        D = d_B(z) - d_B(z-) + D-                   elsewhere, both on the same batch B; z- before z
        w+ = w - inner_step D_w,   v+ = v - linear_step D_v,   u+ = retract(u, -outer_step D_u)

    with the three directions d of `SOBA`: Dagréou, Moreau, Vaiter and Ablin (2023), "A lower bound and
    a near-optimal algorithm for bilevel empirical risk minimization", Algorithm 1 [dagreou2023][].
    Unlike in the paper, v is not projected onto a ball.

    Args:
        inner_step, linear_step, outer_step: numbers, or schedules of the number of steps made; as in
            `SOBA`.
        period: the number of steps from one pass over all data to the next, which should be of the
            order of the number of batches.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost per step: the oracles of `SOBA` at two points, or once on all data. Memory beyond that of
    `SOBA`: a point and a direction for each of the three variables.

    Raises:
        ValueError: `period` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    period: int = eqx.field(default=20, kw_only=True)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, period=self.period)

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        u0, w0 = as_variables(u0, w0)
        z = Point(u0, w0, optax.tree.zeros_like(w0))
        aux = _Aux(z.v, z, optax.tree.zeros_like(z))
        return init_state(self, problem, u0, w0, key, aux, variance_reduced=True)

    def step(self, problem, state):
        """One joint step."""
        turn, z = open_turn(self, problem, state), Point(state.u, state.w, state.aux.v)

        def exact():
            d, outer = _directions(turn.on_all_data(), z)
            return d, outer, count(1, 1, 1, 1)

        def updated():
            (new, outer), (old, _) = at_both(lambda z: _directions(turn, z), z, state.aux.old)
            return recursive(new, old, state.aux.d, 0.0), outer, count(2, 2, 2, 2)

        d, outer, calls = jax.lax.cond(state.step % self.period == 0, exact, updated)
        v = descend(z.v, turn.linear_step, d.v)
        w = descend(z.w, turn.inner_step, d.w)
        d_all = Directions(d.u, d.w, outer, d.v)
        return turn.close(d_all, w=w, aux=_Aux(v, z, d), calls=calls)


def _directions(turn: Turn, z: Point) -> tuple[Point, OuterTerms]:
    d = joint_directions(turn.outer(z.u, z.w), turn.inner(*z))
    return Point(d.u, d.w, d.v), d.outer
