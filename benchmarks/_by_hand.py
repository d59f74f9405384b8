"""The arithmetic of the hypergradient estimators written by hand, on the logistic problem.

All functions return the hypergradient only. `hypergradients.py` compares the library with them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

INNER, TERMS, RANK, DAMPING, BATCH, SAMPLES = 10, 20, 20, 1e-2, 64, 10


def logistic_loss(w, batch):
    x, y = batch
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


def by_hand(kind: str, inner: Callable, step: float):
    def descend(u, w, data, num_steps=INNER):
        def body(w, _):
            return w - step * jax.grad(inner, argnums=1)(u, w, data), None

        return jax.lax.scan(body, w, length=num_steps)[0]

    def implicit(solve: Callable):
        @jax.jit
        def run(u, w, data):
            outer_data, inner_data = data
            w = descend(u, w, inner_data)
            b = jax.grad(logistic_loss)(w, outer_data)
            _, hvp = jax.linearize(lambda w: jax.grad(inner, argnums=1)(u, w, inner_data), w)
            v = solve(hvp, b)
            _, cross = jax.jvp(lambda w: jax.grad(inner)(u, w, inner_data), (w,), (v,))
            return -cross

        return run

    def cg(hvp, b, precondition=lambda r: r):
        def body(carry, _):
            x, r, p, rz = carry
            ap = hvp(p)
            a = rz / (p @ ap)
            x, r = x + a * p, r - a * ap
            z = precondition(r)
            new = r @ z
            return (x, r, z + new / rz * p, new), None

        z = precondition(b)
        return jax.lax.scan(body, (jnp.zeros_like(b), b, z, b @ z), length=TERMS)[0][0]

    def damped_cg(hvp, b):
        return cg(lambda x: hvp(x) + DAMPING * x, b)

    def diagonal_cg(hvp, b):
        signs = jax.random.rademacher(jax.random.key(0), (RANK, b.size), b.dtype)
        diagonal = jnp.mean(signs * jax.vmap(hvp)(signs), axis=0)
        diagonal = jnp.maximum(diagonal, 1e-3 * jnp.max(diagonal))
        return cg(hvp, b, lambda r: r / diagonal)

    def nystrom_cg(hvp, b):
        return cg(hvp, b, low_rank(hvp, b))

    def neumann(hvp, b):
        def body(carry, _):
            total, term = carry
            term = term - step * hvp(term)
            return (total + term, term), None

        return step * jax.lax.scan(body, (b, b), length=TERMS - 1)[0][0]

    def richardson(hvp, b):
        def body(x, _):
            return x + step * (b - hvp(x)), None

        return jax.lax.scan(body, jnp.zeros_like(b), length=TERMS)[0]

    def low_rank(hvp, b):
        chosen = jax.random.choice(jax.random.key(0), b.size, (RANK,), replace=False)
        c = jax.vmap(hvp)(jax.nn.one_hot(chosen, b.size, dtype=b.dtype))
        values, vectors = jnp.linalg.eigh(c[:, chosen])
        keep = values > RANK * jnp.finfo(b.dtype).eps * jnp.max(jnp.abs(values))
        root = jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, values, 1)), 0)
        _, s, f = jnp.linalg.svd(root[:, None] * (vectors.T @ c), full_matrices=False)

        def apply(r):
            inside = f @ r
            return f.T @ (inside / (s**2 + DAMPING)) + (r - f.T @ inside) / DAMPING

        return apply

    def nystrom(hvp, b):
        return low_rank(hvp, b)(b)

    def outer_value(u, w, data):
        return logistic_loss(descend(u, w, data[1], TERMS), data[0])

    def lean(u, w, data):
        """Each step computed anew in the backward pass, as the library does."""
        one = jax.checkpoint(lambda w: descend(u, w, data[1], 1), prevent_cse=False)
        w = jax.lax.scan(lambda w, _: (one(w), None), w, length=TERMS)[0]
        return logistic_loss(w, data[0])

    def truncated(u, w, data):
        w = jax.lax.stop_gradient(descend(u, w, data[1], TERMS - TERMS // 2))
        return logistic_loss(descend(u, w, data[1], TERMS // 2), data[0])

    def checkpointed(u, w, data):
        size = math.isqrt(TERMS - 1) + 1
        blocks, rest = divmod(TERMS, size)
        block = jax.checkpoint(lambda w: descend(u, w, data[1], size))
        w = jax.lax.scan(lambda w, _: (block(w), None), w, length=blocks)[0]
        if rest:
            w = jax.checkpoint(lambda w: descend(u, w, data[1], rest))(w)
        return logistic_loss(w, data[0])

    @jax.jit
    def sid(u, w, data):
        outer_key, inner_key = jax.random.split(jax.random.key(0))

        def batch(key, rows, k):
            index = jax.random.randint(jax.random.fold_in(key, k), (BATCH,), 0, len(rows[1]))
            return jax.tree.map(lambda x: x[index], rows)

        def gradient(u, w, k):
            return jax.grad(inner, argnums=(0, 1))(u, w, batch(inner_key, data[1], k))

        def descend(w, k):
            return w - step * gradient(u, w, k)[1], None

        def average(sample):
            each = jax.lax.scan(lambda _, k: (None, sample(k)), None, jnp.arange(SAMPLES))[1]
            return jnp.mean(each, axis=0)

        def solve(v, k):
            product = jax.jvp(lambda w: gradient(u, w, k)[1], (w,), (v,))[1]
            return v - step * (product - b), None

        w = jax.lax.scan(descend, w, jnp.arange(10 * TERMS))[0]
        b = average(lambda k: jax.grad(logistic_loss)(w, batch(outer_key, data[0], k)))
        first = 10 * TERMS + SAMPLES  # the cross derivative's batches come before the products'
        ks = jnp.arange(first, first + 10 * TERMS)
        v = jax.lax.scan(solve, jnp.zeros_like(w), ks)[0]
        return -average(
            lambda k: jax.jvp(lambda w: gradient(u, w, 10 * TERMS + k)[0], (w,), (v,))[1]
        )

    @jax.jit
    def forward(u, w, data):
        return jax.jvp(lambda u: outer_value(u, w, data), (u,), (jnp.ones_like(u),))[1]

    solves = {
        "CG": cg,
        "CG, damping": damped_cg,
        "CG, diagonal preconditioner": diagonal_cg,
        "CG, Nystrom preconditioner": nystrom_cg,
        "Neumann": neumann,
        "Richardson": richardson,
        "Nystrom": nystrom,
    }
    if kind in solves:
        return implicit(solves[kind])
    unrolled = {
        "ITD reverse": outer_value,
        "ITD reverse, as lean": lean,
        "ITD checkpointed": checkpointed,
        "ITD, last half": truncated,
    }
    if kind in unrolled:
        return jax.jit(jax.grad(unrolled[kind]))
    return {"ITD forward": forward, "SID": sid}[kind]
