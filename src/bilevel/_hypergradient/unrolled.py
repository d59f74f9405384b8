"""Iterative differentiation (ITD): the derivative of the inner solver itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._sampler import Streams
from .._solution import Calls
from .base import (
    AbstractHypergradient,
    EstimatorState,
    Hypergradient,
    require_outer_variable,
)
from .implicit import charge_inner


class ITD(AbstractHypergradient):
    """Iterative differentiation in reverse mode, "unrolling".

        Phi_T(u) = F(u, w_T(u)),   w_T(u) the inner solver's result from a fixed w_0
        estimate = grad Phi_T(u)                  (Grazzi & Pontil, section 3; Vicol et al., Alg. 4)

    The exact gradient of the *truncated* problem. For gradient steps on a strongly convex f its
    distance to `grad Phi` shrinks as `T q^T`, q the contraction constant of one step.

    Cost: the inner solve forward and once in reverse (about four inner gradients a step); memory
    of T vectors like `w`. The start `w_0` counts as a constant, also when it is warm.

    Raises:
        ValueError: the inner solver cannot be unrolled (`MinimiserInner` stops adaptively).
    """

    def init(self, problem, inner, u, w):
        """The inner solver's state."""
        if not inner.unrollable:
            raise ValueError(
                f"`ITD` differentiates the inner solver's steps, which `{type(inner).__name__}` "
                "does not allow. Use `GradientInner` or `ClosedForm`, or the estimator `AID`, "
                "which works with every inner solver."
            )
        return EstimatorState(inner.init(problem, u, w), None)

    def estimate(self, problem, inner, u, w, state, streams):
        """Differentiate `u -> F(u, w_T(u))` in reverse."""
        outer_batch, outer_stream = streams.outer.draw()
        peek, _ = streams.inner.draw()
        require_outer_variable(problem, u, w, peek)

        def truncated(u: PyTree[Array]):
            last, inner_state, stream, stats = inner.solve(
                problem, u, w, state.inner, streams.inner
            )
            return problem.outer(u, last, outer_batch), (last, inner_state, stream, stats)

        (value, aux), grad = eqx.filter_value_and_grad(truncated, has_aux=True)(u)
        last, inner_state, inner_stream, stats = aux
        inner_batch, inner_stream = inner_stream.draw()
        grad_w = jax.grad(problem.inner, argnums=1)(u, last, inner_batch)

        one, none = jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32)
        # Reverse through one gradient step is one product with H and one with the cross derivative.
        calls = Calls(outer_grad=one, inner_grad=one, hvp=stats.calls, cross=stats.calls)
        estimate = Hypergradient(
            value=value,
            grad=grad,
            w=last,
            v=None,
            inner_residual=optax.tree.norm(grad_w),
            linear_residual=none.astype(value.dtype),
            result=stats.result,
            calls=calls,
        )
        return (
            charge_inner(estimate, stats),
            EstimatorState(inner_state, None),
            Streams(outer_stream, inner_stream),
        )
