"""Anti-distillation: there are more learned targets than points in the outer objective."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._arrays import take_rows
from .._problem import BilevelProblem
from .models import Predict, check_shape, squared_error

Rows = tuple[Float[Array, "batch features"], Int[Array, " batch"]]


def exponential_amplitudes(num_frequencies: int = 10) -> Float[Array, " frequencies"]:
    """The amplitudes `a_l = 2^(L - l)`, which are halved from each frequency to the next.

    Source: Vicol et al. (2022), "On implicit bias in overparameterized bilevel optimization",
    section 4.2 [vicol2022][].
    """
    return 2.0 ** jnp.arange(_positive(num_frequencies) - 1.0, -1.0, -1.0)


def harmonic_amplitudes(num_frequencies: int = 10) -> Float[Array, " frequencies"]:
    """The amplitudes `a_l = 1 / l`.

    Source: Vicol et al. (2022), "On implicit bias in overparameterized bilevel optimization",
    appendix F.2 [vicol2022][].
    """
    return 1 / jnp.arange(1.0, _positive(num_frequencies) + 1.0)


def _positive(num_frequencies: int) -> int:
    if num_frequencies < 1:
        raise ValueError(f"`num_frequencies` must be >= 1, got {num_frequencies}.")
    return num_frequencies


def fourier_features(
    x: Float[Array, " points"], amplitudes: Float[Array, " frequencies"]
) -> Float[Array, "points features"]:
    """Fourier features: one row per point, with `2 L + 1` features for L amplitudes.

        phi(x) = (1, a_1 cos x, ..., a_L cos L x, a_1 sin x, ..., a_L sin L x)

    A least-squares fit of minimum norm prefers the frequencies of large amplitude, which are the
    directions of large curvature.

    Args:
        x: points, in radians.
        amplitudes: `a_l` of the frequencies 1, ..., L: `exponential_amplitudes()`,
            `harmonic_amplitudes()` or your own.

    >>> import jax.numpy as jnp
    >>> fourier_features(jnp.zeros(1), jnp.array([2.0, 1.0])).tolist()
    [[1.0, 2.0, 1.0, 0.0, 0.0]]
    """
    frequency = jnp.arange(1, amplitudes.size + 1).astype(x.dtype)
    angle = x[:, None] * frequency[None, :]
    a = amplitudes[None, :]
    return jnp.concatenate([jnp.ones_like(x)[:, None], a * jnp.cos(angle), a * jnp.sin(angle)], 1)


def linear(w: Float[Array, " features"], X: Float[Array, "batch features"]) -> Array:
    """`X w`, as the one output of a model without an intercept."""
    return (X @ w)[:, None]


class _FitTargets(eqx.Module):
    predict: Predict
    num_points: int

    def __call__(self, u: Float[Array, " points"], w: PyTree, batch: Rows) -> Array:
        X, i = batch
        check_shape("u", u, (self.num_points,), "one target for each point")
        return u.size / i.size * jnp.sum(squared_error(self.predict(w, X), take_rows(u, i)))


class _FitOriginal(eqx.Module):
    predict: Predict
    num_rows: int

    def __call__(self, u: Array, w: PyTree, batch: tuple[Array, Array]) -> Array:
        X, y = batch
        return self.num_rows / y.size * jnp.sum(squared_error(self.predict(w, X), y))


def anti_distillation(
    X: Float[Array, "points features"],
    X_original: Float[Array, "original features"],
    y_original: Float[Array, " original"],
    predict: Predict = linear,
) -> BilevelProblem:
    """Targets for N points, learned so that a model fitted to them fits P original points.

        f(u, w) = sum_i (predict(w, x_i) - u_i)^2 / 2                (N points, their targets learned)
        F(u, w) = sum_j (predict(w, x_j) - y_j)^2 / 2                (P original points)

    With N > P many `u` reach F = 0, and which of them is found depends on how the hypergradient is
    approximated: see `anti_distillation_limit`. Use float64.

    Args:
        X: the points, as rows of features; for a Fourier basis
            `fourier_features(jnp.linspace(-2, 2, 13), exponential_amplitudes())`.
        X_original, y_original: the original points, in the same features, and their targets.
        predict: `(w, X) -> (batch, 1)`: `X w` by default, or a `Model`'s, such as that of
            `mlp_model(1, 1, key=key)` on `X = x[:, None]`.

    `u` has shape `(points,)`; start from zeros. `w` has shape `(features,)` for the default model;
    start from zeros, or use `ClosedForm(tasks.reference.min_norm_fit)`, which is the solution of
    the cold start. A batch is scaled to an unbiased estimate of the sum. The curvature of f is `X^T
    X`, which is singular if there are fewer points than features. On the 13 points above its
    condition number is 30007 with the exponential and 88 with the harmonic amplitudes, and its
    largest eigenvalue is 2.1e6 and 15.5. The paper takes gradient steps of 1e-7 and 1e-3.

    Raises:
        ValueError: shapes that do not belong together.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", section 4.2 and appendix F.2 [vicol2022][].

    >>> import jax.numpy as jnp
    >>> problem = anti_distillation(jnp.eye(2), jnp.ones((1, 2)), jnp.array([2.0]))
    >>> u, w = jnp.array([1.0, 0.0]), jnp.zeros(2)
    >>> float(problem.inner(u, w, problem.inner_data)), float(problem.outer(u, w, problem.outer_data))
    (0.5, 2.0)
    """
    if y_original.shape != X_original.shape[:1]:
        raise ValueError(
            f"`y_original` must have one target for each row of `X_original`, shape "
            f"{X_original.shape[:1]}, got shape {y_original.shape}."
        )
    if X.shape[1] != X_original.shape[1]:
        raise ValueError(
            f"`X_original` must have the features of `X`, {X.shape[1]} columns, got "
            f"{X_original.shape[1]}."
        )
    return BilevelProblem(
        outer=_FitOriginal(predict, y_original.size),
        inner=_FitTargets(predict, X.shape[0]),
        outer_data=(X_original, y_original),
        inner_data=(X, jnp.arange(X.shape[0])),
    )
