"""Approximate implicit differentiation (AID)."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree, Scalar, ScalarLike

from .._arrays import dot
from .._derivatives import Traced, inner_traced, residual_along
from .._geometry import Euclidean
from .._inner.base import AbstractInnerSolver, InnerStats
from .._inner.gradient import GradientInner
from .._linear.base import finds_its_step, solve_linear
from .._linear.cg import CG
from .._problem import BilevelProblem, Problem
from .._processes import refuse_forked
from .._sampler import Streams
from .._settings import as_data, as_optional_data
from .._solution import RESULTS, Calls, HypergradientWarning
from .._variables import as_arrays, from_numbers
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
    u: PyTree,
    w: PyTree,
    linear_solver: lx.AbstractLinearSolver,
    *,
    damping: ScalarLike = 0.0,
    v0: PyTree[Array] | None = None,
    strong_convexity: ScalarLike | None = None,
    outer_batch: Any = FULL,
    inner_batch: Any = FULL,
) -> Hypergradient:
    """The hypergradient by the implicit function theorem, at a given inner point.

        H v = grad_w F(u, w),   H = d2_ww f(u, w)
        grad Phi(u) = grad_u F(u, w) - (d2_uw f(u, w))^T v

    A pure function: use it under `jit`, `vmap` or `grad`, in any training loop.

    Args:
        problem: the problem; its full data are used unless batches are given.
        u: the outer variable; like w a pytree of floating-point arrays, which may contain an
            `equinox.Module` and several dtypes, as in `solve`.
        w: an inner point, ideally `w*(u)`; the error of the estimate is
            `O(||w - w*(u)|| + ||v - H^-1 grad_w F||)`.
        linear_solver: any lineax solver. The operator is matrix-free and tagged symmetric and
            positive semi-definite, so `CG` and `lx.Cholesky` accept it; `lx.LU`, `lx.SVD` and
            other direct solvers materialise H with dim(w) products.
        damping: solve with `H + damping I` in place of H; this biases the estimate by O(damping).
        v0: the start of an iterative linear solver, zero by default.
        strong_convexity: mu > 0, a lower bound on the eigenvalues of H, if you know one; for a
            fixed-point problem `1 - q`, with q the contraction constant of the map. Only
            `error_estimate` uses it, in place of a guess.
        outer_batch: data to use in place of `problem.outer_data`.
        inner_batch: data to use in place of `problem.inner_data`.

    Returns:
        A `Hypergradient`. Look at its two residuals before you rely on it.

    Cost: one outer gradient, one inner linearisation, the linear solver's Hessian-vector products
    (each about two inner gradients) and one joint product. Memory: a few vectors of the size of
    `w`, and what an inner gradient computes on its way, unless the inner objective has a
    `jax.checkpoint`: then each product computes it again.

    For a `FixedPointProblem` the function solves `(I - d_w map)^T v = grad_w F` and returns
    `grad_u F + (d_u map)^T v`. The operator is not tagged symmetric then, so that `CG` refuses it.

    `error_estimate` is, to first order,

        ||d2_uw L d|| + (b / mu) (||d2_ww L d|| + linear residual),   b = ||(d_u r)^T v|| / ||v||

    with `L(u, w) = F - <v, r>`, r the inner residual, `d = r / mu`, and mu either
    `strong_convexity` or the smallest curvature `<x, H x> / <x, x>` that was met (at v, at r, and
    by CG).

    `calls.hvp` is exact for CG and the direct solvers; for other iterative solvers it is the
    number of steps they report.

    Warns:
        HypergradientWarning: the linear solver did not converge, met negative curvature or did not
            contract. (There is no warning under a jax transformation, where the numbers are
            unknown.)

    Raises:
        ValueError: the inner objective does not depend on its argument `u`.
        TypeError: a leaf of u or w is complex, or no floating-point array.

    Source: Pedregosa (2016), "Hyperparameter optimization with approximate gradient"
    [pedregosa2016][]; the bound on the error: Grazzi, Franceschi, Pontil and Salzo (2020), "On the
    iteration complexity of hypergradient computation" [grazzi2020][].

    >>> import jax.numpy as jnp, lineax as lx
    >>> problem = BilevelProblem(  # w*(u) = u / 2, Phi(u) = u^2 / 8
    ...     outer=lambda u, w, _: 0.5 * w**2, inner=lambda u, w, _: (w - u / 2) ** 2
    ... )
    >>> estimate = implicit_gradient(problem, jnp.array(3.0), jnp.array(1.5), lx.CG(1e-6, 1e-6))
    >>> float(estimate.grad), float(estimate.inner_residual)
    (0.75, 0.0)
    """
    refuse_forked()
    outer_batch = problem.outer_data if outer_batch is FULL else outer_batch
    inner_batch = problem.inner_data if inner_batch is FULL else inner_batch
    given = as_arrays(problem, from_numbers(u), from_numbers(w))
    options = {} if v0 is None else {"y0": given.strip(given.u, v0)[1]}
    solve = matrix_free(given.problem, given.w, linear_solver, damping, options)
    estimate, _ = estimate_at(
        given.problem, given.u, given.w, outer_batch, inner_batch, solve, strong_convexity
    )
    warn_once(estimate)
    if given.forms is None:
        return estimate
    grad, v = given.cast(estimate.grad, estimate.v)
    return dataclasses.replace(estimate, grad=grad, v=v, w=w)


class Solved(NamedTuple):
    """The solution of a linear system as lineax returns it, and the products that it took."""

    solution: lx.Solution
    num_products: Int[Array, ""]


Solve = Callable[[Callable[[PyTree], PyTree], PyTree], Solved]


def matrix_free(
    problem: Problem,
    w: PyTree[Array],
    linear_solver: lx.AbstractLinearSolver,
    damping: ScalarLike,
    options: dict[str, Any],
) -> Solve:
    """`(v -> (d_w r)^T v, b) ->` the solution of `((d_w r)^T + damping I) v = b` by lineax."""
    symmetric = isinstance(problem, BilevelProblem)
    # The start of the solver does not change the solution, so it carries no derivative.
    options = jax.lax.stop_gradient(options)

    def solve(product: Callable[[PyTree], PyTree], b: PyTree[Array]) -> Solved:
        tags = (lx.symmetric_tag, lx.positive_semidefinite_tag) if symmetric else ()
        solution = solve_linear(
            lambda v: _damped(product(v), damping, v), b, linear_solver, tags, options
        )
        return Solved(solution, _num_products(linear_solver, solution, optax.tree.size(w)))

    return solve


def estimate_at(
    problem: Problem,
    u: PyTree[Array],
    w: PyTree[Array],
    outer_batch: Any,
    inner_batch: Any,
    solve: Solve,
    strong_convexity: ScalarLike | None,
    num_samples: int = 1,
) -> tuple[Hypergradient, lx.Solution]:
    """`grad_u F - (d_u r)^T v`, where v is what `solve` makes of `(d_w r)^T v = grad_w F`.

    The two batches count as `num_samples` each in `calls`.
    """
    require_outer_variable(problem, u, w, inner_batch)
    value, (outer_u, outer_w) = jax.value_and_grad(problem.outer, argnums=(0, 1))(u, w, outer_batch)
    residual, products = linearise_inner(problem, u, w, inner_batch)
    solution, num_products = solve(lambda v: products(v)[1], outer_w)
    v = solution.value
    mixed, product = products(v)
    linear_error = optax.tree.sub(product, outer_w)
    if strong_convexity is None:
        mu = smallest_curvature(problem, u, w, inner_batch, residual, v, product)
        mu = jnp.minimum(mu, solution.stats.get("smallest_curvature", jnp.inf))
    else:
        mu = jnp.asarray(strong_convexity, value.dtype)
    samples = jnp.full((), num_samples, jnp.int32)
    estimate = Hypergradient(
        value=value,
        grad=optax.tree.sub(outer_u, mixed),
        w=w,
        v=v,
        inner_residual=optax.tree.norm(residual),
        linear_residual=optax.tree.norm(linear_error),
        error_estimate=first_order_error(
            problem, u, w, v, outer_batch, inner_batch, residual, mixed, linear_error, mu
        ),
        result=_result(solution, outer_w),
        calls=Calls(samples, samples, num_products + samples, samples),
    )
    return estimate, solution


def _damped(product: PyTree, damping: ScalarLike, v: PyTree) -> PyTree:
    return jax.tree.map(lambda p, x: p + jnp.asarray(damping, x.dtype) * x, product, v)


def _result(solution: lx.Solution, outer_w: PyTree) -> RESULTS:
    """The code of the linear solver, made more precise by its stats."""
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


def smallest_curvature(
    problem: Problem,
    u: PyTree[Array],
    w: PyTree[Array],
    inner_batch: Any,
    residual: PyTree[Array],
    v: PyTree[Array],
    product: PyTree[Array],
) -> Scalar:
    """The smaller of `<x, A x> / <x, x>` at `x = v`, where `product` is A v, and at `x = r`."""
    u, w, residual, v, product = jax.lax.stop_gradient((u, w, residual, v, product))

    def rayleigh(x: PyTree, ax: PyTree) -> Scalar:
        size = jnp.asarray(optax.tree.norm(x, squared=True))
        along = dot(x, ax)
        return jnp.where(size > 0, along / jnp.where(size > 0, size, 1), jnp.inf)

    along_residual = residual_along(problem, u, w, inner_batch, residual)
    return jnp.minimum(rayleigh(v, product), rayleigh(residual, along_residual))


def first_order_error(
    problem: Problem,
    u: PyTree[Array],
    w: PyTree[Array],
    v: PyTree[Array],
    outer_batch: Any,
    inner_batch: Any,
    residual: PyTree[Array],
    mixed: PyTree[Array],
    linear_error: PyTree[Array],
    mu: Scalar,
) -> Scalar:
    """How far an implicit estimate is from `grad Phi(u)`, to first order.

    With H >= mu:

        L(u, w) = F(u, w) - <v, r(u, w)>          (its gradient in u is the estimate)
        d  = r(u, w) / mu                         (as long as w - w*(u) is if r lies along mu)
        error = ||d2_uw L d|| + b / mu (||d2_ww L d|| + ||linear_error||),   b = ||mixed|| / ||v||
    """
    u, w, v, residual, mixed, linear_error, mu = jax.lax.stop_gradient(
        (u, w, v, residual, mixed, linear_error, mu)
    )
    outer = Traced(lambda u, w: problem.outer(u, w, outer_batch), u, w)
    if not (outer.has_forward_mode and inner_traced(problem, u, w, inner_batch).has_forward_mode):
        return jnp.full_like(mu, jnp.inf)
    mu = jnp.where(mu == jnp.inf, 1, mu)  # no curvature was met: nothing is divided

    def lagrangian_gradient(w: PyTree) -> tuple[PyTree, PyTree]:
        by_u, by_w = jax.grad(problem.outer, argnums=(0, 1))(u, w, outer_batch)
        _, products = linearise_inner(problem, u, w, inner_batch)
        mixed, product = products(v)
        return optax.tree.sub(by_u, mixed), optax.tree.sub(by_w, product)

    d = optax.tree.scale(1 / mu, residual)
    along_u, along_w = jax.jvp(lagrangian_gradient, (w,), (d,))[1]
    size_v = jnp.asarray(optax.tree.norm(v))
    b = jnp.where(size_v > 0, optax.tree.norm(mixed) / jnp.where(size_v > 0, size_v, 1), 0)
    linear = optax.tree.norm(linear_error)
    error = optax.tree.norm(along_u) + b / mu * (optax.tree.norm(along_w) + linear)
    return jnp.where(mu > 0, error, jnp.inf)


def warn_once(estimate: Hypergradient) -> None:
    """Warn of a failed solve, if its result is known (it is not inside a transformation).

    Python shows equal warnings once. In a compiled run the result code is in `Info` and in the
    trace, and `solve` looks at it.
    """
    numbers = (estimate.result._value, estimate.inner_residual, estimate.linear_residual)
    if any(isinstance(x, Tracer) for x in numbers) or bool(estimate.result == RESULTS.successful):
        return
    warnings.warn(
        f"the hypergradient is not reliable. {RESULTS[estimate.result]} (inner residual "
        f"{float(estimate.inner_residual):.2g}, linear residual "
        f"{float(estimate.linear_residual):.2g}.)",
        HypergradientWarning,
        stacklevel=3,
    )


class AID(AbstractHypergradient):
    """Approximate implicit differentiation: an inner solve, then `implicit_gradient` at its end.

        w = inner solver from w_0,   H v = grad_w F(u, w),   grad = grad_u F - (d2_uw f)^T v

    Args:
        linear_solver: any lineax solver for `H v = grad_w F`.
        damping: see `implicit_gradient`.
        warm_start: start the linear solver from the `v` of the previous outer step. This changes
            the cost; the answer stays the same if the solver has a tolerance.
        strong_convexity: see `implicit_gradient`.

    Error: for f mu-strongly convex in w it is linear in the error of w and in that of v. Cost: the
    inner solve, the linear solve, one outer gradient and one joint product. Memory does not grow
    with the number of inner steps.

    Raises:
        ValueError: the inner solver keeps w in a set, on whose boundary the inner gradient is not
            zero.

    Source: Pedregosa (2016), "Hyperparameter optimization with approximate gradient"
    [pedregosa2016][]; the bound on the error: Grazzi, Franceschi, Pontil and Salzo (2020), "On the
    iteration complexity of hypergradient computation" [grazzi2020][].
    """

    linear_solver: lx.AbstractLinearSolver = CG(rtol=1e-6)
    damping: Float[np.ndarray | Array, "*batch"] = eqx.field(default=0.0, converter=as_data)
    warm_start: bool = True
    strong_convexity: Float[np.ndarray | Array, "*batch"] | None = eqx.field(
        default=None, converter=as_optional_data
    )

    def init(self, problem, inner, u, w):
        """`v = 0`, and no eigenvector is known.

        Raises:
            ValueError: the inner solver keeps w in a set.
        """
        refuse_inner_set("AID", inner)
        zero = optax.tree.zeros_like(w)
        return EstimatorState(
            inner.init(problem, u, w),
            zero if self.warm_start else None,
            zero if finds_its_step(self.linear_solver) else None,
        )

    def estimate(self, problem, inner, u, w, state, streams):
        """One inner solve and one linear solve."""
        w, inner_state, inner_stream, stats = inner.solve(problem, u, w, state.inner, streams.inner)
        outer_batch, outer_stream = streams.outer.draw()
        inner_batch, inner_stream = inner_stream.draw()
        options = {} if state.v is None else {"y0": state.v}
        if state.eigenvector is not None:
            options["eigenvector"] = state.eigenvector
        solve = matrix_free(problem, w, self.linear_solver, self.damping, options)
        estimate, solution = estimate_at(
            problem, u, w, outer_batch, inner_batch, solve, self.strong_convexity
        )
        warn_once(estimate)
        estimate = charge_inner(estimate, stats)
        state = EstimatorState(
            inner_state,
            estimate.v if self.warm_start else None,
            solution.stats.get("eigenvector"),
        )
        return estimate, state, Streams(outer_stream, inner_stream)


def refuse_inner_set(name: str, inner: AbstractInnerSolver) -> None:
    """Implicit differentiation holds where the inner gradient is zero, not on a boundary."""
    if isinstance(inner, GradientInner) and not isinstance(inner.geometry, Euclidean):
        raise ValueError(
            f"`{name}` solves `H v = grad_w F`, which holds where the inner gradient is zero, and "
            f"`GradientInner` keeps w in a `{type(inner.geometry).__name__}`, on whose boundary it is "
            "not. Use `ITD`, which differentiates through the projections."
        )


def charge_inner(estimate: Hypergradient, stats: InnerStats) -> Hypergradient:
    """Add the inner solver's calls and, if nothing worse happened, its result code."""
    result = RESULTS.where(estimate.result == RESULTS.successful, stats.result, estimate.result)
    calls = Calls(
        estimate.calls.outer_grad + stats.outer_calls,
        estimate.calls.inner_grad + stats.calls,
        estimate.calls.hvp + stats.products,
        estimate.calls.mixed,
    )
    return dataclasses.replace(estimate, result=result, calls=calls)
