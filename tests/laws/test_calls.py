"""`calls` equals what is executed, counted by objectives that report to the host."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from helpers import Quadratic
from methods import ROWS


def tick(counts, name, operand):
    """A zero that counts how often it is executed; what nothing uses is not executed."""

    def report(_):
        counts.update([name])
        return np.zeros(())

    @jax.custom_jvp
    def count(x):
        return jax.pure_callback(
            report, jax.ShapeDtypeStruct((), x.dtype), x, vmap_method="sequential"
        )

    count.defjvp(lambda primals, _: (count(*primals), jnp.zeros(())))
    return count(jnp.sum(operand))


def counted(q: Quadratic, mode: str):
    """A coupled quadratic as (problem, counter); `mode` is how its gradient is differentiated.

    "forward": the Hessian product is the rule of a JVP, as in a linearisation.
    "reverse": it is the rule of a VJP, as in unrolling.
    """
    counts = collections.Counter()
    a, b, c, t = (jnp.asarray(x) for x in (q.a, q.b, q.c, q.t))

    def value(u, w):
        return 0.5 * w @ a @ w - w @ (b @ u + c)

    def gradients(u, w):
        zero = tick(counts, "inner_grad", w)
        return -b.T @ w + zero, a @ w - b @ u - c + zero

    if mode == "forward":
        f, grads = jax.custom_jvp(value), jax.custom_jvp(gradients)

        @f.defjvp
        def _(primals, tangents):
            (du, dw), (gu, gw) = tangents, grads(*primals)
            return value(*primals), gu @ du + gw @ dw

        @grads.defjvp
        def _(primals, tangents):
            du, dw = tangents
            # The Hessian is constant: tied to u, or XLA would compute `H e_i` once for all steps.
            operand = jnp.sum(dw) + 0.0 * jnp.sum(primals[0])
            mixed, hvp = (tick(counts, name, operand) for name in ("mixed", "hvp"))
            return gradients(*primals), (-b.T @ dw + mixed, a @ dw - b @ du + hvp)

    else:
        f, grads = jax.custom_vjp(value), jax.custom_vjp(gradients)
        f.defvjp(
            lambda u, w: (value(u, w), grads(u, w)),
            lambda g, ct: (ct * g[0], ct * g[1]),
        )

        def products(_, ct):
            ct_u, ct_w = ct
            mixed, hvp = (tick(counts, name, ct_w) for name in ("mixed", "hvp"))
            return -b.T @ ct_w + mixed, a @ ct_w - b @ ct_u + hvp

        grads.defvjp(lambda u, w: (gradients(u, w), None), products)

    @jax.custom_vjp
    def outer(w):
        return 0.5 * jnp.sum((w - t) ** 2)

    def outer_forward(w):
        zero = tick(counts, "outer_grad", w)
        return 0.5 * jnp.sum((w - t) ** 2) + zero, w + zero

    outer.defvjp(outer_forward, lambda w, ct: (ct * (w - t),))
    return bilevel.BilevelProblem(lambda u, w, _: outer(w), lambda u, w, _: f(u, w)), counts


COUNTED = {name: (row, each) for row in ROWS for name, each in row.counted.items()}


KIN = {
    "lineax CG",
    "CG warm",
    "VRBO",
    "SUSTAIN",
    "SRBA",
    "PZOBO",
    "SPABA",
    "BSA",
    "InexactDescent",
    "LU",
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x in KIN)) for x in COUNTED]
)
def test_calls_are_the_calls_made(name):
    row, each = COUNTED[name]
    problem, counts = counted(each.quadratic, each.differentiated)
    dim = len(each.quadratic.a)
    solution = bilevel.solve(
        problem, each.algorithm, jnp.ones(3), jnp.zeros(dim), num_steps=6, chunk_size=4
    )
    jax.effects_barrier()
    calls = solution.stats["calls"]
    assert {name: n for name, n in calls.items() if n} == dict(counts)
    known = each.calls or row.calls_in(6, each)
    if known is not None:
        assert tuple(calls.values()) == known
    if "CG" in name:
        assert calls["hvp"] > 6 * 10
    assert solution.trace["hvps"][-1] == calls["hvp"]
    assert solution.trace["outer_grads"][-1] == calls["outer_grad"]
