"""The time per step of every method, beside a `lax.scan` of its arithmetic by hand.

    taskset -c 0 python benchmarks/step_time.py [--quick]

Logistic regression with one penalty per feature, 8000 x 784 rows that are drawn here, batches of 256.
The methods are those of the table `tests/methods.py`, their arithmetic by hand is in `_floors.py`, and
the lengths of their loops are in `_logistic.py`. The trajectories have to agree before a time is
taken. "kept" is what the state of the method holds beyond u, w, the random key and counters, in
vectors like w (u and w have the same size here).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import _floors
import _logistic
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from _measure import cpu_ratio, cpu_seconds, write

import bilevel
from bilevel import tasks

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from methods import METHODS

STEPS, REPEATS, QUICK = 200, 5, 3


@eqx.filter_jit
def library(problem, method, state):
    return jax.lax.scan(lambda s, _: (method.step(problem, s)[0], None), state, length=STEPS)[0]


@eqx.filter_jit
def by_hand(rows, outer_rows, method, floor, draws):
    inner = _logistic.Draw(method.inner_sampler, rows)
    outer = _logistic.Draw(method.outer_sampler, outer_rows)
    step, carry = floor(jnp.zeros((1, _logistic.DIM)), inner, outer)
    carry = carry(draws) if callable(carry) else carry
    return jax.lax.scan(lambda c, _: (step(*c), None), (carry, draws), length=STEPS)[0][0]


def kept(state: bilevel.State) -> float:
    """Floats of the state beyond u and w, in vectors like w."""
    leaves = jax.tree.leaves((state.aux, state.samplers.tables))
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(x.size for x in floats) / _logistic.DIM


def measure(name: str, problem: bilevel.BilevelProblem, repeats: int) -> dict[str, Any]:
    """Time and memory of one method; its trajectory agrees with that of its floor."""
    row = METHODS[name]
    assert row.floor is not None
    method, floor = row.floor(_logistic), vars(_floors)[row.page]
    start = jnp.zeros(_logistic.DIM)
    state = method.init(problem, start, start, jr.key(0))
    draws = (state.samplers.outer, state.samplers.inner)

    def ours():
        return library(problem, method, state).w

    def theirs():
        return by_hand(problem.inner_data, problem.outer_data, method, floor, draws)

    found = library(problem, method, state)
    pair = [c[0] for c in jax.tree.leaves(theirs()) if c.shape == (1, _logistic.DIM)][:2]
    error = max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        for a, b in zip((found.u, found.w), pair, strict=True)
    )
    assert error < 1e-3, f"{name}: the trajectories differ by {error:.1e}"
    quartiles = cpu_ratio(ours, theirs, repeats)
    (seconds,) = cpu_seconds(ours, repeats=3)
    return {
        "microseconds": 1e6 * seconds / STEPS,
        "quartiles": quartiles,
        "kept": kept(state),
        "error": error,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure all methods and write `results/step_time.json`."""
    parser = argparse.ArgumentParser(description="The time per step of the methods.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} repeats, not {REPEATS}")
    quick = parser.parse_args(argv).quick
    problem, methods = tasks.logistic(*_logistic.data()), {}
    for name in [name for name, row in METHODS.items() if row.floor]:
        methods[name] = measure(name, problem, QUICK if quick else REPEATS)
        low, middle, high = methods[name]["quartiles"]
        print(
            f"{name:20s} {methods[name]['microseconds']:7.0f} us per step, over the scan by hand "
            f"{middle:.2f} (quartiles {low:.2f}, {high:.2f}); kept {methods[name]['kept']:.0f} "
            f"vectors; trajectories agree to {methods[name]['error']:.0e}",
            flush=True,
        )
    settings = {
        "rows": _logistic.N,
        "columns": _logistic.DIM,
        "batch": _logistic.BATCH,
        "inner_steps": _logistic.T,
        "terms": _logistic.K,
        "period": _logistic.PERIOD,
        "steps": STEPS,
        "repeats": QUICK if quick else REPEATS,
    }
    write("step_time", {"settings": settings, "methods": methods}, full=not quick)


if __name__ == "__main__":
    main()
