"""Data reweighting: one weight per training row, judged by the loss on trusted rows."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from .._arrays import dot, take_rows
from .._geometry import Simplex
from .._problem import BilevelProblem, reparametrise
from .models import Loss, Predict, check_labels, check_shape, row_losses, softmax_cross_entropy


def uniform_weights(num_rows: int, dtype: Any = None) -> Float[Array, " rows"]:
    """The centre of the simplex, where every row weighs `1 / num_rows`."""
    return jnp.full((num_rows,), 1 / num_rows, dtype)


# The objectives are modules, not closures, so that problems built by separate calls from the same
# `predict` and data of the same shapes share one compilation.
class _WeightedRisk(eqx.Module):
    predict: Predict
    loss: Loss
    l2: float
    num_rows: int

    def __call__(self, u: Array, w: PyTree, batch: tuple[Array, ...]) -> Array:
        x, y, i, *ratio = batch
        check_shape("u", u, (self.num_rows,), "one weight for each training row")
        share = take_rows(u, i)
        if ratio:
            share = share * ratio[0].astype(u.dtype)
        scale = self.num_rows / i.shape[0]
        risk = scale * dot(share, row_losses(self.loss, self.predict(w, x), y))
        return risk + 0.5 * self.l2 * dot(w, w)


class MeanRisk(eqx.Module):
    """The mean loss of a batch, which does not depend on the outer variable."""

    predict: Predict
    loss: Loss

    def __call__(self, u: PyTree, w: PyTree, batch: tuple[Array, Array]) -> Array:
        x, y = batch
        return jnp.mean(row_losses(self.loss, self.predict(w, x), y))


def reweighting(
    X: Float[Array, "rows *features"],
    y: Shaped[Array, " rows"],
    X_trusted: Float[Array, "trusted *features"],
    y_trusted: Shaped[Array, " trusted"],
    predict: Predict,
    *,
    loss: Loss = softmax_cross_entropy,
    l2: float = 1e-2,
) -> BilevelProblem:
    """The reweighting problem on the simplex: one weight per training row.

        f(u, w) = sum_i u_i loss(predict(w, x_i), y_i) + l2 / 2 ||w||^2        (training rows)
        F(u, w) = mean_j loss(predict(w, x_j), y_j)                            (trusted rows)

    A batch B of training rows gives the unbiased estimate `n / |B| sum_{i in B} u_i loss_i`. If the
    sampler gives importance ratios (`WeightedSampler`), each term is multiplied by its ratio. The
    l2 term stays outside of the weighted sum: on the simplex this makes no difference to f, and it
    adds no noise to a batch.

    Args:
        X, y: training rows of any shape, such as images, and their labels (class codes for the
            default loss).
        X_trusted, y_trusted: the trusted rows, which are a clean validation set; their loss is F.
        predict: `(w, x) -> (batch, outputs)`, as in `Model`.
        loss: `(predictions, y) -> one loss per row`; by default `softmax_cross_entropy`;
            pass `squared_error` for regression.
        l2: >= 0; for a linear model f is strongly convex with this constant, for every u.

    The outer variable is `u` of shape `(rows,)`; start from `uniform_weights(rows)`. Cost: one
    evaluation of the model per row of a batch.

    Raises:
        ValueError: `l2` < 0, or labels that the loss does not take.

    Source: Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization",
    equations (1) and (2) [ivanova2023][].

    >>> import jax.numpy as jnp
    >>> from bilevel.tasks.models import linear_model
    >>> X, y = jnp.eye(2), jnp.array([0, 1])
    >>> model = linear_model(2, 2, bias=False)
    >>> problem = reweighting(X, y, X, y, model.predict)
    >>> round(float(problem.outer(uniform_weights(2), model.w0, problem.outer_data)), 4)
    0.6931
    """
    if l2 < 0:
        raise ValueError(f"`l2` must be >= 0, got {l2}.")
    check_labels(loss, y=y, y_trusted=y_trusted)
    n = X.shape[0]
    return BilevelProblem(
        outer=MeanRisk(predict, loss),
        inner=_WeightedRisk(predict, loss, l2, n),
        outer_data=(X_trusted, y_trusted),
        inner_data=(X, y, jnp.arange(n, dtype=jnp.int32)),
        geometry=Simplex(),
    )


class _NormalisedSigmoid(eqx.Module):
    features: Float[Array, "rows features"]

    def __call__(self, x: Float[Array, " coefficients"]) -> Float[Array, " rows"]:
        # In logarithms, so that a very negative row keeps a gradient and the sum does not vanish.
        return jax.nn.softmax(jax.nn.log_sigmoid(x[0] + self.features @ x[1:]))


def weight_function(
    problem: BilevelProblem, features: Float[Array, "rows features"]
) -> BilevelProblem:
    """A reweighting problem whose weights are a function of a few features of the row.

        u_i = s_i / sum_j s_j,   s_i = sigmoid(x_0 + <x_{1:}, z_i>)

    Args:
        problem: a problem in weights on the simplex, such as `reweighting(...)`.
        features: z, one row per training row, of order one (`bilevel.trust_features` makes some).

    The outer variable is now `x`, which has one entry more than there are features; at `x = 0` the
    weights are uniform. With about a hundred trusted rows, free weights for every row overfit the
    trusted loss; a few coefficients do not. Source: ours.

    >>> import jax.numpy as jnp
    >>> from bilevel.tasks.models import linear_model
    >>> model = linear_model(2, 2)
    >>> X, y = jnp.eye(2), jnp.array([0, 1])
    >>> problem = weight_function(reweighting(X, y, X, y, model.predict), jnp.array([[1.0], [-1.0]]))
    >>> batch = (*problem.inner_data[:2], jnp.arange(2))
    >>> round(float(problem.inner(jnp.zeros(2), model.w0, batch)), 4)
    0.6931
    """
    return reparametrise(problem, _NormalisedSigmoid(features))
