"""`check_hypergradient`: compare an estimate with central differences of Phi."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
import optimistix as optx
from jaxtyping import Array, Bool, Float, Key, PyTree, Scalar

from .._arrays import dot, function_operator
from .._hypergradient.base import AbstractHypergradient
from .._hypergradient.implicit import AID
from .._inner.base import AbstractInnerSolver
from .._inner.gradient import GradientInner
from .._inner.minimiser import MinimiserInner
from .._linear.cg import CG
from .._problem import BilevelProblem, Problem
from .._sampler import FullBatch, Stream, Streams
from .._variables import as_arrays


class HypergradientCheck(eqx.Module):
    """What `check_hypergradient` found; `print` shows it as a table.

    Attributes:
        verdict: "agrees", "disagrees", or "inconclusive" (the differences themselves are not
            accurate enough to tell).
        estimated: the directional derivatives of the estimate, one per direction.
        differences: the central differences of Phi, extrapolated.
        difference_error: how uncertain each difference is: the gap between the two step sizes,
            plus rounding.
        relative_error: the largest disagreement, relative to the norm of all differences.
        inner_residual, linear_residual: the residuals of the estimate.
        rtol: the tolerance.
    """

    verdict: str
    estimated: Float[np.ndarray, " directions"]
    differences: Float[np.ndarray, " directions"]
    difference_error: Float[np.ndarray, " directions"]
    relative_error: float
    inner_residual: float
    linear_residual: float
    rtol: float

    def __bool__(self) -> bool:
        """True if it agrees."""
        return self.verdict == "agrees"

    def __str__(self) -> str:
        """The verdict and the table behind it."""
        reason = {
            "agrees": "the estimate is the derivative of Phi, to the tolerance.",
            "disagrees": "the estimate is not the derivative of Phi at this point. If its "
            "residuals below are not small, solve the inner problem or the linear system more "
            "accurately; if they are, the estimator, an objective or a stop_gradient is at fault.",
            "inconclusive": "the central differences are too inaccurate to decide. Use float64, a "
            "more accurate `reference`, or another `step`.",
        }[self.verdict]
        lines = [
            f"hypergradient check: {self.verdict} (relative error {self.relative_error:.1e}, "
            f"tolerance {self.rtol:.1e})",
            f"  {reason}",
            f"  inner residual {self.inner_residual:.1e}, linear residual "
            f"{self.linear_residual:.1e}",
            "  direction     estimate   difference   uncertain by",
        ]
        rows = zip(self.estimated, self.differences, self.difference_error, strict=True)
        lines += [f"  {i:9d} {e:12.5e} {d:12.5e}   {s:.1e}" for i, (e, d, s) in enumerate(rows)]
        return "\n".join(lines)


class _Accurate(AbstractInnerSolver):
    """A first solver, then Newton steps on the residual, each of which is taken if it decreases it.

    A line search sees only differences of f, so a minimiser ends about sqrt(eps) away from the
    solution; and iterating a map may take long.
    """

    first: AbstractInnerSolver
    num_newton: int
    unrollable: ClassVar[bool] = False

    def init(self, problem, u, w):
        """The first solver's state."""
        return self.first.init(problem, u, w)

    def solve(self, problem, u, w, state, stream):
        """Solve, then polish."""
        w, state, stream, stats = self.first.solve(problem, u, w, state, stream)
        batch, stream = stream.draw()

        def newton(_: Any, w: PyTree[Array]) -> PyTree[Array]:
            moved = optax.tree.sub(w, _newton_step(problem, u, w, batch))
            sizes = [optax.tree.norm(problem.residual(u, x, batch)) for x in (moved, w)]
            better = sizes[0] < sizes[1]
            return jax.tree.map(lambda new, old: jnp.where(better, new, old), moved, w)

        return jax.lax.fori_loop(0, self.num_newton, newton, w), state, stream, stats


def _newton_step(problem: Problem, u: PyTree, w: PyTree[Array], batch: Any) -> PyTree[Array]:
    """`(d_w r)^-1 r`, which near a solution is the displacement from it."""
    residual, product = jax.linearize(lambda w: problem.residual(u, w, batch), w)
    convex = isinstance(problem, BilevelProblem)
    tags = (lx.symmetric_tag, lx.positive_semidefinite_tag) if convex else ()
    operator = function_operator(product, w, tags)
    solver = CG(rtol=1e-6) if convex else _gmres(1e-6)
    return lx.linear_solve(operator, residual, solver, throw=False).value


def _gmres(rtol: float) -> lx.GMRES:
    return lx.GMRES(rtol=rtol, atol=rtol, restart=50, stagnation_iters=50)


def _default_reference(problem: Problem, eps: float) -> AbstractInnerSolver:
    if isinstance(problem, BilevelProblem):
        return _Accurate(MinimiserInner(optx.BFGS(rtol=10 * eps, atol=10 * eps), 1000), 3)
    return _Accurate(GradientInner(optax.sgd(1.0), 100), 10)


def check_hypergradient(
    problem: Problem,
    u: PyTree,
    w: PyTree,
    estimator: AbstractHypergradient | None = None,
    inner: AbstractInnerSolver | None = None,
    *,
    reference: AbstractInnerSolver | None = None,
    num_directions: int = 5,
    step: float | None = None,
    rtol: float | None = None,
    key: Key[Array, ""] | None = None,
) -> HypergradientCheck:
    """Compare an estimator with central differences of `Phi(u) = F(u, w*(u))`.

        D_h = (Phi(u + h d) - Phi(u - h d)) / (2 h),   D = (4 D_{h/2} - D_h) / 3

    along random unit directions d, against `<grad, d>`. The gap between `D_h` and `D_{h/2}` (the
    largest over the directions), plus the rounding error of Phi, says how far the differences can
    be trusted. A disagreement within that is called inconclusive and is not a failure. The same
    holds if the reference itself is further than `rtol * max(1, ||w||)` (by one Newton step) from
    `w*(u)`.

    Args:
        problem: the problem, of either kind; all its data are used.
        u: where to check. Directions ignore the set U, so the objectives must be defined around u.
        w: the start of the inner solvers.
        estimator: `AID` by default, with `CG`, or GMRES for a fixed-point problem, to the accuracy
            of the dtype.
        inner: the inner solver that the estimator is used with; by default `reference`.
        reference: an accurate inner solver that defines `w*(u)`; by default BFGS (for a fixed-point
            problem 100 iterations of the map), then Newton steps to the accuracy of the dtype.
        num_directions: the number of directions.
        step: h; by default the epsilon of the dtype to the power 1/5, times `max(1, ||u||)`.
        rtol: the tolerance on the error relative to the norm of the differences; by default 1e-6
            in float64 and 1e-2 in float32.
        key: for the directions.

    Returns:
        A `HypergradientCheck`, which is true if the two agree.

    Cost: one estimate, and four accurate inner solves per direction. Source: ours, by Richardson
    extrapolation of central differences.

    >>> import jax, jax.numpy as jnp
    >>> problem = BilevelProblem(
    ...     outer=lambda u, w, _: jnp.sum(w**2),
    ...     inner=lambda u, w, _: jnp.sum((w - jnp.sin(u)) ** 2),
    ... )
    >>> check = check_hypergradient(problem, jnp.arange(3.0), jnp.zeros(3))
    >>> check.verdict
    'agrees'
    """
    problem, u, w, _ = as_arrays(problem, u, w)
    dtype = jnp.result_type(*jax.tree.leaves(u))
    eps = float(jnp.finfo(dtype).eps)
    if reference is None:
        reference = _default_reference(problem, eps)
    inner = reference if inner is None else inner
    if estimator is None:
        convex = isinstance(problem, BilevelProblem)
        estimator = AID(CG(rtol=10 * eps) if convex else _gmres(10 * eps))
    rtol = (1e-6 if eps < 1e-12 else 1e-2) if rtol is None else rtol
    h = eps**0.2 * max(1.0, float(optax.tree.norm(u))) if step is None else step
    h = jnp.asarray(h, dtype)
    streams = Streams(
        *(Stream(FullBatch(), x, ()) for x in (problem.outer_data, problem.inner_data))
    )

    def inner_solution(u: PyTree[Array]) -> PyTree[Array]:
        return reference.solve(problem, u, w, reference.init(problem, u, w), streams.inner)[0]

    @eqx.filter_jit
    def phi(u: PyTree[Array]) -> Scalar:
        return problem.outer(u, inner_solution(u), problem.outer_data)

    @eqx.filter_jit
    def reference_is_off() -> Bool[Array, ""]:
        w = inner_solution(u)
        distance = optax.tree.norm(_newton_step(problem, u, w, problem.inner_data))
        return distance > rtol * jnp.maximum(1, optax.tree.norm(w))

    @eqx.filter_jit
    def estimate(u: PyTree[Array]) -> Any:
        state = estimator.init(problem, inner, u, w)
        return estimator.estimate(problem, inner, u, w, state, streams)[0]

    found = estimate(u)
    estimated, differences, uncertain = [], [], []
    for k in jr.split(jr.key(0) if key is None else key, num_directions):
        direction = optax.tree.random_like(k, u)
        direction = optax.tree.scale(1 / optax.tree.norm(direction), direction)

        def central(h: Array, direction: PyTree = direction) -> float:
            ahead = phi(optax.tree.add_scale(u, h, direction))
            behind = phi(optax.tree.add_scale(u, -h, direction))
            return float((ahead - behind) / (2 * h))

        coarse, fine = central(h), central(h / 2)
        best = (4 * fine - coarse) / 3
        rounding = 4 * eps * abs(float(found.value)) / float(h)
        estimated.append(float(dot(found.grad, direction)))
        differences.append(best)
        uncertain.append(abs(coarse - fine) + rounding)

    estimated, differences, uncertain = map(np.asarray, (estimated, differences, uncertain))
    scale = max(float(np.linalg.norm(differences)), float(np.finfo(float).tiny))
    error = np.abs(estimated - differences)
    if not np.all(np.isfinite(error)):
        verdict = "disagrees" if np.all(np.isfinite(differences)) else "inconclusive"
    elif np.all(error <= rtol * scale):
        verdict = "agrees"
    elif np.all(error <= np.max(uncertain)) or reference_is_off():
        verdict = "inconclusive"
    else:
        verdict = "disagrees"
    return HypergradientCheck(
        verdict=verdict,
        estimated=estimated,
        differences=differences,
        difference_error=uncertain,
        relative_error=float(np.max(error) / scale),
        inner_residual=float(found.inner_residual),
        linear_residual=float(found.linear_residual),
        rtol=rtol,
    )
