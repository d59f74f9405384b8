"""Approximate implicit differentiation (AID)."""

import dataclasses
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree, Scalar, ScalarLike

from .._inner import InnerStats
from .._linear.base import as_data
from .._linear.cg import CG
from .._problem import BilevelProblem, Problem
from .._sampler import Streams
from .._solution import RESULTS, Calls, HypergradientWarning
from .base import (
    FULL,
    AbstractHypergradient,
    EstimatorState,
    Hypergradient,
    linearise_inner,
    require_outer_variable,
)


def implicit_gradient(
    problem: Problem,
    u: PyTree[Array],
    w: PyTree[Array],
    linear_solver: lx.AbstractLinearSolver,
    *,
    damping: ScalarLike = 0.0,
    v0: PyTree[Array] | None = None,
    outer_batch: Any = FULL,
    inner_batch: Any = FULL,
) -> Hypergradient:
    """The hypergradient by the implicit function theorem, at a given inner point.

        H v = grad_w F(u, w),   H = d2_ww f(u, w)
        grad Phi(u) = grad_u F(u, w) - (d2_uw f(u, w))^T v

    A pure function: use it under `jit`, `vmap` or `grad`, in any training loop.

    Args:
        problem: the problem; its full data are used unless batches are given.
        u: the outer variable.
        w: an inner point, ideally `w*(u)`; the estimate's error is
            `O(||w - w*(u)|| + ||v - H^-1 grad_w F||)` (Grazzi & Pontil, "AID error upper bound").
        linear_solver: any lineax solver. The operator is matrix-free and tagged symmetric and
            positive semi-definite, so `CG` and `lx.Cholesky` accept it; `lx.LU`, `lx.SVD` and
            other direct solvers materialise H with dim(w) products.
        damping: solve with `H + damping I` in place of H; biased by O(damping).
        v0: where an iterative linear solver starts, zero by default.
        outer_batch: data to use in place of `problem.outer_data`.
        inner_batch: data to use in place of `problem.inner_data`.

    Returns:
        A `Hypergradient`; look at its two residuals before you believe it.

    Cost: one outer gradient, one inner linearisation, the linear solver's Hessian-vector products
    (each about two inner gradients) and one joint product; memory of a few vectors like `w`.
    Of a `FixedPointProblem` it solves `(I - d_w map)^T v = grad_w F` and returns
    `grad_u F + (d_u map)^T v`; the operator is not tagged symmetric then, so that `CG` refuses it.

    `error_estimate`, with `L(u, w) = F - <v, r>`, r the inner residual, `d = r / mu` and mu the
    smallest of the curvatures `<x, H x> / <x, x>` seen (at v, at r, by CG), to first order:

        ||d2_uw L d|| + (b / mu) (||d2_ww L d|| + linear residual),   b = ||(d_u r)^T v|| / ||v||

    `calls.hvp` is exact for CG and the direct solvers; for other iterative solvers it is the
    number of steps they report.

    Warns:
        HypergradientWarning: the linear solver did not converge, met negative curvature or did not
            contract (where the numbers are at hand: not under a transformation).

    Raises:
        ValueError: the inner objective does not depend on its argument `u`.

    >>> import jax.numpy as jnp, lineax as lx
    >>> problem = BilevelProblem(  # w*(u) = u / 2, Phi(u) = u^2 / 8
    ...     outer=lambda u, w, _: 0.5 * w**2, inner=lambda u, w, _: (w - u / 2) ** 2
    ... )
    >>> estimate = implicit_gradient(problem, jnp.array(3.0), jnp.array(1.5), lx.CG(1e-6, 1e-6))
    >>> float(estimate.grad), float(estimate.inner_residual)
    (0.75, 0.0)
    """
    outer_batch = problem.outer_data if outer_batch is FULL else outer_batch
    inner_batch = problem.inner_data if inner_batch is FULL else inner_batch
    require_outer_variable(problem, u, w, inner_batch)

    value, (outer_u, outer_w) = jax.value_and_grad(problem.outer, argnums=(0, 1))(u, w, outer_batch)
    residual, products = linearise_inner(problem, u, w, inner_batch)

    symmetric = isinstance(problem, BilevelProblem)
    operator = lx.FunctionLinearOperator(
        lambda v: _damped(products(v)[1], damping, v),
        jax.eval_shape(lambda: w),
        (lx.symmetric_tag, lx.positive_semidefinite_tag) if symmetric else (),
    )
    # Where the solver starts does not change the solution, so it carries no derivative.
    options = {} if v0 is None else {"y0": jax.lax.stop_gradient(v0)}
    solution = lx.linear_solve(operator, outer_w, linear_solver, options=options, throw=False)
    v = solution.value
    cross, product = products(v)

    estimate = Hypergradient(
        value=value,
        grad=optax.tree.sub(outer_u, cross),
        w=w,
        v=v,
        inner_residual=optax.tree.norm(residual),
        linear_residual=optax.tree.norm(optax.tree.sub(product, outer_w)),
        error_estimate=first_order_error(
            problem,
            u,
            w,
            v,
            outer_batch,
            inner_batch,
            solution.stats.get("smallest_curvature", jnp.inf),
        ),
        result=_result(solution, outer_w),
        calls=Calls(
            outer_grad=jnp.ones((), jnp.int32),
            inner_grad=jnp.ones((), jnp.int32),
            hvp=_num_products(linear_solver, solution, optax.tree.size(w)) + 1,
            cross=jnp.ones((), jnp.int32),
        ),
    )
    warn_once(estimate)
    return estimate


def _damped(product: PyTree, damping: ScalarLike, v: PyTree) -> PyTree:
    return jax.tree.map(lambda p, x: p + jnp.asarray(damping, x.dtype) * x, product, v)


def _result(solution: lx.Solution, outer_w: PyTree) -> RESULTS:
    """The linear solver's code, made more precise by what it says in its stats."""
    result = RESULTS.promote(solution.result)
    for name, code in [
        ("negative_curvature", RESULTS.negative_curvature),
        ("not_contracting", RESULTS.not_contracting),
    ]:
        if name in solution.stats:
            result = RESULTS.where(solution.stats[name], code, result)
    value = optax.tree.norm(solution.value)
    diverged = jnp.isfinite(optax.tree.norm(outer_w)) & ~jnp.isfinite(value)
    return RESULTS.where(diverged, RESULTS.linear_divergence, result)


def _num_products(
    solver: lx.AbstractLinearSolver, solution: lx.Solution, size: int
) -> Int[Array, ""]:
    """How many operator-vector products lineax's `solver` took."""
    stats = solution.stats
    if "num_products" in stats:  # a solver of this package
        return stats["num_products"]
    steps = stats.get("num_steps")
    if steps is None:  # a direct solver, which materialised the matrix
        return jnp.full((), size, jnp.int32)
    steps = jnp.asarray(steps, jnp.int32)
    if isinstance(solver, lx.CG):  # one for the first residual, one each time it is recomputed
        every = solver.stabilise_every
        return 1 + steps + (0 if every is None else steps // every)
    return steps


def first_order_error(
    problem: Problem,
    u: PyTree,
    w: PyTree,
    v: PyTree,
    outer_batch: Any,
    inner_batch: Any,
    smallest_curvature: ScalarLike = jnp.inf,
) -> Scalar:
    """How far an implicit estimate is from `grad Phi(u)`, to first order.

        L(u, w) = F(u, w) - <v, r(u, w)>          (its gradient in u is the estimate)
        d  = r(u, w) / mu                         (as long as w - w*(u) is if r lies along mu)
        error = ||d2_uw L d|| + b / mu (||d2_ww L d|| + linear residual),   b = ||(d_u r)^T v|| / ||v||

    mu is the smallest of the curvatures `<x, A x> / <x, x>` seen, at x = v, at x = r and by the linear
    solver.
    """
    u, w, v, smallest = jax.lax.stop_gradient((u, w, v, smallest_curvature))
    _, outer_w = jax.grad(problem.outer, argnums=(0, 1))(u, w, outer_batch)
    residual, products = linearise_inner(problem, u, w, inner_batch)
    cross, product = products(v)

    def rayleigh(x: PyTree, ax: PyTree) -> Scalar:
        size = jnp.asarray(optax.tree.norm(x, squared=True))
        along = jnp.asarray(optax.tree.vdot(x, ax))
        return jnp.where(size > 0, along / jnp.where(size > 0, size, 1), jnp.inf)

    mu = jnp.minimum(rayleigh(v, product), rayleigh(residual, products(residual)[1]))
    mu = jnp.minimum(mu, jnp.asarray(smallest, mu.dtype))
    mu = jnp.where(mu == jnp.inf, 1, mu)  # both vectors are zero: nothing is divided

    def lagrangian_gradient(w: PyTree) -> tuple[PyTree, PyTree]:
        by_u, by_w = jax.grad(problem.outer, argnums=(0, 1))(u, w, outer_batch)
        _, products = linearise_inner(problem, u, w, inner_batch)
        cross, product = products(v)
        return optax.tree.sub(by_u, cross), optax.tree.sub(by_w, product)

    d = optax.tree.scale(1 / mu, residual)
    along_u, along_w = jax.jvp(lagrangian_gradient, (w,), (d,))[1]
    size_v = jnp.asarray(optax.tree.norm(v))
    b = jnp.where(size_v > 0, optax.tree.norm(cross) / jnp.where(size_v > 0, size_v, 1), 0)
    linear = optax.tree.norm(optax.tree.sub(product, outer_w))
    error = optax.tree.norm(along_u) + b / mu * (optax.tree.norm(along_w) + linear)
    return jnp.where(mu > 0, error, jnp.inf)


def warn_once(estimate: Hypergradient) -> None:
    """Warn of a failed solve, where its result is at hand (not inside a transformation).

    Python shows equal warnings once. In a compiled run the result code is in `Info` and the trace, and
    `solve` looks at it.
    """
    numbers = (estimate.result._value, estimate.inner_residual, estimate.linear_residual)
    if any(isinstance(x, Tracer) for x in numbers) or bool(estimate.result == RESULTS.successful):
        return
    warnings.warn(
        f"the hypergradient is not what it should be. {RESULTS[estimate.result]} (inner residual "
        f"{float(estimate.inner_residual):.2g}, linear residual "
        f"{float(estimate.linear_residual):.2g}.)",
        HypergradientWarning,
        stacklevel=3,
    )


class AID(AbstractHypergradient):
    """Approximate implicit differentiation: an inner solve, then `implicit_gradient` at its end.

    Args:
        linear_solver: any lineax solver for `H v = grad_w F`.
        damping: see `implicit_gradient`.
        warm_start: start the linear solver from the previous outer step's `v`. It changes the
            cost and, with a tolerance, not the answer.

    Error: with f mu-strongly convex in w, linear in the inner and the linear error (Grazzi &
    Pontil, "AID error upper bound"). Memory does not grow with the number of inner steps.
    """

    linear_solver: lx.AbstractLinearSolver = CG(rtol=1e-6)
    damping: Float[np.ndarray | Array, "*batch"] = eqx.field(default=0.0, converter=as_data)
    warm_start: bool = True

    def init(self, problem, inner, u, w):
        """`v = 0`."""
        v = optax.tree.zeros_like(w) if self.warm_start else None
        return EstimatorState(inner.init(problem, u, w), v)

    def estimate(self, problem, inner, u, w, state, streams):
        """One inner solve and one linear solve."""
        w, inner_state, inner_stream, stats = inner.solve(problem, u, w, state.inner, streams.inner)
        outer_batch, outer_stream = streams.outer.draw()
        inner_batch, inner_stream = inner_stream.draw()
        estimate = implicit_gradient(
            problem,
            u,
            w,
            self.linear_solver,
            damping=self.damping,
            v0=state.v,
            outer_batch=outer_batch,
            inner_batch=inner_batch,
        )
        estimate = charge_inner(estimate, stats)
        v = estimate.v if self.warm_start else None
        return estimate, EstimatorState(inner_state, v), Streams(outer_stream, inner_stream)


def charge_inner(estimate: Hypergradient, stats: InnerStats) -> Hypergradient:
    """Add the inner solver's calls and, if nothing worse happened, its result code."""
    result = RESULTS.where(estimate.result == RESULTS.successful, stats.result, estimate.result)
    calls = Calls(
        estimate.calls.outer_grad,
        estimate.calls.inner_grad + stats.calls,
        estimate.calls.hvp,
        estimate.calls.cross,
    )
    return dataclasses.replace(estimate, result=result, calls=calls)
