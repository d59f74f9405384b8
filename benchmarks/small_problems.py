"""What a step costs on a small problem: beside benchmark_bilevel, for its draws, and for `"auto"`.

    git clone https://github.com/benchopt/benchmark_bilevel
    taskset -c 0 python benchmarks/small_problems.py --peer benchmark_bilevel

The peer's solvers are loaded from its files (the report is of commit 3ad65dc); of benchopt, which runs
them, only a few names are needed. The problem is that of its `datasets/ijcnn1.py`, a logistic
regression with one penalty per feature, stated in each library's terms on the same random rows: of 22
features as there, and of 784. Both sides draw contiguous blocks of 64 rows by their own samplers. On
full batches, whose steps need no draw, the trajectories of SOBA and AmIGO have to agree before a time
is taken; the start of SABA (here the gradients at the start, there zeros) and the momentum of FSLA's
first step differ.

Without `--peer`, only what sampling and "auto" cost is measured, and the rest of the report is kept:
the time of drawing the positions of 64 rows, above that of an empty scan, and the time of a step of
SOBA with both step sizes "auto" above that with numbers. That is the mean over all steps, with those
that make a product. One thread, medians of CPU times taken in turn.
"""

import argparse
import contextlib
import json
import os
import sys
import types
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")

import jax
import jax.numpy as jnp
import numpy as np
from _measure import RESULTS, cpu_ratio, cpu_seconds, write

import bilevel

ROWS, OUTER, SIZE, STEPS, REPEATS, LOOP = 49_984, 64_000, 64, 2048, 9, 10
STEP, OUTER_STEP, AGREE = 0.1, 0.05, 20
METHODS = {"SOBA": "soba", "SABA": "saba", "AmIGO": "amigo", "FSLA": "fsla"}
AGREES = ("SOBA", "AmIGO")


def loss(w: Any, x: Any, y: Any) -> Any:
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


def penalty(u: Any, w: Any) -> Any:
    return jnp.dot(jnp.exp(u) * w, w) / 2


def rows(columns: int) -> list[Any]:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=columns)
    found = []
    for n in (ROWS, OUTER):
        x = rng.normal(size=(n, columns)) / np.sqrt(columns)
        y = np.where(x @ truth + rng.normal(size=n) > 0, 1.0, -1.0)
        found += [jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)]
    return found


def load_peer(folder: Path) -> None:
    """Its modules can be imported, without benchopt."""
    names: dict[str, Any] = {
        "benchopt": {
            "safe_import_context": contextlib.nullcontext,
            "BaseSolver": type("BaseSolver", (), {}),
        },
        "benchopt.stopping_criterion": {"SufficientProgressCriterion": lambda **_: None},
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module
    sys.path.insert(0, str(folder))


def theirs(name: str, data: list[Any], size: int | str) -> Callable[[int], Any]:
    """So many steps of the peer; (w, u) after them."""
    x_in, y_in, x_out, y_out = data

    def sliced(x: Any, y: Any, start: Any, batch_size: int) -> tuple[Any, Any]:
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=batch_size)
        return cut(x), cut(y)

    def f_inner(w: Any, u: Any, start: Any = 0, batch_size: int = 1) -> Any:
        return loss(w, *sliced(x_in, y_in, start, batch_size)) + penalty(u, w)

    def f_outer(w: Any, u: Any, start: Any = 0, batch_size: int = 1) -> Any:
        del u
        return loss(w, *sliced(x_out, y_out, start, batch_size))

    solver = import_module(f"solvers.{METHODS[name]}").Solver()
    solver.step_size, solver.outer_ratio, solver.batch_size = STEP, STEP / OUTER_STEP, size
    solver.random_state, solver.n_inner_steps, solver.run_once = 1, LOOP, lambda _: None
    columns = x_in.shape[1]
    start = jnp.zeros(columns)
    solver.set_objective(f_inner, f_outer, len(x_in), len(x_out), start, start)

    def constant(carry: Any) -> Any:  # its steps shrink; here they do not
        rates = carry["state_lr"]
        return carry | {"state_lr": rates | {"exponents": jnp.zeros_like(rates["exponents"])}}

    def run(steps: int) -> Any:
        begun = solver.init()
        if name == "SABA":
            memory, carry = begun
            carry = solver.one_epoch(constant(carry), memory, steps)[1]
        else:
            carry = solver.one_epoch(constant(begun), steps)
        return carry["inner_var"], carry["outer_var"]

    return run


def ours(
    name: str, data: list[Any], draws: Any, step_sizes: Any = (STEP, STEP, OUTER_STEP)
) -> Callable[[int], Any]:
    """So many steps of this library; (w, u) after them."""
    x_in, y_in, x_out, y_out = data
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, batch: loss(w, *batch),
        inner=lambda u, w, batch: loss(w, *batch) + penalty(u, w),
        outer_data=(x_out, y_out),
        inner_data=(x_in, y_in),
    )
    samplers = {"inner_sampler": draws, "outer_sampler": draws}
    more = {"num_inner": LOOP, "num_linear": LOOP} if name == "AmIGO" else {}
    method = getattr(bilevel, name)(*step_sizes, **more, **samplers)
    start = jnp.zeros(x_in.shape[1])
    state = method.init(problem, start, start, jax.random.key(0))

    @partial(jax.jit, static_argnums=1)
    def scanned(state: Any, steps: int) -> Any:
        end = jax.lax.scan(lambda s, _: (method.step(problem, s)[0], None), state, length=steps)[0]
        return end.w, end.u

    return lambda steps: scanned(state, steps)


def measure(name: str, data: list[Any], repeats: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if name in AGREES:
        one = ours(name, data, bilevel.FullBatch())(AGREE)
        two = theirs(name, data, "full")(AGREE)
        gaps = [jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in zip(one, two, strict=True)]
        found["difference"] = max(float(gap) for gap in gaps)
        assert found["difference"] < 1e-4, found
    library, peer = ours(name, data, SAMPLERS["Blocks"]), theirs(name, data, SIZE)
    steps = STEPS // LOOP if name in ("AmIGO", "SABA") else STEPS
    quartiles = cpu_ratio(lambda: library(steps), lambda: peer(steps), repeats)
    seconds = cpu_seconds(lambda: library(steps), lambda: peer(steps), repeats=3)
    found |= {"quartiles": quartiles, "microseconds": [1e6 * s / steps for s in seconds]}
    print(data[0].shape[1], name, found, flush=True)
    return found


SAMPLERS = {
    "Blocks": bilevel.Blocks(SIZE),
    "Shuffled": bilevel.Shuffled(SIZE),
    "WithReplacement": bilevel.WithReplacement(SIZE),
}


def draws(repeats: int) -> dict[str, float]:
    """Microseconds of a draw of positions."""
    rows = jnp.zeros(ROWS, jnp.float32)

    def scanned(sampler: Any) -> Callable[[], Any]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            state, total = carry
            if sampler is None:
                return (state + 1, total + state), None
            batch, state = sampler.draw(rows, state)
            return (state, total + batch.index.sum()), None

        first = jnp.int32(0) if sampler is None else sampler.init(rows, jax.random.key(0))
        run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS)[0][1])
        return lambda: run((first, jnp.int32(0)))

    timed = [scanned(sampler) for sampler in (None, *SAMPLERS.values())]
    empty, *seconds = (1e6 * s / STEPS for s in cpu_seconds(*timed, repeats=repeats))
    return {name: s - empty for name, s in zip(SAMPLERS, seconds, strict=True)}


def automatic(data: list[Any], repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds of a step with numbers, and what "auto" adds."""
    found = {}
    for name, sampler in SAMPLERS.items():
        timed = [
            ours("SOBA", data, sampler, step_sizes)
            for step_sizes in ((STEP, STEP, OUTER_STEP), ("auto", "auto", OUTER_STEP))
        ]
        fixed, auto = cpu_seconds(*(partial(run, STEPS) for run in timed), repeats=repeats)
        found[name] = {"step": 1e6 * fixed / STEPS, "auto_adds": 1e6 * (auto - fixed) / STEPS}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", type=Path, help="a clone of benchmark_bilevel")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    path = RESULTS / "small_problems.json"
    found = json.loads(path.read_text())["columns"] if path.exists() else {}
    if options.peer is not None:
        load_peer(options.peer)
        for columns in (22, 784):
            data = rows(columns)
            found[str(columns)] = {name: measure(name, data, options.repeats) for name in METHODS}
    settings = {"rows": ROWS, "outer_rows": OUTER, "batch": SIZE, "steps": STEPS, "loops": LOOP}
    measured = {
        "settings": settings | {"peer": "3ad65dc"},
        "seeds": [0],
        "columns": found,
        "draws": draws(options.repeats),
        "auto": automatic(rows(22), options.repeats),
    }
    print(measured["draws"], measured["auto"])
    write(__file__, measured)


if __name__ == "__main__":
    main()
