"""The set U that the outer variable lives in, and how to move in it."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree, Scalar


class AbstractGeometry(eqx.Module):
    """A set U with a way to take a step and stay in it."""

    @abc.abstractmethod
    def retract(self, u: PyTree[Array], delta: PyTree[Array]) -> PyTree[Array]:
        """The point reached from `u` in U by the update `delta` (added, as optax's updates are)."""

    @abc.abstractmethod
    def project(self, u: PyTree[Array]) -> PyTree[Array]:
        """The Euclidean projection onto U; it serves to measure, not to move."""


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


class Simplex(AbstractGeometry):
    """The probability simplex: the entries of `u`, all leaves together, are >= 0 and sum to 1.

    `retract` is the entropic mirror step (Ivanova & Ablin, section 2.2)

        log u+ = log u + delta - logsumexp(log u + delta)

    computed on the log-weights, so that no `delta`, however large, overflows. A mirror step never
    leaves the interior, so an entry that would underflow is kept at the smallest normal number of
    its dtype (1.2e-38 in float32; all of them together do not change the sum by a rounding error)
    and can grow again later; an entry that is exactly 0 stays 0, as it does in exact arithmetic.
    """

    def retract(self, u, delta):
        """`u * exp(delta)`, normalised, on the log-weights."""
        flat, unravel = ravel_pytree(u)
        step, _ = ravel_pytree(delta)
        # jax.nn.log_softmax subtracts the maximum first; log(0) = -inf passes through it as is.
        weights = jnp.exp(jax.nn.log_softmax(jnp.log(flat) + step))
        tiny = jnp.finfo(flat.dtype).tiny
        return unravel(jnp.where(flat > 0, jnp.maximum(weights, tiny), 0))

    def project(self, u):
        """The Euclidean projection: `max(u - tau, 0)`, with `tau` such that the entries sum to 1.

        `tau` is the root of a convex, piecewise linear function. Newton's method, which is exact
        on a piece, finds it from below in finitely many steps (Michelot 1986), each a pass over
        the entries, where a sort of 8000 takes twenty times as long.
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
