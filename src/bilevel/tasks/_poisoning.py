"""Data poisoning: how much damage a few changed training rows can do to a model."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from .._arrays import dot
from .._geometry import AbstractGeometry, Ball, Box, Rowwise
from .._problem import BilevelProblem
from ._hyperparameters import check_rows
from ._reweighting import MeanRisk
from .models import Loss, Predict, check_shape, row_losses, softmax_cross_entropy


class _PoisonedRisk(eqx.Module):
    predict: Predict
    loss: Loss
    l2: float
    num_poisoned: int

    def __call__(self, u: Array, w: PyTree, batch: tuple[Array, Array, Array]) -> Array:
        x, y, slot = batch
        shape = self.num_poisoned, *x.shape[1:]
        check_shape("u", u, shape, "a shift for each poisoned row")
        risk = jnp.mean(row_losses(self.loss, self.predict(w, _shifted(u, x, slot)), y))
        return risk + 0.5 * self.l2 * dot(w, w)


class _Damage(eqx.Module):
    risk: MeanRisk

    def __call__(self, u: PyTree, w: PyTree, batch: tuple[Array, Array]) -> Array:
        return -self.risk(u, w, batch)


def _shifted(
    u: Float[Array, "poisoned features"],
    x: Float[Array, "rows features"],
    slot: Int[Array, " rows"],
) -> Float[Array, "rows features"]:
    """`x_i + u[slot_i]` where `slot_i >= 0`, and `x_i` where it is -1."""
    return x + jnp.where(slot[:, None] >= 0, u[slot], jnp.zeros((), u.dtype))


def poisoned_rows(
    problem: BilevelProblem, u: Float[Array, "poisoned features"]
) -> Float[Array, "rows features"]:
    """The training rows after the shift by the outer variable of `poisoning`.

    >>> import jax.numpy as jnp
    >>> X, y = jnp.ones((3, 1)), jnp.array([0, 1, 0])
    >>> problem = poisoning(X, y, X, y, lambda w, x: x @ w, poisoned=jnp.array([1]), radius=1.0)
    >>> poisoned_rows(problem, jnp.array([[0.5]])).ravel().tolist()
    [1.0, 1.5, 1.0]
    """
    X, _, slot = jax.tree.leaves(problem.inner_data)
    check_shape("u", u, (int(slot.max()) + 1, *X.shape[1:]), "a shift for each poisoned row")
    return _shifted(u, X, slot)


def poisoning(
    X: Float[Array, "rows features"],
    y: Shaped[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Shaped[Array, " val"],
    predict: Predict,
    *,
    poisoned: Int[Array | np.ndarray, " poisoned"],
    radius: float,
    p: float = 2.0,
    bounds: tuple[float, float] | None = None,
    loss: Loss = softmax_cross_entropy,
    l2: float = 1e-2,
) -> BilevelProblem:
    """The damage that an adversary does who may shift a few training rows by at most `radius`.

        f(u, w) = mean_i loss(predict(w, x_i + u_i), y_i) + l2 / 2 ||w||^2     (training rows)
        F(u, w) = -mean_j loss(predict(w, x_j), y_j)                           (outer rows)
        U = {u : ||u_i||_p <= radius for each poisoned row i},  u_i = 0 for all others

    This measures robustness: the difference between the outer loss at the solution and at u = 0 is
    the loss that an adversary with control of those rows can cause. Labels are not changed.

    Args:
        X, y: training rows and their labels (class codes for the default loss).
        X_val, y_val: the rows on which the adversary measures the damage. The perturbation can
            overfit them, so measure the damage on rows that are in neither set.
        predict: `(w, x) -> (batch, outputs)`, as in `Model`.
        poisoned: the indices of the rows of `X` that the adversary controls, each once.
        radius: > 0, in the units of `X`.
        p: 1, 2 or infinity (`jnp.inf`).
        bounds: `(lower, upper)`, the natural range of the features, such as (0, 1) for pixels;
            poisoned rows stay in it. This is possible for `p = jnp.inf` only, for which U is a box.
        loss: `(predictions, y) -> one loss per row`; by default `softmax_cross_entropy`.
        l2: >= 0.

    The outer variable is `u` of shape `(poisoned, features)`; start from zeros. Phi is not convex,
    so the result of a solver is a lower bound on the largest damage. Retrain the model from scratch
    on `poisoned_rows(problem, u)` before you judge it (`retrain_check`), because a warm-started w
    still contains the effects of earlier perturbations.

    A batch of training rows carries the place of each row in `u` (-1 for rows that are not
    poisoned), and its mean is an unbiased estimate.

    Raises:
        ValueError: shapes that do not belong together; an index that is repeated or out of range;
            `radius` or `l2` out of range; `bounds` with another p, or with poisoned rows that are
            already outside of them.

    Source: Biggio, Nelson and Laskov (2012), "Poisoning attacks against support vector machines"
    [biggio2012][]; Muñoz-González, Biggio, Demontis, Paudice, Wongrassamee, Lupu and Roli (2017),
    "Towards poisoning of deep learning algorithms with back-gradient optimization"
    [munozgonzalez2017][]; Grazzi and Pontil, "Principled and efficient bilevel optimization for
    machine learning", section "Data poisoning attacks" [grazzi2023][].

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.array([0, 1])
    >>> predict = lambda w, x: x @ w.T
    >>> problem = poisoning(X, y, X, y, predict, poisoned=jnp.array([1]), radius=0.5)
    >>> u = problem.geometry.project(jnp.array([[3.0, -4.0]]))
    >>> bool(jnp.allclose(poisoned_rows(problem, u), jnp.array([[1.0, 0.0], [0.3, 0.6]])))
    True
    """
    check_rows(X, y, X_val, y_val, l2, loss)
    index = np.asarray(poisoned)
    inside = (index >= 0) & (index < len(X))
    if not index.size or not inside.all() or len(np.unique(index)) != len(index):
        raise ValueError(
            f"`poisoned` must hold indices of rows, 0 to {len(X) - 1}, each once and at least one of "
            f"them, got {index.tolist()[:20]}."
        )
    slot = np.full(len(X), -1, np.int32)
    slot[index] = np.arange(len(index))
    geometry: AbstractGeometry = Rowwise(Ball(radius, p))
    if bounds is not None:
        geometry = _box(np.asarray(X)[index], radius, p, bounds)
    return BilevelProblem(
        outer=_Damage(MeanRisk(predict, loss)),
        inner=_PoisonedRisk(predict, loss, l2, len(index)),
        outer_data=(X_val, y_val),
        inner_data=(X, y, jnp.asarray(slot)),
        geometry=geometry,
    )


def _box(x: np.ndarray, radius: float, p: float, bounds: tuple[float, float]) -> Box:
    """`|u| <= radius` and `lower <= x + u <= upper`, entry by entry."""
    lower, upper = bounds
    if p != math.inf:
        raise ValueError(
            f"`bounds` need p = jnp.inf, where the set is a box, got p = {p}; leave them out, or take "
            "p = jnp.inf."
        )
    if not ((x >= lower) & (x <= upper)).all():
        raise ValueError(
            f"`bounds` are ({lower}, {upper}), and the poisoned rows reach from {x.min()} to "
            f"{x.max()}; give the range that the features really have."
        )
    return Box(np.maximum(-radius, lower - x), np.minimum(radius, upper - x))
