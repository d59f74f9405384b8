"""SABA: SOBA with variance reduction by SAGA (Dagreou, Ablin, Vaiter and Moreau 2022)."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._linear.base import as_schedule
from .._sampler import Blocks
from .base import (
    AbstractAlgorithm,
    SamplerStates,
    StepSize,
    advance,
    count,
    start,
)
from .directions import (
    InnerTerms,
    OuterTerms,
    Table,
    at,
    begin,
    descend,
    inner_terms,
    joint_directions,
    make_info,
    move_outer,
    outer_terms,
    saga,
)


class _Aux(NamedTuple):
    v: PyTree[Array]
    outer: Table
    inner: Table
    samplers: SamplerStates


class SABA(AbstractAlgorithm):
    """SOBA whose five sums over the data are each estimated by SAGA.

        S[g] = g_i(z) - g_i(z_i) + mean_j g_j(z_j),   z_i where block i was last seen
        d_w = S[grad_w f],   d_v = S[H v] - S[grad_w F],   d_u = S[grad_u F] - S[(d2_uw f)^T v]
        w+ = w - inner_step d_w,   v+ = v - linear_step d_v,   u+ = retract(u, -outer_step d_u)

    (Dagreou et al. 2022, Section 3.2.) The variance vanishes at the solution, so with constant steps
    it converges as gradient descent does, linearly on a Polyak-Lojasiewicz Phi (their Theorem 4).

    Args:
        inner_step, linear_step, outer_step: floats, or schedules of the number of steps made; as in
            `SOBA`.
        inner_sampler, outer_sampler: `Blocks`, which say which block a batch is.

    Memory: two vectors like w and one like u for each inner block, one of each for each outer block.
    The start costs one gradient of every block; a step as one of `SOBA`.

    Raises:
        TypeError: a sampler is not `Blocks`.
    """

    inner_step: StepSize = eqx.field(converter=as_schedule)
    linear_step: StepSize = eqx.field(converter=as_schedule)
    outer_step: StepSize = eqx.field(converter=as_schedule)
    inner_sampler: Blocks
    outer_sampler: Blocks

    def __check_init__(self):
        for name in ("inner_sampler", "outer_sampler"):
            sampler = getattr(self, name)
            if not isinstance(sampler, Blocks):
                raise TypeError(
                    f"`SABA` keeps the last gradient of every block, so its `{name}` must be "
                    f"`Blocks(batch_size)`, got `{type(sampler).__name__}`."
                )

    def init(self, problem, u0, w0, key):
        """`v = 0`, and the gradients of all blocks at the start."""
        samplers = begin(self, problem, u0, w0, key)
        v0 = optax.tree.zeros_like(w0)

        def outer(batch: Any) -> OuterTerms:
            return outer_terms(problem, u0, w0, batch)

        def inner(batch: Any) -> InnerTerms:
            return inner_terms(problem, u0, w0, v0, batch)

        outers = jax.lax.map(outer, self.outer_sampler.split(problem.outer_data))
        inners = jax.lax.map(inner, self.inner_sampler.split(problem.inner_data))
        calls = count(len(outers.value), len(jax.tree.leaves(inners)[0]), 0, 0)
        return start(u0, w0, key, _Aux(v0, _table(outers), _table(inners), samplers), calls)

    def step(self, problem, state):
        """One joint step."""
        u, w, aux = state.u, state.w, state.aux
        outer_batch, outer_state = self.outer_sampler.draw(problem.outer_data, aux.samplers.outer)
        inner_batch, inner_state = self.inner_sampler.draw(problem.inner_data, aux.samplers.inner)

        outer = outer_terms(problem, u, w, outer_batch.data)
        inner = inner_terms(problem, u, w, aux.v, inner_batch.data)
        outer, outer_table = saga(aux.outer, self.outer_sampler.block(outer_batch), outer)
        inner, inner_table = saga(aux.inner, self.inner_sampler.block(inner_batch), inner)
        d = joint_directions(outer, inner)

        inner_step, outer_step = at(self.inner_step, state.step), at(self.outer_step, state.step)
        v = descend(aux.v, at(self.linear_step, state.step), d.v)
        aux = _Aux(v, outer_table, inner_table, SamplerStates(outer_state, inner_state))
        info = make_info(outer, d, count(1, 1, 1, 1), outer_step / inner_step)
        u_next = move_outer(problem, u, outer_step, d.u)
        return advance(state, u_next, descend(w, inner_step, d.w), aux, info.calls), info


def _table(values: Any) -> Table:
    return Table(values, jax.tree.map(lambda x: jnp.mean(x, axis=0), values))
