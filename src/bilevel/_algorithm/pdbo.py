"""PDBO: a primal-dual method for several inner minimisers.

Sow, Ji, Guan and Liang (2022) [sow2022][].
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Scalar

from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_schedule, as_setting, known
from .auto_steps import step_size_at
from .base import AbstractAlgorithm, as_variables, count, require_positive
from .directions import Directions, descend, objective
from .loops import sgd
from .turn import init_state, open_turn


class _Aux(NamedTuple):
    multiplier: Scalar
    gap: Scalar  # of the step before


class PDBO(AbstractAlgorithm):
    """`min F(u, w)` over u and w subject to `f(u, w) - min_x f(u, x) <= delta`; no Hessian.

        x = num_inner gradient steps on f(u, .) from w,   gap = f(u, w) - f(u, x) - delta
        s = (gap + extrapolation (gap - the gap of the step before)) / delta
        multiplier <- multiplier + dual_step (1 + multiplier) clip(s, -1, 1), at least 0 and at most
                      max_multiplier
        d_u = grad_u F(u, w) + multiplier (grad_u f(u, w) - grad_u f(u, x))
        d_w = grad_w F(u, w) + multiplier grad_w f(u, w)
        u+ = retract(u, -outer_step d_u),   w+ = w - inner_step / (1 + multiplier) d_w

    A step down the Lagrangian `F + multiplier gap` in (u, w) after one up in the multiplier: Sow, Ji,
    Guan and Liang (2022), "A primal-dual approach to bilevel optimization with multiple inner minima",
    PDBO [sow2022][], with the extrapolation of the constraint of Boob, Deng and Lan (2023),
    "Stochastic first-order methods for convex and nonconvex functional constrained optimization"
    [boob2023][]. The inner solution need not be unique: among several, w goes to where F is small.
    In contrast to `ValueFunctionPenalty`, which is told its multiplier, this method finds it. It is
    told how far above its minimum f may stay.

    The equations follow the outline of the paper and were not compared with its pseudo-code. Four
    things are ours: the step of the multiplier is relative to `1 + multiplier` and to delta, and
    bounded, so that one setting serves many scales of F and f; the step of w is divided by
    `1 + multiplier`, so that one inner step serves both; x starts at w; f is not smoothed, and w is
    unconstrained.

    Args:
        inner_step, outer_step: numbers, or schedules of the number of steps made.
        dual_step: the same. The multiplier moves by at most `dual_step (1 + multiplier)` per step.
        delta: the same, in units of f, > 0. With mu the smallest positive curvature of f, w ends
            within `sqrt(2 delta / mu)` of an inner solution, and the multiplier is at most
            `|grad_w F| / sqrt(2 mu delta)`.
        max_multiplier: the same. If it is reached, f stays further than delta above its minimum.
        extrapolation: the same, in [0, 1]; the theory takes 1.
        first_multiplier: where the multiplier starts.
        num_inner: the number of steps from w to x.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Valid if F and the gap are convex in (u, w), and the curvature of F in w is less than
    `2 + multiplier` times the largest of f, at the first multiplier too. The inner steps leave
    `(1 - mu / L)^num_inner` of the distance of w from the inner solutions.

    `inner_residual` is `|grad_w f|` at x, `linear_residual` is the length of d_w and of the step of
    the multiplier together, and `state.aux.multiplier` is the multiplier. Cost per step: num_inner +
    2 inner gradients and an outer one. Memory beyond u and w: two numbers.

    Raises:
        ValueError: `num_inner` < 1; `delta` <= 0.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    dual_step: StepSize = eqx.field(default=0.03, converter=as_schedule)
    delta: StepSize = eqx.field(default=1e-3, converter=as_schedule)
    max_multiplier: StepSize = eqx.field(default=1e3, converter=as_schedule)
    extrapolation: StepSize = eqx.field(default=0.0, converter=as_schedule)
    first_multiplier: StepSize = eqx.field(default=10.0, converter=as_schedule)
    num_inner: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_inner=self.num_inner)
        delta = known(self.delta)
        if delta is not None and not np.all(delta > 0):
            raise ValueError(
                f"`PDBO` needs delta > 0, got {self.delta}: with 0 no multiplier is large enough."
            )

    def init(self, problem, u0, w0, key):
        """The first multiplier."""
        u0, w0 = as_variables(u0, w0)
        zero = jnp.zeros((), jax.tree.leaves(w0)[0].dtype)
        first = jnp.asarray(step_size_at(self.first_multiplier, jnp.zeros((), jnp.int32)))
        aux = _Aux(zero + first.astype(zero.dtype), zero)
        return init_state(self, problem, u0, w0, key, aux, num_inner=self.num_inner)

    def step(self, problem, state):
        """One step on the multiplier, then one on u and w."""
        u, w, (old, gap_old) = state.u, state.w, state.aux
        x, turn = sgd(open_turn(self, problem, state), u, w, self.num_inner)

        def now(setting: Any) -> Array:
            return jnp.asarray(turn.now(setting)).astype(old.dtype)

        outer = turn.outer(u, w)
        inner = jax.value_and_grad(objective(problem), argnums=(0, 1))
        (f_w, at_w), (f_x, at_x) = (inner(u, y, turn.inner_batch) for y in (w, x))
        delta = now(self.delta)
        gap = (f_w - f_x).astype(old.dtype) - delta
        further = now(self.extrapolation) * jnp.where(state.step == 0, 0, gap - gap_old)
        move_by = now(self.dual_step) * (1 + old) * jnp.clip((gap + further) / delta, -1, 1)
        multiplier = jnp.clip(old + move_by, 0, now(self.max_multiplier))
        d_u = descend(outer.u, -multiplier, optax.tree.sub(at_w[0], at_x[0]))
        d_w = descend(outer.w, -multiplier, at_w[1])
        return turn.close(
            Directions(d_u, at_x[1], outer),
            w=descend(w, now(self.inner_step) / (1 + multiplier), d_w),
            aux=_Aux(multiplier, gap),
            calls=count(1, self.num_inner + 2),
            linear_residual=optax.tree.norm((d_w, multiplier - old)),
        )
