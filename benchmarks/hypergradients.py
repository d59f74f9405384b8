"""Every hypergradient estimator: error against time and memory, and its cost above handwritten JAX.

There are two problems in float64, each with one inner solver that all estimators share:

    logistic   400 features, one l2 penalty each (dim u = 400), 500 gradient steps from zero;
    mlp        64-16-10 tanh network on 300 digits, one l2 penalty per tensor (dim u = 4), 200 gradient
               steps from a point near the solution.

Errors are relative to AID with CG at 1e-12 at an inner point solved by Newton's method; the error
estimate is divided by the same norm. Time is CPU time above that of the inner solve alone (for SID,
which has a stochastic inner solve of its own, it is the whole time); memory is XLA's count of
temporaries in units of one vector like `w`.

Then comes the ratio of the library's estimate to the same arithmetic written by hand, in float32, on a
logistic problem with 4000 rows and 500 features. Only the gradient is asked for, as in a training
loop: what else an estimate has (residuals, error estimate) is dead code there.

One thread: run it as `taskset -c 0 python benchmarks/hypergradients.py`.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from _by_hand import BATCH, DAMPING, INNER, RANK, SAMPLES, TERMS, by_hand, logistic_loss
from _measure import IMAGES, cpu_ratio, cpu_seconds, panels, save, write
from jax.flatten_util import ravel_pytree

import bilevel
from bilevel import (
    AID,
    CG,
    ITD,
    SID,
    Neumann,
    Nystrom,
    Richardson,
    diagonal_preconditioner,
    nystrom_preconditioner,
)

REPEATS = 11


class Case(NamedTuple):
    """A problem with its inner solver and the reference hypergradient."""

    name: str
    outer: Callable
    inner: Callable
    data: tuple[Any, Any]  # outer, inner
    u: Any
    w0: Any
    mu: float  # the smallest and the largest eigenvalue of the inner Hessian at the solution
    largest: float
    num_steps: int
    reference: np.ndarray

    @property
    def step(self) -> float:
        return 1 / self.largest

    @property
    def solver(self) -> bilevel.GradientInner:
        return bilevel.GradientInner(optax.sgd(self.step), self.num_steps)


def streams_of(problem, sampler=None):
    """Both streams, of full batches or from a sampler."""
    sampler = bilevel.FullBatch() if sampler is None else sampler
    keys = jax.random.split(jax.random.key(0))
    return bilevel.Streams(
        *(
            bilevel.Stream(sampler, data, sampler.init(data, key))
            for data, key in zip((problem.outer_data, problem.inner_data), keys, strict=True)
        )
    )


def newton(inner, u, w, batch):
    """A minimiser to rounding error, from a start near enough, and the extreme eigenvalues there."""
    flat, unravel = ravel_pytree(w)
    gradient = jax.jit(jax.grad(lambda x: inner(u, unravel(x), batch)))
    hessian = jax.jit(jax.hessian(lambda x: inner(u, unravel(x), batch)))
    for _ in range(9):
        flat = flat - jnp.linalg.solve(hessian(flat), gradient(flat))
    eigenvalues = np.linalg.eigvalsh(np.asarray(hessian(flat)))
    size = float(jnp.linalg.norm(gradient(flat)))
    assert size < 1e-10, f"the reference is not a minimiser: |grad_w f| = {size:.1e}"
    return unravel(flat), (float(eigenvalues[0]), float(eigenvalues[-1]))


def logistic_outer(u, w, batch):
    return logistic_loss(w, batch)


def logistic_inner(u, w, batch):
    return logistic_loss(w, batch) + 0.5 * jnp.sum(jnp.exp(u) * w**2)


def logistic_data(rows: int, features: int, dtype=None):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=features) / np.sqrt(features)
    x = rng.normal(size=(2 * rows, features)) / np.arange(1, features + 1) ** 0.25
    y = np.sign(x @ truth + 0.3 * rng.normal(size=2 * rows))
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    return (x[rows:], y[rows:]), (x[:rows], y[:rows])


def logistic() -> Case:
    features = 400
    data = logistic_data(1000, features)
    u = jnp.asarray(np.random.default_rng(1).uniform(-5, -3, size=features))
    w0 = jnp.zeros(features)
    star, ends = newton(logistic_inner, u, w0, data[1])
    return finish("logistic", logistic_outer, logistic_inner, data, u, w0, star, ends, 500)


def mlp_logits(w, x):
    return jnp.tanh(x @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]


def mlp_loss(w, batch):
    x, y = batch
    logits = mlp_logits(w, x)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def mlp_outer(u, w, batch):
    return mlp_loss(w, batch)


def mlp_inner(u, w, batch):
    penalty = jax.tree.map(lambda a, x: jnp.exp(a) * jnp.sum(x**2), u, w)
    return mlp_loss(w, batch) + 0.5 * sum(jax.tree.leaves(penalty))


def mlp() -> Case:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16), jnp.asarray(y, jnp.int32)
    data = (x[300:600], y[300:600]), (x[:300], y[:300])
    keys = jax.random.split(jax.random.key(0))
    w = {
        "w1": jax.random.normal(keys[0], (64, 16)) / 8,
        "b1": jnp.zeros(16),
        "w2": jax.random.normal(keys[1], (16, 10)) / 4,
        "b2": jnp.zeros(10),
    }
    u = {name: jnp.asarray(-4.0) for name in w}
    problem = bilevel.BilevelProblem(mlp_outer, mlp_inner, *data)
    train = bilevel.GradientInner(optax.adam(optax.exponential_decay(1e-2, 1000, 0.5)), 10_000)
    stream = streams_of(problem).inner
    near = jax.jit(lambda w: train.solve(problem, u, w, train.init(problem, u, w), stream)[0])(w)
    star, ends = newton(mlp_inner, u, near, data[1])
    away = optax.tree.random_like(jax.random.key(2), star)
    w0 = optax.tree.add_scale(star, 0.03 / optax.tree.norm(away), away)
    return finish("mlp", mlp_outer, mlp_inner, data, u, w0, star, ends, 200)


def finish(name, outer, inner, data, u, w0, star, ends, num_steps) -> Case:
    problem = bilevel.BilevelProblem(outer, inner, *data)
    estimate = jax.jit(
        lambda u, w: bilevel.implicit_gradient(problem, u, w, CG(rtol=1e-12, max_steps=5000))
    )(u, star)
    reference = np.asarray(ravel_pytree(estimate.grad)[0])
    return Case(name, outer, inner, data, u, w0, ends[0], ends[1], num_steps, reference)


def estimators(case: Case) -> dict[str, tuple[bilevel.AbstractHypergradient, Any, Any]]:
    """Each with its inner solver and the sampler it draws from."""
    step, few = case.step, case.num_steps // 10
    ridge = 1e-2
    solvers = {
        "CG": CG(rtol=1e-6),
        "CG, 5 steps": CG(rtol=0, max_steps=5),
        "CG, Nystrom precond.": CG(rtol=1e-6, preconditioner=nystrom_preconditioner(20, ridge)),
        "CG, diagonal precond.": CG(rtol=1e-6, preconditioner=diagonal_preconditioner(20)),
        "GMRES (lineax)": lx.GMRES(rtol=1e-6, atol=1e-9, restart=40, stagnation_iters=200),
        "Richardson": Richardson(step, rtol=1e-6, max_steps=2000),
        "identity (Neumann 1)": Neumann(step, 1),
        "Neumann 10": Neumann(step, 10),
        "Neumann 100": Neumann(step, 100),
        "Nystrom 20": Nystrom(20, ridge),
        "Nystrom 100": Nystrom(100, ridge),
    }
    rows: dict[str, bilevel.AbstractHypergradient] = {
        name: AID(solver, warm_start=False) for name, solver in solvers.items()
    }
    rows["CG, damping 1e-2"] = AID(CG(rtol=1e-6), damping=ridge, warm_start=False)
    if case.name == "logistic":
        rows["pseudo-inverse (SVD)"] = AID(lx.SVD(), warm_start=False)
    rows["ITD reverse"] = ITD()
    rows["ITD checkpointed"] = ITD("checkpointed")
    rows["ITD, last tenth of the steps"] = ITD(truncate=few)
    if len(case.reference) <= 10:
        rows["ITD forward"] = ITD("forward")
    all_rows: dict[str, tuple[bilevel.AbstractHypergradient, Any, Any]] = {
        name: (estimator, case.solver, None) for name, estimator in rows.items()
    }
    decreasing = bilevel.decreasing_step(2 / case.mu, 10 * case.largest / case.mu)
    all_rows["SID, batches of 64"] = (
        SID(bilevel.StochasticRichardson(decreasing, 2000), num_samples=20),
        bilevel.GradientInner(optax.sgd(decreasing), 4000),
        bilevel.WithReplacement(64),
    )
    return all_rows


class Row(NamedTuple):
    """One line of the table."""

    name: str
    error: float
    error_estimate: float
    milliseconds: float
    memory: float


def measure(case: Case) -> tuple[list[Row], float]:
    """The rows, and the milliseconds of the inner solve."""

    def compiled(what: Callable) -> tuple[Callable[[], Any], float]:
        run = jax.jit(what).lower(case.u, case.w0, case.data).compile()
        memory = run.memory_analysis()
        assert memory is not None
        size = ravel_pytree(case.w0)[0].nbytes
        return lambda: run(case.u, case.w0, case.data), memory.temp_size_in_bytes / size

    def inner_solve(u, w, data):
        problem = bilevel.BilevelProblem(case.outer, case.inner, *data)
        stream, state = streams_of(problem).inner, case.solver.init(problem, u, w)
        return case.solver.solve(problem, u, w, state, stream)[0]

    alone, _ = compiled(inner_solve)
    rows, floors = [], []
    scale = np.linalg.norm(case.reference)
    for name, (estimator, inner, sampler) in estimators(case).items():

        def estimate(u, w, data, estimator=estimator, inner=inner, sampler=sampler):
            problem = bilevel.BilevelProblem(case.outer, case.inner, *data)
            streams = streams_of(problem, sampler)
            state = estimator.init(problem, inner, u, w)
            return estimator.estimate(problem, inner, u, w, state, streams)[0]

        def gradient(u, w, data, estimate=estimate):
            return estimate(u, w, data).grad

        judged, _ = compiled(lambda *args, estimate=estimate: _numbers(estimate(*args)))
        run, memory = compiled(gradient)
        grad, said = judged()
        seconds, floor = cpu_seconds(run, alone, repeats=3)
        floors.append(floor)
        seconds -= 0 if isinstance(estimator, SID) else floor
        error = np.linalg.norm(np.asarray(ravel_pytree(grad)[0]) - case.reference) / scale
        rows.append(Row(name, float(error), float(said / scale), 1e3 * seconds, float(memory)))
    return rows, 1e3 * float(np.median(floors))


def _numbers(found: bilevel.Hypergradient):
    return found.grad, found.error_estimate


def draw(results: list[tuple[str, list[Row]]]) -> None:
    """Error against time, and against memory."""
    import matplotlib as mpl

    colours, markers = mpl.colormaps["tab20"], "osD^v<>pPX*hHd8"
    names = list(dict.fromkeys(p.name for _, points in results for p in points))
    figure, axes = panels(len(results), 2, (13, 10))
    handles = {}
    for row, (problem, points) in zip(axes, results, strict=True):
        for p in points:
            i = names.index(p.name)
            style = {
                "color": colours(i % 20),
                "marker": markers[i % len(markers)],
                "s": 80,
                "edgecolors": "k",
                "linewidths": 0.5,
            }
            # A time below a tenth of a millisecond is noise, an error below 1e-12 the reference's.
            error = max(p.error, 1e-12)
            handles[p.name] = row[0].scatter(max(p.milliseconds, 0.1), error, **style)
            row[1].scatter(p.memory, error, **style)
        row[0].set(xlabel="CPU ms above the inner solve", ylabel=f"{problem}: relative error")
        row[1].set(xlabel="temporaries, in vectors like w")
        for axis in row:
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
    legend = [handles[name] for name in names]
    figure.legend(legend, names, loc="outside right center", fontsize=10)
    save(figure, IMAGES / "hypergradients.png")


def ratios() -> dict[str, dict[str, Any]]:
    """For each estimator, the quartiles of the ratio to the same arithmetic by hand."""
    data = logistic_data(4000, 500, jnp.float32)
    x = np.asarray(data[1][0])
    step = float(1 / (0.25 * np.linalg.norm(x, 2) ** 2 / len(x) + 0.02))
    w = jnp.zeros(500)

    found = {}
    full, batches = None, bilevel.WithReplacement(BATCH)

    def aid(solver: Any, damping: float = 0.0) -> AID:
        return AID(solver, damping=damping, warm_start=False)

    def cg(preconditioner: Any = None) -> CG:
        return CG(rtol=0, max_steps=TERMS, preconditioner=preconditioner)

    noisy = bilevel.StochasticRichardson(step, 10 * TERMS)
    for kind, estimator, num_steps, sampler in [
        ("CG", aid(cg()), INNER, full),
        ("CG, damping", aid(cg(), DAMPING), INNER, full),
        ("CG, diagonal preconditioner", aid(cg(diagonal_preconditioner(RANK))), INNER, full),
        ("CG, Nystrom preconditioner", aid(cg(nystrom_preconditioner(RANK, DAMPING))), INNER, full),
        ("Neumann", aid(Neumann(step, TERMS)), INNER, full),
        ("Richardson", aid(Richardson(step, rtol=0, max_steps=TERMS)), INNER, full),
        ("Nystrom", aid(Nystrom(RANK, DAMPING)), INNER, full),
        ("ITD reverse", ITD(), TERMS, full),
        ("ITD reverse, as lean", ITD(), TERMS, full),
        ("ITD checkpointed", ITD("checkpointed"), TERMS, full),
        ("ITD, last half", ITD(truncate=TERMS // 2), TERMS, full),
        ("ITD forward", ITD("forward"), TERMS, full),
        ("SID", SID(noisy, SAMPLES), 10 * TERMS, batches),
    ]:
        u = jnp.asarray(-4.0) if kind == "ITD forward" else jnp.full(500, -4.0)
        inner = bilevel.GradientInner(optax.sgd(step), num_steps)

        @jax.jit
        def library(u, w, data, estimator=estimator, inner=inner, sampler=sampler):
            problem = bilevel.BilevelProblem(logistic_outer, logistic_inner, *data)
            state = estimator.init(problem, inner, u, w)
            streams = streams_of(problem, sampler)
            return estimator.estimate(problem, inner, u, w, state, streams)[0].grad

        hand = by_hand(kind, logistic_inner, step)
        one, other = library(u, w, data), hand(u, w, data)
        apart = float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))
        quartiles = cpu_ratio(lambda: library(u, w, data), lambda: hand(u, w, data), REPEATS)
        floor = cpu_seconds(lambda: hand(u, w, data), repeats=5)[0]
        found[kind] = {
            "by_hand_ms": 1e3 * floor,
            "quartiles": quartiles,
            "relative_difference": apart,
        }
        print(kind, *(f"{ratio:.2f}" for ratio in quartiles), flush=True)
    return found


def main() -> None:
    problems, drawn = {}, []
    with jax.enable_x64(True):
        for build in (logistic, mlp):
            case = build()
            rows, inner_ms = measure(case)
            problems[case.name] = {
                "inner_solve_ms": inner_ms,
                "inner_steps": case.num_steps,
                "outer_variables": len(case.reference),
                "eigenvalues": [case.mu, case.largest],
                "estimators": {row.name: row._asdict() for row in rows},
            }
            drawn.append((case.name, rows))
            print(case.name, *rows, sep="\n", flush=True)
    draw(drawn)
    settings = {
        "ratios": {
            "rows": 4000,
            "features": 500,
            "inner_steps": INNER,
            "terms": TERMS,
            "rank": RANK,
            "damping": DAMPING,
            "batch": BATCH,
            "samples": SAMPLES,
            "repeats": REPEATS,
        },
    }
    write(__file__, {"settings": settings, "seeds": [0], "problems": problems, "ratios": ratios()})


if __name__ == "__main__":
    main()
