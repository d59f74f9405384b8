"""Conjugate gradients for Hessians: small curvature, float32, and an honest word on both."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Bool, Int, PyTree, Scalar


class _Carry(NamedTuple):
    x: PyTree[Array]
    r: PyTree[Array]
    p: PyTree[Array]
    rr: Scalar
    curved: Bool[Array, ""]
    step: Int[Array, ""]


class CG(lx.AbstractLinearSolver[lx.AbstractLinearOperator]):
    """Conjugate gradients for a symmetric positive definite operator, as a lineax solver.

        a_k = ||r_k||^2 / (p_k^T A p_k),   x_{k+1} = x_k + a_k p_k,   r_{k+1} = r_k - a_k A p_k,
        p_{k+1} = r_{k+1} + (||r_{k+1}||^2 / ||r_k||^2) p_k                  (Hestenes & Stiefel)

    It stops when `||r|| <= atol + rtol ||b||` in the 2-norm, after `max_steps`, or at a direction
    of curvature `p^T A p <= 0`: there it returns the iterate reached so far with
    `RESULTS.negative_curvature`, as truncated Newton methods do.

    It differs from `lineax.CG` where inner Hessians hurt: that one declares a breakdown, and
    returns NaN, once `p^T A p / ||r||^2` falls below `100 * dim * eps`, which in float32 with 7840
    parameters is a curvature of .09; and it tests the residual entry by entry against
    `atol + rtol |b_i|`, which an entry with `b_i = 0` meets late or never.

    Args:
        rtol, atol: the tolerances; `rtol=0, atol=0` runs all `max_steps`.
        max_steps: the most steps, by default ten times the dimension.

    Option `y0` of `lineax.linear_solve`: where to start, zero by default. A start from zero costs
    one product a step, any other one more.

    Raises:
        ValueError: a tolerance is negative, the operator is not tagged positive semi-definite.

    >>> import jax.numpy as jnp, lineax as lx
    >>> operator = lx.MatrixLinearOperator(2.0 * jnp.eye(3), lx.positive_semidefinite_tag)
    >>> solution = lx.linear_solve(operator, jnp.ones(3), CG(rtol=1e-6, atol=0.0))
    >>> solution.value.tolist(), int(solution.stats["num_steps"])
    ([0.5, 0.5, 0.5], 1)
    """

    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int | None = None

    def __check_init__(self):
        if self.rtol < 0 or self.atol < 0:
            raise ValueError(f"tolerances must be >= 0, got rtol={self.rtol}, atol={self.atol}.")
        if self.max_steps is None and self.rtol == 0 and self.atol == 0:
            raise ValueError("`CG` with rtol=0 and atol=0 needs `max_steps`; it would never stop.")

    def init(self, operator, options):
        """Check what was promised about the operator."""
        del options
        if not lx.is_positive_semidefinite(operator):
            raise ValueError(
                "`CG` needs an operator tagged `lineax.positive_semidefinite_tag`; for others use "
                "`lineax.GMRES`, or `lineax.LSMR` for least squares."
            )
        return lx.linearise(operator)

    def compute(self, state, vector, options):
        """The solution, a `lineax.RESULTS` and the stats."""
        operator = state
        max_steps = 10 * optax.tree.size(vector) if self.max_steps is None else self.max_steps
        # In units of (a power of two near) its largest entry, no square under- or overflows.
        largest = optax.tree.norm(vector, ord=jnp.inf)
        scale = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1] - 1)
        vector = _divided(vector, scale)
        y0 = options.get("y0")
        if y0 is None:
            x, r = optax.tree.zeros_like(vector), vector
        else:
            y0 = _divided(y0, scale)
            x, r = y0, optax.tree.sub(vector, operator.mv(y0))
        target = self.atol / scale + self.rtol * optax.tree.norm(vector)

        def unfinished(c: _Carry) -> Bool[Array, ""]:
            return (c.rr > target**2) & (c.step < max_steps) & ~c.curved

        def iterate(c: _Carry) -> _Carry:
            ap = operator.mv(c.p)
            pap = jnp.asarray(optax.tree.vdot(c.p, ap))
            curved = pap <= 0
            a = jnp.where(curved, 0, c.rr / jnp.where(curved, 1, pap))
            r = optax.tree.add_scale(c.r, -a, ap)
            rr = jnp.asarray(optax.tree.vdot(r, r))
            p = optax.tree.add_scale(r, rr / c.rr, c.p)
            return _Carry(optax.tree.add_scale(c.x, a, c.p), r, p, rr, curved, c.step + 1)

        rr = jnp.asarray(optax.tree.vdot(r, r))
        first = _Carry(x, r, r, rr, jnp.asarray(False), jnp.zeros((), jnp.int32))
        last = jax.lax.while_loop(unfinished, iterate, first)
        exhausted = (last.rr > target**2) & (self.rtol + self.atol > 0)
        result = lx.RESULTS.where(exhausted, lx.RESULTS.max_steps_reached, lx.RESULTS.successful)
        result = lx.RESULTS.where(last.curved, lx.RESULTS.breakdown, result)
        return (
            optax.tree.scale(scale, last.x),
            result,
            {"num_steps": last.step, "negative_curvature": last.curved},
        )

    def transpose(self, state, options):
        """The operator is symmetric."""
        return state.transpose(), options

    def conj(self, state, options):
        """The operator is real."""
        return lx.conj(state), options

    def assume_full_rank(self):
        """Positive definite operators have full rank."""
        return True


def _divided(x: PyTree[Array], scale: Scalar) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: leaf / scale, x)
