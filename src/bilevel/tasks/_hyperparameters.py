"""Regularisation as the outer variable: one penalty in all, one per feature, or one per tensor."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar, Shaped

from .._problem import BilevelProblem
from ._reweighting import MeanRisk
from .models import (
    Loss,
    Predict,
    check_labels,
    linear_predict,
    logistic_loss,
    row_losses,
    signs,
    softmax_cross_entropy,
    squared_error,
)


class PenalisedRisk(eqx.Module):
    predict: Predict
    loss: Loss

    def __call__(self, u: PyTree, w: PyTree, batch: tuple[Array, Array]) -> Array:
        x, y = batch
        return jnp.mean(row_losses(self.loss, self.predict(w, x), y)) + squared_penalty(u, w)


def squared_penalty(u: PyTree[Array], w: PyTree[Array]) -> Scalar:
    """`1/2 sum_t exp(u_t) ||w_t||^2` of a `u` that is a tree prefix of `w`."""
    return jnp.asarray(sum(jax.tree.leaves(jax.tree.map(_penalty, u, w))))


def _penalty(u: Array, w: PyTree) -> Array:
    """`1/2 sum_j exp(u_j) w_j^2` over the part of `w` that `u` stands for."""
    leaves = jax.tree.leaves(w)
    for leaf in leaves:
        check_penalty(u, leaf)
    squares = [jnp.sum(jnp.exp(u) * leaf**2) for leaf in leaves]
    return 0.5 * jnp.sum(jnp.stack(squares))


def check_penalty(u: Array, w: Array) -> None:
    """Refuse log-penalties that are none of the entries of w, such as a column for a vector."""
    if np.broadcast_shapes(jnp.shape(u), jnp.shape(w)) != jnp.shape(w):
        raise ValueError(
            f"log-penalties must have a shape that broadcasts to that of what they penalise, "
            f"{jnp.shape(w)}, such as () for one of all, got shape {jnp.shape(u)}."
        )


def check_rows(
    X: Any, y: Any, X_val: Any, y_val: Any, l2: float = 0.0, loss: Loss | None = None
) -> None:
    """Refuse rows, labels and validation rows that do not match, and a penalty below 0."""
    if l2 < 0:
        raise ValueError(f"`l2` must be >= 0, got {l2}; pass 0 for no penalty.")
    for name, x in [("X", X), ("X_val", X_val)]:
        if x.ndim != 2:
            raise ValueError(
                f"`{name}` must have shape (rows, features), got shape {x.shape}; "
                f"use `{name}.reshape(len({name}), -1)`."
            )
    for name, x, label in [("X", X, y), ("X_val", X_val, y_val)]:
        expected = (x.shape[0],)
        if label.shape != expected:
            raise ValueError(
                f"`{name.replace('X', 'y')}` must have one label for each of the {x.shape[0]} rows "
                f"of `{name}`, shape {expected}, got shape {label.shape}."
            )
    if X.shape[1] != X_val.shape[1]:
        raise ValueError(
            f"`X_val` must have the features of `X`, {X.shape[1]} columns, got {X_val.shape[1]}."
        )
    check_labels(loss, y=y, y_val=y_val)


def ridge(
    X: Float[Array, "rows features"],
    y: Float[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Float[Array, " val"],
) -> BilevelProblem:
    """Ridge regression with its penalties as the outer variable, judged on held-out rows.

        f(u, w) = mean_i (x_i'w - y_i)^2 / 2 + 1/2 sum_j exp(u_j) w_j^2        (training rows)
        F(u, w) = mean_j (x_j'w - y_j)^2 / 2                                   (validation rows)

    Args:
        X, y: training rows and their targets.
        X_val, y_val: held-out rows from the same distribution.

    `w` has shape `(features,)`. There is no intercept, so centre the columns, or add a column of
    ones. `u` holds log-penalties, and its shape decides how many: `()` for one penalty that all
    features share, `(features,)` for one per feature. Start from `jnp.zeros(...)`, which is a
    penalty of 1, and from `w = jnp.zeros(features)`. The mean over a batch is an unbiased estimate
    of either objective.

    With `S = X'X / rows`, `w*(u) = (S + diag(exp(u)))^-1 X'y / rows`, and f is strongly convex in w
    with constant `min_j exp(u_j)` at least. Phi is not convex in u. A feature that does not help
    has its best penalty at infinity, where Phi is flat. Cost: two products with the rows per
    objective.

    Raises:
        ValueError: shapes that do not belong together.

    Source: Grazzi and Pontil, "Principled and efficient bilevel optimization for machine learning",
    section on hyperparameter optimization [grazzi2023][].

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([1.0, 2.0])
    >>> problem = ridge(X, y, X, y)
    >>> u, w = jnp.zeros(()), jnp.ones(2)
    >>> float(problem.outer(u, w, problem.outer_data)), float(problem.inner(u, w, (X, y)))
    (0.25, 1.25)
    """
    check_rows(X, y, X_val, y_val)
    return BilevelProblem(
        outer=MeanRisk(linear_predict, squared_error),
        inner=PenalisedRisk(linear_predict, squared_error),
        outer_data=(X_val, y_val),
        inner_data=(X, y),
    )


def logistic(
    X: Float[Array, "rows features"],
    y: Shaped[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Shaped[Array, " val"],
) -> BilevelProblem:
    """Logistic regression with its penalties as the outer variable, judged on held-out rows.

        f(u, w) = mean_i log(1 + exp(-y_i x_i'w)) + 1/2 sum_j exp(u_j) w_j^2   (training rows)
        F(u, w) = mean_j log(1 + exp(-y_j x_j'w))                              (validation rows)

    Args:
        X, y: training rows and their labels in {-1, 1}, of any dtype.
        X_val, y_val: held-out rows.

    The variables are those of `ridge`: `w` of shape `(features,)` without an intercept, and
    log-penalties `u` of shape `()` (one for all features) or `(features,)` (one per feature: 22 for
    the data set ijcnn1, 784 for two digits of MNIST). f is strongly convex in w with constant
    `min_j exp(u_j)` at least. Phi is not convex, and it is flat where a penalty is very large or
    small.

    For more than two classes, use `tensor_penalties` with a linear model.

    Raises:
        ValueError: shapes that do not belong together, or labels that are not in {-1, 1}.

    Source: the regularisation selection of `benchmark_bilevel`: Dagréou, Ablin, Vaiter and Moreau
    (2022), "A framework for bilevel optimization that enables stochastic and global variance
    reduction algorithms" [dagreou2022][].

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([1, -1])
    >>> problem = logistic(X, y, X, y)
    >>> round(float(problem.outer(jnp.zeros(2), jnp.zeros(2), problem.outer_data)), 4)
    0.6931
    """
    check_rows(X, y, X_val, y_val)
    return BilevelProblem(
        outer=MeanRisk(linear_predict, logistic_loss),
        inner=PenalisedRisk(linear_predict, logistic_loss),
        outer_data=(X_val, signs("y_val", y_val, X_val.dtype)),
        inner_data=(X, signs("y", y, X.dtype)),
    )


def tensor_penalties(
    X: Float[Array, "rows features"],
    y: Shaped[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Shaped[Array, " val"],
    predict: Predict,
    *,
    loss: Loss = softmax_cross_entropy,
) -> BilevelProblem:
    """The penalties of any model, one per tensor, as the outer variable.

        f(u, w) = mean_i loss(predict(w, x_i), y_i) + 1/2 sum_t exp(u_t) ||w_t||^2
        F(u, w) = mean_j loss(predict(w, x_j), y_j)                            (validation rows)

    With `mlp_model` the inner problem is not convex: f has many local minima in w, among them those
    with permuted hidden units. Phi is then defined by the minimum that the inner solver stays at,
    and the implicit gradient is valid at a local minimum with a positive definite inner Hessian.

    Args:
        X, y: training rows and their labels (class codes for the default loss).
        X_val, y_val: held-out rows.
        predict: `(w, x) -> (batch, outputs)`, as in `Model`.
        loss: `(predictions, y) -> one loss per row`; by default `softmax_cross_entropy`. Others are
            `logistic_loss` for labels in {-1, 1} and `squared_error` for regression.

    `u` holds the log-penalties; start from `log_penalties(w0, 1e-2)`. It is a tree prefix of `w`: a
    leaf stands for one tensor, or for a whole subtree. A leaf may be an array that broadcasts
    against its tensor with the same number of axes: for `linear_model(..., bias=False)`,
    `{"weight": jnp.zeros((1, features))}` gives one penalty per feature, and the shape `(outputs,
    1)` gives one per class.

    Raises:
        ValueError: shapes that do not belong together, or labels that the loss does not take.

    Source: ours, a generalisation of `ridge` and `logistic`.

    >>> import jax, jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([0, 1])
    >>> from bilevel.tasks.models import mlp_model
    >>> model = mlp_model(2, 2, key=jax.random.key(0), width=3)
    >>> problem = tensor_penalties(X, y, X, y, model.predict)
    >>> u = log_penalties(model.w0, 1e-2)
    >>> len(jax.tree.leaves(u)), problem.inner(u, model.w0, (X, y)).shape
    (4, ())
    """
    check_rows(X, y, X_val, y_val, loss=loss)
    return BilevelProblem(
        outer=MeanRisk(predict, loss),
        inner=PenalisedRisk(predict, loss),
        outer_data=(X_val, y_val),
        inner_data=(X, y),
    )


def log_penalties(w0: PyTree[Array], penalty: float = 1e-2) -> PyTree[Array]:
    """A tree like `w0` with the scalar `log(penalty)` for each tensor, in the tensor's dtype.

    Raises:
        ValueError: `penalty` <= 0, which has no logarithm.
    """
    if not penalty > 0:
        raise ValueError(
            f"`penalty` must be > 0 to have a logarithm, got {penalty}; pass a small number such as "
            "1e-6 for almost no penalty."
        )
    return jax.tree.map(lambda w: jnp.full((), np.log(penalty), w.dtype), w0)
