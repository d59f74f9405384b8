"""The time per step of every method, beside a `lax.scan` of its arithmetic by hand.

    taskset -c 0 python benchmarks/step_time.py [--quick] [METHOD ...]

Logistic regression with one penalty per feature, 8000 x 784 rows that are drawn here, batches of 256.
The methods are those of the table `tests/methods.py`, their arithmetic by hand is in `_floors.py` and
`_floors_recent.py`, and the lengths of their loops are in `_logistic.py`. The federated methods have
4 of 125 clients per step, with 64 inner and 32 outer rows each; `GossipSOBA` has 4 agents who draw 64
rows each. The trajectories have to agree before a time is
taken. "kept" is what the state of the method holds beyond u, w, the random key and counters, in
vectors like w (u and w have the same size here).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import _logistic
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from _floors_recent import FLOORS
from _measure import RESULTS, cpu_ratio, cpu_seconds, write

import bilevel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from methods import METHODS

STEPS, REPEATS, QUICK = 200, 5, 3


@eqx.filter_jit
def library(problem, method, state):
    return jax.lax.scan(lambda s, _: (method.step(problem, s)[0], None), state, length=STEPS)[0]


@eqx.filter_jit
def by_hand(rows, outer_rows, method, floor, draws, shape):
    inner = _logistic.Draw(method.inner_sampler, rows)
    outer = _logistic.Draw(method.outer_sampler, outer_rows)
    step, carry = floor(jnp.zeros(shape), inner, outer)
    carry = carry(draws) if callable(carry) else carry
    return jax.lax.scan(lambda c, _: (step(*c), None), (carry, draws), length=STEPS)[0][0]


def kept(state: bilevel.State) -> float:
    """Floats of the state beyond u and w, in vectors like w."""
    leaves = jax.tree.leaves((state.aux, state.samplers.tables))
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(x.size for x in floats) / state.w.size


def measure(name: str, problems: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Time and memory of one method; its trajectory agrees with that of its floor."""
    row = METHODS[name]
    assert row.floor is not None
    problem, start = problems.get(row.page, problems[""])
    method, floor = row.floor(_logistic), FLOORS[name]
    shape = (start.size // _logistic.DIM, _logistic.DIM)  # points as rows
    state = method.init(problem, start, start, jr.key(0))
    draws = (state.samplers.outer, state.samplers.inner)

    def ours():
        return library(problem, method, state).w

    def theirs():
        return by_hand(problem.inner_data, problem.outer_data, method, floor, draws, shape)

    found = library(problem, method, state)
    pair = [c for c in jax.tree.leaves(theirs()) if c.shape == shape][:2]
    error = max(
        float(jnp.linalg.norm(a.reshape(shape) - b) / jnp.linalg.norm(b))
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
    parser.add_argument("methods", nargs="*", help="only these anew; the others stay")
    arguments = parser.parse_args(argv)
    quick, known = arguments.quick, [name for name, row in METHODS.items() if row.floor]
    earlier = json.loads((RESULTS / "step_time.json").read_text())["methods"]
    chosen = arguments.methods or known
    problems, methods = _logistic.problems(), {}
    for name in known:
        if name not in chosen:
            methods |= {name: earlier[name]} if name in earlier else {}
            continue
        methods[name] = measure(name, problems, QUICK if quick else REPEATS)
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
