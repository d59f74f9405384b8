"""Penalties beyond squares: a support vector machine, groups of features, powers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Scalar

from .._problem import BilevelProblem, FixedPointProblem
from ._hyperparameters import PenalisedRisk, check_penalty, check_rows
from ._nonsmooth import inverse_lipschitz
from ._reweighting import MeanRisk
from .models import linear_predict, signs, squared_error


class _SmoothHinge(eqx.Module):
    smoothing: float

    def __call__(
        self, prediction: Float[Array, "batch outputs"], y: Float[Array, " batch"]
    ) -> Float[Array, " batch"]:
        short = 1 - y * prediction[:, 0]
        if self.smoothing == 0:
            return jnp.maximum(short, 0)
        middle = jnp.clip(short, 0, self.smoothing)
        return middle * (short - middle / 2) / self.smoothing


def support_vectors(
    X: Float[Array, "rows features"],
    y: Array,
    X_val: Float[Array, "val features"],
    y_val: Array,
    *,
    smoothing: float = 0.1,
) -> BilevelProblem:
    """A linear support vector machine with its penalties as the outer variable.

        f(u, w) = mean_i h(y_i x_i'w) + 1/2 sum_j exp(u_j) w_j^2               (training rows)
        F(u, w) = mean_j h(y_j x_j'w)                                          (validation rows)
        h(m) = (1 - m)_+^2 / 2g  where 1 - m <= g,    1 - m - g / 2  beyond          (g = smoothing)

    Args:
        X, y: training rows and their labels in {-1, 1}.
        X_val, y_val: held-out rows.
        smoothing: g >= 0, the width over which the corner of the hinge is rounded.

    `w` has shape `(features,)`, without an intercept. `u` holds log-penalties of shape `()` or
    `(features,)`. f is `min_j exp(u_j)`-strongly convex and has a gradient with the Lipschitz constant
    `L / g + max_j exp(u_j)`, L the largest eigenvalue of `X'X / rows`; the solution is within
    `sqrt(g / exp(u))` of that of the hinge for a shared penalty. The second derivative of h jumps
    where a row enters or leaves the rounded part, so the inner Hessian counts only the rows in it:
    with a small g these are few, and the hypergradient is noisy in u though exact. `ITD` and `AID`
    both apply. With `smoothing=0` f is not differentiable at a corner, where most solutions lie:
    steps do not converge to it, the second derivative of the loss is zero wherever it exists, and
    `AID` gives the hypergradient of the penalty alone. Only `ITD` of a fixed number of steps says
    anything then: it is the derivative of those steps.

    Raises:
        ValueError: shapes that do not belong together, labels that are not in {-1, 1}, or
            `smoothing` < 0.

    Source: ours; the rounded hinge is the Huber function of the margin.

    >>> import jax.numpy as jnp
    >>> problem = support_vectors(jnp.eye(2), jnp.array([1, -1]), jnp.eye(2), jnp.array([1, -1]))
    >>> round(float(problem.outer(jnp.zeros(2), jnp.zeros(2), problem.outer_data)), 4)
    0.95
    """
    check_rows(X, y, X_val, y_val)
    if not smoothing >= 0:
        raise ValueError(f"`smoothing` must be >= 0, got {smoothing}; 0 is the hinge itself.")
    loss = _SmoothHinge(float(smoothing))
    return BilevelProblem(
        outer=MeanRisk(linear_predict, loss),
        inner=PenalisedRisk(linear_predict, loss),
        outer_data=(X_val, signs("y_val", y_val, X_val.dtype)),
        inner_data=(X, signs("y", y, X.dtype)),
    )


class _PowerPenalty(eqx.Module):
    rounding: float

    def __call__(self, u: tuple[Array, Array], w: Array, batch: tuple[Array, Array]) -> Scalar:
        (log_penalty, log_power), (x, y) = u, batch
        check_penalty(log_penalty, w)
        power = 1 + jnp.exp(log_power)
        size = (w**2 + self.rounding**2) ** (power / 2) - self.rounding**power
        return 0.5 * jnp.mean((x @ w - y) ** 2) + jnp.sum(jnp.exp(log_penalty) * size) / power


def power_penalty(
    X: Float[Array, "rows features"],
    y: Float[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Float[Array, " val"],
    *,
    rounding: float = 1e-2,
) -> BilevelProblem:
    """Least squares with an l_p penalty whose strength *and* power are the outer variable.

        f(u, w) = mean_i (x_i'w - y_i)^2 / 2 + sum_j exp(u1_j) ((w_j^2 + r^2)^(p/2) - r^p) / p
        p = 1 + exp(u2),    F(u, w) = mean_j (x_j'w - y_j)^2 / 2               (validation rows)

    Args:
        X, y: training rows and their targets.
        X_val, y_val: held-out rows.
        rounding: r > 0, below which the power of |w_j| is rounded to a square.

    `u = (u1, u2)`; u1 has shape `()` or `(features,)`, and u2 shape `()`: start it at `zeros(())`,
    which is p = 2, ridge regression. p falls towards 1, the lasso, as u2 falls; for 0 < p < 1 the
    inner problem is not convex, and such p are left out. f is convex and smooth for every p >= 1,
    with a curvature of at most `exp(u1) r^(p - 2)` from the penalty if p <= 2: a small r near p = 1
    asks for small steps.

    Raises:
        ValueError: shapes that do not belong together, or `rounding` <= 0.

    Source: ours.

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(2), jnp.zeros(2)
    >>> problem = power_penalty(X, y, X, y)
    >>> u = jnp.zeros(()), jnp.zeros(())
    >>> round(float(problem.inner(u, jnp.array([1.0, 2.0]), (X, y))), 4)
    3.75
    """
    check_rows(X, y, X_val, y_val)
    if not rounding > 0:
        raise ValueError(f"`rounding` must be > 0, got {rounding}; for the lasso use `lasso`.")
    return BilevelProblem(
        outer=MeanRisk(linear_predict, squared_error),
        inner=_PowerPenalty(float(rounding)),
        outer_data=(X_val, y_val),
        inner_data=(X, y),
    )


class _GroupStep(eqx.Module):
    step: Scalar
    codes: Int[Array, " features"]
    sizes: Float[Array, " groups"]

    def __call__(self, u: Array, w: Array, batch: tuple[Array, Array]) -> Array:
        x, y = batch
        if jnp.shape(u) not in ((), self.sizes.shape):
            raise ValueError(
                f"a log-penalty must have shape () or one entry per group, {self.sizes.shape}, got "
                f"{jnp.shape(u)}."
            )
        z = w - self.step * ((x @ w - y) @ x / x.shape[0])
        squares = jax.ops.segment_sum(z**2, self.codes, len(self.sizes))
        left = squares > 0  # elsewhere the root has no derivative
        length = jnp.sqrt(jnp.where(left, squares, 1))
        threshold = self.step * jnp.exp(u) * jnp.sqrt(self.sizes)
        shrunk = jnp.where(left & (length > threshold), 1 - threshold / length, 0)
        return shrunk[self.codes] * z


def group_lasso(
    X: Float[Array, "rows features"],
    y: Float[Array, " rows"],
    X_val: Float[Array, "val features"],
    y_val: Float[Array, " val"],
    groups: Any,
) -> FixedPointProblem:
    """The group lasso with its penalties as the outer variable: features leave group by group.

        w*(u) = argmin_w  ||Xw - y||^2 / 2n + sum_g exp(u_g) sqrt(n_g) ||w_g||
        F(u, w) = mean_j (x_j'w - y_j)^2 / 2                                     (validation rows)
        map(u, w)_g = (1 - s exp(u_g) sqrt(n_g) / ||z_g||)_+ z_g,    z = w - s X'(Xw - y) / n

    Args:
        X, y: the n training rows and their targets, centred: there is no intercept.
        X_val, y_val: held-out rows, centred with the same means.
        groups: one label per feature; features with the same label are a group of n_g.

    `w` has shape `(features,)` and `u` shape `()` or `(groups,)`, in the order of the sorted labels.
    As for `lasso`, the solution is the fixed point of a proximal gradient step with s = 1 / L,
    `FISTA` solves it, `AID(lineax.GMRES(...))` gives the hypergradient, and `ITD` can go back through
    `GradientInner(optax.sgd(1.0), T)`. The hypergradient is restricted to the groups in use and is
    right once they are identified. Unlike for the lasso, the map is curved within a group: its
    derivative there is `(1 - t / |z|) I + t z z' / |z|^3`.

    Raises:
        ValueError: shapes that do not belong together.

    Source: the group lasso is that of Yuan and Lin (2006), "Model selection and estimation in
    regression with grouped variables" [yuan2006][]; its hypergradient follows from the implicit
    function theorem on the groups in use, as in Bertrand et al. (2022) [bertrand2022][].

    >>> import jax.numpy as jnp
    >>> X, y = jnp.eye(4), jnp.array([12.0, 16.0, 0.5, 0.5])
    >>> problem = group_lasso(X, y, X, y, [0, 0, 1, 1])
    >>> u = jnp.log(jnp.sqrt(2.0))
    >>> [round(float(x), 3) for x in problem.map(u, jnp.zeros(4), (X, y))]
    [7.2, 9.6, 0.0, 0.0]
    """
    check_rows(X, y, X_val, y_val)
    labels = np.asarray(groups)
    if labels.shape != (X.shape[1],):
        raise ValueError(
            f"`groups` must hold one label for each of the {X.shape[1]} features, got shape "
            f"{labels.shape}."
        )
    codes = np.unique(labels, return_inverse=True)[1]
    sizes = jnp.asarray(np.bincount(codes), X.dtype)
    return FixedPointProblem(
        outer=MeanRisk(linear_predict, squared_error),
        map=_GroupStep(inverse_lipschitz(X), jnp.asarray(codes), sizes),
        outer_data=(X_val, y_val),
        inner_data=(X, y),
    )
