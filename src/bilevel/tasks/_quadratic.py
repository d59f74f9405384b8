"""Random quadratics with known constants, as finite sums."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .._problem import BilevelProblem
from .models import check_shape

Rows = tuple[
    Float[Array, "rows dim_u"],
    Float[Array, "rows dim_w"],
    Float[Array, "rows dim_u"],
    Float[Array, "rows dim_w"],
]


class _MeanQuadratic(eqx.Module):
    def __call__(self, u: Array, w: Array, batch: Rows) -> Array:
        a, b, c, d = batch
        check_shape("u", u, a.shape[1:], "one entry for each column of the data")
        check_shape("w", w, b.shape[1:], "one entry for each column of the data")
        return jnp.mean(0.5 * (a @ u + b @ w) ** 2 + c @ u + d @ w)


def quadratic(
    key: Key[Array, ""],
    *,
    num_inner_rows: int = 1024,
    num_outer_rows: int = 1024,
    dim_u: int = 10,
    dim_w: int = 100,
    condition: float = 10.0,
) -> BilevelProblem:
    """Two random quadratics, each the mean of one convex quadratic a row of data.

        f(u, w) = mean_i [ (a_i'u + b_i'w)^2 / 2 + c_i'u + d_i'w ]             (inner rows)
        F(u, w) = mean_j [ (a_j'u + b_j'w)^2 / 2 + c_j'u + d_j'w ]             (outer rows)

    With A = mean b b', B = mean b a' and d = mean d over the inner rows, `w*(u) = -A^-1 (B u + d)`,
    and Phi is a quadratic as well.

    Args:
        key: the random key; the same key gives the same problem.
        num_inner_rows, num_outer_rows: summands of f and of F, at least `dim_u + dim_w` each.
        dim_u, dim_w: `u` has shape `(dim_u,)`, `w` has shape `(dim_w,)`; start both from zero.
        condition: kappa >= 1. The mean of `(a, b)(a, b)'` has random eigenvectors and the
            eigenvalues `1 / kappa, ..., 1`, evenly spaced on a logarithmic scale, exactly and not
            only in expectation.

    For every key, f is 1/kappa-strongly convex and 1-smooth in w, F and Phi are 1/kappa-strongly
    convex, and `||dw*/du|| <= (kappa - 1) / (2 sqrt(kappa))`. The linear terms are a standard
    normal mean plus standard normal noise per row. The mean over a batch is an unbiased estimate.

    Cost: an objective takes two products with the rows, `O(rows (dim_u + dim_w))`. The memory is of
    the same order.

    Raises:
        ValueError: fewer rows than `dim_u + dim_w`, a dimension < 1, or `condition` < 1.

    Source: the simulated quadratics of `benchmark_bilevel`: Dagréou, Ablin, Vaiter and Moreau
    (2022), "A framework for bilevel optimization that enables stochastic and global variance
    reduction algorithms" [dagreou2022][]. Departures: the Hessian of a row is jointly convex in (u,
    w), has rank one and is stored as the vector `(a, b)`, so that Phi is convex by construction,
    where they draw until it is; the spectra are exact; the linear terms have a mean, so that the
    solution does not shrink as rows are added.

    >>> import jax, jax.numpy as jnp
    >>> problem = quadratic(
    ...     jax.random.key(0), num_inner_rows=8, num_outer_rows=8, dim_u=2, dim_w=3
    ... )
    >>> [x.shape for x in problem.inner_data]
    [(8, 2), (8, 3), (8, 2), (8, 3)]
    >>> float(problem.inner(jnp.zeros(2), jnp.zeros(3), problem.inner_data))
    0.0
    """
    for name, size in [("dim_u", dim_u), ("dim_w", dim_w)]:
        if size < 1:
            raise ValueError(f"`{name}` must be >= 1, got {size}.")
    for name, size in [("num_inner_rows", num_inner_rows), ("num_outer_rows", num_outer_rows)]:
        if size < dim_u + dim_w:
            raise ValueError(
                f"`{name}` must be at least dim_u + dim_w = {dim_u + dim_w} for the mean of as many "
                f"summands of rank one to be strongly convex, got {size}; pass more rows."
            )
    if not condition >= 1:
        raise ValueError(
            f"`condition` is the largest eigenvalue over the smallest and must be >= 1, "
            f"got {condition}."
        )
    outer_key, inner_key = jax.random.split(key)
    return BilevelProblem(
        outer=_MeanQuadratic(),
        inner=_MeanQuadratic(),
        outer_data=_rows(outer_key, num_outer_rows, dim_u, dim_w, condition),
        inner_data=_rows(inner_key, num_inner_rows, dim_u, dim_w, condition),
    )


def _rows(key: Array, num_rows: int, dim_u: int, dim_w: int, condition: float) -> Rows:
    rows_key, basis_key, mean_key, noise_key = jax.random.split(key, 4)
    dim = dim_u + dim_w
    # The columns are orthonormal, so that the mean outer product of the rows is exactly the identity.
    rows = jnp.linalg.qr(jax.random.normal(rows_key, (num_rows, dim)))[0] * math.sqrt(num_rows)
    basis = jnp.linalg.qr(jax.random.normal(basis_key, (dim, dim)))[0]
    root = jnp.logspace(-0.5 * math.log10(condition), 0, dim)
    vectors = (rows * root[None, :]) @ basis.T
    linear = jax.random.normal(mean_key, (1, dim)) + jax.random.normal(noise_key, (num_rows, dim))
    return vectors[:, :dim_u], vectors[:, dim_u:], linear[:, :dim_u], linear[:, dim_u:]
