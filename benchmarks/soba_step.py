"""What a SOBA step costs above the matrix products it cannot avoid, and what `solve` adds to it.

The problem is hyper-cleaning on MNIST (8000 x 784 training, 5000 outer rows, ten classes). The floor
is a scan of the products of one step and nothing else: the logits of the inner batch under `w` and
under `v`, of the outer batch under `w`, and the three products back to the parameters, on batches
drawn by the same sampler. "contiguous floor" replaces the drawing by slices of the data as they lie.

One thread: run it as `taskset -c 0`. Ratios are of medians of CPU times, taken alternately.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from _measure import cpu_ratio, cpu_seconds, write

import bilevel
from bilevel import datasets, tasks

N, OUTER, STEPS = 8000, 5000, 4096
TRACES = [("nothing", STEPS, 12), ("every 100 steps", 100, 6)]  # recorded, how often, pairs
REPEATS = 5


def problem_and_model():
    train = datasets.mnist("train")

    def rows(part):
        x = train.images[part].reshape(-1, 784) / 255
        return jnp.asarray(x, jnp.float32), jnp.asarray(train.labels[part], jnp.int32)

    model = tasks.models.linear_model(784, 10, bias=False)
    training, outer = rows(slice(0, N)), rows(slice(N, N + OUTER))
    return tasks.reweighting(*training, *outer, model.predict), model


@eqx.filter_jit
def bare_products(problem, sampler, w, v, inner_state, outer_state):
    """The matrix products of STEPS SOBA steps, on batches drawn by the sampler."""

    def step(carry, _):
        w, v, inner_state, outer_state = carry
        inner, inner_state = sampler.draw(problem.inner_data, inner_state)
        outer, outer_state = sampler.draw(problem.outer_data, outer_state)
        x, xo = inner.data[0], outer.data[0]
        w, v = products(w, v, x, xo)
        return (w, v, inner_state, outer_state), None

    return jax.lax.scan(step, (w, v, inner_state, outer_state), length=STEPS)[0]


def products(w, v, x, xo):
    """Three products forward, three back; the small factor keeps the numbers bounded."""
    z, zv, zo = w @ x.T, v @ x.T, w @ xo.T
    return w + 1e-6 * (z @ x), v + 1e-6 * (zv @ x - zo @ xo)


@eqx.filter_jit
def contiguous_products(problem, batch_size, w, v):
    """The same products on slices that lie together in memory."""
    x_all, xo_all = problem.inner_data[0], problem.outer_data[0]

    def step(carry, k):
        x = jax.lax.dynamic_slice_in_dim(x_all, (k * batch_size) % (N - batch_size), batch_size)
        xo = jax.lax.dynamic_slice_in_dim(
            xo_all, (k * batch_size) % (OUTER - batch_size), batch_size
        )
        w, v = carry
        return products(w, v, x, xo), None

    return jax.lax.scan(step, (w, v), jnp.arange(STEPS))[0]


@eqx.filter_jit
def bare_scan(problem, method, state):
    """STEPS steps of SOBA in one scan, with nothing recorded."""
    return jax.lax.scan(lambda s, _: (method.step(problem, s)[0], None), state, length=STEPS)[0]


def main() -> None:
    problem, model = problem_and_model()
    u, found = tasks.uniform_weights(N), {}
    for batch_size in (64, 256):
        sampler = bilevel.Shuffled(batch_size)
        method = bilevel.SOBA(1e-2, 1e-2, 0.1 * batch_size / N, sampler, sampler)
        state = method.init(problem, u, model.w0, jax.random.key(0))
        samplers = state.samplers
        w = jax.random.normal(jax.random.key(1), (10, 784))

        def solve(method=method, trace_every=STEPS):
            return bilevel.solve(
                problem,
                method,
                u,
                model.w0,
                num_steps=STEPS,
                trace_every=trace_every,
                chunk_size=256,
            ).u

        def scan(method=method, state=state):
            return bare_scan(problem, method, state)

        floor, contiguous, step = cpu_seconds(
            lambda: bare_products(problem, sampler, w, w, samplers.inner, samplers.outer),
            lambda: contiguous_products(problem, batch_size, w, w),
            scan,
            repeats=REPEATS,
        )
        found[batch_size] = {
            "step_us": 1e6 * step / STEPS,
            "bare_products_us": 1e6 * floor / STEPS,
            "over_bare_products": step / floor,
            "over_contiguous_products": step / contiguous,
            "solve_over_bare_scan": {
                name: cpu_ratio(partial(solve, trace_every=every), scan, repeats)
                for name, every, repeats in TRACES
            },
        }
        print(batch_size, found[batch_size], flush=True)
    settings = {
        "rows": N,
        "outer_rows": OUTER,
        "steps": STEPS,
        "repeats": REPEATS,
        "pairs": {name: repeats for name, _, repeats in TRACES},
    }
    write(__file__, {"settings": settings, "seeds": [0], "batches": found})


if __name__ == "__main__":
    main()
