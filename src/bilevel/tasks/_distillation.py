"""Dataset distillation and learned augmentation: the outer variable makes the training rows."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from .._arrays import dot
from .._problem import BilevelProblem
from ._hyperparameters import check_rows
from ._reweighting import MeanRisk
from .models import (
    Loss,
    Predict,
    augment,
    check_shape,
    codes_of,
    row_losses,
    soft_cross_entropy,
    softmax_cross_entropy,
    unless,
)


class _DistilledRisk(eqx.Module):
    predict: Predict
    fixed: dict[str, Array]
    l2: float

    def __call__(self, u: dict[str, Array], w: PyTree, batch: Any) -> Array:
        learned = {"inputs", "labels"} - set(self.fixed)
        if set(u) != learned:
            raise ValueError(
                f"the outer variable of `distillation` is a dict of {sorted(learned)} here, got "
                f"{sorted(u)}."
            )
        rows = {**self.fixed, **u}
        target, logits = jax.nn.softmax(rows["labels"]), self.predict(w, rows["inputs"])
        check_shape("labels", target, logits.shape, "a row of logits for each synthetic row")
        risk = jnp.mean(soft_cross_entropy(logits, target))
        return risk + 0.5 * self.l2 * dot(w, w)


def distillation(
    X: Float[Array, "rows features"],
    y: Int[Array, " rows"],
    predict: Predict,
    *,
    inputs: Float[Array, "points features"] | None = None,
    labels: Float[Array, "points classes"] | None = None,
    loss: Loss = softmax_cross_entropy,
    l2: float = 0.0,
) -> BilevelProblem:
    """Dataset distillation: a few synthetic rows on which a model is trained.

        f(u, w) = mean_j CE(predict(w, x_j), softmax(t_j)) + l2 / 2 ||w||^2     (synthetic rows)
        F(u, w) = mean_i loss(predict(w, X_i), y_i)                             (original rows)

    The outer variable is a dict of what is learned: `{"inputs": (points, features)}`,
    `{"labels": (points, classes)}` (logits of soft labels), or both.

    Args:
        X, y: the original rows and their class codes.
        predict: `(w, x) -> (batch, classes)` logits, as in `Model`.
        inputs: the synthetic inputs, if they are fixed and only labels are learned.
        labels: the logits of the synthetic labels, if they are fixed; `hard_labels` makes some.
        loss: of an original row.
        l2: >= 0.

    With fewer synthetic rows than parameters and `l2 = 0`, **the inner problem has many
    solutions**. Which one is found depends on how it is solved. A warm-started w remembers all rows
    that it was ever trained on, and a model that is retrained on the final rows may be poor. Use
    `retrain_check`.

    Raises:
        ValueError: shapes that do not belong together, both `inputs` and `labels` are given, or
            `l2` < 0.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", section 4.1 [vicol2022][].

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([0, 1])
    >>> problem = distillation(X, y, lambda w, x: x @ w, labels=hard_labels(y, 2))
    >>> u, w = {"inputs": X}, jnp.zeros((2, 2))
    >>> round(float(problem.inner(u, w, None)), 4), round(float(problem.outer(u, w, (X, y))), 4)
    (0.6931, 0.6931)
    """
    check_rows(X, y, X, y, l2, loss)
    if inputs is not None and labels is not None:
        raise ValueError(
            "`distillation` got fixed `inputs` and fixed `labels`, so nothing is left to learn; pass "
            "at most one of them."
        )
    given = {"inputs": inputs, "labels": labels}
    fixed = {name: x for name, x in given.items() if x is not None}
    return BilevelProblem(
        outer=MeanRisk(predict, loss),
        inner=_DistilledRisk(predict, fixed, l2),
        outer_data=(X, y),
    )


def hard_labels(
    y: Int[Array, " points"], num_classes: int, confidence: float = 1e3
) -> Float[Array, "points classes"]:
    """Logits whose softmax is the one-hot label, up to rounding for the default `confidence`.

    >>> import jax, jax.numpy as jnp
    >>> jax.nn.softmax(hard_labels(jnp.array([1]), 2)).tolist()
    [[0.0, 1.0]]

    Labels that are none of the classes give NaN.
    """
    codes, valid = codes_of(y, num_classes)
    return confidence * unless(valid, jax.nn.one_hot(codes, num_classes))


class _AugmentedRisk(eqx.Module):
    predict: Predict
    loss: Loss
    l2: float

    def __call__(self, u: PyTree, w: PyTree, batch: tuple[Array, Array]) -> Array:
        x, y = batch
        risk = jnp.mean(row_losses(self.loss, self.predict(w, augment(u, x)), y))
        return risk + 0.5 * self.l2 * dot(w, w)


def identity_augmentation(num_features: int) -> dict[str, Array]:
    """The outer variable at which `augmentation` leaves the rows as they are."""
    return {"matrix": jnp.eye(num_features), "bias": jnp.zeros(num_features)}


def augmentation(
    X: Float[Array, "rows features"],
    y: Shaped[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Shaped[Array, " val"],
    predict: Predict,
    *,
    loss: Loss = softmax_cross_entropy,
    l2: float = 0.0,
) -> BilevelProblem:
    """Learned augmentation: a linear network that transforms the training rows is the outer variable.

        f(u, w) = mean_i loss(predict(w, A x_i + b), y_i) + l2 / 2 ||w||^2     (training rows)
        F(u, w) = mean_j loss(predict(w, x_j), y_j)                            (validation rows)

    Args:
        X, y: training rows and their labels. Augmentation helps if there are few of them.
        X_val, y_val: validation rows, which are not transformed.
        predict: `(w, x) -> (batch, outputs)`, as in `Model`.
        loss: `(predictions, y) -> one loss per row`.
        l2: >= 0.

    The outer variable is `{"matrix": A, "bias": b}`; start from `identity_augmentation`. As in
    `distillation`, a warm-started model sees another training set in each step and keeps what it
    learned, so use `retrain_check`.

    Raises:
        ValueError: shapes that do not belong together, or `l2` < 0.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", section 4.1 [vicol2022][].

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([0, 1])
    >>> problem = augmentation(X, y, X, y, lambda w, x: x @ w)
    >>> u, w = identity_augmentation(2), jnp.eye(2)
    >>> bool(problem.inner(u, w, (X, y)) == problem.outer(u, w, (X, y)))
    True
    """
    check_rows(X, y, X_val, y_val, l2, loss)
    return BilevelProblem(
        outer=MeanRisk(predict, loss),
        inner=_AugmentedRisk(predict, loss, l2),
        outer_data=(X_val, y_val),
        inner_data=(X, y),
    )
