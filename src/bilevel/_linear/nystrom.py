"""The Nystrom approximation of a Hessian: as a solver, and as a preconditioner."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._settings import as_data, known
from .base import real_operator, refuse_complex, widened


class NystromState(eqx.Module):
    """`U^T diag(values) U + damping I`, with orthonormal rows of U."""

    factor: Float[Array, "rank dim"]
    values: Float[Array, " rank"]
    damping: Float[Array, ""]

    def solve(self, b: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The inverse applied to b, inside and outside of the range of U (Woodbury)."""
        inside = self.factor @ b
        outside = b - self.factor.T @ inside
        # What rounding leaves of b within the range would be divided by the damping.
        outside = outside - self.factor.T @ (self.factor @ outside)
        return self.factor.T @ (inside / (self.values + self.damping)) + outside / self.damping


class Nystrom(lx.AbstractLinearSolver):
    """Solves with a low-rank approximation of the operator, from `rank` of its columns.

        C = A[:, S],  W = A[S, S],  A_S = C W^+ C^T,   x = (A_S + damping I)^{-1} b

    by Woodbury's identity. The solver is not iterative and cannot diverge, and few columns are
    enough for a Hessian whose spectrum decays fast.

    Args:
        rank: the number of columns, at most the dimension.
        damping: > 0, what is added to A_S; it decides how directions outside of the range of A_S
            are treated, and biases the answer by O(damping).
        columns: `"random"` takes coordinates that are all equally likely; `"leading"` takes those
            with the largest diagonal entries, as estimated from `rank` random sign vectors.
        key: for the random choice.

    Error: on a matrix of rank at most `rank` whose columns S span its range, the damping is the
    only error. Cost: `rank` products (twice as many for `"leading"`) and one factorisation of a
    `rank x dim` matrix. Memory: `rank` vectors.

    Raises:
        ValueError: `rank` < 1 or above the dimension, `damping` <= 0, or an operator that is not
            tagged positive semi-definite.
        TypeError: the operator is complex.

    Source: Hataya and Yamada (2023), "Nyström method for accurate and scalable implicit
    differentiation" [hataya2023][]; the diagonal is estimated as by Bekas, Kokiopoulou and Saad
    (2007), "An estimator for the diagonal of a matrix" [bekas2007][].

    >>> import jax.numpy as jnp, lineax as lx
    >>> a = lx.MatrixLinearOperator(jnp.diag(jnp.array([4.0, 1.0])), lx.positive_semidefinite_tag)
    >>> x = lx.linear_solve(a, jnp.ones(2), Nystrom(2, damping=1.0)).value
    >>> bool(jnp.allclose(x, jnp.array([1 / 5, 1 / 2])))
    True
    """

    rank: int
    damping: Float[np.ndarray | Array, "*batch"] = eqx.field(default=1e-2, converter=as_data)
    columns: Literal["random", "leading"] = "random"
    key: Array = eqx.field(default_factory=lambda: jr.key(0))

    def __check_init__(self):
        if self.rank < 1:
            raise ValueError(f"`Nystrom` needs rank >= 1, got {self.rank}.")
        damping = known(self.damping)
        if damping is not None and not np.all(damping > 0):
            raise ValueError(f"`Nystrom` needs damping > 0, got {self.damping}.")
        if self.columns not in ("random", "leading"):
            raise ValueError(f"`columns` must be 'random' or 'leading', got {self.columns!r}.")

    def init(self, operator, options):
        """The factor."""
        del options
        refuse_complex("Nystrom", operator)
        if not lx.is_positive_semidefinite(operator):
            raise ValueError(
                "`Nystrom` needs an operator tagged `lineax.positive_semidefinite_tag`; for others "
                "use `lineax.GMRES` or `Richardson`."
            )
        operator = real_operator("Nystrom", operator)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), operator.in_structure())
        flat, unravel = ravel_pytree(zeros)
        if self.rank > flat.size:
            raise ValueError(
                f"`Nystrom` got rank={self.rank} for a system of dimension {flat.size}; use at most "
                "that, or `lineax.Cholesky()`."
            )
        product = jax.vmap(lambda x: ravel_pytree(operator.mv(unravel(x)))[0])
        if self.columns == "random":
            chosen = jr.choice(self.key, flat.size, (self.rank,), replace=False)
        else:
            signs = jr.rademacher(self.key, (self.rank, flat.size), flat.dtype)
            chosen = jax.lax.top_k(jnp.mean(signs * product(signs), axis=0), self.rank)[1]
        c = product(jax.nn.one_hot(chosen, flat.size, dtype=flat.dtype))
        # A_S = B^T B with B = W^{-1/2} C; the singular values of B give Woodbury without B B^T.
        values, vectors = jnp.linalg.eigh(c[:, chosen])
        enough = values > self.rank * jnp.finfo(flat.dtype).eps * jnp.max(jnp.abs(values))
        root = jnp.where(enough, 1 / jnp.sqrt(jnp.where(enough, values, 1)), 0)
        b = root[:, None] * (vectors.T @ c)
        _, singular, factor = jnp.linalg.svd(b, full_matrices=False)
        return NystromState(factor, singular**2, jnp.asarray(self.damping, flat.dtype))

    def compute(self, state, vector, options):
        """Woodbury."""
        del options
        flat, unravel = ravel_pytree(widened(vector))
        products = self.rank * (2 if self.columns == "leading" else 1)
        stats = {"num_products": jnp.full((), products, jnp.int32)}
        x = optax.tree.cast_like(unravel(state.solve(flat)), vector)
        return x, lx.RESULTS.successful, stats

    def transpose(self, state, options):
        """The approximation is symmetric."""
        return state, options

    def conj(self, state, options):
        """The approximation is real."""
        return state, options

    def assume_full_rank(self):
        """The damped approximation has full rank."""
        return True


def nystrom_preconditioner(rank: int, damping: float, *, key: Array | None = None):
    """For `CG(preconditioner=...)`: `P = (A_S + damping I)^{-1}`, `A_S` as in `Nystrom`.

    Cost: `rank` products with A per solve, and two products with a `rank x dim` matrix per step.
    Memory: `rank` vectors.

    Args:
        rank, damping, key: as in `Nystrom`, which raises the same errors.

    Source: Frangella, Tropp and Udell (2023), "Randomized Nyström preconditioning"
    [frangella2023][]. They take the smallest eigenvalue that is kept in place of zero outside of
    the range; here the damping says what to expect there.
    """
    solver = Nystrom(rank, damping, key=jr.key(0) if key is None else key)

    def build(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        state = solver.init(operator, {})

        def apply(x):
            flat, unravel = ravel_pytree(x)
            return unravel(state.solve(flat))

        return lx.FunctionLinearOperator(
            apply, operator.in_structure(), (lx.symmetric_tag, lx.positive_semidefinite_tag)
        )

    return build


def diagonal_preconditioner(num_probes: int | None = None, *, key: Array | None = None):
    """For `CG(preconditioner=...)`: the inverse of the operator's diagonal (Jacobi).

    Args:
        num_probes: how many random sign vectors estimate the diagonal, each of which takes one
            product; `None` computes the diagonal exactly, with as many products as there are
            dimensions.
        key: for the random sign vectors.

    An entry that is below 1e-3 of the largest one counts as 1e-3 of the largest one.

    Source of the estimate: Bekas, Kokiopoulou and Saad (2007), "An estimator for the diagonal of a
    matrix" [bekas2007][].
    """
    probe_key = jr.key(0) if key is None else key

    def build(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        operator = real_operator("diagonal_preconditioner", operator)
        structure = operator.in_structure()
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), structure)
        flat, unravel = ravel_pytree(zeros)
        product = jax.vmap(lambda x: ravel_pytree(operator.mv(unravel(x)))[0])
        if num_probes is None:
            diagonal = jnp.diagonal(product(jnp.eye(flat.size, dtype=flat.dtype)))
        else:
            signs = jr.rademacher(probe_key, (num_probes, flat.size), flat.dtype)
            diagonal = jnp.mean(signs * product(signs), axis=0)
        floored = unravel(jnp.maximum(diagonal, 1e-3 * jnp.max(diagonal)))
        return lx.FunctionLinearOperator(
            lambda x: jax.tree.map(lambda a, d: a / d, x, floored),
            structure,
            (lx.symmetric_tag, lx.positive_semidefinite_tag),
        )

    return build
