"""Stochastic approximation for a linear system whose products are known with noise only."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, ScalarLike

from .._settings import as_schedule
from .base import refuse_complex


class StochasticRichardson(lx.AbstractLinearSolver):
    """`x_{k+1} = x_k - a_k (A_k x_k - b)` with unbiased random `A_k`, as a lineax solver.

    Error: with a constant step the mean squared error stalls at the order of a; with
    `a_k = c / (k + d)` it falls as 1 / k. Cost: one product per step. Memory: two vectors.

    Args:
        step_size: a constant a, or a schedule `k -> a_k` such as `decreasing_step(c, d)`.
        num_steps: the number of steps, each of which takes one product.

    Options of `lineax.linear_solve`: `sample` is a pytree that can be called, `(x, s) -> (A_s x,
    s')`, and `sample_state` is its first s. Without them the operator's own products are used, and
    nothing is random. `y0` is the start, zero by default. `stats["sample_state"]` is the last s.

    Raises:
        ValueError: `num_steps` < 1.
        TypeError: the operator is complex.

    Source: Grazzi, Pontil and Salzo (2021), "Convergence properties of stochastic hypergradients"
    [grazzi2021][]; Grazzi and Pontil, "Principled and efficient bilevel optimization for machine
    learning", section "Stochastic Fixed-point Iterations" [grazzi2023][].

    >>> import jax.numpy as jnp, lineax as lx
    >>> operator = lx.MatrixLinearOperator(2.0 * jnp.eye(2))
    >>> lx.linear_solve(operator, jnp.ones(2), StochasticRichardson(0.5, 3)).value.tolist()
    [0.5, 0.5]
    """

    step_size: Float[np.ndarray | Array, "*batch"] | Callable[[Array], Array] = eqx.field(
        converter=as_schedule
    )
    num_steps: int

    def __check_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"`StochasticRichardson` needs num_steps >= 1, got {self.num_steps}.")

    def init(self, operator, options):
        """The operator."""
        del options
        refuse_complex("StochasticRichardson", operator)
        return operator

    def compute(self, state, vector, options):
        """Iterate `num_steps` times."""
        operator = state
        sample = options.get("sample", lambda x, s: (operator.mv(x), s))
        y0 = options.get("y0")
        x = optax.tree.zeros_like(vector) if y0 is None else y0

        def iterate(carry, k):
            x, s = carry
            product, s = sample(x, s)
            step = self.step_size(k) if callable(self.step_size) else self.step_size

            def move(x: Array, p: Array, b: Array) -> Array:
                return x - jnp.asarray(step).astype(x.dtype) * (p - b)

            return (jax.tree.map(move, x, product, vector), s), None

        first = (x, options.get("sample_state", ()))
        (x, s), _ = jax.lax.scan(iterate, first, jnp.arange(self.num_steps))
        stats = {
            "num_products": jnp.full((), self.num_steps, jnp.int32),
            "sample_state": s,
        }
        return x, lx.RESULTS.successful, stats

    def transpose(self, state, options):
        """The transposed operator, on its own products."""
        options = {k: v for k, v in options.items() if k not in ("sample", "sample_state")}
        return state.transpose(), options

    def conj(self, state, options):
        """The operator is real."""
        return lx.conj(state), options

    def assume_full_rank(self):
        """It needs a positive definite operator."""
        return True


def decreasing_step(c: ScalarLike, d: ScalarLike) -> Callable[[ArrayLike], Array]:
    """The schedule `k -> c / (k + d)`, for linear and (as an optax schedule) inner solves.

    >>> float(decreasing_step(2.0, 4.0)(0))
    0.5
    """
    return lambda k: jnp.asarray(c) / (jnp.asarray(k, float) + jnp.asarray(d))
