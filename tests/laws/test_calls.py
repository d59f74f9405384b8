"""`calls` equals what is executed, counted by objectives that report to the host."""

import collections

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from helpers import COUPLED, Quadratic, soba, spd, with_steps

WIDE = Quadratic.random(4, spd(4, 14, 1.0, 30.0), 3)  # CG takes more than ten steps


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


INNER = bilevel.GradientInner(optax.sgd(0.02), 3)
DIRECT = bilevel.AID(lx.LU(), warm_start=False)
COLD_CG = bilevel.AID(bilevel.CG(rtol=1e-8), warm_start=False)
WARM_CG = bilevel.AID(bilevel.CG(rtol=1e-8))
LINEAX_CG = bilevel.AID(lx.CG(rtol=1e-8, atol=1e-8))

ROWS = {
    "SOBA": (COUPLED, "forward", soba(0.1, 0.1, 0.01)),
    "CG": (
        WIDE,
        "forward",
        bilevel.DoubleLoop(inner=INNER, hypergradient=COLD_CG, outer_tx=optax.sgd(0.01)),
    ),
    "CG warm": (
        WIDE,
        "forward",
        bilevel.DoubleLoop(
            inner=INNER, hypergradient=WARM_CG, outer_tx=optax.sgd(0.01), warm_start=True
        ),
    ),
    "lineax CG": (
        WIDE,
        "forward",
        bilevel.DoubleLoop(inner=INNER, hypergradient=LINEAX_CG, outer_tx=optax.sgd(0.01)),
    ),
    "LU": (
        COUPLED,
        "forward",
        bilevel.DoubleLoop(inner=INNER, hypergradient=DIRECT, outer_tx=optax.sgd(0.01)),
    ),
    "ITD": (
        COUPLED,
        "reverse",
        bilevel.DoubleLoop(inner=INNER, hypergradient=bilevel.ITD(), outer_tx=optax.sgd(0.01)),
    ),
}


SIZES = (0.02, 0.02, 0.01)
ROWS |= {
    name: (COUPLED, "forward", algorithm)
    for name, algorithm in {
        "SOBA auto": bilevel.SOBA(),
        "double loop auto": bilevel.DoubleLoop(bilevel.GradientInner("auto", 3), bilevel.AID()),
        "SRBA": with_steps(bilevel.SRBA, *SIZES, period=3),
        "FSLA": with_steps(bilevel.FSLA, *SIZES),
        "MRBO": with_steps(bilevel.MRBO, *SIZES, num_terms=4),
        "SUSTAIN": with_steps(bilevel.SUSTAIN, *SIZES, num_terms=4),
        "VRBO": with_steps(bilevel.VRBO, *SIZES, period=3, num_inner=2, num_terms=4),
        "StocBiO": with_steps(bilevel.StocBiO, *SIZES, num_inner=3, num_terms=4),
        "BSA": with_steps(bilevel.BSA, *SIZES, num_inner=3, num_terms=4),
        "AmIGO": with_steps(bilevel.AmIGO, *SIZES, num_inner=3, num_linear=4),
        "inexact": with_steps(bilevel.InexactDescent, *SIZES, num_steps=3),
        "F2SA": with_steps(bilevel.F2SA, 0.02, 0.01, num_inner=3),
        "penalty": with_steps(bilevel.ValueFunctionPenalty, 0.02, 0.01, num_inner=3),
        "BOME": with_steps(bilevel.BOME, 0.02, 0.01, num_inner=3),
        "PDBO": with_steps(bilevel.PDBO, 0.02, 0.01, num_inner=3),
        "PZOBO": with_steps(bilevel.PZOBO, 0.02, 0.01, num_inner=3, num_directions=2),
    }.items()
}


@pytest.mark.parametrize("name", ROWS)
def test_calls_are_the_calls_made(name):
    q, mode, algorithm = ROWS[name]
    problem, counts = counted(q, mode)
    dim = len(q.a)
    solution = bilevel.solve(
        problem, algorithm, jnp.ones(3), jnp.zeros(dim), num_steps=6, chunk_size=4
    )
    jax.effects_barrier()
    calls = solution.stats["calls"]
    assert {name: n for name, n in calls.items() if n} == dict(counts)
    # Outer gradients, inner gradients, Hessian-vector and mixed products of six steps.
    known = {
        "SOBA": [6, 6, 6, 6],
        "SOBA auto": [7, 7, 22 + 6 + 6, 8],
        "LU": [6, 24, 6 * (5 + 1), 6],
        "ITD": [6, 24, 18, 18],
        "SRBA": [10, 10, 10, 10],  # once at two exact steps, twice at four others
        "FSLA": [18, 6, 6, 12],
        "MRBO": [12, 12, 48, 12],
        "VRBO": [26, 26, 6 * 16 + 2 * 3, 26],
        "StocBiO": [6, 24, 24, 6],
        "AmIGO": [6, 24, 30, 6],
        "inexact": [6, 24, 24, 6],
        "F2SA": [24, 48, 0, 0],
        "penalty": [6, 30, 0, 0],
        "BOME": [6, 30, 0, 0],
        "PDBO": [6, 30, 0, 0],
        "PZOBO": [6, 60, 0, 0],
    }
    if name in known:
        assert list(calls.values()) == known[name]
    if "CG" in name:
        assert calls["hvp"] > 6 * 10
    assert solution.trace["hvps"][-1] == calls["hvp"]
    assert solution.trace["outer_grads"][-1] == calls["outer_grad"]
