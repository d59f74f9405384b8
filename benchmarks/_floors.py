"""The arithmetic of the methods written by hand, on the logistic regression of `_logistic.py`.

Each floor takes the start and two functions that draw batches, and returns its step and what the step
carries. The floors know the gradients of this problem as formulas, draw the same batches as the
library and make the same matrix products: every method at two points takes both at once, as one
product of two rows. `step_time.py` compares the library with them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from _logistic import (
    DELTA,
    DIM,
    DUAL,
    ETA,
    GAMMA,
    MULTIPLIER,
    PERIOD,
    RADIUS,
    RHO,
    SIGMA,
    Draw,
    K,
    T,
    inner_gradient,
    inner_losses,
    inner_terms,
    outer_gradient,
    product,
    row,
    series,
)

import bilevel


def soba(start, inner, outer):
    def step(z, draws):
        (u, w, v), (oo, ii) = z, draws
        ob, oo = outer(oo)
        ib, ii = inner(ii)
        grad, hv, mixed = inner_terms(u, w, v, ib)
        d_v = hv - outer_gradient(w, ob)
        return (u + GAMMA * mixed, w - RHO * grad, v - SIGMA * d_v), (oo, ii)

    return step, (start, start, jnp.zeros_like(start))


def saba(start, inner, outer):
    """The tables are read after they were written, as in the library: XLA copies them otherwise."""

    def first(table_of, draw):
        rows = jax.tree.map(
            lambda x: x.reshape(-1, draw.sampler.batch_size, *x.shape[1:]), draw.rows
        )
        return jax.lax.map(table_of, rows)

    zero = jnp.zeros_like(start)
    inners = first(lambda b: jnp.concatenate(inner_terms(start, start, zero, b)), inner)
    outers = first(lambda b: outer_gradient(start, b), outer)

    def block(draw, state):
        batch, state = draw.sampler.draw(draw.rows, state)
        return batch.data, batch.index[0] // draw.sampler.batch_size, state

    def saga(table, new, draw, state, k):
        values, mean, row = table
        estimate = new - row + mean
        values = values.at[k].set(new)
        _, following, _ = block(draw, state)
        return estimate, (values, mean + (new - row) / len(values), values[following])

    def step(z, draws):
        (u, w, v, inner_table, outer_table), (oo, ii) = z, draws
        ob, k_o, oo = block(outer, oo)
        ib, k_i, ii = block(inner, ii)
        new = jnp.concatenate(inner_terms(u, w, v, ib))
        (grad, hv, mixed), inner_table = saga(inner_table, new, inner, ii, k_i)
        (by_w,), outer_table = saga(outer_table, outer_gradient(w, ob), outer, oo, k_o)
        u, w = u + GAMMA * row(mixed), w - RHO * row(grad)
        v = v - SIGMA * row(hv - by_w)
        return (u, w, v, inner_table, outer_table), (oo, ii)

    def begin(draws):
        oo, ii = draws
        k_o, k_i = block(outer, oo)[1], block(inner, ii)[1]
        tables = (inners, inners.mean(0), inners[k_i]), (outers, outers.mean(0), outers[k_o])
        return (start, start, zero, *tables)

    return step, begin


def at_two(terms, new, old):
    """`terms` of two points, one in each row."""
    both = terms(*(jnp.concatenate(pair) for pair in zip(new, old, strict=True)))
    return [x[:1] for x in both], [x[1:] for x in both]


def srba(start, inner, outer):
    zero = jnp.zeros_like(start)

    def directions(ob, ib):
        def terms(u, w, v):
            grad, hv, mixed = inner_terms(u, w, v, ib)
            return -mixed, grad, hv - outer_gradient(w, ob)

        return terms

    def step(carry, draws):
        (z, old, d, k), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        ib, ii = inner(ii)

        def updated():
            new, before = at_two(directions(ob, ib), z, old)
            return tuple(a - b + c for a, b, c in zip(new, before, d, strict=True))

        d = jax.lax.cond(k % PERIOD == 0, lambda: directions(outer.rows, inner.rows)(*z), updated)
        following = tuple(x - s * g for x, s, g in zip(z, (GAMMA, RHO, SIGMA), d, strict=True))
        return (following, z, d, k + 1), (oo, ii)

    z = (start, start, zero)
    return step, (z, z, (zero, zero, zero), jnp.zeros((), jnp.int32))


def fsla(start, inner, outer):
    def step(carry, draws):
        (u, w, v, u_old, d, k), (oo, ii) = carry, draws
        (b1, ii), (b2, ii) = (first := inner(ii)), inner(first[1])
        b3, ii = inner(ii)
        o2, oo = outer(oo)
        w_new = w - RHO * inner_gradient(u, w, b1)
        v_new = v - SIGMA * (product(u, w_new, v, b2) - outer_gradient(w_new, o2))
        # The outer gradient in u is zero here, so the third outer batch goes unread.
        _, oo = outer(oo)
        del b3
        new, old = -jnp.exp(u) * w_new * v_new, -jnp.exp(u_old) * w * v
        d = new + (1 - jnp.where(k == 0, 1.0, ETA)) * (d - old)
        return (u - GAMMA * d, w_new, v_new, u, d, k + 1), (oo, ii)

    zero = jnp.zeros_like(start)
    return step, (start, start, zero, start, zero, jnp.zeros((), jnp.int32))


def momentum(start, inner, outer, linear):
    zero = jnp.zeros_like(start)

    def step(carry, draws):
        (z, old, d, k), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        ib, ii = inner(ii)
        state = [ii]

        def terms(u, w):
            v, state[0] = linear(u, w, outer_gradient(w, ob), inner, ii, k)
            grad, _, mixed = inner_terms(u, w, v, ib)
            return -mixed, grad

        new, before = at_two(terms, z, old)
        keep = 1 - jnp.where(k == 0, 1.0, ETA)
        d = tuple(a + keep * (c - b) for a, b, c in zip(new, before, d, strict=True))
        following = (z[0] - GAMMA * d[0], z[1] - RHO * d[1])
        return (following, z, d, k + 1), (oo, state[0])

    z = (start, start)
    return step, (z, z, (zero, zero), jnp.zeros((), jnp.int32))


def mrbo(start, inner, outer):
    return momentum(start, inner, outer, lambda u, w, b, draw, s, k: series(u, w, b, draw, s))


def randomised(u, w, b, draw, state, k):
    """`K sigma (I - sigma H_p) ... (I - sigma H_1) b`, p uniform on 0 .. K - 1."""
    p = jr.randint(jr.fold_in(jr.key(0), k), (), 0, K, jnp.int32)

    def multiply(_, carry):
        term, state = carry
        batch, state = draw(state)
        return term - SIGMA * product(u, w, term, batch), state

    term, state = jax.lax.fori_loop(0, p, multiply, (b, state))
    return K * SIGMA * term, state


def sustain(start, inner, outer):
    return momentum(start, inner, outer, randomised)


def vrbo(start, inner, outer):
    zero = jnp.zeros_like(start)

    def terms_on(ob, ib, draw, state, left):
        def terms(u, w):
            v, left[0] = series(u, w, outer_gradient(w, ob), draw, state)
            grad, _, mixed = inner_terms(u, w, v, ib)
            return -mixed, grad

        return terms

    def step(carry, draws):
        (u, w, d, k), (oo, ii) = carry, draws

        def exact():
            whole = Draw(bilevel.FullBatch(), inner.rows)
            return terms_on(outer.rows, inner.rows, whole, (), [None])(u, w)

        d = jax.lax.cond(k % PERIOD == 0, exact, lambda: d)
        old, u = (u, w), u - GAMMA * d[0]

        def loop(carry, step):
            old, d, (oo, ii) = carry
            new = u, old[1] - step * d[1]
            ob, oo = outer(oo)
            ib, ii = inner(ii)
            left: list[Any] = [None]
            after, before = at_two(terms_on(ob, ib, inner, ii, left), new, old)
            d = tuple(a - b + c for a, b, c in zip(after, before, d, strict=True))
            return (new, d, (oo, left[0])), None

        steps = jnp.where(jnp.arange(T + 1) == 0, 0, RHO)
        ((_, w), d, draws), _ = jax.lax.scan(loop, (old, d, (oo, ii)), steps)
        return (u, w, d, k + 1), draws

    return step, (start, start, (zero, zero), jnp.zeros((), jnp.int32))


# Methods with an inner loop.


def descend(u, w, draw, state):
    """T gradient steps on w, each on a new batch."""

    def move(carry, _):
        w, state = carry
        batch, state = draw(state)
        return (w - RHO * inner_gradient(u, w, batch), state), None

    return jax.lax.scan(move, (w, state), length=T)[0]


def by_penalty(u, new, old):
    """`grad_u f` at one point minus that at another: only the penalty depends on u."""
    return jnp.exp(u) * (new * new - old * old) / 2


def two_loops(start, inner, outer, solve):
    """`solve(u, w, b, v, inner, state, k)` gives the next v."""

    def step(carry, draws):
        (u, w, v, k), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        w, ii = descend(u, w, inner, ii)
        v, ii = solve(u, w, outer_gradient(w, ob), v, inner, ii, k)
        _, ii = inner(ii)  # the mixed derivative of this problem needs no rows
        return (u + GAMMA * jnp.exp(u) * w * v, w, v, k + 1), (oo, ii)

    return step, (start, start, jnp.zeros_like(start), jnp.zeros((), jnp.int32))


def stocbio(start, inner, outer):
    return two_loops(start, inner, outer, lambda u, w, b, v, draw, s, k: series(u, w, b, draw, s))


def bsa(start, inner, outer):
    return two_loops(
        start, inner, outer, lambda u, w, b, v, draw, s, k: randomised(u, w, b, draw, s, k)
    )


def linear_steps(u, w, b, v, draw, state, length):
    """`v <- v - SIGMA (H v - b)`, with a new batch per step."""

    def move(carry, _):
        v, state = carry
        batch, state = draw(state)
        return (v - SIGMA * (product(u, w, v, batch) - b), state), None

    return jax.lax.scan(move, (v, state), length=length)[0]


def amigo(start, inner, outer):
    return two_loops(
        start, inner, outer, lambda u, w, b, v, draw, s, k: linear_steps(u, w, b, v, draw, s, K)
    )


def inexact(start, inner, outer):
    """Both loops start anew, the first at the start and the second at zero."""
    zero = jnp.zeros_like(start)

    def step(carry, draws):
        (u, _), (oo, ii) = carry, draws
        w, ii = descend(u, start, inner, ii)
        ob, oo = outer(oo)
        v, ii = linear_steps(u, w, outer_gradient(w, ob), zero, inner, ii, T)
        _, ii = inner(ii)
        return (u + GAMMA * jnp.exp(u) * w * v, w), (oo, ii)

    return step, (start, start)


def double_loop(start, inner, outer):
    """The products of the series share a batch."""

    def step(carry, draws):
        (u, w), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        w, ii = descend(u, w, inner, ii)
        batch, ii = inner(ii)
        v, _ = series(u, w, outer_gradient(w, ob), lambda same: (same, same), batch)
        return (u + GAMMA * jnp.exp(u) * w * v, w), (oo, ii)

    return step, (start, start)


def f2sa(start, inner, outer):
    """w and y move together, as two rows."""

    def step(carry, draws):
        (u, y, w), draws = carry, draws

        def move(carry, _):
            both, (oo, ii) = carry
            ob, oo = outer(oo)
            ib, ii = inner(ii)
            d_w, d_y = inner_gradient(u, both, ib)
            d_y = d_y + outer_gradient(both[1:], ob)[0] / MULTIPLIER
            return (both - RHO * jnp.stack([d_w, d_y]), (oo, ii)), None

        (both, (oo, ii)), _ = jax.lax.scan(move, (jnp.concatenate([w, y]), draws), length=T)
        (_, oo), (_, ii) = outer(oo), inner(ii)  # for gradients in u, which need no rows
        w, y = both[:1], both[1:]
        return (u - GAMMA * MULTIPLIER * by_penalty(u, y, w), y, w), (oo, ii)

    return step, (start, start, start)


def penalty(start, inner, outer):
    def step(carry, draws):
        (u, w), (oo, ii) = carry, draws
        x, ii = descend(u, w, inner, ii)
        ob, oo = outer(oo)
        ib, ii = inner(ii)
        d_w = inner_gradient(u, w, ib) + outer_gradient(w, ob) / MULTIPLIER
        return (u - GAMMA * MULTIPLIER * by_penalty(u, w, x), w - RHO * d_w), (oo, ii)

    return step, (start, start)


def bome(start, inner, outer):
    def step(carry, draws):
        (u, w), (oo, ii) = carry, draws
        x, ii = descend(u, w, inner, ii)
        ob, oo = outer(oo)
        ib, ii = inner(ii)
        gap_u, gap_w, by_w = by_penalty(u, w, x), inner_gradient(u, w, ib), outer_gradient(w, ob)
        size = jnp.vdot(gap_u, gap_u) + jnp.vdot(gap_w, gap_w)
        multiplier = jnp.maximum(ETA - jnp.vdot(by_w, gap_w) / size, 0)
        return (u - GAMMA * multiplier * gap_u, w - GAMMA * (by_w + multiplier * gap_w)), (oo, ii)

    return step, (start, start)


def pdbo(start, inner, outer):
    def step(carry, draws):
        (u, w, multiplier), (oo, ii) = carry, draws
        x, ii = descend(u, w, inner, ii)
        ob, oo = outer(oo)
        ib, ii = inner(ii)
        (at_w, at_x), d_w = inner_losses(u, w, x, ib)
        rise = jnp.clip((at_w - at_x - DELTA) / DELTA, -1, 1)
        multiplier = jnp.clip(multiplier + DUAL * (1 + multiplier) * rise, 0, 1e3)
        d_w = outer_gradient(w, ob) + multiplier * d_w
        w_new = w - RHO / (1 + multiplier) * d_w
        return (u - GAMMA * multiplier * by_penalty(u, w, x), w_new, multiplier), (oo, ii)

    return step, (start, start, jnp.asarray(MULTIPLIER))


def pzobo(start, inner, outer):
    """All loops at once, as K + 1 rows."""

    def step(carry, draws):
        (u, w, k), (oo, ii) = carry, draws
        e = jr.normal(jr.fold_in(jr.key(0), k), (K, DIM), u.dtype)
        ob, oo = outer(oo)
        us = jnp.concatenate([u, u + RADIUS * e])
        ends, ii = descend(us, jnp.broadcast_to(w, us.shape), inner, ii)
        _, ii = inner(ii)  # for the residual
        w, by_w = ends[:1], outer_gradient(ends[:1], ob)
        slopes = (ends[1:] - w) @ by_w[0] / RADIUS
        return (u - GAMMA * row(slopes @ e) / K, w, k + 1), (oo, ii)

    return step, (start, start, jnp.zeros((), jnp.int32))
