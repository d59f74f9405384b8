"""FSLA: a fully single loop with momentum on the outer direction.

Li, Gu and Huang (2022) [li2022][].
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_schedule, as_setting
from .base import AbstractAlgorithm, as_variables, count
from .directions import Directions, OuterTerms, Point, at_both, descend, recursive
from .turn import init_state, open_turn


class _Aux(NamedTuple):
    v: PyTree[Array]
    u_old: PyTree[Array]
    direction: PyTree[Array]


class FSLA(AbstractAlgorithm):
    """One step on w, then on v, then on u, each at the newest point, with momentum on u.

        w+ = w - inner_step grad_w f(u, w)
        v+ = v - linear_step (H(u, w+) v - grad_w F(u, w+))
        p(u, w, v) = grad_u F(u, w) - (d2_uw f(u, w))^T v
        D+ = p(u, w+, v+) + (1 - momentum) (D - p(u-, w, v))      u- the outer point before
        u+ = retract(u, -outer_step D+)

    Li, Gu and Huang (2022), "A fully single loop algorithm for bilevel optimization without Hessian
    inverse", Algorithm 1 [li2022][]. Each p is taken on the same batches at both points; the first D
    is p.

    Args:
        inner_step, linear_step, outer_step, momentum: numbers, or schedules of the number of steps
            made; as in `SOBA`. The paper takes steps and a momentum of the order of 1 / sqrt(step).
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost per step: three inner and two outer batches; an inner gradient, a Hessian-vector product and
    an outer gradient for v, and an outer gradient and a mixed product at each of two points. Memory
    beyond that of `SOBA`: two vectors like u.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    momentum: StepSize = eqx.field(default=0.1, converter=as_schedule)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        u0, w0 = as_variables(u0, w0)
        aux = _Aux(optax.tree.zeros_like(w0), u0, optax.tree.zeros_like(u0))
        return init_state(self, problem, u0, w0, key, aux)

    def step(self, problem, state):
        """One step on each variable."""
        turn = open_turn(self, problem, state)
        u, w, (v, u_old, d_old) = state.u, state.w, state.aux
        d_w = turn.inner_gradient(u, w)
        w_next = descend(w, turn.inner_step, d_w)

        turn = turn.draw_inner()
        d_v = optax.tree.sub(turn.inner(u, w_next, v).product, turn.outer(u, w_next).w)
        v_next = descend(v, turn.linear_step, d_v)

        turn = turn.draw()

        def hypergradient(z: Point) -> tuple[PyTree[Array], OuterTerms]:
            outer = turn.outer(z.u, z.w)
            return optax.tree.sub(outer.u, turn.inner(*z).mixed), outer

        new_point, old_point = Point(u, w_next, v_next), Point(u_old, w, v)
        (new, outer), (new_at_old, _) = at_both(hypergradient, new_point, old_point)
        momentum = jnp.where(state.step == 0, 1.0, turn.now(self.momentum))
        d_u = recursive(new, new_at_old, d_old, momentum)
        d = Directions(d_u, d_w, outer, d_v)
        return turn.close(d, w=w_next, aux=_Aux(v_next, u, d_u), calls=count(3, 1, 1, 2))
