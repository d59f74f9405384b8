"""Stationary points of Phi to high accuracy, for tests and benchmarks to compare with."""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._arrays import dot
from .._geometry import Euclidean
from .._hypergradient.base import Hypergradient, linearise_inner
from .._hypergradient.implicit import implicit_gradient, matrix_free
from .._pinned import compiled
from .._problem import BilevelProblem
from .._solution import RESULTS, BilevelError, Solution

MAX_NEWTON_STEPS = 300
MIN_NEWTON_STEP = 1e-3
MAX_TRIALS = 25  # along one direction
MAX_JUMPS = 10  # from one branch of inner solutions to another
NUM_PAIRS = 50  # that L-BFGS remembers
SHAKES = (1e-4, 1e-2)  # relative sizes of the noise that leaves a saddle point

Vector = Float[np.ndarray, " dim_u"]
Pairs = deque[tuple[Vector, Vector]]


class Reference(NamedTuple):
    """A stationary point of Phi, and its residuals.

    Attributes:
        u, w: the outer variable and its inner solution.
        value: `Phi(u) = F(u, w)`.
        gradient_norm: `||grad Phi(u)||_2`.
        inner_residual: `||grad_w f(u, w)||_2`.
    """

    u: PyTree[Array]
    w: PyTree[Array]
    value: float
    gradient_norm: float
    inner_residual: float


class _Point(NamedTuple):
    """Phi and its gradient at one point, on the host; `w` is the inner solution there."""

    u: Vector
    w: PyTree[Array]
    value: float
    grad: Vector
    inner_residual: float
    linear_residual: float
    result: RESULTS

    @property
    def gradient_norm(self) -> float:
        return float(np.linalg.norm(self.grad))


def reference_solution(
    problem: BilevelProblem,
    u0: PyTree[Array],
    w0: PyTree[Array],
    *,
    linear_solver: lx.AbstractLinearSolver | None = None,
    tol: float = 1e-8,
    max_steps: int = 1000,
) -> Reference:
    """A stationary point of Phi to high accuracy, on full data, for tests and benchmarks.

        w+ = w - (H + lam I)^-1 grad_w f(u, w)       to rounding, then   H v = grad_w F
        u+ = u - t P (grad_u F - (d2_uw f)^T v)      until   ||grad Phi(u)|| <= tol

    The inner solver is Newton's method from the last accepted `w`. It halves a step until f
    decreases, damps by lam where H is not positive definite, and adds a little noise to leave a
    saddle point. P is the preconditioner of L-BFGS with 50 pairs; t is bisected until the strong
    Wolfe conditions hold.

    Args:
        problem: a problem whose `u` is unconstrained.
        u0, w0: the start, in float64; see `tol`.
        linear_solver: for the Newton steps and the hypergradient, to a tight tolerance; by default
            `lineax.Cholesky()`, which forms H. For more than some thousand inner variables pass
            `CG(rtol=1e-12)`; it is slow where penalties differ by many orders of magnitude.
        tol: the bound on `||grad Phi(u)||_2`. It also bounds the inner and the linear residual,
            which are mostly close to rounding at the end.
        max_steps: the largest number of outer steps.

    **Valid**: `u` is stationary to `tol`, and `w` is a strict local minimum of f (with the default
    solver, the Hessian at `w` has a Cholesky factor). Where Phi is not convex, the result is *a*
    local solution. Where f has several minima, Phi is taken along the branch of minima that starts
    near `w0`. Where that branch ends and Phi jumps, the function continues along the next branch,
    ten times at most; a stationary point need not exist then. Where Phi has no minimiser (in
    `hyper_cleaning`, or where the best penalty is infinite), u stops at a finite point with a small
    gradient, and `value` is an upper bound on the infimum. In float32 the gradient norm can reach
    about 1e-4 times the size of F.

    Cost: two to four Newton steps per evaluation of Phi, of which an outer step takes mostly one;
    with Cholesky `dim(w)` Hessian-vector products and `dim(w)^3 / 3` operations each.

    Raises:
        TypeError: the problem is not a `BilevelProblem`.
        ValueError: the geometry is not `Euclidean`, or the dtype does not resolve `tol`.
        BilevelError: the tolerance was not reached. `error.solution` has the last point.

    Source: ours, from textbook methods (Newton's method, L-BFGS, the strong Wolfe conditions).

    >>> import jax, jax.numpy as jnp
    >>> from bilevel.tasks import quadratic
    >>> problem = quadratic(
    ...     jax.random.key(0), num_inner_rows=8, num_outer_rows=8, dim_u=2, dim_w=3
    ... )
    >>> reference = reference_solution(problem, jnp.zeros(2), jnp.zeros(3), tol=1e-3)
    >>> reference.gradient_norm <= 1e-3
    True
    """
    _check(problem, u0, w0, tol)
    linear_solver = lx.Cholesky() if linear_solver is None else linear_solver
    flat, unravel = ravel_pytree(u0)
    rounding = 10 * float(jnp.finfo(flat.dtype).eps)
    inner_tol = jnp.asarray(max(min(1e-3 * tol, 1e-9), rounding), flat.dtype)

    def tree(u: Vector) -> PyTree:
        return unravel(jnp.asarray(u, flat.dtype))

    def phi(u: Vector, w: PyTree) -> _Point:
        point = _point(u, _evaluate(problem, tree(u), w, linear_solver, inner_tol))
        for size in SHAKES:
            if _usable(point, tol) or not point.inner_residual <= tol:
                break
            w = _shaken(point.w, size)
            point = _point(u, _evaluate(problem, tree(u), w, linear_solver, inner_tol))
        return point

    def error(what: str) -> BilevelError:
        return _error(what, point, tree(point.u), num_steps, tol)

    point, pairs = phi(np.asarray(flat), w0), deque(maxlen=NUM_PAIRS)
    num_steps = num_jumps = 0
    if not _usable(point, tol):
        raise error("No inner solution with a positive definite Hessian was found")
    while point.gradient_norm > tol:
        if num_steps == max_steps:
            raise error("`max_steps` is reached")
        following, jumped = _line_search(phi, point, _precondition(point.grad, pairs), tol)
        if following is None and pairs:  # once more, along the gradient
            pairs.clear()
            following, jumped = _line_search(phi, point, _precondition(point.grad, pairs), tol)
        if following is None:
            raise error("No step along the gradient decreases Phi")
        if jumped:
            num_jumps += 1
            pairs.clear()
        else:
            pairs.append((following.u - point.u, following.grad - point.grad))
        point, num_steps = following, num_steps + 1
        if num_jumps > MAX_JUMPS:
            raise error("Phi jumps, time and again")
    u = tree(point.u)
    return Reference(u, point.w, point.value, point.gradient_norm, point.inner_residual)


@compiled
def _evaluate(
    problem: BilevelProblem,
    u: PyTree[Array],
    w: PyTree[Array],
    linear_solver: lx.AbstractLinearSolver,
    inner_tol: Scalar,
) -> Hypergradient:
    w = _newton(problem, u, w, linear_solver, inner_tol)
    return implicit_gradient(problem, u, w, linear_solver)


class _Trial(NamedTuple):
    """Where a step of length `t` along Newton's direction leads."""

    t: Scalar
    w: PyTree[Array]
    value: Scalar
    residual: Scalar


class _NewtonState(NamedTuple):
    w: PyTree[Array]
    value: Scalar
    residual: Scalar
    damping: Scalar
    num_steps: Int[Array, ""]
    done: Bool[Array, ""]


def _newton(
    problem: BilevelProblem,
    u: PyTree[Array],
    w: PyTree[Array],
    linear_solver: lx.AbstractLinearSolver,
    tol: Scalar,
) -> PyTree[Array]:
    """Newton steps until the residual is below `tol`, and one more.

    A step is halved until f decreases. If the direction does not descend, the damping grows
    tenfold.
    """

    def f(w: PyTree) -> Scalar:
        return problem.inner(u, w, problem.inner_data)

    def step(state: _NewtonState) -> _NewtonState:
        solved = state.residual <= tol
        damping = jnp.where(solved, 0, state.damping)
        gradient, products = linearise_inner(problem, u, state.w, problem.inner_data)
        solve = matrix_free(problem, state.w, linear_solver, damping, {})
        direction = solve(lambda x: products(x)[1], gradient).solution.value
        slope = dot(gradient, direction)
        noise = 8 * jnp.finfo(slope.dtype).eps * (1 + jnp.abs(state.value))

        def attempt(t: Scalar) -> _Trial:
            w = jax.tree.map(lambda x, d: x - t * d, state.w, direction)
            value, gradient = jax.value_and_grad(f)(w)
            return _Trial(t, w, value, jnp.asarray(optax.tree.norm(gradient)))

        def better(trial: _Trial) -> Bool[Array, ""]:
            lower = trial.value < state.value - jnp.maximum(0.1 * trial.t * slope, noise)
            closer = (trial.residual < state.residual) & (trial.value <= state.value + noise)
            return (slope > 0) & jnp.isfinite(trial.residual) & (lower | closer)

        trial = jax.lax.while_loop(
            lambda x: ~better(x) & (slope > 0) & (x.t > MIN_NEWTON_STEP),
            lambda x: attempt(x.t / 2),
            attempt(jnp.ones((), slope.dtype)),
        )
        accept = better(trial)
        less = jnp.where(damping > 1e-6, damping / 10, 0)
        more = jnp.maximum(10 * damping, 1e-4)
        w, value, residual, damping = jax.tree.map(
            lambda new, old: jnp.where(accept, new, old),
            (trial.w, trial.value, trial.residual, less),
            (state.w, state.value, state.residual, more),
        )
        done = solved | (damping > 1e12)
        return _NewtonState(w, value, residual, damping, state.num_steps + 1, done)

    value, gradient = jax.value_and_grad(f)(w)
    start = _NewtonState(
        w,
        value,
        jnp.asarray(optax.tree.norm(gradient)),
        jnp.zeros((), value.dtype),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
    )
    end = jax.lax.while_loop(lambda s: ~s.done & (s.num_steps < MAX_NEWTON_STEPS), step, start)
    return end.w


def _point(u: Vector, estimate: Hypergradient) -> _Point:
    return _Point(
        u=u,
        w=estimate.w,
        value=float(estimate.value),
        grad=np.asarray(ravel_pytree(estimate.grad)[0]),
        inner_residual=float(estimate.inner_residual),
        linear_residual=float(estimate.linear_residual),
        result=estimate.result,
    )


def _shaken(w: PyTree[Array], size: float) -> PyTree[Array]:
    """`w` with noise, the same at every call, of norm `size (1 + ||w||)`."""
    flat, unravel = ravel_pytree(w)
    noise = np.random.default_rng(0).normal(size=flat.size)
    scale = size * (1 + float(jnp.linalg.norm(flat))) / np.linalg.norm(noise)
    return unravel(flat + jnp.asarray(scale * noise, flat.dtype))


def _precondition(grad: Vector, pairs: Pairs) -> Vector:
    """P grad, by the two loops of L-BFGS over the pairs `(change of u, change of grad Phi)`."""
    direction = grad.copy()
    shares = []
    for s, y in reversed(pairs):
        shares.append(s @ direction / (s @ y))
        direction -= shares[-1] * y
    if pairs:
        s, y = pairs[-1]
        direction *= s @ y / (y @ y)
    else:
        direction /= max(1.0, float(np.linalg.norm(grad)))
    for (s, y), share in zip(pairs, reversed(shares), strict=True):
        direction += (share - y @ direction / (s @ y)) * s
    return direction


def _line_search(
    phi: Callable[[Vector, PyTree], _Point], point: _Point, direction: Vector, tol: float
) -> tuple[_Point | None, bool]:
    """A point `u - t direction` with enough decrease and a slope of at most 0.9 of that at t = 0.

    A trial that cannot be evaluated counts as too far. Decrease is asked for up to rounding only;
    the slopes, which are known to a much smaller error, then decide. Where Phi jumps, as the inner
    solution falls onto another branch, there may be no such point: then one just beyond, and True.
    """
    slope = -float(point.grad @ direction)
    before, beyond = point, None
    low, high, t = 0.0, math.inf, 1.0
    if not slope < 0:
        return None, False
    for _ in range(MAX_TRIALS):
        trial = phi(point.u - t * direction, point.w)
        slope_here = -float(trial.grad @ direction)
        usable = _usable(trial, tol)
        decreased = trial.value <= point.value + 1e-4 * t * slope + _noise(point)
        if not usable or not decreased or slope_here > -0.9 * slope:
            high, beyond = t, trial if usable else beyond
        elif slope_here < 0.9 * slope:
            low, before = t, trial
        else:
            return trial, False
        t = 2 * t if high == math.inf else (low + high) / 2
    jumps = beyond is not None and beyond.value > before.value + _noise(point)
    return (beyond, True) if jumps else (None, False)


def _noise(point: _Point) -> float:
    """How much of a difference between two values of Phi may be rounding."""
    return 100 * float(np.finfo(point.u.dtype).eps) * (1 + abs(point.value))


def _usable(point: _Point, tol: float) -> bool:
    return (
        bool(point.result == RESULTS.successful)
        and math.isfinite(point.value)
        and math.isfinite(point.gradient_norm)
        and max(point.inner_residual, point.linear_residual) <= tol
    )


def _check(problem: BilevelProblem, u0: PyTree, w0: PyTree, tol: float) -> None:
    if not isinstance(problem, BilevelProblem):
        raise TypeError(
            f"`problem` must be a BilevelProblem, whose inner objective can be minimised, got "
            f"{type(problem).__name__}."
        )
    if not isinstance(problem.geometry, Euclidean):
        raise ValueError(
            f"`reference_solution` moves freely in u and needs the geometry Euclidean, got "
            f"{type(problem.geometry).__name__}. Write the constraint into the objectives with "
            "`reparametrise`, or use `solve`."
        )
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves((u0, w0)))
    if not tol >= 100 * eps:
        raise ValueError(
            f"`tol` must be at least {100 * eps:.0e}, which is what the dtype of `u0` and `w0` "
            f"resolves, got {tol}. For more, use float64: "
            '`jax.config.update("jax_enable_x64", True)` before the data are made.'
        )


def _error(what: str, point: _Point, u: PyTree, num_steps: int, tol: float) -> BilevelError:
    result = point.result
    if bool(result == RESULTS.successful):
        solved = point.inner_residual <= tol
        result = RESULTS.outer_max_steps_reached if solved else RESULTS.inner_max_steps_reached
    return BilevelError(
        f"{what}: the gradient norm is {point.gradient_norm:.1e}, the inner residual "
        f"{point.inner_residual:.1e} and the linear residual {point.linear_residual:.1e}, of which "
        f"none may be above tol = {tol:.0e}. Use float64, a larger `tol` or `max_steps`, or a `w0` "
        "nearer to an inner minimum.",
        Solution(u, point.w, result, None, {}, {"num_steps": num_steps, "converged": False}),
    )
