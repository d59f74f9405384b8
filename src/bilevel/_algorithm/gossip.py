"""Decentralized problems: agents on a graph, who exchange their variables with neighbours only."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree, Scalar

from .._geometry import Rowwise
from .._problem import BilevelProblem, Objective, Problem
from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_setting
from .base import AbstractAlgorithm, count
from .directions import descend, joint_directions
from .turn import init_state, open_turn


def on_network(problem: BilevelProblem, num_agents: int) -> BilevelProblem:
    """The problem in which every agent has variables of its own, and rows of its own.

        F(u, w) = mean_i F_i(u_i, w_i),   f(u, w) = mean_i f_i(u_i, w_i)

    Args:
        problem: its objectives are those of one agent. All leaves of its data have the rows as axis 0
            and the agents as axis 1, so that a batch of rows is one of every agent.
        num_agents: the length of axis 1.

    Returns:
        A problem for `GossipSOBA`, whose variables have the agents as axis 0 of every leaf: start it
        with `replicate(u0, num_agents)`. Its set U is that of `problem` for each agent.

    Raises:
        ValueError: a leaf of the data has another number of agents.
    """
    for name, data in (("outer_data", problem.outer_data), ("inner_data", problem.inner_data)):
        for leaf in jax.tree.leaves(data):
            if leaf.ndim < 2 or leaf.shape[1] != num_agents:
                raise ValueError(
                    f"`{name}` needs the rows as axis 0 and the {num_agents} agents as axis 1 of "
                    f"every leaf, got the shape {leaf.shape}."
                )
    return BilevelProblem(
        _Mean(problem.outer),
        _Mean(problem.inner),
        problem.outer_data,
        problem.inner_data,
        Rowwise(problem.geometry),
    )


class _Mean(eqx.Module):
    objective: Objective

    def __call__(self, u: PyTree, w: PyTree, batch: PyTree) -> Scalar:
        return jnp.mean(jax.vmap(self.objective, in_axes=(0, 0, 1))(u, w, batch))


def _is_mean_over_agents(problem: Problem) -> bool:
    """Whether it was made by `on_network`, also within what wraps objectives."""
    objectives: Any = (problem.outer, getattr(problem, "inner", None))
    leaves = jax.tree.leaves(objectives, is_leaf=lambda x: isinstance(x, _Mean))
    return any(isinstance(x, _Mean) for x in leaves)


def replicate(tree: PyTree, num_agents: int) -> PyTree[Array]:
    """The same variable for each agent, with the agents as axis 0."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_agents, *jnp.shape(x))), tree)


class GossipSOBA(AbstractAlgorithm):
    """SOBA on a network: each agent steps along its own directions and averages with its neighbours.

        w_i+ = sum_j W_ij (w_j - inner_step grad_w f_j)
        v_i+ = sum_j W_ij (v_j - linear_step (H_j v_j - grad_w F_j))
        u_i+ = sum_j W_ij retract(u_j, -outer_step (grad_u F_j - (d2_uw f_j)^T v_j))

    with all terms of agent j at its own `(u_j, w_j, v_j)`. The agents agree on v as well: the mean of
    the agents' own hypergradients is not the hypergradient.

    Args:
        mixing: W, symmetric and non-negative, with rows that sum to 1; `W_ij = 0` where i and j are no
            neighbours. With `1 / n` everywhere the method is `SOBA` on the mean of the problems.
        inner_step, linear_step, outer_step: as in `SOBA`, for the problem of one agent.
        inner_sampler, outer_sampler: where batches of rows come from.

    The problem is made by `on_network`, and all variables have the agents as axis 0. Let `lambda` be
    the second largest modulus of the eigenvalues of W. Without gradients, disagreement falls by
    `lambda` per step. With constant steps it settles at the order of `step / (1 - lambda)` times how
    much the agents' directions differ, and the point that they settle at is off by the same order.

    Cost per step: that of `SOBA` for each agent, and three exchanges with the neighbours, of the
    sizes of u, w and v. This is a simulation: one machine computes what the agents would compute; axis
    0 may be sharded.

    Raises:
        ValueError: `mixing` is no such matrix or has lambda = 1 (agents that are not connected, or
            that swap their variables for ever), a step size is `"auto"`, the problem was not made by
            `on_network`, or a variable has another number of agents.

    Source: ours, the gossip form of SOBA. Decentralized bilevel optimization by gossip is due to Yang,
    Zhang and Wang (2022), "Decentralized gossip-based stochastic bilevel optimization over
    communication networks" [yang2022][], whose estimate of the inverse Hessian is another one.
    """

    mixing: Float[Array, "agents agents"] = eqx.field(converter=jnp.asarray)
    inner_step: StepSize = eqx.field(converter=as_setting)
    linear_step: StepSize = eqx.field(converter=as_setting)
    outer_step: StepSize = eqx.field(converter=as_setting)
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        steps = {
            "inner_step": self.inner_step,
            "linear_step": self.linear_step,
            "outer_step": self.outer_step,
        }
        for name, step in steps.items():
            if isinstance(step, str):
                raise ValueError(
                    f"`GossipSOBA` needs a number or a schedule as {name}, got {step!r}: what 'auto' "
                    "learns, agents would have to agree on."
                )
        if isinstance(self.mixing, Tracer):
            return
        matrix = np.asarray(self.mixing)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"`mixing` must be a square matrix, got the shape {matrix.shape}.")
        if not np.isfinite(matrix).all():
            raise ValueError("`mixing` must be finite, and an entry is NaN or infinite.")
        close = 1e-6
        if np.abs(matrix - matrix.T).max() > close or np.abs(matrix.sum(1) - 1).max() > close:
            raise ValueError(
                "`mixing` must be symmetric with rows that sum to 1; the largest asymmetry is "
                f"{np.abs(matrix - matrix.T).max():.2g}, and the sums are {matrix.sum(1)}."
            )
        if matrix.min() < 0:
            raise ValueError(f"`mixing` must be non-negative, its least entry is {matrix.min()}.")
        moduli = np.sort(np.abs(np.linalg.eigvalsh(matrix)))[::-1]
        if len(moduli) > 1 and moduli[1] > 1 - close:
            raise ValueError(
                "`mixing` never brings all agents together: the second largest modulus of its "
                f"eigenvalues is {moduli[1]:.7g}. Connect every agent with every other one over some "
                "path, and let agents keep a part of their own (a diagonal above 0)."
            )

    def init(self, problem, u0, w0, key):
        """`v = 0`."""
        agents = self.mixing.shape[0]
        if not _is_mean_over_agents(problem):
            raise ValueError(
                "`GossipSOBA` needs a problem whose variables have the agents as axis 0: make it with "
                "`on_network(problem, num_agents)`. Of another one it would mix the entries."
            )
        for name, tree in (("u0", u0), ("w0", w0)):
            for leaf in jax.tree.leaves(tree):
                if jnp.shape(leaf)[:1] != (agents,):
                    raise ValueError(
                        f"`{name}` needs the {agents} agents of `mixing` as axis 0 of every leaf, got "
                        f"the shape {jnp.shape(leaf)}; `replicate({name}, {agents})` starts all of "
                        "them at one point."
                    )
        return init_state(self, problem, u0, w0, key, aux=optax.tree.zeros_like(w0))

    def step(self, problem, state):
        """One joint step of all agents, and one exchange of each variable."""
        turn, u, w, v = open_turn(self, problem, state), state.u, state.w, state.aux
        d = joint_directions(turn.outer(u, w), turn.inner(u, w, v))
        # The objectives are means over agents, so the directions of one are n times as large.
        one = optax.tree.scale(self.mixing.shape[0], (d.u, d.w, d.v))
        v = self.mix(descend(v, turn.linear_step, one[2]))
        w = self.mix(descend(w, turn.inner_step, one[1]))
        move = turn.move(one[0])
        move = move._replace(u=self.mix(move.u))
        return turn.close(d, w=w, aux=v, calls=count(1, 1, 1, 1), move=move)

    def mix(self, x: PyTree[Array]) -> PyTree[Array]:
        """`x_i <- sum_j W_ij x_j`."""
        return jax.tree.map(lambda x: jnp.tensordot(self.mixing.astype(x.dtype), x, axes=1), x)
