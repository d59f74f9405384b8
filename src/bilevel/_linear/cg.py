"""Conjugate gradients for Hessians: small curvature, float32, and an honest word on both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from .._arrays import dot
from .base import conj_state, placed, real_operator, refuse_complex, transpose_state, widened


class _Carry(NamedTuple):
    x: PyTree[Array]
    r: PyTree[Array]
    p: PyTree[Array]
    rr: Scalar
    rz: Scalar
    curvature: Scalar  # the smallest met, and 0 or less where it is not positive beyond rounding
    largest: Scalar
    best: PyTree[Array]  # the iterate with the smallest residual
    best_rr: Scalar
    step: Int[Array, ""]


class CG(lx.AbstractLinearSolver[Any]):
    """Conjugate gradients for a symmetric positive definite operator, as a lineax solver.

        a_k = <r_k, z_k> / (p_k^T A p_k),   x_{k+1} = x_k + a_k p_k,   r_{k+1} = r_k - a_k A p_k,
        z_{k+1} = P r_{k+1},   p_{k+1} = z_{k+1} + (<r_{k+1}, z_{k+1}> / <r_k, z_k>) p_k

    with the preconditioner P, which is the identity by default. The solver stops when
    `||r|| <= atol + rtol ||b||` in the 2-norm, after `max_steps` steps, or at a direction of
    curvature `p^T A p <= 0`. In the last case it returns the iterate reached so far with
    `RESULTS.negative_curvature`, as truncated Newton methods do. A curvature that is positive by
    rounding alone, as on a singular A, counts as zero: one below eps^1.5 of the largest one met, or
    one along which the residual would grow to 1 / sqrt(eps) of its first value, or x so far that the
    rounding of A x is larger than b. A solve that ends with a larger residual than it began with
    returns the iterate with the smallest one.

    It differs from `lineax.CG` in two ways that matter for inner Hessians. `lineax.CG` declares a
    breakdown, and returns NaN, once `p^T A p / ||r||^2` falls below `100 * dim * eps`, which in
    float32 with 7840 parameters is a curvature of 0.09. And it tests the residual entry by entry
    against `atol + rtol |b_i|`, which an entry with `b_i = 0` meets late or never.

    Args:
        rtol, atol: the tolerances, numbers or arrays; `rtol=0, atol=0` runs all `max_steps`.
        max_steps: the largest number of steps, by default ten times the dimension.
        preconditioner: a function from the operator to an operator close to its inverse, called
            once per solve: `diagonal_preconditioner()`, `nystrom_preconditioner(rank, damping)`, or
            your own. If it takes products with the operator, `stats` does not count them.

    Options of `lineax.linear_solve`: `y0` is the start, zero by default; `preconditioner` is an
    operator that is used in place of the argument above, as in `lineax.CG`.

    Cost: one product with A per step, and one more if the start is not zero. Memory: five vectors
    of the size of `x`. Error: `||x_k - x||_A` falls at least by the factor
    `(sqrt(kappa) - 1) / (sqrt(kappa) + 1)` per step, up to a factor of two in front, with kappa the
    condition number of `P A`.

    `stats["smallest_curvature"]` is the smallest `p^T A p / p^T p` met, an estimate from above of
    the smallest eigenvalue. (A start at the solution meets no direction; then it is infinite.)

    Raises:
        ValueError: a tolerance is negative, or the operator is not tagged positive semi-definite.
        TypeError: the operator is complex; `lineax.CG` takes such ones.

    Source: Hestenes and Stiefel (1952), "Methods of conjugate gradients for solving linear systems"
    [hestenes1952][].

    >>> import jax.numpy as jnp, lineax as lx
    >>> operator = lx.MatrixLinearOperator(2.0 * jnp.eye(3), lx.positive_semidefinite_tag)
    >>> solution = lx.linear_solve(operator, jnp.ones(3), CG(rtol=1e-6, atol=0.0))
    >>> solution.value.tolist(), int(solution.stats["num_steps"])
    ([0.5, 0.5, 0.5], 1)
    """

    rtol: float | Scalar = 1e-6
    atol: float | Scalar = 0.0
    max_steps: int | None = None
    preconditioner: Callable[[lx.AbstractLinearOperator], lx.AbstractLinearOperator] | None = None

    def __check_init__(self):
        if isinstance(self.rtol, jax.Array) or isinstance(self.atol, jax.Array):
            return  # within compiled code, where they have no value yet
        if self.rtol < 0 or self.atol < 0:
            raise ValueError(f"tolerances must be >= 0, got rtol={self.rtol}, atol={self.atol}.")
        if self.max_steps is None and self.rtol == 0 and self.atol == 0:
            raise ValueError("`CG` with rtol=0 and atol=0 needs `max_steps`; it would never stop.")

    def init(self, operator, options):
        """Check the tags of the operator, and build the preconditioner."""
        refuse_complex("CG", operator)
        if not lx.is_positive_semidefinite(operator):
            raise ValueError(
                "`CG` needs an operator tagged `lineax.positive_semidefinite_tag`; for others use "
                "`lineax.GMRES`, or `lineax.LSMR` for least squares."
            )
        operator = real_operator("CG", operator)
        preconditioner = options.get("preconditioner")
        if preconditioner is None and self.preconditioner is not None:
            preconditioner = self.preconditioner(operator)
        return operator, preconditioner

    def compute(self, state, vector, options):
        """The solution, a `lineax.RESULTS` and the stats."""
        operator, preconditioner = state
        given, vector = vector, placed(widened(vector), operator)
        precondition = (lambda r: r) if preconditioner is None else preconditioner.mv
        max_steps = 10 * optax.tree.size(vector) if self.max_steps is None else self.max_steps
        # In units of its largest entry (of a power of two near it), no square under- or overflows.
        largest = optax.tree.norm(vector, ord=jnp.inf)
        scale = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1] - 1)
        vector = _divided(vector, scale)
        y0 = options.get("y0")
        if y0 is None:
            x, r = optax.tree.zeros_like(vector), vector
        else:
            y0 = _divided(placed(widened(y0), operator), scale)
            x, r = y0, optax.tree.sub(vector, operator.mv(y0))
        target = self.atol / scale + self.rtol * optax.tree.norm(vector)

        def unfinished(c: _Carry) -> Bool[Array, ""]:
            return (c.rr > target**2) & (c.step < max_steps) & (c.curvature > 0)

        def iterate(c: _Carry) -> _Carry:
            ap = operator.mv(c.p)
            pap, pp = _dot(c.p, ap), _dot(c.p, c.p)
            largest = jnp.maximum(c.largest, pap / pp)
            curved = pap <= eps**1.5 * largest * pp
            a = jnp.where(curved, 0, c.rz / jnp.where(curved, 1, pap))
            r = optax.tree.add_scale(c.r, -a, ap)
            curved |= ~(_dot(r, r) <= first_rr / eps)
            # Beyond this the rounding of A x alone is larger than b.
            reached = optax.tree.add_scale(c.x, a, c.p)
            curved |= ~(eps**2 * largest**2 * _dot(reached, reached) <= bb)
            a = jnp.where(curved, 0, a)
            r = jax.tree.map(lambda new, old: jnp.where(curved, old, new), r, c.r)
            z = precondition(r)
            rz = _dot(r, z)
            p = optax.tree.add_scale(z, rz / c.rz, c.p)
            x = jax.tree.map(lambda new, old: jnp.where(curved, old, new), reached, c.x)
            curvature = jnp.minimum(c.curvature, pap / pp)
            curvature = jnp.where(curved, jnp.minimum(curvature, 0), curvature)
            rr = _dot(r, r)
            better = rr < c.best_rr
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), x, c.best)
            best_rr = jnp.minimum(rr, c.best_rr)
            return _Carry(x, r, p, rr, rz, curvature, largest, best, best_rr, c.step + 1)

        z = precondition(r)
        first_rr, eps = _dot(r, r), float(jnp.finfo(scale.dtype).eps)
        bb = jnp.maximum(_dot(vector, vector), first_rr)
        infinite = jnp.full_like(scale, jnp.inf)
        none = jnp.zeros_like(scale)
        rz, step = _dot(r, z), jnp.zeros((), jnp.int32)
        first = _Carry(x, r, z, first_rr, rz, infinite, none, x, first_rr, step)
        last = jax.lax.while_loop(unfinished, iterate, first)
        worse = last.rr > first_rr
        x = jax.tree.map(lambda x, best: jnp.where(worse, best, x), last.x, last.best)
        exhausted = (last.rr > target**2) & jnp.asarray(self.rtol + self.atol > 0)
        curved = last.curvature <= 0
        result = lx.RESULTS.where(exhausted, lx.RESULTS.max_steps_reached, lx.RESULTS.successful)
        result = lx.RESULTS.where(curved, lx.RESULTS.breakdown, result)
        stats = {
            "num_steps": last.step,
            "num_products": last.step + int(y0 is not None),
            "negative_curvature": curved,
            "smallest_curvature": last.curvature,
        }
        return optax.tree.cast_like(optax.tree.scale(scale, x), given), result, stats

    def transpose(self, state, options):
        """The operator is symmetric."""
        return transpose_state(state), options

    def conj(self, state, options):
        """The operator is real."""
        return conj_state(state), options

    def assume_full_rank(self):
        """Positive definite operators have full rank."""
        return True


def _dot(x: PyTree[Array], y: PyTree[Array]) -> Scalar:
    return dot(x, y)


def _divided(x: PyTree[Array], scale: Scalar) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: leaf / scale, x)
