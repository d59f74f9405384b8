"""The truncated Neumann series."""

import equinox as eqx
import jax
import lineax as lx
import optax

from .._settings import StepSize, as_step_size, check_step_size
from .base import conj_state, resolve_step_size, transpose_state


class Neumann(lx.AbstractLinearSolver):
    """`num_terms` terms of the Neumann series of the inverse, as a lineax solver.

        x = a sum_{j=0}^{K-1} (I - a A)^j b                     (Vicol et al., equation (3))

    On a symmetric positive definite A its eigenvalues of the inverse are `(1 - (1 - a l)^K) / l` in
    place of `1 / l` (their Figure 6): the directions of small curvature are left out, as damping by
    `1 / (a K)` does. One term is `x = a b`, the identity in place of the inverse (T1-T2). K terms are
    the exact derivative of K gradient steps of size a from the solution (their Appendix E), and on a
    fixed-point problem with `a = 1` K steps of the fixed-point method AID-FP of Grazzi & Pontil.

    Args:
        step_size: a; the series converges for a < 2 / L, L the largest eigenvalue. `"auto"` takes
            1 / L with L by 20 steps of power iteration; `stats["step_size"]` says what it took.
            `AID` does so at its first solve and follows the eigenvector from then on.
        num_terms: K >= 1.

    Option `eigenvector` of `lineax.linear_solve`, for `"auto"`: `stats["eigenvector"]` of an earlier
    solve, which makes 1 product of the 20.

    Error: `(1 - a mu)^K |x|`. Cost: K - 1 products (and 20 for `"auto"`); memory of three vectors. It
    has no start `y0`, and ignores one: a truncated series is a fixed linear function of b. The same
    iteration with a tolerance and a start is `Richardson`.

    Where the terms grow, the series does not converge: the result is `RESULTS.breakdown` and
    `stats["not_contracting"]` is true.

    Raises:
        ValueError: `num_terms` < 1, a step size that is not positive, `"auto"` for an operator that
            is not tagged symmetric.

    >>> import jax.numpy as jnp, lineax as lx
    >>> operator = lx.MatrixLinearOperator(jnp.diag(jnp.array([1.0, 0.5])))
    >>> lx.linear_solve(operator, jnp.ones(2), Neumann(1.0, 3)).value.tolist()
    [1.0, 1.75]
    """

    step_size: StepSize = eqx.field(default="auto", converter=as_step_size)
    num_terms: int = 10

    def __check_init__(self):
        check_step_size("Neumann", self.step_size)
        if self.num_terms < 1:
            raise ValueError(f"`Neumann` needs num_terms >= 1, got {self.num_terms}.")

    def init(self, operator, options):
        """The operator, and the step."""
        operator = lx.linearise(operator)
        return operator, resolve_step_size("Neumann", self.step_size, operator, options)

    def compute(self, state, vector, options):
        """The partial sum."""
        del options
        operator, resolved = state
        step = resolved.step

        def add_term(carry, _):
            total, term = carry
            term = optax.tree.add_scale(term, -step, operator.mv(term))
            return (optax.tree.add(total, term), term), None

        (total, last), _ = jax.lax.scan(add_term, (vector, vector), length=self.num_terms - 1)
        # Not `<=`: a NaN is not contracting either.
        growing = ~(optax.tree.norm(last) <= 1.01 * optax.tree.norm(vector))
        result = lx.RESULTS.where(growing, lx.RESULTS.breakdown, lx.RESULTS.successful)
        stats = {"not_contracting": growing, **resolved.stats(self.num_terms - 1)}
        return optax.tree.scale(step, total), result, stats

    def transpose(self, state, options):
        """The same step on the transposed operator."""
        return transpose_state(state), options

    def conj(self, state, options):
        """The same step on the conjugated operator."""
        return conj_state(state), options

    def assume_full_rank(self):
        """The truncated series is defined for any operator."""
        return True
