"""Part d) of `equilibrium.py`: solvers of fixed-point equations on three maps."""

from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
import scipy.optimize
from _tutorial import fast, full_stream

import bilevel
from bilevel import Anderson, RootInner, tasks

WIDTH, CONTRACTION = 64, 0.9  # of the model
GOOD = 1e-6  # the residual, in the maximum norm, at which solvers are compared


def maps(u, x) -> dict[str, tuple[np.ndarray, Any]]:
    """`A` and the injections `U x + b` of three maps `tanh(A z + injection)`."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    skew = rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    skew = skew - skew.T

    def spread(low, high, share):
        return basis @ np.diag(np.linspace(low, high, WIDTH)) @ basis.T + share * skew

    slow = spread(-1, 1, 0.1)
    injection = x @ u["U"].T + u["b"]
    return {
        "as trained": (np.asarray(tasks.models.contracted(u["W"], CONTRACTION)), injection),
        "slow contraction": (0.98 * slow / np.linalg.norm(slow, 2), 0.1 * injection),
        "no contraction, one fixed point": (spread(-2, 0, 0.2), 0.1 * injection),
    }


def step_map(matrix, z, injection):
    return jnp.tanh(z @ matrix.T + injection)


def by_steps(solver, num_steps: int, matrix, injection):
    """The iterates of an optimistix fixed-point solver, from zero."""

    def fn(z, _):
        return step_map(matrix, z, injection), None

    def step(carry, _):
        z, state, _ = solver.step(fn, *carry[:1], None, {}, carry[1], frozenset())
        return (z, state), z

    z = jnp.zeros_like(injection)
    state = solver.init(fn, z, None, {}, None, None, frozenset())
    points = jax.lax.scan(step, (z, state), length=num_steps)[1]
    return points, jnp.ones(num_steps, int)


def by_newton(num_steps: int, cycle: int, matrix, injection):
    """The iterates of Newton's method, one cycle of lineax's GMRES per step, from zero."""
    gmres = lx.GMRES(rtol=0.0, atol=0.0, restart=cycle, max_steps=2)

    def step(z, _):
        residual, product = jax.linearize(lambda z: z - step_map(matrix, z, injection), z)
        operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: z))
        z = z - lx.linear_solve(operator, residual, gmres, throw=False).value
        return z, z

    points = jax.lax.scan(step, jnp.zeros_like(injection), length=num_steps)[1]
    # The map, a product before the cycle, those of the cycle, and one after it.
    return points, jnp.full(num_steps, cycle + 3)


def by_broyden(num_steps: int, matrix, injection):
    """Those of scipy, from J = -I, which is plain iteration; one evaluation per step, on the host."""
    run, points = jax.jit(step_map), []

    def function(z):
        points.append(z.copy())
        return np.asarray(run(matrix, jnp.asarray(z), injection)) - z

    start = np.zeros(injection.shape)
    scipy.optimize.broyden1(function, start, alpha=1.0, iter=num_steps, line_search=None)
    return jnp.asarray(np.array(points[1:])), jnp.ones(len(points) - 1, int)


def compare_solvers(u, x, num_steps: int) -> dict[str, Any]:
    """Residuals of all rows (maximum norm) against evaluations."""
    mixed = Anderson(1e-9, 1e-9)
    by_row = {"in_axes": (None, 0), "out_axes": (1, None)}
    ways = {
        "plain": fast(partial(by_steps, optx.FixedPointIteration(1e-9, 1e-9), num_steps)),
        "Anderson, by row": fast(jax.vmap(partial(by_steps, mixed, num_steps), **by_row)),
        "Anderson, all rows as one": fast(partial(by_steps, mixed, num_steps)),
        "Broyden (scipy), all rows as one": partial(by_broyden, num_steps),
        "Newton-GMRES, by row": fast(jax.vmap(partial(by_newton, num_steps // 8, 5), **by_row)),
    }
    sizes = fast(lambda a, zs, b: jnp.max(jnp.abs(step_map(a, zs, b[None]) - zs), axis=(1, 2)))
    found = {}
    for name, (matrix, injection) in maps(u, x).items():
        curves = {}
        for way, run in ways.items():
            points, costs = run(matrix, injection)
            size = np.nan_to_num(np.asarray(sizes(matrix, points, injection)), nan=np.inf)
            cost = np.cumsum(costs)
            needed = int(cost[np.argmax(size <= GOOD)]) if np.any(size <= GOOD) else None
            curves[way] = {
                "evaluations": cost.tolist(),
                "residual": size.tolist(),
                "needed": needed,
            }
        found[name] = {
            "norm": float(np.linalg.norm(matrix, 2)),
            "spectral_radius": float(np.abs(np.linalg.eigvals(matrix)).max()),
            "curves": curves,
        }
    return found


def seconds(u, x, rounds: int = 20) -> dict[str, float]:
    """The median wall time of one solve of the trained model to 1e-5, in float32."""
    model = tasks.models.equilibrium_model(x.shape[1], 10, key=jr.key(0), width=WIDTH)
    problem = bilevel.FixedPointProblem(lambda u, w, _: jnp.sum(w), model.cell, inner_data=x)
    ways = {
        "plain": RootInner(optx.FixedPointIteration(1e-5, 1e-5)),
        "Anderson, by row": RootInner(Anderson(1e-5, 1e-5), by_row=True),
        "Anderson, all rows as one": RootInner(Anderson(1e-5, 1e-5)),
    }
    w, found = jnp.zeros((len(x), WIDTH), x.dtype), {}
    stream = full_stream(x)
    for name, inner in ways.items():
        run = jax.jit(lambda u, w, inner=inner: inner.solve(problem, u, w, (), stream)[0])
        jax.block_until_ready(run(u, w))
        times = []
        for _ in range(rounds):
            start = perf_counter()
            jax.block_until_ready(run(u, w))
            times.append(perf_counter() - start)
        found[name] = float(np.median(times))
    return found
