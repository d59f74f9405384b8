"""The lasso and the elastic net: inner problems with a kink, as fixed points of a proximal step."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from .._problem import FixedPointProblem
from ._folds import FoldRisk, fold_weights
from ._hyperparameters import check_rows, linear_predict
from ._reweighting import MeanRisk, squared_error

LogPenalties = Float[Array, "..."] | tuple[Float[Array, "..."], Float[Array, "..."]]


class _ProximalStep(eqx.Module):
    step: Float[Array, "*folds"]

    def __call__(self, u: LogPenalties, w: Array, batch: tuple[Array, ...]) -> Array:
        x, y, *weights = batch
        if not weights:
            return _proximal_step(u, x, y, w, self.step)
        step = partial(_proximal_step, u, x, y)
        return jax.vmap(step, in_axes=(0, 0, 1))(w, self.step, weights[0])


def _proximal_step(
    u: LogPenalties,
    x: Float[Array, "rows features"],
    y: Float[Array, " rows"],
    w: Float[Array, " features"],
    step: Scalar,
    weight: Float[Array, " rows"] | None = None,
) -> Float[Array, " features"]:
    l1, l2 = _penalties(u, w)
    error = x @ w - y
    error = error if weight is None else weight * error
    z = w - step * (error @ x / x.shape[0])
    # In this form its derivative is 1 where |z| is above the threshold, and 0 where it is not.
    shrunk = jnp.where(jnp.abs(z) > step * l1, z - step * l1 * jnp.sign(z), 0)
    return shrunk / (1 + step * l2)


def _penalties(u: LogPenalties, w: Float[Array, " features"]) -> tuple[Array, Array]:
    """The two penalties of each feature; without a second log-penalty it is zero."""
    log_l1, *log_l2 = u if isinstance(u, tuple) else (u,)
    for log_penalty in (log_l1, *log_l2):
        if jnp.shape(log_penalty) not in ((), w.shape):
            raise ValueError(
                f"a log-penalty must have shape () or one entry a feature, {w.shape}, got "
                f"{jnp.shape(log_penalty)}."
            )
    l1 = jnp.broadcast_to(jnp.exp(log_l1), w.shape)
    return l1, jnp.broadcast_to(jnp.exp(log_l2[0]), w.shape) if log_l2 else jnp.zeros_like(w)


def _inverse_lipschitz(x: Float[Array, "rows features"]) -> Scalar:
    """`1 / L`, L the largest eigenvalue of `X'X / rows`."""
    gram = (x.T @ x if x.shape[0] > x.shape[1] else x @ x.T) / x.shape[0]
    largest = jnp.linalg.eigvalsh(gram)[-1]
    return 1 / jnp.where(largest > 0, largest, 1)


def elastic_net(
    X: Float[Array, "rows features"],
    y: Float[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Float[Array, " val"],
) -> FixedPointProblem:
    """The elastic net with both penalties as the outer variable, judged on held-out rows.

        w*(u) = argmin_w  ||Xw - y||^2 / 2n + sum_j exp(u1_j) |w_j| + 1/2 sum_j exp(u2_j) w_j^2
        F(u, w) = mean_j (x_j'w - y_j)^2 / 2                                     (validation rows)

    as the fixed point of one proximal gradient step, with s = 1 / L from the data:

        map(u, w) = S_{s exp(u1)}(z) / (1 + s exp(u2)),    z = w - s X'(Xw - y) / n
        S_t(z)_j  = sign(z_j) max(|z_j| - t_j, 0)                      (soft thresholding)

    Args:
        X, y: the n training rows and their targets.
        X_val, y_val: held-out rows.

    `w` has shape `(features,)`; there is no intercept, so centre the columns of X and y, and those of
    the held-out rows with the same means. `u = (u1, u2)`: log-penalties, each of shape `()` (one that
    all features share) or `(features,)` (one a feature). scikit-learn's `alpha` and `l1_ratio` are
    `exp(u1) = alpha l1_ratio` and `exp(u2) = alpha (1 - l1_ratio)`. Start u1 well below
    `log max_j |x_j'y| / n`: from there on w is zero, Phi constant and its gradient zero.

    **The implicit gradient restricts itself to the support** S = {j: w*_j != 0}. The derivative of
    soft thresholding is D = diag(1 on S, 0 off it), so that with G = X'X / n

        d_w map = D (I - s G) / (1 + s exp(u2))

    has no rows off S, and `(I - d_w map)^T v = grad_w F` gives the hypergradient of Bertrand et al.
    (2020, 2022):

        (G_SS + diag(exp(u2))_SS) v = (grad_w F)_S
        d Phi / d u1_j = -exp(u1_j) sign(w_j) v_j,    d Phi / d u2_j = -exp(u2_j) w_j v_j      (j in S)

    and 0 for j off S. `AID` solves it with `lineax.GMRES` or `lineax.LU`; CG refuses, as the map's
    derivative is not symmetric. `support_hypergradient` is the second form, by Cholesky. Inner
    solver: `FISTA(rtol=1e-10)`, or ISTA, `GradientInner(optax.sgd(1.0), T)`, which `ITD` can unroll.

    **Before the support is identified the hypergradient is wrong**, by terms of order one and not of
    the order of the inner residual: `check_support` says whether it is. Where a feature enters or
    leaves, Phi is continuous but has a kink, and the hypergradient is that of one side.
    In the non-degenerate case (strict complementarity) Phi is smooth around u.

    The map needs all data: a minibatch's proximal step has another fixed point.

    Raises:
        ValueError: shapes that do not belong together.

    Source: Grazzi & Pontil, the tutorial's "Recent Advances"; Bertrand, Klopfenstein, Blondel,
    Vaiter, Gramfort & Salmon, "Implicit differentiation of Lasso-type models for hyperparameter
    optimization", ICML 2020.

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([8.0, 0.25])
    >>> problem = elastic_net(X, y, X, y)
    >>> problem.map((jnp.zeros(()), jnp.zeros(())), jnp.zeros(2), (X, y)).tolist()
    [2.0, 0.0]
    """
    check_rows(X, y, X_val, y_val)
    return FixedPointProblem(
        outer=MeanRisk(linear_predict, squared_error),
        map=_ProximalStep(_inverse_lipschitz(X)),
        outer_data=(X_val, y_val),
        inner_data=(X, y),
    )


def lasso(
    X: Float[Array, "rows features"],
    y: Float[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Float[Array, " val"],
) -> FixedPointProblem:
    """The lasso with its penalties as the outer variable: `elastic_net` without the squared ones.

        w*(u) = argmin_w  ||Xw - y||^2 / 2n + sum_j exp(u_j) |w_j|
        F(u, w) = mean_j (x_j'w - y_j)^2 / 2                                     (validation rows)

    `u` holds log-penalties, of shape `()` (then `exp(u)` is scikit-learn's `alpha`) or `(features,)`:
    the weighted lasso. All else is in `elastic_net`. A feature that has left the support has a zero
    hypergradient, so that its own penalty moves no more (with folds, as soon as no fold has it); and
    one penalty a feature can fit the held-out rows themselves where features are many (judge by
    new rows). The solution is unique where the columns
    on the support are linearly independent, as they are for almost all data.

    Raises:
        ValueError: shapes that do not belong together.

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([8.0, 0.25])
    >>> problem = lasso(X, y, X, y)
    >>> problem.map(jnp.zeros(()), jnp.zeros(2), (X, y)).tolist()
    [6.0, 0.0]
    """
    return elastic_net(X, y, X_val, y_val)


def elastic_net_cv(
    X: Float[Array, "rows features"], y: Float[Array, " rows"], folds: Any
) -> FixedPointProblem:
    """`elastic_net` judged by K-fold cross-validation, as scikit-learn's `ElasticNetCV` does it.

        w_k*(u) = the elastic net on the rows that are not in fold k,      k = 1 .. K
        F(u, w) = mean_k mean_{i in fold k} (x_i'w_k - y_i)^2 / 2

    F is half the mean of `mse_path_` over the folds, at `fit_intercept=False`.

    Args:
        X, y: all rows and their targets.
        folds: as in `cross_validation`; a number K is `KFold(K)`, not shuffled.

    `w` has shape `(folds, features)`, `u` is that of one model. Each fold has its own step 1 / L.

    Raises:
        ValueError: shapes that do not belong together; a fold without rows.
    """
    check_rows(X, y, X, y)
    training, held_out = fold_weights(X, y, folds, classes=False)
    steps = jax.vmap(lambda a: _inverse_lipschitz(jnp.sqrt(a)[:, None] * X), in_axes=1)(training)
    return FixedPointProblem(
        outer=FoldRisk(linear_predict, squared_error),
        map=_ProximalStep(steps),
        outer_data=(X, y, held_out),
        inner_data=(X, y, training),
    )


def lasso_cv(
    X: Float[Array, "rows features"], y: Float[Array, " rows"], folds: Any
) -> FixedPointProblem:
    """`lasso` judged by K-fold cross-validation, as `LassoCV` does it: see `elastic_net_cv`.

    Raises:
        ValueError: shapes that do not belong together; a fold without rows.
    """
    return elastic_net_cv(X, y, folds)


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


def support_hypergradient(
    problem: FixedPointProblem, u: LogPenalties, w: Float[Array, "*folds features"]
) -> PyTree[Array]:
    """The hypergradient of this module's problems by dense algebra on the support of `w`.

        (G_SS + diag(exp(u2))_SS) v = (grad_w F)_S,     S = {j: w_j != 0}
        grad Phi = grad_u F - d_u (exp(u1) sign(w) + exp(u2) w)^T v

    By Cholesky on all features, with the identity off S: `features^3 / 3` operations a model, which
    for some hundred features is faster than an iterative solver. Exact at an exact `w`, in
    whose neighbourhood its error is of the order of `w`'s; on another support it is that one's
    hypergradient. Not a number where the columns on S are dependent and exp(u2) is 0.
    """

    def solve(x: Array, y: Array, w: Array, by_w: Array) -> Array:
        on = w != 0
        gram = x.T @ x / x.shape[0] + jnp.diag(_penalties(u, w)[1])
        system = jnp.where(on[:, None] & on[None, :], gram, jnp.eye(len(w), dtype=w.dtype))
        factor = jax.scipy.linalg.cho_factor(system)
        return jax.scipy.linalg.cho_solve(factor, jnp.where(on, by_w, 0))

    def stationarity(u: LogPenalties) -> Array:
        def of_model(w: Array) -> Array:
            l1, l2 = _penalties(u, w)
            return l1 * jnp.sign(w) + l2 * w

        return jax.vmap(of_model)(w) if w.ndim == 2 else of_model(w)

    by_u, by_w = jax.grad(problem.outer, argnums=(0, 1))(u, w, problem.outer_data)
    v = _each_model(solve, w, problem.inner_data, by_w)
    (cross,) = jax.vjp(stationarity, u)[1](v)
    return jax.tree.map(jnp.subtract, by_u, cross)


class SupportCheck(eqx.Module):
    """What `check_support` found, one entry a fold where there are folds.

    Attributes:
        support: the features with `w_j != 0`.
        identified: it is certain that this is the support of w*, with these signs.
        margin: `min_j (exp(u1_j) - |c_j|)` off the support: how strictly complementary w is, and how
            near the next feature is to entering. Negative: one must enter. Infinite: all are in.
        smallest: `min_j |w_j|` on the support, how near the next feature is to leaving; infinite
            where the support is empty.
        gap: the duality gap, an upper bound on what the inner objective is above its minimum.
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
    """Is the support of `w` that of the inner solution? A certificate, not a guess.

    The objective P with its augmented residual `r = (y - Xw, -sqrt(n exp(u2)) w)` and correlations
    `c = X'(y - Xw) / n - exp(u2) w` has the dual point t r, feasible for `|t c_j| <= exp(u1_j)`:

        gap = P(w) - (t y'(y - Xw) - t^2 ||r||^2 / 2) / n          t the best feasible one
        w*_j = 0   where   |t c_j| + sqrt(2 n gap) ||x_j|| / n < exp(u1_j)

    (x_j augmented too; the Gap Safe sphere of Ndiaye et al. 2017.) With E what this does not
    exclude and mu the smallest eigenvalue of `G_EE + diag(exp(u2))_EE`,
    `||w - w*|| <= sqrt(2 gap / mu)` for a w that is zero off E. The support is identified if E is the
    support of w and all of it is larger than that distance.

    Args:
        problem: of `lasso`, `elastic_net` or their cross-validated versions.
        u: log-penalties.
        w: an approximate inner solution, with zeros in it as proximal steps leave them.

    Near a kink of Phi it takes a more accurate w to be certain, at a kink none is. Cost: an
    eigenvalue decomposition, of the order of `features^3` operations a model.

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([8.0, 0.25])
    >>> found = check_support(lasso(X, y, X, y), jnp.zeros(()), jnp.array([6.0, 0.0]))
    >>> found.support.tolist(), bool(found.identified), float(found.margin)
    ([True, False], True, 0.875)
    """

    def certify(x: Array, y: Array, w: Array) -> SupportCheck:
        n, (l1, l2) = x.shape[0], _penalties(u, w)
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
