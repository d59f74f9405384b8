"""Penalties on the outer variable against sparse weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

from .._problem import BilevelProblem


class _Penalised(eqx.Module):
    outer: Callable[[PyTree, PyTree, Any], Scalar]
    penalty: Callable[[PyTree], Scalar]
    strength: Array

    def __call__(self, u: PyTree, w: PyTree, batch: Any) -> Scalar:
        value = self.outer(u, w, batch)
        return value + self.strength.astype(value.dtype) * self.penalty(u)


def penalised(
    problem: BilevelProblem, penalty: Callable[[PyTree], Scalar], strength: ScalarLike
) -> BilevelProblem:
    """The problem with `F(u, w) + strength * penalty(u)` as its outer objective.

    `kl_to_uniform` and `l2_to_uniform` are penalties for weights on the simplex.
    """
    outer = _Penalised(problem.outer, penalty, jnp.asarray(strength, float))
    return dataclasses.replace(problem, outer=outer)


def kl_to_uniform(u: Float[Array, " rows"]) -> Scalar:
    """`sum_i u_i log(n u_i)`: log n minus the entropy; 0 for uniform weights, log n at a vertex.

    Its gradient, `log(n u_i) + 1`, grows without bound as a weight vanishes.
    """
    return jnp.sum(jax.scipy.special.xlogy(u, u * u.size))


def l2_to_uniform(u: Float[Array, " rows"]) -> Scalar:
    """`n sum_i u_i^2 - 1`: 0 for uniform weights, n - 1 at a vertex; n / ESS - 1 in between."""
    return u.size * jnp.vdot(u, u) - 1
