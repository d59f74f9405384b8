"""Of several inner minima, which does each method end at, and how close to the best?

    python benchmarks/several_minima.py       half a minute; writes its report to benchmarks/results

The problem and the best point stand on docs/methods/pdbo.md, the least-squares problem of the
BiG-SAM part on docs/methods/bigsam.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from _measure import write

import bilevel
from bilevel import AID, ITD, DoubleLoop, GradientInner


def outer(u, w, batch):
    return 0.5 * (u - w[1]) ** 2 + 0.5 * (w[0] - 1) ** 2 + 0.5 * u**2


def inner(u, w, batch):
    return 0.5 * w[0] ** 2 - u * w[0]


def first_order() -> list[dict[str, Any]]:
    """Where each method ends after 1000 steps from u = 0, w = (0, 2); the best is u = w = 1/2."""
    problem = bilevel.BilevelProblem(outer, inner)
    solver = GradientInner(optax.sgd(0.5), 100)
    methods = {
        "`PDBO()`": bilevel.PDBO(),
        "`ValueFunctionPenalty()`": bilevel.ValueFunctionPenalty(),
        "`BOME()`": bilevel.BOME(),
        "`DoubleLoop` with `AID(lineax.SVD())`": DoubleLoop(solver, AID(lx.SVD())),
        "`DoubleLoop` with `ITD()`": DoubleLoop(solver, ITD()),
    }
    rows = []
    for name, method in methods.items():
        found = bilevel.solve(
            problem, method, jnp.array(0.0), jnp.array([0.0, 2.0]), num_steps=1000, throw=False
        )
        u, w = float(found.u), np.asarray(found.w, float)
        rows.append(
            {
                "method": name,
                "u": u - 0.5,
                "w_2": float(w[1]) - 0.5,
                "outer value": float(outer(u, w, None)),
                "inner value above its minimum": float((w[0] - u) ** 2 / 2),
            }
        )
    return rows


def with_singular_values(rng, n: int, m: int, low: float, high: float) -> np.ndarray:
    q = np.linalg.qr(rng.normal(size=(m, n)))[0].T
    return np.linalg.qr(rng.normal(size=(n, n)))[0] @ (np.linspace(low, high, n)[:, None] * q)


def weightings() -> list[dict[str, Any]]:
    """Where BiG-SAM ends after K steps on a least-squares f with 3 rows for 6 unknowns."""
    rng = np.random.default_rng(0)
    A, B, c = with_singular_values(rng, 3, 6, 1.0, 2.0), rng.normal(size=(3, 2)), rng.normal(size=3)
    R = with_singular_values(rng, 6, 6, 1.0, np.sqrt(3.0))
    S, t = 0.3 * rng.normal(size=(6, 2)), rng.normal(size=6)
    u = np.array([0.5, -0.3])

    def f(u, w, rows):
        return 0.5 * jnp.sum((A @ w - B @ u - c) ** 2)

    def outer(u, w, rows):
        return 0.5 * jnp.sum((R @ w - S @ u - t) ** 2) + 0.5 * jnp.sum(u**2)

    problem = bilevel.BilevelProblem(outer, f)
    nearest = np.linalg.pinv(A) @ (B @ u + c)  # where gradient descent from 0 ends
    null = np.linalg.svd(A)[2][3:].T
    best = nearest + null @ np.linalg.lstsq(R @ null, S @ u + t - R @ nearest, rcond=None)[0]
    free = np.linalg.solve(R, S @ u + t)
    kinds = {
        "`sabach_shtern_weighting(beta)`": bilevel.sabach_shtern_weighting(0.5),
        "`printed_weighting()`": bilevel.printed_weighting(),
    }
    points = {"the best inner minimiser": best, "the end of gradient descent": nearest}
    rows = [
        {"weighting": name, "outer value": float(outer(u, w, None))} for name, w in points.items()
    ]
    for name, weighting in kinds.items():
        for num_steps in (100, 1000, 10000):
            solver = bilevel.BiGSAM(0.25, 0.5, num_steps, weighting)
            stream = bilevel.Stream(bilevel.FullBatch(), None, ())
            w0 = jnp.zeros(6)
            w = np.asarray(solver.solve(problem, jnp.asarray(u), w0, (), stream)[0])
            rows.append(
                {
                    "weighting": name,
                    "K": num_steps,
                    "distance to the best": float(np.linalg.norm(w - best) / np.linalg.norm(best)),
                    "distance to argmin F": float(np.linalg.norm(w - free) / np.linalg.norm(free)),
                    "inner value above its minimum": float(f(u, w, None)),
                    "outer value": float(outer(u, w, None)),
                }
            )
    return rows


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    write(
        __file__,
        {"settings": {"steps": 1000}, "methods": first_order(), "weightings": weightings()},
    )


if __name__ == "__main__":
    main()
