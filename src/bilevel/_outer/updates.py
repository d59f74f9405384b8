"""Updates of weights on the simplex that are bounded or pulled: optax transformations."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._geometry import Simplex


def limit_log_step(radius: float) -> optax.GradientTransformation:
    """Updates of weights on the simplex, cut so that no log-weight moves by more than `radius`.

        c     = delta - <u, delta>                      (relative to the average row)
        delta = c min(1, radius / max_i |c_i|)

    The update keeps its direction. Without a bound, a step size that is too large at the start, or
    for a gradient that one dominating row makes large, can decide a run in one step.
    `log_trust_region` always moves by its radius and needs no step size; this transformation is
    only a bound. Source: ours.

    Args:
        radius: > 0, in units of log-weight per step.

    >>> import jax.numpy as jnp
    >>> tx, u = limit_log_step(0.1), jnp.array([0.5, 0.5])
    >>> [round(float(x), 4) for x in tx.update(jnp.array([3.0, 1.0]), tx.init(u), u)[0]]
    [0.1, -0.1]
    """
    if not radius > 0:
        raise ValueError(f"`radius` must be positive, got {radius}.")

    def update(delta: PyTree[Array], u: PyTree[Array] | None) -> PyTree[Array]:
        c = Simplex().tangent(u, delta)
        largest = optax.tree.norm(c, ord=jnp.inf)
        return optax.tree.scale(jnp.where(largest > radius, radius / largest, 1), c)

    return optax.stateless(update)


def kl_pull(
    strength: float, reference: PyTree[Array] | None = None
) -> optax.GradientTransformation:
    """Steps on the simplex that end with a proximal step of `strength * KL(u || reference)`.

        delta = (delta + s (log reference - log u)) / (1 + s)

    With v the point that the update leads to, the new point is
    `argmin KL(. || v) + s KL(. || reference)`. After a mirror step of size eta, this is one
    proximal step on `Phi + (s / eta) KL(. || reference)`, and it is stable for any s. The weights
    settle at `reference * exp(-(eta / s) grad Phi)`, up to a factor, which bounds how sparse they
    become. Source: ours.

    Args:
        strength: s > 0, the strength per step.
        reference: a point of the simplex like `u`, without zeros; `None` means uniform weights.
    """
    if not strength > 0:
        raise ValueError(f"`strength` must be positive, got {strength}.")

    def update(delta: PyTree[Array], u: PyTree[Array] | None) -> PyTree[Array]:
        log_u = Simplex().log_weights(u)
        # A constant that all rows share does not matter.
        target = optax.tree.zeros_like(u) if reference is None else jax.tree.map(jnp.log, reference)
        pull = optax.tree.scale(strength, optax.tree.sub(target, log_u))
        return optax.tree.scale(1 / (1 + strength), optax.tree.add(delta, pull))

    return optax.stateless(update)
