"""BSA: bilevel stochastic approximation (Ghadimi and Wang 2018); with one inner step TTSA."""

import equinox as eqx
import jax.random as jr

from .._sampler import AbstractSampler, FullBatch, Stream
from .auto_steps import StepSize, as_setting, follow, series_step
from .base import AbstractAlgorithm, start
from .directions import Point, begin, streams_of
from .loops import inner_loop_step, randomised_neumann


class BSA(AbstractAlgorithm):
    """SGD on w, a randomly truncated Neumann series for v, a step on u.

        w <- w - inner_step grad_w f(u, w)                      num_inner times, from the last w
        v = K linear_step (I - linear_step H_p) ... (I - linear_step H_1) grad_w F(u, w)
        u+ = retract(u, -outer_step (grad_u F(u, w) - (d2_uw f(u, w))^T v))

    with p uniform on 0 .. K - 1 and a new inner batch for every gradient and product (Ghadimi & Wang
    2018, Algorithm 2). With `num_inner=1` it is TTSA (Hong, Wai, Wang & Yang 2020, Algorithm 1), whose
    outer step decays faster than its inner one, as `step^(-3/5)` and `step^(-2/5)`.

    Args:
        inner_step, linear_step, outer_step: floats, or schedules of the number of outer steps made.
        num_inner, num_terms: T and K.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost a step: num_inner inner gradients, p products, an outer gradient, one joint pass.
    It keeps no vector beyond w and u. v has the mean of the series and a large variance.

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
        for name in ("num_inner", "num_terms"):
            if getattr(self, name) < 1:
                raise ValueError(f"`BSA` needs {name} >= 1, got {getattr(self, name)}.")

    def init(self, problem, u0, w0, key):
        """Nothing but the samplers."""
        begun = begin(self, problem, u0, w0, key)
        return start(begun, begun.samplers)

    def step(self, problem, state):
        """One outer step."""
        state = follow(problem, state, streams_of(self, problem, state.aux).inner)
        linear_step = series_step(self.linear_step, state.step, state.control)
        key = jr.fold_in(state.key, state.step)

        def solve(z: Point, b, stream: Stream):
            return randomised_neumann(problem, z, b, linear_step, self.num_terms, stream, key)

        return inner_loop_step(self, problem, state, state.aux, solve, lambda v, samplers: samplers)
