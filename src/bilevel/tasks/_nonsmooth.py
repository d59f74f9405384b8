"""The lasso and the elastic net: non-smooth inner problems, as fixed points of a proximal step."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from .._problem import FixedPointProblem
from ._folds import FoldRisk, fold_weights
from ._hyperparameters import check_rows
from ._reweighting import MeanRisk
from .models import linear_predict, squared_error

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
    l1, l2 = feature_penalties(u, w)
    error = x @ w - y
    error = error if weight is None else weight * error
    z = w - step * (error @ x / x.shape[0])
    # In this form the derivative is 1 where |z| is above the threshold, and 0 elsewhere.
    shrunk = jnp.where(jnp.abs(z) > step * l1, z - step * l1 * jnp.sign(z), 0)
    return shrunk / (1 + step * l2)


def feature_penalties(u: LogPenalties, w: Float[Array, " features"]) -> tuple[Array, Array]:
    """The two penalties of each feature; the second is zero if it is not given."""
    log_l1, *log_l2 = u if isinstance(u, tuple) else (u,)
    for log_penalty in (log_l1, *log_l2):
        if jnp.shape(log_penalty) not in ((), w.shape):
            raise ValueError(
                f"a log-penalty must have shape () or one entry per feature, {w.shape}, got "
                f"{jnp.shape(log_penalty)}."
            )
    l1 = jnp.broadcast_to(jnp.exp(log_l1), w.shape)
    return l1, jnp.broadcast_to(jnp.exp(log_l2[0]), w.shape) if log_l2 else jnp.zeros_like(w)


def inverse_lipschitz(x: Float[Array, "rows features"]) -> Scalar:
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

    The solution is the fixed point of one proximal gradient step, with s = 1 / L from the data:

        map(u, w) = S_{s exp(u1)}(z) / (1 + s exp(u2)),    z = w - s X'(Xw - y) / n
        S_t(z)_j  = sign(z_j) max(|z_j| - t_j, 0)                      (soft thresholding)

    Args:
        X, y: the n training rows and their targets.
        X_val, y_val: held-out rows.

    `w` has shape `(features,)`. There is no intercept, so centre the columns of X and y, and centre
    the held-out rows with the same means. `u = (u1, u2)` holds log-penalties, each of shape `()`
    (one for all features) or `(features,)` (one per feature). scikit-learn's `alpha` and `l1_ratio`
    correspond to `exp(u1) = alpha l1_ratio` and `exp(u2) = alpha (1 - l1_ratio)`. Start with a u1
    well below `log(max_j |x_j'y| / n)`: at and above that value w is zero, Phi is constant and its
    gradient is zero.

    **The implicit gradient is restricted to the support** S = {j: w*_j != 0}. The derivative of
    soft thresholding is D, diagonal with 1 on S and 0 elsewhere. With G = X'X / n, the matrix

        d_w map = D (I - s G) / (1 + s exp(u2))

    therefore has non-zero rows only on S, and `(I - d_w map)^T v = grad_w F` gives

        (G_SS + diag(exp(u2))_SS) v = (grad_w F)_S
        d Phi / d u1_j = -exp(u1_j) sign(w_j) v_j,    d Phi / d u2_j = -exp(u2_j) w_j v_j      (j in S)

    and 0 for j outside of S. `AID` solves the system with `lineax.GMRES` or `lineax.LU`; CG refuses
    it, because the derivative of the map is not symmetric. `tasks.reference.support_hypergradient`
    solves the second form by Cholesky. As the inner solver use `FISTA(rtol=1e-10)`, or ISTA, which
    is `GradientInner(optax.sgd(1.0), T)` and can be unrolled by `ITD`.

    **Before the support is identified the hypergradient is wrong**, by terms of order one and not
    of the order of the inner residual. `tasks.reference.check_support` says whether it is
    identified. Where a feature enters or leaves the support, Phi is continuous but has a kink, and
    the hypergradient is that of one side. In the non-degenerate case (strict complementarity) Phi
    is smooth around u.

    The map needs all data: the proximal step on a minibatch has another fixed point.

    Raises:
        ValueError: shapes that do not belong together.

    Source: Bertrand, Klopfenstein, Blondel, Vaiter, Gramfort and Salmon (2020), "Implicit
    differentiation of Lasso-type models for hyperparameter optimization" [bertrand2020][];
    Bertrand, Klopfenstein, Massias, Blondel, Vaiter, Gramfort and Salmon (2022), "Implicit
    differentiation for fast hyperparameter selection in non-smooth convex learning"
    [bertrand2022][]; Grazzi and Pontil, "Principled and efficient bilevel optimization for machine
    learning", section "Recent Advances" [grazzi2023][].

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([8.0, 0.25])
    >>> problem = elastic_net(X, y, X, y)
    >>> problem.map((jnp.zeros(()), jnp.zeros(())), jnp.zeros(2), (X, y)).tolist()
    [2.0, 0.0]
    """
    check_rows(X, y, X_val, y_val)
    return FixedPointProblem(
        outer=MeanRisk(linear_predict, squared_error),
        map=_ProximalStep(inverse_lipschitz(X)),
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

    `u` holds log-penalties, of shape `()` (then `exp(u)` is scikit-learn's `alpha`) or
    `(features,)`, which is the weighted lasso. Everything else is as in `elastic_net`. A feature
    that has left the support has a zero hypergradient, so that its own penalty no longer moves
    (with folds, as soon as it is in the support of no fold). Where there are many features, one
    penalty per feature can overfit the held-out rows, so judge the result by new rows. The solution
    is unique where the columns on the support are linearly independent, as they are for almost all
    data.

    Raises:
        ValueError: shapes that do not belong together.

    Source: Bertrand, Klopfenstein, Blondel, Vaiter, Gramfort and Salmon (2020), "Implicit
    differentiation of Lasso-type models for hyperparameter optimization" [bertrand2020][].

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

    `w` has shape `(folds, features)`; `u` is that of one model. Each fold has its own step size 1 /
    L.

    Raises:
        ValueError: shapes that do not belong together; a fold without rows.

    Source: Bertrand, Klopfenstein, Massias, Blondel, Vaiter, Gramfort and Salmon (2022), "Implicit
    differentiation for fast hyperparameter selection in non-smooth convex learning"
    [bertrand2022][].
    """
    check_rows(X, y, X, y)
    training, held_out = fold_weights(X, y, folds, classes=False)
    steps = jax.vmap(lambda a: inverse_lipschitz(jnp.sqrt(a)[:, None] * X), in_axes=1)(training)
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
