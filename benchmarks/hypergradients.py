"""Every hypergradient estimator: error against time and memory, and its cost above handwritten JAX.

Two problems in float64, each with one inner solver, which all estimators share:

    logistic   400 features, one l2 penalty each (dim u = 400), 500 gradient steps from zero;
    mlp        64-16-10 tanh network on 300 digits, one l2 penalty a tensor (dim u = 4), 200 gradient
               steps from a point near the solution.

Errors are relative, to AID with CG at 1e-12 at an inner point solved by Newton's method; the error
estimate is divided by the same norm. Time is CPU time above that of the inner solve alone (of SID,
which has a stochastic inner solve of its own, all of it); memory is XLA's count of temporaries in
units of one vector like `w`.

Then the ratio of the library's estimate to the same arithmetic written by hand, in float32, on a
logistic problem with 4000 rows and 500 features. The target is 1.15. Only the gradient is asked for,
as in a training loop: what else an estimate has (residuals, error estimate) is dead code there.

One thread: run it as `taskset -c 0 python benchmarks/hypergradients.py`.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import matplotlib as mpl
import numpy as np
import optax
from _measure import cpu_ratio, cpu_seconds
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

TARGET = 1.15


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
    print(
        f"reference: inner residual {size:.1e}, Hessian's eigenvalues {eigenvalues[0]:.1e} to "
        f"{eigenvalues[-1]:.1e}, dim(w) {flat.size}"
    )
    return unravel(flat), (float(eigenvalues[0]), float(eigenvalues[-1]))


def logistic_loss(w, batch):
    x, y = batch
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


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


def table(case: Case, rows: list[Row], inner_ms: float) -> str:
    lines = [
        f"## {case.name}: inner solve {inner_ms:.0f} ms, dim(u) {len(case.reference)}",
        "",
        "| estimator | error | error estimate | CPU ms above the inner solve | memory, vectors |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.name} | {r.error:.1e} | {r.error_estimate:.1e} | {r.milliseconds:.1f} | "
            f"{r.memory:.0f} |"
        )
    return "\n".join(lines)


def draw(results: list[tuple[Case, list[Row]]], path: Path) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    markers = "osD^v<>pPX*hHd8"
    names = list(dict.fromkeys(p.name for _, points in results for p in points))
    figure, axes = plt.subplots(len(results), 2, figsize=(13, 10), layout="constrained")
    handles = {}
    for row, (case, points) in zip(axes, results, strict=True):
        for p in points:
            i = names.index(p.name)
            style = {
                "color": plt.get_cmap("tab20")(i % 20),
                "marker": markers[i % len(markers)],
                "s": 80,
                "edgecolors": "k",
                "linewidths": 0.5,
            }
            # A time below a tenth of a millisecond is noise, an error below 1e-12 the reference's.
            error = max(p.error, 1e-12)
            handles[p.name] = row[0].scatter(max(p.milliseconds, 0.1), error, **style)
            row[1].scatter(p.memory, error, **style)
        row[0].set(xlabel="CPU ms above the inner solve", ylabel=f"{case.name}: relative error")
        row[1].set(xlabel="temporaries, in vectors like w")
        for axis in row:
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
    legend = [handles[name] for name in names]
    figure.legend(legend, names, loc="outside right center", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


# The same arithmetic by hand, on the logistic problem. All return the hypergradient only.

INNER, TERMS, RANK, DAMPING, BATCH, SAMPLES = 10, 20, 20, 1e-2, 64, 10


def by_hand(kind: str, inner: Callable, step: float):
    def descend(u, w, data, num_steps=INNER):
        def body(w, _):
            return w - step * jax.grad(inner, argnums=1)(u, w, data), None

        return jax.lax.scan(body, w, length=num_steps)[0]

    def implicit(solve: Callable):
        @jax.jit
        def run(u, w, data):
            outer_data, inner_data = data
            w = descend(u, w, inner_data)
            b = jax.grad(logistic_loss)(w, outer_data)
            _, hvp = jax.linearize(lambda w: jax.grad(inner, argnums=1)(u, w, inner_data), w)
            v = solve(hvp, b)
            _, cross = jax.jvp(lambda w: jax.grad(inner)(u, w, inner_data), (w,), (v,))
            return -cross

        return run

    def cg(hvp, b, precondition=lambda r: r):
        def body(carry, _):
            x, r, p, rz = carry
            ap = hvp(p)
            a = rz / (p @ ap)
            x, r = x + a * p, r - a * ap
            z = precondition(r)
            new = r @ z
            return (x, r, z + new / rz * p, new), None

        z = precondition(b)
        return jax.lax.scan(body, (jnp.zeros_like(b), b, z, b @ z), length=TERMS)[0][0]

    def damped_cg(hvp, b):
        return cg(lambda x: hvp(x) + DAMPING * x, b)

    def diagonal_cg(hvp, b):
        signs = jax.random.rademacher(jax.random.key(0), (RANK, b.size), b.dtype)
        diagonal = jnp.mean(signs * jax.vmap(hvp)(signs), axis=0)
        diagonal = jnp.maximum(diagonal, 1e-3 * jnp.max(diagonal))
        return cg(hvp, b, lambda r: r / diagonal)

    def nystrom_cg(hvp, b):
        return cg(hvp, b, low_rank(hvp, b))

    def neumann(hvp, b):
        def body(carry, _):
            total, term = carry
            term = term - step * hvp(term)
            return (total + term, term), None

        return step * jax.lax.scan(body, (b, b), length=TERMS - 1)[0][0]

    def richardson(hvp, b):
        def body(x, _):
            return x + step * (b - hvp(x)), None

        return jax.lax.scan(body, jnp.zeros_like(b), length=TERMS)[0]

    def low_rank(hvp, b):
        chosen = jax.random.choice(jax.random.key(0), b.size, (RANK,), replace=False)
        c = jax.vmap(hvp)(jax.nn.one_hot(chosen, b.size, dtype=b.dtype))
        values, vectors = jnp.linalg.eigh(c[:, chosen])
        keep = values > RANK * jnp.finfo(b.dtype).eps * jnp.max(jnp.abs(values))
        root = jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, values, 1)), 0)
        _, s, f = jnp.linalg.svd(root[:, None] * (vectors.T @ c), full_matrices=False)

        def apply(r):
            inside = f @ r
            return f.T @ (inside / (s**2 + DAMPING)) + (r - f.T @ inside) / DAMPING

        return apply

    def nystrom(hvp, b):
        return low_rank(hvp, b)(b)

    def outer_value(u, w, data):
        return logistic_loss(descend(u, w, data[1], TERMS), data[0])

    def lean(u, w, data):
        """Each step computed anew in the backward pass, as the library does."""
        one = jax.checkpoint(lambda w: descend(u, w, data[1], 1), prevent_cse=False)
        w = jax.lax.scan(lambda w, _: (one(w), None), w, length=TERMS)[0]
        return logistic_loss(w, data[0])

    def truncated(u, w, data):
        w = jax.lax.stop_gradient(descend(u, w, data[1], TERMS - TERMS // 2))
        return logistic_loss(descend(u, w, data[1], TERMS // 2), data[0])

    def checkpointed(u, w, data):
        size = math.isqrt(TERMS - 1) + 1
        blocks, rest = divmod(TERMS, size)
        block = jax.checkpoint(lambda w: descend(u, w, data[1], size))
        w = jax.lax.scan(lambda w, _: (block(w), None), w, length=blocks)[0]
        if rest:
            w = jax.checkpoint(lambda w: descend(u, w, data[1], rest))(w)
        return logistic_loss(w, data[0])

    @jax.jit
    def sid(u, w, data):
        outer_key, inner_key = jax.random.split(jax.random.key(0))

        def batch(key, rows, k):
            index = jax.random.randint(jax.random.fold_in(key, k), (BATCH,), 0, len(rows[1]))
            return jax.tree.map(lambda x: x[index], rows)

        def gradient(u, w, k):
            return jax.grad(inner, argnums=(0, 1))(u, w, batch(inner_key, data[1], k))

        def descend(w, k):
            return w - step * gradient(u, w, k)[1], None

        def average(sample):
            each = jax.lax.scan(lambda _, k: (None, sample(k)), None, jnp.arange(SAMPLES))[1]
            return jnp.mean(each, axis=0)

        def solve(v, k):
            product = jax.jvp(lambda w: gradient(u, w, k)[1], (w,), (v,))[1]
            return v - step * (product - b), None

        w = jax.lax.scan(descend, w, jnp.arange(10 * TERMS))[0]
        b = average(lambda k: jax.grad(logistic_loss)(w, batch(outer_key, data[0], k)))
        first = 10 * TERMS + SAMPLES  # the cross derivative's batches come before the products'
        ks = jnp.arange(first, first + 10 * TERMS)
        v = jax.lax.scan(solve, jnp.zeros_like(w), ks)[0]
        return -average(
            lambda k: jax.jvp(lambda w: gradient(u, w, 10 * TERMS + k)[0], (w,), (v,))[1]
        )

    @jax.jit
    def forward(u, w, data):
        return jax.jvp(lambda u: outer_value(u, w, data), (u,), (jnp.ones_like(u),))[1]

    solves = {
        "CG": cg,
        "CG, damping": damped_cg,
        "CG, diagonal preconditioner": diagonal_cg,
        "CG, Nystrom preconditioner": nystrom_cg,
        "Neumann": neumann,
        "Richardson": richardson,
        "Nystrom": nystrom,
    }
    if kind in solves:
        return implicit(solves[kind])
    unrolled = {
        "ITD reverse": outer_value,
        "ITD reverse, as lean": lean,
        "ITD checkpointed": checkpointed,
        "ITD, last half": truncated,
    }
    if kind in unrolled:
        return jax.jit(jax.grad(unrolled[kind]))
    return {"ITD forward": forward, "SID": sid}[kind]


def ratios() -> list[tuple[str, float, float, float, float, float]]:
    """(estimator, milliseconds by hand, quartiles of the ratio, relative difference)."""
    data = logistic_data(4000, 500, jnp.float32)
    x = np.asarray(data[1][0])
    step = float(1 / (0.25 * np.linalg.norm(x, 2) ** 2 / len(x) + 0.02))
    w = jnp.zeros(500)

    found = []
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
        quartiles = cpu_ratio(lambda: library(u, w, data), lambda: hand(u, w, data), 11)
        floor = cpu_seconds(lambda: hand(u, w, data), repeats=5)[0]
        found.append((kind, 1e3 * floor, *quartiles, apart))
    return found


def main() -> None:
    results = []
    with jax.enable_x64(True):
        for build in (logistic, mlp):
            case = build()
            rows, inner_ms = measure(case)
            print(f"\n{table(case, rows, inner_ms)}\n", flush=True)
            results.append((case, rows))
    path = Path(__file__).parents[1] / "docs" / "img" / "hypergradients.png"
    draw(results, path)
    print(f"written: {path}\n")
    print("| estimator | by hand, ms | library / by hand | quartiles | difference |")
    print("|---|---|---|---|---|")
    for kind, floor, low, middle, high, apart in ratios():
        mark = "" if middle <= TARGET else f" (above {TARGET})"
        print(
            f"| {kind} | {floor:.1f} | {middle:.2f}{mark} | {low:.2f}, {high:.2f} | {apart:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
