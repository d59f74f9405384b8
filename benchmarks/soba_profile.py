"""Where the time of a SOBA step goes: scans of its parts, on the problem of `soba_step.py`.

    taskset -c 0 python benchmarks/soba_profile.py

8000 x 784 training rows, ten classes; the numbers are random, as only times are measured. By hand: the
arithmetic of the step with nothing of this library but its samplers. One thread, medians of CPU times,
taken in turn.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _measure import cpu_seconds, write

import bilevel
from bilevel import tasks

N, OUTER, COLUMNS, CLASSES, STEPS, REPEATS = 8000, 5000, 784, 10, 256, 7
STEP = 1e-3


def scanned(step: Callable[[Any], Any], start: Any) -> Callable[[], Any]:
    """Many steps in one program."""
    program = jax.jit(lambda c: jax.lax.scan(lambda c, _: (step(c), None), c, length=STEPS)[0])
    return lambda: program(start)


def parts(size: int) -> dict[str, Callable[[], Any]]:
    """What is timed, each with all of what stands before it but the products on one batch."""
    rng = np.random.default_rng(0)

    def rows(n: int) -> tuple[jax.Array, jax.Array]:
        labels = rng.integers(0, CLASSES, n)
        return jnp.asarray(rng.random((n, COLUMNS)), jnp.float32), jnp.asarray(labels, jnp.int32)

    model = tasks.models.linear_model(COLUMNS, CLASSES, bias=False)
    problem = tasks.reweighting(*rows(N), *rows(OUTER), model.predict)
    sampler = bilevel.Shuffled(size)
    method = bilevel.SOBA(STEP, STEP, STEP, sampler, sampler)
    state = method.init(problem, tasks.uniform_weights(N), model.w0, jax.random.key(0))
    streams = state.samplers.inner, state.samplers.outer
    w = jnp.zeros((CLASSES, COLUMNS))
    inner_data: Any = problem.inner_data
    outer_data: Any = problem.outer_data
    first = inner_data[0][:size], outer_data[0][:size]

    def draw(streams: Any) -> tuple[Any, Any, Any]:
        inner, a = sampler.draw(inner_data, streams[0])
        outer, b = sampler.draw(outer_data, streams[1])
        return inner, outer, (a, b)

    def draws(carry: Any) -> Any:
        streams, total = carry
        inner, outer, streams = draw(streams)
        return streams, total + inner.index[0] + outer.index[0]

    def gathered(carry: Any) -> Any:
        streams, total = carry
        inner, outer, streams = draw(streams)
        return streams, total + inner.data[0].sum(0) + outer.data[0].sum(0)

    def products(w: Any, v: Any, x: Any, xo: Any) -> Any:
        z, zv, zo = w @ x.T, v @ x.T, w @ xo.T
        return w + 1e-6 * (z @ x), v + 1e-6 * (zv @ x - zo @ xo)

    def on_batches(carry: Any) -> Any:
        w, v, streams = carry
        inner, outer, streams = draw(streams)
        return *products(w, v, inner.data[0], outer.data[0]), streams

    def by_hand(carry: Any) -> Any:
        w, v, u, streams = carry
        inner, outer, streams = draw(streams)
        x, y, xo, yo, at = *inner.data[:2], *outer.data[:2], inner.index
        p, zv, po = jax.nn.softmax(x @ w.T), x @ v.T, jax.nn.softmax(xo @ w.T)
        weight = jax.nn.sigmoid(u[at])
        r = p - jax.nn.one_hot(y, CLASSES)
        curved = p * (zv - (p * zv).sum(1, keepdims=True))
        ro = (po - jax.nn.one_hot(yo, CLASSES)) / size
        slope = (r * zv).sum(1) * weight * (1 - weight) / size
        weight = weight[:, None] / size
        w_next = w - STEP * ((weight * r).T @ x)
        v_next = v - STEP * ((weight * curved).T @ x - ro.T @ xo)
        return w_next, v_next, u.at[at].add(STEP * slope), streams

    return {
        "both draws, of positions": scanned(draws, (streams, jnp.int32(0))),
        "with the gather of their rows": scanned(gathered, (streams, jnp.zeros(COLUMNS))),
        "the six products, on one batch": scanned(lambda c: products(c[0], c[1], *first), (w, w)),
        "draws, gather and products": scanned(on_batches, (w, w, streams)),
        "the whole step by hand": scanned(by_hand, (w, w, jnp.zeros(N), streams)),
        "`SOBA`": scanned(lambda s: method.step(problem, s)[0], state),
    }


def main() -> None:
    found = {}
    for size in (64, 256):
        timed = parts(size)
        seconds = cpu_seconds(*timed.values(), repeats=REPEATS)
        found[size] = dict(zip(timed, (1e6 * x / STEPS for x in seconds), strict=True))
        print(size, found[size], flush=True)
    settings = {"rows": N, "outer_rows": OUTER, "columns": COLUMNS, "steps": STEPS}
    write(__file__, {"settings": settings, "seeds": [0], "microseconds": found})


if __name__ == "__main__":
    main()
