"""SUSTAIN: double momentum (Khanduri, Zeng, Hong, Wai, Wang and Yang 2021)."""

from typing import NamedTuple

import equinox as eqx
import jax.random as jr
import optax

from .._sampler import AbstractSampler, FullBatch, Stream
from .._settings import as_schedule
from .auto_steps import StepSize, as_setting, follow, series_step
from .base import AbstractAlgorithm, SamplerStates, start
from .directions import Point, begin, streams_of
from .loops import momentum_step, randomised_neumann


class _Aux(NamedTuple):
    old: tuple[Point, Point]
    samplers: SamplerStates


class SUSTAIN(AbstractAlgorithm):
    """Recursive momentum on w and on u, with a randomly truncated Neumann series.

        D_w = grad_w f(z) + (1 - momentum) (D_w- - grad_w f(z-))
        D_u = p(z) + (1 - momentum) (D_u- - p(z-)),     p(z) = grad_u F - (d2_uw f)^T v(z)
        v(z) = K linear_step (I - linear_step H_p) ... (I - linear_step H_1) grad_w F
        w+ = w - inner_step D_w,   u+ = retract(u, -outer_step D_u)

    with z = (u, w), z- the point before, and both p on the same batches (Khanduri et al.
    2021, Algorithm 1), p uniform on 0 .. K - 1. The first directions are plain. `MRBO` differs in the
    series.

    Args:
        inner_step, linear_step, outer_step, momentum: floats, or schedules of the number of steps
            made; as in `SOBA`, the linear step that of the series. The paper takes steps of the order
            of `step^(-1/3)` and a momentum of `step^(-2/3)`.
        num_terms: K.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `linear_residual` is that of v(z) on the first inner batch. Cost a step: one outer and p + 1
    inner batches; at two points an outer gradient, an inner gradient, p + 1 Hessian-vector products
    and a cross product. Memory beyond w and u: one vector more of each for the point before, one for
    its direction.

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
        if self.num_terms < 1:
            raise ValueError(f"`SUSTAIN` needs num_terms >= 1, got {self.num_terms}.")

    def init(self, problem, u0, w0, key):
        """No direction yet."""
        begun = begin(self, problem, u0, w0, key)
        z = Point(u0, w0)
        return start(begun, _Aux((z, optax.tree.zeros_like(z)), begun.samplers))

    def step(self, problem, state):
        """One joint step."""
        state = follow(problem, state, streams_of(self, problem, state.aux.samplers).inner)
        linear_step = series_step(self.linear_step, state.step, state.control)
        key = jr.fold_in(state.key, state.step)

        def solve(z: Point, b, stream: Stream):
            return randomised_neumann(problem, z, b, linear_step, self.num_terms, stream, key)

        return momentum_step(self, problem, state, state.aux.old, state.aux.samplers, solve, _Aux)
