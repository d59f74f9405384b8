"""StocBiO, BSA and AmIGO: a warm inner loop on w, then a loop for v, then a step on u.

Ji, Yang and Liang (2021) [ji2021][]; Ghadimi and Wang (2018) [ghadimi2018][] and Hong, Wai, Wang and
Yang (2020) [hong2020][]; Arbel and Mairal (2022) [arbel2022][].
"""

import equinox as eqx
import optax

from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_setting
from .base import AbstractAlgorithm, as_variables, count, require_positive
from .directions import Point, joint_directions
from .loops import linear_sgd, neumann, randomised_neumann, sgd
from .turn import init_state, open_turn


class StocBiO(AbstractAlgorithm):
    """Warm-started SGD on w, a Neumann series for v, a step on u.

        w <- w - inner_step grad_w f(u, w)                      num_inner times, from the last w
        v = linear_step sum_{k < K} (I - linear_step H_k) ... (I - linear_step H_1) grad_w F(u, w)
        u+ = retract(u, -outer_step (grad_u F(u, w) - (d2_uw f(u, w))^T v))

    with a new inner batch for every gradient and product: Ji, Yang and Liang (2021), "Bilevel
    optimization: Convergence analysis and enhanced design", Algorithm 2 [ji2021][]. `BSA` cuts the
    series at random, and `AmIGO` starts v from the last one.

    Args:
        inner_step, linear_step, outer_step: numbers, or schedules of the number of outer steps made.
        num_inner, num_terms: T and K.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost per step: num_inner inner gradients, K - 1 products, an outer gradient and a joint pass.
    Memory beyond u and w: none.

    Raises:
        ValueError: a number of steps or terms < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    num_inner: int = 10
    num_terms: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_inner=self.num_inner, num_terms=self.num_terms)

    def init(self, problem, u0, w0, key):
        """Nothing but the samplers."""
        return init_state(self, problem, u0, w0, key, num_inner=self.num_inner)

    def step(self, problem, state):
        """One outer step."""
        turn, u = open_turn(self, problem, state), state.u
        w, turn = sgd(turn, u, state.w, self.num_inner)
        outer = turn.outer(u, w)
        v, turn = neumann(turn, Point(u, w), outer.w, self.num_terms - 1)
        d = joint_directions(outer, turn.inner(u, w, v))
        return turn.close(d, w=w, aux=(), calls=count(1, self.num_inner + 1, self.num_terms, 1))


class BSA(AbstractAlgorithm):
    """SGD on w, a Neumann series for v that is cut at random, a step on u.

        w <- w - inner_step grad_w f(u, w)                      num_inner times, from the last w
        v = K linear_step (I - linear_step H_p) ... (I - linear_step H_1) grad_w F(u, w)
        u+ = retract(u, -outer_step (grad_u F(u, w) - (d2_uw f(u, w))^T v))

    with p uniform on 0 .. K - 1 and a new inner batch for every gradient and product: Ghadimi and Wang
    (2018), "Approximation methods for bilevel programming", Algorithm 2 [ghadimi2018][]. With
    `num_inner=1` it is TTSA: Hong, Wai, Wang and Yang (2020), "A two-timescale framework for bilevel
    optimization: Complexity analysis and application to actor-critic", Algorithm 1 [hong2020][], whose
    outer step decays faster than its inner one, as `step^(-3/5)` and `step^(-2/5)`.

    The arguments are those of `StocBiO`. Cost per step: num_inner inner gradients, p products, an
    outer gradient and a joint pass. Memory beyond u and w: none. v has the mean of the series and a
    large variance.

    Raises:
        ValueError: a number of steps or terms < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    num_inner: int = 10
    num_terms: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_inner=self.num_inner, num_terms=self.num_terms)

    def init(self, problem, u0, w0, key):
        """Nothing but the samplers."""
        return init_state(self, problem, u0, w0, key, num_inner=self.num_inner)

    def step(self, problem, state):
        """One outer step."""
        turn, u = open_turn(self, problem, state), state.u
        w, turn = sgd(turn, u, state.w, self.num_inner)
        outer = turn.outer(u, w)
        v, turn, p = randomised_neumann(turn, Point(u, w), outer.w, self.num_terms)
        d = joint_directions(outer, turn.inner(u, w, v))
        return turn.close(d, w=w, aux=(), calls=count(1, self.num_inner + 1, p + 1, 1))


class AmIGO(AbstractAlgorithm):
    """Warm-started SGD on w and on v, a step on u.

        w <- w - inner_step grad_w f(u, w)                      num_inner times, from the last w
        v <- v - linear_step (H v - grad_w F(u, w))             num_linear times, from the last v
        u+ = retract(u, -outer_step (grad_u F(u, w) - (d2_uw f(u, w))^T v))

    with a new inner batch for every gradient and product: Arbel and Mairal (2022), "Amortized implicit
    differentiation for stochastic bilevel optimization", Algorithm 1 [arbel2022][]. With one step of
    each it is `SOBA` with its three updates one after the other.

    Args:
        inner_step, linear_step, outer_step: numbers, or schedules of the number of outer steps made.
        num_inner, num_linear: T and K.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost per step: num_inner inner gradients, K products, an outer gradient and a joint pass. Memory
    beyond u and w: v.

    Raises:
        ValueError: a number of steps < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    num_inner: int = 10
    num_linear: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, num_inner=self.num_inner, num_linear=self.num_linear)

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        u0, w0 = as_variables(u0, w0)
        aux = optax.tree.zeros_like(w0)
        return init_state(self, problem, u0, w0, key, aux, num_inner=self.num_inner)

    def step(self, problem, state):
        """One outer step."""
        turn, u = open_turn(self, problem, state), state.u
        w, turn = sgd(turn, u, state.w, self.num_inner)
        outer = turn.outer(u, w)
        v, turn = linear_sgd(turn, Point(u, w, state.aux), outer.w, self.num_linear)
        d = joint_directions(outer, turn.inner(u, w, v))
        return turn.close(d, w=w, aux=v, calls=count(1, self.num_inner + 1, self.num_linear + 1, 1))
