"""SABA: SOBA with variance reduction by SAGA.

Dagréou, Ablin, Vaiter and Moreau (2022) [dagreou2022][].
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .._sampler import Blocks
from .._settings import StepSize, as_setting
from .base import AbstractAlgorithm, as_variables, count
from .directions import (
    descend,
    first_table,
    inner_terms,
    joint_directions,
    outer_terms,
    saga,
)
from .turn import init_state, open_turn


class SABA(AbstractAlgorithm):
    """SOBA whose five sums over the data are each estimated by SAGA.

        S[g] = g_i(z) - g_i(z_i) + mean_j g_j(z_j),   z_i where block i was last seen
        d_w = S[grad_w f],   d_v = S[H v] - S[grad_w F],   d_u = S[grad_u F] - S[(d2_uw f)^T v]
        w+ = w - inner_step d_w,   v+ = v - linear_step d_v,   u+ = retract(u, -outer_step d_u)

    Dagréou, Ablin, Vaiter and Moreau (2022), "A framework for bilevel optimization that enables
    stochastic and global variance reduction algorithms", Section 3.2 [dagreou2022][]. The variance
    vanishes at the solution, so with constant steps the method converges as gradient descent does,
    and linearly if Phi is Polyak-Lojasiewicz (their Theorem 4).

    Args:
        inner_step, linear_step, outer_step: numbers, or schedules of the number of steps made; as in
            `SOBA`.
        inner_sampler, outer_sampler: `Blocks`, which say which block a batch is.

    Memory: two vectors like w and one like u for each inner block, and one of each for each outer
    block. The mixed product is kept as a vector like u even if few of its entries are not zero. The
    start costs one gradient of every block, and a step costs as much as one of `SOBA`.

    Raises:
        TypeError: a sampler is not `Blocks`.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    inner_sampler: Blocks = eqx.field(kw_only=True)
    outer_sampler: Blocks = eqx.field(kw_only=True)

    def __check_init__(self):
        samplers = {"inner_sampler": self.inner_sampler, "outer_sampler": self.outer_sampler}
        for name, sampler in samplers.items():
            if not isinstance(sampler, Blocks):
                raise TypeError(
                    f"`SABA` keeps the last gradient of every block, so its `{name}` must be "
                    f"`Blocks(batch_size)`, got `{type(sampler).__name__}`."
                )

    def init(self, problem, u0, w0, key):
        """`v = 0`, and the gradients of all blocks at the start."""
        u0, w0 = as_variables(u0, w0)
        v = optax.tree.zeros_like(w0)
        state = init_state(self, problem, u0, w0, key, aux=v, variance_reduced=True)
        u, w, v, samplers = state.u, state.w, state.aux, state.samplers
        outers = self.outer_sampler.map(
            lambda batch: outer_terms(problem, u, w, batch), problem.outer_data
        )
        inners = self.inner_sampler.map(
            lambda batch: inner_terms(problem, u, w, v, batch), problem.inner_data
        )
        tables = (
            first_table(outers, _next(self.outer_sampler, problem.outer_data, samplers.outer)),
            first_table(inners, _next(self.inner_sampler, problem.inner_data, samplers.inner)),
        )
        seen = count(len(outers.value), len(jax.tree.leaves(inners)[0]))
        calls = jax.tree.map(jnp.add, state.calls, seen)
        return dataclasses.replace(state, samplers=samplers._replace(tables=tables), calls=calls)

    def step(self, problem, state):
        """One joint step."""
        turn, u, w, v = open_turn(self, problem, state), state.u, state.w, state.aux
        following, (outer_table, inner_table) = turn.samplers, state.samplers.tables
        next_outer = _next(self.outer_sampler, problem.outer_data, following.outer)
        next_inner = _next(self.inner_sampler, problem.inner_data, following.inner)

        outer, outer_table = saga(outer_table, turn.outer(u, w), next_outer)
        inner, inner_table = saga(inner_table, turn.inner(u, w, v), next_inner)
        d = joint_directions(outer, inner)
        v = descend(v, turn.linear_step, d.v)
        w = descend(w, turn.inner_step, d.w)
        kept = following._replace(tables=(outer_table, inner_table))
        return turn.close(d, w=w, aux=v, calls=count(1, 1, 1, 1), samplers=kept)


def _next(sampler: Blocks, data: Any, state: Any) -> Int[Array, ""]:
    """The block that is drawn next."""
    return sampler.block(sampler.draw(data, state)[0])
