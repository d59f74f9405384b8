"""F2SA: fully first-order stochastic approximation.

Kwon, Kwon, Wright and Nowak (2023) [kwon2023][].
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_schedule, as_setting
from .base import AbstractAlgorithm, count, require_positive
from .directions import Directions, descend
from .turn import init_state, open_turn


def _growing(step: Int[Array, ""]) -> Array:
    return 10 * (1 + 0.1 * jnp.asarray(step, float)) ** 0.5


class F2SA(AbstractAlgorithm):
    """The hypergradient as a difference of two gradients; no Hessian.

        w <- w - inner_step grad_w f(u, w)                                          num_inner times
        y <- y - inner_step (grad_w f(u, y) + grad_w F(u, y) / multiplier)          as often
        d_u = grad_u F(u, y) + multiplier (grad_u f(u, y) - grad_u f(u, w))
        u+ = retract(u, -outer_step d_u)

    w follows an inner solution and y the minimiser of `F + multiplier f`, so `multiplier (w - y)`
    tends to the v of implicit methods: Kwon, Kwon, Wright and Nowak (2023), "A fully first-order
    method for stochastic bilevel optimization", Algorithm 1 [kwon2023][]. Unlike in the paper, the
    step of y is divided by the multiplier, so that one inner step serves both. w and y see the same
    inner batches, in the loop and in d_u, so that most of their noise cancels in the difference,
    which the multiplier amplifies (the paper draws new batches for each).

    `solution.w` is y, which is of the order of 1 / multiplier away from the inner solutions. Where
    there are several, y finds the one that F prefers, while w stays with the one near its start; w is
    `solution.state.aux`.

    Args:
        inner_step, outer_step: numbers, or schedules of the number of outer steps made.
        multiplier: the same. The bias of d_u is of the order of 1 / multiplier, and its noise grows
            with the multiplier; by default it is `10 sqrt(1 + step / 10)`.
        num_inner: the number of steps on w and on y per outer step.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `inner_residual` is that of w, and `linear_residual` is `|multiplier grad_w f + grad_w F|` at y.
    Cost per step: 2 num_inner + 2 inner and num_inner + 1 outer gradients. Memory beyond u and y: w.

    Raises:
        ValueError: `num_inner` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    multiplier: StepSize = eqx.field(default=_growing, converter=as_schedule)
    num_inner: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_inner=self.num_inner)

    def init(self, problem, u0, w0, key):
        """Both start at `w0`."""
        return init_state(self, problem, u0, w0, key, aux=w0, num_inner=self.num_inner)

    def step(self, problem, state):
        """One outer step."""
        turn, u = open_turn(self, problem, state), state.u
        inner_step, multiplier = turn.inner_step, turn.now(self.multiplier)

        def move_both(carry: tuple[PyTree, PyTree, Any], _: None) -> tuple[Any, None]:
            w, y, samplers = carry
            here = turn.at(samplers)
            d_y = descend(here.inner_gradient(u, y), -1 / multiplier, here.outer(u, y).w)
            w = descend(w, inner_step, here.inner_gradient(u, w))
            return (w, descend(y, inner_step, d_y), here.samplers), None

        first = (state.aux, state.w, state.samplers)
        (w, y, samplers), _ = jax.lax.scan(move_both, first, length=self.num_inner)
        turn = turn.at(samplers)
        outer = turn.outer(u, y)
        at_w, at_y = turn.inner_gradients(u, w), turn.inner_gradients(u, y)
        d_u = descend(outer.u, -multiplier, optax.tree.sub(at_y[0], at_w[0]))

        residual = optax.tree.norm(descend(outer.w, -multiplier, at_y[1]))
        calls = count(self.num_inner + 1, 2 * self.num_inner + 2)
        d = Directions(d_u, at_w[1], outer)
        return turn.close(d, w=y, aux=w, calls=calls, linear_residual=residual)
