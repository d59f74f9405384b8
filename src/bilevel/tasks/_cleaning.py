"""Hyper-cleaning: one free weight in (0, 1) per training row, judged by the loss on clean rows."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from .._arrays import dot, take_rows
from .._problem import BilevelProblem
from ._hyperparameters import check_rows
from ._reweighting import MeanRisk
from .models import Loss, Predict, check_shape, row_losses, softmax_cross_entropy


class _SigmoidRisk(eqx.Module):
    predict: Predict
    loss: Loss
    l2: float
    num_rows: int

    def __call__(self, u: Array, w: PyTree, batch: tuple[Array, Array, Array]) -> Array:
        x, y, i = batch
        check_shape("u", u, (self.num_rows,), "one entry for each training row")
        risk = jnp.mean(
            jax.nn.sigmoid(take_rows(u, i)) * row_losses(self.loss, self.predict(w, x), y)
        )
        return risk + 0.5 * self.l2 * dot(w, w)


def hyper_cleaning(
    X: Float[Array, "rows features"],
    y: Shaped[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Shaped[Array, " val"],
    predict: Predict,
    *,
    loss: Loss = softmax_cross_entropy,
    l2: float = 0.4,
) -> BilevelProblem:
    """Data hyper-cleaning: weights between 0 and 1 for training rows, some of them mislabelled.

        f(u, w) = mean_i sigmoid(u_i) loss(predict(w, x_i), y_i) + l2 / 2 ||w||^2   (training rows)
        F(u, w) = mean_j loss(predict(w, x_j), y_j)                                 (clean rows)

    Args:
        X, y: training rows and their labels, some of them wrong.
        X_val, y_val: rows whose labels are right.
        predict: `(w, x) -> (batch, outputs)`, as in `Model`.
        loss: `(predictions, y) -> one loss per row`; by default `softmax_cross_entropy`.
        l2: >= 0; for a linear model f is strongly convex with this constant, for every u.

    The outer variable is `u` of shape `(rows,)`, free in R^n; start from `jnp.zeros(rows)`, where
    every row weighs 1/2. A batch carries the row numbers, and its mean is an unbiased estimate.

    In `reweighting` the weights add up to 1; here they do not, and their sum relative to `l2` also
    decides how strongly the model is regularised. **Phi need not have a minimiser**: a row that
    helps (or harms) at every weight drives u_i to infinity (or to minus infinity). Phi then tends
    to its infimum as u grows, and its gradient tends to 0, so the goal can only be a small
    gradient.

    Raises:
        ValueError: shapes that do not belong together, or `l2` < 0.

    Source: Franceschi, Donini, Frasconi and Pontil (2017), "Forward and reverse gradient-based
    hyperparameter optimization" [franceschi2017][], as stated by `benchmark_bilevel`: Dagréou,
    Ablin, Vaiter and Moreau (2022), "A framework for bilevel optimization that enables stochastic
    and global variance reduction algorithms" [dagreou2022][]. Their code has `reg ||w||^2` with
    `reg = 0.2`, which is `l2 = 0.4` here.

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([0, 1])
    >>> predict = lambda w, x: x @ w.T
    >>> problem = hyper_cleaning(X, y, X, y, predict)
    >>> u, w = jnp.zeros(2), jnp.zeros((2, 2))
    >>> round(float(problem.inner(u, w, problem.inner_data)), 4)  # log(2) / 2
    0.3466
    """
    check_rows(X, y, X_val, y_val, l2, loss)
    return BilevelProblem(
        outer=MeanRisk(predict, loss),
        inner=_SigmoidRisk(predict, loss, l2, X.shape[0]),
        outer_data=(X_val, y_val),
        inner_data=(X, y, jnp.arange(X.shape[0], dtype=jnp.int32)),
    )
