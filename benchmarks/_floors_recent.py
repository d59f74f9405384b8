"""More of the arithmetic by hand of `_floors.py`, and the table `FLOORS` of all of it."""

from collections.abc import Callable
from typing import Any

import _floors
import jax
import jax.numpy as jnp
import jax.random as jr
from _floors import at_two, descend
from _logistic import (
    AGENTS,
    CLIENTS_OF_STEP,
    ETA,
    GAMMA,
    MIXING,
    PROBABILITY,
    RHO,
    SIGMA,
    K,
    T,
    inner_gradient,
    inner_terms,
    outer_gradient,
    product,
    row,
)

SIZES = (GAMMA, RHO, SIGMA)


def hoag(start, inner, outer):
    """T gradient steps and K steps of conjugate gradients, both warm and on one batch."""

    def step(carry, draws):
        (u, w, v), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        ib, ii = inner(ii)
        same = lambda state: (ib, state)  # noqa: E731
        w, _ = descend(u, w, same, ii)
        r = outer_gradient(w, ob) - product(u, w, v, ib)

        def iterate(carry, _):
            v, r, p, rr = carry
            hp = product(u, w, p, ib)
            a = rr / jnp.vdot(p, hp)
            r = r - a * hp
            new = jnp.vdot(r, r)
            return (v + a * p, r, r + new / rr * p, new), None

        (v, *_), _ = jax.lax.scan(iterate, (v, r, r, jnp.vdot(r, r)), length=K)
        return (u + GAMMA * jnp.exp(u) * w * v, w, v), (oo, ii)

    return step, (start, start, jnp.zeros_like(start))


# PAGE and ZeroSARAH.


def joint(ob, ib):
    """The three directions, of any number of points."""

    def terms(u, w, v):
        grad, hv, mixed = inner_terms(u, w, v, ib)
        return -mixed, grad, hv - outer_gradient(w, ob)

    return terms


def coin(k):
    return (k == 0) | jr.bernoulli(jr.fold_in(jr.key(0), k), PROBABILITY)


def along(z, d):
    return tuple(x - s * g for x, s, g in zip(z, SIZES, d, strict=True))


def spaba(start, inner, outer):
    def step(carry, draws):
        (z, old, d, k), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        ib, ii = inner(ii)

        def updated():
            new, before = at_two(joint(ob, ib), z, old)
            return tuple(a - b + c for a, b, c in zip(new, before, d, strict=True))

        d = jax.lax.cond(coin(k), lambda: joint(outer.rows, inner.rows)(*z), updated)
        return (along(z, d), z, d, k + 1), (oo, ii)

    z = (start, start, jnp.zeros_like(start))
    zeros = tuple(map(jnp.zeros_like, z))
    return step, (z, z, zeros, jnp.zeros((), jnp.int32))


def remembered(table, new, number, following):
    """`mean_j T_j - T_B`, and the table with the new value; its row is read after it was written."""
    values, mean, seen = table
    values = values.at[number].set(new)
    return mean - seen, (values, mean + (new - seen) / len(values), values[following])


def blocks_of(draw, rows, state):
    """The batch, the number of its block and that of the next one, and the next state."""
    batch, after = draw.sampler.draw(draw.rows, state)
    size = draw.sampler.batch_size
    following = draw.sampler.draw(draw.rows, after)[0]
    return batch.data, batch.index[0] // size, following.index[0] // size, after


def empty(draw, points):
    blocks = len(draw.rows[1]) // draw.sampler.batch_size
    dim = draw.rows[0].shape[1]
    zero = jnp.zeros((points, dim))
    return jnp.zeros((blocks, points, dim)), zero, zero


def sffba(start, inner, outer):
    def step(carry, draws):
        (z, old, d, inners, outers, k), (oo, ii) = carry, draws
        ob, k_o, next_o, oo = blocks_of(outer, outer.rows, oo)
        ib, k_i, next_i, ii = blocks_of(inner, inner.rows, ii)
        a = jnp.where(k == 0, 1.0, ETA)

        def terms(u, w, v):
            grad, hv, mixed = inner_terms(u, w, v, ib)
            return grad, hv, mixed, outer_gradient(w, ob)

        def directions(grad, hv, mixed, by_w):
            return -mixed, grad, hv - by_w

        new, before = at_two(terms, z, old)
        of_inner, inners = remembered(inners, jnp.concatenate(new[:3]), k_i, next_i)
        of_outer, outers = remembered(outers, new[3], k_o, next_o)
        grad, hv, mixed = (of_inner[i : i + 1] for i in range(3))
        anchor = directions(grad, hv, mixed, of_outer)
        parts = zip(directions(*new), directions(*before), d, anchor, strict=True)
        d = tuple(n + (1 - a) * (x - b) + a * m for n, b, x, m in parts)
        return (along(z, d), z, d, inners, outers, k + 1), (oo, ii)

    z = (start, start, jnp.zeros_like(start))
    zeros = tuple(map(jnp.zeros_like, z))
    tables = empty(inner, 3), empty(outer, 1)
    return step, (z, z, zeros, *tables, jnp.zeros((), jnp.int32))


def mseba(start, inner, outer):
    def step(carry, draws):
        (z, old, d, table, k), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        ib, number, following, ii = blocks_of(inner, inner.rows, ii)
        a = jnp.where(k == 0, 1.0, ETA)
        new, before = at_two(joint(ob, ib), z, old)
        anchor, table = remembered(table, new[1], number, following)
        d_w = new[1] + (1 - a) * (d[1] - before[1]) + a * anchor

        def exact():
            d_u, _, d_v = joint(outer.rows, inner.rows)(*z)
            return d_u, d_v

        def updated():
            return tuple(new[i] - before[i] + d[i] for i in (0, 2))

        d_u, d_v = jax.lax.cond(coin(k), exact, updated)
        d = (d_u, d_w, d_v)
        return (along(z, d), z, d, table, k + 1), (oo, ii)

    z = (start, start, jnp.zeros_like(start))
    zeros = tuple(map(jnp.zeros_like, z))
    return step, (z, z, zeros, empty(inner, 1), jnp.zeros((), jnp.int32))


# Clients and agents.


def of_each(function):
    """The function for every client: its points as rows, its batch along axis 0."""

    def one(u, *rest):
        *points, batch = rest
        return function(row(u), *map(row, points), batch)[0]

    return jax.vmap(one)


def local_steps(u, w, ib, corrected):
    """w after T local steps of every client and an average."""
    gradient = of_each(inner_gradient)
    us, ws = (jnp.broadcast_to(x, (CLIENTS_OF_STEP, x.shape[1])) for x in (u, w))
    at_start = gradient(us, ws, ib)
    correction = jnp.mean(at_start, 0, keepdims=True) - at_start if corrected else 0

    def local(ends, _):
        return ends - RHO * (gradient(us, ends, ib) + correction), None

    first = ws - RHO * (at_start + correction)
    ends, _ = jax.lax.scan(local, first, length=T - 1)
    return jnp.mean(ends, 0, keepdims=True)


def series_of(multiply, b):
    """K terms of the Neumann series."""

    def add(carry, _):
        total, term = carry
        term = term - SIGMA * multiply(term)
        return (total + term, term), None

    return SIGMA * jax.lax.scan(add, (b, b), length=K - 1)[0][0]


def fed_nest(start, inner, outer):
    """Products and gradients of clients of equal size are those of their rows together."""

    def step(carry, draws):
        (u, w), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        ib, ii = inner(ii)
        w = local_steps(u, w, ib, corrected=True)
        x, y = ib
        pooled = x.reshape(-1, x.shape[-1]), y.ravel()
        b = jnp.mean(
            of_each(lambda w, batch: outer_gradient(w, batch))(
                jnp.broadcast_to(w, (CLIENTS_OF_STEP, w.shape[1])), ob
            ),
            0,
            keepdims=True,
        )
        v = series_of(lambda term: product(u, w, term, pooled), b)
        return (u + GAMMA * jnp.exp(u) * w * v, w), (oo, ii)

    return step, (start, start)


def lfed_nest(start, inner, outer):
    def step(carry, draws):
        (u, w), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        ib, ii = inner(ii)
        w = local_steps(u, w, ib, corrected=False)
        us, ws = (jnp.broadcast_to(x, (CLIENTS_OF_STEP, x.shape[1])) for x in (u, w))
        b = of_each(lambda w, batch: outer_gradient(w, batch))(ws, ob)
        v = series_of(lambda term: of_each(product)(us, ws, term, ib), b)
        return (u + GAMMA * jnp.exp(u) * w * jnp.mean(v, 0, keepdims=True), w), (oo, ii)

    return step, (start, start)


def gossip_soba(start, inner, outer):
    mixing = jnp.asarray(MIXING)

    def step(carry, draws):
        (u, w, v), (oo, ii) = carry, draws
        (ox, oy), oo = outer(oo)
        (x, y), ii = inner(ii)

        def terms(u, w, v, x, y, ox, oy):
            grad, hv, mixed = inner_terms(row(u), row(w), row(v), (x, y))
            return grad[0], hv[0] - outer_gradient(row(w), (ox, oy))[0], mixed[0]

        grad, d_v, mixed = jax.vmap(terms, in_axes=(0, 0, 0, 1, 1, 1, 1))(u, w, v, x, y, ox, oy)
        after = u + GAMMA * mixed, w - RHO * grad, v - SIGMA * d_v
        return tuple(mixing @ part for part in after), (oo, ii)

    assert start.shape[0] == AGENTS
    return step, (start, start, jnp.zeros_like(start))


FLOORS: dict[str, Callable[..., Any]] = {
    "DoubleLoop": _floors.double_loop,
    "SOBA": _floors.soba,
    "SABA": _floors.saba,
    "SRBA": _floors.srba,
    "SPABA": spaba,
    "SFFBA": sffba,
    "MSEBA": mseba,
    "FSLA": _floors.fsla,
    "MRBO": _floors.mrbo,
    "SUSTAIN": _floors.sustain,
    "VRBO": _floors.vrbo,
    "StocBiO": _floors.stocbio,
    "BSA": _floors.bsa,
    "AmIGO": _floors.amigo,
    "F2SA": _floors.f2sa,
    "ValueFunctionPenalty": _floors.penalty,
    "BOME": _floors.bome,
    "PDBO": _floors.pdbo,
    "PZOBO": _floors.pzobo,
    "InexactDescent": _floors.inexact,
    "HOAG": hoag,
    "FedNest": fed_nest,
    "LFedNest": lfed_nest,
    "GossipSOBA": gossip_soba,
}
