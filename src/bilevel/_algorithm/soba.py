"""SOBA: the single-loop method of Dagreou, Ablin, Vaiter and Moreau (2022)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from .._hypergradient.base import require_outer_variable
from .._linear.base import as_data
from .._problem import BilevelProblem, Objective, Problem
from .._sampler import AbstractSampler, FullBatch
from .._solution import RESULTS, Calls
from .base import (
    AbstractAlgorithm,
    Info,
    SamplerStates,
    advance,
    close_streams,
    init_samplers,
    open_streams,
    start,
)


class _Aux(NamedTuple):
    v: PyTree[Array]
    samplers: SamplerStates


class SOBA(AbstractAlgorithm):
    """All three variables move at once, each along its own unbiased direction.

        d_w = grad_w f(u, w)                         w+ = w - inner_step * d_w
        d_v = H v - grad_w F(u, w)                   v+ = v - linear_step * d_v
        d_u = grad_u F(u, w) - (d2_uw f(u, w))^T v   u+ = retract(u, -outer_step * d_u)

    with H = d2_ww f(u, w) and the directions at the same point and batches (Dagreou et al. 2022,
    Algorithm 1 with the directions (3)-(5) of their paper; there `v` has the opposite sign).

    Args:
        inner_step, linear_step: steps for `w` and `v`; below 2 / L, with L the largest eigenvalue
            of H *on a batch*.
        outer_step: step for `u`. The ratio outer_step / inner_step decides whether `u` follows
            the bilevel problem or runs ahead of `w`; on the simplex, running ahead makes the
            weights sparse (Ivanova & Ablin, section 3).
        inner_sampler, outer_sampler: where batches come from; all data by default.

    `d_u` is biased while `v` and `w` move towards their targets: look at all three residuals. Cost
    a step: one outer gradient, and one forward-over-reverse pass that gives the inner gradient, the
    Hessian-vector and the cross product together.
    """

    inner_step: Float[np.ndarray | Array, "*batch"] = eqx.field(converter=as_data)
    linear_step: Float[np.ndarray | Array, "*batch"] = eqx.field(converter=as_data)
    outer_step: Float[np.ndarray | Array, "*batch"] = eqx.field(converter=as_data)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        _objective(problem)
        return start(
            u0,
            w0,
            key,
            _Aux(
                optax.tree.zeros_like(w0),
                init_samplers(problem, self.outer_sampler, self.inner_sampler, key),
            ),
        )

    def step(self, problem, state):
        """One joint step."""
        u, w, v = state.u, state.w, state.aux.v
        streams = open_streams(problem, self.outer_sampler, self.inner_sampler, state.aux.samplers)
        outer_batch, outer_stream = streams.outer.draw()
        inner_batch, inner_stream = streams.inner.draw()
        require_outer_variable(problem, u, w, inner_batch)

        value, (outer_u, outer_w) = jax.value_and_grad(problem.outer, argnums=(0, 1))(
            u, w, outer_batch
        )
        (_, d_w), (cross, product) = jax.jvp(
            lambda w: jax.grad(_objective(problem), argnums=(0, 1))(u, w, inner_batch), (w,), (v,)
        )
        d_v = optax.tree.sub(product, outer_w)
        d_u = optax.tree.sub(outer_u, cross)

        aux = _Aux(
            v=_descend(v, self.linear_step, d_v),
            samplers=close_streams(streams._replace(outer=outer_stream, inner=inner_stream)),
        )
        u_next = problem.geometry.retract(u, _descend(None, self.outer_step, d_u))
        w_next = _descend(w, self.inner_step, d_w)
        one = jnp.ones((), jnp.int32)
        linear_residual = optax.tree.norm(d_v)
        diverged = jnp.isfinite(optax.tree.norm(outer_w)) & ~jnp.isfinite(linear_residual)
        info = Info(
            outer_value=value,
            outer_grad=d_u,
            inner_residual=optax.tree.norm(d_w),
            linear_residual=linear_residual,
            calls=Calls(one, one, one, one),
            result=RESULTS.where(diverged, RESULTS.linear_divergence, RESULTS.successful),
        )
        return advance(state, u_next, w_next, aux, info.calls), info


def _objective(problem: Problem) -> Objective:
    if isinstance(problem, BilevelProblem):
        return problem.inner
    raise TypeError(
        f"`SOBA` needs an inner objective, which a `{type(problem).__name__}` does not have; use "
        "`DoubleLoop`."
    )


def _descend(x, step, direction):
    """`x - step * direction`, or the update alone where `x` is None."""
    scaled = jax.tree.map(lambda d: jnp.asarray(step).astype(d.dtype) * d, direction)
    return optax.tree.scale(-1, scaled) if x is None else optax.tree.sub(x, scaled)
