"""SABA: SOBA with variance reduction by SAGA (Dagreou, Ablin, Vaiter and Moreau 2022)."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._sampler import Blocks
from .auto_steps import StepSize, as_setting, at, follow, move_outer
from .base import (
    AbstractAlgorithm,
    SamplerStates,
    Table,
    advance,
    count,
    start,
)
from .directions import (
    InnerTerms,
    OuterTerms,
    begin,
    descend,
    inner_terms,
    joint_directions,
    make_info,
    outer_terms,
    saga,
    streams_of,
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
    The cross derivative is kept as a vector like u even where it has few entries that are not zero.
    The start costs one gradient of every block; a step as one of `SOBA`.

    Raises:
        TypeError: a sampler is not `Blocks`.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    linear_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
    inner_sampler: Blocks = eqx.field(kw_only=True)
    outer_sampler: Blocks = eqx.field(kw_only=True)

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
        begun = begin(self, problem, u0, w0, key, variance_reduced=True)
        v0 = optax.tree.zeros_like(w0)

        def outer(batch: Any) -> OuterTerms:
            return outer_terms(problem, u0, w0, batch)

        def inner(batch: Any) -> InnerTerms:
            return inner_terms(problem, u0, w0, v0, batch)

        outers = jax.lax.map(outer, self.outer_sampler.split(problem.outer_data))
        inners = jax.lax.map(inner, self.inner_sampler.split(problem.inner_data))
        calls = count(len(outers.value), len(jax.tree.leaves(inners)[0]), 0, 0)
        outer_first = _draw(self.outer_sampler, problem.outer_data, begun.samplers.outer)
        inner_first = _draw(self.inner_sampler, problem.inner_data, begun.samplers.inner)
        tables = _table(outers, outer_first.block), _table(inners, inner_first.block)
        return start(begun, _Aux(v0, *tables, begun.samplers), calls)

    def step(self, problem, state):
        """One joint step."""
        u, w, aux = state.u, state.w, state.aux
        state = follow(problem, state, streams_of(self, problem, aux.samplers).inner)
        outer_draw = _draw(self.outer_sampler, problem.outer_data, aux.samplers.outer)
        inner_draw = _draw(self.inner_sampler, problem.inner_data, aux.samplers.inner)

        outer = outer_terms(problem, u, w, outer_draw.data)
        inner = inner_terms(problem, u, w, aux.v, inner_draw.data)
        outer, outer_table = saga(aux.outer, outer_draw.block, outer, outer_draw.following)
        inner, inner_table = saga(aux.inner, inner_draw.block, inner, inner_draw.following)
        d = joint_directions(outer, inner)

        inner_step = at(self.inner_step, state.step, state.control)
        v = descend(aux.v, at(self.linear_step, state.step, state.control), d.v)
        aux = _Aux(v, outer_table, inner_table, SamplerStates(outer_draw.state, inner_draw.state))
        move = move_outer(self.outer_step, problem, state, d.u)
        info = make_info(outer, d, count(1, 1, 1, 1), move.step / inner_step)
        w = descend(w, inner_step, d.w)
        return advance(state, move, w, aux, info.calls), info


class _Draw(NamedTuple):
    data: Any
    block: Int[Array, ""]
    state: Any
    following: Int[Array, ""]


def _draw(sampler: Blocks, data: Any, state: Any) -> _Draw:
    """A batch, which block it is, and which comes after it."""
    batch, state = sampler.draw(data, state)
    after, _ = sampler.draw(data, state)
    return _Draw(batch.data, sampler.block(batch), state, sampler.block(after))


def _table(values: Any, first: Int[Array, ""]) -> Table:
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), values)
    return Table(values, mean, jax.tree.map(lambda x: x[first], values))
