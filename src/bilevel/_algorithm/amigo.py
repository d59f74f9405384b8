"""AmIGO: amortised implicit gradients (Arbel and Mairal 2022)."""

from typing import NamedTuple

import equinox as eqx
import optax
from jaxtyping import Array, PyTree

from .._sampler import AbstractSampler, FullBatch, Stream
from .auto_steps import StepSize, as_setting, at, follow
from .base import AbstractAlgorithm, SamplerStates, start
from .directions import Point, begin, streams_of
from .loops import inner_loop_step, linear_sgd


class _Aux(NamedTuple):
    v: PyTree[Array]
    samplers: SamplerStates


class AmIGO(AbstractAlgorithm):
    """Warm-started SGD on w and on v, a step on u.

        w <- w - inner_step grad_w f(u, w)                      num_inner times, from the last w
        v <- v - linear_step (H v - grad_w F(u, w))             num_linear times, from the last v
        u+ = retract(u, -outer_step (grad_u F(u, w) - (d2_uw f(u, w))^T v))

    a new inner batch for every gradient and product (Arbel & Mairal 2022, Algorithm 1). With one step
    of each it is `SOBA` with its three updates one after the other.

    Args:
        inner_step, linear_step, outer_step: floats, or schedules of the number of outer steps made.
        num_inner, num_linear: T and K.
        inner_sampler, outer_sampler: where batches come from; all data by default.

    Cost a step: num_inner inner gradients, K products, an outer gradient, one joint pass.
    It keeps v.

    Raises:
        ValueError: a number of steps or terms < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    num_inner: int = 10
    num_linear: int = 10
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        for name in ("num_inner", "num_linear"):
            if getattr(self, name) < 1:
                raise ValueError(f"`AmIGO` needs {name} >= 1, got {getattr(self, name)}.")

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        begun = begin(self, problem, u0, w0, key)
        return start(begun, _Aux(optax.tree.zeros_like(w0), begun.samplers))

    def step(self, problem, state):
        """One outer step."""
        state = follow(problem, state, streams_of(self, problem, state.aux.samplers).inner)
        linear_step = at(self.linear_step, state.step, state.control)

        def solve(z: Point, b, stream: Stream):
            z = z._replace(v=state.aux.v)
            v, stream = linear_sgd(problem, z, b, linear_step, self.num_linear, stream)
            return v, stream, self.num_linear

        return inner_loop_step(self, problem, state, state.aux.samplers, solve, _Aux)
