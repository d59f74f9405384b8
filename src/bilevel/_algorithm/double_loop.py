"""The double loop: an inner solve, a hypergradient, an outer step.

Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022) [vicol2022][]; Ivanova and Ablin (2023)
[ivanova2023][].
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from .._arrays import dot
from .._geometry import AbstractGeometry, Euclidean
from .._hypergradient.base import AbstractHypergradient, EstimatorState, Hypergradient
from .._inner.base import AbstractInnerSolver
from .._sampler import AbstractSampler, FullBatch, Streams
from .._transformation import line_search_steps, transformed
from .auto_steps import Move, first_control, move_outer
from .base import (
    AbstractAlgorithm,
    Info,
    SamplerStates,
    State,
    advance,
    as_variables,
    count,
    init_samplers,
    open_streams,
)


class _Aux(NamedTuple):
    w0: PyTree[Array] | None
    outer_tx: Any
    estimator: EstimatorState


class DoubleLoop(AbstractAlgorithm):
    """Solve the inner problem, estimate the hypergradient, take an outer step.

        w_{s+1} = inner solver on f(u_s, .), started from w_s (warm) or from w_0 (cold)
        g_s     = hypergradient estimate at (u_s, w_{s+1})
        u_{s+1} = retract(u_s, outer_tx(g_s))

    Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in overparameterized
    bilevel optimization", Algorithms 1 and 2 [vicol2022][]. Also Ivanova and Ablin (2023), "A
    challenge in reweighting data with bilevel optimization" [ivanova2023][]: Algorithm 1 with an
    exact inner solver, and Algorithm 2 with one gradient step and an exact linear solver, both with
    `Simplex`.

    Args:
        inner: the inner solver.
        hypergradient: the estimator, `AID(...)` or `ITD()`.
        outer_tx: an optax transformation for the outer step, or `"auto"`, the outer steps of the
            single-loop methods. It is told `value`, `grad` and `value_fn` of Phi, which
            `log_trust_region`, `optax.lbfgs` and line searches use. Each evaluation of a line search
            is an inner solve from the same start, on the batches of the step, with an estimate; in
            a set, it is taken at the nearest point of the set. On batches, a line search finds the
            step for those alone, and L-BFGS takes the noise between batches for curvature: give
            these all data.
        warm_start: start each inner solve where the last one ended (True) or at `w0` (False). A
            cold start makes the result a function of `u` alone. A warm start is cheaper, but on
            problems with many inner solutions, what it finds can live in `w` and be lost on
            retraining: always retrain before you report.
        inner_sampler, outer_sampler: where batches come from; all data by default. An inner solve
            draws one batch per gradient step, and one more at its end for the hypergradient.

    Cost per step: the inner solve and the estimator, and as much for each evaluation of a line search.
    """

    inner: AbstractInnerSolver
    hypergradient: AbstractHypergradient
    outer_tx: optax.GradientTransformation | Literal["auto"] = "auto"
    warm_start: bool = False
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def init(self, problem, u0, w0, key):
        """Start the estimator, the optimiser and the samplers."""
        u0, w0 = as_variables(u0, w0)
        samplers = init_samplers(problem, self.outer_sampler, self.inner_sampler, key)
        aux = _Aux(
            w0=None if self.warm_start else w0,
            outer_tx=() if isinstance(self.outer_tx, str) else self.outer_tx.init(u0),
            estimator=self.hypergradient.init(problem, self.inner, u0, w0),
        )
        control, calls = None, count()
        if isinstance(self.outer_tx, str):
            streams = open_streams(problem, self.outer_sampler, self.inner_sampler, samplers)
            control, num_products = first_control(problem, u0, w0, streams)
            calls = count(1, 0, num_products, 2)
        return State(jnp.zeros((), jnp.int32), key, u0, w0, aux, samplers, control, calls)

    def step(self, problem, state):
        """One outer step."""
        w0, _, estimator = state.aux
        if self.warm_start:
            w = state.w
        else:
            w = w0
            estimator = estimator._replace(inner=self.inner.init(problem, state.u, w))

        start, streams = (
            estimator,
            open_streams(problem, self.outer_sampler, self.inner_sampler, state.samplers),
        )

        def estimate_at(u: PyTree[Array]) -> tuple[Hypergradient, EstimatorState, Streams]:
            return self.hypergradient.estimate(problem, self.inner, u, w, start, streams)

        estimate, estimator, following = estimate_at(state.u)
        calls = estimate.calls
        if isinstance(self.outer_tx, str):
            move, outer_tx = move_outer("auto", problem, state, estimate.grad), ()
        else:
            phi = _phi(lambda u: estimate_at(u)[0], problem.geometry)
            updates, outer_tx = transformed(
                self.outer_tx, estimate.grad, state.aux.outer_tx, state.u, estimate.value, phi
            )
            evaluations = 1 + line_search_steps(outer_tx)
            calls = jax.tree.map(lambda x: x * evaluations, calls)
            nan = jnp.full_like(estimate.value, jnp.nan)
            move = Move(problem.geometry.retract(state.u, updates), nan, None)

        aux = _Aux(w0, outer_tx, estimator)
        samplers = SamplerStates(following.outer.state, following.inner.state)
        info = Info(
            outer_value=estimate.value,
            outer_grad=estimate.grad,
            inner_residual=estimate.inner_residual,
            linear_residual=estimate.linear_residual,
            calls=calls,
            result=estimate.result,
            step_ratio=jnp.full_like(estimate.value, jnp.nan),
        )
        return advance(state, move, estimate.w, aux, samplers, calls), info


def _phi(
    estimate: Callable[[PyTree], Hypergradient], geometry: AbstractGeometry
) -> Callable[[PyTree], Scalar]:
    """Phi as a function of u, whose derivative is the estimate."""

    def at(u: PyTree[Array]) -> Hypergradient:
        return estimate(u if isinstance(geometry, Euclidean) else geometry.project(u))

    @jax.custom_jvp
    def phi(u: PyTree[Array]) -> Scalar:
        return at(u).value

    @phi.defjvp
    def _(primals: tuple[PyTree], tangents: tuple[PyTree]) -> tuple[Scalar, Scalar]:
        found = at(*primals)
        slope = dot(found.grad, *tangents)
        return found.value, slope.astype(found.value.dtype)

    return phi
