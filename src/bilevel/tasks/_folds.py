"""K-fold cross-validation in place of a split: one model per fold, and one outer variable for all."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar, Shaped

from .._arrays import dot
from .._problem import BilevelProblem
from ._hyperparameters import check_rows, squared_penalty
from .models import Loss, Predict, row_losses, squared_error

FoldBatch = tuple[Array, Array, Array]


class FoldRisk(eqx.Module):
    """`mean_i sum_k a_ik loss(predict(w_k, x_i), y_i)` of a batch `(x, y, a)`."""

    predict: Predict
    loss: Loss

    def __call__(self, u: PyTree, w: PyTree, batch: FoldBatch) -> Scalar:
        x, y, weights = batch
        losses = jax.vmap(lambda w: row_losses(self.loss, self.predict(w, x), y), out_axes=1)(w)
        return dot(weights, losses) / x.shape[0]


class _PenalisedFoldRisk(eqx.Module):
    risk: FoldRisk

    def __call__(self, u: PyTree, w: PyTree, batch: FoldBatch) -> Scalar:
        penalties = jax.vmap(squared_penalty, in_axes=(None, 0))(u, w)
        return self.risk(u, w, batch) + jnp.sum(penalties)


def cross_validation(
    X: Float[Array, "rows features"],
    y: Shaped[Array, " rows"],
    folds: Any,
    predict: Predict,
    *,
    loss: Loss,
) -> BilevelProblem:
    """Penalties of any model as the outer variable, judged by K-fold cross-validation.

        f(u, w) = sum_k ( mean_{i not in fold k} loss(predict(w_k, x_i), y_i)
                          + 1/2 sum_t exp(u_t) ||w_kt||^2 )
        F(u, w) = mean_k mean_{i in fold k} loss(predict(w_k, x_i), y_i)

    The K inner problems share only u: the inner Hessian is block diagonal, and step sizes are those
    of one model. F is the mean of the means of the folds, as in scikit-learn's `GridSearchCV` and
    `LassoCV`. If all folds have the same size, it is the mean over all rows.

    Args:
        X, y: all rows and their labels.
        folds: an integer array `(rows,)` that says in which fold a row is held out (-1 means in
            none), or what scikit-learn accepts as `cv`: a number K, a splitter such as
            `KFold(5, shuffle=True, random_state=0)`, or a list of `(training, held-out)` indices,
            such as `list(GroupKFold(5).split(X, y, groups))`. The rows are split once. A number
            stands for `StratifiedKFold(K)` for classes and for `KFold(K)` with `squared_error`,
            without shuffling.
        predict: `(w, x) -> (batch, outputs)` of *one* model; `linear_predict` makes this ridge
            (with `squared_error`, and `ridge_solution` for its closed form) or logistic regression
            (with `logistic_loss`, whose labels are the floats -1 and 1).
        loss: `(predictions, y) -> one loss per row`.

    `w` is the tree of one model with a leading axis of K: `stack_models(w0, K)`. `u` is that of
    `tensor_penalties`, a tree prefix of *one* model: `jnp.zeros(())`, `jnp.zeros(features)` and
    `log_penalties(w0)` are such.

    The data contain the folds: `inner_data = (X, y, a)`, where `a_ik` is `rows / (rows that train
    k)` for the rows that train model k and 0 for the others. `outer_data` has the same form. The
    mean over a batch is therefore an unbiased estimate. Cost of f and F: K times that of one model
    on all rows.

    Phi is not convex, and it can have several minima even in one penalty, so try several starts.

    The K models only judge u. To get a model for use, fit all rows with the u that was found:
    `tensor_penalties(X, y, X, y, predict, loss=loss).inner`.

    Raises:
        ValueError: shapes that do not belong together; a fold without held-out rows or without
            training rows.

    Source: Grazzi and Pontil, "Principled and efficient bilevel optimization for machine learning",
    section on hyperparameter optimization, with K folds in place of a split [grazzi2023][].

    >>> import jax.numpy as jnp
    >>> from bilevel.tasks.models import linear_predict, squared_error
    >>> X, y = jnp.ones((4, 1)), jnp.array([0.0, 0.0, 2.0, 2.0])
    >>> problem = cross_validation(X, y, 2, linear_predict, loss=squared_error)
    >>> w = stack_models(jnp.zeros(1), 2)
    >>> float(problem.outer(jnp.zeros(()), w, problem.outer_data))
    1.0
    """
    check_rows(X, y, X, y, loss=loss)
    training, held_out = fold_weights(X, y, folds, classes=loss is not squared_error)
    risk = FoldRisk(predict, loss)
    return BilevelProblem(
        outer=risk,
        inner=_PenalisedFoldRisk(risk),
        outer_data=(X, y, held_out),
        inner_data=(X, y, training),
    )


def stack_models(w0: PyTree[Array], num_folds: int) -> PyTree[Array]:
    """`w0` once for each fold, on a new leading axis."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_folds, *jnp.shape(x))), w0)


def fold_weights(
    X: Array, y: Array, folds: Any, *, classes: bool
) -> tuple[Float[Array, "rows folds"], Float[Array, "rows folds"]]:
    """The weights that make a mean over rows the training, and the held-out, risks of all folds."""
    from sklearn.model_selection import PredefinedSplit, check_cv

    rows = np.arange(X.shape[0])
    if hasattr(folds, "shape"):
        folds = np.asarray(folds)
        if folds.shape != rows.shape or not np.issubdtype(folds.dtype, np.integer):
            raise ValueError(
                f"`folds` must be one integer per row, shape {rows.shape}, got shape {folds.shape} of "
                f"{folds.dtype}; or pass a number of folds or a splitter of scikit-learn."
            )
        splitter: Any = PredefinedSplit(folds)
    else:
        splitter = check_cv(folds, np.asarray(y) if classes else None, classifier=classes)
    splits = list(splitter.split(rows[:, None], np.asarray(y) if classes else None))
    training, held_out = np.zeros((2, len(rows), len(splits)))
    for k, (train, test) in enumerate(splits):
        train, test = rows[train], rows[test]
        if not len(train) or not len(test):
            raise ValueError(
                f"fold {k} has {len(train)} rows to train on and {len(test)} held out; both must be "
                "at least 1. Pass at least two folds."
            )
        # A row that a split names twice, as a bootstrap does, counts twice.
        np.add.at(training[:, k], train, len(rows) / len(train))
        np.add.at(held_out[:, k], test, len(rows) / (len(test) * len(splits)))
    return jnp.asarray(training, X.dtype), jnp.asarray(held_out, X.dtype)
