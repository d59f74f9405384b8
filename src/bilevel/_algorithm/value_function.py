"""BOME and the penalty method: gradients of `F` and of the value gap `f(u, w) - min_x f(u, x)`.

Liu, Ye, Wright, Stone and Liu (2022) [liu2022][], and Shen and Chen (2023) [shen2023][].
"""

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._arrays import dot
from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_schedule, as_setting
from .base import AbstractAlgorithm, State, count, require_positive
from .directions import Directions, OuterTerms, descend
from .loops import scaled, sgd
from .turn import Turn, init_state, open_turn


class BOME(AbstractAlgorithm):
    """A step on (u, w) along grad F, corrected so that the inner value gap shrinks; no Hessian.

        x = num_inner gradient steps on f(u, .) from w,   q(u, w) = f(u, w) - f(u, x), x held fixed
        multiplier = max(eta |grad q|^2 - <grad F, grad q>, 0) / |grad q|^2
        d = grad F + multiplier grad q
        u+ = retract(u, -outer_step d_u),   w+ = w - outer_step d_w

    so that `<d, grad q> >= eta |grad q|^2`: Liu, Ye, Wright, Stone and Liu (2022), "BOME! Bilevel
    optimization made easy: A simple first-order approach", Algorithm 1 [liu2022][]. The inner solution
    need not be unique.

    Args:
        inner_step: the size of the steps from w to x; a number, or a schedule of the number of steps
            made.
        outer_step: the size of the step on u and w; the same. With "auto", w moves by at most
            `inner_step / (1 + multiplier)`.
        eta: how fast the gap is made to shrink, > 0.
        num_inner: the number of steps from w to x.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `inner_residual` is `|grad_w f|` at x, and `linear_residual` is `|d_w|`. Cost per step: num_inner
    + 2 inner gradients and an outer one. Memory beyond u and w: none.

    Raises:
        ValueError: `num_inner` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    eta: StepSize = eqx.field(default=0.5, converter=as_schedule)
    num_inner: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_inner=self.num_inner)

    def init(self, problem, u0, w0, key):
        """Nothing but the samplers."""
        return init_state(self, problem, u0, w0, key, num_inner=self.num_inner)

    def step(self, problem, state):
        """One step on u and w."""
        turn, outer, at_w, at_x = _inner_loop(
            open_turn(self, problem, state), state, self.num_inner
        )
        gap = (optax.tree.sub(at_w[0], at_x[0]), at_w[1])
        size = jnp.asarray(optax.tree.norm(gap, squared=True))
        along = dot((outer.u, outer.w), gap)
        eta = jnp.asarray(turn.now(self.eta)).astype(size.dtype)
        multiplier = jnp.where(
            size > 0, jnp.maximum(eta - along / jnp.where(size > 0, size, 1), 0), 0
        )
        d_u, d_w = descend((outer.u, outer.w), -multiplier, gap)

        move = turn.move(d_u)
        w_step = move.step
        if isinstance(self.outer_step, str):
            # This step was made for u; the curvature in w is about 1 + multiplier times that of f.
            w_step = jnp.minimum(w_step, turn.inner_step / (1 + multiplier))
        return turn.close(
            Directions(d_u, at_x[1], outer),
            w=descend(state.w, w_step, d_w),
            aux=(),
            calls=count(1, self.num_inner + 2),
            move=move,
            linear_residual=optax.tree.norm(d_w),
        )


class ValueFunctionPenalty(AbstractAlgorithm):
    """Gradient descent on `F(u, w) + multiplier (f(u, w) - min_x f(u, x))`, in u and w; no Hessian.

        x = num_inner gradient steps on f(u, .) from w
        d_u = grad_u F(u, w) + multiplier (grad_u f(u, w) - grad_u f(u, x))
        d_w = grad_w f(u, w) + grad_w F(u, w) / multiplier
        u+ = retract(u, -outer_step d_u),   w+ = w - inner_step d_w

    Shen and Chen (2023), "On penalty-based bilevel gradient descent method", Algorithm 1 (V-PBGD)
    [shen2023][], with the step of w divided by the multiplier. The inner solution need not be unique:
    among several, w goes to where F is small. The solution is that of the penalised problem, at a
    distance of the order of 1 / multiplier.

    Args:
        inner_step, outer_step, multiplier: numbers, or schedules of the number of steps made.
        num_inner: the number of steps from w to x.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `inner_residual` is `|grad_w f|` at x, and `linear_residual` is `multiplier |d_w|`. Cost per step:
    num_inner + 2 inner gradients and an outer one. Memory beyond u and w: none.

    Raises:
        ValueError: `num_inner` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    multiplier: StepSize = eqx.field(default=10.0, converter=as_schedule)
    num_inner: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_inner=self.num_inner)

    def init(self, problem, u0, w0, key):
        """Nothing but the samplers."""
        return init_state(self, problem, u0, w0, key, num_inner=self.num_inner)

    def step(self, problem, state):
        """One step on u and w."""
        turn, outer, at_w, at_x = _inner_loop(
            open_turn(self, problem, state), state, self.num_inner
        )
        multiplier = turn.now(self.multiplier)
        d_u = descend(outer.u, -multiplier, optax.tree.sub(at_w[0], at_x[0]))
        d_w = descend(at_w[1], -1 / multiplier, outer.w)
        return turn.close(
            Directions(d_u, at_x[1], outer),
            w=descend(state.w, turn.inner_step, d_w),
            aux=(),
            calls=count(1, self.num_inner + 2),
            linear_residual=optax.tree.norm(scaled(multiplier, d_w)),
        )


Gradients = tuple[PyTree[Array], PyTree[Array]]


def _inner_loop(
    turn: Turn, state: State, num_inner: int
) -> tuple[Turn, OuterTerms, Gradients, Gradients]:
    """Steps from w to x; then on one batch F with its gradients at w, those of f at w and at x."""
    x, turn = sgd(turn, state.u, state.w, num_inner)
    at_w, at_x = (turn.inner_gradients(state.u, y) for y in (state.w, x))
    return turn, turn.outer(state.u, state.w), at_w, at_x
