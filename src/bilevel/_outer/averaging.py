"""The average of the outer iterates."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._algorithm.base import AbstractAlgorithm, State


class _Average(NamedTuple):
    u: PyTree[Array]
    aux: Any


class IterateAveraging(AbstractAlgorithm):
    """An algorithm that also keeps the average of its outer iterates.

        a_{k+1} = a_k + (u_{k+1} - a_k) / max(k + 1 - start, 1)

    Polyak and Juditsky (1992), "Acceleration of stochastic approximation by averaging"
    [polyak1992][]. The run itself is unchanged, and so is `solution.u`;
    `IterateAveraging.average(solution.state)` is the mean of the iterates after the first `start`.
    If weights wander from row to row, or oscillate, their average is far less sparse than any of
    them.

    Args:
        algorithm: any.
        start: how many iterates to leave out.
    """

    algorithm: AbstractAlgorithm
    start: int = 0

    def init(self, problem, u0, w0, key):
        """The average begins at `u0`."""
        state = self.algorithm.init(problem, u0, w0, key)
        return dataclasses.replace(state, aux=_Average(state.u, state.aux))

    def step(self, problem, state):
        """A step of the algorithm, and the average brought up to date."""
        inner = dataclasses.replace(state, aux=state.aux.aux)
        following, info = self.algorithm.step(problem, inner)
        count = jnp.maximum(following.step - self.start, 1)
        average = jax.tree.map(
            lambda a, u: a + (u - a) / count.astype(u.dtype), state.aux.u, following.u
        )
        return dataclasses.replace(following, aux=_Average(average, following.aux)), info

    @staticmethod
    def average(state: State) -> PyTree[Array]:
        """The average in a state of such a run."""
        return state.aux.u
