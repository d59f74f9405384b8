"""The arithmetic of the single-loop methods written by hand, on a logistic regression.

Each floor takes the start and two functions that draw batches, and returns its step and what the step
carries. The floors know the gradients of this problem as formulas, draw the same batches as the
library and make the same matrix products: every method at two points takes both at once, as one
product of two rows. `step_time.py` compares the library with them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import bilevel
from bilevel import Blocks, Shuffled

N, OUTER, DIM, BATCH = 8_000, 4_096, 784, 256
BLOCK = 250  # the inner blocks of SABA, which divide N; the outer blocks have 256 rows
RHO, SIGMA, GAMMA, ETA, K, PERIOD, T = 0.1, 0.1, 0.05, 0.3, 4, 10, 3


def data() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=DIM) / np.sqrt(DIM)
    x = rng.normal(size=(N + OUTER, DIM)).astype(np.float32)
    y = np.sign(x @ truth + 0.5 * rng.normal(size=N + OUTER)).astype(np.float32)
    return tuple(jnp.asarray(a) for a in (x[:N], y[:N], x[N:], y[N:]))


# The problem by hand. Points are rows: u, w, v of shape (points, DIM).


def inner_terms(u, w, v, batch):
    """`grad_w f`, `H v` and `(d2_uw f)^T v`."""
    x, y = batch
    points = len(w)
    seen = jnp.concatenate([w, v]) @ x.T
    p = jax.nn.sigmoid(-y * seen[:points])
    back = jnp.concatenate([-y * p, p * (1 - p) * seen[points:]]) / len(y)
    data_terms = back @ x
    penalty = jnp.exp(u)
    grad = data_terms[:points] + penalty * w
    return grad, data_terms[points:] + penalty * v, penalty * w * v


def inner_gradient(u, w, batch):
    x, y = batch
    return (-y * jax.nn.sigmoid(-y * (w @ x.T)) / len(y)) @ x + jnp.exp(u) * w


def product(u, w, v, batch):
    x, y = batch
    seen = jnp.concatenate([w, v]) @ x.T
    p = jax.nn.sigmoid(-y * seen[: len(w)])
    return (p * (1 - p) * seen[len(w) :] / len(y)) @ x + jnp.exp(u) * v


def outer_gradient(w, batch):
    x, y = batch
    return (-y * jax.nn.sigmoid(-y * (w @ x.T)) / len(y)) @ x


def row(x):
    return x[None, :]


class Draw:
    """The batches of a sampler, as the library draws them."""

    def __init__(self, sampler, rows):
        self.sampler, self.rows = sampler, rows

    def __call__(self, state):
        batch, state = self.sampler.draw(self.rows, state)
        return batch.data, state


def series(u, w, b, draw, state):
    """K terms of the Neumann series, with a new batch per product."""
    total = term = b
    for _ in range(K - 1):
        batch, state = draw(state)
        term = term - SIGMA * product(u, w, term, batch)
        total = total + term
    return SIGMA * total, state


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


def ttsa(start, inner, outer):
    def step(carry, draws):
        (u, w, k), (oo, ii) = carry, draws
        ob, oo = outer(oo)
        batch, ii = inner(ii)
        w = w - RHO * inner_gradient(u, w, batch)
        v, ii = randomised(u, w, outer_gradient(w, ob), inner, ii, k)
        _, ii = inner(ii)  # the mixed derivative of this problem needs no rows
        return (u + GAMMA * jnp.exp(u) * w * v, w, k + 1), (oo, ii)

    return step, (start, start, jnp.zeros((), jnp.int32))


SHUFFLED: dict[str, Any] = {
    "inner_sampler": Shuffled(BATCH),
    "outer_sampler": Shuffled(BATCH),
}
BLOCKS: dict[str, Any] = {"inner_sampler": Blocks(BLOCK), "outer_sampler": Blocks(BATCH)}
SIZES = (RHO, SIGMA, GAMMA)
