"""The truncated Neumann series."""

import equinox as eqx
import jax
import lineax as lx
import optax

from .._settings import ConstantStep, as_step_size, check_step_size
from .base import AbstractStepSolver, placed, real_operator, resolve_step_size, widened


class Neumann(AbstractStepSolver):
    """`num_terms` terms of the Neumann series of the inverse, as a lineax solver.

        x = a sum_{j=0}^{K-1} (I - a A)^j b

    On a symmetric positive definite A, an eigenvalue l of A gives the eigenvalue
    `(1 - (1 - a l)^K) / l` of the approximate inverse, in place of `1 / l`. Directions of small
    curvature are therefore left out, as damping by `1 / (a K)` does. One term is `x = a b`, with
    the identity in place of the inverse (the method T1-T2). K terms are the exact derivative of K
    gradient steps of size a from the solution. On a fixed-point problem with `a = 1`, they are K
    steps of the fixed-point method AID-FP.

    Args:
        step_size: a; the series converges for a < 2 / L, with L the largest eigenvalue of A.
            `"auto"` takes 1 / L, with L found by 20 steps of power iteration; `stats["step_size"]`
            says what it took. `AID` searches at its first solve and follows the eigenvector from
            then on.
        num_terms: K >= 1.

    Option of `lineax.linear_solve` for `"auto"`: `eigenvector`, the `stats["eigenvector"]` of an
    earlier solve, with which the search takes one product in place of 20.

    Error: `(1 - a mu)^K ||x||`, with mu the smallest eigenvalue of A. Cost: K - 1 products, and 20
    more for `"auto"`. Memory: three vectors. A start `y0` is ignored, because a truncated series is
    a fixed linear function of b; `Richardson` is the same iteration with a tolerance and a start.

    Where the terms grow, the series does not converge: the result is `RESULTS.breakdown`, and
    `stats["not_contracting"]` is true.

    Raises:
        ValueError: `num_terms` < 1, a step size that is not positive, or `"auto"` for an operator
            that is tagged neither symmetric nor positive semi-definite.
        TypeError: the operator is complex.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", equation (2) truncated as in (5), Figure 6 and Appendix E
    [vicol2022][]; Lorraine, Vicol and Duvenaud (2020), "Optimizing millions of hyperparameters by
    implicit differentiation" [lorraine2020][]; AID-FP: Grazzi, Franceschi, Pontil and Salzo (2020),
    "On the iteration complexity of hypergradient computation" [grazzi2020][].

    >>> import jax.numpy as jnp, lineax as lx
    >>> operator = lx.MatrixLinearOperator(jnp.diag(jnp.array([1.0, 0.5])))
    >>> lx.linear_solve(operator, jnp.ones(2), Neumann(1.0, 3)).value.tolist()
    [1.0, 1.75]
    """

    step_size: ConstantStep = eqx.field(default="auto", converter=as_step_size)
    num_terms: int = 10

    def __check_init__(self):
        check_step_size("Neumann", self.step_size)
        if self.num_terms < 1:
            raise ValueError(f"`Neumann` needs num_terms >= 1, got {self.num_terms}.")

    def init(self, operator, options):
        """The operator, and the step."""
        operator = real_operator("Neumann", operator)
        return operator, resolve_step_size("Neumann", self.step_size, operator, options)

    def compute(self, state, vector, options):
        """The partial sum."""
        del options
        operator, resolved = state
        step = resolved.step
        given, vector = vector, placed(widened(vector), operator)

        def add_term(carry, _):
            total, term = carry
            term = optax.tree.add_scale(term, -step, operator.mv(term))
            return (optax.tree.add(total, term), term), None

        (total, last), _ = jax.lax.scan(add_term, (vector, vector), length=self.num_terms - 1)
        # Not `<=`: a NaN is not contracting either.
        growing = ~(optax.tree.norm(last) <= 1.01 * optax.tree.norm(vector))
        result = lx.RESULTS.where(growing, lx.RESULTS.breakdown, lx.RESULTS.successful)
        stats = {"not_contracting": growing, **resolved.stats(self.num_terms - 1)}
        return optax.tree.cast_like(optax.tree.scale(step, total), given), result, stats
