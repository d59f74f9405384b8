"""The contract of a hypergradient estimator, and the oracle that all of them share."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, PyTree, Scalar

from .._derivatives import inner_traced, pull_back
from .._inner.base import AbstractInnerSolver
from .._problem import BilevelProblem, Problem
from .._sampler import Streams
from .._solution import RESULTS, Calls

FULL = object()
"""Stands for a problem's own data where `None` is data too."""


class Hypergradient(eqx.Module):
    """An estimate of `grad Phi(u)`, with its residuals and its cost.

    Attributes:
        value: `F(u, w)`, on the outer batch.
        grad: the estimate, a pytree like `u`.
        w: the (approximate) inner solution at which it was taken.
        v: the solution of `H v = grad_w F`, a pytree like `w`; `None` where no linear system was
            solved.
        inner_residual: `||grad_w f(u, w)||_2`. With f mu-strongly convex in w,
            `||w - w*(u)|| <= inner_residual / mu`.
        linear_residual: `||H v - grad_w F||_2` of the system without damping, even if a damped one
            was solved; 0 where no linear system is involved.
        error_estimate: a first-order estimate of `||grad - grad Phi(u)||_2`, which is not a bound.
            It is infinite where the inner problem is not locally convex (or contracting), and for an
            implicit estimate where an objective has a `jax.custom_vjp`.
            `implicit_gradient` and `ITD` say how it is made. It costs about four Hessian-vector
            products, which `calls` does not count, and nothing if it is not used inside a compiled
            function.
        result: a `RESULTS`: the code of the linear solver if it failed, and otherwise that of the
            inner solver.
        calls: the oracle calls that the estimate took.
    """

    value: Scalar
    grad: PyTree[Array]
    w: PyTree
    v: PyTree[Array] | None
    inner_residual: Scalar
    linear_residual: Scalar
    error_estimate: Scalar
    result: RESULTS
    calls: Calls


class EstimatorState(NamedTuple):
    """What an estimator carries between outer steps.

    The inner solver's state, the last `v`, and the eigenvector that a step size `"auto"` follows.
    """

    inner: Any
    v: PyTree[Array] | None = None
    eigenvector: PyTree[Array] | None = None


class AbstractHypergradient(eqx.Module):
    """A way to estimate the hypergradient, given an inner solver."""

    @abc.abstractmethod
    def init(
        self,
        problem: Problem,
        inner: AbstractInnerSolver,
        u: PyTree[Array],
        w: PyTree[Array],
    ) -> EstimatorState:
        """The state before the first estimate.

        Raises:
            ValueError: the inner solver lacks what this estimator needs.
        """

    @abc.abstractmethod
    def estimate(
        self,
        problem: Problem,
        inner: AbstractInnerSolver,
        u: PyTree[Array],
        w: PyTree[Array],
        state: EstimatorState,
        streams: Streams,
    ) -> tuple[Hypergradient, EstimatorState, Streams]:
        """Solve the inner problem from `w` and estimate the hypergradient there."""


def linearise_inner(
    problem: Problem, u: PyTree, w: PyTree, batch: Any
) -> tuple[PyTree[Array], Callable[[PyTree], tuple[PyTree, PyTree]]]:
    """The inner residual `r(u, w)` and the linear map `v -> ((d_u r)^T v, (d_w r)^T v)`.

    For an inner objective, r = grad_w f, these are `(d2_uw f)^T v` and `H v`; both come from one
    forward-over-reverse pass, the derivative of `w -> grad_{(u, w)} f(u, w)` in the direction `v`
    (H is symmetric). For a fixed-point map, and for an objective with a `jax.custom_vjp`, they come
    from one reverse pass through r. A product that is not used is not computed. The map keeps what the
    gradient computed on its way, which costs memory and saves time; if the inner objective has a
    `jax.checkpoint`, each product computes it again.

    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian" [pearlmutter1994][], in
    forward-over-reverse form.
    """
    if not isinstance(problem, BilevelProblem):
        return pull_back(problem, u, w, batch)
    traced = inner_traced(problem, u, w, batch)
    if not traced.has_forward_mode:
        return pull_back(problem, u, w, batch)

    def gradients(w: PyTree) -> tuple[PyTree, PyTree]:
        return jax.grad(problem.inner, argnums=(0, 1))(u, w, batch)

    if traced.has_checkpoint:
        gradients = jax.checkpoint(gradients)
    (_, residual), products = jax.linearize(gradients, w)
    return residual, products


def require_outer_variable(problem: Problem, u: PyTree, w: PyTree, inner_batch: Any) -> None:
    """Refuse a problem whose inner objective, or map, does not depend on its argument `u`.

    In that case w* is a constant, and the implicit part of the hypergradient is zero by
    construction. Nearly always the objective has closed over the outer variable of an enclosing
    scope by mistake. The traced program decides, so the check costs nothing at run time.
    """
    u = jax.tree.map(jax.numpy.asarray, u)
    inner = problem.inner if isinstance(problem, BilevelProblem) else problem.residual
    jaxpr = jax.make_jaxpr(lambda u: inner(u, w, inner_batch))(u).jaxpr
    reached = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not hasattr(x, "val") and x in reached for x in equation.invars):
            reached.update(equation.outvars)
    if not any(not hasattr(x, "val") and x in reached for x in jaxpr.outvars):
        raise ValueError(
            "the inner objective does not depend on its argument `u`: its solution is a constant, and "
            "the implicit part of the hypergradient would be silently zero. If the objective closes "
            "over the outer variable of an enclosing scope, use the argument in its place; if it "
            "really does not depend on it, minimise the outer objective in `u` directly."
        )
