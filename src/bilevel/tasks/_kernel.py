"""Kernel ridge regression with its length-scales and its penalty as the outer variable."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from .._problem import BilevelProblem
from ._hyperparameters import check_rows
from .models import Kernel, rbf_kernel

KernelVariable = tuple[PyTree, Float[Array, ""]]


class _DualObjective(eqx.Module):
    kernel: Kernel

    def __call__(self, u: KernelVariable, w: Array, batch: tuple[Array, Array]) -> Scalar:
        gram, penalty, y = dual_system(self.kernel, u, batch)
        if y.shape != w.shape:
            raise ValueError(
                f"the inner variable of `kernel_ridge` has one entry for each training row, got "
                f"shape {w.shape} for a batch of {y.shape[0]} rows; use `FullBatch` for the inner "
                "data."
            )
        return 0.5 * jnp.vdot(w, gram @ w / y.shape[0] + penalty * w) - jnp.mean(w * y)


class _DualRisk(eqx.Module):
    kernel: Kernel
    rows: Float[Array, "rows features"]

    def __call__(self, u: KernelVariable, w: Array, batch: tuple[Array, Array]) -> Scalar:
        x, y = batch
        return 0.5 * jnp.mean((self.kernel(u[0], x, self.rows) @ w - y) ** 2)


def dual_system(
    kernel: Kernel, u: KernelVariable, batch: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    x, y = batch
    theta, log_penalty = u
    return kernel(theta, x, x), jnp.exp(log_penalty), y


def kernel_ridge(
    X: Float[Array, "rows features"],
    y: Float[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Float[Array, " val"],
    *,
    kernel: Kernel = rbf_kernel,
) -> BilevelProblem:
    """Kernel ridge regression with the kernel and the penalty as the outer variable.

        f(u, w) = w'(K + n lambda I)w / 2n - w'y / n,      K = k_theta(X, X), u = (theta, log lambda)
        F(u, w) = mean_j (k_theta(x_j, X) w - y_j)^2 / 2                         (validation rows)

    Args:
        X, y: the n training rows and their targets, centred (there is no intercept).
        X_val, y_val: held-out rows.
        kernel: `(theta, a, b) -> (rows of a, rows of b)`, positive semi-definite and differentiable
            in theta, a pytree; by default `rbf_kernel`, whose theta holds log length-scales of
            shape `()` or `(features,)`.

    `w` has shape `(n,)` and holds the dual coefficients. `w*(u) = (K + n lambda I)^-1 y` are
    scikit-learn's `KernelRidge(alpha=n * lambda).dual_coef_`, and the model is `k(x, X) w`. Among
    the functions with this minimiser, f is the one that is lambda-strongly convex and
    `(K_max + lambda)`-smooth, with K_max the largest eigenvalue of K / n, which is at most 1 for a
    kernel with `k(x, x) = 1`. Gradient steps of size 1 / (1 + lambda) therefore converge, but
    slowly for a small lambda. `ClosedForm(kernel_ridge_solution)` is exact, and `CG` solves the
    linear system. (In the space of functions, w* minimises `mean (g(x_i) - y_i)^2 / 2 + lambda / 2
    ||g||^2`.)

    Start from length-scales of the size of the features: `(jnp.zeros(features), jnp.log(1e-2))` for
    standardised features. Phi is not convex: it is flat at both ends of every length-scale, and the
    best length-scale of an irrelevant feature is infinite.

    Use all inner data at once, because each row has its own coefficient; outer batches are
    unbiased. Memory: n^2 for K, times the number of length-scales where jax differentiates in them.

    Raises:
        ValueError: shapes that do not belong together.

    Source: ours; the inner problem is textbook kernel ridge regression.

    >>> import jax.numpy as jnp
    >>> from bilevel.tasks.reference import kernel_ridge_solution
    >>> X, y = jnp.array([[0.0], [30.0]]), jnp.array([2.0, 4.0])  # far apart: K = I
    >>> u = jnp.zeros(()), jnp.log(0.5)
    >>> problem = kernel_ridge(X, y, X, y)
    >>> w = kernel_ridge_solution(u, problem.inner_data)
    >>> w.round(4).tolist(), round(float(problem.outer(u, w, problem.outer_data)), 4)
    ([1.0, 2.0], 1.25)
    """
    check_rows(X, y, X_val, y_val)
    return BilevelProblem(
        outer=_DualRisk(kernel, X),
        inner=_DualObjective(kernel),
        outer_data=(X_val, y_val),
        inner_data=(X, y),
    )
