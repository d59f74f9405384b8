"""Penalties on the outer variable against sparse weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

from .._arrays import dot
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
    """The problem with the outer objective `F(u, w) + strength * penalty(u)`.

    Args:
        problem: the problem.
        penalty: `u -> scalar`, differentiable. `kl_to_uniform` and `l2_to_uniform` are penalties
            for weights on the simplex.
        strength: the factor of the penalty. It is data: a new value compiles nothing.

    The minimisers of the new problem are other points than those of the old one. Source: ours.
    """
    outer = _Penalised(problem.outer, penalty, jnp.asarray(strength, float))
    return dataclasses.replace(problem, outer=outer)


def kl_to_uniform(u: Float[Array, " rows"]) -> Scalar:
    """The divergence from uniform weights `sum_i u_i log(n u_i)`, which is log n minus the entropy.

    It is 0 for uniform weights and log n at a vertex of the simplex. The gradient `log(n u_i) + 1`
    grows without bound as a weight vanishes.
    """
    return jnp.sum(jax.scipy.special.xlogy(u, u * u.size))


def l2_to_uniform(u: Float[Array, " rows"]) -> Scalar:
    """`n sum_i u_i^2 - 1`, which is `n / ESS - 1` with the effective sample size ESS.

    It is 0 for uniform weights and n - 1 at a vertex of the simplex.
    """
    return u.size * dot(u, u) - 1
