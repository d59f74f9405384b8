"""The set U that contains the outer variable, and how to move in it."""

import abc
import math
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree, Scalar

from ._arrays import dot


class AbstractGeometry(eqx.Module):
    """A set U with a way to take a step and stay in it."""

    @abc.abstractmethod
    def retract(self, u: PyTree[Array], delta: PyTree[Array]) -> PyTree[Array]:
        """The point reached from `u` in U by the update `delta` (added, as optax's updates are)."""

    @abc.abstractmethod
    def project(self, u: PyTree[Array]) -> PyTree[Array]:
        """The Euclidean projection onto U, which serves to measure how far u is from stationary."""

    @abc.abstractmethod
    def magnitude(self, u: PyTree[Array], grad: PyTree[Array]) -> PyTree[Array]:
        """The sizes of the entries of a gradient, from which `"auto"` makes outer step sizes."""

    def measure(self, u: PyTree[Array], grad: PyTree[Array]) -> PyTree[Array]:
        """Deprecated: the old name of `magnitude`, until version 0.2."""
        warnings.warn("`measure` is called `magnitude` now.", DeprecationWarning, stacklevel=2)
        return self.magnitude(u, grad)


def outer_residual(geometry: AbstractGeometry, u: PyTree[Array], grad: PyTree[Array]) -> Scalar:
    """`||u - project(u - grad)||_2`: zero exactly at the first-order stationary points in U.

    It costs one projection, so `solve` computes it at trace points only.
    """
    return optax.tree.norm(optax.tree.sub(u, geometry.project(optax.tree.sub(u, grad))))


class Euclidean(AbstractGeometry):
    """All of space: `retract(u, d) = u + d`."""

    def retract(self, u, delta):
        """`u + delta`."""
        return optax.tree.add(u, delta)

    def project(self, u):
        """`u` itself."""
        return u

    def magnitude(self, u, grad):
        """`|grad|`, entry by entry."""
        return jax.tree.map(jnp.abs, grad)


class Box(AbstractGeometry):
    """`lower <= u <= upper`, entry by entry; `retract` adds and clips.

    Args:
        lower, upper: scalars or arrays that broadcast against every leaf; infinities are allowed,
            so that `Box(0.0, jnp.inf)` is the non-negative orthant.

    Raises:
        ValueError: some lower bound is above its upper bound (when both are concrete).
    """

    lower: Array = eqx.field(converter=jnp.asarray)
    upper: Array = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        if not any(isinstance(x, Tracer) for x in (self.lower, self.upper)) and bool(
            jnp.any(self.lower > self.upper)
        ):
            raise ValueError(
                f"`Box` needs lower <= upper everywhere, got lower={self.lower}, "
                f"upper={self.upper}."
            )

    def retract(self, u, delta):
        """`clip(u + delta, lower, upper)`."""
        return self.project(optax.tree.add(u, delta))

    def project(self, u):
        """`clip(u, lower, upper)`, in the dtype of `u`."""
        return jax.tree.map(
            lambda x: jnp.clip(x, self.lower.astype(x.dtype), self.upper.astype(x.dtype)), u
        )

    def magnitude(self, u, grad):
        """`|grad|`, entry by entry."""
        return jax.tree.map(jnp.abs, grad)


class Ball(AbstractGeometry):
    """The p-norm ball `||u - center||_p <= radius`, all leaves together; `retract` adds and projects.

    Args:
        radius: > 0.
        p: 1, 2 or infinity (`jnp.inf`).
        center: a pytree like `u`, or `None` for the origin.

    The projections are those of optax. Balls contain the perturbations of data poisoning, and serve
    for regularisation by a constraint.

    Raises:
        ValueError: `p` is another number, or `radius` is not positive (when it is concrete).
    """

    radius: Array = eqx.field(converter=jnp.asarray)
    p: float = eqx.field(default=2.0, converter=float)
    center: PyTree | None = None

    def __check_init__(self):
        if self.p not in _PROJECTIONS:
            raise ValueError(f"`Ball` needs p = 1, 2 or infinity, got {self.p}.")
        if not isinstance(self.radius, Tracer) and not bool(jnp.all(self.radius > 0)):
            raise ValueError(f"`Ball` needs radius > 0, got {self.radius}.")

    def retract(self, u, delta):
        """`project(u + delta)`."""
        return self.project(optax.tree.add(u, delta))

    def project(self, u):
        """The nearest point of the ball."""
        center = optax.tree.zeros_like(u) if self.center is None else self.center
        flat, unravel = ravel_pytree(optax.tree.sub(u, center))
        radius = self.radius.astype(flat.dtype)
        # A sum of squares may be infinite where the point is not: it would be sent to the center.
        fits = jnp.isfinite(jnp.sum(flat**2))
        scale = jnp.where(fits, 1, jnp.max(jnp.abs(flat), initial=0)).astype(flat.dtype)
        with jax.numpy_dtype_promotion("standard"):  # optax's l1 projection mixes dtypes
            inside = _PROJECTIONS[self.p](flat / scale, radius / scale) * scale
        return optax.tree.add(center, unravel(inside))

    def magnitude(self, u, grad):
        """`|grad|`, entry by entry, for p = infinity; otherwise its root mean square for all entries.

        A step that is scaled entry by entry and then projected as a whole stops at wrong points.
        """
        if self.p == math.inf:
            return jax.tree.map(jnp.abs, grad)
        mean_square = optax.tree.norm(grad, squared=True) / optax.tree.size(grad)
        return jax.tree.map(lambda g: jnp.full_like(g, jnp.sqrt(mean_square)), grad)


_PROJECTIONS = {
    1: optax.projections.projection_l1_ball,
    2: optax.projections.projection_l2_ball,
    math.inf: optax.projections.projection_linf_ball,
}


class Rowwise(AbstractGeometry):
    """`U = C x ... x C`: each entry along axis 0 lies in the set C, separately from the others.

    Args:
        geometry: the set C of one row, such as `Ball(radius, p)`, or `Simplex()` for soft labels.

    All leaves of u share axis 0, and a row is one entry along it, of every leaf. A projection onto
    a product is the product of the projections. The center or the bounds of `geometry` are the same
    for all rows.

    >>> import jax.numpy as jnp
    >>> inside = Rowwise(Ball(1.0)).project(jnp.array([[3.0, 4.0], [0.0, 0.5]]))
    >>> bool(jnp.allclose(inside, jnp.array([[0.6, 0.8], [0.0, 0.5]])))
    True
    """

    geometry: AbstractGeometry

    def retract(self, u, delta):
        """Row by row."""
        return jax.vmap(self.geometry.retract)(u, delta)

    def project(self, u):
        """Row by row."""
        return jax.vmap(self.geometry.project)(u)

    def magnitude(self, u, grad):
        """Row by row."""
        return jax.vmap(self.geometry.magnitude)(u, grad)


class Simplex(AbstractGeometry):
    """The probability simplex: the entries of `u`, all leaves together, are >= 0 and sum to 1.

    `retract` is the entropic mirror step

        log u+ = log u + delta - logsumexp(log u + delta)

    It is computed on the log-weights, so that no `delta` overflows. A mirror step never leaves the
    interior of the simplex, but a weight may become too small for its dtype. Below `edge`, 1e-31 in
    float32 and 1e-292 in float64, an entry of `u` therefore says how small its weight is:

        u_i = edge / (1 + log edge - log w_i)      where the weight w_i is below `edge`

    Such entries count for nothing in any sum, and `u` alone holds all log-weights, down to -8e6 in
    float32 and -4e15 in float64; `log_weights` returns them. Steps add up however small a weight has
    become, and a row comes back exactly when its steps bring it back. An entry that is exactly 0
    stays 0, as in exact arithmetic. (In float16, whose range is too short for this, the smallest
    weight is the smallest normal number.)

    Source: Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization",
    section 2.2 [ivanova2023][]; the projection: Michelot (1986), "A finite algorithm for finding
    the projection of a point onto the canonical simplex of R^n" [michelot1986][].
    """

    def retract(self, u, delta):
        """`u * exp(delta)`, normalised, on the log-weights."""
        flat, unravel = ravel_pytree(u)
        step, _ = ravel_pytree(delta)
        # jax.nn.log_softmax subtracts the maximum first; log(0) = -inf passes through it as is.
        logs = jax.nn.log_softmax(self.log_weights(flat) + step)
        edge = _edge(flat.dtype)
        depth = jnp.maximum(math.log(edge) - logs, 0)
        weights = jnp.where(depth > 0, edge / (1 + depth), jnp.exp(logs))
        tiny = jnp.finfo(flat.dtype).tiny
        return unravel(jnp.where(flat > 0, jnp.maximum(weights, tiny), 0))

    def log_weights(self, u):
        """The logarithms of the weights, entry by entry; -inf for an entry that is exactly 0."""

        def logs(x: Array) -> Array:
            edge = _edge(x.dtype)
            deep = math.log(edge) + 1 - edge / jnp.where(x > 0, x, edge)
            return jnp.where((x > 0) & (x < edge), deep, jnp.log(x))

        return jax.tree.map(logs, u)

    def project(self, u):
        """The Euclidean projection: `max(u - tau, 0)`, with `tau` such that the entries sum to 1.

        `tau` is the root of a convex, piecewise linear function. Newton's method is exact on each
        piece and finds the root from below in finitely many steps, each of which is one pass over
        the entries. Sorting 8000 entries takes twenty times as long.
        """
        flat, unravel = ravel_pytree(u)
        flat = flat - jnp.max(flat)  # which moves tau alike, so that now -1 <= tau < 0

        def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            tau, _, count = carry
            active = flat > tau
            tau = (jnp.sum(jnp.where(active, flat, 0)) - 1) / jnp.sum(active, dtype=flat.dtype)
            return tau, count, jnp.sum(flat > tau)

        start = (-jnp.ones((), flat.dtype), jnp.full((), flat.size + 1), jnp.sum(flat > -1))
        tau, _, _ = jax.lax.while_loop(lambda c: c[2] < c[1], newton, start)
        return unravel(jnp.maximum(flat - tau, 0))

    def tangent(self, u, grad):
        """`grad - <u, grad>`: how much more each row pulls than the average row does."""
        mean = dot(u, grad)
        return jax.tree.map(lambda g: g - mean, grad)

    def magnitude(self, u, grad):
        """The largest `|tangent(u, grad)|`, the same for all entries: the steps stay mirror steps."""
        largest = optax.tree.norm(self.tangent(u, grad), ord=jnp.inf)
        return jax.tree.map(lambda g: jnp.full_like(g, largest), grad)


def _edge(dtype: DTypeLike) -> float:
    """Below this, an entry of a point of the simplex is no weight but says how small the weight is."""
    finfo = jnp.finfo(dtype)
    tiny, eps = float(finfo.tiny), float(finfo.eps)
    return tiny / eps if tiny < eps**3 else tiny
