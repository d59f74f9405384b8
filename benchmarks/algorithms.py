"""Tuned and untuned runs of the stochastic methods on five problems.

    BILEVEL_DATA=... python benchmarks/algorithms.py [--quick] [--problems ..] [--seeds 10]

The problems are those of benchmark_bilevel that can be had offline: simulated quadratics;
hyper-cleaning of MNIST (20000 training rows of which 50, 70 or 90 % have their label drawn anew from
all ten classes, 5000 clean ones, 10000 test rows; softmax regression); logistic regression with one
penalty for each of 22 features, on data of the size and imbalance of ijcnn1 that scikit-learn
generates. Batches of 50; every method gets
about the same number of oracle calls.

"Untuned" is the class without arguments. "Tuned" is the best of a grid on the final value of seed 0,
two inner steps times four outer steps, both falling as 1 / sqrt(1 + k / 100); it then runs on ten
other seeds, as the untuned one does. The value is Phi(u), with w solved for, where that is cheap
(quadratics, logistic), and F(u, w) on all clean rows for hyper-cleaning, where the test error of w is
shown as well.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
from _measure import IMAGES, panels, save, write
from sklearn.datasets import make_classification

import bilevel
from bilevel import Blocks, Shuffled, datasets, tasks

CALLS = 12_000  # oracle calls per run
SEEDS = range(1, 11)
POINTS = 12  # of a curve
BATCH = 50  # divides all numbers of rows
INNER = (0.3, 0.1)  # in units of 1 / L
METHODS: dict[str, tuple[type, int]] = {  # with the oracle calls of a step
    "SOBA": (bilevel.SOBA, 4),
    "SABA": (bilevel.SABA, 4),
    "StocBiO": (bilevel.StocBiO, 23),
    "AmIGO": (bilevel.AmIGO, 24),
    "F2SA": (bilevel.F2SA, 33),
}


class Problem(NamedTuple):
    """A problem with its start, L at the start, grid of outer steps and measures of a point."""

    problem: bilevel.BilevelProblem
    u0: Any
    w0: Any
    curvature: float
    outer_steps: tuple[float, ...]
    value: Callable[[Any, Any], jax.Array]
    test_error: Callable[[Any, Any], jax.Array] | None = None


def quadratics() -> Problem:
    problem = tasks.quadratic(
        jr.key(0), num_inner_rows=4000, num_outer_rows=1000, dim_u=20, dim_w=100, condition=20.0
    )
    u0, w0 = jnp.zeros(20), jnp.zeros(100)
    hessian = jax.hessian(problem.inner, 1)(u0, w0, problem.inner_data)

    def value(u, w):
        gradient = jax.grad(problem.inner, 1)(u, jnp.zeros_like(w), problem.inner_data)
        return problem.outer(u, -jnp.linalg.solve(hessian, gradient), problem.outer_data)

    return Problem(problem, u0, w0, 1.0, (3e-3, 1e-2, 3e-2, 0.1), value)


def ijcnn1_like() -> Problem:
    x, y = make_classification(
        30_000, 22, n_informative=10, n_redundant=4, weights=[0.9], flip_y=0.02, random_state=0
    )
    x = np.asarray(x, np.float32)
    x = (x - x.mean(0)) / x.std(0)
    signs = 2 * np.asarray(y, np.float32) - 1
    rows = [
        (jnp.asarray(x[part]), jnp.asarray(signs[part]))
        for part in (slice(20_000), slice(20_000, None))
    ]
    problem = tasks.logistic(*rows[0], *rows[1])
    start = jnp.zeros(22)

    def value(u, w):
        def newton(_, w):
            gradient = jax.grad(problem.inner, 1)(u, w, problem.inner_data)
            hessian = jax.hessian(problem.inner, 1)(u, w, problem.inner_data)
            return w - jnp.linalg.solve(hessian, gradient)

        return problem.outer(u, jax.lax.fori_loop(0, 6, newton, jnp.zeros_like(w)), rows[1])

    return Problem(problem, start, start, 1.3, (1.0, 3.0, 10.0, 30.0), value)


def cleaning(rate: float) -> Problem:
    train, test = datasets.mnist("train"), datasets.mnist("test")
    x, x_test = (
        jnp.asarray(part.images.reshape(-1, 784) / 255, jnp.float32) for part in (train, test)
    )
    y, y_test = train.labels.astype(np.int32), jnp.asarray(test.labels.astype(np.int32))
    noisy = datasets.redraw_uniform(y[:20_000], rate, seed=0).labels
    model = tasks.models.linear_model(784, 10)
    problem = tasks.hyper_cleaning(
        x[:20_000],
        jnp.asarray(noisy, jnp.int32),
        x[20_000:25_000],
        jnp.asarray(y[20_000:25_000]),
        model.predict,
    )
    outer_steps = (100.0, 300.0, 1000.0, 3000.0)

    def value(u, w):
        return problem.outer(u, w, problem.outer_data)

    def error(u, w):
        return jnp.mean(jnp.argmax(model.predict(w, x_test), axis=1) != y_test)

    return Problem(problem, jnp.zeros(20_000), model.w0, 2.5, outer_steps, value, error)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "quadratics": quadratics,
    "logistic, 22 penalties": ijcnn1_like,
    "cleaning, 50 %": lambda: cleaning(0.5),
    "cleaning, 70 %": lambda: cleaning(0.7),
    "cleaning, 90 %": lambda: cleaning(0.9),
}


def falling(first):
    """A schedule whose first step is data, so that the grid compiles once."""
    return jax.tree_util.Partial(lambda first, k: first / jnp.sqrt(1 + k / 100), jnp.asarray(first))


def make(name: str, kind: type, steps: tuple[float, float] | None = None) -> Any:
    sampler = (Blocks if name == "SABA" else Shuffled)(BATCH)
    samplers = {"inner_sampler": sampler, "outer_sampler": sampler}
    if steps is None:
        return kind(**samplers)
    rho, eta = map(falling, steps)
    if name == "F2SA":
        return kind(rho, eta, **samplers)
    # A series has to keep its step: it is to approximate an inverse.
    linear = jnp.asarray(steps[0]) if name == "StocBiO" else rho
    return kind(rho, linear, eta, **samplers)


@eqx.filter_jit
def advance(problem, method, state, num_steps):
    return jax.lax.fori_loop(0, num_steps, lambda _, s: method.step(problem, s)[0], state)


def run(p: Problem, method: Any, seed: int, num_steps: int) -> tuple[float, float | None]:
    """The value, and the test error, at the end of a run."""
    start = eqx.filter_jit(lambda m, key: m.init(p.problem, p.u0, p.w0, key))
    state = advance(p.problem, method, start(method, jr.key(seed)), num_steps)
    value = float(eqx.filter_jit(p.value)(state.u, state.w))
    error = None if p.test_error is None else float(eqx.filter_jit(p.test_error)(state.u, state.w))
    return (value if np.isfinite(value) else np.inf), error


def tune(p: Problem, name: str, kind: type, num_steps: int) -> tuple[tuple[float, float], float]:
    """The best steps of the grid, and the value they reach on seed 0."""
    tried = {}
    for inner in INNER:
        for outer in p.outer_steps:
            steps = (inner / p.curvature, outer)
            tried[steps] = run(p, make(name, kind, steps), 0, num_steps)[0]
    best = min(tried, key=lambda s: tried[s])
    return best, tried[best]


def curves(p: Problem, methods: dict[str, tuple[Any, int]], seeds: range) -> pd.DataFrame:
    """Every method on every seed, by `bilevel.compare`."""
    metrics = {"value": p.value}
    if p.test_error is not None:
        metrics["test_error"] = p.test_error
    frames = [
        bilevel.compare(
            {name: method},
            p.problem,
            p.u0,
            p.w0,
            num_steps=num_steps,
            seeds=seeds,
            trace_every=max(num_steps // POINTS, 1),
            metrics=metrics,
            vmap=False,  # the CPU time is to be that of a single run
        )
        for name, (method, num_steps) in methods.items()
    ]
    return pd.concat(frames, ignore_index=True)


def report(frame: pd.DataFrame, column: str) -> dict[str, list[float]]:
    """Quartiles over the seeds of a column at the last trace point, for each algorithm."""
    last = frame.sort_values("step").groupby(["algorithm", "seed"], sort=False).tail(1)
    return {
        str(name): np.percentile(rows[column], [25, 50, 75]).tolist()
        for name, rows in last.groupby("algorithm", sort=False)
    }


def draw(frames: dict[str, pd.DataFrame]) -> None:
    """Two rows, value against oracle calls and against CPU time; tuned solid, untuned dashed."""
    from matplotlib.ticker import NullFormatter

    figure, axes = panels(2, len(frames), (max(3.3 * len(frames), 8), 6.4), squeeze=False)
    for column, (problem, frame) in zip(axes.T, frames.items(), strict=True):
        y = "test_error" if "test_error" in frame else "value"
        calls = frame[["outer_grads", "inner_grads", "hvps", "mixed"]].sum(axis=1)
        frame = frame.assign(calls=calls)[frame.step > 0]
        for axis, x in zip(column, ("calls", "cpu_seconds"), strict=True):
            for name, rows in frame.groupby("algorithm", sort=False):
                base, _, kind = str(name).partition(", ")
                color = f"C{list(METHODS).index(base)}"
                at = rows.groupby("step")
                middle = at[[x, y]].median()
                style = "-" if kind == "tuned" else "--"
                axis.plot(middle[x], middle[y], style, color=color, lw=1.3, label=name)
                axis.fill_between(
                    middle[x],
                    at[y].quantile(0.25),
                    at[y].quantile(0.75),
                    color=color,
                    alpha=0.15,
                    lw=0,
                )
            axis.set(xlabel=x.replace("_", " "), xscale="log")
            axis.xaxis.set_minor_formatter(NullFormatter())
        column[0].set_title(problem, fontsize=10)
        column[0].set_ylabel(y.replace("_", " "))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=5, fontsize=8)
    save(figure, IMAGES / "algorithms.png")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls, 3 seeds")
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    options = parser.parse_args()
    seeds = range(1, 1 + (3 if options.quick else options.seeds))
    calls = CALLS // 10 if options.quick else CALLS
    frames, results = {}, {}
    for problem_name in options.problems:
        p = PROBLEMS[problem_name]()
        runs: dict[str, tuple[Any, int]] = {}
        chosen = {}
        for name, (kind, cost) in METHODS.items():
            num_steps = calls // cost
            chosen[name], _ = tune(p, name, kind, num_steps)
            runs[f"{name}, tuned"] = (make(name, kind, chosen[name]), num_steps)
            runs[f"{name}, untuned"] = (make(name, kind), num_steps)
        frame = frames[problem_name] = curves(p, runs, seeds)
        values = report(frame, "value")
        errors = report(frame, "test_error") if p.test_error is not None else {}
        results[problem_name] = {
            name: {
                "steps": chosen[name],
                **{
                    kind: {
                        "value": values[f"{name}, {kind}"],
                        "test_error": errors.get(f"{name}, {kind}"),
                    }
                    for kind in ("tuned", "untuned")
                },
            }
            for name in METHODS
        }
        print(problem_name, results[problem_name], flush=True)
    draw(frames)
    measured = {
        "settings": {"oracle_calls": calls, "batch": BATCH, "quartiles": [25, 50, 75]},
        "seeds": list(seeds),
        "problems": results,
    }
    write(__file__, measured, full=not options.quick)


if __name__ == "__main__":
    main()
