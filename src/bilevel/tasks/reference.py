"""Reference solutions of the tasks: closed forms of inner solutions, and certificates."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._problem import BilevelProblem, FixedPointProblem
from ._anti_distillation import Rows
from ._kernel import KernelVariable, dual_system
from ._meta import SharedFeatures, SupportRisk
from ._nonsmooth import LogPenalties, feature_penalties
from ._stationary import Reference, reference_solution
from .models import one_hot_error, rbf_kernel

__all__ = [
    "Reference",
    "SupportCheck",
    "anti_distillation_limit",
    "check_support",
    "kernel_ridge_solution",
    "meta_ridge_solution",
    "min_norm_fit",
    "reference_solution",
    "ridge_solution",
    "support_hypergradient",
]


def ridge_solution(
    u: Float[Array, "*features"], batch: tuple[Array, ...]
) -> Float[Array, "*folds features"]:
    """The inner solution of `ridge`, or of `cross_validation` with its loss and `linear_predict`.

        w*(u) = (X'X / rows + diag(exp(u)))^-1 X'y / rows
        w_k*(u) = (X'A_k X / rows + diag(exp(u)))^-1 X'A_k y / rows,    A_k = diag(a_1k, a_2k, ..)

    Args:
        u: log-penalties, of shape `()` or `(features,)`.
        batch: `problem.inner_data`: `(X, y)`, or `(X, y, a)` with the training weights a of shape
            `(rows, folds)`, and then the result has shape `(folds, features)`.

    `bilevel.ClosedForm(ridge_solution)` is an inner solver; jax differentiates through the formula,
    so that `ITD` is exact with it. Cost: a Cholesky factorisation, `features^3 / 3` operations per
    model.

    >>> import jax.numpy as jnp
    >>> ridge_solution(jnp.zeros(()), (jnp.eye(2), jnp.array([3.0, 6.0]))).round(4).tolist()
    [1.0, 2.0]
    """
    x, y, *weights = batch
    penalty = jnp.diag(jnp.broadcast_to(jnp.exp(u), x.shape[1:]))

    def solve(a: Float[Array, " rows"]) -> Float[Array, " features"]:
        weighted = (x * a[:, None]).T / x.shape[0]
        factor = jax.scipy.linalg.cho_factor(weighted @ x + penalty)
        return jax.scipy.linalg.cho_solve(factor, weighted @ y)

    if weights:
        return jax.vmap(solve, in_axes=1)(weights[0])
    return solve(jnp.ones_like(y))


def kernel_ridge_solution(
    u: KernelVariable, batch: tuple[Array, Array], kernel: Any = rbf_kernel
) -> Float[Array, " rows"]:
    """The inner solution of `kernel_ridge`: `(K + n lambda I)^-1 y`, by Cholesky.

    Use `bilevel.ClosedForm(kernel_ridge_solution)`, and for another kernel
    `bilevel.ClosedForm(functools.partial(kernel_ridge_solution, kernel=kernel))`. The result is NaN
    where rounding makes the matrix indefinite, because lambda is too small for the dtype. Cost:
    `n^3 / 3` operations.
    """
    gram, penalty, y = dual_system(kernel, u, batch)
    n = y.shape[0]
    factor = jax.scipy.linalg.cho_factor(gram + n * penalty * jnp.eye(n, dtype=gram.dtype))
    return jax.scipy.linalg.cho_solve(factor, y)


def meta_ridge_solution(problem: BilevelProblem, ways: int) -> Callable[[PyTree, Any], Array]:
    """The inner solution of `meta_learning` with `loss=one_hot_error`, `(u, batch) -> w`.

        w_t*(u) = b + (E - Phi b')' (Phi Phi' + n l2 I)^-1 Phi          (b = 0 unless biased)

    with Phi the n support features of task t and E its one-hot labels. `bilevel.ClosedForm` of the
    result is an inner solver that `ITD` differentiates exactly; the result also fits new tasks.
    Cost: one Cholesky factorisation per task, of `n x n` or `features x features`, whichever is
    smaller.

    Args:
        problem: from `meta_learning`; its data are not used, so one solution serves all episodes.
        ways: classes per task.

    Raises:
        ValueError: the loss is another one, or `l2` = 0, for which the solution is not unique.
        TypeError: the problem was not made by `meta_learning`.

    Source: Bertinetto, Henriques, Torr and Vedaldi (2019), "Meta-learning with differentiable
    closed-form solvers" (R2-D2) [bertinetto2019][].
    """
    inner = problem.inner
    if not isinstance(inner, SupportRisk):
        raise TypeError("`meta_ridge_solution` needs a problem made by `meta_learning`.")
    if inner.risk.loss is not one_hot_error or inner.l2 == 0:
        raise ValueError(
            "`meta_ridge_solution` is for `meta_learning(..., loss=one_hot_error)` with l2 > 0, got "
            f"l2={inner.l2}, loss={inner.risk.loss!r}. Use an iterative inner solver."
        )
    return _MetaRidge(inner.risk.shared, inner.l2, ways)


class _MetaRidge(eqx.Module):
    shared: SharedFeatures
    l2: float
    ways: int

    def __call__(self, u: PyTree, batch: Any) -> Float[Array, "tasks ways features"]:
        x, y, _ = batch
        features = self.shared.features(u, x)
        n, d = features.shape[1:]
        target = jax.nn.one_hot(y, self.ways, dtype=features.dtype)
        if self.shared.biased:
            target = target - jnp.einsum("tnd,kd->tnk", features, u["bias"])

        def solve(phi: Array, r: Array) -> Array:
            if n <= d:  # W - b = R' (Phi Phi' + n l2)^-1 Phi
                gram = phi @ phi.T + n * self.l2 * jnp.eye(n, dtype=phi.dtype)
                return _solve(gram, r).T @ phi
            gram = phi.T @ phi + n * self.l2 * jnp.eye(d, dtype=phi.dtype)
            return _solve(gram, phi.T @ r).T

        w = jax.vmap(solve)(features, target)
        return u["bias"][None] + w if self.shared.biased else w


def _solve(matrix: Float[Array, "n n"], right: Float[Array, "n ways"]) -> Float[Array, "n ways"]:
    # jax differentiates this as a solve, with the same factor, and not through the factorisation.
    return jax.scipy.linalg.solve(matrix, right, assume_a="pos")


def min_norm_fit(u: Float[Array, " points"], batch: Rows) -> Float[Array, " features"]:
    """`X^+ u`, the end of gradient descent from `w = 0` on `anti_distillation` with the linear model.

    Among all w that fit the targets best, it is the one of minimum norm. Use it with `ClosedForm`;
    the hypergradient of `ITD` is then exact.
    """
    X, i = batch
    return jnp.linalg.pinv(X) @ u[i]


def anti_distillation_limit(
    X: Float[Array, "points features"],
    X_original: Float[Array, "original features"],
    y_original: Float[Array, " original"],
    solved: Float[Array, "features original"],
    u0: Float[Array, " points"] | None = None,
) -> Float[Array, " points"]:
    """The limit of cold-started gradient steps with an approximate inverse in the hypergradient.

        u_{s+1} = u_s - b C (X_o X^+ u_s - y),   C = X A^-1 X_o^T        (A^-1 in place of H^-1)
        u_inf   = u_0 + C (X_o X^+ C)^-1 (y - X_o X^+ u_0)

    The limit is the same for every step b > 0 that is small enough, provided that the eigenvalues
    of `X_o X^+ C` have positive real parts. All such limits fit the original points. With the exact
    `A^-1 = (X^T X)^+` the limit is the one nearest to `u_0` (Theorem 3.1 of the paper). For one
    original point and `u_0 = 0`, the norm of `u_inf` never grows as the filter `l / A` of the
    eigenvalues l of `X^T X` (1 for the exact inverse) becomes flatter, which happens with more
    Neumann terms and with less damping.

    Args:
        X, X_original, y_original: those of `anti_distillation` with the default linear model.
        solved: `A^-1 X_original^T`, the solutions of the linear solver for the columns of
            `X_original^T`.
        u0: the start of the run, zero by default.

    Source: the formula is ours; the problem and Theorem 3.1 are from Vicol, Lorraine, Pedregosa,
    Duvenaud and Grosse (2022), "On implicit bias in overparameterized bilevel optimization"
    [vicol2022][], which runs gradient descent.

    >>> import jax.numpy as jnp
    >>> X, original, y = jnp.eye(2), jnp.array([[1.0, 3.0]]), jnp.array([10.0])
    >>> anti_distillation_limit(X, original, y, original.T).tolist()
    [1.0, 3.0]
    """
    pseudo_inverse = jnp.linalg.pinv(X)
    response = X_original @ pseudo_inverse
    u0 = jnp.zeros_like(X[:, 0]) if u0 is None else u0
    moves = X @ solved
    return u0 + moves @ jnp.linalg.solve(response @ moves, y_original - response @ u0)


def support_hypergradient(
    problem: FixedPointProblem, u: LogPenalties, w: Float[Array, "*folds features"]
) -> PyTree[Array]:
    """The hypergradient of `lasso`, `elastic_net` and their mixed-validated versions, on the support.

        (G_SS + diag(exp(u2))_SS) v = (grad_w F)_S,     S = {j: w_j != 0}
        grad Phi = grad_u F - d_u (exp(u1) sign(w) + exp(u2) w)^T v

    Cost: a Cholesky factorisation on all features, with the identity outside of S, which takes
    `features^3 / 3` operations per model. For some hundred features this is faster than an
    iterative solver. Error: none at an exact `w`, and of the order of the error of `w` near it.
    With another support the result is the hypergradient of that support. It is NaN where the
    columns on S are linearly dependent and exp(u2) is 0.

    Source: Bertrand, Klopfenstein, Blondel, Vaiter, Gramfort and Salmon (2020), "Implicit
    differentiation of Lasso-type models for hyperparameter optimization" [bertrand2020][].
    """

    def solve(x: Array, y: Array, w: Array, by_w: Array) -> Array:
        on = w != 0
        gram = x.T @ x / x.shape[0] + jnp.diag(feature_penalties(u, w)[1])
        system = jnp.where(on[:, None] & on[None, :], gram, jnp.eye(len(w), dtype=w.dtype))
        factor = jax.scipy.linalg.cho_factor(system)
        return jax.scipy.linalg.cho_solve(factor, jnp.where(on, by_w, 0))

    def stationarity(u: LogPenalties) -> Array:
        def of_model(w: Array) -> Array:
            l1, l2 = feature_penalties(u, w)
            return l1 * jnp.sign(w) + l2 * w

        return jax.vmap(of_model)(w) if w.ndim == 2 else of_model(w)

    by_u, by_w = jax.grad(problem.outer, argnums=(0, 1))(u, w, problem.outer_data)
    v = _each_model(solve, w, problem.inner_data, by_w)
    (mixed,) = jax.vjp(stationarity, u)[1](v)
    return jax.tree.map(jnp.subtract, by_u, mixed)


class SupportCheck(eqx.Module):
    """What `check_support` found, with one entry per fold where there are folds.

    Attributes:
        support: the features with `w_j != 0`.
        identified: whether it is certain that this is the support of w*, with the same signs.
        margin: `min_j (exp(u1_j) - |c_j|)` outside of the support: how strictly complementary w is,
            and how near the next feature is to entering. If it is negative, a feature must enter;
            it is infinite if all features are in the support.
        smallest: `min_j |w_j|` on the support: how near the next feature is to leaving; infinite
            if the support is empty.
        gap: the duality gap, an upper bound on how far the inner objective is above its minimum.
        distance: an upper bound on `||w - w*||`; infinite where none is known.
    """

    support: Bool[Array, "*folds features"]
    identified: Bool[Array, "*folds"]
    margin: Float[Array, "*folds"]
    smallest: Float[Array, "*folds"]
    gap: Float[Array, "*folds"]
    distance: Float[Array, "*folds"]


def check_support(
    problem: FixedPointProblem, u: LogPenalties, w: Float[Array, "*folds features"]
) -> SupportCheck:
    """A certificate that the support of `w` is the support of the inner solution.

    The objective P with its augmented residual `r = (y - Xw, -sqrt(n exp(u2)) w)` and correlations
    `c = X'(y - Xw) / n - exp(u2) w` has the dual point t r, which is feasible if `|t c_j| <=
    exp(u1_j)`:

        gap = P(w) - (t y'(y - Xw) - t^2 ||r||^2 / 2) / n          with the best feasible t
        w*_j = 0   where   |t c_j| + sqrt(2 n gap) ||x_j|| / n < exp(u1_j)

    with x_j augmented too. Let E be the features that this does not exclude, and mu the smallest
    eigenvalue of `G_EE + diag(exp(u2))_EE`. Then `||w - w*|| <= sqrt(2 gap / mu)` for a w that is
    zero outside of E. The support is identified if E is the support of w and all its entries are
    larger than that distance.

    Args:
        problem: from `lasso`, `elastic_net` or their mixed-validated versions.
        u: log-penalties.
        w: an approximate inner solution with exact zeros, as proximal steps produce them.

    Near a kink of Phi a more accurate w is needed for a certificate; at a kink there is none. Cost:
    an eigenvalue decomposition, of the order of `features^3` operations per model.

    Source: the Gap Safe sphere of Ndiaye, Fercoq, Gramfort and Salmon (2017), "Gap safe screening
    rules for sparsity enforcing penalties" [ndiaye2017][]; the test of the support is ours.

    >>> import jax.numpy as jnp
    >>> from bilevel.tasks import lasso
    >>> X, y = jnp.eye(2), jnp.array([8.0, 0.25])
    >>> found = check_support(lasso(X, y, X, y), jnp.zeros(()), jnp.array([6.0, 0.0]))
    >>> found.support.tolist(), bool(found.identified), float(found.margin)
    ([True, False], True, 0.875)
    """

    def certify(x: Array, y: Array, w: Array) -> SupportCheck:
        n, (l1, l2) = x.shape[0], feature_penalties(u, w)
        on, error = w != 0, y - x @ w
        c = error @ x / n - l2 * w
        square = jnp.vdot(error, error) + n * jnp.vdot(l2, w**2)
        feasible = 1 / jnp.max(jnp.abs(c) / l1)
        t = jnp.clip(jnp.vdot(y, error) / jnp.where(square > 0, square, 1), -feasible, feasible)
        primal = square / (2 * n) + jnp.vdot(l1, jnp.abs(w))
        dual = (t * jnp.vdot(y, error) - t**2 * square / 2) / n
        gap = jnp.maximum(primal - dual, 10 * jnp.finfo(w.dtype).eps * primal)  # rounding
        norms = jnp.sqrt(jnp.sum(x**2, axis=0) + n * l2)
        possible = jnp.abs(t * c) + jnp.sqrt(2 * n * gap) * norms / n >= l1
        hessian = x.T @ x / n + jnp.diag(l2)
        both = possible[:, None] & possible[None, :]
        large = (jnp.trace(hessian) + 1) * jnp.eye(len(w), dtype=w.dtype)
        mu = jnp.linalg.eigvalsh(jnp.where(both, hessian, large))[0]
        known = (mu > 0) & jnp.all(possible | ~on)
        distance = jnp.where(known, jnp.sqrt(2 * gap / jnp.where(mu > 0, mu, 1)), jnp.inf)
        smallest = jnp.min(jnp.where(on, jnp.abs(w), jnp.inf))
        return SupportCheck(
            support=on,
            identified=jnp.all(possible == on) & (smallest > distance),
            margin=jnp.min(jnp.where(on, jnp.inf, l1 - jnp.abs(c))),
            smallest=smallest,
            gap=gap,
            distance=distance,
        )

    return _each_model(certify, w, problem.inner_data)


def _each_model(function: Any, w: Array, batch: Any, *others: Array) -> Any:
    """`function(x, y, w, *others)` of the split, or of each fold with its rows' weights applied."""
    x, y, *weights = batch
    if not weights:
        return function(x, y, w, *others)

    def of_fold(a: Array, w: Array, *others: Array) -> Any:
        root = jnp.sqrt(a)
        return function(root[:, None] * x, root * y, w, *others)

    in_axes = (1, *(0 for _ in (w, *others)))
    return jax.vmap(of_fold, in_axes)(weights[0], w, *others)
