"""A choice among many inner solutions: optimistic, pessimistic, cold-started or warm-started."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar

from .._inner.base import AbstractInnerSolver
from .._problem import BilevelProblem
from .._sampler import FullBatch, Stream


class InnerSolution(NamedTuple):
    """One of the inner solutions.

    Attributes:
        w: the inner variable.
        value: `F(u, w)`.
        inner_residual: `||grad_w f(u, w)||_2`; if it is not small, `w` is not an inner solution,
            and the function was used outside of its domain.
        outer_residual: the length of the part of grad_w F along which F could still be improved
            within the set that is searched. It is not small if an optimistic or pessimistic search
            was not finished within `num_steps`; a cold or warm start searches nothing and has 0.
    """

    w: PyTree[Array]
    value: Float[Array, "*steps"]
    inner_residual: Float[Array, "*steps"]
    outer_residual: Float[Array, "*steps"]


def cold_start_solution(
    problem: BilevelProblem,
    u: PyTree[Array],
    w0: PyTree[Array],
    inner: AbstractInnerSolver | None = None,
    *,
    rtol: float | None = None,
) -> InnerSolution:
    """The inner solution that gradient descent from `w0` finds.

        S(u) = argmin_w f(u, w),   w = argmin_{w in S(u)} ||w - w0|| = w0 - H^+ grad_w f(u, w0)

    The closed form is for an f that is a convex quadratic in w; H may depend on u and may be
    singular. For any other f pass an inner solver, which is run from `w0` as it is.

    Args:
        problem: the problem; all its data are used.
        u: the outer variable.
        w0: the start of the inner solve.
        inner: an inner solver in place of the closed form.
        rtol: eigenvalues of H below `rtol` times the largest count as zero; by default
            `10 dim(w) eps`.

    This is a pure function, differentiable in u where the rank of H does not change. As
    `ClosedForm(lambda u, _: cold_start_solution(problem, u, w0).w)` it is an inner solver for
    `ITD`. The same holds for `optimistic_solution` and `pessimistic_solution`, each of which has an
    outer solution of its own.

    The function does not check that f is convex; the residual is zero at a saddle point too.

    Cost: H and its pseudo-inverse, `O(dim(w)^3)` time and `O(dim(w)^2)` memory.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", Definition 3.1 and Lemma C.1 [vicol2022][].

    >>> import jax.numpy as jnp
    >>> problem = BilevelProblem(  # S(u): w_1 + w_2 = u
    ...     lambda u, w, _: (w[1] - 3.0) ** 2, lambda u, w, _: (w[0] + w[1] - u) ** 2
    ... )
    >>> [round(float(x), 4) for x in cold_start_solution(problem, jnp.array(2.0), jnp.zeros(2)).w]
    [1.0, 1.0]
    """
    if inner is None:
        return _choice(problem, u, _solution_set(problem, u, w0, rtol).centre, w0)
    stream = Stream(FullBatch(), problem.inner_data, ())
    w, *_ = inner.solve(problem, u, w0, inner.init(problem, u, w0), stream)
    return _choice(problem, u, ravel_pytree(w)[0], w0)


def warm_start_solution(
    problem: BilevelProblem,
    us: PyTree[Array],
    w0: PyTree[Array],
    inner: AbstractInnerSolver | None = None,
    *,
    rtol: float | None = None,
) -> InnerSolution:
    """The inner solutions that warm starts find along a trajectory of outer variables.

        w_{k+1} = cold_start_solution(u_{k+1}, w_k)

    The closed form gives a full warm start: each solution is projected onto the next solution set,
    which is Kaczmarz's method for linear models. `GradientInner(tx, T)` gives a partial warm start
    of T steps, for any f.

    Args:
        problem, inner, rtol: as in `cold_start_solution`.
        us: like `u`, with the trajectory along a first axis of its leaves.
        w0: the start of the first inner solve.

    Returns:
        All the solutions in their order along a first axis; the last one is the warm-started
        solution. Where H does not depend on u, it equals that of a cold start, because the
        component of `w0` in the null space of H never changes.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", sections 3.2 and 4.1 [vicol2022][]; Karczmarz (1937),
    "Angenäherte Auflösung von Systemen linearer Gleichungen" [karczmarz1937][].
    """

    def step(w: PyTree, u: PyTree) -> tuple[PyTree, InnerSolution]:
        choice = cold_start_solution(problem, u, w, inner, rtol=rtol)
        return choice.w, choice

    return jax.lax.scan(step, w0, us)[1]


def optimistic_solution(
    problem: BilevelProblem,
    u: PyTree[Array],
    w0: PyTree[Array],
    *,
    num_steps: int = 20,
    rtol: float | None = None,
) -> InnerSolution:
    """The inner solution that is best for the outer objective.

        w = argmin_{w in S(u)} F(u, w)
        w_{k+1} = w_k - t (P F_ww P)^+ P grad_w F,   P = I - H^+ H,   t of 1, 1/2, ..., 2^-10

    f must be a convex quadratic in w, so that S(u) is affine, and F must be convex in w. If F is
    quadratic too, the first step reaches the solution in closed form; if there are several, it is
    the one nearest to the cold-started solution. For another F the function takes `num_steps`
    Newton steps. Then F may have no minimiser on S(u): a logistic loss on separable points has
    none.

    The arguments and properties are those of `cold_start_solution`. Cost: each step costs as much
    as `cold_start_solution`.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", Definition 2.1 [vicol2022][].

    >>> import jax.numpy as jnp
    >>> problem = BilevelProblem(
    ...     lambda u, w, _: (w[1] - 3.0) ** 2, lambda u, w, _: (w[0] + w[1] - u) ** 2
    ... )
    >>> [round(float(x), 4) for x in optimistic_solution(problem, jnp.array(2.0), jnp.zeros(2)).w]
    [-1.0, 3.0]
    """
    solutions = _solution_set(problem, u, w0, rtol)
    centre, objective = solutions.centre, solutions.objective
    steps = 0.5 ** jnp.arange(11).astype(centre.dtype)

    def newton(w: Array, _: Any) -> tuple[Array, None]:
        direction = solutions.newton_direction(w)
        trials = w[None, :] - steps[:, None] * direction[None, :]
        values = jax.vmap(objective)(trials)
        best = jnp.nanargmin(values)
        return jnp.where(values[best] <= objective(w), trials[best], w), None

    w = jax.lax.scan(newton, centre, length=num_steps)[0]
    return _choice(problem, u, w, w0, jnp.linalg.norm(solutions.slope(w)))


def pessimistic_solution(
    problem: BilevelProblem,
    u: PyTree[Array],
    w0: PyTree[Array],
    radius: float,
    *,
    num_steps: int = 200,
    rtol: float | None = None,
) -> InnerSolution:
    """The inner solution that is worst for the outer objective, among those near the cold-started one.

        w = argmax F(u, w)   over w in S(u) with ||w - c|| <= radius,   c = cold_start_solution(u, w0)
        w_0 = c + z,   (mu I - Q) z = P grad_w F(u, c),   ||z|| = radius,   mu >= the eigenvalues of Q
        w_{k+1} = c + radius P grad_w F(u, w_k) / ||P grad_w F(u, w_k)||,   P = I - H^+ H

    with Q = P F_ww P at c. f must be a convex quadratic in w, and F must be convex in w; then no step
    decreases F. The start solves the secular equation ||z(mu)|| = radius, and is the maximum where F
    is quadratic, also where grad_w F(u, c) is orthogonal to the direction of largest curvature. For
    another F the function goes on with `num_steps` steps to a maximum, which may be a local one;
    `outer_residual` says if they were too few. Where S(u) is one point, or F is constant on it, w is
    c.

    The other arguments and properties are those of `cold_start_solution`. Cost: the eigenvectors of
    Q, and one gradient of F per step.

    Raises:
        ValueError: a radius that is not positive.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", Definition 2.1 [vicol2022][]. The definition has no
    radius; but a convex F that is not constant on the affine set S(u) has no maximum there. The
    secular equation: Moré and Sorensen (1983), "Computing a trust region step" [more1983][].

    >>> import jax.numpy as jnp
    >>> problem = BilevelProblem(  # c = (1, 1); away from w_2 = 3
    ...     lambda u, w, _: (w[1] - 3.0) ** 2, lambda u, w, _: (w[0] + w[1] - u) ** 2
    ... )
    >>> worst = pessimistic_solution(problem, jnp.array(2.0), jnp.zeros(2), 8.0**0.5)
    >>> [round(float(x), 4) for x in worst.w]
    [3.0, -1.0]
    """
    if not radius > 0:
        raise ValueError(f"`radius` must be > 0, got {radius}.")
    solutions = _solution_set(problem, u, w0, rtol)
    centre = solutions.centre

    def ascend(w: Array, _: Any) -> tuple[Array, None]:
        slope = solutions.slope(w)
        square = jnp.sum(slope**2)
        return centre + radius / jnp.sqrt(jnp.where(square > 0, square, 1)) * slope, None

    # The steps carry the derivative in u, which the eigenvectors of equal eigenvalues have not.
    model = jax.lax.stop_gradient(centre + solutions.largest_on_sphere(radius))
    objective = solutions.objective
    start = jnp.where(objective(model) >= objective(centre), model, centre)
    w = jax.lax.scan(ascend, start, length=num_steps)[0]
    slope = solutions.slope(w)
    outwards = (w - centre) / radius
    remaining = jnp.linalg.norm(slope - jnp.maximum(slope @ outwards, 0) * outwards)
    return _choice(problem, u, w, w0, remaining)


class _SolutionSet(NamedTuple):
    """S(u) as `centre + range(tangent)`, in flat coordinates, and F there."""

    centre: Float[Array, " dim"]
    tangent: Float[Array, "dim dim"]
    objective: Callable[[Array], Scalar]
    rtol: float

    def slope(self, w: Array) -> Array:
        """`P grad_w F`; exactly zero, without rounding errors, where F is flat along S(u)."""
        slope = jax.grad(self.objective)(w)
        along = self.tangent @ slope
        flat = jnp.linalg.norm(along) <= _precision(w) * jnp.linalg.norm(slope)
        return jnp.where(flat, 0, along)

    def newton_direction(self, w: Array) -> Array:
        """`(P F_ww P)^+ P grad_w F`; F_ww sets the threshold for flat directions."""
        curvature, p = jax.hessian(self.objective)(w), self.tangent
        normal = jnp.linalg.norm(curvature) * (jnp.eye(w.size, dtype=w.dtype) - p)
        inverse = _pseudo_inverse(p @ curvature @ p + normal, self.rtol)
        return p @ (inverse @ self.slope(w))

    def largest_on_sphere(self, radius: float) -> Array:
        """The step z from the centre, `||z|| = radius`, along which F to second order is largest."""
        p, slope = self.tangent, self.slope(self.centre)
        curvature = jax.hessian(self.objective)(self.centre)
        values, vectors = jnp.linalg.eigh(p @ curvature @ p)
        q, below = vectors.T @ slope, values[-1] - values

        def step(shift: Array) -> Array:  # of (mu I - Q) z = slope, mu = values[-1] + shift
            return q / jnp.where(q == 0, 1, shift + below)

        def halve(ends: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            low, high = ends
            middle = jnp.where(low > 0, jnp.sqrt(low) * jnp.sqrt(high), high * 1e-3)
            long = jnp.linalg.norm(step(middle)) > radius
            return (jnp.where(long, middle, low), jnp.where(long, high, middle)), None

        top = jnp.linalg.norm(q) / radius
        (_, shift), _ = jax.lax.scan(halve, (jnp.zeros_like(top), top), length=200)
        z = step(shift)
        length = jnp.linalg.norm(z)
        # Where the slope has no part along the largest curvature, this direction is free.
        free = jnp.sqrt(jnp.maximum(radius**2 - length**2, 0)) * jnp.eye(q.size, dtype=q.dtype)[-1]
        scaled = z * radius / jnp.where(length > 0, length, 1)
        z = jnp.where(length < (1 - 1e-6) * radius, z + free, scaled)
        flat = values[-1] <= self.rtol * jnp.linalg.norm(curvature)
        return jnp.where(flat & (top == 0), 0, vectors @ z)


def _solution_set(
    problem: BilevelProblem, u: PyTree, w0: PyTree, rtol: float | None
) -> _SolutionSet:
    flat, unravel = ravel_pytree(w0)
    rtol = _precision(flat) if rtol is None else rtol

    def inner(w: Array) -> Scalar:
        return problem.inner(u, unravel(w), problem.inner_data)

    hessian = jax.hessian(inner)(flat)
    inverse = _pseudo_inverse(hessian, rtol)
    p = jnp.eye(flat.size, dtype=flat.dtype) - inverse @ hessian
    return _SolutionSet(
        centre=flat - inverse @ jax.grad(inner)(flat),
        tangent=3 * p @ p - 2 * p @ p @ p,  # a projection again, to rounding: the error is squared
        objective=lambda w: problem.outer(u, unravel(w), problem.outer_data),
        rtol=rtol,
    )


def _precision(w: Array) -> float:
    return 10 * w.size * float(jnp.finfo(w.dtype).eps)


def _pseudo_inverse(matrix: Array, rtol: float) -> Array:
    return jnp.linalg.pinv(matrix, rtol=rtol, hermitian=True)


def _choice(
    problem: BilevelProblem, u: PyTree, flat: Array, like: PyTree, remaining: Array | None = None
) -> InnerSolution:
    w = ravel_pytree(like)[1](flat)
    residual = problem.residual(u, w, problem.inner_data)
    value = problem.outer(u, w, problem.outer_data)
    remaining = jnp.zeros_like(value) if remaining is None else remaining
    return InnerSolution(w, value, jnp.asarray(optax.tree.norm(residual)), remaining)
