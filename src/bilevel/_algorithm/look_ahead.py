"""Warm and cold starts as Vicol et al. (2022) print them [vicol2022][]: w is solved at the new u."""

import dataclasses

import jax
import jax.numpy as jnp

from .base import AbstractAlgorithm, count, open_streams
from .double_loop import DoubleLoop


class LookAhead(AbstractAlgorithm):
    """A double loop that solves the inner problem once more, at the new outer variable.

        w^  = inner solver on f(u_s, .), from w_s (warm) or from w_0 (cold)
        g_s = hypergradient estimate at (u_s, w^)
        u_{s+1} = retract(u_s, outer_tx(g_s))
        w_{s+1} = inner solver on f(u_{s+1}, .), from w_s (warm) or from w_0 (cold)

    `DoubleLoop` keeps w^ as its w_{s+1}. Here w^ only serves the hypergradient, which therefore looks
    one inner solve ahead of the w that is kept, and the w that a run ends with belongs to its last u.
    With T gradient steps per solve, an equilibrium of either method is one of the other.

    Args:
        loop: the double loop. `warm_start=True` makes this Algorithm 2 of the paper, and
            `warm_start=False` its Algorithm 1. Nothing is remembered between solves but w.

    Cost per step: a step of `loop` and one inner solve more.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", Algorithms 1 and 2 [vicol2022][].
    """

    loop: DoubleLoop

    def init(self, problem, u0, w0, key):
        """As `loop`."""
        return self.loop.init(problem, u0, w0, key)

    def step(self, problem, state):
        """A step of `loop`, and an inner solve at the new u from where the step's own one began."""
        loop = self.loop
        following, info = loop.step(problem, state)
        u, w0 = following.u, state.w if loop.warm_start else state.aux.w0
        streams = open_streams(problem, loop.outer_sampler, loop.inner_sampler, following.samplers)
        fresh = loop.inner.init(problem, u, w0)
        w, _, stream, stats = loop.inner.solve(problem, u, w0, fresh, streams.inner)
        more = count(stats.outer_calls, stats.calls, stats.products)
        calls, all_calls = (jax.tree.map(jnp.add, x, more) for x in (info.calls, following.calls))
        samplers = following.samplers._replace(inner=stream.state)
        following = dataclasses.replace(following, w=w, samplers=samplers, calls=all_calls)
        return following, dataclasses.replace(info, calls=calls)
