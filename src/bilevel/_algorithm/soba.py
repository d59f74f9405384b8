"""SOBA: the single-loop method of Dagréou, Ablin, Vaiter and Moreau (2022) [dagreou2022][]."""

import equinox as eqx
import optax

from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_setting
from .base import AbstractAlgorithm, as_variables, count
from .directions import descend, joint_directions
from .turn import init_state, open_turn


class SOBA(AbstractAlgorithm):
    """All three variables move at once, each along an unbiased direction of its own.

        d_w = grad_w f(u, w)                         w+ = w - inner_step * d_w
        d_v = H v - grad_w F(u, w)                   v+ = v - linear_step * d_v
        d_u = grad_u F(u, w) - (d2_uw f(u, w))^T v   u+ = retract(u, -outer_step * d_u)

    with H = d2_ww f(u, w), and the directions at the same point and on the same batches: Dagréou,
    Ablin, Vaiter and Moreau (2022), "A framework for bilevel optimization that enables stochastic and
    global variance reduction algorithms", Algorithm 1 with the directions (3) to (5) [dagreou2022][].
    In the paper `v` has the opposite sign.

    Args:
        inner_step, linear_step: the step sizes of `w` and `v`. They must be below 2 / L, where L is
            the largest eigenvalue of H *on a batch*.
        outer_step: the step size of `u`. The ratio outer_step / inner_step decides whether `u`
            follows the bilevel problem or runs ahead of `w`. On the simplex, running ahead makes the
            weights sparse: Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel
            optimization", Section 3 [ivanova2023][].
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `d_u` is biased while `v` and `w` move towards their targets: look at all three residuals. Cost
    per step: one outer gradient, and one forward-over-reverse pass that gives the inner gradient, the
    Hessian-vector product and the mixed product together. Memory beyond u and w: v.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        u0, w0 = as_variables(u0, w0)
        return init_state(self, problem, u0, w0, key, aux=optax.tree.zeros_like(w0))

    def step(self, problem, state):
        """One joint step."""
        turn, u, w, v = open_turn(self, problem, state), state.u, state.w, state.aux
        d = joint_directions(turn.outer(u, w), turn.inner(u, w, v))
        v = descend(v, turn.linear_step, d.v)
        w = descend(w, turn.inner_step, d.w)
        return turn.close(d, w=w, aux=v, calls=count(1, 1, 1, 1))
