"""Fields on the simplex, and what a point is for a field.

A field maps weights u to one number per row, as the hypergradient does. Here are the fields of the
frozen and of the exactly solved model, and tests of a point: whether it is stationary for a field
(Proposition 3), whether it is stable (Proposition 4), how fast the flow gets there (Proposition 5),
and how many rows a stationary point can have weight on (Propositions 7 and 8). The flows of these
fields are in `dynamics`.

The source is Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization",
section 3 [ivanova2023][]; equations and propositions have the numbers of that paper.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float, PyTree, Scalar

from .._geometry import Simplex
from .._hypergradient.implicit import implicit_gradient
from .._inner.base import AbstractInnerSolver
from .._pinned import compiled
from .._problem import BilevelProblem
from .._sampler import FullBatch, Stream

__all__ = [
    "SUPPORT",
    "Field",
    "LowRankField",
    "Stability",
    "Weights",
    "exact_field",
    "frozen_field",
    "is_stationary",
    "local_rate",
    "may_be_stationary",
    "row_gradients",
    "stability",
    "support_bound",
]

Weights = Float[Array, " rows"]
Field = Callable[[Weights], Weights]

SUPPORT = 1e-6  # a row whose share is above this belongs to the support


class _FrozenField(eqx.Module):
    problem: BilevelProblem
    w: PyTree[Array]
    linear_solver: lx.AbstractLinearSolver

    def __call__(self, u: Weights) -> Weights:
        return implicit_gradient(self.problem, u, self.w, self.linear_solver).grad


def frozen_field(
    problem: BilevelProblem,
    w: PyTree[Array],
    linear_solver: lx.AbstractLinearSolver | None = None,
) -> Field:
    """`phi(u) = Psi(w, u)`, the hypergradient with the model held at `w` (equation 10).

    The values of the field lie in the span of the p columns of the row gradients, which is why its
    flow becomes sparse. The linear solver is Cholesky by default, for a model that is small enough
    for a p x p matrix.
    """
    return _FrozenField(problem, w, lx.Cholesky() if linear_solver is None else linear_solver)


class _ExactField(eqx.Module):
    problem: BilevelProblem
    inner: AbstractInnerSolver
    w0: PyTree[Array]
    linear_solver: lx.AbstractLinearSolver

    def __call__(self, u: Weights) -> Weights:
        stream = Stream(FullBatch(), self.problem.inner_data, ())
        state = self.inner.init(self.problem, u, self.w0)
        w, *_ = self.inner.solve(self.problem, u, self.w0, state, stream)
        return implicit_gradient(self.problem, u, w, self.linear_solver).grad


def exact_field(
    problem: BilevelProblem,
    inner: AbstractInnerSolver,
    w0: PyTree[Array],
    linear_solver: lx.AbstractLinearSolver | None = None,
) -> Field:
    """`phi(u) = grad Phi(u) = Psi(w*(u), u)`, with the model found at every u by `inner` from `w0`.

    The mirror flow of this field is the limit of Theorem 1.
    """
    linear_solver = lx.Cholesky() if linear_solver is None else linear_solver
    return _ExactField(problem, inner, w0, linear_solver)


class LowRankField(eqx.Module):
    """`phi(u) = -gradients (sum_i u_i H_i)^-1 outer_gradient` (equation 10, with the sign of 6).

    Args:
        gradients: of the losses of the rows, `(rows, p)`; Gamma in the paper.
        hessians: of the losses of the rows, `(rows, p, p)`.
        outer_gradient: of the outer objective, `(p,)`.
    """

    gradients: Float[Array, "rows p"]
    hessians: Float[Array, "rows p p"]
    outer_gradient: Float[Array, " p"]

    def __call__(self, u: Weights) -> Weights:
        """The field at `u`."""
        hessian = jnp.tensordot(u, self.hessians, axes=1)
        return -self.gradients @ jnp.linalg.solve(hessian, self.outer_gradient)


def row_gradients(problem: BilevelProblem, u: Weights, w: PyTree[Array]) -> Float[Array, "rows p"]:
    """The gradients of the rows' losses at `w`, `d2_uw f` as a matrix (Gamma in the paper)."""
    flat, unravel = ravel_pytree(w)
    jacobian = jax.jacfwd if flat.size <= u.size else jax.jacrev
    by_u = jax.grad(lambda u, x: problem.inner(u, unravel(x), problem.inner_data))
    return jacobian(by_u, argnums=1)(u, flat)


# A field at a point. Compiled: run op by op, a field that solves a linear system takes seconds.


@compiled
def value(field: Field, u: Weights) -> Weights:
    """`phi(u)`, compiled."""
    return field(u)


@compiled
def _jacobian(field: Field, u: Weights) -> Float[Array, "rows rows"]:
    return jax.jacfwd(field)(u)


class _MirrorField(eqx.Module):
    field: Field

    def __call__(self, u: Weights) -> Weights:
        return u * Simplex().tangent(u, self.field(u))


@compiled
def _size(field: Field, u: Weights) -> Scalar:
    """The largest |phi| at u and at a point whose log-weights differ from those of u by about 1.

    phi alone may vanish at u, which would leave nothing to compare its rounding errors with.
    """
    near = Simplex().retract(u, jr.normal(jr.key(0), u.shape, u.dtype))
    return jnp.maximum(jnp.max(jnp.abs(field(u))), jnp.max(jnp.abs(field(near))))


def is_stationary(field: Field, u: Weights, tol: float = 1e-8) -> bool:
    """Whether phi is the same on all rows that carry weight (Proposition 3).

    The test is `|phi_i - <u, phi>| <= tol size` for every row with `u_i > 0`. The size of the field
    is the largest `|phi|` at u and at a second point, whose log-weights differ from those of u by
    about 1; so a factor on the outer loss changes no verdict, also where phi vanishes at u. Every
    vertex of the simplex passes the test.
    """
    phi = value(field, u)
    c = jnp.where(u > 0, Simplex().tangent(u, phi), 0)
    return bool(jnp.max(jnp.abs(c)) <= tol * _size(field, u))


class Stability(NamedTuple):
    """The verdict of Proposition 4 and the numbers behind it.

    `eigenvalues` are those of `P(u) J` on the tangent space of the support, one fewer than the
    support has rows. `margins` are the values `phi_i - <u, phi>` of the rows outside of the
    support. A point is stable if all real parts and all margins are positive, by more than rounding
    errors of the field; the smallest of them is `rate`.
    """

    stable: bool
    rate: float
    eigenvalues: Complex[np.ndarray, " directions"]
    margins: Float[np.ndarray, " off"]
    support: Bool[np.ndarray, " rows"]


def stability(field: Field, u: Weights, threshold: float = SUPPORT) -> Stability:
    """Whether the mirror flow returns to a stationary point that is perturbed (Proposition 4).

    Args:
        field: a differentiable field.
        u: the point; rows at or below `threshold` count as outside of the support and are set to 0.
        threshold: a share of the total weight.

    Raises:
        ValueError: `u` is not stationary to `1e-4` of the size of the field (see `is_stationary`), so
            that the question has no meaning.

    A factor on the field multiplies `rate` and changes no verdict.
    """
    u = jnp.where(u > threshold, u, 0)
    u = u / jnp.sum(u)
    if not is_stationary(field, u, 1e-4):
        raise ValueError(
            "`u` is not a stationary point of this field; follow `mirror_flow` to one, with a `tol`."
        )
    on = np.asarray(u > 0)
    phi, jacobian, p = (np.asarray(x) for x in (value(field, u), _jacobian(field, u), u[on]))
    basis = _tangent_basis(int(on.sum()))
    block = (np.diag(p) - np.outer(p, p)) @ jacobian[np.ix_(on, on)]
    eigenvalues = np.asarray(np.linalg.eigvals(basis.T @ block @ basis), complex)
    margins = (phi - p @ phi[on])[~on]
    rate = min([*np.real(eigenvalues), *margins], default=np.inf)
    rounding = len(u) * float(jnp.finfo(u.dtype).eps) * float(_size(field, u))
    return Stability(bool(rate > rounding), float(rate), eigenvalues, margins, on)


def local_rate(field: Field, u: Weights) -> float:
    """The slowest exponential rate at a stationary point (Proposition 5).

    The rate is the smallest real part of an eigenvalue of `D(P phi)(u)` on the tangent space: from
    a start that is near enough, `|u(t) - u|` falls as `exp(-rate t)`. The rate is negative where
    the point is not stable.
    """
    jacobian, basis = np.asarray(_jacobian(_MirrorField(field), u)), _tangent_basis(u.size)
    return float(np.real(np.linalg.eigvals(basis.T @ jacobian @ basis)).min())


def _tangent_basis(size: int) -> Float[np.ndarray, "rows directions"]:
    """An orthonormal basis of the vectors that sum to zero."""
    return scipy.linalg.null_space(np.ones((1, size)))


def support_bound(gradients: Float[Array, "rows p"]) -> int:
    """The largest number of rows that a stationary point of a frozen field has weight on.

    It is the rank of the row gradients (Propositions 7 and 8). The bound holds with probability one
    for gradients in general position, as drawn from a continuous distribution; rows that are copies
    of each other count as one. A rank below p bounds the support only if the Hessians keep the span
    of the gradients, as those of linear regression with an l2 term do; otherwise phi can vanish,
    and be constant, on more rows.
    """
    return int(np.linalg.matrix_rank(np.asarray(gradients)))


def may_be_stationary(gradients: Float[Array, "rows p"], support: Bool[Array, " rows"]) -> bool:
    """Proposition 8's condition on a support: `Gamma|_S x = 1` or `= 0` for some `x != 0`.

    The answer is numerical, with the tolerance of a matrix rank.
    """
    rows = np.asarray(gradients)[np.asarray(support)]
    if np.linalg.matrix_rank(rows) < rows.shape[1]:
        return True
    ones = np.ones(len(rows))
    x = np.linalg.lstsq(rows, ones, rcond=None)[0]
    return bool(np.linalg.norm(rows @ x - ones) <= 1e-8 * np.sqrt(len(rows)))
