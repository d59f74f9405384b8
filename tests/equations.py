"""Every stochastic method written from the equations of its paper, in numpy.

Each function takes two functions that return the rows of the next inner and outer batch, and yields
u and w after each step. `tests/algorithm/test_trajectories.py` compares them with the library on the
same batches.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import bilevel
from problems import spd

N, M, P, Q = 12, 8, 4, 3  # inner rows, outer rows, dim(w), dim(u)
STEPS, BATCH, KEY = 50, 4, jr.key(5)
RHO, SIGMA, GAMMA, ETA, T, K = 0.15, 0.12, 0.05, 0.3, 3, 4
RNG = np.random.default_rng(0)
A = np.stack([spd(i, P, 0.5, 2.0) for i in range(N)])
B, C, S = RNG.normal(size=(N, P, Q)), RNG.normal(size=(N, P)), RNG.uniform(0, 1, size=N)
D, TARGET = 0.3 * RNG.normal(size=(M, Q, P)), RNG.normal(size=(M, P))
U0, W0 = RNG.normal(size=Q), 0.3 * RNG.normal(size=P)


def inner(u, w, batch):
    """`w'Aw/2 - w'(B u + c) + s |w^2|^2 / 12`, averaged over rows: H depends on w."""
    a, b, c, s = batch
    quartic = jnp.mean(s) * jnp.sum(w**4) / 12
    return 0.5 * w @ jnp.mean(a, 0) @ w - w @ (jnp.mean(b, 0) @ u + jnp.mean(c, 0)) + quartic


def outer(u, w, batch):
    d, t = batch
    distance = jnp.mean(jnp.sum((w[None] - t) ** 2, axis=1)) / 2
    return distance + 0.5 * jnp.sum(u**2) + u @ jnp.mean(d, 0) @ w


PROBLEM = bilevel.BilevelProblem(
    outer,
    inner,
    outer_data=tuple(jnp.asarray(x) for x in (D, TARGET)),
    inner_data=tuple(jnp.asarray(x) for x in (A, B, C, S)),
)


# The oracles, on the rows i of the inner and j of the outer data.
ALL = slice(None)


def f_w(u, w, i):
    return A[i].mean(0) @ w - B[i].mean(0) @ u - C[i].mean(0) + S[i].mean() * w**3 / 3


def hv(w, v, i):
    return A[i].mean(0) @ v + S[i].mean() * w**2 * v


def mixed_product(v, i):
    return -B[i].mean(0).T @ v


def g_w(u, w, j):
    return w - TARGET[j].mean(0) + D[j].mean(0).T @ u


def g_u(u, w, j):
    return u + D[j].mean(0) @ w


_draw = eqx.filter_jit(lambda sampler, data, state: sampler.draw(data, state))


class Rows:
    """The rows that a sampler draws one time after the other."""

    def __init__(self, sampler, data, key):
        self.sampler, self.data, self.state = sampler, data, sampler.init(data, key)

    def __call__(self) -> np.ndarray:
        batch, self.state = _draw(self.sampler, self.data, self.state)
        return np.asarray(batch.index)


def neumann(u, w, b, draw, terms):
    total = term = b
    for _ in range(terms - 1):
        term = term - SIGMA * hv(w, term, draw())
        total = total + term
    return SIGMA * total


def soba(i, j):
    u, w, v = U0, W0, np.zeros(P)
    while True:
        jj, ii = j(), i()
        d = (g_u(u, w, jj) - mixed_product(v, ii), f_w(u, w, ii), hv(w, v, ii) - g_w(u, w, jj))
        u, w, v = u - GAMMA * d[0], w - RHO * d[1], v - SIGMA * d[2]
        yield u, w


def saba(i, j):
    u, w, v = U0, W0, np.zeros(P)
    tables = [
        [
            (f_w(u, w, r), hv(w, v, r), mixed_product(v, r))
            for r in np.split(np.arange(N), N // BATCH)
        ],
        [(g_w(u, w, r), g_u(u, w, r)) for r in np.split(np.arange(M), M // BATCH)],
    ]

    def saga(table, k, new):
        mean = [np.mean([row[q] for row in table], axis=0) for q in range(len(new))]
        estimate = [g - old + m for g, old, m in zip(new, table[k], mean, strict=True)]
        table[k] = new
        return estimate

    while True:
        jj, ii = j(), i()
        new = (f_w(u, w, ii), hv(w, v, ii), mixed_product(v, ii))
        d_w, product, mixed = saga(tables[0], ii[0] // BATCH, new)
        by_w, by_u = saga(tables[1], jj[0] // BATCH, (g_w(u, w, jj), g_u(u, w, jj)))
        u, w, v = u - GAMMA * (by_u - mixed), w - RHO * d_w, v - SIGMA * (product - by_w)
        yield u, w


def fsla(i, j):
    u, w, v, u_old, d = U0, W0, np.zeros(P), U0, None
    while True:
        i1, i2, i3, j2, j3 = i(), i(), i(), j(), j()
        w_new = w - RHO * f_w(u, w, i1)
        v_new = v - SIGMA * (hv(w_new, v, i2) - g_w(u, w_new, j2))
        p = g_u(u, w_new, j3) - mixed_product(v_new, i3)
        p_old = g_u(u_old, w, j3) - mixed_product(v, i3)
        d = p if d is None else p + (1 - ETA) * (d - p_old)
        u, w, v, u_old = u - GAMMA * d, w_new, v_new, u
        yield u, w


def joint(z, jj, ii):
    """The three directions at z = (u, w, v), one after the other."""
    u, w, v = z
    return np.concatenate(
        [g_u(u, w, jj) - mixed_product(v, ii), f_w(u, w, ii), hv(w, v, ii) - g_w(u, w, jj)]
    )


def moved(z, d):
    after = np.concatenate(z) - np.repeat([GAMMA, RHO, SIGMA], [Q, P, P]) * d
    return tuple(np.split(after, [Q, Q + P]))


def coin(step, probability=0.3):
    return step == 0 or bool(jr.bernoulli(jr.fold_in(KEY, step), probability))


def srba(i, j):
    z, d = (U0, W0, np.zeros(P)), np.zeros(Q + 2 * P)
    z_old = z
    for step in range(STEPS):
        jj, ii = j(), i()
        d = joint(z, ALL, ALL) if step % 5 == 0 else d + joint(z, jj, ii) - joint(z_old, jj, ii)
        z_old, z = z, moved(z, d)
        yield z[:2]


def spaba(i, j):
    z, d = (U0, W0, np.zeros(P)), np.zeros(Q + 2 * P)
    z_old = z
    for step in range(STEPS):
        jj, ii = j(), i()
        d = joint(z, ALL, ALL) if coin(step) else d + joint(z, jj, ii) - joint(z_old, jj, ii)
        z_old, z = z, moved(z, d)
        yield z[:2]


class Anchor:
    """What was last seen of each block; all zero at first."""

    def __init__(self, num_blocks, size):
        self.seen = np.zeros((num_blocks, size))

    def __call__(self, rows, new):
        k = rows[0] // BATCH
        anchor = self.seen.mean(0) - self.seen[k]
        self.seen[k] = new
        return anchor


def sffba(i, j):
    """Each sum of `joint` has its block: those of the inner rows, and those of the outer rows."""
    z = z_old = (U0, W0, np.zeros(P))
    inners, outers, d = Anchor(N // BATCH, Q + 2 * P), Anchor(M // BATCH, Q + P), 0

    def of_inner(z, ii):
        u, w, v = z
        return np.concatenate([-mixed_product(v, ii), f_w(u, w, ii), hv(w, v, ii)])

    def of_outer(z, jj):
        u, w, _ = z
        return np.concatenate([g_u(u, w, jj), -g_w(u, w, jj)])

    for step in range(STEPS):
        jj, ii = j(), i()
        a = 1 if step == 0 else ETA
        inner, outer = inners(ii, of_inner(z, ii)), outers(jj, of_outer(z, jj))
        anchor = inner + np.concatenate([outer[:Q], np.zeros(P), outer[Q:]])
        d = joint(z, jj, ii) + (1 - a) * (d - joint(z_old, jj, ii)) + a * anchor
        z_old, z = z, moved(z, d)
        yield z[:2]


def mseba(i, j):
    z = z_old = (U0, W0, np.zeros(P))
    table, d, of_w = Anchor(N // BATCH, P), np.zeros(Q + 2 * P), slice(Q, Q + P)
    for step in range(STEPS):
        jj, ii = j(), i()
        a = 1 if step == 0 else ETA
        new, old = joint(z, jj, ii), joint(z_old, jj, ii)
        d_w = new[of_w] + (1 - a) * (d - old)[of_w] + a * table(ii, new[of_w])
        d = joint(z, ALL, ALL) if coin(step) else d + new - old
        d[of_w] = d_w
        z_old, z = z, moved(z, d)
        yield z[:2]


def momentum(i, j, linear):
    """MRBO and SUSTAIN: `linear(u, w, b, draw, step)` is the inverse."""
    z = z_old = (U0, W0)
    d = None
    for step in range(STEPS):
        jj, i0, later = j(), i(), []

        def directions(z, replay, jj=jj, i0=i0, step=step):
            u, w = z
            v = linear(u, w, g_w(u, w, jj), replay, step)
            return np.concatenate([g_u(u, w, jj) - mixed_product(v, i0), f_w(u, w, i0)])

        new = directions(z, lambda later=later: later.append(i()) or later[-1])
        again = iter(later)
        old = directions(z_old, lambda again=again: next(again))
        d = new if d is None else new + (1 - ETA) * (d - old)
        z_old, z = z, (z[0] - GAMMA * d[:Q], z[1] - RHO * d[Q:])
        yield z


def mrbo(i, j):
    return momentum(i, j, lambda u, w, b, draw, step: neumann(u, w, b, draw, K))


def randomised(w, b, draw, step):
    for _ in range(int(jr.randint(jr.fold_in(KEY, step), (), 0, K, jnp.int32))):
        b = b - SIGMA * hv(w, b, draw())
    return K * SIGMA * b


def sustain(i, j):
    return momentum(i, j, lambda u, w, b, draw, step: randomised(w, b, draw, step))


def two_loops(i, j, solve):
    """stocBiO, BSA, AmIGO: `solve(u, w, b, v, step)` gives the next v."""
    u, w, v = U0, W0, np.zeros(P)
    for step in range(STEPS):
        jj = j()
        for _ in range(T):
            w = w - RHO * f_w(u, w, i())
        v = solve(u, w, g_w(u, w, jj), v, step)
        ii = i()
        u = u - GAMMA * (g_u(u, w, jj) - mixed_product(v, ii))
        yield u, w


def stocbio(i, j):
    return two_loops(i, j, lambda u, w, b, v, step: neumann(u, w, b, i, K))


def bsa(i, j):
    return two_loops(i, j, lambda u, w, b, v, step: randomised(w, b, i, step))


def amigo(i, j):
    def solve(u, w, b, v, step):
        for _ in range(K):
            v = v - SIGMA * (hv(w, v, i()) - b)
        return v

    return two_loops(i, j, solve)


def vrbo(i, j):
    u, w, d = U0, W0, np.zeros(Q + P)

    def directions(z, jj, i0, draw):
        u, w = z
        v = neumann(u, w, g_w(u, w, jj), draw, K)
        return np.concatenate([g_u(u, w, jj) - mixed_product(v, i0), f_w(u, w, i0)])

    for step in range(STEPS):
        z_old = (u, w)
        if step % 5 == 0:
            d = directions(z_old, ALL, ALL, lambda: ALL)
        u = u - GAMMA * d[:Q]
        for inner in range(T + 1):
            if inner > 0:
                w = w - RHO * d[Q:]
            jj, i0, later = j(), i(), []
            new = directions((u, w), jj, i0, lambda later=later: later.append(i()) or later[-1])
            again = iter(later)
            old = directions(z_old, jj, i0, lambda again=again: next(again))
            d = d + new - old
            z_old = (u, w)
        yield u, w


def f_u(w, i):
    return -B[i].mean(0).T @ w


def f2sa(i, j):
    u, w, y = U0, W0, W0
    for step in range(STEPS):
        m = 5 + step
        for _ in range(T):
            ii, jj = i(), j()
            y_new = y - RHO * (f_w(u, y, ii) + g_w(u, y, jj) / m)
            w, y = w - RHO * f_w(u, w, ii), y_new
        ii, jj = i(), j()
        u = u - GAMMA * (g_u(u, y, jj) + m * (f_u(y, ii) - f_u(w, ii)))
        yield u, y


def inner_steps(u, w, i):
    for _ in range(T):
        w = w - RHO * f_w(u, w, i())
    return w


def penalty(i, j):
    u, w = U0, W0
    while True:
        x = inner_steps(u, w, i)
        ii, jj = i(), j()
        d_u = g_u(u, w, jj) + 5.0 * (f_u(w, ii) - f_u(x, ii))
        d_w = f_w(u, w, ii) + g_w(u, w, jj) / 5.0
        u, w = u - GAMMA * d_u, w - RHO * d_w
        yield u, w


def bome(i, j):
    u, w = U0, W0
    while True:
        x = inner_steps(u, w, i)
        ii, jj = i(), j()
        gap = np.concatenate([f_u(w, ii) - f_u(x, ii), f_w(u, w, ii)])
        by_outer = np.concatenate([g_u(u, w, jj), g_w(u, w, jj)])
        multiplier = max(0.5 * gap @ gap - by_outer @ gap, 0) / (gap @ gap)
        d = by_outer + multiplier * gap
        u, w = u - GAMMA * d[:Q], w - GAMMA * d[Q:]
        yield u, w


def f(u, w, i):
    linear = w @ (B[i].mean(0) @ u + C[i].mean(0))
    return 0.5 * w @ A[i].mean(0) @ w - linear + S[i].mean() * np.sum(w**4) / 12


def pdbo(i, j):
    u, w, m, gap_old = U0, W0, 2.0, None
    while True:
        x = inner_steps(u, w, i)
        ii, jj = i(), j()
        gap = f(u, w, ii) - f(u, x, ii) - 0.1
        s = gap + ETA * (gap - (gap if gap_old is None else gap_old))
        m = np.clip(m + 0.2 * (1 + m) * np.clip(s / 0.1, -1, 1), 0, 3.0)
        d_u = g_u(u, w, jj) + m * (f_u(w, ii) - f_u(x, ii))
        d_w = g_w(u, w, jj) + m * f_w(u, w, ii)
        u, w, gap_old = u - GAMMA * d_u, w - RHO / (1 + m) * d_w, gap
        yield u, w


def pzobo(i, j):
    u, w = U0, W0
    for step in range(STEPS):
        jj, seen = j(), [i() for _ in range(T)]
        i()  # for the residual

        def response(u, w=w, seen=seen):
            again = iter(seen)
            return inner_steps(u, w, lambda: next(again))

        e = np.asarray(jr.normal(jr.fold_in(KEY, step), (K, Q), float))
        w = response(u)
        slopes = [(response(u + 1e-2 * x) - w) @ g_w(u, w, jj) / 1e-2 for x in e]
        u = u - GAMMA * (g_u(u, w, jj) + np.mean(e * np.array(slopes)[:, None], axis=0))
        yield u, w


def hoag(i, j):
    u, w, v = U0, W0, np.zeros(P)
    first: list[float] = []  # the lengths that tolerances are relative to
    for step in range(STEPS):
        ii, jj, tolerance = i(), j(), 0.1 * 0.9**step
        first += [float(np.linalg.norm(f_w(u, w, ii)))] if step == 0 else []
        while np.linalg.norm(f_w(u, w, ii)) > tolerance * first[0]:
            w = w - RHO * f_w(u, w, ii)
        b = g_w(u, w, jj)
        first += [float(np.linalg.norm(b))] if step == 0 else []
        r = b - hv(w, v, ii)
        p = r
        while np.linalg.norm(r) > tolerance * first[1]:  # conjugate gradients
            a = r @ r / (p @ hv(w, p, ii))
            v, last, r = v + a * p, r, r - a * hv(w, p, ii)
            p = r + (r @ r) / (last @ last) * p
        u = u - GAMMA * (g_u(u, w, jj) - mixed_product(v, ii))
        yield u, w


def inexact(i, j):
    u = U0
    for step in range(STEPS):
        w, v, steps = W0, np.zeros(P), int(np.ceil(3 * np.log(step + 2)))
        for k in range(steps):
            w = w - 2 / (k + 10) * f_w(u, w, i())
        js = [j() for _ in range(2)]
        b = np.mean([g_w(u, w, jj) for jj in js], axis=0)
        for k in range(steps):
            v = v - 3 / (k + 20) * (hv(w, v, i()) - b)
        mixed = np.mean([mixed_product(v, i()) for _ in range(2)], axis=0)
        u = u - GAMMA * (np.mean([g_u(u, w, jj) for jj in js], axis=0) - mixed)
        yield u, w
