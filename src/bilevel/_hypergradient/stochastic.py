"""Stochastic implicit differentiation (SID)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar

from .._arrays import function_operator
from .._linear.stochastic import StochasticRichardson
from .._problem import BilevelProblem, FixedPointProblem, Problem
from .._sampler import Stream, Streams
from .._settings import as_optional_data
from .base import (
    AbstractHypergradient,
    EstimatorState,
    linearise_inner,
)
from .implicit import Solved, charge_inner, estimate_at, refuse_inner_set


class SID(AbstractHypergradient):
    """Stochastic implicit differentiation: every oracle uses a minibatch.

        w_t    = t stochastic steps of the inner solver (its schedule may decrease)
        v_k    = k steps of v <- v - a_k (H_batch v - grad_w F_J),   grad_w F_J = mean over J batches
        grad   = grad_u F_J - mean over J batches of (d2_uw f)^T v_k

    Args:
        linear_solver: a `StochasticRichardson`; each of its steps draws one inner batch.
        num_samples: J, the number of batches over which the outer gradient and the mixed derivative
            are averaged.
        strong_convexity: see `implicit_gradient`.

    Error: the mean squared error is of the order of `1/J + 1/t + 1/k` with decreasing steps, and
    stalls at the order of the step size with constant steps. The estimate is biased, because the
    solution is not linear in the noise, and it is consistent. `inner_residual`, `linear_residual`
    and `error_estimate` are taken on the J batches, so they contain the sampling noise.

    Cost: t inner gradients, k products, J outer gradients and J mixed products. `v` starts from
    zero.

    Raises:
        ValueError: `num_samples` < 1, or the inner objective does not depend on its argument `u`.

    Source: Grazzi, Pontil and Salzo (2021), "Convergence properties of stochastic hypergradients"
    [grazzi2021][]; Grazzi and Pontil, "Principled and efficient bilevel optimization for machine
    learning", section "Stochastic Implicit Differentiation (SID)" [grazzi2023][].
    """

    linear_solver: StochasticRichardson
    num_samples: int = 1
    strong_convexity: Float[np.ndarray | Array, "*batch"] | None = eqx.field(
        default=None, converter=as_optional_data
    )

    def __check_init__(self):
        if self.num_samples < 1:
            raise ValueError(f"`SID` needs num_samples >= 1, got {self.num_samples}.")

    def init(self, problem, inner, u, w):
        """The inner solver's state.

        Raises:
            ValueError: the inner solver keeps w in a set.
        """
        refuse_inner_set("SID", inner)
        return EstimatorState(inner.init(problem, u, w))

    def estimate(self, problem, inner, u, w, state, streams):
        """A stochastic inner solve, a stochastic linear solve, and J samples of everything else."""
        w, inner_state, inner_stream, stats = inner.solve(problem, u, w, state.inner, streams.inner)
        outer_batches, outer_stream = _draw_many(streams.outer, self.num_samples)
        mixed_batches, inner_stream = _draw_many(inner_stream, self.num_samples)
        averaged = _averaged(problem, streams)

        def noisy_product(x: PyTree, draws: Any) -> tuple[PyTree, Any]:
            stream = Stream(inner_stream.sampler, inner_stream.data, draws)
            batch, stream = stream.draw()
            return linearise_inner(problem, u, w, batch)[1](x)[1], stream.state

        def solve(product: Any, b: PyTree[Array]) -> Solved:
            del product  # of the J batches; each step of the linear solver draws its own
            operator = function_operator(lambda x: noisy_product(x, inner_stream.state)[0], w)
            options = {
                "sample": eqx.filter_closure_convert(noisy_product, w, inner_stream.state),
                "sample_state": inner_stream.state,
            }
            solution = lx.linear_solve(
                operator, b, self.linear_solver, options=options, throw=False
            )
            return Solved(solution, solution.stats["num_products"])

        estimate, solution = estimate_at(
            averaged,
            u,
            w,
            outer_batches,
            mixed_batches,
            solve,
            self.strong_convexity,
            self.num_samples,
        )
        inner_stream = Stream(
            inner_stream.sampler, inner_stream.data, solution.stats["sample_state"]
        )
        return (
            charge_inner(estimate, stats),
            EstimatorState(inner_state),
            Streams(outer_stream, inner_stream),
        )


def _draw_many(stream: Stream, count: int) -> tuple[Any, Stream]:
    """`count` batches one after the other, stacked."""

    def draw(state: Any, _: None) -> tuple[Any, Any]:
        batch, following = Stream(stream.sampler, stream.data, state).draw()
        return following.state, batch

    state, batches = jax.lax.scan(draw, stream.state, length=count)
    return batches, Stream(stream.sampler, stream.data, state)


def _averaged(problem: Problem, streams: Streams) -> Problem:
    """The problem on stacked batches: each objective, or the map, is the mean over them."""

    def mean(function: Any, has_data: bool) -> Any:
        def averaged(u: PyTree[Array], w: PyTree[Array], batches: Any) -> PyTree[Array] | Scalar:
            if not has_data:
                return function(u, w, None)
            each = jax.vmap(lambda batch: function(u, w, batch))(batches)
            return jax.tree.map(lambda x: jnp.mean(x, axis=0), each)

        return averaged

    outer = mean(problem.outer, streams.outer.has_batches)
    has_inner = streams.inner.has_batches
    if isinstance(problem, FixedPointProblem):
        return FixedPointProblem(outer, mean(problem.map, has_inner))
    assert isinstance(problem, BilevelProblem)
    return BilevelProblem(outer, mean(problem.inner, has_inner))
