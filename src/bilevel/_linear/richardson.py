"""Richardson's iteration, the fixed-point method for linear systems, to a tolerance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax

from .._settings import ConstantStep, as_step_size, check_step_size
from .base import AbstractStepSolver, placed, real_operator, resolve_step_size, widened


class Richardson(AbstractStepSolver):
    """`x_{k+1} = x_k + a (b - A x_k)`, as a lineax solver.

    With `a = 1` and `A = I - J^T` this is `x_{k+1} = J^T x_k + b`, the fixed-point method AID-FP.
    From zero, k steps are k terms of the Neumann series.

    Args:
        step_size: a; the iteration converges for a < 2 / L on a symmetric positive definite A, with
            L its largest eigenvalue. `"auto"` takes 1 / L, with L found by 20 steps of power
            iteration; `stats["step_size"]` says what it took. `AID` searches at its first solve and
            follows the eigenvector from then on.
        rtol, atol: the iteration stops when `||b - A x|| <= atol + rtol ||b||` in the 2-norm.
        max_steps: the largest number of steps.

    Options of `lineax.linear_solve`: `y0` is the start, zero by default; `eigenvector` is as in
    `Neumann`.

    Error: `(1 - a mu)^k ||x_0 - x||`, with mu the smallest eigenvalue of A. Cost: one product per
    step, one more if a start is given, and 20 more for `"auto"`. Memory: three vectors.

    The solver gives up with `RESULTS.breakdown` and `stats["not_contracting"]` when the residual
    has grown a thousandfold, or ends above its first value.

    Raises:
        ValueError: a tolerance is negative, a step size is not positive, or `"auto"` is used for an
            operator that is tagged neither symmetric nor positive semi-definite.
        TypeError: the operator is complex.

    Source: Grazzi, Franceschi, Pontil and Salzo (2020), "On the iteration complexity of
    hypergradient computation" [grazzi2020][]; Grazzi and Pontil, "Principled and efficient bilevel
    optimization for machine learning", section "Fixed point method" [grazzi2023][].

    >>> import jax.numpy as jnp, lineax as lx
    >>> operator = lx.MatrixLinearOperator(2.0 * jnp.eye(2), lx.positive_semidefinite_tag)
    >>> solution = lx.linear_solve(operator, jnp.ones(2), Richardson(rtol=1e-6))
    >>> solution.value.tolist(), round(float(solution.stats["step_size"]), 3)
    ([0.5, 0.5], 0.5)
    """

    step_size: ConstantStep = eqx.field(default="auto", converter=as_step_size)
    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int = 1000

    def __check_init__(self):
        check_step_size("Richardson", self.step_size)
        if self.rtol < 0 or self.atol < 0:
            raise ValueError(f"tolerances must be >= 0, got rtol={self.rtol}, atol={self.atol}.")

    def init(self, operator, options):
        """The operator, and the step."""
        operator = real_operator("Richardson", operator)
        return operator, resolve_step_size("Richardson", self.step_size, operator, options)

    def compute(self, state, vector, options):
        """Iterate to the tolerance."""
        operator, resolved = state
        step, products = resolved.step, 0
        given, vector = vector, placed(widened(vector), operator)
        y0 = options.get("y0")
        if y0 is None:
            x, r = optax.tree.zeros_like(vector), vector
        else:
            x = placed(widened(y0), operator)
            r = optax.tree.sub(vector, operator.mv(x))
            products = 1
        target = self.atol + self.rtol * jnp.asarray(optax.tree.norm(vector))
        first = jnp.asarray(optax.tree.norm(r))

        def unfinished(carry):
            _, _, size, k = carry
            return (size > target) & (size <= 1e3 * first) & (k < self.max_steps)

        def iterate(carry):
            x, r, _, k = carry
            x = optax.tree.add_scale(x, step, r)
            r = optax.tree.add_scale(r, -step, operator.mv(r))
            return x, r, jnp.asarray(optax.tree.norm(r)), k + 1

        start = (x, r, first, jnp.zeros((), jnp.int32))
        x, _, size, steps = jax.lax.while_loop(unfinished, iterate, start)
        unmet = ~(size <= target)
        growing = unmet & ~(size <= first)
        exhausted = unmet & (self.rtol + self.atol > 0)
        result = lx.RESULTS.where(exhausted, lx.RESULTS.max_steps_reached, lx.RESULTS.successful)
        result = lx.RESULTS.where(growing, lx.RESULTS.breakdown, result)
        stats = {
            "num_steps": steps,
            "not_contracting": growing,
            **resolved.stats(steps + products),
        }
        return optax.tree.cast_like(x, given), result, stats
