"""A trust region on the log-weights, as an optax transformation: steps without a step size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, Scalar

from .._geometry import Simplex


class TrustRegionState(NamedTuple):
    """The current radius and the outer value at the previous step."""

    radius: Float[Array, ""]
    value: Float[Array, ""]


def log_trust_region(
    radius: float = 1.0, shrink: float = 0.5, grow: float = 1.4
) -> optax.GradientTransformationExtraArgs:
    """Mirror steps on `Simplex` whose update of the log-weights is bounded by the radius.

        c     = g - <u, g>                           (the gradient, relative to the average row)
        delta = -r c / max_i |c_i|                   (|delta_i| <= r; normalising then shifts all
                                                      log-weights by the same constant, at most r)
        r+    = shrink * r                where the outer value rose in the last step,
                min(grow * r, radius)     where it fell

    There is no step size to choose: in one step of unit radius the ratio of any two weights changes
    by at most a factor e^2, whatever the scale of the losses or the number of rows. A constant that
    is added to `g` moves nothing on the simplex and changes nothing here.

    Args:
        radius: the first and largest radius, in units of log-weight.
        shrink: the factor after a rise of the outer value.
        grow: the factor after a fall. Where the inner solution is inexact, a rise may have causes
            other than the step, and a radius that never recovers would end such a run for good.
            Keep `grow^2 * shrink < 1`, as by default; otherwise a run may cycle through one rise
            and two falls for ever.

    Use it as the `outer_tx` of `DoubleLoop` with `geometry=Simplex()`. It needs the parameters and
    the extra argument `value`, which `DoubleLoop` passes. Cost: one pass over the weights. Source:
    ours.

    Raises:
        ValueError: `radius` <= 0, `shrink` outside of (0, 1), or `grow` < 1.

    >>> import jax.numpy as jnp
    >>> tx = log_trust_region(1.0)
    >>> u = jnp.array([0.5, 0.5])
    >>> update, _ = tx.update(jnp.array([3.0, 1.0]), tx.init(u), u, value=jnp.array(0.0))
    >>> update.tolist()
    [-1.0, 1.0]
    """
    if not radius > 0:
        raise ValueError(f"`radius` must be positive, got {radius}.")
    if not 0 < shrink < 1:
        raise ValueError(f"`shrink` must lie strictly between 0 and 1, got {shrink}.")

    if not grow >= 1:
        raise ValueError(f"`grow` must be at least 1, got {grow}.")

    def init(params: PyTree[Array]) -> TrustRegionState:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return TrustRegionState(jnp.asarray(radius, dtype), jnp.asarray(np.inf, dtype))

    def update(
        updates: PyTree[Array],
        state: TrustRegionState,
        params: PyTree[Array] | None = None,
        *,
        value: Scalar,
        **extra_args: Any,
    ) -> tuple[PyTree[Array], TrustRegionState]:
        centred = Simplex().tangent(params, updates)
        largest = optax.tree.norm(centred, ord=jnp.inf)
        first = jnp.asarray(radius, state.radius.dtype)
        factor = jnp.where(value > state.value, shrink, jnp.where(value < state.value, grow, 1.0))
        now = jnp.minimum(factor.astype(first.dtype) * state.radius, first)
        # Where every row pulls alike there is nothing to do, and nothing to divide by.
        scale = jnp.where(largest > 0, -now / jnp.where(largest > 0, largest, 1), 0)
        return optax.tree.scale(scale, centred), TrustRegionState(now, value)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
